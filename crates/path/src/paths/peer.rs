//! One peer: its candidates, the best of them, and how long it is trusted.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_wire::control::RegionId;
use warren_wire::key::{DiscoKey, NodeKey};

use super::HEARTBEAT;
use super::candidates::{Candidate, Candidates};
use super::lifetime::Probing;
use super::outbox::Outbox;
use super::output::{Destination, Direct, Path, PingId, SocketId};
use super::peer_relays::Relaying;
use super::pings::{Budget, Sent, Source};
use super::punch::Attempted;
use super::score::{self, Quality};
use super::status::{Decision, History, PathStatus, Reason};
use super::watch::Watch;

/// How long a direct path is trusted after a pong.
///
/// Source: Tailscale `wgengine/magicsock`, `trustUDPAddrDuration`.
pub(super) const TRUST: Duration = Duration::from_millis(6_500);
/// How long a peer counts as in use after the last packet to it.
///
/// Source: Tailscale `wgengine/magicsock`, `sessionActiveTimeout`.
pub(super) const IN_USE: Duration = Duration::from_secs(45);
/// Least time between discovery pings to one address.
///
/// Source: Tailscale `wgengine/magicsock`, `discoPingInterval`.
const PING_SPACING: Duration = Duration::from_secs(5);
/// The same while a search is young.
const EAGER_SPACING: Duration = Duration::from_millis(200);
/// Times between the first tries of a search. What is lost because one end was not ready yet (its relay not connected,
/// its addresses not told) is made good within a second instead of five.
const EAGER: [Duration; 5] = [
    Duration::from_millis(250),
    Duration::from_millis(300),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];
/// Latency at or below which a trusted path is not compared with others.
///
/// Source: Tailscale `wgengine/magicsock`, `goodEnoughLatency`.
const GOOD_ENOUGH: Duration = Duration::from_millis(5);
/// How often a trusted path with more latency is compared with others.
///
/// Source: Tailscale `wgengine/magicsock`, `upgradeUDPDirectInterval`.
const UPGRADE_INTERVAL: Duration = Duration::from_secs(60);

/// How long after its last answer a second path counts as proved: NATs forget after 30 s.
const WARM: Duration = Duration::from_secs(30);
/// How often the second path is pinged.
const WARM_INTERVAL: Duration = Duration::from_secs(10);

/// What the server says of a peer's paths.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerConfig {
    /// Its disco key; without one there is only the relay.
    pub disco: Option<DiscoKey>,
    /// Its home relay.
    pub home: Option<RegionId>,
    /// Addresses at which it may be found; unusable ones, and all behind the 64th, are ignored.
    pub endpoints: Vec<SocketAddr>,
}

/// State of one peer. A peer at rest holds no timer.
#[derive(Debug, Default)]
pub(super) struct Peer {
    pub(super) disco: Option<DiscoKey>,
    pub(super) home: Option<RegionId>,
    /// Region through which the peer was last heard; counts while its home is not known.
    pub(super) heard_region: Option<RegionId>,
    pub(super) candidates: Candidates,
    /// Boxed, since few peers have one.
    best: Option<Box<Best>>,
    /// Absent while there was no direct path, or at rest.
    watch: Option<Box<Watch>>,
    /// When holes through a hard NAT were last tried, and what came of it; boxed, since few peers have one.
    pub(super) punched: Option<Box<Attempted>>,
    pub(super) relaying: Relaying,
    /// The last decisions, while in use.
    history: History,
    /// Why there is no best, if there was one.
    lost: Option<Reason>,
    pub(super) last_sent: Option<Instant>,
    last_full_ping: Option<Instant>,
    /// How many of the [`EAGER`] tries of the present search are over.
    tries: u8,
    /// A user's ping that is not answered yet: further pings ask for it, too.
    pub(super) asked: Option<PingId>,
    /// When the next heartbeat is due; set if and only if its timer is.
    pub(super) heartbeat: Option<Instant>,
    budget: Budget,
    /// How long the direct path stays open unused; only if that is measured.
    pub(super) lifetime: Option<Box<Probing>>,
    /// What was published, apart from the peer relay.
    published: (Option<Box<Direct>>, Option<Box<SocketAddr>>, Option<RegionId>),
}

/// The best address of a peer.
#[derive(Debug, Clone, Copy)]
struct Best {
    address: SocketAddr,
    socket: SocketId,
    latency: Duration,
    trusted_until: Instant,
}

