//! The packet worker: one thread that moves packets between the host, the network and the queues to the decision task.
//!
//! It blocks only in [`warren_os::poll`]. It decides nothing: [`Forwarder`] says what becomes of a packet, the peer's
//! slot says where it goes.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use warren_filter::segments::Join;
use warren_filter::via;
use warren_ledger::Time;
use warren_os::{
    Errno, MAX_PACKET_BYTES, Offload, Ready, RecvBatch, SendReport, TunRead, UdpSocket, Watched, poll_many,
};
use warren_path::{Path, PeerRelay, PeerRelayed, SocketId, Via};
use warren_wg::HEADROOM;
use warren_wire::datagram::{Class, classify};
use warren_wire::geneve::{self, Header, Protocol};
use warren_wire::key::NodeKey;

use crate::host::{Cut, QUEUES};

use super::RecordSink;
use super::door::Door;
use super::forwarder::{Action, Burst, Forwarder, Inbound, Outbound, Refusal, Run, ToV4};
use super::shared::{
    Datagram, Drops, Extras, PeerSlot, Shared, Signal, Snapshot, Sockets, Stray, ToRelay, Whole, WorkerEnds,
};
use group::Group;
use record::{Moment, record};

mod group;
mod record;

/// Bytes of the host per turn, of all queues together; then the network gets its turn.
const TURN_BYTES: usize = 128 << 10;
/// Packets of the host per turn.
const TURN_PACKETS: usize = 256;
/// Relayed packets per turn.
const RELAYED: usize = 64;
/// Datagrams of the decision task that must stay whole, per turn.
const WHOLE: usize = 16;
/// Questions to routers, per turn.
const QUESTIONS: usize = 16;
/// Bytes of a buffer for one packet that does not travel in a burst: as large as the widest tunnel, and room.
///
/// See [`super::MTU_LIMITS`].
const BUFFER_BYTES: usize = 8192;
/// Signals that are kept while their queue is full; then the newest are dropped.
const BACKLOG: usize = 1024;
/// How soon a full signal queue is tried again.
const BACKLOG_RETRY: Duration = Duration::from_millis(10);

/// Least time between two packets of no session that the decision task is told of: strangers may send any number.
const STRAY_SPACING: Duration = Duration::from_millis(50);

