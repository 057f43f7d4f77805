//! STUN as far as it is needed: one request, one answer.
//!
//! Source: RFC 8489; Tailscale `net/stun/stun.go` for the fixed form of the request.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of a request.
pub const REQUEST_BYTES: usize = 40;
/// Most bytes of a request that is looked at, so that checksums of long ones cannot keep a server busy.
const REQUEST_MAX_BYTES: usize = 256;

/// Names a request; its answer repeats it.
pub type TransactionId = [u8; 12];

const HEADER_BYTES: usize = 20;
const COOKIE: [u8; 4] = [0x21, 0x12, 0xA4, 0x42];
const SOFTWARE: [u8; 12] = *b"\x80\x22\x00\x08tailnode";
const FINGERPRINT: [u8; 4] = [0x80, 0x28, 0, 4];
const FINGERPRINT_XOR: u32 = 0x5354_554E;
const MAPPED_ADDRESS: u16 = 0x0001;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// What some servers use instead.
const XOR_MAPPED_ADDRESS_OLD: u16 = 0x8020;

/// Says why bytes are not the wanted message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StunError {
    /// Not STUN, or not of this kind.
    #[error("not a STUN message of the wanted kind")]
    Kind,
    /// A length does not fit.
    #[error("STUN message cut short")]
    Truncated,
    /// A request of another program, which stays unanswered.
    #[error("a STUN request of another program")]
    Foreign,
    /// The checksum at the end is wrong.
    #[error("wrong STUN fingerprint")]
    Fingerprint,
    /// An answer without an address.
    #[error("no address in the STUN answer")]
    NoAddress,
}

/// Builds a request.
#[must_use]
pub fn request(id: &TransactionId) -> [u8; REQUEST_BYTES] {
    let mut bytes = Vec::with_capacity(REQUEST_BYTES);
    bytes.extend_from_slice(&[0, 1, 0, 20]);
    bytes.extend_from_slice(&COOKIE);
    bytes.extend_from_slice(id);
    bytes.extend_from_slice(&SOFTWARE);
    let sum = crc32(&bytes) ^ FINGERPRINT_XOR;
    bytes.extend_from_slice(&FINGERPRINT);
    bytes.extend_from_slice(&sum.to_be_bytes());
    bytes.try_into().unwrap_or([0; REQUEST_BYTES])
}

/// Reads a request of a tailnet node; anything else must stay unanswered, so that nobody can reflect off us.
///
/// # Errors
/// [`StunError`] for everything else.
pub fn parse_request(bytes: &[u8]) -> Result<TransactionId, StunError> {
    if bytes.len() > REQUEST_MAX_BYTES {
        return Err(StunError::Foreign);
    }
    let (id, body) = header(bytes, [0, 1])?;
    if body.len() + HEADER_BYTES != bytes.len() {
        return Err(StunError::Foreign);
    }
    let (rest, sum) = bytes.split_last_chunk::<4>().ok_or(StunError::Truncated)?;
    let covered = rest.strip_suffix(&FINGERPRINT).ok_or(StunError::Foreign)?;
    let software = Attributes(body).find(|&(kind, _)| kind == 0x8022).map(|(_, value)| value);
    if software != SOFTWARE.get(4..) {
        return Err(StunError::Foreign);
    }
    if crc32(covered) ^ FINGERPRINT_XOR != u32::from_be_bytes(*sum) {
        return Err(StunError::Fingerprint);
    }
    Ok(id)
}

