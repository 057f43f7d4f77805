//! Outcomes that the original service gave for a policy and a set of nodes.
//!
//! A few cases are committed beside this file. Many more lie in `../shared/conformance/policy` of a developer's
//! machine, in the same form: one JSON object a line. Cases that need what this version refuses by name are counted
//! and left out.

use ipnet::IpNet;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use warren_policy::{Directory, DirectoryNode, DirectoryUser, Owner, Policy};
use warren_wire::control::{FilterRule, NodeId, UserId};

const OWN_CASES: &str = include_str!("conformance/cases.jsonl");

/// Sections that are taken out before the policy is read: they do not change what is compared here.
const WITHOUT_EFFECT: [&str; 2] = ["autoApprovers", "sshTests"];

/// Cases whose record contradicts itself, each with the reason.
const EXCEPTIONS: [(&str, &str); 1] = [("acl-ah01", "the approved routes of the record are older than its peers")];

#[test]
fn own_cases_agree() {
    let tally = run("own cases", OWN_CASES);
    assert_eq!(tally.left_out, 0);
    assert!(tally.agreed >= 8, "{}", tally.agreed);
}

#[test]
fn recorded_cases_agree() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance/policy");
    if !folder.is_dir() {
        println!("not run: no recorded cases in {}", folder.display());
        return;
    }
    let mut agreed = 0;
    for category in ["acl", "routes", "grant", "nodeattrs", "policytest", "ssh"] {
        let lines = std::fs::read_to_string(folder.join(format!("{category}.jsonl"))).unwrap();
        agreed += run(category, &lines).agreed;
    }
    println!("recorded cases that agree: {agreed}");
    assert!(agreed >= 100, "only {agreed} cases were within the language");
}

#[derive(Default)]
struct Tally {
    agreed: usize,
    left_out: usize,
}

fn run(category: &str, lines: &str) -> Tally {
    let mut tally = Tally::default();
    let mut faults = Vec::new();
    let mut nodes = 0;
    for line in lines.lines().filter(|line| !line.is_empty()) {
        let case: Value = serde_json::from_str(line).unwrap();
        if let Some((id, reason)) = EXCEPTIONS.iter().find(|(id, _)| *id == text(&case, "id")) {
            println!("{id} not compared: {reason}");
            continue;
        }
        match check(&case) {
            Outcome::LeftOut => tally.left_out += 1,
            Outcome::Agrees(compared) => {
                tally.agreed += 1;
                nodes += compared;
            }
            Outcome::Differs(fault) => faults.push(format!("{}: {fault}", text(&case, "id"))),
        }
    }
    println!(
        "{category}: {} agree on {nodes} nodes, {} differ, {} need more of the language",
        tally.agreed,
        faults.len(),
        tally.left_out
    );
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    tally
}

enum Outcome {
    /// With the number of nodes compared.
    Agrees(usize),
    Differs(String),
    LeftOut,
}

fn check(case: &Value) -> Outcome {
    let Some(policy_text) = plain_policy(text(case, "policy")) else {
        return Outcome::LeftOut;
    };
    let accepted = case["status"] == 200;
    let policy = match Policy::parse(&policy_text) {
        Ok(policy) if accepted => policy,
        Ok(_) => return Outcome::Differs(format!("accepted, should be refused: {}", case["message"])),
        Err(errors) if accepted && !errors.is_only_unsupported() => {
            return Outcome::Differs(format!("refused: {errors}"));
        }
        Err(errors) if accepted || errors.is_only_unsupported() => return Outcome::LeftOut,
        Err(errors) => {
            let same_cause = causes(text(case, "message")).any(|cause| errors.to_string().contains(cause));
            if !same_cause {
                return Outcome::Differs(format!("refused for another reason: {errors}"));
            }
            return Outcome::Agrees(0);
        }
    };
    let (directory, ids) = directory(case);
    let compiled = policy.compile(&directory);
    let expected = case["expect"].as_object().unwrap();
    for (name, wanted) in expected {
        let id = ids[name];
        if let Some(wanted) = wanted.get("packet_filter") {
            let wanted: Vec<FilterRule> = serde_json::from_value(wanted.clone()).unwrap();
            let (ours, theirs) = (canonical(&compiled.filter(id)), canonical(&wanted));
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

/// Returns the policy without the sections that do not matter here; `None` if it uses comments in a way that only
/// the policy's own parser understands.
fn plain_policy(policy: &str) -> Option<String> {
    let mut policy: Map<String, Value> = match serde_json::from_str(policy) {
        Ok(policy) => policy,
        // Not plain JSON: as it is, or not at all.
        Err(_) => return Some(policy.to_owned()),
    };
    WITHOUT_EFFECT.iter().for_each(|section| drop(policy.remove(*section)));
    serde_json::to_string(&policy).ok()
}

fn directory(case: &Value) -> (Directory, BTreeMap<String, NodeId>) {
    let mut directory = Directory::default();
    let mut user_ids = BTreeMap::new();
    for user in case["users"].as_array().unwrap() {
        let id = UserId(user["id"].as_i64().unwrap());
        user_ids.insert(text(user, "name").to_owned(), id);
        let login = text(user, "email").to_owned();
        directory.users.insert(id, DirectoryUser { login });
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
