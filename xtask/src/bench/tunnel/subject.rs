//! What is measured: a pair of hosts, and how packets get from one to the other.

use super::Programs;
use crate::fleet::{Node, PATIENCE, Server, Setting};
use crate::lab::{Host, Lab, Process, wait_for};
use crate::run::Run;
use anyhow::{Context, Result};
use std::path::Path;
use std::time::Duration;

/// The tunnels' MTU, the same for all.
const MTU: &str = "1420";
/// Where the others listen.
const PORT: u16 = 51_820;

/// A way from one host to the other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    /// No tunnel: the switch itself.
    Plain,
    /// The packet worker's parts with an AEAD, or without, and nothing else.
    Bare(&'static str),
    /// Our node, with the AEAD that it takes by itself (vectors where the processor has them) or with one that is chosen.
    Warren(Option<&'static str>),
    /// Our node under a policy of a thousand rules.
    Rules,
    /// See `crates.io`.
    Gotatun,
    /// See `crates.io`.
    Boringtun,
    /// Debian's.
    WireguardGo,
}

/// Two hosts with a way between them that is ready for use.
pub(super) struct Pair {
    pub(super) alpha: Host,
    pub(super) beta: Host,
    /// Beta's address on that way.
    pub(super) address: String,
    /// The two processes that move packets; none without a tunnel.
    pub(super) pids: Vec<u32>,
    held: Held,
    _lab: Lab,
}

/// The processes that end with the pair, before their lab.
#[derive(Default)]
struct Held {
    nodes: Vec<Node>,
    processes: Vec<Process>,
    #[expect(dead_code, reason = "it serves the nodes")]
    server: Option<Server>,
}

impl Pair {
    /// Our nodes; none for other programs.
    pub(super) fn nodes(&self) -> Option<(&Node, &Node)> {
        self.held.nodes.first().zip(self.held.nodes.get(1))
    }
}

impl Subject {
    /// The name of our node as people get it.
    pub(super) const WARREN: &'static str = "warren";
    /// The name of what cannot be surpassed with the same AEAD, on a processor that has the vectors.
    pub(super) const CEILING: &'static str = "bare-vectors";
    /// All, in the order of a turn.
    pub(super) const ALL: [Self; 10] = [
        Self::Plain,
        Self::Bare("none"),
        Self::Bare("aws"),
        Self::Warren(None),
        Self::Rules,
        Self::Bare("vectors"),
        Self::Warren(Some("aws")),
        Self::Gotatun,
        Self::Boringtun,
        Self::WireguardGo,
    ];

    /// Returns the name in the output.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Bare("none") => "bare-none",
            Self::Bare("aws") => "bare-aws",
            Self::Bare(_) => Self::CEILING,
            Self::Warren(None) => Self::WARREN,
            Self::Warren(Some(_)) => "warren-aws",
            Self::Rules => "warren-rules",
            Self::Gotatun => "gotatun",
            Self::Boringtun => "boringtun",
            Self::WireguardGo => "wireguard-go",
        }
    }

    /// Sets it up; a first packet has gone through both ways.
    pub(super) fn set_up(self, programs: &Programs) -> Result<Pair> {
        let lab = Lab::new(&format!("tunnel-{}", self.name()), &["server", "alpha", "beta"])?;
        let hosts = [lab.host("alpha"), lab.host("beta")];
        let (address, held) = match self {
            Self::Plain => (hosts[1].address.clone(), Held::default()),
            Self::Bare(aead) => bare(&programs.bare, &hosts, aead)?,
            Self::Warren(aead) => warren(&programs.warren, &lab.host("server"), &hosts, aead, None)?,
            Self::Rules => warren(&programs.warren, &lab.host("server"), &hosts, None, Some(&rules()))?,
            // Both ask who has logged in, unless they are told to stay root.
            Self::Gotatun => wireguard(&programs.gotatun, &["-f", "--disable-drop-privileges"], &hosts)?,
            Self::Boringtun => wireguard(&programs.boringtun, &["-f", "--disable-drop-privileges"], &hosts)?,
            Self::WireguardGo => wireguard(Path::new("wireguard-go"), &["-f"], &hosts)?,
        };
        let nodes = held.nodes.iter().map(|node| node.process().id());
        let pids = nodes.chain(held.processes.iter().map(Process::id)).collect();
        let [alpha, beta] = hosts;
        wait_for(&format!("an answer over {}", self.name()), PATIENCE, || {
            alpha.run("ping").args("-c 1 -W 1").arg(&address).output().ok()
        })?;
        Ok(Pair { alpha, beta, address, pids, held, _lab: lab })
    }
}

