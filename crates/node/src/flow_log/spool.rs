//! Batches on disk until the collector has stored them, and the receipts for those that it has.
//!
//! Batches lie in files `spool-<number>` of about a MiB, each behind its length (4 bytes, big-endian), in their order. A file
//! goes when all of its batches are done with; the newest stays, since its last batch is what the chain goes on from.
//! Receipts lie one after the other in `receipts-<number>`, of which the newest two stay.

use std::collections::VecDeque;
use std::io;

use warren_ledger::checkpoint::Verifier;
use warren_ledger::merkle::Hash;
use warren_ledger::store::Files;
use warren_ledger::{Batch, RECEIPT_BYTES, Receipt, Time};
use warren_wire::flows::BATCH_BYTES_MAX;

/// From how many bytes on a file is not continued.
const SEGMENT_BYTES: u64 = 1 << 20;

/// How many receipts a file holds.
const RECEIPTS: u64 = 4_096;

/// The most bytes of a file that are looked at; we never write more.
const SEGMENT_READ_MAX: usize = (1 << 20) + 2 * BATCH_BYTES_MAX;

/// The most bytes of the collector's name and key.
pub(super) const COLLECTOR_BYTES_MAX: usize = 512;

const SEGMENT: &str = "spool-";
const RECEIPT: &str = "receipts-";
const COLLECTOR: &str = "collector";

/// Says which batch of the chain: its epoch and its number there.
pub(super) type Position = (Time, u64);

/// Holds what is on disk.
#[derive(Debug)]
pub(super) struct Spool<F> {
    files: F,
    segments: VecDeque<Segment>,
    waiting: VecDeque<Waiting>,
    /// Of those that wait.
    bytes: u64,
    last: Option<Last>,
    /// Number of the newest file of receipts, and how many are in it.
    receipts: (u64, u64),
    collector: Option<Verifier>,
}

/// Says where the chain on disk ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Last {
    pub(super) epoch: Time,
    pub(super) hash: Hash,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    bytes: u64,
    /// How many of its batches are not done with.
    left: usize,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    segment: u64,
    offset: u64,
    length: usize,
    /// Unknown of what can be read no more; the collector is to see it all the same.
    position: Option<Position>,
}

impl<F: Files> Spool<F> {
    /// Opens the folder. The beginning of a batch that a crash has left at the end is cut off.
    pub(super) fn open(files: F) -> io::Result<Self> {
        let mut spool = Self {
            files,
            segments: VecDeque::new(),
            waiting: VecDeque::new(),
            bytes: 0,
            last: None,
            receipts: (0, 0),
            collector: None,
        };
        let names = spool.files.list()?;
        let numbered = |prefix: &str| {
            let mut found: Vec<(u64, u64)> = names
                .iter()
                .filter_map(|(name, length)| Some((name.strip_prefix(prefix)?.parse().ok()?, *length)))
                .collect();
            found.sort_unstable();
            found
        };
        let done = spool.read_receipts(&numbered(RECEIPT))?;
        let segments = numbered(SEGMENT);
        let newest = segments.last().map(|(number, _)| *number);
        for (number, length) in segments {
            spool.read_segment(number, length, newest == Some(number))?;
        }
        let last_done = spool.waiting.iter().rposition(|one| one.position.is_some() && one.position <= done);
        spool.acknowledge(last_done.map_or(0, |at| at + 1))?;
        Ok(spool)
    }

    /// Returns where the chain on disk ends.
    pub(super) const fn last(&self) -> Option<&Last> {
        self.last.as_ref()
    }

    /// Returns the collector whose receipts are here.
    pub(super) const fn collector(&self) -> Option<&Verifier> {
        self.collector.as_ref()
    }

    /// Returns how many bytes wait. On disk there may be those of two files more.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns how many batches wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Puts a batch behind all others.
    ///
    /// # Errors
    /// It is not there, and the others are as they were.
    pub(super) fn append(&mut self, batch: &Batch) -> io::Result<()> {
        let is_full = |segment: &Segment| segment.bytes >= SEGMENT_BYTES;
        let next = match self.segments.back() {
            None => Some(0),
            Some(newest) if is_full(newest) => Some(newest.number + 1),
            Some(_) => None,
        };
        let number = next.or_else(|| self.segments.back().map(|newest| newest.number)).unwrap_or(0);
        let offset = if next.is_some() { 0 } else { self.segments.back().map_or(0, |newest| newest.bytes) };
        let length = u32::try_from(batch.bytes().len()).unwrap_or(u32::MAX);
        let frame = [&length.to_be_bytes(), batch.bytes()].concat();
        let name = segment_name(number);
        if let Err(error) = self.files.append(&name, &frame) {
            // Whatever part of it is there must not stand before the next one.
            if next.is_some() { self.files.remove(&name) } else { self.files.truncate(&name, offset) }.ok();
            return Err(error);
        }
        if next.is_some() {
            self.segments.push_back(Segment { number, bytes: 0, left: 0 });
        }
        if let Some(newest) = self.segments.back_mut() {
            newest.bytes += frame.len() as u64;
            newest.left += 1;
        }
        self.bytes += batch.bytes().len() as u64;
        let header = batch.header();
        self.last = Some(Last { epoch: header.epoch, hash: batch.hash() });
        self.waiting.push_back(Waiting {
            segment: number,
            offset: offset + 4,
            length: batch.bytes().len(),
            position: Some((header.epoch, header.sequence)),
        });
        // Those before it may have waited for a successor alone.
        self.remove_done()
    }

