//! The one way by which a node of the map becomes a peer.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use warren_wire::control::{Node, NodeId, RegionId, Time};
use warren_wire::key::{DiscoKey, NodeKey};

/// Most endpoints of a peer that are used.
const MAX_ENDPOINTS: usize = 64;

/// Most prefixes of a peer that are used.
const MAX_PREFIXES: usize = 2048;

/// Most own addresses of a peer.
const MAX_ADDRESSES: usize = 16;

/// Is a node that was found fit to be talked to. Only [`Self::admit`] makes one.
#[derive(Debug, Clone, PartialEq)]
pub struct Peer {
    node: Node,
    endpoints: Vec<SocketAddr>,
    allowed_ips: Vec<IpNet>,
    standby: Vec<IpNet>,
}

/// Says why a node of the map cannot be a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// IDs are positive.
    #[error("its ID is not positive")]
    Id,
    /// The key is all zeros.
    #[error("it has no node key")]
    NoKey,
    /// The record is about this node itself.
    #[error("it is this node")]
    Own,
    /// Too many addresses.
    #[error("it has too many addresses")]
    TooManyAddresses,
    /// An own address of the peer is not one host.
    #[error("one of its own addresses is a whole network")]
    NotAHost,
}

impl Peer {
    /// Judges a node of the map; `local` is this node.
    ///
    /// Endpoints nobody can send to are left out, and so is every prefix that names an address of this node alone.
    ///
    /// # Errors
    /// Says why the node is no peer.
    pub fn admit(node: Node, local: Option<&Node>) -> Result<Self, Refusal> {
        if node.id.0 <= 0 {
            return Err(Refusal::Id);
        }
        if node.key.is_zero() {
            return Err(Refusal::NoKey);
        }
        if local.is_some_and(|local| local.id == node.id || local.key == node.key) {
            return Err(Refusal::Own);
        }
        if node.addresses.len() > MAX_ADDRESSES {
            return Err(Refusal::TooManyAddresses);
        }
        if node.addresses.iter().any(|address| address.prefix_len() != address.max_prefix_len()) {
            return Err(Refusal::NotAHost);
        }
        let own = |prefix: &IpNet| local.is_some_and(|local| local.addresses.contains(prefix));
        // An unsigned peer may be talked to, but routes nothing.
        let routed = match &node.allowed_ips {
            Some(prefixes) if !node.unsigned_peer_api_only => prefixes,
            Some(_) | None => &node.addresses,
        };
        let allowed_ips = routed.iter().map(IpNet::trunc).filter(|prefix| !own(prefix)).take(MAX_PREFIXES).collect();
        // Networks alone: nobody stands in for a node, or for the whole Internet.
        let is_network = |net: &IpNet| net.prefix_len() != 0 && !own(net);
        let standby = node.standby_routes.iter().filter(|_| !node.unsigned_peer_api_only).map(IpNet::trunc);
        let standby = standby.filter(is_network).take(MAX_PREFIXES).collect();
        let endpoints = node.endpoints.iter().copied().filter(usable).take(MAX_ENDPOINTS).collect();
        Ok(Self { node, endpoints, allowed_ips, standby })
    }

    /// Returns the record as the server sent it.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Gives the record back, to be changed and judged again.
    #[must_use]
    pub fn into_node(self) -> Node {
        self.node
    }

    /// Returns the ID.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.node.id
    }

    /// Returns the node key.
    #[must_use]
    pub fn key(&self) -> NodeKey {
        self.node.key
    }

    /// Returns the disco key, without which no direct path is looked for.
    #[must_use]
    pub fn disco_key(&self) -> Option<DiscoKey> {
        self.node.disco_key
    }

    /// Returns the peer's own addresses, each a single host.
    #[must_use]
    pub fn addresses(&self) -> &[IpNet] {
        &self.node.addresses
    }

    /// Returns the prefixes that are routed to the peer: its own addresses, and what else it was granted.
    #[must_use]
    pub fn allowed_ips(&self) -> &[IpNet] {
        &self.allowed_ips
    }

    /// Returns the networks that the peer leads into, while another peer is the way.
    #[must_use]
    pub fn standby(&self) -> &[IpNet] {
        &self.standby
    }

    /// Returns the addresses at which the peer may be found.
    #[must_use]
    pub fn endpoints(&self) -> &[SocketAddr] {
        &self.endpoints
    }

    /// Returns the relay region where the peer listens.
    #[must_use]
    pub fn home_relay(&self) -> Option<RegionId> {
        self.node.home_derp.known()
    }

    /// Tells whether the peer may not open connections to this node.
    #[must_use]
    pub fn is_jailed(&self) -> bool {
        self.node.is_jailed || self.node.unsigned_peer_api_only
    }

    /// Returns when the key expires, by the server's clock.
    #[must_use]
    pub fn key_expiry(&self) -> Option<Time> {
        self.node.key_expiry
    }

    /// Tells whether the server says that the key has expired.
    #[must_use]
    pub fn marked_expired(&self) -> bool {
        self.node.expired
    }

    /// Returns the first label of the name, which is what people call the peer.
    #[must_use]
    pub fn short_name(&self) -> String {
        super::printable(self.node.name.split('.').next().unwrap_or_default(), 63)
    }
}

/// Tells whether datagrams can be sent to an endpoint of another machine.
fn usable(endpoint: &SocketAddr) -> bool {
    let address = endpoint.ip();
    let reachable = match address {
        IpAddr::V4(v4) => !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    };
    endpoint.port() != 0 && reachable && !address.is_unspecified() && !address.is_multicast()
}
