//! What a node is told: by the server, by local programs, and by its user.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;
use warren_filter::{Filter, FilterInput, Shields};
use warren_node::control_client::ServerUrl;
use warren_node::local_api::types::StartOptions;
use warren_node::netmap::{Kept, Moment, Netmap};
use warren_node::prefs::{Prefs, Right};
use warren_wire::control::{MapResponse, Time, from_json};
use warren_wire::key::NodeKey;

use crate::input::Input;

/// Reads each line of `data` as a map response and applies it. Whatever the server says, peers are found by the keys and
/// addresses that they have, and the filter can be used and has no rule that has ended.
pub fn netmap(data: &[u8]) {
    let own = NodeKey::from_bytes([1; 32]);
    let wall = Time::from_unix(1_795_000_000, 0).expect("a time of today");
    let now = Moment { steady: Duration::ZERO, wall };
    let mut netmap = Netmap::default();
    netmap.begin_poll();
    for line in data.split(|byte| *byte == b'\n') {
        if line.is_empty() {
            netmap.begin_poll();
            continue;
        }
        let Ok(mut response) = from_json::<MapResponse>(line) else { return };
        if let Some(node) = &mut response.node {
            node.key = own;
        }
        if netmap.apply(response, &own, now).is_err() {
            return;
        }
        for peer in netmap.peers() {
            let with_key = netmap.peer_with(peer.key()).expect("a peer is found by its key");
            assert_eq!(with_key.id(), peer.id());
            assert_ne!(peer.key(), own, "a node is its own peer");
        }
        let addresses: Vec<IpAddr> = netmap.peers().flat_map(|peer| peer.addresses()).map(IpNet::addr).collect();
        for address in addresses {
            let peer = netmap.peer_at(address).expect("a peer is found by its address");
            assert!(peer.addresses().iter().any(|own| own.addr() == address));
        }
        let rules = netmap.filter();
        let input = FilterInput { rules: &rules, local: &[], shields: Shields::Down, holders: &|_| Vec::new() };
        let _ = Filter::compile(&input);
        let _ = netmap.grants();
        let later = Moment { steady: now.steady + Duration::from_secs(60), wall };
        let _ = netmap.handle_timeout(later);
        let server_time = netmap.clock().server_time(later);
        let ended = |end: Option<Time>| end.is_some_and(|end| end <= server_time);
        assert!(netmap.filter().iter().all(|rule| !ended(rule.until)), "a rule outlives its end");
    }
}

/// Reads `data` as a map from disk. One that is accepted can be written again, tells a time that does not go back, and
/// can be applied.
pub fn kept_map(data: &[u8]) {
    let Ok(kept) = Kept::decode(data) else { return };
    let wall = Time::from_unix(1_795_000_000, 0).expect("a time of today");
    let now = Moment { steady: Duration::from_secs(5), wall };
    let _ = kept.check("https://s.example", None, kept.node);
    let server_time = kept.server_time("b", now);
    assert!(server_time >= kept.heard, "time goes back");
    let again = Kept::decode(&kept.encode().expect("what was read can be written")).expect("and read again");
    assert_eq!((again.node, again.server, again.heard), (kept.node, kept.server, kept.heard));
    let mut netmap = Netmap::default();
    let _ = netmap.observe_clock(server_time, now);
    netmap.begin_poll();
    netmap.apply(kept.map, &kept.node, now).expect("it describes this node");
    assert!(netmap.snapshot().is_some());
}

/// Reads `data`, behind a byte that chooses, as changed settings or as the body of `start`.
pub fn local_api(data: &[u8]) {
    let mut input = Input::new(data);
    let body = match input.byte() % 2 {
        0 => serde_json::from_slice::<Value>(input.rest()).ok(),
        _ => serde_json::from_slice::<StartOptions>(input.rest()).ok().and_then(|options| options.update_prefs),
    };
    let Some(body) = body else { return };
    let before = Prefs::default();
    let mut prefs = before.clone();
    if prefs.patch(&body).is_err() {
        assert_eq!(prefs, before, "refused settings changed something");
        return;
    }
    assert!(prefs.server_pin().is_ok(), "a pin that is none was accepted");
    let written = serde_json::to_vec(&prefs).expect("settings can be written");
    assert_eq!(serde_json::from_slice::<Prefs>(&written).expect("what was written can be read"), prefs);
    // What is set already needs no right at all.
    let mut again = prefs.clone();
    assert_eq!(again.patch(&body), Ok(Right::Own));
    assert_eq!(again, prefs);
}

/// Reads `data` as the address of a server; what is read must round-trip, and can stand in an HTTP header.
pub fn server_url(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(url) = text.parse::<ServerUrl>() else { return };
    assert_eq!(url.to_string().parse::<ServerUrl>().as_ref(), Ok(&url));
    assert!(!url.host().is_empty());
    assert!(url.authority().bytes().all(|byte| byte.is_ascii_graphic()), "{:?}", url.authority());
    if let Some(other) = url.tls_fallback() {
        assert_eq!(other.host(), url.host());
    }
}
