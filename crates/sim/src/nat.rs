//! NATs by RFC 4787, and firewalls without NAT.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use rand::RngExt as _;
use rand::rngs::StdRng;

/// On what of the other end a mapping, or the passage through it, depends. RFC 4787, sections 4.1 and 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dependence {
    /// On nothing: endpoint-independent.
    None,
    /// On its address.
    Address,
    /// On its address and port.
    AddressAndPort,
}

impl Dependence {
    fn scope(self, to: SocketAddr) -> Scope {
        match self {
            Self::None => Scope(None),
            Self::Address => Scope(Some((to.ip(), 0))),
            Self::AddressAndPort => Scope(Some((to.ip(), to.port()))),
        }
    }
}

/// How outside ports are chosen. RFC 4787, section 4.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// The inside port if it is free.
    Preserved,
    /// Any.
    Random,
}

/// How a NAT behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatKind {
    /// On what a mapping depends.
    pub mapping: Dependence,
    /// On what it depends whether a datagram passes inwards.
    pub filtering: Dependence,
    /// How outside ports are chosen.
    pub ports: Ports,
    /// How long a mapping lives after the last datagram outwards.
    pub timeout: Duration,
    /// Whether those inside reach each other by their outside addresses.
    pub hairpin: bool,
}

/// A part of the other end's address, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Scope(Option<(IpAddr, u16)>);

/// A NAT with its mappings.
#[derive(Debug)]
pub struct Nat {
    /// How it behaves.
    pub kind: NatKind,
    /// Its address outside.
    pub outer: Ipv4Addr,
    mappings: BTreeMap<(SocketAddr, Scope), Mapping>,
    ports: BTreeMap<u16, (SocketAddr, Scope)>,
    /// What was asked for by a port mapping protocol: open to everybody.
    forwarded: BTreeMap<u16, SocketAddr>,
    /// Flows that came in by a forwarded port, which answers must leave by.
    answers: BTreeMap<(SocketAddr, SocketAddr), (u16, Instant)>,
}

#[derive(Debug)]
struct Mapping {
    port: u16,
    used: Instant,
    /// Other ends that datagrams were sent to.
    opened: BTreeMap<Scope, Instant>,
}

impl Nat {
    /// Makes one without mappings.
    #[must_use]
    pub fn new(kind: NatKind, outer: Ipv4Addr) -> Self {
        Self {
            kind,
            outer,
            mappings: BTreeMap::new(),
            ports: BTreeMap::new(),
            forwarded: BTreeMap::new(),
            answers: BTreeMap::new(),
        }
    }

    /// Passes a datagram outwards; returns its source as the outside sees it, `None` if there is no free port.
    pub fn outwards(&mut self, from: SocketAddr, to: SocketAddr, now: Instant, rng: &mut StdRng) -> Option<SocketAddr> {
        if let Some((port, used)) = self.answers.get_mut(&(from, to))
            && now.saturating_duration_since(*used) <= self.kind.timeout
        {
            *used = now;
            return Some(SocketAddr::from((self.outer, *port)));
        }
        let (timeout, filtering) = (self.kind.timeout, self.kind.filtering);
        let key = (from, self.kind.mapping.scope(to));
        let lives = self.mappings.get(&key).is_some_and(|old| now.saturating_duration_since(old.used) <= timeout);
        if !lives {
            if let Some(old) = self.mappings.remove(&key) {
                self.ports.remove(&old.port);
            }
            let port = self.free_port(from.port(), now, rng)?;
            self.ports.insert(port, key);
            self.mappings.insert(key, Mapping { port, used: now, opened: BTreeMap::new() });
        }
        let mapping = self.mappings.get_mut(&key)?;
        mapping.used = now;
        mapping.opened.insert(filtering.scope(to), now);
        Some(SocketAddr::from((self.outer, mapping.port)))
    }

    /// Passes a datagram inwards to one of the outside ports; returns for whom it is, `None` if it is filtered.
    pub fn inwards(&mut self, from: SocketAddr, port: u16, now: Instant) -> Option<SocketAddr> {
        if let Some(inside) = self.forwarded.get(&port).copied() {
            // A flow that began inside stays on the port it has.
            let mapping = self.mappings.get(&(inside, self.kind.mapping.scope(from)));
            let opened = mapping.and_then(|mapping| mapping.opened.get(&self.kind.filtering.scope(from)));
            if opened.is_none_or(|at| now.saturating_duration_since(*at) > self.kind.timeout) {
                self.answers.insert((inside, from), (port, now));
            }
            return Some(inside);
        }
        let key = self.ports.get(&port)?;
        let mapping = self.mappings.get(key)?;
        let lives = |at: Instant| now.saturating_duration_since(at) <= self.kind.timeout;
        let opened = mapping.opened.get(&self.kind.filtering.scope(from)).is_some_and(|at| lives(*at));
        (lives(mapping.used) && opened).then_some(key.0)
    }

