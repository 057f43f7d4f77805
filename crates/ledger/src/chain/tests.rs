//! Each way to tamper with a stream, found and named.

use super::*;
use crate::batch::Writer;
use crate::record::Record;
use crate::testing::{at, counts, end, secret, start, update};
use proptest::prelude::*;

fn writer(epoch: u64, previous: Hash) -> Writer {
    Writer::new(secret(1), at(epoch), previous)
}

fn chain() -> Chain {
    Chain::new(secret(1).public())
}

/// Makes four batches of one conversation each.
fn batches() -> (Writer, Vec<Batch>) {
    let mut writer = writer(0, [0; 32]);
    let batches = (0..4)
        .map(|flow| {
            let records = [start(flow, flow), update(flow, flow + 1, 5), end(flow, flow + 2, 9)];
            writer.seal(&records, at(flow + 3)).unwrap()
        })
        .collect();
    (writer, batches)
}

fn accept_all(chain: &mut Chain, batches: &[Batch]) {
    for batch in batches {
        assert!(matches!(chain.accept(batch), Ok(Accepted::New(_))));
    }
}

#[test]
fn a_whole_chain_is_accepted() {
    let (writer, batches) = batches();
    let mut chain = chain();
    accept_all(&mut chain, &batches);
    let head = Head { epoch: at(0), sequence: 3, next: 12, hash: *writer.previous() };
    assert_eq!((chain.head(), chain.open_flows()), (Some(&head), 0));
}

#[test]
fn a_deleted_batch_is_a_gap() {
    let (_, batches) = batches();
    let mut chain = chain();
    accept_all(&mut chain, &batches[..1]);
    assert_eq!(chain.accept(&batches[3]), Err(Fault::Gap { first: 1, last: 2 }));
    assert_eq!(chain.head().unwrap().sequence, 0, "a refused batch changes nothing");
    accept_all(&mut chain, &batches[1..]);
}

#[test]
fn a_deleted_beginning_is_named() {
    let (_, batches) = batches();
    assert_eq!(chain().accept(&batches[2]), Err(Fault::Headless { sequence: 2 }));
}

#[test]
fn an_altered_batch_is_found() {
    let (_, batches) = batches();
    let mut chain = chain();
    let mut bytes = batches[0].bytes().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    assert_eq!(chain.accept(&Batch::parse(&bytes).unwrap()), Err(Fault::Batch(BatchError::Altered)));
}

/// By somebody who has the node's key, after the collector took the original.
#[test]
fn a_batch_that_was_made_anew_is_a_rewriting() {
    let (_, batches) = batches();
    let mut chain = chain();
    accept_all(&mut chain, &batches);
    let mut second = writer(0, [0; 32]);
    let first = second.seal(&[start(0, 0), end(0, 2, 9)], at(3)).unwrap();
    assert_eq!(chain.accept(&first), Err(Fault::Rewritten { sequence: 0 }));
    // And the rest of the second story, too, as far as it repeats numbers.
    let next = second.seal(&[start(1, 1)], at(4)).unwrap();
    assert_eq!(chain.accept(&next), Err(Fault::Rewritten { sequence: 1 }));
}

/// By somebody who has the node's key, before the collector got it.
#[test]
fn a_batch_inserted_into_the_chain_is_found_at_the_next() {
    let (_, batches) = batches();
    let mut chain = chain();
    accept_all(&mut chain, &batches[..1]);
    let mut forger = writer(0, [0; 32]);
    forger.seal(&[start(0, 0), update(0, 1, 5), end(0, 2, 9)], at(3)).unwrap();
    let inserted = forger.seal(&[start(1, 0), update(1, 1, 5), end(1, 2, 8)], at(9)).unwrap();
    accept_all(&mut chain, &[inserted]);
    assert_eq!(chain.accept(&batches[1]), Err(Fault::Rewritten { sequence: 1 }));
    assert_eq!(chain.accept(&batches[2]), Err(Fault::Forked { sequence: 2 }));
}

#[test]
fn reordered_batches_are_named() {
    let (_, batches) = batches();
    let mut chain = chain();
    accept_all(&mut chain, &batches[..1]);
    assert_eq!(chain.accept(&batches[2]), Err(Fault::Gap { first: 1, last: 1 }));
    chain.resume(&batches[2]).unwrap();
    assert_eq!(chain.accept(&batches[1]), Err(Fault::Reordered { sequence: 1, last: 2 }));
    assert_eq!(chain.resume(&batches[1]), Err(Fault::Reordered { sequence: 1, last: 2 }));
}

#[test]
fn a_batch_sent_again_is_known() {
    let (_, batches) = batches();
    let mut chain = chain();
    accept_all(&mut chain, &batches);
    for batch in &batches {
        assert_eq!(chain.accept(batch), Ok(Accepted::Again));
    }
}

#[test]
fn another_nodes_batch_is_refused() {
    let mut other = Writer::new(secret(2), at(0), [0; 32]);
    let batch = other.seal(&[], at(1)).unwrap();
    assert_eq!(chain().accept(&batch), Err(Fault::OtherKey(secret(2).public())));
}

