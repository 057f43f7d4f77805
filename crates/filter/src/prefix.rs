//! Tables keyed by address prefix.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

/// Maps prefixes of both address families to values.
///
/// Host routes live in hash tables, which answer in a few nanoseconds; shorter prefixes in tries, walked only if there
/// are any. A lookup costs O(1) plus O(number of bits) in the worst case and never allocates.
#[derive(Debug, Clone)]
pub struct PrefixTable<T> {
    v4: Family<u32, Ipv4Net, T>,
    v6: Family<u128, Ipv6Net, T>,
}

#[derive(Debug, Clone)]
struct Family<A, P: prefix_trie::Prefix, T> {
    hosts: HashMap<A, T, AddressHash>,
    nets: PrefixMap<P, T>,
}

impl<A, P: prefix_trie::Prefix, T> Default for Family<A, P, T> {
    fn default() -> Self {
        Self { hosts: HashMap::default(), nets: PrefixMap::new() }
    }
}

impl<T> Default for PrefixTable<T> {
    fn default() -> Self {
        Self { v4: Family::default(), v6: Family::default() }
    }
}

impl<T> PrefixTable<T> {
    /// Makes an empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the value of a prefix, whose host bits do not matter, and returns the one it had.
    pub fn insert(&mut self, prefix: IpNet, value: T) -> Option<T> {
        match prefix {
            IpNet::V4(net) if net.prefix_len() == 32 => self.v4.hosts.insert(net.addr().to_bits(), value),
            IpNet::V4(net) => self.v4.nets.insert(net, value),
            IpNet::V6(net) if net.prefix_len() == 128 => self.v6.hosts.insert(net.addr().to_bits(), value),
            IpNet::V6(net) => self.v6.nets.insert(net, value),
        }
    }

    /// Removes exactly this prefix and returns its value.
    pub fn remove(&mut self, prefix: IpNet) -> Option<T> {
        match prefix {
            IpNet::V4(net) if net.prefix_len() == 32 => self.v4.hosts.remove(&net.addr().to_bits()),
            IpNet::V4(net) => self.v4.nets.remove(&net),
            IpNet::V6(net) if net.prefix_len() == 128 => self.v6.hosts.remove(&net.addr().to_bits()),
            IpNet::V6(net) => self.v6.nets.remove(&net),
        }
    }

    /// Returns the value of exactly this prefix, making one if there is none.
    pub fn entry(&mut self, prefix: IpNet, make: impl FnOnce() -> T) -> &mut T {
        match prefix {
            IpNet::V4(net) if net.prefix_len() == 32 => self.v4.hosts.entry(net.addr().to_bits()).or_insert_with(make),
            IpNet::V4(net) => self.v4.nets.entry(net).or_insert_with(make),
            IpNet::V6(net) if net.prefix_len() == 128 => self.v6.hosts.entry(net.addr().to_bits()).or_insert_with(make),
            IpNet::V6(net) => self.v6.nets.entry(net).or_insert_with(make),
        }
    }

    /// Returns the value of the longest prefix that contains `ip`.
    pub fn lookup(&self, ip: IpAddr) -> Option<&T> {
        match ip {
            IpAddr::V4(ip) => {
                let host = self.v4.hosts.get(&ip.to_bits());
                host.or_else(|| Some(self.v4.nets.get_lpm(&Ipv4Net::from(ip))?.1))
            }
            IpAddr::V6(ip) => {
                let host = self.v6.hosts.get(&ip.to_bits());
                host.or_else(|| Some(self.v6.nets.get_lpm(&Ipv6Net::from(ip))?.1))
            }
        }
    }

    /// Tells whether a prefix contains `ip`.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.lookup(ip).is_some()
    }

    /// Tells whether `matches` holds for the value of any prefix that contains `ip`.
    pub fn any(&self, ip: IpAddr, mut matches: impl FnMut(&T) -> bool) -> bool {
        match ip {
            IpAddr::V4(ip) => {
                self.v4.hosts.get(&ip.to_bits()).is_some_and(&mut matches)
                    || (!self.v4.nets.is_empty() && self.v4.nets.cover_values(&Ipv4Net::from(ip)).any(matches))
            }
            IpAddr::V6(ip) => {
                self.v6.hosts.get(&ip.to_bits()).is_some_and(&mut matches)
                    || (!self.v6.nets.is_empty() && self.v6.nets.cover_values(&Ipv6Net::from(ip)).any(matches))
            }
        }
    }

    /// Tells whether a prefix of the table and `prefix` have an address in common.
    ///
    /// Costs O(host routes) unless `prefix` is a host or its first address is in the table.
    pub fn overlaps(&self, prefix: IpNet) -> bool {
        if self.contains(prefix.network()) {
            return true;
        }
        if prefix.prefix_len() == prefix.max_prefix_len() {
            return false;
        }
        match prefix {
            IpNet::V4(net) => {
                self.v4.nets.children(&net).next().is_some()
                    || self.v4.hosts.keys().any(|&host| net.contains(&Ipv4Addr::from(host)))
            }
            IpNet::V6(net) => {
                self.v6.nets.children(&net).next().is_some()
                    || self.v6.hosts.keys().any(|&host| net.contains(&Ipv6Addr::from(host)))
            }
        }
    }

    /// Tells whether the table has exactly the host route of `ip`.
    pub(crate) fn has_host(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.v4.hosts.contains_key(&ip.to_bits()),
            IpAddr::V6(ip) => self.v6.hosts.contains_key(&ip.to_bits()),
        }
    }

    /// Returns all values in no particular order.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let v4 = self.v4.hosts.values_mut().chain(self.v4.nets.values_mut());
        v4.chain(self.v6.hosts.values_mut()).chain(self.v6.nets.values_mut())
    }

    /// Returns the number of prefixes.
    pub fn len(&self) -> usize {
        self.v4.hosts.len() + self.v4.nets.len() + self.v6.hosts.len() + self.v6.nets.len()
    }

    /// Tells whether there is no prefix.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Extend<(IpNet, T)> for PrefixTable<T> {
    fn extend<I: IntoIterator<Item = (IpNet, T)>>(&mut self, items: I) {
        for (prefix, value) in items {
            self.insert(prefix, value);
        }
    }
}

