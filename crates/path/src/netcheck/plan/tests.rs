use super::*;
use crate::netcheck::report::Latencies;
use proptest::prelude::*;
use warren_wire::control::{DerpHomeParams, DerpRegion};

const BOTH: Families = Families { v4: true, v6: true };

fn relay(name: &str) -> DerpNode {
    DerpNode {
        name: name.into(),
        host_name: format!("{name}.example"),
        ipv4: "192.0.2.1".into(),
        ipv6: "2001:db8::1".into(),
        ..DerpNode::default()
    }
}

fn map(regions: impl IntoIterator<Item = (u16, Vec<DerpNode>)>) -> DerpMap {
    let regions = regions.into_iter().map(|(id, nodes)| (RegionId(id), DerpRegion { nodes, ..DerpRegion::default() }));
    DerpMap { regions: Some(regions.collect()), ..DerpMap::default() }
}

fn report(latencies: &[(u16, Option<u64>, Option<u64>)]) -> Report {
    let millis = |millis: Option<u64>| millis.map(Duration::from_millis);
    let latencies = latencies
        .iter()
        .map(|(id, v4, v6)| (RegionId(*id), Latencies { v4: millis(*v4), v6: millis(*v6), relay: None }));
    Report { latencies: latencies.collect(), ..Report::default() }
}

/// Returns region, family and the milliseconds of the tries.
fn shape(sets: &[Set]) -> Vec<(u16, Family, Vec<u128>)> {
    let millis = |set: &Set| set.tries.iter().map(|a_try| a_try.after.as_millis()).collect();
    sets.iter().map(|set| (set.region.0, set.family, millis(set))).collect()
}

fn address(map: &DerpMap, families: Families) -> Vec<RelayAddress> {
    let sets = Regions::new(map).plan_full(families);
    sets.into_iter().flat_map(|set| set.tries).map(|a_try| a_try.address).collect()
}

#[test]
fn full_plan_asks_every_region_three_times_by_turns() {
    let map = map([(1, vec![relay("1a"), relay("1b")]), (2, vec![relay("2a")])]);
    let sets = Regions::new(&map).plan_full(BOTH);
    let times = vec![0, 100, 200];
    let expected = [
        (1, Family::V4, times.clone()),
        (1, Family::V6, times.clone()),
        (2, Family::V4, times.clone()),
        (2, Family::V6, times),
    ];
    assert_eq!(shape(&sets), expected);
    let servers: Vec<_> = sets[0].tries.iter().map(|a_try| &*a_try.server).collect();
    assert_eq!(servers, ["1a", "1b", "1a"]);
}

#[test]
fn unmeasurable_regions_are_left_out() {
    let mut map = map([(0, vec![relay("0a")]), (1, vec![relay("1a")]), (2, vec![]), (3, vec![relay("3a")])]);
    map.regions.as_mut().unwrap().get_mut(&RegionId(1)).unwrap().no_measure_no_home = true;
    let sets = Regions::new(&map).plan_full(Families { v4: true, v6: false });
    assert_eq!(shape(&sets), [(3, Family::V4, vec![0, 100, 200])]);
}

#[test]
fn server_addresses_are_read_as_the_map_means_them() {
    let one = |node: DerpNode, families| address(&map([(1, vec![node])]), families).into_iter().next();
    let v4 = Families { v4: true, v6: false };
    let v6 = Families { v4: false, v6: true };
    let literal = |text: &str| Some(RelayAddress::Literal(text.parse().unwrap()));
    assert_eq!(one(relay("a"), v4), literal("192.0.2.1:3478"));
    assert_eq!(one(relay("a"), v6), literal("[2001:db8::1]:3478"));
    assert_eq!(one(DerpNode { stun_port: 99, ..relay("a") }, v4), literal("192.0.2.1:99"));
    assert_eq!(one(DerpNode { stun_port: -1, ..relay("a") }, v4), None);
    assert_eq!(one(DerpNode { stun_port: 65536, ..relay("a") }, v4), None);
    let named = RelayAddress::Name { host: "a.example".into(), port: 3478, v6: false };
    assert_eq!(one(DerpNode { ipv4: String::new(), ..relay("a") }, v4), Some(named));
    assert_eq!(one(DerpNode { ipv4: "none".into(), ..relay("a") }, v4), None);
    assert_eq!(one(DerpNode { ipv4: "2001:db8::1".into(), ..relay("a") }, v4), None);
    let test = DerpNode { stun_test_ip: "127.0.0.1".into(), ..relay("a") };
    assert_eq!((one(test.clone(), v4), one(test, v6)), (literal("127.0.0.1:3478"), None));
}

