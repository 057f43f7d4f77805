//! Starts of a node while the server is away, by the map on disk.

use serde_json::json;
use warren_wire::control::{CapMap, FilterRule, MapResponse, Node, NodeId, PeerChange, Time};

use super::super::*;
use super::fixture::{Fixture, NOON, map, own, peer, peer_key, visit};
use crate::control_client::fake::{Mood, Reply};
use crate::local_api::Who;

fn at(seconds: i64) -> Time {
    Time::from_unix(NOON + seconds, 0).unwrap()
}

/// Runs a node once, and starts it again while the server is away.
async fn away(name: &str, first: MapResponse, mood: Mood) -> Fixture {
    let (mut node, _stream) = Fixture::running(name, first).await;
    node.server.set_mood(mood);
    node.restart().await;
    node
}

fn peers_of(updates: &[Update]) -> Vec<i64> {
    updates.iter().flat_map(|update| &update.peers).map(|peer| peer.id().0).collect()
}

#[tokio::test(start_paused = true)]
async fn the_last_map_is_used_until_the_server_is_back() {
    for (name, mood) in [("away-down", Mood::Down), ("away-silent", Mood::Silent)] {
        let mut node = away(name, map(&[2, 3]), mood).await;
        node.shows(|status| status.kept_map.is_some() || mood == Mood::Silent).await;
        node.reach(State::Starting).await;
        while node.status().await.kept_map.is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let updates = node.updates();
        let [update] = &updates[..] else { panic!("{updates:?}") };
        assert!(matches!(&update.local, Some(LocalUpdate::Up(local)) if local.node.addresses == own().addresses));
        assert_eq!(peers_of(&updates), [2, 3]);
        assert_eq!((update.filter.as_ref().unwrap().len(), update.relays.is_some()), (1, true));
        node.engine_events.send(engine::Event::Live { relays: 0, peers: 1 }).await.unwrap();
        node.reach(State::Running).await;

        // What is new is told, and nothing is taken down for it.
        node.server.set_mood(Mood::Normal);
        let (_, reply) = node.register().await;
        reply.send(Reply::ok()).unwrap();
        let _stream = node.follow(map(&[3, 4])).await;
        let updates = node.updates();
        assert!(updates.iter().all(|update| update.local.is_none()), "{updates:?}");
        assert_eq!(peers_of(&updates), [4]);
        assert!(updates.iter().any(|update| update.removed == [peer_key(2)]));
        assert_eq!(node.status().await.kept_map, None);
    }
}

/// Peers know the node by the disco key that it had when they last heard of it.
#[tokio::test(start_paused = true)]
async fn the_disco_key_stays_while_nobody_can_tell_another() {
    let mut node = Fixture::new("away-disco");
    node.start("wkey-good").await.unwrap();
    let (_, reply) = node.register().await;
    reply.send(Reply::ok()).unwrap();
    let (request, stream, report) = node.poll().await;
    let mut first = map(&[2]);
    first.node.as_mut().unwrap().key = request.node_key;
    node.send(&stream, first).await;
    let disco = |updates: Vec<Update>| match &updates[0].local {
        Some(LocalUpdate::Up(local)) => local.disco.public(),
        local => panic!("{local:?}"),
    };
    let told = disco(node.updates());
    assert_eq!(report.disco_key, Some(told));
    node.server.set_mood(Mood::Down);
    node.restart().await;
    node.shows(|status| status.kept_map.is_some()).await;
    assert_eq!(disco(node.updates()), told);
    // With the server there, a restart is a new key, so that peers notice it.
    node.server.set_mood(Mood::Normal);
    node.restart().await;
    let _stream = node.join(map(&[2])).await;
    assert_ne!(disco(node.updates()), told);
}

