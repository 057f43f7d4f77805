//! Who may do what: scopes and roles, and the authority that every call of administration carries.
//!
//! Rights are worked out from the tailnet's state each time they are needed, and once more within the change itself: a
//! key that was taken back, a role that was changed or a user who was suspended counts from that moment on.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use warren_policy::Role;
use warren_wire::control::UserId;

use crate::model::{CredentialKind, TailnetId, UserRecord, Who};
use crate::tailnet::access::{self, PolicyInForce};
use crate::tailnet::work::Credentials;

/// A subject of the API. Source: logs-and-api.md, section 21.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    DevicesCore,
    DevicesRoutes,
    DevicesAttributes,
    Users,
    PolicyFile,
    AuthKeys,
    OauthKeys,
    ApiTokens,
    Dns,
    LogsConfiguration,
    LogsNetwork,
    FeatureSettings,
    NetworkingSettings,
}

impl Scope {
    /// All of them.
    pub(crate) const ALL: [Self; 13] = [
        Self::DevicesCore,
        Self::DevicesRoutes,
        Self::DevicesAttributes,
        Self::Users,
        Self::PolicyFile,
        Self::AuthKeys,
        Self::OauthKeys,
        Self::ApiTokens,
        Self::Dns,
        Self::LogsConfiguration,
        Self::LogsNetwork,
        Self::FeatureSettings,
        Self::NetworkingSettings,
    ];

    /// Returns its name in lists of scopes.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::DevicesCore => "devices:core",
            Self::DevicesRoutes => "devices:routes",
            Self::DevicesAttributes => "devices:posture_attributes",
            Self::Users => "users",
            Self::PolicyFile => "policy_file",
            Self::AuthKeys => "auth_keys",
            Self::OauthKeys => "oauth_keys",
            Self::ApiTokens => "api_access_tokens",
            Self::Dns => "dns",
            Self::LogsConfiguration => "logs:configuration",
            Self::LogsNetwork => "logs:network",
            Self::FeatureSettings => "feature_settings",
            Self::NetworkingSettings => "networking_settings",
        }
    }

    /// Returns the right to look.
    pub(crate) const fn read(self) -> Right {
        Right { scope: self, access: Access::Read }
    }

    /// Returns the right to change.
    pub(crate) const fn write(self) -> Right {
        Right { scope: self, access: Access::Write }
    }

    const fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// What is done to a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// What somebody needs for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Right {
    pub(crate) scope: Scope,
    pub(crate) access: Access,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.scope.name())?;
        match self.access {
            Access::Read => f.write_str(":read"),
            Access::Write => Ok(()),
        }
    }
}

/// A set of rights; who may change may look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Rights {
    read: u16,
    write: u16,
}

/// Says which name is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no scope of this server")]
pub(crate) struct UnknownScope(pub(crate) String);

impl Rights {
    /// All there are.
    pub(crate) const ALL: Self = Self { read: u16::MAX, write: u16::MAX };
    /// To look at all, and change nothing.
    pub(crate) const LOOK: Self = Self { read: u16::MAX, write: 0 };

    /// Returns what a role may.
    pub(crate) fn of_role(role: Role) -> Self {
        let and_write = |scopes: &[Scope]| scopes.iter().fold(Self::LOOK, |rights, scope| rights.with(scope.write()));
        match role {
            Role::Owner | Role::Admin => Self::ALL,
            Role::NetworkAdmin => and_write(&[
                Scope::DevicesRoutes,
                Scope::PolicyFile,
                Scope::AuthKeys,
                Scope::ApiTokens,
                Scope::Dns,
                Scope::NetworkingSettings,
            ]),
            Role::ItAdmin => and_write(&[
                Scope::DevicesCore,
                Scope::DevicesRoutes,
                Scope::DevicesAttributes,
                Scope::Users,
                Scope::AuthKeys,
                Scope::ApiTokens,
                Scope::FeatureSettings,
            ]),
            Role::Auditor => Self::LOOK,
            Role::BillingAdmin => Self::default().with(Scope::Users.read()).with(Scope::DevicesCore.read()),
            Role::Member => Self::default(),
        }
    }

