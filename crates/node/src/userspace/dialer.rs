//! Which way leads to a name or an address: through the tailnet, or as every program of this machine goes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::engine::Ways;

use super::network::{Network, Stream};

/// How long the only address of a host may take.
const DIALLING: Duration = Duration::from_secs(30);
/// How long one of several addresses may take before the next is tried.
const ONE: Duration = Duration::from_secs(5);
/// Most addresses of a name that are tried.
const MAX_TRIED: usize = 8;

/// Finds and dials, for proxies and the local API. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Dialer {
    ways: Ways,
    network: Option<Network>,
}

/// Is what a dialler found.
#[derive(Debug)]
pub enum Dialed {
    /// A connection through the tailnet.
    Tailnet(Stream),
    /// Nobody in between is needed: whoever asks can connect to these, best first. With a TUN device the tailnet is reached
    /// so, too.
    Outside(Vec<SocketAddr>),
}

/// Says where packets to an address go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To this node itself.
    Own,
    /// To a peer.
    Tailnet,
    /// As every program's.
    Outside,
    /// Nowhere: an address of the tailnet that nobody has, or one of the Internet while an exit node was chosen that is not
    /// there.
    Nowhere,
}

/// Says why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// Neither the tailnet nor this machine knows the name.
    #[error("nobody is named {0}")]
    NoSuchName(String),
    /// Packets to the address would go nowhere.
    #[error("no peer has the address {0}, or the exit node is away; see: warren status")]
    NoWay(IpAddr),
    /// It was tried.
    #[error("{to} is not reached: {source}")]
    Failed {
        /// What was tried last.
        to: SocketAddr,
        /// Why it failed.
        source: io::Error,
    },
}

impl Dialer {
    /// Makes a dialler for a node whose stack is `network`; without one packets of the tailnet are the kernel's.
    pub(crate) fn new(ways: Ways, network: Option<Network>) -> Self {
        Self { ways, network }
    }

    /// Returns the stack of a node without TUN device.
    #[must_use]
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// Finds out how `host`, a name or an address, is reached, and connects if that is through the stack.
    ///
    /// # Errors
    /// Says why it is not reached.
    pub async fn dial(&self, host: &str, port: u16) -> Result<Dialed, DialError> {
        let addresses = self.addresses(host, port).await?;
        let Some(network) = &self.network else { return Ok(Dialed::Outside(addresses)) };
        let mut outside = Vec::new();
        let mut failed = None;
        let patience = if addresses.len() == 1 { DIALLING } else { ONE };
        for to in addresses {
            let dialed = match self.ways.way(to.ip()) {
                Way::Own => {
                    outside.push(SocketAddr::new(super::line::loopback(to.ip()), port));
                    continue;
                }
                Way::Outside => {
                    outside.push(to);
                    continue;
                }
                Way::Nowhere => {
                    failed.get_or_insert(DialError::NoWay(to.ip()));
                    continue;
                }
                Way::Tailnet => tokio::time::timeout(patience, network.connect(to)).await,
            };
            match dialed {
                Ok(Ok(stream)) => return Ok(Dialed::Tailnet(stream)),
                Ok(Err(source)) => failed = Some(DialError::Failed { to, source }),
                Err(_) => failed = Some(DialError::Failed { to, source: io::ErrorKind::TimedOut.into() }),
            }
        }
        match failed {
            Some(error) if outside.is_empty() => Err(error),
            _ => Ok(Dialed::Outside(outside)),
        }
    }

    /// Returns the addresses of a host.
    async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, DialError> {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address.to_canonical(), port)]);
        }
        let found = self.ways.find(host).await;
        let mut found: Vec<SocketAddr> = found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
        found.truncate(MAX_TRIED);
        if found.is_empty() { Err(DialError::NoSuchName(host.to_owned())) } else { Ok(found) }
    }
}