#[tokio::test(start_paused = true)]
async fn age_and_ends_count_without_the_server() {
    let mut first = map(&[2]);
    first.peers.push(Node { key_expiry: Some(at(3600)), ..peer(3) });
    first.packet_filter.as_mut().unwrap().push(FilterRule { until: Some(at(7200)), ..FilterRule::default() });
    first.control_time = Some(at(0));
    let node = away("away-ends", first, Mood::Down).await;
    node.shows(|status| status.kept_map.is_some()).await;
    assert_eq!(peers_of(&node.updates()), [2, 3]);
    tokio::time::sleep(Duration::from_secs(3700)).await;
    let kept = node.status().await.kept_map.unwrap();
    assert_eq!(kept.heard, at(0).to_string());
    assert!((3700..3710).contains(&kept.age_seconds), "{kept:?}");
    let updates = node.updates();
    assert!(updates.iter().any(|update| update.removed == [peer_key(3)]), "{updates:?}");
    tokio::time::sleep(Duration::from_secs(3700)).await;
    let updates = node.updates();
    assert!(updates.iter().any(|update| update.filter.as_ref().is_some_and(|rules| rules.len() == 1)), "{updates:?}");
    // After a week nothing of it is used any more.
    tokio::time::sleep(Duration::from_secs(7 * 86_400)).await;
    let updates = node.updates();
    assert!(matches!(updates.last().unwrap().local, Some(LocalUpdate::Down)), "{updates:?}");
    assert_eq!((node.status().await.kept_map, node.kept_map()), (None, None));
}

#[tokio::test(start_paused = true)]
async fn a_map_that_is_too_old_or_damaged_is_not_used() {
    let (mut node, _stream) = Fixture::running("away-old", map(&[2])).await;
    node.server.set_mood(Mood::Down);
    node.restart().await;
    let good = node.kept_map().unwrap();
    for (text, is_used) in [(good.as_str(), true), (&good[..good.len() / 2], false), ("", false), ("[]", false)] {
        node.put_kept_map(text);
        node.restart().await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(node.status().await.kept_map.is_some(), is_used);
        assert_eq!(node.kept_map().is_some(), is_used);
    }
    node.put_kept_map(&good);
    tokio::time::sleep(Duration::from_secs(8 * 86_400)).await;
    node.restart().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(node.status().await.kept_map, None);
    assert!(node.updates().is_empty());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_kept_that_must_not_be() {
    let forbidden = |mut map: MapResponse| {
        map.node.as_mut().unwrap().cap_map = CapMap::flags(["cache-network-maps", "disable-cache-network-maps"]);
        map
    };
    let mut node = away("away-forbidden", forbidden(map(&[2])), Mood::Normal).await;
    assert_eq!(node.kept_map(), None);
    let stream = node.join(map(&[2])).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(node.kept_map().is_some());
    node.edit(json!({ "MapMaxAge": 0, "MapMaxAgeSet": true })).await.unwrap();
    assert_eq!(node.kept_map(), None);
    node.edit(json!({ "MapMaxAge": 60, "MapMaxAgeSet": true })).await.unwrap();
    let change = PeerChange { node_id: NodeId(2), online: Some(true), ..PeerChange::default() };
    node.send(&stream, MapResponse { peers_changed_patch: vec![change], ..MapResponse::default() }).await;
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert!(node.kept_map().unwrap().contains("peer2.t.example."));
    drop(stream);
    // A logout forgets it, and so does a server that does not take the key any more.
    node.ask(crate::local_api::Request::ResetAuth).await.unwrap();
    assert_eq!(node.kept_map(), None);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_expelled_does_not_come_back_by_its_map() {
    let (mut node, stream) = Fixture::running("away-expelled", map(&[2])).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(node.kept_map().is_some());
    node.server.set_map_status(404);
    drop(stream);
    let (_, reply) = node.register().await;
    reply.send(visit("https://s/register/1")).unwrap();
    node.reach(State::NeedsLogin).await;
    assert_eq!(node.kept_map(), None);
    node.server.set_mood(Mood::Down);
    node.restart().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!node.knows(Who::Key(peer_key(2))).await);
}

/// A server that has the address but not the key is another one: what was known of the old one is void.
#[tokio::test(start_paused = true)]
async fn the_map_of_another_server_is_void() {
    let mut node = away("away-other", map(&[2]), Mood::Down).await;
    node.shows(|status| status.kept_map.is_some()).await;
    node.updates();
    node.server.change_key();
    node.server.set_mood(Mood::Normal);
    let _stream = node.join(map(&[3])).await;
    let updates = node.updates();
    assert!(matches!(updates[0].local, Some(LocalUpdate::Down)), "{updates:?}");
    assert_eq!(peers_of(&updates), [3]);
}
