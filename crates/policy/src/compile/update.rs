//! From one version to the next: only what a change touches is made anew.

use super::address::{outside_tailnets, range_of, source_of, wildcard_sources};
use super::member::{Base, Draft, Kind, Member, NodeSet, OwnerEntry};
use super::routes::{Route, Router};
use super::rules::List;
use super::target::Target;
use super::{Compiled, Sources};
use crate::addresses::AddressSet;
use crate::sources::Source;
use crate::{DirectoryNode, Owner};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use warren_wire::control::NodeId;

/// What a list of sources holds now.
#[derive(Debug)]
pub(super) struct ListState {
    /// What the policy itself names, subnet routes apart.
    literals: BTreeSet<Source>,
    pub(super) sources: Arc<Sources>,
}

/// Changes of the sets of sources: what more, what less.
type Edits = BTreeMap<usize, (BTreeSet<Source>, BTreeSet<Source>)>;

impl Compiled {
    /// Makes the version with other nodes, as `None` without them. `touched` are nodes to look at again.
    pub(super) fn rebuild(
        mut self,
        old: &Self,
        nodes: impl IntoIterator<Item = (NodeId, Option<DirectoryNode>)>,
        mut touched: BTreeSet<NodeId>,
    ) -> Self {
        let mut given: BTreeMap<NodeId, Option<Arc<DirectoryNode>>> = BTreeMap::new();
        for (id, node) in nodes {
            let known = old.drafts.get(&id).map(|draft| &*draft.node);
            if known != node.as_ref() {
                given.insert(id, node.map(Arc::new));
            } else {
                given.remove(&id);
            }
        }
        touched.retain(|id| !given.contains_key(id) && old.drafts.get(id).is_some());
        self.take_owners(old, &given);
        let mut drafts: BTreeMap<NodeId, Option<Arc<Draft>>> = BTreeMap::new();
        let kept = touched.iter().filter_map(|id| Some((*id, Some(Arc::clone(&old.drafts.get(id)?.node)))));
        for (id, node) in given.into_iter().chain(kept) {
            let draft = node.map(|node| {
                let base = self.owners.get(&node.owner).map(|entry| Arc::clone(&entry.base)).unwrap_or_default();
                let draft = Draft::new(&self, node, &base);
                old.drafts.get(&id).filter(|old| ***old == draft).cloned().unwrap_or_else(|| Arc::new(draft))
            });
            drafts.insert(id, draft);
        }
        self.take_addresses(old, &drafts);
        self.drafts = old.drafts.with(drafts.clone());
        self.take_devices(old, &drafts);
        let routers = self.take_routes(old, &drafts);
        for id in routers {
            if let Some(draft) = self.drafts.get(&id).filter(|_| !drafts.contains_key(&id)) {
                drafts.insert(id, Some(Arc::clone(draft)));
            }
        }
        let mut kinds: BTreeSet<Arc<Kind>> = BTreeSet::new();
        let changes: BTreeMap<NodeId, Option<Arc<Member>>> = drafts
            .into_iter()
            .map(|(id, draft)| (id, draft.map(|draft| self.member(old, id, draft, &mut kinds))))
            .collect();
        self.take_kinds(old, &changes);
        self.take_lists(old, &changes);
        self.members = old.members.with(changes);
        self
    }

    /// Makes a member; as it was if nothing changed.
    fn member(&self, old: &Self, id: NodeId, draft: Arc<Draft>, kinds: &mut BTreeSet<Arc<Kind>>) -> Arc<Member> {
        let base = self.owners.get(&draft.node.owner).map(|entry| Arc::clone(&entry.base)).unwrap_or_default();
        let mut member = Member::new(self, id, draft, &base);
        match kinds.get(&member.kind).or_else(|| old.kinds.entry(&member.kind).map(|(kind, _)| kind)) {
            Some(kind) => member.kind = Arc::clone(kind),
            None => drop(kinds.insert(Arc::clone(&member.kind))),
        }
        match old.members.get(&id) {
            Some(known)
                if Arc::ptr_eq(&known.draft, &member.draft)
                    && Arc::ptr_eq(&known.kind, &member.kind)
                    && known.membership == member.membership
                    && known.covers_others == member.covers_others =>
            {
                Arc::clone(known)
            }
            Some(_) | None => Arc::new(member),
        }
    }

