//! Two nodes that find no direct path, and a third that passes their packets on.

use super::*;
use crate::paths::sim::{Internet, Nat, REGION};
use crate::paths::{HEARTBEAT, PeerConfig, Via};
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn trio(nats: [Nat; 2], seed: u8) -> Internet {
    let mut internet = Internet::pair(nats, seed);
    internet.add_peer_relay();
    internet
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Pairs that cannot be direct go over the peer relay, though a tenth of all datagrams is lost, and stay there; not a
    /// packet goes over the other relay then.
    #[test]
    fn hopeless_pairs_go_over_the_peer_relay(seed: u8, latency in 1_u64..150, relay_latency in 1_u64..300) {
        let mut internet = trio([Nat::Random, Nat::Random], seed);
        internet.latency = Duration::from_millis(latency);
        internet.relay_latency = Duration::from_millis(relay_latency);
        internet.loss = 100;
        internet.talk(40);
        internet.loss = 0;
        internet.talk(40);
        internet.is_relay_cut = true;
        for _ in 0..30 {
            for node in 0..2 {
                prop_assert!(internet.is_peer_relayed(node) && !internet.is_direct(node));
                let number = internet.send_data(node);
                internet.run(SECOND);
                prop_assert!(internet.nodes[1 - node].received.contains(&number));
            }
        }
    }

    /// When the peer relay dies, hardly a packet is lost, however seldom they are; when it is back, it is used again.
    #[test]
    fn a_dead_peer_relay_is_left_and_found_again(seed: u8, at in 0_u64..3000) {
        let mut internet = trio([Nat::Random, Nat::Random], seed);
        internet.talk(10);
        internet.run(Duration::from_millis(at));
        internet.is_peer_relay_cut = true;
        for second in 0..30 {
            let number = internet.send_data(0);
            internet.run(SECOND);
            if second >= 1 {
                prop_assert!(internet.nodes[1].received.contains(&number), "second {second}");
            }
        }
        prop_assert_eq!(internet.path(0).peer_relay, None);
        internet.is_peer_relay_cut = false;
        internet.talk(60);
        prop_assert!(internet.is_peer_relayed(0) && internet.is_peer_relayed(1));
    }
}

/// Lets both sides, or one, send a packet each 20 ms, cuts the peer relay and returns how long packets of the first were lost.
fn lost_after_the_relay_died(latency: u64, both: bool) -> Duration {
    const STEP: Duration = Duration::from_millis(20);
    let mut internet = trio([Nat::Random, Nat::Random], 1);
    internet.latency = Duration::from_millis(latency);
    let flow = |internet: &mut Internet, steps: u32| {
        let mut sent = Vec::new();
        for _ in 0..steps {
            sent.push(internet.send_data(0));
            if both {
                internet.send_data(1);
            }
            internet.run(STEP);
        }
        sent
    };
    flow(&mut internet, 1000);
    assert!(internet.is_peer_relayed(0) && !internet.is_direct(0));
    internet.is_peer_relay_cut = true;
    let sent = flow(&mut internet, 500);
    internet.run(SECOND);
    let lost = sent.iter().filter(|number| !internet.nodes[1].received.contains(number)).count();
    assert!(sent.iter().rev().take(200).all(|number| internet.nodes[1].received.contains(number)));
    STEP * u32::try_from(lost).unwrap()
}

/// Trust alone would last 6.5 s. Where packets flow both ways, their end is the sign; where they flow one way, the pings,
/// which are rare there, are it.
#[test]
fn a_peer_relay_that_dies_under_traffic_is_left_within_a_few_round_trips() {
    for latency in [2, 10, 40] {
        let round_trip = Duration::from_millis(4 * latency);
        let lost = lost_after_the_relay_died(latency, true);
        assert!(lost <= Duration::from_millis(450) + round_trip * 4, "{lost:?} at {round_trip:?}");
        let lost = lost_after_the_relay_died(latency, false);
        assert!(lost <= HEARTBEAT + Duration::from_millis(450) + round_trip * 4, "{lost:?} at {round_trip:?}, one way");
    }
}

