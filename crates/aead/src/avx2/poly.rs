//! Poly1305 of 8 packets, each in a 64-bit lane of one of two groups of vectors. RFC 8439, section 2.5.
//!
//! A number is five limbs of 26 bits, since the instruction multiplies 32 bits with 32 bits. Two groups, since a step has
//! to wait for the one before and the other group fills the time.
//!
//! With no associated data every block is a full one: the text is padded with zeros, and behind it stand zero and its
//! length.
//!
//! # Bounds
//! The key's limbs are below 2²⁶, so five times one is below 2^28.4. After carrying, the second limb of the sum is below
//! 2²⁶ + 2⁹, the fifth below 2²⁶ + 2⁷ and the others below 2²⁶; a block adds less than 2²⁶ to each. So all factors fit 32
//! bits, a sum of five products is below 2^57.8, and what is carried into it below 2³⁵, far from 2⁶⁴.

use core::arch::x86_64::{
    __m256i, _mm256_add_epi64, _mm256_and_si256, _mm256_andnot_si256, _mm256_blendv_epi8, _mm256_mul_epu32,
    _mm256_or_si256, _mm256_permute2x128_si256, _mm256_set1_epi64x, _mm256_setzero_si256, _mm256_slli_epi64,
    _mm256_srli_epi64, _mm256_sub_epi64, _mm256_unpackhi_epi64, _mm256_unpacklo_epi64,
};
use std::array;

use super::LANES;
use crate::key::{Packet, TAG_BYTES};
use crate::lanes::{self, Tags};

/// Packets of a group.
const GROUP: usize = LANES / 2;
/// Bytes of each packet that are loaded at once: two blocks.
const STEP_BYTES: usize = 32;
const LOW_26: u64 = (1 << 26) - 1;

/// The one-time keys of 8 packets.
type Keys = lanes::Keys<LANES>;

/// Computes the codes of packets from their one-time keys: lower and upper halves.
#[target_feature(enable = "avx2")]
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

/// Splits what belongs to 8 packets into what belongs to each group.
///
/// It cannot panic: an array of [`LANES`] elements has [`GROUP`] first ones and as many last ones, as the constants say.
fn halves<T>(all: &[T; LANES]) -> [&[T; GROUP]; 2] {
    let (Some(first), Some(second)) = (all.first_chunk(), all.last_chunk()) else { unreachable!("4 of 8") };
    [first, second]
}

