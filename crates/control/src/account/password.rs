//! Passwords: which are taken, and what is kept of them.

use argon2::{Algorithm, Argon2, Params, Version};

/// Length of a salt, in bytes.
pub(crate) const SALT_BYTES: usize = 16;
/// Length of what is kept of a password, in bytes.
pub(crate) const HASH_BYTES: usize = 32;
/// Shortest password, in characters. Source: NIST SP 800-63B, section 3.1.1.2, asks for 8 beside a second factor.
const LEAST: usize = 10;
/// Longest password, in bytes.
pub(crate) const MOST: usize = 256;
/// Memory of the hash in KiB, passes over it, and lanes. Source: OWASP Password Storage Cheat Sheet, Argon2id.
const COST: (u32, u32, u32) = (19 * 1024, 2, 1);

/// Says why a password is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PasswordError {
    #[error("this password is shorter than {LEAST} characters; take several words")]
    Short,
    #[error("this password is longer than {MOST} bytes")]
    Long,
    #[error("this password can be guessed from your name, or is one letter again and again")]
    Guessed,
}

/// Checks a password that somebody wants to have.
pub(crate) fn check(password: &str, login: &str) -> Result<(), PasswordError> {
    if password.chars().count() < LEAST {
        return Err(PasswordError::Short);
    }
    if password.len() > MOST {
        return Err(PasswordError::Long);
    }
    let lower = password.to_lowercase();
    let mut letters = lower.chars();
    let first = letters.next();
    if letters.all(|letter| Some(letter) == first) || lower == login || login.split('@').any(|part| part == lower) {
        return Err(PasswordError::Guessed);
    }
    Ok(())
}

/// Works out what is kept of a password (Argon2id, RFC 9106); takes a processor for some ten milliseconds. `None` if it is
/// longer than any that is taken.
pub(crate) fn hash(password: &str, salt: &[u8; SALT_BYTES]) -> Option<[u8; HASH_BYTES]> {
    if password.len() > MOST {
        return None;
    }
    let (memory, passes, lanes) = COST;
    let params = Params::new(memory, passes, lanes, Some(HASH_BYTES)).ok()?;
    let mut out = [0; HASH_BYTES];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(password.as_bytes(), salt, &mut out)
        .ok()?;
    Some(out)
}
