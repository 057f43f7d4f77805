//! Which rules hold at a moment.

use super::rule_set::RuleSet;
use super::rules::Rulebook;
use std::collections::BTreeMap;

/// The rules of a policy at one time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Moment {
    /// Unix seconds.
    pub(super) now: i64,
    pub(super) active: RuleSet,
    /// When those of them end that end by themselves.
    pub(super) ends: BTreeMap<usize, i64>,
    /// When something changes next.
    pub(super) next_edge: Option<i64>,
}

impl Moment {
    pub(super) fn new(book: &Rulebook, now: i64) -> Self {
        let mut moment = Self { now, ..Self::default() };
        for (number, rule) in book.rules() {
            if !book.timed.contains(number) {
                moment.active.insert(number);
                continue;
            }
            let edge = rule.validity.next_edge(now);
            moment.next_edge = [moment.next_edge, edge].into_iter().flatten().min();
            if rule.validity.holds(now) {
                moment.active.insert(number);
                moment.ends.extend(edge.map(|edge| (number, edge)));
            }
        }
        moment
    }
}