impl Best {
    fn is_trusted(&self, now: Instant) -> bool {
        now <= self.trusted_until
    }
}

/// Which candidates are pinged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// Those that were not pinged for 5 s; while the search is young, for a moment.
    Due,
    /// All, for a user.
    All(PingId),
}

impl Peer {
    pub(super) fn relay(&self) -> Option<RegionId> {
        self.home.or(self.heard_region)
    }

    fn held(&self) -> Option<Best> {
        self.best.as_deref().copied()
    }

    pub(super) fn best_address(&self) -> Option<SocketAddr> {
        self.held().map(|best| best.address)
    }

    /// Returns address and socket of the direct path.
    pub(super) fn best(&self) -> Option<(SocketAddr, SocketId)> {
        self.held().map(|best| (best.address, best.socket))
    }

    /// Notes that something went to an address or came from there.
    pub(super) fn touch(&mut self, address: SocketAddr, now: Instant) {
        let is_best = self.best_address() == Some(address);
        if let Some(probing) = self.lifetime.as_mut().filter(|_| is_best) {
            probing.touch(now);
        }
    }

    /// Trusts the direct path for another while, since data came over it. The last second is not worth telling.
    pub(super) fn renew_trust(&mut self, now: Instant) {
        if let Some(best) = self.best.as_mut().filter(|best| now + TRUST > best.trusted_until + Duration::from_secs(1))
        {
            best.trusted_until = now + TRUST;
        }
    }

    fn reset_lifetime(&mut self) {
        if let Some(probing) = &mut self.lifetime {
            probing.reset();
        }
    }

    /// Tells whether a packet was sent to the peer within `time`.
    pub(super) fn was_used_within(&self, time: Duration, now: Instant) -> bool {
        self.last_sent.is_some_and(|at| now.saturating_duration_since(at) <= time)
    }

    /// Returns what was sent and heard on the direct path.
    pub(super) fn watch(&mut self) -> &mut Watch {
        self.watch.get_or_insert_default()
    }

    fn second(&self) -> Option<SocketAddr> {
        self.watch.as_ref()?.second
    }

    /// Gives back memory when the peer comes to rest.
    pub(super) fn rest(&mut self, now: Instant) {
        self.candidates.rest(now);
        self.watch.take_if(|watch| watch.timer.is_none());
        self.history = History::default();
        self.relaying.rest(now);
    }

    /// Returns the extra socket of the direct path, if it has one.
    pub(super) fn extra_socket(&self) -> Option<SocketId> {
        self.held().map(|best| best.socket).filter(|socket| *socket != 0)
    }

    /// Returns the latency of the direct path if it is trusted.
    pub(super) fn trusted_latency(&self, now: Instant) -> Option<Duration> {
        self.held().filter(|best| best.is_trusted(now)).map(|best| best.latency)
    }

    /// Notes a decision.
    pub(super) fn note(&mut self, decision: Decision) {
        self.history.note(decision);
    }

    /// Takes one ping of the budget; false if there is none left.
    pub(super) fn take_ping(&mut self, source: Source, now: Instant) -> bool {
        self.budget.take(source, now)
    }

    /// Tells whether the search has gone on for half a second.
    pub(super) fn has_searched_a_while(&self) -> bool {
        self.tries >= 2
    }

    /// Tells whether the young search is over without a result.
    pub(super) fn has_searched(&self) -> bool {
        usize::from(self.tries) >= EAGER.len()
    }

    /// Returns the direct address if it is trusted.
    pub(super) fn trusted(&self, now: Instant) -> Option<SocketAddr> {
        self.held().filter(|best| best.is_trusted(now)).map(|best| best.address)
    }

    pub(super) fn is_in_use(&self, now: Instant) -> bool {
        self.last_sent.is_some_and(|at| now.saturating_duration_since(at) <= IN_USE)
    }

    /// Tells whether a heartbeat should look for a better path than the present one.
    pub(super) fn wants_search(&self, now: Instant) -> bool {
        let Some(best) = self.held().filter(|best| best.is_trusted(now)) else { return true };
        let Some(last) = self.last_full_ping else { return true };
        (best.latency > GOOD_ENOUGH || self.candidates.is_narrow(best.address))
            && now.saturating_duration_since(last) >= UPGRADE_INTERVAL
    }

    /// Gives up the direct path.
    pub(super) fn lose(&mut self, reason: Reason, now: Instant) {
        if self.best.take().is_some() {
            self.watch().reset();
            self.reset_lifetime();
            self.lost = Some(reason);
            self.tries = 0;
            self.history.note(Decision { at: now, address: None, reason });
        }
    }

