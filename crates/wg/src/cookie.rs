//! Message authentication codes of handshake messages, and the cookies that prove an address under load.
//!
//! Paper, sections 5.3 and 5.4.7; the cookie covers address **and** port.

use std::time::{Duration, Instant};

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use subtle::ConstantTimeEq as _;
use warren_wire::key::NodeKey;
use zeroize::Zeroizing;

use crate::crypto::{Key, hash, mac};
use crate::entropy::Entropy;
use crate::tunnels::Origin;

/// Bytes of a cookie reply.
pub(crate) const REPLY_BYTES: usize = 64;
/// Bytes of both codes at the end of a handshake message.
pub(crate) const CODES_BYTES: usize = 32;
/// How long a cookie is good, and how long its secret is used.
const LIFETIME: Duration = Duration::from_secs(120);

/// A proof of address that a peer gave us.
#[derive(Clone)]
pub(crate) struct Cookie {
    value: [u8; 16],
    received: Instant,
}

impl Cookie {
    pub(crate) fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.received) < LIFETIME
    }
}

/// Appends the two codes to a message for the holder of `to` and returns the first, which a cookie reply refers to.
pub(crate) fn append_codes(message: &mut Vec<u8>, to: &NodeKey, cookie: Option<&Cookie>) -> [u8; 16] {
    let first = mac(&hash(&[b"mac1----", to.as_bytes()]), &[message]);
    message.extend_from_slice(&first);
    let second = cookie.map_or([0; 16], |cookie| mac(&cookie.value, &[message]));
    message.extend_from_slice(&second);
    first
}

/// What a receiver knows for checking codes.
pub(crate) struct Checker {
    /// Key of the first code, from our own public key.
    first_key: [u8; 32],
    cookie_key: [u8; 32],
    secret: Key,
    secret_since: Option<Instant>,
}

impl Checker {
    pub(crate) fn new(own: &NodeKey) -> Self {
        Self {
            first_key: hash(&[b"mac1----", own.as_bytes()]),
            cookie_key: hash(&[b"cookie--", own.as_bytes()]),
            secret: Zeroizing::new([0; 32]),
            secret_since: None,
        }
    }

    /// Tells whether the first code is right: the sender knows our public key, and nothing was changed.
    pub(crate) fn first_is_valid(&self, message: &[u8]) -> bool {
        let Some((covered, codes)) = message.split_last_chunk::<CODES_BYTES>() else { return false };
        let (first, _) = codes.split_at(16);
        mac(&self.first_key, &[covered]).ct_eq(first).into()
    }

    /// Tells whether the second code is right: the sender got our cookie at this origin.
    pub(crate) fn second_is_valid(&self, message: &[u8], origin: &Origin, now: Instant) -> bool {
        let Some((covered, second)) = message.split_last_chunk::<16>() else { return false };
        let fresh = self.secret_since.is_some_and(|since| now.saturating_duration_since(since) < LIFETIME);
        fresh && bool::from(mac(&self.cookie(origin), &[covered]).ct_eq(second))
    }

    /// Answers a message with a cookie for its origin.
    pub(crate) fn reply(
        &mut self,
        message: &[u8],
        origin: &Origin,
        entropy: &mut Entropy,
        now: Instant,
    ) -> Option<Vec<u8>> {
        if self.secret_since.is_none_or(|since| now.saturating_duration_since(since) >= LIFETIME) {
            self.secret = entropy.secret();
            self.secret_since = Some(now);
        }
        let sender = message.get(4..8)?;
        let (_, codes) = message.split_last_chunk::<CODES_BYTES>()?;
        let (first, _) = codes.split_at(16);
        let cookie = self.cookie(origin);
        let nonce = entropy.public();
        let sealed = XChaCha20Poly1305::new(&self.cookie_key.into())
            .encrypt(&XNonce::from(nonce), Payload { msg: &cookie, aad: first })
            .ok()?;
        Some([&[3, 0, 0, 0], sender, &nonce, &sealed].concat())
    }

    fn cookie(&self, origin: &Origin) -> [u8; 16] {
        mac(self.secret.as_slice(), &[&origin.to_bytes()])
    }
}

/// Opens a cookie reply from the holder of `peer` to our message whose first code was `first`.
pub(crate) fn open_reply(reply: &[u8], peer: &NodeKey, first: &[u8; 16], now: Instant) -> Option<Cookie> {
    let nonce: [u8; 24] = reply.get(8..32)?.try_into().ok()?;
    let key = hash(&[b"cookie--", peer.as_bytes()]);
    let payload = Payload { msg: reply.get(32..REPLY_BYTES)?, aad: first };
    let value = XChaCha20Poly1305::new(&key.into()).decrypt(&XNonce::from(nonce), payload).ok()?;
    Some(Cookie { value: value.try_into().ok()?, received: now })
}
