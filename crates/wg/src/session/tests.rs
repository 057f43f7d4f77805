#![expect(clippy::disallowed_methods, reason = "any instant will do as the start of the virtual clock")]

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use proptest::prelude::*;
use zeroize::Zeroizing;

/// Two ends of one session.
fn pair() -> (Arc<Session>, Arc<Session>, Instant) {
    let now = Instant::now();
    let end = |is_initiator, sending, receiving| {
        let [sending, receiving] = [sending, receiving].map(|byte| Zeroizing::new([byte; 32]));
        let parts =
            Parts { peer: NodeKey::default(), local_index: 7, remote_index: 8, is_initiator, sending, receiving };
        Arc::new(Session::new(&parts, now))
    };
    (end(true, 1, 2), end(false, 2, 1), now)
}

fn sealed(session: &Session, data: &[u8], mtu: usize, now: Instant) -> Result<Vec<u8>, SealError> {
    let mut buffer = vec![0xff; HEADROOM + data.len() + TAILROOM];
    buffer[HEADROOM..HEADROOM + data.len()].copy_from_slice(data);
    let length = session.seal(&mut buffer, data.len(), mtu, now)?;
    buffer.truncate(length);
    Ok(buffer)
}

#[test]
fn packets_are_padded_with_zeros_but_not_beyond_the_mtu() {
    for (length, mtu, padded) in [
        (0, 1280, 0),
        (1, 1280, 16),
        (16, 1280, 16),
        (17, 1280, 32),
        (1265, 1280, 1280),
        (1270, 1275, 1275),
        (1275, 1275, 1275),
        (1281, 1280, 1281),
    ] {
        let (one, two, now) = pair();
        let mut datagram = sealed(&one, &vec![5; length], mtu, now).unwrap();
        assert_eq!(datagram.len(), 32 + padded);
        assert_eq!(two.open(&mut datagram, now).map(|opened| opened.length), Ok(padded));
        assert!(datagram[HEADROOM + length..HEADROOM + padded].iter().all(|byte| *byte == 0), "{length} in {mtu}");
    }
}

#[test]
fn session_of_180_seconds_neither_seals_nor_opens() {
    let (one, two, now) = pair();
    let last = now + REJECT_AFTER - Duration::from_nanos(1);
    let mut in_time = sealed(&one, b"x", 1280, last).unwrap();
    let mut late = sealed(&one, b"y", 1280, last).unwrap();
    assert!(two.open(&mut in_time, last).is_ok());
    let end = now + REJECT_AFTER;
    assert_eq!(two.open(&mut late, end), Err(OpenError::Expired));
    assert_eq!(sealed(&one, b"z", 1280, end), Err(SealError::Expired));
}

#[test]
fn used_up_session_never_wraps_its_counter() {
    let (one, two, now) = pair();
    one.counter.store(REJECT_AFTER_MESSAGES - 1, Ordering::Relaxed);
    let mut datagram = sealed(&one, b"last", 1280, now).unwrap();
    assert!(two.open(&mut datagram, now).is_ok());
    for _ in 0..10_000 {
        assert_eq!(sealed(&one, b"no more", 1280, now), Err(SealError::Expired));
    }
    let mut beyond = [&[4, 0, 0, 0, 7, 0, 0, 0][..], &u64::MAX.to_le_bytes(), &[0; 32]].concat();
    assert_eq!(two.open(&mut beyond, now), Err(OpenError::Expired));
}

#[test]
fn responder_seals_nothing_before_it_has_opened_something() {
    let (one, two, now) = pair();
    assert_eq!(sealed(&two, b"early", 1280, now), Err(SealError::Unconfirmed));
    let mut empty = sealed(&one, b"", 1280, now).unwrap();
    assert_eq!(two.open(&mut empty, now), Ok(Opened { length: 0, confirmed: true }));
    let mut answer = sealed(&two, b"now", 1280, now).unwrap();
    assert_eq!(one.open(&mut answer, now), Ok(Opened { length: 16, confirmed: false }));
}

#[test]
fn forged_counters_do_not_move_the_window() {
    let (one, two, now) = pair();
    let mut first = sealed(&one, b"first", 1280, now).unwrap();
    let mut forged = first.clone();
    forged[8..16].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    assert_eq!(two.open(&mut forged, now), Err(OpenError::Decrypt));
    assert!(two.open(&mut first, now).is_ok());
}

#[test]
fn workers_never_share_a_counter() {
    let (one, _, now) = pair();
    let workers = [(); 4].map(|()| {
        let session = Arc::clone(&one);
        std::thread::spawn(move || {
            let counter =
                |_| u64::from_le_bytes(*sealed(&session, b"x", 1280, now).unwrap()[8..].first_chunk().unwrap());
            (0..2000).map(counter).collect::<Vec<_>>()
        })
    });
    let counters: BTreeSet<u64> = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
    assert_eq!(counters.len(), 8000);
}

#[test]
fn packet_that_comes_to_several_workers_is_opened_once() {
    let (one, two, now) = pair();
    let datagrams: Vec<_> = (0..500).map(|_| sealed(&one, b"x", 1280, now).unwrap()).collect();
    let workers = [(); 4].map(|()| {
        let (session, datagrams) = (Arc::clone(&two), datagrams.clone());
        std::thread::spawn(move || datagrams.into_iter().filter_map(|mut one| session.open(&mut one, now).ok()).count())
    });
    assert_eq!(workers.into_iter().map(|worker| worker.join().unwrap()).sum::<usize>(), 500);
}