/// The table of the protocol page.
#[test]
fn incremental_plan_asks_the_nearest_three_and_the_home() {
    let map = map((1..=6).map(|id| (id, vec![relay(&format!("{id}a"))])));
    let regions = Regions::new(&map);
    let last = report(&[(5, Some(10), Some(10)), (4, Some(20), None), (3, Some(30), None), (2, Some(100), None)]);
    let sets = regions.plan_incremental(BOTH, &last, Some(RegionId(2)));
    let expected = [
        (5, Family::V4, vec![0, 12]),
        (5, Family::V6, vec![0, 12]),
        (4, Family::V4, vec![0, 24]),
        (4, Family::V6, vec![0, 24]),
        (3, Family::V4, vec![0]),
        (2, Family::V4, vec![0, 120, 340, 510]),
        (2, Family::V6, vec![0, 120, 340, 510]),
    ];
    assert_eq!(shape(&sets), expected);
    // IPv6 that did not work is tried once for each of the first two, in case it has come.
    let last = report(&[(5, Some(10), None)]);
    let sets = regions.plan_incremental(BOTH, &last, Some(RegionId(5)));
    let expected = [
        (5, Family::V4, vec![0, 12, 124, 186]),
        (5, Family::V6, vec![0]),
        (1, Family::V4, vec![0, 200]),
        (1, Family::V6, vec![0]),
        (2, Family::V4, vec![0]),
    ];
    assert_eq!(shape(&sets), expected);
}

#[test]
fn regions_to_avoid_are_asked_only_as_home() {
    let mut map = map((1..=2).map(|id| (id, vec![relay("a")])));
    map.regions.as_mut().unwrap().get_mut(&RegionId(1)).unwrap().avoid = true;
    let regions = Regions::new(&map);
    let last = report(&[(1, Some(1), None), (2, Some(2), None)]);
    let asked = |home| {
        let v4 = Families { v4: true, v6: false };
        shape(&regions.plan_incremental(v4, &last, home)).into_iter().map(|(id, ..)| id).collect::<Vec<_>>()
    };
    assert_eq!(asked(None), [2]);
    assert_eq!(asked(Some(RegionId(1))), [1, 2]);
}

#[test]
fn only_sane_scores_are_kept() {
    let scores =
        [(1, 0.5), (2, 0.0), (3, -1.0), (4, f64::NAN), (5, f64::INFINITY)].map(|(id, score)| (RegionId(id), score));
    let home_params = Some(DerpHomeParams { region_score: Some(scores.into()) });
    let regions = Regions::new(&DerpMap { home_params, ..map([]) });
    assert_eq!(regions.scores, [(RegionId(1), 0.5)].into());
}

proptest! {
    /// A map from a hostile server makes neither panic nor flood.
    #[test]
    fn plans_are_bounded(
        regions in proptest::collection::vec((any::<u16>(), 0_usize..40, any::<i32>()), 0..400),
        last in proptest::collection::vec((any::<u16>(), proptest::option::of(0_u64..=u64::MAX / 2_000_000)), 0..20),
    ) {
        let map = map(regions.into_iter().map(|(id, nodes, stun_port)| {
            (id, (0..nodes).map(|number| DerpNode { stun_port: stun_port % 4, ..relay(&number.to_string()) }).collect())
        }));
        let regions = Regions::new(&map);
        let sets = regions.plan_full(BOTH);
        prop_assert!(sets.len() <= 2 * MAX_REGIONS);
        prop_assert!(sets.iter().all(|set| set.tries.len() == 3));
        let last: Vec<_> = last.into_iter().map(|(id, latency)| (id, latency.map(|latency| latency % 5000), None)).collect();
        let home = last.first().map(|(id, ..)| RegionId(*id));
        let sets = regions.plan_incremental(BOTH, &report(&last), home);
        prop_assert!(sets.len() <= 8 && sets.iter().all(|set| (1..=4).contains(&set.tries.len())));
    }
}
