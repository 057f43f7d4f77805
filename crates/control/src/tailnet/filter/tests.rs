//! Filters in chunks: what a client that follows the steps has in the end, and how much each step sends.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use warren_policy::{Attributes, Directory, DirectoryNode, Owner, Policy};
use warren_wire::control::{MapResponse, NodeId, UserId, from_json};

use super::*;

/// The rules that a node with three addresses gets of a policy that lets these sources reach them.
fn rules(list: &[(BTreeSet<u16>, u8)], until: Option<&str>) -> Vec<NodeRule> {
    let rule = |(sources, to): &(BTreeSet<u16>, u8)| {
        let sources: Vec<_> =
            sources.iter().map(|number| format!("\"100.64.{}.{}\"", number / 256, number % 256)).collect();
        let sources = sources.join(", ");
        match until {
            Some(until) => {
                format!(r#"{{"src": [{sources}], "dst": ["100.127.0.{to}"], "ip": ["tcp:22"], "until": "{until}"}}"#)
            }
            None => format!(r#"{{"action": "accept", "src": [{sources}], "dst": ["100.127.0.{to}:22"]}}"#),
        }
    };
    let section = if until.is_some() { "grants" } else { "acls" };
    let text = format!("{{\"{section}\": [{}]}}", list.iter().map(rule).collect::<Vec<_>>().join(",\n"));
    let node = DirectoryNode {
        owner: Owner::User(UserId(1)),
        addresses: (0..3).map(|last| [100, 127, 0, last].into()).collect(),
        approved_routes: Vec::new(),
        online: true,
        attributes: Attributes::new(),
    };
    let directory = Directory { nodes: [(NodeId(1), node)].into(), ..Directory::default() };
    Policy::parse(&text).unwrap().compile(&directory, 0).filter(NodeId(1))
}

fn filter(list: &[(BTreeSet<u16>, u8)]) -> Filter {
    Filter::new(rules(list, None), Ends::Untold)
}

type Chunks = BTreeMap<String, Vec<FilterRule>>;

/// Does what a client does; returns how many chunks came or went.
fn apply(chunks: &mut Chunks, filter: &Filter, old: Option<&Outline>) -> usize {
    let mut text = b"{\"PacketFilters\":".to_vec();
    filter.write(old, &mut text);
    text.push(b'}');
    let message: MapResponse = from_json(&text).unwrap();
    let count = message.packet_filters.len();
    for (name, rules) in message.packet_filters {
        match rules {
            Some(rules) => drop(chunks.insert(name, rules)),
            None => assert!(chunks.remove(&name).is_some(), "{name} was not there"),
        }
    }
    count
}

/// What a filter means: which source may send where.
fn meaning(rules: impl IntoIterator<Item = FilterRule>) -> BTreeSet<(String, String)> {
    let pairs = |rule: FilterRule| {
        let to: Vec<_> = rule.dst_ports.iter().map(|port| port.ip.clone()).collect();
        let of = |source: String| to.clone().into_iter().map(move |to| (source.clone(), to)).collect::<Vec<_>>();
        rule.src_ips.into_iter().flat_map(|source| each(&source)).flat_map(of).collect::<Vec<_>>()
    };
    rules.into_iter().flat_map(pairs).collect()
}

/// Takes a range of IPv4 addresses apart.
fn each(source: &str) -> Vec<String> {
    let Some((first, last)) = source.split_once('-') else { return vec![source.to_owned()] };
    let number = |text: &str| u32::from(text.parse::<std::net::Ipv4Addr>().unwrap());
    (number(first)..=number(last)).map(|bits| std::net::Ipv4Addr::from(bits).to_string()).collect()
}

#[test]
fn short_rules_are_the_base_alone() {
    let mut chunks = Chunks::new();
    apply(&mut chunks, &filter(&[([1, 2, 3].into(), 0), ([4].into(), 1)]), None);
    assert_eq!(chunks.keys().collect::<Vec<_>>(), ["base"]);
    assert_eq!(chunks["base"].len(), 2);
    apply(&mut chunks, &filter(&[]), None);
    assert_eq!(chunks["base"], [], "nothing allowed is said, not left out");
}

#[test]
fn one_more_source_changes_little() {
    let mut sources: BTreeSet<u16> = (0..2000).map(|number| number * 3).collect();
    let mut chunks = Chunks::new();
    let mut before = filter(&[(sources.clone(), 1)]);
    assert!(apply(&mut chunks, &before, None) > 10);
    for new in [1, 1500, 2999] {
        sources.insert(new);
        let next = filter(&[(sources.clone(), 1)]);
        let changed = apply(&mut chunks, &next, Some(before.outline()));
        assert!(changed <= 3, "{changed}");
        before = next;
    }
}

#[test]
fn the_end_of_a_rule_is_told_to_those_who_keep_to_it() {
    let list = |count: u16| [((0..count).collect(), 1)];
    for count in [1, 100] {
        let rules = rules(&list(count), Some("2027-01-01T00:00:00Z"));
        for (ends, told) in [(Ends::Told, true), (Ends::Untold, false)] {
            let filter = Filter::new(rules.clone(), ends);
            let mut text = Vec::new();
            filter.write(None, &mut text);
            assert_eq!(String::from_utf8(text).unwrap().contains("Until"), told, "{count} {ends:?}");
        }
    }
}

proptest! {
    #[test]
    fn steps_lead_where_the_whole_leads(
        versions in prop::collection::vec(
            prop::collection::vec((prop::collection::btree_set(0..600_u16, 0..300), 0..3_u8), 0..4),
            1..6,
        )
    ) {
        let mut chunks = Chunks::new();
        let mut old: Option<Outline> = None;
        for version in versions {
            let filter = filter(&version);
            let changed = apply(&mut chunks, &filter, old.as_ref());
            prop_assert_eq!(changed == 0, old.as_ref() == Some(filter.outline()));
            let mut whole = Chunks::new();
            apply(&mut whole, &filter, None);
            prop_assert_eq!(&chunks, &whole);
            let expected: BTreeSet<_> = version.iter().flat_map(|(sources, to)| {
                sources.iter().map(move |number| {
                    (format!("100.64.{}.{}", number / 256, number % 256), format!("100.127.0.{to}"))
                })
            }).collect();
            prop_assert_eq!(meaning(chunks.values().flatten().cloned()), expected);
            old = Some(filter.outline().clone());
        }
    }
}