/// A path that loses a tenth of its packets is doubted now and then, but stays.
#[test]
fn a_lossy_peer_relay_stays() {
    let mut internet = trio([Nat::Random, Nat::Random], 1);
    internet.talk(10);
    internet.loss = 100;
    let mut trusted = 0;
    for _ in 0..3000 {
        internet.send_data(0);
        internet.send_data(1);
        internet.run(Duration::from_millis(20));
        trusted += usize::from(internet.is_peer_relayed(0));
        assert!(internet.path(0).peer_relay.is_some(), "given up");
    }
    assert!(trusted > 2700, "trusted alone only {trusted} times in 3000");
}

#[test]
fn a_relay_is_found_within_a_second_and_only_one_side_need_ask() {
    let mut internet = trio([Nat::Random, Nat::Random], 1);
    internet.send_data(0);
    internet.run(SECOND);
    assert!(internet.is_peer_relayed(0) && internet.is_peer_relayed(1));
    let key = internet.key(1);
    let status = internet.nodes[0].paths.status(&key).unwrap();
    assert_eq!(status.peer_relay_latency, Some(internet.latency * 4));
    assert_eq!(status.reason, Reason::NoAnswer, "why it is not direct");
    assert_eq!(status.history.last().unwrap().reason, Reason::RelayAnswered);
    assert_eq!(status.path.peer_relay.unwrap().to.to_string(), "198.51.100.3:40000:vni:1");
}

#[test]
fn pairs_that_can_be_direct_ask_no_relay() {
    for nats in [[Nat::None, Nat::Easy], [Nat::Easy, Nat::Easy]] {
        let mut internet = trio(nats, 1);
        internet.talk(70);
        assert!(internet.is_direct(0) && internet.is_direct(1));
        assert_eq!(internet.peer_relay.as_ref().unwrap().counts(), (0, 0));
    }
}

#[test]
fn a_direct_path_that_appears_is_preferred_and_the_relay_forgotten() {
    let mut internet = trio([Nat::Easy, Nat::Easy], 1);
    internet.is_cut = true;
    internet.talk(10);
    assert!(internet.is_peer_relayed(0) && !internet.is_direct(0));
    internet.is_cut = false;
    internet.talk(10);
    assert!(internet.is_direct(0) && internet.is_direct(1));
    internet.talk(10);
    assert_eq!((internet.path(0).peer_relay, internet.path(1).peer_relay), (None, None));
    // And the other way round.
    internet.is_cut = true;
    internet.talk(45);
    assert!(internet.is_peer_relayed(0) && internet.is_peer_relayed(1));
}

#[test]
fn a_users_ping_takes_the_peer_relay() {
    let mut internet = trio([Nat::Random, Nat::Random], 1);
    internet.talk(5);
    let to = internet.path(0).peer_relay.unwrap().to;
    let id = internet.with(0, |paths, peer, now| paths.ping(&peer, now)).unwrap();
    internet.run(SECOND);
    let latency = internet.latency * 4;
    assert_eq!(internet.nodes[0].events, [Event::Pong { id, via: Via::PeerRelay(to), latency }]);
}

#[test]
fn a_path_at_rest_is_silent_and_the_relay_forgets_it() {
    let mut internet = trio([Nat::Random, Nat::Random], 1);
    internet.talk(10);
    internet.run(Duration::from_secs(45) + HEARTBEAT + Duration::from_secs(31));
    let sent = |internet: &Internet| internet.nodes.iter().map(|node| node.sent_udp + node.sent_relay).sum::<usize>();
    let before = sent(&internet);
    internet.run(SECOND * 3600);
    assert_eq!(sent(&internet), before);
    let now = internet.now;
    internet.peer_relay.as_mut().unwrap().handle_timeout(now);
    assert_eq!(internet.peer_relay.as_ref().unwrap().counts(), (0, 0));
    assert!(internet.nodes.iter().all(|node| node.paths.poll_timeout().is_none()));
    // It wakes up again, though what it remembers of the relay holds no more.
    internet.talk(45);
    assert!(internet.is_peer_relayed(0) && internet.is_peer_relayed(1));
}

#[test]
fn whoever_may_not_use_relays_asks_and_follows_none() {
    let mut internet = trio([Nat::Random, Nat::Random], 1);
    let (one, other) = (internet.key(0), internet.key(1));
    internet.nodes[0].paths.set_peer_relay_roles(&other, PeerRelayRoles::default());
    internet.nodes[1].paths.set_peer_relay_roles(&one, PeerRelayRoles { client: true, server: false });
    internet.talk(40);
    assert_eq!((internet.path(0).peer_relay, internet.path(1).peer_relay), (None, None));
    assert_eq!(internet.nodes[0].paths.relays.work.len(), 0);
}

