//! UDP sockets that move many datagrams per system call.
//!
//! What costs is the walk of each packet through the kernel, not the system call: a run of datagrams of one size to one
//! address walks once (`UDP_SEGMENT`), and what arrives that way is received at once (`UDP_GRO`). Where the kernel or the
//! path refuses that, each datagram walks alone, behind the same interface.

use std::fmt;
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::net::{SendFlags, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::tun::Offload;

/// The wanted size of each kernel socket buffer in bytes.
///
/// Source: Tailscale `wgengine/magicsock`, `socketBufferSize`.
const SOCKET_BUFFER_BYTES: usize = 7 << 20;

/// The mark on all packets of our own sockets, under the mask `0xff0000`.
///
/// An administrator's policy rules can tell the tunnel's own packets by it. Source: Tailscale `tsconst`,
/// `LinuxBypassMark`.
pub const BYPASS_MARK: u32 = 0x80000;

/// The bits in which [`BYPASS_MARK`] is looked for. Source: node.md, section 21.1.
pub const BYPASS_MASK: u32 = 0xff_0000;

/// Puts [`BYPASS_MARK`] on the packets of a socket, as far as the process may; best before it is bound or connected, for the
/// kernel chooses the way then.
pub fn mark(socket: &impl AsFd) {
    if let Err(error) = socket2::SockRef::from(socket).set_mark(BYPASS_MARK) {
        tracing::debug!(%error, "packets of a socket are not marked");
    }
}

/// Datagrams per system call without offloads.
const BATCH: usize = 64;
/// Runs per system call with `UDP_GRO`.
const RUNS: usize = 8;
/// The most bytes of a run that is received: what one IP packet can hold.
const RUN_BYTES: usize = 65_536;
/// The most datagrams of a run that is sent. Later kernels take twice as many.
///
/// Source: Linux 4.18, `include/linux/udp.h`, `UDP_MAX_SEGMENTS`.
const MAX_SEGMENTS: usize = 64;
/// The most bytes of a run that is sent: what one IPv4 packet can hold besides its headers.
const MAX_RUN_BYTES: usize = 65_507;

/// Names an address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Owns a non-blocking UDP socket of one family, bound to the wildcard address.
pub struct UdpSocket {
    socket: Socket,
    local: SocketAddr,
    /// Whether the kernel receives runs.
    receives_runs: bool,
    /// Whether runs are sent as one; the kernel may refuse it at any time.
    sends_runs: AtomicBool,
}

/// Holds one datagram to send.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// Where it goes.
    pub to: SocketAddr,
    /// Its payload.
    pub bytes: &'a [u8],
}

/// Shows one received datagram.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// Where it came from.
    pub from: SocketAddr,
    /// Its payload, writable so that it can be opened in place.
    pub bytes: &'a mut [u8],
}

/// Tells what became of the datagrams given to [`UdpSocket::send_batch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SendReport {
    /// Datagrams the kernel took.
    pub sent: usize,
    /// Datagrams the kernel refused; the others were tried nevertheless.
    pub refused: usize,
    /// The first refusal's reason.
    pub error: Option<Errno>,
    /// Whether the socket's buffer filled up: the datagrams after the first `sent + refused` were not tried.
    pub blocked: bool,
}

impl UdpSocket {
    /// Binds `port`, or any free port when it is taken or 0.
    ///
    /// Buffers are enlarged to 7 MiB and packets marked with [`BYPASS_MARK`] as far as the process
    /// may; IPv6 sockets take no IPv4.
    ///
    /// # Errors
    /// Returns the kernel's error when the family is not available or no port is free.
    pub fn bind(family: Family, port: u16) -> io::Result<Self> {
        Self::bind_with(family, port, Offload::Probe)
    }

