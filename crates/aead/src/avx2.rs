//! Up to 8 packets at once with AVX2: blocks of ChaCha20 of several packets in the 32-bit lanes of a register,
//! Poly1305 of one packet in each 64-bit lane.
//!
//! Bytes become vectors and back by `zerocopy`, which checks at compile time that this is sound.

mod chacha;
mod poly;

use crate::key::Packet;
use crate::lanes;

/// Packets that are handled at once.
pub(crate) const LANES: usize = 8;

/// Seals at most [`LANES`] packets, each with room for its tag.
#[expect(unsafe_code, reason = "the processor was asked whether it has the instructions")]
pub(crate) fn seal(key: &[u32; 8], packets: &mut [Packet<'_>]) {
    // SAFETY: a `Key` holds `Backend::Avx2` only if `Backend::is_available` found the feature of `seal_lanes`, and
    // only then is this called.
    unsafe { seal_lanes(key, packets) }
}

/// Opens at most [`LANES`] packets, each long enough for a tag.
#[expect(unsafe_code, reason = "the processor was asked whether it has the instructions")]
pub(crate) fn open(key: &[u32; 8], packets: &mut [Packet<'_>]) {
    // SAFETY: a `Key` holds `Backend::Avx2` only if `Backend::is_available` found the feature of `open_lanes`, and
    // only then is this called.
    unsafe { open_lanes(key, packets) }
}

#[target_feature(enable = "avx2")]
fn seal_lanes(key: &[u32; 8], packets: &mut [Packet<'_>]) {
    lanes::seal(
        packets,
        |lanes| chacha::blocks(key, lanes),
        |text, stream| chacha::xor(text, *stream),
        |keys, packets| poly::tags(keys, packets),
    );
}

#[target_feature(enable = "avx2")]
fn open_lanes(key: &[u32; 8], packets: &mut [Packet<'_>]) {
    lanes::open(
        packets,
        |lanes| chacha::blocks(key, lanes),
        |text, stream| chacha::xor(text, *stream),
        |keys, packets| poly::tags(keys, packets),
    );
}
