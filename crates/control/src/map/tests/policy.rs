//! What a policy says, on its way to nodes: routes, capabilities, SSH rules, relays, rules by time.

use std::time::Duration;

use ipnet::IpNet;
use serde_json::json;
use warren_wire::control::{MapRequest, Node, RULES_END, RegionId};

use crate::admin::{AdminError, NewAuthKey};
use crate::testing::*;

const ANN: &str = "ann@example.com";
const BOB: &str = "bob@example.com";

fn of(user: &str) -> NewAuthKey {
    NewAuthKey { user: Some(user.to_owned()), ..NewAuthKey::default() }
}

fn tagged(tag: &str) -> NewAuthKey {
    NewAuthKey { tags: vec![tag.to_owned()], ..NewAuthKey::default() }
}

fn prefixes(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Ann has node 1, Bob node 2; routers are 3 and 4, with the tag `tag:router`.
async fn office(policy: &str) -> World {
    let world = World::new().await;
    for user in [ANN, BOB] {
        world.admin().create_user("default", user, None).await.unwrap();
    }
    world.admin().set_policy("default", policy).await.unwrap();
    world.join(1, of(ANN)).await;
    world.join(2, of(BOB)).await;
    world.join(3, tagged("tag:router")).await;
    world.join(4, tagged("tag:router")).await;
    world
}

async fn offer(world: &World, number: u8, routes: &[&str]) {
    let mut request = report(number, &[]);
    request.hostinfo.as_mut().unwrap().routable_ips = prefixes(routes);
    world.control.update(machine(number), request).await.unwrap();
    tokio::time::sleep(Duration::from_millis(60)).await;
}

async fn approve(world: &World, number: u8, routes: &[&str]) {
    world.admin().approve_routes(None, &format!("host{number}"), &prefixes(routes)).await.unwrap();
}

/// Returns what a node's map says of another: the routes beyond its addresses, and those for which it is the way.
fn routes(map: &ClientMap, name: &str) -> Option<(Vec<IpNet>, Vec<IpNet>)> {
    let node: &Node = map.peers.values().find(|peer| peer.name.starts_with(&format!("{name}.")))?;
    let mut allowed = node.allowed_ips.clone().unwrap();
    let own = allowed.drain(..node.addresses.len()).collect::<Vec<_>>();
    assert_eq!(own, node.addresses, "its own addresses come first");
    Some((allowed, node.primary_routes.clone()))
}

fn route(text: &str) -> Option<(Vec<IpNet>, Vec<IpNet>)> {
    Some((prefixes(&[text]), prefixes(&[text])))
}

const NOTHING: Option<(Vec<IpNet>, Vec<IpNet>)> = Some((Vec::new(), Vec::new()));

const SUBNET: &str = r#"{
    "tagOwners": {"tag:router": []},
    "acls": [
        {"action": "accept", "src": ["ann@example.com"], "dst": ["10.33.0.0/16:*"]},
        {"action": "accept", "src": ["bob@example.com"], "dst": ["tag:router:22"]},
    ],
}"#;

#[tokio::test(start_paused = true)]
async fn a_subnet_is_shown_to_those_who_may_use_it() {
    let world = office(SUBNET).await;
    let (mut ann, mut bob) = (world.poll(1).await, world.poll(2).await);
    let mut router = world.poll(3).await;
    ann.settle().await;
    bob.settle().await;
    router.settle().await;
    assert_eq!(routes(&ann.map, "host3"), None);
    offer(&world, 3, &["10.33.0.0/16", "192.168.0.0/24"]).await;
    assert_eq!(ann.settle().await, [], "offering alone changes nothing for others");
    approve(&world, 3, &["10.33.0.0/16"]).await;
    ann.settle().await;
    bob.settle().await;
    router.settle().await;
    assert_eq!(routes(&ann.map, "host3"), route("10.33.0.0/16"));
    assert_eq!(routes(&bob.map, "host3"), NOTHING, "reaching the router is not reaching what is behind it");
    let own = router.map.own.as_ref().unwrap();
    assert_eq!(own.primary_routes, prefixes(&["10.33.0.0/16"]));
    assert!(own.allowed_ips.as_ref().unwrap().contains(&prefixes(&["10.33.0.0/16"])[0]));
    let filter = router.map.filter.values().flatten().flat_map(|rule| &rule.dst_ports);
    assert!(filter.clone().any(|to| to.ip == "10.33.0.0/16"), "{:?}", router.map.filter);
    // And back.
    world.admin().revoke_routes(None, "host3", &prefixes(&["10.33.0.0/16"])).await.unwrap();
    ann.settle().await;
    router.settle().await;
    assert_eq!(routes(&ann.map, "host3"), None);
    assert_eq!(router.map.own.as_ref().unwrap().primary_routes, []);
}

