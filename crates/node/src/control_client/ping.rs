//! Answers to the server's pings and questions.

use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use tokio::time::timeout;
use warren_wire::control::PingRequest;

use super::connect::Connection;

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Largest question that is looked at.
const MAX_PAYLOAD: usize = 64 * 1024;

/// Answers a ping over the connection that it came on.
///
/// Nothing but this connection is ever used for it: a ping whose answer would have to go elsewhere gets none.
pub(super) async fn answer(connection: &Connection, ping: &PingRequest) {
    let Some(path) = ping.url.parse::<Uri>().ok().and_then(|uri| uri.path_and_query().map(ToString::to_string)) else {
        return;
    };
    let (method, body) = match ping.types.as_str() {
        "" if ping.url_is_noise => (http::Method::HEAD, Bytes::new()),
        "c2n" => (http::Method::POST, respond(&ping.payload.0).into()),
        _ => return,
    };
    match timeout(ANSWER_TIMEOUT, connection.send(method, &path, body)).await {
        Ok(Ok(response)) => tracing::debug!(status = response.status().as_u16(), "answered the server's ping"),
        Ok(Err(error)) => tracing::debug!(%error, "the server's ping could not be answered"),
        Err(_) => tracing::debug!("the server's ping could not be answered in time"),
    }
}

/// Returns the HTTP/1.1 response to a raw HTTP/1 request: `/echo` gives the body back, all else does not exist.
fn respond(request: &[u8]) -> Vec<u8> {
    let echoed = (request.len() <= MAX_PAYLOAD).then(|| parse(request)).flatten();
    let (status, body) = match echoed {
        Some(("/echo", body)) => ("200 OK", body),
        Some(_) | None => ("400 Bad Request", &b"unknown path\n"[..]),
    };
    let mut response = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    response.extend_from_slice(body);
    response
}

/// Returns path and body of a raw request.
fn parse(request: &[u8]) -> Option<(&str, &[u8])> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = head.parse(request).ok()? else {
        return None;
    };
    let path = head.path?.split('?').next()?;
    let body = request.get(length..)?;
    let announced = head
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| std::str::from_utf8(header.value).ok()?.trim().parse::<usize>().ok());
    Some((path, announced.map_or(&[][..], |length| body.get(..length).unwrap_or(body))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(request: &[u8]) -> String {
        String::from_utf8(respond(request)).unwrap()
    }

    #[test]
    fn echo_gives_the_body_back() {
        let answer = text(b"POST /echo?x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
        assert_eq!(answer, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        let answer = text(b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"));
    }

    #[test]
    fn everything_else_is_unknown() {
        for request in [&b"GET /debug/prefs HTTP/1.1\r\nHost: a\r\n\r\n"[..], b"", b"\0\0", b"GET /echo HTTP/1.1\r\n"] {
            assert!(text(request).starts_with("HTTP/1.1 400"));
        }
        let long = [&b"POST /echo HTTP/1.1\r\nContent-Length: 70000\r\n\r\n"[..], &vec![b'x'; 70_000]].concat();
        assert!(text(&long).starts_with("HTTP/1.1 400"));
    }
}
