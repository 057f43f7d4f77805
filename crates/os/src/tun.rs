//! The TUN device.

mod vnet;

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater, ioctl, opcode};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::ifname::{IfIndex, IfName};

pub use vnet::{Checksum, SegmentKind, Segments, VnetHeader};

/// Says which offloads a device or socket should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offload {
    /// Those that the kernel has.
    #[default]
    Probe,
    /// None: a packet per call, as an old kernel does it.
    Off,
}

/// Tells which offloads a TUN device has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TunOffloads {
    /// Packets carry a [`VnetHeader`]: those that are written may be super-packets of TCP.
    pub headers: bool,
    /// The kernel leaves checksums of packets that are read to the reader.
    pub checksum: bool,
    /// The kernel hands over TCP super-packets, of both families.
    pub tcp: bool,
    /// Those with the first packet marked CWR, too.
    pub tcp_ecn: bool,
    /// The kernel hands over UDP super-packets, and takes them.
    pub udp: bool,
}

/// Owns a TUN interface: one IP packet, or one super-packet that stands for several, per read and per write.
///
/// The interface is created by [`Self::open`] and vanishes, with its addresses and routes, when the value is dropped
/// or the process dies, unless the administrator made it persistent beforehand. Reads and writes never block.
#[derive(Debug)]
pub struct Tun {
    /// The kernel puts a flow into the queue by which packets of its other direction were last written, else where its
    /// hash says. There is at least one.
    first: TunQueue,
    others: Vec<TunQueue>,
    name: IfName,
    index: IfIndex,
    offloads: TunOffloads,
}

/// One queue of a TUN interface; each keeps its packets in order and is full by itself.
#[derive(Debug)]
pub struct TunQueue {
    fd: OwnedFd,
    /// Packets carry a [`VnetHeader`].
    headers: bool,
}

/// Says why a TUN device cannot be had and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TunError {
    /// There is no `/dev/net/tun`, or the kernel has no TUN driver.
    #[error(
        "/dev/net/tun is missing: load the driver with `modprobe tun` (in a container, start it with `--device /dev/net/tun`)"
    )]
    Missing,
    /// This process may not open `/dev/net/tun`.
    #[error("no permission to open /dev/net/tun: run as root")]
    OpenDenied,
    /// This process may open the device file but may not make or change interfaces.
    #[error(
        "no permission to create the TUN interface `{name}`: run as root or with the capability CAP_NET_ADMIN (in a container, start it with `--cap-add NET_ADMIN`)"
    )]
    CreateDenied {
        /// The wanted interface.
        name: IfName,
    },
    /// Another process has the interface open, or it is not a TUN device; the kernel does not always tell which.
    #[error(
        "the interface `{name}` is in use by another process, or is not a TUN device: stop that process or choose another name with --tun"
    )]
    Taken {
        /// The wanted interface.
        name: IfName,
    },
    /// The kernel refused the packet size.
    #[error("the TUN interface `{name}` refuses an MTU of {mtu_bytes} bytes: {errno}")]
    Mtu {
        /// The interface.
        name: IfName,
        /// The wanted size in bytes.
        mtu_bytes: u16,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A system call failed for a reason that has no advice of its own.
    #[error("cannot {step}: {errno}")]
    System {
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
}

/// Tells what a read from the device brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunRead {
    /// A packet stands at the start of the buffer.
    Packet {
        /// Its bytes.
        length: usize,
        /// What is left to do on it.
        header: VnetHeader,
    },
    /// Nothing is waiting; poll for readability.
    Empty,
}

