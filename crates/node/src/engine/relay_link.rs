//! The connection to one relay region: kept up by a task of its own until the link is dropped.

mod queue;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use warren_relay::{ClientError, ClientReader, ClientWriter, ConnectError, Received, connect};
use warren_wg::MessageType;
use warren_wire::control::{DerpRegion, RegionId};
use warren_wire::key::{NodeKey, NodeSecret};

use super::shared::{Drops, Relayed, Shared};
use queue::{Item, Queue};

pub(super) use queue::Kind;

/// Longest wait between two attempts to connect.
///
/// Source: Tailscale `wgengine/magicsock/derp.go`, the reader's backoff.
const MAX_DELAY: Duration = Duration::from_secs(5);
/// Age at which the end of a connection is no failure in a row.
const STEADY: Duration = Duration::from_secs(3);
/// Longest wait before the first attempt after the end of a connection that held: long enough that the clients of a relay that
/// died do not all knock at the same instant.
const FIRST_DELAY: Duration = Duration::from_millis(30);
/// Longest wait between two attempts while a relay restarts, as it said it would.
const RESTART_DELAY: Duration = Duration::from_millis(400);
/// How often a connection tells at most that it lives. Source: paths.md 2.3, point 6.
const ALIVE_SPACING: Duration = Duration::from_secs(5);
/// Peers that a connection remembers to have heard; beyond it, it may tell of one again.
const MAX_HEARD: usize = 4096;

/// What a connection tells.
#[derive(Debug)]
pub(super) struct LinkEvent {
    /// The region.
    pub(super) region: RegionId,
    /// Which link to the region; an event of a link that was dropped is void.
    pub(super) link: u64,
    /// What happened.
    pub(super) news: News,
}

/// What happened on a connection.
#[derive(Debug)]
pub(super) enum News {
    /// It is up, to the relay of this name.
    Up(String),
    /// It is down, and why; it will be tried again.
    Down(String),
    /// It lives.
    Alive {
        /// It does because a packet came.
        has_packet: bool,
    },
    /// Answers [`RelayLink::ping`].
    Pong([u8; 8]),
    /// A peer was heard for the first time on this connection.
    Heard(NodeKey),
    /// A peer is not there (any more).
    Gone(NodeKey),
    /// A datagram of a peer that is no WireGuard data.
    Datagram(NodeKey, Vec<u8>),
    /// The relay reports a trouble, or with an empty text its end.
    Health(String),
}

/// What all links need.
#[derive(Debug, Clone)]
pub(super) struct LinkSetup {
    pub(super) shared: Arc<Shared>,
    /// For the worker.
    pub(super) relayed: std::sync::mpsc::SyncSender<Relayed>,
    /// For the decision task. A link waits while it is full, and the relay with it.
    pub(super) events: mpsc::Sender<LinkEvent>,
    /// Number of the next link, so that late events of a dropped one are never taken for those of another.
    pub(super) next: Arc<AtomicU64>,
}

/// Is a connection to a region; dropping it closes the connection.
#[derive(Debug)]
pub(super) struct RelayLink {
    id: u64,
    definition: Arc<DerpRegion>,
    outbox: Arc<Outbox>,
    task: AbortHandle,
}

/// What waits for the connection, and a bell for it.
#[derive(Debug)]
struct Outbox {
    /// The region for the next attempt to connect.
    region: Mutex<Arc<DerpRegion>>,
    queue: Mutex<Queue>,
    bell: Notify,
    /// What the relay said of its restart; for the next attempts to connect.
    restart: Mutex<Option<Restart>>,
}

/// A relay is about to restart: come back after a while, and try again soon until then.
#[derive(Debug, Clone, Copy)]
struct Restart {
    reconnect_in: Duration,
    until: Instant,
}

impl Outbox {
    fn edit<T>(&self, edit: impl FnOnce(&mut Queue) -> T) -> T {
        let answer = edit(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner));
        self.bell.notify_one();
        answer
    }

    fn pop(&self) -> Option<Item> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

impl RelayLink {
    /// Begins to connect to a region as the holder of `secret`.
    pub(super) fn open(definition: &DerpRegion, secret: Arc<NodeSecret>, setup: LinkSetup) -> Self {
        let id = setup.next.fetch_add(1, Ordering::Relaxed);
        let definition = Arc::new(definition.clone());
        let outbox = Arc::new(Outbox {
            region: Mutex::new(Arc::clone(&definition)),
            queue: Mutex::default(),
            bell: Notify::new(),
            restart: Mutex::default(),
        });
        let region = definition.region_id;
        let runner = Runner { id, region, secret, setup, outbox: Arc::clone(&outbox), failures: 0, was_steady: false };
        let task = tokio::spawn(runner.run()).abort_handle();
        Self { id, definition, outbox, task }
    }

