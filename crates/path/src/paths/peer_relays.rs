//! Paths over peer relays: other nodes that pass UDP datagrams on, for those that find no direct path.
//!
//! While packets go to a peer and no direct path is found, the nodes that serve as relays are asked over DERP for an
//! endpoint. Its address is bound by a handshake, the peer is told to do the same, and pings through it prove the path.
//! From then on it is kept like a direct one: pinged while it is used, and trusted for a while after each pong. A direct
//! path that is trusted is always preferred, and looked for all the time.
//!
//! Source: Tailscale `wgengine/magicsock/relaymanager.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_wire::control::RegionId;
use warren_wire::disco::{self, AllocateRequest, Bind, Message, RelayEndpoint};
use warren_wire::geneve::{Header, MAX_VNI, Protocol};
use warren_wire::key::{DiscoKey, NodeKey};
use warren_wire::nacl::SharedBox;

use super::Paths;
use super::outbox::Timer;
use super::output::{Destination, Event, PingId};
use super::peer::TRUST;
use super::pings::{Sent, Source};
use super::score::{self, Quality};
use super::status::{Decision, Reason};
use super::watch::{Act, Watch};
use crate::address::{is_answerable, is_usable, plain};
use crate::peer_relay::BIND_LIFETIME;

/// Least time between two rounds of asking for one peer.
///
/// Source: Tailscale `wgengine/magicsock`, `discoverUDPRelayPathsInterval`.
const ASK_INTERVAL: Duration = Duration::from_secs(30);
/// The same while a path over a peer relay is trusted.
///
/// Source: Tailscale `wgengine/magicsock`, `upgradeUDPRelayInterval`.
const UPGRADE_INTERVAL: Duration = Duration::from_secs(60);
/// When an unanswered request is repeated, once, and when it is given up.
///
/// Source: Tailscale `net/udprelay/endpoint`, `ServerRetryAfter`; `allocateUDPRelayEndpointRequestTimeout`.
const REQUEST: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(10));
/// How often handshakes and requests are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often a bind message is sent to each address.
const BIND_ROUNDS: u8 = 3;
/// Most pings of one handshake: the peer may bind much later than we.
///
/// Source: Tailscale `relaymanager.go`, `limitPings`.
const MAX_PINGS: u8 = 10;
/// Most relays that are asked in one round.
const MAX_SERVERS: usize = 16;
/// Most addresses of one relay that are tried.
const MAX_ADDRESSES: usize = 16;
/// Most handshakes for one peer at the same time.
const MAX_HANDSHAKES: usize = 16;

/// An endpoint of a peer relay, at the address that answers; its text is that of the official commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerRelay {
    /// The relay's address.
    pub address: SocketAddr,
    /// The endpoint's number at the relay.
    pub vni: u32,
}

impl PeerRelay {
    /// Returns the header in front of what goes to the peer.
    #[must_use]
    pub fn header(&self, protocol: Protocol) -> Header {
        Header { control: false, protocol, vni: self.vni }
    }
}

impl fmt::Display for PeerRelay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:vni:{}", self.address, self.vni)
    }
}

/// A path over a peer relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerRelayed {
    /// Where packets go.
    pub to: PeerRelay,
    /// Last instant at which the path alone suffices.
    pub trusted_until: Instant,
}

/// What a peer may have to do with peer relays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerRelayRoles {
    /// Both it and this node know paths over peer relays and may use them.
    pub client: bool,
    /// It may be asked for endpoints.
    pub server: bool,
}

/// A request for an endpoint of this node's relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// The peer that asks, and the region by which it did; this node itself without.
    pub asked_by: Option<(RegionId, NodeKey)>,
    /// The clients; who asks is one of them.
    pub clients: [DiscoKey; 2],
    /// Names the request.
    pub generation: u32,
}

/// What this node is busy with on peer relays.
#[derive(Debug, Default)]
pub(super) struct Client {
    servers: BTreeSet<NodeKey>,
    /// This node serves, too, and may use itself.
    serves: bool,
    /// By peer, only while there is some.
    work: BTreeMap<NodeKey, Work>,
    /// Of the last request or handshake.
    generation: u32,
}

