//! Answers what it knows, asks others for the rest.
//!
//! # Contract
//! After each `handle_*` the caller drains [`Resolver::poll_output`], and calls [`Resolver::handle_timeout`] when
//! [`Resolver::poll_timeout`] says. An attempt that was asked for with [`Output::Ask`] ends with [`Output::Close`], or when the
//! caller says that it failed; until then every datagram that comes is handed in, since others may have sent it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::cache::{Cache, Hit, Key};
use crate::query::{Query, QueryError, SERVFAIL};
use crate::reply::{Reply, ReplyError};
use crate::zone::{Verdict, Zone};

/// Most questions for which others are being asked; further ones are dropped.
///
/// Source: Tailscale `net/dns/resolver`, `maxActiveQueries`.
pub const MAX_PENDING: usize = 256;
/// Most askers that wait for the same question.
const MAX_WAITING: usize = 32;
/// How long is waited for one upstream before the next is asked, too.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a question is pursued. Programs give up after 5 s and ask again, which joins the one under way.
///
/// Source: Tailscale `net/dns/resolver`, `dnsQueryTimeout`.
const DEADLINE: Duration = Duration::from_secs(10);
/// When an old reply is given while upstreams are silent. Source: RFC 8767, section 5.
const STALE_AFTER: Duration = Duration::from_millis(1_800);
/// What an old reply says of how long it holds, in seconds. Source: RFC 8767, section 4.
const STALE_TTL_SECONDS: u32 = 30;
/// How long an upstream that failed is asked only after the others.
const AVOIDED: Duration = Duration::from_secs(30);
/// How often each upstream is asked at most.
const ROUNDS: usize = 2;
/// Longest answer over TCP, in bytes.
const TCP_BYTES_MAX: usize = 65_535;

/// Names whoever asked, in the caller's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// Names one exchange with an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(u64);

/// Says how messages travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A stream; the caller adds and takes off the two bytes of length.
    Tcp,
}

/// Says what the caller must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Give this answer.
    Answer {
        /// To whom.
        client: ClientId,
        /// Whole message.
        message: Vec<u8>,
    },
    /// Ask an upstream, from a socket of its own that hears nobody else.
    Ask {
        /// Name of the exchange.
        attempt: AttemptId,
        /// Whom.
        upstream: SocketAddr,
        /// How.
        transport: Transport,
        /// Whole message.
        message: Vec<u8>,
    },
    /// The exchange is over.
    Close(AttemptId),
}

/// Counts what became of queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Queries that came, sound or not.
    pub queries: u64,
    /// Answered for the tailnet.
    pub local: u64,
    /// Answered from memory in time.
    pub cached: u64,
    /// Answered from memory after its time.
    pub stale: u64,
    /// Answered by an upstream.
    pub forwarded: u64,
    /// Answered with a failure.
    pub failed: u64,
    /// Not answered: malformed, or too many.
    pub dropped: u64,
    /// Messages at an upstream's socket that answer nothing: lies, or late.
    pub foreign: u64,
}

/// Answers names of the tailnet itself and forwards others.
#[derive(Debug)]
pub struct Resolver {
    zone: Zone,
    cache: Cache,
    pending: BTreeMap<u64, Pending>,
    by_key: HashMap<Key, u64>,
    attempts: BTreeMap<AttemptId, u64>,
    /// Until when an upstream is avoided; only those of the zone.
    avoided: HashMap<SocketAddr, Instant>,
    outputs: VecDeque<Output>,
    next: u64,
    rng: StdRng,
    counters: Counters,
}

/// A question for which others are asked.
#[derive(Debug)]
struct Pending {
    key: Key,
    query: Query,
    upstreams: Vec<SocketAddr>,
    /// How many were asked.
    asked: usize,
    waiting: Vec<Waiting>,
    attempts: Vec<Attempt>,
    next_at: Option<Instant>,
    stale_at: Option<Instant>,
    deadline: Instant,
    /// The last reply that was no answer.
    soft: Option<Reply>,
}

#[derive(Debug)]
struct Waiting {
    client: ClientId,
    query: Query,
    limit: usize,
}

