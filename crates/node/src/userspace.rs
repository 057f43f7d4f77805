//! A node without TUN device and without root: a TCP/IP stack of its own stands where the kernel's would.
//!
//! The engine is the same one; only what it takes for the host's side is not a device but a line of packets to a thread here:
//!
//! ```text
//! peers ═ WireGuard ═ packet worker ── line ── stack ── connections ─┬─ programs' ports on 127.0.0.1 and ::1 (inbound)
//!                     (filter, routes)        (this thread)          ├─ SOCKS5 and HTTP proxy, `warren nc` (outbound)
//!                                                                    └─ a program that has the node inside it
//! ```
//!
//! - `stack`: TCP and echo replies, sans-IO, around `smoltcp`; what may be open is bounded there.
//! - `datagram`: UDP packets.
//! - `line`: the two queues to the packet worker. Packets on them may be super-packets, as those of a TUN device.
//! - `network`: the thread, and [`Network`], by which others dial and listen.
//! - `inbound`: what peers open goes to this machine's own ports.
//! - [`Inside`]: a node inside a program.
//! - [`dialer`]: which way leads to a name or an address.
//! - [`proxy`]: the same for programs that speak SOCKS5 or HTTP.

pub(crate) mod datagram;
pub mod dialer;
mod inbound;
mod inside;
pub(crate) mod line;
pub(crate) mod network;
pub mod proxy;
pub(crate) mod stack;

pub use dialer::{DialError, Dialed, Dialer};
pub use inside::{Inside, InsideError, Membership};
pub use network::{Listener, Network, Stream};

/// What `--tun` says for a node without TUN device. Source: node.md, section 1.
pub const INTERFACE: &str = "userspace-networking";