#[derive(Debug)]
struct Work {
    requests: Vec<Request>,
    handshakes: Vec<Handshake>,
    /// When it is looked at; its timer is set.
    timer: Instant,
}

/// An endpoint was asked for.
#[derive(Debug)]
struct Request {
    /// Of whom; this node itself without.
    server: Option<NodeKey>,
    generation: u32,
    at: Instant,
    repeated: bool,
}

/// An address is being bound.
struct Handshake {
    server: DiscoKey,
    shared: SharedBox,
    vni: u32,
    lamport_id: u64,
    generation: u32,
    addresses: Vec<SocketAddr>,
    /// The first challenge, and where it came from: nothing else is answered.
    challenge: Option<(SocketAddr, [u8; 32])>,
    rounds: u8,
    pings: u8,
    until: Instant,
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake").field("server", &self.server).field("vni", &self.vni).finish_non_exhaustive()
    }
}

impl Client {
    /// Returns the next number of requests and handshakes; never 0.
    fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.generation
    }
}

/// A peer's path over a peer relay.
#[derive(Debug, Default)]
pub(super) struct Relaying {
    pub(super) roles: PeerRelayRoles,
    /// Boxed, since few peers have one.
    state: Option<Box<State>>,
}

#[derive(Debug, Default)]
struct State {
    best: Option<Best>,
    /// When relays were last asked.
    asked: Option<Instant>,
    /// What was published.
    told: Option<PeerRelayed>,
    /// What was sent and heard on the path.
    watch: Watch,
}

#[derive(Debug, Clone, Copy)]
struct Best {
    to: PeerRelay,
    server: DiscoKey,
    latency: Duration,
    trusted_until: Instant,
}

impl Relaying {
    fn best(&self) -> Option<&Best> {
        self.state.as_ref()?.best.as_ref()
    }

    /// Returns the latency of the path if it is trusted.
    fn trusted_latency(&self, now: Instant) -> Option<Duration> {
        self.best().filter(|best| now <= best.trusted_until).map(|best| best.latency)
    }

    /// Returns what was sent and heard on the path if it is trusted.
    pub(super) fn trusted_watch(&mut self, now: Instant) -> Option<&mut Watch> {
        let is_trusted = self.is_trusted(now);
        self.state.as_mut().filter(|_| is_trusted).map(|state| &mut state.watch)
    }

    /// Notes that data came over an endpoint.
    pub(super) fn note_data(&mut self, from: PeerRelay, now: Instant) {
        if self.path().is_some_and(|path| path.to == from)
            && let Some(watch) = self.trusted_watch(now)
        {
            watch.note_data(now);
        }
    }

    /// Lets the path prove itself again before it is trusted alone; tells whether it was trusted.
    fn doubt(&mut self, now: Instant) -> bool {
        let best = self.state.as_mut().and_then(|state| state.best.as_mut());
        let Some(best) = best.filter(|best| best.trusted_until > now) else { return false };
        // The last instant of trust is gone by.
        best.trusted_until = now.checked_sub(Duration::from_nanos(1)).unwrap_or(now);
        true
    }

    /// Returns when the path is looked at, if it is.
    pub(super) fn timer(&self) -> Option<Instant> {
        self.state.as_ref()?.watch.timer
    }

    /// Returns the path, trusted or not.
    pub(super) fn path(&self) -> Option<PeerRelayed> {
        self.best().map(|best| PeerRelayed { to: best.to, trusted_until: best.trusted_until })
    }

    /// Tells whether the path is another than was last told.
    pub(super) fn tell(&mut self) -> bool {
        let path = self.path();
        self.state.as_mut().is_some_and(|state| std::mem::replace(&mut state.told, path) != path)
    }

    pub(super) fn latency(&self) -> Option<Duration> {
        self.best().map(|best| best.latency)
    }

    pub(super) fn is_trusted(&self, now: Instant) -> bool {
        self.best().is_some_and(|best| now <= best.trusted_until)
    }

    /// Forgets the path; true if there was one.
    pub(super) fn lose(&mut self) -> bool {
        self.state.as_mut().is_some_and(|state| state.best.take().is_some())
    }

