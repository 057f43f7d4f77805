//! Maps: what streams say, when they say it, and that changes lead where a whole map leads.

mod policy;
mod property;

use std::time::Duration;

use warren_wire::control::{
    CapabilityVersion, DerpNode, DerpRegion, ExpiryChange, MapRequest, MapRequestKind, NetInfo, RegionId, Service,
};

use super::MapError;
use crate::admin::{Expiry, NewAuthKey};
use crate::model::Owner;
use crate::testing::*;

impl World {
    /// Lets the nodes of these numbers in, all of one user.
    async fn with_nodes(numbers: impl IntoIterator<Item = u8>) -> Self {
        let world = Self::new().await;
        for number in numbers {
            world.join(number, NewAuthKey::default()).await;
        }
        world
    }

    async fn report(&self, number: u8, request: MapRequest) {
        assert_eq!(request.kind(), MapRequestKind::Update);
        self.control.update(machine(number), request).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_message_has_all_that_a_client_needs() {
    let world = World::with_nodes([1, 2]).await;
    world.report(2, report(2, &["192.0.2.2:41641"])).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    let mut poll = world.poll(1).await;
    let first = poll.next().await.unwrap();
    let own = first.node.as_deref().unwrap();
    assert_eq!((own.key, own.machine, own.machine_authorized), (node_key(1), Some(machine(1)), true));
    assert_eq!((own.stable_id.as_str(), own.name.as_str()), ("n1", "host1.default.warren.internal."));
    let texts = |list: &[ipnet::IpNet]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&own.addresses), ["100.64.0.1/32", "fd7a:115c:a1e0::6440:1/128"], "two, IPv4 first");
    assert!(own.cap_map.0.contains_key("https://tailscale.com/cap/file-sharing"));
    assert_eq!(first.domain, "default");
    assert!(first.derp_map.is_some() && first.ssh_policy.is_some() && first.collect_services == Some(false));
    assert!(first.debug.unwrap().disable_log_tail);
    assert_eq!(first.control_time, crate::map::view::time(world.control.clock().now()));
    let dns = first.dns_config.unwrap();
    assert!(dns.proxied);
    assert_eq!(dns.domains, ["default.warren.internal"]);
    assert_eq!(dns.routes.get("default.warren.internal"), Some(&Vec::new()));
    let [peer] = &first.peers[..] else { panic!("{:?}", first.peers) };
    assert_eq!((peer.key, peer.disco_key), (node_key(2), Some(disco_key(2))));
    assert_eq!((peer.machine, peer.online), (None, Some(false)), "GUIs hide peers whose online state is unknown");
    assert_eq!(peer.allowed_ips, Some(peer.addresses.clone()));
    assert_eq!(peer.endpoints, ["192.0.2.2:41641".parse().unwrap()]);
    assert_eq!(peer.hostinfo.as_ref().unwrap().os, "linux");
    let filter = first.packet_filters["base"].as_deref().unwrap();
    assert!(filter.iter().any(|rule| rule.src_ips.contains(&"100.64.0.1-100.64.0.2".to_owned())), "{filter:?}");
    assert!(filter.iter().all(|rule| rule.src_bits.is_empty() && rule.dst_ports.iter().all(|to| to.bits.is_none())));
}

