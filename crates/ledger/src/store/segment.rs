//! A segment as it is known in memory: where its frames are found, and the nodes of the tree that its batches make.

use std::collections::BTreeMap;

use super::files::Source;
use super::frame::{self, FRAME_HEAD_BYTES, FrameHead, HEAD_BYTES_MAX, STORED_BYTES_MAX, SegmentHead};
use super::index::{ENTRY_BYTES, Entry};
use super::mark::Mark;
use super::{StoreError, failed};
use crate::batch::Batch;
use crate::merkle::{Frontier, Hash};
use crate::time::Time;

/// Begins the name of a segment's file.
pub(super) const SEGMENT: &str = "segment-";
/// Begins the name of the file with a segment's entries.
pub(super) const INDEX: &str = "index-";
/// Begins the name of the file with the tree's nodes that a segment's batches make, in the order in which they come up.
pub(super) const NODES: &str = "nodes-";

/// Bytes of a node of the tree.
pub(super) const NODE_BYTES: usize = 32;

/// Returns how many nodes the tree of this many leaves has that are final.
pub(super) const fn nodes_of(leaves: u64) -> u64 {
    leaves.saturating_mul(2).saturating_sub(leaves.count_ones() as u64)
}

/// Knows where a segment's frames are.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) name: String,
    pub(super) index: String,
    pub(super) nodes: String,
    pub(super) head: SegmentHead,
    /// Of what is valid, in its file.
    pub(super) bytes: u64,
    /// Position behind its last batch.
    pub(crate) end: u64,
    /// When the last one was stored.
    pub(super) newest: Time,
    /// How many entries of the index file hold.
    pub(super) indexed: u64,
    /// The entries behind them.
    pub(super) entries: Vec<Entry>,
    /// How many nodes of the file hold.
    pub(super) hashed: u64,
    /// The nodes behind them.
    pub(super) hashes: Vec<Hash>,
}

impl Segment {
    /// Makes the segment of a head, without frames.
    pub(super) fn new(head: SegmentHead, head_bytes: u64) -> Self {
        let position = head.before.size();
        let name = |kind| format!("{kind}{position:020}");
        Self {
            name: name(SEGMENT),
            index: name(INDEX),
            nodes: name(NODES),
            bytes: head_bytes,
            end: position,
            newest: head.begun,
            head,
            indexed: 0,
            entries: Vec::new(),
            hashed: 0,
            hashes: Vec::new(),
        }
    }

    /// Returns the position of its first batch.
    pub(crate) const fn position(&self) -> u64 {
        self.head.before.size()
    }

    /// Returns the position behind its last batch.
    pub(crate) const fn end(&self) -> u64 {
        self.end
    }

    /// Returns the number of its frames.
    pub(super) fn frames(&self) -> u64 {
        self.indexed + self.entries.len() as u64
    }

    /// Returns up to `count` entries from number `from` on, one at least unless there is none.
    pub(crate) fn entries(&self, files: &impl Source, from: u64, count: usize) -> Result<Vec<Entry>, StoreError> {
        if from >= self.indexed {
            let from = usize::try_from(from - self.indexed).unwrap_or(usize::MAX);
            return Ok(self.entries.get(from..).unwrap_or_default().iter().take(count).copied().collect());
        }
        let offset = from * ENTRY_BYTES as u64;
        let count = usize::try_from(self.indexed - from).unwrap_or(usize::MAX).min(count);
        let bytes = files.read(&self.index, offset, count * ENTRY_BYTES);
        let bytes = bytes.map_err(|source| failed("read", &self.index, source))?;
        let (entries, _) = bytes.as_chunks::<ENTRY_BYTES>();
        let changed = || StoreError::Changed { file: self.index.clone(), offset };
        if entries.len() < count {
            return Err(changed());
        }
        entries.iter().map(|entry| Entry::decode(entry).ok_or_else(changed)).collect()
    }

    /// Returns the number of the frame that holds a position, or of the first behind it.
    pub(crate) fn frame_of(&self, files: &impl Source, position: u64) -> Result<u64, StoreError> {
        let (mut low, mut high) = (0, self.frames());
        while low < high {
            let middle = low.midpoint(high);
            let behind = self.entries(files, middle, 1)?.first().is_none_or(|entry| entry.end() > position);
            if behind { high = middle } else { low = middle + 1 }
        }
        Ok(low)
    }

    /// Reads the batches of a frame.
    pub(crate) fn read(&self, files: &impl Source, entry: &Entry) -> Result<Vec<Batch>, StoreError> {
        let bytes = files.read(&self.name, entry.offset, entry.length as usize);
        let bytes = bytes.map_err(|source| failed("read", &self.name, source))?;
        match frame::decode(&bytes) {
            Some((head, batches)) if Entry::of(&head, entry.offset) == *entry => Ok(batches),
            _ => Err(StoreError::Changed { file: self.name.clone(), offset: entry.offset }),
        }
    }

