//! The world: the network, nodes, services, and the loop that lets them live.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use warren_path::Via;
use warren_wire::control::{DerpMap, DerpNode, DerpRegion, RegionId};
use warren_wire::key::NodeKey;
use warren_wire::stun;

use crate::clock::Clock;
use crate::gateway;
use crate::network::{Host, HostId, INTERNET, Leg, Network, Place, RouterId, V4, ZoneId, embed};
use crate::node::{Act, ConnId, Info, Load, MAPPER_PORT, Node};
use crate::watch::Watch;

/// Port of STUN servers.
const STUN_PORT: u16 = 3478;
/// Time that a gateway takes for a request over HTTP, and after which one that does not answer is given up.
const GATEWAY_ANSWERS: Duration = Duration::from_millis(3);
const GATEWAY_SILENT: Duration = Duration::from_secs(1);
/// How often a relay says that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// How often TCP probes a connection at rest. The kernel does it, so it wakes no node.
const TCP_PROBE: Duration = Duration::from_secs(15);
/// Port of the host that replays.
const REPLAY_PORT: u16 = 666;
/// Time from a node to the server or back.
const TO_SERVER: Duration = Duration::from_millis(30);
/// How long the server gathers changes.
const GATHER: Duration = Duration::from_millis(50);
/// How long nodes take at most to find a server that is back.
const FIND_SERVER_MILLIS: u64 = 5_000;
/// Lines of the trace that are kept for a report.
const MAX_LINES: usize = 5_000_000;

/// A node's place in [`World::nodes`].
pub type NodeId = usize;

/// Where a datagram comes from.
#[derive(Debug, Clone, Copy)]
struct Origin {
    /// Who sent it, if a node did.
    sender: Option<NodeId>,
    /// To where it was sent.
    to: SocketAddr,
    /// How many others it is the answer to.
    depth: u32,
}

/// What happens.
#[derive(Debug)]
enum Event<F> {
    /// A datagram is at the next router or at its host.
    Arrive {
        leg: Leg,
        origin: Origin,
        load: Load,
    },
    Wake(NodeId, Instant),
    Up(NodeId, ConnId),
    Down(NodeId, ConnId),
    AtRelay {
        from: NodeId,
        conn: ConnId,
        peer: NodeKey,
        load: Load,
        depth: u32,
    },
    FromRelay {
        to: NodeId,
        conn: ConnId,
        from: NodeKey,
        load: Load,
        depth: u32,
    },
    Gone(NodeId, RegionId, NodeKey),
    KeepAlive(NodeId, ConnId),
    /// TCP looks whether the other end is still there.
    Probe(NodeId, ConnId),
    Latency(NodeId, RegionId, Duration),
    /// The gateway's response, or that there is none.
    Response(NodeId, Option<Vec<u8>>),
    AtServer(NodeId),
    FromServer {
        to: NodeId,
        about: NodeId,
        info: Box<Info>,
    },
    Custom(F),
}

/// A relay with its STUN server.
#[derive(Debug)]
pub struct Relay {
    /// Its region.
    pub region: RegionId,
    /// Its host.
    pub host: HostId,
    /// It runs.
    pub is_up: bool,
    /// Connected nodes.
    connected: BTreeMap<NodeKey, (NodeId, ConnId)>,
}

/// A TCP connection of a node to a relay.
#[derive(Debug)]
struct Conn {
    /// Something between the ends has forgotten it; neither knows.
    is_broken: bool,
    /// Last arrivals, for the order.
    up: Instant,
    down: Instant,
}

/// What is counted of a node.
#[derive(Debug, Default, Clone, Copy)]
pub struct Count {
    /// Times it woke for a deadline.
    pub wakes: u64,
    /// Datagrams and bytes of UDP towards peers.
    pub peer: (u64, u64),
    /// The same to STUN servers.
    pub stun: (u64, u64),
    /// The same to the gateway.
    pub gateway: (u64, u64),
    /// Frames and bytes over relays towards peers.
    pub relayed: (u64, u64),
    /// Keep-alives of relays.
    pub keep_alives: u64,
}

