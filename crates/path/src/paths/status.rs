//! Paths as people want to see them.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::output::Path;

/// A peer's paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathStatus {
    /// Where the peer's packets go now.
    pub path: Path,
    /// Time there and back on the direct path.
    pub latency: Option<Duration>,
    /// Whether packets were sent to the peer in the last 45 s.
    pub in_use: bool,
    /// How `path` came about.
    pub reason: Reason,
    /// Addresses at which the peer may be.
    pub candidates: Vec<CandidateStatus>,
}

/// One address at which a peer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CandidateStatus {
    /// The address.
    pub address: SocketAddr,
    /// Who named it.
    pub origin: Origin,
    /// When it was last pinged.
    pub pinged: Option<Instant>,
    /// Time there and back of its last answer.
    pub latency: Option<Duration>,
}

/// How an address of a peer became known; the first that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// The server lists it.
    Netmap,
    /// The peer named it over the relay.
    CallMeMaybe,
    /// Only traffic with it tells of it.
    Ping,
}

/// Why a peer's path is as it is; its text is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The direct path's address answers pings.
    Answered,
    /// Relayed: no packet was sent to the peer yet.
    Untried,
    /// Relayed: the peer has no disco key.
    NoDiscoKey,
    /// Relayed: no address of the peer is known.
    NoAddress,
    /// Relayed: no address of the peer answers.
    NoAnswer,
    /// Relayed: the direct path stopped answering.
    Lost,
    /// Relayed: this machine has no route to the direct path's address.
    Unreachable,
    /// Relayed: the direct path's address is no longer the peer's.
    Withdrawn,
    /// Relayed: the network of this machine changed.
    NetworkChanged,
    /// Relayed: the peer restarted.
    PeerRestarted,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Answered => "the address answers",
            Self::Untried => "nothing was sent to the peer yet",
            Self::NoDiscoKey => "the peer has no disco key",
            Self::NoAddress => "no address of the peer is known",
            Self::NoAnswer => "no address of the peer answers",
            Self::Lost => "the direct path stopped answering",
            Self::Unreachable => "this machine has no route to the peer's address",
            Self::Withdrawn => "the peer no longer has the address of the direct path",
            Self::NetworkChanged => "the network of this machine changed",
            Self::PeerRestarted => "the peer restarted",
        })
    }
}
