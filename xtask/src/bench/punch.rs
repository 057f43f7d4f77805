//! How surely and how soon hard NATs are met, and with how many packets.

use super::{median, release_warren};
use crate::fleet::{Node, Server, icmp};
use crate::lab::{Host, Lab, Nat};
use anyhow::{Context, Result};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a pair may take before it counts as relayed.
const GIVE_UP: Duration = Duration::from_secs(160);
/// Two NATs that give each destination a port of its own, drawn by lot, meet by luck alone: they may have less.
const GIVE_UP_HARD: Duration = Duration::from_secs(40);

/// Lets two fresh nodes meet `runs` times for each pair of NATs, and prints rates, medians and packets.
pub(super) fn measure(runs: u32) -> Result<()> {
    let warren = release_warren()?;
    for (nats, name, limit) in [
        ([Nat::Hard, Nat::Easy], "hard NAT, easy NAT", GIVE_UP),
        ([Nat::Hard, Nat::Hard], "hard NAT, hard NAT, ports by lot", GIVE_UP_HARD),
    ] {
        let (mut times, mut packets, mut within) = (Vec::new(), Vec::new(), [0_u32; 3]);
        for run in 0..runs {
            let (seconds, sent) = meet(&warren, nats, limit).with_context(|| format!("{name}, run {run}"))?;
            packets.push(f64::from(sent));
            let Some(seconds) = seconds else { continue };
            for (count, limit) in within.iter_mut().zip([12.0, 30.0, 160.0]) {
                *count += u32::from(seconds <= limit);
            }
            times.push(seconds);
        }
        let [one, two, all] = within;
        println!("{name}, one STUN server, of {runs} runs given {} s each:", limit.as_secs());
        println!("  direct within 12 s {one}, within 30 s {two}, at all {all}");
        println!(
            "  median {:.1} s of those; UDP packets of both nodes: median {:.0}, most {:.0}",
            median(&mut times),
            median(&mut packets),
            packets.iter().copied().fold(0.0, f64::max),
        );
    }
    Ok(())
}

/// Lets two fresh nodes behind these NATs look for a direct path; returns the seconds it took, if one was found in time,
/// and the UDP packets that both sent.
fn meet(warren: &Path, nats: [Nat; 2], limit: Duration) -> Result<(Option<f64>, u32)> {
    let mut lab = Lab::new("punch", &["server", "ra", "rb"])?;
    let (ra, rb) = (lab.host("ra"), lab.host("rb"));
    let hosts = [lab.add_behind(&ra, nats[0], "alpha")?, lab.add_behind(&rb, nats[1], "beta")?];
    let server = Server::start(warren, &lab.host("server"), &[])?;
    let invitation = server.invite(&["--reusable"])?;
    let [alpha, beta] = hosts.map(|host| Node::start(warren, &host));
    let (alpha, beta) = (alpha?, beta?);
    alpha.up(&invitation, &[])?;
    beta.up(&invitation, &[])?;
    let (to_alpha, _) = alpha.addresses()?;
    let (start, before) = (Instant::now(), sent(&alpha.host)? + sent(&beta.host)?);
    let mut seconds = None;
    while seconds.is_none() && start.elapsed() < limit {
        // Also the pause between two looks: an echo over the relay takes its time, and a lost one longer.
        drop(icmp(&beta.host, &to_alpha, 2));
        let both = alpha.direct_path("beta")?.and(beta.direct_path("alpha")?);
        seconds = both.map(|_| start.elapsed().as_secs_f64());
    }
    Ok((seconds, sent(&alpha.host)? + sent(&beta.host)? - before))
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
