//! The Internet checksum. RFC 1071.

use super::{get, put};

/// Sums up 16-bit words with the carry added back. It is kept in the machine's byte order, which changes nothing but
/// the order of the result's bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds bytes; only those that are added last may be odd in number. At most a packet is added up.
    pub(crate) fn add(self, bytes: &[u8]) -> Self {
        let (blocks, rest) = bytes.as_chunks::<32>();
        // Eight independent sums, which the compiler puts into vectors. They cannot overflow below 16 GiB.
        let mut lanes = [0_u64; 8];
        for block in blocks {
            for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<4>().0) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        let (words, odd) = rest.as_chunks::<2>();
        let words: u64 = words.iter().map(|word| u64::from(u16::from_ne_bytes(*word))).sum();
        let odd = odd.first().map_or(0, |last| u64::from(u16::from_ne_bytes([*last, 0])));
        Self(self.0 + lanes.iter().sum::<u64>() + words + odd)
    }

    /// Adds a word.
    pub(crate) fn add_word(self, word: u16) -> Self {
        self.add(&word.to_be_bytes())
    }

    /// Adds a length that fits into 16 bits, because packets do.
    pub(crate) fn add_length(self, length: usize) -> Self {
        self.add_word(u16::try_from(length).unwrap_or(u16::MAX))
    }

    /// Returns the sum as it stands in a packet; its complement is the checksum.
    #[expect(clippy::cast_possible_truncation, reason = "folded until nothing is left above the 16 bits")]
    pub(crate) fn folded(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (sum as u16).to_ne_bytes()
    }

    /// Returns the checksum as it stands in a packet.
    pub(crate) fn finish(self) -> [u8; 2] {
        self.folded().map(|byte| !byte)
    }

    /// Returns the checksum of UDP, where 0 says that there is none.
    pub(crate) fn finish_udp(self) -> [u8; 2] {
        match self.finish() {
            [0, 0] => [0xff, 0xff],
            checksum => checksum,
        }
    }

    /// Tells whether this, summed over data with its checksum, is the sum of sound data.
    pub(crate) fn is_sound(self) -> bool {
        self.folded() == [0xff, 0xff]
    }
}

/// Sums up what TCP and UDP take from the IP header at the start of `packet`, but for the length: addresses and protocol.
pub(super) fn pseudo_header(packet: &[u8], protocol: u8) -> Option<Sum> {
    let addresses = if packet.first()? >> 4 == 6 { packet.get(8..40)? } else { packet.get(12..20)? };
    Some(Sum::default().add(addresses).add_word(protocol.into()))
}

/// Finishes a checksum of TCP or UDP that holds the sum of the pseudo header, as the kernel leaves it: it lies `offset`
/// bytes after `start` and covers `packet` from `start` on. Tells whether there is such a place.
pub fn finish_checksum(packet: &mut [u8], start: u16, offset: u16) -> bool {
    let (start, offset) = (usize::from(start), usize::from(offset));
    let Some(covered) = packet.get_mut(start..) else { return false };
    if get::<2>(covered, offset).is_none() {
        return false;
    }
    // A checksum of TCP that is 0 may be written in the other way, too.
    let checksum = Sum::default().add(covered).finish_udp();
    put(covered, offset, checksum);
    true
}
