//! The collector's disk: batches in the order in which they were stored, in segments of a day.
//!
//! Batches that are stored together are one frame, appended to the newest segment and synced before anybody is told that
//! they are there. What a crash leaves half written at the end is cut off when the store is opened again: nobody was told of
//! it. A segment begins with the peaks of the tree of all batches before it, so that the rest verifies when those are gone.

mod cut;
mod files;
mod frame;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;

use crate::batch::Batch;
use crate::merkle::{Frontier, Hash};
use crate::time::Time;
use cut::CUT_BYTES;
use frame::{FRAME_BYTES_MAX, FRAME_HEAD_BYTES, FrameHead, HEAD_BYTES_MAX, STORED_BYTES_MAX, SegmentHead};

pub use cut::{Cut, Retention, Rule};
pub use files::{Files, Folder};

/// From how many bytes on a segment is not continued, even on its day.
const SEGMENT_BYTES_FULL: u64 = 1 << 30;

const DAY_MICROS: u64 = 24 * 3600 * 1_000_000;
const CUTS: &str = "cuts";
const SEGMENT: &str = "segment-";

/// Says why a store cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The system refuses. Nothing was stored; what was stored before is there.
    #[error("the log store cannot {action} {file}: {source}")]
    Io {
        /// What was to be done.
        action: &'static str,
        /// To which file.
        file: String,
        /// What the system says.
        source: io::Error,
    },
    /// A segment is not as it was written, and not as a crash leaves it.
    #[error(
        "{file} of the log store was changed at byte {offset}; put a copy back, or move it away to go on without it"
    )]
    Changed {
        /// Which file.
        file: String,
        /// Where the first thing that does not fit begins.
        offset: u64,
    },
    /// Batches that retention did not remove are missing.
    #[error("batches {} to {} of the log store are missing: their file was removed", .0.start, .0.end - 1)]
    Missing(Range<u64>),
    /// More was to be stored at once than fits.
    #[error("{0} bytes are more than can be stored at once")]
    TooLarge(usize),
    /// An earlier error left the end of a segment in doubt; open the store again.
    #[error("the log store must be opened again after an error")]
    Poisoned,
}

/// Holds batches on disk.
#[derive(Debug)]
pub struct Store<F> {
    files: F,
    segments: Vec<Segment>,
    cuts: Vec<Cut>,
    /// The tree of all batches that were ever stored.
    tree: Frontier,
    is_poisoned: bool,
}

#[derive(Debug)]
struct Segment {
    name: String,
    head: SegmentHead,
    frames: Vec<Frame>,
    /// Of what is valid.
    bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    offset: u64,
    head: FrameHead,
}

impl Segment {
    fn end(&self) -> u64 {
        self.frames.last().map_or_else(|| self.head.before.size(), |frame| frame.head.end())
    }

    fn newest(&self) -> Time {
        self.frames.last().map_or(self.head.begun, |frame| frame.head.stored)
    }
}

impl<F: Files> Store<F> {
    /// Opens a store, and puts it in order after a crash. Reads the newest segment, and of others the places of frames.
    ///
    /// # Errors
    /// See [`StoreError`]. What was changed or removed by hand is not repaired.
    pub fn open(files: F) -> Result<Self, StoreError> {
        let mut store =
            Self { files, segments: Vec::new(), cuts: Vec::new(), tree: Frontier::new(), is_poisoned: false };
        store.read_cuts()?;
        let cut_to = store.cuts.last().map_or(0, |cut| cut.to);
        let mut names = store.files.list().map_err(|source| failed("list", "the folder", source))?;
        names.retain(|(name, _)| name.starts_with(SEGMENT));
        // Positions have a fixed number of digits.
        names.sort();
        let count = names.len();
        for (number, (name, length)) in names.into_iter().enumerate() {
            if let Some(segment) = store.open_segment(&name, length, number + 1 == count)? {
                if segment.end() <= cut_to && segment.head.before.size() < cut_to {
                    // It was to be removed when we were stopped.
                    store.files.remove(&name).map_err(|source| failed("remove", &name, source))?;
                    continue;
                }
                let expected = store.segments.last().map_or(cut_to, Segment::end);
                let found = segment.head.before.size();
                if found > expected {
                    return Err(StoreError::Missing(expected..found));
                }
                if found < expected {
                    return Err(StoreError::Changed { file: name, offset: 0 });
                }
                store.segments.push(segment);
            }
        }
        store.rebuild_tree()?;
        Ok(store)
    }

