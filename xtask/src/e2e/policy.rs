//! What a change of policy does, and how soon, to what is running.
//!
//! Times are printed and only bounded generously: they are for the reports, the effect is what is tested.

use super::Context;
use crate::fleet::{GoClient, address_of, last_lines};
use crate::fleet::{Node, PATIENCE, Server};
use crate::lab::{Host, Lab, Process, wait_for};
use crate::packages;
use crate::traffic::seconds;
use anyhow::{Context as _, Result, ensure};
use std::time::{Duration, UNIX_EPOCH};
use warren_wire::control::Time;

/// How long a change may take on a busy machine before it counts as without effect.
const LATEST: f64 = 5.0;
/// How long nothing must pass until it counts as stopped.
const QUIET: f64 = 2.0;

/// Something that goes on in a host, and prints the time whenever it gets through.
struct Probe {
    what: String,
    process: Process,
}

impl Probe {
    /// Knocks at `to` with one of the kinds of `xtask traffic knock`.
    fn knock(from: &Host, what: &str, kind: &str, to: &str) -> Result<Self> {
        let me = std::env::current_exe()?;
        let process = from.spawn(&format!("knock-{kind}"), &me, &["traffic", "knock", kind, to])?;
        Ok(Self { what: what.to_owned(), process })
    }

    /// Sends echo requests to `to`.
    fn ping(from: &Host, what: &str, to: &str) -> Result<Self> {
        let process = from.spawn("ping", "ping".as_ref(), &["-D", "-n", "-i", "0.05", to])?;
        Ok(Self { what: what.to_owned(), process })
    }

    /// Takes what comes to `listen`.
    fn sink(on: &Host, what: &str, listen: &str) -> Result<Self> {
        let me = std::env::current_exe()?;
        let mut process = on.spawn("sink", &me, &["traffic", "sink", listen])?;
        process.wait_log("listening", PATIENCE)?;
        Ok(Self { what: what.to_owned(), process })
    }

    /// Returns when something got through, in seconds since 1970.
    fn passed(&self) -> Vec<f64> {
        let log = self.process.log();
        let time = |line: &str| {
            let number = match line.strip_prefix('[') {
                // `ping -D` prints the time in brackets before each answer; only answers have "bytes from".
                Some(rest) if line.contains("bytes from") => rest.split(']').next()?,
                Some(_) => return None,
                None => line,
            };
            number.parse().ok()
        };
        log.lines().filter_map(time).collect()
    }

    /// Waits until something gets through after `since`; returns how long after.
    fn wait_open(&self, since: f64) -> Result<f64> {
        wait_for(&format!("{} to pass", self.what), PATIENCE, || {
            self.passed().into_iter().map(|at| at - since).find(|after| *after > 0.0)
        })
    }

    /// Waits until nothing has got through for a while; returns how long after `since` the last came, 0 if it was
    /// before.
    fn wait_shut(&self, since: f64) -> Result<f64> {
        wait_for(&format!("{} to stop", self.what), PATIENCE, || {
            let last = self.passed().last().copied().unwrap_or(0.0).max(since);
            (seconds() - last > QUIET).then_some(last - since)
        })
    }
}

/// Prints how long each took and demands that none took far too long.
fn judge(title: &str, took: &[(&str, f64)]) -> Result<()> {
    let list: Vec<String> = took.iter().map(|(what, after)| format!("{what} {after:.2} s")).collect();
    println!("        {title}: {}", list.join(", "));
    for (what, after) in took {
        ensure!(*after < LATEST, "{title}: {what} took {after:.1} s");
    }
    Ok(())
}

/// Puts a policy in force whose sections are `text`; returns when that was begun.
fn set(server: &Server, host: &Host, text: &str) -> Result<f64> {
    let file = host.dir().join("policy.hujson");
    std::fs::write(&file, format!("{{{text}}}"))?;
    let begin = seconds();
    server.policy(&["set", &file.to_string_lossy()])?;
    Ok(begin)
}

