//! The official Go client, as Caddy with its plugin.

use super::Context;
use crate::fleet::{Node, PATIENCE, Server, icmp};
use crate::lab::{Host, Lab, Process, wait_for};
use crate::packages;
use anyhow::{Context as _, Result, ensure};
use std::path::Path;

/// One Go client on a host: serves a page on its tailnet address and proxies 127.0.0.1:8000 into the tailnet.
pub(super) struct GoClient {
    host: Host,
    process: Process,
}

impl GoClient {
    /// Starts it as node `name`: port 80 on the tailnet answers `page`, local port 8000 goes to `http://<target>`.
    ///
    /// Over UDP, port 443 speaks HTTP/3.
    pub(super) fn start(
        host: &Host,
        caddy: &Path,
        server: &Server,
        key: &str,
        page: &str,
        target: &str,
    ) -> Result<Self> {
        let name = &host.name;
        let url = &server.url;
        let text = format!(
            "{{\n admin off\n debug\n auto_https off\n tailscale {{\n  auth_key {key}\n  control_url {url}\n  state_dir ./{name}-go-state\n }}\n}}\n\
             http://:80 {{\n bind tailscale/{name}\n respond \"{page}\"\n}}\n\
             https://{name}.test:443 {{\n bind tailscale/{name}\n tls internal\n respond \"{page}\"\n}}\n\
             http://127.0.0.1:8000 {{\n bind 127.0.0.1\n reverse_proxy http://{target} {{\n  transport tailscale {name}\n }}\n}}\n"
        );
        let file = host.dir().join(format!("{name}.Caddyfile"));
        std::fs::write(&file, text)?;
        // Of its own: Caddy makes a certificate authority there.
        let home = host.dir().join(format!("{name}-home")).to_string_lossy().into_owned();
        let config = file.to_string_lossy().into_owned();
        let process = host.spawn_env(
            "caddy",
            caddy,
            &["run", "--adapter", "caddyfile", "--config", &config],
            &[
                ("TS_NO_LOGS_NO_SUPPORT", "true"),
                ("TS_LOGS_DIR", &home),
                ("HOME", &home),
                ("XDG_DATA_HOME", &home),
                ("XDG_CONFIG_HOME", &home),
                ("TS_PANIC_IF_HIT_MAIN_CONTROL", "1"),
            ],
        )?;
        Ok(Self { host: host.clone(), process })
    }

    /// Fetches its local port 8000, which goes through the tailnet to the target, until `page` comes back.
    pub(super) fn wait_page(&self, page: &str) -> Result<()> {
        let what = format!("the page through the Go client on {}", self.host.name);
        wait_for(&what, PATIENCE * 2, || {
            let text = fetch(&self.host, "http://127.0.0.1:8000/").ok()?;
            (text == page).then_some(())
        })
        .with_context(|| format!("its log ends with:\n{}", last_lines(&self.process.log())))
    }

    /// Returns the end of its log.
    pub(super) fn log_end(&self) -> String {
        last_lines(&self.process.log())
    }

    /// Goes on fetching `page` until the log says that packets go directly to the address of `peer` on the switch.
    fn wait_direct(&self, page: &str, peer: &Host) -> Result<()> {
        let sign = format!("{DIRECT}{}:", peer.address);
        wait_for(&format!("a direct path from {} to {}", self.host.name, peer.name), PATIENCE, || {
            self.wait_page(page).ok()?;
            self.process.log().contains(&sign).then_some(())
        })
        .with_context(|| format!("its log ends with:\n{}", last_lines(&self.process.log())))
    }
}

/// What the Go client logs before the address when packets to a peer begin to go directly.
const DIRECT: &str = " now using ";

fn fetch(host: &Host, url: &str) -> Result<String> {
    host.run("curl").args("-sS -g --fail --max-time 5").arg(url).output()
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n")
}

/// Returns the IPv4 address of the node with this host name, as the server lists it.
pub(super) fn address_of(server: &Server, name: &str) -> Result<String> {
    wait_for(&format!("{name} to be registered"), PATIENCE * 2, || {
        let list = server.admin(&["--json", "node", "list"]).ok()?;
        let nodes: serde_json::Value = serde_json::from_str(&list).ok()?;
        let node = nodes.as_array()?.iter().find(|node| {
            node.get("name")
                .and_then(serde_json::Value::as_str)
                .is_some_and(|full| full.split('.').next() == Some(name))
        })?;
        node.get("addresses")?.as_array()?.first()?.as_str().map(str::to_owned)
    })
}

