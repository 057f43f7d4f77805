//! When the network is measured, and what follows from it: own endpoints and the facts for the server.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use warren_os::{IfIndex, Interface, endpoint_addresses};
use warren_path::{Families, Kind, MapTarget, Netcheck, OwnNat, RelayAddress, Report};
use warren_wire::control::{EndpointType, NetInfo, RegionId};

use super::relay_view::RelayFound;
use super::relays::Relays;
use super::wall;
use crate::engine::gateway::{Gateway, PortMapping};
use crate::engine::names::{Names, look_up};
use crate::engine::relay_link::round_trip;
use crate::engine::shared::Sockets;
use crate::engine::{self, Endpoint, portal};

/// Time between measurements while packets flow, in milliseconds; random, so that nodes do not fall into step.
///
/// Source: Tailscale `wgengine/magicsock/magicsock.go`, `maybeRestartPeriodicSTUN`.
pub(super) const PERIOD_MILLIS: std::ops::Range<u64> = 20_000..26_000;
/// Time between measurements while there is no home relay.
const HOMELESS_PERIOD: Duration = Duration::from_secs(3);
/// Time for which an address that STUN servers saw is told to peers after it was last seen.
///
/// Source: Tailscale `wgengine/magicsock/endpoint_tracker.go`, `endpointTrackerLifetime`.
const REMEMBERED: Duration = Duration::from_secs(310);
/// Most addresses that are remembered.
const MAX_REMEMBERED: usize = 12;
/// Most endpoints that are told to the server.
const MAX_ENDPOINTS: usize = 64;
/// What people are told whom a network keeps from the Internet until they log in.
const CAPTIVE: &str = "this network answers with a page of its own instead of the Internet (a captive portal): open any \
                       http:// address in a browser and log in; until then peers and relays cannot be reached";
/// Time to measure a region over its TCP connection.
const RELAY_DEADLINE: Duration = Duration::from_secs(2);

/// What a task found that was started for a measurement.
#[derive(Debug)]
pub(super) enum Found {
    /// The address of a STUN server, and what to send there.
    Server { host: Arc<str>, v6: bool, address: SocketAddr, bytes: Vec<u8> },
    /// The time there and back over a relay's connection.
    RelayLatency(RegionId, Duration),
    /// Whether a captive portal answered for a relay.
    Portal(bool),
    /// What the gateway lets through.
    Mapping(PortMapping),
    /// Something for the measurement of this node's peer relay.
    ForRelay(RelayFound),
}

/// Measures the network.
#[derive(Debug)]
pub(super) struct Measure {
    pub(super) netcheck: Netcheck,
    rng: StdRng,
    names: Names,
    found: mpsc::Sender<Found>,
    gateway: Gateway,
    mapping: PortMapping,
    /// Where the gateway is, and our address on the way there.
    way_out: Option<(Ipv4Addr, Ipv4Addr)>,
    /// The last that there was.
    last_way_out: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Whether the gateway may be asked by UPnP.
    upnp: bool,
    /// Addresses at which peers find this node, as its user says.
    fixed: Arc<[SocketAddr]>,
    /// Own addresses on other interfaces, as peers may use them.
    addresses: Vec<IpAddr>,
    families: Families,
    /// The machine's interfaces are known; measuring before would find nothing.
    is_ready: bool,
    /// When to measure again.
    due: Option<(Instant, Kind)>,
    started: Option<Instant>,
    /// Addresses seen by STUN servers, newest last.
    seen: VecDeque<(SocketAddr, Instant)>,
    waiting: Vec<oneshot::Sender<engine::Netcheck>>,
    /// What the last report that could tell said: whether peers see different ports of ours.
    varies: Option<bool>,
}

