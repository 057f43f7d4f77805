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

/// What [`Packet`] says of `b`, read a second time by byte numbers from the two header formats.
type Reading = (IpAddr, IpAddr, u8, Option<Fragment>, Body, usize);

fn read_again(b: &[u8]) -> Option<Reading> {
    let two = |at: usize| usize::from(b[at]) * 256 + usize::from(b[at + 1]);
    let octets = |at: usize, count: usize| b[at..at + count].to_vec();
    let v6 = match b.first()? / 16 {
        4 if b.len() >= 20 => false,
        6 if b.len() >= 40 => true,
        _ => return None,
    };
    let (from, to): (IpAddr, IpAddr) = if v6 {
        (<[u8; 16]>::try_from(octets(8, 16)).unwrap().into(), <[u8; 16]>::try_from(octets(24, 16)).unwrap().into())
    } else {
        (<[u8; 4]>::try_from(octets(12, 4)).unwrap().into(), <[u8; 4]>::try_from(octets(16, 4)).unwrap().into())
    };
    let end = if v6 { 40 + two(4) } else { two(2) };
    let mut at = if v6 { 40 } else { usize::from(b[0] % 16) * 4 };
    if end > b.len() || at < 20 || at > end {
        return None;
    }
    let mut protocol = if v6 { b[6] } else { b[9] };
    let (mut offset, mut more, mut id) = (0, false, 0);
    if !v6 {
        (offset, more, id) = (two(6) % 8192 * 8, two(6) & 0x2000 != 0, two(4));
    } else if protocol == 44 {
        if end < 48 {
            return None;
        }
        protocol = b[40];
        (offset, more, id) = (two(42) / 8 * 8, b[43] % 2 == 1, two(44) * 65_536 + two(46));
        at = 48;
    }
    let in_pieces = offset > 0 || more;
    let meaningless = [0, 255, if v6 { 1 } else { 58 }].contains(&protocol);
    if meaningless || in_pieces && protocol == 99 || (1..80).contains(&offset) {
        return None;
    }
    let fragment = in_pieces.then(|| Fragment { id: u32::try_from(id).unwrap(), is_first: offset == 0 });
    let whole = |length: usize| (end - at >= length).then_some(());
    let ports = || Ports { source: u16::try_from(two(at)).unwrap(), destination: u16::try_from(two(at + 2)).unwrap() };
    let body = match protocol {
        _ if offset > 0 => Body::LaterFragment,
        6 => {
            whole(20)?;
            Body::Tcp { ports: ports(), flags: TcpFlags(b[at + 13]) }
        }
        17 => {
            whole(8)?;
            Body::Udp { ports: ports() }
        }
        132 => {
            whole(12)?;
            Body::Sctp { ports: ports() }
        }
        1 | 58 => {
            whole(4)?;
            let echo = |make: fn(u16) -> Icmp| whole(8).map(|()| make(u16::try_from(two(at + 4)).unwrap()));
            Body::Icmp(match (protocol, b[at], b[at + 1]) {
                (1, 8, 0) | (58, 128, 0) => echo(|id| Icmp::EchoRequest { id })?,
                (1, 0, 0) | (58, 129, 0) => echo(|id| Icmp::EchoReply { id })?,
                (1, 3 | 11 | 12, _) | (58, 1..=4, _) => Icmp::Error,
                _ => Icmp::Other,
            })
        }
        99 => Body::Tsmp,
        _ => Body::Other,
    };
    Some((from, to, protocol, fragment, body, end))
}

/// Bytes that are nearly packets: each field that decides has a good chance of a value that matters.
fn nearly_a_packet() -> impl Strategy<Value = Vec<u8>> {
    use proptest::sample::select;
    let protocol = || select(vec![0_u8, 1, 6, 17, 44, 44, 47, 58, 60, 99, 132, 255]);
    let offsets = select(vec![0_u16, 0, 0, 1, 9, 10, 11, 0x1fff]);
    let heads = (select(vec![0x45_u8, 0x45, 0x46, 0x4f, 0x44, 0x60, 0x60, 0x60, 0x55]), protocol(), protocol());
    let kind = select(vec![0_u8, 1, 3, 4, 5, 8, 11, 12, 128, 129, 134]);
    (proptest::collection::vec(any::<u8>(), 0..100), heads, (offsets, any::<bool>()), -2_i32..3, (kind, 0_u8..2))
        .prop_map(|(mut bytes, (first, protocol, inner), (offset, more), excess, (kind, code))| {
            let v6 = first >> 4 == 6;
            let length = i32::try_from(bytes.len()).unwrap() + excess - if v6 { 40 } else { 0 };
            let [high, low] = u16::try_from(length).unwrap_or(0).to_be_bytes();
            let piece = if v6 { offset << 3 | u16::from(more) } else { offset | u16::from(more) << 13 };
            let [piece_high, piece_low] = piece.to_be_bytes();
            let start = if v6 { if protocol == 44 { 48 } else { 40 } } else { usize::from(first & 15) * 4 };
            let fields: &[(usize, u8)] = if v6 {
                &[(0, first), (4, high), (5, low), (6, protocol)]
            } else {
                &[(0, first), (2, high), (3, low), (6, piece_high), (7, piece_low), (9, protocol)]
            };
            let behind = [(40, inner), (42, piece_high), (43, piece_low)];
            let behind = if v6 && protocol == 44 { &behind[..] } else { &[] };
            for &(at, value) in fields.iter().chain(behind).chain(&[(start, kind), (start + 1, code)]) {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            bytes
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn packets_are_read_as_by_byte_numbers(bytes in nearly_a_packet()) {
        let found = parse(&bytes).ok().map(|packet| (
            packet.source(), packet.destination(), packet.protocol(), packet.fragment(), packet.body(),
            packet.bytes().len(),
        ));
        prop_assert_eq!(found, read_again(&bytes), "{:?}", parse(&bytes));
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
