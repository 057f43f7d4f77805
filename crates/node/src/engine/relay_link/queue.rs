//! What waits for being written to a relay.

use std::collections::VecDeque;

use warren_wire::key::NodeKey;

/// Most packets of each kind that wait; the oldest is dropped for a new one.
///
/// Source: Tailscale `wgengine/magicsock/derp.go`, `bufferedDerpWritesBeforeDrop`.
pub(super) const CAPACITY: usize = 32;

/// Says how urgent a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum Kind {
    /// Disco and handshakes: they find the way off the relay and must not wait behind data.
    Urgent,
    /// Packets.
    Data,
}

/// Is the next thing to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    /// Answer to a ping of the relay.
    Pong([u8; 8]),
    /// A ping to the relay.
    Ping([u8; 8]),
    /// Whether the relay is this node's home.
    Preferred(bool),
    /// A packet to a peer.
    Packet { to: NodeKey, bytes: Vec<u8> },
}

/// Orders what waits: signs of life, then urgent packets, then data, each oldest first.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Only the newest ping needs an answer.
    pong: Option<[u8; 8]>,
    ping: Option<[u8; 8]>,
    home: bool,
    /// What the relay was told of `home`; a new connection knows nothing.
    told_home: Option<bool>,
    urgent: VecDeque<(NodeKey, Vec<u8>)>,
    data: VecDeque<(NodeKey, Vec<u8>)>,
}

impl Queue {
    /// Adds a packet and tells whether an older one was dropped for it.
    pub(super) fn push(&mut self, kind: Kind, to: NodeKey, bytes: Vec<u8>) -> bool {
        let queue = match kind {
            Kind::Urgent => &mut self.urgent,
            Kind::Data => &mut self.data,
        };
        let is_full = queue.len() >= CAPACITY;
        if is_full {
            queue.pop_front();
        }
        queue.push_back((to, bytes));
        is_full
    }

    /// Answers a ping.
    pub(super) fn pong(&mut self, data: [u8; 8]) {
        self.pong = Some(data);
    }

    /// Asks the relay for a pong.
    pub(super) fn ping(&mut self, data: [u8; 8]) {
        self.ping = Some(data);
    }

    /// Says whether the relay is this node's home.
    pub(super) fn set_home(&mut self, home: bool) {
        self.home = home;
    }

    /// Begins a connection: what was said on the last one is void.
    pub(super) fn begin(&mut self) {
        self.pong = None;
        self.ping = None;
        self.told_home = None;
    }

    /// Takes the next thing to write.
    pub(super) fn pop(&mut self) -> Option<Item> {
        if let Some(data) = self.pong.take() {
            return Some(Item::Pong(data));
        }
        if let Some(data) = self.ping.take() {
            return Some(Item::Ping(data));
        }
        // A relay takes a node for a visitor until it is told otherwise.
        if self.told_home.unwrap_or_default() != self.home {
            self.told_home = Some(self.home);
            return Some(Item::Preferred(self.home));
        }
        let (to, bytes) = self.urgent.pop_front().or_else(|| self.data.pop_front())?;
        Some(Item::Packet { to, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peer() -> NodeKey {
        NodeKey::from_bytes([9; 32])
    }

    fn drain(queue: &mut Queue) -> Vec<Item> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    proptest! {
        #[test]
        fn the_newest_of_each_kind_survive_in_order(kinds in proptest::collection::vec(any::<bool>(), 0..200)) {
            let mut queue = Queue::default();
            let (mut urgent, mut data) = (Vec::new(), Vec::new());
            let mut dropped = 0;
            for (number, is_urgent) in kinds.iter().enumerate() {
                let bytes = number.to_be_bytes().to_vec();
                let (kind, list) = if *is_urgent { (Kind::Urgent, &mut urgent) } else { (Kind::Data, &mut data) };
                list.push(bytes.clone());
                dropped += usize::from(queue.push(kind, peer(), bytes));
            }
            let newest = |list: &[Vec<u8>]| list[list.len().saturating_sub(CAPACITY)..].to_vec();
            let want: Vec<Item> = newest(&urgent)
                .into_iter()
                .chain(newest(&data))
                .map(|bytes| Item::Packet { to: peer(), bytes })
                .collect();
            prop_assert_eq!(dropped, kinds.len() - want.len());
            prop_assert_eq!(drain(&mut queue), want);
        }
    }

    #[test]
    fn a_flood_of_data_does_not_push_out_urgent_packets() {
        let mut queue = Queue::default();
        queue.push(Kind::Urgent, peer(), b"disco".to_vec());
        for _ in 0..1000 {
            queue.push(Kind::Data, peer(), b"data".to_vec());
        }
        assert_eq!(queue.pop(), Some(Item::Packet { to: peer(), bytes: b"disco".to_vec() }));
    }

    #[test]
    fn each_connection_is_told_whether_it_is_home() {
        let mut queue = Queue::default();
        queue.begin();
        assert_eq!(queue.pop(), None, "a visitor needs to say nothing");
        queue.set_home(true);
        assert_eq!(drain(&mut queue), [Item::Preferred(true)]);
        queue.begin();
        queue.pong([7; 8]);
        assert_eq!(drain(&mut queue), [Item::Pong([7; 8]), Item::Preferred(true)]);
        queue.set_home(false);
        assert_eq!(drain(&mut queue), [Item::Preferred(false)]);
    }
}
