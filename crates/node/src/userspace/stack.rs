//! The TCP/IP stack of a node without TUN, without I/O: packets in, packets out, connections in between.
//!
//! Packets come in by [`Stack::handle_packet`]; it tells of what only the shell can do. After each input, and after each use
//! of a connection, call [`Stack::flush`], take what [`Stack::poll_outgoing`] gives, and come back at [`Stack::poll_timeout`].
//!
//! TCP is `smoltcp`'s. It keeps a list of sockets, so which connections there may be is decided here: a peer's SYN waits
//! until somebody has taken it or not, and gets no socket before.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroUsize};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::socket::tcp::{self, CongestionControl, State};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpListenEndpoint, TcpPacket};
use warren_filter::{Body, Icmp, Packet};
use warren_wire::key::NodeKey;

/// Connections at a time, those of which nobody has decided yet included.
pub(crate) const MAX_CONNECTIONS: usize = 512;
/// The same with one peer, so that none takes all.
pub(crate) const MAX_OF_PEER: usize = 256;
/// Connections of which nobody has decided yet.
const MAX_ASKING: usize = 64;
/// The same of one peer.
const MAX_ASKING_OF_PEER: usize = 32;
/// Packets that wait to leave before no connection may add one; each has one more at most then.
const MAX_OUTGOING: usize = 64;
/// Bytes of a super-packet.
const SUPER_BYTES: NonZeroUsize = NonZeroUsize::new(60_000).unwrap();
/// Ports of connections that begin here. Source: Linux, `net.ipv4.ip_local_port_range`.
pub(super) const PORTS: std::ops::Range<u16> = 32_768..61_000;
/// How long a connection may wait for an answer before it is there.
const OPENING: Duration = Duration::from_secs(30);
/// How long data may stay unacknowledged. Source: about what Linux does (`tcp_retries2`, 15 minutes).
const SILENCE: Duration = Duration::from_secs(15 * 60);
/// How long a connection rests before the peer is asked whether it is still there, so that none stays for ever.
const KEEP_ALIVE: Duration = Duration::from_secs(5 * 60);
/// How long a connection that nobody here holds any more may take to end. Source: Linux, `tcp_fin_timeout`.
const LINGER: Duration = Duration::from_secs(60);
/// The most parts that an acknowledgement is taken in.
const MAX_PARTS: u32 = 16;

/// Names a flow of TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Flow {
    /// Address and port of this node.
    pub(crate) own: SocketAddr,
    /// Those of the other end.
    pub(crate) peer: SocketAddr,
}

/// Says whose share something counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A peer, with whichever of its addresses, or one of the networks behind it.
    Peer(NodeKey),
    /// An address of which nobody knows whose it is.
    Address(IpAddr),
}

/// Tells which peer has an address, or leads to it.
pub(crate) type Holders = Arc<dyn Fn(IpAddr) -> Option<NodeKey> + Send + Sync>;

/// Is what only the shell can act on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A peer wants a connection: say [`Stack::accept`] or [`Stack::refuse`].
    Asked(Flow),
    /// A peer sent a datagram.
    Datagram(Flow, Vec<u8>),
}

/// Is a packet on its way out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outgoing {
    /// The packet; with checksums unless it is to be cut.
    pub(crate) bytes: Vec<u8>,
    /// Bytes of data in each of the TCP packets that it stands for.
    pub(crate) segment: Option<NonZeroU16>,
}

/// Says why no connection can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ConnectError {
    /// The node has no address of that family.
    #[error("this node has no address of that family in its tailnet; is it up?")]
    NoAddress,
    /// There are [`MAX_CONNECTIONS`], or no port is free.
    #[error("too many connections at a time; the most is {MAX_CONNECTIONS}")]
    Full,
    /// Nothing can be there.
    #[error("nothing can be reached at that address and port")]
    Unaddressable,
}

/// Holds all connections.
pub(crate) struct Stack {
    epoch: Instant,
    interface: Interface,
    device: Device,
    sockets: SocketSet<'static>,
    addresses: Vec<IpAddr>,
    connections: BTreeMap<Flow, Connection>,
    /// SYNs of peers that nobody has decided on.
    asking: BTreeMap<Flow, (Holder, Vec<u8>)>,
    /// If it is known whose addresses are.
    holders: Option<Holders>,
    /// Connections that nobody here holds, and when they are cut off.
    orphans: BTreeMap<Flow, Instant>,
    rng: StdRng,
}