/// The world. `F` is what a scenario lets happen.
#[derive(Debug)]
pub struct World<F> {
    clock: Clock<Event<F>>,
    /// Randomness of the network and of scenarios.
    pub rng: StdRng,
    /// The network.
    pub network: Network,
    /// All nodes.
    pub nodes: Vec<Node>,
    /// Host of each node.
    pub hosts: Vec<HostId>,
    /// All relays.
    pub relays: Vec<Relay>,
    /// What must be true.
    pub watch: Watch,
    /// What was counted.
    pub counts: Vec<Count>,
    by_key: BTreeMap<NodeKey, NodeId>,
    by_host: BTreeMap<HostId, NodeId>,
    wakes: Vec<Option<Instant>>,
    conns: BTreeMap<(NodeId, ConnId), Conn>,
    stun: BTreeMap<HostId, usize>,
    server_up: bool,
    told: BTreeMap<NodeId, Info>,
    /// Nodes to which the server has yet to tell of all others.
    strangers: BTreeSet<NodeId>,
    /// A host that sends again what it has seen others send.
    replayer: HostId,
    /// How many datagrams in a thousand it sends again.
    pub replays: u32,
    map: DerpMap,
    hash: u64,
    /// Events so far.
    pub events: u64,
    /// The trace, if it is wanted.
    pub trace: Option<VecDeque<String>>,
}

