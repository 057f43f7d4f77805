//! The decision side: handshakes and timers of all peers.

mod messages;
mod peer;
mod timers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_wire::key::{NodeKey, NodeSecret};

use crate::MessageType;
use crate::cookie::Checker;
use crate::entropy::Entropy;
use crate::handshake::{Identity, Timestamp};
use crate::limits::{Buckets, Load};
use crate::session::Session;
use crate::table::SessionTable;
use peer::{Attempt, Peer, Peers};

/// Seconds between TAI64's zero and 1970.
const TAI64_BASE: u64 = 0x4000_0000_0000_000A;
/// Latest wall time that is believed: thousands of years ahead, but far from the end of the numbers.
const LATEST_WALL: Duration = Duration::from_secs(1 << 40);

/// Where a message came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Straight from this address.
    Udp(SocketAddr),
    /// Through an endpoint of a relay among peers.
    PeerRelay {
        /// The relay's address.
        address: SocketAddr,
        /// The endpoint's number there.
        vni: u32,
    },
    /// Through a relay region, from the holder of this key as the relay says.
    Relay {
        /// Region's number.
        region: u16,
        /// Sender.
        peer: NodeKey,
    },
}

impl Origin {
    /// Bytes that tell origins apart, for cookies.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let bytes = |address: SocketAddr| {
            // A socket for both families shows IPv4 as mapped addresses.
            let ip = match address.ip().to_canonical() {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            [ip, address.port().to_be_bytes().to_vec()].concat()
        };
        match self {
            Self::Udp(address) => bytes(address),
            Self::PeerRelay { address, vni } => [bytes(address), vni.to_be_bytes().to_vec()].concat(),
            Self::Relay { region, peer } => [&region.to_be_bytes(), peer.as_bytes().as_slice()].concat(),
        }
    }
}

/// A message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// The peer to send to, by whatever path is best; none: only back to the origin.
    pub peer: Option<NodeKey>,
    /// Where the message that this answers came from.
    pub origin: Option<Origin>,
    /// The whole datagram.
    pub bytes: Vec<u8>,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// Send packets for the peer with this session from now on.
    Ready {
        /// Who.
        peer: NodeKey,
        /// The session.
        session: Arc<Session>,
    },
    /// The peer has no session any more.
    Closed {
        /// Who.
        peer: NodeKey,
    },
    /// The peer did not answer for 90 seconds: drop what waits for it.
    Failed {
        /// Who.
        peer: NodeKey,
    },
}

/// Says why no handshake was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Not, or no longer, a peer.
    #[error("no such peer")]
    UnknownPeer,
    /// The peer's key is a point of low order, with which nobody can have a secret.
    #[error("the peer's key is invalid")]
    InvalidKey,
    /// A million sessions.
    #[error("too many sessions")]
    Full,
}

