//! Exit nodes: all packets for the Internet go through a peer, and none past it.

use super::Context;
use super::names::Upstream;
use super::routes::{forward, health};
use crate::fleet::{Node, PATIENCE, Server, icmp, transfer};
use crate::lab::{Host, Lab, WEB, wait_for};
use anyhow::{Context as _, Result, ensure};
use std::net::IpAddr;
use std::time::Duration;

/// Everybody reaches everybody and the Internet.
pub(super) const OPEN: &str =
    r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*", "autogroup:internet:*"]}]}"#;

/// Likewise; exit nodes with a tag need no administrator.
const TRUSTED: &str = r#"{
    "tagOwners": {"tag:exit": []},
    "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*", "autogroup:internet:*"]}],
    "autoApprovers": {"exitNode": ["tag:exit"]},
}"#;

/// The nodes alpha and beta, and a machine on the Internet that runs nothing of ours.
struct World {
    server: Server,
    alpha: Node,
    beta: Node,
    web: Host,
    lab: Lab,
}

impl World {
    /// Alpha is up, beta passes on what the kernel lets it, and offers nothing yet.
    fn start(context: &Context, title: &str, policy: &str) -> Result<Self> {
        let mut lab = Lab::new(title, &["server", "alpha", "beta"])?;
        let web = lab.add_web()?;
        let server = Server::start(&context.warren, &lab.host("server"), &[])?;
        let file = lab.dir().join("policy.hujson");
        std::fs::write(&file, policy)?;
        server.policy(&["set", &file.to_string_lossy()])?;
        forward(&lab.host("beta"))?;
        let alpha = Node::start(&context.warren, &lab.host("alpha"))?;
        let beta = Node::start(&context.warren, &lab.host("beta"))?;
        alpha.up(&server.invite(&["--reusable"])?, &[])?;
        Ok(Self { server, alpha, beta, web, lab })
    }
}

/// The address on the switch with which packets of a host leave it, in each family.
fn addresses(host: &Host) -> [IpAddr; 2] {
    let number: u16 = host.address.rsplit('.').next().and_then(|text| text.parse().ok()).unwrap_or_default();
    let last = u8::try_from(number).unwrap_or_default();
    // In fd91::12 the number is written as if it were decimal.
    let digits = u16::from_str_radix(&number.to_string(), 16).unwrap_or_default();
    [[10, 91, 0, last].into(), [0xfd91, 0, 0, 0, 0, 0, 0, digits].into()]
}

/// Sends a datagram from `host` to the machine on the Internet and returns whom that sees, in each family; `None` if nothing
/// comes.
fn seen(host: &Host, web: &Host) -> Result<[Option<IpAddr>; 2]> {
    let mut seen = [None; 2];
    for (seen, (there, here)) in seen.iter_mut().zip([("9.93.0.2:7007", "0.0.0.0:0"), ("[2a93::2]:7007", "[::]:0")]) {
        let (there_socket, here_socket) = (web.bind(there)?, host.bind(here)?);
        there_socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        if here_socket.send_to(b"who am I?", there).is_err() {
            continue;
        }
        let mut buffer = [0; 64];
        if let Ok((_, from)) = there_socket.recv_from(&mut buffer) {
            *seen = Some(from.ip());
        }
    }
    Ok(seen)
}

/// Waits until the machine on the Internet sees `host` as `other`, in both families.
fn wait_seen(host: &Host, web: &Host, other: &Host) -> Result<()> {
    let wanted = addresses(other).map(Some);
    let what = format!("{} to be seen as {}", host.name, other.name);
    let mut last = None;
    wait_for(&what, PATIENCE, || {
        last = seen(host, web).ok();
        last.filter(|seen| *seen == wanted)
    })
    .map(drop)
    .with_context(|| {
        let of = |host: &Host| format!("{}:\n{}", host.name, network(host).unwrap_or_default());
        format!("seen as {last:?} at last; {}{}", of(host), of(other))
    })
}

