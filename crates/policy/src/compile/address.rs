//! Addresses with a meaning of their own, and arithmetic of ranges.

use crate::addresses::{AddressSet, AddressSetBuilder};
use crate::sources::Source;
use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// From the first to the last, of one family.
pub(super) type Range = (IpAddr, IpAddr);

const CGNAT: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
const CHROME_OS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 115, 92, 0), 23);
const TAILNET_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0), 48);

/// Returns the sources that `*` stands for, before the subnet routes: 100.64.0.0/10 without the range that ChromeOS
/// gives its virtual machines (100.115.92.0/23), and the IPv6 range of tailnets.
pub(super) fn wildcard_sources() -> [Source; 3] {
    let range = |first: [u8; 4], last: [u8; 4]| Source::Range(first.into(), last.into());
    [
        range([100, 64, 0, 0], [100, 115, 91, 255]),
        range([100, 115, 94, 0], [100, 127, 255, 255]),
        Source::Prefix(IpNet::V6(TAILNET_V6)),
    ]
}

/// Tells whether `*` as a source covers an address of a node.
pub(super) fn wildcard_covers(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => CGNAT.contains(&address) && !CHROME_OS.contains(&address),
        IpAddr::V6(address) => TAILNET_V6.contains(&address),
    }
}

/// Takes the addresses of nodes away from ranges.
pub(super) fn outside_tailnets(ranges: impl IntoIterator<Item = Range>) -> Vec<Range> {
    let mut set = AddressSetBuilder::default();
    ranges.into_iter().for_each(|(first, last)| set.add(first, last));
    for tailnet in [IpNet::V4(CGNAT), IpNet::V6(TAILNET_V6)] {
        set.remove(tailnet.network(), tailnet.broadcast());
    }
    set.finish().ranges().to_vec()
}

/// Tells whether a range lies wholly within the Internet.
pub(super) fn within_internet(range: Range) -> bool {
    holds_range(AddressSet::internet(), range)
}

/// Tells whether a set holds all of the Internet.
pub(super) fn holds_internet(set: &AddressSet) -> bool {
    AddressSet::internet().ranges().iter().all(|range| holds_range(set, *range))
}

fn holds_range(set: &AddressSet, (first, last): Range) -> bool {
    set.ranges().iter().any(|range| range_holds(*range, first) && range_holds(*range, last))
}

pub(super) fn range_of(prefix: IpNet) -> Range {
    (prefix.network(), prefix.broadcast())
}

pub(super) fn range_holds((first, last): Range, address: IpAddr) -> bool {
    first <= address && address <= last
}

pub(super) fn range_overlaps(one: Range, two: Range) -> bool {
    // All of IPv4 is before all of IPv6, so families do not mix.
    one.0 <= two.1 && two.0 <= one.1
}

/// Tells whether two prefixes share an address.
pub(super) fn overlap(one: IpNet, two: IpNet) -> bool {
    one.contains(&two) || two.contains(&one)
}

/// Returns the fewest prefixes that cover a range.
pub(super) fn prefixes((first, last): Range) -> Vec<IpNet> {
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect(),
        (IpAddr::V6(first), IpAddr::V6(last)) => Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect(),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Vec::new(),
    }
}

/// Returns a range as the wire names it: an address or a prefix, if it is one.
pub(super) fn source_of(range: Range) -> Source {
    match prefixes(range).as_slice() {
        [prefix] => Source::from(*prefix),
        _ => Source::Range(range.0, range.1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_nodes_are_taken_away() {
        let outside = |prefix: &str| -> Vec<String> {
            let ranges = outside_tailnets([range_of(prefix.parse().unwrap())]);
            ranges.into_iter().map(|range| source_of(range).to_string()).collect()
        };
        assert_eq!(outside("10.0.0.0/8"), ["10.0.0.0/8"]);
        assert_eq!(outside("100.64.0.0/16"), [""; 0]);
        assert_eq!(outside("100.0.0.0/8"), ["100.0.0.0/10", "100.128.0.0/9"]);
        assert_eq!(outside("0.0.0.0/0"), ["0.0.0.0-100.63.255.255", "100.128.0.0-255.255.255.255"]);
        assert_eq!(outside("fd7a:115c:a1e0:1::/64"), [""; 0]);
    }

    #[test]
    fn ranges_meet_within_their_family_only() {
        let range = |prefix: &str| range_of(prefix.parse::<IpNet>().unwrap());
        assert!(range_overlaps(range("10.0.0.0/8"), range("10.1.0.0/16")));
        assert!(!range_overlaps(range("0.0.0.0/0"), range("::/0")) && !range_holds(range("::/0"), [1, 1, 1, 1].into()));
        assert!(within_internet(range("8.8.8.0/24")) && !within_internet(range("8.0.0.0/5")));
        assert!(within_internet(range("2001:db8::/32")) && !within_internet(range("::/0")));
    }
}
