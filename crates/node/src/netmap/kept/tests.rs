use proptest::prelude::*;
use warren_wire::control::{DerpMap, DerpRegion, DnsConfig, FilterRule, Node, NodeId, RegionId, TkaInfo, UserProfile};

use super::*;

const NOON: i64 = 1_800_000_000;

fn at(seconds: i64) -> Time {
    Time::from_unix(seconds, 0).unwrap()
}

fn moment(steady: u64, wall: i64) -> Moment {
    Moment { steady: Duration::from_secs(steady), wall: at(wall) }
}

fn key(number: u8) -> NodeKey {
    NodeKey::from_bytes([number; 32])
}

fn node(number: u8) -> Node {
    Node {
        id: NodeId(number.into()),
        key: key(number),
        name: format!("n{number}.t.example."),
        addresses: vec![format!("100.64.0.{number}/32").parse().unwrap()],
        machine_authorized: true,
        ..Node::default()
    }
}

fn rule(source: &str, until: Option<i64>) -> FilterRule {
    FilterRule { src_ips: vec![source.into()], until: until.map(at), ..FilterRule::default() }
}

fn map() -> MapResponse {
    let region = DerpRegion { region_id: RegionId(900), ..DerpRegion::default() };
    MapResponse {
        node: Some(Box::new(node(1))),
        peers: vec![node(2), Node { key_expiry: Some(at(NOON + 100)), ..node(3) }],
        derp_map: Some(DerpMap { regions: Some([(RegionId(900), region)].into()), ..DerpMap::default() }),
        packet_filter: Some(vec![rule("*", Some(NOON + 50))]),
        packet_filters: [("more".to_owned(), Some(vec![rule("100.64.0.2", None)]))].into(),
        dns_config: Some(DnsConfig { proxied: true, ..DnsConfig::default() }),
        user_profiles: vec![UserProfile::default()],
        domain: "t.example".into(),
        health: Some(vec!["of that moment".into()]),
        tka_info: Some(TkaInfo { head: "x".into(), disabled: false }),
        ..MapResponse::default()
    }
}

fn kept(map: MapResponse) -> Kept {
    Kept {
        server_url: "https://s.example".into(),
        server: MachineKey::from_bytes([9; 32]),
        node: key(1),
        disco: Arc::new(DiscoSecret::from_bytes([7; 32])),
        heard: at(NOON),
        at: moment(1000, NOON - 7),
        boot: "b".into(),
        map,
    }
}

fn netmap_of(map: MapResponse, now: Moment) -> Netmap {
    let mut netmap = Netmap::default();
    netmap.begin_poll();
    netmap.apply(map, &key(1), now).unwrap();
    netmap
}

/// All that the map says comes back, and a second time it is no news.
#[test]
fn what_is_kept_is_what_was_known() {
    let now = moment(1000, NOON);
    let before = netmap_of(map(), now);
    let text = kept(before.snapshot().unwrap().into_response()).encode().unwrap();
    let again = Kept::decode(&text).unwrap();
    assert_eq!(again.disco.public(), DiscoSecret::from_bytes([7; 32]).public());
    let mut after = netmap_of(again.map.clone(), now);
    let peers = |netmap: &Netmap| netmap.peers().cloned().collect::<Vec<_>>();
    assert_eq!(peers(&after), peers(&before));
    assert_eq!(after.local(), before.local());
    assert_eq!(after.filter(), before.filter());
    assert_eq!((after.relays(), after.dns(), after.domain()), (before.relays(), before.dns(), before.domain()));
    assert!(after.profiles().eq(before.profiles()));
    let said: Vec<_> = after.health().collect();
    assert!(matches!(&said[..], [lock] if lock.contains("locked")), "{said:?}");
    after.begin_poll();
    let change = after.apply(again.map, &key(1), now).unwrap();
    assert!(change.peers.is_empty() && change.removed.is_empty() && !change.local && !change.relays && !change.dns);
}

/// What ends by the server's time has ended after a restart, however the time of day here was set meanwhile.
#[test]
fn keys_and_rules_still_end() {
    let kept = kept(map());
    for (boot, now, ended) in [
        ("b", moment(1049, NOON - 9999), (false, false)),
        ("b", moment(1051, NOON - 9999), (true, false)),
        ("b", moment(1101, NOON - 9999), (true, true)),
        // Started anew: by the time of day, but never earlier than the server was heard.
        ("c", moment(5, NOON - 7 + 51), (true, false)),
        ("c", moment(5, NOON - 7 + 101), (true, true)),
        ("c", moment(5, NOON - 9999), (false, false)),
        ("", moment(1051, NOON - 9999), (false, false)),
    ] {
        let mut netmap = Netmap::default();
        let _ = netmap.observe_clock(kept.server_time(boot, now), now);
        netmap.begin_poll();
        netmap.apply(kept.map.clone(), &key(1), now).unwrap();
        let peer_expired = netmap.is_expired(netmap.peer_with(key(3)).unwrap());
        assert_eq!((netmap.filter().len() == 1, peer_expired), ended, "{boot} {now:?}");
    }
}

#[test]
fn a_map_of_something_else_is_refused() {
    let kept = kept(map());
    let pin = MachineKey::from_bytes([9; 32]);
    let other = MachineKey::from_bytes([8; 32]);
    assert_eq!(kept.check("https://s.example", None, key(1)), Ok(()));
    assert_eq!(kept.check("https://s.example", Some(pin), key(1)), Ok(()));
    assert_eq!(kept.check("https://x.example", Some(pin), key(1)), Err(KeptError::Foreign("server")));
    assert_eq!(kept.check("https://s.example", Some(other), key(1)), Err(KeptError::Foreign("server key")));
    assert_eq!(kept.check("https://s.example", Some(pin), key(2)), Err(KeptError::Foreign("node key")));
}

#[test]
fn damage_is_refused() {
    let good = kept(map()).encode().unwrap();
    let text = std::str::from_utf8(&good).unwrap();
    for (from, to) in [
        ("\"version\":1", "\"version\":2"),
        ("privkey:", "privkey:x"),
        ("\"node_key\":\"nodekey:01", "\"node_key\":\"nodekey:02"),
        ("\"map\":{", "\"map\":[{"),
        ("\"heard_steady\":1000", "\"heard_steady\":-1"),
        ("\"heard\":\"2027", "\"heard\":\"later"),
    ] {
        assert!(text.contains(from), "{from}");
        assert_eq!(Kept::decode(text.replacen(from, to, 1).as_bytes()).err(), Some(KeptError::Damaged), "{to}");
    }
    assert_eq!(Kept::decode(&kept(MapResponse::default()).encode().unwrap()).err(), Some(KeptError::Damaged));
    assert_eq!(Kept::decode(&vec![b' '; KEPT_MAX + 1]).err(), Some(KeptError::TooLong));
}

proptest! {
    /// A text that was cut or changed anywhere is refused, or is still a map that can be applied.
    #[test]
    fn no_text_panics(cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte: u8, steady: u64) {
        let mut text = kept(map()).encode().unwrap().to_vec();
        prop_assert!(Kept::decode(&text[..cut.index(text.len())]).is_err());
        let at = at.index(text.len());
        text[at] = byte;
        if let Ok(kept) = Kept::decode(&text) {
            let now = moment(steady, NOON);
            let mut netmap = Netmap::default();
            let _ = netmap.observe_clock(kept.server_time("b", now), now);
            netmap.begin_poll();
            let _ = netmap.apply(kept.map, &kept.node, now);
        }
    }
}