/// Fails if anything comes to the Internet from `host` within a moment.
fn ensure_silent(host: &Host, web: &Host) -> Result<()> {
    for _ in 0..5 {
        let seen = seen(host, web)?;
        ensure!(seen == [None; 2], "{} is seen as {seen:?}", host.name);
    }
    Ok(())
}

/// Counts what must never be: packets of the daemon's own sockets on their way into the tunnel.
fn watch_loops(host: &Host) -> Result<()> {
    for words in [
        "add table inet watch",
        "add chain inet watch out { type filter hook output priority 0; }",
        "add rule inet watch out oifname warren0 meta mark & 0xff0000 == 0x80000 counter",
        "add rule inet watch out oifname warren0 udp sport 41641 counter",
        "add rule inet watch out oifname warren0 tcp dport 8080 counter",
    ] {
        host.run("nft").arg(words).output()?;
    }
    Ok(())
}

/// Fails if there were any, or if a socket of the daemon that reaches out is not marked.
fn ensure_no_loops(node: &Node) -> Result<()> {
    let counts = node.host.run("nft").args("list table inet watch").output()?;
    let none = counts.matches("counter packets 0 ").count();
    ensure!(none == 3, "the daemon's own packets entered the tunnel: {counts}");
    let sockets = node.host.run("ss").args("-Htunaep").output()?;
    // `ip netns exec` becomes the program that it starts.
    let own = format!("pid={},", node.process().id());
    let reaching = sockets.lines().filter(|line| line.contains(&own) && !line.contains("100.100.100.100:53"));
    let reaching: Vec<&str> = reaching.filter(|line| !line.contains("[fd7a:115c:a1e0::53]:53")).collect();
    ensure!(reaching.len() >= 3, "few sockets of the daemon: {sockets}");
    for line in reaching {
        ensure!(line.contains("fwmark:0x80000"), "a socket without mark: {line}");
    }
    Ok(())
}

/// What of the machine's network a node changes.
pub(super) fn network(host: &Host) -> Result<String> {
    let mut text = String::new();
    for words in ["rule show", "-6 rule show", "route show table all", "-6 route show table all", "-brief address show"]
    {
        text += &host.run("ip").args(words).output()?;
    }
    text += &host.run("nft").args("list ruleset").output()?;
    // Addresses that the kernel makes by itself take a second until they are proved.
    Ok(text.lines().filter(|line| !line.contains("fe80::")).map(|line| format!("{line}\n")).collect())
}

