//! Addresses of IPv4 hosts at sites whose networks may clash, and the packets to and from them.
//!
//! A host is `fd7a:115c:a1e0:b1a:<site>:<IPv4 address>`, 32 bits each. The router of the site makes IPv4 packets of what goes there,
//! and IPv6 packets of what comes back. Done are whole TCP, UDP and echo packets; there is nothing to be said of others by the
//! other family's means that a sender would wait for, except that a packet is too large, and those to hosts may be cut.
//!
//! Source: Tailscale `net/tsaddr` (`MapVia`, `UnmapVia`); RFC 7915 for the headers.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::packet::{Body, Icmp, PROTO_ICMP4, PROTO_ICMP6, PROTO_TCP, PROTO_UDP, Packet};
use crate::segments::Sum;

/// Addresses of all hosts at all sites.
pub const RANGE: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0xb1a, 0, 0, 0, 0), 64);
/// Addresses that stand for peers towards the hosts of a site, inside its router alone: they are masqueraded. Nodes never have
/// them, and they are routed to the tunnel as those of nodes are.
pub const POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 115, 92, 0), 23);
/// Bytes by which an IPv6 packet is longer than the same in IPv4.
pub const GROWTH: usize = V6 - V4;

/// Bytes of the headers.
const V4: usize = 20;
const V6: usize = 40;

/// Returns the address of a host at a site.
#[must_use]
pub fn address(site: u32, host: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(RANGE.addr().to_bits() | u128::from(site) << 32 | u128::from(host.to_bits()))
}

/// Returns the site and the host of an address; `None` if it is none of a host at a site.
#[must_use]
pub fn host(address: Ipv6Addr) -> Option<(u32, Ipv4Addr)> {
    let [.., s0, s1, s2, s3, a, b, c, d] = address.octets();
    RANGE.contains(&address).then(|| (u32::from_be_bytes([s0, s1, s2, s3]), Ipv4Addr::new(a, b, c, d)))
}

/// Returns the addresses of the hosts of a network at a site.
#[must_use]
pub fn network(site: u32, net: Ipv4Net) -> Ipv6Net {
    // At most 96 and 32.
    Ipv6Net::new_assert(address(site, net.network()), 96 + net.prefix_len())
}

/// Returns the site and the network of addresses; `None` if they are not those of a network at one site.
#[must_use]
pub fn site(net: Ipv6Net) -> Option<(u32, Ipv4Net)> {
    let (site, first) = host(net.network())?;
    Some((site, Ipv4Net::new(first, net.prefix_len().checked_sub(96)?).ok()?))
}

/// Tells whether a host may be spoken to for a peer: not the router itself by its loopback, nor all of a link, nor a node.
#[must_use]
pub fn is_host(host: Ipv4Addr) -> bool {
    let [first, second, ..] = host.octets();
    !(host.is_loopback() || host.is_link_local() || host.is_multicast() || first == 0 || first >= 240)
        && !(first == 100 && second & 0xc0 == 64)
}

/// Tells whether a packet can be translated.
#[must_use]
pub fn is_translatable(packet: &Packet<'_>) -> bool {
    let header = if packet.source().is_ipv4() { V4 } else { V6 };
    let is_plain = packet.bytes().len().checked_sub(packet.transport().len()) == Some(header);
    let is_known = matches!(
        packet.body(),
        Body::Tcp { .. } | Body::Udp { .. } | Body::Icmp(Icmp::EchoRequest { .. } | Icmp::EchoReply { .. })
    );
    is_plain && is_known && packet.fragment().is_none()
}

/// Makes an IPv4 packet of one that [`is_translatable`]: it lies [`GROWTH`] bytes behind the start of `packet` then. `id` must
/// be another for each packet, for it may be cut on its way. `None` if it cannot be done.
pub fn to_v4(packet: &mut [u8], source: Ipv4Addr, id: u16) -> Option<()> {
    let (header, body) = packet.split_first_chunk_mut::<V6>()?;
    let [first, second, _, _, _, _, next, hops, addresses @ ..] = *header;
    let (_, host) = host(Ipv6Addr::from(*addresses.last_chunk::<16>()?))?;
    let length = u16::try_from(V4 + body.len()).ok()?;
    let ends = [source.octets(), host.octets()].concat();
    let protocol = translate(body, next, &addresses, &ends, [PROTO_ICMP6, PROTO_ICMP4], [(128, 8), (129, 0)])?;
    let [len0, len1] = length.to_be_bytes();
    let [id0, id1] = id.to_be_bytes();
    let mut made = [0_u8; V4];
    made.get_mut(..10)?.copy_from_slice(&[0x45, first << 4 | second >> 4, len0, len1, id0, id1, 0, 0, hops, protocol]);
    made.get_mut(12..)?.copy_from_slice(&ends);
    let sum = Sum::default().add(&made).finish();
    made.get_mut(10..12)?.copy_from_slice(&sum);
    header.get_mut(GROWTH..)?.copy_from_slice(&made);
    Some(())
}

