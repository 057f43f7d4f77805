//! A node as the policy sees it, and the kinds of nodes: those that no rule tells apart.

use super::address::{overlap, range_holds, range_of, range_overlaps, wildcard_covers};
use super::chunked::ChunkedMap;
use super::rule_set::RuleSet;
use super::rules::{List, Mentions};
use super::target::{Target, selectors_of};
use super::{Compiled, Sources};
use crate::posture::Assertion;
use crate::{Attributes, DirectoryNode, Owner};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use warren_wire::control::NodeId;

/// Nodes by number.
pub(super) type NodeSet = ChunkedMap<NodeId, ()>;

/// A node with all that the policy says of it alone.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) draft: Arc<Draft>,
    pub(super) kind: Arc<Kind>,
    pub(super) membership: Arc<Membership>,
    /// Whether its subnet routes hold addresses of other nodes.
    pub(super) covers_others: bool,
}

/// A node before rules are looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Draft {
    pub(super) node: Arc<DirectoryNode>,
    /// Its addresses, without those that the policy takes away.
    pub(super) addresses: Vec<IpAddr>,
    /// Sorted, each once.
    pub(super) subnet_routes: Vec<IpNet>,
    pub(super) is_exit_node: bool,
}

/// What rules tell nodes apart by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Kind {
    /// Rules that have the node, or a subnet behind it, as a source.
    pub(super) sources: RuleSet,
    /// Rules that have the node, or a subnet behind it, as a destination.
    pub(super) destinations: RuleSet,
    /// Rules that are in its filter; an exit node also has rules to parts of the Internet.
    pub(super) filter: RuleSet,
    /// Rules that let it reach the devices of its owner.
    pub(super) own_sources: RuleSet,
    /// Rules that let the devices of its owner reach it.
    pub(super) own: RuleSet,
}

impl Kind {
    /// Tells whether one of these rules is about such nodes.
    pub(super) fn meets(&self, rules: &RuleSet) -> bool {
        [&self.sources, &self.destinations, &self.filter, &self.own_sources, &self.own]
            .into_iter()
            .any(|set| set.meets(rules))
    }
}

/// In which lists of sources a node is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Membership {
    /// Lists that name it, so that all its addresses are in them.
    pub(super) lists: RuleSet,
    /// Lists that need postures, which it has, and hold some of its addresses literally.
    pub(super) partly: RuleSet,
    /// Lists that need postures, which it does not have.
    pub(super) failed: RuleSet,
}

/// What the policy says of all nodes of an owner.
#[derive(Debug, PartialEq, Eq, Default)]
pub(super) struct Base {
    pub(super) mentions: Mentions,
    pub(super) via: RuleSet,
    without_ipv4: bool,
    /// The membership of such a node if postures and addresses do not matter.
    membership: Arc<Membership>,
}

/// An owner and their nodes.
#[derive(Debug)]
pub(super) struct OwnerEntry {
    pub(super) base: Arc<Base>,
    pub(super) nodes: NodeSet,
    /// The addresses of a user's devices.
    pub(super) devices: Arc<Sources>,
}

impl Base {
    pub(super) fn new(compiled: &Compiled, owner: &Owner) -> Self {
        let book = &compiled.book;
        let mut base = Self::default();
        let selectors = selectors_of(owner, &compiled.users, &compiled.domains, &book.groups);
        for mentions in selectors.iter().filter_map(|selector| book.by_selector.get(selector)) {
            base.mentions.extend(mentions);
        }
        // `*` as a source waits for the node's addresses.
        base.mentions.destinations.extend(&book.any.destinations);
        match owner {
            Owner::User(_) => base.mentions.own.extend(&book.any.own),
            Owner::Tags(tags) => {
                base.mentions.own = RuleSet::default();
                tags.iter().filter_map(|tag| book.via_by_tag.get(tag)).for_each(|rules| base.via.extend(rules));
            }
        }
        base.without_ipv4 = book.without_ipv4.iter().any(|target| match target {
            Target::Any => true,
            Target::Named(selector) => selectors.contains(selector),
            Target::Everywhere | Target::Internet | Target::Prefix(_) | Target::Set(_) | Target::OwnDevices => false,
        });
        base.membership = Arc::new(Membership { lists: base.mentions.lists.clone(), ..Membership::default() });
        base
    }
}

