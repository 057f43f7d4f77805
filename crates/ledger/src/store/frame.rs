//! The bytes of a segment: a head, then frames, each of batches that were stored together.
//!
//! Numbers are big-endian.
//!
//! | head: offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | `warrenL1` |
//! | 8 | 8 | when it was begun, in µs since 1970 |
//! | 16 | 8 | position of its first batch, which is the size of the tree before it |
//! | 24 | 1 | number of peaks of that tree |
//! | 25 | 32 each | the peaks, the largest first |
//! | | 32 | SHA-256 of the head before |
//!
//! | frame: offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | `WLF1` |
//! | 4 | 4 | length of the batches, compressed |
//! | 8 | 4 | length of the batches |
//! | 12 | 4 | number of batches |
//! | 16 | 8 | position of the first |
//! | 24 | 8 | when they were stored, in µs since 1970 |
//! | 32 | 8 | the earliest time of their records |
//! | 40 | 8 | the latest |
//! | 48 | 4 | length of the filter |
//! | 52 | 1 | kinds of records, see [`Kinds`] |
//! | 53 | 32 | SHA-256 of the bytes before, the filter and the compressed batches |
//! | 85 | | the filter, by which a frame is known that has nothing of what is looked for: see the module `summary` |
//! | | | the batches one after the other, compressed with zstd |

use aws_lc_rs::digest::{Context, SHA256};

use super::summary::{FILTER_BYTES_MAX, Summary};
use crate::batch::Batch;
use crate::codec::{DecodeError, Reader};
use crate::merkle::{Frontier, Hash};
use crate::query::Kinds;
use crate::time::Time;

/// Bytes of a frame before its filter.
pub(super) const FRAME_HEAD_BYTES: usize = HASHED_BYTES + 32;

/// The most bytes of a frame's batches, before compression.
pub(super) const FRAME_BYTES_MAX: usize = 8 << 20;

/// The most bytes of a frame: what zstd makes of [`FRAME_BYTES_MAX`] bytes without any pattern.
pub(super) const STORED_BYTES_MAX: usize =
    FRAME_HEAD_BYTES + FILTER_BYTES_MAX + FRAME_BYTES_MAX + (FRAME_BYTES_MAX >> 8) + 1024;

/// The most bytes of a segment's head.
pub(super) const HEAD_BYTES_MAX: usize = 25 + 64 * 32 + 32;

/// Bytes of a frame's head that its hash covers.
const HASHED_BYTES: usize = 53;

const HEAD_MAGIC: &[u8; 8] = b"warrenL1";
const FRAME_MAGIC: &[u8; 4] = b"WLF1";
/// zstd's usual level: more costs more time than it saves room with hashes and signatures between.
const LEVEL: i32 = 3;

fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut hash = [0; 32];
    hash.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    hash
}

/// Begins a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SegmentHead {
    pub(super) begun: Time,
    /// The tree before the segment's first batch.
    pub(super) before: Frontier,
}

impl SegmentHead {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = HEAD_MAGIC.to_vec();
        out.extend(self.begun.as_micros().to_be_bytes());
        out.extend(self.before.size().to_be_bytes());
        // A number of 64 bits has at most 64 ones.
        out.push(u8::try_from(self.before.peaks().len()).unwrap_or(u8::MAX));
        out.extend(self.before.peaks().iter().flatten());
        out.extend(sha256(&[&out]));
        out
    }

    /// Reads the head at the front of `bytes`, and returns its length; `None` if there is none.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        let mut reader = Reader(bytes);
        let read = |reader: &mut Reader<'_>| -> Result<(Self, usize), DecodeError> {
            let magic: [u8; 8] = reader.array("magic")?;
            let begun = Time::from_micros(reader.u64("time")?);
            let size = reader.u64("position")?;
            let count = reader.byte("peaks")?;
            let peaks = (0..count).map(|_| reader.array("peak")).collect::<Result<Vec<Hash>, _>>()?;
            let length = bytes.len() - reader.0.len();
            let hash: Hash = reader.array("hash")?;
            let is_whole = magic == *HEAD_MAGIC && hash == sha256(&[bytes.get(..length).unwrap_or_default()]);
            let before = Frontier::from_parts(size, peaks).filter(|_| is_whole);
            let before = before.ok_or(DecodeError::Value { field: "head", value: 0 })?;
            Ok((Self { begun, before }, length + 32))
        };
        read(&mut reader).ok()
    }
}

/// Says what a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHead {
    pub(super) stored_bytes: u32,
    pub(super) bytes: u32,
    pub(super) count: u32,
    pub(super) first: u64,
    pub(super) stored: Time,
    pub(super) earliest: Time,
    pub(super) latest: Time,
    pub(super) filter_bytes: u32,
    pub(super) kinds: Kinds,
    hash: Hash,
}

