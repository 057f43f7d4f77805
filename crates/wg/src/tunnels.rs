//! The decision side: handshakes and timers of all peers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use warren_wire::key::{NodeKey, NodeSecret};

use crate::MessageType;
use crate::cookie::{self, Checker, Cookie};
use crate::crypto::Key;
use crate::handshake::{self, Finished, Pending, Timestamp};
use crate::limits::{Buckets, Load};
use crate::session::{HEADROOM, Parts, REJECT_AFTER, REKEY_AFTER_MESSAGES, Session, TAILROOM};
use crate::table::SessionTable;

/// Age at which the initiator renews a session that it sends with.
const REKEY_AFTER: Duration = Duration::from_secs(120);
/// Age at which the initiator renews a session that it only receives with: 180 − 10 − 5 s.
const REKEY_AFTER_RECEIVING: Duration = Duration::from_secs(165);
/// Time between attempts of a handshake, before up to 333 ms that are added at random.
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
const REKEY_JITTER_MILLIS: u64 = 333;
/// Time after which a handshake is given up.
const REKEY_ATTEMPT: Duration = Duration::from_secs(90);
/// Time after which received data is answered with an empty packet.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Time without an answer to data after which a new handshake begins.
const SILENCE: Duration = Duration::from_secs(15);
/// Least time between initiations of one peer that are looked at.
const INITIATION_SPACING: Duration = Duration::from_millis(20);
/// Workers tell of a peer's traffic at most once a second: look again a little later than that.
const CHECK_AGAIN: Duration = Duration::from_millis(1200);
/// Seconds between TAI64's zero and 1970.
const TAI64_BASE: u64 = 0x4000_0000_0000_000A;

/// Where a message came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Straight from this address.
    Udp(SocketAddr),
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
        match self {
            Self::Udp(address) => {
                let ip = match address.ip() {
                    IpAddr::V4(ip) => ip.octets().to_vec(),
                    IpAddr::V6(ip) => ip.octets().to_vec(),
                };
                [ip, address.port().to_be_bytes().to_vec()].concat()
            }
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
    /// A million sessions.
    #[error("too many sessions")]
    Full,
}

