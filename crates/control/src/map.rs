//! Maps: what a node learns of its tailnet.

use bytes::Bytes;

use crate::store::StoreError;

/// Says why a map request is not answered; the texts are for the person at the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// No node has that key, or it belongs to another machine.
    #[error("this server knows no such node; log in again")]
    UnknownNode,
    /// The client is too old.
    #[error("this client is too old for this server: it has capability version {found}, at least {least} is needed")]
    TooOld {
        /// Capability version of the client.
        found: u16,
        /// The least that is served.
        least: u16,
    },
    /// The client asks for a compression that nobody knows.
    #[error("unknown compression")]
    Compression,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The maps of one poll: a full one, then what changes.
#[derive(Debug)]
pub struct MapStream {}

impl MapStream {
    /// Waits for the next message, ready to be sent; `None` ends the poll. May be dropped and called again.
    #[expect(clippy::unused_async, reason = "signatures first")]
    pub async fn next(&mut self) -> Option<Bytes> {
        unimplemented!()
    }
}
