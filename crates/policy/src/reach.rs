//! Who reaches what, judged from the rules as they were written, one question at a time.
//!
//! Nothing here is shared with the compiler: a question about two addresses is answered by asking each rule. Tests of a
//! policy, explanations and comparisons stand on these answers, and the compiler is checked against them.

mod cover;
mod line;
mod named;

use crate::model::Grant;
use crate::policy::Policy;
use crate::selector::Selector;
use crate::service::Service;
use crate::{Attributes, Directory, DirectoryNode, Owner};
use cover::Names;
pub(crate) use cover::{is_internet, is_tailnet, lies_within_internet};
use ipnet::IpNet;
pub use line::RuleLine;
pub(crate) use line::node_name;
pub(crate) use line::rule_text;
pub(crate) use named::Named;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use warren_wire::control::{NodeId, UserId};

/// IP protocols of a rule that names none: ICMP, TCP, UDP, ICMPv6.
pub(crate) const DEFAULT_PROTOCOLS: [u8; 4] = [1, 6, 17, 58];

/// A policy over a directory at one moment, ready for questions.
#[derive(Debug)]
pub struct Reach<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) directory: &'a Directory,
    now: i64,
    names: Names<'a>,
    by_address: BTreeMap<IpAddr, NodeId>,
    by_user: BTreeMap<UserId, Vec<NodeId>>,
    by_tag: BTreeMap<&'a str, Vec<NodeId>>,
    /// Approved subnet routes and the nodes that carry them.
    subnets: BTreeMap<IpNet, Vec<NodeId>>,
    exit_nodes: Vec<NodeId>,
}

/// Who sends or receives: an address, a device, or a device that one could think of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Party<'a> {
    /// `None` for a device that one could think of.
    pub(crate) address: Option<IpAddr>,
    /// The device that has the address.
    pub(crate) node: Option<NodeId>,
    pub(crate) owner: Option<&'a Owner>,
    /// What postures look at; `None` is not looked at, as for a host behind a subnet router.
    pub(crate) attributes: Option<&'a Attributes>,
}

/// Traffic of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Any of these protocols; empty is any at all.
    pub(crate) protocols: Vec<u8>,
    /// `None` is any.
    pub(crate) port: Option<u16>,
}

/// What of a rule fits a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one condition of a rule, and all combinations occur")]
pub(crate) struct Fit {
    pub(crate) source: bool,
    pub(crate) posture: bool,
    pub(crate) destination: bool,
    pub(crate) traffic: bool,
    pub(crate) time: bool,
}

impl Fit {
    pub(crate) const fn all(self) -> bool {
        self.source && self.posture && self.destination && self.traffic && self.time
    }
}

impl<'a> Reach<'a> {
    /// Takes a policy and a directory; `now` is in Unix seconds, for rules that hold at times only.
    ///
    /// Costs the size of the directory; each question then costs the number of rules.
    #[must_use]
    pub fn new(policy: &'a Policy, directory: &'a Directory, now: i64) -> Self {
        let mut reach = Self {
            policy,
            directory,
            now,
            names: Names::new(&policy.sections, directory),
            by_address: BTreeMap::new(),
            by_user: BTreeMap::new(),
            by_tag: BTreeMap::new(),
            subnets: BTreeMap::new(),
            exit_nodes: Vec::new(),
        };
        for (id, node) in &directory.nodes {
            reach.by_address.extend(node.addresses.iter().map(|address| (*address, *id)));
            match &node.owner {
                Owner::User(user) => reach.by_user.entry(*user).or_default().push(*id),
                Owner::Tags(tags) => {
                    tags.iter().for_each(|tag| reach.by_tag.entry(tag).or_default().push(*id));
                }
            }
            for route in node.subnet_routes() {
                reach.subnets.entry(route).or_default().push(*id);
            }
            if node.is_exit_node() {
                reach.exit_nodes.push(*id);
            }
        }
        reach
    }

    /// Returns the numbers of the rules that let packets from `source` to `destination`, with this IP protocol and port
    /// (zero where the protocol has none), pass the filter of a node. Rules are counted from 0: `grants`, then each
    /// destination of `acls`.
    #[must_use]
    pub fn rules_at(&self, node: NodeId, source: IpAddr, destination: IpAddr, protocol: u8, port: u16) -> Vec<usize> {
        let traffic = Traffic { protocols: vec![protocol], port: Some(port) };
        let (source, destination) = (self.party(source), self.party(destination));
        let Some(receiver) = self.directory.nodes.get(&node) else { return Vec::new() };
        self.rules()
            .filter(|(_, grant)| self.fit(grant, source, destination, &traffic).all())
            .filter(|(_, grant)| self.takes(grant, node, receiver, destination))
            .map(|(number, _)| number)
            .collect()
    }

