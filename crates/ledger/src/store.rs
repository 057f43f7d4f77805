//! The collector's disk: batches in the order in which they were stored, in segments of a day.
//!
//! Batches that are stored together are one frame, appended to the newest segment and synced; then a mark of its own says
//! how far the store is, and is synced, before anybody is told that they are there. What a crash leaves half written behind
//! the mark is cut off when the store is opened again: nobody was told of it. If the segments end before the mark, that is
//! an error. A segment begins with the peaks of the tree of all batches before it, so that the rest verifies when those are
//! gone.
//!
//! Beside a segment lie its index, by which frames are found and passed over, and the nodes of the tree that its batches
//! make, from which proofs come. Both are made of the segment, and made again when they are lost.
//!
//! Two that are not in this process's hands keep it honest: whoever holds a checkpoint ([`crate::checkpoint`]), and whoever
//! holds a copy.

mod cut;
mod files;
mod frame;
mod index;
mod mark;
mod segment;
pub(crate) mod summary;
#[cfg(test)]
mod tests;
mod verify;
mod view;

use std::io;
use std::ops::Range;

use crate::batch::Batch;
use crate::checkpoint::{Checkpoint, Verifier};
use crate::key::LogSecret;
use crate::merkle::Hash;
use crate::time::Time;
use cut::CUT_BYTES;
use frame::{FRAME_BYTES_MAX, FrameHead, SegmentHead};
use mark::{Derived, MARK, Mark};
use segment::NODE_BYTES;
use view::{Reach, Repairs};

pub(crate) use index::Entry;
pub(crate) use segment::Segment;

pub use cut::{Cut, Retention, Rule};
pub use files::{Files, Folder, ReadFolder, Source};
pub use verify::{Break, Verified, verify};
pub use view::View;

/// From how many bytes on a segment is not continued, even on its day.
const SEGMENT_BYTES_FULL: u64 = 1 << 30;

/// After how many frames, or bytes of them, index and nodes are synced: more would have to be read when it is opened after
/// a crash.
const DERIVED_APART: (u32, u64) = (256, 16 << 20);

const DAY_MICROS: u64 = 24 * 3600 * 1_000_000;
const CUTS: &str = "cuts";

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
    /// A file is not as it was written, and not as a crash leaves it.
    #[error(
        "{file} of the log store was changed at byte {offset}; put a copy back, or move the folder away to begin a new log"
    )]
    Changed {
        /// Which file.
        file: String,
        /// Where the first thing that does not fit begins.
        offset: u64,
    },
    /// Batches that retention did not remove are missing.
    #[error("batches {} to {} of the log store are missing: their file was removed", .0.start, .0.end.saturating_sub(1))]
    Missing(Range<u64>),
    /// Batches are missing at the end, of which somebody was told that they are there for good.
    #[error(
        "{count} acknowledged batches are missing from the end of the log store, from number {first} on: it was set back; \
         put the newest copy back, or move the folder away to begin a new log"
    )]
    Lost {
        /// Position of the first that is missing.
        first: u64,
        /// How many are missing.
        count: u64,
    },
    /// It is the store of another log, or of another collector's key.
    #[error("the log store is that of another log, or was written under another key of the collector")]
    OtherLog,
    /// A file that is made of a segment is lost.
    #[error("{file} of the log store is lost; it is made again when the collector opens the store")]
    NotDerived {
        /// Which file.
        file: String,
    },
    /// More was to be stored at once than fits.
    #[error("{0} bytes are more than can be stored at once")]
    TooLarge(usize),
    /// An earlier error left in doubt what is on disk; open the store again.
    #[error("the log store must be opened again after an error")]
    Poisoned,
}

impl StoreError {
    /// Tells whether retention, which removes while it is read, may be all that is wrong.
    fn may_pass(&self) -> bool {
        match self {
            Self::Missing(_) => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Changed { .. }
            | Self::Lost { .. }
            | Self::OtherLog
            | Self::NotDerived { .. }
            | Self::TooLarge(_)
            | Self::Poisoned => false,
        }
    }
}

