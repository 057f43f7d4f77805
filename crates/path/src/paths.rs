//! All peers' paths of one node.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_wire::control::RegionId;
use warren_wire::disco::{MAX_ENDPOINTS, Message, TransactionId};
use warren_wire::key::{DiscoKey, DiscoSecret, NodeKey};

use crate::address::{is_usable, plain};
use outbox::{Outbox, Timer};
use peer::{Peer, Which};

mod candidates;
mod keys;
mod lifetime;
mod mtu;
mod outbox;
mod output;
mod peer;
mod peer_relays;
mod pings;
mod punch;
mod receive;
mod score;
mod status;
mod watch;

pub use lifetime::UdpLifetime;
pub use output::{Destination, Direct, Event, Path, PingId, SocketId, Transmit, Via};
pub use peer::PeerConfig;
pub use peer_relays::{Allocation, PeerRelay, PeerRelayRoles, PeerRelayed};
pub use punch::{OwnNat, Punched};
pub use status::{CandidateStatus, Decision, Origin, PathStatus, Reason};

/// How often a peer in use is looked at.
///
/// Source: Tailscale `wgengine/magicsock`, `heartbeatInterval`.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// Age up to which own endpoints are good for a call-me-maybe: NATs forget after 30 s.
///
/// Source: Tailscale `wgengine/magicsock`, `endpointsFreshEnoughDuration`.
const ENDPOINTS_FRESH: Duration = Duration::from_secs(27);
/// Time after which own endpoints are asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Says why a ping was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PingError {
    /// Not, or no longer, a peer.
    #[error("no such peer")]
    UnknownPeer,
    /// The server told no disco key of the peer, or one that is no good.
    #[error("the peer cannot be pinged: it has no usable disco key")]
    NoDiscoKey,
    /// Neither an address nor a relay is known.
    #[error("no path to the peer is known: neither an address nor a home relay")]
    NoPath,
    /// Too many pings wait for their answers.
    #[error("too many pings at once; try again in 5 seconds")]
    Busy,
}

/// All peers' paths of one node. After each call of a method that takes `now`, and of [`Self::set_own_endpoints`],
/// drain [`Self::poll_transmit`] and [`Self::poll_event`] and look at [`Self::poll_timeout`].
///
/// A peer in use (packets were sent to it in the last 45 s) is pinged every 3 s on its direct path; without a trusted
/// direct path all its candidates are pinged, a few times within four seconds and then every 5 s, and it is asked over the
/// relay to do likewise. For a peer at
/// rest nothing is sent but answers.
pub struct Paths {
    /// Boxed, since trees have empty places.
    peers: BTreeMap<NodeKey, Box<Peer>>,
    outbox: Outbox,
    own: OwnEndpoints,
    events: VecDeque<Event>,
    punch: punch::Puncher,
    relays: peer_relays::Client,
    /// The most bytes of a datagram of the tunnel, if it is to be found out which addresses carry them.
    probes_mtu: Option<u16>,
    probes_lifetime: bool,
    /// Pings are for finding paths, not for keeping them.
    is_silent: bool,
}

/// This node's own addresses.
#[derive(Default)]
struct OwnEndpoints {
    addresses: Vec<SocketAddr>,
    measured: Option<Instant>,
    /// When something last gave reason to believe that they changed.
    suspected: Option<Instant>,
    /// When fresh ones were last asked for; until they come.
    wanted: Option<Instant>,
    /// Peers to call when they come.
    callees: BTreeSet<NodeKey>,
}

impl OwnEndpoints {
    /// Tells whether they were not measured since they were suspected to have changed.
    fn is_suspect(&self) -> bool {
        self.suspected.is_some_and(|at| self.measured.is_none_or(|measured| measured < at))
    }
}

impl Paths {
    /// Makes the paths of the node with key `node`. `seed` must be fresh randomness.
    #[must_use]
    pub fn new(disco: DiscoSecret, node: NodeKey, seed: [u8; 32]) -> Self {
        Self {
            peers: BTreeMap::new(),
            outbox: Outbox::new(disco, node, seed),
            own: OwnEndpoints::default(),
            events: VecDeque::new(),
            punch: punch::Puncher::default(),
            relays: peer_relays::Client::default(),
            probes_mtu: None,
            probes_lifetime: false,
            is_silent: false,
        }
    }

