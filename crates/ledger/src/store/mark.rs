//! How far the store was when somebody was last told that batches are on disk: a file of its own, which shows when the
//! end of the segments is gone.
//!
//! There are two slots, which are written in turns, so that one of them holds whatever happens while the other is written.
//! Numbers are big-endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | `WLM1` |
//! | 4 | 8 | how many times a slot was written before: the larger one of both slots holds |
//! | 12 | 32 | which log it is: [`TreeId`] |
//! | 44 | 8 | number of batches |
//! | 52 | 32 | root of their tree |
//! | 84 | 8 | position of the first batch of the segment that is written |
//! | 92 | 8 | number of entries of its index that are on disk for good |
//! | 100 | 8 | where the frames of these end in the segment |
//! | 108 | 8 | position behind their last batch; nodes of the tree are on disk for good up to there, too |
//! | 116 | 32 | SHA-256 of the bytes before |

use std::io;

use aws_lc_rs::digest::{SHA256, digest};

use super::files::{Files, Source};
use crate::checkpoint::TreeId;
use crate::codec::{DecodeError, Reader};
use crate::merkle::Hash;

/// The file's name.
pub(super) const MARK: &str = "mark";

const MAGIC: &[u8; 4] = b"WLM1";
const SIGNED_BYTES: usize = 116;
const SLOT_BYTES: usize = SIGNED_BYTES + 32;
/// How far the slots are apart: no disk writes both at once.
const APART: usize = 4096;

/// Says how far a store was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) turn: u64,
    pub(super) tree: TreeId,
    pub(super) size: u64,
    pub(super) root: Hash,
    pub(super) derived: Derived,
}

/// Says up to where the files that are made of the newest segment, its index and its nodes, are on disk for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Derived {
    /// Position of the segment's first batch.
    pub(super) segment: u64,
    pub(super) entries: u64,
    pub(super) offset: u64,
    pub(super) end: u64,
}

impl Mark {
    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(self.turn.to_be_bytes());
        out.extend(self.tree.as_bytes());
        out.extend(self.size.to_be_bytes());
        out.extend(self.root);
        let Derived { segment, entries, offset, end } = self.derived;
        [segment, entries, offset, end].iter().for_each(|number| out.extend(number.to_be_bytes()));
        let hash = digest(&SHA256, &out);
        out.extend(hash.as_ref());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let mut read = || -> Result<([u8; 4], Self, Hash), DecodeError> {
            let (magic, turn) = (reader.array("magic")?, reader.u64("turn")?);
            let (tree, size) = (TreeId::from_bytes(reader.array("log")?), reader.u64("size")?);
            let root = reader.array("root")?;
            let mut number = || reader.u64("number");
            let derived = Derived { segment: number()?, entries: number()?, offset: number()?, end: number()? };
            Ok((magic, Self { turn, tree, size, root, derived }, reader.array("hash")?))
        };
        let (magic, mark, hash) = read().ok()?;
        let is_whole = magic == *MAGIC && digest(&SHA256, bytes.get(..SIGNED_BYTES)?).as_ref() == hash;
        is_whole.then_some(mark)
    }

    /// Reads the slot that holds; `None` if there is none.
    pub(super) fn read(files: &impl Source) -> io::Result<Option<Self>> {
        let bytes = match files.read(MARK, 0, APART + SLOT_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let slot = |at| bytes.get(at..).and_then(Self::decode);
        Ok([slot(0), slot(APART)].into_iter().flatten().max_by_key(|mark| mark.turn))
    }

    /// Makes the file, with room for both slots.
    pub(super) fn create(&self, files: &mut impl Files) -> io::Result<()> {
        let mut bytes = self.encode();
        bytes.resize(APART, 0);
        bytes.extend(self.encode());
        match files.remove(MARK) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        files.append(MARK, &bytes)?;
        files.sync(MARK)
    }

    /// Writes over the older slot; the mark holds for good then.
    pub(super) fn write(&self, files: &mut impl Files) -> io::Result<()> {
        let at = if self.turn.is_multiple_of(2) { 0 } else { APART as u64 };
        files.overwrite(MARK, at, &self.encode())?;
        files.sync(MARK)
    }
}
