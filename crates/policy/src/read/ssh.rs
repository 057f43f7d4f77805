//! The section `ssh`.
//!
//! Source: policy.md, sections 10.1 and 10.2.

use super::duration;
use super::json::{Fields, Shape, noted};
use super::scope::{Place, Scope};
use crate::hujson::Kind;
use crate::model::{SshAction, SshGrant, SshUser};
use crate::problem::{Errors, Problem};
use crate::selector::{Selector, is_domain};
use std::time::Duration;

const RULE: Shape = Shape::new(
    "an SSH rule",
    &["action", "src", "dst", "users", "checkPeriod", "acceptEnv", "recorder", "enforceRecorder", "srcPosture"],
);

/// How long a check lasts when the rule does not say.
const DEFAULT_CHECK: Duration = Duration::from_secs(12 * 3_600);
/// Longest time that a check may last.
const LONGEST_CHECK: Duration = Duration::from_secs(168 * 3_600);

type Found<'a> = [(usize, &'a str, Selector)];

/// Reads all rules.
pub(super) fn read(policy: &Fields<'_>, scope: &Scope<'_>, errors: &mut Errors<'_>) -> Vec<SshGrant> {
    let rules = policy.list("ssh", errors).iter();
    rules.filter_map(|rule| read_rule(&Fields::read(rule, &RULE, errors)?, scope, errors)).collect()
}

fn read_rule(rule: &Fields<'_>, scope: &Scope<'_>, errors: &mut Errors<'_>) -> Option<SshGrant> {
    let action = action(rule, errors);
    let sources = scope.selectors(rule, "src", (Place::SshSource, "src="), errors);
    let destinations = destinations(rule, scope, errors);
    for (at, _, destination) in &destinations {
        noted(check_pair(&sources, destination), *at, errors);
    }
    if matches!(action, Some(SshAction::Check(_))) {
        for (at, text, _) in sources.iter().filter(|(_, _, source)| is_tagged(source)) {
            errors.note(*at, Problem::SshTaggedCheck { source_selector: (*text).to_owned() });
        }
    }
    let users = users(rule, errors);
    let accept_env = rule.texts("acceptEnv", errors);
    for (at, _) in accept_env.iter().filter(|(_, name)| name.is_empty()) {
        errors.note(*at, Problem::EmptyAcceptEnv);
    }
    let mut recorders = Vec::new();
    for (at, text) in rule.texts("recorder", errors) {
        match scope.selector(text, Place::Owner, "") {
            Ok(Selector::Tag(tag)) => recorders.push(tag),
            Ok(_) => {
                let (place, allowed) = ("recorder", "write tag:…");
                errors.note(at, Problem::Choice { place, text: text.to_owned(), allowed });
            }
            Err(problem) => errors.note(at, problem),
        }
    }
    let grant = SshGrant {
        action: action?,
        sources: sources.into_iter().map(|(_, _, selector)| selector).collect(),
        destinations: destinations.into_iter().map(|(_, _, selector)| selector).collect(),
        users,
        accept_env: accept_env.into_iter().map(|(_, name)| name.to_owned()).collect(),
        recorders,
        enforce_recorder: rule.switch("enforceRecorder", errors),
        postures: scope.source_postures(rule, errors),
    };
    (!grant.sources.is_empty() && !grant.destinations.is_empty()).then_some(grant)
}

fn action(rule: &Fields<'_>, errors: &mut Errors<'_>) -> Option<SshAction> {
    let period = rule.text("checkPeriod", errors);
    let check_period = |errors: &mut Errors<'_>| match period {
        None => Some(DEFAULT_CHECK),
        Some((at, text)) => noted(check_period(text), at, errors),
    };
    match rule.text("action", errors) {
        Some((_, "accept")) => {
            if let Some((at, _)) = period {
                errors.note(at, Problem::CheckPeriodWithoutCheck);
            }
            Some(SshAction::Accept)
        }
        Some((_, "check")) => check_period(errors).map(SshAction::Check),
        Some((at, action)) if !action.is_empty() => {
            errors.note(at, Problem::SshAction { action: action.to_owned() });
            None
        }
        None if rule.get("action").is_some() => None,
        Some(_) | None => {
            errors.note(rule.get("action").map_or(rule.at, |action| action.at), Problem::MissingSshAction);
            None
        }
    }
}

fn check_period(text: &str) -> Result<Duration, Problem> {
    if text == "always" {
        return Ok(Duration::ZERO);
    }
    let nanos = duration::parse(text).ok_or_else(|| Problem::Duration { text: text.to_owned() })?;
    let wrong = |what| Problem::CheckPeriod { period: duration::write(nanos), what };
    let period = u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| wrong("must be a positive duration"))?;
    if period > LONGEST_CHECK { Err(wrong("is above the max (168h)")) } else { Ok(period) }
}

fn destinations<'t>(rule: &Fields<'t>, scope: &Scope<'_>, errors: &mut Errors<'_>) -> Vec<(usize, &'t str, Selector)> {
    let mut found = Vec::new();
    for (at, text) in rule.texts("dst", errors) {
        let selector = scope.selector(text, Place::SshDestination, &format!("dst={text:?}: "));
        found.extend(noted(selector, at, errors).map(|selector| (at, text, selector)));
    }
    found
}

const fn is_tagged(selector: &Selector) -> bool {
    matches!(selector, Selector::Tag(_) | Selector::Tagged)
}

/// Demands that sources may reach a destination at all: devices of people are reached by people alone, and those of one
/// person by that person.
fn check_pair(sources: &Found<'_>, destination: &Selector) -> Result<(), Problem> {
    let tagged = sources.iter().find(|(_, _, source)| is_tagged(source));
    match (destination, tagged) {
        (Selector::OwnDevices, Some((_, text, _))) => {
            Err(Problem::SshSelfSources { source_selector: (*text).to_owned() })
        }
        (Selector::Members, Some(_)) => Err(Problem::SshTaggedToMember),
        (Selector::User(user), Some(_)) => Err(Problem::SshTaggedToUser { user: user.clone() }),
        (Selector::User(user), None) if sources.iter().any(|(_, _, source)| source != destination) => {
            Err(Problem::SshUserDestination { user: user.clone() })
        }
        _ => Ok(()),
    }
}

fn users(rule: &Fields<'_>, errors: &mut Errors<'_>) -> Vec<SshUser> {
    let texts = rule.texts("users", errors);
    let is_list = rule.get("users").is_none_or(|users| matches!(&users.kind, Kind::List(_)));
    let is_empty = rule.list("users", &mut Errors::new("")).is_empty();
    if is_list && is_empty {
        errors.note(rule.get("users").map_or(rule.at, |users| users.at), Problem::MissingSshUsers);
    }
    let mut users = Vec::new();
    for (at, text) in texts {
        let local_part = text.strip_prefix("localpart:*@");
        match text {
            "" | "*" => errors.note(at, Problem::SshUser { user: text.to_owned() }),
            "autogroup:nonroot" => users.push(SshUser::NonRoot),
            _ => users.push(match local_part.filter(|domain| *domain == "*" || is_domain(domain)) {
                Some(domain) => SshUser::LocalPart { domain: domain.to_owned() },
                None => SshUser::Name(text.to_owned()),
            }),
        }
    }
    users
}