/// Builds the answer to a request that came from `from`: 32 bytes for IPv4, 44 for IPv6.
#[must_use]
pub fn response(id: &TransactionId, from: SocketAddr) -> Vec<u8> {
    let port = from.port() ^ 0x2112;
    let (family, address) = match from.ip().to_canonical() {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (2, ip.octets().to_vec()),
    };
    // 4 or 16 bytes of address, after 4 of family and port: all far below 256.
    let value = u8::try_from(4 + address.len()).unwrap_or_default();
    let mut bytes = vec![1, 1, 0, value + 4];
    bytes.extend_from_slice(&COOKIE);
    bytes.extend_from_slice(id);
    bytes.extend_from_slice(&XOR_MAPPED_ADDRESS.to_be_bytes());
    bytes.extend_from_slice(&[0, value, 0, family]);
    bytes.extend_from_slice(&port.to_be_bytes());
    bytes.extend(address.iter().zip(COOKIE.iter().chain(id)).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// Reads an answer: which request it is for and the address that the server saw.
///
/// # Errors
/// [`StunError`] for anything else.
pub fn parse_response(bytes: &[u8]) -> Result<(TransactionId, SocketAddr), StunError> {
    let (id, body) = header(bytes, [1, 1])?;
    let mut plain = None;
    for (kind, value) in Attributes(body) {
        match kind {
            XOR_MAPPED_ADDRESS | XOR_MAPPED_ADDRESS_OLD => {
                if let Some(address) = address(value, Some(&id)) {
                    return Ok((id, address));
                }
            }
            MAPPED_ADDRESS => plain = plain.or_else(|| address(value, None)),
            _ => {}
        }
    }
    plain.map(|address| (id, address)).ok_or(StunError::NoAddress)
}

/// Tells whether a datagram is a STUN binding message.
#[must_use]
pub fn is_stun(bytes: &[u8]) -> bool {
    matches!(bytes, [a, 1, _, _, 0x21, 0x12, 0xA4, 0x42, ..] if a & 0xC0 == 0 && bytes.len() >= 20)
}

/// Checks the header and returns the identifier and the attributes.
fn header(bytes: &[u8], kind: [u8; 2]) -> Result<(TransactionId, &[u8]), StunError> {
    let Some((&[a, b, high, low, c0, c1, c2, c3], rest)) = bytes.split_first_chunk() else {
        return Err(StunError::Truncated);
    };
    if [a, b] != kind || [c0, c1, c2, c3] != COOKIE {
        return Err(StunError::Kind);
    }
    let (&id, rest) = rest.split_first_chunk().ok_or(StunError::Truncated)?;
    let body = rest.get(..usize::from(u16::from_be_bytes([high, low]))).ok_or(StunError::Truncated)?;
    Ok((id, body))
}

/// The attributes of a message, each padded to four bytes; ends at the first that does not fit.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[k0, k1, l0, l1], rest) = self.0.split_first_chunk()?;
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        let value = rest.get(..length)?;
        self.0 = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_be_bytes([k0, k1]), value))
    }
}

