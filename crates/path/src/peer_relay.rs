//! The relay that an ordinary node is for its peers: UDP datagrams between two clients that find no direct path.
//!
//! A client asks over DERP for an endpoint for itself and one other ([`PeerRelayServer::allocate`]). Each of the two binds its
//! side with a handshake of three messages that proves its UDP address; then whatever one sends, with the endpoint's number
//! in a Geneve header, goes to the other. The relay reads none of it. Nobody else gets a byte back, and the one answer there
//! is, the challenge, is as long as what it answers.
//!
//! Source: Tailscale `net/udprelay/server.go`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use blake2::Blake2sMac256;
use blake2::digest::{FixedOutput as _, KeyInit as _, Mac as _};
use warren_wire::disco::{self, Bind, MAX_ENDPOINTS, Message, RelayEndpoint};
use warren_wire::geneve::{Header, MAX_VNI, Protocol};
use warren_wire::key::{DiscoKey, DiscoSecret, NodeKey};
use warren_wire::nacl::{NONCE_BYTES, SharedBox};

use crate::address::{is_usable, plain};

/// How long an endpoint waits until both clients have bound it.
///
/// Source: Tailscale `net/udprelay`, `defaultBindLifetime`.
pub(crate) const BIND_LIFETIME: Duration = Duration::from_secs(30);
/// How long an endpoint lives while one of its clients is silent.
///
/// Source: Tailscale `net/udprelay`, `defaultSteadyStateLifetime`.
const STEADY_LIFETIME: Duration = Duration::from_secs(300);
/// How often it is looked which endpoints have come to their end.
const SWEEP: Duration = Duration::from_secs(30);
/// How long a challenge is taken at least; at most twice as long.
///
/// Source: Tailscale `net/udprelay`, `macSecretRotationInterval`.
const SECRET_LIFETIME: Duration = Duration::from_secs(120);
/// Most endpoints of one relay; each takes some 500 bytes.
const MAX_ALLOCATED: usize = 8192;
/// Most endpoints that one node may have asked for.
const MAX_PER_NODE: usize = 512;

/// Says why no endpoint was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AllocateError {
    /// The clients are one and the same, or have keys for which nothing can be sealed.
    #[error("the clients' keys are no good")]
    Clients,
    /// No address is known at which clients would find this relay.
    #[error("no address of this relay is known")]
    NoAddress,
    /// There are too many endpoints.
    #[error("this relay has no room for another endpoint")]
    Full,
    /// The node that asks has too many endpoints.
    #[error("the node has as many endpoints as one may have")]
    NodeFull,
}

/// What is to be done with a datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Drop,
    /// Send the very datagram to this address.
    Forward(SocketAddr),
    /// Send this to where the datagram came from. It is not longer than that.
    Answer(Vec<u8>),
}

/// A relay for peers, without I/O. Call [`Self::handle_timeout`] when [`Self::poll_timeout`] says so.
pub struct PeerRelayServer {
    secret: DiscoSecret,
    public: DiscoKey,
    seed: [u8; 32],
    start: Instant,
    /// Envelopes sealed so far.
    sealed: u64,
    /// Numbers the endpoints ever made.
    lamport_id: u64,
    next_vni: u32,
    endpoints: HashMap<u32, Endpoint>,
    /// Endpoints by their clients, the lesser key first.
    pairs: BTreeMap<[DiscoKey; 2], u32>,
    sweep_at: Option<Instant>,
}

/// A way between two clients.
struct Endpoint {
    asked_by: NodeKey,
    lamport_id: u64,
    allocated: Instant,
    legs: [Leg; 2],
}

/// One client's side.
struct Leg {
    key: DiscoKey,
    shared: SharedBox,
    /// Handshake under way; 0 if none.
    generation: u32,
    bound: Option<SocketAddr>,
    /// When it was bound or last heard.
    seen: Instant,
}

impl Endpoint {
    fn is_bound(&self) -> bool {
        self.legs.iter().all(|leg| leg.bound.is_some())
    }

    fn is_over(&self, now: Instant) -> bool {
        let since = |at| now.saturating_duration_since(at);
        if self.is_bound() {
            self.legs.iter().any(|leg| since(leg.seen) > STEADY_LIFETIME)
        } else {
            since(self.allocated) > BIND_LIFETIME
        }
    }
}

impl PeerRelayServer {
    /// Makes a relay without endpoints. `secret` and `seed` must be fresh randomness; the key is the relay's own, not that
    /// of the node.
    #[must_use]
    pub fn new(secret: DiscoSecret, seed: [u8; 32], now: Instant) -> Self {
        Self {
            public: secret.public(),
            secret,
            seed,
            start: now,
            sealed: 0,
            lamport_id: 0,
            next_vni: 1,
            endpoints: HashMap::new(),
            pairs: BTreeMap::new(),
            sweep_at: None,
        }
    }

