//! Randomness from a seed, without a way back.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use zeroize::Zeroizing;

use crate::crypto::Key;

/// A generator that forgets how it made what it gave.
///
/// A plain generator computes its whole past from its state: whoever reads the memory of a node that has run for a
/// month would learn each ephemeral key of that month. This one takes a new key from itself after each secret.
pub(crate) struct Entropy(StdRng);

impl Entropy {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        let mut entropy = Self(StdRng::from_seed(seed));
        entropy.forget();
        entropy
    }

    /// Returns bytes for a secret.
    pub(crate) fn secret(&mut self) -> Key {
        let secret = Zeroizing::new(self.0.random());
        self.forget();
        secret
    }

    /// Returns bytes that others may see.
    pub(crate) fn public<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.fill(&mut bytes);
        bytes
    }

    /// Returns a number that others may see.
    pub(crate) fn number(&mut self) -> u32 {
        self.0.random()
    }

    /// Returns a number up to and with `most`.
    pub(crate) fn up_to(&mut self, most: u64) -> u64 {
        self.0.random_range(0..=most)
    }

    fn forget(&mut self) {
        let key: Key = Zeroizing::new(self.0.random());
        self.0 = StdRng::from_seed(*key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_bytes_and_no_secret_comes_twice() {
        let (mut one, mut two) = (Entropy::new([1; 32]), Entropy::new([1; 32]));
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let secret = one.secret();
            assert_eq!(secret, two.secret());
            assert!(seen.insert(*secret));
        }
        assert_ne!(*Entropy::new([2; 32]).secret(), *Entropy::new([1; 32]).secret());
    }

    #[test]
    fn state_after_a_secret_does_not_give_it_again() {
        let mut entropy = Entropy::new([3; 32]);
        let secret = entropy.secret();
        // What a reader of the memory could do: run the state as it is now, from its key's first block on.
        let mut later = entropy.0;
        assert!((0..64).all(|_| later.random::<[u8; 32]>() != *secret));
    }
}
