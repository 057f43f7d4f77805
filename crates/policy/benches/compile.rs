//! Prints what a policy costs: to compile, and when one node, one tag or one group changes.
//!
//! `cargo bench -p warren-policy`; as a test (`cargo test --benches`) it only checks that it runs. For each change: time,
//! bytes allocated for the new version (all of them, and what of it stays), nodes whose class, addresses or routes
//! changed, and nodes whose filter did.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for developers")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use warren_policy::{Attributes, Compiled, Directory, DirectoryNode, DirectoryUser, Owner, Policy};
use warren_wire::control::{NodeId, UserId};

/// Counts what is allocated.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static FREED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all work is the system allocator's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        FREED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Groups, tags and subnets that rules speak of.
const GROUPS: usize = 40;
const TAGS: usize = 40;
/// One node in this many offers a subnet.
const ROUTER_EVERY: usize = 200;

fn main() {
    let measuring = std::env::args().any(|word| word == "--bench");
    let sizes: &[usize] = if measuring { &[100, 1_000, 10_000, 100_000] } else { &[100] };
    let rules: &[usize] = if measuring { &[10, 100, 1_000] } else { &[10] };
    println!(
        "{:>7} {:>6}  {:<16} {:>10} {:>10} {:>10} {:>8} {:>8}",
        "nodes", "rules", "what", "time", "allocated", "kept", "changed", "filters"
    );
    for nodes in sizes {
        for rules in rules {
            run(*nodes, *rules);
        }
    }
    own_devices(if measuring { 10_000 } else { 50 });
}

/// What something cost.
struct Cost {
    time: Duration,
    allocated: usize,
    kept: usize,
}

#[expect(clippy::disallowed_methods, reason = "measuring time is what this program is for")]
fn measure<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    let (allocated, freed) = (ALLOCATED.load(Ordering::Relaxed), FREED.load(Ordering::Relaxed));
    let start = Instant::now();
    let made = work();
    let time = start.elapsed();
    let allocated = ALLOCATED.load(Ordering::Relaxed).saturating_sub(allocated);
    let freed = FREED.load(Ordering::Relaxed).saturating_sub(freed);
    (made, Cost { time, allocated, kept: allocated.saturating_sub(freed) })
}

/// Measures something often; the quickest time is nearest to the truth on a busy machine.
fn warm<T>(work: impl Fn() -> T) -> Cost {
    let costs = (0..5).map(|_| measure(&work).1);
    costs.min_by_key(|cost| cost.time).unwrap()
}

fn print(nodes: usize, rules: usize, what: &str, cost: &Cost, touched: Option<(usize, usize)>) {
    let touched = touched.map_or_else(String::new, |(changed, filters)| format!("{changed:>8} {filters:>8}"));
    println!(
        "{nodes:>7} {rules:>6}  {what:<16} {:>10} {:>10} {:>10} {touched}",
        format!("{:.2?}", cost.time),
        bytes(cost.allocated),
        bytes(cost.kept)
    );
}

fn bytes(count: usize) -> String {
    match count {
        0..10_000 => format!("{count} B"),
        10_000..10_000_000 => format!("{} kB", count / 1_000),
        _ => format!("{} MB", count / 1_000_000),
    }
}

fn run(nodes: usize, rules: usize) {
    let directory = directory(nodes);
    let policy = Policy::parse(&policy(nodes, rules, false)).unwrap();
    let (compiled, cost) = measure(|| policy.compile(&directory, 0));
    print(nodes, rules, "compile", &cost, None);
    let step = |what: &str, change: &dyn Fn() -> Compiled| {
        let cost = warm(change);
        let next = change();
        let (changed, comparing) = measure(|| Compiled::changed_nodes(&compiled, &next));
        let (filters, filtering) =
            measure(|| directory.nodes.keys().filter(|id| !Compiled::same_filter(&compiled, &next, **id)).count());
        print(nodes, rules, what, &cost, Some((changed.len(), filters)));
        (comparing, filtering)
    };
    let new = NodeId(i64::try_from(nodes).unwrap() + 1);
    step("a node joins", &|| compiled.with_nodes([(new, Some(node(nodes, nodes)))]));
    let (id, tagged) = directory.nodes.iter().find(|(_, node)| matches!(node.owner, Owner::Tags(_))).unwrap();
    let retagged = DirectoryNode { owner: Owner::Tags(BTreeSet::from(["tag:t1".to_owned()])), ..tagged.clone() };
    let (comparing, filtering) = step("a tag changes", &|| compiled.with_nodes([(*id, Some(retagged.clone()))]));
    let other = Policy::parse(&self::policy(nodes, rules, true)).unwrap();
    step("a group changes", &|| compiled.with_policy(&other));
    print(nodes, rules, "  changed_nodes", &comparing, None);
    print(nodes, rules, "  same_filter, all", &filtering, None);
    print(nodes, rules, "  filter, one node", &warm(|| compiled.filter(*id)), None);
    print(nodes, rules, "  peers, one node", &warm(|| compiled.peers(*id).count()), None);
}

