//! Credentials of the API: keys of users, and clients.

use std::time::Duration;

use jiff::Timestamp;
use warren_wire::control::UserId;

use super::auth_keys::sorted_tags;
use super::users::{rank, user_id};
use super::{AdminError, CredentialView, Desk, invalid, not_found};
use crate::auth_key::{self, KeyText};
use crate::authority::{Right, Rights, Scope, Standing};
use crate::model::{CredentialKind, CredentialRecord};
use crate::tailnet::snapshot::Snapshot;
use crate::tailnet::work::Work;

/// Longest description, in characters. Source: logs-and-api.md, section 13.
pub(super) const DESCRIPTION_MAX: usize = 50;
/// Least and longest life of an API key. Source: logs-and-api.md, section 9.
const API_KEY_LIFE: std::ops::RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(90 * 86_400);
/// Most credentials of a tailnet that work at a time.
const CREDENTIALS_MAX: usize = 1000;

/// What a new API key shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewApiKey {
    /// Login name of the user whose rights it has; `owner@<tailnet>` for the server's administrator if absent, otherwise
    /// whoever asks.
    pub user: Option<String>,
    /// Scopes that it is narrowed to; not at all if there are none.
    pub scopes: Vec<String>,
    /// What it is for: letters, digits, spaces and dashes, 50 at most.
    pub description: String,
    /// How long it works: a minute at least, 90 days at most.
    pub lifetime: Duration,
}

/// What an OAuth client shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewOauthClient {
    /// What it may.
    pub scopes: Vec<String>,
    /// Tags that it may give; some if it may make nodes or keys for them.
    pub tags: Vec<String>,
    /// What it is for: letters, digits, spaces and dashes, 50 at most.
    pub description: String,
}

/// A credential that was just made, and the only time that its text is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedCredential {
    /// The credential.
    pub view: CredentialView,
    /// Its text.
    pub text: KeyText,
}

