//! The replay window: which counters were seen. RFC 6479's ring of words.

/// Words of the ring; one is always being refilled.
const WORDS: usize = 128;

/// How far back a counter may be: 8128.
pub(crate) const WINDOW: u64 = (WORDS as u64 - 1) * 64;

/// Remembers the counters of the last [`WINDOW`].
#[derive(Debug, Clone)]
pub(crate) struct Replay {
    /// One more than the highest counter seen.
    next: u64,
    words: [u64; WORDS],
}

#[expect(clippy::indexing_slicing, reason = "positions are taken modulo the length")]
impl Replay {
    pub(crate) const fn new() -> Self {
        Self { next: 0, words: [0; WORDS] }
    }

    /// Tells whether `counter` may be new; cheap, before any cryptography.
    pub(crate) fn may_be_new(&self, counter: u64) -> bool {
        if counter >= self.next {
            return true;
        }
        self.next - counter <= WINDOW && self.word(counter) & Self::bit(counter) == 0
    }

    /// Marks `counter` as seen and tells whether it was new. Only for packets that authenticate.
    pub(crate) fn mark(&mut self, counter: u64) -> bool {
        if !self.may_be_new(counter) {
            return false;
        }
        if counter >= self.next {
            let current = self.next.wrapping_sub(1) / 64;
            let first = if self.next == 0 { 0 } else { current + 1 };
            let last = counter / 64;
            // Words that the window moves into are forgotten; after a long jump that is all of them.
            for word in first.max(last.saturating_sub(WORDS as u64 - 1))..=last {
                *self.slot(word) = 0;
            }
            self.next = counter + 1;
        }
        *self.slot(counter / 64) |= Self::bit(counter);
        true
    }

    fn word(&self, counter: u64) -> u64 {
        self.words[Self::position(counter / 64)]
    }

    fn slot(&mut self, word: u64) -> &mut u64 {
        &mut self.words[Self::position(word)]
    }

    #[expect(clippy::cast_possible_truncation, reason = "the upper bits are cut anyway")]
    const fn position(word: u64) -> usize {
        word as usize % WORDS
    }

    const fn bit(counter: u64) -> u64 {
        1 << (counter % 64)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn edges_of_the_window() {
        let mut replay = Replay::new();
        assert!(replay.mark(0) && !replay.mark(0));
        assert!(replay.mark(WINDOW) && replay.mark(1), "1 is exactly WINDOW − 1 behind");
        assert!(!replay.mark(0));
        assert!(replay.mark(10 * WINDOW) && !replay.mark(9 * WINDOW - 1));
        assert!(replay.mark(9 * WINDOW + 1));
        assert!(replay.mark(1 << 60));
    }

    proptest! {
        /// The naive one is a set of everything seen.
        #[test]
        fn equals_a_set(steps in proptest::collection::vec((0_u64..3, 0_u64..20_000), 1..300)) {
            let mut replay = Replay::new();
            let mut seen = BTreeSet::new();
            let mut base = 0;
            for (kind, offset) in steps {
                let counter = match kind { 0 => base + offset % 100, 1 => base.saturating_sub(offset), _ => base + offset };
                let highest = seen.last().copied();
                let too_old = highest.is_some_and(|highest: u64| highest + 1 > counter && highest + 1 - counter > WINDOW);
                prop_assert_eq!(replay.mark(counter), !too_old && !seen.contains(&counter));
                if !too_old {
                    seen.insert(counter);
                }
                base = base.max(counter);
            }
        }
    }
}
