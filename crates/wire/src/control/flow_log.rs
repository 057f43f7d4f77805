//! How a node makes known with which key it signs its flow log. Own to warren: official clients do neither, and a map says
//! whether the server wants it (`MapResponse::flow_log`).

use serde::{Deserialize, Serialize};

use super::json::real_key;
use super::{Blob, CapabilityVersion};
use crate::key::{MachineKey, NodeKey};

/// Where a node sends a [`LogKeyRequest`].
pub const LOG_KEY_PATH: &str = "/machine/warren/log-key";

/// Separates what is signed here from whatever else a log key signs.
const CONTEXT: &[u8] = b"warren log key 1\0";

/// `POST /machine/warren/log-key`: a node names its log key and proves that it has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct LogKeyRequest {
    /// Capability version of the node.
    #[serde(default)]
    pub version: CapabilityVersion,
    /// Node key of the node.
    #[serde(deserialize_with = "real_key")]
    pub node_key: NodeKey,
    /// The key: 32 bytes, Ed25519.
    pub log_key: Blob,
    /// Its signature of [`LogKeyBinding::message`]: 64 bytes.
    pub signature: Blob,
}

/// Answer to [`LogKeyRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct LogKeyResponse {
    /// The name of the collector's log and the key that signs receipts and checkpoints, as C2SP `signed-note` writes them.
    pub collector: String,
}

/// What a signature by a log key is good for, and nothing else: one node key of one machine at one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogKeyBinding {
    /// The server.
    pub server: MachineKey,
    /// The machine.
    pub machine: MachineKey,
    /// The node key.
    pub node: NodeKey,
    /// The log key.
    pub log: [u8; 32],
}

impl LogKeyBinding {
    /// Returns what is signed: 17 bytes of context, then the four keys with 32 bytes each.
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        let keys = [self.server.as_bytes(), self.machine.as_bytes(), self.node.as_bytes(), &self.log];
        let mut message = CONTEXT.to_vec();
        keys.into_iter().for_each(|key| message.extend_from_slice(key));
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{from_json, to_json};

    #[test]
    fn a_request_comes_back() {
        let request = LogKeyRequest {
            version: CapabilityVersion(130),
            node_key: NodeKey::from_bytes([1; 32]),
            log_key: Blob(vec![2; 32]),
            signature: Blob(vec![3; 64]),
        };
        assert_eq!(from_json::<LogKeyRequest>(&to_json(&request).unwrap()), Ok(request));
    }

    #[test]
    fn each_key_is_signed_at_its_place() {
        let one = LogKeyBinding {
            server: MachineKey::from_bytes([1; 32]),
            machine: MachineKey::from_bytes([2; 32]),
            node: NodeKey::from_bytes([3; 32]),
            log: [4; 32],
        };
        let message = one.message();
        assert_eq!((message.len(), &message[..17]), (17 + 4 * 32, CONTEXT));
        for (place, byte) in [(17, 1), (49, 2), (81, 3), (113, 4)] {
            assert_eq!(message[place..place + 32], [byte; 32]);
        }
    }
}
