//! The packet worker: one thread that moves packets between the host, the network and the queues to the decision task.
//!
//! It blocks only in [`warren_os::poll`]. It decides nothing: [`Forwarder`] says what becomes of a packet, the peer's
//! slot says where it goes.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use warren_os::{Errno, Outgoing, RecvBatch, SendReport, Tun, TunRead, UdpSocket, Watched, poll_many};
use warren_path::{SocketId, Via};
use warren_wg::{HEADROOM, TAILROOM};
use warren_wire::datagram::{Class, classify};
use warren_wire::key::NodeKey;

use super::forwarder::{Action, Forwarder, Inbound, Outbound, Refusal};
use super::shared::{Datagram, Drops, Extras, PeerSlot, Shared, Signal, Snapshot, Sockets, ToRelay, WorkerEnds};

/// Packets per turn and source; then the others get their turn.
const BATCH: usize = 64;
/// Bytes of a buffer: the largest packet that another implementation may send through a tunnel of 1500 bytes, and room.
const BUFFER_BYTES: usize = 2048;
/// Signals that are kept while their queue is full; then the newest are dropped.
const BACKLOG: usize = 1024;
/// How soon a full signal queue is tried again.
const BACKLOG_RETRY: Duration = Duration::from_millis(10);

/// Starts the worker; it ends when [`Shared::requests`] says so, or when it cannot go on ([`Signal::Fatal`]).
///
/// # Errors
/// Returns the system's error if it gives no thread.
pub(super) fn spawn(
    shared: Arc<Shared>,
    ends: WorkerEnds,
    tun: Tun,
    forwarder: Forwarder,
) -> io::Result<JoinHandle<()>> {
    let worker = Worker {
        sockets: shared.sockets.load_full(),
        extras: Arc::default(),
        port: configured_port(&shared),
        shared,
        ends,
        tun,
        forwarder,
        buffers: vec![[0; BUFFER_BYTES]; BATCH],
        planned: Vec::with_capacity(BATCH),
        backlog: VecDeque::new(),
    };
    std::thread::Builder::new().name("packets".into()).spawn(move || worker.run())
}

/// Returns the port to bind again.
fn configured_port(shared: &Shared) -> u16 {
    let sockets = shared.sockets.load();
    sockets.v4.as_ref().or(sockets.v6.as_ref()).map_or(0, UdpSocket::port)
}

struct Worker {
    shared: Arc<Shared>,
    ends: WorkerEnds,
    tun: Tun,
    sockets: Arc<Sockets>,
    /// As they were when the turn began.
    extras: Arc<Extras>,
    port: u16,
    forwarder: Forwarder,
    buffers: Vec<[u8; BUFFER_BYTES]>,
    planned: Vec<Planned>,
    backlog: VecDeque<Signal>,
}

/// A sealed datagram in a buffer, to be sent.
struct Planned {
    socket: SocketId,
    to: SocketAddr,
    peer: NodeKey,
    buffer: usize,
    length: usize,
}

/// Says why the worker ends.
enum End {
    Asked,
    Fatal(String),
}

impl Worker {
    fn run(mut self) {
        let mut received = RecvBatch::new();
        let end = loop {
            if let Err(end) = self.turn(&mut received) {
                break end;
            }
        };
        if let End::Fatal(reason) = end {
            self.signal(Signal::Fatal(reason));
            // The queue may be full of traffic that nobody needs any more; the decision task reads on.
            while !self.backlog.is_empty() && !self.ends.signals.is_closed() {
                std::thread::sleep(BACKLOG_RETRY);
                self.drain_backlog();
            }
        }
    }