#[test]
fn a_peer_that_restarts_is_bound_anew() {
    let mut internet = trio([Nat::Random, Nat::Random], 1);
    internet.talk(5);
    let (key, now) = (internet.key(1), internet.now);
    let config = PeerConfig { disco: Some(DiscoKey::from_bytes([77; 32])), home: Some(REGION), endpoints: Vec::new() };
    internet.nodes[0].paths.set_peer(key, &config, now);
    assert_eq!(internet.nodes[0].paths.status(&key).unwrap().path.peer_relay, None);
}

/// Endpoints are what peers and relays say: what is not for the two of us, not a number, or nowhere is not followed.
#[test]
fn wrong_endpoints_are_not_followed() {
    let mut internet = trio([Nat::Random, Nat::Random], 1);
    let (peer, now) = (internet.key(1), internet.now);
    let clients = [internet.nodes[0].paths.disco_key(), internet.nodes[1].paths.disco_key()];
    let good = RelayEndpoint {
        server: warren_wire::key::DiscoSecret::from_bytes([66; 32]).public(),
        clients,
        lamport_id: 5,
        vni: 1,
        bind_lifetime: Duration::MAX,
        steady_lifetime: Duration::ZERO,
        addresses: vec!["192.0.2.1:1".parse().unwrap()],
    };
    let other = DiscoKey::from_bytes([7; 32]);
    let paths = &mut internet.nodes[0].paths;
    for bad in [
        RelayEndpoint { vni: 0, ..good.clone() },
        RelayEndpoint { vni: MAX_VNI + 1, ..good.clone() },
        RelayEndpoint { clients: [clients[0], other], ..good.clone() },
        RelayEndpoint { clients: [clients[0]; 2], ..good.clone() },
        RelayEndpoint { server: DiscoKey::from_bytes([0; 32]), ..good.clone() },
        RelayEndpoint {
            addresses: vec!["100.64.0.1:1".parse().unwrap(), "0.0.0.0:1".parse().unwrap()],
            ..good.clone()
        },
    ] {
        paths.handle_call_via(&peer, bad, now);
        assert_eq!(paths.poll_transmit(), None);
    }
    // An answer to nothing that we asked for.
    paths.handle_allocated(Some(peer), 1, good.clone(), now);
    assert_eq!(paths.poll_transmit(), None);
    paths.handle_call_via(&peer, good.clone(), now);
    let to = PeerRelay { address: good.addresses[0], vni: 1 };
    assert_eq!(paths.poll_transmit().map(|transmit| transmit.to), Some(Destination::PeerRelay(to)));
    // The same once more, and an older one, are not.
    paths.handle_call_via(&peer, good.clone(), now);
    paths.handle_call_via(&peer, RelayEndpoint { lamport_id: 4, vni: 2, ..good.clone() }, now);
    assert_eq!(paths.poll_transmit(), None);
    paths.handle_call_via(&peer, RelayEndpoint { lamport_id: 6, vni: 2, ..good }, now);
    assert!(paths.poll_transmit().is_some());
}

/// A hostile peer names one relay after another with many addresses: what is sent stays within the budget of pings.
#[test]
fn binds_are_bounded() {
    let mut internet = trio([Nat::Random, Nat::Random], 1);
    let (peer, now) = (internet.key(1), internet.now);
    let clients = [internet.nodes[0].paths.disco_key(), internet.nodes[1].paths.disco_key()];
    let paths = &mut internet.nodes[0].paths;
    for server in 1..=255 {
        let endpoint = RelayEndpoint {
            server: DiscoKey::from_bytes([server; 32]),
            clients,
            lamport_id: 1,
            vni: 1,
            bind_lifetime: SECOND * 30,
            steady_lifetime: SECOND,
            addresses: (1..=64).map(|last| SocketAddr::from(([192, 0, 2, last], 1))).collect(),
        };
        paths.handle_call_via(&peer, endpoint, now);
    }
    let sent = std::iter::from_fn(|| paths.poll_transmit()).count();
    assert!(sent <= 100, "{sent}");
    assert!(paths.relays.work.values().all(|work| work.handshakes.len() <= MAX_HANDSHAKES));
}