    /// Opens a port for everybody, as a port mapping protocol asks; returns it. A mapping of the same inside stays.
    pub fn forward(&mut self, inside: SocketAddr, suggested: u16, now: Instant, rng: &mut StdRng) -> Option<u16> {
        if let Some((port, _)) = self.forwarded.iter().find(|(_, held)| **held == inside) {
            return Some(*port);
        }
        let port = self.free_port(suggested.max(1024), now, rng)?;
        self.forwarded.insert(port, inside);
        Some(port)
    }

    /// Opens this very port for everybody; false if it is somebody else's.
    pub fn forward_at(&mut self, inside: SocketAddr, port: u16, now: Instant) -> bool {
        let timeout = self.kind.timeout;
        let lives = |mapping: &Mapping| now.saturating_duration_since(mapping.used) <= timeout;
        let holder = self.ports.get(&port);
        let is_used = holder.is_some_and(|key| key.0 != inside && self.mappings.get(key).is_some_and(lives));
        if is_used || self.forwarded.get(&port).is_some_and(|held| *held != inside) {
            return false;
        }
        self.forwarded.insert(port, inside);
        true
    }

    /// Closes a port that was opened for this inside.
    pub fn close(&mut self, inside: SocketAddr, port: u16) {
        self.forwarded.retain(|held, of| *held != port || of.ip() != inside.ip());
    }

    /// Takes back what [`Self::forward`] opened.
    pub fn stop_forwarding(&mut self, inside: SocketAddr) {
        self.forwarded.retain(|_, held| *held != inside);
    }

    /// Forgets everything, as a router that restarts.
    pub fn reboot(&mut self) {
        *self = Self::new(self.kind, self.outer);
    }

    fn free_port(&mut self, wanted: u16, now: Instant, rng: &mut StdRng) -> Option<u16> {
        let timeout = self.kind.timeout;
        for attempt in 0..100 {
            let port = if attempt == 0 && self.kind.ports == Ports::Preserved {
                wanted
            } else {
                rng.random_range(1024..=u16::MAX)
            };
            if self.forwarded.contains_key(&port) {
                continue;
            }
            let Some(holder) = self.ports.get(&port).copied() else { return Some(port) };
            let used = self.mappings.get(&holder).map(|mapping| mapping.used);
            if used.is_none_or(|used| now.saturating_duration_since(used) > timeout) {
                self.mappings.remove(&holder);
                self.ports.remove(&port);
                return Some(port);
            }
        }
        None
    }
}

/// A firewall that lets in only answers, and changes nothing.
#[derive(Debug)]
pub struct Firewall {
    /// How long a flow is remembered after the last datagram outwards.
    pub timeout: Duration,
    flows: BTreeMap<(SocketAddr, SocketAddr), Instant>,
}