/// Handshakes and timers of all peers of a node.
///
/// After each call of a `handle_*` or other method that takes `now`, drain [`Self::poll_transmit`] and
/// [`Self::poll_event`] and look at [`Self::poll_timeout`].
pub struct Tunnels {
    own: Identity,
    table: Arc<SessionTable>,
    /// Boxed, since a tree of large values is half empty.
    peers: Peers,
    /// Handshakes under way, by the slot of our index.
    attempts: BTreeMap<u32, NodeKey>,
    deadlines: BTreeSet<(Instant, NodeKey)>,
    checker: Checker,
    load: Load,
    buckets: Buckets,
    entropy: Entropy,
    clock: HandshakeClock,
    /// [`timers::REKEY_AFTER`], unless a test wants renewals more often.
    rekey_after: Duration,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

impl Tunnels {
    /// Makes the decision side of the node with key `secret`. `wall` is the time since 1970 at `now`; `seed` must be
    /// fresh randomness.
    ///
    /// Peers refuse handshakes whose time is not later than that of the last one they saw. A node whose clock went
    /// back since its last run is refused until its clock has caught up or the peer calls [`Self::reset_peer`].
    #[must_use]
    pub fn new(secret: NodeSecret, table: Arc<SessionTable>, seed: [u8; 32], now: Instant, wall: Duration) -> Self {
        let own = Identity::new(secret);
        let mut entropy = Entropy::new(seed);
        Self {
            checker: Checker::new(&own.public),
            own,
            table,
            peers: Peers::default(),
            attempts: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            load: Load::default(),
            buckets: Buckets::new(entropy.secret()),
            entropy,
            clock: HandshakeClock { start: now, wall: wall.min(LATEST_WALL), last: Duration::ZERO },
            rekey_after: timers::REKEY_AFTER,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Renews sessions that we began and send with at this age, instead of after 120 s.
    ///
    /// For tests of what happens to packets meanwhile; programs without debug assertions do not have it.
    #[cfg(debug_assertions)]
    pub fn set_rekey_after(&mut self, age: Duration) {
        self.rekey_after = age;
    }

    /// Adds a peer; false if it is there already.
    ///
    /// Costs little more than the key, and no cryptography: nothing else happens until there is traffic.
    pub fn add_peer(&mut self, key: NodeKey) -> bool {
        self.peers.add(key)
    }

    /// Removes a peer and its sessions.
    pub fn remove_peer(&mut self, key: &NodeKey) {
        if let Some(peer) = self.peers.remove(key) {
            self.close(key, *peer);
        }
    }

    /// Sends no more with the session of a peer that has restarted, as another channel tells, and forgets the time of
    /// its last handshake: its clock may have gone back.
    ///
    /// What comes in that session can be opened until it expires, for it may be one that the peer began after its
    /// restart, before the news of that came. Whoever recorded an old initiation could replay it once now, which makes
    /// a session that never carries anything.
    ///
    /// Tells whether data had been sent in that session which nothing came back for: whoever sent it waits.
    pub fn reset_peer(&mut self, key: &NodeKey) -> bool {
        let Some(peer) = self.peers.met_mut(key) else { return false };
        let is_unheard = peer.unheard_since().is_some();
        peer.greatest_timestamp = Timestamp::default();
        peer.cookie = None;
        let attempts = [peer.attempt.take(), peer.answered.take().map(|answered| answered.attempt)];
        let mut old = None;
        if let Some(current) = peer.current.take() {
            old = peer.previous.replace(current);
            self.events.push_back(Event::Closed { peer: *key });
        }
        attempts.into_iter().for_each(|attempt| self.drop_attempt(attempt));
        self.drop_session(old);
        is_unheard
    }

    /// Doubts the session of a peer that may have forgotten it, as another channel tells: a handshake begins together with the
    /// next packet that goes out in it, or at once if nothing came back for the last one. What the peer sends in it ends the
    /// doubt.
    ///
    /// A session that began within the last 5 s is not doubted, so that whoever can say such things causes no more
    /// handshakes than one in that time; and of a peer to which nothing is sent nothing is asked.
    pub fn doubt_session(&mut self, key: &NodeKey, now: Instant) {
        let Some(peer) = self.peers.met_mut(key) else { return };
        let Some(session) = &peer.current else { return };
        if now.saturating_duration_since(session.born()) < timers::REKEY_TIMEOUT {
            return;
        }
        session.set_doubted(Some(now));
        if peer.unheard_since().is_some() && peer.attempt.is_none() {
            // What fails here is tried again at the next activity.
            let _ = self.initiate(key, now, now);
        }
    }

    /// Tells whether there is a session to send with.
    #[must_use]
    pub fn has_session(&self, key: &NodeKey) -> bool {
        self.peers.met(key).is_some_and(|peer| peer.current.is_some())
    }

    /// Begins a handshake unless one is under way.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start_handshake(&mut self, key: &NodeKey, now: Instant) -> Result<(), StartError> {
        if self.peers.met(key).is_some_and(|peer| peer.attempt.is_some()) {
            return Ok(());
        }
        self.initiate(key, now, now)
    }

    /// Handles a handshake message or cookie reply. Transport messages are for [`Session::open`].
    pub fn handle_datagram(&mut self, message: &[u8], origin: Origin, now: Instant) {
        match MessageType::of(message) {
            Some(MessageType::Initiation) => self.handle_initiation(message, origin, now),
            Some(MessageType::Response) => self.handle_response(message, &origin, now),
            Some(MessageType::CookieReply) => self.handle_cookie_reply(message, now),
            Some(MessageType::Transport) | None => {}
        }
    }

    /// Tells that a worker opened the first packet of a session that the peer began.
    pub fn confirm(&mut self, session: &Arc<Session>, now: Instant) {
        let key = session.peer;
        let Some(peer) = self.peers.met_mut(&key) else { return };
        let Some(next) = peer.next.take_if(|next| Arc::ptr_eq(&next.session, session)) else { return };
        if peer.gives_way_to(&next, key > self.own.public) {
            let old = std::mem::replace(&mut peer.previous, peer.current.replace(next.session));
            let attempt = peer.attempt.take();
            self.drop_session(old);
            self.drop_attempt(attempt);
            self.events.push_back(Event::Ready { peer: key, session: Arc::clone(session) });
        } else {
            let old = peer.previous.replace(next.session);
            self.drop_session(old);
        }
        self.reschedule(&key, now);
    }

    /// Tells that packets go to or come from a peer; workers do so at the first packet and at most once a second.
    pub fn note_activity(&mut self, key: &NodeKey, now: Instant) {
        let Some(peer) = self.peers.met_mut(key) else { return };
        peer.check_at = Some(now + timers::CHECK_AGAIN);
        // In case what the worker told at the first packet got lost.
        let confirmed =
            peer.next.as_ref().filter(|next| next.session.is_confirmed()).map(|next| Arc::clone(&next.session));
        if let Some(session) = confirmed {
            self.confirm(&session, now);
        }
        self.renew_if_due(key, now);
        self.reschedule(key, now);
    }

    /// Acts on every deadline at or before `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(deadline, key)) = self.deadlines.first() {
            if deadline > now {
                return;
            }
            self.deadlines.remove(&(deadline, key));
            if let Some(peer) = self.peers.met_mut(&key) {
                peer.deadline = None;
            }
            self.check(&key, now);
            self.reschedule(&key, now);
        }
    }

