//! The parties of a comparison, sorted by which rules name them.

use crate::model::Sections;
use crate::reach::lies_within_internet;
use crate::rights::Rights;
use crate::selector::Selector;
use crate::{Owner, Reach};
use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use warren_wire::control::NodeId;

/// A source or a destination.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    /// Devices of the source's owner; never a source.
    OwnDevices,
    /// The source itself, for attributes; never a source.
    Itself,
    Internet,
    Net(IpNet),
    Node(NodeId),
}

/// A rule of any section.
#[derive(Debug)]
struct Rule<'a> {
    sources: &'a [Selector],
    destinations: &'a [Selector],
    /// Whether it gives something to its sources themselves.
    to_itself: bool,
    rights: Rights,
}

/// A policy as rules of one form.
#[derive(Debug)]
pub(super) struct Side<'a> {
    reach: &'a Reach<'a>,
    rules: Vec<Rule<'a>>,
}

/// Parties that the same rules name, in the old policy and in the new one.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) rules: [BTreeSet<usize>; 2],
    /// Whether they are devices of people, who have other devices.
    pub(super) personal: bool,
    pub(super) members: Vec<Target>,
}

/// As what a rule names a party.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Source,
    Destination,
}

impl Class {
    /// Sorts parties into classes; those that no rule names are left out.
    pub(super) fn all(sides: [&Side<'_>; 2], targets: impl Iterator<Item = Target>, place: Place) -> Vec<Self> {
        let mut classes: BTreeMap<([BTreeSet<usize>; 2], bool), Vec<Target>> = BTreeMap::new();
        for target in targets {
            let rules = sides.map(|side| side.rules_with(&target, place));
            if rules.iter().any(|rules| !rules.is_empty()) {
                let personal = sides.iter().any(|side| side.is_personal(&target));
                classes.entry((rules, personal)).or_default().push(target);
            }
        }
        classes.into_iter().map(|((rules, personal), members)| Self { rules, personal, members }).collect()
    }
}

impl<'a> Side<'a> {
    pub(super) fn new(reach: &'a Reach<'a>) -> Self {
        let sections = &reach.policy.sections;
        let mut rules: Vec<Rule<'a>> = Vec::new();
        for grant in &sections.grants {
            let (sources, destinations) = (&*grant.sources, grant.destinations.as_slice());
            rules.push(Rule { sources, destinations, to_itself: false, rights: Rights::of_grant(grant) });
        }
        for rule in &sections.ssh {
            let (sources, destinations) = (rule.sources.as_slice(), rule.destinations.as_slice());
            rules.push(Rule { sources, destinations, to_itself: false, rights: Rights::of_ssh(rule) });
        }
        for entry in &sections.node_attributes {
            let mut rights = Rights::default();
            let names = entry.attributes.iter().chain(entry.app.keys());
            names.for_each(|name| rights.extend(&Rights::attribute(name)));
            rules.push(Rule { sources: &entry.targets, destinations: &[], to_itself: true, rights });
        }
        if sections.randomize_client_port {
            let rights = Rights::attribute("randomize-client-port");
            rules.push(Rule { sources: &[Selector::Any], destinations: &[], to_itself: true, rights });
        }
        Self { reach, rules }
    }

    /// Returns the addresses that rules name literally and no device has.
    pub(super) fn literals(&self) -> impl Iterator<Item = Target> + '_ {
        let selectors = self.rules.iter().flat_map(|rule| rule.sources.iter().chain(rule.destinations));
        let literals = selectors.flat_map(|selector| literals(&self.reach.policy.sections, selector));
        literals.filter(|literal| match literal {
            Target::Net(net) if net.prefix_len() == net.max_prefix_len() => self.reach.party(net.addr()).node.is_none(),
            Target::Net(_) | Target::Internet | Target::Node(_) | Target::OwnDevices | Target::Itself => true,
        })
    }