    /// Returns the public disco key, for the server.
    #[must_use]
    pub fn disco_key(&self) -> DiscoKey {
        self.outbox.keys.public()
    }

    /// Returns the disco key of a peer, as the server last told it.
    #[must_use]
    pub fn disco_key_of(&self, peer: &NodeKey) -> Option<DiscoKey> {
        self.peers.get(peer)?.disco
    }

    /// Returns a peer that may be at an address: one of its candidates, which proves nothing. Costs a look at all peers.
    #[must_use]
    pub fn peer_at(&self, address: SocketAddr) -> Option<NodeKey> {
        let address = plain(address);
        self.peers.iter().find(|(_, peer)| peer.candidates.contains(address)).map(|(key, _)| *key)
    }

    /// Adds a peer or changes what the server says of it. A changed disco key forgets what was proved.
    pub fn set_peer(&mut self, key: NodeKey, config: &PeerConfig, now: Instant) {
        // Our own key would make us talk to ourselves.
        let disco = config.disco.filter(|disco| !disco.is_zero() && *disco != self.disco_key());
        let peer = self.peers.entry(key).or_default();
        let mut is_restarted = false;
        if peer.disco != disco {
            if let Some(old) = peer.disco {
                self.outbox.keys.remove(&old, &key);
                self.own.callees.remove(&key);
                peer.forget(now);
                is_restarted = true;
            }
            if let Some(new) = disco {
                self.outbox.keys.insert(new, key);
            }
            peer.disco = disco;
        }
        let home = config.home.and_then(RegionId::known);
        if peer.home != home || config.endpoints.iter().any(|address| !peer.candidates.contains(plain(*address))) {
            peer.be_eager();
        }
        peer.home = home;
        peer.candidates.list(&config.endpoints, peer.best_address(), now);
        peer.check_best(now);
        if peer.is_in_use(now) && peer.trusted(now).is_none() {
            // It may be in use since before its disco key was known.
            self.search(&key, now);
            self.beat_soon(&key, now);
        }
        if is_restarted {
            self.forget_relay_work(&key);
        }
        self.publish(&key);
    }

    /// Says whether direct paths are kept without pings; not at first. Then every packet of a peer on its direct path proves
    /// that for a while, and one that is silent is looked for again only while packets are sent to the peer. Whether it died
    /// shows after 6.5 s only.
    ///
    /// Source: Tailscale `wgengine/magicsock`, `SetSilentDisco`.
    pub fn set_silent(&mut self, is_silent: bool) {
        self.is_silent = is_silent;
    }

    /// Removes a peer; no [`Event::Path`] follows.
    pub fn remove_peer(&mut self, key: &NodeKey) {
        self.forget_lifetime(key);
        let Some(mut peer) = self.peers.remove(key) else { return };
        if let Some(disco) = peer.disco {
            self.outbox.keys.remove(&disco, key);
        }
        if let Some(at) = peer.heartbeat {
            self.outbox.timers.remove(&(at, Timer::Heartbeat(*key)));
        }
        if let Some(at) = peer.watch().timer {
            self.outbox.timers.remove(&(at, Timer::Watch(*key)));
        }
        if let Some(at) = peer.relaying.timer() {
            self.outbox.timers.remove(&(at, Timer::RelayWatch(*key)));
        }
        self.own.callees.remove(key);
        self.forget_relay_peer(key);
        self.punch.hits.retain(|_, hit| hit.peer != *key);
        self.release_sockets();
    }

