//! How long data stands still when the network changes under a TCP connection through the tunnel.

use super::{median, release_warren};
use crate::fleet::{Node, PATIENCE, Server};
use crate::lab::{Host, Lab, Nat, ip, wait_for};
use crate::packages;
use anyhow::{Context, Result, anyhow};
use std::time::Duration;

/// Speed of the connection in Mbit/s.
const SPEED: &str = "100";
/// How long it runs, in seconds.
const SECONDS: &str = "7";
/// When the fault comes.
const BEFORE: Duration = Duration::from_secs(2);

/// What happens, and whether the path is direct then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Nothing,
    NatReboot,
    NewAddress,
    RelayKilled,
    DirectBlocked,
    DirectUnblocked,
    RelayKilledRelayed,
}

const FAULTS: [(Fault, &str); 7] = [
    (Fault::Nothing, "nothing"),
    (Fault::NatReboot, "NAT forgets, with another address"),
    (Fault::NewAddress, "address of one side changes"),
    (Fault::RelayKilled, "relay killed, direct path"),
    (Fault::DirectBlocked, "direct path blocked"),
    (Fault::DirectUnblocked, "direct path unblocked"),
    (Fault::RelayKilledRelayed, "relay killed and started, relayed"),
];

struct Net {
    server: Server,
    alpha: Node,
    beta: Node,
    router: Host,
    // Last, so that the processes end before their namespaces do.
    _lab: Lab,
}

/// Causes each fault `runs` times in the middle of a connection of its own, and prints the longest time without data.
pub(super) fn measure(runs: u32) -> Result<()> {
    let warren = release_warren()?;
    packages::debian(&[("conntrack", "conntrack")])?;
    let mut lab = Lab::new("gaps", &["server", "ra", "rb"])?;
    let (ra, rb) = (lab.host("ra"), lab.host("rb"));
    let hosts = [lab.add_behind(&ra, Nat::Easy, "alpha")?, lab.add_behind(&rb, Nat::Easy, "beta")?];
    let server = Server::start(&warren, &lab.host("server"), &[])?;
    let invitation = server.invite(&["--reusable"])?;
    let [alpha, beta] = hosts.map(|host| Node::start(&warren, &host));
    let (alpha, beta) = (alpha?, beta?);
    alpha.up(&invitation, &[])?;
    beta.up(&invitation, &[])?;
    let mut net = Net { server, alpha, beta, router: ra, _lab: lab };
    println!("longest time without data at {SPEED} Mbit/s, of {runs} runs each:");
    for (fault, name) in FAULTS {
        let mut gaps = Vec::new();
        for run in 0..runs {
            gaps.push(net.gap(fault, run).with_context(|| format!("{name}, run {run}"))?);
        }
        let longest = gaps.iter().copied().fold(0.0, f64::max);
        println!("  {name:36} median {:6.0} ms, longest {longest:6.0} ms", median(&mut gaps));
    }
    Ok(())
}

impl Net {
    /// Runs one connection from alpha to beta with a fault in it; returns the longest time without data, in ms.
    fn gap(&mut self, fault: Fault, run: u32) -> Result<f64> {
        let relayed = matches!(fault, Fault::DirectUnblocked | Fault::RelayKilledRelayed);
        self.alpha.host.block_udp(false).ok();
        if relayed {
            self.alpha.host.block_udp(true)?;
            wait_for("the relayed path", PATIENCE, || {
                let said = self.alpha.cli(&["ping", "beta", "--count", "1"]).ok()?;
                (said.contains("relay") && self.alpha.direct_path("beta").ok()?.is_none()).then_some(())
            })?;
        } else {
            self.alpha.wait_direct("beta")?;
            self.beta.wait_direct("alpha")?;
        }
        let me = std::env::current_exe()?;
        let target = format!("{}:7002", self.beta.addresses()?.0);
        let mut receiver = self.beta.host.spawn("gaps", &me, &["traffic", "gaps", &target])?;
        receiver.wait_log("listening", PATIENCE)?;
        let send = self.alpha.host.run(&me).args("traffic pace").arg(&target).arg(SPEED).arg(SECONDS);
        let sending = std::thread::spawn(move || send.output());
        std::thread::sleep(BEFORE);
        self.cause(fault, run)?;
        sending.join().map_err(|_| anyhow!("the sending thread failed"))??;
        receiver.wait_end(PATIENCE)?;
        let log = receiver.log();
        let said = log.lines().rev().find_map(|line| line.strip_prefix("longest gap ")).context("no gap was told")?;
        Ok(said.trim_end_matches(" ms").parse()?)
    }

    fn cause(&mut self, fault: Fault, run: u32) -> Result<()> {
        let other = |one: &str, two: &str| {
            if run.is_multiple_of(2) { (one.into(), two.into()) } else { (two.into(), one.into()) }
        };
        match fault {
            Fault::Nothing => Ok(()),
            Fault::NatReboot => {
                let (old, new): (String, String) = other("9.91.0.3", "9.91.0.203");
                let namespace = &self.router.namespace;
                ip(&format!("-n {namespace} address add {new}/24 dev eth0"))?;
                ip(&format!("-n {namespace} address del {old}/24 dev eth0"))?;
                self.router.renumber(&new)?;
                self.router.run("conntrack").arg("-F").output().map(drop)
            }
            Fault::NewAddress => {
                let (_, new): (String, String) = other("192.168.3.2", "192.168.3.7");
                let ip = |words: &str| self.alpha.host.run("ip").args(words).output().map(drop);
                ip("-4 address flush dev eth0")?;
                ip(&format!("address add {new}/24 dev eth0"))?;
                ip("route add default via 192.168.3.1")
            }
            Fault::RelayKilled | Fault::RelayKilledRelayed => self.server.kill_and_restart(),
            Fault::DirectBlocked => self.alpha.host.block_udp(true),
            Fault::DirectUnblocked => self.alpha.host.block_udp(false),
        }
    }
}