    /// Binds likewise, with or without offloads.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub fn bind_with(family: Family, port: u16, offload: Offload) -> io::Result<Self> {
        let (domain, any) = match family {
            Family::V4 => (Domain::IPV4, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            Family::V6 => (Domain::IPV6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        };
        let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        if family == Family::V6 {
            socket.set_only_v6(true)?;
        }
        enlarge_buffers(&socket);
        mark(&socket);
        let bound = socket.bind(&SocketAddr::new(any, port).into());
        if port != 0 && bound.is_err() {
            socket.bind(&SocketAddr::new(any, 0).into())?;
        } else {
            bound?;
        }
        let local = socket.local_addr()?.as_socket().unwrap_or(SocketAddr::new(any, port));
        let probe = offload == Offload::Probe;
        let receives_runs = probe && set_udp_option(&socket, libc::UDP_GRO, 1).is_ok();
        // Zero leaves single datagrams as they are; the option is there if it can be set.
        let sends_runs = AtomicBool::new(probe && set_udp_option(&socket, libc::UDP_SEGMENT, 0).is_ok());
        Ok(Self { socket, local, receives_runs, sends_runs })
    }

    /// Binds one socket per family, on the same port if it is free in both.
    ///
    /// The second is `None` on a machine without IPv6.
    ///
    /// # Errors
    /// Returns the kernel's error when IPv4 is not available or no port is free.
    pub fn bind_pair(port: u16, offload: Offload) -> io::Result<(Self, Option<Self>)> {
        let v4 = Self::bind_with(Family::V4, port, offload)?;
        let v6 = Self::bind_with(Family::V6, v4.port(), offload)
            .inspect_err(|error| tracing::debug!(%error, "no IPv6 socket"))
            .ok();
        Ok((v4, v6))
    }

    /// Returns the bound address, whose IP is the wildcard.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Returns the bound port.
    pub fn port(&self) -> u16 {
        self.local.port()
    }

    /// Tells whether the kernel receives and sends runs of datagrams as one.
    pub fn offloads(&self) -> (bool, bool) {
        (self.receives_runs, self.sends_runs.load(Ordering::Relaxed))
    }

    /// Receives what is waiting, up to the size of `batch`, and returns the number of runs.
    ///
    /// 0 means that nothing is waiting: poll for readability. What the batch held before is gone. Datagrams that do not
    /// fit are dropped: those longer than 8 KiB if the kernel does not receive runs.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub fn recv_batch(&self, batch: &mut RecvBatch) -> Result<usize, Errno> {
        batch.runs.clear();
        let room = batch.buffer.len() / if self.receives_runs { RUNS } else { BATCH };
        let mut names = [EMPTY_NAME; BATCH];
        let mut slices: [libc::iovec; BATCH] = [EMPTY_SLICE; BATCH];
        let mut controls = [Control::default(); RUNS];
        // SAFETY: all fields of `mmsghdr` are integers and raw pointers, for which zero is a valid value.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        let mut count: libc::c_uint = 0;
        let slots = batch.buffer.chunks_exact_mut(room.max(1)).take(BATCH);
        for (((message, slice), name), slot) in messages.iter_mut().zip(&mut slices).zip(&mut names).zip(slots) {
            *slice = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            message.msg_hdr.msg_name = ptr::from_mut(name).cast();
            message.msg_hdr.msg_namelen = NAME_BYTES;
            message.msg_hdr.msg_iov = slice;
            message.msg_hdr.msg_iovlen = 1;
            count += 1;
        }
        if self.receives_runs {
            for (message, control) in messages.iter_mut().zip(&mut controls) {
                message.msg_hdr.msg_control = ptr::from_mut(control).cast();
                message.msg_hdr.msg_controllen = size_of::<Control>() as _;
            }
        }
        let received = loop {
            // SAFETY: the first `count` messages point each to its own name (`NAME_BYTES` long), to its own iovec, and
            // through it to its own chunk of `batch.buffer`, all of which live and are not used otherwise during the
            // call. Their control buffers are null, or each its own element of `controls` with its size. A null
            // timeout is allowed.
            let result = unsafe {
                libc::recvmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), count, DONT_WAIT as _, ptr::null_mut())
            };
            match usize::try_from(result) {
                Ok(received) => break received,
                Err(_) => match last_errno() {
                    Errno::INTR => {}
                    Errno::AGAIN => return Ok(0),
                    errno => return Err(errno),
                },
            }
        };
        for (slot, (message, name)) in messages.iter().zip(&names).enumerate().take(received) {
            let truncated = message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            let length = (message.msg_len as usize).min(room);
            let segment = controls.get(slot).and_then(Control::segment).unwrap_or(length);
            if let (false, Some(from)) = (truncated, address_of(name)) {
                batch.runs.push(Run { from, start: slot * room, length, segment });
            }
        }
        Ok(batch.runs.len())
    }

    /// Sends `bytes` as datagrams of `segment` bytes each, the last one shorter if so it comes out, in order.
    ///
    /// As many as possible go with one system call and one walk through the kernel. If the kernel says that it cannot do
    /// that here (a device that makes no checksums, IPsec), each is sent alone from now on; if the path's MTU is too
    /// small for it, this time. A refused datagram does not stop the ones behind it.
    pub fn send_run(&self, to: SocketAddr, bytes: &[u8], segment: usize) -> SendReport {
        let mut report = SendReport::default();
        if segment == 0 {
            return report;
        }
        let at_once = (MAX_RUN_BYTES / segment).clamp(1, MAX_SEGMENTS) * segment;
        for run in bytes.chunks(at_once) {
            if run.len() > segment && self.sends_runs.load(Ordering::Relaxed) {
                match self.send_segmented(to, run, segment) {
                    Ok(()) => {
                        report.sent += run.len().div_ceil(segment);
                        continue;
                    }
                    Err(Errno::AGAIN) => {
                        report.blocked = true;
                        return report;
                    }
                    Err(Errno::MSGSIZE | Errno::INVAL) => {}
                    Err(errno @ (Errno::IO | Errno::OPNOTSUPP | Errno::NOPROTOOPT)) => {
                        tracing::debug!(%errno, "runs of datagrams are sent one by one from now on");
                        self.sends_runs.store(false, Ordering::Relaxed);
                    }
                    // Where none of them can go they need not be tried one by one.
                    Err(errno) => {
                        report.refused += run.len().div_ceil(segment);
                        report.error.get_or_insert(errno);
                        continue;
                    }
                }
            }
            for datagram in run.chunks(segment) {
                match self.send(to, datagram) {
                    Ok(()) => report.sent += 1,
                    Err(Errno::AGAIN) => {
                        report.blocked = true;
                        return report;
                    }
                    Err(errno) => {
                        report.refused += 1;
                        report.error.get_or_insert(errno);
                    }
                }
            }
        }
        report
    }

    fn send_segmented(&self, to: SocketAddr, run: &[u8], segment: usize) -> Result<(), Errno> {
        let name = SockAddr::from(to);
        let mut slice = libc::iovec { iov_base: run.as_ptr().cast_mut().cast(), iov_len: run.len() };
        let mut control = Control::segmented(u16::try_from(segment).map_err(|_| Errno::MSGSIZE)?);
        // SAFETY: all fields of `msghdr` are integers and raw pointers, for which zero is a valid value.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_name = name.as_ptr().cast_mut().cast();
        message.msg_namelen = name.len();
        message.msg_iov = &raw mut slice;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = Control::SEGMENT_SPACE as _;
        loop {
            // SAFETY: the message points to an address, an iovec, through it to `run`, and to a control buffer whose
            // first `SEGMENT_SPACE` bytes are one whole control message; all live until the call returns. The kernel
            // only reads through these pointers, so that casting away `const` is sound.
            let result = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const message, DONT_WAIT) };
            match result {
                0.. => return Ok(()),
                _ => match last_errno() {
                    Errno::INTR => {}
                    errno => return Err(errno),
                },
            }
        }
    }

    /// Sends the datagrams in order.
    ///
    /// A refused datagram (no route, too large, forbidden by a firewall) does not stop the ones behind it.
    pub fn send_batch(&self, datagrams: &[Outgoing<'_>]) -> SendReport {
        let mut report = SendReport::default();
        let mut rest = datagrams;
        while !rest.is_empty() {
            let taken = match self.send_some(rest) {
                // The kernel does not answer "none" without an error; if it did, waiting would be the way out.
                Ok(0) | Err(Errno::AGAIN) => {
                    report.blocked = true;
                    break;
                }
                Ok(sent) => {
                    report.sent += sent;
                    sent
                }
                Err(Errno::INTR) => 0,
                Err(errno) => {
                    report.refused += 1;
                    report.error.get_or_insert(errno);
                    1
                }
            };
            rest = rest.get(taken..).unwrap_or_default();
        }
        report
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// Returns the kernel's error, `EAGAIN` when the socket's buffer is full.
    pub fn send(&self, to: SocketAddr, bytes: &[u8]) -> Result<(), Errno> {
        loop {
            match rustix::net::sendto(&self.socket, bytes, SendFlags::DONTWAIT, &to) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Sends one datagram that nobody may cut into fragments: neither this machine nor, over IPv4, a router on the way. What
    /// the kernel has heard of the path's MTU does not count, but that of the device does.
    ///
    /// This is an option of the whole socket, set for the time of the call, since IPv4 has none for one datagram. What another
    /// thread sends meanwhile is treated alike: refused if it is larger than the device takes, and not cut to what the kernel
    /// has heard of the path. So one thread should send all that may be large.
    ///
    /// # Errors
    /// Returns the kernel's error, `EMSGSIZE` if the datagram does not fit into one packet of the device.
    pub fn send_whole(&self, to: SocketAddr, bytes: &[u8]) -> Result<(), Errno> {
        let (level, option, probe) = if self.local.is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
        };
        let before = get_option(&self.socket, level, option)?;
        set_option(&self.socket, level, option, probe)?;
        // Without this the kernel cuts over IPv6 what is larger than the device takes.
        let refused =
            if self.local.is_ipv6() { set_option(&self.socket, level, libc::IPV6_DONTFRAG, 1) } else { Ok(()) };
        let sent = refused.and_then(|()| self.send(to, bytes));
        if self.local.is_ipv6() {
            let _ = set_option(&self.socket, level, libc::IPV6_DONTFRAG, 0);
        }
        set_option(&self.socket, level, option, before)?;
        sent
    }

    /// Sends up to [`BATCH`] datagrams in one system call and returns how many the kernel took before the first
    /// refusal; a refusal of the very first is the error. `datagrams` must not be empty.
    fn send_some(&self, datagrams: &[Outgoing<'_>]) -> Result<usize, Errno> {
        let names: [Option<SockAddr>; BATCH] =
            std::array::from_fn(|at| datagrams.get(at).map(|datagram| SockAddr::from(datagram.to)));
        let mut slices: [libc::iovec; BATCH] = [EMPTY_SLICE; BATCH];
        // SAFETY: all fields of `mmsghdr` are integers and raw pointers, for which zero is a valid value.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        let mut count: libc::c_uint = 0;
        let pairs = datagrams.iter().zip(names.iter().flatten());
        for ((message, slice), (datagram, name)) in messages.iter_mut().zip(&mut slices).zip(pairs) {
            *slice = libc::iovec { iov_base: datagram.bytes.as_ptr().cast_mut().cast(), iov_len: datagram.bytes.len() };
            message.msg_hdr.msg_name = name.as_ptr().cast_mut().cast();
            message.msg_hdr.msg_namelen = name.len();
            message.msg_hdr.msg_iov = slice;
            message.msg_hdr.msg_iovlen = 1;
            count += 1;
        }
        // SAFETY: the first `count` messages point each to an address in `names`, to an iovec in `slices` and through
        // it to the bytes of a datagram, all of which live until the call returns. The kernel only reads through these
        // pointers, so that casting away `const` is sound; it writes `msg_len` of the messages alone.
        let result = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), count, DONT_WAIT as _) };
        usize::try_from(result).map_err(|_| last_errno())
    }
}

