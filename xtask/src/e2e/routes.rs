//! Networks behind nodes: machines that run nothing of ours.

use super::Context;
use crate::fleet::{GoClient, Node, PATIENCE, Server, icmp, last_lines, transfer};
use crate::lab::{Host, Lab, wait_for};
use crate::packages;
use anyhow::{Context as _, Result, ensure};

/// Everybody reaches everything, from networks behind nodes, too.
const OPEN: &str = r#"{"acls": [{"action": "accept", "src": ["*", "192.168.0.0/16", "fd92::/16"], "dst": ["*:*"]}]}"#;

/// Likewise; routers with a tag need no administrator.
const TRUSTED: &str = r#"{
    "tagOwners": {"tag:router": []},
    "acls": [{"action": "accept", "src": ["*", "192.168.0.0/16", "fd92::/16"], "dst": ["*:*"]}],
    "autoApprovers": {"routes": {"192.168.0.0/16": ["tag:router"], "fd92::/16": ["tag:router"]}},
}"#;

/// The nodes alpha and beta with one machine behind each, la and lb.
struct Sites {
    server: Server,
    alpha: Node,
    beta: Node,
    la: Host,
    lb: Host,
    lab: Lab,
}

impl Sites {
    /// Everything up, both networks offered with `further` settings; nothing is approved yet.
    fn start(context: &Context, title: &str, further: &[&str]) -> Result<Self> {
        Self::start_with(context, title, (OPEN, &["--reusable"]), further)
    }

    /// Likewise, with another policy, and an auth key of another kind.
    fn start_with(context: &Context, title: &str, (policy, key): (&str, &[&str]), further: &[&str]) -> Result<Self> {
        let mut lab = Lab::new(title, &["server", "alpha", "beta"])?;
        let (on_alpha, on_beta) = (lab.host("alpha"), lab.host("beta"));
        let (la, lb) = (lab.add_lan(&on_alpha, "la")?, lab.add_lan(&on_beta, "lb")?);
        let server = Server::start(&context.warren, &lab.host("server"), &[])?;
        let file = lab.dir().join("open.hujson");
        std::fs::write(&file, policy)?;
        server.policy(&["set", &file.to_string_lossy()])?;
        let invitation = server.invite(key)?;
        let alpha = Node::start(&context.warren, &on_alpha)?;
        let beta = Node::start(&context.warren, &on_beta)?;
        for node in [&alpha, &beta] {
            let offer = format!("--advertise-routes={}", node.host.lan().join(","));
            let words: Vec<&str> =
                [offer.as_str(), "--accept-routes"].into_iter().chain(further.iter().copied()).collect();
            node.up(&invitation, &words)?;
        }
        Ok(Self { server, alpha, beta, la, lb, lab })
    }

    fn approve(&self, node: &Node) -> Result<()> {
        let [four, six] = node.host.lan();
        self.server.admin(&["node", "approve-routes", &node.host.name, &four, &six]).map(drop)
    }

    /// Waits for an echo in each family.
    fn wait_echoes(&self, from: &Host, to: &Host) -> Result<()> {
        for address in to.lan_addresses() {
            wait_for(&format!("an echo from {} to {address}", from.name), PATIENCE, || icmp(from, &address, 1).ok())
                .with_context(|| {
                    let logs = [&self.alpha, &self.beta].map(|node| last_lines(&node.process().log()));
                    format!("the nodes' logs end with:\n{}\nand\n{}", logs[0], logs[1])
                })?;
        }
        Ok(())
    }
}

/// Lets a machine pass packets on.
pub(super) fn forward(host: &Host) -> Result<()> {
    host.run("sysctl").args("-q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1").output().map(drop)
}

/// Sends all packets of a machine in a network to its router.
fn default_route(host: &Host) -> Result<()> {
    for address in host.lan_addresses() {
        let mut router = address;
        router.pop();
        host.run("ip").args("route add default via").arg(format!("{router}1")).output()?;
    }
    Ok(())
}

