//! The yardstick for the packet worker: packets between a TUN device and a UDP socket, and nothing else.
//!
//! `cargo xtask bench tunnel` runs it, one in each of two namespaces. No peers, filter, sessions or timers: what the
//! worker does besides shows as the difference. It uses the worker's own parts for the device, the sockets and for
//! cutting and joining, and the same AEAD once a packet. The key is known to all: it protects nothing.
//!
//! - `forward TUN MTU PORT PEER none|aws|vectors`: moves packets for ever; prints `ready` when it does.
//! - `send TO SIZE RATE SECONDS`: sends datagrams of SIZE bytes from a plain socket, RATE a second, in bursts of at most
//!   32; prints `sent N`.
//! - `flood TO KEY RATE SECONDS`: sends WireGuard initiations of strangers to the node with the public KEY, RATE a second,
//!   with right first codes, as of somebody who knows the key; prints `sent N`.
//! - `receive PORT SECONDS`: prints `ready`, then the number of datagrams that came within SECONDS of the first as
//!   `received N`.

#![expect(clippy::print_stdout, reason = "its output is its purpose")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#![expect(clippy::indexing_slicing, reason = "a program for developers; checks would cost what is measured")]

use std::io::{Error, Result, Write};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_aead::{Backend, Key, LANES, Packet as Sealed, TAG_BYTES};
use warren_filter::Packet;
use warren_filter::segments::Join;
use warren_node::host::{self, Cut};
use warren_os::{Family, MAX_PACKET_BYTES, Offload, Outgoing, RecvBatch, Tun, TunRead, UdpSocket, Watched, poll};
use warren_wg::{SessionTable, Tunnels};
use warren_wire::key::{NodeKey, NodeSecret};

/// Bytes before a packet, as many as WireGuard has; its counter stands in the last eight.
const HEAD: usize = 16;
/// Bytes and packets after which what has been read is sent, as in the worker.
const BURST: (usize, usize) = (64 << 10, 128);
/// Bytes of the host after which the network gets its turn.
const TURN: usize = 128 << 10;
/// The same in packets, as small ones are many.
const TURN_PACKETS: usize = 256;
/// Datagrams of a load that are sent without a pause.
const LOAD_BURST: usize = 32;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["forward", tun, mtu, port, peer, aead] => Forwarder::open(tun, number(mtu)?, number(port)?, peer, aead)?.run(),
        ["send", to, size, rate, seconds] => {
            send(address(to)?, &[vec![0x77; number(size)?]], number(rate)?, number(seconds)?)
        }
        ["flood", to, key, rate, seconds] => {
            send(address(to)?, &initiations(&number(key)?), number(rate)?, number(seconds)?)
        }
        ["receive", port, seconds] => receive(number(port)?, number(seconds)?),
        _ => Err(Error::other("see the file's first lines for what it takes")),
    }
}

fn number<T: std::str::FromStr>(word: &str) -> Result<T> {
    word.parse().map_err(|_| Error::other(format!("{word} is no number in range")))
}

fn address(word: &str) -> Result<SocketAddr> {
    word.parse().map_err(|_| Error::other(format!("{word} is no ADDRESS:PORT")))
}

fn say(line: std::fmt::Arguments<'_>) -> Result<()> {
    println!("{line}");
    std::io::stdout().flush()
}

/// Moves packets.
struct Forwarder {
    tun: Tun,
    socket: UdpSocket,
    peer: SocketAddr,
    /// None: packets travel as they are, behind as many bytes.
    key: Option<Key>,
    counter: u64,
    /// Datagrams on their way out, one behind the other.
    burst: Vec<u8>,
    places: Vec<Range<usize>>,
}

