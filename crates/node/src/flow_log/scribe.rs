//! What is written into the chain and when, when it is sent, and what the collector's answers mean.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use warren_ledger::checkpoint::Verifier;
use warren_ledger::merkle::Hash;
use warren_ledger::store::Files;
use warren_ledger::{Batch, Event, Flow, LogKey, LogSecret, Receipt, Record, Time, Writer};
use warren_wire::flows::{Answer, BATCHES_MAX, SUBMISSION_BYTES_MAX, Verdict};

use super::spool::{Position, Spool};

/// How long records are gathered for a batch while the collector answers.
pub(super) const GATHER: Duration = Duration::from_millis(5);

/// The same while it does not: larger batches, fewer signatures.
pub(super) const GATHER_AWAY: Duration = Duration::from_secs(1);

/// How many records are put into a batch: what always fits, however long each is.
pub(super) const RECORDS: usize = warren_ledger::BODY_BYTES_MAX / warren_ledger::RECORD_BYTES_MAX;

/// How many bytes of batches the spool holds.
pub(super) const SPOOL_BYTES: u64 = 64 << 20;

/// How long after it was written a batch that still waits is synced.
const SYNC: Duration = Duration::from_secs(1);

/// How long until something that failed is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The most bytes of batches that are sent at once.
const SEND_BYTES: usize = SUBMISSION_BYTES_MAX - 4096;

const SEED: &str = "key";

/// Keeps the node's log. Call [`Self::handle_timeout`] when [`Self::poll_timeout`] says, and send what
/// [`Self::poll_submission`] gives, one after the other.
#[derive(Debug)]
pub(super) struct Scribe<F> {
    spool: Spool<F>,
    writer: Writer,
    secret: LogSecret,
    gathered: Vec<Record>,
    /// When the first of them came.
    since: Option<Instant>,
    /// Conversations whose start is in the chain and whose end is not.
    open: BTreeSet<Flow>,
    /// Ends that found no room. They come before anything new, so that nothing stays open for ever.
    owed: Vec<Record>,
    /// Records that found no room and are not said yet.
    missed: u64,
    /// A batch that could not be written to disk.
    unwritten: Option<Batch>,
    unsynced: Option<Instant>,
    /// When the disk is tried again.
    disk: Option<Instant>,
    /// Batches that are being sent.
    sent: Vec<Option<(Position, Hash)>>,
    /// When the collector is tried again, and how long is waited after the next failure.
    hold: Option<Instant>,
    backoff: Duration,
    is_away: bool,
    limit: u64,
}

impl<F: Files> Scribe<F> {
    /// Opens the log in a folder, and begins an epoch of its chain. `seed` is a secret of 32 random bytes, which becomes the
    /// key if there is none yet; `wall` is the time of day.
    ///
    /// # Errors
    /// The folder cannot be used.
    pub(super) fn open(mut files: F, seed: [u8; 32], wall: Time, limit: u64) -> io::Result<Self> {
        let has_key = files.list()?.iter().any(|(name, length)| name == SEED && *length == 32);
        let seed = if has_key {
            files.read(SEED, 0, 32)?.try_into().map_err(|_| io::ErrorKind::UnexpectedEof)?
        } else {
            // One that a crash has left half written has signed nothing.
            if files.list()?.iter().any(|(name, _)| name == SEED) {
                files.remove(SEED)?;
            }
            files.append(SEED, &seed)?;
            files.sync(SEED)?;
            seed
        };
        let spool = Spool::open(files)?;
        let last = spool.last().copied();
        // A clock that was set back does not make the epoch an earlier one.
        let after = last.map_or(0, |last| last.epoch.as_micros().saturating_add(1));
        let epoch = Time::from_micros(wall.as_micros().max(after));
        let previous = last.map_or([0; 32], |last| last.hash);
        Ok(Self {
            spool,
            writer: Writer::new(LogSecret::from_seed(seed), epoch, previous),
            secret: LogSecret::from_seed(seed),
            gathered: Vec::new(),
            since: None,
            open: BTreeSet::new(),
            owed: Vec::new(),
            missed: 0,
            unwritten: None,
            unsynced: None,
            disk: None,
            sent: Vec::new(),
            hold: None,
            backoff: RETRY.0,
            is_away: false,
            limit,
        })
    }

