//! Writing of answers.

use std::net::IpAddr;

use crate::name::Name;
use crate::query::{Class, FLAG_AA, FLAG_CD, FLAG_QR, FLAG_RA, FLAG_RD, FLAG_TC, HEADER_BYTES, Kind, OPT, Query};

/// Largest answer over UDP that we ask for and offer to take: fits into every network's packets.
///
/// Source: DNS flag day 2020.
const OFFERED_UDP_BYTES: u16 = 1232;

/// The timers of the zone's SOA record, in seconds: how long "there is none" is remembered.
///
/// Source: Tailscale `net/dns/resolver`, `marshalSOA`.
const SOA_SECONDS: u32 = 10;

/// Writes an answer with records of our own.
#[derive(Debug)]
pub(crate) struct Writer<'q> {
    query: &'q Query,
    message: Vec<u8>,
    code: u16,
    counts: [u16; 2],
}

impl<'q> Writer<'q> {
    /// Begins an answer. `code` may be an extended one.
    pub(crate) fn answer(query: &'q Query, code: u16, flags: u16) -> Self {
        let flags = FLAG_QR | FLAG_RA | flags | query.flags & (FLAG_RD | FLAG_CD) | code & 15;
        let mut message = Vec::with_capacity(256);
        message.extend(query.id.to_be_bytes());
        message.extend(flags.to_be_bytes());
        message.extend([0, 1, 0, 0, 0, 0, 0, 0]);
        message.extend(&query.question);
        Self { query, message, code, counts: [0; 2] }
    }

    /// Begins an answer of whoever knows.
    pub(crate) fn authoritative(query: &'q Query, code: u16) -> Self {
        Self::answer(query, code, FLAG_AA)
    }

    /// Adds an address of the name that is asked for.
    pub(crate) fn push_address(&mut self, address: IpAddr, ttl: u32) {
        match address {
            IpAddr::V4(address) => self.push(0, Kind::A, ttl, &address.octets()),
            IpAddr::V6(address) => self.push(0, Kind::AAAA, ttl, &address.octets()),
        }
    }

    /// Adds a name of the address that is asked for.
    pub(crate) fn push_pointer(&mut self, name: &Name, ttl: u32) {
        self.push(0, Kind::PTR, ttl, name.as_bytes());
    }

    /// Adds the start of the zone, which says how long "there is none" holds. Source: RFC 2308, section 3.
    pub(crate) fn push_start(&mut self, zone: &[u8]) {
        // Where the zone's name stands in the question, if it does.
        let before = self.query.name.as_bytes().len().saturating_sub(zone.len());
        let place = u16::try_from(HEADER_BYTES + before).unwrap_or(0);
        let mut data = Vec::with_capacity(24);
        // Name server and mailbox: the zone itself.
        data.extend((0xc000 | place).to_be_bytes());
        data.extend((0xc000 | place).to_be_bytes());
        data.extend(1_u32.to_be_bytes());
        data.extend([SOA_SECONDS; 4].into_iter().flat_map(u32::to_be_bytes));
        self.push_named(place, 1, Kind::SOA, SOA_SECONDS, &data);
    }

    fn push(&mut self, section: usize, kind: Kind, ttl: u32, data: &[u8]) {
        self.push_named(12, section, kind, ttl, data);
    }

    fn push_named(&mut self, place: u16, section: usize, kind: Kind, ttl: u32, data: &[u8]) {
        let Ok(length) = u16::try_from(data.len()) else { return };
        self.message.extend((0xc000 | place).to_be_bytes());
        self.message.extend(kind.0.to_be_bytes());
        self.message.extend(Class::IN.0.to_be_bytes());
        self.message.extend(ttl.to_be_bytes());
        self.message.extend(length.to_be_bytes());
        self.message.extend(data);
        if let Some(count) = self.counts.get_mut(section) {
            *count = count.saturating_add(1);
        }
    }

    /// Returns what has been written, without counts.
    pub(crate) fn into_message(self) -> Vec<u8> {
        self.message
    }

    /// Returns the message.
    pub(crate) fn finish(self) -> Vec<u8> {
        finish(self.message, self.query, self.code, [self.counts[0], self.counts[1], 0])
    }

    /// Returns the message, or only its question with TC set if it is longer than `limit` bytes.
    pub(crate) fn finish_within(self, limit: usize) -> Vec<u8> {
        let (query, code) = (self.query, self.code);
        let message = self.finish();
        if message.len() > limit { truncated(query, code) } else { message }
    }
}

/// Writes the counts of records and, if the asker knows EDNS, the OPT record.
pub(crate) fn finish(mut message: Vec<u8>, query: &Query, code: u16, mut counts: [u16; 3]) -> Vec<u8> {
    if let Some(edns) = query.edns {
        push_opt(&mut message, code >> 4, edns.dnssec);
        counts[2] = counts[2].saturating_add(1);
    }
    if let Some(place) = message.get_mut(6..12) {
        for (place, count) in place.chunks_exact_mut(2).zip(counts) {
            place.copy_from_slice(&count.to_be_bytes());
        }
    }
    message
}

/// Makes the answer that says: ask again over TCP.
pub(crate) fn truncated(query: &Query, code: u16) -> Vec<u8> {
    Writer::answer(query, code, FLAG_TC).finish()
}

/// Adds an OPT record. `code` are the upper bits of the response code.
pub(crate) fn push_opt(message: &mut Vec<u8>, code: u16, dnssec: bool) {
    message.push(0);
    message.extend(OPT.to_be_bytes());
    message.extend(OFFERED_UDP_BYTES.to_be_bytes());
    message.extend([u8::try_from(code).unwrap_or(0), 0, if dnssec { 0x80 } else { 0 }, 0]);
    message.extend([0, 0]);
}
