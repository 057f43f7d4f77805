//! The rules that coordination sends, compiled for lookup.

mod ports;
mod set;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};
use warren_wire::control::FilterRule;

use crate::packet::{PROTO_ICMP4, PROTO_ICMP6, PROTO_SCTP, PROTO_TCP, PROTO_UDP};
use crate::prefix::PrefixTable;
use ports::Ports;
use set::RuleSet;

/// Holds a packet filter that never changes; share it by `Arc` and judge with [`crate::Firewall`].
///
/// Rules only allow, so that their order does not matter. A table leads from a source to the rules that name it, another
/// from a destination and port to the rules that open it, each prefix and block of ports with a set of rules; a packet
/// is allowed if a set of its source and one of its destination have a rule in common. So a lookup costs a few hash
/// lookups, and as much as it takes to compare two sets: nothing if no rule opens the port, little where one of the sets
/// is small, and one word for every 64 rules at worst. Memory is linear in the text of the rules. Destinations outside
/// the local nets are left out.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    local: PrefixTable<()>,
    sources: PrefixTable<RuleSet>,
    destinations: PrefixTable<Openings>,
}

/// Gathers what a filter is made of.
#[derive(Clone, Copy)]
pub struct FilterInput<'a> {
    /// The rules as coordination sent them.
    pub rules: &'a [FilterRule],
    /// Where inbound packets may go: the node's own addresses and the routes it advertises.
    pub local: &'a [IpNet],
    /// Whether the node takes connections at all.
    pub shields: Shields,
    /// Answers with the own addresses of all nodes that have a capability, for `cap:` sources.
    ///
    /// Build a new filter when the answer changes for a capability that the rules name.
    pub holders: &'a dyn Fn(&str) -> Vec<IpAddr>,
}

/// Says whether a node takes connections that others open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shields {
    /// The rules decide.
    #[default]
    Down,
    /// None are taken.
    Up,
}

/// Says why a set of rules cannot be used at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// A rule carries prefix lengths beside its addresses, a form abolished before the oldest supported client.
    #[error("rule {rule} has the obsolete field SrcBits or Bits")]
    ObsoleteForm {
        /// Number of the rule, from 0.
        rule: usize,
    },
    /// The rules name more prefixes than a filter may hold; a short text can name many by ranges.
    #[error("the rules name more than {PREFIXES_MAX} address prefixes")]
    TooLarge,
}

/// The most address prefixes in the rules of one filter, ranges counted as the prefixes that they are made of, and
/// destinations once for each block of ports or for each protocol without ports.
pub(crate) const PREFIXES_MAX: usize = 1 << 20;

/// Names an entry of a rule that was skipped because it cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Number of the rule, from 0.
    pub rule: usize,
    /// The entry as it came.
    pub entry: String,
}

/// Names what a packet wants of its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Tcp(u16),
    Udp(u16),
    Sctp(u16),
    /// Pings; any rule for the destination will do, as upstream has it.
    Icmp,
    /// A protocol without ports.
    Protocol(u8),
}

impl Filter {
    /// Makes the filter of a node that knows no rules yet: it has no local nets and lets nothing in.
    pub fn deny_all() -> Self {
        Self::default()
    }

    /// Compiles rules; entries that cannot be read are left out and returned.
    ///
    /// # Errors
    /// See [`FilterError`]. Keep the old filter, or deny all, then.
    pub fn compile(input: &FilterInput<'_>) -> Result<(Self, Vec<Problem>), FilterError> {
        let mut filter = Self { local: input.local.iter().map(|&net| (net, ())).collect(), ..Self::default() };
        let mut problems = Vec::new();
        let mut room = PREFIXES_MAX;
        let mut nets = Vec::new();
        for (number, rule) in input.rules.iter().enumerate() {
            if !rule.src_bits.is_empty() || rule.dst_ports.iter().any(|dst| dst.bits.is_some()) {
                return Err(FilterError::ObsoleteForm { rule: number });
            }
            if input.shields == Shields::Up {
                continue;
            }
            let bit = u32::try_from(number).map_err(|_| FilterError::TooLarge)?;
            let mut problem = |entry: &str| problems.push(Problem { rule: number, entry: entry.to_owned() });
            nets.clear();
            for text in &rule.src_ips {
                if let Some(capability) = text.strip_prefix("cap:") {
                    nets.extend((input.holders)(capability).into_iter().map(IpNet::from));
                } else if parse_nets(text, &mut nets).is_none() {
                    problem(text);
                }
                if nets.len() > room {
                    return Err(FilterError::TooLarge);
                }
            }
            room -= nets.len();
            if !rule.dst_ports.is_empty() {
                nets.iter().for_each(|&net| filter.sources.entry(net, RuleSet::default).add(bit));
            }
            let protocols = Protocols::of(&rule.ip_proto);
            for destination in &rule.dst_ports {
                nets.clear();
                if parse_nets(&destination.ip, &mut nets).is_none() {
                    problem(&destination.ip);
                }
                let ports = (destination.ports.first, destination.ports.last);
                let sets = ports::blocks(ports.0, ports.1).count().max(protocols.others.len()).max(1);
                let entries = nets.len().saturating_mul(sets);
                room = room.checked_sub(entries).ok_or(FilterError::TooLarge)?;
                for &net in nets.iter().filter(|&&net| filter.local.overlaps(net)) {
                    filter.destinations.entry(net, Openings::default).add(&protocols, ports, bit);
                }
            }
        }
        let rules = input.rules.len();
        filter.sources.values_mut().for_each(|set| set.pack(rules));
        filter.destinations.values_mut().for_each(|openings| openings.pack(rules));
        Ok((filter, problems))
    }

