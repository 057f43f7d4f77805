//! The handshake: Noise IKpsk2 without a pre-shared key. Paper, section 5.4.

use warren_wire::key::{NodeKey, NodeSecret};
use zeroize::Zeroizing;

use crate::cookie::CODES_BYTES;
use crate::crypto::{Key, hash, kdf, open, seal};

/// Bytes of an initiation.
pub(crate) const INITIATION_BYTES: usize = 148;
/// Bytes of a response.
pub(crate) const RESPONSE_BYTES: usize = 92;

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

/// A TAI64N time, for which larger is later.
pub(crate) type Timestamp = [u8; 12];

/// The running state of a handshake.
#[derive(Clone)]
struct Symmetric {
    chain: Key,
    hash: [u8; 32],
}

impl Symmetric {
    fn new(responder: &NodeKey) -> Self {
        let chain = hash(&[CONSTRUCTION]);
        let transcript = hash(&[&hash(&[&chain, IDENTIFIER]), responder.as_bytes()]);
        Self { chain: Zeroizing::new(chain), hash: transcript }
    }

    fn mix_hash(&mut self, bytes: &[u8]) {
        self.hash = hash(&[&self.hash, bytes]);
    }

    fn mix_ephemeral(&mut self, key: &[u8; 32]) {
        self.mix_hash(key);
        let [chain] = kdf(&self.chain, key);
        self.chain = chain;
    }

    /// Mixes in a shared secret and returns the key for a sealed field.
    fn mix_key(&mut self, shared: &[u8]) -> Key {
        let [chain, key] = kdf(&self.chain, shared);
        self.chain = chain;
        key
    }

    fn seal(&mut self, key: &Key, plaintext: &[u8]) -> Vec<u8> {
        let sealed = seal(key, plaintext, &self.hash);
        self.mix_hash(&sealed);
        sealed
    }

    fn open(&mut self, key: &Key, sealed: &[u8]) -> Option<Vec<u8>> {
        let plaintext = open(key, sealed, &self.hash)?;
        self.mix_hash(sealed);
        Some(plaintext)
    }

    /// Mixes in the pre-shared key, of which there is none.
    fn mix_no_psk(&mut self) -> Key {
        let [chain, tau, key] = kdf(&self.chain, &[0; 32]);
        self.chain = chain;
        self.mix_hash(tau.as_slice());
        key
    }

    /// Returns the keys of initiator to responder and back.
    fn split(&self) -> [Key; 2] {
        kdf(&self.chain, &[])
    }
}

fn shared(secret: &NodeSecret, public: &[u8; 32]) -> Option<Key> {
    Some(Zeroizing::new(*secret.diffie_hellman(public)?.expose_bytes()))
}

/// A node's own keys.
pub(crate) struct Identity {
    pub(crate) secret: NodeSecret,
    pub(crate) public: NodeKey,
}

impl Identity {
    pub(crate) fn new(secret: NodeSecret) -> Self {
        let public = secret.public();
        Self { secret, public }
    }

    /// Computes what our static key shares with a peer's; `None` if the peer's key is of low order.
    pub(crate) fn shared_with(&self, peer: &NodeKey) -> Option<Key> {
        shared(&self.secret, peer.as_bytes())
    }
}

/// What each initiation has of its own.
pub(crate) struct Fresh {
    pub(crate) ephemeral: Key,
    pub(crate) index: u32,
    pub(crate) timestamp: Timestamp,
}

/// The initiator between its message and the answer.
pub(crate) struct Pending {
    symmetric: Symmetric,
    ephemeral: NodeSecret,
    pub(crate) index: u32,
}

/// Builds an initiation without its codes; `None` if the peer's key is of low order.
pub(crate) fn initiate(
    own: &Identity,
    peer: &NodeKey,
    static_shared: &Key,
    fresh: &Fresh,
) -> Option<(Pending, Vec<u8>)> {
    let ephemeral = NodeSecret::from_bytes(*fresh.ephemeral);
    let ephemeral_public = ephemeral.public();
    let mut symmetric = Symmetric::new(peer);
    symmetric.mix_ephemeral(ephemeral_public.as_bytes());
    let key = symmetric.mix_key(shared(&ephemeral, peer.as_bytes())?.as_slice());
    let sealed_static = symmetric.seal(&key, own.public.as_bytes());
    let key = symmetric.mix_key(static_shared.as_slice());
    let sealed_time = symmetric.seal(&key, &fresh.timestamp);
    let mut message = Vec::with_capacity(INITIATION_BYTES);
    message.extend_from_slice(&[1, 0, 0, 0]);
    message.extend_from_slice(&fresh.index.to_le_bytes());
    message.extend_from_slice(ephemeral_public.as_bytes());
    message.extend_from_slice(&sealed_static);
    message.extend_from_slice(&sealed_time);
    Some((Pending { symmetric, ephemeral, index: fresh.index }, message))
}

