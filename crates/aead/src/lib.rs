//! ChaCha20-Poly1305 (RFC 8439) of many packets under one key, in place and without associated data.
//!
//! Packets that leave for, or come from, one peer at a time share a key. So the blocks of several packets fill the
//! lanes of a vector register, and each of its 64-bit lanes computes the code of one packet. [`Backend`] says which
//! ways there are; which one a [`Key`] takes is decided once, by what the processor can do. All give the same bytes.
//!
//! # What depends on secrets
//! Neither a branch nor an index. Loops and branches depend on the number and the lengths of packets, and on whether
//! a packet was authentic, which everybody may know. Codes are compared for all packets, whatever comes out for
//! others, by `subtle`. The vector code multiplies with instructions whose time does not depend on their operands.
//! Checked in the machine code (x86-64, optimised): conditional jumps of the vector functions compare lengths, counts and
//! positions; the only one on a verdict comes when all codes are compared. There is no gather, and no division.
//!
//! # Refused packets
//! No plaintext of a packet that does not authenticate can be read afterwards: its buffer is filled with zeros. The
//! vector back end does not even make it, for it looks at all codes first.
//!
//! The crate is, beside `os`, the only one that may use `unsafe`: to call what needs instructions that not every
//! processor has.

#![deny(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod backend;
mod key;
#[cfg(target_arch = "x86_64")]
mod lanes;

pub use backend::{Backend, SWITCH};
pub use key::{Key, LANES, Packet, TAG_BYTES};
