//! Holes through NATs that give each peer its own port ("hard" ones), where the original gives up.
//!
//! Only among warren nodes: they arrange it by [`Message::Punch`] over the relay, which others drop in silence. What then
//! crosses the Internet are plain pings.
//!
//! **Hard and easy.** The hard side pings the easy side's one address from `n` sockets, so that its NAT opens `n` ports; the
//! easy side pings `k` random ports of the hard side's address. A ping that hits an open port comes in, and its answer finds
//! the way back. Of 64,512 ports, with `n` = 256, `k` pings miss all with probability `(1 - n / 64512) ^ k`:
//!
//! | n | k | success | both sides' packets | two attempts |
//! |---|---|---|---|---|
//! | 128 | 512 | 64 % | 768 | 87 % |
//! | 256 | 256 | 64 % | 768 | 87 % |
//! | **256** | **512** | **87 %** | **1,024** | **98 %** |
//! | 512 | 512 | 98 % | 1,536 | 99.97 % |
//!
//! 256 sockets are what a process may have (1,024 descriptors) without asking; the hard side sends each twice, for loss. An
//! attempt takes 3 s, 80 kB each way, and is repeated once a minute while packets flow. With a single STUN server nobody can
//! tell which side is the hard one: then the sides take turns, two attempts in a row every two minutes.
//!
//! **Hard and hard.** If both NATs draw ports at random, a mapping must meet its very counterpart: 256 sockets on both sides
//! hit with `256² / 64512² = 0.002 %`; that is hopeless, and not tried. But many such NATs count upwards. Then each side says
//! where the middle one of its next 256 mappings will be, and pings the other's from 256 sockets: one on each side has just
//! the announced port, whatever up to 127 other mappings came between. Success is nearly certain if both NATs count.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use warren_wire::disco::{Message, Punch};
use warren_wire::key::NodeKey;

use super::Paths;
use super::outbox::Timer;
use super::output::{Destination, Event, SocketId};
use super::pings::Sent;
use crate::address::is_usable;

/// Sockets of one attempt.
const FAN: u16 = 256;
/// Pings of one attempt to random ports.
const SPRAY: u16 = 512;
/// How many of them go out at once, and how often.
const SPRAY_STEP: (u16, Duration) = (32, Duration::from_millis(100));
/// How long the easy side waits until the hard side has heard of it.
const SPRAY_DELAY: Duration = Duration::from_millis(300);
/// How often the sockets are pinged from.
const FAN_ROUNDS: u8 = 2;
const FAN_INTERVAL: Duration = Duration::from_millis(1500);
/// How long an attempt may last.
const LIFETIME: Duration = Duration::from_secs(6);
/// Least time between two attempts with one peer, and until the other side has its turn.
const SPACING: Duration = Duration::from_secs(60);
const SPACING_TURN: Duration = Duration::from_secs(12);
/// How much sooner than we would the peer may ask.
const SLACK: Duration = Duration::from_secs(3);
/// Least time between two attempts.
const SPACING_ALL: Duration = Duration::from_secs(10);
/// Ports that NATs draw from.
const PORTS: (u16, u16) = (1024, 64_512);
/// Most winners that are kept.
const MAX_KEPT: usize = 8;
/// Least time between two pings with which a socket answers one that came to it: else two sides that fan out could answer each
/// other's pings with pings for as long as their pongs get lost.
const HIT_SPACING: Duration = Duration::from_secs(1);
/// How long a socket is kept after the last ping to it: two pings may find two holes, and the peer may have taken the other.
const HIT: Duration = Duration::from_secs(10);

/// What the last measurements say of this node's NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OwnNat {
    /// Whether any STUN server answered.
    pub udp: Option<bool>,
    /// Whether the NAT gives each destination its own port.
    pub hard: Option<bool>,
    /// Where IPv4 servers see this node.
    pub public: Option<SocketAddr>,
    /// The last port that a NAT gave which counts, and by how much it counts.
    pub counting: Option<(u16, u16)>,
    /// Whether the gateway maps a port for this node.
    pub mapped: bool,
}

