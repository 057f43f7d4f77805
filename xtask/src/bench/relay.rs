//! A relay under load: throughput, idle clients, latency beside load and beside a client that does not read.

use super::release_warren;
use crate::lab::{Host, Lab, Process};
use crate::run::{Run, target};
use anyhow::{Context, Result};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Runs a program with many open files allowed, as far as root may.
const RAISED: &str = "ulimit -n 100000 2>/dev/null || ulimit -n $(ulimit -H -n); exec \"$@\"";
/// Where the relay listens within its namespace.
const ADDRESS: &str = "127.0.0.1:8443";

/// Measures a relay in one process against clients in another, both on this machine.
pub(super) fn measure(idle: u32, seconds: u32) -> Result<()> {
    let warren = release_warren()?;
    Run::cargo().args("build --quiet --locked --release --package warren-relay --example load").go()?;
    let lab = Lab::new("relay", &["relay"])?;
    let host = lab.host("relay");

    for pairs in ["1", "100"] {
        let (relay, pin) = start(&warren, &host)?;
        let (mut load, mut lines) = load(&host, &pin, &["flows", pairs, &seconds.to_string(), "1280"])?;
        next(&mut lines)?;
        let before = relay.cpu_seconds()?;
        let answer = next(&mut lines)?;
        let cpu = relay.cpu_seconds()? - before;
        load.wait()?;
        let field = |name: &str| answer.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN);
        let (mbit, took) = (field("mbit"), field("seconds"));
        println!(
            "{pairs} flow(s) of 1280-byte packets: {mbit:.0} Mbit/s, {:.0} Mbit/s for each core that the relay uses ({:.2} cores); {:.0} to {:.0} Mbit/s a flow, {} packets lost",
            mbit / (cpu / took),
            cpu / took,
            field("least"),
            field("most"),
            field("lost"),
        );
    }

    let (relay, pin) = start(&warren, &host)?;
    for (what, words) in
        [("100 flows", vec!["latency", "100", "5"]), ("a client that does not read", vec!["slow", "5"])]
    {
        let (mut load, mut lines) = load(&host, &pin, &words)?;
        let answer = next(&mut lines)?;
        load.wait()?;
        let field = |part: &str, name: &str| answer[part][name].as_f64().unwrap_or(f64::NAN);
        println!(
            "a packet beside {what}: median {:.2} ms, 99th percentile {:.2} ms, {} lost of {} (alone {:.2} and {:.2} ms)",
            field("beside", "median_ms"),
            field("beside", "p99_ms"),
            field("beside", "lost"),
            field("beside", "packets"),
            field("alone", "median_ms"),
            field("alone", "p99_ms"),
        );
    }
    drop(relay);

    let (relay, pin) = start(&warren, &host)?;
    let empty = relay.memory_kib()?;
    let (mut load, mut lines) = load(&host, &pin, &["idle", &idle.to_string()])?;
    next(&mut lines)?;
    // Handshakes leave memory that is given back only when something else is done with it.
    std::thread::sleep(Duration::from_secs(3));
    let (memory, before) = (relay.memory_kib()?, relay.cpu_seconds()?);
    std::thread::sleep(Duration::from_secs(10));
    println!(
        "{idle} idle clients: {:.0} MiB resident ({:.1} KiB each), {:.2} % of a core",
        memory / 1024.0,
        (memory - empty) / f64::from(idle.max(1)),
        (relay.cpu_seconds()? - before) * 10.0,
    );
    drop(load.stdin.take());
    load.wait()?;
    Ok(())
}

/// Starts a relay that admits anybody and returns the hash of its certificate, too.
fn start(warren: &Path, host: &Host) -> Result<(Process, String)> {
    let state = host.dir().join("relay-state").to_string_lossy().into_owned();
    let warren = warren.to_string_lossy();
    let words = [
        "-c",
        RAISED,
        "relay",
        &warren,
        "relay",
        "--admit-anybody-for-tests",
        "--host",
        "127.0.0.1",
        "--state-dir",
        &state,
        "--listen",
        ADDRESS,
        "--accepts",
        "100000",
    ];
    let mut process = host.spawn("relay", Path::new("/bin/sh"), &words)?;
    process.wait_log("--pin ", Duration::from_secs(10))?;
    let log = process.log();
    let pin = log.split("--pin ").nth(1).and_then(|rest| rest.split_whitespace().next()).context("the relay's pin")?;
    Ok((process, pin.to_owned()))
}

type Lines = std::io::Lines<BufReader<std::process::ChildStdout>>;

/// Starts the load program with as many open files as root may have.
fn load(host: &Host, pin: &str, words: &[&str]) -> Result<(Child, Lines)> {
    let mut child = Command::new("ip")
        .args(["netns", "exec", &host.namespace, "sh", "-c", RAISED, "load"])
        .arg(target().join("release/examples/load"))
        .args([ADDRESS, pin])
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the load")?;
    let lines = BufReader::new(child.stdout.take().context("the load has a standard output")?).lines();
    Ok((child, lines))
}

fn next(lines: &mut Lines) -> Result<Value> {
    let line = lines.next().context("the load has ended; its error is above")??;
    serde_json::from_str(&line).with_context(|| format!("the load says {line:?}"))
}
