//! The way through a store's frames.

use std::collections::BTreeMap;

use super::{About, Kinds, LOOKBACK, OPEN_MAX, Query};
use crate::batch::Batch;
use crate::key::LogKey;
use crate::record::{Event, Flow, Record, Start};
use crate::store::summary::{Item, may_hold};
use crate::store::{Entry, Segment, Source, StoreError, View};
use crate::time::Time;

/// How many entries of an index are read at a time.
const ENTRIES: usize = 1024;

/// Of how many nodes it is looked for what their open conversations come to, before everything is read.
const FOLLOWED_MAX: usize = 16;

/// Is a record that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Where its batch is.
    pub position: u64,
    /// When the collector had it, by its clock.
    pub stored: Time,
    /// Who wrote it.
    pub writer: LogKey,
    /// When that node's daemon started: conversations are numbered from then on.
    pub epoch: Time,
    /// Its number in the epoch.
    pub number: u64,
    /// What was written.
    pub record: Record,
    /// How the conversation that it is about began, if that was seen: not longer than [`LOOKBACK`] before the time that is
    /// asked about, and behind the position that is.
    pub start: Option<Began>,
}

/// Says how a conversation began, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Began {
    /// When, by the clock of the node that wrote it.
    pub at: Time,
    /// How.
    pub start: Start,
}

/// Finds what a query looks for, one after the other, in the order in which it was stored.
///
/// After an error it goes on behind what cannot be read.
#[derive(Debug)]
pub struct Results<'v, F> {
    view: &'v View<F>,
    query: Query,
    /// What is read next: number of the segment, and of the frame in it.
    segment: usize,
    frame: u64,
    entries: std::vec::IntoIter<Entry>,
    /// The batches of the frame that was read last, with what the index says of it.
    batches: std::vec::IntoIter<Batch>,
    entry: Option<Entry>,
    position: u64,
    ready: std::vec::IntoIter<Found>,
    open: BTreeMap<LogKey, (Time, BTreeMap<Flow, Began>)>,
    open_count: usize,
    left: usize,
    frames: (u64, u64),
    is_done: bool,
}

impl<F: Source> View<F> {
    /// Finds what a query looks for.
    pub fn query(&self, query: Query) -> Results<'_, F> {
        let position = query.position;
        let segment = self.segments().partition_point(|segment| segment.end() <= position);
        let frame = self.segments().get(segment).map_or(Ok(0), |segment| segment.frame_of(self.files(), position));
        Results {
            view: self,
            left: query.limit.unwrap_or(usize::MAX),
            query,
            segment,
            // An index that cannot be read is an error when its entries are read.
            frame: frame.unwrap_or(0),
            entries: Vec::new().into_iter(),
            batches: Vec::new().into_iter(),
            entry: None,
            position: 0,
            ready: Vec::new().into_iter(),
            open: BTreeMap::new(),
            open_count: 0,
            frames: (0, 0),
            is_done: false,
        }
    }
}

impl<F: Source> Iterator for Results<'_, F> {
    type Item = Result<Found, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.left == 0 {
                return None;
            }
            if let Some(found) = self.ready.next() {
                self.left -= 1;
                return Some(Ok(found));
            }
            if self.is_done {
                return None;
            }
            if let Err(error) = self.advance() {
                return Some(Err(error));
            }
        }
    }
}