/// Returns what a node says is wrong.
pub(super) fn health(node: &Node) -> Result<String> {
    Ok(node.status()?.get("Health").map(ToString::to_string).unwrap_or_default())
}

/// A machine behind beta is reached from alpha: not before it is approved, nor while beta's machine passes nothing on, of
/// which beta tells; with masquerading without any route of that machine, otherwise with one; and no more when it is taken back.
pub(super) fn networks(context: &Context) -> Result<()> {
    let sites = Sites::start(context, "networks", &[])?;
    let Sites { alpha, beta, lb, .. } = &sites;
    let [lb4, lb6] = lb.lan_addresses();
    icmp(&alpha.host, &beta.addresses()?.0, 1)?;
    ensure!(icmp(&alpha.host, &lb4, 1).is_err(), "reached without approval");
    sites.approve(beta)?;
    wait_for("beta to say that it passes nothing on", PATIENCE, || {
        let said = health(beta).ok()?;
        (said.contains("net.ipv4.ip_forward=1") && said.contains("net.ipv6.conf.all.forwarding=1")).then_some(())
    })?;
    forward(&beta.host)?;
    sites.wait_echoes(&alpha.host, lb)?;
    for address in [&lb4, &lb6] {
        transfer(&alpha.host, lb, address, 5_000_000)?;
    }

    // As they are: the machine needs a way back.
    beta.cli(&["set", "--snat-subnet-routes=false"])?;
    wait_for("packets to keep their addresses", PATIENCE, || icmp(&alpha.host, &lb6, 1).is_err().then_some(()))?;
    default_route(lb)?;
    sites.wait_echoes(&alpha.host, lb)?;
    beta.cli(&["set", "--snat-subnet-routes"])?;
    sites.wait_echoes(&alpha.host, lb)?;

    // An address of a node does not enter the tunnel out of the network. The other end would refuse it, too, so what is
    // looked at is the rule that drops it.
    let spoofed = "100.64.0.99";
    lb.run("ip").args(&format!("address add {spoofed}/32 dev lo")).output()?;
    let rules = || beta.host.run("nft").args("list ruleset").output();
    let is_fresh = |text: &String| text.contains("masquerade") && text.contains("100.64.0.0/10 counter packets 0 ");
    wait_for("the rules after the change", PATIENCE, || rules().ok().filter(is_fresh))?;
    let answer = lb.run("ping").args("-n -c 1 -W 1 -I").arg(spoofed).arg(alpha.addresses()?.0).output();
    ensure!(answer.is_err(), "an answer to a packet with a node's address");
    ensure!(rules()?.contains("100.64.0.0/10 counter packets 1 "), "not dropped by its rule: {}", rules()?);

    // Who does not accept routes has none; nor has anybody when the offer ends.
    alpha.cli(&["set", "--accept-routes=false"])?;
    wait_for("alpha to give up the route", PATIENCE, || icmp(&alpha.host, &lb4, 1).is_err().then_some(()))?;
    alpha.cli(&["set", "--accept-routes"])?;
    sites.wait_echoes(&alpha.host, lb)?;
    beta.cli(&["set", "--advertise-routes="])?;
    wait_for("the route to end with the offer", PATIENCE, || icmp(&alpha.host, &lb4, 1).is_err().then_some(()))?;
    let rules = beta.host.run("nft").args("list ruleset").output()?;
    ensure!(rules.trim().is_empty(), "rules without an offer: {rules}");
    Ok(())
}

