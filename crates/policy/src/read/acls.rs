//! The section `acls`.

use super::{list, object, text, texts};
use crate::DESTINATIONS_MAX;
use crate::hujson::{Json, Kind, Member};
use crate::model::{Grant, Sections};
use crate::problem::{Errors, Problem};
use crate::schedule::Validity;
use crate::selector::{Selector, split_destination};
use crate::service::{Service, has_ports, parse_ports, parse_protocol};
use std::collections::BTreeSet;
use std::sync::Arc;
use warren_wire::control::PortRange;

/// Fields of a rule; the last two are old names of `src` and `dst`.
const FIELDS: [&str; 6] = ["action", "src", "dst", "proto", "users", "ports"];

/// What holds when neither `acls` nor `grants` is there.
pub(super) fn allow_all() -> Grant {
    Grant {
        sources: Arc::new([Selector::Any]),
        destinations: vec![Selector::Any],
        services: vec![Service { protocol: None, ports: vec![PortRange::ALL] }],
        app: Arc::default(),
        via: Vec::new(),
        postures: Arc::default(),
        validity: Validity::default(),
    }
}

/// Reads all rules; each destination becomes a grant of its own.
pub(super) fn read(section: &Json, sections: &Sections, errors: &mut Errors<'_>) -> Vec<Grant> {
    let mut grants = Vec::new();
    for rule in list(section, "\"acls\"", errors) {
        let Some(members) = object(rule, "a rule", errors) else { continue };
        grants.extend(read_rule(rule, members, sections, errors));
        if grants.len() > DESTINATIONS_MAX {
            errors.note(rule.at, Problem::TooManyDestinations { limit: DESTINATIONS_MAX });
            break;
        }
    }
    grants
}

fn read_rule(rule: &Json, members: &[Member], sections: &Sections, errors: &mut Errors<'_>) -> Vec<Grant> {
    let mut fields: [Option<(usize, &Json)>; 4] = [None; 4];
    for member in members.iter().filter(|member| !member.name.starts_with('#')) {
        let [action, src, dst, proto] = &mut fields;
        let slot = match member.name.to_ascii_lowercase().as_str() {
            "action" => action,
            "src" | "users" => src,
            "dst" | "ports" => dst,
            "proto" => proto,
            "srcposture" => {
                let name = member.name.clone();
                errors.note(member.at, Problem::UnsupportedField { name });
                continue;
            }
            _ => {
                let name = member.name.clone();
                errors.note(member.at, Problem::UnknownField { name, known: &FIELDS });
                continue;
            }
        };
        if let Some((first, _)) = slot.replace((member.at, &member.value)) {
            errors.note_duplicate(member.at, &member.name, first);
        }
    }
    let [action, src, dst, proto] = fields.map(|field| field.map(|(_, value)| value));
    check_action(rule, action, errors);
    let protocol = proto
        .filter(|proto| proto.kind != Kind::Null)
        .and_then(|proto| Some((proto.at, text(proto, "\"proto\"", errors)?)))
        .and_then(|(at, text)| match parse_protocol(text) {
            Ok(protocol) => protocol,
            Err(problem) => {
                errors.note(at, problem);
                None
            }
        });
    let sources: Vec<_> = src
        .map_or_else(Vec::new, |src| texts(src, "\"src\"", errors))
        .into_iter()
        .filter_map(|(at, text)| noted(source(text, sections), at, errors).map(|selector| (at, text, selector)))
        .collect();
    let destinations: Vec<_> = dst
        .map_or_else(Vec::new, |dst| texts(dst, "\"dst\"", errors))
        .into_iter()
        .filter_map(|(at, text)| noted(destination(text, protocol, sections), at, errors))
        .collect();
    if destinations.iter().any(|(selector, _)| *selector == Selector::OwnDevices) {
        for (at, text, selector) in &sources {
            let by_user = [Selector::Any, Selector::Members].contains(selector)
                || matches!(selector, Selector::User(_) | Selector::Group(_));
            if !by_user {
                let source_selector = (*text).to_owned();
                errors.note(*at, Problem::SelfWithOtherSources { source_selector });
            }
        }
    }
    let sources = each_once(sources.into_iter().map(|(_, _, selector)| selector));
    in_order(destinations)
        .into_iter()
        .map(|(selector, ports)| Grant {
            sources: Arc::clone(&sources),
            destinations: vec![selector],
            services: vec![Service { protocol, ports }],
            app: Arc::default(),
            via: Vec::new(),
            postures: Arc::default(),
            validity: Validity::default(),
        })
        .collect()
}

