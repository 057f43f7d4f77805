//! Who may log in over SSH. Source: Tailscale `tailcfg`, `SSHPolicy`. Names begin with a small letter here.

use super::Time;
use super::json::is_default;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Rules of the SSH server of a node; the first that matches decides.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SshPolicy {
    /// The rules.
    pub rules: Vec<SshRule>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SshRule {
    /// The rule is dead after this.
    #[serde(with = "super::time::zero_as_none", skip_serializing_if = "is_default")]
    pub rule_expires: Option<Time>,
    /// Who; any may match.
    pub principals: Vec<SshPrincipal>,
    /// Requested user to local user; key `*` is the fallback, value `=` the same name, an empty value no match.
    #[serde(rename = "sshUsers")]
    pub ssh_users: BTreeMap<String, String>,
    /// What happens; absent is deny.
    #[serde(skip_serializing_if = "is_default")]
    pub action: Option<SshAction>,
    /// Names of the environment that pass, with the wildcards `*` and `?`.
    #[serde(skip_serializing_if = "is_default")]
    pub accept_env: Vec<String>,
}

/// Matches a caller by one of four things.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SshPrincipal {
    /// Stable name of the source node.
    #[serde(skip_serializing_if = "is_default")]
    pub node: String,
    /// Address of the source node.
    #[serde(rename = "nodeIP", skip_serializing_if = "is_default")]
    pub node_ip: String,
    /// Login name of its owner.
    #[serde(skip_serializing_if = "is_default")]
    pub user_login: String,
    /// Anybody.
    #[serde(skip_serializing_if = "is_default")]
    pub any: bool,
}

/// What happens to a login.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SshAction {
    /// Shown first.
    #[serde(skip_serializing_if = "is_default")]
    pub message: String,
    /// Refuses; outranks [`Self::accept`].
    #[serde(skip_serializing_if = "is_default")]
    pub reject: bool,
    /// Lets in.
    #[serde(skip_serializing_if = "is_default")]
    pub accept: bool,
    /// Longest session in nanoseconds; zero is without end.
    #[serde(skip_serializing_if = "is_default")]
    pub session_duration: i64,
    /// Allows agent forwarding.
    #[serde(skip_serializing_if = "is_default")]
    pub allow_agent_forwarding: bool,
    /// URL to ask instead.
    #[serde(skip_serializing_if = "is_default")]
    pub hold_and_delegate: String,
    /// Allows local port forwarding.
    #[serde(skip_serializing_if = "is_default")]
    pub allow_local_port_forwarding: bool,
    /// Allows remote port forwarding.
    #[serde(skip_serializing_if = "is_default")]
    pub allow_remote_port_forwarding: bool,
    /// Session recorders. None may get lost, or sessions would go unrecorded: a malformed one spoils the document.
    #[serde(skip_serializing_if = "is_default")]
    pub recorders: Vec<SocketAddr>,
    /// What happens when recording fails.
    #[serde(skip_serializing_if = "is_default")]
    pub on_recording_failure: Option<SshRecorderFailureAction>,
}

/// What happens when recording fails.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct SshRecorderFailureAction {
    /// Non-empty: refuses the session with this text.
    #[serde(skip_serializing_if = "is_default")]
    pub reject_session_with_message: String,
    /// Non-empty: ends the session with this text.
    #[serde(skip_serializing_if = "is_default")]
    pub terminate_session_with_message: String,
    /// Where to report.
    #[serde(rename = "NotifyURL", skip_serializing_if = "is_default")]
    pub notify_url: String,
}