/// Gives each group the words of its keys.
#[target_feature(enable = "avx2")]
#[inline]
fn key_halves(keys: &Keys) -> [[__m256i; 4]; 2] {
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

/// Sum and key of four packets.
struct Group {
    sum: [__m256i; 5],
    key: [__m256i; 5],
    /// The upper four limbs of the key, times 5: what has the weight 2¹³⁰ or more comes back with that factor.
    folded: [__m256i; 4],
}

impl Group {
    #[target_feature(enable = "avx2")]
    #[inline]
    fn new(key: &[__m256i; 4]) -> Self {
        // RFC 8439 wants these bits cleared.
        let low = _mm256_and_si256(key[0], same(0x0fff_fffc_0fff_ffff));
        let high = _mm256_and_si256(key[1], same(0x0fff_fffc_0fff_fffc));
        let key = limbs(low, high);
        let folded = [times_5(key[1]), times_5(key[2]), times_5(key[3]), times_5(key[4])];
        Self { sum: [_mm256_setzero_si256(); 5], key, folded }
    }

    /// Absorbs the 32 bytes of each packet at `at`, or what there is of them.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn absorb_some(&mut self, texts: &[&[u8]; GROUP], at: usize) {
        let mut rows = [_mm256_setzero_si256(); GROUP];
        let mut masks = [[0_u64; GROUP]; 2];
        for (lane, (text, row)) in texts.iter().zip(&mut rows).enumerate() {
            let rest = text.get(at..).unwrap_or_default();
            let blocks = rest.len().div_ceil(TAG_BYTES);
            for mask in masks.iter_mut().take(blocks) {
                mask.get_mut(lane).into_iter().for_each(|lane| *lane = u64::MAX);
            }
            if let Some(bytes) = rest.first_chunk::<STEP_BYTES>() {
                *row = zerocopy::transmute!(*bytes);
            } else if !rest.is_empty() {
                let mut padded = [0; STEP_BYTES];
                padded.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
                *row = zerocopy::transmute!(padded);
            }
        }
        for ([low, high], mask) in columns(&rows).into_iter().zip(masks) {
            if mask == [0; GROUP] {
                return;
            }
            let before = self.sum;
            self.absorb(low, high);
            for (sum, before) in self.sum.iter_mut().zip(before) {
                *sum = _mm256_blendv_epi8(before, *sum, zerocopy::transmute!(mask));
            }
        }
    }

    /// Absorbs the last block: the length of the associated data, which is zero, and that of the text.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn absorb_lengths(&mut self, texts: &[&[u8]; GROUP]) {
        let lengths: [u64; GROUP] = array::from_fn(|at| texts.get(at).map_or(0, |text| text.len() as u64));
        self.absorb(_mm256_setzero_si256(), zerocopy::transmute!(lengths));
    }

    /// Adds a block of each packet and multiplies with the keys.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn absorb(&mut self, low: __m256i, high: __m256i) {
        let block = limbs(low, high);
        let h0 = _mm256_add_epi64(self.sum[0], block[0]);
        let h1 = _mm256_add_epi64(self.sum[1], block[1]);
        let h2 = _mm256_add_epi64(self.sum[2], block[2]);
        let h3 = _mm256_add_epi64(self.sum[3], block[3]);
        // 2¹²⁸ says that the block is a full one.
        let h4 = _mm256_add_epi64(self.sum[4], _mm256_or_si256(block[4], same(1 << 24)));
        let ([r0, r1, r2, r3, r4], [s1, s2, s3, s4]) = (self.key, self.folded);
        let h = [h0, h1, h2, h3, h4];
        self.sum = carried_once([
            products(h, [r0, s4, s3, s2, s1]),
            products(h, [r1, r0, s4, s3, s2]),
            products(h, [r2, r1, r0, s4, s3]),
            products(h, [r3, r2, r1, r0, s4]),
            products(h, [r4, r3, r2, r1, r0]),
        ]);
    }

    /// Reduces the sums modulo 2¹³⁰ − 5, adds the second halves of the keys and returns the codes, both halves.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn finish(&self, key: &[__m256i; 4]) -> [[u64; GROUP]; 2] {
        let h = carried(carried(self.sum));
        // Limbs are in range now, so this is below 2¹³⁰: it may be too large by the prime, but not by more.
        let g0 = _mm256_add_epi64(h[0], same(5));
        let g1 = _mm256_add_epi64(h[1], _mm256_srli_epi64::<26>(g0));
        let g2 = _mm256_add_epi64(h[2], _mm256_srli_epi64::<26>(g1));
        let g3 = _mm256_add_epi64(h[3], _mm256_srli_epi64::<26>(g2));
        let g4 = _mm256_add_epi64(h[4], _mm256_srli_epi64::<26>(g3));
        let too_large = _mm256_sub_epi64(_mm256_setzero_si256(), _mm256_srli_epi64::<26>(g4));
        let select = |limb, reduced| _mm256_blendv_epi8(limb, _mm256_and_si256(reduced, same(LOW_26)), too_large);
        let (h0, h1, h2) = (select(h[0], g0), select(h[1], g1), select(h[2], g2));
        let (h3, h4) = (select(h[3], g3), select(h[4], g4));

        let low = _mm256_or_si256(h0, _mm256_slli_epi64::<26>(h1));
        let low = _mm256_or_si256(low, _mm256_slli_epi64::<52>(h2));
        let high = _mm256_or_si256(_mm256_srli_epi64::<12>(h2), _mm256_slli_epi64::<14>(h3));
        let high = _mm256_or_si256(high, _mm256_slli_epi64::<40>(h4));
        let sum = _mm256_add_epi64(low, key[2]);
        // Both upper bits, or one of them and none in the sum: the addition went over 2⁶⁴.
        let both = _mm256_and_si256(low, key[2]);
        let one = _mm256_andnot_si256(sum, _mm256_or_si256(low, key[2]));
        let carry = _mm256_srli_epi64::<63>(_mm256_or_si256(both, one));
        let high = _mm256_add_epi64(_mm256_add_epi64(high, key[3]), carry);
        [zerocopy::transmute!(sum), zerocopy::transmute!(high)]
    }
}

/// Multiplies limbs in pairs and adds up.
#[target_feature(enable = "avx2")]
#[inline]
fn products(a: [__m256i; 5], b: [__m256i; 5]) -> __m256i {
    let (low, high) = (_mm256_mul_epu32(a[0], b[0]), _mm256_mul_epu32(a[1], b[1]));
    let (middle, more) = (_mm256_mul_epu32(a[2], b[2]), _mm256_mul_epu32(a[3], b[3]));
    let sum = _mm256_add_epi64(_mm256_add_epi64(low, high), _mm256_add_epi64(middle, more));
    _mm256_add_epi64(sum, _mm256_mul_epu32(a[4], b[4]))
}

