//! Administration: what `warren admin` and `warren policy` ask for.

mod views;

use std::path::Path;

use jiff::Timestamp;

pub use crate::auth_key::AuthKeyText;
pub use views::{
    AuthKeyView, CreatedAuthKey, LoginState, LoginView, NodeView, PolicyView, TailnetView, UserView,
};

use crate::model::Who;
use crate::store::StoreError;
use crate::{AuditEntry, AuditVerdict, Control, Quarantined};

/// Administration in somebody's name.
#[derive(Debug, Clone)]
pub struct Admin {
    control: Control,
    who: Who,
}

/// What a new auth key shall allow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewAuthKey {
    /// Name of the tailnet.
    pub tailnet: String,
    /// Login name of the owner of its nodes; unused if there are tags; `owner@<tailnet>` if absent.
    pub user: Option<String>,
    /// Tags of its nodes; empty for a user's nodes.
    pub tags: Vec<String>,
    /// Whether it may be used more than once.
    pub reusable: bool,
    /// Whether its nodes are removed when they go away.
    pub ephemeral: bool,
    /// Whether its nodes need no approval.
    pub pre_approved: bool,
    /// How long it works; for ever if absent.
    pub lifetime: Option<std::time::Duration>,
}

/// Says why administration did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// There is no such record.
    #[error("there is no {what} {name:?}")]
    NotFound {
        /// Kind of record.
        what: &'static str,
        /// What was asked for.
        name: String,
    },
    /// Another record has that name.
    #[error("there is a {what} {name:?} already")]
    Taken {
        /// Kind of record.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Several records have that name.
    #[error("there are several nodes {name:?}; name the tailnet or use the ID")]
    Ambiguous {
        /// The name.
        name: String,
    },
    /// A value cannot be used.
    #[error("{value:?} is no {what}")]
    Invalid {
        /// What it should be.
        what: &'static str,
        /// The value.
        value: String,
    },
    /// The user still owns nodes or auth keys.
    #[error("{login:?} still owns {nodes} nodes and {keys} usable auth keys; remove them first")]
    Busy {
        /// The user.
        login: String,
        /// Number of nodes.
        nodes: usize,
        /// Number of auth keys.
        keys: usize,
    },
    /// The policy is refused.
    #[error("the policy is refused: {reason}")]
    Policy {
        /// Why.
        reason: String,
    },
    /// The machine could not be let in.
    #[error("the machine is refused: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// The operating system gives no randomness.
    #[error("the operating system gives no randomness")]
    Randomness,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[expect(unused_variables, clippy::unused_async, reason = "signatures first")]
impl Admin {
    pub(crate) fn new(control: Control, who: Who) -> Self {
        Self { control, who }
    }

    /// Makes a tailnet with the default policy and one user, `owner@<name>`.
    ///
    /// # Errors
    /// [`AdminError::Taken`], [`AdminError::Invalid`] if the name is no DNS label.
    pub async fn create_tailnet(&self, name: &str) -> Result<TailnetView, AdminError> {
        unimplemented!()
    }

    /// Returns all tailnets.
    #[must_use]
    pub fn tailnets(&self) -> Vec<TailnetView> {
        unimplemented!()
    }

    /// Decides whether new nodes of a tailnet wait for approval.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub async fn set_machine_approval(&self, tailnet: &str, needed: bool) -> Result<TailnetView, AdminError> {
        unimplemented!()
    }

    /// Makes a user.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Taken`], [`AdminError::Invalid`].
    pub async fn create_user(&self, tailnet: &str, login: &str, display_name: Option<&str>) -> Result<UserView, AdminError> {
        unimplemented!()
    }

    /// Returns the users of a tailnet, or of all.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub fn users(&self, tailnet: Option<&str>) -> Result<Vec<UserView>, AdminError> {
        unimplemented!()
    }

    /// Removes a user who owns nothing any more.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Busy`].
    pub async fn remove_user(&self, tailnet: &str, login: &str) -> Result<(), AdminError> {
        unimplemented!()
    }

    /// Makes an auth key.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Invalid`] for a tag or a lifetime.
    pub async fn create_auth_key(&self, new: NewAuthKey) -> Result<CreatedAuthKey, AdminError> {
        unimplemented!()
    }

    /// Returns the auth keys of a tailnet, or of all, the newest first.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub async fn auth_keys(&self, tailnet: Option<&str>) -> Result<Vec<AuthKeyView>, AdminError> {
        unimplemented!()
    }

    /// Takes an auth key back; nodes that it let in stay.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub async fn revoke_auth_key(&self, id: &str) -> Result<AuthKeyView, AdminError> {
        unimplemented!()
    }

    /// Returns the nodes of a tailnet, or of all.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub fn nodes(&self, tailnet: Option<&str>) -> Result<Vec<NodeView>, AdminError> {
        unimplemented!()
    }

    /// Returns one node: `node` is its number, stable ID, name, full name or an address.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Ambiguous`].
    pub fn node(&self, tailnet: Option<&str>, node: &str) -> Result<NodeView, AdminError> {
        unimplemented!()
    }

    /// Lets a node take part.
    ///
    /// # Errors
    /// As [`Self::node`].
    pub async fn approve_node(&self, tailnet: Option<&str>, node: &str) -> Result<NodeView, AdminError> {
        unimplemented!()
    }

    /// Gives a node a name that stays; `None` lets it follow the host name again.
    ///
    /// # Errors
    /// As [`Self::node`]; [`AdminError::Taken`], [`AdminError::Invalid`].
    pub async fn rename_node(&self, tailnet: Option<&str>, node: &str, name: Option<&str>) -> Result<NodeView, AdminError> {
        unimplemented!()
    }

    /// Makes a node a tagged one, which no user owns.
    ///
    /// # Errors
    /// As [`Self::node`]; [`AdminError::Invalid`] for a tag or none.
    pub async fn tag_node(&self, tailnet: Option<&str>, node: &str, tags: &[String]) -> Result<NodeView, AdminError> {
        unimplemented!()
    }

    /// Ends the time of a node's key now, or sets another end.
    ///
    /// # Errors
    /// As [`Self::node`].
    pub async fn expire_node(&self, tailnet: Option<&str>, node: &str, expiry: Expiry) -> Result<NodeView, AdminError> {
        unimplemented!()
    }

    /// Removes a node.
    ///
    /// # Errors
    /// As [`Self::node`].
    pub async fn remove_node(&self, tailnet: Option<&str>, node: &str) -> Result<NodeView, AdminError> {
        unimplemented!()
    }

    /// Returns the logins that wait, and those decided lately.
    #[must_use]
    pub fn logins(&self) -> Vec<LoginView> {
        unimplemented!()
    }

    /// Returns one login, for the page that its URL shows.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub fn login(&self, id: &str) -> Result<LoginView, AdminError> {
        unimplemented!()
    }

    /// Lets the machine of a login in as a node of that user; the register call that waits returns.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Refused`].
    pub async fn approve_login(&self, id: &str, tailnet: &str, user: &str) -> Result<NodeView, AdminError> {
        unimplemented!()
    }

    /// Refuses a login.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub async fn reject_login(&self, id: &str) -> Result<LoginView, AdminError> {
        unimplemented!()
    }

    /// Returns the policy in force.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub fn policy(&self, tailnet: &str) -> Result<PolicyView, AdminError> {
        unimplemented!()
    }

    /// Puts a policy in force, if it can be compiled.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Policy`].
    pub async fn set_policy(&self, tailnet: &str, text: &str) -> Result<PolicyView, AdminError> {
        unimplemented!()
    }

    /// Returns up to `limit` entries of the audit log, the newest first, older than number `before` if given.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Store`].
    pub async fn audit(&self, tailnet: Option<&str>, before: Option<i64>, limit: u32) -> Result<Vec<AuditEntry>, AdminError> {
        unimplemented!()
    }

    /// Follows the hash chain of the audit log.
    ///
    /// # Errors
    /// [`AdminError::Store`].
    pub async fn verify_audit(&self) -> Result<AuditVerdict, AdminError> {
        unimplemented!()
    }

    /// Returns the records that could not be read at the start.
    #[must_use]
    pub fn quarantined(&self) -> Vec<Quarantined> {
        unimplemented!()
    }

    /// Copies everything into the new file `to`, mode 0600.
    ///
    /// # Errors
    /// [`AdminError::Store`].
    pub async fn backup(&self, to: &Path) -> Result<(), AdminError> {
        unimplemented!()
    }
}

/// When a node's key shall stop being valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// Now.
    Now,
    /// At that time.
    At(Timestamp),
    /// Never.
    Never,
}
