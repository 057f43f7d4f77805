//! The map: `POST /machine/map`. Source: Tailscale `tailcfg`, `MapRequest` and `MapResponse`.

use super::json::{is_default, lossy, lossy_list, lossy_optional_list, places, real_key, reread, sound_entries};
use super::{
    Blob, CapMap, CapabilityVersion, DerpMap, DnsConfig, EndpointType, FilterRule, Hostinfo, Node, NodeId, PingRequest,
    RULES_END, RegionId, SshPolicy, Time, UserProfile,
};
use crate::key::{DiscoKey, NodeKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// What a client sends to follow the map, or to tell its state.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MapRequest {
    /// Capability version of the client.
    #[serde(default)]
    pub version: CapabilityVersion,
    /// `zstd` or empty.
    #[serde(default, skip_serializing_if = "is_default")]
    pub compress: String,
    /// Whether keep-alives are wanted.
    #[serde(default, skip_serializing_if = "is_default")]
    pub keep_alive: bool,
    /// Node key of the client. Never zero.
    #[serde(deserialize_with = "real_key")]
    pub node_key: NodeKey,
    /// Disco key of the client.
    #[serde(default, with = "crate::key::zero_as_none")]
    pub disco_key: Option<DiscoKey>,
    /// Key of hardware attestation, `hwattestpub:…`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub hardware_attestation_key: String,
    /// Its signature of the node key.
    #[serde(default, skip_serializing_if = "is_default")]
    pub hardware_attestation_key_signature: Blob,
    /// When that was made.
    #[serde(default, with = "super::time::zero_as_none", skip_serializing_if = "is_default")]
    pub hardware_attestation_key_signature_timestamp: Option<Time>,
    /// Whether the answer stays open.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stream: bool,
    /// What the client says of its machine.
    #[serde(default, deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub hostinfo: Option<Hostinfo>,
    /// Session to resume.
    #[serde(default, skip_serializing_if = "is_default")]
    pub map_session_handle: String,
    /// Last message seen of that session.
    #[serde(default, skip_serializing_if = "is_default")]
    pub map_session_seq: i64,
    /// Where the client may be reached; see [`Self::usable_endpoints`]. A malformed entry reads as `0.0.0.0:0`.
    #[serde(default, deserialize_with = "endpoints_in_place", skip_serializing_if = "is_default")]
    pub endpoints: Vec<SocketAddr>,
    /// How it learned each of [`Self::endpoints`].
    #[serde(default, deserialize_with = "kinds_in_place", skip_serializing_if = "is_default")]
    pub endpoint_types: Vec<EndpointType>,
    /// Head of the tailnet lock that the client holds.
    #[serde(rename = "TKAHead", default, skip_serializing_if = "is_default")]
    pub tka_head: String,
    /// Obsolete: reads without a side effect.
    #[serde(default, skip_serializing_if = "is_default")]
    pub read_only: bool,
    /// Whether peers are not wanted.
    #[serde(default, skip_serializing_if = "is_default")]
    pub omit_peers: bool,
    /// Hints, among them [`RULES_END`].
    #[serde(default, deserialize_with = "lossy_list", skip_serializing_if = "is_default")]
    pub debug_flags: Vec<String>,
    /// Ignored.
    #[serde(default, skip_serializing_if = "is_default")]
    pub connection_handle_for_test: String,
}

/// The four things that a map request can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MapRequestKind {
    /// A full map, then changes for ever; changes nothing but the online state.
    Poll,
    /// Tells the client's state; the answer's body is not read.
    Update,
    /// One complete map.
    Fetch,
    /// One complete map, without any side effect.
    ReadOnlyFetch,
}

impl MapRequest {
    /// Tells what is asked for.
    #[must_use]
    pub fn kind(&self) -> MapRequestKind {
        match (self.stream, self.omit_peers, self.read_only) {
            (true, _, _) => MapRequestKind::Poll,
            (false, true, false) => MapRequestKind::Update,
            (false, true, true) => MapRequestKind::ReadOnlyFetch,
            (false, false, _) => MapRequestKind::Fetch,
        }
    }

    /// Tells whether the client ends rules by [`FilterRule::until`] itself.
    #[must_use]
    pub fn ends_rules(&self) -> bool {
        self.debug_flags.iter().any(|flag| flag == RULES_END)
    }

