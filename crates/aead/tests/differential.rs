//! The vector back end gives what aws-lc-rs gives.

#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test stops where it fails")]

use proptest::prelude::*;
use warren_aead::{Backend, Key, LANES, Packet, TAG_BYTES};

const BACKENDS: [Backend; 3] = [Backend::AwsLc, Backend::Avx2, Backend::Avx512];

/// Bytes that look random but are the same in each run.
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn key(seed: u64) -> [u8; 32] {
    bytes(seed, 32).try_into().unwrap()
}

/// Seals texts, with counters from `first` on, and returns texts and tags.
fn sealed(key: &[u8; 32], backend: Backend, first: u64, texts: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut buffers: Vec<Vec<u8>> = texts.iter().map(|text| [text.as_slice(), &[0xee; TAG_BYTES]].concat()).collect();
    let mut packets: Vec<Packet<'_>> =
        buffers.iter_mut().enumerate().map(|(at, buffer)| Packet::new(first.wrapping_add(at as u64), buffer)).collect();
    Key::with_backend(key, backend).seal_batch(&mut packets);
    assert!(packets.iter().all(|packet| packet.is_good));
    buffers
}

/// Opens packets and returns which were good, and their buffers.
fn opened(key: &[u8; 32], backend: Backend, first: u64, buffers: &[Vec<u8>]) -> Vec<(bool, Vec<u8>)> {
    let mut buffers = buffers.to_vec();
    let mut packets: Vec<Packet<'_>> =
        buffers.iter_mut().enumerate().map(|(at, buffer)| Packet::new(first.wrapping_add(at as u64), buffer)).collect();
    Key::with_backend(key, backend).open_batch(&mut packets);
    packets.into_iter().map(|packet| (packet.is_good, packet.buffer.to_vec())).collect()
}

/// Seals with both, opens with both, also after packets of `broken` were changed.
fn compare(key: &[u8; 32], first: u64, texts: &[Vec<u8>], broken: &[(usize, usize)]) {
    let [expected, mut made, more] = BACKENDS.map(|backend| sealed(key, backend, first, texts));
    for other in [&made, &more] {
        assert!(expected == *other, "sealed, lengths {:?}", texts.iter().map(Vec::len).collect::<Vec<_>>());
    }
    for (packet, bit) in broken {
        let packet = packet % made.len();
        let bit = bit % (made[packet].len() * 8);
        made[packet][bit / 8] ^= 1 << (bit % 8);
    }
    for backend in BACKENDS {
        for (at, (is_good, buffer)) in opened(key, backend, first, &made).into_iter().enumerate() {
            assert_eq!(is_good, made[at] == expected[at], "{backend:?}, packet {at}");
            if is_good {
                assert!(buffer[..texts[at].len()] == texts[at], "{backend:?}, packet {at}");
            } else {
                assert!(buffer.iter().all(|byte| *byte == 0), "{backend:?}, packet {at} of those refused");
            }
        }
    }
}

#[test]
fn all_lengths_give_the_same() {
    for length in 0..=4200 {
        let texts: Vec<_> = (0..LANES).map(|at| bytes((length * LANES + at) as u64, length)).collect();
        compare(&key(length as u64), length as u64, &texts, &[(length, length * 31)]);
    }
}

#[test]
fn all_lengths_give_the_same_beside_others() {
    for length in 0..=4200_usize {
        // Each length in another lane, among neighbours that are shorter and longer, in batches of 4 to 20.
        let count = 4 + length % 17;
        let texts: Vec<_> = (0..count)
            .map(|at| bytes(at as u64, (length + (at + LANES - length % LANES) % LANES * 613) % 4201))
            .collect();
        compare(&key(length as u64), u64::MAX - 7, &texts, &[(length, 1), (length + 5, 999)]);
    }
}

#[test]
fn all_sizes_of_batches_give_the_same() {
    for count in 0..=70_usize {
        for length in [0, 1, 15, 16, 17, 63, 64, 65, 1420, 1424] {
            let texts: Vec<_> = (0..count).map(|at| bytes(at as u64, length)).collect();
            let broken: &[_] = if count == 0 { &[] } else { &[(count - 1, 5)] };
            compare(&key(count as u64), 1 << 40, &texts, broken);
        }
    }
}

#[test]
fn buffers_without_room_for_a_tag_are_refused() {
    for backend in BACKENDS {
        for length in 0..TAG_BYTES {
            let mut buffers = vec![vec![7; length]; 6];
            buffers.extend([vec![7; 40], vec![7; 50]]);
            let mut packets: Vec<_> = buffers.iter_mut().map(|buffer| Packet::new(1, buffer)).collect();
            Key::with_backend(&key(1), backend).seal_batch(&mut packets);
            let good: Vec<bool> = packets.iter().map(|packet| packet.is_good).collect();
            assert_eq!(good, [false, false, false, false, false, false, true, true]);
            assert!(packets[0].buffer.iter().all(|byte| *byte == 7));
            packets.iter_mut().for_each(|packet| packet.counter = 1);
            Key::with_backend(&key(1), backend).open_batch(&mut packets);
            let good: Vec<bool> = packets.iter().map(|packet| packet.is_good).collect();
            assert_eq!(good, [false, false, false, false, false, false, true, true]);
        }
    }
}

#[test]
fn long_packets_give_the_same() {
    let texts: Vec<_> = (0..9).map(|at| bytes(at, 65_519 + usize::try_from(at).unwrap())).collect();
    compare(&key(5), 3, &texts, &[(2, 80_000)]);
    let texts: Vec<_> = (0..5).map(|at| bytes(at, if at == 2 { 200_000 } else { 65_500 })).collect();
    compare(&key(6), 3, &texts, &[(2, 80_000)]);
}

proptest! {
    #[test]
    fn any_batch_gives_the_same(
        key: [u8; 32],
        first: u64,
        texts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..40),
        broken in proptest::collection::vec((any::<usize>(), any::<usize>()), 0..5),
    ) {
        compare(&key, first, &texts, &broken);
    }
}
