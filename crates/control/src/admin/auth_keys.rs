//! Auth keys.

use jiff::Timestamp;

use super::credentials::{described, may_take_back};
use super::users::user_id;
use super::{AdminError, AuthKeyView, CreatedAuthKey, Desk, NewAuthKey, invalid, not_found, tag_denied};
use crate::auth_key;
use crate::authority::{Scope, Standing};
use crate::model::{AuthKeyRecord, Owner, TAGS_MAX};
use crate::tailnet::snapshot::Snapshot;
use crate::tailnet::work::Work;

/// Most auth keys of a tailnet that let somebody in at a time.
const AUTH_KEYS_MAX: usize = 10_000;

impl Desk {
    /// Makes an auth key. Users make such for their own nodes, clients for nodes with tags, and both with tags only that
    /// are theirs to give.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Invalid`] for a tag or a lifetime, [`AdminError::Denied`].
    pub async fn create_auth_key(&self, new: NewAuthKey) -> Result<CreatedAuthKey, AdminError> {
        let place = self.place(&new.tailnet, Scope::AuthKeys.write())?;
        let tags = sorted_tags(&new.tags)?;
        let description = described(new.description.clone())?;
        let fresh = auth_key::generate(auth_key::AUTH_KEY).map_err(|_| AdminError::Randomness)?;
        let (who, id, hash) = (place.who(), fresh.id.clone(), fresh.hash);
        let (record, gone) = place
            .change(move |work, standing| {
                let end = |span: std::time::Duration| {
                    let end = work.now.checked_add(span);
                    end.map_err(|_| invalid("lifetime of an auth key", &format!("{}s", span.as_secs())))
                };
                let expires = new.lifetime.map(end).transpose()?;
                let usable = |(record, _): &&(AuthKeyRecord, _)| auth_key::check(record, work.now).is_ok();
                let in_use = work.state.auth_keys.values().filter(usable).count();
                if in_use >= AUTH_KEYS_MAX {
                    return Err(invalid(
                        "number of keys: a network has 10000 usable auth keys at most",
                        &in_use.to_string(),
                    ));
                }
                let record = AuthKeyRecord {
                    id: id.clone(),
                    tailnet: work.state.tailnet.id,
                    owner: owner(work, standing, &new, &tags)?,
                    tags: tags.clone(),
                    reusable: new.reusable,
                    ephemeral: new.ephemeral,
                    pre_approved: new.pre_approved,
                    created: work.now,
                    expires,
                    revoked: false,
                    description: description.clone(),
                    made_by: standing.user.as_ref().map(|user| user.id),
                    used: 0,
                };
                work.put_auth_key(&who, "auth-key.create", record.clone(), Some(hash));
                Ok((record, work.forget_auth_keys(&who)))
            })
            .await?;
        place.register_auth_key(&record.id, &gone);
        Ok(CreatedAuthKey { view: view(&place.snapshot(), &record, place.now()), text: fresh.text })
    }

    /// Returns the auth keys of a tailnet, or of all, the newest first.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub fn auth_keys(&self, tailnet: Option<&str>) -> Result<Vec<AuthKeyView>, AdminError> {
        let mut keys = Vec::new();
        for place in self.places(tailnet, Scope::AuthKeys.read())? {
            let snapshot = place.snapshot();
            keys.extend(snapshot.auth_keys.values().map(|(record, _)| view(&snapshot, record, place.now())));
        }
        keys.sort_by(|one, two| (two.created, &two.id).cmp(&(one.created, &one.id)));
        Ok(keys)
    }

    /// Takes an auth key back; nodes that it let in stay. Nobody takes back the key of somebody who may more than they.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Denied`].
    pub async fn revoke_auth_key(&self, id: &str) -> Result<AuthKeyView, AdminError> {
        let place = self.place_of_key(id, Scope::AuthKeys.write())?;
        let (who, wanted) = (place.who(), id.to_owned());
        let record = place
            .change(move |work, standing| {
                let (record, _) = work.state.auth_keys.get(&wanted).ok_or_else(|| not_found("auth key", &wanted))?;
                let of = match record.owner {
                    Owner::User(owner) => Some(owner),
                    Owner::Tagged => record.made_by,
                };
                may_take_back(work, standing, of)?;
                let record = AuthKeyRecord { revoked: true, ..record.clone() };
                work.put_auth_key(&who, "auth-key.revoke", record.clone(), None);
                Ok(record)
            })
            .await?;
        Ok(view(&place.snapshot(), &record, place.now()))
    }
}

/// Says whose the nodes of a new key are.
fn owner(work: &Work<'_>, standing: &Standing, new: &NewAuthKey, tags: &[String]) -> Result<Owner, AdminError> {
    if let Some(tag) = tags.iter().find(|tag| !standing.may_give(&work.state.policy, tag)) {
        return Err(tag_denied(tag));
    }
    if !tags.is_empty() {
        return Ok(Owner::Tagged);
    }
    match (&standing.user, &new.user) {
        (Some(own), None) => Ok(Owner::User(own.id)),
        (Some(own), Some(login)) if own.login == *login => Ok(Owner::User(own.id)),
        (None, login) if standing.is_server() => {
            let default = || format!("owner@{}", new.tailnet);
            Ok(Owner::User(user_id(work.state.users.values(), &login.clone().unwrap_or_else(default))?))
        }
        (Some(_), Some(_)) => Err(AdminError::Denied { reason: "an auth key lets in nodes of its maker".to_owned() }),
        (None, _) => Err(invalid("list of tags: keys of a client need one at least", "")),
    }
}

/// Checks tags and brings them into their order.
pub(super) fn sorted_tags(tags: &[String]) -> Result<Vec<String>, AdminError> {
    if let Some(tag) = tags.iter().find(|tag| !crate::name::is_tag(tag)) {
        return Err(invalid("tag: write tag: and a letter, then letters, digits and dashes", tag));
    }
    if tags.len() > TAGS_MAX {
        return Err(invalid("number of tags", &tags.len().to_string()));
    }
    let mut tags = tags.to_vec();
    tags.sort();
    tags.dedup();
    Ok(tags)
}

fn view(snapshot: &Snapshot, record: &AuthKeyRecord, now: Timestamp) -> AuthKeyView {
    let user = match record.owner {
        Owner::User(id) => snapshot.users.get(&id).map(|user| user.login.clone()),
        Owner::Tagged => None,
    };
    AuthKeyView {
        id: record.id.clone(),
        tailnet: snapshot.tailnet.name.clone(),
        user,
        tags: record.tags.clone(),
        reusable: record.reusable,
        ephemeral: record.ephemeral,
        pre_approved: record.pre_approved,
        created: record.created,
        expires: record.expires,
        revoked: record.revoked,
        used: record.used,
        description: record.description.clone(),
        made_by: record.made_by.map(|user| user.0),
        valid: auth_key::check_of(record, &snapshot.users, now).is_ok(),
    }
}