    fn take_owners(&mut self, old: &Self, given: &BTreeMap<NodeId, Option<Arc<DirectoryNode>>>) {
        let mut edits: BTreeMap<&Owner, BTreeMap<NodeId, Option<()>>> = BTreeMap::new();
        for (id, node) in given {
            let before = old.drafts.get(id).map(|draft| &draft.node.owner);
            let after = node.as_ref().map(|node| &node.owner);
            if before != after {
                before.into_iter().for_each(|owner| {
                    edits.entry(owner).or_default().insert(*id, None);
                });
                after.into_iter().for_each(|owner| {
                    edits.entry(owner).or_default().insert(*id, Some(()));
                });
            }
        }
        let changes = edits.into_iter().map(|(owner, edits)| {
            let known = self.owners.get(owner);
            let nodes =
                known.map(|known| known.nodes.with(edits.clone())).unwrap_or_else(|| NodeSet::default().with(edits));
            let entry = (!nodes.is_empty()).then(|| {
                Arc::new(OwnerEntry {
                    base: known.map_or_else(|| Arc::new(Base::new(self, owner)), |known| Arc::clone(&known.base)),
                    nodes,
                    devices: known.map(|known| Arc::clone(&known.devices)).unwrap_or_default(),
                })
            });
            (owner.clone(), entry)
        });
        let changes = changes.collect();
        self.owners = self.owners.with(changes);
    }

    fn take_addresses(&mut self, old: &Self, drafts: &BTreeMap<NodeId, Option<Arc<Draft>>>) {
        let mut changes: BTreeMap<(IpAddr, NodeId), Option<()>> = BTreeMap::new();
        for (id, draft) in drafts {
            let before = old.drafts.get(id);
            if let (Some(before), Some(after)) = (before, draft)
                && before.addresses == after.addresses
            {
                continue;
            }
            before.into_iter().flat_map(|draft| &draft.addresses).for_each(|address| {
                changes.insert((*address, *id), None);
            });
            draft.iter().flat_map(|draft| &draft.addresses).for_each(|address| {
                changes.insert((*address, *id), Some(()));
            });
        }
        self.by_address = old.by_address.with(changes);
    }

    /// Writes the lists of users' own devices anew where they changed.
    fn take_devices(&mut self, old: &Self, drafts: &BTreeMap<NodeId, Option<Arc<Draft>>>) {
        let mut users: BTreeSet<&Owner> = BTreeSet::new();
        for (id, draft) in drafts {
            let before = old.drafts.get(id);
            let is_same = before.zip(draft.as_ref()).is_some_and(|(before, after)| {
                before.addresses == after.addresses && before.node.owner == after.node.owner
            });
            if !is_same {
                let both = before.into_iter().chain(draft).map(|draft| &draft.node.owner);
                users.extend(both.filter(|owner| matches!(owner, Owner::User(_))));
            }
        }
        let changes = users.into_iter().filter_map(|owner| {
            let entry = self.owners.get(owner)?;
            let devices = entry.nodes.keys().filter_map(|id| self.drafts.get(id)).flat_map(|draft| &draft.addresses);
            let devices = Arc::new(Sources::new(devices.copied().map(Source::Address)));
            let (base, nodes) = (Arc::clone(&entry.base), entry.nodes.clone());
            Some((owner.clone(), Some(Arc::new(OwnerEntry { base, nodes, devices }))))
        });
        let changes = changes.collect();
        self.owners = self.owners.with(changes);
    }

