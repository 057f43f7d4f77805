//! What the packet worker and the decision task share.
//!
//! | what | direction | when it is full or late |
//! |---|---|---|
//! | [`PeerSlot`]: session and path of a peer | decision → worker, which adopts new sessions that peers began | swapped, the newest counts |
//! | [`Snapshot`]: prefixes and filter | decision → worker | swapped, the newest counts |
//! | relayed packets | relay connections → worker | the newest is dropped |
//! | [`Whole`] datagrams | decision → worker | the newest is dropped |
//! | [`Question`]s to routers | decision → worker | the newest is dropped |
//! | [`Signal`]s about traffic | worker → decision | told again later |
//! | [`Datagram`]s that are not data | worker → decision | the newest is dropped |
//! | [`ToRelay`]: packets that need a relay | worker → decision | the newest is dropped |
//! | [records](warren_ledger::Record) of the flow log | worker → whoever keeps them | told again later; what cannot be kept is counted |
//!
//! Neither side ever waits for the other, and no lock is held by either while the other may want it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use ipnet::IpNet;
use tokio::sync::mpsc;
use warren_filter::{Filter, PrefixTable};
use warren_os::{Family, Offload, UdpSocket, Waker};
use warren_path::{Answerer, Path, SocketId, Via};
use warren_wg::{Session, SessionTable};
use warren_wire::control::RegionId;
use warren_wire::key::NodeKey;

use super::RecordSink;
use super::name_service::Inquirer;
use super::owner::Owner;

/// Relayed packets that may wait for the worker.
const RELAYED: usize = 512;
/// Datagrams that must stay whole, and may wait for the worker: 20 peers at once are asked how much gets through.
const WHOLE: usize = 140;
/// Questions to routers that may wait for the worker.
const QUESTIONS: usize = 64;
/// Addresses that stand for peers towards sites, of which the kernel has forgotten all: as many as there are, and some again.
const CLEARED: usize = 1024;
/// Signals that may wait for the decision task.
const SIGNALS: usize = 1024;
/// Datagrams of strangers that may wait for the decision task.
const DATAGRAMS: usize = 512;
/// Packets that may wait for being handed to a relay.
const TO_RELAY: usize = 512;

/// How often at most the worker tells of one peer's traffic: a path that brings nothing more is noticed by that.
const ACTIVITY_SPACING: Duration = Duration::from_millis(100);

/// How long the worker waits for a handshake before it asks again: as long as the first attempt lasts.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Holds what both sides read and write.
pub(super) struct Shared {
    /// Zero of the times in slots.
    epoch: Instant,
    pub(super) table: Arc<SessionTable>,
    pub(super) snapshot: ArcSwap<Snapshot>,
    /// Replaced by the worker alone.
    pub(super) sockets: ArcSwap<Sockets>,
    /// Extra IPv4 sockets; replaced by the decision task alone.
    pub(super) extras: ArcSwap<Extras>,
    whole: std::sync::mpsc::SyncSender<Whole>,
    questions: std::sync::mpsc::SyncSender<Question>,
    cleared: std::sync::mpsc::SyncSender<Ipv4Addr>,
    pub(super) waker: Waker,
    pub(super) requests: Requests,
    pub(super) drops: Drops,
    /// Whom to ask for names of the tailnet; replaced by the decision task alone.
    pub(super) names: ArcSwapOption<Inquirer>,
    /// Nothing may leave but through an exit node, whether the node is on the tailnet or not; so until the daemon has said
    /// what its user chose.
    pub(super) wants_exit: AtomicBool,
}

/// Holds what the decision task asks of the worker; each is taken back by the worker when it is done.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// A peer got a session: look at the packets that wait.
    pub(super) flush: AtomicBool,
    /// Open the UDP sockets anew.
    pub(super) rebind: AtomicBool,
    /// Take another port when doing so.
    pub(super) other_port: AtomicBool,
    /// End.
    pub(super) stop: AtomicBool,
}

/// Counts packets that were lost to a full queue.
#[derive(Debug, Default)]
pub(super) struct Drops {
    /// From a relay, for the worker.
    pub(super) relayed: AtomicU64,
    /// Handshakes, disco and STUN, for the decision task.
    pub(super) datagrams: AtomicU64,
    /// For a relay.
    pub(super) to_relay: AtomicU64,
    /// UDP datagrams that the kernel did not take.
    pub(super) unsent: AtomicU64,
    /// Packets that the kernel did not take from the tunnel.
    pub(super) unwritten: AtomicU64,
    /// Packets that waited for a session and were pushed out by later ones.
    pub(super) waiting: AtomicU64,
}

