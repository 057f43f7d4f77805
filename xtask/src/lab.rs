//! Small networks of namespaces on this machine: hosts on one switch, processes in them, nothing left behind.
//!
//! Every namespace is called `wrn-<pid>-<name>`. The switch is a bridge in a namespace of its own, so that the
//! machine's own network is never touched. Dropping a [`Lab`] ends its processes and deletes its namespaces;
//! starting one sweeps those of runs that were killed.

mod link;
mod place;
mod process;
mod router;

pub(crate) use link::{Counts, Quality};
pub(crate) use place::{Place, Placed};
pub(crate) use process::Process;
pub(crate) use router::Nat;

use crate::run::{Run, target};
use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A switch with hosts on it.
pub(crate) struct Lab {
    prefix: String,
    dir: PathBuf,
    hosts: Vec<Host>,
    /// How many hosts are on the switch.
    on_switch: usize,
    links: Vec<link::Link>,
}

/// Addresses of the machine on the Internet, if there is one: neither is of a private network.
pub(crate) const WEB: [&str; 2] = ["9.93.0.2", "2a93::2"];

/// Names that hosts know: that of the first host, which is the server where names matter.
const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost\n10.91.0.2 server.lab\nfd91::2 server.lab\n";

/// One host: a namespace with an address on the switch in each family.
#[derive(Clone)]
pub(crate) struct Host {
    /// The namespace's name.
    pub(crate) namespace: String,
    /// The host's name, also its log files' first part.
    pub(crate) name: String,
    /// The host's IPv4 address on the switch.
    pub(crate) address: String,
    dir: PathBuf,
}

impl Lab {
    /// Makes a switch and the `names` hosts on it: 10.91.0.2, 10.91.0.3 … and fd91::2, fd91::3 …. All know each
    /// other's names.
    pub(crate) fn new(title: &str, names: &[&str]) -> Result<Self> {
        sweep()?;
        let prefix = format!("wrn-{}-", std::process::id());
        let dir = target().join("lab").join(title);
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
        }
        std::fs::create_dir_all(&dir)?;
        let mut lab = Self { prefix, dir, hosts: Vec::new(), on_switch: 0, links: Vec::new() };
        let switch = lab.namespace("sw");
        ip(&format!("netns add {switch}"))?;
        for words in [
            "link set lo up",
            // Of its own: else it takes the lowest one of its ports, and whoever is added changes it, so that others send to
            // an address of nobody until they ask again.
            "link add br0 address 02:00:00:00:00:01 type bridge",
            "address add 10.91.0.1/24 dev br0",
            "address add fd91::1/64 dev br0 nodad",
            "link set br0 up",
        ] {
            ip(&format!("-n {switch} {words}"))?;
        }
        for name in names {
            lab.add(name)?;
        }
        Ok(lab)
    }

    /// Makes one more host on the switch.
    pub(crate) fn add(&mut self, name: &str) -> Result<Host> {
        let number = self.next_number();
        let host = self.make(name, format!("10.91.0.{number}"))?;
        let (namespace, switch) = (&host.namespace, self.namespace("sw"));
        ip(&format!("-n {switch} link add p{number} type veth peer name eth0 netns {namespace}"))?;
        ip(&format!("-n {switch} link set p{number} master br0 up"))?;
        host.configure(number)?;
        Ok(host)
    }

    /// Returns the last number of the next host's addresses.
    fn next_number(&mut self) -> usize {
        self.on_switch += 1;
        self.on_switch + 1
    }

    /// Makes one more host on the switch that is a machine on the Internet: [`WEB`] are its addresses, to which the switch
    /// routes whatever hosts send to their gateway.
    pub(crate) fn add_web(&mut self) -> Result<Host> {
        let host = self.add("web")?;
        let switch = self.namespace("sw");
        let (_, number) = host.address.rsplit_once('.').unwrap_or_default();
        for words in [
            format!("-n {} address add {}/32 dev lo", host.namespace, WEB[0]),
            format!("-n {} address add {}/128 dev lo nodad", host.namespace, WEB[1]),
            format!("-n {switch} route add {}/32 via {}", WEB[0], host.address),
            format!("-n {switch} route add {}/128 via fd91::{number}", WEB[1]),
        ] {
            ip(&words)?;
        }
        // Without redirects, which would show hosts the way past the gateway.
        let words = "-q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.send_redirects=0 \
                     net.ipv4.conf.br0.send_redirects=0";
        Run::new("ip").args("netns exec").arg(&switch).arg("sysctl").args(words).output()?;
        Ok(host)
    }

    /// Makes a host without any link, which knows the server's name.
    fn make(&mut self, name: &str, address: String) -> Result<Host> {
        let namespace = self.namespace(name);
        ip(&format!("netns add {namespace}"))?;
        let host = Host { namespace, name: name.to_owned(), address, dir: self.dir.clone() };
        self.hosts.push(host.clone());
        let etc = host.etc();
        std::fs::create_dir_all(&etc)?;
        std::fs::write(etc.join("hosts"), HOSTS)?;
        // One of its own, which a node may change. Nobody answers there; whoever asks is told so at once.
        host.set_nameserver("10.91.0.1")?;
        Ok(host)
    }

    /// Returns a host by its name.
    ///
    /// # Panics
    /// Panics when the lab has no such host: a mistake in the test.
    pub(crate) fn host(&self, name: &str) -> Host {
        self.hosts.iter().find(|host| host.name == name).unwrap_or_else(|| panic!("the lab has no host {name}")).clone()
    }

    /// Returns the directory of this lab's files: state directories and logs.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn namespace(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A namespace lives as long as a device in it is held.
        self.links.clear();
        for name in self.hosts.iter().map(|host| host.namespace.clone()).chain([self.namespace("sw")]) {
            remove(&name);
        }
    }
}

