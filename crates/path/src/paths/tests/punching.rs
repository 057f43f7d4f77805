//! Holes through hard NATs.

use super::*;
use warren_wire::disco::Punch;

const LISTED: &str = "203.0.113.2:41641";
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

/// Where nothing filters, the pings of all 256 sockets come in, more than there is room for. Those that were asked back keep
/// their places, so that their answers count.
#[test]
fn more_pings_than_there_is_room_for_crowd_out_none_that_was_asked() {
    let mut bench = Bench::new();
    bench.paths.handle_activity(&node(PEER), bench.now);
    bench.take_sent();
    for port in 10_000..10_256_u16 {
        bench.udp(PEER, &format!("198.51.100.77:{port}"), &ping(1, Some(node(PEER))));
    }
    let asked = bench.take_sent().into_iter().find_map(|(to, message)| match (to, message) {
        (Destination::Udp(to), Message::Ping(ping)) => Some((to, ping.id)),
        _ => None,
    });
    let (first, id) = asked.unwrap();
    bench.udp(PEER, &first.to_string(), &pong(id));
    assert_eq!(bench.direct(PEER), Some(first));
}

/// Whoever pinged is proved a way by the pong, and need not answer our ping by another, if the pong comes first.
#[test]
fn ping_is_answered_before_it_is_asked_back() {
    let mut bench = Bench::new();
    bench.paths.handle_activity(&node(PEER), bench.now);
    bench.take_sent();
    bench.udp(PEER, "198.51.100.77:7", &ping(1, Some(node(PEER))));
    assert!(matches!(&bench.take_sent()[..], [(_, Message::Pong(_)), (_, Message::Ping(_)), ..]));
}

/// Two sides that both fan out could go on answering pings by pings for as long as their pongs get lost.
#[test]
fn extra_socket_asks_back_once_a_second() {
    let mut bench = Bench::new();
    bench.paths.handle_activity(&node(PEER), bench.now);
    let socket = bench.paths.punch.open_for_tests();
    bench.take_sent();
    let mut pings = Vec::new();
    for id in 1..21 {
        let bytes = bench.sealed(PEER, &ping(id, Some(node(PEER))));
        bench.paths.handle_udp_at(socket, address(LISTED), &bytes, bench.now);
        let transmits = std::mem::take(&mut bench.paths.outbox.transmits);
        let ours = transmits.into_iter().filter(|transmit| transmit.socket == socket);
        pings.push(ours.filter(|transmit| matches!(bench.open(&transmit.bytes).1, Message::Ping(_))).count());
        bench.now += Duration::from_millis(100);
    }
    assert_eq!(pings.iter().sum::<usize>(), 2, "{pings:?}");
}
