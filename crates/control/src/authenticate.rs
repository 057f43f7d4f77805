//! Who shows a credential of the API.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::Control;
use crate::admin::Desk;
use crate::auth_key::{self, KeyText};
use crate::authority::{Authority, Rights, Shown, UnknownScope};
use crate::model::{CredentialKind, CredentialRecord, TAGS_MAX, TailnetId, Who};

/// Most scopes that a client may ask for at a time; there are fewer.
const SCOPES_MAX: usize = 32;

/// An OAuth client that showed its secret.
#[derive(Debug)]
pub(crate) struct Client {
    tailnet: TailnetId,
    record: CredentialRecord,
}

impl Client {
    /// Returns its ID.
    pub(crate) fn id(&self) -> &str {
        &self.record.id
    }
}

/// What an OAuth client gets for its secret.
#[derive(Debug)]
pub(crate) struct Granted {
    /// The token.
    pub(crate) token: KeyText,
    /// Its scopes.
    pub(crate) scopes: Vec<String>,
}

/// Says why a client gets no token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GrantError {
    #[error("the client is not known, or its secret is wrong")]
    Client,
    #[error(transparent)]
    Scope(#[from] UnknownScope),
    #[error("the client does not have all of these scopes")]
    MoreScopes,
    #[error("the client does not have all of these tags")]
    MoreTags,
    #[error("a token takes {most} {what} at most; ask for fewer")]
    TooMany { what: &'static str, most: usize },
    #[error("the operating system gives no randomness")]
    Randomness,
}

impl Control {
    /// Returns a desk for whoever shows an API key, or the token of a client; `None` if it is none, or works no more.
    pub(crate) fn authenticate(&self, text: &str, from: IpAddr) -> Option<Desk> {
        let now = self.clock().now();
        let secret = auth_key::parse(auth_key::API_KEY, text)?;
        let shown = match self.credential(&secret, CredentialKind::ApiKey) {
            Some((tailnet, record)) => Shown { tailnet, id: record.id, limit: Rights::ALL, tags: None },
            None => self.tokens().find(&secret, now)?,
        };
        let snapshot = self.tailnet_by_id(shown.tailnet)?.snapshot();
        // Whoever is nothing any more is a stranger.
        let authority = Authority::credential(Who::client(&shown.id), shown.clone());
        let standing = authority.standing(&snapshot.users, &snapshot.credentials, now)?;
        let who = standing.user.as_ref().map_or_else(|| Who::client(&shown.id), |user| Who::user(&user.login));
        let authority = Authority::credential(who.by(&shown.id, from), shown);
        Some(Desk::new(self.clone(), authority))
    }

    /// Returns the client whose secret was shown, which alone says who it is.
    ///
    /// # Errors
    /// [`GrantError::Client`].
    pub(crate) fn client(&self, secret: &str) -> Result<Client, GrantError> {
        let secret = auth_key::parse(auth_key::CLIENT, secret).ok_or(GrantError::Client)?;
        let found = self.credential(&secret, CredentialKind::OauthClient);
        let now = self.clock().now();
        let (tailnet, record) = found.filter(|(_, record)| record.is_valid(now)).ok_or(GrantError::Client)?;
        Ok(Client { tailnet, record })
    }

    /// Gives a client a token, narrowed to scopes and tags with blanks between them, or not if there are none.
    ///
    /// # Errors
    /// [`GrantError`].
    pub(crate) fn grant_token(&self, client: &Client, scopes: &str, tags: &str) -> Result<Granted, GrantError> {
        let Client { tailnet, record } = client;
        let (scopes, tags) = (words("scopes", scopes, SCOPES_MAX)?, words("tags", tags, TAGS_MAX)?);
        let own = record.scopes.iter().filter_map(|name| Rights::of_scopes([name.as_str()]).ok());
        let own = own.fold(Rights::default(), |all, rights| all.union(rights));
        let scopes = if scopes.is_empty() { record.scopes.clone() } else { scopes };
        let limit = Rights::of_scopes(scopes.iter().map(String::as_str))?;
        if !own.covers(limit) {
            return Err(GrantError::MoreScopes);
        }
        if !tags.iter().all(|tag| record.tags.contains(tag)) {
            return Err(GrantError::MoreTags);
        }
        let tags = (!tags.is_empty()).then(|| tags.into());
        tracing::info!(client = record.id, %tailnet, scopes = scopes.len(), "a client gets a token");
        let shown = Shown { tailnet: *tailnet, id: record.id.clone(), limit, tags };
        let token = self.tokens().issue(shown, self.clock().now()).map_err(|_| GrantError::Randomness)?;
        Ok(Granted { token, scopes })
    }

    /// Finds the credential of that kind whose secret was shown.
    fn credential(&self, shown: &auth_key::Shown, kind: CredentialKind) -> Option<(TailnetId, CredentialRecord)> {
        let tailnet = self.registry().credential(&shown.id)?;
        let snapshot = self.tailnet_by_id(tailnet)?.snapshot();
        let (record, hash) = snapshot.credentials.get(&shown.id)?;
        (record.kind == kind && auth_key::matches(shown, hash)).then(|| (tailnet, record.clone()))
    }
}

/// Takes a list apart, each word once.
fn words(what: &'static str, list: &str, most: usize) -> Result<Vec<String>, GrantError> {
    // Counted as they come, before anything is kept of them.
    if list.split_whitespace().take(most + 1).count() > most {
        return Err(GrantError::TooMany { what, most });
    }
    let words: BTreeSet<&str> = list.split_whitespace().collect();
    Ok(words.into_iter().map(str::to_owned).collect())
}
