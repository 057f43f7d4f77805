//! The slow model: super-packets cut by the book, byte by byte.
//!
//! The fuzz package compiles this file, too; it must not use anything of this crate.

/// Reads 16 bits.
pub(crate) fn short(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1])
}

pub(crate) fn set_short(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at] = u8::try_from(value >> 8 & 0xff).unwrap();
    bytes[at + 1] = u8::try_from(value & 0xff).unwrap();
}

/// RFC 1071, word by word.
pub(crate) fn sum(parts: &[&[u8]]) -> usize {
    let mut total = 0;
    for pair in parts.concat().chunks(2) {
        total += usize::from(pair[0]) << 8 | usize::from(*pair.get(1).unwrap_or(&0));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total
}

pub(crate) fn is_v6(packet: &[u8]) -> bool {
    packet[0] >> 4 == 6
}

/// Where the TCP or UDP header begins.
pub(crate) fn transport_at(packet: &[u8]) -> usize {
    if is_v6(packet) { 40 } else { usize::from(packet[0] & 15) * 4 }
}

pub(crate) fn protocol(packet: &[u8]) -> u8 {
    if is_v6(packet) { packet[6] } else { packet[9] }
}

/// Where the data begins.
pub(crate) fn data_at(packet: &[u8]) -> usize {
    let at = transport_at(packet);
    at + if protocol(packet) == 6 { usize::from(packet[at + 12] >> 4) * 4 } else { 8 }
}

fn pseudo(packet: &[u8], length: usize) -> Vec<u8> {
    let mut bytes = if is_v6(packet) { packet[8..40].to_vec() } else { packet[12..20].to_vec() };
    bytes.extend([0, protocol(packet), u8::try_from(length >> 8).unwrap(), u8::try_from(length & 0xff).unwrap()]);
    bytes
}

/// Puts lengths and checksums into a packet whose other fields are there.
pub(crate) fn seal(packet: &mut [u8]) {
    let (at, length) = (transport_at(packet), packet.len());
    if is_v6(packet) {
        set_short(packet, 4, length - 40);
    } else {
        set_short(packet, 2, length);
        set_short(packet, 10, 0);
        let sum = sum(&[&packet[..at]]);
        set_short(packet, 10, 0xffff - sum);
    }
    let checksum_at = at + if protocol(packet) == 6 { 16 } else { 6 };
    if protocol(packet) == 17 {
        set_short(packet, at + 4, length - at);
    }
    set_short(packet, checksum_at, 0);
    let mut checksum = 0xffff - sum(&[&pseudo(packet, length - at), &packet[at..]]);
    if checksum == 0 && protocol(packet) == 17 {
        checksum = 0xffff;
    }
    set_short(packet, checksum_at, checksum);
}

/// Tells whether the checksums are right.
pub(crate) fn is_sound(packet: &[u8]) -> bool {
    let at = transport_at(packet);
    (is_v6(packet) || sum(&[&packet[..at]]) == 0xffff)
        && sum(&[&pseudo(packet, packet.len() - at), &packet[at..]]) == 0xffff
}

/// Tells whether the TCP or UDP checksum of a super-packet is what the kernel wants: the pseudo header's sum.
pub(crate) fn is_begun(packet: &[u8]) -> bool {
    let at = transport_at(packet);
    let checksum_at = at + if protocol(packet) == 6 { 16 } else { 6 };
    short(packet, checksum_at) == sum(&[&pseudo(packet, packet.len() - at)])
}

/// Cuts a super-packet.
pub(crate) fn cut(packet: &[u8], segment: usize) -> Vec<Vec<u8>> {
    let (at, data_at) = (transport_at(packet), data_at(packet));
    let mut pieces: Vec<&[u8]> = packet[data_at..].chunks(segment).collect();
    if pieces.is_empty() {
        pieces.push(&[]);
    }
    let count = pieces.len();
    let mut packets = Vec::new();
    let mut before = 0;
    for (number, piece) in pieces.into_iter().enumerate() {
        let mut one = [&packet[..data_at], piece].concat();
        if !is_v6(packet) {
            set_short(&mut one, 4, (short(packet, 4) + number) % 65_536);
        }
        if protocol(packet) == 6 {
            let sequence = short(packet, at + 4) << 16 | short(packet, at + 6);
            let sequence = (sequence + before) % (1 << 32);
            set_short(&mut one, at + 4, sequence >> 16);
            set_short(&mut one, at + 6, sequence & 0xffff);
            if number > 0 {
                one[at + 13] &= !0x80;
            }
            if number + 1 < count {
                one[at + 13] &= !0x09;
            }
        }
        before += piece.len();
        seal(&mut one);
        packets.push(one);
    }
    packets
}

/// What a test chooses of a packet.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) v6: bool,
    pub(crate) tcp: bool,
    /// Which of a few flows.
    pub(crate) flow: u8,
    pub(crate) sequence: u32,
    pub(crate) id: u16,
    pub(crate) dont_fragment: bool,
    pub(crate) flags: u8,
    pub(crate) window: u8,
    pub(crate) class: u8,
    /// Words of TCP options.
    pub(crate) options: u8,
    pub(crate) data: usize,
    pub(crate) fill: u8,
}

impl Shape {
    /// Makes the packet, sound.
    pub(crate) fn packet(&self) -> Vec<u8> {
        let mut bytes = if self.v6 {
            let mut bytes = vec![0x60 | self.class >> 4, (self.class & 15) << 4, 0, 0, 0, 0, 0, 64];
            bytes[6] = if self.tcp { 6 } else { 17 };
            for last in [1, 2] {
                bytes.extend([0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
            }
            bytes
        } else {
            let mut bytes = vec![0x45, self.class, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 100, 64, 0, 1, 100, 64, 0, 2];
            set_short(&mut bytes, 4, self.id.into());
            bytes[6] = if self.dont_fragment { 0x40 } else { 0 };
            bytes[9] = if self.tcp { 6 } else { 17 };
            bytes
        };
        bytes.extend([0x10, self.flow, 0, 80]);
        if self.tcp {
            bytes.extend(self.sequence.to_be_bytes());
            bytes.extend([0, 0, 0, 7, (5 + self.options) << 4, self.flags, 1, self.window, 0, 0, 0, 0]);
            bytes.extend(vec![1; usize::from(self.options) * 4]);
        } else {
            bytes.extend([0; 4]);
        }
        let pattern = (0..self.data).map(|at| u8::try_from(at % 251).unwrap().wrapping_add(self.fill));
        bytes.extend(pattern);
        seal(&mut bytes);
        bytes
    }
}
