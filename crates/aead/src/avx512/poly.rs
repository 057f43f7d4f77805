//! Poly1305 of 16 packets, each in a 64-bit lane of one of two groups of vectors. RFC 8439, section 2.5.
//!
//! A number is three limbs of 44, 44 and 42 bits. The instructions multiply 52 bits with 52 bits and add the lower or
//! the upper 52 bits of the product. Two groups, although eight packets would fill one, since a step has to wait for
//! the one before and the other group fills the time.
//!
//! With no associated data every block is a full one: the text is padded with zeros, and behind it stand zero and its
//! length.
//!
//! # Bounds
//! The key's limbs are below 2⁴⁴, 2⁴⁴ and 2³⁶, since it is clamped; 20 times the second is below 2^48.4. Before a
//! multiplication limbs of the sum are below 2⁵¹, 2⁴⁵ and 2⁴³: the products of the highest weight are below 2^89.6
//! then, so what is carried out of them is below 2^47.6, and five times that below 2⁵⁰ returns to the lowest limb, to
//! which a block adds less than 2⁴⁴. So all factors stay below 2⁵², and sums of 52-bit parts far below 2⁶⁴.

use core::arch::x86_64::{
    __m512i, _mm512_add_epi64, _mm512_and_si512, _mm512_madd52hi_epu64, _mm512_madd52lo_epu64, _mm512_mask_mov_epi64,
    _mm512_or_si512, _mm512_set1_epi64, _mm512_setzero_si512, _mm512_slli_epi64, _mm512_srli_epi64,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi64,
};
use std::array;

use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};

use super::chacha::transpose_quarters;
use crate::key::{LANES, Packet, TAG_BYTES};

/// Packets of a group.
const GROUP: usize = LANES / 2;
/// Bytes of each packet that are loaded at once: four blocks.
const STEP_BYTES: usize = 64;
const LOW_44: u64 = (1 << 44) - 1;
const LOW_42: u64 = (1 << 42) - 1;