struct Connection {
    handle: SocketHandle,
    holder: Holder,
    /// What the peer has acknowledged, as a sequence number.
    acknowledged: Option<u32>,
}

impl Stack {
    /// Makes a stack without addresses for packets of `mtu` bytes. `seed` must be random and secret.
    pub(crate) fn new(mtu: u16, seed: [u8; 32], now: Instant) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let mut device = Device { mtu: mtu.into(), arrived: None, outgoing: VecDeque::new() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = rng.random();
        let mut interface = Interface::new(config, &mut device, StackInstant::ZERO);
        // All ways lead out; the packet worker finds them. These cannot fail: there is room for two routes.
        let routes = interface.routes_mut();
        let _ = routes.add_default_ipv4_route([100, 100, 100, 100].into());
        let _ = routes.add_default_ipv6_route([0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0x53].into());
        Self {
            epoch: now,
            interface,
            device,
            sockets: SocketSet::new(Vec::new()),
            addresses: Vec::new(),
            connections: BTreeMap::new(),
            asking: BTreeMap::new(),
            holders: None,
            orphans: BTreeMap::new(),
            rng,
        }
    }

    /// Counts shares by peer from now on; else each address has one of its own.
    pub(crate) fn tell_apart(&mut self, holders: Holders) {
        self.holders = Some(holders);
    }

    /// Returns for whose share an address counts.
    pub(crate) fn holder(&self, address: IpAddr) -> Holder {
        let peer = self.holders.as_ref().and_then(|holders| holders(address));
        peer.map_or(Holder::Address(address), Holder::Peer)
    }

    /// Takes these addresses, at most one of each family, and no others; connections of others end.
    pub(crate) fn set_addresses(&mut self, addresses: &[IpAddr]) {
        let of =
            |v6: bool| addresses.iter().copied().find(|address| address.is_ipv6() == v6 && !address.is_multicast());
        self.addresses = [of(false), of(true)].into_iter().flatten().filter(|one| !one.is_unspecified()).collect();
        let own = &self.addresses;
        self.interface.update_ip_addrs(|list| {
            list.clear();
            for address in own {
                // There is room for two.
                let _ = list.push(IpCidr::new((*address).into(), if address.is_ipv4() { 32 } else { 128 }));
            }
        });
        self.asking.retain(|flow, _| own.contains(&flow.own.ip()));
    }

    /// Returns the own addresses.
    pub(crate) fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Takes a packet that the filter let through. One that was joined of several has no checksum.
    #[expect(clippy::wildcard_enum_match_arm, reason = "nothing else is for this node")]
    pub(crate) fn handle_packet(&mut self, bytes: Vec<u8>, is_joined: bool, now: Instant) -> Option<Event> {
        let packet = Packet::parse(&bytes).ok()?;
        let (own, peer) = (packet.destination(), packet.source());
        if !self.addresses.contains(&own) || packet.fragment().is_some() {
            return None;
        }
        let transport_at = packet.bytes().len() - packet.transport().len();
        match packet.body() {
            Body::Tcp { ports, flags } => {
                if !is_joined && !is_intact(&packet) {
                    return None;
                }
                let flow = Flow { own: (own, ports.destination).into(), peer: (peer, ports.source).into() };
                if flags.is_opening() && !self.connections.contains_key(&flow) {
                    return self.ask(flow, bytes);
                }
                let packets = self.in_parts(&flow, &packet, transport_at);
                for packet in packets {
                    self.feed(packet, now);
                }
                self.feed(bytes, now);
                self.look_after(&flow);
                None
            }
            Body::Udp { ports } => {
                let flow = Flow { own: (own, ports.destination).into(), peer: (peer, ports.source).into() };
                let payload = datagram_payload(&packet)?;
                Some(Event::Datagram(flow, payload.to_vec()))
            }
            Body::Icmp(Icmp::EchoRequest { .. }) => {
                self.feed(bytes, now);
                None
            }
            _ => None,
        }
    }

