//! What time brings: retries, renewals, keep-alives, ends. Paper, section 6.

use std::time::{Duration, Instant};

use warren_wire::key::NodeKey;

use super::{Event, Tunnels};
use crate::session::{REJECT_AFTER, REKEY_AFTER_MESSAGES};

/// Age at which the initiator renews a session that it sends with.
pub(super) const REKEY_AFTER: Duration = Duration::from_secs(120);
/// Age at which the initiator renews a session that it only receives with: 180 − 10 − 5 s.
const REKEY_AFTER_RECEIVING: Duration = Duration::from_secs(165);
/// Age at which the responder renews a session in use, too: its initiator has not, so it may have it no more.
const REKEY_ANYWAY: Duration = Duration::from_secs(170);
/// Time between attempts of a handshake, before up to 333 ms that are added at random.
pub(super) const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
pub(super) const REKEY_JITTER_MILLIS: u64 = 333;
/// Time between a loaded peer's first cookie and the next attempt, before the same addition.
///
/// Not less than peers want between two initiations ([`INITIATION_SPACING`]).
pub(super) const AFTER_COOKIE: Duration = Duration::from_millis(25);
/// Time in which a second answer to a handshake counts; then its secrets are gone.
pub(super) const SECOND_ANSWER: Duration = Duration::from_secs(1);
/// Time after which a handshake is given up.
pub(super) const REKEY_ATTEMPT: Duration = Duration::from_secs(90);
/// Time after which received data is answered with an empty packet.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Time without an answer to data after which a new handshake begins.
pub(super) const SILENCE: Duration = Duration::from_secs(15);
/// Least time between initiations of one peer that are looked at.
pub(super) const INITIATION_SPACING: Duration = Duration::from_millis(20);
/// Workers tell of a peer's traffic at most once a second: look again a little later than that.
pub(super) const CHECK_AGAIN: Duration = Duration::from_millis(1200);
/// Least time until the next look at a peer: something due that cannot be done, for want of an index say, must not
/// spin.
const LEAST_WAIT: Duration = Duration::from_millis(10);

impl Tunnels {
    /// Begins a handshake if the session in use nears its end, or the peer may have lost it.
    pub(super) fn renew_if_due(&mut self, key: &NodeKey, now: Instant) {
        let Some(peer) = self.peers.met(key) else { return };
        let Some(session) = peer.current.as_ref().filter(|_| peer.attempt.is_none()) else { return };
        let age = now.saturating_duration_since(session.born());
        let recently = |at: Option<Instant>| at.is_some_and(|at| now.saturating_duration_since(at) < KEEPALIVE);
        let (sends, receives) = (recently(session.last_sent()), recently(session.last_received()));
        let due = session.is_initiator
            && (age >= self.rekey_after && sends || age >= REKEY_AFTER_RECEIVING && receives)
            || age >= REKEY_ANYWAY && (sends || receives)
            || session.sealed() >= REKEY_AFTER_MESSAGES
            || session.is_doubtful();
        if due {
            // What fails here is tried again at the next activity.
            let _ = self.initiate(key, now, now);
        }
    }

    /// Does what is due for one peer.
    pub(super) fn check(&mut self, key: &NodeKey, now: Instant) {
        self.drop_expired(key, now);
        self.retry_or_give_up(key, now);
        let Some(peer) = self.peers.met_mut(key) else { return };
        peer.check_at = peer.check_at.filter(|at| *at > now);
        let Some(session) = peer.current.clone() else { return };
        let passed = |since: Option<Instant>, limit| since.is_some_and(|at| now.saturating_duration_since(at) >= limit);
        let is_silent = peer.attempt.is_none() && passed(peer.unheard_since(), SILENCE);
        if passed(peer.unanswered_since(), KEEPALIVE) {
            self.send_empty(&session, now);
        }
        if is_silent {
            // What fails here is tried again at the next look.
            let _ = self.initiate(key, now, now);
        }
    }

    fn drop_expired(&mut self, key: &NodeKey, now: Instant) {
        let Some(peer) = self.peers.met_mut(key) else { return };
        let current = peer.current.take_if(|session| session.has_expired(now));
        let previous = peer.previous.take_if(|session| session.has_expired(now));
        let next = peer.next.take_if(|next| next.session.has_expired(now));
        let answered = peer.answered.take_if(|answered| now.saturating_duration_since(answered.at) >= SECOND_ANSWER);
        if current.is_some() {
            self.events.push_back(Event::Closed { peer: *key });
        }
        for session in [current, previous, next.map(|next| next.session)] {
            self.drop_session(session);
        }
        self.drop_attempt(answered.map(|answered| answered.attempt));
    }

    fn retry_or_give_up(&mut self, key: &NodeKey, now: Instant) {
        let Some(peer) = self.peers.met_mut(key) else { return };
        let Some(attempt) = &mut peer.attempt else { return };
        let began = attempt.began;
        if now.saturating_duration_since(began) >= REKEY_ATTEMPT {
            let attempt = peer.attempt.take();
            self.drop_attempt(attempt);
            self.events.push_back(Event::Failed { peer: *key });
        } else if attempt.retry_at <= now {
            attempt.retry_at = now + REKEY_TIMEOUT;
            // What fails here is tried again at the next retry.
            let _ = self.initiate(key, began, now);
        }
    }

    /// Puts the peer's next deadline into the schedule.
    pub(super) fn reschedule(&mut self, key: &NodeKey, now: Instant) {
        let Some(peer) = self.peers.met_mut(key) else { return };
        let sessions = [peer.current.as_ref(), peer.previous.as_ref(), peer.next.as_ref().map(|next| &next.session)];
        let ends = sessions.map(|session| session.map(|session| session.born() + REJECT_AFTER));
        let silence = peer.unheard_since().filter(|_| peer.attempt.is_none());
        let wanted = [
            peer.attempt.as_ref().map(|attempt| attempt.retry_at.min(attempt.began + REKEY_ATTEMPT)),
            peer.answered.as_ref().map(|answered| answered.at + SECOND_ANSWER),
            peer.check_at,
            peer.unanswered_since().map(|at| at + KEEPALIVE),
            silence.map(|at| at + SILENCE),
        ];
        let next = wanted.into_iter().chain(ends).flatten().min().map(|at| at.max(now + LEAST_WAIT));
        if let Some(old) = std::mem::replace(&mut peer.deadline, next) {
            self.deadlines.remove(&(old, *key));
        }
        if let Some(next) = next {
            self.deadlines.insert((next, *key));
        }
    }
}
