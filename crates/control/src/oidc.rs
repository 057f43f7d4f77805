//! Logging in with OpenID Connect, or with GitHub ([`github`]): the rules, without I/O.
//!
//! A provider is what the operator wrote down ([`Provider`]); its [`Discovery`] document says where it answers. A login
//! in a browser is an attempt of [`Attempts`]: state, nonce and PKCE verifier, bound to that browser, for one use. What
//! comes back is an ID token, which [`KeySet::verify`] and [`Claims::check`] turn into claims, and
//! [`Provider::admit`] into a [`Person`]. A person is (issuer, subject) and nothing else; an e-mail address is looked
//! at only if the provider says that it verified it. Sources: OpenID Connect Core 1.0 and Discovery 1.0, RFC 6749,
//! 7515, 7517, 7636, 9207 and 9700.

mod attempt;
mod claims;
mod discovery;
pub(crate) mod github;
mod jws;
mod provider;
mod rules;
#[cfg(test)]
pub(crate) mod tests;
mod token;

pub(crate) use attempt::{AttemptError, Attempts, LIFETIME, RANDOM_BYTES, digest};
pub(crate) use claims::{Claims, ClaimsError, Expected};
pub(crate) use discovery::{Discovery, DiscoveryError};
pub(crate) use jws::{JwsError, KeySet};
pub(crate) use provider::{Kind, Provider};
pub use provider::{OidcConfig, OidcConfigError};
pub(crate) use rules::{NotAllowed, Person};
pub(crate) use token::{TokenError, TokenRequest, Tokens, authorization_url, merge_user_info};
