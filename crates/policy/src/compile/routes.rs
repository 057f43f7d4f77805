//! Subnets: which node is the way to each, and who may use it.

use super::chunked::ChunkedMap;
use super::member::Member;
use super::rule_set::RuleSet;
use super::target::Target;
use super::{Compiled, PeerRoutes};
use crate::Owner;
use ipnet::IpNet;
use std::collections::BTreeSet;
use warren_wire::control::NodeId;

/// A subnet that nodes lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    /// Never none; by number.
    pub(super) routers: Vec<Router>,
    /// The way to it, but for rules that say otherwise.
    pub(super) primary: NodeId,
    /// Rules with hosts in it as a source.
    sources: RuleSet,
    /// Rules with hosts in it as a destination, through any router.
    destinations: RuleSet,
    /// Rules with hosts in it as a destination, through certain routers.
    via: RuleSet,
    /// Whether nodes have addresses in it, beside its only router.
    pub(super) covers_nodes: bool,
}

/// A node that leads to a subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Router {
    pub(super) node: NodeId,
    pub(super) online: bool,
    pub(super) owner: Owner,
}

impl Route {
    /// Makes a route of its routers; `None` if there are none. The way stays as long as it is online.
    pub(super) fn new(compiled: &Compiled, prefix: IpNet, routers: Vec<Router>, old: Option<&Self>) -> Option<Self> {
        let old = old.map(|old| old.primary);
        let best = |online: bool| {
            let mut candidates = routers.iter().filter(|router| router.online == online).map(|router| router.node);
            let first = candidates.clone().next();
            candidates.find(|node| Some(*node) == old).or(first)
        };
        // With nobody there, the last one stays: hosts of that subnet must not be looked for elsewhere.
        let primary = best(true).or_else(|| best(false))?;
        let only = match routers.as_slice() {
            [router] => Some(router.node),
            _ => None,
        };
        let mentions = compiled.route_mentions(prefix, only);
        let mut via = RuleSet::default();
        for number in compiled.book.via.iter() {
            if compiled.via_overlaps(number, prefix) {
                via.insert(number);
            }
        }
        Some(Self {
            routers,
            primary,
            sources: mentions.sources,
            destinations: mentions.destinations,
            via,
            covers_nodes: mentions.covers_nodes,
        })
    }

    /// Returns the part of a node for those whom a rule sends through nodes with these tags; `None` if it has none.
    fn part_via(&self, tags: &[String], node: NodeId) -> Option<Part> {
        let tagged = |router: &&Router| match &router.owner {
            Owner::Tags(owned) => tags.iter().any(|tag| owned.contains(tag)),
            Owner::User(_) => false,
        };
        let candidates = || self.routers.iter().filter(tagged);
        let way = candidates().find(|router| router.online).or_else(|| candidates().next())?;
        candidates().any(|router| router.node == node).then(|| Part::new(way.node == node))
    }
}

/// Says what a router is to somebody who uses its subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// Another is the way; this one could be.
    Standby,
    /// It is the way.
    Way,
}

impl Part {
    fn new(is_way: bool) -> Self {
        if is_way { Self::Way } else { Self::Standby }
    }
}

impl Compiled {
    /// Returns the routes of a peer that a viewer may use: subnets to which the peer is the way, and exit routes.
    #[must_use]
    pub fn routes(&self, viewer: NodeId, peer: NodeId) -> PeerRoutes {
        let (Some(viewer_member), Some(member)) = (self.members.get(&viewer), self.members.get(&peer)) else {
            return PeerRoutes::default();
        };
        if member.draft.node.approved_routes.is_empty() || !self.visible(viewer, peer) {
            return PeerRoutes::default();
        }
        let (mut primary, mut standby) = (Vec::new(), Vec::new());
        for route in &member.draft.subnet_routes {
            match self.part(viewer_member, *route, peer) {
                Some(Part::Way) => primary.push(*route),
                Some(Part::Standby) => standby.push(*route),
                None => {}
            }
        }
        let mut allowed = primary.clone();
        if member.draft.is_exit_node && self.uses_exit(viewer_member, member) {
            allowed.extend(exit_routes(member));
        }
        allowed.sort_unstable();
        PeerRoutes { allowed, primary, standby }
    }

    /// Returns the routes that a node itself has: all that were approved, and those of them for which it is the way.
    #[must_use]
    pub fn own_routes(&self, node: NodeId) -> PeerRoutes {
        let Some(member) = self.members.get(&node) else { return PeerRoutes::default() };
        let subnets = &member.draft.subnet_routes;
        let is_primary = |route: &IpNet| self.routes.get(*route).is_some_and(|route| route.primary == node);
        let mut allowed: Vec<IpNet> = subnets.iter().copied().chain(exit_routes(member)).collect();
        allowed.sort_unstable();
        PeerRoutes { allowed, primary: subnets.iter().copied().filter(is_primary).collect(), standby: Vec::new() }
    }

    /// Returns what a router of a subnet is to a viewer; `None` if the viewer may not use it.
    fn part(&self, viewer: &Member, prefix: IpNet, peer: NodeId) -> Option<Part> {
        let route = self.routes.get(prefix)?;
        let active = &self.moment.active;
        let by_any_router = viewer.kind.sources.meets_both(&route.destinations, active)
            || viewer.kind.destinations.meets_both(&route.sources, active)
            // Another router to the same subnet.
            || viewer.draft.subnet_routes.binary_search(&prefix).is_ok();
        if by_any_router {
            return Some(Part::new(route.primary == peer));
        }
        let via = route.via.common(&viewer.kind.sources).common(active);
        via.iter().filter_map(|number| self.book.rule(number)).filter_map(|rule| route.part_via(&rule.via, peer)).max()
    }

    fn uses_exit(&self, viewer: &Member, peer: &Member) -> bool {
        let active = &self.moment.active;
        if viewer.kind.sources.meets_both(&self.book.exit_use, active) {
            return true;
        }
        let via = viewer.kind.sources.common(&self.book.via).common(active);
        let leads_out = |number: usize| self.book.rule(number).is_some_and(|rule| rule.target == Target::Internet);
        peer.kind.destinations.common(&via).iter().any(leads_out)
    }

    /// Calls with each subnet that came, went, or of which something changed.
    pub(super) fn changed_routes<'a>(
        old: &'a Self,
        new: &'a Self,
        mut report: impl FnMut(Option<&'a Route>, Option<&'a Route>),
    ) {
        super::prefixes::PrefixMap::differences(
            &old.routes,
            &new.routes,
            |one, two| std::sync::Arc::ptr_eq(one, two) || one == two,
            |_, before, after| report(before.map(|route| &**route), after.map(|route| &**route)),
        );
    }
}

fn exit_routes(member: &Member) -> BTreeSet<IpNet> {
    let routes = member.draft.node.approved_routes.iter();
    routes.filter(|route| route.prefix_len() == 0).map(|route| route.trunc()).collect()
}

/// Exit nodes by number.
pub(super) type ExitNodes = ChunkedMap<NodeId, ()>;
