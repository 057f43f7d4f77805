//! Accounts of people on this server itself: a password, a second factor, and codes for when that is lost.
//!
//! A person with an account is (issuer "local", ID of the account). Accounts are made with links for one use: the server
//! prints one for the first owner when it first starts, administrators make others. What may be used once is used up by
//! the statement that stores its use, so that of any number at the same time one goes through.

pub(crate) mod password;
pub(crate) mod totp;

#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::sync::Semaphore;
use warren_wire::control::UserId;
use zeroize::Zeroizing;

use self::password::{HASH_BYTES, PasswordError, SALT_BYTES};
use self::totp::{SECRET_BYTES, Secret};
use crate::auth_key::{self, KeyText};
use crate::model::{TailnetId, UserIdentity, UserRecord, Who};
use crate::oidc::Person;
use crate::store::audit::hex;
use crate::store::{Change, Entry, StoreError};
use crate::tailnet::work::Work;
use crate::{Control, store};

/// Issuer of identities that this server vouches for itself; no provider's, since those are URLs.
pub(crate) const ISSUER: &str = "local";
/// The tailnet that a server makes at its first start, and the user who owns it.
pub(crate) const FIRST_TAILNET: &str = "default";
/// See [`FIRST_TAILNET`].
pub(crate) const FIRST_OWNER: &str = "owner@default";
/// How long a link works.
pub(crate) const INVITATION_LIFETIME: Duration = Duration::from_secs(3 * 24 * 3600);
/// How many codes an account has for when the second factor is lost.
const RECOVERY_CODES: usize = 10;
/// Length of such a code, in bytes of randomness: too long to be guessed, even by somebody who has the database.
const RECOVERY_BYTES: usize = 10;
/// How many passwords are looked at at the same time; each takes 19 MiB and keeps a processor busy.
const AT_ONCE: usize = 2;
/// How long a password waits for its turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is known of an account, without its secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AccountRecord {
    /// Its ID, which is the subject of the person's identity.
    pub(crate) id: String,
    /// Name to log in with, that of the user.
    pub(crate) login: String,
    /// When it was made.
    pub(crate) created: Timestamp,
}

/// What an account knows its person by.
#[derive(Clone)]
pub(crate) struct Secrets {
    pub(crate) salt: [u8; SALT_BYTES],
    /// Argon2id of the password.
    pub(crate) password: [u8; HASH_BYTES],
    pub(crate) totp: Secret,
    /// Last step of the second factor that was used.
    pub(crate) step: i64,
    /// SHA-256 of each code for when the second factor is lost.
    pub(crate) recovery: Vec<[u8; 32]>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(…)")
    }
}

/// A link that makes an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InvitationRecord {
    /// The part of the link that is no secret.
    pub(crate) id: String,
    /// Tailnet of the user.
    pub(crate) tailnet: TailnetId,
    /// User whose account it makes.
    pub(crate) user: UserId,
    /// Login name of the user.
    pub(crate) login: String,
    /// When it stops working.
    pub(crate) expires: Timestamp,
}

/// A link that works, as somebody showed it.
#[derive(Debug, Clone)]
pub(crate) struct Invited {
    pub(crate) record: InvitationRecord,
    /// Name of the tailnet.
    pub(crate) tailnet: String,
}

/// What a person fills in to make an account.
pub(crate) struct NewAccount {
    pub(crate) password: Zeroizing<String>,
    pub(crate) totp: Secret,
    /// What the second factor shows.
    pub(crate) code: String,
}

