//! Keys as texts: `wkey-<12 hex digits>-<64 hex digits>` lets nodes in; `tskey-api-…` and `tskey-client-…` are for the API,
//! where tools look at the beginning. Source: logs-and-api.md, sections 9 and 24.
//!
//! The first part names the key and is no secret; the second is 256 random bits, of which the store keeps SHA-256 only.
//! Clients take the text as it is, except that official ones cut it at `--TL`, which hex digits cannot contain.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use warren_wire::control::UserId;
use zeroize::Zeroizing;

use crate::model::{AuthKeyRecord, UserRecord};
use crate::store::audit::hex;

/// Beginning of an auth key.
pub(crate) const AUTH_KEY: &str = "wkey-";
/// Beginning of an API key, and of an OAuth client's token.
pub(crate) const API_KEY: &str = "tskey-api-";
/// Beginning of an OAuth client's secret.
pub(crate) const CLIENT: &str = "tskey-client-";
/// Length of the public part, in hex digits.
const ID_DIGITS: usize = 12;
/// Length of the secret part, in hex digits.
const SECRET_DIGITS: usize = 64;

/// The text of a key, shown once and never stored.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyText(Zeroizing<String>);

impl KeyText {
    /// Shows the text, to print it for the person who asked for the key.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyText(…)")
    }
}

/// A key that was just made.
pub(crate) struct Fresh {
    pub(crate) id: String,
    pub(crate) text: KeyText,
    pub(crate) hash: [u8; 32],
}

/// Makes a key from the operating system's randomness.
pub(crate) fn generate(prefix: &str) -> Result<Fresh, getrandom::Error> {
    let mut id = [0; ID_DIGITS / 2];
    getrandom::fill(&mut id)?;
    let mut secret = Zeroizing::new([0; SECRET_DIGITS / 2]);
    getrandom::fill(secret.as_mut_slice())?;
    let id = hex(&id);
    let secret = Zeroizing::new(hex(secret.as_slice()));
    let text = KeyText(Zeroizing::new(format!("{prefix}{id}-{}", *secret)));
    Ok(Fresh { hash: digest(&secret), id, text })
}

/// A key that a client showed: its public part and the hash of its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) id: String,
    hash: [u8; 32],
}

/// Takes a key apart; `None` if it is none of ours.
pub(crate) fn parse(prefix: &str, text: &str) -> Option<Shown> {
    // A wrapped key carries a signature for the client alone.
    let text = text.trim().split("--TL").next().unwrap_or_default();
    let (id, secret) = text.strip_prefix(prefix)?.split_once('-')?;
    let digits =
        |part: &str, len| part.len() == len && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    (digits(id, ID_DIGITS) && digits(secret, SECRET_DIGITS)).then(|| Shown { id: id.to_owned(), hash: digest(secret) })
}

/// Says why a key lets nobody in; the text is shown to the person at the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum AuthKeyError {
    /// No such key, or its secret is wrong.
    #[error("this auth key is not known here; ask for a new one")]
    Unknown,
    /// Its time is over.
    #[error("this auth key has expired; ask for a new one")]
    Expired,
    /// It was taken back.
    #[error("this auth key was revoked; ask for a new one")]
    Revoked,
    /// It was for one use, which is done.
    #[error("this auth key was for one use and has been used; ask for a new one")]
    Spent,
    /// Whoever made it is suspended.
    #[error("the user who made this auth key is suspended; ask an administrator of this network")]
    Suspended,
}

/// Tells in constant time whether the client knows the secret.
pub(crate) fn matches(shown: &Shown, stored: &[u8; 32]) -> bool {
    shown.hash.ct_eq(stored).into()
}

/// Checks a key whose secret is right.
pub(crate) fn check(record: &AuthKeyRecord, now: Timestamp) -> Result<(), AuthKeyError> {
    if record.revoked {
        return Err(AuthKeyError::Revoked);
    }
    if record.expires.is_some_and(|expires| expires <= now) {
        return Err(AuthKeyError::Expired);
    }
    if record.used > 0 && !record.reusable {
        return Err(AuthKeyError::Spent);
    }
    Ok(())
}

/// Checks a key as [`check`] does, and whoever made it: what a user made works as long as they are one and not suspended.
pub(crate) fn check_of(
    record: &AuthKeyRecord,
    users: &BTreeMap<UserId, Arc<UserRecord>>,
    now: Timestamp,
) -> Result<(), AuthKeyError> {
    check(record, now)?;
    match record.made_by.map(|maker| users.get(&maker)) {
        Some(None) => Err(AuthKeyError::Revoked),
        Some(Some(maker)) if maker.suspended => Err(AuthKeyError::Suspended),
        None | Some(Some(_)) => Ok(()),
    }
}

fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_matches_its_own_hash_only() {
        let (one, two) = (generate(AUTH_KEY).unwrap(), generate(AUTH_KEY).unwrap());
        let shown = parse(AUTH_KEY, one.text.expose()).unwrap();
        assert_eq!(shown.id, one.id);
        assert!(matches(&shown, &one.hash));
        assert!(!matches(&shown, &two.hash));
    }

    #[test]
    fn a_key_of_one_kind_is_none_of_another() {
        let key = generate(API_KEY).unwrap();
        assert!(key.text.expose().starts_with("tskey-api-") && parse(API_KEY, key.text.expose()).is_some());
        assert_eq!(parse(CLIENT, key.text.expose()), None);
        assert_eq!(parse(AUTH_KEY, key.text.expose()), None);
    }

    #[test]
    fn a_wrapped_key_is_cut() {
        let key = generate(AUTH_KEY).unwrap();
        let wrapped = format!("{}--TLabc-def", key.text.expose());
        assert_eq!(parse(AUTH_KEY, &wrapped), parse(AUTH_KEY, key.text.expose()));
    }

    #[test]
    fn other_texts_are_no_keys() {
        let key = generate(AUTH_KEY).unwrap();
        let text = key.text.expose();
        for other in ["", "wkey-", "tskey-auth-abc", &text[..text.len() - 1], &format!("{text}0"), &text.to_uppercase()]
        {
            assert_eq!(parse(AUTH_KEY, other), None, "{other}");
        }
        assert_eq!(format!("{:?}", key.text), "KeyText(…)");
    }
}
