//! The names of the tailnet, and who is asked for others.
//!
//! Source: Tailscale `net/dns/resolver/tsdns.go`, `resolveLocal`; RFC 2308 for "there is none".

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::name::Name;
use crate::query::{Class, Kind, NOTIMP, NXDOMAIN, Query, REFUSED};
use crate::write::Writer;

/// Address of the resolver in every tailnet, IPv4.
pub const SERVICE_V4: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 100);
/// Address of the resolver in every tailnet, IPv6.
pub const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0x53);

/// Addresses of hosts at sites begin with this; then come the site and the IPv4 address, 32 bits each.
const SITES: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0xb1a, 0, 0, 0, 0);

/// How long programs may remember a name of the tailnet, in seconds.
const TTL_SECONDS: u32 = 5;
/// Addresses of one name that are told.
const MAX_ADDRESSES: usize = 32;
/// Upstreams of one suffix that are used.
const MAX_UPSTREAMS: usize = 8;

/// Describes one host of the tailnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Full name.
    pub name: Name,
    /// Addresses of the name.
    pub addresses: Vec<IpAddr>,
    /// Addresses whose name this is, which may be more.
    pub named: Vec<IpAddr>,
    /// Names below this one have the same addresses.
    pub wildcard: bool,
}

/// Says what a resolver knows and whom it asks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// All hosts; of one name, addresses add up, and of one address, the first name counts.
    pub hosts: Vec<Host>,
    /// Domains of which nobody else is asked.
    pub local: Vec<Name>,
    /// Upstreams by suffix, the root for all else. Without upstreams a suffix cannot be resolved, but does not fall back to a
    /// shorter one either.
    pub routes: Vec<(Name, Vec<SocketAddr>)>,
}

/// Answers for names of the tailnet. Look-ups cost the number of labels, however many hosts there are.
#[derive(Debug, Clone, Default)]
pub struct Zone {
    hosts: HashMap<Name, Entry>,
    named: HashMap<IpAddr, Name>,
    /// First labels of hosts: a name of only that never leaves.
    labels: HashSet<Box<[u8]>>,
    local: HashSet<Name>,
    routes: HashMap<Name, Vec<SocketAddr>>,
}

#[derive(Debug, Clone, Default)]
struct Entry {
    addresses: Vec<IpAddr>,
    wildcard: bool,
}

/// Says what becomes of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<'z> {
    /// This is the answer.
    Answer(Vec<u8>),
    /// These are asked, in this order; none: it cannot be resolved.
    Forward(&'z [SocketAddr]),
}

