//! Each verb, asked over HTTP by a stranger, by the operator and by root.

use super::super::super::access::RULES;
use super::super::super::types::{Status, WhoIs};
use super::*;
use crate::prefs::Prefs;

const OPERATOR: u32 = 1000;
const STRANGER: u32 = 1001;

/// A daemon that says yes to everything.
fn agreeable() -> (Shared, watch::Sender<Bus>, tokio::task::JoinHandle<()>) {
    let (requests, mut asked) = mpsc::channel(4);
    let bus = watch::Sender::new(Bus { browse_to_url: "https://s/register/secret".into(), ..Bus::default() });
    // A number, so that no account of this machine is needed.
    let operator = watch::channel(OPERATOR.to_string()).1;
    let shared = Shared { requests, bus: bus.subscribe(), operator, daemon_uid: 0, dialer: None };
    let task = tokio::spawn(async move {
        while let Some(request) = asked.recv().await {
            yes(request);
        }
    });
    (shared, bus, task)
}

fn yes(request: Request) {
    match request {
        Request::Status(_, reply) => {
            drop(reply.send(Box::new(Status { auth_url: "https://s/register/secret".into(), ..Status::default() })));
        }
        Request::WhoIs(_, reply) => {
            let node = serde_json::value::RawValue::from_string("{}".into()).unwrap();
            let found = WhoIs { node, user_profile: Default::default(), cap_map: Default::default() };
            drop(reply.send(Some(found)));
        }
        Request::Prefs(reply) => drop(reply.send(Prefs::default())),
        Request::EditPrefs(_, _, reply) => drop(reply.send(Ok(Prefs::default()))),
        Request::Start(_, _, reply) => drop(reply.send(Ok(()))),
        Request::LoginInteractive(reply) | Request::Logout(reply) | Request::ResetAuth(reply) => {
            drop(reply.send(Ok(())));
        }
        Request::Ping(_, reply) => drop(reply.send(Default::default())),
        Request::Netcheck(reply) | Request::DerpMap(reply) => drop(reply.send(json!({}))),
        Request::Shutdown(reply) => drop(reply.send(())),
    }
}

/// Asks as `uid` and returns the beginning of the answer: head, and the first of the body.
async fn ask(shared: &Shared, uid: u32, method: &Method, path: &str, body: &str) -> String {
    let (mut near, far) = UnixStream::pair().unwrap();
    let serving = tokio::spawn(connection(far, uid, shared.clone()));
    let head = format!(
        "{method} /localapi/v0/{path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    near.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A bus that was opened does not end: its first line is enough.
    while !answer.ends_with(b"}\n\r\n") && near.read_buf(&mut answer).await.unwrap() != 0 {}
    serving.abort();
    String::from_utf8(answer).unwrap()
}

/// Says what each verb needs, a second time on purpose; returns who may, and an ordinary request.
fn expected(verb: Verb) -> (Need, &'static str, &'static str) {
    match verb {
        Verb::Status => (Need::Read, "", ""),
        Verb::WhoIs => (Need::Read, "?addr=100.64.0.1:80", ""),
        Verb::Prefs | Verb::DerpMap | Verb::Netcheck => (Need::Read, "", ""),
        Verb::WatchBus => (Need::Read, "?mask=2", ""),
        Verb::Ping => (Need::Read, "?ip=100.64.0.1&type=disco", ""),
        Verb::EditPrefs => (Need::Own, "", "{\"ShieldsUpSet\":true}"),
        Verb::Start => (Need::Own, "", "{}"),
        Verb::LoginInteractive | Verb::Logout | Verb::Dial => (Need::Own, "", ""),
        Verb::ResetAuth | Verb::Shutdown => (Need::Root, "", ""),
    }
}

#[tokio::test]
async fn each_verb_answers_exactly_those_who_may() {
    let (shared, _bus, task) = agreeable();
    for rule in RULES {
        let (need, query, body) = expected(rule.verb);
        for (uid, allowed) in [(STRANGER, need == Need::Read), (OPERATOR, need != Need::Root), (0, true)] {
            let path = format!("{}{query}", rule.path);
            let answer = ask(&shared, uid, &rule.method, &path, body).await;
            let status = answer.split(' ').nth(1).unwrap_or_default();
            let wanted: &[&str] = match (allowed, rule.verb) {
                (false, _) => &["403"],
                // Where to is in headers, which this request does not have.
                (true, Verb::Dial) => &["400"],
                (true, _) => &["200", "204"],
            };
            assert!(wanted.contains(&status), "{:?} as {uid}: {answer}", rule.verb);
            assert!(allowed || answer.ends_with(&format!("{} access denied", rule.path)), "{answer}");
        }
    }
    task.abort();
}

#[tokio::test]
async fn a_method_that_a_path_does_not_have_does_nothing() {
    let (shared, _bus, task) = agreeable();
    for rule in RULES {
        for method in [Method::GET, Method::POST, Method::PATCH, Method::PUT, Method::DELETE, Method::OPTIONS] {
            if RULES.iter().any(|other| other.path == rule.path && other.method == method) {
                continue;
            }
            let answer = ask(&shared, 0, &method, rule.path, "").await;
            assert!(answer.starts_with("HTTP/1.1 405"), "{method} {}: {answer}", rule.path);
        }
    }
    task.abort();
}

#[tokio::test]
async fn only_who_may_log_in_sees_where() {
    let (shared, _bus, task) = agreeable();
    for (uid, sees) in [(STRANGER, false), (OPERATOR, true), (0, true)] {
        for path in ["status", "watch-ipn-bus?mask=2"] {
            let answer = ask(&shared, uid, &Method::GET, path, "").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert_eq!(answer.contains("secret"), sees, "{path} as {uid}: {answer}");
        }
    }
    task.abort();
}

#[tokio::test]
async fn nonsense_is_told_from_what_is_forbidden() {
    let (shared, _bus, task) = agreeable();
    for (method, path, body, wanted) in [
        (Method::GET, "whois", "", "400"),
        (Method::GET, "whois?addr=nobody", "", "400"),
        (Method::GET, "watch-ipn-bus?mask=x", "", "400"),
        (Method::POST, "ping?ip=100.64.0.1&type=ICMP", "", "400"),
        (Method::POST, "ping?ip=localhost", "", "400"),
        (Method::PATCH, "prefs", "{", "400"),
        (Method::POST, "start", "[1]", "400"),
        (Method::GET, "status/../shutdown", "", "404"),
        (Method::GET, "", "", "404"),
    ] {
        let answer = ask(&shared, 0, &method, path, body).await;
        assert_eq!(answer.split(' ').nth(1), Some(wanted), "{method} {path}: {answer}");
    }
    task.abort();
}