    /// Forgets the path if it is not trusted any more.
    pub(super) fn lose_lapsed(&mut self, now: Instant) {
        if let Some(state) = &mut self.state {
            state.best.take_if(|best| now > best.trusted_until);
        }
    }

    /// Forgets all that was found out.
    pub(super) fn forget(&mut self) {
        if let Some(state) = &mut self.state {
            (state.best, state.asked) = (None, None);
        }
    }

    /// Gives back memory when the peer comes to rest.
    pub(super) fn rest(&mut self, now: Instant) {
        let is_spent = |state: &mut Box<State>| {
            let recent = state.asked.is_some_and(|at| now.saturating_duration_since(at) < ASK_INTERVAL);
            state.best.is_none() && state.told.is_none() && !recent && state.watch.timer.is_none()
        };
        self.state.take_if(is_spent);
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.state.as_ref().map_or(0, |_| size_of::<State>())
    }

    fn is_due(&self, now: Instant) -> bool {
        let interval = if self.is_trusted(now) { UPGRADE_INTERVAL } else { ASK_INTERVAL };
        let asked = self.state.as_ref().and_then(|state| state.asked);
        asked.is_none_or(|at| now.saturating_duration_since(at) >= interval)
    }

    fn note_asked(&mut self, now: Instant) {
        self.state.get_or_insert_default().asked = Some(now);
    }

    /// Adopts a path that was just answered if it is the best now; tells whether it is another than before.
    fn answered(&mut self, to: PeerRelay, server: Option<DiscoKey>, latency: Duration, now: Instant) -> bool {
        let trusted_until = now + TRUST;
        let state = self.state.get_or_insert_default();
        if let Some(best) = state.best.as_mut().filter(|best| best.to == to) {
            (best.latency, best.trusted_until) = (latency, trusted_until);
            state.watch.note_pong(now);
            return false;
        }
        let Some(server) = server else { return false };
        let quality = |address, latency| Quality { address, latency, narrow: false };
        let is_worse = |best: &Best| {
            now <= best.trusted_until
                // A relay knows one address of each client: the last that was bound.
                && best.server != server
                && !score::is_better(quality(to.address, latency), quality(best.to.address, best.latency))
        };
        if state.best.as_ref().is_some_and(is_worse) {
            return false;
        }
        state.best = Some(Best { to, server, latency, trusted_until });
        state.watch.reset();
        state.watch.note_pong(now);
        true
    }
}

