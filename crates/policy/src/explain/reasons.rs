//! Why nothing allows it.

use super::question::{Device, Service};
use super::same_family;
use crate::Reach;
use crate::model::Grant;
use crate::reach::{Fit, Party, RuleLine, is_internet};
use crate::rights::services;
use std::collections::BTreeSet;

/// Most reasons that are given.
const REASONS_MAX: usize = 12;
/// Pairs that are looked at for reasons; those of one question are alike.
const PAIRS_MAX: usize = 200;

/// How much of a rule fits some pair that no rule allows, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Near {
    /// All but the way there.
    Way,
    /// All but the time.
    Time,
    /// All but the posture of the source.
    Posture,
    /// Source and destination, but no packets at all.
    Capabilities,
    /// Source and destination, but other traffic.
    Traffic,
    /// Destination and traffic, but another source.
    Source,
}

/// Returns why pairs of devices do not reach each other, the likeliest first.
pub(super) fn of(
    reach: &Reach<'_>,
    denied: &[(&Device<'_>, &Device<'_>)],
    service: &Service,
    [from, to]: [&str; 2],
) -> Vec<String> {
    let mut reasons = unreachable(reach, denied);
    let pairs: Vec<(Party<'_>, Party<'_>)> =
        denied.iter().flat_map(|(from, to)| same_family(from, to)).take(PAIRS_MAX).collect();
    if pairs.is_empty() {
        reasons.push(format!("{from} and {to} have no addresses of the same family, IPv4 or IPv6"));
        return reasons;
    }
    let (mut any_source, mut any_destination) = (false, false);
    let mut near: BTreeSet<(Near, usize)> = BTreeSet::new();
    for (number, grant) in reach.rules() {
        let mut best: Option<Near> = None;
        for (source, destination) in &pairs {
            let fit = reach.fit(grant, *source, *destination, &service.0);
            any_source |= fit.source;
            any_destination |= fit.destination;
            best = [best, nearness(grant, fit)].into_iter().flatten().min();
        }
        near.extend(best.map(|best| (best, number)));
    }
    for (kind, number) in near {
        let Some(grant) = reach.policy.sections.grants.get(number) else { continue };
        let line = RuleLine::of(reach, number, grant).line;
        reasons.push(sentence(kind, grant, line, [from, to]));
    }
    if reasons.is_empty() {
        reasons.push(match (any_source, any_destination) {
            (false, false) => format!("no rule names {from} as a source, and none names {to} as a destination"),
            (false, true) => format!("no rule names {from} as a source"),
            (true, false) => format!("no rule names {to} as a destination"),
            (true, true) => format!("rules name {from} as a source and others name {to} as a destination, none both"),
        });
    }
    reasons.truncate(REASONS_MAX);
    reasons
}

/// Says of which destinations no packet finds the way.
fn unreachable(reach: &Reach<'_>, denied: &[(&Device<'_>, &Device<'_>)]) -> Vec<String> {
    let mut reasons = Vec::new();
    let destinations = denied.iter().flat_map(|(_, to)| &to.parties);
    for party in destinations.filter(|party| party.node.is_none()) {
        let Some(address) = party.address.filter(|_| reach.has_addresses()) else { continue };
        if reach.carriers(address).next().is_some() {
            continue;
        }
        let reason = match (is_internet(address), reach.exit_nodes()) {
            (true, []) => format!("{address} is on the Internet, and no node has an approved exit route"),
            (true, _) => continue,
            (false, _) => format!("{address} is no node's address and is behind no approved route"),
        };
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    reasons
}

fn nearness(grant: &Grant, fit: Fit) -> Option<Near> {
    let Fit { source, posture, destination, traffic, time } = fit;
    match (source, destination, traffic) {
        (true, true, true) if !posture => Some(Near::Posture),
        (true, true, true) if !time => Some(Near::Time),
        (true, true, true) => Some(Near::Way),
        (true, true, false) if grant.services.is_empty() => Some(Near::Capabilities),
        (true, true, false) => Some(Near::Traffic),
        (false, true, true) if time => Some(Near::Source),
        _ => None,
    }
}

fn sentence(kind: Near, grant: &Grant, line: usize, [from, to]: [&str; 2]) -> String {
    match kind {
        Near::Way if grant.via.is_empty() => {
            format!("the rule on line {line} allows it, but no node is the way to {to}")
        }
        Near::Way => format!(
            "the rule on line {line} leads through {} alone, and no node with that tag has an approved route to {to}",
            grant.via.join(" or ")
        ),
        Near::Time => format!("the rule on line {line} would allow it, but does not hold now: {}", services(grant)),
        Near::Posture => format!(
            "the rule on line {line} demands {} of the device, and {from} does not have it",
            grant.postures.join(" or ")
        ),
        Near::Capabilities => format!("the rule on line {line} gives capabilities alone: {}", services(grant)),
        Near::Traffic => format!("the rule on line {line} names {from} and {to}, but only {}", services(grant)),
        Near::Source => format!("the rule on line {line} lets others reach {to}; {from} is not among its sources"),
    }
}