impl Zone {
    /// Builds the tables.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let mut zone = Self::default();
        for host in config.hosts {
            let first_label = host.name.labels().next().unwrap_or_default();
            zone.labels.insert(first_label.into());
            for address in host.named {
                zone.named.entry(address).or_insert_with(|| host.name.clone());
            }
            let entry = zone.hosts.entry(host.name).or_default();
            entry.wildcard |= host.wildcard;
            for address in host.addresses {
                if !entry.addresses.contains(&address) && entry.addresses.len() < MAX_ADDRESSES {
                    entry.addresses.push(address);
                }
            }
        }
        zone.local.extend(config.local);
        for (suffix, mut upstreams) in config.routes {
            upstreams.truncate(MAX_UPSTREAMS);
            zone.routes.insert(suffix, upstreams);
        }
        zone
    }

    /// Returns all upstreams of all routes.
    pub(crate) fn upstreams(&self) -> impl Iterator<Item = &SocketAddr> {
        self.routes.values().flatten()
    }

    /// Tells whether other names are resolved by the same upstreams as in `other`.
    pub(crate) fn forwards_like(&self, other: &Self) -> bool {
        self.routes == other.routes
    }

    /// Answers a query or says who does, with at most `limit` bytes.
    #[must_use]
    pub fn answer(&self, query: &Query, limit: usize) -> Verdict<'_> {
        if query.class != Class::IN {
            return Verdict::Answer(query.failure(REFUSED));
        }
        let name = query.name.as_bytes();
        if let Some(entry) = self.hosts.get(name) {
            return Verdict::Answer(self.addresses(query, entry, limit));
        }
        if let Some(address) = query.name.address()
            && let Some(host) = self.named.get(&address)
        {
            return Verdict::Answer(self.pointer(query, host, limit));
        }
        if is_below(name, b"\x05onion\x00") {
            return Verdict::Answer(none(query, NXDOMAIN, b"\x05onion\x00"));
        }
        let mut ancestors = query.name.ancestors().skip(1);
        if let Some(entry) = ancestors.find_map(|name| self.hosts.get(name).filter(|entry| entry.wildcard)) {
            return Verdict::Answer(self.addresses(query, entry, limit));
        }
        if let Some(entry) = self.site_host(&query.name)
            && matches!(query.kind, Kind::A | Kind::AAAA | Kind::ANY)
        {
            return Verdict::Answer(self.addresses(query, &entry, limit));
        }
        let upstreams = self.route(&query.name);
        if let Some(zone) = self.zone_of(&query.name) {
            // A route below a local domain is more exact than the domain.
            match upstreams {
                Some((suffix, upstreams)) if suffix.len() > zone.len() => return Verdict::Forward(upstreams),
                _ => {}
            }
            if let Some(code) = not_offered(query.kind) {
                return Verdict::Answer(query.failure(code));
            }
            // The domain itself is there, and so is what lies between it and the whole name of an address.
            let code = if zone == name || is_partly_reverse(query) { 0 } else { NXDOMAIN };
            return Verdict::Answer(none(query, code, zone));
        }
        // What programs ask for that know no search domain: a name of ours that nobody else need hear.
        let asks_address = matches!(query.kind, Kind::A | Kind::AAAA);
        let mut labels = query.name.labels();
        if asks_address
            && let (Some(label), None) = (labels.next(), labels.next())
            && self.labels.contains(label)
        {
            return Verdict::Answer(none(query, NXDOMAIN, b"\x00"));
        }
        // Service browsing of reverse zones asks for nothing that an upstream knows. Source: node.md, 20.2.
        if query.kind == Kind::PTR && is_browsing(&query.name) {
            return Verdict::Answer(none(query, NXDOMAIN, b"\x00"));
        }
        Verdict::Forward(upstreams.map(|(_, upstreams)| upstreams).unwrap_or_default())
    }

    /// Returns the host of a site that a name such as `10-0-0-1-via-7` stands for, alone or in a domain of the tailnet.
    fn site_host(&self, name: &Name) -> Option<Entry> {
        let address = site_address(name.labels().next()?)?;
        let parent = name.parent()?;
        let is_ours = parent.labels().next().is_none() || self.local.contains(&parent);
        is_ours.then(|| Entry { addresses: vec![address.into()], wildcard: false })
    }

    /// Returns the longest suffix that has a route.
    fn route(&self, name: &Name) -> Option<(&[u8], &[SocketAddr])> {
        name.ancestors().find_map(|name| {
            let (suffix, upstreams) = self.routes.get_key_value(name)?;
            Some((suffix.as_bytes(), upstreams.as_slice()))
        })
    }

    /// Returns the local domain in which a name lies.
    fn zone_of(&self, name: &Name) -> Option<&[u8]> {
        name.ancestors().find_map(|name| self.local.get(name)).map(Name::as_bytes)
    }

    fn addresses(&self, query: &Query, entry: &Entry, limit: usize) -> Vec<u8> {
        if let Some(code) = not_offered(query.kind) {
            return query.failure(code);
        }
        let wanted = |address: &&IpAddr| match query.kind {
            Kind::A => address.is_ipv4(),
            Kind::AAAA => address.is_ipv6(),
            kind => kind == Kind::ANY,
        };
        let mut answer = Writer::authoritative(query, 0);
        let mut count = 0;
        for address in entry.addresses.iter().filter(wanted).take(if query.kind == Kind::ANY { 1 } else { usize::MAX })
        {
            answer.push_address(*address, TTL_SECONDS);
            count += 1;
        }
        if count == 0 {
            answer.push_start(self.zone_of(&query.name).unwrap_or(query.name.as_bytes()));
        }
        answer.finish_within(limit)
    }

    fn pointer(&self, query: &Query, host: &Name, limit: usize) -> Vec<u8> {
        if let Some(code) = not_offered(query.kind) {
            return query.failure(code);
        }
        let mut answer = Writer::authoritative(query, 0);
        if matches!(query.kind, Kind::PTR | Kind::ANY) {
            answer.push_pointer(host, TTL_SECONDS);
        } else {
            answer.push_start(self.zone_of(&query.name).unwrap_or(query.name.as_bytes()));
        }
        answer.finish_within(limit)
    }
}

/// Reads `<a>-<b>-<c>-<d>-via-<site>`, the site in decimal or hexadecimal. Source: node.md, sections 20.1 and 27.
fn site_address(label: &[u8]) -> Option<Ipv6Addr> {
    let (host, site) = std::str::from_utf8(label).ok()?.split_once("-via-")?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let site = match site.strip_prefix("0x") {
        Some(site) if digits(site) => u32::from_str_radix(site, 16).ok()?,
        None if digits(site) => site.parse().ok()?,
        Some(_) | None => return None,
    };
    let host: Ipv4Addr = host.replace('-', ".").parse().ok()?;
    Some(Ipv6Addr::from_bits(SITES.to_bits() | u128::from(site) << 32 | u128::from(host.to_bits())))
}