#[derive(Debug, Clone, Copy)]
struct Attempt {
    id: AttemptId,
    upstream: SocketAddr,
    transport: Transport,
    wire_id: u16,
}

impl Pending {
    fn timeout(&self) -> Instant {
        [self.next_at, self.stale_at].into_iter().flatten().fold(self.deadline, Instant::min)
    }
}

impl Resolver {
    /// Makes a resolver that knows no names. `seed` must be random and secret: it makes the numbers by which replies are known.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            zone: Zone::default(),
            cache: Cache::default(),
            pending: BTreeMap::new(),
            by_key: HashMap::new(),
            attempts: BTreeMap::new(),
            avoided: HashMap::new(),
            outputs: VecDeque::new(),
            next: 0,
            rng: StdRng::from_seed(seed),
            counters: Counters::default(),
        }
    }

    /// Takes over names and upstreams. If others are asked than before, what they said is forgotten.
    pub fn set_zone(&mut self, zone: Zone) {
        if !self.zone.forwards_like(&zone) {
            self.cache.clear();
            let known: std::collections::HashSet<&SocketAddr> = zone.upstreams().collect();
            self.avoided.retain(|upstream, _| known.contains(upstream));
            // Whoever is asked now may not be asked any more; askers ask again.
            for pending in std::mem::take(&mut self.pending).into_values() {
                pending.attempts.iter().for_each(|attempt| self.outputs.push_back(Output::Close(attempt.id)));
            }
            self.by_key.clear();
            self.attempts.clear();
        }
        self.zone = zone;
    }

    /// Returns the counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Returns how many questions others are being asked.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Takes a message of a program.
    pub fn handle_query(&mut self, client: ClientId, transport: Transport, message: &[u8], now: Instant) {
        self.counters.queries += 1;
        let query = match Query::decode(message) {
            Ok(query) => query,
            Err(QueryError::Ignore) => {
                self.counters.dropped += 1;
                return;
            }
            Err(QueryError::Answer(message)) => {
                self.counters.failed += 1;
                self.outputs.push_back(Output::Answer { client, message });
                return;
            }
        };
        let limit = match transport {
            Transport::Udp => query.udp_limit(),
            Transport::Tcp => TCP_BYTES_MAX,
        };
        let upstreams = match self.zone.answer(&query, limit) {
            Verdict::Answer(message) => {
                self.counters.local += 1;
                self.outputs.push_back(Output::Answer { client, message });
                return;
            }
            Verdict::Forward(upstreams) => upstreams.to_vec(),
        };
        self.forward(Waiting { client, query, limit }, upstreams, now);
    }

    fn forward(&mut self, waiting: Waiting, upstreams: Vec<SocketAddr>, now: Instant) {
        let key = Key::of(&waiting.query);
        let mut hit = self.cache.get(&key, now);
        if let Some(fresh) = hit.take_if(|hit| !hit.stale) {
            self.counters.cached += 1;
            self.tell(&waiting, &fresh);
            return;
        }
        if let Some(pending) = self.by_key.get(&key).and_then(|id| self.pending.get_mut(id)) {
            if pending.waiting.len() < MAX_WAITING {
                pending.waiting.push(waiting);
            } else {
                self.counters.dropped += 1;
            }
            return;
        }
        let (good, bad): (Vec<_>, Vec<_>) =
            upstreams.into_iter().partition(|upstream| self.avoided.get(upstream).is_none_or(|until| now >= *until));
        let all_are_bad = good.is_empty();
        let upstreams: Vec<_> = good.into_iter().chain(bad).collect();
        if upstreams.is_empty() || self.pending.len() >= MAX_PENDING {
            match hit {
                Some(stale) => self.tell_stale(&waiting, &stale),
                None if upstreams.is_empty() => self.fail(&waiting, None),
                None => self.counters.dropped += 1,
            }
            return;
        }
        let query = waiting.query.clone();
        let waiting = match &hit {
            // Nobody has answered lately: whoever asks need not wait to hear the same.
            Some(stale) if all_are_bad => {
                self.tell_stale(&waiting, stale);
                vec![]
            }
            _ => vec![waiting],
        };
        self.next += 1;
        let id = self.next;
        self.by_key.insert(key.clone(), id);
        let pending = Pending {
            key,
            query,
            upstreams,
            asked: 0,
            waiting,
            attempts: vec![],
            next_at: None,
            stale_at: hit.map(|_| now + STALE_AFTER),
            deadline: now + DEADLINE,
            soft: None,
        };
        self.pending.insert(id, pending);
        self.ask_next(id, now);
    }

    /// Asks the next upstream, if there is one left.
    fn ask_next(&mut self, id: u64, now: Instant) {
        let Some(pending) = self.pending.get_mut(&id) else { return };
        pending.next_at = None;
        let count = pending.upstreams.len();
        if pending.asked >= count * ROUNDS {
            return;
        }
        let Some(upstream) = pending.upstreams.get(pending.asked % count.max(1)).copied() else { return };
        pending.asked += 1;
        if pending.asked < count * ROUNDS {
            // Later rounds are for what got lost: they are in less of a hurry.
            pending.next_at = Some(now + if pending.asked < count { PATIENCE } else { 2 * PATIENCE });
        }
        self.ask(id, upstream, Transport::Udp);
    }

    fn ask(&mut self, id: u64, upstream: SocketAddr, transport: Transport) {
        let Some(pending) = self.pending.get_mut(&id) else { return };
        self.next += 1;
        let attempt = Attempt { id: AttemptId(self.next), upstream, transport, wire_id: self.rng.random() };
        pending.attempts.push(attempt);
        self.attempts.insert(attempt.id, id);
        let message = pending.query.forwarded(attempt.wire_id);
        self.outputs.push_back(Output::Ask { attempt: attempt.id, upstream, transport, message });
    }

    /// Takes a message that came to the socket of an attempt.
    pub fn handle_reply(&mut self, attempt: AttemptId, message: &[u8], now: Instant) {
        let Some(id) = self.attempts.get(&attempt).copied() else { return };
        let Some(pending) = self.pending.get_mut(&id) else { return };
        let Some(asked) = pending.attempts.iter().find(|one| one.id == attempt).copied() else { return };
        match Reply::decode(message, &pending.query, asked.wire_id) {
            // Over TCP nobody else can have sent it: the upstream is broken.
            Err(ReplyError::Foreign) if asked.transport == Transport::Udp => self.counters.foreign += 1,
            Err(ReplyError::Foreign | ReplyError::Malformed) => {
                self.close(attempt);
                self.avoid(asked.upstream, now);
                self.go_on(id, now);
            }
            Ok(reply) if reply.is_truncated() => {
                pending.soft = Some(reply);
                self.close(attempt);
                if asked.transport == Transport::Udp {
                    self.ask(id, asked.upstream, Transport::Tcp);
                } else {
                    self.go_on(id, now);
                }
            }
            Ok(reply) if reply.is_answer() => {
                self.avoided.remove(&asked.upstream);
                self.finish(id, reply, now);
            }
            Ok(reply) => {
                pending.soft = Some(reply);
                self.close(attempt);
                self.go_on(id, now);
            }
        }
    }

    /// Takes it that an attempt came to nothing: nobody listens there, or the way is closed. The caller has closed it.
    pub fn handle_failure(&mut self, attempt: AttemptId, now: Instant) {
        let Some(id) = self.attempts.remove(&attempt) else { return };
        let Some(pending) = self.pending.get_mut(&id) else { return };
        if let Some(at) = pending.attempts.iter().position(|one| one.id == attempt) {
            let failed = pending.attempts.remove(at);
            self.avoid(failed.upstream, now);
        }
        self.go_on(id, now);
    }

    /// Acts on every deadline at or before `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        let due: Vec<u64> =
            self.pending.iter().filter(|(_, pending)| pending.timeout() <= now).map(|(id, _)| *id).collect();
        for id in due {
            let Some(pending) = self.pending.get_mut(&id) else { continue };
            if pending.deadline <= now {
                self.avoid_silent(id, now);
                self.give_up(id, now);
                continue;
            }
            if pending.stale_at.is_some_and(|at| at <= now) {
                pending.stale_at = None;
                let waiting = std::mem::take(&mut pending.waiting);
                let key = pending.key.clone();
                match self.cache.get(&key, now) {
                    Some(hit) => waiting.iter().for_each(|waiting| self.tell_stale(waiting, &hit)),
                    None => {
                        if let Some(pending) = self.pending.get_mut(&id) {
                            pending.waiting = waiting;
                        }
                    }
                }
            }
            if self.pending.get(&id).is_some_and(|pending| pending.next_at.is_some_and(|at| at <= now)) {
                self.avoid_silent(id, now);
                self.ask_next(id, now);
            }
        }
    }

    /// Returns when to call [`Self::handle_timeout`] next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.pending.values().map(Pending::timeout).min()
    }

    /// Returns what must be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Asks another upstream in place of one that is done; gives up if there is none and nobody can answer any more.
    fn go_on(&mut self, id: u64, now: Instant) {
        let Some(pending) = self.pending.get(&id) else { return };
        if pending.asked < pending.upstreams.len() {
            self.ask_next(id, now);
        } else if pending.attempts.is_empty() {
            self.give_up(id, now);
        }
    }

    fn close(&mut self, attempt: AttemptId) {
        if let Some(id) = self.attempts.remove(&attempt)
            && let Some(pending) = self.pending.get_mut(&id)
        {
            pending.attempts.retain(|one| one.id != attempt);
            self.outputs.push_back(Output::Close(attempt));
        }
    }

    fn avoid(&mut self, upstream: SocketAddr, now: Instant) {
        self.avoided.insert(upstream, now + AVOIDED);
    }

    /// Avoids the upstreams of a question that have not answered.
    fn avoid_silent(&mut self, id: u64, now: Instant) {
        let Some(pending) = self.pending.get(&id) else { return };
        for upstream in pending.attempts.iter().map(|attempt| attempt.upstream).collect::<Vec<_>>() {
            self.avoid(upstream, now);
        }
    }

    /// Ends a question and its attempts.
    fn take(&mut self, id: u64) -> Option<Pending> {
        let pending = self.pending.remove(&id)?;
        self.by_key.remove(&pending.key);
        for attempt in &pending.attempts {
            self.attempts.remove(&attempt.id);
            self.outputs.push_back(Output::Close(attempt.id));
        }
        Some(pending)
    }

    fn finish(&mut self, id: u64, reply: Reply, now: Instant) {
        let Some(pending) = self.take(id) else { return };
        let reply = Arc::new(reply);
        self.cache.insert(&pending.key, &reply, now);
        for waiting in &pending.waiting {
            self.counters.forwarded += 1;
            self.tell(waiting, &Hit { reply: Arc::clone(&reply), age: 0, stale: false });
        }
    }

    fn give_up(&mut self, id: u64, now: Instant) {
        let Some(pending) = self.take(id) else { return };
        let hit = self.cache.get(&pending.key, now);
        for waiting in &pending.waiting {
            match &hit {
                Some(stale) => self.tell_stale(waiting, stale),
                None => self.fail(waiting, pending.soft.as_ref()),
            }
        }
    }

    fn tell(&mut self, waiting: &Waiting, hit: &Hit) {
        let message = hit.reply.write(&waiting.query, waiting.limit, |ttl| ttl.saturating_sub(hit.age));
        self.outputs.push_back(Output::Answer { client: waiting.client, message });
    }

    fn tell_stale(&mut self, waiting: &Waiting, hit: &Hit) {
        self.counters.stale += 1;
        let message = hit.reply.write(&waiting.query, waiting.limit, |_| STALE_TTL_SECONDS);
        self.outputs.push_back(Output::Answer { client: waiting.client, message });
    }

    fn fail(&mut self, waiting: &Waiting, soft: Option<&Reply>) {
        self.counters.failed += 1;
        let message = match soft {
            Some(reply) => reply.write(&waiting.query, waiting.limit, |ttl| ttl),
            None => waiting.query.failure(SERVFAIL),
        };
        self.outputs.push_back(Output::Answer { client: waiting.client, message });
    }
}

#[cfg(test)]
mod tests;
