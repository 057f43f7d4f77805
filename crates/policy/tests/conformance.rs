//! Outcomes that the original service gave for a policy and a set of nodes.
//!
//! The records lie beside the repository, in `../shared/conformance/policy`, one JSON object a line, and not in it; where
//! they are missing the test says so and passes. Everything that a record holds is compared: refusals and their causes,
//! each node's packet filter, addresses and routes, peers with theirs, SSH rules and capabilities. The order of rules and
//! of what stands in them means nothing, nor does it matter how a range of addresses is cut.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop on a broken record")]

mod conformance {
    pub(crate) mod canonical;
}

use conformance::canonical::{addresses, capabilities, filter, ssh};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use warren_policy::case;

/// Every category and how many records it has.
const CATEGORIES: [(&str, usize); 7] =
    [("acl", 121), ("grant", 166), ("nodeattrs", 38), ("policytest", 32), ("routes", 76), ("ssh", 57), ("sshtest", 21)];

/// Records that contradict themselves or lack what decides, each with the reason.
const EXCEPTIONS: [(&str, &str); 1] =
    [("acl-k03", "squirtle itself does not show the route 10.33.0.0/16, all others show it there")];

/// Machines that were elected as the way to a subnet before others that offer it, too: they joined earlier, which the
/// records do not tell, since they leave the numbers of nodes out.
const JOINED_FIRST: [&str; 2] = ["metapod", "spearow"];

/// A moment for rules with an end; no record has one.
const NOW: i64 = 1_790_000_000;

#[test]
fn recorded_cases_agree() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance/policy");
    if !folder.is_dir() {
        say(&format!("conformance: skipped, no recorded cases in {}", folder.display()));
        return;
    }
    let mut faults = Vec::new();
    let mut excepted = 0;
    for (category, count) in CATEGORIES {
        let lines = std::fs::read_to_string(folder.join(format!("{category}.jsonl"))).unwrap();
        let cases: Vec<Value> =
            lines.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(cases.len(), count, "records of {category}");
        let (known, compared): (Vec<_>, Vec<_>) = cases.iter().partition(|case| exception(case).is_some());
        let differing: Vec<String> = compared
            .iter()
            .filter_map(|case| Some(format!("{}: {}", case["id"].as_str().unwrap(), check(case).err()?)))
            .collect();
        say(&format!("conformance: {category}: {} of {count} agree", compared.len() - differing.len()));
        known.iter().for_each(|case| say(&format!("  except {}: {}", case["id"], exception(case).unwrap())));
        excepted += known.len();
        faults.extend(differing);
    }
    assert!(excepted == EXCEPTIONS.len() && excepted <= 8, "exceptions that are no records");
    assert!(faults.is_empty(), "{} differ:\n{}", faults.len(), summary(&faults));
}

/// Numbers the nodes of a case: those that joined first, then the others by name.
fn numbered(case: &Value) -> Value {
    let mut case = case.clone();
    let mut nodes: Vec<(&String, &mut Value)> = case["nodes"].as_object_mut().unwrap().iter_mut().collect();
    nodes.sort_by_key(|(name, _)| (!JOINED_FIRST.contains(&name.as_str()), (*name).clone()));
    for (number, (_, node)) in (1..).zip(nodes) {
        node["id"] = Value::from(number);
    }
    case
}

/// Prints even when the test passes.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn exception(case: &Value) -> Option<&'static str> {
    EXCEPTIONS.iter().find(|(id, _)| case["id"] == *id).map(|(_, reason)| *reason)
}

/// Lists what differs; what was refused alike in many cases stands once, with the number of cases.
fn summary(faults: &[String]) -> String {
    let mut lines: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for fault in faults {
        let (id, what) = fault.split_once(": ").unwrap();
        lines.entry(what.to_owned()).or_default().push(id);
    }
    let shown = lines.iter().map(|(what, ids)| format!("{} {}: {what}", ids.len(), ids.join(" ")));
    shown.collect::<Vec<_>>().join("\n")
}

/// Compares one record with our outcome.
fn check(case: &Value) -> Result<(), String> {
    let ours = case::run(&numbered(case).to_string(), NOW);
    let message = ours["message"].as_str().unwrap_or_default();
    match (case["status"] == 200, ours["status"] == 200) {
        (true, false) => return Err(format!("refused: {}", without_places(message))),
        (false, true) => return Err(format!("accepted, must be refused: {}", case["message"])),
        (false, false) => return same_cause(case, message),
        (true, true) => {}
    }
    for (name, wanted) in case["expect"].as_object().unwrap() {
        let ours = &ours["nodes"][name];
        for (part, wanted) in wanted.as_object().unwrap() {
            let (ours, theirs) = (canonical(part, &ours[part])?, canonical(part, wanted)?);
            if ours != theirs {
                return Err(format!("{part} of {name}:\n  ours   {ours}\n  theirs {theirs}"));
            }
        }
    }
    Ok(())
}

/// Demands that a refusal names the recorded cause; the words around it may differ.
fn same_cause(case: &Value, message: &str) -> Result<(), String> {
    let theirs = case["message"].as_str().unwrap_or_default();
    // Some name the section first.
    let theirs = theirs.strip_prefix("[ssh] ").unwrap_or(theirs);
    // What the original service could not do at all we refuse with a reason.
    let named = theirs == "internal server error"
        || theirs.split(": ").chain(theirs.split('=')).any(|part| part.len() > 8 && message.contains(part));
    if named { Ok(()) } else { Err(format!("refused for another reason:\n  ours   {message}\n  theirs {theirs}")) }
}

/// Takes line and column off, so that equal refusals count together.
fn without_places(message: &str) -> String {
    let lines = message.lines().map(|line| match line.strip_prefix("line ").and_then(|rest| rest.split_once(": ")) {
        Some((_, what)) => what,
        None => line,
    });
    lines.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" | ")
}

/// Brings a part of an outcome into a form in which equal means equal.
fn canonical(part: &str, value: &Value) -> Result<String, String> {
    Ok(match part {
        "packet_filter" => filter(value),
        "self_allowed_ips" | "self_primary_routes" => addresses(value),
        "peers" => {
            let peers: BTreeMap<&String, (String, String)> = value
                .as_object()
                .into_iter()
                .flatten()
                .map(|(peer, value)| (peer, (addresses(&value["allowed_ips"]), addresses(&value["primary_routes"]))))
                .collect();
            format!("{peers:?}")
        }
        "ssh_rules" => ssh(value),
        "cap_map" => capabilities(value),
        _ => return Err(format!("unknown part {part}")),
    })
}
