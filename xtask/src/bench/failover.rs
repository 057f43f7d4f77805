//! How long data of machines that run nothing of ours stands still when the router of their network fails.

use super::{median, release_warren};
use crate::fleet::{Node, PATIENCE, Server, icmp};
use crate::lab::{Host, Lab, wait_for};
use anyhow::{Context, Result, anyhow, bail};
use std::time::Duration;

/// How long the data goes, in seconds.
const SECONDS: &str = "8";
/// When the fault comes.
const BEFORE: Duration = Duration::from_secs(2);

/// Everybody reaches everything, from networks behind nodes, too.
const OPEN: &str = r#"{"acls": [{"action": "accept", "src": ["*", "192.168.0.0/16", "fd92::/16"], "dst": ["*:*"]}]}"#;

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Nothing,
    ServerStops,
    Killed,
    Cut,
    Blocked,
    LanCut,
    CutServerAway,
}

const FAULTS: [(Fault, &str); 7] = [
    (Fault::Nothing, "nothing"),
    (Fault::ServerStops, "the server stands still for 5 s"),
    (Fault::Killed, "the router is killed"),
    (Fault::Cut, "the router's line is cut"),
    (Fault::Blocked, "the router passes nothing on"),
    (Fault::LanCut, "the router's plug in its network is out"),
    (Fault::CutServerAway, "the router's line is cut, no server"),
];

/// Alpha with a machine, la, behind it; beta and gamma lead into the network of lb.
struct Net {
    server: Server,
    alpha: Node,
    routers: [Node; 2],
    la: Host,
    lb: Host,
    // Last, so that the processes end before their namespaces do.
    lab: Lab,
}

/// Causes each fault `runs` times in the middle of data, and prints the longest time without it: where routers give packets
/// their own address, for programs that connect anew, and where they do not, for one connection.
pub(super) fn measure(runs: u32, only: Option<&str>) -> Result<()> {
    let mut net = Net::start(&release_warren()?)?;
    println!("longest time without data at 10 Mbit/s, of {runs} runs each:");
    for (masquerade, kind) in [(true, "new connections, with SNAT"), (false, "one connection, without SNAT")] {
        net.masquerade(masquerade)?;
        println!(" {kind}");
        for (fault, name) in FAULTS.into_iter().filter(|(_, name)| only.is_none_or(|part| name.contains(part))) {
            let mut gaps = Vec::new();
            let mut changes = 0;
            for run in 0..runs {
                let (gap, changed) = net.gap(fault, masquerade).with_context(|| format!("{name}, run {run}"))?;
                gaps.push(gap);
                changes += u32::from(changed);
            }
            let longest = gaps.iter().copied().fold(0.0, f64::max);
            let median = median(&mut gaps);
            println!("  {name:42} median {median:6.0} ms, longest {longest:6.0} ms, {changes} changes of router");
        }
    }
    Ok(())
}

impl Net {
    fn start(warren: &std::path::Path) -> Result<Self> {
        let mut lab = Lab::new("failover", &["server", "alpha", "beta", "gamma"])?;
        let [on_alpha, on_beta, on_gamma] = ["alpha", "beta", "gamma"].map(|name| lab.host(name));
        let la = lab.add_lan(&on_alpha, "la")?;
        let lb = lab.add_shared_lan(&[&on_beta, &on_gamma], "lb")?;
        let server = Server::start(warren, &lab.host("server"), &[])?;
        let file = lab.dir().join("open.hujson");
        std::fs::write(&file, OPEN)?;
        server.policy(&["set", &file.to_string_lossy()])?;
        let invitation = server.invite(&["--reusable"])?;
        let nets = [on_alpha.lan(), on_beta.lan(), on_beta.lan()];
        let mut nodes = Vec::new();
        for (host, net) in [&on_alpha, &on_beta, &on_gamma].into_iter().zip(nets) {
            host.run("sysctl").args("-q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1").output()?;
            let node = Node::start(warren, host)?;
            node.up(&invitation, &["--accept-routes", &format!("--advertise-routes={}", net.join(","))])?;
            server.admin(&["node", "approve-routes", &host.name, &net[0], &net[1]])?;
            nodes.push(node);
        }
        let Ok([alpha, beta, gamma]) = <[Node; 3]>::try_from(nodes) else { bail!("three nodes were started") };
        la.run("ip").args("route add default via").arg(la.gateway()).output()?;
        let net = Self { server, alpha, routers: [beta, gamma], la, lb, lab };
        net.settle()?;
        Ok(net)
    }