/// Starts the worker; it ends when [`Shared::requests`] says so, or when it cannot go on ([`Signal::Fatal`]).
///
/// # Errors
/// Returns the system's error if it gives no thread.
pub(super) fn spawn(
    shared: Arc<Shared>,
    ends: WorkerEnds,
    door: Door,
    forwarder: Forwarder,
    offload: Offload,
) -> io::Result<JoinHandle<()>> {
    let worker = Worker {
        offload,
        sockets: shared.sockets.load_full(),
        extras: Arc::default(),
        port: configured_port(&shared),
        shared,
        ends,
        door,
        forwarder,
        backlog: VecDeque::new(),
        last_turn: now(),
        told_stray: None,
        has_more_records: false,
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
    door: Door,
    sockets: Arc<Sockets>,
    /// As they were when the turn began.
    extras: Arc<Extras>,
    port: u16,
    forwarder: Forwarder,
    backlog: VecDeque<Signal>,
    offload: Offload,
    /// When the last turn began.
    last_turn: Instant,
    /// When the decision task was last told of a packet of no session.
    told_stray: Option<Instant>,
    /// The flow log's queue was full.
    has_more_records: bool,
}

/// The worker's memory for packets: less than 1 MiB, however many peers there are.
struct Buffers {
    /// Packets of the network.
    received: RecvBatch,
    /// Which of them go to the host as one.
    join: Join,
    /// A packet of the host.
    host: Vec<u8>,
    /// Packets of the host on their way to one peer.
    burst: Burst,
}

/// Says why the worker ends.
enum End {
    Asked,
    Fatal(String),
}

impl Worker {
    fn run(mut self) {
        let (tcp, udp) = self.door.takes_joined();
        let mut buffers = Buffers {
            received: RecvBatch::new(),
            join: Join::new(tcp, udp),
            host: vec![0; MAX_PACKET_BYTES],
            burst: Burst::new(self.forwarder.mtu()),
        };
        let end = loop {
            if let Err(end) = self.turn(&mut buffers) {
                break end;
            }
        };
        self.end_records();
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
    fn turn(&mut self, buffers: &mut Buffers) -> Result<(), End> {
        self.drain_backlog();
        let has_more = !self.backlog.is_empty() || self.has_more_records;
        let retry = has_more.then_some(BACKLOG_RETRY);
        let due = self.forwarder.poll_timeout().map(|due| due.saturating_duration_since(self.last_turn));
        let timeout = [retry, due].into_iter().flatten().min();
        let [q0, q1, q2, q3] = std::array::from_fn(|number| self.door.watched(number));
        let watched = [
            Some(Watched::readable(&self.shared.waker)),
            self.sockets.v4.as_ref().map(Watched::readable),
            self.sockets.v6.as_ref().map(Watched::readable),
            q0,
            q1,
            q2,
            q3,
        ];
        self.extras = self.shared.extras.load_full();
        let extras = Arc::clone(&self.extras);
        let more: Vec<Watched<'_>> = extras.iter().map(|(_, socket)| Watched::readable(&**socket)).collect();
        let ([woken, v4, v6, mut queues @ ..], more) = poll_many(watched, &more, timeout)
            .map_err(|error| End::Fatal(format!("cannot wait for packets: {error}")))?;
        let now = now();
        self.last_turn = now;
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
        if self.ends.records.as_ref().is_some_and(RecordSink::is_wanted) {
            self.forwarder.begin_count(now);
        }
        self.forwarder.begin(&snapshot, now);
        if woken.readable {
            if self.shared.requests.flush.swap(false, Ordering::AcqRel) {
                self.flush_waiting(now);
            }
            self.take_relayed(&snapshot, buffers, now);
            self.send_whole();
            self.ask_routers(now);
            self.take_cleared();
        }
        let sockets = Arc::clone(&self.sockets);
        for (ready, socket) in [(v4, &sockets.v4), (v6, &sockets.v6)] {
            if let Some(socket) = socket
                && (ready.readable || ready.failed)
            {
                self.take_datagrams(&snapshot, (0, socket), buffers, now);
            }
        }
        for ((name, socket), ready) in extras.iter().zip(more) {
            if ready.readable || ready.failed {
                self.take_datagrams(&snapshot, (*name, &**socket), buffers, now);
            }
        }
        if let [first, ..] = &mut queues
            && self.door.has_packet()
        {
            first.readable = true;
        }
        self.take_packets(&snapshot, queues, buffers, now)?;
        if self.door.has_packet() {
            // The waker has been cleared.
            self.shared.waker.wake();
        }
        if let Some(address) = self.forwarder.poll_vacated() {
            // If it is not heard it is asked for again.
            self.signal(Signal::Vacated(address));
        }
        let pushed_out = self.forwarder.take_pushed_out();
        Drops::count(&self.shared.drops.waiting, pushed_out);
        self.write_down(&snapshot, now);
        Ok(())
    }

    /// Gives what the forwarder has noted to the flow log, as far as that has room.
    fn write_down(&mut self, snapshot: &Snapshot, now: Instant) {
        self.has_more_records = false;
        let Some(RecordSink { sender: records, .. }) = &self.ends.records else { return };
        let mut moment = None;
        loop {
            let Ok(permit) = records.try_reserve() else {
                self.has_more_records = !records.is_closed();
                return;
            };
            let Some(note) = self.forwarder.poll_note() else { return };
            let moment = moment.get_or_insert_with(|| Moment { now, wall: wall(), rules: snapshot.rules_id });
            permit.send(record(note, moment));
        }
    }

    /// Writes down that all conversations end, as far as the flow log has room.
    fn end_records(&mut self) {
        let (snapshot, now) = (self.shared.snapshot.load_full(), now());
        loop {
            let is_more = self.forwarder.shut_down(now);
            self.write_down(&snapshot, now);
            if !is_more
                || self.has_more_records
                || self.ends.records.as_ref().is_none_or(|records| records.sender.is_closed())
            {
                return;
            }
        }
    }

    /// Closes the sockets and binds the same port again, or another if that is asked for.
    fn rebind(&mut self) -> Result<(), End> {
        // All owners must be gone before the port is free.
        self.shared.sockets.store(Arc::new(Sockets::default()));
        self.sockets = Arc::new(Sockets::default());
        if self.shared.requests.other_port.swap(false, Ordering::AcqRel) {
            self.port = 0;
        }
        let sockets =
            Sockets::bind(self.port, self.offload).map_err(|error| End::Fatal(format!("cannot open UDP: {error}")))?;
        self.sockets = Arc::new(sockets);
        self.shared.sockets.store(Arc::clone(&self.sockets));
        self.port = configured_port(&self.shared);
        self.signal(Signal::Rebound);
        Ok(())
    }

    // From the host.

    /// Gives each queue that has something an equal part of a turn.
    fn take_packets(
        &mut self,
        snapshot: &Snapshot,
        queues: [Ready; QUEUES],
        buffers: &mut Buffers,
        now: Instant,
    ) -> Result<(), End> {
        let is_ready = |ready: &Ready| ready.readable || ready.failed;
        let count = queues.iter().filter(|ready| is_ready(ready)).count().max(1);
        for (number, _) in queues.iter().enumerate().filter(|(_, ready)| is_ready(ready)) {
            self.take_queue(snapshot, number, (TURN_PACKETS / count, TURN_BYTES / count), buffers, now)?;
        }
        Ok(())
    }

    fn take_queue(
        &mut self,
        snapshot: &Snapshot,
        queue: usize,
        (packets, bytes): (usize, usize),
        buffers: &mut Buffers,
        now: Instant,
    ) -> Result<(), End> {
        let Buffers { host, burst, .. } = buffers;
        let mut peer: Option<&Arc<PeerSlot>> = None;
        let mut end = Ok(());
        let mut taken = 0;
        for _ in 0..packets {
            if taken >= bytes {
                break;
            }
            let (length, header) = match self.door.read(queue, host) {
                Ok(TunRead::Packet { length, header }) => (length, header),
                Ok(TunRead::Empty) => break,
                // EBADFD: somebody has deleted the interface.
                Err(errno) => {
                    end = Err(End::Fatal(format!("the interface {} is gone ({errno})", self.door.name())));
                    break;
                }
            };
            taken += length;
            let bytes = host.get_mut(..length).unwrap_or_default();
            let (slot, length, translation) = match self.forwarder.outbound(snapshot, bytes, now) {
                Outbound::Send { slot, watch, length, translation } => {
                    if let Some((watch, to)) = watch
                        && watch.note_sent(to, self.shared.stamp(now))
                        && !self.signal(Signal::InUse(watch.network))
                    {
                        watch.is_awake.store(false, Ordering::Release);
                    }
                    (slot, length, translation)
                }
                Outbound::Answer { length } => {
                    self.deliver(bytes.get(..length));
                    continue;
                }
                Outbound::Drop(refusal) => {
                    trace("host", refusal);
                    continue;
                }
            };
            let cut = match Cut::new(bytes.get_mut(..length).unwrap_or_default(), header) {
                Ok(cut) => cut,
                Err(error) => {
                    trace("host", Refusal::NotCut(error));
                    continue;
                }
            };
            if let Some(other) = peer.filter(|peer| !Arc::ptr_eq(peer, slot)) {
                self.send_burst(other, burst, now);
            }
            peer = Some(slot);
            let (mut packets, mut cut_bytes) = (0, 0);
            for number in 0..cut.count() {
                if burst.is_full() {
                    self.send_burst(slot, burst, now);
                }
                let Some(translation) = translation else {
                    (packets, cut_bytes) = (packets + 1, cut_bytes + cut.length(number));
                    burst.add(cut.length(number), |room| cut.write(number, room));
                    continue;
                };
                let length = cut.length(number) + via::GROWTH;
                if length <= self.forwarder.mtu() {
                    (packets, cut_bytes) = (packets + 1, cut_bytes + length);
                    burst.add(length, |room| {
                        cut.write(number, room.get_mut(via::GROWTH..)?)?;
                        via::to_v6(room, translation.source, translation.destination).map(|()| length)
                    });
                }
            }
            self.forwarder.note_cut(packets, cut_bytes);
        }
        if let Some(slot) = peer {
            self.send_burst(slot, burst, now);
        }
        end
    }

    /// Seals and sends what is there for a peer; then the burst is empty.
    fn send_burst(&mut self, slot: &Arc<PeerSlot>, burst: &mut Burst, now: Instant) {
        if burst.is_empty() {
            return;
        }
        let stamp = self.shared.stamp(now);
        let waits = self.forwarder.seal(slot, burst, now);
        if waits && slot.ask(stamp) && !self.signal(Signal::HandshakeWanted(slot.key())) {
            slot.handshake_failed();
        }
        if !burst.is_empty() {
            self.send_runs(slot, burst.runs(), now);
        }
        burst.clear();
    }

    /// Sends sealed datagrams by the peer's path.
    fn send_runs<'b>(&mut self, slot: &PeerSlot, runs: impl Iterator<Item = Run<'b>> + Clone, now: Instant) {
        let stamp = self.shared.stamp(now);
        let bytes = runs.clone().flat_map(Run::datagrams).map(|datagram| datagram.len().saturating_sub(HEADROOM)).sum();
        if slot.note_sent(bytes, stamp) {
            self.signal(Signal::Sent(slot.key()));
        }
        let path = slot.path();
        if let Some(direct) = path.direct {
            let fits = |run: &Run<'_>| run.segment <= direct.largest.into();
            self.send_to(slot, direct.socket, direct.address, runs.clone().filter(fits));
            if now <= direct.trusted_until {
                // What that path is known to swallow goes another way.
                if !runs.clone().all(|run| fits(&run)) {
                    self.send_elsewhere(slot, &path, runs.filter(|run| !fits(run)), now);
                }
                return;
            }
        }
        self.send_elsewhere(slot, &path, runs, now);
    }

    /// Sends sealed datagrams by all ways but the direct path.
    fn send_elsewhere<'b>(
        &mut self,
        slot: &PeerSlot,
        path: &Path,
        runs: impl Iterator<Item = Run<'b>> + Clone,
        now: Instant,
    ) {
        if let Some(relayed) = path.peer_relay
            && self.send_over_peer(slot, relayed, runs.clone(), now)
        {
            return;
        }
        if let Some(second) = path.second {
            self.send_to(slot, 0, second, runs.clone());
        }
        for datagram in runs.flat_map(Run::datagrams) {
            self.send_over_relay(slot.key(), datagram);
        }
    }

    /// Sends datagrams to one address.
    fn send_to<'b>(&mut self, slot: &PeerSlot, name: SocketId, to: SocketAddr, runs: impl Iterator<Item = Run<'b>>) {
        for run in runs {
            let tried = run.bytes.len().div_ceil(run.segment.max(1));
            let report = match self.socket(name, to) {
                Some(socket) => socket.send_run(to, run.bytes, run.segment),
                None => SendReport { refused: tried, error: Some(Errno::AFNOSUPPORT), ..SendReport::default() },
            };
            self.judge(slot.key(), to, tried, report);
        }
    }

    /// Sends datagrams over a peer relay; tells whether that suffices. It costs a copy, for the headers in front.
    fn send_over_peer<'b>(
        &mut self,
        slot: &PeerSlot,
        path: PeerRelayed,
        runs: impl Iterator<Item = Run<'b>>,
        now: Instant,
    ) -> bool {
        let PeerRelayed { to, trusted_until } = path;
        let header = to.header(Protocol::WireGuard).encode();
        let mut wrapped = Vec::new();
        for run in runs {
            wrapped.clear();
            for datagram in run.datagrams() {
                wrapped.extend_from_slice(&header);
                wrapped.extend_from_slice(datagram);
            }
            let segment = run.segment + header.len();
            self.send_to(slot, 0, to.address, std::iter::once(Run { bytes: &wrapped, segment }));
        }
        now <= trusted_until
    }

    /// Sends the datagrams of the decision task that must stay whole. One that does not fit the device is lost: whether it
    /// arrives is the question.
    fn send_whole(&self) {
        for _ in 0..WHOLE {
            let Ok(Whole { socket, to, bytes }) = self.ends.whole.try_recv() else { return };
            if let Some(socket) = self.socket(socket, to) {
                let _ = socket.send_whole(to, &bytes);
            }
        }
        // The waker has been cleared.
        self.shared.waker.wake();
    }

    /// Sends the questions of the decision task.
    fn ask_routers(&mut self, now: Instant) {
        let mut buffer = [0; BUFFER_BYTES];
        for _ in 0..QUESTIONS {
            let Ok(question) = self.ends.questions.try_recv() else { return };
            for packet in self.forwarder.question(&question, now) {
                let slot = &question.slot;
                match self.forwarder.seal_or_keep(slot, &packet, &mut buffer, now) {
                    Some(length) => {
                        let bytes = buffer.get(..length).unwrap_or_default();
                        self.send_runs(slot, std::iter::once(Run { bytes, segment: length }), now);
                    }
                    None => {
                        if slot.ask(self.shared.stamp(now)) && !self.signal(Signal::HandshakeWanted(slot.key())) {
                            slot.handshake_failed();
                        }
                    }
                }
            }
        }
        // The waker has been cleared.
        self.shared.waker.wake();
    }

    /// Takes over of which addresses the kernel has forgotten all connections: there are not many.
    fn take_cleared(&mut self) {
        while let Ok(address) = self.ends.cleared.try_recv() {
            self.forwarder.cleared(address);
        }
    }

    fn send_over_relay(&self, peer: NodeKey, datagram: &[u8]) {
        // The relay path copies: what is queued for a TCP connection must outlive the buffer.
        if self.ends.to_relay.try_send(ToRelay { peer, bytes: datagram.to_vec() }).is_err() {
            Drops::count(&self.shared.drops.to_relay, 1);
        }
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

    /// Sends the packets that waited for a session that is there now.
    fn flush_waiting(&mut self, now: Instant) {
        let mut buffer = [0; BUFFER_BYTES];
        while let Some((slot, length)) = self.forwarder.take_ready(&mut buffer, now) {
            let bytes = buffer.get(..length).unwrap_or_default();
            self.send_runs(&slot, std::iter::once(Run { bytes, segment: length }), now);
        }
    }

    // From the network.

    fn take_datagrams(
        &mut self,
        snapshot: &Snapshot,
        (name, socket): (SocketId, &UdpSocket),
        buffers: &mut Buffers,
        now: Instant,
    ) {
        let Buffers { received, join, .. } = buffers;
        if let Err(errno) = socket.recv_batch(received) {
            // An extra one that fails is found out by its pings.
            if name == 0 {
                self.signal(Signal::SocketFailed(errno));
            }
            return;
        }
        let (runs, buffer) = received.parts();
        for run in runs {
            let mut group = Group::default();
            for place in run.datagrams() {
                let Some(datagram) = buffer.get(place.clone()) else { continue };
                if group.is_joined_by(buffer, datagram) {
                    group.push(place);
                    continue;
                }
                self.take_group(snapshot, (buffer, &group), join, Via::Direct(run.from), now);
                group.clear();
                let Some(datagram) = buffer.get(place.clone()) else { continue };
                match classify(datagram) {
                    Class::WireGuard => group.push(place),
                    Class::Disco | Class::Stun | Class::GeneveDisco => self.pass_on(name, run.from, datagram),
                    Class::GeneveWireGuard => self.take_from_peer(snapshot, (buffer, place), join, run.from, now),
                }
            }
            self.take_group(snapshot, (buffer, &group), join, Via::Direct(run.from), now);
        }
        self.deliver_joined(join, buffer);
    }

    fn take_relayed(&mut self, snapshot: &Snapshot, buffers: &mut Buffers, now: Instant) {
        let Buffers { received, join, .. } = buffers;
        let (_, buffer) = received.parts();
        let mut has_more = true;
        let mut start = 0;
        for _ in 0..RELAYED {
            let Ok(relayed) = self.ends.relayed.try_recv() else {
                has_more = false;
                break;
            };
            let place = start..start + relayed.bytes.len();
            let Some(room) = buffer.get_mut(place.clone()) else {
                Drops::count(&self.shared.drops.relayed, 1);
                continue;
            };
            room.copy_from_slice(&relayed.bytes);
            start = place.end;
            if self.shared.table.for_message(&relayed.bytes).is_none() {
                trace("relay", Refusal::NoSession);
                self.note_stray(Stray::Relayed(relayed.from), now);
                continue;
            }
            let mut group = Group::default();
            group.push(place);
            self.take_group(snapshot, (buffer, &group), join, Via::Relay(relayed.region), now);
        }
        self.deliver_joined(join, buffer);
        if has_more {
            // The waker has been cleared.
            self.shared.waker.wake();
        }
    }

    /// Takes WireGuard that came over a peer relay, in the datagram at `place`.
    fn take_from_peer(
        &mut self,
        snapshot: &Snapshot,
        (buffer, place): (&mut [u8], Range<usize>),
        join: &mut Join,
        address: SocketAddr,
        now: Instant,
    ) {
        let header = buffer.get(place.clone()).and_then(Header::decode);
        let Some((Header { control: false, vni, .. }, _)) = header else { return };
        let mut group = Group::default();
        group.push(place.start + geneve::HEADER_BYTES..place.end);
        self.take_group(snapshot, (buffer, &group), join, Via::PeerRelay(PeerRelay { address, vni }), now);
    }

    /// Takes WireGuard datagrams of one session; packets for the host go to `join`.
    fn take_group(
        &mut self,
        snapshot: &Snapshot,
        (buffer, group): (&mut [u8], &Group),
        join: &mut Join,
        via: Via,
        now: Instant,
    ) {
        let [place, _, ..] = group.places() else {
            if let [place] = group.places() {
                let datagram = buffer.get_mut(place.clone()).unwrap_or_default();
                let inbound = self.forwarder.inbound(snapshot, &self.shared.table, datagram, now);
                self.take_packet(inbound, (buffer, place.clone()), join, via, now);
            }
            return;
        };
        let first = buffer.get(place.clone()).unwrap_or_default();
        let Some(session) = self.shared.table.for_message(first) else {
            return self.refuse(Refusal::NoSession, via, now);
        };
        let results = group.open(&session, buffer, now);
        for (place, opened) in group.places().iter().zip(results) {
            let datagram = buffer.get(place.clone()).unwrap_or_default();
            let inbound = self.forwarder.opened(snapshot, &session, datagram, opened, now);
            self.take_packet(inbound, (buffer, place.clone()), join, via, now);
        }
    }

    /// Does what is to be done with a packet, which came in the datagram at `place`.
    fn take_packet(
        &mut self,
        Inbound { confirmed, action }: Inbound<'_>,
        (buffer, place): (&mut [u8], Range<usize>),
        join: &mut Join,
        via: Via,
        now: Instant,
    ) {
        if let Some(session) = confirmed {
            self.signal(Signal::Confirmed(session));
        }
        match action {
            Action::Deliver { slot, watch, length, translation } => {
                self.note_received(slot, length, via, now);
                if let Some(watch) = watch {
                    watch.note_received(self.shared.stamp(now));
                }
                if join.is_full() {
                    self.deliver_joined(join, buffer);
                }
                let (start, end) = (place.start + HEADROOM, place.start + HEADROOM + length);
                let Some(ToV4 { source, id }) = translation else { return join.push(buffer, start..end) };
                if buffer.get_mut(start..end).and_then(|packet| via::to_v4(packet, source, id)).is_some() {
                    join.push(buffer, start + via::GROWTH..end);
                }
            }
            Action::Reply { slot, packet } => {
                self.note_received(slot, packet.len(), via, now);
                let mut buffer = [0; BUFFER_BYTES];
                if let Some(length) = self.forwarder.seal_own(slot, &packet, &mut buffer, now) {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    self.send_runs(slot, std::iter::once(Run { bytes, segment: length }), now);
                }
            }
            Action::Answered { slot, number, answerer } => {
                self.note_received(slot, 0, via, now);
                self.signal(Signal::Answered(slot.key(), number, answerer));
            }
            Action::Done => {}
            Action::Decide => match via {
                // A handshake is answered by the path to the peer, whichever socket it came to.
                Via::Direct(from) => self.pass_on(0, from, buffer.get(place).unwrap_or_default()),
                Via::PeerRelay(relay) => {
                    let datagram = buffer.get(place).unwrap_or_default();
                    self.pass_on(0, relay.address, &relay.header(Protocol::WireGuard).wrap(datagram));
                }
                // Relay connections give the worker nothing but data.
                Via::Relay(_) => {}
            },
            Action::Drop(refusal) => self.refuse(refusal, via, now),
        }
    }

    /// Drops a datagram of the network.
    fn refuse(&mut self, refusal: Refusal, via: Via, now: Instant) {
        trace("network", refusal);
        if let (Refusal::NoSession, Via::Direct(from)) = (refusal, via) {
            self.note_stray(Stray::Straight(from), now);
        }
    }

    /// Tells of a packet of no session, now and then: a peer may not know that this node has lost its sessions.
    fn note_stray(&mut self, stray: Stray, now: Instant) {
        if self.told_stray.is_none_or(|at| now.saturating_duration_since(at) >= STRAY_SPACING) {
            self.told_stray = Some(now);
            self.signal(Signal::Stray(stray));
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
            && let Err(errno) = self.door.write(None, packet, std::slice::from_ref(&(0..packet.len())))
        {
            Drops::count(&self.shared.drops.unwritten, 1);
            tracing::trace!(%errno, "the host takes no packet");
        }
    }

    /// Writes what was received to the host, joined where that is the same to it.
    fn deliver_joined(&self, join: &mut Join, buffer: &mut [u8]) {
        let mut refuses_joined = false;
        join.flush(buffer, |joined, buffer, parts| {
            if let Err(errno) = self.door.write(joined, buffer, parts) {
                Drops::count(&self.shared.drops.unwritten, joined.map_or(1, |_| parts.len()));
                refuses_joined |= joined.is_some() && errno == Errno::INVAL;
                tracing::trace!(%errno, "the host takes no packet");
            }
        });
        if refuses_joined {
            tracing::debug!("the host takes no joined packets; each is written alone from now on");
            join.stop();
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

/// Returns the time of day for the flow log.
#[expect(
    clippy::disallowed_methods,
    reason = "the worker is a shell: a turn with records reads the clock of day, once"
)]
fn wall() -> Time {
    Time::since_epoch(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

#[expect(clippy::disallowed_methods, reason = "the worker is a shell: this is where it reads the clock, once a turn")]
fn now() -> Instant {
    Instant::now()
}
