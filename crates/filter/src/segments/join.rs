//! From received packets to super-packets.

use std::ops::Range;

use super::checksum::{Sum, pseudo_header};
use super::{ACK, CWR, ECE, FIN, PSH, SegmentKind, TCP_CHECKSUM, UDP_CHECKSUM, get, put, put_length};
use crate::packet::{PROTO_ICMP6, PROTO_TCP, PROTO_UDP};

/// The most packets in one super-packet.
///
/// Source: Linux 4.18, `include/linux/udp.h`, `UDP_MAX_SEGMENTS`; TCP could have more, but a packet of full size is
/// full with fewer.
const MAX_JOINED: usize = 64;
/// The most bytes of a packet.
const MAX_BYTES: usize = 65_535;
/// The most packets between two flushes.
const MAX_PACKETS: usize = 1024;
/// Flows that are told apart at a time, by a hash: two that share one are not joined while they take turns.
const FLOWS: usize = 256;
/// Stands for "none" where a number of a packet or frame is expected.
const NONE: u16 = u16::MAX;

/// Joins packets that lie in one buffer to super-packets.
///
/// Packets are pushed in the order of arrival and come out, joined or as they are, when [`Self::flush`] is called: for
/// each flow in the same order. Joined are whole TCP packets with data and UDP packets of one flow that follow each other
/// without a gap (TCP sequence numbers; IPv4 identifications where they mean something), have the same headers otherwise
/// and sound checksums, and the same length, but for a shorter one at the end. So what a receiver cuts out of a super-packet
/// is, byte by byte, what was pushed; identifications of IPv4 packets that must not be fragmented mean nothing (RFC 6864).
///
/// Its memory is bounded and allocated once.
#[derive(Debug)]
pub struct Join {
    kinds: Kinds,
    frames: Vec<Frame>,
    pieces: Vec<Piece>,
    /// The last frame of each flow that may still grow, by the flow's hash.
    recent: [u16; FLOWS],
    parts: Vec<Range<usize>>,
}

/// Tells what the kernel takes joined.
#[derive(Debug, Clone, Copy)]
struct Kinds {
    tcp: bool,
    udp: bool,
}

/// Describes a super-packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joined {
    /// What it is.
    pub kind: SegmentKind,
    /// Whether it is of IPv6.
    pub is_v6: bool,
    /// Bytes of data in each packet but the last.
    pub segment: u16,
    /// Bytes of all headers.
    pub headers: u16,
    /// Where the TCP or UDP header begins.
    pub transport_at: u16,
    /// Where the checksum is that holds the pseudo header's sum, in bytes after `transport_at`.
    pub checksum_at: u16,
    /// The first packet says CWR.
    pub cwr: bool,
}

/// What comes out: one packet, or several joined.
#[derive(Debug, Clone, Copy)]
struct Frame {
    /// The first packet, headers included.
    start: usize,
    length: usize,
    /// What follows from its headers; `None` if it cannot be joined with anything.
    data: Option<Data>,
    /// Whether another packet may follow.
    is_open: bool,
    /// How many packets.
    count: usize,
    /// Bytes with one set of headers.
    total: usize,
    next_sequence: u32,
    next_id: u16,
    /// FIN and PSH of the last packet.
    last_flags: u8,
    /// First and last of the further packets' data.
    first: u16,
    last: u16,
}

/// Data of a further packet.
#[derive(Debug, Clone, Copy)]
struct Piece {
    start: usize,
    length: usize,
    next: u16,
}

/// What the headers of a packet that can be joined say.
#[derive(Debug, Clone, Copy)]
struct Data {
    kind: SegmentKind,
    is_v6: bool,
    transport_at: usize,
    headers: usize,
    /// Bytes of data, at least one.
    bytes: usize,
    sequence: u32,
    id: u16,
    /// Whether the identification means something.
    counts_id: bool,
    flags: u8,
}