const TUNSETIFF: Opcode = opcode::write::<libc::c_int>(b'T', 202);
const SIOCGIFMTU: Opcode = 0x8921;
const SIOCSIFMTU: Opcode = 0x8922;
const IFF_TUN: u16 = 0x0001;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
/// Only a device that is not there yet: one with several queues would take ours beside those of another process.
const IFF_TUN_EXCL: u16 = 0x8000;
const TUNSETOFFLOAD: Opcode = opcode::write::<libc::c_uint>(b'T', 208);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<libc::c_int>(b'T', 216);
const TUN_F_CSUM: usize = 0x01;
const TUN_F_TSO4: usize = 0x02;
const TUN_F_TSO6: usize = 0x04;
const TUN_F_TSO_ECN: usize = 0x08;
/// The kernel takes these two together only.
const TUN_F_USO: usize = 0x20 | 0x40;

/// The largest packet that a read can bring, in bytes: buffers should have this size if there are offloads.
pub const MAX_PACKET_BYTES: usize = 65_535;

/// The most parts that a packet may be written in.
pub const MAX_PARTS: usize = 127;

impl Tun {
    /// Opens or creates the interface `name` and sets its MTU in bytes.
    ///
    /// The interface is left down and without addresses; see [`crate::Netlink`]. What [`Self::offloads`] says was
    /// tried, one after another, and left out where the kernel refused it.
    ///
    /// # Errors
    /// See [`TunError`]; each variant's text tells a user what to do.
    pub fn open(name: &IfName, mtu_bytes: u16, offload: Offload) -> Result<Self, TunError> {
        Self::open_queues(name, mtu_bytes, offload, 1)
    }

    /// Opens it likewise with up to `queues` queues; with one if the kernel has no more, without offloads, and for an
    /// interface that exists already.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_queues(name: &IfName, mtu_bytes: u16, offload: Offload, queues: usize) -> Result<Self, TunError> {
        // The most first. A kernel without headers or queues says the same as about an interface of another kind.
        let several = IFF_VNET_HDR | IFF_MULTI_QUEUE;
        let ways: &[u16] = match offload {
            Offload::Probe if queues > 1 => &[several | IFF_TUN_EXCL, IFF_VNET_HDR, 0],
            Offload::Probe => &[IFF_VNET_HDR, 0],
            Offload::Off => &[0],
        };
        let mut last = None;
        for way in ways {
            match TunQueue::attach(name, *way) {
                Ok(first) => {
                    return Self::finish(first, name, mtu_bytes, if *way & IFF_MULTI_QUEUE == 0 { 1 } else { queues });
                }
                Err(error @ (TunError::Taken { .. } | TunError::System { .. })) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| TunError::Taken { name: name.clone() }))
    }

    fn finish(first: TunQueue, name: &IfName, mtu_bytes: u16, queues: usize) -> Result<Self, TunError> {
        let offloads = if first.headers {
            // The default, unless another program has changed it on an interface that outlived it.
            set_header_bytes(first.as_fd())
                .map_err(|errno| TunError::System { step: "set up the TUN interface's packet headers", errno })?;
            probe(first.as_fd())
        } else {
            // An interface that outlived another program may still have some.
            let _ = set_offload(first.as_fd(), 0);
            TunOffloads::default()
        };
        let others = (1..queues).map_while(|_| TunQueue::attach(name, IFF_VNET_HDR | IFF_MULTI_QUEUE).ok()).collect();
        let control = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
            .map_err(|errno| TunError::System { step: "open a control socket", errno })?;
        let index = rustix::net::netdevice::name_to_index(&control, name.as_str())
            .map_err(|errno| TunError::System { step: "look up the TUN interface", errno })?;
        set_mtu(&control, name, mtu_bytes)?;
        Ok(Self { first, others, name: name.clone(), index: IfIndex(index), offloads })
    }

    /// Tells which offloads the device has.
    pub fn offloads(&self) -> TunOffloads {
        self.offloads
    }

    /// Returns the interface's name.
    pub fn name(&self) -> &IfName {
        &self.name
    }

    /// Returns the interface's number.
    pub fn index(&self) -> IfIndex {
        self.index
    }

    /// Returns a queue by its number; the first one for a number that is none.
    pub fn queue(&self, number: usize) -> &TunQueue {
        number.checked_sub(1).and_then(|other| self.others.get(other)).unwrap_or(&self.first)
    }

    /// Returns how many queues there are.
    pub fn queue_count(&self) -> usize {
        1 + self.others.len()
    }

    /// Reads from the first queue; see [`TunQueue::read`].
    ///
    /// # Errors
    /// As there.
    pub fn read(&self, buffer: &mut [u8]) -> Result<TunRead, Errno> {
        self.first.read(buffer)
    }

    /// Writes to the first queue; see [`TunQueue::write`].
    ///
    /// # Errors
    /// As there.
    pub fn write(&self, packet: &[u8]) -> Result<(), Errno> {
        self.first.write(packet)
    }
}

