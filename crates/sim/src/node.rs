//! A node as far as paths go: the real cores, put together as the daemon's decision task and worker do.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use warren_path::{
    Destination, Event, Families, Kind, MapTarget, Netcheck, OwnNat, Path, Paths, PeerConfig, PortMapper, RelayAddress,
    Report, SocketId, Via,
};
use warren_wire::control::{DerpMap, RegionId};
use warren_wire::key::{DiscoKey, DiscoSecret, NodeKey, NodeSecret};
use warren_wire::stun;

use links::Links;

mod links;

pub use links::ConnId;

/// UDP port of every node.
pub const PORT: u16 = 41641;
/// Port from which the gateway is asked.
pub const MAPPER_PORT: u16 = 41642;
/// Time between measurements while packets flow, in milliseconds.
const PERIOD_MILLIS: std::ops::Range<u64> = 20_000..26_000;
/// Time between measurements while there is no home relay.
const HOMELESS: Duration = Duration::from_secs(3);
/// Time for which an address that STUN servers saw is told.
const REMEMBERED: Duration = Duration::from_secs(310);
/// Most such addresses.
const MAX_REMEMBERED: usize = 12;
/// How often the worker tells of the same at most.
const NOTE_SPACING: Duration = Duration::from_millis(100);

/// What the server is told of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Its disco key.
    pub disco: DiscoKey,
    /// Its home, once it can be reached there.
    pub home: Option<RegionId>,
    /// Where it may be.
    pub endpoints: Vec<SocketAddr>,
}

/// What a datagram carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Load {
    /// A message of the cores.
    Message(Vec<u8>),
    /// A packet of a conversation, by its number: as if sealed by WireGuard.
    Data(u64),
}

impl Load {
    /// Length of a data packet.
    const DATA_BYTES: usize = 128;

    /// Returns the length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Message(bytes) => bytes.len(),
            Self::Data(_) => Self::DATA_BYTES,
        }
    }

    /// Tells whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a node wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Send a datagram from this port.
    Udp {
        /// From.
        port: u16,
        /// To.
        to: SocketAddr,
        /// What.
        load: Load,
    },
    /// Connect to a relay.
    Connect(ConnId),
    /// Close a connection.
    Close(ConnId),
    /// Send over a connection.
    Relay {
        /// By which.
        conn: ConnId,
        /// To whom.
        peer: NodeKey,
        /// What.
        load: Load,
    },
    /// Measure a relay over TCP.
    Measure(RegionId),
    /// Ask the STUN server with this name from the main port.
    Stun {
        /// Name of its host.
        host: std::sync::Arc<str>,
        /// Over IPv6, else IPv4.
        v6: bool,
        /// What.
        bytes: Vec<u8>,
    },
    /// Ask the gateway over HTTP.
    Ask {
        /// Where.
        to: SocketAddrV4,
        /// What.
        request: Vec<u8>,
    },
    /// Tell the server [`Node::info`], which changed.
    Tell,
}

/// What is known of a peer.
#[derive(Debug, Default)]
pub struct Slot {
    /// Where its packets go.
    pub path: Path,
    home: Option<RegionId>,
    noted_sent: Option<Instant>,
    noted_received: Option<Instant>,
}

