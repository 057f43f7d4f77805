//! Batches: records with a signature, chained to what came before.
//!
//! # Format
//! Numbers are big-endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 32 | the node's log key |
//! | 33 | 8 | epoch: when the node's daemon started, in µs since 1970; the next one's is larger |
//! | 41 | 8 | sequence: number of the batch in its epoch, from 0 |
//! | 49 | 8 | number of its first record in the epoch, from 0 |
//! | 57 | 8 | when it was made, in µs since 1970 |
//! | 65 | 32 | hash of the batch before, of the last one of the epoch before in the first; zeros if there is none |
//! | 97 | 4 | number of records |
//! | 101 | 4 | length of the records, in bytes |
//! | 105 | 32 | SHA-256 of the records |
//! | 137 | 64 | signature of [`SIGNATURE_CONTEXT`] and the bytes before it |
//! | 201 | | records, see the module `record` |
//!
//! The hash of a batch is that of a leaf of the [Merkle tree](crate::merkle), over the 137 bytes before the signature.

use aws_lc_rs::digest::{SHA256, digest};

use crate::codec::{DecodeError, Reader};
use crate::key::{LogKey, LogSecret, Signature};
use crate::merkle::{Hash, leaf_hash};
use crate::record::Record;
use crate::time::Time;

/// Bytes of a batch before its records: header and signature.
pub const HEADER_BYTES: usize = SIGNED_BYTES + 64;

/// The most bytes of the records of one batch.
pub const BODY_BYTES_MAX: usize = 64 << 10;

/// The most bytes of a batch.
pub const BATCH_BYTES_MAX: usize = HEADER_BYTES + BODY_BYTES_MAX;

/// The most records of one batch.
pub const RECORDS_MAX: usize = 4_096;

/// What is signed before the header, so that a signature cannot stand for anything else.
const SIGNATURE_CONTEXT: &[u8] = b"warren ledger batch\0";

const VERSION: u8 = 1;
const SIGNED_BYTES: usize = 137;

/// Holds what is signed of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The key of the node that made it.
    pub key: LogKey,
    /// When the node's daemon started.
    pub epoch: Time,
    /// Its number in the epoch, from 0.
    pub sequence: u64,
    /// The number of its first record in the epoch, from 0.
    pub first: u64,
    /// When it was made.
    pub made: Time,
    /// The hash of the batch before; zeros if there is none.
    pub previous: Hash,
    /// How many records there are.
    pub count: u32,
    /// How many bytes they have.
    pub body_bytes: u32,
    /// The SHA-256 of these bytes.
    pub digest: [u8; 32],
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BATCH_BYTES_MAX.min(HEADER_BYTES + self.body_bytes as usize));
        out.push(VERSION);
        out.extend(self.key.as_bytes());
        for number in [self.epoch.as_micros(), self.sequence, self.first, self.made.as_micros()] {
            out.extend(number.to_be_bytes());
        }
        out.extend(self.previous);
        out.extend(self.count.to_be_bytes());
        out.extend(self.body_bytes.to_be_bytes());
        out.extend(self.digest);
        out
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let version = reader.byte("version")?;
        if version != VERSION {
            return Err(DecodeError::Value { field: "version", value: version.into() });
        }
        let header = Self {
            key: LogKey::from_bytes(reader.array("key")?),
            epoch: Time::from_micros(reader.u64("epoch")?),
            sequence: reader.u64("sequence")?,
            first: reader.u64("first record")?,
            made: Time::from_micros(reader.u64("time")?),
            previous: reader.array("previous hash")?,
            count: reader.array("count").map(u32::from_be_bytes)?,
            body_bytes: reader.array("length").map(u32::from_be_bytes)?,
            digest: reader.array("digest")?,
        };
        let too_much = |field, value: u32| Err(DecodeError::Value { field, value: value.into() });
        if header.count as usize > RECORDS_MAX {
            return too_much("count", header.count);
        }
        if header.body_bytes as usize > BODY_BYTES_MAX {
            return too_much("length", header.body_bytes);
        }
        if header.sequence == u64::MAX || header.first.checked_add(header.count.into()).is_none() {
            return Err(DecodeError::Number { field: "sequence" });
        }
        Ok(header)
    }
}

/// Names a list of rules, as it is written down with conversations that a rule let in: the first bytes of the SHA-256 of
/// the list in JSON.
#[must_use]
pub fn rules_id(json: &[u8]) -> [u8; 8] {
    let mut id = [0; 8];
    id.iter_mut().zip(digest(&SHA256, json).as_ref()).for_each(|(to, from)| *to = *from);
    id
}

/// Is a batch as it travels and is stored. Nothing of it is proved yet: see [`Self::open`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    header: Header,
    bytes: Vec<u8>,
}

