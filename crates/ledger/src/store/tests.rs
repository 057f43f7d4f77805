//! Crashes at every byte, full disks, hands that reach into the files.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::segment::SEGMENT;
use super::*;
use crate::batch::Writer;
use crate::merkle::{Frontier, empty_root, prove_consistency, prove_inclusion, verify_consistency, verify_inclusion};
use crate::testing::{Memory, end, secret, start, update};
use proptest::prelude::*;

/// Noon of a day.
fn day(number: u64) -> Time {
    Time::from_micros((20_000 + number) * DAY_MICROS + DAY_MICROS / 2)
}

/// Makes `count` batches of a node.
fn batches(count: u64) -> Vec<Batch> {
    let mut writer = Writer::new(secret(1), day(0), [0; 32]);
    (0..count)
        .map(|flow| writer.seal(&[start(flow, 0), update(flow, 1, 2), end(flow, 2, 3)], day(0)).unwrap())
        .collect()
}

/// Names the log.
fn log() -> Verifier {
    Verifier::new("logs.example.com/family", secret(9).public()).unwrap()
}

fn open(memory: &Memory) -> Result<Store<Memory>, StoreError> {
    Store::open(memory.clone(), &log())
}

/// Names what is wrong.
fn broken(store: &Store<Memory>) -> Vec<String> {
    store.view().verify(&[]).breaks.iter().map(ToString::to_string).collect()
}

fn all(store: &Store<Memory>) -> Vec<Batch> {
    let mut found = Vec::new();
    let mut position = store.first();
    while position < store.size() {
        let (first, _, batches) = store.read(position).unwrap();
        assert_eq!(first, position);
        position += batches.len() as u64;
        found.extend(batches);
    }
    found
}

/// Stores batches two by two, a pair each on its own day.
fn filled(days: u64) -> (Memory, Vec<Batch>) {
    let (memory, batches) = (Memory::default(), batches(2 * days));
    let mut store = open(&memory).unwrap();
    for (number, pair) in (0..).zip(batches.chunks(2)) {
        assert_eq!(store.append(pair, day(number)).unwrap(), 2 * number..2 * number + 2);
    }
    (memory, batches)
}

#[test]
fn what_is_stored_is_there_after_a_restart_in_segments_of_a_day() {
    let (memory, batches) = filled(3);
    let store = open(&memory).unwrap();
    assert_eq!((store.size(), store.first(), all(&store)), (6, 0, batches.clone()));
    assert_eq!(memory.segments(), 3);
    let mut tree = Frontier::new();
    batches.iter().for_each(|batch| tree.push(batch.hash(), |_, _, _| {}));
    assert_eq!(store.root(), tree.root());
    assert_eq!(broken(&store), Vec::<String>::new());
    let (first, stored, found) = store.read(3).unwrap();
    assert_eq!((first, stored, found.as_slice()), (2, day(1), &batches[2..4]));
    assert_eq!(store.read(6).unwrap().2, []);
}

#[test]
fn an_empty_store_is_the_empty_tree() {
    let memory = Memory::default();
    let mut store = open(&memory).unwrap();
    assert_eq!((store.size(), store.root()), (0, empty_root()));
    assert_eq!(store.append(&[], day(0)).unwrap(), 0..0);
    assert_eq!(memory.segments(), 0);
}

