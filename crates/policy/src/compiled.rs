//! What a policy means for the nodes of a tailnet.

use crate::compile::Plain;
use crate::sources::{Source, Sources};
use crate::{Directory, DirectoryNode, DirectoryUser, Policy};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::sync::Arc;
use warren_wire::control::{CapGrant, FilterRule, NetPortRange, NodeId, UserId};

/// A policy compiled for one directory. Immutable and cheap to clone; versions share what did not change.
#[derive(Debug, Clone)]
pub struct Compiled {
    policy: Policy,
    directory: Arc<Directory>,
    now: i64,
    plain: Arc<Plain>,
    /// Which node is the way to each subnet.
    primaries: Arc<BTreeMap<IpNet, NodeId>>,
}

/// A rule in the filter of a node. Has either [`Self::destinations`] or [`Self::grants`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRule {
    /// Who may.
    pub sources: Arc<Sources>,
    /// IP protocols; empty is TCP, UDP and both ICMPs.
    pub protocols: Vec<i64>,
    /// Where to.
    pub destinations: Vec<NetPortRange>,
    /// What the sources may ask applications on the node.
    pub grants: Vec<CapGrant>,
    /// When the rule ends, in Unix seconds, the first second after; `None` if it does not end by itself.
    pub until: Option<i64>,
}

impl NodeRule {
    /// Writes the rule for a client. The wire's rule has no end.
    #[must_use]
    pub fn to_wire(&self) -> FilterRule {
        FilterRule {
            src_ips: self.sources.texts().collect(),
            dst_ports: self.destinations.clone(),
            ip_proto: self.protocols.clone(),
            cap_grant: self.grants.clone(),
            ..FilterRule::default()
        }
    }
}

/// Routes that a node carries, beside its own addresses; each list sorted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PeerRoutes {
    /// All of them: subnets, and exit routes.
    pub allowed: Vec<IpNet>,
    /// The subnets for which it was chosen as the way.
    pub primary: Vec<IpNet>,
}

/// Which of a peer's routes a viewer is shown. Viewers with equal views are shown the same record of that peer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RouteView(PeerRoutes);

impl RouteView {
    /// Returns the routes themselves.
    #[must_use]
    pub const fn routes(&self) -> &PeerRoutes {
        &self.0
    }
}

impl Compiled {
    pub(crate) fn new(policy: &Policy, directory: &Directory, now: i64) -> Self {
        Self::of(policy.clone(), Arc::new(directory.clone()), now, &BTreeMap::new())
    }

    fn of(policy: Policy, directory: Arc<Directory>, now: i64, old: &BTreeMap<IpNet, NodeId>) -> Self {
        let plain = Arc::new(Plain::new(&policy, &directory));
        let mut primaries: BTreeMap<IpNet, NodeId> = BTreeMap::new();
        for (id, node) in directory.nodes.iter().filter(|(_, node)| node.online) {
            for route in node.subnet_routes() {
                let chosen = primaries.entry(route).or_insert(*id);
                if old.get(&route) == Some(id) {
                    *chosen = *id;
                }
            }
        }
        Self { policy, directory, now, plain, primaries: Arc::new(primaries) }
    }

    fn edited(&self, edit: impl FnOnce(&mut Directory)) -> Self {
        let mut directory = Directory::clone(&self.directory);
        edit(&mut directory);
        Self::of(self.policy.clone(), Arc::new(directory), self.now, &self.primaries)
    }

    /// Returns the version with some nodes added or changed, and those that come as `None` removed.
    #[must_use]
    pub fn with_nodes(&self, changes: impl IntoIterator<Item = (NodeId, Option<DirectoryNode>)>) -> Self {
        self.edited(|directory| {
            for (id, node) in changes {
                match node {
                    Some(node) => drop(directory.nodes.insert(id, node)),
                    None => drop(directory.nodes.remove(&id)),
                }
            }
        })
    }

    /// Returns the version with these users instead of the ones before.
    #[must_use]
    pub fn with_users(&self, users: BTreeMap<UserId, DirectoryUser>) -> Self {
        self.edited(|directory| directory.users = users)
    }

    /// Returns the version with another policy.
    #[must_use]
    pub fn with_policy(&self, policy: &Policy) -> Self {
        Self::of(policy.clone(), Arc::clone(&self.directory), self.now, &self.primaries)
    }

