//! Administration: what `warren admin` and `warren policy` ask for.

mod attributes;
mod auth_keys;
mod nodes;
mod policy;
mod questions;
mod records;
mod relays;
mod routes;
mod views;

use std::sync::Arc;

use jiff::Timestamp;
use warren_policy::Role;

pub use crate::auth_key::AuthKeyText;
pub use policy::{NewPolicy, PolicySource};
pub use relays::{NewRelay, RelayView};
pub use views::{
    AttributesView, AuthKeyView, CreatedAuthKey, LoginState, LoginView, NodeView, PersonView, PolicyVersionView,
    PolicyView, TailnetView, UserView,
};

use crate::Control;
use crate::model::{KeyLifetime, Owner, TailnetRecord, UserRecord, Who};
use crate::store::StoreError;
use crate::tailnet::Tailnet;
use crate::tailnet::snapshot::Snapshot;
use crate::tailnet::work::Work;
use warren_wire::control::UserId;

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
    /// The operating system gives no randomness.
    #[error("the operating system gives no randomness")]
    Randomness,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Admin {
    pub(crate) fn new(control: Control, who: Who) -> Self {
        Self { control, who }
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

    /// Decides whether new nodes of a tailnet wait for approval.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub async fn set_machine_approval(&self, tailnet: &str, needed: bool) -> Result<TailnetView, AdminError> {
        self.set(tailnet, "tailnet.machine-approval", move |record| record.machine_approval = needed).await
    }

    /// Decides how long keys of users' nodes are valid from their next login on; keys in use keep their end.
    ///
    /// # Errors
    /// [`AdminError::NotFound`]; [`AdminError::Invalid`] outside [`KeyLifetime::LEAST`] to [`KeyLifetime::MOST`].
    pub async fn set_key_lifetime(&self, tailnet: &str, lifetime: KeyLifetime) -> Result<TailnetView, AdminError> {
        if let KeyLifetime::Seconds(seconds) = lifetime
            && !(KeyLifetime::LEAST..=KeyLifetime::MOST).contains(&seconds)
        {
            return Err(invalid("lifetime of keys: an hour at least, ten years at most", &format!("{seconds} s")));
        }
        self.set(tailnet, "tailnet.key-lifetime", move |record| record.key_lifetime = lifetime).await
    }

    /// Changes a setting of a tailnet.
    async fn set(
        &self,
        tailnet: &str,
        what: &'static str,
        edit: impl Fn(&mut TailnetRecord) + Send + Sync + 'static,
    ) -> Result<TailnetView, AdminError> {
        let tailnet = self.tailnet(tailnet)?;
        let who = self.who.clone();
        tailnet
            .change(move |work: &mut Work<'_>| {
                let mut record = (*work.state.tailnet).clone();
                edit(&mut record);
                if record != *work.state.tailnet {
                    work.put_tailnet(&who, what, record);
                }
                Ok::<_, AdminError>(())
            })
            .await?;
        Ok(tailnet_view(&tailnet.snapshot()))
    }

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
        let tailnet = self.tailnet(tailnet)?;
        if !is_login(login) {
            return Err(invalid("login name: write NAME@DOMAIN in lower case, without spaces", login));
        }
        let display_name = display_name.unwrap_or(login);
        if display_name.is_empty() || display_name.len() > TEXT_MAX || display_name.chars().any(char::is_control) {
            return Err(invalid("name to show", display_name));
        }
        let (who, login, display_name) = (self.who.clone(), login.to_owned(), display_name.to_owned());
        let id = tailnet
            .change(move |work: &mut Work<'_>| {
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
                    created: work.now,
                };
                let id = record.id;
                work.put_user(&who, "user.create", record);
                Ok(id)
            })
            .await?;
        let snapshot = tailnet.snapshot();
        let user = snapshot.users.get(&id).ok_or_else(|| not_found("user", &id.to_string()))?;
        Ok(user_view(&snapshot, user))
    }

    /// Returns the users of a tailnet, or of all.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub fn users(&self, tailnet: Option<&str>) -> Result<Vec<UserView>, AdminError> {
        let mut users = Vec::new();
        for tailnet in self.chosen(tailnet)? {
            let snapshot = tailnet.snapshot();
            users.extend(snapshot.users.values().map(|user| user_view(&snapshot, user)));
        }
        Ok(users)
    }

    /// Gives a user another role.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Invalid`] for a role that is none, [`AdminError::LastOwner`].
    pub async fn set_user_role(&self, tailnet: &str, login: &str, role: &str) -> Result<UserView, AdminError> {
        const KINDS: &str = "role: use owner, admin, it-admin, network-admin, billing-admin, auditor or member";
        let tailnet = self.tailnet(tailnet)?;
        let role = crate::model::role::parse(role).ok_or_else(|| invalid(KINDS, role))?;
        let (who, login) = (self.who.clone(), login.to_owned());
        let changed = move |work: &mut Work<'_>| {
            let users = &work.state.users;
            let id = user_id(users.values(), &login)?;
            let user = users.get(&id).ok_or_else(|| not_found("user", &login))?;
            let is_owner = |user: &UserRecord| user.role == Role::Owner;
            if is_owner(user) && role != Role::Owner && users.values().filter(|user| is_owner(user)).count() == 1 {
                return Err(AdminError::LastOwner { login: login.clone() });
            }
            if user.role != role {
                let record = UserRecord { role, ..(**user).clone() };
                work.put_user(&who, "user.role", record);
            }
            Ok(id)
        };
        let id = tailnet.change(changed).await?;
        let snapshot = tailnet.snapshot();
        let user = snapshot.users.get(&id).ok_or_else(|| not_found("user", &id.to_string()))?;
        Ok(user_view(&snapshot, user))
    }

    /// Removes a user who owns nothing any more.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Busy`].
    pub async fn remove_user(&self, tailnet: &str, login: &str) -> Result<(), AdminError> {
        let tailnet = self.tailnet(tailnet)?;
        let (who, login) = (self.who.clone(), login.to_owned());
        tailnet
            .change(move |work: &mut Work<'_>| {
                let id = user_id(work.state.users.values(), &login)?;
                let owner = Owner::User(id);
                let nodes = work.state.nodes.iter().filter(|node| node.record.owner == owner).count();
                let usable =
                    |key: &crate::AuthKeyRecord| key.owner == owner && crate::auth_key::check(key, work.now).is_ok();
                let keys = work.state.auth_keys.values().filter(|(key, _)| usable(key)).count();
                if nodes + keys > 0 {
                    return Err(AdminError::Busy { login: login.clone(), nodes, keys });
                }
                work.remove_user(&who, id);
                Ok(())
            })
            .await
    }

    /// Finds a tailnet by its name.
    fn tailnet(&self, name: &str) -> Result<Tailnet, AdminError> {
        let found = self.control.tailnets().into_iter().find(|tailnet| *tailnet.name == *name);
        found.ok_or_else(|| not_found("network", name))
    }

    /// Returns the tailnet of that name, or all.
    fn chosen(&self, name: Option<&str>) -> Result<Vec<Tailnet>, AdminError> {
        match name {
            Some(name) => Ok(vec![self.tailnet(name)?]),
            None => Ok(self.control.tailnets()),
        }
    }
}

