//! Who may give tags to nodes, and whose routes need no administrator.

use crate::model::TagOwner;
use crate::selector::Selector;
use crate::{DirectoryUser, Owner, Policy, Role};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use warren_wire::control::UserId;

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

    /// Returns those of `routes` that are approved by themselves when a node of this owner offers them; both default
    /// routes are what `autoApprovers.exitNode` says, and nothing else.
    #[must_use]
    pub fn approved_by_itself(
        &self,
        owner: &Owner,
        users: &BTreeMap<UserId, DirectoryUser>,
        routes: &[IpNet],
    ) -> Vec<IpNet> {
        let approvers = &self.sections.auto_approvers;
        let covered = |selectors: &[Selector]| selectors.iter().any(|selector| self.names(selector, owner, users));
        let approves = |route: &IpNet| {
            if route.prefix_len() == 0 {
                return covered(&approvers.exit_node);
            }
            approvers.routes.iter().any(|(prefix, selectors)| prefix.contains(route) && covered(selectors))
        };
        routes.iter().filter(|route| approves(route)).copied().collect()
    }

    /// Tells whether a selector names the owner of a node.
    fn names(&self, selector: &Selector, owner: &Owner, users: &BTreeMap<UserId, DirectoryUser>) -> bool {
        match owner {
            Owner::User(id) => users.get(id).is_some_and(|user| self.names_user(selector, user)),
            Owner::Tags(tags) => {
                *selector == Selector::Tagged || matches!(selector, Selector::Tag(tag) if tags.contains(tag))
            }
        }
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

    #[test]
    fn routes_within_a_prefix_are_approved_and_default_routes_only_as_exits() {
        let mut policy = Policy::parse(r#"{"tagOwners": {"tag:router": []}, "acls": []}"#).unwrap();
        let approvers = &mut policy.sections.auto_approvers;
        let prefix = |text: &str| text.parse::<IpNet>().unwrap();
        approvers.routes.insert(prefix("10.0.0.0/8"), vec![Selector::Tag("tag:router".to_owned())]);
        approvers.routes.insert(prefix("0.0.0.0/0"), vec![Selector::Members]);
        approvers.exit_node = vec![Selector::Role(Role::Admin)];
        let users = BTreeMap::from([
            (UserId(1), user("ann@example.com", Role::Admin)),
            (UserId(2), user("bob@example.com", Role::Member)),
        ]);
        let offered = ["10.1.0.0/16", "10.0.0.0/8", "0.0.0.0/0", "::/0", "192.168.0.0/16"].map(prefix);
        let approved = |owner: Owner| {
            let routes = policy.approved_by_itself(&owner, &users, &offered);
            routes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(approved(Owner::Tags(["tag:router".to_owned()].into())), "10.1.0.0/16 10.0.0.0/8");
        assert_eq!(approved(Owner::Tags(["tag:other".to_owned()].into())), "");
        assert_eq!(approved(Owner::User(UserId(1))), "10.1.0.0/16 10.0.0.0/8 0.0.0.0/0 ::/0 192.168.0.0/16");
        assert_eq!(approved(Owner::User(UserId(2))), "10.1.0.0/16 10.0.0.0/8 192.168.0.0/16");
        assert_eq!(approved(Owner::User(UserId(3))), "");
    }
}
