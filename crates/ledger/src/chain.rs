//! One node's batches in a row, and what can be wrong with the row.

use std::collections::{BTreeMap, VecDeque};

use crate::batch::{Batch, BatchError, Opened};
use crate::key::LogKey;
use crate::merkle::Hash;
use crate::record::{Counts, Event, Flow};
use crate::time::Time;

/// The most conversations that may be open on one node.
pub const OPEN_FLOWS_MAX: usize = 1 << 17;

/// How many accepted batches are remembered by their hashes, so that one sent twice is known from one rewritten.
const RECENT: usize = 256;

/// Follows the batches of one node: takes each that continues the chain, and names what is wrong with any other.
///
/// A batch that is refused changes nothing. If the node really has nothing better, the caller writes the fault down and
/// goes on behind it with [`Self::resume`].
#[derive(Debug, Clone)]
pub struct Chain {
    key: LogKey,
    head: Option<Head>,
    recent: VecDeque<(Time, u64, Hash)>,
    open: BTreeMap<Flow, Counts>,
    next_flow: u64,
    /// Whether all conversations that are open are known: not behind a gap.
    is_complete: bool,
}

/// Says where a chain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The epoch of the last batch.
    pub epoch: Time,
    /// The number of the last batch in it.
    pub sequence: u64,
    /// The number of the next record in it.
    pub next: u64,
    /// The hash of the last batch.
    pub hash: Hash,
}

/// Says that a batch is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// It is the next.
    New(Opened),
    /// It was accepted before: acknowledge it again, and do not store it.
    Again,
}

/// Says what is wrong with a batch's place in the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It is another node's.
    #[error("a batch of {0}, which is another node")]
    OtherKey(LogKey),
    /// It is not what a node made.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// Batches between the last one and this one are missing.
    #[error("batches {first} to {last} are missing")]
    Gap {
        /// Number of the first that is missing.
        first: u64,
        /// Number of the last that is missing.
        last: u64,
    },
    /// It has the number of an accepted one, and other contents: the node tells two stories.
    #[error("batch {sequence} is not the one that was accepted before: history was rewritten")]
    Rewritten {
        /// The number.
        sequence: u64,
    },
    /// Its number is one of long ago, or it is of an epoch that is over: it stands out of order.
    #[error("batch {sequence} comes after batch {last}: out of order")]
    Reordered {
        /// Its number.
        sequence: u64,
        /// Number of the last accepted one.
        last: u64,
    },
    /// It has the next number, and names another batch as the one before: that was altered, replaced or inserted.
    #[error("batch {sequence} does not follow the batch that was accepted before it")]
    Forked {
        /// Its number.
        sequence: u64,
    },
    /// The numbers of its records do not continue.
    #[error("records {expected} to {found} do not exist")]
    Records {
        /// Which number should be first.
        expected: u64,
        /// Which one is.
        found: u64,
    },
    /// The node started anew and does not know the last batch that it sent: its state was lost, set back or removed.
    #[error("the node started anew without knowing the last batch that it sent")]
    Restart,
    /// It is the first that is seen, and not the first that there was.
    #[error("the chain begins in the middle, at batch {sequence}")]
    Headless {
        /// Its number.
        sequence: u64,
    },
    /// Its records contradict what the node wrote before.
    #[error("record {record} {fault}")]
    Flow {
        /// Number of the record.
        record: u64,
        /// How.
        fault: FlowFault,
    },
}

/// Says how a record contradicts earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlowFault {
    /// Counters are lower than before.
    #[error("counts less of conversation {} than before", .flow.0)]
    Lowered {
        /// Which conversation.
        flow: Flow,
        /// What was counted before.
        before: Counts,
        /// What is counted now.
        now: Counts,
    },
    /// The conversation did not begin, or is over.
    #[error("is about conversation {}, which is not open", .0.0)]
    NotOpen(Flow),
    /// The number is not the next.
    #[error("begins conversation {}, which is out of order", .0.0)]
    OutOfOrder(Flow),
    /// More are open than a node can have.
    #[error("begins conversation {}, one more than a node can have open", .0.0)]
    TooMany(Flow),
}

impl Chain {
    /// Makes the chain of a node of which nothing is known.
    #[must_use]
    pub const fn new(key: LogKey) -> Self {
        Self { key, head: None, recent: VecDeque::new(), open: BTreeMap::new(), next_flow: 0, is_complete: true }
    }

    /// Makes the chain of a node of which it is known where it ends. Conversations are believed from there on.
    #[must_use]
    pub fn behind(key: LogKey, head: Head) -> Self {
        let recent = VecDeque::from([(head.epoch, head.sequence, head.hash)]);
        Self { head: Some(head), recent, is_complete: false, ..Self::new(key) }
    }

    /// Returns where the chain ends; `None` before the first batch.
    #[must_use]
    pub const fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// Returns how many conversations are open.
    #[must_use]
    pub fn open_flows(&self) -> usize {
        self.open.len()
    }

