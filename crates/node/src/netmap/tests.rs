mod hostile;

use std::collections::BTreeMap;

use ipnet::IpNet;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use warren_wire::control::{CapGrant, CapMap, DerpRegion, DisplayMessage, ExpiryChange, RegionId, from_json, to_json};

use super::*;

const NOW: i64 = 1_800_000_000;

fn at(seconds: i64) -> Time {
    Time::from_unix(seconds, 0).unwrap()
}

/// A moment when the time of day here is `seconds`.
fn moment(seconds: i64) -> Moment {
    Moment { steady: Duration::from_secs(u64::try_from(seconds).unwrap()), wall: at(seconds) }
}

fn own_key() -> NodeKey {
    NodeKey::from_bytes([0xaa; 32])
}

fn local() -> Node {
    Node {
        id: NodeId(100),
        name: "own.tail.example.".into(),
        key: own_key(),
        addresses: vec!["100.64.0.100/32".parse().unwrap()],
        machine_authorized: true,
        ..Node::default()
    }
}

/// Keys differ between IDs, whatever the variant.
fn key(id: i64, variant: u8) -> NodeKey {
    let mut bytes = [variant; 32];
    bytes[0] = u8::try_from(id).unwrap();
    bytes[31] = 1;
    NodeKey::from_bytes(bytes)
}

fn peer(id: i64, variant: u8) -> Node {
    Node {
        id: NodeId(id),
        name: format!("peer{id}.tail.example."),
        user: UserId(1),
        key: key(id, variant),
        addresses: vec![format!("100.64.0.{id}/32").parse().unwrap()],
        endpoints: vec!["192.0.2.1:41641".parse().unwrap()],
        ..Node::default()
    }
}

fn first(peers: Vec<Node>) -> MapResponse {
    MapResponse { node: Some(Box::new(local())), peers, ..MapResponse::default() }
}

fn started(peers: Vec<Node>) -> Netmap {
    let mut netmap = Netmap::default();
    netmap.begin_poll();
    netmap.apply(first(peers), &own_key(), moment(NOW)).unwrap();
    netmap
}

fn apply(netmap: &mut Netmap, response: MapResponse) -> Change {
    netmap.apply(response, &own_key(), moment(NOW)).unwrap()
}

#[test]
fn the_first_message_must_describe_this_node() {
    let mut netmap = Netmap::default();
    netmap.begin_poll();
    assert_eq!(netmap.apply(MapResponse::default(), &own_key(), moment(NOW)), Err(MapError::NoSelf));
    let other = NodeKey::from_bytes([1; 32]);
    assert_eq!(netmap.apply(first(vec![]), &other, moment(NOW)), Err(MapError::WrongKey));
    assert!(netmap.apply(first(vec![]), &own_key(), moment(NOW)).is_ok());
    assert!(netmap.apply(MapResponse::default(), &own_key(), moment(NOW)).is_ok());
}

#[test]
fn a_new_poll_replaces_and_reports_only_what_differs() {
    let mut netmap = started(vec![peer(1, 0), peer(2, 0), peer(3, 0)]);
    netmap.begin_poll();
    // Until the first message everything stays.
    assert_eq!(netmap.peers().count(), 3);
    let change = apply(&mut netmap, first(vec![peer(1, 0), peer(3, 7)]));
    assert_eq!(change.removed, [key(2, 0), key(3, 0)]);
    assert_eq!(change.peers.iter().map(|peer| peer.key()).collect::<Vec<_>>(), [key(3, 7)]);
    assert!(!change.local && change.filter);
}

#[test]
fn peers_may_come_as_changes_in_the_first_message() {
    let mut netmap = started(vec![peer(1, 0)]);
    netmap.begin_poll();
    let response = MapResponse { peers_changed: vec![peer(2, 0)], ..first(vec![]) };
    let change = apply(&mut netmap, response);
    assert_eq!(change.removed, [key(1, 0)]);
    assert_eq!(netmap.peers().map(|peer| peer.id()).collect::<Vec<_>>(), [NodeId(2)]);
}

#[test]
fn an_empty_list_of_peers_later_changes_nothing() {
    let mut netmap = started(vec![peer(1, 0)]);
    assert_eq!(apply(&mut netmap, MapResponse::default()), Change::default());
    assert_eq!(netmap.peers().count(), 1);
}

