//! A collector that is killed at any moment: what it acknowledged is there once, and it goes on behind it.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use warren_ledger::checkpoint::Verifier;
use warren_ledger::merkle::Frontier;
use warren_ledger::store::{Folder, ReadFolder, Store, View};
use warren_ledger::{DropReason, Drops, Event, LogSecret, Record, Time, Writer};

/// Says to the copy of this program that is killed where to write.
const FOLDER: &str = "WARREN_LEDGER_KILLED";

fn log() -> Verifier {
    Verifier::new("killed", LogSecret::from_seed([9; 32]).public()).unwrap()
}

/// Writes as fast as it can, and says after each batch that it is stored, until it is killed.
fn write(path: PathBuf) {
    let mut store = Store::open(Folder::open(path).unwrap(), &log()).unwrap();
    let mut out = std::io::stdout().lock();
    let begun = store.size();
    let mut writer = Writer::new(LogSecret::from_seed([1; 32]), Time::from_micros(begun), [0; 32]);
    for number in begun.. {
        let drops = Drops {
            reason: DropReason::NoRule,
            direction: warren_ledger::Direction::Inbound,
            peer: None,
            target: None,
            packets: number,
            bytes: 0,
            span: Duration::ZERO,
        };
        let now = Time::from_micros(number);
        let batch = writer.seal(&[Record { at: now, event: Event::Drops(drops) }], now).unwrap();
        store.append(&[batch], now).unwrap();
        writeln!(out, "stored {number}").unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn what_was_acknowledged_outlives_ten_kills() {
    if let Some(path) = std::env::var_os(FOLDER) {
        return write(path.into());
    }
    let path = std::env::temp_dir().join(format!("warren-ledger-kill-{}", std::process::id()));
    let mut acknowledged = 0;
    for round in 0..10_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--nocapture", "what_was_acknowledged_outlives_ten_kills"])
            .env(FOLDER, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        // In the middle of whatever it does after so many.
        let mut stored = lines.filter_map(|line| line.rsplit_once("stored ")?.1.parse::<u64>().ok());
        for _ in 0..20 + 13 * round {
            acknowledged = stored.next().unwrap() + 1;
        }
        child.kill().unwrap();
        acknowledged = stored.last().map_or(acknowledged, |number| number + 1);
        child.wait().unwrap();
        // A reader needs nothing to be put in order.
        let view = View::open(ReadFolder::open(path.clone()).unwrap(), &log()).unwrap();
        assert!(view.size() >= acknowledged, "round {round}: {acknowledged} acknowledged, {} there", view.size());
        let mut tree = Frontier::new();
        for position in 0..view.size() {
            let (first, _, batches) = view.read(position).unwrap();
            assert_eq!((first, batches.len()), (position, 1));
            let opened = batches[0].open().unwrap();
            let Event::Drops(drops) = opened.records()[0].event else { panic!("drops") };
            assert_eq!(drops.packets, position, "each once, in its place");
            tree.push(*opened.hash(), |_, _, _| {});
        }
        assert_eq!(tree.root(), view.root());
    }
    std::fs::remove_dir_all(path).unwrap();
}
