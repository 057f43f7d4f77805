//! Zones, the routers between them, hosts, and how datagrams find their way.
//!
//! Zone 0 is the Internet; every other zone has one router to the zone outside of it. IPv4 addresses are a zone's own,
//! so that two homes may use the same ones; IPv6 addresses are everybody's.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use rand::RngExt as _;
use rand::rngs::StdRng;

use crate::nat::{Firewall, Nat};

/// A zone's place in [`Network::zones`].
pub type ZoneId = usize;
/// A router's place in [`Network::routers`].
pub type RouterId = usize;
/// A host's place in [`Network::hosts`].
pub type HostId = usize;

/// The Internet.
pub const INTERNET: ZoneId = 0;
/// Time across a zone that is not the Internet.
const LAN: Duration = Duration::from_micros(400);
/// Least time across the Internet.
const NEAR: Duration = Duration::from_millis(3);
/// Most routers that a datagram passes.
const MAX_HOPS: usize = 8;

/// Hosts that reach each other without a router.
#[derive(Debug, Default)]
pub struct Zone {
    /// The router to the outside; only the Internet has none.
    pub uplink: Option<RouterId>,
    owners: BTreeMap<Ipv4Addr, Place>,
}

/// Who takes a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A host.
    Host(HostId),
    /// A router, from outside.
    Router(RouterId),
    /// A router's own service inside.
    Gateway(RouterId),
}

/// What a router does with IPv4.
#[derive(Debug)]
pub enum V4 {
    /// It translates.
    Nat(Nat),
    /// It lets in only answers.
    Firewall(Firewall),
    /// It has IPv6 alone inside, and translates what goes to [`NAT64`]. RFC 6146.
    Nat64(Nat),
}

/// Where IPv4 addresses lie within IPv6 for those behind a NAT64. RFC 6052, section 2.1.
pub const NAT64: [u16; 6] = [0x64, 0xff9b, 0, 0, 0, 0];

/// Returns the IPv6 address that stands for an IPv4 address behind a NAT64.
#[must_use]
pub fn embed(v4: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = NAT64;
    let [w, x, y, z] = v4.octets();
    Ipv6Addr::new(a, b, c, d, e, f, u16::from_be_bytes([w, x]), u16::from_be_bytes([y, z]))
}

/// Returns the IPv4 address that an address behind a NAT64 stands for.
#[must_use]
pub fn embedded(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let (segments, octets) = (v6.segments(), v6.octets());
    segments.starts_with(&NAT64).then(|| Ipv4Addr::new(octets[12], octets[13], octets[14], octets[15]))
}

/// A router.
#[derive(Debug)]
pub struct Router {
    /// The zone outside.
    pub outer: ZoneId,
    /// Its address inside.
    pub inner_v4: Ipv4Addr,
    /// What it does with IPv4.
    pub v4: V4,
    /// What it lets through of IPv6.
    pub v6: Firewall,
    /// It drops all UDP.
    pub blocks_udp: bool,
    /// It speaks a port mapping protocol; with the time since which it runs.
    pub maps_ports: Option<Instant>,
    /// That protocol is UPnP, else NAT-PMP and PCP.
    pub speaks_upnp: bool,
    /// It may hold up all traffic until somebody has signed in.
    pub has_portal: bool,
    /// It does so now.
    pub is_captive: bool,
    /// Where on Earth it is, in milliseconds from somewhere.
    pub position: u64,
}

impl Router {
    /// Tells whether no datagram passes.
    fn is_shut(&self) -> bool {
        self.blocks_udp || self.is_captive
    }
}

/// A host with one interface.
#[derive(Debug, Clone)]
pub struct Host {
    /// Where it is.
    pub zone: ZoneId,
    /// Its IPv4 address in that zone.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// Where on Earth it is.
    pub position: u64,
    /// Datagrams lost on its link, in a thousand.
    pub loss: u32,
    /// How much later than others a datagram may be; reorders them.
    pub jitter: Duration,
}

/// A datagram on its way inwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    /// Who takes it next.
    pub place: Place,
    /// Its source, as seen there.
    pub from: SocketAddr,
    /// Its destination, as seen there.
    pub to: SocketAddr,
    /// Time until it is there.
    pub wait: Duration,
}

/// The whole network.
#[derive(Debug)]
pub struct Network {
    /// All zones; the first is the Internet.
    pub zones: Vec<Zone>,
    /// All routers.
    pub routers: Vec<Router>,
    /// All hosts.
    pub hosts: Vec<Host>,
    v6: BTreeMap<Ipv6Addr, HostId>,
    /// Nothing is lost while this is set.
    pub lossless: bool,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            zones: vec![Zone::default()],
            routers: Vec::new(),
            hosts: Vec::new(),
            v6: BTreeMap::new(),
            lossless: false,
        }
    }
}

impl Network {
    /// Adds a router and the zone behind it.
    pub fn add_router(&mut self, router: Router) -> (RouterId, ZoneId) {
        let id = self.routers.len();
        if let V4::Nat(nat) | V4::Nat64(nat) = &router.v4 {
            self.zones[router.outer].owners.insert(nat.outer, Place::Router(id));
        }
        let owners = BTreeMap::from([(router.inner_v4, Place::Gateway(id))]);
        self.routers.push(router);
        self.zones.push(Zone { uplink: Some(id), owners });
        (id, self.zones.len() - 1)
    }

