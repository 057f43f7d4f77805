//! Correctness under speed: streams cross a bad line through tunnels that change their keys each second, and every byte
//! of them is compared.
//!
//! The end-to-end tests send some megabytes in each case; `cargo xtask whole` sends 10 GB. Finished portions are kept in
//! cargo's target folder, so that an interrupted run goes on where it was.

mod stand_in;

use crate::fleet::{Node, PATIENCE, Server, Setting};
use crate::lab::{Counts, Host, Lab, Quality, wait_for};
use crate::run::{Run, build_checked_warren, require_root, root, target};
use crate::{fuzz, packages};
use anyhow::{Context, Result, bail, ensure};
use stand_in::StandIn;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// What alpha's line does to packets, each way.
const LINE: Quality = Quality { loss: 10, late: 50, lateness: Duration::from_millis(2), mtu: WIDE, ..CLEAN };
/// What beta's does.
const CLEAN: Quality =
    Quality { delay: Duration::ZERO, loss: 0, late: 0, lateness: Duration::ZERO, rate: 0, mtu: WIDE };
/// Room for packets of 1500 bytes in a tunnel.
const WIDE: u16 = 1600;
/// Age at which sessions are renewed, in milliseconds.
const REKEY: &str = "1000";
/// Least renewals that a case must see.
const RENEWALS: usize = 3;
/// Bytes of a portion of the long run, all directions and families together.
const PORTION: u64 = 500_000_000;
/// Portions of the long run: 10 GB.
const PORTIONS: usize = 20;

/// A way in which data crosses. Every one has loss, reordering and new keys each second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    /// The usual MTU of 1280, with offloads, over IPv4.
    Usual,
    /// The same with `--no-offload` on alpha.
    NoOffload,
    /// An MTU of 1500, over IPv6.
    Large,
    /// Debian's wireguard-go at the other end, over IPv4.
    WireguardGo,
}

impl Case {
    /// All of them.
    const ALL: [Self; 4] = [Self::Usual, Self::NoOffload, Self::Large, Self::WireguardGo];

    fn name(self) -> &'static str {
        match self {
            Self::Usual => "MTU 1280, over IPv4",
            Self::NoOffload => "one side without offloads",
            Self::Large => "MTU 1500, over IPv6",
            Self::WireguardGo => "wireguard-go at the other end",
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Usual | Self::WireguardGo => &[],
            Self::NoOffload => &["--no-offload"],
            Self::Large => &["--mtu", "1500"],
        }
    }
}

/// What a run of a case showed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    /// Bytes that arrived whole, both ways and families together.
    bytes: u64,
    seconds: f64,
    /// Sessions that followed the first one.
    renewals: usize,
    lost: u64,
    late: u64,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { bytes, seconds, renewals, lost, late } = *self;
        let (megabytes, speed) = (bytes / 1_000_000, bytes as f64 * 8e-6 / seconds);
        write!(
            f,
            "{megabytes} MB whole in {seconds:.1} s, {speed:.0} Mbit/s; {renewals} new keys, {lost} packets lost and \
            {late} late"
        )
    }
}

/// The other end of the tunnel.
enum Beta {
    Warren(Node),
    WireguardGo(StandIn),
}