/// Computes the codes of packets from their one-time keys.
#[target_feature(enable = "avx512f,avx512ifma")]
pub(super) fn tags(keys: &[[u64; 4]; LANES], packets: &[Packet<'_>]) -> [[u8; TAG_BYTES]; LANES] {
    let mut texts: [&[u8]; LANES] = [&[]; LANES];
    for (text, packet) in texts.iter_mut().zip(packets) {
        *text = packet.buffer.split_last_chunk::<TAG_BYTES>().map_or(&[], |(text, _)| text);
    }
    let (first_texts, second_texts) = halves(&texts);
    let (first_keys, second_keys) = halves(keys);
    let mut first = Group::new(first_keys);
    let shortest = texts.iter().take(packets.len()).map(|text| text.len()).min().unwrap_or_default();
    let longest = texts.iter().map(|text| text.len()).max().unwrap_or_default();
    let mut at = 0;
    let mut tags = [[0; TAG_BYTES]; LANES];
    if packets.len() <= GROUP {
        // The lanes without a packet compute something that nobody reads.
        while at < longest {
            first.absorb_some(first_texts, at);
            at += STEP_BYTES;
        }
        first.absorb_lengths(first_texts);
    } else {
        let mut second = Group::new(second_keys);
        if packets.len() == LANES {
            while at + STEP_BYTES <= shortest {
                let (one, two) = (load(first_texts, at), load(second_texts, at));
                for ([one_low, one_high], [two_low, two_high]) in one.into_iter().zip(two) {
                    first.absorb(one_low, one_high);
                    second.absorb(two_low, two_high);
                }
                at += STEP_BYTES;
            }
        }
        while at < longest {
            first.absorb_some(first_texts, at);
            second.absorb_some(second_texts, at);
            at += STEP_BYTES;
        }
        first.absorb_lengths(first_texts);
        second.absorb_lengths(second_texts);
        let (_, second_tags) = tags.split_at_mut(GROUP);
        second_tags.copy_from_slice(&second.finish(second_keys));
    }
    let (first_tags, _) = tags.split_at_mut(GROUP);
    first_tags.copy_from_slice(&first.finish(first_keys));
    tags
}

/// Splits what belongs to 16 packets into what belongs to each group.
fn halves<T>(all: &[T; LANES]) -> (&[T; GROUP], &[T; GROUP]) {
    let (halves, _) = all.as_chunks::<GROUP>();
    let [first, second] = halves else { unreachable!("16 are two times 8") };
    (first, second)
}

/// Sum and key of eight packets.
struct Group {
    sum: [__m512i; 3],
    key: [__m512i; 3],
    /// The upper two limbs of the key, times 20: what has the weight 2¹³² or more comes back with the factor 5 × 4.
    folded: [__m512i; 2],
}

impl Group {
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn new(keys: &[[u64; 4]; GROUP]) -> Self {
        let low: [u64; GROUP] = array::from_fn(|at| keys.get(at).map_or(0, |key| key[0] & 0x0fff_fffc_0fff_ffff));
        let high: [u64; GROUP] = array::from_fn(|at| keys.get(at).map_or(0, |key| key[1] & 0x0fff_fffc_0fff_fffc));
        let key = limbs(zerocopy::transmute!(low), zerocopy::transmute!(high));
        let folded = [times_20(key[1]), times_20(key[2])];
        Self { sum: [_mm512_setzero_si512(); 3], key, folded }
    }

    /// Absorbs the 64 bytes of each packet at `at`, or what there is of them.
    #[target_feature(enable = "avx512f,avx512ifma")]
    #[inline]
    fn absorb_some(&mut self, texts: &[&[u8]; GROUP], at: usize) {
        let mut padded = [[0; STEP_BYTES]; GROUP];
        let mut masks = [0_u8; 4];
        for (lane, (text, padded)) in texts.iter().zip(&mut padded).enumerate() {
            let rest = text.get(at..).unwrap_or_default();
            let rest = rest.get(..STEP_BYTES).unwrap_or(rest);
            padded.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
            for (mask, _) in masks.iter_mut().zip(rest.chunks(TAG_BYTES)) {
                *mask |= 1 << lane;
            }
        }
        let rows = [
            zerocopy::transmute!(padded[0]),
            zerocopy::transmute!(padded[1]),
            zerocopy::transmute!(padded[2]),
            zerocopy::transmute!(padded[3]),
            zerocopy::transmute!(padded[4]),
            zerocopy::transmute!(padded[5]),
            zerocopy::transmute!(padded[6]),
            zerocopy::transmute!(padded[7]),
        ];
        for ([low, high], mask) in columns(&rows).into_iter().zip(masks) {
            if mask == 0 {
                return;
            }
            let before = self.sum;
            self.absorb(low, high);
            for (sum, before) in self.sum.iter_mut().zip(before) {
                *sum = _mm512_mask_mov_epi64(before, mask, *sum);
            }
        }
    }

    /// Absorbs the last block: the length of the associated data, which is zero, and that of the text.
    #[target_feature(enable = "avx512f,avx512ifma")]
    #[inline]
    fn absorb_lengths(&mut self, texts: &[&[u8]; GROUP]) {
        let lengths: [u64; GROUP] = array::from_fn(|at| texts.get(at).map_or(0, |text| text.len() as u64));
        self.absorb(_mm512_setzero_si512(), zerocopy::transmute!(lengths));
    }

    /// Adds a block of each packet and multiplies with the keys.
    #[target_feature(enable = "avx512f,avx512ifma")]
    #[inline]
    fn absorb(&mut self, low: __m512i, high: __m512i) {
        let zero = _mm512_setzero_si512();
        let (low_44, low_42) = (same(LOW_44), same(LOW_42));
        let [block0, block1, block2] = limbs(low, high);
        let h0 = _mm512_add_epi64(self.sum[0], block0);
        let h1 = _mm512_add_epi64(self.sum[1], block1);
        // 2¹²⁸ says that the block is a full one.
        let h2 = _mm512_add_epi64(self.sum[2], _mm512_or_si512(block2, same(1 << 40)));
        let ([r0, r1, r2], [s1, s2]) = (self.key, self.folded);

        let low = _mm512_madd52lo_epu64;
        let high = _mm512_madd52hi_epu64;
        let low0 = low(low(low(zero, h2, s1), h1, s2), h0, r0);
        let high0 = high(high(high(zero, h2, s1), h1, s2), h0, r0);
        let low1 = low(low(low(zero, h2, s2), h1, r0), h0, r1);
        let high1 = high(high(high(zero, h2, s2), h1, r0), h0, r1);
        let low2 = low(low(low(zero, h2, r0), h1, r1), h0, r2);
        let high2 = high(high(high(zero, h2, r0), h1, r1), h0, r2);

        // Upper parts weigh 2⁵² more than lower ones, the next limb 2⁴⁴.
        let carry = _mm512_add_epi64(_mm512_srli_epi64::<44>(low0), _mm512_slli_epi64::<8>(high0));
        let low1 = _mm512_add_epi64(low1, carry);
        let carry = _mm512_add_epi64(_mm512_srli_epi64::<44>(low1), _mm512_slli_epi64::<8>(high1));
        let low2 = _mm512_add_epi64(low2, carry);
        let carry = _mm512_add_epi64(_mm512_srli_epi64::<42>(low2), _mm512_slli_epi64::<10>(high2));
        let five = _mm512_add_epi64(carry, _mm512_slli_epi64::<2>(carry));
        self.sum = [
            _mm512_add_epi64(_mm512_and_si512(low0, low_44), five),
            _mm512_and_si512(low1, low_44),
            _mm512_and_si512(low2, low_42),
        ];
    }

    /// Reduces the sums, adds the second halves of the keys and returns the codes.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn finish(&self, keys: &[[u64; 4]; GROUP]) -> [[u8; TAG_BYTES]; GROUP] {
        let h0: [u64; GROUP] = zerocopy::transmute!(self.sum[0]);
        let h1: [u64; GROUP] = zerocopy::transmute!(self.sum[1]);
        let h2: [u64; GROUP] = zerocopy::transmute!(self.sum[2]);
        let mut tags = [[0; TAG_BYTES]; GROUP];
        for ((tag, key), ((h0, h1), h2)) in tags.iter_mut().zip(keys).zip(h0.into_iter().zip(h1).zip(h2)) {
            let pad = u128::from(key[2]) | u128::from(key[3]) << 64;
            *tag = reduced([h0, h1, h2]).wrapping_add(pad).to_le_bytes();
        }
        tags
    }
}

