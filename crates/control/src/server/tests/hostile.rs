//! Oversized, truncated, slow: one test per limit, all before anybody is known.

use http::{Method, StatusCode};
use serde_json::json;
use tokio::time::Instant;

use super::client::{Client, node_key};
use super::*;
use crate::server::limits::{
    HEAD_DEADLINE, HTTP_LIFETIME, MAX_BODY_BYTES, MAX_HEAD_BYTES, MAX_HEADER_FIELDS, STRANGER_IDLE,
};

/// Returns how long `task` takes in a clock that stands still while anything else can run.
async fn seconds_until(task: JoinHandle<()>) -> u64 {
    #[expect(clippy::disallowed_methods, reason = "the paused clock of the test")]
    let now = Instant::now;
    let start = now();
    task.await.unwrap();
    (now() - start).as_secs()
}

#[tokio::test]
async fn a_head_above_the_limit_is_refused() {
    let rig = Rig::new().await;
    let long = "a".repeat(MAX_HEAD_BYTES);
    let answer = rig.ask(&format!("GET /key?v=130 HTTP/1.1\r\nHost: x\r\nA: {long}\r\n\r\n")).await;
    assert_eq!(status(&answer), 431, "{answer}");
    let target = rig.ask(&format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
    assert!(matches!(status(&target), 414 | 431), "{target}");
    let many = "A: b\r\n".repeat(MAX_HEADER_FIELDS + 1);
    let answer = rig.ask(&format!("GET /key?v=130 HTTP/1.1\r\n{many}\r\n")).await;
    assert_eq!(status(&answer), 431, "{answer}");
}

#[tokio::test]
async fn what_is_no_http_is_refused() {
    let rig = Rig::new().await;
    for bytes in ["\u{16}\u{3}\u{1}\u{2}\u{0}\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\r\r\r\r \r\n\r\n"] {
        let answer = rig.ask(bytes).await;
        assert!(answer.is_empty() || status(&answer) == 400, "{bytes:?}: {answer}");
    }
}

#[tokio::test]
async fn a_head_that_breaks_off_ends_the_connection() {
    let rig = Rig::new().await;
    let (mut stream, task) = rig.connect();
    stream.write_all(b"GET /key?v=130 HT").await.unwrap();
    drop(stream);
    task.await.unwrap();
    assert_eq!(rig.shared.gate.open(), 0);
}

#[tokio::test]
async fn a_slow_head_is_cut() {
    let rig = Rig::new().await;
    tokio::time::pause();
    let (mut stream, task) = rig.connect();
    stream.write_all(b"GET /key?v=130 HTTP/1.1\r\nHost:").await.unwrap();
    assert!(seconds_until(task).await <= HEAD_DEADLINE.as_secs() + 1);
    drop(stream);
}

#[tokio::test]
async fn an_idle_connection_is_cut() {
    let rig = Rig::new().await;
    tokio::time::pause();
    let (stream, task) = rig.connect();
    assert!(seconds_until(task).await <= HEAD_DEADLINE.as_secs() + 1);
    drop(stream);
}

#[tokio::test]
async fn a_connection_that_keeps_asking_ends_some_time() {
    let rig = Rig::new().await;
    tokio::time::pause();
    let (mut stream, task) = rig.connect();
    let asking = tokio::spawn(async move {
        let mut answer = [0; 4096];
        loop {
            tokio::time::sleep(HEAD_DEADLINE / 2).await;
            if stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.is_err() {
                return;
            }
            if !matches!(stream.read(&mut answer).await, Ok(1..)) {
                return;
            }
        }
    });
    assert!(seconds_until(task).await <= HTTP_LIFETIME.as_secs() + 1);
    asking.await.unwrap();
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused() {
    let rig = Rig::new().await;
    let head = format!("POST /verify HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", MAX_BODY_BYTES + 1);
    let (mut stream, _task) = rig.connect();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn a_slow_body_is_cut() {
    let rig = Rig::new().await;
    tokio::time::pause();
    let (mut stream, _task) = rig.connect();
    stream.write_all(b"POST /verify HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{").await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused_behind_noise_too() {
    let rig = Rig::new().await;
    let client = Client::connect(&rig, 1).await;
    let answer = client.try_send(Method::POST, "/machine/register", vec![b' '; MAX_BODY_BYTES + 1]).await;
    // The answer may come as such, or the stream is reset while the rest of the body is still on its way.
    assert!(
        answer.is_err_and(|error| !error.is_timeout()) || {
            let (status, _) = client.ask(Method::POST, "/machine/register", vec![b' '; MAX_BODY_BYTES + 1]).await;
            status == StatusCode::PAYLOAD_TOO_LARGE
        }
    );
    assert_eq!(client.ask(Method::GET, "/machine/whoami", "").await.0, StatusCode::OK, "the connection goes on");
}

#[tokio::test]
async fn a_strangers_idle_connection_is_closed() {
    let rig = Rig::new().await;
    let client = Client::connect(&rig, 1).await;
    client.ask(Method::GET, "/machine/whoami", "").await;
    tokio::time::pause();
    let gone = tokio::time::timeout(STRANGER_IDLE * 2, rig.shared.gate.drained()).await;
    assert!(gone.is_ok(), "{} are open", rig.shared.gate.open());
}

#[tokio::test]
async fn a_client_that_says_nothing_after_the_handshake_is_cut() {
    let rig = Rig::new().await;
    let (stream, _task) = rig.connect();
    let arrival_key = rig.shared.control.noise_key();
    let client = Client::over(stream, &client::machine(1), &arrival_key, 130).await.unwrap();
    tokio::time::pause();
    let gone = tokio::time::timeout(STRANGER_IDLE * 2, rig.shared.gate.drained()).await;
    assert!(gone.is_ok());
    drop(client);
}

#[tokio::test]
async fn garbage_behind_the_handshake_ends_the_connection() {
    let rig = Rig::new().await;
    let (mut stream, _task) = rig.connect();
    let key = rig.shared.control.noise_key();
    let (_, initiation) = warren_wire::noise::Initiator::new(130, &client::machine(1), &key, [5; 32]).unwrap();
    let handshake = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, initiation);
    // The garbage is pipelined right behind the head of the upgrade.
    let request = format!(
        "POST /ts2021 HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: tailscale-control-protocol\r\n\
         X-Tailscale-Handshake: {handshake}\r\n\r\nthis is no record, but it is long enough to be read as the header of one"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(status(&String::from_utf8_lossy(&rest)), 101);
    rig.shared.gate.drained().await;
}

#[tokio::test]
async fn one_source_behind_a_proxy_cannot_take_all_places() {
    let limits = ConnectionLimits { per_source: 1, ..ConnectionLimits::default() };
    let rig = Rig::with(limits, &["192.0.2.7/32"]).await;
    let upgrade = async |from: &str| {
        let peer = "192.0.2.7:1234".parse().unwrap();
        let pass = rig.shared.gate.admit(None).unwrap();
        let arrival = Arrival { shared: Arc::clone(&rig.shared), peer, pass: Arc::new(pass) };
        let (mut near, far) = tokio::io::duplex(64 * 1024);
        tokio::spawn(serve_http(arrival, Replay::new(Bytes::new(), Box::new(far))));
        let (_, initiation) =
            warren_wire::noise::Initiator::new(130, &client::machine(1), &rig.shared.control.noise_key(), [5; 32])
                .unwrap();
        let handshake = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, initiation);
        let request = format!(
            "POST /ts2021 HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: tailscale-control-protocol\r\n\
             X-Forwarded-For: {from}\r\nX-Tailscale-Handshake: {handshake}\r\n\r\n"
        );
        near.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        near.read_exact(&mut head).await.unwrap();
        (String::from_utf8_lossy(&head).into_owned(), near)
    };
    let (first, _held) = upgrade("198.51.100.1").await;
    assert_eq!(first, "HTTP/1.1 101");
    assert_eq!(upgrade("198.51.100.1").await.0, "HTTP/1.1 429");
    assert_eq!(upgrade("198.51.100.2").await.0, "HTTP/1.1 101");
}

#[tokio::test]
async fn a_wait_for_a_login_ends_with_its_client() {
    let rig = Rig::new().await;
    let client = Client::connect(&rig, 1).await;
    let request = json!({"Version": 130, "NodeKey": node_key(1), "Hostinfo": {}});
    let (_, body) = client.post("/machine/register", &request).await;
    let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
    let mut followup = request.clone();
    followup["Followup"] = answer["AuthURL"].clone();
    let wait = client.post("/machine/register", &followup);
    assert!(futures_util::future::poll_immediate(Box::pin(wait)).await.is_none(), "it waits");
    // One round trip behind the request that waits.
    client.ask(Method::GET, "/machine/whoami", "").await;
    drop(client);
    rig.shared.gate.drained().await;
    assert_eq!(rig.shared.gate.open(), 0);
}

#[tokio::test]
async fn a_logout_of_nobody_leaves_a_stranger_a_stranger() {
    let rig = Rig::new().await;
    let client = Client::connect(&rig, 1).await;
    let logout = json!({"Version": 130, "NodeKey": node_key(1), "Expiry": "1970-01-01T00:02:03Z", "Hostinfo": {}});
    let (status, body) = client.post("/machine/register", &logout).await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("\"NodeKeyExpired\":true"), "{body}");
    tokio::time::pause();
    assert!(tokio::time::timeout(STRANGER_IDLE * 2, rig.shared.gate.drained()).await.is_ok());
}

#[tokio::test]
async fn one_machine_cannot_take_the_places_of_all_members() {
    let rig = Rig::with(ConnectionLimits { per_key: 1, ..ConnectionLimits::default() }, &[]).await;
    let new = crate::admin::NewAuthKey { tailnet: "default".to_owned(), ..Default::default() };
    let key = rig.shared.control.admin(crate::Who::server()).create_auth_key(new).await.unwrap();
    let first = Client::connect(&rig, 1).await;
    first.register(1, key.text.expose()).await;
    let second = Client::connect(&rig, 1).await;
    let (status, _) = second.post("/machine/map", &json!({"Version": 130, "NodeKey": node_key(1)})).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    let (status, _) = first.post("/machine/map", &json!({"Version": 130, "NodeKey": node_key(1)})).await;
    assert_eq!(status, StatusCode::OK);
}
