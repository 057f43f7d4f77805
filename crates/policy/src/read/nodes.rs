//! The sections `nodeAttrs` and `autoApprovers`.
//!
//! Source: policy.md, sections 11 and 14.

use super::grants::{Demand, capabilities};
use super::json::{Fields, Shape, definitions, noted, texts};
use super::scope::{Place, Scope};
use crate::model::{AutoApprovers, NodeAttributes};
use crate::problem::{Errors, Problem};
use crate::selector::{Selector, parse_prefix};
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

const ENTRY: Shape = Shape::new("an entry of \"nodeAttrs\"", &["target", "attr", "app", "ipPool"]);
const APPROVERS: Shape = Shape::new("\"autoApprovers\"", &["routes", "exitNode", "services"]);

/// Where the addresses of nodes are.
const CGNAT: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
/// Addresses with another use: the service itself, and virtual machines of ChromeOS.
const RESERVED: [Ipv4Net; 2] =
    [Ipv4Net::new_assert(Ipv4Addr::new(100, 100, 100, 0), 24), Ipv4Net::new_assert(Ipv4Addr::new(100, 115, 92, 0), 23)];

/// Reads all entries of `nodeAttrs`.
pub(super) fn attributes(policy: &Fields<'_>, scope: &Scope<'_>, errors: &mut Errors<'_>) -> Vec<NodeAttributes> {
    let mut entries = Vec::new();
    for entry in policy.list("nodeAttrs", errors) {
        let Some(entry) = Fields::read(entry, &ENTRY, errors) else { continue };
        let mut targets = Vec::new();
        for (at, text) in entry.texts("target", errors) {
            let target = scope.selector(text, Place::Target, "").map_err(|problem| {
                let no_name = matches!(&problem, Problem::UndefinedHost { host } if !is_name(host));
                if no_name { Problem::Address { text: text.to_owned() } } else { problem }
            });
            targets.extend(noted(target, at, errors));
        }
        let attributes = entry.texts("attr", errors);
        for (at, _) in attributes.iter().filter(|(_, name)| name.is_empty()) {
            errors.note(*at, Problem::EmptyAttribute);
        }
        let mut ip_pool = Vec::new();
        for (at, text) in entry.texts("ipPool", errors) {
            ip_pool.extend(noted(pool(text), at, errors));
        }
        entries.push(NodeAttributes {
            targets,
            attributes: attributes.into_iter().map(|(_, name)| name.to_owned()).collect(),
            app: entry.get("app").map(|app| capabilities(app, Demand::Form, errors)).unwrap_or_default(),
            ip_pool,
        });
    }
    entries
}

/// Tells whether a text could be the name of a host at all.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|letter| letter.is_alphanumeric() || matches!(letter, '-' | '_' | '.'))
}

fn pool(text: &str) -> Result<Ipv4Net, Problem> {
    let pool = text.parse::<Ipv4Net>().map_err(|_| Problem::RoutePrefix { text: text.to_owned() })?.trunc();
    if !CGNAT.contains(&pool) {
        return Err(Problem::PoolRange { pool: text.to_owned() });
    }
    let reserved = RESERVED.iter().any(|reserved| reserved.contains(&pool) || pool.contains(reserved));
    if reserved { Err(Problem::PoolReserved { pool: text.to_owned() }) } else { Ok(pool) }
}

/// Reads `autoApprovers`.
pub(super) fn approvers(policy: &Fields<'_>, scope: &Scope<'_>, errors: &mut Errors<'_>) -> AutoApprovers {
    let mut approvers = AutoApprovers::default();
    let Some(section) = policy.get("autoApprovers").and_then(|section| Fields::read(section, &APPROVERS, errors))
    else {
        return approvers;
    };
    let selectors = |texts: Vec<(usize, &str)>, errors: &mut Errors<'_>| -> Vec<Selector> {
        let found = texts.into_iter();
        found.filter_map(|(at, text)| noted(scope.selector(text, Place::Approver, ""), at, errors)).collect()
    };
    if let Some(routes) = section.get("routes") {
        for (text, member) in definitions(routes, "\"routes\"", errors) {
            let found = texts(&member.value, &format!("a list of approvers of {text:?}"), errors);
            let found = selectors(found, errors);
            let prefix = parse_prefix(text).ok_or_else(|| Problem::RoutePrefix { text: text.to_owned() });
            let Some(prefix) = noted(prefix, member.at, errors) else { continue };
            // Default routes are approved by `exitNode` alone.
            if prefix.prefix_len() > 0 {
                approvers.routes.entry(prefix).or_default().extend(found);
            }
        }
    }
    approvers.exit_node = selectors(section.texts("exitNode", errors), errors);
    if let Some(services) = section.get("services") {
        for (name, member) in definitions(services, "\"services\"", errors) {
            let found = texts(&member.value, &format!("a list of approvers of {name:?}"), errors);
            let found = selectors(found, errors);
            if noted(check_service(name, scope), member.at, errors).is_some() {
                approvers.services.insert(name.to_owned(), found);
            }
        }
    }
    approvers
}

fn check_service(name: &str, scope: &Scope<'_>) -> Result<(), Problem> {
    match name.strip_prefix("svc:") {
        Some(rest) if is_name(rest) => Ok(()),
        None if name.starts_with("tag:") => scope.selector(name, Place::Approver, "").map(drop),
        Some(_) | None => Err(Problem::ServiceName { text: name.to_owned() }),
    }
}