    /// Returns what the rules give that are in both sets.
    pub(super) fn rights(&self, from: &BTreeSet<usize>, to: &BTreeSet<usize>) -> Rights {
        let mut rights = Rights::default();
        for rule in from.intersection(to).filter_map(|number| self.rules.get(*number)) {
            rights.extend(&rule.rights);
        }
        rights
    }

    fn rules_with(&self, target: &Target, place: Place) -> BTreeSet<usize> {
        let named = |rule: &Rule<'_>| match (target, place) {
            (Target::OwnDevices, _) => rule.destinations.contains(&Selector::OwnDevices),
            (Target::Itself, _) => rule.to_itself,
            (_, Place::Source) => rule.sources.iter().any(|selector| self.covers(selector, target, place)),
            (_, Place::Destination) => rule.destinations.iter().any(|selector| self.covers(selector, target, place)),
        };
        self.rules.iter().enumerate().filter(|(_, rule)| named(rule)).map(|(number, _)| number).collect()
    }

    fn covers(&self, selector: &Selector, target: &Target, place: Place) -> bool {
        match target {
            Target::Node(node) => self.reach.parties_of(*node).any(|party| match place {
                Place::Source => self.reach.source_covers(selector, party),
                Place::Destination => self.reach.destination_covers(selector, party),
            }),
            Target::Net(prefix) => {
                *selector == Selector::Everywhere
                    || *selector == Selector::Any && (place == Place::Destination || self.is_routed(*prefix))
                    || *selector == Selector::Internet && lies_within_internet(*prefix)
                    || self.has_literal(selector, |whole| whole.contains(prefix))
            }
            Target::Internet => {
                matches!(selector, Selector::Internet | Selector::Everywhere)
                    || *selector == Selector::Any && place == Place::Destination
                    || self.has_literal(selector, |whole| whole.prefix_len() == 0)
            }
            Target::OwnDevices | Target::Itself => false,
        }
    }

    /// Tells whether a selector stands literally for a fitting prefix.
    fn has_literal(&self, selector: &Selector, fits: impl Fn(IpNet) -> bool) -> bool {
        let literals = literals(&self.reach.policy.sections, selector);
        literals.iter().any(|literal| matches!(literal, Target::Net(net) if fits(*net)))
    }

    /// Tells whether a prefix is behind an approved route.
    fn is_routed(&self, prefix: IpNet) -> bool {
        self.reach.subnets().any(|route| route.contains(&prefix))
    }

    fn is_personal(&self, target: &Target) -> bool {
        let Target::Node(node) = target else { return false };
        let owner = self.reach.directory.nodes.get(node).map(|node| &node.owner);
        matches!(owner, Some(Owner::User(_)))
    }
}

/// Returns the addresses for which a selector stands literally.
fn literals(sections: &Sections, selector: &Selector) -> Vec<Target> {
    match selector {
        Selector::Prefix(prefix) => vec![Target::Net(*prefix)],
        Selector::Host(host) => sections.hosts.get(host).copied().map(Target::Net).into_iter().collect(),
        Selector::IpSet(name) => {
            let ranges = sections.ip_sets.get(name).map(|set| set.ranges()).unwrap_or_default();
            ranges.iter().flat_map(|range| prefixes(*range)).map(Target::Net).collect()
        }
        Selector::Internet => vec![Target::Internet],
        Selector::Any
        | Selector::User(_)
        | Selector::Group(_)
        | Selector::Tag(_)
        | Selector::Service(_)
        | Selector::UsersOfDomain(_)
        | Selector::Members
        | Selector::Role(_)
        | Selector::Tagged
        | Selector::Shared
        | Selector::Everywhere
        | Selector::OwnDevices => Vec::new(),
    }
}

/// Returns the prefixes that make up a range.
fn prefixes(range: (IpAddr, IpAddr)) -> Vec<IpNet> {
    match range {
        (IpAddr::V4(first), IpAddr::V4(last)) => Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect(),
        (IpAddr::V6(first), IpAddr::V6(last)) => Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect(),
        (IpAddr::V4(_) | IpAddr::V6(_), _) => Vec::new(),
    }
}
