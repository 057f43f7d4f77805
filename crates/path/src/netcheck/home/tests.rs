use super::*;
use crate::testing::epoch;
use proptest::prelude::*;

const A: RegionId = RegionId(1);
const B: RegionId = RegionId(2);

/// A chooser that is told reports one after another, 25 s apart unless told otherwise.
struct Bench {
    chooser: HomeChooser,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self { chooser: HomeChooser::new(5), now: epoch() }
    }

    fn report(&mut self, latencies: &[(RegionId, u64)]) -> Option<RegionId> {
        self.scored(latencies, &[])
    }

    fn scored(&mut self, latencies: &[(RegionId, u64)], scores: &[(RegionId, f64)]) -> Option<RegionId> {
        self.now += Duration::from_secs(1);
        let latencies = latencies.iter().map(|(region, millis)| (*region, Duration::from_millis(*millis)));
        let scores = scores.iter().copied().collect();
        let home = self.chooser.choose(latencies.collect(), &scores, &[A, B], self.now);
        self.now += Duration::from_secs(24);
        home
    }
}

#[test]
fn nearest_region_becomes_the_first_home() {
    assert_eq!(Bench::new().report(&[(A, 30), (B, 20)]), Some(B));
}

#[test]
fn small_gains_do_not_move_the_home() {
    let mut bench = Bench::new();
    assert_eq!(bench.report(&[(A, 20)]), Some(A));
    assert_eq!(bench.report(&[(A, 20), (B, 11)]), Some(A), "less than 10 ms");
    let mut bench = Bench::new();
    assert_eq!(bench.report(&[(A, 100)]), Some(A));
    assert_eq!(bench.report(&[(A, 100), (B, 67)]), Some(A), "less than a third");
    assert_eq!(bench.report(&[(A, 100), (B, 66)]), Some(B));
}

#[test]
fn home_that_is_gone_is_left_unless_its_relay_was_heard() {
    let mut bench = Bench::new();
    assert_eq!(bench.report(&[(A, 20), (B, 50)]), Some(A));
    bench.chooser.hear(A, bench.now);
    assert_eq!(bench.report(&[(B, 50)]), Some(A), "a frame came while it was measured");
    bench.chooser.hear(A, bench.now - Duration::from_secs(7));
    assert_eq!(bench.report(&[(B, 50)]), Some(A), "8 s ago at the end");
    bench.chooser.hear(A, bench.now - Duration::from_secs(8));
    assert_eq!(bench.report(&[(B, 50)]), Some(B));
}

#[test]
fn past_latencies_count_for_five_minutes() {
    let mut bench = Bench::new();
    assert_eq!(bench.report(&[(A, 50), (B, 10)]), Some(B));
    assert_eq!(bench.report(&[(A, 50), (B, 200)]), Some(B), "one bad sample");
    bench.now += HISTORY;
    assert_eq!(bench.report(&[(A, 50), (B, 200)]), Some(A));
}

#[test]
fn score_below_one_favours_a_region() {
    assert_eq!(Bench::new().scored(&[(A, 30), (B, 20)], &[(A, 0.5)]), Some(A));
    assert_eq!(Bench::new().scored(&[(A, 30), (B, 20)], &[(B, f64::MAX)]), Some(A));
}

#[test]
fn without_latencies_the_home_stays_or_is_drawn_by_lot() {
    let mut bench = Bench::new();
    assert_eq!(bench.report(&[]), Some(B), "5 modulo 2");
    assert_eq!(bench.report(&[]), Some(B));
    assert_eq!(bench.report(&[(A, 90)]), Some(A), "a lot is no reason to stay");
    assert_eq!(bench.report(&[]), Some(A));
    bench.chooser.retain(|region| region == B);
    assert_eq!(bench.chooser.home(), None);
    assert_eq!(HomeChooser::new(1).choose(BTreeMap::new(), &BTreeMap::new(), &[], bench.now), None);
}

proptest! {
    /// Two regions at about the same distance never take turns.
    #[test]
    fn noise_does_not_move_the_home(samples in proptest::collection::vec((0_u64..10, 0_u64..10), 2..60), base in 0_u64..300) {
        let mut bench = Bench::new();
        let mut homes: Vec<_> = samples
            .iter()
            .map(|(a, b)| bench.report(&[(A, base + a), (B, base + b)]))
            .collect();
        homes.dedup();
        prop_assert_eq!(homes.len(), 1);
    }
}

/// Peers learn of a home from the server alone.
#[test]
fn home_is_held_while_the_server_does_not_listen() {
    let mut bench = Bench::new();
    bench.chooser.is_held = true;
    assert_eq!(bench.report(&[(A, 100)]), Some(A), "no home at all");
    assert_eq!(bench.report(&[(A, 100), (B, 10)]), Some(A));
    assert_eq!(bench.report(&[(B, 10)]), Some(A));
    bench.chooser.is_held = false;
    assert_eq!(bench.report(&[(A, 100), (B, 10)]), Some(B));
}
