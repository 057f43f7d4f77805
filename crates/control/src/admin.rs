//! Administration: what `warren admin` and `warren policy` ask for.

mod attributes;
mod auth_keys;
mod credentials;
mod desk;
mod flow_logs;
mod logins;
mod machine_cas;
mod machines;
mod nodes;
mod policy;
mod questions;
mod records;
mod relays;
mod routes;
mod settings;
mod users;
mod views;

use std::ops::Deref;

use jiff::Timestamp;

pub use crate::auth_key::KeyText;
pub use credentials::{CreatedCredential, NewApiKey, NewOauthClient};
pub use desk::Desk;
pub use flow_logs::{FlowAnswer, FlowCursor, FlowQuestion, FlowVerdict};
pub(crate) use nodes::Device;
pub use policy::{NewPolicy, PolicySource};
pub(crate) use questions::{Candidate, Previewed, Trial};
pub use relays::{NewRelay, RelayView};
pub(crate) use users::is_login;
pub use users::{Belongings, Invitation, UserDeparture};
pub use views::{
    AttributesView, AuthKeyView, CreatedAuthKey, CredentialView, LoginState, LoginView, MachineCaView, MachineView,
    NodeView, PersonView, PolicyVersionView, PolicyView, TailnetView, UserView,
};

use crate::Control;
use crate::authority::Authority;
use crate::model::Who;
use crate::store::StoreError;
use crate::tailnet::Tailnet;
use crate::tailnet::snapshot::Snapshot;

/// Administration of the whole server, for whoever administers the machine that it runs on. What concerns one tailnet is
/// done at its [`Desk`].
#[derive(Debug, Clone)]
pub struct Admin {
    control: Control,
    who: Who,
    desk: Desk,
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
    /// What it is for: letters, digits, spaces and dashes, 50 at most; may be empty.
    pub description: String,
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
    /// The flow logs cannot be read.
    #[error("the flow logs cannot be read: {reason}")]
    FlowLog {
        /// Why.
        reason: String,
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
    #[error("the policy is refused:\n{reason}")]
    Policy {
        /// Why.
        reason: String,
    },
    /// Somebody else changed the policy meanwhile.
    #[error(
        "the policy was changed meanwhile: version {version} is in force, its tag is {etag}; look at it and set yours again"
    )]
    PolicyChanged {
        /// Version in force.
        version: u64,
        /// Its tag.
        etag: String,
    },
    /// No policy waits to be confirmed.
    #[error("there is nothing to confirm: version {version} of the policy is in force and stays")]
    NothingToConfirm {
        /// Version in force.
        version: u64,
    },
    /// Whoever asks has no right to it.
    #[error("you may not do this: {reason}")]
    Denied {
        /// What they lack.
        reason: String,
    },
    /// A tailnet needs an owner.
    #[error("{login:?} is the only owner of this network; make somebody else owner first")]
    LastOwner {
        /// The owner.
        login: String,
    },
    /// The machine could not be let in.
    #[error("the machine is refused: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// Too many ask for what takes long.
    #[error("the server has too much to do at the moment; try again in some seconds")]
    Crowded,
    /// The operating system gives no randomness.
    #[error("the operating system gives no randomness")]
    Randomness,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Admin {
    pub(crate) fn new(control: Control, who: Who) -> Self {
        let desk = Desk::new(control.clone(), Authority::server(who.clone()));
        Self { control, who, desk }
    }

    /// Makes a tailnet with the default policy and one user, `owner@<name>`.
    ///
    /// # Errors
    /// [`AdminError::Taken`], [`AdminError::Invalid`] if the name is no DNS label.
    pub async fn create_tailnet(&self, name: &str) -> Result<TailnetView, AdminError> {
        if !crate::name::is_label(name) {
            return Err(invalid("network name: use lower-case letters, digits and dashes, 63 at most", name));
        }
        match self.control.make_tailnet(name, &self.who).await {
            Ok(tailnet) => Ok(tailnet_view(&tailnet.snapshot())),
            Err(StoreError::Conflict { .. }) => Err(AdminError::Taken { what: "network", name: name.to_owned() }),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns all tailnets.
    #[must_use]
    pub fn tailnets(&self) -> Vec<TailnetView> {
        self.control.tailnets().iter().map(|tailnet| tailnet_view(&tailnet.snapshot())).collect()
    }

    /// Finds a tailnet by its name.
    fn tailnet_of(&self, name: &str) -> Result<Tailnet, AdminError> {
        let found = self.control.tailnets().into_iter().find(|tailnet| *tailnet.name == *name);
        found.ok_or_else(|| not_found("network", name))
    }
}

impl Deref for Admin {
    type Target = Desk;

    fn deref(&self) -> &Desk {
        &self.desk
    }
}

fn not_found(what: &'static str, name: &str) -> AdminError {
    AdminError::NotFound { what, name: name.to_owned() }
}

fn tag_denied(tag: &str) -> AdminError {
    AdminError::Denied { reason: format!("the tag {tag} is not yours to give, or the policy does not define it") }
}

fn invalid(what: &'static str, value: &str) -> AdminError {
    AdminError::Invalid { what, value: value.to_owned() }
}

fn tailnet_view(snapshot: &Snapshot) -> TailnetView {
    let record = &snapshot.tailnet;
    TailnetView {
        id: record.id.0,
        name: record.name.clone(),
        domain: snapshot.suffix.to_string(),
        created: record.created,
        machine_approval: record.machine_approval,
        only_enrolled: record.only_enrolled,
        flow_log: record.flow_log,
        enrolled: snapshot.machines.values().filter(|machine| machine.holds_at(snapshot.at)).count(),
        barred: snapshot.nodes.iter().filter(|node| node.barred).count(),
        key_lifetime: record.key_lifetime,
        users: snapshot.users.len(),
        nodes: snapshot.nodes.len(),
        online: snapshot.nodes.iter().filter(|node| node.online).count(),
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
