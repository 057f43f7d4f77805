//! The log of a node over restarts, failures and edits, as its collector sees it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use warren_ledger::checkpoint::Verifier;
use warren_ledger::store::{Files, Source};
use warren_ledger::{
    Accepted, Batch, BatchError, Chain, Counts, Direction, End, EndReason, Event, Fault, Flow, LogSecret, Pass, Path,
    Receipt, Record, Start, Time, Update,
};
use warren_wire::flows::{Answer, Verdict};
use warren_wire::key::NodeKey;

use super::scribe::{GATHER, RECORDS, Scribe};

/// A folder in memory, with room for so many bytes more.
#[derive(Debug, Clone)]
struct Memory(Rc<RefCell<Content>>);

/// The files by name, and the room.
type Content = (BTreeMap<String, Vec<u8>>, usize);

impl Memory {
    fn new() -> Self {
        Self(Rc::new(RefCell::new((BTreeMap::new(), usize::MAX))))
    }

    fn set_room(&self, bytes: usize) {
        self.0.borrow_mut().1 = bytes;
    }

    fn edit(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        edit(self.0.borrow_mut().0.get_mut(name).unwrap());
    }

    fn names(&self) -> Vec<String> {
        self.0.borrow().0.keys().cloned().collect()
    }
}

impl Source for Memory {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        Ok(self.0.borrow().0.iter().map(|(name, bytes)| (name.clone(), bytes.len() as u64)).collect())
    }

    fn read(&self, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let files = self.0.borrow();
        let bytes = files.0.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(bytes.iter().skip(usize::try_from(offset).unwrap()).take(length).copied().collect())
    }
}

