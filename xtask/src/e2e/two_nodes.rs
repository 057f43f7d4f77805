//! Two of our nodes on one switch.

use super::Context;
use crate::fleet::{Node, PATIENCE, Server, icmp, transfer};
use crate::lab::{Lab, wait_for};
use anyhow::{Context as _, Result, ensure};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use warren_wg::Tunnels;
use warren_wire::key::{NodeKey, NodeSecret};

/// A server and the nodes alpha and beta, joined.
struct Pair {
    server: Server,
    alpha: Node,
    beta: Node,
    // Last, so that the processes end before their namespaces do.
    _lab: Lab,
}

fn pair(context: &Context, title: &str, prepare: impl Fn(&Lab) -> Result<()>) -> Result<Pair> {
    let lab = Lab::new(title, &["server", "alpha", "beta"])?;
    prepare(&lab)?;
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let invitation = server.invite(&["--reusable"])?;
    let alpha = Node::start(&context.warren, &lab.host("alpha"))?;
    let beta = Node::start(&context.warren, &lab.host("beta"))?;
    alpha.up(&invitation, &[])?;
    beta.up(&invitation, &[])?;
    Ok(Pair { server, alpha, beta, _lab: lab })
}

/// Echo both ways in both families, a direct path, and data that arrives whole.
pub(super) fn direct(context: &Context) -> Result<()> {
    let pair = pair(context, "direct", |_| Ok(()))?;
    let (alpha4, alpha6) = pair.alpha.addresses()?;
    let (beta4, beta6) = pair.beta.addresses()?;
    for (from, to) in [(&pair.alpha, &beta4), (&pair.alpha, &beta6), (&pair.beta, &alpha4), (&pair.beta, &alpha6)] {
        icmp(&from.host, to, 2)?;
    }
    pair.alpha.wait_direct("beta")?;
    pair.beta.wait_direct("alpha")?;
    transfer(&pair.alpha.host, &pair.beta.host, &beta4, 20_000_000)?;
    transfer(&pair.beta.host, &pair.alpha.host, &alpha6, 20_000_000)?;
    Ok(())
}

/// With UDP dropped on one side everything goes through the relay, and `ping` says so.
pub(super) fn relayed(context: &Context) -> Result<()> {
    let pair = pair(context, "relayed", |lab| lab.host("alpha").block_udp(true))?;
    let (_, beta6) = pair.beta.addresses()?;
    let (alpha4, _) = pair.alpha.addresses()?;
    icmp(&pair.beta.host, &alpha4, 2)?;
    icmp(&pair.alpha.host, &beta6, 2)?;
    transfer(&pair.alpha.host, &pair.beta.host, &beta6, 5_000_000)?;
    ensure!(pair.alpha.direct_path("beta")?.is_none(), "a direct path without UDP");
    let said = pair.alpha.cli(&["ping", "beta", "--count", "1"])?;
    ensure!(said.to_lowercase().contains("relay"), "ping does not speak of the relay: {said}");
    // Once UDP passes again the pair must leave the relay without help.
    pair.alpha.host.block_udp(false)?;
    pair.alpha.wait_direct("beta").map(drop)
}

/// SIGKILL leaves no interface, route or rule; the next start has the same identity without a new login.
pub(super) fn killed_node(context: &Context) -> Result<()> {
    let mut pair = pair(context, "killed-node", |_| Ok(()))?;
    let before = pair.alpha.addresses()?;
    pair.alpha.process().signal("KILL")?;
    wait_for("the interface to vanish", PATIENCE, || {
        let links = pair.alpha.host.run("ip").args("-br link show type tun").output().ok()?;
        links.trim().is_empty().then_some(())
    })?;
    for words in ["route show table all", "-6 route show table all", "rule show", "-6 rule show"] {
        let text = pair.alpha.host.run("ip").args(words).output()?;
        ensure!(
            !text.contains("100.64.") && !text.contains("fd7a:115c:a1e0") && !text.contains("warren"),
            "`ip {words}` still shows: {text}"
        );
    }
    pair.alpha.kill_and_restart()?;
    let again = wait_for("the node to be up again", PATIENCE, || pair.alpha.addresses().ok())?;
    ensure!(before == again, "addresses changed from {before:?} to {again:?}");
    let (beta4, _) = pair.beta.addresses()?;
    wait_for("an echo after the restart", PATIENCE, || icmp(&pair.alpha.host, &beta4, 1).ok())?;
    // A polite stop leaves nothing either.
    ensure!(pair.alpha.stop()?.success(), "the daemon did not stop cleanly");
    let links = pair.alpha.host.run("ip").args("-br link show type tun").output()?;
    ensure!(links.trim().is_empty(), "an interface is left: {links}");
    Ok(())
}