impl Host {
    /// Returns this machine itself under a name, for programs that need neither namespace nor root; their files go to `dir`.
    pub(crate) fn here(name: &str, dir: &Path) -> Self {
        let address = "127.0.0.1".to_owned();
        Self { namespace: String::new(), name: name.to_owned(), address, dir: dir.to_owned() }
    }

    /// Prepares a command inside this host.
    pub(crate) fn run(&self, program: impl AsRef<std::ffi::OsStr>) -> Run {
        if self.namespace.is_empty() {
            return Run::new(program);
        }
        Run::new("ip").args("netns exec").arg(&self.namespace).arg(program)
    }

    /// Starts a process inside this host; its output goes to `<dir>/<host>-<title>.log`.
    pub(crate) fn spawn(&self, title: &str, program: &Path, args: &[&str]) -> Result<Process> {
        self.spawn_env(title, program, args, &[])
    }

    /// Starts a process with further environment variables.
    pub(crate) fn spawn_env(
        &self,
        title: &str,
        program: &Path,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> Result<Process> {
        Process::start(self, title, program, args, env)
    }

    /// Gives the host's `eth0` its addresses and routes on the switch.
    fn configure(&self, number: usize) -> Result<()> {
        for words in [
            "link set lo up".to_owned(),
            format!("address add 10.91.0.{number}/24 dev eth0"),
            format!("address add fd91::{number}/64 dev eth0 nodad"),
            "link set eth0 up".to_owned(),
            "route add default via 10.91.0.1".to_owned(),
            "route add default via fd91::1".to_owned(),
            // Outside addresses of routers.
            "route add 9.91.0.0/24 dev eth0".to_owned(),
        ] {
            ip(&format!("-n {} {words}", self.namespace))?;
        }
        Ok(())
    }

    /// Makes programs on this host ask `server` for names.
    pub(crate) fn set_nameserver(&self, server: &str) -> Result<()> {
        std::fs::write(self.etc().join("resolv.conf"), format!("nameserver {server}\n")).map_err(Into::into)
    }

    /// Makes programs on this host find `name` at `address`.
    pub(crate) fn add_name(&self, address: &str, name: &str) -> Result<()> {
        let file = self.etc().join("hosts");
        let known = std::fs::read_to_string(&file)?;
        std::fs::write(&file, format!("{known}{address} {name}\n")).map_err(Into::into)
    }

    /// Where `ip netns exec` finds this host's own files of /etc.
    fn etc(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.namespace)
    }

    /// Loads nftables rules.
    fn rules(&self, rules: &str) -> Result<()> {
        let file = self.dir.join(format!("{}.nft", self.name));
        std::fs::write(&file, rules)?;
        self.run("nft").arg("-f").arg(&file).output().map(drop)
    }

    /// Drops all UDP of this host except on loopback and inside tunnels, or lets it pass again.
    pub(crate) fn block_udp(&self, block: bool) -> Result<()> {
        let rules = if block {
            "table inet lab {\n chain out { type filter hook output priority 0; oifname \"eth0\" meta l4proto udp drop; }\n \
             chain in { type filter hook input priority 0; iifname \"eth0\" meta l4proto udp drop; }\n}\n"
        } else {
            "delete table inet lab\n"
        };
        self.rules(rules)
    }

    /// Binds a UDP socket inside this host; it works from everywhere then.
    pub(crate) fn bind(&self, address: &'static str) -> Result<UdpSocket> {
        in_namespace(&self.namespace, || UdpSocket::bind(address).with_context(|| format!("cannot bind {address}")))
    }

    /// The directory of the lab this host is in.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Does something inside a namespace: a socket or device that is made there works from everywhere then.
fn in_namespace<T: Send>(name: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let path = format!("/run/netns/{name}");
    let inside = move || -> Result<T> {
        let namespace = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        work()
    };
    // A namespace is a matter of the thread, and this one ends with it.
    let done = std::thread::scope(|scope| scope.spawn(inside).join());
    done.map_err(|_| anyhow::anyhow!("the thread in {name} panicked"))?
}

/// A wait that is longer is told, for it may be a defect that heals by itself.
const LONG_WAIT: Duration = Duration::from_secs(4);

/// Asks `done` every 50 ms until it returns a value; fails with `what` after `limit`.
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut done: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = done() {
            let waited = start.elapsed();
            if waited > LONG_WAIT {
                println!("        waited {:.1} s for {what}", waited.as_secs_f64());
            }
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("waited {} s in vain for {what}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Runs `ip` with these words.
pub(crate) fn ip(words: &str) -> Result<()> {
    Run::new("ip").args(words).output().map(drop)
}

/// Deletes the namespaces of earlier runs whose process is gone.
fn sweep() -> Result<()> {
    for line in Run::new("ip").args("netns list").output()?.lines() {
        let Some(name) = line.split_whitespace().next() else {
            continue;
        };
        let Some(pid) = name.strip_prefix("wrn-").and_then(|rest| rest.split('-').next()) else {
            continue;
        };
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            remove(name);
        }
    }
    Ok(())
}

/// Ends every process in a namespace that we made, then deletes it.
fn remove(namespace: &str) {
    let pids = Run::new("ip").args("netns pids").arg(namespace).output().unwrap_or_default();
    for pid in pids.split_whitespace() {
        drop(Run::new("kill").args("-KILL").arg(pid).output());
    }
    if let Err(error) = ip(&format!("netns del {namespace}")) {
        eprintln!("cannot delete the namespace {namespace}: {error:#}");
    }
    // Not all have such a folder.
    drop(std::fs::remove_dir_all(Path::new("/etc/netns").join(namespace)));
}