/// Sends `bytes` bytes in a case, in four equal parts: each way in each family. `warren` must have debug assertions, which
/// let a test have new keys each second; `build` are cargo's words for a build like that.
pub(crate) fn cross(warren: &Path, build: &str, case: Case, bytes: u64) -> Result<Figures> {
    let mut lab = Lab::new("whole", &["server"])?;
    let ((near, counts), (far, _)) = (lab.add_far("alpha", LINE)?, lab.add_far("beta", CLEAN)?);
    // Named as a server of both families: in one case there is only one of them.
    let server = Server::start_at(warren, &lab.host("server"), "[::]", "server.lab", &[])?;
    let invitation = server.invite(&["--reusable"])?;
    // Both families would do for the tunnel; the case says which.
    let other = if case == Case::Large { "-4" } else { "-6" };
    for host in [&near, &far] {
        host.run("ip").args(other).args("address flush dev eth0").output()?;
    }
    let node = |host: &Host, words: &[&str]| -> Result<Node> {
        let environment = vec![("WARREN_TEST_REKEY_MS".to_owned(), REKEY.to_owned())];
        let arguments = words.iter().map(|&word| word.to_owned()).collect();
        let setting = Setting { environment, arguments, ..Setting::default() };
        let node = Node::start_as(warren, host, &host.name, setting)?;
        node.up(&invitation, &[])?;
        Ok(node)
    };
    let alpha = node(&near, case.arguments())?;
    let beta = match case {
        Case::WireguardGo => Beta::WireguardGo(StandIn::join(&far, build, &invitation, &server, &alpha)?),
        Case::Usual | Case::NoOffload => Beta::Warren(node(&far, &[])?),
        Case::Large => Beta::Warren(node(&far, case.arguments())?),
    };
    let addresses = match &beta {
        Beta::Warren(node) => node.addresses()?,
        Beta::WireguardGo(peer) => peer.addresses.clone(),
    };
    let path = alpha.wait_direct("beta")?;
    ensure!(path.starts_with('[') == (case == Case::Large), "the path is {path}, of the other family");
    if let Beta::Warren(node) = &beta {
        node.wait_direct("alpha")?;
    }
    // The first session is there; those that follow are counted.
    wait_for("an echo over the bad line", PATIENCE, || {
        near.run("ping").args("-n -c 1 -W 1").arg(&addresses.0).output().ok()
    })?;
    let sessions = || alpha.process().log().matches("traffic: session peer").count();
    let before = (sessions(), read(&counts));
    let start = Instant::now();
    let mut figures = Figures::default();
    let (mut part, mut seed) = (bytes / 4, 0);
    // On a fast machine the first round may be over before there are enough new keys.
    while seed == 0 || sessions() < before.0 + RENEWALS {
        ensure!(start.elapsed() < PATIENCE * 20, "{} new keys in all that time", sessions() - before.0);
        for address in [&addresses.0, &addresses.1] {
            stream(&near, &far, address, part, seed).with_context(|| format!("to {address}; {}", counts.text()))?;
            figures.bytes += part * 2;
            seed += 1;
        }
        part = bytes.min(20_000_000) / 4;
    }
    figures.seconds = start.elapsed().as_secs_f64();
    figures.renewals = sessions() - before.0;
    let after = read(&counts);
    (figures.lost, figures.late) = (after.0 - before.1.0, after.1 - before.1.1);
    ensure!(figures.lost > 0 && figures.late > 0, "the line did no harm: {}", counts.text());
    ensure!(alpha.direct_path("beta")?.is_some(), "the path did not stay direct");
    drop(beta);
    Ok(figures)
}

fn read(counts: &Counts) -> (u64, u64) {
    (counts.lost.load(Ordering::Relaxed), counts.late.load(Ordering::Relaxed))
}

/// Lets both ends send `bytes` bytes at once and compare what they get.
fn stream(from: &Host, to: &Host, address: &str, bytes: u64, seed: u64) -> Result<()> {
    let me = std::env::current_exe()?;
    let target = if address.contains(':') { format!("[{address}]:7003") } else { format!("{address}:7003") };
    let mut answering = to.spawn("whole", &me, &["traffic", "whole-answer", &target])?;
    answering.wait_log("listening", PATIENCE)?;
    let asked = from.run(&me).args("traffic whole").arg(&target).args(&format!("{bytes} {seed}")).output();
    let end = answering.wait_end(PATIENCE);
    if let Err(error) = asked {
        bail!("{error:#}; the other end says: {}", answering.own_log().trim());
    }
    ensure!(end?.success(), "the other end says: {}", answering.own_log().trim());
    Ok(())
}

