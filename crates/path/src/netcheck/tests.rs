//! Whole measurements against simulated STUN servers, and hostile input.

use super::*;
use crate::testing::epoch;
use proptest::prelude::*;
use std::collections::BTreeMap;
use warren_wire::control::{DerpNode, DerpRegion};
use warren_wire::stun;

const BOTH: Families = Families { v4: true, v6: true };
const V4: Families = Families { v4: true, v6: false };

/// Servers by region: region `n` has the addresses 192.0.2.n and 2001:db8::n and answers after so many milliseconds.
struct World {
    check: Netcheck,
    now: Instant,
    /// Round trip by region and family (`true` is IPv6).
    round_trips: BTreeMap<(u16, bool), u64>,
    /// Adds the region to the port that it sees.
    is_hard: bool,
    flying: Vec<(Instant, SocketAddr, Vec<u8>)>,
    probes: usize,
}

impl World {
    fn new(regions: u16, round_trips: &[(u16, bool, u64)]) -> Self {
        let mut check = Netcheck::new([1; 32]);
        check.set_map(&map(1..=regions));
        let round_trips = round_trips.iter().map(|(region, v6, millis)| ((*region, *v6), *millis)).collect();
        Self { check, now: epoch(), round_trips, is_hard: false, flying: Vec::new(), probes: 0 }
    }

    fn measure(&mut self, kind: Kind, families: Families) -> Arc<Report> {
        self.check.start(kind, families, self.now);
        let deadline = self.now + Duration::from_secs(5);
        loop {
            self.pump();
            if let Some(report) = self.check.poll_report() {
                assert!(!self.check.is_running() && self.check.poll_timeout().is_none());
                self.flying.clear();
                return report;
            }
            let arrival = self.flying.iter().map(|(at, ..)| *at).min();
            self.now = [arrival, self.check.poll_timeout()].into_iter().flatten().min().unwrap();
            assert!(self.now <= deadline, "a report within 5 s");
            let (due, later) = self.flying.drain(..).partition(|(at, ..)| *at <= self.now);
            self.flying = later;
            let due: Vec<(Instant, SocketAddr, Vec<u8>)> = due;
            for (_, from, bytes) in due {
                self.check.handle_stun(from, &bytes, self.now);
            }
            self.check.handle_timeout(self.now);
        }
    }

    fn pump(&mut self) {
        while let Some(probe) = self.check.poll_transmit() {
            self.probes += 1;
            let RelayAddress::Literal(server) = probe.server else { panic!("only literals in this map") };
            let region = match server {
                SocketAddr::V4(server) => u16::from(server.ip().octets()[3]),
                SocketAddr::V6(server) => server.ip().segments()[7],
            };
            let Some(millis) = self.round_trips.get(&(region, server.is_ipv6())) else { continue };
            let port = 5000 + if self.is_hard { region } else { 0 };
            let seen: SocketAddr = if server.is_ipv4() {
                SocketAddr::from(([198, 51, 100, 1], port))
            } else {
                SocketAddr::new("2001:db8:1::1".parse().unwrap(), port)
            };
            let id = stun::parse_request(&probe.bytes).unwrap();
            self.flying.push((self.now + Duration::from_millis(*millis), server, stun::response(&id, seen)));
        }
    }
}

fn map(regions: impl IntoIterator<Item = u16>) -> DerpMap {
    let region = |id: u16| {
        let node = DerpNode {
            name: format!("{id}a"),
            host_name: "relay.example".into(),
            ipv4: format!("192.0.2.{id}"),
            ipv6: format!("2001:db8::{id:x}"),
            ..DerpNode::default()
        };
        (RegionId(id), DerpRegion { nodes: vec![node], ..DerpRegion::default() })
    };
    DerpMap { regions: Some(regions.into_iter().map(region).collect()), ..DerpMap::default() }
}

#[test]
fn easy_network_is_described() {
    let mut world =
        World::new(3, &[(1, false, 30), (2, false, 10), (3, false, 20), (1, true, 40), (2, true, 9), (3, true, 21)]);
    let report = world.measure(Kind::Auto, BOTH);
    assert!(report.udp && report.has_v6);
    assert_eq!(report.global_v4, Some("198.51.100.1:5000".parse().unwrap()));
    assert_eq!(report.global_v6, Some("[2001:db8:1::1]:5000".parse().unwrap()));
    assert_eq!(report.advertised.len(), 2);
    assert_eq!(report.mapping_varies, Some(false));
    assert_eq!(report.home, Some(RegionId(2)));
    assert_eq!(report.latencies[&RegionId(2)].best(), Some(Duration::from_millis(9)));
    assert_eq!(world.now - epoch(), Duration::from_millis(40), "over when all have answered");
    assert_eq!(world.probes, 6, "no second try for a region that answers before");
}

#[test]
fn hard_nat_is_recognised_and_its_noise_is_not_advertised() {
    let mut world = World::new(3, &[(1, false, 30), (2, false, 10), (3, false, 20)]);
    world.is_hard = true;
    let report = world.measure(Kind::Full, V4);
    assert_eq!(report.mapping_varies, Some(true));
    assert_eq!(report.advertised, ["198.51.100.1:5002".parse().unwrap()], "the first to answer");
}