impl OwnNat {
    /// Returns the address to tell: of one of many sockets, or of the main one.
    fn address(&self, hard: bool) -> Option<SocketAddr> {
        if hard { self.announced() } else { self.public.filter(SocketAddr::is_ipv4) }
    }

    /// Returns where the middle one of the next [`FAN`] mappings will be; port 0 if that cannot be said.
    fn announced(&self) -> Option<SocketAddr> {
        let SocketAddr::V4(public) = self.public? else { return None };
        let port = self.counting.and_then(|(last, step)| last.checked_add(step.checked_mul(FAN / 2)?)).unwrap_or(0);
        Some(SocketAddr::new(IpAddr::V4(*public.ip()), port))
    }
}

/// What came of an attempt; its text is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Punched {
    /// The peer was asked, and did not answer: it is no warren node, or an old one.
    Unanswered,
    /// The attempt runs.
    Running,
    /// Pings were sent to or from many ports, without luck.
    NoLuck,
    /// A hole was found.
    Open,
    /// Both NATs give each peer its own port, and at least one draws them at random.
    Unpredictable,
}

impl fmt::Display for Punched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unanswered => "the peer takes no part in probing ports",
            Self::Running => "many ports are being probed",
            Self::NoLuck => "many ports were probed without luck, which is tried again every minute",
            Self::Open => "a hole was found by probing many ports",
            Self::Unpredictable => "both routers give each peer its own port, at random, so that probing is hopeless",
        })
    }
}

/// The last attempt with a peer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempted {
    pub(super) at: Instant,
    pub(super) outcome: Punched,
    /// How many there were.
    count: u8,
    /// Whether this node pinged from many sockets the last time.
    fanned: bool,
}

/// The attempts of this node, one at a time.
#[derive(Debug, Default)]
pub(super) struct Puncher {
    pub(super) nat: OwnNat,
    attempt: Option<Attempt>,
    began: Option<Instant>,
    last_socket: SocketId,
    open: BTreeSet<SocketId>,
    /// Extra sockets to which a peer's ping came.
    pub(super) hits: BTreeMap<SocketId, Hit>,
}

/// What came to an extra socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hit {
    pub(super) peer: NodeKey,
    /// When the last ping came.
    at: Instant,
    /// When the last one came that was to be answered with a ping.
    asked: Instant,
}

#[derive(Debug)]
struct Attempt {
    peer: NodeKey,
    until: Instant,
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// Waits for the peer's answer, having said whether it is to be pinged from many sockets.
    Asked { hard: bool },
    /// Pings `to` from many sockets.
    Fan { to: SocketAddr, sockets: Vec<SocketId>, rounds: u8, next: Option<Instant> },
    /// Pings many ports of `to`.
    Spray { to: Ipv4Addr, first: u64, stride: u64, sent: u16, next: Option<Instant> },
}

impl Paths {
    /// Most extra sockets that are wanted at once.
    pub const MAX_SOCKETS: usize = FAN as usize + MAX_KEPT;

    /// Takes over what is known of this node's NAT.
    pub fn set_own_nat(&mut self, nat: OwnNat) {
        self.punch.nat = nat;
    }

    /// Returns what [`Self::set_own_nat`] last said.
    #[must_use]
    pub fn own_nat(&self) -> OwnNat {
        self.punch.nat
    }

    /// Tells that the sockets of the last [`Event::Sockets`] are open.
    pub fn handle_sockets(&mut self, now: Instant) {
        if let Some(Attempt { step: Step::Fan { next, rounds: FAN_ROUNDS, .. }, .. }) = &mut self.punch.attempt
            && next.is_none()
        {
            *next = Some(now);
            self.punch_on(now);
        }
    }