    /// Reads the filter of a frame.
    pub(crate) fn filter(&self, files: &impl Source, entry: &Entry) -> Result<Vec<u8>, StoreError> {
        let wanted = FRAME_HEAD_BYTES + super::summary::FILTER_BYTES_MAX;
        let bytes = files.read(&self.name, entry.offset, wanted.min(entry.length as usize));
        let bytes = bytes.map_err(|source| failed("read", &self.name, source))?;
        let filter = FrameHead::decode(&bytes).and_then(|head| {
            bytes.get(FRAME_HEAD_BYTES..FRAME_HEAD_BYTES + head.filter_bytes as usize).map(<[u8]>::to_vec)
        });
        filter.ok_or_else(|| StoreError::Changed { file: self.name.clone(), offset: entry.offset })
    }

    /// Returns node number `number` of those that its batches make.
    pub(super) fn node(&self, files: &impl Source, number: u64) -> Result<Hash, StoreError> {
        let lost = || StoreError::NotDerived { file: self.nodes.clone() };
        if number >= self.hashed {
            let number = usize::try_from(number - self.hashed).unwrap_or(usize::MAX);
            return self.hashes.get(number).copied().ok_or_else(lost);
        }
        let bytes = files.read(&self.nodes, number * NODE_BYTES as u64, NODE_BYTES);
        let bytes = bytes.map_err(|source| failed("read", &self.nodes, source))?;
        bytes.try_into().map_err(|_| lost())
    }

    /// Takes note of a frame behind the others, and puts its batches into the tree.
    pub(super) fn push(&mut self, entry: Entry, batches: &[Batch], tree: &mut Frontier) {
        self.bytes = entry.offset_end();
        self.end = entry.end();
        self.newest = entry.stored;
        self.entries.push(entry);
        for batch in batches {
            tree.push(batch.hash(), |_, _, hash| self.hashes.push(*hash));
        }
    }

    /// Opens a segment that others follow, of which the next one begins at `next`: its index says where its frames are, or
    /// else they do.
    pub(super) fn open_full(
        files: &impl Source,
        (head, head_bytes): (SegmentHead, u64),
        lengths: &BTreeMap<String, u64>,
        next: u64,
    ) -> Result<Self, StoreError> {
        let mut segment = Self::new(head, head_bytes);
        let length = |name: &str| lengths.get(name).copied().unwrap_or(0);
        let file = length(&segment.name);
        let indexed = length(&segment.index) / ENTRY_BYTES as u64;
        segment.indexed = indexed;
        let last = indexed.checked_sub(1).and_then(|last| segment.entries(files, last, 1).ok()?.first().copied());
        match last {
            Some(last) if last.end() == next && last.offset_end() == file => {
                segment.bytes = file;
                segment.end = next;
                segment.newest = last.stored;
            }
            _ => {
                segment.indexed = 0;
                segment.scan(files, file)?;
            }
        }
        let nodes = nodes_of(segment.end) - nodes_of(segment.position());
        if length(&segment.nodes) == nodes * NODE_BYTES as u64 {
            segment.hashed = nodes;
        }
        Ok(segment)
    }

    /// Reads where the frames are from their own heads.
    fn scan(&mut self, files: &impl Source, length: u64) -> Result<(), StoreError> {
        while self.bytes < length {
            let bytes = files.read(&self.name, self.bytes, FRAME_HEAD_BYTES);
            let bytes = bytes.map_err(|source| failed("read", &self.name, source))?;
            let entry = FrameHead::decode(&bytes).map(|head| Entry::of(&head, self.bytes));
            let fits = |entry: &Entry| entry.first == self.end && entry.offset_end() <= length;
            let Some(entry) = entry.filter(fits) else {
                return Err(StoreError::Changed { file: self.name.clone(), offset: self.bytes });
            };
            self.push(entry, &[], &mut Frontier::new());
        }
        Ok(())
    }

