//! Names of the tailnet, as programs of the machine find them.

use super::Context;
use crate::fleet::{Node, PATIENCE, Server, icmp};
use crate::lab::{Host, Lab, wait_for};
use anyhow::{Result, ensure};

/// The domain of the first tailnet.
const DOMAIN: &str = "default.warren.internal";

/// Looks a name up as programs do; `None` if there is none.
fn look_up(on: &Host, database: &str, name: &str) -> Option<String> {
    on.run("getent").arg(database).arg(name).output().ok().filter(|text| !text.trim().is_empty())
}

/// Names of peers and of the node itself, addresses back to names, on both addresses of the service; over the loopback
/// interface alone; with the server killed; and nothing is left when the node ends.
pub(super) fn programs(context: &Context) -> Result<()> {
    let lab = Lab::new("names", &["server", "alpha", "beta"])?;
    let mut server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let invitation = server.invite(&["--reusable"])?;
    let mut alpha = Node::start(&context.warren, &lab.host("alpha"))?;
    let beta = Node::start(&context.warren, &lab.host("beta"))?;
    alpha.up(&invitation, &[])?;
    beta.up(&invitation, &[])?;
    let ((alpha4, _), (beta4, beta6)) = (alpha.addresses()?, beta.addresses()?);
    let name = |host: &str| format!("{host}.{DOMAIN}");
    for service in ["100.100.100.100", "fd7a:115c:a1e0::53"] {
        alpha.host.set_nameserver(service)?;
        let found = wait_for(&format!("beta's address from {service}"), PATIENCE, || {
            look_up(&alpha.host, "ahostsv4", &name("beta")).filter(|text| text.contains(&beta4))
        });
        found?;
        let own = look_up(&alpha.host, "ahostsv4", &name("alpha")).unwrap_or_default();
        ensure!(own.contains(&alpha4), "the own name is {own:?}");
        for address in [&beta4, &beta6] {
            let back = look_up(&alpha.host, "hosts", address).unwrap_or_default();
            ensure!(back.contains(&name("beta")), "{address} is {back:?}");
        }
        ensure!(look_up(&alpha.host, "ahosts", &name("nobody")).is_none(), "an address of nobody");
    }
    icmp(&alpha.host, &name("beta"), 1)?;

    // Another name is found, and the old one no more.
    beta.cli(&["set", "--hostname", "gamma"])?;
    wait_for("beta's other name", PATIENCE, || look_up(&alpha.host, "ahostsv4", &name("gamma")))?;
    ensure!(look_up(&alpha.host, "ahostsv4", &name("beta")).is_none(), "the old name is found still");
    beta.cli(&["set", "--hostname", "beta"])?;
    wait_for("beta's first name", PATIENCE, || look_up(&alpha.host, "ahostsv4", &name("beta")))?;

    // Who sends queries to the address by way of alpha hears nothing, although they come to it.
    for words in [
        "add table inet heard",
        "add chain inet heard input { type filter hook input priority 0; }",
        "add rule inet heard input iifname eth0 ip daddr 100.100.100.100 udp dport 53 counter",
    ] {
        alpha.host.run("nft").arg(words).output()?;
    }
    let foreign = format!("route replace 100.100.100.100/32 via {}", alpha.host.address);
    lab.host("server").run("ip").args(&foreign).output()?;
    lab.host("server").set_nameserver("100.100.100.100")?;
    ensure!(look_up(&lab.host("server"), "ahostsv4", &name("beta")).is_none(), "the service answers strangers");
    let heard = alpha.host.run("nft").args("list table inet heard").output()?;
    ensure!(!heard.contains("packets 0 "), "the stranger's query did not come to alpha: {heard}");

    // The names are on the node: it needs no server for them.
    server.kill()?;
    ensure!(look_up(&alpha.host, "ahostsv4", &name("beta")).is_some(), "no names without the server");
    server.restart()?;
    ensure!(alpha.stop()?.success(), "the daemon did not stop cleanly");
    for words in ["route show table all", "-6 route show table all"] {
        let text = alpha.host.run("ip").args(words).output()?;
        ensure!(!text.contains("100.100.100.100") && !text.contains("fd7a:115c:a1e0"), "`ip {words}` shows: {text}");
    }
    Ok(())
}
