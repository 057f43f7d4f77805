//! What happens to a node that is on its tailnet, and what its engine is told.

use serde_json::json;
use tokio::sync::oneshot;
use warren_wire::control::{
    CapGrant, CapMap, EndpointType, FilterRule, MapResponse, Node, NodeId, PeerChange, PingRequest, RawJson, Time,
};

use super::super::*;
use super::fixture::{Fixture, NOON, SET_FORWARD, clock, map, own, peer, peer_key};
use crate::control_client::fake::{Call, MapStream, Mood};
use crate::local_api::Who;

fn at(seconds: i64) -> Time {
    Time::from_unix(NOON + seconds, 0).unwrap()
}

fn ids(update: &Update) -> Vec<i64> {
    update.peers.iter().map(|peer| peer.id().0).collect()
}

/// Sends a message and returns what the engine was told because of it.
async fn told(node: &Fixture, stream: &MapStream, response: MapResponse) -> Vec<Update> {
    node.updates();
    node.send(stream, response).await;
    node.updates()
}

#[tokio::test(start_paused = true)]
async fn each_message_becomes_at_most_one_update_that_says_what_changed() {
    let (node, stream) = Fixture::running("updates", map(&[2, 3])).await;
    let nothing = told(&node, &stream, MapResponse::default()).await;
    assert!(nothing.is_empty(), "{nothing:?}");

    let changed = vec![Node { home_derp: warren_wire::control::RegionId(900), ..peer(3) }, peer(4)];
    let gone = vec![NodeId(2)];
    let response = MapResponse { peers_changed: changed, peers_removed: gone, ..MapResponse::default() };
    let updates = told(&node, &stream, response).await;
    let [update] = &updates[..] else { panic!("{updates:?}") };
    assert!(update.local.is_none() && update.relays.is_none() && update.filter.is_none());
    assert_eq!((ids(update), &update.removed[..]), (vec![3, 4], &[peer_key(2)][..]));

    let endpoints = Some(vec!["192.0.2.7:41641".parse().unwrap()]);
    let patch = PeerChange { node_id: NodeId(4), endpoints, ..PeerChange::default() };
    let updates =
        told(&node, &stream, MapResponse { peers_changed_patch: vec![patch], ..MapResponse::default() }).await;
    assert_eq!(updates.iter().map(ids).collect::<Vec<_>>(), [[4]]);
    assert_eq!(updates[0].peers[0].endpoints(), ["192.0.2.7:41641".parse().unwrap()]);

    let rules = vec![FilterRule::default(), FilterRule::default()];
    let updates = told(&node, &stream, MapResponse { packet_filter: Some(rules), ..MapResponse::default() }).await;
    assert_eq!(updates.len(), 1);
    assert_eq!(updates[0].filter.as_ref().unwrap().len(), 2);
    assert!(updates[0].peers.is_empty() && updates[0].local.is_none());

    let key = node.status().await.self_.public_key.parse().unwrap();
    let moved = Node { key, addresses: vec!["100.64.0.9/32".parse().unwrap()], ..own() };
    let updates = told(&node, &stream, MapResponse { node: Some(Box::new(moved)), ..MapResponse::default() }).await;
    let [Update { local: Some(LocalUpdate::Up(local)), .. }] = &updates[..] else { panic!("{updates:?}") };
    assert_eq!(local.node.addresses, ["100.64.0.9/32".parse().unwrap()]);
}

