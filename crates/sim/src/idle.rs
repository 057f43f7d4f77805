//! What an idle node costs.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::nat::{Dependence, Firewall, Nat, NatKind, Ports};
use crate::network::{Host, INTERNET, Router, V4};
use crate::world::{Count, World};

/// Time until a fresh tailnet is at rest.
const BOOT: Duration = Duration::from_secs(300);
const HOUR: Duration = Duration::from_secs(3600);

/// Returns what one of `peers` + 1 nodes, each at home behind an easy NAT, does in an hour without any packet.
#[must_use]
pub fn hour(peers: u8) -> Count {
    let mut world: World<()> = World::new(1, &[0, 25, 60]);
    for number in 0..=peers {
        let kind = NatKind {
            mapping: Dependence::None,
            filtering: Dependence::AddressAndPort,
            ports: Ports::Preserved,
            timeout: Duration::from_secs(30),
            hairpin: false,
        };
        let (_, zone) = world.network.add_router(Router {
            outer: INTERNET,
            inner_v4: Ipv4Addr::new(192, 168, 1, 1),
            v4: V4::Nat(Nat::new(kind, Ipv4Addr::new(45, 0, 0, number))),
            v6: Firewall::new(Duration::from_secs(60)),
            blocks_udp: false,
            maps_ports: None,
            speaks_upnp: false,
            has_portal: false,
            is_captive: false,
            position: number.into(),
        });
        let host = world.network.add_host(Host {
            zone,
            v4: Some(Ipv4Addr::new(192, 168, 1, 2)),
            v6: None,
            position: number.into(),
            loss: 0,
            jitter: Duration::ZERO,
        });
        world.add_node(host);
    }
    world.run(world.now() + BOOT);
    let before = world.counts[0];
    world.run(world.now() + HOUR);
    let after = world.counts[0];
    let less = |(a, b): (u64, u64), (c, d): (u64, u64)| (a - c, b - d);
    Count {
        wakes: after.wakes - before.wakes,
        peer: less(after.peer, before.peer),
        stun: less(after.stun, before.stun),
        gateway: less(after.gateway, before.gateway),
        relayed: less(after.relayed, before.relayed),
        keep_alives: after.keep_alives - before.keep_alives,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_node_sends_nothing_to_anybody() {
        let count = hour(5);
        assert_eq!((count.peer, count.relayed, count.stun, count.gateway), ((0, 0), (0, 0), (0, 0), (0, 0)));
        assert_eq!(count.keep_alives, 60);
    }
}
