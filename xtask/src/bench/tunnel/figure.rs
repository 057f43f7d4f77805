//! What is measured of each subject.

use super::subject::Pair;
use crate::fleet::PATIENCE;
use crate::lab::Process;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// Seconds for which a stream is counted, after one that is not.
const SECONDS: u32 = 4;
/// Bytes of payload of a small packet.
const SMALL: &str = "64";
/// Packets a second for the CPU's cost of one.
const PACE: u64 = 20_000;
/// The most that may be lost, of a million.
const LOSS: u64 = 1000;
/// Packets a second between which the highest without loss is searched, how often, and for how many seconds each.
const SEARCH: (u64, u64, u32, u64) = (10_000, 500_000, 8, 1);
/// Seconds for which a rate must hold that counts.
const HOLD: u64 = 10;
/// Initiations of a flood, a second.
const FLOOD: u64 = 50_000;
/// Where load goes.
const PORT: u16 = 7010;

/// A figure, or several that are taken together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Figure {
    /// One TCP stream.
    Tcp1,
    /// Four.
    Tcp4,
    /// One in each direction, together.
    Both,
    /// The most small packets.
    Pps,
    /// CPU time per packet, both ends together.
    Cpu,
    /// Ping at rest.
    Ping,
    /// Ping beside a stream at full speed.
    Loaded,
    /// Memory at rest, and after streams.
    Memory,
    /// One TCP stream while strangers ask our receiving node for handshakes, beside one while the same goes to a socket
    /// that nobody reads from; and a new session meanwhile.
    Flood,
}

impl Figure {
    /// All, memory first: what it has before load.
    pub(super) const ALL: [Self; 9] =
        [Self::Memory, Self::Ping, Self::Tcp1, Self::Tcp4, Self::Both, Self::Loaded, Self::Cpu, Self::Pps, Self::Flood];

    /// Returns its name, by which it is asked for.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Tcp1 => "tcp1",
            Self::Tcp4 => "tcp4",
            Self::Both => "tcp-both",
            Self::Pps => "pps",
            Self::Cpu => "cpu",
            Self::Ping => "ping",
            Self::Loaded => "ping-loaded",
            Self::Memory => "rss",
            Self::Flood => "flood",
        }
    }

    /// Returns the names of its values.
    pub(super) fn names(self) -> &'static [&'static str] {
        match self {
            Self::Tcp1 => &["tcp1"],
            Self::Tcp4 => &["tcp4"],
            Self::Both => &["tcp-both"],
            Self::Pps => &["pps"],
            Self::Cpu => &["cpu"],
            Self::Ping => &["ping-median", "ping-p99"],
            Self::Loaded => &["loaded-ping-median", "loaded-ping-p99"],
            Self::Memory => &["rss-idle", "rss-loaded"],
            Self::Flood => &["tcp1-flooded", "tcp1-flood-ignored"],
        }
    }

    /// Returns the unit of its values.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Tcp1 | Self::Tcp4 | Self::Both | Self::Flood => "Mbit/s",
            Self::Pps => "packets/s",
            Self::Cpu => "us/packet",
            Self::Ping | Self::Loaded => "ms",
            Self::Memory => "MiB",
        }
    }

    /// Returns how many digits after the point are worth printing.
    pub(super) fn digits(self) -> usize {
        match self {
            Self::Tcp1 | Self::Tcp4 | Self::Both | Self::Pps | Self::Flood => 0,
            Self::Cpu | Self::Memory => 1,
            Self::Ping | Self::Loaded => 3,
        }
    }

    /// Measures once.
    pub(super) fn take(self, pair: &Pair, load: &Path) -> Result<Vec<f64>> {
        match self {
            Self::Tcp1 => Ok(vec![tcp(pair, "-P 1")?]),
            Self::Tcp4 => Ok(vec![tcp(pair, "-P 4")?]),
            Self::Both => Ok(vec![tcp(pair, "--bidir")?]),
            Self::Pps => Ok(vec![most_packets(pair, load)? as f64]),
            Self::Cpu => {
                let before = cpu(pair)?;
                let (_, received) = push(pair, load, PACE, u64::from(SECONDS))?;
                let spent = cpu(pair)?.saturating_sub(before);
                Ok(vec![spent as f64 / 1e3 / received.max(1) as f64])
            }
            Self::Ping => ping(pair, "-i 0.002 -c 2000"),
            Self::Loaded => {
                let mut stream = Stream::start(pair, "-P 1 -t 6")?;
                // Beside the stream at its full speed, which it has after its slow start.
                std::thread::sleep(Duration::from_secs(1));
                let pings = ping(pair, "-i 0.01 -c 400")?;
                stream.finish()?;
                Ok(pings)
            }
            Self::Memory => {
                let idle = memory(pair)?;
                let mut stream = Stream::start(pair, "-P 4 -t 3 --bidir")?;
                // Towards the end of the streams, when all buffers have been in use.
                std::thread::sleep(Duration::from_millis(2500));
                let loaded = memory(pair)?;
                stream.finish()?;
                Ok(vec![idle, loaded])
            }
            Self::Flood => flood(pair, load),
        }
    }
}

/// TCP on its way from alpha to beta.
pub(super) struct Stream {
    client: Process,
    server: Process,
}

impl Stream {
    pub(super) fn start(pair: &Pair, options: &str) -> Result<Self> {
        let mut server = pair.beta.spawn("iperf-server", Path::new("iperf3"), &["-s", "-1", "--forceflush"])?;
        server.wait_log("Server listening", PATIENCE)?;
        let words = format!("-c {} -C cubic -O 1 -J {options}", pair.address);
        let words: Vec<&str> = words.split_whitespace().collect();
        let client = pair.alpha.spawn("iperf", Path::new("iperf3"), &words)?;
        Ok(Self { client, server })
    }

