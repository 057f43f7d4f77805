//! Knocks again and again, and says when it was let in: what a change of policy did, and when, shows in the list.

use anyhow::{Context, Result};
use clap::{Subcommand, ValueEnum};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Time between two knocks.
const SPACING: Duration = Duration::from_millis(50);
/// How long an answer is waited for.
const TIMEOUT: Duration = Duration::from_secs(1);

/// How to knock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Knock {
    /// Asks for a page on a new TCP connection.
    Http,
    /// Sends a datagram that is sent back.
    Echo,
    /// Sends a QUIC packet of a version that does not exist, which any QUIC server answers with those that it knows.
    ///
    /// Source: RFC 9000, sections 6.1 and 14.1.
    Quic,
}

/// What measures when something passes.
#[derive(Subcommand)]
pub(crate) enum Probe {
    /// Knocks every 50 ms and prints the time of each answer, in seconds since 1970.
    Knock {
        /// How.
        kind: Knock,
        /// `address:port` of the other end.
        to: SocketAddr,
    },
    /// Reads TCP connections one after another for ever, and prints when something came, in seconds since 1970.
    Sink {
        /// `address:port` to listen on.
        listen: String,
    },
}

/// Runs one of them.
pub(super) fn run(probe: &Probe) -> Result<()> {
    match probe {
        Probe::Knock { kind: Knock::Http, to } => knock_http(*to),
        Probe::Knock { kind: Knock::Echo, to } => knock_udp(*to, b"knock"),
        Probe::Knock { kind: Knock::Quic, to } => knock_udp(*to, &unknown_version()),
        Probe::Sink { listen } => sink(listen),
    }
}

/// Returns the time of day in seconds since 1970.
pub(crate) fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn knock_http(to: SocketAddr) -> Result<()> {
    println!("knocking at {to}");
    loop {
        // Each on its own, so that one that is left hanging does not keep the next from knocking.
        std::thread::spawn(move || {
            if page(to).is_ok_and(|answer| answer.starts_with(b"HTTP/1.1 200")) {
                println!("{:.3}", seconds());
            }
        });
        std::thread::sleep(SPACING);
    }
}

fn page(to: SocketAddr) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn knock_udp(to: SocketAddr, datagram: &[u8]) -> Result<()> {
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    println!("knocking at {to}");
    loop {
        // From a new port each time: an answer must not pass because an earlier one did.
        let socket = UdpSocket::bind(any)?;
        socket.connect(to).with_context(|| format!("no way to {to}"))?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        let datagram = datagram.to_vec();
        std::thread::spawn(move || {
            if socket.send(&datagram).is_ok() && socket.recv(&mut [0; 2048]).is_ok() {
                println!("{:.3}", seconds());
            }
        });
        std::thread::sleep(SPACING);
    }
}

/// Makes a QUIC packet with a long header, of the length that a first packet must have.
fn unknown_version() -> Vec<u8> {
    let mut packet = vec![0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8];
    packet.extend(*b"receiver");
    packet.push(8);
    packet.extend(*b"sender--");
    packet.resize(1200, 0);
    packet
}

fn sink(listen: &str) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    println!("listening on {listen}");
    let mut buffer = vec![0; 64 * 1024];
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut said = Instant::now();
        while stream.read(&mut buffer).is_ok_and(|count| count > 0) {
            if said.elapsed() >= Duration::from_millis(10) {
                println!("{:.3}", seconds());
                said = Instant::now();
            }
        }
    }
    Ok(())
}
