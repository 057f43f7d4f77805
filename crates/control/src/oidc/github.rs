//! GitHub, which knows OAuth 2 but no ID tokens: whoever shows us to be their client is asked for over its API.
//!
//! Sources: GitHub REST API, `GET /user`, `GET /user/emails`, `GET /user/orgs`. What is missing compared with OpenID
//! Connect: there is no signature and no nonce, so an answer is worth what the TLS connection to the API is worth, and
//! state, browser and PKCE alone bind it to the login.

use http::Uri;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::claims::{Claims, ClaimsError};
use super::discovery::Discovery;
use super::provider::Provider;

/// Most addresses and organisations of a person that are looked at; GitHub gives no more in one answer.
const LIST_MAX: usize = 100;

#[derive(Deserialize)]
struct User {
    id: u64,
    login: String,
    name: Option<String>,
}

#[derive(Deserialize)]
struct Address {
    email: String,
    primary: bool,
    verified: bool,
}

#[derive(Deserialize)]
struct Organisation {
    id: u64,
    login: String,
}

/// Where GitHub, or a company's own one, answers.
pub(super) fn discovery(provider: &Provider) -> Discovery {
    let issuer = provider.issuer.trim_end_matches('/');
    Discovery {
        authorization: format!("{issuer}/login/oauth/authorize"),
        token: format!("{issuer}/login/oauth/access_token"),
        keys: String::new(),
        user_info: None,
        names_itself: false,
        secret_in_body: true,
    }
}

/// Returns the URL of `path` in the API.
pub(crate) fn api(provider: &Provider, path: &str) -> String {
    let issuer = provider.issuer.trim_end_matches('/');
    let host = issuer.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned)).unwrap_or_default();
    if host == "github.com" || host.ends_with(".ghe.com") {
        format!("https://api.{host}/{path}")
    } else {
        format!("{issuer}/api/v3/{path}")
    }
}

/// Turns what the API says of a person into claims. `organisations` is asked only if groups matter.
///
/// The subject is the number of the account: names of accounts can be given up, and taken by others. Organisations are
/// groups by name and, for those who fear that, by number.
pub(crate) fn claims(
    provider: &Provider,
    user: &[u8],
    addresses: &[u8],
    organisations: Option<&[u8]>,
) -> Result<Claims, ClaimsError> {
    let user: User = serde_json::from_slice(user).map_err(|_| ClaimsError::Form)?;
    let addresses: Vec<Address> = serde_json::from_slice(addresses).map_err(|_| ClaimsError::Form)?;
    let mut all = Map::new();
    all.insert("preferred_username".to_owned(), user.login.into());
    if let Some(name) = user.name {
        all.insert("name".to_owned(), name.into());
    }
    if let Some(address) = addresses.into_iter().take(LIST_MAX).find(|address| address.primary) {
        all.insert("email".to_owned(), address.email.into());
        all.insert("email_verified".to_owned(), address.verified.into());
    }
    if let Some(json) = organisations {
        let list: Vec<Organisation> = serde_json::from_slice(json).map_err(|_| ClaimsError::Form)?;
        let names = list.into_iter().take(LIST_MAX).flat_map(|one| [one.login, one.id.to_string()]);
        all.insert(provider.groups_claim.clone(), names.map(Value::from).collect());
    }
    all.insert("sub".to_owned(), json!(user.id.to_string()));
    Claims::of(all)
}