    /// Brings the subnets up to date; returns the routers that have nodes behind them which changed.
    fn take_routes(&mut self, old: &Self, drafts: &BTreeMap<NodeId, Option<Arc<Draft>>>) -> BTreeSet<NodeId> {
        let mut affected: BTreeSet<IpNet> = BTreeSet::new();
        let mut behind: BTreeSet<NodeId> = BTreeSet::new();
        if !Arc::ptr_eq(&old.book, &self.book) {
            affected.extend(old.routes.iter().map(|(prefix, _)| prefix));
            let covering = old.routes.values().filter(|route| route.covers_nodes);
            behind.extend(covering.flat_map(|route| route.routers.iter().map(|router| router.node)));
        }
        let mut edits: BTreeMap<IpNet, BTreeMap<NodeId, Option<Router>>> = BTreeMap::new();
        for (id, draft) in drafts {
            let before = old.drafts.get(id);
            let routes = |draft: &Arc<Draft>| draft.subnet_routes.clone();
            for route in before.map(routes).unwrap_or_default() {
                edits.entry(route).or_default().insert(*id, None);
            }
            for (draft, route) in
                draft.iter().flat_map(|draft| routes(draft).into_iter().map(move |route| (draft, route)))
            {
                let router = Router { node: *id, online: draft.node.online, owner: draft.node.owner.clone() };
                edits.entry(route).or_default().insert(*id, Some(router));
            }
            let addresses = before.into_iter().chain(draft).flat_map(|draft| &draft.addresses);
            for route in addresses.flat_map(|address| old.routes.containing_with_prefix(IpNet::from(*address))) {
                affected.insert(route.0);
                behind.extend(route.1.routers.iter().map(|router| router.node));
            }
        }
        affected.extend(edits.keys().copied());
        let changes = affected.into_iter().map(|prefix| {
            let known = old.routes.get(prefix);
            let edits = edits.remove(&prefix).unwrap_or_default();
            let kept =
                known.into_iter().flat_map(|route| &route.routers).filter(|router| !edits.contains_key(&router.node));
            let mut routers: Vec<Router> = kept.cloned().collect();
            routers.extend(edits.into_values().flatten());
            routers.sort_by_key(|router| router.node);
            let route = Route::new(self, prefix, routers, known.map(|known| &**known))
                .map(|route| known.filter(|known| ***known == route).cloned().unwrap_or_else(|| Arc::new(route)));
            (prefix, route)
        });
        let changes: BTreeMap<IpNet, Option<Arc<Route>>> = changes.collect();
        let changes = changes.into_iter().filter(|(prefix, route)| match (old.routes.get(*prefix), route) {
            (Some(old), Some(new)) => !Arc::ptr_eq(old, new),
            (None, None) => false,
            (Some(_), None) | (None, Some(_)) => true,
        });
        self.routes = old.routes.with(changes.collect());
        behind
    }

    fn take_kinds(&mut self, old: &Self, changes: &BTreeMap<NodeId, Option<Arc<Member>>>) {
        let mut edits: BTreeMap<&Arc<Kind>, BTreeMap<NodeId, Option<()>>> = BTreeMap::new();
        let mut exits = BTreeMap::new();
        for (id, member) in changes {
            let before = old.members.get(id);
            let kinds = (before.map(|member| &member.kind), member.as_ref().map(|member| &member.kind));
            if kinds.0 != kinds.1 {
                kinds.0.into_iter().for_each(|kind| {
                    edits.entry(kind).or_default().insert(*id, None);
                });
                kinds.1.into_iter().for_each(|kind| {
                    edits.entry(kind).or_default().insert(*id, Some(()));
                });
            }
            let is_exit = |member: &Arc<Member>| member.draft.is_exit_node;
            let exit = (before.is_some_and(is_exit), member.as_ref().is_some_and(is_exit));
            if exit.0 != exit.1 {
                exits.insert(*id, exit.1.then_some(()));
            }
        }
        let changes = edits.into_iter().map(|(kind, edits)| {
            let nodes = old.kinds.get(kind).cloned().unwrap_or_default().with(edits);
            (Arc::clone(kind), (!nodes.is_empty()).then_some(nodes))
        });
        self.kinds = old.kinds.with(changes.collect());
        self.exits = old.exits.with(exits);
    }

    fn take_lists(&mut self, old: &Self, changes: &BTreeMap<NodeId, Option<Arc<Member>>>) {
        let mut edits = Edits::new();
        for (id, member) in changes {
            let before = old.members.get(id);
            let mut numbers = super::rule_set::RuleSet::default();
            let both = || before.into_iter().chain(member);
            both().for_each(|member| numbers.extend(&member.membership.lists));
            if let (Some(before), Some(after)) = (before, member)
                && before.draft.addresses == after.draft.addresses
            {
                if Arc::ptr_eq(&before.membership, &after.membership) {
                    continue;
                }
                numbers = before.membership.lists.difference(&after.membership.lists);
            }
            both().for_each(|member| numbers.extend(&member.membership.partly));
            for number in numbers.iter() {
                let Some(list) = self.book.list(number) else { continue };
                let (more, less) = edits.entry(number).or_default();
                // Lists that are new to the policy hold nothing yet.
                let was = before.filter(|_| old.book.list(number).is_some());
                less.extend(was.into_iter().flat_map(|member| member.sources_in(number, list)).map(Source::Address));
                more.extend(member.iter().flat_map(|member| member.sources_in(number, list)).map(Source::Address));
            }
        }
        let wild = |list: &List| list.holds(&Target::Any) && !list.is_everything();
        if !old.routes.is_same(&self.routes) {
            super::prefixes::PrefixMap::differences(
                &old.routes,
                &self.routes,
                |_, _| true,
                |prefix, _, after| {
                    for (number, list) in self.book.lists().filter(|(_, list)| wild(list)) {
                        let (more, less) = edits.entry(number).or_default();
                        if after.is_some() { more } else { less }.extend(sources_of_route(list, prefix));
                    }
                },
            );
        }
        if Arc::ptr_eq(&old.book, &self.book) && edits.is_empty() {
            return;
        }
        let mut lists: Vec<Option<Arc<ListState>>> = Vec::with_capacity(self.book.lists.len());
        for number in 0..self.book.lists.len() {
            let state = self.book.list(number).map(|list| {
                let known = old.lists.get(number).and_then(Option::as_ref).filter(|_| old.book.list(number).is_some());
                let state = known.cloned().unwrap_or_else(|| Arc::new(self.first_state(list, wild(list))));
                let Some((more, mut less)) = edits.remove(&number) else { return state };
                less.retain(|source| !more.contains(source) && !self.stays(number, list, &state, *source, changes));
                match state.sources.edited(&more, &less) {
                    Some(sources) => {
                        Arc::new(ListState { literals: state.literals.clone(), sources: Arc::new(sources) })
                    }
                    None => state,
                }
            });
            lists.push(state);
        }
        self.lists = lists.into();
    }

