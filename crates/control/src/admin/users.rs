//! Users: who they are to a tailnet, and what becomes of what is theirs.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use warren_policy::Role;
use warren_wire::control::{NodeId, UserId};

use super::{AdminError, Desk, UserView, invalid, not_found};
use crate::account;
use crate::authority::{Scope, Standing};
use crate::model::{AuthKeyRecord, CredentialKind, CredentialRecord, NodeRecord, Owner, UserRecord, Who, role};
use crate::tailnet::snapshot::Snapshot;
use crate::tailnet::work::{Credentials, Work};

/// Longest login name and name to show, in bytes.
const TEXT_MAX: usize = 254;

/// What shall become of a user's nodes and keys when the user is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Belongings {
    /// While there are any, the user stays.
    Keep,
    /// Nodes are removed, keys taken back.
    Remove,
}

/// A user who was locked out or removed, and what of theirs goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserDeparture {
    /// The user.
    #[serde(flatten)]
    pub user: UserView,
    /// IDs of OAuth clients that they made and that still work: those belong to the tailnet, but the user may know their
    /// secrets.
    #[serde(default)]
    pub oauth_clients: Vec<String>,
}

/// A link with which somebody makes themselves an account.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// Login name of the account.
    pub login: String,
    /// Name of the tailnet.
    pub tailnet: String,
    /// The link, which is a secret.
    pub url: String,
    /// When it stops working.
    pub expires: Timestamp,
}

impl std::fmt::Debug for Invitation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Invitation").field("login", &self.login).field("expires", &self.expires).finish_non_exhaustive()
    }
}

impl Desk {
    /// Makes a user.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Taken`], [`AdminError::Invalid`].
    pub async fn create_user(
        &self,
        tailnet: &str,
        login: &str,
        display_name: Option<&str>,
    ) -> Result<UserView, AdminError> {
        let place = self.place(tailnet, Scope::Users.write())?;
        if !is_login(login) {
            return Err(invalid("login name: write NAME@DOMAIN in lower case, without spaces", login));
        }
        let display_name = display_name.unwrap_or(login);
        if display_name.is_empty() || display_name.len() > TEXT_MAX || display_name.chars().any(char::is_control) {
            return Err(invalid("name to show", display_name));
        }
        let (who, login, display_name) = (place.who(), login.to_owned(), display_name.to_owned());
        let id = place
            .change(move |work, _| {
                if work.state.users.values().any(|user| user.login == login) {
                    return Err(AdminError::Taken { what: "user", name: login.clone() });
                }
                let record = UserRecord {
                    id: work.store.next_user(),
                    tailnet: work.state.tailnet.id,
                    login: login.clone(),
                    display_name: display_name.clone(),
                    role: Role::Member,
                    identity: None,
                    suspended: false,
                    created: work.now,
                };
                let id = record.id;
                work.put_user(&who, "user.create", record);
                Ok(id)
            })
            .await?;
        shown(&place.snapshot(), id)
    }

    /// Makes a link with which somebody makes themselves an account on this server, once and within three days: as the user
    /// of that login name, who is made if there is none yet. Whoever had an account loses it when the link is used.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Invalid`], [`AdminError::Taken`] for somebody of an identity provider,
    /// [`AdminError::Denied`], [`AdminError::Randomness`].
    pub async fn invite_user(&self, tailnet: &str, login: &str) -> Result<Invitation, AdminError> {
        let place = self.place(tailnet, Scope::Users.write())?;
        let known = place.snapshot().users.values().any(|user| user.login == login);
        if !known {
            self.create_user(tailnet, login, None).await?;
        }
        let (who, wanted) = (place.who(), login.to_owned());
        let (expires, text) = place
            .change(move |work, standing| {
                let user = find(work, &wanted)?;
                if !standing.may_handle(user.role) {
                    return Err(rank(user.role));
                }
                if user.identity.as_ref().is_some_and(|identity| identity.issuer != account::ISSUER) {
                    return Err(AdminError::Taken { what: "person of an identity provider", name: wanted.clone() });
                }
                let made = account::invitation(&user, work.now);
                let (record, hash, text) = made.map_err(|_| AdminError::Randomness)?;
                let expires = record.expires;
                work.put_invitation(&who, record, hash);
                Ok((expires, text))
            })
            .await?;
        let url = place.url(&format!("/invite/{}", text.expose()));
        Ok(Invitation { login: login.to_owned(), tailnet: tailnet.to_owned(), url, expires })
    }

