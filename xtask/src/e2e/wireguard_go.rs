//! Debian's wireguard-go against the `wg` core: the core runs here, on a socket inside a host of the lab, without a
//! TUN device; pings are made and answered by hand.

mod core;
mod icmp;

use super::Context;
use crate::lab::{Host, Lab, Process, wait_for};
use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use core::Core;
use std::path::Path;
use std::time::Duration;
use warren_wire::key::NodeSecret;

/// Tunnel addresses.
const OURS: [u8; 4] = [10, 99, 0, 1];
const THEIRS: [u8; 4] = [10, 99, 0, 2];
/// Where wireguard-go listens at first, and after it has moved.
const PORT: u16 = 51_820;
const OTHER_PORT: u16 = 51_999;
const SOON: Duration = Duration::from_secs(10);

fn our_secret() -> NodeSecret {
    NodeSecret::from_bytes([0x31; 32])
}

fn their_secret() -> NodeSecret {
    NodeSecret::from_bytes([0x32; 32])
}

/// Handshakes from either side, data both ways, renewal, restart, roaming, keep-alives, cookies.
pub(super) fn interop(_: &Context) -> Result<()> {
    let lab = Lab::new("wireguard_go", &["core", "go"])?;
    let (here, there) = (lab.host("core"), lab.host("go"));
    let mut go = WireguardGo::start(&there)?;
    let socket = here.bind("0.0.0.0:0")?;
    go.introduce(&format!("{}:{}", here.address, socket.local_addr()?.port()))?;
    let mut core = Core::new(socket, format!("{}:{PORT}", there.address).parse()?)?;

    core.ping(1000).context("we begin the handshake and ping")?;
    ensure!(core.sent.initiations == 1 && core.received.responses == 1, "one handshake: {core}");
    go.ping(&mut core, 1000).context("wireguard-go pings")?;
    ensure!(core.sent.initiations == 1 && core.received.initiations == 0, "no further handshake: {core}");

    // The session is 121 s old as far as we know: pings go on, without a loss, through a renewal.
    core.skip(Duration::from_secs(121));
    core.ping(300).context("pings over a renewal")?;
    ensure!(core.sent.initiations == 2 && core.received.responses == 2, "one renewal: {core}");
    go.ping(&mut core, 300)?;

    // A new process with the same key begins a handshake of its own.
    go.restart(&there)?;
    go.ping(&mut core, 300).context("pings after wireguard-go was started anew")?;
    ensure!(core.received.initiations >= 1 && core.sent.responses >= 1, "it began the handshake: {core}");
    core.ping(300)?;

    roaming(&here, &mut go, &mut core).context("roaming")?;
    keepalives(&mut go, &mut core).context("keep-alives")?;
    cookies(&here, &there, &mut go, &mut core).context("cookies")?;
    Ok(())
}

/// Either side changes its address, and the other follows.
fn roaming(here: &Host, go: &mut WireguardGo, core: &mut Core) -> Result<()> {
    let socket = here.bind("0.0.0.0:0")?;
    let endpoint = format!("{}:{}", here.address, socket.local_addr()?.port());
    core.move_to(socket);
    core.ping(100).context("from another port")?;
    ensure!(go.wg("endpoints")?.contains(&endpoint), "wireguard-go follows to {endpoint}: {}", go.wg("endpoints")?);
    go.ping(core, 100)?;

    go.set(&["listen-port", &OTHER_PORT.to_string()])?;
    go.ping(core, 100).context("from wireguard-go's other port")?;
    ensure!(core.endpoint.port() == OTHER_PORT, "we follow: {}", core.endpoint);
    core.ping(100)?;

    // To another family: what we send first from there tells them.
    core.move_to(here.bind("[::]:0")?);
    core.send_to(format!("[fd91::3]:{OTHER_PORT}").parse()?);
    core.ping(100).context("over IPv6")?;
    ensure!(go.wg("endpoints")?.contains("[fd91::2]"), "wireguard-go follows: {}", go.wg("endpoints")?);
    go.ping(core, 100)
}

/// Both sides answer data with an empty packet after 10 s, and empty packets with nothing.
fn keepalives(go: &mut WireguardGo, core: &mut Core) -> Result<()> {
    let before = core.received.empty;
    core.send(&icmp::stray_reply(OURS, THEIRS));
    core.run_until("wireguard-go's keep-alive", Duration::from_secs(14), |core| core.received.empty > before)?;

    let (before, transfer) = (core.sent.empty, go.received()?);
    core.mute = true;
    go.ping(core, 1).err().context("a muted core answered a ping")?;
    core.skip(Duration::from_secs(10));
    core.run_until("our keep-alive", SOON, |core| core.sent.empty > before)?;
    core.mute = false;
    wait_for("wireguard-go to count our keep-alive", SOON, || (go.received().ok()? == transfer + 32).then_some(()))?;

    // Not before the workers' notes have been looked at: what follows is about nothing being due.
    core.skip(Duration::from_secs(2));
    let (sent, received) = (core.sent.total(), core.received.empty);
    go.set_peer(&["persistent-keepalive", "1"])?;
    core.run_until("persistent keep-alives", SOON, |core| core.received.empty >= received + 3)?;
    core.skip(Duration::from_secs(12));
    core.run_until("one more", SOON, |core| core.received.empty >= received + 4)?;
    ensure!(core.sent.total() == sent, "empty packets are not answered: {core}");
    go.set_peer(&["persistent-keepalive", "off"])
}