impl Measure {
    /// Makes one that knows nothing yet but the addresses that the user says; what its tasks find goes to `found`.
    pub(super) fn new(seeds: [[u8; 32]; 3], found: mpsc::Sender<Found>, fixed: Arc<[SocketAddr]>) -> Self {
        let [own, netcheck, gateway] = seeds;
        Self {
            gateway: Gateway::start(gateway, found.clone(), Found::Mapping),
            mapping: PortMapping::default(),
            way_out: None,
            last_way_out: None,
            upnp: true,
            netcheck: Netcheck::new(netcheck),
            rng: StdRng::from_seed(own),
            names: Names::default(),
            found,
            fixed,
            addresses: Vec::new(),
            families: Families::default(),
            is_ready: false,
            due: None,
            started: None,
            seen: VecDeque::new(),
            waiting: Vec::new(),
            varies: None,
        }
    }

    /// Takes over the machine's interfaces and tells how its addresses changed.
    pub(super) fn set_interfaces(&mut self, interfaces: &[Interface], own_tun: IfIndex) -> AddressChange {
        let addresses = endpoint_addresses(interfaces, Some(own_tun));
        self.families = families(interfaces, own_tun);
        self.is_ready = true;
        let change = if self.addresses.iter().any(|old| !addresses.contains(old)) {
            AddressChange::Lost
        } else if addresses.len() > self.addresses.len() {
            AddressChange::Gained
        } else {
            AddressChange::None
        };
        self.addresses = addresses;
        change
    }

    /// Takes over the gateway of the default route; tells how the way out has changed.
    pub(super) fn set_gateway(&mut self, gateway: Option<Ipv4Addr>, interfaces: &[Interface]) -> WayOut {
        let before = self.way_out;
        let nets = || interfaces.iter().filter(|interface| interface.up).flat_map(|interface| &interface.addresses);
        self.way_out = gateway.and_then(|gateway| {
            let own = nets().find(|net| net.contains(&IpAddr::V4(gateway)))?;
            if let IpAddr::V4(own) = own.addr() { Some((gateway, own)) } else { None }
        });
        let Some((gateway, own)) = self.way_out.filter(|_| self.way_out != before) else { return WayOut::Same };
        let last = self.last_way_out.replace((gateway, own));
        if last.is_some_and(|last| last.0 == gateway && last.1 != own) { WayOut::OtherAddress } else { WayOut::Other }
    }

    /// Allows or forbids UPnP from the next [`Self::map_port`] on.
    pub(super) fn allow_upnp(&mut self, allow: bool) {
        self.upnp = allow;
    }

