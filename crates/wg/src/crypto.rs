//! The primitives under the names of the WireGuard paper, section 5.4.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput as _, KeyInit as _, Mac as _};
use blake2::{Blake2s256, Blake2sMac, Digest as _};
use hkdf::SimpleHkdf;
use zeroize::Zeroizing;

/// 32 secret bytes, wiped when dropped.
pub(crate) type Key = Zeroizing<[u8; 32]>;

/// `Hash`: BLAKE2s of the parts one after another.
pub(crate) fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut state = Blake2s256::new();
    parts.iter().for_each(|part| state.update(part));
    state.finalize().into()
}

/// `Mac`: keyed BLAKE2s with 16 bytes of output. Keys have at most 32 bytes.
pub(crate) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let mut state = Blake2sMac::<U16>::new_from_slice(key).expect("keys of 16 and 32 bytes are within BLAKE2s's limit");
    parts.iter().for_each(|part| state.update(part));
    state.finalize_fixed().into()
}

/// `Kdf`: `N` keys, at most three.
pub(crate) fn kdf<const N: usize>(key: &[u8; 32], input: &[u8]) -> [Key; N] {
    const { assert!(N <= 3, "the paper has no longer one") };
    let mut output = Zeroizing::new([[0; 32]; N]);
    let derived = SimpleHkdf::<Blake2s256>::new(Some(key), input);
    derived.expand(&[], output.as_flattened_mut()).expect("96 bytes are three blocks, far below HKDF's limit");
    std::array::from_fn(|at| Zeroizing::new(output.get(at).copied().unwrap_or_default()))
}

/// Loads a cipher key.
pub(crate) fn cipher(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("ChaCha20-Poly1305 takes keys of 32 bytes"))
}

/// The nonce of a counter: four zero bytes, then the counter in little-endian order.
pub(crate) fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes.iter_mut().skip(4).zip(counter.to_le_bytes()).for_each(|(to, from)| *to = from);
    Nonce::assume_unique_for_key(bytes)
}

/// `Aead` with counter 0, for fields of a handshake: each key is used once.
pub(crate) fn seal(key: &Key, plaintext: &[u8], data: &[u8]) -> Vec<u8> {
    let mut sealed = plaintext.to_vec();
    cipher(key)
        .seal_in_place_append_tag(nonce(0), Aad::from(data), &mut sealed)
        .expect("sealing some bytes cannot exceed the cipher's limits");
    sealed
}

/// The inverse of [`seal`]; `None` if it does not authenticate.
pub(crate) fn open(key: &Key, sealed: &[u8], data: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = sealed.to_vec();
    let length = cipher(key).open_in_place(nonce(0), Aad::from(data), &mut bytes).ok()?.len();
    bytes.truncate(length);
    Some(bytes)
}
