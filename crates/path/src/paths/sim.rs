//! An Internet for tests: nodes behind NATs, a relay, latency, loss, one clock.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use warren_wire::control::RegionId;
use warren_wire::geneve::{Header, Protocol};
use warren_wire::key::{DiscoSecret, NodeKey, NodeSecret};

use super::{Destination, Event, OwnNat, Path, Paths, PeerConfig, PeerRelay, PeerRelayRoles, SocketId, Via};
use crate::peer_relay::{PeerRelayServer, Verdict};
use crate::testing::epoch;

pub(super) const REGION: RegionId = RegionId(900);
/// How long a NAT lets answers in.
const NAT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a node takes to ask the STUN server.
const MEASURING: Duration = Duration::from_millis(200);
/// Time in which a relay's connection that its NAT has forgotten is reset and made anew: that of the packet that meets the
/// reset, a delay, and three round trips.
const RECONNECTING: Duration = Duration::from_millis(350);
/// How often a worker tells of the same at most.
const REPORTS: Duration = Duration::from_millis(100);

/// How a node meets the Internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nat {
    /// It has a public address and no firewall.
    None,
    /// One public port; only what was opened from inside comes in.
    Easy,
    /// Another public port for each destination: the next.
    Hard,
    /// Another public port for each destination, at random.
    Random,
}

pub(super) struct SimNode {
    pub(super) paths: Paths,
    pub(super) key: NodeKey,
    nat: Nat,
    number: u8,
    /// Ports of the NAT by destination and when they were last used.
    mappings: BTreeMap<(SocketId, SocketAddr), (u16, Instant)>,
    /// Extra sockets.
    pub(super) sockets: Vec<SocketId>,
    measure_at: Option<Instant>,
    /// Its relay connection goes through a NAT that has forgotten it.
    is_relay_broken: bool,
    /// When the relay connection is up again, and what waits for that.
    relay_up_at: Option<Instant>,
    waiting: Vec<(usize, Payload)>,
    /// When the worker last told that packets were sent, if nothing came since, and that some came.
    told_sent: Option<Instant>,
    told_received: Option<Instant>,
    /// The published paths.
    pub(super) slots: BTreeMap<NodeKey, Path>,
    /// All other events.
    pub(super) events: Vec<Event>,
    /// Numbers of the data packets that arrived.
    pub(super) received: Vec<u64>,
    /// When the last of them did, and the longest time between two.
    pub(super) last_received: Option<Instant>,
    pub(super) longest_gap: Duration,
    /// Disco messages sent so far, by way.
    pub(super) sent_udp: usize,
    pub(super) sent_relay: usize,
}

enum Payload {
    Disco(Vec<u8>),
    Data(u64),
}

struct Packet {
    from: Option<SocketAddr>,
    sender: usize,
    receiver: usize,
    /// Where it arrives.
    socket: SocketId,
    payload: Payload,
}

pub(super) struct Internet {
    pub(super) now: Instant,
    pub(super) nodes: Vec<SimNode>,
    pub(super) latency: Duration,
    pub(super) relay_latency: Duration,
    /// Lost UDP datagrams in a thousand.
    pub(super) loss: u32,
    /// Swallows all UDP.
    pub(super) is_cut: bool,
    /// The largest IP packet that is not cut into fragments, between the two.
    pub(super) mtu: usize,
    /// Bytes of what must not be cut, by sender and place.
    pub(super) whole: Vec<(usize, SocketAddr, usize)>,
    /// Swallows what goes over the relay.
    pub(super) is_relay_cut: bool,
    /// What a third node does for the two others.
    pub(super) peer_relay: Option<PeerRelayServer>,
    /// Swallows what goes to and from it.
    pub(super) is_peer_relay_cut: bool,
    flying: BTreeMap<(Instant, u64), Packet>,
    count: u64,
    data: u64,
    rng: StdRng,
}

