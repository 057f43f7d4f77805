//! Everything that a store's folder holds, read from the beginning and held against itself: what is broken has a name and a
//! place.

use std::collections::BTreeMap;

use super::files::Source;
use super::frame::{self, FRAME_HEAD_BYTES, FrameHead, STORED_BYTES_MAX};
use super::index::Entry;
use super::mark::{MARK, Mark};
use super::segment::{SEGMENT, Segment, read_head};
use super::view::{Repairs, View, position_of, read_cuts};
use super::{CUTS, Cut, StoreError, failed};
use crate::batch::{Batch, BatchError};
use crate::chain::{Accepted, Chain, Fault};
use crate::checkpoint::{Checkpoint, Verifier};
use crate::key::LogKey;
use crate::merkle::{Frontier, Hash};

/// The most breaks that are named; behind it they are counted.
const BREAKS_MAX: usize = 1000;

/// Tells what was found.
#[derive(Debug, Default)]
pub struct Verified {
    /// How many batches are there and are what their nodes signed.
    pub batches: u64,
    /// How many records they hold.
    pub records: u64,
    /// Position behind the last batch.
    pub size: u64,
    /// What does not fit, in the order of positions; no more than a thousand.
    pub breaks: Vec<Break>,
    /// How many more there are.
    pub more: u64,
}

/// Says what does not fit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Break {
    /// Something is missing, changed or cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A batch is not what its node signed.
    #[error("batch {position} of the log store: {error}")]
    Batch {
        /// Where it is.
        position: u64,
        /// How it differs.
        error: BatchError,
    },
    /// A batch does not continue its node's chain.
    #[error("batch {position} of the log store, of {key}: {fault}")]
    Chain {
        /// Where it is.
        position: u64,
        /// Whose it is.
        key: LogKey,
        /// Why it does not.
        fault: Fault,
    },
    /// A batch stands there a second time.
    #[error("batch {position} of the log store is one that was stored before")]
    Twice {
        /// Where it is.
        position: u64,
    },
    /// A segment was written behind other batches than those that are there.
    #[error("the batches before number {position} of the log store are others than those that were there")]
    Tree {
        /// Position of the segment's first batch.
        position: u64,
    },
    /// Somebody holds a checkpoint that says otherwise, or was told of other batches.
    #[error("the first {size} batches of the log store are others than those that the collector spoke of: rewritten")]
    Rewritten {
        /// How many the checkpoint is about.
        size: u64,
    },
    /// The collector signed that it holds more.
    #[error("the log store ends at {size} batches; a checkpoint is about {known}: it was set back")]
    SetBack {
        /// How many there are.
        size: u64,
        /// How many there should be.
        known: u64,
    },
    /// What is read instead of the batches, to find something, says something else than they do.
    #[error("{file} of the log store does not fit the batches from byte {offset} on: searches would miss some")]
    Derived {
        /// Which file.
        file: String,
        /// Where the first thing that does not fit begins.
        offset: u64,
    },
    /// Batches were removed earlier than the rule asks that was given for it.
    #[error("batches {} to {} were removed earlier than their rule says", .0.from, .0.to.saturating_sub(1))]
    Early(Cut),
}

/// Verifies the store in a folder, which nobody need be able to open: frames, batches with their signatures and chains, the
/// tree, the files that are made of them, what retention did, and the collector's earlier checkpoints that somebody kept.
/// Memory is that of a segment's index and nodes, and of the nodes' open conversations.
pub fn verify(files: &impl Source, verifier: &Verifier, known: &[Checkpoint]) -> Verified {
    let mut reading =
        Reading { found: Verified::default(), roots: BTreeMap::new(), chains: BTreeMap::new(), is_cut: false };
    reading.roots.extend(known.iter().map(|checkpoint| (checkpoint.size, checkpoint.root)));
    if let Err(error) = reading.folder(files, verifier) {
        reading.note(error);
    }
    let size = reading.found.size;
    if let Some(checkpoint) = known.iter().max_by_key(|checkpoint| checkpoint.size).filter(|most| most.size > size) {
        reading.note(Break::SetBack { size, known: checkpoint.size });
    }
    reading.found
}

