//! Prints what a session adds to its cipher, and how many handshakes a core can do.
//!
//! `cargo bench -p warren-wg`; as a test (`cargo test --benches`) it only checks that it runs.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::indexing_slicing, reason = "a program for developers")]
#![allow(clippy::disallowed_methods, reason = "measuring time is what this program is for")]

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use warren_wg::{Event, HEADROOM, Incoming, Origin, Outgoing, Session, SessionTable, TAILROOM, Tunnels};
use warren_wire::key::{NodeKey, NodeSecret};

const ORIGIN: Origin = Origin::Udp(SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1));

fn main() {
    let is_bench = std::env::args().any(|word| word == "--bench");
    let (rounds, count) = if is_bench { (501, 256) } else { (1, 16) };
    println!("{:>6} {:>8}  {:>8}  {:>9}  {:>7}  {:>6}", "bytes", "what", "bare ns", "session", "adds ns", "ratio");
    for bytes in [64, 1420] {
        packets(bytes, rounds, count);
    }
    for bytes in [64, 1420] {
        batches(bytes, rounds);
    }
    handshakes(rounds, if is_bench { 20 } else { 2 });
    flood(if is_bench { 20_000 } else { 300 });
    idle(if is_bench { 10_000 } else { 10 });
}

/// Two nodes that know each other.
struct Pair {
    nodes: [Tunnels; 2],
    tables: [Arc<SessionTable>; 2],
    keys: [NodeKey; 2],
    now: Instant,
}

impl Pair {
    fn new() -> Self {
        let now = Instant::now();
        let secrets = [3, 4].map(|number| NodeSecret::from_bytes([number; 32]));
        let keys = [secrets[0].public(), secrets[1].public()];
        let tables = [(); 2].map(|()| Arc::new(SessionTable::new()));
        let wall = Duration::from_secs(1_795_000_000);
        let mut nodes = [0, 1].map(|at: usize| {
            let seed = [u8::try_from(at).unwrap(); 32];
            Tunnels::new(secrets[at].clone(), Arc::clone(&tables[at]), seed, now, wall)
        });
        nodes[0].add_peer(keys[1]);
        nodes[1].add_peer(keys[0]);
        Self { nodes, tables, keys, now }
    }

    /// Does a whole handshake and returns the initiator's session.
    fn connect(&mut self) -> Arc<Session> {
        // Neither flood guard nor load come into play at one a second.
        self.now += Duration::from_secs(1);
        let [one, two] = &mut self.nodes;
        one.start_handshake(&self.keys[1], self.now).unwrap();
        two.handle_datagram(&one.poll_transmit().unwrap().bytes, ORIGIN, self.now);
        one.handle_datagram(&two.poll_transmit().unwrap().bytes, ORIGIN, self.now);
        let mut confirmation = one.poll_transmit().unwrap().bytes;
        let session = self.tables[1].for_message(&confirmation).unwrap();
        session.open(&mut confirmation, self.now).unwrap();
        two.confirm(&session, self.now);
        while two.poll_event().is_some() {}
        let ready = std::iter::from_fn(|| one.poll_event()).find_map(|event| match event {
            Event::Ready { session, .. } => Some(session),
            Event::Closed { .. } | Event::Failed { .. } => None,
        });
        ready.unwrap()
    }
}

/// Returns the least of nanoseconds per call: what the machine can do when nothing else runs.
fn least(times: Vec<f64>) -> f64 {
    times.into_iter().fold(f64::INFINITY, f64::min)
}

fn per_call(count: u64, mut call: impl FnMut(u64)) -> f64 {
    let start = Instant::now();
    (0..count).for_each(&mut call);
    start.elapsed().as_nanos() as f64 / count as f64
}

fn packets(bytes: usize, rounds: usize, count: u64) {
    let mut pair = Pair::new();
    let session = pair.connect();
    let (now, table) = (pair.now, &pair.tables[1]);
    // As the session pads: 1420 is no multiple of 16.
    let padded = bytes.next_multiple_of(16);
    let bare = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).unwrap());
    let nonce = |number: u64| {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&number.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    };
    let mut one = vec![0_u8; HEADROOM + bytes + TAILROOM];
    let mut sealed = vec![vec![0_u8; HEADROOM + padded + 16]; usize::try_from(count).unwrap()];
    let mut times: [Vec<f64>; 5] = Default::default();
    for _ in 0..rounds {
        times[0].push(per_call(count, |number| {
            let body = &mut one[HEADROOM..HEADROOM + padded];
            let _ = black_box(bare.seal_in_place_separate_tag(nonce(number), Aad::empty(), body).unwrap());
        }));
        times[1].push(per_call(count, |_| {
            let _ = black_box(session.seal(&mut one, bytes, 65_535, now).unwrap());
        }));
        for (number, datagram) in sealed.iter_mut().enumerate() {
            let (body, tag) = datagram[HEADROOM..].split_at_mut(padded);
            let made = bare.seal_in_place_separate_tag(nonce(number as u64), Aad::empty(), body).unwrap();
            tag.copy_from_slice(made.as_ref());
        }
        times[2].push(per_call(count, |number| {
            let body = &mut sealed[usize::try_from(number).unwrap()][HEADROOM..];
            let _ = black_box(bare.open_in_place(nonce(number), Aad::empty(), body).unwrap());
        }));
        for datagram in &mut sealed {
            session.seal(datagram, padded, padded, now).unwrap();
        }
        times[3].push(per_call(count, |number| {
            let datagram = &mut sealed[usize::try_from(number).unwrap()];
            let session = table.for_message(datagram).unwrap();
            let _ = black_box(session.open(datagram, now).unwrap());
        }));
        times[4].push(per_call(count, |number| {
            drop(black_box(table.for_message(&sealed[usize::try_from(number).unwrap()])));
        }));
    }
    let [bare_seal, seal, bare_open, open, lookup] = times.map(least);
    for (what, bare, ours) in [("seal", bare_seal, seal), ("open", bare_open, open)] {
        println!("{bytes:>6} {what:>8}  {bare:>8.0}  {ours:>9.0}  {:>7.0}  {:>6.3}", ours - bare, ours / bare);
    }
    println!("{bytes:>6} {:>8}  {:>8}  {lookup:>9.0}  (part of open)", "lookup", "");
}