    /// Opens the newest segment: what the mark says about its index and nodes is believed, the frames behind are read. The
    /// tree before it becomes that of all batches up to its end, or up to `most` if that is within it.
    ///
    /// Returns what is wrong with the frame behind the last that was read, if one is begun there.
    pub(super) fn open_newest(
        files: &impl Source,
        (head, head_bytes): (SegmentHead, u64),
        lengths: &BTreeMap<String, u64>,
        mark: &Mark,
        most: u64,
    ) -> Result<(Self, Frontier, Option<Torn>), StoreError> {
        let mut segment = Self::new(head, head_bytes);
        let length = |name: &str| lengths.get(name).copied().unwrap_or(0);
        let file = length(&segment.name);
        let mut tree = segment.head.before.clone();
        if let Some(derived) = segment.derived(files, lengths, mark) {
            (segment, tree) = derived;
        }
        if tree.size() == mark.size && tree.root() != mark.root {
            return Err(StoreError::Changed { file: segment.name, offset: 0 });
        }
        while segment.bytes < file && segment.end < most {
            let offset = segment.bytes;
            let read = |length| files.read(&segment.name, offset, length);
            let start = read(FRAME_HEAD_BYTES).map_err(|source| failed("read", &segment.name, source))?;
            let head = FrameHead::decode(&start).filter(|head| head.first == segment.end);
            // Whether all of it is there that should be.
            let is_cut = start.len() < FRAME_HEAD_BYTES
                || head.as_ref().is_some_and(|head| file - offset < head.length() as u64);
            let wanted = head.as_ref().map_or(0, FrameHead::length).min(STORED_BYTES_MAX);
            let bytes = read(wanted).map_err(|source| failed("read", &segment.name, source))?;
            let Some((head, batches)) = frame::decode(&bytes).filter(|(head, _)| head.first == segment.end) else {
                return Ok((segment, tree, Some(Torn { is_cut })));
            };
            // Somebody was told of whole frames.
            let is_across = segment.end < mark.size && head.end() > mark.size;
            segment.push(Entry::of(&head, offset), &batches, &mut tree);
            if is_across || (tree.size() == mark.size && tree.root() != mark.root) {
                return Err(StoreError::Changed { file: segment.name, offset });
            }
        }
        Ok((segment, tree, None))
    }

    /// Takes over what the mark says is on disk, if it is.
    fn derived(&self, files: &impl Source, lengths: &BTreeMap<String, u64>, mark: &Mark) -> Option<(Self, Frontier)> {
        let derived = mark.derived;
        let length = |name: &str| lengths.get(name).copied().unwrap_or(0);
        let hashed = nodes_of(derived.end).checked_sub(nodes_of(self.position()))?;
        let fits = derived.segment == self.position()
            && derived.entries > 0
            && derived.offset <= length(&self.name)
            && derived.entries.checked_mul(ENTRY_BYTES as u64)? <= length(&self.index)
            && hashed.checked_mul(NODE_BYTES as u64)? <= length(&self.nodes);
        if !fits {
            return None;
        }
        let mut segment = Self { indexed: derived.entries, hashed, ..self.clone() };
        let last = segment.entries(files, derived.entries - 1, 1).ok()?.first().copied()?;
        if (last.end(), last.offset_end()) != (derived.end, derived.offset) {
            return None;
        }
        segment.bytes = derived.offset;
        segment.end = derived.end;
        segment.newest = last.stored;
        let tree = Frontier::of(&Peaks { files, segment: &segment }, derived.end).ok()?;
        // The tree that somebody was told of, if it ends here.
        (mark.size != derived.end || tree.root() == mark.root).then_some((segment, tree))
    }
}

/// Says that behind the last whole frame there is the beginning of another, or what is none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Torn {
    /// The file ends within it.
    pub(super) is_cut: bool,
}

/// Gives the peaks of the tree up to a segment's end, which lie in it or before it.
struct Peaks<'a, F> {
    files: &'a F,
    segment: &'a Segment,
}

impl<F: Source> crate::merkle::Nodes for Peaks<'_, F> {
    type Error = StoreError;

    fn node(&self, level: u8, index: u64) -> Result<Hash, StoreError> {
        node(self.files, Some(self.segment), &self.segment.head.before, level, index)
    }
}

/// Returns a node of the tree, which `segment` made with one of its batches, or which is a peak of the tree before.
pub(super) fn node(
    files: &impl Source,
    segment: Option<&Segment>,
    before: &Frontier,
    level: u8,
    index: u64,
) -> Result<Hash, StoreError> {
    let missing = || StoreError::Missing(index.checked_shl(level.into()).unwrap_or(0)..before.size());
    let last = index.checked_add(1).and_then(|next| next.checked_mul(1_u64.checked_shl(level.into())?));
    let last = last.and_then(|behind| behind.checked_sub(1)).ok_or_else(missing)?;
    match segment {
        Some(segment) if last >= segment.position() => {
            segment.node(files, nodes_of(last) + u64::from(level) - nodes_of(segment.position()))
        }
        // Before: one of the peaks, or gone.
        _ => before.peak(level, index).ok_or_else(missing),
    }
}

/// Reads the head at the beginning of a segment's file, and returns its length; `None` if there is none.
pub(super) fn read_head(files: &impl Source, name: &str) -> Result<Option<(SegmentHead, u64)>, StoreError> {
    let start = files.read(name, 0, HEAD_BYTES_MAX).map_err(|source| failed("read", name, source))?;
    let head = SegmentHead::decode(&start).filter(|(head, _)| name == format!("{SEGMENT}{:020}", head.before.size()));
    Ok(head.map(|(head, length)| (head, length as u64)))
}
