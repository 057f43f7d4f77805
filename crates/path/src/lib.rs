//! Where a peer's packets go, without I/O.
//!
//! Five machines, each with one owner. [`Paths`] finds and keeps the best path to each peer: it exchanges disco pings
//! with the addresses a peer may have, adopts the best that answers, trusts it for a while, and falls back to the
//! relay. [`Netcheck`] finds out how this node looks from outside: it asks the STUN servers of the relay map for its
//! addresses, measures how far the relays are, and chooses the home relay. [`PortMapper`] asks the gateway to
//! let the node's UDP port be reached from outside. [`PeerRelayServer`] makes this node a relay for its peers. [`Routers`]
//! chooses among the peers that lead into one network.
//!
//! Nothing here reads a clock, opens a socket or draws randomness that it was not given. After each call of a method
//! that takes `now`, drain every `poll_*` before the next input.
//!
//! Source: Tailscale `wgengine/magicsock`, `net/netcheck` and `disco`.

#![forbid(unsafe_code)]

mod address;
mod netcheck;
mod paths;
mod peer_relay;
mod portmap;
mod routers;
#[cfg(test)]
mod testing;

pub use address::is_usable;
pub use netcheck::{
    Families, Kind, Latencies, MAX_ANSWER as MAX_PORTAL_ANSWER, Netcheck, PortalProbe, Probe, RelayAddress, Report,
};
pub use paths::{
    Allocation, CandidateStatus, Decision, Destination, Direct, Event, Origin, OwnNat, Path, PathStatus, Paths,
    PeerConfig, PeerRelay, PeerRelayRoles, PeerRelayed, PingError, PingId, Punched, Reason, SocketId, Transmit,
    UdpLifetime, Via,
};
pub use peer_relay::{AllocateError, PeerRelayServer, Verdict};
pub use portmap::{MapRequest, MapServices, MapTarget, MapTransmit, PortMapper};
pub use routers::{Answerer, Router, RouterProbe, Routers, SwitchReason, Switched, Use};
