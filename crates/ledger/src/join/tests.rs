use super::*;
use crate::record::{End, EndReason, Pass, Path, Update};
use proptest::prelude::*;

const ALPHA: NodeKey = NodeKey::from_bytes([1; 32]);
const BETA: NodeKey = NodeKey::from_bytes([2; 32]);
const OFFICIAL: NodeKey = NodeKey::from_bytes([3; 32]);

/// Port 23 is allowed by nothing.
struct Rules;

impl Tailnet for Rules {
    fn writes(&self, node: &NodeKey) -> bool {
        *node != OFFICIAL
    }

    fn allows(&self, conversation: &Ends, _: Time) -> bool {
        conversation.to.port() != 23
    }
}

fn at(seconds: u64) -> Time {
    Time::from_micros(1_795_000_000_000_000 + seconds * 1_000_000)
}

fn counts(tx_packets: u64, rx_packets: u64) -> Counts {
    Counts { tx_packets, tx_bytes: 0, rx_packets, rx_bytes: 0 }
}

fn ends(to: NodeKey, port: u16) -> Ends {
    Ends {
        from_node: ALPHA,
        to_node: to,
        protocol: 6,
        from: ([100, 64, 0, 1], 5000).into(),
        to: ([100, 64, 0, 2], port).into(),
    }
}

/// Alpha's record of a conversation that it begins, or the other's of the same.
fn start(node: NodeKey, ends: Ends, flow: u64, seconds: u64) -> Record {
    let is_from = node == ends.from_node;
    let (local, remote) = if is_from { (ends.from, ends.to) } else { (ends.to, ends.from) };
    let start = Start {
        flow: Flow(flow),
        direction: if is_from { Direction::Outbound } else { Direction::Inbound },
        protocol: ends.protocol,
        local,
        remote,
        peer: ends.other(&node),
        pass: Pass::Unknown,
        path: Path::None,
    };
    Record { at: at(seconds), event: Event::Start(start) }
}

fn end(flow: u64, counts: Counts) -> Record {
    Record { at: at(0), event: Event::End(End { flow: Flow(flow), reason: EndReason::Closed, counts }) }
}

#[derive(Default)]
struct Bench {
    join: Join,
    now: u64,
}

impl Bench {
    fn record(&mut self, node: NodeKey, record: &Record) {
        self.join.handle_record(node, record, at(self.now), &Rules);
    }

    /// Waits; the nodes that are named go on writing.
    fn wait(&mut self, seconds: u64, writing: &[NodeKey]) {
        for _ in 0..seconds {
            self.now += 1;
            writing.iter().for_each(|node| self.join.handle_batch(*node, at(self.now), at(self.now)));
            self.join.handle_timeout(at(self.now), &Rules);
        }
    }

    fn found(&mut self) -> Vec<Mismatch> {
        std::iter::from_fn(|| self.join.poll_mismatch()).collect()
    }
}

#[test]
fn entries_that_agree_leave_nothing() {
    for beta_first in [false, true] {
        let mut bench = Bench::default();
        let mut records = vec![(ALPHA, start(ALPHA, ends(BETA, 80), 0, 0)), (BETA, start(BETA, ends(BETA, 80), 7, 1))];
        if beta_first {
            records.reverse();
        }
        records.extend([(ALPHA, end(0, counts(10, 8))), (BETA, end(7, counts(8, 10)))]);
        records.iter().for_each(|(node, record)| bench.record(*node, record));
        assert_eq!((bench.found(), bench.join.pending()), (vec![], 0));
        bench.wait(200, &[ALPHA, BETA]);
        assert_eq!((bench.found(), bench.join.poll_timeout()), (vec![], None));
    }
}

#[test]
fn an_end_that_leaves_a_conversation_out_is_named() {
    let mut bench = Bench::default();
    bench.record(ALPHA, &start(ALPHA, ends(BETA, 80), 0, 0));
    bench.record(ALPHA, &update(0, 1, counts(1, 1)));
    bench.wait(40, &[ALPHA, BETA]);
    let entry = |counts, counted| Entry {
        flow: Flow(0),
        began: at(0),
        counts,
        counted: at(counted),
        is_over: false,
        is_final: false,
    };
    assert_eq!(bench.found(), [Mismatch::Silent { node: BETA, ends: ends(BETA, 80), entry: entry(counts(1, 1), 1) }]);
    // And the one that began it, too.
    let mut bench = Bench::default();
    bench.record(BETA, &start(BETA, ends(BETA, 80), 0, 0));
    bench.wait(40, &[ALPHA, BETA]);
    let entry = entry(Counts::default(), 0);
    assert_eq!(bench.found(), [Mismatch::Silent { node: ALPHA, ends: ends(BETA, 80), entry }]);
    // What comes late after all accuses nobody.
    bench.record(ALPHA, &start(ALPHA, ends(BETA, 80), 0, 0));
    bench.wait(4000, &[ALPHA, BETA]);
    assert_eq!(bench.found(), []);
}

