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
//! | 81 | 32 | SHA-256 of the entry's bytes before |

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};

use crate::codec::Reader;
use crate::merkle::Hash;
use crate::time::Time;

/// Bytes of an entry.
pub(super) const CUT_BYTES: usize = 113;

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

/// Tells of batches that retention has removed.
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

    pub(super) fn encode(&self) -> Vec<u8> {
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
        let hash = digest(&SHA256, &out);
        out.extend(hash.as_ref());
        out
    }

    /// Reads an entry; `None` if it is not whole.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
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
        let hash: Hash = reader.array("hash").ok()?;
        let is_whole = digest(&SHA256, bytes.get(..CUT_BYTES - 32)?).as_ref() == hash;
        is_whole.then_some(Self { from, to, newest, at, rule, bytes: bytes_before, root })
    }
}
