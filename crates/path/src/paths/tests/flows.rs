//! Flows whose path breaks, and how soon they go on.

use super::*;

/// A dead path costs an established flow no more than some hundred milliseconds, though it would be trusted for seconds.
#[test]
fn flow_on_a_path_that_is_cut_goes_on_over_the_relay_within_half_a_second() {
    for (seed, warm) in (0..10).zip([4_u64, 15, 31, 62].into_iter().cycle()) {
        let mut internet = Internet::pair([Nat::Easy, Nat::Easy], seed);
        internet.talk(warm);
        let tick = Duration::from_millis(10);
        let flow = |internet: &mut Internet, ticks: u32| {
            (0..ticks)
                .map(|_| {
                    let numbers = [internet.send_data(0), internet.send_data(1)];
                    internet.run(tick);
                    numbers
                })
                .collect::<Vec<_>>()
        };
        flow(&mut internet, 100);
        internet.is_cut = true;
        let sent = flow(&mut internet, 200);
        internet.run(SECOND);
        for node in [0, 1] {
            let lost =
                sent.iter().filter(|numbers| !internet.nodes[1 - node].received.contains(&numbers[node])).count();
            assert!(lost < 50, "{lost} packets of 10 ms lost");
        }
        internet.is_cut = false;
        internet.talk(10);
        assert!(internet.is_direct(0) && internet.is_direct(1));
    }
}

/// A relay can repeat what it carries: that makes a silent path doubtful once in three seconds at most.
#[test]
fn repeated_calls_and_relayed_pings_do_not_amplify() {
    let mut bench = Bench::new();
    bench.paths.handle_activity(&node(PEER), bench.now);
    bench.answer(PEER, "203.0.113.2:41641");
    bench.advance(SECOND);
    bench.take_sent();
    let call = Message::CallMeMaybe(vec![address("203.0.113.2:41641")]);
    let mut sent = 0;
    for _ in 0..200 {
        bench.relayed(PEER, &ping(1, None));
        bench.relayed(PEER, &call);
        bench.advance(Duration::from_millis(10));
        let to_udp =
            |(to, message): &(Destination, Message)| matches!((to, message), (Destination::Udp(_), Message::Ping(_)));
        sent += bench.take_sent().iter().filter(|sent| to_udp(sent)).count();
    }
    assert!(sent <= 200, "{sent} pings for 400 messages: at most one for each call");
}

#[test]
fn one_way_flow_is_watched_at_the_pace_of_the_heartbeat() {
    let mut internet = Internet::pair([Nat::None, Nat::None], 1);
    for _ in 0..300 {
        internet.send_data(0);
        internet.run(Duration::from_millis(100));
    }
    let before = internet.nodes[0].sent_udp;
    for _ in 0..300 {
        internet.send_data(0);
        internet.run(Duration::from_millis(100));
    }
    assert!(internet.nodes[0].sent_udp - before < 25, "{}", internet.nodes[0].sent_udp - before);
}

/// The second address answers now and then, and takes over within a round trip when the best is silent.
#[test]
fn second_path_is_kept_warm_and_takes_over() {
    let (near, far) = ("10.0.0.2:41641", "203.0.113.2:41641");
    let mut bench = Bench::new();
    let config = PeerConfig { endpoints: vec![address(near), address(far)], ..config(PEER) };
    bench.paths.set_peer(node(PEER), &config, bench.now);
    let mut far_pings = 0;
    let mut near_lives = true;
    let mut taken = None;
    for tick in 0..800_u32 {
        if tick == 600 {
            near_lives = false;
        }
        bench.paths.handle_activity(&node(PEER), bench.now);
        for (to, message) in bench.take_sent() {
            let (Destination::Udp(to), Message::Ping(ping)) = (to, message) else { continue };
            far_pings += usize::from(to == address(far) && near_lives);
            if to == address(far) || near_lives {
                bench.udp(PEER, &to.to_string(), &pong(ping.id));
            }
        }
        if !near_lives && taken.is_none() && bench.direct(PEER) == Some(address(far)) {
            taken = Some(tick - 600);
        }
        bench.advance(Duration::from_millis(100));
    }
    assert!((3..20).contains(&far_pings), "{far_pings}");
    assert!(taken.is_some_and(|ticks| ticks <= 36), "one heartbeat and half a second, not {taken:?}");
    let status = bench.paths.status(&node(PEER)).unwrap();
    assert!(status.history.iter().any(|decision| decision.reason == Reason::Doubted));
}