/// A crash can leave any beginning of what was written last, and lose what was not synced.
#[test]
fn after_a_crash_at_any_byte_what_was_acknowledged_is_there_once() {
    let batches = batches(6);
    let memory = Memory::default();
    let mut store = open(&memory).unwrap();
    // How much had been done when how many were acknowledged.
    let mut told = vec![(memory.done.borrow().len(), 0)];
    for (pair, number) in batches.chunks(2).zip([0, 0, 1]) {
        let range = store.append(pair, day(number)).unwrap();
        told.push((memory.done.borrow().len(), usize::try_from(range.end).unwrap()));
    }
    let steps = memory.done.borrow().len();
    for at in 0..steps {
        let bytes = memory.done.borrow()[at].bytes();
        for most in (0..=bytes).step_by(if bytes > 200 { 41 } else { 5 }) {
            let acknowledged = told.iter().filter(|(done, _)| *done <= at).map(|(_, size)| *size).max().unwrap_or(0);
            for is_derived_lost in [false, true] {
                let crashed = memory.crashed(at, most);
                if is_derived_lost {
                    let is_derived = |name: &String| name.starts_with("index") || name.starts_with("nodes");
                    crashed
                        .files
                        .borrow_mut()
                        .iter_mut()
                        .filter(|(name, _)| is_derived(name))
                        .for_each(|(_, file)| file.fill(0));
                }
                let view = View::open(crashed.clone(), &log()).unwrap_or_else(|error| panic!("{at}, {most}: {error}"));
                assert!(view.size() >= acknowledged as u64, "{at}, {most}: a reader misses some");
                let mut store = open(&crashed).unwrap_or_else(|error| panic!("{at}, {most}: {error}"));
                let found = all(&store);
                assert!(
                    found.len() >= acknowledged && found == batches[..found.len()],
                    "{at}, {most}: {}",
                    found.len()
                );
                // The node sends again what was not acknowledged.
                let rest = &batches[found.len()..];
                store.append(rest, day(1)).unwrap();
                drop(store);
                let store = open(&crashed).unwrap();
                assert_eq!(all(&store), batches, "{at}, {most}");
                assert_eq!(broken(&store), Vec::<String>::new(), "{at}, {most}");
            }
        }
    }
}

/// A crash can also leave a file as long as it should be, with nothing in it.
#[test]
fn room_that_was_never_written_is_cut_off() {
    let batches = batches(4);
    let memory = Memory::default();
    let mut store = open(&memory).unwrap();
    store.append(&batches[..2], day(0)).unwrap();
    let name = memory.segment(0);
    let before = memory.copy();
    store.append(&batches[2..], day(0)).unwrap();
    let mut torn = memory.files.borrow()[&name].clone();
    let acknowledged = before.files.borrow()[&name].len();
    torn[acknowledged + 20..].fill(0);
    before.edit(&name, |bytes| *bytes = torn);
    assert_eq!(all(&open(&before).unwrap()), batches[..2]);
}

/// Whatever is cut off the end: not one acknowledged batch goes without a word, and nothing is written.
#[test]
fn acknowledged_batches_cut_off_the_end_are_counted() {
    let (memory, _) = filled(2);
    let name = memory.segment(1);
    let whole = memory.files.borrow()[&name].len();
    let head = frame_begins(&memory, &name);
    for length in 0..whole {
        let cut = memory.copy();
        cut.edit(&name, |bytes| bytes.truncate(length));
        let before = cut.files.borrow().clone();
        let is_named = |error: StoreError| {
            let is_lost = matches!(error, StoreError::Lost { first: 2, count: 2 });
            let is_changed = matches!(&error, StoreError::Changed { file, offset: 0 } if *file == name);
            if length < head { is_changed } else { is_lost }
        };
        assert!(is_named(open(&cut).unwrap_err()), "at byte {length}");
        assert!(is_named(View::open(cut.clone(), &log()).unwrap_err()), "at byte {length}");
        assert_eq!(*cut.files.borrow(), before, "at byte {length}");
        let found = verify(&cut, &log(), &[]).breaks;
        assert!(found.iter().any(|broken| matches!(broken, Break::Store(StoreError::Lost { first: 2, count: 2 }))));
    }
    // The whole file; what was before it stands.
    memory.clone().remove(&name).unwrap();
    assert!(matches!(open(&memory), Err(StoreError::Lost { first: 2, count: 2 })));
}

/// Returns the length of a segment's head.
fn frame_begins(memory: &Memory, name: &str) -> usize {
    SegmentHead::decode(&memory.files.borrow()[name]).unwrap().1
}

/// By somebody who puts an old copy of the segments back, with the mark that is there now.
#[test]
fn an_older_copy_of_the_newest_segment_is_named() {
    let batches = batches(6);
    let memory = Memory::default();
    let mut store = open(&memory).unwrap();
    store.append(&batches[..2], day(0)).unwrap();
    let name = memory.segment(0);
    let old = memory.files.borrow()[&name].clone();
    store.append(&batches[2..3], day(0)).unwrap();
    store.append(&batches[3..5], day(0)).unwrap();
    memory.edit(&name, |bytes| *bytes = old);
    let error = open(&memory).unwrap_err();
    assert!(error.to_string().starts_with("3 acknowledged batches are missing"), "{error}");
}

