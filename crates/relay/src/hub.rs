//! Who is connected to a relay, and what is waiting for whom. No I/O.
//!
//! Rules of Tailscale `derp/derpserver`: all connections of one key stay open; the one that wrote last gets the packets.
//! Each connection has two bounded queues, one for disco, so that bulk traffic cannot starve the messages that lead
//! away from the relay.

mod mesh;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use warren_wire::derp::{Frame, GoneReason, present};
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

/// Arrivals and departures that one relay of the region may still have to be told; who is that slow must come anew.
const UPDATES: usize = 1 << 17;
/// About how many of them go out in one write.
const UPDATES_AT_ONCE: usize = 512;

/// Everything that a relay knows.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    state: Mutex<State>,
    pub(crate) counters: Counters,
}

#[derive(Debug, Default)]
struct State {
    /// Who is here.
    keys: HashMap<NodeKey, Entry>,
    /// Who is on other relays of the region.
    remote: HashMap<NodeKey, mesh::Remote>,
    /// Relays of the region that are told who is here.
    watching: Vec<Arc<Connection>>,
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
    presence: Presence,
    /// It was ended because its key had too many.
    is_surplus: AtomicBool,
}

/// What other relays of the region are told of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Presence {
    /// Where it comes from.
    pub(crate) source: IpAddr,
    /// Sum of [`present`]'s numbers.
    pub(crate) flags: u8,
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
    /// Arrivals and departures, the last of each key, for another relay.
    updates: BTreeMap<NodeKey, Option<Presence>>,
    /// How many packets, disco and others, are in the write that began last.
    writing: [u64; 2],
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
    pub(crate) fn join(
        &self,
        key: NodeKey,
        closed: CancellationToken,
        dialect: Dialect,
        presence: Presence,
    ) -> Arc<Connection> {
        let connection = Arc::new(Connection::new(key, closed, dialect, presence));
        let mut state = locked(&self.state);
        let connections = &mut state.keys.entry(key).or_default().connections;
        // Those that are ending count, too, until their tasks have ended.
        if let Some(silent) = connections.len().checked_sub(PER_KEY).and_then(|surplus| connections.get(surplus)) {
            silent.is_surplus.store(true, Ordering::Relaxed);
            silent.closed.cancel();
        }
        connections.push(Arc::clone(&connection));
        state.announce(key, Some(presence));
        drop(state);
        self.counters.connections.fetch_add(1, Ordering::Relaxed);
        self.counters.admitted.fetch_add(1, Ordering::Relaxed);
        connection
    }

    /// Removes a connection; when it was the last of its key in the region, tells those who were sent packets from there.
    pub(crate) fn leave(&self, connection: &Arc<Connection>) {
        let mut state = locked(&self.state);
        state.watching.retain(|other| !Arc::ptr_eq(other, connection));
        let Some(entry) = state.keys.get_mut(&connection.key) else { return };
        let before = entry.connections.len();
        entry.connections.retain(|other| !Arc::ptr_eq(other, connection));
        if entry.connections.len() < before {
            self.counters.connections.fetch_sub(1, Ordering::Relaxed);
            connection.end(&self.counters);
        }
        if !entry.connections.is_empty() {
            return;
        }
        let watchers = state.keys.remove(&connection.key).map(|entry| entry.watchers).unwrap_or_default();
        state.announce(connection.key, None);
        match state.remote.get_mut(&connection.key) {
            // It is still in the region.
            Some(remote) => remote.watchers.extend(watchers),
            None => state.tell_gone(connection.key, watchers),
        }
    }

    /// Marks a connection as the one that wrote last.
    pub(crate) fn wrote(&self, connection: &Arc<Connection>) {
        if let Some(entry) = locked(&self.state).keys.get_mut(&connection.key) {
            entry.wrote(connection);
        }
    }

    /// Queues a packet, a whole frame, that came in on `from` for the active connection of `to`, or for the relay of the
    /// region where that is.
    pub(crate) fn deliver(&self, from: &Arc<Connection>, to: NodeKey, frame: Bytes, kind: Kind) -> Delivery {
        let mut state = locked(&self.state);
        let active = state.active(&to);
        let relay = if active.is_none() { state.relay_of(&to) } else { None };
        if let Some(entry) = state.keys.get_mut(&from.key) {
            entry.wrote(from);
            if active.is_some() && entry.watchers.len() < WATCHERS {
                entry.watchers.insert(to);
            }
        }
        drop(state);
        match (active, relay) {
            (Some(active), _) => {
                self.counters.pass(kind, frame.len());
                self.hand_to(&active, from.key, frame, kind);
            }
            (None, Some(relay)) => {
                self.counters.forwarded.fetch_add(1, Ordering::Relaxed);
                self.hand_to(&relay, from.key, mesh::forward(from.key, to, &frame), kind);
            }
            (None, None) => {
                self.counters.drop(DropReason::UnknownDestination, kind, 1);
                return Delivery::Absent;
            }
        }
        Delivery::Queued
    }

    /// Puts a frame into a connection's queue.
    fn hand_to(&self, connection: &Connection, from: NodeKey, frame: Bytes, kind: Kind) {
        match connection.push(from, frame, kind) {
            Some(dropped) => self.counters.drop(DropReason::QueueFull, kind, dropped),
            None => self.counters.drop(DropReason::Gone, kind, 1),
        }
    }

    /// Returns all connections that are open.
    pub(crate) fn connections(&self) -> Vec<Arc<Connection>> {
        locked(&self.state).keys.values().flat_map(|entry| entry.connections.iter().map(Arc::clone)).collect()
    }

    /// Ends all connections of a key.
    pub(crate) fn disconnect(&self, key: &NodeKey) {
        if let Some(entry) = locked(&self.state).keys.get(key) {
            entry.connections.iter().for_each(|connection| connection.closed.cancel());
        }
    }

    /// Ends the connections of every key for which `stays` is false; other relays of the region are nobody's to judge.
    pub(crate) fn retain(&self, mut stays: impl FnMut(&NodeKey) -> bool) {
        for (key, entry) in &locked(&self.state).keys {
            if !stays(key) {
                let nodes = entry.connections.iter().filter(|connection| !connection.is_mesh());
                nodes.for_each(|connection| connection.closed.cancel());
            }
        }
    }
}