/// Holds batches on disk. One at a time writes to a folder.
#[derive(Debug)]
pub struct Store<F> {
    view: View<F>,
    /// What was written last.
    mark: Mark,
    /// Up to where index and nodes are synced.
    derived: Derived,
    /// Frames, and bytes of them, behind that.
    underived: (u32, u64),
    /// Index or nodes of the newest segment could not be written: they are kept in memory until it is opened again.
    is_stuck: bool,
    is_poisoned: bool,
}

impl<F: Files> Store<F> {
    /// Opens the store of the log that `verifier` names, and puts it in order after a crash.
    ///
    /// # Errors
    /// See [`StoreError`]. What was changed or removed by hand is not repaired, and nothing is written then.
    pub fn open(files: F, verifier: &Verifier) -> Result<Self, StoreError> {
        let (view, mark, repairs) = View::load(files, verifier, Reach::All).map_err(|(_, error)| error)?;
        let is_new = mark.is_none();
        let (size, root, derived) = (view.size(), view.root(), Derived::default());
        let mark = mark.unwrap_or(Mark { turn: 0, tree: verifier.tree(), size, root, derived });
        let derived = mark.derived;
        let mut store = Self { view, mark, derived, underived: (0, 0), is_stuck: false, is_poisoned: false };
        if is_new {
            store.mark.create(&mut store.view.files).map_err(|source| failed("write", MARK, source))?;
        }
        store.repair(repairs)?;
        store.derive_all();
        store.tell()?;
        Ok(store)
    }

    /// Returns what there is, to read it.
    pub const fn view(&self) -> &View<F> {
        &self.view
    }

