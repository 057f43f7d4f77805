//! The local API: HTTP/1.1 on a unix socket, for the command line and for programs that speak the official dialect.
//!
//! Whoever can open the socket may ask; what he may ask is decided by the user id that the kernel names and the table
//! in [`access`]. Requests that carry signs of a browser are refused.

pub mod access;
mod body;
pub mod client;
mod dial;
mod serve;
pub mod types;

use std::net::IpAddr;

use serde_json::Value;
use tokio::sync::oneshot;
use warren_wire::key::NodeKey;

pub use client::{Client, ClientError};
pub use dial::Dialling;
pub use serve::{ListenError, Shared, listen, serve};

use crate::prefs::Prefs;
use types::{PingResult, StartOptions, State, Status, Trouble, WhoIs};

/// Is what the daemon is asked to do, after the caller's right to it was checked.
#[derive(Debug)]
pub enum Request {
    /// Show everything; the flag says whether to list the peers.
    Status(Peers, oneshot::Sender<Box<Status>>),
    /// Find whom an address or key belongs to.
    WhoIs(Who, oneshot::Sender<Option<WhoIs>>),
    /// Show the settings.
    Prefs(oneshot::Sender<Prefs>),
    /// Change settings by a masked document.
    EditPrefs(Authority, Value, oneshot::Sender<Result<Prefs, Refusal>>),
    /// Log in and run, perhaps with an auth key and changed settings.
    Start(Authority, StartOptions, oneshot::Sender<Result<(), Refusal>>),
    /// Ask the server for a login page.
    LoginInteractive(oneshot::Sender<Result<(), Refusal>>),
    /// Log out.
    Logout(oneshot::Sender<Result<(), Refusal>>),
    /// Forget the keys of the login without telling the server.
    ResetAuth(oneshot::Sender<Result<(), Refusal>>),
    /// Ping a peer by address.
    Ping(IpAddr, oneshot::Sender<PingResult>),
    /// Measure the network.
    Netcheck(oneshot::Sender<Value>),
    /// Show the relay map.
    DerpMap(oneshot::Sender<Value>),
    /// End the daemon.
    Shutdown(oneshot::Sender<()>),
}

/// Says whether a status lists peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peers {
    /// All of them.
    Listed,
    /// None of them.
    Omitted,
}

/// Names a node for `whois`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// By one of its addresses.
    Address(IpAddr),
    /// By its node key.
    Key(NodeKey),
}

/// Says how much the caller of a write may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authority {
    /// Everything but whom this machine trusts.
    Operator,
    /// Everything.
    Root,
}

/// Says why the daemon did not do as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The caller may not change this.
    Forbidden,
    /// The request makes no sense now; the text says why.
    Bad(String),
    /// Something failed here; the text says what.
    Failed(String),
}

/// Is what watchers of the bus are told about.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bus {
    /// How far the node has come.
    pub state: State,
    /// Page where a person must log in, empty if none.
    pub browse_to_url: String,
    /// What went wrong last, until it is over.
    pub trouble: Option<Trouble>,
    /// A login is under way: the server is asked, or a person must visit a page.
    pub logging_in: bool,
    /// How many logins have succeeded since the daemon started.
    pub logins: u64,
}
