//! A map by prefix that finds what contains an address or overlaps a prefix.

use super::chunked::ChunkedMap;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Values by prefix; versions share what they have in common.
#[derive(Debug, Clone)]
pub(super) struct PrefixMap<V> {
    entries: ChunkedMap<Key, V>,
    /// How many prefixes there are of each family and length: only those lengths are looked for.
    lengths: Arc<BTreeMap<(bool, u8), usize>>,
}

/// Network address and prefix length.
type Key = (IpAddr, u8);

impl<V> Default for PrefixMap<V> {
    fn default() -> Self {
        Self { entries: ChunkedMap::default(), lengths: Arc::default() }
    }
}

fn key(prefix: IpNet) -> Key {
    (prefix.network(), prefix.prefix_len())
}

impl<V: Clone> PrefixMap<V> {
    pub(super) fn get(&self, prefix: IpNet) -> Option<&V> {
        self.entries.get(&key(prefix))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (IpNet, &V)> {
        self.entries.iter().filter_map(|((address, length), value)| Some((IpNet::new(*address, *length).ok()?, value)))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.values()
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.entries.is_same(&other.entries)
    }

    /// Returns the map with values set, or removed where the change is `None`.
    pub(super) fn with(&self, changes: BTreeMap<IpNet, Option<V>>) -> Self {
        let mut lengths = BTreeMap::clone(&self.lengths);
        for (prefix, value) in &changes {
            let count = lengths.entry((prefix.addr().is_ipv6(), prefix.prefix_len())).or_default();
            match (self.get(*prefix).is_some(), value.is_some()) {
                (false, true) => *count = count.saturating_add(1),
                (true, false) => *count = count.saturating_sub(1),
                (true, true) | (false, false) => {}
            }
        }
        lengths.retain(|_, count| *count > 0);
        let changes = changes.into_iter().map(|(prefix, value)| (key(prefix), value)).collect();
        Self { entries: self.entries.with(changes), lengths: Arc::new(lengths) }
    }

    /// Returns the values whose prefixes hold all of a prefix, itself included.
    pub(super) fn containing(&self, prefix: IpNet) -> impl Iterator<Item = &V> {
        self.containing_with_prefix(prefix).map(|(_, value)| value)
    }

    /// As [`Self::containing`], with the prefixes.
    pub(super) fn containing_with_prefix(&self, prefix: IpNet) -> impl Iterator<Item = (IpNet, &V)> {
        let lengths = self.lengths.range((prefix.addr().is_ipv6(), 0)..=(prefix.addr().is_ipv6(), prefix.prefix_len()));
        lengths.filter_map(move |((_, length), _)| {
            let wider = IpNet::new(prefix.addr(), *length).ok()?.trunc();
            Some((wider, self.get(wider)?))
        })
    }

    /// Returns the values whose prefixes share an address with a prefix.
    pub(super) fn overlapping(&self, prefix: IpNet) -> impl Iterator<Item = &V> {
        let last = prefix.broadcast();
        let within = self
            .entries
            .from(&key(prefix))
            .take_while(move |((address, _), _)| *address <= last)
            .filter(move |((_, length), _)| *length > prefix.prefix_len())
            .map(|(_, value)| value);
        self.containing(prefix).chain(within)
    }

    /// Calls with each prefix whose value is in one map only or not the same in both, as `same` judges.
    pub(super) fn differences<'a>(
        old: &'a Self,
        new: &'a Self,
        same: impl Fn(&V, &V) -> bool,
        mut report: impl FnMut(IpNet, Option<&'a V>, Option<&'a V>),
    ) {
        ChunkedMap::differences(&old.entries, &new.entries, same, |(address, length), before, after| {
            if let Ok(prefix) = IpNet::new(*address, *length) {
                report(prefix, before, after);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Prefixes of a small part of both families, so that many overlap.
    fn any_prefix() -> impl Strategy<Value = IpNet> {
        (any::<bool>(), 0..16_u8, 0..=4_u8).prop_map(|(v6, bits, length)| {
            let prefix = if v6 {
                IpNet::new(IpAddr::from([u16::from(bits) << 12, 0, 0, 0, 0, 0, 0, 0]), length)
            } else {
                IpNet::new(IpAddr::from([bits << 4, 0, 0, 0]), length)
            };
            prefix.unwrap().trunc()
        })
    }

    proptest! {
        #[test]
        fn finds_what_contains_and_what_overlaps(
            versions in prop::collection::vec(prop::collection::btree_map(any_prefix(), any::<bool>(), 0..20), 1..4),
            probe in any_prefix(),
        ) {
            let mut map = PrefixMap::default();
            let mut model: BTreeMap<IpNet, IpNet> = BTreeMap::new();
            for version in versions {
                for (prefix, there) in &version {
                    if *there {
                        model.insert(*prefix, *prefix);
                    } else {
                        model.remove(prefix);
                    }
                }
                map = map.with(version.into_iter().map(|(prefix, there)| (prefix, there.then_some(prefix))).collect());
            }
            let sorted = |found: Vec<&IpNet>| { let mut found: Vec<IpNet> = found.into_iter().copied().collect(); found.sort(); found };
            let containing: Vec<IpNet> = model.keys().copied().filter(|prefix| prefix.contains(&probe)).collect();
            let overlapping: Vec<IpNet> =
                model.keys().copied().filter(|prefix| prefix.contains(&probe) || probe.contains(prefix)).collect();
            prop_assert_eq!(sorted(map.containing(probe).collect()), containing);
            prop_assert_eq!(sorted(map.overlapping(probe).collect()), overlapping);
        }
    }
}
