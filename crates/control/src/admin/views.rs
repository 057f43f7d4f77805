//! What administration shows; the field names are a contract with scripts.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use warren_wire::key::{MachineKey, NodeKey};

use crate::auth_key::KeyText;
use crate::model::{CredentialKind, KeyLifetime, MachineProof, Unconfirmed};

/// A tailnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TailnetView {
    /// Number.
    pub id: i64,
    /// Name.
    pub name: String,
    /// Domain of its nodes' names.
    pub domain: String,
    /// When it was made.
    pub created: Timestamp,
    /// Whether new nodes wait for approval.
    pub machine_approval: bool,
    /// Whether enrolled machines alone take part.
    #[serde(default)]
    pub only_enrolled: bool,
    /// Whether nodes write down their connections.
    #[serde(default)]
    pub flow_log: bool,
    /// Number of enrolled machines.
    #[serde(default)]
    pub enrolled: usize,
    /// Number of nodes that take no part since their machines are not enrolled.
    #[serde(default)]
    pub barred: usize,
    /// How long the keys of users' nodes are valid after a login.
    pub key_lifetime: KeyLifetime,
    /// Number of users.
    pub users: usize,
    /// Number of nodes.
    pub nodes: usize,
    /// Number of nodes that are connected.
    pub online: usize,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserView {
    /// Number.
    pub id: i64,
    /// Name of the tailnet.
    pub tailnet: String,
    /// Login name.
    pub login: String,
    /// Name to show.
    pub display_name: String,
    /// What they may do to the tailnet: `owner`, `admin`, `it-admin`, `network-admin`, `billing-admin`, `auditor` or
    /// `member`.
    pub role: String,
    /// Whether they are locked out.
    #[serde(default)]
    pub suspended: bool,
    /// When it was made.
    pub created: Timestamp,
    /// Number of nodes.
    pub nodes: usize,
    /// Whether one of them is connected.
    #[serde(default)]
    pub online: bool,
    /// When one of them was last known to be connected; while one is, the time may be older.
    #[serde(default)]
    pub last_seen: Option<Timestamp>,
}

/// A credential of the API, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialView {
    /// Public part.
    pub id: String,
    /// Name of the tailnet.
    pub tailnet: String,
    /// What it is: `api-key` or `oauth-client`.
    pub kind: CredentialKind,
    /// Number of the user whose rights it has, or who made it.
    pub user_id: Option<i64>,
    /// Login name of that user; absent if there is none any more.
    pub user: Option<String>,
    /// Scopes; an API key without any has all rights of its user.
    pub scopes: Vec<String>,
    /// Tags that it may give.
    pub tags: Vec<String>,
    /// What it is for.
    pub description: String,
    /// When it was made.
    pub created: Timestamp,
    /// When it stops working.
    pub expires: Option<Timestamp>,
    /// When it was taken back.
    pub revoked: Option<Timestamp>,
    /// Whether it works now.
    pub valid: bool,
}

/// An auth key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthKeyView {
    /// Public part.
    pub id: String,
    /// Name of the tailnet.
    pub tailnet: String,
    /// Login name of the owner of its nodes; absent for tagged nodes.
    pub user: Option<String>,
    /// Tags of its nodes.
    pub tags: Vec<String>,
    /// Whether it may be used more than once.
    pub reusable: bool,
    /// Whether its nodes are ephemeral.
    pub ephemeral: bool,
    /// Whether its nodes need no approval.
    pub pre_approved: bool,
    /// When it was made.
    pub created: Timestamp,
    /// When it stops working.
    pub expires: Option<Timestamp>,
    /// Whether it was taken back.
    pub revoked: bool,
    /// How often it was used.
    pub used: u64,
    /// What it is for; may be empty.
    #[serde(default)]
    pub description: String,
    /// Number of the user who made it, if one did.
    #[serde(default)]
    pub made_by: Option<i64>,
    /// Whether it lets a node in now.
    pub valid: bool,
}

/// An auth key that was just made, and the only time that its text is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedAuthKey {
    /// The key.
    pub view: AuthKeyView,
    /// Its text.
    pub text: KeyText,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Number.
    pub id: i64,
    /// Stable ID, as clients know it.
    pub stable_id: String,
    /// First label of its name.
    pub name: String,
    /// Full name, without a dot at its end.
    pub fqdn: String,
    /// Name of the tailnet.
    pub tailnet: String,
    /// Login name of its owner; absent if it is tagged.
    pub user: Option<String>,
    /// Tags.
    pub tags: Vec<String>,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Routes that it offers.
    pub offered_routes: Vec<IpNet>,
    /// Routes that it may carry if it offers them.
    pub approved_routes: Vec<IpNet>,
    /// Machine key.
    pub machine_key: MachineKey,
    /// Node key.
    pub node_key: NodeKey,
    /// When it was made.
    pub created: Timestamp,
    /// When its key's time ends; absent means never.
    pub key_expiry: Option<Timestamp>,
    /// Whether that time is over.
    pub expired: bool,
    /// Whether an administrator said that its key never expires.
    #[serde(default)]
    pub key_expiry_disabled: bool,
    /// Whether it may take part.
    pub approved: bool,
    /// Whether it takes no part because its owner is suspended.
    #[serde(default)]
    pub suspended: bool,
    /// Whether it takes no part since its machine is not enrolled.
    #[serde(default)]
    pub barred: bool,
    /// Whether it is removed after it has been away for a while.
    pub ephemeral: bool,
    /// Whether it is connected.
    pub online: bool,
    /// When it was last connected; absent while it is, and before the first time.
    pub last_seen: Option<Timestamp>,
    /// Auth key that let it in.
    pub auth_key: Option<String>,
    /// Operating system.
    pub os: String,
    /// Version of its client.
    pub client_version: String,
    /// Capability version of its client.
    pub capability_version: u16,
    /// Host name that it reports.
    pub hostname: String,
    /// UDP candidates.
    pub endpoints: Vec<SocketAddr>,
    /// Home relay region.
    pub home_relay: Option<u16>,
}