impl Draft {
    pub(super) fn new(compiled: &Compiled, node: Arc<DirectoryNode>, base: &Base) -> Self {
        let without_ipv4 = base.without_ipv4
            || compiled.book.without_ipv4.iter().any(|target| {
                let ranges = target.literal();
                ranges.iter().any(|range| node.addresses.iter().any(|address| range_holds(*range, *address)))
            });
        let subnet_routes: BTreeSet<IpNet> = node.subnet_routes().map(|route| route.trunc()).collect();
        Self {
            addresses: node.addresses.iter().copied().filter(|address| !without_ipv4 || address.is_ipv6()).collect(),
            subnet_routes: subnet_routes.into_iter().collect(),
            is_exit_node: node.is_exit_node(),
            node,
        }
    }

    /// Tells whether a target holds a subnet behind the node, as far as the policy says which addresses it holds.
    fn has_behind(&self, target: &Target) -> bool {
        let ranges = target.literal();
        self.subnet_routes.iter().any(|route| ranges.iter().any(|range| range_overlaps(*range, range_of(*route))))
    }
}

impl Member {
    pub(super) fn new(compiled: &Compiled, id: NodeId, draft: Arc<Draft>, base: &Base) -> Self {
        let book = &*compiled.book;
        let failed = compiled.failed_lists(&draft.node.attributes);
        // Whom the policy takes the only address away is nobody, but for the subnets behind.
        let (via, nobody) = (&base.via, Base::default());
        let base = if draft.addresses.is_empty() { &nobody } else { base };
        let mut lists = base.mentions.lists.clone();
        failed.iter().for_each(|list| lists.remove(list));
        let mut partly = RuleSet::default();
        let mut kind = Kind {
            sources: base.mentions.sources.clone(),
            destinations: base.mentions.destinations.clone(),
            own: base.mentions.own.clone(),
            ..Kind::default()
        };
        let passed = |lists: &RuleSet| {
            let mut passed = lists.common(&book.posture_lists);
            failed.iter().for_each(|list| passed.remove(list));
            passed
        };
        book.rules_of(&passed(&base.mentions.lists)).for_each(|rules| kind.sources.extend(rules));
        let is_router = !draft.subnet_routes.is_empty();
        if is_router || draft.addresses.iter().any(|address| wildcard_covers(*address)) {
            kind.sources.extend(&book.any.sources);
            lists.extend(&passed(&book.any.lists));
        }
        if !draft.addresses.is_empty() {
            kind.sources.extend(&book.everywhere.sources);
            lists.extend(&passed(&book.everywhere.lists));
        }
        book.rules_of(&lists.common(&book.posture_lists)).for_each(|rules| kind.sources.extend(rules));
        for mentions in draft.addresses.iter().flat_map(|address| book.literals.containing(IpNet::from(*address))) {
            kind.sources.extend(&mentions.sources);
            kind.destinations.extend(&mentions.destinations);
            let passed = passed(&mentions.lists);
            book.rules_of(&passed).for_each(|rules| kind.sources.extend(rules));
            partly.extend(&passed);
        }
        // A subnet behind the node is not a device: postures do not concern it.
        let mut covers_others = false;
        for route in &draft.subnet_routes {
            let behind = compiled.route_mentions(*route, Some(id));
            covers_others |= behind.covers_nodes;
            kind.sources.extend(&behind.sources);
            kind.destinations.extend(&behind.destinations);
        }
        if draft.is_exit_node {
            kind.destinations.extend(&book.exit_use);
        }
        kind.own_sources = kind.own.clone();
        for number in kind.own.iter().collect::<Vec<_>>() {
            if failed.contains(book.list_of(number)) {
                // Of a companion, the devices of the source are the destination.
                let is_companion = book.rule(number).is_some_and(|rule| rule.is_companion);
                if is_companion { &mut kind.own } else { &mut kind.own_sources }.remove(number);
            }
        }
        for (number, list) in &book.posture_targets {
            let is_behind = || book.rule(*number).is_some_and(|rule| draft.has_behind(&rule.target));
            if failed.contains(*list) && kind.destinations.contains(*number) && !is_behind() {
                kind.destinations.remove(*number);
            }
        }
        for number in via.iter() {
            if compiled.leads_via(number, &draft) {
                kind.destinations.insert(number);
            }
        }
        kind.filter = kind.destinations.clone();
        if draft.is_exit_node {
            kind.filter.extend(&book.exit_filter);
        }
        let membership = Membership { lists, partly, failed };
        let membership =
            if membership == *base.membership { Arc::clone(&base.membership) } else { Arc::new(membership) };
        Self { draft, kind: Arc::new(kind), membership, covers_others }
    }