    /// Takes over this node's own addresses, best first, for call-me-maybe: the first 64 usable ones. `measured` is
    /// when the STUN servers were last asked, whatever they said. Peers in use to which there is no trusted direct path
    /// are called if the addresses are others than before, or were waited for.
    pub fn set_own_endpoints(&mut self, endpoints: Vec<SocketAddr>, measured: Instant, now: Instant) {
        let mut addresses = endpoints;
        addresses.iter_mut().for_each(|address| *address = plain(*address));
        addresses.retain(|address| is_usable(*address));
        addresses.truncate(MAX_ENDPOINTS);
        let have_changed = self.own.addresses.iter().ne(&addresses) && self.own.measured.is_some();
        self.own.addresses = addresses;
        self.own.measured = Some(measured);
        let mut callees = BTreeSet::new();
        if self.own.wanted.is_some_and(|wanted| measured + ENDPOINTS_FRESH >= wanted) && !self.own.is_suspect() {
            self.own.wanted = None;
            callees = std::mem::take(&mut self.own.callees);
        }
        if have_changed {
            callees.extend(self.peers.iter().filter(|(_, peer)| peer.heartbeat.is_some()).map(|(key, _)| *key));
        }
        for key in callees {
            let Some(peer) = self.peers.get_mut(&key).filter(|peer| peer.trusted(now).is_none()) else { continue };
            if have_changed && peer.is_in_use(now) {
                // Their pings meet ours.
                peer.be_eager();
                peer.ping_candidates(&key, Which::Due, &mut self.outbox, now);
                self.beat_soon(&key, now);
            }
            self.send_call(&key);
        }
    }

    /// Tells that the connection to a relay region is up after it was down: what was said over it in between is lost, so
    /// peers in use without a trusted direct path are told again that they are sought.
    pub fn handle_relay_up(&mut self, region: RegionId, now: Instant) {
        let is_waiting =
            |peer: &Peer| peer.is_in_use(now) && peer.relay() == Some(region) && peer.trusted(now).is_none();
        let keys: Vec<NodeKey> = self.peers.iter().filter(|(_, peer)| is_waiting(peer)).map(|(key, _)| *key).collect();
        for key in keys {
            let Some(peer) = self.peers.get_mut(&key) else { continue };
            // By this the peer, whose path to us has broken with ours, hears of it before data comes over the relay.
            if let Some(disco) = peer.disco.filter(|_| peer.best_address().is_some()) {
                self.outbox.ping(&key, &disco, Destination::Relay { region, peer: key }, None, now);
            }
            self.call(&key, now);
        }
    }

