//! Conversations through the firewall, and the same through the slow model of its tests.

use std::sync::Arc;

use warren_filter::{Body, DropReason, Firewall, Icmp, Packet, PeerMode, Ports, Verdict};
use warren_wire::control::{FilterRule, NetPortRange, PortRange};

use super::{START, filter, seconds};
use crate::input::Input;
use model::{DESTINATIONS, FLAGS, Model, PORTS, PROTOCOLS, SOURCES, Shape, WAITS, Way};
use testing::*;

#[path = "../../../crates/filter/src/firewall/tests/model.rs"]
mod model;
#[path = "../../../crates/filter/src/testing.rs"]
mod testing;

const US: &str = "100.64.0.1";
const PEER: &str = "100.64.0.2";
const OTHER: &str = "100.64.0.3";

const ACCEPT: Verdict = Verdict::Accept;

fn dropped(reason: DropReason) -> Verdict {
    Verdict::Drop(reason)
}

/// Longest conversation; the model's time grows with the square.
const STEPS_MAX: usize = 200;

/// Takes rules and steps from `data`, and demands the model's verdict at each.
pub fn firewall(data: &[u8]) {
    let mut input = Input::new(data);
    let first = some_rules(&mut input);
    let mut firewall = Firewall::new(1, *START);
    firewall.use_filter(&Arc::new(compiled(&first)));
    let mut model = Model::new(first);
    let mut now = 0;
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            return;
        }
        let at = *START + seconds(now);
        match input.below(16) {
            0 => now += input.choose(&WAITS),
            1 => {
                let rules = some_rules(&mut input);
                firewall.use_filter(&Arc::new(compiled(&rules)));
                model.replace(rules);
            }
            2..=6 => {
                let bytes = some_shape(&mut input).bytes(Way::Out);
                let packet = Packet::parse(&bytes).expect("a packet that we made");
                assert_eq!(firewall.check_outbound(&packet, at), model.outbound(&bytes, now), "{packet:?} at {now}");
            }
            choice => {
                let bytes = some_shape(&mut input).bytes(Way::In);
                let packet = Packet::parse(&bytes).expect("a packet that we made");
                let jailed = choice == 7;
                let mode = if jailed { PeerMode::Jailed } else { PeerMode::Normal };
                let verdict = firewall.check_inbound(&packet, mode, at);
                assert_eq!(verdict, model.inbound(&bytes, jailed, now), "{packet:?} at {now}");
            }
        }
    }
}

fn some_rules(input: &mut Input<'_>) -> Vec<String> {
    let count = input.below(4);
    (0..count)
        .map(|_| {
            let (source, destination) = (input.choose(&SOURCES), input.choose(&DESTINATIONS));
            format!("{source} {destination} {}{}", input.choose(&PORTS), input.choose(&PROTOCOLS))
        })
        .collect()
}

fn some_shape(input: &mut Input<'_>) -> Shape {
    let ends = input.byte();
    Shape {
        kind: input.byte() % 9,
        v6: ends & 1 == 1,
        peer: 1 + usize::from(ends >> 1 & 1),
        wrong_local: ends >> 2 == 1,
        ports: (20 + u16::from(ends >> 7), 50),
        flags: input.choose(&FLAGS),
        id: u16::from(ends >> 6 & 1),
        variant: input.byte() % 3,
    }
}

fn compiled(rules: &[String]) -> warren_filter::Filter {
    let rules: Vec<FilterRule> = rules.iter().map(|text| rule(text)).collect();
    let local = ["100.64.0.1/32", "fd7a:115c:a1e0::1/128"].map(|net| net.parse().unwrap());
    filter(&rules, &local)
}

fn rule(text: &str) -> FilterRule {
    let words: Vec<&str> = text.split(' ').collect();
    let port = |text: &str| text.parse().unwrap();
    FilterRule {
        src_ips: vec![words[0].to_owned()],
        dst_ports: vec![NetPortRange {
            ip: words[1].to_owned(),
            bits: None,
            ports: PortRange { first: port(words[2]), last: port(words[3]) },
        }],
        ip_proto: words[4..].iter().map(|word| word.parse().unwrap()).collect(),
        ..FilterRule::default()
    }
}