impl fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpSocket").field("local", &self.local).finish_non_exhaustive()
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for UdpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Owns the memory that datagrams are received into, 512 KiB; make one per worker and use it again and again.
#[derive(Debug)]
pub struct RecvBatch {
    buffer: Vec<u8>,
    runs: Vec<Run>,
}

/// Tells where in a [`RecvBatch`] datagrams of one sender and one size lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Who sent them.
    pub from: SocketAddr,
    /// Where the first begins in the buffer.
    pub start: usize,
    /// Bytes of all together.
    pub length: usize,
    /// Bytes of each but the last, which may have fewer.
    pub segment: usize,
}

impl Run {
    /// Returns where its datagrams lie, in the order of arrival.
    pub fn datagrams(&self) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let (start, end, segment) = (self.start, self.start + self.length, self.segment.max(1));
        // An empty datagram is one, too.
        let count = self.length.div_ceil(segment).max(1);
        (0..count).map(move |number| start + number * segment).map(move |at| at..(at + segment).min(end))
    }
}

impl RecvBatch {
    /// Makes room for a batch.
    pub fn new() -> Self {
        Self { buffer: vec![0; RUNS * RUN_BYTES], runs: Vec::with_capacity(BATCH) }
    }

    /// Returns the runs of the last [`UdpSocket::recv_batch`] in the order of arrival, and the buffer they lie in.
    pub fn parts(&mut self) -> (&[Run], &mut [u8]) {
        (&self.runs, &mut self.buffer)
    }