    /// Notes a SYN until somebody has decided. One too many is lost as on the way, and comes again.
    fn ask(&mut self, flow: Flow, syn: Vec<u8>) -> Option<Event> {
        let holder = self.holder(flow.peer.ip());
        let asking = self.asking.values().filter(|(other, _)| *other == holder).count();
        let open = self.connections.values().filter(|other| other.holder == holder).count();
        let is_room = self.asking.len() < MAX_ASKING
            && asking < MAX_ASKING_OF_PEER
            && self.count() < MAX_CONNECTIONS
            && asking + open < MAX_OF_PEER;
        if self.asking.contains_key(&flow) || !is_room {
            return None;
        }
        self.asking.insert(flow, (holder, syn));
        Some(Event::Asked(flow))
    }

    /// Returns how many connections there are.
    pub(crate) fn count(&self) -> usize {
        self.connections.len() + self.asking.len()
    }

    /// Opens a connection that was asked for; false if that is no longer wanted.
    pub(crate) fn accept(&mut self, flow: Flow, now: Instant) -> bool {
        let Some((holder, syn)) = self.asking.remove(&flow) else { return false };
        if self.connections.contains_key(&flow) {
            return false;
        }
        let mut socket = self.socket_for_one();
        let own = IpListenEndpoint { addr: Some(flow.own.ip().into()), port: flow.own.port() };
        if socket.listen(own).is_err() {
            return false;
        }
        let handle = self.sockets.add(socket);
        self.connections.insert(flow, Connection { handle, holder, acknowledged: None });
        // Nothing comes in between: this socket listens for this one packet.
        self.feed(syn, now);
        self.look_after(&flow);
        if self.socket(&flow).is_some_and(|socket| socket.state() == State::SynReceived) {
            return true;
        }
        self.remove(&flow);
        false
    }

    /// Answers a connection that was asked for with RST.
    pub(crate) fn refuse(&mut self, flow: Flow, now: Instant) {
        if let Some((_, syn)) = self.asking.remove(&flow) {
            // No socket takes it.
            self.feed(syn, now);
        }
    }

    /// Begins a connection.
    ///
    /// # Errors
    /// Says why there is none.
    pub(crate) fn connect(&mut self, peer: SocketAddr) -> Result<Flow, ConnectError> {
        let own = self.addresses.iter().find(|own| own.is_ipv4() == peer.is_ipv4());
        let own = *own.ok_or(ConnectError::NoAddress)?;
        if peer.port() == 0 || peer.ip().is_unspecified() || peer.ip().is_multicast() {
            return Err(ConnectError::Unaddressable);
        }
        if self.count() >= MAX_CONNECTIONS {
            return Err(ConnectError::Full);
        }
        let flow = (0..64).map(|_| Flow { own: (own, self.rng.random_range(PORTS)).into(), peer });
        // What a peer asks for from the very port that is dialled here is its own connection.
        let is_free = |flow: &Flow| !self.connections.contains_key(flow) && !self.asking.contains_key(flow);
        let flow = flow.collect::<Vec<_>>().into_iter().find(is_free);
        let flow = flow.ok_or(ConnectError::Full)?;
        let mut socket = self.socket_for_one();
        socket.connect(self.interface.context(), flow.peer, flow.own).map_err(|_| ConnectError::Unaddressable)?;
        let handle = self.sockets.add(socket);
        let holder = self.holder(peer.ip());
        self.connections.insert(flow, Connection { handle, holder, acknowledged: None });
        Ok(flow)
    }