/// Through an exit node to the Internet in both families; not before it is approved, not into its networks, never past it: not
/// when it is killed, nor when nobody is chosen yet; straight again without it; and nothing is left behind.
pub(super) fn internet(context: &Context) -> Result<()> {
    let mut world = World::start(context, "exit-node", OPEN)?;
    let before = network(&world.alpha.host)?;
    world.beta.up(&world.server.invite(&["--reusable"])?, &["--advertise-exit-node"])?;
    let World { server, alpha, beta, web, .. } = &world;
    wait_seen(&alpha.host, web, &alpha.host)?;
    ensure!(alpha.cli(&["set", "--exit-node=beta"]).is_err(), "an exit node without approval");
    server.admin(&["node", "approve-routes", "beta", "0.0.0.0/0"])?;
    wait_for("beta as an exit node", PATIENCE, || {
        alpha.cli(&["exit-node", "list"]).ok().filter(|text| text.contains("beta"))
    })?;
    wait_seen(&alpha.host, web, &alpha.host)?;
    watch_loops(&alpha.host)?;
    alpha.cli(&["set", "--exit-node=beta"])?;
    wait_seen(&alpha.host, web, &beta.host).with_context(|| format!("health: {:?}", health(alpha)))?;
    for address in WEB {
        println!("        {address}: {}", transfer(&alpha.host, web, address, 20_000_000)?);
    }
    let listed = alpha.cli(&["exit-node", "list"])?;
    ensure!(listed.contains("selected"), "the list says: {listed}");
    let status = alpha.status()?;
    ensure!(status.pointer("/ExitNodeStatus/Online") == Some(&true.into()), "status says: {status}");
    alpha.wait_direct("beta")?;

    // Peers are reached as before; networks that the exit node is in are not, since it did not offer them, nor are they
    // reached straight, unless that is wished.
    let beta4 = beta.addresses()?.0;
    icmp(&alpha.host, &beta4, 1)?;
    let near = lab_address(&world.lab.host("server"));
    for address in &near {
        ensure!(icmp(&alpha.host, address, 1).is_err(), "{address} is reached although nobody said so");
    }
    alpha.cli(&["set", "--exit-node-allow-lan-access"])?;
    for address in &near {
        wait_for(&format!("an echo from {address}"), PATIENCE, || icmp(&alpha.host, address, 1).ok())?;
    }
    wait_seen(&alpha.host, web, &beta.host)?;
    alpha.cli(&["set", "--exit-node-allow-lan-access=false"])?;
    ensure_no_loops(alpha)?;

    // Killed: nothing gets past it, while the daemon goes on hearing the server and reaches a new peer.
    world.beta.kill()?;
    let gamma = {
        let host = world.lab.add("gamma")?;
        let gamma = Node::start(&context.warren, &host)?;
        gamma.up(&world.server.invite(&["--reusable"])?, &[])?;
        gamma
    };
    let alpha = &world.alpha;
    ensure_silent(&alpha.host, &world.web)?;
    wait_for("alpha to say that the exit node is away", PATIENCE, || {
        health(alpha).ok().filter(|text| text.contains("exit node beta is away"))
    })?;
    icmp(&alpha.host, &gamma.addresses()?.0, 3)?;
    alpha.wait_direct("gamma")?;
    ensure_silent(&alpha.host, &world.web)?;
    ensure_no_loops(alpha)?;
    world.beta.start_again()?;
    wait_seen(&world.alpha.host, &world.web, &world.beta.host)?;

    // An address of nobody: not chosen yet is not past it.
    world.alpha.cli(&["set", "--exit-node="])?;
    wait_seen(&world.alpha.host, &world.web, &world.alpha.host)?;
    world.server.admin(&["node", "revoke-routes", "beta", "0.0.0.0/0"])?;
    wait_for("nobody to be an exit node", PATIENCE, || {
        world.alpha.cli(&["exit-node", "list"]).ok().filter(|text| !text.contains("beta"))
    })?;
    world.alpha.cli(&["set", "--exit-node=auto:any"])?;
    wait_for("alpha to say that there is none", PATIENCE, || {
        health(&world.alpha).ok().filter(|text| text.contains("there is no exit node"))
    })?;
    ensure_silent(&world.alpha.host, &world.web)?;
    ensure!(world.alpha.stop()?.success(), "the daemon did not stop cleanly");
    world.alpha.host.run("nft").args("delete table inet watch").output()?;
    wait_seen(&world.alpha.host, &world.web, &world.alpha.host)?;
    let after = network(&world.alpha.host)?;
    let gone: Vec<&str> = before.lines().filter(|line| line.contains("warren0") && after.contains(line)).collect();
    ensure!(gone.is_empty() && !after.contains("warren0") && !after.contains("5270:"), "left behind: {after}");
    Ok(())
}

fn lab_address(host: &Host) -> [String; 2] {
    addresses(host).map(|address| address.to_string())
}

