//! Registration, row by row: who is let in, as what, and who is not.

use std::time::Duration;

use jiff::SignedDuration;
use warren_wire::control::{CapabilityVersion, RegisterRequest, RegisterResponse, Time};
use warren_wire::key::NodeKey;

use crate::admin::{AdminError, Expiry, LoginState, NewAuthKey, NodeView};
use crate::login::LIFETIME;
use crate::map::view::time;
use crate::testing::*;
use crate::{Control, KeyLifetime, NodeRecord, Who};

/// How long keys last unless somebody says otherwise, in seconds: 180 days.
const HALF_A_YEAR: u64 = 180 * 86_400;

fn assert_in(answer: &RegisterResponse) {
    let wanted = ("", "", false, true);
    let found = (answer.error.as_str(), answer.auth_url.as_str(), answer.node_key_expired, answer.machine_authorized);
    assert_eq!(found, wanted, "{answer:?}");
    assert!(answer.node_key_signature.0.is_empty(), "it would never let the client commit its key");
    assert_ne!(answer.user.id.0, 0);
    assert_eq!(answer.login.id, answer.user.id.0);
}

fn assert_refused(answer: &RegisterResponse, words: &str) {
    assert!(answer.error.contains(words), "{answer:?} should say {words:?}");
    let rest = (answer.auth_url.as_str(), answer.node_key_expired, answer.machine_authorized);
    assert_eq!(rest, ("", false, false), "{answer:?}");
}

impl World {
    fn record(&self, number: u8) -> NodeRecord {
        let (tailnet, known) = self.control.registered(&node_key(number)).unwrap();
        (*tailnet.snapshot().nodes.get(known.node).unwrap().record).clone()
    }

    fn node(&self, number: u8) -> NodeView {
        self.admin().node(None, &self.id(number).to_string()).unwrap()
    }

    fn is_known(&self, number: u8) -> bool {
        self.control.registered(&node_key(number)).is_some()
    }

    fn login_id(&self, answer: &RegisterResponse) -> String {
        assert_eq!((answer.error.as_str(), answer.machine_authorized), ("", false), "{answer:?}");
        self.control.login_id(&answer.auth_url).unwrap().to_owned()
    }
}

fn followup(number: u8, url: &str) -> RegisterRequest {
    RegisterRequest { followup: url.to_owned(), ..register(number) }
}

fn logout(number: u8) -> RegisterRequest {
    // The literal that official clients send.
    RegisterRequest { expiry: Time::from_unix(123, 0), ..register(number) }
}

fn tags(request: RegisterRequest, tags: &[&str]) -> RegisterRequest {
    let mut hostinfo = request.hostinfo.clone().unwrap();
    hostinfo.request_tags = tags.iter().map(|&tag| tag.to_owned()).collect();
    RegisterRequest { hostinfo: Some(hostinfo), ..request }
}