    /// Waits for the end and returns Mbit/s.
    pub(super) fn finish(&mut self) -> Result<f64> {
        let status = self.client.wait_end(PATIENCE)?;
        let text = self.client.own_log();
        ensure!(status.success(), "iperf3 failed: {text}");
        self.server.wait_end(PATIENCE)?;
        let report: Value = serde_json::from_str(&text).with_context(|| format!("iperf3 printed {text:?}"))?;
        let ways = ["sum_received", "sum_received_bidir_reverse"];
        let bits = ways.iter().filter_map(|way| report.get("end")?.get(way)?.get("bits_per_second")?.as_f64());
        Ok(bits.sum::<f64>() / 1e6)
    }
}

fn tcp(pair: &Pair, options: &str) -> Result<f64> {
    Stream::start(pair, &format!("{options} -t {SECONDS}"))?.finish()
}

/// Floods beta from its own machine; a node of ours alone knows what to say to that.
fn flood(pair: &Pair, load: &Path) -> Result<Vec<f64>> {
    let Some((alpha, beta)) = pair.nodes() else { return Ok(Vec::new()) };
    let status = beta.status()?;
    let key = status.pointer("/Self/PublicKey").and_then(Value::as_str).context("a status without a key")?.to_owned();
    let at = alpha.direct_path("beta")?.context("no direct path")?;
    let port = at.rsplit_once(':').context("an address without a port")?.1.to_owned();
    // Bound, and never read.
    let sink = pair.beta.spawn("sink", load, &["receive", &PORT.to_string(), "600"])?;
    sink.signal("STOP")?;
    let mut speeds = Vec::new();
    for port in [port, PORT.to_string()] {
        let (to, rate, seconds) = (format!("127.0.0.1:{port}"), FLOOD.to_string(), (SECONDS + 4).to_string());
        let mut flood = pair.beta.spawn("flood", load, &["flood", &to, &key, &rate, &seconds])?;
        speeds.push(tcp(pair, "-P 1")?);
        if speeds.len() == 1 {
            // A session that must come about meanwhile.
            alpha.cli(&["down"])?;
            alpha.cli(&["up"])?;
            pair.alpha.run("ping").args("-n -c 1 -W 3").arg(&pair.address).output()?;
        }
        flood.wait_end(PATIENCE)?;
        let sent: u64 = flood.own_log().trim().rsplit(' ').next().unwrap_or_default().parse().context("no number")?;
        ensure!(sent >= FLOOD * u64::from(SECONDS + 4) * 9 / 10, "the flood was {sent} messages only");
    }
    Ok(speeds)
}

/// Returns median and 99th percentile in ms.
fn ping(pair: &Pair, options: &str) -> Result<Vec<f64>> {
    let text = pair.alpha.run("ping").args("-n").args(options).arg(&pair.address).output()?;
    let mut times: Vec<f64> =
        text.lines().filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse().ok()).collect();
    times.sort_by(f64::total_cmp);
    let at = |part: usize| times.get(times.len() * part / 100).copied().context("no ping was answered");
    Ok(vec![at(50)?, at(99)?])
}

/// Sends small packets at a rate; returns how many were sent and how many came.
fn push(pair: &Pair, load: &Path, rate: u64, seconds: u64) -> Result<(u64, u64)> {
    let port = PORT.to_string();
    let mut receiver = pair.beta.spawn("load-in", load, &["receive", &port, &(seconds + 1).to_string()])?;
    receiver.wait_log("ready", PATIENCE)?;
    let to = format!("{}:{PORT}", pair.address);
    let said = pair.alpha.run(load).arg("send").arg(to).arg(SMALL).arg(rate.to_string()).arg(seconds.to_string());
    let sent = said.output()?;
    receiver.wait_log("received ", PATIENCE)?;
    let count = |text: &str, word: &str| -> Option<u64> {
        text.lines().rev().find_map(|line| line.strip_prefix(word)?.trim().parse().ok())
    };
    let received = count(&receiver.own_log(), "received ").context("the receiver printed no number")?;
    Ok((count(&sent, "sent ").context("the sender printed no number")?, received))
}

fn holds(pair: &Pair, load: &Path, rate: u64, seconds: u64) -> Result<bool> {
    let (sent, received) = push(pair, load, rate, seconds)?;
    // A sender that cannot keep the rate does not prove it.
    Ok(sent >= rate * seconds * 99 / 100 && sent.saturating_sub(received) * 1_000_000 <= sent * LOSS)
}

/// Searches the highest rate at which next to nothing is lost.
fn most_packets(pair: &Pair, load: &Path) -> Result<u64> {
    let (mut low, mut high, steps, seconds) = SEARCH;
    for _ in 0..steps {
        let middle = (low + high) / 2;
        if holds(pair, load, middle, seconds)? { low = middle } else { high = middle }
    }
    // What holds for a second need not hold for long.
    for _ in 0..6 {
        if holds(pair, load, low, HOLD)? {
            break;
        }
        low = low * 93 / 100;
    }
    Ok(low)
}

/// Returns the CPU time that the processes of both ends have used, in nanoseconds.
fn cpu(pair: &Pair) -> Result<u64> {
    let mut sum = 0;
    for pid in &pair.pids {
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            sum += text.split(' ').next().unwrap_or_default().parse::<u64>().context("no time in schedstat")?;
        }
    }
    Ok(sum)
}

/// Returns the resident memory of the larger end in MiB.
fn memory(pair: &Pair) -> Result<f64> {
    let mut most: f64 = 0.0;
    for pid in &pair.pids {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.split_whitespace().next().unwrap_or_default().parse()?;
        most = most.max(kib / 1024.0);
    }
    Ok(most)
}
