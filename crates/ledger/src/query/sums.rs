//! What was found, summed up: who talked most, and who was denied what.

use std::collections::BTreeMap;

use warren_wire::key::NodeKey;

use super::{Found, OPEN_MAX};
use crate::key::LogKey;
use crate::record::{Counts, Direction, DropReason, Event, Flow, Target};
use crate::time::Time;

/// The most different sums; what is beyond is summed up together.
pub const SUMS_MAX: usize = 1 << 16;

/// Sums up traffic by who wrote it down and with whom it was. If both ends write, each has its own sum.
#[derive(Debug, Default)]
pub struct Talkers {
    sums: BTreeMap<(LogKey, NodeKey), Traffic>,
    /// What the last update of a conversation that has not ended says.
    open: BTreeMap<(LogKey, Time, Flow), (NodeKey, Counts)>,
    others: Traffic,
}

/// Is traffic of several conversations, as one node sees it: of each what was counted last, since its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// How many.
    pub conversations: u64,
    /// What passed.
    pub counts: Counts,
}

impl Traffic {
    fn add(&mut self, counts: &Counts) {
        let sum = &mut self.counts;
        self.conversations = self.conversations.saturating_add(1);
        sum.tx_packets = sum.tx_packets.saturating_add(counts.tx_packets);
        sum.tx_bytes = sum.tx_bytes.saturating_add(counts.tx_bytes);
        sum.rx_packets = sum.rx_packets.saturating_add(counts.rx_packets);
        sum.rx_bytes = sum.rx_bytes.saturating_add(counts.rx_bytes);
    }

    /// Returns the bytes of both directions.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.counts.tx_bytes.saturating_add(self.counts.rx_bytes)
    }
}

impl Talkers {
    /// Takes what a query of ends and updates found, in its order. What is about conversations that are not known is summed
    /// up with what is beyond [`SUMS_MAX`].
    pub fn add(&mut self, found: &Found) {
        let (flow, counts, is_over) = match &found.record.event {
            Event::Update(update) => (update.flow, update.counts, false),
            Event::End(end) => (end.flow, end.counts, true),
            Event::Start(_) | Event::Drops(_) | Event::Missed { .. } => return,
        };
        let key = (found.writer, found.epoch, flow);
        let Some(began) = &found.start else {
            if is_over {
                self.others.add(&counts);
            }
            return;
        };
        let peer = began.start.peer;
        if is_over {
            self.open.remove(&key);
            self.sum(found.writer, peer, &counts);
        } else if self.open.len() < OPEN_MAX || self.open.contains_key(&key) {
            self.open.insert(key, (peer, counts));
        }
    }

    fn sum(&mut self, writer: LogKey, peer: NodeKey, counts: &Counts) {
        let is_full = self.sums.len() >= SUMS_MAX;
        match self.sums.get_mut(&(writer, peer)) {
            Some(sum) => sum.add(counts),
            None if is_full => self.others.add(counts),
            None => self.sums.entry((writer, peer)).or_default().add(counts),
        }
    }

    /// Returns those with the most bytes, and the sum of all that have no sum of their own.
    #[must_use]
    pub fn top(mut self, most: usize) -> (Vec<(LogKey, NodeKey, Traffic)>, Traffic) {
        for ((writer, _, _), (peer, counts)) in std::mem::take(&mut self.open) {
            self.sum(writer, peer, &counts);
        }
        let mut sums: Vec<_> = self.sums.into_iter().map(|((writer, peer), sum)| (writer, peer, sum)).collect();
        sums.sort_by_key(|(_, _, sum)| std::cmp::Reverse(sum.bytes()));
        sums.truncate(most);
        (sums, self.others)
    }
}

/// Is an attempt that was denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt {
    /// Who denied it.
    pub writer: LogKey,
    /// The node that it came from or should go to.
    pub peer: Option<NodeKey>,
    /// Which way.
    pub direction: Direction,
    /// Why.
    pub reason: DropReason,
    /// What was wanted.
    pub target: Option<Target>,
}

/// Says how often something was denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denials {
    /// When it was written down first.
    pub first: Time,
    /// And last.
    pub last: Time,
    /// How many packets.
    pub packets: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// Sums up what was denied.
