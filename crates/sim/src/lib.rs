//! Test only: a deterministic Internet in one process that runs the cores.
//!
//! One clock, one seed, no thread and no socket: the same seed gives the same run, event by event. [`network`] has
//! zones, routers with NATs by RFC 4787 and links with latency, jitter and loss; [`node`] is a node as far as paths go,
//! with the real `Paths`, `Netcheck` and `PortMapper`, put together as the daemon does; [`world`] lets them live, with
//! STUN servers, relays and a coordination server; [`scenario`] makes random worlds and faults from a seed; [`watch`]
//! holds what must always be true.

#![forbid(unsafe_code)]
#![expect(
    clippy::indexing_slicing,
    reason = "test code: hosts, routers and nodes are named by their places in lists that only grow"
)]

pub mod clock;
pub mod gateway;
pub mod idle;
pub mod nat;
pub mod network;
pub mod node;
pub mod oracle;
pub mod scenario;
pub mod watch;
pub mod world;