impl Desk {
    /// Makes an API key, with at most the rights of whoever asks and of its user.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Invalid`], [`AdminError::Denied`].
    pub async fn create_api_key(&self, tailnet: &str, new: NewApiKey) -> Result<CreatedCredential, AdminError> {
        if !API_KEY_LIFE.contains(&new.lifetime) {
            let seconds = format!("{}s", new.lifetime.as_secs());
            return Err(invalid("lifetime of an API key: a minute at least, 90 days at most", &seconds));
        }
        let scopes = sorted(new.scopes);
        let narrowed = rights(&scopes)?;
        let (owner, user) = (format!("owner@{tailnet}"), new.user);
        let (lifetime, description) = (new.lifetime, described(new.description)?);
        let template = move |work: &Work<'_>, standing: &Standing| {
            let id = match (&standing.user, &user) {
                (Some(own), None) => own.id,
                (Some(own), Some(login)) if own.login == *login => own.id,
                (None, login) if standing.is_server() => {
                    user_id(work.state.users.values(), login.as_ref().unwrap_or(&owner))?
                }
                _ => return Err(AdminError::Denied { reason: "an API key is for its own user".to_owned() }),
            };
            // A key without scopes has all rights of its user, also those that the key that makes it does not have.
            let asked = if scopes.is_empty() { Rights::ALL } else { narrowed };
            let user = work.state.users.get(&id).ok_or_else(|| not_found("user", &id.to_string()))?;
            covered(standing, asked.and(Rights::of_role(user.role)))?;
            Ok(CredentialRecord {
                user: Some(id),
                scopes: scopes.clone(),
                description: description.clone(),
                expires: work.now.checked_add(lifetime).ok(),
                ..blank(work, CredentialKind::ApiKey)
            })
        };
        self.create_credential(tailnet, Scope::ApiTokens.write(), template).await
    }

    /// Makes an OAuth client, with at most the rights of whoever asks.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Invalid`], [`AdminError::Denied`].
    pub async fn create_oauth_client(
        &self,
        tailnet: &str,
        new: NewOauthClient,
    ) -> Result<CreatedCredential, AdminError> {
        let new = checked(new)?;
        let template = move |work: &Work<'_>, standing: &Standing| {
            Ok(CredentialRecord {
                user: standing.user.as_ref().map(|user| user.id),
                ..with_client(work, standing, &new, blank(work, CredentialKind::OauthClient))?
            })
        };
        self.create_credential(tailnet, Scope::OauthKeys.write(), template).await
    }

    /// Replaces scopes, tags and description of an OAuth client. Its tokens have no more rights than it from then on.
    ///
    /// # Errors
    /// As [`Self::create_oauth_client`].
    pub async fn set_oauth_client(&self, id: &str, new: NewOauthClient) -> Result<CredentialView, AdminError> {
        let place = self.place_of_key(id, Scope::OauthKeys.write())?;
        let new = checked(new)?;
        let (who, wanted) = (place.who(), id.to_owned());
        let record = place
            .change(move |work, standing| {
                let found = work.state.credentials.get(&wanted).map(|(record, _)| record);
                let before = found
                    .filter(|record| record.kind == CredentialKind::OauthClient && record.revoked.is_none())
                    .ok_or_else(|| not_found("key", &wanted))?;
                // Who may not have made it may not change it either: its secret would stay with somebody else.
                covered(standing, known_rights(&before.scopes))?;
                let record = with_client(work, standing, &new, before.clone())?;
                work.put_credential(&who, "credential.update", record.clone(), None);
                Ok(record)
            })
            .await?;
        Ok(view(&place.snapshot(), &record, place.now()))
    }

    /// Returns the credentials of a tailnet, or of all, of one kind or of all, the newest first.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub fn credentials(&self, tailnet: Option<&str>, kind: CredentialKind) -> Result<Vec<CredentialView>, AdminError> {
        let mut found = Vec::new();
        for place in self.places(tailnet, right(kind).scope.read())? {
            let snapshot = place.snapshot();
            let records = snapshot.credentials.values().map(|(record, _)| record).filter(|record| record.kind == kind);
            found.extend(records.map(|record| view(&snapshot, record, place.now())));
        }
        found.sort_by(|one, two| (two.created, &two.id).cmp(&(one.created, &one.id)));
        Ok(found)
    }

    /// Takes a credential back; it works no more from then on. Nobody takes back what may more than they.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Denied`].
    pub async fn revoke_credential(&self, id: &str, kind: CredentialKind) -> Result<CredentialView, AdminError> {
        let place = self.place_of_key(id, right(kind))?;
        let (who, wanted) = (place.who(), id.to_owned());
        let record = place
            .change(move |work, standing| {
                let found = work.state.credentials.get(&wanted).map(|(record, _)| record);
                let record =
                    found.filter(|record| record.kind == kind).ok_or_else(|| not_found("key", &wanted))?.clone();
                match kind {
                    CredentialKind::ApiKey => may_take_back(work, standing, record.user)?,
                    CredentialKind::OauthClient => covered(standing, known_rights(&record.scopes))?,
                }
                if record.revoked.is_some() {
                    return Ok(record);
                }
                let record = CredentialRecord { revoked: Some(work.now), ..record };
                work.put_credential(&who, "credential.revoke", record.clone(), None);
                Ok(record)
            })
            .await?;
        Ok(view(&place.snapshot(), &record, place.now()))
    }

    async fn create_credential(
        &self,
        tailnet: &str,
        right: Right,
        template: impl Fn(&Work<'_>, &Standing) -> Result<CredentialRecord, AdminError> + Send + 'static,
    ) -> Result<CreatedCredential, AdminError> {
        let place = self.place(tailnet, right)?;
        let prefix = if right.scope == Scope::OauthKeys { auth_key::CLIENT } else { auth_key::API_KEY };
        let fresh = auth_key::generate(prefix).map_err(|_| AdminError::Randomness)?;
        let (who, id, hash) = (place.who(), fresh.id.clone(), fresh.hash);
        let (record, gone) = place
            .change(move |work, standing| {
                let in_use = work.state.credentials.values().filter(|(record, _)| record.is_valid(work.now)).count();
                if in_use >= CREDENTIALS_MAX {
                    return Err(invalid("number of keys: a network has 1000 of the API at most", &in_use.to_string()));
                }
                let record = CredentialRecord { id: id.clone(), ..template(work, standing)? };
                work.put_credential(&who, "credential.create", record.clone(), Some(hash));
                Ok((record, work.forget_credentials(&who)))
            })
            .await?;
        place.register_credential(&record.id, &gone);
        Ok(CreatedCredential { view: view(&place.snapshot(), &record, place.now()), text: fresh.text })
    }
}