/// Returns the lower 128 bits of a sum modulo 2¹³⁰ − 5.
fn reduced(sum: [u64; 3]) -> u128 {
    let [h0, h1, h2] = carried(carried(sum));
    // All limbs are in range now, so this is below 2¹³⁰: it may be too large by the prime, but not by more.
    let g0 = h0 + 5;
    let g1 = h1 + (g0 >> 44);
    let g2 = h2 + (g1 >> 44);
    let too_large = (g2 >> 42).ct_eq(&1);
    let h0 = u64::conditional_select(&h0, &(g0 & LOW_44), too_large);
    let h1 = u64::conditional_select(&h1, &(g1 & LOW_44), too_large);
    let h2 = u64::conditional_select(&h2, &(g2 & LOW_42), too_large);
    u128::from(h0) | u128::from(h1) << 44 | u128::from(h2) << 88
}

/// Carries once around; after the second time limbs are in range.
const fn carried([h0, h1, h2]: [u64; 3]) -> [u64; 3] {
    let h1 = h1 + (h0 >> 44);
    let h2 = h2 + (h1 >> 44);
    let h0 = (h0 & LOW_44) + 5 * (h2 >> 42);
    let h1 = (h1 & LOW_44) + (h0 >> 44);
    [h0 & LOW_44, h1, h2 & LOW_42]
}

/// Loads four blocks of each packet at `at`, where each has 64 bytes: their lower and upper halves, one packet a lane.
#[target_feature(enable = "avx512f")]
#[inline]
fn load(texts: &[&[u8]; GROUP], at: usize) -> [[__m512i; 2]; 4] {
    let row = |text: &[u8]| {
        let bytes = text.get(at..).and_then(|text| text.first_chunk::<STEP_BYTES>());
        zerocopy::transmute!(bytes.copied().unwrap_or([0; STEP_BYTES]))
    };
    columns(&[
        row(texts[0]),
        row(texts[1]),
        row(texts[2]),
        row(texts[3]),
        row(texts[4]),
        row(texts[5]),
        row(texts[6]),
        row(texts[7]),
    ])
}

/// Turns four blocks of each of eight packets, a packet a vector, into blocks of a packet a lane.
#[target_feature(enable = "avx512f")]
#[inline]
fn columns(rows: &[__m512i; GROUP]) -> [[__m512i; 2]; 4] {
    let low = transpose_quarters(
        _mm512_unpacklo_epi64(rows[0], rows[1]),
        _mm512_unpacklo_epi64(rows[2], rows[3]),
        _mm512_unpacklo_epi64(rows[4], rows[5]),
        _mm512_unpacklo_epi64(rows[6], rows[7]),
    );
    let high = transpose_quarters(
        _mm512_unpackhi_epi64(rows[0], rows[1]),
        _mm512_unpackhi_epi64(rows[2], rows[3]),
        _mm512_unpackhi_epi64(rows[4], rows[5]),
        _mm512_unpackhi_epi64(rows[6], rows[7]),
    );
    [[low[0], high[0]], [low[1], high[1]], [low[2], high[2]], [low[3], high[3]]]
}

/// Cuts 128 bits into limbs.
#[target_feature(enable = "avx512f")]
#[inline]
fn limbs(low: __m512i, high: __m512i) -> [__m512i; 3] {
    let middle = _mm512_or_si512(_mm512_srli_epi64::<44>(low), _mm512_slli_epi64::<20>(high));
    [_mm512_and_si512(low, same(LOW_44)), _mm512_and_si512(middle, same(LOW_44)), _mm512_srli_epi64::<24>(high)]
}

#[target_feature(enable = "avx512f")]
#[inline]
fn times_20(limb: __m512i) -> __m512i {
    _mm512_add_epi64(_mm512_slli_epi64::<4>(limb), _mm512_slli_epi64::<2>(limb))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn same(word: u64) -> __m512i {
    _mm512_set1_epi64(word.cast_signed())
}