/// The official Rust client borrows strings from the input and refuses null containers: look at the bytes.
#[tokio::test(start_paused = true)]
async fn messages_hold_no_null_and_no_escape() {
    let world = World::with_nodes([1]).await;
    world.admin().create_user("default", "ann&bob@example.com", Some("Ann <&> Bob / 日本")).await.unwrap();
    let ann = NewAuthKey { user: Some("ann&bob@example.com".to_owned()), ..NewAuthKey::default() };
    world.join(2, ann.clone()).await;
    world.join(3, ann).await;
    let bytes = world.control.map_once(machine(2), &map(2)).unwrap();
    let text = std::str::from_utf8(&bytes[4..]).unwrap();
    assert!(text.contains("Ann <&> Bob / 日本") && text.contains("ann&bob@example.com"), "{text}");
    assert!(!text.contains('\\'), "{text}");
    let without_flags = text.replace(r#""https://tailscale.com/cap/file-sharing":null"#, "");
    let without_flags =
        without_flags.replace(r#""probe-udp-lifetime":null"#, "").replace(r#""cache-network-maps":null"#, "");
    assert!(!without_flags.contains("null"), "{without_flags}");
    for absent in ["\"Endpoints\"", "\"PrimaryRoutes\"", "\"Capabilities\"", "\"LastSeen\"", "\"HomeDERP\""] {
        assert!(!text.contains(absent), "{absent} is empty and left out: {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_list_of_peers_is_spread_over_messages_and_none_is_lost() {
    let world = World::with_nodes(1..=12).await;
    let mut expected: Vec<String> = (1..=12).map(|number| format!("host{number}")).collect();
    expected.remove(4);
    assert_eq!(world.whole_map(5).names(), expected);
    let mut poll = world.poll(5).await;
    let messages = poll.settle().await;
    assert!(messages.len() > 2, "{}", messages.len());
    assert!(messages[1..].iter().all(|message| message.node.is_none() && message.peers.is_empty()));
    assert_eq!(poll.map.names(), expected);
    // What happens while the list is under way is not lost, either.
    let mut poll = world.poll(5).await;
    poll.next().await.unwrap();
    world.admin().remove_node(None, "host1").await.unwrap();
    world.admin().rename_node(None, "host12", Some("last")).await.unwrap();
    poll.settle().await;
    expected.remove(0);
    *expected.last_mut().unwrap() = "last".to_owned();
    assert_eq!(poll.map.names(), expected);
}

#[tokio::test(start_paused = true)]
async fn an_empty_filter_is_sent_and_an_unchanged_one_is_not() {
    let world = World::with_nodes([1, 2]).await;
    let mut poll = world.poll(1).await;
    poll.settle().await;
    world.admin().set_policy("default", r#"{"acls": []}"#).await.unwrap();
    let messages = poll.settle().await;
    assert_eq!(messages.iter().find_map(|message| message.packet_filters.get("base")), Some(&Some(Vec::new())));
    assert_eq!(poll.map.names(), Vec::<&str>::new());
    world.report(2, report(2, &["192.0.2.9:1"])).await;
    assert_eq!(poll.settle().await, [], "what one may not see changes nothing");
    let mut fresh = world.poll(1).await;
    let first = fresh.next().await.unwrap();
    assert_eq!(first.packet_filters.get("base"), Some(&Some(Vec::new())), "in the first message, too");
    assert!(first.peers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn peers_come_change_and_go() {
    let world = World::with_nodes([1]).await;
    let mut poll = world.poll(1).await;
    poll.settle().await;
    world.join(2, NewAuthKey::default()).await;
    let messages = poll.settle().await;
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].peers_changed.len(), 1);
    assert!(messages[0].packet_filters.contains_key("base"), "the new peer may send, so the filter comes along");
    assert!(messages[0].node.is_none() && messages[0].derp_map.is_none() && messages[0].dns_config.is_none());
    world.admin().rename_node(None, "host2", Some("other")).await.unwrap();
    let messages = poll.settle().await;
    assert_eq!((messages.len(), poll.map.names()), (1, vec!["other"]));
    world.admin().remove_node(None, "other").await.unwrap();
    let messages = poll.settle().await;
    assert_eq!(messages[0].peers_removed.len(), 1);
    assert!(poll.map.peers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn frequent_changes_are_small() {
    let world = World::with_nodes([1, 2]).await;
    let mut poll = world.poll(1).await;
    poll.settle().await;
    let peer = world.id(2);
    let patch = async |poll: &mut Follower, what: &str| {
        let messages = poll.settle().await;
        let [message] = &messages[..] else { panic!("{what}: {messages:?}") };
        assert!(message.peers_changed.is_empty() && message.node.is_none(), "{what}: {message:?}");
        let [patch] = &message.peers_changed_patch[..] else { panic!("{what}: {message:?}") };
        assert_eq!(patch.node_id.0, peer);
        patch.clone()
    };
    world.report(2, report(2, &["192.0.2.9:1"])).await;
    let changed = patch(&mut poll, "endpoints").await;
    assert_eq!(
        (changed.endpoints, changed.disco_key),
        (Some(vec!["192.0.2.9:1".parse().unwrap()]), Some(disco_key(2)))
    );
    assert_eq!((changed.online, changed.key, changed.key_expiry), (None, None, None));

    let mut moved = report(2, &["192.0.2.9:1"]);
    let hostinfo = moved.hostinfo.as_mut().unwrap();
    hostinfo.net_info = Some(NetInfo { preferred_derp: RegionId(900), ..NetInfo::default() });
    world.report(2, moved.clone()).await;
    assert_eq!(patch(&mut poll, "home relay").await.derp_region, RegionId(900));

    // Clients that keep only a node's first light change must read such a patch as a heavy one.
    let mut both = report(2, &["192.0.2.10:1"]);
    let net_info = NetInfo { preferred_derp: RegionId(901), ..NetInfo::default() };
    both.hostinfo.as_mut().unwrap().net_info = Some(net_info);
    world.report(2, both).await;
    let changed = patch(&mut poll, "endpoints and home relay").await;
    assert_eq!((changed.derp_region, changed.endpoints.map(|list| list.len())), (RegionId(901), Some(1)));
    assert_ne!(changed.cap, CapabilityVersion(0));

    let second = world.poll(2).await;
    assert_eq!(patch(&mut poll, "online").await.online, Some(true));
    drop(second);
    tokio::time::sleep(Duration::from_secs(11)).await;
    let offline = patch(&mut poll, "offline").await;
    assert_eq!(offline.online, Some(false));
    assert!(offline.last_seen.is_some());

    world.admin().expire_node(None, "host2", Expiry::Never).await.unwrap();
    assert_eq!(patch(&mut poll, "expiry").await.key_expiry, Some(ExpiryChange::Never));

    // A peer's services are in its host information, which no patch carries.
    moved.hostinfo.as_mut().unwrap().services =
        vec![Service { proto: "peerapi4".to_owned(), port: 1, ..Service::default() }];
    world.report(2, moved).await;
    assert_eq!(poll.settle().await[0].peers_changed.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_report_that_says_nothing_new_wakes_nobody() {
    let world = World::with_nodes([1, 2]).await;
    let mut hostinfo = host("host2");
    hostinfo.net_info = Some(NetInfo { preferred_derp: RegionId(900), ..NetInfo::default() });
    let whole = MapRequest { hostinfo: Some(hostinfo.clone()), ..report(2, &["192.0.2.9:1"]) };
    world.report(2, whole.clone()).await;
    let (mut one, mut two) = (world.poll(1).await, world.poll(2).await);
    one.settle().await;
    two.settle().await;
    let without_net = MapRequest { hostinfo: Some(host("host2")), ..whole.clone() };
    // Measured anew: nobody's business but the server's.
    hostinfo.net_info.as_mut().unwrap().derp_latency.insert("900-v4".to_owned(), 0.02);
    let measured = MapRequest { hostinfo: Some(hostinfo), ..whole.clone() };
    // Known endpoints are kept while the client has none to tell.
    let without_endpoints = MapRequest { endpoints: Vec::new(), ..whole.clone() };
    let useless = MapRequest {
        endpoints: ["192.0.2.9:1", "[fe80::1]:1", "0.0.0.0:1", "224.0.0.1:1", "192.0.2.9:1"]
            .map(|text| text.parse().unwrap())
            .to_vec(),
        ..whole.clone()
    };
    for request in [whole, without_net, measured, without_endpoints, useless] {
        world.report(2, request.clone()).await;
        assert_eq!((one.settle().await, two.settle().await), (vec![], vec![]), "{request:?}");
    }
    assert_eq!(world.whole_map(1).peers.values().next().unwrap().home_derp, RegionId(900));
}

#[tokio::test(start_paused = true)]
async fn what_a_node_reports_does_not_come_back_to_itself() {
    let world = World::with_nodes([1]).await;
    let mut poll = world.poll(1).await;
    poll.settle().await;
    for number in 1..=5 {
        world.report(1, report(1, &[&format!("192.0.2.9:{number}")])).await;
    }
    assert_eq!(poll.settle().await, []);
}

#[tokio::test(start_paused = true)]
async fn a_node_is_called_as_its_host_unless_somebody_chose() {
    let world = World::with_nodes([1, 2]).await;
    let called = |name: &str| MapRequest { hostinfo: Some(host(name)), ..report(2, &[]) };
    let name = |world: &World| world.admin().node(None, &world.id(2).to_string()).unwrap().name;
    for (host, expected) in [
        ("Büro PC", "bro-pc"),
        ("host1", "host1-1"),
        ("host1.example.com", "host1-1"),
        ("\u{0}\u{7f}", "node"),
        ("-.-", "node"),
        ("n".repeat(300).as_str(), "n".repeat(63).as_str()),
        ("a.b\"c\\d", "a"),
    ] {
        world.report(2, called(host)).await;
        assert_eq!(name(&world), expected, "{host:?}");
    }
    world.admin().rename_node(None, "a", Some("chosen")).await.unwrap();
    world.report(2, called("other")).await;
    assert_eq!(name(&world), "chosen");
    world.admin().rename_node(None, "chosen", None).await.unwrap();
    assert_eq!(name(&world), "other");
    let taken = world.admin().rename_node(None, "other", Some("host1")).await;
    assert!(taken.is_err());
    for hostile in ["", "a.b", "-a", "a-", "A", "a b", "日本", &"a".repeat(64)] {
        assert!(world.admin().rename_node(None, "other", Some(hostile)).await.is_err(), "{hostile:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_skips_to_the_newest() {
    let world = World::with_nodes([1, 2, 3]).await;
    let mut poll = world.poll(1).await;
    poll.settle().await;
    for number in 1..=500 {
        world.report(2, report(2, &[&format!("192.0.2.9:{number}")])).await;
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    world.admin().remove_node(None, "host3").await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    let messages = poll.settle().await;
    assert_eq!(messages.len(), 1, "not one for each change");
    let now = crate::map::view::time(world.control.clock().now()).unwrap().unix_seconds();
    let behind = now - messages[0].control_time.unwrap().unix_seconds();
    assert_eq!(behind, 0, "clients set their clocks by it");
    assert_eq!(poll.map, ClientMap { profiles: poll.map.profiles.clone(), ..world.whole_map(1) });
}

#[tokio::test(start_paused = true)]
async fn silence_is_broken_before_a_client_gives_up() {
    let world = World::with_nodes([1]).await;
    let mut poll = world.poll(1).await;
    poll.next().await.unwrap();
    for _ in 0..5 {
        let before = world.control.clock().now();
        let message = poll.next().await.unwrap();
        let now = world.control.clock().now();
        assert!(message.keep_alive && message.node.is_none());
        assert_eq!(message.control_time, crate::map::view::time(now), "or clients confuse it with later messages");
        let waited = now.duration_since(before).as_secs();
        assert!((50..=60).contains(&waited), "{waited} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_poll_replaces_the_first_without_a_gap() {
    let world = World::with_nodes([1, 2]).await;
    let mut watcher = world.poll(2).await;
    let mut first = world.poll(1).await;
    first.settle().await;
    watcher.settle().await;
    let mut second = world.poll(1).await;
    second.settle().await;
    assert_eq!(first.next().await, None);
    drop(first);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(watcher.settle().await, [], "the node never was away");
    // A short break is none, either.
    drop(second);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let third = world.poll(1).await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(watcher.settle().await, []);
    drop(third);
    tokio::time::sleep(Duration::from_secs(11)).await;
    watcher.settle().await;
    assert_eq!(watcher.map.peers.values().next().unwrap().online, Some(false));
}

#[tokio::test(start_paused = true)]
async fn messages_are_compressed_for_those_who_ask() {
    let world = World::with_nodes([1, 2]).await;
    let zstd = MapRequest { stream: true, compress: "zstd".to_owned(), ..map(1) };
    let (mut packed, mut plain) = (world.poll_with(1, zstd).await, world.poll(2).await);
    packed.settle().await;
    plain.settle().await;
    assert_eq!(packed.map.names(), ["host2"]);
    world.report(1, report(1, &["192.0.2.1:1"])).await;
    world.report(2, report(2, &["192.0.2.2:2"])).await;
    packed.settle().await;
    plain.settle().await;
    let endpoints = |follower: &Follower| follower.map.peers.values().next().unwrap().endpoints[0].to_string();
    assert_eq!((endpoints(&packed), endpoints(&plain)), ("192.0.2.2:2".to_owned(), "192.0.2.1:1".to_owned()));
    let odd = MapRequest { compress: "br".to_owned(), ..map(1) };
    assert_eq!(world.control.map_once(machine(1), &odd).err(), Some(MapError::Compression));
}

#[tokio::test(start_paused = true)]
async fn clients_that_are_too_old_get_no_map() {
    let world = World::with_nodes([1]).await;
    let old = MapRequest { version: CapabilityVersion(112), ..map(1) };
    let error = world.control.map_once(machine(1), &old).unwrap_err();
    assert!(error.to_string().contains("too old"), "{error}");
    assert_eq!(world.control.map_stream(machine(1), old).await.err(), Some(error));
}

#[tokio::test(start_paused = true)]
async fn relays_come_once_and_when_they_change() {
    let world = World::with_nodes([1, 2]).await;
    let mut poll = world.poll(1).await;
    poll.settle().await;
    world.control.set_derp_map(relays("900a")).await.unwrap();
    world.report(2, report(2, &["192.0.2.2:2"])).await;
    let messages = poll.settle().await;
    assert!(messages.iter().all(|message| message.derp_map.is_none()), "the same relays are no news: {messages:?}");
    world.control.set_derp_map(relays("900b")).await.unwrap();
    assert!(poll.settle().await[0].derp_map.is_some());
    assert_eq!(poll.map.derp, Some(relays("900b")));
    // The last relay is never taken away.
    let none = [
        warren_wire::control::DerpMap::default(),
        warren_wire::control::DerpMap { regions: Some([(RegionId(1), DerpRegion::default())].into()), ..relays("a") },
        warren_wire::control::DerpMap {
            regions: Some(
                [(
                    RegionId(1),
                    DerpRegion {
                        nodes: vec![DerpNode { stun_only: true, ..DerpNode::default() }],
                        ..DerpRegion::default()
                    },
                )]
                .into(),
            ),
            ..relays("a")
        },
    ];
    for none in none {
        assert!(world.control.set_derp_map(none).await.is_err());
    }
    assert_eq!(poll.settle().await, []);
}

#[tokio::test(start_paused = true)]
async fn older_clients_read_avoid() {
    let world = World::with_nodes([1]).await;
    let mut map_of_relays = relays("900a");
    map_of_relays.regions.as_mut().unwrap().get_mut(&RegionId(900)).unwrap().no_measure_no_home = true;
    world.control.set_derp_map(map_of_relays).await.unwrap();
    for (version, avoid) in [(114, true), (115, false)] {
        let request = MapRequest { version: CapabilityVersion(version), stream: true, ..map(1) };
        let mut poll = world.poll_with(1, request).await;
        poll.settle().await;
        let derp = poll.map.derp.unwrap();
        assert_eq!(derp.regions.unwrap()[&RegionId(900)].avoid, avoid, "{version}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_removed_is_told_to_log_in() {
    let world = World::with_nodes([1]).await;
    let mut poll = world.poll(1).await;
    poll.settle().await;
    world.admin().remove_node(None, "host1").await.unwrap();
    let last = poll.next().await.unwrap();
    let own = last.node.unwrap();
    assert!(own.expired && own.key_expiry.is_some());
    assert_eq!(poll.next().await, None);
    assert_eq!(world.control.map_once(machine(1), &map(1)).err(), Some(MapError::UnknownNode));
}

#[tokio::test(start_paused = true)]
async fn what_peers_need_outlives_the_server() {
    let world = World::with_nodes([1, 2]).await;
    let mut hostinfo = host("host2");
    hostinfo.net_info = Some(NetInfo { preferred_derp: RegionId(900), ..NetInfo::default() });
    hostinfo.services = vec![Service { proto: "peerapi4".to_owned(), port: 7, ..Service::default() }];
    let full = MapRequest { hostinfo: Some(hostinfo), ..report(2, &["192.0.2.2:2", "[2001:db8::2]:2"]) };
    world.report(2, full).await;
    // Stored because it changed, not because the server was asked to stop.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = world.whole_map(1);
    let peer = before.peers.values().next().unwrap();
    assert_eq!((peer.endpoints.len(), peer.home_derp, peer.disco_key), (2, RegionId(900), Some(disco_key(2))));
    let copy = Folder::new();
    std::fs::create_dir(copy.join("state")).unwrap();
    world.control.store().backup(&copy.join("state/warren.db")).await.unwrap();
    let after = crate::Control::open_in_paused_time(config(&copy), world.control.clock().now()).await.unwrap();
    let after = World::over(after, copy);
    assert_eq!(after.whole_map(1), before);
}

#[tokio::test(start_paused = true)]
async fn a_poll_reports_only_right_after_a_registration() {
    let world = World::with_nodes([1, 2]).await;
    let says = |name: &str, endpoint: &str| MapRequest {
        stream: true,
        omit_peers: false,
        hostinfo: Some(host(name)),
        ..report(2, &[endpoint])
    };
    let _poll = world.poll_with(2, says("host2", "192.0.2.2:2")).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    let endpoint = |world: &World| world.whole_map(1).peers.values().next().unwrap().endpoints[0].to_string();
    assert_eq!(endpoint(&world), "192.0.2.2:2", "some clients report nothing else");
    world.report(2, report(2, &["192.0.2.3:3"])).await;
    let _poll = world.poll_with(2, says("stale", "192.0.2.2:2")).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(endpoint(&world), "192.0.2.3:3", "a poll may be staler than a report beside it");
}

#[tokio::test(start_paused = true)]
async fn tailnets_do_not_know_of_each_other() {
    let world = World::with_nodes([1, 2]).await;
    world.admin().create_tailnet("other").await.unwrap();
    let other = || NewAuthKey { tailnet: "other".to_owned(), ..NewAuthKey::default() };
    let all = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;
    for name in ["default", "other"] {
        world.admin().set_policy(name, all).await.unwrap();
    }
    let mut poll = world.poll(1).await;
    poll.settle().await;
    world.join(3, other()).await;
    // The same machine key may be a node of both.
    let key = world.auth_key(other()).await;
    let both = world.register(1, with_key(register(13), &key)).await;
    assert!(both.machine_authorized, "{both:?}");
    world.report(3, report(3, &["192.0.2.3:3"])).await;
    let _third = world.poll(3).await;
    assert_eq!(poll.settle().await, [], "nothing of that is news here");
    assert_eq!(poll.map.names(), ["host2"]);
    assert_eq!(world.whole_map(3).names(), ["host13"]);
    assert_eq!(world.whole_map(3).domain, "other");
    // Addresses and names are the tailnet's own, numbers are the server's.
    let node = |number: u8| world.admin().node(None, &world.id(number).to_string()).unwrap();
    assert_eq!(node(1).addresses, node(3).addresses);
    assert_ne!(node(1).id, node(3).id);
    // Administration of one does not reach into the other.
    let admin = world.admin();
    let id = world.id(3).to_string();
    for found in [admin.node(Some("default"), &id), admin.node(Some("default"), "host3")] {
        assert!(found.is_err());
    }
    assert!(admin.remove_node(Some("default"), &id).await.is_err());
    assert!(admin.expire_node(Some("default"), "host3.other.warren.internal", Expiry::Now).await.is_err());
    assert!(admin.node(None, "100.64.0.1").is_err(), "ambiguous without a tailnet");
    assert_eq!(admin.node(Some("other"), "100.64.0.1").unwrap().id, world.id(3));
    let foreign_user =
        NewAuthKey { user: Some("owner@other".to_owned()), tailnet: "default".to_owned(), ..NewAuthKey::default() };
    assert!(admin.create_auth_key(foreign_user).await.is_err());
    let (tailnet, _) = world.control.registered(&node_key(3)).unwrap();
    assert_eq!(tailnet.snapshot().nodes.iter().filter(|node| matches!(node.record.owner, Owner::User(_))).count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_user_sees_their_own_devices_only_by_default() {
    let world = World::with_nodes([1, 2]).await;
    world.admin().create_user("default", "ann@example.com", None).await.unwrap();
    let ann = NewAuthKey { user: Some("ann@example.com".to_owned()), reusable: true, ..NewAuthKey::default() };
    let tagged = NewAuthKey { tags: vec!["tag:web".to_owned()], ..NewAuthKey::default() };
    world.join(3, ann.clone()).await;
    world.join(4, tagged).await;
    assert_eq!(world.whole_map(1).names(), ["host2"]);
    assert_eq!(world.whole_map(3).names(), Vec::<&str>::new());
    assert_eq!(world.whole_map(4).names(), Vec::<&str>::new());
    assert_eq!(world.whole_map(4).filter, [("base".to_owned(), Vec::new())].into());
    assert!(world.whole_map(1).profiles.values().all(|profile| profile.login_name == "owner@default"));
    let web = r#"{"acls": [{"action": "accept", "src": ["ann@example.com"], "dst": ["tag:web:80"]}], "tagOwners": {"tag:web": []}}"#;
    let mut poll = world.poll(3).await;
    poll.settle().await;
    world.admin().set_policy("default", web).await.unwrap();
    poll.settle().await;
    assert_eq!(poll.map.names(), ["host4"]);
    assert_eq!(world.whole_map(4).names(), ["host3"]);
    assert_eq!(world.whole_map(1).names(), Vec::<&str>::new());
    // Becoming a tagged node takes the user's sight away.
    world.admin().tag_node(None, "host3", &["tag:db".to_owned()]).await.unwrap();
    poll.settle().await;
    assert_eq!(poll.map.names(), Vec::<&str>::new());
    assert_eq!(poll.map.own.as_ref().unwrap().tags, ["tag:db"]);
}

#[tokio::test(start_paused = true)]
async fn an_ephemeral_node_is_gone_after_its_lease() {
    let world = World::with_nodes([1]).await;
    let ephemeral = || NewAuthKey { ephemeral: true, ..NewAuthKey::default() };
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    world.join(2, ephemeral()).await;
    let mut watcher = world.poll(1).await;
    watcher.settle().await;
    // Never came after its registration.
    tokio::time::sleep(minutes(9)).await;
    assert!(world.control.registered(&node_key(2)).is_some());
    // Registered again just before the end: the time starts anew.
    assert!(world.register(2, register(2)).await.machine_authorized);
    tokio::time::sleep(minutes(9)).await;
    assert!(world.control.registered(&node_key(2)).is_some());
    // Connected: it stays as long as it is.
    let poll = world.poll(2).await;
    tokio::time::sleep(minutes(120)).await;
    assert!(world.control.registered(&node_key(2)).is_some());
    drop(poll);
    tokio::time::sleep(minutes(9)).await;
    // A break in between.
    let poll = world.poll(2).await;
    drop(poll);
    tokio::time::sleep(minutes(9)).await;
    assert!(world.control.registered(&node_key(2)).is_some());
    tokio::time::sleep(minutes(2)).await;
    assert!(world.control.registered(&node_key(2)).is_none());
    watcher.settle().await;
    assert!(watcher.map.peers.is_empty());
    let audit = world.admin().audit(None, None, 1).await.unwrap();
    assert_eq!((audit[0].what.as_str(), audit[0].who.as_str()), ("node.remove-ephemeral", "server"));
    // The others stay, whether they come or not.
    drop(watcher);
    tokio::time::sleep(minutes(60 * 24)).await;
    assert!(world.control.registered(&node_key(1)).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_lease_does_not_run_while_the_server_is_away() {
    let world = World::with_nodes([]).await;
    world.join(1, NewAuthKey { ephemeral: true, ..NewAuthKey::default() }).await;
    let world = world.restart(Duration::from_secs(24 * 3600)).await;
    tokio::time::sleep(Duration::from_secs(9 * 60)).await;
    assert!(world.control.registered(&node_key(1)).is_some(), "it could not come back before");
    tokio::time::sleep(Duration::from_secs(2 * 60)).await;
    assert!(world.control.registered(&node_key(1)).is_none());
}

#[tokio::test(start_paused = true)]
async fn keys_expire_by_the_clock() {
    let world = World::with_nodes([1, 2]).await;
    let at = world.started() + jiff::SignedDuration::from_mins(30);
    world.admin().expire_node(None, "host2", Expiry::At(at)).await.unwrap();
    let (mut one, mut two) = (world.poll(1).await, world.poll(2).await);
    one.settle().await;
    two.settle().await;
    assert_eq!(one.map.names(), ["host2"]);
    tokio::time::sleep(Duration::from_secs(30 * 60)).await;
    one.settle().await;
    two.settle().await;
    assert_eq!(one.map.names(), Vec::<&str>::new());
    assert!(two.map.own.as_ref().unwrap().expired, "it keeps its poll, so that an administrator can let it go on");
    assert!(!world.control.relay_admits(&node_key(2)) && world.control.relay_admits(&node_key(1)));
}

#[tokio::test(start_paused = true)]
async fn the_relay_hears_of_nodes_that_may_no_longer_use_it() {
    let world = World::with_nodes([1, 2, 3]).await;
    let mut departures = world.control.relay_departures();
    world.admin().remove_node(None, "host1").await.unwrap();
    assert_eq!(departures.recv().await, Ok(node_key(1)));
    world.admin().expire_node(None, "host2", Expiry::Now).await.unwrap();
    assert_eq!(departures.recv().await, Ok(node_key(2)));
    world.admin().expire_node(None, "host2", Expiry::Never).await.unwrap();
    assert!(world.control.relay_admits(&node_key(2)));
    assert!(departures.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_was_killed_knows_when_it_saw_its_nodes() {
    let world = World::with_nodes([1, 2]).await;
    let seen = world.control.clock().now();
    let _poll = world.poll(2).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let copy = Folder::new();
    std::fs::create_dir(copy.join("state")).unwrap();
    world.control.store().backup(&copy.join("state/warren.db")).await.unwrap();
    let after = crate::Control::open_in_paused_time(config(&copy), world.control.clock().now()).await.unwrap();
    let killed = World::over(after, copy);
    let last_seen = |world: &World| world.whole_map(1).peers.values().next().unwrap().last_seen;
    assert_eq!(last_seen(&killed), crate::map::view::time(seen));
    // One that was stopped knows better.
    let stopped = world.control.clock().now();
    world.control.flush().await.unwrap();
    drop(_poll);
    let world = world.restart(Duration::from_secs(5)).await;
    assert_eq!(last_seen(&world), crate::map::view::time(stopped));
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_a_client_wakes_nobody() {
    let world = World::with_nodes([1, 2]).await;
    let snapshots = || {
        let (tailnet, _) = world.control.registered(&node_key(1)).unwrap();
        tailnet.snapshots()
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut watcher = snapshots();
    watcher.mark_unchanged();
    assert!(world.register(2, register(2)).await.machine_authorized);
    drop(world.admin().auth_keys(None).unwrap());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!watcher.has_changed().unwrap());
    // With something new to say it does.
    let mut changed = register(2);
    changed.hostinfo.as_mut().unwrap().os = "plan9".to_owned();
    assert!(world.register(2, changed).await.machine_authorized);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(watcher.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn endpoints_are_few_and_usable() {
    let world = World::with_nodes([1, 2]).await;
    let many: Vec<std::net::SocketAddr> = (1..=1000).map(|port| ([192, 0, 2, 1], port).into()).collect();
    world.report(2, MapRequest { endpoints: many, ..report(2, &[]) }).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let peer = world.whole_map(1).peers.values().next().unwrap().clone();
    assert_eq!(peer.endpoints.len(), 64);
}

#[tokio::test(start_paused = true)]
async fn a_poll_ends_when_its_node_has_another_key() {
    let world = World::with_nodes([1]).await;
    let mut poll = world.poll(1).await;
    poll.settle().await;
    let key = world.auth_key(NewAuthKey::default()).await;
    let renewed = warren_wire::control::RegisterRequest {
        node_key: node_key(11),
        old_node_key: Some(node_key(1)),
        ..with_key(register(1), &key)
    };
    assert!(world.register(1, renewed).await.machine_authorized);
    assert_eq!(poll.next().await, None, "the client polls anew with its new key");
    assert_eq!(world.control.update(machine(1), report(1, &[])).await.err(), Some(MapError::UnknownNode));
    let request = MapRequest { stream: true, node_key: node_key(11), ..map(1) };
    let mut poll = world.poll_with(1, request).await;
    assert_eq!(poll.next().await.unwrap().node.unwrap().key, node_key(11));
}
