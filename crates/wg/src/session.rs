//! A session: the keys of one finished handshake, shared by workers and the decision task.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{Aad, LessSafeKey};
use warren_wire::key::NodeKey;

use crate::crypto::{self, Key};
use crate::replay::Replay;

/// Bytes that must be free in front of a packet to seal.
pub const HEADROOM: usize = 16;
/// Bytes that must be free behind a packet to seal: padding to 16 and the tag.
pub const TAILROOM: usize = 15 + TAG_BYTES;

const TAG_BYTES: usize = 16;
/// Age at which a session dies.
pub(crate) const REJECT_AFTER: Duration = Duration::from_secs(180);
/// Packets after which a session dies.
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// Packets after which a new handshake is due.
pub(crate) const REKEY_AFTER_MESSAGES: u64 = 1 << 60;

/// Says why a packet cannot be sealed: ask for a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The session is too old or used up.
    #[error("the session has expired")]
    Expired,
    /// The peer began the session and has not used it yet, so it may not have it.
    #[error("the peer has not confirmed the session")]
    Unconfirmed,
    /// The buffer has no room around the packet.
    #[error("no room for header and tag")]
    Room,
}

/// Says why a packet cannot be opened: drop it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Not a transport message.
    #[error("not a transport message")]
    Form,
    /// The session is too old.
    #[error("the session has expired")]
    Expired,
    /// Its counter was seen or is too old.
    #[error("replayed packet")]
    Replay,
    /// Not from the peer, or changed on the way.
    #[error("packet does not authenticate")]
    Decrypt,
}

/// What opening a packet told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Bytes of the inner packet with its padding, from [`HEADROOM`] on in the datagram; 0 for a keep-alive.
    pub length: usize,
    /// This was the first packet of a session that the peer began: tell
    /// [`Tunnels::confirm`](crate::Tunnels::confirm), packets may be sent with it from now on.
    pub confirmed: bool,
}

/// One session with one peer.
pub struct Session {
    pub(crate) peer: NodeKey,
    pub(crate) local_index: u32,
    pub(crate) remote_index: u32,
    pub(crate) is_initiator: bool,
    born: Instant,
    sending: LessSafeKey,
    receiving: LessSafeKey,
    counter: AtomicU64,
    // A short critical section of a few instructions; with one worker there is nobody to wait for.
    replay: Mutex<Replay>,
    confirmed: AtomicBool,
    /// Milliseconds after `born`, plus one; 0: never, or not since the other event cleared it.
    last_sent: AtomicU64,
    last_received: AtomicU64,
    unheard_since: AtomicU64,
    unanswered_since: AtomicU64,
}

/// What a new session is made of.
pub(crate) struct Parts {
    pub(crate) peer: NodeKey,
    pub(crate) local_index: u32,
    pub(crate) remote_index: u32,
    pub(crate) is_initiator: bool,
    pub(crate) sending: Key,
    pub(crate) receiving: Key,
}

impl Session {
    pub(crate) fn new(parts: &Parts, now: Instant) -> Self {
        Self {
            peer: parts.peer,
            local_index: parts.local_index,
            remote_index: parts.remote_index,
            is_initiator: parts.is_initiator,
            born: now,
            sending: crypto::cipher(&parts.sending),
            receiving: crypto::cipher(&parts.receiving),
            counter: AtomicU64::new(0),
            replay: Mutex::new(Replay::new()),
            confirmed: AtomicBool::new(parts.is_initiator),
            last_sent: AtomicU64::new(0),
            last_received: AtomicU64::new(0),
            unheard_since: AtomicU64::new(0),
            unanswered_since: AtomicU64::new(0),
        }
    }

    /// Returns the peer.
    #[must_use]
    pub fn peer(&self) -> NodeKey {
        self.peer
    }

    /// Returns when the handshake was finished.
    #[must_use]
    pub fn born(&self) -> Instant {
        self.born
    }

