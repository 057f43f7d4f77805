//! The TUN device.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::ifname::{IfIndex, IfName};

/// Owns a TUN interface: one IP packet per read and per write, no prefix header.
///
/// The interface is created by [`Self::open`] and vanishes, with its addresses and routes, when the value is dropped
/// or the process dies, unless the administrator made it persistent beforehand. Reads and writes never block.
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    name: IfName,
    index: IfIndex,
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
    /// Another process has the interface open.
    #[error(
        "the TUN interface `{name}` is in use by another process: stop that process or choose another name with --tun"
    )]
    Busy {
        /// The wanted interface.
        name: IfName,
    },
    /// An interface of that name exists and is not a TUN device.
    #[error("an interface `{name}` exists and is not a TUN device: choose another name with --tun")]
    OtherKind {
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
    /// One packet of this many bytes stands at the start of the buffer.
    Packet(usize),
    /// Nothing is waiting; poll for readability.
    Empty,
}

const TUNSETIFF: Opcode = opcode::write::<libc::c_int>(b'T', 202);
const SIOCGIFMTU: Opcode = 0x8921;
const SIOCSIFMTU: Opcode = 0x8922;
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;

impl Tun {
    /// Opens or creates the interface `name` and sets its MTU in bytes.
    ///
    /// The interface is left down and without addresses; see [`crate::Netlink`].
    ///
    /// # Errors
    /// See [`TunError`]; each variant's text tells a user what to do.
    pub fn open(name: &IfName, mtu_bytes: u16) -> Result<Self, TunError> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT | Errno::NODEV | Errno::NXIO | Errno::NOTDIR => TunError::Missing,
            Errno::ACCESS | Errno::PERM => TunError::OpenDenied,
            errno => TunError::System { step: "open /dev/net/tun", errno },
        })?;
        let mut request = IfReq::new(name);
        request.set_u16(IFF_TUN | IFF_NO_PI);
        request.run::<TUNSETIFF>(fd.as_fd()).map_err(|errno| match errno {
            Errno::PERM | Errno::ACCESS => TunError::CreateDenied { name: name.clone() },
            Errno::BUSY => TunError::Busy { name: name.clone() },
            Errno::INVAL => TunError::OtherKind { name: name.clone() },
            errno => TunError::System { step: "create the TUN interface", errno },
        })?;
        let control = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
            .map_err(|errno| TunError::System { step: "open a control socket", errno })?;
        let index = rustix::net::netdevice::name_to_index(&control, name.as_str())
            .map_err(|errno| TunError::System { step: "look up the TUN interface", errno })?;
        set_mtu(&control, name, mtu_bytes)?;
        Ok(Self { fd, name: name.clone(), index: IfIndex(index) })
    }

    /// Returns the interface's name.
    pub fn name(&self) -> &IfName {
        &self.name
    }

    /// Returns the interface's number.
    pub fn index(&self) -> IfIndex {
        self.index
    }

    /// Reads one packet into `buffer`, which should be at least as long as the MTU; a longer packet is cut.
    ///
    /// # Errors
    /// Returns the kernel's error, `EBADFD` when the interface was deleted.
    pub fn read(&self, buffer: &mut [u8]) -> Result<TunRead, Errno> {
        loop {
            return match rustix::io::read(&self.fd, &mut *buffer) {
                Ok(len) => Ok(TunRead::Packet(len)),
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
        loop {
            return match rustix::io::write(&self.fd, packet) {
                Ok(_) => Ok(()),
                Err(Errno::INTR) => continue,
                Err(errno) => Err(errno),
            };
        }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Tun {
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

    #[test]
    fn a_device_is_made_with_name_and_mtu_and_reads_nothing_at_first() {
        in_own_network(async || {
            let name: IfName = "wtest0".parse().unwrap();
            let tun = Tun::open(&name, 1280).unwrap();
            assert_eq!(tun.name(), &name);
            assert!(tun.index().0 > 0);
            assert_eq!(tun.read(&mut [0; 2048]), Ok(TunRead::Empty));
            assert_eq!(tun.write(&[0x45; 20]), Err(Errno::IO), "a device that is down takes no packet");
            let devices = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            assert!(devices.contains("wtest0:"));
        });
    }

    #[test]
    fn a_device_in_use_is_told_apart_from_one_of_another_kind() {
        in_own_network(async || {
            let name: IfName = "wtest0".parse().unwrap();
            let _held = Tun::open(&name, 1280).unwrap();
            assert_eq!(Tun::open(&name, 1280).unwrap_err(), TunError::Busy { name });
            let name: IfName = "lo".parse().unwrap();
            assert_eq!(Tun::open(&name, 1280).unwrap_err(), TunError::OtherKind { name });
        });
    }

    #[test]
    fn an_impossible_mtu_is_an_error() {
        in_own_network(async || {
            let name: IfName = "wtest0".parse().unwrap();
            assert!(matches!(Tun::open(&name, 20), Err(TunError::Mtu { mtu_bytes: 20, .. })));
        });
    }
}
