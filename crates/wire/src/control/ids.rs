//! Numbers and byte strings that have a type of their own.

use super::RawJson;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::BTreeMap;
use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $number:ty) => {
        number! { @type $(#[$doc])* #[derive(Deserialize)] $name, $number }
    };
    // Numbers out of range are read as `$other`.
    ($(#[$doc:meta])* $name:ident, $number:ty, $other:expr) => {
        number! { @type $(#[$doc])* $name, $number }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let other: fn(i64) -> $number = $other;
                from.deserialize_i64(Number).map(|number| Self(<$number>::try_from(number).unwrap_or_else(|_| other(number))))
            }
        }
    };
    (@type $(#[$doc:meta])* $name:ident, $number:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub $number);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number! {
    /// Number of a node: unique in its server, never used again; 1 to 2^53 − 1, zero is no node.
    NodeId, i64
}
number! {
    /// Number of a user: unique in its server, never used again; 1 to 2^53 − 1, zero is no user.
    UserId, i64
}
number! {
    /// Number of a relay region; zero is no region, 900 to 999 are left to those who run their own.
    ///
    /// A number out of range is read as zero: one strange region must not spoil a map.
    RegionId, u16, |_| 0
}
number! {
    /// Capability version of a client: which behaviours of the protocol it knows.
    ///
    /// A number out of range is read as the nearest one.
    CapabilityVersion, u16, |number| if number < 0 { 0 } else { u16::MAX }
}

/// Reads an integer, clamped to 64 bits.
struct Number;

impl de::Visitor<'_> for Number {
    type Value = i64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an integer")
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<i64, E> {
        Ok(number)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<i64, E> {
        Ok(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl RegionId {
    /// No region.
    pub const NONE: Self = Self(0);

    /// Returns the region unless it is zero.
    #[must_use]
    pub fn known(self) -> Option<Self> {
        (self != Self::NONE).then_some(self)
    }
}

/// How a node learned of one of its endpoints.
///
/// Source: Tailscale `tailcfg`, `EndpointType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(from = "i64", into = "i64")]
pub enum EndpointType {
    /// Not said, or a kind that we do not know.
    #[default]
    Unknown,
    /// Address of one of its interfaces.
    Local,
    /// Address that a STUN server saw.
    Stun,
    /// Mapping made by its gateway on request.
    PortMapped,
    /// Address that a STUN server saw, with the local port: guesses a static port forwarding.
    StunWithLocalPort,
    /// Given by its administrator.
    Explicit,
}

impl From<i64> for EndpointType {
    fn from(number: i64) -> Self {
        match number {
            1 => Self::Local,
            2 => Self::Stun,
            3 => Self::PortMapped,
            4 => Self::StunWithLocalPort,
            5 => Self::Explicit,
            _ => Self::Unknown,
        }
    }
}

impl From<EndpointType> for i64 {
    fn from(kind: EndpointType) -> Self {
        match kind {
            EndpointType::Unknown => 0,
            EndpointType::Local => 1,
            EndpointType::Stun => 2,
            EndpointType::PortMapped => 3,
            EndpointType::StunWithLocalPort => 4,
            EndpointType::Explicit => 5,
        }
    }
}

/// Bytes that the wire writes as padded base64; does not print them.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Blob(pub Vec<u8>);

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes)", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = Blob;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("padded base64")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Blob, E> {
                BASE64.decode(text).map(Blob).map_err(|_| E::custom("not padded base64"))
            }
        }
        from.deserialize_str(Text)
    }
}

/// Serde helper for byte strings that are always written: `null` when there are none, as Go does.
pub(super) mod null_when_empty {
    use super::{Blob, Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Blob, D::Error> {
        Option::<Blob>::deserialize(from).map(Option::unwrap_or_default)
    }

    pub(crate) fn serialize<S: Serializer>(blob: &Blob, to: S) -> Result<S::Ok, S::Error> {
        if blob.0.is_empty() { to.serialize_none() } else { blob.serialize(to) }
    }
}

/// Capabilities and their arguments; a capability without arguments is a flag.
///
/// A flag is written as `null`; `null` and `[]` read alike. Source: Tailscale `tailcfg`, `NodeCapMap`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CapMap(pub BTreeMap<String, Vec<RawJson>>);

impl CapMap {
    /// Makes a map of flags.
    pub fn flags<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(names.into_iter().map(|name| (name.to_owned(), Vec::new())).collect())
    }

    /// Tells whether the capability is there, with or without arguments.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

impl Serialize for CapMap {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().map(|(name, values)| (name, (!values.is_empty()).then_some(values))))
    }
}

impl<'de> Deserialize<'de> for CapMap {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let entries = BTreeMap::<String, Option<Vec<RawJson>>>::deserialize(from)?;
        let entries = entries.into_iter().map(|(name, values)| (name, values.unwrap_or_default()));
        Ok(Self(entries.collect()))
    }
}
