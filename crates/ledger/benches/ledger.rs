//! Prints what a collector's store of many records costs: to fill, on disk, to open, to ask, to prove and to verify.
//!
//! `cargo bench -p warren-ledger --bench ledger -- --records 10000000`; as a test it only checks that it runs. It makes days
//! of 1,000 nodes: conversations with their ends, and denied attempts. Files lie in the folder for temporary ones.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "a program for developers")]
#![expect(clippy::disallowed_methods, reason = "a stopwatch")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_ledger::checkpoint::Verifier;
use warren_ledger::merkle::{prove_consistency, prove_inclusion};
use warren_ledger::query::{Denied, Kinds, Party, Query, Talkers};
use warren_ledger::store::{Folder, ReadFolder, Store, View};
use warren_ledger::{
    Batch, Counts, Direction, DropReason, Drops, End, EndReason, Event, Flow, LogSecret, Pass, Path, Record, Start,
    Target, Time, Writer,
};
use warren_wire::key::NodeKey;

const NODES: usize = 1_000;
/// Conversations of a batch; each is two records, and one in ten has a denied attempt beside it.
const CONVERSATIONS: u64 = 25;
/// Batches that are stored together, as they come in of many nodes.
const TOGETHER: usize = 64;
/// Days over which everything is spread.
const DAYS: u64 = 10;
const DAY: u64 = 24 * 3600 * 1_000_000;
const BEGIN: u64 = 20_700 * DAY;

struct Node {
    writer: Writer,
    flow: u64,
}

fn secret(number: usize) -> LogSecret {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    LogSecret::from_seed(seed)
}

fn key(number: usize) -> NodeKey {
    NodeKey::from_bytes(*secret(number).public().as_bytes())
}

fn address(node: usize, port: u16) -> SocketAddr {
    let [low, high, ..] = node.to_le_bytes();
    ([100, 64, high, low], port).into()
}

/// A generator that is good enough to look like traffic. Source: Marsaglia, "Xorshift RNGs".
fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    usize::try_from(*state >> 33).unwrap()
}

