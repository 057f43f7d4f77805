//! Between the host's TUN device, whose packets may be large and unfinished, and packets as they travel.
//!
//! Public for the benchmark that moves packets with these parts and nothing else.

use std::io::IoSlice;
use std::ops::Range;

use warren_filter::segments::{Joined, SegmentKind, Split, SplitError, finish_checksum};
use warren_filter::{PROTO_TCP, PROTO_UDP, Packet, PacketError};
use warren_os::{Checksum, Errno, MAX_PARTS, SegmentKind as OsKind, Segments, Tun, VnetHeader};

/// Says why a packet of the host cannot travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutError {
    /// Not a sound IP packet.
    Malformed(PacketError),
    /// The host's super-packet cannot be cut.
    NotCut(SplitError),
    /// The host left a checksum to us that is not in the packet.
    NoChecksum,
}

/// A packet of the host, to be written as those that travel.
#[derive(Debug)]
pub enum Cut<'p> {
    /// As it is.
    Whole(&'p [u8]),
    /// Into several.
    Split(Split<'p>),
}

impl<'p> Cut<'p> {
    /// Reads what the host left to do on `packet`, a sound packet without anything behind it.
    ///
    /// # Errors
    /// Says why it cannot be done.
    pub fn new(packet: &'p mut [u8], header: VnetHeader) -> Result<Self, CutError> {
        let Some(segments) = header.segments else {
            if let Some(Checksum { start, offset }) = header.checksum
                && !finish_checksum(packet, start, offset)
            {
                return Err(CutError::NoChecksum);
            }
            return Ok(Self::Whole(packet));
        };
        let kind = match segments.kind {
            OsKind::Tcp4 | OsKind::Tcp6 => SegmentKind::Tcp,
            OsKind::Udp => SegmentKind::Udp,
        };
        let packet = Packet::parse(packet).map_err(CutError::Malformed)?;
        Split::new(&packet, kind, segments.bytes).map(Self::Split).map_err(CutError::NotCut)
    }

    /// Returns how many packets travel.
    pub fn count(&self) -> usize {
        match self {
            Self::Whole(_) => 1,
            Self::Split(split) => split.count(),
        }
    }

    /// Returns the length of packet `number`.
    pub fn length(&self, number: usize) -> usize {
        match self {
            Self::Whole(packet) => packet.len(),
            Self::Split(split) => split.length(number),
        }
    }

    /// Writes packet `number` into `room`, which has its length; `None` if it has not.
    pub fn write(&self, number: usize, room: &mut [u8]) -> Option<usize> {
        match self {
            Self::Whole(packet) => {
                room.get_mut(..packet.len())?.copy_from_slice(packet);
                Some(packet.len())
            }
            Self::Split(split) => split.write(number, room),
        }
    }
}

/// Queues of the device, if the kernel has several: flows with much to send delay only those in their own.
///
/// Each costs a little in every wait.
pub const QUEUES: usize = 4;

/// Returns the number of the queue by which a flow's packets go to the host, and so come from it.
///
/// The first is for what has no ports (pings, fragments); TCP and UDP are spread over the others, both directions of a
/// flow alike.
fn queue(tun: &Tun, packet: &[u8]) -> usize {
    let others = tun.queue_count() - 1;
    let (protocol, addresses, ports) = match packet {
        // Without options, and no fragment.
        [0x45, _, _, _, _, _, flags, low, _, protocol, _, _, rest @ ..] if flags & 0x3f == 0 && *low == 0 => {
            (*protocol, rest.get(..8), rest.get(8..12))
        }
        [first, ..] if first >> 4 == 6 => {
            (packet.get(6).copied().unwrap_or_default(), packet.get(8..40), packet.get(40..44))
        }
        _ => return 0,
    };
    let (Some(addresses), Some(ports), true) =
        (addresses, ports, matches!(protocol, PROTO_TCP | PROTO_UDP) && others > 0)
    else {
        return 0;
    };
    let halves = |bytes: &[u8]| {
        bytes.chunks_exact(2).fold(0_u32, |sum, pair| match pair {
            [a, b] => sum.wrapping_add(u32::from_be_bytes([0, 0, *a, *b])),
            _ => sum,
        })
    };
    // The sum is the same for both directions. Fibonacci hashing spreads neighbouring ports.
    let hash = halves(addresses).wrapping_add(halves(ports)).wrapping_mul(0x9e37_79b9) >> 16;
    1 + hash as usize % others
}

/// Writes a packet to the host whose parts lie in `buffer`.
///
/// # Errors
/// As [`warren_os::TunQueue::write_parts`].
pub fn write(tun: &Tun, joined: Option<&Joined>, buffer: &[u8], parts: &[Range<usize>]) -> Result<(), Errno> {
    let mut slices = [IoSlice::new(&[]); MAX_PARTS];
    let mut count = 0;
    for (slice, part) in slices.iter_mut().zip(parts) {
        *slice = IoSlice::new(buffer.get(part.clone()).unwrap_or_default());
        count += 1;
    }
    let header = joined.map_or_else(VnetHeader::default, |joined| VnetHeader {
        checksum: Some(Checksum { start: joined.transport_at, offset: joined.checksum_at }),
        segments: Some(Segments {
            kind: match (joined.kind, joined.is_v6) {
                (SegmentKind::Tcp, false) => OsKind::Tcp4,
                (SegmentKind::Tcp, true) => OsKind::Tcp6,
                (SegmentKind::Udp, _) => OsKind::Udp,
            },
            bytes: joined.segment,
            header_bytes: joined.headers,
            ecn: joined.cwr,
        }),
    });
    let first = parts.first().and_then(|part| buffer.get(part.clone())).unwrap_or_default();
    tun.queue(queue(tun, first)).write_parts(header, slices.get(..count).unwrap_or_default())
}
