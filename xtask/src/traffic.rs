//! A small TCP sender and receiver that the lab runs inside its hosts: fixed bytes, counted and hashed on both ends.

mod probe;
mod whole;

pub(crate) use probe::seconds;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// What to run inside a host.
#[derive(Subcommand)]
pub(crate) enum Traffic {
    /// Accepts one connection, reads it to its end, prints bytes and hash.
    Receive {
        /// `address:port` to listen on.
        listen: String,
    },
    /// Sends `bytes` bytes over one connection, prints bytes and hash.
    Send {
        /// `address:port` of the receiver.
        to: String,
        /// How many bytes.
        bytes: u64,
    },
    /// Sends over one connection at an even speed.
    Pace {
        /// `address:port` of the receiver.
        to: String,
        /// Mbit/s.
        speed: u64,
        /// How long, in seconds.
        seconds: u64,
    },
    /// Accepts one connection, reads it to its end, prints the longest time without data.
    Gaps {
        /// `address:port` to listen on.
        listen: String,
    },
    /// Sends back every UDP datagram and everything on each TCP connection.
    Echo {
        /// `address:port` to listen on.
        listen: String,
    },
    /// Answers every HTTP request with a fixed text.
    Http {
        /// `address:port` to listen on.
        listen: String,
        /// The answer's body.
        text: String,
    },
    /// Measures when something passes.
    #[command(flatten)]
    Probe(probe::Probe),
    /// Compares every byte.
    #[command(flatten)]
    Whole(whole::Whole),
}

/// How long a connection may stand still before it counts as lost.
const STALLED: Duration = Duration::from_secs(20);

/// What an end has seen: equal on both ends when nothing was lost or changed.
pub(crate) fn summary(bytes: u64, hash: &[u8]) -> String {
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{bytes} bytes sha256 {hex}")
}

/// Runs one of them.
pub(crate) fn run(traffic: &Traffic) -> Result<()> {
    match traffic {
        Traffic::Receive { listen } => receive(listen),
        Traffic::Send { to, bytes } => send(to, *bytes),
        Traffic::Pace { to, speed, seconds } => pace(to, *speed, *seconds),
        Traffic::Gaps { listen } => gaps(listen),
        Traffic::Echo { listen } => echo(listen),
        Traffic::Http { listen, text } => http(listen, text),
        Traffic::Probe(probe) => probe::run(probe),
        Traffic::Whole(whole) => whole::run(whole),
    }
}

fn receive(listen: &str) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    println!("listening on {listen}");
    let (mut stream, from) = listener.accept()?;
    let start = Instant::now();
    let mut hash = Sha256::new();
    let mut total = 0;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        total += count as u64;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("received from {} in {seconds:.3} s: {}", from.ip(), summary(total, &hash.finalize()));
    Ok(())
}

fn send(to: &str, bytes: u64) -> Result<()> {
    let mut stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
    let mut hash = Sha256::new();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut buffer = vec![0; 256 * 1024];
    let mut left = bytes;
    while left > 0 {
        for chunk in buffer.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.copy_from_slice(&state.to_le_bytes());
        }
        let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        stream.write_all(&buffer[..count])?;
        hash.update(&buffer[..count]);
        left -= count as u64;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    // The receiver closes after its last byte: wait for that, so that the exit means "all arrived".
    let rest = stream.read(&mut [0; 1])?;
    ensure!(rest == 0, "the receiver answered, which it never does");
    println!("sent {}", summary(bytes, &hash.finalize()));
    Ok(())
}

fn pace(to: &str, speed: u64, seconds: u64) -> Result<()> {
    /// Time between writes.
    const TICK: Duration = Duration::from_millis(5);
    let mut stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
    stream.set_read_timeout(Some(STALLED))?;
    stream.set_write_timeout(Some(STALLED))?;
    let chunk = vec![7; usize::try_from(speed * 1_000_000 / 8 / 200)?];
    let start = Instant::now();
    let mut ticks = 0;
    while start.elapsed() < Duration::from_secs(seconds) {
        stream.write_all(&chunk)?;
        ticks += 1;
        std::thread::sleep((TICK * ticks).saturating_sub(start.elapsed()));
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read(&mut [0; 1]).map(drop)?;
    Ok(())
}

fn gaps(listen: &str) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    println!("listening on {listen}");
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(STALLED))?;
    let mut buffer = vec![0; 256 * 1024];
    let (mut last, mut longest) = (None::<Instant>, Duration::ZERO);
    while stream.read(&mut buffer)? > 0 {
        let now = Instant::now();
        longest = longest.max(last.map_or(Duration::ZERO, |last| now - last));
        last = Some(now);
    }
    println!("longest gap {:.1} ms", longest.as_secs_f64() * 1e3);
    Ok(())
}

fn echo(listen: &str) -> Result<()> {
    let socket = UdpSocket::bind(listen).with_context(|| format!("cannot bind {listen}"))?;
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    println!("listening on {listen}");
    let datagrams = std::thread::spawn(move || -> Result<()> {
        let mut buffer = [0; 2048];
        loop {
            let (count, from) = socket.recv_from(&mut buffer)?;
            socket.send_to(&buffer[..count], from)?;
        }
    });
    for stream in listener.incoming() {
        let stream = stream?;
        let mut back = stream.try_clone()?;
        std::io::copy(&mut &stream, &mut back).ok();
    }
    drop(datagrams);
    Ok(())
}

fn http(listen: &str, text: &str) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    println!("listening on {listen}");
    for stream in listener.incoming() {
        let mut stream = stream?;
        // One that is cut off in the middle must not keep the others waiting.
        let text = text.to_owned();
        std::thread::spawn(move || {
            let mut head = Vec::new();
            let mut byte = [0; 1];
            while !head.ends_with(b"\r\n\r\n") && head.len() < 16 * 1024 && matches!(stream.read(&mut byte), Ok(1)) {
                head.push(byte[0]);
            }
            let length = text.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}");
            drop(stream.write_all(answer.as_bytes()));
        });
    }
    Ok(())
}
