//! Compiled filters and visibility against the slowest possible reading of the rules.
//!
//! The policy is made as a structure, written as text for the compiler, and judged as a structure by `World`, which asks
//! for each packet whether any rule names its source and its destination. Packets are real ones, and the filter is
//! the node's own.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::wildcard_enum_match_arm, reason = "test code")]

use ipnet::IpNet;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;
use warren_filter::{Filter, FilterInput, Firewall, Packet, PeerMode, Shields, Verdict};
use warren_policy::{Attributes, Compiled, Directory, DirectoryNode, DirectoryUser, NodeRule, Owner, Policy};
use warren_wire::control::{NodeId, UserId};

const LOGINS: [&str; 3] = ["ann@x.org", "bob@x.org", "cid@x.org"];
const TAGS: [&str; 3] = ["tag:a", "tag:b", "tag:nobody"];
const GROUPS: [(&str, &[usize]); 3] = [("group:ab", &[0, 1]), ("group:c", &[2]), ("group:none", &[])];
const HOSTS: [(&str, &str); 3] = [("printer", "10.1.0.9"), ("lab", "10.1.0.0/16"), ("second", "100.64.0.2")];
const PREFIXES: [&str; 9] = [
    "100.64.0.3",
    "fd7a:115c:a1e0::1",
    "10.0.0.0/8",
    "192.168.7.0/24",
    "8.8.8.0/24",
    "0.0.0.0/0",
    "::/0",
    "100.64.0.0/30",
    "fd00:1::/64",
];
const ROUTES: [&str; 8] = [
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
const STRANGERS: [&str; 8] =
    ["10.1.0.9", "10.1.7.7", "192.168.7.1", "fd00:1::5", "8.8.8.8", "2001:db8::1", "100.64.9.9", "100.115.92.5"];
/// What `*` means as a source beside subnet routes: 100.64.0.0/10 without 100.115.92.0/23, and the IPv6 range.
const TAILNET: [&str; 2] = ["100.64.0.0/10", "fd7a:115c:a1e0::/48"];
const NOT_TAILNET: &str = "100.115.92.0/23";
/// What is not the Internet.
const PRIVATE: [&str; 5] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10"];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Word {
    Any,
    User(usize),
    Group(usize),
    Tag(usize),
    Host(usize),
    Prefix(usize),
    Members,
    OwnDevices,
}

#[derive(Debug, Clone)]
struct Rule {
    sources: Vec<Word>,
    destinations: Vec<(Word, Vec<(u16, u16)>)>,
    protocol: Option<u8>,
}

#[derive(Debug, Clone)]
struct World {
    rules: Vec<Rule>,
    directory: Directory,
}

/// What a packet carries.
#[derive(Debug, Clone, Copy)]
enum Load {
    Tcp(u16),
    Udp(u16),
    Sctp(u16),
    Ping,
    Gre,
}

fn prefix(text: &str) -> IpNet {
    text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl Word {
    fn text(self) -> &'static str {
        match self {
            Self::Any => "*",
            Self::User(number) => LOGINS[number],
            Self::Group(number) => GROUPS[number].0,
            Self::Tag(number) => TAGS[number],
            Self::Host(number) => HOSTS[number].0,
            Self::Prefix(number) => PREFIXES[number],
            Self::Members => "autogroup:member",
            Self::OwnDevices => "autogroup:self",
        }
    }

    /// Tells whether it names nodes of this owner, other than by address.
    fn names(self, owner: &Owner) -> bool {
        match (self, owner) {
            (Self::Any, _) => true,
            (Self::User(number), Owner::User(user)) => user.0 == number as i64,
            (Self::Group(number), Owner::User(user)) => GROUPS[number].1.iter().any(|member| user.0 == *member as i64),
            (Self::Members, Owner::User(_)) => true,
            (Self::Tag(number), Owner::Tags(tags)) => tags.contains(TAGS[number]),
            _ => false,
        }
    }

    /// Returns the addresses that it names literally.
    fn literal(self) -> Option<IpNet> {
        match self {
            Self::Host(number) => Some(prefix(HOSTS[number].1)),
            Self::Prefix(number) => Some(prefix(PREFIXES[number])),
            _ => None,
        }
    }

    fn is_person(self) -> bool {
        matches!(self, Self::Any | Self::User(_) | Self::Group(_) | Self::Members)
    }
}

