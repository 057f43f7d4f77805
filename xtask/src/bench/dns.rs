//! How many names of the tailnet a node answers in a second, and how soon an answer that it remembers comes.

use super::{median, release_warren};
use crate::e2e::names::Upstream;
use crate::fleet::{Node, PATIENCE, Server};
use crate::lab::{Host, Lab, wait_for};
use anyhow::{Context, Result};

/// How long each is asked, in seconds.
const SECONDS: u32 = 5;
/// Queries under way at a time when as many as possible are wanted.
const WINDOW: u32 = 64;
/// The service of the node.
const SERVICE: &str = "100.100.100.100:53";

/// What one turn found.
struct Turn {
    per_second: f64,
    /// Answers in a second of the node's own CPU time, all its threads.
    per_cpu_second: f64,
    microseconds: [f64; 2],
}

/// Asks a node on its real sockets, `runs` times, and prints medians.
pub(super) fn measure(runs: u32) -> Result<()> {
    let warren = release_warren()?;
    let lab = Lab::new("dns", &["server", "alpha", "beta"])?;
    let server = Server::start(&warren, &lab.host("server"), &[])?;
    let _upstream = Upstream::start(lab.host("server").bind("10.91.0.2:53")?)?;
    let invitation = server.invite(&["--reusable"])?;
    lab.host("alpha").set_nameserver("10.91.0.2")?;
    let [alpha, beta] = ["alpha", "beta"].map(|name| Node::start(&warren, &lab.host(name)));
    let (alpha, beta) = (alpha?, beta?);
    for node in [&alpha, &beta] {
        node.up(&invitation, &[])?;
    }
    wait_for("beta's name", PATIENCE, || {
        let said = alpha.host.run("getent").args("ahostsv4 beta.default.warren.internal").output().ok()?;
        (!said.trim().is_empty()).then_some(())
    })?;
    let kinds = [("names of the tailnet", "beta.default.warren.internal"), ("remembered others", "www.example.org")];
    println!("answers of a node on {SERVICE}, medians of {runs} runs:");
    for (what, name) in kinds {
        // Into its memory, where that is the point.
        ask(&alpha.host, name, 1, 1)?;
        let turns = (0..runs).map(|_| turn(&alpha, name)).collect::<Result<Vec<_>>>()?;
        let middle = |of: fn(&Turn) -> f64| median(&mut turns.iter().map(of).collect::<Vec<_>>());
        println!(
            "  {what:21} {:7.0}/s with {WINDOW} under way ({:.0} in a second of its CPU time); alone p50 {:.0} µs, p99 {:.0} µs",
            middle(|turn| turn.per_second),
            middle(|turn| turn.per_cpu_second),
            middle(|turn| turn.microseconds[0]),
            middle(|turn| turn.microseconds[1]),
        );
    }
    Ok(())
}

fn turn(alpha: &Node, name: &str) -> Result<Turn> {
    let before = alpha.process().cpu_seconds()?;
    let [answers, per_second, ..] = ask(&alpha.host, name, WINDOW, SECONDS)?;
    let used = alpha.process().cpu_seconds()? - before;
    let [_, _, p50, p99] = ask(&alpha.host, name, 1, SECONDS)?;
    Ok(Turn { per_second, per_cpu_second: answers / used, microseconds: [p50, p99] })
}

/// Returns how many answers came, how many in a second, and the median and the 99th percentile of their times in µs.
fn ask(host: &Host, name: &str, window: u32, seconds: u32) -> Result<[f64; 4]> {
    let me = std::env::current_exe()?;
    let said = host.run(me).args(&format!("traffic names {SERVICE} {name} {seconds} {window}")).output()?;
    let numbers: Vec<f64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    numbers.first_chunk().copied().with_context(|| format!("no figures in {said:?}"))
}
