//! The symmetric state of the handshake: transcript hash and chaining key.

use aws_lc_rs::aead::{Aad, Nonce};
use blake2::{Blake2s256, Digest as _};
use hkdf::SimpleHkdf;
use zeroize::Zeroizing;

use super::{CipherKey, NoiseError, aead_key};
use crate::key::{MachineKey, MachineSecret};

const PROTOCOL: &[u8] = b"Noise_IK_25519_ChaChaPoly_BLAKE2s";

/// The running state; Noise specification, section 5.2.
pub(super) struct Symmetric {
    hash: [u8; 32],
    chain: CipherKey,
}

impl Symmetric {
    /// Starts with the prologue for `version` and the responder's static key.
    pub(super) fn new(version: u16, server: &MachineKey) -> Self {
        let hash: [u8; 32] = Blake2s256::digest(PROTOCOL).into();
        let mut state = Self { hash, chain: Zeroizing::new(hash) };
        state.mix_hash(format!("Tailscale Control Protocol v{version}").as_bytes());
        state.mix_hash(server.as_bytes());
        state
    }

    /// Mixes public bytes into the transcript.
    pub(super) fn mix_hash(&mut self, bytes: &[u8]) {
        self.hash = Blake2s256::new().chain_update(self.hash).chain_update(bytes).finalize().into();
    }

    /// Mixes in what `secret` and `public` share and returns the key for the next sealed field.
    pub(super) fn mix_dh(&mut self, secret: &MachineSecret, public: &MachineKey) -> Result<CipherKey, NoiseError> {
        let shared = secret.diffie_hellman(public.as_bytes()).ok_or(NoiseError::WeakKey)?;
        let (chain, key) = derive(&self.chain, shared.expose_bytes());
        self.chain = chain;
        Ok(key)
    }

    /// Seals a field of the handshake; each key is used once, hence the zero nonce.
    pub(super) fn seal(&mut self, key: &CipherKey, plaintext: &[u8]) -> Vec<u8> {
        let mut sealed = plaintext.to_vec();
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        aead_key(key)
            .seal_in_place_append_tag(nonce, Aad::from(self.hash), &mut sealed)
            .expect("sealing some bytes cannot exceed the cipher's limits");
        self.mix_hash(&sealed);
        sealed
    }

    /// Opens a field of the handshake.
    pub(super) fn open(&mut self, key: &CipherKey, sealed: &[u8]) -> Result<Vec<u8>, NoiseError> {
        let mut bytes = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let length = aead_key(key)
            .open_in_place(nonce, Aad::from(self.hash), &mut bytes)
            .map_err(|_| NoiseError::Decrypt)?
            .len();
        bytes.truncate(length);
        self.mix_hash(sealed);
        Ok(bytes)
    }

    /// Derives the keys of client to server and of server to client.
    pub(super) fn split(&self) -> (CipherKey, CipherKey) {
        derive(&self.chain, &[])
    }

    /// Returns the transcript hash.
    pub(super) fn hash(&self) -> [u8; 32] {
        self.hash
    }
}

/// HKDF with two outputs; Noise specification, section 4.3.
fn derive(chain: &CipherKey, input: &[u8]) -> (CipherKey, CipherKey) {
    let mut output = Zeroizing::new([0; 64]);
    SimpleHkdf::<Blake2s256>::new(Some(chain.as_slice()), input)
        .expand(&[], output.as_mut_slice())
        .expect("64 bytes are two blocks, far below HKDF's limit");
    let (first, second) = output.split_at(32);
    let key = |half: &[u8]| {
        let mut key = Zeroizing::new([0; 32]);
        key.copy_from_slice(half);
        key
    };
    (key(first), key(second))
}
