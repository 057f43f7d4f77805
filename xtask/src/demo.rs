//! `cargo xtask demo`: the main job, shown step by step on this machine.

use crate::fleet::{Node, Server, icmp, transfer};
use crate::lab::Lab;
use crate::{packages, run};
use anyhow::Result;
use std::time::Instant;

/// Builds, then shows two machines joining a tailnet and reaching each other; leaves nothing behind.
pub(crate) fn show(keep: bool) -> Result<()> {
    run::require_root("the demo")?;
    packages::debian(&[("ip", "iproute2"), ("ping", "iputils-ping"), ("nft", "nftables")])?;
    println!("Building warren …");
    let warren = run::build_warren()?;
    let start = Instant::now();
    let step = |text: &str| println!("[{:5.1} s] {text}", start.elapsed().as_secs_f64());

    let lab = Lab::new("demo", &["server", "alpha", "beta"])?;
    step("three machines on one switch: server, alpha, beta (network namespaces)");

    let server = Server::start(&warren, &lab.host("server"), &[])?;
    step(&format!("server: `warren server` serves {}", server.url));

    let invitation = server.invite(&["--reusable"])?;
    step("server: `warren admin auth-key create --reusable` printed the line to paste on the others");

    let mut alpha = Node::start(&warren, &lab.host("alpha"))?;
    let mut beta = Node::start(&warren, &lab.host("beta"))?;
    alpha.up(&invitation, &[])?;
    beta.up(&invitation, &[])?;
    let (alpha4, alpha6) = alpha.addresses()?;
    let (beta4, beta6) = beta.addresses()?;
    step(&format!("alpha is {alpha4} {alpha6}"));
    step(&format!("beta  is {beta4} {beta6}"));

    for line in alpha.cli(&["ping", "beta", "--count", "3"])?.lines() {
        step(&format!("alpha: warren ping beta: {line}"));
    }
    for (from, to) in [(&alpha, &beta4), (&alpha, &beta6), (&beta, &alpha4), (&beta, &alpha6)] {
        let text = icmp(&from.host, to, 3)?;
        let line = text.lines().rev().find(|line| line.starts_with("rtt")).unwrap_or_default();
        step(&format!("{}: ping {to}: {line}", from.host.name));
    }
    let path = alpha.wait_direct("beta")?;
    step(&format!("alpha: `warren status` says beta is reached directly at {path}"));
    for line in alpha.cli(&["status"])?.lines() {
        step(&format!("    {line}"));
    }
    let text = transfer(&alpha.host, &beta.host, &beta4, 100_000_000)?;
    step(&format!("100 MB over TCP through the tunnel: {text}"));

    alpha.stop()?;
    beta.stop()?;
    drop((alpha, beta, server));
    let dir = lab.dir().to_path_buf();
    drop(lab);
    if keep {
        step(&format!("logs are in {}", dir.display()));
    } else {
        std::fs::remove_dir_all(&dir)?;
    }
    step("cleaned up: no namespace, interface, route or process is left");
    Ok(())
}