    /// Lets the direct path prove itself again before it is trusted alone.
    pub(super) fn doubt(&mut self, key: &NodeKey, outbox: &mut Outbox, now: Instant) {
        if let Some(best) = self.best.as_mut().filter(|best| best.trusted_until > now) {
            // The last instant of trust is gone by.
            best.trusted_until = now.checked_sub(Duration::from_nanos(1)).unwrap_or(now);
            self.tries = 0;
            self.history.note(Decision { at: now, address: Some(best.address), reason: Reason::Doubted });
            self.refresh_second(now);
            self.ping_best(key, None, outbox, now);
            // What is dead for us is dead for the peer, too, as a rule; by this it hears of it at once.
            if let (Some(disco), Some(region)) = (self.disco, self.relay()) {
                outbox.ping(key, &disco, Destination::Relay { region, peer: *key }, None, now);
            }
            if let Some(second) = self.second() {
                self.ping_back(key, second, 0, outbox, now);
            }
        }
    }

    /// Finds out which address is the second.
    fn refresh_second(&mut self, now: Instant) {
        let Some(best) = self.held() else { return };
        let second = self.candidates.second(best.address, self.second(), WARM, now);
        self.watch().second = second;
    }

    /// Keeps the second path proved, while the best is in use.
    pub(super) fn keep_second(&mut self, key: &NodeKey, outbox: &mut Outbox, now: Instant) {
        self.refresh_second(now);
        let Some(second) = self.second() else { return };
        let is_due = |candidate: &mut Candidate| !candidate.pinged_within(WARM_INTERVAL, now);
        if self.candidates.get(second).is_some_and(is_due) {
            self.ping_back(key, second, 0, outbox, now);
        }
    }

    /// Begins the search anew: something changed by which it may succeed now.
    pub(super) fn be_eager(&mut self) {
        self.tries = 0;
    }

    /// Returns the time until the peer is looked at again, and counts the try.
    pub(super) fn pace(&mut self, now: Instant) -> Duration {
        if self.trusted(now).is_some() {
            self.tries = 0;
            return HEARTBEAT;
        }
        let pace = EAGER.get(usize::from(self.tries)).copied().unwrap_or(HEARTBEAT);
        self.tries = self.tries.saturating_add(1);
        pace
    }

    fn spacing(&self) -> Duration {
        if usize::from(self.tries) < EAGER.len() { EAGER_SPACING } else { PING_SPACING }
    }

    /// Gives up the direct path if its address is no candidate any more.
    pub(super) fn check_best(&mut self, now: Instant) {
        if self.best_address().is_some_and(|address| !self.candidates.contains(address)) {
            self.lose(Reason::Withdrawn, now);
        }
        let second = self.second().filter(|address| self.candidates.contains(*address));
        if let Some(watch) = &mut self.watch {
            watch.second = second;
        }
    }

    /// Forgets all that was proved, because the peer has another disco key.
    pub(super) fn forget(&mut self, now: Instant) {
        self.candidates.forget_learned();
        self.last_full_ping = None;
        self.punched = None;
        self.relaying.forget();
        self.lose(Reason::PeerRestarted, now);
    }

    /// Notes that a ping to `address` from `socket` was answered, and adopts it if it is now the best.
    pub(super) fn answered(&mut self, address: SocketAddr, socket: SocketId, latency: Duration, now: Instant) {
        if !self.candidates.answered(address, socket, latency, now) {
            return;
        }
        let adopt = match self.held().filter(|best| best.is_trusted(now)) {
            Some(best) if best.address == address => best.socket == socket || socket == 0,
            Some(best) => {
                let quality =
                    |address, latency| Quality { address, latency, narrow: self.candidates.is_narrow(address) };
                score::is_better(quality(address, latency), quality(best.address, best.latency))
            }
            None => true,
        };
        if adopt {
            if let Some(probing) = &mut self.lifetime {
                probing.touch(now);
            }
            let old = self.best.replace(Box::new(Best { address, socket, latency, trusted_until: now + TRUST }));
            if old.is_none_or(|old| old.address != address || old.socket != socket) {
                self.watch().reset();
                self.reset_lifetime();
                self.history.note(Decision { at: now, address: Some(address), reason: Reason::Answered });
            }
            self.watch().note_pong(now);
            self.lost = None;
        }
        self.refresh_second(now);
    }