impl Drops {
    /// Counts `number` more.
    pub(super) fn count(counter: &AtomicU64, number: usize) {
        counter.fetch_add(u64::try_from(number).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("drops", &self.drops).finish_non_exhaustive()
    }
}

/// Holds the ends of the queues that the worker uses.
#[derive(Debug)]
pub(super) struct WorkerEnds {
    pub(super) relayed: std::sync::mpsc::Receiver<Relayed>,
    pub(super) whole: std::sync::mpsc::Receiver<Whole>,
    pub(super) questions: std::sync::mpsc::Receiver<Question>,
    pub(super) cleared: std::sync::mpsc::Receiver<Ipv4Addr>,
    pub(super) signals: mpsc::Sender<Signal>,
    pub(super) datagrams: mpsc::Sender<Datagram>,
    pub(super) to_relay: mpsc::Sender<ToRelay>,
    /// For the flow log, if there is one.
    pub(super) records: Option<RecordSink>,
}

/// Holds the ends of the queues that the decision task uses.
#[derive(Debug)]
pub(super) struct DecisionEnds {
    /// For relay connections.
    pub(super) relayed: std::sync::mpsc::SyncSender<Relayed>,
    pub(super) signals: mpsc::Receiver<Signal>,
    pub(super) datagrams: mpsc::Receiver<Datagram>,
    pub(super) to_relay: mpsc::Receiver<ToRelay>,
}

impl Shared {
    /// Makes the shared state and both sides' ends of the queues.
    pub(super) fn new(waker: Waker, sockets: Sockets, now: Instant) -> (Arc<Self>, WorkerEnds, DecisionEnds) {
        let (relayed_in, relayed) = std::sync::mpsc::sync_channel(RELAYED);
        let (whole_in, whole) = std::sync::mpsc::sync_channel(WHOLE);
        let (questions_in, questions) = std::sync::mpsc::sync_channel(QUESTIONS);
        let (cleared_in, cleared) = std::sync::mpsc::sync_channel(CLEARED);
        let (signals, signals_out) = mpsc::channel(SIGNALS);
        let (datagrams, datagrams_out) = mpsc::channel(DATAGRAMS);
        let (to_relay, to_relay_out) = mpsc::channel(TO_RELAY);
        let shared = Arc::new(Self {
            epoch: now,
            table: Arc::new(SessionTable::new()),
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            sockets: ArcSwap::from_pointee(sockets),
            extras: ArcSwap::default(),
            whole: whole_in,
            questions: questions_in,
            cleared: cleared_in,
            waker,
            requests: Requests::default(),
            drops: Drops::default(),
            names: ArcSwapOption::empty(),
            wants_exit: AtomicBool::new(true),
        });
        let worker = WorkerEnds { relayed, whole, questions, cleared, signals, datagrams, to_relay, records: None };
        let decision = DecisionEnds {
            relayed: relayed_in,
            signals: signals_out,
            datagrams: datagrams_out,
            to_relay: to_relay_out,
        };
        (shared, worker, decision)
    }

