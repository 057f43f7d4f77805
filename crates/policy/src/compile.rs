//! From a policy and a directory to what each node receives and sees.
//!
//! Every rule has a number. Of each node we keep which rules have it as a source and which as a destination, as bits;
//! nodes that agree in owner, tags and bits form a class, and most questions are asked of classes. Only host addresses
//! and approved routes are looked at per node.
//!
//! Memory is linear in the policy's text and in the directory: rules share their lists of sources, and a selector that
//! occurs in many lists is looked up once.

mod address;
mod classes;
mod merge;
mod rule_set;
mod target;

use crate::selector::Selector;
use crate::{Directory, Owner, Policy};
use address::{overlap, prefix_text, within_internet};
use classes::{Class, ClassKey};
use ipnet::IpNet;
use merge::FilterBuilder;
use rule_set::RuleSet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use target::{Index, Target};
use warren_wire::control::{FilterRule, NodeId, PortRange, UserId};

/// A policy compiled for one directory.
#[derive(Debug, Clone)]
pub(crate) struct Plain {
    rules: Vec<Rule>,
    source_lists: Vec<SourceList>,
    classes: Vec<Class>,
    nodes: BTreeMap<NodeId, Member>,
    by_address: BTreeMap<IpAddr, NodeId>,
    /// Untagged nodes by owner.
    by_user: BTreeMap<UserId, Vec<NodeId>>,
}

/// A grant with its names looked up.
#[derive(Debug, Clone)]
struct Rule {
    /// Number of the list of its sources.
    sources: usize,
    destinations: Vec<Arc<Target>>,
    services: Vec<(Vec<i64>, Vec<PortRange>)>,
}

/// The sources of one or more rules.
#[derive(Debug, Clone)]
struct SourceList {
    targets: Vec<Arc<Target>>,
    /// What the wire calls them, target by target; the same text may occur in several.
    texts: Vec<Arc<[String]>>,
    /// The rules that have these sources.
    rules: RuleSet,
    /// Those of them that lead to the devices of the source's owner.
    to_own_devices: RuleSet,
}

/// A node within its class.
#[derive(Debug, Clone)]
struct Member {
    class: usize,
    addresses: Vec<IpAddr>,
    subnet_routes: Vec<IpNet>,
    is_exit_node: bool,
}

impl Plain {
    pub(crate) fn new(policy: &Policy, directory: &Directory) -> Self {
        let mut compiled = Self {
            rules: Vec::with_capacity(policy.sections.grants.len()),
            source_lists: Vec::new(),
            classes: Vec::new(),
            nodes: BTreeMap::new(),
            by_address: BTreeMap::new(),
            by_user: BTreeMap::new(),
        };
        let mut index = Index::new(directory, &policy.sections);
        let mut list_numbers: BTreeMap<&[Selector], usize> = BTreeMap::new();
        for (number, grant) in policy.sections.grants.iter().enumerate() {
            let sources = *list_numbers.entry(&grant.sources).or_insert_with_key(|selectors| {
                compiled.source_lists.push(SourceList {
                    targets: selectors.iter().map(|selector| index.target(selector)).collect(),
                    texts: selectors.iter().map(|selector| index.texts(selector)).collect(),
                    rules: RuleSet::default(),
                    to_own_devices: RuleSet::default(),
                });
                compiled.source_lists.len().saturating_sub(1)
            });
            if let Some(list) = compiled.source_lists.get_mut(sources) {
                list.rules.insert(number);
                if grant.destinations.contains(&Selector::OwnDevices) {
                    list.to_own_devices.insert(number);
                }
            }
            compiled.rules.push(Rule {
                sources,
                destinations: grant.destinations.iter().map(|selector| index.target(selector)).collect(),
                services: grant
                    .services
                    .iter()
                    .map(|service| (service.protocol.map(i64::from).into_iter().collect(), service.ports.clone()))
                    .collect(),
            });
        }
        for (id, node) in &directory.nodes {
            if let Owner::User(user) = node.owner {
                compiled.by_user.entry(user).or_default().push(*id);
            }
            compiled.by_address.extend(node.addresses.iter().map(|address| (*address, *id)));
        }
        compiled.classify(directory);
        compiled
    }