#[tokio::test(start_paused = true)]
async fn when_a_router_goes_another_takes_over_and_keeps_it() {
    let world = office(SUBNET).await;
    let mut ann = world.poll(1).await;
    let (first, second) = (world.poll(3).await, world.poll(4).await);
    for number in [3, 4] {
        offer(&world, number, &["10.33.0.0/16"]).await;
        approve(&world, number, &["10.33.0.0/16"]).await;
    }
    ann.settle().await;
    assert_eq!((routes(&ann.map, "host3"), routes(&ann.map, "host4")), (route("10.33.0.0/16"), NOTHING));
    let standby = |map: &ClientMap, name: &str| {
        map.peers.values().find(|peer| peer.name.starts_with(name)).unwrap().standby_routes.clone()
    };
    assert_eq!((standby(&ann.map, "host3."), standby(&ann.map, "host4.")), (vec![], prefixes(&["10.33.0.0/16"])));
    drop(first);
    tokio::time::sleep(Duration::from_secs(11)).await;
    let messages = ann.settle().await;
    assert_eq!((routes(&ann.map, "host3"), routes(&ann.map, "host4")), (NOTHING, route("10.33.0.0/16")));
    let sent: usize = messages.iter().map(|message| message.peers_changed.len()).sum();
    assert_eq!(sent, 2, "the two routers and nobody else");
    assert_eq!((standby(&ann.map, "host3."), standby(&ann.map, "host4.")), (prefixes(&["10.33.0.0/16"]), vec![]));
    let _first = world.poll(3).await;
    ann.settle().await;
    assert_eq!(routes(&ann.map, "host4"), route("10.33.0.0/16"), "who serves well goes on");
    drop(second);
    tokio::time::sleep(Duration::from_secs(11)).await;
    ann.settle().await;
    assert_eq!(routes(&ann.map, "host3"), route("10.33.0.0/16"));
}

#[tokio::test(start_paused = true)]
async fn exit_nodes_are_for_those_who_may_use_the_internet() {
    let world = office(
        r#"{"tagOwners": {"tag:router": []}, "acls": [
            {"action": "accept", "src": ["ann@example.com"], "dst": ["autogroup:internet:*"]},
            {"action": "accept", "src": ["bob@example.com"], "dst": ["tag:router:22"]}],
            "nodeAttrs": [{"target": ["tag:router"], "attr": ["suggest-exit-node"]}]}"#,
    )
    .await;
    let (mut ann, mut bob) = (world.poll(1).await, world.poll(2).await);
    offer(&world, 3, &["0.0.0.0/0", "::/0"]).await;
    approve(&world, 3, &["0.0.0.0/0"]).await;
    ann.settle().await;
    bob.settle().await;
    assert_eq!(routes(&ann.map, "host3"), Some((prefixes(&["0.0.0.0/0", "::/0"]), Vec::new())));
    assert_eq!(routes(&bob.map, "host3"), NOTHING);
    let suggested = |map: &ClientMap, name: &str| {
        let peer = map.peers.values().find(|peer| peer.name.starts_with(name)).unwrap();
        peer.cap_map.has("suggest-exit-node")
    };
    assert!(suggested(&ann.map, "host3.") && !suggested(&bob.map, "host4."));
}