#[test]
fn a_complete_list_outranks_every_other_peer_field() {
    let mut netmap = started(vec![peer(1, 0)]);
    let response = MapResponse {
        peers: vec![peer(2, 0)],
        peers_changed: vec![peer(3, 0)],
        peers_removed: vec![NodeId(2)],
        ..MapResponse::default()
    };
    apply(&mut netmap, response);
    assert_eq!(netmap.peers().map(|peer| peer.id()).collect::<Vec<_>>(), [NodeId(2)]);
}

#[test]
fn whoever_cannot_be_a_peer_is_left_out_and_the_rest_stays() {
    let network = Node { addresses: vec!["100.64.0.0/10".parse().unwrap()], ..peer(4, 0) };
    let many = Node { addresses: vec!["100.64.0.5/32".parse().unwrap(); 17], ..peer(5, 0) };
    let bad = [
        Node { id: NodeId(0), ..peer(1, 0) },
        Node { key: NodeKey::default(), ..peer(2, 0) },
        Node { key: own_key(), ..peer(3, 0) },
        local(),
        network,
        many,
    ];
    let netmap = started(bad.into_iter().chain([peer(9, 0)]).collect());
    assert_eq!(netmap.peers().map(|peer| peer.id()).collect::<Vec<_>>(), [NodeId(9)]);
}

#[test]
fn a_peer_cannot_claim_our_address_nor_route_if_unsigned() {
    let routes = vec!["100.64.0.100/32".parse().unwrap(), "10.0.0.7/8".parse().unwrap()];
    let standby_routes: Vec<IpNet> = [&routes[..], &["0.0.0.0/0".parse().unwrap()]].concat();
    let greedy = Node { allowed_ips: Some(routes.clone()), standby_routes: standby_routes.clone(), ..peer(1, 0) };
    let unsigned = Node { allowed_ips: Some(routes), standby_routes, unsigned_peer_api_only: true, ..peer(2, 0) };
    let netmap = started(vec![greedy, unsigned]);
    let allowed: Vec<_> = netmap.peers().map(|peer| peer.allowed_ips().to_vec()).collect();
    assert_eq!(allowed, [vec!["10.0.0.0/8".parse().unwrap()], vec!["100.64.0.2/32".parse().unwrap()]]);
    assert!(netmap.peers().last().unwrap().is_jailed());
    let standby: Vec<_> = netmap.peers().map(|peer| peer.standby().to_vec()).collect();
    assert_eq!(standby, [vec!["10.0.0.0/8".parse().unwrap()], vec![]], "nobody stands in for all of the Internet");
}

#[test]
fn explicitly_no_routes_is_not_the_own_addresses() {
    let netmap = started(vec![Node { allowed_ips: Some(vec![]), ..peer(1, 0) }, peer(2, 0)]);
    let counts: Vec<_> = netmap.peers().map(|peer| peer.allowed_ips().len()).collect();
    assert_eq!(counts, [0, 1]);
}

#[test]
fn endpoints_nobody_can_send_to_are_left_out() {
    let texts = ["192.0.2.1:0", "0.0.0.0:1", "224.0.0.1:1", "[fe80::1]:1", "255.255.255.255:1", "[2001:db8::1]:1"];
    let endpoints = texts.iter().map(|text| text.parse().unwrap()).collect();
    let netmap = started(vec![Node { endpoints, ..peer(1, 0) }]);
    assert_eq!(netmap.peers().next().unwrap().endpoints(), ["[2001:db8::1]:1".parse().unwrap()]);
    let many = (1..=1000).map(|port| std::net::SocketAddr::from(([192, 0, 2, 1], port))).collect();
    let netmap = started(vec![Node { endpoints: many, ..peer(1, 0) }]);
    assert_eq!(netmap.peers().next().unwrap().endpoints().len(), 64);
}

#[test]
fn the_relay_map_never_becomes_empty() {
    let region = DerpRegion { region_id: RegionId(900), ..DerpRegion::default() };
    let map = DerpMap { regions: Some(BTreeMap::from([(RegionId(900), region)])), ..DerpMap::default() };
    let mut netmap = Netmap::default();
    netmap.begin_poll();
    assert!(apply(&mut netmap, MapResponse { derp_map: Some(map.clone()), ..first(vec![]) }).relays);
    let empty = DerpMap { regions: Some(BTreeMap::new()), ..DerpMap::default() };
    for emptier in [DerpMap::default(), empty] {
        assert!(!apply(&mut netmap, MapResponse { derp_map: Some(emptier), ..MapResponse::default() }).relays);
    }
    // A new poll that does not mention it keeps it, too.
    netmap.begin_poll();
    assert!(!apply(&mut netmap, first(vec![])).relays);
    assert_eq!(**netmap.relays().unwrap(), map);
}