/// A node.
pub struct Node {
    /// The paths to its peers.
    pub paths: Paths,
    /// Its key.
    pub key: NodeKey,
    /// Its peers.
    pub slots: BTreeMap<NodeKey, Slot>,
    /// What the server is told.
    pub info: Info,
    /// Connections to relays.
    pub links: Links,
    netcheck: Netcheck,
    mapper: PortMapper,
    mapped: Option<SocketAddrV4>,
    v4: Option<Ipv4Addr>,
    v6: Option<std::net::Ipv6Addr>,
    due: Option<(Instant, Kind)>,
    started: Option<Instant>,
    seen: VecDeque<(SocketAddr, Instant)>,
    /// What the last report that could tell said: whether peers see different ports.
    varies: Option<bool>,
    /// Ports of the extra sockets.
    extras: BTreeMap<SocketId, u16>,
    rng: StdRng,
    acts: Vec<Act>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Node {
    /// Makes one whose keys and randomness come from `rng`.
    #[must_use]
    pub fn new(map: &DerpMap, rng: &mut StdRng) -> Self {
        Self::with_key(NodeSecret::from_bytes(rng.random()).public(), map, rng)
    }

    /// Makes what this node is after a restart: the same key, and nothing remembered.
    #[must_use]
    pub fn restarted(&self, map: &DerpMap, rng: &mut StdRng) -> Self {
        Self { links: self.links.restarted(), ..Self::with_key(self.key, map, rng) }
    }

    fn with_key(key: NodeKey, map: &DerpMap, rng: &mut StdRng) -> Self {
        let disco = DiscoSecret::from_bytes(rng.random());
        let mut netcheck = Netcheck::new(rng.random());
        netcheck.set_map(map);
        let info = Info { disco: disco.public(), home: None, endpoints: Vec::new() };
        Self {
            paths: Paths::new(disco, key, rng.random()),
            key,
            slots: BTreeMap::new(),
            info,
            links: Links::default(),
            netcheck,
            mapper: PortMapper::new(rng.random()),
            mapped: None,
            v4: None,
            v6: None,
            due: None,
            started: None,
            seen: VecDeque::new(),
            varies: None,
            extras: BTreeMap::new(),
            rng: StdRng::from_seed(rng.random()),
            acts: Vec::new(),
        }
    }

    /// Takes over the addresses of its interface and the gateway, if that maps ports.
    pub fn set_interface(
        &mut self,
        v4: Option<Ipv4Addr>,
        v6: Option<std::net::Ipv6Addr>,
        gateway: Option<Ipv4Addr>,
        now: Instant,
    ) {
        let lost = (self.v4.is_some() && self.v4 != v4) || (self.v6.is_some() && self.v6 != v6);
        (self.v4, self.v6) = (v4, v6);
        let target = gateway.zip(v4).map(|(gateway, own)| MapTarget { gateway, own, port: PORT, upnp: true });
        self.mapper.set_target(target, now);
        if lost {
            self.links.reconnect(now, &mut self.acts);
            self.paths.handle_rebind(now);
        }
        self.netcheck.cancel();
        self.want(Kind::Full, now);
        self.drain(now);
    }

    /// Takes over what the server says of a peer.
    pub fn set_peer(&mut self, key: NodeKey, info: &Info, now: Instant) {
        self.slots.entry(key).or_default().home = info.home;
        let config = PeerConfig { disco: Some(info.disco), home: info.home, endpoints: info.endpoints.clone() };
        self.paths.set_peer(key, &config, now);
        self.drain(now);
    }

    /// Sends a data packet, as the worker does: straight while that is trusted, else straight and over the relay.
    pub fn send_data(&mut self, peer: NodeKey, number: u64, now: Instant) {
        let Some(slot) = self.slots.get_mut(&peer) else { return };
        let note = slot.noted_sent.is_none_or(|at| now.saturating_duration_since(at) >= NOTE_SPACING);
        if note {
            slot.noted_sent = Some(now);
        }
        let (path, home) = (slot.path, slot.home);
        let load = Load::Data(number);
        if let Some(direct) = path.direct {
            self.send_udp(direct.socket, direct.address, load.clone());
        }
        if path.direct.is_none_or(|direct| now > direct.trusted_until) {
            if let Some(second) = path.second {
                self.send_udp(0, second, load.clone());
            }
            if let Some(region) = self.links.way_to(&peer, home) {
                self.links.approach(home, now, &mut self.acts);
                self.links.send(region, peer, load, now, &mut self.acts);
            }
        }
        if note {
            self.paths.handle_activity(&peer, now);
            if self.due.is_none() && !self.netcheck.is_running() {
                self.want(Kind::Auto, now);
            }
        }
        self.drain(now);
    }

    /// Tells whether a port is one of a socket to peers.
    #[must_use]
    pub fn socket_of(&self, port: u16) -> Option<SocketId> {
        if port == PORT {
            return Some(0);
        }
        self.extras.iter().find(|(_, held)| **held == port).map(|(socket, _)| *socket)
    }

    /// Says whether the server can be told of things.
    pub fn set_server_listens(&mut self, listens: bool) {
        self.netcheck.set_server_listens(listens);
    }

    /// Takes a datagram of a socket to peers.
    pub fn handle_udp(&mut self, socket: SocketId, from: SocketAddr, bytes: &[u8], now: Instant) {
        if stun::is_stun(bytes) {
            self.netcheck.handle_stun(from, bytes, now);
        } else {
            self.paths.handle_udp_at(socket, from, bytes, now);
        }
        self.drain(now);
    }

    /// Takes note of a data packet.
    pub fn handle_data(&mut self, peer: NodeKey, via: Via, now: Instant) {
        let Some(slot) = self.slots.get_mut(&peer) else { return };
        if slot.noted_received.is_none_or(|at| now.saturating_duration_since(at) >= NOTE_SPACING) {
            slot.noted_received = Some(now);
            self.paths.handle_received(&peer, via, now);
            self.drain(now);
        }
    }

    /// Takes a datagram of the gateway.
    pub fn handle_gateway(&mut self, from: SocketAddr, bytes: &[u8], now: Instant) {
        if let SocketAddr::V4(from) = from {
            self.mapper.handle_datagram(from, bytes, now);
            self.drain(now);
        }
    }

    /// Takes the gateway's response to the last [`Act::Ask`], or that there is none.
    pub fn handle_response(&mut self, response: Option<&[u8]>, now: Instant) {
        self.mapper.handle_response(response, now);
        self.drain(now);
    }

    /// Takes note that a connection is up.
    pub fn handle_up(&mut self, conn: ConnId, now: Instant) {
        if self.links.handle_up(conn, now, &mut self.acts) {
            self.tell_home();
            self.netcheck.handle_relay_frame(conn.region, now);
            self.paths.handle_relay_up(conn.region, now);
        }
        self.drain(now);
    }

    /// Takes note that a connection is down, or could not be made.
    pub fn handle_down(&mut self, conn: ConnId, now: Instant) {
        if self.links.handle_down(conn, now, &mut self.rng) {
            self.want(Kind::Auto, now);
        }
        self.drain(now);
    }

    /// Takes what a relay brings; `None` is a keep-alive.
    pub fn handle_relayed(&mut self, conn: ConnId, packet: Option<(NodeKey, &Load)>, now: Instant) {
        if !self.links.handle_frame(conn, now) {
            return;
        }
        self.netcheck.handle_relay_frame(conn.region, now);
        let Some((from, load)) = packet.filter(|(from, _)| self.slots.contains_key(from)) else { return };
        self.links.handle_heard(conn.region, from);
        match load {
            Load::Data(_) => self.handle_data(from, Via::Relay(conn.region), now),
            Load::Message(bytes) => self.paths.handle_relayed(conn.region, &from, bytes, now),
        }
        self.drain(now);
    }

    /// Takes note that a peer is not at a relay.
    pub fn handle_gone(&mut self, region: RegionId, peer: &NodeKey) {
        self.links.handle_gone(region, peer);
    }

    /// Takes how long a relay takes to answer over TCP.
    pub fn handle_latency(&mut self, region: RegionId, latency: Duration, now: Instant) {
        self.netcheck.handle_relay_latency(region, latency, now);
        self.drain(now);
    }

    /// Acts on every deadline at or before `now`; tells whether there was one.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        let due = self.poll_timeout().is_some_and(|at| at <= now);
        self.paths.handle_timeout(now);
        self.drain(now);
        self.mapper.handle_timeout(now);
        self.netcheck.handle_timeout(now);
        if let Some((at, kind)) = self.due
            && at <= now
            && !self.netcheck.is_running()
        {
            self.due = None;
            if kind != Kind::Incremental || self.paths.in_use() {
                self.started = Some(now);
                let kind = if kind == Kind::Incremental { Kind::Auto } else { kind };
                let families = Families { v4: self.v4.is_some(), v6: self.v6.is_some() };
                self.netcheck.start(kind, families, now);
                self.mapper.check();
                self.mapper.try_again(now);
            }
        }
        if self.links.handle_timeout(now, &mut self.rng, &mut self.acts) {
            self.want(Kind::Auto, now);
        }
        self.drain(now);
        due
    }