/// Handshakes and timers of all peers of a node. After each call of a `handle_*` or other method that takes `now`,
/// drain [`Self::poll_transmit`] and [`Self::poll_event`] and look at [`Self::poll_timeout`].
pub struct Tunnels {
    secret: NodeSecret,
    public: NodeKey,
    table: Arc<SessionTable>,
    peers: BTreeMap<NodeKey, Peer>,
    /// Handshakes under way, by the slot of our index.
    attempts: BTreeMap<u32, NodeKey>,
    deadlines: BTreeSet<(Instant, NodeKey)>,
    checker: Checker,
    load: Load,
    buckets: Buckets,
    rng: StdRng,
    /// The clock for handshake times: wall time since 1970 at an instant.
    wall: (Instant, Duration),
    last_timestamp: Duration,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

struct Peer {
    static_shared: Key,
    greatest_timestamp: Timestamp,
    last_initiation: Option<Instant>,
    attempt: Option<Attempt>,
    cookie: Option<Cookie>,
    current: Option<Arc<Session>>,
    previous: Option<Arc<Session>>,
    /// A session that the peer began and has not used yet.
    next: Option<Arc<Session>>,
    check_at: Option<Instant>,
    deadline: Option<Instant>,
}

struct Attempt {
    pending: Pending,
    first_code: [u8; 16],
    began: Instant,
    retry_at: Instant,
}

impl Tunnels {
    /// Makes the decision side of the node with key `secret`. `wall` is the time since 1970 at `now`; `seed` must be
    /// fresh randomness.
    #[must_use]
    pub fn new(secret: NodeSecret, table: Arc<SessionTable>, seed: [u8; 32], now: Instant, wall: Duration) -> Self {
        let public = secret.public();
        Self {
            checker: Checker::new(&public),
            secret,
            public,
            table,
            peers: BTreeMap::new(),
            attempts: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            load: Load::default(),
            buckets: Buckets::default(),
            rng: StdRng::from_seed(seed),
            wall: (now, wall),
            last_timestamp: Duration::ZERO,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Adds a peer; nothing happens until there is traffic. False if its key is of low order or already there.
    pub fn add_peer(&mut self, key: NodeKey) -> bool {
        if self.peers.contains_key(&key) {
            return false;
        }
        let Some(static_shared) = handshake::static_shared(&self.secret, &key) else { return false };
        let peer = Peer {
            static_shared,
            greatest_timestamp: [0; 12],
            last_initiation: None,
            attempt: None,
            cookie: None,
            current: None,
            previous: None,
            next: None,
            check_at: None,
            deadline: None,
        };
        self.peers.insert(key, peer);
        true
    }

    /// Removes a peer and its sessions.
    pub fn remove_peer(&mut self, key: &NodeKey) {
        let Some(peer) = self.peers.remove(key) else { return };
        for session in [&peer.current, &peer.previous, &peer.next].into_iter().flatten() {
            self.table.remove(session);
        }
        if let Some(attempt) = peer.attempt {
            self.attempts.remove(&SessionTable::slot_of(attempt.pending.index));
        }
        if let Some(deadline) = peer.deadline {
            self.deadlines.remove(&(deadline, *key));
        }
    }

    /// Forgets the sessions of a peer, which has restarted as another channel tells.
    pub fn reset_peer(&mut self, key: &NodeKey) {
        let greatest = self.peers.get(key).map(|peer| peer.greatest_timestamp);
        if let Some(greatest) = greatest {
            self.remove_peer(key);
            self.add_peer(*key);
            if let Some(peer) = self.peers.get_mut(key) {
                peer.greatest_timestamp = greatest;
            }
            self.events.push_back(Event::Closed { peer: *key });
        }
    }

    /// Begins a handshake unless one is under way.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start_handshake(&mut self, key: &NodeKey, now: Instant) -> Result<(), StartError> {
        let peer = self.peers.get(key).ok_or(StartError::UnknownPeer)?;
        if peer.attempt.is_some() {
            return Ok(());
        }
        self.initiate(key, now, now)
    }

    /// Handles a handshake message or cookie reply. Transport messages are for [`Session::open`].
    pub fn handle_datagram(&mut self, message: &[u8], origin: Origin, now: Instant) {
        match MessageType::of(message) {
            Some(MessageType::Initiation) if self.passes(message, &origin, now) => {
                self.handle_initiation(message, origin, now);
            }
            Some(MessageType::Response) if self.passes(message, &origin, now) => self.handle_response(message, now),
            Some(MessageType::CookieReply) => self.handle_cookie_reply(message, now),
            Some(_) | None => {}
        }
    }

    /// Tells that a worker opened the first packet of a session that the peer began.
    pub fn confirm(&mut self, session: &Arc<Session>, now: Instant) {
        let key = session.peer;
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if !peer.next.as_ref().is_some_and(|next| Arc::ptr_eq(next, session)) {
            return;
        }
        peer.next = None;
        let old = std::mem::replace(&mut peer.previous, peer.current.replace(Arc::clone(session)));
        let attempt = peer.attempt.take();
        self.drop_session(old);
        self.drop_attempt(attempt);
        self.events.push_back(Event::Ready { peer: key, session: Arc::clone(session) });
        self.reschedule(&key, now);
    }

    /// Tells that packets go to or come from a peer; workers do so at the first packet and at most once a second.
    pub fn note_activity(&mut self, key: &NodeKey, now: Instant) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        peer.check_at = Some(now + CHECK_AGAIN);
        let due = peer.current.as_ref().is_some_and(|session| {
            let age = now.saturating_duration_since(session.born());
            let recently = |at: Option<Instant>| at.is_some_and(|at| now.saturating_duration_since(at) < KEEPALIVE);
            session.is_initiator
                && (age >= REKEY_AFTER && recently(session.last_sent())
                    || age >= REKEY_AFTER_RECEIVING && recently(session.last_received()))
                || session.sealed() >= REKEY_AFTER_MESSAGES
        });
        if due && peer.attempt.is_none() {
            let _ = self.initiate(key, now, now);
        }
        self.reschedule(key, now);
    }

    /// Acts on every deadline at or before `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(deadline, key)) = self.deadlines.first() {
            if deadline > now {
                return;
            }
            self.deadlines.remove(&(deadline, key));
            if let Some(peer) = self.peers.get_mut(&key) {
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
        self.peers.get(key)?.current.as_ref().map(|session| session.born())
    }

    /// Checks a handshake message as far as possible without public-key cryptography.
    fn passes(&mut self, message: &[u8], origin: &Origin, now: Instant) -> bool {
        if !self.checker.first_is_valid(message) {
            return false;
        }
        if !self.load.count(now) {
            return true;
        }
        if self.checker.second_is_valid(message, origin, now) {
            return match origin {
                Origin::Udp(address) => self.buckets.take(address.ip(), now),
                Origin::Relay { .. } => true,
            };
        }
        let (nonce, secret) = (self.rng.random(), self.rng.random());
        if let Some(bytes) = self.checker.reply(message, origin, nonce, secret, now) {
            self.transmits.push_back(Transmit { peer: None, origin: Some(*origin), bytes });
        }
        false
    }

