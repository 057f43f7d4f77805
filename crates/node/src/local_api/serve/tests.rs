mod hostile;
mod rights;
mod socket;

use std::path::PathBuf;

use http::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::types::{State, Status, Trouble, TroubleKind};
use super::super::{Client, ClientError};
use super::*;
use crate::prefs::Prefs;

struct Fixture {
    shared: Shared,
    socket: PathBuf,
    bus: watch::Sender<Bus>,
    _operator: watch::Sender<String>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Serves on a scratch socket with a daemon that answers a few verbs.
fn fixture(name: &str, daemon_uid: u32) -> Fixture {
    let socket = std::env::temp_dir().join(format!("warren-local-api-{name}-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).unwrap();
    let (requests, mut asked) = mpsc::channel(4);
    let (bus, bus_seen) = watch::channel(Bus::default());
    let (operator, operator_seen) = watch::channel(String::new());
    let shared = Shared { requests, bus: bus_seen, operator: operator_seen, daemon_uid, dialer: None };
    let tasks = vec![
        tokio::spawn(serve(listener, shared.clone())),
        tokio::spawn(async move {
            while let Some(request) = asked.recv().await {
                if let Request::Prefs(reply) = request {
                    let _ = reply.send(Prefs::default());
                } else if let Request::EditPrefs(Authority::Operator, _, reply) = request {
                    let _ = reply.send(Err(Refusal::Forbidden));
                } else if let Request::EditPrefs(Authority::Root, _, reply) = request {
                    let _ = reply.send(Err(Refusal::Bad("no such setting".into())));
                }
            }
        }),
    ];
    Fixture { shared, socket, bus, _operator: operator, tasks }
}

fn own_uid() -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").unwrap().uid()
}

async fn raw(fixture: &Fixture, request: &str) -> String {
    let mut stream = UnixStream::connect(&fixture.socket).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn requests_with_signs_of_a_browser_are_refused() {
    let fixture = fixture("browser", own_uid());
    for (headers, status) in [
        ("Host: local-tailscaled.sock\r\n", "200"),
        ("Host:\r\n", "200"),
        ("Host: localhost\r\n", "403"),
        ("Host: evil.example\r\n", "403"),
        ("Host: local-tailscaled.sock\r\nOrigin: http://evil.example\r\n", "403"),
        ("Host: local-tailscaled.sock\r\nReferer: http://evil.example/\r\n", "403"),
    ] {
        let request = format!("GET /localapi/v0/prefs HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
        let answer = raw(&fixture, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{headers}: {answer}");
    }
}

#[tokio::test]
async fn answers_carry_the_guarding_headers() {
    let fixture = fixture("headers", own_uid());
    let request = "GET /localapi/v0/nothing HTTP/1.1\r\nHost: local-tailscaled.sock\r\nConnection: close\r\n\r\n";
    let answer = raw(&fixture, request).await.to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 404"));
    for header in ["tailscale-cap: ", "tailscale-version: ", "x-frame-options: deny", "x-content-type-options: nosniff"]
    {
        assert!(answer.contains(header), "{header}: {answer}");
    }
}

#[tokio::test]
async fn a_stranger_reads_but_does_not_write() {
    if own_uid() == 0 {
        // Root is never a stranger: the table's own test covers this.
        return;
    }
    let fixture = fixture("stranger", own_uid() + 1);
    let client = Client::new(&fixture.socket);
    client.get::<Prefs>("prefs").await.unwrap();
    let refused = client.request(Method::PATCH, "prefs", "{}".into()).await;
    assert!(matches!(refused, Err(ClientError::Denied(_))));
}

#[tokio::test]
async fn refusals_reach_the_client_as_text() {
    let fixture = fixture("refusal", own_uid());
    let client = Client::new(&fixture.socket);
    assert_eq!(client.get::<Prefs>("prefs").await.unwrap(), Prefs::default());
    let refused = client.request(Method::PATCH, "prefs", "{}".into()).await.unwrap_err();
    assert_eq!(refused.to_string(), "no such setting");
    let bad = client.request(Method::PATCH, "prefs", "{".into()).await.unwrap_err();
    assert_eq!(bad.to_string(), "invalid JSON body");
    let long = client.request(Method::PATCH, "prefs", vec![b' '; body::MAX_BODY + 1].into()).await;
    assert!(matches!(long, Err(ClientError::Refused { .. } | ClientError::Broken(_))), "{long:?}");
    // A verb that this daemon never answers must not hang the caller once the daemon drops it.
    let status = client.get::<Status>("status").await;
    assert!(matches!(status, Err(ClientError::Refused { .. })));
}

#[tokio::test]
async fn the_bus_begins_with_the_state_and_then_says_what_changed() {
    let fixture = fixture("bus", own_uid());
    let mut watcher = Client::new(&fixture.socket).watch().await.unwrap();
    let first = watcher.next().await.unwrap();
    assert_eq!(first.state, Some(State::NoState.number()));
    assert!(first.version.is_some());
    let trouble = Trouble { kind: TroubleKind::Unreachable, text: "no route".into(), attempts: 1 };
    fixture.bus.send_modify(|bus| bus.trouble = Some(trouble.clone()));
    let next = watcher.next().await.unwrap();
    assert_eq!((next.state, next.trouble), (None, Some(trouble)));
    fixture.bus.send_modify(|bus| {
        bus.state = State::NeedsLogin;
        bus.browse_to_url = "https://a/b".into();
    });
    let next = watcher.next().await.unwrap();
    assert_eq!(next.state, Some(State::NeedsLogin.number()));
    assert_eq!(next.browse_to_url.as_deref(), Some("https://a/b"));
}

#[tokio::test]
async fn one_user_cannot_take_every_connection() {
    let fixture = fixture("many", own_uid());
    let mut held = Vec::new();
    for _ in 0..MAX_CONNECTIONS_PER_USER {
        held.push(UnixStream::connect(&fixture.socket).await.unwrap());
    }
    let mut refused = UnixStream::connect(&fixture.socket).await.unwrap();
    assert_eq!(refused.read(&mut [0; 1]).await.unwrap(), 0);
    drop(held);
}

#[tokio::test]
async fn without_a_daemon_the_client_says_how_to_start_one() {
    let error = Client::new("/nonexistent/warren.sock").get::<Prefs>("prefs").await.unwrap_err();
    assert!(error.to_string().contains("warren node"), "{error}");
}
