//! Names of the tailnet, as programs of the machine find them.

use super::Context;
use super::routes::forward;
use super::userspace;
use crate::fleet::{Node, PATIENCE, Server, icmp};
use crate::lab::{Host, Lab, wait_for};
use anyhow::{Context as _, Result, ensure};
use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

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

/// Queries in lower case, and who asked.
type Heard = Arc<Mutex<Vec<(Vec<u8>, IpAddr)>>>;

/// A resolver of the Internet that knows one name: www.example.org is 192.0.2.80. It ends with the value.
pub(crate) struct Upstream {
    ends: Arc<AtomicBool>,
    heard: Heard,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Upstream {
    /// Answers on `socket`.
    pub(crate) fn start(socket: UdpSocket) -> Result<Self> {
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let ends = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ends);
        let heard = Heard::default();
        let asked = Arc::clone(&heard);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while !told.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let query = buffer.get(..length).unwrap_or_default();
                asked.lock().expect("nobody panics with it").push((query.to_ascii_lowercase(), from.ip()));
                drop(answer(query).map(|answer| socket.send_to(&answer, from)));
            }
        });
        Ok(Self { ends, heard, thread: Some(thread) })
    }

    /// Returns by whom it was asked for names with this label.
    pub(super) fn heard(&self, label: &str) -> Vec<IpAddr> {
        let heard = self.heard.lock().expect("nobody panics with it");
        let has = |query: &[u8]| query.windows(label.len()).any(|part| part == label.as_bytes());
        heard.iter().filter(|(query, _)| has(query)).map(|(_, from)| *from).collect()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(std::thread::JoinHandle::join));
    }
}

/// Answers a query, by hand: RFC 1035, section 4.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let end = 12 + query.get(12..)?.iter().position(|&byte| byte == 0)? + 5;
    let mut message = query.get(..end)?.to_vec();
    let known = b"\x03www\x07example\x03org\0".as_slice();
    let name = query.get(12..end - 4)?.to_ascii_lowercase();
    let is_v4 = query.get(end - 4..end - 2)? == [0, 1];
    let count = u8::from(name == known && is_v4);
    let code = if name == known { 0x80 } else { 0x83 };
    message.get_mut(2..12)?.copy_from_slice(&[0x81, code, 0, 1, 0, count, 0, 0, 0, 0]);
    if count == 1 {
        message.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 80]);
    }
    Some(message)
}

/// Programs find short names of the tailnet and names of the Internet without anybody changing a file; where they asked before
/// is put back when that is not wished, when the node goes down or ends, and after it was killed.
pub(super) fn system_resolver(context: &Context) -> Result<()> {
    let lab = Lab::new("resolver", &["server", "alpha", "beta"])?;
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let upstream = Upstream::start(lab.host("server").bind("10.91.0.2:53")?)?;
    let host = lab.host("alpha");
    host.set_nameserver("10.91.0.2")?;
    let settings = || host.run("cat").arg("/etc/resolv.conf").output();
    let before = settings()?;
    let mut alpha = Node::start(&context.warren, &host)?;
    let beta = Node::start(&context.warren, &lab.host("beta"))?;
    for node in [&alpha, &beta] {
        node.up(&server.invite(&[])?, &[])?;
    }
    let beta4 = beta.addresses()?.0;
    let finds =
        |name: &str, address: &str| look_up(&host, "ahostsv4", name).filter(|text| text.contains(address)).map(drop);
    let both = |what: &str| -> Result<()> {
        wait_for(what, PATIENCE, || finds("beta", &beta4).and(finds("www.example.org", "192.0.2.80")))
            .with_context(|| format!("resolv.conf says: {}", settings().unwrap_or_default()))
    };
    both("names of both kinds")?;
    ensure!(settings()?.contains("nameserver 100.100.100.100"), "programs ask somebody else: {}", settings()?);
    ensure!(look_up(&host, "ahosts", "nobody").is_none(), "an address of nobody");

    let back = |what: &str| {
        wait_for(what, PATIENCE, || (settings().ok()? == before).then_some(()))
            .with_context(|| format!("resolv.conf says: {}", settings().unwrap_or_default()))
    };
    alpha.cli(&["set", "--accept-dns=false"])?;
    back("the old settings without accept-dns")?;
    alpha.cli(&["set", "--accept-dns"])?;
    both("names again")?;
    alpha.cli(&["down"])?;
    back("the old settings when down")?;
    alpha.cli(&["up", "--timeout", "30"])?;
    both("names when up again")?;

    // Whoever writes the file meanwhile is heard, and asked for what is not ours.
    host.set_nameserver("10.91.0.2")?;
    wait_for("programs to ask the node again", PATIENCE, || {
        settings().ok().filter(|text| text.contains("nameserver 100.100.100.100"))
    })?;
    both("names after somebody wrote the file")?;

    // Killed: nobody answers, until somebody cleans up; a next life finds them again.
    ensure!(alpha.cli(&["cleanup"]).is_err(), "a cleanup beside a node that runs");
    alpha.kill()?;
    ensure!(settings()? != before && finds("www.example.org", "192.0.2.80").is_none(), "nothing was left behind");
    alpha.cli(&["cleanup"])?;
    ensure!(settings()? == before, "not put back: {}", settings()?);
    finds("www.example.org", "192.0.2.80").context("names of the Internet after cleanup")?;
    alpha.start_again()?;
    both("names in the next life")?;
    alpha.kill_and_restart()?;
    both("names in a life after one that was killed")?;

    // Without the resolver of the Internet, names of the tailnet are found.
    drop(upstream);
    ensure!(finds("www.example.org", "192.0.2.80").is_none() || finds("beta", &beta4).is_some(), "no names at all");
    wait_for("beta while the resolver is away", PATIENCE, || finds("beta", &beta4))?;
    ensure!(alpha.stop()?.success(), "the daemon did not stop cleanly");
    ensure!(settings()? == before, "not put back at the end: {}", settings()?);
    Ok(())
}