impl FrameHead {
    /// Reads the head of a frame; `None` if it is none.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let read = |reader: &mut Reader<'_>| -> Result<([u8; 4], Self), DecodeError> {
            let magic = reader.array("magic")?;
            let mut u32 = |field| reader.array(field).map(u32::from_be_bytes);
            let (stored_bytes, bytes, count) = (u32("stored length")?, u32("length")?, u32("count")?);
            let first = reader.u64("position")?;
            let mut time = || reader.u64("time").map(Time::from_micros);
            let (stored, earliest, latest) = (time()?, time()?, time()?);
            let filter_bytes = reader.array("filter length").map(u32::from_be_bytes)?;
            let kinds = Kinds::from_bits(reader.byte("kinds")?);
            let hash = reader.array("hash")?;
            let head = Self { stored_bytes, bytes, count, first, stored, earliest, latest, filter_bytes, kinds, hash };
            Ok((magic, head))
        };
        let (magic, head) = read(&mut reader).ok()?;
        let fits = head.bytes as usize <= FRAME_BYTES_MAX
            && head.filter_bytes as usize <= FILTER_BYTES_MAX
            && head.length() <= STORED_BYTES_MAX
            && head.count > 0;
        (magic == *FRAME_MAGIC && fits && head.first.checked_add(head.count.into()).is_some()).then_some(head)
    }

    /// Returns the length of the frame.
    pub(super) const fn length(&self) -> usize {
        FRAME_HEAD_BYTES + self.filter_bytes as usize + self.stored_bytes as usize
    }

    /// Returns the position behind the frame's last batch.
    pub(super) const fn end(&self) -> u64 {
        // Checked when it was read.
        self.first.saturating_add(self.count as u64)
    }
}

/// Makes a frame of batches.
///
/// # Errors
/// zstd has no memory.
pub(super) fn encode(batches: &[Batch], first: u64, stored: Time) -> std::io::Result<Vec<u8>> {
    let plain: Vec<u8> = batches.iter().flat_map(|batch| batch.bytes()).copied().collect();
    let compressed = zstd::bulk::compress(&plain, LEVEL)?;
    let summary = Summary::of(batches);
    let mut out = FRAME_MAGIC.to_vec();
    // All are bounded by `FRAME_BYTES_MAX`, which the caller keeps.
    let u32 = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes();
    [compressed.len(), plain.len(), batches.len()].iter().for_each(|number| out.extend(u32(*number)));
    out.extend(first.to_be_bytes());
    [stored, summary.earliest, summary.latest].iter().for_each(|time| out.extend(time.as_micros().to_be_bytes()));
    out.extend(u32(summary.filter.len()));
    out.push(summary.kinds.bits());
    let hash = sha256(&[&out, &summary.filter, &compressed]);
    out.extend(hash);
    out.extend(summary.filter);
    out.extend(compressed);
    Ok(out)
}

/// Reads the whole frame at the front of `bytes`, and its batches if it is one as it was written.
pub(super) fn decode(bytes: &[u8]) -> Option<(FrameHead, Vec<Batch>)> {
    let head = FrameHead::decode(bytes)?;
    let behind = bytes.get(FRAME_HEAD_BYTES..head.length())?;
    if sha256(&[bytes.get(..HASHED_BYTES)?, behind]) != head.hash {
        return None;
    }
    let compressed = behind.get(head.filter_bytes as usize..)?;
    let plain = zstd::bulk::decompress(compressed, head.bytes as usize).ok()?;
    if plain.len() != head.bytes as usize {
        return None;
    }
    let mut rest = plain.as_slice();
    let mut batches = Vec::new();
    while !rest.is_empty() {
        let (batch, behind) = Batch::parse_first(rest).ok()?;
        batches.push(batch);
        rest = behind;
    }
    (batches.len() == head.count as usize).then_some((head, batches))
}

/// Tells whether the frame's summary, which is read without the batches, is that of its batches.
pub(super) fn summary_holds(bytes: &[u8], head: &FrameHead, batches: &[Batch]) -> bool {
    let Summary { earliest, latest, kinds, filter } = Summary::of(batches);
    let filter_end = FRAME_HEAD_BYTES + head.filter_bytes as usize;
    (earliest, latest, kinds) == (head.earliest, head.latest, head.kinds)
        && bytes.get(FRAME_HEAD_BYTES..filter_end) == Some(filter.as_slice())
}

/// Returns where the next whole frame begins in `bytes`.
pub(super) fn find(bytes: &[u8]) -> Option<usize> {
    (0..bytes.len()).find(|at| {
        let rest = bytes.get(*at..).unwrap_or_default();
        rest.starts_with(FRAME_MAGIC) && decode(rest).is_some()
    })
}
