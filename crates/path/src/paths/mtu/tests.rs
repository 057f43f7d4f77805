//! Paths that carry large packets and paths that swallow them.

use super::*;
use crate::paths::sim::{Internet, Nat};
use crate::paths::{PathStatus, PeerConfig};
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);
/// The largest datagram of a tunnel of 1280 bytes.
const TUNNEL: u16 = 1280 + 32;

/// Two nodes that try sizes, and a network that carries packets up to `mtu`.
fn probing(mtu: usize) -> Internet {
    let mut internet = Internet::pair([Nat::None, Nat::None], 1);
    internet.mtu = mtu;
    internet.with(0, |paths, _, _| paths.set_mtu_probing(Some(TUNNEL)));
    internet
}

fn status(internet: &Internet) -> PathStatus {
    internet.nodes[0].paths.status(&internet.key(1)).unwrap()
}

fn largest(internet: &Internet) -> u16 {
    internet.path(0).direct.unwrap().largest
}

#[test]
fn nothing_is_probed_unless_that_is_wanted() {
    let mut internet = Internet::pair([Nat::None, Nat::None], 1);
    internet.mtu = 1300;
    internet.talk(60);
    assert_eq!((internet.whole.len(), status(&internet).mtu, largest(&internet)), (0, None, u16::MAX));
}

#[test]
fn the_largest_size_that_gets_through_is_known_after_a_round_trip() {
    for (mtu, proven) in [(1340, 1340), (1400, 1400), (1499, 1400), (1500, 1500), (65_535, 9000)] {
        let mut internet = probing(mtu);
        internet.talk(1);
        assert_eq!((status(&internet).mtu, largest(&internet)), (Some(proven), u16::MAX));
        internet.talk(1200);
        assert_eq!((status(&internet).mtu, largest(&internet)), (Some(proven), u16::MAX));
    }
}

#[test]
fn large_packets_leave_a_path_that_swallows_them_and_come_back_when_it_is_mended() {
    let mut internet = probing(1300);
    internet.talk(1);
    assert_eq!((status(&internet).mtu, largest(&internet)), (Some(1280), u16::MAX), "one round may fail by chance");
    internet.talk(20);
    assert_eq!((status(&internet).mtu, largest(&internet)), (Some(1280), 1252));
    assert!(internet.is_direct(0), "small packets stay");
    internet.mtu = 1500;
    internet.talk(70);
    assert_eq!((status(&internet).mtu, largest(&internet)), (Some(1500), u16::MAX));
    // And again: it shrinks later.
    internet.mtu = 1000;
    internet.talk(630);
    assert_eq!((status(&internet).mtu, largest(&internet)), (None, PING_BYTES));
    internet.with(0, |paths, _, _| paths.set_mtu_probing(None));
    assert_eq!((status(&internet).mtu, largest(&internet)), (None, u16::MAX));
}

#[test]
fn an_address_that_does_not_answer_gets_no_large_packet() {
    let mut internet = probing(65_535);
    let key = internet.key(1);
    let answering = internet.nodes[1].endpoints()[0];
    let silent = (1..60).map(|last| SocketAddr::from(([203, 0, 113, last], 41641)));
    let endpoints = std::iter::once(answering).chain(silent).collect();
    let config = PeerConfig { disco: Some(internet.nodes[1].paths.disco_key()), home: None, endpoints };
    internet.with(0, |paths, _, now| paths.set_peer(key, &config, now));
    internet.talk(100);
    assert!(!internet.whole.is_empty());
    assert!(internet.whole.iter().all(|(_, to, _)| *to == answering));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A path that loses a tenth of all datagrams, but carries them whole, is not taken for one that does not; and
    /// however much fails, what is sent stays within its budget.
    #[test]
    fn loss_is_not_taken_for_size(seed: u8, mtu in prop_oneof![Just(1500_usize), Just(700), Just(1280)]) {
        let mut internet = Internet::pair([Nat::Easy, Nat::None], seed);
        (internet.mtu, internet.loss) = (mtu, 100);
        internet.with(0, |paths, _, _| paths.set_mtu_probing(Some(TUNNEL)));
        for seconds in 1..=120_usize {
            internet.talk(1);
            let bytes: usize = internet.whole.iter().map(|(_, _, bytes)| *bytes).sum();
            prop_assert!(bytes <= 24_100 * (seconds / 5 + 1), "{bytes} bytes in {seconds} s");
            if mtu == 1500 && internet.path(0).direct.is_some() {
                prop_assert_eq!(largest(&internet), u16::MAX);
            }
        }
    }
}

/// What a path must carry follows from the tunnel, and the address family.
#[test]
fn a_wide_tunnel_needs_a_wide_path() {
    let mut internet = Internet::pair([Nat::None, Nat::None], 1);
    internet.mtu = 1500;
    internet.with(0, |paths, _, _| paths.set_mtu_probing(Some(8000 + 32)));
    internet.talk(20);
    assert_eq!((status(&internet).mtu, largest(&internet)), (Some(1500), 1500 - 28));
    // The user has chosen a smaller one.
    internet.with(0, |paths, _, _| paths.set_mtu_probing(Some(TUNNEL)));
    internet.talk(20);
    assert_eq!((status(&internet).mtu, largest(&internet)), (Some(1500), u16::MAX));
    let sizes = |needed| sizes(needed).collect::<Vec<_>>();
    assert_eq!(sizes(needed(TUNNEL, "[2001:db8::1]:1".parse().unwrap())), SIZES);
    assert_eq!(sizes(1340), [1280, 1340, 1360, 1400, 1500, 8000, 9000]);
}

#[test]
fn pings_are_padded_to_the_packet() {
    let v4 = Destination::Udp("192.0.2.1:1".parse().unwrap());
    let v6 = Destination::Udp("[2001:db8::1]:1".parse().unwrap());
    assert_eq!((padding(1280, &v4), padding(1280, &v6)), (1280 - 28 - 124, 1280 - 48 - 124));
    assert_eq!((padding(0, &v4), padding(0, &v6)), (0, 0));
}

/// A pong of an old round, and one that comes late, say nothing of the present one.
#[test]
fn rounds_are_kept_apart() {
    let start = crate::testing::epoch();
    let mut mtu = Mtu::default();
    let needed = needed(TUNNEL, "192.0.2.1:1".parse().unwrap());
    mtu.begin(start);
    mtu.note(1280, needed, start);
    mtu.end(needed, start, true);
    let second = start + SPACING;
    assert!(mtu.is_due(second) && !mtu.is_due(start + SECOND));
    mtu.begin(second);
    mtu.note(9000, needed, start);
    mtu.end(needed, start, true);
    mtu.end(needed, second, false);
    assert!(!mtu.is_narrow(), "an address that is dead is not narrow");
    mtu.end(needed, second, true);
    assert_eq!((mtu.is_narrow(), mtu.proven()), (true, None));
}
