//! Sets of addresses that are no single prefix: ipsets and the Internet.

use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

/// Addresses as ranges: of one family each, sorted with IPv4 before IPv6, apart from each other by at least one address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct AddressSet(Vec<(IpAddr, IpAddr)>);

/// A set that still changes: ranges as in [`AddressSet`], each by its first address with its last.
#[derive(Debug, Default)]
pub(crate) struct AddressSetBuilder(BTreeMap<IpAddr, IpAddr>);

/// What `autogroup:internet` stands for (policy.md, section 3.3).
static INTERNET: LazyLock<AddressSet> = LazyLock::new(|| {
    let v4 = |a, b, c, d| IpAddr::V4(Ipv4Addr::new(a, b, c, d));
    let mut set = AddressSetBuilder::default();
    set.add(v4(0, 0, 0, 0), v4(255, 255, 255, 255));
    for (first, last) in [
        (v4(10, 0, 0, 0), v4(10, 255, 255, 255)),
        (v4(100, 64, 0, 0), v4(100, 127, 255, 255)),
        (v4(169, 254, 0, 0), v4(169, 254, 255, 255)),
        (v4(172, 16, 0, 0), v4(172, 31, 255, 255)),
        (v4(192, 168, 0, 0), v4(192, 168, 255, 255)),
    ] {
        set.remove(first, last);
    }
    let last = Ipv6Addr::new(0x3fff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff);
    set.add(IpAddr::V6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0)), IpAddr::V6(last));
    set.finish()
});

impl AddressSetBuilder {
    /// Adds the addresses from `first` to `last`, of one family and in order.
    pub(crate) fn add(&mut self, mut first: IpAddr, mut last: IpAddr) {
        if let Some((start, end)) = self.0.range(..first).next_back().map(|(start, end)| (*start, *end))
            && (end >= first || next(end) == Some(first))
        {
            first = start;
            last = last.max(end);
        }
        for (_, end) in self.take(first, next(last).unwrap_or(last)) {
            last = last.max(end);
        }
        self.0.insert(first, last);
    }

    /// Removes the addresses from `first` to `last`, of one family and in order.
    pub(crate) fn remove(&mut self, first: IpAddr, last: IpAddr) {
        let before = self.0.range(..first).next_back().map(|(start, end)| (*start, *end));
        let cut = before.filter(|(_, end)| *end >= first);
        let inside = self.take(first, last);
        if let (Some((start, _)), Some(end)) = (cut, previous(first)) {
            self.0.insert(start, end);
        }
        if let Some(rest) = next(last) {
            for (_, end) in cut.into_iter().chain(inside).filter(|(_, end)| *end > last) {
                self.0.insert(rest, end);
            }
        }
    }

    /// Takes out the ranges that begin from `first` to `last`.
    fn take(&mut self, first: IpAddr, last: IpAddr) -> Vec<(IpAddr, IpAddr)> {
        let found: Vec<_> = self.0.range(first..=last).map(|(start, end)| (*start, *end)).collect();
        for (start, _) in &found {
            self.0.remove(start);
        }
        found
    }

    /// Returns the set as it is now.
    pub(crate) fn finish(self) -> AddressSet {
        AddressSet(self.0.into_iter().collect())
    }
}

impl AddressSet {
    /// Returns the addresses of the Internet: neither private, nor link-local, nor those of tailnets.
    pub(crate) fn internet() -> &'static Self {
        &INTERNET
    }

    /// Tells whether an address is in the set.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.overlaps_range(address, address)
    }

    /// Tells whether a prefix shares an address with the set.
    pub(crate) fn overlaps(&self, prefix: IpNet) -> bool {
        self.overlaps_range(prefix.network(), prefix.broadcast())
    }

    fn overlaps_range(&self, first: IpAddr, last: IpAddr) -> bool {
        // A range of IPv4 ends before every IPv6 address, so families do not mix here.
        let after = self.0.partition_point(|(start, _)| *start <= last);
        self.0.get(..after).and_then(<[_]>::last).is_some_and(|(_, end)| *end >= first)
    }

    /// Returns the ranges, each with its first and its last address.
    pub(crate) fn ranges(&self) -> &[(IpAddr, IpAddr)] {
        &self.0
    }
}

