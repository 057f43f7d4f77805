//! The smallest shell around the `wg` core: one peer, one socket, a clock that can be put forward.

use super::icmp::{self, Ping};
use super::{OURS, THEIRS, our_secret, their_secret};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use warren_wg::{Event, HEADROOM, MessageType, Origin, Session, SessionTable, TAILROOM, Tunnels};
use warren_wire::key::{NodeKey, NodeSecret};

const MTU: usize = 1420;
/// Pings on their way at once.
const WINDOW: usize = 20;

/// Messages by kind.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) initiations: u32,
    /// Initiations with a second code.
    pub(super) proved: u32,
    pub(super) responses: u32,
    pub(super) cookies: u32,
    pub(super) empty: u32,
    pub(super) data: u32,
}

impl Counts {
    fn count(&mut self, message: &[u8]) {
        match MessageType::of(message) {
            Some(MessageType::Initiation) => {
                self.initiations += 1;
                self.proved += u32::from(message[132..] != [0; 16]);
            }
            Some(MessageType::Response) => self.responses += 1,
            Some(MessageType::CookieReply) => self.cookies += 1,
            Some(MessageType::Transport) if message.len() == 32 => self.empty += 1,
            Some(MessageType::Transport) => self.data += 1,
            None => {}
        }
    }

    pub(super) fn total(&self) -> u32 {
        self.initiations + self.responses + self.cookies + self.empty + self.data
    }
}

pub(super) struct Core {
    socket: UdpSocket,
    tunnels: Tunnels,
    table: Arc<SessionTable>,
    peer: NodeKey,
    pub(super) endpoint: SocketAddr,
    session: Option<Arc<Session>>,
    waiting: VecDeque<Vec<u8>>,
    /// How much our clock is ahead.
    ahead: Duration,
    noted: Option<Instant>,
    replies: BTreeSet<u16>,
    pub(super) sent: Counts,
    pub(super) received: Counts,
    /// Does not answer pings.
    pub(super) mute: bool,
    /// Somebody floods us with handshakes.
    pub(super) flooded: bool,
    flood: Vec<u8>,
    flooded_at: Option<Instant>,
}

impl Core {
    pub(super) fn new(socket: UdpSocket, endpoint: SocketAddr) -> Result<Self> {
        let (table, peer) = (Arc::new(SessionTable::new()), their_secret().public());
        Ok(Self {
            socket,
            tunnels: tunnels(our_secret(), &table, peer, Duration::ZERO)?,
            table,
            peer,
            endpoint,
            session: None,
            waiting: VecDeque::new(),
            ahead: Duration::ZERO,
            noted: None,
            replies: BTreeSet::new(),
            sent: Counts::default(),
            received: Counts::default(),
            mute: false,
            flooded: false,
            flood: stranger(our_secret().public())?,
            flooded_at: None,
        })
    }

    fn now(&self) -> Instant {
        Instant::now() + self.ahead
    }

    /// Puts our clock forward.
    pub(super) fn skip(&mut self, time: Duration) {
        self.ahead += time;
    }

    /// Sends and receives with another socket from now on.
    pub(super) fn move_to(&mut self, socket: UdpSocket) {
        self.socket = socket;
    }

    /// Sends to another address from now on.
    pub(super) fn send_to(&mut self, endpoint: SocketAddr) {
        self.endpoint = endpoint;
    }

    /// Forgets the sessions, as if wireguard-go had been replaced.
    pub(super) fn forget(&mut self) {
        self.tunnels.reset_peer(&self.peer);
    }

    /// Begins a handshake.
    pub(super) fn begin(&mut self) -> Result<()> {
        self.tunnels.start_handshake(&self.peer, self.now())?;
        self.drain();
        Ok(())
    }

    /// Sends `count` pings, a few at a time, and fails if one stays without answer.
    pub(super) fn ping(&mut self, count: u16) -> Result<()> {
        self.replies.clear();
        for number in 0..count {
            self.send(&icmp::request(OURS, THEIRS, number));
            let open = usize::from(number) + 1;
            self.run_until("answers to pings", Duration::from_secs(20), |core| core.replies.len() + WINDOW > open)?;
        }
        self.run_until("answers to the last pings", Duration::from_secs(5), |core| {
            core.replies.len() == usize::from(count)
        })
    }

    /// Sends a packet through the tunnel, after a handshake if need be.
    pub(super) fn send(&mut self, packet: &[u8]) {
        let now = self.now();
        let mut buffer = vec![0; HEADROOM + packet.len() + TAILROOM];
        buffer[HEADROOM..HEADROOM + packet.len()].copy_from_slice(packet);
        let sealed = self.session.as_ref().map(|session| session.seal(&mut buffer, packet.len(), MTU, now));
        if let Some(Ok(length)) = sealed {
            self.note(now);
            self.transmit(&buffer[..length], self.endpoint);
        } else {
            self.waiting.push_back(packet.to_vec());
            // Fails for no peer of ours and no table this small.
            let _ = self.tunnels.start_handshake(&self.peer, now);
        }
        self.drain();
    }