/// Reads an address attribute, masked with the cookie and `mask` if given.
fn address(value: &[u8], mask: Option<&TransactionId>) -> Option<SocketAddr> {
    let (&[_, family, p0, p1], ip) = value.split_first_chunk()?;
    let port = u16::from_be_bytes([p0, p1]) ^ if mask.is_some() { 0x2112 } else { 0 };
    let mut plain = [0; 16];
    let pad = COOKIE.iter().chain(mask.into_iter().flatten());
    match mask {
        Some(_) => plain.iter_mut().zip(ip).zip(pad).for_each(|((to, from), pad)| *to = from ^ pad),
        None => plain.iter_mut().zip(ip).for_each(|(to, from)| *to = *from),
    }
    let ip = match (family, ip.len()) {
        (1, 4..) => {
            let [a, b, c, d, ..] = plain;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        // A server on a dual-stack socket may report an IPv4 client as a mapped IPv6 address.
        (2, 16..) => IpAddr::V6(Ipv6Addr::from(plain)).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// CRC-32 of IEEE 802.3, bit by bit: messages are short and rare.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| {
        if sum & 1 == 1 { sum >> 1 ^ 0xEDB8_8320 } else { sum >> 1 }
    };
    !bytes.iter().fold(u32::MAX, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 5769, sections 2.2 and 2.3: the answers of the sample, without looking at their other attributes.
    #[test]
    fn sample_answers_of_rfc_5769_are_read() {
        let id = *b"\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae";
        let four = b"\x01\x01\x00\x3c\x21\x12\xa4\x42\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae\
            \x80\x22\x00\x0b\x74\x65\x73\x74\x20\x76\x65\x63\x74\x6f\x72\x20\x00\x20\x00\x08\x00\x01\xa1\x47\xe1\x12\xa6\x43\
            \x00\x08\x00\x14\x2b\x91\xf5\x99\xfd\x9e\x90\xc3\x8c\x74\x89\xf9\x2a\xf9\xba\x53\xf0\x6b\xe7\xd7\x80\x28\x00\x04\xc0\x7d\x4c\x96";
        assert_eq!(parse_response(four), Ok((id, "192.0.2.1:32853".parse().unwrap())));
        let six = b"\x01\x01\x00\x48\x21\x12\xa4\x42\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae\
            \x80\x22\x00\x0b\x74\x65\x73\x74\x20\x76\x65\x63\x74\x6f\x72\x20\x00\x20\x00\x14\x00\x02\xa1\x47\
            \x01\x13\xa9\xfa\xa5\xd3\xf1\x79\xbc\x25\xf4\xb5\xbe\xd2\xb9\xd9\x00\x08\x00\x14\xa3\x82\x95\x4e\x4b\xe6\x7b\xf1\x17\x84\xc9\x7c\x82\x92\xc2\x75\xbf\xe3\xed\x41\x80\x28\x00\x04\xc8\xfb\x0b\x4c";
        assert_eq!(parse_response(six), Ok((id, "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap())));
        // The fingerprint of the first sample, over all before it.
        let covered = &four[..four.len() - 8];
        assert_eq!(crc32(covered) ^ FINGERPRINT_XOR, 0xc07d_4c96);
    }

    #[test]
    fn plain_and_mapped_addresses_are_read() {
        let mut plain = b"\x01\x01\x00\x0c\x21\x12\xa4\x42............\x00\x01\x00\x08\x00\x01\x12\x34".to_vec();
        plain.extend([192, 0, 2, 9]);
        assert_eq!(parse_response(&plain).unwrap().1, "192.0.2.9:4660".parse().unwrap());
        let mapped: SocketAddr = "[::ffff:192.0.2.9]:5".parse().unwrap();
        assert_eq!(response(&[7; 12], mapped).len(), 32, "an IPv4 client gets an IPv4 answer");
    }

    #[test]
    fn foreign_requests_stay_unanswered() {
        let good = request(&[1; 12]);
        assert_eq!(parse_request(&good), Ok([1; 12]));
        let mut bad = good;
        bad[39] ^= 1;
        assert_eq!(parse_request(&bad), Err(StunError::Fingerprint));
        let mut bad = good;
        bad[24] ^= 1;
        assert_eq!(parse_request(&bad), Err(StunError::Foreign));
        assert_eq!(parse_request(&good[..20]), Err(StunError::Truncated));
        // The right end, but behind the message, or behind far too much of it.
        let around = |length: usize, filling: usize| {
            let mut bytes = good[..32].to_vec();
            bytes[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
            bytes.extend([&[0x80, 0x23], u16::try_from(filling).unwrap().to_be_bytes().as_slice()].concat());
            bytes.resize(36 + filling, 7);
            let sum = crc32(&bytes) ^ FINGERPRINT_XOR;
            bytes.extend(FINGERPRINT);
            bytes.extend(sum.to_be_bytes());
            bytes
        };
        assert_eq!(parse_request(&around(24 + 8, 8)), Ok([1; 12]));
        assert_eq!(parse_request(&around(24, 8)), Err(StunError::Foreign));
        assert_eq!(parse_request(&around(24 + 1000, 1000)), Err(StunError::Foreign));
        assert_eq!(parse_request(b"\0\x01\0\0\x21\x12\xa4\x42............"), Err(StunError::Foreign));
    }

    proptest! {
        #[test]
        fn answers_round_trip(id: [u8; 12], four: bool, ip: [u8; 16], port: u16) {
            let ip = if four { IpAddr::from(*ip.first_chunk::<4>().unwrap()) } else { IpAddr::from(ip).to_canonical() };
            let from = SocketAddr::new(ip, port);
            prop_assert_eq!(parse_response(&response(&id, from)), Ok((id, from)));
        }

        #[test]
        fn no_bytes_panic(kind in 0_u8..2, body in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut bytes = vec![kind, 1, 0, 60, 0x21, 0x12, 0xA4, 0x42];
            bytes.extend(&body);
            let _ = (parse_request(&bytes), parse_response(&bytes), parse_response(&body), parse_request(&body));
        }
    }
}
