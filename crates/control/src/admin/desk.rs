//! The one way of administration to a tailnet: by an authority, for a right.
//!
//! Whoever wants to read or change something names the right that this takes. A desk holds the server, but hands out
//! nothing but a [`Place`], and that only to whom the tailnet grants the right; a change asks once more in the moment
//! that it is made.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::Connection;
use tokio::time::Instant;
use warren_ledger::checkpoint::Verifier;

use super::{AdminError, not_found};
use crate::Control;
use crate::authority::{Access, Authority, Right, Standing};
use crate::model::{TailnetId, Who};
use crate::store::StoreError;
use crate::tailnet::Tailnet;
use crate::tailnet::snapshot::Snapshot;
use crate::tailnet::work::Work;

/// Administration of tailnets by somebody's authority.
#[derive(Debug, Clone)]
pub struct Desk {
    control: Control,
    authority: Arc<Authority>,
}

/// A tailnet, and the right to do one thing there.
#[derive(Debug)]
pub(super) struct Place {
    control: Control,
    tailnet: Tailnet,
    authority: Arc<Authority>,
    right: Right,
}

impl Desk {
    pub(crate) fn new(control: Control, authority: Authority) -> Self {
        Self { control, authority: Arc::new(authority) }
    }

    /// Returns in whose name it is.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Returns the time of day.
    pub(crate) fn now(&self) -> Timestamp {
        self.control.clock().now()
    }

    /// Returns the present instant.
    pub(crate) fn instant(&self) -> Instant {
        self.control.clock().instant()
    }

    /// Tells whether one of these rights is theirs in a tailnet.
    pub(crate) fn has_one(&self, tailnet: &str, rights: &[Right]) -> bool {
        rights.iter().any(|right| self.place(tailnet, *right).is_ok())
    }

    /// Returns the number of the user who calls, if it is one.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub(crate) fn caller(&self, tailnet: &str) -> Result<Option<i64>, AdminError> {
        let theirs = self.own_tailnet().filter(|(_, name)| **name == *tailnet);
        let (id, _) = theirs.ok_or_else(|| not_found("network", tailnet))?;
        let snapshot = self.control.tailnet_by_id(id).map(|tailnet| tailnet.snapshot());
        let snapshot = snapshot.ok_or_else(|| not_found("network", tailnet))?;
        let standing = self.authority.standing(&snapshot.users, &snapshot.credentials, self.now());
        Ok(standing.and_then(|standing| standing.user).map(|user| user.id.0))
    }

    /// Notes in the audit log that they were refused.
    pub(crate) async fn note_refusal(&self, tailnet: &str, subject: &str) {
        let Some((id, _)) = self.own_tailnet().filter(|(_, name)| **name == *tailnet) else { return };
        let Some(tailnet) = self.control.tailnet_by_id(id) else { return };
        let (who, subject) = (self.authority.who.clone(), subject.to_owned());
        let noted = tailnet.change(move |work: &mut Work<'_>| {
            work.note_refusal(&who, subject.clone());
            Ok::<_, StoreError>(())
        });
        if let Err(error) = noted.await {
            tracing::error!(%error, "a refusal cannot be noted");
        }
    }

    /// Returns the tailnet that it is for, with its name; `None` if it is for all.
    pub(crate) fn own_tailnet(&self) -> Option<(TailnetId, Arc<str>)> {
        let tailnet = self.control.tailnet_by_id(self.authority.tailnet()?)?;
        Some((tailnet.id, tailnet.name))
    }

    /// Returns a tailnet to somebody who has that right there. One that is not theirs is not there for them.
    pub(super) fn place(&self, name: &str, right: Right) -> Result<Place, AdminError> {
        let theirs = |tailnet: &Tailnet| self.authority.tailnet().is_none_or(|own| own == tailnet.id);
        let found = self.control.tailnets().into_iter().find(|tailnet| *tailnet.name == *name && theirs(tailnet));
        self.enter(found.ok_or_else(|| not_found("network", name))?, right)
    }

    /// Returns the tailnet of that name, or all that are theirs.
    pub(super) fn places(&self, name: Option<&str>, right: Right) -> Result<Vec<Place>, AdminError> {
        if let Some(name) = name {
            return Ok(vec![self.place(name, right)?]);
        }
        let own = self.authority.tailnet();
        let theirs = self.control.tailnets().into_iter().filter(|tailnet| own.is_none_or(|own| own == tailnet.id));
        theirs.map(|tailnet| self.enter(tailnet, right)).collect()
    }

    /// Returns the tailnet of an auth key, or of a credential of the API.
    pub(super) fn place_of_key(&self, id: &str, right: Right) -> Result<Place, AdminError> {
        let registry = self.control.registry();
        let known = registry.auth_key(id).or_else(|| registry.credential(id));
        let theirs = known.filter(|known| self.authority.tailnet().is_none_or(|own| own == *known));
        let tailnet = theirs.and_then(|id| self.control.tailnet_by_id(id));
        self.enter(tailnet.ok_or_else(|| not_found("key", id))?, right)
    }

    fn enter(&self, tailnet: Tailnet, right: Right) -> Result<Place, AdminError> {
        let place = Place { control: self.control.clone(), tailnet, authority: Arc::clone(&self.authority), right };
        place.standing().map(|_| place)
    }
}

