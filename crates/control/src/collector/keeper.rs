//! The thread that keeps the flow logs of all tailnets: it checks chains, stores batches, and signs receipts.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::Instant;
use warren_ledger::checkpoint::Verifier;
use warren_ledger::join::{Ends, Join, Mismatch, Tailnet};
use warren_ledger::merkle::Hash;
use warren_ledger::store::{Folder, Retention, Store, StoreError};
use warren_ledger::{
    Accepted, Batch, Chain, DecodeError, Fault, HEADER_BYTES, Head, LogKey, LogSecret, Opened, Receipt, Time,
};
use warren_wire::control::NodeId;
use warren_wire::flows::Verdict;
use warren_wire::key::{MachineKey, NodeKey};

use super::Known;
use super::events::{Event, Events};
use crate::clock::Clock;
use crate::model::TailnetId;
use crate::store::audit::hex;

/// How many submissions are put on disk together.
const TOGETHER: usize = 256;

/// How many bytes of batches are put on disk together, give or take a submission.
const TOGETHER_BYTES: usize = 4 << 20;

/// How many of a node's batches are known with their positions, to answer for those that come again.
const RECENT: usize = 128;

/// How many bytes a node may send at once, and how many in a second.
const BURST: u64 = 16 << 20;
const PER_SECOND: u64 = 2 << 20;

/// How long a store that cannot be used is left alone.
const RETRY: Duration = Duration::from_secs(5);

/// How often old batches are removed.
const RETIRE_EVERY: Duration = Duration::from_secs(3600);

/// How often it is looked whether an end has been silent for too long.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long batches are kept, and how many bytes of them in a tailnet.
const RETENTION: Retention = Retention { age: Some(Duration::from_secs(30 * 86_400)), bytes: Some(10 << 30) };

/// Something for the thread to do.
#[derive(Debug)]
pub(super) enum Job {
    /// Batches of a node; those that cannot be read are in their places.
    Store(Source, Vec<Result<Batch, DecodeError>>, oneshot::Sender<Vec<Verdict>>),
    /// Something about a node to be written down.
    Note(Source, &'static str, String),
}

/// Whose batches they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) tailnet: TailnetId,
    pub(super) node: NodeId,
    pub(super) node_key: NodeKey,
    /// The log key that is registered for the node.
    pub(super) key: LogKey,
}

/// The thread's state.
pub(super) struct Keeper {
    dir: PathBuf,
    secret: Arc<LogSecret>,
    server: MachineKey,
    clock: Clock,
    known: Known,
    events: Events,
    books: BTreeMap<TailnetId, Book>,
    /// Until when stores are left alone that cannot be opened.
    closed: BTreeMap<TailnetId, Instant>,
}

/// The flow logs of a tailnet.
struct Book {
    verifier: Verifier,
    store: Store<Folder>,
    join: Join,
    /// Conversations that began before are not judged: what was known of them went with the process before.
    joined_since: Time,
    nodes: HashMap<LogKey, Log>,
    retire: Instant,
}

/// The flow log of a node.
struct Log {
    chain: Chain,
    recent: VecDeque<(Hash, u64, Time)>,
    /// How many bytes it may send now.
    budget: u64,
    refilled: Instant,
}

/// Signs receipts for a log.
struct Signer<'a> {
    verifier: &'a Verifier,
    secret: &'a LogSecret,
}

impl Signer<'_> {
    fn receipt(&self, batch: &Batch, position: u64, stored: Time) -> Vec<u8> {
        Receipt::of(self.verifier, batch.header(), batch.hash(), position, stored).sign(self.secret)
    }
}

/// What becomes of a batch.
enum Plan {
    Said(Verdict),
    /// It is the one of that number among those that are being stored.
    New(usize),
}

impl Keeper {
    pub(super) fn new(dir: PathBuf, secret: LogSecret, server: MachineKey, (clock, known): (Clock, Known)) -> Self {
        let events = Events::new(&dir);
        Self {
            dir,
            secret: Arc::new(secret),
            server,
            clock,
            known,
            events,
            books: BTreeMap::new(),
            closed: BTreeMap::new(),
        }
    }

