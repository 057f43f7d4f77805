//! A set of rule numbers as bits.

/// Which rules of a policy apply to something. (Lists of sources are numbered as well.)
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

    /// Takes a rule out.
    pub(super) fn remove(&mut self, rule: usize) {
        if let Some(bits) = self.0.get_mut(rule / 64) {
            *bits &= !(1 << (rule % 64));
        }
        self.trim();
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

    /// Tells whether there is a rule in all three.
    pub(super) fn meets_both(&self, two: &Self, three: &Self) -> bool {
        self.0.iter().zip(&two.0).zip(&three.0).any(|((one, two), three)| one & two & three != 0)
    }

    /// Returns the rules that are in both.
    pub(super) fn common(&self, other: &Self) -> Self {
        let mut common = Self(self.0.iter().zip(&other.0).map(|(one, two)| one & two).collect());
        common.trim();
        common
    }

    /// Returns the rules that are in one and not in the other.
    pub(super) fn difference(&self, other: &Self) -> Self {
        let others = other.0.iter().copied().chain(std::iter::repeat(0));
        let longer = self.0.len().max(other.0.len());
        let own = self.0.iter().copied().chain(std::iter::repeat(0));
        let mut difference = Self(own.zip(others).take(longer).map(|(one, two)| one ^ two).collect());
        difference.trim();
        difference
    }

    /// Tells whether there is no rule.
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|bits| *bits == 0)
    }

    /// Returns the rules in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(word, bits)| {
            let mut rest = *bits;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
                rest &= rest.wrapping_sub(1);
                Some(word.saturating_mul(64).saturating_add(bit))
            })
        })
    }

    /// Equal sets are equal words: no empty ones at the end.
    fn trim(&mut self) {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
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
            three in proptest::collection::btree_set(0_usize..200, 0..20),
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
            let common: BTreeSet<usize> = one.intersection(&two).copied().collect();
            prop_assert_eq!(bits(&one).common(&bits(&two)), bits(&common));
            prop_assert_eq!(bits(&one).meets_both(&bits(&two), &bits(&three)), !common.is_disjoint(&three));
            prop_assert_eq!(bits(&one).difference(&bits(&two)), bits(&one.symmetric_difference(&two).copied().collect()));
            prop_assert_eq!(bits(&one).is_empty(), one.is_empty());
            prop_assert!((0..256).all(|number| bits(&one).contains(number) == one.contains(&number)));
            let mut less = bits(&one);
            two.iter().for_each(|number| less.remove(*number));
            prop_assert_eq!(less, bits(&one.difference(&two).copied().collect()));
        }
    }
}
