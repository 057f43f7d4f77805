//! UDP sockets that move many datagrams per system call.
//!
//! The batch types hide how datagrams travel: today `recvmmsg` and `sendmmsg`, one message per datagram; segmentation
//! offload can come later behind the same interface, which is why received datagrams are reached only by iteration.

use std::fmt;
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::ptr;

use rustix::io::Errno;
use rustix::net::{SendFlags, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// The wanted size of each kernel socket buffer in bytes.
///
/// Source: Tailscale `wgengine/magicsock`, `socketBufferSize`.
const SOCKET_BUFFER_BYTES: usize = 7 << 20;

/// The mark on all packets of our own sockets, under the mask `0xff0000`.
///
/// An administrator's policy rules can tell the tunnel's own packets by it. Source: Tailscale `tsconst`,
/// `LinuxBypassMark`.
pub const BYPASS_MARK: u32 = 0x80000;

/// Datagrams per system call.
const BATCH: usize = 64;

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
        let (domain, any) = match family {
            Family::V4 => (Domain::IPV4, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            Family::V6 => (Domain::IPV6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        };
        let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        if family == Family::V6 {
            socket.set_only_v6(true)?;
        }
        enlarge_buffers(&socket);
        if let Err(error) = socket.set_mark(BYPASS_MARK) {
            tracing::debug!(%error, "packets of the UDP socket are not marked");
        }
        let bound = socket.bind(&SocketAddr::new(any, port).into());
        if port != 0 && bound.is_err() {
            socket.bind(&SocketAddr::new(any, 0).into())?;
        } else {
            bound?;
        }
        let local = socket.local_addr()?.as_socket().unwrap_or(SocketAddr::new(any, port));
        Ok(Self { socket, local })
    }

    /// Binds one socket per family, on the same port if it is free in both.
    ///
    /// The second is `None` on a machine without IPv6.
    ///
    /// # Errors
    /// Returns the kernel's error when IPv4 is not available or no port is free.
    pub fn bind_pair(port: u16) -> io::Result<(Self, Option<Self>)> {
        let v4 = Self::bind(Family::V4, port)?;
        let v6 = Self::bind(Family::V6, v4.port()).inspect_err(|error| tracing::debug!(%error, "no IPv6 socket")).ok();
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

    /// Receives what is waiting, up to the size of `batch`, and returns the number of datagrams.
    ///
    /// 0 means that nothing is waiting: poll for readability. Datagrams longer than a slot are dropped. What the batch
    /// held before is gone.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub fn recv_batch(&self, batch: &mut RecvBatch) -> Result<usize, Errno> {
        batch.received.clear();
        let mut names = [EMPTY_NAME; BATCH];
        let mut slices: [libc::iovec; BATCH] = [EMPTY_SLICE; BATCH];
        // SAFETY: all fields of `mmsghdr` are integers and raw pointers, for which zero is a valid value.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        let mut count: libc::c_uint = 0;
        let slots = batch.buffer.chunks_exact_mut(batch.slot_bytes);
        for (((message, slice), name), slot) in messages.iter_mut().zip(&mut slices).zip(&mut names).zip(slots) {
            *slice = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            message.msg_hdr.msg_name = ptr::from_mut(name).cast();
            message.msg_hdr.msg_namelen = NAME_BYTES;
            message.msg_hdr.msg_iov = slice;
            message.msg_hdr.msg_iovlen = 1;
            count += 1;
        }
        let received = loop {
            // SAFETY: the first `count` messages point each to its own name (`NAME_BYTES` long), to its own iovec, and
            // through it to its own chunk of `batch.buffer`, all of which live and are not used otherwise during the
            // call; no control buffer is given; a null timeout is allowed.
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
            let len = (message.msg_len as usize).min(batch.slot_bytes);
            if let (false, Some(from)) = (truncated, address_of(name)) {
                batch.received.push(Received { slot, len, from });
            }
        }
        Ok(batch.received.len())
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

/// Owns the memory that datagrams are received into; make one per worker and use it again and again.
#[derive(Debug)]
pub struct RecvBatch {
    buffer: Vec<u8>,
    slot_bytes: usize,
    received: Vec<Received>,
}

#[derive(Debug)]
struct Received {
    slot: usize,
    len: usize,
    from: SocketAddr,
}

impl RecvBatch {
    /// Makes room for 64 datagrams of up to `slot_bytes` bytes each.
    pub fn new(slot_bytes: usize) -> Self {
        let slot_bytes = slot_bytes.max(1);
        Self { buffer: vec![0; slot_bytes * BATCH], slot_bytes, received: Vec::with_capacity(BATCH) }
    }

    /// Goes through the datagrams of the last [`UdpSocket::recv_batch`] in the order of arrival.
    pub fn datagrams(&mut self) -> impl Iterator<Item = Datagram<'_>> {
        let mut received = self.received.iter().peekable();
        let slots = self.buffer.chunks_exact_mut(self.slot_bytes).enumerate();
        slots.filter_map(move |(at, slot)| {
            let one = received.next_if(|one| one.slot == at)?;
            Some(Datagram { from: one.from, bytes: slot.get_mut(..one.len)? })
        })
    }
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
