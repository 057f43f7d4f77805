//! One immutable state of a tailnet.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;
use warren_wire::control::{DerpMap, NodeId, UserId};

use super::access::{Access, PolicyInForce};
use super::nodes::{Node, Nodes};
use crate::model::{TailnetRecord, UserRecord};

/// Everything that readers of a tailnet need.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// When it was published.
    pub(crate) at: Timestamp,
    /// The tailnet.
    pub(crate) tailnet: Arc<TailnetRecord>,
    /// Domain of the nodes' names, without a dot at its end.
    pub(crate) suffix: Arc<str>,
    /// Its users.
    pub(crate) users: Arc<BTreeMap<UserId, Arc<UserRecord>>>,
    /// Its nodes.
    pub(crate) nodes: Nodes,
    /// Who sees whom.
    pub(crate) access: Arc<Access>,
    /// The policy.
    pub(crate) policy: Arc<PolicyInForce>,
    /// The relays.
    pub(crate) derp: Arc<DerpMap>,
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
        self.nodes.iter().filter(move |peer| self.access.sees(viewer.id(), peer.id()))
    }
}

/// What a message says, without its bytes: two streams with the same key send the same message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct MessageKey {
    /// Nodes that the message is about: ID, revision before (0 = not there), revision after (0 = not there).
    pub(crate) nodes: Vec<(NodeId, u64, u64)>,
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
