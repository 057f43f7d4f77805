//! All peers' paths of one node.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_wire::control::RegionId;
use warren_wire::key::{DiscoKey, DiscoSecret, NodeKey};

/// What the server says of a peer's paths.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerConfig {
    /// Its disco key; without one there is only the relay.
    pub disco: Option<DiscoKey>,
    /// Its home relay.
    pub home: Option<RegionId>,
    /// Addresses at which it may be found; unusable ones are ignored.
    pub endpoints: Vec<SocketAddr>,
}

/// A disco message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: Destination,
    /// The whole datagram.
    pub bytes: Vec<u8>,
}

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Destination {
    /// Straight to this address.
    Udp(SocketAddr),
    /// To the peer through a relay region.
    Relay {
        /// The region.
        region: RegionId,
        /// The peer.
        peer: NodeKey,
    },
}

/// How a message came from a peer or got there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Via {
    /// Straight from or to this address.
    Direct(SocketAddr),
    /// Through this relay region.
    Relay(RegionId),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Send to the peer by this path from now on.
    Path {
        /// Who.
        peer: NodeKey,
        /// The path.
        path: Path,
    },
    /// Fresh own endpoints are wanted: measure, then call [`Paths::set_own_endpoints`], also if nothing was found.
    EndpointsWanted,
    /// A ping of [`Paths::ping`] was answered; this is its only event.
    Pong {
        /// Which.
        id: PingId,
        /// The path that was pinged.
        via: Via,
        /// Time there and back.
        latency: Duration,
    },
    /// A ping of [`Paths::ping`] was not answered within 5 s, or its peer is gone; this is its only event.
    PingTimeout {
        /// Which.
        id: PingId,
    },
}

/// Where to send a peer's packets: [`Self::direct`] alone while it is trusted; afterwards `direct`, if any, and
/// [`Self::relay`]; without a direct path the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Path {
    /// The direct path, if one is known.
    pub direct: Option<Direct>,
    /// The relay region, if one is known.
    pub relay: Option<RegionId>,
}

/// A direct path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Direct {
    /// The peer's address.
    pub address: SocketAddr,
    /// Last instant at which the path alone suffices.
    pub trusted_until: Instant,
}

/// Names a ping of [`Paths::ping`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PingId(pub u64);

/// Says why a ping was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PingError {
    /// Not, or no longer, a peer.
    #[error("no such peer")]
    UnknownPeer,
    /// The server told no disco key of the peer.
    #[error("the peer cannot be pinged: it has no disco key")]
    NoDiscoKey,
    /// Neither an address nor a relay is known.
    #[error("no path to the peer is known: neither an address nor a home relay")]
    NoPath,
    /// Too many pings wait for their answers.
    #[error("too many pings at once")]
    Busy,
}

/// A peer's paths, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathStatus {
    /// What the peer's packets do now.
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
    /// The server listed it.
    Netmap,
    /// The peer named it over the relay.
    CallMeMaybe,
    /// A ping of the peer came from it.
    Ping,
}

/// Why a peer's path is as it is; its text is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// No packet was sent to the peer yet.
    Untried,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Untried => "no packet was sent to the peer yet",
        })
    }
}

/// All peers' paths of one node. After each call of a method that takes `now`, and of [`Self::set_own_endpoints`],
/// drain [`Self::poll_transmit`] and [`Self::poll_event`] and look at [`Self::poll_timeout`].
pub struct Paths {
    disco: DiscoKey,
}

impl Paths {
    /// Makes the paths of the node with key `node`. `seed` must be fresh randomness.
    #[must_use]
    pub fn new(disco: DiscoSecret, _node: NodeKey, _seed: [u8; 32]) -> Self {
        Self { disco: disco.public() }
    }

    /// Returns the public disco key, for the server.
    #[must_use]
    pub fn disco_key(&self) -> DiscoKey {
        self.disco
    }

    /// Adds a peer or changes what the server says of it. A changed disco key forgets what was proved.
    pub fn set_peer(&mut self, _key: NodeKey, _config: &PeerConfig, _now: Instant) {}

    /// Removes a peer; no event follows.
    pub fn remove_peer(&mut self, _key: &NodeKey) {}

    /// Takes over this node's own addresses, best first, for call-me-maybe; `measured` is when the STUN servers were
    /// last asked, whatever they said.
    pub fn set_own_endpoints(&mut self, _endpoints: Vec<SocketAddr>, _measured: Instant) {}

    /// Tells that WireGuard packets were sent to a peer; workers do so at the first packet and at most once a second.
    pub fn handle_activity(&mut self, _peer: &NodeKey, _now: Instant) {}

    /// Handles a disco datagram that came straight from `from`.
    pub fn handle_udp(&mut self, _from: SocketAddr, _datagram: &[u8], _now: Instant) {}

    /// Handles a disco datagram that came through a relay from the holder of key `from`, as the relay says.
    pub fn handle_relayed(&mut self, _region: RegionId, _from: &NodeKey, _datagram: &[u8], _now: Instant) {}

    /// Tells that an authentic WireGuard packet of a peer came this way. Only a relay region is learned from it, for
    /// peers without a known home; a direct path is proved by pings alone. At most once a second per peer is enough.
    pub fn handle_received(&mut self, _peer: &NodeKey, _via: Via, _now: Instant) {}

    /// Tells that the system refused to send to a peer's address: no route to it.
    pub fn handle_unreachable(&mut self, _peer: &NodeKey, _to: SocketAddr, _now: Instant) {}

    /// Tells that this node's sockets or links changed: all that was proved is void.
    pub fn handle_rebind(&mut self, _now: Instant) {}

    /// Pings a peer for a user: on the direct path if it is trusted, else everywhere and over the relay. Exactly one
    /// [`Event::Pong`] or [`Event::PingTimeout`] follows.
    ///
    /// # Errors
    /// [`PingError`].
    pub fn ping(&mut self, _peer: &NodeKey, _now: Instant) -> Result<PingId, PingError> {
        Err(PingError::UnknownPeer)
    }

    /// Acts on every deadline at or before `now`.
    pub fn handle_timeout(&mut self, _now: Instant) {}

    /// Returns when to call [`Self::handle_timeout`] next; never while all peers are idle.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// Returns the next message to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        None
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }

    /// Tells whether packets were sent to any peer in the last 45 s, so that own endpoints should be kept fresh.
    #[must_use]
    pub fn in_use(&self) -> bool {
        false
    }

    /// Describes a peer's paths; `None` if there is no such peer.
    #[must_use]
    pub fn status(&self, _peer: &NodeKey) -> Option<PathStatus> {
        None
    }
}

impl fmt::Debug for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Paths").field("disco", &self.disco).finish_non_exhaustive()
    }
}
