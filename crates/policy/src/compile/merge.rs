//! Putting the rules of a filter together.

use super::Rule;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use warren_wire::control::{FilterRule, NetPortRange};

/// Collects rules, joining those with equal sources and protocols in the place of the first.
///
/// Texts of sources are compared once for each list, not for each rule.
#[derive(Default)]
pub(super) struct FilterBuilder {
    rules: Vec<FilterRule>,
    lists: Vec<Arc<[String]>>,
    by_texts: BTreeMap<Arc<[String]>, usize>,
    /// Lists by the policy's number for them; two of those may come out equal.
    by_number: BTreeMap<usize, usize>,
    places: BTreeMap<(usize, Vec<i64>), usize>,
}

/// A list of sources within a [`FilterBuilder`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Sources(usize);

impl FilterBuilder {
    /// Returns the sources that the policy knows by a number.
    pub(super) fn sources<T: Iterator<Item = String>>(&mut self, number: usize, texts: impl FnOnce() -> T) -> Sources {
        if let Some(list) = self.by_number.get(&number) {
            return Sources(*list);
        }
        let list = self.list(texts());
        self.by_number.insert(number, list.0);
        list
    }

    /// Returns sources by their texts, each once, the first counting.
    pub(super) fn list(&mut self, texts: impl Iterator<Item = String>) -> Sources {
        let mut seen = BTreeSet::new();
        let texts: Arc<[String]> = texts.filter(|text| seen.insert(text.clone())).collect();
        let next = self.lists.len();
        let list = *self.by_texts.entry(texts).or_insert_with_key(|texts| {
            self.lists.push(Arc::clone(texts));
            next
        });
        Sources(list)
    }

    /// Adds what a rule lets these sources do with these destinations; without sources, nothing.
    pub(super) fn add(&mut self, sources: Sources, rule: &Rule, destinations: &[String]) {
        let Some(texts) = self.lists.get(sources.0).filter(|texts| !texts.is_empty()) else { return };
        for (protocols, ports) in &rule.services {
            let place = *self.places.entry((sources.0, protocols.clone())).or_insert_with_key(|(_, protocols)| {
                self.rules.push(FilterRule {
                    src_ips: texts.to_vec(),
                    ip_proto: protocols.clone(),
                    ..FilterRule::default()
                });
                self.rules.len().saturating_sub(1)
            });
            let Some(rule) = self.rules.get_mut(place) else { continue };
            for destination in destinations {
                rule.dst_ports.extend(ports.iter().map(|ports| NetPortRange {
                    ip: destination.clone(),
                    bits: None,
                    ports: *ports,
                }));
            }
        }
    }

    pub(super) fn finish(self) -> Vec<FilterRule> {
        self.rules
    }
}
