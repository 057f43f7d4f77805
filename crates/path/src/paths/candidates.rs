//! Addresses at which one peer may be.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use warren_wire::disco::TransactionId;

use super::mtu::Mtu;
use super::outbox::PING_TIMEOUT;
use super::output::SocketId;
use super::pings::Source;
use super::status::{CandidateStatus, Origin};
use crate::address::{is_usable, plain};

/// Most candidates of one peer.
pub(super) const MAX_CANDIDATES: usize = 100;
/// Most that the server may list for one peer.
const MAX_LISTED: usize = 64;
/// Most that a peer may name in one call-me-maybe.
pub(super) const MAX_CALLED: usize = 32;
/// How long an address that only traffic tells of is kept without more of it.
///
/// Source: Tailscale `wgengine/magicsock`, `sessionActiveTimeout`.
const KEEP: Duration = Duration::from_secs(45);

/// How many pings that came from an address are told apart: whoever has recorded a few gets no second answer by taking turns.
const REMEMBERED: usize = 8;
/// Pings to an address that has proved nothing: so many for each that came from it. One that comes brings 124 bytes; its pong
/// has 110, and two pings 248, so that nobody gets three times what was sent in his name. Not fewer, for the first may be lost.
///
/// Source: RFC 9000, section 8.1, allows three times as much.
const PINGS_FOR_EACH: u32 = 2;
/// And so many in all, whatever comes from it,
const PINGS_AHEAD: u32 = 4;
/// but one more for so many that came: of each, 14 bytes are left after its pong, which nine times make one ping. So all that
/// goes to such an address, ever, is what came from there and at most [`PINGS_AHEAD`] pings.
const HEARD_FOR_ONE: u32 = 9;

/// The candidates of one peer, each address once.
#[derive(Debug, Default)]
pub(super) struct Candidates(Vec<Candidate>);

/// One address.
#[derive(Debug)]
pub(super) struct Candidate {
    address: SocketAddr,
    /// The server lists it.
    listed: bool,
    /// The last call-me-maybe named it.
    called: bool,
    /// What traffic told; absent for peers at rest, which are many.
    trace: Option<Box<Trace>>,
}

/// What traffic to and from an address told.
#[derive(Debug, Default)]
pub(super) struct Trace {
    /// When a ping came from it or a ping to it was answered.
    alive: Option<Instant>,
    /// The beginnings of the last pings that came from it, the newest first. They are random: two are never equal by chance,
    /// and who makes them equal harms himself alone.
    last_pings: [Option<[u8; 4]>; REMEMBERED],
    /// When it last answered a ping, from whatever socket.
    proved: Option<Instant>,
    /// Pings that came from it, and those to it while nothing was proved, since it last answered.
    heard: u32,
    unproved: u32,
    /// When it was last pinged.
    pub(super) pinged: Option<Instant>,
    /// Time there and back of its last answer.
    pub(super) latency: Option<Duration>,
    /// When it last answered a ping from the main socket.
    answered: Option<Instant>,
    /// How large packets it carries; boxed, since that is seldom asked.
    mtu: Option<Box<Mtu>>,
}

/// What a ping from an address told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// The first sign of life from there for 45 s: whatever stood between us and it may be open now.
    Awake,
    /// Nothing new, or an address that there is no room for.
    Known,
    /// One of the pings that came before.
    Duplicate,
}

impl Trace {
    pub(super) fn mtu(&mut self) -> &mut Mtu {
        self.mtu.get_or_insert_default()
    }

    /// Notes which ping came; tells whether it had come before.
    fn note_ping(&mut self, ping: TransactionId) -> bool {
        let start = ping.first_chunk().copied();
        if self.last_pings.contains(&start) {
            return true;
        }
        self.last_pings.rotate_right(1);
        self.last_pings[0] = start;
        false
    }
}

impl Candidate {
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn trace(&mut self) -> &mut Trace {
        self.trace.get_or_insert_default()
    }

    pub(super) fn pinged_within(&self, time: Duration, now: Instant) -> bool {
        let pinged = self.trace.as_ref().and_then(|trace| trace.pinged);
        pinged.is_some_and(|at| now.saturating_duration_since(at) < time)
    }

    fn is_alive(&self, now: Instant) -> bool {
        self.last_alive().is_some_and(|at| now.saturating_duration_since(at) <= KEEP)
    }

    /// Tells whether it has answered a ping from the main socket after `time`.
    pub(super) fn has_answered_after(&self, time: Instant) -> bool {
        self.trace.as_ref().and_then(|trace| trace.answered).is_some_and(|at| at > time)
    }

    fn last_alive(&self) -> Option<Instant> {
        self.trace.as_ref().and_then(|trace| trace.alive)
    }