    /// Takes a batch that continues the chain.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn accept(&mut self, batch: &Batch) -> Result<Accepted, Fault> {
        let opened = self.open_own(batch)?;
        let header = opened.header();
        let Some(head) = self.head else {
            if header.sequence != 0 || header.first != 0 || header.previous != [0; 32] {
                return Err(Fault::Headless { sequence: header.sequence });
            }
            return self.take(opened).map(Accepted::New);
        };
        let known =
            self.recent.iter().find(|(epoch, sequence, _)| (*epoch, *sequence) == (header.epoch, header.sequence));
        if let Some((_, sequence, hash)) = known {
            return if hash == opened.hash() {
                Ok(Accepted::Again)
            } else {
                Err(Fault::Rewritten { sequence: *sequence })
            };
        }
        if header.epoch < head.epoch || (header.epoch == head.epoch && header.sequence <= head.sequence) {
            return Err(Fault::Reordered { sequence: header.sequence, last: head.sequence });
        }
        let (next, first) = if header.epoch == head.epoch { (head.sequence + 1, head.next) } else { (0, 0) };
        if header.sequence > next {
            return Err(Fault::Gap { first: next, last: header.sequence - 1 });
        }
        if header.previous != head.hash {
            let is_restart = header.epoch > head.epoch;
            return Err(if is_restart { Fault::Restart } else { Fault::Forked { sequence: header.sequence } });
        }
        if header.first != first {
            return Err(Fault::Records { expected: first, found: header.first });
        }
        self.take(opened).map(Accepted::New)
    }

    /// Goes on with a batch that [`Self::accept`] refused, after its fault was written down: behind a gap, at a restart, or in
    /// the middle of a chain. Conversations that are not known are believed from here on.
    ///
    /// # Errors
    /// What lies before the end of the chain, or is not the node's, is refused still.
    pub fn resume(&mut self, batch: &Batch) -> Result<Opened, Fault> {
        let opened = self.open_own(batch)?;
        let header = opened.header();
        if let Some(head) = self.head
            && (header.epoch, header.sequence) <= (head.epoch, head.sequence)
        {
            return Err(Fault::Reordered { sequence: header.sequence, last: head.sequence });
        }
        let before = self.clone();
        if self.head.is_some_and(|head| head.epoch != header.epoch) {
            self.start_epoch();
        }
        // The node's own start of an epoch is the only place where all is known.
        self.is_complete = header.sequence == 0;
        self.take(opened).inspect_err(|_| *self = before)
    }

    fn open_own(&self, batch: &Batch) -> Result<Opened, Fault> {
        if batch.header().key != self.key {
            return Err(Fault::OtherKey(batch.header().key));
        }
        Ok(batch.open()?)
    }

    /// Forgets conversations: those of a daemon that ended are over.
    fn start_epoch(&mut self) {
        self.open.clear();
        self.next_flow = 0;
        self.is_complete = true;
    }

    /// Takes the records of a batch that is in its place.
    fn take(&mut self, opened: Opened) -> Result<Opened, Fault> {
        let header = *opened.header();
        let was = (self.next_flow, self.is_complete);
        let is_start = self.head.is_some_and(|head| head.epoch != header.epoch);
        let ended = if is_start { std::mem::take(&mut self.open) } else { BTreeMap::new() };
        if is_start {
            self.next_flow = 0;
            self.is_complete |= header.sequence == 0;
        }
        // What was there before each change, to take them back.
        let mut undo = Vec::new();
        for (record, entry) in (header.first..).zip(opened.records()) {
            if let Err(fault) = self.take_event(&entry.event, &mut undo) {
                for (flow, counts) in undo.into_iter().rev() {
                    match counts {
                        Some(counts) => drop(self.open.insert(flow, counts)),
                        None => drop(self.open.remove(&flow)),
                    }
                }
                if is_start {
                    self.open = ended;
                }
                (self.next_flow, self.is_complete) = was;
                return Err(Fault::Flow { record, fault });
            }
        }
        let hash = *opened.hash();
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((header.epoch, header.sequence, hash));
        let next = header.first + u64::from(header.count);
        self.head = Some(Head { epoch: header.epoch, sequence: header.sequence, next, hash });
        Ok(opened)
    }

    fn take_event(&mut self, event: &Event, undo: &mut Vec<(Flow, Option<Counts>)>) -> Result<(), FlowFault> {
        let (flow, counts) = match event {
            Event::Start(start) => {
                let flow = start.flow;
                if flow.0 < self.next_flow || flow.0 == u64::MAX {
                    return Err(FlowFault::OutOfOrder(flow));
                }
                if self.open.len() >= OPEN_FLOWS_MAX {
                    return Err(FlowFault::TooMany(flow));
                }
                self.next_flow = flow.0 + 1;
                undo.push((flow, self.open.insert(flow, Counts::default())));
                return Ok(());
            }
            Event::Update(update) => (update.flow, update.counts),
            Event::End(end) => (end.flow, end.counts),
            Event::Drops(_) | Event::Missed { .. } => return Ok(()),
        };
        match self.open.get(&flow) {
            Some(before) if !counts.is_at_least(before) => {
                return Err(FlowFault::Lowered { flow, before: *before, now: counts });
            }
            Some(_) => {}
            // Begun where we did not see it: in a gap, or before the first batch that we have.
            None if !self.is_complete && flow.0 >= self.next_flow => self.next_flow = flow.0,
            None if !self.is_complete => {}
            None => return Err(FlowFault::NotOpen(flow)),
        }
        if matches!(event, Event::End(_)) {
            undo.push((flow, self.open.remove(&flow)));
        } else if self.open.contains_key(&flow) || self.open.len() < OPEN_FLOWS_MAX {
            undo.push((flow, self.open.insert(flow, counts)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