/// Returns the right to make and take back credentials of that kind.
fn right(kind: CredentialKind) -> Right {
    match kind {
        CredentialKind::ApiKey => Scope::ApiTokens.write(),
        CredentialKind::OauthClient => Scope::OauthKeys.write(),
    }
}

fn blank(work: &Work<'_>, kind: CredentialKind) -> CredentialRecord {
    CredentialRecord {
        id: String::new(),
        tailnet: work.state.tailnet.id,
        kind,
        user: None,
        scopes: Vec::new(),
        tags: Vec::new(),
        description: String::new(),
        created: work.now,
        expires: None,
        revoked: None,
    }
}

fn with_client(
    work: &Work<'_>,
    standing: &Standing,
    new: &NewOauthClient,
    record: CredentialRecord,
) -> Result<CredentialRecord, AdminError> {
    covered(standing, rights(&new.scopes)?)?;
    if let Some(tag) = new.tags.iter().find(|tag| !standing.may_give(&work.state.policy, tag)) {
        return Err(super::tag_denied(tag));
    }
    let NewOauthClient { scopes, tags, description } = new.clone();
    Ok(CredentialRecord { scopes, tags, description, ..record })
}

/// Nobody makes a credential that may more than they.
fn covered(standing: &Standing, asked: Rights) -> Result<(), AdminError> {
    if standing.rights.covers(asked) {
        return Ok(());
    }
    Err(AdminError::Denied { reason: "a key may not do more than whoever makes it".to_owned() })
}

/// Nobody takes back the key of somebody who may more than they, except their own.
pub(super) fn may_take_back(work: &Work<'_>, standing: &Standing, of: Option<UserId>) -> Result<(), AdminError> {
    let is_own = of.is_some() && standing.user.as_ref().map(|user| user.id) == of;
    let role = of.and_then(|of| work.state.users.get(&of)).map(|user| user.role);
    match role.filter(|role| !is_own && !standing.may_handle(*role)) {
        Some(role) => Err(rank(role)),
        None => Ok(()),
    }
}

/// Returns what scopes that were stored give; one that this program does not know any more gives nothing.
fn known_rights(scopes: &[String]) -> Rights {
    let known = scopes.iter().filter_map(|name| Rights::of_scopes([name.as_str()]).ok());
    known.fold(Rights::default(), Rights::union)
}

fn checked(new: NewOauthClient) -> Result<NewOauthClient, AdminError> {
    let scopes = sorted(new.scopes);
    let rights = rights(&scopes)?;
    if scopes.is_empty() {
        return Err(invalid("list of scopes", ""));
    }
    let tags = sorted_tags(&new.tags)?;
    let needs = rights.has(Scope::DevicesCore.write()) || rights.has(Scope::AuthKeys.write());
    if tags.is_empty() && needs {
        return Err(invalid("list of tags: a client with devices:core or auth_keys needs one at least", ""));
    }
    Ok(NewOauthClient { scopes, tags, description: described(new.description)? })
}

fn rights(scopes: &[String]) -> Result<Rights, AdminError> {
    Rights::of_scopes(scopes.iter().map(String::as_str))
        .map_err(|unknown| invalid("scope of this server; `all`, or see docs/api.md", &unknown.0))
}

fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort();
    texts.dedup();
    texts
}

/// Checks a description.
pub(super) fn described(text: String) -> Result<String, AdminError> {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || letter == ' ' || letter == '-';
    if text.len() > DESCRIPTION_MAX || !text.chars().all(allowed) {
        return Err(invalid("description: letters, digits, spaces and dashes, 50 at most", &text));
    }
    Ok(text)
}

fn view(snapshot: &Snapshot, record: &CredentialRecord, now: Timestamp) -> CredentialView {
    let user = record.user.and_then(|id| snapshot.users.get(&id));
    CredentialView {
        id: record.id.clone(),
        tailnet: snapshot.tailnet.name.clone(),
        kind: record.kind,
        user_id: record.user.map(|user| user.0),
        user: user.map(|user| user.login.clone()),
        scopes: record.scopes.clone(),
        tags: record.tags.clone(),
        description: record.description.clone(),
        created: record.created,
        expires: record.expires,
        revoked: record.revoked,
        valid: record.is_valid(now)
            && (record.kind == CredentialKind::OauthClient || user.is_some_and(|user| !user.suspended)),
    }
}
