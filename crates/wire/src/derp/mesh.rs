//! What relays of one region share: the key that they show each other, and how addresses are written.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::key::parse_hex;

/// What the relays of one region show each other, 32 bytes; wiped when dropped, compared in constant time.
#[derive(Clone)]
pub struct MeshKey(Zeroizing<[u8; 32]>);

impl MeshKey {
    /// Reads 64 hex digits; `None` for anything else.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        parse_hex(text).map(Self)
    }
}

impl fmt::Debug for MeshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MeshKey(…)")
    }
}

impl PartialEq for MeshKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&*other.0).into()
    }
}

impl Eq for MeshKey {}

/// How an introduction, which is sealed, carries the key.
pub(super) mod text {
    use super::MeshKey;
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};
    use std::fmt::Write as _;
    use zeroize::Zeroizing;

    pub(in super::super) fn serialize<S: Serializer>(key: &Option<MeshKey>, to: S) -> Result<S::Ok, S::Error> {
        let Some(key) = key else { return to.serialize_none() };
        let mut text = Zeroizing::new(String::with_capacity(64));
        for byte in key.0.iter() {
            // Writing into a string does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        to.serialize_str(&text)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<MeshKey>, D::Error> {
        let Some(text) = Option::<String>::deserialize(from)?.map(Zeroizing::new) else { return Ok(None) };
        MeshKey::from_hex(&text).map(Some).ok_or_else(|| D::Error::custom("a mesh key is 64 hex digits"))
    }
}

/// Reads an address of 16 and a port of two bytes.
pub(super) fn address(bytes: [u8; 18]) -> SocketAddr {
    let [ip @ .., high, low] = bytes;
    SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), u16::from_be_bytes([high, low]))
}