    /// Reads the oldest batches that wait: at least one, and no more than `count` and, but for the first, `bytes`.
    pub(super) fn front(&self, count: usize, bytes: usize) -> io::Result<Vec<Vec<u8>>> {
        let mut batches = Vec::new();
        let mut left = bytes;
        for one in self.waiting.iter().take(count) {
            if one.length > left && !batches.is_empty() {
                break;
            }
            batches.push(self.files.read(&segment_name(one.segment), one.offset, one.length)?);
            left = left.saturating_sub(one.length + 4);
        }
        Ok(batches)
    }

    /// Takes note that the oldest `count` batches are done with.
    pub(super) fn acknowledge(&mut self, count: usize) -> io::Result<()> {
        for one in self.waiting.drain(..count.min(self.waiting.len())) {
            self.bytes = self.bytes.saturating_sub(one.length as u64);
            if let Some(segment) = self.segments.iter_mut().find(|segment| segment.number == one.segment) {
                segment.left = segment.left.saturating_sub(1);
            }
        }
        self.remove_done()
    }

    fn remove_done(&mut self) -> io::Result<()> {
        while self.segments.len() > 1
            && let Some(oldest) = self.segments.front()
            && oldest.left == 0
        {
            self.files.remove(&segment_name(oldest.number))?;
            self.segments.pop_front();
        }
        Ok(())
    }

    /// Takes over who the collector is. Receipts of another one are of no use any more.
    pub(super) fn set_collector(&mut self, collector: Verifier) -> io::Result<()> {
        if self.collector.as_ref() == Some(&collector) {
            return Ok(());
        }
        if self.files.list()?.iter().any(|(name, _)| name == COLLECTOR) {
            self.files.remove(COLLECTOR)?;
        }
        self.collector = None;
        self.files.append(COLLECTOR, collector.to_string().as_bytes())?;
        self.receipts = (self.receipts.0 + 1, 0);
        self.collector = Some(collector);
        Ok(())
    }

    /// Keeps a receipt.
    pub(super) fn keep_receipt(&mut self, receipt: &[u8]) -> io::Result<()> {
        let (number, count) = self.receipts;
        if count >= RECEIPTS {
            self.receipts = (number + 1, 0);
            let oldest = number.checked_sub(1).map(receipts_name);
            let names = self.files.list()?;
            if let Some(oldest) = oldest.filter(|oldest| names.iter().any(|(name, _)| name == oldest)) {
                self.files.remove(&oldest)?;
            }
        }
        self.files.append(&receipts_name(self.receipts.0), receipt)?;
        self.receipts.1 += 1;
        Ok(())
    }

    /// Lets what was written last survive a power cut.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        match self.segments.back() {
            Some(newest) => self.files.sync(&segment_name(newest.number)),
            None => Ok(()),
        }
    }

    /// Returns the newest batch of which there is a receipt.
    fn read_receipts(&mut self, files: &[(u64, u64)]) -> io::Result<Option<Position>> {
        let text = self.files.read(COLLECTOR, 0, COLLECTOR_BYTES_MAX).unwrap_or_default();
        self.collector = String::from_utf8(text).ok().and_then(|text| Verifier::parse(&text).ok());
        let Some(collector) = self.collector.clone() else { return Ok(None) };
        let size = RECEIPT_BYTES as u64;
        if let Some((number, length)) = files.last() {
            self.receipts = (*number, length / size);
            if length % size != 0 {
                // A crash has left the beginning of one.
                self.files.truncate(&receipts_name(*number), length / size * size)?;
            }
        }
        for (number, length) in files.iter().rev() {
            let Some(offset) = (length / size).checked_sub(1).map(|last| last * size) else { continue };
            let bytes = self.files.read(&receipts_name(*number), offset, RECEIPT_BYTES)?;
            return Ok(Receipt::open(&bytes, &collector).ok().map(|receipt| (receipt.epoch, receipt.sequence)));
        }
        Ok(None)
    }

    fn read_segment(&mut self, number: u64, length: u64, is_newest: bool) -> io::Result<()> {
        let name = segment_name(number);
        let bytes = self.files.read(&name, 0, SEGMENT_READ_MAX)?;
        let mut segment = Segment { number, bytes: 0, left: 0 };
        let mut rest = bytes.as_slice();
        while let Some((head, behind)) = rest.split_first_chunk::<4>() {
            let size = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
            let Some((batch, behind)) = behind.split_at_checked(size).filter(|_| size <= BATCH_BYTES_MAX) else {
                break;
            };
            let parsed = Batch::parse(batch).ok();
            let position = parsed.as_ref().map(|batch| (batch.header().epoch, batch.header().sequence));
            if let Some(batch) = &parsed {
                self.last = Some(Last { epoch: batch.header().epoch, hash: batch.hash() });
            }
            self.waiting.push_back(Waiting { segment: number, offset: segment.bytes + 4, length: size, position });
            self.bytes += size as u64;
            segment.left += 1;
            segment.bytes += 4 + size as u64;
            rest = behind;
        }
        if segment.bytes < length {
            let bytes = length - segment.bytes;
            if is_newest {
                self.files.truncate(&name, segment.bytes)?;
            }
            // The collector finds what is missing, if it was more than the beginning of a batch.
            tracing::warn!(file = name, bytes, "the end of a file of the flow log cannot be read and is left out");
        }
        self.segments.push_back(segment);
        Ok(())
    }
}

fn segment_name(number: u64) -> String {
    format!("{SEGMENT}{number:020}")
}

fn receipts_name(number: u64) -> String {
    format!("{RECEIPT}{number:020}")
}
