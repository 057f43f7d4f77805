//! Random worlds and what befalls them, from a seed.
//!
//! A run begins with a boot and then goes through rounds: a storm of faults while nodes talk, a time to settle when all
//! is well again, and a quiet phase that is judged. At the end nobody talks, and nobody may send.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use rand::RngExt as _;

use crate::nat::{Dependence, Firewall, Nat, NatKind, Ports};
use crate::network::{Host, INTERNET, Router, RouterId, V4, ZoneId};
use crate::oracle::must_be_direct;
use crate::watch::Sent;
use crate::world::{NodeId, World};

const BOOT: Duration = Duration::from_secs(10);
const STORM: Duration = Duration::from_secs(30);
/// Within this time after the last fault everything must be well.
const SETTLE: Duration = Duration::from_secs(40);
const QUIET: Duration = Duration::from_secs(20);
/// Time after which a packet counts as lost.
const LATE: Duration = Duration::from_secs(3);
/// Time after the last packet in which nodes come to rest.
const REST: Duration = Duration::from_secs(60);
const SILENCE: Duration = Duration::from_secs(120);
const ROUNDS: u32 = 3;
/// Time between two packets of a conversation.
const PACE: Duration = Duration::from_millis(500);
/// For how long a direct path may be doubted, so that packets go both ways.
const DOUBT: Duration = Duration::from_secs(1);
/// Most violations that are gathered before a run is given up.
const ENOUGH: usize = 20;

/// What a run showed.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What was not as it must be.
    pub violations: Vec<String>,
    /// Tells one course of events from another.
    pub fingerprint: u64,
    /// Simulated time.
    pub elapsed: Duration,
    /// Number of nodes.
    pub nodes: usize,
    /// Events.
    pub events: u64,
    /// Pairs judged in quiet phases: all, those that had to be direct, those that were direct.
    pub pairs: [u64; 3],
    /// Data packets judged.
    pub packets: u64,
    /// The trace, if it was asked for.
    pub trace: Vec<String>,
}

/// Where nodes may be.
#[derive(Debug, Clone, Copy)]
struct Site {
    zone: ZoneId,
    /// First three octets of IPv4 addresses there.
    v4: Option<[u8; 3]>,
    v6: Option<u16>,
    /// Addresses given out.
    count: u8,
}

#[derive(Debug)]
enum Step {
    Talk(usize),
    Fault,
    /// A relay comes back.
    Relay(usize),
    Server,
    /// UDP passes again.
    Unblock(RouterId),
    /// Somebody signs in at a portal.
    SignIn(RouterId),
}

#[derive(Debug, Clone, Copy)]
struct Conversation {
    ends: [NodeId; 2],
    is_active: bool,
}

struct Run {
    world: World<Step>,
    sites: Vec<Site>,
    conversations: Vec<Conversation>,
    is_storm: bool,
    is_judged: bool,
    packets: u64,
    judged: u64,
    outside: u32,
    pairs: [u64; 3],
}

/// Runs the scenario of a seed with so many nodes.
#[must_use]
pub fn run(seed: u64, nodes: usize, with_trace: bool) -> Outcome {
    let mut run = Run::new(seed, nodes);
    if with_trace {
        run.world.trace = Some(std::collections::VecDeque::new());
    }
    run.all();
    Outcome {
        violations: std::mem::take(&mut run.world.watch.violations),
        fingerprint: run.world.fingerprint(),
        elapsed: run.world.elapsed(),
        nodes,
        events: run.world.events,
        pairs: run.pairs,
        packets: run.judged,
        trace: run.world.trace.take().unwrap_or_default().into(),
    }
}

impl Run {
    fn new(seed: u64, nodes: usize) -> Self {
        let world = World::new(seed, &[0, 25, 60, 110]);
        let mut run = Self {
            world,
            sites: Vec::new(),
            conversations: Vec::new(),
            is_storm: false,
            is_judged: false,
            packets: 0,
            judged: 0,
            outside: 0,
            pairs: [0; 3],
        };
        run.world.watch.peers = u32::try_from(nodes).unwrap_or(u32::MAX);
        run.add_internet();
        while run.sites.len() * 2 < nodes + 2 {
            run.add_site();
        }
        for _ in 0..nodes {
            let site = run.world.rng.random_range(0..run.sites.len());
            let (zone, v4, v6) = run.address(site);
            let position = run.world.rng.random_range(0..120);
            let position =
                run.world.network.zones[zone].uplink.map_or(position, |id| run.world.network.routers[id].position);
            let loss = if run.chance(300) { run.world.rng.random_range(0..40) } else { 0 };
            let jitter = Duration::from_millis(if run.chance(300) { run.world.rng.random_range(0..20) } else { 0 });
            let host = run.world.network.add_host(Host { zone, v4, v6, position, loss, jitter });
            run.world.add_node(host);
        }
        run
    }