impl<F: Source> Results<'_, F> {
    /// Returns how many frames were read, and how many were passed over.
    #[must_use]
    pub const fn frames(&self) -> (u64, u64) {
        self.frames
    }

    /// Looks at the next batch, or else at the next frame.
    fn advance(&mut self) -> Result<(), StoreError> {
        let view = self.view;
        let Some(segment) = view.segments().get(self.segment) else {
            self.is_done = true;
            return Ok(());
        };
        if let (Some(batch), Some(entry)) = (self.batches.next(), self.entry) {
            return self.read(segment, &entry, &batch);
        }
        let looked = self.look(segment);
        if matches!(&looked, Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound) {
            // Retention has removed it meanwhile: once said is enough.
            let from = self.entry.map_or(0, |entry| entry.end()).max(segment.position());
            self.segment += 1;
            self.frame = 0;
            self.entries = Vec::new().into_iter();
            return Err(StoreError::Missing(from..segment.end()));
        }
        looked
    }

    /// Looks at the next frame.
    fn look(&mut self, segment: &Segment) -> Result<(), StoreError> {
        let Some(entry) = self.entries.next() else {
            let entries = segment.entries(self.view.files(), self.frame, ENTRIES);
            match entries {
                Ok(entries) if !entries.is_empty() => {
                    self.frame += entries.len() as u64;
                    self.entries = entries.into_iter();
                    return Ok(());
                }
                other => {
                    self.segment += 1;
                    self.frame = 0;
                    return other.map(drop);
                }
            }
        };
        if self.may_have(segment, &entry)? {
            self.frames.0 += 1;
            self.batches = segment.read(self.view.files(), &entry)?.into_iter();
            self.entry = Some(entry);
            self.position = entry.first;
            Ok(())
        } else {
            self.frames.1 += 1;
            Ok(())
        }
    }

    /// Tells whether a frame must be read: something in it may be looked for, or say what comes of a conversation that is.
    fn may_have(&self, segment: &Segment, entry: &Entry) -> Result<bool, StoreError> {
        let query = &self.query;
        if query.until.is_some_and(|until| entry.earliest >= until) {
            return Ok(false);
        }
        let later = Kinds::UPDATE | Kinds::END;
        let is_early = query.since.is_some_and(|since| entry.latest < since);
        // Before the time that is asked about, only what began and did not end counts, if what comes of it is wanted.
        let wanted = if is_early { Kinds::NONE } else { query.kinds };
        let wanted = if query.kinds.meets(later) { wanted | Kinds::START | Kinds::END } else { wanted };
        if !entry.kinds.meets(wanted) {
            return Ok(false);
        }
        if is_early && query.since.is_some_and(|since| entry.latest.after(LOOKBACK) < since) {
            return Ok(false);
        }
        let hosts = query.networks.iter().all(|network| network.prefix_len() == network.max_prefix_len());
        if query.parties.is_empty() && query.port.is_none() && (query.networks.is_empty() || !hosts) {
            return Ok(true);
        }
        let filter = segment.filter(self.view.files(), entry)?;
        let holds = |item: Item<'_>| may_hold(&filter, &item);
        let is_about = query.parties.iter().all(|party| {
            party.logs.iter().any(|key| holds(Item::Writer(key)))
                || party.nodes.iter().any(|key| holds(Item::Peer(key)))
        }) && query.port.is_none_or(|port| holds(Item::Port(port)))
            && (query.networks.is_empty()
                || !hosts
                || query.networks.iter().any(|one| holds(Item::Address(one.addr()))));
        let goes_on = || {
            query.kinds.meets(later)
                && entry.kinds.meets(later)
                && !self.open.is_empty()
                && (self.open.len() > FOLLOWED_MAX || self.open.keys().any(|key| holds(Item::Writer(key))))
        };
        Ok(is_about || goes_on())
    }

    /// Looks at the records of a batch.
    fn read(&mut self, segment: &Segment, entry: &Entry, batch: &Batch) -> Result<(), StoreError> {
        let (header, writer) = (batch.header(), batch.header().key);
        let position = self.position;
        self.position += 1;
        if position < self.query.position {
            return Ok(());
        }
        // Those of a daemon that ended are over.
        if self.open.get(&writer).is_some_and(|(epoch, _)| *epoch != header.epoch)
            && let Some((_, over)) = self.open.remove(&writer)
        {
            self.open_count -= over.len();
        }
        let changed = |_| StoreError::Changed { file: segment.name.clone(), offset: entry.offset };
        let mut ready = Vec::new();
        for (number, (record, _)) in (header.first..).zip(batch.read().map_err(changed)?) {
            let start = self.follow(writer, header.epoch, &record);
            if self.query.holds(&writer, &record, start.as_ref().map(|began| &began.start)) {
                let (stored, epoch) = (entry.stored, header.epoch);
                ready.push(Found { position, stored, writer, epoch, number, record, start });
            }
        }
        self.ready = ready.into_iter();
        Ok(())
    }

    /// Returns how the conversation of a record began, and remembers what is still needed.
    fn follow(&mut self, writer: LogKey, epoch: Time, record: &Record) -> Option<Began> {
        let flow = match &record.event {
            Event::Start(start) => {
                let began = Began { at: record.at, start: *start };
                // One that has the number already is over.
                self.forget(&writer, start.flow);
                let is_needed = self.query.kinds.meets(Kinds::UPDATE | Kinds::END)
                    && self.open_count < OPEN_MAX
                    && self.query.is_about(&writer, &About::start(start));
                if is_needed {
                    let (_, flows) = self.open.entry(writer).or_insert_with(|| (epoch, BTreeMap::new()));
                    flows.insert(start.flow, began);
                    self.open_count += 1;
                }
                return Some(began);
            }
            Event::Update(update) => update.flow,
            Event::End(end) => end.flow,
            Event::Drops(_) | Event::Missed { .. } => return None,
        };
        if matches!(record.event, Event::End(_)) {
            return self.forget(&writer, flow);
        }
        self.open.get(&writer)?.1.get(&flow).copied()
    }

    /// Forgets a conversation, and returns how it began.
    fn forget(&mut self, writer: &LogKey, flow: Flow) -> Option<Began> {
        let (_, flows) = self.open.get_mut(writer)?;
        let began = flows.remove(&flow)?;
        self.open_count -= 1;
        if flows.is_empty() {
            self.open.remove(writer);
        }
        Some(began)
    }
}
