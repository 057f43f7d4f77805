//! How soon the first packet between two nodes is answered when there is no direct path.

use super::{median, release_warren};
use crate::e2e;
use crate::e2e::relays::{self, Relay};
use crate::fleet::{Node, PATIENCE, Server};
use crate::lab::{Host, Lab, Quality, wait_for};
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Time of a packet from a node to anybody, or back: the relayed path takes four of these there and back.
const DELAY: Duration = Duration::from_millis(5);
/// What the bound allows besides two round trips of the relayed path: a handshake's and a packet's.
const ALLOWANCE_MS: f64 = 20.0;

/// What is wanted of a run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How often each first reply is measured.
    #[arg(long, default_value_t = 10)]
    runs: u32,
    /// Print one JSON object for each figure instead of a table.
    #[arg(long)]
    json: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { runs: 10, json: false }
    }
}

/// Two nodes that reach relays by UDP, and each other not.
struct Net {
    alpha: Node,
    beta: Node,
    beta4: String,
    _relays: Vec<Relay>,
    _server: Server,
    // Last, so that the processes end before their namespaces do.
    _lab: Lab,
}

/// One thing that was measured.
struct Figure {
    name: &'static str,
    what: &'static str,
    milliseconds: Vec<f64>,
    /// Round trip of the relayed path once all is known.
    round_trips: Vec<f64>,
    /// Whether the bound is for this: home relays connected, and the same one.
    is_bounded: bool,
}

/// Measures the first reply with both homes warm, from a cold start, and over relays of two regions.
pub(super) fn measure(options: &Options) -> Result<()> {
    let warren = release_warren()?;
    let mut net = Net::one_region(&warren)?;
    let mut figures = vec![net.warm("first_reply", "first reply, homes warm", options.runs, true)?];
    figures.push(net.cold(options.runs)?);
    drop(net);
    let net = Net::two_regions(&warren)?;
    figures.push(net.warm("first_reply_two_regions", "first reply, homes warm in two regions", options.runs, false)?);
    if !options.json {
        let delay = DELAY.as_millis();
        println!(
            "UDP between the nodes blocked, {delay} ms from each to a relay; medians (least–most) of {} runs:",
            options.runs
        );
    }
    for figure in &mut figures {
        figure.print(options.json);
    }
    Ok(())
}

impl Figure {
    fn print(&mut self, as_json: bool) {
        let round_trip = median(&mut self.round_trips);
        let least = DELAY.as_secs_f64() * 4000.0;
        let bound = 2.0 * least + ALLOWANCE_MS;
        let middle = median(&mut self.milliseconds);
        let bounded = self.is_bounded.then_some(bound);
        if as_json {
            let line = json!({
                "metric": self.name,
                "unit": "ms",
                "warren": middle,
                "bound": bounded,
                "later_echo": round_trip,
                "runs": self.milliseconds,
            });
            println!("{line}");
            return;
        }
        // Sorted by the median.
        let (first, last) = self.milliseconds.first().zip(self.milliseconds.last()).unwrap_or((&f64::NAN, &f64::NAN));
        println!("  {:40} {middle:7.1} ms ({first:.1}–{last:.1}), a later echo {round_trip:.1} ms", self.what);
        if let Some(bound) = bounded {
            println!(
                "  {:40} {bound:7.1} ms: 2 round trips A–relay–B–relay–A of {least:.0} ms + {ALLOWANCE_MS:.0} ms; \
                 measured / bound {:.2}",
                "  bound",
                middle / bound
            );
        }
    }
}

impl Net {
    /// Both nodes at home on the server's own relay.
    fn one_region(warren: &Path) -> Result<Self> {
        let (lab, [near, far]) = hosts(&[])?;
        let server = Server::start(warren, &lab.host("server"), &[])?;
        for host in [&near, &far] {
            relays::only_udp_with(host, &[&lab.host("server")])?;
        }
        Self::join(warren, lab, server, Vec::new(), [near, far])
    }

    /// Alpha at home on relay one, beta on relay two.
    fn two_regions(warren: &Path) -> Result<Self> {
        let context = e2e::Context { warren: PathBuf::from(warren), long: false };
        let (lab, [near, far]) = hosts(&["one", "two"])?;
        let server = Server::start(warren, &lab.host("server"), &[])?;
        let file = lab.dir().join("relays.hujson");
        std::fs::write(&file, relays::POLICY)?;
        let both = ["one", "two"].map(|name| Relay::start(&context, &server, lab.host(name)));
        let [one, two] = both;
        let (one, two) = (one?, two?);
        server.policy(&["set", &file.to_string_lossy()])?;
        relays::only_udp_with(&near, &[&one.host])?;
        relays::only_udp_with(&far, &[&two.host])?;
        let net = Self::join(warren, lab, server, vec![one, two], [near, far])?;
        let homes = [&net.alpha, &net.beta].map(Self::home);
        ensure!(homes == [Some("one".to_owned()), Some("two".to_owned())], "the nodes are at home on {homes:?}");
        Ok(net)
    }

