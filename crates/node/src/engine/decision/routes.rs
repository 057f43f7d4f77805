//! The interface: its addresses and the routes to it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use warren_os::{
    Forwarding, IfIndex, IfName, MainRoute, Masquerade, NameSettings, Netlink, NetlinkError, Passing, PassingError,
    RouteTable, Rules, is_strict,
};

use crate::netmap::Peer;
use crate::userspace::Network;

use super::names::Names;

/// Addresses of nodes, IPv4. One route for all spares a route for each peer.
const RANGE_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
/// Addresses of nodes, IPv6.
const RANGE_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0), 48);
/// Both.
const RANGES: [IpNet; 2] = [IpNet::V4(RANGE_V4), IpNet::V6(RANGE_V6)];
/// Everything. Both are routed for an exit node, so that what it cannot take goes nowhere.
const EVERYTHING: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
];
/// Most routes that are given to the kernel; a tailnet with more subnets needs a policy that shows a node fewer.
const MAX_ROUTES: usize = 4096;
/// Most networks that are left to the main table, and most peers in them.
const MAX_LEFT: usize = 4096;

/// Addresses of the name service.
const SERVICE: [IpAddr; 2] = [IpAddr::V4(warren_dns::SERVICE_V4), IpAddr::V6(warren_dns::SERVICE_V6)];

/// Returns the prefixes of which `peer` is the owner for this node: its own addresses, and what it routes if the user
/// wants that. The whole Internet is the exit node's alone.
pub(super) fn prefixes(peer: &Peer, accept_routes: bool, is_exit: bool) -> impl Iterator<Item = IpNet> {
    let owns = move |net: &IpNet| match net.prefix_len() {
        0 => is_exit,
        _ => accept_routes || peer.addresses().contains(net),
    };
    peer.allowed_ips().iter().copied().filter(owns)
}

/// Returns the prefixes to be routed to the interface, in order, apart from those for an exit node.
pub(super) fn routes<'a>(own: &[IpNet], peers: impl Iterator<Item = &'a Peer>, accept_routes: bool) -> Vec<IpNet> {
    let has_v4 = own.iter().any(|net| net.addr().is_ipv4());
    let has_v6 = own.iter().any(|net| net.addr().is_ipv6());
    let usable = |net: &IpNet| if net.addr().is_ipv4() { has_v4 } else { has_v6 };
    let beyond = peers.flat_map(|peer| prefixes(peer, accept_routes, false));
    let beyond = beyond.filter(|net| !RANGES.iter().any(|range| range.contains(net)));
    let mut all: Vec<IpNet> = RANGES.into_iter().chain(beyond).filter(usable).collect();
    all.sort_unstable();
    all.dedup();
    all.truncate(MAX_ROUTES);
    all
}

/// Returns what this node passes packets on to: what the server approved of what the user offers.
pub(super) fn behind<'a>(allowed: &'a [IpNet], offered: &'a [IpNet]) -> impl Iterator<Item = IpNet> + 'a {
    allowed.iter().copied().filter(|net| offered.contains(net))
}

/// Says what an exit node takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    /// There is none: peers take what they were given.
    None,
    /// Everything.
    All,
    /// Everything but the networks that this machine is in.
    NotLan,
}

/// Puts together what the table of the tunnel holds: the routes into it, and the prefixes that it leaves to the main one.
fn table(wanted: &Wanted, main: &[MainRoute]) -> (Vec<IpNet>, Vec<IpNet>) {
    let mut routes: BTreeSet<IpNet> = wanted.routes.iter().copied().collect();
    if wanted.exit != Exit::None {
        routes.extend(EVERYTHING);
    }
    // What this machine knows better stays with it; behind an exit node that is for the user to say.
    let better = main.iter().filter(|route| match wanted.exit {
        Exit::None => true,
        Exit::NotLan => route.connected && is_lan(&route.prefix),
        Exit::All => false,
    });
    let better = better.map(|route| route.prefix);
    // Never a single node: whoever gives this machine its routes, a DHCP server say, would choose whose packets go out bare.
    let in_ranges = |net: &IpNet| RANGES.iter().any(|range| range.contains(net));
    let is_node =
        |net: &IpNet| net.prefix_len() == net.max_prefix_len() && (in_ranges(net) || wanted.peers.contains(net));
    let better = better.filter(|net| !RANGES.contains(net) && !is_node(net));
    let better = better.filter(|net| routes.iter().any(|route| route.contains(net)));
    let better: BTreeSet<IpNet> = better.take(MAX_LEFT).collect();
    // Nodes are reached even if somebody else counts from the same range.
    let taken = |address: &&IpNet| better.iter().any(|net| net.contains(*address));
    let hosts: Vec<IpNet> = if better.iter().any(in_ranges) {
        wanted.peers.iter().filter(taken).copied().take(MAX_LEFT).collect()
    } else {
        Vec::new()
    };
    let routes = routes.into_iter().filter(|net| !better.contains(net)).chain(hosts).collect();
    (routes, better.into_iter().collect())
}

