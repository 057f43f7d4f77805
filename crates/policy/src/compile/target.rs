//! What a selector stands for, as far as the policy alone says.

use super::address::{Range, holds_internet, range_of, within_internet};
use super::groups::Groups;
use crate::DirectoryUser;
use crate::addresses::AddressSet;
use crate::model::Sections;
use crate::selector::Selector;
use crate::{Owner, Role};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use warren_wire::control::UserId;

/// A selector with hosts and sets of addresses looked up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    /// `*`.
    Any,
    /// Every address, even outside the tailnet.
    Everywhere,
    /// The Internet, through an exit node.
    Internet,
    Prefix(IpNet),
    Set(Arc<AddressSet>),
    /// Devices of the same user as the source.
    OwnDevices,
    /// Nodes by whose they are, or nobody.
    Named(Selector),
}

impl Target {
    pub(super) fn new(selector: &Selector, sections: &Sections) -> Self {
        let named = || Self::Named(selector.clone());
        match selector {
            Selector::Any => Self::Any,
            // Reading the policy made sure that hosts and sets are there.
            Selector::Host(host) => sections.hosts.get(host).map_or_else(named, |prefix| Self::Prefix(*prefix)),
            Selector::IpSet(name) => sections.ip_sets.get(name).map_or_else(named, |set| Self::Set(Arc::clone(set))),
            Selector::Prefix(prefix) => Self::Prefix(*prefix),
            Selector::Everywhere => Self::Everywhere,
            Selector::Internet => Self::Internet,
            Selector::OwnDevices => Self::OwnDevices,
            Selector::User(_)
            | Selector::Group(_)
            | Selector::Tag(_)
            | Selector::Service(_)
            | Selector::UsersOfDomain(_)
            | Selector::Members
            | Selector::Role(_)
            | Selector::Tagged
            | Selector::Shared => named(),
        }
    }

    /// Returns the addresses that the policy itself names; none for `*`, the Internet and nodes.
    pub(super) fn literal(&self) -> Vec<Range> {
        match self {
            Self::Prefix(prefix) => vec![range_of(*prefix)],
            Self::Set(set) => set.ranges().to_vec(),
            Self::Any | Self::Everywhere | Self::Internet | Self::OwnDevices | Self::Named(_) => Vec::new(),
        }
    }

    /// Tells whether an exit node is a destination for the sake of the Internet.
    pub(super) fn is_internet(&self) -> bool {
        match self {
            Self::Internet => true,
            Self::Prefix(prefix) => prefix.prefix_len() == 0,
            Self::Set(set) => holds_internet(set),
            Self::Any | Self::Everywhere | Self::OwnDevices | Self::Named(_) => false,
        }
    }

    /// Tells whether the filter of an exit node names some of the target, beyond what every node's does.
    pub(super) fn concerns_exit_nodes(&self) -> bool {
        *self == Self::Internet || self.literal().into_iter().any(within_internet)
    }
}

/// Returns all selectors that name the nodes of an owner.
pub(super) fn selectors_of(
    owner: &Owner,
    users: &BTreeMap<UserId, DirectoryUser>,
    domains: &BTreeSet<String>,
    groups: &Groups,
) -> BTreeSet<Selector> {
    match owner {
        Owner::Tags(tags) => tags.iter().cloned().map(Selector::Tag).chain([Selector::Tagged]).collect(),
        Owner::User(user) => {
            let mut selectors = BTreeSet::from([Selector::Members]);
            let Some(user) = users.get(user) else { return selectors };
            selectors.insert(Selector::User(user.login.clone()));
            if user.role != Role::Member {
                selectors.insert(Selector::Role(user.role));
            }
            if let Some((_, domain)) = user.login.rsplit_once('@').filter(|(_, domain)| domains.contains(*domain)) {
                selectors.insert(Selector::UsersOfDomain(domain.to_owned()));
            }
            selectors.extend(groups.of(&user.login).chain(&user.groups).cloned().map(Selector::Group));
            selectors
        }
    }
}
