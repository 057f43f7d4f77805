//! The policy, the audit log, backups.

use std::path::Path;
use std::sync::Arc;

use super::{Admin, AdminError, PolicyView};
use crate::store::audit;
use crate::tailnet::access::PolicyInForce;
use crate::tailnet::snapshot::Snapshot;
use crate::tailnet::work::Work;
use crate::{AuditEntry, AuditVerdict, Quarantined};

impl Admin {
    /// Returns the policy in force.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub fn policy(&self, tailnet: &str) -> Result<PolicyView, AdminError> {
        Ok(view(&self.tailnet(tailnet)?.snapshot()))
    }

    /// Puts a policy in force, if it can be compiled.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Policy`].
    pub async fn set_policy(&self, tailnet: &str, text: &str) -> Result<PolicyView, AdminError> {
        let tailnet = self.tailnet(tailnet)?;
        let policy = PolicyInForce::parse(text).map_err(|errors| AdminError::Policy { reason: errors.to_string() })?;
        let (who, policy) = (self.who.clone(), Arc::new(policy));
        tailnet
            .change(move |work: &mut Work<'_>| {
                if work.state.policy.text() != policy.text() {
                    work.put_policy(&who, Arc::clone(&policy));
                }
                Ok::<_, AdminError>(())
            })
            .await?;
        Ok(view(&tailnet.snapshot()))
    }

    /// Returns up to `limit` entries of the audit log, the newest first, older than number `before` if given.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Store`].
    pub async fn audit(
        &self,
        tailnet: Option<&str>,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, AdminError> {
        let tailnet = tailnet.map(|name| self.tailnet(name)).transpose()?.map(|tailnet| tailnet.id);
        let list = self.control.store().read(move |connection| audit::list(connection, tailnet, before, limit));
        Ok(list.await?)
    }

    /// Follows the hash chain of the audit log.
    ///
    /// # Errors
    /// [`AdminError::Store`].
    pub async fn verify_audit(&self) -> Result<AuditVerdict, AdminError> {
        Ok(self.control.store().read(audit::verify).await?)
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

fn view(snapshot: &Snapshot) -> PolicyView {
    PolicyView {
        tailnet: snapshot.tailnet.name.clone(),
        version: snapshot.tailnet.policy_version,
        text: snapshot.policy.text().to_string(),
    }
}
