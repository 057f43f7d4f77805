//! Floods, forgeries and strangers.

use super::*;
use crate::cookie::CODES_BYTES;
use crate::crypto::{hash, mac};
use crate::tunnels::timers::INITIATION_SPACING;
use proptest::prelude::*;

/// An initiation of a stranger who knows the public key of `to`.
fn from_stranger(to: u8, now: Instant) -> Vec<u8> {
    let mut stranger = Tunnels::new(secret(9), Arc::default(), [5; 32], now, Duration::from_secs(5));
    stranger.add_peer(secret(to).public());
    stranger.start_handshake(&secret(to).public(), now).unwrap();
    stranger.poll_transmit().unwrap().bytes
}

/// Writes a valid first code for `to` at the end of a message.
fn with_first_code(mut message: Vec<u8>, to: u8) -> Vec<u8> {
    let covered = message.len() - CODES_BYTES;
    let code = mac(&hash(&[b"mac1----", secret(to).public().as_bytes()]), &[&message[..covered]]);
    message[covered..covered + 16].copy_from_slice(&code);
    message
}

impl Pair {
    /// Puts a side under load and returns what it answered.
    fn flood(&mut self, side: usize) -> Vec<Transmit> {
        let now = self.now;
        let message = from_stranger(u8::try_from(side).unwrap(), now);
        let tunnels = &mut self.sides[side].tunnels;
        assert_eq!(tunnels.poll_transmit(), None);
        for _ in 0..300 {
            tunnels.handle_datagram(&message, Self::origin(), now);
        }
        std::iter::from_fn(|| tunnels.poll_transmit()).collect()
    }

    /// Sends another initiation from `from`, as the retry timer would.
    fn retry(&mut self, from: u8) {
        let now = self.now;
        let key = secret(1 - from).public();
        self.sides[usize::from(from)].tunnels.initiate(&key, now, now).unwrap();
        self.settle(|_, _| false);
    }
}

#[test]
fn under_load_an_address_must_be_proved_and_then_a_handshake_completes() {
    let mut pair = Pair::new();
    let replies = pair.flood(1);
    assert!(replies.len() >= 99);
    assert!(replies.iter().all(|reply| reply.bytes.len() == 64 && reply.peer.is_none()), "cookies, and to the origin");

    pair.send(0, b"x");
    pair.settle(|_, _| false);
    assert!(pair.sides[0].session.is_none(), "the first try got a cookie");
    pair.now += Duration::from_millis(500);
    pair.flood(1);
    pair.retry(0);
    assert!(pair.sides[0].session.is_some(), "the cookie let it through");
}

/// Whoever waits for a connection need not wait for the usual time between attempts, which is seconds.
#[test]
fn a_cookie_is_used_soon_once() {
    let mut pair = Pair::new();
    pair.flood(1);
    pair.send(0, b"x");
    pair.settle(|_, _| false);
    let tunnels = &pair.sides[0].tunnels;
    let soon = tunnels.poll_timeout().unwrap() - pair.now;
    assert!(soon >= INITIATION_SPACING && soon < Duration::from_millis(500), "{soon:?}");
    pair.now += soon;
    pair.flood(1);
    let now = pair.now;
    pair.sides[0].tunnels.handle_timeout(now);
    // Should it get lost, the next one takes its time.
    let second = pair.sides[0].tunnels.poll_transmit().unwrap();
    assert!(pair.sides[0].tunnels.poll_timeout().unwrap() - now > Duration::from_secs(4));
    while pair.sides[1].tunnels.poll_transmit().is_some() {}
    pair.sides[1].tunnels.handle_datagram(&second.bytes, Pair::origin(), now);
    pair.settle(|_, _| false);
    assert!(pair.sides[0].session.is_some(), "the cookie let it through");
}

#[test]
fn loaded_initiator_lets_responses_through_with_a_cookie() {
    let mut pair = Pair::new();
    pair.flood(0);
    pair.send(0, b"x");
    pair.settle(|_, _| false);
    assert!(pair.sides[0].session.is_none(), "the response got a cookie");
    pair.now += Duration::from_millis(500);
    pair.flood(0);
    pair.retry(0);
    assert!(pair.sides[0].session.is_some(), "the second response carried it");
}

