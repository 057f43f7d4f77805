//! NaCl boxes: X25519, XSalsa20 and Poly1305 in the combined form, tag first, as relays and disco use them.
//!
//! The nonce travels beside the box. Source: `crypto_box` of NaCl; Tailscale `types/key`, `SealTo` and `OpenFrom`.

use std::fmt;

use poly1305::Poly1305;
use poly1305::universal_hash::KeyInit as _;
use salsa20::cipher::consts::U10;
use salsa20::cipher::{KeyIvInit as _, StreamCipher as _};
use salsa20::{XSalsa20, hsalsa};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::key::SharedSecret;

/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 24;

/// Bytes that sealing adds: the tag.
pub const TAG_BYTES: usize = 16;

/// A box between two keys, computed once and used for many messages, either way.
#[derive(Clone)]
pub struct SharedBox(Zeroizing<[u8; 32]>);

impl SharedBox {
    /// Derives the box's key from what both sides share.
    #[must_use]
    pub fn new(shared: &SharedSecret) -> Self {
        let key = hsalsa::<U10>(shared.expose_bytes().into(), &[0; 16].into());
        Self(Zeroizing::new(key.into()))
    }

    /// Seals `message`; the result is [`TAG_BYTES`] longer. A nonce must never be used twice with one box.
    #[must_use]
    pub fn seal(&self, nonce: &[u8; NONCE_BYTES], message: &[u8]) -> Vec<u8> {
        let (mut cipher, mac) = self.start(nonce);
        let mut sealed = Vec::with_capacity(TAG_BYTES + message.len());
        sealed.extend_from_slice(&[0; TAG_BYTES]);
        sealed.extend_from_slice(message);
        if let Some((tag, body)) = sealed.split_at_mut_checked(TAG_BYTES) {
            cipher.apply_keystream(body);
            tag.copy_from_slice(&mac.compute_unpadded(body));
        }
        sealed
    }

    /// Opens what [`Self::seal`] made; `None` if it was not made with this box and nonce.
    #[must_use]
    pub fn open(&self, nonce: &[u8; NONCE_BYTES], sealed: &[u8]) -> Option<Vec<u8>> {
        let (tag, body) = sealed.split_at_checked(TAG_BYTES)?;
        let (mut cipher, mac) = self.start(nonce);
        if !bool::from(mac.compute_unpadded(body).as_slice().ct_eq(tag)) {
            return None;
        }
        let mut message = body.to_vec();
        cipher.apply_keystream(&mut message);
        Some(message)
    }

    /// Starts the key stream: its first 32 bytes are the key of the tag.
    fn start(&self, nonce: &[u8; NONCE_BYTES]) -> (XSalsa20, Poly1305) {
        let mut cipher = XSalsa20::new((&*self.0).into(), nonce.into());
        let mut key = Zeroizing::new([0; 32]);
        cipher.apply_keystream(key.as_mut_slice());
        let mac = Poly1305::new((&*key).into());
        (cipher, mac)
    }
}

impl fmt::Debug for SharedBox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedBox(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::DiscoSecret;
    use crypto_box::aead::Aead as _;
    use proptest::prelude::*;

    fn boxes() -> (SharedBox, crypto_box::SalsaBox) {
        let (alice, bob) = (DiscoSecret::from_bytes([1; 32]), DiscoSecret::from_bytes([2; 32]));
        let ours = SharedBox::new(&alice.diffie_hellman(bob.public().as_bytes()).unwrap());
        let theirs = crypto_box::SalsaBox::new(&(*alice.public().as_bytes()).into(), &(*bob.expose_bytes()).into());
        (ours, theirs)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The oracle is the `crypto_box` crate, from the other side of the same pair of keys.
        #[test]
        fn equals_the_reference(nonce: [u8; 24], message in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (ours, theirs) = boxes();
            let sealed = ours.seal(&nonce, &message);
            prop_assert_eq!(&sealed, &theirs.encrypt(&nonce.into(), message.as_slice()).unwrap());
            prop_assert_eq!(ours.open(&nonce, &sealed), Some(message));
        }

        #[test]
        fn changed_box_does_not_open(nonce: [u8; 24], at in 0_usize..20, bit in 0_u8..8) {
            let (ours, _) = boxes();
            let mut sealed = ours.seal(&nonce, b"four");
            sealed[at] ^= 1 << bit;
            prop_assert_eq!(ours.open(&nonce, &sealed), None);
        }

        #[test]
        fn no_input_panics(nonce: [u8; 24], sealed in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(boxes().0.open(&nonce, &sealed), None);
        }
    }
}