#[test]
fn one_own_relay_is_measured_soon_even_if_ipv6_does_not_reach_it() {
    let mut world = World::new(1, &[(1, false, 5)]);
    let report = world.measure(Kind::Full, BOTH);
    assert_eq!((report.home, report.mapping_varies), (Some(RegionId(1)), None));
    assert!(world.now - epoch() <= Duration::from_millis(400), "not the whole 3 s");
    // Without IPv6 there is nothing to wait for.
    let began = world.now;
    world.measure(Kind::Full, V4);
    assert_eq!(world.now - began, Duration::from_millis(5));
}

#[test]
fn one_own_relay_has_a_moment_to_answer_over_the_slower_family() {
    let mut world = World::new(1, &[(1, false, 5), (1, true, 250)]);
    let report = world.measure(Kind::Full, BOTH);
    assert!(report.global_v4.is_some() && report.global_v6.is_some());
}

#[test]
fn what_would_teach_nothing_is_not_asked_again() {
    let mut world = World::new(2, &[(1, false, 10), (2, false, 10), (1, true, 10)]);
    world.measure(Kind::Full, BOTH);
    assert_eq!(world.probes, 4, "one silent over IPv6: its region is known, and so is our address");
    assert_eq!(world.now - epoch(), Duration::from_millis(100), "when the second try is due");
}

#[test]
fn far_regions_are_not_waited_for_once_three_have_answered() {
    let mut world = World::new(5, &[(1, false, 10), (2, false, 20), (3, false, 30), (4, false, 80), (5, false, 500)]);
    let report = world.measure(Kind::Full, V4);
    assert_eq!(world.now - epoch(), Duration::from_millis(90), "three in 30 ms, and twice that");
    assert_eq!(report.latencies.keys().map(|region| region.0).collect::<Vec<_>>(), [1, 2, 3, 4]);
}

#[test]
fn measurements_are_incremental_for_five_minutes() {
    let mut world = World::new(6, &(1..=6).map(|region| (region, false, u64::from(region) * 10)).collect::<Vec<_>>());
    world.measure(Kind::Auto, V4);
    assert_eq!(world.probes, 6);
    let asked = |world: &mut World| {
        world.probes = 0;
        world.measure(Kind::Auto, V4);
        world.probes
    };
    assert!(asked(&mut world) <= 4, "three regions, a second try at most for the slowest");
    world.now += FULL_INTERVAL;
    assert_eq!(asked(&mut world), 6);
    let mut changed = map(1..=6);
    changed.regions.as_mut().unwrap().remove(&RegionId(1));
    world.check.set_map(&changed);
    assert_eq!(asked(&mut world), 5);
    world.check.set_map(&changed);
    assert!(asked(&mut world) <= 4, "the same map again is no news");
}

#[test]
fn without_udp_relays_are_measured_over_https() {
    let mut world = World::new(3, &[]);
    world.check.start(Kind::Auto, BOTH, world.now);
    let mut asked = Vec::new();
    while let Some(at) = world.check.poll_timeout().filter(|_| asked.is_empty()) {
        world.now = at;
        world.check.handle_timeout(at);
        asked.extend(std::iter::from_fn(|| world.check.poll_relay_request()));
    }
    assert_eq!(world.now - epoch(), Duration::from_secs(3));
    assert_eq!(asked, [1, 2, 3].map(RegionId));
    for (region, millis) in [(1, 70), (2, 50), (3, 60), (9, 1)] {
        world.check.handle_relay_latency(RegionId(region), Duration::from_millis(millis), world.now);
    }
    let report = world.check.poll_report().unwrap();
    assert!(!report.udp);
    assert_eq!((report.home, report.latencies.len()), (Some(RegionId(2)), 3));
    assert!(report.net_info().derp_latency.is_empty());
}

#[test]
fn dead_network_gives_a_report_nevertheless() {
    let mut world = World::new(3, &[]);
    let report = world.measure(Kind::Auto, BOTH);
    assert!(!report.udp && report.latencies.is_empty());
    assert!(report.home.is_some(), "drawn by lot");
    assert_eq!(world.now - epoch(), Duration::from_secs(5));
    // No address at all, or no map: nothing to wait for.
    let began = world.now;
    world.measure(Kind::Auto, Families::default());
    assert_eq!(world.now, began);
    let mut empty = Netcheck::new([1; 32]);
    empty.start(Kind::Auto, BOTH, began);
    assert_eq!(empty.poll_report().unwrap().home, None);
}

#[test]
fn only_answers_to_our_own_probes_count() {
    let mut world = World::new(1, &[]);
    world.check.start(Kind::Full, V4, world.now);
    let probe = world.check.poll_transmit().unwrap();
    let id = stun::parse_request(&probe.bytes).unwrap();
    let seen = "198.51.100.66:6".parse().unwrap();
    world.check.handle_stun(seen, &stun::response(&[9; 12], seen), world.now);
    world.check.handle_stun(seen, &probe.bytes, world.now);
    assert!(world.check.is_running());
    world.check.handle_stun(seen, &stun::response(&id, seen), world.now);
    assert_eq!(world.check.poll_report().unwrap().global_v4, Some(seen));
    world.check.handle_stun(seen, &stun::response(&id, seen), world.now);
    assert!(world.check.poll_report().is_none());
}