    /// Asks the gateway to let the UDP port of these sockets be reached.
    pub(super) fn map_port(&self, sockets: &Sockets) {
        let port = sockets.port_of(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let target = self.way_out.filter(|_| port != 0);
        self.gateway.set_target(target.map(|(gateway, own)| MapTarget { gateway, own, port, upnp: self.upnp }));
    }

    /// Adds to the facts for the server what is known of the gateway.
    pub(super) fn add_mapping(&self, info: &mut NetInfo) {
        let PortMapping { outside, services } = self.mapping;
        info.have_port_map = outside.is_some();
        info.pcp = Some(services.pcp);
        info.pmp = Some(services.nat_pmp);
        info.upnp = Some(services.upnp);
    }

    /// Returns what a report and the gateway say of this node's NAT.
    pub(super) fn nat(&self, report: &Report) -> OwnNat {
        OwnNat {
            udp: Some(report.udp),
            hard: report.mapping_varies.or_else(|| report.udp.then_some(self.varies).flatten()),
            public: report.global_v4,
            counting: report.counting,
            mapped: self.mapping.outside.is_some(),
        }
    }

    /// Measures as soon as nothing else runs.
    pub(super) fn want(&mut self, kind: Kind, now: Instant) {
        let kind = match self.due {
            Some((_, Kind::Full)) => Kind::Full,
            _ => kind,
        };
        self.due = Some((now, kind));
    }

    /// Measures everything at once: what a measurement under way finds is of a network that is no more.
    pub(super) fn restart(&mut self, now: Instant) {
        self.netcheck.cancel();
        self.want(Kind::Full, now);
    }

    /// Measures if the last measurement is older than the longest period: packets flow again after a rest.
    pub(super) fn wake(&mut self, now: Instant) {
        if self.due.is_none() && !self.netcheck.is_running() {
            self.want(Kind::Auto, now);
        }
    }

    /// Lets a caller wait for the next report.
    pub(super) fn wait(&mut self, caller: oneshot::Sender<engine::Netcheck>, now: Instant) {
        // More than a few callers wait for nothing: those of programs that have gone away.
        self.waiting.retain(|caller| !caller.is_closed());
        self.waiting.push(caller);
        self.want(Kind::Full, now);
    }

    /// Acts on every deadline at or before `now`. `resting` is whether nobody needs fresh measurements.
    pub(super) fn handle_timeout(&mut self, resting: bool, now: Instant) {
        self.netcheck.handle_timeout(now);
        let Some((at, kind)) = self.due else { return };
        if at > now || !self.can_start() {
            return;
        }
        self.due = None;
        if kind == Kind::Incremental && resting {
            return;
        }
        self.started = Some(now);
        let kind = if kind == Kind::Incremental { Kind::Auto } else { kind };
        self.netcheck.start(kind, self.families, now);
        self.gateway.check();
    }

    fn can_start(&self) -> bool {
        self.is_ready && !self.netcheck.is_running()
    }

    /// Returns when to call [`Self::handle_timeout`] next.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let due = self.due.map(|(at, _)| at).filter(|_| self.can_start());
        due.into_iter().chain(self.netcheck.poll_timeout()).min()
    }

    /// Sends what the measurement wants to be sent.
    pub(super) fn drain(&mut self, sockets: &Sockets, relays: &mut Relays, secret: &RelaySecret, now: Instant) {
        while let Some(probe) = self.netcheck.poll_transmit() {
            match probe.server {
                RelayAddress::Literal(address) => {
                    let _ = sockets.send(address, &probe.bytes);
                }
                RelayAddress::Name { host, port, v6 } => match self.names.get(&host, v6, now) {
                    Some(ip) => {
                        let _ = sockets.send(SocketAddr::new(ip, port), &probe.bytes);
                    }
                    None => self.look_up(host, port, v6, probe.bytes),
                },
            }
        }
        while let Some(probe) = self.netcheck.poll_portal_probe() {
            let found = self.found.clone();
            let unix_seconds = wall().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
            tokio::spawn(async move {
                let _ = found.send(Found::Portal(portal::ask(probe, unix_seconds).await)).await;
            });
        }
        while let Some(region) = self.netcheck.poll_relay_request() {
            if !relays.ping(region, self.rng.random(), now) && !relays.is_up(region) {
                self.measure_relay(region, relays, secret);
            }
        }
    }

    fn look_up(&self, host: Arc<str>, port: u16, v6: bool, bytes: Vec<u8>) {
        let found = self.found.clone();
        tokio::spawn(async move {
            if let Some(address) = look_up(&host, port, v6).await {
                let _ = found.send(Found::Server { host, v6, address, bytes }).await;
            }
        });
    }

    fn measure_relay(&self, id: RegionId, relays: &Relays, secret: &RelaySecret) {
        let Some(region) = relays.region(id).cloned() else { return };
        let (found, secret) = (self.found.clone(), Arc::clone(secret));
        tokio::spawn(async move {
            if let Ok(Some(latency)) = timeout(RELAY_DEADLINE, round_trip(&region, &secret)).await {
                let _ = found.send(Found::RelayLatency(id, latency)).await;
            }
        });
    }