    /// Returns who is at an address.
    pub(crate) fn party(&self, address: IpAddr) -> Party<'a> {
        match self.by_address.get(&address).and_then(|node| Some((*node, self.directory.nodes.get(node)?))) {
            Some((node, entry)) => Party {
                address: Some(address),
                node: Some(node),
                owner: Some(&entry.owner),
                attributes: Some(&entry.attributes),
            },
            None => Party { address: Some(address), node: None, owner: None, attributes: None },
        }
    }

    /// Returns a device at each of its addresses; one without addresses as it is.
    pub(crate) fn parties_of(&self, node: NodeId) -> impl Iterator<Item = Party<'a>> + use<'a> {
        let entry = self.directory.nodes.get(&node);
        let party = move |address: Option<IpAddr>| {
            let entry = entry?;
            Some(Party { address, node: Some(node), owner: Some(&entry.owner), attributes: Some(&entry.attributes) })
        };
        let addresses = entry.map(|entry| entry.addresses.as_slice()).unwrap_or_default();
        let bare = addresses.is_empty().then_some(None);
        addresses.iter().map(|address| Some(*address)).chain(bare).filter_map(party)
    }

    /// Returns all rules with their numbers.
    pub(crate) fn rules(&self) -> impl Iterator<Item = (usize, &'a Grant)> {
        self.policy.sections.grants.iter().enumerate()
    }

    /// Judges one rule.
    pub(crate) fn fit(&self, grant: &Grant, source: Party<'_>, destination: Party<'_>, traffic: &Traffic) -> Fit {
        Fit {
            source: self.is_source(grant, source),
            posture: self.has_posture(&grant.postures, source.attributes),
            destination: self.is_destination(grant, source, destination),
            traffic: grant.services.iter().any(|service| traffic.is_in(service)),
            time: self.holds_now(grant),
        }
    }

    /// Tells whether a rule holds at the moment of the questions.
    pub(crate) fn holds_now(&self, grant: &Grant) -> bool {
        grant.validity.holds(self.now)
    }

    /// Tells whether a rule names the source, whatever its posture.
    pub(crate) fn is_source(&self, grant: &Grant, source: Party<'_>) -> bool {
        grant.sources.iter().any(|selector| self.source_covers(selector, source))
    }

    /// Tells whether a rule names the destination; `autogroup:self` depends on the source.
    pub(crate) fn is_destination(&self, grant: &Grant, source: Party<'_>, destination: Party<'_>) -> bool {
        let own = matches!(source.owner, Some(Owner::User(_))) && source.owner == destination.owner;
        own && leads_to_own_devices(grant) || self.names_destination(grant, destination)
    }

    /// Tells whether a rule names the destination other than as the source's own device.
    pub(crate) fn names_destination(&self, grant: &Grant, destination: Party<'_>) -> bool {
        grant.destinations.iter().any(|selector| self.destination_covers(selector, destination))
    }

    /// Tells whether a selector of sources covers a party.
    pub(crate) fn source_covers(&self, selector: &Selector, source: Party<'_>) -> bool {
        match (selector, source.address) {
            (Selector::Any, Some(address)) => is_tailnet(address) || self.carriers(address).next().is_some(),
            (Selector::Any, None) => true,
            _ => self.names.covers(selector, source.owner, source.address),
        }
    }

    /// Tells whether a selector of destinations covers a party.
    pub(crate) fn destination_covers(&self, selector: &Selector, destination: Party<'_>) -> bool {
        *selector == Selector::Any || self.names.covers(selector, destination.owner, destination.address)
    }

    /// Tells whether a selector covers devices of this owner, without regard to addresses.
    pub(crate) fn covers_owner(&self, selector: &Selector, owner: &Owner) -> bool {
        *selector == Selector::Any || self.names.covers(selector, Some(owner), None)
    }

    /// Tells whether one of the postures holds; an empty list demands nothing.
    pub(crate) fn has_posture(&self, postures: &[String], attributes: Option<&Attributes>) -> bool {
        let Some(attributes) = attributes else { return true };
        postures.is_empty()
            || postures.iter().any(|name| {
                let assertions = self.policy.sections.postures.get(name);
                assertions.is_some_and(|assertions| assertions.iter().all(|assertion| assertion.holds(attributes)))
            })
    }

    /// Tells whether a node takes packets to a destination for the sake of a rule that names it (policy.md, section 7).
    fn takes(&self, grant: &Grant, id: NodeId, node: &DirectoryNode, destination: Party<'_>) -> bool {
        let Some(address) = destination.address else { return false };
        let behind = node.subnet_routes().any(|route| route.contains(&address));
        let beyond = node.is_exit_node() && is_internet(address);
        if !grant.via.is_empty() {
            return (behind || beyond) && self.is_via(grant, id);
        }
        if node.addresses.contains(&address) || behind {
            return true;
        }
        beyond && grant.destinations.iter().any(|selector| self.destination_covers(selector, destination))
    }

    /// Tells whether a rule leads through a node.
    pub(crate) fn is_via(&self, grant: &Grant, node: NodeId) -> bool {
        let owner = self.directory.nodes.get(&node).map(|node| &node.owner);
        grant.via.is_empty()
            || matches!(owner, Some(Owner::Tags(tags)) if grant.via.iter().any(|tag| tags.contains(tag)))
    }

    /// Tells whether any node has an address.
    pub(crate) fn has_addresses(&self) -> bool {
        !self.by_address.is_empty()
    }

    /// Tells whether a rule that names a destination gets packets there. Where no node has an address, as in a directory
    /// made of words, ways are not asked about.
    pub(crate) fn has_way(&self, grant: &Grant, destination: Party<'_>) -> bool {
        destination.address.is_none() || !self.has_addresses() || !self.ways(grant, destination).is_empty()
    }

    /// Returns the nodes through which a rule that names it reaches a destination, its own device first.
    pub(crate) fn ways(&self, grant: &Grant, destination: Party<'_>) -> Vec<NodeId> {
        let Some(address) = destination.address else { return destination.node.into_iter().collect() };
        let ways: BTreeSet<NodeId> = match destination.node {
            Some(node) if grant.via.is_empty() => return vec![node],
            _ if is_internet(address) => self.carriers(address).chain(self.exit_nodes.iter().copied()).collect(),
            _ => self.carriers(address).collect(),
        };
        ways.into_iter().filter(|node| self.is_via(grant, *node)).collect()
    }

    /// Returns the nodes whose approved subnet routes hold an address.
    pub(crate) fn carriers(&self, address: IpAddr) -> impl Iterator<Item = NodeId> + '_ {
        let width = if address.is_ipv4() { 32 } else { 128 };
        (1..=width)
            .filter_map(move |length| IpNet::new(address, length).ok())
            .filter_map(|prefix| self.subnets.get(&prefix.trunc()))
            .flatten()
            .copied()
    }

    /// Returns the approved subnet routes.
    pub(crate) fn subnets(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.subnets.keys().copied()
    }

    /// Returns the nodes that can reach the Internet for others.
    pub(crate) fn exit_nodes(&self) -> &[NodeId] {
        &self.exit_nodes
    }

    /// Returns the untagged devices of a user.
    pub(crate) fn devices_of(&self, user: UserId) -> &[NodeId] {
        self.by_user.get(&user).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns the devices with a tag.
    pub(crate) fn devices_with(&self, tag: &str) -> &[NodeId] {
        self.by_tag.get(tag).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns all tagged devices.
    pub(crate) fn tagged(&self) -> impl Iterator<Item = NodeId> + '_ {
        let nodes = self.directory.nodes.iter().filter(|(_, node)| matches!(node.owner, Owner::Tags(_)));
        nodes.map(|(id, _)| *id)
    }

    /// Returns the users that a selector of users names; `None` if the selector names something else.
    pub(crate) fn users(&self, selector: &Selector) -> Option<Vec<UserId>> {
        self.names.users(selector)
    }
}

/// Tells whether a rule leads to the devices of the source's owner.
pub(crate) fn leads_to_own_devices(grant: &Grant) -> bool {
    grant.destinations.contains(&Selector::OwnDevices)
}

impl Traffic {
    /// Tells whether a service lets some of the traffic through.
    pub(crate) fn is_in(&self, service: &Service) -> bool {
        let protocol = self.protocols.is_empty()
            || match service.protocol {
                Some(protocol) => self.protocols.contains(&protocol),
                None => self.protocols.iter().any(|protocol| DEFAULT_PROTOCOLS.contains(protocol)),
            };
        protocol && self.port.is_none_or(|port| service.ports.iter().any(|range| range.contains(port)))
    }
}