/// Tells whether a network that this machine is in may be left to it beside an exit node. One that claims a good part of the
/// Internet is no local network but somebody's wish to see the packets.
fn is_lan(net: &IpNet) -> bool {
    let (private, longest): (bool, u8) = match net {
        IpNet::V4(net) => (net.addr().is_private() || net.addr().is_link_local(), 16),
        IpNet::V6(net) => (net.addr().is_unique_local() || net.addr().is_unicast_link_local(), 48),
    };
    // The shortest of the private ones: 10/8, and fc00::/7 and fe80::/10 for IPv6.
    let shortest = if net.addr().is_ipv4() { 8 } else { 7 };
    net.prefix_len() >= if private { shortest } else { longest }
}

/// Changes the interface. What it makes hangs on the interface or this process, so that the kernel removes it with those.
#[derive(Debug)]
pub(in crate::engine) struct Machine {
    netlink: Netlink,
    index: IfIndex,
    name: IfName,
    wanted: Option<Wanted>,
    /// The firewall rules of a router, and whether they masquerade.
    passing: Option<(Passing, Masquerade)>,
    /// Where programs ask for names.
    names: Names,
    /// Troubles of the last change, for people.
    troubles: Vec<String>,
    /// Stands for the interface where there is none; nothing of the machine is changed then.
    network: Option<Network>,
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
    /// Routes to the interface, apart from those for an exit node.
    pub(super) routes: Vec<IpNet>,
    /// Addresses of peers.
    pub(super) peers: Vec<IpNet>,
    /// What an exit node takes.
    pub(super) exit: Exit,
    /// Networks that packets are passed on to.
    pub(super) behind: Vec<IpNet>,
    /// Give those packets an address of this machine.
    pub(super) masquerade: bool,
    /// Where programs ask for names; `None` leaves that as it is.
    pub(super) names: Option<NameSettings>,
}

impl Wanted {
    /// Tells whether packets are passed on to hosts of sites, see [`warren_filter::via`].
    pub(super) fn leads_to_sites(&self) -> bool {
        self.behind.iter().any(is_site)
    }
}

impl Machine {
    /// Takes charge of an interface.
    pub(in crate::engine) fn new(netlink: Netlink, index: IfIndex, name: IfName) -> Self {
        let names = Names::new(name.clone());
        Self { netlink, index, name, wanted: None, passing: None, names, troubles: Vec::new(), network: None }
    }

