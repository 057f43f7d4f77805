//! What a node sends of its flow log, and what the collector answers: `POST /machine/warren/flows`, over Noise. Own to warren.
//!
//! A [`Submission`] has the version (1 byte, 1), the node key (32), and batches of the node's signed chain, each behind its
//! length (4, big-endian). The [`Answer`] has the version (1 byte, 1) and one verdict for each batch, in their order: its kind
//! (1 byte), its length (2, big-endian) and that many bytes.
//!
//! | kind | verdict | bytes |
//! |---|---|---|
//! | 1 | stored for good | the receipt |
//! | 2 | refused, for ever | why, for people |
//! | 3 | not now: send it again | none |
//!
//! What batches and receipts hold is not looked at here.

use crate::key::NodeKey;

/// Where a node sends a [`Submission`].
pub const FLOWS_PATH: &str = "/machine/warren/flows";

/// The most bytes of a submission.
pub const SUBMISSION_BYTES_MAX: usize = 256 << 10;

/// The most batches of a submission.
pub const BATCHES_MAX: usize = 64;

/// The most bytes of a batch.
pub const BATCH_BYTES_MAX: usize = 80 << 10;

/// The most bytes of a receipt, or of the text of a refusal.
pub const VERDICT_BYTES_MAX: usize = 512;

/// The most bytes of an answer.
pub const ANSWER_BYTES_MAX: usize = 1 + BATCHES_MAX * (3 + VERDICT_BYTES_MAX);

const VERSION: u8 = 1;
const STORED: u8 = 1;
const REFUSED: u8 = 2;
const LATER: u8 = 3;

/// Holds batches of a node's flow log, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission<'a> {
    /// Whose.
    pub node: NodeKey,
    /// The batches.
    pub batches: Vec<&'a [u8]>,
}

/// Says what became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is stored for good; this is the receipt.
    Stored(Vec<u8>),
    /// It will never be taken, and why.
    Refused(String),
    /// Not now; it is to be sent again, with all behind it.
    Later,
}

/// Says what became of the batches of a submission, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer(pub Vec<Verdict>);

/// Says why bytes are no submission or no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlowsError {
    /// They end too early.
    #[error("{0} is missing or cut short")]
    Truncated(&'static str),
    /// A version or a kind that is not known.
    #[error("{field} {value} is not known")]
    Unknown {
        /// Of what.
        field: &'static str,
        /// What stands there.
        value: u8,
    },
    /// More of something than may be.
    #[error("{found} {what}, {most} are allowed")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How much.
        found: usize,
        /// How much is allowed.
        most: usize,
    },
    /// The text of a refusal is no text.
    #[error("the text of a refusal is not UTF-8")]
    Text,
}

impl<'a> Submission<'a> {
    /// Writes it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let length = self.batches.iter().map(|batch| 4 + batch.len()).sum::<usize>();
        let mut out = Vec::with_capacity(33 + length);
        out.push(VERSION);
        out.extend(self.node.as_bytes());
        for batch in &self.batches {
            out.extend(u32::try_from(batch.len()).unwrap_or(u32::MAX).to_be_bytes());
            out.extend(*batch);
        }
        out
    }

    /// Reads one.
    ///
    /// # Errors
    /// See [`FlowsError`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, FlowsError> {
        at_most("bytes of a submission", bytes.len(), SUBMISSION_BYTES_MAX)?;
        let rest = version(bytes)?;
        let (node, mut rest) = rest.split_first_chunk::<32>().ok_or(FlowsError::Truncated("the node key"))?;
        let mut batches = Vec::new();
        while !rest.is_empty() {
            at_most("batches", batches.len() + 1, BATCHES_MAX)?;
            let (length, behind) = rest.split_first_chunk::<4>().ok_or(FlowsError::Truncated("a length"))?;
            let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
            at_most("bytes of a batch", length, BATCH_BYTES_MAX)?;
            let (batch, behind) = behind.split_at_checked(length).ok_or(FlowsError::Truncated("a batch"))?;
            batches.push(batch);
            rest = behind;
        }
        Ok(Self { node: NodeKey::from_bytes(*node), batches })
    }
}