/// Makes an IPv6 packet of one that [`is_translatable`] and lies [`GROWTH`] bytes behind the start of `room`, which ends with
/// it. `None` if it cannot be done.
pub fn to_v6(room: &mut [u8], source: Ipv6Addr, destination: Ipv6Addr) -> Option<()> {
    let (header, body) = room.split_first_chunk_mut::<V6>()?;
    let [0x45, class, _, _, _, _, _, _, hops, protocol, _, _, addresses @ ..] = *header.last_chunk::<V4>()? else {
        return None;
    };
    let ends = [source.octets(), destination.octets()].concat();
    let next = translate(body, protocol, &addresses, &ends, [PROTO_ICMP4, PROTO_ICMP6], [(8, 128), (0, 129)])?;
    let [len0, len1] = u16::try_from(body.len()).ok()?.to_be_bytes();
    header.get_mut(..8)?.copy_from_slice(&[0x60 | class >> 4, class << 4, 0, 0, len0, len1, next, hops]);
    header.get_mut(8..)?.copy_from_slice(&ends);
    Some(())
}

/// Writes the transport header for other addresses; returns the protocol's number, which is another for ICMP.
fn translate(body: &mut [u8], protocol: u8, old: &[u8], new: &[u8], icmp: [u8; 2], kinds: [(u8, u8); 2]) -> Option<u8> {
    let length = body.len();
    let pseudo = |addresses: &[u8], protocol: u8| match addresses.len() {
        // RFC 8200, section 8.1: IPv6 covers the length in 32 bits, of which half are 0, and ICMP as the others.
        32 => Sum::default().add(addresses).add_length(length).add_word(protocol.into()),
        _ if protocol == PROTO_ICMP4 => Sum::default(),
        _ => Sum::default().add(addresses).add_length(length).add_word(protocol.into()),
    };
    let (place, becomes) = match protocol {
        PROTO_TCP => (16, protocol),
        PROTO_UDP => (6, protocol),
        _ if protocol == icmp[0] => (2, icmp[1]),
        _ => return None,
    };
    let checksum: [u8; 2] = *body.get(place..)?.first_chunk()?;
    let mut before = pseudo(old, protocol);
    let mut after = pseudo(new, becomes);
    if protocol == icmp[0] {
        let kind = body.first_mut()?;
        let (_, other) = kinds.into_iter().find(|(from, _)| from == kind)?;
        before = before.add(&[*kind, 0]);
        *kind = other;
        after = after.add(&[other, 0]);
    }
    let sum = if protocol == PROTO_UDP && checksum == [0, 0] {
        // IPv4 may go without one.
        after.add(body)
    } else {
        // RFC 1624, equation 3: the complements of what goes, and what comes. The sum over a sound packet is all ones, so that
        // an unsound one stays so.
        after.add(&checksum.map(|byte| !byte)).add(&before.folded().map(|byte| !byte))
    };
    let sum = if protocol == PROTO_UDP { sum.finish_udp() } else { sum.finish() };
    body.get_mut(place..)?.first_chunk_mut::<2>()?.copy_from_slice(&sum);
    Some(becomes)
}