    /// Receives, answers and keeps time until `done`; fails with `what` after `limit`.
    pub(super) fn run_until(&mut self, what: &str, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> Result<()> {
        let start = Instant::now();
        let mut buffer = vec![0; 65_536];
        loop {
            self.tunnels.handle_timeout(self.now());
            self.drain();
            if done(self) {
                return Ok(());
            }
            if start.elapsed() > limit {
                bail!("waited {} s in vain for {what}; {self}", limit.as_secs());
            }
            if self.flooded {
                self.take_flood();
            }
            self.socket.set_read_timeout(Some(Duration::from_millis(5)))?;
            let Ok((length, from)) = self.socket.recv_from(&mut buffer) else { continue };
            self.receive(&mut buffer[..length], from);
        }
    }

    /// Takes, five times a second, more handshakes than a node does in a second without asking for proofs.
    fn take_flood(&mut self) {
        let now = self.now();
        if self.flooded_at.is_some_and(|at| now.saturating_duration_since(at) < Duration::from_millis(200)) {
            return;
        }
        self.flooded_at = Some(now);
        for _ in 0..250 {
            self.tunnels.handle_datagram(&self.flood, Origin::Udp(SocketAddr::from(([192, 0, 2, 9], 9))), now);
        }
        // Answers to the flood go nowhere.
        while self.tunnels.poll_transmit().is_some() {}
    }

    fn receive(&mut self, datagram: &mut [u8], from: SocketAddr) {
        self.received.count(datagram);
        let now = self.now();
        if MessageType::of(datagram) != Some(MessageType::Transport) {
            self.tunnels.handle_datagram(datagram, Origin::Udp(from), now);
            self.drain();
            return;
        }
        let Some(session) = self.table.for_message(datagram) else { return };
        let Ok(opened) = session.open(datagram, now) else { return };
        self.endpoint = from;
        if opened.confirmed {
            self.tunnels.confirm(&session, now);
        }
        self.note(now);
        self.drain();
        match icmp::read(&datagram[HEADROOM..HEADROOM + opened.length], OURS) {
            Some(Ping::Request(answer)) if !self.mute => self.send(&answer),
            Some(Ping::Reply(number)) => _ = self.replies.insert(number),
            Some(Ping::Request(_)) | None => {}
        }
    }

    /// Tells of traffic as a worker does: at once, then at most once a second.
    fn note(&mut self, now: Instant) {
        if self.noted.is_none_or(|noted| now.saturating_duration_since(noted) >= Duration::from_secs(1)) {
            self.noted = Some(now);
            self.tunnels.note_activity(&self.peer, now);
        }
    }

    fn drain(&mut self) {
        while let Some(transmit) = self.tunnels.poll_transmit() {
            let to = match transmit.origin {
                Some(Origin::Udp(address)) => address,
                Some(Origin::Relay { .. } | Origin::PeerRelay { .. }) | None => self.endpoint,
            };
            self.transmit(&transmit.bytes, to);
        }
        while let Some(event) = self.tunnels.poll_event() {
            match event {
                Event::Ready { session, .. } => {
                    self.session = Some(session);
                    for packet in std::mem::take(&mut self.waiting) {
                        self.send(&packet);
                    }
                }
                Event::Closed { .. } => self.session = None,
                Event::Failed { .. } => self.waiting.clear(),
            }
        }
    }

    fn transmit(&mut self, bytes: &[u8], to: SocketAddr) {
        self.sent.count(bytes);
        // What does not go out shows as a missing answer.
        drop(self.socket.send_to(bytes, to));
    }
}

impl fmt::Display for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sent {:?}, received {:?}", self.sent, self.received)
    }
}

fn tunnels(secret: NodeSecret, table: &Arc<SessionTable>, peer: NodeKey, ahead: Duration) -> Result<Tunnels> {
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)? + ahead;
    // Not random: keys here protect nothing, and runs are easier to compare.
    let mut tunnels = Tunnels::new(secret, Arc::clone(table), [0x17; 32], Instant::now(), wall);
    ensure!(tunnels.add_peer(peer), "the peer was there already");
    Ok(tunnels)
}

/// Makes an initiation of a stranger to the holder of `to`.
fn stranger(to: NodeKey) -> Result<Vec<u8>> {
    let secret = NodeSecret::from_bytes([0x33; 32]);
    let mut tunnels = tunnels(secret, &Arc::default(), to, Duration::ZERO)?;
    tunnels.start_handshake(&to, Instant::now())?;
    Ok(tunnels.poll_transmit().context("a handshake begins with a message")?.bytes)
}

/// A stranger who sends more initiations than wireguard-go can look at.
pub(super) struct Flood {
    socket: UdpSocket,
    message: Vec<u8>,
}

impl Flood {
    pub(super) fn new(socket: UdpSocket, to: SocketAddr) -> Result<Self> {
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        Ok(Self { socket, message: stranger(their_secret().public())? })
    }

    /// Sends until cookies come back, at most 50,000 messages, and waits until the last of them has come: wireguard-go
    /// has room for a message of ours then, and stays careful for a second.
    pub(super) fn until_loaded(&self) -> Result<()> {
        let mut answer = [0; 128];
        for _ in 0..50 {
            for _ in 0..1000 {
                self.socket.send(&self.message)?;
            }
            let mut cookies = 0;
            while self.socket.recv(&mut answer).is_ok() {
                cookies += 1;
            }
            if cookies > 0 {
                return Ok(());
            }
        }
        bail!("wireguard-go never felt loaded")
    }
}
