//! Whose packets for a prefix are, and what the packets of a network with several routers tell.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ipnet::IpNet;
use warren_wire::key::NodeKey;

use super::shared::PeerSlot;

/// Says which peer has a prefix.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    /// The peer that gets its packets.
    pub(super) slot: Arc<PeerSlot>,
    /// What is counted, if other peers lead there, too.
    pub(super) watch: Option<Arc<Watch>>,
}

impl From<Arc<PeerSlot>> for Owner {
    fn from(slot: Arc<PeerSlot>) -> Self {
        Self { slot, watch: None }
    }
}

impl Owner {
    /// Returns the slot of a peer that may send with addresses of the prefix. Out of a network with several routers packets
    /// come by any of them, as its hosts like.
    pub(super) fn sender(&self, key: NodeKey) -> Option<&Arc<PeerSlot>> {
        if self.slot.key() == key {
            return Some(&self.slot);
        }
        self.watch.as_ref()?.routers.iter().find(|slot| slot.key() == key)
    }
}

/// Holds what the packets of a network with several routers tell: written by the worker, read by the decision task. Times are
/// those of [`super::shared::Shared::stamp`], 0 for never.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) network: IpNet,
    /// All that lead into it.
    pub(super) routers: Vec<Arc<PeerSlot>>,
    pub(super) sent: AtomicU64,
    /// The first packet into it since the last one out of it.
    pub(super) waiting: AtomicU64,
    pub(super) answered: AtomicU64,
    /// The decision task looks at it.
    pub(super) is_awake: AtomicBool,
    /// Where the packet that waits went, in two halves. They may be of two packets, then there is no such host perhaps.
    host: [AtomicU64; 2],
}

impl Watch {
    /// Makes one of which nothing is known.
    pub(super) fn new(network: IpNet, routers: Vec<Arc<PeerSlot>>) -> Self {
        Self {
            network,
            routers,
            sent: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            is_awake: AtomicBool::new(false),
            host: [AtomicU64::new(0), AtomicU64::new(0)],
        }
    }

    /// Counts a packet into the network. Tells whether the decision task must learn that it is in use.
    pub(super) fn note_sent(&self, to: IpAddr, stamp: u64) -> bool {
        self.sent.store(stamp, Ordering::Relaxed);
        let sleeps = !self.is_awake.swap(true, Ordering::AcqRel);
        if sleeps || self.waiting.load(Ordering::Relaxed) == 0 {
            let bits = match to {
                IpAddr::V4(to) => to.to_ipv6_mapped().to_bits(),
                IpAddr::V6(to) => to.to_bits(),
            };
            let [high, low] = [bits >> 64, bits & u128::from(u64::MAX)];
            for (half, bits) in self.host.iter().zip([high, low]) {
                half.store(u64::try_from(bits).unwrap_or_default(), Ordering::Relaxed);
            }
            self.waiting.store(stamp, Ordering::Relaxed);
        }
        sleeps
    }

    /// Counts a packet out of the network.
    pub(super) fn note_received(&self, stamp: u64) {
        self.answered.store(stamp, Ordering::Relaxed);
        self.waiting.store(0, Ordering::Relaxed);
    }

    /// Returns the host of which no answer came, if it is one of the network.
    pub(super) fn host(&self) -> Option<IpAddr> {
        let [high, low] = self.host.each_ref().map(|half| u128::from(half.load(Ordering::Relaxed)));
        let host = IpAddr::V6(Ipv6Addr::from_bits(high << 64 | low)).to_canonical();
        self.network.contains(&host).then_some(host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_the_first_packet_since_the_last_answer() {
        let watch = Watch::new("10.7.0.0/16".parse().unwrap(), Vec::new());
        let [one, two]: [IpAddr; 2] = ["10.7.0.1", "10.7.0.2"].map(|text| text.parse().unwrap());
        let waiting = || watch.waiting.load(Ordering::Relaxed);
        assert!(watch.note_sent(one, 5), "it begins to be in use");
        assert!(!watch.note_sent(two, 6));
        assert_eq!((waiting(), watch.host()), (5, Some(one)));
        watch.note_received(7);
        assert_eq!(waiting(), 0);
        assert!(!watch.note_sent(two, 8));
        assert_eq!((waiting(), watch.host()), (8, Some(two)));
        // What was never answered long ago says nothing of today.
        watch.is_awake.store(false, Ordering::Relaxed);
        assert!(watch.note_sent(one, 900));
        assert_eq!((waiting(), watch.host()), (900, Some(one)));
    }

    #[test]
    fn hosts_of_both_families_are_kept() {
        for (net, host) in [("10.7.0.0/16", "10.7.3.4"), ("fd92:4::/64", "fd92:4::ffff:1:2")] {
            let watch = Watch::new(net.parse().unwrap(), Vec::new());
            assert_eq!(watch.host(), None);
            watch.note_sent(host.parse().unwrap(), 1);
            assert_eq!(watch.host(), Some(host.parse().unwrap()));
        }
    }
}
