//! What is found is what a look at every record finds, and little else is read.

use super::*;
use crate::batch::{Batch, Writer};
use crate::checkpoint::Verifier;
use crate::record::{Drops, End, EndReason, Flow, Pass, Path, Target, Update};
use crate::store::Store;
use crate::testing::{Memory, at, counts, secret};
use crate::{Counts, DropReason};
use proptest::prelude::*;

fn log() -> Verifier {
    Verifier::new("logs.example.com/family", secret(9).public()).unwrap()
}

/// The node key of a node whose log key is that of `secret(number)`.
fn node(number: u8) -> NodeKey {
    NodeKey::from_bytes([number; 32])
}

fn ip(number: u8) -> IpAddr {
    [100, 64, 0, number].into()
}

fn party(number: u8) -> Party {
    Party { logs: [secret(number).public()].into(), nodes: [node(number)].into() }
}

/// A conversation from one node to a port of another, as the first writes it down.
fn start(from: u8, to: u8, port: u16, flow: u64, micros: u64) -> Record {
    let start = Start {
        flow: Flow(flow),
        direction: Direction::Outbound,
        protocol: if port == 53 { 17 } else { 6 },
        local: (ip(from), 50_000).into(),
        remote: (ip(to), port).into(),
        peer: node(to),
        pass: Pass::Opened,
        path: Path::None,
    };
    Record { at: at(micros), event: Event::Start(start) }
}

fn end(flow: u64, micros: u64, counts: Counts) -> Record {
    Record { at: at(micros), event: Event::End(End { flow: Flow(flow), reason: EndReason::Closed, counts }) }
}

fn denied(from: u8, to: u8, port: u16, micros: u64) -> Record {
    let target = Some(Target { protocol: 6, source: ip(from), destination: ip(to), port });
    let drops = Drops {
        reason: DropReason::NoRule,
        direction: Direction::Inbound,
        peer: Some(node(from)),
        target,
        packets: 3,
        bytes: 180,
        span: Duration::ZERO,
    };
    Record { at: at(micros), event: Event::Drops(drops) }
}

/// A store in which each of the batches is a frame of its own.
fn stored(batches: &[Batch]) -> Store<Memory> {
    let mut store = Store::open(Memory::default(), &log()).unwrap();
    for batch in batches {
        store.append(std::slice::from_ref(batch), at(0)).unwrap();
    }
    store
}

/// Nodes 1 to 8 in turns: each talks to the next one's port 443, and is denied 22 by it.
fn round() -> Store<Memory> {
    let mut writers: Vec<Writer> = (1..=8).map(|number| Writer::new(secret(number), at(0), [0; 32])).collect();
    let mut batches = Vec::new();
    for minute in 0..5 {
        let now = minute * 60_000_000;
        for (from, writer) in (1..=8).zip(&mut writers) {
            let to = from % 8 + 1;
            let records = [
                start(from, to, 443, minute, now),
                end(minute, now + 1_000_000, counts(10 * u64::from(from))),
                denied(to, from, 22, now + 2_000_000),
            ];
            batches.push(writer.seal(&records, at(now + 3_000_000)).unwrap());
        }
    }
    stored(&batches)
}

fn ask(store: &Store<Memory>, query: Query) -> Vec<Found> {
    store.view().query(query).map(Result::unwrap).collect()
}

#[test]
fn everything_is_found_in_its_order() {
    let store = round();
    let found = ask(&store, Query::default());
    assert_eq!(found.len(), 5 * 8 * 3);
    assert!(found.is_sorted_by_key(|found| (found.position, found.number)));
    assert!(found.iter().all(|one| one.start.is_some() == !matches!(one.record.event, Event::Drops(_))));
    assert_eq!(ask(&store, Query { limit: Some(7), ..Query::default() }), found[..7]);
    assert_eq!(ask(&store, Query { position: 39, ..Query::default() }), found[39 * 3..]);
}

#[test]
fn who_talked_to_whom_is_found_with_its_end_and_the_rest_is_not_read() {
    let store = round();
    let query = Query { parties: vec![party(3)], kinds: Kinds::END, ..Query::default() };
    let mut results = store.view().query(query);
    let found: Vec<Found> = results.by_ref().map(Result::unwrap).collect();
    // What 3 wrote, and what 2 wrote of it.
    assert_eq!(found.len(), 10);
    assert!(found.iter().all(|one| [2, 3].map(|number| secret(number).public()).contains(&one.writer)));
    // One that was denied by 3, or denied 3, may have it in its summary, too.
    assert!(results.frames().0 <= 17, "{:?}", results.frames());
    let both = Query { parties: vec![party(3), party(4)], kinds: Kinds::START, ..Query::default() };
    assert!(ask(&store, both).iter().all(|one| one.writer == secret(3).public()));
    let strangers = Query { parties: vec![party(1), party(5)], ..Query::default() };
    assert_eq!(ask(&store, strangers), []);
}

