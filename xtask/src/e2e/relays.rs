//! Relays on machines of their own: packets go over the recipient's relay, and a relay that restarts is hardly noticed.

use super::Context;
use crate::fleet::{Node, PATIENCE, Server, icmp};
use crate::lab::{Host, Lab, Process, wait_for};
use anyhow::{Context as _, Result, ensure};
use std::time::{Duration, Instant};

/// Where each relay tells its counts, on its own machine.
const METRICS: &str = "127.0.0.1:9090";
/// Packets of one direction that are counted.
const PACKETS: u64 = 200;
/// Allows everything and takes the server's own relay away, so that the two others are left.
const POLICY: &str = r#"{
    "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
    "derpMap": {"Regions": {"900": null}},
}"#;

/// A relay on a machine of its own.
struct Relay {
    host: Host,
    process: Process,
}

impl Relay {
    /// Starts a relay and types its line on the server.
    fn start(context: &Context, server: &Server, host: Host) -> Result<Self> {
        let process = spawn(context, server, &host)?;
        let log = process.log();
        let line = log.lines().find(|line| line.contains("warren admin relay add")).context("the relay's line")?;
        let words: Vec<&str> = line.split_whitespace().skip(2).collect();
        server.admin(&words)?;
        Ok(Self { host, process })
    }

    /// Returns how many packets that are no disco it has passed on.
    fn packets(&self) -> Result<u64> {
        let text = self.host.run("curl").args("-s").arg(format!("http://{METRICS}/metrics")).output()?;
        let line = text.lines().find_map(|line| line.strip_prefix("warren_relay_packets_total{kind=\"other\"} "));
        line.context("no count of packets")?.trim().parse().context("the count is no number")
    }
}

fn spawn(context: &Context, server: &Server, host: &Host) -> Result<Process> {
    let state = host.dir().join(format!("{}-state", host.name)).to_string_lossy().into_owned();
    let listen = format!("{}:8443", host.address);
    let words = [
        "relay",
        "--server",
        &server.url,
        "--host",
        &host.address,
        "--name",
        &host.name,
        "--state-dir",
        &state,
        "--listen",
        &listen,
        "--metrics",
        METRICS,
    ];
    let mut process = host.spawn("relay", &context.warren, &words)?;
    process.wait_log("warren admin relay add", PATIENCE)?;
    Ok(process)
}

/// Lets UDP of a machine pass to and from one other alone.
fn only_udp_with(host: &Host, other: &Host) -> Result<()> {
    let (file, other) = (host.dir().join(format!("{}-udp.nft", host.name)), &other.address);
    let rules = format!(
        "table inet lab {{\n \
         chain out {{ type filter hook output priority 0; oifname \"eth0\" meta l4proto udp ip daddr != {other} drop; }}\n \
         chain in {{ type filter hook input priority 0; iifname \"eth0\" meta l4proto udp ip saddr != {other} drop; }}\n}}\n"
    );
    std::fs::write(&file, rules)?;
    host.run("nft").arg("-f").arg(&file).output().map(drop)
}

/// Sends packets one way and returns how many each relay passed on meanwhile.
fn one_way(from: &Host, to: &str, relays: [&Relay; 2]) -> Result<[u64; 2]> {
    let count = || -> Result<[u64; 2]> { Ok([relays[0].packets()?, relays[1].packets()?]) };
    let before = count()?;
    let script = format!("for n in $(seq {PACKETS}); do echo $n >/dev/udp/{to}/9999; sleep 0.01; done");
    from.run("bash").arg("-c").arg(script).output()?;
    let arrived = || count().ok().filter(|after| after[0] + after[1] >= before[0] + before[1] + PACKETS);
    let after = wait_for("the relays to pass the packets on", PATIENCE, arrived)?;
    Ok([after[0] - before[0], after[1] - before[1]])
}