/// Lets packets flow both ways for a while, one each 10 ms.
fn flow(internet: &mut Internet, time: Duration) {
    let end = internet.now + time;
    while internet.now < end {
        internet.send_data(0);
        internet.send_data(1);
        internet.run(Duration::from_millis(10));
    }
}

/// Forgets the gaps so far.
fn begin_gaps(internet: &mut Internet) {
    for node in &mut internet.nodes {
        node.longest_gap = Duration::ZERO;
    }
}

/// TCP repeats a packet 0.2 s and 0.6 s after it was lost, and then 1.4 s: with a way before the second time no connection
/// stands still for a second. Of that, the relay's connection takes 0.35 s here.
const GAP: Duration = Duration::from_millis(800);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A NAT forgets all and has another address, again and again, perhaps the one before: the flow goes on within a second,
    /// and straight within three.
    #[test]
    fn nat_reboot_stops_a_flow_for_less_than_a_second(
        nats in [prop_oneof![Just(Nat::None), Just(Nat::Easy)], prop_oneof![Just(Nat::None), Just(Nat::Easy)]],
        seed: u8, latency in 1_u64..40, loss in 0_u32..20, pauses in proptest::collection::vec(3_000_u64..9_000, 2..5),
    ) {
        let mut internet = Internet::pair(nats, seed);
        (internet.latency, internet.loss) = (Duration::from_millis(latency), loss);
        internet.talk(12);
        flow(&mut internet, SECOND * 5);
        prop_assert!(internet.is_direct(0) && internet.is_direct(1));
        for (run, pause) in pauses.into_iter().enumerate() {
            begin_gaps(&mut internet);
            internet.reboot_nat(0, if run % 2 == 0 { 9 } else { 1 });
            flow(&mut internet, SECOND * 3);
            for node in &internet.nodes {
                prop_assert!(node.longest_gap < GAP, "{:?} at node {}, run {run}", node.longest_gap, node.number());
            }
            if loss == 0 {
                prop_assert!(internet.is_direct(0) && internet.is_direct(1), "run {run}");
            }
            flow(&mut internet, Duration::from_millis(pause));
        }
    }

    /// The same when the machine itself has another address, which it notices, perhaps before it has a way out.
    #[test]
    fn new_address_stops_a_flow_for_less_than_a_second(
        nats in [prop_oneof![Just(Nat::None), Just(Nat::Easy)], prop_oneof![Just(Nat::None), Just(Nat::Easy)]],
        seed: u8, latency in 1_u64..40, away in 0_u64..400,
    ) {
        let mut internet = Internet::pair(nats, seed);
        internet.latency = Duration::from_millis(latency);
        internet.talk(12);
        flow(&mut internet, SECOND * 5);
        for run in 0..3 {
            begin_gaps(&mut internet);
            internet.reboot_nat(0, if run % 2 == 0 { 9 } else { 1 });
            internet.with(0, |paths, _, now| paths.handle_rebind(now));
            // No route yet: nothing passes.
            internet.is_cut = true;
            flow(&mut internet, Duration::from_millis(away));
            internet.is_cut = false;
            internet.with(0, |paths, _, now| paths.handle_link_gained(now));
            flow(&mut internet, SECOND * 3);
            for node in &internet.nodes {
                prop_assert!(node.longest_gap < GAP, "{:?} at node {}, run {run}", node.longest_gap, node.number());
            }
            prop_assert!(internet.is_direct(0) && internet.is_direct(1), "run {run}");
            flow(&mut internet, SECOND * 5);
        }
    }
}

/// The worst moment: a heartbeat's pong is lost with the path, data came after the ping.
#[test]
fn path_that_dies_after_a_lost_pong_is_doubted_at_once() {
    let latency = Duration::from_millis(80);
    for heard in [0_u64, 50, 250, 300, 350] {
        let start = epoch();
        let at = |millis| start + Duration::from_millis(millis);
        let mut watch = watch::Watch::default();
        watch.note_ping(start);
        watch.note_sent(at(heard));
        let mut doubted = None;
        for millis in 0..3_000 {
            if millis % 100 == 0 && millis <= heard {
                watch.note_data(at(millis));
            }
            if millis % 100 == 10 {
                watch.note_sent(at(millis));
            }
            if watch.act(latency, at(millis)) == watch::Act::Doubt {
                doubted = Some(millis);
                break;
            }
        }
        // The last data, the next packet, the time that it may be unanswered, and that of a pong.
        assert!(doubted.is_some_and(|at| at <= heard + 100 + 10 + 150 + 290 + 290), "{doubted:?} after {heard}");
    }
}
