//! Small tailnets by chance: users, nodes and rules as structures, and the policy that says them.
//!
//! The rules are judged as structures by `naive`, in the slowest possible way, and as text by the compiler.

#![allow(dead_code, reason = "each test uses a part")]

pub(crate) mod naive;
pub(crate) mod packet;

use ipnet::IpNet;
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::select;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use warren_policy::{
    AttributeValue, Attributes, Compiled, Directory, DirectoryNode, DirectoryUser, Owner, Policy, Role,
};
use warren_wire::control::{NodeId, UserId};

/// Logins; the last one of the policy has no account.
pub(crate) const LOGINS: [&str; 4] = ["ann@x.org", "bob@x.org", "cid@y.org", "eve@x.org"];
pub(crate) const TAGS: [&str; 3] = ["tag:a", "tag:b", "tag:nobody"];
pub(crate) const GROUPS: [&str; 3] = ["group:one", "group:two", "group:none"];
pub(crate) const HOSTS: [(&str, &str); 3] = [("printer", "10.1.0.9"), ("lab", "10.1.0.0/16"), ("second", "100.64.0.2")];
/// What ipsets are made of, and the ranges that come of it.
type Operations = &'static [&'static str];
type Ranges = &'static [(&'static str, &'static str)];
pub(crate) const IP_SETS: [(&str, Operations, Ranges); 3] = [
    ("ipset:half", &["add host:lab", "remove 10.1.128.0/17"], &[("10.1.0.0", "10.1.127.255")]),
    (
        "ipset:mix",
        &["100.64.0.2-100.64.0.3", "8.8.8.0/24", "host:printer"],
        &[("8.8.8.0", "8.8.8.255"), ("10.1.0.9", "10.1.0.9"), ("100.64.0.2", "100.64.0.3")],
    ),
    ("ipset:v6", &["fd7a:115c:a1e0::2-fd7a:115c:a1e0::4"], &[("fd7a:115c:a1e0::2", "fd7a:115c:a1e0::4")]),
];
pub(crate) const PREFIXES: [&str; 9] = [
    "100.64.0.3",
    "fd7a:115c:a1e0::1",
    "10.0.0.0/8",
    "192.168.7.0/24",
    "8.8.8.0/24",
    "100.64.0.0/30",
    "fd00:1::/64",
    "0.0.0.0/0",
    "::/0",
];
/// How many of these a grant may have as destinations: not all addresses.
const NARROW_PREFIXES: usize = 7;
pub(crate) const ROUTES: [&str; 8] = [
    "10.1.0.0/16",
    "10.1.0.0/24",
    "192.168.7.0/24",
    "fd00:1::/64",
    "100.64.0.0/29",
    "fd7a:115c:a1e0::/126",
    "0.0.0.0/0",
    "::/0",
];
/// Addresses that are no node's.
pub(crate) const STRANGERS: [&str; 9] = [
    "10.1.0.9",
    "10.1.7.7",
    "10.1.200.1",
    "192.168.7.1",
    "fd00:1::5",
    "8.8.8.8",
    "2001:db8::1",
    "100.64.9.9",
    "100.115.92.5",
];
/// Capabilities; the second has a companion.
pub(crate) const CAPABILITIES: [&str; 2] = ["example.com/cap/x", "tailscale.com/cap/drive"];
pub(crate) const COMPANION: (&str, &str) = ("tailscale.com/cap/drive", "tailscale.com/cap/drive-sharer");
/// An attribute that the posture of all rules asks for.
pub(crate) const ATTRIBUTE: &str = "custom:tier";
pub(crate) const ATTRIBUTE_VALUE: &str = "gold";
/// Moments at which rules begin and end, in Unix seconds.
pub(crate) const EDGES: [i64; 4] = [1_800_000_000, 1_800_000_100, 1_800_000_200, 1_800_000_300];

/// A selector.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Word {
    Any,
    Everywhere,
    User(usize),
    Group(usize),
    Tag(usize),
    Host(usize),
    Prefix(usize),
    IpSet(usize),
    Members,
    Tagged,
    Admins,
    OfDomain,
    Internet,
    OwnDevices,
}

/// Traffic: a protocol, ports.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Service {
    pub(crate) protocol: Option<u8>,
    pub(crate) ports: (u16, u16),
}

/// A rule of `acls`, which has one service, or of `grants`.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) is_acl: bool,
    pub(crate) sources: Vec<Word>,
    pub(crate) destinations: Vec<Word>,
    pub(crate) services: Vec<Service>,
    pub(crate) capability: Option<usize>,
    pub(crate) via: Vec<usize>,
    pub(crate) needs_posture: bool,
    pub(crate) from: Option<i64>,
    pub(crate) until: Option<i64>,
}