    /// Returns the key that signs the log.
    pub(super) const fn key(&self) -> LogKey {
        self.secret.public()
    }

    /// Signs something else than a batch with it.
    pub(super) fn sign(&self, message: &[u8]) -> warren_ledger::Signature {
        self.secret.sign(message)
    }

    /// Takes over by which key receipts are known, and about which log they are.
    pub(super) fn set_collector(&mut self, collector: Verifier, now: Instant) {
        if self.spool.collector().is_some_and(|before| *before != collector) {
            tracing::warn!(%collector, "the flow log has another collector; receipts of the one before do not bind it");
        }
        if let Err(error) = self.spool.set_collector(collector) {
            self.disk_failed(&error, now);
        }
    }

    /// Takes a record of the worker.
    pub(super) fn handle_record(&mut self, record: Record, now: Instant, wall: Time) {
        let has_room = self.gathered.len() < RECORDS && self.owed.is_empty();
        match &record.event {
            Event::Start(start) if has_room => {
                self.open.insert(start.flow);
            }
            // Begun before the log, or not written down: what comes of it cannot be, either.
            Event::Update(update) if !self.open.contains(&update.flow) => return,
            Event::End(end) if !self.open.remove(&end.flow) => return,
            Event::End(_) if !has_room => return self.owed.push(record),
            // Counters are totals: the next says it.
            Event::Update(_) if !has_room => return,
            Event::Missed { records } => {
                self.missed = self.missed.saturating_add(*records);
                self.since.get_or_insert(now);
                return;
            }
            Event::Start(_) | Event::Drops(_) if !has_room => {
                self.missed = self.missed.saturating_add(1);
                return;
            }
            Event::Update(_) | Event::End(_) | Event::Drops(_) | Event::Start(_) => {}
        }
        self.gathered.push(record);
        self.since.get_or_insert(now);
        if self.gathered.len() >= RECORDS {
            self.seal(now, wall);
        }
    }