impl TunQueue {
    /// Opens the device file and attaches it to the interface.
    fn attach(name: &IfName, flags: u16) -> Result<Self, TunError> {
        let mode = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/dev/net/tun", mode, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT | Errno::NODEV | Errno::NXIO | Errno::NOTDIR => TunError::Missing,
            Errno::ACCESS | Errno::PERM => TunError::OpenDenied,
            errno => TunError::System { step: "open /dev/net/tun", errno },
        })?;
        let mut request = IfReq::new(name);
        request.set_u16(IFF_TUN | IFF_NO_PI | flags);
        request.run::<TUNSETIFF>(fd.as_fd()).map_err(|errno| match errno {
            Errno::PERM | Errno::ACCESS => TunError::CreateDenied { name: name.clone() },
            Errno::BUSY | Errno::INVAL => TunError::Taken { name: name.clone() },
            errno => TunError::System { step: "create the TUN interface", errno },
        })?;
        Ok(Self { fd, headers: flags & IFF_VNET_HDR != 0 })
    }

    /// Reads one packet into `buffer`, which should be as long as the MTU, or [`MAX_PACKET_BYTES`] if the device has
    /// offloads; a longer packet is cut.
    ///
    /// # Errors
    /// Returns the kernel's error, `EBADFD` when the interface was deleted.
    pub fn read(&self, buffer: &mut [u8]) -> Result<TunRead, Errno> {
        let room = buffer.len();
        loop {
            let mut header = [0; vnet::HEADER_BYTES];
            let read = if self.headers {
                rustix::io::readv(&self.fd, &mut [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)])
            } else {
                rustix::io::read(&self.fd, &mut *buffer)
            };
            return match read {
                Ok(length) if !self.headers => Ok(TunRead::Packet { length, header: VnetHeader::default() }),
                Ok(length) => match VnetHeader::decode(header) {
                    Some(header) => {
                        Ok(TunRead::Packet { length: length.saturating_sub(vnet::HEADER_BYTES).min(room), header })
                    }
                    // The kernel does not send what was not asked for.
                    None => continue,
                },
                Err(Errno::AGAIN) => Ok(TunRead::Empty),
                Err(Errno::INTR) => continue,
                Err(errno) => Err(errno),
            };
        }
    }

    /// Writes one whole IP packet.
    ///
    /// # Errors
    /// Returns the kernel's error: `EIO` while the interface is down, `EINVAL` for bytes that are no IP packet,
    /// `EAGAIN` or `ENOBUFS` when the kernel is short of memory. The packet is lost then, as on any link.
    pub fn write(&self, packet: &[u8]) -> Result<(), Errno> {
        self.write_parts(VnetHeader::default(), &[IoSlice::new(packet)])
    }

    /// Writes a packet that lies in up to [`MAX_PARTS`] pieces, which the kernel finishes as `header` says.
    ///
    /// # Errors
    /// As [`Self::write`]; `EINVAL`, too, for too many parts, for work that the device does not take, and for a header
    /// that does not fit to the packet.
    pub fn write_parts(&self, header: VnetHeader, parts: &[IoSlice<'_>]) -> Result<(), Errno> {
        if parts.len() > MAX_PARTS {
            return Err(Errno::INVAL);
        }
        let encoded = header.encode();
        let mut slices = [IoSlice::new(&encoded); MAX_PARTS + 1];
        for (to, from) in slices.iter_mut().skip(1).zip(parts) {
            *to = *from;
        }
        let first = match (self.headers, header == VnetHeader::default()) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => return Err(Errno::INVAL),
        };
        let slices = slices.get(first..=parts.len()).unwrap_or_default();
        loop {
            return match rustix::io::writev(&self.fd, slices) {
                Ok(_) => Ok(()),
                Err(Errno::INTR) => continue,
                Err(errno) => Err(errno),
            };
        }
    }
}

