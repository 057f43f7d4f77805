//! Notices within a few round trips that a trusted path, direct or over a peer relay, went dead, while packets flow.
//!
//! Trust alone lasts 6.5 s, in which a path that was cut swallows everything. Whoever sends expects something back: data or,
//! if nothing comes for [`QUIET`], the pong of a ping. A ping that is not answered within a few round trips, while
//! nothing else came either, makes the path doubtful: packets go over every other way, too, until it is decided. Where
//! traffic flows one way, so that silence means nothing, the pings become rare: the time doubles with each pong, up to the
//! pace of the heartbeat.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::HEARTBEAT;

/// How long a peer to which packets are sent may be silent.
const QUIET: Duration = Duration::from_millis(150);
/// Shortest and longest time that a pong is waited for until the path becomes doubtful.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Least time between doubts that others suggest: a relay can repeat what it carries.
const HINT_SPACING: Duration = Duration::from_secs(3);

/// What was sent and heard on a path.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Watch {
    /// When something was sent, the first since the path last brought something.
    unheard: Option<Instant>,
    /// The last sign of life.
    heard: Option<Instant>,
    /// The ping whose pong is waited for, and whether it is the second.
    asked: Option<(Instant, bool)>,
    /// How often in a row only a pong ended the silence.
    pongs_alone: u32,
    /// When others last made us doubt.
    hinted: Option<Instant>,
    /// Another address from which the peer was last heard.
    elsewhere: Option<SocketAddr>,
    /// When the peer was last asked how large packets it gets.
    pub(super) probed: Option<Instant>,
    /// Another address that answers, for the time when the best does not.
    pub(super) second: Option<SocketAddr>,
    /// When the timer rings; set if and only if it is.
    pub(super) timer: Option<Instant>,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Nothing,
    Ping,
    Doubt,
}

impl Watch {
    /// Begins anew, with another path.
    pub(super) fn reset(&mut self) {
        *self = Self { hinted: self.hinted, probed: self.probed, timer: self.timer, ..Self::default() };
    }

    pub(super) fn note_sent(&mut self, now: Instant) {
        self.unheard.get_or_insert(now);
    }

    /// Notes that data came on the path.
    pub(super) fn note_data(&mut self, now: Instant) {
        (self.unheard, self.heard, self.pongs_alone) = (None, Some(now), 0);
    }

    pub(super) fn note_pong(&mut self, now: Instant) {
        if self.unheard.take().is_some() {
            self.pongs_alone = self.pongs_alone.saturating_add(1);
        }
        (self.heard, self.asked) = (Some(now), None);
    }

    pub(super) fn note_ping(&mut self, now: Instant) {
        self.asked.get_or_insert((now, false));
    }

    /// Tells whether a hint from elsewhere that the path is dead is to be followed: when it has been silent, and not often.
    pub(super) fn heeds_hint(&mut self, now: Instant) -> bool {
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        if since(self.heard).is_some_and(|silence| silence < QUIET)
            || since(self.hinted).is_some_and(|time| time < HINT_SPACING)
        {
            return false;
        }
        self.hinted = Some(now);
        true
    }

    /// Notes that the peer was heard from another address than the path's; tells whether that is news. Whose packets and
    /// pings always come another way than ours go is not doubted each time.
    pub(super) fn note_elsewhere(&mut self, address: SocketAddr) -> bool {
        self.elsewhere.replace(address) != Some(address)
    }

    /// Returns when something is to be done on a path with this latency.
    pub(super) fn due(&self, latency: Duration) -> Option<Instant> {
        let patience = patience(latency);
        let Some((at, is_second)) = self.asked else {
            return Some(self.unheard? + (QUIET * 2_u32.saturating_pow(self.pongs_alone.min(5))).min(HEARTBEAT));
        };
        let soon = at + patience;
        if !is_second || self.is_silent_since(at) {
            return Some(soon);
        }
        // Data came after the ping, so that it may be the pongs alone that get lost; unless data has ended, too.
        let late = at + patience * 4;
        Some(self.unheard.map_or(late, |sent| late.min((sent + QUIET + patience).max(soon))))
    }

    /// Tells whether something waits for an answer and nothing came since.
    fn is_silent_since(&self, at: Instant) -> bool {
        self.unheard.is_some() && self.heard.is_none_or(|heard| heard <= at)
    }

    /// Says what to do at `now`.
    pub(super) fn act(&mut self, latency: Duration, now: Instant) -> Act {
        if self.due(latency).is_none_or(|at| at > now) {
            return Act::Nothing;
        }
        match self.asked {
            None => Act::Ping,
            // A lost ping alone is no reason to doubt: if nothing waits for an answer, or data came meanwhile, once more.
            Some((at, false)) if !self.is_silent_since(at) => {
                self.asked = Some((now, true));
                Act::Ping
            }
            Some(_) => {
                self.asked = None;
                Act::Doubt
            }
        }
    }
}

fn patience(latency: Duration) -> Duration {
    (latency * 3 + PATIENCE.0 / 2).clamp(PATIENCE.0, PATIENCE.1)
}
