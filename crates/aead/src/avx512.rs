//! Up to 16 packets at once with AVX-512: blocks of ChaCha20 of several packets in the 32-bit lanes of a register,
//! Poly1305 of one packet in each 64-bit lane.
//!
//! Bytes become vectors and back by `zerocopy`, which checks at compile time that this is sound.

mod chacha;
mod poly;

use subtle::ConstantTimeEq as _;

use crate::key::{LANES, Packet, TAG_BYTES};
use chacha::{BLOCK_BYTES, Lanes};

/// Seals at most [`LANES`] packets, each with room for its tag.
#[expect(unsafe_code, reason = "the processor was asked whether it has the instructions")]
pub(crate) fn seal(key: &[u32; 8], packets: &mut [Packet<'_>]) {
    // SAFETY: a `Key` holds `Backend::Avx512` only if `Backend::is_available` found both features of `seal_lanes`, and
    // only then is this called.
    unsafe { seal_lanes(key, packets) }
}

/// Opens at most [`LANES`] packets, each long enough for a tag.
#[expect(unsafe_code, reason = "the processor was asked whether it has the instructions")]
pub(crate) fn open(key: &[u32; 8], packets: &mut [Packet<'_>]) {
    // SAFETY: a `Key` holds `Backend::Avx512` only if `Backend::is_available` found both features of `open_lanes`, and
    // only then is this called.
    unsafe { open_lanes(key, packets) }
}

#[target_feature(enable = "avx512f,avx512ifma")]
fn seal_lanes(key: &[u32; 8], packets: &mut [Packet<'_>]) {
    let mut spans = [Span::default(); LANES];
    for (span, packet) in spans.iter_mut().zip(packets.iter()) {
        *span = Span { from: 0, to: 1 + text_blocks(packet) };
    }
    let mut keys = [[0; LANES]; 4];
    run(key, packets, &spans, &mut keys);
    let [low, high] = poly::tags(&keys, packets);
    for (packet, (low, high)) in packets.iter_mut().zip(low.into_iter().zip(high)) {
        if let Some((_, tag)) = packet.parts() {
            *tag = zerocopy::transmute!([low.to_le_bytes(), high.to_le_bytes()]);
        }
        packet.is_good = true;
    }
}

#[target_feature(enable = "avx512f,avx512ifma")]
fn open_lanes(key: &[u32; 8], packets: &mut [Packet<'_>]) {
    let mut spans = [Span::default(); LANES];
    spans.iter_mut().zip(packets.iter()).for_each(|(span, _)| *span = Span { from: 0, to: 1 });
    let mut keys = [[0; LANES]; 4];
    run(key, packets, &spans, &mut keys);
    let [low, high] = poly::tags(&keys, packets);
    for (packet, (low, high)) in packets.iter_mut().zip(low.into_iter().zip(high)) {
        let Some((_, tag)) = packet.parts() else { continue };
        let [tag_low, tag_high]: [[u8; 8]; 2] = zerocopy::transmute!(*tag);
        let difference = (u64::from_le_bytes(tag_low) ^ low) | (u64::from_le_bytes(tag_high) ^ high);
        packet.is_good = difference.ct_eq(&0).into();
    }
    for (span, packet) in spans.iter_mut().zip(packets.iter_mut()) {
        if packet.is_good {
            *span = Span { from: 1, to: 1 + text_blocks(packet) };
        } else {
            *span = Span::default();
            packet.buffer.fill(0);
        }
    }
    run(key, packets, &spans, &mut keys);
}

/// Which blocks of a packet's key stream to make: from `from` to before `to`. Block 0 is the key of its code, those
/// from 1 on lie over the text.
#[derive(Clone, Copy, Default)]
struct Span {
    from: u32,
    to: u32,
}

/// Where a block in a lane belongs.
#[derive(Clone, Copy, Default)]
struct Place {
    packet: usize,
    block: u32,
}

fn text_blocks(packet: &Packet<'_>) -> u32 {
    let text = packet.buffer.len().saturating_sub(TAG_BYTES);
    u32::try_from(text.div_ceil(BLOCK_BYTES)).unwrap_or_default()
}

/// Makes all blocks of `spans`, 16 at a time, puts those numbered 0 into `keys` and the others over the texts.
#[target_feature(enable = "avx512f")]
fn run(key: &[u32; 8], packets: &mut [Packet<'_>], spans: &[Span; LANES], keys: &mut poly::Keys) {
    let mut next = Place { packet: 0, block: spans[0].from };
    loop {
        let mut places = [Place::default(); LANES];
        let mut lanes = Lanes::default();
        let mut used = 0;
        let slots = places.iter_mut().zip(&mut lanes.block).zip(lanes.low.iter_mut().zip(&mut lanes.high));
        'fill: for ((place, block), (low, high)) in slots {
            let counter = loop {
                let (Some(packet), Some(span)) = (packets.get(next.packet), spans.get(next.packet)) else {
                    break 'fill;
                };
                if next.block < span.to {
                    break packet.counter;
                }
                next.packet += 1;
                next.block = spans.get(next.packet).map_or(0, |span| span.from);
            };
            (*place, *block) = (next, next.block);
            (*low, *high) = halves(counter);
            next.block += 1;
            used += 1;
        }
        if used == 0 {
            return;
        }
        let streams = chacha::blocks(key, &lanes);
        for (place, stream) in places.iter().zip(&streams).take(used) {
            let Some(packet) = packets.get_mut(place.packet) else { return };
            if place.block > 0 {
                let at = (place.block as usize - 1) * BLOCK_BYTES;
                let text = packet.parts().and_then(|(text, _)| text.get_mut(at..));
                chacha::xor(text.unwrap_or_default(), *stream);
            } else {
                let words: [u64; 8] = zerocopy::transmute!(*stream);
                for (key, word) in keys.iter_mut().zip(words) {
                    key.get_mut(place.packet).into_iter().for_each(|key| *key = word);
                }
            }
        }
    }
}

/// Splits a number into its lower and its upper half.
#[expect(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
const fn halves(number: u64) -> (u32, u32) {
    (number as u32, (number >> 32) as u32)
}
