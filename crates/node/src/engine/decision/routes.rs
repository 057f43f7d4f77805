//! The interface: its addresses and the routes to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use warren_os::{Forwarding, IfIndex, IfName, Netlink, NetlinkError, Passing, PassingError};

use crate::netmap::Peer;

/// Addresses of nodes, IPv4. One route for all spares a route for each peer.
const RANGE_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
/// Addresses of nodes, IPv6.
const RANGE_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0), 48);
/// Most routes that are given to the kernel; a tailnet with more subnets needs a policy that shows a node fewer.
const MAX_ROUTES: usize = 4096;

/// Addresses of the name service.
const SERVICE: [IpAddr; 2] = [IpAddr::V4(warren_dns::SERVICE_V4), IpAddr::V6(warren_dns::SERVICE_V6)];

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

/// Returns the networks behind this node that it passes packets on to: what the server approved of what the user offers.
pub(super) fn behind<'a>(allowed: &'a [IpNet], offered: &'a [IpNet]) -> impl Iterator<Item = IpNet> + 'a {
    allowed.iter().copied().filter(|net| net.prefix_len() > 0 && offered.contains(net))
}

/// Changes the interface. What it makes hangs on the interface or this process, so that the kernel removes it with those.
#[derive(Debug)]
pub(in crate::engine) struct Machine {
    netlink: Netlink,
    index: IfIndex,
    name: IfName,
    wanted: Option<Wanted>,
    /// The firewall rules of a router, and whether they masquerade.
    passing: Option<(Passing, bool)>,
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

/// Says how the machine should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::engine) struct Wanted {
    /// Addresses of the interface.
    pub(super) addresses: Vec<IpNet>,
    /// Routes to the interface.
    pub(super) routes: Vec<IpNet>,
    /// Networks that packets are passed on to.
    pub(super) behind: Vec<IpNet>,
    /// Give those packets an address of this machine.
    pub(super) masquerade: bool,
}

impl Machine {
    /// Takes charge of an interface.
    pub(in crate::engine) fn new(netlink: Netlink, index: IfIndex, name: IfName) -> Self {
        Self { netlink, index, name, wanted: None, passing: None, troubles: Vec::new() }
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

    /// Gives the interface these addresses and routes and no others, and passes packets on as wanted.
    pub(in crate::engine) async fn set_up(&mut self, wanted: Wanted) {
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
        let router = self.pass_on(&wanted).await;
        self.troubles.extend(router);
    }

    async fn apply(&self, wanted: &Wanted, link: Link) -> Result<Vec<String>, NetlinkError> {
        let addresses = self.netlink.sync_addresses(self.index, &wanted.addresses).await?;
        if link != Link::Up {
            self.netlink.set_up(self.index).await?;
        }
        let routes = self.netlink.sync_routes(self.index, &wanted.routes).await?;
        for address in SERVICE {
            // A machine without IPv6 has the other one.
            if let Err(error) = self.netlink.add_local(self.index, address).await {
                tracing::debug!(%error, %address, "no address for the name service");
            }
        }
        let address = addresses.refused.iter().map(|(net, error)| format!("no address {net}: {error}"));
        let route = routes.refused.iter().map(|(net, error)| format!("no route to {net}: {error}"));
        Ok(address.chain(route).take(8).collect())
    }

    /// Makes the firewall rules of a router, or takes them away; returns what is missing.
    async fn pass_on(&mut self, wanted: &Wanted) -> Vec<String> {
        if wanted.behind.is_empty() {
            self.passing = None;
            return Vec::new();
        }
        let kept = self.passing.take().filter(|(_, masquerade)| *masquerade == wanted.masquerade);
        let kept = kept.and_then(|(mut passing, masquerade)| passing.is_alive().then_some((passing, masquerade)));
        let mut troubles = without_forwarding(&wanted.behind, Forwarding::read());
        self.passing = match kept {
            Some(kept) => Some(kept),
            None => match start(self.name.clone(), wanted.masquerade).await {
                Ok(passing) => Some((passing, wanted.masquerade)),
                Err(error) => {
                    troubles.push(format!("there are no firewall rules for the networks behind this node: {error}"));
                    None
                }
            },
        };
        troubles
    }

    /// Takes all addresses and routes away and the interface down.
    pub(in crate::engine) async fn set_down(&mut self) {
        self.wanted = None;
        self.passing = None;
        self.troubles.clear();
        let result = async {
            for address in SERVICE {
                // A machine without IPv6 never had it; what is there goes with the interface in any case.
                if let Err(error) = self.netlink.remove_local(self.index, address).await {
                    tracing::debug!(%error, %address, "the name service's address stays");
                }
            }
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

/// Makes the rules on a thread that may wait.
async fn start(name: IfName, masquerade: bool) -> Result<Passing, PassingError> {
    let result = tokio::task::spawn_blocking(move || Passing::start(&name, masquerade)).await;
    result.unwrap_or_else(|error| Err(PassingError::Broken(std::io::Error::other(error))))
}

/// Says which networks cannot be reached through this machine because it passes nothing on.
fn without_forwarding(behind: &[IpNet], forwarding: Forwarding) -> Vec<String> {
    let families = [
        (forwarding.v4, "net.ipv4.ip_forward", behind.iter().find(|net| net.addr().is_ipv4())),
        (forwarding.v6, "net.ipv6.conf.all.forwarding", behind.iter().find(|net| net.addr().is_ipv6())),
    ];
    let missing = families.into_iter().filter(|(on, ..)| !on);
    missing
        .filter_map(|(_, switch, net)| {
            let net = net?;
            Some(format!(
                "{net} cannot be reached through this node: it does not pass packets on; say: sysctl -w {switch}=1"
            ))
        })
        .collect()
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
    fn a_node_passes_on_to_what_is_both_offered_and_approved() {
        let allowed = nets(&["100.64.0.1/32", "10.1.0.0/24", "10.2.0.0/24", "0.0.0.0/0"]);
        let offered = nets(&["10.1.0.0/24", "10.3.0.0/24", "0.0.0.0/0"]);
        assert_eq!(behind(&allowed, &offered).collect::<Vec<_>>(), nets(&["10.1.0.0/24"]));
    }

    #[test]
    fn a_router_whose_machine_passes_nothing_on_says_so() {
        let both = nets(&["10.1.0.0/24", "fd00::/64"]);
        let told = |v4, v6| without_forwarding(&both, Forwarding { v4, v6 });
        assert!(told(true, true).is_empty());
        assert!(told(false, true)[0].contains("net.ipv4.ip_forward=1"));
        assert!(told(true, false)[0].contains("net.ipv6.conf.all.forwarding=1"));
        assert!(without_forwarding(&nets(&["10.1.0.0/24"]), Forwarding { v4: true, v6: false }).is_empty());
    }

    #[test]
    fn a_family_without_an_own_address_gets_no_route() {
        let peers = [peer(&["fd00::1/128"], &["fd00::1/128"])];
        assert_eq!(routes(&nets(&["100.64.0.1/32"]), peers.iter(), true), nets(&["100.64.0.0/10"]));
    }
}
