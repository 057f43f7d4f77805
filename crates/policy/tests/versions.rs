//! Versions of a compiled policy: whatever the order of changes, each gives the answers of a fresh compilation, and what
//! is called the same is the same.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    clippy::panic,
    reason = "test code"
)]

mod world;

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::select;
use std::collections::{BTreeMap, BTreeSet};
use warren_policy::{Compiled, DirectoryNode, DirectoryUser};
use warren_wire::control::{NodeId, UserId};
use world::naive::subnets;
use world::{EDGES, Laws, World, any_laws, any_node, any_rule, any_users, any_world};

#[derive(Debug, Clone)]
enum Change {
    Nodes(Vec<(u8, Option<DirectoryNode>)>),
    /// A node connects or disconnects.
    Online(u8),
    Users(BTreeMap<UserId, DirectoryUser>),
    Laws(Laws),
    /// A small edit: a rule more in a place, and one less in another.
    Rule(usize, Box<world::Rule>, usize),
    /// A user comes into a group or leaves it.
    Member(usize, usize),
    Time(i64),
}

fn any_change() -> impl Strategy<Value = Change> {
    let node = (1..=6_u8)
        .prop_flat_map(|number| proptest::option::weighted(0.8, any_node(number)).prop_map(move |node| (number, node)));
    prop_oneof![
        4 => prop::collection::vec(node, 1..3).prop_map(Change::Nodes),
        2 => (1..=6_u8).prop_map(Change::Online),
        1 => any_users().prop_map(Change::Users),
        1 => any_laws().prop_map(Change::Laws),
        3 => (0..6_usize, any_rule(), 0..6_usize).prop_map(|(at, rule, less)| Change::Rule(at, Box::new(rule), less)),
        2 => (0..3_usize, 0..4_usize).prop_map(|(group, user)| Change::Member(group, user)),
        2 => select(EDGES.to_vec()).prop_map(Change::Time),
    ]
}

impl Change {
    /// Makes the change in both.
    fn apply(self, world: &mut World, compiled: &Compiled) -> Compiled {
        let next = match self {
            Self::Nodes(changes) => {
                for (number, node) in &changes {
                    let id = NodeId(i64::from(*number));
                    match node {
                        Some(node) => drop(world.directory.nodes.insert(id, node.clone())),
                        None => drop(world.directory.nodes.remove(&id)),
                    }
                }
                compiled.with_nodes(changes.into_iter().map(|(number, node)| (NodeId(i64::from(number)), node)))
            }
            Self::Online(number) => {
                let id = NodeId(i64::from(number));
                let Some(node) = world.directory.nodes.get_mut(&id) else { return compiled.clone() };
                node.online = !node.online;
                compiled.with_nodes([(id, Some(node.clone()))])
            }
            Self::Users(users) => {
                world.directory.users.clone_from(&users);
                compiled.with_users(users)
            }
            Self::Laws(laws) => {
                world.laws = laws;
                compiled.with_policy(&world.laws.policy())
            }
            Self::Rule(at, rule, less) => {
                let rules = &mut world.laws.rules;
                rules.insert(at.min(rules.len()), *rule);
                rules.remove(less.min(rules.len() - 1));
                compiled.with_policy(&world.laws.policy())
            }
            Self::Member(group, user) => {
                let members = &mut world.laws.groups[group];
                if !members.remove(&user) {
                    members.insert(user);
                }
                compiled.with_policy(&world.laws.policy())
            }
            Self::Time(now) => {
                world.now = now;
                compiled.at(now)
            }
        };
        choose_ways(world);
        next
    }
}

/// Keeps each way to a subnet as long as it is there, then takes the next.
fn choose_ways(world: &mut World) {
    let routes: BTreeSet<IpNet> = world.nodes().flat_map(|(_, node)| subnets(node)).collect();
    let ways = routes.into_iter().map(|route| {
        let routers = || world.nodes().filter(|(_, node)| subnets(node).any(|own| own == route));
        let old = world.ways.get(&route).copied();
        let is_old = |(id, _): &(NodeId, &DirectoryNode)| Some(*id) == old;
        let online = |(_, node): &(NodeId, &DirectoryNode)| node.online;
        let way = routers()
            .filter(online)
            .find(is_old)
            .or_else(|| routers().find(online))
            .or_else(|| routers().find(is_old))
            .or_else(|| routers().next());
        (route, way.unwrap().0)
    });
    world.ways = ways.collect();
}

/// Which source may send where, or may ask what, and until when.
fn meaning(compiled: &Compiled, node: NodeId) -> BTreeSet<String> {
    let rules = compiled.filter(node).into_iter();
    rules
        .flat_map(|rule| {
            let to = rule.destinations.iter().map(|to| format!("{:?} {to:?}", rule.protocols));
            let grants = rule.grants.iter().flat_map(|grant| {
                grant
                    .dsts
                    .iter()
                    .flat_map(move |to| grant.cap_map.0.iter().map(move |capability| format!("{to} {capability:?}")))
            });
            let all: Vec<String> = to.chain(grants).map(|to| format!("{to} {:?}", rule.until)).collect();
            let texts: Vec<String> = rule.sources.texts().collect();
            texts.into_iter().flat_map(move |from| all.clone().into_iter().map(move |to| format!("{from} > {to}")))
        })
        .collect()
}