    /// Takes over what a task found.
    pub(super) fn handle_found(&mut self, found: Found, sockets: &Sockets, now: Instant) {
        match found {
            Found::Server { host, v6, address, bytes } => {
                self.names.insert(host, v6, address.ip(), now);
                let _ = sockets.send(address, &bytes);
            }
            Found::Mapping(mapping) => {
                self.mapping = mapping;
                // Peers and the server learn of it with the next report.
                self.want(Kind::Auto, now);
            }
            // Taken care of before.
            Found::ForRelay(_) => {}
            Found::Portal(is_portal) => self.netcheck.handle_portal_answer(is_portal, now),
            Found::RelayLatency(region, latency) => self.netcheck.handle_relay_latency(region, latency, now),
        }
    }

    /// Takes the next report, answers those who wait for it and plans the next measurement.
    pub(super) fn take_report(&mut self, relays: &Relays, now: Instant) -> Option<Arc<Report>> {
        let report = self.netcheck.poll_report()?;
        let home = report.home.or(relays.home());
        for caller in self.waiting.drain(..) {
            drop(caller.send(summary(&report, home)));
        }
        self.note_seen(&report.advertised, now);
        self.varies = report.mapping_varies.or(self.varies);
        if self.due.is_none() {
            self.due = if home.is_none() && relays.has_regions() {
                Some((now + HOMELESS_PERIOD, Kind::Full))
            } else {
                Some((now + Duration::from_millis(self.rng.random_range(PERIOD_MILLIS)), Kind::Incremental))
            };
        }
        Some(report)
    }

    /// Says what keeps this node from the Internet, for people.
    pub(super) fn trouble(&self) -> Option<String> {
        let is_captive = self.netcheck.last_report().is_some_and(|report| report.is_captive());
        is_captive.then(|| CAPTIVE.to_owned())
    }

    /// Returns when the running or last measurement began.
    pub(super) fn started(&self) -> Option<Instant> {
        self.started
    }

    fn note_seen(&mut self, advertised: &[SocketAddr], now: Instant) {
        self.seen
            .retain(|(address, at)| !advertised.contains(address) && now.saturating_duration_since(*at) < REMEMBERED);
        // Reports have the better first.
        self.seen.extend(advertised.iter().take(MAX_REMEMBERED).rev().map(|address| (*address, now)));
        while self.seen.len() > MAX_REMEMBERED {
            self.seen.pop_front();
        }
    }

    /// Returns the families in which others can be reached.
    pub(super) fn families(&self) -> Families {
        self.families
    }

    /// Returns the addresses at which clients may find a peer relay on this machine's UDP ports, IPv4's and IPv6's: those of
    /// this machine, those with which servers see the very ports, and those with which they see this machine, since the ports
    /// may be forwarded.
    pub(super) fn relay_addresses(&self, [v4, v6]: [u16; 2], outside: &[SocketAddr]) -> Vec<SocketAddr> {
        let seen = self.seen.iter().rev().map(|(address, _)| address.ip());
        let mut all: Vec<SocketAddr> = Vec::new();
        let with_port = |ip: IpAddr| SocketAddr::new(ip, if ip.is_ipv4() { v4 } else { v6 });
        let own = self.addresses.iter().copied().map(with_port);
        for address in own.chain(outside.iter().copied()).chain(seen.map(with_port)) {
            if address.port() != 0 && !all.contains(&address) {
                all.push(address);
            }
        }
        all
    }