#[test]
fn cookie_is_good_for_one_address_and_port_and_two_minutes() {
    let mut pair = Pair::new();
    pair.flood(1);
    pair.send(0, b"x");
    pair.settle(|_, _| false);
    let ways = [
        (([192, 0, 2, 1], 41_641), 1, 92),
        (([192, 0, 2, 1], 41_642), 1, 64),
        (([192, 0, 2, 2], 41_641), 1, 64),
        (([192, 0, 2, 1], 41_641), 121, 64),
    ];
    for (from, seconds, expected) in ways {
        pair.now += Duration::from_secs(seconds);
        pair.flood(1);
        let now = pair.now;
        let sender = &mut pair.sides[0].tunnels;
        sender.initiate(&secret(1).public(), now, now).unwrap();
        let message = sender.poll_transmit().unwrap().bytes;
        pair.sides[1].tunnels.handle_datagram(&message, Origin::Udp(from.into()), now);
        assert_eq!(pair.sides[1].tunnels.poll_transmit().unwrap().bytes.len(), expected, "{from:?}");
    }
}

#[test]
fn load_ends_with_the_flood() {
    let mut pair = Pair::new();
    pair.flood(1);
    pair.now += Duration::from_millis(1100);
    pair.send(0, b"x");
    pair.settle(|_, _| false);
    assert!(pair.sides[0].session.is_some(), "no cookie was asked for");
}

#[test]
fn responses_that_nobody_awaits_are_no_load() {
    let mut pair = Pair::new();
    let now = pair.now;
    let response = with_first_code([&[2, 0, 0, 0][..], &[9; 88]].concat(), 1);
    for _ in 0..1000 {
        pair.sides[1].tunnels.handle_datagram(&response, Pair::origin(), now);
    }
    pair.send(0, b"x");
    pair.settle(|_, _| false);
    assert!(pair.sides[0].session.is_some(), "no cookie was asked for");
}

#[test]
fn over_a_relay_only_peers_are_heard_and_only_under_their_own_name() {
    let mut pair = Pair::new();
    let now = pair.now;
    let relayed = |peer| Origin::Relay { region: 1, peer };
    pair.send(0, b"x");
    let message = pair.sides[0].tunnels.poll_transmit().unwrap().bytes;
    let third = secret(5).public();
    let tunnels = &mut pair.sides[1].tunnels;
    tunnels.handle_datagram(&message, relayed(third), now);
    assert_eq!(tunnels.poll_transmit(), None, "not from a peer");
    tunnels.add_peer(third);
    tunnels.handle_datagram(&message, relayed(third), now);
    assert_eq!(tunnels.poll_transmit(), None, "from another peer than it says");
    tunnels.handle_datagram(&message, relayed(secret(0).public()), now);
    assert_eq!(tunnels.poll_transmit().unwrap().origin, Some(relayed(secret(0).public())));
}

#[test]
fn flood_over_a_relay_is_limited_per_sender() {
    let mut pair = Pair::new();
    let now = pair.now;
    let origin = Origin::Relay { region: 1, peer: secret(0).public() };
    pair.flood(1);
    let mut answered = 0;
    for round in 0..50 {
        let [one, two] = &mut pair.sides;
        one.tunnels.initiate(&secret(1).public(), now, now).unwrap();
        two.tunnels.handle_datagram(&one.tunnels.poll_transmit().unwrap().bytes, origin, now);
        while let Some(reply) = two.tunnels.poll_transmit() {
            answered += usize::from(reply.bytes.len() == 92);
            one.tunnels.handle_datagram(&reply.bytes, origin, now);
        }
        assert!(round > 0 || answered == 0, "the first got a cookie");
    }
    assert!(answered <= 1, "initiations of one peer are 20 ms apart: {answered}");
}

