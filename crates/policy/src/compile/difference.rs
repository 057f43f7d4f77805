//! What is the same in two versions.

use super::Compiled;
use super::chunked::ChunkedMap;
use super::member::Member;
use super::rule_set::RuleSet;
use crate::Owner;
use std::collections::BTreeSet;
use std::sync::Arc;
use warren_wire::control::NodeId;

impl Compiled {
    /// Tells whether a node's filter means the same in two versions. A `true` is never wrong, a `false` may be.
    #[must_use]
    pub fn same_filter(old: &Self, new: &Self, node: NodeId) -> bool {
        let (before, after) = match (old.members.get(&node), new.members.get(&node)) {
            (None, None) => return true,
            (Some(before), Some(after)) => (before, after),
            (Some(_), None) | (None, Some(_)) => return false,
        };
        let other_nodes = (before.covers_others || after.covers_others) && !old.by_address.is_same(&new.by_address);
        if other_nodes || !same_node(before, after) || before.membership.failed != after.membership.failed {
            return false;
        }
        let mut rules = after.kind.filter.clone();
        rules.extend(&after.kind.own);
        if rules.meets(&changed_rules(old, new)) {
            return false;
        }
        // Whose nodes are behind a router may change without their addresses.
        if after.covers_others && !old.owners.is_same(&new.owners) {
            return false;
        }
        let same_lists = Arc::ptr_eq(&old.lists, &new.lists);
        let same_owners = old.owners.is_same(&new.owners) && old.members.is_same(&new.members);
        let same_own = after.kind.own.is_empty() || same_owners;
        if same_lists && same_own && Arc::ptr_eq(&old.moment, &new.moment) {
            return true;
        }
        rules.common(&new.moment.active).iter().all(|number| {
            let same_end = old.moment.ends.get(&number) == new.moment.ends.get(&number);
            let is_own = after.kind.own.contains(number);
            same_end
                && (if is_own { same_owners } else { same_lists } || {
                    let owner = &after.draft.node.owner;
                    let id = |compiled: &Self| compiled.sources_of(number, owner).map(|sources| sources.id());
                    id(old) == id(new)
                })
        })
    }

    /// Tells whether a node sees the same peers with the same routes in two versions, as far as those peers are not among
    /// [`Self::changed_nodes`]. A `true` is never wrong, a `false` may be.
    #[must_use]
    pub fn same_view(old: &Self, new: &Self, node: NodeId) -> bool {
        match (old.members.get(&node), new.members.get(&node)) {
            (None, None) => true,
            (Some(before), Some(after)) => same_node(before, after) && !after.kind.meets(&changed_rules(old, new)),
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    /// Returns the nodes that came, went, or differ in what rules apply to them, in addresses or in routes, in order.
    /// Only these look different to a node of which [`Self::same_view`] is true.
    #[must_use]
    pub fn changed_nodes(old: &Self, new: &Self) -> Vec<NodeId> {
        let mut changed: BTreeSet<NodeId> = BTreeSet::new();
        let same = |before: &Arc<Member>, after: &Arc<Member>| Arc::ptr_eq(before, after) || same_node(before, after);
        ChunkedMap::differences(&old.members, &new.members, same, |id, _, _| {
            changed.insert(*id);
        });
        let rules = changed_rules(old, new);
        if !rules.is_empty() {
            for (kind, nodes) in old.kinds.iter().chain(new.kinds.iter()) {
                if kind.meets(&rules) {
                    changed.extend(nodes.keys());
                }
            }
        }
        Self::changed_routes(old, new, |before, after| {
            let routes = before.into_iter().chain(after);
            changed.extend(routes.flat_map(|route| route.routers.iter().map(|router| router.node)));
        });
        changed.into_iter().collect()
    }
}

/// Tells whether a node is the same to the rules. Kinds are of numbers: see [`changed_rules`] for what those mean.
fn same_node(before: &Member, after: &Member) -> bool {
    let (one, two) = (&before.draft, &after.draft);
    let same_owner = match (&one.node.owner, &two.node.owner) {
        (Owner::User(before), Owner::User(after)) => before == after,
        // Tags matter by the rules that they bring, and those are in the kind.
        (Owner::Tags(_), Owner::Tags(_)) => true,
        (Owner::User(_), Owner::Tags(_)) | (Owner::Tags(_), Owner::User(_)) => false,
    };
    (Arc::ptr_eq(&before.kind, &after.kind) || before.kind == after.kind)
        && (Arc::ptr_eq(one, two)
            || same_owner && one.addresses == two.addresses && one.node.approved_routes == two.node.approved_routes)
}

/// Returns the numbers that began or stopped to hold, or that mean another rule.
fn changed_rules(old: &Compiled, new: &Compiled) -> RuleSet {
    let mut changed = old.moment.active.difference(&new.moment.active);
    if !Arc::ptr_eq(&old.book, &new.book) {
        for (number, rule) in new.book.rules() {
            if old.book.rule(number).is_some_and(|old| !Arc::ptr_eq(old, rule)) {
                changed.insert(number);
            }
        }
    }
    changed
}