/// What the policy says.
#[derive(Debug, Clone)]
pub(crate) struct Laws {
    pub(crate) rules: Vec<Rule>,
    /// Members of each of [`GROUPS`].
    pub(crate) groups: Vec<BTreeSet<usize>>,
    /// Whose nodes have no IPv4 address.
    pub(crate) without_ipv4: Option<Word>,
}

#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) laws: Laws,
    pub(crate) directory: Directory,
    pub(crate) now: i64,
    /// The ways to subnets, where they are not as a first compilation chooses them.
    pub(crate) ways: BTreeMap<IpNet, NodeId>,
}

pub(crate) fn prefix(text: &str) -> IpNet {
    text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).unwrap()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl Word {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Any => "*",
            Self::Everywhere => "autogroup:danger-all",
            Self::User(number) => LOGINS[number],
            Self::Group(number) => GROUPS[number],
            Self::Tag(number) => TAGS[number],
            Self::Host(number) => HOSTS[number].0,
            Self::Prefix(number) => PREFIXES[number],
            Self::IpSet(number) => IP_SETS[number].0,
            Self::Members => "autogroup:member",
            Self::Tagged => "autogroup:tagged",
            Self::Admins => "autogroup:admin",
            Self::OfDomain => "user:*@x.org",
            Self::Internet => "autogroup:internet",
            Self::OwnDevices => "autogroup:self",
        }
    }

    /// Returns the addresses that it names literally, as ranges.
    pub(crate) fn literal(self) -> Vec<(IpAddr, IpAddr)> {
        let range = |text| vec![(prefix(text).network(), prefix(text).broadcast())];
        match self {
            Self::Host(number) => range(HOSTS[number].1),
            Self::Prefix(number) => range(PREFIXES[number]),
            Self::IpSet(number) => IP_SETS[number].2.iter().map(|(first, last)| (ip(first), ip(last))).collect(),
            _ => Vec::new(),
        }
    }

    /// Tells whether it may stand beside one's own devices as a destination.
    fn is_person(self, is_acl: bool) -> bool {
        matches!(self, Self::User(_) | Self::Group(_) | Self::Members | Self::Admins) || is_acl && self == Self::Any
    }
}

fn list(words: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let words: Vec<String> = words.into_iter().map(|word| format!("\"{}\"", word.as_ref())).collect();
    format!("[{}]", words.join(", "))
}

fn ports(service: &Service) -> String {
    match service.ports {
        (0, _) => "*".to_owned(),
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    }
}

impl Rule {
    fn text(&self) -> String {
        let mut members = vec![format!("\"src\": {}", list(self.sources.iter().map(|word| word.text())))];
        if self.is_acl {
            let service = &self.services[0];
            let destination = |word: &Word| match (word.text(), word.literal().first()) {
                (text, Some((IpAddr::V6(_), _))) if !text.starts_with("ipset") => match text.split_once('/') {
                    Some((address, length)) => format!("[{address}]/{length}:{}", ports(service)),
                    None => format!("[{text}]:{}", ports(service)),
                },
                (text, _) => format!("{text}:{}", ports(service)),
            };
            members.push("\"action\": \"accept\"".to_owned());
            members.push(format!("\"dst\": {}", list(self.destinations.iter().map(destination))));
            members.extend(service.protocol.map(|number| format!("\"proto\": \"{number}\"")));
        } else {
            members.push(format!("\"dst\": {}", list(self.destinations.iter().map(|word| word.text()))));
            let services = self.services.iter().map(|service| match service.protocol {
                Some(number) => format!("{number}:{}", ports(service)),
                None => ports(service),
            });
            members.push(format!("\"ip\": {}", list(services)));
            members.extend(self.capability.map(|number| format!("\"app\": {{\"{}\": [{{}}]}}", CAPABILITIES[number])));
            if !self.via.is_empty() {
                members.push(format!("\"via\": {}", list(self.via.iter().map(|tag| TAGS[*tag]))));
            }
            for (name, moment) in [("from", self.from), ("until", self.until)] {
                let text = |moment: i64| warren_wire::control::Time::from_unix(moment, 0).unwrap().to_string();
                members.extend(moment.map(|moment| format!("\"{name}\": \"{}\"", text(moment))));
            }
        }
        if self.needs_posture {
            members.push("\"srcPosture\": [\"posture:good\"]".to_owned());
        }
        format!("{{{}}}", members.join(", "))
    }
}

