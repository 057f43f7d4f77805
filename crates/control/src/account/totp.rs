//! A second factor: codes of six digits that a program on a phone works out by the time (RFC 6238).

use aws_lc_rs::hmac;
use jiff::Timestamp;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// Length of a secret, in bytes (RFC 4226, section 4, recommends 160 bits).
pub(crate) const SECRET_BYTES: usize = 20;
/// Seconds of one code (RFC 6238, section 4.1).
const STEP_SECONDS: i64 = 30;
/// How many steps a clock may be off, either way (RFC 6238, section 6).
const SKEW_STEPS: i64 = 1;
/// Digits of a code, and how many codes there are.
const DIGITS: (usize, u32) = (6, 1_000_000);
/// RFC 4648, section 6.
const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// What server and phone share.
#[derive(Clone)]
pub(crate) struct Secret(Zeroizing<[u8; SECRET_BYTES]>);

impl Secret {
    /// Makes one from the operating system's randomness.
    pub(crate) fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        getrandom::fill(bytes.as_mut_slice())?;
        Ok(Self(bytes))
    }

    /// Takes the bytes of one.
    pub(crate) fn from_bytes(bytes: [u8; SECRET_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Reads one as [`Self::text`] writes it; `None` if it is none.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        if text.len() != super::TOTP_LETTERS {
            return None;
        }
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        let mut out = bytes.iter_mut();
        // Five bits a letter; eight letters are five bytes without a rest.
        let (mut held, mut bits) = (0_u32, 0_u32);
        for letter in text.bytes() {
            let value = u32::try_from(LETTERS.iter().position(|known| *known == letter)?).ok()?;
            held = held << 5 | value;
            bits += 5;
            if bits >= 8 {
                bits -= 8;
                *out.next()? = u8::try_from(held >> bits & 0xff).ok()?;
            }
            held &= 0xff;
        }
        Some(Self(bytes))
    }

    /// Returns its bytes, to store them.
    pub(crate) fn expose(&self) -> &[u8; SECRET_BYTES] {
        &self.0
    }

    /// Writes it as a person types it into a phone.
    pub(crate) fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(base32(self.0.as_slice()))
    }
}

/// Writes bytes, a multiple of five, in base 32 (RFC 4648).
pub(crate) fn base32(bytes: &[u8]) -> String {
    let mut out = String::new();
    for part in bytes.chunks(5) {
        let held = part.iter().fold(0_u64, |held, byte| held << 8 | u64::from(*byte));
        for at in (0..part.len() * 8 / 5).rev() {
            let index = usize::try_from(held >> (5 * at) & 31).unwrap_or_default();
            out.extend(LETTERS.get(index).map(|letter| char::from(*letter)));
        }
    }
    out
}

/// Returns the step whose code that is, now or a little before or after; `None` if it is of none.
pub(crate) fn step_of(secret: &Secret, code: &str, now: Timestamp) -> Option<i64> {
    let typed: String = code.chars().filter(|letter| !letter.is_whitespace()).take(DIGITS.0 + 1).collect();
    let present = now.as_second().div_euclid(STEP_SECONDS);
    let steps = present - SKEW_STEPS..=present + SKEW_STEPS;
    steps.rev().find(|step| bool::from(self::code(secret, *step).as_bytes().ct_eq(typed.as_bytes())))
}

/// Returns the code of a step (RFC 4226, section 5.3).
pub(crate) fn code(secret: &Secret, step: i64) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.0.as_slice());
    let tag = hmac::sign(&key, &step.to_be_bytes());
    let tag = tag.as_ref();
    let offset = tag.last().map_or(0, |last| usize::from(last & 0x0f));
    let part = tag.get(offset..offset + 4).and_then(|part| <[u8; 4]>::try_from(part).ok()).unwrap_or_default();
    let number = (u32::from_be_bytes(part) & 0x7fff_ffff) % DIGITS.1;
    format!("{number:0width$}", width = DIGITS.0)
}

/// Returns the step of a time.
#[cfg(test)]
pub(crate) fn step_at(now: Timestamp) -> i64 {
    now.as_second().div_euclid(STEP_SECONDS)
}
