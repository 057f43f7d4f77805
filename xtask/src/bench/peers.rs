//! What idle peers cost a node: its engine alone, and the whole process that people install.

use super::median;
use crate::fleet::{Node, Server, Setting};
use crate::lab::Lab;
use crate::run::{Run, target};
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Peers of the whole process, and for how many seconds it is looked at.
const PEERS: (u32, u32) = (100, 10);

/// Prints memory and the time for a change with few and with many peers, then the memory of the node's own build.
pub(super) fn measure(runs: u32) -> Result<()> {
    Run::cargo().args("build --quiet --locked --release --package warren-node --example peers --example fleet").go()?;
    {
        let lab = Lab::new("peers", &["alone"])?;
        let host = lab.host("alone");
        for _ in 0..runs {
            for count in ["10", "100", "1000", "10000"] {
                print!("{}", host.run(target().join("release/examples/peers")).arg(count).output()?);
            }
        }
    }
    let build =
        "build --quiet --locked --config .cargo/node.toml --profile node --package warren --no-default-features";
    Run::cargo().args(build).args("--features node").arg("--target-dir").arg(target().join("node-only")).go()?;
    let small = target().join("node-only/node/warren");
    println!("the node alone: {} bytes", std::fs::metadata(&small)?.len());
    for (name, program) in [("node alone", small), ("all roles", super::release_warren()?)] {
        let lab = Lab::new("peers", &["server", "alpha"])?;
        let server = Server::start(&super::release_warren()?, &lab.host("server"), &[])?;
        let invitation = server.invite(&["--reusable"])?;
        let setting = Setting { environment: vec![("WARREN_LOG".into(), "info".into())], ..Setting::default() };
        let node = Node::start_as(&program, &lab.host("alpha"), "alpha", setting)?;
        node.up(&invitation, &[])?;
        let alone = rest(&node)?;
        let (count, pin) = (PEERS.0.to_string(), invitation.value("--server-key")?);
        let mut child = Command::new("ip")
            .args(["netns", "exec", &lab.host("server").namespace])
            .arg(target().join("release/examples/fleet"))
            .args([&server.url, &pin, &invitation.key, &count])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the fleet")?;
        let orders = child.stdin.take();
        let mut lines = BufReader::new(child.stdout.take().context("the fleet has a standard output")?).lines();
        lines.next().context("the fleet has ended; its error is above")??;
        let many = rest(&node)?;
        println!("{name}: {alone:.1} MiB resident without peers, {many:.1} MiB with {count} idle ones");
        drop(orders);
        child.wait()?;
    }
    Ok(())
}

/// Returns the median memory of a node at rest, in MiB.
fn rest(node: &Node) -> Result<f64> {
    let mut samples = Vec::new();
    for _ in 0..PEERS.1 {
        std::thread::sleep(Duration::from_secs(1));
        samples.push(node.process().memory_kib()? / 1024.0);
    }
    Ok(median(&mut samples))
}