/// Sends the portions that are not done at this commit, and writes docs/reports/whole.md.
pub(crate) fn long() -> Result<()> {
    require_root("this")?;
    packages::debian(&[
        ("ip", "iproute2"),
        ("ping", "iputils-ping"),
        ("wireguard-go", "wireguard-go"),
        ("wg", "wireguard-tools"),
    ])?;
    let (warren, build) = build_checked_warren()?;
    let commit = fuzz::commit()?;
    let mut done = load(&commit)?;
    if done.len() >= PORTIONS {
        println!("all is sent at this commit; beginning again");
        done.clear();
    }
    while let Some(case) = Case::ALL.iter().copied().cycle().take(PORTIONS).nth(done.len()) {
        let figures =
            cross(&warren, build, case, PORTION).with_context(|| format!("portion {}, {case:?}", done.len()))?;
        println!("{:30} {figures}", case.name());
        done.push(figures);
        save(&commit, &done)?;
        report(&commit, &done)?;
    }
    Ok(())
}

fn progress_file(commit: &str) -> PathBuf {
    target().join(format!("whole-{commit}.tsv"))
}

fn load(commit: &str) -> Result<Vec<Figures>> {
    let file = progress_file(commit);
    let text = if file.exists() { std::fs::read_to_string(&file)? } else { String::new() };
    let figures = |line: &str| {
        let mut words = line.split('\t');
        Some(Figures {
            bytes: words.next()?.parse().ok()?,
            seconds: words.next()?.parse().ok()?,
            renewals: words.next()?.parse().ok()?,
            lost: words.next()?.parse().ok()?,
            late: words.next()?.parse().ok()?,
        })
    };
    let all: Option<Vec<Figures>> = text.lines().map(figures).collect();
    all.with_context(|| format!("{} is damaged: remove it to begin again", file.display()))
}

fn save(commit: &str, done: &[Figures]) -> Result<()> {
    let line = |one: &Figures| {
        let Figures { bytes, seconds, renewals, lost, late } = one;
        format!("{bytes}\t{seconds}\t{renewals}\t{lost}\t{late}\n")
    };
    let (file, new) = (progress_file(commit), progress_file(commit).with_extension("new"));
    std::fs::write(&new, done.iter().map(line).collect::<String>())?;
    std::fs::rename(&new, &file).with_context(|| format!("cannot write {}", file.display()))
}

fn report(commit: &str, done: &[Figures]) -> Result<()> {
    let date = Run::new("date").args("-u +%Y-%m-%d").output()?;
    let total: u64 = done.iter().map(|one| one.bytes).sum();
    let mut text = format!(
        "# Whole under speed\n\n\
        Written by `cargo xtask whole`, last on {} at {commit}. Pseudo-random streams over TCP, four connections both ways at\n\
        once, in IPv4 and IPv6 inside the tunnel, over a line that loses 1 % of the packets and delivers 5 % of them 2 ms late,\n\
        with new keys each second; both ends compare every byte. {:.1} GB of {:.1} arrived whole, none otherwise.\n\n\
        | | GB | Mbit/s | new keys | packets lost | late |\n| --- | --- | --- | --- | --- | --- |\n",
        date.trim(),
        total as f64 / 1e9,
        (PORTION * PORTIONS as u64) as f64 / 1e9,
    );
    for (at, case) in Case::ALL.iter().enumerate() {
        let sum = done.iter().skip(at).step_by(Case::ALL.len()).fold(Figures::default(), |sum, one| Figures {
            bytes: sum.bytes + one.bytes,
            seconds: sum.seconds + one.seconds,
            renewals: sum.renewals + one.renewals,
            lost: sum.lost + one.lost,
            late: sum.late + one.late,
        });
        if sum.bytes > 0 {
            let (gigabytes, speed) = (sum.bytes as f64 / 1e9, sum.bytes as f64 * 8e-6 / sum.seconds);
            let Figures { renewals, lost, late, .. } = sum;
            writeln!(text, "| {} | {gigabytes:.1} | {speed:.0} | {renewals} | {lost} | {late} |", case.name())?;
        }
    }
    let file = root().join("docs/reports/whole.md");
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}
