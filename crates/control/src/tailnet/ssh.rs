//! What the SSH servers of nodes are told.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use warren_policy::{Owner, Reach, SshRules};
use warren_wire::control::{NodeId, SshPolicy};

use super::access::{self, entry};
use super::snapshot::Snapshot;

/// The rules of all nodes, in one version of a tailnet; worked out all at once, since that costs little more than one.
#[derive(Debug, Default)]
pub(crate) struct SshTable {
    rules: OnceLock<HashMap<NodeId, Arc<SshPolicy>>>,
}

impl SshTable {
    /// Returns the rules of a node; none lets nobody in.
    pub(super) fn of(&self, snapshot: &Snapshot, node: NodeId) -> Arc<SshPolicy> {
        let known = self.rules.get_or_init(|| work_out(snapshot));
        known.get(&node).map(Arc::clone).unwrap_or_default()
    }
}

fn work_out(snapshot: &Snapshot) -> HashMap<NodeId, Arc<SshPolicy>> {
    let Some(policy) = snapshot.policy.rules().filter(|policy| policy.has_ssh()) else { return HashMap::new() };
    let directory = access::directory(&snapshot.users, &snapshot.nodes);
    let reach = Reach::new(policy, &directory, snapshot.at.as_second());
    let rules = SshRules::new(&reach);
    // Nodes of one owner share a list that can be as long as the tailnet.
    let mut by_owner: BTreeMap<Owner, Arc<SshPolicy>> = BTreeMap::new();
    let mut known = HashMap::new();
    for node in snapshot.nodes.iter() {
        let Some(entry) = entry(node) else { continue };
        let rules = if rules.are_by_owner() {
            Arc::clone(by_owner.entry(entry.owner).or_insert_with(|| Arc::new(rules.policy(node.id()))))
        } else {
            Arc::new(rules.policy(node.id()))
        };
        known.insert(node.id(), rules);
    }
    known
}
