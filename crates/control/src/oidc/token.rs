//! What is sent to a provider, and what it sends back.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use form_urlencoded::{Serializer, byte_serialize};
use serde::Deserialize;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::attempt::{Attempt, Begun};
use super::claims::{Claims, ClaimsError};
use super::discovery::Discovery;
use super::provider::Provider;

/// Longest text of a provider that is passed on, in characters.
const TEXT_MAX: usize = 200;

/// Says why a code did not become tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("its answer is no JSON that such an answer has")]
    Form,
    #[error("it refuses: {0}")]
    Refused(String),
}

/// Returns the URL at the provider that a browser is sent to.
pub(crate) fn authorization_url(
    provider: &Provider,
    discovery: &Discovery,
    redirect_uri: &str,
    begun: &Begun,
) -> String {
    let query = Serializer::new(String::new())
        .append_pair("response_type", "code")
        .append_pair("client_id", &provider.client_id)
        .append_pair("redirect_uri", redirect_uri)
        .append_pair("scope", &provider.scope())
        .append_pair("state", &begun.state)
        .append_pair("nonce", &begun.nonce)
        .append_pair("code_challenge", &begun.challenge)
        .append_pair("code_challenge_method", "S256")
        .finish();
    let joint = if discovery.authorization.contains('?') { '&' } else { '?' };
    format!("{}{joint}{query}", discovery.authorization)
}

/// The request that turns a code into tokens.
pub(crate) struct TokenRequest {
    /// Value of the `Authorization` header.
    pub(crate) authorization: Option<Zeroizing<String>>,
    /// Form.
    pub(crate) body: Zeroizing<String>,
}

impl TokenRequest {
    /// Makes the request (RFC 6749, sections 2.3.1 and 4.1.3; RFC 7636, section 4.5).
    pub(crate) fn new(
        provider: &Provider,
        discovery: &Discovery,
        redirect_uri: &str,
        code: &str,
        attempt: &Attempt,
    ) -> Self {
        let mut form = Serializer::new(String::new());
        form.append_pair("grant_type", "authorization_code")
            .append_pair("code", code)
            .append_pair("redirect_uri", redirect_uri)
            .append_pair("code_verifier", &attempt.verifier);
        let mut authorization = None;
        match &provider.client_secret {
            Some(secret) if !discovery.secret_in_body => {
                let encode = |text: &str| Zeroizing::new(byte_serialize(text.as_bytes()).collect::<String>());
                let pair = Zeroizing::new(format!("{}:{}", *encode(&provider.client_id), *encode(secret.expose())));
                authorization = Some(Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes()))));
            }
            Some(secret) => {
                form.append_pair("client_id", &provider.client_id).append_pair("client_secret", secret.expose());
            }
            None => {
                form.append_pair("client_id", &provider.client_id);
            }
        }
        Self { authorization, body: Zeroizing::new(form.finish()) }
    }
}

/// What a code became.
pub(crate) struct Tokens {
    /// Says who it is, where the provider knows such tokens.
    pub(crate) id_token: Option<String>,
    /// Opens the userinfo endpoint, or the API.
    pub(crate) access_token: Option<Zeroizing<String>>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(…)")
    }
}

#[derive(Deserialize)]
struct Raw {
    id_token: Option<String>,
    access_token: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

impl Tokens {
    /// Reads the answer of the token endpoint.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, TokenError> {
        let raw: Raw = serde_json::from_slice(json).map_err(|_| TokenError::Form)?;
        if let Some(error) = raw.error {
            let text = format!("{error} {}", raw.error_description.unwrap_or_default());
            let text: String = text.trim().chars().filter(|letter| !letter.is_control()).take(TEXT_MAX).collect();
            return Err(TokenError::Refused(text));
        }
        let usable = |token: &String| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        let access_token = raw.access_token.filter(usable).map(Zeroizing::new);
        match (raw.id_token, access_token) {
            (None, None) => Err(TokenError::Form),
            (id_token, access_token) => Ok(Self { id_token, access_token }),
        }
    }
}

/// Adds what the userinfo endpoint answered to the claims of the token.
pub(crate) fn merge_user_info(claims: &mut Claims, json: &[u8]) -> Result<(), ClaimsError> {
    let user_info: Map<String, Value> = serde_json::from_slice(json).map_err(|_| ClaimsError::Form)?;
    claims.add(user_info)
}
