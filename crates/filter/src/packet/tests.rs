use super::*;
use crate::testing::*;
use proptest::prelude::*;

const V4: (&str, &str) = ("100.64.0.1", "100.64.0.2");
const V6: (&str, &str) = ("fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2");

fn parse(bytes: &[u8]) -> Result<Packet<'_>, PacketError> {
    Packet::parse(bytes)
}

#[test]
fn transport_headers_are_read_in_both_families() {
    for (from, to) in [V4, V6] {
        let bytes = tcp((from, 40_000), (to, 22), SYN);
        let packet = parse(&bytes).unwrap();
        let ports = Ports { source: 40_000, destination: 22 };
        assert_eq!(packet.body(), Body::Tcp { ports, flags: TcpFlags(SYN) });
        assert_eq!((packet.source(), packet.destination(), packet.protocol()), (ip(from), ip(to), 6));
        assert_eq!(packet.fragment(), None);
        assert_eq!(packet.bytes(), bytes);
        assert_eq!(packet.transport(), tcp_header(40_000, 22, SYN));
        assert_eq!(parse(&udp((from, 40_000), (to, 22))).unwrap().body(), Body::Udp { ports });
        assert_eq!(parse(&sctp((from, 40_000), (to, 22))).unwrap().body(), Body::Sctp { ports });
        assert_eq!(parse(&echo_request(from, to, 7)).unwrap().body(), Body::Icmp(Icmp::EchoRequest { id: 7 }));
        assert_eq!(parse(&echo_reply(from, to, 7)).unwrap().body(), Body::Icmp(Icmp::EchoReply { id: 7 }));
        assert_eq!(parse(&packet_of(from, to, 47, &[])).unwrap().body(), Body::Other);
        assert_eq!(parse(&packet_of(from, to, 99, b"p")).unwrap().body(), Body::Tsmp);
    }
}

fn packet_of(from: &str, to: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    crate::testing::packet(ip(from), ip(to), protocol, None, payload)
}

fn piece_of(from: &str, to: &str, protocol: u8, piece: Piece, payload: &[u8]) -> Vec<u8> {
    crate::testing::packet(ip(from), ip(to), protocol, Some(piece), payload)
}

#[test]
fn icmp_errors_and_the_rest_are_told_apart() {
    let kinds = |from: &'static str, to: &'static str| {
        (0..=255_u8).filter(move |&kind| {
            let bytes = icmp_packet(from, to, kind, 1, &[0; 4]);
            let Body::Icmp(what) = parse(&bytes).unwrap().body() else { panic!() };
            what == Icmp::Error
        })
    };
    assert_eq!(kinds(V4.0, V4.1).collect::<Vec<_>>(), [3, 11, 12]);
    assert_eq!(kinds(V6.0, V6.1).collect::<Vec<_>>(), [1, 2, 3, 4]);
    // An echo with a code is no echo; redirects, advertisements and the like are "other".
    assert_eq!(parse(&icmp_packet(V4.0, V4.1, 8, 1, &[0; 4])).unwrap().body(), Body::Icmp(Icmp::Other));
    assert_eq!(parse(&icmp_packet(V4.0, V4.1, 5, 0, &[0; 4])).unwrap().body(), Body::Icmp(Icmp::Other));
    assert_eq!(parse(&icmp_packet(V6.0, V6.1, 134, 0, &[0; 4])).unwrap().body(), Body::Icmp(Icmp::Other));
}

#[test]
fn padding_behind_the_packet_is_left_away() {
    for (from, to) in [V4, V6] {
        let bytes = udp((from, 1), (to, 2));
        let mut padded = bytes.clone();
        padded.extend([0; 15]);
        assert_eq!(parse(&padded).unwrap().bytes(), bytes);
    }
}

#[test]
fn bytes_that_are_no_packet_are_named() {
    assert_eq!(parse(&[]), Err(PacketError::TooShort));
    assert_eq!(parse(&[0x45; 19]), Err(PacketError::TooShort));
    assert_eq!(parse(&[0x60; 39]), Err(PacketError::TooShort));
    assert_eq!(parse(&[0x55; 60]), Err(PacketError::Version(5)));
    let good = udp((V4.0, 1), (V4.1, 2));
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    assert_eq!(parse(&good[..27]), Err(PacketError::Length), "shorter than its length field");
    assert_eq!(parse(&with(3, 19)), Err(PacketError::Length), "length field shorter than the header");
    assert_eq!(parse(&with(0, 0x44)), Err(PacketError::Length), "header shorter than a header");
    assert_eq!(parse(&with(0, 0x4f)), Err(PacketError::Length), "header longer than the packet");
    assert_eq!(parse(&with(0, 0x46)), Err(PacketError::Transport), "options eat half of the UDP header");
    assert_eq!(parse(&with(9, 0)), Err(PacketError::Protocol(0)));
    assert_eq!(parse(&with(9, 255)), Err(PacketError::Protocol(255)));
    assert_eq!(parse(&with(9, 58)), Err(PacketError::Protocol(58)), "ICMPv6 in IPv4");
    let good = udp((V6.0, 1), (V6.1, 2));
    assert_eq!(parse(&good[..47]), Err(PacketError::Length));
    let mut hop_by_hop = good.clone();
    hop_by_hop[6] = 0;
    assert_eq!(parse(&hop_by_hop), Err(PacketError::Protocol(0)));
}