#[test]
fn changed_map_drops_the_measurement_under_way() {
    let mut world = World::new(3, &[(7, false, 10)]);
    world.check.start(Kind::Full, V4, world.now);
    world.check.set_map(&map([7]));
    assert!(!world.check.is_running() && world.check.poll_transmit().is_none());
    assert_eq!(world.measure(Kind::Auto, V4).home, Some(RegionId(7)));
}

proptest! {
    /// Whatever arrives, a measurement ends within 5 s and probes are few.
    #[test]
    fn random_answers_do_no_harm(
        steps in proptest::collection::vec(
            (0_u64..1500, any::<bool>(), proptest::collection::vec(any::<u8>(), 0..60), any::<usize>(), any::<[u8; 4]>(), any::<u16>()),
            0..40,
        ),
        families: (bool, bool),
        kind in prop_oneof![Just(Kind::Auto), Just(Kind::Full), Just(Kind::Incremental)],
    ) {
        let mut world = World::new(6, &[]);
        let families = Families { v4: families.0, v6: families.1 };
        let mut ids = vec![[0; 12]];
        let (mut probes, mut started) = (0, None);
        for (wait, real, bytes, number, ip, port) in steps {
            if !world.check.is_running() {
                world.check.start(kind, families, world.now);
                (probes, started) = (0, Some(world.now));
            }
            let seen = SocketAddr::from((ip, port));
            let answer = if real { stun::response(&ids[number % ids.len()], seen) } else { bytes };
            world.check.handle_stun(seen, &answer, world.now);
            world.check.handle_relay_latency(RegionId(port % 8), Duration::from_millis(wait), world.now);
            world.check.handle_relay_frame(RegionId(port % 8), world.now);
            world.now += Duration::from_millis(wait);
            world.check.handle_timeout(world.now);
            while let Some(probe) = world.check.poll_transmit() {
                probes += 1;
                ids.push(stun::parse_request(&probe.bytes).unwrap());
            }
            prop_assert!(probes <= 36);
            while let Some(region) = world.check.poll_relay_request() {
                prop_assert!((1..=6).contains(&region.0));
            }
            if let Some(report) = world.check.poll_report() {
                prop_assert!(report.home.is_some());
                prop_assert!(report.advertised.iter().all(|address| crate::address::is_usable(*address)));
            }
            if started.is_some_and(|at| world.now - at >= Duration::from_secs(5)) {
                prop_assert!(!world.check.is_running());
            }
        }
    }
}

/// Without UDP, relays are asked over plain HTTP whether somebody else answers for them.
#[test]
fn a_captive_portal_is_found_and_looked_for_again_until_it_is_gone() {
    let mut world = World::new(2, &[]);
    let mut with_http = map(1..=2);
    for region in with_http.regions.as_mut().unwrap().values_mut() {
        region.nodes[0].can_port80 = true;
    }
    world.check.set_map(&with_http);
    // While a portal is in the way, each measurement that may be a full one is.
    for (kind, answers, found) in [
        (Kind::Full, [false, false], Some(false)),
        (Kind::Full, [true, false], Some(true)),
        (Kind::Auto, [false, true], Some(true)),
        (Kind::Auto, [false, false], Some(false)),
    ] {
        world.check.start(kind, V4, world.now);
        assert_eq!(world.check.poll_portal_probe(), None, "not before 200 ms");
        world.now = world.check.poll_timeout().unwrap().max(world.now + Duration::from_millis(200));
        world.check.handle_timeout(world.now);
        let mut asked: Vec<_> =
            std::iter::from_fn(|| world.check.poll_portal_probe()).map(|probe| probe.server.to_string()).collect();
        asked.sort();
        assert_eq!(asked, ["192.0.2.1:80", "192.0.2.2:80"]);
        for is_portal in answers {
            world.check.handle_portal_answer(is_portal, world.now);
        }
        let report = world.measure(kind, V4);
        assert_eq!((report.captive_portal, report.is_captive()), (found, found == Some(true)));
    }
    // Nobody answers, which says nothing.
    assert_eq!(world.measure(Kind::Full, V4).captive_portal, None);
}

#[test]
fn no_portal_is_looked_for_where_udp_works_or_measurements_are_small() {
    let mut world = World::new(1, &[(1, false, 20)]);
    let mut with_http = map(1..=1);
    with_http.regions.as_mut().unwrap().get_mut(&RegionId(1)).unwrap().nodes[0].can_port80 = true;
    world.check.set_map(&with_http);
    for kind in [Kind::Full, Kind::Incremental] {
        let report = world.measure(kind, V4);
        assert_eq!((report.captive_portal, world.check.poll_portal_probe()), (None, None));
    }
    world.round_trips.clear();
    let report = world.measure(Kind::Incremental, V4);
    assert_eq!((report.udp, report.captive_portal), (false, None));
}