    /// Returns how many endpoints there are, and how many of them both clients have bound.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.endpoints.len(), self.endpoints.values().filter(|endpoint| endpoint.is_bound()).count())
    }

    /// Gives two clients an endpoint: the one that they have, or a new one. `addresses` are those of this relay, best
    /// first; unusable ones, and all behind the 64th, are left out. The caller has made sure that `asked_by` may ask
    /// and is one of the clients.
    ///
    /// # Errors
    /// [`AllocateError`]. The original does not answer then.
    pub fn allocate(
        &mut self,
        asked_by: &NodeKey,
        clients: [DiscoKey; 2],
        addresses: &[SocketAddr],
        now: Instant,
    ) -> Result<RelayEndpoint, AllocateError> {
        let mut clients = clients;
        clients.sort();
        let mut usable: Vec<SocketAddr> = Vec::new();
        for address in addresses.iter().copied().map(plain).filter(|address| is_usable(*address)) {
            if usable.len() < MAX_ENDPOINTS && !usable.contains(&address) {
                usable.push(address);
            }
        }
        if usable.is_empty() {
            return Err(AllocateError::NoAddress);
        }
        let known = self.pairs.get(&clients).copied();
        let (vni, lamport_id) = match known.and_then(|vni| Some((vni, self.endpoints.get(&vni)?))) {
            Some((vni, endpoint)) if !endpoint.is_over(now) => (vni, endpoint.lamport_id),
            Some((vni, _)) => {
                self.remove(vni);
                self.add(asked_by, clients, now)?
            }
            None => self.add(asked_by, clients, now)?,
        };
        Ok(RelayEndpoint {
            server: self.public,
            clients,
            lamport_id,
            vni,
            bind_lifetime: BIND_LIFETIME,
            steady_lifetime: STEADY_LIFETIME,
            addresses: usable,
        })
    }

    fn add(&mut self, asked_by: &NodeKey, clients: [DiscoKey; 2], now: Instant) -> Result<(u32, u64), AllocateError> {
        let [one, other] = clients;
        if one == other || clients.contains(&self.public) {
            return Err(AllocateError::Clients);
        }
        if self.endpoints.len() >= MAX_ALLOCATED {
            return Err(AllocateError::Full);
        }
        if self.endpoints.values().filter(|endpoint| endpoint.asked_by == *asked_by).count() >= MAX_PER_NODE {
            return Err(AllocateError::NodeFull);
        }
        let leg = |key: DiscoKey| {
            let shared = self.secret.diffie_hellman(key.as_bytes()).ok_or(AllocateError::Clients)?;
            Ok(Leg { key, shared: SharedBox::new(&shared), generation: 0, bound: None, seen: now })
        };
        let legs = [leg(one)?, leg(other)?];
        // There are far more numbers than endpoints, so that one is free.
        while self.endpoints.contains_key(&self.next_vni) {
            self.next_vni = following(self.next_vni);
        }
        let vni = self.next_vni;
        self.next_vni = following(vni);
        self.lamport_id += 1;
        let endpoint = Endpoint { asked_by: *asked_by, lamport_id: self.lamport_id, allocated: now, legs };
        self.endpoints.insert(vni, endpoint);
        self.pairs.insert(clients, vni);
        self.sweep_at.get_or_insert(now + SWEEP);
        Ok((vni, self.lamport_id))
    }

    fn remove(&mut self, vni: u32) {
        if let Some(endpoint) = self.endpoints.remove(&vni) {
            self.pairs.remove(&endpoint.legs.map(|leg| leg.key));
        }
    }

    /// Says what becomes of a datagram that came from `from` to this relay's port.
    pub fn handle(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> Verdict {
        let Some((header, payload)) = Header::decode(datagram) else { return Verdict::Drop };
        let Some(endpoint) = self.endpoints.get_mut(&header.vni) else { return Verdict::Drop };
        let from = plain(from);
        if header.control {
            return match header.protocol {
                Protocol::Disco => self.handle_control(header.vni, from, payload, now),
                Protocol::WireGuard => Verdict::Drop,
            };
        }
        let [one, other] = &mut endpoint.legs;
        let (Some(first), Some(second)) = (one.bound, other.bound) else { return Verdict::Drop };
        let (leg, to) = match () {
            () if from == first => (one, second),
            () if from == second => (other, first),
            () => return Verdict::Drop,
        };
        leg.seen = now;
        Verdict::Forward(to)
    }

    /// A client binds its side.
    fn handle_control(&mut self, vni: u32, from: SocketAddr, envelope: &[u8], now: Instant) -> Verdict {
        let Some(sender) = disco::peek(envelope) else { return Verdict::Drop };
        let Some(endpoint) = self.endpoints.get(&vni) else { return Verdict::Drop };
        let [one, other] = &endpoint.legs;
        let (at, leg, remote) = match () {
            () if one.key == sender => (0, one, other.key),
            () if other.key == sender => (1, other, one.key),
            () => return Verdict::Drop,
        };
        if endpoint.is_over(now) {
            return Verdict::Drop;
        }
        let Ok(message) = disco::open(&leg.shared, envelope) else { return Verdict::Drop };
        let is_right = |bind: &Bind| bind.vni == vni && bind.generation != 0 && bind.remote_key == remote;
        let answer = match message {
            Message::BindEndpoint(bind) if is_right(&bind) => {
                let challenge = self.challenge(&bind, from, self.period(now));
                Some(Bind { challenge, ..bind })
            }
            Message::BindAnswer(bind) if is_right(&bind) && bind.generation == leg.generation => {
                let period = self.period(now);
                let is_ours = |period: u64| self.challenge(&bind, from, period) == bind.challenge;
                if !(is_ours(period) || period.checked_sub(1).is_some_and(is_ours)) {
                    return Verdict::Drop;
                }
                None
            }
            Message::Ping(_)
            | Message::Pong(_)
            | Message::CallMeMaybe(_)
            | Message::BindEndpoint(_)
            | Message::BindChallenge(_)
            | Message::BindAnswer(_)
            | Message::CallMeMaybeVia(_)
            | Message::AllocateRequest(_)
            | Message::AllocateResponse { .. }
            | Message::Punch(_)
            | _ => return Verdict::Drop,
        };
        let nonce = self.nonce();
        let public = self.public;
        let Some(leg) = self.endpoints.get_mut(&vni).and_then(|endpoint| endpoint.legs.get_mut(at)) else {
            return Verdict::Drop;
        };
        match answer {
            Some(challenge) => {
                leg.generation = challenge.generation;
                let sealed = disco::seal(&leg.shared, &public, &nonce, &Message::BindChallenge(challenge));
                Verdict::Answer(Header { control: true, protocol: Protocol::Disco, vni }.wrap(&sealed))
            }
            None => {
                leg.generation = 0;
                leg.bound = Some(from);
                leg.seen = now;
                Verdict::Drop
            }
        }
    }

    /// Counts the times of secrets.
    fn period(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs() / SECRET_LIFETIME.as_secs()
    }

    /// Returns what proves an address in one period. It follows from the message and the address, so that nothing has to be
    /// kept for it.
    fn challenge(&self, bind: &Bind, from: SocketAddr, period: u64) -> [u8; 32] {
        let ip = match from {
            SocketAddr::V4(from) => from.ip().to_ipv6_mapped(),
            SocketAddr::V6(from) => *from.ip(),
        };
        self.mac(&[
            b"challenge",
            &period.to_be_bytes(),
            &bind.vni.to_be_bytes(),
            &bind.generation.to_be_bytes(),
            bind.remote_key.as_bytes(),
            &ip.octets(),
            &from.port().to_be_bytes(),
        ])
    }

    /// Returns a nonce that was not used yet.
    fn nonce(&mut self) -> [u8; NONCE_BYTES] {
        self.sealed += 1;
        let mac = self.mac(&[b"nonce", &self.sealed.to_be_bytes()]);
        mac.first_chunk().copied().unwrap_or_default()
    }

    fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut state = Blake2sMac256::new(&self.seed.into());
        parts.iter().for_each(|part| state.update(part));
        state.finalize_fixed().into()
    }

    /// Frees the endpoints that have come to their end by `now`, if it is time to look.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.sweep_at.is_none_or(|at| at > now) {
            return;
        }
        let over: Vec<u32> =
            self.endpoints.iter().filter(|(_, endpoint)| endpoint.is_over(now)).map(|(vni, _)| *vni).collect();
        over.into_iter().for_each(|vni| self.remove(vni));
        self.sweep_at = (!self.endpoints.is_empty()).then(|| now + SWEEP);
    }

    /// Returns when to call [`Self::handle_timeout`] next; never while there are no endpoints.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.sweep_at
    }
}

/// Returns the number after `vni`.
fn following(vni: u32) -> u32 {
    if vni >= MAX_VNI { 1 } else { vni + 1 }
}

impl fmt::Debug for PeerRelayServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerRelayServer")
            .field("key", &self.public)
            .field("endpoints", &self.endpoints.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
