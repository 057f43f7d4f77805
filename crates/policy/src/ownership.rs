//! Who may give tags to nodes.

use crate::model::TagOwner;
use crate::selector::Selector;
use crate::{DirectoryUser, Policy, Role};
use std::collections::BTreeSet;

impl Policy {
    /// Tells whether a user may give `tag`, which the policy must know, to a node.
    ///
    /// Owners, admins and network admins of the tailnet may give any.
    #[must_use]
    pub fn may_own_tag(&self, user: &DirectoryUser, tag: &str) -> bool {
        let Some(owners) = self.sections.tag_owners.get(tag) else {
            return false;
        };
        matches!(user.role, Role::Owner | Role::Admin | Role::NetworkAdmin)
            || owners.iter().any(|owner| match owner {
                TagOwner::Nodes(selector) => self.names_user(selector, user),
                TagOwner::Tag(_) => false,
            })
    }

    /// Tells whether whoever holds the tags `held` (a node or an auth key) may give `tag` to a node.
    ///
    /// A tag passes itself on, and every tag that it owns, directly or through others.
    #[must_use]
    pub fn may_pass_on_tag<'a>(&self, held: impl IntoIterator<Item = &'a str>, tag: &str) -> bool {
        let held: BTreeSet<&str> = held.into_iter().collect();
        let mut seen = BTreeSet::new();
        let mut open = vec![tag];
        while let Some(tag) = open.pop() {
            if !seen.insert(tag) {
                continue;
            }
            let Some(owners) = self.sections.tag_owners.get(tag) else {
                continue;
            };
            let tagged = |owner: &TagOwner| *owner == TagOwner::Nodes(Selector::Tagged);
            if held.contains(tag) || (!held.is_empty() && owners.iter().any(tagged)) {
                return true;
            }
            open.extend(owners.iter().filter_map(|owner| match owner {
                TagOwner::Tag(owner) => Some(owner.as_str()),
                TagOwner::Nodes(_) => None,
            }));
        }
        false
    }

    /// Tells whether a selector of people names this one.
    fn names_user(&self, selector: &Selector, user: &DirectoryUser) -> bool {
        match selector {
            Selector::User(login) => *login == user.login,
            Selector::Group(group) => {
                let members = self.sections.groups.get(group);
                members.is_some_and(|members| members.contains(&user.login)) || user.groups.contains(group)
            }
            Selector::UsersOfDomain(domain) => {
                user.login.rsplit_once('@').is_some_and(|(_, own)| own == domain.as_str())
            }
            Selector::Members => true,
            Selector::Role(role) => user.role == *role,
            Selector::Any
            | Selector::Tag(_)
            | Selector::Host(_)
            | Selector::Prefix(_)
            | Selector::IpSet(_)
            | Selector::Service(_)
            | Selector::Tagged
            | Selector::Shared
            | Selector::Everywhere
            | Selector::Internet
            | Selector::OwnDevices => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(login: &str, role: Role) -> DirectoryUser {
        DirectoryUser { login: login.to_owned(), role, ..DirectoryUser::default() }
    }

    #[test]
    fn tags_are_given_by_their_owners_and_by_those_who_run_the_network() {
        let policy = Policy::parse(
            r#"{"groups": {"group:dev": ["ann@example.com"]},
                "tagOwners": {"tag:web": ["group:dev"], "tag:none": []}, "acls": []}"#,
        )
        .unwrap();
        let (ann, bob) = (user("ann@example.com", Role::Member), user("bob@example.com", Role::Auditor));
        assert!(policy.may_own_tag(&ann, "tag:web") && !policy.may_own_tag(&bob, "tag:web"));
        assert!(!policy.may_own_tag(&ann, "tag:none"));
        for role in [Role::Owner, Role::Admin, Role::NetworkAdmin] {
            let boss = user("eve@example.com", role);
            assert!(policy.may_own_tag(&boss, "tag:none") && !policy.may_own_tag(&boss, "tag:unknown"));
        }
    }
}
