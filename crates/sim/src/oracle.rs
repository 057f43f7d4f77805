//! Which pairs can be direct by the techniques that nodes have, by the kinds of the NATs between them.

use crate::nat::Dependence;
use crate::network::{HostId, INTERNET, Network, RouterId, V4};

/// How a host's IPv4 looks from the Internet, all its routers taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Face {
    mapping: Dependence,
    filtering: Dependence,
}

/// Tells whether two hosts must become direct. What only hairpins, forwarded ports or guessed ports can do does not
/// count: such pairs may.
#[must_use]
pub fn must_be_direct(network: &Network, one: HostId, other: HostId) -> bool {
    let (a, b) = (&network.hosts[one], &network.hosts[other]);
    let (of_a, of_b) = (network.uplinks(a.zone), network.uplinks(b.zone));
    let is_shared = |id: &RouterId| of_a.contains(id) && of_b.contains(id);
    let is_blocked = of_a.iter().chain(&of_b).any(|id| !is_shared(id) && network.routers[*id].blocks_udp);
    if is_blocked || network.is_captive(one) || network.is_captive(other) {
        return false;
    }
    if a.v6.is_some() && b.v6.is_some() {
        return true;
    }
    let (Some(v4), Some(_)) = (a.v4, b.v4) else { return false };
    if a.zone == b.zone && a.zone != INTERNET {
        // A carrier's shared addresses are not told to peers: they look like a tailnet's.
        return !matches!(v4.octets(), [100, 64..=127, ..]);
    }
    if of_a.iter().any(is_shared) {
        return false;
    }
    let (a, b) = (face(network, &of_a), face(network, &of_b));
    match (a.mapping, b.mapping) {
        (Dependence::None, Dependence::None) => true,
        // The hard side's port is not known, but whoever was sent to may come from any.
        (Dependence::None, _) => a.filtering != Dependence::AddressAndPort,
        (_, Dependence::None) => b.filtering != Dependence::AddressAndPort,
        _ => false,
    }
}

fn face(network: &Network, routers: &[RouterId]) -> Face {
    let open = Face { mapping: Dependence::None, filtering: Dependence::None };
    routers.iter().fold(open, |face, id| {
        let (mapping, filtering) = match &network.routers[*id].v4 {
            V4::Nat(nat) | V4::Nat64(nat) => (nat.kind.mapping, nat.kind.filtering),
            V4::Firewall(_) => (Dependence::None, Dependence::AddressAndPort),
        };
        Face { mapping: face.mapping.max(mapping), filtering: face.filtering.max(filtering) }
    })
}
