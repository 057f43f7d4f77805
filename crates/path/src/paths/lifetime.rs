//! For how long a direct path stays open that nobody uses: until the NATs and firewalls on it forget.
//!
//! Off unless the server wants it ([`Paths::set_lifetime_probing`]), and a measurement only: nothing follows from it. When a
//! peer comes to rest, its direct path is left in silence for a while and pinged then; if the pong comes, the next silence is
//! longer. One of two peers does so, the one with the lower disco key, and once a day.
//!
//! Source: Tailscale `wgengine/magicsock/endpoint.go`, `probeUDPLifetime`.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_wire::key::NodeKey;

use super::Paths;
use super::outbox::{Outbox, Timer};
use super::output::Destination;
use super::peer::Peer;
use super::pings::Sent;

/// The lifetimes that NATs are thought to have.
///
/// Source: Tailscale `defaultProbeUDPLifetimeConfig`.
const CLIFFS: [Duration; 3] = [Duration::from_secs(10), Duration::from_secs(30), Duration::from_secs(60)];
/// How long before each of them the ping goes out.
///
/// Source: Tailscale `udpLifetimeProbeCliffSlack`.
const SLACK: Duration = Duration::from_secs(2);
/// By how much the silence may differ from the planned one.
///
/// Source: Tailscale `udpLifetimeProbeSchedulingTolerance`.
const TOLERANCE: Duration = Duration::from_millis(250);
/// Least time between two measurements of one peer.
const AGAIN: Duration = Duration::from_secs(24 * 3600);

/// For how long a direct path stays open unused; its text is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpLifetime {
    /// It was open after a silence of this length.
    pub at_least: Duration,
    /// It was closed, or the ping was lost, after a silence of nearly this length.
    pub less_than: Option<Duration>,
}

impl fmt::Display for UdpLifetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.less_than {
            Some(less) => write!(f, "{} to {} s", self.at_least.as_secs(), less.as_secs()),
            None => write!(f, "{} s or more", self.at_least.as_secs()),
        }
    }
}

/// The measurement of one peer.
#[derive(Debug, Default)]
pub(super) struct Probing {
    /// When the present or last measurement began.
    began: Option<Instant>,
    /// Where in [`CLIFFS`] the present measurement is, if there is one.
    cliff: Option<usize>,
    /// When the ping went out whose pong is waited for.
    sent: Option<Instant>,
    /// When something last went over the direct path, either way.
    touched: Option<Instant>,
    /// When it is looked at again; set if and only if its timer is.
    timer: Option<Instant>,
    found: Option<(SocketAddr, UdpLifetime)>,
}

impl Probing {
    /// Ends a measurement without a result: the path is another.
    pub(super) fn reset(&mut self) {
        (self.cliff, self.sent) = (None, None);
    }

    /// Notes that something went over the direct path, either way.
    pub(super) fn touch(&mut self, now: Instant) {
        self.touched = Some(now);
    }

    /// Returns what was found of an address.
    pub(super) fn found(&self, address: SocketAddr) -> Option<UdpLifetime> {
        self.found.filter(|(of, _)| *of == address).map(|(_, found)| found)
    }

    /// Returns when the next silence is long enough, if it is time for one.
    fn due(&self, now: Instant) -> Option<Instant> {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < AGAIN;
        if self.cliff.is_none() && self.began.is_some_and(is_recent) {
            return None;
        }
        Some(self.touched? + *CLIFFS.get(self.cliff.unwrap_or(0))? - SLACK)
    }

    fn set_timer(&mut self, key: &NodeKey, at: Option<Instant>, outbox: &mut Outbox) {
        if let Some(old) = std::mem::replace(&mut self.timer, at) {
            outbox.timers.remove(&(old, Timer::Lifetime(*key)));
        }
        if let Some(at) = at {
            outbox.timers.insert((at, Timer::Lifetime(*key)));
        }
    }
}

impl Paths {
    /// Says whether to measure for how long direct paths stay open that nobody uses; not at first.
    pub fn set_lifetime_probing(&mut self, probe: bool) {
        if std::mem::replace(&mut self.probes_lifetime, probe) && !probe {
            let keys: Vec<NodeKey> = self.peers.keys().copied().collect();
            keys.iter().for_each(|key| self.forget_lifetime(key));
        }
    }

