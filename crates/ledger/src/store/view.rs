//! A store as it is read: nothing here writes.

use std::collections::BTreeMap;
use std::io;

use super::cut::{CUT_BYTES, Cut};
use super::files::Source;
use super::mark::{MARK, Mark};
use super::segment::{SEGMENT, Segment, node, read_head};
use super::{CUTS, StoreError, failed};
use crate::batch::Batch;
use crate::checkpoint::{Checkpoint, Verifier};
use crate::merkle::{Frontier, Hash, Nodes};
use crate::time::Time;

/// How often it is looked again when retention removes what is being read.
const LOOKS: u32 = 3;

/// Shows a store as it was when it was opened: to read, beside whoever writes to it. Nothing is written or put in order.
#[derive(Debug)]
pub struct View<F> {
    pub(super) files: F,
    pub(super) verifier: Verifier,
    pub(super) segments: Vec<Segment>,
    pub(super) cuts: Vec<Cut>,
    /// The tree of all batches that were ever stored.
    pub(super) tree: Frontier,
}

/// Says what a crash left behind, which whoever writes puts in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Repairs {
    pub(super) remove: Vec<String>,
    pub(super) truncate: Vec<(String, u64)>,
    /// Files that belong to no segment.
    pub(super) orphans: Vec<String>,
}

/// Says what is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// What somebody was told of.
    Acknowledged,
    /// That, and what came in whole after it.
    All,
}

impl<F: Source> View<F> {
    /// Opens the store of the log that `verifier` names, to read it. What nobody was told of yet is not there.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open(files: F, verifier: &Verifier) -> Result<Self, StoreError> {
        let mut files = files;
        let mut looks = 1;
        loop {
            match Self::load(files, verifier, Reach::Acknowledged) {
                Ok((view, _, _)) => return Ok(view),
                Err((back, error)) if looks < LOOKS && error.may_pass() => files = back,
                Err((_, error)) => return Err(error),
            }
            looks += 1;
        }
    }

    /// Reads what there is, and says what is to be put in order.
    pub(super) fn load(
        files: F,
        verifier: &Verifier,
        reach: Reach,
    ) -> Result<(Self, Option<Mark>, Repairs), (F, StoreError)> {
        match parts(&files, verifier, reach) {
            Ok((segments, cuts, tree, mark, repairs)) => {
                Ok((Self { files, verifier: verifier.clone(), segments, cuts, tree }, mark, repairs))
            }
            Err(error) => Err((files, error)),
        }
    }

    /// Returns how many batches were ever stored: the position of the next one.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.tree.size()
    }

    /// Returns the position of the first batch that is still there.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.segments.first().map_or(self.tree.size(), Segment::position)
    }

    /// Returns the root of the tree of all batches that were ever stored.
    #[must_use]
    pub fn root(&self) -> Hash {
        self.tree.root()
    }

    /// Returns which log it is.
    #[must_use]
    pub const fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// Returns what the log is now, to be signed.
    #[must_use]
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint { origin: self.verifier.name().to_owned(), size: self.size(), root: self.root() }
    }

    /// Returns how many bytes the batches take on disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Returns what retention has removed, the oldest first.
    #[must_use]
    pub fn cuts(&self) -> &[Cut] {
        &self.cuts
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
        let missing = || StoreError::Missing(position..self.size());
        let segment = self.segment_of(position).ok_or_else(missing)?;
        let number = segment.frame_of(&self.files, position)?;
        let entry = segment.entries(&self.files, number, 1)?.first().copied().ok_or_else(missing)?;
        Ok((entry.first, entry.stored, segment.read(&self.files, &entry)?))
    }

    pub(crate) const fn files(&self) -> &F {
        &self.files
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Returns the segment that holds a position.
    fn segment_of(&self, position: u64) -> Option<&Segment> {
        self.segments.get(self.segments.partition_point(|segment| segment.end <= position))
    }
}

impl<F: Source> Nodes for View<F> {
    type Error = StoreError;

    /// Returns a node: one made by batches that are still there, or that the rest of the tree needs of those before.
    fn node(&self, level: u8, index: u64) -> Result<Hash, StoreError> {
        let gone = Frontier::new();
        let before = self.segments.first().map_or(&gone, |segment| &segment.head.before);
        let last = index.checked_add(1).and_then(|next| next.checked_mul(1_u64.checked_shl(level.into())?));
        let segment = last.and_then(|behind| self.segment_of(behind.checked_sub(1)?));
        node(&self.files, segment, before, level, index)
    }
}

type Parts = (Vec<Segment>, Vec<Cut>, Frontier, Option<Mark>, Repairs);

