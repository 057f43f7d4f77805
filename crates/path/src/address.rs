//! Which addresses a peer, or we, may have on the networks below the tailnet.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Stands for a relay region where the protocol wants an address; the port is the region.
///
/// Source: Tailscale `tailcfg`, `DerpMagicIP`.
pub(crate) const RELAY_IP: Ipv4Addr = Ipv4Addr::new(127, 3, 3, 40);

/// Returns the plain form of an address: IPv4 as IPv4, without scope and flow label.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Tells whether a datagram from this address may be answered: a host's, and not from inside a tailnet, where an
/// answer would travel through the tunnel whose path it is about.
pub(crate) fn is_answerable(address: SocketAddr) -> bool {
    let is_host = match address.ip().to_canonical() {
        IpAddr::V4(ip) => !(ip.octets()[0] == 0 || ip.is_multicast() || ip.is_broadcast() || ip == RELAY_IP),
        IpAddr::V6(ip) => !(ip.is_unspecified() || ip.is_multicast()),
    };
    is_host && address.port() != 0 && !is_tailnet(address.ip())
}

/// Tells whether a node may be sought at this address when somebody else names it: that of a host outside of tailnets, with a
/// port. Link-local IPv6 addresses are not: their scope does not travel.
#[must_use]
pub fn is_usable(address: SocketAddr) -> bool {
    is_answerable(address) && !matches!(address.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// Tells whether an address is of the ranges that tailnets give their nodes.
fn is_tailnet(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => matches!(ip.octets(), [100, 64..=127, ..]),
        IpAddr::V6(ip) => matches!(ip.segments(), [0xfd7a, 0x115c, 0xa1e0, ..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_nobodys_are_refused() {
        for text in [
            "0.0.0.0:1",
            "0.1.2.3:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "192.0.2.1:0",
            "100.64.0.1:1",
            "100.127.255.255:1",
            "127.3.3.40:1",
            "[::]:1",
            "[ff02::1]:1",
            "[fe80::1]:1",
            "[fd7a:115c:a1e0::1]:1",
            "[fd7a:115c:a1e0:b1a::1]:1",
            "[::ffff:100.64.0.1]:1",
            "[::ffff:0.0.0.0]:1",
            "[2001:db8::1]:0",
        ] {
            assert!(!is_usable(text.parse().unwrap()), "{text}");
        }
        for text in [
            "192.0.2.1:1",
            "10.0.0.1:65535",
            "100.63.255.255:1",
            "100.128.0.0:1",
            "169.254.1.1:1",
            "127.0.0.1:1",
            "[2001:db8::1]:1",
            "[fd7a:115c:a1e1::1]:1",
            "[::1]:1",
        ] {
            assert!(is_usable(text.parse().unwrap()), "{text}");
        }
        assert!(is_answerable("[fe80::1]:1".parse().unwrap()));
    }
}