/// Longest login name and name to show, in bytes.
const TEXT_MAX: usize = 254;

fn not_found(what: &'static str, name: &str) -> AdminError {
    AdminError::NotFound { what, name: name.to_owned() }
}

fn invalid(what: &'static str, value: &str) -> AdminError {
    AdminError::Invalid { what, value: value.to_owned() }
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

fn user_id<'a>(users: impl IntoIterator<Item = &'a Arc<UserRecord>>, login: &str) -> Result<UserId, AdminError> {
    let found = users.into_iter().find(|user| user.login == login);
    found.map(|user| user.id).ok_or_else(|| not_found("user", login))
}

fn tailnet_view(snapshot: &Snapshot) -> TailnetView {
    let record = &snapshot.tailnet;
    TailnetView {
        id: record.id.0,
        name: record.name.clone(),
        domain: snapshot.suffix.to_string(),
        created: record.created,
        machine_approval: record.machine_approval,
        key_lifetime: record.key_lifetime,
        users: snapshot.users.len(),
        nodes: snapshot.nodes.len(),
        online: snapshot.nodes.iter().filter(|node| node.online).count(),
    }
}

fn user_view(snapshot: &Snapshot, user: &UserRecord) -> UserView {
    let owner = Owner::User(user.id);
    UserView {
        id: user.id.0,
        tailnet: snapshot.tailnet.name.clone(),
        login: user.login.clone(),
        display_name: user.display_name.clone(),
        role: crate::model::role::name(user.role).to_owned(),
        created: user.created,
        nodes: snapshot.nodes.iter().filter(|node| node.record.owner == owner).count(),
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
