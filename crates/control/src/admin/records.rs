//! The audit log, backups.

use std::path::Path;

use jiff::Timestamp;

use super::{Admin, AdminError, Desk};
use crate::authority::Scope;
use crate::store::audit;
use crate::{AuditEntry, AuditVerdict, Quarantined};

impl Admin {
    /// Returns up to `limit` entries of the audit log, the newest first, older than number `before` if given; fewer if
    /// their texts have more than 4 MiB together.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Store`].
    pub async fn audit(
        &self,
        tailnet: Option<&str>,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, AdminError> {
        let tailnet = tailnet.map(|name| self.tailnet_of(name)).transpose()?.map(|tailnet| tailnet.id);
        let list = self.control.store().look(move |connection| audit::list(connection, tailnet, before, limit));
        Ok(list.await?)
    }

    /// Follows the hash chain of the audit log.
    ///
    /// # Errors
    /// [`AdminError::Store`].
    pub async fn verify_audit(&self) -> Result<AuditVerdict, AdminError> {
        Ok(self.control.store().look(audit::verify).await?)
    }

    /// Returns the records that could not be read at the start.
    #[must_use]
    pub fn quarantined(&self) -> Vec<Quarantined> {
        self.control.quarantined().to_vec()
    }

    /// Copies everything into the new file `to`, mode 0600.
    ///
    /// # Errors
    /// [`AdminError::Store`].
    pub async fn backup(&self, to: &Path) -> Result<(), AdminError> {
        self.control.flush().await?;
        Ok(self.control.store().backup(to).await?)
    }
}

impl Desk {
    /// Returns up to `limit` entries of a tailnet's audit log from `start` up to `end`, the oldest first; after the one of
    /// the number `after` if that is given, and fewer if their texts have more than 4 MiB together.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Store`].
    pub(crate) async fn audit_between(
        &self,
        tailnet: &str,
        (start, end): (Timestamp, Timestamp),
        after: Option<i64>,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, AdminError> {
        let place = self.place(tailnet, Scope::LogsConfiguration.read())?;
        Ok(place.read(move |connection, id| audit::between(connection, id, (start, end), (after, limit))).await?)
    }
}
