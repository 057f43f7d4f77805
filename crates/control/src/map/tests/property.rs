//! Whatever happens: who follows the changes knows what a whole map says.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use warren_wire::control::{MapRequest, NetInfo, RegionId, Service};

use crate::admin::{Expiry, NewAuthKey};
use crate::tailnet::access;
use crate::testing::*;

/// How many node keys there are.
const KEYS: u8 = 6;

const USERS: [&str; 3] = ["owner@default", "ann@example.com", "bob@example.com"];

/// Routes that nodes offer and administrators approve.
const ROUTES: [&[&str]; 4] = [
    &[],
    &["10.33.0.0/16"],
    &["10.33.0.0/16", "0.0.0.0/0", "::/0"],
    // Over the addresses of other nodes.
    &["100.64.0.0/29", "10.33.1.0/24"],
];

const ROLES: [&str; 3] = ["member", "admin", "auditor"];

const POLICIES: [&str; 8] = [
    r#"{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}"#,
    r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#,
    r#"{"acls": [{"action": "accept", "src": ["ann@example.com"], "dst": ["tag:web:80", "bob@example.com:22"]}],
        "tagOwners": {"tag:web": []}}"#,
    r#"{"acls": []}"#,
    r#"{"acls": [
            {"action": "accept", "src": ["ann@example.com"], "dst": ["10.33.0.0/16:*", "tag:web:22"]},
            {"action": "accept", "src": ["10.33.0.0/16"], "dst": ["owner@default:443"]},
            {"action": "accept", "src": ["bob@example.com"], "dst": ["autogroup:internet:*"]}],
        "autoApprovers": {"routes": {"10.33.0.0/16": ["tag:web", "ann@example.com"]}, "exitNode": ["autogroup:member"]},
        "tagOwners": {"tag:web": []}}"#,
    r#"{"acls": [
            {"action": "accept", "src": ["autogroup:member"], "dst": ["tag:web:*"], "srcPosture": ["posture:gold"]},
            {"action": "accept", "src": ["autogroup:admin"], "dst": ["autogroup:member:22"]},
            {"action": "accept", "src": ["bob@example.com"], "dst": ["autogroup:auditor:22"]}],
        "postures": {"posture:gold": ["custom:tier == 'gold'"]},
        "nodeAttrs": [
            {"target": ["tag:web"], "attr": ["disable-ipv4"]},
            {"target": ["autogroup:admin"], "attr": ["suggest-exit-node", "custom:x"]}],
        "ssh": [
            {"action": "check", "src": ["autogroup:member"], "dst": ["tag:web"], "users": ["localpart:*@example.com"]},
            {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["autogroup:nonroot"]}],
        "tagOwners": {"tag:web": []}, "OneCGNATRoute": "mac-never"}"#,
    r#"{"grants": [
            {"src": ["ann@example.com"], "dst": ["10.33.0.0/16"], "ip": ["*"], "via": ["tag:web"]},
            {"src": ["bob@example.com"], "dst": ["100.64.0.0/29"], "ip": ["tcp:80"],
                "from": "2026-11-22T12:01:00Z", "until": "2026-11-22T13:30:00Z"},
            {"src": ["*"], "dst": ["tag:web"], "ip": ["udp:53"], "app": {"example.com/cap": [{"a": 1}]},
                "until": "2026-11-22T12:15:00Z"}],
        "tagOwners": {"tag:web": []}, "randomizeClientPort": true}"#,
    r#"{"acls": [{"action": "accept", "src": ["owner@default"], "dst": ["100.64.0.3:*", "*:80"]}],
        "derpMap": {"Regions": {"901": {"RegionID": 901, "RegionCode": "x", "RegionName": "X", "Nodes": [
            {"Name": "901a", "RegionID": 901, "HostName": "relay.example.com"}]}}},
        "ssh": [{"action": "accept", "src": ["bob@example.com"], "dst": ["bob@example.com"], "users": ["root"]}]}"#,
];