impl World {
    fn policy(&self) -> String {
        let list = |words: Vec<String>| words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        let rules: Vec<String> = self
            .rules
            .iter()
            .map(|rule| {
                let sources = list(rule.sources.iter().map(|word| word.text().to_owned()).collect());
                let destinations = list(rule.destinations.iter().map(destination_text).collect());
                let protocol = rule.protocol.map(|number| format!(", \"proto\": \"{number}\"")).unwrap_or_default();
                format!("{{\"action\": \"accept\", \"src\": [{sources}], \"dst\": [{destinations}]{protocol}}}")
            })
            .collect();
        let groups: Vec<String> = GROUPS
            .iter()
            .map(|(name, members)| {
                let logins = list(members.iter().map(|number| LOGINS[*number].to_owned()).collect());
                format!("\"{name}\": [{logins}]")
            })
            .collect();
        let hosts: Vec<String> = HOSTS.iter().map(|(name, address)| format!("\"{name}\": \"{address}\"")).collect();
        let tags: Vec<String> = TAGS.iter().map(|tag| format!("\"{tag}\": []")).collect();
        format!(
            "{{\"acls\": [{}], \"groups\": {{{}}}, \"hosts\": {{{}}}, \"tagOwners\": {{{}}}}}",
            rules.join(", "),
            groups.join(", "),
            hosts.join(", "),
            tags.join(", ")
        )
    }

    fn compile(&self) -> Compiled {
        Policy::parse(&self.policy())
            .unwrap_or_else(|errors| panic!("{errors}\n{}", self.policy()))
            .compile(&self.directory, 0)
    }

    fn nodes(&self) -> impl Iterator<Item = (NodeId, &DirectoryNode)> {
        self.directory.nodes.iter().map(|(id, node)| (*id, node))
    }

    fn node_at(&self, address: IpAddr) -> Option<&DirectoryNode> {
        self.directory.nodes.values().find(|node| node.addresses.contains(&address))
    }

    fn is_subnet_address(&self, address: IpAddr) -> bool {
        self.nodes().any(|(_, node)| subnets(node).any(|route| route.contains(&address)))
    }

    fn source_matches(&self, word: Word, source: IpAddr) -> bool {
        match word {
            Word::Any => {
                TAILNET.iter().any(|net| prefix(net).contains(&source)) && !prefix(NOT_TAILNET).contains(&source)
                    || self.is_subnet_address(source)
            }
            word => match word.literal() {
                Some(net) => net.contains(&source),
                None => self.node_at(source).is_some_and(|node| word.names(&node.owner)),
            },
        }
    }

    /// Tells whether a node must take a packet to `destination` for the sake of this word of a rule.
    fn destination_matches(&self, word: Word, node: &DirectoryNode, destination: IpAddr) -> bool {
        let here = node.addresses.contains(&destination);
        let behind = subnets(node).any(|route| route.contains(&destination));
        match word {
            Word::Any => true,
            word => match word.literal() {
                Some(net) => net.contains(&destination) && concerns(net, node),
                None => (here || behind) && self.node_at(destination).is_some_and(|target| word.names(&target.owner)),
            },
        }
    }

    fn rule_allows(&self, rule: &Rule, node: &DirectoryNode, source: IpAddr, destination: IpAddr, load: Load) -> bool {
        let carries = |ports: &[(u16, u16)]| {
            let protocols = rule.protocol.map_or_else(|| vec![6, 17, 1, 58], |number| vec![number]);
            let holds = |port| ports.iter().any(|(first, last)| (*first..=*last).contains(&port));
            match load {
                Load::Tcp(port) => protocols.contains(&6) && holds(port),
                Load::Udp(port) => protocols.contains(&17) && holds(port),
                Load::Sctp(port) => protocols.contains(&132) && holds(port),
                Load::Ping => true,
                Load::Gre => protocols.contains(&47) && ports.contains(&(0, u16::MAX)),
            }
        };
        rule.destinations.iter().filter(|(_, ports)| carries(ports)).any(|(word, _)| {
            if *word == Word::OwnDevices {
                // From and to devices of one user, who must be named, at a device of that user.
                let Owner::User(_) = node.owner else { return false };
                let same = |address| self.node_at(address).is_some_and(|other| other.owner == node.owner);
                let taken =
                    node.addresses.contains(&destination) || subnets(node).any(|route| route.contains(&destination));
                return rule.sources.iter().any(|word| word.names(&node.owner))
                    && same(source)
                    && same(destination)
                    && taken;
            }
            rule.sources.iter().any(|word| self.source_matches(*word, source))
                && self.destination_matches(*word, node, destination)
        })
    }