impl Internet {
    /// Two nodes that know each other: disco key, home, and the addresses that STUN and their interfaces tell.
    pub(super) fn pair(nats: [Nat; 2], seed: u8) -> Self {
        let nodes = nats.into_iter().zip(1..).map(|(nat, number)| SimNode::new(nat, number, seed));
        let mut internet = Self {
            now: epoch(),
            nodes: nodes.collect(),
            latency: Duration::from_millis(10),
            relay_latency: Duration::from_millis(40),
            loss: 0,
            is_cut: false,
            mtu: usize::MAX,
            whole: Vec::new(),
            is_relay_cut: false,
            peer_relay: None,
            is_peer_relay_cut: false,
            flying: BTreeMap::new(),
            count: 0,
            data: 0,
            rng: StdRng::from_seed([seed; 32]),
        };
        internet.introduce(0, 1);
        internet.introduce(1, 0);
        internet
    }

    /// Adds a third node, open to all, that is a peer relay for the two.
    pub(super) fn add_peer_relay(&mut self) {
        self.nodes.push(SimNode::new(Nat::None, 3, 0));
        self.peer_relay = Some(PeerRelayServer::new(DiscoSecret::from_bytes([120; 32]), [9; 32], self.now));
        for client in 0..2 {
            self.introduce(2, client);
            self.introduce(client, 2);
            let keys = [self.nodes[1 - client].key, self.nodes[2].key];
            let paths = &mut self.nodes[client].paths;
            paths.set_peer_relay_roles(&keys[0], PeerRelayRoles { client: true, server: false });
            paths.set_peer_relay_roles(&keys[1], PeerRelayRoles { client: true, server: true });
        }
    }

    /// Where the peer relay is.
    pub(super) fn peer_relay_address() -> SocketAddr {
        SocketAddr::from(([198, 51, 100, 3], 40_000))
    }

    /// Tells whether the path over the peer relay is there and trusted.
    pub(super) fn is_peer_relayed(&self, from: usize) -> bool {
        self.path(from).peer_relay.is_some_and(|path| self.now <= path.trusted_until)
    }

    /// Tells `to` of `about` as the server would.
    pub(super) fn introduce(&mut self, about: usize, to: usize) {
        let peer = &self.nodes[about];
        let config =
            PeerConfig { disco: Some(peer.paths.disco_key()), home: Some(REGION), endpoints: peer.endpoints() };
        let key = peer.key;
        let now = self.now;
        self.nodes[to].paths.set_peer(key, &config, now);
        self.drain(to);
    }

    pub(super) fn key(&self, node: usize) -> NodeKey {
        self.nodes[node].key
    }

    /// Returns the path that `from` uses to the other.
    pub(super) fn path(&self, from: usize) -> Path {
        self.nodes[from].slots[&self.nodes[1 - from].key]
    }

    /// Tells whether the direct path from one to the other is trusted now.
    pub(super) fn is_direct(&self, from: usize) -> bool {
        self.path(from).direct.is_some_and(|direct| self.now <= direct.trusted_until)
    }

    /// Does something with a node, then carries out what it wants.
    pub(super) fn with<T>(&mut self, node: usize, act: impl FnOnce(&mut Paths, NodeKey, Instant) -> T) -> T {
        let peer = self.nodes[1 - node].key;
        let result = act(&mut self.nodes[node].paths, peer, self.now);
        self.drain(node);
        result
    }

