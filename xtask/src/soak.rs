//! Soak: a small tailnet that goes through one fault after another for a long time.
//!
//! Work is cut into legs. A leg is a server and the nodes alpha and beta in a fresh lab, and a number of rounds; each
//! round starts a transfer, causes a fault in the middle of it and demands that everything is well again. Beta lives
//! through a whole leg, and so does the server in every other leg, so that memory which is never given back shows.
//! Finished legs are kept in cargo's target folder, so that an interrupted soak goes on where it was.

use crate::fleet::{Node, PATIENCE, Server, transfer};
use crate::lab::{Lab, wait_for};
use crate::run::{Run, build_warren, require_root, root, target};
use crate::{fuzz, packages};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Legs of a whole soak.
const LEGS: u64 = 10;
/// Rounds of a leg.
const ROUNDS: u64 = 30;
/// Bytes that a round sends while its fault happens.
const BYTES: u64 = 50_000_000;
/// After this many rounds buffers and tables have their size.
const WARM: u64 = 8;
/// How much more memory than after [`WARM`] rounds a process may hold, in KiB.
const GROWTH: f64 = 6.0 * 1024.0;

/// What happens in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Nothing,
    KilledNode,
    KilledServer,
    UdpBlocked,
    NewAddress,
    DownAndUp,
}

const FAULTS: [Fault; 6] =
    [Fault::Nothing, Fault::KilledNode, Fault::KilledServer, Fault::UdpBlocked, Fault::NewAddress, Fault::DownAndUp];

impl Fault {
    /// Tells whether connections through the tunnel must outlive it.
    fn spares_connections(self) -> bool {
        !matches!(self, Self::KilledNode | Self::DownAndUp)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::KilledNode => "alpha killed and started",
            Self::KilledServer => "server killed and started",
            Self::UdpBlocked => "UDP blocked, then not",
            Self::NewAddress => "alpha's address changed",
            Self::DownAndUp => "alpha down and up",
        }
    }
}

/// Runs the legs that are not done at this commit, and writes docs/reports/soak.md.
pub(crate) fn run() -> Result<()> {
    require_root("the soak")?;
    packages::debian(&[("ip", "iproute2"), ("ping", "iputils-ping"), ("nft", "nftables")])?;
    let warren = build_warren()?;
    let mut done = load()?;
    if done.len() as u64 >= LEGS {
        println!("the last soak is complete; beginning another");
        done.clear();
    }
    for number in done.len() as u64..LEGS {
        let leg = Leg::run(&warren, number).with_context(|| format!("leg {number} of the soak"))?;
        println!("leg {number}: {leg}");
        done.push(leg);
        save(&done)?;
        report(&done)?;
    }
    Ok(())
}

/// What a finished leg showed: one line of words, split by tabs, in the file of progress.
#[derive(Clone, Default)]
struct Leg {
    commit: String,
    /// Resident memory in KiB, after [`WARM`] rounds and at the end.
    beta: (f64, f64),
    server: (f64, f64),
    /// Fault and seconds from it until echoes passed both ways.
    rounds: Vec<(Fault, f64)>,
}

impl Leg {
    fn run(warren: &Path, number: u64) -> Result<Self> {
        let lab = Lab::new("soak", &["server", "alpha", "beta"])?;
        let mut server = Server::start(warren, &lab.host("server"), &[])?;
        let invitation = server.invite(&["--reusable"])?;
        let mut alpha = Node::start(warren, &lab.host("alpha"))?;
        let beta = Node::start(warren, &lab.host("beta"))?;
        alpha.up(&invitation, &[])?;
        beta.up(&invitation, &[])?;
        let (to_alpha, _) = alpha.addresses()?;
        let (_, to_beta) = beta.addresses()?;
        let mut leg = Self { commit: fuzz::commit()?, ..Self::default() };
        // Each leg has its own order of faults, the same in every soak.
        let mut random = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        for round in 0..ROUNDS {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let server_lives = number.is_multiple_of(2);
            let mut fault = FAULTS[usize::try_from(random % FAULTS.len() as u64)?];
            if fault == Fault::KilledServer && server_lives {
                fault = Fault::Nothing;
            }
            let say = || format!("round {round} of leg {number}, {}", fault.name());
            let (from, to, address) = (alpha.host.clone(), beta.host.clone(), to_beta.clone());
            let already = alpha.sent_to("beta").unwrap_or_default();
            let sending = std::thread::spawn(move || transfer(&from, &to, &address, BYTES));
            wait_for("the transfer to be under way", PATIENCE, || {
                (sending.is_finished() || alpha.sent_to("beta")? > already + BYTES / 10).then_some(())
            })
            .with_context(say)?;
            cause(fault, round, &mut alpha, &mut server).with_context(say)?;
            let start = Instant::now();
            wait_for("echoes both ways", PATIENCE, || {
                echo(&beta, &to_alpha).and_then(|()| echo(&alpha, &to_beta)).ok()
            })
            .with_context(say)?;
            leg.rounds.push((fault, start.elapsed().as_secs_f64()));
            let sent = sending.join().map_err(|_| anyhow!("the sending thread failed"))?;
            if fault.spares_connections() {
                sent.with_context(say)?;
            }
            let memory = (beta.process().memory_kib()?, server.process().memory_kib()?);
            if round == WARM {
                (leg.beta.0, leg.server.0) = memory;
            }
            (leg.beta.1, leg.server.1) = memory;
            if round > WARM {
                ensure!(leg.beta.1 < leg.beta.0 + GROWTH, "{}: beta grew from {:?} KiB", say(), leg.beta);
                let grew = server_lives && leg.server.1 >= leg.server.0 + GROWTH;
                ensure!(!grew, "{}: the server grew from {:?} KiB", say(), leg.server);
            }
        }
        Ok(leg)
    }