/// Something that happens to a tailnet.
#[derive(Debug, Clone)]
enum Step {
    Join { key: u8, user: Option<usize> },
    Renew { key: u8, new: u8 },
    Logout(u8),
    Poll(u8),
    Leave(u8),
    Read(u8),
    Endpoint(u8, u16),
    Home(u8, u16),
    Service(u8, u16),
    Hostname(u8, u8),
    Rename(u8, Option<u8>),
    Tag(u8),
    Expire(u8, u8),
    Approval(bool),
    Approve(u8),
    Remove(u8),
    Policy(usize),
    Offer(u8, usize),
    ApproveRoutes(u8, usize),
    RevokeRoutes(u8, usize),
    Attribute(u8, bool),
    Role(usize, usize),
    Relays(u8),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = || 1..=KEYS;
    let step = prop_oneof![
        6 => (key(), prop::option::of(0..USERS.len())).prop_map(|(key, user)| Step::Join { key, user }),
        1 => (key(), key()).prop_map(|(key, new)| Step::Renew { key, new }),
        1 => key().prop_map(Step::Logout),
        5 => key().prop_map(Step::Poll),
        1 => key().prop_map(Step::Leave),
        3 => key().prop_map(Step::Read),
        3 => (key(), 1..4_u16).prop_map(|(key, port)| Step::Endpoint(key, port)),
        2 => (key(), 0..3_u16).prop_map(|(key, region)| Step::Home(key, region)),
        1 => (key(), 1..4_u16).prop_map(|(key, port)| Step::Service(key, port)),
        2 => (key(), 0..3_u8).prop_map(|(key, name)| Step::Hostname(key, name)),
        1 => (key(), prop::option::of(0..3_u8)).prop_map(|(key, name)| Step::Rename(key, name)),
        1 => key().prop_map(Step::Tag),
        2 => (key(), 0..3_u8).prop_map(|(key, when)| Step::Expire(key, when)),
        1 => any::<bool>().prop_map(Step::Approval),
        1 => key().prop_map(Step::Approve),
        1 => key().prop_map(Step::Remove),
        4 => (0..POLICIES.len()).prop_map(Step::Policy),
        3 => (key(), 0..ROUTES.len()).prop_map(|(key, routes)| Step::Offer(key, routes)),
        2 => (key(), 0..ROUTES.len()).prop_map(|(key, routes)| Step::ApproveRoutes(key, routes)),
        1 => (key(), 0..ROUTES.len()).prop_map(|(key, routes)| Step::RevokeRoutes(key, routes)),
        1 => (key(), any::<bool>()).prop_map(|(key, gold)| Step::Attribute(key, gold)),
        1 => (1..USERS.len(), 0..ROLES.len()).prop_map(|(user, role)| Step::Role(user, role)),
        1 => (0..2_u8).prop_map(Step::Relays),
        2 => prop_oneof![Just(0), Just(60), Just(12_000), Just(700_000), Just(3_600_000)].prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..60)
}

/// The world and the polls in it; all nodes are on one machine, so that its users meet there.
struct Play {
    world: World,
    polls: BTreeMap<u8, Follower>,
}

impl Play {
    fn is_known(&self, key: u8) -> bool {
        self.world.control.registered(&node_key(key)).is_some()
    }

    fn id(&self, key: u8) -> String {
        self.world.id(key).to_string()
    }

    /// Sends a report, if the node is there.
    async fn report(&self, key: u8, change: impl FnOnce(&mut MapRequest)) {
        let mut request = report(key, &[]);
        change(&mut request);
        drop(self.world.control.update(machine(1), request).await);
    }

    async fn step(&mut self, step: Step) {
        let admin = self.world.admin();
        match step {
            Step::Join { key, user } => {
                let new = match user {
                    Some(user) => NewAuthKey { user: Some(USERS[user].to_owned()), ..NewAuthKey::default() },
                    None => NewAuthKey { tags: vec!["tag:web".to_owned()], ..NewAuthKey::default() },
                };
                let new = NewAuthKey { ephemeral: key == KEYS, ..new };
                let auth_key = self.world.auth_key(new).await;
                self.world.register(1, with_key(register(key), &auth_key)).await;
            }
            Step::Renew { key, new } => {
                let auth_key = self.world.auth_key(NewAuthKey::default()).await;
                let mut request = with_key(register(new), &auth_key);
                request.old_node_key = Some(node_key(key));
                self.world.register(1, request).await;
            }
            Step::Logout(key) => {
                let mut request = register(key);
                request.expiry = warren_wire::control::Time::from_unix(123, 0);
                self.world.register(1, request).await;
            }
            Step::Poll(key) => {
                if self.is_known(key) {
                    let request = MapRequest { stream: true, ..map(key) };
                    let stream = self.world.control.map_stream(machine(1), request).await.unwrap();
                    self.polls.insert(key, Follower::new(stream));
                }
            }
            Step::Leave(key) => {
                self.polls.remove(&key);
            }
            Step::Read(key) => {
                if let Some(poll) = self.polls.get_mut(&key) {
                    poll.settle().await;
                }
            }
            Step::Endpoint(key, port) => {
                self.report(key, |request| request.endpoints = vec![([192, 0, 2, key], port).into()]).await;
            }
            Step::Home(key, region) => {
                let net_info = NetInfo { preferred_derp: RegionId(region), ..NetInfo::default() };
                self.report(key, |request| request.hostinfo.as_mut().unwrap().net_info = Some(net_info)).await;
            }
            Step::Service(key, port) => {
                let service = Service { proto: "peerapi4".to_owned(), port, ..Service::default() };
                self.report(key, |request| request.hostinfo.as_mut().unwrap().services = vec![service]).await;
            }
            Step::Hostname(key, name) => {
                self.report(key, |request| request.hostinfo = Some(host(&format!("name{name}")))).await;
            }
            Step::Rename(key, name) if self.is_known(key) => {
                let name = name.map(|name| format!("name{name}"));
                drop(admin.rename_node(None, &self.id(key), name.as_deref()).await);
            }
            Step::Tag(key) if self.is_known(key) => {
                admin.tag_node(None, &self.id(key), &["tag:web".to_owned()]).await.unwrap();
            }
            Step::Expire(key, when) if self.is_known(key) => {
                let later = self.world.control.clock().now() + jiff::SignedDuration::from_mins(1);
                let expiry = [Expiry::Now, Expiry::Never, Expiry::At(later)][usize::from(when)];
                admin.expire_node(None, &self.id(key), expiry).await.unwrap();
            }
            Step::Approve(key) if self.is_known(key) => {
                admin.approve_node(None, &self.id(key)).await.unwrap();
            }
            Step::Remove(key) if self.is_known(key) => {
                admin.remove_node(None, &self.id(key)).await.unwrap();
            }
            Step::Offer(key, number) => {
                self.report(key, |request| request.hostinfo.as_mut().unwrap().routable_ips = routes(number)).await;
            }
            Step::ApproveRoutes(key, number) if self.is_known(key) => {
                admin.approve_routes(None, &self.id(key), &routes(number)).await.unwrap();
            }
            Step::RevokeRoutes(key, number) if self.is_known(key) => {
                admin.revoke_routes(None, &self.id(key), &routes(number)).await.unwrap();
            }
            Step::Attribute(key, gold) if self.is_known(key) => {
                let tier = serde_json::json!(if gold { "gold" } else { "tin" });
                admin.set_node_attribute(None, &self.id(key), "custom:tier", &tier).await.unwrap();
            }
            Step::Role(user, role) => {
                admin.set_user_role("default", USERS[user], ROLES[role]).await.unwrap();
            }
            Step::ApproveRoutes(..) | Step::RevokeRoutes(..) | Step::Attribute(..) => {}
            Step::Rename(..) | Step::Tag(_) | Step::Expire(..) | Step::Approve(_) | Step::Remove(_) => {}
            Step::Approval(needed) => {
                admin.set_machine_approval("default", needed).await.unwrap();
            }
            Step::Policy(number) => {
                admin.set_policy("default", POLICIES[number]).await.unwrap();
            }
            Step::Relays(number) => {
                self.world.control.set_derp_map(relays(&format!("900{number}"))).await.unwrap();
            }
            Step::Wait(milliseconds) => tokio::time::sleep(Duration::from_millis(milliseconds)).await,
        }
    }

