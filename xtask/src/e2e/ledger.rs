//! Flow logs: what both ends write down of a connection reaches the collector, and what somebody does to it is named.

use super::Context;
use crate::fleet::{GoClient, Node, PATIENCE, Server, address_of, fetch, icmp, transfer};
use crate::lab::{Lab, Process, wait_for};
use crate::packages;
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::path::PathBuf;

/// A server whose network wants flow logs, and the nodes alpha and beta, joined.
struct Pair {
    server: Server,
    alpha: Node,
    beta: Node,
    lab: Lab,
}

fn pair(context: &Context, title: &str) -> Result<Pair> {
    let lab = Lab::new(title, &["server", "alpha", "beta"])?;
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    server.admin(&["tailnet", "flow-log", "default", "on"])?;
    let invitation = server.invite(&["--reusable"])?;
    let alpha = Node::start(&context.warren, &lab.host("alpha"))?;
    let beta = Node::start(&context.warren, &lab.host("beta"))?;
    alpha.up(&invitation, &[])?;
    beta.up(&invitation, &[])?;
    Ok(Pair { server, alpha, beta, lab })
}

/// Returns the lines of `warren logs …`.
fn logs(server: &Server, words: &[&str]) -> Result<Vec<Value>> {
    let text = server.logs(&[words, &["--json"]].concat())?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))).collect()
}

fn text<'a>(line: &'a Value, name: &str) -> &'a str {
    line.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn number(line: &Value, name: &str) -> u64 {
    line.get(name).and_then(Value::as_u64).unwrap_or_default()
}

/// Waits until both ends' records of that kind with that destination port are there, and returns them: that of the end that
/// began it first.
fn both(server: &Server, kind: &str, port: u16) -> Result<[Value; 2]> {
    let port = port.to_string();
    let what = format!("both ends' {kind} for port {port}");
    wait_for(&what, PATIENCE, || {
        let lines = logs(server, &["query", "--kind", kind, "--port", &port]).ok()?;
        let of = |direction: &str| lines.iter().find(|line| text(line, "direction") == direction).cloned();
        Some([of("outbound")?, of("inbound")?])
    })
    .with_context(|| format!("all there is: {:?}", logs(server, &["query"])))
}

/// A TCP connection is written down by both ends while it lives and when it ends, a denied one by whom it was denied; after
/// a time without the server everything is there, and nothing that is not for logs.
pub(super) fn both_ends(context: &Context) -> Result<()> {
    let mut pair = pair(context, "ledger")?;
    let (beta4, _) = pair.beta.addresses()?;
    transfer(&pair.alpha.host, &pair.beta.host, &beta4, 3_000_000)?;
    let [from, to] = both(&pair.server, "start", 7001)?;
    ensure!(text(&from, "dst") == format!("{beta4}:7001") && text(&from, "dst") == text(&to, "src"), "{from} {to}");
    ensure!(
        text(&from, "nodeId") == text(&to, "peerId") && text(&to, "nodeId") == text(&from, "peerId"),
        "{from} {to}"
    );
    ensure!(to.get("rule").is_some(), "the rule that let it in is written down: {to}");
    let [from, to] = both(&pair.server, "end", 7001)?;
    ensure!(number(&from, "txBytes") >= 3_000_000, "{from}");
    ensure!(number(&to, "rxBytes") == number(&from, "txBytes"), "the ends count alike: {from} {to}");

    // What the policy refuses.
    let file = pair.lab.host("server").dir().join("policy.hujson");
    std::fs::write(&file, r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:7001"]}]}"#)?;
    pair.server.policy(&["set", &file.to_string_lossy()])?;
    wait_for("a refused connection to be written down", PATIENCE, || {
        let knock = pair.alpha.host.run("curl").args("-s --connect-timeout 0.5").arg(format!("http://{beta4}:7002/"));
        drop(knock.output());
        let lines = logs(&pair.server, &["query", "--denied", "--port", "7002"]).ok()?;
        lines.iter().any(|line| text(line, "reason") == "no-rule" && number(line, "pkts") > 0).then_some(())
    })
    .with_context(|| format!("all there is: {:?}", logs(&pair.server, &["query"])))?;

    // While the server is away, connections are kept; when it is back they are there.
    let before = logs(&pair.server, &["query", "--kind", "start", "--port", "7001"])?.len();
    pair.server.kill()?;
    for _ in 0..3 {
        transfer(&pair.alpha.host, &pair.beta.host, &beta4, 10_000)?;
    }
    // One of them is killed meanwhile, when what it had written down is on its disk.
    wait_spooled(&pair.beta)?;
    pair.beta.kill_and_restart()?;
    pair.server.restart()?;
    wait_for("what was written down without the server", PATIENCE, || {
        let lines = logs(&pair.server, &["query", "--kind", "start", "--port", "7001"]).ok()?;
        (lines.len() >= before + 6).then_some(())
    })
    .with_context(|| format!("all there is: {:?}", logs(&pair.server, &["query"])))?;
    let verified = pair.server.logs(&["verify"])?;
    ensure!(verified.starts_with("intact"), "{verified}");
    let findings = pair.server.logs(&["events"])?;
    ensure!(findings.contains("nothing is wrong"), "{findings}");
    no_canaries(&pair)
}

/// No name, no key and no content is in any output or file of the logs.
fn no_canaries(pair: &Pair) -> Result<()> {
    let host = pair.lab.host("server");
    let ledger = host.dir().join("server-state/ledger");
    let mut searched = vec![pair.server.logs(&["export"])?.into_bytes(), pair.server.logs(&["query"])?.into_bytes()];
    let mut folders = vec![ledger, pair.alpha.state_dir().join("flow-log"), pair.beta.state_dir().join("flow-log")];
    let mut secrets = Vec::new();
    for state in [pair.alpha.state_dir(), pair.beta.state_dir()] {
        let state: Value = serde_json::from_str(&std::fs::read_to_string(state.join("node.json"))?)?;
        for name in ["machine_key", "node_key"] {
            let key = text(&state, name).rsplit(':').next().unwrap_or_default().to_owned();
            ensure!(key.len() >= 64, "no {name} to look for");
            secrets.push(key);
        }
    }
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name != "key") {
                searched.push(std::fs::read(&path)?);
            }
        }
    }
    for secret in &secrets {
        let raw: Vec<u8> = (0..secret.len() / 2)
            .filter_map(|at| u8::from_str_radix(secret.get(2 * at..2 * at + 2)?, 16).ok())
            .collect();
        let has = |bytes: &[u8]| {
            bytes.windows(secret.len()).any(|part| part == secret.as_bytes())
                || bytes.windows(32).any(|part| part == raw)
        };
        ensure!(!searched.iter().any(|bytes| has(bytes)), "a secret key is in the logs");
    }
    Ok(())
}

