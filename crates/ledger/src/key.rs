//! The keys that sign: a node's for its records, the collector's for receipts and checkpoints.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use zeroize::Zeroizing;

/// Says why a text is not a log key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// It does not begin with [`LogKey::PREFIX`].
    #[error("the key does not begin with {:?}", LogKey::PREFIX)]
    Prefix,
    /// What follows is not exactly 64 lowercase hex digits.
    #[error("the key is not 64 lowercase hex digits long after its prefix")]
    Digits,
}

/// Is the public half of an Ed25519 key that signs log batches, receipts or checkpoints.
///
/// Any 32 bytes can stand here; those that are no key verify nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogKey([u8; 32]);

impl LogKey {
    /// Text before the hex digits.
    pub const PREFIX: &'static str = "logkey:";

    /// Makes a key of its 32 bytes (RFC 8032, section 5.1.5).
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Tells whether `signature` is this key's for `message`.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, &signature.0).is_ok()
    }
}

impl fmt::Display for LogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for LogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for LogKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let digits = text.strip_prefix(Self::PREFIX).ok_or(KeyError::Prefix)?.as_bytes();
        let value = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(KeyError::Digits),
        };
        let (pairs, rest) = digits.as_chunks::<2>();
        if pairs.len() != 32 || !rest.is_empty() {
            return Err(KeyError::Digits);
        }
        let mut bytes = [0; 32];
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = value(*high)? << 4 | value(*low)?;
        }
        Ok(Self(bytes))
    }
}

/// Is an Ed25519 signature (RFC 8032).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; 64]);

impl Signature {
    /// Makes a signature of its 64 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// Returns the 64 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signature(…)")
    }
}

/// Is the secret half of a [`LogKey`]. It is made on the machine that uses it and never leaves it.
pub struct LogSecret {
    pair: Ed25519KeyPair,
    public: LogKey,
    seed: Zeroizing<[u8; 32]>,
}

impl LogSecret {
    /// Makes a secret of 32 random bytes.
    ///
    /// # Panics
    /// Never: Ed25519 takes every seed of 32 bytes.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let seed = Zeroizing::new(seed);
        #[expect(clippy::expect_used, reason = "every seed of 32 bytes is one (RFC 8032, section 5.1.5)")]
        let pair = Ed25519KeyPair::from_seed_unchecked(&*seed).expect("a seed of 32 bytes");
        let mut public = [0; 32];
        // The public key has 32 bytes.
        public.iter_mut().zip(pair.public_key().as_ref()).for_each(|(to, from)| *to = *from);
        Self { pair, public: LogKey(public), seed }
    }

    /// Shows the 32 bytes that [`Self::from_seed`] takes, to keep them in a file.
    #[must_use]
    pub fn expose_seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// Returns the public half.
    #[must_use]
    pub const fn public(&self) -> LogKey {
        self.public
    }

    /// Signs a message.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Signature {
        let mut bytes = [0; 64];
        bytes.iter_mut().zip(self.pair.sign(message).as_ref()).for_each(|(to, from)| *to = *from);
        Signature(bytes)
    }
}

impl fmt::Debug for LogSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogSecret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::bytes;

    /// RFC 8032, section 7.1, tests 1 and 2.
    #[test]
    fn published_signatures_come_out() {
        for (seed, public, message, signature) in [
            (
                "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
                "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
                "",
                "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
            ),
            (
                "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
                "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
                "72",
                "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
            ),
        ] {
            let secret = LogSecret::from_seed(bytes(seed));
            assert_eq!(secret.public().as_bytes(), &bytes::<32>(public));
            let message = if message.is_empty() { vec![] } else { bytes::<1>(message).to_vec() };
            assert_eq!(secret.sign(&message).as_bytes(), &bytes::<64>(signature));
            assert!(secret.public().verifies(&message, &Signature::from_bytes(bytes(signature))));
            assert!(!secret.public().verifies(b"another", &Signature::from_bytes(bytes(signature))));
        }
    }

    #[test]
    fn texts_of_keys_come_back_and_secrets_show_nothing() {
        let secret = LogSecret::from_seed([7; 32]);
        let text = secret.public().to_string();
        assert_eq!(text.parse(), Ok(secret.public()));
        assert_eq!(text.to_uppercase().parse::<LogKey>(), Err(KeyError::Prefix));
        assert_eq!(text.replace(|digit: char| digit.is_ascii_digit(), "F").parse::<LogKey>(), Err(KeyError::Digits));
        assert_eq!(format!("{text}00").parse::<LogKey>(), Err(KeyError::Digits));
        assert_eq!(format!("{secret:?}"), "LogSecret(…)");
    }
}
