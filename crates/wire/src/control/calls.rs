//! Further calls over Noise, and pings. Source: Tailscale `tailcfg`.

use super::json::{is_default, lossy, real_key};
use super::{Blob, CapabilityVersion, NodeId, RawJson, RegionId, Time};
use crate::key::NodeKey;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Asks a client to answer a ping, to ping another node, or to run a request (`c2n`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PingRequest {
    /// Where to answer; a client ignores the URL that it saw last.
    #[serde(rename = "URL")]
    pub url: String,
    /// Whether to answer over Noise. Always written: tailscale-rs demands it.
    #[serde(rename = "URLIsNoise")]
    pub url_is_noise: bool,
    /// Whether to log success.
    #[serde(skip_serializing_if = "is_default")]
    pub log: bool,
    /// Empty for a plain answer, `c2n`, or kinds of pings joined by commas. Always written: tailscale-rs demands it.
    pub types: String,
    /// Whom to ping. Older Go servers write none as an empty text.
    #[serde(rename = "IP", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub ip: Option<IpAddr>,
    /// The request to run, raw HTTP/1.
    #[serde(skip_serializing_if = "is_default")]
    pub payload: Blob,
}

/// What a client reports of one ping that it was asked for.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PingResponse {
    /// Kind of ping.
    pub r#type: String,
    /// Whom it pinged.
    #[serde(rename = "IP", skip_serializing_if = "is_default")]
    pub ip: String,
    /// Address of the node that answered.
    #[serde(rename = "NodeIP", skip_serializing_if = "is_default")]
    pub node_ip: String,
    /// Name of that node.
    #[serde(skip_serializing_if = "is_default")]
    pub node_name: String,
    /// What went wrong.
    #[serde(skip_serializing_if = "is_default")]
    pub err: String,
    /// Seconds there and back.
    #[serde(skip_serializing_if = "is_default")]
    pub latency_seconds: f64,
    /// Where the answer came from directly.
    #[serde(skip_serializing_if = "is_default")]
    pub endpoint: String,
    /// Peer relay that the answer came through.
    #[serde(skip_serializing_if = "is_default")]
    pub peer_relay: String,
    /// Relay region that the answer came through.
    #[serde(rename = "DERPRegionID", skip_serializing_if = "is_default")]
    pub derp_region_id: RegionId,
    /// Its short name.
    #[serde(rename = "DERPRegionCode", skip_serializing_if = "is_default")]
    pub derp_region_code: String,
    /// Port of the peer's API.
    #[serde(rename = "PeerAPIPort", skip_serializing_if = "is_default")]
    pub peer_api_port: u16,
    /// Whether the address was its own.
    #[serde(rename = "IsLocalIP", skip_serializing_if = "is_default")]
    pub is_local_ip: bool,
}

/// `POST /machine/set-dns`: asks for a TXT record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SetDnsRequest {
    /// Capability version of the client.
    #[serde(default)]
    pub version: CapabilityVersion,
    /// Node key of the client.
    #[serde(deserialize_with = "real_key")]
    pub node_key: NodeKey,
    /// Full name of the record.
    #[serde(default)]
    pub name: String,
    /// Kind of the record.
    #[serde(default)]
    pub r#type: String,
    /// Value of the record.
    #[serde(default)]
    pub value: String,
}

/// `POST /machine/id-token`: asks for a token that proves who the node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TokenRequest {
    /// Capability version of the client.
    #[serde(default)]
    pub cap_version: CapabilityVersion,
    /// Node key of the client.
    #[serde(deserialize_with = "real_key")]
    pub node_key: NodeKey,
    /// For whom.
    #[serde(default)]
    pub audience: String,
}

/// Answer to [`TokenRequest`].
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenResponse {
    /// The token.
    #[serde(default)]
    pub id_token: String,
}

impl std::fmt::Debug for TokenResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenResponse(…)")
    }
}

/// `PATCH /machine/set-device-attr`: reports posture attributes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SetDeviceAttributesRequest {
    /// Capability version of the client.
    #[serde(default)]
    pub version: CapabilityVersion,
    /// Node key of the client.
    #[serde(deserialize_with = "real_key")]
    pub node_key: NodeKey,
    /// New values: text, number, truth value, or `null` to delete.
    #[serde(default)]
    pub update: BTreeMap<String, RawJson>,
}

/// `POST /machine/update-health`, of clients before October 2025.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthChangeRequest {
    /// What is unwell.
    #[serde(default)]
    pub subsys: String,
    /// How; empty is well again.
    #[serde(default)]
    pub error: String,
    /// Node key of the client.
    #[serde(deserialize_with = "real_key")]
    pub node_key: NodeKey,
}

