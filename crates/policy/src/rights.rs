//! What a rule gives, in words and as something to compare.

use crate::model::{Grant, SshAction, SshGrant, SshUser};
use crate::reach::DEFAULT_PROTOCOLS;
use crate::schedule::WeeklyTime;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use warren_wire::control::Time;

/// Names of protocols for people.
const PROTOCOL_NAMES: [(u8, &str); 13] = [
    (1, "icmp"),
    (2, "igmp"),
    (4, "ipv4"),
    (6, "tcp"),
    (8, "egp"),
    (9, "igp"),
    (17, "udp"),
    (47, "gre"),
    (50, "esp"),
    (51, "ah"),
    (58, "ipv6-icmp"),
    (132, "sctp"),
    (133, "fc"),
];

/// One kind of right.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Packets of an IP protocol; the ports are beside it.
    Protocol(u8),
    /// Anything without ports, in words.
    Other(String),
}

/// Rights as sets of ports by kind and condition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Rights(BTreeMap<(String, Kind), Ports>);

/// Ports as sorted ranges that do not touch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Ports(Vec<(u16, u16)>);

impl Rights {
    /// Returns what a rule gives, whenever it holds.
    pub(crate) fn of_grant(grant: &Grant) -> Self {
        let mut rights = Self::default();
        let condition = condition(grant);
        for service in &grant.services {
            let default = service.protocol.is_none().then_some(DEFAULT_PROTOCOLS);
            for protocol in service.protocol.into_iter().chain(default.into_iter().flatten()) {
                let ports = rights.0.entry((condition.clone(), Kind::Protocol(protocol))).or_default();
                ports.0.extend(service.ports.iter().map(|range| (range.first, range.last)));
                ports.join();
            }
        }
        for (name, arguments) in grant.app.iter() {
            let arguments: Vec<&str> = arguments.iter().map(|argument| argument.text()).collect();
            let what = match arguments.is_empty() {
                true => format!("capability {name}"),
                false => format!("capability {name} {}", arguments.join(" ")),
            };
            rights.insert(&condition, what);
        }
        rights
    }

    /// Returns what an SSH rule gives.
    pub(crate) fn of_ssh(rule: &SshGrant) -> Self {
        let mut condition = postures(&rule.postures);
        if let SshAction::Check(period) = rule.action {
            condition.push_str(&check_text(period));
        }
        let mut rights = Self::default();
        for user in &rule.users {
            let who = match user {
                SshUser::NonRoot => "anybody but root".to_owned(),
                SshUser::Name(name) => name.clone(),
                SshUser::LocalPart { domain } => format!("oneself (of {domain})"),
            };
            rights.insert(&condition, format!("ssh as {who}"));
        }
        rights
    }

    /// Returns an attribute.
    pub(crate) fn attribute(name: &str) -> Self {
        let mut rights = Self::default();
        rights.insert("", format!("attribute {name}"));
        rights
    }

    fn insert(&mut self, condition: &str, what: String) {
        self.0.insert((condition.to_owned(), Kind::Other(what)), Ports(vec![(0, u16::MAX)]));
    }

    pub(crate) fn extend(&mut self, other: &Self) {
        for (key, ports) in &other.0 {
            let known = self.0.entry(key.clone()).or_default();
            known.0.extend(&ports.0);
            known.join();
        }
    }