#[test]
fn a_logger_that_is_switched_off_is_named_once() {
    let mut bench = Bench::default();
    bench.wait(5, &[ALPHA, BETA]);
    for flow in 0..3 {
        bench.record(ALPHA, &start(ALPHA, ends(BETA, 80 + u16::try_from(flow).unwrap()), flow, 5));
        bench.record(ALPHA, &update(flow, 6, counts(1, 1)));
    }
    bench.wait(300, &[ALPHA]);
    let found = bench.found();
    assert!(matches!(found[..], [Mismatch::StreamSilent { node: BETA, since: Some(since), .. }] if since == at(5)));
}

#[test]
fn a_node_that_is_behind_is_not_accused() {
    let mut bench = Bench::default();
    bench.record(ALPHA, &start(ALPHA, ends(BETA, 80), 0, 0));
    bench.record(ALPHA, &update(0, 1, counts(1, 1)));
    // Beta sends what it wrote before, as fast as it can.
    for seconds in 0..50 {
        bench.join.handle_batch(BETA, at(0), at(seconds));
        bench.wait(1, &[ALPHA]);
    }
    bench.record(BETA, &start(BETA, ends(BETA, 80), 0, 0));
    bench.wait(100, &[ALPHA, BETA]);
    assert_eq!(bench.found(), []);
}

#[test]
fn counts_that_loss_does_not_explain_are_named() {
    let cases = [
        ((1000, 500), (500, 950), true),
        ((1000, 500), (500, 700), false),
        ((1000, 500), (500, 1200), false),
        ((1000, 500), (900, 1000), false),
        ((10, 500), (500, 0), true),
    ];
    for (from, to, agrees) in cases {
        let mut bench = Bench::default();
        bench.record(ALPHA, &start(ALPHA, ends(BETA, 80), 0, 0));
        bench.record(BETA, &start(BETA, ends(BETA, 80), 0, 0));
        bench.record(BETA, &end(0, counts(to.0, to.1)));
        bench.record(ALPHA, &end(0, counts(from.0, from.1)));
        let found = bench.found();
        assert_eq!(found.is_empty(), agrees, "{from:?} {to:?}");
        assert!(found.iter().all(|one| matches!(one, Mismatch::CountsApart { .. })));
    }
}

fn update(flow: u64, seconds: u64, counts: Counts) -> Record {
    Record { at: at(seconds), event: Event::Update(Update { flow: Flow(flow), counts, path: None }) }
}

/// The same number of packets, and half of their bytes.
#[test]
fn bytes_that_do_not_add_up_are_named() {
    let counts = |tx_bytes, rx_bytes| Counts { tx_packets: 1000, tx_bytes, rx_packets: 1000, rx_bytes };
    for (from, to, agrees) in [
        (1_000_000, 1_000_000, true),
        (1_000_000, 950_000, true),
        (1_000_000, 500_000, false),
        (500_000, 1_000_000, false),
    ] {
        let mut bench = Bench::default();
        bench.record(ALPHA, &start(ALPHA, ends(BETA, 80), 0, 0));
        bench.record(BETA, &start(BETA, ends(BETA, 80), 0, 0));
        bench.record(ALPHA, &end(0, counts(from, 0)));
        bench.record(BETA, &end(0, counts(0, to)));
        assert_eq!(bench.found().is_empty(), agrees, "{from} {to}");
    }
}

