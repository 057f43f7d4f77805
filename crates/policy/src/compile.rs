//! From a policy and a directory to what each node receives and sees.
//!
//! Every rule has a number. Of each node we keep which rules have it as a source and which as a destination, as bits;
//! nodes that agree in owner, tags and bits form a class, and most questions are asked of classes. Only host addresses
//! and approved routes are looked at per node.

mod address;
mod rule_set;
mod target;

pub use rule_set::RuleSet;

use crate::{Directory, DirectoryNode, Owner, Policy};
use address::{overlap, prefix_text, wildcard_covers, within_internet};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use target::{Index, Target};
use warren_wire::control::{FilterRule, NetPortRange, NodeId, PortRange, UserId};

/// A policy compiled for one directory.
#[derive(Debug, Clone)]
pub struct Compiled {
    rules: Vec<Rule>,
    classes: Vec<Class>,
    nodes: BTreeMap<NodeId, Member>,
    by_address: BTreeMap<IpAddr, NodeId>,
    /// Untagged nodes by owner.
    by_user: BTreeMap<UserId, Vec<NodeId>>,
}

/// A grant with its names looked up.
#[derive(Debug, Clone)]
struct Rule {
    sources: Vec<Target>,
    /// Sources as the wire names them; rules with equal sources share them.
    source_texts: Arc<[String]>,
    destinations: Vec<Target>,
    services: Vec<(Vec<i64>, Vec<PortRange>)>,
}

