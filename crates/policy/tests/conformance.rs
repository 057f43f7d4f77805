//! Outcomes that the original service gave for a policy and a set of nodes.
//!
//! The records lie beside the repository, in `../shared/conformance/policy`, one JSON object a line, and not in it; where
//! they are missing the test says so and passes. Cases that need what this version refuses by name are counted by what
//! they need and left out. What is compared: refusals and their causes, each node's packet filter, and who sees whom.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test may stop on a broken record"
)]

use ipnet::IpNet;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;
use warren_policy::{
    Attributes, Directory, DirectoryNode, DirectoryUser, NodeRule, Owner, Policy, PolicyErrors, Problem,
};
use warren_wire::control::{FilterRule, NodeId, UserId, from_json};

/// Sections that are taken out before the policy is read: they do not change what is compared here.
const WITHOUT_EFFECT: [&str; 2] = ["autoApprovers", "sshTests"];

/// Cases whose record contradicts itself, each with the reason.
const EXCEPTIONS: [(&str, &str); 1] =
    [("acl-ah01", "its peers show the route 10.33.0.0/16 as approved, its list of approved routes does not")];

#[test]
fn recorded_cases_agree() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance/policy");
    if !folder.is_dir() {
        say(&format!("conformance: skipped, no recorded cases in {}", folder.display()));
        return;
    }
    let mut agreed = 0;
    for category in ["acl", "routes", "grant", "nodeattrs", "policytest", "ssh", "sshtest"] {
        let lines = std::fs::read_to_string(folder.join(format!("{category}.jsonl"))).unwrap();
        agreed += run(category, &lines);
    }
    assert!(agreed >= 190, "only {agreed} cases were within the language");
}

/// Prints even when the test passes: a skipped case must be seen.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Compares all cases of a category; returns how many agree.
fn run(category: &str, lines: &str) -> usize {
    let (mut agreed, mut nodes) = (0, 0);
    let mut skipped: BTreeMap<String, usize> = BTreeMap::new();
    let mut faults = Vec::new();
    for line in lines.lines().filter(|line| !line.is_empty()) {
        let case: Value = serde_json::from_str(line).unwrap();
        if let Some((_, reason)) = EXCEPTIONS.iter().find(|(id, _)| *id == text(&case, "id")) {
            *skipped.entry((*reason).to_owned()).or_default() += 1;
            continue;
        }
        match check(&case) {
            Outcome::Needs(what) => *skipped.entry(what).or_default() += 1,
            Outcome::Agrees(compared) => {
                agreed += 1;
                nodes += compared;
            }
            Outcome::Differs(fault) => faults.push(format!("{}: {fault}", text(&case, "id"))),
        }
    }
    let reasons: Vec<String> = skipped.iter().map(|(what, count)| format!("{count} {what}")).collect();
    say(&format!(
        "conformance: {category}: {agreed} agree on {nodes} nodes, {} differ, {} skipped: {}",
        faults.len(),
        skipped.values().sum::<usize>(),
        reasons.join(", ")
    ));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    agreed
}

enum Outcome {
    /// With the number of nodes compared.
    Agrees(usize),
    Differs(String),
    /// With what it uses that this version refuses by name.
    Needs(String),
}

fn check(case: &Value) -> Outcome {
    let policy_text = without_effect(text(case, "policy"));
    let accepted = case["status"] == 200;
    let policy = match Policy::parse(&policy_text) {
        Ok(policy) if accepted => policy,
        Ok(_) => return Outcome::Differs(format!("accepted, should be refused: {}", case["message"])),
        Err(errors) if accepted && !errors.is_only_unsupported() => {
            return Outcome::Differs(format!("refused: {errors}"));
        }
        Err(errors) if accepted || errors.is_only_unsupported() => return Outcome::Needs(needs(&errors)),
        Err(errors) => {
            let same_cause = causes(text(case, "message")).any(|cause| errors.to_string().contains(cause));
            if !same_cause {
                return Outcome::Differs(format!("refused for another reason: {errors}"));
            }
            return Outcome::Agrees(0);
        }
    };
    let (directory, ids) = directory(case);
    let compiled = policy.compile(&directory, 0);
    let expected = case["expect"].as_object().unwrap();
    for (name, wanted) in expected {
        let id = ids[name];
        if let Some(wanted) = wanted.get("packet_filter") {
            let wanted: Vec<FilterRule> = from_json(wanted.to_string().as_bytes()).unwrap();
            let (ours, theirs) =
                (canonical(&compiled.filter(id).iter().map(NodeRule::to_wire).collect::<Vec<_>>()), canonical(&wanted));
            if ours != theirs {
                return Outcome::Differs(format!("filter of {name}:\n  ours   {ours:?}\n  theirs {theirs:?}"));
            }
        }
        if let Some(wanted) = wanted.get("peers") {
            let theirs: BTreeSet<NodeId> = wanted.as_object().unwrap().keys().map(|peer| ids[peer]).collect();
            let ours: BTreeSet<NodeId> = compiled.peers(id).collect();
            if ours != theirs {
                return Outcome::Differs(format!("peers of {name}: ours {ours:?}, theirs {theirs:?}"));
            }
        }
    }
    Outcome::Agrees(expected.len())
}

