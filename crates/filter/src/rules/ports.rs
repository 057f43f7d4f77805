//! Which rules open which ports.

use std::collections::HashMap;

use super::set::RuleSet;
use crate::prefix::AddressHash;

/// Maps ports to the rules that open them.
///
/// A range is cut into blocks: all ports that begin with the same bits. Most ranges of policies are one block: a port, or
/// all of them. A port lies in 17 blocks, of which only the sizes that occur are looked up.
#[derive(Debug, Clone, Default)]
pub(super) struct Ports {
    /// Has bit `n` set if there are blocks of `n` common bits.
    sizes: u32,
    blocks: HashMap<Block, RuleSet, AddressHash>,
}

/// A block of ports: the number of common bits above, the common bits below.
type Block = u32;

fn block(length: u32, port: u16) -> Block {
    length << 16 | u32::from(port) >> (16 - length.min(16))
}

impl Ports {
    /// Opens the ports from first to last, both included, by a rule; see [`RuleSet::add`].
    pub(super) fn add(&mut self, (first, last): (u16, u16), rule: u32) {
        for (length, port) in blocks(first, last) {
            self.sizes |= 1 << length;
            self.blocks.entry(block(length, port)).or_default().add(rule);
        }
    }

    /// See [`RuleSet::pack`].
    pub(super) fn pack(&mut self, rules: usize) {
        self.blocks.values_mut().for_each(|set| set.pack(rules));
    }

    /// Tells whether `matches` holds for any set of rules that open `port`.
    pub(super) fn any(&self, port: u16, mut matches: impl FnMut(&RuleSet) -> bool) -> bool {
        let mut sizes = self.sizes;
        while sizes != 0 {
            let length = sizes.trailing_zeros();
            sizes &= sizes - 1;
            if self.blocks.get(&block(length, port)).is_some_and(&mut matches) {
                return true;
            }
        }
        false
    }
}

/// Cuts a range into the fewest blocks: the number of common bits and the first port of each. There are 30 at most.
pub(super) fn blocks(first: u16, last: u16) -> impl Iterator<Item = (u32, u16)> {
    let mut next = u32::from(first);
    let end = u32::from(last) + 1;
    std::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        // The largest block that begins here and does not end beyond the range.
        let free = next.trailing_zeros().min(16).min((end - next).ilog2());
        let port = u16::try_from(next).ok()?;
        next += 1 << free;
        Some((16 - free, port))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_are_the_range(ends: (u16, u16)) {
            let (first, last) = (ends.0.min(ends.1), ends.0.max(ends.1));
            let mut next = u32::from(first);
            let all: Vec<_> = blocks(first, last).collect();
            prop_assert!(all.len() <= 30);
            for (length, port) in all {
                prop_assert_eq!(u32::from(port), next, "without a gap");
                prop_assert_eq!(next % (1 << (16 - length)), 0, "its ports begin with the same bits");
                next += 1 << (16 - length);
            }
            prop_assert_eq!(next, u32::from(last) + 1);
        }

        #[test]
        fn a_port_is_open_if_it_is_in_the_range(
            ranges in proptest::collection::vec((0_u16..12, 0_u16..12), 0..6),
            far: bool,
        ) {
            let place = |at: u16| if far { u16::MAX - 11 + at } else { at };
            let mut ports = Ports::default();
            for (rule, (first, last)) in (0..).zip(&ranges) {
                ports.add((place(*first), place(*last)), rule);
            }
            ports.pack(ranges.len());
            for port in 0..12 {
                for (rule, (first, last)) in (0..).zip(&ranges) {
                    let mut one = RuleSet::default();
                    one.add(rule);
                    let open = ports.any(place(port), |set| set.meets(&one));
                    prop_assert_eq!(open, (*first..=*last).contains(&port));
                }
            }
        }
    }

    #[test]
    fn one_port_and_all_ports_are_one_block_each() {
        assert_eq!(blocks(80, 80).collect::<Vec<_>>(), [(16, 80)]);
        assert_eq!(blocks(0, u16::MAX).collect::<Vec<_>>(), [(0, 0)]);
        assert_eq!(blocks(1, u16::MAX).count(), 16);
        assert_eq!(blocks(2, 1).count(), 0);
    }
}