impl<F: Source> View<F> {
    /// Verifies everything that is there: see [`verify`].
    #[must_use]
    pub fn verify(&self, known: &[Checkpoint]) -> Verified {
        verify(&self.files, &self.verifier, known)
    }
}

struct Reading {
    found: Verified,
    /// What somebody was told, by size.
    roots: BTreeMap<u64, Hash>,
    chains: BTreeMap<LogKey, Chain>,
    /// Retention has removed the beginning.
    is_cut: bool,
}

impl Reading {
    fn note(&mut self, broken: impl Into<Break>) {
        if self.found.breaks.len() < BREAKS_MAX {
            self.found.breaks.push(broken.into());
        } else {
            self.found.more += 1;
        }
    }

    fn folder(&mut self, files: &impl Source, verifier: &Verifier) -> Result<(), StoreError> {
        let mark = Mark::read(files).map_err(|source| failed("read", MARK, source))?;
        let mut list = files.list().map_err(|source| failed("list", "the folder", source))?;
        list.retain(|(name, _)| name.starts_with(SEGMENT));
        list.sort();
        let cuts = read_cuts(files, verifier, &mut Repairs::default()).unwrap_or_else(|error| {
            self.note(error);
            Vec::new()
        });
        let mark_size = mark.as_ref().map_or(0, |mark| mark.size);
        match mark {
            Some(mark) if mark.tree != verifier.tree() => self.note(StoreError::OtherLog),
            Some(mark) => drop(self.roots.insert(mark.size, mark.root)),
            None if list.is_empty() && cuts.is_empty() => return Ok(()),
            None => self.note(StoreError::Changed { file: MARK.to_owned(), offset: 0 }),
        }
        let cut_to = cuts.last().map_or(0, |cut| cut.to);
        self.is_cut = cut_to > 0;
        self.found.size = cut_to;
        // That of all batches up to here, unless some could not be read.
        let mut tree = (cut_to == 0).then(Frontier::new);
        for (name, length) in &list {
            if position_of(name).is_some_and(|position| position < cut_to) {
                continue;
            }
            let Some((head, head_bytes)) = read_head(files, name)? else {
                // Otherwise it was begun when the collector was stopped.
                if position_of(name).is_none_or(|position| position < mark_size) {
                    self.note(StoreError::Changed { file: name.clone(), offset: 0 });
                }
                continue;
            };
            let position = head.before.size();
            if position > self.found.size {
                self.note(StoreError::Missing(self.found.size..position));
                tree = None;
            } else if position < self.found.size {
                self.note(StoreError::Changed { file: name.clone(), offset: 0 });
            }
            if tree.as_ref().is_some_and(|tree| *tree != head.before) {
                self.note(Break::Tree { position });
            }
            if cuts.last().is_some_and(|cut| cut.to == position && cut.root != head.before.root()) {
                self.note(StoreError::Changed { file: CUTS.to_owned(), offset: 0 });
            }
            self.found.size = position;
            self.hold(&head.before);
            tree = self.segment(files, Segment::new(head, head_bytes), *length, mark_size)?;
        }
        if let Some(count) = mark_size.checked_sub(self.found.size).filter(|count| *count > 0) {
            self.note(StoreError::Lost { first: self.found.size, count });
        }
        cuts.iter().filter(|cut| cut.is_early()).for_each(|cut| self.note(Break::Early(*cut)));
        Ok(())
    }

    /// Holds the tree against what somebody was told.
    fn hold(&mut self, tree: &Frontier) {
        if self.roots.get(&tree.size()).is_some_and(|root| *root != tree.root()) {
            self.note(Break::Rewritten { size: tree.size() });
        }
    }