/// Compares a version with a fresh compilation.
fn check(world: &World, compiled: &Compiled, steps: &str) -> Result<(), TestCaseError> {
    let fresh = world.compile();
    let told = || format!("{steps}\n{}\n{:?}", world.laws.text(), world.directory);
    prop_assert_eq!(compiled.next_edge(), fresh.next_edge());
    for (one, node) in world.nodes() {
        prop_assert_eq!(meaning(compiled, one), meaning(&fresh, one), "{} {}", one, told());
        prop_assert!(compiled.peers(one).eq(fresh.peers(one)), "{} {}", one, told());
        prop_assert_eq!(compiled.addresses(one), fresh.addresses(one));
        prop_assert_eq!(compiled.own_routes(one).allowed, fresh.own_routes(one).allowed);
        let is_way = |route: &IpNet| world.ways.get(route) == Some(&one);
        let ways: Vec<IpNet> = subnets(node).collect::<BTreeSet<_>>().into_iter().filter(is_way).collect();
        prop_assert_eq!(compiled.own_routes(one).primary, ways, "{} {}", one, told());
        for (two, peer) in world.nodes().filter(|(two, _)| one != *two) {
            prop_assert_eq!(compiled.visible(one, two), fresh.visible(one, two));
            prop_assert_eq!(
                compiled.routes(one, two),
                world.routes(node, (two, peer)),
                "{} of {} {}",
                two,
                one,
                told()
            );
        }
    }
    for gone in (1..=6).map(NodeId).filter(|id| !world.directory.nodes.contains_key(id)) {
        prop_assert!(compiled.filter(gone).is_empty() && compiled.peers(gone).next().is_none());
    }
    Ok(())
}

/// What is called the same must be.
fn check_sameness(old: &Compiled, new: &Compiled, steps: &str) -> Result<(), TestCaseError> {
    let changed = Compiled::changed_nodes(old, new);
    prop_assert!(changed.is_sorted_by(|left, right| left < right));
    let all: Vec<NodeId> = (1..=6).map(NodeId).collect();
    for one in &all {
        if Compiled::same_filter(old, new, *one) {
            prop_assert_eq!(meaning(old, *one), meaning(new, *one), "{} {}", one, steps);
        }
        if !changed.contains(one) {
            prop_assert_eq!(old.addresses(*one), new.addresses(*one));
            prop_assert_eq!(old.own_routes(*one), new.own_routes(*one), "{} {}", one, steps);
        }
        if Compiled::same_view(old, new, *one) {
            for two in all.iter().filter(|two| !changed.contains(two)) {
                prop_assert_eq!(old.visible(*one, *two), new.visible(*one, *two), "{} {} {}", one, two, steps);
                prop_assert_eq!(old.routes(*one, *two), new.routes(*one, *two), "{} {} {}", one, two, steps);
                prop_assert_eq!(old.route_view(*one, *two), new.route_view(*one, *two));
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn versions_answer_like_a_fresh_compilation(
        mut world in any_world(),
        changes in prop::collection::vec(any_change(), 1..8),
    ) {
        let mut versions = vec![world.compile()];
        choose_ways(&mut world);
        let mut steps = String::new();
        for change in changes {
            steps.push_str(&format!("\n{change:?}"));
            let next = change.apply(&mut world, &versions[versions.len() - 1]);
            check(&world, &next, &steps)?;
            // Numbers are given out again: versions far apart must not be taken for the same.
            for old in &versions {
                check_sameness(old, &next, &steps)?;
            }
            versions.push(next);
        }
    }

    #[test]
    fn nothing_changes_before_the_next_edge(world in any_world()) {
        let compiled = world.compile();
        if let Some(edge) = compiled.next_edge() {
            prop_assert!(edge > world.now);
            let before = compiled.at(edge - 1);
            prop_assert_eq!(Compiled::changed_nodes(&compiled, &before), []);
            for (id, _) in world.nodes() {
                prop_assert!(Compiled::same_filter(&compiled, &before, id));
                prop_assert_eq!(meaning(&compiled, id), meaning(&before, id));
            }
        }
    }

    /// Whose rules and addresses do not change is not troubled by another's joining.
    #[test]
    fn same_is_not_only_said_of_the_very_same(world in any_world()) {
        let compiled = world.compile();
        let (Some((id, node)), again) = (world.directory.nodes.first_key_value(), world.compile()) else { return Ok(()) };
        let there = compiled.with_nodes([(*id, None)]).with_nodes([(*id, Some(node.clone()))]);
        prop_assert_eq!(Compiled::changed_nodes(&compiled, &compiled.clone()), []);
        for (other, _) in world.nodes() {
            prop_assert!(Compiled::same_filter(&compiled, &compiled.clone(), other));
            prop_assert_eq!(meaning(&there, other), meaning(&again, other));
        }
    }
}