#[derive(Debug, Default)]
pub struct Denied {
    sums: BTreeMap<Attempt, Denials>,
    /// Packets of what has no sum of its own.
    others: u64,
}

impl Denied {
    /// Takes what a query of denied attempts found.
    pub fn add(&mut self, found: &Found) {
        let Event::Drops(drops) = &found.record.event else { return };
        let attempt = Attempt {
            writer: found.writer,
            peer: drops.peer,
            direction: drops.direction,
            reason: drops.reason,
            target: drops.target,
        };
        let at = found.record.at;
        if self.sums.len() >= SUMS_MAX && !self.sums.contains_key(&attempt) {
            self.others = self.others.saturating_add(drops.packets);
            return;
        }
        let sum = self.sums.entry(attempt).or_insert(Denials { first: at, last: at, packets: 0, bytes: 0 });
        sum.first = sum.first.min(at);
        sum.last = sum.last.max(at);
        sum.packets = sum.packets.saturating_add(drops.packets);
        sum.bytes = sum.bytes.saturating_add(drops.bytes);
    }

    /// Returns those with the most packets, and how many packets are in none of all sums.
    #[must_use]
    pub fn top(self, most: usize) -> (Vec<(Attempt, Denials)>, u64) {
        let mut sums: Vec<_> = self.sums.into_iter().collect();
        sums.sort_by_key(|(_, sum)| std::cmp::Reverse(sum.packets));
        sums.truncate(most);
        (sums, self.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::Began;
    use crate::record::{Drops, Record};
    use crate::testing::{at, counts, end, secret, start, update};
    use std::time::Duration;

    fn found(writer: u8, record: Record, peer: Option<u8>) -> Found {
        let start = peer.map(|peer| {
            let Event::Start(mut begun) = start(0, 0).event else { panic!("a start") };
            begun.peer = NodeKey::from_bytes([peer; 32]);
            Began { at: at(0), start: begun }
        });
        Found { position: 0, stored: at(0), writer: secret(writer).public(), epoch: at(0), number: 0, record, start }
    }

    #[test]
    fn of_each_conversation_the_last_counts_are_summed_up() {
        let mut talkers = Talkers::default();
        for one in [
            found(1, update(0, 1, 5), Some(2)),
            found(1, update(0, 2, 50), Some(2)),
            found(1, end(0, 3, 100), Some(2)),
            found(1, end(1, 3, 10), Some(2)),
            // Of another node, the same number; it has not ended.
            found(3, update(0, 1, 1), Some(2)),
            found(3, update(0, 2, 7), Some(2)),
            // Begun before what was asked about.
            found(1, end(9, 3, 3), None),
        ] {
            talkers.add(&one);
        }
        let (top, others) = talkers.top(10);
        let expected = |writer, conversations, packets| {
            let traffic = Traffic { conversations, counts: counts(packets) };
            (secret(writer).public(), NodeKey::from_bytes([2; 32]), traffic)
        };
        assert_eq!(top, [expected(1, 2, 110), expected(3, 1, 7)]);
        assert_eq!(others, Traffic { conversations: 1, counts: counts(3) });
    }

    #[test]
    fn denied_attempts_are_summed_up_by_what_was_wanted() {
        let mut denied = Denied::default();
        for (port, micros, packets) in [(22, 5, 1), (23, 1, 2), (22, 9, 4)] {
            let target =
                Target { protocol: 6, source: [100, 64, 0, 2].into(), destination: [100, 64, 0, 1].into(), port };
            let drops = Drops {
                reason: DropReason::NoRule,
                direction: Direction::Inbound,
                peer: None,
                target: Some(target),
                packets,
                bytes: 60 * packets,
                span: Duration::ZERO,
            };
            denied.add(&found(1, Record { at: at(micros), event: Event::Drops(drops) }, None));
        }
        let (top, others) = denied.top(1);
        let [(attempt, sum)] = top[..] else { panic!("{top:?}") };
        assert_eq!((attempt.target.map(|target| target.port), others), (Some(22), 0));
        assert_eq!(sum, Denials { first: at(5), last: at(9), packets: 5, bytes: 300 });
    }
}
