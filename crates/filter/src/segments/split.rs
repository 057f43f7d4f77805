//! From one super-packet to the packets that it stands for.

use super::checksum::{Sum, pseudo_header};
use super::{CWR, FIN, PSH, RST, SYN, SegmentKind, TCP_CHECKSUM, UDP_CHECKSUM, put, put_length};
use crate::packet::{Body, Packet};

/// Says why a packet stands for no others. Drop it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// It is of another protocol than was said, a fragment, or has IPv6 extension headers.
    #[error("not a whole packet of that protocol")]
    Protocol,
    /// TCP that opens or resets a connection, or whose header length is wrong.
    #[error("a TCP header that cannot be repeated")]
    Header,
    /// Segments without data.
    #[error("segments of no bytes")]
    Size,
}

/// Makes the packets that a super-packet stands for.
///
/// All have its headers, with these differences: lengths and checksums; IPv4 identifications and TCP sequence numbers
/// count up; FIN and PSH are on the last alone, CWR on the first alone.
#[derive(Debug, Clone, Copy)]
pub struct Split<'p> {
    packet: &'p [u8],
    kind: SegmentKind,
    transport_at: usize,
    /// Bytes of all headers.
    headers: usize,
    /// Bytes of data in a packet.
    segment: usize,
    is_v6: bool,
    id: u16,
    sequence: u32,
    flags: u8,
    pseudo: Sum,
}

impl<'p> Split<'p> {
    /// Reads the headers of `packet`, which is to be cut into packets with `segment` bytes of data.
    ///
    /// The headers' lengths are taken from themselves. Checksums in it count for nothing.
    ///
    /// # Errors
    /// See [`SplitError`].
    pub fn new(packet: &Packet<'p>, kind: SegmentKind, segment: u16) -> Result<Self, SplitError> {
        let (bytes, transport) = (packet.bytes(), packet.transport());
        let transport_at = bytes.len() - transport.len();
        let is_v6 = packet.source().is_ipv6();
        if packet.fragment().is_some() || is_v6 && transport_at != 40 {
            return Err(SplitError::Protocol);
        }
        let (length, sequence, flags) = match (kind, packet.body(), transport) {
            (SegmentKind::Tcp, Body::Tcp { .. }, &[_, _, _, _, s0, s1, s2, s3, _, _, _, _, offset, flags, ..]) => {
                let length = usize::from(offset >> 4) * 4;
                if flags & (SYN | RST) != 0 || length < 20 || length > transport.len() {
                    return Err(SplitError::Header);
                }
                (length, u32::from_be_bytes([s0, s1, s2, s3]), flags)
            }
            (SegmentKind::Udp, Body::Udp { .. }, _) => (8, 0, 0),
            _ => return Err(SplitError::Protocol),
        };
        if segment == 0 {
            return Err(SplitError::Size);
        }
        let id = match bytes {
            &[_, _, _, _, a, b, ..] if !is_v6 => u16::from_be_bytes([a, b]),
            _ => 0,
        };
        let pseudo = pseudo_header(bytes, packet.protocol()).ok_or(SplitError::Protocol)?;
        let headers = transport_at + length;
        let segment = usize::from(segment);
        Ok(Self { packet: bytes, kind, transport_at, headers, segment, is_v6, id, sequence, flags, pseudo })
    }

    /// Returns how many packets there are, at least one.
    pub fn count(&self) -> usize {
        (self.packet.len() - self.headers).div_ceil(self.segment).max(1)
    }

    /// Returns the length of packet `number`, from 0 on; the last is the shortest.
    pub fn length(&self, number: usize) -> usize {
        self.headers + self.data(number).len()
    }

    /// Writes packet `number` to the start of `out` and returns its length; `None` if there is no room.
    #[expect(clippy::cast_possible_truncation, reason = "numbers and positions are far below 65,536, and both wrap")]
    pub fn write(&self, number: usize, out: &mut [u8]) -> Option<usize> {
        let data = self.data(number);
        let length = self.headers + data.len();
        let (headers, room) = out.get_mut(..length)?.split_at_mut_checked(self.headers)?;
        headers.copy_from_slice(self.packet.get(..self.headers)?);
        room.copy_from_slice(self.packet.get(data.clone())?);
        let (ip, transport) = headers.split_at_mut_checked(self.transport_at)?;
        if self.is_v6 {
            put_length(ip, 4, length - self.transport_at);
        } else {
            put_length(ip, 2, length);
            put(ip, 4, self.id.wrapping_add(number as u16).to_be_bytes());
            put(ip, 10, [0, 0]);
            put(ip, 10, Sum::default().add(ip).finish());
        }
        let behind = length - self.transport_at;
        match self.kind {
            SegmentKind::Tcp => {
                let before = number.wrapping_mul(self.segment) as u32;
                put(transport, 4, self.sequence.wrapping_add(before).to_be_bytes());
                let not_first = if number > 0 { CWR } else { 0 };
                let not_last = if data.end < self.packet.len() { FIN | PSH } else { 0 };
                put(transport, 13, [self.flags & !(not_first | not_last)]);
                put(transport, TCP_CHECKSUM, [0, 0]);
                let sum = self.pseudo.add_length(behind).add(transport).add(room);
                put(transport, TCP_CHECKSUM, sum.finish());
            }
            SegmentKind::Udp => {
                put_length(transport, 4, behind);
                put(transport, UDP_CHECKSUM, [0, 0]);
                let sum = self.pseudo.add_length(behind).add(transport).add(room);
                put(transport, UDP_CHECKSUM, sum.finish_udp());
            }
        }
        Some(length)
    }

    /// Returns where the data of packet `number` lies.
    fn data(&self, number: usize) -> std::ops::Range<usize> {
        let end = self.packet.len();
        let start = self.headers.saturating_add(number.saturating_mul(self.segment)).min(end);
        start..start.saturating_add(self.segment).min(end)
    }
}
