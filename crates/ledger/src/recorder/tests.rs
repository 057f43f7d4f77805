use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A recorder, its clock, and what it has noted.
struct Bench {
    recorder: Recorder<u8>,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary start, moved by hand from here")]
        let now = Instant::now();
        Self { recorder: Recorder::new(now), now }
    }

    /// Waits, doing on the way what timers ask for.
    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(next) = self.recorder.poll_timeout()
            && next <= until
        {
            self.now = next.max(self.now);
            self.recorder.handle_timeout(self.now);
            assert!(self.recorder.poll_timeout().is_none_or(|next| next > self.now), "a deadline is left over");
        }
        self.now = until;
        self.recorder.begin(self.now);
    }

    fn notes(&mut self) -> Vec<What<u8>> {
        std::iter::from_fn(|| self.recorder.poll_note()).map(|note| note.what).collect()
    }

    fn pass(&mut self, mark: &mut Mark, passed: Passed) {
        if !self.recorder.count(*mark, passed) {
            *mark = self.recorder.open(conversation(), 7, passed);
        }
    }
}

fn conversation() -> Conversation {
    Conversation {
        direction: Direction::Outbound,
        protocol: 6,
        local: "100.64.0.1:50000".parse().unwrap(),
        remote: "100.64.0.2:443".parse().unwrap(),
        rule: None,
        rest: Duration::from_secs(600),
        rest_unanswered: Duration::from_secs(300),
    }
}

fn out(flags: u8) -> Passed {
    Passed { direction: Direction::Outbound, packets: 1, bytes: 100, flags: Some(flags) }
}

fn back(flags: u8) -> Passed {
    Passed { direction: Direction::Inbound, packets: 2, bytes: 3000, flags: Some(flags) }
}

fn counts(tx_packets: u64, rx_packets: u64) -> Counts {
    Counts { tx_packets, tx_bytes: tx_packets * 100, rx_packets, rx_bytes: rx_packets * 1500 }
}

fn start(flow: u64) -> What<u8> {
    What::Start { flow: Flow(flow), conversation: conversation(), peer: 7 }
}

fn update(flow: u64, counts: Counts) -> What<u8> {
    What::Update { flow: Flow(flow), counts, peer: 7 }
}

fn end(flow: u64, reason: EndReason, counts: Counts) -> What<u8> {
    What::End { flow: Flow(flow), reason, counts }
}

#[test]
fn a_connection_is_noted_at_once_while_it_lives_and_when_it_ends() {
    let mut bench = Bench::new();
    let mut mark = Mark::default();
    bench.pass(&mut mark, out(SYN));
    assert_eq!(bench.notes(), [start(0)]);
    bench.pass(&mut mark, back(SYN | ACK));
    bench.pass(&mut mark, out(ACK));
    bench.wait(Duration::from_secs(4));
    assert_eq!(bench.notes(), []);
    bench.wait(Duration::from_secs(2));
    assert_eq!(bench.notes(), [update(0, counts(2, 2))]);
    bench.wait(Duration::from_secs(60));
    assert_eq!(bench.notes(), [], "nothing passes, nothing is noted");
    bench.pass(&mut mark, out(FIN | ACK));
    bench.pass(&mut mark, back(FIN | ACK));
    bench.pass(&mut mark, out(ACK));
    assert_eq!(bench.notes(), []);
    bench.wait(Duration::from_secs(2));
    assert_eq!(bench.notes(), [end(0, EndReason::Closed, counts(4, 4))]);
    bench.pass(&mut mark, back(FIN | ACK));
    bench.wait(Duration::from_secs(10));
    assert_eq!(bench.notes(), [], "the last segment sent again is no new connection");
    bench.pass(&mut mark, out(SYN));
    assert_eq!(bench.notes(), [start(1)], "the same ports again");
}

#[test]
fn a_reset_ends_a_connection() {
    let mut bench = Bench::new();
    let mut mark = Mark::default();
    bench.pass(&mut mark, out(SYN));
    bench.pass(&mut mark, back(RST | ACK));
    bench.wait(Duration::from_secs(2));
    assert_eq!(bench.notes(), [start(0), end(0, EndReason::Closed, counts(1, 2))]);
}

#[test]
fn ports_used_again_before_the_end_was_noted_are_two_connections() {
    let mut bench = Bench::new();
    let mut mark = Mark::default();
    bench.pass(&mut mark, out(SYN));
    bench.pass(&mut mark, back(RST | ACK));
    bench.pass(&mut mark, out(SYN));
    assert_eq!(bench.notes(), [start(0), end(0, EndReason::Replaced, counts(1, 2)), start(1)]);
}