    /// Returns what is here and not in `other`.
    pub(crate) fn without(&self, other: &Self) -> Self {
        let rest = self.0.iter().map(|(key, ports)| match other.0.get(key) {
            Some(others) => (key.clone(), ports.without(others)),
            None => (key.clone(), ports.clone()),
        });
        Self(rest.filter(|(_, ports)| !ports.0.is_empty()).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes the rights for people, one text each.
    pub(crate) fn texts(&self) -> Vec<String> {
        let mut by_condition: BTreeMap<&str, BTreeMap<&Ports, BTreeSet<u8>>> = BTreeMap::new();
        let mut texts = Vec::new();
        for ((condition, kind), ports) in &self.0 {
            match kind {
                Kind::Protocol(protocol) => {
                    by_condition.entry(condition).or_default().entry(ports).or_default().insert(*protocol);
                }
                Kind::Other(what) => texts.push(format!("{what}{condition}")),
            }
        }
        for (condition, by_ports) in by_condition {
            texts.extend(by_ports.iter().map(|(ports, protocols)| format!("{}{condition}", traffic(ports, protocols))));
        }
        texts.sort();
        texts
    }
}

impl Ports {
    fn join(&mut self) {
        self.0.sort_unstable();
        let mut joined: Vec<(u16, u16)> = Vec::with_capacity(self.0.len());
        for (first, last) in self.0.drain(..) {
            match joined.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => joined.push((first, last)),
            }
        }
        self.0 = joined;
    }

    fn without(&self, other: &Self) -> Self {
        let mut rest = Vec::new();
        for (first, last) in &self.0 {
            // Wide numbers, so that the port after the last has a name.
            let (mut next, end) = (u32::from(*first), u32::from(*last));
            for (hole_first, hole_last) in &other.0 {
                let (hole_first, hole_last) = (u32::from(*hole_first), u32::from(*hole_last));
                if hole_last < next || hole_first > end {
                    continue;
                }
                if hole_first > next {
                    rest.push((next, hole_first.saturating_sub(1)));
                }
                next = hole_last.saturating_add(1);
            }
            if next <= end {
                rest.push((next, end));
            }
        }
        let narrow = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
        Self(rest.into_iter().map(|(first, last)| (narrow(first), narrow(last))).collect())
    }

    fn is_all(&self) -> bool {
        matches!(self.0.as_slice(), [(0 | 1, u16::MAX)])
    }
}

/// Says in words which traffic a rule lets through.
pub(crate) fn services(grant: &Grant) -> String {
    Rights::of_grant(grant).texts().join(", ")
}

/// Returns the name of a protocol, or its number.
pub(crate) fn protocol_name(protocol: u8) -> String {
    let known = PROTOCOL_NAMES.iter().find(|(number, _)| *number == protocol);
    known.map_or_else(|| format!("protocol {protocol}"), |(_, name)| (*name).to_owned())
}

fn traffic(ports: &Ports, protocols: &BTreeSet<u8>) -> String {
    let default = protocols.iter().copied().eq(DEFAULT_PROTOCOLS);
    let names: Vec<String> = protocols.iter().map(|protocol| protocol_name(*protocol)).collect();
    let ranges: Vec<String> = ports
        .0
        .iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    match (default, ports.is_all()) {
        (true, true) => "all traffic".to_owned(),
        (true, false) => format!("port {}", ranges.join(",")),
        (false, true) => names.join("/"),
        (false, false) => format!("{} {}", names.join("/"), ranges.join(",")),
    }
}

/// Says under which conditions a rule gives what it gives; empty if under none, else with a blank before.
fn condition(grant: &Grant) -> String {
    let mut text = postures(&grant.postures);
    if !grant.via.is_empty() {
        text.push_str(&format!(" through {}", grant.via.join(" or ")));
    }
    if let Some(from) = grant.validity.from {
        text.push_str(&format!(" from {}", time(from)));
    }
    if let Some(until) = grant.validity.until {
        text.push_str(&format!(" until {}", time(until)));
    }
    let times: Vec<String> = grant.validity.schedule.iter().map(weekly).collect();
    if !times.is_empty() {
        text.push_str(&format!(" on {}", times.join(" or ")));
    }
    text
}

/// Says how long ago a person must have proved who they are.
fn check_text(period: Duration) -> String {
    match period.as_secs() {
        0 => " after a check each time".to_owned(),
        seconds if seconds % 3600 == 0 => format!(" after a check within {}h", seconds / 3600),
        seconds if seconds % 60 == 0 => format!(" after a check within {}m", seconds / 60),
        seconds => format!(" after a check within {seconds}s"),
    }
}

fn postures(postures: &[String]) -> String {
    if postures.is_empty() { String::new() } else { format!(" with {}", postures.join(" or ")) }
}

fn time(seconds: i64) -> String {
    Time::from_unix(seconds, 0).map_or_else(|| format!("second {seconds}"), |time| time.to_string())
}

fn weekly(time: &WeeklyTime) -> String {
    let days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"].into_iter().zip(time.days);
    let days: Vec<&str> = days.filter(|(_, on)| *on).map(|(day, _)| day).collect();
    let clock = |minutes: u32| format!("{:02}:{:02}", minutes / 60 % 24, minutes % 60);
    let zone = time.zone.iana_name().unwrap_or("UTC");
    format!("{} {}-{} {zone}", days.join(","), clock(time.start), clock(time.end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ports(ranges: &[(u16, u16)]) -> Ports {
        let mut ports = Ports(ranges.iter().map(|(one, two)| (*one.min(two), *one.max(two))).collect());
        ports.join();
        ports
    }

    proptest! {
        #[test]
        fn ports_are_subtracted_like_sets(
            one in proptest::collection::vec((any::<u16>(), any::<u16>()), 0..6),
            two in proptest::collection::vec((any::<u16>(), any::<u16>()), 0..6),
            probes in proptest::collection::vec(any::<u16>(), 20),
        ) {
            let (one, two) = (ports(&one), ports(&two));
            let rest = one.without(&two);
            let holds = |ports: &Ports, port: u16| ports.0.iter().any(|(first, last)| (*first..=*last).contains(&port));
            let edges = one.0.iter().chain(&two.0).flat_map(|(first, last)| [*first, *last, last.wrapping_add(1)]);
            for port in probes.into_iter().chain(edges) {
                prop_assert_eq!(holds(&rest, port), holds(&one, port) && !holds(&two, port));
            }
        }
    }

    #[test]
    fn traffic_is_told_in_few_words() {
        let rights =
            |ranges: &[(u16, u16)], protocols: &[u8]| traffic(&ports(ranges), &protocols.iter().copied().collect());
        assert_eq!(rights(&[(0, 65535)], &DEFAULT_PROTOCOLS), "all traffic");
        assert_eq!(rights(&[(80, 80), (443, 443)], &DEFAULT_PROTOCOLS), "port 80,443");
        assert_eq!(rights(&[(80, 81), (82, 90)], &[6]), "tcp 80-90");
        assert_eq!(rights(&[(0, 65535)], &[1, 58]), "icmp/ipv6-icmp");
        assert_eq!(rights(&[(0, 65535)], &[200]), "protocol 200");
    }
}
