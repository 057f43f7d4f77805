//! Compiled filters, visibility and routes against the slowest possible reading of the rules.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    clippy::panic,
    reason = "test code"
)]

mod world;

use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use warren_wire::control::NodeId;
use world::naive::Load;
use world::packet::{ACK, FIN_ACK, Judge, SYN, fragments, packet};
use world::{STRANGERS, any_world, ip};

const LOADS: [Load; 8] =
    [Load::Tcp(22), Load::Tcp(80), Load::Tcp(31), Load::Udp(22), Load::Udp(81), Load::Sctp(22), Load::Ping, Load::Gre];

type Choice = (prop::sample::Index, prop::sample::Index, prop::sample::Index);

fn any_choices() -> impl Strategy<Value = Vec<Choice>> {
    prop::collection::vec(any::<Choice>(), 60)
}

/// Picks a source, a destination of the same family, and what is sent.
fn pick(addresses: &[IpAddr], (source, destination, load): &Choice) -> (IpAddr, IpAddr, Load) {
    let source = *source.get(addresses);
    let same_family: Vec<IpAddr> =
        addresses.iter().copied().filter(|address| address.is_ipv4() == source.is_ipv4()).collect();
    (source, *destination.get(&same_family), *load.get(&LOADS))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn filter_accepts_what_the_rules_say(world in any_world(), choices in any_choices()) {
        let compiled = world.compile();
        let own = world.nodes().flat_map(|(_, node)| node.addresses.clone());
        let addresses: Vec<IpAddr> = own.chain(STRANGERS.map(ip)).collect();
        for (id, node) in world.nodes() {
            let judge = Judge::new(&compiled, id, node);
            for choice in &choices {
                let (from, to, load) = pick(&addresses, choice);
                let expected = world.allows(node, from, to, load);
                let told = || format!("node {id} {node:?}: {from} > {to} {load:?}\n{}\n{:?}", world.laws.text(), compiled.filter(id));
                prop_assert_eq!(judge.accepts(&[packet(from, to, load, SYN)]), [expected], "{}", told());
                // A connection that did not begin under our eyes needs the same rule.
                if let Load::Tcp(_) = load {
                    for flags in [ACK, FIN_ACK] {
                        prop_assert_eq!(judge.accepts(&[packet(from, to, load, flags)]), [expected], "{} {}", flags, told());
                    }
                }
                // The pieces of a packet go the way of the first; a later one alone does not pass.
                if let (Load::Tcp(_) | Load::Udp(_), Some([first, rest])) = (load, fragments(from, to, load)) {
                    prop_assert_eq!(judge.accepts(&[first, rest.clone()]), [expected, expected], "{}", told());
                    prop_assert_eq!(judge.accepts(&[rest]), [false], "{}", told());
                }
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
                prop_assert_eq!(compiled.visible(one, two), expected, "{} {}\n{}", one, two, world.laws.text());
                prop_assert_eq!(peers[&one].contains(&two), expected);
            }
        }
        for (one, seen) in &peers {
            prop_assert!(seen.iter().all(|two| peers[two].contains(one)));
        }
    }

    #[test]
    fn routes_are_those_that_the_rules_need(world in any_world()) {
        let compiled = world.compile();
        for (one, viewer) in world.nodes() {
            for (two, peer) in world.nodes().filter(|(two, _)| one != *two) {
                prop_assert_eq!(
                    compiled.routes(one, two),
                    world.routes(viewer, (two, peer)),
                    "{} of {}\n{}\n{:?}", two, one, world.laws.text(), world.directory
                );
            }
        }
    }

    #[test]
    fn capabilities_are_those_that_the_rules_grant(world in any_world(), choices in any_choices()) {
        let compiled = world.compile();
        let own = world.nodes().flat_map(|(_, node)| world.addresses(node));
        let addresses: Vec<IpAddr> = own.chain(STRANGERS.map(ip)).collect();
        for (id, node) in world.nodes() {
            let rules = compiled.filter(id);
            for here in world.addresses(node) {
                for choice in choices.iter().take(10) {
                    let (from, _, _) = pick(&addresses, choice);
                    let mut found: Vec<String> = rules
                        .iter()
                        .filter(|rule| rule.sources.texts().any(|text| holds(&text, from)))
                        .flat_map(|rule| &rule.grants)
                        .filter(|grant| grant.dsts.contains(&here.into()))
                        .flat_map(|grant| grant.cap_map.0.keys().cloned())
                        .collect();
                    found.sort();
                    found.dedup();
                    prop_assert_eq!(
                        found,
                        world.capabilities(node, from, here),
                        "{} at {} of {}\n{}\n{:?}", from, here, id, world.laws.text(), world.directory
                    );
                }
            }
        }
    }

    /// Who lets another's packets in must know that other, or the packets could never come.
    #[test]
    fn nodes_whose_packets_pass_see_each_other(world in any_world()) {
        let compiled = world.compile();
        for (to, target) in world.nodes() {
            let judge = Judge::new(&compiled, to, target);
            for (from, source) in world.nodes().filter(|(from, _)| *from != to) {
                let (sources, targets) = (world.addresses(source), world.addresses(target));
                let pairs = sources.iter().flat_map(|one| targets.iter().map(move |two| (one, two)));
                for (source, destination) in pairs.filter(|(one, two)| one.is_ipv4() == two.is_ipv4()) {
                    if judge.accepts(&[packet(*source, *destination, Load::Ping, SYN)]) == [true] {
                        prop_assert!(compiled.visible(from, to), "{} {}\n{}", from, to, world.laws.text());
                    }
                }
            }
        }
    }
}

/// Tells whether a source as the wire names it holds an address.
fn holds(text: &str, address: IpAddr) -> bool {
    if text == "*" {
        return true;
    }
    if let Some((first, last)) = text.split_once('-') {
        let (first, last) = (ip(first), ip(last));
        return first.is_ipv4() == address.is_ipv4() && first <= address && address <= last;
    }
    world::prefix(text).contains(&address)
}