/// `POST /machine/feature/query`: asks how to turn a feature on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct QueryFeatureRequest {
    /// Name of the feature: `serve` or `funnel`.
    #[serde(skip_serializing_if = "is_default")]
    pub feature: String,
    /// Node key of the client.
    #[serde(with = "crate::key::zero_as_none", skip_serializing_if = "is_default")]
    pub node_key: Option<NodeKey>,
}

/// Answer to [`QueryFeatureRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct QueryFeatureResponse {
    /// Whether the feature is on already.
    #[serde(skip_serializing_if = "is_default")]
    pub complete: bool,
    /// What to tell the user.
    #[serde(skip_serializing_if = "is_default")]
    pub text: String,
    /// Where the user can turn it on.
    #[serde(rename = "URL", skip_serializing_if = "is_default")]
    pub url: String,
    /// Whether the client should wait for it.
    #[serde(skip_serializing_if = "is_default")]
    pub should_wait: bool,
}

/// Answer to `/machine/webclient/init` and `/machine/webclient/wait`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct WebClientAuthResponse {
    /// Name of the session.
    #[serde(rename = "ID", skip_serializing_if = "is_default")]
    pub id: String,
    /// Page to visit.
    #[serde(rename = "URL", skip_serializing_if = "is_default")]
    pub url: String,
    /// Whether it is done.
    #[serde(skip_serializing_if = "is_default")]
    pub complete: bool,
}

/// `POST /machine/audit-log`: a user's reason for an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AuditLogRequest {
    /// Capability version of the client.
    #[serde(default)]
    pub version: CapabilityVersion,
    /// Node key of the client.
    #[serde(deserialize_with = "real_key")]
    pub node_key: NodeKey,
    /// What was done, like `DISCONNECT_NODE`.
    #[serde(default)]
    pub action: String,
    /// The reason.
    #[serde(default)]
    pub details: String,
    /// When.
    #[serde(default, with = "super::time::zero_as_none", skip_serializing_if = "is_default")]
    pub timestamp: Option<Time>,
}

/// Report of a failed session recording, to the URL that the SSH policy names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SshEventNotifyRequest {
    /// 1 refused, 2 ended, 3 went on unrecorded.
    #[serde(default)]
    pub event_type: i64,
    /// Name of the connection.
    #[serde(default, rename = "ConnectionID")]
    pub connection_id: String,
    /// Capability version of the client.
    #[serde(default)]
    pub cap_version: CapabilityVersion,
    /// Node key of the client.
    #[serde(deserialize_with = "real_key")]
    pub node_key: NodeKey,
    /// Who connected.
    #[serde(default)]
    pub src_node: NodeId,
    /// Which user was asked for.
    #[serde(default, rename = "SSHUser")]
    pub ssh_user: String,
    /// Which user it became.
    #[serde(default)]
    pub local_user: String,
    /// What was tried.
    #[serde(default)]
    pub recording_attempts: Vec<SshRecordingAttempt>,
}

/// One attempt to reach a session recorder.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct SshRecordingAttempt {
    /// Address of the recorder.
    pub recorder: String,
    /// What went wrong.
    pub failure_message: String,
}

/// Answer of `GET /key`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServerKeys {
    /// Key of the protocol before Noise; all zero.
    #[serde(with = "crate::key::zero_as_none")]
    pub legacy_public_key: Option<crate::key::MachineKey>,
    /// The server's Noise key.
    #[serde(with = "crate::key::zero_as_none")]
    pub public_key: Option<crate::key::MachineKey>,
}

/// A relay asks whether a client may use it: `POST /verify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RelayAdmitRequest {
    /// The client.
    #[serde(deserialize_with = "real_key")]
    pub node_public: NodeKey,
    /// Where it connects from.
    #[serde(default)]
    pub source: String,
}

/// Answer to [`RelayAdmitRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RelayAdmitResponse {
    /// Whether it may.
    pub allow: bool,
}

/// A relay of ours asks which of its clients must go: `POST /verify/all`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RelayReviewRequest {
    /// The clients; at most [`RelayReviewRequest::MAX_CLIENTS`].
    pub clients: Vec<NodeKey>,
}

impl RelayReviewRequest {
    /// Clients in one question.
    pub const MAX_CLIENTS: usize = 256;
}

/// Answer to [`RelayReviewRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RelayReviewResponse {
    /// Those of the clients that may not be served any more.
    pub gone: Vec<NodeKey>,
}
