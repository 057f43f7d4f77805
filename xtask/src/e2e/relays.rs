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
pub(crate) const POLICY: &str = r#"{
    "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
    "derpMap": {"Regions": {"900": null}},
}"#;

/// A relay on a machine of its own.
pub(crate) struct Relay {
    /// Where it runs.
    pub(crate) host: Host,
    process: Process,
}

impl Relay {
    /// Starts a relay and types its line on the server.
    pub(crate) fn start(context: &Context, server: &Server, host: Host) -> Result<Self> {
        Self::start_in(context, server, host, &[])
    }

    /// The same, with more words in the line.
    fn start_in(context: &Context, server: &Server, host: Host, more: &[&str]) -> Result<Self> {
        let process = spawn(context, server, &host, &[])?;
        let relay = Self { host, process };
        let line = relay.line()?;
        let words: Vec<&str> = line.split_whitespace().skip(2).chain(more.iter().copied()).collect();
        server.admin(&words)?;
        Ok(relay)
    }

    /// Returns the line for the server that it printed.
    fn line(&self) -> Result<String> {
        let log = self.process.log();
        let line = log.lines().find(|line| line.contains("warren admin relay add")).context("the relay's line")?;
        Ok(line.to_owned())
    }

    /// Returns its address and the hash of its certificate, as another relay of the region wants them.
    fn address(&self) -> Result<String> {
        let line = self.line()?;
        let pin = line.split_whitespace().skip_while(|word| *word != "--pin").nth(1).context("no pin")?;
        Ok(format!("{}:8443={pin}", self.host.address))
    }

    /// Stops it and starts it with more arguments.
    fn restart_with(&mut self, context: &Context, server: &Server, more: &[&str]) -> Result<()> {
        self.process.signal("TERM")?;
        self.process.wait_end(PATIENCE)?;
        self.process = spawn(context, server, &self.host, more)?;
        Ok(())
    }

    /// Returns how many packets that are no disco it has passed on.
    fn packets(&self) -> Result<u64> {
        self.count("packets_total{kind=\"other\"}")
    }

    /// Returns one of its counts.
    fn count(&self, name: &str) -> Result<u64> {
        let text = self.host.run("curl").args("-s").arg(format!("http://{METRICS}/metrics")).output()?;
        let line = text.lines().find_map(|line| line.strip_prefix("warren_relay_")?.strip_prefix(name));
        line.with_context(|| format!("no count {name}"))?.trim().parse().context("the count is no number")
    }
}

fn spawn(context: &Context, server: &Server, host: &Host, more: &[&str]) -> Result<Process> {
    let state = host.dir().join(format!("{}-state", host.name)).to_string_lossy().into_owned();
    let listen = format!("{}:8443", host.address);
    let own = [
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
    let words: Vec<&str> = own.into_iter().chain(more.iter().copied()).collect();
    let mut process = host.spawn("relay", &context.warren, &words)?;
    process.wait_log("warren admin relay add", PATIENCE)?;
    Ok(process)
}

/// Lets UDP of a machine pass to and from some others alone.
pub(crate) fn only_udp_with(host: &Host, others: &[&Host]) -> Result<()> {
    let file = host.dir().join(format!("{}-udp.nft", host.name));
    let others: Vec<&str> = others.iter().map(|other| other.address.as_str()).collect();
    let other = format!("{{ {} }}", others.join(", "));
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
    only_udp_with(&lab.host("alpha"), &[&one.host])?;
    only_udp_with(&lab.host("beta"), &[&two.host])?;

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
    let pinging = Pinging::start(&alpha.host, &beta4, "-i 0.05 -c 200");
    let before = two.packets()?;
    wait_for("pings to pass the relay", PATIENCE, || two.packets().ok().filter(|packets| *packets >= before + 20))?;
    two.process.signal("TERM")?;
    let stopped = Instant::now();
    two.process.wait_end(PATIENCE)?;
    let drained = stopped.elapsed();
    two.process = spawn(context, &server, &host, &[])?;
    let lost = pinging.lost()?;
    println!("  restart of a relay: drained {} ms, {lost} of 200 pings lost at 50 ms each", drained.as_millis());
    ensure!(lost <= 40, "a restart of the relay cut beta off for {} ms", lost * 50);
    Ok(())
}

/// Takes the server's own relay and one other away.
fn without(region: u16) -> String {
    format!(
        r#"{{"acls": [{{"action": "accept", "src": ["*"], "dst": ["*:*"]}}],
        "derpMap": {{"Regions": {{"900": null, "{region}": null}}}}}}"#
    )
}