    fn all(&mut self) {
        self.phase(BOOT);
        self.world.replays = 20;
        for _ in 0..ROUNDS {
            self.new_conversations();
            self.is_storm = true;
            self.world.network.lossless = false;
            self.world.after(Duration::from_millis(500), Step::Fault);
            self.phase(STORM);
            self.is_storm = false;
            self.calm();
            self.phase(SETTLE);
            self.is_judged = true;
            self.count_pairs();
            self.phase(QUIET);
            self.is_judged = false;
            self.phase(LATE);
            self.judge_packets();
            if self.world.watch.violations.len() >= ENOUGH {
                return;
            }
        }
        self.conversations.iter_mut().for_each(|conversation| conversation.is_active = false);
        self.phase(REST);
        self.world.watch.silence = true;
        self.phase(SILENCE);
        for id in 0..self.world.nodes.len() {
            if self.world.nodes[id].paths.poll_timeout().is_some() {
                self.world.violate(format!("node {id} is idle and its paths hold a timer"));
            }
        }
    }

    fn phase(&mut self, length: Duration) {
        let end = self.world.now() + length;
        while let Some(step) = self.world.run(end) {
            match step {
                Step::Talk(at) => self.talk(at),
                Step::Fault => {
                    if self.is_storm {
                        self.fault();
                        let wait = Duration::from_millis(self.world.rng.random_range(500..4000));
                        self.world.after(wait, Step::Fault);
                    }
                }
                Step::Relay(at) => self.world.set_relay(at, true),
                Step::Server => self.world.set_server(true),
                Step::SignIn(router) => self.world.set_captive(router, false),
                Step::Unblock(router) => self.world.network.routers[router].blocks_udp = false,
            }
            if self.world.watch.violations.len() >= ENOUGH {
                return;
            }
        }
    }

    // Conversations.

    fn new_conversations(&mut self) {
        let nodes = self.world.nodes.len();
        for conversation in &mut self.conversations {
            conversation.is_active &= self.world.rng.random_range(0..3) > 0;
        }
        while self.conversations.iter().filter(|conversation| conversation.is_active).count() < nodes / 2 {
            let ends = [self.world.rng.random_range(0..nodes), self.world.rng.random_range(0..nodes)];
            if ends[0] != ends[1] {
                let wait = Duration::from_millis(self.world.rng.random_range(0..15_000));
                self.world.after(wait, Step::Talk(self.conversations.len()));
                self.conversations.push(Conversation { ends, is_active: true });
            }
        }
    }

    fn talk(&mut self, at: usize) {
        let Conversation { ends: [a, b], is_active } = self.conversations[at];
        if !is_active {
            return;
        }
        for (from, to) in [(a, b), (b, a)] {
            self.packets += 1;
            let (number, now) = (self.packets, self.world.now());
            self.world.watch.data.insert(number, Sent { from, to, at: now, must: self.is_judged, arrived: false });
            if self.is_judged && self.must(a, b) && !self.is_direct(from, to) {
                self.world.violate(format!("nodes {from} and {to} can be direct and {from} is not"));
            }
            self.world.send_data(from, to, number);
        }
        self.world.after(PACE, Step::Talk(at));
    }

    fn must(&self, a: NodeId, b: NodeId) -> bool {
        must_be_direct(&self.world.network, self.world.hosts[a], self.world.hosts[b])
    }

    fn is_direct(&self, from: NodeId, to: NodeId) -> bool {
        let slot = self.world.nodes[from].slots.get(&self.world.nodes[to].key);
        slot.and_then(|slot| slot.path.direct).is_some_and(|direct| self.world.now() <= direct.trusted_until + DOUBT)
    }

    fn count_pairs(&mut self) {
        for Conversation { ends: [a, b], .. } in self.conversations.iter().filter(|conversation| conversation.is_active)
        {
            self.pairs[0] += 1;
            self.pairs[1] += u64::from(self.must(*a, *b));
            self.pairs[2] += u64::from(self.is_direct(*a, *b) && self.is_direct(*b, *a));
        }
    }

    fn judge_packets(&mut self) {
        for (number, Sent { from, to, at, must, arrived }) in std::mem::take(&mut self.world.watch.data) {
            self.judged += u64::from(must);
            if must && !arrived {
                let ago = (self.world.now() - at).as_secs_f64();
                self.world
                    .violate(format!("data {number} from node {from} to {to}, sent {ago:.3} s ago, did not arrive"));
            }
        }
    }