/// Carries from sums of products, by two chains at a time, so that limbs are as [bounded](self#bounds).
#[target_feature(enable = "avx2")]
#[inline]
fn carried_once([d0, d1, d2, d3, d4]: [__m256i; 5]) -> [__m256i; 5] {
    let mask = same(LOW_26);
    let (d1, d4) =
        (_mm256_add_epi64(d1, _mm256_srli_epi64::<26>(d0)), _mm256_add_epi64(d4, _mm256_srli_epi64::<26>(d3)));
    let (d0, d3) = (_mm256_and_si256(d0, mask), _mm256_and_si256(d3, mask));
    let d2 = _mm256_add_epi64(d2, _mm256_srli_epi64::<26>(d1));
    let d0 = _mm256_add_epi64(d0, times_5(_mm256_srli_epi64::<26>(d4)));
    let (d1, d4) = (_mm256_and_si256(d1, mask), _mm256_and_si256(d4, mask));
    let (d3, d1) =
        (_mm256_add_epi64(d3, _mm256_srli_epi64::<26>(d2)), _mm256_add_epi64(d1, _mm256_srli_epi64::<26>(d0)));
    let (d2, d0) = (_mm256_and_si256(d2, mask), _mm256_and_si256(d0, mask));
    let d4 = _mm256_add_epi64(d4, _mm256_srli_epi64::<26>(d3));
    [d0, d1, d2, _mm256_and_si256(d3, mask), d4]
}

/// Carries once around, limb by limb; after the second time all are in range.
#[target_feature(enable = "avx2")]
#[inline]
fn carried([h0, h1, h2, h3, h4]: [__m256i; 5]) -> [__m256i; 5] {
    let mask = same(LOW_26);
    let h1 = _mm256_add_epi64(h1, _mm256_srli_epi64::<26>(h0));
    let h2 = _mm256_add_epi64(h2, _mm256_srli_epi64::<26>(h1));
    let h3 = _mm256_add_epi64(h3, _mm256_srli_epi64::<26>(h2));
    let h4 = _mm256_add_epi64(h4, _mm256_srli_epi64::<26>(h3));
    let h0 = _mm256_add_epi64(_mm256_and_si256(h0, mask), times_5(_mm256_srli_epi64::<26>(h4)));
    let h1 = _mm256_add_epi64(_mm256_and_si256(h1, mask), _mm256_srli_epi64::<26>(h0));
    [_mm256_and_si256(h0, mask), h1, _mm256_and_si256(h2, mask), _mm256_and_si256(h3, mask), _mm256_and_si256(h4, mask)]
}

/// Loads two blocks of each packet at `at`, where each has 32 bytes: their lower and upper halves, one packet a lane.
#[target_feature(enable = "avx2")]
#[inline]
fn load(texts: &[&[u8]; GROUP], at: usize) -> [[__m256i; 2]; 2] {
    columns(&[row(texts[0], at), row(texts[1], at), row(texts[2], at), row(texts[3], at)])
}

/// Loads 32 bytes at `at`.
#[target_feature(enable = "avx2")]
#[inline]
fn row(text: &[u8], at: usize) -> __m256i {
    match text.get(at..).and_then(|rest| rest.first_chunk::<STEP_BYTES>()) {
        Some(bytes) => zerocopy::transmute!(*bytes),
        None => _mm256_setzero_si256(),
    }
}

/// Turns two blocks of each of four packets, a packet a vector, into blocks of a packet a lane.
#[target_feature(enable = "avx2")]
#[inline]
fn columns(rows: &[__m256i; GROUP]) -> [[__m256i; 2]; 2] {
    let [a, b, c, d] = *rows;
    let (ab_low, ab_high) = (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let (cd_low, cd_high) = (_mm256_unpacklo_epi64(c, d), _mm256_unpackhi_epi64(c, d));
    [
        [_mm256_permute2x128_si256::<0x20>(ab_low, cd_low), _mm256_permute2x128_si256::<0x20>(ab_high, cd_high)],
        [_mm256_permute2x128_si256::<0x31>(ab_low, cd_low), _mm256_permute2x128_si256::<0x31>(ab_high, cd_high)],
    ]
}

/// Cuts 128 bits into limbs.
#[target_feature(enable = "avx2")]
#[inline]
fn limbs(low: __m256i, high: __m256i) -> [__m256i; 5] {
    let mask = same(LOW_26);
    let middle = _mm256_or_si256(_mm256_srli_epi64::<52>(low), _mm256_slli_epi64::<12>(high));
    [
        _mm256_and_si256(low, mask),
        _mm256_and_si256(_mm256_srli_epi64::<26>(low), mask),
        _mm256_and_si256(middle, mask),
        _mm256_and_si256(_mm256_srli_epi64::<14>(high), mask),
        _mm256_srli_epi64::<40>(high),
    ]
}

#[target_feature(enable = "avx2")]
#[inline]
fn times_5(limb: __m256i) -> __m256i {
    _mm256_add_epi64(_mm256_slli_epi64::<2>(limb), limb)
}

#[target_feature(enable = "avx2")]
#[inline]
fn same(word: u64) -> __m256i {
    _mm256_set1_epi64x(word.cast_signed())
}

#[cfg(test)]
mod tests;