/// Returns the code for what nobody may ask of a local name.
fn not_offered(kind: Kind) -> Option<u16> {
    matches!(kind, Kind::NS | Kind::SOA | Kind::AXFR | Kind::HINFO).then_some(NOTIMP)
}

/// Makes the answer that there is none.
fn none(query: &Query, code: u16, zone: &[u8]) -> Vec<u8> {
    let mut answer = Writer::authoritative(query, code);
    answer.push_start(zone);
    answer.finish()
}

fn is_below(name: &[u8], suffix: &[u8]) -> bool {
    let mut rest = name;
    while let Some(length) = rest.first() {
        if rest == suffix {
            return true;
        }
        rest = rest.get(1 + usize::from(*length)..).unwrap_or_default();
    }
    false
}

/// Tells whether a name stands for a part of the addresses of a reverse zone.
fn is_partly_reverse(query: &Query) -> bool {
    let name = query.name.as_bytes();
    let whole = if is_below(name, b"\x03ip6\x04arpa\x00") {
        34
    } else if is_below(name, b"\x07in-addr\x04arpa\x00") {
        6
    } else {
        return false;
    };
    query.name.labels().count() < whole && !is_browsing(&query.name)
}

/// Tells whether a name is one by which DNS-SD finds domains to browse. Source: RFC 6763, section 11.
fn is_browsing(name: &Name) -> bool {
    let mut labels = name.labels();
    let first = labels.next().unwrap_or_default();
    matches!(first, b"b" | b"db" | b"r" | b"dr" | b"lb")
        && labels.next() == Some(b"_dns-sd")
        && labels.next() == Some(b"_udp")
        && name.labels().last() == Some(b"arpa")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::word;
    use crate::reply::tests::query;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn host(text: &str, addresses: &[&str], wildcard: bool) -> Host {
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        Host { name: name(text), named: addresses.clone(), addresses, wildcard }
    }

    fn zone() -> Zone {
        let upstream = |text: &str| vec![text.parse().unwrap()];
        Zone::new(Config {
            hosts: vec![
                host("alpha.t.example", &["100.64.0.1", "fd7a:115c:a1e0::1"], false),
                host("beta.t.example", &["100.64.0.2"], true),
                host("db.corp.example", &["10.0.0.7"], false),
            ],
            local: ["t.example", "64.100.in-addr.arpa", "0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa"].map(name).into(),
            routes: vec![
                (name("."), upstream("192.0.2.1:53")),
                (name("corp.example"), upstream("192.0.2.2:53")),
                (name("lab.corp.example"), upstream("192.0.2.3:53")),
                (name("dead.example"), vec![]),
                (name("sub.t.example"), upstream("192.0.2.4:53")),
            ],
        })
    }

    /// Says what became of a query in words: the code and the counts of answers and of authorities, or the upstreams.
    fn ask(text: &str, kind: Kind) -> String {
        match zone().answer(&query(text, kind, false), 512) {
            Verdict::Answer(answer) => {
                let field = |at| word(&answer, at).unwrap();
                assert_eq!((field(0), field(2) & 0xff70 | 0x80), (0x1234, 0x8180 | field(2) & FLAG_AA_TC), "{text}");
                format!("{} {} {}", field(2) & 15, field(6), field(8))
            }
            Verdict::Forward(upstreams) => format!("{upstreams:?}"),
        }
    }

    const FLAG_AA_TC: u16 = 0x0600;

    #[test]
    fn names_of_the_tailnet_are_answered_and_never_leave() {
        for (text, kind, expected) in [
            ("alpha.t.example", Kind::A, "0 1 0"),
            ("ALPHA.T.example", Kind::AAAA, "0 1 0"),
            ("alpha.t.example", Kind::ANY, "0 1 0"),
            ("beta.t.example", Kind::AAAA, "0 0 1"),
            ("alpha.t.example", Kind(15), "0 0 1"),
            ("alpha.t.example", Kind::SOA, "4 0 0"),
            ("gamma.t.example", Kind::A, "3 0 1"),
            ("t.example", Kind::A, "0 0 1"),
            ("www.alpha.t.example", Kind::A, "3 0 1"),
            ("www.beta.t.example", Kind::A, "0 1 0"),
            ("a.www.beta.t.example", Kind::A, "0 1 0"),
            ("alpha", Kind::A, "3 0 1"),
            ("alpha", Kind::AAAA, "3 0 1"),
            ("1.0.64.100.in-addr.arpa", Kind::PTR, "0 1 0"),
            ("1.0.64.100.in-addr.arpa", Kind::A, "0 0 1"),
            ("9.0.64.100.in-addr.arpa", Kind::PTR, "3 0 1"),
            ("0.64.100.in-addr.arpa", Kind::PTR, "0 0 1"),
            ("b._dns-sd._udp.0.64.100.in-addr.arpa", Kind::PTR, "3 0 1"),
            ("b._dns-sd._udp.0.168.192.in-addr.arpa", Kind::PTR, "3 0 1"),
            ("7.0.0.10.in-addr.arpa", Kind::PTR, "0 1 0"),
            ("db.corp.example", Kind::A, "0 1 0"),
            ("facebookcorewwwi.onion", Kind::A, "3 0 1"),
        ] {
            assert_eq!(ask(text, kind), expected, "{text}");
        }
        let mut chaos = query("version.bind", Kind(16), false);
        chaos.class = Class(3);
        assert_eq!(zone().answer(&chaos, 512), Verdict::Answer(chaos.failure(REFUSED)));
    }

    #[test]
    fn other_names_go_to_the_upstreams_of_the_longest_suffix() {
        for (text, kind, expected) in [
            ("www.example.com", Kind::A, "[192.0.2.1:53]"),
            ("com", Kind::NS, "[192.0.2.1:53]"),
            ("corp.example", Kind::A, "[192.0.2.2:53]"),
            ("www.corp.example", Kind::SOA, "[192.0.2.2:53]"),
            ("notcorp.example", Kind::A, "[192.0.2.1:53]"),
            ("www.lab.corp.example", Kind::A, "[192.0.2.3:53]"),
            ("www.dead.example", Kind::A, "[]"),
            ("www.sub.t.example", Kind::A, "[192.0.2.4:53]"),
            ("1.0.168.192.in-addr.arpa", Kind::PTR, "[192.0.2.1:53]"),
        ] {
            assert_eq!(ask(text, kind), expected, "{text}");
        }
    }

    #[test]
    fn an_answer_that_is_too_long_says_so() {
        let addresses: Vec<String> = (1..=32).map(|at| format!("10.0.0.{at}")).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let zone = Zone::new(Config { hosts: vec![host("many.t.example", &addresses, false)], ..Config::default() });
        let Verdict::Answer(short) = zone.answer(&query("many.t.example", Kind::A, false), 512) else { panic!() };
        assert_eq!((short[2] & 2, word(&short, 6)), (2, Some(0)));
        let Verdict::Answer(whole) = zone.answer(&query("many.t.example", Kind::A, false), 1232) else { panic!() };
        assert_eq!((whole[2] & 2, word(&whole, 6)), (0, Some(32)));
    }

    #[test]
    fn hosts_of_sites_are_named_by_their_address() {
        let zone = zone();
        let told = |text: &str, kind| match zone.answer(&query(text, kind, false), 512) {
            Verdict::Answer(message) => Some((word(&message, 2).unwrap() & 15, word(&message, 6).unwrap(), message)),
            Verdict::Forward(_) => None,
        };
        for text in ["10-0-0-1-via-7", "10-0-0-1-VIA-0x7.T.example"] {
            let (code, count, message) = told(text, Kind::AAAA).unwrap();
            assert_eq!((code, count), (0, 1), "{text}");
            let address: Ipv6Addr = "fd7a:115c:a1e0:b1a:0:7:a00:1".parse().unwrap();
            assert!(message.ends_with(&address.octets()), "{text}");
            let (code, count, _) = told(text, Kind::A).unwrap();
            assert_eq!((code, count), (0, 0), "there is none in IPv4: {text}");
        }
        for text in ["10-0-0-1-via-7.example", "10-0-0-via-7", "10-0-0-1-via-x", "10-0-0-1-via--7", "10-0-0-256-via-7"]
        {
            assert_eq!(told(text, Kind::AAAA), None, "{text}");
        }
        assert_eq!(told("10-0-0-1-via-4294967296.t.example", Kind::AAAA).unwrap().0, NXDOMAIN);
    }

    proptest! {
        /// Nothing below a local domain is forwarded unless a route is more exact.
        #[test]
        fn local_names_never_leave(label in "[a-z]{1,8}(\\.[a-z]{1,8}){0,3}", kind in 1_u16..260) {
            let text = format!("{label}.t.example");
            if !text.ends_with("sub.t.example") {
                let zone = zone();
                let asked = query(&text, Kind(kind), true);
                prop_assert!(matches!(zone.answer(&asked, 512), Verdict::Answer(_)));
            }
        }
    }
}
