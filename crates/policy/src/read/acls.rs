//! The section `acls`.

use super::json::{Fields, Shape, noted};
use super::rules::{Rules, check_own_devices};
use super::scope::{Place, Scope};
use crate::model::Grant;
use crate::problem::{Errors, Problem};
use crate::schedule::Validity;
use crate::selector::{Selector, split_destination};
use crate::service::{Service, parse_ports, parse_protocol};
use std::sync::Arc;

const RULE: Shape = Shape {
    place: "a rule",
    fields: &["action", "src", "dst", "proto", "srcPosture"],
    aliases: &[("users", "src"), ("ports", "dst")],
    remarks: true,
};

/// A destination with what may reach it.
type Destination = (Selector, Service);

/// Reads all rules; each destination becomes a grant of its own.
pub(super) fn read(policy: &Fields<'_>, scope: &Scope<'_>, rules: &mut Rules, errors: &mut Errors<'_>) {
    for rule in policy.list("acls", errors) {
        let Some(rule) = Fields::read(rule, &RULE, errors) else { continue };
        for grant in read_rule(&rule, scope, errors) {
            if !rules.add(grant, rule.at, errors) {
                return;
            }
        }
    }
}

fn read_rule(rule: &Fields<'_>, scope: &Scope<'_>, errors: &mut Errors<'_>) -> Vec<Grant> {
    match rule.text("action", errors) {
        Some((_, "accept")) => {}
        Some((at, action)) => errors.note(at, Problem::UnsupportedAction { action: action.to_owned() }),
        None if rule.get("action").is_some() => {}
        None => errors.note(rule.at, Problem::MissingAction),
    }
    let protocol = rule.text("proto", errors);
    let protocol = protocol.and_then(|(at, text)| noted(parse_protocol(text), at, errors)?);
    let sources = scope.selectors(rule, "src", (Place::Source, "src="), errors);
    let destinations: Vec<Destination> = rule
        .texts("dst", errors)
        .into_iter()
        .filter_map(|(at, text)| noted(destination(text, protocol, scope), at, errors))
        .collect();
    if destinations.iter().any(|(selector, _)| *selector == Selector::OwnDevices) {
        check_own_devices(&sources, Some(&Selector::Any), errors);
    }
    let postures = scope.source_postures(rule, errors);
    let sources: Arc<[Selector]> = sources.into_iter().map(|(_, _, selector)| selector).collect();
    let grants = in_order(destinations).into_iter().map(|(selector, service)| Grant {
        sources: Arc::clone(&sources),
        destinations: vec![selector],
        services: vec![service],
        app: Arc::default(),
        via: Vec::new(),
        postures: Arc::clone(&postures),
        validity: Validity::default(),
    });
    grants.collect()
}

/// Puts the destinations that are no autogroup first, unless all are autogroups.
fn in_order(destinations: Vec<Destination>) -> Vec<Destination> {
    let is_self = |entry: &Destination| entry.0 == Selector::OwnDevices;
    let is_autogroup = |entry: &Destination| {
        matches!(
            entry.0,
            Selector::OwnDevices | Selector::Members | Selector::Tagged | Selector::Internet | Selector::Role(_)
        )
    };
    if destinations.iter().all(is_autogroup) {
        return destinations;
    }
    let (own, mut others): (Vec<_>, Vec<_>) = destinations.into_iter().partition(is_self);
    others.extend(own);
    others
}

fn destination(text: &str, protocol: Option<u8>, scope: &Scope<'_>) -> Result<Destination, Problem> {
    let (selector, ports) = split_destination(text)?;
    let service = Service { protocol, ports: parse_ports(ports, &format!("dst={text:?}: "))? };
    service.check()?;
    let selector = scope.selector(selector.trim(), Place::Destination, &format!("dst={selector:?}: "))?;
    Ok((selector, service))
}
