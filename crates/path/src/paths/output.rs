//! What [`Paths`](super::Paths) tells its owner to do.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_wire::control::RegionId;
use warren_wire::key::NodeKey;

use super::peer_relays::{Allocation, PeerRelay, PeerRelayed};

/// A disco message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: Destination,
    /// From which UDP socket, if it goes straight.
    pub socket: SocketId,
    /// The whole datagram.
    pub bytes: Vec<u8>,
    /// It must not be cut into fragments, here or on its way: whether it arrives is the question.
    pub whole: bool,
}

/// Names a UDP socket: 0 is the main one of the destination's family, others are extra IPv4 sockets that
/// [`Event::Sockets`] asked for.
pub type SocketId = u16;

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Destination {
    /// Straight to this address.
    Udp(SocketAddr),
    /// To a peer relay or through it, by UDP to its address; the message has its header already.
    PeerRelay(PeerRelay),
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
    /// Through this endpoint of a peer relay.
    PeerRelay(PeerRelay),
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
    /// Fresh own endpoints are wanted: measure, then call [`Paths::set_own_endpoints`](super::Paths::set_own_endpoints),
    /// also if nothing was found. Repeated every 10 s while it is not answered.
    EndpointsWanted,
    /// Keep exactly these extra UDP sockets open, at most [`Paths::MAX_SOCKETS`](super::Paths::MAX_SOCKETS), each bound to
    /// a free IPv4 port: open those that are not, close the others, then call
    /// [`Paths::handle_sockets`](super::Paths::handle_sockets). One that cannot be opened is as good as one without luck.
    Sockets {
        /// Their names, none of them 0.
        wanted: Vec<SocketId>,
    },
    /// An endpoint of this node's own relay is asked for: if there is such a relay, and whoever asks may use it, let it
    /// allocate one and call [`Paths::answer_allocation`](super::Paths::answer_allocation).
    AllocationWanted(Allocation),
    /// A ping of [`Paths::ping`](super::Paths::ping) was answered; this is its only event.
    Pong {
        /// Which.
        id: PingId,
        /// The path that was pinged.
        via: Via,
        /// Time there and back.
        latency: Duration,
    },
    /// A ping of [`Paths::ping`](super::Paths::ping) was not answered within 5 s, or its peer is gone; this is its
    /// only event.
    PingTimeout {
        /// Which.
        id: PingId,
    },
}

/// Where to send a peer's packets: [`Self::direct`] alone while it is trusted; afterwards to `direct` and
/// [`Self::peer_relay`], which suffice while that is trusted; afterwards to all that there is of these,
/// [`Self::second`] and [`Self::relay`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Path {
    /// The direct path, if one is known.
    pub direct: Option<Direct>,
    /// The path over a peer relay, if one is known.
    pub peer_relay: Option<PeerRelayed>,
    /// Another address of the peer that answered lately, from the main socket.
    pub second: Option<SocketAddr>,
    /// The relay region, if one is known.
    pub relay: Option<RegionId>,
}

/// A direct path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Direct {
    /// The peer's address.
    pub address: SocketAddr,
    /// The UDP socket to send from.
    pub socket: SocketId,
    /// Last instant at which the path alone suffices.
    pub trusted_until: Instant,
    /// The most bytes of a datagram that it is known to carry, if that is less than the tunnel needs; larger ones should
    /// go another way if there is one. Else the largest number.
    pub largest: u16,
}

/// Names a ping of [`Paths::ping`](super::Paths::ping).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PingId(pub u64);
