//! Who is connected to a relay, and what is waiting for whom. No I/O.
//!
//! Rules of Tailscale `derp/derpserver`: all connections of one key stay open; the one that wrote last gets the packets.
//! Each connection has two bounded queues, one for disco, so that bulk traffic cannot starve the messages that lead
//! away from the relay.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use warren_wire::derp::{Frame, GoneReason};
use warren_wire::disco;
use warren_wire::key::NodeKey;

use crate::counters::{Counters, DropReason};
use crate::queue::Queue;

/// Connections that one key may have; one more ends the one that has been silent longest.
const PER_KEY: usize = 8;
/// Notices of absent peers that wait for a connection; older ones are dropped.
const NOTICES: usize = 64;
/// Peers that are told when a key leaves; a key that writes to more leaves the rest untold.
const WATCHERS: usize = 1024;

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
    /// What the client takes besides the frames that every client takes.
    pub(crate) dialect: Dialect,
}

/// Which frames a client understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// All, or it skips what it does not know: the Go client and ours.
    Full,
    /// Only what carries packets: the Rust client ends the connection at anything else. Source: paths.md §1.12.
    Plain,
}

/// What waits for one connection.
#[derive(Debug, Default)]
struct Queues {
    notices: VecDeque<(NodeKey, GoneReason)>,
    pong: Option<[u8; 8]>,
    /// When to come back, and how long to try.
    restarting: Option<(Duration, Duration)>,
    disco: Queue,
    data: Queue,
    ended: bool,
}

/// What a packet is to a relay, which cannot read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Path discovery.
    Disco,
    /// Anything else.
    Data,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Disco, Self::Data];

    /// Returns the one of two values, of disco and of others, that is this kind's.
    pub(crate) const fn of_two<T>(self, values: &[T; 2]) -> &T {
        let [disco, data] = values;
        match self {
            Self::Disco => disco,
            Self::Data => data,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Disco => "disco",
            Self::Data => "other",
        }
    }

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
    pub(crate) fn join(&self, key: NodeKey, closed: CancellationToken, dialect: Dialect) -> Arc<Connection> {
        let connection = Arc::new(Connection { key, queues: Mutex::default(), wake: Notify::new(), closed, dialect });
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
            for (kind, waiting) in connection.end() {
                self.counters.drop(DropReason::Gone, kind, waiting);
            }
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
            self.counters.drop(DropReason::UnknownDestination, kind, 1);
            return Delivery::Absent;
        };
        self.counters.pass(kind, frame.len());
        match active.push(from.key, frame, kind) {
            Some(dropped) => self.counters.drop(DropReason::QueueFull, kind, dropped),
            None => self.counters.drop(DropReason::Gone, kind, 1),
        }
        Delivery::Queued
    }

    /// Returns all connections that are open.
    pub(crate) fn connections(&self) -> Vec<Arc<Connection>> {
        locked(&self.keys).values().flat_map(|entry| entry.connections.iter().map(Arc::clone)).collect()
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

impl Connection {
    /// Queues a packet and returns how many older ones had to go; `None` if the connection has ended.
    fn push(&self, from: NodeKey, frame: Bytes, kind: Kind) -> Option<u64> {
        let mut queues = locked(&self.queues);
        if queues.ended {
            return None;
        }
        let dropped = match kind {
            Kind::Disco => queues.disco.push(from, frame),
            Kind::Data => queues.data.push(from, frame),
        };
        drop(queues);
        self.wake.notify_one();
        Some(dropped)
    }

    /// Takes nothing more, and returns how many packets of each kind were waiting.
    fn end(&self) -> [(Kind, u64); 2] {
        let mut queues = locked(&self.queues);
        let queues = std::mem::replace(&mut *queues, Queues { ended: true, ..Queues::default() });
        [(Kind::Disco, queues.disco.len() as u64), (Kind::Data, queues.data.len() as u64)]
    }

    /// Queues the announcement that the relay restarts.
    pub(crate) fn restarting(&self, reconnect_in: Duration, try_for: Duration) {
        locked(&self.queues).restarting = Some((reconnect_in, try_for));
        self.wake.notify_one();
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
        if let Some((reconnect_in, try_for)) = queues.restarting.take() {
            let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
            let frame =
                Frame::Restarting { reconnect_in_millis: millis(reconnect_in), try_for_millis: millis(try_for) };
            frame.encode(out);
        }
        while out.len() < limit {
            // Disco first: it is small, leads away from the relay, and is no more than its queue at a time.
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