impl<T> FromIterator<(IpNet, T)> for PrefixTable<T> {
    fn from_iter<I: IntoIterator<Item = (IpNet, T)>>(items: I) -> Self {
        let mut table = Self::new();
        table.extend(items);
        table
    }
}

/// Hashes addresses and flow tuples by folded multiplication, faster than the standard library's hash.
///
/// Tables whose keys a peer chooses must be given a random seed. Iteration order is never used, so that the seed has no
/// visible effect.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct AddressHash {
    pub(crate) seed: u64,
}

impl BuildHasher for AddressHash {
    type Hasher = FoldedHasher;

    fn build_hasher(&self) -> FoldedHasher {
        FoldedHasher { state: self.seed ^ 0x9e37_79b9_7f4a_7c15 }
    }
}

#[derive(Debug)]
pub(crate) struct FoldedHasher {
    state: u64,
}

impl FoldedHasher {
    /// An odd number without pattern; the multiplication spreads every input bit over both halves.
    const FACTOR: u64 = 0xe703_7ed1_a0b4_28db;

    fn mix(&mut self, word: u64) {
        let product = u128::from(self.state ^ word) * u128::from(Self::FACTOR);
        #[expect(clippy::cast_possible_truncation, reason = "folding takes the low half here")]
        let (low, high) = (product as u64, (product >> 64) as u64);
        self.state = (low ^ high).wrapping_add(Self::FACTOR);
    }
}

impl Hasher for FoldedHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.mix(u64::from_ne_bytes(word));
        }
    }

    fn write_u8(&mut self, word: u8) {
        self.mix(word.into());
    }

    fn write_u16(&mut self, word: u16) {
        self.mix(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.mix(word.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }

    fn write_u128(&mut self, word: u128) {
        #[expect(clippy::cast_possible_truncation, reason = "the halves are mixed one after the other")]
        let (low, high) = (word as u64, (word >> 64) as u64);
        self.mix(low);
        self.mix(high);
    }

    fn finish(&self) -> u64 {
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_wins_and_host_routes_are_longest() {
        let mut table = PrefixTable::new();
        table.extend([(net("0.0.0.0/0"), 0), (net("10.0.0.0/8"), 8), (net("10.1.2.3/32"), 32), (net("fd00::/8"), 6)]);
        let lookup = |table: &PrefixTable<i32>, ip: &str| table.lookup(ip.parse().unwrap()).copied();
        assert_eq!(lookup(&table, "10.1.2.3"), Some(32));
        assert_eq!(lookup(&table, "10.1.2.4"), Some(8));
        assert_eq!(lookup(&table, "11.1.2.4"), Some(0));
        assert_eq!(lookup(&table, "fd00::1"), Some(6));
        assert_eq!(lookup(&table, "fe00::1"), None);
        assert_eq!(table.len(), 4);
        assert_eq!(table.remove(net("10.1.2.3/32")), Some(32));
        assert_eq!(lookup(&table, "10.1.2.3"), Some(8));
        assert_eq!(*table.entry(net("10.0.0.0/8"), || 1), 8);
    }

    fn any_net() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (0_u32..64, 24_u8..=32)
                .prop_map(|(bits, len)| { IpNet::new(IpAddr::V4((0x0a00_0000 | bits).into()), len).unwrap().trunc() }),
            (0_u128..64, 120_u8..=128)
                .prop_map(|(bits, len)| IpNet::new(IpAddr::V6((0xfd << 120 | bits).into()), len).unwrap().trunc()),
            Just(net("0.0.0.0/0")),
            Just(net("::/0")),
        ]
    }

    proptest! {
        #[test]
        fn the_table_answers_like_a_list(
            nets in proptest::collection::vec(any_net(), 0..20),
            asked in proptest::collection::vec(any_net(), 1..20),
        ) {
            let mut table = PrefixTable::new();
            for (at, &net) in nets.iter().enumerate() {
                table.insert(net, at);
            }
            for ip in asked.iter().map(IpNet::addr) {
                // Equal prefixes: the later insertion wins, as max_by_key returns the last maximum.
                let containing = || nets.iter().enumerate().filter(|(_, net)| net.contains(&ip));
                let longest = containing().max_by_key(|(_, net)| net.prefix_len()).map(|(at, _)| at);
                prop_assert_eq!(table.lookup(ip).copied(), longest);
                let mut seen = Vec::new();
                table.any(ip, |&at| { seen.push(nets[at]); false });
                seen.sort();
                let mut all: Vec<IpNet> = containing().map(|(_, &net)| net).collect();
                all.sort();
                all.dedup();
                prop_assert_eq!(seen, all);
            }
            for one in asked {
                let overlaps = nets.iter().any(|net| net.contains(&one.network()) || one.contains(&net.network()));
                prop_assert_eq!(table.overlaps(one), overlaps);
            }
        }
    }
}