/// Devices of one's own beside a plain rule, with many users.
fn own_devices(users: usize) {
    let nodes = users * 2;
    let mut directory = directory(nodes);
    for (number, node) in directory.nodes.values_mut().enumerate() {
        node.owner = Owner::User(UserId(i64::try_from(number % users).unwrap()));
        node.approved_routes.clear();
    }
    directory.users = self::users(users);
    let plain = r#"{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:member:*"]}]}"#;
    let own = r#"{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}"#;
    for (name, text) in [("plain rule", plain), ("own devices", own)] {
        let policy = Policy::parse(text).unwrap();
        println!("{name}, {users} users:");
        let (compiled, cost) = measure(|| policy.compile(&directory, 0));
        print(nodes, 1, "compile", &cost, None);
        let mut more = directory.nodes.values().next().unwrap().clone();
        more.addresses = addresses(nodes);
        let join = || compiled.with_nodes([(NodeId(i64::try_from(nodes).unwrap() + 1), Some(more.clone()))]);
        let (next, cost) = (join(), warm(join));
        let filters = directory.nodes.keys().filter(|id| !Compiled::same_filter(&compiled, &next, **id)).count();
        print(nodes, 1, "a node joins", &cost, Some((Compiled::changed_nodes(&compiled, &next).len(), filters)));
        print(nodes, 1, "  filter, one node", &warm(|| compiled.filter(NodeId(7))), None);
        print(nodes, 1, "  peers, one node", &warm(|| compiled.peers(NodeId(7)).count()), None);
        let all = measure(|| directory.nodes.keys().map(|id| compiled.filter(*id).len()).sum::<usize>());
        print(nodes, 1, "  filter, all", &all.1, None);
    }
}

fn users(count: usize) -> std::collections::BTreeMap<UserId, DirectoryUser> {
    let user = |number: usize| DirectoryUser { login: format!("u{number}@x.org"), ..DirectoryUser::default() };
    (0..count).map(|number| (UserId(i64::try_from(number).unwrap()), user(number))).collect()
}

/// Three of four nodes are users' devices, ten for each; the others have tags.
fn directory(nodes: usize) -> Directory {
    let all = (0..nodes).map(|number| (NodeId(i64::try_from(number).unwrap()), node(nodes, number)));
    Directory { users: users(user_count(nodes)), nodes: all.collect(), ..Directory::default() }
}

fn user_count(nodes: usize) -> usize {
    (nodes / 10).max(GROUPS)
}

fn node(nodes: usize, number: usize) -> DirectoryNode {
    let owner = if number % 4 == 3 {
        Owner::Tags(BTreeSet::from([format!("tag:t{}", number / 4 % TAGS)]))
    } else {
        Owner::User(UserId(i64::try_from(number % user_count(nodes)).unwrap()))
    };
    let route = format!("10.{}.{}.0/24", number / ROUTER_EVERY / 256, number / ROUTER_EVERY % 256);
    let is_router = number % ROUTER_EVERY == 3;
    let approved_routes = is_router.then(|| route.parse().unwrap()).into_iter().collect();
    DirectoryNode { owner, addresses: addresses(number), approved_routes, online: true, attributes: Attributes::new() }
}

fn addresses(number: usize) -> Vec<IpAddr> {
    let number = u32::try_from(number).unwrap();
    let v6 = 0xfd7a_115c_a1e0_0000_0000_0000_0000_0000_u128 + u128::from(number);
    vec![IpAddr::V4((0x6440_0000 + number).into()), IpAddr::V6(v6.into())]
}

/// Rules of the shapes that people write: groups to tags, members to services, people and networks to subnets.
fn policy(nodes: usize, rules: usize, other_group: bool) -> String {
    let users = user_count(nodes);
    let groups: Vec<String> = (0..GROUPS)
        .map(|group| {
            let mut members: Vec<String> =
                (0..users).filter(|user| user % GROUPS == group).map(|user| format!("\"u{user}@x.org\"")).collect();
            if other_group && group == 0 {
                members.push("\"u1@x.org\"".to_owned());
            }
            format!("\"group:g{group}\": [{}]", members.join(","))
        })
        .collect();
    let tags: Vec<String> = (0..TAGS).map(|tag| format!("\"tag:t{tag}\": []")).collect();
    let rules: Vec<String> = (0..rules)
        .map(|rule| {
            let (group, tag, port) = (rule * 7 % GROUPS, rule * 11 % TAGS, 1_000 + rule);
            let (source, destination) = match rule % 5 {
                0 | 1 => (format!("group:g{group}"), format!("tag:t{tag}:{port}")),
                2 => (format!("tag:t{}", (tag + 1) % TAGS), format!("tag:t{tag}:{port}")),
                3 => ("autogroup:member".to_owned(), format!("tag:t{}:443", tag % 4)),
                _ => (format!("group:g{group}"), format!("10.0.{}.0/24:*", rule % 256)),
            };
            format!("{{\"action\": \"accept\", \"src\": [\"{source}\"], \"dst\": [\"{destination}\"]}}")
        })
        .collect();
    format!(
        "{{\"groups\": {{{}}}, \"tagOwners\": {{{}}}, \"acls\": [{}]}}",
        groups.join(","),
        tags.join(","),
        rules.join(",")
    )
}