/// A batch through a session, beside the same packets one by one.
fn batches(bytes: usize, rounds: usize) {
    let mut pair = Pair::new();
    let session = pair.connect();
    let now = pair.now;
    let mut buffers = vec![vec![0_u8; HEADROOM + bytes + TAILROOM]; 64];
    for count in [1, 4, 8, 16, 45, 64] {
        let mut times: [Vec<f64>; 4] = Default::default();
        for _ in 0..rounds {
            for (at, step) in [count, 1].into_iter().enumerate() {
                let mut lengths = vec![];
                times[2 * at].push(per_call(1, |_| {
                    for part in buffers[..count].chunks_mut(step) {
                        let mut packets: Vec<_> =
                            part.iter_mut().map(|buffer| Outgoing { buffer, length: bytes }).collect();
                        session.seal_batch(&mut packets, 65_535, now).unwrap();
                        lengths.extend(packets.iter().map(|packet| packet.length));
                    }
                }));
                let receiver = pair.tables[1].for_message(&buffers[0]).unwrap();
                times[2 * at + 1].push(per_call(1, |_| {
                    for (part, lengths) in buffers[..count].chunks_mut(step).zip(lengths.chunks(step)) {
                        let datagrams = part.iter_mut().zip(lengths).map(|(buffer, length)| &mut buffer[..*length]);
                        let mut packets: Vec<_> = datagrams.map(Incoming::new).collect();
                        receiver.open_batch(&mut packets, now);
                        assert!(packets.iter().all(|packet| packet.opened.is_ok()));
                    }
                }));
            }
        }
        let [seal, open, one_seal, one_open] = times.map(|times| least(times) / count as f64);
        println!(
            "{bytes:>6} batch of {count:>2}: seal {seal:>4.0} ns each, {:.2} × one by one; open {open:>4.0} ns, {:.2} ×",
            one_seal / seal,
            one_open / open
        );
    }
}

/// What initiations cost a node that nobody in particular sends: the more that can be told before a key agreement, the
/// less.
fn flood(count: u64) {
    let mut pair = Pair::new();
    pair.connect();
    let victim = pair.keys[1];
    // From somebody who knows our key and is no peer: right first codes.
    let stranger = || {
        let table = Arc::new(SessionTable::new());
        let mut node = Tunnels::new(NodeSecret::from_bytes([9; 32]), table, [9; 32], pair.now, Duration::from_secs(1));
        node.add_peer(victim);
        node.start_handshake(&victim, pair.now).unwrap();
        node.poll_transmit().unwrap().bytes
    };
    let valid = stranger();
    let mut invalid = valid.clone();
    invalid[100] ^= 1;
    let now = pair.now + Duration::from_secs(10);
    let node = &mut pair.nodes[1];
    let mut replies = 0;
    let mut send = |message: &[u8], count: u64, spread: u64| {
        per_call(count, |number| {
            let host = std::net::Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(number % 60_000).unwrap());
            // A second apart there is no load.
            let now = now + Duration::from_millis(spread * number);
            node.handle_datagram(message, Origin::Udp(SocketAddr::from((host, 1))), now);
            while black_box(node.poll_transmit()).is_some() {
                replies += 1;
            }
        })
    };
    let wrong = send(&invalid, count, 0);
    let quiet = send(&valid, count.min(2000), 10);
    send(&valid, 300, 0);
    let loaded = send(&valid, count, 0);
    println!("initiation with a wrong code: {wrong:.0} ns; from a stranger at rest: {quiet:.0} ns");
    println!(
        "under load: {loaded:.0} ns, {:.0} % of a core at 50,000 a second; {replies} cookie replies",
        loaded * 5e4 / 1e7
    );
}

fn handshakes(rounds: usize, count: u64) {
    let mut pair = Pair::new();
    let times = (0..rounds).map(|_| per_call(count, |_| drop(black_box(pair.connect())))).collect();
    let whole = least(times);
    println!("whole handshakes, both sides on one core: {:.0} µs, {:.0} a second", whole / 1e3, 1e9 / whole);
}

fn idle(count: u64) {
    let mut node = Pair::new().nodes.into_iter().next().unwrap();
    let each = per_call(count, |number| {
        let mut key = [9; 32];
        key[..8].copy_from_slice(&number.to_le_bytes());
        node.add_peer(NodeKey::from_bytes(key));
    });
    println!("adding {count} peers: {each:.0} ns each, next timer: {:?}", node.poll_timeout());
}