/// The same number of batches, but others.
#[test]
fn a_newest_segment_made_anew_is_found_when_it_is_opened() {
    let (memory, batches) = filled(2);
    let other = Memory::default();
    let mut store = open(&other).unwrap();
    store.append(&batches[..2], day(0)).unwrap();
    store.append(&[batches[3].clone(), batches[2].clone()], day(1)).unwrap();
    for file in [SEGMENT, "index", "nodes"] {
        let name = memory.file(file, 1);
        let forged = other.files.borrow()[&name].clone();
        memory.edit(&name, |bytes| *bytes = forged);
        assert!(file != SEGMENT || matches!(open(&memory.copy()), Err(StoreError::Changed { .. })), "{file}");
    }
    assert!(matches!(open(&memory), Err(StoreError::Changed { file, .. }) if file == memory.segment(1)));
}

#[test]
fn a_mark_that_is_gone_or_anothers_is_named() {
    let (memory, _) = filled(1);
    let without = memory.copy();
    without.clone().remove("mark").unwrap();
    assert!(matches!(open(&without), Err(StoreError::Changed { file, .. }) if file == "mark"));
    let other = Verifier::new("logs.example.com/friends", secret(9).public()).unwrap();
    assert!(matches!(Store::open(memory, &other), Err(StoreError::OtherLog)));
}

#[test]
fn a_reader_writes_nothing_and_sees_what_was_acknowledged() {
    let batches = batches(4);
    let memory = Memory::default();
    let mut store = open(&memory).unwrap();
    store.append(&batches[..2], day(0)).unwrap();
    let (acknowledged, before) = (memory.done.borrow().len(), memory.copy());
    store.append(&batches[2..], day(1)).unwrap();
    for at in acknowledged..memory.done.borrow().len() {
        for most in [0, memory.done.borrow()[at].bytes() / 2, usize::MAX] {
            let writing = memory.crashed(at, most);
            let files = writing.files.borrow().clone();
            let view = View::open(writing.clone(), &log()).unwrap();
            let is_last = at + 1 == memory.done.borrow().len() && most == usize::MAX;
            assert_eq!(view.size(), if is_last { 4 } else { 2 }, "{at}, {most}");
            assert_eq!(*writing.files.borrow(), files, "{at}, {most}");
        }
    }
    // An empty folder, too.
    assert_eq!(View::open(Memory::default(), &log()).unwrap().size(), 0);
    assert_eq!(View::open(before, &log()).unwrap().read(1).unwrap().2, batches[..2]);
}

#[test]
fn two_do_not_write_to_one_folder() {
    let path = std::env::temp_dir().join(format!("warren-ledger-lock-{}", std::process::id()));
    let first = Folder::open(path.clone()).unwrap();
    let second = Folder::open(path.clone()).unwrap_err();
    let view = View::open(ReadFolder::open(path.clone()).unwrap(), &log());
    drop(first);
    let third = Folder::open(path.clone());
    std::fs::remove_dir_all(path).unwrap();
    assert_eq!(second.kind(), io::ErrorKind::ResourceBusy);
    assert!(view.is_ok() && third.is_ok());
}

/// Opening reads no more than what came since index and nodes were synced, however long the segment is.
#[test]
fn opening_reads_little() {
    let counted = Counting { memory: Memory::default(), read: Rc::default() };
    let mut store = Store::open(counted.clone(), &log()).unwrap();
    let batches = batches(1500);
    for batch in batches.chunks(1) {
        store.append(batch, day(0)).unwrap();
    }
    let total = store.bytes();
    *counted.read.borrow_mut() = 0;
    let view = View::open(counted.clone(), &log()).unwrap();
    let read = *counted.read.borrow();
    assert_eq!((view.size(), view.root()), (1500, store.root()));
    assert!(read < total / 3, "{read} of {total} bytes");
    for position in [0, 255, 256, 1279, 1280, 1499] {
        assert_eq!(view.read(position).unwrap().2, batches[usize::try_from(position).unwrap()..][..1]);
    }
}

/// Counts what is read.
#[derive(Debug, Clone)]
struct Counting {
    memory: Memory,
    read: Rc<RefCell<u64>>,
}

impl Source for Counting {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.memory.list()
    }

    fn read(&self, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let bytes = self.memory.read(name, offset, length)?;
        *self.read.borrow_mut() += bytes.len() as u64;
        Ok(bytes)
    }
}

impl Files for Counting {
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.memory.append(name, bytes)
    }

    fn overwrite(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.memory.overwrite(name, offset, bytes)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.memory.sync(name)
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        self.memory.truncate(name, length)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.memory.remove(name)
    }
}

