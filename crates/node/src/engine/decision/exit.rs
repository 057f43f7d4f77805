//! Exit nodes: which one is used, and what this node passes on if it is one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use warren_os::{IfIndex, Interface};
use warren_wire::control::RegionId;
use warren_wire::key::NodeKey;

use crate::engine::ExitChoice;
use crate::netmap::Peer;

/// The attribute of exit nodes that an administrator recommends. Source: Tailscale `tailcfg`, `NodeAttrSuggestExitNode`.
const SUGGESTED: &str = "suggest-exit-node";

/// What no exit node passes on, even if it is asked to: networks that are somebody's own, and addresses that are no single
/// machine's. Source: Tailscale `ipn/ipnlocal`, `removeFromDefaultRoute`, and RFC 6890.
const NEVER_V4: [Ipv4Net; 9] = [
    net4([0, 0, 0, 0], 8),
    net4([10, 0, 0, 0], 8),
    net4([100, 64, 0, 0], 10),
    net4([127, 0, 0, 0], 8),
    net4([169, 254, 0, 0], 16),
    net4([172, 16, 0, 0], 12),
    net4([192, 168, 0, 0], 16),
    net4([224, 0, 0, 0], 4),
    net4([240, 0, 0, 0], 4),
];

/// All of IPv6 that is the Internet: global unicast. Source: RFC 4291, section 2.4, and the registry of IANA.
const INTERNET_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

const fn net4([a, b, c, d]: [u8; 4], bits: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), bits)
}

/// Tells whether a peer takes packets for the Internet: of both families, for with one alone the other would pass by.
pub(super) fn offers(peer: &Peer) -> bool {
    let has = |is_v4: bool| peer.allowed_ips().iter().any(|net| net.prefix_len() == 0 && net.addr().is_ipv4() == is_v4);
    has(true) && has(false)
}

/// Returns the peer that is the exit node; `None` if there is none that can be one. `before` is the one that was, and `home`
/// the own home relay.
pub(super) fn choose<'a>(
    choice: &ExitChoice,
    before: Option<NodeKey>,
    home: Option<RegionId>,
    peers: impl Iterator<Item = &'a Peer>,
) -> Option<NodeKey> {
    let mut able = peers.filter(|peer| offers(peer));
    match choice {
        ExitChoice::Id(id) => able.find(|peer| peer.node().stable_id == *id).map(Peer::key),
        ExitChoice::Address(address) => {
            able.find(|peer| peer.addresses().iter().any(|own| own.addr() == *address)).map(Peer::key)
        }
        ExitChoice::Any => {
            // Connections break when another takes over: the one that serves goes on while it can.
            let rank = |peer: &Peer| {
                let other = Some(peer.key()) != before;
                let far = home.is_none() || peer.home_relay() != home;
                (!peer.node().cap_map.has(SUGGESTED), other, far, peer.id())
            };
            let online = able.filter(|peer| peer.node().online != Some(false));
            online.min_by_key(|peer| rank(peer)).map(Peer::key)
        }
    }
}

/// Returns the networks that this machine is in, and its own addresses, by its interfaces besides the tunnel's.
pub(super) fn surroundings(interfaces: &[Interface], tunnel: IfIndex) -> Vec<IpNet> {
    let others = interfaces.iter().filter(|interface| interface.index != tunnel && !interface.loopback);
    let mut nets: Vec<IpNet> = others.flat_map(|interface| interface.addresses.iter().copied()).collect();
    nets.sort_unstable();
    nets.dedup();
    nets
}

/// Returns what an exit node passes on of a default route: the Internet without the networks that it is in. Its own
/// addresses in them can be reached if they are of the Internet.
///
/// Source: Tailscale `ipn/ipnlocal`, `shrinkDefaultRoute`.
pub(super) fn internet(default: IpNet, surroundings: &[IpNet]) -> Vec<IpNet> {
    let (whole, mut holes): (IpNet, Vec<IpNet>) = match default {
        IpNet::V4(_) => (default, NEVER_V4.iter().copied().map(IpNet::V4).collect()),
        IpNet::V6(_) => (INTERNET_V6.into(), Vec::new()),
    };
    let never = holes.clone();
    holes.extend(surroundings.iter().map(IpNet::trunc));
    let mut rest = Vec::new();
    subtract(whole, &holes, &mut rest);
    let is_internet = |ip: &IpAddr| whole.contains(ip) && !never.iter().any(|net| net.contains(ip));
    rest.extend(surroundings.iter().map(IpNet::addr).filter(is_internet).map(IpNet::from));
    rest
}

