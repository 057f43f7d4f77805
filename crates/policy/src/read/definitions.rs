//! Sections that give names: `groups`, `hosts`, `tagOwners`, `postures`.

use super::json::{Fields, definitions, noted, text, texts};
use super::scope::{Place, Scope};
use crate::model::{Sections, TagOwner};
use crate::posture::Assertion;
use crate::problem::{Errors, Problem};
use crate::selector::{Selector, check_tag_name, check_user, parse_prefix};

/// Demands a name like `group:dev`.
pub(super) fn check_name(what: &'static str, prefix: &'static str, name: &str) -> Result<(), Problem> {
    match name.strip_prefix(prefix) {
        Some(rest) if !rest.is_empty() => Ok(()),
        _ => Err(Problem::DefinitionName { what, prefix, name: name.to_owned() }),
    }
}

pub(super) fn groups(policy: &Fields<'_>, sections: &mut Sections, errors: &mut Errors<'_>) {
    let Some(section) = policy.get("groups") else { return };
    for (group, member) in definitions(section, "\"groups\"", errors) {
        let checked = match group.contains('@') {
            true => Err(Problem::SyncedGroup { name: group.to_owned() }),
            false => check_name("group", "group:", group),
        };
        if noted(checked, member.at, errors).is_none() {
            continue;
        }
        let mut logins = Vec::new();
        for (at, login) in texts(&member.value, &format!("a list of users in {group:?}"), errors) {
            logins.extend(noted(group_member(group, login), at, errors).map(str::to_owned));
        }
        sections.groups.insert(group.to_owned(), logins);
    }
}

fn group_member<'a>(group: &str, login: &'a str) -> Result<&'a str, Problem> {
    if login.starts_with("group:") {
        return Err(Problem::NestedGroup { group: group.to_owned(), member: login.to_owned() });
    }
    if !login.contains('@') {
        return Err(Problem::UserName { name: login.to_owned() });
    }
    check_user(login)
}

pub(super) fn hosts(policy: &Fields<'_>, sections: &mut Sections, errors: &mut Errors<'_>) {
    let Some(section) = policy.get("hosts") else { return };
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

pub(super) fn tag_owners(policy: &Fields<'_>, sections: &mut Sections, errors: &mut Errors<'_>) {
    let Some(section) = policy.get("tagOwners") else { return };
    let members = definitions(section, "\"tagOwners\"", errors);
    // First the names, so that owners may name tags that come later.
    for (tag, member) in &members {
        if noted(check_tag_name(tag), member.at, errors).is_some() {
            sections.tag_owners.insert((*tag).to_owned(), Vec::new());
        }
    }
    for (tag, member) in members {
        let mut owners = Vec::new();
        for (at, text) in texts(&member.value, &format!("a list of owners of {tag:?}"), errors) {
            owners.extend(noted(tag_owner(tag, text, sections), at, errors));
        }
        if let Some(entry) = sections.tag_owners.get_mut(tag) {
            *entry = owners;
        }
    }
}

fn tag_owner(tag: &str, text: &str, sections: &Sections) -> Result<TagOwner, Problem> {
    let selector = Selector::parse(text)?;
    if let Selector::Tag(owner) = selector {
        let known = sections.tag_owners.contains_key(&owner);
        let undefined = |owner| Err(Problem::UndefinedOwnerTag { tag: tag.to_owned(), owner });
        return if known { Ok(TagOwner::Tag(owner)) } else { undefined(owner) };
    }
    if !Place::Owner.takes(&selector) {
        return Err(Problem::TagOwner { owner: text.to_owned() });
    }
    Scope::defined(selector, "", sections).map(TagOwner::Nodes)
}

pub(super) fn postures(policy: &Fields<'_>, sections: &mut Sections, errors: &mut Errors<'_>) {
    let Some(section) = policy.get("postures") else { return };
    for (name, member) in definitions(section, "\"postures\"", errors) {
        if noted(check_name("posture", "posture:", name), member.at, errors).is_none() {
            continue;
        }
        let texts = texts(&member.value, &format!("a list of assertions in {name:?}"), errors);
        if texts.is_empty() {
            errors.note(member.at, Problem::EmptyDefinition { name: name.to_owned() });
        }
        let assertions = texts.into_iter().filter_map(|(at, text)| noted(Assertion::parse(text), at, errors));
        let assertions = assertions.collect();
        sections.postures.insert(name.to_owned(), assertions);
    }
}
