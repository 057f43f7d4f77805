//! Limits on handshakes: when a node is under load, and how many messages one origin may send then.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::crypto::{Key, mac};
use crate::tunnels::Origin;

/// Handshake messages within a second above which origins must be proved.
const LOAD: u32 = 200;
/// How long the load is remembered.
const MEMORY: Duration = Duration::from_secs(1);
/// Messages that an origin may send at once.
const BURST: u32 = 5;
/// Time after which it may send one more: 20 a second.
const INTERVAL: Duration = Duration::from_millis(50);
/// Buckets for all origins together: 64 KiB.
const BUCKETS: usize = 4096;

/// Counts the handshake messages of the running second.
#[derive(Debug, Default)]
pub(crate) struct Load {
    since: Option<Instant>,
    count: u32,
    loaded_until: Option<Instant>,
}

impl Load {
    /// Counts one and tells whether the node is under load.
    pub(crate) fn count(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= MEMORY) {
            self.since = Some(now);
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        if self.count > LOAD {
            self.loaded_until = Some(now + MEMORY);
        }
        self.loaded_until.is_some_and(|until| now < until)
    }
}

/// A bucket for each origin, in a table of fixed size.
///
/// Origins that fall into the same bucket share it; which ones do depends on a secret key, so nobody can choose to
/// share with a victim. However many origins a flood has, memory and time for each message stay the same.
pub(crate) struct Buckets {
    key: Key,
    /// When the last message of each would have come at the steady rate; made at first use.
    due: Vec<Option<Instant>>,
}

impl Buckets {
    pub(crate) fn new(key: Key) -> Self {
        Self { key, due: Vec::new() }
    }

    /// Takes a token of an origin; false if it has none.
    pub(crate) fn take(&mut self, origin: &Origin, now: Instant) -> bool {
        if self.due.is_empty() {
            self.due = vec![None; BUCKETS];
        }
        let number = usize::from(u16::from_le_bytes(self.number(origin)));
        let Some(bucket) = self.due.get_mut(number % BUCKETS) else { return false };
        let due = bucket.map_or(now, |due| due.max(now));
        if due.saturating_duration_since(now) > INTERVAL * (BURST - 1) {
            return false;
        }
        *bucket = Some(due + INTERVAL);
        true
    }

    fn number(&self, origin: &Origin) -> [u8; 2] {
        let owner = match origin {
            // Whoever knows a relay's address may pretend to send through it.
            Origin::Udp(address) | Origin::PeerRelay { address, .. } => match address.ip().to_canonical() {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                // An IPv6 host has at least a /64 of its own.
                IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) >> 64 << 64).octets().to_vec(),
            },
            Origin::Relay { peer, .. } => peer.as_bytes().to_vec(),
        };
        let [first, second, ..] = mac(self.key.as_slice(), &[&owner]);
        [first, second]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::SocketAddr;
    use warren_wire::key::NodeKey;
    use zeroize::Zeroizing;

    fn udp(text: &str) -> Origin {
        Origin::Udp(SocketAddr::new(text.parse().unwrap(), 7))
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start of the virtual clock")]
    fn start() -> (Buckets, Instant) {
        (Buckets::new(Zeroizing::new([7; 32])), Instant::now())
    }

    fn burst(buckets: &mut Buckets, origin: Origin, now: Instant) -> usize {
        (0..100).filter(|_| buckets.take(&origin, now)).count()
    }

    #[test]
    fn bursts_are_limited_per_origin_and_come_back() {
        let (mut buckets, start) = start();
        assert_eq!(burst(&mut buckets, udp("1.2.3.4"), start), 5);
        assert_eq!(burst(&mut buckets, udp("1.2.3.5"), start), 5);
        assert_eq!(burst(&mut buckets, udp("1.2.3.4"), start + Duration::from_millis(49)), 0);
        assert_eq!(burst(&mut buckets, udp("1.2.3.4"), start + Duration::from_millis(101)), 2);
        assert_eq!(burst(&mut buckets, udp("1.2.3.4"), start + Duration::from_secs(60)), 5, "no more than the burst");
    }

    #[test]
    fn one_ipv6_network_is_one_origin_and_mapped_addresses_are_ipv4() {
        let (mut buckets, start) = start();
        assert_eq!(burst(&mut buckets, udp("2001:db8::1"), start), 5);
        assert_eq!(burst(&mut buckets, udp("2001:db8::ffff:2"), start), 0);
        assert_eq!(burst(&mut buckets, udp("::ffff:1.2.3.4"), start), 5);
        assert_eq!(burst(&mut buckets, udp("1.2.3.4"), start), 0, "the same host on a socket for both families");
        assert_eq!(burst(&mut buckets, udp("::ffff:1.2.3.5"), start), 5);
    }

    #[test]
    fn senders_over_relays_are_told_apart_by_key_not_region() {
        let (mut buckets, start) = start();
        let from = |region, key| Origin::Relay { region, peer: NodeKey::from_bytes([key; 32]) };
        assert_eq!(burst(&mut buckets, from(1, 1), start), 5);
        assert_eq!(burst(&mut buckets, from(2, 1), start), 0);
        assert_eq!(burst(&mut buckets, from(1, 2), start), 5);
    }

    proptest! {
        /// No schedule gets more than the burst plus the rate.
        #[test]
        fn rate_holds_over_any_schedule(gaps in proptest::collection::vec(0_u64..200, 1..400)) {
            let (mut buckets, start) = start();
            let mut now = start;
            let mut taken = 0_u128;
            for gap in gaps {
                now += Duration::from_millis(gap);
                taken += u128::from(buckets.take(&udp("1.2.3.4"), now));
                prop_assert!(taken <= u128::from(BURST) + (now - start).as_millis() / INTERVAL.as_millis());
            }
        }

        #[test]
        fn load_begins_after_200_in_a_second_and_ends_a_second_later(gap in 0_u64..20) {
            let (_, start) = start();
            let mut load = Load::default();
            let gap = Duration::from_millis(gap);
            let loaded = (0..400).filter(|at| load.count(start + gap * *at)).count();
            prop_assert_eq!(loaded > 0, gap < Duration::from_millis(5));
            prop_assert!(!load.count(start + gap * 400 + Duration::from_millis(1100)));
        }
    }
}