    /// Takes one of the pings that this address may get; false if it must send something first. Somebody may have replayed the
    /// peer's pings in the name of an address that nobody names: it gets no more than came from there, but for a few, until it
    /// answers.
    pub(super) fn may_be_pinged(&mut self, now: Instant) -> bool {
        if self.is_named() {
            return true;
        }
        let trace = self.trace();
        if trace.proved.is_some_and(|at| now.saturating_duration_since(at) <= KEEP) {
            return true;
        }
        let most = trace.heard.saturating_mul(PINGS_FOR_EACH).min(PINGS_AHEAD + trace.heard / HEARD_FOR_ONE);
        let may = trace.unproved < most;
        trace.unproved += u32::from(may);
        may
    }

    /// Tells who says that the peer may be there.
    pub(super) fn source(&self) -> Source {
        if self.is_named() { Source::Named } else { Source::Heard }
    }

    fn is_named(&self) -> bool {
        self.listed || self.called
    }

    fn status(&self) -> CandidateStatus {
        let trace = self.trace.as_deref();
        CandidateStatus {
            address: self.address,
            origin: match (self.listed, self.called) {
                (true, _) => Origin::Netmap,
                (false, true) => Origin::CallMeMaybe,
                (false, false) => Origin::Ping,
            },
            pinged: trace.and_then(|trace| trace.pinged),
            latency: trace.and_then(|trace| trace.latency),
        }
    }
}

impl Candidates {
    /// Takes over what the server lists; what it listed before and lists no more is dropped, unless the peer named it
    /// or it is alive.
    pub(super) fn list(&mut self, addresses: &[SocketAddr], keep: Option<SocketAddr>, now: Instant) {
        let addresses = clean(addresses, MAX_LISTED);
        self.0.iter_mut().for_each(|candidate| candidate.listed = addresses.contains(&candidate.address));
        self.expire(now);
        for address in addresses {
            if let Some(candidate) = self.admit(address, keep) {
                candidate.listed = true;
            }
        }
        self.0.shrink_to_fit();
    }

    /// Takes over what a call-me-maybe names, likewise, and makes every candidate due for a ping.
    pub(super) fn call(&mut self, addresses: &[SocketAddr], keep: Option<SocketAddr>, now: Instant) {
        let addresses = clean(addresses, MAX_CALLED);
        self.0.iter_mut().for_each(|candidate| candidate.called = addresses.contains(&candidate.address));
        self.expire(now);
        for address in addresses {
            if let Some(candidate) = self.admit(address, keep) {
                candidate.called = true;
            }
        }
        for trace in self.0.iter_mut().filter_map(|candidate| candidate.trace.as_mut()) {
            trace.pinged = None;
        }
    }

    /// Adds one that the peer named beside its list; false if there is no room.
    pub(super) fn add_called(&mut self, address: SocketAddr, keep: Option<SocketAddr>) -> bool {
        self.admit(address, keep).map(|candidate| candidate.called = true).is_some()
    }

    /// Notes that a ping came from a usable address.
    pub(super) fn hear(
        &mut self,
        address: SocketAddr,
        ping: TransactionId,
        keep: Option<SocketAddr>,
        now: Instant,
    ) -> Heard {
        if !self.make_room(address, keep, Some(now)) {
            return Heard::Known;
        }
        let Some(candidate) = self.admit(address, keep) else { return Heard::Known };
        let was_alive = candidate.is_alive(now);
        let trace = candidate.trace();
        trace.alive = Some(now);
        trace.heard = trace.heard.saturating_add(1);
        let is_duplicate = trace.note_ping(ping);
        match was_alive {
            false => Heard::Awake,
            true if is_duplicate => Heard::Duplicate,
            true => Heard::Known,
        }
    }

    /// Notes that a ping to an address was answered; false if it is no candidate any more.
    pub(super) fn answered(&mut self, address: SocketAddr, socket: SocketId, latency: Duration, now: Instant) -> bool {
        let Some(candidate) = self.get(address) else { return false };
        let trace = candidate.trace();
        (trace.alive, trace.proved) = (Some(now), Some(now));
        (trace.heard, trace.unproved) = (0, 0);
        if socket == 0 {
            trace.answered = Some(now);
        }
        trace.latency = Some(latency);
        true
    }

    /// Returns the candidate that is best kept warm beside `best`: one that answered within `time`, if there is one of the
    /// other family, else the nearest. The present one stays.
    pub(super) fn second(
        &self,
        best: SocketAddr,
        present: Option<SocketAddr>,
        time: Duration,
        now: Instant,
    ) -> Option<SocketAddr> {
        let answered = |candidate: &Candidate| {
            let trace = candidate.trace.as_ref()?;
            (now.saturating_duration_since(trace.answered?) <= time).then_some((candidate.address, trace.latency?))
        };
        let others = self.0.iter().filter(|candidate| candidate.address != best).filter_map(answered);
        let rank = |(address, latency): &(SocketAddr, Duration)| {
            (Some(*address) != present, address.is_ipv4() == best.is_ipv4(), *latency)
        };
        others.min_by_key(rank).map(|(address, _)| address)
    }

