//! Domains that a policy speaks about must be the tailnet's own.

use crate::model::SshUser;
use crate::problem::{Errors, PolicyErrors, Problem};
use crate::selector::Selector;
use crate::{Directory, Policy};

impl Policy {
    /// Checks that the domains in `user:*@domain` and `localpart:*@domain` are the tailnet's own, so that they do not let
    /// strangers in who have a login of the same public domain.
    ///
    /// # Errors
    /// Each other domain, at its first place.
    pub fn check_domains(&self, directory: &Directory) -> Result<(), PolicyErrors> {
        let sections = &self.sections;
        let rules = sections.grants.iter().flat_map(|grant| grant.sources.iter().chain(&grant.destinations));
        let ssh = sections.ssh.iter().flat_map(|rule| rule.sources.iter().chain(&rule.destinations));
        let targets = sections.node_attributes.iter().flat_map(|entry| &entry.targets);
        let of_ssh = ssh.map(|selector| (selector, "[ssh] "));
        let named =
            rules.chain(targets).map(|selector| (selector, "")).chain(of_ssh).filter_map(|(selector, section)| {
                let Selector::UsersOfDomain(domain) = selector else { return None };
                Some((section, "user:*@", domain))
            });
        let logins = sections.ssh.iter().flat_map(|rule| &rule.users).filter_map(|user| match user {
            SshUser::LocalPart { domain } => Some(("", "localpart:*@", domain)),
            SshUser::NonRoot | SshUser::Name(_) => None,
        });
        let mut errors = Errors::new(self.text());
        let mut seen = std::collections::BTreeSet::new();
        for (section, form, domain) in named.chain(logins) {
            if !directory.domains.contains(domain) && seen.insert((form, domain)) {
                let at = self.text().find(&format!("{form}{domain}")).unwrap_or_default();
                errors.note(at, Problem::ForeignDomain { section, domain: domain.clone() });
            }
        }
        errors.finish(Some(()))
    }
}
