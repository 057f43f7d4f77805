//! Super-packets: one TCP or UDP packet that stands for several.
//!
//! The kernel hands over and takes such packets to save work; they never travel. [`Split`] makes the packets that one
//! stands for, [`Join`] makes super-packets of received packets where the receiver cannot tell the difference, and
//! [`finish_checksum`] does what the kernel leaves open on a single one.

mod checksum;
mod join;
mod split;

pub(crate) use checksum::Sum;
pub use checksum::finish_checksum;
pub use join::{Join, Joined};
pub use split::{Split, SplitError};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// Where TCP has its checksum, in bytes after its header's start.
const TCP_CHECKSUM: usize = 16;
/// Where UDP has it.
const UDP_CHECKSUM: usize = 6;

/// Names the protocols that can be cut and joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SegmentKind {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Overwrites some bytes; what is outside of `bytes` is left away.
fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(place) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *place = value;
    }
}

/// Reads some bytes.
fn get<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Writes a length that fits into 16 bits, because packets do.
fn put_length(bytes: &mut [u8], at: usize, length: usize) {
    put(bytes, at, u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
}

#[cfg(test)]
mod tests;