    /// Sets a request and wakes the worker.
    pub(super) fn ask(&self, request: &AtomicBool) {
        request.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Sends one datagram from a socket; it is lost if there is none or the kernel does not take it.
    pub(super) fn send(&self, socket: SocketId, to: SocketAddr, bytes: &[u8]) {
        if socket == 0 {
            let _ = self.sockets.load().send(to, bytes);
        } else if let Some(extra) = self.extras.load().get(socket) {
            let _ = extra.send(to, bytes);
        }
    }

    /// Has the worker send a datagram that must not be cut into fragments. That is an option of the whole socket while it is
    /// sent, and the worker sends nothing else meanwhile. What the decision task sends is smaller than any network's packets,
    /// but for data while no relay is there: of that, a packet which the device would have to cut may be lost in that moment.
    pub(super) fn send_whole(&self, datagram: Whole) {
        if self.whole.try_send(datagram).is_ok() {
            self.waker.wake();
        }
    }

    /// Has the worker ask a router and a host behind it. Lost if too much is asked.
    pub(super) fn ask_router(&self, question: Question) {
        if self.questions.try_send(question).is_ok() {
            self.waker.wake();
        }
    }

    /// Tells the worker that the kernel has forgotten all connections of these addresses, which stand for peers towards sites.
    pub(super) fn stand_ins_cleared(&self, addresses: impl Iterator<Item = Ipv4Addr>) {
        for address in addresses {
            // There is room for all; what is lost is asked for again.
            let _ = self.cleared.try_send(address);
        }
        self.waker.wake();
    }

    /// Returns `now` as a time for slots: milliseconds, never 0, which means "never".
    pub(super) fn stamp(&self, now: Instant) -> u64 {
        let millis = now.saturating_duration_since(self.epoch).as_millis();
        u64::try_from(millis).unwrap_or(u64::MAX - 1).saturating_add(1)
    }

    /// Returns the instant of a time in a slot; `None` for "never".
    pub(super) fn instant(&self, stamp: u64) -> Option<Instant> {
        self.epoch.checked_add(Duration::from_millis(stamp.checked_sub(1)?))
    }
}

/// Holds the UDP sockets; without one the family cannot be used.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    pub(super) v4: Option<UdpSocket>,
    pub(super) v6: Option<UdpSocket>,
}

impl Sockets {
    /// Binds `port` in both families, or any free port if it is taken or 0.
    ///
    /// # Errors
    /// Returns the kernel's answer if neither family can be had.
    pub(super) fn bind(port: u16, offload: Offload) -> std::io::Result<Self> {
        match UdpSocket::bind_pair(port, offload) {
            Ok((v4, v6)) => Ok(Self { v4: Some(v4), v6 }),
            // A machine without IPv4.
            Err(error) => match UdpSocket::bind_with(Family::V6, port, offload) {
                Ok(v6) => Ok(Self { v4: None, v6: Some(v6) }),
                Err(_) => Err(error),
            },
        }
    }

    /// Returns the socket that reaches `address`.
    pub(super) fn towards(&self, address: SocketAddr) -> Option<&UdpSocket> {
        match address {
            SocketAddr::V4(_) => self.v4.as_ref(),
            SocketAddr::V6(_) => self.v6.as_ref(),
        }
    }

    /// Returns the port that peers see from `address` of this machine; 0 without a socket.
    pub(super) fn port_of(&self, address: IpAddr) -> u16 {
        let socket = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        socket.as_ref().map_or(0, UdpSocket::port)
    }

    /// Sends one datagram; it is lost if the kernel does not take it.
    pub(super) fn send(&self, to: SocketAddr, bytes: &[u8]) -> Result<(), warren_os::Errno> {
        self.towards(to).map_or(Err(warren_os::Errno::AFNOSUPPORT), |socket| socket.send(to, bytes))
    }
}

/// Holds UDP sockets besides the main ones, by name: many for a moment, to open holes through a NAT, and a few after it.
#[derive(Debug, Default)]
pub(super) struct Extras(Vec<(SocketId, Arc<UdpSocket>)>);

impl Extras {
    /// Returns the wanted sockets: those that there are, and new ones. Those that cannot be opened are missing.
    pub(super) fn renew(&self, wanted: &[SocketId]) -> Self {
        let renewed = wanted.iter().filter_map(|name| {
            let socket = match self.get(*name) {
                Some(socket) => Arc::clone(socket),
                None => Arc::new(UdpSocket::bind(Family::V4, 0).ok()?),
            };
            Some((*name, socket))
        });
        Self(renewed.collect())
    }

    /// Returns a socket by its name.
    pub(super) fn get(&self, name: SocketId) -> Option<&Arc<UdpSocket>> {
        self.0.iter().find(|(one, _)| *one == name).map(|(_, socket)| socket)
    }

    /// Returns all.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(SocketId, Arc<UdpSocket>)> {
        self.0.iter()
    }
}

/// Holds all that the worker needs of a peer. Each part is swapped on its own.
pub(super) struct PeerSlot {
    key: NodeKey,
    session: ArcSwapOption<Session>,
    path: ArcSwap<Path>,
    jailed: AtomicBool,
    /// When a handshake was asked for that is not decided yet.
    asked: AtomicU32,
    rx_bytes: AtomicU64,
    tx_bytes: AtomicU64,
    /// Times by [`Shared::stamp`].
    last_write: AtomicU64,
    told_sent: AtomicU32,
    told_received: AtomicU32,
    /// Packets were reported to come since packets to the peer were last reported: whether more go there is news.
    is_heard: AtomicBool,
}

const _: () = assert!(size_of::<PeerSlot>() <= 88, "a peer at rest must stay small");