    /// Lets everything come to rest and compares.
    async fn check(&mut self) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let keys: Vec<u8> = self.polls.keys().copied().collect();
        for key in keys {
            let poll = self.polls.get_mut(&key).unwrap();
            poll.settle().await;
            if poll.has_ended().await {
                continue;
            }
            let followed = poll.map.clone();
            let whole = self.world.whole_map_on(1, key);
            for (id, profile) in &whole.profiles {
                assert_eq!(followed.profiles.get(id), Some(profile));
            }
            // Users that nobody mentions any more stay known.
            assert_eq!(ClientMap { profiles: whole.profiles.clone(), ..followed }, whole, "node {key}");
        }
        self.compare_with_fresh_compilation();
        for one in 1..=KEYS {
            for two in 1..=KEYS {
                if self.is_known(one) && self.is_known(two) {
                    let sees = |one: u8, two: u8| {
                        self.world.whole_map_on(1, one).peers.keys().any(|id| id.0 == self.world.id(two))
                    };
                    assert_eq!(sees(one, two), sees(two, one), "{one} and {two} see each other, or neither does");
                }
            }
        }
    }
}

impl Play {
    /// Compares what was carried on from change to change with what comes out of the whole at once.
    fn compare_with_fresh_compilation(&self) {
        let tailnet = self.world.control.tailnets().remove(0);
        let snapshot = tailnet.snapshot();
        let now = self.world.control.clock().now().as_second();
        let directory = access::directory(&snapshot.users, &snapshot.nodes);
        let fresh = snapshot.policy.rules().unwrap().compile(&directory, now);
        let carried = &snapshot.access.compiled;
        assert_eq!(carried.next_edge(), fresh.next_edge());
        for id in directory.nodes.keys() {
            assert_eq!(carried.filter(*id), fresh.filter(*id), "{id}");
            assert_eq!(carried.addresses(*id), fresh.addresses(*id), "{id}");
            assert!(carried.peers(*id).eq(fresh.peers(*id)), "{id}");
            assert_eq!(carried.own_routes(*id).allowed, fresh.own_routes(*id).allowed, "{id}");
        }
        for node in snapshot.nodes.iter() {
            assert_eq!(node.takes_part(), directory.nodes.contains_key(&node.id()));
        }
    }
}

fn routes(number: usize) -> Vec<ipnet::IpNet> {
    ROUTES[number].iter().map(|text| text.parse().unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn changes_lead_where_a_whole_map_leads(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let world = World::new().await;
            for user in &USERS[1..] {
                world.admin().create_user("default", user, None).await.unwrap();
            }
            let mut play = Play { world, polls: BTreeMap::new() };
            for step in steps {
                play.step(step).await;
            }
            play.check().await;
        });
    }
}