    /// Returns the addresses at which peers may find this node, best first. Source: paths.md 5.1.
    pub(super) fn endpoints(&self, sockets: &Sockets) -> Vec<Endpoint> {
        let mapped = self
            .mapping
            .outside
            .map(|outside| Endpoint { address: SocketAddr::V4(outside), kind: EndpointType::PortMapped });
        let seen = self.seen.iter().rev().map(|(address, _)| Endpoint { address: *address, kind: EndpointType::Stun });
        let local = self
            .addresses
            .iter()
            .map(|ip| Endpoint { address: SocketAddr::new(*ip, sockets.port_of(*ip)), kind: EndpointType::Local });
        let mut all: Vec<Endpoint> = Vec::new();
        // Who forwards the port on a hard NAT can be reached at it, which no server sees. Source: paths.md 5.1, row 3.
        let v4 = self
            .seen
            .iter()
            .rev()
            .map(|(address, _)| address.ip())
            .find(|ip| ip.is_ipv4() && self.varies == Some(true));
        let guess = v4.map(|ip| Endpoint {
            address: SocketAddr::new(ip, sockets.port_of(ip)),
            kind: EndpointType::StunWithLocalPort,
        });
        let fixed = self.fixed.iter().map(|address| Endpoint { address: *address, kind: EndpointType::Explicit });
        for endpoint in mapped.into_iter().chain(seen).chain(guess).chain(fixed).chain(local) {
            if endpoint.address.port() != 0 && !all.iter().any(|one| one.address == endpoint.address) {
                all.push(endpoint);
            }
        }
        all.truncate(MAX_ENDPOINTS);
        all
    }
}

/// Node key with which relays are measured.
pub(super) type RelaySecret = Arc<warren_wire::key::NodeSecret>;

/// Says how the way out over IPv4 changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WayOut {
    /// Not at all, or there is none.
    Same,
    /// There is one, another than before.
    Other,
    /// The last gateway that there was, from another own address.
    OtherAddress,
}

/// Says whether the sockets must be opened anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rebind {
    No,
    SamePort,
    OtherPort,
}

/// Says how the addresses of this machine changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddressChange {
    /// Not at all.
    None,
    /// One more.
    Gained,
    /// One is gone, and what was bound to it is dead.
    Lost,
}

/// Returns the families in which another machine, or on a machine without network this one, can be reached.
fn families(interfaces: &[Interface], own_tun: IfIndex) -> Families {
    let usable = |loopback: bool| {
        interfaces
            .iter()
            .filter(move |interface| interface.up && interface.index != own_tun && interface.loopback == loopback)
            .flat_map(|interface| &interface.addresses)
            .map(|net| net.addr())
            .filter(|ip| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()))
    };
    let of = |mut addresses: Box<dyn Iterator<Item = IpAddr> + '_>| {
        addresses.by_ref().fold(Families::default(), |found, ip| Families {
            v4: found.v4 || ip.is_ipv4(),
            v6: found.v6 || ip.is_ipv6(),
        })
    };
    let outside = of(Box::new(usable(false)));
    if outside == Families::default() { of(Box::new(usable(true))) } else { outside }
}