/// Starts two Go clients that fetch from each other.
fn two(context: &Context, title: &str, udp: bool) -> Result<()> {
    let caddy = packages::caddy()?;
    let lab = Lab::new(title, &["server", "alpha", "beta"])?;
    if !udp {
        lab.host("alpha").block_udp(true)?;
        lab.host("beta").block_udp(true)?;
    }
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let key = server.invite(&["--reusable"])?.key;
    let alpha = GoClient::start(&lab.host("alpha"), &caddy, &server, &key, "page of alpha", "beta")?;
    let beta = GoClient::start(&lab.host("beta"), &caddy, &server, &key, "page of beta", "alpha")?;
    alpha.wait_page("page of beta")?;
    beta.wait_page("page of alpha")?;
    if udp {
        alpha.wait_direct("page of beta", &beta.host)?;
        return beta.wait_direct("page of alpha", &alpha.host);
    }
    ensure!(!alpha.process.log().contains(DIRECT), "a direct path without UDP");
    Ok(())
}

/// Two Go clients fetch pages from each other by MagicDNS name.
pub(super) fn two_direct(context: &Context) -> Result<()> {
    two(context, "go-direct", true)
}

/// The same with all UDP dropped.
pub(super) fn two_relayed(context: &Context) -> Result<()> {
    two(context, "go-relayed", false)
}

/// A Go client on gopher and our node on alpha, joined, pages on both sides.
struct Mixed {
    server: Server,
    gopher: GoClient,
    alpha: Node,
    gopher_address: String,
    _page: Process,
    _lab: Lab,
}

fn mixed(context: &Context, title: &str, udp: bool) -> Result<Mixed> {
    let caddy = packages::caddy()?;
    let lab = Lab::new(title, &["server", "alpha", "gopher"])?;
    if !udp {
        lab.host("gopher").block_udp(true)?;
    }
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let invitation = server.invite(&["--reusable"])?;
    let alpha = Node::start(&context.warren, &lab.host("alpha"))?;
    alpha.up(&invitation, &[])?;
    let (alpha4, _) = alpha.addresses()?;
    let me = std::env::current_exe()?;
    let mut page = alpha.host.spawn("page", &me, &["traffic", "http", &format!("{alpha4}:80"), "page of alpha"])?;
    page.wait_log("listening", PATIENCE)?;
    let target = alpha4.clone();
    let gopher = GoClient::start(&lab.host("gopher"), &caddy, &server, &invitation.key, "page of gopher", &target)?;
    let gopher_address = address_of(&server, "gopher")?;
    let mixed = Mixed { server, gopher, alpha, gopher_address, _page: page, _lab: lab };
    mixed.both_ways()?;
    Ok(mixed)
}

impl Mixed {
    /// Our node fetches from the Go client, and the Go client proxies to a server behind our node.
    fn both_ways(&self) -> Result<()> {
        let url = format!("http://{}/", self.gopher_address);
        wait_for("the Go client's page on our node", PATIENCE * 2, || {
            (fetch(&self.alpha.host, &url).ok()? == "page of gopher").then_some(())
        })
        .with_context(|| format!("our node's log ends with:\n{}", last_lines(&self.alpha.process().log())))?;
        self.gopher.wait_page("page of alpha")
    }
}

/// Pages both ways over a direct path.
pub(super) fn with_node_direct(context: &Context) -> Result<()> {
    let mixed = mixed(context, "go-node-direct", true)?;
    mixed.alpha.wait_direct("gopher")?;
    mixed.both_ways()
}

/// Pages both ways with the Go client's UDP dropped.
pub(super) fn with_node_relayed(context: &Context) -> Result<()> {
    let mixed = mixed(context, "go-node-relayed", false)?;
    ensure!(mixed.alpha.direct_path("gopher")?.is_none(), "a direct path without UDP");
    icmp(&mixed.alpha.host, &mixed.gopher_address, 2).map(drop)
}

/// SIGKILL of the server: pages go on, and both clients are back after the restart.
pub(super) fn killed_server(context: &Context) -> Result<()> {
    let mut mixed = mixed(context, "go-killed-server", true)?;
    mixed.alpha.wait_direct("gopher")?;
    let host = mixed.alpha.host.clone();
    let to = mixed.gopher_address.clone();
    let echo = std::thread::spawn(move || host.run("ping").args("-n -q -i 0.05 -c 160").arg(&to).output());
    mixed.server.kill_and_restart()?;
    let text = echo.join().map_err(|_| anyhow::anyhow!("the pinging thread failed"))??;
    ensure!(text.contains(" 0% packet loss"), "echoes were lost while the server was away: {text}");
    wait_for("both nodes to be online again", PATIENCE * 3, || {
        let list = mixed.server.admin(&["--json", "node", "list"]).ok()?;
        let nodes: serde_json::Value = serde_json::from_str(&list).ok()?;
        let nodes = nodes.as_array()?;
        let online = nodes.iter().filter(|node| node.get("online").and_then(serde_json::Value::as_bool) == Some(true));
        (nodes.len() == 2 && online.count() == 2).then_some(())
    })?;
    mixed.both_ways()
}