/// Returns the parts of a recorded message that ours must hold one of.
fn causes(message: &str) -> impl Iterator<Item = &str> {
    let parts = message.split(": ").chain(message.split('='));
    parts.filter(|part| part.len() > 8)
}

/// Names what a policy uses that is not supported yet.
fn needs(errors: &PolicyErrors) -> String {
    let names: BTreeSet<&str> = errors
        .errors()
        .iter()
        .filter_map(|error| match &error.problem {
            Problem::UnsupportedSection { name } | Problem::UnsupportedField { name } => Some(name.as_str()),
            Problem::UnsupportedSelector { selector } => Some(selector.as_str()),
            _ => None,
        })
        .collect();
    names.into_iter().collect::<Vec<_>>().join("+")
}

/// Takes the sections out that do not matter here, if the policy is plain JSON.
fn without_effect(policy: &str) -> String {
    let Ok(mut members) = serde_json::from_str::<Map<String, Value>>(policy) else {
        return policy.to_owned();
    };
    WITHOUT_EFFECT.iter().for_each(|section| drop(members.remove(*section)));
    Value::Object(members).to_string()
}

fn directory(case: &Value) -> (Directory, BTreeMap<String, NodeId>) {
    let mut directory = Directory::default();
    let mut user_ids = BTreeMap::new();
    for user in case["users"].as_array().unwrap() {
        let id = UserId(user["id"].as_i64().unwrap());
        user_ids.insert(text(user, "name").to_owned(), id);
        let login = text(user, "email").to_owned();
        directory.users.insert(id, DirectoryUser { login, ..DirectoryUser::default() });
    }
    let mut ids = BTreeMap::new();
    for (number, (name, node)) in (1..).zip(case["nodes"].as_object().unwrap()) {
        let id = NodeId(number);
        ids.insert(name.clone(), id);
        let owner = match node.get("user").and_then(Value::as_str) {
            Some(user) => Owner::User(user_ids[user]),
            None => Owner::Tags(texts(node, "tags").collect()),
        };
        let advertised: BTreeSet<IpNet> = texts(node, "routable_ips").map(|route| route.parse().unwrap()).collect();
        let approved: BTreeSet<IpNet> = texts(node, "approved_routes").map(|route| route.parse().unwrap()).collect();
        let addresses = ["ipv4", "ipv6"].iter().filter_map(|family| node.get(*family)?.as_str());
        directory.nodes.insert(
            id,
            DirectoryNode {
                owner,
                addresses: addresses.map(|address| address.parse::<IpAddr>().unwrap()).collect(),
                approved_routes: advertised.intersection(&approved).copied().collect(),
                online: true,
                attributes: Attributes::new(),
            },
        );
    }
    (directory, ids)
}

type CanonicalRule = (Vec<String>, Vec<i64>, Vec<(String, u16, u16)>, usize);

/// Returns rules as a set of sets.
fn canonical(rules: &[FilterRule]) -> BTreeSet<CanonicalRule> {
    fn set<T: Ord>(entries: impl Iterator<Item = T>) -> Vec<T> {
        entries.collect::<BTreeSet<T>>().into_iter().collect()
    }
    rules
        .iter()
        .map(|rule| {
            let ports = rule.dst_ports.iter().map(|entry| (entry.ip.clone(), entry.ports.first, entry.ports.last));
            (set(rule.src_ips.iter().cloned()), set(rule.ip_proto.iter().copied()), set(ports), rule.cap_grant.len())
        })
        .collect()
}

fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object[name].as_str().unwrap_or_default()
}

fn texts(object: &Value, name: &str) -> impl Iterator<Item = String> {
    let list = object[name].as_array().cloned().unwrap_or_default();
    list.into_iter().filter_map(|entry| entry.as_str().map(str::to_owned))
}