/// The underlay's own addresses lie in networks that a peer offers and this node accepts, the exit node's and the server's
/// included: the tunnel goes around itself all the same.
pub(super) fn no_loops(context: &Context) -> Result<()> {
    let world = World::start(context, "no-loops", OPEN)?;
    let World { server, alpha, beta, web, .. } = &world;
    // Their parts: the network itself would stay this machine's own.
    let nets = ["10.91.0.0/25", "10.91.0.0/16", "fd91::/65", "fd91::/48"];
    let offer = format!("--advertise-routes={}", nets.join(","));
    beta.up(&server.invite(&["--reusable"])?, &["--advertise-exit-node", &offer])?;
    server.admin(&[&["node", "approve-routes", "beta", "0.0.0.0/0"][..], &nets].concat())?;
    watch_loops(&alpha.host)?;
    alpha.cli(&["set", "--accept-routes"])?;
    let way = |to: &str| alpha.host.run("ip").args("route get").arg(to).output();
    wait_for("the underlay's network to be routed into the tunnel", PATIENCE, || {
        way(&beta.host.address).ok().filter(|text| text.contains("warren0"))
    })?;
    let check = |what: &str| -> Result<()> {
        let (four, six) = beta.addresses()?;
        for address in [four, six] {
            icmp(&alpha.host, &address, 3).with_context(|| what.to_owned())?;
            transfer(&alpha.host, &beta.host, &address, 2_000_000).with_context(|| what.to_owned())?;
        }
        alpha.wait_direct("beta")?;
        ensure_no_loops(alpha).with_context(|| what.to_owned())
    };
    check("with the underlay's network accepted")?;
    wait_for("beta as an exit node", PATIENCE, || alpha.cli(&["set", "--exit-node=beta"]).ok())?;
    wait_seen(&alpha.host, web, &beta.host)?;
    check("with an exit node, too")?;
    // Where the kernel would drop what comes in, the node says so, and what to do.
    let sysctl = |value: &str| alpha.host.run("sysctl").args("-q -w").arg(value).output();
    sysctl("net.ipv4.conf.all.rp_filter=0")?;
    sysctl("net.ipv4.conf.eth0.rp_filter=1")?;
    alpha.cli(&["set", "--exit-node-allow-lan-access"])?;
    wait_for("alpha to speak of rp_filter", PATIENCE, || {
        health(alpha).ok().filter(|text| text.contains("net.ipv4.conf.all.rp_filter=2"))
    })?;
    sysctl("net.ipv4.conf.all.rp_filter=2")?;
    alpha.cli(&["set", "--exit-node-allow-lan-access=false"])?;
    wait_for("alpha to be content", PATIENCE, || health(alpha).ok().filter(|text| !text.contains("rp_filter")))?;
    wait_seen(&alpha.host, web, &beta.host)?;

    // Whoever takes rules away gets them back.
    for family in ["-4", "-6"] {
        alpha.host.run("ip").args(family).args("rule del pref 5270").output()?;
    }
    wait_seen(&alpha.host, web, &beta.host)?;
    for family in ["-4", "-6"] {
        alpha.host.run("ip").args(family).args("rule del pref 5210").output()?;
    }
    wait_for("the rule for own packets", PATIENCE, || {
        alpha.host.run("ip").args("rule show").output().ok().filter(|text| text.contains("5210:"))
    })?;
    check("with rules that somebody took away")
}

/// Somebody else counts from the range of nodes, as carriers do: that network stays where it is, and nodes are reached.
pub(super) fn same_range(context: &Context) -> Result<()> {
    let world = World::start(context, "same-range", OPEN)?;
    let World { server, alpha, beta, .. } = &world;
    beta.up(&server.invite(&["--reusable"])?, &[])?;
    let (beta4, carrier) = (beta.addresses()?.0, "100.64.0.200");
    // Even the peer's own address lies in it.
    for (host, address) in [(&alpha.host, "100.64.0.201/24"), (&world.web, "100.64.0.200/24")] {
        host.run("ip").args("address add").arg(address).args("dev eth0").output()?;
    }
    wait_for("an echo from the carrier", PATIENCE, || icmp(&alpha.host, carrier, 1).ok())?;
    let way = alpha.host.run("ip").args("route get").arg(carrier).output()?;
    ensure!(way.contains("eth0"), "the carrier is looked for in the tunnel: {way}");
    icmp(&alpha.host, &beta4, 1)?;
    alpha.wait_direct("beta").map(drop)
}