    fn write(&self) -> String {
        let mut line =
            format!("{}\t{}\t{}\t{}\t{}", self.commit, self.beta.0, self.beta.1, self.server.0, self.server.1);
        for (fault, seconds) in &self.rounds {
            // Writing to a string cannot fail.
            let _ = write!(line, "\t{}={seconds}", FAULTS.iter().position(|known| known == fault).unwrap_or_default());
        }
        line
    }

    fn read(line: &str) -> Option<Self> {
        let mut words = line.split('\t');
        let commit = words.next()?.to_owned();
        let mut number = || words.next()?.parse().ok();
        let (beta, server) = ((number()?, number()?), (number()?, number()?));
        let round = |word: &str| {
            let (fault, seconds) = word.split_once('=')?;
            Some((*FAULTS.get(fault.parse::<usize>().ok()?)?, seconds.parse().ok()?))
        };
        Some(Self { commit, beta, server, rounds: words.map(round).collect::<Option<_>>()? })
    }
}

impl std::fmt::Display for Leg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} rounds; beta {:.0} → {:.0} KiB, server {:.0} → {:.0} KiB",
            self.rounds.len(),
            self.beta.0,
            self.beta.1,
            self.server.0,
            self.server.1
        )
    }
}

/// Sends one echo request and waits a moment for the answer.
fn echo(from: &Node, to: &str) -> Result<()> {
    from.host.run("ping").args("-n -c 1 -W 0.2").arg(to).output().map(drop)
}

fn cause(fault: Fault, round: u64, alpha: &mut Node, server: &mut Server) -> Result<()> {
    match fault {
        Fault::Nothing => Ok(()),
        Fault::KilledNode => alpha.kill_and_restart(),
        Fault::KilledServer => server.kill_and_restart(),
        Fault::UdpBlocked => {
            alpha.host.block_udp(true)?;
            // Blocked for as long as it takes to notice: until an echo passes over the relay.
            let noticed = wait_for("an echo over the relay", PATIENCE, || {
                let said = alpha.cli(&["ping", "beta", "--count", "1"]).ok()?;
                said.to_lowercase().contains("relay").then_some(())
            });
            alpha.host.block_udp(false)?;
            noticed
        }
        Fault::NewAddress => {
            // The old address goes first, as when a laptop changes the network.
            let ip = |words: String| alpha.host.run("ip").args(&words).output().map(drop);
            ip("-4 address flush dev eth0".to_owned())?;
            ip(format!("address add 10.91.0.{}/24 dev eth0", 100 + round))?;
            ip("route add default via 10.91.0.1".to_owned())
        }
        Fault::DownAndUp => {
            alpha.cli(&["down"])?;
            alpha.cli(&["up"]).map(drop)
        }
    }
}

fn progress_file() -> PathBuf {
    target().join("soak.tsv")
}

/// Reads the finished legs.
fn load() -> Result<Vec<Leg>> {
    let file = progress_file();
    if !file.exists() {
        return Ok(Vec::new());
    }
    let legs: Option<Vec<Leg>> = std::fs::read_to_string(&file)?.lines().map(Leg::read).collect();
    match legs {
        Some(legs) => Ok(legs),
        None => bail!("{} is damaged: remove it to begin again", file.display()),
    }
}

fn save(legs: &[Leg]) -> Result<()> {
    let text: String = legs.iter().map(|leg| leg.write() + "\n").collect();
    let (file, new) = (progress_file(), progress_file().with_extension("new"));
    std::fs::write(&new, text)?;
    std::fs::rename(&new, &file).with_context(|| format!("cannot write {}", file.display()))
}

fn report(legs: &[Leg]) -> Result<()> {
    let date = Run::new("date").args("-u +%Y-%m-%d").output()?;
    let rounds: usize = legs.iter().map(|leg| leg.rounds.len()).sum();
    let mut text = format!(
        "# Soak\n\n\
        Written by `cargo xtask test --long`, last on {}. A server and two nodes; in each round {} MB flow through the\n\
        tunnel while something happens, and afterwards echoes must pass both ways. {} of {LEGS} legs, {rounds} rounds.\n\n\
        | what happened | rounds | until echoes pass, median | longest |\n| --- | --- | --- | --- |\n",
        date.trim(),
        BYTES / 1_000_000,
        legs.len(),
    );
    for fault in FAULTS {
        let mut seconds: Vec<f64> = legs
            .iter()
            .flat_map(|leg| &leg.rounds)
            .filter(|(of, _)| *of == fault)
            .map(|(_, seconds)| *seconds)
            .collect();
        seconds.sort_by(f64::total_cmp);
        let (Some(median), Some(longest)) = (seconds.get(seconds.len() / 2), seconds.last()) else { continue };
        writeln!(text, "| {} | {} | {median:.1} s | {longest:.1} s |", fault.name(), seconds.len())?;
    }
    text.push_str(
        "\nResident memory in KiB, when warm and at the end of each leg; the server is killed now and then in odd legs.\n\n\
        | leg | commit | beta | server |\n| --- | --- | --- | --- |\n",
    );
    for (number, Leg { commit, beta, server, .. }) in legs.iter().enumerate() {
        writeln!(text, "| {number} | {commit} | {:.0} → {:.0} | {:.0} → {:.0} |", beta.0, beta.1, server.0, server.1)?;
    }
    let file = root().join("docs/reports/soak.md");
    std::fs::create_dir_all(file.parent().context("the report has a folder")?)?;
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}