/// The home of both nodes moves three times while they talk over it: because it is taken from them, because another is,
/// and because the operator removes it. Nothing is lost.
pub(super) fn moves(context: &Context) -> Result<()> {
    let lab = Lab::new("moves", &["server", "one", "two", "alpha", "beta"])?;
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let one = Relay::start(context, &server, lab.host("one"))?;
    let two = Relay::start(context, &server, lab.host("two"))?;
    let policy = |text: &str| -> Result<()> {
        let file = lab.dir().join("policy.hujson");
        std::fs::write(&file, text)?;
        server.policy(&["set", &file.to_string_lossy()]).map(drop)
    };
    policy(&without(902))?;
    for name in ["alpha", "beta"] {
        only_udp_with(&lab.host(name), &[&one.host, &two.host])?;
    }
    let invitation = server.invite(&["--reusable"])?;
    let nodes = [Node::start(&context.warren, &lab.host("alpha"))?, Node::start(&context.warren, &lab.host("beta"))?];
    let all_home = |relay: &Relay| -> Result<()> {
        let at_home = || nodes.iter().all(|node| is_home(node, relay)).then_some(());
        wait_for(&format!("both to be at home on relay {}", relay.host.name), PATIENCE, at_home)
    };
    for node in &nodes {
        node.up(&invitation, &[])?;
    }
    all_home(&one)?;
    let (alpha, beta4) = (&nodes[0].host, nodes[1].addresses()?.0);
    wait_for("a first ping over the relay", PATIENCE, || icmp(alpha, &beta4, 1).ok())?;

    let pinging = Pinging::start(alpha, &beta4, "-i 0.02 -c 1500");
    let before = two.packets()?;
    policy(&without(901))?;
    all_home(&two)?;
    wait_for("the pings to go over relay two", PATIENCE, || {
        two.packets().ok().filter(|packets| *packets > before + 200)
    })?;
    policy(&without(902))?;
    all_home(&one)?;
    policy(POLICY)?;
    let before = one.packets()?;
    wait_for("the pings to go over relay one", PATIENCE, || {
        one.packets().ok().filter(|packets| *packets > before + 100)
    })?;
    server.admin(&["relay", "remove", "one"])?;
    all_home(&two)?;
    let lost = pinging.lost()?;
    println!("  three moves of both homes: {lost} of 1500 pings lost at 20 ms each");
    ensure!(lost == 0, "moves of the home lost {lost} pings");
    Ok(())
}

/// Two relays make one region; alpha is on the one, beta reaches only the other. They talk, and when beta's relay is
/// gone, beta goes to the one that is left.
pub(super) fn mesh(context: &Context) -> Result<()> {
    let lab = Lab::new("mesh", &["server", "one", "two", "alpha", "beta"])?;
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let mut one = Relay::start(context, &server, lab.host("one"))?;
    let mut two = Relay::start_in(context, &server, lab.host("two"), &["--region", "901"])?;
    let (policy, key) = (lab.dir().join("relays.hujson"), lab.dir().join("mesh-key"));
    std::fs::write(&policy, POLICY)?;
    std::fs::write(&key, "0123456789abcdef".repeat(4))?;
    let key = key.to_string_lossy().into_owned();
    lab.host("one").run("chmod").args("600").arg(&key).output()?;
    let (at_one, at_two) = (one.address()?, two.address()?);
    one.restart_with(context, &server, &["--mesh-key", &key, "--mesh-with", &at_two])?;
    two.restart_with(context, &server, &["--mesh-key", &key, "--mesh-with", &at_one, "--mesh-with", &at_two])?;
    server.policy(&["set", &policy.to_string_lossy()])?;
    for (relay, what) in [(&one, "relay one to know relay two"), (&two, "relay two to know relay one")] {
        wait_for(what, PATIENCE, || relay.count("mesh_links").ok().filter(|links| *links == 1))?;
    }

    let (alpha, beta) = (lab.host("alpha"), lab.host("beta"));
    only_udp_with(&alpha, &[&one.host, &two.host])?;
    only_udp_with(&beta, &[&one.host, &two.host])?;
    let rule = format!("add rule inet relay out ip daddr {} tcp dport 8443 reject with tcp reset", one.host.address);
    for line in ["add table inet relay", "add chain inet relay out { type filter hook output priority 0; }", &rule] {
        beta.run("nft").arg(line).output()?;
    }
    let invitation = server.invite(&["--reusable"])?;
    let (alpha, beta) = (Node::start(&context.warren, &alpha)?, Node::start(&context.warren, &beta)?);
    for node in [&alpha, &beta] {
        node.up(&invitation, &[])?;
        let what = format!("{} to be at home in the region", node.host.name);
        wait_for(&what, PATIENCE, || is_home(node, &one).then_some(()))?;
    }
    let beta4 = beta.addresses()?.0;
    wait_for("a first ping over both relays", PATIENCE, || icmp(&alpha.host, &beta4, 1).ok())?;
    let lost = Pinging::start(&alpha.host, &beta4, "-i 0.02 -c 200").lost()?;
    let forwarded = [one.count("forwarded_total")?, two.count("forwarded_total")?];
    println!("  over two relays of a region: {lost} of 200 pings lost, forwarded {forwarded:?}");
    ensure!(lost == 0 && forwarded.iter().all(|count| *count >= 200), "the pings did not all go over both relays");

    beta.host.run("nft").args("delete table inet relay").output()?;
    two.process.signal("TERM")?;
    two.process.wait_end(PATIENCE)?;
    let since = Instant::now();
    wait_for("beta to come back over the relay that is left", PATIENCE, || icmp(&alpha.host, &beta4, 1).ok())?;
    println!("  its relay stopped: beta is back over the other one within {} ms", since.elapsed().as_millis());
    Ok(())
}

/// Pings that run meanwhile.
struct Pinging(std::thread::JoinHandle<Result<String>>);

impl Pinging {
    fn start(from: &Host, to: &str, options: &'static str) -> Self {
        let (from, to) = (from.clone(), to.to_owned());
        Self(std::thread::spawn(move || from.run("ping").args(options).args("-q -W 1").arg(&to).output()))
    }

    /// Waits for the last and returns how many got no answer.
    fn lost(self) -> Result<u64> {
        // `ping` fails only if nothing came back at all.
        let report = self.0.join().map_err(|_| anyhow::anyhow!("the thread that pings panicked"))??;
        lost(&report).with_context(|| format!("no count in {report}"))
    }
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