    /// Returns how many batches were ever stored: the position of the next one.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.tree.size()
    }

    /// Returns the position of the first batch that is still there.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.segments.first().map_or(self.tree.size(), |segment| segment.head.before.size())
    }

    /// Returns the root of the tree of all batches that were ever stored.
    #[must_use]
    pub fn root(&self) -> Hash {
        self.tree.root()
    }

    /// Returns how many bytes there are on disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Returns what retention has removed, the oldest first.
    #[must_use]
    pub fn cuts(&self) -> &[Cut] {
        &self.cuts
    }

    /// Stores batches, and returns their positions. They are on disk for good then, all of them.
    ///
    /// # Errors
    /// None of them is stored. A full disk is [`StoreError::Io`], and can be tried again.
    pub fn append(&mut self, batches: &[Batch], now: Time) -> Result<Range<u64>, StoreError> {
        if self.is_poisoned {
            return Err(StoreError::Poisoned);
        }
        let length = batches.iter().map(|batch| batch.bytes().len()).sum();
        if length > FRAME_BYTES_MAX {
            return Err(StoreError::TooLarge(length));
        }
        let first = self.tree.size();
        if batches.is_empty() {
            return Ok(first..first);
        }
        let name = self.segment_for(now)?;
        let bytes = frame::encode(batches, first, now).map_err(|source| failed("compress for", &name, source))?;
        let Some(head) = FrameHead::decode(&bytes) else { return Err(StoreError::TooLarge(bytes.len())) };
        let Some(segment) = self.segments.last_mut() else { return Err(StoreError::Poisoned) };
        let offset = segment.bytes;
        let written = self.files.append(&name, &bytes).and_then(|()| self.files.sync(&name));
        if let Err(source) = written {
            // Whatever part of it is there must not be taken for a frame that others follow.
            self.is_poisoned = self.files.truncate(&name, offset).is_err();
            return Err(failed("write to", &name, source));
        }
        segment.frames.push(Frame { offset, head });
        segment.bytes += bytes.len() as u64;
        for batch in batches {
            self.tree.push(batch.hash(), |_, _, _| {});
        }
        Ok(first..head.end())
    }

    /// Reads batches from `position` on, at least one unless that is the end, and returns the position of the first of them,
    /// which may lie before, and when they were stored.
    ///
    /// # Errors
    /// [`StoreError::Missing`] if they were removed; the others if they cannot be read.
    pub fn read(&self, position: u64) -> Result<(u64, Time, Vec<Batch>), StoreError> {
        if position >= self.size() {
            return Ok((self.size(), Time::default(), Vec::new()));
        }
        if position < self.first() {
            return Err(StoreError::Missing(position..self.first()));
        }
        let at = self.segments.partition_point(|segment| segment.end() <= position);
        let segment = self.segments.get(at);
        let found = segment.and_then(|segment| {
            let at = segment.frames.partition_point(|frame| frame.head.end() <= position);
            Some((segment, segment.frames.get(at)?))
        });
        let Some((segment, frame)) = found else { return Err(StoreError::Missing(position..self.size())) };
        let batches = self.read_frame(segment, frame)?;
        Ok((frame.head.first, frame.head.stored, batches))
    }

    /// Removes the oldest segments that `retention` does not keep, after writing down that it does; the newest one stays.
    /// Returns what was removed now.
    ///
    /// # Errors
    /// What was not removed is there still. It can be tried again.
    pub fn retire(&mut self, retention: &Retention, now: Time) -> Result<Vec<Cut>, StoreError> {
        let mut done = Vec::new();
        while let [oldest, next, ..] = self.segments.as_slice() {
            let bytes = self.bytes();
            let age = retention.age.map(Rule::Age);
            let size = retention.bytes.map(Rule::Bytes);
            let cut = |rule| Cut {
                from: oldest.head.before.size(),
                to: oldest.end(),
                newest: oldest.newest(),
                at: now,
                rule,
                bytes,
                root: next.head.before.root(),
            };
            let Some(cut) = [age, size].into_iter().flatten().map(cut).find(|cut| !cut.is_early()) else { break };
            let name = oldest.name.clone();
            // A torn entry at the end was cut off when the store was opened, or is now.
            let length = (self.cuts.len() * CUT_BYTES) as u64;
            let written = self.files.append(CUTS, &cut.encode()).and_then(|()| self.files.sync(CUTS));
            if let Err(source) = written {
                self.is_poisoned |= self.files.truncate(CUTS, length).is_err();
                return Err(failed("write to", CUTS, source));
            }
            self.cuts.push(cut);
            done.push(cut);
            self.files.remove(&name).map_err(|source| failed("remove", &name, source))?;
            self.segments.remove(0);
        }
        Ok(done)
    }

    /// Reads everything that is there and checks it: frames, batches and their signatures, and that the tree grows from
    /// segment to segment as it did. Tells what is wrong, and what retention removed earlier than its rule says.
    ///
    /// # Errors
    /// The first that does not fit.
    pub fn verify(&self) -> Result<Vec<Cut>, StoreError> {
        let mut tree = self.segments.first().map(|segment| segment.head.before.clone()).unwrap_or_default();
        if let Some(cut) = self.cuts.last()
            && let Some(segment) = self.segments.first()
            && cut.root != tree.root()
        {
            return Err(StoreError::Changed { file: segment.name.clone(), offset: 0 });
        }
        for segment in &self.segments {
            if segment.head.before != tree {
                return Err(StoreError::Changed { file: segment.name.clone(), offset: 0 });
            }
            for frame in &segment.frames {
                for batch in self.read_frame(segment, frame)? {
                    if batch.open().is_err() {
                        return Err(StoreError::Changed { file: segment.name.clone(), offset: frame.offset });
                    }
                    tree.push(batch.hash(), |_, _, _| {});
                }
            }
        }
        Ok(self.cuts.iter().filter(|cut| cut.is_early()).copied().collect())
    }

    fn read_frame(&self, segment: &Segment, frame: &Frame) -> Result<Vec<Batch>, StoreError> {
        let bytes = self.files.read(&segment.name, frame.offset, frame.head.length());
        let bytes = bytes.map_err(|source| failed("read", &segment.name, source))?;
        match frame::decode(&bytes) {
            Some((head, batches)) if head == frame.head => Ok(batches),
            _ => Err(StoreError::Changed { file: segment.name.clone(), offset: frame.offset }),
        }
    }

    /// Returns the name of the segment to append to, and begins one if there is none for this day.
    fn segment_for(&mut self, now: Time) -> Result<String, StoreError> {
        let day = |time: Time| time.as_micros() / DAY_MICROS;
        if let Some(segment) = self.segments.last()
            // A clock that is set back does not begin a day again.
            && (segment.frames.is_empty() || day(now) <= day(segment.head.begun))
            && segment.bytes < SEGMENT_BYTES_FULL
        {
            return Ok(segment.name.clone());
        }
        let name = format!("{SEGMENT}{:020}", self.tree.size());
        let head = SegmentHead { begun: now, before: self.tree.clone() };
        let bytes = head.encode();
        if let Err(source) = self.files.append(&name, &bytes).and_then(|()| self.files.sync(&name)) {
            // Without it there is none; one that stays half written is removed when the store is opened.
            self.is_poisoned = self.files.remove(&name).is_err();
            return Err(failed("begin", &name, source));
        }
        let segment = Segment { name: name.clone(), head, frames: Vec::new(), bytes: bytes.len() as u64 };
        self.segments.push(segment);
        Ok(name)
    }

    /// Reads where the frames of a segment are. In the last one whole frames are looked at, and what a crash left behind
    /// them is cut off; `None` if that is all there is.
    fn open_segment(&mut self, name: &str, length: u64, is_last: bool) -> Result<Option<Segment>, StoreError> {
        let read =
            |files: &F, offset, length| files.read(name, offset, length).map_err(|source| failed("read", name, source));
        let changed = |offset| StoreError::Changed { file: name.to_owned(), offset };
        let start = read(&self.files, 0, HEAD_BYTES_MAX)?;
        let Some((head, head_bytes)) = SegmentHead::decode(&start) else {
            if is_last && length <= HEAD_BYTES_MAX as u64 {
                self.files.remove(name).map_err(|source| failed("remove", name, source))?;
                return Ok(None);
            }
            return Err(changed(0));
        };
        let first = head.before.size();
        if name != format!("{SEGMENT}{first:020}") {
            return Err(changed(0));
        }
        let mut segment = Segment { name: name.to_owned(), head, frames: Vec::new(), bytes: head_bytes as u64 };
        while segment.bytes < length {
            let offset = segment.bytes;
            let wanted = if is_last { STORED_BYTES_MAX } else { FRAME_HEAD_BYTES };
            let bytes = read(&self.files, offset, wanted)?;
            let head = if is_last { frame::decode(&bytes).map(|(head, _)| head) } else { FrameHead::decode(&bytes) };
            let fits = |head: &FrameHead| head.first == segment.end() && offset + head.length() as u64 <= length;
            let Some(head) = head.filter(fits) else {
                let torn = length - offset;
                // A crash leaves the beginning of one frame, or room that was never written, and nothing after it.
                let behind = bytes.get(1..).unwrap_or_default();
                if !is_last || torn > STORED_BYTES_MAX as u64 || frame::holds_frame(behind) {
                    return Err(changed(offset));
                }
                self.files.truncate(name, offset).map_err(|source| failed("cut off the end of", name, source))?;
                break;
            };
            segment.frames.push(Frame { offset, head });
            segment.bytes += head.length() as u64;
        }
        Ok(Some(segment))
    }

    fn read_cuts(&mut self) -> Result<(), StoreError> {
        let names = self.files.list().map_err(|source| failed("list", "the folder", source))?;
        let Some((_, length)) = names.into_iter().find(|(name, _)| name == CUTS) else { return Ok(()) };
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        let bytes = self.files.read(CUTS, 0, bytes).map_err(|source| failed("read", CUTS, source))?;
        let (entries, torn) = bytes.as_chunks::<CUT_BYTES>();
        for (number, entry) in entries.iter().enumerate() {
            let offset = (number * CUT_BYTES) as u64;
            let before = self.cuts.last().map_or(0, |cut| cut.to);
            match Cut::decode(entry) {
                Some(cut) if cut.from == before && cut.to >= cut.from => self.cuts.push(cut),
                None if number + 1 == entries.len() && torn.is_empty() => {
                    return self.truncate_cuts(offset);
                }
                Some(_) | None => return Err(StoreError::Changed { file: CUTS.to_owned(), offset }),
            }
        }
        if torn.is_empty() { Ok(()) } else { self.truncate_cuts(length - torn.len() as u64) }
    }

    fn truncate_cuts(&mut self, length: u64) -> Result<(), StoreError> {
        self.files.truncate(CUTS, length).map_err(|source| failed("cut off the end of", CUTS, source))
    }

    /// Makes the tree of the newest segment.
    fn rebuild_tree(&mut self) -> Result<(), StoreError> {
        let Some(segment) = self.segments.last() else {
            return match self.cuts.last() {
                // The newest segment is never removed.
                Some(cut) => Err(StoreError::Missing(cut.to..cut.to + 1)),
                None => Ok(()),
            };
        };
        let mut tree = segment.head.before.clone();
        for frame in &segment.frames {
            for batch in self.read_frame(segment, frame)? {
                tree.push(batch.hash(), |_, _, _| {});
            }
        }
        self.tree = tree;
        Ok(())
    }
}

fn failed(action: &'static str, file: &str, source: io::Error) -> StoreError {
    StoreError::Io { action, file: file.to_owned(), source }
}
