//! The packet filter as the server sends it: in named pieces, and with rules that end.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::{Arc, OnceLock};

use warren_filter::Grants;
use warren_wire::control::{FilterRule, Time};

/// Most named pieces of the packet filter.
const MAX_PIECES: usize = 1024;

/// Holds all rules, and which of them hold at the server's time that was told last.
#[derive(Debug, Default)]
pub(super) struct Rules {
    pieces: BTreeMap<String, Vec<FilterRule>>,
    /// When rules end, past ones included.
    ends: BTreeSet<Time>,
    /// The server's time.
    now: Option<Time>,
    /// What the rules that hold grant beyond packets, once somebody has asked.
    grants: OnceLock<Grants>,
}

impl Rules {
    /// Applies the parts of a response that are about the filter, and tells whether they may have changed it: that the
    /// same pieces come again one by one is no change. What comes first replaces all.
    pub(super) fn apply(
        &mut self,
        first: bool,
        base: Option<Vec<FilterRule>>,
        mut pieces: BTreeMap<String, Option<Vec<FilterRule>>>,
    ) -> bool {
        if !first && base.is_none() && pieces.is_empty() {
            return false;
        }
        let mut changed = first;
        if first {
            self.pieces.clear();
        }
        if let Some(rules) = base {
            changed |= self.set("base".to_owned(), rules);
        }
        if pieces.get("*").is_some_and(Option::is_none) {
            pieces.remove("*");
            changed |= !self.pieces.is_empty();
            self.pieces.clear();
        }
        for (name, rules) in pieces {
            match rules {
                None => changed |= self.pieces.remove(&name).is_some(),
                Some(rules) => changed |= self.set(name, rules),
            }
        }
        if changed {
            self.ends = self.pieces.values().flatten().filter_map(|rule| rule.until).collect();
            self.grants = OnceLock::new();
        }
        changed
    }

    /// Sets a piece and tells whether it is another than before.
    fn set(&mut self, name: String, rules: Vec<FilterRule>) -> bool {
        if self.pieces.len() >= MAX_PIECES && !self.pieces.contains_key(&name) {
            tracing::warn!("too many pieces of packet filter, one left out");
            return false;
        }
        if self.pieces.get(&name) == Some(&rules) {
            return false;
        }
        self.pieces.insert(name, rules);
        true
    }

    /// Says what time it is by the server's clock, and returns whether other rules hold by that: some have ended, or
    /// some had been ended too early by a clock that was wrong.
    pub(super) fn tell_time(&mut self, now: Time) -> bool {
        let Some(before) = self.now.replace(now) else { return !self.ends.is_empty() };
        let crossed = (Excluded(before.min(now)), Included(before.max(now)));
        let changed = before != now && self.ends.range(crossed).next().is_some();
        if changed {
            self.grants = OnceLock::new();
        }
        changed
    }

    /// Returns when the next rule ends.
    pub(super) fn next_end(&self) -> Option<Time> {
        let from = self.now.map_or(Unbounded, Excluded);
        self.ends.range((from, Unbounded)).next().copied()
    }

    /// Returns all pieces, rules that have ended included.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (&String, &[FilterRule])> {
        self.pieces.iter().map(|(name, rules)| (name, rules.as_slice()))
    }

    /// Returns the rules that hold, all pieces in the order of their names.
    pub(super) fn in_force(&self) -> Arc<[FilterRule]> {
        self.holding().cloned().collect()
    }

    /// Returns what the rules that hold grant beyond packets.
    pub(super) fn grants(&self) -> &Grants {
        self.grants.get_or_init(|| Grants::of(self.holding()))
    }

    fn holding(&self) -> impl Iterator<Item = &FilterRule> {
        let ended = |rule: &FilterRule| rule.until.zip(self.now).is_some_and(|(until, now)| until <= now);
        self.pieces.values().flatten().filter(move |rule| !ended(rule))
    }
}