/// A node that was down has forgotten its sessions. The other side speaks first, in one of them, straight and over the relay,
/// and is heard at once, not after the 15 s that WireGuard waits.
pub(super) fn down_and_up(context: &Context) -> Result<()> {
    let pair = pair(context, "down-and-up", |_| Ok(()))?;
    let (alpha4, _) = pair.alpha.addresses()?;
    for way in ["straight", "over the relay"] {
        if way == "straight" {
            pair.beta.wait_direct("alpha")?;
        } else {
            pair.alpha.host.block_udp(true)?;
        }
        wait_for("an echo before", PATIENCE, || icmp(&pair.beta.host, &alpha4, 3).ok())?;
        pair.alpha.cli(&["down"])?;
        pair.alpha.cli(&["up", "--timeout", "30"])?;
        let began = Instant::now();
        // Each waits for a fifth of a second, so that what is lost is followed by another.
        let heard = || pair.beta.host.run("ping").args("-n -c 1 -W 0.2").arg(&alpha4).output().ok();
        wait_for("the first echo", PATIENCE, heard)?;
        let took = began.elapsed();
        println!("        {way}: first echo {:.2} s after alpha is up again", took.as_secs_f64());
        // Half of what WireGuard by itself would take, for machines that do other things, too.
        ensure!(took < Duration::from_secs(7), "{way}: the first echo took {took:?}");
    }
    Ok(())
}

/// SIGKILL of the server under traffic: the tunnel carries on, and everyone is back after the restart.
pub(super) fn killed_server(context: &Context) -> Result<()> {
    let mut pair = pair(context, "killed-server", |_| Ok(()))?;
    let (beta4, _) = pair.beta.addresses()?;
    // Either end: what is on its way over the relay when that is killed is lost.
    pair.alpha.wait_direct("beta")?;
    pair.beta.wait_direct("alpha")?;
    let host = pair.alpha.host.clone();
    let to = beta4.clone();
    let echo = std::thread::spawn(move || host.run("ping").args("-n -q -i 0.05 -c 160").arg(&to).output());
    let before = [&pair.alpha, &pair.beta].map(whole_maps);
    pair.server.kill_and_restart()?;
    let text = echo.join().map_err(|_| anyhow::anyhow!("the pinging thread failed"))??;
    ensure!(text.contains(" 0% packet loss"), "echoes were lost while the server was away: {text}");
    pair.wait_both_online()?;
    transfer(&pair.alpha.host, &pair.beta.host, &beta4, 1_000_000)?;
    // One each: a second one would be a poll that was begun twice, or a difference that became a whole map.
    for (node, before) in [&pair.alpha, &pair.beta].into_iter().zip(before) {
        let whole = whole_maps(node) - before;
        println!("        {}: {whole} whole map after the restart", node.host.name);
        ensure!(whole == 1, "{} got {whole} whole maps after the restart", node.host.name);
    }
    Ok(())
}

/// Both nodes start again while the server, and with it the only relay, is away: they reach each other directly by the
/// maps on disk, say how old these are, and take over the server's when it is back without losing an echo.
pub(super) fn server_away(context: &Context) -> Result<()> {
    let mut pair = pair(context, "server-away", |_| Ok(()))?;
    let ((alpha4, _), (beta4, beta6)) = (pair.alpha.addresses()?, pair.beta.addresses()?);
    pair.alpha.wait_direct("beta")?;
    // One leaves politely, the other does not: what that one knows must be on the disk before.
    let file = pair.beta.state_dir().join("map.json");
    wait_for("the map to be on the disk", PATIENCE, || {
        std::fs::read_to_string(&file).is_ok_and(|text| text.contains("alpha.")).then_some(())
    })?;
    pair.server.kill()?;
    pair.alpha.stop()?;
    pair.alpha.start_again()?;
    pair.beta.kill_and_restart()?;
    for node in [&pair.alpha, &pair.beta] {
        wait_for("the map on disk to be used", PATIENCE, || {
            let age = node.status().ok()?.pointer("/KeptMap/AgeSeconds")?.as_u64()?;
            (age < PATIENCE.as_secs()).then_some(())
        })?;
    }
    wait_for("an echo without the server", PATIENCE, || icmp(&pair.alpha.host, &beta4, 1).ok())?;
    icmp(&pair.alpha.host, &beta6, 1)?;
    icmp(&pair.beta.host, &alpha4, 1)?;
    ensure!(pair.alpha.direct_path("beta")?.is_some(), "no direct path, and no relay");
    let said = pair.alpha.cli(&["status"])?;
    ensure!(said.contains("kept on disk"), "`status` does not say that the map was kept: {said}");
    transfer(&pair.alpha.host, &pair.beta.host, &beta4, 5_000_000)?;
    let (host, to) = (pair.alpha.host.clone(), beta4.clone());
    let echo = std::thread::spawn(move || host.run("ping").args("-n -q -i 0.05 -c 200").arg(&to).output());
    pair.server.restart()?;
    pair.wait_both_online()?;
    wait_for("the server's map", PATIENCE, || pair.alpha.status().ok()?.get("KeptMap").is_none().then_some(()))?;
    let text = echo.join().map_err(|_| anyhow::anyhow!("the pinging thread failed"))??;
    ensure!(text.contains(" 0% packet loss"), "echoes were lost when the server came back: {text}");
    // What must not be kept is not.
    pair.alpha.cli(&["logout"])?;
    ensure!(!pair.alpha.state_dir().join("map.json").exists(), "the map outlives the logout");
    Ok(())
}