impl PeerSlot {
    /// Makes the slot of a peer without session and path.
    pub(super) fn new(key: NodeKey) -> Self {
        Self {
            key,
            session: ArcSwapOption::empty(),
            path: ArcSwap::new(resting(None)),
            jailed: AtomicBool::new(false),
            asked: AtomicU32::new(0),
            rx_bytes: AtomicU64::new(0),
            tx_bytes: AtomicU64::new(0),
            last_write: AtomicU64::new(0),
            told_sent: AtomicU32::new(0),
            told_received: AtomicU32::new(0),
            is_heard: AtomicBool::new(false),
        }
    }

    /// Returns the peer.
    pub(super) fn key(&self) -> NodeKey {
        self.key
    }

    /// Returns the session to send with.
    pub(super) fn session(&self) -> arc_swap::Guard<Option<Arc<Session>>> {
        self.session.load()
    }

    /// Sends with `session` from now on; a handshake may be asked for anew.
    pub(super) fn set_session(&self, session: Option<Arc<Session>>) {
        self.session.store(session);
        self.asked.store(0, Ordering::Release);
    }

    /// Sends with `session` from now on if it is younger than the one that there is: for the worker, before the decision task
    /// knows. Which of two counts whose handshakes crossed is left to that.
    pub(super) fn adopt_session(&self, session: &Arc<Session>) {
        self.session.rcu(|held| match held {
            Some(held) if held.born() >= session.born() => Some(Arc::clone(held)),
            Some(_) | None => Some(Arc::clone(session)),
        });
    }

    /// Allows that a handshake is asked for again.
    pub(super) fn handshake_failed(&self) {
        self.asked.store(0, Ordering::Release);
    }

    /// Tells whether a handshake should be asked for; then it has been asked for. Once in a while it is so again, so
    /// that nothing that got lost can silence a peer for good.
    pub(super) fn ask(&self, stamp: u64) -> bool {
        is_due(&self.asked, stamp, ASK_AGAIN)
    }

    /// Returns where packets go.
    pub(super) fn path(&self) -> arc_swap::Guard<Arc<Path>> {
        self.path.load()
    }

    /// Sends packets along `path` from now on.
    pub(super) fn set_path(&self, path: Path) {
        let rests = path == Path { relay: path.relay, ..Path::default() };
        self.path.store(if rests { resting(path.relay) } else { Arc::new(path) });
    }

    /// Tells whether the peer may only answer.
    pub(super) fn is_jailed(&self) -> bool {
        self.jailed.load(Ordering::Relaxed)
    }

    /// Says whether the peer may only answer.
    pub(super) fn set_jailed(&self, jailed: bool) {
        self.jailed.store(jailed, Ordering::Relaxed);
    }

    /// Counts a packet to the peer and tells whether it is time to report it.
    pub(super) fn note_sent(&self, bytes: usize, stamp: u64) -> bool {
        Drops::count(&self.tx_bytes, bytes);
        self.last_write.store(stamp, Ordering::Relaxed);
        // A path that goes dead after the last packet that came is noticed by what is sent from then on.
        if self.is_heard.load(Ordering::Relaxed) {
            self.is_heard.store(false, Ordering::Relaxed);
            self.told_sent.store(short(stamp), Ordering::Relaxed);
            return true;
        }
        is_due(&self.told_sent, stamp, ACTIVITY_SPACING)
    }

    /// Counts a packet from the peer and tells whether it is time to report it.
    pub(super) fn note_received(&self, bytes: usize, stamp: u64) -> bool {
        Drops::count(&self.rx_bytes, bytes);
        let is_news = is_due(&self.told_received, stamp, ACTIVITY_SPACING);
        if is_news {
            self.is_heard.store(true, Ordering::Relaxed);
        }
        is_news
    }

    /// Returns the bytes of packets received and sent.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.rx_bytes.load(Ordering::Relaxed), self.tx_bytes.load(Ordering::Relaxed))
    }

    /// Returns the time of the last packet to the peer, by [`Shared::stamp`]; 0 is never.
    pub(super) fn last_write(&self) -> u64 {
        self.last_write.load(Ordering::Relaxed)
    }
}

