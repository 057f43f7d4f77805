//! Batches with the proof that they are in the collector's log, for somebody who has its public key and nothing else.
//!
//! # Format
//! Lines of JSON. The first is `{"checkpoint": TEXT}`, the collector's signed checkpoint. Each of the others is
//! `{"position": NUMBER, "batch": BASE64, "proof": [BASE64, …]}`: a batch as its node signed it, and the hashes beside the way
//! from its leaf to the checkpoint's root (RFC 9162, section 2.1.3). That lines were left out shows in the positions alone.

use std::io::{self, BufRead, Read as _, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::batch::{BATCH_BYTES_MAX, Batch, BatchError, Opened};
use crate::checkpoint::{CHECKPOINT_BYTES_MAX, Checkpoint, CheckpointError, Verifier};
use crate::codec::DecodeError;
use crate::merkle::{Hash, PROOF_HASHES_MAX, prove_inclusion, verify_inclusion};
use crate::store::{Source, StoreError, View};

/// The most bytes of a line: a batch and a proof in base64, or a checkpoint with every byte escaped.
const LINE_BYTES_MAX: usize = 6 * CHECKPOINT_BYTES_MAX + BATCH_BYTES_MAX.div_ceil(3) * 4 + PROOF_HASHES_MAX * 48 + 1024;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct First {
    checkpoint: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    position: u64,
    batch: String,
    proof: Vec<String>,
}

/// Says why nothing, or not everything, was exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The checkpoint is not one of this log.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The log does not have what the checkpoint says.
    #[error("the checkpoint of {size} batches is not about what the log store has")]
    OtherLog {
        /// How many it is about.
        size: u64,
    },
    /// A batch is not covered by the checkpoint.
    #[error("batch {0} is behind the checkpoint; sign a newer one")]
    Behind(u64),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What was to be written cannot be.
    #[error("the export cannot be written: {0}")]
    Write(#[from] io::Error),
}

/// Says why an export proves nothing from some line on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// It cannot be read.
    #[error("the export cannot be read: {0}")]
    Read(#[from] io::Error),
    /// A line is not of this format.
    #[error("line {line} of the export is not what it should be: {reason}")]
    Form {
        /// Which line, from 1.
        line: u64,
        /// Why.
        reason: &'static str,
    },
    /// The checkpoint is not signed by the collector.
    #[error("line 1 of the export: {0}")]
    Checkpoint(#[from] CheckpointError),
    /// A batch cannot be read.
    #[error("line {line} of the export: {error}")]
    Decode {
        /// Which line, from 1.
        line: u64,
        /// Why.
        error: DecodeError,
    },
    /// A batch is not in the collector's log at this place.
    #[error("line {line} of the export: batch {position} is not in the log that the collector signed")]
    NotThere {
        /// Which line, from 1.
        line: u64,
        /// Where it should be.
        position: u64,
    },
    /// A batch is not what its node signed.
    #[error("line {line} of the export: batch {position}: {error}")]
    Batch {
        /// Which line, from 1.
        line: u64,
        /// Where it is.
        position: u64,
        /// How it differs.
        error: BatchError,
    },
}

/// Writes the batches at these positions with their proofs under a checkpoint that the collector signed; returns how many.
///
/// # Errors
/// See [`ExportError`].
pub fn export<F: Source>(
    view: &View<F>,
    note: &str,
    positions: impl IntoIterator<Item = u64>,
    out: &mut impl Write,
) -> Result<u64, ExportError> {
    let checkpoint = Checkpoint::open(note, view.verifier())?;
    let size = checkpoint.size;
    if size > view.size() || crate::merkle::root_of(view, size)? != checkpoint.root {
        return Err(ExportError::OtherLog { size });
    }
    put(out, &First { checkpoint: note.to_owned() })?;
    let mut count = 0;
    let mut frame: (u64, Vec<Batch>) = (0, Vec::new());
    for position in positions {
        let Some(proof) = prove_inclusion(view, position, size)? else { return Err(ExportError::Behind(position)) };
        let at = |frame: &(u64, Vec<Batch>)| {
            let at = usize::try_from(position.checked_sub(frame.0)?).ok()?;
            frame.1.get(at).map(|batch| STANDARD.encode(batch.bytes()))
        };
        let batch = match at(&frame) {
            Some(batch) => batch,
            None => {
                let (first, _, batches) = view.read(position)?;
                frame = (first, batches);
                at(&frame).ok_or(StoreError::Missing(position..position + 1))?
            }
        };
        put(out, &Line { position, batch, proof: proof.iter().map(|hash| STANDARD.encode(hash)).collect() })?;
        count += 1;
    }
    Ok(count)
}

fn put(out: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// Reads an export and proves each of its batches: that the collector's log has it where it says, and that its node signed
/// it. Whose log key that is the log of changes tells.
#[derive(Debug)]
pub struct Bundle<R> {
    lines: R,
    line: u64,
    checkpoint: Checkpoint,
}

impl<R: BufRead> Bundle<R> {
    /// Reads the beginning of an export of the log that `verifier` names.
    ///
    /// # Errors
    /// See [`BundleError`].
    pub fn open(mut lines: R, verifier: &Verifier) -> Result<Self, BundleError> {
        let reason = "it does not begin with a checkpoint";
        let first = next_line(&mut lines, 1)?.ok_or(BundleError::Form { line: 1, reason })?;
        let first: First = serde_json::from_slice(&first).map_err(|_| BundleError::Form { line: 1, reason })?;
        Ok(Self { lines, line: 1, checkpoint: Checkpoint::open(&first.checkpoint, verifier)? })
    }

    /// Returns what the collector signed.
    #[must_use]
    pub const fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    fn prove(&mut self) -> Result<Option<(u64, Opened)>, BundleError> {
        let line = self.line + 1;
        let Some(text) = next_line(&mut self.lines, line)? else { return Ok(None) };
        self.line = line;
        let form = |reason| BundleError::Form { line, reason };
        let Line { position, batch, proof } =
            serde_json::from_slice(&text).map_err(|_| form("not a batch with its proof"))?;
        if proof.len() > PROOF_HASHES_MAX {
            return Err(form("a proof that is too long"));
        }
        let hash = |text: &String| STANDARD.decode(text).ok()?.try_into().ok();
        let proof: Option<Vec<Hash>> = proof.iter().map(hash).collect();
        let proof = proof.ok_or(form("a hash that is not 32 bytes in base64"))?;
        let bytes = STANDARD.decode(batch).map_err(|_| form("a batch that is not in base64"))?;
        let batch = Batch::parse(&bytes).map_err(|error| BundleError::Decode { line, error })?;
        let Checkpoint { size, root, .. } = &self.checkpoint;
        if !verify_inclusion(&batch.hash(), position, *size, &proof, root) {
            return Err(BundleError::NotThere { line, position });
        }
        let opened = batch.open().map_err(|error| BundleError::Batch { line, position, error })?;
        Ok(Some((position, opened)))
    }
}

impl<R: BufRead> Iterator for Bundle<R> {
    type Item = Result<(u64, Opened), BundleError>;

    /// Proves the next batch, and returns it and its position.
    fn next(&mut self) -> Option<Self::Item> {
        self.prove().transpose()
    }
}

/// Reads a line without its end; `None` behind the last.
fn next_line(lines: &mut impl BufRead, line: u64) -> Result<Option<Vec<u8>>, BundleError> {
    let mut text = Vec::new();
    let most = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
    lines.by_ref().take(most).read_until(b'\n', &mut text)?;
    match text.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(text)),
        Some(_) if text.len() + 1 >= LINE_BYTES_MAX => {
            Err(BundleError::Form { line, reason: "a line that is too long" })
        }
        Some(_) => Err(BundleError::Form { line, reason: "it is cut short" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Writer;
    use crate::store::Store;
    use crate::testing::{Memory, at, secret, start};
    use proptest::prelude::*;

    fn log() -> Verifier {
        Verifier::new("logs.example.com/family", secret(9).public()).unwrap()
    }

    fn store() -> Store<Memory> {
        let mut writer = Writer::new(secret(1), at(0), [0; 32]);
        let mut store = Store::open(Memory::default(), &log()).unwrap();
        let batches: Vec<Batch> = (0..13).map(|flow| writer.seal(&[start(flow, 0)], at(0)).unwrap()).collect();
        for frame in batches.chunks(3) {
            store.append(frame, at(0)).unwrap();
        }
        store
    }

    fn exported() -> Vec<u8> {
        let store = store();
        let note = store.checkpoint().sign(&secret(9)).unwrap();
        let mut out = Vec::new();
        assert_eq!(export(store.view(), &note, [0, 4, 5, 12], &mut out).unwrap(), 4);
        out
    }

    fn proved(bytes: &[u8]) -> Result<Vec<u64>, BundleError> {
        Bundle::open(bytes, &log())?.map(|one| one.map(|(position, _)| position)).collect()
    }

    #[test]
    fn an_outsider_with_the_public_key_proves_every_batch() {
        let bytes = exported();
        assert_eq!(proved(&bytes).unwrap(), [0, 4, 5, 12]);
        let other = Verifier::new("logs.example.com/family", secret(8).public()).unwrap();
        assert!(matches!(Bundle::open(&bytes[..], &other), Err(BundleError::Checkpoint(CheckpointError::NotSigned))));
    }

    /// An older checkpoint proves what it covers.
    #[test]
    fn a_checkpoint_proves_what_was_there_before_it_and_no_more() {
        let mut store = store();
        let note = store.checkpoint().sign(&secret(9)).unwrap();
        let mut writer = Writer::new(secret(2), at(0), [0; 32]);
        store.append(&[writer.seal(&[], at(0)).unwrap()], at(0)).unwrap();
        let mut out = Vec::new();
        assert_eq!(export(store.view(), &note, 0..13, &mut out).unwrap(), 13);
        assert_eq!(proved(&out).unwrap(), (0..13).collect::<Vec<_>>());
        assert!(matches!(export(store.view(), &note, [13], &mut out), Err(ExportError::Behind(13))));
        // One that is about something else, or about more.
        for (size, root) in [(13, [1; 32]), (15, store.root())] {
            let false_one = Checkpoint { size, root, ..store.checkpoint() }.sign(&secret(9)).unwrap();
            assert!(matches!(export(store.view(), &false_one, [0], &mut out), Err(ExportError::OtherLog { .. })));
        }
    }

    #[test]
    fn every_altered_or_missing_byte_is_found() {
        let bytes = exported();
        for place in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[place] ^= 1;
            let found = proved(&altered);
            assert!(found.is_err(), "byte {place}: {found:?}");
            let is_whole_line = bytes[..place].last().is_none_or(|byte| *byte == b'\n') && place > 0;
            assert_eq!(proved(&bytes[..place]).is_ok(), is_whole_line, "cut at {place}");
        }
    }

    #[test]
    fn a_batch_in_anothers_place_is_found() {
        let text = String::from_utf8(exported()).unwrap().replacen("\"position\":4", "\"position\":5", 1);
        assert!(matches!(proved(text.as_bytes()), Err(BundleError::NotThere { line: 3, position: 5 })));
    }

    proptest! {
        #[test]
        fn invented_exports_prove_nothing(text in "(\\{\"checkpoint\":\"|\\{\"position\":|\"batch\":\"|\n|[a-z0-9/+\"\\[\\]}]){0,60}") {
            prop_assert!(Bundle::open(text.as_bytes(), &log()).is_err());
        }
    }
}