impl Firewall {
    /// Makes one without flows.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, flows: BTreeMap::new() }
    }

    /// Notes a datagram outwards.
    pub fn outwards(&mut self, from: SocketAddr, to: SocketAddr, now: Instant) {
        self.flows.insert((from, to), now);
    }

    /// Tells whether a datagram passes inwards.
    #[must_use]
    pub fn lets_in(&self, from: SocketAddr, to: SocketAddr, now: Instant) -> bool {
        self.flows.get(&(to, from)).is_some_and(|at| now.saturating_duration_since(*at) <= self.timeout)
    }

    /// Forgets all flows.
    pub fn reboot(&mut self) {
        self.flows.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::epoch;
    use rand::SeedableRng as _;

    const SECOND: Duration = Duration::from_secs(1);
    const KINDS: [Dependence; 3] = [Dependence::None, Dependence::Address, Dependence::AddressAndPort];

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn kind(mapping: Dependence, filtering: Dependence) -> NatKind {
        NatKind { mapping, filtering, ports: Ports::Random, timeout: SECOND * 30, hairpin: false }
    }

    fn nat(kind: NatKind) -> Nat {
        Nat::new(kind, Ipv4Addr::new(198, 51, 100, 1))
    }

    fn rng() -> StdRng {
        StdRng::from_seed([1; 32])
    }

    /// RFC 4787, section 4.1: when the outside port of one inside port is the same.
    #[test]
    fn mappings_depend_on_what_they_should() {
        let (inside, first) = (at("192.168.1.2:41641"), at("203.0.113.1:1"));
        for mapping in KINDS {
            let (mut nat, mut rng) = (nat(kind(mapping, Dependence::AddressAndPort)), rng());
            let mut out = |to: &str| nat.outwards(inside, at(to), epoch(), &mut rng).unwrap();
            let seen = out("203.0.113.1:1");
            assert_eq!(out("203.0.113.1:1"), seen);
            assert_eq!(out("203.0.113.1:2") == seen, mapping != Dependence::AddressAndPort);
            assert_eq!(out("203.0.113.2:1") == seen, mapping == Dependence::None);
            assert_eq!(nat.inwards(first, seen.port(), epoch()), Some(inside));
        }
    }

    /// RFC 4787, section 5: who may send to a mapping.
    #[test]
    fn filtering_depends_on_what_it_should() {
        let inside = at("192.168.1.2:41641");
        for filtering in KINDS {
            let mut nat = nat(kind(Dependence::None, filtering));
            let port = nat.outwards(inside, at("203.0.113.1:1"), epoch(), &mut rng()).unwrap().port();
            let mut passes = |from: &str| nat.inwards(at(from), port, epoch()).is_some();
            assert!(passes("203.0.113.1:1"));
            assert_eq!(passes("203.0.113.1:2"), filtering != Dependence::AddressAndPort);
            assert_eq!(passes("203.0.113.2:1"), filtering == Dependence::None);
            assert!(nat.inwards(at("203.0.113.1:1"), port ^ 1, epoch()).is_none(), "no mapping, no passage");
        }
    }

    /// RFC 4787, REQ-6: only datagrams outwards keep a mapping here.
    #[test]
    fn mappings_end_unless_they_are_used() {
        let (inside, to) = (at("192.168.1.2:41641"), at("203.0.113.1:1"));
        let (mut nat, mut rng, start) = (nat(kind(Dependence::None, Dependence::None)), rng(), epoch());
        let seen = nat.outwards(inside, to, start, &mut rng).unwrap();
        assert_eq!(nat.outwards(inside, to, start + SECOND * 30, &mut rng).unwrap(), seen);
        assert!(nat.inwards(to, seen.port(), start + SECOND * 60).is_some());
        assert!(nat.inwards(to, seen.port(), start + SECOND * 61).is_none());
        assert_ne!(nat.outwards(inside, to, start + SECOND * 61, &mut rng).unwrap(), seen);
    }

    #[test]
    fn ports_are_preserved_unless_taken() {
        let (mut nat, mut rng) =
            (nat(NatKind { ports: Ports::Preserved, ..kind(Dependence::None, Dependence::None) }), rng());
        let mut out = |from: &str| nat.outwards(at(from), at("203.0.113.1:1"), epoch(), &mut rng).unwrap().port();
        assert_eq!(out("192.168.1.2:41641"), 41641);
        assert_ne!(out("192.168.1.3:41641"), 41641);
        assert_eq!(out("192.168.1.2:41641"), 41641);
    }

    #[test]
    fn forwarded_port_is_open_to_all_and_answers_leave_by_it() {
        let (inside, stranger) = (at("192.168.1.2:41641"), at("203.0.113.9:9"));
        let (mut nat, mut rng) = (nat(kind(Dependence::AddressAndPort, Dependence::AddressAndPort)), rng());
        let port = nat.forward(inside, 5000, epoch(), &mut rng).unwrap();
        assert_eq!(nat.forward(inside, 6000, epoch(), &mut rng), Some(port));
        let own = nat.outwards(inside, at("203.0.113.7:7"), epoch(), &mut rng).unwrap();
        assert_ne!(own.port(), port);
        assert_eq!(nat.inwards(at("203.0.113.7:7"), port, epoch()), Some(inside));
        assert_eq!(nat.outwards(inside, at("203.0.113.7:7"), epoch(), &mut rng), Some(own), "it began inside");
        assert_eq!(nat.inwards(stranger, port, epoch()), Some(inside));
        assert_eq!(nat.outwards(inside, stranger, epoch(), &mut rng).unwrap().port(), port);
        nat.stop_forwarding(inside);
        assert_eq!(nat.inwards(at("203.0.113.8:8"), port, epoch()), None);
    }

    #[test]
    fn reboot_forgets_all() {
        let (inside, to) = (at("192.168.1.2:41641"), at("203.0.113.1:1"));
        let (mut nat, mut rng) = (nat(kind(Dependence::None, Dependence::None)), rng());
        let seen = nat.outwards(inside, to, epoch(), &mut rng).unwrap();
        nat.reboot();
        assert_eq!(nat.inwards(to, seen.port(), epoch()), None);
    }

    #[test]
    fn firewall_lets_in_answers_alone() {
        let (inside, to, start) = (at("[2001:db8::1]:1"), at("[2001:db8:1::1]:1"), epoch());
        let mut firewall = Firewall::new(SECOND * 30);
        assert!(!firewall.lets_in(to, inside, start));
        firewall.outwards(inside, to, start);
        assert!(firewall.lets_in(to, inside, start + SECOND * 30));
        assert!(!firewall.lets_in(at("[2001:db8:1::1]:2"), inside, start));
        assert!(!firewall.lets_in(to, inside, start + SECOND * 31));
    }
}