    /// Tells whether `ip` is one that inbound packets may go to.
    pub fn is_local(&self, ip: IpAddr) -> bool {
        self.local.contains(ip)
    }

    /// Tells whether `ip` is an address of this node itself, which no other node can have.
    pub(crate) fn is_own(&self, ip: IpAddr) -> bool {
        self.local.has_host(ip)
    }

    pub(crate) fn allows(&self, source: IpAddr, destination: IpAddr, want: Want) -> bool {
        // The port first: what no rule opens at all is most of what strangers try.
        let named = |opening: &RuleSet| self.sources.any(source, |naming| naming.meets(opening));
        !self.is_own(source) && self.destinations.any(destination, |openings| openings.any(want, named))
    }

    /// Returns the number of the first rule that allows this, from 0.
    ///
    /// Unlike [`Self::allows`] it looks at all rules for these ends.
    pub(crate) fn first_rule(&self, source: IpAddr, destination: IpAddr, want: Want) -> Option<u32> {
        if self.is_own(source) {
            return None;
        }
        let mut first: Option<u32> = None;
        self.destinations.any(destination, |openings| {
            openings.any(want, |opening| {
                self.sources.any(source, |naming| {
                    let common = naming.first_common(opening);
                    first = [first, common].into_iter().flatten().min();
                    false
                })
            })
        });
        first
    }
}

impl std::fmt::Debug for FilterInput<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FilterInput")
            .field("rules", &self.rules.len())
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}

/// Reads an address, a prefix without host bits, an inclusive range or `*`; `None` if it is none of them.
pub(crate) fn parse_nets(text: &str, nets: &mut Vec<IpNet>) -> Option<()> {
    if text == "*" {
        nets.extend([IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())]);
    } else if let Ok(ip) = text.parse::<IpAddr>() {
        nets.push(ip.into());
    } else if let Ok(net) = text.parse::<IpNet>() {
        if net != net.trunc() {
            return None;
        }
        nets.push(net);
    } else {
        let (first, last) = text.split_once('-')?;
        match (first.parse().ok()?, last.parse().ok()?) {
            (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => {
                nets.extend(Ipv4Subnets::new(first, last, 0).map(IpNet::V4));
            }
            (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => {
                nets.extend(Ipv6Subnets::new(first, last, 0).map(IpNet::V6));
            }
            _ => return None,
        }
    }
    Some(())
}

/// Says which protocols a rule is about.
#[derive(Debug, Clone, Default)]
struct Protocols {
    tcp: bool,
    udp: bool,
    sctp: bool,
    /// Those that have no ports, and are no ICMP, which is judged by the destination alone.
    others: BTreeSet<u8>,
}

impl Protocols {
    fn of(listed: &[i64]) -> Self {
        if listed.is_empty() {
            return Self { tcp: true, udp: true, ..Self::default() };
        }
        let mut protocols = Self::default();
        for protocol in listed.iter().filter_map(|&protocol| u8::try_from(protocol).ok()) {
            match protocol {
                PROTO_TCP => protocols.tcp = true,
                PROTO_UDP => protocols.udp = true,
                PROTO_SCTP => protocols.sctp = true,
                PROTO_ICMP4 | PROTO_ICMP6 => {}
                other => drop(protocols.others.insert(other)),
            }
        }
        protocols
    }
}

/// Says which rules open what of one destination.
#[derive(Debug, Clone, Default)]
struct Openings {
    /// All rules for the destination, whatever they open: pings ask for no more.
    all: RuleSet,
    tcp: Ports,
    udp: Ports,
    sctp: Ports,
    /// Other protocols, which have no ports, by number.
    others: BTreeMap<u8, RuleSet>,
}

impl Openings {
    fn add(&mut self, protocols: &Protocols, ports: (u16, u16), rule: u32) {
        self.all.add(rule);
        for (listed, opened) in
            [(protocols.tcp, &mut self.tcp), (protocols.udp, &mut self.udp), (protocols.sctp, &mut self.sctp)]
        {
            if listed {
                opened.add(ports, rule);
            }
        }
        if ports == (0, u16::MAX) {
            for protocol in &protocols.others {
                self.others.entry(*protocol).or_default().add(rule);
            }
        }
    }

    fn pack(&mut self, rules: usize) {
        self.all.pack(rules);
        [&mut self.tcp, &mut self.udp, &mut self.sctp].into_iter().for_each(|ports| ports.pack(rules));
        self.others.values_mut().for_each(|set| set.pack(rules));
    }

    /// Tells whether `matches` holds for any set of rules that open what is wanted.
    fn any(&self, want: Want, mut matches: impl FnMut(&RuleSet) -> bool) -> bool {
        match want {
            Want::Tcp(port) => self.tcp.any(port, matches),
            Want::Udp(port) => self.udp.any(port, matches),
            Want::Sctp(port) => self.sctp.any(port, matches),
            Want::Icmp => matches(&self.all),
            Want::Protocol(protocol) => self.others.get(&protocol).is_some_and(matches),
        }
    }
}

#[cfg(test)]
mod tests;
