#![expect(clippy::disallowed_methods, reason = "any instant will do as the start of the virtual clock")]

use super::*;
use crate::engine::relay_link::LinkEvent;
use crate::engine::shared::{Shared, Sockets};
use tokio::sync::mpsc;
use warren_os::Waker;
use warren_wire::control::DerpNode;

const ONE: RegionId = RegionId(1);
const TWO: RegionId = RegionId(2);
const NOWHERE: RegionId = RegionId(3);

fn peer() -> NodeKey {
    NodeKey::from_bytes([9; 32])
}

/// Describes a region whose relay has no address, so that no test leaves the machine.
fn region(id: RegionId, name: &str) -> DerpRegion {
    let none = || "none".to_owned();
    let node = DerpNode { name: name.to_owned(), ipv4: none(), ipv6: none(), ..DerpNode::default() };
    DerpRegion { region_id: id, nodes: vec![node], ..DerpRegion::default() }
}

fn map(regions: &[(RegionId, &str)]) -> Arc<DerpMap> {
    let regions = regions.iter().map(|(id, name)| (*id, region(*id, name))).collect();
    Arc::new(DerpMap { regions: Some(regions), ..DerpMap::default() })
}

/// Relays with regions one and two.
fn relays(now: Instant) -> (Relays, mpsc::Receiver<LinkEvent>) {
    let (shared, _, ends) = Shared::new(Waker::new().unwrap(), Sockets::default(), now);
    let (events, heard) = mpsc::channel(64);
    let setup = LinkSetup { shared, relayed: ends.relayed, events, next: Arc::default() };
    let mut relays = Relays::new(setup, Arc::new(NodeSecret::from_bytes([1; 32])));
    relays.set_map(map(&[(ONE, "one"), (TWO, "two")]), now);
    (relays, heard)
}

/// Says that the connection to a region, which must have been opened, is up.
fn connect(relays: &mut Relays, region: RegionId) {
    let link = &relays.links[&region].link;
    let (id, relay) = (link.id(), link.definition().nodes[0].name.clone());
    relays.handle_up(region, id, relay);
}

fn send(relays: &mut Relays, region: RegionId, now: Instant) {
    relays.send(region, Kind::Data, peer(), b"packet".to_vec(), now);
}

#[tokio::test]
async fn a_connected_home_wins_then_where_the_peer_was_heard_then_the_home() {
    let now = Instant::now();
    let (mut relays, _heard) = relays(now);
    assert_eq!(relays.way_to(&peer(), None), None);
    assert_eq!(relays.way_to(&peer(), Some(NOWHERE)), None, "the map has no such region");
    assert_eq!(relays.way_to(&peer(), Some(ONE)), Some(ONE));
    send(&mut relays, TWO, now);
    connect(&mut relays, TWO);
    relays.handle_heard(TWO, peer());
    assert_eq!(relays.way_to(&peer(), None), Some(TWO));
    assert_eq!(relays.way_to(&peer(), Some(ONE)), Some(TWO), "the home is not connected");
    relays.approach(Some(ONE), now);
    connect(&mut relays, ONE);
    assert_eq!(relays.way_to(&peer(), Some(ONE)), Some(ONE));
    let link = relays.links[&TWO].link.id();
    assert!(relays.handle_down(TWO, link, "gone".into(), now));
    assert_eq!(relays.way_to(&peer(), None), None, "what was learned there is void");
}

#[tokio::test]
async fn a_peer_that_left_a_region_is_not_looked_for_there() {
    let now = Instant::now();
    let (mut relays, _heard) = relays(now);
    send(&mut relays, TWO, now);
    connect(&mut relays, TWO);
    relays.handle_heard(TWO, peer());
    relays.handle_gone(ONE, &peer());
    assert_eq!(relays.way_to(&peer(), None), Some(TWO), "another region says nothing about this one");
    relays.handle_gone(TWO, &peer());
    assert_eq!(relays.way_to(&peer(), None), None);
}

#[tokio::test]
async fn only_the_home_stays_connected_without_packets() {
    let now = Instant::now();
    let (mut relays, _heard) = relays(now);
    relays.set_home(ONE, now);
    send(&mut relays, TWO, now);
    let mut at = now;
    let mut last = None;
    while let Some(due) = relays.poll_timeout().filter(|_| relays.links.contains_key(&TWO)) {
        assert!(due > at, "no spinning");
        at = due;
        last = Some(at);
        relays.handle_timeout(at);
    }
    let waited = last.unwrap() - now;
    assert!(waited >= IDLE && waited <= IDLE + SWEEP, "{waited:?}");
    assert_eq!(relays.links.keys().copied().collect::<Vec<_>>(), [ONE]);
    connect(&mut relays, ONE);
    relays.handle_timeout(at + SWEEP);
    assert_eq!(relays.poll_timeout(), None, "nothing to do while only the home is connected");
}

/// Lets time pass until nothing is due any more, a minute and a half at most.
fn settle(relays: &mut Relays, now: Instant) -> Instant {
    let mut at = now;
    while let Some(due) = relays.poll_timeout().filter(|due| *due < now + Duration::from_secs(90)) {
        assert!(due > at, "no spinning");
        at = due;
        relays.handle_timeout(at);
    }
    at
}

