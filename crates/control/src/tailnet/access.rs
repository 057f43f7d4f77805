//! Who sees whom and which packets pass: the policy applied to the members of a tailnet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use warren_policy::{
    Compiled, Directory, DirectoryNode, DirectoryUser, NodeNames, PeerRoutes, Policy, PolicyDiff, PolicyErrors, Reach,
    TESTS_FAILED,
};
use warren_wire::control::{DerpMap, NodeId, UserId};

use super::facts;
use super::filter::{Ends, Filter};
use super::nodes::{Node, Nodes};
use crate::model::{Owner, UserRecord};

/// How many failing tests are told.
const FAILURES_SHOWN: usize = 100;

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

    /// Returns what it says; `None` if it cannot be read and allows nothing.
    pub(crate) fn rules(&self) -> Option<&Policy> {
        self.rules.as_ref()
    }

    /// Returns the text, as it was set.
    pub(crate) fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// Checks the policy against users and nodes: names of domains, then its own tests, as of `now` in Unix seconds.
    /// Refuses with a text of several lines.
    pub(crate) fn check(&self, directory: &Directory, now: i64) -> Result<(), String> {
        let Some(rules) = &self.rules else { return Ok(()) };
        rules.check_domains(directory).map_err(|errors| errors.to_string())?;
        let failures = rules.run_tests(directory, now);
        if failures.is_empty() {
            return Ok(());
        }
        let lines: Vec<_> = failures.iter().take(FAILURES_SHOWN).map(ToString::to_string).collect();
        let more = failures.len().saturating_sub(FAILURES_SHOWN);
        let rest = if more > 0 { format!("\nand {more} more") } else { String::new() };
        Err(format!("{TESTS_FAILED}\n{}{rest}", lines.join("\n")))
    }

    /// Tells in lines who gains and who loses what with a new policy; `None` if one of the two cannot be read.
    pub(crate) fn difference(&self, new: &Self, directory: &Directory, names: &NodeNames) -> Option<Vec<String>> {
        let (old, new) = self.rules.as_ref().zip(new.rules.as_ref())?;
        Some(PolicyDiff::of(old, new, directory, names).lines())
    }

    /// Tells whether it says who may give a tag.
    pub(crate) fn defines_tag(&self, tag: &str) -> bool {
        self.rules.as_ref().is_some_and(|rules| rules.defines_tag(tag))
    }

    /// Tells whether a user may give a tag to a node.
    pub(crate) fn may_tag(&self, user: &DirectoryUser, tag: &str) -> bool {
        self.rules.as_ref().is_some_and(|rules| rules.may_own_tag(user, tag))
    }

    /// Tells whether whoever holds the tags `held` may give a tag to a node.
    pub(crate) fn may_pass_on_tag(&self, held: &[String], tag: &str) -> bool {
        self.rules.as_ref().is_some_and(|rules| rules.may_pass_on_tag(held.iter().map(String::as_str), tag))
    }

    /// Returns those of `routes` that need no administrator when a node of that owner offers them.
    pub(crate) fn approved_by_itself(
        &self,
        owner: &warren_policy::Owner,
        people: &Directory,
        routes: &[IpNet],
    ) -> Vec<IpNet> {
        let Some(rules) = &self.rules else { return Vec::new() };
        let reach = Reach::new(rules, people, 0);
        routes.iter().copied().filter(|route| reach.auto_approves(owner, *route)).collect()
    }

    /// Returns from where a new node of that owner gets its IPv4 address; from anywhere if that is empty.
    pub(crate) fn pools(&self, owner: &warren_policy::Owner, people: impl FnOnce() -> Directory) -> Vec<Ipv4Net> {
        let Some(rules) = self.rules.as_ref().filter(|rules| rules.has_capabilities()) else { return Vec::new() };
        Reach::new(rules, &people(), 0).ip_pool_for(owner)
    }

    /// Returns the server's relays with what the policy says of them; the server's alone if none were left, since
    /// clients that lose their last relay are lost themselves.
    pub(crate) fn relays(&self, own: &Arc<DerpMap>) -> Arc<DerpMap> {
        let Some(rules) = &self.rules else { return Arc::clone(own) };
        let relays = rules.relays(own);
        if has_relay(&relays) && relays != **own { Arc::new(relays) } else { Arc::clone(own) }
    }

    /// Tells whether the policy leaves a relay to nodes.
    pub(crate) fn keeps_a_relay(&self, own: &DerpMap) -> bool {
        self.rules.as_ref().is_none_or(|rules| has_relay(&rules.relays(own)))
    }
}

