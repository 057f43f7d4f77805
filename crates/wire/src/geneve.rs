//! The header in front of what goes over a peer relay: Geneve without options.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 1 | version (2 bits) and length of options: 0 |
//! | 1 | 1 | 0x80 if for or from the relay itself, else 0 |
//! | 2 | 2 | protocol: 0x7A11 disco, 0x7A12 WireGuard |
//! | 4 | 3 | number of the endpoint (VNI) |
//! | 7 | 1 | 0 |
//!
//! Source: RFC 8926; Tailscale `net/packet/geneve.go`.

/// Bytes of a header.
pub const HEADER_BYTES: usize = 8;
/// The largest number of an endpoint; 0 is none.
pub const MAX_VNI: u32 = 0xFF_FFFF;

/// What follows a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A disco envelope.
    Disco,
    /// A WireGuard message.
    WireGuard,
}

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Whether the relay itself is meant, or speaks: handshakes. All else goes from client to client.
    pub control: bool,
    /// What follows.
    pub protocol: Protocol,
    /// Number of the endpoint, at most [`MAX_VNI`].
    pub vni: u32,
}

impl Header {
    /// Writes the header. Of a number beyond [`MAX_VNI`] the upper bits are lost.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let low = match self.protocol {
            Protocol::Disco => 0x11,
            Protocol::WireGuard => 0x12,
        };
        let [_, one, two, three] = self.vni.to_be_bytes();
        [0, if self.control { 0x80 } else { 0 }, 0x7A, low, one, two, three, 0]
    }

    /// Reads a header and returns it with what follows; `None` if it is none, or has options, which nobody sends.
    #[must_use]
    pub fn decode(datagram: &[u8]) -> Option<(Self, &[u8])> {
        let (&[0, flags @ (0 | 0x80), 0x7A, low, one, two, three, 0], rest) = datagram.split_first_chunk()? else {
            return None;
        };
        let protocol = match low {
            0x11 => Protocol::Disco,
            0x12 => Protocol::WireGuard,
            _ => return None,
        };
        let vni = u32::from_be_bytes([0, one, two, three]);
        Some((Self { control: flags != 0, protocol, vni }, rest))
    }

    /// Returns the header and what follows it, in one piece.
    #[must_use]
    pub fn wrap(&self, payload: &[u8]) -> Vec<u8> {
        [&self.encode(), payload].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datagram::{Class, classify};
    use proptest::prelude::*;

    /// The fixed header of RFC 8926, section 3.4, with the protocols of the official client.
    #[test]
    fn headers_are_those_of_the_official_client() {
        let bind = Header { control: true, protocol: Protocol::Disco, vni: 0x01_0203 };
        assert_eq!(bind.encode(), [0, 0x80, 0x7A, 0x11, 1, 2, 3, 0]);
        let data = Header { control: false, protocol: Protocol::WireGuard, vni: MAX_VNI };
        assert_eq!(data.encode(), [0, 0, 0x7A, 0x12, 0xFF, 0xFF, 0xFF, 0]);
    }

    #[test]
    fn other_versions_options_and_protocols_are_refused() {
        let good = Header { control: false, protocol: Protocol::Disco, vni: 1 }.encode();
        assert!(Header::decode(&good).is_some());
        for (at, byte) in [(0, 0x40), (0, 1), (1, 0x40), (1, 1), (2, 0x65), (3, 0x58), (7, 1)] {
            let mut bad = good;
            bad[at] = byte;
            assert_eq!(Header::decode(&bad), None, "{at}: {byte:#x}");
        }
        assert_eq!(Header::decode(&good[..7]), None);
    }

    proptest! {
        #[test]
        fn headers_round_trip_and_are_classified(control: bool, disco: bool, vni in 0..=MAX_VNI) {
            let protocol = if disco { Protocol::Disco } else { Protocol::WireGuard };
            let header = Header { control, protocol, vni };
            let payload = [crate::disco::MAGIC.as_slice(), &[7; 60]].concat();
            let datagram = header.wrap(&payload);
            prop_assert_eq!(Header::decode(&datagram), Some((header, payload.as_slice())));
            let class = if disco { Class::GeneveDisco } else { Class::GeneveWireGuard };
            prop_assert_eq!(classify(&datagram), class);
        }

        #[test]
        fn what_is_read_is_what_is_written(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some((header, rest)) = Header::decode(&bytes) {
                prop_assert_eq!(header.wrap(rest), bytes);
            }
        }
    }
}