#[test]
fn a_conversation_that_rests_long_enough_is_over_and_begins_anew_after_that() {
    let mut bench = Bench::new();
    let mut mark = Mark::default();
    let passed = Passed { flags: None, ..out(0) };
    bench.pass(&mut mark, passed);
    bench.wait(Duration::from_secs(250));
    bench.pass(&mut mark, passed);
    bench.wait(Duration::from_secs(250));
    assert_eq!(bench.notes(), [start(0), update(0, counts(1, 0)), update(0, counts(2, 0))]);
    bench.wait(Duration::from_secs(52));
    assert_eq!(bench.notes(), [end(0, EndReason::Idle, counts(2, 0))]);
    assert_eq!(bench.recorder.poll_timeout(), None, "idle costs nothing");
    bench.pass(&mut mark, passed);
    assert_eq!(bench.notes(), [start(1)]);
}

#[test]
fn an_answered_conversation_may_rest_longer() {
    let mut bench = Bench::new();
    let mut mark = Mark::default();
    bench.pass(&mut mark, out(SYN));
    bench.pass(&mut mark, back(SYN | ACK));
    bench.wait(Duration::from_secs(590));
    assert_eq!(bench.notes(), [start(0), update(0, counts(1, 2))]);
    bench.wait(Duration::from_secs(12));
    assert_eq!(bench.notes(), [end(0, EndReason::Idle, counts(1, 2))]);
}

#[test]
fn what_the_firewall_forgets_ends() {
    let mut bench = Bench::new();
    let mut mark = Mark::default();
    bench.pass(&mut mark, out(SYN));
    bench.recorder.forget(mark, EndReason::Forgotten);
    bench.recorder.forget(mark, EndReason::Forgotten);
    assert_eq!(bench.notes(), [start(0), end(0, EndReason::Forgotten, counts(1, 0))]);
    assert!(!bench.recorder.count(mark, out(ACK)));
    // Its place serves another, for which the old mark does not stand.
    let mut other = Mark::default();
    bench.pass(&mut other, out(SYN));
    assert!(!bench.recorder.count(mark, out(ACK)) && bench.recorder.count(other, out(ACK)));
}

#[test]
fn while_notes_find_no_room_only_what_comes_and_goes_is_missed_and_that_is_said() {
    let mut bench = Bench::new();
    let mut marks = vec![Mark::default(); NOTES_MAX + 10];
    for mark in &mut marks {
        bench.pass(mark, out(SYN));
    }
    // Of ten there is no note. Three of them end; of one that is noted the end must wait.
    for mark in &marks[NOTES_MAX..NOTES_MAX + 3] {
        bench.recorder.forget(*mark, EndReason::Forgotten);
    }
    bench.recorder.forget(marks[0], EndReason::Forgotten);
    assert_eq!(bench.notes().len(), NOTES_MAX);
    bench.wait(Duration::from_secs(2));
    let notes = bench.notes();
    assert!(notes.contains(&What::Missed { records: 3 }));
    assert!(notes.contains(&end(0, EndReason::Forgotten, counts(1, 0))));
    bench.wait(Duration::from_secs(10));
    let mut notes = bench.notes();
    bench.wait(Duration::from_secs(10));
    notes.extend(bench.notes());
    let starts = notes.iter().filter(|what| matches!(what, What::Start { .. })).count();
    let updates = notes.iter().filter(|what| matches!(what, What::Update { .. })).count();
    assert_eq!((starts, updates), (7, NOTES_MAX + 10 - 4), "made up for");
}

#[test]
fn conversations_beyond_the_bound_are_counted_as_missed() {
    let mut bench = Bench::new();
    let mut opened = 0;
    for _ in 0..CONVERSATIONS_MAX + 5 {
        let mark = bench.recorder.open(conversation(), 7, out(SYN));
        opened += usize::from(mark != Mark::default());
        bench.recorder.notes.clear();
    }
    assert_eq!(opened, CONVERSATIONS_MAX);
    bench.wait(Duration::from_secs(1));
    assert!(bench.notes().contains(&What::Missed { records: 5 }));
}

fn target(port: u16) -> Target {
    Target { protocol: 6, source: [100, 64, 0, 2].into(), destination: [100, 64, 0, 1].into(), port }
}