/// Proofs come from the files, also when retention has removed the beginning, and when the files were lost.
#[test]
fn proofs_hold_across_segments_and_cuts() {
    let (memory, batches) = filled(5);
    let roots: Vec<Hash> = (0..=10)
        .map(|size| {
            let mut tree = Frontier::new();
            batches.iter().take(size).for_each(|batch| tree.push(batch.hash(), |_, _, _| {}));
            tree.root()
        })
        .collect();
    let check = |memory: &Memory, first: u64| {
        let view = View::open(memory.clone(), &log()).unwrap();
        let root = view.root();
        for position in first..10 {
            let proof = prove_inclusion(&view, position, 10).unwrap().unwrap();
            let leaf = batches[usize::try_from(position).unwrap()].hash();
            assert!(verify_inclusion(&leaf, position, 10, &proof, &root), "{position}");
        }
        for old in first..=10 {
            let proof = prove_consistency(&view, old, 10).unwrap().unwrap();
            assert!(verify_consistency((old, &roots[usize::try_from(old).unwrap()]), (10, &root), &proof), "{old}");
        }
    };
    check(&memory, 0);
    let mut store = open(&memory).unwrap();
    store.retire(&Retention { age: Some(Duration::from_secs(60 * 3600)), bytes: None }, day(4), &secret(9)).unwrap();
    assert_eq!(store.first(), 4);
    drop(store);
    check(&memory, 4);
    assert!(prove_inclusion(&View::open(memory.clone(), &log()).unwrap(), 1, 10).is_err(), "it is gone");
    let lost = memory.copy();
    lost.files.borrow_mut().retain(|name, _| !name.starts_with("nodes") && !name.starts_with("index"));
    drop(open(&lost).unwrap());
    check(&lost, 4);
    assert_eq!(
        *lost.files.borrow().get(&lost.file("nodes", 0)).unwrap(),
        memory.files.borrow()[&memory.file("nodes", 0)]
    );
}

