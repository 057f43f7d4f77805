//! Limits on handshakes: when a node is under load, and how many messages one address may send then.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Initiations within a second above which addresses must be proved.
const LOAD: u32 = 200;
/// How long the load is remembered.
const MEMORY: Duration = Duration::from_secs(1);
/// Messages that an address may send at once, and then each second.
const BURST: f32 = 5.0;
const PER_SECOND: f32 = 20.0;
/// Addresses that are remembered; more are refused until old ones are forgotten.
const ADDRESSES: usize = 4096;

/// Counts the initiations of the running second.
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

/// A token bucket for each address.
#[derive(Debug, Default)]
pub(crate) struct Buckets(HashMap<IpAddr, (f32, Instant)>);

impl Buckets {
    /// Takes a token of `address`.
    pub(crate) fn take(&mut self, address: IpAddr, now: Instant) -> bool {
        // An IPv6 host has at least a /64 of its own.
        let address = match address {
            IpAddr::V6(ip) => IpAddr::from((u128::from(ip) >> 64 << 64).to_be_bytes()),
            IpAddr::V4(_) => address,
        };
        if self.0.len() >= ADDRESSES && !self.0.contains_key(&address) {
            self.0.retain(|_, (_, last)| now.saturating_duration_since(*last) < MEMORY);
            if self.0.len() >= ADDRESSES {
                return false;
            }
        }
        let (tokens, last) = self.0.entry(address).or_insert((BURST, now));
        *tokens = (*tokens + now.saturating_duration_since(*last).as_secs_f32() * PER_SECOND).min(BURST);
        *last = now;
        let has = *tokens >= 1.0;
        if has {
            *tokens -= 1.0;
        }
        has
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start of the virtual clock")]
    fn bursts_are_limited_per_address_and_come_back() {
        let start = Instant::now();
        let mut buckets = Buckets::default();
        let (one, two) = (IpAddr::from([1, 2, 3, 4]), IpAddr::from([1, 2, 3, 5]));
        let taken = (0..10).filter(|_| buckets.take(one, start)).count();
        assert_eq!(taken, 5);
        assert!(buckets.take(two, start));
        assert!(buckets.take(one, start + Duration::from_millis(60)));
        for number in 0..10_000_u32 {
            buckets.take(IpAddr::from(number.to_be_bytes()), start);
        }
        assert!(buckets.0.len() <= ADDRESSES);
    }
}
