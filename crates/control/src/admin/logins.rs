//! Logins that become nodes.

use super::users::user_id;
use super::{Admin, AdminError, LoginState, LoginView, NodeView, invalid, not_found};
use crate::login::Claim;
use crate::register::Grant;
use crate::tailnet::Tailnet;

impl Admin {
    /// Returns the logins that wait, and those decided lately.
    #[must_use]
    pub fn logins(&self) -> Vec<LoginView> {
        self.control.logins().list(self.control.clock(), |id| self.control.login_url(id))
    }

    /// Returns one login, for the page that its URL shows.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub fn login(&self, id: &str) -> Result<LoginView, AdminError> {
        let login = self.control.logins().view(self.control.clock(), id, |id| self.control.login_url(id));
        login.ok_or_else(|| not_found("login", id))
    }

    /// Lets the machine of a login in as a node of that user; the register call that waits returns.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Refused`].
    pub async fn approve_login(&self, id: &str, tailnet: &str, user: &str) -> Result<NodeView, AdminError> {
        let tailnet = self.tailnet_of(tailnet)?;
        let user = user_id(tailnet.snapshot().users.values(), user)?;
        let claim = self.control.logins().claim(self.control.clock(), id).ok_or_else(|| not_found("login", id))?;
        self.let_in(claim, &tailnet, Grant::Approved { user, by: self.who.clone(), is: None }).await
    }

    /// Lets the machine of a login in as a node of the person who logged in and confirmed it. They become a user; or,
    /// with `user`, they are that user from now on, who never logged in before.
    ///
    /// # Errors
    /// As [`Self::approve_login`]; [`AdminError::Invalid`] if nobody logged in, [`AdminError::Taken`] if the user is
    /// somebody else.
    pub async fn approve_person(&self, id: &str, tailnet: &str, user: Option<&str>) -> Result<NodeView, AdminError> {
        let tailnet = self.tailnet_of(tailnet)?;
        let claim = self.control.logins().claim(self.control.clock(), id).ok_or_else(|| not_found("login", id))?;
        let person = claim.person.clone().ok_or_else(|| {
            invalid("login that somebody confirmed: name a user with --user, or wait until they have logged in", id)
        })?;
        let grant = match user {
            None => Grant::Person { person, approved_by: Some(self.who.clone()) },
            Some(login) => {
                let snapshot = tailnet.snapshot();
                let user = user_id(snapshot.users.values(), login)?;
                let identity = snapshot.users.get(&user).and_then(|user| user.identity.clone());
                if identity.is_some_and(|identity| identity != person.identity) {
                    return Err(AdminError::Taken { what: "person who is", name: login.to_owned() });
                }
                Grant::Approved { user, by: self.who.clone(), is: Some(person.identity.clone()) }
            }
        };
        self.let_in(claim, &tailnet, grant).await
    }

    async fn let_in(&self, claim: Claim<'_>, tailnet: &Tailnet, grant: Grant) -> Result<NodeView, AdminError> {
        let refused = |reason: crate::register::Refusal| AdminError::Refused { reason: reason.to_string() };
        let node = self.control.let_in(claim, tailnet, grant).await.map_err(refused)?;
        super::nodes::shown(&tailnet.snapshot(), node.id())
    }

    /// Refuses a login.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub fn reject_login(&self, id: &str) -> Result<LoginView, AdminError> {
        let claim = self.control.logins().claim(self.control.clock(), id).ok_or_else(|| not_found("login", id))?;
        claim.decide(LoginState::Rejected);
        self.login(id)
    }
}