/// A conversation that never ends is compared, too; once.
#[test]
fn counts_of_a_conversation_that_goes_on_are_compared() {
    for (alpha, beta, agrees) in [
        // Beta received what alpha had not sent later.
        ((60, 100), (50, 1000), false),
        ((60, 1000), (50, 100), true),
        // Alpha sent what beta had not received later.
        ((50, 1000), (60, 100), false),
        ((50, 1000), (60, 900), true),
        // At the same time nothing can be said.
        ((50, 1000), (51, 0), true),
    ] {
        let mut bench = Bench::default();
        bench.record(ALPHA, &start(ALPHA, ends(BETA, 80), 0, 0));
        bench.record(BETA, &start(BETA, ends(BETA, 80), 0, 0));
        bench.record(ALPHA, &update(0, alpha.0, counts(alpha.1, 0)));
        bench.record(BETA, &update(0, beta.0, counts(0, beta.1)));
        bench.record(BETA, &update(0, beta.0, counts(0, beta.1)));
        assert_eq!(bench.found().len(), usize::from(!agrees), "{alpha:?} {beta:?}");
    }
}

/// Alpha tried for half a minute until beta was there; and a clock that is wrong, without that.
#[test]
fn counts_are_not_compared_by_when_one_end_alone_began() {
    for (began, alpha, beta) in
        [(30, (50, 100), (70, 1000)), (3600, (20, 1000), (3622, 100)), (3600, (40, 100), (3622, 1000))]
    {
        let mut bench = Bench::default();
        bench.record(ALPHA, &start(ALPHA, ends(BETA, 80), 0, 0));
        bench.record(BETA, &start(BETA, ends(BETA, 80), 0, began));
        bench.record(ALPHA, &update(0, alpha.0, counts(alpha.1, 0)));
        bench.record(BETA, &update(0, beta.0, counts(0, beta.1)));
        let found = bench.found();
        let is_apart = matches!(found[..], [Mismatch::ClocksApart { .. }]);
        assert!(if began > 3000 { is_apart } else { found.is_empty() }, "{began}: {found:?}");
    }
}

/// Its last counts are of long before: it is not accused of what came later.
#[test]
fn a_node_that_was_cut_off_is_not_accused_of_what_it_could_not_write() {
    let mut bench = Bench::default();
    bench.record(ALPHA, &start(ALPHA, ends(BETA, 80), 0, 0));
    bench.record(BETA, &start(BETA, ends(BETA, 80), 0, 0));
    bench.record(BETA, &update(0, 10, counts(0, 100)));
    bench.join.handle_restart(BETA, &Rules);
    let record = end(0, counts(100_000, 0));
    bench.record(ALPHA, &Record { at: at(600), ..record });
    assert_eq!((bench.found(), bench.join.pending()), (vec![], 0));
}

/// It goes on sending, but nothing that happened.
#[test]
fn a_node_whose_log_stands_still_is_named_once() {
    for step in [0, 1] {
        let mut bench = Bench::default();
        bench.wait(5, &[ALPHA, BETA]);
        for flow in 0..3 {
            bench.record(ALPHA, &start(ALPHA, ends(BETA, 80 + u16::try_from(flow).unwrap()), flow, 5));
            bench.record(ALPHA, &update(flow, 6, counts(1, 1)));
        }
        for second in 0..2400 {
            // Not at all, or by a second in ten minutes.
            bench.join.handle_batch(BETA, at(5 + step * second / 600), at(bench.now));
            bench.wait(1, &[ALPHA]);
        }
        let found = bench.found();
        assert!(matches!(found[..], [Mismatch::Behind { node: BETA, .. }]), "{found:?}");
    }
}

/// Hours of a spool are sent within minutes.
#[test]
fn a_node_that_catches_up_is_not_accused() {
    let mut bench = Bench::default();
    bench.wait(5, &[ALPHA, BETA]);
    bench.now = 7200;
    bench.record(ALPHA, &start(ALPHA, ends(BETA, 80), 0, 7200));
    bench.record(ALPHA, &update(0, 7201, counts(1, 1)));
    for second in 0..600 {
        bench.join.handle_batch(BETA, at(12 * second), at(bench.now));
        bench.wait(1, &[ALPHA]);
    }
    bench.record(BETA, &start(BETA, ends(BETA, 80), 0, 7200));
    bench.wait(300, &[ALPHA, BETA]);
    assert_eq!(bench.found(), []);
}