impl Paths {
    /// Says what a peer may have to do with peer relays; nothing at first.
    pub fn set_peer_relay_roles(&mut self, key: &NodeKey, roles: PeerRelayRoles) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        peer.relaying.roles = roles;
        if !roles.client && peer.relaying.lose() {
            self.publish(key);
        }
        if !roles.client {
            self.forget_relay_work(key);
        }
        if roles.server {
            self.relays.servers.insert(*key);
        } else {
            self.relays.servers.remove(key);
        }
    }

    /// Says whether this node serves as a peer relay and may be its own client.
    pub fn set_own_peer_relay(&mut self, serves: bool) {
        self.relays.serves = serves;
    }

    /// Handles a disco datagram behind a Geneve header that came from a peer relay.
    pub fn handle_peer_relayed(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) {
        let Some((header, envelope)) = Header::decode(datagram) else { return };
        if header.protocol != Protocol::Disco || !is_answerable(from) {
            return;
        }
        let relay = PeerRelay { address: plain(from), vni: header.vni };
        if header.control {
            self.handle_challenge(relay, envelope, now);
            return;
        }
        match self.outbox.keys.open(envelope) {
            Some((sender, Message::Ping(ping))) => self.handle_relayed_ping(&sender, &ping, relay, now),
            Some((sender, Message::Pong(pong))) => {
                self.handle_pong(&sender, &pong, super::Via::PeerRelay(relay), now);
            }
            // Everything else goes over DERP.
            Some(_) | None => {}
        }
    }

    /// Answers an [`Event::AllocationWanted`]; one that may not be served is left unanswered.
    pub fn answer_allocation(&mut self, allocation: &Allocation, endpoint: RelayEndpoint, now: Instant) {
        let generation = allocation.generation;
        match allocation.asked_by {
            None => self.handle_allocated(None, generation, endpoint, now),
            Some((region, peer)) => {
                let Some(disco) = self.peers.get(&peer).and_then(|peer| peer.disco) else { return };
                let message = Message::AllocateResponse { generation, endpoint };
                self.outbox.send(Destination::Relay { region, peer }, &disco, &message);
            }
        }
    }

    /// Asks the relays for endpoints if the peer is in need of one.
    pub(super) fn maybe_ask_relays(&mut self, key: &NodeKey, now: Instant) {
        if self.relays.servers.is_empty() && !self.relays.serves {
            return;
        }
        let Some(peer) = self.peers.get_mut(key) else { return };
        let Some(disco) = peer.disco.filter(|_| peer.relaying.roles.client && peer.relay().is_some()) else { return };
        if peer.trusted(now).is_some() || !peer.has_searched_a_while() || !peer.relaying.is_due(now) {
            return;
        }
        peer.relaying.note_asked(now);
        let mut servers: Vec<Option<NodeKey>> = self.relays.servers.iter().copied().map(Some).collect();
        // Of very many, some others each time.
        let count = u64::try_from(servers.len()).unwrap_or(u64::MAX).max(1);
        let start = usize::try_from(self.outbox.random() % count).unwrap_or(0);
        servers.rotate_left(start);
        if self.relays.serves {
            servers.insert(0, None);
        }
        servers.truncate(MAX_SERVERS);
        for server in servers {
            let generation = self.relays.next_generation();
            if self.request(server, &disco, generation) {
                let request = Request { server, generation, at: now, repeated: false };
                self.relay_work(key, now).requests.push(request);
            }
        }
    }

    /// Sends one request; false if the relay cannot be asked.
    fn request(&mut self, server: Option<NodeKey>, disco: &DiscoKey, generation: u32) -> bool {
        let mut clients = [self.disco_key(), *disco];
        clients.sort();
        let Some(server) = server else {
            self.events.push_back(Event::AllocationWanted(Allocation { asked_by: None, clients, generation }));
            return true;
        };
        let Some((to, region)) = self.peers.get(&server).and_then(|peer| peer.disco.zip(peer.relay())) else {
            return false;
        };
        let message = Message::AllocateRequest(AllocateRequest { clients, generation });
        self.outbox.send(Destination::Relay { region, peer: server }, &to, &message)
    }

    /// Returns what is under way for a peer, after setting its timer.
    fn relay_work(&mut self, key: &NodeKey, now: Instant) -> &mut Work {
        self.relays.work.entry(*key).or_insert_with(|| {
            let timer = now + TICK;
            self.outbox.timers.insert((timer, Timer::PeerRelay(*key)));
            Work { requests: Vec::new(), handshakes: Vec::new(), timer }
        })
    }

    /// Gives up what is under way for a peer.
    pub(super) fn forget_relay_work(&mut self, key: &NodeKey) {
        if let Some(work) = self.relays.work.remove(key) {
            self.outbox.timers.remove(&(work.timer, Timer::PeerRelay(*key)));
        }
    }

    /// Forgets a peer; its timers are gone.
    pub(super) fn forget_relay_peer(&mut self, key: &NodeKey) {
        self.forget_relay_work(key);
        self.relays.servers.remove(key);
    }

    /// A peer asks for an endpoint of ours.
    pub(super) fn handle_request(
        &mut self,
        region: RegionId,
        from: &NodeKey,
        sender: &DiscoKey,
        request: AllocateRequest,
    ) {
        let AllocateRequest { clients, generation } = request;
        if clients.contains(sender) {
            let asked_by = Some((region, *from));
            self.events.push_back(Event::AllocationWanted(Allocation { asked_by, clients, generation }));
        }
    }

    /// A relay has given us an endpoint that we asked for.
    pub(super) fn handle_allocated(
        &mut self,
        server: Option<NodeKey>,
        generation: u32,
        endpoint: RelayEndpoint,
        now: Instant,
    ) {
        let is_it = |request: &Request| request.server == server && request.generation == generation;
        let of = |(key, work): (&NodeKey, &mut Work)| {
            let at = work.requests.iter().position(is_it)?;
            work.requests.remove(at);
            Some(*key)
        };
        let Some(key) = self.relays.work.iter_mut().find_map(of) else { return };
        if !self.is_for(&key, &endpoint) {
            return;
        }
        if let Some((disco, region)) = self.peers.get(&key).and_then(|peer| peer.disco.zip(peer.relay())) {
            let to = Destination::Relay { region, peer: key };
            self.outbox.send(to, &disco, &Message::CallMeMaybeVia(endpoint.clone()));
        }
        self.begin_handshake(&key, endpoint, now);
    }

    /// A peer has an endpoint for us both.
    pub(super) fn handle_call_via(&mut self, from: &NodeKey, endpoint: RelayEndpoint, now: Instant) {
        let is_client = self.peers.get(from).is_some_and(|peer| peer.relaying.roles.client);
        if is_client && self.is_for(from, &endpoint) {
            self.begin_handshake(from, endpoint, now);
        }
    }

    /// Tells whether an endpoint is for this node and a peer.
    fn is_for(&self, key: &NodeKey, endpoint: &RelayEndpoint) -> bool {
        let Some(disco) = self.peers.get(key).and_then(|peer| peer.disco) else { return false };
        let own = self.disco_key();
        endpoint.clients == [own, disco] || endpoint.clients == [disco, own]
    }

    fn begin_handshake(&mut self, key: &NodeKey, endpoint: RelayEndpoint, now: Instant) {
        let RelayEndpoint { server, lamport_id, vni, bind_lifetime, addresses, .. } = endpoint;
        if !(1..=MAX_VNI).contains(&vni) || server == self.disco_key() {
            return;
        }
        let Some(peer) = self.peers.get(key) else { return };
        // A handshake may come from another address of ours, and what is on its way to the present one be lost.
        let is_present = |best: &Best| best.server == server && best.to.vni == vni && now <= best.trusted_until;
        if peer.relaying.best().is_some_and(is_present) {
            return;
        }
        let mut usable: Vec<SocketAddr> = Vec::new();
        for address in addresses.into_iter().map(plain).filter(|address| is_usable(*address)) {
            if usable.len() < MAX_ADDRESSES && !usable.contains(&address) {
                usable.push(address);
            }
        }
        let Some(shared) = self.outbox.keys.shared_with(&server).filter(|_| !usable.is_empty()) else { return };
        let generation = self.relays.next_generation();
        let handshakes = &mut self.relay_work(key, now).handshakes;
        if let Some(at) = handshakes.iter().position(|one| one.server == server) {
            if handshakes.get(at).is_some_and(|one| one.lamport_id >= lamport_id) {
                return;
            }
            handshakes.remove(at);
        }
        if handshakes.len() >= MAX_HANDSHAKES {
            return;
        }
        handshakes.push(Handshake {
            server,
            shared,
            vni,
            lamport_id,
            generation,
            addresses: usable,
            challenge: None,
            rounds: 0,
            pings: 0,
            until: now + bind_lifetime.min(BIND_LIFETIME),
        });
        self.advance_handshakes(key, Some(server), now);
    }

    /// Sends what is next in the handshakes for a peer: of one relay, or of all.
    fn advance_handshakes(&mut self, key: &NodeKey, only: Option<DiscoKey>, now: Instant) {
        let Some(work) = self.relays.work.get_mut(key) else { return };
        let Some(peer) = self.peers.get_mut(key) else { return };
        let Some(disco) = peer.disco else { return };
        for shake in work.handshakes.iter_mut().filter(|shake| only.is_none_or(|only| only == shake.server)) {
            let (vni, generation) = (shake.vni, shake.generation);
            let bind = |challenge| Bind { vni, generation, remote_key: disco, challenge };
            match shake.challenge {
                None if shake.rounds < BIND_ROUNDS => {
                    shake.rounds += 1;
                    for address in &shake.addresses {
                        // The addresses are what others say: as few packets go there as to candidates.
                        if peer.take_ping(Source::Named, now) {
                            let to = PeerRelay { address: *address, vni };
                            self.outbox.send_control(to, &shake.shared, &Message::BindEndpoint(bind([0; 32])));
                        }
                    }
                }
                None => {}
                Some((address, challenge)) if shake.pings < MAX_PINGS => {
                    shake.pings += 1;
                    let to = PeerRelay { address, vni };
                    // Again each time, as either may have been lost; to the relay, the second is nothing.
                    self.outbox.send_control(to, &shake.shared, &Message::BindAnswer(bind(challenge)));
                    let to = Destination::PeerRelay(to);
                    self.outbox
                        .ping_from(&Sent { peer: *key, to, socket: 0, at: now, user: peer.asked, size: 0 }, &disco);
                }
                Some(_) => {}
            }
        }
    }

    /// A relay wants our address to be proved.
    fn handle_challenge(&mut self, relay: PeerRelay, envelope: &[u8], now: Instant) {
        let Some(server) = disco::peek(envelope) else { return };
        let is_it = |shake: &&mut Handshake| shake.server == server && shake.vni == relay.vni;
        for (key, work) in &mut self.relays.work {
            let Some(shake) = work.handshakes.iter_mut().find(is_it) else { continue };
            let disco = self.peers.get(key).and_then(|peer| peer.disco);
            let Ok(Message::BindChallenge(bind)) = disco::open(&shake.shared, envelope) else { continue };
            let is_right = bind.vni == shake.vni && bind.generation == shake.generation;
            if shake.challenge.is_some() || !is_right || Some(bind.remote_key) != disco {
                continue;
            }
            shake.challenge = Some((relay.address, bind.challenge));
            let key = *key;
            self.advance_handshakes(&key, Some(server), now);
            return;
        }
    }

    fn handle_relayed_ping(&mut self, sender: &DiscoKey, ping: &disco::Ping, relay: PeerRelay, now: Instant) {
        let pong = Message::Pong(disco::Pong { id: ping.id, source: relay.address });
        self.outbox.send(Destination::PeerRelay(relay), sender, &pong);
        let Some(key) = self.pinger(sender, ping) else { return };
        // The peer has bound its side: the ping that we sent before was lost, and the next will not be.
        let is_it = |shake: &&Handshake| {
            shake.vni == relay.vni && shake.challenge.is_some_and(|(address, _)| address == relay.address)
        };
        let work = self.relays.work.get(&key);
        if let Some(server) = work.and_then(|work| work.handshakes.iter().find(is_it)).map(|shake| shake.server) {
            self.advance_handshakes(&key, Some(server), now);
        }
    }

    /// A ping through a relay was answered.
    pub(super) fn relay_answered(&mut self, key: &NodeKey, relay: PeerRelay, latency: Duration, now: Instant) {
        let is_it = |shake: &Handshake| {
            shake.vni == relay.vni && shake.challenge.is_some_and(|(address, _)| address == relay.address)
        };
        let work = self.relays.work.get_mut(key);
        let server = work.and_then(|work| {
            let at = work.handshakes.iter().position(is_it)?;
            Some(work.handshakes.remove(at).server)
        });
        let Some(peer) = self.peers.get_mut(key).filter(|peer| peer.relaying.roles.client) else { return };
        if peer.relaying.answered(relay, server, latency, now) {
            peer.note(Decision { at: now, address: Some(relay.address), reason: Reason::RelayAnswered });
        }
    }

    /// Pings the peer over its peer relay; false if it has none.
    pub(super) fn ping_relay(&mut self, key: &NodeKey, user: Option<PingId>, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(key) else { return false };
        let Some((disco, path)) = peer.disco.zip(peer.relaying.path()) else { return false };
        if let Some(watch) = peer.relaying.trusted_watch(now) {
            watch.note_ping(now);
        }
        self.outbox.ping(key, &disco, Destination::PeerRelay(path.to), user, now)
    }

    /// Schedules the look at a path over a peer relay that may be dead.
    pub(super) fn settle_relay(&mut self, key: &NodeKey, now: Instant) {
        let Some(peer) = self.peers.get_mut(key).filter(|peer| peer.trusted(now).is_none()) else { return };
        let Some(latency) = peer.relaying.trusted_latency(now) else { return };
        let Some(watch) = peer.relaying.trusted_watch(now) else { return };
        let Some(at) = watch.due(latency).filter(|at| watch.timer.is_none_or(|timer| timer > *at)) else { return };
        if let Some(old) = watch.timer.replace(at) {
            self.outbox.timers.remove(&(old, Timer::RelayWatch(*key)));
        }
        self.outbox.timers.insert((at, Timer::RelayWatch(*key)));
    }

    /// Looks whether the path over a peer relay brought what it should have.
    pub(super) fn watch_relay(&mut self, key: &NodeKey, now: Instant) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        if let Some(state) = &mut peer.relaying.state {
            state.watch.timer = None;
        }
        let is_direct = peer.trusted(now).is_some();
        let Some(latency) = peer.relaying.trusted_latency(now).filter(|_| !is_direct) else { return };
        match peer.relaying.trusted_watch(now).map(|watch| watch.act(latency, now)) {
            None | Some(Act::Nothing) => {}
            Some(Act::Ping) => drop(self.ping_relay(key, None, now)),
            Some(Act::Doubt) => self.doubt_relay(key, now),
        }
        self.settle_relay(key, now);
        self.publish(key);
    }

    /// Doubts a path over a peer relay that has been silent, since the peer seems to have given it up: it sends over the
    /// other relay.
    pub(super) fn heed_relay_hint(&mut self, key: &NodeKey, now: Instant) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        let is_used = peer.is_in_use(now) && peer.trusted(now).is_none();
        if is_used && peer.relaying.trusted_watch(now).is_some_and(|watch| watch.heeds_hint(now)) {
            self.doubt_relay(key, now);
            self.publish(key);
        }
    }

    /// Lets packets go over the other relay, too, until the peer relay is proved again.
    fn doubt_relay(&mut self, key: &NodeKey, now: Instant) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        let address = peer.relaying.path().map(|path| path.to.address);
        if !peer.relaying.doubt(now) {
            return;
        }
        peer.note(Decision { at: now, address, reason: Reason::RelayDoubted });
        // What is dead for us is dead for the peer, too, as a rule; by this it hears of it at once.
        if let (Some(disco), Some(region)) = (peer.disco, peer.relay()) {
            self.outbox.ping(key, &disco, Destination::Relay { region, peer: *key }, None, now);
        }
        self.ping_relay(key, None, now);
    }

    /// A ping over a relay was not answered.
    pub(super) fn relay_silent(&mut self, key: &NodeKey, relay: PeerRelay, now: Instant) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        let is_it = peer.relaying.path().is_some_and(|path| path.to == relay);
        if is_it && !peer.relaying.is_trusted(now) {
            peer.relaying.lose();
            peer.note(Decision { at: now, address: None, reason: Reason::RelayLost });
            self.publish(key);
        }
    }

    /// Looks at requests and handshakes for a peer.
    pub(super) fn relay_tick(&mut self, key: &NodeKey, now: Instant) {
        let Some(mut work) = self.relays.work.remove(key) else { return };
        let disco = self.peers.get(key).and_then(|peer| peer.disco);
        let age = |at: Instant| now.saturating_duration_since(at);
        work.requests.retain(|request| age(request.at) < REQUEST.1);
        work.handshakes.retain(|shake| now < shake.until);
        for request in work.requests.iter_mut().filter(|one| !one.repeated && age(one.at) >= REQUEST.0) {
            request.repeated = true;
            if let Some(disco) = disco {
                self.request(request.server, &disco, request.generation);
            }
        }
        if work.requests.is_empty() && work.handshakes.is_empty() {
            return;
        }
        work.timer = now + TICK;
        self.outbox.timers.insert((work.timer, Timer::PeerRelay(*key)));
        self.relays.work.insert(*key, work);
        self.advance_handshakes(key, None, now);
    }
}

#[cfg(test)]
mod tests;