    fn handle_initiation(&mut self, message: &[u8], origin: Origin, now: Instant) {
        let Some(claimed) = handshake::read_claim(&self.secret, &self.public, message) else { return };
        let key = claimed.peer;
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if peer.last_initiation.is_some_and(|last| now.saturating_duration_since(last) < INITIATION_SPACING) {
            return;
        }
        let Some(proved) = claimed.prove(&peer.static_shared) else { return };
        if proved.timestamp <= peer.greatest_timestamp {
            return;
        }
        peer.greatest_timestamp = proved.timestamp;
        peer.last_initiation = Some(now);
        let cookie = peer.cookie.clone().filter(|cookie| cookie.is_fresh(now));
        let Some(index) = self.free_index() else { return };
        let Some((finished, mut bytes)) = proved.respond(self.rng.random(), index) else { return };
        cookie::append_codes(&mut bytes, &key, cookie.as_ref());
        self.transmits.push_back(Transmit { peer: Some(key), origin: Some(origin), bytes });
        let session = self.make_session(key, index, &finished, false, now);
        if let Some(peer) = self.peers.get_mut(&key) {
            let old = peer.next.replace(session);
            self.drop_session(old);
        }
        self.reschedule(&key, now);
    }

    fn handle_response(&mut self, message: &[u8], now: Instant) {
        let Some(index) = message.get(8..12).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes) else {
            return;
        };
        let Some(key) = self.attempts.get(&SessionTable::slot_of(index)).copied() else { return };
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let attempt = peer.attempt.as_ref().filter(|attempt| attempt.pending.index == index);
        let Some(finished) = attempt.and_then(|attempt| attempt.pending.finish(&self.secret, message)) else { return };
        let attempt = peer.attempt.take();
        self.drop_attempt(attempt);
        let session = self.make_session(key, index, &finished, true, now);
        if let Some(peer) = self.peers.get_mut(&key) {
            let old = std::mem::replace(&mut peer.previous, peer.current.replace(Arc::clone(&session)));
            self.drop_session(old);
        }
        // The empty packet confirms the session to the responder, which may not send before.
        self.send_empty(&session, now);
        self.events.push_back(Event::Ready { peer: key, session });
        self.reschedule(&key, now);
    }