impl Forwarder {
    fn open(tun: &str, mtu: u16, port: u16, peer: &str, aead: &str) -> Result<Self> {
        let backend = match aead {
            "none" => None,
            "aws" => Some(Backend::AwsLc),
            "vectors" => Some(Backend::Avx512),
            _ => return Err(Error::other("none, aws or vectors")),
        };
        if backend.is_some_and(|backend| !backend.is_available()) {
            return Err(Error::other("this processor has no such vectors"));
        }
        let name = tun.parse().map_err(Error::other)?;
        Ok(Self {
            tun: Tun::open(&name, mtu, Offload::Probe).map_err(Error::other)?,
            socket: UdpSocket::bind_with(Family::V4, port, Offload::Probe)?,
            peer: address(peer)?,
            key: backend.map(|backend| Key::with_backend(&[7; 32], backend)),
            counter: 0,
            burst: vec![0; BURST.0 + MAX_PACKET_BYTES + HEAD + TAG_BYTES],
            places: Vec::with_capacity(BURST.1),
        })
    }

    fn run(mut self) -> Result<()> {
        say(format_args!("ready"))?;
        let offloads = self.tun.offloads();
        let mut received = RecvBatch::new();
        let mut join = Join::new(offloads.headers, offloads.udp);
        let mut packet = vec![0; MAX_PACKET_BYTES];
        loop {
            let watched = [Some(Watched::readable(&self.tun)), Some(Watched::readable(&self.socket))];
            let [tun, socket] = poll(watched, None)?;
            if socket.readable {
                self.inward(&mut received, &mut join)?;
            }
            if tun.readable {
                self.outward(&mut packet)?;
            }
        }
    }

    fn outward(&mut self, packet: &mut [u8]) -> Result<()> {
        let mut taken = 0;
        for _ in 0..TURN_PACKETS {
            if taken >= TURN {
                break;
            }
            let TunRead::Packet { length, header } = self.tun.read(packet)? else { break };
            taken += length;
            let Ok(cut) = Cut::new(&mut packet[..length], header) else { continue };
            for number in 0..cut.count() {
                let used = self.places.last().map_or(0, |place| place.end);
                let end = used + HEAD + cut.length(number) + TAG_BYTES;
                if cut.write(number, &mut self.burst[used + HEAD..end - TAG_BYTES]).is_some() {
                    self.places.push(used..end);
                }
                if end >= BURST.0 || self.places.len() >= BURST.1 {
                    self.flush();
                }
            }
        }
        self.flush();
        Ok(())
    }