    /// Makes a socket with buffers that are the smaller the more there are: 160 MiB for all at most. What is not used of
    /// them is not taken from the system.
    fn socket_for_one(&self) -> tcp::Socket<'static> {
        let bytes = match self.connections.len() {
            0..32 => 1 << 20,
            32..128 => 256 << 10,
            _ => 64 << 10,
        };
        let buffer = || tcp::SocketBuffer::new(vec![0; bytes]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_congestion_control(CongestionControl::Cubic);
        // Programs that write little by little want it sent, as on the sockets of proxies everywhere.
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(OPENING.into()));
        socket
    }

    /// Returns the socket of a connection that somebody holds.
    pub(crate) fn socket(&mut self, flow: &Flow) -> Option<&mut tcp::Socket<'static>> {
        let handle = self.connections.get(flow)?.handle;
        Some(self.sockets.get_mut(handle))
    }

    /// Says that nobody holds the connection any more. It ends in order if all that came was read, else at once.
    pub(crate) fn release(&mut self, flow: &Flow, now: Instant) {
        let Some(socket) = self.socket(flow) else { return };
        if socket.recv_queue() > 0 {
            socket.abort();
        } else {
            socket.close();
        }
        self.orphans.insert(*flow, now + LINGER);
    }

    /// Makes the packets that are due.
    pub(crate) fn flush(&mut self, now: Instant) {
        let time = self.time(now);
        self.interface.poll_maintenance(time);
        // Each round takes one packet of each connection.
        while self.device.outgoing.len() < MAX_OUTGOING {
            if self.interface.poll_egress(time, &mut self.device, &mut self.sockets) == PollResult::None {
                break;
            }
        }
        self.bury(now);
    }

    /// Returns a packet to send; call [`Self::flush`] again when all are gone.
    pub(crate) fn poll_outgoing(&mut self) -> Option<Outgoing> {
        self.device.outgoing.pop_front()
    }

    /// Puts a packet back that could not be sent.
    pub(crate) fn put_back(&mut self, packet: Outgoing) {
        self.device.outgoing.push_front(packet);
    }

    /// Adds a packet that was made elsewhere; it is lost if too many wait.
    pub(crate) fn push(&mut self, packet: Vec<u8>) {
        if self.device.outgoing.len() < MAX_CONNECTIONS {
            self.device.outgoing.push_back(Outgoing { bytes: packet, segment: None });
        }
    }

    /// Returns when [`Self::flush`] is due. While packets wait to leave nothing else is.
    pub(crate) fn poll_timeout(&mut self, now: Instant) -> Option<Instant> {
        if !self.device.outgoing.is_empty() {
            return None;
        }
        let time = self.time(now);
        let due = self.interface.poll_at(time, &self.sockets).map(|at| {
            let micros = u64::try_from(at.total_micros()).unwrap_or(0);
            self.epoch + Duration::from_micros(micros)
        });
        due.into_iter().chain(self.orphans.values().copied()).min()
    }

    fn time(&self, now: Instant) -> StackInstant {
        let micros = now.saturating_duration_since(self.epoch).as_micros();
        StackInstant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    fn feed(&mut self, packet: Vec<u8>, now: Instant) {
        // What a packet causes is made at once; while peers bring more than goes out, the newest is lost.
        if self.device.outgoing.len() >= MAX_CONNECTIONS {
            return;
        }
        let time = self.time(now);
        self.device.arrived = Some(packet);
        let _ = self.interface.poll_ingress_single(time, &mut self.device, &mut self.sockets);
        self.device.arrived = None;
    }

    /// Does what a packet of a connection makes necessary.
    #[expect(clippy::wildcard_enum_match_arm, reason = "nothing is to be done in other states")]
    fn look_after(&mut self, flow: &Flow) {
        let Some(socket) = self.socket(flow) else { return };
        match socket.state() {
            // A peer that takes its SYN back makes a socket listen again, for anybody.
            State::Listen => socket.abort(),
            State::Established if socket.keep_alive().is_none() => {
                socket.set_timeout(Some(SILENCE.into()));
                socket.set_keep_alive(Some(KEEP_ALIVE.into()));
            }
            _ => {}
        }
    }

    /// Returns copies of an acknowledgement for parts of what it is for. The congestion control counts acknowledgements, not
    /// bytes, while peers send one for many packets that came together; it would open its window far too slowly.
    fn in_parts(&mut self, flow: &Flow, packet: &Packet<'_>, transport_at: usize) -> Vec<Vec<u8>> {
        let step = u32::try_from(self.device.mtu).unwrap_or(1280).saturating_sub(60).max(1);
        let Some(connection) = self.connections.get_mut(flow) else { return Vec::new() };
        let transport = packet.transport();
        // Without data, and with ACK alone among the flags that matter.
        let &[_, _, _, _, _, _, _, _, a, b, c, d, offset, flags, ..] = transport else { return Vec::new() };
        if transport.len() != usize::from(offset >> 4) * 4 || flags & 0x17 != 0x10 {
            return Vec::new();
        }
        let number = u32::from_be_bytes([a, b, c, d]);
        let Some(before) = connection.acknowledged.replace(number) else { return Vec::new() };
        let advance = number.wrapping_sub(before);
        if advance <= step || advance > 1 << 20 {
            return Vec::new();
        }
        let parts = (advance / step).min(MAX_PARTS);
        let part = |number: u32| {
            let mut copy = packet.bytes().to_vec();
            let place = copy.get_mut(transport_at + 8..)?.first_chunk_mut()?;
            *place = before.wrapping_add(advance / parts * number).to_be_bytes();
            Some(copy)
        };
        (1..parts).filter_map(part).collect()
    }

    /// Forgets connections that have ended and that nobody holds.
    #[expect(clippy::wildcard_enum_match_arm, reason = "every other state is one of a connection that has not ended")]
    fn bury(&mut self, now: Instant) {
        let mut gone = BTreeSet::new();
        for (flow, until) in &self.orphans {
            let Some(connection) = self.connections.get(flow) else {
                gone.insert(*flow);
                continue;
            };
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(connection.handle);
            match socket.state() {
                // An aborted one has to tell that first.
                State::Closed if socket.remote_endpoint().is_none() => drop(gone.insert(*flow)),
                // Its ports come again by chance alone, so that nothing old is taken for new.
                State::TimeWait | State::Listen => drop(gone.insert(*flow)),
                State::Closed => {}
                _ if *until <= now => socket.abort(),
                _ => {}
            }
        }
        for flow in gone {
            self.remove(&flow);
        }
        // What was aborted for its age tells that with the next flush.
        for until in self.orphans.values_mut().filter(|until| **until <= now) {
            *until = now + LINGER;
        }
    }

    fn remove(&mut self, flow: &Flow) {
        self.orphans.remove(flow);
        if let Some(connection) = self.connections.remove(flow) {
            drop(self.sockets.remove(connection.handle));
        }
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stack").field("connections", &self.connections.len()).finish_non_exhaustive()
    }
}

