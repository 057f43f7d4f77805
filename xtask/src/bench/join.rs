//! From `warren up` to the first answered ping, and to a direct path.

use super::{median, release_warren};
use crate::fleet::{Node, PATIENCE, Server};
use crate::lab::{Lab, wait_for};
use anyhow::{Context, Result};
use std::time::Instant;

/// The moments of a join, in the order in which they come; each is a line of the node's log.
const MOMENTS: &[(&str, &str)] = &[
    ("registered", "daemon: registered"),
    ("first map", "daemon: map"),
    ("first session, over the relay", "traffic: session peer"),
    ("direct path", "traffic: direct path"),
];

/// Lets a fresh node join `runs` times beside one that is there, and prints medians.
pub(super) fn measure(runs: u32) -> Result<()> {
    let warren = release_warren()?;
    let lab = Lab::new("join", &["server", "beta", "alpha"])?;
    let server = Server::start(&warren, &lab.host("server"), &[])?;
    let invitation = server.invite(&["--reusable", "--ephemeral"])?;
    let beta = Node::start(&warren, &lab.host("beta"))?;
    beta.up(&invitation, &[])?;
    let (beta4, _) = beta.addresses()?;
    let mut totals = Vec::new();
    let mut commands = Vec::new();
    let mut moments = vec![Vec::new(); MOMENTS.len()];
    for run in 0..runs {
        let mut alpha = Node::start_named(&warren, &lab.host("alpha"), &format!("alpha{run}"))?;
        let begun = std::time::SystemTime::now();
        let start = Instant::now();
        alpha.up(&invitation, &[])?;
        commands.push(start.elapsed().as_secs_f64() * 1e3);
        // One echo request; the answer may wait for the handshake, which the first packet starts.
        alpha.host.run("ping").args("-n -c 1 -W 5").arg(&beta4).output().context("the first ping")?;
        totals.push(start.elapsed().as_secs_f64() * 1e3);
        for ((_, text), times) in MOMENTS.iter().zip(&mut moments) {
            let at = wait_for(text, PATIENCE, || {
                alpha.process().log().lines().find(|line| line.contains(text)).and_then(log_time)
            })?;
            times.push(at - begun.duration_since(std::time::UNIX_EPOCH)?.as_secs_f64() * 1e3);
        }
        alpha.cli(&["logout"])?;
        alpha.stop()?;
    }
    println!("from `warren up`, medians of {runs} joins:");
    println!("  command returns                {:7.1} ms", median(&mut commands));
    for ((name, _), times) in MOMENTS.iter().zip(&mut moments) {
        println!("  {name:30} {:7.1} ms", median(times));
    }
    println!("  first ping answered            {:7.1} ms", median(&mut totals));
    Ok(())
}

/// Reads the time at the start of a log line, in milliseconds since 1970.
fn log_time(line: &str) -> Option<f64> {
    let time = line.split_whitespace().next()?.strip_suffix('Z')?;
    let (date, clock) = time.split_once('T')?;
    let mut date = date.split('-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let mut clock = clock.split(':').map(str::parse::<f64>);
    let (hour, minute, second) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
    // Days since 1970 in the proleptic Gregorian calendar, years beginning in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some((days as f64 * 86_400.0 + hour * 3_600.0 + minute * 60.0 + second) * 1e3)
}

#[cfg(test)]
mod tests {
    use super::log_time;

    #[test]
    fn a_log_line_tells_its_time() {
        let line = "2026-11-25T14:17:01.250000Z  INFO warren: hello";
        assert_eq!(log_time(line), Some(1_795_616_221_250.0));
    }
}