#[tokio::test(start_paused = true)]
async fn routes_are_approved_by_the_policy_when_they_are_first_offered() {
    let auto = |more: &str| {
        format!(
            r#"{{"tagOwners": {{"tag:router": []}}, "acls": [],
                "autoApprovers": {{"routes": {{"10.33.0.0/16": ["tag:router"]{more}}}, "exitNode": ["ann@example.com"]}}}}"#
        )
    };
    let world = office(&auto("")).await;
    let approved = |number: u8| world.admin().node(None, &format!("host{number}")).unwrap().approved_routes;
    // At registration.
    let mut request = with_key(register(5), &world.auth_key(tagged("tag:router")).await);
    request.hostinfo.as_mut().unwrap().routable_ips = prefixes(&["10.33.1.0/24", "10.34.0.0/16"]);
    assert!(world.register(5, request).await.machine_authorized);
    assert_eq!(approved(5), prefixes(&["10.33.1.0/24"]));
    // Later, and not for others.
    for number in [1, 3] {
        offer(&world, number, &["10.33.0.0/16", "0.0.0.0/0", "::/0"]).await;
    }
    assert_eq!(approved(3), prefixes(&["10.33.0.0/16"]));
    assert_eq!(approved(1), prefixes(&["0.0.0.0/0", "::/0"]));
    // What an administrator takes back stays so while it is offered, and comes with a new offer.
    world.admin().revoke_routes(None, "host3", &prefixes(&["10.33.0.0/16"])).await.unwrap();
    world.admin().set_policy("default", auto(r#", "10.34.0.0/16": ["tag:router"]"#).as_str()).await.unwrap();
    assert_eq!(approved(3), []);
    assert_eq!(approved(5), prefixes(&["10.33.1.0/24", "10.34.0.0/16"]), "the policy approves more now");
    offer(&world, 3, &[]).await;
    offer(&world, 3, &["10.33.0.0/16"]).await;
    assert_eq!(approved(3), prefixes(&["10.33.0.0/16"]));
    // Approved once, approved for good.
    world.admin().set_policy("default", r#"{"tagOwners": {"tag:router": []}, "acls": []}"#).await.unwrap();
    assert_eq!((approved(3).len(), approved(5).len()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn capabilities_come_with_policy_and_role() {
    let world = office(r#"{"tagOwners": {"tag:router": []}, "acls": []}"#).await;
    let mut ann = world.poll(1).await;
    ann.settle().await;
    let has = |map: &ClientMap, name: &str| map.own.as_ref().unwrap().cap_map.has(name);
    assert!(!has(&ann.map, "randomize-client-port") && !has(&ann.map, "https://tailscale.com/cap/ssh"));
    let policy = r#"{"tagOwners": {"tag:router": []}, "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
        "randomizeClientPort": true, "OneCGNATRoute": "mac-always",
        "nodeAttrs": [{"target": ["ann@example.com"], "attr": ["custom:x", "disable-ipv4"]}],
        "ssh": [{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:router"], "users": ["root"]}]}"#;
    world.admin().set_policy("default", policy).await.unwrap();
    ann.settle().await;
    for name in
        ["randomize-client-port", "custom:x", "disable-ipv4", "https://tailscale.com/cap/ssh", "one-cgnat?v=true"]
    {
        assert!(has(&ann.map, name), "{name}");
    }
    assert!(has(&ann.map, "probe-udp-lifetime"), "what all have stays");
    let own = ann.map.own.as_ref().unwrap();
    assert!(own.addresses.iter().all(|address| address.addr().is_ipv6()), "{:?}", own.addresses);
    let seen = world.whole_map(2);
    let seen = seen.peers.values().find(|peer| peer.name.starts_with("host1.")).unwrap();
    assert_eq!((&seen.addresses, seen.allowed_ips.as_ref()), (&own.addresses, Some(&own.addresses)));
    assert!(seen.cap_map.0.is_empty(), "that is nobody else's business");
    world.admin().set_user_role("default", ANN, "admin").await.unwrap();
    ann.settle().await;
    assert!(
        has(&ann.map, "https://tailscale.com/cap/is-admin") && !has(&ann.map, "https://tailscale.com/cap/is-owner")
    );
}

#[tokio::test(start_paused = true)]
async fn new_nodes_get_addresses_from_their_pool() {
    let world = office(
        r#"{"tagOwners": {"tag:router": []}, "acls": [],
            "nodeAttrs": [{"target": ["tag:router"], "ipPool": ["100.80.0.8/31"]}]}"#,
    )
    .await;
    world.join(5, tagged("tag:router")).await;
    let address = |number: u8| world.admin().node(None, &format!("host{number}")).unwrap().addresses[0].to_string();
    assert_eq!([3, 4].map(address), ["100.80.0.8", "100.80.0.9"]);
    assert_eq!(
        [1, 2, 5].map(address),
        ["100.64.0.1", "100.64.0.2", "100.64.0.3"],
        "and a used up pool keeps nobody out"
    );
}

#[tokio::test(start_paused = true)]
async fn ssh_rules_follow_the_members() {
    let world = office(
        r#"{"tagOwners": {"tag:router": []}, "acls": [], "ssh": [
            {"action": "accept", "src": ["ann@example.com"], "dst": ["tag:router"], "users": ["root"]}]}"#,
    )
    .await;
    let (mut router, mut bob) = (world.poll(3).await, world.poll(2).await);
    router.settle().await;
    bob.settle().await;
    let principals = |map: &ClientMap| {
        let rules = &map.ssh.as_ref().unwrap().rules;
        rules.iter().map(|rule| rule.principals.len()).collect::<Vec<_>>()
    };
    assert_eq!((principals(&router.map), principals(&bob.map)), (vec![2], vec![]), "two addresses of one node");
    world.join(6, of(ANN)).await;
    let messages = router.settle().await;
    assert_eq!(principals(&router.map), [4]);
    assert!(messages.iter().all(|message| message.peers_changed.is_empty()), "SSH rules show nobody");
    assert_eq!(bob.settle().await, []);
}

#[tokio::test(start_paused = true)]
async fn rules_begin_and_end_by_the_clock() {
    let world = office(
        r#"{"tagOwners": {"tag:router": []}, "grants": [{"src": ["ann@example.com"], "dst": ["tag:router"],
            "ip": ["22"], "from": "2026-11-22T13:00:00Z", "until": "2026-11-22T14:00:00Z"}]}"#,
    )
    .await;
    let ours = MapRequest { stream: true, debug_flags: vec![RULES_END.to_owned()], ..map(3) };
    let (mut ours, mut theirs) = (world.poll_with(3, ours).await, world.poll(4).await);
    let mut ann = world.poll(1).await;
    let mut names = Vec::new();
    for _ in 0..3 {
        for poll in [&mut ours, &mut theirs, &mut ann] {
            poll.settle().await;
        }
        let ends = |map: &ClientMap| map.filter.values().flatten().map(|rule| rule.until).collect::<Vec<_>>();
        names.push((ann.map.names().len(), ends(&ours.map), ends(&theirs.map)));
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
    let end = "2026-11-22T14:00:00Z".parse().ok();
    assert_eq!(names[0], (0, vec![], vec![]));
    assert_eq!(names[1], (2, vec![end], vec![None]), "only who keeps to it is told");
    assert_eq!(names[2], (0, vec![], vec![]));
}

#[tokio::test(start_paused = true)]
async fn relays_of_the_policy_join_those_of_the_server() {
    let world = office(r#"{"tagOwners": {"tag:router": []}, "acls": []}"#).await;
    let mut ann = world.poll(1).await;
    ann.settle().await;
    let more = r#"{"acls": [], "derpMap": {"Regions": {"901": {"RegionID": 901, "RegionCode": "x", "Nodes": [
        {"Name": "901a", "RegionID": 901, "HostName": "relay.example.com"}]}}}}"#;
    world.admin().set_policy("default", more).await.unwrap();
    ann.settle().await;
    let regions = |map: &ClientMap| -> Vec<RegionId> {
        map.derp.as_ref().unwrap().regions.as_ref().unwrap().keys().copied().collect()
    };
    assert_eq!(regions(&ann.map), [RegionId(900), RegionId(901)]);
    let none = world.admin().set_policy("default", r#"{"acls": [], "derpMap": {"OmitDefaultRegions": true}}"#).await;
    assert!(matches!(none, Err(AdminError::Policy { .. })), "{none:?}");
    ann.settle().await;
    assert_eq!(regions(&ann.map), [RegionId(900), RegionId(901)]);
    world.admin().set_policy("default", r#"{"acls": []}"#).await.unwrap();
    ann.settle().await;
    assert_eq!(regions(&ann.map), [RegionId(900)]);
}

#[tokio::test(start_paused = true)]
async fn an_attribute_opens_and_closes() {
    let world = office(
        r#"{"tagOwners": {"tag:router": []}, "postures": {"posture:gold": ["custom:tier == 'gold'"]},
            "acls": [{"action": "accept", "src": ["ann@example.com"], "dst": ["tag:router:22"],
            "srcPosture": ["posture:gold"]}]}"#,
    )
    .await;
    let (mut ann, mut router) = (world.poll(1).await, world.poll(3).await);
    let mut seen = Vec::new();
    for tier in ["tin", "gold", "tin"] {
        world.admin().set_node_attribute(None, "host1", "custom:tier", &json!(tier)).await.unwrap();
        ann.settle().await;
        router.settle().await;
        let sources = router.map.filter.values().flatten().flat_map(|rule| &rule.src_ips).count();
        seen.push((ann.map.names().len(), sources));
    }
    assert_eq!(seen, [(0, 0), (2, 2), (0, 0)]);
}

