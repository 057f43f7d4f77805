//! Auth keys.

use jiff::Timestamp;

use super::{Admin, AdminError, AuthKeyView, CreatedAuthKey, NewAuthKey, invalid, not_found, user_id};
use crate::auth_key;
use crate::model::{AuthKeyRecord, Owner, TAGS_MAX};
use crate::tailnet::Tailnet;
use crate::tailnet::snapshot::Snapshot;
use crate::tailnet::work::Work;

impl Admin {
    /// Makes an auth key.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Invalid`] for a tag or a lifetime.
    pub async fn create_auth_key(&self, new: NewAuthKey) -> Result<CreatedAuthKey, AdminError> {
        let tailnet = self.tailnet(&new.tailnet)?;
        let tags = sorted_tags(&new.tags)?;
        let login = new.user.clone().unwrap_or_else(|| format!("owner@{}", new.tailnet));
        let now = self.control.clock().now();
        let expires = match new.lifetime {
            Some(span) => Some(
                now.checked_add(span)
                    .map_err(|_| invalid("lifetime of an auth key", &format!("{}s", span.as_secs())))?,
            ),
            None => None,
        };
        let fresh = auth_key::generate().map_err(|_| AdminError::Randomness)?;
        let (who, id, hash) = (self.who.clone(), fresh.id.clone(), fresh.hash);
        let record = tailnet
            .change(move |work: &mut Work<'_>| {
                let owner = if tags.is_empty() {
                    Owner::User(user_id(work.state.users.values(), &login)?)
                } else {
                    Owner::Tagged
                };
                let record = AuthKeyRecord {
                    id: id.clone(),
                    tailnet: work.state.tailnet.id,
                    owner,
                    tags: tags.clone(),
                    reusable: new.reusable,
                    ephemeral: new.ephemeral,
                    pre_approved: new.pre_approved,
                    created: work.now,
                    expires,
                    revoked: false,
                    used: 0,
                };
                work.put_auth_key(&who, "auth-key.create", record.clone(), Some(hash));
                Ok::<_, AdminError>(record)
            })
            .await?;
        self.control.registry().add_auth_key(record.id.clone(), tailnet.id);
        Ok(CreatedAuthKey { view: view(&tailnet.snapshot(), &record, now), text: fresh.text })
    }

    /// Returns the auth keys of a tailnet, or of all, the newest first.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub async fn auth_keys(&self, tailnet: Option<&str>) -> Result<Vec<AuthKeyView>, AdminError> {
        let now = self.control.clock().now();
        let mut keys = Vec::new();
        for tailnet in self.chosen(tailnet)? {
            let records = records(&tailnet).await?;
            let snapshot = tailnet.snapshot();
            keys.extend(records.iter().map(|record| view(&snapshot, record, now)));
        }
        keys.sort_by(|one, two| (two.created, &two.id).cmp(&(one.created, &one.id)));
        Ok(keys)
    }

    /// Takes an auth key back; nodes that it let in stay.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub async fn revoke_auth_key(&self, id: &str) -> Result<AuthKeyView, AdminError> {
        let missing = || not_found("auth key", id);
        let tailnet = self.control.registry().auth_key(id).and_then(|tailnet| self.control.tailnet_by_id(tailnet));
        let tailnet = tailnet.ok_or_else(missing)?;
        let (who, wanted) = (self.who.clone(), id.to_owned());
        let record = tailnet
            .change(move |work: &mut Work<'_>| {
                let (record, _) = work.state.auth_keys.get(&wanted).ok_or_else(|| not_found("auth key", &wanted))?;
                let record = AuthKeyRecord { revoked: true, ..record.clone() };
                work.put_auth_key(&who, "auth-key.revoke", record.clone(), None);
                Ok::<_, AdminError>(record)
            })
            .await?;
        Ok(view(&tailnet.snapshot(), &record, self.control.clock().now()))
    }
}

/// Reads the keys where they are owned; snapshots do not carry them.
async fn records(tailnet: &Tailnet) -> Result<Vec<AuthKeyRecord>, AdminError> {
    tailnet
        .change(|work: &mut Work<'_>| {
            Ok::<_, AdminError>(work.state.auth_keys.values().map(|(record, _)| record.clone()).collect())
        })
        .await
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
        valid: auth_key::check(record, now).is_ok(),
    }
}