    fn join(warren: &Path, lab: Lab, server: Server, relays: Vec<Relay>, [near, far]: [Host; 2]) -> Result<Self> {
        let invitation = server.invite(&["--reusable"])?;
        let (alpha, beta) = (Node::start(warren, &near)?, Node::start(warren, &far)?);
        alpha.up(&invitation, &[])?;
        beta.up(&invitation, &[])?;
        let beta4 = beta.addresses()?.0;
        let net = Self { alpha, beta, beta4, _relays: relays, _server: server, _lab: lab };
        net.settle()?;
        Ok(net)
    }

    fn home(node: &Node) -> Option<String> {
        let status = node.status().ok()?;
        let home = status.pointer("/Self/Relay")?.as_str()?;
        (!home.is_empty()).then(|| home.to_owned())
    }

    /// Waits until both homes are connected and known to the other end.
    fn settle(&self) -> Result<()> {
        for (node, peer) in [(&self.alpha, "beta"), (&self.beta, "alpha")] {
            let known = || Self::home(node).and(node.peer_field(peer, "Relay"));
            wait_for("the home relays of both ends", PATIENCE * 2, known)?;
        }
        // Changes are gathered for 50 ms before they are told, and measurements take a second or two.
        std::thread::sleep(Duration::from_secs(3));
        Ok(())
    }

    /// Measures the first echo of a node that has just come up, and is connected to its home.
    fn warm(&self, name: &'static str, what: &'static str, runs: u32, is_bounded: bool) -> Result<Figure> {
        let mut figure = Figure { name, what, milliseconds: Vec::new(), round_trips: Vec::new(), is_bounded };
        for run in 0..runs {
            // Takes the sessions and the connections to relays away.
            self.alpha.cli(&["down"])?;
            self.alpha.cli(&["up"])?;
            self.settle()?;
            figure.milliseconds.push(self.echo().with_context(|| format!("{what}, run {run}"))?);
            self.later(&mut figure)?;
        }
        Ok(figure)
    }

    /// Measures from the start of alpha's daemon, with its state on disk, to the first reply.
    fn cold(&mut self, runs: u32) -> Result<Figure> {
        let what = "cold start to first reply";
        let mut figure =
            Figure { name: "cold_start", what, milliseconds: Vec::new(), round_trips: Vec::new(), is_bounded: false };
        let (host, to) = (self.alpha.host.clone(), self.beta4.clone());
        for run in 0..runs {
            self.alpha.stop()?;
            let start = Instant::now();
            let given_up = AtomicBool::new(false);
            let first = std::thread::scope(|scope| {
                let pinging = scope.spawn(|| {
                    // Fails at once while there is no interface.
                    while !given_up.load(Ordering::Relaxed) {
                        if host.run("ping").args("-n -q -c 1 -W 2").arg(&to).output().is_ok() {
                            return Some(start.elapsed().as_secs_f64() * 1000.0);
                        }
                    }
                    None
                });
                let started = self.alpha.start_again();
                let answered = wait_for("a first reply", PATIENCE, || pinging.is_finished().then_some(()));
                given_up.store(true, Ordering::Relaxed);
                let first = pinging.join().map_err(|_| anyhow!("the thread that pings panicked"))?;
                started.and(answered)?;
                first.context("no reply")
            });
            figure.milliseconds.push(first.with_context(|| format!("{what}, run {run}"))?);
            self.later(&mut figure)?;
        }
        Ok(figure)
    }

    /// Measures echoes once all is known.
    fn later(&self, figure: &mut Figure) -> Result<()> {
        for _ in 0..3 {
            figure.round_trips.push(self.echo()?);
        }
        ensure!(self.alpha.direct_path("beta")?.is_none(), "the path is direct: UDP between the nodes was not blocked");
        Ok(())
    }

    /// Sends one echo request and returns the milliseconds until its answer.
    fn echo(&self) -> Result<f64> {
        let report = self.alpha.host.run("ping").args("-n -c 1 -W 10").arg(&self.beta4).output()?;
        let time = report.split_once(" time=").and_then(|(_, rest)| rest.split_whitespace().next());
        Ok(time.with_context(|| format!("no time in {report}"))?.parse()?)
    }
}

/// Makes a lab with the server and these hosts on the switch, and with alpha and beta a way off.
fn hosts(names: &[&str]) -> Result<(Lab, [Host; 2])> {
    let mut lab = Lab::new("first-reply", &[&["server"], names].concat())?;
    let quality = Quality { delay: DELAY, ..Quality::default() };
    let [alpha, beta] = ["alpha", "beta"].map(|name| lab.add_far(name, quality));
    Ok((lab, [alpha?.0, beta?.0]))
}
