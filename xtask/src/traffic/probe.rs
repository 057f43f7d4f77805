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
    /// Keeps data going to an answerer and back at 10 Mbit/s, on a new TCP connection whenever nothing has come back for half
    /// a second; prints the longest time without any.
    Redial {
        /// `address:port` of the answerer.
        to: SocketAddr,
        /// How long.
        seconds: u64,
        /// Never take a new connection.
        #[arg(long)]
        one: bool,
    },
    /// Asks for the IPv4 address of a name again and again; prints how many answers came, how many in a second, and the median
    /// and 99th percentile of their times in microseconds.
    Names {
        /// `address:port` of the resolver.
        to: SocketAddr,
        /// The name.
        name: String,
        /// How long, in seconds.
        seconds: u64,
        /// Queries under way at a time.
        window: u16,
    },
    /// Sends back everything on all TCP connections at once.
    Answer {
        /// `address:port` to listen on.
        listen: String,
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
        Probe::Redial { to, seconds, one } => redial(*to, Duration::from_secs(*seconds), *one),
        Probe::Answer { listen } => answer(listen),
        Probe::Names { to, name, seconds, window } => names(*to, name, Duration::from_secs(*seconds), *window),
    }
}

fn names(to: SocketAddr, name: &str, length: Duration, window: u16) -> Result<()> {
    // RFC 1035, section 4: the number, then "recursion desired" and one question; the name, type A, class IN.
    let mut query = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len())?);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let start = Instant::now();
    // By number: when the query left, if it is under way.
    let mut left: Vec<Option<Instant>> = vec![None; usize::from(window)];
    let mut times = Vec::new();
    let mut buffer = [0; 2048];
    while start.elapsed() < length {
        for (number, left) in left.iter_mut().enumerate() {
            // One that was lost is asked again.
            if left.is_none_or(|at| at.elapsed() > TIMEOUT) {
                query[..2].copy_from_slice(&u16::try_from(number)?.to_be_bytes());
                *left = Some(Instant::now());
                socket.send(&query)?;
            }
        }
        let Ok(count) = socket.recv(&mut buffer) else { continue };
        anyhow::ensure!(count > query.len() && buffer[3] & 15 == 0, "the resolver does not know {name}");
        let number = usize::from(u16::from_be_bytes([buffer[0], buffer[1]]));
        if let Some(at) = left.get_mut(number).and_then(Option::take) {
            times.push(at.elapsed());
        }
    }
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len() * percent / 100).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6);
    let rate = times.len() as f64 / start.elapsed().as_secs_f64();
    println!("{} {rate:.0} {:.1} {:.1}", times.len(), at(50), at(99));
    Ok(())
}

fn redial(to: SocketAddr, length: Duration, one: bool) -> Result<()> {
    /// Time without data after which another connection is tried.
    const STUCK: Duration = Duration::from_millis(500);
    /// Time between two pieces, and their bytes.
    const TICK: Duration = Duration::from_millis(5);
    const PIECE: usize = 6250;
    let piece = [7; PIECE];
    let mut buffer = vec![0; 256 * 1024];
    let start = Instant::now();
    let (mut last, mut longest, mut connections) = (None::<Instant>, Duration::ZERO, 0);
    'connections: while start.elapsed() < length {
        let Ok(mut stream) = TcpStream::connect_timeout(&to, if one { TIMEOUT * 5 } else { STUCK }) else {
            std::thread::sleep(SPACING);
            continue;
        };
        connections += 1;
        stream.set_nonblocking(true)?;
        let opened = Instant::now();
        while start.elapsed() < length {
            // What does not fit now is no loss: whether anything comes back is the question.
            if stream.write(&piece).is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock) && !one {
                continue 'connections;
            }
            match stream.read(&mut buffer) {
                Ok(count @ 1..) => {
                    let now = Instant::now();
                    longest = longest.max(last.map_or(Duration::ZERO, |last| now - last));
                    last = Some(now);
                    // What is left comes with the next piece.
                    let _ = count;
                }
                Ok(0) if !one => continue 'connections,
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock && !one => continue 'connections,
                Ok(_) | Err(_) => {}
            }
            if !one && last.map_or(opened, |last| last.max(opened)).elapsed() > STUCK {
                continue 'connections;
            }
            std::thread::sleep(TICK);
        }
    }
    let end = Instant::now();
    longest = longest.max(end - last.context("nothing ever came back")?);
    println!("longest gap {:.1} ms on {connections} connections", longest.as_secs_f64() * 1e3);
    Ok(())
}

fn answer(listen: &str) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    println!("listening on {listen}");
    for stream in listener.incoming() {
        let stream = stream?;
        // One that is cut off in the middle must not keep the others waiting.
        std::thread::spawn(move || {
            if let Ok(mut back) = stream.try_clone() {
                drop(std::io::copy(&mut &stream, &mut back));
            }
        });
    }
    Ok(())
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
