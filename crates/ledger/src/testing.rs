//! What several tests need.

mod memory;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proptest::prelude::*;
use warren_wire::key::NodeKey;

use crate::*;
pub(crate) use memory::Memory;

/// Reads hex digits.
pub(crate) fn bytes<const N: usize>(hex: &str) -> [u8; N] {
    assert_eq!(hex.len(), 2 * N);
    std::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
}

pub(crate) fn at(micros: u64) -> Time {
    Time::from_micros(1_795_000_000_000_000 + micros)
}

pub(crate) fn secret(number: u8) -> LogSecret {
    LogSecret::from_seed([number; 32])
}

/// Makes a record of an outbound connection.
pub(crate) fn start(flow: u64, micros: u64) -> Record {
    Record {
        at: at(micros),
        event: Event::Start(Start {
            flow: Flow(flow),
            direction: Direction::Outbound,
            protocol: 6,
            local: "100.64.0.1:50000".parse().unwrap(),
            remote: "100.64.0.2:443".parse().unwrap(),
            peer: NodeKey::from_bytes([2; 32]),
            pass: Pass::Opened,
            path: Path::Direct("192.0.2.7:41641".parse().unwrap()),
        }),
    }
}

pub(crate) fn counts(packets: u64) -> Counts {
    Counts { tx_packets: packets, tx_bytes: packets * 100, rx_packets: packets, rx_bytes: packets * 1000 }
}

pub(crate) fn update(flow: u64, micros: u64, packets: u64) -> Record {
    Record { at: at(micros), event: Event::Update(Update { flow: Flow(flow), counts: counts(packets), path: None }) }
}

pub(crate) fn end(flow: u64, micros: u64, packets: u64) -> Record {
    let end = End { flow: Flow(flow), reason: EndReason::Closed, counts: counts(packets) };
    Record { at: at(micros), event: Event::End(end) }
}

fn ips() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    prop_oneof![
        any::<([u8; 4], [u8; 4])>().prop_map(|(one, two)| (one.into(), two.into())),
        any::<([u8; 16], [u8; 16])>().prop_map(|(one, two)| (one.into(), two.into())),
    ]
}

fn number() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0_u32..64).prop_map(|(value, shift)| value >> shift)
}

fn any_counts() -> impl Strategy<Value = Counts> {
    [number(), number(), number(), number()].prop_map(|[tx_packets, tx_bytes, rx_packets, rx_bytes]| Counts {
        tx_packets,
        tx_bytes,
        rx_packets,
        rx_bytes,
    })
}

fn path() -> impl Strategy<Value = Path> {
    prop_oneof![
        Just(Path::None),
        (ips(), any::<u16>()).prop_map(|(ips, port)| Path::Direct(SocketAddr::new(ips.0, port))),
        any::<u16>().prop_map(Path::Relay),
        (ips(), any::<u16>()).prop_map(|(ips, port)| Path::PeerRelay(SocketAddr::new(ips.0, port))),
    ]
}

fn direction() -> impl Strategy<Value = Direction> {
    prop_oneof![Just(Direction::Outbound), Just(Direction::Inbound)]
}

fn started() -> impl Strategy<Value = Start> {
    let pass = prop_oneof![
        Just(Pass::Opened),
        Just(Pass::Unknown),
        (any::<u32>(), any::<[u8; 8]>()).prop_map(|(rule, filter)| Pass::Rule { rule, filter }),
    ];
    let ends = (ips(), any::<[u16; 2]>());
    (number(), direction(), any::<u8>(), ends, any::<[u8; 32]>(), pass, path()).prop_map(
        |(flow, direction, protocol, (ips, ports), peer, pass, path)| Start {
            flow: Flow(flow),
            direction,
            protocol,
            local: SocketAddr::new(ips.0, ports[0]),
            remote: SocketAddr::new(ips.1, ports[1]),
            peer: NodeKey::from_bytes(peer),
            pass,
            path,
        },
    )
}

fn drops() -> impl Strategy<Value = Drops> {
    let target = (any::<u8>(), ips(), any::<u16>()).prop_map(|(protocol, ips, port)| Target {
        protocol,
        source: ips.0,
        destination: ips.1,
        port,
    });
    let peer = proptest::option::of(any::<[u8; 32]>());
    let reason = (0..DropReason::ALL.len()).prop_map(|at| DropReason::ALL[at]);
    (reason, direction(), peer, proptest::option::of(target), number(), number(), number()).prop_map(
        |(reason, direction, peer, target, packets, bytes, span)| Drops {
            reason,
            direction,
            peer: peer.map(NodeKey::from_bytes),
            target,
            packets,
            bytes,
            span: Duration::from_micros(span),
        },
    )
}

/// Makes any record that can be written.
pub(crate) fn record() -> impl Strategy<Value = Record> {
    let reason = (0..EndReason::ALL.len()).prop_map(|at| EndReason::ALL[at]);
    let event =
        prop_oneof![
            started().prop_map(Event::Start),
            (number(), any_counts(), proptest::option::of(path()))
                .prop_map(|(flow, counts, path)| Event::Update(Update { flow: Flow(flow), counts, path })),
            (number(), any_counts(), reason).prop_map(|(flow, counts, reason)| Event::End(End {
                flow: Flow(flow),
                reason,
                counts
            })),
            drops().prop_map(Event::Drops),
            number().prop_map(|records| Event::Missed { records }),
        ];
    (number(), event).prop_map(|(time, event)| Record { at: Time::from_micros(time), event })
}
