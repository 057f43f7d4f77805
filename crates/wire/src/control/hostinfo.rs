//! What a client says of its machine and its network. Source: Tailscale `tailcfg`, `Hostinfo` and `NetInfo`.
//!
//! Strange clients fill these fields in strange ways, so a malformed value counts as absent.

use super::RegionId;
use super::json::{is_default, lossy, lossy_list};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a client says of its machine. A malformed field reads as absent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Hostinfo {
    /// Version of the client, long form.
    #[serde(rename = "IPNVersion", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub ipn_version: String,
    /// Log name of the front end.
    #[serde(rename = "FrontendLogID", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub frontend_log_id: String,
    /// Log name of the daemon; Go clients do not register without one.
    #[serde(rename = "BackendLogID", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub backend_log_id: String,
    /// Operating system: `linux`, `macOS`, `windows`, `iOS`, `android` and others.
    #[serde(rename = "OS", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub os: String,
    /// Its version; the kernel's on Linux.
    #[serde(rename = "OSVersion", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub os_version: String,
    /// Whether it runs in a container.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub container: Option<bool>,
    /// Short code of the environment.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub env: String,
    /// Linux distribution.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub distro: String,
    /// Version of the distribution.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub distro_version: String,
    /// Code name of the distribution.
    #[serde(rename = "DistroCodeName", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub distro_codename: String,
    /// Application that embeds the client.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub app: String,
    /// Whether a desktop was found.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub desktop: Option<bool>,
    /// Package that the client came in.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub package: String,
    /// Model of a phone.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub device_model: String,
    /// Token for push messages.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub push_device_token: String,
    /// Host name as the machine has it, to be cleaned by the server.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub hostname: String,
    /// Whether it refuses inbound connections.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub shields_up: bool,
    /// Exists only because of sharing.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub sharee_node: bool,
    /// Sends no logs.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub no_logs_no_support: bool,
    /// Takes configuration from the server.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub remote_config: bool,
    /// Wants the plumbing of Funnel.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub wire_ingress: bool,
    /// Has a Funnel endpoint.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub ingress_enabled: bool,
    /// Takes updates from the server.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub allows_update: bool,
    /// Hardware name of the kernel.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub machine: String,
    /// Processor family, Go's name.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub go_arch: String,
    /// Variant of the processor family.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub go_arch_var: String,
    /// Version of Go.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub go_version: String,
    /// Routes that it offers, exit routes included.
    #[serde(rename = "RoutableIPs", deserialize_with = "lossy_list", skip_serializing_if = "is_default")]
    pub routable_ips: Vec<IpNet>,
    /// Tags that it asks for.
    #[serde(deserialize_with = "lossy_list", skip_serializing_if = "is_default")]
    pub request_tags: Vec<String>,
    /// Hardware addresses for waking it.
    #[serde(rename = "WoLMACs", deserialize_with = "lossy_list", skip_serializing_if = "is_default")]
    pub wol_macs: Vec<String>,
    /// Services that it offers.
    #[serde(deserialize_with = "lossy_list", skip_serializing_if = "is_default")]
    pub services: Vec<Service>,
    /// What it knows of its network.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub net_info: Option<NetInfo>,
    /// Public SSH host keys; there when it runs the built-in SSH server.
    #[serde(rename = "sshHostKeys", deserialize_with = "lossy_list", skip_serializing_if = "is_default")]
    pub ssh_host_keys: Vec<String>,
    /// Cloud that it runs in.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub cloud: String,
    /// Whether it uses a network in user space.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub userspace: Option<bool>,
    /// Whether its routes go through the network in user space.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub userspace_router: Option<bool>,
    /// Whether it is an app connector.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub app_connector: Option<bool>,
    /// Changes when its services do.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub services_hash: String,
    /// Whether it relays for peers.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub peer_relay: bool,
    /// Stable name of the exit node that it uses.
    #[serde(rename = "ExitNodeID", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub exit_node_id: String,
    /// Where it is.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub location: Option<Location>,
    /// Its security chip.
    #[serde(rename = "TPM", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub tpm: Option<TpmInfo>,
    /// Whether its state is encrypted.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub state_encrypted: Option<bool>,
}

/// A service of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Service {
    /// `tcp`, `udp`, `peerapi4`, `peerapi6`, `peerapi-dns-proxy` and others.
    pub proto: String,
    /// Port.
    pub port: u16,
    /// What it is.
    #[serde(skip_serializing_if = "is_default")]
    pub description: String,
}

/// Where a node is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Location {
    /// Country.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub country: String,
    /// ISO 3166-1 code of the country.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub country_code: String,
    /// City.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub city: String,
    /// Code of the city.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub city_code: String,
    /// Degrees north.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub latitude: f64,
    /// Degrees east.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub longitude: f64,
    /// Preference as an exit node, higher first.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub priority: i64,
}

/// The security chip of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TpmInfo {
    /// Maker, four letters.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub manufacturer: String,
    /// Maker's text.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub vendor: String,
    /// Maker's model number.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub model: i64,
    /// Version of the firmware.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub firmware_version: u64,
    /// Revision of the specification.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub spec_revision: i64,
    /// Family, like `2.0`.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub family_indicator: String,
}

/// What a client found out about its network. A malformed field reads as absent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NetInfo {
    /// Whether the mapping of its NAT differs by destination.
    #[serde(rename = "MappingVariesByDestIP", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub mapping_varies_by_dest_ip: Option<bool>,
    /// Whether the Internet is reachable over IPv6.
    #[serde(rename = "WorkingIPv6", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub working_ipv6: Option<bool>,
    /// Whether the machine has IPv6 at all.
    #[serde(rename = "OSHasIPv6", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub os_has_ipv6: Option<bool>,
    /// Whether UDP works.
    #[serde(rename = "WorkingUDP", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub working_udp: Option<bool>,
    /// Whether ICMP over IPv4 works.
    #[serde(rename = "WorkingICMPv4", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub working_icmpv4: Option<bool>,
    /// Whether it has a port mapping.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub have_port_map: bool,
    /// Whether the gateway speaks UPnP.
    #[serde(rename = "UPnP", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub upnp: Option<bool>,
    /// Whether the gateway speaks NAT-PMP.
    #[serde(rename = "PMP", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub pmp: Option<bool>,
    /// Whether the gateway speaks PCP.
    #[serde(rename = "PCP", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub pcp: Option<bool>,
    /// Home region; zero is unknown.
    #[serde(rename = "PreferredDERP", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub preferred_derp: RegionId,
    /// `wired`, `wifi` or `mobile`.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub link_type: String,
    /// Latencies in seconds by region and family, like `900-v4`.
    #[serde(rename = "DERPLatency", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub derp_latency: BTreeMap<String, f64>,
    /// Which firewall a Linux client drives and why.
    #[serde(deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub firewall_mode: String,
}