impl<F> World<F> {
    /// Makes a world with relays at these positions, and nobody in it.
    #[must_use]
    pub fn new(seed: u64, relays: &[u64]) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        let mut network = Network::default();
        let mut list = Vec::new();
        let mut regions = BTreeMap::new();
        let mut stun = BTreeMap::new();
        for (number, position) in (1_u8..).zip(relays) {
            // The last of several has IPv4 alone, so that those with IPv6 alone need a NAT64 for it.
            let has_v6 = relays.len() == 1 || usize::from(number) < relays.len();
            let (v4, v6) =
                (Ipv4Addr::new(203, 0, 113, number), Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, number.into()));
            let host = network.add_host(Host {
                zone: INTERNET,
                v4: Some(v4),
                v6: has_v6.then_some(v6),
                position: *position,
                loss: 0,
                jitter: Duration::ZERO,
            });
            let region = RegionId(900 + u16::from(number));
            let node = DerpNode {
                name: format!("{region}a"),
                region_id: region,
                host_name: format!("{region}.example.com"),
                ipv4: v4.to_string(),
                ipv6: if has_v6 { v6.to_string() } else { String::new() },
                ..DerpNode::default()
            };
            regions.insert(region, DerpRegion { region_id: region, nodes: vec![node], ..DerpRegion::default() });
            stun.insert(host, list.len());
            list.push(Relay { region, host, is_up: true, connected: BTreeMap::new() });
        }
        let replayer = network.add_host(Host {
            zone: INTERNET,
            v4: Some(Ipv4Addr::new(203, 0, 113, 250)),
            v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0xfffe, 0, 0, 0, 0, 250)),
            position: 50,
            loss: 0,
            jitter: Duration::ZERO,
        });
        Self {
            clock: Clock::default(),
            rng,
            network,
            nodes: Vec::new(),
            hosts: Vec::new(),
            relays: list,
            watch: Watch::default(),
            counts: Vec::new(),
            by_key: BTreeMap::new(),
            by_host: BTreeMap::new(),
            wakes: Vec::new(),
            conns: BTreeMap::new(),
            stun,
            server_up: true,
            told: BTreeMap::new(),
            strangers: BTreeSet::new(),
            replayer,
            replays: 0,
            map: DerpMap { regions: Some(regions), ..DerpMap::default() },
            hash: 0xcbf2_9ce4_8422_2325,
            events: 0,
            trace: None,
        }
    }

    /// Returns the time.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Returns how much time has passed.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }

    /// Returns a number that tells one course of events from another.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.hash
    }

    /// Writes down that something happened.
    pub fn note(&mut self, kind: u8, numbers: [u64; 3], text: impl FnOnce() -> String) {
        let time = u64::try_from(self.clock.elapsed().as_nanos()).unwrap_or(u64::MAX);
        for number in [time, kind.into(), numbers[0], numbers[1], numbers[2]] {
            for byte in number.to_le_bytes() {
                self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
        let elapsed = self.clock.elapsed().as_secs_f64();
        if let Some(trace) = &mut self.trace {
            if trace.len() == MAX_LINES {
                trace.pop_front();
            }
            trace.push_back(format!("{elapsed:11.6} {}", text()));
        }
    }

    /// Notes that something is not as it must be.
    pub fn violate(&mut self, text: String) {
        let text = format!("{:.3} s: {text}", self.elapsed().as_secs_f64());
        self.note(255, [0; 3], || format!("VIOLATION {text}"));
        self.watch.violations.push(text);
    }

    /// Adds a node on a host; it begins to live at once.
    pub fn add_node(&mut self, host: HostId) -> NodeId {
        let id = self.nodes.len();
        let node = Node::new(&self.map, &mut self.rng);
        self.by_key.insert(node.key, id);
        self.by_host.insert(host, id);
        self.nodes.push(node);
        self.strangers.insert(id);
        self.hosts.push(host);
        self.wakes.push(None);
        self.counts.push(Count::default());
        self.look_at_interface(id);
        id
    }

    /// Finds a node by its key.
    #[must_use]
    pub fn id_of(&self, key: &NodeKey) -> Option<NodeId> {
        self.by_key.get(key).copied()
    }

    /// Lets a scenario's event happen after a while.
    pub fn after(&mut self, wait: Duration, event: F) {
        self.clock.after(wait, Event::Custom(event));
    }

    /// Runs until the next event of the scenario, or until `end`.
    pub fn run(&mut self, end: Instant) -> Option<F> {
        while let Some(event) = self.clock.next(end) {
            self.events += 1;
            if let Event::Custom(event) = event {
                return Some(event);
            }
            self.handle(event);
        }
        None
    }

    /// Sends a data packet.
    pub fn send_data(&mut self, from: NodeId, to: NodeId, number: u64) {
        let (now, key) = (self.now(), self.nodes[to].key);
        self.nodes[from].send_data(key, number, now);
        self.settle(from, 0);
    }

    // Faults.

    /// Moves a node's host.
    pub fn move_node(&mut self, id: NodeId, zone: ZoneId, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) {
        let was_captive = self.network.is_captive(self.hosts[id]);
        self.network.move_host(self.hosts[id], zone, v4, v6);
        match (was_captive, self.network.is_captive(self.hosts[id])) {
            (_, true) => self.nodes[id].set_server_listens(false),
            (true, false) => self.find_server(id),
            (false, false) => {}
        }
        self.look_at_interface(id);
    }

    /// Lets a portal hold up all traffic through a router, or let it pass.
    pub fn set_captive(&mut self, router: RouterId, is_captive: bool) {
        if self.network.routers[router].is_captive == is_captive {
            return;
        }
        self.note(13, [router as u64, is_captive.into(), 0], || format!("router {router} captive: {is_captive}"));
        self.network.routers[router].is_captive = is_captive;
        let is_behind = |host: HostId| self.network.uplinks(self.network.hosts[host].zone).contains(&router);
        let behind: Vec<NodeId> = (0..self.nodes.len()).filter(|id| is_behind(self.hosts[*id])).collect();
        if is_captive {
            self.conns
                .iter_mut()
                .filter(|((id, _), _)| behind.contains(id))
                .for_each(|(_, conn)| conn.is_broken = true);
        }
        for id in behind {
            if is_captive {
                self.nodes[id].set_server_listens(false);
            } else {
                self.find_server(id);
            }
        }
    }

    /// Lets a node find the server, which has yet to tell it of all others.
    fn find_server(&mut self, id: NodeId) {
        self.strangers.insert(id);
        let wait = Duration::from_millis(self.rng.random_range(0..FIND_SERVER_MILLIS));
        self.clock.after(wait, Event::AtServer(id));
    }

    /// Ends a node and starts it again: with its key, another disco key, and no memory.
    pub fn restart(&mut self, id: NodeId) {
        self.note(12, [id as u64, 0, 0], || format!("node {id} restarts"));
        let conns: Vec<ConnId> = self.conns.keys().filter(|(node, _)| *node == id).map(|(_, conn)| *conn).collect();
        for conn in conns {
            self.disconnect(id, conn);
        }
        self.nodes[id] = self.nodes[id].restarted(&self.map, &mut self.rng);
        self.nodes[id].set_server_listens(self.server_up && !self.network.is_captive(self.hosts[id]));
        self.wakes[id] = None;
        self.strangers.insert(id);
        self.clock.after(TO_SERVER, Event::AtServer(id));
        self.look_at_interface(id);
    }

    /// Restarts a router. The TCP connections through it are dead, and nobody is told.
    pub fn reboot(&mut self, router: RouterId, new: Option<Ipv4Addr>) {
        let now = self.now();
        self.network.reboot(router, new, now);
        for ((node, _), conn) in &mut self.conns {
            let zone = self.network.hosts[self.hosts[*node]].zone;
            conn.is_broken |= self.network.uplinks(zone).contains(&router);
        }
    }

    /// Ends or starts a relay.
    pub fn set_relay(&mut self, at: usize, is_up: bool) {
        self.relays[at].is_up = is_up;
        let (region, host) = (self.relays[at].region, self.relays[at].host);
        for (id, conn) in std::mem::take(&mut self.relays[at].connected).into_values() {
            let wait = self.tcp(id, host);
            self.conns.remove(&(id, conn));
            self.clock.after(wait, Event::Down(id, conn));
        }
        self.note(10, [region.0.into(), is_up.into(), 0], || format!("relay {region} up: {is_up}"));
    }

    /// Ends or starts the server.
    pub fn set_server(&mut self, is_up: bool) {
        let was_up = std::mem::replace(&mut self.server_up, is_up);
        if !is_up {
            self.nodes.iter_mut().for_each(|node| node.set_server_listens(false));
        }
        if is_up && !was_up {
            for id in 0..self.nodes.len() {
                let wait = Duration::from_millis(self.rng.random_range(0..FIND_SERVER_MILLIS));
                self.clock.after(wait, Event::AtServer(id));
            }
        }
        self.note(11, [is_up.into(), 0, 0], || format!("server up: {is_up}"));
    }

    fn look_at_interface(&mut self, id: NodeId) {
        let now = self.now();
        let Host { zone, v4, v6, .. } = self.network.hosts[self.hosts[id]];
        let router = self.network.zones[zone].uplink.map(|router| &self.network.routers[router]);
        let gateway = router.filter(|router| router.maps_ports.is_some()).map(|router| router.inner_v4);
        self.nodes[id].set_interface(v4, v6, gateway, now);
        self.settle(id, 0);
    }

    // What happens.

    fn handle(&mut self, event: Event<F>) {
        let now = self.now();
        match event {
            Event::Arrive { leg, origin, load } => self.arrive(leg, origin, load),
            Event::Wake(id, at) => {
                if self.wakes[id] == Some(at) {
                    self.wakes[id] = None;
                    if self.nodes[id].handle_timeout(now) {
                        self.counts[id].wakes += 1;
                    }
                    self.settle(id, 0);
                }
            }
            Event::Up(id, conn) => {
                // Given up while it was being made.
                if !self.nodes[id].links.wants(conn) {
                    return;
                }
                let key = self.nodes[id].key;
                let is_captive = self.network.is_captive(self.hosts[id]);
                let relay = self.relays.iter_mut().find(|relay| relay.region == conn.region && relay.is_up);
                let Some(relay) = relay.filter(|_| !is_captive) else { return self.handle(Event::Down(id, conn)) };
                relay.connected.insert(key, (id, conn));
                self.conns.insert((id, conn), Conn { is_broken: false, up: now, down: now });
                self.note(1, [id as u64, conn.region.0.into(), conn.number], || {
                    format!("node {id} connected to {}", conn.region)
                });
                self.clock.after(KEEP_ALIVE, Event::KeepAlive(id, conn));
                self.clock.after(TCP_PROBE, Event::Probe(id, conn));
                self.nodes[id].handle_up(conn, now);
                self.settle(id, 0);
            }
            Event::Down(id, conn) => {
                self.note(2, [id as u64, conn.region.0.into(), conn.number], || {
                    format!("node {id} lost {}", conn.region)
                });
                self.disconnect(id, conn);
                self.nodes[id].handle_down(conn, now);
                self.settle(id, 0);
            }
            Event::AtRelay { from, conn, peer, load, depth } => self.at_relay(from, conn, peer, load, depth),
            Event::FromRelay { to, conn, from, load, depth } => {
                if self.conns.get(&(to, conn)).is_none_or(|conn| conn.is_broken) {
                    return;
                }
                let bytes = load.len() as u64;
                self.note(3, [to as u64, conn.region.0.into(), bytes], || {
                    format!("node {to} gets {} over {}", name(&load), conn.region)
                });
                if let Load::Data(number) = load {
                    self.watch.arrived(number);
                }
                self.nodes[to].handle_relayed(conn, Some((from, &load)), now);
                self.settle(to, depth + 1);
            }
            Event::Gone(id, region, peer) => self.nodes[id].handle_gone(region, &peer),
            Event::KeepAlive(id, conn) => {
                if let Some(state) = self.conns.get(&(id, conn)) {
                    if !state.is_broken {
                        self.counts[id].keep_alives += 1;
                        self.nodes[id].handle_relayed(conn, None, now);
                        self.settle(id, 0);
                    }
                    self.clock.after(KEEP_ALIVE, Event::KeepAlive(id, conn));
                }
            }
            Event::Probe(id, conn) => {
                if let Some(state) = self.conns.get(&(id, conn)) {
                    let event = if state.is_broken { Event::Down(id, conn) } else { Event::Probe(id, conn) };
                    self.clock.after(TCP_PROBE, event);
                }
            }
            Event::Latency(id, region, latency) => {
                self.nodes[id].handle_latency(region, latency, now);
                self.settle(id, 0);
            }
            Event::Response(id, response) => {
                self.nodes[id].handle_response(response.as_deref(), now);
                self.settle(id, 0);
            }
            Event::AtServer(id) => self.at_server(id),
            Event::FromServer { to, about, info } => {
                // Told again when the portal lets it pass.
                if self.network.is_captive(self.hosts[to]) {
                    return;
                }
                let key = self.nodes[about].key;
                self.nodes[to].set_peer(key, &info, now);
                self.settle(to, 0);
            }
            Event::Custom(_) => {}
        }
    }

    fn arrive(&mut self, leg: Leg, origin: Origin, load: Load) {
        let now = self.now();
        match leg.place {
            Place::Router(router) => match self.network.enter(router, leg.from, leg.to, now) {
                Some(leg) => self.clock.after(leg.wait, Event::Arrive { leg, origin, load }),
                None => self.note(4, [router as u64, leg.to.port().into(), leg.from.port().into()], || {
                    format!("router {router} drops {} from {} to {}", name(&load), leg.from, leg.to)
                }),
            },
            Place::Gateway(router) => {
                let (Load::Message(bytes), Some(id)) = (&load, origin.sender) else { return };
                let state = &mut self.network.routers[router];
                let (Some(since), V4::Nat(nat)) = (state.maps_ports, &mut state.v4) else { return };
                let answer = match (leg.to.port(), state.speaks_upnp) {
                    (gateway::PORT, false) => gateway::answer(nat, leg.from, bytes, since, now, &mut self.rng),
                    (gateway::SEARCH_PORT, true) => gateway::found(state.inner_v4, bytes),
                    _ => None,
                };
                if let Some(answer) = answer {
                    let back = Leg { place: Place::Host(self.hosts[id]), from: leg.to, to: leg.from, wait: leg.wait };
                    let origin = Origin { sender: None, to: leg.from, depth: 0 };
                    let event = Event::Arrive { leg: back, origin, load: Load::Message(answer) };
                    self.clock.after(leg.wait, event);
                }
            }
            Place::Host(host) => self.arrive_at_host(host, leg, origin, load),
        }
    }

    fn arrive_at_host(&mut self, host: HostId, leg: Leg, origin: Origin, load: Load) {
        let now = self.now();
        if let Some(at) = self.stun.get(&host) {
            if let (true, STUN_PORT, Load::Message(bytes)) = (self.relays[*at].is_up, leg.to.port(), &load)
                && let Ok(id) = stun::parse_request(bytes)
            {
                let answer = Load::Message(stun::response(&id, leg.from));
                self.send(host, None, STUN_PORT, leg.from, answer, 0);
            }
            return;
        }
        let Some(id) = self.by_host.get(&host).copied() else { return };
        if let Some(sender) = origin.sender {
            self.watch.reach(sender, origin.to);
        }
        let bytes = load.len() as u64;
        self.note(5, [id as u64, leg.from.port().into(), bytes], || {
            format!("node {id} gets {} from {}", name(&load), leg.from)
        });
        match (self.nodes[id].socket_of(leg.to.port()), load) {
            (Some(_), Load::Data(number)) => {
                // A real node finds the session and opens the packet; only the right one can.
                if let Some(peer) = origin.sender.map(|sender| self.nodes[sender].key)
                    && self.watch.is_for(number, id)
                {
                    self.watch.arrived(number);
                    self.watch.hear(id, leg.from, Load::Data(number).len(), now);
                    self.nodes[id].handle_data(peer, Via::Direct(leg.from), now);
                    self.settle(id, 0);
                }
            }
            (Some(socket), Load::Message(bytes)) => {
                if !stun::is_stun(&bytes) && self.rng.random_range(0..1000) < self.replays {
                    self.send(self.replayer, None, REPLAY_PORT, origin.to, Load::Message(bytes.clone()), 0);
                }
                self.watch.hear(id, leg.from, bytes.len(), now);
                self.nodes[id].handle_udp(socket, leg.from, &bytes, now);
                self.settle(id, origin.depth + 1);
            }
            (None, Load::Message(bytes)) if leg.to.port() == MAPPER_PORT => {
                self.nodes[id].handle_gateway(leg.from, &bytes, now);
                self.settle(id, 0);
            }
            _ => {}
        }
    }

    fn at_relay(&mut self, from: NodeId, conn: ConnId, peer: NodeKey, load: Load, depth: u32) {
        let key = self.nodes[from].key;
        let Some(relay) = self.relays.iter().find(|relay| relay.region == conn.region && relay.is_up) else { return };
        let host = relay.host;
        match relay.connected.get(&peer).copied() {
            Some((to, conn)) => {
                let wait = self.tcp(to, host);
                let Some(state) = self.conns.get_mut(&(to, conn)) else { return };
                state.down = state.down.max(self.clock.now() + wait);
                self.clock.at(state.down, Event::FromRelay { to, conn, from: key, load, depth });
            }
            None => {
                let wait = self.tcp(from, host);
                self.clock.after(wait, Event::Gone(from, conn.region, peer));
            }
        }
    }

    fn at_server(&mut self, id: NodeId) {
        if !self.server_up || self.network.is_captive(self.hosts[id]) {
            return;
        }
        self.nodes[id].set_server_listens(true);
        let info = self.nodes[id].info.clone();
        self.note(8, [id as u64, info.home.map_or(0, |home| home.0.into()), 0], || {
            format!("server hears of node {id}: home {:?}, {:?}", info.home, info.endpoints)
        });
        let is_new = self.told.insert(id, info.clone()) != Some(info.clone());
        for other in 0..self.nodes.len() {
            if other != id && is_new {
                let event = Event::FromServer { to: other, about: id, info: Box::new(info.clone()) };
                self.clock.after(GATHER + TO_SERVER, event);
            }
        }
        // Whoever comes late hears of those before.
        if self.strangers.remove(&id) {
            for (about, info) in self.told.iter().filter(|(about, _)| **about != id) {
                let event = Event::FromServer { to: id, about: *about, info: Box::new(info.clone()) };
                self.clock.after(GATHER + TO_SERVER, event);
            }
        }
    }

    /// Does what a node wants done, and notes when it wants to be woken.
    fn settle(&mut self, id: NodeId, depth: u32) {
        for act in self.nodes[id].take_acts() {
            self.act(id, act, depth);
        }
        let due = self.nodes[id].poll_timeout();
        if due.is_some() && due != self.wakes[id] {
            self.wakes[id] = due;
            if let Some(at) = due {
                self.clock.at(at, Event::Wake(id, at));
            }
        } else if due.is_none() {
            self.wakes[id] = None;
        }
    }

    fn act(&mut self, id: NodeId, act: Act, depth: u32) {
        let now = self.now();
        match act {
            Act::Udp { port, to, load } => {
                let bytes = load.len() as u64;
                let count = &mut self.counts[id];
                let count = match (port, to.port()) {
                    (MAPPER_PORT, _) => &mut count.gateway,
                    (_, STUN_PORT) => &mut count.stun,
                    _ => {
                        if let Some(fault) = self.watch.send_to_peer(id, to, &load, depth, now) {
                            self.violate(fault);
                        }
                        &mut self.counts[id].peer
                    }
                };
                *count = (count.0 + 1, count.1 + bytes);
                self.note(6, [id as u64, to.port().into(), bytes], || {
                    format!("node {id} sends {} to {to}, depth {depth}", name(&load))
                });
                self.send(self.hosts[id], Some(id), port, to, load, depth);
            }
            Act::Connect(conn) => {
                let relay =
                    self.relays.iter().find(|relay| relay.region == conn.region).map(|relay| (relay.is_up, relay.host));
                let Some((is_up, host)) = relay else { return };
                // Three-way handshake, TLS, upgrade.
                let wait = self.tcp(id, host) * 6;
                let is_up = is_up && !self.network.is_captive(self.hosts[id]);
                self.clock.after(wait, if is_up { Event::Up(id, conn) } else { Event::Down(id, conn) });
            }
            Act::Close(conn) => self.disconnect(id, conn),
            Act::Relay { conn, peer, load } => {
                let bytes = load.len() as u64;
                let count = &mut self.counts[id].relayed;
                *count = (count.0 + 1, count.1 + bytes);
                if let Some(fault) = self.watch.send_over_relay(id, depth) {
                    self.violate(fault);
                }
                self.note(7, [id as u64, conn.region.0.into(), bytes], || {
                    format!("node {id} sends {} over {}, depth {depth}", name(&load), conn.region)
                });
                let Some(host) = self.relays.iter().find(|relay| relay.region == conn.region).map(|relay| relay.host)
                else {
                    return;
                };
                let wait = self.tcp(id, host);
                let Some(state) = self.conns.get_mut(&(id, conn)) else { return };
                if state.is_broken {
                    // The far end answers with a reset.
                    self.clock.after(wait * 2, Event::Down(id, conn));
                    return;
                }
                state.up = state.up.max(now + wait);
                self.clock.at(state.up, Event::AtRelay { from: id, conn, peer, load, depth });
            }
            Act::Stun { host, v6, bytes } => {
                let named = |relay: &&Relay| *host == *format!("{}.example.com", relay.region);
                let Some(relay) = self.relays.iter().find(named).map(|relay| relay.host) else { return };
                let Host { v4: has_v4, v6: has_v6, .. } = self.network.hosts[relay];
                // What DNS64 makes of a name that has IPv4 alone. RFC 6147.
                let made = has_v4.filter(|_| self.network.has_nat64(self.hosts[id])).map(embed);
                let ip = if v6 { has_v6.or(made).map(Into::into) } else { has_v4.map(Into::into) };
                let Some(ip) = ip else { return };
                let count = &mut self.counts[id].stun;
                *count = (count.0 + 1, count.1 + bytes.len() as u64);
                self.send(
                    self.hosts[id],
                    Some(id),
                    crate::node::PORT,
                    SocketAddr::new(ip, STUN_PORT),
                    Load::Message(bytes),
                    depth,
                );
            }
            Act::Ask { to, request } => {
                let Host { zone, v4, .. } = self.network.hosts[self.hosts[id]];
                let uplink = self.network.zones[zone].uplink;
                let router = uplink
                    .map(|id| &mut self.network.routers[id])
                    .filter(|router| router.speaks_upnp && router.maps_ports.is_some() && router.inner_v4 == *to.ip());
                let response = match (router.map(|router| &mut router.v4), v4) {
                    (Some(V4::Nat(nat)), Some(from)) if to.port() == gateway::HTTP_PORT => {
                        Some(gateway::serve(nat, from, &request, now))
                    }
                    _ => None,
                };
                self.note(9, [id as u64, response.is_some().into(), 0], || format!("node {id} asks its gateway"));
                let wait = if response.is_some() { GATEWAY_ANSWERS } else { GATEWAY_SILENT };
                self.clock.after(wait, Event::Response(id, response));
            }
            Act::Measure(region) => {
                let is_captive = self.network.is_captive(self.hosts[id]);
                let relay =
                    self.relays.iter().find(|relay| relay.region == region && relay.is_up).map(|relay| relay.host);
                if let Some(host) = relay.filter(|_| !is_captive) {
                    let wait = self.tcp(id, host) * 2;
                    self.clock.after(wait, Event::Latency(id, region, wait));
                }
            }
            Act::Tell => self.clock.after(TO_SERVER, Event::AtServer(id)),
        }
    }

    fn send(&mut self, host: HostId, sender: Option<NodeId>, port: u16, to: SocketAddr, load: Load, depth: u32) {
        let now = self.now();
        if let Some(leg) = self.network.send(host, port, to, now, &mut self.rng) {
            let origin = Origin { sender, to, depth };
            self.clock.after(leg.wait, Event::Arrive { leg, origin, load });
        }
    }

    fn disconnect(&mut self, id: NodeId, conn: ConnId) {
        self.conns.remove(&(id, conn));
        let key = self.nodes[id].key;
        for relay in &mut self.relays {
            if relay.connected.get(&key) == Some(&(id, conn)) {
                relay.connected.remove(&key);
            }
        }
    }

    /// Returns the time of a segment between a node and a relay.
    fn tcp(&self, id: NodeId, relay: HostId) -> Duration {
        let position = |host: HostId| self.network.hosts[host].position;
        self.network.distance(position(self.hosts[id]), position(relay))
    }
}

fn name(load: &Load) -> String {
    match load {
        Load::Data(number) => format!("data {number}"),
        Load::Message(bytes) if stun::is_stun(bytes) => "STUN".to_owned(),
        Load::Message(bytes) => format!("{} bytes", bytes.len()),
    }
}