    fn allows(&self, node: &DirectoryNode, source: IpAddr, destination: IpAddr, load: Load) -> bool {
        let local = node.addresses.contains(&destination)
            || node.approved_routes.iter().any(|route| route.contains(&destination));
        // Nobody else has an address of ours, whatever the rules say.
        let stolen = node.addresses.contains(&source);
        local && !stolen && self.rules.iter().any(|rule| self.rule_allows(rule, node, source, destination, load))
    }

    /// Tells whether a rule leads from one node to the other, for sight (policy.md, section 8).
    fn leads(&self, rule: &Rule, from: &DirectoryNode, to: &DirectoryNode) -> bool {
        let from_matches = |word: Word| {
            from.addresses.iter().any(|address| self.source_matches(word, *address))
                || subnets(from).any(|route| self.source_overlaps(word, route))
        };
        let to_matches = |word: Word| match word.literal() {
            Some(net) => holds(net, to) || is_exit_node(to) && net.prefix_len() == 0,
            None => word.names(&to.owner) || self.behind(to).any(|other| word.names(&other.owner)),
        };
        rule.destinations.iter().any(|(word, _)| {
            if *word == Word::OwnDevices {
                return matches!(from.owner, Owner::User(_))
                    && from.owner == to.owner
                    && rule.sources.iter().any(|word| word.names(&from.owner));
            }
            rule.sources.iter().any(|word| from_matches(*word)) && to_matches(*word)
        })
    }

    fn source_overlaps(&self, word: Word, route: IpNet) -> bool {
        match word {
            // It includes all routes.
            Word::Any => true,
            word => match word.literal() {
                Some(net) => overlap(net, route),
                None => self.nodes().any(|(_, other)| {
                    word.names(&other.owner) && other.addresses.iter().any(|address| route.contains(address))
                }),
            },
        }
    }

    /// Returns the nodes whose addresses lie within another's routes.
    fn behind<'a>(&'a self, node: &'a DirectoryNode) -> impl Iterator<Item = &'a DirectoryNode> {
        self.nodes()
            .map(|(_, other)| other)
            .filter(|other| other.addresses.iter().any(|address| subnets(node).any(|route| route.contains(address))))
    }

    fn see_each_other(&self, one: &DirectoryNode, two: &DirectoryNode) -> bool {
        self.rules.iter().any(|rule| self.leads(rule, one, two) || self.leads(rule, two, one))
    }
}

fn destination_text(entry: &(Word, Vec<(u16, u16)>)) -> String {
    let (word, ports) = entry;
    let name = match word.literal() {
        Some(IpNet::V6(_)) => word
            .text()
            .split_once('/')
            .map_or_else(|| format!("[{}]", word.text()), |(address, length)| format!("[{address}]/{length}")),
        _ => word.text().to_owned(),
    };
    let ports: Vec<String> = ports
        .iter()
        .map(|(first, last)| match (first, last) {
            (0, _) => "*".to_owned(),
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        })
        .collect();
    format!("{name}:{}", ports.join(","))
}

fn subnets(node: &DirectoryNode) -> impl Iterator<Item = IpNet> + '_ {
    node.approved_routes.iter().copied().filter(|route| route.prefix_len() > 0)
}

fn is_exit_node(node: &DirectoryNode) -> bool {
    node.approved_routes.iter().any(|route| route.prefix_len() == 0)
}

fn overlap(one: IpNet, two: IpNet) -> bool {
    one.contains(&two) || two.contains(&one)
}

fn holds(net: IpNet, node: &DirectoryNode) -> bool {
    node.addresses.iter().any(|address| net.contains(address)) || subnets(node).any(|route| overlap(route, net))
}

/// Tells whether a literal destination is in the filter of a node at all (policy.md, section 7).
fn concerns(net: IpNet, node: &DirectoryNode) -> bool {
    let internet = match net {
        IpNet::V4(_) => !PRIVATE.iter().any(|private| overlap(prefix(private), net)),
        IpNet::V6(_) => prefix("2000::/3").contains(&net),
    };
    holds(net, node) || is_exit_node(node) && internet
}

fn any_word() -> impl Strategy<Value = Word> {
    prop_oneof![
        1 => Just(Word::Any),
        2 => (0..LOGINS.len()).prop_map(Word::User),
        2 => (0..GROUPS.len()).prop_map(Word::Group),
        3 => (0..TAGS.len()).prop_map(Word::Tag),
        1 => (0..HOSTS.len()).prop_map(Word::Host),
        2 => (0..PREFIXES.len()).prop_map(Word::Prefix),
        1 => Just(Word::Members),
    ]
}

