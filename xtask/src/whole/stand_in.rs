//! Debian's wireguard-go as a node of the tailnet: an example of `node` joins in its place and answers disco, and the
//! packets are sealed and opened by wireguard-go.

use crate::fleet::{Invitation, Node, PATIENCE, Server};
use crate::lab::{Host, Process};
use crate::run::{Run, target};
use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use std::path::Path;
use warren_wire::key::NodeKey;

/// Where peers find it, where wireguard-go hears them from, and where wireguard-go listens.
const OUTSIDE: u16 = 41_641;
const INSIDE: &str = "127.0.0.1:41642";
const PROGRAM: u16 = 41_643;

/// A running one.
pub(super) struct StandIn {
    /// Its addresses in the tailnet: IPv4, then IPv6.
    pub(super) addresses: (String, String),
    _joined: Process,
    go: Process,
}

impl StandIn {
    /// Joins as the node `beta` on this host; `alpha` is its only peer.
    pub(super) fn join(
        host: &Host,
        build: &str,
        invitation: &Invitation,
        server: &Server,
        alpha: &Node,
    ) -> Result<Self> {
        Run::cargo().args("build --quiet --locked --package warren-node --example stand_in").args(build).go()?;
        let folder = build.split_whitespace().last().unwrap_or("debug");
        let program = target().join(folder).join("examples/stand_in");
        let (outside, listens) = (format!("{}:{OUTSIDE}", host.address), format!("127.0.0.1:{PROGRAM}"));
        let (key, pin) = (host.dir().join("beta.key"), invitation.value("--server-key")?);
        let key = key.to_string_lossy().into_owned();
        let words = [&server.url, &*pin, &invitation.key, "beta", &outside, INSIDE, &listens, &key];
        let mut joined = host.spawn("stand-in", &program, &words)?;
        joined.wait_log("joined ", PATIENCE)?;
        let log = joined.own_log();
        let line = log.lines().find_map(|line| line.strip_prefix("joined ")).context("it joined without a word")?;
        let (four, six) = line.split_once(' ').with_context(|| format!("not two addresses: {line}"))?;
        let addresses = (four.to_owned(), six.to_owned());

        // Control sockets are the machine's, not the namespace's: the name must be our own.
        let device = format!("wrn{}", std::process::id());
        let go = host.spawn("wireguard-go", Path::new("/usr/bin/wireguard-go"), &["-f", &device])?;
        crate::lab::wait_for("wireguard-go", PATIENCE, || host.run("wg").arg("show").arg(&device).output().ok())
            .with_context(|| go.own_log())?;
        let go = Self { addresses, _joined: joined, go };
        let status = alpha.status()?;
        let text = status.pointer("/Self/PublicKey").and_then(serde_json::Value::as_str).context("alpha has no key")?;
        let peer = BASE64_STANDARD.encode(text.parse::<NodeKey>()?.as_bytes());
        let (alpha4, alpha6) = alpha.addresses()?;
        let port = PROGRAM.to_string();
        let allowed = format!("{alpha4}/32,{alpha6}/128");
        let set = ["set", &device, "listen-port", &port, "private-key", &key, "peer", &peer, "endpoint", INSIDE];
        let set = set.into_iter().chain(["allowed-ips", &allowed]);
        set.fold(host.run("wg"), |run, word| run.arg(word)).output()?;
        let (four, six) = &go.addresses;
        for words in [
            format!("address add {four}/32 dev {device}"),
            format!("address add {six}/128 dev {device} nodad"),
            format!("link set {device} mtu 1280 up"),
            format!("route add {alpha4}/32 dev {device} src {four}"),
            format!("route add {alpha6}/128 dev {device} src {six}"),
        ] {
            host.run("ip").args(&words).output()?;
        }
        Ok(go)
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // A process that is killed leaves its control socket behind.
        drop(self.go.signal("TERM"));
        drop(self.go.wait_end(PATIENCE));
    }
}