    /// See [`View::size`].
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.view.size()
    }

    /// See [`View::first`].
    #[must_use]
    pub fn first(&self) -> u64 {
        self.view.first()
    }

    /// See [`View::root`].
    #[must_use]
    pub fn root(&self) -> Hash {
        self.view.root()
    }

    /// See [`View::checkpoint`].
    #[must_use]
    pub fn checkpoint(&self) -> Checkpoint {
        self.view.checkpoint()
    }

    /// See [`View::bytes`].
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.view.bytes()
    }

    /// See [`View::cuts`].
    #[must_use]
    pub fn cuts(&self) -> &[Cut] {
        self.view.cuts()
    }

    /// See [`View::read`].
    ///
    /// # Errors
    /// See there.
    pub fn read(&self, position: u64) -> Result<(u64, Time, Vec<Batch>), StoreError> {
        self.view.read(position)
    }

    /// Stores batches, and returns their positions. They are on disk for good then, all of them.
    ///
    /// # Errors
    /// None of them is stored. A full disk is [`StoreError::Io`], and can be tried again; if it cannot be said whether they
    /// are on disk, everything is [`StoreError::Poisoned`] from then on.
    pub fn append(&mut self, batches: &[Batch], now: Time) -> Result<Range<u64>, StoreError> {
        if self.is_poisoned {
            return Err(StoreError::Poisoned);
        }
        let length = batches.iter().map(|batch| batch.bytes().len()).sum();
        if length > FRAME_BYTES_MAX {
            return Err(StoreError::TooLarge(length));
        }
        let first = self.size();
        if batches.is_empty() {
            return Ok(first..first);
        }
        let name = self.segment_for(now)?;
        let bytes = frame::encode(batches, first, now).map_err(|source| failed("compress for", &name, source))?;
        let Some(head) = FrameHead::decode(&bytes) else { return Err(StoreError::TooLarge(bytes.len())) };
        let View { files, segments, tree, .. } = &mut self.view;
        let Some(segment) = segments.last_mut() else { return Err(StoreError::Poisoned) };
        let offset = segment.bytes;
        let written = files.append(&name, &bytes).and_then(|()| files.sync(&name));
        if let Err(source) = written {
            // Whatever part of it is there must not be taken for a frame that others follow.
            self.is_poisoned = files.truncate(&name, offset).is_err();
            return Err(failed("write to", &name, source));
        }
        segment.push(Entry::of(&head, offset), batches, tree);
        self.underived.0 += 1;
        self.underived.1 += bytes.len() as u64;
        self.derive();
        if self.underived.0 >= DERIVED_APART.0 || self.underived.1 >= DERIVED_APART.1 {
            self.sync_derived();
        }
        self.tell()?;
        Ok(first..head.end())
    }

    /// Removes the oldest segments that `retention` does not keep, after writing down that it does, signed with the
    /// collector's key; the newest one stays. Returns what was removed now.
    ///
    /// # Errors
    /// What was not removed is there still. It can be tried again.
    pub fn retire(&mut self, retention: &Retention, now: Time, secret: &LogSecret) -> Result<Vec<Cut>, StoreError> {
        let mut done = Vec::new();
        if self.is_poisoned {
            return Err(StoreError::Poisoned);
        }
        if secret.public() != *self.view.verifier.key() {
            return Err(StoreError::OtherLog);
        }
        while let [oldest, next, ..] = self.view.segments.as_slice() {
            let bytes = self.bytes();
            let age = retention.age.map(Rule::Age);
            let size = retention.bytes.map(Rule::Bytes);
            let cut = |rule| Cut {
                from: oldest.position(),
                to: oldest.end,
                newest: oldest.newest,
                at: now,
                rule,
                bytes,
                root: next.head.before.root(),
            };
            let Some(cut) = [age, size].into_iter().flatten().map(cut).find(|cut| !cut.is_early()) else { break };
            let entry = cut.sign(&self.view.verifier, secret);
            let View { files, segments, cuts, .. } = &mut self.view;
            // A torn entry at the end was cut off when the store was opened, or is now.
            let length = (cuts.len() * CUT_BYTES) as u64;
            let written = files.append(CUTS, &entry).and_then(|()| files.sync(CUTS));
            if let Err(source) = written {
                self.is_poisoned |= files.truncate(CUTS, length).is_err();
                return Err(failed("write to", CUTS, source));
            }
            cuts.push(cut);
            done.push(cut);
            let oldest = segments.remove(0);
            files.remove(&oldest.name).map_err(|source| failed("remove", &oldest.name, source))?;
            for name in [&oldest.index, &oldest.nodes] {
                // What stays is removed when the store is opened.
                let _ = files.remove(name);
            }
        }
        Ok(done)
    }

    /// Returns the name of the segment to append to, and begins one if there is none for this day.
    fn segment_for(&mut self, now: Time) -> Result<String, StoreError> {
        let day = |time: Time| time.as_micros() / DAY_MICROS;
        if let Some(segment) = self.view.segments.last()
            // A clock that is set back does not begin a day again.
            && (segment.frames() == 0 || day(now) <= day(segment.head.begun))
            && segment.bytes < SEGMENT_BYTES_FULL
        {
            return Ok(segment.name.clone());
        }
        self.sync_derived();
        let head = SegmentHead { begun: now, before: self.view.tree.clone() };
        let bytes = head.encode();
        let segment = Segment::new(head, bytes.len() as u64);
        let (name, files) = (segment.name.clone(), &mut self.view.files);
        if let Err(source) = files.append(&name, &bytes).and_then(|()| files.sync(&name)) {
            // Without it there is none; one that stays half written is removed when the store is opened.
            self.is_poisoned = files.remove(&name).is_err();
            return Err(failed("begin", &name, source));
        }
        self.view.segments.push(segment);
        self.is_stuck = false;
        Ok(name)
    }

    /// Writes down how far the store is, for good: only then somebody may be told.
    fn tell(&mut self) -> Result<(), StoreError> {
        let mark = Mark {
            turn: self.mark.turn + 1,
            size: self.view.size(),
            root: self.view.root(),
            derived: self.derived,
            ..self.mark
        };
        if mark == (Mark { turn: mark.turn, ..self.mark }) {
            return Ok(());
        }
        mark.write(&mut self.view.files).map_err(|source| {
            self.is_poisoned = true;
            failed("write", MARK, source)
        })?;
        self.mark = mark;
        Ok(())
    }

    /// Writes the newest segment's entries and nodes that are in memory alone to their files. They wait there if the disk
    /// is full, for instance: all that is lost is memory, and time when the store is opened again.
    fn derive(&mut self) {
        let View { files, segments, .. } = &mut self.view;
        let Some(segment) = segments.last_mut().filter(|_| !self.is_stuck) else { return };
        let entries: Vec<u8> = segment.entries.iter().flat_map(Entry::encode).collect();
        let nodes: Vec<u8> = segment.hashes.iter().flatten().copied().collect();
        if files.append(&segment.index, &entries).and_then(|()| files.append(&segment.nodes, &nodes)).is_err() {
            self.is_stuck = true;
            return;
        }
        segment.indexed += segment.entries.len() as u64;
        segment.hashed += segment.hashes.len() as u64;
        segment.entries.clear();
        segment.hashes.clear();
    }

    /// Syncs index and nodes of the newest segment.
    fn sync_derived(&mut self) {
        let View { files, segments, .. } = &mut self.view;
        let Some(segment) = segments.last().filter(|segment| !self.is_stuck && segment.frames() > 0) else { return };
        if files.sync(&segment.index).and_then(|()| files.sync(&segment.nodes)).is_err() {
            self.is_stuck = true;
            return;
        }
        let (offset, end) = (segment.bytes, segment.end);
        self.derived = Derived { segment: segment.position(), entries: segment.indexed, offset, end };
        self.underived = (0, 0);
    }

    /// Puts in order what a crash left behind.
    fn repair(&mut self, repairs: Repairs) -> Result<(), StoreError> {
        let files = &mut self.view.files;
        for name in &repairs.remove {
            files.remove(name).map_err(|source| failed("remove", name, source))?;
        }
        for (name, length) in &repairs.truncate {
            files.truncate(name, *length).map_err(|source| failed("cut off the end of", name, source))?;
        }
        for name in &repairs.orphans {
            // They are in nobody's way.
            let _ = files.remove(name);
        }
        Ok(())
    }

    /// Makes index and nodes again where they are lost, and cuts off what is not known to be on disk.
    fn derive_all(&mut self) {
        let count = self.view.segments.len();
        let View { files, segments, .. } = &mut self.view;
        for segment in segments.iter_mut().take(count.saturating_sub(1)) {
            let nodes = segment::nodes_of(segment.end) - segment::nodes_of(segment.position());
            if segment.indexed < segment.frames() || segment.hashed < nodes {
                // What cannot be read is found when it is asked for.
                let _ = derive_again(files, segment);
            }
        }
        let Some(segment) = segments.last() else { return };
        for (name, length) in [
            (&segment.index, segment.indexed * index::ENTRY_BYTES as u64),
            (&segment.nodes, segment.hashed * NODE_BYTES as u64),
        ] {
            // An empty file is made so that there is something to cut.
            self.is_stuck |= files.append(name, &[]).and_then(|()| files.truncate(name, length)).is_err();
        }
        self.derive();
        self.sync_derived();
    }
}

