//! Sets of addresses with a meaning of their own.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Text of the sources that `*` stands for, before the subnet routes: 100.64.0.0/10 without the range that ChromeOS
/// gives its virtual machines (100.115.92.0/23), and the IPv6 range of tailnets.
pub(super) const WILDCARD_SOURCES: [&str; 3] =
    ["100.64.0.0-100.115.91.255", "100.115.94.0-100.127.255.255", "fd7a:115c:a1e0::/48"];

const CGNAT: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
const CHROME_OS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 115, 92, 0), 23);
const TAILNET_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0), 48);

/// What is not the Internet, in IPv4.
const NOT_INTERNET: [Ipv4Net; 5] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
    CGNAT,
];
const INTERNET_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// Tells whether `*` as a source covers an address of a node.
pub(super) fn wildcard_covers(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => CGNAT.contains(&address) && !CHROME_OS.contains(&address),
        IpAddr::V6(address) => TAILNET_V6.contains(&address),
    }
}

/// Tells whether a prefix lies wholly within the Internet.
pub(super) fn within_internet(prefix: IpNet) -> bool {
    match prefix {
        IpNet::V4(prefix) => NOT_INTERNET.iter().all(|private| !private.contains(&prefix) && !prefix.contains(private)),
        IpNet::V6(prefix) => INTERNET_V6.contains(&prefix),
    }
}

/// Tells whether two prefixes share an address.
pub(super) fn overlap(one: IpNet, two: IpNet) -> bool {
    one.contains(&two) || two.contains(&one)
}

/// Writes a prefix; a single address stands bare.
pub(super) fn prefix_text(prefix: IpNet) -> String {
    if prefix.prefix_len() == prefix.max_prefix_len() { prefix.addr().to_string() } else { prefix.to_string() }
}