/// Machines of two networks that run nothing of ours reach each other with their own addresses, both ways. Nobody had to
/// approve anything.
pub(super) fn sites(context: &Context) -> Result<()> {
    let sites = Sites::start_with(
        context,
        "sites",
        (TRUSTED, &["--reusable", "--tag", "tag:router"]),
        &["--snat-subnet-routes=false"],
    )?;
    let Sites { alpha, beta, la, lb, .. } = &sites;
    for node in [alpha, beta] {
        forward(&node.host)?;
    }
    for host in [la, lb] {
        default_route(host)?;
    }
    sites.wait_echoes(la, lb)?;
    sites.wait_echoes(lb, la)?;
    alpha.wait_direct("beta")?;
    for (from, to) in [(la, lb), (lb, la)] {
        for address in to.lan_addresses() {
            println!("        {} to {address}: {}", from.name, transfer(from, to, &address, 20_000_000)?);
        }
    }
    Ok(())
}

/// SIGKILL of a router takes its firewall rules along; started again it leads into its network as before.
pub(super) fn killed(context: &Context) -> Result<()> {
    let mut sites = Sites::start(context, "killed-router", &[])?;
    forward(&sites.beta.host)?;
    sites.approve(&sites.beta)?;
    sites.wait_echoes(&sites.alpha.host, &sites.lb)?;
    let rules = |host: &Host| host.run("nft").args("list ruleset").output();
    ensure!(rules(&sites.beta.host)?.contains("masquerade"), "a router that does not masquerade");
    sites.beta.kill()?;
    let host = sites.beta.host.clone();
    wait_for("the rules to vanish", PATIENCE, || rules(&host).ok().filter(|text| text.trim().is_empty()))?;
    sites.beta.start_again()?;
    sites.wait_echoes(&sites.alpha.host, &sites.lb)?;
    // At once, while what the killed process left may still be going away.
    sites.beta.kill_and_restart()?;
    sites.wait_echoes(&sites.alpha.host, &sites.lb)?;
    ensure!(sites.beta.stop()?.success(), "the daemon did not stop cleanly");
    ensure!(rules(&host)?.trim().is_empty(), "rules are left: {}", rules(&host)?);
    Ok(())
}

/// Two nodes in one network offer it; when the one that leads into it is killed, the other does.
pub(super) fn second_router(context: &Context) -> Result<()> {
    let sites = Sites::start(context, "second-router", &[])?;
    // Gamma is in the network behind beta by a route over the switch, and masquerades as beta does.
    let mut lab = sites.lab;
    let on_gamma = lab.add("gamma")?;
    let [four, six] = sites.beta.host.lan();
    let number = |host: &Host| host.address.rsplit('.').next().unwrap_or_default().to_owned();
    let via6 = format!("fd91::{}", number(&sites.beta.host));
    for (net, via) in [(&four, &sites.beta.host.address), (&six, &via6)] {
        on_gamma.run("ip").args("route add").arg(net).arg("via").arg(via).output()?;
    }
    default_route(&sites.lb)?;
    forward(&sites.beta.host)?;
    forward(&on_gamma)?;
    let gamma = Node::start(&context.warren, &on_gamma)?;
    gamma.up(&sites.server.invite(&["--reusable"])?, &[&format!("--advertise-routes={four},{six}")])?;
    for name in ["beta", "gamma"] {
        sites.server.admin(&["node", "approve-routes", name, &four, &six])?;
    }
    let alpha = &sites.alpha;
    let [lb4, lb6] = sites.lb.lan_addresses();
    let echo = |what: &str| {
        wait_for(what, PATIENCE * 2, || [&lb4, &lb6].iter().all(|to| icmp(&alpha.host, to, 1).is_ok()).then_some(()))
    };
    echo("echoes over the first router")?;
    let leads = |name: &str| {
        let routes = alpha.peer_routes(name);
        routes.contains(&four) && routes.contains(&six)
    };
    let (first, second) = if leads("beta") { (&sites.beta, &gamma) } else { (&gamma, &sites.beta) };
    ensure!(leads(&first.host.name) && !leads(&second.host.name), "not exactly one leads into the network");
    first.process().signal("KILL")?;
    let name = &second.host.name;
    wait_for(&format!("{name} to lead into the network"), PATIENCE * 4, || leads(name).then_some(()))?;
    echo("echoes over the second router")
}

