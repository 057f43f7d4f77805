//! The packet filter of a node.

use super::address::{prefixes, range_holds, range_of, range_overlaps, source_of, within_internet};
use super::member::Member;
use super::rules::Rule;
use super::target::Target;
use super::{Compiled, Sources};
use crate::Owner;
use crate::addresses::AddressSet;
use crate::sources::Source;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use warren_wire::control::{CapGrant, CapMap, FilterRule, NetPortRange, NodeId};

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

impl Compiled {
    /// Returns the filter of a node: what others may send to it and to the subnets behind it. Empty denies everything.
    ///
    /// Rules with equal sources, protocols and ends are one, in the place of the first; send an empty list as a list.
    /// A rule with capabilities may have no sources.
    #[must_use]
    pub fn filter(&self, node: NodeId) -> Vec<NodeRule> {
        let Some(member) = self.members.get(&node) else { return Vec::new() };
        let mut wanted = member.kind.filter.clone();
        wanted.extend(&member.kind.own);
        let mut numbers: Vec<usize> = wanted.common(&self.moment.active).iter().collect();
        numbers.sort_unstable_by_key(|number| self.book.position.get(*number).copied());
        let mut filter = FilterBuilder::default();
        for number in numbers {
            let (Some(rule), Some(sources)) =
                (self.book.rule(number), self.sources_of(number, &member.draft.node.owner))
            else {
                continue;
            };
            let until = self.moment.ends.get(&number).copied();
            if !rule.services.is_empty() && !sources.is_empty() {
                filter.network(&sources, rule, &self.destinations(number, rule, member), until);
            }
            // Through certain routers, capabilities alone lead nowhere.
            if !rule.app.is_empty() && (rule.via.is_empty() || !rule.services.is_empty()) {
                let holders = self.holders(number, rule, member);
                let grant = self.book.grant_of.get(number).copied().unwrap_or(number);
                filter.application(&sources, rule, holders, (grant, until));
            }
        }
        filter.rules
    }

    /// Returns the sources of a rule at a node of `owner`.
    pub(super) fn sources_of(&self, number: usize, owner: &Owner) -> Option<Arc<Sources>> {
        let rule = self.book.rule(number)?;
        let list_number = self.book.list_of(number);
        if rule.target != Target::OwnDevices {
            return self.lists.get(list_number)?.as_ref().map(|state| Arc::clone(&state.sources));
        }
        let entry = self.owners.get(owner)?;
        if rule.is_companion || self.book.list(list_number)?.postures.is_empty() {
            return Some(Arc::clone(&entry.devices));
        }
        let devices = entry.nodes.keys().filter_map(|id| self.members.get(id));
        let devices = devices.filter(|device| !device.membership.failed.contains(list_number));
        let addresses = devices.flat_map(|device| &device.draft.addresses);
        Some(Arc::new(Sources::new(addresses.copied().map(Source::Address))))
    }

    /// Writes the part of a rule's destination that concerns a node.
    fn destinations(&self, number: usize, rule: &Rule, member: &Member) -> BTreeSet<Source> {
        let draft = &*member.draft;
        let through_any = rule.via.is_empty();
        let own = || draft.addresses.iter().copied().filter(move |_| through_any).map(Source::Address);
        match &rule.target {
            Target::Any if through_any => [Source::Everywhere].into(),
            // What is behind the router, not the router.
            Target::Any => draft.subnet_routes.iter().copied().map(Source::from).collect(),
            Target::Everywhere => BTreeSet::new(),
            Target::Internet if draft.is_exit_node => {
                AddressSet::internet().ranges().iter().map(|(first, last)| Source::Range(*first, *last)).collect()
            }
            Target::Internet => BTreeSet::new(),
            target @ (Target::Prefix(_) | Target::Set(_)) => target
                .literal()
                .into_iter()
                .filter(|range| {
                    through_any && draft.addresses.iter().any(|address| range_holds(*range, *address))
                        || draft.subnet_routes.iter().any(|route| range_overlaps(range_of(*route), *range))
                        || through_any && draft.is_exit_node && within_internet(*range)
                })
                .map(source_of)
                .collect(),
            Target::OwnDevices => own().chain(self.behind(member, |owner| *owner == draft.node.owner)).collect(),
            Target::Named(_) => {
                let named = self.names_by_base(number, &draft.node.owner);
                let behind = self.behind(member, |owner| self.names_by_base(number, owner));
                own().filter(|_| named).chain(behind).collect()
            }
        }
    }