/// Shortens a report for people.
pub(super) fn summary(report: &Report, home: Option<RegionId>) -> engine::Netcheck {
    let best = |region: &warren_path::Latencies| [region.v4, region.v6, region.relay].into_iter().flatten().min();
    engine::Netcheck {
        udp: report.udp,
        global_v4: report.global_v4,
        global_v6: report.global_v6,
        mapping_varies: report.mapping_varies,
        captive_portal: report.captive_portal,
        home,
        latencies: report.latencies.iter().filter_map(|(id, region)| Some((*id, best(region)?))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, addresses: &[&str]) -> Interface {
        Interface {
            index: IfIndex(index),
            name: format!("if{index}"),
            up: true,
            loopback: index == 1,
            mtu_bytes: 1500,
            addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
        }
    }

    fn measure() -> Measure {
        Measure::new([[1; 32], [2; 32], [3; 32]], mpsc::channel(1).0, Arc::default())
    }

    #[test]
    fn families_ignore_link_local_the_tunnel_and_loopback_unless_alone() {
        let lo = interface(1, &["127.0.0.1/8", "::1/128"]);
        let tun = interface(9, &["100.64.0.1/32", "fd7a::1/128"]);
        let eth = interface(2, &["192.0.2.1/24", "fe80::1/64"]);
        let only_v4 = Families { v4: true, v6: false };
        assert_eq!(families(&[lo.clone(), tun.clone(), eth], IfIndex(9)), only_v4);
        assert_eq!(families(&[lo, tun.clone()], IfIndex(9)), Families { v4: true, v6: true });
        assert_eq!(families(&[tun], IfIndex(9)), Families::default());
    }

    #[tokio::test]
    async fn a_lost_address_is_told_apart_from_a_new_one() {
        let mut measure = measure();
        let mut change = |addresses| measure.set_interfaces(&[interface(2, addresses)], IfIndex(9));
        assert_eq!(change(&["192.0.2.1/24"]), AddressChange::Gained);
        assert_eq!(change(&["192.0.2.1/24"]), AddressChange::None);
        assert_eq!(change(&["192.0.2.1/24", "192.0.2.2/24"]), AddressChange::Gained);
        assert_eq!(change(&["192.0.2.2/24"]), AddressChange::Lost);
        assert_eq!(change(&["192.0.2.3/24"]), AddressChange::Lost);
    }

    #[tokio::test]
    async fn another_address_behind_the_same_gateway_is_told_apart() {
        let mut measure = measure();
        let gateway: Ipv4Addr = "192.0.2.254".parse().unwrap();
        let mut change = |gateway, addresses| measure.set_gateway(gateway, &[interface(2, addresses)]);
        assert_eq!(change(Some(gateway), &["192.0.2.1/24"]), WayOut::Other);
        assert_eq!(change(Some(gateway), &["192.0.2.1/24"]), WayOut::Same);
        assert_eq!(change(None, &["192.0.2.1/24"]), WayOut::Same);
        assert_eq!(change(Some(gateway), &[]), WayOut::Same, "no way there");
        assert_eq!(change(Some(gateway), &["192.0.2.2/24"]), WayOut::OtherAddress);
        assert_eq!(change("192.0.2.253".parse().ok(), &["192.0.2.2/24"]), WayOut::Other);
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start of the virtual clock")]
    async fn what_the_user_says_comes_behind_what_was_seen() {
        let [seen, fixed] = ["198.51.100.1:7", "198.51.100.1:41999"].map(|text| text.parse().unwrap());
        let seeds = [[1; 32], [2; 32], [3; 32]];
        let mut measure = Measure::new(seeds, mpsc::channel(1).0, [fixed, seen].into());
        measure.set_interfaces(&[interface(2, &["192.0.2.1/24"])], IfIndex(9));
        measure.note_seen(&[seen], Instant::now());
        let sockets = Sockets::bind(0, warren_os::Offload::Probe).unwrap();
        let local = SocketAddr::new("192.0.2.1".parse().unwrap(), sockets.port_of("192.0.2.1".parse().unwrap()));
        let of = |address, kind| Endpoint { address, kind };
        assert_eq!(
            measure.endpoints(&sockets),
            [of(seen, EndpointType::Stun), of(fixed, EndpointType::Explicit), of(local, EndpointType::Local)]
        );
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start of the virtual clock")]
    async fn seen_addresses_outlive_a_report_without_them_for_a_while() {
        let start = Instant::now();
        let mut measure = measure();
        let seen: SocketAddr = "198.51.100.1:7".parse().unwrap();
        measure.note_seen(&[seen], start);
        measure.note_seen(&[], start + Duration::from_secs(300));
        let endpoints = measure.endpoints(&Sockets::default());
        assert_eq!(endpoints, [Endpoint { address: seen, kind: EndpointType::Stun }]);
        measure.note_seen(&[], start + REMEMBERED);
        assert_eq!(measure.endpoints(&Sockets::default()), []);
        for port in 1..100 {
            measure.note_seen(&[SocketAddr::new(seen.ip(), port)], start);
        }
        let ports: Vec<u16> = measure.endpoints(&Sockets::default()).iter().map(|one| one.address.port()).collect();
        assert_eq!(ports, (88..100).rev().collect::<Vec<u16>>());
    }
}