    // Faults.

    fn fault(&mut self) {
        let away = Duration::from_millis(self.world.rng.random_range(1_000..20_000));
        match self.world.rng.random_range(0..12) {
            0..=2 => {
                let router = self.world.rng.random_range(0..self.world.network.routers.len());
                let is_outermost = self.world.network.routers[router].outer == INTERNET;
                let new = (is_outermost && self.chance(500)).then(|| self.outside_address());
                self.world.note(20, [router as u64, 0, 0], || format!("router {router} restarts; new address {new:?}"));
                self.world.reboot(router, new);
            }
            3..=5 => {
                let node = self.world.rng.random_range(0..self.world.nodes.len());
                let site = self.world.rng.random_range(0..self.sites.len());
                let (zone, v4, v6) = self.address(site);
                self.world.note(21, [node as u64, zone as u64, 0], || {
                    format!("node {node} moves to zone {zone}: {v4:?} {v6:?}")
                });
                self.world.move_node(node, zone, v4, v6);
            }
            6 | 7 => {
                let relay = self.world.rng.random_range(0..self.world.relays.len());
                if self.world.relays[relay].is_up {
                    self.world.set_relay(relay, false);
                    self.world.after(away, Step::Relay(relay));
                }
            }
            8 => {
                self.world.set_server(false);
                self.world.after(away, Step::Server);
            }
            9 => {
                let portals = |id: &RouterId| self.world.network.routers[*id].has_portal;
                let portals: Vec<RouterId> = (0..self.world.network.routers.len()).filter(portals).collect();
                if !portals.is_empty() {
                    let router = portals[self.world.rng.random_range(0..portals.len())];
                    self.world.set_captive(router, true);
                    self.world.after(away, Step::SignIn(router));
                }
            }
            10 => {
                let node = self.world.rng.random_range(0..self.world.nodes.len());
                self.world.restart(node);
            }
            _ => {
                let router = self.world.rng.random_range(0..self.world.network.routers.len());
                if !self.world.network.routers[router].blocks_udp {
                    self.world.note(22, [router as u64, 0, 0], || format!("router {router} blocks UDP"));
                    self.world.network.routers[router].blocks_udp = true;
                    self.world.after(away, Step::Unblock(router));
                }
            }
        }
    }

    /// Everything that was to last a while ends by itself; nothing is lost from now on.
    fn calm(&mut self) {
        self.world.network.lossless = true;
        for at in 0..self.world.relays.len() {
            if !self.world.relays[at].is_up {
                self.world.set_relay(at, true);
            }
        }
        self.world.set_server(true);
        for router in 0..self.world.network.routers.len() {
            self.world.set_captive(router, false);
        }
    }

    // Places.

    fn chance(&mut self, in_a_thousand: u32) -> bool {
        self.world.rng.random_range(0..1000) < in_a_thousand
    }

    fn outside_address(&mut self) -> Ipv4Addr {
        self.outside += 1;
        let [_, b, c, d] = self.outside.to_be_bytes();
        Ipv4Addr::from([45, b, c, d])
    }

    fn add_internet(&mut self) {
        self.sites.push(Site { zone: INTERNET, v4: Some([46, 0, 0]), v6: None, count: 1 });
        self.sites.push(Site { zone: INTERNET, v4: Some([46, 0, 1]), v6: Some(0xfff0), count: 1 });
        self.sites.push(Site { zone: INTERNET, v4: None, v6: Some(0xfff1), count: 1 });
    }

