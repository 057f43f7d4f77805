//! Dropped packets, summed up by reason and by what they were about.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::{NOTES_MAX, Note, Passed, What};
use crate::record::{Direction, DropReason, Target};

/// How long dropped packets are summed up before they are noted.
const INTERVAL: Duration = Duration::from_secs(5);

/// The most targets that are told apart in that time; those of a scan beyond that are summed up by reason alone.
const TARGETS_MAX: usize = 256;

type Key = (DropReason, Direction, Option<Target>);

/// Sums up dropped packets. Its size is bounded: [`TARGETS_MAX`] targets, and one more sum for each reason and direction.
#[derive(Debug)]
pub(super) struct DropTable<P> {
    sums: BTreeMap<Key, Sum<P>>,
    targets: usize,
    /// When the first of those that are there was counted.
    since: Option<Instant>,
}

#[derive(Debug)]
struct Sum<P> {
    peer: Option<P>,
    packets: u64,
    bytes: u64,
    since: Instant,
}

impl<P> DropTable<P> {
    pub(super) const fn new() -> Self {
        Self { sums: BTreeMap::new(), targets: 0, since: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sums.is_empty()
    }

    pub(super) fn count(
        &mut self,
        reason: DropReason,
        target: Option<Target>,
        peer: impl FnOnce() -> Option<P>,
        passed: Passed,
        now: Instant,
    ) {
        let mut key = (reason, passed.direction, target);
        let mut is_told_apart = target.is_some();
        if is_told_apart && self.targets >= TARGETS_MAX && !self.sums.contains_key(&key) {
            (key.2, is_told_apart) = (None, false);
        }
        let is_new = !self.sums.contains_key(&key);
        self.targets += usize::from(is_new && is_told_apart);
        self.since.get_or_insert(now);
        let sum = self.sums.entry(key).or_insert_with(|| Sum {
            // What is summed up by reason alone is of nobody in particular.
            peer: if is_told_apart { peer() } else { None },
            packets: 0,
            bytes: 0,
            since: now,
        });
        sum.packets += u64::from(passed.packets);
        sum.bytes += passed.bytes;
    }

    /// Returns when to [`Self::flush`].
    pub(super) fn next(&self) -> Option<Instant> {
        self.since.map(|since| since + INTERVAL)
    }

    /// Makes notes if it is time.
    pub(super) fn flush(&mut self, now: Instant, notes: &mut VecDeque<Note<P>>) {
        if self.next().is_some_and(|next| next <= now) {
            self.flush_all(notes, now);
        }
    }

    /// Makes notes as far as there is room; what finds none goes on being summed up.
    pub(super) fn flush_all(&mut self, notes: &mut VecDeque<Note<P>>, now: Instant) {
        while notes.len() < NOTES_MAX
            && let Some(((reason, direction, target), sum)) = self.sums.pop_first()
        {
            self.targets -= usize::from(target.is_some());
            let Sum { peer, packets, bytes, since } = sum;
            notes.push_back(Note {
                at: now,
                what: What::Drops { reason, direction, peer, target, packets, bytes, since },
            });
        }
        self.since = (!self.sums.is_empty()).then_some(now);
    }
}