/// One that writes down what never was, as much as it can, pushes out its own alone.
#[test]
fn nobody_pushes_out_what_others_wrote() {
    let mut bench = Bench::default();
    bench.join.room = 10;
    for flow in 0..3 {
        bench.record(ALPHA, &start(ALPHA, ends(BETA, 80 + u16::try_from(flow).unwrap()), flow, 0));
    }
    for flow in 0..100 {
        bench.record(OFFICIAL, &start(OFFICIAL, ends(OFFICIAL, 1000 + u16::try_from(flow).unwrap()), flow, 0));
    }
    assert_eq!((bench.join.pending(), bench.join.unjoined()), (10, (0, 93)));
    // Beta's entries still find alpha's, and agree.
    for flow in 0..3 {
        bench.record(BETA, &start(BETA, ends(BETA, 80 + u16::try_from(flow).unwrap()), flow, 0));
        bench.record(ALPHA, &end(flow, counts(1, 1)));
        bench.record(BETA, &end(flow, counts(1, 1)));
    }
    assert_eq!((bench.found(), bench.join.pending()), (vec![], 7));
}

/// Who begins cannot be later; the other end may, by as long as it is tried.
#[test]
fn clocks_that_are_apart_are_named() {
    for (alpha, beta, is_apart) in [(30, 0, true), (4, 0, false), (0, 30, false), (0, 200, true)] {
        let mut bench = Bench::default();
        bench.record(ALPHA, &start(ALPHA, ends(BETA, 80), 0, alpha));
        bench.record(BETA, &start(BETA, ends(BETA, 80), 0, beta));
        let found = bench.found();
        assert_eq!(matches!(found[..], [Mismatch::ClocksApart { .. }]), is_apart, "{alpha} {beta}: {found:?}");
    }
}

#[test]
fn what_no_policy_allowed_is_named_by_both_ends() {
    let mut bench = Bench::default();
    bench.record(ALPHA, &start(ALPHA, ends(BETA, 23), 0, 0));
    bench.record(BETA, &start(BETA, ends(BETA, 23), 0, 0));
    let nodes: Vec<NodeKey> = bench
        .found()
        .iter()
        .map(|one| if let Mismatch::NotAllowed { node, .. } = one { *node } else { panic!("{one:?}") })
        .collect();
    assert_eq!(nodes, [ALPHA, BETA]);
}

/// It was away, or its filter let nothing in.
#[test]
fn one_that_never_answered_is_not_accused() {
    let mut bench = Bench::default();
    bench.record(ALPHA, &start(ALPHA, ends(BETA, 80), 0, 0));
    bench.wait(200, &[ALPHA, BETA]);
    assert_eq!((bench.found(), bench.join.pending()), (vec![], 1));
    bench.record(ALPHA, &end(0, counts(10, 0)));
    bench.wait(40, &[ALPHA, BETA]);
    assert_eq!((bench.found(), bench.join.unjoined(), bench.join.pending()), (vec![], (1, 0), 0));
    // It answers late after all: what it writes of that is waited for from then on.
    bench.record(ALPHA, &start(ALPHA, ends(BETA, 80), 1, 240));
    bench.wait(104, &[ALPHA, BETA]);
    bench.record(ALPHA, &update(1, 344, counts(10, 1)));
    bench.wait(14, &[ALPHA, BETA]);
    assert_eq!(bench.found(), []);
    bench.wait(40, &[ALPHA, BETA]);
    assert!(matches!(bench.found()[..], [Mismatch::Silent { node: BETA, .. }]));
}

#[test]
fn one_that_writes_nothing_is_not_accused() {
    let mut bench = Bench::default();
    bench.record(ALPHA, &start(ALPHA, ends(OFFICIAL, 80), 0, 0));
    bench.wait(100, &[ALPHA]);
    bench.record(ALPHA, &end(0, counts(10, 10)));
    assert_eq!((bench.found(), bench.join.unjoined(), bench.join.pending()), (vec![], (1, 0), 0));
}

#[test]
fn ports_used_again_are_two_conversations() {
    let mut bench = Bench::default();
    for flow in 0..2 {
        bench.record(ALPHA, &start(ALPHA, ends(BETA, 80), flow, 0));
        bench.record(BETA, &start(BETA, ends(BETA, 80), flow, 0));
    }
    assert_eq!(bench.join.pending(), 2);
    for flow in 0..2 {
        bench.record(ALPHA, &end(flow, counts(10 + flow, 10)));
        bench.record(BETA, &end(flow, counts(10, 10 + flow)));
    }
    assert_eq!((bench.found(), bench.join.pending()), (vec![], 0));
}