    /// Waits until something can be done and does it.
    fn turn(&mut self, received: &mut RecvBatch) -> Result<(), End> {
        self.drain_backlog();
        let timeout = (!self.backlog.is_empty()).then_some(BACKLOG_RETRY);
        let watched = [
            Some(Watched::readable(&self.shared.waker)),
            Some(Watched::readable(&self.tun)),
            self.sockets.v4.as_ref().map(Watched::readable),
            self.sockets.v6.as_ref().map(Watched::readable),
        ];
        self.extras = self.shared.extras.load_full();
        let extras = Arc::clone(&self.extras);
        let more: Vec<Watched<'_>> = extras.iter().map(|(_, socket)| Watched::readable(&**socket)).collect();
        let ([woken, tun, v4, v6], more) = poll_many(watched, &more, timeout)
            .map_err(|error| End::Fatal(format!("cannot wait for packets: {error}")))?;
        let now = now();
        if woken.readable {
            self.shared.waker.clear();
            if self.shared.requests.stop.load(Ordering::Acquire) {
                return Err(End::Asked);
            }
            if self.shared.requests.rebind.swap(false, Ordering::AcqRel) {
                self.rebind()?;
                return Ok(());
            }
        }
        let snapshot = self.shared.snapshot.load_full();
        self.forwarder.begin(&snapshot);
        if woken.readable {
            if self.shared.requests.flush.swap(false, Ordering::AcqRel) {
                self.flush_waiting(now);
            }
            self.take_relayed(&snapshot, now);
        }
        let sockets = Arc::clone(&self.sockets);
        for (ready, socket) in [(v4, &sockets.v4), (v6, &sockets.v6)] {
            if let Some(socket) = socket
                && (ready.readable || ready.failed)
            {
                self.take_datagrams(&snapshot, (0, socket), received, now);
            }
        }
        for ((name, socket), ready) in extras.iter().zip(more) {
            if ready.readable || ready.failed {
                self.take_datagrams(&snapshot, (*name, &**socket), received, now);
            }
        }
        if tun.readable || tun.failed {
            self.take_packets(&snapshot, now)?;
        }
        let pushed_out = self.forwarder.take_pushed_out();
        Drops::count(&self.shared.drops.waiting, pushed_out);
        Ok(())
    }

    /// Closes the sockets and binds the same port again.
    fn rebind(&mut self) -> Result<(), End> {
        // All owners must be gone before the port is free.
        self.shared.sockets.store(Arc::new(Sockets::default()));
        self.sockets = Arc::new(Sockets::default());
        let sockets = Sockets::bind(self.port).map_err(|error| End::Fatal(format!("cannot open UDP: {error}")))?;
        self.sockets = Arc::new(sockets);
        self.shared.sockets.store(Arc::clone(&self.sockets));
        self.signal(Signal::Rebound);
        Ok(())
    }

    // From the host.

    fn take_packets(&mut self, snapshot: &Snapshot, now: Instant) -> Result<(), End> {
        let mut buffers = std::mem::take(&mut self.buffers);
        let stamp = self.shared.stamp(now);
        let mut end = Ok(());
        for (at, buffer) in buffers.iter_mut().enumerate() {
            let Some(room) = buffer.get_mut(HEADROOM..BUFFER_BYTES - TAILROOM) else { break };
            let length = match self.tun.read(room) {
                Ok(TunRead::Packet { length, .. }) => length,
                Ok(TunRead::Empty) => break,
                // EBADFD: somebody has deleted the interface.
                Err(errno) => {
                    end = Err(End::Fatal(format!("the interface {} is gone ({errno})", self.tun.name())));
                    break;
                }
            };
            match self.forwarder.outbound(snapshot, buffer, length, now) {
                Outbound::Send { slot, length } => {
                    if slot.note_sent(length.saturating_sub(HEADROOM), stamp) {
                        self.signal(Signal::Sent(slot.key()));
                    }
                    self.plan(slot, at, buffer.get(..length).unwrap_or_default(), now);
                }
                Outbound::Wait { slot } => {
                    if slot.ask(stamp) && !self.signal(Signal::HandshakeWanted(slot.key())) {
                        slot.handshake_failed();
                    }
                }
                Outbound::Answer { length } => self.deliver(buffer.get(HEADROOM..HEADROOM + length)),
                Outbound::Drop(refusal) => trace("host", refusal),
            }
        }
        self.send_planned(&buffers);
        self.buffers = buffers;
        end
    }

    /// Decides by the peer's path where a sealed datagram in buffer `at` goes.
    fn plan(&mut self, slot: &PeerSlot, at: usize, datagram: &[u8], now: Instant) {
        let path = slot.path();
        let planned = |socket, to| Planned { socket, to, peer: slot.key(), buffer: at, length: datagram.len() };
        if let Some(direct) = path.direct {
            self.planned.push(planned(direct.socket, direct.address));
            if now <= direct.trusted_until {
                return;
            }
        }
        if let Some(second) = path.second {
            self.planned.push(planned(0, second));
        }
        self.send_over_relay(slot.key(), datagram);
    }

