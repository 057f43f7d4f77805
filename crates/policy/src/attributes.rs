//! The section `nodeAttrs` and the switches: capabilities of nodes, and where new nodes get their address from.
//!
//! Source: policy.md, section 11.

use crate::model::NodeAttributes;
use crate::reach::Party;
use crate::{Owner, Reach};
use ipnet::Ipv4Net;
use warren_wire::control::{CapMap, NodeId, RawJson};

/// Lets a node publish services on the Internet, through somebody's relays.
const FUNNEL: &str = "funnel";
/// What comes with [`FUNNEL`]: the ports, and a warning while there are no certificates.
const WITH_FUNNEL: [&str; 2] =
    ["https://tailscale.com/cap/funnel-ports?ports=443,8443,10000", "https://tailscale.com/cap/warn-funnel-no-https"];
const RANDOMIZE_CLIENT_PORT: &str = "randomize-client-port";
/// Marks exit nodes that clients may propose; the only attribute that peers see.
const SUGGEST_EXIT_NODE: &str = "suggest-exit-node";

impl Reach<'_> {
    /// Returns what the policy gives a node as its own capabilities.
    #[must_use]
    pub fn own_capabilities(&self, node: NodeId) -> CapMap {
        let mut capabilities = CapMap::default();
        if self.policy.sections.randomize_client_port {
            add(&mut capabilities, RANDOMIZE_CLIENT_PORT, &[]);
        }
        let parties: Vec<Party<'_>> = self.parties_of(node).collect();
        for entry in self.policy.sections.node_attributes.iter().filter(|entry| self.concerns(entry, &parties)) {
            entry.attributes.iter().for_each(|name| add(&mut capabilities, name, &[]));
            entry.app.iter().for_each(|(name, values)| add(&mut capabilities, name, values));
        }
        if capabilities.has(FUNNEL) {
            WITH_FUNNEL.iter().for_each(|name| add(&mut capabilities, name, &[]));
        }
        capabilities
    }

    /// Returns the capabilities that others see on a node: whether it offers itself as an exit node, with approved routes.
    #[must_use]
    pub fn peer_capabilities(&self, node: NodeId) -> CapMap {
        let exit = self.exit_nodes().contains(&node);
        if exit && self.own_capabilities(node).has(SUGGEST_EXIT_NODE) {
            CapMap::flags([SUGGEST_EXIT_NODE])
        } else {
            CapMap::default()
        }
    }

    /// Returns the prefixes from which a new node of this owner gets its IPv4 address; none leaves it to the server.
    ///
    /// Targets that are addresses do not count, since the node has none yet.
    #[must_use]
    pub fn ip_pool_for(&self, owner: &Owner) -> Vec<Ipv4Net> {
        let entries = self.policy.sections.node_attributes.iter();
        let fitting = entries.filter(|entry| entry.targets.iter().any(|target| self.covers_owner(target, owner)));
        fitting.flat_map(|entry| &entry.ip_pool).copied().collect()
    }

    fn concerns(&self, entry: &NodeAttributes, parties: &[Party<'_>]) -> bool {
        entry.targets.iter().any(|target| parties.iter().any(|party| self.destination_covers(target, *party)))
    }
}

/// Adds a capability; values add up, each once.
fn add(capabilities: &mut CapMap, name: &str, values: &[RawJson]) {
    let known = capabilities.0.entry(name.to_owned()).or_default();
    for value in values {
        if !known.contains(value) {
            known.push(value.clone());
        }
    }
}
