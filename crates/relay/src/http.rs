//! What a relay answers over HTTP/1.1, and which requests become relay connections.
//!
//! Source: Tailscale `derp/derpserver`, `cmd/derper/derper.go`.

use warren_wire::key::NodeKey;

use crate::websocket;

/// Most bytes of a request's head.
pub const HEAD_MAX: usize = 16 << 10;
/// Most header fields of a request.
const FIELDS_MAX: usize = 64;
/// Most bytes of a challenge that is echoed.
const CHALLENGE_MAX: usize = 64;

/// How a relay connection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With an answer of status 101.
    Upgrade,
    /// Without an answer: the client knows our key from the meta certificate and has sent its first frame already.
    Fast,
    /// As a WebSocket; these letters prove to the client that we have read its key.
    WebSocket {
        /// Value of `Sec-WebSocket-Accept`.
        accept: [u8; websocket::ACCEPT],
    },
}

/// What a request is to a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// The head is not complete yet.
    Partial,
    /// Not HTTP/1, or too much of it.
    Malformed,
    /// Nothing of ours.
    Other,
    /// A relay connection; `head` bytes are the request.
    Connect {
        /// How it begins.
        start: Start,
        /// Bytes of the request.
        head: usize,
    },
    /// A request that this answers; `head` bytes are the request.
    Answer {
        /// The whole answer.
        answer: Vec<u8>,
        /// Bytes of the request.
        head: usize,
        /// Nothing may follow on this connection: the client said so, or its request has a body, which nobody reads
        /// here and which must not be taken for another request.
        is_last: bool,
    },
}

/// Reads the head of a request. The method of a relay connection and the `Host` do not matter.
#[must_use]
pub fn read_request(bytes: &[u8]) -> Request {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let head = match request.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return Request::Partial,
        Ok(httparse::Status::Partial) | Err(_) => return Request::Malformed,
    };
    let method = request.method.unwrap_or_default();
    let path = path_of(request.path.unwrap_or_default());
    let field = |name: &str| {
        let field = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
        field.and_then(|field| std::str::from_utf8(field.value).ok()).map(str::trim)
    };
    let has_body = request.headers.iter().any(|field| {
        field.name.eq_ignore_ascii_case("Transfer-Encoding")
            || field.name.eq_ignore_ascii_case("Content-Length") && field.value != b"0"
    });
    let closes = field("Connection").is_some_and(|value| value.to_ascii_lowercase().contains("close"));
    let is_last = has_body || closes || request.version == Some(0);
    let respond = |status, fields, body| {
        let body = if method == "HEAD" { "" } else { body };
        let answer = respond(status, &format!("{fields}{}", if is_last { "Connection: close\r\n" } else { "" }), body);
        Request::Answer { answer, head, is_last }
    };
    let is_websocket = field("Upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
        && field("Sec-WebSocket-Protocol").is_some_and(|list| list.split(',').any(|one| one.trim() == "derp"));
    match path {
        "/derp" if is_websocket => match field("Sec-WebSocket-Key").and_then(websocket::accept) {
            Some(accept) => Request::Connect { start: Start::WebSocket { accept }, head },
            None => respond("400 Bad Request", "", ""),
        },
        "/derp" => match field("Upgrade").map(str::to_ascii_lowercase).as_deref() {
            // Ancient clients ask for a WebSocket without its subprotocol and mean the plain form.
            Some("derp" | "websocket") if field("Sec-WebSocket-Protocol").is_none() => {
                let start = if field("Derp-Fast-Start") == Some("1") { Start::Fast } else { Start::Upgrade };
                Request::Connect { start, head }
            }
            _ => respond("426 Upgrade Required", "Upgrade: DERP\r\n", "DERP requires connection upgrade\n"),
        },
        "/derp/probe" | "/derp/latency-check" => match method {
            "GET" | "HEAD" => respond("200 OK", "Access-Control-Allow-Origin: *\r\n", ""),
            _ => respond("405 Method Not Allowed", "", ""),
        },
        "/generate_204" => Request::Answer { answer: generate_204(field("X-Tailscale-Challenge")), head, is_last },
        _ => Request::Other,
    }
}

/// Answers a request that is nobody's on a relay of its own: what robots and people look for.
#[must_use]
pub(crate) fn leftover(bytes: &[u8]) -> Vec<u8> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let path = match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => path_of(request.path.unwrap_or_default()),
        Ok(httparse::Status::Partial) | Err(_) => return respond("400 Bad Request", CLOSE, ""),
    };
    match path {
        "/" => respond("200 OK", CLOSE, "A relay (DERP) of a warren network.\n"),
        "/robots.txt" => respond("200 OK", CLOSE, "User-agent: *\nDisallow: /\n"),
        _ => respond("404 Not Found", CLOSE, ""),
    }
}