    /// Waits until all are there and data passes.
    fn settle(&self) -> Result<()> {
        for router in &self.routers {
            self.alpha.wait_direct(&router.host.name)?;
        }
        wait_for("an echo", PATIENCE, || icmp(&self.la, &self.lb.address, 1).ok()).map(drop)
    }

    fn masquerade(&self, masquerade: bool) -> Result<()> {
        for node in self.routers.iter().chain([&self.alpha]) {
            node.cli(&["set", &format!("--snat-subnet-routes={masquerade}")])?;
        }
        self.lead_back(0)?;
        self.settle()
    }

    /// Lets lb answer by way of one of the routers, as what they agree on in its network (VRRP, say) would.
    fn lead_back(&self, router: usize) -> Result<()> {
        let (net, _) = self.lb.address.rsplit_once('.').unwrap_or_default();
        let number = [1, 3].get(router).copied().unwrap_or(1);
        self.lb.run("ip").args("route replace default via").arg(format!("{net}.{number}")).output().map(drop)
    }

    /// Returns which router packets take.
    fn in_use(&self) -> Result<usize> {
        let sent = || self.routers.each_ref().map(|router| self.alpha.sent_to(&router.host.name).unwrap_or_default());
        let before = sent();
        icmp(&self.la, &self.lb.address, 5)?;
        let more = sent().into_iter().zip(before).map(|(after, before)| after.saturating_sub(before));
        more.enumerate().max_by_key(|(_, bytes)| *bytes).map(|(at, _)| at).context("there are two routers")
    }

    /// Lets data go with a fault in it; returns the longest time without, in ms, and whether another router leads then.
    fn gap(&mut self, fault: Fault, masquerade: bool) -> Result<(f64, bool)> {
        let me = std::env::current_exe()?;
        let used = self.in_use()?;
        self.lead_back(used)?;
        let target = format!("{}:7003", self.lb.address);
        let mut answerer = self.lb.spawn("answer", &me, &["traffic", "answer", &target])?;
        answerer.wait_log("listening", PATIENCE)?;
        let data = self.la.run(&me).args("traffic redial").arg(&target).arg(SECONDS);
        let data = if masquerade { data } else { data.arg("--one") };
        let going = std::thread::spawn(move || data.output());
        std::thread::sleep(BEFORE);
        self.cause(fault, used)?;
        let said = going.join().map_err(|_| anyhow!("the sending thread failed"))??;
        let words = said.trim().strip_prefix("longest gap ").context("no gap was told")?;
        let gap = words.split_whitespace().next().context("no gap was told")?.parse()?;
        let changed = self.in_use()? != used;
        self.repair(fault, used)?;
        self.settle()?;
        Ok((gap, changed))
    }

    fn cause(&mut self, fault: Fault, used: usize) -> Result<()> {
        match fault {
            Fault::Nothing => return Ok(()),
            Fault::ServerStops => {
                self.server.process().signal("STOP")?;
                std::thread::sleep(Duration::from_secs(5));
                return self.server.process().signal("CONT");
            }
            Fault::Killed => self.routers[used].kill()?,
            Fault::Cut => self.lab.unplug(&self.routers[used].host, true)?,
            Fault::Blocked => self.routers[used].host.block_forwarding(true)?,
            Fault::LanCut => self.lab.unplug_lan("lb", used, true)?,
            Fault::CutServerAway => {
                self.server.kill()?;
                self.lab.unplug(&self.routers[used].host, true)?;
            }
        }
        self.lead_back(1 - used)
    }

    fn repair(&mut self, fault: Fault, used: usize) -> Result<()> {
        match fault {
            Fault::Nothing | Fault::ServerStops => Ok(()),
            Fault::Killed => self.routers[used].start_again(),
            Fault::Cut => self.lab.unplug(&self.routers[used].host, false),
            Fault::Blocked => self.routers[used].host.block_forwarding(false),
            Fault::LanCut => self.lab.unplug_lan("lb", used, false),
            Fault::CutServerAway => {
                self.lab.unplug(&self.routers[used].host, false)?;
                self.server.restart()
            }
        }
    }
}