#[test]
fn dropped_packets_are_summed_up() {
    let mut bench = Bench::new();
    let since = bench.now;
    for port in [25, 25, 110] {
        bench.recorder.drop(DropReason::NoRule, Some(target(port)), || Some(9), back(SYN));
    }
    assert_eq!(bench.notes(), []);
    bench.wait(Duration::from_secs(6));
    let sum = |port, times: u64| What::Drops {
        reason: DropReason::NoRule,
        direction: Direction::Inbound,
        peer: Some(9),
        target: Some(target(port)),
        packets: 2 * times,
        bytes: 3000 * times,
        since,
    };
    assert_eq!(bench.notes(), [sum(25, 2), sum(110, 1)]);
    assert_eq!(bench.recorder.poll_timeout(), None);
}

#[test]
fn a_scan_of_all_ports_is_a_bounded_number_of_notes() {
    let mut bench = Bench::new();
    for port in 0..=u16::MAX {
        bench.recorder.drop(DropReason::NoRule, Some(target(port)), || Some(9), back(SYN));
    }
    bench.wait(Duration::from_secs(6));
    let notes = bench.notes();
    assert_eq!(notes.len(), 257);
    let packets = |what: &What<u8>| if let What::Drops { packets, .. } = what { *packets } else { 0 };
    assert_eq!(notes.iter().map(packets).sum::<u64>(), 2 * 65_536, "all are counted");
}

#[test]
fn a_node_that_stops_ends_all() {
    let mut bench = Bench::new();
    let mut marks = vec![Mark::default(); 3000];
    for mark in &mut marks {
        bench.pass(mark, out(SYN));
    }
    let mut ends = 0;
    loop {
        let is_more = bench.recorder.shut_down(bench.now);
        ends +=
            bench.notes().iter().filter(|what| matches!(what, What::End { reason: EndReason::Shutdown, .. })).count();
        if !is_more {
            break;
        }
    }
    assert_eq!((ends, bench.recorder.conversations()), (3000, 0));
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Pass(usize, bool, u8),
    Forget(usize),
    Wait(u64),
    Take,
}

fn step() -> impl Strategy<Value = Step> {
    let flags = prop_oneof![Just(ACK), Just(SYN), Just(SYN | ACK), Just(FIN | ACK), Just(RST)];
    prop_oneof![
        6 => (0_usize..6, any::<bool>(), flags).prop_map(|(which, is_out, flags)| Step::Pass(which, is_out, flags)),
        1 => (0_usize..6).prop_map(Step::Forget),
        3 => (1_u64..400_000).prop_map(Step::Wait),
        2 => Just(Step::Take),
    ]
}

proptest! {
    /// Whatever happens, and whenever notes are taken: each conversation starts once, in the order of the numbers, its counters
    /// never become less, and it ends once; and in all everything that passed is counted but what comes after a close.
    #[test]
    fn the_notes_of_a_conversation_make_sense(steps in prop::collection::vec(step(), 0..200)) {
        let mut bench = Bench::new();
        let mut marks = [Mark::default(); 6];
        let mut notes = Vec::new();
        for step in steps {
            match step {
                Step::Pass(which, is_out, flags) => bench.pass(&mut marks[which], if is_out { out(flags) } else { back(flags) }),
                Step::Forget(which) => bench.recorder.forget(marks[which], EndReason::Forgotten),
                Step::Wait(millis) => bench.wait(Duration::from_millis(millis)),
                Step::Take => notes.extend(bench.notes()),
            }
        }
        while bench.recorder.shut_down(bench.now) {
            notes.extend(bench.notes());
        }
        notes.extend(bench.notes());
        let mut open: BTreeMap<Flow, Counts> = BTreeMap::new();
        let mut next = 0;
        for what in notes {
            match what {
                What::Start { flow, .. } => {
                    prop_assert_eq!(flow.0, next);
                    next += 1;
                    open.insert(flow, Counts::default());
                }
                What::Update { flow, counts, .. } => {
                    let before = open.insert(flow, counts).expect("it is open");
                    prop_assert!(counts.is_at_least(&before));
                    prop_assert_ne!(counts, before, "an update without news");
                }
                What::End { flow, counts, .. } => {
                    let before = open.remove(&flow).expect("it is open");
                    prop_assert!(counts.is_at_least(&before));
                }
                What::Drops { .. } | What::Missed { .. } => prop_assert!(false),
            }
        }
        prop_assert!(open.is_empty(), "one has no end");
    }
}
