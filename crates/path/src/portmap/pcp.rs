//! Messages of the Port Control Protocol. Source: RFC 6887, sections 7 and 11.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Names one mapping of one client.
pub(super) type Nonce = [u8; 12];

/// Length of a MAP request and of its answer.
const MAP_LEN: usize = 60;
/// UDP, in the registry of IP protocols.
const UDP: u8 = 17;

/// Asks to map a UDP port for `lifetime` seconds, to take it away if that is 0.
pub(super) fn map_request(
    client: Ipv4Addr,
    nonce: &Nonce,
    internal: u16,
    (address, port): (Ipv4Addr, u16),
    lifetime: u32,
) -> [u8; MAP_LEN] {
    let mut message = [0; MAP_LEN];
    message[..2].copy_from_slice(&[2, 1]);
    message[4..8].copy_from_slice(&lifetime.to_be_bytes());
    message[8..24].copy_from_slice(&client.to_ipv6_mapped().octets());
    message[24..36].copy_from_slice(nonce);
    message[36] = UDP;
    message[40..42].copy_from_slice(&internal.to_be_bytes());
    message[42..44].copy_from_slice(&port.to_be_bytes());
    message[44..].copy_from_slice(&address.to_ipv6_mapped().octets());
    message
}

/// Asks for a sign of life.
pub(super) fn announce_request(client: Ipv4Addr) -> [u8; 24] {
    let mut message = [0; 24];
    message[0] = 2;
    message[8..].copy_from_slice(&client.to_ipv6_mapped().octets());
    message
}

/// Returns the gateway's clock as an answer to [`announce_request`] tells it; `None` if a datagram is none.
pub(super) fn read_announcement(bytes: &[u8]) -> Option<u32> {
    let &[2, 0x80, _, 0, _, _, _, _, e0, e1, e2, e3] = bytes.first_chunk()? else { return None };
    Some(u32::from_be_bytes([e0, e1, e2, e3]))
}

/// What the gateway answers to [`map_request`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    /// 0 is success.
    pub(super) result: u8,
    /// Of the mapping; of the error if the request failed. In seconds.
    pub(super) lifetime: u32,
    pub(super) epoch: u32,
    pub(super) nonce: Nonce,
    pub(super) internal: u16,
    pub(super) external: u16,
    /// `None` if it is an IPv6 address.
    pub(super) address: Option<Ipv4Addr>,
}

impl Answer {
    /// Reads a datagram; `None` if it is no whole answer about UDP. Longer ones, with options, are read by their
    /// beginning.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<MAP_LEN>()?;
        if bytes[..2] != [2, 0x81] || bytes[36] != UDP {
            return None;
        }
        // Every range below lies within the fixed length.
        fn field<const N: usize>(bytes: &[u8; MAP_LEN], at: usize) -> Option<[u8; N]> {
            bytes.get(at..)?.first_chunk().copied()
        }
        let two = |at| Some(u16::from_be_bytes(field(bytes, at)?));
        let four = |at| Some(u32::from_be_bytes(field(bytes, at)?));
        Some(Self {
            result: bytes[3],
            lifetime: four(4)?,
            epoch: four(8)?,
            nonce: field(bytes, 24)?,
            internal: two(40)?,
            external: two(42)?,
            address: Ipv6Addr::from(field::<16>(bytes, 44)?).to_ipv4_mapped(),
        })
    }
}