#[test]
fn on_a_full_disk_what_was_acknowledged_stays_and_the_rest_can_follow() {
    let batches = batches(4);
    // The mark has its room from the beginning on.
    let whole: usize =
        filled(2).0.files.borrow().iter().filter(|(name, _)| *name != "mark").map(|(_, file)| file.len()).sum();
    for room in (0..=whole).step_by(3) {
        let memory = Memory::default();
        let mut store = open(&memory).unwrap();
        *memory.room.borrow_mut() = Some(room);
        let mut stored = 0;
        for (number, pair) in (0..).zip(batches.chunks(2)) {
            match store.append(pair, day(number)) {
                Ok(_) => stored += 2,
                Err(StoreError::Io { source, .. }) => assert_eq!(source.kind(), io::ErrorKind::StorageFull),
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(all(&open(&memory.copy()).unwrap()), batches[..stored], "room for {room} bytes");
        // Somebody makes room.
        *memory.room.borrow_mut() = None;
        store.append(&batches[stored..], day(1)).unwrap();
        assert_eq!(all(&open(&memory.copy()).unwrap()), batches);
    }
}

#[test]
fn a_changed_byte_is_found() {
    let (memory, _) = filled(2);
    for number in 0..2 {
        let name = memory.segment(number);
        let length = memory.files.borrow()[&name].len();
        for place in 0..length {
            let changed = memory.copy();
            changed.edit(&name, |bytes| bytes[place] ^= 1);
            assert_ne!(verify(&changed, &log(), &[]).breaks.len(), 0, "byte {place} of {name}");
            if let Ok(store) = open(&changed) {
                assert_eq!(store.size(), 4, "byte {place} of {name}");
            }
        }
    }
}

/// By somebody who knows the format, and makes the rest fit as well as it can be made.
#[test]
fn a_batch_taken_out_of_the_middle_is_found() {
    let (memory, batches) = filled(3);
    let name = memory.segment(1);
    let rewritten = Memory::default();
    let mut store = open(&rewritten).unwrap();
    store.append(&batches[..2], day(0)).unwrap();
    store.append(&batches[2..3], day(1)).unwrap();
    let forged = rewritten.files.borrow()[&name].clone();
    memory.edit(&name, |bytes| *bytes = forged);
    assert!(matches!(open(&memory), Err(StoreError::Missing(range)) if range == (3..4)));
}

/// The same with batches exchanged, so that all numbers fit.
#[test]
fn a_segment_made_anew_is_found() {
    let (memory, batches) = filled(3);
    let name = memory.segment(1);
    let rewritten = Memory::default();
    let mut store = open(&rewritten).unwrap();
    store.append(&batches[..2], day(0)).unwrap();
    store.append(&[batches[3].clone(), batches[2].clone()], day(1)).unwrap();
    let forged = rewritten.files.borrow()[&name].clone();
    memory.edit(&name, |bytes| *bytes = forged);
    let store = open(&memory).unwrap();
    let found = store.view().verify(&[]).breaks;
    assert!(found.iter().any(|broken| matches!(broken, Break::Tree { position: 4 })), "{found:?}");
}

fn named(memory: &Memory, known: &[Checkpoint]) -> Vec<String> {
    verify(memory, &log(), known).breaks.iter().map(ToString::to_string).collect()
}

/// With the collector's disk and key in hand, against somebody who kept a checkpoint.
#[test]
fn what_a_kept_checkpoint_contradicts_is_named() {
    let (memory, batches) = filled(3);
    let known = View::open(memory.clone(), &log()).unwrap().checkpoint();
    assert_eq!(named(&memory, std::slice::from_ref(&known)), Vec::<String>::new());
    // The log made anew without its third batch, and longer.
    let rewritten = Memory::default();
    let mut store = open(&rewritten).unwrap();
    let others = self::batches(9);
    for batch in others.iter().filter(|batch| **batch != batches[2]) {
        store.append(std::slice::from_ref(batch), day(3)).unwrap();
    }
    drop(store);
    let found = verify(&rewritten, &log(), std::slice::from_ref(&known)).breaks;
    assert!(found.iter().any(|one| matches!(one, Break::Rewritten { size: 6 })), "{found:?}");
    // The hole in the node's chain has a name, too.
    assert!(found.iter().any(|one| matches!(one, Break::Chain { position: 2, .. })), "{found:?}");
    // An old copy of everything.
    let (backup, _) = filled(2);
    let found = verify(&backup, &log(), &[known]).breaks;
    assert!(matches!(found[..], [Break::SetBack { size: 4, known: 6 }]), "{found:?}");
}

/// What is behind a break is looked at, too.
#[test]
fn every_break_is_named_with_its_place() {
    let batches = batches(12);
    let memory = Memory::default();
    let mut store = open(&memory).unwrap();
    for (number, pair) in (0..).zip(batches.chunks(2)) {
        store.append(pair, day(number / 3)).unwrap();
    }
    let [first, second] = store.view().segments() else { panic!("two days") };
    let offset = |segment: &Segment, frame| segment.entries(store.view().files(), frame, 1).unwrap()[0].offset;
    let (one, two) = (offset(first, 1), offset(second, 2));
    drop(store);
    let flip = |name: &str, place: u64| memory.edit(name, |bytes| bytes[usize::try_from(place).unwrap()] ^= 1);
    flip(&memory.segment(0), one + 100);
    flip(&memory.segment(1), two + 100);
    flip(&memory.file("index", 1), 10);
    let found = verify(&memory, &log(), &[]);
    let changed = |broken: &Break, name: &str, at: u64| matches!(broken, Break::Store(StoreError::Changed { file, offset }) if file == name && *offset == at);
    let is_there = |is: &dyn Fn(&Break) -> bool| assert!(found.breaks.iter().any(is), "{:?}", found.breaks);
    is_there(&|broken| changed(broken, &memory.segment(0), one));
    is_there(&|broken| changed(broken, &memory.segment(1), two));
    is_there(&|broken| matches!(broken, Break::Store(StoreError::Missing(range)) if *range == (2..4)));
    is_there(&|broken| matches!(broken, Break::Store(StoreError::Lost { first: 10, count: 2 })));
    is_there(&|broken| matches!(broken, Break::Chain { position: 4, .. }));
    assert_eq!(found.batches, 8, "the rest is as it was");
}

/// Searches believe it.
#[test]
fn an_index_that_hides_a_frame_is_named() {
    let (memory, _) = filled(2);
    for number in 0..2 {
        for kind in ["index", "nodes"] {
            let changed = memory.copy();
            let name = changed.file(kind, number);
            changed.edit(&name, |bytes| bytes[33] ^= 1);
            assert!(
                matches!(verify(&changed, &log(), &[]).breaks[..], [Break::Derived { ref file, .. }] if *file == name)
            );
        }
    }
}

#[test]
fn a_batch_that_was_stored_twice_is_named() {
    let batches = batches(2);
    let memory = Memory::default();
    let mut store = open(&memory).unwrap();
    store.append(&batches, day(0)).unwrap();
    store.append(&batches[1..], day(0)).unwrap();
    assert!(matches!(verify(&memory, &log(), &[]).breaks[..], [Break::Twice { position: 2 }]));
}

#[test]
fn retention_removes_what_is_old_and_the_rest_still_verifies() {
    let (memory, batches) = filled(4);
    let mut store = open(&memory).unwrap();
    let root = store.root();
    let retention = Retention { age: Some(Duration::from_secs(2 * 24 * 3600)), bytes: None };
    let cuts = store.retire(&retention, day(3), &secret(9)).unwrap();
    assert_eq!(
        cuts.iter().map(|cut| (cut.from, cut.to, cut.is_early())).collect::<Vec<_>>(),
        [(0, 2, false), (2, 4, false)]
    );
    let store = open(&memory).unwrap();
    assert_eq!((store.first(), store.size(), store.root(), all(&store)), (4, 8, root, batches[4..].to_vec()));
    assert_eq!(broken(&store), Vec::<String>::new());
    assert_eq!(store.cuts(), cuts);
    assert!(matches!(store.read(1), Err(StoreError::Missing(range)) if range == (1..4)));
    assert_eq!(memory.segments(), 2, "old data is off the disk");
}

/// The mark is set back, too: to before what retention removed.
#[test]
fn a_store_without_any_segment_behind_a_cut_is_lost() {
    let (memory, _) = filled(3);
    let mark = memory.files.borrow()["mark"].clone();
    let mut store = open(&memory).unwrap();
    store.append(&batches(1), day(3)).unwrap();
    store.retire(&Retention { age: None, bytes: Some(0) }, day(3), &secret(9)).unwrap();
    drop(store);
    memory.edit("mark", |bytes| *bytes = mark);
    let name = memory.segment(0);
    memory.clone().remove(&name).unwrap();
    assert!(matches!(open(&memory), Err(StoreError::Lost { first: 6, count: 1 })));
}

#[test]
fn retention_by_size_keeps_the_newest() {
    let (memory, _) = filled(4);
    let mut store = open(&memory).unwrap();
    let most = store.bytes() / 2;
    let cuts = store.retire(&Retention { age: None, bytes: Some(most) }, day(3), &secret(9)).unwrap();
    assert!(!cuts.is_empty() && store.bytes() <= most);
    store.retire(&Retention { age: None, bytes: Some(0) }, day(3), &secret(9)).unwrap();
    assert_eq!((store.first(), store.size()), (6, 8), "the newest stays");
}

#[test]
fn a_crash_within_retention_is_finished() {
    let (memory, batches) = filled(3);
    let mut store = open(&memory).unwrap();
    let before = memory.copy();
    store.retire(&Retention { age: Some(Duration::from_secs(24 * 3600)), bytes: None }, day(1), &secret(9)).unwrap();
    let entry = memory.files.borrow()[CUTS].clone();
    for length in 0..=entry.len() {
        let mut crashed = before.copy();
        crashed.append(CUTS, &entry[..length]).unwrap();
        let store = open(&crashed).unwrap();
        let first = if length == entry.len() { 2 } else { 0 };
        assert_eq!((store.first(), all(&store)), (first, batches[usize::try_from(first).unwrap()..].to_vec()));
        assert_eq!(open(&crashed).unwrap().first(), first);
    }
}

#[test]
fn a_segment_removed_by_hand_is_named() {
    for number in 0..2 {
        let (memory, _) = filled(3);
        let name = memory.segment(number);
        memory.clone().remove(&name).unwrap();
        let first = 2 * number as u64;
        assert!(matches!(open(&memory), Err(StoreError::Missing(range)) if range == (first..first + 2)));
    }
}

#[test]
fn a_deletion_earlier_than_its_rule_says_is_named() {
    let (memory, _) = filled(3);
    let mut store = open(&memory).unwrap();
    let mut cut =
        store.retire(&Retention { age: Some(Duration::from_secs(3600)), bytes: None }, day(1), &secret(9)).unwrap()[0];
    // Somebody says afterwards that the rule was another.
    cut.rule = Rule::Age(Duration::from_secs(30 * 24 * 3600));
    let entry = cut.sign(&log(), &secret(9));
    memory.edit(CUTS, |bytes| *bytes = entry);
    drop(store);
    let found = open(&memory).unwrap().view().verify(&[]).breaks;
    assert!(matches!(found[..], [Break::Early(found)] if found == cut), "{found:?}");
}

/// By somebody with the disk, and without the collector's key: the same entry, signed with another, or of another log.
#[test]
fn a_deletion_that_the_collector_did_not_sign_is_named() {
    let (memory, _) = filled(3);
    let untouched = memory.copy();
    let retention = Retention { age: Some(Duration::from_secs(3600)), bytes: None };
    let mut store = open(&memory).unwrap();
    let cut = store.retire(&retention, day(1), &secret(9)).unwrap()[0];
    assert!(matches!(store.retire(&retention, day(9), &secret(8)), Err(StoreError::OtherLog)));
    let friends = Verifier::new("logs.example.com/friends", secret(9).public()).unwrap();
    for (verifier, key) in [(log(), 8), (friends, 9)] {
        let forged = untouched.copy();
        let name = forged.segment(0);
        forged.clone().remove(&name).unwrap();
        forged.clone().append(CUTS, &cut.sign(&verifier, &secret(key))).unwrap();
        assert!(matches!(open(&forged), Err(StoreError::Missing(range)) if range == (0..2)));
        let found = verify(&forged, &log(), &[]).breaks;
        assert!(matches!(found[0], Break::Store(StoreError::Missing(ref range)) if *range == (0..2)), "{found:?}");
    }
}

#[test]
fn a_clock_that_goes_back_begins_no_new_segment() {
    let batches = batches(3);
    let memory = Memory::default();
    let mut store = open(&memory).unwrap();
    for (batch, number) in batches.chunks(1).zip([5, 4, 5]) {
        store.append(batch, day(number)).unwrap();
    }
    assert_eq!(memory.segments(), 1);
    assert_eq!(all(&open(&memory).unwrap()), batches);
}

fn broken_on_disk(path: &std::path::Path) -> usize {
    verify(&ReadFolder::open(path.to_owned()).unwrap(), &log(), &[]).breaks.len()
}

/// The same on a real disk.
#[test]
fn a_folder_keeps_what_it_is_given() {
    let path = std::env::temp_dir().join(format!("warren-ledger-store-{}", std::process::id()));
    let batches = batches(4);
    let mut store = Store::open(Folder::open(path.clone()).unwrap(), &log()).unwrap();
    store.append(&batches[..2], day(0)).unwrap();
    store.append(&batches[2..], day(1)).unwrap();
    let retention = Retention { age: Some(Duration::from_secs(3600)), bytes: None };
    store.retire(&retention, day(1), &secret(9)).unwrap();
    drop(store);
    let store = Store::open(Folder::open(path.clone()).unwrap(), &log()).unwrap();
    let (first, _, found) = store.read(2).unwrap();
    assert_eq!(broken_on_disk(&path), 0);
    std::fs::remove_dir_all(path).unwrap();
    assert_eq!((store.first(), first, found.as_slice()), (2, 2, &batches[2..]));
}

proptest! {
    /// Any bytes in the place of any file: an error or a store, never a panic, and no batch that was not signed.
    #[test]
    fn invented_files_are_no_files(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        place in 0_usize..400,
        number in 0_usize..8,
        whole in any::<bool>(),
    ) {
        let (memory, batches) = filled(2);
        open(&memory).unwrap().retire(&Retention { age: None, bytes: Some(0) }, day(9), &secret(9)).unwrap();
        let memory = if whole { filled(2).0 } else { memory };
        let name = memory.files.borrow().keys().cycle().nth(number).unwrap().clone();
        memory.edit(&name, |file| {
            let place = place.min(file.len());
            file.splice(place.., bytes);
        });
        if let Ok(view) = View::open(memory.clone(), &log()) {
            let _ = view.query(crate::query::Query::default()).count();
            let _ = prove_consistency(&view, 1, view.size());
        }
        let _ = verify(&memory, &log(), &[]);
        if let Ok(store) = open(&memory) {
            let found = (store.first()..store.size()).filter_map(|position| store.read(position).ok());
            for (first, _, read) in found {
                prop_assert_eq!(&read[..], &batches[usize::try_from(first).unwrap()..][..read.len()]);
            }
        }
    }
}
