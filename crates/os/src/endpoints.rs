//! Which addresses of this machine can be told to peers.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};

use crate::ifname::IfIndex;
use crate::netlink::Interface;

/// Addresses of one IPv6 subnet that are told at most; temporary addresses would pile up otherwise.
const MAX_PER_IPV6_SUBNET: usize = 2;

/// Picks the addresses at which peers on the same network may reach us, in interface order, without repetition.
///
/// Only interfaces that are up count, and neither `own_tun` nor those of other overlay networks (`zt*`, `wt0`): two
/// overlays that carry each other multiply traffic without bound. Never picked are the tailnet's own ranges, IPv6
/// link-local and addresses that the kernel does not use. IPv4 link-local and unique local IPv6 addresses are a last
/// resort when nothing else exists, and loopback addresses when even these do not.
///
/// Source: `tailscale: net/netmon` and `wgengine/magicsock`, see paths.md 5.1.
pub fn endpoint_addresses(interfaces: &[Interface], own_tun: Option<IfIndex>) -> Vec<IpAddr> {
    let mut found: [Vec<IpAddr>; 3] = Default::default();
    let mut per_subnet: BTreeMap<Ipv6Net, usize> = BTreeMap::new();
    for interface in interfaces {
        if !interface.up || Some(interface.index) == own_tun || is_other_overlay(&interface.name) {
            continue;
        }
        for net in &interface.addresses {
            let Some(rank) = rank(net) else { continue };
            if let IpNet::V6(net) = net
                && rank == Rank::Regular
            {
                let count = per_subnet.entry(net.trunc()).or_default();
                *count += 1;
                if *count > MAX_PER_IPV6_SUBNET {
                    continue;
                }
            }
            let [regular, fallback, loopback] = &mut found;
            let list = match rank {
                Rank::Regular => regular,
                Rank::Fallback => fallback,
                Rank::Loopback => loopback,
            };
            if !list.contains(&net.addr()) {
                list.push(net.addr());
            }
        }
    }
    found.into_iter().find(|list| !list.is_empty()).unwrap_or_default()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rank {
    Regular,
    Fallback,
    Loopback,
}

fn rank(net: &IpNet) -> Option<Rank> {
    let ip = net.addr();
    if ip.is_unspecified() || ip.is_multicast() || is_tailnet_address(ip) {
        return None;
    }
    if ip.is_loopback() {
        return Some(Rank::Loopback);
    }
    match ip {
        IpAddr::V4(ip) if ip.is_link_local() => Some(Rank::Fallback),
        IpAddr::V4(ip) if ip.is_broadcast() => None,
        IpAddr::V4(_) => Some(Rank::Regular),
        IpAddr::V6(ip) if ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some() => None,
        IpAddr::V6(ip) if ip.is_unique_local() => Some(Rank::Fallback),
        IpAddr::V6(_) => Some(Rank::Regular),
    }
}

fn is_other_overlay(name: &str) -> bool {
    name == "wt0" || name.starts_with("zt")
}

/// Tells whether an address lies in the ranges that tailnets number their nodes from.
fn is_tailnet_address(ip: IpAddr) -> bool {
    const UNIQUE_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0);
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            a == 100 && b & 0xc0 == 64
        }
        IpAddr::V6(ip) => ip.segments().first_chunk::<3>() == UNIQUE_LOCAL.segments().first_chunk::<3>(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, name: &str, addresses: &[&str]) -> Interface {
        Interface {
            index: IfIndex(index),
            name: name.to_owned(),
            up: true,
            loopback: name == "lo",
            mtu_bytes: 1500,
            addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
        }
    }

    fn picked(interfaces: &[Interface]) -> Vec<String> {
        endpoint_addresses(interfaces, Some(IfIndex(9))).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn regular_addresses_win_over_local_ones() {
        let all = [
            interface(1, "lo", &["127.0.0.1/8", "::1/128"]),
            interface(2, "eth0", &["192.168.1.2/24", "169.254.3.4/16", "fe80::1/64", "fd00::1/64", "2001:db8::1/64"]),
        ];
        assert_eq!(picked(&all), ["192.168.1.2", "2001:db8::1"]);
    }

    #[test]
    fn overlays_downed_interfaces_and_tailnet_ranges_are_left_out() {
        let mut down = interface(5, "eth1", &["192.0.2.9/24"]);
        down.up = false;
        let all = [
            interface(2, "zt3jnkd", &["10.1.0.1/24"]),
            interface(3, "wt0", &["10.2.0.1/24"]),
            interface(9, "warren0", &["10.3.0.1/24"]),
            interface(4, "eth0", &["100.64.0.1/10", "100.127.255.255/32", "fd7a:115c:a1e0::1/48", "100.128.0.1/24"]),
            down,
        ];
        assert_eq!(picked(&all), ["100.128.0.1"]);
    }

    #[test]
    fn local_addresses_are_a_last_resort() {
        let mut all = vec![
            interface(1, "lo", &["127.0.0.1/8", "::1/128"]),
            interface(2, "eth0", &["169.254.3.4/16", "fe80::1/64", "fd00::1/64"]),
        ];
        assert_eq!(picked(&all), ["169.254.3.4", "fd00::1"]);
        all.pop();
        assert_eq!(picked(&all), ["127.0.0.1", "::1"]);
    }

    #[test]
    fn a_subnet_gives_at_most_two_ipv6_addresses_and_none_twice() {
        let all = [
            interface(1, "eth0", &["2001:db8::1/64", "2001:db8::2/64", "2001:db8::3/64", "2001:db8:0:1::1/64"]),
            interface(2, "eth1", &["2001:db8:0:1::1/64"]),
        ];
        assert_eq!(picked(&all), ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"]);
    }
}