/// Neither the viewer nor the node's own record changes: only what others may do with the node.
#[tokio::test(start_paused = true)]
async fn a_role_opens_and_closes() {
    let world = office(
        r#"{"tagOwners": {"tag:router": []},
            "acls": [{"action": "accept", "src": ["bob@example.com"], "dst": ["autogroup:auditor:22"]}]}"#,
    )
    .await;
    let mut bob = world.poll(2).await;
    let mut seen = Vec::new();
    for role in ["member", "auditor", "member"] {
        world.admin().set_user_role("default", ANN, role).await.unwrap();
        bob.settle().await;
        seen.push(bob.map.names().len());
    }
    assert_eq!(seen, [0, 1, 0]);
}

/// For those whom a rule sends through certain routers, the way may change though the subnet's own way does not.
#[tokio::test(start_paused = true)]
async fn a_way_through_certain_routers_follows_those_that_are_there() {
    let world = office(
        r#"{"tagOwners": {"tag:router": [], "tag:first": []}, "grants": [
            {"src": ["ann@example.com"], "dst": ["10.33.0.0/16"], "ip": ["*"], "via": ["tag:router"]},
            {"src": ["bob@example.com"], "dst": ["10.33.0.0/16"], "ip": ["*"]}]}"#,
    )
    .await;
    world.admin().tag_node(None, "host2", &["tag:first".to_owned()]).await.unwrap();
    for number in 2..=4 {
        offer(&world, number, &["10.33.0.0/16"]).await;
        approve(&world, number, &["10.33.0.0/16"]).await;
    }
    let mut ann = world.poll(1).await;
    let (_first, third, _fourth) = (world.poll(2).await, world.poll(3).await, world.poll(4).await);
    ann.settle().await;
    assert_eq!((routes(&ann.map, "host3"), routes(&ann.map, "host4")), (route("10.33.0.0/16"), NOTHING));
    drop(third);
    tokio::time::sleep(Duration::from_secs(11)).await;
    ann.settle().await;
    assert_eq!((routes(&ann.map, "host3"), routes(&ann.map, "host4")), (NOTHING, route("10.33.0.0/16")));
}