#[test]
fn an_expired_peer_is_taken_away_by_the_servers_clock() {
    let mut netmap = Netmap::default();
    netmap.begin_poll();
    // This machine's clock is an hour behind.
    let expiring = Node { key_expiry: Some(at(NOW + 3700)), ..peer(1, 0) };
    let response = MapResponse { control_time: Some(at(NOW + 3600)), ..first(vec![expiring.clone(), peer(2, 0)]) };
    assert_eq!(apply(&mut netmap, response).peers.len(), 2);
    assert_eq!(netmap.next_timeout(moment(NOW)), Some(Duration::from_secs(100)));
    assert_eq!(netmap.handle_timeout(moment(NOW + 99)).removed, []);
    assert_eq!(netmap.handle_timeout(moment(NOW + 100)).removed, [key(1, 0)]);
    assert_eq!(netmap.handle_timeout(moment(NOW + 100)).removed, []);
    assert_eq!(netmap.whole().peers.len(), 1);
    assert_eq!(netmap.peers().filter(|peer| netmap.is_expired(peer)).count(), 1);
    // Extended by the administrator: it comes back.
    let patch = PeerChange { node_id: NodeId(1), key_expiry: Some(ExpiryChange::Never), ..PeerChange::default() };
    let change = apply(&mut netmap, MapResponse { peers_changed_patch: vec![patch], ..MapResponse::default() });
    assert_eq!(change.peers.len(), 1);
    // And a peer that comes expired never gets to the engine.
    let gone = Node { key_expiry: Some(at(NOW - 1)), ..peer(3, 0) };
    let marked = Node { expired: true, ..peer(4, 0) };
    let change = apply(&mut netmap, MapResponse { peers_changed: vec![gone, marked], ..MapResponse::default() });
    assert_eq!(change.peers, []);
}

#[test]
fn pieces_of_the_filter_are_joined_in_the_order_of_their_names() {
    let rule = |source: &str| FilterRule { src_ips: vec![source.into()], ..FilterRule::default() };
    let mut netmap = Netmap::default();
    netmap.begin_poll();
    apply(&mut netmap, MapResponse { packet_filter: Some(vec![rule("b")]), ..first(vec![]) });
    let sources = |netmap: &Netmap| netmap.filter().iter().map(|rule| rule.src_ips[0].clone()).collect::<Vec<_>>();
    let chunks = |pairs: Vec<(&str, Option<Vec<FilterRule>>)>| MapResponse {
        packet_filters: pairs.into_iter().map(|(name, rules)| (name.to_owned(), rules)).collect(),
        ..MapResponse::default()
    };
    apply(&mut netmap, chunks(vec![("z", Some(vec![rule("z")])), ("a", Some(vec![rule("a")]))]));
    assert_eq!(sources(&netmap), ["a", "b", "z"]);
    assert!(apply(&mut netmap, chunks(vec![("a", None)])).filter);
    assert_eq!(sources(&netmap), ["b", "z"]);
    // The same again is no change.
    assert!(!apply(&mut netmap, chunks(vec![("z", Some(vec![rule("z")]))])).filter);
    apply(&mut netmap, chunks(vec![("*", None), ("q", Some(vec![rule("q")]))]));
    assert_eq!(sources(&netmap), ["q"]);
    assert!(apply(&mut netmap, MapResponse { packet_filter: Some(vec![]), ..MapResponse::default() }).filter);
    // A new poll without a filter lets nothing in.
    netmap.begin_poll();
    assert!(apply(&mut netmap, first(vec![])).filter);
    assert!(netmap.filter().is_empty());
}

