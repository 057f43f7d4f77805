//! The way through a subnet router and through an exit node beside the plain tunnel to the same node, in turns.

use super::{median, release_warren};
use crate::fleet::{Node, PATIENCE, Server};
use crate::lab::{Host, Lab, Process, WEB, wait_for};
use crate::packages;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Everybody reaches everything, and the Internet.
const OPEN: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*", "autogroup:internet:*"]}]}"#;

/// What is wanted of a run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many turns.
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// How long each is measured in a turn, in seconds.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Measure this program instead of a release build.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Print one JSON object for each figure instead of a table.
    #[arg(long)]
    json: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { runs: 5, seconds: 5, program: None, json: false }
    }
}

/// Measures one TCP connection from alpha, in each family: to beta, to a machine in the network behind beta, to beta again, and
/// to one on the Internet by way of beta.
pub(super) fn measure(options: &Options) -> Result<()> {
    let warren = match &options.program {
        Some(program) => program.clone(),
        None => release_warren()?,
    };
    packages::debian(&[("iperf3", "iperf3")])?;
    let mut lab = Lab::new("bench-routes", &["server", "alpha", "beta"])?;
    let [alpha, beta] = ["alpha", "beta"].map(|name| lab.host(name));
    let (lb, web) = (lab.add_lan(&beta, "lb")?, lab.add_web()?);
    let (_server, [on_alpha, on_beta]) = start(&warren, &lab, [&alpha, &beta])?;
    let _servers = [serve(&beta)?, serve(&lb)?, serve(&web)?];
    let ((beta4, beta6), [lb4, lb6], [web4, web6]) = (on_beta.addresses()?, lb.lan_addresses(), WEB);
    let families = [("IPv4", beta4.as_str(), lb4.as_str(), web4), ("IPv6", &beta6, &lb6, web6)];
    on_alpha.wait_direct("beta")?;
    for (family, node, subnet, internet) in families {
        for to in [node, subnet, internet] {
            wait_for(&format!("{to} from alpha"), PATIENCE, || speed(&alpha, to, 1).ok())
                .with_context(|| format!("beta's log says:\n{}", on_beta.process().log()))?;
        }
        let mut speeds = [const { Vec::new() }; 3];
        for _ in 0..options.runs {
            for (kind, to) in [(0, node), (1, subnet), (0, node), (2, internet)] {
                if let Some(speeds) = speeds.get_mut(kind) {
                    speeds.push(speed(&alpha, to, options.seconds)?);
                }
            }
        }
        let [mut plain, mut router, mut exit] = speeds;
        let tunnel = median(&mut plain);
        if !options.json {
            println!("{family}: the tunnel alone {tunnel:8.0} Mbit/s, medians of {} turns", options.runs);
        }
        for (metric, values) in [("subnet_router", &mut router), ("exit_node", &mut exit)] {
            let middle = median(values);
            if options.json {
                let line = json!({
                    "metric": metric, "family": family, "unit": "Mbit/s", "warren": middle, "tunnel": tunnel,
                    "runs": [values, plain],
                });
                println!("{line}");
            } else {
                println!("  {metric:14} {middle:8.0} Mbit/s, of the tunnel's {:.2}", middle / tunnel);
            }
        }
    }
    Ok(())
}

/// Starts a server and both nodes; beta leads into its network and to the Internet, and alpha goes there by it.
fn start(warren: &Path, lab: &Lab, hosts: [&Host; 2]) -> Result<(Server, [Node; 2])> {
    let [alpha, beta] = hosts;
    let server = Server::start(warren, &lab.host("server"), &[])?;
    let file = lab.dir().join("policy.hujson");
    std::fs::write(&file, OPEN)?;
    server.policy(&["set", &file.to_string_lossy()])?;
    beta.run("sysctl").args("-q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1").output()?;
    let invitation = server.invite(&["--reusable"])?;
    let [on_alpha, on_beta] = hosts.map(|host| Node::start(warren, host));
    let (on_alpha, on_beta) = (on_alpha?, on_beta?);
    let [four, six] = beta.lan();
    on_beta.up(&invitation, &["--advertise-exit-node", &format!("--advertise-routes={four},{six}")])?;
    server.admin(&["node", "approve-routes", &beta.name, &four, &six, "0.0.0.0/0"])?;
    on_alpha.up(&invitation, &["--accept-routes"])?;
    wait_for("beta as an exit node", PATIENCE, || on_alpha.cli(&["set", "--exit-node", &beta.name]).ok())
        .with_context(|| format!("{} offers nothing", alpha.name))?;
    Ok((server, [on_alpha, on_beta]))
}

/// Starts what receives.
fn serve(host: &Host) -> Result<Process> {
    host.spawn("iperf3", Path::new("iperf3"), &["--server", "--forceflush"])
}

/// Returns what one TCP connection carries, in Mbit/s.
fn speed(host: &Host, to: &str, seconds: u32) -> Result<f64> {
    let run = host.run("iperf3").args("--json --connect-timeout 3000 --time").arg(seconds.to_string()).arg("--client");
    let report: Value = serde_json::from_str(&run.arg(to).output()?)?;
    let bits = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    Ok(bits.context("iperf3 says nothing of what was received")? / 1e6)
}
