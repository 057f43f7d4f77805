//! Numbers of rules and lists of sources.

use super::rule_set::RuleSet;
use super::rules::{List, ListKey, Rule, Rulebook};
use super::target::Target;
use crate::posture::Assertion;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Gives out numbers: the old ones to what was there before.
pub(super) struct Numbers<'a> {
    old: &'a Rulebook,
    lists: BTreeMap<Arc<ListKey>, usize>,
    /// Lists by where they lie; comparing long ones is slow.
    list_places: BTreeMap<usize, usize>,
    old_lists: BTreeMap<&'a ListKey, usize>,
    old_rules: BTreeMap<usize, BTreeMap<&'a Target, VecDeque<usize>>>,
    free_lists: Free,
    free_rules: Free,
}

/// Numbers that were free before, then those after the last.
struct Free {
    holes: Vec<usize>,
    next: usize,
}

impl Free {
    fn new<T>(table: &[Option<T>]) -> Self {
        let holes = table.iter().enumerate().rev().filter(|(_, entry)| entry.is_none());
        Self { holes: holes.map(|(number, _)| number).collect(), next: table.len() }
    }

    fn take(&mut self) -> usize {
        self.holes.pop().unwrap_or_else(|| {
            let number = self.next;
            self.next = number.saturating_add(1);
            number
        })
    }
}

impl<'a> Numbers<'a> {
    pub(super) fn new(old: &'a Rulebook) -> Self {
        let mut old_rules: BTreeMap<usize, BTreeMap<&Target, VecDeque<usize>>> = BTreeMap::new();
        let mut numbers: Vec<usize> = old.rules().map(|(number, _)| number).collect();
        numbers.sort_by_key(|number| old.position.get(*number).copied());
        for number in numbers {
            if let Some(rule) = old.rule(number) {
                let targets = old_rules.entry(old.list_of(number)).or_default();
                targets.entry(&rule.target).or_default().push_back(number);
            }
        }
        let lists = old.lists.iter().enumerate();
        Self {
            old,
            lists: BTreeMap::new(),
            list_places: BTreeMap::new(),
            old_lists: lists.filter_map(|(number, list)| Some((&*list.as_ref()?.key, number))).collect(),
            old_rules,
            free_lists: Free::new(&old.lists),
            free_rules: Free::new(&old.rules),
        }
    }

    pub(super) fn list(&mut self, key: &Arc<ListKey>) -> usize {
        let place = Arc::as_ptr(key) as usize;
        if let Some(number) = self.list_places.get(&place) {
            return *number;
        }
        let number = self.lists.get(key).copied().unwrap_or_else(|| {
            let number = self.old_lists.get(&**key).copied().unwrap_or_else(|| self.free_lists.take());
            self.lists.insert(Arc::clone(key), number);
            number
        });
        // The key may be dropped and its place taken by another: only those that stay may be known by place.
        if self.lists.get_key_value(key).is_some_and(|(kept, _)| Arc::ptr_eq(kept, key)) {
            self.list_places.insert(place, number);
        }
        number
    }

    pub(super) fn rule(&mut self, list: usize, rule: Rule) -> (usize, Arc<Rule>) {
        let found =
            self.old_rules.get_mut(&list).and_then(|targets| targets.get_mut(&rule.target)).and_then(|candidates| {
                let at =
                    candidates.iter().position(|number| self.old.rule(*number).is_some_and(|old| **old == rule))?;
                candidates.remove(at)
            });
        match found.and_then(|number| Some((number, self.old.rule(number)?))) {
            Some((number, old)) => (number, Arc::clone(old)),
            None => (self.free_rules.take(), Arc::new(rule)),
        }
    }

    /// Returns the lists by number; `postures` are those of lists, by how they are written.
    pub(super) fn list_table(
        self,
        book: &Rulebook,
        postures: &BTreeMap<String, Vec<Assertion>>,
    ) -> Vec<Option<Arc<List>>> {
        let len = self.lists.values().max().map_or(0, |last| last.saturating_add(1));
        let mut table: Vec<Option<List>> = std::iter::repeat_with(|| None).take(len).collect();
        for (key, number) in self.lists {
            if let Some(entry) = table.get_mut(number) {
                let postures = key.postures.iter().filter_map(|text| postures.get(text).cloned()).collect();
                *entry = Some(List { key, rules: RuleSet::default(), own: RuleSet::default(), postures });
            }
        }
        for (number, rule) in book.rules() {
            if let Some(list) = table.get_mut(book.list_of(number)).and_then(Option::as_mut) {
                let to_own = rule.target == Target::OwnDevices;
                if to_own { &mut list.own } else { &mut list.rules }.insert(number);
            }
        }
        table.into_iter().map(|list| list.map(Arc::new)).collect()
    }
}