    /// Asks a peer to open holes together, if that is the last hope and its turn.
    pub(super) fn maybe_punch(&mut self, key: &NodeKey, now: Instant) {
        let nat = self.punch.nat;
        if nat.hard == Some(false) || nat.udp == Some(false) {
            return;
        }
        let Some(peer) = self.peers.get(key) else { return };
        // Where only one STUN server is known, nobody knows which side is the hard one: they take turns.
        let hard = nat.hard.unwrap_or(peer.punched.as_ref().is_none_or(|attempted| !attempted.fanned));
        let Some(address) = nat.address(hard) else { return };
        if !peer.has_searched()
            || peer.candidates.public_v4().next().is_none()
            || !self.may_punch(key, Duration::ZERO, now)
        {
            return;
        }
        self.begin_punch(key, Step::Asked { hard }, now);
        self.count_punch(key, hard, now);
        self.send_punch(key, Punch { answer: false, hard, address });
    }

    /// Takes over what a peer says over the relay.
    pub(super) fn handle_punch(&mut self, key: &NodeKey, punch: Punch, now: Instant) {
        let Some(peer) = self.peers.get(key) else { return };
        // The server vouches for the host: nobody can point us at another one than it is listed with.
        let IpAddr::V4(host) = punch.address.ip() else { return };
        if !peer.candidates.public_v4().any(|ip| ip == host) || !peer.is_in_use(now) || peer.trusted(now).is_some() {
            return;
        }
        let nat = self.punch.nat;
        let asked = match &self.punch.attempt {
            Some(Attempt { peer, step: Step::Asked { hard }, .. }) if peer == key => Some(*hard),
            _ => None,
        };
        let hard = if punch.answer {
            let Some(hard) = asked else { return };
            hard
        } else {
            // Both asked at the same time: the one with the lesser key goes on asking.
            let may = match asked {
                Some(_) => self.outbox.node() > key,
                None => self.may_punch(key, SLACK, now),
            };
            let hard = nat.hard.unwrap_or(!punch.hard);
            let Some(address) = nat.address(hard).filter(|_| may) else { return };
            self.send_punch(key, Punch { answer: true, hard, address });
            if asked.is_none() {
                self.count_punch(key, hard, now);
            }
            hard
        };
        match (hard, punch.hard) {
            // Each pings the port that the other announced.
            (true, true) => {
                let is_hopeful = nat.counting.is_some() && is_usable(punch.address);
                self.fan_or_give_up(key, is_hopeful.then_some(punch.address), now);
            }
            (true, false) => self.fan_or_give_up(key, Some(punch.address).filter(|to| is_usable(*to)), now),
            (false, true) => {
                // Odd and divisible by neither 3 nor 7 it shares no factor with the number of ports: each comes once.
                let stride = 11 + 42 * (self.outbox.random() % 1500);
                let first = self.outbox.random() % u64::from(PORTS.1);
                let next = Some(now + SPRAY_DELAY);
                self.begin_punch(key, Step::Spray { to: host, first, stride, sent: 0, next }, now);
            }
            // No NAT is in the way, but something else is.
            (false, false) => {
                self.end_punch();
                self.note_punched(key, Punched::NoLuck, now);
            }
        }
    }

    /// Tells whether it is time for an attempt: once a minute for each peer. Where the sides take turns, two attempts
    /// follow each other, and the pause is twice as long. `slack` is for what the peer asks: its clock is not ours.
    fn may_punch(&self, key: &NodeKey, slack: Duration, now: Instant) -> bool {
        let is_over = |at: Instant, time: Duration| now.saturating_duration_since(at) + slack >= time;
        let spacing = |attempted: Attempted| match (self.punch.nat.hard, attempted.count % 2) {
            (Some(_), _) => SPACING,
            (None, 1) => SPACING_TURN,
            (None, _) => SPACING * 2,
        };
        self.punch.attempt.is_none()
            && self.punch.began.is_none_or(|at| is_over(at, SPACING_ALL))
            && self.peers.get(key).is_some_and(|peer| {
                peer.disco.is_some()
                    && peer.relay().is_some()
                    && peer.punched.as_deref().is_none_or(|attempted| is_over(attempted.at, spacing(*attempted)))
            })
    }

