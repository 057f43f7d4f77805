//! The records that the server keeps.

pub(crate) mod attributes;
mod credential;
mod dns;
mod machine;
pub(crate) mod role;

pub use credential::{CredentialKind, CredentialRecord};
pub use dns::{DnsSettings, Nameserver};
pub use machine::{MachineCaRecord, MachineProof, MachineRecord};

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use warren_policy::{Attributes, Role};
use warren_wire::control::{Hostinfo, NodeId, RegionId, UserId};
use warren_wire::key::{DiscoKey, MachineKey, NodeKey};

/// Number of a tailnet; unique in the server and never given again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TailnetId(pub i64);

impl fmt::Display for TailnetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who makes a change, as the audit log names them: `cli:uid=0`, `node:n12`, `server`; and by what, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    name: String,
    credential: Option<String>,
    from: Option<IpAddr>,
}

impl Who {
    /// Names a process on this machine by the user ID that the kernel told.
    #[must_use]
    pub fn local_user(uid: u32) -> Self {
        Self::named(format!("cli:uid={uid}"))
    }

    /// Names a machine by its key.
    #[must_use]
    pub fn machine(key: &MachineKey) -> Self {
        Self::named(format!("machine:{}", key.to_hex()))
    }

    /// Names a person by the login name of their user.
    #[must_use]
    pub fn user(login: &str) -> Self {
        Self::named(format!("user:{login}"))
    }

    /// Names the server itself.
    #[must_use]
    pub fn server() -> Self {
        Self::named("server".to_owned())
    }

    /// Names an OAuth client by its ID.
    #[must_use]
    pub fn client(id: &str) -> Self {
        Self::named(format!("client:{id}"))
    }

    /// Adds the ID of the credential that was shown, and the address of whoever showed it.
    #[must_use]
    pub fn by(self, credential: &str, from: IpAddr) -> Self {
        Self { credential: Some(credential.to_owned()), from: Some(from), ..self }
    }

    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// Returns the ID of the credential, if one was shown.
    #[must_use]
    pub fn credential(&self) -> Option<&str> {
        self.credential.as_deref()
    }

    /// Returns the address that the call came from, if it came over the network.
    #[must_use]
    pub fn from(&self) -> Option<IpAddr> {
        self.from
    }

    fn named(name: String) -> Self {
        Self { name, credential: None, from: None }
    }
}

/// One isolated network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TailnetRecord {
    /// Number.
    pub id: TailnetId,
    /// Name: one DNS label, also part of the names of its nodes.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// Whether a new node waits until an administrator approves it.
    pub machine_approval: bool,
    /// Whether enrolled machines alone take part, whatever lets others in.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_enrolled: bool,
    /// Whether nodes of this program write down their connections, for the collector of this server.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub flow_log: bool,
    /// How long the key of a user's node is valid.
    #[serde(default)]
    pub key_lifetime: KeyLifetime,
    /// Names and resolvers that nodes are told of.
    #[serde(default)]
    pub dns: DnsSettings,
    /// Version of the policy in force.
    pub policy_version: u64,
    /// Says that the policy in force is undone unless somebody confirms it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed: Option<Unconfirmed>,
}

/// How long the key of a user's node is valid after a login. Those of tagged nodes never expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyLifetime {
    /// So many seconds, from [`Self::LEAST`] to [`Self::MOST`].
    Seconds(u64),
    /// For ever.
    Never,
}

impl KeyLifetime {
    /// An hour: shorter, and machines would be out before a person is back from lunch.
    pub const LEAST: u64 = 3600;
    /// Ten years.
    pub const MOST: u64 = 10 * 366 * 86_400;

    /// Returns when a key ends that becomes valid at `now`; `None` means never.
    pub(crate) fn end(self, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Seconds(seconds) => now.checked_add(Duration::from_secs(seconds.min(Self::MOST))).ok(),
            Self::Never => None,
        }
    }
}

impl Default for KeyLifetime {
    /// 180 days, as clients' users know it.
    fn default() -> Self {
        Self::Seconds(180 * 86_400)
    }
}

/// What happens to a policy that nobody confirms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unconfirmed {
    /// When it is undone.
    pub until: Timestamp,
    /// Version whose text is in force again then.
    pub back_to: u64,
}

/// Who somebody is, by the word of an identity provider; nothing else identifies a person.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UserIdentity {
    /// The provider.
    pub issuer: String,
    /// The person within it.
    pub subject: String,
}

/// A person who owns nodes of a tailnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRecord {
    /// Number, unique in the server.
    pub id: UserId,
    /// Tailnet.
    pub tailnet: TailnetId,
    /// Login name, such as `ann@example.com`; unique in the tailnet.
    pub login: String,
    /// Name to show.
    pub display_name: String,
    /// What they may do to the tailnet.
    #[serde(default, with = "role")]
    pub role: Role,
    /// Who it is; absent for a user whom an administrator made and who never logged in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<UserIdentity>,
    /// Whether an administrator locked them out, with all that is theirs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspended: bool,
    /// When it was made.
    pub created: Timestamp,
}

