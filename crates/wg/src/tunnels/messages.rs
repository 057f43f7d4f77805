//! Handshake messages: what is looked at, and what follows from it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_wire::key::NodeKey;

use super::peer::{Answered, Attempt, Next};
use super::timers::{AFTER_COOKIE, INITIATION_SPACING, REKEY_JITTER_MILLIS, REKEY_TIMEOUT};
use super::{Event, Origin, StartError, Transmit, Tunnels};
use crate::cookie;
use crate::crypto::Key;
use crate::handshake::{self, Finished, Fresh};
use crate::session::{HEADROOM, Parts, Session, TAILROOM};
use crate::table::SessionTable;

/// Reads an index, which is in little-endian order.
fn index_at(message: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*message.get(at..)?.first_chunk()?))
}

impl Tunnels {
    /// Checks a handshake message as far as possible without public-key cryptography.
    fn passes(&mut self, message: &[u8], origin: &Origin, now: Instant) -> bool {
        if !self.checker.first_is_valid(message) {
            return false;
        }
        if !self.load.count(now) {
            return true;
        }
        if self.checker.second_is_valid(message, origin, now) {
            return self.buckets.take(origin, now);
        }
        if let Some(bytes) = self.checker.reply(message, origin, &mut self.entropy, now) {
            self.transmits.push_back(Transmit { peer: None, origin: Some(*origin), bytes });
        }
        false
    }

    /// Answers an initiation with a response, and keeps the session until the peer uses it.
    pub(super) fn handle_initiation(&mut self, message: &[u8], origin: Origin, now: Instant) {
        // A relay says who the sender is: one that is no peer costs us nothing.
        if matches!(&origin, Origin::Relay { peer, .. } if !self.peers.contains(peer)) {
            return;
        }
        if !self.passes(message, &origin, now) {
            return;
        }
        let Some(claimed) = handshake::read_claim(&self.own, message) else { return };
        let key = claimed.peer;
        if matches!(&origin, Origin::Relay { peer, .. } if *peer != key) {
            return;
        }
        let Some(static_shared) = self.static_shared(&key) else { return };
        let Some(peer) = self.peers.met_mut(&key) else { return };
        if peer.last_initiation.is_some_and(|last| now.saturating_duration_since(last) < INITIATION_SPACING) {
            return;
        }
        let Some(proved) = claimed.prove(&static_shared) else { return };
        if proved.timestamp <= peer.greatest_timestamp {
            return;
        }
        peer.greatest_timestamp = proved.timestamp;
        peer.last_initiation = Some(now);
        let cookie = peer.cookie.clone().filter(|cookie| cookie.is_fresh(now));
        let Some(index) = self.free_index() else { return };
        let Some((finished, mut bytes)) = proved.respond(&self.entropy.secret(), index) else { return };
        let response_code = cookie::append_codes(&mut bytes, &key, cookie.as_ref());
        self.transmits.push_back(Transmit { peer: Some(key), origin: Some(origin), bytes });
        let session = self.make_session(key, index, finished, false, now);
        if let Some(peer) = self.peers.met_mut(&key) {
            peer.response_code = response_code;
            let crossed = peer.attempt.is_some();
            let old = peer.next.replace(Next { session, crossed });
            self.drop_session(old.map(|next| next.session));
        }
        self.reschedule(&key, now);
    }

    /// Finishes our handshake with the peer's response; with its last one, if it answered twice ([`Answered`]).
    pub(super) fn handle_response(&mut self, message: &[u8], origin: &Origin, now: Instant) {
        let Some(index) = index_at(message, 8) else { return };
        let Some(key) = self.attempts.get(&SessionTable::slot_of(index)).copied() else { return };
        let Some(ephemeral) = message.get(12..).and_then(|rest| rest.first_chunk()).copied() else { return };
        // Before it is counted: a response that nobody waits for is no load.
        let is_awaited = |peer: &super::Peer| {
            peer.attempt.as_ref().is_some_and(|attempt| attempt.pending.index == index)
                || peer
                    .answered
                    .as_ref()
                    .is_some_and(|answered| answered.attempt.pending.index == index && answered.ephemeral != ephemeral)
        };
        if !self.peers.met(&key).is_some_and(is_awaited) || !self.passes(message, origin, now) {
            return;
        }
        let Some(peer) = self.peers.met_mut(&key) else { return };
        let is_first = peer.attempt.as_ref().is_some_and(|attempt| attempt.pending.index == index);
        // One that the peer began since then is later still.
        let is_current = peer.current.as_ref().is_some_and(|current| current.local_index == index);
        let answered = peer.answered.as_ref().filter(|_| is_current).map(|answered| &answered.attempt);
        let attempt = if is_first { peer.attempt.as_ref() } else { answered };
        let finished = attempt.and_then(|attempt| attempt.pending.finish(&self.own, message));
        let Some(finished) = finished else { return };
        let before = peer.answered.take();
        if is_first {
            peer.answered = peer.attempt.take().map(|attempt| Box::new(Answered { attempt, ephemeral, at: now }));
        }
        self.drop_attempt(before.map(|answered| answered.attempt));
        // A second session has the index of the first, which the peer keeps no more.
        let session = self.make_session(key, index, finished, true, now);
        if let Some(peer) = self.peers.met_mut(&key) {
            let before = peer.current.replace(Arc::clone(&session));
            let old = if is_first { std::mem::replace(&mut peer.previous, before) } else { before };
            self.drop_session(old);
        }
        // The empty packet confirms the session to the responder, which may not send before.
        self.send_empty(&session, now);
        self.events.push_back(Event::Ready { peer: key, session });
        self.reschedule(&key, now);
    }