/// What a packet means for those before it.
enum Seen {
    /// It belongs to a flow with this hash.
    Flow(usize, Option<Data>),
    /// It cannot belong to a flow of TCP or UDP.
    Other,
    /// Nobody looks closely to which flow it belongs.
    Unclear,
}

impl Join {
    /// Joins TCP or UDP, or both, or nothing: then packets pass as they are.
    pub fn new(tcp: bool, udp: bool) -> Self {
        Self {
            kinds: Kinds { tcp, udp },
            frames: Vec::with_capacity(MAX_PACKETS),
            pieces: Vec::with_capacity(MAX_PACKETS),
            recent: [NONE; FLOWS],
            parts: Vec::with_capacity(MAX_JOINED),
        }
    }

    /// Joins nothing from now on; what is joined already stays so.
    pub fn stop(&mut self) {
        self.kinds = Kinds { tcp: false, udp: false };
    }

    /// Tells whether there is no more room: flush, then go on.
    pub fn is_full(&self) -> bool {
        self.frames.len() >= MAX_PACKETS || self.pieces.len() >= MAX_PACKETS
    }

    /// Takes the packet that lies at `place` in `buffer`. A full one takes nothing.
    pub fn push(&mut self, buffer: &[u8], place: Range<usize>) {
        if self.is_full() {
            return;
        }
        let Some(bytes) = buffer.get(place.clone()) else { return };
        match self.look(bytes) {
            Seen::Flow(hash, Some(data)) => {
                let recent = self.recent.get(hash).copied().unwrap_or(NONE);
                if !self.append(buffer, recent, &data, &place) {
                    let number = self.begin(&place, Some(data));
                    self.remember(hash, number);
                }
            }
            Seen::Flow(hash, None) => {
                self.begin(&place, None);
                self.remember(hash, NONE);
            }
            Seen::Other => {
                self.begin(&place, None);
            }
            Seen::Unclear => {
                self.begin(&place, None);
                self.recent = [NONE; FLOWS];
            }
        }
    }

    /// Hands over all packets, with what they are if they are joined, and where their parts lie in the buffer, which is
    /// the one that they were pushed with. Headers of joined packets are changed in it.
    pub fn flush(&mut self, buffer: &mut [u8], mut write: impl FnMut(Option<&Joined>, &[u8], &[Range<usize>])) {
        for frame in &self.frames {
            self.parts.clear();
            self.parts.push(frame.start..frame.start + frame.length);
            let mut next = frame.first;
            while let Some(piece) = self.pieces.get(usize::from(next)) {
                self.parts.push(piece.start..piece.start + piece.length);
                next = piece.next;
            }
            let joined = frame.finish(buffer);
            write(joined.as_ref(), buffer, &self.parts);
        }
        self.frames.clear();
        self.pieces.clear();
        self.recent = [NONE; FLOWS];
    }

    fn remember(&mut self, hash: usize, number: u16) {
        if let Some(recent) = self.recent.get_mut(hash) {
            *recent = number;
        }
    }

    fn begin(&mut self, place: &Range<usize>, data: Option<Data>) -> u16 {
        let number = u16::try_from(self.frames.len()).unwrap_or(NONE);
        let (sequence, id, bytes, flags) =
            data.map_or((0, 0, 0, 0), |data| (data.sequence, data.id, data.bytes, data.flags));
        self.frames.push(Frame {
            start: place.start,
            length: place.len(),
            data,
            is_open: flags & (FIN | PSH) == 0,
            count: 1,
            total: place.len(),
            next_sequence: sequence.wrapping_add(u32::try_from(bytes).unwrap_or(0)),
            next_id: id.wrapping_add(1),
            last_flags: 0,
            first: NONE,
            last: NONE,
        });
        number
    }

