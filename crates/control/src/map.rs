//! Maps: what a node learns of its tailnet.
//!
//! A stream remembers the snapshot that its client knows and compares it with the newest one. What changed is never
//! taken from a hint, so that a full map and a full map with changes on top say the same.

pub(crate) mod delta;
mod frame;
mod full;
mod stream;
pub(crate) mod view;

use crate::store::StoreError;

pub(crate) use frame::Framing;
pub(crate) use full::once;
pub use stream::MapStream;

/// The oldest clients that are served: Tailscale 1.80.
///
/// From here on clients know `HomeDERP`, named packet filters and capability maps. Source: control.md, section 5.3.
pub(crate) const LEAST_CAPABILITY: u16 = 113;

/// Bytes of peers in one message; a longer list is spread over several messages, which some clients need and which
/// bounds what a stream holds.
const MESSAGE_BYTES: usize = 1 << 20;

/// Says why a map request is not answered; the texts are for the person at the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// No node has that key, or it belongs to another machine.
    #[error("this server knows no such node; log in again")]
    UnknownNode,
    /// The client is too old.
    #[error("{}", too_old(*found))]
    TooOld {
        /// Capability version of the client.
        found: u16,
    },
    /// The client asks for a compression that nobody knows.
    #[error("unknown compression")]
    Compression,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Says in words that a client is too old.
pub(crate) fn too_old(found: u16) -> String {
    format!(
        "this client is too old for this server: it has capability version {found}, and at least {LEAST_CAPABILITY} \
         (Tailscale 1.80) is needed; update it"
    )
}

#[cfg(test)]
mod tests;
