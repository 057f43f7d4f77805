//! Map responses that no server should send: read or refused, never a panic, and the view of them stays bounded.

use serde_json::{Map, Value, json};

use super::*;

/// A value of any shape, with what the fields of a map like to contain.
fn arb_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3_i64..6).prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        ".{0,12}".prop_map(Value::from),
        Just(json!("100.64.0.2/32")),
        Just(json!("0.0.0.0/0")),
        Just(json!("100.64.0.2/99")),
        Just(json!("[fe80::1%eth0]:1")),
        Just(json!("192.0.2.1:65535")),
        Just(json!("0001-01-01T00:00:00Z")),
        Just(json!("9999-12-31T23:59:59Z")),
        Just(json!(key(2, 0).to_string())),
        Just(json!(own_key().to_string())),
        Just(json!(NodeKey::default().to_string())),
    ];
    leaf.prop_recursive(4, 48, 5, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((arb_name(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<String, Value>>())),
        ]
    })
}

fn arb_name() -> impl Strategy<Value = String> {
    const NAMES: &[&str] = &[
        "Node",
        "Peers",
        "PeersChanged",
        "PeersRemoved",
        "PeersChangedPatch",
        "PeerSeenChange",
        "OnlineChange",
        "DERPMap",
        "DNSConfig",
        "Domain",
        "PacketFilter",
        "PacketFilters",
        "UserProfiles",
        "Health",
        "DisplayMessages",
        "ControlTime",
        "TKAInfo",
        "KeepAlive",
        "PingRequest",
        "Debug",
        "ID",
        "NodeID",
        "StableID",
        "Name",
        "User",
        "Key",
        "KeyExpiry",
        "Addresses",
        "AllowedIPs",
        "Endpoints",
        "HomeDERP",
        "DERPRegion",
        "Hostinfo",
        "Online",
        "LastSeen",
        "CapMap",
        "Expired",
        "MachineAuthorized",
        "Regions",
        "RegionID",
        "Nodes",
        "SrcIPs",
        "DstPorts",
        "base",
        "*",
        "1",
        "2",
        "-1",
        "Title",
        "Text",
        "Head",
    ];
    proptest::sample::select(NAMES).prop_map(str::to_owned)
}

proptest! {
    #[test]
    fn the_view_stays_bounded_whatever_is_said(
        responses in vec(vec((arb_name(), arb_value()), 1..6), 1..4),
        new_poll in any::<bool>(),
    ) {
        let mut netmap = started(vec![peer(1, 0), peer(2, 0)]);
        if new_poll {
            netmap.begin_poll();
        }
        for members in responses {
            let text = Value::Object(members.into_iter().collect()).to_string();
            let Ok(response) = from_json::<MapResponse>(text.as_bytes()) else { continue };
            let before = netmap.whole();
            match netmap.apply(response, &own_key(), moment(NOW)) {
                Err(_) => prop_assert_eq!(netmap.whole(), before),
                Ok(change) => {
                    for peer in &change.peers {
                        prop_assert!(!peer.key().is_zero() && peer.key() != own_key() && peer.id().0 > 0);
                        prop_assert!(peer.endpoints().len() <= 64 && peer.addresses().len() <= 16);
                        prop_assert!(netmap.peer_with(peer.key()).is_some_and(|known| known == peer));
                    }
                    for key in &change.removed {
                        let again = change.peers.iter().any(|peer| peer.key() == *key);
                        let known = netmap.peer_with(*key).filter(|peer| !netmap.is_expired(peer));
                        prop_assert!(again || known.is_none(), "{:?} is said to be gone, but is not", key);
                    }
                }
            }
            prop_assert!(netmap.health().count() <= 65 && netmap.domain().chars().count() <= 253);
            prop_assert!(netmap.health().all(|text| !text.contains(char::is_control)));
            let _ = netmap.next_timeout(moment(NOW));
            drop(netmap.handle_timeout(moment(NOW + 1_000_000)));
        }
    }
}