    /// Returns the users of a tailnet, or of all.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub fn users(&self, tailnet: Option<&str>) -> Result<Vec<UserView>, AdminError> {
        let mut users = Vec::new();
        for place in self.places(tailnet, Scope::Users.read())? {
            let snapshot = place.snapshot();
            users.extend(snapshot.users.values().map(|user| view(&snapshot, user)));
        }
        Ok(users)
    }

    /// Gives a user another role. Nobody makes somebody, or changes somebody, who may more than they.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Invalid`] for a role that is none, [`AdminError::LastOwner`],
    /// [`AdminError::Denied`].
    pub async fn set_user_role(&self, tailnet: &str, user: &str, role: &str) -> Result<UserView, AdminError> {
        const KINDS: &str = "role: use owner, admin, it-admin, network-admin, billing-admin, auditor or member";
        let role = role::parse(role).ok_or_else(|| invalid(KINDS, role))?;
        self.edit_user(tailnet, user, move |work, standing, who, before| {
            if !standing.may_handle(role) {
                return Err(rank(role));
            }
            if role != Role::Owner {
                keep_an_owner(work, before)?;
            }
            if before.role != role {
                work.put_user(who, "user.role", UserRecord { role, ..before.clone() });
            }
            Ok(())
        })
        .await
    }

    /// Locks a user out: their nodes take no part at once, their keys and auth keys that they made work no more, and they
    /// cannot log in. Tells which OAuth clients of theirs go on.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::LastOwner`], [`AdminError::Denied`].
    pub async fn suspend_user(&self, tailnet: &str, user: &str) -> Result<UserDeparture, AdminError> {
        let user = self
            .edit_user(tailnet, user, |work, standing, who, before| {
                if standing.user.as_ref().is_some_and(|own| own.id == before.id) {
                    return Err(AdminError::Denied { reason: "nobody suspends themselves".to_owned() });
                }
                keep_an_owner(work, before)?;
                set_suspended(work, who, before, true);
                Ok(())
            })
            .await?;
        let place = self.place(tailnet, Scope::Users.write())?;
        let oauth_clients = clients_of(&place.snapshot().credentials, UserId(user.id), place.now());
        Ok(UserDeparture { user, oauth_clients })
    }

    /// Lets a suspended user be what they were.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Denied`].
    pub async fn restore_user(&self, tailnet: &str, user: &str) -> Result<UserView, AdminError> {
        self.edit_user(tailnet, user, |work, _, who, before| {
            set_suspended(work, who, before, false);
            Ok(())
        })
        .await
    }

    /// Removes a user. Their API keys go with them; nodes, and auth keys that are theirs or that they made, as `belongings`
    /// says. Returns what they were, and which OAuth clients of theirs go on.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Busy`], [`AdminError::LastOwner`], [`AdminError::Denied`].
    pub async fn remove_user(
        &self,
        tailnet: &str,
        user: &str,
        belongings: Belongings,
    ) -> Result<UserDeparture, AdminError> {
        let place = self.place(tailnet, Scope::Users.write())?;
        let (who, user) = (place.who(), user.to_owned());
        let snapshot = place.snapshot();
        let (id, oauth_clients) = place
            .change(move |work, standing| {
                let before = find(work, &user)?;
                if !standing.may_handle(before.role) {
                    return Err(rank(before.role));
                }
                if standing.user.as_ref().is_some_and(|own| own.id == before.id) {
                    return Err(AdminError::Denied { reason: "nobody removes themselves".to_owned() });
                }
                keep_an_owner(work, &before)?;
                let (nodes, keys) = (nodes_of(work, before.id), usable_keys_of(work, before.id));
                if belongings == Belongings::Keep && !(nodes.is_empty() && keys.is_empty()) {
                    let (nodes, keys) = (nodes.len(), keys.len());
                    return Err(AdminError::Busy { login: before.login.clone(), nodes, keys });
                }
                for node in nodes {
                    work.remove_node(&who, "node.remove", node, None);
                }
                for key in keys {
                    work.put_auth_key(&who, "auth-key.revoke", AuthKeyRecord { revoked: true, ..key }, None);
                }
                for record in api_keys_of(work, before.id) {
                    let record = CredentialRecord { revoked: Some(work.now), ..record };
                    work.put_credential(&who, "credential.revoke", record, None);
                }
                work.remove_user(&who, before.id);
                Ok((before.id, clients_of(&work.state.credentials, before.id, work.now)))
            })
            .await?;
        Ok(UserDeparture { user: shown(&snapshot, id)?, oauth_clients })
    }

    async fn edit_user(
        &self,
        tailnet: &str,
        user: &str,
        edit: impl Fn(&mut Work<'_>, &Standing, &Who, &UserRecord) -> Result<(), AdminError> + Send + 'static,
    ) -> Result<UserView, AdminError> {
        let place = self.place(tailnet, Scope::Users.write())?;
        let (who, user) = (place.who(), user.to_owned());
        let id = place
            .change(move |work, standing| {
                let before = find(work, &user)?;
                if !standing.may_handle(before.role) {
                    return Err(rank(before.role));
                }
                edit(work, standing, &who, &before)?;
                Ok(before.id)
            })
            .await?;
        shown(&place.snapshot(), id)
    }
}