    /// Works until nobody can give it anything any more.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        if let Err(error) = std::fs::create_dir_all(&self.dir) {
            tracing::error!(dir = %self.dir.display(), %error, "the folder of the flow logs cannot be made");
        }
        loop {
            let pending = self.books.values().any(|book| book.join.poll_timeout().is_some());
            let first = match jobs.recv_timeout(if pending { LOOK_EVERY } else { RETIRE_EVERY }) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut together: BTreeMap<TailnetId, Vec<Wanted>> = BTreeMap::new();
            let (mut count, mut bytes) = (0, 0);
            let mut next = first;
            while let Some(job) = next {
                match job {
                    Job::Store(source, batches, reply) => {
                        count += 1;
                        bytes += batches.iter().flatten().map(|batch| batch.bytes().len()).sum::<usize>();
                        together.entry(source.tailnet).or_default().push(Wanted { source, batches, reply });
                    }
                    Job::Note(source, what, text) => self.note(source, what, text, None),
                }
                let is_enough = count >= TOGETHER || bytes >= TOGETHER_BYTES;
                next = if is_enough { None } else { jobs.try_recv().ok() };
            }
            for (tailnet, wanted) in together {
                self.store(tailnet, wanted);
            }
            self.look();
            self.retire();
        }
    }

    /// Looks for conversations of which one end has said nothing.
    fn look(&mut self) {
        let now = time(self.clock.now());
        let judge = Judge(&self.known);
        let mut found = Vec::new();
        for (tailnet, book) in &mut self.books {
            if book.join.poll_timeout().is_some_and(|due| due <= now) {
                book.join.handle_timeout(now, &judge);
                found.extend(book.take_mismatches().map(|mismatch| (*tailnet, mismatch)));
            }
        }
        for (tailnet, mismatch) in found {
            self.note_mismatch(tailnet, &mismatch);
        }
    }

    fn note_mismatch(&mut self, tailnet: TailnetId, mismatch: &Mismatch) {
        let Some((what, node, text)) = worded(mismatch) else { return };
        let id = (self.known.0)(&node).map_or(0, |(id, _)| id.0);
        self.events.note(&Event {
            at: self.clock.now(),
            tailnet: tailnet.0,
            node: id,
            log_key: String::new(),
            what: what.to_owned(),
            text,
            evidence: Some(format!("{mismatch:?}")),
        });
    }

    fn note(&mut self, source: Source, what: &str, text: String, batch: Option<&Batch>) {
        let head = batch.map(|batch| hex(batch.bytes().get(..HEADER_BYTES).unwrap_or_default()));
        self.events.note(&Event {
            at: self.clock.now(),
            tailnet: source.tailnet.0,
            node: source.node.0,
            log_key: source.key.to_string(),
            what: what.to_owned(),
            text,
            evidence: head,
        });
    }

    /// Stores what came for a tailnet, all with one sync.
    fn store(&mut self, tailnet: TailnetId, wanted: Vec<Wanted>) {
        let instant = self.clock.instant();
        let Some(mut book) = self.take_book(tailnet, instant) else {
            for Wanted { batches, reply, .. } in wanted {
                let _ = reply.send(vec![Verdict::Later; batches.len()]);
            }
            return;
        };
        let (mut new, mut records) = (Vec::new(), Vec::new());
        let mut heads: BTreeMap<LogKey, Option<Head>> = BTreeMap::new();
        let mut plans = Vec::new();
        let verifier = book.verifier.clone();
        let secret = Arc::clone(&self.secret);
        let signer = Signer { verifier: &verifier, secret: &secret };
        for Wanted { source, batches, reply } in wanted {
            let log = book.nodes.entry(source.key).or_insert_with(|| Log::new(source.key, None, instant));
            heads.entry(source.key).or_insert_with(|| log.chain.head().copied());
            let mut plan = Vec::new();
            for batch in batches {
                let before = new.len();
                let (next, opened, findings) = log.plan(batch, &mut new, (&signer, instant));
                if new.len() > before {
                    records.extend(opened.map(|opened| (source.node_key, opened)));
                }
                for (what, text, batch) in findings {
                    self.note(source, what, text, batch.as_ref());
                }
                let is_later = matches!(next, Plan::Said(Verdict::Later));
                plan.push(next);
                if is_later {
                    break;
                }
            }
            plans.push((source, plan, reply));
        }
        let now = time(self.clock.now());
        let stored = book.store.append(&new, now);
        let first = match &stored {
            Ok(positions) => Some(positions.start),
            Err(error) => {
                tracing::error!(%error, "flow logs cannot be stored; nodes keep them and send them again");
                for (key, head) in heads {
                    book.nodes.insert(key, Log::new(key, head, instant));
                }
                None
            }
        };
        for (source, plan, reply) in plans {
            let verdict = |plan| match (plan, first) {
                (Plan::Said(verdict), _) => verdict,
                (Plan::New(_), None) => Verdict::Later,
                (Plan::New(number), Some(first)) => {
                    let position = first + number as u64;
                    match (new.get(number), book.nodes.get_mut(&source.key)) {
                        (Some(batch), Some(log)) => log.stored(batch, position, now, &signer),
                        (_, _) => Verdict::Later,
                    }
                }
            };
            // The node may have gone away; it sends them again.
            let _ = reply.send(plan.into_iter().map(verdict).collect());
        }
        if first.is_some() {
            let judge = Judge(&self.known);
            records.iter().for_each(|(node, opened)| book.join(*node, opened, now, &judge));
            let found: Vec<_> = book.take_mismatches().collect();
            found.iter().for_each(|mismatch| self.note_mismatch(tailnet, mismatch));
        }
        if matches!(stored, Err(StoreError::Poisoned)) {
            // It is opened anew next time.
            return;
        }
        self.books.insert(tailnet, book);
    }

    /// Returns the flow logs of a tailnet, opening them if need be.
    fn take_book(&mut self, tailnet: TailnetId, now: Instant) -> Option<Book> {
        if let Some(book) = self.books.remove(&tailnet) {
            return Some(book);
        }
        if self.closed.get(&tailnet).is_some_and(|until| now < *until) {
            return None;
        }
        let verifier = super::verifier(&self.server, tailnet, self.secret.public())?;
        match Book::open(&self.dir, tailnet, verifier, (now, time(self.clock.now()))) {
            Ok(book) => {
                self.closed.remove(&tailnet);
                Some(book)
            }
            Err(error) => {
                tracing::error!(%tailnet, %error, "the flow logs of a network cannot be opened; nodes keep theirs meanwhile");
                self.closed.insert(tailnet, now + RETRY);
                None
            }
        }
    }

    fn retire(&mut self) {
        let (now, wall) = (self.clock.instant(), time(self.clock.now()));
        for (tailnet, book) in &mut self.books {
            if now < book.retire {
                continue;
            }
            book.retire = now + RETIRE_EVERY;
            match book.store.retire(&RETENTION, wall, &self.secret) {
                Ok(cuts) => cuts.iter().for_each(|cut| {
                    tracing::info!(%tailnet, batches = cut.to - cut.from, "old flow logs were removed");
                }),
                Err(error) => tracing::error!(%tailnet, %error, "old flow logs cannot be removed"),
            }
        }
    }
}

