//! What nodes are told about names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Names and resolvers of a tailnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsSettings {
    /// Whether nodes answer for the names of the tailnet.
    pub magic_dns: bool,
    /// Whether [`Self::nameservers`] replace those of the machine, instead of helping where it has none.
    pub override_local: bool,
    /// Resolvers of everything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<Nameserver>,
    /// Resolvers by domain.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub split: BTreeMap<String, Vec<Nameserver>>,
    /// Domains that are tried after names without a dot, beside the tailnet's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search_paths: Vec<String>,
}

impl Default for DnsSettings {
    /// The names of the tailnet, and nothing else.
    fn default() -> Self {
        Self {
            magic_dns: true,
            override_local: false,
            nameservers: Vec::new(),
            split: BTreeMap::new(),
            search_paths: Vec::new(),
        }
    }
}

/// A resolver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nameserver {
    /// IP address, or `https://…` for DNS over HTTPS.
    pub address: String,
    /// Whether it is used behind an exit node, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub use_with_exit_node: bool,
}
