//! Random events, and what must hold after each.

use super::*;
use crate::paths::candidates::MAX_CANDIDATES;
use warren_wire::disco::Punch;

#[derive(Debug, Clone)]
enum Step {
    Set {
        peer: u8,
        disco: u8,
        home: u16,
        endpoints: Vec<SocketAddr>,
    },
    Remove(u8),
    Activity(u8),
    Received(u8, Option<SocketAddr>),
    Nat(OwnNat),
    Own(Vec<SocketAddr>, u16),
    Message {
        from: u8,
        at: SocketAddr,
        relayed: bool,
        message: Message,
    },
    /// Answers the nth ping under way.
    Pong {
        number: usize,
        at: SocketAddr,
    },
    Garbage(SocketAddr, Vec<u8>),
    Unreachable(u8),
    Rebind,
    Ping(u8),
    Wait(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let peer = || 2_u8..5;
    let addresses = || proptest::collection::vec(any_address(), 0..12);
    let message = prop_oneof![
        (any::<u8>(), proptest::option::of(peer())).prop_map(|(id, key)| ping(id, key.map(node))),
        any::<u8>().prop_map(|id| pong([id; 12])),
        addresses().prop_map(Message::CallMeMaybe),
        (any::<bool>(), any::<bool>(), 2_u8..5, any::<u16>()).prop_map(|(answer, hard, host, port)| {
            Message::Punch(Punch { answer, hard, address: SocketAddr::from(([203, 0, 113, host], port)) })
        }),
    ];
    let nat = (any::<Option<bool>>(), any::<Option<(u16, u16)>>()).prop_map(|(hard, counting)| OwnNat {
        hard,
        counting,
        public: Some(address("198.51.100.1:7")),
        ..OwnNat::default()
    });
    prop_oneof![
        (peer(), 101_u8..106, 0_u16..3, addresses()).prop_map(|(peer, disco, home, endpoints)| Step::Set {
            peer,
            disco,
            home,
            endpoints
        }),
        peer().prop_map(Step::Remove),
        peer().prop_map(Step::Activity),
        peer().prop_map(Step::Activity),
        (peer(), proptest::option::of(any_address())).prop_map(|(peer, at)| Step::Received(peer, at)),
        nat.prop_map(Step::Nat),
        (addresses(), any::<u16>()).prop_map(|(addresses, age)| Step::Own(addresses, age)),
        (peer(), any_address(), any::<bool>(), message).prop_map(|(from, at, relayed, message)| Step::Message {
            from,
            at,
            relayed,
            message
        }),
        (any::<usize>(), any_address()).prop_map(|(number, at)| Step::Pong { number, at }),
        (any_address(), proptest::collection::vec(any::<u8>(), 0..100))
            .prop_map(|(at, bytes)| Step::Garbage(at, bytes)),
        peer().prop_map(Step::Unreachable),
        Just(Step::Rebind),
        peer().prop_map(Step::Ping),
        (0_u32..20_000).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever happens in whatever order, the invariants hold.
    #[test]
    fn random_events_keep_the_invariants(steps in proptest::collection::vec(step(), 1..120)) {
        let mut bench = Bench::new();
        let mut asked = BTreeSet::new();
        let mut pinged = Vec::new();
        for step in steps {
            let now = bench.now;
            match step {
                Step::Set { peer, disco, home, endpoints } => {
                    let disco = Some(secret(disco).public());
                    bench.paths.set_peer(node(peer), &PeerConfig { disco, home: Some(RegionId(home)), endpoints }, now);
                }
                Step::Remove(peer) => bench.paths.remove_peer(&node(peer)),
                Step::Received(peer, at) => {
                    let via = at.map_or(Via::Relay(REGION), Via::Direct);
                    bench.paths.handle_received(&node(peer), via, now);
                }
                Step::Nat(nat) => bench.paths.set_own_nat(nat),
                Step::Activity(peer) => bench.paths.handle_activity(&node(peer), now),
                Step::Own(addresses, age) => {
                    let measured = now.checked_sub(Duration::from_millis(age.into())).unwrap_or(now);
                    bench.paths.set_own_endpoints(addresses, measured, now);
                }
                Step::Message { from, at, relayed: false, message } => bench.udp(from, &at.to_string(), &message),
                Step::Message { from, message, .. } => bench.relayed(from, &message),
                Step::Pong { number, at } => {
                    let known: &[(TransactionId, u8)] = &pinged;
                    if let Some((id, by)) = known.get(number % known.len().max(1)).copied() {
                        bench.udp(by, &at.to_string(), &pong(id));
                    }
                }
                Step::Garbage(at, bytes) => bench.paths.handle_udp(at, &bytes, now),
                Step::Unreachable(peer) => {
                    if let Some(direct) = bench.paths.status(&node(peer)).and_then(|status| status.path.direct) {
                        bench.paths.handle_unreachable(&node(peer), direct.address, now);
                    }
                }
                Step::Rebind => bench.paths.handle_rebind(now),
                Step::Ping(peer) => asked.extend(bench.paths.ping(&node(peer), now)),
                Step::Wait(millis) => bench.advance(Duration::from_millis(millis.into())),
            }
            while let Some(event) = bench.paths.poll_event() {
                match event {
                    Event::Pong { id, .. } | Event::PingTimeout { id } => prop_assert!(asked.remove(&id), "ends once"),
                    Event::Path { .. } | Event::EndpointsWanted | Event::AllocationWanted(_) => {}
                    Event::Sockets { wanted } => {
                        prop_assert!(wanted.len() <= Paths::MAX_SOCKETS && !wanted.contains(&0));
                        bench.paths.handle_sockets(now);
                    }
                }
            }
            while let Some(Transmit { to, bytes, .. }) = bench.paths.poll_transmit() {
                if let Destination::Udp(to) = to {
                    prop_assert!(crate::address::is_answerable(to), "{to}");
                }
                if let (by, Message::Ping(ping)) = bench.open(&bytes) {
                    pinged.push((ping.id, by));
                }
            }
            let Paths { peers, outbox, .. } = &bench.paths;
            let heartbeats = peers.values().filter(|peer| peer.heartbeat.is_some()).count();
            let watches = peers.values().filter(|peer| peer.watch_timer().is_some()).count();
            let punches = usize::from(bench.paths.is_punching());
            let timers = outbox.pings.len() + heartbeats + watches + punches;
            prop_assert_eq!(outbox.timers.len(), timers, "one timer for each purpose");
            for (key, peer) in peers {
                let status = peer.status();
                prop_assert!(status.candidates.len() <= MAX_CANDIDATES);
                if let Some(direct) = status.path.direct {
                    prop_assert!(status.candidates.iter().any(|candidate| candidate.address == direct.address));
                    prop_assert!(direct.trusted_until <= bench.now + peer::TRUST);
                }
                if let Some(disco) = peer.disco {
                    prop_assert!(outbox.keys.is_held(&disco, key));
                }
            }
        }
        // Left alone, everything comes to rest and every user's ping has ended.
        for _ in 0..40 {
            bench.advance(HEARTBEAT);
        }
        for event in bench.events() {
            if let Event::Pong { id, .. } | Event::PingTimeout { id } = event {
                asked.remove(&id);
            }
        }
        prop_assert_eq!(bench.paths.poll_timeout(), None);
        prop_assert!(asked.is_empty());
    }
}
