//! Random packets against the model.

use super::model::{DESTINATIONS, FLAGS, Model, PORTS, PROTOCOLS, SOURCES, Shape, WAITS, Way};
use super::*;
use proptest::prelude::*;
use proptest::sample::select;

#[derive(Debug, Clone)]
enum Step {
    Inbound(Vec<u8>, bool),
    Outbound(Vec<u8>),
    Wait(u64),
    Rules(Vec<String>),
}

fn any_shape() -> impl Strategy<Value = Shape> {
    let first = (0_u8..9, proptest::bool::weighted(0.2), 1_usize..3, proptest::bool::weighted(0.05));
    (first, (20_u16..22, 50_u16..51), select(&FLAGS[..]), 0_u16..2, 0_u8..3).prop_map(
        |((kind, v6, peer, wrong_local), ports, flags, id, variant)| Shape {
            kind,
            v6,
            peer,
            wrong_local,
            ports,
            flags,
            id,
            variant,
        },
    )
}

fn any_rule() -> impl Strategy<Value = String> {
    let ends = (select(&SOURCES[..]), select(&DESTINATIONS[..]));
    (ends, select(&PORTS[..]), select(&PROTOCOLS[..])).prop_map(|((a, b), c, d)| format!("{a} {b} {c}{d}"))
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (any_shape(), proptest::bool::weighted(0.1))
            .prop_map(|(shape, jailed)| Step::Inbound(shape.bytes(Way::In), jailed)),
        7 => any_shape().prop_map(|shape| Step::Outbound(shape.bytes(Way::Out))),
        1 => select(&WAITS[..]).prop_map(Step::Wait),
        1 => proptest::collection::vec(any_rule(), 0..4).prop_map(Step::Rules),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn verdicts_are_those_of_the_model(
        first in proptest::collection::vec(any_rule(), 0..4),
        steps in proptest::collection::vec(any_step(), 1..120),
    ) {
        let rules: Vec<&str> = first.iter().map(String::as_str).collect();
        let mut bench = Bench::new(&rules);
        let mut model = Model::new(first);
        let mut now = 0;
        for step in steps {
            match step {
                Step::Inbound(bytes, jailed) => {
                    let verdict = if jailed { bench.jailed(&bytes) } else { bench.inbound(&bytes) };
                    let expected = model.inbound(&bytes, jailed, now);
                    prop_assert_eq!(verdict, expected, "{:?} at {}", Packet::parse(&bytes), now);
                }
                Step::Outbound(bytes) => prop_assert_eq!(bench.outbound(&bytes), model.outbound(&bytes, now)),
                Step::Wait(seconds) => {
                    now += seconds;
                    bench.wait(Duration::from_secs(seconds));
                }
                Step::Rules(rules) => {
                    bench.replace(&rules.iter().map(String::as_str).collect::<Vec<_>>());
                    model.replace(rules);
                }
            }
        }
    }
}
