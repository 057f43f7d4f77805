use super::*;
use crate::testing::ip;
use proptest::prelude::*;
use warren_wire::control::{CapGrant, NetPortRange, PortRange};

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
fn a_grant_opens_no_port() {
    let grant = FilterRule { cap_grant: vec![CapGrant::default()], ..rule(&["100.64.0.2"], &[], &[]) };
    assert!(!allows(&compile(&[grant]), "100.64.0.2", LOCAL, Want::Icmp));
}

#[test]
fn raised_shields_allow_nothing() {
    let (filter, _) = compile_with(&[rule(&["*"], &[("*", 0, 65_535)], &[])], Shields::Up);
    assert!(!allows(&filter, "100.64.0.2", LOCAL, Want::Icmp));
    assert!(filter.is_local(ip(LOCAL)));
}

#[test]
fn ranges_cannot_blow_a_filter_up() {
    // Ranges that miss each border by one are made of 254 prefixes each.
    let sources: Vec<String> =
        (0..5_000).map(|at| format!("{at:x}::1-{at:x}:ffff:ffff:ffff:ffff:ffff:ffff:fffe")).collect();
    let rule = rule(&sources.iter().map(String::as_str).collect::<Vec<_>>(), &[("*", 1, 1)], &[]);
    let local = [format!("{LOCAL6}/128").parse().unwrap()];
    let compiled = |rules: &[FilterRule]| {
        Filter::compile(&FilterInput { rules, local: &local, shields: Shields::Down, holders: &|_| vec![] }).map(|_| ())
    };
    assert_eq!(compiled(std::slice::from_ref(&rule)), Err(FilterError::TooLarge));
    let as_destinations = FilterRule {
        src_ips: vec!["*".to_owned()],
        dst_ports: sources
            .iter()
            .map(|text| NetPortRange { ip: text.clone(), bits: None, ports: PortRange::single(1) })
            .collect(),
        ..FilterRule::default()
    };
    assert_eq!(compiled(&[as_destinations]), Err(FilterError::TooLarge));
    let few = FilterRule { src_ips: sources[..1_000].to_vec(), ..rule };
    assert_eq!(compiled(&[few]), Ok(()));
}

#[test]
fn a_block_of_ports_counts_like_a_prefix() {
    // 30 blocks each.
    let ports = PortRange { first: 1, last: 65_534 };
    let destination = NetPortRange { ip: LOCAL.to_owned(), bits: None, ports };
    let rule = |number| FilterRule {
        src_ips: vec!["*".to_owned()],
        dst_ports: vec![destination.clone(); number],
        ..FilterRule::default()
    };
    let local = [format!("{LOCAL}/32").parse().unwrap()];
    let compiled = |number| {
        let rules = [rule(number)];
        let input = FilterInput { rules: &rules, local: &local, shields: Shields::Down, holders: &|_| vec![] };
        Filter::compile(&input).map(|_| ())
    };
    assert_eq!(
        (compiled(PREFIXES_MAX / 30 - 1), compiled(PREFIXES_MAX / 30 + 1)),
        (Ok(()), Err(FilterError::TooLarge))
    );
}

proptest! {
    /// Many rules over few sources, so that sets are lists and bits, against a scan of the rules.
    #[test]
    fn lookups_equal_a_scan_of_the_rules(
        rules in proptest::collection::vec(
            (proptest::collection::btree_set(0_usize..6, 1..4), 0_usize..4, (0_u16..5, 0_u16..5), 0_usize..4), 0..150),
    ) {
        const SOURCES: [&str; 6] = ["10.0.0.1", "10.0.0.2", "10.0.0.0/30", "10.0.0.2-10.0.0.5", "*", "fd00::/64"];
        const DESTINATIONS: [&str; 4] = [LOCAL, LOCAL6, "192.168.0.0/24", "*"];
        const PROTOCOLS: [&[i64]; 4] = [&[], &[6], &[17, 132], &[47]];
        let whole = |ports: (u16, u16)| if ports == (4, 4) { (0, u16::MAX) } else { ports };
        let texts: Vec<FilterRule> = rules.iter().map(|(sources, to, ports, protocols)| {
            let sources: Vec<&str> = sources.iter().map(|&at| SOURCES[at]).collect();
            let (first, last) = whole(*ports);
            rule(&sources, &[(DESTINATIONS[*to], first, last)], PROTOCOLS[*protocols])
        }).collect();
        let filter = compile(&texts);
        for from in ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.5", "10.0.0.6", "fd00::7", "fd01::7"] {
            for to in [LOCAL, LOCAL6, "192.168.0.9", "192.168.1.9"] {
                if ip(from).is_ipv4() != ip(to).is_ipv4() {
                    continue;
                }
                for (protocol, port) in [(6, 1), (6, 4), (17, 3), (132, 0), (47, 0), (1, 0)] {
                    let expected = rules.iter().any(|(sources, destination, ports, protocols)| {
                        let source = sources.iter().any(|&at| match (SOURCES[at], from) {
                            ("10.0.0.0/30", "10.0.0.1" | "10.0.0.2" | "10.0.0.3")
                            | ("10.0.0.2-10.0.0.5", "10.0.0.2" | "10.0.0.3" | "10.0.0.5")
                            | ("*", _)
                            | ("fd00::/64", "fd00::7") => true,
                            (one, from) => one == from,
                        });
                        let target = match DESTINATIONS[*destination] {
                            "*" => true,
                            "192.168.0.0/24" => to == "192.168.0.9",
                            one => one == to,
                        };
                        let listed: &[i64] = if *protocols == 0 { &[6, 17, 1, 58] } else { PROTOCOLS[*protocols] };
                        let (first, last) = whole(*ports);
                        source && target && match protocol {
                            1 => true,
                            47 => listed.contains(&47) && (first, last) == (0, u16::MAX),
                            _ => listed.contains(&protocol) && (first..=last).contains(&port),
                        }
                    });
                    let want = match protocol {
                        6 => Want::Tcp(port),
                        17 => Want::Udp(port),
                        132 => Want::Sctp(port),
                        1 => Want::Icmp,
                        _ => Want::Protocol(47),
                    };
                    prop_assert_eq!(allows(&filter, from, to, want), expected, "{} {} {:?}", from, to, want);
                }
            }
        }
    }
}