    /// Sends a data packet as the path says, and reports it like a worker. Returns its number.
    pub(super) fn send_data(&mut self, from: usize) -> u64 {
        let now = self.now;
        if self.nodes[from].told_sent.is_none_or(|at| now - at >= REPORTS) {
            self.nodes[from].told_sent = Some(now);
            self.with(from, |paths, peer, now| paths.handle_activity(&peer, now));
        }
        self.data += 1;
        let (number, path) = (self.data, self.path(from));
        if let Some(direct) = path.direct {
            self.send_udp(from, direct.socket, direct.address, Payload::Data(number));
        }
        if self.is_direct(from) {
            return number;
        }
        if let Some(path) = path.peer_relay {
            let bytes = path.to.header(Protocol::WireGuard).wrap(&number.to_be_bytes());
            self.send_udp(from, 0, path.to.address, Payload::Disco(bytes));
            if self.is_peer_relayed(from) {
                return number;
            }
        }
        if let Some(second) = path.second {
            self.send_udp(from, 0, second, Payload::Data(number));
        }
        if path.relay.is_some() {
            self.send_relayed(from, 1 - from, Payload::Data(number));
        }
        number
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let arrival = self.flying.keys().next().map(|(at, _)| *at);
            let deadlines =
                self.nodes.iter().flat_map(|node| [node.paths.poll_timeout(), node.measure_at, node.relay_up_at]);
            let Some(at) = deadlines.chain([arrival]).flatten().min().filter(|at| *at <= end) else { break };
            assert!(at >= self.now || arrival != Some(at), "time runs forward");
            self.now = self.now.max(at);
            self.step();
        }
        self.now = end;
    }

    /// Sends a data packet each second, both ways, and lets the time pass.
    pub(super) fn talk(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.send_data(0);
            self.send_data(1);
            self.run(Duration::from_secs(1));
        }
    }

    fn step(&mut self) {
        let now = self.now;
        while self.flying.keys().next().is_some_and(|(at, _)| *at <= now)
            && let Some((_, packet)) = self.flying.pop_first()
        {
            self.arrive(packet);
        }
        for at in 0..self.nodes.len() {
            let node = &mut self.nodes[at];
            if node.measure_at.is_some_and(|due| due <= now) {
                node.measure_at = None;
                let endpoints = node.endpoints();
                node.paths.set_own_endpoints(endpoints, now - MEASURING, now);
            }
            if node.relay_up_at.is_some_and(|due| due <= now) {
                (node.relay_up_at, node.is_relay_broken) = (None, false);
                let waiting = std::mem::take(&mut node.waiting);
                node.paths.handle_relay_up(REGION, now);
                self.drain(at);
                waiting.into_iter().for_each(|(to, payload)| self.send_relayed(at, to, payload));
            }
            self.nodes[at].paths.handle_timeout(now);
            self.drain(at);
        }
    }

    fn arrive(&mut self, packet: Packet) {
        if packet.receiver == PEER_RELAY {
            self.pass_on(packet);
            return;
        }
        let (now, sender) = (self.now, self.nodes[packet.sender].key);
        let node = &mut self.nodes[packet.receiver];
        match (packet.payload, packet.from) {
            (Payload::Data(number), from) => {
                // WireGuard lets nothing pass twice.
                if !node.received.contains(&number) {
                    let gap = node.last_received.map_or(Duration::ZERO, |at| now - at);
                    (node.longest_gap, node.last_received) = (node.longest_gap.max(gap), Some(now));
                    if node.told_received.is_none_or(|at| now - at >= REPORTS) {
                        (node.told_received, node.told_sent) = (Some(now), None);
                        node.paths.handle_received(&sender, from.map_or(Via::Relay(REGION), Via::Direct), now);
                    }
                }
                node.received.push(number);
            }
            (Payload::Disco(bytes), Some(from)) if from == Self::peer_relay_address() => {
                match Header::decode(&bytes).unwrap() {
                    (Header { protocol: Protocol::Disco, .. }, _) => node.paths.handle_peer_relayed(from, &bytes, now),
                    (header, data) => {
                        let via = Via::PeerRelay(PeerRelay { address: from, vni: header.vni });
                        node.paths.handle_received(&sender, via, now);
                        node.received.push(u64::from_be_bytes(data.try_into().unwrap()));
                    }
                }
            }
            (Payload::Disco(bytes), Some(from)) => node.paths.handle_udp_at(packet.socket, from, &bytes, now),
            (Payload::Disco(bytes), None) => node.paths.handle_relayed(REGION, &sender, &bytes, now),
        }
        self.drain(packet.receiver);
    }

    /// The peer relay does its work.
    fn pass_on(&mut self, packet: Packet) {
        let (Payload::Disco(bytes), Some(from), Some(relay)) = (packet.payload, packet.from, &mut self.peer_relay)
        else {
            return;
        };
        relay.handle_timeout(self.now);
        let (to, bytes) = match relay.handle(from, &bytes, self.now) {
            Verdict::Drop => return,
            Verdict::Forward(to) => (to, bytes),
            Verdict::Answer(answer) => (from, answer),
        };
        let (now, own) = (self.now, Self::peer_relay_address());
        let find = |(at, node): (usize, &SimNode)| Some((at, node.lets_in(own, to, now)?));
        let Some((receiver, socket)) = self.nodes.iter().enumerate().find_map(find) else { return };
        let payload = Payload::Disco(bytes);
        self.fly(self.latency, Packet { from: Some(own), sender: packet.sender, receiver, socket, payload });
    }

    fn drain(&mut self, at: usize) {
        while let Some(transmit) = self.nodes[at].paths.poll_transmit() {
            match transmit.to {
                Destination::Udp(to) | Destination::PeerRelay(PeerRelay { address: to, .. }) => {
                    self.nodes[at].sent_udp += 1;
                    if transmit.whole {
                        self.whole.push((at, to, transmit.bytes.len()));
                        if transmit.bytes.len() + 28 > self.mtu {
                            continue;
                        }
                    }
                    self.send_udp(at, transmit.socket, to, Payload::Disco(transmit.bytes));
                }
                Destination::Relay { region, peer } => {
                    assert_eq!(region, REGION);
                    self.nodes[at].sent_relay += 1;
                    if let Some(to) = self.nodes.iter().position(|node| node.key == peer) {
                        self.send_relayed(at, to, Payload::Disco(transmit.bytes));
                    }
                }
            }
        }
        let node = &mut self.nodes[at];
        let mut answered = false;
        while let Some(event) = node.paths.poll_event() {
            match event {
                Event::Path { peer, path } => drop(node.slots.insert(peer, path)),
                Event::Sockets { wanted } => {
                    node.sockets = wanted;
                    node.paths.handle_sockets(self.now);
                }
                Event::EndpointsWanted => node.measure_at = Some(self.now + MEASURING),
                Event::AllocationWanted(wanted) => {
                    let Some(relay) = &mut self.peer_relay else { continue };
                    let asked_by = wanted.asked_by.map_or(node.key, |(_, key)| key);
                    let addresses = [Self::peer_relay_address()];
                    if let Ok(endpoint) = relay.allocate(&asked_by, wanted.clients, &addresses, self.now) {
                        node.paths.answer_allocation(&wanted, endpoint, self.now);
                        answered = true;
                    }
                }
                Event::Pong { .. } | Event::PingTimeout { .. } => node.events.push(event),
            }
        }
        if answered {
            self.drain(at);
        }
    }

    /// Tells the nodes what they would find out of their NATs with one STUN server.
    pub(super) fn tell_public_addresses(&mut self) {
        self.tell_nats();
        for node in &mut self.nodes {
            let nat = OwnNat { hard: None, counting: None, ..node.paths.own_nat() };
            node.paths.set_own_nat(nat);
        }
    }

    /// Tells the nodes what they would find out of their NATs with several.
    pub(super) fn tell_nats(&mut self) {
        for node in &mut self.nodes {
            let hard = matches!(node.nat, Nat::Hard | Nat::Random);
            let counting = (node.nat == Nat::Hard).then_some((1000, 1));
            let public = Some(node.public(if hard { 2 } else { 41641 }));
            node.paths.set_own_nat(OwnNat { udp: Some(true), hard: Some(hard), public, counting, mapped: false });
        }
    }

    /// Gives a node another public address.
    pub(super) fn renumber(&mut self, node: usize, number: u8) {
        self.nodes[node].number = number;
        self.nodes[node].mappings.clear();
    }

    /// Lets a node's NAT forget everything, the relay connection, too, and come back with another address. Nobody is told.
    pub(super) fn reboot_nat(&mut self, node: usize, number: u8) {
        self.renumber(node, number);
        self.nodes[node].is_relay_broken = true;
    }

    fn send_relayed(&mut self, sender: usize, receiver: usize, payload: Payload) {
        if self.is_relay_cut || self.nodes[receiver].is_relay_broken {
            return;
        }
        let node = &mut self.nodes[sender];
        if node.is_relay_broken {
            match node.relay_up_at {
                // What meets the reset is lost with the connection.
                None => node.relay_up_at = Some(self.now + RECONNECTING),
                Some(_) => node.waiting.push((receiver, payload)),
            }
            return;
        }
        let packet = Packet { from: None, sender, receiver, socket: 0, payload };
        self.fly(self.relay_latency, packet);
    }

    fn send_udp(&mut self, sender: usize, socket: SocketId, to: SocketAddr, payload: Payload) {
        let now = self.now;
        assert!(socket == 0 || self.nodes[sender].sockets.contains(&socket), "only open sockets send");
        let random = self.rng.random_range(1024..=u16::MAX);
        let from = self.nodes[sender].pass_out(socket, to, random, now);
        let find = |(at, node): (usize, &SimNode)| Some((at, node.lets_in(from, to, now)?));
        let is_relay = to == Self::peer_relay_address();
        let found = if is_relay { Some((PEER_RELAY, 0)) } else { self.nodes.iter().enumerate().find_map(find) };
        let Some((receiver, socket)) = found else { return };
        if (is_relay && self.is_peer_relay_cut)
            || (!is_relay && self.is_cut)
            || self.rng.random_range(0..1000) < self.loss
        {
            return;
        }
        self.fly(self.latency, Packet { from: Some(from), sender, receiver, socket, payload });
    }

    fn fly(&mut self, latency: Duration, packet: Packet) {
        self.count += 1;
        self.flying.insert((self.now + latency, self.count), packet);
    }
}

