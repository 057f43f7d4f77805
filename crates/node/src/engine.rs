//! The seam between the daemon, which knows what the tailnet should look like, and the engine, which moves packets.
//!
//! The engine itself is one thread that moves packets (`worker`) and one task that decides (`decision`); `shared` is what
//! lies between them.
//!
//! The daemon calls [`Engine::apply`] with an [`Update`] for every change of the netmap or of the settings; the engine
//! reports what the server must learn (own endpoints, network measurements) as [`Event`]s on a bounded channel that it
//! is given when it is made.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use tokio::sync::mpsc;
use warren_filter::Shields;
use warren_ledger::Record;
use warren_path::PeerRelay;
use warren_wire::control::{DerpMap, DnsConfig, EndpointType, FilterRule, NetInfo, Node, RegionId};
use warren_wire::key::{DiscoSecret, NodeKey, NodeSecret};

use crate::netmap::Peer;

pub use warren_os::Offload;
pub use warren_path::is_usable;

mod decision;
mod door;
mod forwarder;
mod gateway;
mod handle;
mod name_service;
mod names;
mod null;
mod outlet;
mod owner;
mod peer_relay;
mod portal;
mod relay_link;
mod shared;
mod ways;
mod worker;

pub(crate) use ways::Ways;

/// Is where the engine's records of connections go.
#[derive(Debug, Clone)]
pub struct RecordSink {
    /// The queue to whoever keeps them.
    pub sender: mpsc::Sender<Record>,
    /// Whether anybody wants them; while nobody does, nothing is counted.
    pub is_wanted: Arc<AtomicBool>,
}

impl RecordSink {
    fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Relaxed)
    }
}

pub use handle::{PacketEngine, start};
pub use null::NullEngine;

/// The tunnel's MTU unless another is chosen, in bytes: the smallest that IPv6 allows, which fits into every network's
/// packets.
///
/// Source: Tailscale `net/tstun`, `DefaultTUNMTU`.
pub const USUAL_MTU: u16 = 1280;
/// Least and most bytes of the tunnel's MTU: what IPv6 needs, and what fits into a packet of 9,000 bytes outside and into
/// a place of the receive buffer.
pub const MTU_LIMITS: (u16, u16) = (1280, 8000);

/// Says how the engine meets this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Name of the TUN interface, or [`crate::userspace::INTERFACE`] for none.
    pub interface: String,
    /// UDP port; 0 takes a free one.
    pub port: u16,
    /// The largest packet of the tunnel, within [`MTU_LIMITS`].
    pub mtu: u16,
    /// Whether packets pass between this machine and the engine in large pieces, as far as the kernel can do that.
    pub offload: Offload,
    /// Whether somebody chose the port; else another is taken where that helps: behind a NAT that holds the port for the
    /// address that this machine had before.
    pub keeps_port: bool,
    /// Whether to find out how large packets the paths to peers carry; if it is not said, the server decides.
    pub probe_mtu: Option<bool>,
    /// Addresses at which peers find this node besides those that it finds out, best first.
    pub static_endpoints: Vec<SocketAddr>,
}

/// Says why the engine cannot start. Each text says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The machine has no TUN device.
    #[error(
        "/dev/net/tun is missing; load it with: modprobe tun (in a container: pass the device in), or do without: --tun=userspace-networking"
    )]
    NoTun,
    /// The user may not make interfaces.
    #[error(
        "no permission to make the interface {0}; run as root, or with CAP_NET_ADMIN, or without an interface: --tun=userspace-networking"
    )]
    Permission(String),
    /// Another program has the interface.
    #[error("the interface {0} is in use by another program; choose another name with --tun")]
    InterfaceBusy(String),
    /// The UDP port is taken.
    #[error("UDP port {0} is in use; choose another with --port, or 0 for any")]
    PortBusy(u16),
    /// Something else.
    #[error("{0}")]
    Other(String),
}

/// Moves packets as the last [`Update`]s say, until it is shut down.
///
/// Every method may be called from any thread; none blocks.
pub trait Engine: Send + Sync + 'static {
    /// Takes over a change; updates take effect in the order of the calls.
    ///
    /// Work that has not been picked up yet can be put together with [`Update::merge`], so nothing queues up.
    fn apply(&self, update: Update);

    /// Returns counters and paths of all peers.
    fn status(&self) -> impl Future<Output = Status> + Send;

    /// Sends one disco ping to `peer` and waits for the answer.
    fn ping(&self, peer: NodeKey) -> impl Future<Output = Result<Pong, PingError>> + Send;

    /// Measures the network now and returns the report.
    fn netcheck(&self) -> impl Future<Output = Netcheck> + Send;

    /// Stops all work and takes back every address, route and interface; ready when nothing is left behind.
    fn shutdown(&self) -> impl Future<Output = ()> + Send;
}

