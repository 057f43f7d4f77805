//! What a stranger may use before it is known who they are: connections, bytes and time.
//!
//! The Noise handshake accepts any machine key, so everything that this server offers is reachable by strangers; a
//! connection stops being a stranger's when a node that the server registered has used it.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Longest head of a request outside Noise, and longest header list of one inside.
pub(crate) const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Most header fields of a request outside Noise.
pub(crate) const MAX_HEADER_FIELDS: usize = 64;

/// Longest body of a request. Source: control.md §2.7.
pub(crate) const MAX_BODY_BYTES: usize = 1024 * 1024;

/// How long a TLS handshake may take.
pub(crate) const TLS_DEADLINE: Duration = Duration::from_secs(10);

/// How long the head of a request may take; also how long a connection may stay idle between two requests.
pub(crate) const HEAD_DEADLINE: Duration = Duration::from_secs(15);

/// How long the body of a request may take.
pub(crate) const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// How long a connection outside Noise may live in all, whatever it does, unless it is upgraded.
pub(crate) const HTTP_LIFETIME: Duration = Duration::from_secs(120);

/// How long a stranger's connection inside Noise may stay without a request under way.
pub(crate) const STRANGER_IDLE: Duration = Duration::from_secs(60);

/// How many connections there may be at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Of all kinds.
    pub total: usize,
    /// Of strangers.
    pub strangers: usize,
    /// Of strangers from one source: an IPv4 address, or an IPv6 prefix of 64 bits. Loopback is exempt.
    pub per_source: usize,
    /// Of one registered machine, and of one node at the relay, so that no member of a network can shut out the others.
    pub per_key: usize,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self { total: 32_768, strangers: 4_096, per_source: 512, per_key: 64 }
    }
}

/// Counts connections and decides whether one more may come in.
#[derive(Debug)]
pub(crate) struct Gate {
    limits: ConnectionLimits,
    slots: Arc<Semaphore>,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    strangers: usize,
    by_source: HashMap<IpAddr, usize>,
    by_key: HashMap<[u8; 32], usize>,
}

impl Gate {
    pub(crate) fn new(limits: ConnectionLimits) -> Arc<Self> {
        let limits = ConnectionLimits { total: limits.total.min(Semaphore::MAX_PERMITS), ..limits };
        Arc::new(Self { limits, slots: Arc::new(Semaphore::new(limits.total)), counts: Mutex::default() })
    }

    /// Admits a connection, or returns `None` if a limit is reached. `source` is `None` while it is not known, which is
    /// so behind a listed proxy until a request has been read; see [`Pass::attribute`].
    pub(crate) fn admit(self: &Arc<Self>, source: Option<IpAddr>) -> Option<Pass> {
        let slot = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        let source = source.map(prefix);
        let mut counts = self.counts();
        if counts.strangers >= self.limits.strangers {
            return None;
        }
        if let Some(source) = source {
            counts.add_source(source, self.limits.per_source)?;
        }
        counts.strangers += 1;
        drop(counts);
        Some(Pass { gate: Arc::clone(self), _slot: slot, state: Mutex::new(Standing::Stranger(source)) })
    }

    /// Waits until all connections are gone.
    pub(crate) async fn drained(&self) {
        let all = u32::try_from(self.limits.total).unwrap_or(u32::MAX);
        drop(self.slots.acquire_many(all).await);
    }

    /// Returns how many connections are open.
    pub(crate) fn open(&self) -> usize {
        self.limits.total.saturating_sub(self.slots.available_permits())
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn add_source(&mut self, source: IpAddr, limit: usize) -> Option<()> {
        if source.is_loopback() {
            return Some(());
        }
        add(&mut self.by_source, source, limit)
    }

    fn forget(&mut self, standing: Standing) {
        match standing {
            Standing::Stranger(source) => {
                self.strangers = self.strangers.saturating_sub(1);
                if let Some(source) = source {
                    subtract(&mut self.by_source, &source);
                }
            }
            Standing::Known(key) => subtract(&mut self.by_key, &key),
        }
    }
}

/// Counts one more, unless that is too many.
fn add<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: K, limit: usize) -> Option<()> {
    let count = counts.get(&key).copied().unwrap_or_default();
    (count < limit).then(|| {
        counts.insert(key, count + 1);
    })
}

/// Counts one less; what is at nothing leaves no trace.
fn subtract<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// Is a connection's place; it is given back on drop.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Arc<Gate>,
    _slot: OwnedSemaphorePermit,
    state: Mutex<Standing>,
}

