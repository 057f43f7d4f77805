//! The header in front of each packet of a TUN device with `IFF_VNET_HDR`: which work on the packet is left to the reader.
//!
//! Source: Linux `include/uapi/linux/virtio_net.h`, `struct virtio_net_hdr`.

/// Bytes of the header.
pub(crate) const HEADER_BYTES: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Says what is left to do before a packet can travel: nothing, by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHeader {
    /// A checksum to finish.
    pub checksum: Option<Checksum>,
    /// Into what the packet is to be cut.
    pub segments: Option<Segments>,
}

/// Says where a checksum lies that holds the sum of the pseudo header alone so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum {
    /// First byte that it covers; it goes on to the packet's end.
    pub start: u16,
    /// Where the checksum is, in bytes after `start`.
    pub offset: u16,
}

/// Says that a packet stands for several, which differ in their data and in what follows from that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    /// What it is.
    pub kind: SegmentKind,
    /// Bytes of data in each packet but the last, which may have fewer.
    pub bytes: u16,
    /// Bytes of all headers. Written for the kernel; when read it may be wrong for forwarded packets, so do not use it.
    pub header_bytes: u16,
    /// TCP: the first packet alone says that congestion was answered (CWR).
    pub ecn: bool,
}

/// Names what can be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either.
    Udp,
}

impl VnetHeader {
    /// Reads a header; `None` if it asks for something that was not offered.
    pub(crate) fn decode(bytes: [u8; HEADER_BYTES]) -> Option<Self> {
        let [flags, gso, h0, h1, s0, s1, c0, c1, o0, o1] = bytes;
        let checksum = (flags & NEEDS_CHECKSUM != 0)
            .then_some(Checksum { start: u16::from_ne_bytes([c0, c1]), offset: u16::from_ne_bytes([o0, o1]) });
        let kind = match gso & !GSO_ECN {
            GSO_NONE => return Some(Self { checksum, segments: None }),
            GSO_TCP4 => SegmentKind::Tcp4,
            GSO_TCP6 => SegmentKind::Tcp6,
            GSO_UDP => SegmentKind::Udp,
            _ => return None,
        };
        let segments = Segments {
            kind,
            bytes: u16::from_ne_bytes([s0, s1]),
            header_bytes: u16::from_ne_bytes([h0, h1]),
            ecn: gso & GSO_ECN != 0,
        };
        Some(Self { checksum, segments: Some(segments) })
    }

    pub(crate) fn encode(self) -> [u8; HEADER_BYTES] {
        let flags = if self.checksum.is_some() { NEEDS_CHECKSUM } else { 0 };
        let Checksum { start, offset } = self.checksum.unwrap_or(Checksum { start: 0, offset: 0 });
        let (gso, header_bytes, bytes) = match self.segments {
            None => (GSO_NONE, 0, 0),
            Some(Segments { kind, bytes, header_bytes, ecn }) => {
                let kind = match kind {
                    SegmentKind::Tcp4 => GSO_TCP4,
                    SegmentKind::Tcp6 => GSO_TCP6,
                    SegmentKind::Udp => GSO_UDP,
                };
                (if ecn { kind | GSO_ECN } else { kind }, header_bytes, bytes)
            }
        };
        let [h0, h1] = header_bytes.to_ne_bytes();
        let [s0, s1] = bytes.to_ne_bytes();
        let [c0, c1] = start.to_ne_bytes();
        let [o0, o1] = offset.to_ne_bytes();
        [flags, gso, h0, h1, s0, s1, c0, c1, o0, o1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_can_be_read_is_written_alike(bytes: [u8; HEADER_BYTES]) {
            if let Some(header) = VnetHeader::decode(bytes) {
                prop_assert_eq!(VnetHeader::decode(header.encode()), Some(header));
            } else {
                prop_assert!(!matches!(bytes[1] & 0x7f, 0 | 1 | 4 | 5));
            }
        }
    }

    /// As the kernel hands over a TCP packet of 10 segments.
    #[test]
    fn the_layout_is_the_kernels() {
        let [h0, h1] = 52_u16.to_ne_bytes();
        let [s0, s1] = 1228_u16.to_ne_bytes();
        let [c0, c1] = 20_u16.to_ne_bytes();
        let [o0, o1] = 16_u16.to_ne_bytes();
        let bytes = [1, 0x81, h0, h1, s0, s1, c0, c1, o0, o1];
        let header = VnetHeader {
            checksum: Some(Checksum { start: 20, offset: 16 }),
            segments: Some(Segments { kind: SegmentKind::Tcp4, bytes: 1228, header_bytes: 52, ecn: true }),
        };
        assert_eq!(VnetHeader::decode(bytes), Some(header));
        assert_eq!(header.encode(), bytes);
    }
}
