//! A set of rule numbers as bits.

/// Which rules of a policy apply to something.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct RuleSet(Vec<u64>);

impl RuleSet {
    /// Adds a rule.
    pub(super) fn insert(&mut self, rule: usize) {
        let word = rule / 64;
        if self.0.len() <= word {
            self.0.resize(word.saturating_add(1), 0);
        }
        if let Some(bits) = self.0.get_mut(word) {
            *bits |= 1 << (rule % 64);
        }
    }

    /// Tells whether a rule is in the set.
    pub(super) fn contains(&self, rule: usize) -> bool {
        self.0.get(rule / 64).is_some_and(|bits| bits >> (rule % 64) & 1 == 1)
    }

    /// Adds all rules of `other`.
    pub(super) fn extend(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (bits, others) in self.0.iter_mut().zip(&other.0) {
            *bits |= others;
        }
    }

    /// Tells whether there is a rule in both.
    pub(super) fn meets(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).any(|(one, two)| one & two != 0)
    }

    /// Tells whether there is no rule.
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|bits| *bits == 0)
    }

    /// Returns the rules in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(word, bits)| {
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| word.saturating_mul(64).saturating_add(bit))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_a_set_of_numbers(
            one in proptest::collection::btree_set(0_usize..200, 0..20),
            two in proptest::collection::btree_set(0_usize..200, 0..20),
        ) {
            let bits = |numbers: &BTreeSet<usize>| {
                let mut set = RuleSet::default();
                numbers.iter().for_each(|number| set.insert(*number));
                set
            };
            let mut joined = bits(&one);
            joined.extend(&bits(&two));
            prop_assert!(joined.iter().eq(one.union(&two).copied()));
            prop_assert_eq!(bits(&one).meets(&bits(&two)), !one.is_disjoint(&two));
            prop_assert_eq!(bits(&one).is_empty(), one.is_empty());
            prop_assert!((0..256).all(|number| bits(&one).contains(number) == one.contains(&number)));
        }
    }
}
