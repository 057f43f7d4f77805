//! A node that relays for two others, which find no direct path.

use super::Context;
use crate::fleet::{GoClient, Node, PATIENCE, Server, address_of, fetch, icmp, last_lines, transfer};
use crate::lab::{Host, Lab, Nat, wait_for};
use crate::packages;
use anyhow::{Context as _, Result, ensure};

/// The port on which gamma relays.
const PORT: &str = "40000";

/// Lets everything pass, and everybody use gamma as a relay.
fn policy(gamma: &str) -> String {
    format!(
        r#"{{
    "acls": [{{"action": "accept", "src": ["*"], "dst": ["*:*"]}}],
    "grants": [{{"src": ["*"], "dst": ["{gamma}"], "app": {{"tailscale.com/cap/relay": []}}}}],
}}"#
    )
}

/// Starts gamma and makes it a peer relay that all may use; returns it and the start of its endpoints' names.
fn gamma(context: &Context, lab: &Lab, server: &Server) -> Result<(Node, String)> {
    let gamma = Node::start(&context.warren, &lab.host("gamma"))?;
    gamma.up(&server.invite(&["--reusable"])?, &[])?;
    gamma.cli(&["set", "--relay-server-port", PORT])?;
    let file = lab.dir().join("peer-relay.hujson");
    std::fs::write(&file, policy(&gamma.addresses()?.0))?;
    server.policy(&["set", &file.to_string_lossy()])?;
    let name = format!("{}:{PORT}:vni:", gamma.host.address);
    Ok((gamma, name))
}

/// Waits until packets from `node` to `peer` go over the peer relay; traffic goes to `to` meanwhile.
fn wait_peer_relay(node: &Node, peer: &str, to: &str, relay: &str) -> Result<()> {
    wait_for(&format!("a path from {} to {peer} over the peer relay", node.host.name), PATIENCE * 2, || {
        drop(icmp(&node.host, to, 1));
        node.peer_field(peer, "PeerRelay").filter(|path| path.starts_with(relay)).map(drop)
    })
    .with_context(|| {
        let log = last_lines(&node.process().log());
        format!("{:?}; its log ends with:\n{log}", node.peer_field(peer, "PathReason"))
    })
}

/// Joins a node on each host; returns them with their IPv4 addresses.
fn join(context: &Context, hosts: [Host; 2], server: &Server) -> Result<[(Node, String); 2]> {
    let invitation = server.invite(&["--reusable"])?;
    let one = |host: &Host| -> Result<(Node, String)> {
        let node = Node::start(&context.warren, host)?;
        node.up(&invitation, &[])?;
        let address = node.addresses()?.0;
        Ok((node, address))
    };
    let [alpha, beta] = hosts;
    Ok([one(&alpha)?, one(&beta)?])
}

/// Two nodes behind hard NATs: packets go over the third; when it relays no more, over the relay; and back.
pub(super) fn nodes(context: &Context) -> Result<()> {
    let mut lab = Lab::new("peer-relay", &["server", "gamma", "ra", "rb"])?;
    let (ra, rb) = (lab.host("ra"), lab.host("rb"));
    let hosts = [lab.add_behind(&ra, Nat::Hard, "alpha")?, lab.add_behind(&rb, Nat::Hard, "beta")?];
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let (gamma, relay) = gamma(context, &lab, &server)?;
    let [(alpha, alpha4), (beta, beta4)] = join(context, hosts, &server)?;
    wait_peer_relay(&alpha, "beta", &beta4, &relay)?;
    wait_peer_relay(&beta, "alpha", &alpha4, &relay)?;
    let pong = alpha.cli(&["ping", "beta", "--count", "1"])?;
    ensure!(pong.contains(&format!("peer-relay {relay}")), "the ping says {pong:?}");
    let status = alpha.cli(&["status"])?;
    ensure!(status.contains(&format!("active; peer-relay {relay}")), "the status says {status:?}");
    println!("  {}", pong.trim());
    println!("  {}", transfer(&alpha.host, &beta.host, &beta4, 50_000_000)?);
    ensure!(alpha.direct_path("beta")?.is_none(), "a direct path through two hard NATs");

    // Without its relay they go on, over the other; with it again, over it.
    gamma.cli(&["set", "--relay-server-port", ""])?;
    wait_for("the peer relay to be left", PATIENCE * 2, || {
        drop(icmp(&alpha.host, &beta4, 1));
        alpha.peer_field("beta", "PeerRelay").is_none().then_some(())
    })?;
    icmp(&alpha.host, &beta4, 3)?;
    gamma.cli(&["set", "--relay-server-port", PORT])?;
    wait_peer_relay(&alpha, "beta", &beta4, &relay)
}

/// The relay is behind a NAT, too, which lets in what comes to a port that was used: the relay's own port is asked about, and
/// kept open, from the beginning.
pub(super) fn behind_nat(context: &Context) -> Result<()> {
    let mut lab = Lab::new("nat-peer-relay", &["server", "rg", "ra", "rb"])?;
    let [rg, ra, rb] = ["rg", "ra", "rb"].map(|name| lab.host(name));
    lab.add_behind(&rg, Nat::Cone, "gamma")?;
    let hosts = [lab.add_behind(&ra, Nat::Hard, "alpha")?, lab.add_behind(&rb, Nat::Hard, "beta")?];
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let (gamma, _) = gamma(context, &lab, &server)?;
    let relay = format!("{}:", rg.outside());
    let [(alpha, alpha4), (beta, beta4)] = join(context, hosts, &server)?;
    wait_peer_relay(&alpha, "beta", &beta4, &relay)
        .and_then(|()| wait_peer_relay(&beta, "alpha", &alpha4, &relay))
        .with_context(|| format!("the relay's log ends with:\n{}", last_lines(&gamma.process().log())))?;
    transfer(&alpha.host, &beta.host, &beta4, 5_000_000).map(drop)
}

/// The same with the official Go client at one end.
pub(super) fn go_client(context: &Context) -> Result<()> {
    let caddy = packages::caddy()?;
    let mut lab = Lab::new("go-peer-relay", &["server", "gamma", "ra", "rb"])?;
    let (ra, rb) = (lab.host("ra"), lab.host("rb"));
    let (alpha, gopher) = (lab.add_behind(&ra, Nat::Hard, "alpha")?, lab.add_behind(&rb, Nat::Hard, "gopher")?);
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let (_gamma, relay) = gamma(context, &lab, &server)?;
    let invitation = server.invite(&["--reusable"])?;
    let alpha = Node::start(&context.warren, &alpha)?;
    alpha.up(&invitation, &[])?;
    let (alpha4, _) = alpha.addresses()?;
    let me = std::env::current_exe()?;
    let mut page = alpha.host.spawn("page", &me, &["traffic", "http", &format!("{alpha4}:80"), "page of alpha"])?;
    page.wait_log("listening", PATIENCE)?;
    let gopher = GoClient::start(&gopher, &caddy, &server.url, &invitation.key, "page of gopher", &alpha4)?;
    let to = address_of(&server, "gopher")?;
    gopher.wait_page("page of alpha")?;
    wait_peer_relay(&alpha, "gopher", &to, &relay)?;
    ensure!(fetch(&alpha.host, &format!("http://{to}/"))? == "page of gopher", "another page");
    // The Go client has that path, too, and says so.
    wait_for("the Go client to use the peer relay", PATIENCE * 2, || {
        gopher.wait_page("page of alpha").ok()?;
        gopher.log().contains(&relay).then_some(())
    })
    .with_context(|| format!("its log ends with:\n{}", gopher.log_end()))
}