/// A submission that waits for its answer.
struct Wanted {
    source: Source,
    batches: Vec<Result<Batch, DecodeError>>,
    reply: oneshot::Sender<Vec<Verdict>>,
}

impl Book {
    fn open(
        dir: &Path,
        tailnet: TailnetId,
        verifier: Verifier,
        (now, wall): (Instant, Time),
    ) -> Result<Self, StoreError> {
        let path = super::folder(dir, tailnet);
        let failed = |source| StoreError::Io { action: "open", file: path.display().to_string(), source };
        let store = Store::open(Folder::open(path.clone()).map_err(failed)?, &verifier)?;
        let mut nodes: HashMap<LogKey, Log> = HashMap::new();
        let mut position = store.first();
        while position < store.size() {
            let (first, stored, batches) = store.read(position)?;
            for (number, batch) in batches.iter().enumerate() {
                let header = batch.header();
                let head = Head {
                    epoch: header.epoch,
                    sequence: header.sequence,
                    next: header.first + u64::from(header.count),
                    hash: batch.hash(),
                };
                let log = nodes.entry(header.key).or_insert_with(|| Log::new(header.key, None, now));
                log.chain = Chain::behind(header.key, head);
                log.remember(head.hash, first + number as u64, stored);
            }
            position = first + batches.len() as u64;
        }
        Ok(Self { verifier, store, join: Join::new(), joined_since: wall, nodes, retire: now })
    }