    fn handle_cookie_reply(&mut self, message: &[u8], now: Instant) {
        let Some(index) = message.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes) else {
            return;
        };
        let Some(key) = self.attempts.get(&SessionTable::slot_of(index)).copied() else { return };
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let Some(attempt) = peer.attempt.as_ref().filter(|attempt| attempt.pending.index == index) else { return };
        if let Some(cookie) = cookie::open_reply(message, &key, &attempt.first_code, now) {
            peer.cookie = Some(cookie);
        }
    }

    /// Sends an initiation; `began` is when the first of this series was sent.
    fn initiate(&mut self, key: &NodeKey, began: Instant, now: Instant) -> Result<(), StartError> {
        let index = self.free_index().ok_or(StartError::Full)?;
        let timestamp = self.timestamp(now);
        let ephemeral = self.rng.random();
        let jitter = Duration::from_millis(self.rng.random_range(0..=REKEY_JITTER_MILLIS));
        let peer = self.peers.get_mut(key).ok_or(StartError::UnknownPeer)?;
        let cookie = peer.cookie.clone().filter(|cookie| cookie.is_fresh(now));
        let initiation =
            handshake::initiate(&self.secret, key, &peer.static_shared, ephemeral, index, &timestamp);
        let (pending, mut bytes) = initiation.ok_or(StartError::UnknownPeer)?;
        let first_code = cookie::append_codes(&mut bytes, key, cookie.as_ref());
        let attempt = Attempt { pending, first_code, began, retry_at: now + REKEY_TIMEOUT + jitter };
        let old = peer.attempt.replace(attempt);
        self.drop_attempt(old);
        self.attempts.insert(SessionTable::slot_of(index), *key);
        self.transmits.push_back(Transmit { peer: Some(*key), origin: None, bytes });
        self.reschedule(key, now);
        Ok(())
    }

    /// Does what is due for one peer.
    fn check(&mut self, key: &NodeKey, now: Instant) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        if peer.check_at.is_some_and(|at| at <= now) {
            peer.check_at = None;
        }
        let expired = |session: &Option<Arc<Session>>| {
            session.as_ref().is_some_and(|session| now.saturating_duration_since(session.born()) >= REJECT_AFTER)
        };
        let mut gone = Vec::new();
        if expired(&peer.previous) {
            gone.push(peer.previous.take());
        }
        if expired(&peer.next) {
            gone.push(peer.next.take());
        }
        if expired(&peer.current) {
            gone.push(peer.current.take());
            self.events.push_back(Event::Closed { peer: *key });
        }
        let current = peer.current.clone();
        let attempt = peer.attempt.as_ref().map(|attempt| (attempt.began, attempt.retry_at));
        gone.into_iter().for_each(|session| self.drop_session(session));

        if let Some((began, retry_at)) = attempt {
            if now.saturating_duration_since(began) >= REKEY_ATTEMPT {
                let attempt = self.peers.get_mut(key).and_then(|peer| peer.attempt.take());
                self.drop_attempt(attempt);
                self.events.push_back(Event::Failed { peer: *key });
            } else if retry_at <= now {
                let _ = self.initiate(key, began, now);
            }
        }
        let Some(session) = current else { return };
        let passed = |since: Option<Instant>, limit| since.is_some_and(|at| now.saturating_duration_since(at) >= limit);
        if passed(session.unanswered_since(), KEEPALIVE) {
            self.send_empty(&session, now);
        }
        if attempt.is_none() && passed(session.unheard_since(), SILENCE) {
            let _ = self.initiate(key, now, now);
        }
    }

    /// Puts the peer's next deadline into the schedule.
    fn reschedule(&mut self, key: &NodeKey, now: Instant) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        let born = |session: &Option<Arc<Session>>| session.as_ref().map(|session| session.born() + REJECT_AFTER);
        let current = peer.current.as_ref();
        let silence = current.filter(|_| peer.attempt.is_none()).and_then(|session| session.unheard_since());
        let wanted = [
            peer.attempt.as_ref().map(|attempt| attempt.retry_at.min(attempt.began + REKEY_ATTEMPT)),
            peer.check_at,
            current.and_then(|session| session.unanswered_since()).map(|at| at + KEEPALIVE),
            silence.map(|at| at + SILENCE),
            born(&peer.current),
            born(&peer.previous),
            born(&peer.next),
        ];
        // A deadline that has just been acted on and is still due must not spin.
        let next = wanted.into_iter().flatten().min().map(|at| at.max(now + Duration::from_millis(1)));
        if let Some(old) = std::mem::replace(&mut peer.deadline, next) {
            self.deadlines.remove(&(old, *key));
        }
        if let Some(next) = next {
            self.deadlines.insert((next, *key));
        }
    }

    fn make_session(
        &mut self,
        peer: NodeKey,
        local_index: u32,
        finished: &Finished,
        is_initiator: bool,
        now: Instant,
    ) -> Arc<Session> {
        let parts = Parts {
            peer,
            local_index,
            remote_index: finished.remote_index,
            is_initiator,
            sending: finished.sending.clone(),
            receiving: finished.receiving.clone(),
        };
        let session = Arc::new(Session::new(&parts, now));
        self.table.insert(Arc::clone(&session));
        session
    }

    fn send_empty(&mut self, session: &Session, now: Instant) {
        let mut buffer = vec![0; HEADROOM + TAILROOM];
        if let Ok(length) = session.seal(&mut buffer, 0, 0, now) {
            buffer.truncate(length);
            self.transmits.push_back(Transmit { peer: Some(session.peer), origin: None, bytes: buffer });
        }
    }

    fn free_index(&mut self) -> Option<u32> {
        let (rng, attempts) = (&mut self.rng, &self.attempts);
        self.table.free_index(|| rng.random(), |slot| attempts.contains_key(&SessionTable::slot_of(slot)))
    }

    fn drop_session(&self, session: Option<Arc<Session>>) {
        if let Some(session) = session {
            self.table.remove(&session);
        }
    }

    fn drop_attempt(&mut self, attempt: Option<Attempt>) {
        if let Some(attempt) = attempt {
            self.attempts.remove(&SessionTable::slot_of(attempt.pending.index));
        }
    }

    /// Returns a time for an initiation, later than every one before.
    fn timestamp(&mut self, now: Instant) -> Timestamp {
        let (at, wall) = self.wall;
        let time = (wall + now.saturating_duration_since(at)).max(self.last_timestamp + Duration::from_nanos(1));
        self.last_timestamp = time;
        let mut bytes = [0; 12];
        let fields = (TAI64_BASE + time.as_secs()).to_be_bytes().into_iter().chain(time.subsec_nanos().to_be_bytes());
        bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        bytes
    }
}

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnels").field("public", &self.public).field("peers", &self.peers.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