/// Accepts `before`, then expects `fault` in the first record of a batch of `after`.
fn expect_flow_fault(before: &[Record], after: Record, fault: FlowFault) {
    let mut writer = writer(0, [0; 32]);
    let mut chain = chain();
    accept_all(&mut chain, &[writer.seal(before, at(5)).unwrap()]);
    let (open, head) = (chain.open_flows(), *chain.head().unwrap());
    // What stands before the fault in the batch is taken back.
    let fresh = start(before.len() as u64 + 100, 6);
    let batch = writer.seal(&[fresh, after], at(7)).unwrap();
    let record = before.len() as u64 + 1;
    assert_eq!(chain.accept(&batch), Err(Fault::Flow { record, fault }));
    assert_eq!((chain.open_flows(), *chain.head().unwrap()), (open, head));
}

#[test]
fn lowered_counters_are_named() {
    let lowered = FlowFault::Lowered { flow: Flow(0), before: counts(9), now: counts(8) };
    expect_flow_fault(&[start(0, 0), update(0, 1, 9)], update(0, 2, 8), lowered);
    expect_flow_fault(&[start(0, 0), update(0, 1, 9)], end(0, 2, 8), lowered);
}

#[test]
fn conversations_that_are_not_open_are_named() {
    expect_flow_fault(&[], update(7, 1, 1), FlowFault::NotOpen(Flow(7)));
    expect_flow_fault(&[start(0, 0), end(0, 1, 1)], end(0, 2, 2), FlowFault::NotOpen(Flow(0)));
}

#[test]
fn conversations_begin_in_order() {
    expect_flow_fault(&[start(5, 0)], start(5, 1), FlowFault::OutOfOrder(Flow(5)));
    expect_flow_fault(&[start(5, 0)], start(4, 1), FlowFault::OutOfOrder(Flow(4)));
}

#[test]
fn a_node_cannot_open_conversations_without_end() {
    let mut writer = writer(0, [0; 32]);
    let mut chain = chain();
    let mut flow = 0;
    while flow < OPEN_FLOWS_MAX as u64 {
        let records: Vec<Record> = (flow..flow + 512).map(|flow| start(flow, 0)).collect();
        flow += 512;
        accept_all(&mut chain, &[writer.seal(&records, at(0)).unwrap()]);
    }
    let batch = writer.seal(&[start(flow, 0)], at(0)).unwrap();
    let fault = FlowFault::TooMany(Flow(flow));
    assert_eq!(chain.accept(&batch), Err(Fault::Flow { record: flow, fault }));
}

#[test]
fn a_new_start_continues_the_chain() {
    let (writer_before, batches) = batches();
    let mut chain = chain();
    accept_all(&mut chain, &batches);
    let mut next = writer(1_000, *writer_before.previous());
    let batch = next.seal(&[start(0, 1_001)], at(1_002)).unwrap();
    accept_all(&mut chain, &[batch]);
    assert_eq!((chain.head().unwrap().sequence, chain.open_flows()), (0, 1));
    // The epoch before is over.
    let mut old = writer_before;
    let late = old.seal(&[], at(2_000)).unwrap();
    assert_eq!(chain.accept(&late), Err(Fault::Reordered { sequence: 4, last: 0 }));
}

#[test]
fn a_node_that_forgot_its_chain_is_named_and_can_go_on() {
    let (_, batches) = batches();
    let mut chain = chain();
    accept_all(&mut chain, &batches);
    let mut fresh = writer(1_000, [0; 32]);
    let batch = fresh.seal(&[start(0, 1_001)], at(1_002)).unwrap();
    assert_eq!(chain.accept(&batch), Err(Fault::Restart));
    chain.resume(&batch).unwrap();
    let unknown = fresh.seal(&[update(9, 1_003, 1)], at(1_004)).unwrap();
    let fault = FlowFault::NotOpen(Flow(9));
    assert_eq!(chain.accept(&unknown), Err(Fault::Flow { record: 1, fault }), "all is known since its start");
}

#[test]
fn behind_a_gap_conversations_are_believed_once_and_watched_again() {
    let mut writer = writer(0, [0; 32]);
    let first = writer.seal(&[start(0, 0)], at(1)).unwrap();
    let _lost = writer.seal(&[start(1, 1), start(2, 1)], at(2)).unwrap();
    let third = writer.seal(&[update(1, 3, 5)], at(4)).unwrap();
    let mut chain = chain();
    accept_all(&mut chain, &[first]);
    assert_eq!(chain.accept(&third), Err(Fault::Gap { first: 1, last: 1 }));
    chain.resume(&third).unwrap();
    let lowered = writer.seal(&[update(1, 5, 4)], at(6)).unwrap();
    let fault = FlowFault::Lowered { flow: Flow(1), before: counts(5), now: counts(4) };
    assert_eq!(chain.accept(&lowered), Err(Fault::Flow { record: 4, fault }));
}

proptest! {
    /// Whatever subset of a chain comes in whatever order: only the next batch is taken, and the head never goes back.
    #[test]
    fn only_the_next_batch_is_taken(order in prop::collection::vec(0_usize..4, 0..20)) {
        let (_, batches) = batches();
        let mut chain = chain();
        let mut next = 0;
        for number in order {
            match chain.accept(&batches[number]) {
                Ok(Accepted::New(_)) => {
                    prop_assert_eq!(number, next);
                    next += 1;
                }
                Ok(Accepted::Again) => prop_assert!(number < next),
                Err(Fault::Gap { .. } | Fault::Headless { .. }) => prop_assert!(number > next || next == 0),
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
    }
}
