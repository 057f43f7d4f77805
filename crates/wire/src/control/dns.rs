//! Names and resolvers. Source: Tailscale `tailcfg`, `DNSConfig`, and `types/dnstype`, `Resolver`.

use super::json::{is_default, lossy_list};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// How a node resolves names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DnsConfig {
    /// Resolvers of everything; if there are any they replace the machine's own.
    #[serde(skip_serializing_if = "is_default")]
    pub resolvers: Vec<Resolver>,
    /// Resolvers by suffix; an empty list is answered by the node itself. Written as `[]`, never as `null`.
    #[serde(skip_serializing_if = "is_default")]
    pub routes: BTreeMap<String, Vec<Resolver>>,
    /// Resolvers used only if split DNS needs a default.
    #[serde(skip_serializing_if = "is_default")]
    pub fallback_resolvers: Vec<Resolver>,
    /// Search domains without trailing dot, the tailnet's own first.
    #[serde(skip_serializing_if = "is_default")]
    pub domains: Vec<String>,
    /// Whether the node answers for the names of the tailnet.
    #[serde(skip_serializing_if = "is_default")]
    pub proxied: bool,
    /// Old form of [`Self::resolvers`].
    #[serde(deserialize_with = "lossy_list", skip_serializing_if = "is_default")]
    pub nameservers: Vec<IpAddr>,
    /// Names for which the server helps to get certificates.
    #[serde(skip_serializing_if = "is_default")]
    pub cert_domains: Vec<String>,
    /// Further records.
    #[serde(skip_serializing_if = "is_default")]
    pub extra_records: Vec<DnsRecord>,
    /// Names that an exit node's resolver refuses; a leading dot makes a suffix.
    #[serde(skip_serializing_if = "is_default")]
    pub exit_node_filtered_set: Vec<String>,
}

/// One record; only addresses are served.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DnsRecord {
    /// Full name.
    pub name: String,
    /// `A`, `AAAA`, or empty to go by the value.
    #[serde(skip_serializing_if = "is_default")]
    pub r#type: String,
    /// Address.
    pub value: String,
}

/// One resolver.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Resolver {
    /// IP address, `ip:port`, `https://…` or `http://node:port/path`; always written.
    pub addr: String,
    /// Addresses of the host in a URL.
    #[serde(deserialize_with = "lossy_list", skip_serializing_if = "is_default")]
    pub bootstrap_resolution: Vec<IpAddr>,
    /// Whether it is used behind an exit node too.
    #[serde(skip_serializing_if = "is_default")]
    pub use_with_exit_node: bool,
}