#[test]
fn denied_attempts_are_found_by_port_and_network() {
    let store = round();
    let query = Query { port: Some(22), kinds: Kinds::DENIED, ..Query::default() };
    assert_eq!(ask(&store, query.clone()).len(), 40);
    let query = Query { networks: vec!["100.64.0.2/32".parse().unwrap()], ..query };
    assert_eq!(ask(&store, query.clone()).len(), 10, "2 by 1, and 3 by 2");
    let wide = Query { networks: vec!["100.64.0.0/29".parse().unwrap()], ..query };
    assert_eq!(ask(&store, wide).len(), 40);
    assert_eq!(ask(&store, Query { port: Some(23), ..Query::default() }), []);
    assert_eq!(ask(&store, Query { protocol: Some(17), ..Query::default() }), []);
}

#[test]
fn times_exclude_what_is_before_and_behind() {
    let store = round();
    let since = at(120_000_000);
    let query = Query { since: Some(since), until: Some(at(180_000_000)), ..Query::default() };
    let mut results = store.view().query(query);
    assert_eq!(results.by_ref().count(), 24);
    assert!(results.frames().0 <= 24, "{:?}", results.frames());
    // The end of what began before is known, too.
    let late = Query { since: Some(at(120_500_000)), kinds: Kinds::END, port: Some(443), ..Query::default() };
    assert_eq!(ask(&store, late).len(), 24);
}

/// A daemon that starts anew numbers conversations from 0 again.
#[test]
fn a_conversation_is_not_taken_for_one_of_another_epoch() {
    let mut first = Writer::new(secret(1), at(0), [0; 32]);
    let before = first.seal(&[start(1, 2, 443, 0, 0)], at(0)).unwrap();
    let mut second = Writer::new(secret(1), at(9), before.hash());
    let behind = second.seal(&[start(1, 2, 80, 1, 10), end(0, 11, counts(1)), end(1, 12, counts(1))], at(12)).unwrap();
    let store = stored(&[before, behind]);
    let found = ask(&store, Query { kinds: Kinds::END, ..Query::default() });
    assert_eq!(
        found.iter().map(|one| one.start.map(|began| began.start.remote.port())).collect::<Vec<_>>(),
        [None, Some(80)]
    );
    assert_eq!(ask(&store, Query { kinds: Kinds::END, port: Some(443), ..Query::default() }), []);
}

/// What cannot be read is said, and what is behind it is found.
#[test]
fn a_frame_that_was_changed_hides_no_other() {
    let store = round();
    let memory = store.view().files().clone();
    memory.edit("segment-00000000000000000000", |bytes| {
        let place = bytes.len() / 2;
        bytes[place] ^= 1;
    });
    let (found, errors): (Vec<_>, Vec<_>) = store.view().query(Query::default()).partition(Result::is_ok);
    assert_eq!((found.len(), errors.len()), (39 * 3, 1));
}

/// It is said once, and what is behind it is found.
#[test]
fn what_retention_removes_meanwhile_is_missing() {
    let day = 24 * 3600 * 1_000_000;
    let mut writer = Writer::new(secret(1), at(0), [0; 32]);
    let mut store = Store::open(Memory::default(), &log()).unwrap();
    for number in 0..6 {
        let batch = writer.seal(&[start(1, 2, 443, number, 0)], at(0)).unwrap();
        store.append(&[batch], at(number / 3 * day)).unwrap();
    }
    let view = crate::store::View::open(store.view().files().clone(), &log()).unwrap();
    let mut results = view.query(Query::default());
    assert!(results.next().unwrap().is_ok());
    store.retire(&crate::store::Retention { age: None, bytes: Some(0) }, at(day), &secret(9)).unwrap();
    let (found, errors): (Vec<_>, Vec<_>) = results.partition(Result::is_ok);
    assert_eq!(found.len(), 3);
    assert!(
        matches!(errors[..], [Err(crate::store::StoreError::Missing(ref range))] if *range == (1..3)),
        "{errors:?}"
    );
}

