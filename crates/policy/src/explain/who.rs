//! Who reaches a destination.

use super::QuestionError;
use super::question::{Devices, Service};
use crate::reach::{RuleLine, node_name};
use crate::selector::Selector;
use crate::{NodeNames, Owner, Reach};
use serde::Serialize;
use std::collections::BTreeMap;
use warren_wire::control::NodeId;

/// Everybody who reaches a destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WhoAnswer {
    /// The destination, as asked, without port and protocol.
    pub to: String,
    /// Protocol and port, in words.
    pub service: String,
    /// Sources that the same rules let through stand together.
    pub entries: Vec<WhoEntry>,
}

/// Sources and the rules that let them through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WhoEntry {
    /// Names of nodes by owner: a login, or tags.
    pub nodes: BTreeMap<String, Vec<String>>,
    /// Addresses that are no node's, as the rules name them.
    pub addresses: Vec<String>,
    /// The rules, in the order of the policy.
    pub rules: Vec<RuleLine>,
}

impl WhoAnswer {
    /// Writes the answer for people, one line each.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        if self.entries.is_empty() {
            return vec![format!("nobody reaches {} ({})", self.to, self.service)];
        }
        let mut lines = vec![format!("{} ({}) is reached by", self.to, self.service)];
        for entry in &self.entries {
            for (owner, nodes) in &entry.nodes {
                lines.push(format!("  {owner}: {}", nodes.join(", ")));
            }
            if !entry.addresses.is_empty() {
                lines.push(format!("  addresses: {}", entry.addresses.join(", ")));
            }
            for rule in &entry.rules {
                lines.push(format!("    line {} allows {}: {}", rule.line, rule.services, rule.text));
            }
        }
        lines
    }
}

impl Reach<'_> {
    /// Returns who reaches `to`, which is written as for [`Self::explain`]; of several devices, at least one.
    ///
    /// # Errors
    /// [`QuestionError`] if the name is unknown or the question is malformed.
    pub fn who_can_reach(&self, names: &NodeNames, to: &str) -> Result<WhoAnswer, QuestionError> {
        let (to, service) = Service::split(to)?;
        let asked = Devices::of(self, names, &to)?;
        let destinations = asked.list(self, names)?;
        // Rules that lead there, of themselves or for the destination's owner.
        let leading: Vec<usize> = self
            .rules()
            .filter(|(_, grant)| self.holds_now(grant) && grant.services.iter().any(|known| service.0.is_in(known)))
            .filter(|(_, grant)| {
                destinations.iter().flat_map(|device| &device.parties).any(|party| {
                    self.names_destination(grant, *party) && self.has_way(grant, *party)
                        || crate::reach::leads_to_own_devices(grant)
                })
            })
            .map(|(number, _)| number)
            .collect();
        let mut by_rules: BTreeMap<Vec<usize>, Vec<NodeId>> = BTreeMap::new();
        for node in self.directory.nodes.keys().filter(|node| !(asked.is_one() && asked.has(self, **node))) {
            let rules = self.rules_from(*node, &leading, &destinations);
            if !rules.is_empty() {
                by_rules.entry(rules).or_default().push(*node);
            }
        }
        let mut entries: Vec<WhoEntry> = by_rules
            .into_iter()
            .map(|(rules, nodes)| {
                let mut by_owner: BTreeMap<String, Vec<String>> = BTreeMap::new();
                for node in nodes {
                    by_owner.entry(self.owner_name(node)).or_default().push(node_name(node, names));
                }
                WhoEntry { nodes: by_owner, addresses: Vec::new(), rules: self.lines(&rules) }
            })
            .collect();
        for number in leading {
            let Some(grant) = self.policy.sections.grants.get(number) else { continue };
            let addresses: Vec<String> = grant.sources.iter().flat_map(|selector| outside(self, selector)).collect();
            if !addresses.is_empty() {
                entries.push(WhoEntry { nodes: BTreeMap::new(), addresses, rules: self.lines(&[number]) });
            }
        }
        Ok(WhoAnswer { to, service: service.to_string(), entries })
    }

    fn rules_from(&self, node: NodeId, leading: &[usize], destinations: &[super::Device<'_>]) -> Vec<usize> {
        let sources: Vec<_> = self.parties_of(node).collect();
        let grants = leading.iter().filter_map(|number| Some((*number, self.policy.sections.grants.get(*number)?)));
        let leads = |grant: &crate::model::Grant| {
            sources.iter().any(|source| {
                self.is_source(grant, *source)
                    && self.has_posture(&grant.postures, source.attributes)
                    && destinations
                        .iter()
                        .flat_map(|device| &device.parties)
                        .any(|party| party.node != Some(node) && self.is_destination(grant, *source, *party))
            })
        };
        grants.filter(|(_, grant)| leads(grant)).map(|(number, _)| number).collect()
    }

    fn lines(&self, rules: &[usize]) -> Vec<RuleLine> {
        let grants = rules.iter().filter_map(|number| Some((*number, self.policy.sections.grants.get(*number)?)));
        grants.map(|(number, grant)| RuleLine::of(self, number, grant)).collect()
    }

    /// Returns the login of a node's owner, or its tags.
    fn owner_name(&self, node: NodeId) -> String {
        match self.directory.nodes.get(&node).map(|node| &node.owner) {
            Some(Owner::User(user)) => match self.directory.users.get(user) {
                Some(user) => user.login.clone(),
                None => format!("user {user}"),
            },
            Some(Owner::Tags(tags)) => tags.iter().cloned().collect::<Vec<_>>().join(" "),
            None => String::new(),
        }
    }
}

/// Returns how a rule names sources that are no nodes.
fn outside(reach: &Reach<'_>, selector: &Selector) -> Vec<String> {
    match selector {
        Selector::Prefix(prefix) => vec![prefix.to_string()],
        Selector::Host(name) | Selector::IpSet(name) => vec![name.clone()],
        Selector::Everywhere => vec!["every address, even outside the tailnet".to_owned()],
        Selector::Internet => vec!["the Internet".to_owned()],
        Selector::Any => reach.subnets().map(|route| route.to_string()).collect(),
        Selector::User(_)
        | Selector::Group(_)
        | Selector::Tag(_)
        | Selector::Service(_)
        | Selector::UsersOfDomain(_)
        | Selector::Members
        | Selector::Role(_)
        | Selector::Tagged
        | Selector::Shared
        | Selector::OwnDevices => Vec::new(),
    }
}
