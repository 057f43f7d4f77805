//! Selectors with names looked up: sets of nodes by owner, or of addresses.

use super::address::{WILDCARD_SOURCES, prefix_text};
use crate::model::Sections;
use crate::selector::Selector;
use crate::{Directory, Owner};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use warren_wire::control::{NodeId, UserId};

/// What a selector stands for in one tailnet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    /// `*`.
    Any,
    /// Untagged nodes of these users.
    Users(BTreeSet<UserId>),
    /// All untagged nodes.
    Members,
    /// Nodes with a tag.
    Tag(String),
    /// Addresses.
    Prefix(IpNet),
    /// Untagged nodes of the owner of the source.
    OwnDevices,
}

impl Target {
    /// Tells whether the selector covers a node for whose it is; addresses and routes are looked at elsewhere.
    pub(super) fn covers_owner(&self, owner: &Owner) -> bool {
        match (self, owner) {
            (Self::Any, _) | (Self::Members, Owner::User(_)) => true,
            (Self::Users(users), Owner::User(user)) => users.contains(user),
            (Self::Tag(tag), Owner::Tags(tags)) => tags.contains(tag),
            (Self::Users(_) | Self::Members, Owner::Tags(_))
            | (Self::Tag(_), Owner::User(_))
            | (Self::Prefix(_) | Self::OwnDevices, _) => false,
        }
    }

    pub(super) const fn prefix(&self) -> Option<IpNet> {
        match self {
            Self::Prefix(prefix) => Some(*prefix),
            Self::Any | Self::Users(_) | Self::Members | Self::Tag(_) | Self::OwnDevices => None,
        }
    }
}

/// Looks selectors up in a directory, each once.
pub(super) struct Index<'a> {
    directory: &'a Directory,
    sections: &'a Sections,
    targets: BTreeMap<&'a Selector, Arc<Target>>,
    source_texts: BTreeMap<&'a Selector, Arc<[String]>>,
    by_login: BTreeMap<&'a str, Vec<UserId>>,
    by_user: BTreeMap<UserId, Vec<NodeId>>,
    by_tag: BTreeMap<&'a str, Vec<NodeId>>,
    /// Approved subnet routes of the whole tailnet.
    subnet_routes: BTreeSet<IpNet>,
}

impl<'a> Index<'a> {
    pub(super) fn new(directory: &'a Directory, sections: &'a Sections) -> Self {
        let mut index = Self {
            directory,
            sections,
            targets: BTreeMap::new(),
            source_texts: BTreeMap::new(),
            by_login: BTreeMap::new(),
            by_user: BTreeMap::new(),
            by_tag: BTreeMap::new(),
            subnet_routes: BTreeSet::new(),
        };
        for (id, user) in &directory.users {
            index.by_login.entry(&user.login).or_default().push(*id);
        }
        for (id, node) in &directory.nodes {
            index.subnet_routes.extend(node.subnet_routes());
            match &node.owner {
                Owner::User(user) => index.by_user.entry(*user).or_default().push(*id),
                Owner::Tags(tags) => {
                    for tag in tags {
                        index.by_tag.entry(tag).or_default().push(*id);
                    }
                }
            }
        }
        index
    }

    /// Looks up the names of a selector; unknown users are nobody.
    pub(super) fn target(&mut self, selector: &'a Selector) -> Arc<Target> {
        if let Some(known) = self.targets.get(selector) {
            return Arc::clone(known);
        }
        let target = Arc::new(self.resolve(selector));
        self.targets.insert(selector, Arc::clone(&target));
        target
    }

    /// Writes a source as a filter rule names it.
    pub(super) fn texts(&mut self, selector: &'a Selector) -> Arc<[String]> {
        if let Some(known) = self.source_texts.get(selector) {
            return Arc::clone(known);
        }
        let target = self.target(selector);
        let texts: Arc<[String]> = self.texts_of(&target).into();
        self.source_texts.insert(selector, Arc::clone(&texts));
        texts
    }

    fn resolve(&self, selector: &Selector) -> Target {
        match selector {
            Selector::Any => Target::Any,
            Selector::User(login) => Target::Users(self.users(login).collect()),
            Selector::Group(group) => {
                let members = self.sections.groups.get(group).into_iter().flatten();
                Target::Users(members.flat_map(|login| self.users(login)).collect())
            }
            Selector::Tag(tag) => Target::Tag(tag.clone()),
            // Reading the policy made sure that the alias is there.
            Selector::Host(host) => {
                self.sections.hosts.get(host).map_or(Target::Users(BTreeSet::new()), |prefix| Target::Prefix(*prefix))
            }
            Selector::Prefix(prefix) => Target::Prefix(*prefix),
            Selector::Members => Target::Members,
            Selector::OwnDevices => Target::OwnDevices,
            // Reading refuses these so far.
            Selector::IpSet(_)
            | Selector::Service(_)
            | Selector::UsersOfDomain(_)
            | Selector::Role(_)
            | Selector::Tagged
            | Selector::Shared
            | Selector::Everywhere
            | Selector::Internet => Target::Users(BTreeSet::new()),
        }
    }

    fn users(&self, login: &str) -> impl Iterator<Item = UserId> + '_ {
        self.by_login.get(login).into_iter().flatten().copied()
    }

    fn texts_of(&self, target: &Target) -> Vec<String> {
        match target {
            Target::Any => WILDCARD_SOURCES
                .iter()
                .map(|text| (*text).to_owned())
                .chain(self.subnet_routes.iter().map(ToString::to_string))
                .collect(),
            Target::Users(users) => self.address_texts(users.iter().flat_map(|user| self.nodes_of(*user))),
            Target::Members => self.address_texts(self.by_user.values().flatten().copied()),
            Target::Tag(tag) => self.address_texts(self.by_tag.get(tag.as_str()).into_iter().flatten().copied()),
            Target::Prefix(prefix) => vec![prefix_text(*prefix)],
            Target::OwnDevices => Vec::new(),
        }
    }

    fn nodes_of(&self, user: UserId) -> impl Iterator<Item = NodeId> + '_ {
        self.by_user.get(&user).into_iter().flatten().copied()
    }

    fn address_texts(&self, nodes: impl Iterator<Item = NodeId>) -> Vec<String> {
        nodes
            .filter_map(|node| self.directory.nodes.get(&node))
            .flat_map(|node| &node.addresses)
            .map(IpAddr::to_string)
            .collect()
    }
}