/// Two routers of one network, and no server: the one that passes nothing on is left for the other, which stays in use when
/// the first works again and whatever a server that has just started says. Hosts of the network may answer by either.
pub(super) fn stands_in(context: &Context) -> Result<()> {
    let mut lab = Lab::new("stands-in", &["server", "alpha", "beta", "gamma"])?;
    let hosts = ["alpha", "beta", "gamma"].map(|name| lab.host(name));
    let [_, on_beta, on_gamma] = &hosts;
    let lb = lab.add_shared_lan(&[on_beta, on_gamma], "lb")?;
    let mut server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let file = lab.dir().join("open.hujson");
    std::fs::write(&file, OPEN)?;
    server.policy(&["set", &file.to_string_lossy()])?;
    let invitation = server.invite(&["--reusable"])?;
    let [four, six] = on_beta.lan();
    let offer = format!("--advertise-routes={four},{six}");
    let mut nodes = Vec::new();
    for host in &hosts {
        let node = Node::start(&context.warren, host)?;
        let words: &[&str] =
            if host.name == "alpha" { &["--accept-routes"] } else { &[&offer, "--snat-subnet-routes=false"] };
        node.up(&invitation, words)?;
        nodes.push(node);
    }
    let [alpha, beta, gamma] = &nodes[..] else { unreachable!("three nodes were started") };
    for router in [beta, gamma] {
        forward(&router.host)?;
        server.admin(&["node", "approve-routes", &router.host.name, &four, &six])?;
    }
    // The host answers by gamma, whichever router packets come from.
    for address in lb.lan_addresses() {
        let mut router = address;
        router.pop();
        lb.run("ip").args("route add default via").arg(format!("{router}3")).output()?;
    }
    let [lb4, lb6] = lb.lan_addresses();
    let echoes = |what: &str| {
        wait_for(what, PATIENCE, || [&lb4, &lb6].iter().all(|to| icmp(&alpha.host, to, 1).is_ok()).then_some(()))
            .with_context(|| format!("alpha's log ends with:\n{}", last_lines(&alpha.process().log())))
    };
    let leads = |name: &str| {
        let before = alpha.sent_to(name).unwrap_or_default();
        Ok::<_, anyhow::Error>(
            icmp(&alpha.host, &lb4, 5).is_ok() && alpha.sent_to(name).unwrap_or_default() > before + 400,
        )
    };
    echoes("echoes over the first router")?;
    ensure!(leads("beta")? && !leads("gamma")?, "the server chose beta, which came first");
    server.kill()?;
    beta.host.block_forwarding(true)?;
    echoes("echoes over the second router, without a server")?;
    ensure!(leads("gamma")? && !leads("beta")?, "packets still go to beta");
    ensure!(health(alpha)?.contains("go over gamma, which works"), "alpha does not say so: {}", health(alpha)?);
    beta.host.block_forwarding(false)?;
    echoes("echoes with both routers")?;
    ensure!(leads("gamma")?, "gamma worked, and was left");
    server.restart()?;
    for name in ["beta", "gamma"] {
        wait_for("the server to know all again", PATIENCE * 2, || alpha.is_online(name).then_some(()))?;
    }
    ensure!(leads("gamma")?, "gamma worked, and was left for what the server says");
    // And back, if that is the one that works.
    lab.unplug(&gamma.host, true)?;
    for address in lb.lan_addresses() {
        let mut router = address;
        router.pop();
        lb.run("ip").args("route replace default via").arg(format!("{router}1")).output()?;
    }
    echoes("echoes over the first router again")?;
    ensure!(leads("beta")?, "packets go elsewhere");
    Ok(())
}