    /// Takes charge of a stack in place of an interface.
    pub(in crate::engine) fn without_interface(netlink: Netlink, name: IfName, network: Network) -> Self {
        Self { network: Some(network), ..Self::new(netlink, IfIndex(0), name) }
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
    pub(in crate::engine) fn troubles(&self) -> Vec<String> {
        let names = self.names.trouble().filter(|_| self.is_up());
        let names = names.map(|error| format!("programs do not find names of the tailnet: {error}"));
        self.troubles.iter().cloned().chain(names).collect()
    }

    /// Waits until [`Self::troubles`] may have changed by itself.
    pub(in crate::engine) async fn changed(&mut self) {
        self.names.changed().await;
    }

    /// Gives the interface these addresses and routes and no others, and passes packets on as wanted.
    pub(in crate::engine) async fn set_up(&mut self, wanted: Wanted) {
        if let Some(network) = &self.network {
            let addresses: Vec<IpAddr> = wanted.addresses.iter().map(IpNet::addr).collect();
            network.set_addresses(&addresses);
            self.troubles = without_interface(&wanted.behind).into_iter().collect();
            self.wanted = Some(wanted);
            return;
        }
        if self.wanted.as_ref() != Some(&wanted) {
            self.wanted = Some(wanted);
            self.sync(Link::Unknown).await;
            // A listing that the kernel cut short, because others changed routes meanwhile, hides what should go: nobody may
            // stay without the Internet for that. Nothing is said to the kernel if all is as it should be.
            self.sync(Link::Up).await;
        }
    }

    /// Makes good what others have changed. Says nothing to the kernel if there is nothing to change, for every word
    /// comes back as a change of the network.
    pub(in crate::engine) async fn sync(&mut self, link: Link) {
        if self.network.is_some() {
            return;
        }
        let Some(wanted) = self.wanted.clone() else { return };
        self.troubles = match self.apply(&wanted, link).await {
            Ok(troubles) => troubles,
            Err(error) => vec![format!("the tunnel's interface is not set up: {error}")],
        };
        let router = self.pass_on(&wanted).await;
        self.troubles.extend(router);
        self.names.set(wanted.names);
    }

    async fn apply(&self, wanted: &Wanted, link: Link) -> Result<Vec<String>, NetlinkError> {
        let mut troubles = Vec::new();
        let addresses = self.netlink.sync_addresses(self.index, &wanted.addresses).await?;
        if link != Link::Up {
            self.netlink.set_up(self.index).await?;
        }
        // The rules first: from the first route on, our own packets must find around it.
        let routes = match self.netlink.add_rules().await {
            Ok(rules) => {
                if wanted.exit != Exit::None && rules == Rules::V4 && self.netlink.default_routes().await?.v6.is_some()
                {
                    troubles.push(
                        "IPv6 goes past the exit node, for this kernel has no routing rules for it; say: \
                         sysctl -w net.ipv6.conf.all.disable_ipv6=1"
                            .to_owned(),
                    );
                }
                let main = self.netlink.main_routes(self.index).await?;
                let (routes, left) = table(wanted, &main);
                let left = self.netlink.sync_throws(&left).await?;
                troubles.extend(left.refused.iter().map(|(net, error)| format!("{net} goes into the tunnel: {error}")));
                self.netlink.sync_routes(self.index, &routes, RouteTable::Own).await?
            }
            Err(error) if error.is_unsupported() => {
                tracing::debug!(%error, "no routing rules");
                if wanted.exit != Exit::None {
                    troubles.push(format!("no exit node can be used on this machine: {error}"));
                }
                self.netlink.sync_routes(self.index, &wanted.routes, RouteTable::Main).await?
            }
            // What is there stays: without it an exit node's user would be on the Internet by himself.
            Err(error) => return Err(error),
        };
        for address in SERVICE {
            // A machine without IPv6 has the other one.
            if let Err(error) = self.netlink.add_local(self.index, address).await {
                tracing::debug!(%error, %address, "no address for the name service");
            }
        }
        if wanted.exit != Exit::None {
            troubles.extend(self.return_path().await);
        }
        troubles.extend(addresses.refused.iter().map(|(net, error)| format!("no address {net}: {error}")));
        let refused = routes.refused.iter().filter(|(net, error)| !is_without_family(net, error));
        troubles.extend(refused.map(|(net, error)| format!("no route to {net}: {error}")));
        troubles.truncate(8);
        Ok(troubles)
    }

    /// Says if the kernel would drop what comes from outside, since it would answer into the tunnel.
    async fn return_path(&self) -> Option<String> {
        let out = self.netlink.default_routes().await.ok()?.v4?;
        let name = self.netlink.interfaces().await.ok()?.into_iter().find(|one| one.index == out)?.name;
        is_strict(&name).then(|| {
            format!(
                "with an exit node nothing comes in by {name}, for it takes only what it would answer by the same way; say: \
                 sysctl -w net.ipv4.conf.all.rp_filter=2"
            )
        })
    }

    /// Makes the firewall rules of a router, or takes them away; returns what is missing.
    async fn pass_on(&mut self, wanted: &Wanted) -> Vec<String> {
        if wanted.behind.is_empty() {
            self.passing = None;
            return Vec::new();
        }
        let masquerade = match wanted.masquerade {
            true => Masquerade::All,
            false if wanted.behind.iter().any(is_site) => Masquerade::Translated,
            false => Masquerade::Nothing,
        };
        let kept = self.passing.take().filter(|(_, present)| *present == masquerade);
        let kept = kept.and_then(|(mut passing, masquerade)| passing.is_alive().then_some((passing, masquerade)));
        let mut troubles = without_forwarding(&wanted.behind, Forwarding::read());
        troubles.extend(without_masquerade(wanted));
        self.passing = match kept {
            Some(kept) => Some(kept),
            None => match start(self.name.clone(), masquerade).await {
                Ok(passing) => Some((passing, masquerade)),
                Err(error) => {
                    troubles.push(format!("there are no firewall rules for the networks behind this node: {error}"));
                    None
                }
            },
        };
        troubles
    }

    /// Takes all addresses and routes away and the interface down, and lets programs ask for names as before; also what an
    /// earlier process has left.
    pub(in crate::engine) async fn set_down(&mut self) {
        self.wanted = None;
        if let Some(network) = &self.network {
            network.set_addresses(&[]);
            self.troubles.clear();
            return;
        }
        // First, for soon nobody will answer.
        if let Some(error) = self.names.restore().await {
            tracing::warn!(error, "where programs ask for names is not put back; say: warren cleanup");
        }
        self.passing = None;
        self.troubles.clear();
        let result = async {
            for address in SERVICE {
                // A machine without IPv6 never had it; what is there goes with the interface in any case.
                if let Err(error) = self.netlink.remove_local(self.index, address).await {
                    tracing::debug!(%error, %address, "the name service's address stays");
                }
            }
            self.netlink.sync_routes(self.index, &[], RouteTable::Own).await?;
            self.netlink.sync_throws(&[]).await?;
            self.netlink.remove_rules().await?;
            self.netlink.sync_addresses(self.index, &[]).await?;
            self.netlink.set_down(self.index).await
        };
        if let Err(error) = result.await {
            // What is left goes with the interface.
            tracing::debug!(%error, "the interface is not taken down");
        }
    }
}

/// Tells whether the whole of a family was not routed because the machine does not have it.
fn is_without_family(net: &IpNet, error: &NetlinkError) -> bool {
    EVERYTHING.contains(net) && error.is_unsupported()
}

/// Makes the rules on a thread that may wait.
async fn start(name: IfName, masquerade: Masquerade) -> Result<Passing, PassingError> {
    let result = tokio::task::spawn_blocking(move || Passing::start(&name, masquerade)).await;
    result.unwrap_or_else(|error| Err(PassingError::Broken(std::io::Error::other(error))))
}

/// Says that a node without TUN device passes nothing on.
fn without_interface(behind: &[IpNet]) -> Option<String> {
    let net = behind.first()?;
    Some(format!(
        "{net} cannot be reached through this node: without a TUN device it passes no packets on; start it as root, without \
         --tun=userspace-networking"
    ))
}

/// Says that nobody on the Internet would find back to a peer.
fn without_masquerade(wanted: &Wanted) -> Option<String> {
    let is_exit = wanted.behind.iter().any(|net| net.prefix_len() == 0);
    (is_exit && !wanted.masquerade).then(|| {
        "this exit node leaves packets the addresses of peers, to which the Internet cannot answer; say: \
         warren set --snat-subnet-routes"
            .to_owned()
    })
}

/// Tells whether packets for a network are translated to IPv4, see [`warren_filter::via`].
fn is_site(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(net) if warren_filter::via::RANGE.contains(net))
}

