//! The document in which a provider says where it answers (OpenID Connect Discovery 1.0, section 3).

use http::Uri;
use serde::Deserialize;

use super::jws::is_known_algorithm;
use super::provider::Provider;

/// Says why a provider cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DiscoveryError {
    #[error("its discovery document is no JSON that such a document has")]
    Form,
    #[error(
        "its discovery document is of {found:?}, but the configuration says {wanted:?}; they must be equal letter by letter"
    )]
    Issuer { found: String, wanted: String },
    #[error("its {what} {url:?} is no https URL")]
    Endpoint { what: &'static str, url: String },
    #[error("it does not support {0}")]
    Unsupported(&'static str),
}

/// Where a provider answers and what it wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Discovery {
    /// Where browsers are sent.
    pub(crate) authorization: String,
    /// Where codes become tokens.
    pub(crate) token: String,
    /// Where its keys are; empty if it signs nothing.
    pub(crate) keys: String,
    /// Where more is told about a person.
    pub(crate) user_info: Option<String>,
    /// Whether its callbacks name it (RFC 9207).
    pub(crate) names_itself: bool,
    /// Whether our secret goes into the body of the token request instead of a header.
    pub(crate) secret_in_body: bool,
}

#[derive(Deserialize)]
struct Raw {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    userinfo_endpoint: Option<String>,
    response_types_supported: Option<Vec<String>>,
    code_challenge_methods_supported: Option<Vec<String>>,
    id_token_signing_alg_values_supported: Option<Vec<String>>,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

impl Discovery {
    /// Reads and checks the document of a provider.
    pub(crate) fn parse(json: &[u8], provider: &Provider) -> Result<Self, DiscoveryError> {
        let raw: Raw = serde_json::from_slice(json).map_err(|_| DiscoveryError::Form)?;
        if raw.issuer != provider.issuer {
            let found = raw.issuer.chars().take(200).collect();
            return Err(DiscoveryError::Issuer { found, wanted: provider.issuer.clone() });
        }
        // A provider elsewhere has no business with the plain services of this machine.
        let endpoint = |what, url: String| match is_secure(&url) && (is_plain(&provider.issuer) || !is_plain(&url)) {
            true => Ok(url),
            false => Err(DiscoveryError::Endpoint { what, url: url.chars().take(200).collect() }),
        };
        let offers = |list: &Option<Vec<String>>, wanted: &dyn Fn(&str) -> bool| {
            list.as_ref().is_none_or(|list| list.iter().any(|one| wanted(one)))
        };
        if !offers(&raw.response_types_supported, &|kind| kind == "code") {
            return Err(DiscoveryError::Unsupported("the authorization code flow"));
        }
        if !offers(&raw.code_challenge_methods_supported, &|method| method == "S256") {
            return Err(DiscoveryError::Unsupported("PKCE with S256"));
        }
        if !offers(&raw.id_token_signing_alg_values_supported, &is_known_algorithm) {
            return Err(DiscoveryError::Unsupported("ID tokens signed with RS256, ES256 or EdDSA"));
        }
        let ways = &raw.token_endpoint_auth_methods_supported;
        // Without the field it is client_secret_basic (RFC 8414, section 2).
        let (basic, post) = match ways {
            None => (true, false),
            Some(ways) => (
                ways.iter().any(|way| way == "client_secret_basic"),
                ways.iter().any(|way| way == "client_secret_post"),
            ),
        };
        if provider.client_secret.is_some() && !basic && !post {
            return Err(DiscoveryError::Unsupported("client secrets, neither in a header nor in a body"));
        }
        Ok(Self {
            authorization: endpoint("authorization_endpoint", raw.authorization_endpoint)?,
            token: endpoint("token_endpoint", raw.token_endpoint)?,
            keys: endpoint("jwks_uri", raw.jwks_uri)?,
            user_info: raw.userinfo_endpoint.map(|url| endpoint("userinfo_endpoint", url)).transpose()?,
            names_itself: raw.authorization_response_iss_parameter_supported,
            secret_in_body: !basic,
        })
    }
}

/// Tells whether a URL is plain http.
fn is_plain(url: &str) -> bool {
    url.parse::<Uri>().is_ok_and(|uri| uri.scheme_str() == Some("http"))
}

/// Tells whether a URL is https, or plain http that stays on this machine; nothing else is ever contacted.
pub(super) fn is_secure(url: &str) -> bool {
    let Ok(uri) = url.parse::<Uri>() else { return false };
    let Some(authority) = uri.authority() else { return false };
    let plain = !authority.as_str().contains('@') && !authority.host().is_empty() && !url.contains('#');
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let here = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    plain && (uri.scheme_str() == Some("https") || (uri.scheme_str() == Some("http") && here))
}