#[derive(Debug, Clone, Copy)]
enum Standing {
    Stranger(Option<IpAddr>),
    Known([u8; 32]),
}

impl Pass {
    /// Says which source a connection of unknown source has. Returns false if that source has too many already.
    pub(crate) fn attribute(&self, source: IpAddr) -> bool {
        let mut state = self.state();
        if !matches!(*state, Standing::Stranger(None)) {
            return true;
        }
        let source = prefix(source);
        if self.gate.counts().add_source(source, self.gate.limits.per_source).is_none() {
            return false;
        }
        *state = Standing::Stranger(Some(source));
        true
    }

    /// Says that a registered machine or node, named by its key, has used this connection: it counts no longer as a
    /// stranger's. Returns false, and changes nothing, if that key has too many already.
    pub(crate) fn identify(&self, key: [u8; 32]) -> bool {
        let mut state = self.state();
        if matches!(*state, Standing::Known(_)) {
            return true;
        }
        let mut counts = self.gate.counts();
        if add(&mut counts.by_key, key, self.gate.limits.per_key).is_none() {
            return false;
        }
        counts.forget(std::mem::replace(&mut *state, Standing::Known(key)));
        true
    }

    /// Returns whether a registered machine or node has used this connection.
    pub(crate) fn is_identified(&self) -> bool {
        matches!(*self.state(), Standing::Known(_))
    }

    fn state(&self) -> MutexGuard<'_, Standing> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let standing = *self.state();
        self.gate.counts().forget(standing);
    }
}

/// Returns what counts as one source: an IPv4 address, or the first 64 bits of an IPv6 address.
pub(crate) fn prefix(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(Ipv6Addr::LOCALHOST) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

/// Is the memory that all request bodies together may use.
#[derive(Debug, Clone)]
pub(crate) struct BodyBudget {
    kibibytes: Arc<Semaphore>,
}

/// Says why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the request's body is longer than {MAX_BODY_BYTES} bytes")]
    TooLong,
    #[error("the request's body took longer than {} seconds", BODY_DEADLINE.as_secs())]
    TooSlow,
    #[error("the connection broke within the request's body")]
    Broken,
    #[error("too many requests at once")]
    Busy,
}

impl BodyBudget {
    /// Allows `kibibytes` KiB at a time.
    pub(crate) fn new(kibibytes: usize) -> Self {
        Self { kibibytes: Arc::new(Semaphore::new(kibibytes)) }
    }