fn any_record() -> impl Strategy<Value = (u8, Record)> {
    let node = 1_u8..5;
    let port = prop_oneof![Just(22_u16), Just(53), Just(443)];
    (node.clone(), node, port, 0_u64..6, 0_u64..7_300, 0_u8..4).prop_map(|(from, to, port, flow, seconds, kind)| {
        let micros = seconds * 1_000_000;
        let record = match kind {
            0 => start(from, to, port, flow, micros),
            1 => end(flow, micros, counts(1)),
            2 => denied(from, to, port, micros),
            _ => {
                let update = Update { flow: Flow(flow), counts: counts(1), path: None };
                Record { at: at(micros), event: Event::Update(update) }
            }
        };
        (from, record)
    })
}

fn any_query() -> impl Strategy<Value = Query> {
    let seconds = || proptest::option::of((0_u64..7_300).prop_map(|seconds| at(seconds * 1_000_000)));
    let parties = prop::collection::vec((1_u8..5).prop_map(party), 0..3);
    let network = prop_oneof![Just("100.64.0.2/32"), Just("100.64.0.0/30"), Just("100.64.0.9/32")];
    let networks = prop::collection::vec(network.prop_map(|network| network.parse().unwrap()), 0..2);
    let port = proptest::option::of(prop_oneof![Just(22_u16), Just(443), Just(80)]);
    let protocol = proptest::option::of(prop_oneof![Just(6_u8), Just(17)]);
    (seconds(), seconds(), 0_u8..32, parties, protocol, port, networks).prop_map(
        |(since, until, kinds, parties, protocol, port, networks)| Query {
            position: 0,
            since,
            until,
            kinds: Kinds::from_bits(kinds),
            parties,
            protocol,
            port,
            networks,
            limit: None,
        },
    )
}

proptest! {
    /// Summaries hide nothing: what is found is what is found by looking at every record, if the beginnings of
    /// conversations are known in both (they are within the time looked back).
    #[test]
    fn what_is_passed_over_has_nothing(records in prop::collection::vec(any_record(), 1..60), query in any_query()) {
        let mut records = records;
        records.sort_by_key(|(_, record)| record.at);
        // Numbered as a node does it.
        let mut next = [0; 5];
        for (from, record) in &mut records {
            let next = &mut next[usize::from(*from)];
            match &mut record.event {
                Event::Start(start) => {
                    start.flow = Flow(*next);
                    *next += 1;
                }
                Event::Update(Update { flow, .. }) | Event::End(End { flow, .. }) => flow.0 %= (*next).max(1),
                Event::Drops(_) | Event::Missed { .. } => {}
            }
        }
        let mut writers: Vec<Writer> = (0..5).map(|number| Writer::new(secret(number), at(0), [0; 32])).collect();
        let mut batches = Vec::new();
        for (from, record) in &records {
            batches.push(writers[usize::from(*from)].seal(std::slice::from_ref(record), record.at).unwrap());
        }
        let store = stored(&batches);
        let found: Vec<(LogKey, Record)> =
            ask(&store, query.clone()).iter().map(|found| (found.writer, found.record)).collect();
        let mut open = std::collections::BTreeMap::new();
        let mut expected = Vec::new();
        for (from, record) in &records {
            let writer = secret(*from).public();
            let start = match &record.event {
                Event::Start(start) => {
                    open.insert((*from, start.flow), (record.at, *start));
                    Some((record.at, *start))
                }
                Event::Update(update) => open.get(&(*from, update.flow)).copied(),
                Event::End(end) => open.remove(&(*from, end.flow)),
                Event::Drops(_) | Event::Missed { .. } => None,
            };
            // Only what began within the time looked back is known for sure.
            let since = query.since.unwrap_or_default();
            let is_known = start.is_none_or(|(began, _)| began.after(LOOKBACK) >= since && query.until.is_none_or(|until| began < until));
            if query.holds(&writer, record, start.as_ref().map(|(_, start)| start)) {
                expected.push((is_known, (writer, *record)));
            }
        }
        let must: Vec<_> = expected.iter().filter(|(is_known, _)| *is_known).map(|(_, one)| *one).collect();
        let may: Vec<_> = expected.iter().map(|(_, one)| *one).collect();
        prop_assert!(must.iter().all(|one| found.contains(one)), "{found:?} lacks one of {must:?}");
        prop_assert!(found.iter().all(|one| may.contains(one)), "{found:?} has more than {may:?}");
    }
}