/// Nodes that the policy does not tell apart.
#[derive(Debug, Clone)]
struct Class {
    key: ClassKey,
    nodes: Vec<NodeId>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct ClassKey {
    owner: Owner,
    /// Rules that have the node, or a subnet behind it, as a source.
    sources: RuleSet,
    /// Rules that have the node, or a subnet behind it, as a destination.
    destinations: RuleSet,
    /// Rules that are in its filter; an exit node also has rules to parts of the Internet.
    filter: RuleSet,
    /// Rules that let the devices of its owner reach each other.
    own: RuleSet,
}

/// A node within its class.
#[derive(Debug, Clone)]
struct Member {
    class: usize,
    addresses: Vec<IpAddr>,
    subnet_routes: Vec<IpNet>,
    is_exit_node: bool,
}

impl Compiled {
    pub(crate) fn new(policy: &Policy, directory: &Directory) -> Self {
        let index = Index::new(directory);
        let mut shared: BTreeMap<Vec<Target>, Arc<[String]>> = BTreeMap::new();
        let rules: Vec<Rule> = policy
            .sections
            .grants
            .iter()
            .map(|grant| {
                let resolve = |selectors: &[crate::selector::Selector]| -> Vec<Target> {
                    selectors.iter().map(|selector| index.resolve(selector, &policy.sections)).collect()
                };
                let sources = resolve(&grant.sources);
                let source_texts = shared.entry(sources.clone()).or_insert_with(|| index.source_texts(&sources).into());
                Rule {
                    source_texts: Arc::clone(source_texts),
                    sources,
                    destinations: resolve(&grant.destinations),
                    services: grant
                        .services
                        .iter()
                        .map(|service| (service.protocol.map(i64::from).into_iter().collect(), service.ports.clone()))
                        .collect(),
                }
            })
            .collect();
        let mut compiled = Self {
            rules,
            classes: Vec::new(),
            nodes: BTreeMap::new(),
            by_address: BTreeMap::new(),
            by_user: BTreeMap::new(),
        };
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
    #[must_use]
    pub fn filter(&self, node: NodeId) -> Vec<FilterRule> {
        let Some((member, class)) = self.member(node) else {
            return Vec::new();
        };
        let mut filter = FilterBuilder::default();
        let mut wanted = class.filter.clone();
        wanted.extend(&class.own);
        for rule in wanted.iter().filter_map(|number| self.rules.get(number)) {
            let own = rule.destinations.contains(&Target::OwnDevices) && self.is_own_source(rule, &class.owner);
            let others: Vec<String> = rule
                .destinations
                .iter()
                .flat_map(|target| self.destination_texts(target, member, &class.owner))
                .collect();
            for (protocols, ports) in &rule.services {
                filter.add(&rule.source_texts, protocols, &others, ports);
            }
            if own && let Owner::User(user) = class.owner {
                let sources: Vec<String> =
                    self.devices_of(user).flat_map(|device| device.addresses.iter().map(IpAddr::to_string)).collect();
                let destinations = self.addresses_at(member, |owner| *owner == class.owner);
                for (protocols, ports) in &rule.services {
                    filter.add(&sources, protocols, &destinations, ports);
                }
            }
        }
        filter.rules
    }

    /// Tells whether two nodes see each other; the same both ways. No node sees itself.
    #[must_use]
    pub fn visible(&self, one: NodeId, two: NodeId) -> bool {
        let (Some((_, first)), Some((_, second))) = (self.member(one), self.member(two)) else {
            return false;
        };
        one != two && see_each_other(first, second)
    }

    /// Returns the nodes that a node sees, in order.
    pub fn peers(&self, node: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let own = self.member(node).map(|(_, class)| class);
        let visible = move |class: &&Class| own.is_some_and(|own| see_each_other(own, &class.key));
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

    /// Returns how many kinds of nodes the policy tells apart.
    #[must_use]
    pub fn class_count(&self) -> usize {
        self.classes.len()
    }

    fn member(&self, node: NodeId) -> Option<(&Member, &ClassKey)> {
        let member = self.nodes.get(&node)?;
        let class = self.classes.get(member.class)?;
        Some((member, &class.key))
    }

    /// Tells whether a rule has the untagged devices of this owner among its sources.
    fn is_own_source(&self, rule: &Rule, owner: &Owner) -> bool {
        matches!(owner, Owner::User(_)) && rule.sources.iter().any(|source| source.covers_owner(owner))
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

    /// Sorts all nodes into classes.
    fn classify(&mut self, directory: &Directory) {
        let mut by_owner: BTreeMap<&Owner, ClassKey> = BTreeMap::new();
        for node in directory.nodes.values() {
            by_owner.entry(&node.owner).or_insert_with(|| self.key_of_owner(&node.owner));
        }
        let literals = self.literals();
        let mut class_numbers: BTreeMap<ClassKey, usize> = BTreeMap::new();
        for (id, node) in &directory.nodes {
            let Some(base) = by_owner.get(&node.owner) else { continue };
            let member = Member {
                class: 0,
                addresses: node.addresses.clone(),
                subnet_routes: node.subnet_routes().collect(),
                is_exit_node: node.is_exit_node(),
            };
            let key = self.key_of_node(node, &member, base.clone(), &literals, |other| {
                let other = directory.nodes.get(&other)?;
                by_owner.get(&other.owner)
            });
            let class = *class_numbers.entry(key).or_insert_with_key(|key| {
                self.classes.push(Class { key: key.clone(), nodes: Vec::new() });
                self.classes.len().saturating_sub(1)
            });
            if let Some(class) = self.classes.get_mut(class) {
                class.nodes.push(*id);
            }
            self.nodes.insert(*id, Member { class, ..member });
        }
    }

    /// Returns the rules that cover a node for whose it is. `*` as a source waits for the node's addresses.
    fn key_of_owner(&self, owner: &Owner) -> ClassKey {
        let mut key = ClassKey {
            owner: owner.clone(),
            sources: RuleSet::default(),
            destinations: RuleSet::default(),
            filter: RuleSet::default(),
            own: RuleSet::default(),
        };
        for (number, rule) in self.rules.iter().enumerate() {
            let covers = |target: &Target| *target != Target::Any && target.covers_owner(owner);
            if rule.sources.iter().any(covers) {
                key.sources.insert(number);
            }
            if rule.destinations.iter().any(|target| target.covers_owner(owner)) {
                key.destinations.insert(number);
            }
            if rule.destinations.contains(&Target::OwnDevices) && self.is_own_source(rule, owner) {
                key.own.insert(number);
            }
        }
        key
    }

    /// Returns the rules with addresses or `*` in them, so that not every node looks at every rule.
    fn literals(&self) -> Literals {
        let mut literals = Literals::default();
        for (number, rule) in self.rules.iter().enumerate() {
            for source in &rule.sources {
                match source {
                    Target::Any => literals.any_sources.insert(number),
                    Target::Prefix(prefix) => literals.sources.push((*prefix, number)),
                    Target::Users(_) | Target::Members | Target::Tag(_) | Target::OwnDevices => {}
                }
            }
            for destination in &rule.destinations {
                if let Target::Prefix(prefix) = destination {
                    literals.destinations.push((*prefix, number));
                }
            }
        }
        literals
    }

    /// Adds to the rules of a node's owner those that cover its addresses and the subnets behind it.
    fn key_of_node<'a>(
        &self,
        node: &DirectoryNode,
        member: &Member,
        mut key: ClassKey,
        literals: &Literals,
        key_of_other: impl Fn(NodeId) -> Option<&'a ClassKey>,
    ) -> ClassKey {
        let by_wildcard = node.addresses.iter().any(|address| wildcard_covers(*address));
        if by_wildcard || !member.subnet_routes.is_empty() {
            key.sources.extend(&literals.any_sources);
        }
        for (prefix, number) in &literals.sources {
            if member.holds(*prefix) {
                key.sources.insert(*number);
            }
        }
        for (prefix, number) in &literals.destinations {
            if member.holds(*prefix) || member.is_exit_node && prefix.prefix_len() == 0 {
                key.destinations.insert(*number);
            }
        }
        // A route over other nodes' addresses stands in for them.
        let behind: BTreeSet<NodeId> = self.addresses_within(&member.subnet_routes).map(|(_, node)| node).collect();
        for other in behind.into_iter().filter_map(key_of_other) {
            key.sources.extend(&other.sources);
            key.destinations.extend(&other.destinations);
        }
        key.filter = key.destinations.clone();
        for (prefix, number) in &literals.destinations {
            if member.receives(*prefix) {
                key.filter.insert(*number);
            }
        }
        key
    }
}

/// Rules with addresses in them.
#[derive(Default)]
struct Literals {
    any_sources: RuleSet,
    sources: Vec<(IpNet, usize)>,
    destinations: Vec<(IpNet, usize)>,
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

fn see_each_other(one: &ClassKey, two: &ClassKey) -> bool {
    one.sources.meets(&two.destinations)
        || two.sources.meets(&one.destinations)
        || one.owner == two.owner && !one.own.is_empty()
}

/// Puts rules together, joining those with equal sources and protocols in the place of the first.
#[derive(Default)]
struct FilterBuilder {
    rules: Vec<FilterRule>,
    places: BTreeMap<(Vec<String>, Vec<i64>), usize>,
}

impl FilterBuilder {
    fn add(&mut self, sources: &[String], protocols: &[i64], destinations: &[String], ports: &[PortRange]) {
        if sources.is_empty() || destinations.is_empty() {
            return;
        }
        let place =
            *self.places.entry((sources.to_vec(), protocols.to_vec())).or_insert_with_key(|(sources, protocols)| {
                self.rules.push(FilterRule {
                    src_ips: sources.clone(),
                    ip_proto: protocols.clone(),
                    ..FilterRule::default()
                });
                self.rules.len().saturating_sub(1)
            });
        let Some(rule) = self.rules.get_mut(place) else { return };
        for destination in destinations {
            rule.dst_ports.extend(ports.iter().map(|ports| NetPortRange {
                ip: destination.clone(),
                bits: None,
                ports: *ports,
            }));
        }
    }
}

#[cfg(test)]
mod tests;