#[tokio::test(start_paused = true)]
async fn choices_of_the_user_reach_the_engine_at_once() {
    let (node, _stream) = Fixture::running("settings", map(&[2])).await;
    node.updates();
    node.edit(json!({"RouteAll": true, "RouteAllSet": true})).await.unwrap();
    let updates = node.updates();
    let [Update { local: Some(LocalUpdate::Up(local)), .. }] = &updates[..] else { panic!("{updates:?}") };
    assert_eq!(local.settings, Settings { accept_routes: true, accept_dns: true, ..Settings::default() });
    assert!(updates[0].peers.is_empty());
    node.edit(json!({"Hostname": "x", "HostnameSet": true})).await.unwrap();
    assert!(node.updates().is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_the_server_everything_stays_and_its_return_costs_one_map() {
    let (mut node, stream) = Fixture::running("away", map(&[2, 3])).await;
    node.updates();
    node.server.set_mood(Mood::Down);
    drop(stream);
    let away = |bus: &Bus| bus.trouble.as_ref().is_some_and(|trouble| trouble.attempts > 5);
    let bus = node.bus(away).await;
    assert_eq!((bus.state, bus.trouble.unwrap().kind), (State::Running, TroubleKind::Unreachable));
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert_eq!(node.shared.bus.borrow().state, State::Running);
    let (updates, hearing) = node.updates_and_hearing();
    assert!(updates.is_empty() && hearing == [false], "only that the home relay must stay");
    let status = node.status().await;
    assert_eq!(status.peer.len(), 2);
    assert!(status.health.iter().any(|text| text.contains("cannot reach")), "{:?}", status.health);

    node.server.set_mood(Mood::Normal);
    // No registration: the first call is the poll (and its report).
    let key = node.status().await.self_.public_key.parse().unwrap();
    let (_, stream, _) = node.poll().await;
    let fresh = MapResponse { node: Some(Box::new(Node { key, ..own() })), ..map(&[3, 4]) };
    let updates = told(&node, &stream, fresh).await;
    let [update] = &updates[..] else { panic!("{updates:?}") };
    assert_eq!((ids(update), &update.removed[..]), (vec![4], &[peer_key(2)][..]));
    assert!(update.local.is_none() && update.relays.is_none());
    assert_eq!(node.shared.bus.borrow().trouble, None);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_expires_by_the_clock_takes_the_node_down_and_an_extension_brings_it_back() {
    let mut first = map(&[2]);
    first.node.as_mut().unwrap().key_expiry = Some(at(60));
    let (node, stream) = Fixture::running("expiry", first).await;
    node.updates();
    node.reach(State::NeedsLogin).await;
    let late = clock().wall.saturating_since(at(60));
    assert!(clock().wall >= at(60) && late < Duration::from_secs(1), "{late:?} late");
    let updates = node.updates();
    assert!(matches!(&updates[..], [Update { local: Some(LocalUpdate::Down), .. }]), "{updates:?}");
    // The map is still followed: the administrator extends the key.
    let key = node.status().await.self_.public_key.parse().unwrap();
    let extended = Node { key, key_expiry: Some(at(100_000)), ..own() };
    stream.send(&MapResponse { node: Some(Box::new(extended)), ..MapResponse::default() }).await;
    node.reach(State::Starting).await;
    assert_eq!(node.updates().iter().map(ids).collect::<Vec<_>>(), [[2]]);
}

#[tokio::test(start_paused = true)]
async fn up_on_an_expired_key_makes_a_new_one() {
    let (mut node, stream) = Fixture::running("expired-up", map(&[2])).await;
    let old = node.status().await.self_.public_key.clone();
    let expired = Node { key: old.parse().unwrap(), key_expiry: Some(at(-1)), ..own() };
    stream.send(&MapResponse { node: Some(Box::new(expired)), ..MapResponse::default() }).await;
    node.reach(State::NeedsLogin).await;
    node.start("").await.unwrap();
    let (request, _) = node.register().await;
    assert_ne!(request.node_key.to_string(), old);
    assert_eq!(request.old_node_key.unwrap().to_string(), old);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_expires_by_the_clock_is_taken_from_the_engine() {
    let mut first = map(&[2, 3]);
    first.peers[0].key_expiry = Some(at(600));
    let (node, _stream) = Fixture::running("peer-expiry", first).await;
    node.updates();
    tokio::time::sleep(Duration::from_secs(599)).await;
    assert!(node.updates().is_empty());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let updates = node.updates();
    assert_eq!(updates.iter().map(|update| &update.removed[..]).collect::<Vec<_>>(), [[peer_key(2)]]);
    assert!(node.status().await.peer[&peer_key(2).to_string()].expired);
}

#[tokio::test(start_paused = true)]
async fn a_rule_ends_by_itself_while_the_server_is_away_and_the_clock_is_wrong() {
    let rule =
        |until: Option<i64>| FilterRule { src_ips: vec!["*".into()], until: until.map(at), ..Default::default() };
    let mut first = map(&[2]);
    // The server's clock is an hour ahead of ours.
    first.control_time = Some(at(3600));
    first.packet_filter = Some(vec![rule(None), rule(Some(3900)), rule(Some(4200))]);
    let (node, stream) = Fixture::running("rule-end", first).await;
    assert_eq!(node.updates().last().unwrap().filter.as_ref().unwrap().len(), 3);
    node.server.set_mood(Mood::Down);
    drop(stream);
    let begin = clock().steady;
    for (after, left, set_forward) in [(300, 2, 7200), (600, 1, -90_000)] {
        let wait = |seconds| tokio::time::sleep((begin + Duration::from_secs(seconds)).saturating_sub(clock().steady));
        wait(after - 1).await;
        assert!(node.updates().is_empty());
        SET_FORWARD.set(set_forward);
        wait(after + 1).await;
        let updates = node.updates();
        let [Update { filter: Some(rules), .. }] = &updates[..] else { panic!("{updates:?}") };
        assert_eq!(rules.len(), left);
    }
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert!(node.updates().is_empty());
}

#[tokio::test(start_paused = true)]
async fn whois_says_what_the_rules_grant_a_peer() {
    let rule = |source: &str, name: &str, value: &str| FilterRule {
        src_ips: vec![source.into()],
        cap_grant: vec![CapGrant {
            dsts: vec!["100.64.0.1/32".parse().unwrap()],
            cap_map: CapMap([(name.to_owned(), vec![RawJson::parse(value).unwrap()])].into()),
            ..CapGrant::default()
        }],
        ..FilterRule::default()
    };
    let mut first = map(&[2, 3]);
    let piece = |rules| Some(rules);
    first.packet_filters = [
        ("a".to_owned(), piece(vec![rule("100.64.0.2", "example.com/cap", r#"{"role":"admin"}"#)])),
        ("b".to_owned(), piece(vec![FilterRule { until: Some(at(60)), ..rule("*", "example.com/cap", "2") }])),
    ]
    .into();
    let (node, stream) = Fixture::running("granted", first).await;
    let granted = async |who| {
        let answer = node.ask(|reply| Request::WhoIs(who, reply)).await.unwrap();
        serde_json::to_value(answer.cap_map).unwrap()
    };
    let address = |text: &str| Who::Address(text.parse().unwrap());
    assert_eq!(granted(address("100.64.0.2")).await, json!({"example.com/cap": [{"role": "admin"}, 2]}));
    assert_eq!(granted(Who::Key(peer_key(3))).await, json!({"example.com/cap": [2]}));
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(granted(Who::Key(peer_key(3))).await, json!({}));
    // One piece goes, the other stays.
    let pieces = [("b".to_owned(), None), ("c".to_owned(), piece(vec![rule("100.64.0.3", "other", "null")]))];
    told(&node, &stream, MapResponse { packet_filters: pieces.into(), ..MapResponse::default() }).await;
    assert_eq!(granted(Who::Key(peer_key(2))).await, json!({"example.com/cap": [{"role": "admin"}]}));
    assert_eq!(granted(address("100.64.0.3")).await, json!({"other": [null]}));
    node.edit(json!({"ShieldsUp": true, "ShieldsUpSet": true})).await.unwrap();
    assert_eq!(granted(address("100.64.0.2")).await, json!({}), "whoever takes no connection grants nothing");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_wrong_expires_nobody_and_is_told() {
    let mut first = map(&[2]);
    // The server's clock is two hours behind ours; by it both keys are good for another hour.
    first.control_time = Some(at(-7200));
    first.peers[0].key_expiry = Some(at(-3600));
    first.node.as_mut().unwrap().key_expiry = Some(at(-3600));
    let (node, _stream) = Fixture::running("clock", first).await;
    let updates = node.updates();
    assert_eq!(ids(updates.last().unwrap()), [2]);
    let status = node.status().await;
    assert!(status.health.iter().any(|text| text.contains("clock is 120 min ahead")), "{:?}", status.health);
    assert_eq!(node.reach(State::NeedsLogin).await.state, State::NeedsLogin);
    assert!(clock().wall >= at(3600));
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_not_approved_carries_nothing() {
    let mut node = Fixture::new("approval");
    node.start("wkey-good").await.unwrap();
    let (_, reply) = node.register().await;
    reply.send(crate::control_client::fake::Reply::ok()).unwrap();
    let (request, stream, _) = node.poll().await;
    let waiting = Node { key: request.node_key, machine_authorized: false, ..own() };
    stream.send(&MapResponse { node: Some(Box::new(waiting.clone())), ..map(&[2]) }).await;
    node.reach(State::NeedsMachineAuth).await;
    assert!(node.updates().is_empty());
    let approved = Node { machine_authorized: true, ..waiting };
    stream.send(&MapResponse { node: Some(Box::new(approved)), ..MapResponse::default() }).await;
    node.reach(State::Starting).await;
    assert_eq!(node.updates().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_engine_finds_out_is_reported_and_its_troubles_are_shown() {
    let (mut node, _stream) = Fixture::running("reports", map(&[2])).await;
    let endpoint = engine::Endpoint { address: "192.0.2.1:41641".parse().unwrap(), kind: EndpointType::Stun };
    node.engine_events.send(engine::Event::Endpoints(vec![endpoint])).await.unwrap();
    let Call::Report(report) = node.call().await else { panic!() };
    assert_eq!(report.endpoints, [endpoint.address]);
    let info =
        warren_wire::control::NetInfo { preferred_derp: warren_wire::control::RegionId(900), ..Default::default() };
    node.engine_events.send(engine::Event::NetInfo(Box::new(info.clone()))).await.unwrap();
    let Call::Report(report) = node.call().await else { panic!() };
    assert_eq!(report.hostinfo.unwrap().net_info, Some(info));
    node.engine_events.send(engine::Event::Health(vec!["no relay answers".into()])).await.unwrap();
    node.engine_events.send(engine::Event::Live { relays: 0, peers: 0 }).await.unwrap();
    node.shows(|status| status.health == ["no relay answers"]).await;
    assert_eq!(node.shared.bus.borrow().state, State::Running);
}

#[tokio::test(start_paused = true)]
async fn nodes_are_found_by_address_and_key_and_only_while_they_are_there() {
    let (node, stream) = Fixture::running("whois", map(&[2])).await;
    let own_key = node.status().await.self_.public_key.parse().unwrap();
    for who in [
        Who::Address("100.64.0.1".parse().unwrap()),
        Who::Address("100.64.0.2".parse().unwrap()),
        Who::Key(own_key),
        Who::Key(peer_key(2)),
    ] {
        assert!(node.knows(who).await, "{who:?}");
    }
    assert!(!node.knows(Who::Key(peer_key(3))).await);
    told(&node, &stream, MapResponse { peers_removed: vec![NodeId(2)], ..MapResponse::default() }).await;
    assert!(!node.knows(Who::Key(peer_key(2))).await);
    let ping = |text: &str| {
        let address = text.parse().unwrap();
        node.ask(move |reply| Request::Ping(address, reply))
    };
    assert_eq!(ping("100.64.0.2").await.err, "no such peer");
    assert!(ping("100.64.0.1").await.is_local_ip);
    node.edit(json!({"WantRunning": false, "WantRunningSet": true})).await.unwrap();
    assert_eq!(ping("100.64.0.2").await.err, "the node is stopped");
}

#[tokio::test(start_paused = true)]
async fn the_end_is_the_engines_end_too() {
    let (mut node, _stream) = Fixture::running("stop", map(&[2])).await;
    assert_eq!(node.stop().await, Ended::Asked);
    assert!(node.engine_is_shut());

    let (mut node, _stream) = Fixture::running("shutdown", map(&[2])).await;
    node.ask(Request::Shutdown).await;
    assert_eq!(node.ended().await, Ended::Asked);
    assert!(node.engine_is_shut());

    let (mut node, stream) = Fixture::running("fatal", map(&[2])).await;
    node.engine_events.send(engine::Event::Fatal("the interface is gone".into())).await.unwrap();
    assert_eq!(node.ended().await, Ended::Engine("the interface is gone".into()));
    assert!(node.engine_is_shut());
    // The server sees the end of the map, not a silent peer.
    stream.closed().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_while_the_daemon_ends_gets_an_answer() {
    let mut node = Fixture::new("late");
    node.stop().await;
    let (reply, answer) = oneshot::channel();
    assert!(node.shared.requests.send(Request::Prefs(reply)).await.is_err());
    assert!(answer.await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_servers_ping_is_answered_whatever_else_it_says() {
    let (mut node, stream) = Fixture::running("ping", map(&[2])).await;
    let ping = PingRequest { url: "https://s/pong/1".into(), url_is_noise: true, ..PingRequest::default() };
    stream.send(&MapResponse { ping_request: Some(ping), ..MapResponse::default() }).await;
    assert!(matches!(node.call().await, Call::Other(_, path, _) if path == "/pong/1"));
}