    /// Reads a body to its end, within [`MAX_BODY_BYTES`] and [`BODY_DEADLINE`].
    ///
    /// # Errors
    /// If a limit is passed or the connection breaks.
    pub(crate) async fn read<B>(&self, body: B) -> Result<Vec<u8>, BodyError>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        tokio::time::timeout(BODY_DEADLINE, self.collect(body)).await.unwrap_or(Err(BodyError::TooSlow))
    }

    async fn collect<B>(&self, mut body: B) -> Result<Vec<u8>, BodyError>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
            return Err(BodyError::TooLong);
        }
        let mut bytes = Vec::new();
        let mut permits: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else { continue };
            if data.len() > MAX_BODY_BYTES - bytes.len() {
                return Err(BodyError::TooLong);
            }
            let needed = (bytes.len() + data.len()).div_ceil(1024);
            let held = permits.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            let more = u32::try_from(needed.saturating_sub(held)).map_err(|_| BodyError::TooLong)?;
            let more = Arc::clone(&self.kibibytes).try_acquire_many_owned(more).map_err(|_| BodyError::Busy)?;
            match &mut permits {
                Some(permits) => permits.merge(more),
                None => permits = Some(more),
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;

    use super::*;

    const LIMITS: ConnectionLimits = ConnectionLimits { total: 5, strangers: 4, per_source: 2, per_key: 2 };

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn one_source_cannot_take_all_places() {
        let gate = Gate::new(LIMITS);
        let held = [gate.admit(ip("192.0.2.1")).unwrap(), gate.admit(ip("::ffff:192.0.2.1")).unwrap()];
        assert!(gate.admit(ip("192.0.2.1")).is_none());
        let other = gate.admit(ip("192.0.2.2"));
        assert!(other.is_some());
        assert_eq!(gate.open(), 3);
        drop(held);
        assert!(gate.admit(ip("192.0.2.1")).is_some());
    }

    #[test]
    fn an_ipv6_source_is_its_64_bit_prefix() {
        let gate = Gate::new(LIMITS);
        let _held = [gate.admit(ip("2001:db8::1")).unwrap(), gate.admit(ip("2001:db8::2")).unwrap()];
        assert!(gate.admit(ip("2001:db8:0:0:ffff::3")).is_none());
        assert!(gate.admit(ip("2001:db8:0:1::3")).is_some());
    }

    #[test]
    fn known_nodes_leave_the_places_of_strangers() {
        let gate = Gate::new(LIMITS);
        let held: Vec<Pass> = (1..=4).map(|host| gate.admit(ip(&format!("192.0.2.{host}"))).unwrap()).collect();
        assert!(gate.admit(ip("192.0.2.9")).is_none(), "four strangers are the limit");
        assert!(!held[0].is_identified());
        assert!(held[0].identify([1; 32]) && held[0].identify([1; 32]));
        assert!(held[0].is_identified());
        let fifth = gate.admit(ip("192.0.2.9")).unwrap();
        assert!(held[1].identify([2; 32]));
        assert!(gate.admit(ip("192.0.2.10")).is_none(), "five in all are the limit");
        drop(fifth);
        assert!(gate.admit(ip("192.0.2.10")).is_some());
    }

    #[test]
    fn a_refused_connection_leaves_no_trace() {
        let gate = Gate::new(LIMITS);
        for _ in 0..10 {
            let held = [gate.admit(ip("192.0.2.1")).unwrap(), gate.admit(ip("192.0.2.1")).unwrap()];
            assert!(gate.admit(ip("192.0.2.1")).is_none());
            drop(held);
        }
        assert_eq!(gate.open(), 0);
        let counts = gate.counts();
        assert!(counts.by_source.is_empty() && counts.by_key.is_empty() && counts.strangers == 0);
    }

    #[test]
    fn one_member_cannot_take_all_places() {
        let gate = Gate::new(LIMITS);
        let held: Vec<Pass> = (1..=3).map(|host| gate.admit(ip(&format!("192.0.2.{host}"))).unwrap()).collect();
        assert!(held[0].identify([1; 32]) && held[1].identify([1; 32]));
        assert!(!held[2].identify([1; 32]) && !held[2].is_identified());
        assert!(held[2].identify([2; 32]));
        drop(held);
        assert!(gate.admit(ip("192.0.2.1")).unwrap().identify([1; 32]));
        assert!(gate.counts().by_key.is_empty());
    }

    #[test]
    fn a_proxied_connection_is_counted_when_its_source_is_known() {
        let gate = Gate::new(LIMITS);
        let held: Vec<Pass> = (0..3).map(|_| gate.admit(None).unwrap()).collect();
        let source = "192.0.2.1".parse().unwrap();
        assert!(held[0].attribute(source) && held[1].attribute(source));
        assert!(!held[2].attribute(source));
        assert!(held[0].attribute("192.0.2.7".parse().unwrap()), "a source is given once");
    }

    #[tokio::test]
    async fn a_body_of_the_limit_is_read_and_one_more_byte_is_not() {
        let budget = BodyBudget::new(2048);
        let body = Full::new(Bytes::from(vec![7; MAX_BODY_BYTES]));
        assert_eq!(budget.read(body).await.map(|bytes| bytes.len()), Ok(MAX_BODY_BYTES));
        let body = Full::new(Bytes::from(vec![7; MAX_BODY_BYTES + 1]));
        assert_eq!(budget.read(body).await, Err(BodyError::TooLong));
        let chunks = (0..=16).map(|_| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![7; MAX_BODY_BYTES / 16]))));
        assert_eq!(budget.read(StreamBody::new(stream::iter(chunks))).await, Err(BodyError::TooLong));
        assert_eq!(budget.kibibytes.available_permits(), 2048);
    }

    #[tokio::test]
    async fn all_bodies_together_stay_within_the_budget() {
        let budget = BodyBudget::new(10);
        assert_eq!(budget.read(Full::new(Bytes::from(vec![7; 10 * 1024]))).await.map(|b| b.len()), Ok(10 * 1024));
        assert_eq!(budget.read(Full::new(Bytes::from(vec![7; 10 * 1024 + 1]))).await, Err(BodyError::Busy));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_body_is_cut() {
        let budget = BodyBudget::new(10);
        let body = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
        assert_eq!(budget.read(body).await, Err(BodyError::TooSlow));
    }
}