    /// Returns the prefixes of a node for which its sources hold a rule's capabilities.
    fn holders(&self, number: usize, rule: &Rule, member: &Member) -> Vec<IpNet> {
        let draft = &*member.draft;
        let failed =
            self.book.posture_targets.get(&number).is_some_and(|list| member.membership.failed.contains(*list));
        let own: &[IpAddr] = if failed || !rule.via.is_empty() { &[] } else { &draft.addresses };
        let own = || own.iter().copied();
        match &rule.target {
            Target::Any | Target::OwnDevices => own().map(IpNet::from).collect(),
            Target::Everywhere | Target::Internet => Vec::new(),
            Target::Named(_) => {
                own().filter(|_| self.names_by_base(number, &draft.node.owner)).map(IpNet::from).collect()
            }
            target @ (Target::Prefix(_) | Target::Set(_)) => {
                let ranges = target.literal();
                let here = own().filter(|address| ranges.iter().any(|range| range_holds(*range, *address)));
                let behind = ranges.iter().flat_map(|range| prefixes(*range)).filter(|prefix| {
                    prefix.prefix_len() < prefix.max_prefix_len()
                        && draft.subnet_routes.iter().any(|route| super::address::overlap(*route, *prefix))
                });
                here.map(IpNet::from).chain(behind).collect()
            }
        }
    }

    /// Tells whether the destination of a rule names an owner's nodes.
    fn names_by_base(&self, number: usize, owner: &Owner) -> bool {
        self.owners.get(owner).is_some_and(|entry| {
            let mentions = &entry.base.mentions;
            mentions.destinations.contains(number) || mentions.via.contains(number)
        })
    }

    /// Returns the addresses of matching nodes that lie within a node's subnet routes, without its own.
    fn behind<'a>(
        &'a self,
        member: &'a Member,
        matching: impl Fn(&Owner) -> bool + 'a,
    ) -> impl Iterator<Item = Source> + 'a {
        let routes = member.draft.subnet_routes.iter().filter(|_| member.covers_others);
        routes
            .flat_map(|route| self.addresses_within(*route))
            .filter(|(address, _)| !member.draft.addresses.contains(address))
            .filter(move |(_, node)| self.drafts.get(node).is_some_and(|draft| matching(&draft.node.owner)))
            .map(|(address, _)| Source::Address(address))
    }
}

/// The number of a grant, and when it ends.
type Grant = (usize, Option<i64>);

/// Puts rules together, joining those with equal sources, protocols and ends in the place of the first.
#[derive(Default)]
struct FilterBuilder {
    rules: Vec<NodeRule>,
    networks: BTreeMap<(u128, Option<u8>, Option<i64>), usize>,
    applications: BTreeMap<(u128, Grant, bool), usize>,
}

impl FilterBuilder {
    fn network(&mut self, sources: &Arc<Sources>, rule: &Rule, destinations: &BTreeSet<Source>, until: Option<i64>) {
        if destinations.is_empty() {
            return;
        }
        for service in &rule.services {
            let place = *self.networks.entry((sources.id(), service.protocol, until)).or_insert_with(|| {
                self.rules.push(NodeRule {
                    protocols: service.protocol.map(i64::from).into_iter().collect(),
                    ..empty(sources, until)
                });
                self.rules.len().saturating_sub(1)
            });
            let Some(rule) = self.rules.get_mut(place) else { continue };
            for destination in destinations {
                rule.destinations.extend(service.ports.iter().map(|ports| NetPortRange {
                    ip: destination.to_string(),
                    bits: None,
                    ports: *ports,
                }));
            }
        }
    }

    fn application(&mut self, sources: &Arc<Sources>, rule: &Rule, holders: Vec<IpNet>, grant: Grant) {
        if holders.is_empty() {
            return;
        }
        let place = *self.applications.entry((sources.id(), grant, rule.is_companion)).or_insert_with(|| {
            self.rules.push(empty(sources, grant.1));
            self.rules.len().saturating_sub(1)
        });
        let cap_map = CapMap(BTreeMap::clone(&rule.app));
        let grant = CapGrant { dsts: holders, cap_map, ..CapGrant::default() };
        if let Some(rule) = self.rules.get_mut(place).filter(|rule| !rule.grants.contains(&grant)) {
            rule.grants.push(grant);
        }
    }
}

fn empty(sources: &Arc<Sources>, until: Option<i64>) -> NodeRule {
    NodeRule {
        sources: Arc::clone(sources),
        protocols: Vec::new(),
        destinations: Vec::new(),
        grants: Vec::new(),
        until,
    }
}