/// Alpha is at home on relay one, beta on relay two, and no path is direct.
pub(super) fn homes(context: &Context) -> Result<()> {
    let lab = Lab::new("relays", &["server", "one", "two", "alpha", "beta"])?;
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let file = lab.dir().join("relays.hujson");
    std::fs::write(&file, POLICY)?;
    let one = Relay::start(context, &server, lab.host("one"))?;
    let mut two = Relay::start(context, &server, lab.host("two"))?;
    server.policy(&["set", &file.to_string_lossy()])?;
    only_udp_with(&lab.host("alpha"), &one.host)?;
    only_udp_with(&lab.host("beta"), &two.host)?;

    let invitation = server.invite(&["--reusable"])?;
    let (alpha, beta) =
        (Node::start(&context.warren, &lab.host("alpha"))?, Node::start(&context.warren, &lab.host("beta"))?);
    alpha.up(&invitation, &[])?;
    beta.up(&invitation, &[])?;
    for (node, relay) in [(&alpha, &one), (&beta, &two)] {
        let what = format!("{} to be at home on relay {}", node.host.name, relay.host.name);
        wait_for(&what, Duration::from_secs(60), || is_home(node, relay).then_some(()))?;
    }
    let ((alpha4, _), (beta4, _)) = (alpha.addresses()?, beta.addresses()?);
    let answered = || icmp(&alpha.host, &beta4, 1).ok();
    wait_for("a first ping over the relays", PATIENCE, answered)?;
    let (_in_alpha, _in_beta) = (alpha.host.bind("0.0.0.0:9999")?, beta.host.bind("0.0.0.0:9999")?);

    // A few packets go the other way, too: WireGuard's own keep-alives.
    let to_beta = one_way(&alpha.host, &beta4, [&one, &two])?;
    let to_alpha = one_way(&beta.host, &alpha4, [&one, &two])?;
    println!("  alpha to beta: relay one {}, relay two {}", to_beta[0], to_beta[1]);
    println!("  beta to alpha: relay one {}, relay two {}", to_alpha[0], to_alpha[1]);
    ensure!(to_beta[1] >= PACKETS && to_beta[0] < PACKETS / 10, "alpha to beta must go over relay two: {to_beta:?}");
    ensure!(to_alpha[0] >= PACKETS && to_alpha[1] < PACKETS / 10, "beta to alpha must go over relay one: {to_alpha:?}");

    // Beta's relay restarts while packets go to beta: those that hang on it are cut no longer than two seconds.
    let host = two.host.clone();
    let pinging = {
        let (from, to) = (alpha.host.clone(), beta4.clone());
        std::thread::spawn(move || from.run("ping").args("-q -i 0.05 -c 200 -W 1").arg(&to).output())
    };
    std::thread::sleep(Duration::from_secs(2));
    two.process.signal("TERM")?;
    let stopped = Instant::now();
    two.process.wait_end(PATIENCE)?;
    let drained = stopped.elapsed();
    two.process = spawn(context, &server, &host)?;
    // `ping` fails only if nothing came back at all.
    let report = pinging.join().map_err(|_| anyhow::anyhow!("the thread that pings panicked"))??;
    let lost = lost(&report).with_context(|| format!("no count in {report}"))?;
    println!("  restart of a relay: drained {} ms, {lost} of 200 pings lost at 50 ms each", drained.as_millis());
    ensure!(lost <= 40, "a restart of the relay cut beta off for {} ms", lost * 50);
    Ok(())
}

/// Tells whether a node is at home on a relay.
fn is_home(node: &Node, relay: &Relay) -> bool {
    node.status().is_ok_and(|status| status["Self"]["Relay"] == relay.host.name.as_str())
}

/// Reads how many packets got no answer.
fn lost(report: &str) -> Option<u64> {
    let line = report.lines().find(|line| line.contains("packets transmitted"))?;
    let mut numbers = line.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
    let (sent, back) = (numbers.next()?, numbers.next()?);
    sent.checked_sub(back)
}
