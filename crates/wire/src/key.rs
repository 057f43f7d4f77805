//! Keys and their text forms.
//!
//! Every public key is a 32-byte X25519 point with a type of its own, so that a machine key can never stand where a
//! node key belongs. Text forms: prefix, colon, 64 lowercase hex digits; either case is read.
//! Source: Tailscale `types/key`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use subtle::ConstantTimeEq;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, Zeroizing};

/// Says why a text is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The text does not begin with the prefix of this kind of key.
    #[error("the key does not begin with {prefix:?}")]
    Prefix {
        /// What it should begin with.
        prefix: &'static str,
    },
    /// What follows the prefix is not exactly 64 hex digits.
    #[error("the key is not 64 hex digits long after its prefix")]
    Digits,
}

/// A shared secret of two X25519 keys; wiped when dropped.
pub struct SharedSecret(Zeroizing<[u8; 32]>);

impl SharedSecret {
    /// Shows the 32 bytes, for key derivation only.
    #[must_use]
    pub fn expose_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret(…)")
    }
}

/// Computes X25519; `None` if the other side's point is of low order, so that the result would not depend on our key.
fn diffie_hellman(secret: &[u8; 32], public: [u8; 32]) -> Option<SharedSecret> {
    let secret = StaticSecret::from(*secret);
    let shared = secret.diffie_hellman(&PublicKey::from(public));
    shared.was_contributory().then(|| SharedSecret(Zeroizing::new(shared.to_bytes())))
}

/// Reads 64 hex digits of either case; leaves no copy of the bytes behind.
pub(crate) fn parse_hex(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = Zeroizing::new([0; 32]);
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        let high = char::from(*high).to_digit(16)?;
        let low = char::from(*low).to_digit(16)?;
        *byte = u8::try_from(high << 4 | low).ok()?;
    }
    Some(bytes)
}

/// Writes lowercase hex digits; leaves no copy of them behind.
fn write_hex(bytes: &[u8; 32], f: &mut impl fmt::Write) -> fmt::Result {
    let digit = |nibble: u8| if nibble < 10 { b'0' + nibble } else { b'a' - 10 + nibble };
    let mut text = Zeroizing::new([0; 64]);
    let (pairs, _) = text.as_chunks_mut::<2>();
    for (pair, byte) in pairs.iter_mut().zip(bytes) {
        *pair = [digit(byte >> 4), digit(byte & 15)];
    }
    // Digits are ASCII.
    f.write_str(std::str::from_utf8(text.as_slice()).unwrap_or_default())
}

