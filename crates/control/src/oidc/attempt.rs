//! Attempts: a browser is at a provider and will come back, or not.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;
use zeroize::Zeroizing;

/// How long a browser may stay at the provider.
pub(crate) const LIFETIME: Duration = Duration::from_secs(10 * 60);
/// How many attempts a login may have; one more ends its oldest.
const LOGIN_MAX: usize = 8;
/// How many there may be in all. Logins are bounded themselves, so that only a bug comes here.
const ALL_MAX: usize = 32_768;
/// How much randomness [`Attempts::begin`] is given, in bytes.
pub(crate) const RANDOM_BYTES: usize = 4 * SECRET_BYTES;
/// Length of each secret of an attempt, in bytes.
const SECRET_BYTES: usize = 32;

/// Says why a browser that comes back is not let on. Each ends the attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AttemptError {
    /// Nobody began it, or it was used, or it was forgotten.
    #[error("this login was used already or is over; begin again")]
    Unknown,
    /// It stayed away too long.
    #[error("this login took more than {} minutes; begin again", LIFETIME.as_secs() / 60)]
    Expired,
    /// It is not the browser that began.
    #[error("this login was begun in another browser; begin again in this one")]
    OtherBrowser,
    /// It comes from another provider than it was sent to.
    #[error("this answer comes from another provider than the login was sent to; begin again")]
    OtherProvider,
}

/// There are too many attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many people log in now; try again in some minutes")]
pub(crate) struct TooMany;

/// What a browser takes along when it goes to the provider.
pub(crate) struct Begun {
    /// Comes back in the callback's query.
    pub(crate) state: String,
    /// Comes back in the ID token.
    pub(crate) nonce: String,
    /// PKCE challenge, method S256 (RFC 7636, section 4.2).
    pub(crate) challenge: String,
    /// What the browser keeps as a cookie.
    pub(crate) browser: Zeroizing<String>,
}

/// An attempt whose browser came back.
pub(crate) struct Attempt {
    /// The login that it is for.
    pub(crate) login: String,
    /// Nonce that the ID token must carry.
    pub(crate) nonce: String,
    /// PKCE verifier.
    pub(crate) verifier: Zeroizing<String>,
    /// Digest of what the browser keeps.
    pub(crate) browser: [u8; 32],
    provider: String,
    begun: Instant,
}

/// All attempts of a server, by the digest of their state.
#[derive(Default)]
pub(crate) struct Attempts {
    waiting: HashMap<[u8; 32], Attempt>,
}

impl Attempts {
    /// Begins an attempt at `provider` for a login; `random` is fresh.
    pub(crate) fn begin(
        &mut self,
        now: Instant,
        random: &[u8; RANDOM_BYTES],
        login: &str,
        provider: &str,
    ) -> Result<Begun, TooMany> {
        self.waiting.retain(|_, attempt| now.saturating_duration_since(attempt.begun) < LIFETIME);
        let own = || self.waiting.iter().filter(|(_, attempt)| attempt.login == login);
        if own().count() >= LOGIN_MAX
            && let Some(oldest) = own().min_by_key(|(_, attempt)| attempt.begun).map(|(key, _)| *key)
        {
            self.waiting.remove(&oldest);
        }
        if self.waiting.len() >= ALL_MAX {
            return Err(TooMany);
        }
        let (secrets, _) = random.as_chunks::<SECRET_BYTES>();
        let mut secrets = secrets.iter().map(|secret| URL_SAFE_NO_PAD.encode(secret));
        let mut next = || secrets.next().unwrap_or_default();
        let (state, nonce) = (next(), next());
        let (verifier, browser) = (Zeroizing::new(next()), Zeroizing::new(next()));
        let challenge = URL_SAFE_NO_PAD.encode(digest(&verifier));
        let attempt = Attempt {
            login: login.to_owned(),
            nonce: nonce.clone(),
            verifier,
            browser: digest(&browser),
            provider: provider.to_owned(),
            begun: now,
        };
        self.waiting.insert(digest(&state), attempt);
        Ok(Begun { state, nonce, challenge, browser })
    }

    /// Ends the attempt with that state, and returns it if browser, provider and time are right.
    pub(crate) fn take(
        &mut self,
        now: Instant,
        state: &str,
        browser: &str,
        provider: &str,
    ) -> Result<Attempt, AttemptError> {
        let attempt = self.waiting.remove(&digest(state)).ok_or(AttemptError::Unknown)?;
        if now.saturating_duration_since(attempt.begun) >= LIFETIME {
            return Err(AttemptError::Expired);
        }
        if !bool::from(attempt.browser.ct_eq(&digest(browser))) {
            return Err(AttemptError::OtherBrowser);
        }
        if attempt.provider != provider {
            return Err(AttemptError::OtherProvider);
        }
        Ok(attempt)
    }

    /// Tells which login the attempt with that state is for, to find the browser's cookie.
    pub(crate) fn login_of(&self, state: &str) -> Option<&str> {
        self.waiting.get(&digest(state)).map(|attempt| attempt.login.as_str())
    }
}

/// Returns what is kept of a secret.
pub(crate) fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}
