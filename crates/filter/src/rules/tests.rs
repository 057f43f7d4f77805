use super::*;
use crate::testing::ip;
use warren_wire::control::{NetPortRange, PortRange, RawJson};

const LOCAL: &str = "100.64.0.1";
const LOCAL6: &str = "fd7a:115c:a1e0::1";

fn rule(sources: &[&str], destinations: &[(&str, u16, u16)], protocols: &[i64]) -> FilterRule {
    FilterRule {
        src_ips: sources.iter().map(ToString::to_string).collect(),
        dst_ports: destinations
            .iter()
            .map(|&(ip, first, last)| NetPortRange { ip: ip.to_owned(), bits: None, ports: PortRange { first, last } })
            .collect(),
        ip_proto: protocols.to_vec(),
        ..FilterRule::default()
    }
}

fn compile_with(rules: &[FilterRule], shields: Shields) -> (Filter, Vec<Problem>) {
    let local = [format!("{LOCAL}/32"), format!("{LOCAL6}/128"), "192.168.0.0/16".to_owned()];
    let local: Vec<IpNet> = local.iter().map(|net| net.parse().unwrap()).collect();
    let holders = |name: &str| match name {
        "example.com/cap/a" => vec![ip("100.64.0.77"), ip("fd7a:115c:a1e0::77")],
        _ => vec![],
    };
    Filter::compile(&FilterInput { rules, local: &local, shields, holders: &holders }).unwrap()
}

fn compile(rules: &[FilterRule]) -> Filter {
    let (filter, problems) = compile_with(rules, Shields::Down);
    assert_eq!(problems, []);
    filter
}

fn allows(filter: &Filter, source: &str, destination: &str, want: Want) -> bool {
    filter.allows(ip(source), ip(destination), want)
}

#[test]
fn sources_ports_and_protocols_must_all_match() {
    let filter = compile(&[
        rule(&["100.64.0.2"], &[(LOCAL, 22, 22), (LOCAL, 80, 90)], &[6]),
        rule(&["100.64.0.2"], &[(LOCAL, 53, 53)], &[17]),
        rule(&["10.0.0.0/8"], &[("*", 0, 65_535)], &[]),
    ]);
    let two = |want| allows(&filter, "100.64.0.2", LOCAL, want);
    assert!(two(Want::Tcp(22)) && two(Want::Tcp(80)) && two(Want::Tcp(85)) && two(Want::Tcp(90)));
    assert!(!two(Want::Tcp(21)) && !two(Want::Tcp(79)) && !two(Want::Tcp(91)) && !two(Want::Tcp(53)));
    assert!(two(Want::Udp(53)) && !two(Want::Udp(22)) && !two(Want::Sctp(22)));
    assert!(!allows(&filter, "100.64.0.3", LOCAL, Want::Tcp(22)));
    assert!(!allows(&filter, "100.64.0.2", "192.168.1.1", Want::Tcp(22)));
    assert!(allows(&filter, "10.1.1.1", "192.168.1.1", Want::Udp(9)));
    assert!(!allows(&filter, "10.1.1.1", LOCAL, Want::Sctp(9)), "not among the four protocols of an empty list");
    assert!(!allows(&filter, "fd7a::1", LOCAL6, Want::Tcp(22)));
}

#[test]
fn a_star_is_both_families() {
    let filter = compile(&[rule(&["*"], &[("*", 7, 7)], &[])]);
    assert!(allows(&filter, "1.2.3.4", LOCAL, Want::Tcp(7)));
    assert!(allows(&filter, "2001:db8::1", LOCAL6, Want::Tcp(7)));
}

#[test]
fn pings_need_any_rule_for_the_destination_whatever_it_lists() {
    let filter =
        compile(&[rule(&["100.64.0.2"], &[(LOCAL, 22, 22)], &[6]), rule(&["100.64.0.3"], &[(LOCAL, 9, 1)], &[300])]);
    assert!(allows(&filter, "100.64.0.2", LOCAL, Want::Icmp));
    assert!(allows(&filter, "100.64.0.3", LOCAL, Want::Icmp));
    assert!(!allows(&filter, "100.64.0.3", LOCAL, Want::Tcp(5)), "an empty range and no known protocol");
    assert!(!allows(&filter, "100.64.0.2", "192.168.1.1", Want::Icmp));
    assert!(!allows(&filter, "100.64.0.4", LOCAL, Want::Icmp));
}

#[test]
fn protocols_without_ports_need_all_ports() {
    let filter = compile(&[
        rule(&["100.64.0.2"], &[(LOCAL, 0, 65_535)], &[47, 132]),
        rule(&["100.64.0.2"], &[("192.168.0.0/16", 1, 65_535)], &[47]),
    ]);
    assert!(allows(&filter, "100.64.0.2", LOCAL, Want::Protocol(47)));
    assert!(!allows(&filter, "100.64.0.2", LOCAL, Want::Protocol(33)));
    assert!(!allows(&filter, "100.64.0.2", "192.168.1.1", Want::Protocol(47)));
    assert!(allows(&filter, "100.64.0.2", LOCAL, Want::Sctp(5)));
}

#[test]
fn ranges_of_addresses_are_inclusive_at_both_ends() {
    let filter = compile(&[rule(&["100.64.0.5-100.64.0.9", "fd00::1-fd00::2"], &[("*", 1, 1)], &[])]);
    for (last, expected) in [(4, false), (5, true), (7, true), (9, true), (10, false)] {
        assert_eq!(allows(&filter, &format!("100.64.0.{last}"), LOCAL, Want::Tcp(1)), expected, "{last}");
    }
    assert!(allows(&filter, "fd00::2", LOCAL6, Want::Tcp(1)) && !allows(&filter, "fd00::3", LOCAL6, Want::Tcp(1)));
}