    /// Returns what a list of scopes allows: `all`, the name of one, and either with `:read`.
    pub(crate) fn of_scopes<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, UnknownScope> {
        names.into_iter().try_fold(Self::default(), |rights, name| {
            let (subject, access) = match name.strip_suffix(":read") {
                Some(subject) => (subject, Access::Read),
                None => (name, Access::Write),
            };
            if subject == "all" {
                return Ok(rights.union(if access == Access::Write { Self::ALL } else { Self::LOOK }));
            }
            let scope = Scope::ALL.into_iter().find(|scope| scope.name() == subject);
            let scope = scope.ok_or_else(|| UnknownScope(name.chars().take(64).collect()))?;
            Ok(rights.with(Right { scope, access }))
        })
    }

    /// Adds one.
    #[must_use]
    pub(crate) const fn with(self, right: Right) -> Self {
        let bit = right.scope.bit();
        match right.access {
            Access::Read => Self { read: self.read | bit, ..self },
            Access::Write => Self { read: self.read | bit, write: self.write | bit },
        }
    }

    /// Tells whether one is in it.
    pub(crate) const fn has(self, right: Right) -> bool {
        let set = match right.access {
            Access::Read => self.read,
            Access::Write => self.write,
        };
        set & right.scope.bit() != 0
    }

    /// Tells whether all of `other` are in it.
    pub(crate) const fn covers(self, other: Self) -> bool {
        other.read & !self.read == 0 && other.write & !self.write == 0
    }

    /// Returns what is in both.
    #[must_use]
    pub(crate) const fn and(self, other: Self) -> Self {
        Self { read: self.read & other.read, write: self.write & other.write }
    }

    /// Returns what is in either.
    #[must_use]
    pub(crate) const fn union(self, other: Self) -> Self {
        Self { read: self.read | other.read, write: self.write | other.write }
    }
}

/// In whose name, and by what right, somebody reads and changes.
#[derive(Debug, Clone)]
pub(crate) struct Authority {
    /// As the audit log names them.
    pub(crate) who: Who,
    holder: Holder,
}

#[derive(Debug, Clone)]
enum Holder {
    /// Whoever administers the machine that the server runs on: all tailnets, all rights.
    Server,
    /// Whoever showed a credential.
    Credential(Shown),
}

/// A credential whose secret was shown.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    /// Tailnet that it is for.
    pub(crate) tailnet: TailnetId,
    /// Its ID; of a token, that of its client.
    pub(crate) id: String,
    /// What a token was narrowed to.
    pub(crate) limit: Rights,
    /// Tags that a token was narrowed to.
    pub(crate) tags: Option<Arc<[String]>>,
}

/// What somebody is at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    /// What they may.
    pub(crate) rights: Rights,
    /// The user, if it is one.
    pub(crate) user: Option<Arc<UserRecord>>,
    giver: Giver,
}

/// By what right tags are given to nodes.
#[derive(Debug, Clone)]
enum Giver {
    Server,
    User,
    Client(Vec<String>),
}

impl Authority {
    /// Returns that of whoever administers the server itself.
    pub(crate) fn server(who: Who) -> Self {
        Self { who, holder: Holder::Server }
    }

    /// Returns that of whoever showed a credential.
    pub(crate) fn credential(who: Who, shown: Shown) -> Self {
        Self { who, holder: Holder::Credential(shown) }
    }

    /// Returns the tailnet that it is for; `None` if for all.
    pub(crate) fn tailnet(&self) -> Option<TailnetId> {
        match &self.holder {
            Holder::Server => None,
            Holder::Credential(shown) => Some(shown.tailnet),
        }
    }

    /// Returns the ID of the credential that was shown.
    pub(crate) fn credential_id(&self) -> Option<&str> {
        match &self.holder {
            Holder::Server => None,
            Holder::Credential(shown) => Some(&shown.id),
        }
    }