/// Stands for the peer relay's port as a receiver.
const PEER_RELAY: usize = usize::MAX;

impl SimNode {
    fn new(nat: Nat, number: u8, seed: u8) -> Self {
        let key = NodeSecret::from_bytes([number; 32]).public();
        let paths = Paths::new(DiscoSecret::from_bytes([number + 100; 32]), key, [number ^ seed; 32]);
        Self {
            paths,
            key,
            nat,
            number,
            mappings: BTreeMap::new(),
            sockets: Vec::new(),
            measure_at: None,
            is_relay_broken: false,
            relay_up_at: None,
            waiting: Vec::new(),
            told_sent: None,
            told_received: None,
            slots: BTreeMap::new(),
            events: Vec::new(),
            received: Vec::new(),
            last_received: None,
            longest_gap: Duration::ZERO,
            sent_udp: 0,
            sent_relay: 0,
        }
    }

    /// Address of its NAT, or its own.
    fn public(&self, port: u16) -> SocketAddr {
        SocketAddr::from(([198, 51, 100, self.number], port))
    }

    /// Returns the number in its addresses.
    pub(super) fn number(&self) -> u8 {
        self.number
    }

    /// What it would tell the server: what STUN says, and the interface's address.
    pub(super) fn endpoints(&self) -> Vec<SocketAddr> {
        match self.nat {
            Nat::None => vec![self.public(41641)],
            Nat::Easy => vec![self.public(41641), SocketAddr::from(([192, 168, self.number, 2], 41641))],
            Nat::Hard | Nat::Random => vec![self.public(2), SocketAddr::from(([192, 168, self.number, 2], 41641))],
        }
    }