    /// Keeps the cookie that a loaded peer answers our initiation or response with, for the next try.
    ///
    /// The next initiation goes out soon, not when the last one has timed out: the peer has not looked at that, and what
    /// has a cookie passes the load. Where one was sent with a cookie already, time must pass. WireGuard itself waits
    /// (paper, section 6.6).
    pub(super) fn handle_cookie_reply(&mut self, message: &[u8], now: Instant) {
        let Some(index) = index_at(message, 4) else { return };
        let asked = self.attempts.get(&SessionTable::slot_of(index)).copied();
        let Some(key) = asked.or_else(|| Some(self.table.lookup(index)?.peer)) else { return };
        let Some(peer) = self.peers.met_mut(&key) else { return };
        let initiation = peer.attempt.as_ref().filter(|attempt| attempt.pending.index == index);
        let response = peer.next.as_ref().filter(|next| next.session.local_index == index);
        let code = initiation.map(|attempt| attempt.first_code).or_else(|| response.map(|_| peer.response_code));
        let Some(cookie) = code.and_then(|code| cookie::open_reply(message, &key, &code, now)) else { return };
        let had_one = peer.cookie.replace(cookie).is_some_and(|cookie| cookie.is_fresh(now));
        if let Some(attempt) = peer.attempt.as_mut().filter(|attempt| attempt.pending.index == index && !had_one) {
            // Peers take no more than fifty a second.
            let jitter = Duration::from_millis(self.entropy.up_to(REKEY_JITTER_MILLIS));
            attempt.retry_at = attempt.retry_at.min(now + AFTER_COOKIE + jitter);
            self.reschedule(&key, now);
        }
    }

    /// Sends an initiation; `began` is when the first of this series was sent.
    pub(super) fn initiate(&mut self, key: &NodeKey, began: Instant, now: Instant) -> Result<(), StartError> {
        if !self.peers.contains(key) {
            return Err(StartError::UnknownPeer);
        }
        let static_shared = self.static_shared(key).ok_or(StartError::InvalidKey)?;
        let index = self.free_index().ok_or(StartError::Full)?;
        let fresh = Fresh { ephemeral: self.entropy.secret(), index, timestamp: self.clock.timestamp(now) };
        let jitter = Duration::from_millis(self.entropy.up_to(REKEY_JITTER_MILLIS));
        let peer = self.peers.meet(key).ok_or(StartError::UnknownPeer)?;
        let cookie = peer.cookie.clone().filter(|cookie| cookie.is_fresh(now));
        let initiation = handshake::initiate(&self.own, key, &static_shared, &fresh);
        let (pending, mut bytes) = initiation.ok_or(StartError::InvalidKey)?;
        let first_code = cookie::append_codes(&mut bytes, key, cookie.as_ref());
        let attempt = Attempt { pending, first_code, began, retry_at: now + REKEY_TIMEOUT + jitter };
        let old = peer.attempt.replace(Box::new(attempt));
        if let Some(session) = &peer.current {
            session.set_doubted(None);
        }
        self.drop_attempt(old);
        self.attempts.insert(SessionTable::slot_of(index), *key);
        self.transmits.push_back(Transmit { peer: Some(*key), origin: None, bytes });
        self.reschedule(key, now);
        Ok(())
    }

    /// Returns what our key and a peer's share, computed once; `None` if it is no peer or its key is of low order.
    fn static_shared(&mut self, key: &NodeKey) -> Option<Key> {
        let peer = self.peers.meet(key)?;
        if peer.static_shared.is_none() {
            peer.static_shared = self.own.shared_with(key);
        }
        peer.static_shared.clone()
    }

    fn make_session(
        &self,
        peer: NodeKey,
        local_index: u32,
        finished: Finished,
        is_initiator: bool,
        now: Instant,
    ) -> Arc<Session> {
        let Finished { sending, receiving, remote_index } = finished;
        let parts = Parts { peer, local_index, remote_index, is_initiator, sending, receiving };
        let session = Arc::new(Session::new(&parts, now));
        self.table.insert(Arc::clone(&session));
        session
    }

    /// Sends a packet without content: a confirmation or a keep-alive.
    pub(super) fn send_empty(&mut self, session: &Session, now: Instant) {
        let mut buffer = vec![0; HEADROOM + TAILROOM];
        if let Ok(length) = session.seal(&mut buffer, 0, 0, now) {
            buffer.truncate(length);
            self.transmits.push_back(Transmit { peer: Some(session.peer), origin: None, bytes: buffer });
        }
    }

    fn free_index(&mut self) -> Option<u32> {
        let (entropy, attempts) = (&mut self.entropy, &self.attempts);
        self.table.free_index(|| entropy.number(), |index| attempts.contains_key(&SessionTable::slot_of(index)))
    }
}
