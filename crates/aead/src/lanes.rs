//! What the vector back ends share: which blocks of which packets lie in the lanes, and what happens to the packets.
//!
//! The functions are generic over what needs certain instructions, and inlined into callers that have these.

use core::array;

use subtle::ConstantTimeEq as _;
use zerocopy::{Immutable, IntoBytes};

use crate::key::{Packet, TAG_BYTES};

/// Bytes of a block of key stream.
pub(crate) const BLOCK_BYTES: usize = 64;

/// The words that ChaCha20's state begins with: "expand 32-byte k". RFC 8439, section 2.3.
pub(crate) const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// The words of ChaCha20's state in which the blocks differ.
pub(crate) struct Lanes<const N: usize> {
    /// Block counters.
    pub(crate) block: [u32; N],
    /// First words of the nonces; zero but for published vectors.
    pub(crate) first: [u32; N],
    /// Second words of the nonces.
    pub(crate) low: [u32; N],
    /// Third words of the nonces.
    pub(crate) high: [u32; N],
}

/// The one-time keys of the packets, word by word: two words that sums are multiplied with, two that are added at last.
pub(crate) type Keys<const N: usize> = [[u64; N]; 4];

/// The code of each packet: lower and upper halves.
pub(crate) type Tags<const N: usize> = [[u64; N]; 2];

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

/// Seals at most `N` packets, each with room for its tag. `blocks` makes key stream, `xor` lays a block of it over the
/// first 64 bytes of a text or over all of a shorter one, `tags` computes codes.
#[inline(always)]
pub(crate) fn seal<const N: usize, S: IntoBytes + Immutable>(
    packets: &mut [Packet<'_>],
    blocks: impl Fn(&Lanes<N>) -> [S; N],
    xor: impl Fn(&mut [u8], &S),
    tags: impl Fn(&Keys<N>, &[Packet<'_>]) -> Tags<N>,
) {
    let mut spans = [Span::default(); N];
    for (span, packet) in spans.iter_mut().zip(packets.iter()) {
        *span = Span { from: 0, to: 1 + text_blocks(packet) };
    }
    let mut keys = [[0; N]; 4];
    run(packets, &spans, &mut keys, &blocks, &xor);
    let [low, high] = tags(&keys, packets);
    for (packet, (low, high)) in packets.iter_mut().zip(low.into_iter().zip(high)) {
        if let Some((_, tag)) = packet.parts() {
            *tag = zerocopy::transmute!([low.to_le_bytes(), high.to_le_bytes()]);
        }
        packet.is_good = true;
    }
}

/// Opens at most `N` packets, each long enough for a tag. The parts are those of [`seal`].
#[inline(always)]
pub(crate) fn open<const N: usize, S: IntoBytes + Immutable>(
    packets: &mut [Packet<'_>],
    blocks: impl Fn(&Lanes<N>) -> [S; N],
    xor: impl Fn(&mut [u8], &S),
    tags: impl Fn(&Keys<N>, &[Packet<'_>]) -> Tags<N>,
) {
    let mut spans = [Span::default(); N];
    spans.iter_mut().zip(packets.iter()).for_each(|(span, _)| *span = Span { from: 0, to: 1 });
    let mut keys = [[0; N]; 4];
    run(packets, &spans, &mut keys, &blocks, &xor);
    let [low, high] = tags(&keys, packets);
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
    run(packets, &spans, &mut keys, &blocks, &xor);
}

/// Returns the texts of packets, of which there is one at least. Lanes without a packet have that of the first once more.
#[inline(always)]
pub(crate) fn texts<'a, const N: usize>(packets: &'a [Packet<'_>]) -> [&'a [u8]; N] {
    let text =
        |packet: &'a Packet<'_>| packet.buffer.get(..packet.buffer.len().saturating_sub(TAG_BYTES)).unwrap_or_default();
    let first = packets.first().map_or(&[][..], text);
    array::from_fn(|lane| packets.get(lane).map_or(first, text))
}

fn text_blocks(packet: &Packet<'_>) -> u32 {
    let text = packet.buffer.len().saturating_sub(TAG_BYTES);
    u32::try_from(text.div_ceil(BLOCK_BYTES)).unwrap_or_default()
}

/// Makes all blocks of `spans`, `N` at a time, puts those numbered 0 into `keys` and the others over the texts.
#[inline(always)]
fn run<const N: usize, S: IntoBytes + Immutable>(
    packets: &mut [Packet<'_>],
    spans: &[Span; N],
    keys: &mut Keys<N>,
    blocks: &impl Fn(&Lanes<N>) -> [S; N],
    xor: &impl Fn(&mut [u8], &S),
) {
    let mut next = Place { packet: 0, block: spans.first().map_or(0, |span| span.from) };
    loop {
        let mut places = [Place::default(); N];
        let mut lanes = Lanes { block: [0; N], first: [0; N], low: [0; N], high: [0; N] };
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
        let streams = blocks(&lanes);
        for (place, stream) in places.iter().zip(&streams).take(used) {
            let Some(packet) = packets.get_mut(place.packet) else { return };
            if place.block > 0 {
                let at = (place.block as usize - 1) * BLOCK_BYTES;
                let text = packet.parts().and_then(|(text, _)| text.get_mut(at..));
                xor(text.unwrap_or_default(), stream);
            } else {
                for (key, word) in keys.iter_mut().zip(stream.as_bytes().as_chunks().0) {
                    key.get_mut(place.packet).into_iter().for_each(|key| *key = u64::from_le_bytes(*word));
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
