//! Crashes at every byte, full disks, hands that reach into the files.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::batch::Writer;
use crate::merkle::empty_root;
use crate::testing::{end, secret, start, update};
use proptest::prelude::*;

/// Files in memory, which outlive the store, on a disk of limited room.
#[derive(Debug, Clone, Default)]
struct Memory {
    files: Rc<RefCell<BTreeMap<String, Vec<u8>>>>,
    /// Bytes that can still be written.
    room: Rc<RefCell<Option<usize>>>,
}

impl Files for Memory {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        Ok(self.files.borrow().iter().map(|(name, bytes)| (name.clone(), bytes.len() as u64)).collect())
    }

    fn read(&self, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let files = self.files.borrow();
        let bytes = files.get(name).ok_or(io::ErrorKind::NotFound)?;
        let start = usize::try_from(offset).unwrap().min(bytes.len());
        Ok(bytes[start..(start + length).min(bytes.len())].to_vec())
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut files = self.files.borrow_mut();
        let file = files.entry(name.to_owned()).or_default();
        let mut room = self.room.borrow_mut();
        let fits = room.map_or(bytes.len(), |room| room.min(bytes.len()));
        file.extend(&bytes[..fits]);
        *room = room.map(|room| room - fits);
        if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        let mut files = self.files.borrow_mut();
        let file = files.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        let gone = file.len() - usize::try_from(length).unwrap();
        file.truncate(usize::try_from(length).unwrap());
        let mut room = self.room.borrow_mut();
        *room = room.map(|room| room + gone);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.files.borrow_mut().remove(name).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }
}

impl Memory {
    /// Copies the files, as a disk is after a crash or from a backup.
    fn copy(&self) -> Self {
        Self { files: Rc::new(RefCell::new(self.files.borrow().clone())), room: Rc::default() }
    }

    fn segment(&self, number: usize) -> String {
        self.files.borrow().keys().filter(|name| name.starts_with(SEGMENT)).nth(number).unwrap().clone()
    }

    fn edit(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        edit(self.files.borrow_mut().get_mut(name).unwrap());
    }
}

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
    let mut store = Store::open(memory.clone()).unwrap();
    for (number, pair) in (0..).zip(batches.chunks(2)) {
        assert_eq!(store.append(pair, day(number)).unwrap(), 2 * number..2 * number + 2);
    }
    (memory, batches)
}

#[test]
fn what_is_stored_is_there_after_a_restart_in_segments_of_a_day() {
    let (memory, batches) = filled(3);
    let store = Store::open(memory.clone()).unwrap();
    assert_eq!((store.size(), store.first(), all(&store)), (6, 0, batches.clone()));
    assert_eq!(memory.files.borrow().len(), 3);
    let mut tree = Frontier::new();
    batches.iter().for_each(|batch| tree.push(batch.hash(), |_, _, _| {}));
    assert_eq!(store.root(), tree.root());
    assert_eq!(store.verify().unwrap(), []);
    let (first, stored, found) = store.read(3).unwrap();
    assert_eq!((first, stored, found.as_slice()), (2, day(1), &batches[2..4]));
    assert_eq!(store.read(6).unwrap().2, []);
}

#[test]
fn an_empty_store_is_the_empty_tree() {
    let memory = Memory::default();
    let mut store = Store::open(memory.clone()).unwrap();
    assert_eq!((store.size(), store.root()), (0, empty_root()));
    assert_eq!(store.append(&[], day(0)).unwrap(), 0..0);
    assert!(memory.files.borrow().is_empty());
}

/// A crash can leave any beginning of what was written last.
#[test]
fn after_a_crash_at_any_byte_what_was_acknowledged_is_there_once() {
    let batches = batches(4);
    let memory = Memory::default();
    let mut store = Store::open(memory.clone()).unwrap();
    store.append(&batches[..2], day(0)).unwrap();
    let name = memory.segment(0);
    let acknowledged = memory.files.borrow()[&name].len();
    store.append(&batches[2..], day(0)).unwrap();
    let whole = memory.files.borrow()[&name].len();
    for length in 0..=whole {
        let crashed = memory.copy();
        crashed.edit(&name, |bytes| bytes.truncate(length));
        let mut store = match Store::open(crashed.clone()) {
            Ok(store) => store,
            Err(error) => panic!("at byte {length}: {error}"),
        };
        let expected = if length == whole {
            4
        } else if length >= acknowledged {
            2
        } else {
            0
        };
        assert_eq!(all(&store), batches[..expected], "at byte {length}");
        // The node sends again what was not acknowledged.
        store.append(&batches[expected..], day(0)).unwrap();
        let store = Store::open(crashed).unwrap();
        assert_eq!(all(&store), batches, "at byte {length}");
        assert_eq!(store.verify().unwrap(), []);
    }
}