/// Says why a batch is not what its node made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// The signature is not that of the key for this header: it was forged, or the header was altered.
    #[error("the signature does not fit the batch's header: forged, or altered")]
    Signature,
    /// Records are missing.
    #[error("{count} records were deleted from the batch, the first of them number {first}")]
    Deleted {
        /// Number of the first that is missing.
        first: u64,
        /// How many are missing.
        count: u32,
    },
    /// There are records that the node did not write.
    #[error("{count} records were inserted into the batch")]
    Inserted {
        /// How many are too much.
        count: u32,
    },
    /// The records stand in another order.
    #[error("the batch's records were put into another order, from number {first} on")]
    Reordered {
        /// Number of the first that is elsewhere.
        first: u64,
    },
    /// The records are others than the node signed.
    #[error("the batch's records were altered")]
    Altered,
    /// The node signed what are no records.
    #[error("the node signed what cannot be read: {0}")]
    Records(#[from] DecodeError),
    /// The node signed records that are not numbered or counted as the batch says.
    #[error("the node signed records whose numbers do not fit the batch")]
    Numbers,
}

/// Is a batch whose signature and records are proved to be the node's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    header: Header,
    hash: Hash,
    records: Vec<Record>,
}

impl Opened {
    /// Returns the header.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// Returns the batch's hash.
    #[must_use]
    pub const fn hash(&self) -> &Hash {
        &self.hash
    }

    /// Returns the records; the first has the number [`Header::first`].
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }
}

impl Batch {
    /// Reads a batch; nothing may follow it.
    ///
    /// # Errors
    /// See [`DecodeError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (batch, rest) = Self::parse_first(bytes)?;
        Reader(rest).end().map(|()| batch)
    }

    /// Reads the batch at the front of `bytes`, and returns it and what follows.
    ///
    /// # Errors
    /// See [`DecodeError`].
    pub fn parse_first(bytes: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let mut reader = Reader(bytes);
        let header = Header::decode(&mut reader)?;
        reader.slice(HEADER_BYTES - SIGNED_BYTES, "signature")?;
        reader.slice(header.body_bytes as usize, "records")?;
        let whole = bytes.len() - reader.0.len();
        let bytes = bytes.get(..whole).unwrap_or_default().to_vec();
        Ok((Self { header, bytes }, reader.0))
    }

    /// Returns what the batch says of itself.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// Returns all its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns its hash, which the next batch names, and which is its leaf in the collector's tree.
    #[must_use]
    pub fn hash(&self) -> Hash {
        leaf_hash(self.signed())
    }

    fn signed(&self) -> &[u8] {
        self.bytes.get(..SIGNED_BYTES).unwrap_or_default()
    }

    fn body(&self) -> &[u8] {
        self.bytes.get(HEADER_BYTES..).unwrap_or_default()
    }

    /// Checks signature and records.
    ///
    /// # Errors
    /// Says what is wrong with them. What was done to the records is told by their numbers: it is right for a clumsy edit,
    /// while one that numbers them anew is called altered.
    pub fn open(&self) -> Result<Opened, BatchError> {
        let mut reader = Reader(self.bytes.get(SIGNED_BYTES..).unwrap_or_default());
        let signature = Signature::from_bytes(reader.array("signature")?);
        if !self.header.key.verifies(&[SIGNATURE_CONTEXT, self.signed()].concat(), &signature) {
            return Err(BatchError::Signature);
        }
        let read = self.read();
        if digest(&SHA256, self.body()).as_ref() != self.header.digest {
            return Err(self.name_edit(&read.unwrap_or_default()));
        }
        let (records, numbers): (Vec<Record>, Vec<u8>) = read?.into_iter().unzip();
        if records.len() != self.header.count as usize || !numbers.iter().copied().eq(self.numbers()) {
            return Err(BatchError::Numbers);
        }
        Ok(Opened { header: self.header, hash: self.hash(), records })
    }

    /// Reads the records as they are, and the lowest bytes of their numbers.
    pub(crate) fn read(&self) -> Result<Vec<(Record, u8)>, DecodeError> {
        let mut reader = Reader(self.body());
        let mut before = self.header.made;
        let mut records = Vec::with_capacity(self.header.count as usize);
        while !reader.is_empty() {
            if records.len() == RECORDS_MAX {
                return Err(DecodeError::Value { field: "count", value: RECORDS_MAX as u64 + 1 });
            }
            let (record, number) = Record::decode(&mut reader, before)?;
            before = record.at;
            records.push((record, number));
        }
        Ok(records)
    }

    /// Returns the lowest bytes of the numbers that the records should have.
    fn numbers(&self) -> impl Iterator<Item = u8> {
        let numbers = self.header.first..self.header.first + u64::from(self.header.count);
        numbers.map(|number| {
            let [low, ..] = number.to_le_bytes();
            low
        })
    }

    /// Says what was done to records that are not those that were signed.
    fn name_edit(&self, read: &[(Record, u8)]) -> BatchError {
        let found = || read.iter().map(|(_, number)| *number);
        let wanted = self.header.count as usize;
        let at = found().zip(self.numbers()).take_while(|(found, wanted)| found == wanted).count();
        let first = self.header.first + at as u64;
        if read.is_empty() && wanted > 0 && !self.body().is_empty() {
            // Not readable any more.
            return BatchError::Altered;
        }
        let count = |more: usize| u32::try_from(more).unwrap_or(u32::MAX);
        if read.len() < wanted {
            return BatchError::Deleted { first, count: count(wanted - read.len()) };
        }
        if read.len() > wanted {
            return BatchError::Inserted { count: count(read.len() - wanted) };
        }
        let (mut sorted, mut original): (Vec<u8>, Vec<u8>) = (found().collect(), self.numbers().collect());
        sorted.sort_unstable();
        original.sort_unstable();
        if at < wanted && sorted == original { BatchError::Reordered { first } } else { BatchError::Altered }
    }
}

