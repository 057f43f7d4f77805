//! Calls of the tailnet lock under `/machine/tka/`. Source: Tailscale `tailcfg`, `TKA…Request`.

use super::json::{is_default, real_key};
use super::{Blob, CapabilityVersion, NodeId};
use crate::key::NodeKey;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Any request of the tailnet lock; each call uses some of the fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TkaRequest {
    /// Capability version of the client.
    #[serde(default)]
    pub version: CapabilityVersion,
    /// Node key of the client.
    #[serde(deserialize_with = "real_key")]
    pub node_key: NodeKey,
    /// `init/begin`: first update of the authority.
    #[serde(rename = "GenesisAUM", default, skip_serializing_if = "is_default")]
    pub genesis_aum: Blob,
    /// `init/finish`: signatures of all nodes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub signatures: BTreeMap<NodeId, Blob>,
    /// `init/finish`: secret for support to turn the lock off.
    #[serde(default, skip_serializing_if = "is_default")]
    pub support_disablement: Blob,
    /// `bootstrap`, `sync/offer`, `sync/send`, `disable`: head that the client holds, empty for none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub head: String,
    /// `sync/offer`: older updates, newest first.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ancestors: Vec<String>,
    /// `sync/send`: updates that the server lacks.
    #[serde(rename = "MissingAUMs", default, skip_serializing_if = "is_default")]
    pub missing_aums: Vec<Blob>,
    /// `sync/send`: whether a person waits.
    #[serde(default, skip_serializing_if = "is_default")]
    pub interactive: bool,
    /// `disable`: the secret.
    #[serde(default, skip_serializing_if = "is_default")]
    pub disablement_secret: Blob,
    /// `sign`: signature of a node key.
    #[serde(default, skip_serializing_if = "is_default")]
    pub signature: Blob,
    /// `affected-sigs`: which key.
    #[serde(rename = "KeyID", default, skip_serializing_if = "is_default")]
    pub key_id: Blob,
}

/// Answer to `init/begin`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TkaInitBeginResponse {
    /// Nodes that need a signature.
    pub need_signatures: Vec<TkaSignInfo>,
}

/// A node that needs a signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TkaSignInfo {
    /// Number of the node.
    #[serde(rename = "NodeID")]
    pub node_id: NodeId,
    /// Its node key.
    #[serde(deserialize_with = "real_key")]
    pub node_public: NodeKey,
    /// Its rotation key.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rotation_pubkey: Blob,
}

/// Answer to `bootstrap`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TkaBootstrapResponse {
    /// First update of the authority, when the lock is on.
    #[serde(rename = "GenesisAUM", skip_serializing_if = "is_default")]
    pub genesis_aum: Blob,
    /// The secret that turned the lock off.
    #[serde(skip_serializing_if = "is_default")]
    pub disablement_secret: Blob,
}

/// Answer to `sync/offer`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TkaSyncOfferResponse {
    /// The server's head.
    pub head: String,
    /// Older updates that the server holds.
    pub ancestors: Vec<String>,
    /// Updates that the client lacks.
    #[serde(rename = "MissingAUMs")]
    pub missing_aums: Vec<Blob>,
}

/// Answer to `sync/send`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TkaSyncSendResponse {
    /// The server's head.
    pub head: String,
}

/// Answer to `affected-sigs`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TkaSignaturesUsingKeyResponse {
    /// The signatures.
    pub signatures: Vec<Blob>,
}
