//! Mapping ports: the answers of gateways.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use warren_path::{MapTarget, PortMapper};

use crate::input::Input;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
/// Longest story.
const STEPS_MAX: usize = 64;
/// Requests that may come of one story: each answer and each deadline causes a few.
const REQUESTS_MAX: usize = STEPS_MAX * 32;

/// A gateway says what the input holds: in datagrams, in HTTP responses, or nothing for a while. Nobody else is asked, each
/// request is one request, and what comes of it is a port that can be reached.
pub fn gateway(data: &[u8]) {
    #[expect(clippy::disallowed_methods, reason = "an arbitrary start, moved by hand from here")]
    let mut now = Instant::now() + Duration::from_secs(100_000);
    let mut input = Input::new(data);
    let mut mapper = PortMapper::new([5; 32]);
    let target = MapTarget { gateway: GATEWAY, own: Ipv4Addr::new(192, 168, 1, 20), port: 41_641, upnp: true };
    mapper.set_target(Some(target), now);
    let mut requests = 0;
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            return;
        }
        match input.below(6) {
            0 => mapper.handle_datagram(SocketAddrV4::new(GATEWAY, 5351), input.bytes(), now),
            1 => mapper.handle_datagram(SocketAddrV4::new(GATEWAY, 1900), input.bytes(), now),
            2 => mapper.handle_response(Some(input.bytes()), now),
            3 => {
                let status = input.choose(&["200", "500"]);
                let tag = input.choose(&["NewReservedPort", "NewExternalIPAddress", "errorCode", "serviceType"]);
                let value = String::from_utf8_lossy(input.bytes()).into_owned();
                let response = format!("HTTP/1.1 {status} OK\r\n\r\n<s><{tag}>{value}</{tag}></s>");
                mapper.handle_response(Some(response.as_bytes()), now);
            }
            4 => mapper.handle_response(None, now),
            _ => {
                now += Duration::from_millis(u64::from(input.byte()).pow(3));
                mapper.handle_timeout(now);
            }
        }
        while let Some(transmit) = mapper.poll_transmit() {
            assert!(*transmit.to.ip() == GATEWAY || transmit.to.port() == 1900);
            assert!(transmit.bytes.len() <= 200);
        }
        while let Some(request) = mapper.poll_request() {
            requests += 1;
            assert!(requests <= REQUESTS_MAX, "a loop");
            assert_eq!(*request.to.ip(), GATEWAY);
            let text = String::from_utf8(request.bytes).expect("requests are text");
            assert_eq!(text.matches("\r\n\r\n").count(), 1, "{text}");
        }
        if let Some(mapping) = mapper.mapping() {
            assert!(mapping.port() != 0 && !mapping.ip().is_unspecified() && !mapping.ip().is_loopback());
        }
    }
}