    /// Puts a batch's records beside those of the other ends.
    fn join(&mut self, node: NodeKey, opened: &Opened, now: Time, judge: &Judge<'_>) {
        let header = opened.header();
        if header.sequence == 0 {
            self.join.handle_restart(node, judge);
        }
        opened.records().iter().for_each(|record| self.join.handle_record(node, record, now, judge));
        self.join.handle_batch(node, header.made, now);
    }

    /// Returns what does not balance, as far as it can be told.
    fn take_mismatches(&mut self) -> impl Iterator<Item = Mismatch> + '_ {
        let since = self.joined_since;
        std::iter::from_fn(|| self.join.poll_mismatch()).filter(move |mismatch| {
            if let Mismatch::Silent { entry, .. }
            | Mismatch::StreamSilent { entry, .. }
            | Mismatch::Behind { entry, .. } = mismatch
            {
                // Who got nothing back may have spoken to nobody: a node that is off, or whose filter refused it.
                return entry.counts.rx_packets > 0 && entry.began >= since;
            }
            true
        })
    }
}

/// What is to be written down of a batch: a word, a sentence, and the batch.
type Finding = (&'static str, String, Option<Batch>);

impl Log {
    fn new(key: LogKey, head: Option<Head>, now: Instant) -> Self {
        let chain = head.map_or_else(|| Chain::new(key), |head| Chain::behind(key, head));
        Self { chain, recent: VecDeque::new(), budget: BURST, refilled: now }
    }

    fn remember(&mut self, hash: Hash, position: u64, stored: Time) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((hash, position, stored));
    }

    /// Tells whether the node may send so much more.
    fn pay(&mut self, bytes: u64, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.refilled).as_millis();
        let more = u64::try_from(passed).unwrap_or(u64::MAX).saturating_mul(PER_SECOND / 1000);
        self.budget = self.budget.saturating_add(more).min(BURST);
        self.refilled = now;
        match self.budget.checked_sub(bytes) {
            Some(left) => {
                self.budget = left;
                true
            }
            None => false,
        }
    }

    /// Says what becomes of a batch, and what there is to be written down about it. One that is new is put behind `new`.
    fn plan(
        &mut self,
        batch: Result<Batch, DecodeError>,
        new: &mut Vec<Batch>,
        (signer, now): (&Signer<'_>, Instant),
    ) -> (Plan, Option<Opened>, Vec<Finding>) {
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => {
                let text = format!("what the node sent is no batch: {error}");
                return (Plan::Said(Verdict::Refused(text.clone())), None, vec![("batch.unreadable", text, None)]);
            }
        };
        if !self.pay(batch.bytes().len() as u64, now) {
            return (Plan::Said(Verdict::Later), None, Vec::new());
        }
        let fault = match self.chain.accept(&batch) {
            Ok(Accepted::New(opened)) => {
                new.push(batch);
                return (Plan::New(new.len() - 1), Some(opened), Vec::new());
            }
            Ok(Accepted::Again) => return (self.again(&batch, new, signer), None, Vec::new()),
            Err(fault) => fault,
        };
        let finding = (word(&fault), fault.to_string(), Some(batch.clone()));
        let refused = |fault: &Fault| Plan::Said(Verdict::Refused(fault.to_string()));
        if !can_go_on(&fault) {
            return (refused(&fault), None, vec![finding]);
        }
        match self.chain.resume(&batch) {
            Ok(opened) => {
                new.push(batch);
                (Plan::New(new.len() - 1), Some(opened), vec![finding])
            }
            Err(more) => (refused(&more), None, vec![finding, (word(&more), more.to_string(), Some(batch))]),
        }
    }

    /// Answers for a batch that was accepted before.
    fn again(&self, batch: &Batch, new: &[Batch], signer: &Signer<'_>) -> Plan {
        let hash = batch.hash();
        if let Some((_, position, stored)) = self.recent.iter().find(|(known, ..)| *known == hash) {
            return Plan::Said(Verdict::Stored(signer.receipt(batch, *position, *stored)));
        }
        // It is being stored right now.
        new.iter().position(|one| one.hash() == hash).map_or(Plan::Said(Verdict::Later), Plan::New)
    }

    fn stored(&mut self, batch: &Batch, position: u64, now: Time, signer: &Signer<'_>) -> Verdict {
        self.remember(batch.hash(), position, now);
        Verdict::Stored(signer.receipt(batch, position, now))
    }
}

