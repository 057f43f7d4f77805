//! A key and the batches it seals and opens.

use std::fmt;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::Backend;

/// Bytes of the tag behind the text of a packet.
pub const TAG_BYTES: usize = 16;
/// Packets that the widest vector code handles at once; batches of a multiple of it are the cheapest.
pub const LANES: usize = 16;

/// One packet of a batch.
pub struct Packet<'a> {
    /// The nonce: four zero bytes, then this in little-endian order. For sealing it must never come again under the
    /// same key.
    pub counter: u64,
    /// The text, and behind it [`TAG_BYTES`] for the tag. Text is sealed and opened in place.
    pub buffer: &'a mut [u8],
    /// After sealing: false if the buffer has no room for a tag, and is as it was. After opening: whether the packet
    /// is authentic; if not, the buffer holds zeros.
    pub is_good: bool,
}

impl<'a> Packet<'a> {
    /// Makes a packet of a nonce and text with room for the tag.
    #[must_use]
    pub const fn new(counter: u64, buffer: &'a mut [u8]) -> Self {
        Self { counter, buffer, is_good: false }
    }

    /// Splits the buffer into text and tag.
    pub(crate) fn parts(&mut self) -> Option<(&mut [u8], &mut [u8; TAG_BYTES])> {
        self.buffer.split_last_chunk_mut()
    }
}

impl Default for Packet<'_> {
    fn default() -> Self {
        Self::new(0, &mut [])
    }
}

impl fmt::Debug for Packet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { counter, buffer, is_good } = self;
        f.debug_struct("Packet")
            .field("counter", counter)
            .field("bytes", &buffer.len())
            .field("is_good", is_good)
            .finish()
    }
}

/// A key, ready for use; wiped when dropped.
pub struct Key {
    one_by_one: LessSafeKey,
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only vector code reads it"))]
    words: Zeroizing<[u32; 8]>,
    backend: Backend,
}

impl Key {
    /// Loads a key for the [chosen](Backend::chosen) back end.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        Self::with_backend(key, Backend::chosen())
    }

    /// Loads a key for a certain back end, or for aws-lc-rs if this machine does not have that one.
    #[must_use]
    pub fn with_backend(key: &[u8; 32], backend: Backend) -> Self {
        // Only another length is refused, and the type has this one.
        let unbound = UnboundKey::new(&CHACHA20_POLY1305, key).expect("ChaCha20-Poly1305 takes keys of 32 bytes");
        let mut words = Zeroizing::new([0; 8]);
        for (word, bytes) in words.iter_mut().zip(key.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        let backend = if backend.is_available() { backend } else { Backend::AwsLc };
        Self { one_by_one: LessSafeKey::new(unbound), words, backend }
    }

    /// Returns the back end in use.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Seals packets: encrypts the texts and writes the tags.
    pub fn seal_batch(&self, packets: &mut [Packet<'_>]) {
        for group in packets.chunks_mut(self.backend.lanes()) {
            match self.suited(group) {
                #[cfg(target_arch = "x86_64")]
                Backend::Avx512 => crate::avx512::seal(&self.words, group),
                #[cfg(target_arch = "x86_64")]
                Backend::Avx2 => crate::avx2::seal(&self.words, group),
                _ => group.iter_mut().for_each(|packet| self.seal_one(packet)),
            }
        }
    }

    /// Opens packets: checks all tags, and decrypts the texts of those that are authentic.
    pub fn open_batch(&self, packets: &mut [Packet<'_>]) {
        for group in packets.chunks_mut(self.backend.lanes()) {
            match self.suited(group) {
                #[cfg(target_arch = "x86_64")]
                Backend::Avx512 => crate::avx512::open(&self.words, group),
                #[cfg(target_arch = "x86_64")]
                Backend::Avx2 => crate::avx2::open(&self.words, group),
                _ => group.iter_mut().for_each(|packet| self.open_one(packet)),
            }
        }
    }

    fn seal_one(&self, packet: &mut Packet<'_>) {
        packet.is_good = false;
        let nonce = nonce(packet.counter);
        let Some((text, tag)) = packet.parts() else { return };
        let Ok(made) = self.one_by_one.seal_in_place_separate_tag(nonce, Aad::empty(), text) else {
            // No text of this size is refused; one that were must not go out as it is.
            text.fill(0);
            return;
        };
        tag.copy_from_slice(made.as_ref());
        packet.is_good = true;
    }

    fn open_one(&self, packet: &mut Packet<'_>) {
        let opened = self.one_by_one.open_in_place(nonce(packet.counter), Aad::empty(), packet.buffer);
        packet.is_good = opened.is_ok();
        if !packet.is_good {
            packet.buffer.fill(0);
        }
    }

    /// Returns the back end, or aws-lc-rs if vector code would not gain with these packets or cannot take them.
    fn suited(&self, group: &[Packet<'_>]) -> Backend {
        let takes = |packet: &Packet<'_>| (TAG_BYTES..=self.backend.longest()).contains(&packet.buffer.len());
        let is_suited = group.len() >= self.backend.least() && group.iter().all(takes);
        if is_suited { self.backend } else { Backend::AwsLc }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("backend", &self.backend).finish_non_exhaustive()
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes.iter_mut().skip(4).zip(counter.to_le_bytes()).for_each(|(to, from)| *to = from);
    Nonce::assume_unique_for_key(bytes)
}