impl Files for Memory {
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (files, room) = &mut *self.0.borrow_mut();
        let fits = bytes.len().min(*room);
        files.entry(name.to_owned()).or_default().extend(&bytes[..fits]);
        *room -= fits;
        if fits == bytes.len() { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    fn overwrite(&mut self, _: &str, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        self.edit(name, |bytes| bytes.truncate(usize::try_from(length).unwrap()));
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.0.borrow_mut().0.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// A node's log and its collector, on one clock.
struct Rig {
    files: Memory,
    scribe: Scribe<Memory>,
    chain: Chain,
    collector: LogSecret,
    position: u64,
    now: Instant,
    wall: u64,
    records: Vec<Record>,
    faults: Vec<Fault>,
    limit: u64,
}

fn verifier(collector: &LogSecret) -> Verifier {
    Verifier::new("test", collector.public()).unwrap()
}

#[expect(clippy::disallowed_methods, reason = "a clock has to begin somewhere")]
fn start_of_time() -> Instant {
    Instant::now()
}

impl Rig {
    fn new() -> Self {
        Self::with_limit(64 << 20)
    }

    fn with_limit(limit: u64) -> Self {
        let (files, now, wall) = (Memory::new(), start_of_time(), 1_795_000_000_000_000);
        let collector = LogSecret::from_seed([9; 32]);
        let mut scribe = Scribe::open(files.clone(), [1; 32], Time::from_micros(wall), limit).unwrap();
        scribe.set_collector(verifier(&collector), now);
        let chain = Chain::new(scribe.key());
        let (position, records, faults) = (0, Vec::new(), Vec::new());
        Self { files, scribe, chain, collector, position, now, wall, records, faults, limit }
    }

    fn wall(&self) -> Time {
        Time::from_micros(self.wall)
    }

    fn restart(&mut self) {
        self.wall += 1_000_000;
        self.scribe = Scribe::open(self.files.clone(), [2; 32], self.wall(), self.limit).unwrap();
        assert_eq!(self.scribe.key(), LogSecret::from_seed([1; 32]).public(), "the key stays");
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.wall += u64::try_from(time.as_micros()).unwrap();
        self.scribe.handle_timeout(self.now, self.wall());
    }

    fn write(&mut self, event: Event) {
        let at = self.wall();
        self.scribe.handle_record(Record { at, event }, self.now, at);
    }

    fn begin(&mut self, flow: u64) {
        self.write(start(flow));
    }

    fn end(&mut self, flow: u64) {
        let counts = Counts { tx_packets: 3, ..Counts::default() };
        self.write(Event::End(End { flow: Flow(flow), reason: EndReason::Closed, counts }));
    }

    /// Lets the collector answer one submission; tells whether there was one.
    fn collect(&mut self) -> bool {
        let Some(batches) = self.scribe.poll_submission(self.now) else { return false };
        let verdicts = batches.iter().map(|bytes| self.take(bytes)).collect();
        self.scribe.handle_answer(&Answer(verdicts), self.now);
        true
    }

    fn take(&mut self, bytes: &[u8]) -> Verdict {
        let Ok(batch) = Batch::parse(bytes) else { return Verdict::Refused("unreadable".into()) };
        match self.chain.accept(&batch) {
            Ok(Accepted::New(opened)) => self.records.extend(opened.records()),
            Ok(Accepted::Again) => {}
            Err(fault) => {
                self.faults.push(fault);
                match self.chain.resume(&batch) {
                    Ok(opened) => self.records.extend(opened.records()),
                    Err(fault) => return Verdict::Refused(fault.to_string()),
                }
            }
        }
        self.position += 1;
        Verdict::Stored(
            Receipt::of(&verifier(&self.collector), batch.header(), batch.hash(), self.position, Time::from_micros(5))
                .sign(&self.collector),
        )
    }

    fn collect_all(&mut self) {
        self.wait(Duration::from_secs(2));
        while self.collect() {}
    }

    fn flows(&self) -> Vec<u64> {
        let of = |record: &Record| if let Event::Start(start) = record.event { Some(start.flow.0) } else { None };
        self.records.iter().filter_map(of).collect()
    }

    fn missed(&self) -> u64 {
        let of = |record: &Record| if let Event::Missed { records } = record.event { Some(records) } else { None };
        self.records.iter().filter_map(of).sum()
    }
}

fn start(flow: u64) -> Event {
    Event::Start(Start {
        flow: Flow(flow),
        direction: Direction::Outbound,
        protocol: 6,
        local: "100.64.0.1:50000".parse().unwrap(),
        remote: "100.64.0.2:443".parse().unwrap(),
        peer: NodeKey::from_bytes([2; 32]),
        pass: Pass::Opened,
        path: Path::None,
    })
}

#[test]
fn records_are_sent_at_once_and_stored_once() {
    let mut rig = Rig::new();
    rig.begin(0);
    rig.begin(1);
    assert!(!rig.collect(), "gathered for a moment");
    assert_eq!(rig.scribe.poll_timeout(), Some(rig.now + GATHER));
    rig.wait(GATHER);
    assert!(rig.collect() && !rig.collect());
    rig.end(0);
    rig.wait(GATHER);
    assert!(rig.collect());
    assert_eq!((rig.flows(), rig.records.len(), rig.faults.len()), (vec![0, 1], 3, 0));
    assert_eq!(rig.scribe.poll_timeout().map(|next| next > rig.now), Some(true), "only a sync is left to do");
}

#[test]
fn the_chain_is_whole_over_restarts_whatever_the_collector_had_seen() {
    let mut rig = Rig::new();
    for round in 0..6 {
        rig.begin(round);
        rig.wait(GATHER);
        match round % 3 {
            // Stored, and the node knows.
            0 => assert!(rig.collect()),
            // Stored, and the node never hears of it.
            1 => {
                let batches = rig.scribe.poll_submission(rig.now).unwrap();
                batches.iter().for_each(|bytes| drop(rig.take(bytes)));
            }
            // Not sent.
            _ => {}
        }
        rig.restart();
    }
    rig.collect_all();
    assert_eq!((rig.flows(), &rig.faults), (vec![0, 1, 2, 3, 4, 5], &Vec::new()));
}

#[test]
fn a_clock_that_was_set_back_makes_no_earlier_epoch() {
    let mut rig = Rig::new();
    rig.begin(0);
    rig.collect_all();
    rig.wall -= 3600 * 1_000_000;
    rig.restart();
    rig.begin(0);
    rig.collect_all();
    assert_eq!((rig.flows(), rig.faults.len()), (vec![0, 0], 0));
}

#[test]
fn what_finds_no_room_is_counted_and_said_and_every_start_has_its_end() {
    let mut rig = Rig::with_limit(300_000);
    let count = 10_000;
    for flow in 0..count {
        rig.begin(flow);
    }
    for flow in 0..count {
        rig.end(flow);
    }
    rig.collect_all();
    // As the spool drains there is room again.
    for _ in 0..100 {
        rig.collect_all();
    }
    let written = rig.flows();
    assert!(written.len() > RECORDS && written.len() < usize::try_from(count).unwrap(), "{}", written.len());
    assert_eq!(rig.faults, []);
    assert_eq!(rig.missed() + written.len() as u64, count);
    assert_eq!((rig.chain.open_flows(), &rig.faults), (0, &Vec::new()), "all ends came");
    let on_disk = rig.files.list().unwrap().iter().map(|(_, length)| length).sum::<u64>();
    assert!(on_disk < 300_000 + (3 << 20), "{on_disk} bytes");
}

#[test]
fn a_full_disk_breaks_no_chain() {
    let mut rig = Rig::new();
    rig.begin(0);
    rig.collect_all();
    rig.files.set_room(100);
    rig.begin(1);
    rig.wait(Duration::from_secs(1));
    rig.begin(2);
    rig.wait(Duration::from_secs(1));
    assert!(!rig.collect(), "what is not on disk is not sent");
    rig.files.set_room(usize::MAX);
    rig.collect_all();
    assert_eq!((rig.flows(), &rig.faults), (vec![0, 1, 2], &Vec::new()));
    rig.restart();
    rig.begin(0);
    rig.collect_all();
    assert!(rig.faults.is_empty());
}

#[test]
fn a_collector_that_is_away_gets_all_of_it_when_it_is_back() {
    let mut rig = Rig::new();
    rig.begin(0);
    rig.wait(GATHER);
    assert!(rig.scribe.poll_submission(rig.now).is_some());
    rig.scribe.handle_failure(rig.now);
    assert!(rig.scribe.poll_submission(rig.now).is_none(), "not at once again");
    for flow in 1..3000 {
        rig.begin(flow);
        rig.wait(Duration::from_millis(10));
    }
    rig.wait(Duration::from_secs(60));
    while rig.collect() {}
    assert_eq!((rig.flows().len(), rig.missed(), rig.faults.len()), (3000, 0, 0));
    let names = rig.files.names();
    assert_eq!(names.iter().filter(|name| name.starts_with("spool-")).count(), 1, "{names:?}");
    // The first was sent twice and asked for once.
    assert!(names.iter().any(|name| name.starts_with("receipts-")));
}

#[test]
fn a_torn_end_is_cut_off_and_edits_are_for_the_collector_to_name() {
    let spool = "spool-00000000000000000000";
    let prepared = || {
        let mut rig = Rig::new();
        for flow in 0..3 {
            rig.begin(flow);
            rig.wait(GATHER);
        }
        rig
    };
    // A crash while the last was written; its records are gone, and nobody is accused.
    let mut rig = prepared();
    rig.files.edit(spool, |bytes| bytes.truncate(bytes.len() - 10));
    rig.restart();
    rig.begin(0);
    rig.collect_all();
    assert_eq!((rig.flows(), &rig.faults), (vec![0, 1, 0], &Vec::new()));
    // Somebody changes a byte of a record.
    let mut rig = prepared();
    rig.files.edit(spool, |bytes| *bytes.last_mut().unwrap() ^= 1);
    rig.restart();
    rig.collect_all();
    assert_eq!(rig.faults.first(), Some(&Fault::Batch(BatchError::Altered)));
    // Somebody takes a batch out.
    let mut rig = prepared();
    rig.files.edit(spool, |bytes| {
        let length = 4 + usize::try_from(u32::from_be_bytes(bytes[..4].try_into().unwrap())).unwrap();
        bytes.drain(length..2 * length);
    });
    rig.restart();
    rig.collect_all();
    assert_eq!(rig.faults, [Fault::Gap { first: 1, last: 1 }]);
    assert_eq!(rig.flows(), [0, 2], "it goes on behind the gap");
    // Somebody takes the last ones out, which the collector has.
    let mut rig = prepared();
    let before = rig.files.0.borrow().0[spool].clone();
    rig.begin(3);
    rig.collect_all();
    rig.files.edit(spool, |bytes| *bytes = before);
    rig.restart();
    rig.begin(0);
    rig.collect_all();
    assert_eq!(rig.faults, [Fault::Restart]);
}

#[test]
fn only_the_collectors_receipt_for_this_batch_counts() {
    let mut rig = Rig::new();
    rig.begin(0);
    rig.wait(GATHER);
    let batches = rig.scribe.poll_submission(rig.now).unwrap();
    let batch = Batch::parse(&batches[0]).unwrap();
    let of =
        |hash, who: &LogSecret| Receipt::of(&verifier(who), batch.header(), hash, 1, Time::from_micros(5)).sign(who);
    let other = of([7; 32], &rig.collector);
    let forged = of(batch.hash(), &LogSecret::from_seed([8; 32]));
    for wrong in [other, forged, vec![1, 2, 3]] {
        rig.scribe.handle_answer(&Answer(vec![Verdict::Stored(wrong)]), rig.now);
        rig.wait(Duration::from_secs(60));
        assert_eq!(rig.scribe.poll_submission(rig.now).unwrap(), batches, "it is sent again");
    }
    rig.scribe.handle_answer(&Answer(vec![]), rig.now);
    rig.wait(Duration::from_secs(60));
    assert!(rig.collect() && !rig.collect());
}

#[test]
fn conversations_from_before_the_log_are_not_in_it() {
    let mut rig = Rig::new();
    rig.write(Event::Update(Update { flow: Flow(7), counts: Counts::default(), path: None }));
    rig.end(8);
    rig.begin(9);
    rig.collect_all();
    assert_eq!((rig.records.len(), rig.faults.len()), (1, 0));
}

#[test]
fn many_batches_are_sent_in_turns_and_their_files_go() {
    let mut rig = Rig::new();
    for flow in 0..60_000 {
        rig.begin(flow);
        rig.end(flow);
    }
    rig.wait(Duration::from_secs(1));
    assert!(rig.files.names().iter().filter(|name| name.starts_with("spool-")).count() > 2);
    rig.restart();
    rig.collect_all();
    assert_eq!((rig.flows().len(), rig.faults.len()), (60_000, 0));
    assert_eq!(rig.files.names().iter().filter(|name| name.starts_with("spool-")).count(), 1);
}
