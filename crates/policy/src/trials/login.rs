//! One entry of `sshTests`: a source, destinations, and the logins that must be open to it or not.

use super::network::{attributes, named};
use crate::model::{SshAction, SshGrant, SshTest};
use crate::reach::{Named, Party};
use crate::ssh::{applies, lets_in};
use crate::{Attributes, Reach};

/// Runs a test; returns what is wrong.
pub(super) fn run(reach: &Reach<'_>, test: &SshTest) -> Vec<String> {
    let mut errors = Vec::new();
    if test.source.trim().is_empty() {
        errors.push("SSH tests entry must have a non-empty src".to_owned());
    }
    if test.destinations.is_empty() {
        errors.push("SSH tests entry must have at least one dst".to_owned());
    }
    let logins = || test.accept.iter().chain(&test.check).chain(&test.deny);
    if logins().next().is_none() {
        errors.push("SSH tests entry must have at least one of \"accept\", \"check\" or \"deny\"".to_owned());
    }
    if logins().any(|login| login.trim().is_empty()) {
        errors.push("SSH tests login names cannot be empty".to_owned());
    }
    let mut destinations = Vec::new();
    for text in &test.destinations {
        match destination(reach, text) {
            Ok(named) => destinations.push((text, named)),
            Err(problem) => errors.push(problem),
        }
    }
    let sources = match named(reach, &test.source) {
        Ok(sources) if errors.is_empty() => sources,
        Ok(_) => return errors,
        Err(problem) => {
            errors.push(format!("src: {problem}"));
            return errors;
        }
    };
    let mut sources = sources.parties(reach);
    let assumed: Vec<Attributes>;
    if !test.attributes.is_empty() {
        assumed = sources.iter().map(|source| attributes(source.attributes, &test.attributes)).collect();
        sources.iter_mut().zip(&assumed).for_each(|(source, assumed)| source.attributes = Some(assumed));
    }
    for (text, named) in &destinations {
        let destinations = named.parties(reach);
        let question = Question { reach, sources: &sources, destinations: &destinations };
        errors.extend(question.errors(text, test));
    }
    errors
}

/// Looks a destination up. IPv6 addresses are refused, as the original service does.
fn destination(reach: &Reach<'_>, text: &str) -> Result<Named, String> {
    let text = text.trim();
    if text.starts_with("tag:") && !reach.policy.sections.tag_owners.contains_key(text) {
        return Err(format!("SSH tests dst contains unknown tag {text:?}"));
    }
    let bare_ipv6 = text.parse::<std::net::Ipv6Addr>().is_ok();
    if text == "*" || text.starts_with("autogroup:") || text.contains('/') || bare_ipv6 {
        return Err(format!("SSH tests dst contains disallowed element {text:?}"));
    }
    named(reach, text).map_err(|problem| format!("dst {text:?}: {problem}"))
}

struct Question<'a> {
    reach: &'a Reach<'a>,
    sources: &'a [Party<'a>],
    destinations: &'a [Party<'a>],
}

impl Question<'_> {
    fn errors(&self, text: &str, test: &SshTest) -> Vec<String> {
        let mut errors = Vec::new();
        let mut demand = |login: &str, holds: bool, wanted: &str, got: &str| {
            if !holds {
                errors.push(format!("dst {text:?}, user {login:?}: want: {wanted}, got: {got}"));
            }
        };
        for login in &test.accept {
            demand(login, self.everywhere(login, |_| true), "Accept", "Drop");
        }
        for login in &test.check {
            demand(login, self.everywhere(login, |action| action != SshAction::Accept), "Check", "no check");
        }
        for login in &test.deny {
            demand(login, !self.anywhere(login), "Drop", "Accept");
        }
        errors
    }

    /// Tells whether every source may log in at every destination by a rule with a fitting action.
    fn everywhere(&self, login: &str, action: impl Fn(SshAction) -> bool) -> bool {
        self.pairs()
            .all(|(source, destination)| self.rules(source, destination, login).any(|rule| action(rule.action.clone())))
    }

    fn anywhere(&self, login: &str) -> bool {
        self.pairs().any(|(source, destination)| self.rules(source, destination, login).next().is_some())
    }

    fn pairs(&self) -> impl Iterator<Item = (Party<'_>, Party<'_>)> {
        let destinations = self.destinations.iter();
        self.sources.iter().flat_map(move |source| destinations.clone().map(move |destination| (*source, *destination)))
    }

    fn rules<'b>(
        &'b self,
        source: Party<'b>,
        destination: Party<'b>,
        login: &'b str,
    ) -> impl Iterator<Item = &'b SshGrant> {
        let rules = self.reach.policy.sections.ssh.iter();
        rules.filter(move |rule| {
            applies(self.reach, rule, source, destination) && lets_in(self.reach, rule, source.owner, login)
        })
    }
}
