//! Questions that tell whether a router leads into a network: an echo request to a host there, and a TSMP ping to the router
//! itself. Their answers are for the decision task alone.
//!
//! | bytes | in both |
//! |---|---|
//! | 0–5 | a secret of this process |
//! | 6–7 | number of the question |

use std::net::IpAddr;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use warren_filter::tsmp::Message;
use warren_filter::{Body, Icmp, Packet};
use warren_path::Answerer;

use crate::engine::shared::Question;

/// Hop limit of the packets.
const HOP_LIMIT: u8 = 64;

/// Makes questions, and knows the answers to them.
#[derive(Debug)]
pub(super) struct Questions {
    secret: [u8; 6],
}

impl Questions {
    /// Makes a secret of a random and secret number, which the secret does not tell: routers see it, and the number is what
    /// keeps the firewall's tables from being filled on purpose.
    pub(super) fn new(seed: u64) -> Self {
        Self { secret: StdRng::seed_from_u64(seed).random() }
    }

    /// Returns the packets of a question.
    pub(super) fn packets(&self, question: &Question) -> impl Iterator<Item = Vec<u8>> {
        let data = self.data(question.number);
        let echo = question.host.and_then(|(from, to)| echo_request(from, to, self.id(), question.number, data));
        let ping = question.router.and_then(|(from, to)| Message::Ping { data }.packet(from, to));
        echo.into_iter().chain(ping)
    }

    /// Tells whether a packet answers a question, which one, and who does.
    pub(super) fn answered(&self, packet: &Packet<'_>) -> Option<(u16, Answerer)> {
        let (data, answerer) = match packet.body() {
            Body::Icmp(Icmp::EchoReply { id }) if id == self.id() => {
                (*packet.transport().get(8..)?.first_chunk()?, Answerer::Host)
            }
            Body::Tsmp => match Message::parse(packet)? {
                Message::Pong { data, .. } => (data, Answerer::Router),
                Message::Reject(_) | Message::Ping { .. } | Message::DiscoKey(_) => return None,
            },
            Body::Icmp(_)
            | Body::Tcp { .. }
            | Body::Udp { .. }
            | Body::Sctp { .. }
            | Body::Other
            | Body::LaterFragment => {
                return None;
            }
        };
        let [.., high, low] = data;
        let number = u16::from_be_bytes([high, low]);
        (data == self.data(number)).then_some((number, answerer))
    }

    fn data(&self, number: u16) -> [u8; 8] {
        let [a, b, c, d, e, f] = self.secret;
        let [high, low] = number.to_be_bytes();
        [a, b, c, d, e, f, high, low]
    }

    fn id(&self) -> u16 {
        let [high, low, ..] = self.secret;
        u16::from_be_bytes([high, low])
    }
}

/// Makes an echo request (RFC 792, RFC 4443); `None` if the addresses are of different families.
fn echo_request(from: IpAddr, to: IpAddr, id: u16, number: u16, data: [u8; 8]) -> Option<Vec<u8>> {
    let kind = if from.is_ipv4() { 8 } else { 128 };
    let mut body = vec![kind, 0, 0, 0];
    body.extend([id, number].map(u16::to_be_bytes).concat());
    body.extend(data);
    let length = u8::try_from(body.len()).ok()?;
    let mut packet = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0, 0, 20 + length, 0, 0, 0, 0, HOP_LIMIT, 1, 0, 0];
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = checksum(&[&header]);
            header.get_mut(10..12)?.copy_from_slice(&sum);
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, length, 58, HOP_LIMIT];
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    };
    // RFC 4443, section 2.3: IPv6 covers the addresses, the length and the protocol, too.
    let sum = match packet.get(8..40).filter(|_| from.is_ipv6()) {
        Some(addresses) => checksum(&[addresses, &[0, 0, 0, length, 0, 0, 0, 58], &body]),
        None => checksum(&[&body]),
    };
    body.get_mut(2..4)?.copy_from_slice(&sum);
    packet.extend(body);
    Some(packet)
}

/// Computes the Internet checksum (RFC 1071) of parts that each have an even number of bytes.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.as_chunks::<2>().0);
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap_or(0)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn echo_requests_have_right_checksums() {
        for (from, to) in [("100.64.0.1", "10.7.0.9"), ("fd7a:115c:a1e0::1", "fd92::9")] {
            let bytes = echo_request(address(from), address(to), 0x1234, 7, *b"12345678").unwrap();
            let packet = Packet::parse(&bytes).unwrap();
            assert_eq!(packet.body(), Body::Icmp(Icmp::EchoRequest { id: 0x1234 }));
            let transport = packet.transport();
            // A sum over what holds its own complement is zero.
            if packet.source().is_ipv4() {
                assert_eq!((checksum(&[&bytes[..20]]), checksum(&[transport])), ([0, 0], [0, 0]));
            } else {
                assert_eq!(checksum(&[&bytes[8..40], &[0, 0, 0, 16, 0, 0, 0, 58], transport]), [0, 0]);
            }
        }
        assert_eq!(echo_request(address("10.0.0.1"), address("fd92::9"), 1, 1, [0; 8]), None);
    }

    #[test]
    fn only_answers_to_own_questions_are_known() {
        let (questions, others) = (Questions::new(0x1122_3344_5566_7788), Questions::new(0x1122_3344_0000_7788));
        let (here, router) = (address("100.64.0.1"), address("100.64.0.2"));
        let pong = Message::Pong { data: questions.data(0xbeef), peer_api_port: 0 }.packet(router, here).unwrap();
        let pong = Packet::parse(&pong).unwrap();
        assert_eq!(questions.answered(&pong), Some((0xbeef, Answerer::Router)));
        assert_eq!(others.answered(&pong), None);
        let mut reply = echo_request(address("10.7.0.9"), here, questions.id(), 5, questions.data(5)).unwrap();
        assert_eq!(questions.answered(&Packet::parse(&reply).unwrap()), None, "somebody's request");
        reply[20] = 0;
        assert_eq!(questions.answered(&Packet::parse(&reply).unwrap()), Some((5, Answerer::Host)));
        assert_eq!(others.answered(&Packet::parse(&reply).unwrap()), None);
    }
}
