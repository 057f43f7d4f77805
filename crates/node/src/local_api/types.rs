//! The JSON documents of the local API, in their official shape plus a few members of our own.
//!
//! Source: Tailscale `ipn/ipnstate`, `ipn/backend.go` and `client/tailscale/apitype`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::prefs::Prefs;

/// How Go writes "no time".
pub const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// Is the answer to `GET status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(missing_docs, reason = "the names are the official ones; protocol documentation says what they mean")]
pub struct Status {
    pub version: String,
    #[serde(rename = "TUN")]
    pub tun: bool,
    pub backend_state: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub have_node_key: bool,
    #[serde(rename = "AuthURL")]
    pub auth_url: String,
    #[serde(rename = "TailscaleIPs")]
    pub tailscale_ips: Vec<IpAddr>,
    #[serde(rename = "Self")]
    pub self_: PeerStatus,
    pub health: Vec<String>,
    #[serde(rename = "MagicDNSSuffix")]
    pub magic_dns_suffix: String,
    pub current_tailnet: Option<CurrentTailnet>,
    pub cert_domains: Option<Vec<String>>,
    pub peer: BTreeMap<String, PeerStatus>,
    pub user: BTreeMap<String, UserProfile>,
    pub client_version: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_node_status: Option<ExitNodeStatus>,
    /// Last error towards the server, for `up` and `status`. Our own member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
    /// Address of the server. Our own member.
    #[serde(default, rename = "ControlURL")]
    pub control_url: String,
    /// That the map in use was kept on disk, since the server is away. Our own member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_map: Option<KeptMap>,
}

/// Names the exit node in use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(missing_docs, reason = "the names are the official ones")]
pub struct ExitNodeStatus {
    #[serde(rename = "ID")]
    pub id: String,
    pub online: bool,
    #[serde(rename = "TailscaleIPs")]
    pub tailscale_ips: Vec<IpNet>,
}

/// Says how old a map is that was kept on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct KeptMap {
    /// When the server was last heard, by its clock.
    pub heard: String,
    /// How long ago that is, in seconds.
    pub age_seconds: u64,
}

/// Names the tailnet that the node is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(missing_docs, reason = "the names are the official ones")]
pub struct CurrentTailnet {
    pub name: String,
    #[serde(rename = "MagicDNSSuffix")]
    pub magic_dns_suffix: String,
    #[serde(rename = "MagicDNSEnabled")]
    pub magic_dns_enabled: bool,
}

/// Shows one node in `status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(missing_docs, reason = "the names are the official ones")]
pub struct PeerStatus {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(rename = "NodeID", default)]
    pub node_id: i64,
    pub public_key: String,
    pub host_name: String,
    #[serde(rename = "DNSName")]
    pub dns_name: String,
    #[serde(rename = "OS")]
    pub os: String,
    #[serde(rename = "UserID")]
    pub user_id: i64,
    #[serde(rename = "TailscaleIPs")]
    pub tailscale_ips: Vec<IpAddr>,
    #[serde(rename = "AllowedIPs", default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_ips: Vec<IpNet>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub primary_routes: Vec<IpNet>,
    pub addrs: Vec<String>,
    pub cur_addr: String,
    pub relay: String,
    pub peer_relay: String,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub created: String,
    pub last_write: String,
    pub last_seen: String,
    pub last_handshake: String,
    pub online: bool,
    pub exit_node: bool,
    pub exit_node_option: bool,
    pub active: bool,
    #[serde(rename = "PeerAPIURL")]
    pub peer_api_url: Vec<String>,
    pub taildrop_target: i64,
    pub no_file_sharing_reason: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cap_map: BTreeMap<String, Value>,
    pub in_network_map: bool,
    pub in_magic_sock: bool,
    pub in_engine: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub expired: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_expiry: Option<String>,
    /// The largest IP packet that is proved to get through to the direct address, in bytes. Our own member.
    #[serde(default, rename = "PathMTU", skip_serializing_if = "Option::is_none")]
    pub path_mtu: Option<u16>,
    /// Why the path is what it is. Our own member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_reason: Option<String>,
}

