//! A node of the map. Source: Tailscale `tailcfg`, `Node`.

use super::json::{is_default, lossy, lossy_list, lossy_optional_list, real_key};
use super::{Blob, CapMap, CapabilityVersion, Hostinfo, NodeId, RegionId, Resolver, Time, UserId};
use crate::key::{DiscoKey, MachineKey, NodeKey};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// A node as a map describes it: the receiver itself or one of its peers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Node {
    /// Number of the node.
    #[serde(rename = "ID")]
    pub id: NodeId,
    /// Opaque name that is unique for ever.
    #[serde(rename = "StableID", default)]
    pub stable_id: String,
    /// Full name with a trailing dot; the first label is the host.
    #[serde(default)]
    pub name: String,
    /// Owner; the map holds its profile.
    #[serde(default)]
    pub user: UserId,
    /// User who shared the node in.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sharer: UserId,
    /// Node key. Never zero.
    #[serde(deserialize_with = "real_key")]
    pub key: NodeKey,
    /// When the key expires; absent is never.
    #[serde(default, with = "super::time::zero_as_none", skip_serializing_if = "is_default")]
    pub key_expiry: Option<Time>,
    /// Tailnet-lock signature of the key.
    #[serde(default, skip_serializing_if = "is_default")]
    pub key_signature: Blob,
    /// Machine key; not sent for peers.
    #[serde(default, with = "crate::key::zero_as_none", skip_serializing_if = "is_default")]
    pub machine: Option<MachineKey>,
    /// Disco key; a peer without one is out of reach, unless it is plain WireGuard.
    #[serde(default, with = "crate::key::zero_as_none", skip_serializing_if = "is_default")]
    pub disco_key: Option<DiscoKey>,
    /// The node's own addresses: IPv4 first, then IPv6, each a host prefix.
    #[serde(default, deserialize_with = "lossy_list")]
    pub addresses: Vec<IpNet>,
    /// Addresses and routed prefixes; absent is the same as [`Self::addresses`], empty is nothing.
    #[serde(
        rename = "AllowedIPs",
        default,
        deserialize_with = "lossy_optional_list",
        skip_serializing_if = "is_default"
    )]
    pub allowed_ips: Option<Vec<IpNet>>,
    /// Where the node may be reached directly.
    #[serde(default, deserialize_with = "lossy_list", skip_serializing_if = "is_default")]
    pub endpoints: Vec<SocketAddr>,
    /// Home relay as an address, `127.3.3.40:<region>`, for clients before capability version 111.
    #[serde(rename = "DERP", default, skip_serializing_if = "is_default")]
    pub derp: String,
    /// Home region; zero is unknown.
    #[serde(rename = "HomeDERP", default, skip_serializing_if = "is_default")]
    pub home_derp: RegionId,
    /// What the node says of itself; peers see a part.
    #[serde(default, skip_serializing_if = "is_default")]
    pub hostinfo: Option<Hostinfo>,
    /// When the node joined.
    #[serde(default, with = "super::time::zero_as_none", skip_serializing_if = "is_default")]
    pub created: Option<Time>,
    /// Its capability version.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cap: CapabilityVersion,
    /// Its tags.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tags: Vec<String>,
    /// Subnet routes that it serves now.
    #[serde(default, deserialize_with = "lossy_list", skip_serializing_if = "is_default")]
    pub primary_routes: Vec<IpNet>,
    /// When it was last connected to the server; only while it is not.
    #[serde(default, with = "super::time::zero_as_none", skip_serializing_if = "is_default")]
    pub last_seen: Option<Time>,
    /// Whether it is connected to the server; absent is unknown.
    #[serde(default, deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub online: Option<bool>,
    /// Whether it may take part.
    #[serde(default, skip_serializing_if = "is_default")]
    pub machine_authorized: bool,
    /// Old form of capabilities without arguments.
    #[serde(default, skip_serializing_if = "is_default")]
    pub capabilities: Vec<String>,
    /// Capabilities.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cap_map: CapMap,
    /// Exempt from tailnet lock, for the peer API only.
    #[serde(rename = "UnsignedPeerAPIOnly", default, skip_serializing_if = "is_default")]
    pub unsigned_peer_api_only: bool,
    /// Name computed by clients; not sent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub computed_name: String,
    /// Name computed by clients; not sent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub computed_name_with_host: String,
    /// Name of the node in flow logs.
    #[serde(rename = "DataPlaneAuditLogID", default, skip_serializing_if = "is_default")]
    pub data_plane_audit_log_id: String,
    /// Whether the key has expired.
    #[serde(default, skip_serializing_if = "is_default")]
    pub expired: bool,
    /// IPv4 address by which this peer knows the receiver.
    #[serde(
        rename = "SelfNodeV4MasqAddrForThisPeer",
        default,
        deserialize_with = "lossy",
        skip_serializing_if = "is_default"
    )]
    pub self_node_v4_masq_addr_for_this_peer: Option<IpAddr>,
    /// IPv6 address by which this peer knows the receiver.
    #[serde(
        rename = "SelfNodeV6MasqAddrForThisPeer",
        default,
        deserialize_with = "lossy",
        skip_serializing_if = "is_default"
    )]
    pub self_node_v6_masq_addr_for_this_peer: Option<IpAddr>,
    /// A plain WireGuard peer: neither disco nor relay.
    #[serde(rename = "IsWireGuardOnly", default, skip_serializing_if = "is_default")]
    pub is_wireguard_only: bool,
    /// Whether the peer may not open connections to the receiver.
    #[serde(default, skip_serializing_if = "is_default")]
    pub is_jailed: bool,
    /// Resolvers to use behind a plain WireGuard exit node.
    #[serde(rename = "ExitNodeDNSResolvers", default, skip_serializing_if = "is_default")]
    pub exit_node_dns_resolvers: Vec<Resolver>,
    /// Subnet routes that it would serve if the node that serves them now did not.
    ///
    /// Warren's own; other clients ignore the name, and use the node that the server chose.
    #[serde(
        rename = "WarrenStandbyRoutes",
        default,
        deserialize_with = "lossy_list",
        skip_serializing_if = "is_default"
    )]
    pub standby_routes: Vec<IpNet>,
}

impl Node {
    /// Returns the prefixes that this node may send from: absent means its own addresses.
    #[must_use]
    pub fn effective_allowed_ips(&self) -> &[IpNet] {
        self.allowed_ips.as_deref().unwrap_or(&self.addresses)
    }
}