fn any_destination() -> impl Strategy<Value = Word> {
    prop_oneof![5 => any_word(), 1 => Just(Word::OwnDevices)]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let ports = proptest::sample::select(vec![
        vec![(0, u16::MAX)],
        vec![(0, u16::MAX)],
        vec![(22, 22)],
        vec![(20, 30), (80, 80)],
        vec![(81, 65_535)],
    ]);
    let protocols = vec![None, None, None, Some(6), Some(17), Some(132), Some(1), Some(58), Some(47)];
    let destinations = proptest::collection::vec((any_destination(), ports), 0..4);
    (proptest::collection::vec(any_word(), 0..4), destinations, proptest::sample::select(protocols)).prop_map(
        |(mut sources, mut destinations, protocol)| {
            if destinations.iter().any(|(word, _)| *word == Word::OwnDevices) {
                sources.retain(|word| word.is_person());
            }
            if protocol.is_some_and(|number| ![6, 17, 132].contains(&number)) {
                destinations.iter_mut().for_each(|(_, ports)| *ports = vec![(0, u16::MAX)]);
            }
            Rule { sources, destinations, protocol }
        },
    )
}

/// Owner, routes, and which address families it has.
fn any_node() -> impl Strategy<Value = (Owner, Vec<IpNet>, (bool, bool))> {
    let tags = proptest::collection::btree_set(0..2_usize, 1..3)
        .prop_map(|tags| Owner::Tags(tags.into_iter().map(|tag| TAGS[tag].to_owned()).collect()));
    // The last user of the policy has no account.
    let owner = prop_oneof![(0..2_i64).prop_map(|user| Owner::User(UserId(user))), tags];
    let route = proptest::sample::select(ROUTES.map(prefix).to_vec());
    let routes = prop_oneof![2 => Just(Vec::new()), 1 => proptest::collection::vec(route, 1..3)];
    (owner, routes, proptest::sample::select(vec![(true, true), (true, true), (true, false), (false, true)]))
}

fn any_world() -> impl Strategy<Value = World> {
    let rules = proptest::collection::vec(any_rule(), 0..5);
    (rules, proptest::collection::vec(any_node(), 1..6)).prop_map(|(rules, nodes)| {
        let user = |login: &&str| DirectoryUser { login: (*login).to_owned(), ..DirectoryUser::default() };
        let users = (0..2).zip(&LOGINS).map(|(number, login)| (UserId(number), user(login)));
        let nodes = nodes.into_iter().zip(1_u8..).map(|((owner, routes, (v4, v6)), number)| {
            let v4 = v4.then(|| ip(&format!("100.64.0.{number}")));
            let v6 = v6.then(|| ip(&format!("fd7a:115c:a1e0::{number}")));
            let addresses = v4.into_iter().chain(v6).collect();
            let routes: BTreeSet<IpNet> = routes.into_iter().collect();
            let approved_routes = routes.into_iter().collect();
            let node = DirectoryNode { owner, addresses, approved_routes, online: true, attributes: Attributes::new() };
            (NodeId(number.into()), node)
        });
        World { rules, directory: Directory { users: users.collect(), nodes: nodes.collect(), ..Directory::default() } }
    })
}

/// Makes the first packet of a conversation.
fn packet(source: IpAddr, destination: IpAddr, load: Load) -> Vec<u8> {
    let port = |port: u16| [40_000_u16.to_be_bytes(), port.to_be_bytes()].concat();
    let (protocol, payload) = match (load, source) {
        (Load::Tcp(to), _) => (6, [port(to), vec![0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 1, 0, 0, 0, 0, 0]].concat()),
        (Load::Udp(to), _) => (17, [port(to), vec![0, 8, 0, 0]].concat()),
        (Load::Sctp(to), _) => (132, [port(to), vec![0; 8]].concat()),
        (Load::Ping, IpAddr::V4(_)) => (1, vec![8, 0, 0, 0, 0, 1, 0, 1]),
        (Load::Ping, IpAddr::V6(_)) => (58, vec![128, 0, 0, 0, 0, 1, 0, 1]),
        (Load::Gre, _) => (47, vec![0; 8]),
    };
    let length = u16::try_from(payload.len()).unwrap();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let head = [&[0x45, 0][..], &(length + 20).to_be_bytes(), &[0, 0, 0, 0, 64, protocol, 0, 0]].concat();
            [head, source.octets().to_vec(), destination.octets().to_vec(), payload].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let head = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[protocol, 64]].concat();
            [head, source.octets().to_vec(), destination.octets().to_vec(), payload].concat()
        }
        _ => panic!("one packet, two families"),
    }
}