    /// Returns when to call [`Self::handle_timeout`] next; never while all peers are idle.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Returns the next message to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Tells when the last handshake with a peer was finished.
    #[must_use]
    pub fn last_handshake(&self, key: &NodeKey) -> Option<Instant> {
        self.peers.met(key)?.current.as_ref().map(|session| session.born())
    }

    /// Takes everything of a peer out of the tables.
    fn close(&mut self, key: &NodeKey, peer: Peer) {
        if let Some(deadline) = peer.deadline {
            self.deadlines.remove(&(deadline, *key));
        }
        self.drop_attempt(peer.attempt);
        self.drop_attempt(peer.answered.map(|answered| answered.attempt));
        for session in [peer.current, peer.previous, peer.next.map(|next| next.session)] {
            self.drop_session(session);
        }
    }

    fn drop_session(&self, session: Option<Arc<Session>>) {
        if let Some(session) = session {
            self.table.remove(&session);
        }
    }

    fn drop_attempt(&mut self, attempt: Option<Box<Attempt>>) {
        if let Some(attempt) = attempt {
            self.attempts.remove(&SessionTable::slot_of(attempt.pending.index));
        }
    }
}

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnels")
            .field("public", &self.own.public)
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}

/// The times in our initiations, each later than the one before.
struct HandshakeClock {
    start: Instant,
    /// Time since 1970 at `start`.
    wall: Duration,
    last: Duration,
}

impl HandshakeClock {
    fn timestamp(&mut self, now: Instant) -> Timestamp {
        let time = self.wall.saturating_add(now.saturating_duration_since(self.start));
        let time = time.max(self.last.saturating_add(Duration::from_nanos(1)));
        self.last = time;
        let mut bytes = [0; 12];
        let seconds = TAI64_BASE.saturating_add(time.as_secs());
        let fields = seconds.to_be_bytes().into_iter().chain(time.subsec_nanos().to_be_bytes());
        bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        bytes
    }
}

#[cfg(test)]
mod tests;
