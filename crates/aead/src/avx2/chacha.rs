//! ChaCha20: 8 blocks at once, each in one 32-bit lane. RFC 8439, section 2.3.

use core::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_or_si256, _mm256_permute2x128_si256, _mm256_set1_epi32, _mm256_shuffle_epi8,
    _mm256_slli_epi32, _mm256_srli_epi32, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi32,
    _mm256_unpacklo_epi64, _mm256_xor_si256,
};

use super::LANES;
use crate::lanes::{self, BLOCK_BYTES};

/// The words of the state in which 8 blocks differ.
pub(super) type Lanes = lanes::Lanes<LANES>;

/// Which byte each byte of a vector comes from when its words turn left by 16 bits, each half for itself.
const LEFT_16: [u8; 32] = twice([2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13]);
/// The same for 8 bits.
const LEFT_8: [u8; 32] = twice([3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14]);

const fn twice(half: [u8; 16]) -> [u8; 32] {
    zerocopy::transmute!([half, half])
}

/// A quarter round of words `a`, `b`, `c` and `d` of each block.
macro_rules! quarter {
    ($x:ident, $a:literal, $b:literal, $c:literal, $d:literal) => {
        $x[$a] = _mm256_add_epi32($x[$a], $x[$b]);
        $x[$d] = _mm256_shuffle_epi8(_mm256_xor_si256($x[$d], $x[$a]), zerocopy::transmute!(LEFT_16));
        $x[$c] = _mm256_add_epi32($x[$c], $x[$d]);
        $x[$b] = left::<12, 20>(_mm256_xor_si256($x[$b], $x[$c]));
        $x[$a] = _mm256_add_epi32($x[$a], $x[$b]);
        $x[$d] = _mm256_shuffle_epi8(_mm256_xor_si256($x[$d], $x[$a]), zerocopy::transmute!(LEFT_8));
        $x[$c] = _mm256_add_epi32($x[$c], $x[$d]);
        $x[$b] = left::<7, 25>(_mm256_xor_si256($x[$b], $x[$c]));
    };
}

/// Makes 8 blocks of key stream, each 64 bytes in order.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn blocks(key: &[u32; 8], lanes: &Lanes) -> [[__m256i; 2]; LANES] {
    let start = [
        same(lanes::CONSTANTS[0]),
        same(lanes::CONSTANTS[1]),
        same(lanes::CONSTANTS[2]),
        same(lanes::CONSTANTS[3]),
        same(key[0]),
        same(key[1]),
        same(key[2]),
        same(key[3]),
        same(key[4]),
        same(key[5]),
        same(key[6]),
        same(key[7]),
        zerocopy::transmute!(lanes.block),
        zerocopy::transmute!(lanes.first),
        zerocopy::transmute!(lanes.low),
        zerocopy::transmute!(lanes.high),
    ];
    let mut x = start;
    for _ in 0..10 {
        quarter!(x, 0, 4, 8, 12);
        quarter!(x, 1, 5, 9, 13);
        quarter!(x, 2, 6, 10, 14);
        quarter!(x, 3, 7, 11, 15);
        quarter!(x, 0, 5, 10, 15);
        quarter!(x, 1, 6, 11, 12);
        quarter!(x, 2, 7, 8, 13);
        quarter!(x, 3, 4, 9, 14);
    }
    for (word, start) in x.iter_mut().zip(start) {
        *word = _mm256_add_epi32(*word, start);
    }
    let [first, second, third, fourth] = *x.as_chunks::<4>().0 else { unreachable!("16 words are four times four") };
    let (a, b) = (eight_words(first, second), eight_words(third, fourth));
    [[a[0], b[0]], [a[1], b[1]], [a[2], b[2]], [a[3], b[3]], [a[4], b[4]], [a[5], b[5]], [a[6], b[6]], [a[7], b[7]]]
}

/// XORs the key stream over the first 64 bytes of `text`, or over all if it is shorter.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn xor(text: &mut [u8], stream: [__m256i; 2]) {
    if let Some(block) = text.first_chunk_mut::<BLOCK_BYTES>() {
        let [low, high]: [__m256i; 2] = zerocopy::transmute!(*block);
        *block = zerocopy::transmute!([_mm256_xor_si256(low, stream[0]), _mm256_xor_si256(high, stream[1])]);
    } else {
        let stream: [u8; BLOCK_BYTES] = zerocopy::transmute!(stream);
        text.iter_mut().zip(stream).for_each(|(byte, stream)| *byte ^= stream);
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn same(word: u32) -> __m256i {
    _mm256_set1_epi32(word.cast_signed())
}

/// Turns words left by `BITS`; `REST` is 32 less that.
#[target_feature(enable = "avx2")]
#[inline]
fn left<const BITS: i32, const REST: i32>(words: __m256i) -> __m256i {
    _mm256_or_si256(_mm256_slli_epi32::<BITS>(words), _mm256_srli_epi32::<REST>(words))
}

/// Turns word `w` of block `b` in lane `b` of vector `w`, where `w` counts through both fours, into word `w` of vector `b`.
#[target_feature(enable = "avx2")]
#[inline]
fn eight_words(low: [__m256i; 4], high: [__m256i; 4]) -> [__m256i; LANES] {
    // Half L of vector c of each: four words of block 4 L + c.
    let (low, high) = (four_words(low), four_words(high));
    [
        _mm256_permute2x128_si256::<0x20>(low[0], high[0]),
        _mm256_permute2x128_si256::<0x20>(low[1], high[1]),
        _mm256_permute2x128_si256::<0x20>(low[2], high[2]),
        _mm256_permute2x128_si256::<0x20>(low[3], high[3]),
        _mm256_permute2x128_si256::<0x31>(low[0], high[0]),
        _mm256_permute2x128_si256::<0x31>(low[1], high[1]),
        _mm256_permute2x128_si256::<0x31>(low[2], high[2]),
        _mm256_permute2x128_si256::<0x31>(low[3], high[3]),
    ]
}

#[target_feature(enable = "avx2")]
#[inline]
fn four_words([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(ab_low, cd_low),
        _mm256_unpackhi_epi64(ab_low, cd_low),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ]
}