    /// Adds a host.
    pub fn add_host(&mut self, host: Host) -> HostId {
        let id = self.hosts.len();
        self.hosts.push(host);
        self.attach(id);
        id
    }

    /// Moves a host to another zone or other addresses.
    pub fn move_host(&mut self, id: HostId, zone: ZoneId, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) {
        let old = self.hosts[id].clone();
        if let Some(v4) = old.v4 {
            self.zones[old.zone].owners.remove(&v4);
            for router in self.uplinks(old.zone) {
                let outer = self.routers[router].outer;
                self.zones[outer].owners.retain(|ip, place| *ip != v4 || *place != Place::Router(router));
            }
        }
        if let Some(v6) = old.v6 {
            self.v6.remove(&v6);
        }
        let position = self.zones[zone].uplink.map_or(old.position, |router| self.routers[router].position);
        self.hosts[id] = Host { zone, v4, v6, position, ..old };
        self.attach(id);
    }

    fn attach(&mut self, id: HostId) {
        let Host { zone, v4, v6, .. } = self.hosts[id];
        if let Some(v4) = v4 {
            self.zones[zone].owners.insert(v4, Place::Host(id));
            // Addresses behind a firewall are the outside's, too.
            let mut zone = zone;
            while let Some(router) = self.zones[zone].uplink
                && let Router { v4: V4::Firewall(_), outer, .. } = self.routers[router]
            {
                self.zones[outer].owners.insert(v4, Place::Router(router));
                zone = outer;
            }
        }
        if let Some(v6) = v6 {
            self.v6.insert(v6, id);
        }
    }

    /// Restarts a router, perhaps with another address outside.
    pub fn reboot(&mut self, id: RouterId, new: Option<Ipv4Addr>, now: Instant) {
        let Router { v4, v6, maps_ports, outer, .. } = &mut self.routers[id];
        v6.reboot();
        if let Some(since) = maps_ports {
            *since = now;
        }
        match v4 {
            V4::Firewall(firewall) => firewall.reboot(),
            V4::Nat(nat) | V4::Nat64(nat) => {
                nat.reboot();
                if let Some(new) = new {
                    let owners = &mut self.zones[*outer].owners;
                    owners.remove(&nat.outer);
                    owners.insert(new, Place::Router(id));
                    nat.outer = new;
                }
            }
        }
    }

    /// Returns the routers from a zone to the Internet, nearest first.
    #[must_use]
    pub fn uplinks(&self, zone: ZoneId) -> Vec<RouterId> {
        let mut zone = zone;
        std::iter::from_fn(|| {
            let router = self.zones[zone].uplink?;
            zone = self.routers[router].outer;
            Some(router)
        })
        .collect()
    }

    /// Tells whether a portal holds up a host's traffic.
    #[must_use]
    pub fn is_captive(&self, host: HostId) -> bool {
        self.uplinks(self.hosts[host].zone).iter().any(|id| self.routers[*id].is_captive)
    }

    /// Tells whether a host is behind a NAT64.
    #[must_use]
    pub fn has_nat64(&self, host: HostId) -> bool {
        self.uplinks(self.hosts[host].zone).iter().any(|id| matches!(self.routers[*id].v4, V4::Nat64(_)))
    }

    /// Sends a datagram of a host; `None` if it is lost or goes nowhere.
    pub fn send(&mut self, host: HostId, port: u16, to: SocketAddr, now: Instant, rng: &mut StdRng) -> Option<Leg> {
        let Host { zone, v4, v6, position, loss, jitter } = self.hosts[host];
        if to.ip().is_multicast() {
            return None;
        }
        let (from, to, place, crossed) = match to {
            SocketAddr::V4(_) => {
                let from = SocketAddr::from((v4?, port));
                let (from, place, crossed) = self.send_v4(zone, from, to, now, rng)?;
                (from, to, place, crossed)
            }
            SocketAddr::V6(target) => {
                let from = SocketAddr::from((v6?, port));
                if let Some(target) = embedded(*target.ip()) {
                    self.send_nat64(zone, from, SocketAddr::from((target, to.port())), now, rng)?
                } else {
                    let (place, crossed) = self.send_v6(zone, from, *target.ip(), to, now)?;
                    (from, to, place, crossed)
                }
            }
        };
        if !crossed {
            return Some(Leg { place, from, to, wait: LAN });
        }
        let (there, loss, jitter) = match place {
            Place::Host(id) => {
                let other = &self.hosts[id];
                (other.position, loss + other.loss, jitter.max(other.jitter))
            }
            Place::Router(id) | Place::Gateway(id) => (self.routers[id].position, loss, jitter),
        };
        if !self.lossless && rng.random_range(0..1000) < loss {
            return None;
        }
        let jitter = Duration::from_micros(rng.random_range(0..=u64::try_from(jitter.as_micros()).unwrap_or(0)));
        Some(Leg { place, from, to, wait: self.distance(position, there) + jitter })
    }