/// A side under load asks the other to prove its address, and a handshake still completes.
fn cookies(here: &Host, there: &Host, go: &mut WireguardGo, core: &mut Core) -> Result<()> {
    core.flooded = true;
    go.restart(there)?;
    // Ping gives up before the handshake is tried again after 5 s; the packet waits in wireguard-go.
    let answered = core.sent.responses;
    go.ping(core, 1).err().context("we were under load and answered at once")?;
    core.run_until("a handshake with our cookie", SOON, |core| core.sent.responses > answered)?;
    ensure!(core.sent.cookies >= 1 && core.received.proved >= 1, "it came back with our cookie: {core}");
    go.ping(core, 10).context("with us under load")?;
    core.flooded = false;

    core.move_to(here.bind("0.0.0.0:0")?);
    core.send_to(format!("{}:{PORT}", there.address).parse()?);
    let flood = core::Flood::new(here.bind("0.0.0.0:0")?, core.endpoint)?;
    core.forget();
    flood.until_loaded()?;
    core.begin()?;
    core.run_until("a cookie from a loaded wireguard-go", SOON, |core| core.received.cookies > 0)?;
    flood.until_loaded()?;
    core.skip(Duration::from_millis(5400));
    core.ping(10).context("with wireguard-go under load")
}

/// A wireguard-go with its device.
struct WireguardGo {
    device: String,
    host: Host,
    process: Process,
    peer: String,
    endpoint: String,
}

impl WireguardGo {
    fn start(host: &Host) -> Result<Self> {
        // Control sockets are the machine's, not the namespace's: the name must be our own.
        let device = format!("wrn{}", std::process::id());
        let process = Self::spawn(host, &device)?;
        let peer = BASE64_STANDARD.encode(our_secret().public().as_bytes());
        let go = Self { device, host: host.clone(), process, peer, endpoint: String::new() };
        go.configure()?;
        Ok(go)
    }

    fn spawn(host: &Host, device: &str) -> Result<Process> {
        let path = Path::new("/usr/bin/wireguard-go");
        let mut process = host.spawn_env("wireguard-go", path, &["-f", device], &[("LOG_LEVEL", "verbose")])?;
        process.wait_log("UAPI listener started", SOON)?;
        Ok(process)
    }

    fn configure(&self) -> Result<()> {
        let key = self.host.dir().join("go.key");
        std::fs::write(&key, BASE64_STANDARD.encode(their_secret().expose_bytes()))?;
        self.set(&["listen-port", &PORT.to_string(), "private-key", &key.to_string_lossy()])?;
        let [a, b, c, d] = THEIRS;
        for words in
            [format!("address add {a}.{b}.{c}.{d}/24 dev {}", self.device), format!("link set {} up", self.device)]
        {
            self.host.run("ip").args(&words).output()?;
        }
        Ok(())
    }

    fn introduce(&mut self, endpoint: &str) -> Result<()> {
        endpoint.clone_into(&mut self.endpoint);
        let [a, b, c, d] = OURS;
        self.set_peer(&["allowed-ips", &format!("{a}.{b}.{c}.{d}/32"), "endpoint", endpoint])
    }

    /// Ends the process and starts another with the same keys, which knows us where it saw us last.
    fn restart(&mut self, host: &Host) -> Result<()> {
        let endpoints = self.wg("endpoints")?;
        let endpoint = endpoints.split_whitespace().nth(1).context("wireguard-go knows no endpoint")?.to_owned();
        self.process.signal("TERM")?;
        self.process.wait_end(SOON)?;
        std::fs::write(host.dir().join("go-wireguard-go.log"), "")?;
        self.process = Self::spawn(host, &self.device)?;
        self.configure()?;
        self.introduce(&endpoint)
    }

    /// Sends `count` pings to us, which the core answers meanwhile, and fails if one stays without answer.
    fn ping(&self, core: &mut Core, count: u32) -> Result<()> {
        let count = count.to_string();
        let args = ["-n", "-q", "-c", &count, "-i", "0.002", "-s", "600", "-W", "2", "10.99.0.1"];
        let before = (core.received.data, core.sent.data);
        let mut ping = self.host.spawn("ping", Path::new("/usr/bin/ping"), &args)?;
        let mut status = None;
        core.run_until("the end of ping", Duration::from_secs(40), |_| {
            status = ping.wait_end(Duration::ZERO).ok();
            status.is_some()
        })?;
        let log = ping.log();
        let summary = log.lines().rev().find(|line| line.contains("transmitted")).unwrap_or("no summary").to_owned();
        let (came, answered) = (core.received.data - before.0, core.sent.data - before.1);
        ensure!(summary.contains(" 0% packet loss"), "ping says: {summary}; {came} came, {answered} answered; {core}");
        Ok(())
    }

    fn set(&self, words: &[&str]) -> Result<()> {
        let mut run = self.host.run("wg").arg("set").arg(&self.device);
        for word in words {
            run = run.arg(word);
        }
        run.output().map(drop)
    }

    fn set_peer(&self, words: &[&str]) -> Result<()> {
        self.set(&[&["peer", &self.peer], words].concat())
    }

    fn wg(&self, what: &str) -> Result<String> {
        self.host.run("wg").arg("show").arg(&self.device).arg(what).output()
    }

    /// Bytes that wireguard-go has received from us.
    fn received(&self) -> Result<u64> {
        let transfer = self.wg("transfer")?;
        transfer.split_whitespace().nth(1).context("no transfer shown")?.parse().context("transfer is no number")
    }
}

impl Drop for WireguardGo {
    fn drop(&mut self) {
        // A process that is killed leaves its control socket behind.
        drop(self.process.signal("TERM"));
        drop(self.process.wait_end(SOON));
    }
}
