//! The rules judged one by one, without any table.

use super::{ATTRIBUTE, CAPABILITIES, COMPANION, GROUPS, LOGINS, Rule, TAGS, Word, World, prefix};
use ipnet::IpNet;
use std::net::IpAddr;
use warren_policy::{DirectoryNode, Owner, PeerRoutes, Role};
use warren_wire::control::NodeId;

/// What `*` means as a source beside subnet routes: 100.64.0.0/10 without 100.115.92.0/23, and the IPv6 range.
const TAILNET: [&str; 2] = ["100.64.0.0/10", "fd7a:115c:a1e0::/48"];
const NOT_TAILNET: &str = "100.115.92.0/23";
/// What is not the Internet.
const PRIVATE: [&str; 5] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10"];

/// What a packet carries.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Load {
    Tcp(u16),
    Udp(u16),
    Sctp(u16),
    Ping,
    Gre,
}

type Range = (IpAddr, IpAddr);

fn within(range: Range, address: IpAddr) -> bool {
    range.0 <= address && address <= range.1
}

fn overlap(range: Range, route: IpNet) -> bool {
    range.0 <= route.broadcast() && route.network() <= range.1
}

fn in_tailnet(address: IpAddr) -> bool {
    TAILNET.iter().any(|net| prefix(net).contains(&address))
}

/// Tells whether a range lies within the Internet.
fn is_internet(range: Range) -> bool {
    let private = PRIVATE.iter().any(|private| overlap(range, prefix(private)));
    let v6 = prefix("2000::/3");
    if range.0.is_ipv4() { !private } else { v6.contains(&range.0) && v6.contains(&range.1) }
}

pub(crate) fn subnets(node: &DirectoryNode) -> impl Iterator<Item = IpNet> + '_ {
    node.approved_routes.iter().copied().filter(|route| route.prefix_len() > 0)
}

pub(crate) fn is_exit_node(node: &DirectoryNode) -> bool {
    node.approved_routes.iter().any(|route| route.prefix_len() == 0)
}

fn leads_to(node: &DirectoryNode, address: IpAddr) -> bool {
    subnets(node).any(|route| route.contains(&address))
}

impl World {
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (NodeId, &DirectoryNode)> {
        self.directory.nodes.iter().map(|(id, node)| (*id, node))
    }

    /// Returns the addresses that the policy leaves a node.
    pub(crate) fn addresses(&self, node: &DirectoryNode) -> Vec<IpAddr> {
        let without_ipv4 = self.laws.without_ipv4.is_some_and(|word| {
            word == Word::Any
                || self.names(word, &node.owner)
                || word.literal().iter().any(|range| node.addresses.iter().any(|address| within(*range, *address)))
        });
        node.addresses.iter().copied().filter(|address| address.is_ipv6() || !without_ipv4).collect()
    }

    fn has(&self, node: &DirectoryNode, address: IpAddr) -> bool {
        self.addresses(node).contains(&address)
    }

    fn node_at(&self, address: IpAddr) -> Option<&DirectoryNode> {
        self.directory.nodes.values().find(|node| self.has(node, address))
    }

    /// Tells whether a word names nodes of this owner, other than by address.
    fn names(&self, word: Word, owner: &Owner) -> bool {
        match (word, owner) {
            (Word::Members, Owner::User(_)) | (Word::Tagged, Owner::Tags(_)) => true,
            (Word::Tag(number), Owner::Tags(tags)) => tags.contains(TAGS[number]),
            (word, Owner::User(user)) => self.directory.users.get(user).is_some_and(|user| match word {
                Word::User(number) => user.login == LOGINS[number],
                Word::Group(number) => {
                    self.laws.groups[number].iter().any(|member| user.login == LOGINS[*member])
                        || user.groups.contains(GROUPS[number])
                }
                Word::Admins => user.role == Role::Admin,
                Word::OfDomain => user.login.ends_with("@x.org"),
                _ => false,
            }),
            _ => false,
        }
    }

