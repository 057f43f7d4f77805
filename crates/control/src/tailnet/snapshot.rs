//! One immutable state of a tailnet.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;
use warren_policy::PeerRoutes;
use warren_wire::control::{DerpMap, NodeId, SshPolicy, UserId};

use super::access::{Access, PolicyInForce};
use super::nodes::{Node, Nodes};
use super::ssh::SshTable;
use super::work::{Credentials, MachineCas, Machines};
use crate::model::{AuthKeyRecord, TailnetRecord, UserRecord};

/// Everything that readers of a tailnet need.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// Counts the snapshots of a tailnet since the server started.
    pub(crate) number: u64,
    /// When it was published.
    pub(crate) at: Timestamp,
    /// The tailnet.
    pub(crate) tailnet: Arc<TailnetRecord>,
    /// Domain of the nodes' names, without a dot at its end.
    pub(crate) suffix: Arc<str>,
    /// Its users.
    pub(crate) users: Arc<BTreeMap<UserId, Arc<UserRecord>>>,
    /// Its auth keys with the hashes of their secrets, by ID.
    pub(crate) auth_keys: Arc<BTreeMap<String, (AuthKeyRecord, [u8; 32])>>,
    /// Its credentials of the API.
    pub(crate) credentials: Arc<Credentials>,
    /// Its enrolled machines.
    pub(crate) machines: Arc<Machines>,
    /// Authorities whose certificates enrol machines.
    pub(crate) machine_cas: Arc<MachineCas>,
    /// Its nodes.
    pub(crate) nodes: Nodes,
    /// Who sees whom.
    pub(crate) access: Arc<Access>,
    /// The policy.
    pub(crate) policy: Arc<PolicyInForce>,
    /// The relays.
    pub(crate) derp: Arc<DerpMap>,
    /// What SSH servers are told; worked out when the first stream asks.
    pub(crate) ssh: Arc<SshTable>,
    /// Messages that several streams send to get here.
    pub(crate) messages: Messages,
}

impl Snapshot {
    /// Returns the full name of a node, with a dot at its end.
    pub(crate) fn fqdn(&self, node: &Node) -> String {
        format!("{}.{}.", node.record.name, self.suffix)
    }

    /// Returns the nodes that `viewer` may know of, in the order of their IDs.
    pub(crate) fn peers<'a>(&'a self, viewer: &'a Node) -> impl Iterator<Item = &'a Arc<Node>> {
        self.access.compiled.peers(viewer.id()).filter_map(|peer| self.nodes.get(peer))
    }

    /// Returns what the SSH server of a node is told.
    pub(crate) fn ssh(&self, node: NodeId) -> Arc<SshPolicy> {
        self.ssh.of(self, node)
    }
}

/// How a peer changed for a viewer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct NodeStep {
    pub(crate) node: NodeId,
    /// Revision that the viewer knows; 0 if none.
    pub(crate) before: u64,
    /// Revision that it knows afterwards; 0 if none.
    pub(crate) after: u64,
    /// Which of its routes the viewer may use afterwards.
    pub(crate) routes: PeerRoutes,
}

/// What a message says, without its bytes: two streams with the same key send the same message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct MessageKey {
    /// Nodes that the message is about.
    pub(crate) nodes: Vec<NodeStep>,
    /// The step of the filter that it brings (0 = none).
    pub(crate) filter: u128,
    /// Whether it is compressed.
    pub(crate) compressed: bool,
}

/// Messages that were made once and go out on many streams.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    made: Mutex<HashMap<MessageKey, Bytes>>,
}

/// How many different messages one snapshot keeps; more are made for each stream by itself.
const MESSAGES_MAX: usize = 64;

impl Messages {
    /// Returns the message of that key, making it if nobody did yet.
    pub(crate) fn get_or_make(&self, key: MessageKey, make: impl FnOnce() -> Bytes) -> Bytes {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(message) = made.get(&key) {
            return message.clone();
        }
        // Made under the lock: others that need the same message wait for it instead of making it again.
        if made.len() < MESSAGES_MAX {
            let message = make();
            made.insert(key, message.clone());
            return message;
        }
        drop(made);
        make()
    }
}