impl Laws {
    pub(crate) fn text(&self) -> String {
        let rules = |is_acl| {
            let texts: Vec<String> = self.rules.iter().filter(|rule| rule.is_acl == is_acl).map(Rule::text).collect();
            texts.join(",\n  ")
        };
        let groups = GROUPS.iter().zip(&self.groups);
        let groups: Vec<String> = groups
            .map(|(name, members)| format!("\"{name}\": {}", list(members.iter().map(|number| LOGINS[*number]))))
            .collect();
        let hosts: Vec<String> = HOSTS.iter().map(|(name, address)| format!("\"{name}\": \"{address}\"")).collect();
        let sets: Vec<String> =
            IP_SETS.iter().map(|(name, parts, _)| format!("\"{name}\": {}", list(*parts))).collect();
        let tags: Vec<String> = TAGS.iter().map(|tag| format!("\"{tag}\": []")).collect();
        let attributes = self.without_ipv4.map(|word| {
            format!(", \"nodeAttrs\": [{{\"target\": [\"{}\"], \"attr\": [\"disable-ipv4\"]}}]", word.text())
        });
        format!(
            "{{\"acls\": [\n  {}],\n\"grants\": [\n  {}],\n\"groups\": {{{}}}, \"hosts\": {{{}}}, \"ipsets\": {{{}}}, \
             \"tagOwners\": {{{}}}, \"postures\": {{\"posture:good\": [\"{ATTRIBUTE} == '{ATTRIBUTE_VALUE}'\"]}}{}}}",
            rules(true),
            rules(false),
            groups.join(", "),
            hosts.join(", "),
            sets.join(", "),
            tags.join(", "),
            attributes.unwrap_or_default()
        )
    }

    pub(crate) fn policy(&self) -> Policy {
        Policy::parse(&self.text()).unwrap_or_else(|errors| panic!("{errors}\n{}", self.text()))
    }
}

impl World {
    pub(crate) fn compile(&self) -> Compiled {
        self.laws.policy().compile(&self.directory, self.now)
    }
}

fn any_name() -> impl Strategy<Value = Word> {
    prop_oneof![
        2 => (0..LOGINS.len()).prop_map(Word::User),
        2 => (0..GROUPS.len()).prop_map(Word::Group),
        3 => (0..TAGS.len()).prop_map(Word::Tag),
        1 => Just(Word::Members),
        1 => Just(Word::Tagged),
        1 => Just(Word::Admins),
        1 => Just(Word::OfDomain),
    ]
}

fn any_word() -> impl Strategy<Value = Word> {
    prop_oneof![
        1 => Just(Word::Any),
        6 => any_name(),
        1 => (0..HOSTS.len()).prop_map(Word::Host),
        2 => (0..PREFIXES.len()).prop_map(Word::Prefix),
        1 => (0..IP_SETS.len()).prop_map(Word::IpSet),
    ]
}

fn any_source() -> impl Strategy<Value = Word> {
    prop_oneof![12 => any_word(), 1 => Just(Word::Everywhere)]
}

fn any_destination() -> impl Strategy<Value = Word> {
    prop_oneof![6 => any_word(), 1 => Just(Word::OwnDevices), 1 => Just(Word::Internet)]
}

fn any_service() -> impl Strategy<Value = Service> {
    let ports = select(vec![(0, u16::MAX), (0, u16::MAX), (22, 22), (20, 30), (81, 65_535)]);
    let protocols = select(vec![None, None, None, Some(6), Some(17), Some(132), Some(1), Some(58), Some(47)]);
    (ports, protocols).prop_map(|(ports, protocol)| {
        let has_ports = protocol.is_none_or(|number| [6, 17, 132].contains(&number));
        Service { protocol, ports: if has_ports { ports } else { (0, u16::MAX) } }
    })
}