/// Says what changed, as one atomic step; `None` and empty lists mean "as before".
///
/// Order within one update: `server_listens`, `local`, `relays`, `filter`, then `removed`, then `peers`.
#[derive(Debug, Clone, Default)]
pub struct Update {
    /// Who this node is. [`LocalUpdate::Down`] also forgets all peers, the filter and the relays.
    pub local: Option<LocalUpdate>,
    /// Whether the server hears what this node reports: while it does not, the home relay stays what peers believe it to be.
    pub server_listens: Option<bool>,
    /// Whether the user wants an exit node, and the node to be up: then dialers let nothing leave by this machine's own network,
    /// also while the node is not on the tailnet yet or any more. Until somebody has said it, it is so.
    pub wants_exit: Option<bool>,
    /// The complete relay map.
    pub relays: Option<Arc<DerpMap>>,
    /// The complete packet filter; an empty list lets nothing in.
    pub filter: Option<Arc<[FilterRule]>>,
    /// Node keys of peers that are gone (removed, expired, or known by a new key from now on).
    pub removed: Vec<NodeKey>,
    /// Peers that are new or changed, each complete.
    pub peers: Vec<Arc<Peer>>,
}

impl Update {
    /// Returns the update that takes the node off the tailnet: no peers, no addresses, no routes.
    #[must_use]
    pub fn down() -> Self {
        Self { local: Some(LocalUpdate::Down), ..Self::default() }
    }

    /// Tells whether the update changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.local.is_none()
            && self.server_listens.is_none()
            && self.wants_exit.is_none()
            && self.relays.is_none()
            && self.filter.is_none()
            && self.removed.is_empty()
            && self.peers.is_empty()
    }

    /// Appends `later`, so that applying the result equals applying both in turn.
    pub fn merge(&mut self, later: Self) {
        let server_listens = later.server_listens.or(self.server_listens);
        let wants_exit = later.wants_exit.or(self.wants_exit);
        if matches!(later.local, Some(LocalUpdate::Down | LocalUpdate::Restart(_))) {
            *self = Self { server_listens, wants_exit, ..later };
            return;
        }
        self.server_listens = server_listens;
        self.wants_exit = wants_exit;
        // A `Down` that nobody has acted on yet must still wipe what was before it.
        if let Some(local) = later.local {
            self.local = Some(match (self.local.take(), local) {
                (Some(LocalUpdate::Down | LocalUpdate::Restart(_)), LocalUpdate::Up(up)) => LocalUpdate::Restart(up),
                (_, local) => local,
            });
        }
        if later.relays.is_some() {
            self.relays = later.relays;
        }
        if later.filter.is_some() {
            self.filter = later.filter;
        }
        let gone: std::collections::HashSet<NodeKey> =
            later.removed.iter().copied().chain(later.peers.iter().map(|peer| peer.key())).collect();
        self.peers.retain(|peer| !gone.contains(&peer.key()));
        self.removed.extend(later.removed);
        self.peers.extend(later.peers);
    }
}

/// Says who this node is from now on.
#[derive(Debug, Clone)]
pub enum LocalUpdate {
    /// Off the tailnet.
    Down,
    /// On the tailnet; peers, filter and relays stay as they are unless the same update changes them.
    Up(Local),
    /// As [`Self::Down`] followed at once by [`Self::Up`]; only [`Update::merge`] makes it.
    Restart(Local),
}

/// Describes this node for the engine.
#[derive(Debug, Clone)]
pub struct Local {
    /// Private half of the node key.
    pub secret: Arc<NodeSecret>,
    /// Private half of the disco key; only looked at when the node comes up.
    pub disco: Arc<DiscoSecret>,
    /// Own record as the server sent it: addresses, approved routes (`allowed_ips`), capabilities.
    pub node: Arc<Node>,
    /// How names are found, if the server said it.
    pub dns: Option<Arc<DnsConfig>>,
    /// What the user chose.
    pub settings: Settings,
}

/// Choices of the user that the engine obeys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Use routes that peers offer beyond their own addresses.
    pub accept_routes: bool,
    /// Refuse every connection that a peer opens.
    pub shields_up: bool,
    /// Relay for peers that may use this node, on this UDP port; 0 takes a free one.
    pub relay_port: Option<u16>,
    /// Networks behind this node that the user offers. What the server approves beyond them is not passed on.
    pub offered_routes: Arc<[IpNet]>,
    /// Leave packets that are passed on to those networks their source address; else they get one of this machine, so that
    /// answers find back.
    pub keeps_source: bool,
    /// The peer that takes all packets for the Internet. While it cannot be used, none leave.
    pub exit_node: Option<ExitNode>,
    /// Make programs of this machine ask this node for names.
    pub accept_dns: bool,
}