    /// Reads a segment; returns the tree up to its end, unless some of it cannot be read.
    fn segment(
        &mut self,
        files: &impl Source,
        mut segment: Segment,
        length: u64,
        mark_size: u64,
    ) -> Result<Option<Frontier>, StoreError> {
        let mut tree = segment.head.before.clone();
        let mut is_whole = true;
        while segment.bytes < length {
            let offset = segment.bytes;
            let read = |offset, length| {
                files.read(&segment.name, offset, length).map_err(|source| failed("read", &segment.name, source))
            };
            let wanted = FrameHead::decode(&read(offset, FRAME_HEAD_BYTES)?).map_or(0, |head| head.length());
            let bytes = read(offset, wanted.min(STORED_BYTES_MAX))?;
            let decoded = frame::decode(&bytes).filter(|(head, _)| head.first >= segment.end);
            let Some((head, batches)) = decoded else {
                if segment.end >= mark_size {
                    // As a crash leaves it.
                    break;
                }
                self.note(StoreError::Changed { file: segment.name.clone(), offset });
                is_whole = false;
                // The next that is one, if there is any.
                let mut at = offset + 1;
                let next = loop {
                    let bytes = read(at, 2 * STORED_BYTES_MAX)?;
                    if let Some(found) = frame::find(&bytes) {
                        break Some(at + found as u64);
                    }
                    if bytes.len() < 2 * STORED_BYTES_MAX {
                        break None;
                    }
                    at += STORED_BYTES_MAX as u64;
                };
                let Some(next) = next else { break };
                segment.bytes = next;
                continue;
            };
            if head.first > segment.end {
                self.note(StoreError::Missing(segment.end..head.first));
                is_whole = false;
            }
            if !frame::summary_holds(&bytes, &head, &batches) {
                self.note(Break::Derived { file: segment.name.clone(), offset });
            }
            segment.push(Entry::of(&head, offset), &[], &mut Frontier::new());
            for (position, batch) in (head.first..).zip(&batches) {
                self.batch(position, batch);
                tree.push(batch.hash(), |_, _, hash| segment.hashes.push(*hash));
                if is_whole {
                    self.hold(&tree);
                }
            }
            self.found.size = head.end();
        }
        if is_whole {
            self.derived(files, &segment)?;
        }
        Ok(is_whole.then_some(tree))
    }

    fn batch(&mut self, position: u64, batch: &Batch) {
        let key = batch.header().key;
        let is_new = !self.chains.contains_key(&key);
        let chain = self.chains.entry(key).or_insert_with(|| Chain::new(key));
        let fault = match chain.accept(batch) {
            Ok(Accepted::New(_)) => None,
            Ok(Accepted::Again) => return self.note(Break::Twice { position }),
            Err(Fault::Batch(error)) => return self.note(Break::Batch { position, error }),
            Err(fault) => {
                let _ = chain.resume(batch);
                // What retention removed is no fault of the node.
                Some(fault).filter(|_| !is_new || !self.is_cut)
            }
        };
        self.found.batches += 1;
        self.found.records += u64::from(batch.header().count);
        if let Some(fault) = fault {
            self.note(Break::Chain { position, key, fault });
        }
    }

    /// Holds the files that are made of a segment against it. They may be shorter than they will be.
    fn derived(&mut self, files: &impl Source, segment: &Segment) -> Result<(), StoreError> {
        let index: Vec<u8> = segment.entries.iter().flat_map(Entry::encode).collect();
        let nodes: Vec<u8> = segment.hashes.iter().flatten().copied().collect();
        for (name, expected) in [(&segment.index, index), (&segment.nodes, nodes)] {
            let found = match files.read(name, 0, expected.len()) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                other => other.map_err(|source| failed("read", name, source))?,
            };
            let same = found.iter().zip(&expected).take_while(|(found, expected)| found == expected).count();
            if same < found.len() {
                self.note(Break::Derived { file: name.clone(), offset: same as u64 });
            }
        }
        Ok(())
    }
}