fn set_suspended(work: &mut Work<'_>, who: &Who, before: &UserRecord, suspended: bool) {
    if before.suspended == suspended {
        return;
    }
    let what = if suspended { "user.suspend" } else { "user.restore" };
    work.put_user(who, what, UserRecord { suspended, ..before.clone() });
    for id in nodes_of(work, before.id) {
        let Some(node) = work.state.nodes.get(id).map(Arc::clone) else { continue };
        let what = if suspended { "node.suspend" } else { "node.restore" };
        let record = NodeRecord { suspended, ..(*node.record).clone() };
        work.put_node(who, what, &node, record);
    }
}

/// A tailnet without an owner who can act could be mended on the server alone.
fn keep_an_owner(work: &Work<'_>, leaves: &UserRecord) -> Result<(), AdminError> {
    let is_owner = |user: &UserRecord| user.role == Role::Owner && !user.suspended;
    if is_owner(leaves) && work.state.users.values().filter(|user| is_owner(user)).count() == 1 {
        return Err(AdminError::LastOwner { login: leaves.login.clone() });
    }
    Ok(())
}

pub(super) fn rank(role: Role) -> AdminError {
    AdminError::Denied { reason: format!("{} may more than you", role::name(role)) }
}

fn nodes_of(work: &Work<'_>, user: UserId) -> Vec<NodeId> {
    let owner = Owner::User(user);
    work.state.nodes.iter().filter(|node| node.record.owner == owner).map(|node| node.id()).collect()
}

fn usable_keys_of(work: &Work<'_>, user: UserId) -> Vec<AuthKeyRecord> {
    let usable = |key: &&AuthKeyRecord| {
        // Whoever made a key for tagged nodes knows its text.
        (key.owner == Owner::User(user) || key.made_by == Some(user)) && crate::auth_key::check(key, work.now).is_ok()
    };
    work.state.auth_keys.values().map(|(key, _)| key).filter(usable).cloned().collect()
}

/// Returns the IDs of OAuth clients that a user made and that work.
fn clients_of(credentials: &Credentials, user: UserId, now: Timestamp) -> Vec<String> {
    let theirs = |record: &&CredentialRecord| {
        record.kind == CredentialKind::OauthClient && record.user == Some(user) && record.is_valid(now)
    };
    credentials.values().map(|(record, _)| record).filter(theirs).map(|record| record.id.clone()).collect()
}

fn api_keys_of(work: &Work<'_>, user: UserId) -> Vec<CredentialRecord> {
    let theirs = |record: &&CredentialRecord| {
        record.kind == CredentialKind::ApiKey && record.user == Some(user) && record.is_valid(work.now)
    };
    work.state.credentials.values().map(|(record, _)| record).filter(theirs).cloned().collect()
}

/// Tells whether `text` can be a login name; policies name users by it, letter by letter, so there is one way to write
/// it only.
pub(crate) fn is_login(text: &str) -> bool {
    let odd = |letter: char| letter.is_whitespace() || letter.is_control() || letter.is_uppercase();
    text.len() <= TEXT_MAX
        && !text.contains(odd)
        && text.split_once('@').is_some_and(|(name, domain)| {
            !name.is_empty() && !domain.is_empty() && !domain.contains('@') && !name.contains(':')
        })
}

/// Finds a user by login name; `#12` is a number and nothing else.
fn find(work: &Work<'_>, text: &str) -> Result<Arc<UserRecord>, AdminError> {
    let id = user_id(work.state.users.values(), text)?;
    work.state.users.get(&id).map(Arc::clone).ok_or_else(|| not_found("user", text))
}

/// Finds a user's number, as [`find`] does.
pub(super) fn user_id<'a>(
    users: impl IntoIterator<Item = &'a Arc<UserRecord>>,
    text: &str,
) -> Result<UserId, AdminError> {
    let number = text.strip_prefix('#').map(|number| number.parse().ok().map(UserId));
    let named = |user: &&Arc<UserRecord>| number.map_or(user.login == text, |number| Some(user.id) == number);
    users.into_iter().find(named).map(|user| user.id).ok_or_else(|| not_found("user", text))
}

fn shown(snapshot: &Snapshot, id: UserId) -> Result<UserView, AdminError> {
    let user = snapshot.users.get(&id).ok_or_else(|| not_found("user", &id.to_string()))?;
    Ok(view(snapshot, user))
}

fn view(snapshot: &Snapshot, user: &UserRecord) -> UserView {
    let owner = Owner::User(user.id);
    let nodes = || snapshot.nodes.iter().filter(|node| node.record.owner == owner);
    UserView {
        id: user.id.0,
        tailnet: snapshot.tailnet.name.clone(),
        login: user.login.clone(),
        display_name: user.display_name.clone(),
        role: role::name(user.role).to_owned(),
        suspended: user.suspended,
        created: user.created,
        nodes: nodes().count(),
        online: nodes().any(|node| node.online),
        last_seen: nodes().filter_map(|node| node.state.last_seen).max(),
    }
}

#[cfg(test)]
mod tests;