/// Says why no account is made; the text is shown to the person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AcceptError {
    #[error("this link was used already, has expired, or never was one; ask an administrator for another")]
    Gone,
    #[error(transparent)]
    Password(#[from] PasswordError),
    #[error("this code is not what the key shows now; is the clock of your phone right? Type the next one")]
    Code,
    #[error("somebody else on this server logs in by that name; ask an administrator")]
    Taken,
    #[error("the server is busy; try again in a minute")]
    Busy,
    #[error("the server has no randomness; tell its operator")]
    Randomness,
    #[error("the server cannot store the account now: {0}")]
    Store(#[from] StoreError),
}

/// Says why somebody is not let in. What is wrong of name, password and code is not told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LogInError {
    #[error("name, password or code is wrong, or the code was used already; wait for the next one and try again")]
    Wrong,
    #[error("the server is busy; try again in a minute")]
    Busy,
    #[error("the server cannot look that up now: {0}")]
    Store(#[from] StoreError),
}

/// What limits the work on passwords.
#[derive(Debug)]
pub(crate) struct Hashing(Semaphore);

impl Default for Hashing {
    fn default() -> Self {
        Self(Semaphore::new(AT_ONCE))
    }
}

impl Hashing {
    /// Works out the hash of a password; `None` if too many wait, or it cannot be done.
    async fn hash(&self, password: Zeroizing<String>, salt: [u8; SALT_BYTES]) -> Option<[u8; HASH_BYTES]> {
        let _turn = tokio::time::timeout(PATIENCE, self.0.acquire()).await.ok()?.ok()?;
        tokio::task::spawn_blocking(move || password::hash(&password, &salt)).await.ok()?
    }
}

impl Control {
    /// Finds the link that somebody shows; `None` if it does not work.
    pub(crate) async fn invitation(&self, text: &str) -> Result<Option<Invited>, StoreError> {
        let Some(shown) = auth_key::parse("", text) else { return Ok(None) };
        let id = shown.id.clone();
        let found = self.store().look(move |connection| store::accounts::invitation(connection, &id)).await?;
        let good = found.filter(|(_, hash)| auth_key::matches(&shown, hash)).map(|(record, _)| record);
        let Some(record) = good.filter(|record| self.clock().now() < record.expires) else { return Ok(None) };
        let tailnet = self.tailnet_by_id(record.tailnet);
        Ok(tailnet.map(|tailnet| Invited { record, tailnet: tailnet.name.to_string() }))
    }

    /// Makes the account that a link is for, and returns the codes for when the second factor is lost.
    ///
    /// # Errors
    /// [`AcceptError`]; the link works on unless it is gone.
    pub(crate) async fn accept_invitation(
        &self,
        text: &str,
        new: NewAccount,
    ) -> Result<Vec<Zeroizing<String>>, AcceptError> {
        let invited = self.invitation(text).await?.ok_or(AcceptError::Gone)?.record;
        password::check(&new.password, &invited.login)?;
        let step = totp::step_of(&new.totp, &new.code, self.clock().now()).ok_or(AcceptError::Code)?;
        let (mut id, mut salt) = ([0; 8], [0; SALT_BYTES]);
        getrandom::fill(&mut id).map_err(|_| AcceptError::Randomness)?;
        getrandom::fill(&mut salt).map_err(|_| AcceptError::Randomness)?;
        let codes = recovery_codes().map_err(|_| AcceptError::Randomness)?;
        let hash = self.hashing().hash(new.password, salt).await.ok_or(AcceptError::Busy)?;
        let recovery = codes.iter().map(|code| digest(&plain(code))).collect();
        let secrets = Secrets { salt, password: hash, totp: new.totp, step, recovery };
        let record = AccountRecord { id: hex(&id), login: invited.login.clone(), created: self.clock().now() };
        let tailnet = self.tailnet_by_id(invited.tailnet).ok_or(AcceptError::Gone)?;
        let made = tailnet.change(move |work| make_account(work, &invited, &record, &secrets)).await;
        match made {
            Ok(()) => Ok(codes),
            // Of any number at the same time one uses it up.
            Err(AcceptError::Store(StoreError::Conflict { what: store::accounts::THE_LINK })) => Err(AcceptError::Gone),
            Err(AcceptError::Store(StoreError::Conflict { .. })) => Err(AcceptError::Taken),
            Err(error) => Err(error),
        }
    }

    /// Finds out who somebody is by name, password and what their second factor shows, or a code for when it is lost.
    ///
    /// # Errors
    /// [`LogInError`].
    pub(crate) async fn log_in(
        &self,
        login: &str,
        password: Zeroizing<String>,
        code: &str,
    ) -> Result<Person, LogInError> {
        if password.len() > password::MOST {
            return Err(LogInError::Wrong);
        }
        let name = login.to_owned();
        let found = self.store().look(move |connection| store::accounts::by_login(connection, &name)).await?;
        // Somebody who is not there costs as much time.
        let (salt, expected) =
            found.as_ref().map_or(([0; SALT_BYTES], [0; HASH_BYTES]), |(_, secrets)| (secrets.salt, secrets.password));
        let hash = self.hashing().hash(password, salt).await.ok_or(LogInError::Busy)?;
        let is_right = bool::from(hash.ct_eq(&expected));
        let (record, secrets) = found.filter(|_| is_right).ok_or(LogInError::Wrong)?;
        let now = self.clock().now();
        let (what, change) = match totp::step_of(&secrets.totp, code, now) {
            Some(step) => ("account.log-in", Change::UseStep { account: record.id.clone(), step }),
            None => {
                let hash = digest(&plain(code));
                ("account.recover", Change::UseRecovery { account: record.id.clone(), hash })
            }
        };
        let entry = Entry { who: Who::user(&record.login), what, tailnet: None, change };
        match self.store().apply(vec![entry], now).await {
            Ok(()) => Ok(self.person(record)),
            Err(StoreError::Conflict { .. }) => Err(LogInError::Wrong),
            Err(error) => Err(error.into()),
        }
    }

    fn person(&self, record: AccountRecord) -> Person {
        let identity = UserIdentity { issuer: ISSUER.to_owned(), subject: record.id };
        let known = self.tailnets().iter().find_map(|tailnet| {
            let snapshot = tailnet.snapshot();
            snapshot.users.values().find(|user| user.identity.as_ref() == Some(&identity)).cloned()
        });
        let display_name = known.map_or_else(|| record.login.clone(), |user| user.display_name.clone());
        Person { identity, login: record.login, display_name, tailnet: None, may_make_tailnet: false }
    }

    /// Tells whether nobody has come in yet: no machine, and no person. Then `owner@default` is for whoever runs the server.
    pub(crate) fn is_unused(&self) -> bool {
        let tailnets = self.tailnets();
        let has_owner = |user: &UserRecord| user.login == FIRST_OWNER && !user.suspended;
        let nobody = tailnets.iter().all(|tailnet| {
            let snapshot = tailnet.snapshot();
            snapshot.nodes.len() == 0 && snapshot.users.values().all(|user| user.identity.is_none())
        });
        let first = tailnets.iter().find(|tailnet| *tailnet.name == *FIRST_TAILNET);
        nobody && first.is_some_and(|tailnet| tailnet.snapshot().users.values().any(|user| has_owner(user)))
    }

    /// Tells whether somebody logs in with an account of this server.
    pub(crate) fn has_accounts(&self) -> bool {
        let is_local = |user: &UserRecord| user.identity.as_ref().is_some_and(|identity| identity.issuer == ISSUER);
        self.tailnets().iter().any(|tailnet| tailnet.snapshot().users.values().any(|user| is_local(user)))
    }
}

/// Uses a link up and makes its account. One that the user had before is no more.
fn make_account(
    work: &mut Work<'_>,
    invited: &InvitationRecord,
    record: &AccountRecord,
    secrets: &Secrets,
) -> Result<(), AcceptError> {
    let user = work.state.users.get(&invited.user).filter(|user| !user.suspended).cloned().ok_or(AcceptError::Gone)?;
    if user.identity.as_ref().is_some_and(|identity| identity.issuer != ISSUER) {
        return Err(AcceptError::Taken);
    }
    let who = Who::user(&user.login);
    work.use_invitation(&who, &invited.id);
    let identity = UserIdentity { issuer: ISSUER.to_owned(), subject: record.id.clone() };
    work.put_user(&who, "user.account", UserRecord { identity: Some(identity), ..(*user).clone() });
    work.add_account(&who, record.clone(), secrets.clone());
    Ok(())
}

/// Makes a link for a user.
pub(crate) fn invitation(user: &UserRecord, now: Timestamp) -> Result<(InvitationRecord, [u8; 32], KeyText), Full> {
    let fresh = auth_key::generate("").map_err(|_| Full)?;
    let expires = now.checked_add(INVITATION_LIFETIME).unwrap_or(Timestamp::MAX);
    let record =
        InvitationRecord { id: fresh.id, tailnet: user.tailnet, user: user.id, login: user.login.clone(), expires };
    Ok((record, fresh.hash, fresh.text))
}

/// The operating system gives no randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

fn recovery_codes() -> Result<Vec<Zeroizing<String>>, getrandom::Error> {
    let one = || {
        let mut random = Zeroizing::new([0; RECOVERY_BYTES]);
        getrandom::fill(random.as_mut_slice())?;
        let letters = totp::base32(random.as_slice());
        let groups: Vec<_> = letters.as_bytes().chunks(4).map(String::from_utf8_lossy).collect();
        Ok(Zeroizing::new(groups.join("-").to_ascii_lowercase()))
    };
    (0..RECOVERY_CODES).map(|_| one()).collect()
}

/// Returns a code as it is however somebody writes it.
fn plain(code: &str) -> String {
    code.chars().filter(char::is_ascii_alphanumeric).take(64).map(|letter| letter.to_ascii_lowercase()).collect()
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// Length of the key of a second factor, as it is shown.
pub(crate) const TOTP_LETTERS: usize = SECRET_BYTES * 8 / 5;
