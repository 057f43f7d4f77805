//! Who holds which disco key, and the boxes to them.

use std::collections::{BTreeMap, BTreeSet};

use warren_wire::disco::{self, Message};
use warren_wire::key::{DiscoKey, DiscoSecret, NodeKey};
use warren_wire::nacl::{NONCE_BYTES, SharedBox};

/// The disco keys of all peers. One key may be several peers' (a machine in several tailnets, a shared node).
pub(super) struct DiscoKeys {
    secret: DiscoSecret,
    public: DiscoKey,
    /// Who holds which key: all that is kept of most peers of a big tailnet, which are never met.
    held: BTreeSet<(DiscoKey, NodeKey)>,
    /// The boxes between our key and others that somebody holds, computed at first use; `None` for a point of low order,
    /// for which nothing can be sealed.
    boxes: BTreeMap<DiscoKey, Option<SharedBox>>,
}

impl DiscoKeys {
    #[cfg(test)]
    pub(super) const BYTES_PER_KEY: usize = size_of::<(DiscoKey, NodeKey)>();

    pub(super) fn new(secret: DiscoSecret) -> Self {
        Self { public: secret.public(), secret, held: BTreeSet::new(), boxes: BTreeMap::new() }
    }

    pub(super) fn public(&self) -> DiscoKey {
        self.public
    }

    /// Notes that `peer` holds `key`.
    pub(super) fn insert(&mut self, key: DiscoKey, peer: NodeKey) {
        self.held.insert((key, peer));
    }

    /// Notes that `peer` no longer holds `key`.
    pub(super) fn remove(&mut self, key: &DiscoKey, peer: &NodeKey) {
        self.held.remove(&(*key, *peer));
        if self.holders(key).next().is_none() {
            self.boxes.remove(key);
        }
    }

    /// Returns the peers that hold `key`.
    pub(super) fn holders(&self, key: &DiscoKey) -> impl Iterator<Item = NodeKey> {
        let all = (*key, NodeKey::from_bytes([0; 32]))..=(*key, NodeKey::from_bytes([0xff; 32]));
        self.held.range(all).map(|(_, peer)| *peer)
    }

    /// Tells whether `peer` holds `key`.
    pub(super) fn is_held(&self, key: &DiscoKey, peer: &NodeKey) -> bool {
        self.held.contains(&(*key, *peer))
    }

    /// Seals a message for the holders of `key`; `None` if nobody holds it or nothing can be sealed for it.
    pub(super) fn seal(&mut self, key: &DiscoKey, nonce: &[u8; NONCE_BYTES], message: &Message) -> Option<Vec<u8>> {
        let public = self.public;
        Some(disco::seal(self.shared(key)?, &public, nonce, message))
    }

    /// Opens an envelope and tells whose key sealed it. A sender whom no peer claims is dropped before any
    /// cryptography; a box that does not open, or holds no message we know, is routine.
    pub(super) fn open(&mut self, datagram: &[u8]) -> Option<(DiscoKey, Message)> {
        let sender = disco::peek(datagram)?;
        let message = disco::open(self.shared(&sender)?, datagram).ok()?;
        Some((sender, message))
    }

    /// Makes the box with a key that no peer holds; `None` if nothing can be sealed for it.
    pub(super) fn shared_with(&self, key: &DiscoKey) -> Option<SharedBox> {
        self.secret.diffie_hellman(key.as_bytes()).map(|shared| SharedBox::new(&shared))
    }

    fn shared(&mut self, key: &DiscoKey) -> Option<&SharedBox> {
        // Whoever comes with a key of nobody costs neither cryptography nor memory.
        self.holders(key).next()?;
        let secret = &self.secret;
        let make = || secret.diffie_hellman(key.as_bytes()).map(|shared| SharedBox::new(&shared));
        self.boxes.entry(*key).or_insert_with(make).as_ref()
    }
}
