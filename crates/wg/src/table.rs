//! Finds a session by its receiver index without a lock.

use std::fmt;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;

use crate::session::Session;

/// Slots of a chunk.
const CHUNK: usize = 256;
/// Chunks: room for a million sessions.
const CHUNKS: usize = 4096;
/// Bits of an index that name the slot; the others are random, so that a late packet does not find a later session.
const SLOT_BITS: u32 = 20;

/// The slots of a chunk, made when the first of them is used.
type Chunk = OnceLock<Box<[ArcSwapOption<Session>]>>;

/// All sessions of a node. Writing one costs the same whatever the number of the others.
pub struct SessionTable {
    chunks: Box<[Chunk]>,
}

impl SessionTable {
    /// Makes an empty table.
    #[must_use]
    pub fn new() -> Self {
        Self { chunks: (0..CHUNKS).map(|_| OnceLock::new()).collect() }
    }

    /// Returns the session of a receiver index.
    #[must_use]
    pub fn lookup(&self, index: u32) -> Option<Arc<Session>> {
        self.slot(index)?.load_full().filter(|session| session.local_index == index)
    }

    /// Returns the session that a transport message is for.
    #[must_use]
    pub fn for_message(&self, datagram: &[u8]) -> Option<Arc<Session>> {
        let index = datagram.get(4..8)?.try_into().ok()?;
        self.lookup(u32::from_le_bytes(index))
    }

    /// Finds a free index; `random` gives the upper bits and where to look. `None` if the table is nearly full.
    pub(crate) fn free_index(&self, mut random: impl FnMut() -> u32, taken: impl Fn(u32) -> bool) -> Option<u32> {
        // With a million slots the first try nearly always succeeds; small networks should use few chunks.
        for round in 0..64_u32 {
            let wide = if round < 48 { (CHUNK << (round / 4)).min(CHUNK * CHUNKS) } else { CHUNK * CHUNKS };
            let number = random();
            let slot = random() % u32::try_from(wide).unwrap_or(u32::MAX);
            let index = number << SLOT_BITS | slot;
            let free = self.slot(index).is_none_or(|slot| slot.load().is_none());
            if free && !taken(slot) {
                return Some(index);
            }
        }
        None
    }

    /// Returns the slot's number of an index.
    pub(crate) const fn slot_of(index: u32) -> u32 {
        index & ((1 << SLOT_BITS) - 1)
    }

    pub(crate) fn insert(&self, session: Arc<Session>) {
        let slot = Self::slot_of(session.local_index) as usize;
        if let Some(chunk) = self.chunks.get(slot / CHUNK) {
            let chunk = chunk.get_or_init(|| (0..CHUNK).map(|_| ArcSwapOption::empty()).collect());
            if let Some(slot) = chunk.get(slot % CHUNK) {
                slot.store(Some(session));
            }
        }
    }

    /// Takes out a session, unless another one has its index by now.
    pub(crate) fn remove(&self, session: &Session) {
        if let Some(slot) = self.slot(session.local_index)
            && slot.load().as_ref().is_some_and(|held| std::ptr::eq(Arc::as_ptr(held), session))
        {
            slot.store(None);
        }
    }

    fn slot(&self, index: u32) -> Option<&ArcSwapOption<Session>> {
        let slot = Self::slot_of(index) as usize;
        self.chunks.get(slot / CHUNK)?.get()?.get(slot % CHUNK)
    }
}

impl Default for SessionTable {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SessionTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionTable").finish_non_exhaustive()
    }
}