/// Answers a request on the plain port: the probe for captive portals, and for the rest where to find the relay.
/// `None` while the head is not complete.
#[must_use]
pub(crate) fn plain(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return None,
        Ok(httparse::Status::Partial) | Err(_) => return Some(respond("400 Bad Request", CLOSE, "")),
    }
    let field = |name: &str| {
        let field = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
        field.and_then(|field| std::str::from_utf8(field.value).ok()).map(str::trim)
    };
    let target = request.path.unwrap_or_default();
    if path_of(target) == "/generate_204" {
        return Some(generate_204(field("X-Tailscale-Challenge")));
    }
    let is_host = |host: &&str| {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte))
    };
    Some(match (request.method, field("Host").filter(is_host)) {
        (Some("GET" | "HEAD"), Some(host)) if target.starts_with('/') => {
            let host = host.strip_suffix(":80").unwrap_or(host);
            respond("302 Found", &format!("Location: https://{host}{target}\r\n{CLOSE}"), "")
        }
        _ => respond("400 Bad Request", CLOSE, ""),
    })
}

/// Answers a request for the counts; `None` while the head is not complete.
pub(crate) fn metrics(bytes: &[u8], text: impl FnOnce() -> String) -> Option<Vec<u8>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return None,
        Ok(httparse::Status::Partial) | Err(_) => return Some(respond("400 Bad Request", CLOSE, "")),
        Ok(httparse::Status::Complete(_)) => {}
    }
    Some(match (request.method, request.path.map(path_of)) {
        (Some("GET"), Some("/metrics")) => {
            respond("200 OK", &format!("Content-Type: text/plain; version=0.0.4\r\n{CLOSE}"), &text())
        }
        _ => respond("404 Not Found", CLOSE, ""),
    })
}

/// Says that nothing follows on a connection.
const CLOSE: &str = "Connection: close\r\n";

/// Returns the path of a request target in origin or absolute form, without its query.
fn path_of(target: &str) -> &str {
    let target = match target.split_once("://") {
        Some((_, rest)) => rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/"),
        None => target,
    };
    target.split(['?', '#']).next().unwrap_or_default()
}

fn generate_204(challenge: Option<&str>) -> Vec<u8> {
    let echoed = challenge.filter(|text| {
        text.len() <= CHALLENGE_MAX
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b':' | b'_' | b'-'))
    });
    let echo = echoed.map(|text| format!("X-Tailscale-Response: response {text}\r\n")).unwrap_or_default();
    format!(
        "HTTP/1.1 204 No Content\r\nCache-Control: no-cache, no-store, must-revalidate, no-transform, max-age=0\r\n{echo}\r\n"
    )
    .into_bytes()
}

fn respond(status: &str, fields: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Builds the answer that begins a WebSocket.
pub(crate) fn switching_to_websocket(accept: &[u8; websocket::ACCEPT]) -> Vec<u8> {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: derp\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        String::from_utf8_lossy(accept)
    )
    .into_bytes()
}