    fn send_over_relay(&self, peer: NodeKey, datagram: &[u8]) {
        // The relay path copies: what is queued for a TCP connection must outlive the buffer.
        if self.ends.to_relay.try_send(ToRelay { peer, bytes: datagram.to_vec() }).is_err() {
            Drops::count(&self.shared.drops.to_relay, 1);
        }
    }

    /// Sends what was planned, a system call for each run of datagrams to one address.
    fn send_planned(&mut self, buffers: &[[u8; BUFFER_BYTES]]) {
        let planned = std::mem::take(&mut self.planned);
        for run in planned.chunk_by(|one, next| (one.socket, one.to) == (next.socket, next.to)) {
            let Some(first) = run.first() else { continue };
            let mut batch = [Outgoing { to: first.to, bytes: &[] }; BATCH];
            let mut count = 0;
            for (to, from) in batch.iter_mut().zip(run) {
                to.bytes = buffers.get(from.buffer).and_then(|buffer| buffer.get(..from.length)).unwrap_or_default();
                count += 1;
            }
            let report = match self.socket(first.socket, first.to) {
                Some(socket) => socket.send_batch(batch.get(..count).unwrap_or_default()),
                None => SendReport { refused: count, error: Some(Errno::AFNOSUPPORT), ..SendReport::default() },
            };
            self.judge(first.peer, first.to, count, report);
        }
        self.planned = planned;
        self.planned.clear();
    }

    fn socket(&self, name: SocketId, to: SocketAddr) -> Option<&UdpSocket> {
        if name == 0 { self.sockets.towards(to) } else { self.extras.get(name).map(|socket| &**socket) }
    }

    /// Tells what a failed send means.
    fn judge(&mut self, peer: NodeKey, to: SocketAddr, tried: usize, report: SendReport) {
        Drops::count(&self.shared.drops.unsent, tried.saturating_sub(report.sent));
        match report.error {
            None => {}
            Some(Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::AFNOSUPPORT | Errno::INVAL) => {
                self.signal(Signal::Unreachable(peer, to));
            }
            // A firewall, or a watchdog that forbids this socket alone. Source: paths.md 9.5, point 7.
            Some(errno @ (Errno::PERM | Errno::PIPE | Errno::NOTCONN | Errno::BADF)) => {
                self.signal(Signal::SocketFailed(errno));
            }
            Some(errno) => tracing::trace!(%to, %errno, "not sent"),
        }
    }

    /// Sends one datagram by the peer's path, apart from the batches.
    fn send_now(&mut self, slot: &PeerSlot, datagram: &[u8], now: Instant) {
        let path = slot.path();
        if let Some(direct) = path.direct {
            let error = match self.socket(direct.socket, direct.address) {
                Some(socket) => socket.send(direct.address, datagram).err(),
                None => Some(Errno::AFNOSUPPORT),
            };
            let sent = usize::from(error.is_none());
            self.judge(slot.key(), direct.address, 1, SendReport { sent, error, ..SendReport::default() });
            if now <= direct.trusted_until {
                return;
            }
        }
        if let Some(second) = path.second {
            // The relay has it, too.
            let _ = self.sockets.send(second, datagram);
        }
        self.send_over_relay(slot.key(), datagram);
    }

    /// Sends the packets that waited for a session that is there now.
    fn flush_waiting(&mut self, now: Instant) {
        let stamp = self.shared.stamp(now);
        let mut buffer = [0; BUFFER_BYTES];
        while let Some((slot, length)) = self.forwarder.take_ready(&mut buffer, now) {
            if slot.note_sent(length.saturating_sub(HEADROOM), stamp) {
                self.signal(Signal::Sent(slot.key()));
            }
            self.send_now(&slot, buffer.get(..length).unwrap_or_default(), now);
        }
    }

    // From the network.

