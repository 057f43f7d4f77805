//! WireGuard without I/O.
//!
//! Two sides share the work. The decision side, [`Tunnels`], does handshakes and timers for all peers; it belongs to
//! one task. The worker side, [`Session`], seals and opens packets; sessions are shared by reference and found by
//! receiver index in a [`SessionTable`]. Nothing here reads a clock, opens a socket or draws randomness that it was
//! not given.
//!
//! Source: Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel", sections 5 and 6.

#![forbid(unsafe_code)]

mod cookie;
mod crypto;
mod entropy;
mod handshake;
mod limits;
mod replay;
mod session;
mod table;
mod tunnels;

pub use session::{
    BATCH, HEADROOM, Incoming, OpenError, Opened, Outgoing, SealError, Session, TAILROOM, sealed_length,
};
pub use table::SessionTable;
pub use tunnels::{Event, Origin, StartError, Transmit, Tunnels};

/// Kinds of messages, told by the first byte; the next three are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageType {
    /// Begins a handshake, 148 bytes.
    Initiation,
    /// Answers one, 92 bytes.
    Response,
    /// Asks to prove an address, 64 bytes.
    CookieReply,
    /// Data, 32 bytes or more.
    Transport,
}

impl MessageType {
    /// Tells the kind of a datagram by its first four bytes and its length; `None` if it is no WireGuard message.
    #[must_use]
    pub fn of(datagram: &[u8]) -> Option<Self> {
        match (datagram.first_chunk()?, datagram.len()) {
            ([1, 0, 0, 0], handshake::INITIATION_BYTES) => Some(Self::Initiation),
            ([2, 0, 0, 0], handshake::RESPONSE_BYTES) => Some(Self::Response),
            ([3, 0, 0, 0], cookie::REPLY_BYTES) => Some(Self::CookieReply),
            ([4, 0, 0, 0], 32..) => Some(Self::Transport),
            _ => None,
        }
    }
}
