//! Registration: `POST /machine/register`. Source: Tailscale `tailcfg`, `RegisterRequest` and `RegisterResponse`.

use super::ids::null_when_empty;
use super::json::{is_default, lossy, real_key};
use super::{Blob, CapabilityVersion, Hostinfo, RawJson, Time, UserId};
use crate::key::NodeKey;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// What a client sends to log in, to log out, and at every start.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RegisterRequest {
    /// Capability version of the client.
    #[serde(default)]
    pub version: CapabilityVersion,
    /// Key being registered; on logout the one to expire. Never zero.
    #[serde(deserialize_with = "real_key")]
    pub node_key: NodeKey,
    /// Previous key of this profile, maybe one that the server forgot long ago.
    #[serde(default, with = "crate::key::zero_as_none")]
    pub old_node_key: Option<NodeKey>,
    /// Tailnet-lock rotation key as text, of any form until it is used; empty for none, which the
    /// wire writes as the zero key.
    #[serde(rename = "NLKey", default, deserialize_with = "zero_as_empty", serialize_with = "nl_key_or_zero")]
    pub nl_key: String,
    /// Auth key or token.
    #[serde(default, skip_serializing_if = "is_default")]
    pub auth: Option<RegisterAuth>,
    /// Wished expiry: in the past to log out, in the future to shorten the key's life.
    #[serde(default, with = "super::time::zero_as_none")]
    pub expiry: Option<Time>,
    /// URL of a login to wait for.
    #[serde(default)]
    pub followup: String,
    /// What the client says of its machine.
    #[serde(default, deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub hostinfo: Option<Hostinfo>,
    /// Asks to be deleted after going away; missing on a follow-up, so it must be remembered.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ephemeral: bool,
    /// Tailnet-lock signature of the node key.
    #[serde(default, with = "null_when_empty")]
    pub node_key_signature: Blob,
    /// Kind of [`Self::signature`]: text in Go, a number in tailscale-rs.
    #[serde(default, skip_serializing_if = "is_default")]
    pub signature_type: Option<RawJson>,
    /// Time of a device-certificate signature.
    #[serde(default, with = "super::time::zero_as_none", skip_serializing_if = "is_default")]
    pub timestamp: Option<Time>,
    /// Device certificate.
    #[serde(default, skip_serializing_if = "is_default")]
    pub device_cert: Blob,
    /// Signature made with the device certificate.
    #[serde(default, skip_serializing_if = "is_default")]
    pub signature: Blob,
    /// Tailnet that the client wishes; binding when it begins with `required:`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tailnet: String,
}

/// Text of the zero tailnet-lock key.
const NL_KEY_ZERO: &str = "nlpub:0000000000000000000000000000000000000000000000000000000000000000";

fn nl_key_or_zero<S: Serializer>(key: &str, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(if key.is_empty() { NL_KEY_ZERO } else { key })
}

fn zero_as_empty<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let key: String = lossy(from)?;
    Ok(if key == NL_KEY_ZERO { String::new() } else { key })
}

/// How a client proves that it may join.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RegisterAuth {
    /// Auth key, opaque to the client.
    #[serde(skip_serializing_if = "is_default")]
    pub auth_key: String,
    /// Token of Android clients before 1.66; not used.
    #[serde(skip_serializing_if = "is_default")]
    pub oauth2_token: Option<RawJson>,
}

impl fmt::Debug for RegisterAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RegisterAuth(…)")
    }
}

/// The server's answer; every field is always written.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RegisterResponse {
    /// Owner of the node.
    pub user: User,
    /// Account that was used, shown until the first map.
    pub login: Login,
    /// Asks for a new node key and another registration.
    pub node_key_expired: bool,
    /// Whether the node may talk to others.
    pub machine_authorized: bool,
    /// Non-empty: a person must visit it.
    #[serde(rename = "AuthURL")]
    pub auth_url: String,
    /// Non-empty: sign this for a new node key and register again.
    #[serde(with = "null_when_empty")]
    pub node_key_signature: Blob,
    /// Non-empty: refused, with the text to show.
    pub error: String,
}

/// A user as the register response names it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct User {
    /// Number of the user.
    #[serde(rename = "ID")]
    pub id: UserId,
    /// Name for people.
    pub display_name: String,
    /// Picture.
    #[serde(rename = "ProfilePicURL", skip_serializing_if = "is_default")]
    pub profile_pic_url: String,
    /// When the user was created.
    #[serde(with = "super::time::zero_as_none", skip_serializing_if = "is_default")]
    pub created: Option<Time>,
}

/// An account of a user at an identity provider.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Login {
    /// Number of the login; the user's number is fine.
    #[serde(rename = "ID")]
    pub id: i64,
    /// Name of the identity provider.
    pub provider: String,
    /// Name at the provider.
    pub login_name: String,
    /// Name for people.
    pub display_name: String,
    /// Picture.
    #[serde(rename = "ProfilePicURL", skip_serializing_if = "is_default")]
    pub profile_pic_url: String,
}

/// What a map says about a user that its nodes name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct UserProfile {
    /// Number of the user.
    #[serde(rename = "ID")]
    pub id: UserId,
    /// Login name, like `ann@example.com`.
    pub login_name: String,
    /// Name for people.
    pub display_name: String,
    /// Picture.
    #[serde(rename = "ProfilePicURL", skip_serializing_if = "is_default")]
    pub profile_pic_url: String,
    /// Groups of the user that the receiver may know.
    #[serde(skip_serializing_if = "is_default")]
    pub groups: Vec<String>,
}
