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
        let router = format!("r{name}");
        let (mut environment, mut daemon) = (Vec::new(), None);
        let host = match place {
            Place::Open | Place::Dual | Place::V6Only | Place::Firewall | Place::NoUdp => {
                let host = self.add(name)?;
                match place {
                    Place::Open => host.without_family("-6")?,
                    Place::V6Only => host.without_family("-4")?,
                    Place::NoUdp => host.block_udp(true)?,
                    Place::Firewall => {
                        host.without_family("-6")?;
                        host.rules(FIREWALL)?;
                    }
                    _ => {}
                }
                host
            }
            Place::Easy | Place::Hard | Place::Cone | Place::Mapped | Place::Proxy => {
                let router = self.add(&router)?;
                let nat = match place {
                    Place::Hard | Place::Mapped => Nat::Hard,
                    Place::Cone => Nat::Cone,
                    _ => Nat::Easy,
                };
                let host = self.add_behind(&router, nat, name)?;
                if place == Place::Mapped {
                    daemon = Some(router.map_ports()?);
                }
                if place == Place::Proxy {
                    daemon = Some(router.proxy(&host)?);
                    let url = format!("http://{}:8888", host.gateway());
                    environment.extend(["HTTPS_PROXY", "HTTP_PROXY"].map(|name| (name.to_owned(), url.clone())));
                }
                host
            }
            Place::Double => {
                let carrier = self.add(&format!("c{name}"))?;
                let router = self.add_behind(&carrier, Nat::Easy, &router)?;
                self.add_behind(&router, Nat::Easy, name)?
            }
        };
        Ok(Placed { host, environment, _daemon: daemon })
    }
}

/// Lets in only what answers.
const FIREWALL: &str = "table inet lab {\n \
    chain in { type filter hook input priority 0; iifname \"eth0\" ct state established,related accept; \
    iifname \"eth0\" meta l4proto { tcp, udp } drop; }\n}\n";

/// Lets nothing through.
const NO_FORWARDING: &str = "table inet lab {\n chain out { type filter hook forward priority 10; drop; }\n}\n";

impl Host {
    /// Takes one family away, `-4` or `-6`.
    fn without_family(&self, family: &str) -> Result<()> {
        ip(&format!("-n {} {family} address flush dev eth0", self.namespace))
    }

    /// Starts an HTTP proxy on this router, the only way out for `inside`.
    fn proxy(&self, inside: &Host) -> Result<Process> {
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
