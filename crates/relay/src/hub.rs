//! Who is connected to a relay, and what is waiting for whom. No I/O.
//!
//! Rules of Tailscale `derp/derpserver`: all connections of one key stay open; the one that wrote last gets the packets.
//! Each connection has two bounded queues, one for disco, so that bulk traffic cannot starve the messages that lead
//! away from the relay. A full queue drops its oldest packets.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use warren_wire::derp::{Frame, GoneReason};
use warren_wire::disco;
use warren_wire::key::NodeKey;

/// Packets that wait in each queue of a connection.
const QUEUE_PACKETS: usize = 32;
/// Bytes that wait in each queue of a connection: plenty for packets of common size, and no more than two of the
/// largest, with which few senders could fill the memory of a relay otherwise.
const QUEUE_BYTES: usize = 160 << 10;
/// Connections that one key may have; one more ends the one that has been silent longest.
const PER_KEY: usize = 8;
/// Notices of absent peers that wait for a connection; older ones are dropped.
const NOTICES: usize = 64;
/// Peers that are told when a key leaves; a key that writes to more leaves the rest untold.
const WATCHERS: usize = 1024;

/// Counts what a relay does.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections open now.
    pub connections: AtomicU64,
    /// Connections admitted since the start.
    pub admitted: AtomicU64,
    /// Connections whose key was not admitted.
    pub rejected: AtomicU64,
    /// Packets put into a queue.
    pub packets: AtomicU64,
    /// Bytes of those packets.
    pub bytes: AtomicU64,
    /// Packets for a key that is not here.
    pub dropped_unknown: AtomicU64,
    /// Packets pushed out of a full queue.
    pub dropped_queue: AtomicU64,
}

/// Everything that a relay knows.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    keys: Mutex<HashMap<NodeKey, Entry>>,
    pub(crate) counters: Counters,
}

/// The connections of one key.
#[derive(Debug, Default)]
struct Entry {
    /// In the order of their last write: the last one is active.
    connections: Vec<Arc<Connection>>,
    /// Keys that were sent a packet from this one and want to know when it leaves.
    watchers: HashSet<NodeKey>,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) key: NodeKey,
    queues: Mutex<Queues>,
    /// Set when something waits in the queues.
    pub(crate) wake: Notify,
    /// Set when the connection must end.
    pub(crate) closed: CancellationToken,
}

/// What waits for one connection.
#[derive(Debug, Default)]
struct Queues {
    notices: VecDeque<(NodeKey, GoneReason)>,
    pong: Option<[u8; 8]>,
    disco: Queue,
    data: Queue,
}

/// Frames in order, bounded in number and bytes.
#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Bytes>,
    bytes: usize,
}

/// What a packet is to a relay, which cannot read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Path discovery.
    Disco,
    /// Anything else.
    Data,
}

impl Kind {
    pub(crate) fn of(packet: &[u8]) -> Self {
        if disco::looks_like_disco(packet) { Self::Disco } else { Self::Data }
    }
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// It waits for its receiver.
    Queued,
    /// Nobody of that key is here.
    Absent,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these locks; the data is good even if something did.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// Adds a connection of `key`, which becomes the active one.
    pub(crate) fn join(&self, key: NodeKey, closed: CancellationToken) -> Arc<Connection> {
        let connection = Arc::new(Connection { key, queues: Mutex::default(), wake: Notify::new(), closed });
        let mut keys = locked(&self.keys);
        let connections = &mut keys.entry(key).or_default().connections;
        // Those that are ending count, too, until their tasks have ended.
        if let Some(silent) = connections.len().checked_sub(PER_KEY).and_then(|surplus| connections.get(surplus)) {
            silent.closed.cancel();
        }
        connections.push(Arc::clone(&connection));
        drop(keys);
        self.counters.connections.fetch_add(1, Ordering::Relaxed);
        self.counters.admitted.fetch_add(1, Ordering::Relaxed);
        connection
    }

    /// Removes a connection; when it was the last of its key, tells those who were sent packets from there.
    pub(crate) fn leave(&self, connection: &Arc<Connection>) {
        let mut keys = locked(&self.keys);
        let Some(entry) = keys.get_mut(&connection.key) else { return };
        let before = entry.connections.len();
        entry.connections.retain(|other| !Arc::ptr_eq(other, connection));
        if entry.connections.len() < before {
            self.counters.connections.fetch_sub(1, Ordering::Relaxed);
        }
        if !entry.connections.is_empty() {
            return;
        }
        let watchers = keys.remove(&connection.key).map(|entry| entry.watchers).unwrap_or_default();
        for watcher in watchers {
            if let Some(active) = keys.get(&watcher).and_then(|entry| entry.connections.last()) {
                active.notice(connection.key, GoneReason::Disconnected);
            }
        }
    }