/// `auto:any` takes an exit node that is there, and another one when that is killed.
pub(super) fn any(context: &Context) -> Result<()> {
    let mut world = World::start(context, "any-exit-node", TRUSTED)?;
    let on_gamma = world.lab.add("gamma")?;
    forward(&on_gamma)?;
    let mut gamma = Node::start(&context.warren, &on_gamma)?;
    for node in [&world.beta, &gamma] {
        node.up(&world.server.invite(&["--reusable", "--tag", "tag:exit"])?, &["--advertise-exit-node"])?;
    }
    let (alpha, web) = (&world.alpha, &world.web);
    alpha.cli(&["set", "--exit-node=auto:any"])?;
    let [beta4, gamma4] = [&world.beta.host, &on_gamma].map(|host| addresses(host)[0]);
    let first = wait_for("an exit node", PATIENCE, || {
        seen(&alpha.host, web).ok()?[0].filter(|address| [beta4, gamma4].contains(address))
    })?;
    let (used, other) =
        if first == beta4 { (&mut world.beta, &gamma.host) } else { (&mut gamma, &world.beta.host.clone()) };
    used.kill()?;
    wait_for("the other exit node", PATIENCE * 2, || {
        let seen = seen(&alpha.host, web).ok()?;
        (seen == addresses(other).map(Some)).then_some(())
    })
}

/// A resolver on the Internet that the server names is asked through the exit node alone, in place of the network's own, which
/// hears nothing; while the exit node is away nobody is asked.
pub(super) fn names(context: &Context) -> Result<()> {
    let mut world = World::start(context, "exit-names", OPEN)?;
    let near = Upstream::start(world.lab.host("server").bind("10.91.0.2:53")?)?;
    let far = Upstream::start(world.web.bind("9.93.0.2:53")?)?;
    let host = world.alpha.host.clone();
    host.set_nameserver("10.91.0.2")?;
    world.beta.up(&world.server.invite(&["--reusable"])?, &["--advertise-exit-node"])?;
    world.server.admin(&["node", "approve-routes", "beta", "0.0.0.0/0"])?;
    wait_for("beta as an exit node", PATIENCE, || world.alpha.cli(&["set", "--exit-node=beta"]).ok())?;
    wait_seen(&host, &world.web, &world.beta.host)?;
    let warns = || health(&world.alpha).ok().map(|text| text.contains("past the exit node"));
    wait_for("alpha to say that names go past the exit node", PATIENCE, || warns().filter(|warns| *warns))?;
    world.server.admin(&["dns", "nameservers", "9.93.0.2"])?;
    world.server.admin(&["dns", "override", "on"])?;
    wait_for("alpha to say so no more", PATIENCE, || warns().filter(|warns| !*warns))?;
    let finds = |name: &str| {
        let found = host.run("getent").args("ahostsv4").arg(name).output().ok();
        found.filter(|text| text.contains("192.0.2.80"))
    };
    // What was asked on the way here may have gone straight.
    wait_for("the name through the exit node", PATIENCE, || finds("www.example.org"))?;
    let _ = finds("second.example.org");
    let [beta4, _] = addresses(&world.beta.host);
    let askers = far.heard("second");
    ensure!(!askers.is_empty() && askers.iter().all(|from| *from == beta4), "the resolver was asked by {askers:?}");
    world.beta.kill()?;
    let _ = finds("third.example.org");
    ensure!(far.heard("third").is_empty(), "asked past the exit node, by {:?}", far.heard("third"));
    let leaks = [near.heard("second"), near.heard("third")].concat();
    ensure!(leaks.is_empty(), "the network's resolver was asked by {leaks:?}");
    Ok(())
}
