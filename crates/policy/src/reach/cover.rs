//! What selectors cover: devices by owner, and addresses.

use crate::model::Sections;
use crate::selector::Selector;
use crate::{Directory, Owner};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use warren_wire::control::UserId;

/// Users by the names that a policy gives them.
#[derive(Debug)]
pub(super) struct Names<'a> {
    sections: &'a Sections,
    directory: &'a Directory,
    by_login: BTreeMap<&'a str, Vec<UserId>>,
    /// Members of the groups of the policy and of the identity provider.
    groups: BTreeMap<&'a str, BTreeSet<UserId>>,
}

impl<'a> Names<'a> {
    pub(super) fn new(sections: &'a Sections, directory: &'a Directory) -> Self {
        let mut by_login: BTreeMap<&str, Vec<UserId>> = BTreeMap::new();
        let mut groups: BTreeMap<&str, BTreeSet<UserId>> = BTreeMap::new();
        for (id, user) in &directory.users {
            by_login.entry(&user.login).or_default().push(*id);
            for group in &user.groups {
                groups.entry(group).or_default().insert(*id);
            }
        }
        for (group, logins) in &sections.groups {
            let members = logins.iter().filter_map(|login| by_login.get(login.as_str())).flatten();
            groups.entry(group).or_default().extend(members);
        }
        Self { sections, directory, by_login, groups }
    }

    /// Tells whether a selector other than `*` and `autogroup:self` covers a device of this owner or this address.
    pub(super) fn covers(&self, selector: &Selector, owner: Option<&Owner>, address: Option<IpAddr>) -> bool {
        let user = match owner {
            Some(Owner::User(user)) => Some(*user),
            Some(Owner::Tags(_)) | None => None,
        };
        let literal = |covers: &dyn Fn(IpAddr) -> bool| address.is_some_and(covers);
        match selector {
            Selector::Everywhere => true,
            Selector::User(login) => user.is_some_and(|user| self.login(user) == Some(login)),
            Selector::Group(group) => user.is_some_and(|user| self.is_member(group, user)),
            Selector::UsersOfDomain(domain) => user.is_some_and(|user| self.is_of_domain(user, domain)),
            Selector::Role(role) => {
                user.and_then(|user| self.directory.users.get(&user)).is_some_and(|user| user.role == *role)
            }
            Selector::Members => user.is_some(),
            Selector::Tag(tag) => matches!(owner, Some(Owner::Tags(tags)) if tags.contains(tag)),
            Selector::Tagged => matches!(owner, Some(Owner::Tags(_))),
            Selector::Prefix(prefix) => literal(&|address| prefix.contains(&address)),
            Selector::Host(host) => {
                literal(&|address| self.sections.hosts.get(host).is_some_and(|prefix| prefix.contains(&address)))
            }
            Selector::IpSet(name) => {
                literal(&|address| self.sections.ip_sets.get(name).is_some_and(|set| set.contains(address)))
            }
            Selector::Internet => literal(&is_internet),
            // Nodes are not shared between tailnets and services have no addresses yet; the others are the caller's.
            Selector::Shared | Selector::Service(_) | Selector::Any | Selector::OwnDevices => false,
        }
    }

    /// Returns the users that a selector of users names; `None` if the selector names something else.
    pub(super) fn users(&self, selector: &Selector) -> Option<Vec<UserId>> {
        let all = self.directory.users.keys().copied();
        match selector {
            Selector::User(login) => Some(self.by_login.get(login.as_str()).cloned().unwrap_or_default()),
            Selector::Group(group) => Some(self.groups.get(group.as_str()).into_iter().flatten().copied().collect()),
            Selector::UsersOfDomain(domain) => Some(all.filter(|user| self.is_of_domain(*user, domain)).collect()),
            Selector::Role(_) => {
                Some(all.filter(|user| self.covers(selector, Some(&Owner::User(*user)), None)).collect())
            }
            Selector::Members => Some(all.collect()),
            Selector::Any
            | Selector::Tag(_)
            | Selector::Tagged
            | Selector::Host(_)
            | Selector::Prefix(_)
            | Selector::IpSet(_)
            | Selector::Service(_)
            | Selector::Shared
            | Selector::Everywhere
            | Selector::Internet
            | Selector::OwnDevices => None,
        }
    }

    fn login(&self, user: UserId) -> Option<&String> {
        self.directory.users.get(&user).map(|user| &user.login)
    }

    fn is_member(&self, group: &str, user: UserId) -> bool {
        self.groups.get(group).is_some_and(|members| members.contains(&user))
    }

    fn is_of_domain(&self, user: UserId, domain: &str) -> bool {
        self.login(user).and_then(|login| login.rsplit_once('@')).is_some_and(|(_, own)| own == domain)
    }
}

const CGNAT: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
/// ChromeOS gives these to its virtual machines; no node has one.
const CHROME_OS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 115, 92, 0), 23);
const TAILNET_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0), 48);
/// What is not the Internet, in IPv4.
const PRIVATE: [Ipv4Net; 5] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
    CGNAT,
];
const INTERNET_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// Tells whether an address is one that devices of a tailnet have (policy.md, section 3.2).
pub(crate) fn is_tailnet(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => CGNAT.contains(&address) && !CHROME_OS.contains(&address),
        IpAddr::V6(address) => TAILNET_V6.contains(&address),
    }
}

/// Tells whether an address is on the Internet (policy.md, section 3.3).
pub(crate) fn is_internet(address: IpAddr) -> bool {
    lies_within_internet(IpNet::from(address))
}

/// Tells whether all addresses of a prefix are on the Internet.
pub(crate) fn lies_within_internet(prefix: IpNet) -> bool {
    match prefix {
        IpNet::V4(prefix) => !PRIVATE.iter().any(|private| private.contains(&prefix) || prefix.contains(private)),
        IpNet::V6(prefix) => INTERNET_V6.contains(&prefix),
    }
}