    /// Returns when to call [`Self::handle_timeout`].
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let gather = if self.is_away { GATHER_AWAY } else { GATHER };
        let due = self.since.map(|since| since + gather);
        let due = match (due, self.disk) {
            (due, None) => due,
            (_, Some(disk)) => Some(disk),
        };
        let hold = self.hold.filter(|_| self.spool.waiting() > 0);
        [due, self.unsynced, hold].into_iter().flatten().min()
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant, wall: Time) {
        if self.disk.is_some_and(|disk| disk <= now) {
            self.disk = None;
            self.seal(now, wall);
        }
        let gather = if self.is_away { GATHER_AWAY } else { GATHER };
        if self.since.is_some_and(|since| since + gather <= now) && self.disk.is_none() {
            self.seal(now, wall);
        }
        if self.hold.is_some_and(|hold| hold <= now) {
            self.hold = None;
        }
        if self.unsynced.is_some_and(|due| due <= now) {
            self.unsynced = None;
            if self.spool.waiting() > 0
                && let Err(error) = self.spool.sync()
            {
                tracing::warn!(%error, "the flow log cannot be synced");
            }
        }
    }

    /// Writes everything down that came, as far as there is room.
    pub(super) fn finish(&mut self, now: Instant, wall: Time) {
        self.disk = None;
        while self.seal(now, wall) && !(self.gathered.is_empty() && self.owed.is_empty() && self.missed == 0) {}
        if let Err(error) = self.spool.sync() {
            tracing::warn!(%error, "the flow log cannot be synced");
        }
    }

    /// Returns batches to send, if there are any and none are on their way.
    pub(super) fn poll_submission(&mut self, now: Instant) -> Option<Vec<Vec<u8>>> {
        if !self.sent.is_empty() || self.hold.is_some() || self.spool.waiting() == 0 {
            return None;
        }
        match self.spool.front(BATCHES_MAX, SEND_BYTES) {
            Ok(batches) => {
                let parsed = batches.iter().map(|bytes| Batch::parse(bytes).ok());
                let named = |batch: Batch| ((batch.header().epoch, batch.header().sequence), batch.hash());
                self.sent = parsed.map(|batch| batch.map(named)).collect();
                Some(batches)
            }
            Err(error) => {
                tracing::warn!(%error, "the flow log's spool cannot be read");
                self.wait(now);
                None
            }
        }
    }

    /// Takes what the collector says of the batches that were sent.
    pub(super) fn handle_answer(&mut self, answer: &Answer, now: Instant) {
        let sent = std::mem::take(&mut self.sent);
        let mut done = 0;
        for (batch, verdict) in sent.iter().zip(&answer.0) {
            match verdict {
                Verdict::Stored(receipt) => {
                    if !self.is_receipt(receipt, batch.as_ref()) {
                        tracing::warn!("the collector's receipt is not for the batch that was sent; it is sent again");
                        break;
                    }
                    if let Err(error) = self.spool.keep_receipt(receipt) {
                        tracing::warn!(%error, "a receipt of the flow log's collector cannot be kept");
                    }
                }
                Verdict::Refused(text) => {
                    tracing::warn!(text, "the collector refuses a part of the flow log");
                }
                Verdict::Later => break,
            }
            done += 1;
        }
        if let Err(error) = self.spool.acknowledge(done) {
            tracing::warn!(%error, "the flow log's spool cannot be cleaned up");
        }
        if done == sent.len() {
            (self.is_away, self.backoff) = (false, RETRY.0);
        } else {
            self.wait(now);
        }
    }

    /// Takes note that the batches that were sent found no collector.
    pub(super) fn handle_failure(&mut self, now: Instant) {
        self.sent.clear();
        self.wait(now);
    }

    /// Takes note that no answer comes; it may still.
    pub(super) const fn handle_silence(&mut self) {
        self.is_away = true;
    }

    /// Tells whether the collector seems to be away.
    pub(super) const fn is_away(&self) -> bool {
        self.is_away
    }

    fn wait(&mut self, now: Instant) {
        self.is_away = true;
        self.hold = Some(now + self.backoff);
        self.backoff = (self.backoff * 2).min(RETRY.1);
    }

    fn is_receipt(&self, receipt: &[u8], batch: Option<&(Position, Hash)>) -> bool {
        let Some(collector) = self.spool.collector() else { return false };
        let Ok(receipt) = Receipt::open(receipt, collector) else { return false };
        let named = ((receipt.epoch, receipt.sequence), receipt.hash);
        receipt.key == self.key() && batch == Some(&named)
    }

    /// Makes a batch of what there is and writes it to disk; tells whether that went well.
    fn seal(&mut self, now: Instant, wall: Time) -> bool {
        if let Some(batch) = self.unwritten.take()
            && !self.write(batch, now)
        {
            return false;
        }
        if self.owed.is_empty() && self.gathered.is_empty() && self.missed == 0 {
            self.since = None;
            return true;
        }
        if self.spool.bytes() + (warren_ledger::BATCH_BYTES_MAX as u64) > self.limit {
            // As it drains there is room again.
            self.disk = Some(now + RETRY.0);
            return false;
        }
        // Starts before the ends that are owed of them.
        let mut records = std::mem::take(&mut self.gathered);
        if self.missed > 0 && records.len() < RECORDS {
            records.push(Record { at: wall, event: Event::Missed { records: std::mem::take(&mut self.missed) } });
        }
        let left = (RECORDS - records.len()).min(self.owed.len());
        records.extend(self.owed.drain(..left));
        let has_more = !self.owed.is_empty() || self.missed > 0;
        self.since = has_more.then_some(now);
        match self.writer.seal(&records, wall) {
            Ok(batch) => self.write(batch, now),
            Err(error) => {
                // None of ours; counted, so that it is said.
                tracing::error!(%error, "records of the flow log cannot be written");
                self.missed = self.missed.saturating_add(records.len() as u64);
                false
            }
        }
    }

    fn write(&mut self, batch: Batch, now: Instant) -> bool {
        match self.spool.append(&batch) {
            Ok(()) => {
                self.unsynced.get_or_insert(now + SYNC);
                true
            }
            Err(error) => {
                // It is part of the chain: the next one names it.
                self.unwritten = Some(batch);
                self.disk_failed(&error, now);
                false
            }
        }
    }

    fn disk_failed(&mut self, error: &io::Error, now: Instant) {
        tracing::warn!(%error, "the flow log cannot be written to disk; what finds no room is counted");
        self.disk = Some(now + RETRY.0);
    }
}
