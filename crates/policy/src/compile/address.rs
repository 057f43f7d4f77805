//! Addresses with a meaning of their own, and arithmetic of ranges.

use crate::addresses::AddressSet;
use crate::sources::Source;
use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// From the first to the last, of one family.
pub(super) type Range = (IpAddr, IpAddr);

const CGNAT: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
const CHROME_OS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 115, 92, 0), 23);
const TAILNET_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0), 48);

/// What is not the Internet, in IPv4.
const NOT_INTERNET: [Ipv4Net; 5] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
    CGNAT,
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
];
const INTERNET_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

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

/// Returns the Internet as ranges.
pub(super) fn internet() -> Vec<Range> {
    let all = range_of(IpNet::V4(Ipv4Net::default()));
    let v4 = subtract(vec![all], &NOT_INTERNET.map(|net| range_of(IpNet::V4(net))));
    v4.into_iter().chain([range_of(IpNet::V6(INTERNET_V6))]).collect()
}

/// Tells whether `*` as a source covers an address of a node.
pub(super) fn wildcard_covers(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => CGNAT.contains(&address) && !CHROME_OS.contains(&address),
        IpAddr::V6(address) => TAILNET_V6.contains(&address),
    }
}

/// Takes the addresses of nodes away from ranges.
pub(super) fn outside_tailnets(ranges: Vec<Range>) -> Vec<Range> {
    subtract(ranges, &[range_of(IpNet::V4(CGNAT)), range_of(IpNet::V6(TAILNET_V6))])
}

/// Tells whether a range lies wholly within the Internet.
pub(super) fn within_internet((first, last): Range) -> bool {
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            NOT_INTERNET.iter().all(|private| last < private.network() || private.broadcast() < first)
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => INTERNET_V6.contains(&first) && INTERNET_V6.contains(&last),
        (IpAddr::V4(_) | IpAddr::V6(_), _) => false,
    }
}

/// Tells whether a set holds all of the Internet.
pub(super) fn holds_internet(set: &AddressSet) -> bool {
    internet().iter().all(|(first, last)| set.ranges().iter().any(|range| range.0 <= *first && *last <= range.1))
}

pub(super) fn range_of(prefix: IpNet) -> Range {
    (prefix.network(), prefix.broadcast())
}

pub(super) fn range_holds((first, last): Range, address: IpAddr) -> bool {
    first <= address && address <= last && first.is_ipv4() == address.is_ipv4()
}

pub(super) fn range_overlaps(one: Range, two: Range) -> bool {
    one.0 <= two.1 && two.0 <= one.1 && one.0.is_ipv4() == two.0.is_ipv4()
}

/// Tells whether two prefixes share an address.
pub(super) fn overlap(one: IpNet, two: IpNet) -> bool {
    one.contains(&two) || two.contains(&one)
}

/// Returns the prefixes that make up a range.
pub(super) fn prefixes((first, last): Range) -> Vec<IpNet> {
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect(),
        (IpAddr::V6(first), IpAddr::V6(last)) => Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect(),
        (IpAddr::V4(_) | IpAddr::V6(_), _) => Vec::new(),
    }
}

/// Returns a range as the wire names it: an address or a prefix, if it is one.
pub(super) fn source_of(range: Range) -> Source {
    match prefixes(range).as_slice() {
        [prefix] => Source::from(*prefix),
        _ => Source::Range(range.0, range.1),
    }
}

fn subtract(mut ranges: Vec<Range>, less: &[Range]) -> Vec<Range> {
    for hole in less {
        ranges = ranges
            .into_iter()
            .flat_map(|range| {
                if !range_overlaps(range, *hole) {
                    return [Some(range), None];
                }
                let before = previous(hole.0).filter(|last| range.0 < hole.0 && range.0 <= *last);
                let after = following(hole.1).filter(|first| *first <= range.1);
                [before.map(|last| (range.0, last)), after.map(|first| (first, range.1))]
            })
            .flatten()
            .collect();
    }
    ranges
}

fn previous(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => address.to_bits().checked_sub(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(address) => address.to_bits().checked_sub(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

fn following(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => address.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(address) => address.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(ranges: Vec<Range>) -> Vec<String> {
        ranges.into_iter().map(|range| source_of(range).to_string()).collect()
    }

    /// Policy reference, section 3.3.
    #[test]
    fn internet_is_what_is_not_private() {
        let expected = [
            "0.0.0.0-9.255.255.255",
            "11.0.0.0-100.63.255.255",
            "100.128.0.0-169.253.255.255",
            "169.255.0.0-172.15.255.255",
            "172.32.0.0-192.167.255.255",
            "192.169.0.0-255.255.255.255",
            "2000::-3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ];
        let texts: Vec<String> = internet().iter().map(|range| Source::Range(range.0, range.1).to_string()).collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn addresses_of_nodes_are_taken_away() {
        let outside = |prefix: &str| texts(outside_tailnets(vec![range_of(prefix.parse().unwrap())]));
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
