//! The early payload: what the server may say inside Noise before HTTP/2 begins.
//!
//! Five magic bytes, a big-endian u32 length, then JSON. The first nine bytes are either this header or the header of
//! the server's first HTTP/2 frame, which never begins with 0xFF. Source: Tailscale `control/ts2021`, `conn.go`.

use serde::{Deserialize, Serialize};

use crate::key::ChallengeKey;

/// First bytes of an early payload.
pub const EARLY_MAGIC: [u8; 5] = [0xFF, 0xFF, 0xFF, b'T', b'S'];
/// Bytes before the JSON: magic and length.
pub const EARLY_HEADER_BYTES: usize = 9;
/// Most bytes of JSON that are accepted; the official Rust client takes no more either.
pub const EARLY_MAX_BYTES: usize = 1024;

/// What the early payload says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EarlyPayload {
    /// Key of this connection by which a client could prove that it holds a node key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_key_challenge: Option<ChallengeKey>,
}

impl EarlyPayload {
    /// Returns header and JSON.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // A struct of one optional text always serialises.
        let json = serde_json::to_vec(self).unwrap_or_default();
        let mut bytes = EARLY_MAGIC.to_vec();
        bytes.extend_from_slice(&u32::try_from(json.len()).unwrap_or_default().to_be_bytes());
        bytes.extend_from_slice(&json);
        bytes
    }

    /// Reads the first nine bytes: the length of the JSON that follows, or `None` if they begin HTTP/2.
    ///
    /// The length is what the server says: refuse it above [`EARLY_MAX_BYTES`].
    #[must_use]
    pub fn parse_header(header: [u8; EARLY_HEADER_BYTES]) -> Option<usize> {
        let length = header.strip_prefix(&EARLY_MAGIC)?;
        let length = u32::from_be_bytes(length.try_into().ok()?);
        Some(usize::try_from(length).unwrap_or(usize::MAX))
    }

    /// Reads the JSON; `None` if it is none. Unknown members are allowed.
    #[must_use]
    pub fn decode(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }
}