    /// Marks a connection as the one that wrote last.
    pub(crate) fn wrote(&self, connection: &Arc<Connection>) {
        if let Some(entry) = locked(&self.keys).get_mut(&connection.key) {
            entry.wrote(connection);
        }
    }

    /// Queues a packet, a whole frame, that came in on `from` for the active connection of `to`.
    pub(crate) fn deliver(&self, from: &Arc<Connection>, to: NodeKey, frame: Bytes, kind: Kind) -> Delivery {
        let mut keys = locked(&self.keys);
        let active = keys.get(&to).and_then(|entry| entry.connections.last()).map(Arc::clone);
        if let Some(entry) = keys.get_mut(&from.key) {
            entry.wrote(from);
            if active.is_some() && entry.watchers.len() < WATCHERS {
                entry.watchers.insert(to);
            }
        }
        drop(keys);
        let Some(active) = active else {
            self.counters.dropped_unknown.fetch_add(1, Ordering::Relaxed);
            return Delivery::Absent;
        };
        self.counters.packets.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
        let dropped = active.push(frame, kind);
        self.counters.dropped_queue.fetch_add(dropped, Ordering::Relaxed);
        Delivery::Queued
    }

    /// Ends all connections of a key.
    pub(crate) fn disconnect(&self, key: &NodeKey) {
        if let Some(entry) = locked(&self.keys).get(key) {
            entry.connections.iter().for_each(|connection| connection.closed.cancel());
        }
    }

    /// Ends the connections of every key for which `stays` is false.
    pub(crate) fn retain(&self, mut stays: impl FnMut(&NodeKey) -> bool) {
        for (key, entry) in locked(&self.keys).iter() {
            if !stays(key) {
                entry.connections.iter().for_each(|connection| connection.closed.cancel());
            }
        }
    }
}

impl Entry {
    /// Makes a connection the active one.
    fn wrote(&mut self, connection: &Arc<Connection>) {
        if let Some(at) = self.connections.iter().position(|other| Arc::ptr_eq(other, connection))
            && at + 1 < self.connections.len()
        {
            let active = self.connections.remove(at);
            self.connections.push(active);
        }
    }
}

impl Queue {
    /// Adds a frame, which always has room, and returns how many older ones had to go.
    fn push(&mut self, frame: Bytes) -> u64 {
        let mut dropped = 0;
        while !self.frames.is_empty()
            && (self.frames.len() >= QUEUE_PACKETS || self.bytes.saturating_add(frame.len()) > QUEUE_BYTES)
        {
            self.pop();
            dropped += 1;
        }
        self.bytes = self.bytes.saturating_add(frame.len());
        self.frames.push_back(frame);
        dropped
    }

    fn pop(&mut self) -> Option<Bytes> {
        let frame = self.frames.pop_front()?;
        self.bytes = self.bytes.saturating_sub(frame.len());
        if self.frames.is_empty() {
            // An idle connection holds no room for packets.
            self.frames = VecDeque::new();
        }
        Some(frame)
    }
}

impl Connection {
    /// Queues a packet and returns how many older ones had to go.
    fn push(&self, frame: Bytes, kind: Kind) -> u64 {
        let mut queues = locked(&self.queues);
        let dropped = match kind {
            Kind::Disco => queues.disco.push(frame),
            Kind::Data => queues.data.push(frame),
        };
        drop(queues);
        self.wake.notify_one();
        dropped
    }

    /// Queues the notice that `key` is not here.
    pub(crate) fn notice(&self, key: NodeKey, reason: GoneReason) {
        let mut queues = locked(&self.queues);
        if queues.notices.len() >= NOTICES {
            queues.notices.pop_front();
        }
        queues.notices.push_back((key, reason));
        drop(queues);
        self.wake.notify_one();
    }

    /// Queues a pong unless one is waiting.
    pub(crate) fn pong(&self, data: [u8; 8]) {
        locked(&self.queues).pong.get_or_insert(data);
        self.wake.notify_one();
    }

    /// Moves what waits into `out`, about `limit` bytes of it, and tells whether there was anything.
    pub(crate) fn drain(&self, out: &mut Vec<u8>, limit: usize) -> bool {
        let mut queues = locked(&self.queues);
        let start = out.len();
        if let Some(data) = queues.pong.take() {
            Frame::Pong(data).encode(out);
        }
        while out.len() < limit {
            // Disco first: it is rare, small, and leads away from the relay.
            let Some(frame) = queues.disco.pop().or_else(|| queues.data.pop()) else { break };
            out.extend_from_slice(&frame);
        }
        // After the packets: one from a peer that has left since would make the client believe that it is back.
        for (key, reason) in std::mem::take(&mut queues.notices) {
            Frame::PeerGone { key, reason }.encode(out);
        }
        out.len() > start
    }
}

#[cfg(test)]
mod tests;