/// An initiation of which the sender's name is known, but not yet whether it is really from there.
pub(crate) struct Claimed {
    symmetric: Symmetric,
    sealed_time: [u8; 28],
    ephemeral: [u8; 32],
    pub(crate) sender_index: u32,
    pub(crate) peer: NodeKey,
}

/// Reads who claims to have sent an initiation; one Diffie-Hellman.
pub(crate) fn read_claim(own: &Identity, message: &[u8]) -> Option<Claimed> {
    let message = message.get(..INITIATION_BYTES - CODES_BYTES)?;
    let (_, rest) = message.split_first_chunk::<4>()?;
    let (index, rest) = rest.split_first_chunk::<4>()?;
    let (ephemeral, rest) = rest.split_first_chunk::<32>()?;
    let (sealed_static, sealed_time) = rest.split_first_chunk::<48>()?;
    let mut symmetric = Symmetric::new(&own.public);
    symmetric.mix_ephemeral(ephemeral);
    let key = symmetric.mix_key(shared(&own.secret, ephemeral)?.as_slice());
    let peer = symmetric.open(&key, sealed_static)?;
    Some(Claimed {
        symmetric,
        sealed_time: sealed_time.try_into().ok()?,
        ephemeral: *ephemeral,
        sender_index: u32::from_le_bytes(*index),
        peer: NodeKey::from_bytes(peer.try_into().ok()?),
    })
}

/// An initiation that is really from its peer; its time must still be later than the last one.
pub(crate) struct Proved {
    claimed: Claimed,
    pub(crate) timestamp: Timestamp,
}

impl Claimed {
    /// Checks that the sender holds the key that it claims.
    pub(crate) fn prove(mut self, static_shared: &Key) -> Option<Proved> {
        let key = self.symmetric.mix_key(static_shared.as_slice());
        let sealed = self.sealed_time;
        let timestamp = self.symmetric.open(&key, &sealed)?.try_into().ok()?;
        Some(Proved { claimed: self, timestamp })
    }
}

/// Keys of a finished handshake.
pub(crate) struct Finished {
    pub(crate) sending: Key,
    pub(crate) receiving: Key,
    pub(crate) remote_index: u32,
}

impl Proved {
    /// Builds the response without its codes and finishes the handshake on our side.
    pub(crate) fn respond(self, ephemeral: &Key, index: u32) -> Option<(Finished, Vec<u8>)> {
        let Claimed { mut symmetric, ephemeral: theirs, sender_index, peer, .. } = self.claimed;
        let ephemeral = NodeSecret::from_bytes(**ephemeral);
        let ephemeral_public = ephemeral.public();
        symmetric.mix_ephemeral(ephemeral_public.as_bytes());
        symmetric.mix_key_only(&shared(&ephemeral, &theirs)?);
        symmetric.mix_key_only(&shared(&ephemeral, peer.as_bytes())?);
        let key = symmetric.mix_no_psk();
        let tag = symmetric.seal(&key, &[]);
        let mut message = Vec::with_capacity(RESPONSE_BYTES);
        message.extend_from_slice(&[2, 0, 0, 0]);
        message.extend_from_slice(&index.to_le_bytes());
        message.extend_from_slice(&sender_index.to_le_bytes());
        message.extend_from_slice(ephemeral_public.as_bytes());
        message.extend_from_slice(&tag);
        let [receiving, sending] = symmetric.split();
        Some((Finished { sending, receiving, remote_index: sender_index }, message))
    }
}

impl Symmetric {
    /// Mixes in a shared secret where no field is sealed after it.
    fn mix_key_only(&mut self, shared: &Key) {
        let [chain] = kdf(&self.chain, shared.as_slice());
        self.chain = chain;
    }
}

impl Pending {
    /// Finishes with the response, whose receiver index is ours; `None` if it is not from the peer.
    pub(crate) fn finish(&self, own: &Identity, message: &[u8]) -> Option<Finished> {
        let remote_index = u32::from_le_bytes(message.get(4..8)?.try_into().ok()?);
        let theirs: [u8; 32] = message.get(12..44)?.try_into().ok()?;
        let tag = message.get(44..60)?;
        let mut symmetric = self.symmetric.clone();
        symmetric.mix_ephemeral(&theirs);
        symmetric.mix_key_only(&shared(&self.ephemeral, &theirs)?);
        symmetric.mix_key_only(&shared(&own.secret, &theirs)?);
        let key = symmetric.mix_no_psk();
        symmetric.open(&key, tag)?;
        let [sending, receiving] = symmetric.split();
        Some(Finished { sending, receiving, remote_index })
    }
}

#[cfg(test)]
mod tests;