/// Appends what of `net` lies in none of `holes`, in prefixes as short as possible.
fn subtract(net: IpNet, holes: &[IpNet], rest: &mut Vec<IpNet>) {
    if holes.iter().any(|hole| hole.contains(&net)) {
        return;
    }
    let inside: Vec<IpNet> = holes.iter().copied().filter(|hole| net.contains(hole)).collect();
    match net.subnets(net.prefix_len().saturating_add(1)) {
        // A hole inside is longer than the net, so that the halves exist; each step comes closer to it.
        Ok(halves) if !inside.is_empty() => halves.for_each(|half| subtract(half, &inside, rest)),
        Ok(_) | Err(_) => rest.push(net),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use warren_wire::control::{Node, NodeId};

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn peer(number: u8, online: Option<bool>, routes: &[&str]) -> Peer {
        let own = [100, 64, 0, number];
        let mut allowed = nets(routes);
        allowed.push(IpAddr::from(own).into());
        let node = Node {
            id: NodeId(number.into()),
            stable_id: format!("n{number}"),
            key: NodeKey::from_bytes([number; 32]),
            addresses: vec![IpAddr::from(own).into()],
            allowed_ips: Some(allowed),
            online,
            ..Node::default()
        };
        Peer::admit(node, None).unwrap()
    }

    const BOTH: [&str; 2] = ["0.0.0.0/0", "::/0"];

    fn key(number: u8) -> Option<NodeKey> {
        Some(NodeKey::from_bytes([number; 32]))
    }

    #[test]
    fn who_is_named_must_offer_both_families_and_may_be_away() {
        let peers = [peer(1, None, &["0.0.0.0/0"]), peer(2, Some(false), &BOTH), peer(3, None, &BOTH)];
        let by_id = |id: &str| choose(&ExitChoice::Id(id.into()), None, None, peers.iter());
        let by_address = |last| choose(&ExitChoice::Address([100, 64, 0, last].into()), None, None, peers.iter());
        assert_eq!((by_id("n1"), by_id("n2"), by_id("n3"), by_id("n4")), (None, key(2), key(3), None));
        assert_eq!((by_address(1), by_address(2), by_address(4)), (None, key(2), None));
    }

    #[test]
    fn any_is_one_that_is_online_and_stays_while_it_is() {
        let any = |before, peers: &[Peer]| choose(&ExitChoice::Any, before, None, peers.iter());
        let peers = [peer(1, Some(false), &BOTH), peer(2, Some(true), &BOTH), peer(3, Some(true), &BOTH)];
        assert_eq!(any(None, &peers), key(2));
        assert_eq!(any(key(3), &peers), key(3));
        assert_eq!(any(key(1), &peers), key(2));
        assert_eq!(any(key(1), &peers[..1]), None, "rather none than one that is away");
    }

    #[test]
    fn an_exit_node_passes_nothing_on_into_its_own_networks() {
        let own = nets(&["192.168.7.3/24", "9.9.9.3/24", "2a00:1::3/64", "fd00::3/64"]);
        let four = internet(BOTH[0].parse().unwrap(), &own);
        let six = internet(BOTH[1].parse().unwrap(), &own);
        let has = |text: &str| four.iter().chain(&six).any(|net| net.contains(&text.parse::<IpAddr>().unwrap()));
        for inside in ["9.9.8.1", "1.1.1.1", "223.255.255.255", "2a00:2::1", "9.9.9.3", "2a00:1::3"] {
            assert!(has(inside), "{inside}");
        }
        for outside in [
            "9.9.9.4",
            "192.168.7.3",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "224.0.0.1",
            "2a00:1::4",
            "fd00::3",
            "fe80::1",
            "::1",
        ] {
            assert!(!has(outside), "{outside}");
        }
    }

    fn arb_net() -> impl Strategy<Value = Ipv4Net> {
        (any::<u32>(), 0u8..=32).prop_map(|(bits, length)| Ipv4Net::new(bits.into(), length).unwrap().trunc())
    }

    proptest! {
        #[test]
        fn what_is_left_is_what_lies_in_no_hole(holes in proptest::collection::vec(arb_net(), 0..6), probe in any::<u32>()) {
            let holes: Vec<IpNet> = holes.into_iter().map(IpNet::V4).collect();
            let mut rest = Vec::new();
            subtract(BOTH[0].parse().unwrap(), &holes, &mut rest);
            for probe in std::iter::once(IpAddr::V4(probe.into())).chain(holes.iter().flat_map(|hole| [hole.network(), hole.broadcast()])) {
                let inside = holes.iter().any(|hole| hole.contains(&probe));
                prop_assert_eq!(rest.iter().filter(|net| net.contains(&probe)).count(), usize::from(!inside));
            }
            prop_assert!(rest.len() <= 32 * holes.len() + 1);
        }
    }
}