    /// Returns the IPv4 addresses of the Internet that the server lists: not those that only the peer itself or traffic
    /// names, which anybody's could be.
    pub(super) fn public_v4(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.0.iter().filter(|candidate| candidate.listed).filter_map(|candidate| match candidate.address.ip() {
            IpAddr::V4(ip) => (!ip.is_private() && !ip.is_loopback() && !ip.is_link_local()).then_some(ip),
            IpAddr::V6(_) => None,
        })
    }

    /// Drops what nobody names and no traffic told of for 45 s.
    pub(super) fn expire(&mut self, now: Instant) {
        self.0.retain(|candidate| candidate.is_named() || candidate.is_alive(now));
    }

    /// Forgets what traffic told of all candidates, after a change of our own network.
    pub(super) fn forget_traces(&mut self) {
        for candidate in self.0.iter_mut().filter(|candidate| candidate.is_named()) {
            candidate.trace = None;
        }
        for trace in self.0.iter_mut().filter_map(|candidate| candidate.trace.as_mut()) {
            (trace.pinged, trace.latency, trace.answered, trace.mtu) = (None, None, None, None);
        }
    }

    /// Forgets all but what the server lists.
    pub(super) fn forget_learned(&mut self) {
        self.0.retain(|candidate| candidate.listed);
        for candidate in &mut self.0 {
            candidate.called = false;
            candidate.trace = None;
        }
    }

    /// Gives back memory when the peer comes to rest.
    pub(super) fn rest(&mut self, now: Instant) {
        self.expire(now);
        for candidate in &mut self.0 {
            if !candidate.is_alive(now) {
                candidate.trace = None;
            }
        }
        self.0.shrink_to_fit();
    }

    pub(super) fn contains(&self, address: SocketAddr) -> bool {
        self.0.iter().any(|candidate| candidate.address == address)
    }