/// Two sites have the same network. A node reaches hosts with the same address at both, by address and by name, with TCP, UDP
/// and pings; one of the routers leaves other packets their addresses. Hosts need no route, and see none of it.
pub(super) fn clashing(context: &Context) -> Result<()> {
    let sites = Sites::start(context, "clashing", &["--snat-subnet-routes=false"])?;
    let Sites { server, alpha, beta, lb, .. } = &sites;
    for (node, host, number) in [(alpha, &sites.la, "7"), (beta, lb, "8")] {
        forward(&node.host)?;
        node.host.run("ip").args("address add 10.5.0.1/24 dev lan0").output()?;
        host.run("ip").args("address add 10.5.0.9/24 dev eth0").output()?;
        let net = node.host.run(&context.warren).args(&format!("debug via {number} 10.5.0.0/24")).output()?;
        let net = net.trim().to_owned();
        node.cli(&["set", &format!("--advertise-routes={net}")])?;
        server.admin(&["node", "approve-routes", &node.host.name, &net])?;
    }
    beta.cli(&["set", "--snat-subnet-routes"])?;
    // Each asks the other's site.
    let me = std::env::current_exe()?;
    for (node, number, host) in [(alpha, 8, lb), (beta, 7, &sites.la)] {
        let to = format!("fd7a:115c:a1e0:b1a:0:{number}:a05:9");
        wait_for(&format!("an echo of site {number}"), PATIENCE, || icmp(&node.host, &to, 1).ok())
            .with_context(|| format!("the log ends with:\n{}", last_lines(&node.process().log())))?;
        let mut receiver = host.spawn("site", &me, &["traffic", "receive", "10.5.0.9:7001"])?;
        receiver.wait_log("listening", PATIENCE)?;
        let sent = node.host.run(&me).args("traffic send").arg(format!("[{to}]:7001")).arg("20000000").output()?;
        receiver.wait_end(PATIENCE)?;
        let digest = sent.trim().strip_prefix("sent ").unwrap_or("nothing");
        ensure!(receiver.log().contains(digest), "the ends disagree: {sent} and {}", receiver.log());
        println!("        to site {number}: {}", receiver.log().lines().last().unwrap_or_default());
        // Both ways at once, and by name.
        let mut answerer = host.spawn("site-answer", &me, &["traffic", "answer", "10.5.0.9:7003"])?;
        answerer.wait_log("listening", PATIENCE)?;
        node.host.run(&me).args("traffic redial").arg(format!("[{to}]:7003")).args("1 --one").output()?;
        let mut page =
            host.spawn("site-page", &me, &["traffic", "http", "10.5.0.9:8080", &format!("site {number}")])?;
        page.wait_log("listening", PATIENCE)?;
        let url = format!("http://10-5-0-9-via-{number}:8080/");
        let said = node.host.run("curl").args("-s --max-time 10").arg(&url).output()?;
        ensure!(said.trim() == format!("site {number}"), "{url} says {said:?}");
    }
    // The router's own loopback is no host of the site.
    ensure!(icmp(&alpha.host, "fd7a:115c:a1e0:b1a:0:8:7f00:1", 1).is_err(), "a router's loopback was reached");
    Ok(())
}

/// The official Go client is told of the network behind our node. Inside Caddy it accepts no routes, and says that it
/// knows this one.
pub(super) fn go_client(context: &Context) -> Result<()> {
    let caddy = packages::caddy()?;
    let mut sites = Sites::start(context, "go-networks", &[])?;
    let gopher = sites.lab.add("gopher")?;
    sites.approve(&sites.beta)?;
    let key = sites.server.invite(&["--reusable"])?.key;
    let gopher = GoClient::start(&gopher, &caddy, &sites.server.url, &key, "page of gopher", &sites.lb.address)?;
    let [four, six] = sites.beta.host.lan();
    wait_for("the Go client to speak of the route", PATIENCE * 2, || {
        let log = gopher.log();
        let line = log.lines().find(|line| line.contains("did not accept subnet routes"))?;
        (line.contains(&four) && line.contains(&six) && line.contains("beta")).then_some(())
    })
    .with_context(|| format!("its log ends with:\n{}", gopher.log_end()))
}