    /// Returns the link's number.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Returns the region as it was described last.
    pub(super) fn definition(&self) -> &DerpRegion {
        &self.definition
    }

    /// Takes over another description of the region, for the time when the present connection ends.
    pub(super) fn redefine(&mut self, definition: &DerpRegion) {
        if *self.definition != *definition {
            self.definition = Arc::new(definition.clone());
            *self.outbox.region.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&self.definition);
        }
    }

    /// Sends a packet to a peer, once the connection is up; tells whether an older one was dropped for it.
    pub(super) fn send(&self, kind: Kind, to: NodeKey, bytes: Vec<u8>) -> bool {
        self.outbox.edit(|queue| queue.push(kind, to, bytes))
    }

    /// Asks for a [`News::Pong`] of the same bytes; a second ping before the answer may swallow the first.
    pub(super) fn ping(&self, data: [u8; 8]) {
        self.outbox.edit(|queue| queue.ping(data));
    }

    /// Says whether the region is this node's home.
    pub(super) fn set_home(&self, home: bool) {
        self.outbox.edit(|queue| queue.set_home(home));
    }
}

impl Drop for RelayLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Connects to the first relay of a region that can be reached, in the order of the map, as the holder of `secret`; returns
/// its name, too.
///
/// # Errors
/// The last relay's error, [`ConnectError::NoAddress`] if there is none.
pub(super) async fn connect_any(
    region: &DerpRegion,
    secret: &NodeSecret,
) -> Result<(String, ClientReader, ClientWriter), ConnectError> {
    let mut last = ConnectError::NoAddress(region.region_code.clone());
    for node in region.nodes.iter().filter(|node| !node.stun_only) {
        match connect(node, secret).await {
            Ok((reader, writer)) => return Ok((node.name.clone(), reader, writer)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Measures the time there and back on a fresh connection to a region.
///
/// # Errors
/// `None` if there is no connection or no answer; set a deadline of your own.
pub(super) async fn round_trip(region: &DerpRegion, secret: &NodeSecret) -> Option<Duration> {
    let (_, mut reader, mut writer) = connect_any(region, secret).await.ok()?;
    let data = rand::random();
    let start = now();
    writer.ping(data).await.ok()?;
    while reader.next().await.ok()? != Received::Pong(data) {}
    Some(now().saturating_duration_since(start))
}

/// Aborts a task when it is dropped.
#[derive(Debug)]
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Runner {
    id: u64,
    region: RegionId,
    secret: Arc<NodeSecret>,
    setup: LinkSetup,
    outbox: Arc<Outbox>,
    failures: u32,
    /// The last attempt led to a connection that held for [`STEADY`].
    was_steady: bool,
}

impl Runner {
    async fn run(mut self) {
        loop {
            let region = Arc::clone(&self.outbox.region.lock().unwrap_or_else(PoisonError::into_inner));
            let reason = match connect_any(&region, &self.secret).await {
                Ok((relay, reader, writer)) => {
                    let since = now();
                    if !self.tell(News::Up(relay)).await {
                        return;
                    }
                    let error = self.serve(reader, writer).await;
                    // A relay that admits and drops us at once must not be asked ten times a second.
                    if now().saturating_duration_since(since) >= STEADY {
                        (self.failures, self.was_steady) = (0, true);
                    }
                    error.to_string()
                }
                Err(error) => error.to_string(),
            };
            tracing::debug!(region = %self.region, reason, "no connection to the relay");
            if !self.tell(News::Down(reason)).await {
                return;
            }
            tokio::time::sleep(self.delay()).await;
        }
    }

    /// Returns how long to wait after one more failure: up to 30 ms if the connection held before, since it may only be the
    /// connection that something on the way has forgotten; else 0.1 s, doubled each time, times 0.5 to 1.5.
    fn delay(&mut self) -> Duration {
        let mut restart = self.outbox.restart.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Restart { reconnect_in, until }) = *restart
            && now() < until
        {
            // The first time as the relay asked, so that not all come at once; then soon, for it will be back soon.
            self.failures = 0;
            *restart = Some(Restart { reconnect_in: RESTART_DELAY.mul_f64(0.5 + rand::random::<f64>() / 2.0), until });
            return reconnect_in;
        }
        drop(restart);
        if self.was_steady {
            self.was_steady = false;
            return FIRST_DELAY.mul_f64(rand::random());
        }
        let base = Duration::from_millis(100_u64 << self.failures.min(6)).min(MAX_DELAY);
        self.failures = self.failures.saturating_add(1);
        base.mul_f64(0.5 + rand::random::<f64>()).min(MAX_DELAY)
    }

    async fn tell(&self, news: News) -> bool {
        let event = LinkEvent { region: self.region, link: self.id, news };
        self.setup.events.send(event).await.is_ok()
    }

    /// Moves packets until the connection ends.
    async fn serve(&self, reader: ClientReader, mut writer: ClientWriter) -> ClientError {
        self.outbox.edit(Queue::begin);
        *self.outbox.restart.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let listener = Listener {
            id: self.id,
            region: self.region,
            setup: self.setup.clone(),
            outbox: Arc::clone(&self.outbox),
            heard: HashSet::new(),
            told_alive: None,
        };
        // Reading must not be cut short, so it has a task of its own.
        let mut listening = tokio::spawn(listener.run(reader));
        let _ends_with_us = AbortOnDrop(listening.abort_handle());
        let writing = async {
            loop {
                let rung = self.outbox.bell.notified();
                while let Some(item) = self.outbox.pop() {
                    let written = match item {
                        Item::Pong(data) => writer.pong(data).await,
                        Item::Ping(data) => writer.ping(data).await,
                        Item::Preferred(home) => writer.note_preferred(home).await,
                        Item::Packet { to, bytes } => writer.send_packet(&to, &bytes).await,
                    };
                    if let Err(error) = written {
                        return error;
                    }
                }
                rung.await;
            }
        };
        tokio::select! {
            error = writing => error,
            ended = &mut listening => ended.unwrap_or(ClientError::Silent),
        }
    }
}

/// The reading half of a connection.
struct Listener {
    id: u64,
    region: RegionId,
    setup: LinkSetup,
    outbox: Arc<Outbox>,
    heard: HashSet<NodeKey>,
    told_alive: Option<Instant>,
}

impl Listener {
    async fn run(mut self, mut reader: ClientReader) -> ClientError {
        loop {
            let received = match reader.next().await {
                Ok(received) => received,
                Err(error) => return error,
            };
            let now = now();
            if self.told_alive.is_none_or(|at| now.saturating_duration_since(at) >= ALIVE_SPACING) {
                self.told_alive = Some(now);
                self.tell(News::Alive { has_packet: matches!(received, Received::Packet { .. }) }).await;
            }
            match received {
                Received::Packet { from, packet } => self.take_packet(from, packet).await,
                Received::PeerGone { key, .. } => {
                    self.heard.remove(&key);
                    self.tell(News::Gone(key)).await;
                }
                Received::Ping(data) => self.outbox.edit(|queue| queue.pong(data)),
                Received::Health(text) => self.tell(News::Health(text)).await,
                Received::Pong(data) => self.tell(News::Pong(data)).await,
                Received::Restarting { reconnect_in, try_for } => {
                    let restart = Restart { reconnect_in, until: now + try_for };
                    *self.outbox.restart.lock().unwrap_or_else(PoisonError::into_inner) = Some(restart);
                }
                Received::Nothing => {}
            }
        }
    }

    async fn take_packet(&mut self, from: NodeKey, bytes: Vec<u8>) {
        if !self.heard.contains(&from) {
            if self.heard.len() >= MAX_HEARD {
                self.heard.clear();
            }
            self.heard.insert(from);
            self.tell(News::Heard(from)).await;
        }
        if MessageType::of(&bytes) != Some(MessageType::Transport) {
            self.tell(News::Datagram(from, bytes)).await;
        } else if self.setup.relayed.try_send(Relayed { region: self.region, from, bytes }).is_ok() {
            self.setup.shared.waker.wake();
        } else {
            Drops::count(&self.setup.shared.drops.relayed, 1);
        }
    }

    async fn tell(&self, news: News) {
        // The decision task is gone only when this task is about to be, too.
        let _ = self.setup.events.send(LinkEvent { region: self.region, link: self.id, news }).await;
    }
}

#[expect(clippy::disallowed_methods, reason = "a link is a shell: this is where it reads the clock")]
fn now() -> Instant {
    Instant::now()
}
