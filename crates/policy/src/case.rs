//! A policy with its users, nodes and settings as one JSON object, and what becomes of it as another.
//!
//! This is the form of recorded outcomes of the original service, so that they can be compared, and of a tailnet in a
//! file, so that a policy can be tried without a server.

mod input;

pub use input::{CASE_MAX_BYTES, Case, CaseError};

use crate::{Compiled, Directory, Policy, Reach, Role, SshRules, TESTS_FAILED};
use ipnet::IpNet;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use warren_wire::control::{CapMap, FilterRule, NodeId, RawJson};

/// What the original service gives every node, whatever the policy says. Source: policy.md, section 11.
const BASELINE: [&str; 7] = [
    "https://tailscale.com/cap/file-sharing",
    "https://tailscale.com/cap/ssh",
    "https://tailscale.com/cap/tailnet-lock",
    "probe-udp-lifetime",
    "ssh-behavior-v1",
    "ssh-env-vars",
    "store-appc-routes",
];
const IS_ADMIN: &str = "https://tailscale.com/cap/is-admin";
const IS_OWNER: &str = "https://tailscale.com/cap/is-owner";

/// Compiles a case, given as JSON text; `now` is in Unix seconds, for rules that hold at times only.
///
/// The answer has a `status`: 200 with `nodes`, or 400 with a `message` that says what is wrong with the policy or with
/// the case itself.
#[must_use]
pub fn run(text: &str, now: i64) -> Value {
    match Case::read(text).map_err(|error| error.to_string()).and_then(|case| compile(&case, now)) {
        Ok(nodes) => json!({ "status": 200, "message": null, "nodes": nodes }),
        Err(message) => json!({ "status": 400, "message": message, "nodes": {} }),
    }
}

/// Does what the original service does when a policy is set: reads it, runs its tests, compiles it for each node.
fn compile(case: &Case, now: i64) -> Result<Map<String, Value>, String> {
    let policy = Policy::parse(&case.policy).map_err(|errors| errors.to_string())?;
    policy.check_domains(&case.directory).map_err(|errors| errors.to_string())?;
    let directory = with_approved(case, &policy, now);
    let failures = policy.run_tests(&directory, now);
    if !failures.is_empty() {
        let lines: Vec<String> = failures.iter().map(ToString::to_string).collect();
        return Err(format!("{TESTS_FAILED}\n{}", lines.join("\n")));
    }
    let compiled = policy.compile(&directory, now);
    let reach = Reach::new(&policy, &directory, now);
    let ssh = SshRules::new(&reach);
    let nodes = case.names.iter().map(|(id, name)| {
        let rules: Vec<FilterRule> = compiled.filter(*id).iter().map(crate::NodeRule::to_wire).collect();
        let own = compiled.own_routes(*id);
        let entry = json!({
            "packet_filter": rules,
            "peers": peers(case, &compiled, *id),
            "self_allowed_ips": prefixes(&[compiled.addresses(*id), own.allowed].concat()),
            "self_primary_routes": prefixes(&own.primary),
            "ssh_rules": ssh.policy(*id).rules,
            "cap_map": capabilities(case, &reach, *id),
        });
        (name.clone(), entry)
    });
    Ok(nodes.collect())
}

/// Approves what the policy itself approves of the routes that nodes offer.
fn with_approved(case: &Case, policy: &Policy, now: i64) -> Directory {
    let reach = Reach::new(policy, &case.directory, now);
    let mut directory = case.directory.clone();
    for (id, node) in &mut directory.nodes {
        let offered = case.offered.get(id).into_iter().flatten();
        let approved = offered.filter(|route| reach.auto_approves(&node.owner, **route)).copied();
        let all: BTreeSet<IpNet> = node.approved_routes.iter().copied().chain(approved).collect();
        node.approved_routes = all.into_iter().collect();
    }
    directory
}

fn peers(case: &Case, compiled: &Compiled, node: NodeId) -> BTreeMap<String, Value> {
    let named = compiled.peers(node).filter_map(|peer| Some((case.names.get(&peer)?.clone(), peer)));
    named
        .map(|(name, peer)| {
            let routes = compiled.routes(node, peer);
            let allowed = prefixes(&[compiled.addresses(peer), routes.allowed].concat());
            (name, json!({ "allowed_ips": allowed, "primary_routes": prefixes(&routes.primary) }))
        })
        .collect()
}

fn prefixes(prefixes: &[IpNet]) -> Vec<String> {
    prefixes.iter().map(ToString::to_string).collect()
}

fn capabilities(case: &Case, reach: &Reach<'_>, node: NodeId) -> CapMap {
    let mut capabilities = reach.own_capabilities(node);
    let flags = BASELINE.into_iter().chain(by_role(&case.directory, node).iter().copied());
    capabilities.0.extend(CapMap::flags(flags).0);
    let mut value = |name: &str, value: Option<RawJson>| {
        capabilities.0.extend(value.map(|value| (name.to_owned(), vec![value])));
    };
    value("default-auto-update", RawJson::of(&case.automatic_updates).ok());
    value("tailnet-display-name", RawJson::of(&case.tailnet).ok());
    capabilities
}

/// Returns what the role of a node's owner gives it; tagged nodes are the work of the tailnet's owner.
fn by_role(directory: &Directory, node: NodeId) -> &'static [&'static str] {
    match directory.nodes.get(&node).map(|node| &node.owner) {
        Some(crate::Owner::User(user)) => match directory.users.get(user).map(|user| user.role) {
            Some(Role::Owner) => &[IS_ADMIN, IS_OWNER],
            Some(Role::Admin | Role::ItAdmin | Role::NetworkAdmin) => &[IS_ADMIN],
            Some(Role::BillingAdmin | Role::Auditor | Role::Member) | None => &[],
        },
        Some(crate::Owner::Tags(_)) => &[IS_OWNER],
        None => &[],
    }
}