    /// Pings candidates and returns how many.
    pub(super) fn ping_candidates(&mut self, key: &NodeKey, which: Which, outbox: &mut Outbox, now: Instant) -> usize {
        let Some(disco) = self.disco else { return 0 };
        self.last_full_ping = Some(now);
        self.candidates.expire(now);
        self.check_best(now);
        let user = match which {
            Which::Due => self.asked,
            Which::All(id) => Some(id),
        };
        let spacing = self.spacing();
        let mut count = 0;
        for candidate in self.candidates.iter_mut() {
            if which == Which::Due && candidate.pinged_within(spacing, now) {
                continue;
            }
            let to = Destination::Udp(candidate.address());
            if !candidate.may_be_pinged(now) || !self.budget.take(candidate.source(), now) {
                continue;
            }
            if !outbox.ping(key, &disco, to, user, now) {
                break;
            }
            candidate.trace().pinged = Some(now);
            if let Some(probing) = &mut self.lifetime
                && self.best.as_ref().is_some_and(|best| best.address == candidate.address())
            {
                probing.touch(now);
            }
            count += 1;
        }
        count
    }

    /// Pings the address of the direct path, outside of the budget.
    pub(super) fn ping_best(&mut self, key: &NodeKey, user: Option<PingId>, outbox: &mut Outbox, now: Instant) -> bool {
        let (Some(disco), Some(best)) = (self.disco, self.held()) else { return false };
        if let Some(candidate) = self.candidates.get(best.address) {
            candidate.trace().pinged = Some(now);
        }
        self.watch().note_ping(now);
        self.touch(best.address, now);
        let to = Destination::Udp(best.address);
        outbox.ping_from(&Sent { peer: *key, to, socket: best.socket, at: now, user, size: 0 }, &disco)
    }

    /// Pings an address from which a ping of the peer just came, from the socket to which it came.
    pub(super) fn ping_back(
        &mut self,
        key: &NodeKey,
        address: SocketAddr,
        socket: SocketId,
        outbox: &mut Outbox,
        now: Instant,
    ) {
        let (Some(disco), Some(candidate)) = (self.disco, self.candidates.get(address)) else { return };
        let sent = Sent { peer: *key, to: Destination::Udp(address), socket, at: now, user: None, size: 0 };
        let may = candidate.may_be_pinged(now) && self.budget.take(candidate.source(), now);
        if may && outbox.ping_from(&sent, &disco) {
            candidate.trace().pinged = Some(now);
            self.touch(address, now);
        }
    }

    /// Returns the present path if it differs from the last that was returned.
    pub(super) fn publish(&mut self) -> Option<Path> {
        let path = self.path();
        let told = (path.direct.map(Box::new), path.second.map(Box::new), path.relay);
        let is_new = self.published != told;
        self.published = told;
        (self.relaying.tell() || is_new).then_some(path)
    }

    fn path(&self) -> Path {
        let direct = |best: Best| Direct {
            address: best.address,
            socket: best.socket,
            trusted_until: best.trusted_until,
            largest: self.candidates.largest(best.address),
        };
        Path {
            direct: self.held().map(direct),
            peer_relay: self.relaying.path(),
            second: self.second(),
            relay: self.relay(),
        }
    }

    #[cfg(test)]
    pub(super) fn watch_timer(&self) -> Option<Instant> {
        self.watch.as_ref()?.timer
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.candidates.bytes()
            + self.watch.as_ref().map_or(0, |_| size_of::<Watch>())
            + self.history.bytes()
            + self.relaying.bytes()
    }

    pub(super) fn status(&self) -> PathStatus {
        let relayed = match () {
            () if self.disco.is_none() => Reason::NoDiscoKey,
            () if self.lost.is_some() => self.lost.unwrap_or(Reason::Lost),
            () if self.candidates.is_empty() => Reason::NoAddress,
            () if self.last_full_ping.is_none() => Reason::Untried,
            () => Reason::NoAnswer,
        };
        PathStatus {
            path: self.path(),
            latency: self.held().map(|best| best.latency),
            mtu: self.held().and_then(|best| self.candidates.mtu(best.address)),
            lifetime: self.udp_lifetime(),
            peer_relay_latency: self.relaying.latency(),
            in_use: self.heartbeat.is_some(),
            reason: if self.best.is_some() { Reason::Answered } else { relayed },
            candidates: self.candidates.status(),
            punched: self.punched.as_ref().map(|attempted| attempted.outcome),
            history: self.history.list(),
        }
    }
}