/// Returns the next address of the family.
fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => u32::from(address).checked_add(1).map(|number| IpAddr::V4(number.into())),
        IpAddr::V6(address) => u128::from(address).checked_add(1).map(|number| IpAddr::V6(number.into())),
    }
}

/// Returns the address before, of the family.
fn previous(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => u32::from(address).checked_sub(1).map(|number| IpAddr::V4(number.into())),
        IpAddr::V6(address) => u128::from(address).checked_sub(1).map(|number| IpAddr::V6(number.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn texts(set: &AddressSet) -> Vec<String> {
        set.ranges().iter().map(|(first, last)| format!("{first}-{last}")).collect()
    }

    #[test]
    fn the_internet_is_what_the_wire_has_for_it() {
        assert_eq!(
            texts(AddressSet::internet()),
            [
                "0.0.0.0-9.255.255.255",
                "11.0.0.0-100.63.255.255",
                "100.128.0.0-169.253.255.255",
                "169.255.0.0-172.15.255.255",
                "172.32.0.0-192.167.255.255",
                "192.169.0.0-255.255.255.255",
                "2000::-3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            ]
        );
        let prefix = |text: &str| text.parse::<IpNet>().unwrap();
        assert!(
            AddressSet::internet().overlaps(prefix("10.0.0.0/7"))
                && !AddressSet::internet().overlaps(prefix("10.0.0.0/8"))
        );
        assert!(
            !AddressSet::internet().overlaps(prefix("fd00::/8")) && AddressSet::internet().overlaps(prefix("::/0"))
        );
    }

    #[test]
    fn the_ends_of_both_families_are_reached() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut set = AddressSetBuilder::default();
        set.add(address("255.255.255.255"), address("255.255.255.255"));
        set.add(address("::"), address("::1"));
        set.remove(address("0.0.0.0"), address("255.255.255.255"));
        set.remove(address("::"), address("::"));
        set.add(address("10.0.0.1"), address("10.0.0.2"));
        set.add(address("255.255.255.255"), address("255.255.255.255"));
        set.add(address("::4"), address("::5"));
        let ranges = ["10.0.0.1-10.0.0.2", "255.255.255.255-255.255.255.255", "::1-::1", "::4-::5"];
        assert_eq!(texts(&set.finish()), ranges);
    }

    proptest! {
        /// Against a set of single addresses, in both families.
        #[test]
        fn agrees_with_single_addresses(steps in proptest::collection::vec(any::<(bool, bool, u8, u8)>(), 0..20)) {
            let address = |v6: bool, last: u8| match v6 {
                true => IpAddr::V6(Ipv6Addr::from(u128::MAX - 255 + u128::from(last))),
                false => IpAddr::V4(Ipv4Addr::from(u32::from(last))),
            };
            let mut set = AddressSetBuilder::default();
            let mut naive = BTreeSet::new();
            for (add, v6, one, two) in steps {
                let (first, last) = (one.min(two), one.max(two));
                if add {
                    set.add(address(v6, first), address(v6, last));
                    naive.extend((first..=last).map(|number| address(v6, number)));
                } else {
                    set.remove(address(v6, first), address(v6, last));
                    naive.retain(|known| !(address(v6, first)..=address(v6, last)).contains(known));
                }
            }
            let set = set.finish();
            for v6 in [false, true] {
                for number in 0..=255 {
                    prop_assert_eq!(set.contains(address(v6, number)), naive.contains(&address(v6, number)));
                }
            }
            for pair in set.ranges().windows(2) {
                prop_assert!(next(pair[0].1).is_none_or(|after| after < pair[1].0), "ranges touch");
            }
        }
    }
}
