//! A session: the keys of one finished handshake, shared by workers and the decision task.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use warren_aead as aead;
use warren_wire::key::NodeKey;

use crate::crypto::Key;
use crate::replay::Replay;

/// Bytes that must be free in front of a packet to seal.
pub const HEADROOM: usize = 16;
/// Bytes that must be free behind a packet to seal: padding to 16 and the tag.
pub const TAILROOM: usize = 15 + TAG_BYTES;

/// Packets that are worth to be given to [`Session::seal_batch`] and [`Session::open_batch`] together; a multiple of
/// it leaves no rest.
pub const BATCH: usize = aead::LANES;

const TAG_BYTES: usize = aead::TAG_BYTES;
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

/// A packet to seal.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// The inner packet lies at [`HEADROOM`], with [`TAILROOM`] behind it; the sealed datagram lies at the beginning.
    pub buffer: &'a mut [u8],
    /// Before: bytes of the inner packet, 0 for a keep-alive. After: bytes of the datagram.
    pub length: usize,
}

/// A transport message to open.
#[derive(Debug)]
pub struct Incoming<'a> {
    /// The whole datagram; the inner packet lies at [`HEADROOM`] afterwards.
    pub datagram: &'a mut [u8],
    /// What came out; before, anything.
    pub opened: Result<Opened, OpenError>,
}

impl<'a> Incoming<'a> {
    /// Makes a datagram that is not opened yet.
    #[must_use]
    pub const fn new(datagram: &'a mut [u8]) -> Self {
        Self { datagram, opened: Err(OpenError::Form) }
    }

    /// Returns the counter; `None` if it is no transport message.
    fn counter(&self) -> Option<u64> {
        let [4, 0, 0, 0, _, _, _, _, counter @ ..] = self.datagram.first_chunk::<HEADROOM>()? else { return None };
        Some(u64::from_le_bytes(*counter))
    }
}

