//! Nodes behind NATs: holes are punched where that can be done, ports mapped where it cannot.

use super::Context;
use crate::fleet::{Node, PATIENCE, Server, Setting, icmp};
use crate::lab::{Host, Lab, Nat, wait_for};
use anyhow::{Context as _, Result, ensure};

/// Alpha and beta, joined, each behind a router of its own.
struct Behind {
    alpha: Node,
    beta: Node,
    routers: [Host; 2],
    _server: Server,
    // Last, so that the processes end before their namespaces do.
    _lab: Lab,
}

impl Behind {
    fn join(context: &Context, title: &str, nats: [Nat; 2]) -> Result<Self> {
        let mut lab = Lab::new(title, &["server", "ra", "rb"])?;
        let routers = [lab.host("ra"), lab.host("rb")];
        let hosts = [lab.add_behind(&routers[0], nats[0], "alpha")?, lab.add_behind(&routers[1], nats[1], "beta")?];
        let server = Server::start(&context.warren, &lab.host("server"), &[])?;
        let invitation = server.invite(&["--reusable"])?;
        let [alpha, beta] = hosts.map(|host| Node::start(&context.warren, &host));
        let (alpha, beta) = (alpha?, beta?);
        alpha.up(&invitation, &[])?;
        beta.up(&invitation, &[])?;
        Ok(Self { alpha, beta, routers, _server: server, _lab: lab })
    }
}

/// Two easy NATs: a hole is punched through both, without anybody's help.
pub(super) fn easy_nats(context: &Context) -> Result<()> {
    let Behind { alpha, beta, routers: [ra, rb], .. } = &Behind::join(context, "easy-nats", [Nat::Easy, Nat::Easy])?;
    for (node, peer, router) in [(alpha, "beta", rb), (beta, "alpha", ra)] {
        let path = node.wait_direct(peer)?;
        ensure!(path.starts_with(&router.outside()), "the path to {peer} is {path}, not through its router");
    }
    Ok(())
}

/// A hard and an easy NAT: many ports are probed until one is the right one. With the one STUN server that there is, the
/// sides take turns, and an attempt a minute has 87 %: of ten such tests one may take three minutes.
pub(super) fn hard_and_easy(context: &Context) -> Result<()> {
    let Behind { alpha, beta, routers: [ra, rb], .. } = &Behind::join(context, "hard-easy", [Nat::Hard, Nat::Easy])?;
    let (to_alpha, _) = alpha.addresses()?;
    let path = wait_for("a direct path through the hard NAT", PATIENCE * 20, || {
        drop(icmp(&beta.host, &to_alpha, 1));
        alpha.direct_path("beta").ok().flatten().zip(beta.direct_path("alpha").ok().flatten())
    });
    let (from_alpha, from_beta) = path.with_context(|| format!("{:?}", alpha.peer_field("beta", "PathReason")))?;
    ensure!(from_alpha.starts_with(&rb.outside()), "the path to beta is {from_alpha}, not through its router");
    ensure!(from_beta.starts_with(&ra.outside()), "the path to alpha is {from_beta}, not through its router");
    // Data takes it, too, and the socket that won stays.
    icmp(&alpha.host, &beta.addresses()?.0, 5)?;
    ensure!(alpha.direct_path("beta")?.is_some(), "the path did not last");
    Ok(())
}

/// Two hard NATs: with a mapped port on one side the path is direct, and goes through that port; when the node leaves,
/// the router has the port back.
pub(super) fn port_mapping(context: &Context) -> Result<()> {
    through_mapped_port(context, "port-mapping", true)
}

/// Two hard NATs, and on one a port that its owner forwards: the node says so to its peers, and the path goes through it.
pub(super) fn static_endpoint(context: &Context) -> Result<()> {
    let mut lab = Lab::new("static-endpoint", &["server", "ra", "rb"])?;
    let (ra, rb) = (lab.host("ra"), lab.host("rb"));
    let alpha = lab.add_behind(&ra, Nat::Hard, "alpha")?;
    let beta = lab.add_behind(&rb, Nat::Hard, "beta")?;
    // Another port than the node's own, which it would guess.
    let forwarded = format!("{}:41999", ra.outside());
    for words in [
        format!(
            "insert rule inet filter prerouting iifname \"eth0\" udp dport 41999 dnat ip to {}:41641",
            alpha.address
        ),
        "insert rule inet filter forward ct status dnat accept".to_owned(),
    ] {
        ra.run("nft").arg(words).output()?;
    }
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let invitation = server.invite(&["--reusable"])?;
    let arguments = vec!["--static-endpoint".to_owned(), forwarded.clone()];
    let alpha = Node::start_as(&context.warren, &alpha, "alpha", Setting { arguments, ..Setting::default() })?;
    let beta = Node::start(&context.warren, &beta)?;
    alpha.up(&invitation, &[])?;
    beta.up(&invitation, &[])?;
    icmp(&beta.host, &alpha.addresses()?.0, 1)?;
    let path = beta.wait_direct("alpha")?;
    ensure!(path == forwarded, "the path to alpha is {path}, not through the forwarded port");
    alpha.wait_direct("beta").map(drop)
}

/// The same with a router that speaks UPnP alone.
pub(super) fn upnp(context: &Context) -> Result<()> {
    through_mapped_port(context, "upnp", false)
}

fn through_mapped_port(context: &Context, title: &str, pcp: bool) -> Result<()> {
    let mut lab = Lab::new(title, &["server", "ra", "rb"])?;
    let (ra, rb) = (lab.host("ra"), lab.host("rb"));
    let alpha = lab.add_behind(&ra, Nat::Hard, "alpha")?;
    let beta = lab.add_behind(&rb, Nat::Hard, "beta")?;
    let daemon = ra.map_ports(pcp)?;
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let invitation = server.invite(&["--reusable"])?;
    let mut alpha = Node::start(&context.warren, &alpha)?;
    let beta = Node::start(&context.warren, &beta)?;
    alpha.up(&invitation, &[])?;
    beta.up(&invitation, &[])?;
    let (to_alpha, _) = alpha.addresses()?;
    icmp(&beta.host, &to_alpha, 1)?;
    let path = beta.wait_direct("alpha")?;
    let (address, port) = path.rsplit_once(':').context("a path without a port")?;
    ensure!(address == ra.outside(), "the path to alpha is {path}, not through its router");
    let rules = || ra.run("nft").args("list chain inet filter prerouting_miniupnpd").output();
    let mapping = format!("dport {port} dnat");
    ensure!(rules()?.contains(&mapping), "port {port} is not the mapped one: {}", rules()?);
    alpha.stop()?;
    wait_for("the router to have its port back", PATIENCE, || (!rules().ok()?.contains(&mapping)).then_some(()))
        .with_context(|| daemon.log())
}
