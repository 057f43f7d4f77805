//! Flow and audit records: what a node writes down, its signed chain, and the collector's proofs.
//!
//! A node makes a [`Record`] of every connection when it begins, while it lives and when it ends: its packet worker counts
//! with a [`recorder::Recorder`], which says when there is something to be written down. A [`Writer`] puts records
//! into batches, each signed with the node's [`LogSecret`] and chained to the one before by its hash. The collector opens
//! them with a [`Chain`], which names what is wrong with a stream that was tampered with ([`Fault`]), and answers with a
//! signed [`Receipt`]. Batches are the leaves of a Merkle tree ([`merkle`]), whose root and size it signs as a [`checkpoint`]:
//! whoever holds one can demand proof that all later ones only add to it.
//!
//! Batches lie in a [`store::Store`] of segments, on files that it is given; a [`query::Query`] finds records in it, an
//! [`export`] proves them to somebody who has the collector's public key alone, and a [`witness::Witness`] finds out that it
//! was rewritten or set back. A [`join::Join`] puts the records of both ends of a
//! conversation side by side, and names what does not balance.
//!
//! Nothing here reads a clock or touches a socket. All bytes may come from somebody hostile.
#![forbid(unsafe_code)]

mod batch;
mod chain;
pub mod checkpoint;
mod codec;
pub mod export;
pub mod join;
mod key;
pub mod merkle;
pub mod query;
mod receipt;
mod record;
pub mod recorder;
pub mod store;
#[cfg(test)]
mod testing;
mod time;
pub mod witness;

pub use batch::{
    BATCH_BYTES_MAX, BODY_BYTES_MAX, Batch, BatchError, HEADER_BYTES, Header, Opened, RECORDS_MAX, SealError, Writer,
    rules_id,
};
pub use chain::{Accepted, Chain, Fault, FlowFault, Head, OPEN_FLOWS_MAX};
pub use codec::DecodeError;
pub use key::{KeyError, LogKey, LogSecret, Signature};
pub use receipt::{RECEIPT_BYTES, Receipt, ReceiptError};
pub use record::{
    Counts, Direction, DropReason, Drops, End, EndReason, Event, Flow, Pass, Path, RECORD_BYTES_MAX, Record, Start,
    Target, Update,
};
pub use time::Time;
