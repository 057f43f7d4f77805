//! The other relays of the region: who is there, what goes there and comes from there. A packet is handed on once.
//!
//! Source: paths.md §1.9.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use warren_wire::derp::{self, Frame, present};
use warren_wire::key::NodeKey;

use super::{Connection, Delivery, Dialect, Hub, Kind, Presence, State, WATCHERS, locked};
use crate::counters::DropReason;
use crate::queue::Queue;

/// Keys on other relays that are remembered; of more nobody knows here where they are.
const REMOTE_KEYS: usize = 1 << 18;
/// Relays that are told who is here.
const WATCHING: usize = 64;
/// How many times more than for a client may wait for another relay, behind which many clients are.
const QUEUE_TIMES: usize = 16;
/// Bytes of a packet's frame before the packet.
const PACKET_OFFSET: usize = derp::HEADER_BYTES + 32;

/// A key on other relays.
#[derive(Debug, Default)]
pub(super) struct Remote {
    /// The relays that claim it; the one that has longest comes first and gets its packets.
    relays: Vec<Arc<Connection>>,
    /// Keys here that were sent a packet from this one and want to know when it leaves the region.
    pub(super) watchers: HashSet<NodeKey>,
}

/// Makes the frame that asks another relay to deliver, out of the one that its receiver gets.
pub(super) fn forward(from: NodeKey, to: NodeKey, frame: &[u8]) -> Bytes {
    let packet = frame.get(PACKET_OFFSET..).unwrap_or_default();
    let mut bytes = Vec::with_capacity(frame.len() + 32);
    Frame::ForwardPacket { from, to, packet }.encode(&mut bytes);
    Bytes::from(bytes)
}

impl Hub {
    /// Makes the place where packets wait for the relay of key `relay`.
    pub(crate) fn link(relay: NodeKey, source: std::net::IpAddr, closed: CancellationToken) -> Arc<Connection> {
        let presence = Presence { source, flags: present::MESH_PEER };
        let link = Connection::new(relay, closed, Dialect::Full, presence);
        let mut queues = locked(&link.queues);
        (queues.disco, queues.data) = (Queue::of_times(QUEUE_TIMES), Queue::of_times(QUEUE_TIMES));
        drop(queues);
        Arc::new(link)
    }

    /// Tells another relay who is here, now and from now on; false if too many are told already.
    pub(crate) fn watch(&self, relay: &Arc<Connection>) -> bool {
        let mut state = locked(&self.state);
        if state.watching.iter().any(|other| Arc::ptr_eq(other, relay)) {
            return true;
        }
        if state.watching.len() >= WATCHING {
            return false;
        }
        for (key, entry) in &state.keys {
            if let Some(active) = entry.connections.last() {
                relay.update(*key, Some(active.presence));
            }
        }
        state.watching.push(Arc::clone(relay));
        true
    }

    /// Takes note that a key is on the relay at the end of `link`.
    pub(crate) fn hear_present(&self, link: &Arc<Connection>, key: NodeKey) {
        let mut state = locked(&self.state);
        if key.is_zero() || state.remote.len() >= REMOTE_KEYS && !state.remote.contains_key(&key) {
            return;
        }
        let remote = state.remote.entry(key).or_default();
        if !remote.relays.iter().any(|other| Arc::ptr_eq(other, link)) {
            remote.relays.push(Arc::clone(link));
        }
    }

    /// Takes note that a key is not on the relay at the end of `link`.
    pub(crate) fn hear_gone(&self, link: &Arc<Connection>, key: &NodeKey) {
        locked(&self.state).forget(link, key);
    }

    /// Forgets all that is on the relay at the end of `link`, and what waits for it.
    pub(crate) fn lose_link(&self, link: &Arc<Connection>) {
        link.end(&self.counters);
        let mut state = locked(&self.state);
        let claims = |remote: &Remote| remote.relays.iter().any(|other| Arc::ptr_eq(other, link));
        let keys: Vec<NodeKey> =
            state.remote.iter().filter(|(_, remote)| claims(remote)).map(|(key, _)| *key).collect();
        keys.iter().for_each(|key| state.forget(link, key));
    }

    /// Queues a packet, a whole frame, that another relay handed on, for the active connection of `to`.
    pub(crate) fn deliver_forwarded(&self, from: NodeKey, to: NodeKey, frame: Bytes, kind: Kind) -> Delivery {
        let mut state = locked(&self.state);
        let Some(active) = state.active(&to) else {
            drop(state);
            self.counters.drop(DropReason::UnknownDestinationOnForward, kind, 1);
            return Delivery::Absent;
        };
        if let Some(remote) = state.remote.get_mut(&from).filter(|remote| remote.watchers.len() < WATCHERS) {
            remote.watchers.insert(to);
        }
        drop(state);
        self.counters.received_forwarded.fetch_add(1, Ordering::Relaxed);
        self.counters.pass(kind, frame.len());
        self.hand_to(&active, from, frame, kind);
        Delivery::Queued
    }
}

impl State {
    /// Returns the place for what goes to the relay where a key is.
    pub(super) fn relay_of(&self, key: &NodeKey) -> Option<Arc<Connection>> {
        self.remote.get(key)?.relays.first().map(Arc::clone)
    }

    fn forget(&mut self, link: &Arc<Connection>, key: &NodeKey) {
        let Some(remote) = self.remote.get_mut(key) else { return };
        remote.relays.retain(|other| !Arc::ptr_eq(other, link));
        if !remote.relays.is_empty() {
            return;
        }
        let watchers = self.remote.remove(key).map(|remote| remote.watchers).unwrap_or_default();
        match self.keys.get_mut(key) {
            // It is here, too.
            Some(entry) => entry.watchers.extend(watchers),
            None => self.tell_gone(*key, watchers),
        }
    }
}
