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
    __m512i, _mm512_add_epi64, _mm512_and_si512, _mm512_cmplt_epu64_mask, _mm512_madd52hi_epu64, _mm512_madd52lo_epu64,
    _mm512_mask_add_epi64, _mm512_mask_and_epi64, _mm512_mask_mov_epi64, _mm512_or_si512, _mm512_set1_epi64,
    _mm512_setzero_si512, _mm512_slli_epi64, _mm512_srli_epi64, _mm512_test_epi64_mask, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi64,
};
use std::array;

use super::LANES;
use super::chacha::transpose_quarters;
use crate::key::{Packet, TAG_BYTES};
use crate::lanes::{self, Tags};

/// Packets of a group.
const GROUP: usize = LANES / 2;
/// Bytes of each packet that are loaded at once: four blocks.
const STEP_BYTES: usize = 64;
const LOW_44: u64 = (1 << 44) - 1;
const LOW_42: u64 = (1 << 42) - 1;

/// The one-time keys of 16 packets.
type Keys = lanes::Keys<LANES>;

/// Computes the codes of packets from their one-time keys: lower and upper halves.
#[target_feature(enable = "avx512f,avx512ifma")]
pub(super) fn tags(keys: &Keys, packets: &[Packet<'_>]) -> Tags<LANES> {
    let texts = lanes::texts::<LANES>(packets);
    let shortest = texts.iter().map(|text| text.len()).min().unwrap_or_default();
    let longest = texts.iter().map(|text| text.len()).max().unwrap_or_default();
    let [first_texts, second_texts] = halves(&texts);
    let [first_keys, second_keys] = key_halves(keys);
    let mut first = Group::new(&first_keys);
    let mut at = 0;
    let mut tags = [[0; LANES]; 2];
    if packets.len() <= GROUP {
        while at + STEP_BYTES <= shortest {
            for [low, high] in load(first_texts, at) {
                first.absorb(low, high);
            }
            at += STEP_BYTES;
        }
        while at < longest {
            first.absorb_some(first_texts, at);
            at += STEP_BYTES;
        }
        first.absorb_lengths(first_texts);
    } else {
        let mut second = Group::new(&second_keys);
        while at + STEP_BYTES <= shortest {
            let (one, two) = (load(first_texts, at), load(second_texts, at));
            for ([one_low, one_high], [two_low, two_high]) in one.into_iter().zip(two) {
                first.absorb(one_low, one_high);
                second.absorb(two_low, two_high);
            }
            at += STEP_BYTES;
        }
        while at < longest {
            first.absorb_some(first_texts, at);
            second.absorb_some(second_texts, at);
            at += STEP_BYTES;
        }
        first.absorb_lengths(first_texts);
        second.absorb_lengths(second_texts);
        for (tags, made) in tags.iter_mut().zip(second.finish(&second_keys)) {
            tags.iter_mut().skip(GROUP).zip(made).for_each(|(tag, made)| *tag = made);
        }
    }
    for (tags, made) in tags.iter_mut().zip(first.finish(&first_keys)) {
        tags.iter_mut().zip(made).for_each(|(tag, made)| *tag = made);
    }
    tags
}

/// Splits what belongs to 16 packets into what belongs to each group.
///
/// It cannot panic: an array of [`LANES`] elements has [`GROUP`] first ones and as many last ones, as the constants say.
fn halves<T>(all: &[T; LANES]) -> [&[T; GROUP]; 2] {
    let (Some(first), Some(second)) = (all.first_chunk(), all.last_chunk()) else { unreachable!("8 of 16") };
    [first, second]
}

/// Gives each group the words of its keys.
#[target_feature(enable = "avx512f")]
#[inline]
fn key_halves(keys: &Keys) -> [[__m512i; 4]; 2] {
    let words = [halves(&keys[0]), halves(&keys[1]), halves(&keys[2]), halves(&keys[3])];
    [
        [
            zerocopy::transmute!(*words[0][0]),
            zerocopy::transmute!(*words[1][0]),
            zerocopy::transmute!(*words[2][0]),
            zerocopy::transmute!(*words[3][0]),
        ],
        [
            zerocopy::transmute!(*words[0][1]),
            zerocopy::transmute!(*words[1][1]),
            zerocopy::transmute!(*words[2][1]),
            zerocopy::transmute!(*words[3][1]),
        ],
    ]
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
    fn new(key: &[__m512i; 4]) -> Self {
        // RFC 8439 wants these bits cleared.
        let low = _mm512_and_si512(key[0], same(0x0fff_fffc_0fff_ffff));
        let high = _mm512_and_si512(key[1], same(0x0fff_fffc_0fff_fffc));
        let key = limbs(low, high);
        let folded = [times_20(key[1]), times_20(key[2])];
        Self { sum: [_mm512_setzero_si512(); 3], key, folded }
    }

    /// Absorbs the 64 bytes of each packet at `at`, or what there is of them.
    #[target_feature(enable = "avx512f,avx512ifma")]
    #[inline]
    fn absorb_some(&mut self, texts: &[&[u8]; GROUP], at: usize) {
        let mut rows = [_mm512_setzero_si512(); GROUP];
        let mut masks = [0_u8; 4];
        for (lane, (text, row)) in texts.iter().zip(&mut rows).enumerate() {
            let rest = text.get(at..).unwrap_or_default();
            let blocks = rest.len().div_ceil(TAG_BYTES);
            masks.iter_mut().take(blocks).for_each(|mask| *mask |= 1 << lane);
            if let Some(bytes) = rest.first_chunk::<STEP_BYTES>() {
                *row = zerocopy::transmute!(*bytes);
            } else if !rest.is_empty() {
                let mut padded = [0; STEP_BYTES];
                padded.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
                *row = zerocopy::transmute!(padded);
            }
        }
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

    /// Reduces the sums modulo 2¹³⁰ − 5, adds the second halves of the keys and returns the codes, both halves.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn finish(&self, key: &[__m512i; 4]) -> [[u64; GROUP]; 2] {
        let [h0, h1, h2] = carried(carried(self.sum));
        // Limbs are in range now, so this is below 2¹³⁰: it may be too large by the prime, but not by more.
        let g0 = _mm512_add_epi64(h0, same(5));
        let g1 = _mm512_add_epi64(h1, _mm512_srli_epi64::<44>(g0));
        let g2 = _mm512_add_epi64(h2, _mm512_srli_epi64::<44>(g1));
        let too_large = _mm512_test_epi64_mask(g2, same(1 << 42));
        let h0 = _mm512_mask_and_epi64(h0, too_large, g0, same(LOW_44));
        let h1 = _mm512_mask_and_epi64(h1, too_large, g1, same(LOW_44));
        let h2 = _mm512_mask_and_epi64(h2, too_large, g2, same(LOW_42));

        let low = _mm512_or_si512(h0, _mm512_slli_epi64::<44>(h1));
        let high = _mm512_or_si512(_mm512_srli_epi64::<20>(h1), _mm512_slli_epi64::<24>(h2));
        let low = _mm512_add_epi64(low, key[2]);
        let high = _mm512_add_epi64(high, key[3]);
        let carry = _mm512_cmplt_epu64_mask(low, key[2]);
        let high = _mm512_mask_add_epi64(high, carry, high, same(1));
        [zerocopy::transmute!(low), zerocopy::transmute!(high)]
    }
}

/// Carries once around; after the second time limbs are in range.
#[target_feature(enable = "avx512f")]
#[inline]
fn carried([h0, h1, h2]: [__m512i; 3]) -> [__m512i; 3] {
    let (low_44, low_42) = (same(LOW_44), same(LOW_42));
    let h1 = _mm512_add_epi64(h1, _mm512_srli_epi64::<44>(h0));
    let h2 = _mm512_add_epi64(h2, _mm512_srli_epi64::<44>(h1));
    let carry = _mm512_srli_epi64::<42>(h2);
    let five = _mm512_add_epi64(carry, _mm512_slli_epi64::<2>(carry));
    let h0 = _mm512_add_epi64(_mm512_and_si512(h0, low_44), five);
    let h1 = _mm512_add_epi64(_mm512_and_si512(h1, low_44), _mm512_srli_epi64::<44>(h0));
    [_mm512_and_si512(h0, low_44), h1, _mm512_and_si512(h2, low_42)]
}

/// Loads four blocks of each packet at `at`, where each has 64 bytes: their lower and upper halves, one packet a lane.
#[target_feature(enable = "avx512f")]
#[inline]
fn load(texts: &[&[u8]; GROUP], at: usize) -> [[__m512i; 2]; 4] {
    columns(&[
        row(texts[0], at),
        row(texts[1], at),
        row(texts[2], at),
        row(texts[3], at),
        row(texts[4], at),
        row(texts[5], at),
        row(texts[6], at),
        row(texts[7], at),
    ])
}

/// Loads 64 bytes at `at`.
#[target_feature(enable = "avx512f")]
#[inline]
fn row(text: &[u8], at: usize) -> __m512i {
    match text.get(at..).and_then(|rest| rest.first_chunk::<STEP_BYTES>()) {
        Some(bytes) => zerocopy::transmute!(*bytes),
        None => _mm512_setzero_si512(),
    }
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

#[cfg(test)]
mod tests;