impl Place {
    /// Returns the state of the tailnet.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.tailnet.snapshot()
    }

    /// Returns the URL of a page of the server.
    pub(super) fn url(&self, path: &str) -> String {
        self.control.page_url(path)
    }

    /// Returns in whose name changes are made.
    pub(super) fn who(&self) -> Who {
        self.authority.who.clone()
    }

    /// Returns what they are now.
    pub(super) fn standing(&self) -> Result<Standing, AdminError> {
        let snapshot = self.tailnet.snapshot();
        let standing = self.authority.standing(&snapshot.users, &snapshot.credentials, self.now());
        allowed(standing, self.right)
    }

    /// Returns the time of day.
    pub(super) fn now(&self) -> Timestamp {
        self.control.clock().now()
    }

    /// Reads what snapshots do not hold.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection, TailnetId) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let id = self.tailnet.id;
        self.control.store().look(move |connection| read(connection, id)).await
    }

    /// Looks at what is stored of the tailnet's flow logs, beside the runtime; `look` gets the folder, which may not be there,
    /// and the name of the log.
    pub(super) async fn look_at_flows<T: Send + 'static>(
        &self,
        look: impl FnOnce(PathBuf, &Verifier) -> T + Send + 'static,
    ) -> Result<T, AdminError> {
        let collector = self.control.collector().await?;
        let (dir, verifier) = (collector.folder(self.tailnet.id), collector.verifier(self.tailnet.id));
        let verifier = verifier.ok_or(AdminError::Crowded)?;
        self.control.thinking().run(move || look(dir, &verifier)).await.ok_or(AdminError::Crowded)
    }

    /// Returns the number of the tailnet, and where findings about flow logs are.
    pub(super) async fn findings(&self) -> Result<(TailnetId, PathBuf), AdminError> {
        Ok((self.tailnet.id, self.control.collector().await?.dir().to_owned()))
    }

    /// Makes a change, as [`Tailnet::change`] does, if they have the right to in the moment that it is made.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        mut ask: impl FnMut(&mut Work<'_>, &Standing) -> Result<T, AdminError> + Send + 'static,
    ) -> Result<T, AdminError> {
        let (authority, right) = (Arc::clone(&self.authority), self.right);
        let asked = move |work: &mut Work<'_>| {
            // A right to look is none to change, whatever the caller has besides.
            let standing = authority.standing(&work.state.users, &work.state.credentials, work.now);
            let standing = allowed(standing.filter(|_| right.access == Access::Write), right)?;
            ask(work, &standing)
        };
        self.tailnet.change(asked).await
    }

    /// Makes an auth key known by its ID, and others no more.
    pub(super) fn register_auth_key(&self, id: &str, gone: &[String]) {
        self.control.registry().add_auth_key(id.to_owned(), self.tailnet.id);
        self.control.registry().remove_auth_keys(gone);
    }

    /// Makes a credential of the API known by its ID, and others no more.
    pub(super) fn register_credential(&self, id: &str, gone: &[String]) {
        self.control.registry().add_credential(id.to_owned(), self.tailnet.id);
        self.control.registry().remove_credentials(gone);
    }

    /// Works on what may take long without keeping others waiting, for so many at a time.
    ///
    /// # Errors
    /// [`AdminError::Crowded`].
    pub(super) async fn think<T: Send + 'static>(
        &self,
        think: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, AdminError> {
        self.control.thinking().run(think).await.ok_or(AdminError::Crowded)
    }
}

fn allowed(standing: Option<Standing>, right: Right) -> Result<Standing, AdminError> {
    let denied = || AdminError::Denied { reason: format!("it takes the scope {right}") };
    standing.filter(|standing| standing.rights.has(right)).ok_or_else(denied)
}
