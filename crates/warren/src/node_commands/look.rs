//! `warren whois` and `netcheck`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use clap::Args;
use serde::Deserialize;
use serde_json::Value;
use warren_node::local_api::ClientError;
use warren_node::local_api::types::Status;

use super::{Socket, clean, peers};
use crate::exit::{Exit, Failure};
use crate::output;

/// Arguments of `warren whois`.
#[derive(Debug, Args)]
pub(crate) struct Whois {
    /// Tailnet address, with or without port, or name of a node.
    #[arg(value_name = "ADDRESS|NAME")]
    who: String,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    node: Node,
    user_profile: Profile,
    #[serde(default)]
    cap_map: BTreeMap<String, Vec<Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Node {
    name: String,
    #[serde(rename = "StableID")]
    stable_id: String,
    addresses: Vec<String>,
    tags: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Profile {
    #[serde(rename = "ID")]
    id: i64,
    login_name: String,
}

impl Whois {
    /// Asks and prints.
    pub(super) async fn run(self) -> Result<(), Failure> {
        let client = self.socket.client();
        let address =
            self.who.parse::<IpAddr>().or_else(|_| self.who.parse::<SocketAddr>().map(|address| address.ip()));
        let address = if let Ok(address) = address {
            address
        } else {
            let status: Status = client.get("status").await?;
            let node = peers::find(&status, &self.who)?;
            let first = node.tailscale_ips.first().copied();
            first.ok_or_else(|| Failure::new(Exit::NotFound, format_args!("{} has no tailnet address", self.who)))?
        };
        let answer: Value = match client.get(&format!("whois?addr={address}")).await {
            Err(ClientError::Refused { status: 404, .. }) => {
                let text = format!("no node has the address {address}; see: warren status");
                return Err(Failure::new(Exit::NotFound, text));
            }
            answer => answer?,
        };
        if self.json {
            return output::json(&answer);
        }
        let answer: Answer = serde_json::from_value(answer).map_err(anyhow::Error::from)?;
        let mut text = format!(
            "Machine:\n  Name:      {}\n  ID:        {}\n  Addresses: {}\n",
            clean(answer.node.name.trim_end_matches('.')),
            clean(&answer.node.stable_id),
            clean(&answer.node.addresses.join(", ")),
        );
        if answer.node.tags.is_empty() {
            let user = &answer.user_profile;
            text.push_str(&format!("User:\n  Name:      {}\n  ID:        {}\n", clean(&user.login_name), user.id));
        } else {
            text.push_str(&format!("Tags: {}\n", clean(&answer.node.tags.join(", "))));
        }
        text.push_str(&capabilities(&answer.cap_map));
        output::text(&text)
    }
}

/// Lists what the node may do on this one beyond packets, each capability with its values; nothing if there is none.
fn capabilities(granted: &BTreeMap<String, Vec<Value>>) -> String {
    let mut text = String::new();
    for (name, values) in granted {
        if text.is_empty() {
            text.push_str("Capabilities:\n");
        }
        text.push_str(&format!("  - {}\n", clean(name)));
        for line in values.iter().flat_map(|value| format!("{value:#}").lines().map(clean).collect::<Vec<_>>()) {
            text.push_str(&format!("      {line}\n"));
        }
    }
    text
}

/// Arguments of `warren netcheck`.
#[derive(Debug, Args)]
pub(crate) struct Netcheck {
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Report {
    #[serde(rename = "UDP")]
    udp: bool,
    #[serde(rename = "GlobalV4")]
    global_v4: String,
    #[serde(rename = "GlobalV6")]
    global_v6: String,
    #[serde(rename = "MappingVariesByDestIP")]
    mapping_varies: Value,
    captive_portal: Value,
    #[serde(rename = "PreferredDERP")]
    preferred: u16,
    region_latency: BTreeMap<String, u64>,
    regions: BTreeMap<String, Region>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Region {
    code: String,
    name: String,
}

impl Netcheck {
    /// Asks and prints.
    pub(super) async fn run(self) -> Result<(), Failure> {
        let report: Value = self.socket.client().get("netcheck").await?;
        if self.json {
            return output::json(&report);
        }
        let report: Report = serde_json::from_value(report).map_err(anyhow::Error::from)?;
        output::text(&report.text())
    }
}

impl Report {
    fn text(&self) -> String {
        let family = |address: &str| match address {
            "" => "(no address found)".to_owned(),
            address => format!("yes, {}", clean(address)),
        };
        let varies = self.mapping_varies.as_bool().map_or("", |varies| if varies { "true" } else { "false" });
        let name = |id: &str| {
            let region = self.regions.get(id);
            region.map_or_else(|| id.to_owned(), |region| clean(&region.name))
        };
        let mut text = format!(
            "Report:\n\t* UDP: {}\n\t* IPv4: {}\n\t* IPv6: {}\n\t* MappingVariesByDestIP: {varies}\n",
            self.udp,
            family(&self.global_v4),
            family(&self.global_v6),
        );
        if self.captive_portal == Value::Bool(true) {
            text.push_str("\t* CaptivePortal: true (open any http:// address in a browser and log in)\n");
        }
        if self.region_latency.is_empty() {
            text.push_str("\t* Nearest relay: unknown (no relay answered)\n");
            return text;
        }
        text.push_str(&format!("\t* Nearest relay: {}\n\t* Relay latency:\n", name(&self.preferred.to_string())));
        let mut latencies: Vec<(&String, &u64)> = self.region_latency.iter().collect();
        latencies.sort_by_key(|(_, latency)| **latency);
        for (id, nanoseconds) in latencies {
            let code = self.regions.get(id).map_or(id.as_str(), |region| region.code.as_str());
            let tenths = nanoseconds / 100_000;
            text.push_str(&format!("\t\t- {}: {}.{}ms ({})\n", clean(code), tenths / 10, tenths % 10, name(id)));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_lists_the_nearest_relay_first() {
        let report: Report = serde_json::from_value(json!({
            "UDP": true, "GlobalV4": "192.0.2.1:41641", "MappingVariesByDestIP": "", "PreferredDERP": 900,
            "RegionLatency": {"901": 20_000_000, "900": 1_540_000},
            "Regions": {"900": {"Code": "home", "Name": "Home"}, "901": {"Code": "far", "Name": "Far"}},
        }))
        .unwrap();
        let text = report.text();
        assert!(text.contains("* Nearest relay: Home"), "{text}");
        assert!(text.contains("- home: 1.5ms (Home)\n\t\t- far: 20.0ms (Far)"), "{text}");
        assert!(text.contains("IPv6: (no address found)"), "{text}");
    }

    #[test]
    fn capabilities_are_listed_with_their_values() {
        let granted = json!({"b.example/cap": [], "a.example/cap": [{"role": "\u{1b}[31madmin"}, 2]});
        let text = capabilities(&serde_json::from_value(granted).unwrap());
        assert!(text.starts_with("Capabilities:\n  - a.example/cap\n      {\n"), "{text}");
        assert!(text.ends_with("      }\n      2\n  - b.example/cap\n"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        assert_eq!(capabilities(&BTreeMap::new()), "");
    }

    #[test]
    fn a_captive_portal_is_told() {
        let of = |portal| serde_json::from_value::<Report>(json!({ "CaptivePortal": portal })).unwrap().text();
        assert!(of(json!(true)).contains("* CaptivePortal: true (open"));
        assert!(!of(json!(false)).contains("Portal") && !of(json!("")).contains("Portal"));
    }

    #[test]
    fn without_relay_it_says_so() {
        assert!(Report::default().text().contains("no relay answered"));
    }
}