/// The firewall of one node with the filter that the compiler made for it.
struct Judge {
    filter: Arc<Filter>,
    now: Instant,
}

impl Judge {
    fn new(compiled: &Compiled, id: NodeId, node: &DirectoryNode) -> Self {
        let addresses = node.addresses.iter().copied().map(IpNet::from);
        let local: Vec<IpNet> = addresses.chain(node.approved_routes.iter().copied()).collect();
        let rules: Vec<_> = compiled.filter(id).iter().map(NodeRule::to_wire).collect();
        let input = FilterInput { rules: &rules, local: &local, shields: Shields::Down, holders: &|_| Vec::new() };
        let (filter, problems) = Filter::compile(&input).unwrap();
        assert_eq!(problems, []);
        #[expect(clippy::disallowed_methods, reason = "an arbitrary start; time does not pass")]
        let now = Instant::now();
        Self { filter: Arc::new(filter), now }
    }

    fn accepts(&self, source: IpAddr, destination: IpAddr, load: Load) -> bool {
        let mut firewall = Firewall::new(1, self.now);
        firewall.use_filter(&self.filter);
        let bytes = packet(source, destination, load);
        firewall.check_inbound(&Packet::parse(&bytes).unwrap(), PeerMode::Normal, self.now) == Verdict::Accept
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn filter_accepts_what_the_rules_say(
        world in any_world(),
        choices in proptest::collection::vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<prop::sample::Index>()),
            60,
        ),
    ) {
        let compiled = world.compile();
        let own = world.nodes().flat_map(|(_, node)| node.addresses.clone());
        let addresses: Vec<IpAddr> = own.chain(STRANGERS.map(ip)).collect();
        let loads = [
            Load::Tcp(22), Load::Tcp(80), Load::Tcp(31), Load::Udp(22), Load::Udp(81), Load::Sctp(22), Load::Ping, Load::Gre,
        ];
        for (id, node) in world.nodes() {
            let judge = Judge::new(&compiled, id, node);
            for (source, destination, load) in &choices {
                let source = *source.get(&addresses);
                let same_family: Vec<IpAddr> =
                    addresses.iter().copied().filter(|address| address.is_ipv4() == source.is_ipv4()).collect();
                let (destination, load) = (*destination.get(&same_family), *load.get(&loads));
                prop_assert_eq!(
                    judge.accepts(source, destination, load),
                    world.allows(node, source, destination, load),
                    "node {} {:?}: {} > {} {:?}\n{}\n{:?}",
                    id, node, source, destination, load, world.policy(), compiled.filter(id)
                );
            }
        }
    }

    #[test]
    fn nodes_see_each_other_as_the_rules_say_both_ways(world in any_world()) {
        let compiled = world.compile();
        let mut peers: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
        for (one, first) in world.nodes() {
            let listed: Vec<NodeId> = compiled.peers(one).collect();
            prop_assert!(listed.is_sorted_by(|left, right| left < right));
            peers.insert(one, listed.into_iter().collect());
            for (two, second) in world.nodes() {
                let expected = one != two && world.see_each_other(first, second);
                prop_assert_eq!(compiled.visible(one, two), expected, "{} {}\n{}", one, two, world.policy());
                prop_assert_eq!(peers[&one].contains(&two), expected);
            }
        }
        for (one, seen) in &peers {
            prop_assert!(seen.iter().all(|two| peers[two].contains(one)));
        }
    }

    /// Who lets another's packets in must know that other, or the packets could never come.
    #[test]
    fn nodes_whose_packets_pass_see_each_other(world in any_world()) {
        let compiled = world.compile();
        for (to, target) in world.nodes() {
            let judge = Judge::new(&compiled, to, target);
            for (from, source) in world.nodes().filter(|(from, _)| *from != to) {
                let pairs = source.addresses.iter().flat_map(|one| target.addresses.iter().map(move |two| (one, two)));
                for (source, destination) in pairs.filter(|(one, two)| one.is_ipv4() == two.is_ipv4()) {
                    if judge.accepts(*source, *destination, Load::Ping) {
                        prop_assert!(compiled.visible(from, to), "{} {}\n{}", from, to, world.policy());
                    }
                }
            }
        }
    }
}
