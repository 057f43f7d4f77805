//! A set of rule numbers as bits.

/// Which rules of a policy apply to something. (Lists of sources are numbered as well.)
///
/// Words of 64 bits, of which those without a rule are left out: a policy may have a hundred thousand rules, of which a
/// node has few.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct RuleSet(Vec<(usize, u64)>);

impl RuleSet {
    /// Adds a rule.
    pub(super) fn insert(&mut self, rule: usize) {
        let bit = 1 << (rule % 64);
        match self.place(rule / 64) {
            Ok(at) => {
                if let Some((_, bits)) = self.0.get_mut(at) {
                    *bits |= bit;
                }
            }
            Err(at) => self.0.insert(at, (rule / 64, bit)),
        }
    }

    /// Takes a rule out.
    pub(super) fn remove(&mut self, rule: usize) {
        if let Ok(at) = self.place(rule / 64)
            && let Some((_, bits)) = self.0.get_mut(at)
        {
            *bits &= !(1 << (rule % 64));
            if *bits == 0 {
                self.0.remove(at);
            }
        }
    }

    /// Tells whether a rule is in the set.
    pub(super) fn contains(&self, rule: usize) -> bool {
        self.word(rule / 64) >> (rule % 64) & 1 == 1
    }

    /// Adds all rules of `other`.
    pub(super) fn extend(&mut self, other: &Self) {
        if self.0.is_empty() {
            self.0.clone_from(&other.0);
        } else if !other.0.is_empty() {
            *self = self.joined(other, |one, two| one | two);
        }
    }

    /// Tells whether there is a rule in both.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let (few, many) = self.by_size(other);
        few.0.iter().any(|(word, bits)| bits & many.word(*word) != 0)
    }

    /// Tells whether there is a rule in all three.
    pub(super) fn meets_both(&self, two: &Self, three: &Self) -> bool {
        let (few, many) = self.by_size(two);
        few.0.iter().any(|(word, bits)| {
            let both = bits & many.word(*word);
            both != 0 && both & three.word(*word) != 0
        })
    }

    /// Returns the rules that are in both.
    pub(super) fn common(&self, other: &Self) -> Self {
        let (few, many) = self.by_size(other);
        let words = few.0.iter().map(|(word, bits)| (*word, bits & many.word(*word)));
        Self(words.filter(|(_, bits)| *bits != 0).collect())
    }

    /// Returns the rules that are in one and not in the other.
    pub(super) fn difference(&self, other: &Self) -> Self {
        self.joined(other, |one, two| one ^ two)
    }

    /// Tells whether there is no rule.
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the rules in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().flat_map(|(word, bits)| {
            let mut rest = *bits;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
                rest &= rest.wrapping_sub(1);
                Some(word.saturating_mul(64).saturating_add(bit))
            })
        })
    }

    fn place(&self, word: usize) -> Result<usize, usize> {
        // Sets are mostly made in order.
        match self.0.last() {
            Some((last, _)) if *last < word => Err(self.0.len()),
            Some(_) | None => self.0.binary_search_by_key(&word, |(word, _)| *word),
        }
    }

    fn word(&self, word: usize) -> u64 {
        self.place(word).ok().and_then(|at| self.0.get(at)).map_or(0, |(_, bits)| *bits)
    }

    /// Returns the two sets, that with fewer words first.
    fn by_size<'a>(&'a self, other: &'a Self) -> (&'a Self, &'a Self) {
        if self.0.len() <= other.0.len() { (self, other) } else { (other, self) }
    }

    fn joined(&self, other: &Self, join: impl Fn(u64, u64) -> u64) -> Self {
        let mut words = Vec::with_capacity(self.0.len().max(other.0.len()));
        let (mut left, mut right) = (self.0.iter().copied().peekable(), other.0.iter().copied().peekable());
        loop {
            let word = match (left.peek(), right.peek()) {
                (Some((one, _)), Some((two, _))) => *one.min(two),
                (Some((word, _)), None) | (None, Some((word, _))) => *word,
                (None, None) => return Self(words),
            };
            let one = left.next_if(|(other, _)| *other == word).map_or(0, |(_, bits)| bits);
            let two = right.next_if(|(other, _)| *other == word).map_or(0, |(_, bits)| bits);
            let bits = join(one, two);
            if bits != 0 {
                words.push((word, bits));
            }
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
            one in proptest::collection::btree_set(0_usize..2_000, 0..20),
            two in proptest::collection::btree_set(0_usize..2_000, 0..20),
            three in proptest::collection::btree_set(0_usize..2_000, 0..20),
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
            prop_assert!((0..2_048).all(|number| bits(&one).contains(number) == one.contains(&number)));
            let mut less = bits(&one);
            two.iter().for_each(|number| less.remove(*number));
            prop_assert_eq!(less, bits(&one.difference(&two).copied().collect()));
        }
    }
}
