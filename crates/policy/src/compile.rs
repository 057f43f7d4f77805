//! From a policy and a directory to what each node receives and sees, in versions that cost what changes.
//!
//! A rule has one destination; a grant with several is several rules. Rules and lists of sources have numbers that they
//! keep from one policy to the next as long as they stay the same (`rules`). Of each node we keep which rules have it as a
//! source, as a destination, in its filter, as bits: nodes that agree in all bits are a kind (`member`). Who sees whom is
//! asked of kinds, not of nodes; and since a kind does not hold whose the nodes are, ten thousand users with rules for
//! `autogroup:self` are one kind. Only host addresses, routes and a user's own devices are looked at per node.
//!
//! What the rules of a node say comes from two sides: from its owner (user or set of tags), worked out once for each
//! owner, and from its addresses and routes, found in an index by prefix. So no step looks at nodes × rules.
//!
//! Every table is a sorted map in shared chunks (`chunked`): a new version copies the table's list of chunks (one pointer
//! for about a hundred entries) and the chunks that change, and two versions are compared by what they do not share. A
//! change of nodes, users or policy is one list of nodes to look at again (`update`); a fresh compilation is the same with
//! all of them.
//!
//! The sources of rules are lists of texts, shared by all rules with equal lists and cut in chunks (`Sources`), from
//! which the node that joins is the only difference.
//!
//! **Postures** limit devices. Where a rule demands one, `*`, `autogroup:danger-all` and literal addresses name the
//! devices that have it one by one instead of the ranges of the tailnet; ranges outside remain, and so do hosts behind
//! subnet routers, which have no posture. A companion of such a rule (`rules`) counts only for those devices, too.
//!
//! **Time**: a rule that does not hold at the moment keeps its bits, and is left out by one more set of bits; so `at`
//! costs as much as there are rules with times, however many nodes there are.

mod address;
mod chunked;
mod difference;
mod filter;
mod grants;
mod groups;
mod member;
mod moment;
mod numbers;
mod prefixes;
mod refresh;
mod routes;
mod rule_set;
mod rules;
mod target;
mod update;

use crate::{Directory, DirectoryNode, DirectoryUser, Owner, Policy};
use chunked::ChunkedMap;
use ipnet::IpNet;
use member::{Base, Draft, Kind, Member, NodeSet, OwnerEntry};
use moment::Moment;
use prefixes::PrefixMap;
use routes::{ExitNodes, Route};
use rules::Rulebook;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use update::ListState;
use warren_wire::control::{NodeId, UserId};

use crate::sources::Sources;

pub use filter::NodeRule;

/// A policy compiled for one directory. Immutable and cheap to clone; versions share what did not change. The default is
/// of no rules, users and nodes: nobody sees anybody.
#[derive(Debug, Clone, Default)]
pub struct Compiled {
    book: Arc<Rulebook>,
    moment: Arc<Moment>,
    domains: Arc<BTreeSet<String>>,
    users: Arc<BTreeMap<UserId, DirectoryUser>>,
    owners: ChunkedMap<Owner, Arc<OwnerEntry>>,
    drafts: ChunkedMap<NodeId, Arc<Draft>>,
    members: ChunkedMap<NodeId, Arc<Member>>,
    kinds: ChunkedMap<Arc<Kind>, NodeSet>,
    by_address: ChunkedMap<(IpAddr, NodeId), ()>,
    /// Subnets; exit routes are no way to anywhere in particular.
    routes: PrefixMap<Arc<Route>>,
    exits: ExitNodes,
    /// By number of list.
    lists: Arc<[Option<Arc<ListState>>]>,
}

