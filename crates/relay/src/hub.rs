//! Who is connected to a relay, and what is waiting for whom. No I/O.
//!
//! Rules of Tailscale `derp/derpserver`: all connections of one key stay open; the one that wrote last gets the packets.
//! Each connection has two bounded queues, one for disco, so that bulk traffic cannot starve the messages that lead
//! away from the relay. A full queue drops its oldest packet.

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
    disco: VecDeque<Bytes>,
    data: VecDeque<Bytes>,
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
        locked(&self.keys).entry(key).or_default().connections.push(Arc::clone(&connection));
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
        let mut keys = locked(&self.keys);
        let Some(entry) = keys.get_mut(&connection.key) else { return };
        if let Some(at) = entry.connections.iter().position(|other| Arc::ptr_eq(other, connection))
            && at + 1 < entry.connections.len()
        {
            let active = entry.connections.remove(at);
            entry.connections.push(active);
        }
    }

    /// Queues `packet` (a whole frame) from `from` for the active connection of `to`.
    pub(crate) fn deliver(&self, from: NodeKey, to: NodeKey, frame: Bytes, packet_offset: usize) -> Delivery {
        let mut keys = locked(&self.keys);
        let Some(active) = keys.get(&to).and_then(|entry| entry.connections.last()).map(Arc::clone) else {
            self.counters.dropped_unknown.fetch_add(1, Ordering::Relaxed);
            return Delivery::Absent;
        };
        if let Some(entry) = keys.get_mut(&from)
            && entry.watchers.len() < WATCHERS
        {
            entry.watchers.insert(to);
        }
        drop(keys);
        let is_disco = disco::looks_like_disco(frame.get(packet_offset..).unwrap_or_default());
        self.counters.packets.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
        if active.push(frame, is_disco) {
            self.counters.dropped_queue.fetch_add(1, Ordering::Relaxed);
        }
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

impl Connection {
    /// Queues a packet and tells whether an older one had to go.
    fn push(&self, frame: Bytes, is_disco: bool) -> bool {
        let mut queues = locked(&self.queues);
        let queue = if is_disco { &mut queues.disco } else { &mut queues.data };
        let full = queue.len() >= QUEUE_PACKETS;
        if full {
            queue.pop_front();
        }
        queue.push_back(frame);
        drop(queues);
        self.wake.notify_one();
        full
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
        for (key, reason) in queues.notices.drain(..) {
            Frame::PeerGone { key, reason }.encode(out);
        }
        while out.len() < limit {
            // Disco first: it is rare, small, and leads away from the relay.
            let Some(frame) = queues.disco.pop_front().or_else(|| queues.data.pop_front()) else { break };
            out.extend_from_slice(&frame);
        }
        out.len() > start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> NodeKey {
        NodeKey::from_bytes([byte; 32])
    }

    fn join(hub: &Hub, byte: u8) -> Arc<Connection> {
        hub.join(key(byte), CancellationToken::new())
    }

    fn drained(connection: &Connection) -> Vec<u8> {
        let mut out = Vec::new();
        connection.drain(&mut out, usize::MAX);
        out
    }

    #[test]
    fn full_queue_drops_its_oldest_and_never_disco_for_data() {
        let hub = Hub::default();
        let (_a, b) = (join(&hub, 1), join(&hub, 2));
        let disco = Bytes::from([&disco::MAGIC[..], &[7; 60]].concat());
        hub.deliver(key(1), key(2), disco.clone(), 0);
        for number in 0..40 {
            assert_eq!(hub.deliver(key(1), key(2), Bytes::from(vec![number]), 0), Delivery::Queued);
        }
        let expected = [&disco[..], &(8..40).collect::<Vec<u8>>()].concat();
        assert_eq!(drained(&b), expected);
        assert_eq!(hub.counters.dropped_queue.load(Ordering::Relaxed), 8);
    }

    #[test]
    fn last_writer_of_two_connections_gets_the_packets() {
        let hub = Hub::default();
        let (old, new) = (join(&hub, 1), join(&hub, 1));
        hub.deliver(key(9), key(1), Bytes::from_static(b"x"), 0);
        assert_eq!((drained(&old), drained(&new)), (vec![], b"x".to_vec()));
        hub.wrote(&old);
        hub.deliver(key(9), key(1), Bytes::from_static(b"y"), 0);
        assert_eq!((drained(&old), drained(&new)), (b"y".to_vec(), vec![]));
        hub.leave(&old);
        hub.deliver(key(9), key(1), Bytes::from_static(b"z"), 0);
        assert_eq!(drained(&new), b"z");
    }

    #[test]
    fn those_who_heard_a_key_are_told_once_when_its_last_connection_leaves() {
        let hub = Hub::default();
        let (one, two, listener, stranger) = (join(&hub, 1), join(&hub, 1), join(&hub, 2), join(&hub, 3));
        hub.deliver(key(1), key(2), Bytes::from_static(b"x"), 0);
        drained(&listener);
        hub.leave(&one);
        assert_eq!(drained(&listener), b"");
        hub.leave(&two);
        let mut gone = Vec::new();
        Frame::PeerGone { key: key(1), reason: GoneReason::Disconnected }.encode(&mut gone);
        assert_eq!(drained(&listener), gone);
        assert_eq!(drained(&listener), b"");
        assert_eq!(drained(&stranger), b"");
        assert_eq!(hub.deliver(key(2), key(1), Bytes::new(), 0), Delivery::Absent);
    }

    #[test]
    fn removed_key_is_disconnected() {
        let hub = Hub::default();
        let (a, b) = (join(&hub, 1), join(&hub, 2));
        hub.disconnect(&key(1));
        assert!(a.closed.is_cancelled() && !b.closed.is_cancelled());
        hub.retain(|known| *known != key(2));
        assert!(b.closed.is_cancelled());
    }
}
