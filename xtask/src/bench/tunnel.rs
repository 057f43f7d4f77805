//! TCP through a tunnel: two of our nodes and two wireguard-go on the same kind of lab, in turns.

use super::{median, release_warren};
use crate::fleet::{Node, Server, transfer};
use crate::lab::{Host, Lab, Process, wait_for};
use crate::packages;
use crate::run::Run;
use anyhow::{Context, Result};
use std::path::Path;
use std::time::Duration;

/// Bytes of one measurement.
const BYTES: u64 = 300_000_000;
/// The tunnels' MTU, the same for both.
const MTU: u32 = 1280;

/// Measures `runs` turns A B A B … and prints medians and their ratio.
pub(super) fn measure(runs: u32) -> Result<()> {
    let warren = release_warren()?;
    packages::debian(&[("wireguard-go", "wireguard-go"), ("wg", "wireguard-tools")])?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for turn in 1..=runs {
        let rate = ours_once(&warren)?;
        println!("turn {turn}: warren       {rate:.0} Mbit/s");
        ours.push(rate);
        let rate = theirs_once()?;
        println!("turn {turn}: wireguard-go {rate:.0} Mbit/s");
        theirs.push(rate);
    }
    let (one, two) = (median(&mut ours), median(&mut theirs));
    println!("TCP through the tunnel: warren {one:.0} Mbit/s, wireguard-go {two:.0} Mbit/s, ratio {:.2}", one / two);
    Ok(())
}

fn ours_once(warren: &Path) -> Result<f64> {
    let lab = Lab::new("tunnel-ours", &["server", "alpha", "beta"])?;
    let server = Server::start(warren, &lab.host("server"), &[])?;
    let invitation = server.invite(&["--reusable"])?;
    let alpha = Node::start(warren, &lab.host("alpha"))?;
    let beta = Node::start(warren, &lab.host("beta"))?;
    alpha.up(&invitation, &[])?;
    beta.up(&invitation, &[])?;
    alpha.wait_direct("beta")?;
    beta.wait_direct("alpha")?;
    rate(&transfer(&alpha.host, &beta.host, &beta.addresses()?.0, BYTES)?)
}

fn theirs_once() -> Result<f64> {
    let lab = Lab::new("tunnel-wireguard-go", &["alpha", "beta"])?;
    let (alpha, beta) = (lab.host("alpha"), lab.host("beta"));
    let keys = [keys()?, keys()?];
    let _one = wireguard_go(&alpha, &keys, 0, "10.77.0.1", &beta, "10.77.0.2")?;
    let _two = wireguard_go(&beta, &keys, 1, "10.77.0.2", &alpha, "10.77.0.1")?;
    rate(&transfer(&alpha, &beta, "10.77.0.2", BYTES)?)
}

/// Private and public key.
type Keys = (String, String);

fn keys() -> Result<Keys> {
    let private = Run::new("wg").arg("genkey").output()?.trim().to_owned();
    let public = Run::new("wg").arg("pubkey").input(&private)?.trim().to_owned();
    Ok((private, public))
}

/// Starts wireguard-go on `host` with one peer; `own` picks our keys.
fn wireguard_go(
    host: &Host,
    keys: &[Keys; 2],
    own: usize,
    address: &str,
    peer: &Host,
    allowed: &str,
) -> Result<Process> {
    // `wg` finds a device by the name of its socket, which namespaces share: one name for each.
    let device = format!("wgt{own}");
    let process = host.spawn("wireguard-go", Path::new("wireguard-go"), &["-f", &device])?;
    let limit = Duration::from_secs(10);
    wait_for("wireguard-go's device", limit, || host.run("wg").args("show").arg(&device).output().ok())?;
    let file = host.dir().join(format!("{}.key", host.name));
    std::fs::write(&file, &keys[own].0).context("cannot write the key")?;
    host.run("wg").args(&format!("set {device} listen-port 51820 private-key")).arg(&file).output()?;
    let endpoint = format!("{}:51820", peer.address);
    let words = format!("set {device} peer {} allowed-ips {allowed}/32 endpoint {endpoint}", keys[1 - own].1);
    host.run("wg").args(&words).output()?;
    for words in [format!("address add {address}/24 dev {device}"), format!("link set {device} mtu {MTU} up")] {
        host.run("ip").args(&words).output()?;
    }
    Ok(process)
}

/// Reads Mbit/s from the receiver's line `received from A in S s: N bytes …`.
fn rate(line: &str) -> Result<f64> {
    let seconds = line.split(" in ").nth(1).and_then(|rest| rest.split(' ').next());
    let seconds: f64 = seconds.with_context(|| format!("no time in {line:?}"))?.parse()?;
    Ok(BYTES as f64 * 8.0 / seconds / 1e6)
}