/// Asks for offloads, the most first, and returns what the kernel gave.
fn probe(fd: BorrowedFd<'_>) -> TunOffloads {
    let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
    let wanted = [tcp | TUN_F_TSO_ECN | TUN_F_USO, tcp | TUN_F_USO, tcp | TUN_F_TSO_ECN, tcp, TUN_F_CSUM, 0];
    let given = wanted.into_iter().find(|flags| set_offload(fd, *flags).is_ok()).unwrap_or(0);
    TunOffloads {
        headers: true,
        checksum: given & TUN_F_CSUM != 0,
        tcp: given & TUN_F_TSO4 != 0,
        tcp_ecn: given & TUN_F_TSO_ECN != 0,
        udp: given & TUN_F_USO != 0,
    }
}

fn set_offload(fd: BorrowedFd<'_>, flags: usize) -> Result<(), Errno> {
    // SAFETY: TUNSETOFFLOAD takes its argument, a set of flags, by value and touches no memory of ours.
    unsafe { ioctl(fd, IntegerSetter::<TUNSETOFFLOAD>::new_usize(flags)) }
}

fn set_header_bytes(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let bytes = libc::c_int::try_from(vnet::HEADER_BYTES).map_err(|_| Errno::INVAL)?;
    // SAFETY: TUNSETVNETHDRSZ reads one `int` through the pointer, which `Setter` gives for the time of the call.
    unsafe { ioctl(fd, Setter::<TUNSETVNETHDRSZ, libc::c_int>::new(bytes)) }
}

/// Its first queue.
impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.first.as_fd()
    }
}

/// Its first queue.
impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> RawFd {
        self.first.as_raw_fd()
    }
}

impl AsFd for TunQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for TunQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn set_mtu(control: &OwnedFd, name: &IfName, mtu_bytes: u16) -> Result<(), TunError> {
    let wanted = u32::from(mtu_bytes);
    let refused = |errno| TunError::Mtu { name: name.clone(), mtu_bytes, errno };
    let mut request = IfReq::new(name);
    request.run::<SIOCGIFMTU>(control.as_fd()).map_err(refused)?;
    if request.u32() == wanted {
        return Ok(());
    }
    let mut request = IfReq::new(name);
    request.set_u32(wanted);
    request.run::<SIOCSIFMTU>(control.as_fd()).map_err(|errno| match errno {
        Errno::PERM => TunError::CreateDenied { name: name.clone() },
        errno => refused(errno),
    })
}

/// The kernel's `struct ifreq`: a name and a union whose largest member has 24 bytes on 64-bit machines.
#[repr(C, align(8))]
#[derive(Debug)]
struct IfReq {
    name: [u8; 16],
    value: [u8; 24],
}

impl IfReq {
    fn new(name: &IfName) -> Self {
        let mut request = Self { name: [0; 16], value: [0; 24] };
        for (to, from) in request.name.iter_mut().zip(name.as_str().bytes()) {
            *to = from;
        }
        request
    }

    fn set_u16(&mut self, value: u16) {
        let [a, b, ..] = &mut self.value;
        [*a, *b] = value.to_ne_bytes();
    }

    fn set_u32(&mut self, value: u32) {
        let [a, b, c, d, ..] = &mut self.value;
        [*a, *b, *c, *d] = value.to_ne_bytes();
    }

