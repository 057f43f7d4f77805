//! Sets of rules by number.

/// Rules by their numbers, which are added in ascending order.
///
/// A set is a list while that is short, else one bit for each rule of the filter; the bits are never larger than the list
/// would be, so that all sets together take no more room than the lists that they are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RuleSet {
    /// Ascending.
    List(Vec<u32>),
    Bits(Box<[u64]>),
}

impl Default for RuleSet {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

impl RuleSet {
    /// Adds a rule, whose number is not below that of the last one; only before [`Self::pack`].
    pub(super) fn add(&mut self, rule: u32) {
        if let Self::List(list) = self
            && list.last() != Some(&rule)
        {
            list.push(rule);
        }
    }

    /// Chooses the smaller form for a set of a filter of `rules` rules.
    pub(super) fn pack(&mut self, rules: usize) {
        let Self::List(list) = self else { return };
        let words = rules.div_ceil(64);
        if list.len() <= words * 2 {
            list.shrink_to_fit();
            return;
        }
        let mut bits = vec![0_u64; words];
        for rule in list {
            if let Some(word) = bits.get_mut(*rule as usize / 64) {
                *word |= 1 << (*rule % 64);
            }
        }
        *self = Self::Bits(bits.into());
    }

    /// Tells whether a rule is in both sets.
    ///
    /// Costs O(rules / 64) at most, with a logarithm on top if both are lists; next to nothing if one is small.
    pub(super) fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::List(one), Self::List(two)) => {
                let (few, many) = if one.len() <= two.len() { (one, two) } else { (two, one) };
                few.iter().any(|rule| many.binary_search(rule).is_ok())
            }
            (Self::List(list), Self::Bits(bits)) | (Self::Bits(bits), Self::List(list)) => {
                list.iter().any(|rule| bits.get(*rule as usize / 64).is_some_and(|word| word >> (rule % 64) & 1 == 1))
            }
            (Self::Bits(one), Self::Bits(two)) => one.iter().zip(two).any(|(one, two)| one & two != 0),
        }
    }
}

impl RuleSet {
    /// Returns the first rule that is in both sets.
    pub(super) fn first_common(&self, other: &Self) -> Option<u32> {
        match (self, other) {
            (Self::List(one), Self::List(two)) => {
                let (few, many) = if one.len() <= two.len() { (one, two) } else { (two, one) };
                few.iter().find(|rule| many.binary_search(rule).is_ok()).copied()
            }
            (Self::List(list), Self::Bits(bits)) | (Self::Bits(bits), Self::List(list)) => {
                let has = |rule: u32| bits.get(rule as usize / 64).is_some_and(|word| word >> (rule % 64) & 1 == 1);
                list.iter().copied().find(|rule| has(*rule))
            }
            (Self::Bits(one), Self::Bits(two)) => {
                let common = one.iter().zip(two).map(|(one, two)| one & two);
                let (first, word) = (0..).step_by(64).zip(common).find(|(_, word)| *word != 0)?;
                Some(first + word.trailing_zeros())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::btree_set;
    use proptest::prelude::*;

    fn packed(members: impl Iterator<Item = u32>, rules: u32) -> RuleSet {
        let mut set = RuleSet::default();
        members.for_each(|rule| set.add(rule));
        set.pack(rules as usize);
        set
    }

    #[test]
    fn one_rule_in_common_is_enough_whichever_it_is() {
        for rules in [3, 64, 130] {
            let even = || (0..rules).filter(|rule| rule % 2 == 0);
            let odd = || (0..rules).filter(|rule| rule % 2 == 1);
            assert!(!packed(even(), rules).meets(&packed(odd(), rules)));
            for shared in 0..rules {
                let [with_even, with_odd] =
                    [0, 1].map(|rest| (0..rules).filter(move |rule| rule % 2 == rest || *rule == shared));
                assert!(packed(with_even, rules).meets(&packed(with_odd, rules)), "{shared} of {rules}");
                assert!(packed(std::iter::once(shared), rules).meets(&packed(0..rules, rules)));
            }
        }
    }

    proptest! {
        /// In all forms, small and large.
        #[test]
        fn sets_meet_if_they_share_a_rule(
            rules in 1_usize..300,
            one in btree_set(0_u32..300, 0..120),
            two in btree_set(0_u32..300, 0..6),
            three in btree_set(0_u32..300, 0..120),
        ) {
            let fits = |set: std::collections::BTreeSet<u32>| -> Vec<u32> {
                set.into_iter().filter(|rule| (*rule as usize) < rules).collect()
            };
            let plain = [fits(one), fits(two), fits(three)];
            let packed = plain.clone().map(|rules_of_set| {
                let mut set = RuleSet::default();
                rules_of_set.iter().for_each(|rule| (0..2).for_each(|_| set.add(*rule)));
                set.pack(rules);
                let bytes = match &set {
                    RuleSet::List(list) => list.len() * 4,
                    RuleSet::Bits(bits) => bits.len() * 8,
                };
                assert!(bytes <= rules_of_set.len() * 4, "{set:?}");
                set
            });
            for (a, packed_a) in plain.iter().zip(&packed) {
                for (b, packed_b) in plain.iter().zip(&packed) {
                    prop_assert_eq!(packed_a.meets(packed_b), a.iter().any(|rule| b.contains(rule)));
                    let first = a.iter().find(|rule| b.contains(rule)).copied();
                    prop_assert_eq!(packed_a.first_common(packed_b), first);
                }
            }
        }
    }
}