macro_rules! public_key {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name([u8; 32]);

        impl $name {
            #[doc = concat!("Text before the hex digits: `", $prefix, "`.")]
            pub const PREFIX: &'static str = $prefix;

            /// Makes a key of its 32 bytes; every value is a point of the curve.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// Returns the 32 bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// Tells whether all bytes are zero, which the wire uses for "no key".
            #[must_use]
            pub fn is_zero(&self) -> bool {
                self.0 == [0; 32]
            }

            /// Returns 64 hex digits without a prefix.
            #[must_use]
            pub fn to_hex(&self) -> String {
                let mut text = String::with_capacity(64);
                // Writing to a String cannot fail.
                let _ = write_hex(&self.0, &mut text);
                text
            }

            /// Reads 64 hex digits without a prefix.
            ///
            /// # Errors
            /// [`KeyError::Digits`] for anything else.
            pub fn from_hex(text: &str) -> Result<Self, KeyError> {
                parse_hex(text).map(|bytes| Self(*bytes)).ok_or(KeyError::Digits)
            }

            /// Returns a short form for logs: the first eight hex digits in brackets.
            #[must_use]
            pub fn short(&self) -> String {
                format!("[{}]", self.to_hex().get(..8).unwrap_or_default())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($prefix)?;
                write_hex(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.short())
            }
        }

        impl FromStr for $name {
            type Err = KeyError;

            fn from_str(text: &str) -> Result<Self, KeyError> {
                let digits = text.strip_prefix($prefix).ok_or(KeyError::Prefix { prefix: $prefix })?;
                Self::from_hex(digits)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl de::Visitor<'_> for Text {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!("a key like ", $prefix, "<64 hex digits>"))
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}

macro_rules! secret_key {
    ($(#[$doc:meta])* $name:ident, $public:ident) => {
        $(#[$doc])*
        ///
        /// Wiped when dropped; can be neither printed nor serialised.
        pub struct $name(Zeroizing<[u8; 32]>);

        impl $name {
            /// Makes a new key from the operating system's randomness; for shells, not for cores.
            ///
            /// # Errors
            /// Fails when the operating system gives no randomness.
            pub fn generate() -> Result<Self, getrandom::Error> {
                let mut bytes = Zeroizing::new([0; 32]);
                getrandom::fill(bytes.as_mut_slice())?;
                let key = Self::from_bytes(*bytes);
                Ok(key)
            }

            /// Makes a key of 32 bytes, clamping them as X25519 does (RFC 7748, section 5).
            #[must_use]
            pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
                bytes[0] &= 248;
                bytes[31] = bytes[31] & 127 | 64;
                let key = Self(Zeroizing::new(bytes));
                bytes.zeroize();
                key
            }

            /// Returns the public half.
            #[must_use]
            pub fn public(&self) -> $public {
                $public::from_bytes(PublicKey::from(&StaticSecret::from(*self.0)).to_bytes())
            }

            /// Computes the secret shared with the holder of `public`; `None` if that is a point of low order.
            #[must_use]
            pub fn diffie_hellman(&self, public: &[u8; 32]) -> Option<SharedSecret> {
                diffie_hellman(&self.0, *public)
            }

            /// Shows the 32 bytes, for key derivation only.
            #[must_use]
            pub fn expose_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// Returns `privkey:` and 64 hex digits, for a state file that only its owner can read.
            #[must_use]
            pub fn to_storage_text(&self) -> Zeroizing<String> {
                let mut text = Zeroizing::new(String::with_capacity(72));
                text.push_str(STORAGE_PREFIX);
                // Writing to a String cannot fail, and it has room enough not to move.
                let _ = write_hex(&self.0, &mut *text);
                text
            }

            /// Reads what [`Self::to_storage_text`] wrote.
            ///
            /// # Errors
            /// [`KeyError`] for any other text.
            pub fn from_storage_text(text: &str) -> Result<Self, KeyError> {
                let digits = text.strip_prefix(STORAGE_PREFIX).ok_or(KeyError::Prefix { prefix: STORAGE_PREFIX })?;
                parse_hex(digits).map(|bytes| Self::from_bytes(*bytes)).ok_or(KeyError::Digits)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }

        impl Clone for $name {
            fn clone(&self) -> Self {
                Self(self.0.clone())
            }
        }

        impl PartialEq for $name {
            /// Compares in constant time.
            fn eq(&self, other: &Self) -> bool {
                self.0.ct_eq(other.0.as_slice()).into()
            }
        }

        impl Eq for $name {}
    };
}

/// Text before the hex digits of a stored private key of any kind.
const STORAGE_PREFIX: &str = "privkey:";

public_key! {
    /// Public node key: WireGuard identity, relay identity and name of a node in every call to the server.
    NodeKey, "nodekey:"
}
public_key! {
    /// Public machine key: identity of an installation, and the form of the server's own Noise key.
    MachineKey, "mkey:"
}
public_key! {
    /// Public disco key: seals path discovery; new at each start of a node.
    DiscoKey, "discokey:"
}
public_key! {
    /// Public challenge key of one connection, sent by the server in the early payload.
    ChallengeKey, "chalpub:"
}

secret_key! {
    /// Private half of a [`NodeKey`].
    NodeSecret, NodeKey
}
secret_key! {
    /// Private half of a [`MachineKey`].
    MachineSecret, MachineKey
}
secret_key! {
    /// Private half of a [`DiscoKey`].
    DiscoSecret, DiscoKey
}
secret_key! {
    /// Private half of a [`ChallengeKey`].
    ChallengeSecret, ChallengeKey
}

/// Serde helper for `Option<key>` fields: absent, `null`, the empty text and the all-zero key all read as `None`.
pub mod zero_as_none {
    use super::{Deserialize, Deserializer, FromStr, KeyError, Serialize, Serializer, de};

    /// Keys that have an all-zero value.
    pub trait Zero {
        /// Tells whether all bytes are zero.
        fn is_zero(&self) -> bool;
    }

    macro_rules! zero {
        ($($name:ident),*) => { $(impl Zero for super::$name { fn is_zero(&self) -> bool { Self::is_zero(self) } })* };
    }
    zero!(NodeKey, MachineKey, DiscoKey, ChallengeKey);

    /// Reads an optional key.
    ///
    /// # Errors
    /// Fails on text that is no key of this kind.
    pub fn deserialize<'de, D, K>(deserializer: D) -> Result<Option<K>, D::Error>
    where
        D: Deserializer<'de>,
        K: FromStr<Err = KeyError> + Zero,
    {
        match Option::<std::borrow::Cow<'de, str>>::deserialize(deserializer)? {
            None => Ok(None),
            Some(text) if text.is_empty() => Ok(None),
            Some(text) => text.parse::<K>().map(|key| (!key.is_zero()).then_some(key)).map_err(de::Error::custom),
        }
    }

    /// Writes an optional key; `None` becomes the all-zero key.
    ///
    /// # Errors
    /// Passes on what the serializer says.
    pub fn serialize<S, K>(key: &Option<K>, serializer: S) -> Result<S::Ok, S::Error>
    where
        S: Serializer,
        K: Serialize + Default,
    {
        match key {
            Some(key) => key.serialize(serializer),
            None => K::default().serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_sides_share_the_same_secret() {
        let alice = NodeSecret::from_bytes([8; 32]);
        let bob = NodeSecret::from_bytes([9; 32]);
        let one = alice.diffie_hellman(bob.public().as_bytes()).unwrap();
        let two = bob.diffie_hellman(alice.public().as_bytes()).unwrap();
        assert_eq!(one.expose_bytes(), two.expose_bytes());
    }

    /// Public halves of the repeated bytes 0x11 and 0x22.
    #[test]
    fn public_keys_of_the_noise_vector() {
        let client = MachineSecret::from_bytes([0x11; 32]).public();
        assert_eq!(client.to_hex(), "7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13");
        let server = MachineSecret::from_bytes([0x22; 32]).public();
        assert_eq!(server.to_string(), "mkey:0faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20");
    }

    #[test]
    fn low_order_point_gives_no_secret() {
        assert!(NodeSecret::from_bytes([7; 32]).diffie_hellman(&[0; 32]).is_none());
    }

    #[test]
    fn secrets_do_not_print() {
        let secret = NodeSecret::from_bytes([0x5a; 32]);
        assert_eq!(format!("{secret:?}"), "NodeSecret(…)");
    }

    proptest! {
        #[test]
        fn text_round_trips_in_either_case(bytes: [u8; 32]) {
            let key = NodeKey::from_bytes(bytes);
            prop_assert_eq!(key.to_string().parse::<NodeKey>(), Ok(key));
            let upper = format!("nodekey:{}", key.to_hex().to_uppercase());
            prop_assert_eq!(upper.parse::<NodeKey>(), Ok(key));
            prop_assert!(key.to_string().parse::<MachineKey>().is_err());
        }

        #[test]
        fn no_text_panics(text in ".{0,100}") {
            let _ = text.parse::<NodeKey>();
            drop(NodeSecret::from_storage_text(&text));
        }

        #[test]
        fn storage_text_round_trips(bytes: [u8; 32]) {
            let secret = DiscoSecret::from_bytes(bytes);
            prop_assert_eq!(DiscoSecret::from_storage_text(&secret.to_storage_text()), Ok(secret));
        }
    }
}
