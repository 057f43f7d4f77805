//! Somebody who is not the collector, and remembers what it said: a node, or a second collector.
//!
//! A witness keeps the collector's last checkpoint, and of each new one demands the proof that it only adds to that. A
//! collector that rewrites what is behind it, or puts an old copy of its disk back, cannot give it, whatever keys it has. What
//! it can do is to show every witness another log from the beginning on: witnesses that compare their checkpoints see that,
//! too, since two logs of one origin cannot both be proved to continue one of them.

use crate::checkpoint::{Checkpoint, CheckpointError, Verifier};
use crate::merkle::{Hash, PROOF_HASHES_MAX, verify_consistency, verify_inclusion};
use crate::receipt::Receipt;

/// Remembers the last checkpoint of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    verifier: Verifier,
    last: Option<(Checkpoint, String)>,
}

/// Says what a new checkpoint tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It is the first.
    First,
    /// Nothing was added.
    Same,
    /// So many batches were added.
    Grown(u64),
}

/// Says what a collector cannot explain. What it signed is the evidence: keep it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Contradiction {
    /// It is no checkpoint of this log. Nothing follows from that.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The collector signed two roots for one size: history was rewritten, and this proves it.
    #[error("the collector signed two different logs of {size} batches: it was rewritten")]
    Forked {
        /// The size.
        size: u64,
        /// What it signed earlier.
        earlier: String,
        /// What it signed now.
        now: String,
    },
    /// The log has become shorter: an old copy was put back.
    #[error("the collector's log had {had} batches and has {has} now: an old copy was put back, or the end removed")]
    SetBack {
        /// How many it had.
        had: u64,
        /// How many it has.
        has: u64,
        /// What it signed earlier.
        earlier: String,
        /// What it signed now.
        now: String,
    },
    /// The proof does not show that the log only grew: what was there was rewritten, unless a right proof follows.
    #[error("the collector does not prove that its log of {has} batches continues the one of {had}: it was rewritten")]
    Unproved {
        /// How many it had.
        had: u64,
        /// How many it has.
        has: u64,
        /// What it signed earlier.
        earlier: String,
        /// What it signed now.
        now: String,
    },
    /// The collector signed that it has a batch at a place, and does not prove that it is there.
    #[error("the collector signed a receipt for batch {position}, and does not prove that its log of {has} has it")]
    Withheld {
        /// Where it should be.
        position: u64,
        /// How many batches the log has.
        has: u64,
    },
    /// There is no checkpoint yet to hold something against, or none that is new enough. Of a checkpoint that was asked for
    /// after the receipt had come this is a contradiction, too: the batch was there already.
    #[error("no checkpoint is known that is about batch {position}; ask the collector for a newer one")]
    TooEarly {
        /// Which batch it should be about.
        position: u64,
    },
}

impl Witness {
    /// Makes a witness that has seen nothing.
    #[must_use]
    pub const fn new(verifier: Verifier) -> Self {
        Self { verifier, last: None }
    }

    /// Makes a witness of the checkpoint that it kept: [`Self::note`].
    ///
    /// # Errors
    /// It is no checkpoint of this log.
    pub fn resume(verifier: Verifier, note: &str) -> Result<Self, CheckpointError> {
        let last = Some((Checkpoint::open(note, &verifier)?, note.to_owned()));
        Ok(Self { verifier, last })
    }

    /// Returns the last checkpoint as it was signed, to be kept where the collector cannot reach it.
    #[must_use]
    pub fn note(&self) -> Option<&str> {
        self.last.as_ref().map(|(_, note)| note.as_str())
    }