#[test]
fn unreadable_entries_are_skipped_and_named() {
    let bad = ["nonsense", "10.0.0.1/8", "9.9.9.9-1.1.1.1", "1.1.1.1-fd00::1", "10.0.0.0/33", ""];
    let mut sources = bad.to_vec();
    sources.push("100.64.0.2");
    let (filter, problems) =
        compile_with(&[rule(&sources, &[("10.0.0.1/8", 1, 1), (LOCAL, 2, 2)], &[])], Shields::Down);
    let entries: Vec<&str> = problems.iter().map(|problem| problem.entry.as_str()).collect();
    assert_eq!(entries, [&bad[..], &["10.0.0.1/8"]].concat());
    assert!(allows(&filter, "100.64.0.2", LOCAL, Want::Tcp(2)));
}

#[test]
fn a_rule_of_the_obsolete_form_spoils_the_set() {
    let mut old = rule(&["*"], &[("*", 1, 1)], &[]);
    old.src_bits = vec![32];
    let input = FilterInput { rules: &[old.clone()], local: &[], shields: Shields::Down, holders: &|_| vec![] };
    assert_eq!(Filter::compile(&input).unwrap_err(), FilterError::ObsoleteForm { rule: 0 });
    old.src_bits.clear();
    old.dst_ports[0].bits = Some(32);
    let rules = [rule(&["*"], &[("*", 1, 1)], &[]), old];
    let input = FilterInput { rules: &rules, ..input };
    assert_eq!(Filter::compile(&input).unwrap_err(), FilterError::ObsoleteForm { rule: 1 });
}

#[test]
fn capability_sources_are_the_holders_own_addresses() {
    let filter = compile(&[
        rule(&["cap:example.com/cap/a"], &[(LOCAL, 1, 1), (LOCAL6, 1, 1)], &[]),
        rule(&["cap:none"], &[("*", 1, 1)], &[]),
    ]);
    assert!(allows(&filter, "100.64.0.77", LOCAL, Want::Tcp(1)));
    assert!(allows(&filter, "fd7a:115c:a1e0::77", LOCAL6, Want::Icmp));
    assert!(!allows(&filter, "100.64.0.78", LOCAL, Want::Tcp(1)));
    assert!(!allows(&filter, "100.64.0.77", "192.168.1.1", Want::Icmp), "the destination counts for pings, too");
}

#[test]
fn raised_shields_allow_and_grant_nothing() {
    let grant = granting(&["*"], &[LOCAL], &["a"], &[]);
    let (filter, _) = compile_with(&[rule(&["*"], &[("*", 0, 65_535)], &[]), grant], Shields::Up);
    assert!(!allows(&filter, "100.64.0.2", LOCAL, Want::Icmp));
    assert!(filter.is_local(ip(LOCAL)));
    assert_eq!(filter.capabilities(ip("100.64.0.2"), ip(LOCAL)), CapMap::default());
}

fn granting(sources: &[&str], destinations: &[&str], flags: &[&str], values: &[(&str, &str)]) -> FilterRule {
    let mut cap_map = CapMap::default();
    for (name, value) in values {
        cap_map.0.entry((*name).to_owned()).or_default().push(RawJson::parse(value).unwrap());
    }
    FilterRule {
        src_ips: sources.iter().map(ToString::to_string).collect(),
        cap_grant: vec![CapGrant {
            dsts: destinations.iter().map(|text| IpNet::from(ip(text))).collect(),
            caps: flags.iter().map(ToString::to_string).collect(),
            cap_map,
        }],
        ..FilterRule::default()
    }
}

#[test]
fn capabilities_are_gathered_in_rule_order() {
    let filter = compile(&[
        granting(&["100.64.0.2"], &[LOCAL], &["flag"], &[("x", "1")]),
        granting(&["100.64.0.0/10"], &[LOCAL, LOCAL6], &[], &[("x", "[2]"), ("y", "null")]),
        granting(&["100.64.0.2"], &["192.168.1.1"], &["elsewhere"], &[]),
        granting(&["cap:example.com/cap/a"], &[LOCAL], &["never"], &[]),
    ]);
    let found = filter.capabilities(ip("100.64.0.2"), ip(LOCAL));
    let texts: Vec<(&str, Vec<&str>)> =
        found.0.iter().map(|(name, values)| (name.as_str(), values.iter().map(RawJson::text).collect())).collect();
    assert_eq!(texts, [("flag", vec![]), ("x", vec!["1", "[2]"]), ("y", vec!["null"])]);
    assert_eq!(filter.capabilities(ip("100.64.0.77"), ip(LOCAL)).0.len(), 2);
    assert_eq!(filter.capabilities(ip("10.0.0.1"), ip(LOCAL)), CapMap::default());
    assert!(!allows(&filter, "100.64.0.2", LOCAL, Want::Icmp), "a grant opens no port");
}

#[test]
fn port_ranges_are_merged_without_losing_a_port() {
    let mut ranges =
        PortRanges(vec![(10, 20), (15, 30), (31, 40), (50, 50), (0, 3), (65_000, 65_535), (65_535, 65_535)]);
    let plain = ranges.0.clone();
    ranges.merge();
    assert_eq!(ranges.0, [(0, 3), (10, 40), (50, 50), (65_000, 65_535)]);
    for port in 0..=u16::MAX {
        assert_eq!(ranges.contain(port), plain.iter().any(|&(first, last)| (first..=last).contains(&port)), "{port}");
    }
}
