//! Makes packets for tests.
//!
//! The fuzz package compiles this file, too; it must not use anything of this crate.

use std::net::IpAddr;

const PROTO_ICMP4: u8 = 1;
const PROTO_TCP: u8 = 6;
const PROTO_UDP: u8 = 17;
const PROTO_FRAGMENT6: u8 = 44;
const PROTO_ICMP6: u8 = 58;
const PROTO_SCTP: u8 = 132;

pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const FIN: u8 = 0x01;
pub(crate) const RST: u8 = 0x04;

/// Where in a fragmented packet a piece stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) id: u16,
    /// In units of 8 bytes.
    pub(crate) offset: u16,
    pub(crate) more: bool,
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Puts an IP header before `payload`.
pub(crate) fn packet(from: IpAddr, to: IpAddr, protocol: u8, piece: Option<Piece>, payload: &[u8]) -> Vec<u8> {
    let mut bytes;
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let piece = piece.unwrap_or(Piece { id: 0, offset: 0, more: false });
            bytes = vec![0x45, 0];
            bytes.extend(u16::try_from(20 + payload.len()).unwrap().to_be_bytes());
            bytes.extend(piece.id.to_be_bytes());
            bytes.extend((piece.offset | u16::from(piece.more) << 13).to_be_bytes());
            bytes.extend([64, protocol, 0, 0]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let extra = if piece.is_some() { 8 } else { 0 };
            bytes = vec![0x60, 0, 0, 0];
            bytes.extend(u16::try_from(extra + payload.len()).unwrap().to_be_bytes());
            bytes.extend([if piece.is_some() { PROTO_FRAGMENT6 } else { protocol }, 64]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
            if let Some(piece) = piece {
                bytes.extend([protocol, 0]);
                bytes.extend((piece.offset << 3 | u16::from(piece.more)).to_be_bytes());
                bytes.extend(u32::from(piece.id).to_be_bytes());
            }
        }
        _ => panic!("one packet, two families"),
    }
    bytes.extend(payload);
    bytes
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    [source.to_be_bytes(), destination.to_be_bytes()].concat()
}

pub(crate) fn tcp_header(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut bytes = ports(source, destination);
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    bytes
}

pub(crate) fn udp_header(source: u16, destination: u16) -> Vec<u8> {
    let mut bytes = ports(source, destination);
    bytes.extend([0, 8, 0, 0]);
    bytes
}

pub(crate) fn tcp(from: (&str, u16), to: (&str, u16), flags: u8) -> Vec<u8> {
    packet(ip(from.0), ip(to.0), PROTO_TCP, None, &tcp_header(from.1, to.1, flags))
}

pub(crate) fn udp(from: (&str, u16), to: (&str, u16)) -> Vec<u8> {
    packet(ip(from.0), ip(to.0), PROTO_UDP, None, &udp_header(from.1, to.1))
}

pub(crate) fn sctp(from: (&str, u16), to: (&str, u16)) -> Vec<u8> {
    let mut payload = ports(from.1, to.1);
    payload.extend([0; 8]);
    packet(ip(from.0), ip(to.0), PROTO_SCTP, None, &payload)
}

/// Makes an ICMP packet of the right family; `body` follows the first four bytes.
pub(crate) fn icmp_packet(from: &str, to: &str, kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    let protocol = if ip(from).is_ipv4() { PROTO_ICMP4 } else { PROTO_ICMP6 };
    let mut payload = vec![kind, code, 0, 0];
    payload.extend(body);
    packet(ip(from), ip(to), protocol, None, &payload)
}

pub(crate) fn echo_request(from: &str, to: &str, id: u16) -> Vec<u8> {
    let kind = if ip(from).is_ipv4() { 8 } else { 128 };
    icmp_packet(from, to, kind, 0, &[id.to_be_bytes(), [0, 1]].concat())
}

pub(crate) fn echo_reply(from: &str, to: &str, id: u16) -> Vec<u8> {
    let kind = if ip(from).is_ipv4() { 0 } else { 129 };
    icmp_packet(from, to, kind, 0, &[id.to_be_bytes(), [0, 1]].concat())
}

/// Makes an "unreachable" that quotes the header and first eight bytes of `quoted`.
pub(crate) fn unreachable(from: &str, to: &str, quoted: &[u8]) -> Vec<u8> {
    let (kind, header_len) = if ip(from).is_ipv4() { (3, 20) } else { (1, 40) };
    let mut body = vec![0; 4];
    body.extend(&quoted[..quoted.len().min(header_len + 8)]);
    icmp_packet(from, to, kind, 1, &body)
}