    fn address(&mut self, site: usize) -> (ZoneId, Option<Ipv4Addr>, Option<Ipv6Addr>) {
        let Site { zone, v4, v6, count } = &mut self.sites[site];
        *count = count.checked_add(1).unwrap_or(2);
        let v4 = v4.map(|[a, b, c]| Ipv4Addr::new(a, b, c, *count));
        let v6 = v6.map(|net| Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, (*count).into()));
        (*zone, v4, v6)
    }

    fn nat_kind(&mut self) -> NatKind {
        let (mapping, filtering) = match self.world.rng.random_range(0..8) {
            0 => (Dependence::None, Dependence::None),
            1 => (Dependence::None, Dependence::Address),
            2..=4 => (Dependence::None, Dependence::AddressAndPort),
            5 => (Dependence::Address, Dependence::AddressAndPort),
            _ => (Dependence::AddressAndPort, Dependence::AddressAndPort),
        };
        let ports = if self.chance(500) { Ports::Preserved } else { Ports::Random };
        let timeout = Duration::from_secs(self.world.rng.random_range(30..300));
        NatKind { mapping, filtering, ports, timeout, hairpin: self.chance(300) }
    }

    fn add_site(&mut self) {
        match self.world.rng.random_range(0..12) {
            0..=5 => self.add_home(INTERNET, None),
            6 => self.add_firewall(),
            7 => self.add_cafe(),
            8 => self.add_v6_network(),
            _ => self.add_carrier(),
        }
    }

    /// A router with a NAT; `outer` is its address outside, if not on the Internet.
    fn add_home(&mut self, outer_zone: ZoneId, outer: Option<Ipv4Addr>) {
        let kind = self.nat_kind();
        let outer = outer.unwrap_or_else(|| self.outside_address());
        let base = [[192, 168, 0], [192, 168, 1], [10, 0, 0]][self.world.rng.random_range(0..3)];
        let mut router = self.router(outer_zone, V4::Nat(Nat::new(kind, outer)), base);
        router.maps_ports = self.chance(250).then(|| self.world.now());
        router.speaks_upnp = self.chance(400);
        router.blocks_udp = self.chance(80);
        let (_, zone) = self.world.network.add_router(router);
        let v6 = self.chance(300).then(|| u16::try_from(zone).unwrap_or(u16::MAX));
        let v4 = (v6.is_none() || self.chance(900)).then_some(base);
        self.sites.push(Site { zone, v4, v6, count: 1 });
    }

    /// A home whose router may want its guests to sign in.
    fn add_cafe(&mut self) {
        self.add_home(INTERNET, None);
        if let Some(router) = self.world.network.routers.last_mut() {
            router.has_portal = true;
        }
    }

    /// A network that has IPv6 alone, with a NAT64.
    fn add_v6_network(&mut self) {
        let (kind, outer) = (self.nat_kind(), self.outside_address());
        let router = self.router(INTERNET, V4::Nat64(Nat::new(kind, outer)), [192, 0, 0]);
        let (_, zone) = self.world.network.add_router(router);
        self.sites.push(Site { zone, v4: None, v6: Some(u16::try_from(zone).unwrap_or(u16::MAX)), count: 1 });
    }

    fn add_firewall(&mut self) {
        let outer = self.outside_address().octets();
        let base = [47, outer[2], outer[3]];
        let router = self.router(INTERNET, V4::Firewall(Firewall::new(Duration::from_secs(60))), base);
        let (_, zone) = self.world.network.add_router(router);
        let v6 = self.chance(500).then(|| u16::try_from(zone).unwrap_or(u16::MAX));
        self.sites.push(Site { zone, v4: Some(base), v6, count: 1 });
    }

    /// A carrier's NAT, with homes behind it, and customers without a router.
    fn add_carrier(&mut self) {
        let (kind, outer) = (self.nat_kind(), self.outside_address());
        let router = self.router(INTERNET, V4::Nat(Nat::new(kind, outer)), [100, 64, 0]);
        let (_, zone) = self.world.network.add_router(router);
        for home in 0..self.world.rng.random_range(1..3) {
            self.add_home(zone, Some(Ipv4Addr::new(100, 64, 1, home)));
        }
        self.sites.push(Site { zone, v4: Some([100, 64, 2]), v6: None, count: 1 });
    }

    fn router(&mut self, outer: ZoneId, v4: V4, [a, b, c]: [u8; 3]) -> Router {
        let position = self.world.network.zones[outer].uplink;
        let position = match position {
            Some(id) => self.world.network.routers[id].position,
            None => self.world.rng.random_range(0..120),
        };
        Router {
            outer,
            inner_v4: Ipv4Addr::new(a, b, c, 1),
            v4,
            v6: Firewall::new(Duration::from_secs(60)),
            blocks_udp: false,
            maps_ports: None,
            speaks_upnp: false,
            has_portal: false,
            is_captive: false,
            position,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_course_of_events() {
        let (one, other) = (run(7, 8, true), run(7, 8, true));
        assert_eq!(one.fingerprint, other.fingerprint);
        assert_eq!(one.trace, other.trace);
        assert_ne!(one.fingerprint, run(8, 8, false).fingerprint);
    }

    /// Two of many sockets were hit, and the peer chose the one that was closed: packets were lost until trust ended.
    #[test]
    fn holes_of_which_each_end_chose_another_stay_open() {
        assert_eq!(run(0, 50, false).violations, Vec::<String>::new());
    }

    #[test]
    fn a_few_small_worlds_are_well() {
        for seed in 0..5 {
            let outcome = run(seed, 12, false);
            assert_eq!(outcome.violations, Vec::<String>::new(), "seed {seed} with 12 nodes");
            assert!(outcome.packets > 0);
        }
    }
}
