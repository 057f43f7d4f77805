//! What an ID token says, and whether it is for us, from whom we asked, and of now.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Map, Value};
use subtle::ConstantTimeEq as _;

/// How far the clocks of a provider and this machine may be apart, in seconds.
const SKEW_SECONDS: i64 = 120;
/// Longest subject, in bytes (OpenID Connect Core, section 2).
const SUBJECT_MAX: usize = 255;
/// How many groups are looked at.
const GROUPS_MAX: usize = 2_000;
/// Longest text of any other claim, in bytes.
const TEXT_MAX: usize = 254;

/// Says why claims are not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClaimsError {
    #[error("the token's payload is no JSON object")]
    Form,
    #[error("the token has no usable claim {0:?}")]
    Missing(&'static str),
    #[error("the token is of {found:?}, not of this provider")]
    Issuer { found: String },
    #[error("the token is for another client")]
    Audience,
    #[error("the token belongs to another login")]
    Nonce,
    #[error("the token has expired; is the clock of this server right?")]
    Expired,
    #[error("the token is of the future; is the clock of this server right?")]
    Future,
    #[error("the provider's answers are about different people")]
    OtherSubject,
}

/// What an ID token must match.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected<'a> {
    /// The provider's issuer, letter by letter.
    pub(crate) issuer: &'a str,
    /// Our client ID.
    pub(crate) client_id: &'a str,
    /// Nonce of the attempt.
    pub(crate) nonce: &'a str,
    /// Time of day.
    pub(crate) now: Timestamp,
}

/// What a provider says of a person, checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Claims {
    /// Who it is, within the issuer; never given to anybody else.
    pub(crate) subject: String,
    all: Map<String, Value>,
}

impl Claims {
    /// Checks the payload of a token whose signature is right (OpenID Connect Core, section 3.1.3.7).
    pub(crate) fn check(payload: &[u8], expected: &Expected<'_>) -> Result<Self, ClaimsError> {
        let all: Map<String, Value> = serde_json::from_slice(payload).map_err(|_| ClaimsError::Form)?;
        let issuer = all.get("iss").and_then(Value::as_str).ok_or(ClaimsError::Missing("iss"))?;
        if issuer != expected.issuer {
            return Err(ClaimsError::Issuer { found: issuer.chars().take(TEXT_MAX).collect() });
        }
        check_audience(&all, expected.client_id)?;
        let nonce = all.get("nonce").and_then(Value::as_str).ok_or(ClaimsError::Missing("nonce"))?;
        if !bool::from(nonce.as_bytes().ct_eq(expected.nonce.as_bytes())) {
            return Err(ClaimsError::Nonce);
        }
        let now = expected.now.as_second();
        let expires = seconds(&all, "exp")?.ok_or(ClaimsError::Missing("exp"))?;
        let issued = seconds(&all, "iat")?.ok_or(ClaimsError::Missing("iat"))?;
        let not_before = seconds(&all, "nbf")?.unwrap_or(issued);
        if expires.saturating_add(SKEW_SECONDS) <= now {
            return Err(ClaimsError::Expired);
        }
        if issued.max(not_before) > now.saturating_add(SKEW_SECONDS) {
            return Err(ClaimsError::Future);
        }
        Self::of(all)
    }

    /// Takes claims whose origin is proved otherwise.
    pub(super) fn of(all: Map<String, Value>) -> Result<Self, ClaimsError> {
        let subject = subject(&all).ok_or(ClaimsError::Missing("sub"))?.to_owned();
        Ok(Self { subject, all })
    }

    /// Adds what the userinfo endpoint says, if it is about the same person; the token's own claims win.
    pub(crate) fn add(&mut self, user_info: Map<String, Value>) -> Result<(), ClaimsError> {
        if subject(&user_info) != Some(self.subject.as_str()) {
            return Err(ClaimsError::OtherSubject);
        }
        // An address and the word on it come from one place.
        let has_email = self.all.contains_key("email");
        for (name, value) in user_info {
            if !(has_email && name == "email_verified") {
                self.all.entry(name).or_insert(value);
            }
        }
        Ok(())
    }

    /// Tells whether a claim is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.all.contains_key(name)
    }

    /// Returns the e-mail address in lower case, if the provider verified it.
    pub(crate) fn verified_email(&self) -> Option<String> {
        // Some providers write the boolean as a text.
        let verified = match self.all.get("email_verified")? {
            Value::Bool(verified) => *verified,
            Value::String(text) => text == "true",
            Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => false,
        };
        let email = self.text("email").filter(|_| verified)?;
        Some(email.to_lowercase())
    }

    /// Returns the name to show.
    pub(crate) fn name(&self) -> Option<&str> {
        self.text("name").or_else(|| self.text("preferred_username"))
    }

    /// Returns the groups that the claim `name` lists.
    pub(crate) fn groups(&self, name: &str) -> BTreeSet<&str> {
        match self.all.get(name) {
            Some(Value::String(only)) => BTreeSet::from([only.as_str()]),
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).take(GROUPS_MAX).collect(),
            _ => BTreeSet::new(),
        }
    }

    fn text(&self, name: &str) -> Option<&str> {
        let text = self.all.get(name)?.as_str()?.trim();
        let usable = !text.is_empty() && text.len() <= TEXT_MAX && !text.chars().any(char::is_control);
        usable.then_some(text)
    }
}

fn subject(all: &Map<String, Value>) -> Option<&str> {
    let subject = all.get("sub")?.as_str()?;
    let usable = !subject.is_empty() && subject.len() <= SUBJECT_MAX && !subject.chars().any(char::is_control);
    usable.then_some(subject)
}

/// The token must be for us; if it is for others, too, it must have been asked for by us.
fn check_audience(all: &Map<String, Value>, client_id: &str) -> Result<(), ClaimsError> {
    let audience = match all.get("aud").ok_or(ClaimsError::Missing("aud"))? {
        Value::String(only) => vec![only.as_str()],
        Value::Array(list) => list.iter().map(|one| one.as_str().unwrap_or_default()).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => return Err(ClaimsError::Missing("aud")),
    };
    let asked_by_us = match all.get("azp") {
        Some(party) => party.as_str() == Some(client_id),
        None => audience.len() == 1,
    };
    if audience.contains(&client_id) && asked_by_us { Ok(()) } else { Err(ClaimsError::Audience) }
}

/// Reads a time in seconds since 1970, perhaps with a fraction.
fn seconds(all: &Map<String, Value>, name: &'static str) -> Result<Option<i64>, ClaimsError> {
    let Some(value) = all.get(name) else { return Ok(None) };
    let number = value.as_f64().filter(|number| (0.0..1e12).contains(number)).ok_or(ClaimsError::Missing(name))?;
    #[expect(clippy::cast_possible_truncation, reason = "the range was checked, and the fraction does not matter")]
    Ok(Some(number as i64))
}