/// Says which networks cannot be reached through this machine because it passes nothing on.
fn without_forwarding(behind: &[IpNet], forwarding: Forwarding) -> Vec<String> {
    let is_v4 = |net: &&IpNet| net.addr().is_ipv4() || is_site(net);
    let families = [
        (forwarding.v4, "net.ipv4.ip_forward", behind.iter().find(is_v4)),
        (forwarding.v6, "net.ipv6.conf.all.forwarding", behind.iter().find(|net| !is_v4(net))),
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
    fn the_internet_is_the_exit_nodes_alone() {
        let peer = peer(&["100.64.0.2/32"], &["100.64.0.2/32", "192.168.7.0/24", "0.0.0.0/0", "::/0"]);
        let of = |accept, exit| prefixes(&peer, accept, exit).collect::<Vec<_>>();
        assert_eq!(of(false, false), nets(&["100.64.0.2/32"]));
        assert_eq!(of(false, true), nets(&["100.64.0.2/32", "0.0.0.0/0", "::/0"]));
        assert_eq!(of(true, false), nets(&["100.64.0.2/32", "192.168.7.0/24"]));
    }

    fn main_route(prefix: &str, connected: bool) -> MainRoute {
        MainRoute { prefix: prefix.parse().unwrap(), interface: None, connected }
    }

    #[test]
    fn what_the_machine_knows_better_is_left_to_it() {
        let wanted = |exit| Wanted {
            addresses: Vec::new(),
            routes: nets(&["10.0.0.0/8", "100.64.0.0/10", "192.168.7.0/24"]),
            peers: nets(&["100.72.0.9/32", "100.64.0.2/32"]),
            exit,
            behind: Vec::new(),
            masquerade: true,
            names: None,
        };
        let main = [
            main_route("10.5.0.0/16", false),
            main_route("192.168.7.0/24", true),
            main_route("192.168.0.0/16", true),
            main_route("100.64.0.0/10", true),
            main_route("100.72.0.0/16", true),
        ];
        let (routes, left) = table(&wanted(Exit::None), &main);
        // A network that it is in is not taken over; one that is part of another comes through; nodes are reached.
        assert_eq!(routes, nets(&["10.0.0.0/8", "100.64.0.0/10", "100.72.0.9/32"]));
        assert_eq!(left, nets(&["10.5.0.0/16", "100.72.0.0/16", "192.168.7.0/24"]));
        let (routes, left) = table(&wanted(Exit::NotLan), &main);
        assert!(EVERYTHING.iter().all(|net| routes.contains(net)));
        assert_eq!(left, nets(&["100.72.0.0/16", "192.168.0.0/16", "192.168.7.0/24"]));
        let (routes, left) = table(&wanted(Exit::All), &main);
        assert_eq!((routes.len(), left), (5, Vec::new()));
    }

    /// A DHCP server may name any route (RFC 3442), and any size of the network.
    #[test]
    fn whoever_gives_the_machine_its_routes_takes_no_nodes_and_no_internet() {
        let wanted = |exit| Wanted {
            addresses: Vec::new(),
            routes: nets(&["10.9.0.1/32", "100.64.0.0/10", "fd7a:115c:a1e0::/48"]),
            peers: nets(&["10.9.0.1/32", "100.64.0.2/32", "fd7a:115c:a1e0::2/128"]),
            exit,
            behind: Vec::new(),
            masquerade: true,
            names: None,
        };
        let nodes = ["10.9.0.1/32", "100.64.0.2/32", "100.64.0.3/32", "fd7a:115c:a1e0::2/128"];
        for connected in [false, true] {
            let main = nodes.map(|node| main_route(node, connected));
            for exit in [Exit::None, Exit::NotLan] {
                let (routes, left) = table(&wanted(exit), &main);
                assert_eq!(left, []);
                assert!(wanted(exit).routes.iter().all(|route| routes.contains(route)), "{routes:?}");
            }
        }
        let wide = ["0.0.0.0/1", "128.0.0.0/1", "9.0.0.0/8", "2000::/3", "8000::/1", "2a00::/16"];
        let lan = ["9.93.0.0/24", "10.0.0.0/8", "169.254.0.0/16", "2a93::/64", "fd00::/8", "fe80::/64"];
        let main: Vec<MainRoute> = wide.iter().chain(&lan).map(|net| main_route(net, true)).collect();
        assert_eq!(table(&wanted(Exit::NotLan), &main).1, nets(&lan));
    }

    #[test]
    fn an_exit_node_that_keeps_addresses_says_that_nobody_answers() {
        let wanted = |behind: &[&str], masquerade| Wanted {
            addresses: Vec::new(),
            routes: Vec::new(),
            peers: Vec::new(),
            exit: Exit::None,
            behind: nets(behind),
            masquerade,
            names: None,
        };
        assert!(without_masquerade(&wanted(&["0.0.0.0/0", "::/0"], false)).is_some());
        assert!(without_masquerade(&wanted(&["0.0.0.0/0", "::/0"], true)).is_none());
        assert!(without_masquerade(&wanted(&["10.0.0.0/24"], false)).is_none(), "two sites may want that");
    }

    #[test]
    fn a_node_passes_on_to_what_is_both_offered_and_approved() {
        let allowed = nets(&["100.64.0.1/32", "10.1.0.0/24", "10.2.0.0/24", "0.0.0.0/0"]);
        let offered = nets(&["10.1.0.0/24", "10.3.0.0/24", "0.0.0.0/0"]);
        assert_eq!(behind(&allowed, &offered).collect::<Vec<_>>(), nets(&["10.1.0.0/24", "0.0.0.0/0"]));
    }

    #[test]
    fn a_router_whose_machine_passes_nothing_on_says_so() {
        let both = nets(&["10.1.0.0/24", "fd00::/64"]);
        let told = |v4, v6| without_forwarding(&both, Forwarding { v4, v6 });
        assert!(told(true, true).is_empty());
        assert!(told(false, true)[0].contains("net.ipv4.ip_forward=1"));
        assert!(told(true, false)[0].contains("net.ipv6.conf.all.forwarding=1"));
        assert!(without_forwarding(&nets(&["10.1.0.0/24"]), Forwarding { v4: true, v6: false }).is_empty());
        let site = nets(&["fd7a:115c:a1e0:b1a:0:7:a00:0/104"]);
        assert!(without_forwarding(&site, Forwarding { v4: true, v6: false }).is_empty());
        assert!(without_forwarding(&site, Forwarding { v4: false, v6: true })[0].contains("net.ipv4.ip_forward=1"));
    }

    #[test]
    fn a_family_without_an_own_address_gets_no_route() {
        let peers = [peer(&["fd00::1/128"], &["fd00::1/128"])];
        assert_eq!(routes(&nets(&["100.64.0.1/32"]), peers.iter(), true), nets(&["100.64.0.0/10"]));
    }
}