fn parts(files: &impl Source, verifier: &Verifier, reach: Reach) -> Result<Parts, StoreError> {
    // Before the segments: what is told of later need not be in what is listed now.
    let mark = Mark::read(files).map_err(|source| failed("read", MARK, source))?;
    let list = files.list().map_err(|source| failed("list", "the folder", source))?;
    let lengths: BTreeMap<String, u64> = list.into_iter().collect();
    let mut repairs = Repairs::default();
    let cuts = read_cuts(files, verifier, &mut repairs)?;
    let cut_to = cuts.last().map_or(0, |cut| cut.to);
    // Positions have a fixed number of digits.
    let mut names: Vec<&String> = lengths.keys().filter(|name| name.starts_with(SEGMENT)).collect();
    let Some(known) = mark.clone() else {
        // The mark is made before anything else, and there is always one that holds.
        if names.is_empty() && cuts.is_empty() {
            return Ok((Vec::new(), cuts, Frontier::new(), None, repairs));
        }
        return Err(StoreError::Changed { file: MARK.to_owned(), offset: 0 });
    };
    if known.tree != verifier.tree() {
        return Err(StoreError::OtherLog);
    }
    let most = if reach == Reach::All { u64::MAX } else { known.size };
    if let Some(last) = names.last().copied()
        && position_of(last).is_some_and(|position| position >= known.size)
        && read_head(files, last)?.is_none()
    {
        // It was begun when we were stopped; nobody was told of anything in it.
        repairs.remove.push(last.clone());
        names.pop();
    }
    let mut heads = Vec::new();
    for name in names {
        if position_of(name).is_some_and(|position| position < cut_to) {
            // It was to be removed when we were stopped.
            repairs.remove.push(name.clone());
            continue;
        }
        let head = read_head(files, name)?.ok_or_else(|| StoreError::Changed { file: name.clone(), offset: 0 })?;
        heads.push(head);
    }
    let mut segments: Vec<Segment> = Vec::new();
    let mut tree = Frontier::new();
    let mut heads = heads.into_iter().peekable();
    while let Some(head) = heads.next() {
        let expected = segments.last().map_or(cut_to, |segment| segment.end);
        let found = head.0.before.size();
        if found > expected {
            return Err(StoreError::Missing(expected..found));
        }
        let is_first = segments.is_empty();
        let fits = found == expected && (!is_first || cuts.last().is_none_or(|cut| cut.root == head.0.before.root()));
        if !fits {
            return Err(StoreError::Changed { file: Segment::new(head.0, 0).name, offset: 0 });
        }
        if let Some((next, _)) = heads.peek() {
            segments.push(Segment::open_full(files, head, &lengths, next.before.size())?);
            continue;
        }
        let (newest, its, torn) = Segment::open_newest(files, head, &lengths, &known, most)?;
        tree = its;
        if let Some(torn) = torn {
            // What somebody was told of is cut off by nobody but a hand.
            if !torn.is_cut && newest.end < known.size {
                return Err(StoreError::Changed { file: newest.name, offset: newest.bytes });
            }
            repairs.truncate.push((newest.name.clone(), newest.bytes));
        }
        segments.push(newest);
    }
    let end = segments.last().map_or(cut_to, |segment| segment.end);
    // The newest segment is never removed: without any, at least one batch is gone, whatever the mark says.
    let least = if segments.is_empty() && cut_to > 0 { cut_to.saturating_add(1) } else { 0 };
    if let Some(count) = known.size.max(least).checked_sub(end).filter(|count| *count > 0) {
        return Err(StoreError::Lost { first: end, count });
    }
    let is_of_none = |name: &&String| {
        let made = [super::segment::INDEX, super::segment::NODES].iter().any(|kind| name.starts_with(kind));
        made && !segments.iter().any(|segment| segment.index == **name || segment.nodes == **name)
    };
    repairs.orphans = lengths.keys().filter(is_of_none).cloned().collect();
    Ok((segments, cuts, tree, mark, repairs))
}

/// Returns the position that a segment's name says.
pub(super) fn position_of(name: &str) -> Option<u64> {
    name.strip_prefix(SEGMENT)?.parse().ok()
}

/// Reads what retention removed.
pub(super) fn read_cuts(
    files: &impl Source,
    verifier: &Verifier,
    repairs: &mut Repairs,
) -> Result<Vec<Cut>, StoreError> {
    let bytes = match files.read(CUTS, 0, usize::MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|source| failed("read", CUTS, source))?,
    };
    let (entries, torn) = bytes.as_chunks::<CUT_BYTES>();
    let mut cuts: Vec<Cut> = Vec::new();
    for (number, entry) in entries.iter().enumerate() {
        let before = cuts.last().map_or(0, |cut| cut.to);
        match Cut::decode(entry, verifier) {
            Some(cut) if cut.from == before && cut.to >= cut.from => cuts.push(cut),
            // As a crash leaves it. If somebody wrote it, the segment is missing.
            None if number + 1 == entries.len() && torn.is_empty() => {
                repairs.truncate.push((CUTS.to_owned(), (number * CUT_BYTES) as u64));
            }
            Some(_) | None => {
                return Err(StoreError::Changed { file: CUTS.to_owned(), offset: (number * CUT_BYTES) as u64 });
            }
        }
    }
    if !torn.is_empty() {
        repairs.truncate.push((CUTS.to_owned(), (bytes.len() - torn.len()) as u64));
    }
    Ok(cuts)
}