#[tokio::test(start_paused = true)]
async fn a_key_for_one_use_lets_one_node_in() {
    let world = World::new().await;
    let key = world.auth_key(NewAuthKey::default()).await;
    let answer = world.register(1, with_key(register(1), &key)).await;
    assert_in(&answer);
    assert_eq!(answer.login.login_name, "owner@default");
    assert!(answer.user.created.is_some());
    let node = world.node(1);
    assert_eq!((node.name.as_str(), node.fqdn.as_str()), ("host1", "host1.default.warren.internal"));
    assert_eq!(node.addresses[0].to_string(), "100.64.0.1");
    assert_eq!(node.addresses[1].to_string(), "fd7a:115c:a1e0::6440:1");
    assert!(node.approved && !node.expired && !node.ephemeral);
    let expiry = world.started() + SignedDuration::from_hours(180 * 24);
    assert_eq!(node.key_expiry, Some(expiry));

    assert_refused(&world.register(2, with_key(register(2), &key)).await, "has been used");
    assert!(!world.is_known(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_hundred_that_use_a_key_at_once_one_joins() {
    let folder = Folder::new();
    let control = Control::open(config(&folder)).await.unwrap();
    let admin = control.admin(Who::server());
    let new = NewAuthKey { tailnet: "default".to_owned(), ..NewAuthKey::default() };
    let key = admin.create_auth_key(new).await.unwrap().text.expose().to_owned();
    let all: Vec<_> = (1..=100)
        .map(|number| {
            let (control, request) = (control.clone(), with_key(register(number), &key));
            tokio::spawn(async move { control.register(machine(number), request, FROM).await })
        })
        .collect();
    let mut joined = 0;
    for one in all {
        let answer = one.await.unwrap();
        joined += usize::from(answer.machine_authorized);
        assert!(answer.machine_authorized || answer.error.contains("has been used"), "{answer:?}");
    }
    assert_eq!((joined, admin.nodes(None).unwrap().len()), (1, 1));
    let keys = admin.auth_keys(None).unwrap();
    assert_eq!((keys[0].used, keys[0].valid), (1, false));
}

#[tokio::test(start_paused = true)]
async fn a_reusable_key_lets_many_in_until_it_is_taken_back() {
    let world = World::new().await;
    let key = world.auth_key(NewAuthKey { reusable: true, ..NewAuthKey::default() }).await;
    for number in 1..=3 {
        assert_in(&world.register(number, with_key(register(number), &key)).await);
    }
    let id = world.admin().auth_keys(None).unwrap()[0].id.clone();
    assert!(!world.admin().revoke_auth_key(&id).await.unwrap().valid);
    assert_refused(&world.register(4, with_key(register(4), &key)).await, "revoked");
    // Those that are in stay.
    assert_in(&world.register(1, with_key(register(1), &key)).await);
}

#[tokio::test(start_paused = true)]
async fn a_key_ends_with_its_time() {
    let world = World::new().await;
    let lifetime = Some(Duration::from_secs(60));
    let key = world.auth_key(NewAuthKey { reusable: true, lifetime, ..NewAuthKey::default() }).await;
    tokio::time::advance(Duration::from_secs(59)).await;
    assert_in(&world.register(1, with_key(register(1), &key)).await);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_refused(&world.register(2, with_key(register(2), &key)).await, "expired");
}

#[tokio::test(start_paused = true)]
async fn a_wrong_secret_is_no_key() {
    let world = World::new().await;
    let key = world.auth_key(NewAuthKey { reusable: true, ..NewAuthKey::default() }).await;
    let last = if key.ends_with('0') { '1' } else { '0' };
    let wrong = format!("{}{last}", &key[..key.len() - 1]);
    for text in [wrong.as_str(), "tskey-auth-x", "wkey-000000000000-00", "\u{0}"] {
        assert_refused(&world.register(1, with_key(register(1), text)).await, "not known");
    }
    assert!(!world.is_known(1));
}

/// A canary: the secret half must not be found anywhere that lasts or is shown.
#[tokio::test(start_paused = true)]
async fn the_secret_of_a_key_is_nowhere() {
    let world = World::new().await;
    let key = world.auth_key(NewAuthKey { reusable: true, ..NewAuthKey::default() }).await;
    let secret = key.rsplit('-').next().unwrap().to_owned();
    let request = with_key(register(1), &key);
    assert!(!format!("{request:?}").contains(&secret));
    assert_in(&world.register(1, request).await);
    let answer = world.register(2, register(2)).await;
    assert!(!answer.auth_url.is_empty());
    world.control.flush().await.unwrap();
    let shown = format!(
        "{:?} {:?} {:?}",
        world.admin().auth_keys(None).unwrap(),
        world.admin().audit(None, None, 100).await.unwrap(),
        world.control
    );
    assert!(!shown.contains(&secret));
    for file in std::fs::read_dir(world.folder.join("state")).unwrap() {
        let path = file.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{}", path.display());
    }
}

#[tokio::test(start_paused = true)]
async fn a_tagged_key_makes_a_node_of_nobody_that_does_not_expire() {
    let world = World::new().await;
    let new = NewAuthKey { tags: vec!["tag:web".to_owned(), "tag:db".to_owned()], ..NewAuthKey::default() };
    let key = world.auth_key(new).await;
    // The key's tags replace what the client asks for.
    let request = tags(with_key(register(1), &key), &["tag:mail"]);
    let answer = world.register(1, request).await;
    assert_in(&answer);
    assert_eq!(answer.login.login_name, "tagged-devices");
    let node = world.node(1);
    assert_eq!((node.tags, node.user, node.key_expiry), (vec!["tag:db".into(), "tag:web".into()], None, None));
}

#[tokio::test(start_paused = true)]
async fn tags_that_are_not_the_users_to_give_refuse_the_whole_registration() {
    let world = World::new().await;
    world.admin().create_user("default", "ann@example.com", None).await.unwrap();
    let policy = r#"{"tagOwners": {"tag:web": ["ann@example.com"]}, "acls": []}"#;
    world.admin().set_policy("default", policy).await.unwrap();
    let of = |user: &str| NewAuthKey { user: Some(user.to_owned()), reusable: true, ..NewAuthKey::default() };
    world.admin().create_user("default", "bob@example.com", None).await.unwrap();
    let (ann, bob) = (world.auth_key(of("ann@example.com")).await, world.auth_key(of("bob@example.com")).await);
    let owner = world.auth_key(of("owner@default")).await;
    let ask = async |key: &str, wanted: &[&str]| world.register(1, tags(with_key(register(1), key), wanted)).await;
    assert_refused(&ask(&bob, &["tag:web"]).await, "tag:web");
    assert_refused(&ask(&owner, &["tag:db"]).await, "tag:db");
    assert_refused(&ask(&ann, &["tag:web", "tag:db"]).await, "tag:db");
    assert_refused(&ask(&ann, &["web"]).await, "\"web\"");
    assert_refused(&ask(&ann, &["tag:we b"]).await, "no tag");
    assert!(!world.is_known(1));
    assert_in(&ask(&ann, &["tag:web"]).await);
    let node = world.node(1);
    assert_eq!((node.tags, node.user), (vec!["tag:web".to_owned()], None));
}

#[tokio::test(start_paused = true)]
async fn machines_wait_for_approval_where_that_is_asked_for() {
    let world = World::new().await;
    world.admin().set_machine_approval("default", true).await.unwrap();
    let key = world.auth_key(NewAuthKey { reusable: true, ..NewAuthKey::default() }).await;
    let answer = world.register(1, with_key(register(1), &key)).await;
    assert_eq!((answer.error.as_str(), answer.machine_authorized), ("", false), "{answer:?}");
    assert!(!world.control.relay_admits(&node_key(1)));
    let mut waiting = world.poll(1).await;
    waiting.settle().await;
    assert!(!waiting.map.own.as_ref().unwrap().machine_authorized);

    let pre = world.auth_key(NewAuthKey { pre_approved: true, ..NewAuthKey::default() }).await;
    assert_in(&world.register(2, with_key(register(2), &pre)).await);
    waiting.settle().await;
    assert_eq!(waiting.map.names(), Vec::<&str>::new(), "who waits sees nobody");
    assert_eq!(world.whole_map(2).names(), Vec::<&str>::new(), "and nobody sees who waits");

    world.admin().approve_node(None, "host1").await.unwrap();
    waiting.settle().await;
    assert!(waiting.map.own.as_ref().unwrap().machine_authorized);
    assert_eq!(waiting.map.names(), ["host2"]);
    assert_eq!(world.whole_map(2).names(), ["host1"]);
    assert!(world.control.relay_admits(&node_key(1)));
    assert_in(&world.register(1, with_key(register(1), &key)).await);
}

#[tokio::test(start_paused = true)]
async fn a_restart_changes_nothing() {
    let world = World::new().await;
    let key = world.auth_key(NewAuthKey::default()).await;
    assert_in(&world.register(1, with_key(register(1), &key)).await);
    let before = world.record(1);
    tokio::time::advance(Duration::from_secs(3600)).await;
    let stale = NodeKey::from_bytes([77; 32]);
    for request in [
        register(1),
        // Containers show the same key at every start, though it is spent.
        with_key(register(1), &key),
        with_key(register(1), "wkey-from-another-server"),
        RegisterRequest { old_node_key: Some(stale), ..register(1) },
        RegisterRequest { expiry: None, followup: "http://control.test:8080/login/gone".to_owned(), ..register(1) },
    ] {
        assert_in(&world.register(1, request).await);
        assert_eq!(world.record(1), before);
    }
    let uses = world.admin().auth_keys(None).unwrap()[0].used;
    assert_eq!((uses, world.admin().nodes(None).unwrap().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_restart_with_a_spent_key_works_after_a_restart_of_the_server_too() {
    let world = World::new().await;
    let key = world.auth_key(NewAuthKey::default()).await;
    assert_in(&world.register(1, with_key(register(1), &key)).await);
    let before = world.record(1);
    let world = world.restart(Duration::from_secs(60)).await;
    assert_eq!(world.record(1), before);
    assert_in(&world.register(1, with_key(register(1), &key)).await);
    assert_refused(&world.register(2, with_key(register(2), &key)).await, "has been used");
}

#[tokio::test(start_paused = true)]
async fn a_new_node_key_moves_the_same_node() {
    let world = World::new().await;
    let key = world.auth_key(NewAuthKey { reusable: true, ..NewAuthKey::default() }).await;
    assert_in(&world.register(1, with_key(register(1), &key)).await);
    world.join(2, NewAuthKey::default()).await;
    let mut peer = world.poll(2).await;
    peer.settle().await;
    let before = world.record(1);
    tokio::time::advance(Duration::from_secs(3600)).await;
    let renewed = RegisterRequest { node_key: node_key(11), old_node_key: Some(node_key(1)), ..register(1) };
    assert_in(&world.register(1, with_key(renewed, &key)).await);
    let after = world.record(11);
    assert_eq!((after.id, after.ipv4, &after.name), (before.id, before.ipv4, &before.name));
    assert!(after.key_expiry > before.key_expiry);
    assert!(!world.is_known(1) && !world.control.relay_admits(&node_key(1)));
    let messages = peer.settle().await;
    let patches: Vec<_> = messages.iter().flat_map(|message| &message.peers_changed_patch).collect();
    assert!(patches.iter().any(|patch| patch.key == Some(node_key(11))), "peers learn it by a patch: {messages:?}");
    // The old key is nobody's now: who comes with it must log in.
    assert!(!world.register(1, register(1)).await.auth_url.is_empty());
}

#[tokio::test(start_paused = true)]
async fn another_user_on_the_same_machine_is_another_node() {
    let world = World::new().await;
    world.admin().create_user("default", "ann@example.com", None).await.unwrap();
    let ann = NewAuthKey { user: Some("ann@example.com".to_owned()), ..NewAuthKey::default() };
    world.join(1, NewAuthKey::default()).await;
    let key = world.auth_key(ann).await;
    // Its own key is somebody else's node.
    assert_refused(&world.register(1, with_key(register(1), &key)).await, "another owner");
    let fresh = RegisterRequest { old_node_key: Some(node_key(1)), ..with_key(register(11), &key) };
    assert_in(&world.register(1, fresh).await);
    assert_ne!(world.id(1), world.id(11));
    assert_eq!(world.node(11).user.as_deref(), Some("ann@example.com"));
    assert_eq!(world.node(1).user.as_deref(), Some("owner@default"));
}

#[tokio::test(start_paused = true)]
async fn a_node_key_is_only_a_name() {
    let world = World::new().await;
    world.join(1, NewAuthKey::default()).await;
    let before = world.record(1);
    let key = world.auth_key(NewAuthKey { reusable: true, ..NewAuthKey::default() }).await;
    let thief = 9;
    for request in [
        register(1),
        with_key(register(1), &key),
        followup(1, "http://control.test:8080/login/x"),
        RegisterRequest { expiry: Time::from_unix(4_000_000_000, 0), ..register(1) },
    ] {
        assert_refused(&world.register(thief, request).await, "another machine");
    }
    // A logout of somebody else's node is answered as if it had worked, and does nothing.
    assert!(world.register(thief, logout(1)).await.node_key_expired);
    // Naming it as the key before gives nothing, either.
    let answer =
        world.register(thief, RegisterRequest { old_node_key: Some(node_key(1)), ..with_key(register(9), &key) }).await;
    assert_in(&answer);
    assert_ne!(world.id(9), before.id.0);
    assert_eq!(world.record(1), before);
    for request in [map(1), report(1, &["192.0.2.66:1"])] {
        assert_eq!(world.control.map_once(machine(thief), &request).err(), Some(crate::MapError::UnknownNode));
        let streamed = world.control.map_stream(machine(thief), request.clone()).await;
        assert_eq!(streamed.err(), Some(crate::MapError::UnknownNode));
        assert_eq!(world.control.update(machine(thief), request).await.err(), Some(crate::MapError::UnknownNode));
    }
    assert_eq!(world.node(1).endpoints, []);
}

#[tokio::test(start_paused = true)]
async fn a_login_is_approved_on_the_server() {
    let world = World::new().await;
    let first = RegisterRequest { ephemeral: true, ..register(1) };
    let answer = world.register(1, first).await;
    let id = world.login_id(&answer);
    assert_eq!(answer.auth_url, format!("http://control.test:8080/login/{id}"));
    let login = world.admin().login(&id).unwrap();
    assert_eq!((login.hostname.as_str(), login.from, login.state), ("host1", FROM, LoginState::Waiting));

    // The repeat carries the URL, and no longer says that it is ephemeral.
    let wait = world.register(1, followup(1, &answer.auth_url));
    let approve = async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        world.admin().approve_login(&id, "default", "owner@default").await.unwrap()
    };
    let (answer, node) = tokio::join!(wait, approve);
    assert_in(&answer);
    assert_eq!((node.id, node.ephemeral), (world.id(1), true));
    assert_eq!(world.admin().login(&id).unwrap().state, LoginState::Approved);
    // Whoever asks again, or decides again, changes nothing.
    assert_in(&world.register(1, followup(1, &answer.auth_url)).await);
    assert!(matches!(world.admin().reject_login(&id), Err(AdminError::NotFound { .. })));
    let again = world.admin().approve_login(&id, "default", "owner@default").await;
    assert!(matches!(again, Err(AdminError::NotFound { .. })));
    assert_eq!(world.admin().nodes(None).unwrap().len(), 1);
    let audit = world.admin().audit(None, None, 1).await.unwrap();
    assert_eq!((audit[0].what.as_str(), audit[0].who.as_str()), ("node.create", "cli:uid=0"));
}

#[tokio::test(start_paused = true)]
async fn a_login_is_rejected_in_words() {
    let world = World::new().await;
    let answer = world.register(1, register(1)).await;
    let id = world.login_id(&answer);
    let wait = world.register(1, followup(1, &answer.auth_url));
    let (answer, rejected) = tokio::join!(wait, async { world.admin().reject_login(&id) });
    assert_eq!(rejected.unwrap().state, LoginState::Rejected);
    assert_refused(&answer, "rejected");
    assert!(!world.is_known(1));
}

#[tokio::test(start_paused = true)]
async fn logins_do_not_mix() {
    let world = World::new().await;
    let first = world.register(1, register(1)).await;
    let second = world.register(2, register(2)).await;
    assert_ne!(first.auth_url, second.auth_url);
    // Another machine cannot wait for it, nor can another key of the same machine: they get URLs of their own.
    for (machine, key) in [(2, 2), (1, 3)] {
        let answer = world.register(machine, followup(key, &first.auth_url)).await;
        assert!(!answer.auth_url.is_empty() && answer.auth_url != first.auth_url, "{answer:?}");
    }
    let id = world.login_id(&first);
    let wait = world.register(2, followup(2, &second.auth_url));
    let approved = async { world.admin().approve_login(&id, "default", "owner@default").await };
    let (waited, approved) = tokio::join!(tokio::time::timeout(Duration::from_secs(60), wait), approved);
    assert!(waited.is_err(), "the other one still waits");
    assert_eq!(approved.unwrap().node_key, node_key(1));
    assert!(!world.is_known(2));
}

#[tokio::test(start_paused = true)]
async fn a_login_that_is_over_gives_a_new_url() {
    let world = World::new().await;
    let first = world.register(1, register(1)).await;
    let second = world.register(1, followup(1, &first.auth_url)).await;
    assert_eq!(world.control.clock().now(), world.started() + SignedDuration::try_from(LIFETIME).unwrap());
    assert!(second.auth_url != first.auth_url && !second.auth_url.is_empty());
    for url in ["", "http://control.test:8080/login/", "http://elsewhere/login/1", "nonsense"] {
        let answer = world.register(2, followup(2, url)).await;
        assert!(answer.auth_url.starts_with("http://control.test:8080/login/"), "{answer:?}");
    }
    // Logins do not outlive the server; the client gets a new one.
    let world = world.restart(Duration::ZERO).await;
    let third = world.register(1, followup(1, &second.auth_url)).await;
    assert!(third.auth_url != second.auth_url && !third.auth_url.is_empty());
}

#[tokio::test(start_paused = true)]
async fn strangers_cannot_fill_the_list_of_logins() {
    let world = World::new().await;
    for _ in 0..10 {
        assert!(!world.register(1, register(1)).await.auth_url.is_empty());
    }
    assert_refused(&world.register(1, register(1)).await, "too many logins");
    assert_eq!(world.admin().logins().len(), 5, "one machine has five at most");
    let mut begun = 5;
    for number in 2..=200 {
        begun += usize::from(!world.register(number, register(number)).await.auth_url.is_empty());
    }
    assert_eq!((begun, world.admin().logins().len()), (64, 64), "one address has 64 at most");
    let elsewhere = world.control.register(machine(201), register(201), "198.51.100.1".parse().unwrap()).await;
    assert!(!elsewhere.auth_url.is_empty());
    tokio::time::advance(LIFETIME).await;
    assert_eq!(world.admin().logins().len(), 0);
    assert!(!world.register(1, register(1)).await.auth_url.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_logout_ends_the_key_now() {
    let world = World::new().await;
    let key = world.auth_key(NewAuthKey { reusable: true, ..NewAuthKey::default() }).await;
    assert_in(&world.register(1, with_key(register(1), &key)).await);
    world.join(2, NewAuthKey::default()).await;
    let mut peer = world.poll(2).await;
    peer.settle().await;
    assert_eq!(peer.map.names(), ["host1"]);
    let mut own = world.poll(1).await;
    own.settle().await;
    // First check of all, whatever else it carries, and from however old a client.
    let old = RegisterRequest { version: CapabilityVersion(1), ..with_key(logout(1), &key) };
    assert!(world.register(1, old).await.node_key_expired);
    assert_eq!(world.node(1).key_expiry, Some(world.control.clock().now()), "now, and not 1970");
    own.settle().await;
    let now = time(world.control.clock().now()).unwrap();
    let itself = own.map.own.as_ref().unwrap();
    assert!(itself.expired && itself.key_expiry.unwrap() <= now, "{itself:?}");
    peer.settle().await;
    assert_eq!(peer.map.names(), Vec::<&str>::new());
    assert!(!world.control.relay_admits(&node_key(1)));
    // The client makes a new key, and the node comes back.
    assert!(world.register(1, register(1)).await.node_key_expired);
    let id = world.id(1);
    let back = RegisterRequest { node_key: node_key(11), old_node_key: Some(node_key(1)), ..register(1) };
    assert_in(&world.register(1, with_key(back, &key)).await);
    assert_eq!(world.id(11), id);
    peer.settle().await;
    assert_eq!(peer.map.names(), ["host1"]);
}

#[tokio::test(start_paused = true)]
async fn a_logout_removes_an_ephemeral_node() {
    let world = World::new().await;
    world.join(1, NewAuthKey { ephemeral: true, ..NewAuthKey::default() }).await;
    assert!(world.register(1, logout(1)).await.node_key_expired);
    assert!(!world.is_known(1));
    assert!(world.admin().nodes(None).unwrap().is_empty());
    assert!(world.register(1, logout(1)).await.node_key_expired, "once more does no harm");
}

#[tokio::test(start_paused = true)]
async fn a_tagged_node_comes_back_after_a_logout() {
    let world = World::new().await;
    let tags = vec!["tag:web".to_owned()];
    let key = world.auth_key(NewAuthKey { tags, reusable: true, ..NewAuthKey::default() }).await;
    assert_in(&world.register(1, with_key(register(1), &key)).await);
    let id = world.id(1);
    assert!(world.register(1, logout(1)).await.node_key_expired);
    let back = RegisterRequest { old_node_key: Some(node_key(1)), ..with_key(register(11), &key) };
    assert_in(&world.register(1, back).await);
    assert_eq!((world.id(11), world.node(11).key_expiry), (id, None));
}

#[tokio::test(start_paused = true)]
async fn an_expired_node_logs_in_again() {
    let world = World::new().await;
    let spent = world.auth_key(NewAuthKey::default()).await;
    assert_in(&world.register(1, with_key(register(1), &spent)).await);
    let id = world.id(1);
    tokio::time::advance(Duration::from_secs(HALF_A_YEAR)).await;
    // It needs a new key; the one that it came with is spent, which is said in words.
    assert!(world.register(1, register(1)).await.node_key_expired);
    assert_refused(&world.register(1, with_key(register(1), &spent)).await, "has been used");
    let fresh = world.auth_key(NewAuthKey::default()).await;
    assert_in(&world.register(1, with_key(register(1), &fresh)).await);
    assert_eq!(world.id(1), id);
    tokio::time::advance(Duration::from_secs(HALF_A_YEAR)).await;
    // By login: the client came with a new key, which must never be called expired.
    let request = RegisterRequest { old_node_key: Some(node_key(1)), ..register(11) };
    let answer = world.register(1, request).await;
    let login = world.login_id(&answer);
    world.admin().approve_login(&login, "default", "owner@default").await.unwrap();
    assert_in(&world.register(1, followup(11, &answer.auth_url)).await);
    assert_eq!(world.id(11), id);
}

#[tokio::test(start_paused = true)]
async fn a_key_can_be_made_to_end_sooner_but_not_later() {
    let world = World::new().await;
    world.join(1, NewAuthKey::default()).await;
    let at = |seconds: i64| Time::from_unix(world.started().as_second() + seconds, 0);
    let wish = |seconds| RegisterRequest { expiry: at(seconds), ..register(1) };
    assert_in(&world.register(1, wish(3600)).await);
    let sooner = world.started() + SignedDuration::from_hours(1);
    assert_eq!(world.node(1).key_expiry, Some(sooner));
    assert_refused(&world.register(1, wish(7200)).await, "longer");
    assert_refused(
        &world.register(1, RegisterRequest { expiry: Time::from_unix(253_402_300_799, 0), ..register(1) }).await,
        "longer",
    );
    assert_eq!(world.node(1).key_expiry, Some(sooner));
    assert_in(&world.register(1, register(1)).await);
    assert_eq!(world.node(1).key_expiry, Some(sooner), "no wish changes nothing");
}

#[tokio::test(start_paused = true)]
async fn an_administrator_ends_and_extends_a_key_and_the_client_notices() {
    let world = World::new().await;
    world.join(1, NewAuthKey::default()).await;
    let mut own = world.poll(1).await;
    own.settle().await;
    world.admin().expire_node(None, "host1", Expiry::Now).await.unwrap();
    own.settle().await;
    assert!(own.map.own.as_ref().unwrap().expired);
    assert!(world.register(1, register(1)).await.node_key_expired);
    // It polls on, and so learns that it may go on.
    world.admin().expire_node(None, "host1", Expiry::Never).await.unwrap();
    own.settle().await;
    let itself = own.map.own.as_ref().unwrap();
    assert!(!itself.expired && itself.key_expiry.is_none());
    assert_in(&world.register(1, register(1)).await);
}

#[tokio::test(start_paused = true)]
async fn a_tailnet_says_how_long_keys_last_from_the_next_login_on() {
    let world = World::new().await;
    let key = world.auth_key(NewAuthKey { reusable: true, ..NewAuthKey::default() }).await;
    assert_in(&world.register(1, with_key(register(1), &key)).await);
    let before = world.node(1).key_expiry;
    for (lifetime, works) in [(3599, false), (3600, true), (KeyLifetime::MOST + 1, false), (86_400, true)] {
        let set = world.admin().set_key_lifetime("default", KeyLifetime::Seconds(lifetime)).await;
        assert_eq!(set.is_ok(), works, "{lifetime}: {set:?}");
    }
    assert_eq!(world.node(1).key_expiry, before, "who is in keeps the end");
    assert_in(&world.register(2, with_key(register(2), &key)).await);
    assert_eq!(world.node(2).key_expiry, Some(world.started() + SignedDuration::from_hours(24)));
    // The key is alive until the new one is let in: nothing breaks while a person is on the way.
    let renewed = |auth: &str| RegisterRequest { old_node_key: Some(node_key(1)), ..with_key(register(11), auth) };
    let open = world.register(1, RegisterRequest { auth: None, ..renewed(&key) }).await;
    assert!(!open.auth_url.is_empty() && world.is_known(1) && world.control.relay_admits(&node_key(1)));
    assert_in(&world.register(1, renewed(&key)).await);
    assert_eq!(world.node(11).key_expiry, Some(world.started() + SignedDuration::from_hours(24)));

    world.admin().set_key_lifetime("default", KeyLifetime::Never).await.unwrap();
    assert_in(&world.register(3, with_key(register(3), &key)).await);
    assert_eq!(world.node(3).key_expiry, None);
    let what: Vec<_> = world.admin().audit(None, None, 50).await.unwrap().into_iter().map(|entry| entry.what).collect();
    assert_eq!(what.iter().filter(|what| *what == "tailnet.key-lifetime").count(), 3, "{what:?}");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_an_administrator_keeps_alive_stays_so_over_logins() {
    let world = World::new().await;
    let key = world.auth_key(NewAuthKey { reusable: true, ..NewAuthKey::default() }).await;
    assert_in(&world.register(1, with_key(register(1), &key)).await);
    world.admin().expire_node(None, "host1", Expiry::Never).await.unwrap();
    let renew = |new, old| RegisterRequest { old_node_key: Some(node_key(old)), ..with_key(register(new), &key) };
    assert_in(&world.register(1, renew(11, 1)).await);
    assert_eq!(world.node(11).key_expiry, None);
    // A person who logs out is out all the same.
    assert!(world.register(1, logout(11)).await.node_key_expired);
    assert!(world.register(1, register(11)).await.node_key_expired);
    assert_in(&world.register(1, renew(12, 11)).await);
    assert_eq!(world.node(12).key_expiry, None);
    world.admin().expire_node(None, &world.node(12).name, Expiry::Now).await.unwrap();
    assert_in(&world.register(1, renew(13, 12)).await);
    assert!(world.node(13).key_expiry.is_some(), "an administrator who ends it takes the exception back");
}

#[tokio::test(start_paused = true)]
async fn clients_that_are_too_old_are_told_so() {
    let world = World::new().await;
    let key = world.auth_key(NewAuthKey::default()).await;
    let old = RegisterRequest { version: CapabilityVersion(112), ..with_key(register(1), &key) };
    assert_refused(&world.register(1, old).await, "too old");
    let least = RegisterRequest { version: CapabilityVersion(113), ..with_key(register(1), &key) };
    assert_in(&world.register(1, least).await);
    let future = RegisterRequest { version: CapabilityVersion(u16::MAX), ..register(1) };
    assert_in(&world.register(1, future).await);
}

#[tokio::test(start_paused = true)]
async fn a_client_can_insist_on_its_tailnet() {
    let world = World::new().await;
    world.admin().create_tailnet("other").await.unwrap();
    let key = world.auth_key(NewAuthKey { reusable: true, ..NewAuthKey::default() }).await;
    let insist = |name: &str| RegisterRequest { tailnet: format!("required:{name}"), ..register(1) };
    assert_refused(&world.register(1, with_key(insist("other"), &key)).await, "other");
    let answer = world.register(1, insist("other")).await;
    let id = world.login_id(&answer);
    assert_eq!(world.admin().login(&id).unwrap().tailnet_hint.as_deref(), Some("required:other"));
    let refused = world.admin().approve_login(&id, "default", "owner@default").await;
    assert!(matches!(refused, Err(AdminError::Refused { .. })));
    world.admin().approve_login(&id, "other", "owner@other").await.unwrap();
    assert_eq!(world.node(1).tailnet, "other");
    assert_in(&world.register(2, RegisterRequest { tailnet: "other".to_owned(), ..with_key(register(2), &key) }).await);
}

#[tokio::test(start_paused = true)]
async fn a_machine_moves_to_another_tailnet_with_a_new_key() {
    let world = World::new().await;
    world.admin().create_tailnet("other").await.unwrap();
    world.join(1, NewAuthKey::default()).await;
    let other = NewAuthKey { tailnet: "other".to_owned(), reusable: true, ..NewAuthKey::default() };
    let key = world.auth_key(other).await;
    assert_refused(&world.register(1, with_key(register(1), &key)).await, "log out first");
    world.register(1, logout(1)).await;
    assert!(world.register(1, with_key(register(1), &key)).await.node_key_expired, "its key stays where it was");
    let moved = RegisterRequest { old_node_key: Some(node_key(1)), ..with_key(register(11), &key) };
    assert_in(&world.register(1, moved).await);
    assert_eq!((world.node(11).tailnet.as_str(), world.node(1).tailnet.as_str()), ("other", "default"));
}

#[tokio::test(start_paused = true)]
async fn a_login_keeps_little_of_what_a_stranger_says() {
    let world = World::new().await;
    let mut request = register(1);
    let hostinfo = request.hostinfo.as_mut().unwrap();
    hostinfo.hostname = "h".repeat(900_000);
    hostinfo.routable_ips = vec!["10.0.0.0/8".parse().unwrap(); 50_000];
    request.tailnet = "t".repeat(900_000);
    let answer = world.register(1, request).await;
    let id = world.login_id(&answer);
    let claim = world.control.logins().claim(world.control.clock(), &id).unwrap();
    let kept = warren_wire::control::to_json(&claim.request).unwrap();
    assert!(kept.len() < 32_768, "{}", kept.len());
    assert_eq!(world.control.logins().claim(world.control.clock(), &id).map(drop), None, "one decides at a time");
    drop(claim);
    assert!(world.control.logins().claim(world.control.clock(), &id).is_some());
}

#[tokio::test(start_paused = true)]
async fn wishes_for_tags_are_looked_at_before_anybody_is_asked() {
    let world = World::new().await;
    assert_refused(&world.register(1, tags(register(1), &["tag:-"])).await, "no tag");
    let many: Vec<String> = (0..65).map(|number| format!("tag:t{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_refused(&world.register(1, tags(register(1), &many)).await, "too many");
    let answer = world.register(1, tags(register(1), &["tag:web"])).await;
    let id = world.login_id(&answer);
    assert_eq!(world.admin().login(&id).unwrap().requested_tags, ["tag:web"]);
    let refused = world.admin().approve_login(&id, "default", "owner@default").await;
    assert!(matches!(refused, Err(AdminError::Refused { .. })), "the policy gives that tag to nobody");
    world.admin().set_policy("default", r#"{"tagOwners": {"tag:web": ["owner@default"]}, "acls": []}"#).await.unwrap();
    world.admin().approve_login(&id, "default", "owner@default").await.unwrap();
    assert_eq!(world.node(1).tags, ["tag:web"]);
}

#[tokio::test(start_paused = true)]
async fn a_login_cannot_take_over_what_another_machine_registered_meanwhile() {
    let world = World::new().await;
    let url = world.register(1, register(1)).await;
    let id = world.login_id(&url);
    let key = world.auth_key(NewAuthKey::default()).await;
    assert_in(&world.register(2, with_key(register(1), &key)).await);
    let before = world.record(1);
    let approved = world.admin().approve_login(&id, "default", "owner@default").await;
    let Err(AdminError::Refused { reason }) = approved else { panic!("{approved:?}") };
    assert!(reason.contains("another machine"), "{reason}");
    assert_eq!(world.record(1), before);
    assert_refused(&world.register(1, followup(1, &url.auth_url)).await, "another machine");
    // Nor can it in another tailnet, where nobody has that key.
    world.admin().create_tailnet("other").await.unwrap();
    assert!(world.admin().approve_login(&id, "other", "owner@other").await.is_err());
    assert_eq!((world.record(1), world.admin().nodes(None).unwrap().len()), (before, 1));
}