    /// Returns when to call [`Self::handle_timeout`] next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = self.due.map(|(at, _)| at).filter(|_| !self.netcheck.is_running());
        let all = [
            due,
            self.paths.poll_timeout(),
            self.netcheck.poll_timeout(),
            self.mapper.poll_timeout(),
            self.links.poll_timeout(),
        ];
        all.into_iter().flatten().min()
    }

    /// Returns what is to be done.
    pub fn take_acts(&mut self) -> Vec<Act> {
        std::mem::take(&mut self.acts)
    }

    fn want(&mut self, kind: Kind, now: Instant) {
        let kind = if matches!(self.due, Some((_, Kind::Full))) { Kind::Full } else { kind };
        self.due = Some((now, kind));
    }

    fn drain(&mut self, now: Instant) {
        loop {
            let mut quiet = true;
            while let Some(transmit) = self.paths.poll_transmit() {
                quiet = false;
                let load = Load::Message(transmit.bytes);
                match transmit.to {
                    Destination::Udp(to) => self.send_udp(transmit.socket, to, load),
                    // Nobody relays for peers here.
                    Destination::PeerRelay(_) => {}
                    Destination::Relay { region, peer } => {
                        let region = self.links.way_to(&peer, Some(region)).unwrap_or(region);
                        self.links.send(region, peer, load, now, &mut self.acts);
                    }
                }
            }
            while let Some(event) = self.paths.poll_event() {
                quiet = false;
                #[expect(clippy::wildcard_enum_match_arm, reason = "other events are answers to a user's questions")]
                match event {
                    Event::Path { peer, path } => {
                        if let Some(slot) = self.slots.get_mut(&peer) {
                            slot.path = path;
                        }
                    }
                    Event::Sockets { wanted } => {
                        self.renew_sockets(&wanted);
                        self.paths.handle_sockets(now);
                    }
                    Event::EndpointsWanted => self.want(Kind::Auto, now),
                    _ => {}
                }
            }
            while let Some(probe) = self.netcheck.poll_transmit() {
                self.acts.push(match probe.server {
                    RelayAddress::Literal(to) => Act::Udp { port: PORT, to, load: Load::Message(probe.bytes) },
                    RelayAddress::Name { host, v6, .. } => Act::Stun { host, v6, bytes: probe.bytes },
                });
            }
            while let Some(region) = self.netcheck.poll_relay_request() {
                self.acts.push(Act::Measure(region));
            }
            while let Some(transmit) = self.mapper.poll_transmit() {
                let to = SocketAddr::V4(transmit.to);
                self.acts.push(Act::Udp { port: MAPPER_PORT, to, load: Load::Message(transmit.bytes) });
            }
            while let Some(request) = self.mapper.poll_request() {
                self.acts.push(Act::Ask { to: request.to, request: request.bytes });
            }
            if self.mapper.mapping() != self.mapped {
                self.mapped = self.mapper.mapping();
                self.want(Kind::Auto, now);
            }
            if let Some(report) = self.netcheck.poll_report() {
                quiet = false;
                self.take_report(&report, now);
            }
            if quiet {
                return;
            }
        }
    }

    fn send_udp(&mut self, socket: SocketId, to: SocketAddr, load: Load) {
        let port = if socket == 0 { Some(PORT) } else { self.extras.get(&socket).copied() };
        if let Some(port) = port {
            self.acts.push(Act::Udp { port, to, load });
        }
    }

    fn renew_sockets(&mut self, wanted: &[SocketId]) {
        self.extras.retain(|socket, _| wanted.contains(socket));
        for socket in wanted {
            while !self.extras.contains_key(socket) {
                let port = self.rng.random_range(42_000..=u16::MAX);
                if self.extras.values().all(|held| *held != port) {
                    self.extras.insert(*socket, port);
                }
            }
        }
    }

    fn take_report(&mut self, report: &Report, now: Instant) {
        let (home, advertised) = (report.home, &report.advertised);
        self.varies = report.mapping_varies.or(self.varies);
        self.seen
            .retain(|(address, at)| !advertised.contains(address) && now.saturating_duration_since(*at) < REMEMBERED);
        self.seen.extend(advertised.iter().take(MAX_REMEMBERED).rev().map(|address| (*address, now)));
        while self.seen.len() > MAX_REMEMBERED {
            self.seen.pop_front();
        }
        if self.due.is_none() {
            self.due = Some(if home.or(self.links.home()).is_none() {
                (now + HOMELESS, Kind::Full)
            } else {
                (now + Duration::from_millis(self.rng.random_range(PERIOD_MILLIS)), Kind::Incremental)
            });
        }
        if let Some(home) = home {
            self.links.set_home(home, now, &mut self.acts);
        }
        self.paths.set_own_nat(OwnNat {
            udp: Some(report.udp),
            hard: report.mapping_varies.or_else(|| report.udp.then_some(self.varies).flatten()),
            public: report.global_v4,
            counting: report.counting,
            mapped: self.mapped.is_some(),
        });
        let endpoints = self.endpoints();
        self.paths.set_own_endpoints(endpoints.clone(), self.started.unwrap_or(now), now);
        if self.info.endpoints != endpoints {
            self.info.endpoints = endpoints;
            self.acts.push(Act::Tell);
        }
        self.tell_home();
    }

    fn endpoints(&self) -> Vec<SocketAddr> {
        let mapped = self.mapped.map(SocketAddr::V4);
        let seen = self.seen.iter().rev().map(|(address, _)| *address);
        let local = [self.v4.map(IpAddr::V4), self.v6.map(IpAddr::V6)];
        let local = local.into_iter().flatten().map(|ip| SocketAddr::new(ip, PORT));
        // Who forwards the port on a hard NAT can be reached at it.
        let v4 = self.seen.iter().rev().map(|(address, _)| address.ip()).find(IpAddr::is_ipv4);
        let guess = v4.filter(|_| self.varies == Some(true)).map(|ip| SocketAddr::new(ip, PORT));
        let mut all = Vec::new();
        for address in mapped.into_iter().chain(seen).chain(guess).chain(local) {
            if !all.contains(&address) {
                all.push(address);
            }
        }
        all
    }

    fn tell_home(&mut self) {
        if let Some(home) = self.links.home().filter(|home| self.links.is_up(*home))
            && self.info.home != Some(home)
        {
            self.info.home = Some(home);
            self.acts.push(Act::Tell);
        }
    }
}
