//! From HuJSON to the sections of a policy; gathers errors and goes on.

mod acls;

use crate::hujson::{Json, Kind, Member};
use crate::model::{Sections, TagOwner};
use crate::problem::{Errors, Problem};
use crate::selector::{Selector, check_tag_name, parse_prefix, user_name};
use std::collections::BTreeMap;

/// Sections that are read.
const SECTIONS: [&str; 4] = ["acls", "groups", "hosts", "tagOwners"];

/// Sections of the language that are not read yet.
const LATER_SECTIONS: [&str; 14] = [
    "grants",
    "ssh",
    "autoApprovers",
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
    "extraDNSRecords",
];

/// Reads a whole policy; `None` if it is no object.
pub(crate) fn sections(document: &Json, errors: &mut Errors<'_>) -> Option<Sections> {
    let members = object(document, "the policy", errors)?;
    let mut known: BTreeMap<&str, &Member> = BTreeMap::new();
    for member in members {
        let is = |name: &&&str| name.eq_ignore_ascii_case(&member.name);
        if let Some(section) = SECTIONS.iter().find(is) {
            // HuJSON already refused equal spellings; this catches those that differ in case.
            if let Some(first) = known.insert(section, member) {
                errors.note_duplicate(member.at, &member.name, first.at);
            }
        } else if LATER_SECTIONS.iter().any(|name| is(&name)) {
            let name = member.name.clone();
            errors.note(member.at, Problem::UnsupportedSection { name });
        } else {
            let name = member.name.clone();
            errors.note(member.at, Problem::UnknownField { name, known: &SECTIONS });
        }
    }
    let section = |name: &str| known.get(name).map(|member| &member.value);
    let mut sections = Sections::default();
    if let Some(groups) = section("groups") {
        read_groups(groups, &mut sections, errors);
    }
    if let Some(hosts) = section("hosts") {
        read_hosts(hosts, &mut sections, errors);
    }
    if let Some(owners) = section("tagOwners") {
        read_tag_owners(owners, &mut sections, errors);
    }
    sections.grants = match section("acls").filter(|acls| acls.kind != Kind::Null) {
        Some(acls) => acls::read(acls, &sections, errors),
        None => vec![acls::allow_all()],
    };
    sections.grant_places = vec![0; sections.grants.len()];
    Some(sections)
}

fn read_groups(section: &Json, sections: &mut Sections, errors: &mut Errors<'_>) {
    for (group, member) in definitions(section, "\"groups\"", errors) {
        if group.strip_prefix("group:").is_none_or(str::is_empty) {
            let name = group.to_owned();
            errors.note(member.at, Problem::GroupName { name });
            continue;
        }
        let mut logins = Vec::new();
        for (at, login) in texts(&member.value, &format!("a list of users in {group:?}"), errors) {
            if login.starts_with("group:") {
                let (group, member) = (group.to_owned(), login.to_owned());
                errors.note(at, Problem::NestedGroup { group, member });
            } else if !login.contains('@') {
                let name = login.to_owned();
                errors.note(at, Problem::UserName { name });
            } else {
                logins.push(user_name(login).to_owned());
            }
        }
        sections.groups.insert(group.to_owned(), logins);
    }
}

fn read_hosts(section: &Json, sections: &mut Sections, errors: &mut Errors<'_>) {
    for (name, member) in definitions(section, "\"hosts\"", errors) {
        let name = name.to_owned();
        if name.is_empty() || name.contains([':', '*', '@', '/']) || parse_prefix(&name).is_some() {
            errors.note(member.at, Problem::HostName { name });
            continue;
        }
        let Some(address) = text(&member.value, &format!("the address of {name:?}"), errors) else {
            continue;
        };
        match parse_prefix(address) {
            Some(prefix) => drop(sections.hosts.insert(name, prefix)),
            None => {
                let address = address.to_owned();
                errors.note(member.value.at, Problem::HostAddress { name, address });
            }
        }
    }
}