pub(crate) fn any_rule() -> impl Strategy<Value = Rule> {
    let hours = (
        proptest::option::weighted(0.2, select(EDGES.to_vec())),
        proptest::option::weighted(0.2, select(EDGES.to_vec())),
    );
    let more = (
        proptest::option::weighted(0.3, 0..CAPABILITIES.len()),
        prop_oneof![3 => Just(Vec::new()), 1 => vec(0..TAGS.len(), 1..3)],
        proptest::bool::weighted(0.2),
        hours,
    );
    let lists = (vec(any_source(), 0..4), vec(any_destination(), 0..4), vec(any_service(), 1..3));
    (any::<bool>(), lists, more).prop_map(
        |(
            is_acl,
            (mut sources, mut destinations, mut services),
            (mut capability, mut via, needs_posture, mut hours),
        )| {
            if is_acl {
                services.truncate(1);
                (capability, via, hours) = (None, Vec::new(), (None, None));
            } else {
                destinations.retain(|word| !matches!(word, Word::Prefix(number) if *number >= NARROW_PREFIXES));
                if !via.is_empty() {
                    destinations.retain(|word| *word != Word::OwnDevices);
                }
                if destinations.contains(&Word::Internet) {
                    capability = None;
                }
                if let (Some(from), Some(until)) = hours
                    && from >= until
                {
                    hours.0 = None;
                }
            }
            if destinations.contains(&Word::OwnDevices) {
                sources.retain(|word| word.is_person(is_acl));
            }
            let (from, until) = hours;
            Rule { is_acl, sources, destinations, services, capability, via, needs_posture, from, until }
        },
    )
}

pub(crate) fn any_laws() -> impl Strategy<Value = Laws> {
    let target = prop_oneof![any_name(), (0..PREFIXES.len()).prop_map(Word::Prefix), Just(Word::Any)]
        .prop_filter("as a target nobody knows them", |word| *word != Word::OfDomain);
    (
        vec(any_rule(), 0..6),
        vec(btree_set(0..LOGINS.len(), 0..3), GROUPS.len()),
        proptest::option::weighted(0.2, target),
    )
        .prop_map(|(rules, groups, without_ipv4)| Laws { rules, groups, without_ipv4 })
}

/// A node by its number, which its addresses are made of.
pub(crate) fn any_node(number: u8) -> impl Strategy<Value = DirectoryNode> {
    let tags = btree_set(0..2_usize, 1..3)
        .prop_map(|tags| Owner::Tags(tags.into_iter().map(|tag| TAGS[tag].to_owned()).collect()));
    let owner = prop_oneof![(0..3_i64).prop_map(|user| Owner::User(UserId(user))), tags];
    let route = select(ROUTES.map(prefix).to_vec());
    let routes = prop_oneof![2 => Just(BTreeSet::new()), 1 => btree_set(route, 1..3)];
    let families = select(vec![(true, true), (true, true), (true, false), (false, true)]);
    (owner, routes, families, proptest::bool::weighted(0.8), any::<bool>()).prop_map(
        move |(owner, routes, (v4, v6), online, has_posture)| {
            let v4 = v4.then(|| ip(&format!("100.64.0.{number}")));
            let v6 = v6.then(|| ip(&format!("fd7a:115c:a1e0::{number}")));
            let attribute = (ATTRIBUTE.to_owned(), AttributeValue::Text(ATTRIBUTE_VALUE.to_owned()));
            DirectoryNode {
                owner,
                addresses: v4.into_iter().chain(v6).collect(),
                approved_routes: routes.into_iter().collect(),
                online,
                attributes: has_posture.then_some(attribute).into_iter().collect::<Attributes>(),
            }
        },
    )
}

pub(crate) fn any_users() -> impl Strategy<Value = BTreeMap<UserId, DirectoryUser>> {
    let user = (any::<bool>(), any::<bool>()).prop_map(|(is_admin, in_group)| DirectoryUser {
        login: String::new(),
        role: if is_admin { Role::Admin } else { Role::Member },
        groups: in_group.then(|| "group:synced@x.org".to_owned()).into_iter().collect(),
    });
    vec(user, 3).prop_map(|users| {
        let named = (0_i64..).zip(users).zip(LOGINS);
        named.map(|((id, user), login)| (UserId(id), DirectoryUser { login: login.to_owned(), ..user })).collect()
    })
}

pub(crate) fn any_directory() -> impl Strategy<Value = Directory> {
    let nodes: Vec<_> = (1..=6_u8).map(|number| proptest::option::weighted(0.7, any_node(number))).collect();
    (any_users(), nodes).prop_map(|(users, nodes)| Directory {
        domains: ["x.org".to_owned()].into(),
        users,
        nodes: (1..).zip(nodes).filter_map(|(number, node)| Some((NodeId(number), node?))).collect(),
    })
}

pub(crate) fn any_world() -> impl Strategy<Value = World> {
    (any_laws(), any_directory(), select(EDGES.to_vec())).prop_map(|(laws, directory, now)| World {
        laws,
        directory,
        now,
        ways: BTreeMap::new(),
    })
}