    /// Returns the endpoints that peers can use, with their kinds: no link-local, unspecified, multicast, broadcast or malformed ones.
    pub fn usable_endpoints(&self) -> impl Iterator<Item = (SocketAddr, EndpointType)> + '_ {
        let kinds = self.endpoint_types.iter().copied().chain(std::iter::repeat(EndpointType::Unknown));
        self.endpoints.iter().copied().zip(kinds).filter(|(endpoint, _)| is_usable(*endpoint))
    }
}

fn is_usable(endpoint: SocketAddr) -> bool {
    let address = endpoint.ip().to_canonical();
    let link_local = match (endpoint, address) {
        (_, IpAddr::V4(_)) => false,
        (SocketAddr::V6(v6), IpAddr::V6(address)) => address.is_unicast_link_local() || v6.scope_id() != 0,
        (SocketAddr::V4(_), IpAddr::V6(_)) => false,
    };
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    endpoint.port() != 0 && !address.is_unspecified() && !address.is_multicast() && !link_local && !broadcast
}

/// Reads endpoints; a malformed one (a zone by name, for instance) keeps its place, since the kinds go by position.
fn endpoints_in_place<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<SocketAddr>, D::Error> {
    let unusable = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    places(from, |entry| reread::<SocketAddr>(entry).unwrap_or(unusable))
}

fn kinds_in_place<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<EndpointType>, D::Error> {
    places(from, |entry| reread(entry).unwrap_or_default())
}

/// Reads chunks of the filter, each without its malformed rules; as rules only allow, less is safe.
fn chunks<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, Option<Vec<FilterRule>>>, D::Error> {
    let chunks = BTreeMap::<String, Option<Rules>>::deserialize(from)?;
    Ok(chunks.into_iter().map(|(name, rules)| (name, rules.map(|rules| rules.0))).collect())
}

