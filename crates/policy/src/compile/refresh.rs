//! Which nodes a new policy, or new users, concern.

use super::Compiled;
use super::chunked::ChunkedMap;
use super::groups::Groups;
use super::member::{Base, OwnerEntry};
use super::prefixes::PrefixMap;
use super::rules::Rulebook;
use crate::selector::Selector;
use crate::{DirectoryUser, Owner};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use warren_wire::control::{NodeId, UserId};

impl Compiled {
    /// Returns the version with another policy, before nodes are looked at, and the nodes to look at.
    pub(super) fn with_book(&self, book: Rulebook) -> (Self, BTreeSet<NodeId>) {
        let mut next = Self { book: Arc::new(book), ..self.clone() };
        let (old, new) = (&self.book, Arc::clone(&next.book));
        let owners: Vec<Owner> = match Changed::between(old, &new) {
            Some(changed) => self.owners.keys().filter(|owner| self.concerns(&changed, owner)).cloned().collect(),
            None => self.owners.keys().cloned().collect(),
        };
        let mut touched = next.refresh_owners(owners);
        if !same_for_all(old, &new) {
            touched.extend(self.members.keys());
            return (next, touched);
        }
        if old.exit_use != new.exit_use || old.exit_filter != new.exit_filter {
            touched.extend(self.exits.keys());
        }
        PrefixMap::differences(
            &old.literals,
            &new.literals,
            |one, two| one == two,
            |prefix, _, _| {
                touched.extend(self.nodes_within(prefix));
                let routers = self.routes.overlapping(prefix).flat_map(|route| &route.routers);
                touched.extend(routers.map(|router| router.node));
            },
        );
        (next, touched)
    }

    /// Returns the version with other users, before nodes are looked at, and the nodes to look at.
    pub(super) fn with_directory_users(&self, users: BTreeMap<UserId, DirectoryUser>) -> (Self, BTreeSet<NodeId>) {
        let both: BTreeSet<UserId> = self.users.keys().chain(users.keys()).copied().collect();
        let changed = both.into_iter().filter(|id| self.users.get(id) != users.get(id));
        let changed: Vec<Owner> = changed.map(Owner::User).collect();
        let mut next = Self { users: Arc::new(users), ..self.clone() };
        let touched = next.refresh_owners(changed);
        (next, touched)
    }

    /// Looks again at what the policy says of owners; returns the nodes of those for whom it is something else.
    fn refresh_owners(&mut self, owners: Vec<Owner>) -> BTreeSet<NodeId> {
        let mut touched = BTreeSet::new();
        let mut changes = BTreeMap::new();
        for owner in owners {
            let Some(entry) = self.owners.get(&owner) else { continue };
            let base = Base::new(self, &owner);
            if base != *entry.base {
                touched.extend(entry.nodes.keys());
                let (nodes, devices) = (entry.nodes.clone(), Arc::clone(&entry.devices));
                changes.insert(owner, Some(Arc::new(OwnerEntry { base: Arc::new(base), nodes, devices })));
            }
        }
        self.owners = ChunkedMap::with(&self.owners, changes);
        touched
    }

    /// Tells whether the policy may say something else of an owner.
    fn concerns(&self, changed: &Changed<'_>, owner: &Owner) -> bool {
        let user = match owner {
            Owner::Tags(tags) => {
                return changed.selectors.contains(&Selector::Tagged)
                    || tags.iter().any(|tag| changed.tags.contains(tag.as_str()));
            }
            Owner::User(user) => self.users.get(user),
        };
        changed.selectors.contains(&Selector::Members)
            || user.is_some_and(|user| {
                let mut groups = self.book.groups.of(&user.login).chain(&user.groups);
                changed.all_users
                    || changed.logins.contains(user.login.as_str())
                    || groups.any(|group| changed.groups.contains(group.as_str()))
            })
    }
}

/// The words that mean other rules in a new policy, and the logins that are in other groups.
struct Changed<'a> {
    selectors: BTreeSet<&'a Selector>,
    tags: BTreeSet<&'a str>,
    groups: BTreeSet<&'a str>,
    logins: BTreeSet<&'a str>,
    /// Whether a word for users by role or domain is among them.
    all_users: bool,
}

impl<'a> Changed<'a> {
    /// Compares two policies; `None` if all owners must be looked at.
    fn between(old: &'a Rulebook, new: &'a Rulebook) -> Option<Self> {
        let for_all = |book: &'a Rulebook| (&book.any.destinations, &book.any.own, &book.without_ipv4);
        if for_all(old) != for_all(new) {
            return None;
        }
        let mut changed = Self {
            selectors: differing(&old.by_selector, &new.by_selector),
            tags: differing(&old.via_by_tag, &new.via_by_tag).into_iter().map(String::as_str).collect(),
            groups: BTreeSet::new(),
            logins: Groups::changed(&old.groups, &new.groups),
            all_users: false,
        };
        for selector in &changed.selectors {
            match selector {
                Selector::Tag(tag) => drop(changed.tags.insert(tag)),
                Selector::Group(group) => drop(changed.groups.insert(group)),
                Selector::User(login) => drop(changed.logins.insert(login)),
                Selector::UsersOfDomain(_) | Selector::Role(_) => changed.all_users = true,
                Selector::Members
                | Selector::Tagged
                | Selector::Any
                | Selector::Host(_)
                | Selector::Prefix(_)
                | Selector::IpSet(_)
                | Selector::Service(_)
                | Selector::Shared
                | Selector::Everywhere
                | Selector::Internet
                | Selector::OwnDevices => {}
            }
        }
        Some(changed)
    }
}

/// Returns the keys that are in one map only or have different values.
fn differing<'a, K: Ord, V: PartialEq>(old: &'a BTreeMap<K, V>, new: &'a BTreeMap<K, V>) -> BTreeSet<&'a K> {
    let gone = old.iter().filter(|(key, value)| new.get(key) != Some(value));
    let come = new.iter().filter(|(key, value)| old.get(key) != Some(value));
    gone.chain(come).map(|(key, _)| key).collect()
}

/// Tells whether the parts of two policies that concern all nodes are the same.
fn same_for_all(old: &Rulebook, new: &Rulebook) -> bool {
    // The rules of lists with postures are not among those by word.
    let posture_lists = |book: &Rulebook| -> Vec<_> {
        let lists = book.posture_lists.iter().filter_map(|number| Some((number, book.list(number)?)));
        lists.map(|(number, list)| (number, Arc::clone(&list.key), list.rules.clone())).collect()
    };
    old.any.sources == new.any.sources
        && old.any.lists == new.any.lists
        && old.everywhere == new.everywhere
        && old.posture_targets == new.posture_targets
        && old.without_ipv4 == new.without_ipv4
        && posture_lists(old) == posture_lists(new)
}
