//! How a node gets onto a tailnet and off it.

use serde_json::json;
use tokio::sync::oneshot;
use warren_wire::control::{Hostinfo, MapResponse};

use super::super::*;
use super::fixture::{Fixture, map, own, refuse, visit};
use crate::control_client::fake::{Call, Mood, Reply};
use crate::local_api::types::StartOptions;
use crate::local_api::{Authority, Peers, Refusal};

fn is_down(update: &Update) -> bool {
    matches!(update.local, Some(LocalUpdate::Down))
}

#[tokio::test(start_paused = true)]
async fn an_auth_key_takes_a_new_machine_to_running() {
    let mut node = Fixture::new("auth-key");
    assert_eq!(node.shared.bus.borrow().state, State::NoState);
    node.reach(State::NeedsLogin).await;
    node.start("wkey-good").await.unwrap();
    let (request, reply) = node.register().await;
    assert_eq!(node.shared.bus.borrow().state, State::NoState);
    assert_eq!(request.auth.unwrap().auth_key, "wkey-good");
    assert_eq!(request.hostinfo.unwrap().hostname, "alpha");
    reply.send(Reply::ok()).unwrap();
    let (poll, stream, report) = node.poll().await;
    assert_eq!((poll.node_key, report.node_key), (request.node_key, request.node_key));
    assert_eq!(node.reach(State::Starting).await.logins, 1);
    // Nothing is carried before the map says who we are.
    assert!(node.updates().is_empty());
    let mut first = map(&[2, 3]);
    first.node.as_mut().unwrap().key = request.node_key;
    node.send(&stream, first).await;
    node.engine_events.send(engine::Event::Live { relays: 1, peers: 0 }).await.unwrap();
    node.reach(State::Running).await;
    let updates = node.updates();
    let [update] = &updates[..] else { panic!("{updates:?}") };
    let Some(LocalUpdate::Up(local)) = &update.local else { panic!("{update:?}") };
    assert_eq!(local.secret.public(), request.node_key);
    assert_eq!(local.node.addresses, own().addresses);
    assert_eq!(local.settings, Settings { accept_dns: true, ..Settings::default() });
    assert!(update.relays.is_some() && update.removed.is_empty());
    assert_eq!(update.filter.as_ref().unwrap().len(), 1);
    assert_eq!(update.peers.iter().map(|peer| peer.id().0).collect::<Vec<_>>(), [2, 3]);
    // The key is nowhere that others could read it.
    assert!(!node.state_file().contains("wkey-good"));
    let shown = format!("{:?}", node.status().await);
    assert!(!shown.contains("wkey-good"));
}

#[tokio::test(start_paused = true)]
async fn a_person_logs_in_on_a_page() {
    let mut node = Fixture::new("page");
    node.start("").await.unwrap();
    let (request, reply) = node.register().await;
    assert_eq!(request.auth, None);
    reply.send(visit("https://s/register/1")).unwrap();
    let bus = node.bus(|bus| !bus.browse_to_url.is_empty()).await;
    assert_eq!((bus.state, bus.browse_to_url.as_str()), (State::NeedsLogin, "https://s/register/1"));
    assert_eq!(node.status().await.auth_url, "https://s/register/1");
    let stream = node.join(map(&[])).await;
    let bus = node.shared.bus.borrow().clone();
    assert_eq!((bus.browse_to_url.as_str(), bus.logins), ("", 1));
    drop(stream);
}