/// One session with one peer.
pub struct Session {
    pub(crate) peer: NodeKey,
    pub(crate) local_index: u32,
    pub(crate) remote_index: u32,
    pub(crate) is_initiator: bool,
    born: Instant,
    sending: aead::Key,
    receiving: aead::Key,
    counter: AtomicU64,
    // A short critical section of a few instructions; with one worker there is nobody to wait for.
    replay: Mutex<Replay>,
    confirmed: AtomicBool,
    /// Milliseconds after `born`, plus one; 0: never, or not since the other event cleared it.
    last_sent: AtomicU64,
    last_received: AtomicU64,
    unheard_since: AtomicU64,
    unanswered_since: AtomicU64,
    doubted: AtomicU64,
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
            sending: aead::Key::new(&parts.sending),
            receiving: aead::Key::new(&parts.receiving),
            counter: AtomicU64::new(0),
            replay: Mutex::new(Replay::new()),
            confirmed: AtomicBool::new(parts.is_initiator),
            last_sent: AtomicU64::new(0),
            last_received: AtomicU64::new(0),
            unheard_since: AtomicU64::new(0),
            unanswered_since: AtomicU64::new(0),
            doubted: AtomicU64::new(0),
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
        let mut packet = Outgoing { buffer, length };
        self.seal_batch(std::slice::from_mut(&mut packet), mtu, now)?;
        Ok(packet.length)
    }

    /// Seals packets as [`Self::seal`] does, all with one run of counters in their order, and sets their lengths.
    ///
    /// Many at once take less time each, from a few on; [`BATCH`] says how many.
    ///
    /// # Errors
    /// [`SealError`]; no packet is sealed then, and no counter used.
    pub fn seal_batch(&self, packets: &mut [Outgoing<'_>], mtu: usize, now: Instant) -> Result<(), SealError> {
        if self.has_expired(now) {
            return Err(SealError::Expired);
        }
        if !self.is_confirmed() {
            return Err(SealError::Unconfirmed);
        }
        let mut carries_data = false;
        for packet in &*packets {
            let room = packet.buffer.len().saturating_sub(HEADROOM + TAG_BYTES);
            if packet.length > packet.buffer.len()
                || padded(packet.length, mtu) > room
                || packet.buffer.len() < HEADROOM + TAG_BYTES
            {
                return Err(SealError::Room);
            }
            carries_data |= packet.length > 0;
        }
        let mut counter = self.take_counters(packets.len())?;
        for group in packets.chunks_mut(BATCH) {
            self.seal_group(group, counter, mtu);
            counter += group.len() as u64;
        }

        let at = self.at(now);
        self.last_sent.store(at, Ordering::Relaxed);
        self.unanswered_since.store(0, Ordering::Relaxed);
        if carries_data && self.unheard_since.load(Ordering::Relaxed) == 0 {
            self.unheard_since.store(at, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Takes a run of counters that nobody else gets, and returns the first.
    fn take_counters(&self, count: usize) -> Result<u64, SealError> {
        // Never beyond the limit, so that it cannot wrap however often and by how many workers this is tried.
        let after = |first: u64| first.checked_add(count as u64).filter(|next| *next <= REJECT_AFTER_MESSAGES);
        self.counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after).map_err(|_| SealError::Expired)
    }

    /// Seals at most [`BATCH`] packets that have the room.
    fn seal_group(&self, group: &mut [Outgoing<'_>], first: u64, mtu: usize) {
        let mut texts: [aead::Packet<'_>; BATCH] = Default::default();
        let count = group.len();
        for ((text, packet), counter) in texts.iter_mut().zip(group).zip(first..) {
            let padded = padded(packet.length, mtu);
            let Some((header, body)) = packet.buffer.split_first_chunk_mut::<HEADROOM>() else { continue };
            let Some(body) = body.get_mut(..padded + TAG_BYTES) else { continue };
            if let Some(padding) = body.get_mut(packet.length..padded) {
                padding.fill(0);
            }
            let (head, last) = header.split_at_mut(8);
            let (kind, index) = head.split_at_mut(4);
            kind.copy_from_slice(&[4, 0, 0, 0]);
            index.copy_from_slice(&self.remote_index.to_le_bytes());
            last.copy_from_slice(&counter.to_le_bytes());
            packet.length = sealed_length(packet.length, mtu);
            *text = aead::Packet::new(counter, body);
        }
        self.sending.seal_batch(texts.get_mut(..count).unwrap_or_default());
    }

    /// Opens a transport message in place; the inner packet lies at [`HEADROOM`] then.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(&self, datagram: &mut [u8], now: Instant) -> Result<Opened, OpenError> {
        let mut packet = Incoming::new(datagram);
        self.open_batch(std::slice::from_mut(&mut packet), now);
        packet.opened
    }

    /// Opens transport messages of this session as [`Self::open`] does, in their order, and sets what came out.
    ///
    /// Many at once take less time each, from a few on; [`BATCH`] says how many.
    pub fn open_batch(&self, packets: &mut [Incoming<'_>], now: Instant) {
        let (mut hears, mut carries_data) = (false, false);
        for group in packets.chunks_mut(BATCH) {
            self.open_group(group, now);
            for opened in group.iter().filter_map(|packet| packet.opened.ok()) {
                hears = true;
                carries_data |= opened.length > 0;
            }
        }
        if hears {
            let at = self.at(now);
            self.last_received.store(at, Ordering::Relaxed);
            self.unheard_since.store(0, Ordering::Relaxed);
            if carries_data && self.unanswered_since.load(Ordering::Relaxed) == 0 {
                self.unanswered_since.store(at, Ordering::Relaxed);
            }
        }
    }

    /// Opens at most [`BATCH`] messages.
    fn open_group(&self, group: &mut [Incoming<'_>], now: Instant) {
        let has_expired = self.has_expired(now);
        let mut texts: [aead::Packet<'_>; BATCH] = Default::default();
        let mut count = 0;
        {
            let replay = self.replay.lock().unwrap_or_else(PoisonError::into_inner);
            for packet in &mut *group {
                let Some(counter) = packet.counter() else {
                    packet.opened = Err(OpenError::Form);
                    continue;
                };
                if has_expired || counter >= REJECT_AFTER_MESSAGES {
                    packet.opened = Err(OpenError::Expired);
                    continue;
                }
                if !replay.may_be_new(counter) {
                    packet.opened = Err(OpenError::Replay);
                    continue;
                }
                let body = packet.datagram.get_mut(HEADROOM..).unwrap_or_default();
                let length = body.len().saturating_sub(TAG_BYTES);
                // Until it is known to be authentic it counts as if it were not.
                packet.opened = Ok(Opened { length, confirmed: false });
                if let Some(text) = texts.get_mut(count) {
                    *text = aead::Packet::new(counter, body);
                    count += 1;
                }
            }
        }
        let texts = texts.get_mut(..count).unwrap_or_default();
        self.receiving.open_batch(texts);

        let mut replay = self.replay.lock().unwrap_or_else(PoisonError::into_inner);
        let mut results = texts.iter().map(|text| {
            if !text.is_good {
                return Err(OpenError::Decrypt);
            }
            // Once more, for another worker, or a packet of this batch, may have had the same one.
            if replay.mark(text.counter) { Ok(()) } else { Err(OpenError::Replay) }
        });
        let results: [Option<Result<(), OpenError>>; BATCH] = std::array::from_fn(|_| results.next());
        drop(replay);
        let candidates = group.iter_mut().filter(|packet| packet.opened.is_ok());
        for (packet, result) in candidates.zip(results.into_iter().flatten()) {
            packet.opened = match (packet.opened, result) {
                (Ok(Opened { length, .. }), Ok(())) => {
                    Ok(Opened { length, confirmed: !self.confirmed.swap(true, Ordering::Relaxed) })
                }
                (_, Err(error)) | (Err(error), _) => Err(error),
            };
        }
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

    /// Notes since when it is doubted that the peer has the session, or that it is not.
    pub(crate) fn set_doubted(&self, since: Option<Instant>) {
        self.doubted.store(since.map_or(0, |at| self.at(at)), Ordering::Relaxed);
    }

    /// Tells whether the session was doubted, something was sent in it since, and nothing has come.
    pub(crate) fn is_doubtful(&self) -> bool {
        let is_since = |at: Instant, event: Option<Instant>| event.is_some_and(|event| event >= at);
        let doubted = self.read(&self.doubted);
        doubted.is_some_and(|at| is_since(at, self.last_sent()) && !is_since(at, self.last_received()))
    }

    /// How many packets were sealed.
    pub(crate) fn sealed(&self) -> u64 {
        self.counter.load(Ordering::Relaxed)
    }
}

/// Returns the bytes of the datagram that a packet of `length` bytes becomes in a tunnel of this MTU.
#[must_use]
pub fn sealed_length(length: usize, mtu: usize) -> usize {
    HEADROOM + padded(length, mtu) + TAG_BYTES
}

/// Bytes of a packet with its padding: to a multiple of 16, but not beyond `mtu`.
fn padded(length: usize, mtu: usize) -> usize {
    if length >= mtu { length } else { length.next_multiple_of(16).min(mtu) }
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
