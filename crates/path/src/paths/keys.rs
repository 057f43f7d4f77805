//! Who holds which disco key, and the boxes to them.

use std::collections::BTreeMap;

use warren_wire::disco::{self, Message};
use warren_wire::key::{DiscoKey, DiscoSecret, NodeKey};
use warren_wire::nacl::{NONCE_BYTES, SharedBox};

/// The disco keys of all peers. One key may be several peers' (a machine in several tailnets, a shared node).
pub(super) struct DiscoKeys {
    secret: DiscoSecret,
    public: DiscoKey,
    holders: BTreeMap<DiscoKey, Holders>,
}

struct Holders {
    peers: Vec<NodeKey>,
    seal: Seal,
}

/// The box between our key and another: computed at first use, since most peers of a big tailnet are never met.
enum Seal {
    Unknown,
    Known(SharedBox),
    /// The key is a point of low order: nothing can be sealed for it.
    Impossible,
}

impl DiscoKeys {
    #[cfg(test)]
    pub(super) const BYTES_PER_KEY: usize = size_of::<DiscoKey>() + size_of::<Holders>();

    pub(super) fn new(secret: DiscoSecret) -> Self {
        Self { public: secret.public(), secret, holders: BTreeMap::new() }
    }

    pub(super) fn public(&self) -> DiscoKey {
        self.public
    }

    /// Notes that `peer` holds `key`.
    pub(super) fn insert(&mut self, key: DiscoKey, peer: NodeKey) {
        let holders = self.holders.entry(key).or_insert(Holders { peers: Vec::with_capacity(1), seal: Seal::Unknown });
        if !holders.peers.contains(&peer) {
            holders.peers.push(peer);
        }
    }

    /// Notes that `peer` no longer holds `key`.
    pub(super) fn remove(&mut self, key: &DiscoKey, peer: &NodeKey) {
        if let Some(holders) = self.holders.get_mut(key) {
            holders.peers.retain(|held| held != peer);
            if holders.peers.is_empty() {
                self.holders.remove(key);
            }
        }
    }

    /// Returns the peers that hold `key`.
    pub(super) fn holders(&self, key: &DiscoKey) -> &[NodeKey] {
        self.holders.get(key).map_or(&[], |holders| holders.peers.as_slice())
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
        let holders = self.holders.get_mut(key)?;
        if matches!(holders.seal, Seal::Unknown) {
            let shared = self.secret.diffie_hellman(key.as_bytes());
            holders.seal = shared.map_or(Seal::Impossible, |shared| Seal::Known(SharedBox::new(&shared)));
        }
        match &holders.seal {
            Seal::Known(shared) => Some(shared),
            Seal::Unknown | Seal::Impossible => None,
        }
    }
}