/// What somebody does to the records on a node's disk is named by the collector.
pub(super) fn tampering(context: &Context) -> Result<()> {
    let mut pair = pair(context, "ledger-spool")?;
    let (beta4, _) = pair.beta.addresses()?;
    icmp(&pair.alpha.host, &beta4, 1)?;
    wait_for("the first records", PATIENCE, || (!logs(&pair.server, &["query"]).ok()?.is_empty()).then_some(()))?;
    pair.server.kill()?;
    transfer(&pair.alpha.host, &pair.beta.host, &beta4, 10_000)?;
    wait_spooled(&pair.alpha)?;
    pair.alpha.kill()?;
    let spool = spool(&pair.alpha)?;
    let mut bytes = std::fs::read(&spool)?;
    let last = bytes.last_mut().context("an empty spool")?;
    *last ^= 1;
    std::fs::write(&spool, bytes)?;
    pair.server.restart()?;
    pair.alpha.start_again()?;
    wait_for("the altered batch to be named", PATIENCE, || {
        let events = logs(&pair.server, &["events"]).ok()?;
        let is_named = |event: &&Value| text(event, "what") == "batch.altered" && text(event, "node_name") == "alpha";
        events.iter().find(is_named).map(drop)
    })
    .with_context(|| format!("found: {:?}", logs(&pair.server, &["events"])))
}

/// Waits until nothing more is written into a node's spool for a moment.
fn wait_spooled(node: &Node) -> Result<()> {
    wait_for("the records to be on the disk", PATIENCE, || {
        let written = std::fs::metadata(spool(node).ok()?).ok()?.modified().ok()?.elapsed().ok()?;
        // Without the server records are gathered for a second.
        (written.as_millis() > 1500).then_some(())
    })
}

/// Returns the newest file of a node's unsent records.
fn spool(node: &Node) -> Result<PathBuf> {
    let folder = std::fs::read_dir(node.state_dir().join("flow-log"))?.next().context("no flow log")??.path();
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("spool-")) {
            files.push(path);
        }
    }
    files.sort();
    files.pop().context("no spool")
}

/// With an official client at one end there is one entry, and nobody is accused.
pub(super) fn go_client(context: &Context) -> Result<()> {
    let caddy = packages::caddy()?;
    let lab = Lab::new("ledger-go", &["server", "alpha", "gopher"])?;
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    server.admin(&["tailnet", "flow-log", "default", "on"])?;
    let invitation = server.invite(&["--reusable"])?;
    let alpha = Node::start(&context.warren, &lab.host("alpha"))?;
    alpha.up(&invitation, &[])?;
    let _page = page(&alpha)?;
    let gopher = GoClient::start(&lab.host("gopher"), &caddy, &server.url, &invitation.key, "page of gopher", "alpha")?;
    gopher.wait_page("page of alpha")?;
    let address = address_of(&server, "gopher")?;
    wait_for("a page of the Go client", PATIENCE, || fetch(&alpha.host, &format!("http://{address}/")).ok())?;
    wait_for("alpha's entries", PATIENCE, || {
        let lines = logs(&server, &["query", "--with", "gopher", "--protocol", "tcp", "--kind", "end"]).ok()?;
        let of = |direction: &str| lines.iter().any(|line| text(line, "direction") == direction);
        (of("outbound") && of("inbound")).then_some(())
    })
    .with_context(|| format!("all there is: {:?}", logs(&server, &["query"])))?;
    // Longer than the collector waits for the other end.
    std::thread::sleep(std::time::Duration::from_secs(20));
    let findings = server.logs(&["events"])?;
    ensure!(findings.contains("nothing is wrong"), "{findings}");
    Ok(())
}

fn page(node: &Node) -> Result<Process> {
    let me = std::env::current_exe()?;
    let (address, _) = node.addresses()?;
    let mut page = node.host.spawn("page", &me, &["traffic", "http", &format!("{address}:80"), "page of alpha"])?;
    page.wait_log("listening", PATIENCE)?;
    Ok(page)
}
