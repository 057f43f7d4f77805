//! How surely and how soon a hard NAT is met from an easy one, and with how many packets.

use super::{median, release_warren};
use crate::fleet::{Node, PATIENCE, Server, icmp};
use crate::lab::{Host, Lab, Nat, wait_for};
use anyhow::{Context, Result};
use std::time::Instant;

/// Lets two fresh nodes meet `runs` times, and prints rates, medians and packets.
pub(super) fn measure(runs: u32) -> Result<()> {
    let warren = release_warren()?;
    let (mut times, mut packets, mut within) = (Vec::new(), Vec::new(), [0_u32; 3]);
    for run in 0..runs {
        let mut lab = Lab::new("punch", &["server", "ra", "rb"])?;
        let (ra, rb) = (lab.host("ra"), lab.host("rb"));
        let hosts = [lab.add_behind(&ra, Nat::Hard, "alpha")?, lab.add_behind(&rb, Nat::Easy, "beta")?];
        let server = Server::start(&warren, &lab.host("server"), &[])?;
        let invitation = server.invite(&["--reusable"])?;
        let [alpha, beta] = hosts.map(|host| Node::start(&warren, &host));
        let (alpha, beta) = (alpha?, beta?);
        alpha.up(&invitation, &[])?;
        beta.up(&invitation, &[])?;
        let (to_alpha, _) = alpha.addresses()?;
        let (start, before) = (Instant::now(), sent(&alpha.host)? + sent(&beta.host)?);
        wait_for("a direct path through the hard NAT", PATIENCE * 20, || {
            drop(icmp(&beta.host, &to_alpha, 1));
            alpha.direct_path("beta").ok().flatten().and(beta.direct_path("alpha").ok().flatten())
        })
        .with_context(|| format!("run {run}"))?;
        let seconds = start.elapsed().as_secs_f64();
        for (count, limit) in within.iter_mut().zip([12.0, 30.0, 160.0]) {
            *count += u32::from(seconds <= limit);
        }
        times.push(seconds);
        packets.push(f64::from(sent(&alpha.host)? + sent(&beta.host)? - before));
    }
    let [one, two, four] = within;
    println!("hard NAT, easy NAT, one STUN server, of {runs} runs:");
    println!("  direct within 12 s {one}, within 30 s {two}, within 160 s {four}");
    println!("  median {:.1} s, {:.0} UDP packets of both nodes", median(&mut times), median(&mut packets));
    Ok(())
}

/// Returns how many UDP packets a host has sent.
fn sent(host: &Host) -> Result<u32> {
    let text = host.run("cat").arg("/proc/net/snmp").output()?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = lines.next().zip(lines.next()).context("no UDP counters")?;
    let mut columns = names.split_whitespace().zip(values.split_whitespace());
    let (_, value) = columns.find(|(name, _)| *name == "OutDatagrams").context("no counter of sent datagrams")?;
    Ok(value.parse()?)
}