    /// Seals the packet of `length` bytes that lies at [`HEADROOM`] in `buffer`, an empty one for a keep-alive.
    ///
    /// Returns the length of the datagram that `buffer` begins with then. The padding with zeros to a multiple of 16
    /// does not go beyond `mtu` bytes.
    ///
    /// # Errors
    /// [`SealError`]; `buffer` holds nothing useful then.
    pub fn seal(&self, buffer: &mut [u8], length: usize, mtu: usize, now: Instant) -> Result<usize, SealError> {
        if self.has_expired(now) {
            return Err(SealError::Expired);
        }
        if !self.is_confirmed() {
            return Err(SealError::Unconfirmed);
        }
        if length > buffer.len() {
            return Err(SealError::Room);
        }
        let padded = if length >= mtu { length } else { length.next_multiple_of(16).min(mtu) };
        let datagram = buffer.get_mut(..HEADROOM + padded + TAG_BYTES).ok_or(SealError::Room)?;
        let counter = self.counter.fetch_add(1, Ordering::Relaxed);
        if counter >= REJECT_AFTER_MESSAGES {
            // Undone, so that the counter cannot wrap however often this is tried.
            self.counter.fetch_sub(1, Ordering::Relaxed);
            return Err(SealError::Expired);
        }
        let (header, body) = datagram.split_at_mut_checked(HEADROOM).ok_or(SealError::Room)?;
        let (plain, tag) = body.split_at_mut_checked(padded).ok_or(SealError::Room)?;
        plain.get_mut(length..).unwrap_or_default().fill(0);
        let made = self
            .sending
            .seal_in_place_separate_tag(crypto::nonce(counter), Aad::empty(), plain)
            .map_err(|_| SealError::Room)?;
        tag.copy_from_slice(made.as_ref());
        let fields = [4, 0, 0, 0].into_iter().chain(self.remote_index.to_le_bytes()).chain(counter.to_le_bytes());
        header.iter_mut().zip(fields).for_each(|(to, from)| *to = from);

        let at = self.at(now);
        self.last_sent.store(at, Ordering::Relaxed);
        self.unanswered_since.store(0, Ordering::Relaxed);
        if length > 0 && self.unheard_since.load(Ordering::Relaxed) == 0 {
            self.unheard_since.store(at, Ordering::Relaxed);
        }
        Ok(HEADROOM + padded + TAG_BYTES)
    }

    /// Opens a transport message in place; the inner packet lies at [`HEADROOM`] then.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(&self, datagram: &mut [u8], now: Instant) -> Result<Opened, OpenError> {
        let (header, body) = datagram.split_first_chunk_mut::<HEADROOM>().ok_or(OpenError::Form)?;
        let [4, 0, 0, 0, _, _, _, _, c @ ..] = header else { return Err(OpenError::Form) };
        let counter = u64::from_le_bytes(*c);
        if self.has_expired(now) || counter >= REJECT_AFTER_MESSAGES {
            return Err(OpenError::Expired);
        }
        if !self.replay.lock().unwrap_or_else(PoisonError::into_inner).may_be_new(counter) {
            return Err(OpenError::Replay);
        }
        let length = self
            .receiving
            .open_in_place(crypto::nonce(counter), Aad::empty(), body)
            .map_err(|_| OpenError::Decrypt)?
            .len();
        if !self.replay.lock().unwrap_or_else(PoisonError::into_inner).mark(counter) {
            return Err(OpenError::Replay);
        }
        let at = self.at(now);
        self.last_received.store(at, Ordering::Relaxed);
        self.unheard_since.store(0, Ordering::Relaxed);
        if length > 0 && self.unanswered_since.load(Ordering::Relaxed) == 0 {
            self.unanswered_since.store(at, Ordering::Relaxed);
        }
        let confirmed = !self.confirmed.swap(true, Ordering::Relaxed);
        Ok(Opened { length, confirmed })
    }

    /// Tells whether the peer has shown that it holds the session's keys.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// Tells whether the session is too old to use.
    pub(crate) fn has_expired(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.born) >= REJECT_AFTER
    }

    /// Age in milliseconds, plus one.
    fn at(&self, now: Instant) -> u64 {
        let age = now.saturating_duration_since(self.born);
        age.as_secs().saturating_mul(1000).saturating_add(u64::from(age.subsec_millis()) + 1)
    }

    fn read(&self, cell: &AtomicU64) -> Option<Instant> {
        let millis = cell.load(Ordering::Relaxed).checked_sub(1)?;
        self.born.checked_add(Duration::from_millis(millis))
    }

    /// When something was last sent.
    pub(crate) fn last_sent(&self) -> Option<Instant> {
        self.read(&self.last_sent)
    }

    /// When something was last received.
    pub(crate) fn last_received(&self) -> Option<Instant> {
        self.read(&self.last_received)
    }

    /// Since when data was sent without hearing anything back.
    pub(crate) fn unheard_since(&self) -> Option<Instant> {
        self.read(&self.unheard_since)
    }

    /// Since when data was received without sending anything back.
    pub(crate) fn unanswered_since(&self) -> Option<Instant> {
        self.read(&self.unanswered_since)
    }

    /// How many packets were sealed.
    pub(crate) fn sealed(&self) -> u64 {
        self.counter.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("peer", &self.peer)
            .field("local_index", &self.local_index)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