/// Everybody reaches everything.
const OPEN: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;

/// Names of a domain are asked of a resolver in a network behind a node, by nodes with and without TUN device, and the resolver of
/// the machine's own network never hears of one: not of those that nobody knows, nor when nobody leads there any more.
pub(super) fn split(context: &Context) -> Result<()> {
    let mut lab = Lab::new("split-dns", &["server", "alpha", "beta", "gamma"])?;
    let router = lab.host("beta");
    let inside = lab.add_lan(&router, "lb")?;
    let server = Server::start(&context.warren, &lab.host("server"), &[])?;
    let file = lab.dir().join("open.hujson");
    std::fs::write(&file, OPEN)?;
    server.policy(&["set", &file.to_string_lossy()])?;
    let near = Upstream::start(lab.host("server").bind("10.91.0.2:53")?)?;
    let far = Upstream::start(inside.bind("0.0.0.0:53")?)?;
    let [far4, _] = inside.lan_addresses();
    server.admin(&["dns", "split", "example.org", &far4])?;
    forward(&router)?;
    let mut beta = Node::start(&context.warren, &router)?;
    let [net4, _] = router.lan();
    beta.up(&server.invite(&[])?, &[&format!("--advertise-routes={net4}")])?;
    server.admin(&["node", "approve-routes", "beta", &net4])?;
    let [alpha, gamma] = ["alpha", "gamma"].map(|name| lab.host(name));
    for host in [&alpha, &gamma] {
        host.set_nameserver("10.91.0.2")?;
    }
    let on_tun = Node::start(&context.warren, &alpha)?;
    on_tun.up(&server.invite(&[])?, &["--accept-routes"])?;
    let without = userspace::start(context, &gamma, &server.invite(&[])?)?;
    without.cli(&["set", "--accept-routes"])?;

    let finds = |name: &str| look_up(&alpha, "ahostsv4", name).filter(|text| text.contains("192.0.2.80"));
    wait_for("a name of the domain", PATIENCE, || finds("www.example.org"))?;
    ensure!(finds("nobody.example.org").is_none(), "an address of nobody");
    let count = far.heard("example").len();
    // Nothing answers at that address; it is the name that matters.
    let fetches = |name: &str| userspace::fetch_by_name(&gamma, name);
    wait_for("a question of a node without TUN device", PATIENCE, || {
        fetches("www.example.org");
        (far.heard("example").len() > count).then_some(())
    })?;
    fetches("nobody.example.org");
    // Of the network's own resolver it is known that it would have heard.
    let _ = look_up(&alpha, "ahostsv4", "www.elsewhere.net");
    fetches("www.elsewhere.net");
    ensure!(!near.heard("elsewhere").is_empty(), "nobody asks the network's resolver for names of others");
    // Short names are the tailnet's.
    fetches("nobody-short");
    let leaks = || [near.heard("example"), near.heard("nobody-short")].concat();
    ensure!(leaks().is_empty(), "the network's resolver heard of {:?}", leaks());

    beta.kill()?;
    ensure!(finds("mail.example.org").is_none(), "somebody answers without the resolver");
    fetches("mail.example.org");
    ensure!(leaks().is_empty(), "without the router the network's resolver heard of {:?}", leaks());
    println!("        asked inside {} times, and never outside", far.heard("example").len());
    Ok(())
}