/// Builds the answer that begins an upgraded connection.
pub(crate) fn switching(key: &NodeKey) -> Vec<u8> {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: {}\r\nDerp-Public-Key: {}\r\n\r\n",
        warren_wire::derp::VERSION,
        key.to_hex()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn connect(start: Start, request: &str) -> Request {
        Request::Connect { start, head: request.len() }
    }

    /// The Go client's request, the Rust client's (POST, absolute form, no port in Host), and a fast start.
    #[test]
    fn both_official_clients_connect() {
        let go = "GET /derp HTTP/1.1\r\nHost: derp.example\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n";
        assert_eq!(read_request(go.as_bytes()), connect(Start::Upgrade, go));
        let rust = "POST https://10.0.0.1:8443/derp HTTP/1.1\r\nhost: 10.0.0.1\r\nupgrade: derp\r\n\r\n";
        assert_eq!(read_request(rust.as_bytes()), connect(Start::Upgrade, rust));
        let fast = "GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: DERP\r\nDerp-Fast-Start: 1\r\n\r\n";
        let with_frame = [fast.as_bytes(), b"\x02\0\0"].concat();
        assert_eq!(read_request(&with_frame), connect(Start::Fast, fast));
    }

    #[test]
    fn other_requests_are_told_apart() {
        let status = |request: &str| {
            let request = read_request(request.as_bytes());
            let Request::Answer { answer, .. } = request else { return format!("{request:?}") };
            String::from_utf8(answer).unwrap().get(9..12).unwrap().to_owned()
        };
        assert_eq!(status("GET /derp HTTP/1.1\r\n\r\n"), "426");
        assert_eq!(status("GET https://relay/derp/latency-check HTTP/1.1\r\nHost: r\r\n\r\n"), "200");
        assert_eq!(status("DELETE /derp/probe HTTP/1.1\r\n\r\n"), "405");
        assert_eq!(status("GET /generate_204?t=5 HTTP/1.1\r\n\r\n"), "204");
        assert_eq!(status("GET /key?v=130 HTTP/1.1\r\n\r\n"), "Other");
        assert_eq!(status("GET /derp HTT"), "Partial");
        assert_eq!(status("\u{1}\u{2}"), "Malformed");
        let long = format!("GET /derp HTTP/1.1\r\nX: {}", "y".repeat(HEAD_MAX));
        assert_eq!(status(&long), "Malformed");
    }

    #[test]
    fn nothing_follows_a_body_or_a_goodbye() {
        let is_last = |request: &str| {
            let Request::Answer { is_last, .. } = read_request(request.as_bytes()) else { panic!("no answer") };
            is_last
        };
        assert!(!is_last("GET /derp/probe HTTP/1.1\r\nHost: r\r\n\r\n"));
        assert!(!is_last("POST /generate_204 HTTP/1.1\r\nContent-Length: 0\r\n\r\n"));
        assert!(is_last("POST /generate_204 HTTP/1.1\r\nContent-Length: 4\r\n\r\nGET "));
        assert!(is_last("POST /derp/probe HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"));
        assert!(is_last("GET /derp/probe HTTP/1.1\r\nConnection: Close\r\n\r\n"));
        assert!(is_last("GET /derp/probe HTTP/1.0\r\n\r\n"));
    }

    #[test]
    fn heads_are_answered_without_a_body() {
        for (method, has_body) in [("GET", true), ("HEAD", false)] {
            let request = format!("{method} /derp HTTP/1.1\r\n\r\n");
            let Request::Answer { answer, .. } = read_request(request.as_bytes()) else { panic!("no answer") };
            assert_eq!(answer.ends_with(b"upgrade\n"), has_body);
        }
    }

    #[test]
    fn only_harmless_challenges_are_echoed() {
        let answer = |challenge| String::from_utf8(generate_204(Some(challenge))).unwrap();
        assert!(answer("ts_derp.example").contains("X-Tailscale-Response: response ts_derp.example\r\n"));
        assert!(!answer("<script>").contains("X-Tailscale-Response"));
        assert!(!answer(&"a".repeat(65)).contains("X-Tailscale-Response"));
    }

    #[test]
    fn plain_port_answers_the_probe_and_points_to_tls() {
        let ask = |request: &str| String::from_utf8(plain(request.as_bytes()).unwrap()).unwrap();
        assert!(ask("POST /generate_204 HTTP/1.1\r\nHost: r\r\n\r\n").starts_with("HTTP/1.1 204 "));
        let moved = ask("GET /derp/probe?x HTTP/1.1\r\nHost: r.example:80\r\n\r\n");
        assert!(moved.contains("\r\nLocation: https://r.example/derp/probe?x\r\n"), "{moved}");
        for bad in [
            "POST / HTTP/1.1\r\nHost: r\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
            "GET http://evil.example/ HTTP/1.1\r\nHost: r\r\n\r\n",
            "\u{1}",
        ] {
            assert!(ask(bad).starts_with("HTTP/1.1 400 "), "{bad}");
        }
        assert_eq!(plain(b"GET / HTT"), None);
    }

    #[test]
    fn robots_and_people_get_a_word() {
        let ask = |path: &str| leftover(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes());
        assert!(ask("/robots.txt").ends_with(b"Disallow: /\n"));
        assert!(ask("/").starts_with(b"HTTP/1.1 200 ") && ask("/x").starts_with(b"HTTP/1.1 404 "));
    }

    #[test]
    fn counts_are_at_one_path() {
        let ask = |request: &str| metrics(request.as_bytes(), || "count 1\n".to_owned());
        assert!(ask("GET /metrics HTTP/1.1\r\n\r\n").unwrap().ends_with(b"\r\n\r\ncount 1\n"));
        assert!(ask("GET / HTTP/1.1\r\n\r\n").unwrap().starts_with(b"HTTP/1.1 404 "));
        assert_eq!(ask("GET /metr"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_request(&bytes);
            let _ = (plain(&bytes), metrics(&bytes, String::new), leftover(&bytes));
            let _ = read_request(&[&b"GET /derp HTTP/1.1\r\n"[..], &bytes].concat());
        }
    }
}