/// Counts the whole maps that a node has got.
fn whole_maps(node: &Node) -> usize {
    node.process().log().matches("map whole=true").count()
}

/// SIGKILL of the server that is the only relay: the same sessions carry on as soon as the relay is back, and a
/// connection through the tunnel outlives it.
pub(super) fn killed_relay(context: &Context) -> Result<()> {
    let mut pair = pair(context, "killed-relay", |lab| lab.host("alpha").block_udp(true))?;
    let (beta4, _) = pair.beta.addresses()?;
    icmp(&pair.alpha.host, &beta4, 1)?;
    let (from, to, address) = (pair.alpha.host.clone(), pair.beta.host.clone(), beta4.clone());
    let sending = std::thread::spawn(move || transfer(&from, &to, &address, 100_000_000));
    wait_for("the transfer to be under way", PATIENCE, || (pair.alpha.sent_to("beta")? > 5_000_000).then_some(()))?;
    let sessions = |node: &Node| node.process().log().matches("traffic: session peer").count();
    let before = sessions(&pair.alpha) + sessions(&pair.beta);
    pair.server.kill_and_restart()?;
    pair.wait_both_online()?;
    sending.join().map_err(|_| anyhow::anyhow!("the sending thread failed"))??;
    ensure!(pair.alpha.direct_path("beta")?.is_none(), "a direct path without UDP");
    let after = sessions(&pair.alpha) + sessions(&pair.beta);
    ensure!(after <= before + 2, "{} handshakes for one interruption", after - before);
    Ok(())
}

/// Whoever has no key that the network accepts gets no byte back from a node, though it knows address and key.
pub(super) fn strangers(context: &Context) -> Result<()> {
    let lab = Lab::new("strangers", &["server", "alpha", "beta", "stranger"])?;
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let invitation = server.invite(&["--reusable"])?;
    let [alpha, beta] = ["alpha", "beta"].map(|name| Node::start(&context.warren, &lab.host(name)));
    let (alpha, beta) = (alpha?, beta?);
    alpha.up(&invitation, &[])?;
    beta.up(&invitation, &[])?;
    let port = beta.wait_direct("alpha")?.rsplit(':').next().unwrap_or_default().to_owned();
    let status = alpha.status()?;
    let own = status.get("Self").and_then(|own| own.get("PublicKey")).and_then(serde_json::Value::as_str);
    let own: NodeKey = own.unwrap_or_default().parse().ok().context("the status shows no key of its own")?;

    // A handshake as good as one can be without a key that alpha knows, disco of an unknown key, STUN, data, nonsense.
    let mut tunnels = Tunnels::new(
        NodeSecret::from_bytes([9; 32]),
        Arc::default(),
        [1; 32],
        Instant::now(),
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?,
    );
    ensure!(tunnels.add_peer(own), "the tunnel takes the key");
    tunnels.start_handshake(&own, Instant::now())?;
    let initiation = tunnels.poll_transmit().context("the handshake begins with a message")?.bytes;
    let mut disco = b"TS\xf0\x9f\x92\xac".to_vec();
    disco.extend([7; 120]);
    let stun = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[3; 12]].concat();
    let data = [&[4, 0, 0, 0][..], &[0; 60]].concat();
    let socket = lab.host("stranger").bind("0.0.0.0:0")?;
    for message in [&initiation, &disco, &stun, &data, &vec![0xff; 1200]] {
        socket.send_to(message, format!("{}:{port}", alpha.host.address))?;
    }
    // Alpha takes what arrives in its order: when it has answered a friend, it has seen all that.
    let (to_alpha, _) = alpha.addresses()?;
    icmp(&beta.host, &to_alpha, 3)?;
    socket.set_nonblocking(true)?;
    let answer = socket.recv(&mut [0; 2048]);
    ensure!(answer.is_err(), "a stranger got {answer:?} bytes");
    Ok(())
}

impl Pair {
    /// Waits until the server says that both nodes are connected, and no third one is there.
    fn wait_both_online(&self) -> Result<()> {
        wait_for("both nodes to be online again", PATIENCE, || {
            let list = self.server.admin(&["--json", "node", "list"]).ok()?;
            let nodes: serde_json::Value = serde_json::from_str(&list).ok()?;
            let nodes = nodes.as_array()?;
            let is_online =
                |node: &&serde_json::Value| node.get("online").and_then(serde_json::Value::as_bool) == Some(true);
            (nodes.len() == 2 && nodes.iter().filter(is_online).count() == 2).then_some(())
        })
    }
}
