//! Holes through hard NATs.

use super::*;
use warren_wire::disco::Punch;

/// Long enough for the second attempt.
const TWO_ATTEMPTS: u64 = 90;

fn punched(nats: [Nat; 2], seed: u8, seconds: u64) -> Internet {
    let mut internet = Internet::pair(nats, seed);
    internet.tell_nats();
    internet.talk(seconds);
    internet
}

#[test]
fn hard_nat_meets_easy_nat_by_probing_ports_within_its_budget() {
    let mut lucky = 0;
    for seed in 0..20 {
        let mut internet = punched([Nat::Random, Nat::Easy], seed, 15);
        let sent = internet.nodes.iter().map(|node| node.sent_udp).max().unwrap();
        assert!(sent <= 512 + 100, "{sent} messages");
        lucky += usize::from(internet.is_direct(0) && internet.is_direct(1));
        internet.talk(TWO_ATTEMPTS - 15);
        let has_won = internet.is_direct(0) && internet.is_direct(1);
        assert_eq!(internet.nodes[0].sockets.len(), usize::from(has_won), "only the winner is kept");
    }
    assert!((13..=20).contains(&lucky), "87 % were to be expected, not {lucky} of 20");
}

/// With one STUN server nobody knows whose NAT is the hard one, and the sides take turns.
#[test]
fn hard_nat_meets_easy_nat_although_nobody_knows_which_is_which() {
    for (seed, nats) in (0..8).zip([[Nat::Random, Nat::Easy], [Nat::Easy, Nat::Random]].into_iter().cycle()) {
        let mut internet = Internet::pair(nats, seed);
        internet.tell_public_addresses();
        let met = (0..60).any(|_| {
            internet.talk(10);
            internet.is_direct(0) && internet.is_direct(1)
        });
        assert!(met, "{nats:?} in ten minutes");
    }
}

#[test]
fn counting_hard_nats_meet_at_the_announced_ports() {
    for seed in 0..5 {
        let internet = punched([Nat::Hard, Nat::Hard], seed, 15);
        assert!(internet.is_direct(0) && internet.is_direct(1));
        assert_eq!(internet.nodes[0].sockets.len(), 1);
    }
}

#[test]
fn hopeless_pair_says_so_and_sends_nothing_more() {
    let internet = punched([Nat::Random, Nat::Random], 1, TWO_ATTEMPTS);
    let status = internet.nodes[0].paths.status(&internet.key(1)).unwrap();
    assert_eq!(status.punched, Some(Punched::Unpredictable));
    assert!(internet.nodes[0].sent_udp < 100);
    let advice = status.advice(&internet.nodes[0].paths.own_nat()).unwrap();
    assert!(advice.contains("at random") && advice.contains("enable UPnP"), "{advice}");
}

/// What a relay repeats or a peer invents makes us send to nobody whom the server does not list for that peer.
#[test]
fn punch_is_heeded_only_from_a_peer_in_use_for_its_own_host() {
    let mut bench = Bench::new();
    bench.paths.set_own_nat(OwnNat { hard: Some(false), public: Some(address("198.51.100.1:7")), ..OwnNat::default() });
    let punch = |at: &str| Message::Punch(Punch { answer: false, hard: true, address: address(at) });
    bench.relayed(PEER, &punch("203.0.113.2:0"));
    bench.advance(SECOND * 10);
    assert_eq!(bench.take_sent(), [], "not in use");
    bench.paths.handle_activity(&node(PEER), bench.now);
    bench.advance(SECOND * 10);
    bench.take_sent();
    bench.relayed(PEER, &punch("203.0.113.3:0"));
    bench.udp(PEER, "203.0.113.2:9", &punch("203.0.113.2:0"));
    assert_eq!(bench.take_sent(), [], "another peer's host, and not over the relay");
    // The peer may say that it is there, but no more than a ping goes to where it says.
    bench.relayed(PEER, &Message::CallMeMaybe(vec![address("203.0.113.3:9")]));
    bench.take_sent();
    bench.relayed(PEER, &punch("203.0.113.3:0"));
    assert_eq!(bench.take_sent(), [], "a host that only the peer names");
    let sprayed = |bench: &mut Bench| {
        for _ in 0..60 {
            bench.advance(Duration::from_millis(100));
        }
        let sent = bench.take_sent();
        let at_host = |to: &Destination| matches!(to, Destination::Udp(to) if to.ip() == address("203.0.113.2:1").ip());
        let ports: BTreeSet<_> = sent.iter().filter(|(to, _)| at_host(to)).map(|(to, _)| format!("{to:?}")).collect();
        ports.len()
    };
    bench.relayed(PEER, &punch("203.0.113.2:0"));
    assert_eq!(sprayed(&mut bench), 512 + 1, "and the listed address");
    for _ in 0..5 {
        bench.relayed(PEER, &punch("203.0.113.2:0"));
        assert_eq!(sprayed(&mut bench), 1, "once a minute");
    }
}
