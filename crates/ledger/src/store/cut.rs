//! What retention has removed, written down before it is removed.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | position of the first batch that is gone |
//! | 8 | 8 | position behind the last one |
//! | 16 | 8 | when the last one was stored, in µs since 1970 |
//! | 24 | 8 | when they were removed, in µs since 1970 |
//! | 32 | 1 | rule: 1 by age, 2 by size |
//! | 33 | 8 | its limit: µs, or bytes |
//! | 41 | 8 | bytes of the store before |
//! | 49 | 32 | root of the tree up to the last one |
//! | 81 | 64 | the collector's signature of [`SIGNATURE_CONTEXT`], the [`TreeId`](crate::checkpoint::TreeId) and the bytes before |

use std::time::Duration;

use crate::checkpoint::Verifier;
use crate::codec::Reader;
use crate::key::{LogSecret, Signature};
use crate::merkle::Hash;
use crate::time::Time;

/// Bytes of an entry.
pub(super) const CUT_BYTES: usize = SIGNED_BYTES + 64;

const SIGNED_BYTES: usize = 81;
const SIGNATURE_CONTEXT: &[u8] = b"warren ledger cut\0";

const BY_AGE: u8 = 1;
const BY_SIZE: u8 = 2;

/// Says how long batches are kept. What neither rule asks for stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// How long a batch is kept at most, give or take the segment that it is in.
    pub age: Option<Duration>,
    /// How many bytes are kept at most, give or take the segment that is written.
    pub bytes: Option<u64>,
}

/// Says why batches were removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// All were older than this.
    Age(Duration),
    /// All together were more bytes than this.
    Bytes(u64),
}

/// Tells of batches that retention has removed. The collector signs it, so that whoever can only reach its disk cannot
/// remove batches as if retention had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Position of the first that is gone.
    pub from: u64,
    /// Position behind the last one.
    pub to: u64,
    /// When the last one was stored.
    pub newest: Time,
    /// When they were removed.
    pub at: Time,
    /// Why.
    pub rule: Rule,
    /// Bytes of the store before.
    pub bytes: u64,
    /// Root of the tree of the first [`Self::to`] batches, so that what is left verifies without them.
    pub root: Hash,
}

impl Cut {
    /// Tells whether the rule that is given did not ask for it at that time.
    #[must_use]
    pub fn is_early(&self) -> bool {
        match self.rule {
            Rule::Age(age) => Duration::from_micros(self.at.as_micros().saturating_sub(self.newest.as_micros())) < age,
            Rule::Bytes(most) => self.bytes <= most,
        }
    }

    fn signed(verifier: &Verifier, entry: &[u8]) -> Vec<u8> {
        [SIGNATURE_CONTEXT, verifier.tree().as_bytes(), entry].concat()
    }

    /// Writes the entry, signed.
    pub(super) fn sign(&self, verifier: &Verifier, secret: &LogSecret) -> Vec<u8> {
        let (rule, limit) = match self.rule {
            Rule::Age(age) => (BY_AGE, u64::try_from(age.as_micros()).unwrap_or(u64::MAX)),
            Rule::Bytes(bytes) => (BY_SIZE, bytes),
        };
        let mut out = Vec::with_capacity(CUT_BYTES);
        for number in [self.from, self.to, self.newest.as_micros(), self.at.as_micros()] {
            out.extend(number.to_be_bytes());
        }
        out.push(rule);
        out.extend(limit.to_be_bytes());
        out.extend(self.bytes.to_be_bytes());
        out.extend(self.root);
        let signature = secret.sign(&Self::signed(verifier, &out));
        out.extend(signature.as_bytes());
        out
    }

    /// Reads an entry; `None` if it is not whole, or not signed.
    pub(super) fn decode(bytes: &[u8], verifier: &Verifier) -> Option<Self> {
        let mut reader = Reader(bytes);
        let mut number = || reader.u64("number").ok();
        let (from, to) = (number()?, number()?);
        let (newest, at) = (Time::from_micros(number()?), Time::from_micros(number()?));
        let rule = reader.byte("rule").ok()?;
        let limit = reader.u64("limit").ok()?;
        let rule = match rule {
            BY_AGE => Rule::Age(Duration::from_micros(limit)),
            BY_SIZE => Rule::Bytes(limit),
            _ => return None,
        };
        let bytes_before = reader.u64("bytes").ok()?;
        let root = reader.array("root").ok()?;
        let signature = Signature::from_bytes(reader.array("signature").ok()?);
        let is_signed = verifier.key().verifies(&Self::signed(verifier, bytes.get(..SIGNED_BYTES)?), &signature);
        is_signed.then_some(Self { from, to, newest, at, rule, bytes: bytes_before, root })
    }
}
