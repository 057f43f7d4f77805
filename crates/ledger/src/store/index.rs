//! Where a segment's frames are, one entry each, in a file beside it: what is looked for is found without reading the rest.
//!
//! It is made of the segment, and made again when it is lost.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | where in the segment the frame begins |
//! | 8 | 8 | position of its first batch |
//! | 16 | 8 | when it was stored, in µs since 1970 |
//! | 24 | 8 | the earliest time of its records |
//! | 32 | 8 | the latest |
//! | 40 | 4 | number of batches |
//! | 44 | 4 | length of the frame |
//! | 48 | 1 | kinds of records, see [`Kinds`] |
//! | 49 | 15 | first bytes of the SHA-256 of the bytes before |

use aws_lc_rs::digest::{SHA256, digest};

use super::frame::{FrameHead, STORED_BYTES_MAX};
use crate::codec::Reader;
use crate::query::Kinds;
use crate::time::Time;

/// Bytes of an entry.
pub(super) const ENTRY_BYTES: usize = 64;

const HASHED_BYTES: usize = 49;

/// Says where a frame is and what may be in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) offset: u64,
    pub(crate) first: u64,
    pub(crate) stored: Time,
    pub(crate) earliest: Time,
    pub(crate) latest: Time,
    pub(crate) count: u32,
    pub(crate) length: u32,
    pub(crate) kinds: Kinds,
}

impl Entry {
    /// Makes the entry of a frame that begins at `offset`.
    pub(super) fn of(head: &FrameHead, offset: u64) -> Self {
        Self {
            offset,
            first: head.first,
            stored: head.stored,
            earliest: head.earliest,
            latest: head.latest,
            count: head.count,
            // Bounded by `frame::STORED_BYTES_MAX`.
            length: u32::try_from(head.length()).unwrap_or(u32::MAX),
            kinds: head.kinds,
        }
    }

    /// Returns the position behind the last batch.
    pub(crate) const fn end(&self) -> u64 {
        self.first.saturating_add(self.count as u64)
    }

    /// Returns where the frame ends in the segment.
    pub(crate) const fn offset_end(&self) -> u64 {
        self.offset.saturating_add(self.length as u64)
    }

    pub(crate) fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut out = Vec::with_capacity(ENTRY_BYTES + 32);
        let times = [self.stored, self.earliest, self.latest].map(Time::as_micros);
        [self.offset, self.first].iter().chain(&times).for_each(|number| out.extend(number.to_be_bytes()));
        out.extend(self.count.to_be_bytes());
        out.extend(self.length.to_be_bytes());
        out.push(self.kinds.bits());
        let hash = digest(&SHA256, &out);
        out.extend(hash.as_ref());
        let mut entry = [0; ENTRY_BYTES];
        entry.iter_mut().zip(out).for_each(|(to, from)| *to = from);
        entry
    }

    /// Reads an entry; `None` if it is not whole.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let mut number = || reader.u64("number").ok();
        let (offset, first) = (number()?, number()?);
        let mut time = || number().map(Time::from_micros);
        let (stored, earliest, latest) = (time()?, time()?, time()?);
        let mut u32 = || reader.array("number").ok().map(u32::from_be_bytes);
        let (count, length) = (u32()?, u32()?);
        let kinds = Kinds::from_bits(reader.byte("kinds").ok()?);
        let entry = Self { offset, first, stored, earliest, latest, count, length, kinds };
        let is_sound = entry.length as usize <= STORED_BYTES_MAX;
        (is_sound && entry.encode().as_slice() == bytes.get(..ENTRY_BYTES)?).then_some(entry)
    }
}

const _: () = assert!(HASHED_BYTES + 15 == ENTRY_BYTES, "as many bytes of the hash as there is room for");