/// Routes that a node carries, beside its own addresses; each list sorted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PeerRoutes {
    /// All of them: subnets, and exit routes.
    pub allowed: Vec<IpNet>,
    /// The subnets for which it was chosen as the way.
    pub primary: Vec<IpNet>,
    /// The subnets to which another node was chosen as the way, and this one could be.
    pub standby: Vec<IpNet>,
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
        let empty = Self {
            domains: Arc::new(directory.domains.clone()),
            users: Arc::new(directory.users.clone()),
            moment: Arc::new(Moment { now, ..Moment::default() }),
            ..Self::default()
        };
        empty.with_policy(policy).with_nodes(directory.nodes.iter().map(|(id, node)| (*id, Some(node.clone()))))
    }

    /// Returns the version with some nodes added or changed, and those that come as `None` removed.
    #[must_use]
    pub fn with_nodes(&self, changes: impl IntoIterator<Item = (NodeId, Option<DirectoryNode>)>) -> Self {
        self.clone().rebuild(self, changes, BTreeSet::new())
    }

    /// Returns the version with these users instead of the ones before.
    #[must_use]
    pub fn with_users(&self, users: BTreeMap<UserId, DirectoryUser>) -> Self {
        let (next, touched) = self.with_directory_users(users);
        next.rebuild(self, [], touched)
    }

    /// Returns the version with another policy. The ways to subnets stay as they are.
    #[must_use]
    pub fn with_policy(&self, policy: &Policy) -> Self {
        let (mut next, touched) = self.with_book(Rulebook::new(policy, &self.book));
        next.moment = Arc::new(Moment::new(&next.book, self.moment.now));
        next.rebuild(self, [], touched)
    }

    /// Returns the version for another time, in Unix seconds.
    #[must_use]
    pub fn at(&self, now: i64) -> Self {
        Self { moment: Arc::new(Moment::new(&self.book, now)), ..self.clone() }
    }

    /// Returns when [`Self::at`] would next change something, in Unix seconds; `None` is never.
    #[must_use]
    pub fn next_edge(&self) -> Option<i64> {
        self.moment.next_edge
    }

    /// Tells whether two nodes see each other; the same both ways. No node sees itself.
    #[must_use]
    pub fn visible(&self, one: NodeId, two: NodeId) -> bool {
        let (Some(first), Some(second)) = (self.members.get(&one), self.members.get(&two)) else {
            return false;
        };
        one != two && (self.kinds_see(&first.kind, &second.kind) || self.own_devices_see(first, second))
    }

    /// Returns the nodes that a node sees, in order.
    pub fn peers(&self, node: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let mut peers: Vec<NodeId> = Vec::new();
        if let Some(member) = self.members.get(&node) {
            let kinds = self.kinds.iter().filter(|(kind, _)| self.kinds_see(&member.kind, kind));
            peers.extend(kinds.flat_map(|(_, nodes)| nodes.keys()));
            if !(member.kind.own.is_empty() && member.kind.own_sources.is_empty())
                && let Some(entry) = self.owners.get(&member.draft.node.owner)
            {
                let devices = entry.nodes.keys().filter_map(|device| Some((*device, self.members.get(device)?)));
                peers.extend(
                    devices.filter(|(_, device)| self.own_devices_see(member, device)).map(|(device, _)| device),
                );
            }
            peers.sort_unstable();
            peers.dedup();
            peers.retain(|peer| *peer != node);
        }
        peers.into_iter()
    }

    /// Returns which routes of a peer a viewer may use, as something to group viewers by.
    #[must_use]
    pub fn route_view(&self, viewer: NodeId, peer: NodeId) -> RouteView {
        RouteView(self.routes(viewer, peer))
    }

    /// Returns the addresses of a node, without IPv4 where the policy takes that away.
    #[must_use]
    pub fn addresses(&self, node: NodeId) -> Vec<IpNet> {
        let addresses = self.drafts.get(&node).into_iter().flat_map(|draft| &draft.addresses);
        addresses.map(|address| IpNet::from(*address)).collect()
    }

    fn kinds_see(&self, one: &Kind, two: &Kind) -> bool {
        let active = &self.moment.active;
        one.sources.meets_both(&two.destinations, active) || two.sources.meets_both(&one.destinations, active)
    }

    fn own_devices_see(&self, one: &Member, two: &Member) -> bool {
        let active = &self.moment.active;
        one.draft.node.owner == two.draft.node.owner
            && (one.kind.own_sources.meets_both(&two.kind.own, active)
                || two.kind.own_sources.meets_both(&one.kind.own, active))
    }

    fn node_and_base(&self, node: NodeId) -> Option<(&Arc<DirectoryNode>, &Arc<Base>)> {
        let draft = self.drafts.get(&node)?;
        Some((&draft.node, &self.owners.get(&draft.node.owner)?.base))
    }
}

#[cfg(test)]
mod tests;
