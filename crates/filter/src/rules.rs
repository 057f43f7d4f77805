//! The rules that coordination sends, compiled for lookup.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};
use warren_wire::control::FilterRule;

use crate::packet::{PROTO_ICMP4, PROTO_ICMP6, PROTO_SCTP, PROTO_TCP, PROTO_UDP};
use crate::prefix::PrefixTable;

/// Holds a packet filter that never changes; share it by `Arc` and judge with [`crate::Firewall`].
///
/// Rules only allow, so that their order does not matter. They are kept by source: rules with equal sources form a
/// group, a table leads from an address to the groups of every prefix that contains it, and each group has a table of
/// destinations with merged, sorted port ranges. A lookup costs O(g · log p), g being the number of groups that hold
/// the source and p the ranges of one destination. Where a prefix is in more than a few groups, these are merged
/// into one, so that g is small whatever the number of rules. Memory is linear in the text of the rules, plus a bounded
/// part for merged groups. Destinations outside the local nets are left out.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    local: PrefixTable<()>,
    sources: PrefixTable<Vec<u32>>,
    groups: Vec<PrefixTable<PortRules>>,
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

/// The most address prefixes in the rules of one filter, ranges counted as the prefixes that they are made of.
pub(crate) const PREFIXES_MAX: usize = 1 << 20;

/// A prefix in more groups than this has them merged.
const CROWDED: usize = 3;

