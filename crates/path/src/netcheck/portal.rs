//! Captive portals: networks that answer every HTTP request with a page of their own until somebody logs in.
//!
//! Relays answer a certain request on port 80 with nothing, and repeat a word of ours. Who answers something else stands in
//! between. Who does not answer tells nothing: many networks block.
//!
//! Source: Tailscale `net/captivedetection`.

use std::net::{Ipv4Addr, SocketAddr};

/// The port for plain HTTP.
const PORT: u16 = 80;
/// Most bytes that are looked at of an answer.
pub const MAX_ANSWER: usize = 4096;

/// A relay to ask, over TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortalProbe {
    /// Where to.
    pub server: SocketAddr,
}

impl PortalProbe {
    pub(super) fn new(server: Ipv4Addr) -> Self {
        Self { server: SocketAddr::from((server, PORT)) }
    }

    fn word(&self) -> String {
        format!("ts_{}", self.server.ip())
    }

    /// Returns the request. `unix_seconds` is the time since 1970, so that nobody answers from a cache.
    #[must_use]
    pub fn request(&self, unix_seconds: u64) -> Vec<u8> {
        format!(
            "GET /generate_204?t={unix_seconds} HTTP/1.1\r\nHost: {}\r\nX-Tailscale-Challenge: {}\r\n\
             Cache-Control: no-cache, no-store, must-revalidate, no-transform, max-age=0\r\nConnection: close\r\n\r\n",
            self.server.ip(),
            self.word()
        )
        .into_bytes()
    }

    /// Tells whether somebody else than a relay gave this answer; `None` if it is no whole HTTP answer, which says nothing.
    /// Bytes behind the first [`MAX_ANSWER`] are not looked at.
    #[must_use]
    pub fn is_portal(&self, answer: &[u8]) -> Option<bool> {
        let answer = answer.get(..answer.len().min(MAX_ANSWER))?;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(answer.get(..end)?);
        let mut lines = head.split("\r\n");
        let mut words = lines.next()?.split(' ');
        let status = words.next().filter(|version| version.starts_with("HTTP/1.")).and(words.next())?;
        let is_ours = |line: &str| {
            line.split_once(':').is_some_and(|(name, value)| {
                name.eq_ignore_ascii_case("x-tailscale-response")
                    && value.trim().strip_prefix("response ") == Some(&self.word())
            })
        };
        Some(status != "204" || !lines.any(is_ours))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn probe() -> PortalProbe {
        PortalProbe::new(Ipv4Addr::new(192, 0, 2, 1))
    }

    #[test]
    fn a_relay_repeats_our_word_and_a_portal_does_not() {
        let right = "HTTP/1.1 204 No Content\r\nCache-Control: no-store\r\nx-tailscale-response:  response ts_192.0.2.1\r\n\r\n";
        assert_eq!(probe().is_portal(right.as_bytes()), Some(false));
        for wrong in [
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 204 No Content\r\nX-Tailscale-Response: response ts_192.0.2.2\r\n\r\n",
            "HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\nX-Tailscale-Response: response ts_192.0.2.1\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\n<html>",
            "HTTP/1.1 511 Network Authentication Required\r\n\r\n",
        ] {
            assert_eq!(probe().is_portal(wrong.as_bytes()), Some(true), "{wrong}");
        }
        for nothing in
            ["", "SSH-2.0-x\r\n\r\n", "HTTP/1.1 302 Found\r\nLocation: http://lo", "\r\n\r\n", "HTTP/1.1\r\n\r\n"]
        {
            assert_eq!(probe().is_portal(nothing.as_bytes()), None, "{nothing}");
        }
        let long = [vec![b'a'; MAX_ANSWER], b"\r\n\r\n".to_vec()].concat();
        assert_eq!(probe().is_portal(&long), None);
    }

    #[test]
    fn the_request_carries_the_word() {
        let text = String::from_utf8(probe().request(1_800_000_000)).unwrap();
        assert!(text.starts_with("GET /generate_204?t=1800000000 HTTP/1.1\r\nHost: 192.0.2.1\r\n"), "{text}");
        assert!(text.contains("\r\nX-Tailscale-Challenge: ts_192.0.2.1\r\n") && text.ends_with("\r\n\r\n"), "{text}");
    }

    proptest! {
        #[test]
        fn no_answer_panics(answer in proptest::collection::vec(any::<u8>(), 0..200), head in "HTTP/1.[ 0-9\r\n:a-zA-Z-]{0,80}") {
            let _ = probe().is_portal(&answer);
            let _ = probe().is_portal(&[head.as_bytes(), b"\r\n\r\n"].concat());
        }
    }
}