#[test]
fn peer_with_an_invalid_key_costs_nothing_and_says_so() {
    let mut pair = Pair::new();
    let (now, zero) = (pair.now, NodeKey::default());
    let tunnels = &mut pair.sides[0].tunnels;
    assert!(tunnels.add_peer(zero));
    assert_eq!(tunnels.start_handshake(&zero, now), Err(StartError::InvalidKey));
    assert_eq!((tunnels.poll_transmit(), tunnels.poll_timeout()), (None, None));
}

#[test]
fn removed_peer_leaves_nothing() {
    let mut pair = Pair::connected();
    pair.send(0, b"x");
    let key = secret(1).public();
    let session = pair.sides[0].session.take().unwrap();
    let now = pair.now;
    pair.sides[0].tunnels.initiate(&key, now, now).unwrap();
    pair.sides[0].tunnels.remove_peer(&key);
    let Side { tunnels, table, .. } = &mut pair.sides[0];
    assert!(tunnels.attempts.is_empty() && tunnels.deadlines.is_empty() && tunnels.peers.len() == 0);
    assert!(table.lookup(session.local_index).is_none());
    assert_eq!(Arc::strong_count(&session), 1, "its keys go with the last holder");
    tunnels.confirm(&session, now);
    tunnels.note_activity(&key, now);
    assert_eq!(tunnels.start_handshake(&key, now), Err(StartError::UnknownPeer));
    assert!(tunnels.poll_event().is_none());
}

#[test]
fn nothing_printable_shows_a_secret() {
    let pair = Pair::connected();
    let shown = format!("{:?} {:?} {:?}", pair.sides[0].tunnels, pair.sides[0].table, pair.sides[0].session);
    let bytes = "1, 1, 1";
    assert!(!shown.contains(bytes) && !shown.contains("010101"), "{shown}");
}

/// Messages that look right as far as bytes 0 to 3 and the length go.
fn shaped() -> impl Strategy<Value = Vec<u8>> {
    let kinds = prop_oneof![Just((1_u8, 148_usize)), Just((2, 92)), Just((3, 64)), Just((4, 32)), Just((4, 100))];
    kinds.prop_flat_map(|(kind, length)| {
        proptest::collection::vec(any::<u8>(), length).prop_map(move |mut bytes| {
            bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
            bytes
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_bytes_get_no_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200), shaped in shaped()) {
        let mut pair = Pair::connected();
        for bytes in [bytes, shaped] {
            let now = pair.now;
            pair.sides[1].tunnels.handle_datagram(&bytes, Pair::origin(), now);
            pair.deliver(1, bytes);
            prop_assert_eq!(pair.sides[1].tunnels.poll_transmit(), None);
            prop_assert!(pair.sides[1].tunnels.poll_event().is_none());
            prop_assert!(pair.sides[1].received.is_empty());
        }
    }

    /// Who knows our public key can get cookies out of us, no larger than what it sent, and nothing else.
    #[test]
    fn forgeries_get_cookies_at_most(messages in proptest::collection::vec(shaped(), 1..20), loaded: bool, index: bool) {
        let mut pair = Pair::connected();
        pair.send(1, b"");
        let now = pair.now;
        pair.sides[1].tunnels.initiate(&secret(0).public(), now, now).unwrap();
        while pair.sides[1].tunnels.poll_transmit().is_some() {}
        let awaited = *pair.sides[1].tunnels.attempts.first_key_value().unwrap().0;
        if loaded {
            pair.flood(1);
        }
        for mut message in messages {
            if message[0] == 2 && index {
                message[8..12].copy_from_slice(&awaited.to_le_bytes());
            }
            if message[0] == 1 || message[0] == 2 {
                message = with_first_code(message, 1);
            }
            pair.sides[1].tunnels.handle_datagram(&message, Pair::origin(), now);
            let answers: Vec<_> = std::iter::from_fn(|| pair.sides[1].tunnels.poll_transmit()).collect();
            prop_assert!(answers.len() <= usize::from(loaded));
            for answer in answers {
                prop_assert!(answer.bytes[0] == 3 && answer.bytes.len() <= message.len());
                prop_assert_eq!((answer.peer, answer.origin), (None, Some(Pair::origin())));
            }
            prop_assert!(pair.sides[1].tunnels.poll_event().is_none());
        }
    }
}