/// The most entries (destinations and port ranges) of all merged groups; what is over is searched group by group.
const MERGED_MAX: usize = 1 << 18;

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
        let mut groups: BTreeMap<Vec<IpNet>, PrefixTable<PortRules>> = BTreeMap::new();
        let mut room = PREFIXES_MAX;
        for (number, rule) in input.rules.iter().enumerate() {
            if !rule.src_bits.is_empty() || rule.dst_ports.iter().any(|dst| dst.bits.is_some()) {
                return Err(FilterError::ObsoleteForm { rule: number });
            }
            if input.shields == Shields::Up {
                continue;
            }
            let mut problem = |entry: &str| problems.push(Problem { rule: number, entry: entry.to_owned() });
            let mut nets = Vec::new();
            let mut holders = Vec::new();
            for text in &rule.src_ips {
                if let Some(capability) = text.strip_prefix("cap:") {
                    holders.extend((input.holders)(capability).into_iter().map(IpNet::from));
                } else if parse_nets(text, &mut nets).is_none() {
                    problem(text);
                }
                if nets.len() + holders.len() > room {
                    return Err(FilterError::TooLarge);
                }
            }
            room -= nets.len() + holders.len();
            nets.extend(holders);
            nets.sort_unstable();
            nets.dedup();
            if nets.is_empty() || rule.dst_ports.is_empty() {
                continue;
            }
            let protocols = Protocols::of(&rule.ip_proto);
            let group = groups.entry(nets).or_default();
            for destination in &rule.dst_ports {
                let mut nets = Vec::new();
                if parse_nets(&destination.ip, &mut nets).is_none() {
                    problem(&destination.ip);
                }
                room = room.checked_sub(nets.len()).ok_or(FilterError::TooLarge)?;
                for net in nets.into_iter().filter(|&net| filter.local.overlaps(net)) {
                    let ports = (destination.ports.first, destination.ports.last);
                    group.entry(net, PortRules::default).add(&protocols, ports);
                }
            }
        }
        for (sources, mut destinations) in groups {
            if destinations.is_empty() {
                continue;
            }
            destinations.values_mut().for_each(PortRules::finish);
            let Ok(number) = u32::try_from(filter.groups.len()) else {
                break;
            };
            filter.groups.push(destinations);
            for source in sources {
                filter.sources.entry(source, Vec::new).push(number);
            }
        }
        filter.merge_crowded();
        Ok((filter, problems))
    }

    /// Gives each prefix that is in many groups one group with all that they allow; equal sets of groups share it.
    fn merge_crowded(&mut self) {
        let mut merged: BTreeMap<Vec<u32>, u32> = BTreeMap::new();
        let mut room = MERGED_MAX;
        let mut more = Vec::new();
        for numbers in self.sources.values_mut().filter(|numbers| numbers.len() > CROWDED) {
            let number = if let Some(&number) = merged.get(numbers) {
                number
            } else {
                let groups = || numbers.iter().filter_map(|&number| self.groups.get(number as usize));
                let entries = groups().flat_map(PrefixTable::iter).map(|(_, ports)| ports.entries()).sum();
                let (Some(left), Ok(number)) =
                    (room.checked_sub(entries), u32::try_from(self.groups.len() + more.len()))
                else {
                    continue;
                };
                room = left;
                let mut all: PrefixTable<PortRules> = PrefixTable::new();
                for (net, ports) in groups().flat_map(PrefixTable::iter) {
                    all.entry(net, PortRules::default).add_all(ports);
                }
                all.values_mut().for_each(PortRules::finish);
                more.push(all);
                merged.insert(numbers.clone(), number);
                number
            };
            *numbers = vec![number];
        }
        self.groups.append(&mut more);
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
        !self.is_own(source)
            && self.sources.any(source, |groups| {
                let mut groups = groups.iter().filter_map(|&number| self.groups.get(number as usize));
                groups.any(|destinations| destinations.any(destination, |ports| ports.allow(want)))
            })
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

/// Holds a set of protocol numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Protocols([u64; 4]);

impl Protocols {
    fn of(listed: &[i64]) -> Self {
        let mut protocols = Self::default();
        if listed.is_empty() {
            for protocol in [PROTO_TCP, PROTO_UDP, PROTO_ICMP4, PROTO_ICMP6] {
                protocols.add(protocol);
            }
        }
        for protocol in listed.iter().filter_map(|&protocol| u8::try_from(protocol).ok()) {
            protocols.add(protocol);
        }
        protocols
    }

    fn add(&mut self, protocol: u8) {
        if let Some(word) = self.0.get_mut(usize::from(protocol >> 6)) {
            *word |= 1 << (protocol & 63);
        }
    }

    fn has(&self, protocol: u8) -> bool {
        self.0.get(usize::from(protocol >> 6)).is_some_and(|word| word >> (protocol & 63) & 1 == 1)
    }

    fn add_all(&mut self, other: &Self) {
        for (word, more) in self.0.iter_mut().zip(other.0) {
            *word |= more;
        }
    }
}

/// Says what one source may do with one destination.
#[derive(Debug, Clone, Default)]
struct PortRules {
    tcp: PortRanges,
    udp: PortRanges,
    sctp: PortRanges,
    /// Protocols that are allowed whatever the ports.
    whole: Protocols,
}

impl PortRules {
    fn add(&mut self, protocols: &Protocols, ports: (u16, u16)) {
        if ports.0 > ports.1 {
            // An empty range still is a rule for the destination, which pings look for.
            return;
        }
        for (protocol, ranges) in [(PROTO_TCP, &mut self.tcp), (PROTO_UDP, &mut self.udp), (PROTO_SCTP, &mut self.sctp)]
        {
            if protocols.has(protocol) {
                ranges.0.push(ports);
            }
        }
        if ports == (0, u16::MAX) {
            self.whole.add_all(protocols);
        }
    }

    fn add_all(&mut self, other: &Self) {
        for (ranges, more) in [(&mut self.tcp, &other.tcp), (&mut self.udp, &other.udp), (&mut self.sctp, &other.sctp)]
        {
            ranges.0.extend_from_slice(&more.0);
        }
        self.whole.add_all(&other.whole);
    }

    /// Counts the destination itself and its port ranges.
    fn entries(&self) -> usize {
        1 + self.tcp.0.len() + self.udp.0.len() + self.sctp.0.len()
    }

    fn finish(&mut self) {
        for ranges in [&mut self.tcp, &mut self.udp, &mut self.sctp] {
            ranges.merge();
        }
    }

    fn allow(&self, want: Want) -> bool {
        match want {
            Want::Tcp(port) => self.tcp.contain(port),
            Want::Udp(port) => self.udp.contain(port),
            Want::Sctp(port) => self.sctp.contain(port),
            Want::Icmp => true,
            Want::Protocol(protocol) => self.whole.has(protocol),
        }
    }
}

/// Holds inclusive port ranges, once merged in order, with a gap between each two.
#[derive(Debug, Clone, Default)]
struct PortRanges(Vec<(u16, u16)>);

impl PortRanges {
    fn merge(&mut self) {
        self.0.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::new();
        for &(first, last) in &self.0 {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        merged.shrink_to_fit();
        self.0 = merged;
    }

    fn contain(&self, port: u16) -> bool {
        let behind = self.0.partition_point(|range| range.0 <= port);
        let range = behind.checked_sub(1).and_then(|at| self.0.get(at));
        range.is_some_and(|range| port <= range.1)
    }
}

#[cfg(test)]
mod tests;
