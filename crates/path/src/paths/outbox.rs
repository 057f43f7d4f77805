//! What all peers share to send: keys, randomness, pings under way, timers.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use warren_wire::disco::{self, Message, Ping, TransactionId};
use warren_wire::geneve::{Header, Protocol};
use warren_wire::key::{DiscoKey, DiscoSecret, NodeKey};
use warren_wire::nacl::SharedBox;

use super::keys::DiscoKeys;
use super::mtu;
use super::output::{Destination, PingId, SocketId, Transmit};
use super::peer_relays::PeerRelay;
use super::pings::{Pings, Sent};

/// How long a pong is waited for.
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// What a deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A peer in use is looked at.
    Heartbeat(NodeKey),
    /// A pong is overdue.
    Ping(TransactionId),
    /// The direct path of a peer is silent.
    Watch(NodeKey),
    /// The path over a peer relay to a peer is silent.
    RelayWatch(NodeKey),
    /// The direct path of a peer at rest may have been silent for long enough.
    Lifetime(NodeKey),
    /// The attempt at a hard NAT goes on.
    Punch,
    /// Requests to peer relays and handshakes with them go on, for a peer.
    PeerRelay(NodeKey),
}

pub(super) struct Outbox {
    node: NodeKey,
    pub(super) keys: DiscoKeys,
    pub(super) pings: Pings,
    pub(super) timers: BTreeSet<(Instant, Timer)>,
    pub(super) transmits: VecDeque<Transmit>,
    rng: StdRng,
}

impl Outbox {
    pub(super) fn new(disco: DiscoSecret, node: NodeKey, seed: [u8; 32]) -> Self {
        Self {
            node,
            keys: DiscoKeys::new(disco),
            pings: Pings::default(),
            timers: BTreeSet::new(),
            transmits: VecDeque::new(),
            rng: StdRng::from_seed(seed),
        }
    }

    /// Sends a message to the holder of `disco`; false if nothing can be sealed for it.
    pub(super) fn send(&mut self, to: Destination, disco: &DiscoKey, message: &Message) -> bool {
        self.send_from(0, to, disco, message)
    }

    /// The same, from a socket.
    pub(super) fn send_from(&mut self, socket: SocketId, to: Destination, disco: &DiscoKey, message: &Message) -> bool {
        let nonce = self.rng.random();
        let Some(bytes) = self.keys.seal(disco, &nonce, message) else { return false };
        let bytes = match to {
            Destination::Udp(_) | Destination::Relay { .. } => bytes,
            Destination::PeerRelay(relay) => relay.header(Protocol::Disco).wrap(&bytes),
        };
        let whole = matches!(message, Message::Ping(ping) if ping.padding > 0);
        self.transmits.push_back(Transmit { to, socket, bytes, whole });
        true
    }

    /// Sends a message to a peer relay itself.
    pub(super) fn send_control(&mut self, to: PeerRelay, shared: &SharedBox, message: &Message) {
        let sealed = disco::seal(shared, &self.keys.public(), &self.rng.random(), message);
        let bytes = Header { control: true, ..to.header(Protocol::Disco) }.wrap(&sealed);
        self.transmits.push_back(Transmit { to: Destination::PeerRelay(to), socket: 0, bytes, whole: false });
    }

    /// Sends a ping and waits for its pong; false if nothing can be sealed for the peer.
    pub(super) fn ping(
        &mut self,
        peer: &NodeKey,
        disco: &DiscoKey,
        to: Destination,
        user: Option<PingId>,
        now: Instant,
    ) -> bool {
        self.ping_from(&Sent { peer: *peer, to, socket: 0, at: now, user, size: 0 }, disco)
    }

    /// The same, from a socket, and all else that is to be remembered of the ping.
    pub(super) fn ping_from(&mut self, sent: &Sent, disco: &DiscoKey) -> bool {
        let id: TransactionId = self.rng.random();
        let ping = Message::Ping(Ping { id, node_key: Some(self.node), padding: mtu::padding(sent.size, &sent.to) });
        if !self.send_from(sent.socket, sent.to, disco, &ping) {
            return false;
        }
        self.pings.insert(id, *sent);
        self.timers.insert((sent.at + PING_TIMEOUT, Timer::Ping(id)));
        true
    }

    /// Returns this node's key.
    pub(super) fn node(&self) -> &NodeKey {
        &self.node
    }

    /// Draws a number.
    pub(super) fn random(&mut self) -> u64 {
        self.rng.random()
    }
}