    /// Appends a packet to the frame with this number, if it goes on where that ends; tells whether it does.
    fn append(&mut self, buffer: &[u8], number: u16, data: &Data, place: &Range<usize>) -> bool {
        let Some(frame) = self.frames.get_mut(usize::from(number)) else { return false };
        if !frame.continues(buffer, data, place) {
            return false;
        }
        let piece = u16::try_from(self.pieces.len()).unwrap_or(NONE);
        self.pieces.push(Piece { start: place.end - data.bytes, length: data.bytes, next: NONE });
        match self.pieces.get_mut(usize::from(frame.last)) {
            Some(last) => last.next = piece,
            None => frame.first = piece,
        }
        frame.last = piece;
        frame.count += 1;
        frame.total += data.bytes;
        frame.next_sequence = frame.next_sequence.wrapping_add(u32::try_from(data.bytes).unwrap_or(0));
        frame.next_id = frame.next_id.wrapping_add(1);
        frame.last_flags = data.flags & (FIN | PSH);
        let is_full_size = frame.data.is_some_and(|first| first.bytes == data.bytes);
        frame.is_open = is_full_size && frame.last_flags == 0 && frame.count < MAX_JOINED;
        true
    }

    /// Reads the headers of a packet.
    fn look(&self, bytes: &[u8]) -> Seen {
        let (is_v6, transport_at, protocol, id, counts_id) = match *bytes {
            [0x45, _, len0, len1, i0, i1, frag0, frag1, _, protocol, ..] => {
                let whole = usize::from(u16::from_be_bytes([len0, len1])) == bytes.len();
                // Neither fragments nor the reserved flag.
                if !whole || frag0 & 0xbf != 0 || frag1 != 0 {
                    return Seen::Unclear;
                }
                (false, 20, protocol, u16::from_be_bytes([i0, i1]), frag0 & 0x40 == 0)
            }
            [first, _, _, _, len0, len1, protocol, ..] if first >> 4 == 6 => {
                if usize::from(u16::from_be_bytes([len0, len1])) + 40 != bytes.len() {
                    return Seen::Unclear;
                }
                (true, 40, protocol, 0, false)
            }
            _ => return Seen::Unclear,
        };
        let kind = match protocol {
            PROTO_TCP => SegmentKind::Tcp,
            PROTO_UDP => SegmentKind::Udp,
            PROTO_ICMP6 if is_v6 => return Seen::Other,
            // Extension headers come before the protocol in IPv6.
            _ => return if is_v6 { Seen::Unclear } else { Seen::Other },
        };
        let Some(hash) = flow_hash(bytes, transport_at, protocol) else { return Seen::Unclear };
        let wanted = match kind {
            SegmentKind::Tcp => self.kinds.tcp,
            SegmentKind::Udp => self.kinds.udp,
        };
        let data = if wanted { read(bytes, kind, transport_at, protocol) } else { None };
        Seen::Flow(hash, data.map(|data| Data { is_v6, id, counts_id, ..data }))
    }
}

impl Frame {
    /// Tells whether a packet with `data` at `place` can follow.
    fn continues(&self, buffer: &[u8], data: &Data, place: &Range<usize>) -> bool {
        let Some(first) = self.data else { return false };
        let fits = self.is_open
            && (first.kind, first.is_v6, first.headers) == (data.kind, data.is_v6, data.headers)
            && data.bytes <= first.bytes
            && self.total + data.bytes <= MAX_BYTES
            && (first.kind == SegmentKind::Udp || self.next_sequence == data.sequence)
            && (!first.counts_id || self.next_id == data.id)
            && (first.flags ^ data.flags) & !(FIN | PSH | CWR) == 0
            && data.flags & CWR == 0;
        let header = |start: usize| buffer.get(start..start + first.headers);
        let (true, Some(one), Some(other)) = (fits, header(self.start), header(place.start)) else { return false };
        // All that is neither length, nor checksum, nor counted.
        let ip: &[Range<usize>] = if first.is_v6 { &[0..4, 6..40] } else { &[0..2, 6..10, 12..20] };
        let at = first.transport_at;
        let transport: &[Range<usize>] = match first.kind {
            SegmentKind::Tcp => &[at..at + 4, at + 8..at + 13, at + 14..at + 16, at + 18..first.headers],
            SegmentKind::Udp => &[at..at + 2, at + 2..at + 4],
        };
        ip.iter().chain(transport).all(|range| one.get(range.clone()) == other.get(range.clone()))
    }