    /// Forgets the measurement of a peer.
    pub(super) fn forget_lifetime(&mut self, key: &NodeKey) {
        if let Some(mut probing) = self.peers.get_mut(key).and_then(|peer| peer.lifetime.take()) {
            probing.set_timer(key, None, &mut self.outbox);
        }
    }

    /// Plans the next ping to a peer at rest, if there is to be one.
    pub(super) fn plan_lifetime(&mut self, key: &NodeKey, now: Instant) {
        let own = self.disco_key();
        let Some(peer) = self.peers.get_mut(key) else { return };
        if peer.best().is_none() || peer.disco.is_none_or(|disco| own > disco) {
            return;
        }
        let Some(probing) = &mut peer.lifetime else { return };
        let Some(at) = probing.due(now) else { return };
        if now <= at + TOLERANCE {
            probing.set_timer(key, Some(at), &mut self.outbox);
        }
    }

    /// Pings a peer if its direct path has been silent for as long as was planned.
    pub(super) fn probe_lifetime(&mut self, key: &NodeKey, now: Instant) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        let is_in_use = peer.heartbeat.is_some();
        let Some(probing) = &mut peer.lifetime else { return };
        probing.timer = None;
        // Whoever uses it keeps it open; the measurement goes on when it rests again.
        let Some(at) = probing.due(now).filter(|_| !is_in_use) else { return };
        let (Some((address, socket)), Some(disco)) = (peer.best(), peer.disco) else { return };
        if now < at {
            self.plan_lifetime(key, now);
            return;
        }
        if now > at + TOLERANCE {
            return;
        }
        let sent = Sent { peer: *key, to: Destination::Udp(address), socket, at: now, user: None, size: 0 };
        if self.outbox.ping_from(&sent, &disco)
            && let Some(probing) = &mut peer.lifetime
        {
            if probing.cliff.is_none() {
                (probing.cliff, probing.began) = (Some(0), Some(now));
            }
            probing.sent = Some(now);
            peer.touch(address, now);
        }
    }

    /// Takes over that a ping was answered, or was not.
    pub(super) fn learn_lifetime(&mut self, sent: &Sent, is_answered: bool, now: Instant) {
        let Some(peer) = self.peers.get_mut(&sent.peer) else { return };
        let address = peer.best_address();
        let Some(probing) = peer.lifetime.as_mut().filter(|probing| probing.sent == Some(sent.at)) else { return };
        let Some(address) = address.filter(|address| sent.to == Destination::Udp(*address)) else { return };
        let Some((at, cliff)) = probing.cliff.and_then(|at| Some((at, *CLIFFS.get(at)?))) else { return };
        probing.sent = None;
        let before = at.checked_sub(1).and_then(|at| CLIFFS.get(at)).map_or(Duration::ZERO, |cliff| *cliff - SLACK);
        let found = if is_answered {
            UdpLifetime { at_least: cliff - SLACK, less_than: None }
        } else {
            UdpLifetime { at_least: before, less_than: Some(cliff) }
        };
        probing.found = Some((address, found));
        probing.cliff = Some(at + 1).filter(|next| is_answered && *next < CLIFFS.len());
        if probing.cliff.is_some() {
            self.plan_lifetime(&sent.peer, now);
        }
    }
}