    /// Returns the filter of a node: what others may send to it and to the subnets behind it. Empty denies everything.
    ///
    /// Rules with equal sources and protocols are one, in the place of the first; send an empty list as a list.
    #[must_use]
    pub(crate) fn filter(&self, node: NodeId) -> Vec<FilterRule> {
        let Some((member, class)) = self.member(node) else {
            return Vec::new();
        };
        let mut filter = FilterBuilder::default();
        let mut own_sources = None;
        let mut wanted = class.filter.clone();
        wanted.extend(&class.own);
        for (number, rule) in wanted.iter().filter_map(|number| Some((number, self.rules.get(number)?))) {
            let destinations: Vec<String> = rule
                .destinations
                .iter()
                .flat_map(|target| self.destination_texts(target, member, &class.owner))
                .collect();
            if !destinations.is_empty() {
                let sources = filter.sources(rule.sources, || {
                    let texts = self.source_lists.get(rule.sources).into_iter().flat_map(|list| &list.texts);
                    texts.flat_map(|texts| texts.iter().cloned())
                });
                filter.add(sources, rule, &destinations);
            }
            if class.own.contains(number)
                && let Owner::User(user) = class.owner
            {
                let sources = *own_sources.get_or_insert_with(|| {
                    filter.list(self.devices_of(user).flat_map(|device| device.addresses.iter().map(IpAddr::to_string)))
                });
                filter.add(sources, rule, &self.addresses_at(member, |owner| *owner == class.owner));
            }
        }
        filter.finish()
    }

    /// Tells whether two nodes see each other; the same both ways. No node sees itself.
    #[must_use]
    pub(crate) fn visible(&self, one: NodeId, two: NodeId) -> bool {
        let (Some((_, first)), Some((_, second))) = (self.member(one), self.member(two)) else {
            return false;
        };
        one != two && first.sees(second)
    }

    /// Returns the nodes that a node sees, in order.
    pub(crate) fn peers(&self, node: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let own = self.member(node).map(|(_, class)| class);
        let visible = move |class: &&Class| own.is_some_and(|own| own.sees(&class.key));
        let mut peers: Vec<NodeId> = self
            .classes
            .iter()
            .filter(visible)
            .flat_map(|class| &class.nodes)
            .copied()
            .filter(|peer| *peer != node)
            .collect();
        peers.sort_unstable();
        peers.into_iter()
    }

    fn member(&self, node: NodeId) -> Option<(&Member, &ClassKey)> {
        let member = self.nodes.get(&node)?;
        let class = self.classes.get(member.class)?;
        Some((member, &class.key))
    }

    fn devices_of(&self, user: UserId) -> impl Iterator<Item = &Member> {
        let devices = self.by_user.get(&user).into_iter().flatten();
        devices.filter_map(|node| self.nodes.get(node))
    }

    /// Writes the part of a destination that concerns a node.
    fn destination_texts(&self, target: &Target, member: &Member, owner: &Owner) -> Vec<String> {
        match target {
            Target::Any => vec!["*".to_owned()],
            Target::Prefix(prefix) if member.receives(*prefix) => vec![prefix_text(*prefix)],
            Target::Prefix(_) | Target::OwnDevices => Vec::new(),
            Target::Users(_) | Target::Members | Target::Tag(_) => {
                let mut texts = Vec::new();
                if target.covers_owner(owner) {
                    texts.extend(member.addresses.iter().map(IpAddr::to_string));
                }
                texts.extend(self.behind(member, |other| target.covers_owner(other)));
                texts
            }
        }
    }

    /// Returns a node's own addresses, and those of matching nodes that lie behind its routes.
    fn addresses_at(&self, member: &Member, matching: impl Fn(&Owner) -> bool) -> Vec<String> {
        let own = member.addresses.iter().map(IpAddr::to_string);
        own.chain(self.behind(member, matching)).collect()
    }

    /// Returns the addresses of matching nodes that lie within a node's subnet routes, without its own.
    fn behind<'a>(
        &'a self,
        member: &'a Member,
        matching: impl Fn(&Owner) -> bool + 'a,
    ) -> impl Iterator<Item = String> + 'a {
        self.addresses_within(&member.subnet_routes)
            .filter(|(address, _)| !member.addresses.contains(address))
            .filter(move |(_, node)| self.member(*node).is_some_and(|(_, class)| matching(&class.owner)))
            .map(|(address, _)| address.to_string())
    }

    fn addresses_within<'a>(&'a self, routes: &'a [IpNet]) -> impl Iterator<Item = (IpAddr, NodeId)> + 'a {
        routes
            .iter()
            .flat_map(|route| self.by_address.range(route.network()..=route.broadcast()))
            .map(|(address, node)| (*address, *node))
    }
}

impl Member {
    /// Tells whether a prefix holds an address of the node or overlaps a subnet behind it.
    fn holds(&self, prefix: IpNet) -> bool {
        self.addresses.iter().any(|address| prefix.contains(address))
            || self.subnet_routes.iter().any(|route| overlap(*route, prefix))
    }

    /// Tells whether packets to a prefix may come to the node, so that its filter must know the prefix.
    fn receives(&self, prefix: IpNet) -> bool {
        self.holds(prefix) || self.is_exit_node && within_internet(prefix)
    }
}

#[cfg(test)]
mod tests;