/// Names the peer that takes all packets for the Internet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitNode {
    /// Who.
    pub who: ExitChoice,
    /// Reach the networks that this machine is in straight.
    pub lan_access: bool,
}

/// Says how an exit node is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitChoice {
    /// Whichever can be used.
    Any,
    /// The one with this stable ID.
    Id(String),
    /// The one with this address.
    Address(IpAddr),
}

impl Settings {
    /// Returns the same for a filter.
    pub(crate) fn shields(&self) -> Shields {
        if self.shields_up { Shields::Up } else { Shields::Down }
    }
}

/// Tells the daemon what the engine found out. The channel is bounded; only the newest of each kind counts, so when the
/// channel is full the engine keeps the newest of each kind and tries again.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Complete list of addresses at which peers may find this node.
    Endpoints(Vec<Endpoint>),
    /// What the network is like; `preferred_derp` is the home relay.
    NetInfo(Box<NetInfo>),
    /// How much is alive: the daemon is *Running* once either number is above zero.
    Live {
        /// Relay connections that finished their handshake.
        relays: usize,
        /// Peers with a WireGuard session in use.
        peers: usize,
    },
    /// The complete list of present troubles, one sentence each, for `status`.
    Health(Vec<String>),
    /// The engine cannot go on (for instance: the interface was deleted); the daemon shuts down.
    Fatal(String),
}

/// Names one address at which peers may find this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Address and port.
    pub address: SocketAddr,
    /// How it was found.
    pub kind: EndpointType,
}

/// Shows the engine at one moment.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Name of the network interface, if it is up.
    pub interface: Option<String>,
    /// Home relay.
    pub home: Option<RegionId>,
    /// The exit node in use.
    pub exit_node: Option<NodeKey>,
    /// One entry for each peer of the engine.
    pub peers: Vec<PeerStatus>,
}

/// Shows one peer at one moment.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Who.
    pub key: NodeKey,
    /// Confirmed direct address, if any.
    pub direct: Option<SocketAddr>,
    /// Endpoint of a peer relay over which packets go while there is no direct address, if any.
    pub peer_relay: Option<PeerRelay>,
    /// The largest IP packet that is proved to get through to the direct address, if that was tried.
    pub path_mtu: Option<u16>,
    /// Region over which packets go while there is neither.
    pub relay: Option<RegionId>,
    /// Why the path is what it is, a few words ("pong 12 ms", "no endpoint answered").
    pub reason: Option<String>,
    /// Bytes of tunnelled packets received.
    pub rx_bytes: u64,
    /// Bytes of tunnelled packets sent.
    pub tx_bytes: u64,
    /// When the last handshake finished.
    pub last_handshake: Option<SystemTime>,
    /// When a packet was last sent.
    pub last_write: Option<SystemTime>,
    /// Every address known for the peer.
    pub endpoints: Vec<SocketAddr>,
}

/// Is the answer to a ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pong {
    /// Round trip.
    pub latency: Duration,
    /// Way that the answer took.
    pub via: Via,
}

/// Says which way a packet takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// Straight to this address.
    Direct(SocketAddr),
    /// Over this endpoint of a peer relay.
    PeerRelay(PeerRelay),
    /// Over this relay region.
    Relay(RegionId),
}

/// Says why a ping got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PingError {
    /// The key is not (or no longer) a peer.
    #[error("no such peer")]
    UnknownPeer,
    /// Neither an endpoint nor a relay is known for the peer.
    #[error("no endpoint and no relay is known for this peer")]
    NoPath,
    /// Nothing came back in time.
    #[error("no reply")]
    Timeout,
    /// The engine is down.
    #[error("the node is stopped")]
    Stopped,
}

/// Reports what the network is like.
#[derive(Debug, Clone, Default)]
pub struct Netcheck {
    /// Any STUN answer came back.
    pub udp: bool,
    /// Own address as IPv4 servers see it.
    pub global_v4: Option<SocketAddr>,
    /// Own address as IPv6 servers see it.
    pub global_v6: Option<SocketAddr>,
    /// The NAT uses another port for each destination; `None` if not measured.
    pub mapping_varies: Option<bool>,
    /// Somebody answers HTTP requests in the place of relays; `None` if not looked at.
    pub captive_portal: Option<bool>,
    /// Chosen home relay.
    pub home: Option<RegionId>,
    /// Best round trip of each region that answered.
    pub latencies: Vec<(RegionId, Duration)>,
}