/// Makes the batches of a node, one chain from its daemon's start on.
#[derive(Debug)]
pub struct Writer {
    secret: LogSecret,
    epoch: Time,
    sequence: u64,
    next: u64,
    previous: Hash,
}

/// Says why records cannot become a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// There are more than [`RECORDS_MAX`].
    #[error("{0} records, more than a batch can have")]
    TooMany(usize),
    /// They take more than [`BODY_BYTES_MAX`].
    #[error("records of {0} bytes, more than a batch can have")]
    TooLarge(usize),
    /// A record pairs addresses of two families.
    #[error("a record with addresses of two families")]
    Families,
}

impl Writer {
    /// Makes a writer for a daemon that started at `epoch`, which must be later than the start before.
    ///
    /// `previous` is the hash of the last batch of that one, zeros if there is none.
    #[must_use]
    pub const fn new(secret: LogSecret, epoch: Time, previous: Hash) -> Self {
        Self { secret, epoch, sequence: 0, next: 0, previous }
    }

    /// Returns the hash of the last batch, which the next one will name.
    #[must_use]
    pub const fn previous(&self) -> &Hash {
        &self.previous
    }

    /// Makes the next batch, of records in the order in which they happened. It must not be thrown away, or the chain is
    /// broken.
    ///
    /// # Errors
    /// See [`SealError`]; nothing has changed then.
    pub fn seal(&mut self, records: &[Record], now: Time) -> Result<Batch, SealError> {
        if records.len() > RECORDS_MAX {
            return Err(SealError::TooMany(records.len()));
        }
        if !records.iter().all(Record::is_sound) {
            return Err(SealError::Families);
        }
        let mut body = Vec::new();
        let mut before = now;
        for (number, record) in (self.next..).zip(records) {
            record.encode(number, before, &mut body);
            before = record.at;
        }
        let too_large = SealError::TooLarge(body.len());
        let body_bytes = u32::try_from(body.len()).ok().filter(|_| body.len() <= BODY_BYTES_MAX).ok_or(too_large)?;
        let count = u32::try_from(records.len()).map_err(|_| SealError::TooMany(records.len()))?;
        let mut digest_bytes = [0; 32];
        digest_bytes.iter_mut().zip(digest(&SHA256, &body).as_ref()).for_each(|(to, from)| *to = *from);
        let header = Header {
            key: self.secret.public(),
            epoch: self.epoch,
            sequence: self.sequence,
            first: self.next,
            made: now,
            previous: self.previous,
            count,
            body_bytes,
            digest: digest_bytes,
        };
        let mut bytes = header.encode();
        let signature = self.secret.sign(&[SIGNATURE_CONTEXT, &bytes].concat());
        self.previous = leaf_hash(&bytes);
        self.sequence += 1;
        self.next += u64::from(count);
        bytes.extend(signature.as_bytes());
        bytes.extend(body);
        Ok(Batch { header, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, record, secret, start, update};
    use proptest::prelude::*;

    fn writer() -> Writer {
        Writer::new(secret(1), at(0), [0; 32])
    }

    fn records() -> Vec<Record> {
        (0..5).map(|flow| start(flow, flow * 10)).collect()
    }

    /// Gives a batch other records, as somebody without the key could.
    fn with_body(batch: &Batch, edit: impl FnOnce(&mut Vec<Vec<u8>>)) -> Batch {
        let mut before = batch.header.made;
        let mut parts: Vec<Vec<u8>> = Vec::new();
        for (number, (record, _)) in (batch.header.first..).zip(batch.read().unwrap()) {
            let mut part = Vec::new();
            record.encode(number, before, &mut part);
            before = record.at;
            parts.push(part);
        }
        edit(&mut parts);
        let bytes = [&batch.bytes[..HEADER_BYTES], &parts.concat()].concat();
        let header = Header { body_bytes: u32::try_from(bytes.len() - HEADER_BYTES).unwrap(), ..batch.header };
        Batch { header, bytes }
    }

    #[test]
    fn a_batch_opens_with_what_was_put_in() {
        let mut writer = writer();
        let first = writer.seal(&records(), at(100)).unwrap();
        let opened = Batch::parse(first.bytes()).unwrap().open().unwrap();
        assert_eq!((opened.records(), opened.header().first), (records().as_slice(), 0));
        assert_eq!((opened.header().previous, opened.header().sequence), ([0; 32], 0));
        let second = writer.seal(&[], at(200)).unwrap();
        let opened = second.open().unwrap();
        assert_eq!((opened.header().previous, opened.header().sequence, opened.header().first), (first.hash(), 1, 5));
        assert_eq!(*writer.previous(), second.hash());
    }

    #[test]
    fn deleted_records_are_named() {
        let batch = with_body(&writer().seal(&records(), at(100)).unwrap(), |parts| drop(parts.remove(2)));
        assert_eq!(batch.open(), Err(BatchError::Deleted { first: 2, count: 1 }));
        let batch = with_body(&writer().seal(&records(), at(100)).unwrap(), Vec::clear);
        assert_eq!(batch.open(), Err(BatchError::Deleted { first: 0, count: 5 }));
    }

    #[test]
    fn inserted_records_are_named() {
        let batch = with_body(&writer().seal(&records(), at(100)).unwrap(), |parts| parts.push(parts[0].clone()));
        assert_eq!(batch.open(), Err(BatchError::Inserted { count: 1 }));
    }

    #[test]
    fn reordered_records_are_named() {
        let batch = with_body(&writer().seal(&records(), at(100)).unwrap(), |parts| parts.swap(1, 3));
        assert_eq!(batch.open(), Err(BatchError::Reordered { first: 1 }));
    }

    #[test]
    fn every_altered_byte_is_found() {
        let batch = writer().seal(&records(), at(100)).unwrap();
        for place in 0..batch.bytes.len() {
            let mut bytes = batch.bytes.clone();
            bytes[place] ^= 1;
            if let Ok(altered) = Batch::parse(&bytes) {
                let error = altered.open().unwrap_err();
                assert_eq!(error == BatchError::Signature, place < HEADER_BYTES, "byte {place}: {error}");
            }
        }
    }

    #[test]
    fn a_batch_of_another_key_under_this_ones_name_is_found() {
        let mut other = Writer::new(secret(2), at(0), [0; 32]);
        let mut bytes = other.seal(&records(), at(100)).unwrap().bytes;
        bytes[1..33].copy_from_slice(secret(1).public().as_bytes());
        assert_eq!(Batch::parse(&bytes).unwrap().open(), Err(BatchError::Signature));
    }

    #[test]
    fn what_does_not_fit_a_batch_changes_nothing() {
        let mut writer = writer();
        assert_eq!(
            writer.seal(&vec![update(0, 0, 0); RECORDS_MAX + 1], at(0)),
            Err(SealError::TooMany(RECORDS_MAX + 1))
        );
        let large = vec![start(0, 0); RECORDS_MAX];
        assert!(matches!(writer.seal(&large, at(0)), Err(SealError::TooLarge(_))));
        let mut mixed = start(0, 0);
        if let crate::Event::Start(start) = &mut mixed.event {
            start.remote = "[fd7a::1]:443".parse().unwrap();
        }
        assert_eq!(writer.seal(&[mixed], at(0)), Err(SealError::Families));
        assert_eq!(writer.seal(&[], at(0)).unwrap().header().sequence, 0);
    }

    proptest! {
        #[test]
        fn batches_come_back(records in proptest::collection::vec(record(), 0..40), cut in any::<proptest::sample::Index>()) {
            let batch = writer().seal(&records, at(7)).unwrap();
            let parsed = Batch::parse(batch.bytes()).unwrap();
            prop_assert_eq!(parsed.open().unwrap().records, records);
            let cut = cut.index(batch.bytes().len());
            let truncated = matches!(Batch::parse(&batch.bytes()[..cut]), Err(DecodeError::Truncated { .. }));
            prop_assert!(truncated);
            let two = [batch.bytes(), batch.bytes()].concat();
            prop_assert_eq!(Batch::parse_first(&two).unwrap().1, batch.bytes());
            prop_assert_eq!(Batch::parse(&two), Err(DecodeError::TrailingBytes { count: batch.bytes().len() }));
        }
    }
}
