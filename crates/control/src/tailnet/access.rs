//! Who sees whom and which packets pass: the policy applied to the members of a tailnet.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use warren_policy::{Attributes, Compiled, Directory, DirectoryNode, DirectoryUser, Policy, PolicyErrors};
use warren_wire::control::{NodeId, UserId};

use super::filter::{Filter, Outline};
use super::nodes::{Node, Nodes};
use crate::model::{Owner, UserRecord};

/// A tailnet's policy: its text and what it means.
#[derive(Debug)]
pub(crate) struct PolicyInForce {
    text: Arc<str>,
    /// `None` allows nothing.
    rules: Option<Policy>,
}

impl PolicyInForce {
    /// Reads a policy.
    pub(crate) fn parse(text: &str) -> Result<Self, PolicyErrors> {
        Ok(Self { text: text.into(), rules: Some(Policy::parse(text)?) })
    }

    /// Keeps a text that cannot be read, for its author to mend.
    pub(crate) fn nothing_allowed(text: &str) -> Self {
        Self { text: text.into(), rules: None }
    }

    /// Returns the text, as it was set.
    pub(crate) fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// Tells whether the user of that login may give a tag to a node.
    pub(crate) fn may_tag(&self, login: &str, tag: &str) -> bool {
        self.rules.as_ref().is_some_and(|rules| rules.may_own_tag(login, tag))
    }
}

/// The policy compiled over the members; snapshots share it until a member or the policy changes.
///
/// Whether two nodes see each other depends on what these two are and on the policy alone, since no route stands in for
/// a third node's addresses; map streams count on that.
#[derive(Debug)]
pub(crate) struct Access {
    compiled: Option<Compiled>,
    /// What was asked for before; the rules themselves can be long.
    outlines: Mutex<HashMap<NodeId, Arc<Outline>>>,
}

impl Access {
    /// Compiles the policy for those of `members` that take part.
    pub(crate) fn compile(
        policy: &PolicyInForce,
        users: &BTreeMap<UserId, Arc<UserRecord>>,
        members: &Nodes,
    ) -> Arc<Self> {
        let compiled = policy.rules.as_ref().map(|rules| rules.compile(&directory(users, members), 0));
        Arc::new(Self { compiled, outlines: Mutex::default() })
    }

    /// Tells whether one of two nodes may reach the other, so that both may know of each other. No node sees itself.
    pub(crate) fn sees(&self, one: NodeId, two: NodeId) -> bool {
        self.compiled.as_ref().is_some_and(|compiled| compiled.visible(one, two))
    }

    /// Returns the rules of a node.
    pub(crate) fn filter(&self, node: NodeId) -> Filter {
        let rules = self.compiled.iter().flat_map(|compiled| compiled.filter(node));
        let filter = Filter::new(rules.map(|rule| rule.to_wire()).collect());
        let outline = Arc::new(filter.outline().clone());
        self.outlines.lock().unwrap_or_else(PoisonError::into_inner).insert(node, outline);
        filter
    }

    /// Returns what a client has that got the rules of a node.
    pub(crate) fn outline(&self, node: NodeId) -> Arc<Outline> {
        let known = self.outlines.lock().unwrap_or_else(PoisonError::into_inner).get(&node).cloned();
        known.unwrap_or_else(|| Arc::new(self.filter(node).outline().clone()))
    }
}

fn directory(users: &BTreeMap<UserId, Arc<UserRecord>>, members: &Nodes) -> Directory {
    let users = users
        .iter()
        .map(|(id, user)| (*id, DirectoryUser { login: user.login.clone(), ..DirectoryUser::default() }))
        .collect();
    let nodes = members.iter().filter(|node| node.takes_part()).map(|node| (node.id(), entry(node))).collect();
    Directory { users, nodes, ..Directory::default() }
}

fn entry(node: &Node) -> DirectoryNode {
    let record = &node.record;
    DirectoryNode {
        owner: match record.owner {
            Owner::User(user) => warren_policy::Owner::User(user),
            Owner::Tagged => warren_policy::Owner::Tags(record.tags.iter().cloned().collect()),
        },
        addresses: vec![IpAddr::V4(record.ipv4), IpAddr::V6(record.ipv6())],
        approved_routes: Vec::new(),
        online: true,
        attributes: Attributes::new(),
    }
}