/// A crash can also leave a file as long as it should be, with nothing in it.
#[test]
fn room_that_was_never_written_is_cut_off() {
    let batches = batches(4);
    let memory = Memory::default();
    let mut store = Store::open(memory.clone()).unwrap();
    store.append(&batches[..2], day(0)).unwrap();
    let name = memory.segment(0);
    let acknowledged = memory.files.borrow()[&name].len();
    store.append(&batches[2..], day(0)).unwrap();
    memory.edit(&name, |bytes| bytes[acknowledged + 20..].fill(0));
    assert_eq!(all(&Store::open(memory).unwrap()), batches[..2]);
}

/// A new day's file, too.
#[test]
fn a_crash_at_the_beginning_of_a_segment_loses_nothing() {
    let (memory, batches) = filled(2);
    let name = memory.segment(1);
    let whole = memory.files.borrow()[&name].len();
    for length in 0..whole {
        let crashed = memory.copy();
        crashed.edit(&name, |bytes| bytes.truncate(length));
        let mut store = Store::open(crashed.clone()).unwrap();
        assert_eq!(all(&store), batches[..2], "at byte {length}");
        store.append(&batches[2..], day(1)).unwrap();
        assert_eq!(all(&Store::open(crashed).unwrap()), batches);
    }
}

#[test]
fn on_a_full_disk_what_was_acknowledged_stays_and_the_rest_can_follow() {
    let batches = batches(4);
    let whole: usize = filled(2).0.files.borrow().values().map(Vec::len).sum();
    for room in 0..=whole {
        let memory = Memory { room: Rc::new(RefCell::new(Some(room))), ..Memory::default() };
        let mut store = Store::open(memory.clone()).unwrap();
        let mut stored = 0;
        for (number, pair) in (0..).zip(batches.chunks(2)) {
            match store.append(pair, day(number)) {
                Ok(_) => stored += 2,
                Err(StoreError::Io { source, .. }) => assert_eq!(source.kind(), io::ErrorKind::StorageFull),
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(all(&Store::open(memory.copy()).unwrap()), batches[..stored], "room for {room} bytes");
        // Somebody makes room.
        *memory.room.borrow_mut() = None;
        store.append(&batches[stored..], day(1)).unwrap();
        assert_eq!(all(&Store::open(memory.copy()).unwrap()), batches);
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
            let found = Store::open(changed).and_then(|store| {
                // In the last frame it may look like a crash: then it is gone, which a checkpoint shows.
                if store.size() < 4 { Err(StoreError::Missing(store.size()..4)) } else { store.verify().map(drop) }
            });
            assert!(found.is_err(), "byte {place} of {name}");
        }
    }
}

/// By somebody who knows the format, and makes the rest fit as well as it can be made.
#[test]
fn a_batch_taken_out_of_the_middle_is_found() {
    let (memory, batches) = filled(3);
    let name = memory.segment(1);
    let rewritten = Memory::default();
    let mut store = Store::open(rewritten.clone()).unwrap();
    store.append(&batches[..2], day(0)).unwrap();
    store.append(&batches[2..3], day(1)).unwrap();
    let forged = rewritten.files.borrow()[&name].clone();
    memory.edit(&name, |bytes| *bytes = forged);
    assert!(matches!(Store::open(memory), Err(StoreError::Missing(range)) if range == (3..4)));
}

/// The same with batches exchanged, so that all numbers fit.
#[test]
fn a_segment_made_anew_is_found() {
    let (memory, batches) = filled(3);
    let name = memory.segment(1);
    let rewritten = Memory::default();
    let mut store = Store::open(rewritten.clone()).unwrap();
    store.append(&batches[..2], day(0)).unwrap();
    store.append(&[batches[3].clone(), batches[2].clone()], day(1)).unwrap();
    let forged = rewritten.files.borrow()[&name].clone();
    memory.edit(&name, |bytes| *bytes = forged);
    let store = Store::open(memory.clone()).unwrap();
    let found = store.verify().unwrap_err();
    assert!(matches!(found, StoreError::Changed { file, .. } if file == memory.segment(2)));
}

#[test]
fn retention_removes_what_is_old_and_the_rest_still_verifies() {
    let (memory, batches) = filled(4);
    let mut store = Store::open(memory.clone()).unwrap();
    let root = store.root();
    let retention = Retention { age: Some(Duration::from_secs(2 * 24 * 3600)), bytes: None };
    let cuts = store.retire(&retention, day(3)).unwrap();
    assert_eq!(
        cuts.iter().map(|cut| (cut.from, cut.to, cut.is_early())).collect::<Vec<_>>(),
        [(0, 2, false), (2, 4, false)]
    );
    let store = Store::open(memory.clone()).unwrap();
    assert_eq!((store.first(), store.size(), store.root(), all(&store)), (4, 8, root, batches[4..].to_vec()));
    assert_eq!(store.verify().unwrap(), []);
    assert_eq!(store.cuts(), cuts);
    assert!(matches!(store.read(1), Err(StoreError::Missing(range)) if range == (1..4)));
    assert_eq!(memory.files.borrow().len(), 3, "old data is off the disk");
}

#[test]
fn retention_by_size_keeps_the_newest() {
    let (memory, _) = filled(4);
    let mut store = Store::open(memory).unwrap();
    let most = store.bytes() / 2;
    let cuts = store.retire(&Retention { age: None, bytes: Some(most) }, day(3)).unwrap();
    assert!(!cuts.is_empty() && store.bytes() <= most);
    store.retire(&Retention { age: None, bytes: Some(0) }, day(3)).unwrap();
    assert_eq!((store.first(), store.size()), (6, 8), "the newest stays");
}

#[test]
fn a_crash_within_retention_is_finished() {
    let (memory, batches) = filled(3);
    let mut store = Store::open(memory.clone()).unwrap();
    let before = memory.copy();
    store.retire(&Retention { age: Some(Duration::from_secs(24 * 3600)), bytes: None }, day(1)).unwrap();
    let entry = memory.files.borrow()[CUTS].clone();
    for length in 0..=entry.len() {
        let mut crashed = before.copy();
        crashed.append(CUTS, &entry[..length]).unwrap();
        let store = Store::open(crashed.clone()).unwrap();
        let first = if length == entry.len() { 2 } else { 0 };
        assert_eq!((store.first(), all(&store)), (first, batches[usize::try_from(first).unwrap()..].to_vec()));
        assert_eq!(Store::open(crashed).unwrap().first(), first);
    }
}

#[test]
fn a_segment_removed_by_hand_is_named() {
    for number in 0..2 {
        let (memory, _) = filled(3);
        let name = memory.segment(number);
        memory.clone().remove(&name).unwrap();
        let first = 2 * number as u64;
        assert!(matches!(Store::open(memory), Err(StoreError::Missing(range)) if range == (first..first + 2)));
    }
}

#[test]
fn a_deletion_earlier_than_its_rule_says_is_named() {
    let (memory, _) = filled(3);
    let mut store = Store::open(memory.clone()).unwrap();
    let mut cut = store.retire(&Retention { age: Some(Duration::from_secs(3600)), bytes: None }, day(1)).unwrap()[0];
    // Somebody says afterwards that the rule was another.
    cut.rule = Rule::Age(Duration::from_secs(30 * 24 * 3600));
    memory.edit(CUTS, |bytes| *bytes = cut.encode());
    assert_eq!(Store::open(memory).unwrap().verify().unwrap(), [cut]);
}

#[test]
fn a_clock_that_goes_back_begins_no_new_segment() {
    let batches = batches(3);
    let memory = Memory::default();
    let mut store = Store::open(memory.clone()).unwrap();
    for (batch, number) in batches.chunks(1).zip([5, 4, 5]) {
        store.append(batch, day(number)).unwrap();
    }
    assert_eq!(memory.files.borrow().len(), 1);
    assert_eq!(all(&Store::open(memory).unwrap()), batches);
}

/// The same on a real disk.
#[test]
fn a_folder_keeps_what_it_is_given() {
    let path = std::env::temp_dir().join(format!("warren-ledger-store-{}", std::process::id()));
    let batches = batches(4);
    let mut store = Store::open(Folder::open(path.clone()).unwrap()).unwrap();
    store.append(&batches[..2], day(0)).unwrap();
    store.append(&batches[2..], day(1)).unwrap();
    let retention = Retention { age: Some(Duration::from_secs(3600)), bytes: None };
    store.retire(&retention, day(1)).unwrap();
    let store = Store::open(Folder::open(path.clone()).unwrap()).unwrap();
    let (first, _, found) = store.read(2).unwrap();
    std::fs::remove_dir_all(path).unwrap();
    assert_eq!((store.first(), first, found.as_slice()), (2, 2, &batches[2..]));
}

proptest! {
    /// Any bytes in the place of a segment: an error or a store, never a panic, and no batch that was not signed.
    #[test]
    fn invented_segments_are_no_segments(bytes in prop::collection::vec(any::<u8>(), 0..300), place in 0_usize..400) {
        let (memory, _) = filled(2);
        let name = memory.segment(1);
        memory.edit(&name, |file| {
            let place = place.min(file.len());
            file.splice(place.., bytes);
        });
        if let Ok(store) = Store::open(memory) {
            let _ = store.verify();
        }
    }
}