    /// Tells whether a source that a node or a route leaves behind is in a list for another reason.
    fn stays(
        &self,
        number: usize,
        list: &List,
        state: &ListState,
        source: Source,
        changes: &BTreeMap<NodeId, Option<Arc<Member>>>,
    ) -> bool {
        if state.literals.contains(&source) {
            return true;
        }
        if list.holds(&Target::Any) {
            // With postures, different routes may have the same part outside of tailnets.
            let is_route = match source {
                Source::Prefix(prefix) if list.postures.is_empty() => self.routes.get(prefix).is_some(),
                Source::Address(address) if list.postures.is_empty() => self.routes.get(address.into()).is_some(),
                Source::Everywhere | Source::Range(..) | Source::Prefix(_) | Source::Address(_) => {
                    self.routes.iter().any(|(prefix, _)| sources_of_route(list, prefix).contains(&source))
                }
            };
            if is_route {
                return true;
            }
        }
        let Source::Address(address) = source else { return false };
        self.nodes_within(IpNet::from(address)).any(|node| {
            // Members that change are not in their place yet.
            let member = changes.get(&node).map_or_else(|| self.members.get(&node), Option::as_ref);
            member.is_some_and(|member| member.sources_in(number, list).any(|other| other == address))
        })
    }

    /// Returns a list before any node is in it.
    fn first_state(&self, list: &List, wild: bool) -> ListState {
        let mut literals: BTreeSet<Source> = BTreeSet::new();
        let all = || ["0.0.0.0/0", "::/0"].into_iter().filter_map(|all| all.parse().ok()).map(range_of);
        for target in &list.key.targets {
            match target {
                Target::Everywhere if list.is_everything() => {
                    literals = BTreeSet::from([Source::Everywhere]);
                    break;
                }
                // Devices without the posture would be among the wildcards: those that have it are named instead.
                Target::Everywhere => {
                    literals.extend(outside_tailnets(all()).into_iter().map(source_of));
                }
                Target::Any if list.postures.is_empty() => literals.extend(wildcard_sources()),
                Target::Any | Target::OwnDevices | Target::Named(_) => {}
                Target::Internet => literals.extend(AddressSet::internet().ranges().iter().copied().map(source_of)),
                Target::Prefix(_) | Target::Set(_) if list.postures.is_empty() => {
                    literals.extend(target.literal().into_iter().map(source_of));
                }
                Target::Prefix(_) | Target::Set(_) => {
                    literals.extend(outside_tailnets(target.literal()).into_iter().map(source_of));
                }
            }
        }
        let routes = self.routes.iter().filter(|_| wild).flat_map(|(prefix, _)| sources_of_route(list, prefix));
        let sources = Arc::new(Sources::new(literals.iter().copied().chain(routes)));
        ListState { literals, sources }
    }
}

/// Returns what `*` in a list makes of a subnet. Nodes whose addresses lie in it are devices all the same: where postures
/// are demanded, they are named one by one.
fn sources_of_route(list: &List, prefix: IpNet) -> Vec<Source> {
    if list.postures.is_empty() {
        return vec![Source::from(prefix)];
    }
    outside_tailnets([range_of(prefix)]).into_iter().map(source_of).collect()
}
