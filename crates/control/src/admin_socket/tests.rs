//! Who may call, in which form, and what each verb answers.

use http_body_util::{BodyExt, Full};
use serde_json::Value;
use warren_policy::PolicyAnswer;

use super::*;
use crate::admin::{
    AttributesView, AuthKeyView, LoginView, NodeView, PolicyVersionView, PolicyView, RelayView, TailnetView, UserView,
};
use crate::server::limits::MAX_BODY_BYTES;
use crate::testing::{World, register, with_key};
use crate::{DnsSettings, KeyLifetime};

const UID: u32 = 1234;

fn shared(world: &World) -> Shared {
    Shared {
        control: world.control.clone(),
        facts: Facts { url: "http://control.test:8080".to_owned(), key: world.control.noise_key() },
        bodies: BodyBudget::new(2048),
        own_uid: UID,
    }
}

fn request(json: &str) -> Request<Full<Bytes>> {
    Request::post(PATH).header(header::HOST, HOST).body(Full::new(Bytes::from(json.to_owned()))).unwrap()
}

async fn ask(world: &World, uid: u32, request: Request<Full<Bytes>>) -> (StatusCode, Value) {
    let answer = answer(&shared(world), uid, request).await;
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

/// Calls as the server's own user and expects success.
async fn done<T: serde::de::DeserializeOwned>(world: &World, json: Value) -> T {
    let (status, value) = ask(world, UID, request(&json.to_string())).await;
    assert_eq!(status, StatusCode::OK, "{json}: {value}");
    serde_json::from_value(value).unwrap()
}

async fn refused_as(world: &World, json: Value) -> String {
    let (status, value) = ask(world, 0, request(&json.to_string())).await;
    assert!(status.is_client_error(), "{json}: {status} {value}");
    assert!(!value["message"].as_str().unwrap().is_empty());
    value["code"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn root_and_the_servers_own_user_may_call_and_nobody_else() {
    let world = World::new().await;
    let call = || request(r#"{"verb": "server-show"}"#);
    for uid in [0, UID] {
        assert_eq!(ask(&world, uid, call()).await.0, StatusCode::OK);
    }
    for uid in [1, 1000, UID + 1, u32::MAX] {
        let (status, value) = ask(&world, uid, call()).await;
        assert_eq!((status, value["code"].as_str()), (StatusCode::FORBIDDEN, Some("permission")));
    }
}

#[tokio::test(start_paused = true)]
async fn a_browser_may_not_call() {
    let world = World::new().await;
    for (name, value) in [
        ("origin", "http://evil.test"),
        ("origin", "null"),
        ("referer", "http://evil.test/"),
        ("cookie", "a=b"),
        ("sec-fetch-site", "same-origin"),
        ("host", "evil.test"),
    ] {
        let mut call = request(r#"{"verb": "server-show"}"#);
        call.headers_mut().append(http::HeaderName::from_static(name), value.parse().unwrap());
        let (status, body) = ask(&world, 0, call).await;
        assert_eq!((status, body["code"].as_str()), (StatusCode::FORBIDDEN, Some("browser")), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_in_another_form_are_refused() {
    let world = World::new().await;
    let with = |method: &str, path: &str, body: Vec<u8>| {
        Request::builder().method(method).uri(path).header(header::HOST, HOST).body(Full::new(body.into())).unwrap()
    };
    let good = br#"{"verb": "server-show"}"#.to_vec();
    for (call, status) in [
        (with("GET", PATH, good.clone()), StatusCode::METHOD_NOT_ALLOWED),
        (with("POST", "/v1/other", good.clone()), StatusCode::NOT_FOUND),
        (with("POST", PATH, Vec::new()), StatusCode::BAD_REQUEST),
        (with("POST", PATH, b"[]".to_vec()), StatusCode::BAD_REQUEST),
        (with("POST", PATH, br#"{"verb": "unknown"}"#.to_vec()), StatusCode::BAD_REQUEST),
        (with("POST", PATH, br#"{"verb": "node-list", "more": 1}"#.to_vec()), StatusCode::BAD_REQUEST),
        (with("POST", PATH, vec![b' '; MAX_BODY_BYTES + 1]), StatusCode::BAD_REQUEST),
    ] {
        let (found, value) = ask(&world, 0, call).await;
        assert_eq!(found, status, "{value}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_verb_answers_what_the_command_line_reads() {
    let world = World::new().await;
    let tailnet: TailnetView = done(&world, json!({"verb": "tailnet-create", "name": "second"})).await;
    assert_eq!(tailnet.domain, "second.warren.internal");
    assert_eq!(done::<Vec<TailnetView>>(&world, json!({"verb": "tailnet-list"})).await.len(), 2);
    let tailnet: TailnetView =
        done(&world, json!({"verb": "tailnet-approval", "tailnet": "second", "needed": true})).await;
    assert!(tailnet.machine_approval);
    let days = json!({"verb": "tailnet-key-lifetime", "tailnet": "second", "seconds": 7_776_000});
    let never = json!({"verb": "tailnet-key-lifetime", "tailnet": "second"});
    for (call, lifetime) in [(days, KeyLifetime::Seconds(7_776_000)), (never, KeyLifetime::Never)] {
        assert_eq!(done::<TailnetView>(&world, call).await.key_lifetime, lifetime);
    }

    let set = |change: Value| json!({"verb": "dns-set", "tailnet": "second", "change": change});
    for change in [
        json!({"nameservers": ["192.0.2.1", "https://dns.example/q"]}),
        json!({"split": {"domain": "Corp.Example.", "nameservers": ["192.0.2.2"]}}),
        json!({"split": {"domain": "gone.example", "nameservers": ["192.0.2.3"]}}),
        json!({"split": {"domain": "gone.example", "nameservers": []}}),
        json!({"search": ["corp.example"]}),
        json!({"override-local": true}),
    ] {
        let _: DnsSettings = done(&world, set(change)).await;
    }
    let dns: DnsSettings = done(&world, json!({"verb": "dns-show", "tailnet": "second"})).await;
    let addresses: Vec<&str> = dns.nameservers.iter().map(|server| server.address.as_str()).collect();
    assert_eq!(addresses, ["192.0.2.1", "https://dns.example/q"]);
    assert_eq!(dns.split.keys().collect::<Vec<_>>(), ["corp.example"]);
    assert!(dns.search_paths == ["corp.example"] && dns.override_local && dns.magic_dns);
    assert_eq!(refused_as(&world, set(json!({"nameservers": ["dns.example"]}))).await, "invalid");

    let user: UserView = done(&world, json!({"verb": "user-create", "login": "ann@example.com"})).await;
    assert_eq!((user.tailnet.as_str(), user.display_name.as_str()), ("default", "ann@example.com"));
    assert_eq!(done::<Vec<UserView>>(&world, json!({"verb": "user-list"})).await.len(), 3);
    assert_eq!(done::<Vec<UserView>>(&world, json!({"verb": "user-list", "tailnet": "second"})).await.len(), 1);

    let key: Value = done(&world, json!({"verb": "auth-key-create", "key": {"user": "ann@example.com"}})).await;
    let text = key["key"].as_str().unwrap().to_owned();
    let line = format!(
        "warren up --login-server http://control.test:8080 --server-key {} --auth-key {text}",
        world.control.noise_key()
    );
    assert_eq!(key["command"], line.as_str(), "the whole line to paste, with the pin");
    let answer = world.register(1, with_key(register(1), &text)).await;
    assert!(answer.machine_authorized, "{answer:?}");
    let keys: Vec<AuthKeyView> = done(&world, json!({"verb": "auth-key-list"})).await;
    assert_eq!((keys[0].used, keys[0].valid, keys[0].user.as_deref()), (1, false, Some("ann@example.com")));
    let shown = serde_json::to_string(&keys).unwrap();
    assert!(!shown.contains(text.rsplit('-').next().unwrap()));
    let revoked: AuthKeyView = done(&world, json!({"verb": "auth-key-revoke", "id": keys[0].id})).await;
    assert!(revoked.revoked);

    let nodes: Vec<NodeView> = done(&world, json!({"verb": "node-list"})).await;
    assert_eq!(nodes.len(), 1);
    let one = |verb: &str| json!({"verb": verb, "node": "host1"});
    let node: NodeView = done(&world, one("node-show")).await;
    assert_eq!(node, nodes[0]);
    for name in ["1", "n1", "HOST1", "host1.default.warren.internal", "host1.default.warren.internal.", "100.64.0.1"] {
        assert_eq!(done::<NodeView>(&world, json!({"verb": "node-show", "node": name})).await, node, "{name}");
    }
    assert!(done::<NodeView>(&world, one("node-approve")).await.approved);
    let renamed: NodeView = done(&world, json!({"verb": "node-rename", "node": "host1", "name": "desk"})).await;
    assert_eq!(renamed.fqdn, "desk.default.warren.internal");
    let back: NodeView = done(&world, json!({"verb": "node-rename", "node": "desk"})).await;
    assert_eq!(back.name, "host1");
    let expired: NodeView = done(&world, json!({"verb": "node-expire", "node": "host1", "expiry": "now"})).await;
    assert!(expired.expired);
    let never: NodeView = done(&world, json!({"verb": "node-expire", "node": "host1", "expiry": "never"})).await;
    assert!(!never.expired && never.key_expiry.is_none());
    let at = json!({"verb": "node-expire", "node": "host1", "expiry": {"at": "2030-01-01T00:00:00Z"}});
    assert!(!done::<NodeView>(&world, at).await.expired);
    let tagged: NodeView = done(&world, json!({"verb": "node-tag", "node": "host1", "tags": ["tag:web"]})).await;
    assert_eq!((tagged.tags, tagged.user), (vec!["tag:web".to_owned()], None));

    let set = json!({"verb": "node-attr-set", "node": "host1", "name": "custom:tier", "value": 3});
    done::<NodeView>(&world, set).await;
    let attributes: AttributesView = done(&world, one("node-attr-list")).await;
    assert_eq!(attributes.attributes["custom:tier"], json!(3.0));
    done::<NodeView>(&world, json!({"verb": "node-attr-unset", "node": "host1", "name": "custom:tier"})).await;
    let routes = |verb: &str| json!({"verb": verb, "node": "host1", "routes": ["10.0.0.0/8"]});
    assert_eq!(done::<NodeView>(&world, routes("node-approve-routes")).await.approved_routes.len(), 1);
    assert_eq!(done::<NodeView>(&world, routes("node-revoke-routes")).await.approved_routes, []);

    let role = json!({"verb": "user-set-role", "login": "ann@example.com", "role": "admin"});
    assert_eq!(done::<UserView>(&world, role).await.role, "admin");

    let url = world.register(2, register(2)).await.auth_url;
    let logins: Vec<LoginView> = done(&world, json!({"verb": "login-list"})).await;
    assert_eq!(logins[0].url, url);
    let approve = json!({"verb": "login-approve", "id": logins[0].id, "user": "ann@example.com"});
    assert_eq!(done::<NodeView>(&world, approve).await.name, "host2");
    world.register(3, register(3)).await;
    let logins: Vec<LoginView> = done(&world, json!({"verb": "login-list"})).await;
    let third = logins.iter().find(|login| login.hostname == "host3").unwrap();
    done::<LoginView>(&world, json!({"verb": "login-reject", "id": third.id})).await;
    done::<NodeView>(&world, json!({"verb": "node-remove", "node": "host2"})).await;

    // What the default policy lets through, and what another one would change; neither changes anything.
    let asked = |ask: Value| json!({"verb": "policy-ask", "question": ask});
    let answer: PolicyAnswer = done(&world, asked(json!({"ask": "diff", "new": "{\"acls\": []}"}))).await;
    assert!(answer.good && !answer.lines.is_empty(), "{answer:?}");
    let answer: PolicyAnswer = done(&world, asked(json!({"ask": "test"}))).await;
    assert_eq!((answer.good, answer.details["tests"].as_u64()), (true, Some(0)));

    let policy: PolicyView = done(&world, json!({"verb": "policy-get"})).await;
    assert_eq!((policy.version, policy.text.as_str()), (1, warren_policy::DEFAULT_POLICY));
    let set: PolicyView = done(&world, json!({"verb": "policy-set", "text": "{\"acls\": []}"})).await;
    assert_eq!((set.version, set.text.as_str()), (2, "{\"acls\": []}"));
    let history: Vec<PolicyVersionView> = done(&world, json!({"verb": "policy-history", "limit": 9})).await;
    assert_eq!((history.len(), history[0].in_force), (2, true));
    let audit: Vec<Value> = done(&world, json!({"verb": "audit", "limit": 2})).await;
    assert_eq!((audit.len(), audit[0]["what"].as_str()), (2, Some("policy.set")));
    assert_eq!(audit[0]["who"], "cli:uid=1234");
    let terms = json!({"reason": "r", "if_match": set.etag, "confirm_within_seconds": 60});
    let back: PolicyView = done(&world, json!({"verb": "policy-rollback", "version": 1, "terms": terms})).await;
    assert_eq!((back.version, back.unconfirmed.is_some()), (3, true));
    assert_eq!(done::<PolicyView>(&world, json!({"verb": "policy-confirm"})).await.unconfirmed, None);
    let verdict: Value = done(&world, json!({"verb": "audit-verify"})).await;
    assert_eq!(verdict["result"], "intact");
    let removed: Value = done(&world, json!({"verb": "user-remove", "login": "ann@example.com"})).await;
    assert_eq!(removed["removed"], "ann@example.com");
    let backup: Value = done(&world, json!({"verb": "backup", "to": world.folder.join("backup")})).await;
    assert!(std::path::Path::new(backup["file"].as_str().unwrap()).exists());
}

#[tokio::test(start_paused = true)]
async fn refusals_have_stable_words() {
    let world = World::new().await;
    let ann = json!({"verb": "user-create", "login": "ann@example.com"});
    done::<UserView>(&world, ann.clone()).await;
    done::<Value>(&world, json!({"verb": "auth-key-create", "key": {"user": "ann@example.com"}})).await;
    for (call, code) in [
        (ann, "taken"),
        (json!({"verb": "tailnet-create", "name": "default"}), "taken"),
        (json!({"verb": "tailnet-create", "name": "Not a label"}), "invalid"),
        (json!({"verb": "user-create", "login": "no-domain"}), "invalid"),
        (json!({"verb": "user-create", "login": "Ann@example.com"}), "invalid"),
        (json!({"verb": "user-create", "login": "ann bob@example.com"}), "invalid"),
        (json!({"verb": "user-create", "login": "tag:x@example.com"}), "invalid"),
        (json!({"verb": "user-create", "login": "bob@example.com", "display_name": "a\nb"}), "invalid"),
        (json!({"verb": "user-list", "tailnet": "nowhere"}), "not-found"),
        (json!({"verb": "user-remove", "login": "bob@example.com"}), "not-found"),
        (json!({"verb": "user-remove", "login": "ann@example.com"}), "busy"),
        (json!({"verb": "user-set-role", "login": "bob@example.com", "role": "admin"}), "not-found"),
        (json!({"verb": "user-set-role", "login": "ann@example.com", "role": "king"}), "invalid"),
        (json!({"verb": "user-set-role", "login": "owner@default", "role": "member"}), "last-owner"),
        (json!({"verb": "auth-key-create", "key": {"user": "bob@example.com"}}), "not-found"),
        (json!({"verb": "auth-key-create", "key": {"tags": ["web"]}}), "invalid"),
        (json!({"verb": "auth-key-create", "key": {"tags": ["tag:web"], "user": "ann@example.com"}}), "contradiction"),
        (json!({"verb": "auth-key-create", "key": {"expires_in_seconds": u64::MAX}}), "invalid"),
        (json!({"verb": "auth-key-revoke", "id": "000000000000"}), "not-found"),
        (json!({"verb": "node-show", "node": ""}), "not-found"),
        (json!({"verb": "node-remove", "node": "nobody"}), "not-found"),
        (json!({"verb": "login-approve", "id": "x", "user": "ann@example.com"}), "not-found"),
        (json!({"verb": "login-reject", "id": "x"}), "not-found"),
        (json!({"verb": "policy-set", "text": "{\"acls\": [],,}"}), "policy"),
        (json!({"verb": "policy-set", "text": "{\"unheard\": []}"}), "policy"),
        (json!({"verb": "policy-set", "text": "{}", "terms": {"if_match": "0"}}), "policy-changed"),
        (json!({"verb": "policy-get", "version": 7}), "not-found"),
        (json!({"verb": "policy-rollback", "version": 7}), "not-found"),
        (json!({"verb": "policy-confirm"}), "nothing-to-confirm"),
        (json!({"verb": "policy-ask", "policy": "{", "question": {"ask": "test"}}), "policy"),
        (json!({"verb": "policy-ask", "question": {"ask": "who-can-reach", "to": "nobody"}}), "not-found"),
        (json!({"verb": "policy-ask", "question": {"ask": "who-can-reach", "to": "*"}}), "invalid"),
    ] {
        assert_eq!(refused_as(&world, call.clone()).await, code, "{call}");
    }
    // Several networks and none called "default": which one is meant must be said.
    let admin = world.admin();
    assert!(admin.create_tailnet("second").await.is_ok());
    done::<PolicyView>(&world, json!({"verb": "policy-get"})).await;
}

#[tokio::test(start_paused = true)]
async fn a_name_that_several_nodes_have_must_be_said_in_full() {
    let world = World::new().await;
    world.admin().create_tailnet("second").await.unwrap();
    for (number, tailnet) in [(1, "default"), (2, "second")] {
        let key = world.auth_key(crate::admin::NewAuthKey { tailnet: tailnet.to_owned(), ..Default::default() }).await;
        let mut request = with_key(register(number), &key);
        request.hostinfo.as_mut().unwrap().hostname = "same".to_owned();
        assert!(world.register(number, request).await.machine_authorized);
    }
    assert_eq!(refused_as(&world, json!({"verb": "node-remove", "node": "same"})).await, "ambiguous");
    let removed: NodeView = done(&world, json!({"verb": "node-remove", "node": "same", "tailnet": "second"})).await;
    assert_eq!(removed.tailnet, "second");
    let left: NodeView = done(&world, json!({"verb": "node-show", "node": "same"})).await;
    assert_eq!(left.tailnet, "default");
}

#[tokio::test(start_paused = true)]
async fn relays_of_other_machines_reach_every_map_and_leave_it_again() {
    let world = World::new().await;
    let regions = || {
        let map = world.control.tailnets()[0].snapshot().derp.clone();
        map.regions.clone().unwrap_or_default().keys().map(|region| region.0).collect::<Vec<_>>()
    };
    let own = regions();
    let add =
        json!({"verb": "relay-add", "relay": {"name": "fra", "host": "relay.example", "port": 443, "stun_port": 3478}});
    let added: RelayView = done(&world, add.clone()).await;
    assert_eq!((added.region, added.name.as_str(), added.pinned), (901, "fra", false));
    assert_eq!(regions(), [&own[..], &[901]].concat());
    assert_eq!(refused_as(&world, add).await, "taken");
    assert_eq!(done::<Vec<RelayView>>(&world, json!({"verb": "relay-list"})).await, [added]);
    assert_eq!(refused_as(&world, json!({"verb": "relay-remove", "name": "ams"})).await, "not-found");
    done::<Value>(&world, json!({"verb": "relay-remove", "name": "fra"})).await;
    assert_eq!(regions(), own);
    let log = done::<Value>(&world, json!({"verb": "audit", "tailnet": null, "before": null, "limit": 2})).await;
    let what: Vec<_> = log.as_array().unwrap().iter().map(|entry| entry["what"].as_str().unwrap()).collect();
    assert_eq!(what, ["relay.remove", "relay.add"]);
}