impl State {
    /// Returns the connection of a key that wrote last.
    fn active(&self, key: &NodeKey) -> Option<Arc<Connection>> {
        self.keys.get(key).and_then(|entry| entry.connections.last()).map(Arc::clone)
    }

    /// Tells the region's other relays of an arrival, or with nothing of a departure.
    fn announce(&self, key: NodeKey, presence: Option<Presence>) {
        self.watching.iter().for_each(|watching| watching.update(key, presence));
    }

    /// Tells those who are here that `key` has left the region.
    fn tell_gone(&self, key: NodeKey, watchers: HashSet<NodeKey>) {
        for watcher in watchers {
            if let Some(active) = self.active(&watcher) {
                active.notice(key, GoneReason::Disconnected);
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
    fn new(key: NodeKey, closed: CancellationToken, dialect: Dialect, presence: Presence) -> Self {
        let is_surplus = AtomicBool::new(false);
        Self { key, queues: Mutex::default(), wake: Notify::new(), closed, dialect, presence, is_surplus }
    }

    /// Tells whether another relay of the region is at the far end.
    pub(crate) fn is_mesh(&self) -> bool {
        self.presence.flags & present::MESH_PEER != 0
    }

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

    /// Takes nothing more, and counts what was waiting or being written.
    fn end(&self, counters: &Counters) {
        let mut queues = locked(&self.queues);
        let queues = std::mem::replace(&mut *queues, Queues { ended: true, ..Queues::default() });
        let is_surplus = self.is_surplus.load(Ordering::Relaxed);
        let reason = if is_surplus { DropReason::DuplicateClient } else { DropReason::Gone };
        for (kind, waiting) in [(Kind::Disco, queues.disco.len()), (Kind::Data, queues.data.len())] {
            counters.drop(reason, kind, waiting as u64);
            counters.drop(DropReason::WriteError, kind, *kind.of_two(&queues.writing));
        }
    }

    /// Queues an arrival, or with nothing a departure, for another relay.
    fn update(&self, key: NodeKey, presence: Option<Presence>) {
        let mut queues = locked(&self.queues);
        queues.updates.insert(key, presence);
        if queues.updates.len() > UPDATES {
            queues.updates.clear();
            self.closed.cancel();
        }
        drop(queues);
        self.wake.notify_one();
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
        // Disco first: it is small, leads away from the relay, and is no more than its queue at a time.
        let mut writing = [0, 0];
        while out.len() < limit {
            let (disco, data) = (queues.disco.pop(), &mut writing);
            let (frame, count) = match disco {
                Some(frame) => (frame, &mut data[0]),
                None => match queues.data.pop() {
                    Some(frame) => (frame, &mut data[1]),
                    None => break,
                },
            };
            *count += 1;
            out.extend_from_slice(&frame);
        }
        queues.writing = writing;
        // After the packets: one from a peer that has left since would make the client believe that it is back.
        for (key, reason) in std::mem::take(&mut queues.notices) {
            Frame::PeerGone { key, reason }.encode(out);
        }
        // After the notices: whoever was not here may have come since.
        for _ in 0..UPDATES_AT_ONCE {
            let Some((key, presence)) = queues.updates.pop_first() else { break };
            match presence {
                Some(Presence { source, flags }) => {
                    Frame::PeerPresent { key, source: Some(SocketAddr::new(source, 0)), flags }.encode(out);
                }
                None => Frame::PeerGone { key, reason: GoneReason::Disconnected }.encode(out),
            }
        }
        out.len() > start
    }
}

#[cfg(test)]
mod tests;
