//! A network between two nodes that swallows large packets.

use super::Context;
use crate::fleet::{Node, PATIENCE, Server, Setting, icmp, transfer};
use crate::lab::{Lab, Nat, ip, wait_for};
use anyhow::{Context as _, Result, ensure};

/// What the network carries: less than a full packet of the tunnel of 1,400 bytes becomes, more than that of a usual one.
const CARRIED: &str = "1430";

/// The router between alpha and beta cannot pass on full packets and does not say so. Where that is found out, they go over
/// the relay, and the others stay on the direct path.
pub(super) fn narrow(context: &Context) -> Result<()> {
    let mut lab = Lab::new("path-mtu", &["server", "beta", "ra"])?;
    let ra = lab.host("ra");
    let alpha = lab.add_behind(&ra, Nat::Easy, "alpha")?;
    for device in ["eth0", "lan0"] {
        ip(&format!("-n {} link set {device} mtu {CARRIED}", ra.namespace))?;
    }
    // TCP, and with it the way to the relay, is told what fits, as providers do it.
    for words in [
        "add chain inet filter out { type filter hook output priority 0; }",
        "add rule inet filter out icmp type destination-unreachable drop",
        "insert rule inet filter forward tcp flags syn tcp option maxseg size set 1200",
    ] {
        ra.run("nft").arg(words).output()?;
    }
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let invitation = server.invite(&["--reusable"])?;
    let start = |host| {
        let setting = Setting { arguments: vec!["--mtu".into(), "1400".into()], ..Setting::default() };
        Node::start_as(&context.warren, host, &host.name, setting)
    };
    let (alpha, beta) = (start(&alpha)?, start(&lab.host("beta"))?);
    alpha.up(&invitation, &[])?;
    beta.up(&invitation, &[])?;
    let (to_alpha, to_beta) = (alpha.addresses()?.0, beta.addresses()?.0);
    alpha.wait_direct("beta")?;
    beta.wait_direct("alpha")?;

    // As it is without: small packets pass, full ones do not.
    let large = |node: &Node, to: &str| node.host.run("ping").args("-n -c 2 -i 0.2 -W 1 -s 1372").arg(to).output();
    icmp(&alpha.host, &to_beta, 1)?;
    ensure!(large(&alpha, &to_beta).is_err(), "the network carries full packets: the test shows nothing");
    ensure!(carried(&alpha, "beta").is_none(), "sizes were tried although nobody wanted it");

    let policy = r#"{
        "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
        "nodeAttrs": [{"target": ["*"], "attr": ["peer-mtu-enable"]}],
    }"#;
    let file = lab.dir().join("probing.hujson");
    std::fs::write(&file, policy)?;
    server.policy(&["set", &file.to_string_lossy()])?;
    for (node, peer, to) in [(&alpha, "beta", &to_beta), (&beta, "alpha", &to_alpha)] {
        wait_for(&format!("full packets from {} to arrive", node.host.name), PATIENCE * 2, || {
            drop(icmp(&node.host, to, 1));
            large(node, to).ok()
        })
        .with_context(|| format!("{:?}", node.peer_field(peer, "PathReason")))?;
        let carried = carried(node, peer);
        ensure!(carried == Some(1400), "{} says that {carried:?} bytes are carried", node.host.name);
        println!("        {}: {}", node.host.name, node.peer_field(peer, "PathReason").unwrap_or_default());
    }
    transfer(&alpha.host, &beta.host, &to_beta, 5_000_000)?;
    transfer(&beta.host, &alpha.host, &to_alpha, 5_000_000)?;
    ensure!(alpha.direct_path("beta")?.is_some(), "small packets have left the direct path, too");
    Ok(())
}

/// Returns the size that a node says to be carried to a peer.
fn carried(node: &Node, peer: &str) -> Option<u64> {
    let status = node.status().ok()?;
    let is_it = |one: &&serde_json::Value| one.get("HostName").and_then(serde_json::Value::as_str) == Some(peer);
    status.get("Peer")?.as_object()?.values().find(is_it)?.get("PathMTU")?.as_u64()
}
