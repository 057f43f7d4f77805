//! Requests outside Noise.

use super::*;

#[tokio::test]
async fn the_key_comes_with_both_fields() {
    let rig = Rig::new().await;
    let answer = rig.get("/key?v=130").await;
    assert_eq!(status(&answer), 200, "{answer}");
    let json: serde_json::Value = serde_json::from_str(body(&answer)).unwrap();
    let zero = format!("mkey:{}", "0".repeat(64));
    assert_eq!(json["legacyPublicKey"], zero.as_str());
    assert_eq!(json["publicKey"], rig.shared.control.noise_key().to_string());
}

#[tokio::test]
async fn the_key_needs_a_version() {
    let rig = Rig::new().await;
    for path in ["/key", "/key?v=", "/key?v=x", "/key?w=130"] {
        let answer = rig.get(path).await;
        assert_eq!(status(&answer), 400, "{path}");
        assert!(body(&answer).contains("/key?v="), "{answer}");
    }
}

#[tokio::test]
async fn absolute_targets_and_foreign_hosts_are_accepted() {
    let rig = Rig::new().await;
    let request =
        "GET http://control.lab.test:8080/key?v=130 HTTP/1.1\r\nHost: control.lab.test\r\nConnection: close\r\n\r\n";
    assert_eq!(status(&rig.ask(request).await), 200);
    let request = "GET http://a.test/generate_204 HTTP/1.1\r\nHost: b.test:9\r\nConnection: close\r\n\r\n";
    assert_eq!(status(&rig.ask(request).await), 204);
}

#[tokio::test]
async fn an_answer_ends_the_stream_when_the_client_asks_for_that() {
    let rig = Rig::new().await;
    let (mut stream, task) = rig.connect();
    stream.write_all(b"GET /key?v=142 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    task.await.unwrap();
    assert_eq!(status(&answer), 200);
}

#[tokio::test]
async fn only_a_harmless_challenge_is_answered() {
    let rig = Rig::new().await;
    let ask = async |challenge: &str| {
        rig.ask(&format!(
            "GET /generate_204 HTTP/1.1\r\nHost: x\r\nX-Tailscale-Challenge: {challenge}\r\nConnection: close\r\n\r\n"
        ))
        .await
    };
    let answer = ask("ts_control.test").await;
    assert_eq!(status(&answer), 204);
    assert!(answer.contains("x-tailscale-response: response ts_control.test\r\n"), "{answer}");
    assert!(answer.contains("cache-control: no-cache"), "{answer}");
    assert!(!ask("a b").await.contains("x-tailscale-response"));
    assert!(!ask(&"a".repeat(65)).await.contains("x-tailscale-response"));
}

#[tokio::test]
async fn bootstrap_dns_tells_nothing_of_other_names() {
    let rig = Rig::new().await;
    for path in ["/bootstrap-dns", "/bootstrap-dns?q=", "/bootstrap-dns?q=example.com", "/bootstrap-dns?q=localhost"] {
        assert_eq!(status(&rig.get(path).await), 404, "{path}");
    }
}

#[tokio::test]
async fn verify_refuses_keys_that_nobody_registered() {
    let rig = Rig::new().await;
    let post = async |path: &str, body: &str| {
        let length = body.len();
        rig.ask(&format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        ))
        .await
    };
    let ask = async |body: &str| post("/verify", body).await;
    let answer = ask(&format!(r#"{{"NodePublic":"nodekey:{}","Source":"192.0.2.1"}}"#, "ab".repeat(32))).await;
    assert_eq!((status(&answer), body(&answer)), (200, r#"{"Allow":false}"#));
    assert_eq!(status(&ask("{}").await), 400);
    assert_eq!(status(&ask("").await), 400);
    assert_eq!(status(&rig.get("/verify").await), 405);
    let key = format!("nodekey:{}", "ab".repeat(32));
    let answer = post("/verify/all", &format!(r#"{{"Clients":["{key}"]}}"#)).await;
    assert_eq!((status(&answer), body(&answer)), (200, format!(r#"{{"Gone":["{key}"]}}"#).as_str()));
    assert_eq!(status(&post("/verify/all", "{}").await), 400);
    let many = vec![format!("\"{key}\""); 257].join(",");
    assert_eq!(status(&post("/verify/all", &format!(r#"{{"Clients":[{many}]}}"#)).await), 400);
}

#[tokio::test]
async fn a_login_that_is_none_gets_a_page_that_runs_nothing() {
    let rig = Rig::new().await;
    let answer = rig.get("/login/%3Cscript%3E").await;
    assert_eq!(status(&answer), 404);
    assert!(answer.contains("content-security-policy: default-src 'none'"), "{answer}");
    assert!(!body(&answer).contains("script"), "{answer}");
}

#[tokio::test]
async fn everything_else_is_not_found() {
    let rig = Rig::new().await;
    for path in
        ["/machine/map", "/machine/register", "/derp", "/derp/probe", "/admin", "/v1/admin", "/key/", "//key", "/login"]
    {
        assert_eq!(status(&rig.get(path).await), 404, "{path}");
    }
    assert_eq!(status(&rig.get("/").await), 200);
    assert_eq!(body(&rig.get("/health").await), r#"{"status":"ok"}"#);
}

#[tokio::test]
async fn an_upgrade_that_cannot_be_says_why() {
    let rig = Rig::new().await;
    let ask = async |head: &str| {
        rig.ask(&format!("POST /ts2021 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n{head}\r\n")).await
    };
    let cases = [
        ("Connection: close\r\n", "proxy"),
        ("Connection: upgrade, close\r\nUpgrade: h2c\r\n", "unknown protocol"),
        ("Connection: upgrade, close\r\nUpgrade: tailscale-control-protocol\r\n", "missing"),
        ("Connection: upgrade, close\r\nUpgrade: tailscale-control-protocol\r\nX-Tailscale-Handshake: *\r\n", "base64"),
    ];
    for (head, word) in cases {
        let answer = ask(head).await;
        assert_eq!(status(&answer), 400, "{answer}");
        assert!(body(&answer).contains(word), "{answer}");
    }
    let old = rig.ask("POST /ts2021 HTTP/1.0\r\nUpgrade: tailscale-control-protocol\r\n\r\n").await;
    assert_eq!(status(&old), 400, "{old}");
}

#[tokio::test]
async fn a_malformed_handshake_is_told_in_an_error_frame() {
    let rig = Rig::new().await;
    for method in ["POST", "GET"] {
        let (mut stream, _task) = rig.connect();
        let request = format!(
            "{method} /ts2021 HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: Tailscale-Control-Protocol\r\n\
             X-Tailscale-Handshake: AAAA\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let text = String::from_utf8_lossy(&answer).into_owned();
        assert_eq!(status(&text), 101, "{text}");
        assert!(text.to_lowercase().contains("\r\nupgrade: tailscale-control-protocol\r\n"), "{text}");
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        let frame = &answer[end..];
        assert_eq!(frame[0], 3, "an error frame");
        assert_eq!(usize::from(u16::from_be_bytes([frame[1], frame[2]])), frame.len() - 3);
    }
}

#[tokio::test]
async fn a_handshake_for_another_server_just_ends() {
    let rig = Rig::new().await;
    let (stream, _task) = rig.connect();
    let other = warren_wire::key::MachineSecret::from_bytes([9; 32]).public();
    let error = client::Client::over(stream, &client::machine(1), &other, 130).await.err().unwrap();
    assert!(error.contains("closed"), "{error}");
}
