//! Who sees whom and which packets pass: the policy applied to the members of a tailnet.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use warren_wire::control::{FilterRule, NetPortRange, PortRange, UserId};

use super::nodes::{Node, Nodes};
use crate::model::Owner;

/// The rules that a node gets; nodes with equal rules share one.
#[derive(Debug)]
pub(crate) struct Filter {
    /// Unlike that of any other filter.
    pub(crate) id: u64,
    /// The rules.
    pub(crate) rules: Vec<FilterRule>,
    /// The rules as JSON, made when first needed.
    pub(crate) json: OnceLock<Box<[u8]>>,
}

impl Filter {
    fn new(rules: Vec<FilterRule>) -> Arc<Self> {
        static IDS: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            rules,
            json: OnceLock::new(),
        })
    }
}

/// The policy compiled over the members; snapshots share it until a member or the policy changes.
#[derive(Debug)]
pub(crate) struct Access {
    relation: Arc<Relation>,
    members: Nodes,
    filters: Mutex<BTreeMap<Option<UserId>, Arc<Filter>>>,
}

/// Which node may know of which, by what they are; does not depend on who else is a member.
#[derive(Debug)]
pub(crate) struct Relation {}

impl Relation {
    /// Tells whether one of the two may reach the other.
    pub(crate) fn sees(&self, viewer: &Node, peer: &Node) -> bool {
        viewer.id() != peer.id()
            && viewer.takes_part()
            && peer.takes_part()
            && matches!(
                (viewer.record.owner, peer.record.owner),
                (Owner::User(one), Owner::User(two)) if one == two
            )
    }
}

impl Access {
    /// Compiles the policy for `members`; what stays the same is taken over from `before`.
    pub(crate) fn compile(members: &Nodes, before: Option<&Self>) -> Arc<Self> {
        Arc::new(Self {
            relation: before.map_or_else(|| Arc::new(Relation {}), |before| Arc::clone(&before.relation)),
            members: members.clone(),
            filters: Mutex::new(BTreeMap::new()),
        })
    }

    /// Returns who sees whom; the same pointer as long as the policy and its users stay the same.
    pub(crate) fn relation(&self) -> &Arc<Relation> {
        &self.relation
    }

    /// Returns the rules for a node.
    pub(crate) fn filter(&self, node: &Node) -> Arc<Filter> {
        let class = match node.record.owner {
            Owner::User(user) if node.takes_part() => Some(user),
            Owner::User(_) | Owner::Tagged => None,
        };
        let mut filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(filters.entry(class).or_insert_with(|| Filter::new(self.rules(class))))
    }

    /// A user's own untagged devices reach each other, and nothing else does.
    fn rules(&self, class: Option<UserId>) -> Vec<FilterRule> {
        let Some(user) = class else { return Vec::new() };
        let sources = self
            .members
            .iter()
            .filter(|node| node.takes_part() && node.record.owner == Owner::User(user))
            .flat_map(|node| [node.record.ipv4.to_string(), node.record.ipv6().to_string()])
            .collect();
        vec![FilterRule {
            src_ips: sources,
            dst_ports: vec![NetPortRange {
                ip: "*".to_owned(),
                ports: PortRange { first: 0, last: u16::MAX },
                ..NetPortRange::default()
            }],
            ..FilterRule::default()
        }]
    }
}