    fn u32(&self) -> u32 {
        let [a, b, c, d, ..] = self.value;
        u32::from_ne_bytes([a, b, c, d])
    }

    fn run<const CODE: Opcode>(&mut self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        // SAFETY: the three codes used here (TUNSETIFF, SIOCGIFMTU, SIOCSIFMTU) take a pointer to `struct ifreq`.
        // `IfReq` has its layout and is at least as large as it on every Linux target (40 bytes; 32 on 32-bit
        // machines), all its bytes are initialised, and the kernel keeps no pointer after the call.
        unsafe { ioctl(fd, Updater::<CODE, Self>::new(self)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_own_network;

    /// Needs a kernel of 6.2 or later for all of them.
    #[test]
    fn offloads_are_there_unless_they_are_not_wanted() {
        in_own_network(async || {
            let name: IfName = "wtest0".parse().unwrap();
            let tun = Tun::open(&name, 1280, Offload::Off).unwrap();
            assert_eq!(tun.offloads(), TunOffloads::default());
            let parts = [IoSlice::new(&[0x45; 20])];
            let header = VnetHeader { checksum: Some(Checksum { start: 0, offset: 0 }), segments: None };
            assert_eq!(tun.queue(0).write_parts(header, &parts), Err(Errno::INVAL));
            drop(tun);
            let tun = Tun::open(&name, 1280, Offload::Probe).unwrap();
            let offloads = tun.offloads();
            assert!(offloads.headers && offloads.checksum && offloads.tcp, "{offloads:?}");
            assert_eq!(tun.queue(0).write_parts(VnetHeader::default(), &parts), Err(Errno::IO), "the device is down");
            assert_eq!(tun.queue(0).write_parts(header, &[IoSlice::new(&[]); MAX_PARTS + 1]), Err(Errno::INVAL));
        });
    }

    /// What the host sends through the device, in few large packets or in many small ones, and what it gets.
    async fn datagrams_pass(offload: Offload) -> usize {
        let name: IfName = "wtest0".parse().unwrap();
        let tun = Tun::open(&name, 1280, offload).unwrap();
        let netlink = crate::Netlink::connect().unwrap();
        netlink.set_up(tun.index()).await.unwrap();
        netlink.add_address(tun.index(), "192.0.2.1/24".parse().unwrap()).await.unwrap();
        let socket = crate::UdpSocket::bind(crate::Family::V4, 0).unwrap();
        let run: Vec<u8> = (0..10_u8).flat_map(|at| [at; 1000]).collect();
        let report = socket.send_run("192.0.2.2:9".parse().unwrap(), &run, 1000);
        assert_eq!((report.sent, report.refused), (10, 0));
        let mut buffer = vec![0; MAX_PACKET_BYTES];
        let (mut packets, mut bytes) = (0, 0);
        while let TunRead::Packet { length, header } = tun.read(&mut buffer).unwrap() {
            // IPv4 and UDP; anything else is the host's own talk about the new interface.
            if buffer[0] != 0x45 || buffer[9] != 17 {
                continue;
            }
            packets += 1;
            bytes += length - 28;
            assert!(header.segments.is_none_or(|segments| segments.kind == SegmentKind::Udp && segments.bytes == 1000));
        }
        assert_eq!(bytes, 10_000);
        packets
    }

    #[test]
    fn a_run_of_datagrams_comes_as_one_packet_or_as_many() {
        in_own_network(async || {
            assert_eq!(datagrams_pass(Offload::Off).await, 10);
        });
        in_own_network(async || {
            let udp = Tun::open(&"wtest1".parse().unwrap(), 1280, Offload::Probe).unwrap().offloads().udp;
            assert_eq!(datagrams_pass(Offload::Probe).await, if udp { 1 } else { 10 });
        });
    }

    #[test]
    fn a_device_is_made_with_name_and_mtu_and_reads_nothing_at_first() {
        in_own_network(async || {
            let name: IfName = "wtest0".parse().unwrap();
            let tun = Tun::open(&name, 1280, Offload::Probe).unwrap();
            assert_eq!(tun.name(), &name);
            assert!(tun.index().0 > 0);
            assert_eq!(tun.read(&mut [0; 2048]), Ok(TunRead::Empty));
            assert_eq!(tun.write(&[0x45; 20]), Err(Errno::IO), "a device that is down takes no packet");
            let devices = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            assert!(devices.contains("wtest0:"));
        });
    }

    /// Two daemons on one interface would each get a part of the packets.
    #[test]
    fn a_device_that_another_has_is_not_shared() {
        in_own_network(async || {
            let name: IfName = "wtest0".parse().unwrap();
            for (held, wanted) in [(1, 1), (1, 4), (4, 1), (4, 4)] {
                let _held = Tun::open_queues(&name, 1280, Offload::Probe, held).unwrap();
                let error = Tun::open_queues(&name, 1280, Offload::Probe, wanted).unwrap_err();
                assert_eq!(error, TunError::Taken { name: name.clone() }, "{held} {wanted}");
            }
            let name: IfName = "lo".parse().unwrap();
            for wanted in [1, 4] {
                let error = Tun::open_queues(&name, 1280, Offload::Probe, wanted).unwrap_err();
                assert_eq!(error, TunError::Taken { name: name.clone() });
            }
        });
    }

    /// What is written by a queue teaches the kernel where to put the answers, so that a full queue delays no other flow.
    #[test]
    fn answers_come_by_the_queue_of_their_questions() {
        in_own_network(async || {
            let tun = Tun::open_queues(&"wtest0".parse().unwrap(), 1280, Offload::Probe, 4).unwrap();
            assert_eq!(tun.queue_count(), 4);
            let netlink = crate::Netlink::connect().unwrap();
            netlink.set_up(tun.index()).await.unwrap();
            netlink.add_address(tun.index(), "192.0.2.1/24".parse().unwrap()).await.unwrap();
            for round in 0..2 {
                for number in 0..4_u8 {
                    // An echo request of a peer of its own; the kernel answers while it is written.
                    let peer = [192, 0, 2, 10 + (number + round) % 4];
                    let mut packet = [0; 28];
                    packet[..10].copy_from_slice(&[0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1]);
                    packet[12..16].copy_from_slice(&peer);
                    packet[16..20].copy_from_slice(&[192, 0, 2, 1]);
                    packet[20..24].copy_from_slice(&[8, 0, 0xf7, 0xff]);
                    let sum =
                        packet[..20].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum::<u32>();
                    packet[10..12].copy_from_slice(&(!((sum >> 16) + (sum & 0xffff))).to_be_bytes()[2..]);
                    let mut buffer = vec![0; MAX_PACKET_BYTES];
                    let mut answers = || {
                        tun.queue(number.into()).write(&packet).unwrap();
                        [0, 1, 2, 3].map(|other| {
                            let mut count = 0;
                            while let TunRead::Packet { .. } = tun.queue(other).read(&mut buffer).unwrap() {
                                count += u8::from(buffer[0] == 0x45 && buffer[9] == 1 && buffer[16..20] == peer);
                            }
                            count
                        })
                    };
                    // The kernel answers the first before it learns from it.
                    assert_eq!(answers().iter().sum::<u8>(), 1);
                    let mut here = [0; 4];
                    here[usize::from(number)] = 1;
                    assert_eq!(answers(), here, "{round}");
                }
            }
        });
    }

    #[test]
    fn an_impossible_mtu_is_an_error() {
        in_own_network(async || {
            let name: IfName = "wtest0".parse().unwrap();
            assert!(matches!(Tun::open(&name, 20, Offload::Off), Err(TunError::Mtu { mtu_bytes: 20, .. })));
        });
    }
}