    /// Goes through the datagrams of the last [`UdpSocket::recv_batch`] in the order of arrival.
    pub fn datagrams(&mut self) -> impl Iterator<Item = Datagram<'_>> {
        let mut rest: &mut [u8] = &mut self.buffer;
        let mut at = 0;
        let places = self.runs.iter().flat_map(|run| run.datagrams().map(|place| (run.from, place)));
        places.filter_map(move |(from, place)| {
            // Runs lie in the order of arrival, one behind the other.
            let tail = mem::take(&mut rest).split_at_mut_checked(place.start - at)?.1;
            let (bytes, tail) = tail.split_at_mut_checked(place.len())?;
            at = place.end;
            rest = tail;
            Some(Datagram { from, bytes })
        })
    }
}

impl Default for RecvBatch {
    fn default() -> Self {
        Self::new()
    }
}

/// Room for one control message with an integer, in the kernel's layout: `struct cmsghdr` and what it is about.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Control {
    length: usize,
    level: libc::c_int,
    kind: libc::c_int,
    value: [u8; 8],
}

impl Control {
    /// Bytes before the value.
    const HEAD: usize = size_of::<usize>() + 2 * size_of::<libc::c_int>();
    /// Bytes that a control message with two bytes takes, its alignment included.
    const SEGMENT_SPACE: usize = (Self::HEAD + size_of::<u16>()).next_multiple_of(size_of::<usize>());