    fn take_datagrams(
        &mut self,
        snapshot: &Snapshot,
        (name, socket): (SocketId, &UdpSocket),
        received: &mut RecvBatch,
        now: Instant,
    ) {
        if let Err(errno) = socket.recv_batch(received) {
            // An extra one that fails is found out by its pings.
            if name == 0 {
                self.signal(Signal::SocketFailed(errno));
            }
            return;
        }
        for datagram in received.datagrams() {
            match classify(datagram.bytes) {
                Class::WireGuard => self.take_wireguard(snapshot, datagram.bytes, Via::Direct(datagram.from), now),
                Class::Disco | Class::Stun => self.pass_on(name, datagram.from, datagram.bytes),
                // Relays among peers are not used yet.
                Class::GeneveDisco | Class::GeneveWireGuard => {}
            }
        }
    }

    fn take_relayed(&mut self, snapshot: &Snapshot, now: Instant) {
        for _ in 0..BATCH {
            let Ok(mut relayed) = self.ends.relayed.try_recv() else { return };
            self.take_wireguard(snapshot, &mut relayed.bytes, Via::Relay(relayed.region), now);
        }
        // There may be more, and the waker has been cleared.
        self.shared.waker.wake();
    }

    fn take_wireguard(&mut self, snapshot: &Snapshot, datagram: &mut [u8], via: Via, now: Instant) {
        let Inbound { confirmed, action } = self.forwarder.inbound(snapshot, &self.shared.table, datagram, now);
        if let Some(session) = confirmed {
            self.signal(Signal::Confirmed(session));
        }
        match action {
            Action::Deliver { slot, length } => {
                self.note_received(slot, length, via, now);
                self.deliver(datagram.get(HEADROOM..HEADROOM + length));
            }
            Action::Reply { slot, packet } => {
                self.note_received(slot, packet.len(), via, now);
                let mut buffer = [0; BUFFER_BYTES];
                if let Some(length) = Forwarder::seal_own(slot, &packet, &mut buffer, now) {
                    self.send_now(slot, buffer.get(..length).unwrap_or_default(), now);
                }
            }
            Action::Done => {}
            Action::Decide => match via {
                // A handshake is answered by the path to the peer, whichever socket it came to.
                Via::Direct(from) => self.pass_on(0, from, datagram),
                // Relay connections give the worker nothing but data.
                Via::Relay(_) => {}
            },
            Action::Drop(refusal) => trace("network", refusal),
        }
    }

    fn note_received(&mut self, slot: &PeerSlot, length: usize, via: Via, now: Instant) {
        if slot.note_received(length, self.shared.stamp(now)) {
            self.signal(Signal::Received(slot.key(), via));
        }
    }

    /// Gives a datagram to the decision task.
    fn pass_on(&self, socket: SocketId, from: SocketAddr, datagram: &[u8]) {
        if self.ends.datagrams.try_send(Datagram { socket, from, bytes: datagram.to_vec() }).is_err() {
            Drops::count(&self.shared.drops.datagrams, 1);
        }
    }

    /// Writes a packet to the host.
    fn deliver(&self, packet: Option<&[u8]>) {
        if let Some(packet) = packet
            && let Err(errno) = self.tun.write(packet)
        {
            Drops::count(&self.shared.drops.unwritten, 1);
            tracing::trace!(%errno, "the host takes no packet");
        }
    }

    // To the decision task.

    /// Tells the decision task something, later if its queue is full; tells whether it will get there.
    fn signal(&mut self, signal: Signal) -> bool {
        if self.backlog.is_empty() {
            if let Err(error) = self.ends.signals.try_send(signal) {
                self.backlog.push_back(error.into_inner());
            }
            return true;
        }
        let has_room = self.backlog.len() < BACKLOG;
        if has_room {
            self.backlog.push_back(signal);
        }
        has_room
    }

    fn drain_backlog(&mut self) {
        while let Some(signal) = self.backlog.pop_front() {
            if let Err(error) = self.ends.signals.try_send(signal) {
                self.backlog.push_front(error.into_inner());
                return;
            }
        }
    }
}

fn trace(side: &'static str, refusal: Refusal) {
    tracing::trace!(side, ?refusal, "packet dropped");
}

#[expect(clippy::disallowed_methods, reason = "the worker is a shell: this is where it reads the clock, once a turn")]
fn now() -> Instant {
    Instant::now()
}