    /// Tells that this machine has one more address or another way out: what failed before may succeed now.
    pub fn handle_link_gained(&mut self, now: Instant) {
        self.suspect_own(now);
        let is_waiting = |peer: &Peer| peer.is_in_use(now) && peer.trusted(now).is_none();
        let keys: Vec<NodeKey> = self.peers.iter().filter(|(_, peer)| is_waiting(peer)).map(|(key, _)| *key).collect();
        for key in keys {
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.be_eager();
            }
            self.search(&key, now);
            self.beat_soon(&key, now);
        }
    }

    /// Tells that WireGuard packets were sent to a peer; workers do so at the first packet and at most ten
    /// times a second. Not every packet of a tunnel is answered; see [`Self::handle_received`].
    pub fn handle_activity(&mut self, peer: &NodeKey, now: Instant) {
        self.use_peer(peer, now);
        if let Some(peer) = self.peers.get_mut(peer) {
            if let Some(address) = peer.trusted(now) {
                peer.touch(address, now);
                peer.watch().note_sent(now);
            } else if let Some(watch) = peer.relaying.trusted_watch(now) {
                watch.note_sent(now);
            }
        }
        self.settle(peer, now);
        if self.peers.get(peer).is_some_and(|peer| peer.trusted(now).is_none()) {
            self.search(peer, now);
        }
        self.publish(peer);
    }

    /// Tells that the system refused to send to a peer's address: no route to it.
    pub fn handle_unreachable(&mut self, key: &NodeKey, to: SocketAddr, now: Instant) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        if peer.relaying.path().is_some_and(|path| path.to.address == plain(to)) {
            peer.relaying.lose();
            self.publish(key);
        }
        let Some(peer) = self.peers.get_mut(key).filter(|peer| peer.best_address() == Some(plain(to))) else { return };
        peer.lose(Reason::Unreachable, now);
        if let Some(candidate) = peer.candidates.get(plain(to)) {
            candidate.trace().latency = None;
        }
        if peer.is_in_use(now) {
            self.search(key, now);
            self.beat_soon(key, now);
        }
        self.release_sockets();
        self.publish(key);
    }

    /// Tells that this node's sockets or links changed: all that was proved is void.
    pub fn handle_rebind(&mut self, now: Instant) {
        self.own.measured = None;
        let keys: Vec<NodeKey> = self.peers.keys().copied().collect();
        self.punch.hits.clear();
        self.end_punch();
        for key in keys {
            self.forget_relay_work(&key);
            let Some(peer) = self.peers.get_mut(&key) else { continue };
            peer.candidates.forget_traces();
            peer.lose(Reason::NetworkChanged, now);
            // Relays know us by our old address.
            peer.relaying.forget();
            peer.be_eager();
            if peer.is_in_use(now) {
                self.search(&key, now);
                self.beat_soon(&key, now);
            }
            self.publish(&key);
        }
        self.release_sockets();
    }

    /// Pings a peer for a user: on the direct path if it is trusted, else everywhere and over the relay. Exactly one
    /// [`Event::Pong`] or [`Event::PingTimeout`] follows. Like a packet, it makes the peer count as in use.
    ///
    /// # Errors
    /// [`PingError`].
    pub fn ping(&mut self, key: &NodeKey, now: Instant) -> Result<PingId, PingError> {
        let peer = self.peers.get(key).ok_or(PingError::UnknownPeer)?;
        let (disco, relay) = (peer.disco.ok_or(PingError::NoDiscoKey)?, peer.relay());
        if peer.best_address().is_none() && relay.is_none() && peer.candidates.is_empty() {
            return Err(PingError::NoPath);
        }
        let id = self.outbox.pings.ask().ok_or(PingError::Busy)?;
        self.use_peer(key, now);
        let mut sent = false;
        if let Some(peer) = self.peers.get_mut(key) {
            if peer.trusted(now).is_some() {
                sent = peer.ping_best(key, Some(id), &mut self.outbox, now);
            } else if peer.relaying.is_trusted(now) {
                sent = self.ping_relay(key, Some(id), now);
                self.search(key, now);
            } else {
                if let Some(region) = relay {
                    let to = Destination::Relay { region, peer: *key };
                    sent = self.outbox.ping(key, &disco, to, Some(id), now);
                }
                if peer.ping_candidates(key, Which::All(id), &mut self.outbox, now) > 0 {
                    sent = true;
                    self.call(key, now);
                }
            }
        }
        self.publish(key);
        if sent {
            if let Some(peer) = self.peers.get_mut(key) {
                peer.asked = Some(id);
            }
            return Ok(id);
        }
        self.outbox.pings.cancel(id);
        Err(if relay.is_some() { PingError::NoDiscoKey } else { PingError::Busy })
    }

    /// Acts on every deadline at or before `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(at, timer)) = self.outbox.timers.first() {
            if at > now {
                return;
            }
            self.outbox.timers.pop_first();
            match timer {
                Timer::Heartbeat(key) => self.heartbeat(&key, now),
                Timer::Ping(id) => self.ping_timed_out(&id, now),
                Timer::Lifetime(key) => self.probe_lifetime(&key, now),
                Timer::Watch(key) => self.watch(&key, now),
                Timer::RelayWatch(key) => self.watch_relay(&key, now),
                Timer::PeerRelay(key) => self.relay_tick(&key, now),
                Timer::Punch => self.punch_on(now),
            }
        }
    }

    /// Returns when to call [`Self::handle_timeout`] next; never while all peers are idle, unless it is measured for how long
    /// their paths stay open.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.outbox.timers.first().map(|(at, _)| *at)
    }

    /// Returns the next message to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.outbox.transmits.pop_front()
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Tells whether packets were sent to any peer in the last 45 s, so that own endpoints should be kept fresh.
    #[must_use]
    pub fn in_use(&self) -> bool {
        self.outbox.timers.iter().any(|(_, timer)| matches!(timer, Timer::Heartbeat(_)))
    }

    /// Describes a peer's paths; `None` if there is no such peer.
    #[must_use]
    pub fn status(&self, peer: &NodeKey) -> Option<PathStatus> {
        self.peers.get(peer).map(|peer| peer.status())
    }

    /// Notes that the peer is in use, and starts its heartbeat.
    fn use_peer(&mut self, key: &NodeKey, now: Instant) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        peer.last_sent = Some(now);
        if self.probes_lifetime {
            peer.lifetime.get_or_insert_default();
        }
        if peer.heartbeat.is_none() {
            peer.be_eager();
            self.beat_soon(key, now);
        }
    }

    /// Schedules the next look at a peer at the pace of its search, if that is before the one that is scheduled.
    fn beat_soon(&mut self, key: &NodeKey, now: Instant) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        // Without a disco key there is nothing that a heartbeat could do.
        if peer.disco.is_none() {
            return;
        }
        let at = now + peer.pace(now);
        if peer.heartbeat.is_some_and(|scheduled| scheduled <= at) {
            return;
        }
        if let Some(old) = peer.heartbeat.replace(at) {
            self.outbox.timers.remove(&(old, Timer::Heartbeat(*key)));
        }
        self.outbox.timers.insert((at, Timer::Heartbeat(*key)));
    }

    fn heartbeat(&mut self, key: &NodeKey, now: Instant) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        peer.heartbeat = None;
        let in_use = peer.is_in_use(now);
        self.punch.forget_hits(key, in_use, now);
        if !in_use {
            peer.rest(now);
            peer.check_best(now);
            self.plan_lifetime(key, now);
            self.release_sockets();
            self.publish(key);
            return;
        }
        if self.is_silent && (peer.trusted(now).is_some() || !peer.was_used_within(HEARTBEAT, now)) {
            peer.relaying.lose_lapsed(now);
            self.beat_soon(key, now);
            self.publish(key);
            return;
        }
        peer.ping_best(key, None, &mut self.outbox, now);
        if peer.trusted(now).is_some() {
            peer.keep_second(key, &mut self.outbox, now);
            peer.relaying.lose_lapsed(now);
        } else {
            self.ping_relay(key, None, now);
        }
        let Some(peer) = self.peers.get_mut(key) else { return };
        if peer.wants_search(now) {
            self.search(key, now);
        }
        if self.peers.get(key).is_some_and(|peer| peer.trusted(now).is_none()) {
            self.maybe_punch(key, now);
            self.maybe_ask_relays(key, now);
        }
        self.release_sockets();
        self.beat_soon(key, now);
        self.settle(key, now);
        self.publish(key);
    }

    /// Schedules the look at a path that may be dead.
    fn settle(&mut self, key: &NodeKey, now: Instant) {
        self.settle_direct(key, now);
        self.settle_relay(key, now);
    }

    fn settle_direct(&mut self, key: &NodeKey, now: Instant) {
        if self.is_silent {
            return;
        }
        let Some(peer) = self.peers.get_mut(key) else { return };
        let Some(at) = peer.trusted_latency(now).and_then(|latency| peer.watch().due(latency)) else { return };
        if peer.watch().timer.is_some_and(|scheduled| scheduled <= at) {
            return;
        }
        if let Some(old) = peer.watch().timer.replace(at) {
            self.outbox.timers.remove(&(old, Timer::Watch(*key)));
        }
        self.outbox.timers.insert((at, Timer::Watch(*key)));
    }

    /// Looks whether the direct path brought what it should have.
    fn watch(&mut self, key: &NodeKey, now: Instant) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        peer.watch().timer = None;
        let Some(latency) = peer.trusted_latency(now) else { return };
        match peer.watch().act(latency, now) {
            watch::Act::Nothing => {}
            watch::Act::Ping => drop(peer.ping_best(key, None, &mut self.outbox, now)),
            watch::Act::Doubt => {
                peer.doubt(key, &mut self.outbox, now);
                let is_in_use = peer.is_in_use(now);
                self.suspect_own(now);
                if is_in_use {
                    self.search(key, now);
                    self.beat_soon(key, now);
                }
            }
        }
        self.settle(key, now);
        self.publish(key);
    }

    fn ping_timed_out(&mut self, id: &TransactionId, now: Instant) {
        let Some((sent, failed)) = self.outbox.pings.expire(id) else { return };
        if let Some(id) = failed {
            self.events.push_back(Event::PingTimeout { id });
            self.forget_asked(&sent.peer, id);
        }
        let address = match sent.to {
            Destination::Udp(address) => address,
            Destination::PeerRelay(relay) => {
                self.relay_silent(&sent.peer, relay, now);
                return;
            }
            Destination::Relay { .. } => return,
        };
        // What is too large for an address says nothing against it.
        if sent.size > 0 {
            self.miss_mtu(&sent, address, now);
            return;
        }
        self.learn_lifetime(&sent, false, now);
        let Some(peer) = self.peers.get_mut(&sent.peer) else { return };
        if peer.best_address() == Some(address) && peer.trusted(now).is_none() {
            peer.lose(Reason::Lost, now);
            self.release_sockets();
            let Some(peer) = self.peers.get_mut(&sent.peer) else { return };
            if peer.is_in_use(now) {
                self.beat_soon(&sent.peer, now);
            }
            self.publish(&sent.peer);
        }
    }

    fn forget_asked(&mut self, key: &NodeKey, id: PingId) {
        if let Some(peer) = self.peers.get_mut(key).filter(|peer| peer.asked == Some(id)) {
            peer.asked = None;
        }
    }

    /// Looks for a direct path: pings the candidates that are due, and if there are any, asks the peer to do likewise.
    fn search(&mut self, key: &NodeKey, now: Instant) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        if let (Some(id), Some(disco), Some(region)) = (peer.asked, peer.disco, peer.relay()) {
            self.outbox.ping(key, &disco, Destination::Relay { region, peer: *key }, Some(id), now);
            self.ping_relay(key, Some(id), now);
        }
        let Some(peer) = self.peers.get_mut(key) else { return };
        if peer.ping_candidates(key, Which::Due, &mut self.outbox, now) > 0 {
            self.call(key, now);
        }
    }

    /// Asks a peer to ping us, now or as soon as our own addresses are fresh: the peer's firewall opens by its pings,
    /// so the addresses must hold.
    fn call(&mut self, key: &NodeKey, now: Instant) {
        let is_fresh = |at: Instant| now.saturating_duration_since(at) <= ENDPOINTS_FRESH;
        if self.peers.get(key).is_none_or(|peer| peer.relay().is_none()) {
            return;
        }
        if self.own.measured.is_some_and(is_fresh) {
            self.send_call(key);
            if !self.own.is_suspect() {
                // Without UDP nobody can say where we are seen, and nobody gets through to tell us that UDP passes again.
                let is_blind = self.punch.nat.udp == Some(false);
                if is_blind && self.own.measured.is_some_and(|at| now.saturating_duration_since(at) >= ASK_AGAIN) {
                    self.want_endpoints(now);
                }
                return;
            }
        }
        self.own.callees.insert(*key);
        self.want_endpoints(now);
    }

    /// Asks for fresh own endpoints, unless that was done a moment ago.
    fn want_endpoints(&mut self, now: Instant) {
        if self.own.wanted.is_none_or(|at| now.saturating_duration_since(at) >= ASK_AGAIN) {
            self.own.wanted = Some(now);
            self.events.push_back(Event::EndpointsWanted);
        }
    }

    /// Has own addresses measured again before they are relied on: it may be our NAT that has changed. Once in 10 s.
    fn suspect_own(&mut self, now: Instant) {
        if self.own.suspected.is_none_or(|at| now.saturating_duration_since(at) >= ASK_AGAIN) {
            self.own.suspected = Some(now);
            // The measurement that was asked for may have begun before.
            self.own.wanted = None;
        }
    }

    fn send_call(&mut self, key: &NodeKey) {
        let Some((disco, region)) = self.peers.get(key).and_then(|peer| peer.disco.zip(peer.relay())) else { return };
        let message = Message::CallMeMaybe(self.own.addresses.clone());
        self.outbox.send(Destination::Relay { region, peer: *key }, &disco, &message);
    }

    fn publish(&mut self, key: &NodeKey) {
        if let Some(path) = self.peers.get_mut(key).and_then(|peer| peer.publish()) {
            self.events.push_back(Event::Path { peer: *key, path });
        }
    }
}

impl fmt::Debug for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Paths")
            .field("disco", &self.disco_key())
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
