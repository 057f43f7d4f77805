//! A person whom an identity provider vouches for lets a machine in: which tailnet, as which user.
//!
//! A person is a user of a tailnet by (issuer, subject) alone. They may take a machine to tailnets where they are a
//! user, and to the one that the configuration has for them, which makes them a user there. Whoever has none makes
//! one, if the operator allows that, or waits for an administrator. A login never changes the owner of a node, since
//! [`Join`] refuses that whoever asks.

#[cfg(test)]
mod tests;

use warren_policy::Role;
use warren_wire::control::UserId;

use crate::Control;
use crate::admin::LoginState;
use crate::login::Claim;
use crate::model::{UserRecord, Who};
use crate::oidc::Person;
use crate::register::{Grant, Join, Refusal};
use crate::store::StoreError;
use crate::tailnet::Tailnet;
use crate::tailnet::work::Work;

/// Where a person may take a machine.
#[derive(Debug)]
pub(crate) enum Destination {
    /// To one of these, the likeliest first; never empty.
    Tailnets(Vec<Tailnet>),
    /// To one that is made for them.
    New,
    /// Nowhere, unless an administrator says so.
    Approval,
}

/// What became of a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The machine is in that tailnet.
    In {
        /// Name of the tailnet.
        tailnet: String,
        /// Whether an administrator must still approve the machine.
        machine_waits: bool,
    },
    /// An administrator is asked.
    AsksAdministrator,
}

/// Says why a login came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SignInError {
    /// It is over, or somebody decided it.
    #[error("this login is over or was decided already; run warren up on the machine again")]
    Gone,
    /// Somebody else confirmed it and waits for an administrator.
    #[error("somebody else confirmed this login already")]
    Other,
    /// That tailnet is not theirs.
    #[error("this network is not yours")]
    Tailnet,
    /// The machine is refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl Control {
    /// Says where a person may take a machine that asks for the tailnet `hint`.
    pub(crate) fn destination(&self, person: &Person, hint: &str) -> Destination {
        let is_theirs = |tailnet: &Tailnet| {
            let snapshot = tailnet.snapshot();
            snapshot.users.values().any(|user| user.identity.as_ref() == Some(&person.identity))
        };
        let mapped = |tailnet: &Tailnet| person.tailnet.as_deref() == Some(&*tailnet.name);
        let mut own: Vec<_> =
            self.tailnets().into_iter().filter(|tailnet| mapped(tailnet) || is_theirs(tailnet)).collect();
        own.sort_by_key(|tailnet| !mapped(tailnet));
        let hint = hint.strip_prefix("required:").unwrap_or(hint);
        if !hint.is_empty() {
            // Of a tailnet that is not theirs nothing is told, not even whether there is one.
            own.retain(|tailnet| &*tailnet.name == hint);
        }
        match own.is_empty() {
            false => Destination::Tailnets(own),
            true if hint.is_empty() && person.may_make_tailnet => Destination::New,
            true => Destination::Approval,
        }
    }

    /// Carries out what a person confirmed: the machine of the login `id` becomes theirs, in the tailnet `chosen` or the
    /// likeliest. The register call that waits returns.
    ///
    /// # Errors
    /// [`SignInError`]; the login stays open after a refusal.
    pub(crate) async fn sign_in(
        &self,
        id: &str,
        person: &Person,
        chosen: Option<&str>,
    ) -> Result<Outcome, SignInError> {
        let claim = self.logins().claim(self.clock(), id).ok_or(SignInError::Gone)?;
        if claim.person.as_ref().is_some_and(|other| other.identity != person.identity) {
            return Err(SignInError::Other);
        }
        let tailnet = match self.destination(person, &claim.request.tailnet) {
            Destination::Tailnets(own) => {
                let found = own.into_iter().find(|tailnet| chosen.is_none_or(|name| *tailnet.name == *name));
                found.ok_or(SignInError::Tailnet)?
            }
            Destination::New => self.make_tailnet_of(person).await.map_err(Refusal::from)?,
            Destination::Approval => {
                claim.note_person(person.clone());
                tracing::info!(login = id, who = person.login, "a person waits for an administrator");
                return Ok(Outcome::AsksAdministrator);
            }
        };
        let grant = Grant::Person { person: Box::new(person.clone()), approved_by: None };
        let machine_waits = !self.let_in(claim, &tailnet, grant).await?.is_admitted();
        Ok(Outcome::In { tailnet: tailnet.name.to_string(), machine_waits })
    }

    /// Lets the machine of a login in by that right.
    pub(crate) async fn let_in(
        &self,
        claim: Claim<'_>,
        tailnet: &Tailnet,
        grant: Grant,
    ) -> Result<std::sync::Arc<crate::tailnet::nodes::Node>, Refusal> {
        crate::register::check_tailnet_hint(&claim.request, tailnet)?;
        let join = Join::new(claim.machine, &claim.request, grant);
        let node = tailnet.change(move |work: &mut Work<'_>| join.carry_out(work)).await?;
        claim.decide(LoginState::Approved);
        tracing::info!(tailnet = %tailnet.id, node = %node.id(), "a login let a machine in");
        Ok(node)
    }

    /// Makes a tailnet that a person owns, unless they have one meanwhile.
    async fn make_tailnet_of(&self, person: &Person) -> Result<Tailnet, StoreError> {
        let label = crate::name::label(person.login.split('@').next().unwrap_or_default());
        let taken: Vec<_> = self.tailnets().into_iter().map(|tailnet| tailnet.name).collect();
        let name = crate::name::free(&label, |name| taken.iter().any(|other| **other == *name));
        self.make_tailnet_for(&name, &Who::user(&person.login), Some(person)).await
    }
}

/// Finds the user who a person is in this tailnet, or makes one if they may join it.
pub(crate) fn user_of(work: &mut Work<'_>, who: &Who, person: &Person, may_join: bool) -> Result<UserId, Refusal> {
    let known = work.state.users.values().find(|user| user.identity.as_ref() == Some(&person.identity)).cloned();
    if let Some(user) = known {
        if user.display_name != person.display_name {
            let record = UserRecord { display_name: person.display_name.clone(), ..(*user).clone() };
            work.put_user(who, "user.update", record);
        }
        return Ok(user.id);
    }
    if !may_join {
        return Err(Refusal::User);
    }
    // Policies know people by their login names, so a name that another has is never shared or handed over.
    if work.state.users.values().any(|user| user.login == person.login) {
        return Err(Refusal::LoginTaken { login: person.login.clone() });
    }
    let record = UserRecord {
        id: work.store.next_user(),
        tailnet: work.state.tailnet.id,
        login: person.login.clone(),
        display_name: person.display_name.clone(),
        role: Role::Member,
        identity: Some(person.identity.clone()),
        suspended: false,
        created: work.now,
    };
    let id = record.id;
    work.put_user(who, "user.create", record);
    Ok(id)
}