/// Beta's address, and what keeps the way to it.
type Way = (String, Held);

fn bare(program: &Path, hosts: &[Host; 2], aead: &str) -> Result<Way> {
    let mut processes = Vec::new();
    for (number, host) in hosts.iter().enumerate() {
        let peer = format!("{}:{PORT}", hosts[1 - number].address);
        let words = ["forward", "bare0", MTU, &PORT.to_string(), &peer, aead];
        let mut process = host.spawn("bare", program, &words)?;
        process.wait_log("ready", PATIENCE)?;
        address(host, "bare0", number)?;
        processes.push(process);
    }
    Ok((inner(1), Held { processes, ..Held::default() }))
}

fn warren(program: &Path, server: &Host, hosts: &[Host; 2], aead: Option<&str>, policy: Option<&str>) -> Result<Way> {
    let file = server.dir().join("policy.hujson");
    let server = Server::start(program, server, &[])?;
    if let Some(policy) = policy {
        std::fs::write(&file, policy).context("cannot write the policy")?;
        server.policy(&["set", &file.to_string_lossy()])?;
    }
    let invitation = server.invite(&["--reusable"])?;
    let aead = aead.map(|aead| ("WARREN_AEAD".to_owned(), aead.to_owned()));
    let environment: Vec<(String, String)> =
        [("WARREN_LOG".to_owned(), "info".to_owned())].into_iter().chain(aead).collect();
    let mut nodes = Vec::new();
    for host in hosts {
        let arguments = vec!["--mtu".to_owned(), MTU.to_owned()];
        let setting = Setting { environment: environment.clone(), arguments, ..Setting::default() };
        let node = Node::start_as(program, host, &host.name, setting)?;
        node.up(&invitation, &[])?;
        nodes.push(node);
    }
    nodes[0].wait_direct("beta")?;
    nodes[1].wait_direct("alpha")?;
    let address = nodes[1].addresses()?.0;
    Ok((address, Held { nodes, server: Some(server), ..Held::default() }))
}

/// A policy of rules that differ in their ports, so that none can be put together with another; the last lets all pass.
fn rules() -> String {
    let rule = |port: u32| {
        format!(r#"{{ "action": "accept", "src": ["100.64.{}.{}"], "dst": ["*:{port}"] }},"#, port % 50, port % 250)
    };
    let many: String = (20_000..20_999).map(rule).collect();
    format!(r#"{{ "acls": [{many} {{ "action": "accept", "src": ["*"], "dst": ["*:*"] }}] }}"#)
}

/// Starts a program that `wg` configures, one on each host.
fn wireguard(program: &Path, options: &[&str], hosts: &[Host; 2]) -> Result<Way> {
    let keys = [keys()?, keys()?];
    let mut processes = Vec::new();
    for (number, host) in hosts.iter().enumerate() {
        // `wg` finds a device by the name of its socket, which namespaces share: one name for each.
        let device = format!("wgt{number}");
        let words: Vec<&str> = options.iter().copied().chain([device.as_str()]).collect();
        processes.push(host.spawn("wireguard", program, &words)?);
        let limit = Duration::from_secs(10);
        wait_for("the tunnel's device", limit, || host.run("wg").args("show").arg(&device).output().ok())?;
        let file = host.dir().join(format!("{}.key", host.name));
        std::fs::write(&file, &keys[number].0).context("cannot write the key")?;
        host.run("wg").args(&format!("set {device} listen-port {PORT} private-key")).arg(&file).output()?;
        let other = 1 - number;
        let endpoint = format!("{}:{PORT}", hosts[other].address);
        let peer = format!("peer {} allowed-ips {}/32 endpoint {endpoint}", keys[other].1, inner(other));
        host.run("wg").args(&format!("set {device} {peer}")).output()?;
        address(host, &device, number)?;
    }
    Ok((inner(1), Held { processes, ..Held::default() }))
}

/// Private and public key.
type Keys = (String, String);

fn keys() -> Result<Keys> {
    let private = Run::new("wg").arg("genkey").output()?.trim().to_owned();
    let public = Run::new("wg").arg("pubkey").input(&private)?.trim().to_owned();
    Ok((private, public))
}

/// The address inside the tunnel of host 0 or 1.
fn inner(number: usize) -> String {
    format!("10.77.0.{}", number + 1)
}

fn address(host: &Host, device: &str, number: usize) -> Result<()> {
    let own = inner(number);
    for words in [format!("address add {own}/24 dev {device}"), format!("link set {device} mtu {MTU} up")] {
        host.run("ip").args(&words).output()?;
    }
    Ok(())
}
