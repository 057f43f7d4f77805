//! The node's daemon: it keeps in touch with the coordination server, tells the engine what the tailnet looks like, and
//! answers local programs.
//!
//! - [`control_client`]: connection to the server, registration, map stream.
//! - [`netmap`]: what the map responses add up to, sans-IO.
//! - [`engine`]: the packets' side, and the seam to it.
//! - [`flow_log`]: what becomes of the records of connections.
//! - [`daemon`]: the owner of all decisions: settings, login, state.
//! - [`local_api`]: HTTP over a unix socket, both ends.
//! - [`userspace`]: a node without TUN device and without root.
//! - [`state`], [`prefs`]: what survives a restart.

#![forbid(unsafe_code)]

pub mod control_client;
pub mod daemon;
pub mod engine;
pub mod flow_log;
pub mod host;
pub mod hostinfo;
pub mod local_api;
mod look_up;
pub mod netmap;
pub mod prefs;
pub mod state;
pub mod userspace;

/// Addresses of IPv4 hosts at sites, for commands that show them.
pub use warren_filter::via;

/// Version that this node shows to servers and local programs.
pub const VERSION: &str = concat!("warren-", env!("CARGO_PKG_VERSION"));

/// Behaviours that this node claims to have.
///
/// Source: Tailscale `tailcfg`, `CapabilityVersion`.
pub const CAPABILITY_VERSION: u16 = 130;
