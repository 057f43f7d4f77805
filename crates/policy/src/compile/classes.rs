//! Kinds of nodes: those that no rule tells apart.

use super::address::wildcard_covers;
use super::rule_set::RuleSet;
use super::target::Target;
use super::{Member, Plain, SourceList};
use crate::{Directory, DirectoryNode, Owner};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use warren_wire::control::NodeId;

/// Nodes that the policy does not tell apart.
#[derive(Debug, Clone)]
pub(super) struct Class {
    pub(super) key: ClassKey,
    pub(super) nodes: Vec<NodeId>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClassKey {
    pub(super) owner: Owner,
    /// Rules that have the node, or a subnet behind it, as a source.
    pub(super) sources: RuleSet,
    /// Rules that have the node, or a subnet behind it, as a destination.
    pub(super) destinations: RuleSet,
    /// Rules that are in its filter; an exit node also has rules to parts of the Internet.
    pub(super) filter: RuleSet,
    /// Rules that let the devices of its owner reach each other.
    pub(super) own: RuleSet,
}

impl ClassKey {
    /// Tells whether a rule leads from nodes of one class to nodes of the other, either way.
    pub(super) fn sees(&self, other: &Self) -> bool {
        self.sources.meets(&other.destinations)
            || other.sources.meets(&self.destinations)
            || self.owner == other.owner && !self.own.is_empty()
    }
}

/// Rules with addresses in them, so that not every node looks at every rule.
struct Literals {
    /// Rules with `*` as a source.
    any_sources: RuleSet,
    /// Prefixes of each list of sources that has any.
    sources: Vec<(Vec<IpNet>, RuleSet)>,
    destinations: Vec<(IpNet, usize)>,
}

impl Plain {
    /// Sorts all nodes into classes.
    pub(super) fn classify(&mut self, directory: &Directory) {
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
        for list in &self.source_lists {
            if list.covers_owner_by_name(owner) {
                key.sources.extend(&list.rules);
            }
            if matches!(owner, Owner::User(_)) && (list.has_any() || list.covers_owner_by_name(owner)) {
                key.own.extend(&list.to_own_devices);
            }
        }
        for (number, rule) in self.rules.iter().enumerate() {
            if rule.destinations.iter().any(|target| target.covers_owner(owner)) {
                key.destinations.insert(number);
            }
        }
        key
    }

    fn literals(&self) -> Literals {
        let mut literals = Literals { any_sources: RuleSet::default(), sources: Vec::new(), destinations: Vec::new() };
        for list in &self.source_lists {
            if list.has_any() {
                literals.any_sources.extend(&list.rules);
            }
            let prefixes: Vec<IpNet> = list.targets.iter().filter_map(|target| target.prefix()).collect();
            if !prefixes.is_empty() {
                literals.sources.push((prefixes, list.rules.clone()));
            }
        }
        for (number, rule) in self.rules.iter().enumerate() {
            let prefixes = rule.destinations.iter().filter_map(|target| target.prefix());
            literals.destinations.extend(prefixes.map(|prefix| (prefix, number)));
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
        for (prefixes, rules) in &literals.sources {
            if prefixes.iter().any(|prefix| member.holds(*prefix)) {
                key.sources.extend(rules);
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

impl SourceList {
    fn has_any(&self) -> bool {
        self.targets.iter().any(|target| **target == Target::Any)
    }

    /// Tells whether a selector other than `*` covers a node for whose it is.
    fn covers_owner_by_name(&self, owner: &Owner) -> bool {
        self.targets.iter().any(|target| **target != Target::Any && target.covers_owner(owner))
    }
}