/// Returns an ACL rule by addresses.
fn accept(from: &str, to: &str) -> String {
    format!(r#"{{"action": "accept", "src": ["{from}"], "dst": ["{to}"]}}"#)
}

fn acls(rules: &[String]) -> String {
    format!(r#""acls": [{}]"#, rules.join(", "))
}

/// A server, our node alpha and a Go client on gopher, joined; alpha has a page on port 80 unless it is to stay free.
struct Mixed {
    server: Server,
    alpha: Node,
    gopher: GoClient,
    alpha_address: String,
    gopher_address: String,
    lab: Lab,
}

fn mixed(context: &Context, title: &str) -> Result<Mixed> {
    let caddy = packages::caddy()?;
    let lab = Lab::new(title, &["server", "alpha", "gopher"])?;
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let invitation = server.invite(&["--reusable"])?;
    let alpha = Node::start(&context.warren, &lab.host("alpha"))?;
    alpha.up(&invitation, &[])?;
    let (alpha_address, _) = alpha.addresses()?;
    let gopher = GoClient::start(&lab.host("gopher"), &caddy, &server.url, &invitation.key, "page", &alpha_address)?;
    let gopher_address = address_of(&server, "gopher")?;
    Ok(Mixed { server, alpha, gopher, alpha_address, gopher_address, lab })
}

/// Allowed, denied, allowed again, over TCP, UDP and ICMP to a Go client, and over TCP from it. What a Go client within
/// Caddy cannot do is to send UDP or pings of its own.
pub(super) fn go_client(context: &Context) -> Result<()> {
    let Mixed { server, alpha, gopher, alpha_address, gopher_address, lab } = &mixed(context, "policy-go")?;
    let me = std::env::current_exe()?;
    let page = format!("{alpha_address}:80");
    let mut page = alpha.host.spawn("page", &me, &["traffic", "http", &page, "page"])?;
    page.wait_log("listening", PATIENCE)?;
    let to = |port: u16| format!("{gopher_address}:{port}");
    let probes = [
        Probe::knock(&alpha.host, "TCP to it", "http", &to(80))?,
        Probe::knock(&alpha.host, "UDP to it", "quic", &to(443))?,
        Probe::ping(&alpha.host, "ICMP to it", gopher_address)?,
        Probe::knock(&lab.host("gopher"), "TCP from it", "http", "127.0.0.1:8000")?,
    ];
    // The nodes see each other under every policy: what changes is the filters.
    let (visible, open) = (
        accept(gopher_address, &format!("{alpha_address}:9")),
        [
            accept(gopher_address, &format!("{alpha_address}:9,80")),
            accept(alpha_address, &format!("{gopher_address}:*")),
        ],
    );
    let all = |title: &str, wait: &dyn Fn(&Probe) -> Result<f64>| -> Result<()> {
        let took: Result<Vec<_>> = probes.iter().map(|probe| Ok((probe.what.as_str(), wait(probe)?))).collect();
        let took = took.with_context(|| format!("{title}; the Go client's log ends with:\n{}", gopher.log_end()))?;
        judge(title, &took).with_context(|| {
            let logs = [gopher.log_end(), last_lines(&alpha.process().log())];
            format!("the Go client's log ends with:\n{}\nalpha's log ends with:\n{}", logs[0], logs[1])
        })
    };
    let begin = set(server, &alpha.host, &acls(&open))?;
    for probe in &probes {
        probe.wait_open(begin).with_context(|| format!("the Go client's log ends with:\n{}", gopher.log_end()))?;
    }
    for round in 1..=2 {
        let begin = set(server, &alpha.host, &acls(std::slice::from_ref(&visible)))?;
        all(&format!("round {round}, denied"), &|probe| probe.wait_shut(begin))?;
        let begin = set(server, &alpha.host, &acls(&open))?;
        all(&format!("round {round}, allowed"), &|probe| probe.wait_open(begin))?;
    }
    // Neither sees the other any more, and then again.
    let begin = set(server, &alpha.host, &acls(&[]))?;
    all("invisible", &|probe| probe.wait_shut(begin))?;
    let begin = set(server, &alpha.host, &acls(&open))?;
    all("visible", &|probe| probe.wait_open(begin))
}

/// A transfer from a Go client into our node stops when its rule is removed, though the Go client would go on.
pub(super) fn go_transfer(context: &Context) -> Result<()> {
    let Mixed { server, alpha, alpha_address, gopher_address, lab, .. } = &mixed(context, "policy-go-transfer")?;
    let visible = accept(alpha_address, &format!("{gopher_address}:9"));
    let open = accept(gopher_address, &format!("{alpha_address}:80"));
    let begin = set(server, &alpha.host, &acls(&[visible.clone(), open]))?;
    let sink = Probe::sink(&alpha.host, "the transfer", &format!("{alpha_address}:80"))?;
    let zeros = ["-sS", "-T", "/dev/zero", "http://127.0.0.1:8000/"];
    let _sender = wait_for("the Go client to send", PATIENCE, || {
        let sender = lab.host("gopher").spawn("curl", "curl".as_ref(), &zeros).ok()?;
        let since = seconds();
        let flows =
            wait_for("bytes", Duration::from_secs(3), || sink.passed().iter().any(|at| *at > since).then_some(()));
        flows.is_ok().then_some(sender)
    })?;
    sink.wait_open(begin)?;
    let begin = set(server, &alpha.host, &acls(&[visible]))?;
    judge("a Go client's transfer", &[("rule removed", sink.wait_shut(begin)?)])
}

/// A server and the nodes alpha and beta, joined, and a sink on beta for transfers from alpha.
struct Pair {
    server: Server,
    alpha: Node,
    beta: Node,
    sink: Probe,
    /// Rules that let beta reach a port of alpha that nothing is on, so that both see each other, and alpha the sink.
    visible: String,
    open: String,
    // Last, so that the processes end before their namespaces do.
    _lab: Lab,
}

impl Pair {
    fn new(context: &Context, title: &str, clock_of_beta: &str) -> Result<Self> {
        let lab = Lab::new(title, &["server", "alpha", "beta"])?;
        let server = Server::start(&context.warren, &lab.host("server"), &[])?;
        let invitation = server.invite(&["--reusable"])?;
        let alpha = Node::start(&context.warren, &lab.host("alpha"))?;
        let beta = Node::start_with_clock(&context.warren, &lab.host("beta"), clock_of_beta)?;
        alpha.up(&invitation, &[])?;
        beta.up(&invitation, &[])?;
        let (from, to) = (alpha.addresses()?.0, beta.addresses()?.0);
        let sink = Probe::sink(&beta.host, "the transfer", &format!("{to}:{SINK}"))?;
        let visible = accept(&to, &format!("{from}:9"));
        let open = accept(&from, &format!("{to}:{SINK}"));
        Ok(Self { server, alpha, beta, sink, visible, open, _lab: lab })
    }

    /// Puts a policy in force; returns when that was begun.
    fn set(&self, policy: &str) -> Result<f64> {
        set(&self.server, &self.beta.host, policy)
    }

    /// Puts a policy in force that allows a transfer, and begins it.
    fn begin(&self, policy: &str) -> Result<Process> {
        self.set(policy)?;
        let me = std::env::current_exe()?;
        let to = format!("{}:{SINK}", self.beta.addresses()?.0);
        let sender = wait_for("a transfer", PATIENCE, || {
            let since = seconds();
            let sender = self.alpha.host.spawn("send", &me, &["traffic", "send", &to, "1000000000000"]).ok()?;
            let flows = wait_for("bytes", Duration::from_secs(3), || {
                self.sink.passed().iter().any(|at| *at > since).then_some(())
            });
            flows.is_ok().then_some(sender)
        })?;
        self.sink.wait_open(seconds())?;
        Ok(sender)
    }
}

/// Port of the sink.
const SINK: u16 = 7001;

/// A transfer from node to node stops when its rule is removed, though both still see each other, and when the sender's
/// key is revoked.
pub(super) fn transfers(context: &Context) -> Result<()> {
    let pair = Pair::new(context, "policy-transfers", "")?;
    let open = acls(&[pair.visible.clone(), pair.open.clone()]);
    let sender = pair.begin(&open)?;
    let at = pair.set(&acls(std::slice::from_ref(&pair.visible)))?;
    judge("a transfer", &[("rule removed", pair.sink.wait_shut(at)?)])?;
    drop(sender);
    let _sender = pair.begin(&open)?;
    let at = seconds();
    pair.server.admin(&["node", "expire", "alpha"])?;
    judge("a transfer", &[("key revoked", pair.sink.wait_shut(at)?)])
}

/// A transfer from node to node stops when the time of its rule is over; just as well when the server is away, and the
/// receiver's clock is an hour wrong.
pub(super) fn by_time(context: &Context) -> Result<()> {
    for (case, clock) in [("time over", ""), ("time over, the server away, the clock wrong", "+1h")] {
        let mut pair = Pair::new(context, "policy-time", clock)?;
        let until = seconds().ceil() + 10.0;
        let grant = grant(&pair.alpha.addresses()?.0, &pair.beta.addresses()?.0, until);
        let _sender = pair.begin(&format!("{}, {grant}", acls(std::slice::from_ref(&pair.visible))))?;
        if !clock.is_empty() {
            pair.server.kill()?;
        }
        wait_for("the time to be over", PATIENCE, || (seconds() > until).then_some(()))?;
        let after = pair.sink.wait_shut(until)?;
        let last = pair.sink.passed().last().copied().unwrap_or_default();
        ensure!(last > until - 1.5, "the transfer stopped {:.1} s before its time was over", until - last);
        judge("a transfer", &[(case, after)])?;
    }
    Ok(())
}

/// Returns a section with a grant by addresses for the sink's port that ends at `until`, in whole seconds since 1970.
fn grant(from: &str, to: &str, until: f64) -> String {
    let until = Time::from(UNIX_EPOCH + Duration::from_secs_f64(until));
    format!(r#""grants": [{{"src": ["{from}"], "dst": ["{to}"], "ip": ["tcp:{SINK}"], "until": "{until}"}}]"#)
}
