//! Who of a provider's people may come in, and as whom.

use super::claims::Claims;
use super::provider::Provider;
use crate::domains;
use crate::model::UserIdentity;

/// Says why a person of a provider is not let in; the text is shown to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAllowed {
    #[error("your e-mail address is not of a domain that may come in here, or your provider has not verified it")]
    Domain,
    #[error("you are in none of the groups that may come in here")]
    Group,
    #[error("you are not among the people who may come in here")]
    User,
}

/// Somebody whom a provider vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Person {
    /// Who it is.
    pub(crate) identity: UserIdentity,
    /// Name by which policies know them: the verified e-mail address, or the subject at the provider's name.
    pub(crate) login: String,
    /// Name to show.
    pub(crate) display_name: String,
    /// Tailnet that the configuration has for them, by name.
    pub(crate) tailnet: Option<String>,
    /// Whether they may make a tailnet of their own.
    pub(crate) may_make_tailnet: bool,
}

impl Provider {
    /// Applies the operator's lists: each that is not empty must know the person.
    pub(crate) fn admit(&self, claims: &Claims) -> Result<Person, NotAllowed> {
        let email = claims.verified_email().filter(|email| crate::admin::is_login(email));
        let domain = email.as_deref().and_then(|email| email.rsplit_once('@')).map(|(_, domain)| domain.to_owned());
        let known = |list: &[String], name: Option<&str>| name.is_some_and(|name| list.iter().any(|one| one == name));
        if !self.allowed_domains.is_empty() && !known(&self.allowed_domains, domain.as_deref()) {
            return Err(NotAllowed::Domain);
        }
        let groups = claims.groups(&self.groups_claim);
        if !self.allowed_groups.is_empty() && !self.allowed_groups.iter().any(|group| groups.contains(group.as_str())) {
            return Err(NotAllowed::Group);
        }
        if !self.allowed_users.is_empty()
            && !known(&self.allowed_users, email.as_deref())
            // Some providers let people choose their subject, which must not pass for a verified address.
            && !known(&self.allowed_users, Some(claims.subject.as_str()).filter(|subject| !subject.contains('@')))
        {
            return Err(NotAllowed::User);
        }
        let login = email.unwrap_or_else(|| self.login_of_subject(&claims.subject));
        let own = domain.filter(|domain| !domains::is_public(domain));
        let tailnet = own.and_then(|domain| self.tailnets.get(&domain)).or_else(|| self.tailnets.get(EVERYBODY));
        Ok(Person {
            display_name: claims.name().unwrap_or(&login).to_owned(),
            identity: UserIdentity { issuer: self.issuer.clone(), subject: claims.subject.clone() },
            login,
            tailnet: tailnet.cloned(),
            may_make_tailnet: self.new_tailnets,
        })
    }

    /// Names somebody without a verified address: nobody chooses it, and it cannot look like an address of others.
    fn login_of_subject(&self, subject: &str) -> String {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
        if subject.bytes().all(plain) && subject.len() <= 100 {
            return format!("{subject}@{}", self.name);
        }
        let digest = crate::store::audit::hex(&super::digest(subject));
        format!("{}@{}", digest.chars().take(32).collect::<String>(), self.name)
    }
}

/// In place of a domain: all whom a provider knows.
pub(super) const EVERYBODY: &str = "*";
