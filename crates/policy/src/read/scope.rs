//! What names stand for, and which selectors may stand where.

use super::json::Fields;
use crate::model::Sections;
use crate::problem::{Errors, Problem};
use crate::selector::Selector;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What rules may name, and what holds for those that do not say otherwise.
pub(super) struct Scope<'a> {
    pub(super) sections: &'a Sections,
    /// `defaultSrcPosture`.
    default_postures: Arc<[String]>,
}

/// Where a selector stands (policy.md, section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Source,
    Destination,
    /// Of `nodeAttrs`.
    Target,
    /// Of a tag.
    Owner,
    /// Of routes.
    Approver,
    SshSource,
    SshDestination,
}

impl<'a> Scope<'a> {
    pub(super) fn new(policy: &Fields<'_>, sections: &'a Sections, errors: &mut Errors<'_>) -> Self {
        let mut scope = Self { sections, default_postures: Arc::default() };
        scope.default_postures = scope.postures(policy, "defaultSrcPosture", errors);
        scope
    }

    /// Reads the postures that a rule demands of its sources; without any, the default ones.
    pub(super) fn source_postures(&self, rule: &Fields<'_>, errors: &mut Errors<'_>) -> Arc<[String]> {
        let own = self.postures(rule, "srcPosture", errors);
        if own.is_empty() { self.default_postures() } else { own }
    }

    /// Returns the postures that rules without their own demand.
    pub(super) fn default_postures(&self) -> Arc<[String]> {
        Arc::clone(&self.default_postures)
    }

    fn postures(&self, fields: &Fields<'_>, field: &str, errors: &mut Errors<'_>) -> Arc<[String]> {
        let mut found = Vec::new();
        for (at, name) in fields.texts(field, errors) {
            if self.sections.postures.contains_key(name) {
                found.push(name.to_owned());
            } else {
                errors.note(at, Problem::UndefinedPosture { name: name.to_owned() });
            }
        }
        found.into()
    }

    /// Reads a selector for a place; `context` stands before the message about a tag that is not defined.
    pub(super) fn selector(&self, text: &str, place: Place, context: &str) -> Result<Selector, Problem> {
        let selector = Selector::parse(text)?;
        if !place.takes(&selector) {
            return Err(place.refusal(&selector, text));
        }
        Self::defined(selector, context, self.sections)
    }

    /// Reads the selectors of a field, each once, with their places.
    pub(super) fn selectors<'t>(
        &self,
        fields: &Fields<'t>,
        field: &str,
        (place, context): (Place, &str),
        errors: &mut Errors<'_>,
    ) -> Vec<(usize, &'t str, Selector)> {
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        for (at, text) in fields.texts(field, errors) {
            match self.selector(text, place, context) {
                Ok(selector) if seen.insert(selector.clone()) => found.push((at, text, selector)),
                Ok(_) => {}
                Err(problem) => errors.note(at, problem),
            }
        }
        found
    }

    /// Demands that what a selector names is defined in the policy.
    pub(super) fn defined(selector: Selector, context: &str, sections: &Sections) -> Result<Selector, Problem> {
        match &selector {
            Selector::Tag(tag) if !sections.tag_owners.contains_key(tag) => {
                Err(Problem::UndefinedTag { context: context.to_owned(), tag: tag.clone() })
            }
            // Groups with an `@` are the identity provider's.
            Selector::Group(group) if !group.contains('@') && !sections.groups.contains_key(group) => {
                Err(Problem::UndefinedGroup { group: group.clone() })
            }
            Selector::Host(host) if !sections.hosts.contains_key(host) => {
                Err(Problem::UndefinedHost { host: host.clone() })
            }
            Selector::IpSet(name) if !sections.ip_sets.contains_key(name) => {
                Err(Problem::UndefinedIpSet { name: name.clone() })
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
}

impl Place {
    /// Tells whether a selector may stand here.
    pub(super) const fn takes(self, selector: &Selector) -> bool {
        use Place::{Approver, Destination, Owner, Source, SshDestination, Target};
        match selector {
            Selector::Any | Selector::Host(_) | Selector::Prefix(_) => matches!(self, Source | Destination | Target),
            Selector::User(_) | Selector::Tag(_) | Selector::Members | Selector::Tagged => true,
            Selector::Group(_) | Selector::UsersOfDomain(_) => !matches!(self, SshDestination),
            Selector::Role(_) => matches!(self, Source | Destination | Target | Owner | Approver),
            Selector::IpSet(_) => matches!(self, Source | Destination),
            Selector::Service(_) | Selector::Internet => matches!(self, Destination),
            Selector::Shared | Selector::Everywhere => matches!(self, Source),
            Selector::OwnDevices => matches!(self, Destination | SshDestination),
        }
    }

    /// Says why a selector may not stand here.
    fn refusal(self, selector: &Selector, text: &str) -> Problem {
        let own = text.to_owned();
        let (place, allowed) = match (self, selector) {
            (Self::Source | Self::SshSource, Selector::OwnDevices) => {
                return Problem::WrongSide { selector: own, side: "src" };
            }
            (Self::Source, Selector::Internet) => return Problem::InternetAsSource,
            (Self::Destination, Selector::Everywhere) => return Problem::EverywhereAsDestination,
            (Self::Approver, _) => return Problem::Approver { text: own },
            (Self::SshDestination, Selector::Any) => return Problem::SshDestinationAny,
            (Self::SshDestination, _) => return Problem::SshDestination { text: own },
            (Self::Source, _) => ("ACL sources", "a user, group:…, tag:…, ipset:…, a host, an address or an autogroup"),
            (Self::Destination, _) => {
                ("ACL destinations", "a user, group:…, tag:…, ipset:…, svc:…, a host, an address or an autogroup")
            }
            (Self::Target, _) => {
                ("nodeAttrs targets", "*, a user, group:…, tag:…, a host, an address or an autogroup of nodes")
            }
            (Self::Owner, _) => ("tag owners", "a user, group:…, tag:… or an autogroup of users"),
            (Self::SshSource, _) => ("SSH sources", "a user, group:…, tag:…, autogroup:member or autogroup:tagged"),
        };
        let kind = if text.starts_with("autogroup:") { "autogroup" } else { "alias" };
        Problem::Misplaced { kind, place, selector: own, allowed }
    }
}