    fn holds_now(&self, rule: &Rule) -> bool {
        rule.from.is_none_or(|from| from <= self.now) && rule.until.is_none_or(|until| self.now < until)
    }

    pub(crate) fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.laws.rules.iter().filter(|rule| self.holds_now(rule))
    }

    fn passes(&self, rule: &Rule, node: &DirectoryNode) -> bool {
        !rule.needs_posture || node.attributes.contains_key(ATTRIBUTE)
    }

    /// Tells whether a word covers an address, whoever has it.
    fn covers(&self, word: Word, address: IpAddr) -> bool {
        match word {
            Word::Everywhere => true,
            Word::Any => {
                in_tailnet(address) && !prefix(NOT_TAILNET).contains(&address)
                    || self.nodes().any(|(_, node)| leads_to(node, address))
            }
            word => {
                word.literal().iter().any(|range| within(*range, address))
                    || self.node_at(address).is_some_and(|node| self.names(word, &node.owner))
            }
        }
    }

    /// Tells whether an address is a source of a rule. Only devices have postures, and only they are in the tailnet.
    fn is_source(&self, rule: &Rule, address: IpAddr) -> bool {
        let allowed = match self.node_at(address) {
            Some(node) => self.passes(rule, node),
            None => !rule.needs_posture || !in_tailnet(address),
        };
        allowed && rule.sources.iter().any(|word| self.covers(*word, address))
    }

    fn has_via_tag(&self, rule: &Rule, node: &DirectoryNode) -> bool {
        let Owner::Tags(tags) = &node.owner else { return false };
        rule.via.iter().any(|tag| tags.contains(TAGS[*tag]))
    }

    /// Tells whether a node must take packets to an address for the sake of a destination of a rule.
    fn takes(&self, rule: &Rule, word: Word, node: &DirectoryNode, to: IpAddr) -> bool {
        let (here, behind) = (self.has(node, to), leads_to(node, to));
        let named = || self.node_at(to).is_some_and(|target| self.names(word, &target.owner));
        if !rule.via.is_empty() {
            let routed = |range: &Range| subnets(node).any(|route| overlap(*range, route));
            return self.has_via_tag(rule, node)
                && match word {
                    Word::Any => behind,
                    Word::Internet => is_exit_node(node) && is_internet((to, to)),
                    word => {
                        word.literal().iter().any(|range| within(*range, to) && routed(range))
                            || behind && !here && named()
                    }
                };
        }
        match word {
            Word::Any => true,
            Word::Internet => is_exit_node(node) && is_internet((to, to)),
            word => {
                word.literal().iter().any(|range| within(*range, to) && self.concerns(*range, node))
                    || (here || behind) && named()
            }
        }
    }

    /// Tells whether a literal destination is in the filter of a node at all (policy.md, section 7).
    fn concerns(&self, range: Range, node: &DirectoryNode) -> bool {
        self.addresses(node).iter().any(|address| within(range, *address))
            || subnets(node).any(|route| overlap(range, route))
            || is_exit_node(node) && is_internet(range)
    }

    fn carries(rule: &Rule, load: Load) -> bool {
        rule.services.iter().any(|service| {
            let protocols = service.protocol.map_or_else(|| vec![6, 17, 1, 58], |number| vec![number]);
            let holds = |port| (service.ports.0..=service.ports.1).contains(&port);
            match load {
                Load::Tcp(port) => protocols.contains(&6) && holds(port),
                Load::Udp(port) => protocols.contains(&17) && holds(port),
                Load::Sctp(port) => protocols.contains(&132) && holds(port),
                // A node answers whoever may reach it at all.
                Load::Ping => true,
                Load::Gre => protocols.contains(&47) && service.ports == (0, u16::MAX),
            }
        })
    }

    /// Tells whether a rule leads from a device of one's own to another.
    fn leads_to_own(&self, rule: &Rule, from: &DirectoryNode, to: &DirectoryNode) -> bool {
        let persons = || rule.sources.iter().any(|word| *word == Word::Any || self.names(*word, &from.owner));
        rule.destinations.contains(&Word::OwnDevices)
            && matches!(from.owner, Owner::User(_))
            && from.owner == to.owner
            && !self.addresses(from).is_empty()
            && !self.addresses(to).is_empty()
            && persons()
            && self.passes(rule, from)
    }

    fn rule_allows(&self, rule: &Rule, node: &DirectoryNode, from: IpAddr, to: IpAddr, load: Load) -> bool {
        if !Self::carries(rule, load) {
            return false;
        }
        let (sender, target) = (self.node_at(from), self.node_at(to));
        let taken = self.has(node, to) || leads_to(node, to);
        let own = |sender, target: &DirectoryNode| target.owner == node.owner && self.leads_to_own(rule, sender, node);
        taken && sender.zip(target).is_some_and(|(sender, target)| own(sender, target))
            || self.is_source(rule, from) && rule.destinations.iter().any(|word| self.takes(rule, *word, node, to))
    }

    /// Tells whether a node accepts the first packet of a conversation.
    pub(crate) fn allows(&self, node: &DirectoryNode, from: IpAddr, to: IpAddr, load: Load) -> bool {
        let local = self.has(node, to) || node.approved_routes.iter().any(|route| route.contains(&to));
        // Nobody else has an address of ours, whatever the rules say.
        let stolen = self.has(node, from);
        local && !stolen && self.rules().any(|rule| self.rule_allows(rule, node, from, to, load))
    }

    /// Returns the capabilities that an address has at an address of a node.
    pub(crate) fn capabilities(&self, node: &DirectoryNode, from: IpAddr, here: IpAddr) -> Vec<&'static str> {
        let mut found = Vec::new();
        for rule in self.rules().filter(|rule| rule.via.is_empty()) {
            let Some(name) = rule.capability.map(|number| CAPABILITIES[number]) else { continue };
            // A destination by address, whoever is there.
            let reaches = |address| rule.destinations.iter().any(|word| self.covers_destination(*word, address));
            let own = |from: Option<&DirectoryNode>, to: Option<&DirectoryNode>| {
                from.zip(to).is_some_and(|(from, to)| self.leads_to_own(rule, from, to))
            };
            let other = self.node_at(from);
            if self.is_source(rule, from) && reaches(here) || own(other, Some(node)) {
                found.push(name);
            }
            if name == COMPANION.0 && (self.is_source(rule, here) && reaches(from) || own(Some(node), other)) {
                found.push(COMPANION.1);
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    fn covers_destination(&self, word: Word, address: IpAddr) -> bool {
        !matches!(word, Word::OwnDevices | Word::Internet) && self.covers(word, address)
    }

    /// Tells whether a node, or a subnet behind it, is a source of a rule.
    fn is_source_node(&self, rule: &Rule, node: &DirectoryNode) -> bool {
        self.addresses(node).iter().any(|address| self.is_source(rule, *address))
            || subnets(node).any(|route| self.is_source_route(rule, route))
    }

    fn is_source_route(&self, rule: &Rule, route: IpNet) -> bool {
        let named = |word: Word| {
            self.nodes().any(|(_, other)| {
                self.names(word, &other.owner)
                    && self.passes(rule, other)
                    && self.addresses(other).iter().any(|address| route.contains(address))
            })
        };
        rule.sources.iter().any(|word| {
            matches!(word, Word::Any | Word::Everywhere)
                || word.literal().iter().any(|range| overlap(*range, route))
                || named(*word)
        })
    }

    /// Tells whether a destination of a rule holds a host behind a route.
    fn is_destination_route(&self, rule: &Rule, route: IpNet) -> bool {
        rule.destinations.iter().any(|word| self.word_leads_behind(*word, route))
    }

    fn word_leads_behind(&self, word: Word, route: IpNet) -> bool {
        word == Word::Any
            || word.literal().iter().any(|range| overlap(*range, route))
            || self.nodes().any(|(_, other)| {
                self.names(word, &other.owner) && self.addresses(other).iter().any(|address| route.contains(address))
            })
    }

    fn is_for_exit_nodes(word: Word) -> bool {
        word == Word::Internet || word.text().ends_with("/0")
    }

    fn is_destination_node(&self, rule: &Rule, node: &DirectoryNode) -> bool {
        rule.destinations.iter().any(|word| {
            let behind = subnets(node).any(|route| self.word_leads_behind(*word, route));
            if !rule.via.is_empty() {
                return self.has_via_tag(rule, node) && (behind || *word == Word::Internet && is_exit_node(node));
            }
            let named = *word == Word::Any || self.names(*word, &node.owner);
            named && !self.addresses(node).is_empty()
                || word.literal().iter().any(|range| self.addresses(node).iter().any(|own| within(*range, *own)))
                || behind
                || is_exit_node(node) && (*word == Word::Any || Self::is_for_exit_nodes(*word))
        })
    }

    /// Tells whether two nodes see each other (policy.md, section 8).
    pub(crate) fn see_each_other(&self, one: &DirectoryNode, two: &DirectoryNode) -> bool {
        self.rules().any(|rule| {
            [(one, two), (two, one)].into_iter().any(|(from, to)| {
                self.leads_to_own(rule, from, to)
                    || self.is_source_node(rule, from) && self.is_destination_node(rule, to)
            })
        })
    }

    /// Returns the way to a subnet among nodes, if none was chosen before.
    pub(crate) fn way(&self, route: IpNet, candidate: impl Fn(&DirectoryNode) -> bool) -> Option<NodeId> {
        let routers = || self.nodes().filter(|(_, node)| subnets(node).any(|own| own == route) && candidate(node));
        routers().find(|(_, node)| node.online).or_else(|| routers().next()).map(|(id, _)| id)
    }

    /// Returns the routes of a peer that a viewer may use (policy.md, section 9).
    pub(crate) fn routes(&self, viewer: &DirectoryNode, peer: (NodeId, &DirectoryNode)) -> PeerRoutes {
        let mut routes = PeerRoutes::default();
        if !self.see_each_other(viewer, peer.1) {
            return routes;
        }
        for route in subnets(peer.1) {
            let plain = |rule: &&Rule| rule.via.is_empty();
            let to = |rule: &Rule| self.is_source_node(rule, viewer) && self.is_destination_route(rule, route);
            let back = |rule: &Rule| self.is_source_route(rule, route) && self.is_destination_node(rule, viewer);
            let way = if self.rules().filter(plain).any(to)
                || self.rules().any(back)
                || subnets(viewer).any(|own| own == route)
            {
                Some(self.ways.get(&route).copied().or_else(|| self.way(route, |_| true)) == Some(peer.0))
            } else {
                let via = || self.rules().filter(|rule| !rule.via.is_empty() && to(rule));
                let could = via().any(|rule| self.has_via_tag(rule, peer.1));
                could.then(|| via().any(|rule| self.way(route, |node| self.has_via_tag(rule, node)) == Some(peer.0)))
            };
            match way {
                Some(true) => routes.primary.push(route),
                Some(false) => routes.standby.push(route),
                None => {}
            }
        }
        routes.primary.sort();
        routes.standby.sort();
        routes.allowed.clone_from(&routes.primary);
        let leads_out = |rule: &Rule| {
            let words = &rule.destinations;
            if rule.via.is_empty() {
                words.iter().any(|word| *word == Word::Any || Self::is_for_exit_nodes(*word))
            } else {
                words.contains(&Word::Internet) && self.has_via_tag(rule, peer.1)
            }
        };
        if self.rules().any(|rule| self.is_source_node(rule, viewer) && leads_out(rule)) {
            routes.allowed.extend(peer.1.approved_routes.iter().filter(|route| route.prefix_len() == 0));
        }
        routes.allowed.sort();
        routes
    }
}