#[tokio::test]
async fn a_former_home_is_listened_to_while_peers_send_there() {
    let now = Instant::now();
    let (mut relays, _heard) = relays(now);
    relays.set_home(ONE, now);
    connect(&mut relays, ONE);
    let one = relays.links[&ONE].link.id();
    relays.set_home(TWO, now);
    connect(&mut relays, TWO);
    let mut at = now;
    for _ in 0..60 {
        at += Duration::from_secs(5);
        relays.handle_packets(ONE, one, at);
        relays.handle_timeout(at);
        assert!(relays.is_up(ONE), "a peer that the server has not told yet would send into the void");
    }
    settle(&mut relays, at);
    assert_eq!(relays.links.keys().copied().collect::<Vec<_>>(), [TWO]);
}

#[tokio::test]
async fn a_region_taken_from_the_map_serves_a_while() {
    let now = Instant::now();
    let (mut relays, _heard) = relays(now);
    relays.set_home(ONE, now);
    connect(&mut relays, ONE);
    let one = relays.links[&ONE].link.id();
    relays.set_map(map(&[(TWO, "two")]), now);
    assert_eq!(relays.home(), None, "another must be chosen");
    assert_eq!(relays.way_to(&peer(), Some(ONE)), Some(ONE), "the peer is there until we hear otherwise");
    send(&mut relays, ONE, now);
    relays.set_home(TWO, now);
    connect(&mut relays, TWO);
    assert!(relays.is_known(ONE, one));
    relays.handle_timeout(now + LINGER - Duration::from_secs(1));
    assert!(relays.is_known(ONE, one));
    settle(&mut relays, now);
    assert_eq!(relays.links.keys().copied().collect::<Vec<_>>(), [TWO]);
    assert_eq!(relays.way_to(&peer(), Some(ONE)), None);

    // One that is not connected is of no use to anybody.
    relays.set_home(TWO, now);
    send(&mut relays, TWO, now);
    let two = relays.links[&TWO].link.id();
    relays.handle_down(TWO, two, "gone".into(), now);
    relays.set_map(map(&[(ONE, "one")]), now);
    assert!(relays.links.is_empty());
}

#[tokio::test]
async fn a_changed_region_keeps_connections_to_relays_that_stay() {
    let now = Instant::now();
    let (mut relays, _heard) = relays(now);
    relays.set_home(ONE, now);
    connect(&mut relays, ONE);
    send(&mut relays, TWO, now);
    let (one, two) = (relays.links[&ONE].link.id(), relays.links[&TWO].link.id());
    let mut more = DerpMap::clone(&map(&[(ONE, "one"), (TWO, "two")]));
    let second = DerpNode { name: "second".to_owned(), ..more.regions.as_ref().unwrap()[&ONE].nodes[0].clone() };
    more.regions.as_mut().unwrap().get_mut(&ONE).unwrap().nodes.insert(0, second);
    relays.set_map(Arc::new(more), now);
    assert_eq!((relays.home(), relays.links[&ONE].link.id()), (Some(ONE), one));
    assert_eq!(relays.links[&ONE].link.definition().nodes.len(), 2);

    relays.set_map(map(&[(ONE, "moved"), (TWO, "two")]), now);
    assert_eq!(relays.home(), Some(ONE));
    assert_ne!(relays.links[&ONE].link.id(), one, "another relay serves the region");
    assert!(relays.is_known(ONE, one) && relays.is_known(TWO, two), "the old one is listened to");
    assert!(!relays.handle_down(ONE, one, "gone".into(), now), "the region is not down with it");
    assert!(!relays.is_known(ONE, one));
    assert!(relays.links.contains_key(&ONE));
}

#[tokio::test]
async fn events_of_a_dropped_link_are_void() {
    let now = Instant::now();
    let (mut relays, _heard) = relays(now);
    relays.set_home(ONE, now);
    let old = relays.links[&ONE].link.id();
    relays.handle_up(ONE, old, "one".into());
    relays.reconnect(now);
    assert_eq!((relays.home(), relays.connected()), (Some(ONE), 0));
    relays.handle_up(ONE, old, "one".into());
    assert_eq!(relays.connected(), 0);
    assert!(!relays.is_known(ONE, old));
}

#[tokio::test]
async fn a_relay_that_cannot_be_reached_is_told_after_a_while() {
    let now = Instant::now();
    let (mut relays, mut heard) = relays(now);
    relays.set_home(ONE, now);
    let event = heard.recv().await.unwrap();
    let crate::engine::relay_link::News::Down(reason) = event.news else { panic!("{event:?}") };
    assert!(!relays.handle_down(event.region, event.link, reason, now), "it was never up");
    assert_eq!(relays.troubles(now).count(), 0);
    let later = now + PATIENCE;
    let troubles: Vec<String> = relays.troubles(later).collect();
    assert!(
        matches!(troubles.as_slice(), [text] if text.contains("region 1") && text.contains("no usable address")),
        "{troubles:?}"
    );
    assert!(relays.poll_timeout().is_some_and(|at| at <= now + SWEEP), "somebody must look in time");
    connect(&mut relays, ONE);
    assert_eq!(relays.troubles(later).count(), 0);
}

#[tokio::test]
async fn a_pong_counts_once_and_only_for_its_ping() {
    let now = Instant::now();
    let (mut relays, _heard) = relays(now);
    relays.set_home(ONE, now);
    let link = relays.links[&ONE].link.id();
    assert!(!relays.ping(ONE, [1; 8], now), "it is not connected");
    connect(&mut relays, ONE);
    assert!(relays.ping(ONE, [1; 8], now));
    let later = now + Duration::from_millis(7);
    assert_eq!(relays.handle_pong(ONE, link, [2; 8], later), None);
    assert_eq!(relays.handle_pong(ONE, link, [1; 8], later), Some(Duration::from_millis(7)));
    assert_eq!(relays.handle_pong(ONE, link, [1; 8], later), None);
}