impl Peer {
    /// Returns what was found of the direct path.
    pub(super) fn udp_lifetime(&self) -> Option<UdpLifetime> {
        self.lifetime.as_ref()?.found(self.best_address()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::HEARTBEAT;
    use crate::paths::sim::{Internet, Nat};

    /// Two nodes that measure, at rest after some talk; and the one of them that has the lower key.
    fn at_rest(nats: [Nat; 2]) -> (Internet, usize) {
        let mut internet = Internet::pair(nats, 1);
        let prober = usize::from(internet.nodes[1].paths.disco_key() < internet.nodes[0].paths.disco_key());
        for node in 0..2 {
            internet.with(node, |paths, _, _| paths.set_lifetime_probing(true));
        }
        internet.talk(5);
        assert!(internet.is_direct(0) && internet.is_direct(1));
        (internet, prober)
    }

    fn found(internet: &Internet, node: usize) -> Option<UdpLifetime> {
        internet.nodes[node].paths.status(&internet.key(1 - node)).unwrap().lifetime
    }

    fn sent(internet: &Internet) -> [usize; 2] {
        [0, 1].map(|node| internet.nodes[node].sent_udp)
    }

    const REST: Duration = Duration::from_secs(45);

    #[test]
    fn an_open_path_is_found_to_last() {
        let (mut internet, prober) = at_rest([Nat::None, Nat::None]);
        internet.run(REST + HEARTBEAT);
        let before = sent(&internet);
        internet.run(Duration::from_secs(150));
        assert_eq!(found(&internet, prober), Some(UdpLifetime { at_least: CLIFFS[2] - SLACK, less_than: None }));
        assert_eq!(found(&internet, 1 - prober), None, "one is enough");
        let after = sent(&internet);
        assert!(after.iter().zip(before).all(|(after, before)| after - before <= 3), "{before:?} {after:?}");
        // Silence until the next day, and a measurement then.
        internet.run(Duration::from_secs(20 * 3600));
        internet.talk(5);
        internet.run(Duration::from_secs(300));
        assert!(internet.nodes.iter().all(|node| node.paths.poll_timeout().is_none()));
        internet.run(AGAIN);
        internet.talk(5);
        internet.run(REST + HEARTBEAT);
        assert!(internet.nodes[prober].paths.poll_timeout().is_some());
    }

    /// The NATs of the simulation forget after 30 s.
    #[test]
    fn a_nat_that_forgets_is_found_out() {
        let (mut internet, prober) = at_rest([Nat::Easy, Nat::Easy]);
        internet.run(Duration::from_secs(300));
        let lifetime = UdpLifetime { at_least: CLIFFS[1] - SLACK, less_than: Some(CLIFFS[2]) };
        let peer = internet.key(1 - prober);
        let probing = internet.nodes[prober].paths.peers[&peer].lifetime.as_ref().unwrap();
        assert_eq!(probing.found.map(|(_, found)| found), Some(lifetime));
        assert_eq!(lifetime.to_string(), "28 to 60 s");
        // The path is given up, as after any ping that was not answered, and found again when it is used.
        internet.talk(5);
        assert!(internet.is_direct(0) && internet.is_direct(1));
        assert_eq!(found(&internet, prober), Some(lifetime));
    }

    /// What is used meanwhile is no silence: that measurement goes on when the peer rests again.
    #[test]
    fn use_interrupts_the_measurement() {
        let (mut internet, prober) = at_rest([Nat::None, Nat::None]);
        internet.run(REST + HEARTBEAT + Duration::from_secs(12));
        assert_eq!(found(&internet, prober).map(|found| found.at_least), Some(CLIFFS[0] - SLACK));
        internet.talk(60);
        assert_eq!(found(&internet, prober).map(|found| found.at_least), Some(CLIFFS[0] - SLACK));
        internet.run(Duration::from_secs(300));
        assert_eq!(found(&internet, prober).map(|found| found.at_least), Some(CLIFFS[2] - SLACK));
    }

    #[test]
    fn nothing_is_measured_unless_that_is_wanted() {
        let (mut internet, _) = at_rest([Nat::None, Nat::None]);
        internet.run(REST + HEARTBEAT + Duration::from_secs(2));
        for node in 0..2 {
            internet.with(node, |paths, _, _| paths.set_lifetime_probing(false));
        }
        let before = sent(&internet);
        internet.run(Duration::from_secs(300));
        assert_eq!((sent(&internet), found(&internet, 0), found(&internet, 1)), (before, None, None));
        assert!(internet.nodes.iter().all(|node| node.paths.poll_timeout().is_none()));
    }

    #[test]
    fn a_peer_that_goes_leaves_no_timer() {
        let (mut internet, prober) = at_rest([Nat::None, Nat::None]);
        internet.run(REST + HEARTBEAT + Duration::from_secs(1));
        assert!(internet.nodes[prober].paths.poll_timeout().is_some());
        let peer = internet.key(1 - prober);
        internet.nodes[prober].paths.remove_peer(&peer);
        assert!(internet.nodes[prober].paths.poll_timeout().is_none());
    }
}