    /// Works out what the holder is in their tailnet, as it is; `None` if they are nothing any more.
    pub(crate) fn standing(
        &self,
        users: &BTreeMap<UserId, Arc<UserRecord>>,
        credentials: &Credentials,
        now: Timestamp,
    ) -> Option<Standing> {
        let Holder::Credential(shown) = &self.holder else {
            return Some(Standing { rights: Rights::ALL, user: None, giver: Giver::Server });
        };
        let (record, _) = credentials.get(&shown.id)?;
        if !record.is_valid(now) {
            return None;
        }
        // A scope that this program does not know any more gives nothing.
        let scopes = record.scopes.iter().filter_map(|name| Rights::of_scopes([name.as_str()]).ok());
        let scopes = scopes.fold(Rights::default(), Rights::union);
        match record.kind {
            CredentialKind::ApiKey => {
                let user = users.get(&record.user?).filter(|user| !user.suspended)?;
                let limit = if record.scopes.is_empty() { Rights::ALL } else { scopes };
                let rights = Rights::of_role(user.role).and(limit).and(shown.limit);
                Some(Standing { rights, user: Some(Arc::clone(user)), giver: Giver::User })
            }
            CredentialKind::OauthClient => {
                let narrowed = |tag: &&String| shown.tags.as_ref().is_none_or(|tags| tags.contains(tag));
                let tags = record.tags.iter().filter(narrowed).cloned().collect();
                Some(Standing { rights: scopes.and(shown.limit), user: None, giver: Giver::Client(tags) })
            }
        }
    }
}

impl Standing {
    /// Tells whether they may give a tag to a node.
    pub(crate) fn may_give(&self, policy: &PolicyInForce, tag: &str) -> bool {
        match (&self.giver, &self.user) {
            (Giver::Server, _) => true,
            (Giver::Client(held), _) => policy.may_pass_on_tag(held, tag),
            (Giver::User, Some(user)) => policy.may_tag(&access::directory_user(user), tag),
            (Giver::User, None) => false,
        }
    }

    /// Tells whether they may take a tag from a node: whoever may give it, and anybody if the policy defines it no more.
    pub(crate) fn may_take(&self, policy: &PolicyInForce, tag: &str) -> bool {
        self.may_give(policy, tag) || !policy.defines_tag(tag)
    }

    /// Tells whether it is the administration of the server itself.
    pub(crate) fn is_server(&self) -> bool {
        matches!(self.giver, Giver::Server)
    }

    /// Tells whether it is an OAuth client, whose nodes and keys must have tags.
    pub(crate) fn is_client(&self) -> bool {
        matches!(self.giver, Giver::Client(_))
    }

    /// Tells whether they may change users of that role, or give it: nobody makes somebody who may more than they.
    pub(crate) fn may_handle(&self, role: Role) -> bool {
        let is_owner = self.user.as_ref().is_some_and(|user| user.role == Role::Owner);
        self.is_server() || (self.rights.covers(Rights::of_role(role)) && (role != Role::Owner || is_owner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_change_may_look_and_not_the_other_way_round() {
        let rights = Rights::of_scopes(["dns", "users:read"]).unwrap();
        assert!(rights.has(Scope::Dns.write()) && rights.has(Scope::Dns.read()));
        assert!(rights.has(Scope::Users.read()) && !rights.has(Scope::Users.write()));
        assert!(!rights.has(Scope::PolicyFile.read()));
    }

    #[test]
    fn all_stands_for_every_scope() {
        assert_eq!(Rights::of_scopes(["all"]), Ok(Rights::ALL));
        let look = Rights::of_scopes(["all:read"]).unwrap();
        assert!(Scope::ALL.into_iter().all(|scope| look.has(scope.read()) && !look.has(scope.write())));
    }

    #[test]
    fn every_scope_is_found_by_its_name_and_nothing_else_is() {
        for scope in Scope::ALL {
            assert_eq!(Rights::of_scopes([scope.name()]), Ok(Rights::default().with(scope.write())));
            let read = format!("{}:read", scope.name());
            assert_eq!(Rights::of_scopes([read.as_str()]), Ok(Rights::default().with(scope.read())));
        }
        for name in ["", "dns:write", "DNS", "all:read:read", "devices"] {
            assert!(Rights::of_scopes([name]).is_err(), "{name}");
        }
    }

    #[test]
    fn no_role_but_the_highest_covers_another_that_may_write_elsewhere() {
        let covers = |one, two| Rights::of_role(one).covers(Rights::of_role(two));
        assert!(covers(Role::Admin, Role::Owner), "the one difference is not in the scopes");
        assert!(!covers(Role::ItAdmin, Role::NetworkAdmin) && !covers(Role::NetworkAdmin, Role::ItAdmin));
        assert!(!covers(Role::ItAdmin, Role::Admin) && !covers(Role::Auditor, Role::ItAdmin));
        assert!(covers(Role::ItAdmin, Role::Auditor) && covers(Role::Member, Role::Member));
    }
}