#[test]
fn a_restart_ends_what_was_open() {
    let mut bench = Bench::default();
    bench.record(ALPHA, &start(ALPHA, ends(BETA, 80), 0, 0));
    bench.record(BETA, &start(BETA, ends(BETA, 80), 0, 0));
    let update = Update { flow: Flow(0), counts: counts(10, 10), path: None };
    bench.record(BETA, &Record { at: at(1), event: Event::Update(update) });
    bench.join.handle_restart(BETA, &Rules);
    bench.record(ALPHA, &end(0, counts(12, 10)));
    assert_eq!((bench.found(), bench.join.pending()), (vec![], 0));
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Start(bool, u16, u64),
    Update(bool, u64, u64),
    End(bool, u64, u64),
    Restart(bool),
    Wait(u64, bool, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<bool>(), 20_u16..26, 0_u64..8).prop_map(|(alpha, port, flow)| Step::Start(alpha, port, flow)),
        2 => (any::<bool>(), 0_u64..8, 0_u64..500).prop_map(|(alpha, flow, packets)| Step::Update(alpha, flow, packets)),
        3 => (any::<bool>(), 0_u64..8, 0_u64..500).prop_map(|(alpha, flow, packets)| Step::End(alpha, flow, packets)),
        1 => any::<bool>().prop_map(Step::Restart),
        2 => (1_u64..100, any::<bool>(), any::<bool>()).prop_map(|(wait, alpha, beta)| Step::Wait(wait, alpha, beta)),
    ]
}

proptest! {
    /// Whatever nodes write, sensible or not: what is remembered fits together, and nothing is left that nobody waits for.
    #[test]
    fn any_records_leave_it_sound(steps in prop::collection::vec(step(), 0..120)) {
        let node = |is_alpha| if is_alpha { ALPHA } else { BETA };
        let mut bench = Bench::default();
        for step in steps {
            match step {
                Step::Start(alpha, port, flow) => bench.record(node(alpha), &start(node(alpha), ends(BETA, port), flow, bench.now)),
                Step::Update(alpha, flow, packets) => {
                    let update = Update { flow: Flow(flow), counts: counts(packets, packets), path: None };
                    bench.record(node(alpha), &Record { at: at(0), event: Event::Update(update) });
                }
                Step::End(alpha, flow, packets) => bench.record(node(alpha), &end(flow, counts(packets, packets))),
                Step::Restart(alpha) => bench.join.handle_restart(node(alpha), &Rules),
                Step::Wait(seconds, alpha, beta) => {
                    let writing: Vec<NodeKey> = [(ALPHA, alpha), (BETA, beta)].into_iter().filter(|(_, is)| *is).map(|(node, _)| node).collect();
                    bench.wait(seconds, &writing);
                }
            }
            let join = &bench.join;
            for (due, id) in &join.due {
                prop_assert_eq!(join.pending.get(id).map(|pending| pending.due), Some(*due));
            }
            for (ends, id) in &join.by_ends {
                prop_assert_eq!(join.pending.get(id).map(|pending| pending.ends), Some(*ends));
            }
            let held: usize = join.held.values().map(BTreeSet::len).sum();
            prop_assert_eq!((held, join.most_held.len()), (join.pending.len(), join.held.len()));
            for ((node, flow), id) in &join.by_flow {
                let pending = join.pending.get(id).expect("it is pending");
                let side = usize::from(pending.ends.from_node != *node);
                prop_assert_eq!(pending.entries[side].map(|entry| entry.flow), Some(*flow));
            }
        }
        bench.wait(4000, &[ALPHA, BETA]);
        let is_settled = |pending: &Pending| match pending.entries {
            [Some(_), Some(_)] => true,
            // Nobody has answered, and it goes on.
            [Some(entry), None] => entry.counts.rx_packets == 0 && !entry.is_over,
            [None, _] => false,
        };
        prop_assert!(bench.join.pending.values().all(is_settled), "one waits for ever");
        bench.join.handle_restart(ALPHA, &Rules);
        bench.join.handle_restart(BETA, &Rules);
        bench.wait(40, &[ALPHA, BETA]);
        prop_assert_eq!(bench.join.by_flow.len(), 0);
        prop_assert_eq!(bench.join.pending(), 0);
    }
}