    /// Returns the time between two positions.
    #[must_use]
    pub fn distance(&self, one: u64, other: u64) -> Duration {
        NEAR + Duration::from_millis(one.abs_diff(other))
    }

    fn send_v4(
        &mut self,
        mut zone: ZoneId,
        mut from: SocketAddr,
        to: SocketAddr,
        now: Instant,
        rng: &mut StdRng,
    ) -> Option<(SocketAddr, Place, bool)> {
        let IpAddr::V4(target) = to.ip() else { return None };
        let start = zone;
        for _ in 0..MAX_HOPS {
            if let Some(place) = self.zones[zone].owners.get(&target) {
                return Some((from, *place, zone != start || zone == INTERNET));
            }
            let id = self.zones[zone].uplink?;
            let router = &mut self.routers[id];
            if router.is_shut() {
                return None;
            }
            match &mut router.v4 {
                // Nobody inside has an address of IPv4.
                V4::Nat64(_) => return None,
                V4::Firewall(firewall) => firewall.outwards(from, to, now),
                V4::Nat(nat) => {
                    from = nat.outwards(from, to, now, rng)?;
                    if nat.outer == target {
                        return nat.kind.hairpin.then_some((from, Place::Router(id), zone != start));
                    }
                }
            }
            zone = router.outer;
        }
        None
    }

    /// Sends to an IPv4 address by way of the router that translates; returns both ends as IPv4.
    fn send_nat64(
        &mut self,
        zone: ZoneId,
        from: SocketAddr,
        to: SocketAddr,
        now: Instant,
        rng: &mut StdRng,
    ) -> Option<(SocketAddr, SocketAddr, Place, bool)> {
        // Customers of a network with a NAT64 have no router of their own here.
        let router = &mut self.routers[self.zones[zone].uplink?];
        if router.is_shut() {
            return None;
        }
        let outer = router.outer;
        let V4::Nat64(nat) = &mut router.v4 else { return None };
        let from = nat.outwards(from, to, now, rng)?;
        if to.ip() == nat.outer {
            return None;
        }
        let (from, place, _) = self.send_v4(outer, from, to, now, rng)?;
        Some((from, to, place, true))
    }

    fn send_v6(
        &mut self,
        zone: ZoneId,
        from: SocketAddr,
        target: Ipv6Addr,
        to: SocketAddr,
        now: Instant,
    ) -> Option<(Place, bool)> {
        let host = *self.v6.get(&target)?;
        let (up, down) = (self.uplinks(zone), self.uplinks(self.hosts[host].zone));
        for id in up.iter().filter(|id| !down.contains(id)) {
            let router = &mut self.routers[*id];
            if router.is_shut() {
                return None;
            }
            router.v6.outwards(from, to, now);
        }
        let first = down.iter().rfind(|id| !up.contains(id));
        let place = first.map_or(Place::Host(host), |id| Place::Router(*id));
        Some((place, zone != self.hosts[host].zone || zone == INTERNET))
    }

    /// Passes a datagram on that came to a router from outside.
    pub fn enter(&mut self, id: RouterId, from: SocketAddr, to: SocketAddr, now: Instant) -> Option<Leg> {
        let mut leg = Leg { place: Place::Router(id), from, to, wait: LAN };
        for _ in 0..MAX_HOPS {
            let Place::Router(id) = leg.place else { return Some(leg) };
            let router = &mut self.routers[id];
            if router.is_shut() {
                return None;
            }
            let inner = self.zones.iter().position(|zone| zone.uplink == Some(id))?;
            match leg.to.ip() {
                IpAddr::V4(_) => {
                    if let V4::Nat64(nat) = &mut router.v4 {
                        leg.to = nat.inwards(leg.from, leg.to.port(), now)?;
                        let IpAddr::V4(source) = leg.from.ip() else { return None };
                        leg.from = SocketAddr::from((embed(source), leg.from.port()));
                        let IpAddr::V6(target) = leg.to.ip() else { return None };
                        // Whoever moved away has taken the address along; nobody else has it.
                        let host = *self.v6.get(&target)?;
                        leg.place = (self.hosts[host].zone == inner).then_some(Place::Host(host))?;
                        continue;
                    }
                    leg.to = match &mut router.v4 {
                        V4::Nat(nat) => nat.inwards(leg.from, leg.to.port(), now)?,
                        V4::Firewall(firewall) => firewall.lets_in(leg.from, leg.to, now).then_some(leg.to)?,
                        V4::Nat64(_) => return None,
                    };
                    let IpAddr::V4(target) = leg.to.ip() else { return None };
                    leg.place = *self.zones[inner].owners.get(&target)?;
                }
                IpAddr::V6(target) => {
                    if !router.v6.lets_in(leg.from, leg.to, now) {
                        return None;
                    }
                    let host = *self.v6.get(&target)?;
                    let down = self.uplinks(self.hosts[host].zone);
                    let at = down.iter().position(|one| *one == id)?;
                    leg.place = match at.checked_sub(1) {
                        Some(next) => Place::Router(down[next]),
                        None => Place::Host(host),
                    };
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
