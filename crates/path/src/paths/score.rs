//! Which of two direct paths is better.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A direct path, for comparison.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quality {
    pub(super) address: SocketAddr,
    pub(super) latency: Duration,
    /// It is known to carry less than the tunnel needs.
    pub(super) narrow: bool,
}

/// Tells whether a direct path to `a` is worth leaving one to `b` for. Which of them is trusted is not looked at.
///
/// Source: Tailscale `wgengine/magicsock/endpoint.go`, `betterAddr`. There the size of packets is compared only between two
/// looks at one address; here an address that carries all that the tunnel sends beats one that does not.
pub(super) fn is_better(a: Quality, b: Quality) -> bool {
    if a.address == b.address {
        return false;
    }
    if a.narrow != b.narrow {
        return b.narrow;
    }
    let points_a = bonus(a.address) + gain(a.latency, b.latency);
    let points_b = bonus(b.address) + gain(b.latency, a.latency);
    // One per cent is no reason to move.
    !(points_a <= 1 && points_b == 0) && points_a > points_b
}

/// Points for what an address tells: nearer is cheaper and safer, and IPv6 has fewer NATs.
fn bonus(address: SocketAddr) -> u128 {
    let (loopback, link_local, private, six) = match address.ip().to_canonical() {
        IpAddr::V4(ip) => (ip.is_loopback(), ip.is_link_local(), ip.is_private(), 0),
        IpAddr::V6(ip) => (ip.is_loopback(), ip.is_unicast_link_local(), ip.is_unique_local(), 10),
    };
    let near = match (loopback, link_local, private) {
        (true, _, _) => 50,
        (_, true, _) => 30,
        (_, _, true) => 20,
        (false, false, false) => 0,
    };
    near + six
}

/// Points for being faster: the part of the other's latency that is saved, in per cent.
fn gain(own: Duration, other: Duration) -> u128 {
    if own < other { 100 - 100 * own.as_nanos() / other.as_nanos() } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(address: &str, micros: u64) -> Quality {
        Quality { address: address.parse().unwrap(), latency: Duration::from_micros(micros), narrow: false }
    }

    /// Cases that follow from the rule of the protocol page.
    #[test]
    fn faster_and_nearer_wins_and_one_per_cent_does_not_move() {
        let public = path("203.0.113.1:1", 100_000);
        assert!(is_better(path("203.0.113.2:1", 80_000), public));
        assert!(!is_better(path("203.0.113.2:1", 99_000), public), "one per cent");
        assert!(is_better(path("203.0.113.2:1", 97_900), public), "three points after rounding");
        assert!(is_better(path("192.168.0.1:1", 100_000), public), "private");
        assert!(is_better(path("[2001:db8::1]:1", 100_000), public), "IPv6");
        assert!(!is_better(path("[2001:db8::1]:1", 120_000), public), "16 points of latency beat 10 of IPv6");
        assert!(is_better(path("127.0.0.1:1", 100_000), path("10.0.0.1:1", 80_000)), "50 against 20 + 20");
        assert!(!is_better(public, public));
    }

    /// What swallows large packets is worth less than any latency.
    #[test]
    fn a_path_that_carries_all_beats_one_that_does_not() {
        let narrow = Quality { narrow: true, ..path("127.0.0.1:1", 10) };
        let slow = path("203.0.113.1:1", 300_000);
        assert!(is_better(slow, narrow) && !is_better(narrow, slow));
    }

    fn any_path() -> impl Strategy<Value = Quality> {
        let ip = prop_oneof![
            Just("203.0.113.1".parse::<IpAddr>().unwrap()),
            Just("10.0.0.1".parse().unwrap()),
            Just("2001:db8::1".parse().unwrap()),
            Just("fd00::1".parse().unwrap()),
            Just("::1".parse().unwrap()),
        ];
        (ip, 1_u16..3, 0_u64..200_000, any::<bool>()).prop_map(|(ip, port, micros, narrow)| Quality {
            address: SocketAddr::new(ip, port),
            latency: Duration::from_micros(micros),
            narrow,
        })
    }

    proptest! {
        /// Else two paths would take turns for ever.
        #[test]
        fn never_both_ways(a in any_path(), b in any_path()) {
            prop_assert!(!(is_better(a, b) && is_better(b, a)));
        }
    }
}
