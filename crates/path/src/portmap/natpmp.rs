//! Messages of NAT-PMP. Source: RFC 6886, section 3.

use std::net::Ipv4Addr;

/// Asks for the public address.
pub(super) const ADDRESS_REQUEST: [u8; 2] = [0, 0];

/// Asks to map a UDP port for `lifetime` seconds, to take it away if that is 0.
pub(super) fn map_request(internal: u16, suggested: u16, lifetime: u32) -> [u8; 12] {
    let mut message = [0; 12];
    message[1] = 1;
    message[4..6].copy_from_slice(&internal.to_be_bytes());
    message[6..8].copy_from_slice(&suggested.to_be_bytes());
    message[8..].copy_from_slice(&lifetime.to_be_bytes());
    message
}

/// What the gateway answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// To [`ADDRESS_REQUEST`].
    Address { result: u16, epoch: u32, address: Ipv4Addr },
    /// To [`map_request`]; a result that is not 0 leaves the rest without meaning.
    Mapping { result: u16, epoch: u32, internal: u16, external: u16, lifetime: u32 },
}

impl Answer {
    /// Reads a datagram; `None` if it is no whole answer. Longer ones are read by their beginning.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (&[0, op, a, b, e0, e1, e2, e3], rest) = bytes.split_first_chunk()? else { return None };
        let (result, epoch) = (u16::from_be_bytes([a, b]), u32::from_be_bytes([e0, e1, e2, e3]));
        match op {
            0x80 => {
                let address = rest.first_chunk::<4>();
                if result != 0 && address.is_none() {
                    return Some(Self::Address { result, epoch, address: Ipv4Addr::UNSPECIFIED });
                }
                Some(Self::Address { result, epoch, address: Ipv4Addr::from(*address?) })
            }
            0x81 => {
                let Some(&[i0, i1, x0, x1, l0, l1, l2, l3]) = rest.first_chunk::<8>() else {
                    return (result != 0).then_some(Self::Mapping {
                        result,
                        epoch,
                        internal: 0,
                        external: 0,
                        lifetime: 0,
                    });
                };
                Some(Self::Mapping {
                    result,
                    epoch,
                    internal: u16::from_be_bytes([i0, i1]),
                    external: u16::from_be_bytes([x0, x1]),
                    lifetime: u32::from_be_bytes([l0, l1, l2, l3]),
                })
            }
            _ => None,
        }
    }
}
