//! The line between the packet worker and the stack: in place of a TUN device, with the same kinds of packets.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use tokio::sync::{Notify, mpsc};
use warren_filter::segments::Joined;
use warren_os::{Errno, SegmentKind, Segments, TunRead, VnetHeader};

use super::stack::Outgoing;

/// Packets that may wait for the stack, and their bytes: a few full windows.
const ARRIVED: (usize, usize) = (4096, 8 << 20);
/// Packets that may wait for the worker.
const DEPARTING: usize = 64;

/// Is a packet of a peer.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) bytes: Vec<u8>,
    /// It is one of several joined, so its checksum covers the pseudo header alone.
    pub(crate) is_joined: bool,
}

/// Is the packet worker's end.
#[derive(Debug)]
pub(crate) struct WorkerEnd {
    arrived: mpsc::Sender<Arrived>,
    /// Bytes that wait for the stack.
    waiting: Arc<AtomicUsize>,
    departing: Receiver<Outgoing>,
    /// What was taken to see whether there is something.
    next: Option<Outgoing>,
    room: Arc<Notify>,
}

/// Is the stack's end.
#[derive(Debug)]
pub(crate) struct StackEnd {
    pub(crate) arrived: mpsc::Receiver<Arrived>,
    /// Bytes that wait there; whoever takes a packet subtracts its own.
    pub(crate) waiting: Arc<AtomicUsize>,
    pub(crate) departing: SyncSender<Outgoing>,
    /// Rings when the worker has taken something.
    pub(crate) room: Arc<Notify>,
}

/// Makes a line.
pub(crate) fn line() -> (WorkerEnd, StackEnd) {
    let (arrived, arrived_out) = mpsc::channel(ARRIVED.0);
    let (departing_in, departing) = sync_channel(DEPARTING);
    let room = Arc::new(Notify::new());
    let waiting = Arc::new(AtomicUsize::new(0));
    let worker = WorkerEnd { arrived, waiting: Arc::clone(&waiting), departing, next: None, room: Arc::clone(&room) };
    (worker, StackEnd { arrived: arrived_out, waiting, departing: departing_in, room })
}

impl WorkerEnd {
    /// Tells whether a packet waits.
    pub(crate) fn is_ready(&mut self) -> bool {
        if self.next.is_none() {
            self.next = self.departing.try_recv().ok();
        }
        self.next.is_some()
    }

    /// Reads a packet into `buffer`, as from a TUN device.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> TunRead {
        if !self.is_ready() {
            return TunRead::Empty;
        }
        self.room.notify_one();
        let Some(Outgoing { bytes, segment }) = self.next.take() else { return TunRead::Empty };
        // The stack makes no packet that is larger than a buffer.
        let length = bytes.len().min(buffer.len());
        if let (Some(room), Some(packet)) = (buffer.get_mut(..length), bytes.get(..length)) {
            room.copy_from_slice(packet);
        }
        let kind =
            if bytes.first().is_some_and(|first| first >> 4 == 6) { SegmentKind::Tcp6 } else { SegmentKind::Tcp4 };
        let segments = segment.map(|bytes| Segments { kind, bytes: bytes.get(), header_bytes: 0, ecn: false });
        TunRead::Packet { length, header: VnetHeader { checksum: None, segments } }
    }

    /// Writes a packet whose parts lie in `buffer`, as to a TUN device.
    ///
    /// # Errors
    /// `ENOBUFS` if the stack does not keep up: the packet is lost then, as on any link.
    pub(crate) fn write(&self, joined: Option<&Joined>, buffer: &[u8], parts: &[Range<usize>]) -> Result<(), Errno> {
        let place = self.arrived.try_reserve().map_err(|_| Errno::NOBUFS)?;
        let length = parts.iter().map(Range::len).sum();
        if self.waiting.load(Ordering::Relaxed) >= ARRIVED.1 {
            return Err(Errno::NOBUFS);
        }
        let mut bytes = Vec::with_capacity(length);
        for part in parts {
            bytes.extend_from_slice(buffer.get(part.clone()).unwrap_or_default());
        }
        self.waiting.fetch_add(bytes.len(), Ordering::Relaxed);
        place.send(Arrived { bytes, is_joined: joined.is_some() });
        Ok(())
    }
}

/// Returns the loopback address of the same family.
pub(crate) fn loopback(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    }
}