#[tokio::test(start_paused = true)]
async fn a_restart_has_the_same_identity_and_asks_nobody() {
    let (mut node, _stream) = Fixture::running("restart", map(&[2])).await;
    let key = node.status().await.self_.public_key.clone();
    node.restart().await;
    let (request, reply) = node.register().await;
    assert_eq!((request.node_key.to_string(), request.auth, request.followup.as_str()), (key, None, ""));
    reply.send(Reply::ok()).unwrap();
    node.follow(map(&[2])).await;
    let machines = node.machines();
    assert!(machines.len() == 2 && machines[0] == machines[1], "{machines:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refused_auth_key_is_told_once_and_a_better_one_helps() {
    let mut node = Fixture::new("refused");
    node.start("wkey-bad").await.unwrap();
    let (_, reply) = node.register().await;
    reply.send(refuse("auth key has expired")).unwrap();
    let bus = node.bus(|bus| bus.trouble.is_some()).await;
    let trouble = bus.trouble.unwrap();
    assert_eq!((bus.state, trouble.kind), (State::NeedsLogin, TroubleKind::Refused));
    assert!(trouble.text.contains("auth key has expired") && !trouble.text.contains("wkey-bad"), "{}", trouble.text);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(node.calls.try_recv().is_err());
    node.start("wkey-good").await.unwrap();
    node.join(map(&[])).await;
    assert_eq!(node.shared.bus.borrow().trouble, None);
}

#[tokio::test(start_paused = true)]
async fn an_auth_key_on_a_node_that_is_logged_in_changes_nothing() {
    let (mut node, stream) = Fixture::running("again", map(&[2])).await;
    node.updates();
    node.start("wkey-whatever").await.unwrap();
    assert_eq!(node.shared.bus.borrow().state, State::Running);
    stream.send(&MapResponse { keep_alive: true, ..MapResponse::default() }).await;
    node.status().await;
    assert!(node.calls.try_recv().is_err() && node.updates().is_empty());
    // Neither does a wrong one take a stopped node's registration away.
    node.edit(json!({"WantRunning": false, "WantRunningSet": true})).await.unwrap();
    stream.closed().await;
    node.restart().await;
    node.start("wkey-whatever").await.unwrap();
    let (request, reply) = node.register().await;
    assert!(request.auth.is_some());
    reply.send(refuse("no such auth key")).unwrap();
    assert_eq!(node.bus(|bus| bus.trouble.is_some()).await.trouble.unwrap().kind, TroubleKind::Refused);
    let (request, reply) = node.register().await;
    assert_eq!(request.auth, None);
    reply.send(Reply::ok()).unwrap();
    node.follow(map(&[2])).await;
}

#[tokio::test(start_paused = true)]
async fn a_login_by_choice_leaves_the_tunnels_up_until_it_is_done() {
    let (mut node, stream) = Fixture::running("by-choice", map(&[2])).await;
    let old = node.status().await.self_.public_key.clone();
    node.updates();
    node.ask(Request::LoginInteractive).await.unwrap();
    stream.closed().await;
    let (request, reply) = node.register().await;
    assert_ne!(request.node_key.to_string(), old);
    assert_eq!(request.old_node_key.unwrap().to_string(), old);
    reply.send(visit("https://s/register/2")).unwrap();
    let bus = node.bus(|bus| !bus.browse_to_url.is_empty()).await;
    assert_eq!((bus.state, bus.logging_in, bus.logins), (State::Running, true, 1));
    assert!(node.updates().is_empty());
    node.join(map(&[2])).await;
    let bus = node.shared.bus.borrow().clone();
    assert_eq!((bus.logging_in, bus.logins), (false, 2));
    let updates = node.updates();
    let [update] = &updates[..] else { panic!("{updates:?}") };
    let Some(LocalUpdate::Up(local)) = &update.local else { panic!("{update:?}") };
    assert_eq!(local.secret.public(), request.node_key);
    assert!(update.peers.is_empty() && update.removed.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_the_server_no_longer_knows_stops_and_says_where_to_log_in() {
    let (mut node, stream) = Fixture::running("removed", map(&[2])).await;
    node.updates();
    node.server.set_map_status(404);
    drop(stream);
    // The poll ends, is refused, and the node registers what it has.
    let (request, reply) = node.register().await;
    node.server.set_map_status(200);
    assert_eq!(request.node_key.to_string(), node.status().await.self_.public_key);
    assert!(node.updates().is_empty());
    reply.send(visit("https://s/register/3")).unwrap();
    let bus = node.bus(|bus| !bus.browse_to_url.is_empty()).await;
    assert_eq!(bus.state, State::NeedsLogin);
    assert!(is_down(node.updates().last().unwrap()));
    node.join(map(&[2])).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_while_a_person_logs_in_goes_on_with_the_same_page() {
    let mut node = Fixture::new("page-again");
    node.start("").await.unwrap();
    let (first, reply) = node.register().await;
    reply.send(visit("https://s/register/1")).unwrap();
    let (second, reply) = node.register().await;
    assert_eq!((second.followup.as_str(), second.node_key), ("https://s/register/1", first.node_key));
    reply.send(Reply::Status(502, "bad gateway", None)).unwrap();
    let (third, reply) = node.register().await;
    assert_eq!((third.followup.as_str(), third.node_key), ("https://s/register/1", first.node_key));
    assert_eq!(node.shared.bus.borrow().browse_to_url, "https://s/register/1");
    // The same page at once is no trouble, only a reason to ask less often.
    reply.send(visit("https://s/register/1")).unwrap();
    let (_, reply) = node.register().await;
    assert_eq!(node.shared.bus.borrow().state, State::NeedsLogin);
    reply.send(Reply::ok()).unwrap();
    node.follow(map(&[])).await;
}

#[tokio::test(start_paused = true)]
async fn a_logout_is_complete() {
    let (mut node, stream) = Fixture::running("logout", map(&[2])).await;
    let key = node.status().await.self_.public_key.clone();
    node.updates();
    let shared = node.shared.clone();
    let logout = tokio::spawn(async move {
        let (reply, answer) = oneshot::channel();
        shared.requests.send(Request::Logout(reply)).await.unwrap();
        answer.await.unwrap()
    });
    stream.closed().await;
    let (request, reply) = node.register().await;
    assert_eq!(request.node_key.to_string(), key);
    assert_eq!(request.expiry.unwrap().unix_seconds(), 123);
    reply.send(Reply::ok()).unwrap();
    logout.await.unwrap().unwrap();
    node.reach(State::NeedsLogin).await;
    let updates = node.updates();
    assert!(updates.len() == 1 && is_down(&updates[0]), "{updates:?}");
    assert!(!node.state_file().contains("node_key"), "{}", node.state_file());
    assert!(node.status().await.peer.is_empty());
    // It stays out after a restart, and a new login is a new node.
    node.restart().await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(node.calls.try_recv().is_err());
    node.start("wkey-good").await.unwrap();
    let (request, _) = node.register().await;
    assert_ne!(request.node_key.to_string(), key);
    assert_eq!(request.old_node_key, None);
}

#[tokio::test(start_paused = true)]
async fn a_logout_without_the_server_is_one_here() {
    let (node, _stream) = Fixture::running("logout-alone", map(&[2])).await;
    node.server.set_mood(Mood::Down);
    let Err(Refusal::Failed(text)) = node.ask(Request::Logout).await else { panic!("it went well") };
    assert!(text.contains("logged out here"), "{text}");
    assert_eq!(node.reach(State::NeedsLogin).await.trouble, None);
    assert!(!node.state_file().contains("node_key"));
}

#[tokio::test(start_paused = true)]
async fn a_logout_in_the_middle_of_a_login_wins() {
    let mut node = Fixture::new("logout-race");
    node.start("wkey-good").await.unwrap();
    let (_, reply) = node.register().await;
    // What the session has to say about its keys and the order to log out are under way together.
    reply.send(Reply::ok()).unwrap();
    node.ask(Request::ResetAuth).await.unwrap();
    node.reach(State::NeedsLogin).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!node.state_file().contains("node_key"), "{}", node.state_file());
    assert!(!node.status().await.have_node_key);
}

#[tokio::test(start_paused = true)]
async fn down_is_down_and_up_brings_everything_back() {
    let (mut node, stream) = Fixture::running("down-up", map(&[2, 3])).await;
    node.updates();
    node.edit(json!({"WantRunning": false, "WantRunningSet": true})).await.unwrap();
    stream.closed().await;
    node.reach(State::Stopped).await;
    let updates = node.updates();
    assert!(updates.len() == 1 && is_down(&updates[0]), "{updates:?}");
    assert!(node.status().await.have_node_key);
    // Stopped stays stopped.
    node.restart().await;
    node.reach(State::Stopped).await;
    assert!(node.calls.try_recv().is_err());
    node.start("").await.unwrap();
    node.join(map(&[3, 4])).await;
    let updates = node.updates();
    let [update] = &updates[..] else { panic!("{updates:?}") };
    assert!(matches!(update.local, Some(LocalUpdate::Up(_))) && update.relays.is_some() && update.filter.is_some());
    assert_eq!(update.peers.iter().map(|peer| peer.id().0).collect::<Vec<_>>(), [3, 4]);
}

/// Proxies carry connections before the first map and after the last one: what the user chose holds for those, too.
#[tokio::test(start_paused = true)]
async fn the_wish_for_an_exit_node_is_told_without_a_map_and_ends_with_down() {
    let (mut node, stream) = Fixture::running("exit-wish", map(&[2])).await;
    assert_eq!(node.exit_wishes(), [false]);
    node.edit(json!({"ExitNodeID": "nABC", "ExitNodeIDSet": true})).await.unwrap();
    assert_eq!(node.exit_wishes(), [true]);
    drop(stream);
    node.server.set_mood(Mood::Down);
    node.restart().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(node.exit_wishes(), [true], "at once, whether the server is there or not");
    node.edit(json!({"WantRunning": false, "WantRunningSet": true})).await.unwrap();
    assert_eq!(node.exit_wishes(), [false]);
}

#[tokio::test(start_paused = true)]
async fn down_and_up_without_a_restart_keep_what_is_known() {
    let (mut node, _stream) = Fixture::running("down-up-quick", map(&[2, 3])).await;
    node.edit(json!({"WantRunning": false, "WantRunningSet": true})).await.unwrap();
    node.updates();
    node.start("").await.unwrap();
    // The last map is good enough to begin with.
    assert_eq!(node.reach(State::Starting).await.trouble, None);
    let updates = node.updates();
    assert_eq!(updates.len(), 1);
    assert_eq!(updates[0].peers.len(), 2);
    node.join(map(&[2, 3])).await;
    let updates = node.updates();
    assert!(updates.iter().all(|update| update.peers.is_empty() && update.removed.is_empty()), "{updates:?}");
}

#[tokio::test(start_paused = true)]
async fn another_server_is_another_life() {
    let (mut node, _stream) = Fixture::running("other-server", map(&[2])).await;
    let key = node.status().await.self_.public_key.clone();
    node.updates();
    let change = json!({"ControlURL": "http://localhost:9090", "ControlURLSet": true});
    let options = StartOptions { auth_key: "wkey-other".into(), update_prefs: Some(change) };
    node.ask(|reply| Request::Start(Authority::Root, options, reply)).await.unwrap();
    let (request, reply) = node.register().await;
    assert_ne!(request.node_key.to_string(), key);
    assert_eq!((request.old_node_key, request.auth.unwrap().auth_key), (None, "wkey-other".to_owned()));
    let updates = node.updates();
    assert!(updates.len() == 1 && is_down(&updates[0]), "{updates:?}");
    assert!(node.status().await.peer.is_empty());
    reply.send(Reply::ok()).unwrap();
    node.follow(map(&[5])).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_with_another_key_than_the_pinned_one_gets_nothing() {
    let mut node = Fixture::new("pin");
    let wrong = format!("mkey:{}", "ab".repeat(32));
    node.edit(json!({"ServerKey": wrong, "ServerKeySet": true})).await.unwrap();
    node.start("wkey-good").await.unwrap();
    let trouble = node.bus(|bus| bus.trouble.is_some()).await.trouble.unwrap();
    assert_eq!(trouble.kind, TroubleKind::ServerKey);
    assert!(node.calls.try_recv().is_err() && node.machines().is_empty());
    // The right pin makes it try again at once.
    node.edit(json!({"ServerKey": node.server.key().to_string(), "ServerKeySet": true})).await.unwrap();
    node.join(map(&[])).await;
}

#[tokio::test(start_paused = true)]
async fn only_root_says_whom_to_trust() {
    let (node, _stream) = Fixture::running("authority", map(&[2])).await;
    let key = node.server.key().to_string();
    for change in [
        json!({"ControlURL": "http://localhost:1", "ControlURLSet": true}),
        json!({"ServerKey": key, "ServerKeySet": true}),
        json!({"OperatorUser": "root", "OperatorUserSet": true}),
    ] {
        let edit = change.clone();
        let answer = node.ask(|reply| Request::EditPrefs(Authority::Operator, edit, reply)).await;
        assert_eq!(answer, Err(Refusal::Forbidden), "{change}");
        let options = StartOptions { auth_key: String::new(), update_prefs: Some(change) };
        let answer = node.ask(|reply| Request::Start(Authority::Operator, options, reply)).await;
        assert_eq!(answer, Err(Refusal::Forbidden));
    }
    // What changes nothing is no question of trust, and the rest is the operator's.
    let same =
        json!({"ControlURL": "http://127.0.0.1:8080/", "ControlURLSet": true, "ShieldsUp": true, "ShieldsUpSet": true});
    let prefs = node.ask(|reply| Request::EditPrefs(Authority::Operator, same, reply)).await.unwrap();
    assert!(prefs.shields_up);
    let nobody = node.edit(json!({"OperatorUser": "no-such-user", "OperatorUserSet": true})).await;
    assert!(matches!(nobody, Err(Refusal::Bad(text)) if text.contains("no-such-user")));
}

#[tokio::test(start_paused = true)]
async fn without_a_disk_nothing_is_promised() {
    let mut node = Fixture::new("disk");
    node.edit(json!({"ControlURL": "http://127.0.0.1:1", "ControlURLSet": true})).await.unwrap();
    let before = node.ask(Request::Prefs).await;
    node.break_disk();
    for change in [
        json!({"Hostname": "beta", "HostnameSet": true}),
        json!({"ControlURL": "http://127.0.0.1:2", "ControlURLSet": true}),
    ] {
        let answer = node.edit(change).await;
        assert!(matches!(answer, Err(Refusal::Failed(_))), "{answer:?}");
        assert_eq!(node.ask(Request::Prefs).await, before);
    }
    assert!(matches!(node.ask(Request::LoginInteractive).await, Err(Refusal::Failed(_))));
    assert_eq!(node.ask(Request::Prefs).await, before);
    assert!(node.calls.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_not_stored_is_never_shown_to_the_server() {
    let mut node = Fixture::new("disk-later");
    node.server.set_mood(Mood::Down);
    node.start("wkey-good").await.unwrap();
    node.bus(|bus| bus.trouble.is_some()).await;
    node.break_disk();
    node.server.set_mood(Mood::Normal);
    let local = |bus: &Bus| bus.trouble.as_ref().is_some_and(|trouble| trouble.kind == TroubleKind::Local);
    let first = node.bus(local).await.trouble.unwrap();
    // Neither at the first attempt nor at a later one.
    node.bus(|bus| bus.trouble.as_ref().is_some_and(|trouble| trouble.attempts > first.attempts + 3)).await;
    assert!(node.calls.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn without_a_server_in_the_settings_it_says_how_to_name_one() {
    let node = Fixture::new("no-server");
    let options = StartOptions::default();
    let answer = node.ask(|reply| Request::Start(Authority::Root, options, reply)).await;
    assert!(matches!(answer, Err(Refusal::Bad(text)) if text.contains("--login-server")));
    assert!(matches!(node.ask(Request::LoginInteractive).await, Err(Refusal::Bad(_))));
    let status = node.ask(|reply| Request::Status(Peers::Omitted, reply)).await;
    assert_eq!((status.backend_state.as_str(), status.have_node_key), ("NeedsLogin", false));
}

#[tokio::test(start_paused = true)]
async fn a_new_name_is_reported() {
    let (mut node, _stream) = Fixture::running("name", map(&[])).await;
    node.edit(json!({"Hostname": "gamma", "HostnameSet": true})).await.unwrap();
    let Call::Report(report) = node.call().await else { panic!() };
    let Hostinfo { hostname, shields_up, .. } = report.hostinfo.unwrap();
    assert_eq!((hostname.as_str(), shields_up), ("gamma", false));
}