#[test]
fn batch_takes_counters_in_order_and_opens_what_is_new_and_whole() {
    let (one, two, now) = pair();
    let mut first = sealed(&one, b"before", 1280, now).unwrap();
    assert!(two.open(&mut first, now).is_ok());
    let lengths: Vec<usize> = (0..3 * BATCH + 5).map(|at| at * 37 % 1300).collect();
    let mut buffers: Vec<Vec<u8>> = lengths.iter().map(|length| vec![9; HEADROOM + length + TAILROOM]).collect();
    let mut packets: Vec<_> =
        buffers.iter_mut().zip(&lengths).map(|(buffer, length)| Outgoing { buffer, length: *length }).collect();
    one.seal_batch(&mut packets, 1280, now).unwrap();
    let mut datagrams: Vec<Vec<u8>> = packets.iter().map(|packet| packet.buffer[..packet.length].to_vec()).collect();
    for (datagram, counter) in datagrams.iter().zip(1_u64..) {
        assert_eq!(datagram[8..16], counter.to_le_bytes());
    }

    // One changed, one twice, one that was opened before, one that is something else.
    datagrams[3][20] ^= 1;
    datagrams[20] = datagrams[19].clone();
    datagrams[30] = first;
    datagrams[31] = vec![1, 0, 0, 0];
    let mut packets: Vec<_> = datagrams.iter_mut().map(|datagram| Incoming::new(datagram)).collect();
    two.open_batch(&mut packets, now);
    for (at, (packet, length)) in packets.iter().zip(&lengths).enumerate() {
        let expected = match at {
            3 => Err(OpenError::Decrypt),
            20 | 30 => Err(OpenError::Replay),
            31 => Err(OpenError::Form),
            _ => Ok(Opened { length: padded(*length, 1280), confirmed: false }),
        };
        assert_eq!(packet.opened, expected, "{at}");
        if expected.is_ok() {
            assert!(packet.datagram[HEADROOM..HEADROOM + length].iter().all(|byte| *byte == 9), "{at}");
        }
    }
}

#[test]
fn batch_that_does_not_fit_uses_no_counter() {
    let (one, _, now) = pair();
    let (mut fits, mut small) = ([0; 100], [0; 40]);
    let mut packets = [Outgoing { buffer: &mut fits, length: 20 }, Outgoing { buffer: &mut small, length: 20 }];
    assert_eq!(one.seal_batch(&mut packets, 1280, now), Err(SealError::Room));
    assert_eq!(one.sealed(), 0);
    one.counter.store(REJECT_AFTER_MESSAGES - 1, Ordering::Relaxed);
    let mut fits = [[0; 100]; 2];
    let mut packets = fits.each_mut().map(|buffer| Outgoing { buffer, length: 20 });
    assert_eq!(one.seal_batch(&mut packets, 1280, now), Err(SealError::Expired));
    assert_eq!(one.seal_batch(&mut packets[..1], 1280, now), Ok(()));
}

#[test]
fn first_packet_of_a_batch_confirms() {
    let (one, two, now) = pair();
    let mut datagrams = [(); 3].map(|()| sealed(&one, b"x", 1280, now).unwrap());
    datagrams[0][17] ^= 1;
    let mut packets = datagrams.each_mut().map(|datagram| Incoming::new(datagram));
    two.open_batch(&mut packets, now);
    let confirmed = packets.map(|packet| packet.opened.map(|opened| opened.confirmed));
    assert_eq!(confirmed, [Err(OpenError::Decrypt), Ok(true), Ok(false)]);
}

#[test]
fn debug_shows_no_key() {
    let (one, _, _) = pair();
    let shown = format!("{one:?}");
    assert!(!shown.contains("1, 1") && !shown.contains("0101"), "{shown}");
}

proptest! {
    #[test]
    fn no_buffer_panics(room in 0_usize..200, length in prop_oneof![0_usize..200, Just(usize::MAX), Just(usize::MAX - 20)],
                        mtu in prop_oneof![0_usize..200, Just(usize::MAX)]) {
        let (one, two, now) = pair();
        let mut buffer = vec![1; room];
        match one.seal(&mut buffer, length, mtu, now) {
            Ok(sealed) => {
                prop_assert!(sealed <= room && sealed >= length + 32);
                prop_assert!(two.open(&mut buffer[..sealed], now).is_ok());
            }
            Err(error) => prop_assert_eq!(error, SealError::Room),
        }
        let enough = length.checked_add(HEADROOM + TAILROOM).is_some_and(|wanted| wanted <= room);
        prop_assert!(!enough || one.sealed() == 1);
    }

    #[test]
    fn no_datagram_opens_but_a_sealed_one(mut bytes in proptest::collection::vec(any::<u8>(), 0..100), head: bool) {
        let (_, two, now) = pair();
        if head && bytes.len() >= 4 {
            bytes[..4].copy_from_slice(&[4, 0, 0, 0]);
        }
        prop_assert!(two.open(&mut bytes, now).is_err());
        prop_assert!(!two.is_confirmed());
    }
}