#[test]
fn rules_end_by_the_servers_clock_whatever_becomes_of_ours() {
    let rule = |source: &str, until: Option<i64>| FilterRule {
        src_ips: vec![source.into()],
        until: until.map(at),
        cap_grant: vec![CapGrant {
            dsts: vec!["100.64.0.100/32".parse().unwrap()],
            cap_map: CapMap::flags([source]),
            ..CapGrant::default()
        }],
        ..FilterRule::default()
    };
    let mut netmap = Netmap::default();
    netmap.begin_poll();
    // This machine's clock is an hour behind.
    let rules = vec![rule("*", None), rule("100.64.0.7", Some(NOW + 3660)), rule("100.64.0.0/10", Some(NOW + 3600))];
    let response = MapResponse { packet_filter: Some(rules), control_time: Some(at(NOW + 3600)), ..first(vec![]) };
    apply(&mut netmap, response);
    let sources = |netmap: &Netmap| netmap.filter().iter().map(|rule| rule.src_ips[0].clone()).collect::<Vec<_>>();
    assert_eq!(sources(&netmap), ["*", "100.64.0.7"], "what has ended already is not let in at all");
    let granted = |netmap: &Netmap| {
        let caps = netmap.grants().capabilities([100, 64, 0, 7].into(), [100, 64, 0, 100].into());
        caps.0.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(granted(&netmap), ["*", "100.64.0.7"]);
    assert!(netmap.has_rules_that_end());

    // Set right, and then wrong the other way: it makes no difference.
    for wall in [NOW, NOW + 3700, NOW - 100_000] {
        let in_59 = Moment { steady: moment(NOW + 59).steady, wall: at(wall) };
        assert_eq!(netmap.next_timeout(in_59), Some(Duration::from_secs(1)));
        assert_eq!(netmap.handle_timeout(in_59), Change::default());
    }
    let in_60 = Moment { steady: moment(NOW + 60).steady, wall: at(NOW) };
    assert_eq!(netmap.handle_timeout(in_60), Change { filter: true, ..Change::default() });
    assert_eq!((sources(&netmap), granted(&netmap)), (vec!["*".to_owned()], vec!["*".to_owned()]));
    assert_eq!((netmap.next_timeout(in_60), netmap.has_rules_that_end()), (None, false));
    assert_eq!(netmap.handle_timeout(in_60), Change::default(), "once");

    // The server's clock was wrong and is set back: the rule holds again, until its end comes again.
    assert!(netmap.observe_clock(at(NOW + 3000), in_60).filter);
    assert_eq!(sources(&netmap), ["*", "100.64.0.7", "100.64.0.0/10"]);
    assert_eq!(netmap.next_timeout(in_60), Some(Duration::from_secs(600)));
}

#[test]
fn the_servers_messages_are_bounded_and_harmless() {
    let mut netmap = started(vec![]);
    let health = (0..100).map(|i| format!("{i}\u{1b}[31m{}", "x".repeat(1000))).collect();
    let message = DisplayMessage { title: "T".into(), text: "text".into(), ..DisplayMessage::default() };
    let display_messages = (0..100).map(|i| (i.to_string(), Some(message.clone()))).collect();
    apply(&mut netmap, MapResponse { health: Some(health), display_messages, ..MapResponse::default() });
    assert_eq!(netmap.health().count(), 64);
    assert!(netmap.health().all(|text| text.len() <= 400 && !text.contains('\u{1b}')));
    let clear = BTreeMap::from([("*".to_owned(), None)]);
    apply(&mut netmap, MapResponse { health: Some(vec![]), display_messages: clear, ..MapResponse::default() });
    assert_eq!(netmap.health().count(), 0);
}

#[test]
fn a_change_of_our_addresses_judges_all_peers_again() {
    let claim = Node { allowed_ips: Some(vec!["100.64.0.200/32".parse().unwrap()]), ..peer(1, 0) };
    let mut netmap = started(vec![claim]);
    assert_eq!(netmap.peers().next().unwrap().allowed_ips().len(), 1);
    let moved = Node { addresses: vec!["100.64.0.200/32".parse().unwrap()], ..local() };
    let change = apply(&mut netmap, MapResponse { node: Some(Box::new(moved)), ..MapResponse::default() });
    assert!(change.local);
    assert_eq!(change.peers.len(), 1);
    assert_eq!(netmap.peers().next().unwrap().allowed_ips().len(), 0);
}

#[test]
fn a_wrong_clock_takes_peers_away_only_until_it_is_known_to_be_wrong() {
    // This machine's clock is two hours ahead, and the server has not said what its own shows.
    let expiring = |id| Node { key_expiry: Some(at(NOW - 3600)), ..peer(id, 0) };
    let mut netmap = Netmap::default();
    netmap.begin_poll();
    let change = apply(&mut netmap, first(vec![expiring(1), expiring(2), peer(3, 0)]));
    assert_eq!(change.peers.iter().map(|peer| peer.id()).collect::<Vec<_>>(), [NodeId(3)]);
    let change = netmap.observe_clock(at(NOW - 7200), moment(NOW));
    assert_eq!(change.peers.iter().map(|peer| peer.id()).collect::<Vec<_>>(), [NodeId(1), NodeId(2)]);
    assert_eq!(change.removed, []);
    assert_eq!(netmap.next_timeout(moment(NOW)), Some(Duration::from_secs(3600)));
    // The clock was set right while the old difference was still believed: in two hours' time they expire for good.
    let change = netmap.observe_clock(at(NOW), moment(NOW));
    assert_eq!((change.removed, change.peers.len()), (vec![key(1, 0), key(2, 0)], 0));
}

#[test]
fn a_peer_that_comes_back_and_goes_in_one_message_is_gone() {
    let mut netmap = started(vec![Node { key_expiry: Some(at(NOW - 60)), ..peer(1, 0) }]);
    let response =
        MapResponse { control_time: Some(at(NOW - 3600)), peers_removed: vec![NodeId(1)], ..MapResponse::default() };
    let change = apply(&mut netmap, response);
    assert_eq!((change.peers.len(), netmap.peers().count()), (0, 0));
}

#[test]
fn of_two_peers_with_one_key_the_newer_stays() {
    let mut netmap = started(vec![peer(1, 0)]);
    let double = Node { key: key(1, 0), ..peer(2, 0) };
    let change = apply(&mut netmap, MapResponse { peers_changed: vec![double], ..MapResponse::default() });
    assert_eq!(change.removed, [key(1, 0)]);
    assert_eq!(change.peers.iter().map(|peer| peer.id()).collect::<Vec<_>>(), [NodeId(2)]);
    assert_eq!(netmap.peer_with(key(1, 0)).unwrap().id(), NodeId(2));
    // That the stale record goes must not take the living one with it.
    let change = apply(&mut netmap, MapResponse { peers_removed: vec![NodeId(1)], ..MapResponse::default() });
    assert_eq!(change, Change::default());
    assert_eq!(netmap.peers().count(), 1);
}

#[test]
fn a_lock_that_is_not_checked_is_told() {
    let info = |head: &str, disabled| warren_wire::control::TkaInfo { head: head.into(), disabled };
    let mut netmap = started(vec![]);
    apply(&mut netmap, MapResponse { tka_info: Some(info("abc", false)), ..MapResponse::default() });
    assert!(netmap.health().any(|text| text.contains("locked")));
    apply(&mut netmap, MapResponse { tka_info: Some(info("", true)), ..MapResponse::default() });
    assert_eq!(netmap.health().count(), 0);
}

/// The naive model: what the tables of control.md say, without any index.
#[derive(Default)]
struct Model {
    peers: Vec<Node>,
    filters: Vec<(String, Vec<FilterRule>)>,
}

impl Model {
    fn upsert(&mut self, node: &Node) {
        self.peers.retain(|old| old.id != node.id);
        self.peers.push(node.clone());
        self.peers.sort_by_key(|node| node.id);
    }

    fn edit(&mut self, id: NodeId, edit: impl Fn(&mut Node)) {
        self.peers.iter_mut().filter(|node| node.id == id).for_each(edit);
    }

    fn apply(&mut self, first: bool, response: &MapResponse, now: Time) {
        if first {
            self.peers.clear();
            self.filters.clear();
        }
        if response.peers.is_empty() {
            self.peers.retain(|node| !response.peers_removed.contains(&node.id));
            response.peers_changed.iter().for_each(|node| self.upsert(node));
            for (id, seen) in &response.peer_seen_change {
                self.edit(*id, |node| node.last_seen = seen.then_some(now));
            }
            for (id, online) in &response.online_change {
                self.edit(*id, |node| node.online = Some(*online));
            }
            for patch in &response.peers_changed_patch {
                self.edit(patch.node_id, |node| {
                    if patch.derp_region != RegionId(0) {
                        node.home_derp = patch.derp_region;
                    }
                    node.endpoints = patch.endpoints.clone().unwrap_or_else(|| node.endpoints.clone());
                    node.key = patch.key.unwrap_or(node.key);
                    node.online = patch.online.or(node.online);
                    node.last_seen = patch.last_seen.or(node.last_seen);
                    if let Some(expiry) = patch.key_expiry {
                        node.key_expiry = expiry.into();
                    }
                });
            }
        } else {
            self.peers.clear();
            response.peers.iter().for_each(|node| self.upsert(node));
        }
        if let Some(base) = &response.packet_filter {
            self.filters.retain(|(name, _)| name != "base");
            self.filters.push(("base".into(), base.clone()));
        }
        if response.packet_filters.get("*") == Some(&None) {
            self.filters.clear();
        }
        for (name, rules) in response.packet_filters.iter().filter(|(name, _)| *name != "*") {
            self.filters.retain(|(old, _)| old != name);
            self.filters.extend(rules.clone().map(|rules| (name.clone(), rules)));
        }
        self.filters.sort_by(|a, b| a.0.cmp(&b.0));
    }

    /// One complete message that says the same.
    fn whole(&self) -> MapResponse {
        MapResponse {
            packet_filters: self.filters.iter().map(|(name, rules)| (name.clone(), Some(rules.clone()))).collect(),
            ..first(self.peers.clone())
        }
    }
}

fn arb_time() -> impl Strategy<Value = Option<Time>> {
    prop_oneof![Just(None), Just(Some(at(NOW - 10))), Just(Some(at(NOW + 10))), Just(Some(at(NOW + 100)))]
}

fn arb_id() -> impl Strategy<Value = i64> {
    1_i64..6
}

fn arb_node() -> impl Strategy<Value = Node> {
    (arb_id(), 0_u8..3, arb_time(), any::<bool>(), 0_u16..3).prop_map(|(id, variant, key_expiry, expired, home)| Node {
        key_expiry,
        expired: expired && variant == 2,
        home_derp: RegionId(home),
        ..peer(id, variant)
    })
}

fn arb_patch() -> impl Strategy<Value = PeerChange> {
    let key_part = proptest::option::of(0_u8..3);
    let expiry = proptest::option::of(arb_time());
    (arb_id(), 0_u16..3, key_part, proptest::option::of(0_u16..3), any::<Option<bool>>(), expiry).prop_map(
        |(id, region, variant, endpoints, online, expiry)| PeerChange {
            node_id: NodeId(id),
            derp_region: RegionId(region),
            key: variant.map(|variant| key(id, variant)),
            endpoints: endpoints.map(|count| (0..count).map(|port| ([192, 0, 2, 9], port + 1).into()).collect()),
            online,
            key_expiry: expiry.map(ExpiryChange::from),
            ..PeerChange::default()
        },
    )
}

fn arb_rules() -> impl Strategy<Value = Vec<FilterRule>> {
    let rule =
        |(n, until): (u8, Option<Time>)| FilterRule { src_ips: vec![n.to_string()], until, ..FilterRule::default() };
    vec((0_u8..3, arb_time()).prop_map(rule), 0..3)
}

fn arb_response() -> impl Strategy<Value = MapResponse> {
    let ids = || arb_id().prop_map(NodeId);
    let chunk_name = prop_oneof![Just("*".to_owned()), Just("base".to_owned()), Just("x".to_owned())];
    let chunks = btree_map(chunk_name, proptest::option::of(arb_rules()), 0..3);
    (
        prop_oneof![3 => Just(vec![]), 1 => vec(arb_node(), 1..5)],
        vec(arb_node(), 0..3),
        vec(ids(), 0..3),
        btree_map(ids(), any::<bool>(), 0..3),
        btree_map(ids(), any::<bool>(), 0..3),
        vec(arb_patch(), 0..3),
        proptest::option::of(arb_rules()),
        chunks,
    )
        .prop_map(|(peers, changed, removed, seen, online, patches, packet_filter, mut packet_filters)| {
            // A "*" with rules means nothing.
            if packet_filters.get("*").is_some_and(Option::is_some) {
                packet_filters.remove("*");
            }
            MapResponse {
                peers,
                peers_changed: changed,
                peers_removed: removed,
                peer_seen_change: seen,
                online_change: online,
                peers_changed_patch: patches,
                packet_filter,
                packet_filters,
                ..MapResponse::default()
            }
        })
}

#[derive(Debug, Clone)]
enum Step {
    Response(Box<MapResponse>),
    NewPoll(Box<MapResponse>),
    Wait(i64),
}

fn arb_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => arb_response().prop_map(|response| Step::Response(Box::new(response))),
        1 => arb_response().prop_map(|response| {
            Step::NewPoll(Box::new(MapResponse { node: Some(Box::new(local())), ..response }))
        }),
        1 => (0_i64..60).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever the way, the state is that of the model, what the engine was told adds up to it, and one complete
    /// message that says the same gives the same state.
    #[test]
    fn deltas_add_up_to_the_full_map(steps in vec(arb_step(), 1..12)) {
        let mut now = moment(NOW);
        let mut netmap = started(vec![]);
        let mut model = Model::default();
        let mut engine: BTreeMap<NodeKey, Arc<Peer>> = BTreeMap::new();
        let mut filter = netmap.filter();
        for step in steps {
            let (first, response) = match step {
                Step::Response(response) => (false, *response),
                Step::NewPoll(response) => {
                    netmap.begin_poll();
                    (true, *response)
                }
                Step::Wait(seconds) => {
                    now = moment(now.wall.unix_seconds() + seconds);
                    let change = netmap.handle_timeout(now);
                    for key in &change.removed {
                        engine.remove(key);
                    }
                    if change.filter {
                        filter = netmap.filter();
                    }
                    continue;
                }
            };
            model.apply(first, &response, now.wall);
            let change = netmap.apply(response, &own_key(), now).unwrap();
            for key in &change.removed {
                engine.remove(key);
            }
            for peer in change.peers {
                engine.insert(peer.key(), peer);
            }
            if change.filter {
                filter = netmap.filter();
            }
        }
        let nodes: Vec<&Node> = netmap.peers().map(|peer| peer.node()).collect();
        prop_assert_eq!(nodes, model.peers.iter().collect::<Vec<_>>());
        let holds = |rule: &FilterRule| rule.until.is_none_or(|until| now.wall < until);
        let rules: Vec<_> = model.filters.iter().flat_map(|(_, rules)| rules.clone()).filter(holds).collect();
        prop_assert_eq!(&filter[..], &rules[..]);

        let mut fresh = Netmap::default();
        fresh.begin_poll();
        fresh.apply(model.whole(), &own_key(), now).unwrap();
        prop_assert_eq!(netmap.whole().peers, fresh.whole().peers.clone());
        prop_assert_eq!(engine.into_values().collect::<Vec<_>>().len(), fresh.whole().peers.len());
        prop_assert_eq!(netmap.next_timeout(now), fresh.next_timeout(now));
        for id in 1..6_u8 {
            let address = std::net::IpAddr::from([100, 64, 0, id]);
            let found = |netmap: &Netmap| netmap.peer_at(address).map(|peer| peer.id());
            prop_assert_eq!(found(&netmap), found(&fresh));
        }
    }

    /// The engine holds exactly the peers of the netmap, each in its last form.
    #[test]
    fn what_the_engine_is_told_is_exact(responses in vec(arb_response(), 1..8)) {
        let mut netmap = started(vec![]);
        let mut engine: BTreeMap<NodeKey, Arc<Peer>> = BTreeMap::new();
        for response in responses {
            let change = apply(&mut netmap, response);
            for key in &change.removed {
                engine.remove(key);
            }
            for peer in change.peers {
                // Nothing is told that is known already.
                prop_assert_ne!(engine.get(&peer.key()), Some(&peer));
                engine.insert(peer.key(), peer);
            }
            let expected: BTreeMap<_, _> = netmap.whole().peers.into_iter().map(|peer| (peer.key(), peer)).collect();
            prop_assert_eq!(&engine, &expected);
        }
    }

    /// Random JSON that reads as a map response never breaks the netmap.
    #[test]
    fn no_response_panics(text in "\\{(\"(Peers|PeersChanged|PeersRemoved|Node|PacketFilter|DERPMap|Health)\":(\\[\\]|null|\\[\\{\"ID\":-?[0-9]{1,18}\\}\\]|\\{\\}),?){0,4}") {
        if let Ok(response) = from_json::<MapResponse>(format!("{}}}", text.trim_end_matches(',')).as_bytes()) {
            let mut netmap = started(vec![peer(1, 0)]);
            drop(netmap.apply(response, &own_key(), moment(NOW)));
            for peer in netmap.peers() {
                prop_assert!(to_json(peer.node()).is_ok());
            }
        }
    }
}
