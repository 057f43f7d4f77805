//! ChaCha20: 16 blocks at once, each in one 32-bit lane. RFC 8439, section 2.3.

use core::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_rol_epi32, _mm512_set1_epi32, _mm512_shuffle_i32x4, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64, _mm512_xor_si512,
};

use super::LANES;
use crate::lanes::{self, BLOCK_BYTES};

/// The words of the state in which 16 blocks differ.
pub(super) type Lanes = lanes::Lanes<LANES>;

/// A quarter round of words `a`, `b`, `c` and `d` of each block.
macro_rules! quarter {
    ($x:ident, $a:literal, $b:literal, $c:literal, $d:literal) => {
        $x[$a] = _mm512_add_epi32($x[$a], $x[$b]);
        $x[$d] = _mm512_rol_epi32::<16>(_mm512_xor_si512($x[$d], $x[$a]));
        $x[$c] = _mm512_add_epi32($x[$c], $x[$d]);
        $x[$b] = _mm512_rol_epi32::<12>(_mm512_xor_si512($x[$b], $x[$c]));
        $x[$a] = _mm512_add_epi32($x[$a], $x[$b]);
        $x[$d] = _mm512_rol_epi32::<8>(_mm512_xor_si512($x[$d], $x[$a]));
        $x[$c] = _mm512_add_epi32($x[$c], $x[$d]);
        $x[$b] = _mm512_rol_epi32::<7>(_mm512_xor_si512($x[$b], $x[$c]));
    };
}

/// Makes 16 blocks of key stream, each 64 bytes in order.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn blocks(key: &[u32; 8], lanes: &Lanes) -> [__m512i; LANES] {
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
        *word = _mm512_add_epi32(*word, start);
    }
    transpose(&x)
}

/// XORs the key stream over the first 64 bytes of `text`, or over all if it is shorter.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn xor(text: &mut [u8], stream: __m512i) {
    if let Some(block) = text.first_chunk_mut::<BLOCK_BYTES>() {
        *block = zerocopy::transmute!(_mm512_xor_si512(zerocopy::transmute!(*block), stream));
    } else {
        let stream: [u8; BLOCK_BYTES] = zerocopy::transmute!(stream);
        text.iter_mut().zip(stream).for_each(|(byte, stream)| *byte ^= stream);
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn same(word: u32) -> __m512i {
    _mm512_set1_epi32(word.cast_signed())
}

/// Turns word `w` of block `b` in lane `b` of vector `w` into word `w` of vector `b`.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose(x: &[__m512i; LANES]) -> [__m512i; LANES] {
    // Quarter L of vector c of each: four words of block 4 L + c.
    let a = four_words(x[0], x[1], x[2], x[3]);
    let b = four_words(x[4], x[5], x[6], x[7]);
    let c = four_words(x[8], x[9], x[10], x[11]);
    let d = four_words(x[12], x[13], x[14], x[15]);
    let e = transpose_quarters(a[0], b[0], c[0], d[0]);
    let f = transpose_quarters(a[1], b[1], c[1], d[1]);
    let g = transpose_quarters(a[2], b[2], c[2], d[2]);
    let h = transpose_quarters(a[3], b[3], c[3], d[3]);
    [e[0], f[0], g[0], h[0], e[1], f[1], g[1], h[1], e[2], f[2], g[2], h[2], e[3], f[3], g[3], h[3]]
}

#[target_feature(enable = "avx512f")]
#[inline]
fn four_words(a: __m512i, b: __m512i, c: __m512i, d: __m512i) -> [__m512i; 4] {
    let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab_low, cd_low),
        _mm512_unpackhi_epi64(ab_low, cd_low),
        _mm512_unpacklo_epi64(ab_high, cd_high),
        _mm512_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// Turns quarter `q` (128 bits) of vector `v` into quarter `v` of vector `q`.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn transpose_quarters(a: __m512i, b: __m512i, c: __m512i, d: __m512i) -> [__m512i; 4] {
    let (ab_low, ab_high) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b));
    let (cd_low, cd_high) = (_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xee>(c, d));
    [
        _mm512_shuffle_i32x4::<0x88>(ab_low, cd_low),
        _mm512_shuffle_i32x4::<0xdd>(ab_low, cd_low),
        _mm512_shuffle_i32x4::<0x88>(ab_high, cd_high),
        _mm512_shuffle_i32x4::<0xdd>(ab_high, cd_high),
    ]
}
