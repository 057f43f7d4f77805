//! Where packets of this machine come from and go to: a TUN device, or the node's own TCP/IP stack.

use std::ops::Range;

use warren_filter::segments::Joined;
use warren_os::{Errno, Tun, TunRead, Watched};

use crate::host;
use crate::userspace::INTERFACE;
use crate::userspace::line::WorkerEnd;

/// Is the packet worker's host side.
#[derive(Debug)]
pub(super) enum Door {
    /// The kernel's, for all programs of the machine.
    Tun(Tun),
    /// The node's own.
    Stack(WorkerEnd),
}

impl Door {
    /// Tells whether joined packets of TCP and of UDP are taken.
    pub(super) fn takes_joined(&self) -> (bool, bool) {
        match self {
            Self::Tun(tun) => (tun.offloads().headers, tun.offloads().udp),
            Self::Stack(_) => (true, false),
        }
    }

    /// Returns what to wait for, for the queue of this number; the stack wakes the worker.
    pub(super) fn watched(&self, queue: usize) -> Option<Watched<'_>> {
        match self {
            Self::Tun(tun) => (queue < tun.queue_count()).then(|| Watched::readable(tun.queue(queue))),
            Self::Stack(_) => None,
        }
    }

    /// Tells whether the stack has a packet.
    pub(super) fn has_packet(&mut self) -> bool {
        match self {
            Self::Tun(_) => false,
            Self::Stack(end) => end.is_ready(),
        }
    }

    /// Reads a packet of a queue.
    ///
    /// # Errors
    /// As [`warren_os::TunQueue::read`].
    pub(super) fn read(&mut self, queue: usize, buffer: &mut [u8]) -> Result<TunRead, Errno> {
        match self {
            Self::Tun(tun) => tun.queue(queue).read(buffer),
            Self::Stack(end) => Ok(end.read(buffer)),
        }
    }

    /// Writes a packet whose parts lie in `buffer`.
    ///
    /// # Errors
    /// As [`host::write`].
    pub(super) fn write(&self, joined: Option<&Joined>, buffer: &[u8], parts: &[Range<usize>]) -> Result<(), Errno> {
        match self {
            Self::Tun(tun) => host::write(tun, joined, buffer, parts),
            Self::Stack(end) => end.write(joined, buffer, parts),
        }
    }

    /// Returns what people call it.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Tun(tun) => tun.name().as_str(),
            Self::Stack(_) => INTERFACE,
        }
    }
}
