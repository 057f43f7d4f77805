//! Packets that wait for a session.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_wire::key::NodeKey;

use crate::engine::shared::PeerSlot;

/// Most packets that wait for one peer; the oldest is pushed out by a new one.
pub(super) const PER_PEER: usize = 32;
/// Most packets that wait at all; new ones are dropped then.
pub(super) const IN_ALL: usize = 1024;
/// Time after which a packet is not worth sending any more; TCP has sent it again by then.
pub(super) const WAIT_LIMIT: Duration = Duration::from_secs(15);

/// Keeps packets, few and briefly.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    peers: BTreeMap<NodeKey, Room>,
    packets: usize,
    pushed_out: usize,
}

#[derive(Debug)]
struct Room {
    slot: Arc<PeerSlot>,
    packets: VecDeque<(Instant, Vec<u8>)>,
}

impl Waiting {
    /// Keeps a packet for `slot`.
    pub(super) fn push(&mut self, slot: &Arc<PeerSlot>, packet: &[u8], now: Instant) {
        if self.packets >= IN_ALL {
            self.sweep(now);
        }
        // A peer that was removed and came back has a new slot; what waits for the old one is void.
        if self.peers.get(&slot.key()).is_some_and(|room| !Arc::ptr_eq(&room.slot, slot)) {
            self.forget(&slot.key());
        }
        if self.packets >= IN_ALL {
            self.pushed_out += 1;
            return;
        }
        let room =
            self.peers.entry(slot.key()).or_insert_with(|| Room { slot: Arc::clone(slot), packets: VecDeque::new() });
        if room.packets.len() >= PER_PEER {
            room.packets.pop_front();
            self.packets -= 1;
            self.pushed_out += 1;
        }
        room.packets.push_back((now, packet.to_vec()));
        self.packets += 1;
    }

    /// Takes the oldest packet of a peer that has a session.
    pub(super) fn pop_ready(&mut self, now: Instant) -> Option<(Arc<PeerSlot>, Vec<u8>)> {
        loop {
            let slot = self.peers.values().map(|room| &room.slot).find(|slot| slot.session().is_some()).cloned()?;
            let packets = &mut self.peers.get_mut(&slot.key())?.packets;
            while let Some((since, packet)) = packets.pop_front() {
                self.packets -= 1;
                if now.saturating_duration_since(since) <= WAIT_LIMIT {
                    return Some((slot, packet));
                }
                self.pushed_out += 1;
            }
            self.peers.remove(&slot.key());
        }
    }

    /// Forgets all that has waited too long.
    fn sweep(&mut self, now: Instant) {
        for room in self.peers.values_mut() {
            room.packets.retain(|(since, _)| now.saturating_duration_since(*since) <= WAIT_LIMIT);
        }
        self.peers.retain(|_, room| !room.packets.is_empty());
        let left = self.peers.values().map(|room| room.packets.len()).sum();
        self.pushed_out += self.packets - left;
        self.packets = left;
    }

    fn forget(&mut self, key: &NodeKey) {
        if let Some(room) = self.peers.remove(key) {
            self.packets -= room.packets.len();
            self.pushed_out += room.packets.len();
        }
    }

    /// Returns how many packets were given up since the last call.
    pub(super) fn take_pushed_out(&mut self) -> usize {
        std::mem::take(&mut self.pushed_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn the_room_is_bounded_whatever_comes(peers in proptest::collection::vec(0_u8..64, 0..3000)) {
            let slots: Vec<_> =
                (0..64).map(|number| Arc::new(PeerSlot::new(NodeKey::from_bytes([number; 32])))).collect();
            #[expect(clippy::disallowed_methods, reason = "any instant will do as the start of the virtual clock")]
            let now = Instant::now();
            let mut waiting = Waiting::default();
            let (mut kept, mut lost) = (0, 0);
            for peer in peers {
                waiting.push(&slots[usize::from(peer)], &[peer; 20], now);
                kept += 1;
                lost += waiting.take_pushed_out();
                prop_assert!(waiting.packets <= IN_ALL);
                prop_assert!(waiting.peers.values().all(|room| room.packets.len() <= PER_PEER));
                prop_assert_eq!(waiting.packets, waiting.peers.values().map(|room| room.packets.len()).sum::<usize>());
                prop_assert_eq!(waiting.packets + lost, kept);
            }
            prop_assert!(waiting.pop_ready(now).is_none(), "nobody has a session");
            waiting.sweep(now + WAIT_LIMIT + Duration::from_millis(1));
            prop_assert_eq!((waiting.packets, waiting.peers.len()), (0, 0));
        }
    }
}