/// Tells whether the checksum of a TCP packet is right.
fn is_intact(packet: &Packet<'_>) -> bool {
    let (from, to): (IpAddress, IpAddress) = (packet.source().into(), packet.destination().into());
    TcpPacket::new_checked(packet.transport()).is_ok_and(|tcp| tcp.verify_checksum(&from, &to))
}

/// Returns what a sound datagram carries.
fn datagram_payload<'p>(packet: &Packet<'p>) -> Option<&'p [u8]> {
    let (from, to): (IpAddress, IpAddress) = (packet.source().into(), packet.destination().into());
    let udp = smoltcp::wire::UdpPacket::new_checked(packet.transport()).ok()?;
    udp.verify_checksum(&from, &to).then(|| udp.payload())
}

/// Is the end of the stack where packets come and go.
struct Device {
    mtu: usize,
    arrived: Option<Vec<u8>>,
    outgoing: VecDeque<Outgoing>,
}

struct Arrived(Vec<u8>);

impl smoltcp::phy::RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

struct Leaving<'d> {
    outgoing: &'d mut VecDeque<Outgoing>,
    segment: Option<NonZeroU16>,
}

impl smoltcp::phy::TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut bytes = vec![0; length];
        let result = write(&mut bytes);
        if self.segment.is_none() {
            finish_tcp(&mut bytes);
        }
        self.outgoing.push_back(Outgoing { bytes, segment: self.segment });
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size;
    }
}

/// Computes the checksum of a TCP packet, which the stack leaves out.
fn finish_tcp(bytes: &mut [u8]) {
    let Ok(packet) = Packet::parse(bytes) else { return };
    if !matches!(packet.body(), Body::Tcp { .. }) {
        return;
    }
    let (from, to): (IpAddress, IpAddress) = (packet.source().into(), packet.destination().into());
    let transport_at = packet.bytes().len() - packet.transport().len();
    if let Some(Ok(mut tcp)) = bytes.get_mut(transport_at..).map(TcpPacket::new_checked) {
        tcp.fill_checksum(&from, &to);
    }
}

impl smoltcp::phy::Device for Device {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Leaving<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(Arrived, Leaving<'_>)> {
        let arrived = Arrived(self.arrived.take()?);
        Some((arrived, Leaving { outgoing: &mut self.outgoing, segment: None }))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Leaving<'_>> {
        // How many there may be is looked at before each round.
        Some(Leaving { outgoing: &mut self.outgoing, segment: None })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // Of what comes in they are looked at before; what goes out gets them where it is cut.
        capabilities.checksum.tcp = Checksum::None;
        // Of IPv6 smoltcp 0.14 makes no super-packets: it drops what is larger than the MTU (`dispatch_ip`).
        capabilities.segmentation.tcpv4 = Some(SUPER_BYTES);
        capabilities
    }
}

#[cfg(test)]
mod tests;
