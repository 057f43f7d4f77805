//! From HuJSON to the sections of a policy; gathers errors and goes on.
//!
//! Sections that define names are read first, so that the others can be held against them.

mod acls;
mod definitions;
mod duration;
mod grants;
mod ip_sets;
mod json;
mod nodes;
mod relays;
mod rules;
mod scope;
mod ssh;
mod trials;
mod validity;

use crate::hujson::{Json, Kind};
use crate::model::Sections;
use crate::problem::{Errors, Problem};
use json::{Fields, Shape, wrong_kind};
use scope::Scope;
use std::collections::BTreeMap;

const POLICY: Shape = Shape::new(
    "the policy",
    &[
        "acls",
        "grants",
        "groups",
        "hosts",
        "tagOwners",
        "autoApprovers",
        "ssh",
        "tests",
        "sshTests",
        "nodeAttrs",
        "postures",
        "defaultSrcPosture",
        "ipsets",
        "derpMap",
        "disableIPv4",
        "OneCGNATRoute",
        "randomizeClientPort",
    ],
);

/// How macOS may route the addresses of the tailnet.
const CGNAT_ROUTES: [&str; 3] = ["", "mac-always", "mac-never"];

/// Reads a whole policy; `None` if it is no object.
pub(crate) fn sections(document: &Json, errors: &mut Errors<'_>) -> Option<Sections> {
    if document.kind == Kind::Null {
        wrong_kind(document, POLICY.place, "an object in braces", errors);
        return None;
    }
    let policy = Fields::read(document, &POLICY, errors)?;
    one_spelling_of_members(document, errors);
    let mut sections = Sections::default();
    definitions::groups(&policy, &mut sections, errors);
    definitions::hosts(&policy, &mut sections, errors);
    definitions::tag_owners(&policy, &mut sections, errors);
    definitions::postures(&policy, &mut sections, errors);
    sections.ip_sets = ip_sets::read(&policy, &sections, errors);
    let scope = Scope::new(&policy, &sections, errors);
    let mut rules = rules::Rules::default();
    grants::read(&policy, &scope, &mut rules, errors);
    acls::read(&policy, &scope, &mut rules, errors);
    if policy.get("acls").is_none() && policy.get("grants").is_none() {
        rules.allow_all(&scope);
    }
    let ssh = ssh::read(&policy, &scope, errors);
    let node_attributes = nodes::attributes(&policy, &scope, errors);
    sections.auto_approvers = nodes::approvers(&policy, &scope, errors);
    (sections.grants, sections.grant_places) = rules.finish();
    sections.ssh = ssh;
    sections.node_attributes = node_attributes;
    sections.tests = trials::network(&policy, errors);
    sections.ssh_tests = trials::logins(&policy, errors);
    relays::read(&policy, &mut sections, errors);
    sections.disable_ipv4 = policy.switch("disableIPv4", errors);
    sections.randomize_client_port = policy.switch("randomizeClientPort", errors);
    if let Some((at, text)) = policy.text("OneCGNATRoute", errors) {
        if !CGNAT_ROUTES.contains(&text) {
            let (text, allowed) = (text.to_owned(), "write mac-always, mac-never, or nothing between the quotes");
            errors.note(at, Problem::Choice { place: "OneCGNATRoute", text, allowed });
        }
        sections.one_cgnat_route = text.to_owned();
    }
    Some(sections)
}

/// Demands that `autogroup:member` and its alias do not stand in one file.
fn one_spelling_of_members(document: &Json, errors: &mut Errors<'_>) {
    let mut first_places = BTreeMap::new();
    spellings(document, &mut first_places);
    if first_places.len() > 1
        && let Some(later) = first_places.values().max()
    {
        errors.note(*later, Problem::BothMemberSpellings);
    }
}

/// Finds the first place of each spelling, as a selector or with ports. Nesting was limited before.
fn spellings(value: &Json, first_places: &mut BTreeMap<&'static str, usize>) {
    match &value.kind {
        Kind::Text(text) => {
            let text = text.trim();
            for spelling in ["autogroup:member", "autogroup:members"] {
                if text.strip_prefix(spelling).is_some_and(|rest| rest.is_empty() || rest.starts_with(':')) {
                    first_places.entry(spelling).or_insert(value.at);
                }
            }
        }
        Kind::List(elements) => elements.iter().for_each(|element| spellings(element, first_places)),
        Kind::Object(members) => members.iter().for_each(|member| spellings(&member.value, first_places)),
        Kind::Null | Kind::Bool(_) | Kind::Number(_) => {}
    }
}

#[cfg(test)]
mod tests;