    /// Writes the headers of a super-packet over those of its first packet.
    fn finish(&self, buffer: &mut [u8]) -> Option<Joined> {
        let data = self.data.filter(|_| self.count > 1)?;
        let headers = buffer.get_mut(self.start..self.start + data.headers)?;
        let protocol = match data.kind {
            SegmentKind::Tcp => PROTO_TCP,
            SegmentKind::Udp => PROTO_UDP,
        };
        let pseudo = pseudo_header(headers, protocol)?;
        let (ip, transport) = headers.split_at_mut_checked(data.transport_at)?;
        if data.is_v6 {
            put_length(ip, 4, self.total - data.transport_at);
        } else {
            put_length(ip, 2, self.total);
            put(ip, 10, [0, 0]);
            put(ip, 10, Sum::default().add(ip).finish());
        }
        let behind = self.total - data.transport_at;
        let checksum_at = match data.kind {
            SegmentKind::Tcp => {
                put(transport, 13, [data.flags | self.last_flags]);
                TCP_CHECKSUM
            }
            SegmentKind::Udp => {
                put_length(transport, 4, behind);
                UDP_CHECKSUM
            }
        };
        put(transport, checksum_at, pseudo.add_length(behind).folded());
        let short = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
        Some(Joined {
            kind: data.kind,
            is_v6: data.is_v6,
            segment: short(data.bytes),
            headers: short(data.headers),
            transport_at: short(data.transport_at),
            checksum_at: short(checksum_at),
            cwr: data.flags & CWR != 0,
        })
    }
}

/// Reads a TCP or UDP packet that could be joined; `None` if it could not, for instance because of its checksum.
fn read(bytes: &[u8], kind: SegmentKind, transport_at: usize, protocol: u8) -> Option<Data> {
    let (ip, transport) = bytes.split_at_checked(transport_at)?;
    let (length, sequence, flags) = match kind {
        SegmentKind::Tcp => {
            let flags = *transport.get(13)?;
            if flags & !(FIN | PSH | ECE | CWR) != ACK {
                return None;
            }
            (usize::from(transport.get(12)? >> 4) * 4, u32::from_be_bytes(get(transport, 4)?), flags)
        }
        SegmentKind::Udp => {
            let whole = usize::from(u16::from_be_bytes(get(transport, 4)?)) == transport.len();
            // A checksum of 0 is none; in a super-packet all have one.
            if !whole || get(transport, UDP_CHECKSUM)? == [0, 0] {
                return None;
            }
            (8, 0, 0)
        }
    };
    let least = if kind == SegmentKind::Tcp { 20 } else { 8 };
    let bytes_of_data = transport.len().checked_sub(length).filter(|left| *left > 0 && length >= least)?;
    let is_sound = pseudo_header(bytes, protocol)?.add_length(transport.len()).add(transport).is_sound()
        && (ip.len() != 20 || Sum::default().add(ip).is_sound());
    is_sound.then_some(Data {
        kind,
        is_v6: false,
        transport_at,
        headers: transport_at + length,
        bytes: bytes_of_data,
        sequence,
        id: 0,
        counts_id: false,
        flags,
    })
}

/// Returns a number below [`FLOWS`] that is the same for all packets of a flow.
fn flow_hash(bytes: &[u8], transport_at: usize, protocol: u8) -> Option<usize> {
    let (source, destination) = if transport_at == 40 { (20, 36) } else { (12, 16) };
    let words: [u32; 3] = [
        u32::from_ne_bytes(get(bytes, source)?),
        u32::from_ne_bytes(get(bytes, destination)?),
        u32::from_ne_bytes(get(bytes, transport_at)?),
    ];
    let mixed =
        words.iter().fold(u32::from(protocol), |hash, word| (hash ^ word).wrapping_mul(0x9E37_79B1).rotate_left(15));
    Some((mixed >> 8) as usize % FLOWS)
}
