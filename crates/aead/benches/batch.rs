//! Prints how fast batches are sealed and opened, beside aws-lc-rs.
//!
//! `cargo bench -p warren-aead`; as a test (`cargo test --benches`) it only checks that it runs.
#![allow(clippy::print_stdout, clippy::indexing_slicing, reason = "a program for developers")]
#![allow(clippy::disallowed_methods, reason = "measuring time is what this program is for")]

use std::hint::black_box;
use std::time::Instant;

use warren_aead::{Backend, Key, Packet, TAG_BYTES};

/// Packets of the longest batch.
const MOST: usize = 64;

fn main() {
    let rounds = if std::env::args().any(|word| word == "--bench") { 301 } else { 1 };
    let fast = if Backend::Avx512.is_available() { Backend::Avx512 } else { Backend::AwsLc };
    println!("{fast:?} against aws-lc-rs, GB/s of text and ratio; the least time of {rounds} rounds");
    println!(
        "{:>6} {:>6}  {:>6} {:>6} {:>6}  {:>6} {:>6} {:>6}",
        "bytes", "batch", "seal", "aws", "ratio", "open", "aws", "ratio"
    );
    let keys = [fast, Backend::AwsLc].map(|backend| Key::with_backend(&[7; 32], backend));
    for bytes in [64, 1420, 16_384] {
        for count in [1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 45, MOST] {
            let mut least = [[f64::INFINITY; 2]; 2];
            for _ in 0..rounds {
                for (key, [seal, open]) in keys.iter().zip(&mut least) {
                    let times = round(key, bytes, count);
                    *seal = seal.min(times[0]);
                    *open = open.min(times[1]);
                }
            }
            let speed = |seconds: f64| (bytes * count) as f64 / seconds / 1e9;
            let [[seal, open], [aws_seal, aws_open]] = least;
            println!(
                "{bytes:>6} {count:>6}  {:>6.2} {:>6.2} {:>6.2}  {:>6.2} {:>6.2} {:>6.2}",
                speed(seal),
                speed(aws_seal),
                aws_seal / seal,
                speed(open),
                speed(aws_open),
                aws_open / open
            );
        }
    }
}

/// Seals and opens some batches in turn and returns seconds per batch.
fn round(key: &Key, bytes: usize, count: usize) -> [f64; 2] {
    let batches = (MOST / count).clamp(1, 8);
    let mut buffers = vec![vec![0_u8; bytes + TAG_BYTES]; count * batches];
    let mut packets: Vec<Packet<'_>> =
        buffers.iter_mut().zip(0..).map(|(buffer, counter)| Packet::new(counter, buffer)).collect();
    let start = Instant::now();
    packets.chunks_mut(count).for_each(|batch| key.seal_batch(black_box(batch)));
    let seal = start.elapsed();
    let start = Instant::now();
    packets.chunks_mut(count).for_each(|batch| key.open_batch(black_box(batch)));
    let open = start.elapsed();
    assert!(packets.iter().all(|packet| packet.is_good), "what was sealed opens");
    [seal, open].map(|time| time.as_secs_f64() / batches as f64)
}