fn batch(from: usize, node: &mut Node, keys: &[NodeKey], random: &mut u64, now: u64) -> Batch {
    let mut records = Vec::new();
    let at = |ago: u64| Time::from_micros(now - ago);
    for number in (0..CONVERSATIONS).rev() {
        let to = next(random) % NODES;
        let port = [443, 443, 443, 22, 53, 5432][next(random) % 6];
        let ago = number * 20_000 + 10_000;
        let start = Start {
            flow: Flow(node.flow),
            direction: Direction::Outbound,
            protocol: if port == 53 { 17 } else { 6 },
            local: address(from, u16::try_from(32_768 + next(random) % 28_000).unwrap()),
            remote: address(to, port),
            peer: keys[to],
            pass: Pass::Opened,
            path: Path::Direct(([203, 0, 113, 7], 41_641).into()),
        };
        node.flow += 1;
        records.push(Record { at: at(ago), event: Event::Start(start) });
        let packets = next(random) as u64 % 1000;
        let counts =
            Counts { tx_packets: packets, tx_bytes: packets * 80, rx_packets: packets * 2, rx_bytes: packets * 2_400 };
        let end = End { flow: start.flow, reason: EndReason::Closed, counts };
        records.push(Record { at: at(ago - 5_000), event: Event::End(end) });
        if number.is_multiple_of(10) {
            let target =
                Target { protocol: 6, source: address(to, 0).ip(), destination: address(from, 0).ip(), port: 23 };
            let drops = Drops {
                reason: DropReason::NoRule,
                direction: Direction::Inbound,
                peer: Some(keys[to]),
                target: Some(target),
                packets: 3,
                bytes: 180,
                span: Duration::ZERO,
            };
            records.push(Record { at: at(ago - 5_000), event: Event::Drops(drops) });
        }
    }
    node.writer.seal(&records, Time::from_micros(now)).unwrap()
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> (T, f64) {
    let begun = Instant::now();
    let result = work();
    let seconds = begun.elapsed().as_secs_f64();
    println!("  {what:58} {seconds:8.3} s");
    (result, seconds)
}

/// Stores batches one by one, as they come in of few nodes: each is on disk before the next.
fn alone(path: &std::path::Path, log: &Verifier, nodes: &mut [Node], keys: &[NodeKey], random: &mut u64) {
    let mut store = Store::open(Folder::open(path.to_owned()).unwrap(), log).unwrap();
    let now = BEGIN + DAYS * DAY + DAY / 2;
    let mut seconds: Vec<f64> = (0..NODES.min(500))
        .map(|number| {
            let batch = batch(number, &mut nodes[number], keys, random, now);
            let begun = Instant::now();
            store.append(&[batch], Time::from_micros(now)).unwrap();
            begun.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    let at = |share: usize| seconds[(seconds.len() - 1) * share / 100] * 1000.0;
    println!("  a batch alone until it is on disk: median {:.2} ms, 99 % within {:.2} ms", at(50), at(99));
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let records: u64 = match words.iter().position(|word| word == "--records") {
        Some(at) => words[at + 1].parse().unwrap(),
        None if words.iter().any(|word| word == "--bench") => 1_000_000,
        None => 2_000,
    };
    let path = std::env::temp_dir().join(format!("warren-ledger-bench-{}", std::process::id()));
    measure(records, &path);
    std::fs::remove_dir_all(path).unwrap();
}

fn measure(records: u64, path: &std::path::Path) {
    let collector = LogSecret::from_seed([9; 32]);
    let log = Verifier::new("bench", collector.public()).unwrap();
    let keys: Vec<NodeKey> = (0..NODES).map(key).collect();
    let begin = |number| Node { writer: Writer::new(secret(number), Time::from_micros(BEGIN), [0; 32]), flow: 0 };
    let mut nodes: Vec<Node> = (0..NODES).map(begin).collect();
    let each = 2 * CONVERSATIONS + CONVERSATIONS.div_ceil(10);
    let batches = records.div_ceil(each).max(1);
    println!("{} records of {NODES} nodes in {batches} batches over {DAYS} days", batches * each);
    let mut random = 0x9e37_79b9_7f4a_7c15;
    let mut making = Duration::ZERO;
    let ((size, bytes), seconds) = timed("to store, with the making of batches", || {
        let mut store = Store::open(Folder::open(path.to_owned()).unwrap(), &log).unwrap();
        for first in (0..batches).step_by(TOGETHER) {
            let now = BEGIN + DAY / 2 + DAYS * DAY / 1000 * (first * 1000 / batches);
            let begun = Instant::now();
            let together: Vec<Batch> = (first..batches.min(first + TOGETHER as u64))
                .map(|number| {
                    let from = usize::try_from(number).unwrap() * 37 % NODES;
                    batch(from, &mut nodes[from], &keys, &mut random, now)
                })
                .collect();
            making += begun.elapsed();
            store.append(&together, Time::from_micros(now)).unwrap();
        }
        (store.size(), store.bytes())
    });
    let count = (batches * each) as f64;
    let disk: u64 = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    println!("    {:.0} records/s stored, without the making", count / (seconds - making.as_secs_f64()));
    println!(
        "    {:.1} bytes a record in segments, {:.1} with index and nodes",
        bytes as f64 / count,
        disk as f64 / count
    );

    alone(path, &log, &mut nodes, &keys, &mut random);
    timed("to open to write", || drop(Store::open(Folder::open(path.to_owned()).unwrap(), &log).unwrap()));
    let (view, _) = timed("to open to read", || View::open(ReadFolder::open(path.to_owned()).unwrap(), &log).unwrap());
    let size = view.size().min(size);
    timed("1,000 proofs that a batch is there", || {
        (0..1000).for_each(|number| drop(prove_inclusion(&view, number * size / 1000, size).unwrap().unwrap()));
    });
    timed("1,000 proofs that it only grew", || {
        (0..1000).for_each(|number| drop(prove_consistency(&view, number * size / 1000, size).unwrap().unwrap()));
    });

    let party = |number| Party { logs: [secret(number).public()].into(), nodes: [keys[number]].into() };
    let later = Kinds::UPDATE | Kinds::END;
    let yesterday = |query| {
        let end = BEGIN + DAYS * DAY;
        Query { since: Some(Time::from_micros(end - DAY)), until: Some(Time::from_micros(end)), ..query }
    };
    let ask = |what: &str, query: Query| {
        let mut results = view.query(query);
        let (count, _) = timed(what, || results.by_ref().map(Result::unwrap).count());
        println!("    {count} found; frames read, passed over: {:?}", results.frames());
    };
    ask(
        "who talked to one node yesterday",
        yesterday(Query { parties: vec![party(7)], kinds: later, ..Query::default() }),
    );
    ask("who talked to one node, ever", Query { parties: vec![party(7)], kinds: later, ..Query::default() });
    let both = vec![party(7), party(9)];
    ask("two nodes with each other, ever", Query { parties: both, kinds: later, ..Query::default() });
    ask("to a port that nobody uses, ever", Query { port: Some(6_667), ..Query::default() });
    ask("everything, ever", Query::default());
    timed("top talkers, ever", || {
        let mut talkers = Talkers::default();
        view.query(Query { kinds: later, ..Query::default() }).for_each(|one| talkers.add(&one.unwrap()));
        talkers.top(10)
    });
    timed("denied attempts, ever", || {
        let mut denied = Denied::default();
        view.query(Query { kinds: Kinds::DENIED, ..Query::default() }).for_each(|one| denied.add(&one.unwrap()));
        denied.top(10)
    });
    let (verified, _) = timed("to verify everything", || view.verify(&[]));
    assert!(verified.breaks.is_empty(), "{:?}", verified.breaks);
    println!("    {} batches, {} records", verified.batches, verified.records);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    println!("  memory at most: {}", peak.trim_start_matches("VmHWM:").trim());
}