impl Answer {
    /// Writes it; what is too long is cut.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        for verdict in &self.0 {
            let (kind, bytes) = match verdict {
                Verdict::Stored(receipt) => (STORED, receipt.as_slice()),
                Verdict::Refused(text) => {
                    let end = text.floor_char_boundary(VERDICT_BYTES_MAX);
                    (REFUSED, text.as_bytes().get(..end).unwrap_or_default())
                }
                Verdict::Later => (LATER, [].as_slice()),
            };
            let bytes = bytes.get(..bytes.len().min(VERDICT_BYTES_MAX)).unwrap_or_default();
            out.push(kind);
            out.extend(u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes());
            out.extend(bytes);
        }
        out
    }

    /// Reads one.
    ///
    /// # Errors
    /// See [`FlowsError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FlowsError> {
        let mut rest = version(bytes)?;
        let mut verdicts = Vec::new();
        while let Some((kind, behind)) = rest.split_first() {
            at_most("verdicts", verdicts.len() + 1, BATCHES_MAX)?;
            let (length, behind) = behind.split_first_chunk::<2>().ok_or(FlowsError::Truncated("a length"))?;
            let length = usize::from(u16::from_be_bytes(*length));
            at_most("bytes of a verdict", length, VERDICT_BYTES_MAX)?;
            let (bytes, behind) = behind.split_at_checked(length).ok_or(FlowsError::Truncated("a verdict"))?;
            verdicts.push(match *kind {
                STORED => Verdict::Stored(bytes.to_vec()),
                REFUSED => Verdict::Refused(String::from_utf8(bytes.to_vec()).map_err(|_| FlowsError::Text)?),
                LATER if bytes.is_empty() => Verdict::Later,
                LATER => return Err(FlowsError::TooMuch { what: "bytes", found: bytes.len(), most: 0 }),
                value => return Err(FlowsError::Unknown { field: "kind", value }),
            });
            rest = behind;
        }
        Ok(Self(verdicts))
    }
}

fn version(bytes: &[u8]) -> Result<&[u8], FlowsError> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => Ok(rest),
        Some((value, _)) => Err(FlowsError::Unknown { field: "version", value: *value }),
        None => Err(FlowsError::Truncated("the version")),
    }
}

fn at_most(what: &'static str, found: usize, most: usize) -> Result<(), FlowsError> {
    if found <= most { Ok(()) } else { Err(FlowsError::TooMuch { what, found, most }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn verdict() -> impl Strategy<Value = Verdict> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200).prop_map(Verdict::Stored),
            "[a-zäß ]{0,80}".prop_map(Verdict::Refused),
            Just(Verdict::Later),
        ]
    }

    proptest! {
        #[test]
        fn submissions_come_back(batches in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..10)) {
            let submission = Submission {
                node: NodeKey::from_bytes([7; 32]),
                batches: batches.iter().map(Vec::as_slice).collect(),
            };
            let bytes = submission.encode();
            prop_assert_eq!(Submission::decode(&bytes), Ok(submission));
        }

        #[test]
        fn answers_come_back(verdicts in proptest::collection::vec(verdict(), 0..10)) {
            let answer = Answer(verdicts);
            prop_assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }

        /// One form for each: no two byte strings read the same.
        #[test]
        fn what_is_read_is_written_the_same(bytes in proptest::collection::vec(0_u8..5, 0..80)) {
            let bytes = [&[1], bytes.as_slice()].concat();
            if let Ok(read) = Submission::decode(&bytes) {
                prop_assert_eq!(read.encode(), bytes.clone());
            }
            if let Ok(read) = Answer::decode(&bytes) {
                prop_assert_eq!(read.encode(), bytes);
            }
        }
    }

    #[test]
    fn limits_hold() {
        let many = Submission { node: NodeKey::default(), batches: vec![&[]; BATCHES_MAX + 1] };
        assert!(matches!(Submission::decode(&many.encode()), Err(FlowsError::TooMuch { what: "batches", .. })));
        let long = vec![0; BATCH_BYTES_MAX + 1];
        let long = Submission { node: NodeKey::default(), batches: vec![&long] };
        assert!(matches!(Submission::decode(&long.encode()), Err(FlowsError::TooMuch { .. })));
        assert!(matches!(
            Submission::decode(&vec![1; SUBMISSION_BYTES_MAX + 1]),
            Err(FlowsError::TooMuch { what: "bytes of a submission", .. })
        ));
        let text = "ß".repeat(VERDICT_BYTES_MAX);
        let Answer(read) = Answer::decode(&Answer(vec![Verdict::Refused(text)]).encode()).unwrap();
        assert!(matches!(read.as_slice(), [Verdict::Refused(text)] if text.len() == VERDICT_BYTES_MAX));
    }
}
