//! Runs seeds: `warren-sim run FROM COUNT NODES`, `warren-sim replay SEED NODES [trace]`, `warren-sim idle`.
//!
//! `cargo xtask sim` is the door to it.

#![expect(clippy::print_stdout, reason = "a developer's tool")]

use std::process::ExitCode;
use std::time::Duration;

use warren_sim::{idle, scenario};

/// A clock tick of proc(5).
const TICK: Duration = Duration::from_millis(10);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let number = |word: &str| word.parse::<u64>().ok();
    let nodes = |word: &str| word.parse::<usize>().ok();
    let done = match words.as_slice() {
        ["run", from, count, size] => {
            number(from).zip(number(count)).zip(nodes(size)).map(|((from, count), size)| run(from, count, size))
        }
        ["replay", seed, size] => number(seed).zip(nodes(size)).map(|(seed, size)| replay(seed, size, false)),
        ["replay", seed, size, "trace"] => number(seed).zip(nodes(size)).map(|(seed, size)| replay(seed, size, true)),
        ["idle"] => Some(idle()),
        _ => None,
    };
    match done {
        Some(true) => ExitCode::SUCCESS,
        Some(false) => ExitCode::FAILURE,
        None => {
            eprintln!("usage: warren-sim run FROM COUNT NODES | replay SEED NODES [trace] | idle");
            ExitCode::from(2)
        }
    }
}

/// Runs seeds; the last line has the totals, separated by tabs.
fn run(from: u64, count: u64, nodes: usize) -> bool {
    let (mut failed, mut hours, mut packets, mut events, mut pairs) = (0, 0.0, 0, 0, [0; 3]);
    for seed in from..from.saturating_add(count) {
        let outcome = scenario::run(seed, nodes, false);
        hours += outcome.elapsed.as_secs_f64() * outcome.nodes as f64 / 3600.0;
        packets += outcome.packets;
        events += outcome.events;
        pairs.iter_mut().zip(outcome.pairs).for_each(|(sum, one)| *sum += one);
        if let Some(first) = outcome.violations.first() {
            failed += 1;
            println!("seed {seed}: {} violations, the first: {first}", outcome.violations.len());
            println!("  replay: cargo xtask sim --nodes {nodes} --seed {seed} --trace");
        }
    }
    let cpu = cpu().as_secs_f64();
    println!(
        "total\t{count}\t{failed}\t{hours:.2}\t{cpu:.2}\t{packets}\t{events}\t{}\t{}\t{}",
        pairs[0], pairs[1], pairs[2]
    );
    failed == 0
}

fn replay(seed: u64, nodes: usize, trace: bool) -> bool {
    let outcome = scenario::run(seed, nodes, trace);
    outcome.trace.iter().for_each(|line| println!("{line}"));
    outcome.violations.iter().for_each(|violation| println!("violation at {violation}"));
    println!(
        "seed {seed}: {nodes} nodes, {} s, {} events, {} packets judged, {} violations, fingerprint {:016x}",
        outcome.elapsed.as_secs(),
        outcome.events,
        outcome.packets,
        outcome.violations.len(),
        outcome.fingerprint,
    );
    outcome.violations.is_empty()
}

fn idle() -> bool {
    let count = idle::hour(100);
    println!("a node with 100 peers, one hour without a packet (as the daemon's engine: no WireGuard, no map stream):");
    println!("  wake-ups for deadlines          {}", count.wakes);
    println!("  UDP towards peers               {} datagrams, {} bytes", count.peer.0, count.peer.1);
    println!("  over relays towards peers       {} frames, {} bytes", count.relayed.0, count.relayed.1);
    println!("  UDP to STUN servers             {} datagrams, {} bytes", count.stun.0, count.stun.1);
    println!("  UDP to the gateway              {} datagrams, {} bytes", count.gateway.0, count.gateway.1);
    println!("  keep-alives of the home relay   {} (one frame of 5 bytes each, received)", count.keep_alives);
    count.peer.0 == 0 && count.relayed.0 == 0
}

/// Returns the CPU time of this process (proc(5), `utime` and `stime`).
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u32 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u32>().ok()).sum();
    TICK * ticks
}