#[test]
fn transport_headers_must_be_whole() {
    for (from, to) in [V4, V6] {
        let ping = if ip(from).is_ipv4() { 1 } else { 58 };
        for (protocol, len) in [(6, 20), (17, 8), (132, 12), (ping, 4)] {
            // 0xff is an ICMP type without more header than the first four bytes.
            let payload = vec![0xff; len];
            assert!(parse(&packet_of(from, to, protocol, &payload)).is_ok(), "{protocol}");
            let short = packet_of(from, to, protocol, &payload[1..]);
            assert_eq!(parse(&short), Err(PacketError::Transport), "{protocol}");
            let first = Piece { id: 1, offset: 0, more: true };
            let short = piece_of(from, to, protocol, first, &payload[1..]);
            assert_eq!(parse(&short), Err(PacketError::Transport), "first fragment, {protocol}");
        }
        let request = if ip(from).is_ipv4() { 8 } else { 128 };
        let echo = packet_of(from, to, ping, &[request, 0, 0, 0, 0, 1, 0]);
        assert_eq!(parse(&echo), Err(PacketError::Transport), "an echo without its number");
    }
}

#[test]
fn fragments_are_first_later_or_refused() {
    for (from, to) in [V4, V6] {
        let udp = udp_header(1, 2);
        let first = piece_of(from, to, 17, Piece { id: 9, offset: 0, more: true }, &udp);
        let first = parse(&first).unwrap();
        assert_eq!(first.fragment(), Some(Fragment { id: 9, is_first: true }));
        assert_eq!(first.body(), Body::Udp { ports: Ports { source: 1, destination: 2 } });
        assert_eq!(first.protocol(), 17);
        for offset in 1..10 {
            let near = piece_of(from, to, 17, Piece { id: 9, offset, more: true }, &udp);
            assert_eq!(parse(&near), Err(PacketError::Overlap), "{offset}");
        }
        for more in [true, false] {
            let later = piece_of(from, to, 17, Piece { id: 9, offset: 10, more }, b"data");
            let later = parse(&later).unwrap();
            assert_eq!(later.fragment(), Some(Fragment { id: 9, is_first: false }));
            assert_eq!((later.body(), later.protocol(), later.transport()), (Body::LaterFragment, 17, &b"data"[..]));
        }
        let control = piece_of(from, to, 99, Piece { id: 9, offset: 0, more: true }, b"p12345678");
        assert_eq!(parse(&control), Err(PacketError::FragmentedControl));
    }
    // A Fragment header on a packet that is whole ("atomic fragment") changes nothing.
    let atomic = piece_of(V6.0, V6.1, 17, Piece { id: 9, offset: 0, more: false }, &udp_header(1, 2));
    let atomic = parse(&atomic).unwrap();
    assert_eq!(atomic.fragment(), None);
    assert_eq!(atomic.body(), Body::Udp { ports: Ports { source: 1, destination: 2 } });
}

#[test]
fn only_a_leading_fragment_header_is_looked_through() {
    for extension in [43, 51, 60, 135] {
        let mut payload = vec![17, 0, 0, 0, 0, 0, 0, 0];
        payload.extend(udp_header(1, 2));
        assert_eq!(parse(&packet_of(V6.0, V6.1, extension, &payload)).unwrap().body(), Body::Other);
    }
    let doubled = piece_of(V6.0, V6.1, 44, Piece { id: 1, offset: 0, more: false }, &[17, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(parse(&doubled).unwrap().body(), Body::Other);
}

#[test]
fn quoted_packets_are_read_from_eight_bytes() {
    for (from, to) in [V4, V6] {
        let v6 = ip(from).is_ipv6();
        for sent in [tcp((from, 5), (to, 80), ACK), udp((from, 5), (to, 80)), sctp((from, 5), (to, 80))] {
            let error = unreachable(to, from, &sent);
            let found = quoted(v6, parse(&error).unwrap().transport()).unwrap();
            assert_eq!((found.source, found.destination), (ip(from), ip(to)));
            assert_eq!(found.ports, Ports { source: 5, destination: 80 });
            assert_eq!(found.protocol, parse(&sent).unwrap().protocol());
        }
        let error = unreachable(to, from, &echo_request(from, to, 3));
        let found = quoted(v6, parse(&error).unwrap().transport()).unwrap();
        assert_eq!(found.ports, Ports { source: 3, destination: 0 });
        for unusable in [
            echo_reply(from, to, 3),
            packet_of(from, to, 47, &[0; 8]),
            piece_of(from, to, 17, Piece { id: 1, offset: 10, more: false }, &[0; 8]),
            udp((from, 5), (to, 80))[..20].to_vec(),
        ] {
            let error = unreachable(to, from, &unusable);
            assert_eq!(quoted(v6, parse(&error).unwrap().transport()), None);
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), version in 0_u8..4) {
        if let Some(first) = bytes.first_mut() {
            *first = match version { 0 => 0x45, 1 => 0x60, 2 => 0x40 | *first & 15, _ => *first };
        }
        if let Ok(packet) = parse(&bytes) {
            prop_assert!(packet.bytes().len() <= bytes.len());
            prop_assert_eq!(parse(packet.bytes()), Ok(packet));
            let _ = quoted(packet.source().is_ipv6(), packet.transport());
            let _ = crate::tsmp::Message::parse(&packet);
        }
    }

    #[test]
    fn every_truncation_and_bit_flip_is_survived(
        cut in 0_usize..80, at in 0_usize..80, bit in 0_u8..8, v6 in any::<bool>(), offset in 0_u16..12,
    ) {
        let (from, to) = if v6 { V6 } else { V4 };
        let mut bytes = piece_of(from, to, 6, Piece { id: 1, offset, more: true }, &tcp_header(1, 2, SYN));
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << bit;
        }
        bytes.truncate(cut);
        let _ = parse(&bytes);
    }
}
