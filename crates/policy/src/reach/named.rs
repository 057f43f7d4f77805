//! The parties that one name of a policy stands for.

use super::{Party, Reach};
use crate::selector::Selector;
use crate::{Attributes, Owner};
use std::collections::BTreeSet;
use std::net::IpAddr;
use warren_wire::control::NodeId;

/// What a device is taken to have that is not there.
static NO_ATTRIBUTES: Attributes = Attributes::new();

/// Whom a name stands for, without `*` and prefixes, which name no party.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Named {
    /// One address, whoever has it.
    Address(IpAddr),
    /// All devices of these owners; an owner without a device counts as one device without an address.
    Owners(Vec<Owner>),
    /// These devices.
    Nodes(Vec<NodeId>),
}

impl Named {
    /// Looks a selector up; `None` if it names no party. Whoever is unknown is nobody.
    pub(crate) fn of(reach: &Reach<'_>, selector: &Selector) -> Option<Self> {
        let sections = &reach.policy.sections;
        let single = |prefix: &ipnet::IpNet| {
            (prefix.prefix_len() == prefix.max_prefix_len()).then(|| Self::Address(prefix.addr()))
        };
        match selector {
            Selector::Prefix(prefix) => single(prefix),
            Selector::Host(host) => sections.hosts.get(host).and_then(single),
            Selector::Tag(tag) => Some(Self::Owners(vec![Owner::Tags(BTreeSet::from([tag.clone()]))])),
            Selector::Tagged => Some(Self::Nodes(reach.tagged().collect())),
            Selector::User(_)
            | Selector::Group(_)
            | Selector::UsersOfDomain(_)
            | Selector::Members
            | Selector::Role(_) => {
                let users = reach.users(selector)?;
                Some(Self::Owners(users.into_iter().map(Owner::User).collect()))
            }
            Selector::Any
            | Selector::IpSet(_)
            | Selector::Service(_)
            | Selector::Shared
            | Selector::Everywhere
            | Selector::Internet
            | Selector::OwnDevices => None,
        }
    }

    /// Returns the parties, each address of a device on its own.
    pub(crate) fn parties<'a>(&'a self, reach: &Reach<'a>) -> Vec<Party<'a>> {
        match self {
            Self::Address(address) => vec![reach.party(*address)],
            Self::Nodes(nodes) => nodes.iter().flat_map(|node| reach.parties_of(*node)).collect(),
            Self::Owners(owners) => owners.iter().flat_map(|owner| parties_of(owner, reach)).collect(),
        }
    }
}

fn parties_of<'a>(owner: &'a Owner, reach: &Reach<'a>) -> Vec<Party<'a>> {
    let nodes: &[NodeId] = match owner {
        Owner::User(user) => reach.devices_of(*user),
        Owner::Tags(tags) => tags.first().map(|tag| reach.devices_with(tag)).unwrap_or_default(),
    };
    let parties: Vec<Party<'a>> = nodes.iter().flat_map(|node| reach.parties_of(*node)).collect();
    if parties.is_empty() {
        return vec![Party { address: None, node: None, owner: Some(owner), attributes: Some(&NO_ATTRIBUTES) }];
    }
    parties
}