    /// Seals what has been read, and sends datagrams of one size as one.
    fn flush(&mut self) {
        let mut rest = self.burst.as_mut_slice();
        for group in self.places.chunks(LANES) {
            let mut batch: [Sealed<'_>; LANES] = Default::default();
            for (sealed, place) in batch.iter_mut().zip(group) {
                let (datagram, behind) = std::mem::take(&mut rest).split_at_mut(place.len());
                rest = behind;
                let (head, text) = datagram.split_at_mut(HEAD);
                head[8..].copy_from_slice(&self.counter.to_le_bytes());
                *sealed = Sealed::new(self.counter, text);
                self.counter += 1;
            }
            if let Some(key) = &self.key {
                key.seal_batch(&mut batch[..group.len()]);
            }
        }
        let mut places = self.places.iter();
        let Some(mut run) = places.next().cloned() else { return };
        let mut segment = run.len();
        let mut is_closed = false;
        for place in places {
            if is_closed || place.len() > segment {
                self.socket.send_run(self.peer, &self.burst[run.clone()], segment);
                (run, segment, is_closed) = (place.clone(), place.len(), false);
            } else {
                run.end = place.end;
                is_closed = place.len() < segment;
            }
        }
        self.socket.send_run(self.peer, &self.burst[run], segment);
        self.places.clear();
    }

    fn inward(&mut self, received: &mut RecvBatch, join: &mut Join) -> Result<()> {
        self.socket.recv_batch(received)?;
        let (runs, buffer) = received.parts();
        let places: Vec<Range<usize>> = runs.iter().flat_map(warren_os::Run::datagrams).collect();
        let mut rest = &mut *buffer;
        let mut at = 0;
        for group in places.chunks(LANES) {
            let mut batch: [Sealed<'_>; LANES] = Default::default();
            for (sealed, place) in batch.iter_mut().zip(group) {
                let (datagram, behind) = std::mem::take(&mut rest)[place.start - at..].split_at_mut(place.len());
                (rest, at) = (behind, place.end);
                if let Some((head, text)) = datagram.split_first_chunk_mut::<HEAD>() {
                    let [.., a, b, c, d, e, f, g, h] = *head;
                    *sealed = Sealed::new(u64::from_le_bytes([a, b, c, d, e, f, g, h]), text);
                }
            }
            if let Some(key) = &self.key {
                key.open_batch(&mut batch[..group.len()]);
            }
        }
        for place in places {
            let inner = (place.start + HEAD).min(place.end)..place.end.saturating_sub(TAG_BYTES);
            // The length of the packet inside, as the worker asks for it.
            let Ok(packet) = Packet::parse(buffer.get(inner.clone()).unwrap_or_default()) else { continue };
            let length = packet.bytes().len();
            if join.is_full() {
                self.deliver(join, buffer);
            }
            join.push(buffer, inner.start..inner.start + length);
        }
        self.deliver(join, buffer);
        Ok(())
    }

    fn deliver(&self, join: &mut Join, buffer: &mut [u8]) {
        join.flush(buffer, |joined, buffer, parts| {
            // A packet that the host refuses is lost.
            let _ = host::write(&self.tun, joined, buffer, parts);
        });
    }
}

/// Makes initiations to a node, each of another stranger.
fn initiations(key: &NodeKey) -> Vec<Vec<u8>> {
    let start = Instant::now();
    let one = |number: u8| {
        let secret = NodeSecret::from_bytes([number | 1; 32]);
        let table = Arc::new(SessionTable::new());
        let mut node = Tunnels::new(secret, table, [number; 32], start, Duration::from_secs(1));
        node.add_peer(*key);
        node.start_handshake(key, start).ok()?;
        node.poll_transmit().map(|message| message.bytes)
    };
    (0..=u8::MAX).filter_map(one).collect()
}

/// Sends a load, evenly as far as bursts allow: the given datagrams again and again.
fn send(to: SocketAddr, datagrams: &[Vec<u8>], rate: u64, seconds: u64) -> Result<()> {
    let socket = UdpSocket::bind_with(Family::V4, 0, Offload::Off)?;
    // A load goes into the tunnel, as the packets of any program do; the daemon's own go around it.
    socket2::SockRef::from(&socket).set_mark(0)?;
    let mut next = datagrams.iter().cycle();
    let burst: [Outgoing<'_>; LOAD_BURST] =
        std::array::from_fn(|_| Outgoing { to, bytes: next.next().map_or(&[], Vec::as_slice) });
    let start = Instant::now();
    let whole = Duration::from_secs(seconds);
    let mut sent = 0;
    loop {
        let elapsed = start.elapsed();
        if elapsed >= whole {
            break;
        }
        let due = u64::try_from(elapsed.as_micros() * u128::from(rate) / 1_000_000).unwrap_or(u64::MAX);
        let number = usize::try_from(due.saturating_sub(sent)).unwrap_or(LOAD_BURST).min(LOAD_BURST);
        if number < LOAD_BURST.min(usize::try_from(rate / 5000).unwrap_or(LOAD_BURST) + 1) {
            std::thread::sleep(Duration::from_micros(50));
            continue;
        }
        // What the socket does not take counts as sent: it is lost as on the way.
        socket.send_batch(&burst[..number]);
        sent += number as u64;
    }
    say(format_args!("sent {sent}"))
}

/// Counts what arrives.
fn receive(port: u16, seconds: u64) -> Result<()> {
    let socket = UdpSocket::bind_with(Family::V4, port, Offload::Off)?;
    let mut batch = RecvBatch::new();
    say(format_args!("ready"))?;
    let mut received = 0_u64;
    let mut end: Option<Instant> = None;
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            break;
        }
        poll([Some(Watched::readable(&socket))], left)?;
        while socket.recv_batch(&mut batch)? > 0 {
            received += batch.datagrams().count() as u64;
            end = end.or_else(|| Instant::now().checked_add(Duration::from_secs(seconds)));
        }
    }
    say(format_args!("received {received}"))
}