    pub(super) fn get(&mut self, address: SocketAddr) -> Option<&mut Candidate> {
        self.0.iter_mut().find(|candidate| candidate.address == address)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Candidate> {
        self.0.iter_mut()
    }

    fn known_mtu(&self, address: SocketAddr) -> Option<&Mtu> {
        let candidate = self.0.iter().find(|candidate| candidate.address == address)?;
        candidate.trace.as_ref()?.mtu.as_deref()
    }

    /// Returns the largest packet that an address is proved to carry.
    pub(super) fn mtu(&self, address: SocketAddr) -> Option<u16> {
        self.known_mtu(address)?.proven()
    }

    /// Tells whether an address is known to carry less than the tunnel needs.
    pub(super) fn is_narrow(&self, address: SocketAddr) -> bool {
        self.known_mtu(address).is_some_and(Mtu::is_narrow)
    }

    /// Returns the largest datagram that is to be sent to an address.
    pub(super) fn largest(&self, address: SocketAddr) -> u16 {
        self.known_mtu(address).map_or(u16::MAX, |mtu| mtu.largest(address))
    }

    /// Forgets how large packets the addresses carry.
    pub(super) fn forget_mtu(&mut self) {
        for trace in self.0.iter_mut().filter_map(|candidate| candidate.trace.as_mut()) {
            trace.mtu = None;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn status(&self) -> Vec<CandidateStatus> {
        self.0.iter().map(Candidate::status).collect()
    }

    /// Finds or adds a candidate.
    fn admit(&mut self, address: SocketAddr, keep: Option<SocketAddr>) -> Option<&mut Candidate> {
        if !self.make_room(address, keep, None) {
            return None;
        }
        if let Some(at) = self.0.iter().position(|candidate| candidate.address == address) {
            return self.0.get_mut(at);
        }
        self.0.push(Candidate { address, listed: false, called: false, trace: None });
        self.0.last_mut()
    }

    /// Makes room for an address, unless it is there. When there is none, the one that only traffic told of, longest ago, must
    /// go, but not `keep`; for one that only traffic tells of, too, as `heard` says when, none that a ping is under way to,
    /// whose pong would be worth nothing then: 256 sockets may ping us at once ([`super::punch`]).
    fn make_room(&mut self, address: SocketAddr, keep: Option<SocketAddr>, heard: Option<Instant>) -> bool {
        if self.0.len() < MAX_CANDIDATES || self.contains(address) {
            return true;
        }
        let is_dispensable = |candidate: &Candidate| {
            !candidate.is_named()
                && Some(candidate.address) != keep
                && heard.is_none_or(|now| !candidate.pinged_within(PING_TIMEOUT, now))
        };
        let candidates = self.0.iter().enumerate().filter(|(_, candidate)| is_dispensable(candidate));
        let longest_ago = candidates.min_by_key(|(_, candidate)| candidate.last_alive()).map(|(at, _)| at);
        longest_ago.map(|at| self.0.remove(at)).is_some()
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let traces = self.0.iter().filter(|candidate| candidate.trace.is_some()).count();
        self.0.capacity() * size_of::<Candidate>() + traces * size_of::<Trace>()
    }
}

/// Returns the usable addresses in plain form, each once, the first `max` of them.
fn clean(addresses: &[SocketAddr], max: usize) -> Vec<SocketAddr> {
    let mut clean = Vec::with_capacity(addresses.len().min(max));
    for address in addresses.iter().copied().map(plain).filter(|address| is_usable(*address)) {
        if clean.len() == max {
            break;
        }
        if !clean.contains(&address) {
            clean.push(address);
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::epoch;
    use proptest::prelude::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([203, 0, 113, last], 41641))
    }

    #[test]
    fn each_origin_has_its_own_end() {
        let start = epoch();
        let mut candidates = Candidates::default();
        candidates.list(&[address(1)], None, start);
        candidates.call(&[address(2), address(1)], None, start);
        assert_eq!(candidates.hear(address(3), [1; 12], None, start), Heard::Awake);
        let late = start + KEEP + Duration::from_millis(1);
        candidates.expire(start + KEEP);
        assert!(candidates.contains(address(3)));
        candidates.expire(late);
        assert!(!candidates.contains(address(3)), "pings age");
        candidates.expire(late + Duration::from_secs(100_000));
        assert!(candidates.contains(address(2)), "what the peer named does not age");
        candidates.call(&[], None, late);
        assert!(candidates.contains(address(1)) && !candidates.contains(address(2)));
        candidates.list(&[], None, late);
        assert!(candidates.is_empty());
    }

    #[test]
    fn address_that_answers_survives_its_listing() {
        let start = epoch();
        let mut candidates = Candidates::default();
        candidates.list(&[address(1)], None, start);
        assert!(candidates.answered(address(1), 0, Duration::from_millis(1), start));
        candidates.list(&[address(2)], None, start + Duration::from_secs(1));
        assert!(candidates.contains(address(1)));
        candidates.expire(start + KEEP * 2);
        assert!(!candidates.contains(address(1)));
    }

    #[test]
    fn repeated_ping_is_a_duplicate_only_from_the_same_address() {
        let start = epoch();
        let mut candidates = Candidates::default();
        candidates.list(&[address(1)], None, start);
        assert_eq!(candidates.hear(address(1), [1; 12], None, start), Heard::Awake);
        assert_eq!(candidates.hear(address(1), [1; 12], None, start), Heard::Duplicate);
        assert_eq!(candidates.hear(address(2), [1; 12], None, start), Heard::Awake);
        assert_eq!(candidates.hear(address(1), [2; 12], None, start), Heard::Known);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// However many addresses strangers and friends name, the list is bounded, has no doubles, and neither what
        /// the server lists nor the address in use is pushed out.
        #[test]
        fn list_is_bounded(steps in proptest::collection::vec((0_u8..3, any::<[u8; 3]>(), 0_u8..80), 1..100)) {
            let mut candidates = Candidates::default();
            let (listed, used) = (address(1), address(2));
            let mut now = epoch();
            candidates.list(&[listed], None, now);
            candidates.hear(used, [0; 12], None, now);
            for (kind, [a, b, c], count) in steps {
                let many: Vec<_> = (0..count).map(|n| SocketAddr::from(([a, b, c, n], 1))).collect();
                match kind {
                    0 => candidates.list(&[&many[..], &[listed]].concat()[many.len().saturating_sub(50)..], Some(used), now),
                    1 => candidates.call(&many, Some(used), now),
                    _ => {
                        for address in many {
                            candidates.hear(address, [a; 12], Some(used), now);
                        }
                    }
                }
                candidates.answered(used, 0, Duration::ZERO, now);
                now += Duration::from_millis(100);
                prop_assert!(candidates.0.len() <= MAX_CANDIDATES);
                let mut seen: Vec<_> = candidates.0.iter().map(|candidate| candidate.address).collect();
                seen.sort();
                seen.dedup();
                prop_assert_eq!(seen.len(), candidates.0.len());
                prop_assert!(candidates.contains(used));
                prop_assert!(candidates.contains(listed));
            }
        }
    }
}