fn optional_rules<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<FilterRule>>, D::Error> {
    Ok(Option::<Rules>::deserialize(from)?.map(|rules| rules.0))
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Rules(#[serde(deserialize_with = "sound_entries")] Vec<FilterRule>);

/// One message of a map stream. An absent field is unchanged; in the first message it is empty.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct MapResponse {
    /// Name of the session; first message only.
    #[serde(skip_serializing_if = "is_default")]
    pub map_session_handle: String,
    /// Number of the message in its session.
    #[serde(skip_serializing_if = "is_default")]
    pub seq: i64,
    /// Says only that the server lives.
    #[serde(skip_serializing_if = "is_default")]
    pub keep_alive: bool,
    /// Asks the client to do something and report.
    #[serde(skip_serializing_if = "is_default")]
    pub ping_request: Option<PingRequest>,
    /// Page to open.
    #[serde(rename = "PopBrowserURL", skip_serializing_if = "is_default")]
    pub pop_browser_url: String,
    /// The receiver itself; must be in the first message that is no keep-alive.
    #[serde(skip_serializing_if = "is_default")]
    pub node: Option<Box<Node>>,
    /// Relays.
    #[serde(rename = "DERPMap", skip_serializing_if = "is_default")]
    pub derp_map: Option<DerpMap>,
    /// Complete list of peers, by number, without malformed ones. Empty is unchanged and is never written.
    #[serde(deserialize_with = "sound_entries", skip_serializing_if = "is_default")]
    pub peers: Vec<Node>,
    /// New or changed peers, complete, without malformed ones.
    #[serde(deserialize_with = "sound_entries", skip_serializing_if = "is_default")]
    pub peers_changed: Vec<Node>,
    /// Peers that went.
    #[serde(skip_serializing_if = "is_default")]
    pub peers_removed: Vec<NodeId>,
    /// Changed parts of peers.
    #[serde(skip_serializing_if = "is_default")]
    pub peers_changed_patch: Vec<PeerChange>,
    /// True: last seen now. False: last seen forgotten.
    #[serde(skip_serializing_if = "is_default")]
    pub peer_seen_change: BTreeMap<NodeId, bool>,
    /// New online states.
    #[serde(skip_serializing_if = "is_default")]
    pub online_change: BTreeMap<NodeId, bool>,
    /// Names and resolvers.
    #[serde(rename = "DNSConfig", skip_serializing_if = "is_default")]
    pub dns_config: Option<DnsConfig>,
    /// Name of the tailnet.
    #[serde(skip_serializing_if = "is_default")]
    pub domain: String,
    /// Whether the client should list its services.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub collect_services: Option<bool>,
    /// The filter's chunk `base`, without malformed rules; empty blocks everything.
    #[serde(deserialize_with = "optional_rules", skip_serializing_if = "is_default")]
    pub packet_filter: Option<Vec<FilterRule>>,
    /// Named chunks of the filter; `None` deletes one, `"*"` with `None` deletes all first.
    #[serde(deserialize_with = "chunks", skip_serializing_if = "is_default")]
    pub packet_filters: BTreeMap<String, Option<Vec<FilterRule>>>,
    /// Users, added or replaced.
    #[serde(deserialize_with = "sound_entries", skip_serializing_if = "is_default")]
    pub user_profiles: Vec<UserProfile>,
    /// Complaints to show; empty clears.
    #[serde(skip_serializing_if = "is_default")]
    pub health: Option<Vec<String>>,
    /// Messages to show; `None` deletes one, `"*"` with `None` deletes all first.
    #[serde(skip_serializing_if = "is_default")]
    pub display_messages: BTreeMap<String, Option<DisplayMessage>>,
    /// Who may log in over SSH.
    #[serde(rename = "SSHPolicy", skip_serializing_if = "is_default")]
    pub ssh_policy: Option<SshPolicy>,
    /// The server's clock.
    #[serde(with = "super::time::zero_as_none", skip_serializing_if = "is_default")]
    pub control_time: Option<Time>,
    /// State of the tailnet lock.
    #[serde(rename = "TKAInfo", skip_serializing_if = "is_default")]
    pub tka_info: Option<TkaInfo>,
    /// Name of the tailnet in flow logs.
    #[serde(rename = "DomainDataPlaneAuditLogID", skip_serializing_if = "is_default")]
    pub domain_data_plane_audit_log_id: String,
    /// Orders for debugging.
    #[serde(skip_serializing_if = "is_default")]
    pub debug: Option<Debug>,
    /// Other ways to the server.
    #[serde(skip_serializing_if = "is_default")]
    pub control_dial_plan: Option<ControlDialPlan>,
    /// News about client versions.
    #[serde(skip_serializing_if = "is_default")]
    pub client_version: Option<ClientVersion>,
    /// Whether the client should update itself by default.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub default_auto_update: Option<bool>,
    /// Warren's own, which other clients ignore: whether the server takes flow logs of this tailnet's nodes. Sent first, and
    /// when it changes; servers of others never say.
    #[serde(rename = "WarrenFlowLog", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub flow_log: Option<bool>,
}

/// Changed parts of a peer; all but the number may be absent, which is unchanged.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PeerChange {
    /// Which peer; unknown ones are ignored.
    #[serde(rename = "NodeID")]
    pub node_id: NodeId,
    /// New home region; zero is unchanged.
    #[serde(rename = "DERPRegion", skip_serializing_if = "is_default")]
    pub derp_region: RegionId,
    /// New capability version; zero is unchanged.
    #[serde(skip_serializing_if = "is_default")]
    pub cap: CapabilityVersion,
    /// New capabilities, complete.
    #[serde(skip_serializing_if = "is_default")]
    pub cap_map: Option<CapMap>,
    /// New endpoints, complete; empty is none.
    #[serde(deserialize_with = "lossy_optional_list", skip_serializing_if = "is_default")]
    pub endpoints: Option<Vec<SocketAddr>>,
    /// New node key.
    #[serde(with = "crate::key::zero_as_none", skip_serializing_if = "is_default")]
    pub key: Option<NodeKey>,
    /// New tailnet-lock signature.
    #[serde(skip_serializing_if = "is_default")]
    pub key_signature: Option<Blob>,
    /// New disco key.
    #[serde(with = "crate::key::zero_as_none", skip_serializing_if = "is_default")]
    pub disco_key: Option<DiscoKey>,
    /// New online state.
    #[serde(skip_serializing_if = "is_default")]
    pub online: Option<bool>,
    /// When it was last connected to the server.
    #[serde(with = "super::time::zero_as_none", skip_serializing_if = "is_default")]
    pub last_seen: Option<Time>,
    /// New expiry of its key.
    #[serde(skip_serializing_if = "is_default")]
    pub key_expiry: Option<ExpiryChange>,
}