    /// Asks to cut what is sent into datagrams of this size.
    fn segmented(segment: u16) -> Self {
        let [a, b] = segment.to_ne_bytes();
        Self {
            length: Self::HEAD + size_of::<u16>(),
            level: libc::SOL_UDP,
            kind: libc::UDP_SEGMENT,
            value: [a, b, 0, 0, 0, 0, 0, 0],
        }
    }

    /// Returns the size of the datagrams that were received as one.
    fn segment(&self) -> Option<usize> {
        let is_size = self.level == libc::SOL_UDP
            && self.kind == libc::UDP_GRO
            && self.length >= Self::HEAD + size_of::<libc::c_int>();
        let [a, b, c, d, ..] = self.value;
        usize::try_from(libc::c_int::from_ne_bytes([a, b, c, d])).ok().filter(|size| is_size && *size > 0)
    }
}

/// Size of an `int`.
const INT_BYTES: libc::socklen_t = 4;
const _: () = assert!(size_of::<libc::c_int>() == 4);

/// Sets an integer option of UDP.
fn set_udp_option(socket: &Socket, option: libc::c_int, value: libc::c_int) -> Result<(), Errno> {
    set_option(socket, libc::SOL_UDP, option, value)
}

/// Returns an integer option.
fn get_option(socket: &Socket, level: libc::c_int, option: libc::c_int) -> Result<libc::c_int, Errno> {
    let (mut value, mut bytes): (libc::c_int, libc::socklen_t) = (0, INT_BYTES);
    // SAFETY: the pointers are to one `int` and to its size, both of which live until the call returns; the kernel writes
    // no more than that size.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut bytes) };
    if result == 0 { Ok(value) } else { Err(last_errno()) }
}

/// Sets an integer option.
fn set_option(socket: &Socket, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> Result<(), Errno> {
    // SAFETY: the pointer is to one `int` that lives until the call returns, and `INT_BYTES` is its size; the kernel reads
    // it.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), INT_BYTES) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

const EMPTY_SLICE: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
const DONT_WAIT: libc::c_int = libc::MSG_DONTWAIT;

/// Room for `struct sockaddr_in` or `struct sockaddr_in6`, in the layout of the latter.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy)]
struct Name([u8; 28]);

const EMPTY_NAME: Name = Name([0; 28]);
const NAME_BYTES: libc::socklen_t = 28;

/// Reads a socket address that the kernel wrote.
fn address_of(name: &Name) -> Option<SocketAddr> {
    let [f0, f1, p0, p1, rest @ ..] = name.0;
    let port = u16::from_be_bytes([p0, p1]);
    match libc::c_int::from(u16::from_ne_bytes([f0, f1])) {
        libc::AF_INET => {
            let [a, b, c, d, ..] = rest;
            Some(SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), port).into())
        }
        libc::AF_INET6 => {
            // Flow information comes first and is no part of who the sender is.
            let (_, rest) = rest.split_first_chunk::<4>()?;
            let (ip, rest) = rest.split_first_chunk::<16>()?;
            let scope = u32::from_ne_bytes(*rest.first_chunk()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(*ip), port, 0, scope).into())
        }
        _ => None,
    }
}

fn last_errno() -> Errno {
    io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

/// Asks for large buffers: by force with privilege, else as large as the system's limit allows.
fn enlarge_buffers(socket: &Socket) {
    if sockopt::set_socket_recv_buffer_size_force(socket, SOCKET_BUFFER_BYTES).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(socket, SOCKET_BUFFER_BYTES);
    }
    if sockopt::set_socket_send_buffer_size_force(socket, SOCKET_BUFFER_BYTES).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(socket, SOCKET_BUFFER_BYTES);
    }
}

#[cfg(test)]
mod tests;
