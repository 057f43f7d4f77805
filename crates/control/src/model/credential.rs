//! Credentials of the API.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use warren_wire::control::UserId;

use super::TailnetId;

/// What is known of a credential of the API; the secret half is nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialRecord {
    /// The part of it that is no secret.
    pub id: String,
    /// Tailnet that it is for, and no other.
    pub tailnet: TailnetId,
    /// What it is.
    pub kind: CredentialKind,
    /// User whose rights an API key has; for a client, who made it, if a user did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    /// Scopes: all that a client may, and what an API key is narrowed to. An API key without any is not narrowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    /// Tags that a client may give, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// What it is for, in the words of whoever made it; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// When it was made.
    pub created: Timestamp,
    /// When it stops working.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// When somebody took it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Timestamp>,
}

/// Kinds of credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CredentialKind {
    /// A key with the rights of its user.
    ApiKey,
    /// A program with rights of its own, which gets tokens for an hour.
    OauthClient,
}

impl CredentialRecord {
    /// Tells whether it works at `now`.
    #[must_use]
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.revoked.is_none() && self.expires.is_none_or(|expires| now < expires)
    }
}