/// Makes index and nodes of a segment again, of its frames.
fn derive_again(files: &mut impl Files, segment: &mut Segment) -> Result<(), StoreError> {
    let mut entries = Vec::new();
    loop {
        let more = segment.entries(files, entries.len() as u64, 1024)?;
        if more.is_empty() {
            break;
        }
        entries.extend(more);
    }
    let mut tree = segment.head.before.clone();
    let mut again = Segment::new(segment.head.clone(), segment.bytes);
    // If we come no further, memory has it.
    (segment.indexed, segment.hashed) = (0, 0);
    segment.entries.clone_from(&entries);
    segment.hashes.clear();
    let names = [segment.index.clone(), segment.nodes.clone()];
    for name in &names {
        let made = files.append(name, &[]).and_then(|()| files.truncate(name, 0));
        made.map_err(|source| failed("make", name, source))?;
    }
    for entry in entries {
        let batches = segment.read(files, &entry)?;
        again.push(entry, &batches, &mut tree);
        let nodes: Vec<u8> = again.hashes.drain(..).flatten().collect();
        again.hashed += nodes.len() as u64 / NODE_BYTES as u64;
        again.indexed += 1;
        again.entries.clear();
        let written = files.append(&segment.index, &entry.encode()).and_then(|()| files.append(&segment.nodes, &nodes));
        written.map_err(|source| failed("write to", &segment.index, source))?;
    }
    for name in &names {
        files.sync(name).map_err(|source| failed("write", name, source))?;
    }
    *segment = again;
    Ok(())
}

fn failed(action: &'static str, file: &str, source: io::Error) -> StoreError {
    StoreError::Io { action, file: file.to_owned(), source }
}