    fn send_punch(&mut self, key: &NodeKey, punch: Punch) {
        let Some((disco, region)) = self.peers.get(key).and_then(|peer| peer.disco.zip(peer.relay())) else { return };
        self.outbox.send(Destination::Relay { region, peer: *key }, &disco, &Message::Punch(punch));
    }

    fn begin_punch(&mut self, key: &NodeKey, step: Step, now: Instant) {
        self.end_punch();
        self.punch.began = Some(now);
        self.punch.attempt = Some(Attempt { peer: *key, until: now + LIFETIME, step });
        self.note_punched(key, Punched::Running, now);
        self.set_punch_timer();
        self.sync_sockets();
    }

    fn note_punched(&mut self, key: &NodeKey, outcome: Punched, now: Instant) {
        if let Some(peer) = self.peers.get_mut(key) {
            let (count, fanned) = peer.punched.as_ref().map_or((0, false), |last| (last.count, last.fanned));
            peer.punched = Some(Box::new(Attempted { at: now, outcome, count, fanned }));
        }
    }

    /// Counts an attempt, in which this node has one role or the other.
    fn count_punch(&mut self, key: &NodeKey, fanned: bool, now: Instant) {
        self.note_punched(key, Punched::Running, now);
        if let Some(attempted) = self.peers.get_mut(key).and_then(|peer| peer.punched.as_mut()) {
            (attempted.count, attempted.fanned) = (attempted.count.wrapping_add(1), fanned);
        }
    }

    /// Pings the peer's address from many sockets, if it is known.
    fn fan_or_give_up(&mut self, key: &NodeKey, to: Option<SocketAddr>, now: Instant) {
        let Some(to) = to else {
            self.end_punch();
            self.punch.began = Some(now);
            self.note_punched(key, Punched::Unpredictable, now);
            return;
        };
        // The address may be one that nobody has named yet; the peer has, over the relay.
        let Some(peer) = self.peers.get_mut(key) else { return };
        if !peer.candidates.add_called(to, peer.best_address()) {
            return;
        }
        let sockets: Vec<SocketId> = (0..FAN).map(|_| self.punch.name_socket()).collect();
        self.begin_punch(key, Step::Fan { to, sockets, rounds: FAN_ROUNDS, next: None }, now);
    }

    /// Does what is due.
    pub(super) fn punch_on(&mut self, now: Instant) {
        let Some(Attempt { peer: key, until, step }) = &mut self.punch.attempt else { return };
        let (key, until) = (*key, *until);
        let peer = self.peers.get(&key);
        let disco = peer.filter(|peer| peer.trusted(now).is_none() && now < until).and_then(|peer| peer.disco);
        let Some(disco) = disco else {
            self.end_punch();
            return;
        };
        let ping = |to, socket| Sent { peer: key, to: Destination::Udp(to), socket, at: now, user: None, size: 0 };
        match step {
            Step::Fan { to, sockets, rounds, next } if next.is_some_and(|at| at <= now) => {
                *rounds -= 1;
                *next = (*rounds > 0).then(|| now + FAN_INTERVAL);
                for socket in &*sockets {
                    self.outbox.ping_from(&ping(*to, *socket), &disco);
                }
            }
            Step::Spray { to, first, stride, sent, next } if next.is_some_and(|at| at <= now) => {
                for number in *sent..(*sent + SPRAY_STEP.0).min(SPRAY) {
                    let port = (*first + *stride * u64::from(number)) % u64::from(PORTS.1) + u64::from(PORTS.0);
                    let to = SocketAddr::from((*to, u16::try_from(port).unwrap_or(u16::MAX)));
                    self.outbox.ping_from(&ping(to, 0), &disco);
                    *sent += 1;
                }
                *next = (*sent < SPRAY).then(|| now + SPRAY_STEP.1);
            }
            Step::Asked { .. } | Step::Fan { .. } | Step::Spray { .. } => {}
        }
        self.set_punch_timer();
    }

