//! The section `grants`.

use super::json::{Fields, Shape, definitions, list, noted, raw, wrong_kind};
use super::rules::{Rules, check_own_devices};
use super::scope::{Place, Scope};
use super::validity;
use crate::hujson::{Json, Kind};
use crate::model::Grant;
use crate::problem::{Errors, Problem};
use crate::selector::Selector;
use crate::service::Service;
use std::collections::BTreeMap;
use std::sync::Arc;
use warren_wire::control::RawJson;

const GRANT: Shape =
    Shape::new("a grant", &["src", "dst", "ip", "app", "via", "srcPosture", "from", "until", "schedule"]);

/// Capabilities of the clients' own that a policy may grant.
const CLIENT_CAPABILITIES: [&str; 6] =
    ["cap/drive", "cap/relay", "cap/webui", "cap/kubernetes", "cap/tsidp", "cap/secrets"];

/// Reads all grants.
pub(super) fn read(policy: &Fields<'_>, scope: &Scope<'_>, rules: &mut Rules, errors: &mut Errors<'_>) {
    for grant in policy.list("grants", errors) {
        let Some(fields) = Fields::read(grant, &GRANT, errors) else { continue };
        let grant = read_grant(&fields, scope, errors);
        if !rules.add(grant, fields.at, errors) {
            return;
        }
    }
}

fn read_grant(grant: &Fields<'_>, scope: &Scope<'_>, errors: &mut Errors<'_>) -> Grant {
    let sources = scope.selectors(grant, "src", (Place::Source, "src="), errors);
    let destinations = destinations(grant, scope, errors);
    if destinations.contains(&Selector::OwnDevices) {
        check_own_devices(&sources, None, errors);
    }
    let mut services = Vec::new();
    for (at, text) in grant.texts("ip", errors) {
        services.extend(noted(Service::parse(text), at, errors));
    }
    let app = grant.get("app").map(|app| capabilities(app, Demand::Grantable, errors)).unwrap_or_default();
    let is_filled = |field: &str| match grant.get(field).map(|value| &value.kind) {
        Some(Kind::List(elements)) => !elements.is_empty(),
        Some(Kind::Object(members)) => !members.is_empty(),
        None => false,
        // Of the wrong kind, which was said.
        Some(_) => true,
    };
    if !is_filled("ip") && !is_filled("app") {
        errors.note(grant.at, Problem::EmptyGrant);
    }
    if let Some(app) = grant.get("app").filter(|_| is_filled("app") && destinations.contains(&Selector::Internet)) {
        errors.note(app.at, Problem::AppToInternet);
    }
    Grant {
        sources: sources.into_iter().map(|(_, _, selector)| selector).collect(),
        destinations,
        services,
        app: Arc::new(app),
        via: via(grant, scope, errors),
        postures: scope.source_postures(grant, errors),
        validity: validity::read(grant, errors),
    }
}

fn destinations(grant: &Fields<'_>, scope: &Scope<'_>, errors: &mut Errors<'_>) -> Vec<Selector> {
    let mut found = Vec::new();
    for (at, text) in grant.texts("dst", errors) {
        let selector = scope.selector(text, Place::Destination, &format!("dst={text:?}: "));
        let selector = selector.and_then(|selector| {
            let everything = matches!(selector, Selector::Prefix(prefix) if prefix.prefix_len() == 0);
            if everything { Err(Problem::DefaultRoute { text: text.to_owned() }) } else { Ok(selector) }
        });
        found.extend(noted(selector, at, errors));
    }
    found
}

fn via(grant: &Fields<'_>, scope: &Scope<'_>, errors: &mut Errors<'_>) -> Vec<String> {
    let mut tags = Vec::new();
    for (at, text) in grant.texts("via", errors) {
        if !text.starts_with("tag:") {
            errors.note(at, Problem::ViaNoTag { text: text.to_owned() });
        } else if !scope.sections.tag_owners.contains_key(text) {
            errors.note(at, Problem::UndefinedViaTag { tag: text.to_owned() });
        } else {
            tags.push(text.to_owned());
        }
    }
    tags
}

/// Which names capabilities may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Demand {
    /// Any domain and path.
    Form,
    /// Those that a grant may hand out.
    Grantable,
}

/// Reads capabilities with their values.
pub(super) fn capabilities(app: &Json, demand: Demand, errors: &mut Errors<'_>) -> BTreeMap<String, Vec<RawJson>> {
    let mut found = BTreeMap::new();
    for (name, member) in definitions(app, "\"app\"", errors) {
        noted(check_capability(name, demand), member.at, errors);
        let mut values = Vec::new();
        for value in list(&member.value, &format!("the value of {name:?}"), errors) {
            if matches!(value.kind, Kind::Object(_)) {
                values.extend(raw(value, errors));
            } else {
                wrong_kind(value, &format!("a value of {name:?}"), "an object in braces", errors);
            }
        }
        found.insert(name.to_owned(), values);
    }
    found
}

fn check_capability(name: &str, demand: Demand) -> Result<(), Problem> {
    let form = || Problem::CapabilityForm { name: name.to_owned() };
    let (domain, path) = name.split_once('/').ok_or_else(form)?;
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let is_domain = domain.contains('.') && domain.split('.').all(is_label);
    if !is_domain || path.is_empty() || path.starts_with('/') || path.contains(char::is_whitespace) {
        return Err(form());
    }
    let own = domain.eq_ignore_ascii_case("tailscale.com");
    if demand == Demand::Grantable && own && !CLIENT_CAPABILITIES.contains(&path) {
        return Err(Problem::CapabilityDomain { name: name.to_owned() });
    }
    Ok(())
}