/// Names a user.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(missing_docs, reason = "the names are the official ones")]
pub struct UserProfile {
    #[serde(rename = "ID")]
    pub id: i64,
    pub login_name: String,
    pub display_name: String,
    #[serde(rename = "ProfilePicURL", default)]
    pub profile_pic_url: String,
}

/// Is the answer to `GET whois`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct WhoIs {
    /// The node, as the server described it.
    pub node: Box<RawValue>,
    /// Its owner.
    pub user_profile: UserProfile,
    /// What the policy lets it do here beyond packets.
    pub cap_map: BTreeMap<String, Vec<Value>>,
}

/// Is the answer to `POST ping`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(missing_docs, reason = "the names are the official ones")]
pub struct PingResult {
    #[serde(rename = "IP")]
    pub ip: String,
    #[serde(rename = "NodeIP")]
    pub node_ip: String,
    pub node_name: String,
    pub err: String,
    pub latency_seconds: f64,
    pub endpoint: String,
    pub peer_relay: String,
    #[serde(rename = "DERPRegionID")]
    pub derp_region_id: i64,
    #[serde(rename = "DERPRegionCode")]
    pub derp_region_code: String,
    #[serde(rename = "IsLocalIP", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_local_ip: bool,
}

/// Is the body of `POST start`.
#[derive(Deserialize, Serialize, Default)]
#[serde(default, rename_all = "PascalCase")]
pub struct StartOptions {
    /// Auth key to register with.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub auth_key: String,
    /// Masked preferences to apply first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_prefs: Option<Value>,
}

impl std::fmt::Debug for StartOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StartOptions").field("update_prefs", &self.update_prefs).finish_non_exhaustive()
    }
}

/// Is one line of the bus: what changed since the last line.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Notify {
    /// Version of the daemon; only in the first line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Number of the state (see [`State`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<u8>,
    /// Settings, only in the first line and if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefs: Option<Prefs>,
    /// A login is under way. Our own member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logging_in: Option<bool>,
    /// A login has succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login_finished: Option<LoginFinished>,
    /// Page where a person must log in; shown only to callers who may log in.
    #[serde(default, rename = "BrowseToURL", skip_serializing_if = "Option::is_none")]
    pub browse_to_url: Option<String>,
    /// What went wrong, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub err_message: Option<String>,
    /// The same for programs. Our own member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
}

/// Has no members; that it is there says everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginFinished {}

/// Says what went wrong between this node and its server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Trouble {
    /// Kind of the failure.
    pub kind: TroubleKind,
    /// One line that says what to do.
    pub text: String,
    /// How many attempts failed in a row.
    pub attempts: u32,
}

/// Sorts failures by what the user can do about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum TroubleKind {
    /// The server cannot be reached.
    Unreachable,
    /// The server is not the one whose key was pinned, or no pin was given where one is needed.
    ServerKey,
    /// The server refused the registration (auth key wrong, expired, revoked…).
    Refused,
    /// The clock of this machine is wrong.
    Clock,
    /// The server does not speak the protocol, or has no room.
    Server,
    /// This machine: disk, interface.
    Local,
}

/// Says how far the node has come.
///
/// Source: Tailscale `ipn/backend.go`, `State`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum State {
    /// Just started.
    #[default]
    NoState,
    /// Somebody must log in.
    NeedsLogin,
    /// An administrator must approve the machine.
    NeedsMachineAuth,
    /// The user wants it down.
    Stopped,
    /// On the way up.
    Starting,
    /// On the tailnet.
    Running,
}

impl State {
    /// Returns the number that stands for the state on the bus.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::NoState => 0,
            Self::NeedsLogin => 2,
            Self::NeedsMachineAuth => 3,
            Self::Stopped => 4,
            Self::Starting => 5,
            Self::Running => 6,
        }
    }

    /// Returns the state that a number on the bus stands for.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::NoState, Self::NeedsLogin, Self::NeedsMachineAuth, Self::Stopped, Self::Starting, Self::Running]
            .into_iter()
            .find(|state| state.number() == number)
    }

    /// Returns the name that stands in `Status.BackendState`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoState => "NoState",
            Self::NeedsLogin => "NeedsLogin",
            Self::NeedsMachineAuth => "NeedsMachineAuth",
            Self::Stopped => "Stopped",
            Self::Starting => "Starting",
            Self::Running => "Running",
        }
    }
}
