//! Rules of the packet filter. Source: Tailscale `tailcfg`, `FilterRule`.

use super::json::{is_default, lossy_list, reread, sound_entries};
use super::{CapMap, Time};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

/// What a client writes into [`MapRequest::debug_flags`](super::MapRequest::debug_flags) to say that it ends rules by
/// [`FilterRule::until`] itself.
///
/// That list is made of free hints which servers do not check, so that a foreign server is not disturbed by it; and it
/// comes with each poll, so that nothing has to be remembered of a client that was replaced by an older one.
pub const RULES_END: &str = "warren-rules-end";

/// Lets sources reach destinations. Has either [`Self::dst_ports`] or [`Self::cap_grant`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct FilterRule {
    /// Each an address, a prefix, a range `a-b`, `*`, or `cap:<capability>`.
    #[serde(rename = "SrcIPs", deserialize_with = "sound_entries")]
    pub src_ips: Vec<String>,
    /// Ancient prefix lengths of the sources. Never sent; a receiver refuses the whole filter for it.
    #[serde(skip_serializing_if = "is_default")]
    pub src_bits: Vec<i64>,
    /// Where to, of a network rule; without malformed entries.
    #[serde(deserialize_with = "sound_entries", skip_serializing_if = "is_default")]
    pub dst_ports: Vec<NetPortRange>,
    /// IP protocols; empty is TCP, UDP and both ICMPs. Values outside 0 to 255 are skipped.
    #[serde(rename = "IPProto", skip_serializing_if = "is_default")]
    pub ip_proto: Vec<i64>,
    /// What an application rule grants; without malformed entries.
    #[serde(deserialize_with = "sound_entries", skip_serializing_if = "is_default")]
    pub cap_grant: Vec<CapGrant>,
    /// When the rule ends, by the server's clock; from then on it allows nothing, whatever was begun under it.
    ///
    /// Warren's own. Other clients ignore the name, and are not sent it: only those that say [`RULES_END`] are. For the
    /// others the server takes the rule back when the time has come. What cannot be read has ended.
    #[serde(rename = "WarrenUntil", deserialize_with = "end", skip_serializing_if = "is_default")]
    pub until: Option<Time>,
}

/// Reads the end of a rule: none if it is absent, and long ago if it is malformed, so that less is allowed, not more.
fn end<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Time>, D::Error> {
    const ENDED: Option<Time> = Time::from_unix(0, 0);
    let raw = <&RawValue>::deserialize(from)?;
    Ok(reread::<Option<Time>>(raw).unwrap_or(ENDED))
}

/// Addresses and ports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NetPortRange {
    /// An address, a prefix, a range `a-b`, or `*`.
    #[serde(rename = "IP")]
    pub ip: String,
    /// Ancient prefix length. Never sent; a receiver refuses the whole filter for it.
    #[serde(skip_serializing_if = "is_default")]
    pub bits: Option<i64>,
    /// Ports.
    pub ports: PortRange,
}

/// Ports from first to last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

impl PortRange {
    /// All ports, and protocols without ports.
    pub const ALL: Self = Self { first: 0, last: 65_535 };

    /// Makes a range of one port.
    #[must_use]
    pub const fn single(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// Tells whether `port` lies in the range.
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// Capabilities that a source has towards destinations.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CapGrant {
    /// Destinations, usually the receiver's own addresses.
    #[serde(deserialize_with = "lossy_list")]
    pub dsts: Vec<IpNet>,
    /// Old form of capabilities without arguments.
    #[serde(skip_serializing_if = "is_default")]
    pub caps: Vec<String>,
    /// Capabilities.
    #[serde(skip_serializing_if = "is_default")]
    pub cap_map: CapMap,
}
