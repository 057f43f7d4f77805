//! This machine: TUN device, UDP sockets, addresses, routes, link changes, caller identity, private files.
//!
//! The crate knows no protocol. Beside `aead` it is the only one of the workspace that may use `unsafe`; every block carries the
//! reason why it is sound. Linux only.
//!
//! Two kinds of callers use it. Packet workers are plain threads: they [`poll`] a [`Tun`], [`UdpSocket`]s and a
//! [`Waker`], and move packets with calls that never block. The decision task is asynchronous and changes the
//! machine through [`Netlink`] and learns of changes from [`LinkWatch`].
//!
//! # What stays behind after `kill -9`
//! No address and no route into the tunnel: the kernel removes them together with the TUN device. Firewall rules go with the
//! process, see [`Passing`]. Where programs ask for names is put back by the next start, see [`SystemResolver`]. Routing rules stay, and mean nothing alone; see the module [`netlink`].
#![deny(unsafe_op_in_unsafe_fn)]
#![cfg(target_os = "linux")]

mod connections;
mod endpoints;
mod files;
mod host;
mod identity;
mod ifname;
pub mod netlink;
mod passing;
mod resolver;
mod service;
#[cfg(test)]
mod testing;
mod tun;
mod udp;
mod wait;

pub use connections::forget_connections;
pub use endpoints::endpoint_addresses;
pub use files::{FileError, LockError, LockFile, create_private_dir, write_private};
pub use host::{HostFacts, boot_id, time_since_boot};
pub use identity::{PeerCredentials, peer_credentials};
pub use ifname::{IfIndex, IfName, IfNameError};
pub use netlink::{Changes, DefaultRoutes, Interface, LinkWatch, MainRoute, Netlink, NetlinkError, RouteTable, Rules};
pub use passing::{Forwarding, Masquerade, Passing, PassingError, is_strict};
pub use resolver::{NameSettings, ResolverError, SettingsWatch, SystemResolver, settings_before};
pub use rustix::io::Errno;
pub use service::{bind_service, is_own_address};
pub use tun::{
    Checksum, MAX_PACKET_BYTES, MAX_PARTS, Offload, SegmentKind, Segments, Tun, TunError, TunOffloads, TunQueue,
    TunRead, VnetHeader,
};
pub use udp::{BYPASS_MARK, BYPASS_MASK, Datagram, Family, Outgoing, RecvBatch, Run, SendReport, UdpSocket, mark};
pub use wait::{Ready, Waker, Watched, poll, poll_many};