    /// Returns the size from which on a proof is demanded: a collector answers with a checkpoint and
    /// [`prove_consistency`](crate::merkle::prove_consistency) from there to it.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.last.as_ref().map_or(0, |(last, _)| last.size)
    }

    /// Takes a new checkpoint and the proof that it adds to the last one.
    ///
    /// # Errors
    /// See [`Contradiction`]; the last checkpoint stays the one that is demanded from.
    pub fn handle(&mut self, note: &str, proof: &[Hash]) -> Result<Seen, Contradiction> {
        let new = Checkpoint::open(note, &self.verifier)?;
        let seen = match &self.last {
            None => Seen::First,
            Some((last, before)) => {
                let (earlier, now) = (before.clone(), note.to_owned());
                let (had, has) = (last.size, new.size);
                if has == had && new.root != last.root {
                    return Err(Contradiction::Forked { size: had, earlier, now });
                }
                if has < had {
                    return Err(Contradiction::SetBack { had, has, earlier, now });
                }
                let is_proved = has == had
                    || (proof.len() <= PROOF_HASHES_MAX
                        && verify_consistency((had, &last.root), (has, &new.root), proof));
                if !is_proved {
                    return Err(Contradiction::Unproved { had, has, earlier, now });
                }
                if has == had { Seen::Same } else { Seen::Grown(has - had) }
            }
        };
        self.last = Some((new, note.to_owned()));
        Ok(seen)
    }

    /// Holds a receipt against the last checkpoint: `proof` must show that the batch is where the collector said.
    ///
    /// # Errors
    /// [`Contradiction::Withheld`], or [`Contradiction::TooEarly`].
    pub fn check(&self, receipt: &Receipt, proof: &[Hash]) -> Result<(), Contradiction> {
        let position = receipt.position;
        let Some((last, _)) = &self.last else { return Err(Contradiction::TooEarly { position }) };
        if position >= last.size {
            return Err(Contradiction::TooEarly { position });
        }
        let is_there = receipt.tree == self.verifier.tree()
            && proof.len() <= PROOF_HASHES_MAX
            && verify_inclusion(&receipt.hash, position, last.size, proof, &last.root);
        if is_there { Ok(()) } else { Err(Contradiction::Withheld { position, has: last.size }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Batch, Writer};
    use crate::merkle::{prove_consistency, prove_inclusion};
    use crate::store::Store;
    use crate::testing::{Memory, at, secret, start};

    fn log() -> Verifier {
        Verifier::new("logs.example.com/family", secret(9).public()).unwrap()
    }

    fn batches(count: u64) -> Vec<Batch> {
        let mut writer = Writer::new(secret(1), at(0), [0; 32]);
        (0..count).map(|flow| writer.seal(&[start(flow, 0)], at(0)).unwrap()).collect()
    }

    fn store(memory: &Memory, batches: &[Batch]) -> Store<Memory> {
        let mut store = Store::open(memory.clone(), &log()).unwrap();
        for batch in batches {
            store.append(std::slice::from_ref(batch), at(0)).unwrap();
        }
        store
    }

    /// Asks the collector, which has its key, for what it says now.
    fn ask(witness: &mut Witness, store: &Store<Memory>) -> Result<Seen, Contradiction> {
        let note = store.checkpoint().sign(&secret(9)).unwrap();
        let proof = prove_consistency(store.view(), witness.size(), store.size()).unwrap().unwrap_or_default();
        witness.handle(&note, &proof)
    }

    #[test]
    fn a_log_that_only_grows_is_believed() {
        let batches = batches(20);
        let mut witness = Witness::new(log());
        let mut store = store(&Memory::default(), &[]);
        for (number, batch) in (1..).zip(&batches) {
            store.append(std::slice::from_ref(batch), at(0)).unwrap();
            let expected = if number == 1 { Seen::First } else { Seen::Grown(1) };
            assert_eq!(ask(&mut witness, &store), Ok(expected));
            assert_eq!(ask(&mut witness, &store), Ok(Seen::Same));
            witness = Witness::resume(log(), witness.note().unwrap()).unwrap();
        }
    }

    /// With the collector's disk and key in hand.
    #[test]
    fn a_rewritten_log_is_found_whatever_its_size() {
        let batches = batches(20);
        for altered in 0..10 {
            let mut other = batches.clone();
            // One is left out, as if it never was.
            other.remove(altered);
            for size in [10, 11, 16, 19] {
                let mut witness = Witness::new(log());
                ask(&mut witness, &store(&Memory::default(), &batches[..10])).unwrap();
                let rewritten = store(&Memory::default(), &other[..size]);
                let found = ask(&mut witness, &rewritten).unwrap_err();
                assert!(
                    matches!(found, Contradiction::Forked { .. } if size == 10)
                        || matches!(found, Contradiction::Unproved { had: 10, .. } if size > 10),
                    "{altered} of {size}: {found}"
                );
                // It goes on to demand what it knows.
                assert_eq!(witness.size(), 10);
            }
        }
    }

    #[test]
    fn an_old_backup_is_found_before_and_after_it_grew_again() {
        let batches = batches(20);
        let memory = Memory::default();
        let mut witness = Witness::new(log());
        let mut current = store(&memory, &batches[..6]);
        ask(&mut witness, &current).unwrap();
        let backup = memory.copy();
        for batch in &batches[6..12] {
            current.append(std::slice::from_ref(batch), at(0)).unwrap();
        }
        assert_eq!(ask(&mut witness, &current), Ok(Seen::Grown(6)));
        // The store itself sees nothing: its mark is as old.
        let mut old = store(&backup, &[]);
        assert!(matches!(ask(&mut witness, &old), Err(Contradiction::SetBack { had: 12, has: 6, .. })));
        for batch in &batches[10..] {
            old.append(std::slice::from_ref(batch), at(0)).unwrap();
        }
        assert!(matches!(ask(&mut witness, &old), Err(Contradiction::Unproved { had: 12, has: 16, .. })));
    }

    #[test]
    fn a_receipt_whose_batch_is_gone_is_found() {
        let batches = batches(8);
        let receipt = Receipt::of(&log(), batches[5].header(), batches[5].hash(), 5, at(0));
        let honest = store(&Memory::default(), &batches);
        let proof = prove_inclusion(honest.view(), 5, 8).unwrap().unwrap();
        let mut witness = Witness::new(log());
        assert_eq!(witness.check(&receipt, &proof), Err(Contradiction::TooEarly { position: 5 }));
        ask(&mut witness, &honest).unwrap();
        assert_eq!(witness.check(&receipt, &proof), Ok(()));
        // A collector that never stored what it signed for.
        let others = [&batches[..5], &batches[6..]].concat();
        let without = store(&Memory::default(), &others);
        let mut witness = Witness::new(log());
        ask(&mut witness, &without).unwrap();
        let proof = prove_inclusion(without.view(), 5, 7).unwrap().unwrap();
        assert_eq!(witness.check(&receipt, &proof), Err(Contradiction::Withheld { position: 5, has: 7 }));
    }

    #[test]
    fn nothing_follows_from_what_the_collector_did_not_sign() {
        let mut witness = Witness::new(log());
        let store = store(&Memory::default(), &batches(3));
        let note = store.checkpoint().sign(&secret(8)).unwrap();
        assert_eq!(witness.handle(&note, &[]), Err(CheckpointError::NotSigned.into()));
        assert_eq!(witness.note(), None);
    }
}
