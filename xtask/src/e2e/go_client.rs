//! The official Go client, as Caddy with its plugin.

use super::Context;
use crate::fleet::{GoClient, Node, PATIENCE, Server, address_of, fetch, icmp, last_lines};
use crate::lab::{Lab, Process, wait_for};
use crate::packages;
use anyhow::{Context as _, Result, ensure};

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
    let alpha = GoClient::start(&lab.host("alpha"), &caddy, &server.url, &key, "page of alpha", "beta")?;
    let beta = GoClient::start(&lab.host("beta"), &caddy, &server.url, &key, "page of beta", "alpha")?;
    alpha.wait_page("page of beta")?;
    beta.wait_page("page of alpha")?;
    if udp {
        alpha.wait_direct("page of beta", &beta.host)?;
        return beta.wait_direct("page of alpha", &alpha.host);
    }
    ensure!(!alpha.has_been_direct(), "a direct path without UDP");
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
    let gopher = GoClient::start(&lab.host("gopher"), &caddy, &server.url, &invitation.key, "page of gopher", &target)?;
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
    mixed.gopher.wait_direct("page of alpha", &mixed.alpha.host)?;
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
