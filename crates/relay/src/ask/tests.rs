use super::*;
use tokio::net::TcpListener;
use warren_wire::key::NodeSecret;

const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn key(byte: u8) -> NodeKey {
    NodeSecret::from_bytes([byte; 32]).public()
}

/// Answers one question with `answer` and returns what was asked.
async fn once(listener: &TcpListener, answer: &str) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut asked = Vec::new();
    while !asked.ends_with(b"}") {
        assert_ne!(stream.read_buf(&mut asked).await.unwrap(), 0);
    }
    stream.write_all(answer.as_bytes()).await.unwrap();
    String::from_utf8(asked).unwrap()
}

#[tokio::test]
async fn server_decides_and_its_answer_is_kept_for_a_while() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ask = AskServer::new(&format!("http://{}/base/", listener.local_addr().unwrap())).unwrap();
    assert!(!ask.admit(&key(1), SOURCE), "nobody is admitted unasked");
    for (byte, allow) in [(1, true), (2, false)] {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{{\"Allow\":{allow}}}");
        let (key, server) = (key(byte), once(&listener, &answer));
        let (asked, ()) = tokio::join!(server, ask.prepare(&key, SOURCE));
        assert!(asked.starts_with("POST /base/verify HTTP/1.0\r\n"), "{asked}");
        let body = format!("\r\n\r\n{{\"NodePublic\":\"{key}\",\"Source\":\"127.0.0.1\"}}");
        assert!(asked.ends_with(&body), "{asked}");
        assert_eq!(ask.admit(&key, SOURCE), allow);
    }
    // Nobody listens any more: fresh answers count, strangers are refused.
    drop(listener);
    for byte in 1..=3 {
        ask.prepare(&key(byte), SOURCE).await;
        assert_eq!(ask.admit(&key(byte), SOURCE), byte == 1);
    }
}

#[tokio::test]
async fn whatever_is_no_yes_admits_nobody() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ask = AskServer::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    for answer in [
        "",
        "HTTP/1.1 403 Forbidden\r\n\r\n{\"Allow\":true}",
        "HTTP/1.1 302 Found\r\nLocation: http://evil.example/\r\n\r\n{\"Allow\":true}",
        "HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\n\r\n{\"Allow\":tr",
        "{\"Allow\":true}",
    ] {
        let key = key(7);
        let (_, ()) = tokio::join!(once(&listener, answer), ask.prepare(&key, SOURCE));
        assert!(!ask.admit(&key, SOURCE), "{answer}");
        ask.known().clear();
    }
}

#[tokio::test(start_paused = true)]
async fn a_yes_lasts_a_day_without_the_server_and_no_longer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ask = AskServer::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    drop(listener);
    ask.remember(key(1), true);
    tokio::time::advance(GRACE - Duration::from_secs(10)).await;
    ask.prepare(&key(1), SOURCE).await;
    assert!(ask.admit(&key(1), SOURCE));
    tokio::time::advance(Duration::from_secs(10)).await;
    assert!(!ask.admit(&key(1), SOURCE));
}

#[test]
fn memory_of_clients_is_bounded() {
    let ask = AskServer::new("http://127.0.0.1:9").unwrap();
    for number in 0..=REMEMBERED {
        let mut bytes = [1; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        ask.remember(NodeKey::from_bytes(bytes), true);
    }
    assert!(ask.known().len() <= REMEMBERED);
}

#[test]
fn urls_are_read_strictly() {
    let some = |host: &str, port, base: &str, tls| Some((host.to_owned(), port, base.to_owned(), tls));
    assert_eq!(parse("https://w.example"), some("w.example", 443, "", true));
    assert_eq!(parse("http://w.example:8080/a/"), some("w.example", 8080, "/a", false));
    assert_eq!(parse("http://[2001:db8::1]:8080"), some("2001:db8::1", 8080, "", false));
    for bad in [
        "w.example",
        "ftp://w",
        "http://",
        "http://a:b",
        "http://a b",
        "http://u@h",
        "http://h/\r\nX: y",
        "http://[::1",
    ] {
        assert_eq!(parse(bad), None, "{bad}");
    }
}