fn each_once(selectors: impl Iterator<Item = Selector>) -> Arc<[Selector]> {
    let mut seen = BTreeSet::new();
    selectors.filter(|selector| seen.insert(selector.clone())).collect()
}

/// Puts the destinations that are no autogroup first, unless all are autogroups.
fn in_order(destinations: Vec<(Selector, Vec<PortRange>)>) -> Vec<(Selector, Vec<PortRange>)> {
    let is_self = |entry: &(Selector, Vec<PortRange>)| entry.0 == Selector::OwnDevices;
    let is_autogroup = |entry: &(Selector, Vec<PortRange>)| is_self(entry) || entry.0 == Selector::Members;
    if destinations.iter().all(is_autogroup) {
        return destinations;
    }
    let (own, mut others): (Vec<_>, Vec<_>) = destinations.into_iter().partition(is_self);
    others.extend(own);
    others
}

fn check_action(rule: &Json, action: Option<&Json>, errors: &mut Errors<'_>) {
    let Some(value) = action.filter(|action| action.kind != Kind::Null) else {
        errors.note(rule.at, Problem::MissingAction);
        return;
    };
    if let Some(action) = text(value, "\"action\"", errors)
        && action != "accept"
    {
        let action = action.to_owned();
        errors.note(value.at, Problem::UnsupportedAction { action });
    }
}

fn noted<T>(outcome: Result<T, Problem>, at: usize, errors: &mut Errors<'_>) -> Option<T> {
    outcome.map_err(|problem| errors.note(at, problem)).ok()
}

fn source(text: &str, sections: &Sections) -> Result<Selector, Problem> {
    let selector = Selector::parse(text)?;
    if selector == Selector::OwnDevices {
        let (selector, side) = (text.to_owned(), "src");
        return Err(Problem::WrongSide { selector, side });
    }
    defined(selector, "src", text, sections)
}

fn destination(text: &str, protocol: Option<u8>, sections: &Sections) -> Result<(Selector, Vec<PortRange>), Problem> {
    let (selector, ports) = split_destination(text)?;
    let ports = parse_ports(ports, &format!("dst={text:?}: "))?;
    if !has_ports(protocol) && ports.iter().any(|ports| *ports != PortRange::ALL) {
        return Err(Problem::PortsWithoutPortProtocol {
            protocol: protocol.map(|number| number.to_string()).unwrap_or_default(),
        });
    }
    let selector = defined(Selector::parse(selector.trim())?, "dst", &selector, sections)?;
    Ok((selector, ports))
}

/// Demands that what a selector names is defined in the policy.
fn defined(selector: Selector, side: &'static str, text: &str, sections: &Sections) -> Result<Selector, Problem> {
    match &selector {
        Selector::Tag(tag) if !sections.tag_owners.contains_key(tag) => {
            Err(Problem::UndefinedTag { side, selector: text.to_owned(), tag: tag.clone() })
        }
        Selector::Group(group) if !sections.groups.contains_key(group) => {
            Err(Problem::UndefinedGroup { group: group.clone() })
        }
        Selector::Host(host) if !sections.hosts.contains_key(host) => {
            Err(Problem::UndefinedHost { host: host.clone() })
        }
        Selector::Any
        | Selector::User(_)
        | Selector::Group(_)
        | Selector::Tag(_)
        | Selector::Host(_)
        | Selector::Prefix(_)
        | Selector::IpSet(_)
        | Selector::Service(_)
        | Selector::UsersOfDomain(_)
        | Selector::Members
        | Selector::Role(_)
        | Selector::Tagged
        | Selector::Shared
        | Selector::Everywhere
        | Selector::Internet
        | Selector::OwnDevices => Ok(selector),
    }
}
