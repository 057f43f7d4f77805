//! A server under many map streams.

use super::{median, release_warren};
use crate::fleet::Server;
use crate::lab::{Lab, Process};
use crate::run::{Run, target};
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Starts a server and `count` simulated nodes in one process, and prints what they cost it.
pub(super) fn measure(count: u32, rounds: u16, rest: u64, hub: bool) -> Result<()> {
    let warren = release_warren()?;
    Run::cargo().args("build --quiet --locked --release --package warren-node --example fleet").go()?;
    let lab = Lab::new("streams", &["server"])?;
    let host = lab.host("server");
    let server = Server::start_on(&warren, &host, "127.0.0.1", &[])?;
    let mut options = vec!["--reusable"];
    if hub {
        let file = host.dir().join("hub.hujson");
        std::fs::write(&file, HUB)?;
        server.policy(&["set", &file.to_string_lossy()])?;
        options.extend(["--tag", "tag:spoke"]);
    }
    let invitation = server.invite(&options)?;
    let pin = invitation.value("--server-key")?;
    let before = server.process().memory_kib()?;

    let mut child = Command::new("ip")
        .args(["netns", "exec", &host.namespace])
        .arg(target().join("release/examples/fleet"))
        .args([&server.url, &pin, &invitation.key, &count.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the fleet")?;
    let mut orders = child.stdin.take().context("the fleet has a standard input")?;
    let mut lines = BufReader::new(child.stdout.take().context("the fleet has a standard output")?).lines();
    let mut next = || lines.next().context("the fleet has ended; its error is above")?.context("unreadable output");
    println!("{}", next()?);

    let cpu_joined = server.process().cpu_seconds()?;
    println!("server: {cpu_joined:.1} s of CPU time for all joins");
    let (idle, memory) = at_rest(server.process(), rest)?;
    println!(
        "server: {:.1} MiB resident, {:.1} KiB for each stream ({:.1} MiB before); CPU at rest {:.2} % of one core over {rest} s",
        memory / 1024.0,
        (memory - before) / f64::from(count),
        before / 1024.0,
        idle * 100.0,
    );
    if !hub {
        writeln!(orders, "change {rounds}")?;
        println!("{}", next()?);
        let cpu = server.process().cpu_seconds()? - cpu_joined;
        println!("server: {:.1} ms of CPU time for each change", cpu * 1000.0 / f64::from(rounds.max(1)));
        let file = host.dir().join("edited.hujson");
        std::fs::write(&file, EDITED)?;
        let (file, before) = (file.to_string_lossy(), server.process().cpu_seconds()?);
        let set = server.policy_line(&["set", &file]).join(" ");
        writeln!(orders, "edit {EDITS} {file} {set}")?;
        println!("{}", next()?);
        let cpu = server.process().cpu_seconds()? - before;
        println!("server: {:.1} ms of CPU time for each edit of the policy", cpu * 1000.0 / f64::from(EDITS));
    }
    drop(orders);
    child.wait()?;
    Ok(())
}

/// Waits until the server has come to rest, then returns its share of a core over `seconds` and its median memory in KiB.
fn at_rest(server: &Process, seconds: u64) -> Result<(f64, f64)> {
    let mut memory = Vec::new();
    std::thread::sleep(Duration::from_secs(5));
    let start = server.cpu_seconds()?;
    for _ in 0..seconds {
        std::thread::sleep(Duration::from_secs(1));
        memory.push(server.memory_kib()?);
    }
    let used = server.cpu_seconds()? - start;
    Ok((used / seconds.max(1) as f64, median(&mut memory)))
}

/// How often the policy is edited.
const EDITS: u16 = 20;

/// A policy of which one rule is edited, which concerns every node.
const EDITED: &str = r#"{
    "acls": [
        { "action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"] },
        { "action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:member:PORT"] },
    ],
}
"#;

/// Spokes that reach only the hub.
const HUB: &str = r#"{
    "tagOwners": { "tag:spoke": [], "tag:hub": [] },
    "acls": [{ "action": "accept", "src": ["tag:spoke"], "dst": ["tag:hub:*"] }],
}
"#;
