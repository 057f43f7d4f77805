//! Bringing the compiled policy up to date with the state, at the cost of what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use warren_policy::{Compiled, Directory, Reach, Role};
use warren_wire::control::{CapMap, NodeId};

use super::access::{self, Access, entry};
use super::facts::Facts;
use super::nodes::Node;
use super::work::State;
use crate::model::Owner;

/// What changed since the policy was compiled.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pending {
    /// Nodes that came, went, or may look different to the policy.
    pub(crate) nodes: BTreeSet<NodeId>,
    /// Whether users changed.
    pub(crate) users: bool,
    /// Whether there is another policy.
    pub(crate) policy: bool,
}

impl Pending {
    /// Says that nothing was compiled yet.
    pub(crate) fn everything(nodes: impl Iterator<Item = NodeId>) -> Self {
        Self { nodes: nodes.collect(), users: true, policy: true }
    }

    fn is_empty(&self) -> bool {
        self.nodes.is_empty() && !self.users && !self.policy
    }
}

impl State {
    /// Compiles what is pending, and the rules by time. Nodes that may look different to others afterwards get a new
    /// version, so that whoever compares two lists of nodes finds them.
    pub(crate) fn compile(&mut self, now: Timestamp) {
        let now = now.as_second();
        let pending = std::mem::take(&mut self.pending);
        let before = Arc::clone(&self.access);
        if pending.is_empty() && before.compiled.next_edge().is_none_or(|edge| edge > now) {
            return;
        }
        let compiled = self.next_compiled(&before.compiled, &pending, now);
        let touched: BTreeSet<_> = Compiled::changed_nodes(&before.compiled, &compiled).into_iter().collect();
        self.access = Arc::new(Access { compiled, is_void: self.policy.rules().is_none() });
        if pending.users {
            self.domains = Arc::new(access::people(&self.users).domains);
        }
        let changed: Vec<_> = if pending.policy || pending.users {
            self.nodes.iter().map(|node| node.id()).collect()
        } else {
            touched.union(&pending.nodes).copied().collect()
        };
        for node in self.renewed(&changed, &touched) {
            self.nodes.put(node);
        }
    }

    fn next_compiled(&self, before: &Compiled, pending: &Pending, now: i64) -> Compiled {
        let Some(rules) = self.policy.rules() else { return Compiled::default() };
        let people = pending.users.then(|| access::people(&self.users));
        let other_domains = people.as_ref().is_some_and(|people| people.domains != *self.domains);
        // What could not be read before left nothing to go on from.
        if other_domains || self.access.is_void {
            return rules.compile(&access::directory(&self.users, &self.nodes), now);
        }
        let mut next = before.clone();
        if let Some(people) = people {
            next = next.with_users(people.users);
        }
        if pending.policy {
            next = next.with_policy(rules);
        }
        if !pending.nodes.is_empty() {
            let entries = pending.nodes.iter().map(|id| (*id, self.nodes.get(*id).and_then(|node| entry(node))));
            next = next.with_nodes(entries);
        }
        next.at(now)
    }

    /// Returns new versions of nodes of which other facts are true now, or that others must look at again.
    fn renewed(&self, nodes: &[NodeId], touched: &BTreeSet<NodeId>) -> Vec<Arc<Node>> {
        let nodes = || nodes.iter().filter_map(|id| self.nodes.get(*id));
        let directory = self.policy.rules().filter(|rules| rules.has_capabilities()).map(|_| {
            let entries: BTreeMap<_, _> = nodes().filter_map(|node| Some((node.id(), entry(node)?))).collect();
            Directory { nodes: entries, ..access::people(&self.users) }
        });
        let reach =
            self.policy.rules().zip(directory.as_ref()).map(|(rules, directory)| Reach::new(rules, directory, 0));
        let renew = |node: &Arc<Node>| {
            let facts = self.facts(node, reach.as_ref());
            if facts != *node.facts {
                return Some(node.with_facts(facts));
            }
            touched.contains(&node.id()).then(|| node.touched())
        };
        nodes().filter_map(renew).collect()
    }

    fn facts(&self, node: &Node, reach: Option<&Reach<'_>>) -> Facts {
        if !node.takes_part() {
            return Facts::alone(&node.record);
        }
        let (id, compiled) = (node.id(), &self.access.compiled);
        let mut addresses = compiled.addresses(id);
        if addresses.is_empty() {
            // There is no policy that could be compiled.
            addresses = Facts::alone(&node.record).addresses;
        }
        let mut own_capabilities = reach.map(|reach| reach.own_capabilities(id)).unwrap_or_default();
        self.add_switches(node, &mut own_capabilities);
        Facts {
            addresses,
            routes: compiled.own_routes(id),
            own_capabilities,
            peer_capabilities: reach.map(|reach| reach.peer_capabilities(id)).unwrap_or_default(),
        }
    }

    /// Adds what follows from the policy as a whole and from the owner's role. Source: policy.md, section 11.
    fn add_switches(&self, node: &Node, capabilities: &mut CapMap) {
        let mut flag = |name: &str| {
            capabilities.0.entry(name.to_owned()).or_default();
        };
        if let Some(rules) = self.policy.rules() {
            if rules.has_ssh() {
                flag("https://tailscale.com/cap/ssh");
            }
            match rules.one_cgnat_route() {
                Some(true) => flag("one-cgnat?v=true"),
                Some(false) => flag("one-cgnat?v=false"),
                None => {}
            }
        }
        let role = match node.record.owner {
            Owner::User(user) => self.users.get(&user).map(|user| user.role),
            Owner::Tagged => None,
        };
        if matches!(role, Some(Role::Owner | Role::Admin)) {
            flag("https://tailscale.com/cap/is-admin");
        }
        if role == Some(Role::Owner) {
            flag("https://tailscale.com/cap/is-owner");
        }
    }
}