/// How many tags a node may have.
pub(crate) const TAGS_MAX: usize = 64;

/// How many routes a node may offer, and how many may be approved.
pub(crate) const ROUTES_MAX: usize = 1024;

/// Returns the two default routes, which make an exit node.
pub(crate) fn exit_routes() -> [IpNet; 2] {
    [IpNet::from(Ipv4Net::default()), IpNet::from(Ipv6Net::default())]
}

/// Owner of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// A user.
    User(UserId),
    /// No user: the node's tags say what it is.
    Tagged,
}

/// What lasts about a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Number, unique in the server and never given again.
    pub id: NodeId,
    /// Tailnet.
    pub tailnet: TailnetId,
    /// Owner.
    pub owner: Owner,
    /// Tags with their `tag:` prefix, sorted; empty unless the owner is [`Owner::Tagged`].
    pub tags: Vec<String>,
    /// Key of the machine, to which alone the node answers.
    pub machine: MachineKey,
    /// Node key.
    pub key: NodeKey,
    /// When the node key stops being valid; `None` means never.
    pub key_expiry: Option<Timestamp>,
    /// Whether an administrator said that its key never expires, which a login does not change.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub key_expiry_disabled: bool,
    /// First label of the node's name.
    pub name: String,
    /// Whether an administrator chose the name, so that it does not follow the host name.
    pub name_chosen: bool,
    /// Address in 100.64.0.0/10.
    pub ipv4: Ipv4Addr,
    /// When it was made.
    pub created: Timestamp,
    /// Whether it may take part, where machines need approval.
    pub approved: bool,
    /// Whether it takes no part because its owner is suspended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspended: bool,
    /// Whether it is removed when it has been away for a while.
    pub ephemeral: bool,
    /// ID of the auth key that let it in, if one did.
    pub auth_key: Option<String>,
    /// Routes that it may carry if it offers them, without host bits, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approved_routes: Vec<IpNet>,
    /// Attributes that administrators gave it; their names begin with `custom:`.
    #[serde(default, with = "attributes", skip_serializing_if = "Attributes::is_empty")]
    pub attributes: Attributes,
    /// Key with which the node signs its flow log (`logkey:` and 64 hex digits), once it has proved to have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_key: Option<String>,
}

impl NodeRecord {
    /// Returns the stable ID that clients know: unique for ever.
    #[must_use]
    pub fn stable_id(&self) -> String {
        format!("n{}", self.id.0)
    }

    /// Returns the address in fd7a:115c:a1e0::/48, whose last 32 bits are the IPv4 address.
    #[must_use]
    pub fn ipv6(&self) -> Ipv6Addr {
        let [a, b, c, d] = self.ipv4.octets();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, high, low)
    }

    /// Tells whether administrators let it take part.
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        self.approved && !self.suspended
    }

    /// Tells whether a route that the node offers was approved.
    #[must_use]
    pub fn approves(&self, route: &IpNet) -> bool {
        self.approved_routes.binary_search(route).is_ok()
    }

    /// Tells whether the node key is past its time at `now`.
    #[must_use]
    pub fn expired_at(&self, now: Timestamp) -> bool {
        self.key_expiry.is_some_and(|expiry| expiry <= now)
    }
}

/// What a node last reported and its peers need to reach it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct NodeState {
    /// Disco key.
    pub disco: Option<DiscoKey>,
    /// UDP candidates.
    pub endpoints: Vec<SocketAddr>,
    /// Home relay region.
    pub home: Option<RegionId>,
    /// What it says about itself.
    pub hostinfo: Option<Hostinfo>,
    /// Capability version of its client.
    pub cap: u16,
    /// When it was last known to be connected; while it is, the time may be older. `None` before the first time.
    pub last_seen: Option<Timestamp>,
    /// When the node, being ephemeral, is removed unless it connects; `None` while it is connected.
    #[serde(skip)]
    pub lease_until: Option<Timestamp>,
}

impl NodeState {
    /// Returns the routes that the node offers, without host bits.
    pub fn offered_routes(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.hostinfo.iter().flat_map(|info| &info.routable_ips).map(IpNet::trunc)
    }
}

/// What is known of an auth key; the secret half is nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthKeyRecord {
    /// The part of the key that is no secret.
    pub id: String,
    /// Tailnet that nodes join with it.
    pub tailnet: TailnetId,
    /// Owner of the nodes.
    pub owner: Owner,
    /// Tags of the nodes, sorted; not empty if and only if the owner is [`Owner::Tagged`].
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
    /// Whether an administrator took it back.
    pub revoked: bool,
    /// What it is for, in the words of whoever made it; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// User who made it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_by: Option<UserId>,
    /// How often it was used.
    #[serde(default)]
    pub used: u64,
}