/// Tells whether a node may go on with a batch behind this fault, once that is written down.
const fn can_go_on(fault: &Fault) -> bool {
    // Of what is no batch of the node, contradicts itself, or is told a second time nothing is stored.
    matches!(
        fault,
        Fault::Gap { .. } | Fault::Forked { .. } | Fault::Records { .. } | Fault::Restart | Fault::Headless { .. }
    )
}

/// Names a fault by a word that stays the same.
const fn word(fault: &Fault) -> &'static str {
    match fault {
        Fault::OtherKey(_) => "batch.other-key",
        Fault::Batch(_) => "batch.altered",
        Fault::Gap { .. } => "chain.gap",
        Fault::Rewritten { .. } => "chain.rewritten",
        Fault::Reordered { .. } => "chain.reordered",
        Fault::Forked { .. } => "chain.forked",
        Fault::Records { .. } => "chain.records",
        Fault::Restart => "chain.restart",
        Fault::Headless { .. } => "chain.headless",
        Fault::Flow { .. } => "chain.contradiction",
        _ => "chain.other",
    }
}

/// Answers what the join must know.
struct Judge<'a>(&'a Known);

impl Tailnet for Judge<'_> {
    fn writes(&self, node: &NodeKey) -> bool {
        (self.0.0)(node).is_some_and(|(_, writes)| writes)
    }

    fn allows(&self, _: &Ends, _: Time) -> bool {
        // Versions of the policy are not asked yet.
        true
    }
}

/// Puts a mismatch into words: one that stays the same, the node that it is about, a sentence.
fn worded(mismatch: &Mismatch) -> Option<(&'static str, NodeKey, String)> {
    let about = |ends: &Ends| format!("{} to {}, protocol {}", ends.from, ends.to, ends.protocol);
    Some(match mismatch {
        Mismatch::Silent { node, ends, .. } => (
            "join.silent",
            *node,
            format!("the node did not write down a conversation that its peer did: {}", about(ends)),
        ),
        Mismatch::StreamSilent { node, ends, .. } => (
            "join.stream-silent",
            *node,
            format!("nothing comes from the node while peers talk with it: {}", about(ends)),
        ),
        Mismatch::Behind { node, ends, .. } => {
            ("join.behind", *node, format!("the node's log does not come to what its peer wrote: {}", about(ends)))
        }
        Mismatch::CountsApart { ends, from, to } => (
            "join.counts-apart",
            ends.from_node,
            format!(
                "the ends count differently: {}; sent {} and {} packets, received {} and {}",
                about(ends),
                from.counts.tx_packets,
                to.counts.tx_packets,
                to.counts.rx_packets,
                from.counts.rx_packets
            ),
        ),
        Mismatch::ClocksApart { ends, from, to } => (
            "join.clocks-apart",
            ends.from_node,
            format!("the ends' clocks are {:?} apart: {}", from.began.distance(to.began), about(ends)),
        ),
        Mismatch::NotAllowed { node, ends, .. } => {
            ("join.not-allowed", *node, format!("no policy allows this conversation: {}", about(ends)))
        }
        // What the ledger will name one day.
        _ => return None,
    })
}

fn time(now: Timestamp) -> Time {
    Time::from_micros(u64::try_from(now.as_microsecond()).unwrap_or(0))
}