/// Returns the head of an IPv4 packet as it is in IPv6, up to its ports: enough to be judged. `None` if it cannot be translated.
#[must_use]
pub fn head(packet: &Packet<'_>, source: Ipv6Addr, destination: Ipv6Addr) -> Option<Vec<u8>> {
    /// The longest TCP header, and a bit.
    const TRANSPORT: usize = 64;
    if !is_translatable(packet) {
        return None;
    }
    let bytes = packet.bytes().get(..packet.bytes().len().min(V4 + TRANSPORT))?;
    let mut room = vec![0; GROWTH];
    room.extend(bytes);
    to_v6(&mut room, source, destination)?;
    Some(room)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v6(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    /// Source: the example of Tailscale's documentation of 4via6.
    #[test]
    fn addresses_are_those_of_official_clients() {
        assert_eq!(address(7, Ipv4Addr::new(10, 1, 1, 16)), v6("fd7a:115c:a1e0:b1a:0:7:a01:110"));
        let net: Ipv6Net = "fd7a:115c:a1e0:b1a:0:7:a01:100/120".parse().unwrap();
        assert_eq!(network(7, "10.1.1.0/24".parse().unwrap()), net);
        assert_eq!(site(net), Some((7, "10.1.1.0/24".parse().unwrap())));
        assert_eq!(site("fd7a:115c:a1e0:b1a::/64".parse().unwrap()), None, "that is all sites");
        assert_eq!(site("fd7a:115c:a1e0:b1b::/120".parse().unwrap()), None);
    }

    #[test]
    fn only_hosts_are_spoken_to() {
        for host in ["10.0.0.1", "192.168.1.255", "8.8.8.8", "100.63.0.1", "100.128.0.1"] {
            assert!(is_host(host.parse().unwrap()), "{host}");
        }
        for none in
            ["127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "255.255.255.255", "100.64.0.1", "100.115.92.1"]
        {
            assert!(!is_host(none.parse().unwrap()), "{none}");
        }
    }

    /// A packet of IPv6 with a sound checksum.
    fn packet(protocol: u8, from: Ipv6Addr, to: Ipv6Addr, ports: [u8; 4], data: &[u8]) -> Vec<u8> {
        let (mut body, place) = match protocol {
            PROTO_TCP => ([&ports[..], &[0; 8], &[0x50, 0x10, 1, 0, 0, 0, 0, 0]].concat(), 16),
            PROTO_UDP => {
                let length = u16::try_from(8 + data.len()).unwrap().to_be_bytes();
                ([&ports[..], &length, &[0, 0]].concat(), 6)
            }
            _ => ([&[128 + (ports[0] & 1), 0, 0, 0], &ports[..]].concat(), 2),
        };
        body.extend(data);
        let sum = Sum::default().add(&from.octets()).add(&to.octets()).add_length(body.len()).add_word(protocol.into());
        let sum = sum.add(&body).finish_udp();
        body[place..place + 2].copy_from_slice(&sum);
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&[0x6b, 0xc0, 0, 0, length[0], length[1], protocol, 63], &from.octets()[..], &to.octets(), &body].concat()
    }

    fn is_sound(packet: &Packet<'_>) -> bool {
        let bytes = packet.bytes();
        let (addresses, header) = if packet.source().is_ipv4() { (&bytes[12..20], 20) } else { (&bytes[8..40], 40) };
        let is_bare = packet.protocol() == PROTO_ICMP4;
        let pseudo = Sum::default().add(addresses).add_length(bytes.len() - header).add_word(packet.protocol().into());
        let sum = if is_bare { Sum::default() } else { pseudo };
        sum.add(packet.transport()).is_sound() && (header == 40 || Sum::default().add(&bytes[..20]).is_sound())
    }

    proptest! {
        #[test]
        fn packets_go_there_and_come_back(
            which in 0..3_usize,
            peer: [u8; 16],
            site: u32,
            host: [u8; 4],
            ports: [u8; 4],
            stand_in: [u8; 4],
            data in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let protocol = [PROTO_TCP, PROTO_UDP, PROTO_ICMP6][which];
            let (peer, to) = (Ipv6Addr::from(peer), address(site, host.into()));
            let whole = packet(protocol, peer, to, ports, &data);
            prop_assert!(is_translatable(&Packet::parse(&whole).unwrap()));
            let mut bytes = whole.clone();
            prop_assert_eq!(to_v4(&mut bytes, stand_in.into(), 77), Some(()));
            let four = Packet::parse(&bytes[GROWTH..]).unwrap();
            prop_assert!(is_sound(&four) && is_translatable(&four));
            prop_assert_eq!((four.source(), four.destination()), (Ipv4Addr::from(stand_in).into(), Ipv4Addr::from(host).into()));
            let head = head(&four, peer, to).unwrap();
            // As it was, but for the label of the flow, which was 0: the same addresses lead the same way.
            prop_assert_eq!(to_v6(&mut bytes, peer, to), Some(()));
            prop_assert_eq!(&bytes, &whole);
            let (head, six) = (Packet::parse(&head).unwrap(), Packet::parse(&whole).unwrap());
            prop_assert_eq!((head.source(), head.destination(), head.body()), (six.source(), six.destination(), six.body()));
        }

        /// What was not sound stays so: a router must not make good what the line spoilt.
        #[test]
        fn what_is_spoilt_stays_spoilt(peer: [u8; 16], data in prop::collection::vec(any::<u8>(), 1..50), bit in 0..8_u8) {
            let mut bytes = packet(PROTO_TCP, peer.into(), address(1, [10, 0, 0, 1].into()), [1, 2, 3, 4], &data);
            *bytes.last_mut().unwrap() ^= 1 << bit;
            to_v4(&mut bytes, Ipv4Addr::new(100, 115, 92, 1), 1).unwrap();
            prop_assert!(!is_sound(&Packet::parse(&bytes[GROWTH..]).unwrap()));
        }

        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..120), start in 0..120_usize) {
            let start = start.min(bytes.len());
            let _ = to_v4(&mut bytes[start..], Ipv4Addr::new(100, 115, 92, 1), 1);
            let _ = to_v6(&mut bytes[..start], Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
            let _ = Packet::parse(&bytes).ok().and_then(|packet| head(&packet, Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST));
        }
    }

    #[test]
    fn udp_without_a_checksum_gets_one() {
        let (peer, to) = (v6("fd7a::1"), address(7, Ipv4Addr::new(10, 0, 0, 1)));
        let mut bytes = packet(PROTO_UDP, peer, to, [0, 53, 1, 2], b"hello");
        to_v4(&mut bytes, Ipv4Addr::new(100, 115, 92, 1), 1).unwrap();
        bytes[40 + 6..40 + 8].copy_from_slice(&[0, 0]);
        to_v6(&mut bytes, to, peer).unwrap();
        assert!(is_sound(&Packet::parse(&bytes).unwrap()));
    }
}