/// New expiry of a key; "never" is Go's zero time on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpiryChange {
    /// The key does not expire any more.
    Never,
    /// The key expires then.
    At(Time),
}

impl From<Option<Time>> for ExpiryChange {
    fn from(time: Option<Time>) -> Self {
        time.map_or(Self::Never, Self::At)
    }
}

impl From<ExpiryChange> for Option<Time> {
    fn from(change: ExpiryChange) -> Self {
        match change {
            ExpiryChange::Never => None,
            ExpiryChange::At(time) => Some(time),
        }
    }
}

impl Serialize for ExpiryChange {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        super::time::zero_as_none::serialize(&Option::from(*self), to)
    }
}

impl<'de> Deserialize<'de> for ExpiryChange {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        super::time::zero_as_none::deserialize(from).map(Self::from)
    }
}

/// A message to the user.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DisplayMessage {
    /// Title.
    pub title: String,
    /// Text.
    pub text: String,
    /// `high`, `medium` or `low`.
    pub severity: String,
    /// Whether it touches the connection.
    #[serde(skip_serializing_if = "is_default")]
    pub impacts_connectivity: bool,
    /// What the user can do.
    #[serde(skip_serializing_if = "is_default")]
    pub primary_action: Option<DisplayMessageAction>,
}

/// A link in a message.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DisplayMessageAction {
    /// Where it leads.
    #[serde(rename = "URL")]
    pub url: String,
    /// What it says.
    pub label: String,
}

/// State of the tailnet lock.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TkaInfo {
    /// Head, 52 characters.
    #[serde(skip_serializing_if = "is_default")]
    pub head: String,
    /// Whether it was turned off.
    #[serde(skip_serializing_if = "is_default")]
    pub disabled: bool,
}

/// Orders for debugging.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Debug {
    /// Seconds to sleep before going on; clients sleep five minutes at most.
    #[serde(skip_serializing_if = "is_default")]
    pub sleep_seconds: f64,
    /// Turns log upload off for the life of the process.
    #[serde(skip_serializing_if = "is_default")]
    pub disable_log_tail: bool,
    /// Ends the process with this code.
    #[serde(skip_serializing_if = "is_default")]
    pub exit: Option<i64>,
}

/// Other ways to the server; without candidates names are resolved.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ControlDialPlan {
    /// The ways.
    pub candidates: Vec<ControlIpCandidate>,
}

/// One way to the server.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ControlIpCandidate {
    /// Address. Older Go servers write none as an empty text.
    #[serde(rename = "IP", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub ip: Option<IpAddr>,
    /// Host of another kind of way.
    #[serde(rename = "ACEHost", skip_serializing_if = "is_default")]
    pub ace_host: String,
    /// Seconds to wait before trying.
    #[serde(skip_serializing_if = "is_default")]
    pub dial_start_delay_sec: f64,
    /// Seconds to try.
    #[serde(skip_serializing_if = "is_default")]
    pub dial_timeout_sec: f64,
    /// Higher is better.
    #[serde(skip_serializing_if = "is_default")]
    pub priority: i64,
}

/// News about client versions.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ClientVersion {
    /// Whether the client is the latest.
    #[serde(skip_serializing_if = "is_default")]
    pub running_latest: bool,
    /// The latest version.
    #[serde(skip_serializing_if = "is_default")]
    pub latest_version: String,
    /// Whether an update closes a hole.
    #[serde(skip_serializing_if = "is_default")]
    pub urgent_security_update: bool,
    /// Whether to tell the user.
    #[serde(skip_serializing_if = "is_default")]
    pub notify: bool,
    /// Where the notice leads.
    #[serde(rename = "NotifyURL", skip_serializing_if = "is_default")]
    pub notify_url: String,
    /// What the notice says.
    #[serde(skip_serializing_if = "is_default")]
    pub notify_text: String,
}