    /// Returns what a node adds to a list of sources.
    pub(super) fn sources_in<'a>(&'a self, number: usize, list: &'a List) -> impl Iterator<Item = IpAddr> + 'a {
        let all = self.membership.lists.contains(number);
        let some = self.membership.partly.contains(number);
        let named = !list.is_everything() && (all || some);
        self.draft.addresses.iter().copied().filter(move |address| {
            named
                && (all
                    || list
                        .key
                        .targets
                        .iter()
                        .any(|target| target.literal().into_iter().any(|range| range_holds(range, *address))))
        })
    }
}

/// What the policy says of the hosts behind a route.
#[derive(Default)]
pub(super) struct RouteMentions {
    pub(super) sources: RuleSet,
    pub(super) destinations: RuleSet,
    pub(super) covers_nodes: bool,
}

impl Compiled {
    /// Returns the lists whose postures a device with these attributes does not have.
    fn failed_lists(&self, attributes: &Attributes) -> RuleSet {
        let mut failed = RuleSet::default();
        for (list, lists) in &self.book.by_postures {
            let has = |assertions: &Vec<Assertion>| assertions.iter().all(|assertion| assertion.holds(attributes));
            if !list.postures.iter().any(has) {
                failed.extend(lists);
            }
        }
        failed
    }

    /// Returns the rules that have hosts behind a route as sources or destinations, nodes whose addresses it holds
    /// included. `router` is whose address there does not count as another's.
    pub(super) fn route_mentions(&self, route: IpNet, router: Option<NodeId>) -> RouteMentions {
        let book = &*self.book;
        let mut found = RouteMentions::default();
        for mentions in
            [&book.any, &book.everywhere].into_iter().chain(book.literals.overlapping(route).map(|arc| &**arc))
        {
            found.sources.extend(&mentions.sources);
            found.destinations.extend(&mentions.destinations);
            let posture_lists = mentions.lists.common(&book.posture_lists);
            book.rules_of(&posture_lists).for_each(|rules| found.sources.extend(rules));
        }
        for other in self.nodes_within(route) {
            found.covers_nodes |= Some(other) != router;
            let Some((node, base)) = self.node_and_base(other) else { continue };
            let failed = self.failed_lists(&node.attributes);
            found.sources.extend(&base.mentions.sources);
            let mut destinations = base.mentions.destinations.clone();
            let unfit = book.posture_targets.iter().filter(|(_, list)| failed.contains(**list));
            unfit.for_each(|(number, _)| destinations.remove(*number));
            found.destinations.extend(&destinations);
            let mut lists = base.mentions.lists.common(&book.posture_lists);
            failed.iter().for_each(|list| lists.remove(list));
            book.rules_of(&lists).for_each(|rules| found.sources.extend(rules));
        }
        found
    }

    /// Tells whether a rule that goes through certain routers goes through one with these routes.
    fn leads_via(&self, number: usize, draft: &Draft) -> bool {
        let internet = self.book.rule(number).is_some_and(|rule| rule.target == Target::Internet);
        internet && draft.is_exit_node || draft.subnet_routes.iter().any(|route| self.via_overlaps(number, *route))
    }

    /// Tells whether a rule that goes through certain routers leads to a host behind a route.
    pub(super) fn via_overlaps(&self, number: usize, route: IpNet) -> bool {
        match self.book.rule(number).map(|rule| &rule.target) {
            Some(Target::Any | Target::Everywhere) => true,
            Some(Target::Internet | Target::OwnDevices) | None => false,
            Some(Target::Prefix(prefix)) => overlap(*prefix, route),
            Some(Target::Set(set)) => set.overlaps(route),
            Some(Target::Named(_)) => self
                .nodes_within(route)
                .any(|node| self.node_and_base(node).is_some_and(|(_, base)| base.mentions.via.contains(number))),
        }
    }

    /// Returns the nodes that have an address within a prefix.
    pub(super) fn nodes_within(&self, prefix: IpNet) -> impl Iterator<Item = NodeId> + '_ {
        self.addresses_within(prefix).map(|(_, node)| node)
    }

    pub(super) fn addresses_within(&self, prefix: IpNet) -> impl Iterator<Item = (IpAddr, NodeId)> + '_ {
        let last = prefix.broadcast();
        let addresses = self.by_address.from(&(prefix.network(), NodeId(i64::MIN))).map(|(entry, ())| *entry);
        addresses.take_while(move |(address, _)| *address <= last)
    }
}