    fn set_punch_timer(&mut self) {
        self.outbox.timers.retain(|(_, timer)| *timer != Timer::Punch);
        if let Some(Attempt { until, step, .. }) = &self.punch.attempt {
            let next = match step {
                Step::Asked { .. } => None,
                Step::Fan { next, .. } | Step::Spray { next, .. } => *next,
            };
            self.outbox.timers.insert((next.unwrap_or(*until).min(*until), Timer::Punch));
        }
    }

    /// Ends the attempt; sockets that won stay.
    pub(super) fn end_punch(&mut self) {
        let Some(Attempt { peer, step, .. }) = self.punch.attempt.take() else { return };
        if let Some(peer) = self.peers.get_mut(&peer) {
            let outcome = match step {
                _ if peer.best_address().is_some() => Punched::Open,
                Step::Asked { .. } => Punched::Unanswered,
                Step::Fan { .. } | Step::Spray { .. } => Punched::NoLuck,
            };
            if let Some(attempted) = &mut peer.punched {
                attempted.outcome = outcome;
            }
        }
        self.set_punch_timer();
        self.sync_sockets();
    }

    #[cfg(test)]
    pub(super) fn is_punching(&self) -> bool {
        self.punch.attempt.is_some()
    }

    /// Says which extra sockets are wanted, if that changed.
    pub(super) fn sync_sockets(&mut self) {
        let mut wanted: BTreeSet<SocketId> =
            self.peers.values().filter_map(|peer| peer.extra_socket()).take(MAX_KEPT).collect();
        let room = MAX_KEPT.saturating_sub(wanted.len());
        let hits = self.punch.hits.keys().filter(|socket| !wanted.contains(*socket)).take(room);
        wanted.extend(hits.copied().collect::<Vec<_>>());
        if let Some(Attempt { step: Step::Fan { sockets, .. }, .. }) = &self.punch.attempt {
            wanted.extend(sockets);
        }
        if wanted != self.punch.open {
            self.punch.open.clone_from(&wanted);
            self.events.push_back(Event::Sockets { wanted: wanted.into_iter().collect() });
        }
    }

    /// Lets go of extra sockets that no direct path uses any more.
    pub(super) fn release_sockets(&mut self) {
        if !self.punch.open.is_empty() {
            self.sync_sockets();
        }
    }
}

impl Puncher {
    /// Opens an extra socket as if an attempt had wanted it.
    #[cfg(test)]
    pub(super) fn open_for_tests(&mut self) -> SocketId {
        let socket = self.name_socket();
        self.open.insert(socket);
        socket
    }

    /// Notes that a peer's ping came to an extra socket; tells whether the hole that it came by is to be proved by a ping. More
    /// holes than sockets are kept for are not.
    pub(super) fn hit(&mut self, socket: SocketId, peer: NodeKey, now: Instant) -> bool {
        if let Some(hit) = self.hits.get_mut(&socket) {
            let is_due = now.saturating_duration_since(hit.asked) >= HIT_SPACING;
            *hit = Hit { peer, at: now, asked: if is_due { now } else { hit.asked } };
            return is_due;
        }
        let has_room = self.open.contains(&socket) && self.hits.len() < MAX_KEPT;
        if has_room {
            self.hits.insert(socket, Hit { peer, at: now, asked: now });
        }
        has_room
    }

    /// Forgets the sockets that a peer does not ping any more; all, if it is at rest.
    pub(super) fn forget_hits(&mut self, peer: &NodeKey, in_use: bool, now: Instant) {
        let fresh = |at: Instant| in_use && now.saturating_duration_since(at) <= HIT;
        self.hits.retain(|_, hit| hit.peer != *peer || fresh(hit.at));
    }

    /// Returns the name of another socket: one that is not open.
    fn name_socket(&mut self) -> SocketId {
        loop {
            self.last_socket = self.last_socket.wrapping_add(1).max(1);
            // At most 264 of 65,535 are.
            if !self.open.contains(&self.last_socket) {
                return self.last_socket;
            }
        }
    }
}
