//! Two nodes with a long, lossy line between them.

use super::Context;
use crate::fleet::{Node, Server, icmp};
use crate::lab::{Lab, Quality};
use anyhow::{Context as _, Result, ensure};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Echo requests of each family.
const PINGS: u32 = 1000;

/// Alpha is 50 ms away from everybody and loses one packet of a hundred each way: the path becomes direct, in both
/// families echoes take as long as the line is, and no more are lost than the line loses.
pub(super) fn far(context: &Context) -> Result<()> {
    let mut lab = Lab::new("link", &["server", "beta"])?;
    let quality = Quality { delay: Duration::from_millis(50), loss: 10, ..Quality::default() };
    let (far, counts) = lab.add_far("alpha", quality)?;
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    // The line itself, in both families and from both ends, before anything of ours is on it.
    for (from, to) in [(&far, "10.91.0.3"), (&far, "fd91::3"), (&lab.host("beta"), "fd91::4"), (&far, "fd91::1")] {
        icmp(from, to, 3)?;
    }
    let invitation = server.invite(&["--reusable"])?;
    let (alpha, beta) = (Node::start(&context.warren, &far)?, Node::start(&context.warren, &lab.host("beta"))?);
    alpha.up(&invitation, &[])?;
    beta.up(&invitation, &[])?;
    for (node, peer) in [(&alpha, "beta"), (&beta, "alpha")] {
        node.wait_direct(peer)?;
    }
    let (beta4, beta6) = beta.addresses()?;
    let before = counts.lost.load(Ordering::Relaxed);
    for to in [&beta4, &beta6] {
        let report = far.run("ping").args("-n -q -i 0.005 -W 3 -c").arg(PINGS.to_string()).arg(to).output()?;
        let (back, shortest) = read(&report).with_context(|| format!("no counts in {report}"))?;
        println!("        {back} of {PINGS} echoes from {to}, the soonest after {shortest} ms");
        ensure!(shortest >= 100.0, "an echo came sooner than the line allows");
        // One of fifty is lost on the line; a tunnel that loses as many again is at fault.
        ensure!(back > PINGS * 9 / 10, "the tunnel loses more than the line: {}", counts.text());
    }
    let lost = counts.lost.load(Ordering::Relaxed) - before;
    ensure!(lost > 0, "the line lost nothing: {}", counts.text());
    for (node, peer) in [(&alpha, "beta"), (&beta, "alpha")] {
        ensure!(node.direct_path(peer)?.is_some(), "the path to {peer} did not stay direct");
    }
    println!("        {}", counts.text());
    Ok(())
}

/// Reads how many answers came, and the shortest time in milliseconds.
fn read(report: &str) -> Option<(u32, f64)> {
    let counts = report.lines().find(|line| line.contains("packets transmitted"))?;
    let mut numbers = counts.split_whitespace().filter_map(|word| word.parse::<u32>().ok());
    let times = report.lines().find_map(|line| line.strip_prefix("rtt ")?.split(" = ").nth(1))?;
    Some((numbers.nth(1)?, times.split('/').next()?.parse().ok()?))
}