/// The policy compiled over the members; snapshots share it until something changes that it looks at.
#[derive(Debug)]
pub(crate) struct Access {
    /// Nothing if the policy cannot be read.
    pub(crate) compiled: Compiled,
    /// Whether nothing was compiled yet, or the policy could not be read.
    pub(crate) is_void: bool,
}

impl Default for Access {
    fn default() -> Self {
        Self { compiled: Compiled::default(), is_void: true }
    }
}

impl Access {
    /// Tells whether two nodes may know of each other. No node sees itself.
    pub(crate) fn sees(&self, one: NodeId, two: NodeId) -> bool {
        self.compiled.visible(one, two)
    }

    /// Returns which of a peer's routes a viewer may use.
    pub(crate) fn routes(&self, viewer: NodeId, peer: &Node) -> PeerRoutes {
        if peer.facts.routes.allowed.is_empty() {
            return PeerRoutes::default();
        }
        self.compiled.routes(viewer, peer.id())
    }

    /// Returns the rules of a node.
    pub(crate) fn filter(&self, node: NodeId, ends: Ends) -> Filter {
        Filter::new(self.compiled.filter(node), ends)
    }
}

/// Tells whether a map names a relay that relays.
pub(crate) fn has_relay(map: &DerpMap) -> bool {
    let regions = map.regions.iter().flat_map(|regions| regions.values());
    regions.flat_map(|region| &region.nodes).any(|node| !node.stun_only)
}

/// Returns all users and nodes as policies see them.
pub(crate) fn directory(users: &BTreeMap<UserId, Arc<UserRecord>>, members: &Nodes) -> Directory {
    let nodes = members.iter().filter_map(|node| Some((node.id(), entry(node)?))).collect();
    Directory { nodes, ..people(users) }
}

/// Returns all users as policies see them, and no nodes.
pub(crate) fn people(users: &BTreeMap<UserId, Arc<UserRecord>>) -> Directory {
    Directory {
        domains: crate::domains::of(users.values().map(|user| user.login.as_str())),
        users: directory_users(users),
        nodes: BTreeMap::new(),
    }
}

/// Returns all users as policies see them.
pub(crate) fn directory_users(users: &BTreeMap<UserId, Arc<UserRecord>>) -> BTreeMap<UserId, DirectoryUser> {
    users.iter().map(|(id, user)| (*id, directory_user(user))).collect()
}

/// Returns a user as policies see them.
pub(crate) fn directory_user(user: &UserRecord) -> DirectoryUser {
    DirectoryUser { login: user.login.clone(), role: user.role, groups: BTreeSet::new() }
}

/// Returns whose a node is, as policies see it.
pub(crate) fn owner(owner: Owner, tags: &[String]) -> warren_policy::Owner {
    match owner {
        Owner::User(user) => warren_policy::Owner::User(user),
        Owner::Tagged => warren_policy::Owner::Tags(tags.iter().cloned().collect()),
    }
}

/// Returns a node as policies see it; `None` if it takes no part.
pub(crate) fn entry(node: &Node) -> Option<DirectoryNode> {
    let record = &node.record;
    let approved_routes = facts::routes(node);
    node.takes_part().then(|| DirectoryNode {
        owner: owner(record.owner, &record.tags),
        addresses: vec![IpAddr::V4(record.ipv4), IpAddr::V6(record.ipv6())],
        // Nobody asks it of a node that carries no routes, and those come and go all the time.
        online: node.online || approved_routes.is_empty(),
        approved_routes,
        attributes: facts::attributes(node),
    })
}

/// Tells whether two versions of a node look the same to policies.
pub(crate) fn is_same_entry(one: &Node, two: &Node) -> bool {
    let unchanged = Arc::ptr_eq(&one.record, &two.record)
        && one.expired == two.expired
        && one.barred == two.barred
        && one.state.hostinfo == two.state.hostinfo
        && (one.online == two.online || one.record.approved_routes.is_empty());
    unchanged || entry(one) == entry(two)
}