/// A machine that an administrator enrolled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineView {
    /// Its key.
    pub key: MachineKey,
    /// Name of the tailnet.
    pub tailnet: String,
    /// What it is; may be empty.
    pub description: String,
    /// When it was enrolled.
    pub enrolled: Timestamp,
    /// The certificate that enrolled it, if one did, and not an administrator.
    #[serde(default)]
    pub proof: Option<MachineProof>,
    /// When an administrator ended its enrolment; it is not enrolled then.
    #[serde(default)]
    pub ended: Option<Timestamp>,
    /// Full names of its nodes; none if it has not joined.
    pub nodes: Vec<String>,
}

/// An authority whose certificates enrol machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineCaView {
    /// The first 16 hex digits of the SHA-256 of its certificate.
    pub id: String,
    /// Name of the tailnet.
    pub tailnet: String,
    /// What it is; may be empty.
    pub description: String,
    /// When it was enrolled.
    pub enrolled: Timestamp,
    /// When its certificate ends.
    pub until: Timestamp,
    /// Serial numbers of certificates that were taken back.
    pub revoked: Vec<String>,
    /// How many machines are enrolled by its certificates.
    pub machines: usize,
}

/// A login that waits for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginView {
    /// The random part of its URL.
    pub id: String,
    /// URL that the client shows.
    pub url: String,
    /// Host name of the machine.
    pub hostname: String,
    /// Operating system of the machine.
    pub os: String,
    /// Machine key.
    pub machine_key: MachineKey,
    /// Node key.
    pub node_key: NodeKey,
    /// Address that the request came from.
    pub from: IpAddr,
    /// Tailnet that the client asks for.
    pub tailnet_hint: Option<String>,
    /// Tags that the client asks for.
    pub requested_tags: Vec<String>,
    /// Who logged in, confirmed it, and waits for an administrator.
    #[serde(default)]
    pub person: Option<PersonView>,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends by itself.
    pub expires: Timestamp,
    /// Where it stands.
    pub state: LoginState,
}

/// Somebody whom an identity provider vouches for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersonView {
    /// Login name that they get.
    pub login: String,
    /// Name to show.
    pub name: String,
    /// The provider.
    pub issuer: String,
    /// The person within it.
    pub subject: String,
}

/// Where a login stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoginState {
    /// Nobody has decided.
    Waiting,
    /// It was approved.
    Approved,
    /// It was rejected.
    Rejected,
}

/// A version of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyView {
    /// Name of the tailnet.
    pub tailnet: String,
    /// Number of the version, from 1 on.
    pub version: u64,
    /// What a change can say that it builds on: the SHA-256 of the text in hex, or `ts-default` of the first version.
    pub etag: String,
    /// When it was set, RFC 3339; empty if nobody knows any more.
    pub at: String,
    /// Who set it, as the audit log names them; empty if nobody knows any more.
    pub author: String,
    /// Why; may be empty.
    pub reason: String,
    /// Whether it is the one in force.
    pub in_force: bool,
    /// When it is undone by itself; absent if it stays.
    pub unconfirmed: Option<Unconfirmed>,
    /// Who gains and who loses what against the policy before, one line each; only in the answer to a change, and not in
    /// very large tailnets.
    pub difference: Option<Vec<String>>,
    /// Text, as it was set.
    pub text: String,
}

/// A version of a policy, without its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyVersionView {
    /// As [`PolicyView::version`].
    pub version: u64,
    /// As [`PolicyView::etag`].
    pub etag: String,
    /// As [`PolicyView::at`].
    pub at: String,
    /// As [`PolicyView::author`].
    pub author: String,
    /// As [`PolicyView::reason`].
    pub reason: String,
    /// Length of the text.
    pub bytes: usize,
    /// Whether it is the one in force.
    pub in_force: bool,
}

/// All attributes of a node that policies can look at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttributesView {
    /// Full name of the node.
    pub node: String,
    /// Texts, numbers, true and false by name: `node:…` are reported, `custom:…` are given.
    pub attributes: BTreeMap<String, Value>,
}