/// Returns the path over a relay alone, or to nowhere: peers at rest, which are many, share it.
fn resting(relay: Option<RegionId>) -> Arc<Path> {
    static SHARED: Mutex<BTreeMap<Option<RegionId>, Arc<Path>>> = Mutex::new(BTreeMap::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(shared.entry(relay).or_insert_with(|| Arc::new(Path { relay, ..Path::default() })))
}

/// Tells whether `last` was never or is `spacing` ago; then it becomes `stamp`. The worker alone calls this.
fn is_due(last: &AtomicU32, stamp: u64, spacing: Duration) -> bool {
    let (told, stamp) = (last.load(Ordering::Relaxed), short(stamp));
    let due = told == 0 || u128::from(stamp.wrapping_sub(told)) >= spacing.as_millis();
    if due {
        last.store(stamp, Ordering::Relaxed);
    }
    due
}

/// Returns a stamp in half the room, never 0. It comes again after 49 days: what is spaced by seconds may then wait for
/// one more of them.
#[expect(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
const fn short(stamp: u64) -> u32 {
    match stamp as u32 {
        0 => 1,
        stamp => stamp,
    }
}

impl fmt::Debug for PeerSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerSlot").field("key", &self.key).finish_non_exhaustive()
    }
}

/// Holds what is the same for all packets until the netmap or the settings change.
#[derive(Debug, Default, Clone)]
pub(super) struct Snapshot {
    /// Which peer owns an address.
    pub(super) peers: Arc<PrefixTable<Owner>>,
    /// What may come in.
    pub(super) filter: Arc<Filter>,
    /// Own addresses in the tailnet.
    pub(super) own: Arc<[IpAddr]>,
    /// Own UDP ports, for IPv4 and IPv6.
    pub(super) ports: [u16; 2],
    /// Networks that this machine is in, if they are reached straight beside an exit node.
    pub(super) lan: Arc<[IpNet]>,
    /// Whether an exit node was chosen, so that the Internet is not reached but through it.
    pub(super) wants_exit: bool,
    /// Whether the user refuses all connections, which peers are told.
    pub(super) shields_up: bool,
    /// Names the rules in the flow log.
    pub(super) rules_id: [u8; 8],
}

/// Is a datagram that must not be cut into fragments.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) socket: SocketId,
    pub(super) to: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

/// Asks whether a router leads into a network: an echo request to a host there, and a ping to the router itself.
#[derive(Debug)]
pub(super) struct Question {
    /// The router.
    pub(super) slot: Arc<PeerSlot>,
    /// What the answers carry.
    pub(super) number: u16,
    /// This node and the host, of one family.
    pub(super) host: Option<(IpAddr, IpAddr)>,
    /// This node and the router, of one family.
    pub(super) router: Option<(IpAddr, IpAddr)>,
}

/// Is a WireGuard data message that came over a relay.
pub(super) struct Relayed {
    pub(super) region: RegionId,
    /// The sender, as the relay says.
    pub(super) from: NodeKey,
    pub(super) bytes: Vec<u8>,
}

impl fmt::Debug for Relayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Relayed({} bytes over {})", self.bytes.len(), self.region)
    }
}

/// Is a datagram that is not WireGuard data, as a stranger may send them at any rate.
pub(super) struct Datagram {
    /// The socket to which it came.
    pub(super) socket: SocketId,
    pub(super) from: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

impl fmt::Debug for Datagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Datagram({} bytes from {})", self.bytes.len(), self.from)
    }
}

/// Is a sealed packet that needs a relay.
pub(super) struct ToRelay {
    pub(super) peer: NodeKey,
    pub(super) bytes: Vec<u8>,
}

impl fmt::Debug for ToRelay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ToRelay({} bytes for {:?})", self.bytes.len(), self.peer)
    }
}

/// Says where a packet came from that belongs to no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stray {
    /// Straight from this address.
    Straight(SocketAddr),
    /// Over a relay, from the holder of this key as that says.
    Relayed(NodeKey),
}

/// Tells the decision task what the worker saw. A peer causes at most a few each second.
#[derive(Debug)]
pub(super) enum Signal {
    /// A packet waits for a session.
    HandshakeWanted(NodeKey),
    /// Packets go to the peer.
    Sent(NodeKey),
    /// Packets come from the peer, the last one this way.
    Received(NodeKey, Via),
    /// The first packet of a session that the peer began was opened.
    Confirmed(Arc<Session>),
    /// A packet came in a session that is not there.
    Stray(Stray),
    /// Packets go into a network with several routers, which was not in use.
    InUse(IpNet),
    /// A question to a router was answered, through this peer.
    Answered(NodeKey, u16, Answerer),
    /// This address stood for a peer towards a site, and stands for no other before the kernel has forgotten it.
    Vacated(Ipv4Addr),
    /// The kernel knows no way to this address of the peer.
    Unreachable(NodeKey, SocketAddr),
    /// A socket is broken or forbidden.
    SocketFailed(warren_os::Errno),
    /// The sockets were opened anew.
    Rebound,
    /// The worker cannot go on and has ended.
    Fatal(String),
}