    /// Sends through the NAT; returns the address that the world sees.
    fn pass_out(&mut self, socket: SocketId, to: SocketAddr, random: u16, now: Instant) -> SocketAddr {
        let next = 1000 + u16::try_from(self.mappings.len()).unwrap();
        let fresh = if self.nat == Nat::Random { random } else { next };
        let (port, used) = self.mappings.entry((socket, to)).or_insert((fresh, now));
        if now - *used > NAT_TIMEOUT {
            *port = fresh;
        }
        *used = now;
        let port = if matches!(self.nat, Nat::Hard | Nat::Random) { *port } else { 41641 };
        self.public(port)
    }

    /// Returns the socket at which a packet arrives, if it does.
    fn lets_in(&self, from: SocketAddr, to: SocketAddr, now: Instant) -> Option<SocketId> {
        let open = self.mappings.iter().filter(|((_, to), (_, used))| *to == from && now - *used <= NAT_TIMEOUT);
        let mut open = open.map(|((socket, _), (port, _))| (*socket, *port));
        match self.nat {
            Nat::None => (to == self.public(41641)).then_some(0),
            Nat::Easy => open.next().filter(|_| to == self.public(41641)).map(|(socket, _)| socket),
            Nat::Hard | Nat::Random => open
                .find(|(socket, port)| to == self.public(*port) && (*socket == 0 || self.sockets.contains(socket)))
                .map(|(socket, _)| socket),
        }
    }
}