#[tokio::test(start_paused = true)]
async fn a_change_that_concerns_others_wakes_nobody() {
    let rules = |ports: &str| {
        format!(
            r#"{{"tagOwners": {{"tag:router": []}}, "acls": [
                {{"action": "accept", "src": ["ann@example.com"], "dst": ["tag:router:{ports}"]}},
                {{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}}]}}"#
        )
    };
    let world = office(&rules("22")).await;
    world.join(7, of(BOB)).await;
    let (mut ann, mut bob, mut router) = (world.poll(1).await, world.poll(2).await, world.poll(3).await);
    for poll in [&mut ann, &mut bob, &mut router] {
        poll.settle().await;
    }
    world.admin().set_policy("default", rules("22,80").as_str()).await.unwrap();
    let messages = router.settle().await;
    assert!(messages.len() == 1 && messages[0].peers_changed.is_empty(), "its filter changes, nothing else");
    assert_eq!((ann.settle().await, bob.settle().await), (vec![], vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_policy_whose_own_tests_fail_is_refused() {
    let world = office(SUBNET).await;
    let with_test = SUBNET.replacen('{', r#"{"tests": [{"src": "bob@example.com", "accept": ["10.33.0.1:80"]}],"#, 1);
    let refused = world.admin().set_policy("default", with_test.as_str()).await;
    let Err(AdminError::Policy { reason }) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("test(s) failed") && reason.contains("10.33.0.1"), "{reason}");
    assert_eq!(world.admin().policy("default", None).await.unwrap().text, SUBNET);
    let fitting = with_test.replace("bob@example.com\", \"accept", "ann@example.com\", \"accept");
    assert_eq!(world.admin().set_policy("default", fitting.as_str()).await.unwrap().version, 3);
}
