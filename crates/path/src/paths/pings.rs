//! Pings under way, and how many may be.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use warren_wire::disco::TransactionId;
use warren_wire::key::NodeKey;

use super::output::{Destination, PingId, SocketId};

/// Most pings of users that wait for their answers.
const MAX_ASKED: usize = 64;
/// Least mean time between discovery pings to one peer: a full list of candidates, each pinged every 5 s.
const PING_INTERVAL: Duration = Duration::from_millis(50);
/// How far discovery pings to one peer may run ahead of that: a full list at once.
const PING_BURST: Duration = Duration::from_secs(5);

/// Pings that wait for their pongs.
#[derive(Default)]
pub(super) struct Pings {
    under_way: BTreeMap<TransactionId, Sent>,
    /// Users' pings that are not answered yet. All that belongs to one was sent at the same instant.
    asked: BTreeSet<PingId>,
    last_id: u64,
}

/// A ping that was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    /// To whom.
    pub(super) peer: NodeKey,
    /// Where to.
    pub(super) to: Destination,
    /// From which socket.
    pub(super) socket: SocketId,
    /// When.
    pub(super) at: Instant,
    /// The user's ping that it belongs to.
    pub(super) user: Option<PingId>,
    /// The size of the IP packet that it was made to fill, if it was.
    pub(super) size: u16,
}

impl Pings {
    /// Begins a ping for a user; `None` if too many are waited for.
    pub(super) fn ask(&mut self) -> Option<PingId> {
        if self.asked.len() >= MAX_ASKED {
            return None;
        }
        self.last_id += 1;
        let id = PingId(self.last_id);
        self.asked.insert(id);
        Some(id)
    }

    /// Takes back what [`Self::ask`] began.
    pub(super) fn cancel(&mut self, id: PingId) {
        self.asked.remove(&id);
    }

    pub(super) fn insert(&mut self, id: TransactionId, sent: Sent) {
        self.under_way.insert(id, sent);
    }

    pub(super) fn get(&self, id: &TransactionId) -> Option<&Sent> {
        self.under_way.get(id)
    }

    /// Ends a ping that was answered; tells the user's ping that this answers, the first time.
    pub(super) fn answer(&mut self, id: &TransactionId) -> Option<PingId> {
        let user = self.under_way.remove(id)?.user?;
        self.asked.remove(&user).then_some(user)
    }

    /// Ends a ping that was not answered in time; tells the user's ping that has failed with it.
    pub(super) fn expire(&mut self, id: &TransactionId) -> Option<(Sent, Option<PingId>)> {
        let sent = self.under_way.remove(id)?;
        let failed = sent.user.filter(|user| self.asked.remove(user));
        Some((sent, failed))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.under_way.len()
    }

    #[cfg(test)]
    pub(super) fn to(&self, address: std::net::SocketAddr) -> impl Iterator<Item = TransactionId> {
        self.under_way.iter().filter(move |(_, sent)| sent.to == Destination::Udp(address)).map(|(id, _)| *id)
    }
}

/// Limits the discovery pings to one peer, whoever causes them: 100 at once, 20 a second.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Budget(Option<Instant>);

/// Who says that the peer may be where a ping goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The server or the peer.
    Named,
    /// Only a ping that came from there, which somebody may have recorded and replayed.
    Heard,
}

impl Budget {
    /// Takes one ping; false if there is none left. Half of the burst is kept for addresses that were named, so that
    /// replayed pings cannot use up what an honest search needs.
    pub(super) fn take(&mut self, source: Source, now: Instant) -> bool {
        let burst = match source {
            Source::Named => PING_BURST,
            Source::Heard => PING_BURST / 2,
        };
        let used_until = self.0.map_or(now, |until| until.max(now)) + PING_INTERVAL;
        if used_until > now + burst {
            return false;
        }
        self.0 = Some(used_until);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_gives_a_hundred_at_once_and_twenty_a_second() {
        let start = crate::testing::epoch();
        let mut budget = Budget::default();
        assert_eq!((0..1000).filter(|_| budget.take(Source::Named, start)).count(), 100);
        let later = start + Duration::from_secs(3);
        assert_eq!((0..1000).filter(|_| budget.take(Source::Named, later)).count(), 60);
        assert_eq!((0..1000).filter(|_| budget.take(Source::Named, later + Duration::from_secs(3600))).count(), 100);
    }

    #[test]
    fn half_of_the_budget_is_for_named_addresses() {
        let start = crate::testing::epoch();
        let mut budget = Budget::default();
        assert_eq!((0..1000).filter(|_| budget.take(Source::Heard, start)).count(), 50);
        assert_eq!((0..1000).filter(|_| budget.take(Source::Named, start)).count(), 50);
        let later = start + Duration::from_secs(1);
        assert_eq!((0..1000).filter(|_| budget.take(Source::Heard, later)).count(), 0);
        assert_eq!((0..1000).filter(|_| budget.take(Source::Named, later)).count(), 20);
    }
}