    /// Returns the version for another time, in Unix seconds.
    #[must_use]
    pub fn at(&self, now: i64) -> Self {
        Self { now, ..self.clone() }
    }

    /// Returns when [`Self::at`] would next change something, in Unix seconds; `None` is never.
    #[must_use]
    pub fn next_edge(&self) -> Option<i64> {
        None
    }

    /// Tells whether two nodes see each other; the same both ways. No node sees itself.
    #[must_use]
    pub fn visible(&self, one: NodeId, two: NodeId) -> bool {
        self.plain.visible(one, two)
    }

    /// Returns the nodes that a node sees, in order.
    pub fn peers(&self, node: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        self.plain.peers(node)
    }

    /// Returns the filter of a node: what others may send to it and to the subnets behind it. Empty denies everything.
    ///
    /// Rules with equal sources, protocols and ends are one, in the place of the first; send an empty list as a list.
    #[must_use]
    pub fn filter(&self, node: NodeId) -> Vec<NodeRule> {
        let source = |text: &String| match text.split_once('-') {
            _ if text == "*" => Some(Source::Everywhere),
            Some((first, last)) => Some(Source::Range(first.parse().ok()?, last.parse().ok()?)),
            None => crate::selector::parse_prefix(text).map(Source::from),
        };
        let rule = |rule: FilterRule| NodeRule {
            sources: Arc::new(Sources::new(rule.src_ips.iter().filter_map(source))),
            protocols: rule.ip_proto,
            destinations: rule.dst_ports,
            grants: rule.cap_grant,
            until: None,
        };
        self.plain.filter(node).into_iter().map(rule).collect()
    }

    /// Returns the routes of a peer that a viewer may use.
    #[must_use]
    pub fn routes(&self, viewer: NodeId, peer: NodeId) -> PeerRoutes {
        if self.visible(viewer, peer) { self.own_routes(peer) } else { PeerRoutes::default() }
    }

    /// Returns which routes of a peer a viewer may use, as something to group viewers by.
    #[must_use]
    pub fn route_view(&self, viewer: NodeId, peer: NodeId) -> RouteView {
        RouteView(self.routes(viewer, peer))
    }

    /// Returns the routes that a node itself carries.
    #[must_use]
    pub fn own_routes(&self, node: NodeId) -> PeerRoutes {
        let Some(entry) = self.directory.nodes.get(&node) else { return PeerRoutes::default() };
        let mut primary: Vec<IpNet> =
            entry.subnet_routes().filter(|route| self.primaries.get(route) == Some(&node)).collect();
        primary.sort_unstable();
        let exit = entry.approved_routes.iter().copied().filter(|route| route.prefix_len() == 0);
        let mut allowed: Vec<IpNet> = primary.iter().copied().chain(exit).collect();
        allowed.sort_unstable();
        PeerRoutes { allowed, primary }
    }

    /// Returns the addresses of a node, without IPv4 where the policy takes that away.
    #[must_use]
    pub fn addresses(&self, node: NodeId) -> Vec<IpNet> {
        let addresses = self.directory.nodes.get(&node).into_iter().flat_map(|node| &node.addresses);
        addresses.map(|address| IpNet::from(*address)).collect()
    }

    /// Tells whether a node's filter is the same in two versions. A `true` is never wrong, a `false` may be.
    #[must_use]
    pub fn same_filter(old: &Self, new: &Self, node: NodeId) -> bool {
        old.filter(node) == new.filter(node)
    }

    /// Tells whether a node sees the same peers with the same routes in two versions, as far as those peers are not among
    /// [`Self::changed_nodes`]. A `true` is never wrong, a `false` may be.
    #[must_use]
    pub fn same_view(old: &Self, new: &Self, node: NodeId) -> bool {
        Arc::ptr_eq(&old.plain, &new.plain)
            || old.peers(node).eq(new.peers(node))
                && old.peers(node).all(|peer| old.routes(node, peer) == new.routes(node, peer))
    }

    /// Returns the nodes that came, went, or differ in what rules apply to them, in addresses or in routes, in order.
    /// Only these look different to a node of which [`Self::same_view`] is true.
    #[must_use]
    pub fn changed_nodes(old: &Self, new: &Self) -> Vec<NodeId> {
        if Arc::ptr_eq(&old.plain, &new.plain) {
            return Vec::new();
        }
        let mut nodes: Vec<NodeId> = old.directory.nodes.keys().chain(new.directory.nodes.keys()).copied().collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }
}
