//! The interface: its addresses and the routes to it.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use warren_os::{IfIndex, Netlink, NetlinkError};

use crate::netmap::Peer;

/// Addresses of nodes, IPv4. One route for all spares a route for each peer.
const RANGE_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
/// Addresses of nodes, IPv6.
const RANGE_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0), 48);
/// Most routes that are given to the kernel; a tailnet with more subnets needs a policy that shows a node fewer.
const MAX_ROUTES: usize = 4096;

/// Returns the prefixes of which `peer` is the owner for this node: its own addresses, and what it routes if the user
/// wants that. Never the whole Internet, for which an exit node must have been chosen.
pub(super) fn prefixes(peer: &Peer, accept_routes: bool) -> impl Iterator<Item = IpNet> {
    peer.allowed_ips()
        .iter()
        .copied()
        .filter(move |net| net.prefix_len() > 0 && (accept_routes || peer.addresses().contains(net)))
}

/// Returns the prefixes to be routed to the interface, in order.
pub(super) fn routes<'a>(own: &[IpNet], peers: impl Iterator<Item = &'a Peer>, accept_routes: bool) -> Vec<IpNet> {
    let has_v4 = own.iter().any(|net| net.addr().is_ipv4());
    let has_v6 = own.iter().any(|net| net.addr().is_ipv6());
    let usable = |net: &IpNet| if net.addr().is_ipv4() { has_v4 } else { has_v6 };
    let ranges = [IpNet::V4(RANGE_V4), IpNet::V6(RANGE_V6)];
    let beyond = peers.flat_map(|peer| prefixes(peer, accept_routes));
    let beyond = beyond.filter(|net| !ranges.iter().any(|range| range.contains(net)));
    let mut all: Vec<IpNet> = ranges.into_iter().chain(beyond).filter(usable).collect();
    all.sort_unstable();
    all.dedup();
    all.truncate(MAX_ROUTES);
    all
}

/// Changes the interface. What it makes hangs on the interface, so that the kernel removes it with the interface.
#[derive(Debug)]
pub(in crate::engine) struct Machine {
    netlink: Netlink,
    index: IfIndex,
    wanted: Option<Wanted>,
    /// Troubles of the last change, for people.
    troubles: Vec<String>,
}

/// Says what is known of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum Link {
    /// It is up.
    Up,
    /// It is down, or nobody has looked.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    addresses: Vec<IpNet>,
    routes: Vec<IpNet>,
}

impl Machine {
    /// Takes charge of an interface.
    pub(in crate::engine) fn new(netlink: Netlink, index: IfIndex) -> Self {
        Self { netlink, index, wanted: None, troubles: Vec::new() }
    }

    /// Returns the kernel's interface, for listing.
    pub(in crate::engine) fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    /// Returns the interface's number.
    pub(in crate::engine) fn index(&self) -> IfIndex {
        self.index
    }

    /// Tells whether the interface is up.
    pub(in crate::engine) fn is_up(&self) -> bool {
        self.wanted.is_some()
    }

    /// Returns what could not be done, for people.
    pub(in crate::engine) fn troubles(&self) -> &[String] {
        &self.troubles
    }

    /// Gives the interface these addresses and routes and no others.
    pub(in crate::engine) async fn set_up(&mut self, addresses: &[IpNet], routes: Vec<IpNet>) {
        let wanted = Wanted { addresses: addresses.to_vec(), routes };
        if self.wanted.as_ref() != Some(&wanted) {
            self.wanted = Some(wanted);
            self.sync(Link::Unknown).await;
        }
    }

    /// Makes good what others have changed. Says nothing to the kernel if there is nothing to change, for every word
    /// comes back as a change of the network.
    pub(in crate::engine) async fn sync(&mut self, link: Link) {
        let Some(wanted) = self.wanted.clone() else { return };
        self.troubles = match self.apply(&wanted, link).await {
            Ok(troubles) => troubles,
            Err(error) => vec![format!("the tunnel's interface is not set up: {error}")],
        };
    }

    async fn apply(&self, wanted: &Wanted, link: Link) -> Result<Vec<String>, NetlinkError> {
        let addresses = self.netlink.sync_addresses(self.index, &wanted.addresses).await?;
        if link != Link::Up {
            self.netlink.set_up(self.index).await?;
        }
        let routes = self.netlink.sync_routes(self.index, &wanted.routes).await?;
        let address = addresses.refused.iter().map(|(net, error)| format!("no address {net}: {error}"));
        let route = routes.refused.iter().map(|(net, error)| format!("no route to {net}: {error}"));
        Ok(address.chain(route).take(8).collect())
    }

    /// Takes all addresses and routes away and the interface down.
    pub(in crate::engine) async fn set_down(&mut self) {
        self.wanted = None;
        self.troubles.clear();
        let result = async {
            self.netlink.sync_routes(self.index, &[]).await?;
            self.netlink.sync_addresses(self.index, &[]).await?;
            self.netlink.set_down(self.index).await
        };
        if let Err(error) = result.await {
            // What is left goes with the interface.
            tracing::debug!(%error, "the interface is not taken down");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_wire::control::{Node, NodeId};
    use warren_wire::key::NodeKey;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn peer(addresses: &[&str], allowed: &[&str]) -> Peer {
        let node = Node {
            id: NodeId(7),
            key: NodeKey::from_bytes([7; 32]),
            addresses: nets(addresses),
            allowed_ips: Some(nets(allowed)),
            ..Node::default()
        };
        Peer::admit(node, None).unwrap()
    }

    #[test]
    fn only_accepted_subnets_are_routed_and_never_the_internet() {
        let peers = [
            peer(&["100.64.0.2/32"], &["100.64.0.2/32", "192.168.7.0/24", "0.0.0.0/0", "::/0"]),
            peer(&["10.9.0.1/32", "fd00::1/128"], &["10.9.0.1/32", "fd00::1/128"]),
        ];
        let both = nets(&["100.64.0.1/32", "fd7a:115c:a1e0::1/128"]);
        let own_only = nets(&["10.9.0.1/32", "100.64.0.0/10", "fd00::1/128", "fd7a:115c:a1e0::/48"]);
        assert_eq!(routes(&both, peers.iter(), false), own_only);
        let mut with_subnet = own_only;
        with_subnet.push("192.168.7.0/24".parse().unwrap());
        with_subnet.sort_unstable();
        assert_eq!(routes(&both, peers.iter(), true), with_subnet);
    }

    #[test]
    fn a_family_without_an_own_address_gets_no_route() {
        let peers = [peer(&["fd00::1/128"], &["fd00::1/128"])];
        assert_eq!(routes(&nets(&["100.64.0.1/32"]), peers.iter(), true), nets(&["100.64.0.0/10"]));
    }
}
