//! What the collector signs when a batch is on its disk.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 32 | the node's log key |
//! | 33 | 8 | epoch |
//! | 41 | 8 | sequence |
//! | 49 | 32 | the batch's hash |
//! | 81 | 8 | its position in the collector's tree, from 0 |
//! | 89 | 8 | when, by the collector's clock, in µs since 1970 |
//! | 97 | 32 | which log: [`TreeId`] |
//! | 129 | 64 | signature of [`SIGNATURE_CONTEXT`] and the bytes before it |

use crate::batch::Header;
use crate::checkpoint::{TreeId, Verifier};
use crate::codec::{DecodeError, Reader};
use crate::key::{LogKey, LogSecret, Signature};
use crate::merkle::Hash;
use crate::time::Time;

/// Bytes of a receipt.
pub const RECEIPT_BYTES: usize = SIGNED_BYTES + 64;

const SIGNED_BYTES: usize = 129;
const SIGNATURE_CONTEXT: &[u8] = b"warren ledger receipt\0";
const VERSION: u8 = 1;

/// Says that a batch is stored for good, at a place that can be asked for.
///
/// The node keeps it: a collector that has no such batch at that place later contradicts itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Whose batch.
    pub key: LogKey,
    /// Of which epoch.
    pub epoch: Time,
    /// Its number there.
    pub sequence: u64,
    /// Its hash.
    pub hash: Hash,
    /// Which leaf of the collector's tree it is, from 0.
    pub position: u64,
    /// When it was stored, by the collector's clock.
    pub stored: Time,
    /// In which log, so that a collector of many cannot say later that it meant another.
    pub tree: TreeId,
}

/// Says why bytes are not a receipt of this collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiptError {
    /// It cannot be read.
    #[error("not a receipt: {0}")]
    Decode(#[from] DecodeError),
    /// The collector did not sign it.
    #[error("the receipt is not signed by the collector")]
    Signature,
    /// It is about another log.
    #[error("the receipt is about another log than this one")]
    OtherLog,
}

impl Receipt {
    /// Makes the receipt of a batch that is stored in the log that `verifier` names.
    #[must_use]
    pub fn of(verifier: &Verifier, header: &Header, hash: Hash, position: u64, stored: Time) -> Self {
        let tree = verifier.tree();
        Self { key: header.key, epoch: header.epoch, sequence: header.sequence, hash, position, stored, tree }
    }

    /// Signs it for the collector.
    #[must_use]
    pub fn sign(&self, collector: &LogSecret) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend(self.key.as_bytes());
        out.extend(self.epoch.as_micros().to_be_bytes());
        out.extend(self.sequence.to_be_bytes());
        out.extend(self.hash);
        out.extend(self.position.to_be_bytes());
        out.extend(self.stored.as_micros().to_be_bytes());
        out.extend(self.tree.as_bytes());
        let signature = collector.sign(&[SIGNATURE_CONTEXT, &out].concat());
        out.extend(signature.as_bytes());
        out
    }

    /// Reads a receipt about the log that `verifier` names, signed with its key.
    ///
    /// # Errors
    /// See [`ReceiptError`].
    pub fn open(bytes: &[u8], verifier: &Verifier) -> Result<Self, ReceiptError> {
        let mut reader = Reader(bytes);
        let version = reader.byte("version")?;
        if version != VERSION {
            return Err(DecodeError::Value { field: "version", value: version.into() }.into());
        }
        let receipt = Self {
            key: LogKey::from_bytes(reader.array("key")?),
            epoch: Time::from_micros(reader.u64("epoch")?),
            sequence: reader.u64("sequence")?,
            hash: reader.array("hash")?,
            position: reader.u64("position")?,
            stored: Time::from_micros(reader.u64("time")?),
            tree: TreeId::from_bytes(reader.array("log")?),
        };
        let signature = Signature::from_bytes(reader.array("signature")?);
        reader.end()?;
        let signed = bytes.get(..SIGNED_BYTES).unwrap_or_default();
        if !verifier.key().verifies(&[SIGNATURE_CONTEXT, signed].concat(), &signature) {
            return Err(ReceiptError::Signature);
        }
        if receipt.tree != verifier.tree() {
            return Err(ReceiptError::OtherLog);
        }
        Ok(receipt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Writer;
    use crate::testing::{at, secret};

    #[test]
    fn a_receipt_is_the_collectors_or_nothing() {
        let batch = Writer::new(secret(1), at(0), [0; 32]).seal(&[], at(1)).unwrap();
        let log = |name, number| Verifier::new(name, secret(number).public()).unwrap();
        let verifier = log("logs.example.com/family", 9);
        let receipt = Receipt::of(&verifier, batch.header(), batch.hash(), 17, at(2));
        let bytes = receipt.sign(&secret(9));
        assert_eq!(bytes.len(), RECEIPT_BYTES);
        assert_eq!(Receipt::open(&bytes, &verifier), Ok(receipt));
        assert_eq!(Receipt::open(&bytes, &log("logs.example.com/family", 8)), Err(ReceiptError::Signature));
        // The same collector's log of another tailnet.
        assert_eq!(Receipt::open(&bytes, &log("logs.example.com/friends", 9)), Err(ReceiptError::OtherLog));
        for place in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[place] ^= 1;
            assert!(Receipt::open(&altered, &verifier).is_err(), "byte {place}");
            assert!(Receipt::open(&bytes[..place], &verifier).is_err(), "cut at {place}");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert_eq!(Receipt::open(&longer, &verifier), Err(DecodeError::TrailingBytes { count: 1 }.into()));
    }
}
