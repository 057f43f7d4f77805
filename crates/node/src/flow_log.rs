//! The flow log of this node: from the packet worker's records to the collector at the server.
//!
//! A thread of its own takes the records, puts them into batches of a signed chain, and writes each batch to a bounded spool
//! on disk before it is sent over the control connection. What the collector has stored for good it answers with a signed
//! receipt, which is kept. Packets never wait for any of it: what finds no room is counted, and said in the chain.
//!
//! Every identity at a server (server and node ID) has a folder of its own with a key of its own, so that no collector ever
//! gets what belongs to another network.
//!
//! - `scribe`: which records become batches, when they are sent, what answers mean. Without I/O but a folder of files.
//! - `spool`: the batches and receipts in that folder.
//! - `task`: the thread around it.

mod scribe;
mod spool;
mod task;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use task::Call;
pub(crate) use task::Reply;
pub use task::{FlowLog, Link, Place};