fn read_tag_owners(section: &Json, sections: &mut Sections, errors: &mut Errors<'_>) {
    let members = definitions(section, "\"tagOwners\"", errors);
    // First the names, so that owners may name tags that come later.
    for (tag, member) in &members {
        match check_tag_name(tag) {
            Ok(()) => drop(sections.tag_owners.insert((*tag).to_owned(), Vec::new())),
            Err(problem) => errors.note(member.at, problem),
        }
    }
    for (tag, member) in members {
        let mut owners = Vec::new();
        for (at, text) in texts(&member.value, &format!("a list of owners of {tag:?}"), errors) {
            match tag_owner(tag, text, sections) {
                Ok(owner) => owners.push(owner),
                Err(problem) => errors.note(at, problem),
            }
        }
        if let Some(entry) = sections.tag_owners.get_mut(tag) {
            *entry = owners;
        }
    }
}

fn tag_owner(tag: &str, text: &str, sections: &Sections) -> Result<TagOwner, Problem> {
    let selector = Selector::parse(text)?;
    match selector {
        Selector::User(_) | Selector::Members => Ok(TagOwner::Nodes(selector)),
        Selector::Group(group) if sections.groups.contains_key(&group) => Ok(TagOwner::Nodes(Selector::Group(group))),
        Selector::Group(group) => Err(Problem::UndefinedGroup { group }),
        Selector::Tag(owner) if sections.tag_owners.contains_key(&owner) => Ok(TagOwner::Tag(owner)),
        Selector::Tag(owner) => Err(Problem::UndefinedOwnerTag { tag: tag.to_owned(), owner }),
        Selector::Any
        | Selector::Host(_)
        | Selector::Prefix(_)
        | Selector::IpSet(_)
        | Selector::Service(_)
        | Selector::UsersOfDomain(_)
        | Selector::Role(_)
        | Selector::Tagged
        | Selector::Shared
        | Selector::Everywhere
        | Selector::Internet
        | Selector::OwnDevices => Err(Problem::TagOwner { owner: text.to_owned() }),
    }
}

/// Returns the members of an object; `null` has none.
fn object<'a>(value: &'a Json, place: &str, errors: &mut Errors<'_>) -> Option<&'a [Member]> {
    match &value.kind {
        Kind::Object(members) => Some(members),
        Kind::Null if place != "the policy" => Some(&[]),
        Kind::Null | Kind::Bool | Kind::Number | Kind::Text(_) | Kind::List(_) => {
            wrong_kind(value, place, "an object in braces", errors);
            None
        }
    }
}

/// Returns the members of an object that defines names, without blanks around the names; each name once.
fn definitions<'a>(section: &'a Json, place: &str, errors: &mut Errors<'_>) -> Vec<(&'a str, &'a Member)> {
    let mut seen = BTreeMap::new();
    let mut found = Vec::new();
    for member in object(section, place, errors).unwrap_or_default() {
        let name = member.name.trim();
        match seen.insert(name, member.at) {
            Some(first) => errors.note_duplicate(member.at, name, first),
            None => found.push((name, member)),
        }
    }
    found
}

/// Returns the elements of a list; `null` has none.
fn list<'a>(value: &'a Json, place: &str, errors: &mut Errors<'_>) -> &'a [Json] {
    match &value.kind {
        Kind::List(elements) => elements,
        Kind::Null => &[],
        Kind::Bool | Kind::Number | Kind::Text(_) | Kind::Object(_) => {
            wrong_kind(value, place, "a list in brackets", errors);
            &[]
        }
    }
}

/// Returns a text without blanks around it.
fn text<'a>(value: &'a Json, place: &str, errors: &mut Errors<'_>) -> Option<&'a str> {
    if let Kind::Text(text) = &value.kind {
        return Some(text.trim());
    }
    wrong_kind(value, place, "a text in double quotes", errors);
    None
}

/// Returns the texts of a list with their places.
fn texts<'a>(value: &'a Json, place: &str, errors: &mut Errors<'_>) -> Vec<(usize, &'a str)> {
    list(value, place, errors)
        .iter()
        .filter_map(|element| Some((element.at, text(element, &format!("an entry of {place}"), errors)?)))
        .collect()
}

fn wrong_kind(value: &Json, place: &str, wanted: &'static str, errors: &mut Errors<'_>) {
    let (place, found) = (place.to_owned(), value.kind.noun());
    errors.note(value.at, Problem::WrongKind { place, wanted, found });
}

#[cfg(test)]
mod tests;
