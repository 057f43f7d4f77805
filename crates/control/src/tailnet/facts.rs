//! What a policy looks at of a node beyond its owner, attributes and routes, and what follows from the policy for it.

use std::net::IpAddr;

use ipnet::IpNet;
use warren_policy::{AttributeValue, Attributes, PeerRoutes};
use warren_wire::control::{CapMap, Hostinfo};

use super::nodes::Node;
use crate::model::NodeRecord;

/// What follows for a node from the policy and from other nodes, the same for all who look at it.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Facts {
    /// Its addresses, IPv4 first; without IPv4 where the policy says so.
    pub(crate) addresses: Vec<IpNet>,
    /// Routes that it carries, and those of them for which it is the way.
    pub(crate) routes: PeerRoutes,
    /// What the policy lets its client do.
    pub(crate) own_capabilities: CapMap,
    /// What others see of that.
    pub(crate) peer_capabilities: CapMap,
}

impl Facts {
    /// Returns what is true of a node that takes no part.
    pub(crate) fn alone(record: &NodeRecord) -> Self {
        let addresses = [IpAddr::V4(record.ipv4), IpAddr::V6(record.ipv6())].map(IpNet::from).to_vec();
        Self { addresses, ..Self::default() }
    }
}

/// Returns all attributes of a node: those that it reports (`node:…`) and those that administrators gave it.
pub(crate) fn attributes(node: &Node) -> Attributes {
    let mut attributes = node.record.attributes.clone();
    if let Some(info) = &node.state.hostinfo {
        attributes.extend(reported(info).map(|(name, value)| (name.to_owned(), value)));
    }
    attributes
}

/// Returns the routes that a node offers and may carry, sorted.
pub(crate) fn routes(node: &Node) -> Vec<IpNet> {
    let mut routes: Vec<_> = node.state.offered_routes().filter(|route| node.record.approves(route)).collect();
    routes.sort_unstable();
    routes.dedup();
    routes
}

/// Attributes of a device as its client tells them. Source: policy.md, section 12.
fn reported(info: &Hostinfo) -> impl Iterator<Item = (&'static str, AttributeValue)> {
    let text = |text: &str| (!text.is_empty()).then(|| AttributeValue::Text(text.to_owned()));
    let version = info.ipn_version.split(['-', ' ']).next().unwrap_or_default();
    // An odd second number marks builds that are no releases.
    let minor = version.split('.').nth(1).and_then(|minor| minor.parse::<u64>().ok());
    let track = minor.map(|minor| if minor % 2 == 0 { "stable" } else { "unstable" });
    [
        ("node:os", text(&info.os.to_ascii_lowercase())),
        ("node:osVersion", text(&info.os_version)),
        ("node:tsVersion", text(version)),
        ("node:tsReleaseTrack", track.and_then(text)),
        ("node:tsStateEncrypted", info.state_encrypted.map(AttributeValue::Bool)),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_what_the_client_says() {
        let info = Hostinfo {
            os: "macOS".to_owned(),
            os_version: "15.1".to_owned(),
            ipn_version: "1.98.2-t1a2b3c-g4d5e".to_owned(),
            state_encrypted: Some(true),
            ..Hostinfo::default()
        };
        let text = |text: &str| AttributeValue::Text(text.to_owned());
        assert_eq!(
            reported(&info).collect::<Vec<_>>(),
            [
                ("node:os", text("macos")),
                ("node:osVersion", text("15.1")),
                ("node:tsVersion", text("1.98.2")),
                ("node:tsReleaseTrack", text("stable")),
                ("node:tsStateEncrypted", AttributeValue::Bool(true)),
            ]
        );
        assert_eq!(reported(&Hostinfo::default()).count(), 0, "what is not known is not set");
    }
}
