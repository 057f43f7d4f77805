//! A directory made of a policy's own words, for questions about a policy without a tailnet.

use crate::model::{Sections, TagOwner};
use crate::selector::Selector;
use crate::{Attributes, Directory, DirectoryNode, DirectoryUser, NodeNames, Owner, Policy, Role};
use std::collections::{BTreeMap, BTreeSet};
use warren_wire::control::{NodeId, UserId};

/// Roles as a policy writes them.
const ROLES: [(Role, &str); 6] = [
    (Role::Owner, "autogroup:owner"),
    (Role::Admin, "autogroup:admin"),
    (Role::ItAdmin, "autogroup:it-admin"),
    (Role::NetworkAdmin, "autogroup:network-admin"),
    (Role::BillingAdmin, "autogroup:billing-admin"),
    (Role::Auditor, "autogroup:auditor"),
];

/// Login and device name of somebody whom the policies do not name.
const ANOTHER: &str = "another member";

impl Directory {
    /// Makes a directory of whoever the policies name: a device for each user, for each tag, for each role and domain that
    /// occurs, and for a member whom they do not name. The devices have no addresses, and are named as the policy does.
    #[must_use]
    pub fn of_words(policies: &[&Policy]) -> (Self, NodeNames) {
        let mut users: BTreeMap<String, DirectoryUser> = BTreeMap::new();
        let mut tags = BTreeSet::new();
        let mut directory = Self::default();
        let mut user = |name: &str, user: DirectoryUser| {
            users.entry(name.to_owned()).or_insert(user);
        };
        let with_login = |login: &str| DirectoryUser { login: login.to_owned(), ..DirectoryUser::default() };
        user(ANOTHER, with_login(ANOTHER));
        for policy in policies {
            policy.sections.groups.values().flatten().for_each(|login| user(login, with_login(login)));
            tags.extend(policy.sections.tag_owners.keys().cloned());
            for selector in selectors(&policy.sections) {
                if let Selector::User(login) = &selector {
                    user(login, with_login(login));
                } else if let Selector::Group(group) = &selector
                    && !policy.sections.groups.contains_key(group)
                {
                    let groups = BTreeSet::from([group.clone()]);
                    user(group, DirectoryUser { groups, ..with_login(group) });
                } else if let Selector::UsersOfDomain(domain) = &selector {
                    let login = format!("user:*@{domain}");
                    user(&login, with_login(&login));
                } else if let Selector::Role(role) = &selector {
                    let name = ROLES.iter().find(|(known, _)| known == role).map_or(ANOTHER, |(_, name)| name);
                    user(name, DirectoryUser { role: *role, ..with_login(name) });
                }
            }
        }
        let mut names = NodeNames::new();
        let mut node = |name: &str, id: i64, owner: Owner| {
            let (addresses, approved_routes) = (Vec::new(), Vec::new());
            let entry =
                DirectoryNode { owner, addresses, approved_routes, online: true, attributes: Attributes::new() };
            names.insert(NodeId(id), name.to_owned());
            directory.nodes.insert(NodeId(id), entry);
        };
        let mut ids = 1_i64..;
        for ((name, user), id) in users.into_iter().zip(&mut ids) {
            node(&name, id, Owner::User(UserId(id)));
            directory.users.insert(UserId(id), user);
        }
        for (tag, id) in tags.into_iter().zip(&mut ids) {
            node(&tag, id, Owner::Tags(BTreeSet::from([tag.clone()])));
        }
        (directory, names)
    }
}

/// Returns all selectors that name people.
fn selectors(sections: &Sections) -> impl Iterator<Item = Selector> + '_ {
    let grants = sections.grants.iter().flat_map(|grant| grant.sources.iter().chain(&grant.destinations));
    let ssh = sections.ssh.iter().flat_map(|rule| rule.sources.iter().chain(&rule.destinations));
    let targets = sections.node_attributes.iter().flat_map(|entry| &entry.targets);
    let owners = sections.tag_owners.values().flatten().filter_map(|owner| match owner {
        TagOwner::Nodes(selector) => Some(selector),
        TagOwner::Tag(_) => None,
    });
    let approvers = sections.auto_approvers.routes.values().chain([&sections.auto_approvers.exit_node]).flatten();
    let tests = sections.tests.iter().map(|test| &test.source);
    let ssh_tests = sections.ssh_tests.iter().flat_map(|test| test.destinations.iter().chain([&test.source]));
    let hosts = sections.tests.iter().flat_map(|test| test.accept.iter().chain(&test.deny));
    let hosts = hosts.filter_map(|text| text.rsplit_once(':')).map(|(host, _)| host);
    let tested = tests.chain(ssh_tests).map(String::as_str).chain(hosts);
    let tested = tested.filter_map(|text| Selector::parse(text.trim()).ok());
    grants.chain(ssh).chain(targets).chain(owners).chain(approvers).cloned().chain(tested)
}
