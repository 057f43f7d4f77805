//! Places in which a machine may stand: what is between it and the rest of the lab.

use super::{Host, Lab, Nat, Process, ip};
use crate::fleet::PATIENCE;
use crate::packages;
use anyhow::Result;
use std::path::Path;

/// What stands between a machine and the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// Nothing, on IPv4 alone.
    Open,
    /// Nothing, on both families.
    Dual,
    /// Nothing, on IPv6 alone.
    V6Only,
    /// A NAT with one outside port for all destinations, which filters by address and port.
    Easy,
    /// A NAT with another outside port for every destination.
    Hard,
    /// A NAT that lets everybody in through a port that was once used.
    Cone,
    /// An easy NAT behind an easy NAT.
    Double,
    /// A public address behind a firewall that lets in only answers.
    Firewall,
    /// A hard NAT that maps ports on request.
    Mapped,
    /// A public address, all UDP dropped.
    NoUdp,
    /// Nothing but an HTTP proxy.
    Proxy,
}

impl Place {
    /// All places, in the order in which tables show them.
    pub(crate) const ALL: [Self; 11] = [
        Self::Open,
        Self::Dual,
        Self::V6Only,
        Self::Easy,
        Self::Hard,
        Self::Cone,
        Self::Double,
        Self::Firewall,
        Self::Mapped,
        Self::NoUdp,
        Self::Proxy,
    ];

    /// The word for it in tables.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Dual => "dual",
            Self::V6Only => "v6only",
            Self::Easy => "easy",
            Self::Hard => "hard",
            Self::Cone => "cone",
            Self::Double => "double",
            Self::Firewall => "fw",
            Self::Mapped => "mapped",
            Self::NoUdp => "noudp",
            Self::Proxy => "proxy",
        }
    }
}

/// A host in its place, and what that place needs.
pub(crate) struct Placed {
    /// The host.
    pub(crate) host: Host,
    /// Environment of programs on it.
    pub(crate) environment: Vec<(String, String)>,
    _daemon: Option<Process>,
}

impl Lab {
    /// Makes a host called `name` in a place.
    pub(crate) fn place(&mut self, name: &str, place: Place) -> Result<Placed> {
        let (mut environment, mut daemon) = (Vec::new(), None);
        let host = match place {
            Place::Dual => self.add(name)?,
            Place::Open => self.without_family(name, "-6")?,
            Place::V6Only => self.without_family(name, "-4")?,
            Place::NoUdp => {
                let host = self.add(name)?;
                host.block_udp(true)?;
                host
            }
            Place::Firewall => {
                let host = self.without_family(name, "-6")?;
                host.rules(FIREWALL)?;
                host
            }
            Place::Easy => self.behind(name, Nat::Easy)?.1,
            Place::Hard => self.behind(name, Nat::Hard)?.1,
            Place::Cone => self.behind(name, Nat::Cone)?.1,
            Place::Mapped => {
                let (router, host) = self.behind(name, Nat::Hard)?;
                daemon = Some(router.map_ports(true)?);
                host
            }
            Place::Proxy => {
                let (router, host) = self.behind(name, Nat::Easy)?;
                daemon = Some(router.proxy(&host)?);
                let url = format!("http://{}:8888", host.gateway());
                environment.extend(["HTTPS_PROXY", "HTTP_PROXY"].map(|name| (name.to_owned(), url.clone())));
                host
            }
            Place::Double => {
                let (_, router) = self.behind(&format!("r{name}"), Nat::Easy)?;
                self.add_behind(&router, Nat::Easy, name)?
            }
        };
        Ok(Placed { host, environment, _daemon: daemon })
    }

    /// Makes a host behind a new router on the switch; returns both.
    fn behind(&mut self, name: &str, nat: Nat) -> Result<(Host, Host)> {
        let router = self.add(&format!("r{name}"))?;
        let host = self.add_behind(&router, nat, name)?;
        Ok((router, host))
    }

    /// Makes a host on the switch without one family: without IPv4 with `-4`, without IPv6 with `-6`.
    fn without_family(&mut self, name: &str, family: &str) -> Result<Host> {
        let host = self.add(name)?;
        ip(&format!("-n {} {family} address flush dev eth0", host.namespace))?;
        Ok(host)
    }
}

/// Lets in only what answers.
const FIREWALL: &str = "table inet lab {\n \
    chain in { type filter hook input priority 0; iifname \"eth0\" ct state established,related accept; \
    iifname \"eth0\" meta l4proto { tcp, udp } drop; }\n}\n";

/// Lets nothing through.
const NO_FORWARDING: &str = "table inet lab {\n chain out { type filter hook forward priority 10; drop; }\n}\n";

impl Host {
    /// Starts an HTTP proxy on this router, the only way out for `inside`.
    fn proxy(&self, inside: &Self) -> Result<Process> {
        packages::debian(&[("tinyproxy", "tinyproxy-bin")])?;
        self.rules(NO_FORWARDING)?;
        let config =
            format!("Port 8888\nListen {}\nTimeout 600\nAllow 192.168.0.0/16\nMaxClients 50\n", inside.gateway());
        let file = self.dir.join(format!("{}-tinyproxy.conf", self.name));
        std::fs::write(&file, config)?;
        let mut daemon = self.spawn("tinyproxy", Path::new("tinyproxy"), &["-d", "-c", &file.to_string_lossy()])?;
        daemon.wait_log("Accepting connections", PATIENCE)?;
        Ok(daemon)
    }
}
