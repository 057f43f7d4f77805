//! Packets for one peer, side by side as they are sealed and sent.

use std::time::Instant;

use warren_wg::{BATCH, HEADROOM, Outgoing, SealError, Session, TAILROOM, sealed_length};

/// Bytes from which on a burst is to be sent: about one run of datagrams as the kernel takes it.
const FULL_BYTES: usize = 64 << 10;
/// Packets from which on a burst is to be sent.
const FULL_PACKETS: usize = 128;
/// Bytes of the buffer: one that is not full has room for the largest packet.
const CAPACITY: usize = FULL_BYTES + HEADROOM + 65_535 + TAILROOM;

/// Holds packets for one peer, later the datagrams that they became.
///
/// They lie so that datagrams of one size have nothing between them: such a run is one piece of memory.
#[derive(Debug)]
pub(in crate::engine) struct Burst {
    bytes: Vec<u8>,
    used: usize,
    places: Vec<Place>,
    /// The tunnel's, up to which packets are padded: a place must have not one byte more than its datagram.
    mtu: usize,
}

/// Where a packet lies with room around it, or where a datagram lies.
#[derive(Debug, Clone, Copy)]
struct Place {
    start: usize,
    /// Of the packet without the room, or of the datagram.
    length: usize,
}

/// Datagrams of one size, but for the last, which may be shorter.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine) struct Run<'b> {
    pub(in crate::engine) bytes: &'b [u8],
    pub(in crate::engine) segment: usize,
}

impl<'b> Run<'b> {
    /// Returns the datagrams.
    pub(in crate::engine) fn datagrams(self) -> impl Iterator<Item = &'b [u8]> {
        self.bytes.chunks(self.segment.max(1))
    }
}

impl Burst {
    pub(in crate::engine) fn new(mtu: usize) -> Self {
        Self { bytes: vec![0; CAPACITY], used: 0, places: Vec::with_capacity(FULL_PACKETS), mtu }
    }

    /// Tells whether it is time to send.
    pub(in crate::engine) fn is_full(&self) -> bool {
        self.used >= FULL_BYTES || self.places.len() >= FULL_PACKETS
    }

    pub(in crate::engine) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(in crate::engine) fn clear(&mut self) {
        self.used = 0;
        self.places.clear();
    }

    /// Adds a packet of `length` bytes, which `write` writes; nothing if it says so, or if there is no room.
    pub(in crate::engine) fn add(&mut self, length: usize, write: impl FnOnce(&mut [u8]) -> Option<usize>) {
        let start = self.used;
        let end = start + sealed_length(length, self.mtu);
        if end > self.bytes.len() {
            return;
        }
        let room = self.bytes.get_mut(start + HEADROOM..).and_then(|rest| rest.get_mut(..length));
        if room.is_some_and(|room| write(room) == Some(length)) {
            self.places.push(Place { start, length });
            self.used = end;
        }
    }

    /// Seals the packets in turn; from the first that cannot be sealed on they are left as
    /// they are.
    ///
    /// Returns how many were sealed, and why no more.
    pub(super) fn seal(&mut self, session: &Session, now: Instant) -> (usize, Option<SealError>) {
        let mut sealed = 0;
        let (mut rest, mut at) = (self.bytes.as_mut_slice(), 0);
        for group in self.places.chunks_mut(BATCH) {
            let mut packets: [Outgoing<'_>; BATCH] = std::array::from_fn(|_| Outgoing { buffer: &mut [], length: 0 });
            // Places lie one behind the other.
            for (packet, place) in packets.iter_mut().zip(&*group) {
                let gap = place.start.saturating_sub(at);
                let Some((_, behind)) = std::mem::take(&mut rest).split_at_mut_checked(gap) else { break };
                let Some((buffer, behind)) = behind.split_at_mut_checked(sealed_length(place.length, self.mtu)) else {
                    break;
                };
                at = place.start + buffer.len();
                rest = behind;
                *packet = Outgoing { buffer, length: place.length };
            }
            let packets = packets.get_mut(..group.len()).unwrap_or_default();
            if let Err(error) = session.seal_batch(packets, self.mtu, now) {
                return (sealed, Some(error));
            }
            for (place, packet) in group.iter_mut().zip(packets) {
                place.length = packet.length;
            }
            sealed += group.len();
        }
        (sealed, None)
    }

    /// Takes out the packets from `number` on.
    pub(super) fn split_off(&mut self, number: usize) -> impl Iterator<Item = &[u8]> {
        let bytes = &self.bytes;
        self.places
            .drain(number.min(self.places.len())..)
            .filter_map(|place| bytes.get(place.start + HEADROOM..).and_then(|rest| rest.get(..place.length)))
    }

    /// Returns the datagrams, which all packets must have become, in runs as long as possible.
    pub(in crate::engine) fn runs(&self) -> impl Iterator<Item = Run<'_>> + Clone {
        let mut rest = self.places.as_slice();
        std::iter::from_fn(move || {
            let (first, others) = rest.split_first()?;
            let (segment, mut end) = (first.length, first.start + first.length);
            let mut taken = 1;
            for next in others {
                if next.start != end || next.length > segment {
                    break;
                }
                end += next.length;
                taken += 1;
                if next.length < segment {
                    break;
                }
            }
            rest = rest.get(taken..).unwrap_or_default();
            Some(Run { bytes: self.bytes.get(first.start..end).unwrap_or_default(), segment })
        })
    }
}
