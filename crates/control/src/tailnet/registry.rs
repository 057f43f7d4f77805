//! Which tailnet a key belongs to: the one index that all tailnets share.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use tokio::sync::broadcast;
use warren_wire::control::NodeId;
use warren_wire::key::{MachineKey, NodeKey};

use super::nodes::{Node, Nodes};
use crate::model::TailnetId;

/// How many node keys may wait for a slow relay; it asks for each connection if it missed some.
const DEPARTURES: usize = 4096;

/// What is known of a node key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Registered {
    /// Tailnet of the node.
    pub(crate) tailnet: TailnetId,
    /// The node.
    pub(crate) node: NodeId,
    /// Machine to which alone it answers.
    pub(crate) machine: MachineKey,
    /// Whether the relay serves it.
    admitted: bool,
}

/// All node keys, auth keys and credentials of the server.
#[derive(Debug)]
pub(crate) struct Registry {
    nodes: RwLock<HashMap<NodeKey, Registered>>,
    auth_keys: RwLock<HashMap<String, TailnetId>>,
    credentials: RwLock<HashMap<String, TailnetId>>,
    departures: broadcast::Sender<NodeKey>,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self {
            nodes: RwLock::default(),
            auth_keys: RwLock::default(),
            credentials: RwLock::default(),
            departures: broadcast::Sender::new(DEPARTURES),
        }
    }

    /// Finds the node of a key.
    pub(crate) fn node(&self, key: &NodeKey) -> Option<Registered> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    /// Tells whether the relay may serve a key.
    pub(crate) fn admits(&self, key: &NodeKey) -> bool {
        self.node(key).is_some_and(|node| node.admitted)
    }

    /// Returns the keys that the relay must stop serving, as it happens.
    pub(crate) fn departures(&self) -> broadcast::Receiver<NodeKey> {
        self.departures.subscribe()
    }

    /// Finds the tailnet of an auth key.
    pub(crate) fn auth_key(&self, id: &str) -> Option<TailnetId> {
        self.auth_keys.read().unwrap_or_else(PoisonError::into_inner).get(id).copied()
    }

    /// Notes the tailnet of an auth key.
    pub(crate) fn add_auth_key(&self, id: String, tailnet: TailnetId) {
        self.auth_keys.write().unwrap_or_else(PoisonError::into_inner).insert(id, tailnet);
    }

    /// Forgets auth keys.
    pub(crate) fn remove_auth_keys(&self, ids: &[String]) {
        let mut known = self.auth_keys.write().unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            known.remove(id);
        }
    }

    /// Forgets credentials of the API.
    pub(crate) fn remove_credentials(&self, ids: &[String]) {
        let mut known = self.credentials.write().unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            known.remove(id);
        }
    }

    /// Finds the tailnet of a credential of the API.
    pub(crate) fn credential(&self, id: &str) -> Option<TailnetId> {
        self.credentials.read().unwrap_or_else(PoisonError::into_inner).get(id).copied()
    }

    /// Notes the tailnet of a credential of the API.
    pub(crate) fn add_credential(&self, id: String, tailnet: TailnetId) {
        self.credentials.write().unwrap_or_else(PoisonError::into_inner).insert(id, tailnet);
    }

    /// Follows a tailnet from one state to the next.
    pub(crate) fn follow(&self, tailnet: TailnetId, old: &Nodes, new: &Nodes) {
        let mut changes = Vec::new();
        Nodes::changes(old, new, |(before, after)| {
            let before = before.map(|node| registered(tailnet, node));
            let after = after.map(|node| registered(tailnet, node));
            if before != after {
                changes.push((before, after));
            }
        });
        if changes.is_empty() {
            return;
        }
        let mut departed = Vec::new();
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        for (key, was) in changes.iter().filter_map(|(before, _)| *before) {
            nodes.remove(&key);
            if was.admitted {
                departed.push(key);
            }
        }
        nodes.extend(changes.iter().filter_map(|(_, after)| *after));
        departed.retain(|key| !nodes.get(key).is_some_and(|node| node.admitted));
        drop(nodes);
        for key in departed {
            // Nobody listens where there is no relay.
            let _ = self.departures.send(key);
        }
    }
}

fn registered(tailnet: TailnetId, node: &Node) -> (NodeKey, Registered) {
    let registered = Registered { tailnet, node: node.id(), machine: node.record.machine, admitted: node.takes_part() };
    (node.record.key, registered)
}
