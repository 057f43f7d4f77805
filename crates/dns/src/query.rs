//! What a program asks. Source: RFC 1035, section 4.1; RFC 6891 (EDNS).

use crate::name::Name;
use crate::write::Writer;

/// Bytes of a header.
pub(crate) const HEADER_BYTES: usize = 12;
/// Type of the pseudo record that carries EDNS.
pub(crate) const OPT: u16 = 41;
/// Smallest limit of an answer over UDP. Source: RFC 1035, section 2.3.4.
const UDP_BYTES_MIN: u16 = 512;
/// Largest answer over UDP.
///
/// Source: Tailscale `net/dns/resolver`, `maxResponseBytes`.
const UDP_BYTES_MAX: u16 = 4095;

pub(crate) const FLAG_QR: u16 = 0x8000;
pub(crate) const FLAG_AA: u16 = 0x0400;
pub(crate) const FLAG_TC: u16 = 0x0200;
pub(crate) const FLAG_RD: u16 = 0x0100;
pub(crate) const FLAG_RA: u16 = 0x0080;
pub(crate) const FLAG_AD: u16 = 0x0020;
pub(crate) const FLAG_CD: u16 = 0x0010;
pub(crate) const OPCODE: u16 = 0x7800;

pub(crate) const FORMERR: u16 = 1;
pub(crate) const SERVFAIL: u16 = 2;
pub(crate) const NXDOMAIN: u16 = 3;
pub(crate) const NOTIMP: u16 = 4;
pub(crate) const REFUSED: u16 = 5;
/// The part of the code that travels in the header, 0, and the part in the OPT record, 1. Source: RFC 6891, section 9.
const BADVERS: u16 = 16;

/// Is the type of a record, as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(pub u16);

impl Kind {
    /// IPv4 address.
    pub const A: Self = Self(1);
    /// Name server.
    pub const NS: Self = Self(2);
    /// Start of a zone.
    pub const SOA: Self = Self(6);
    /// Name of an address.
    pub const PTR: Self = Self(12);
    /// What the host is.
    pub const HINFO: Self = Self(13);
    /// IPv6 address.
    pub const AAAA: Self = Self(28);
    /// Transfer of a zone.
    pub const AXFR: Self = Self(252);
    /// Any type.
    pub const ANY: Self = Self(255);
}

/// Is the class of a record, as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class(pub u16);

impl Class {
    /// The Internet.
    pub const IN: Self = Self(1);
}

/// What a query says of EDNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edns {
    /// Largest answer over UDP, as stated.
    size: u16,
    /// The asker wants signatures.
    pub(crate) dnssec: bool,
}

/// Is one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    pub(crate) id: u16,
    pub(crate) flags: u16,
    /// The question as it came, for the answer repeats its letters' case.
    pub(crate) question: Vec<u8>,
    pub(crate) name: Name,
    pub(crate) kind: Kind,
    pub(crate) class: Class,
    pub(crate) edns: Option<Edns>,
}

/// Says why a message is not a question that can be looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// Not even a header, or an answer: nobody is told.
    #[error("not a DNS query")]
    Ignore,
    /// The asker is told with this message.
    #[error("not a query that can be answered")]
    Answer(Vec<u8>),
}

impl Query {
    /// Reads a message.
    ///
    /// # Errors
    /// Says what the asker is told.
    pub fn decode(message: &[u8]) -> Result<Self, QueryError> {
        let id = word(message, 0).ok_or(QueryError::Ignore)?;
        let flags = word(message, 2).ok_or(QueryError::Ignore)?;
        if message.len() < HEADER_BYTES || flags & FLAG_QR != 0 {
            return Err(QueryError::Ignore);
        }
        if flags & OPCODE != 0 {
            return Err(QueryError::Answer(bare(id, flags, NOTIMP)));
        }
        let malformed = || QueryError::Answer(bare(id, flags, FORMERR));
        // More than one question never had a meaning. Source: RFC 9619.
        if word(message, 4) != Some(1) {
            return Err(malformed());
        }
        let (name, at) = Name::read(message, HEADER_BYTES).ok_or_else(malformed)?;
        let kind = Kind(word(message, at).ok_or_else(malformed)?);
        let class = Class(word(message, at + 2).ok_or_else(malformed)?);
        let question = message.get(HEADER_BYTES..at + 4).ok_or_else(malformed)?.to_vec();
        let mut query = Self { id, flags, question, name, kind, class, edns: None };
        let count = |at| word(message, at).map_or(0, u32::from);
        let before = count(6) + count(8);
        let mut at = at + 4;
        for number in 0..before + count(10) {
            let record = Record::read(message, at).ok_or_else(malformed)?;
            at = record.end;
            if record.kind != OPT || number < before {
                continue;
            }
            if query.edns.is_some() || !record.is_at_root {
                return Err(malformed());
            }
            query.edns = Some(Edns { size: record.class, dnssec: record.ttl & 0x8000 != 0 });
            if record.ttl >> 16 & 0xff != 0 {
                return Err(QueryError::Answer(query.failure(BADVERS)));
            }
        }
        Ok(query)
    }

    /// Returns the name that is asked for.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Returns the type that is asked for.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the class that is asked for.
    #[must_use]
    pub fn class(&self) -> Class {
        self.class
    }

    /// Tells whether signatures are wanted.
    pub(crate) fn dnssec(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec)
    }

    /// Returns the longest answer that the asker takes over UDP, in bytes.
    pub(crate) fn udp_limit(&self) -> usize {
        self.edns.map_or(UDP_BYTES_MIN, |edns| edns.size.clamp(UDP_BYTES_MIN, UDP_BYTES_MAX)).into()
    }

    /// Makes an answer that only says that there is none.
    pub(crate) fn failure(&self, code: u16) -> Vec<u8> {
        Writer::answer(self, code, 0).finish()
    }

    /// Makes the message that asks an upstream the same, with an `id` of its own.
    pub(crate) fn forwarded(&self, id: u16) -> Vec<u8> {
        let flags = FLAG_RD | self.flags & (FLAG_CD | FLAG_AD);
        let mut message = Vec::with_capacity(HEADER_BYTES + self.question.len() + 11);
        for word in [id, flags, 1, 0, 0, 1] {
            message.extend(word.to_be_bytes());
        }
        message.extend(&self.question);
        crate::write::push_opt(&mut message, 0, self.dnssec());
        message
    }
}

/// Makes an answer to a message of which only the header is known to be sound.
fn bare(id: u16, flags: u16, code: u16) -> Vec<u8> {
    let flags = FLAG_QR | flags & (OPCODE | FLAG_RD) | code;
    [id, flags, 0, 0, 0, 0].into_iter().flat_map(u16::to_be_bytes).collect()
}

/// Is the frame of a record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    pub(crate) is_at_root: bool,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    pub(crate) ttl: u32,
    /// Where the time to live stands.
    pub(crate) ttl_at: usize,
    pub(crate) data: usize,
    pub(crate) end: usize,
}

impl Record {
    /// Reads the frame of the record at `at`.
    pub(crate) fn read(message: &[u8], at: usize) -> Option<Self> {
        let frame = Name::skip(message, at)?;
        let data = frame + 10;
        let end = data + usize::from(word(message, frame + 8)?);
        if end > message.len() {
            return None;
        }
        Some(Self {
            is_at_root: frame == at + 1,
            kind: word(message, frame)?,
            class: word(message, frame + 2)?,
            ttl: long(message, frame + 4)?,
            ttl_at: frame + 4,
            data,
            end,
        })
    }
}

/// Reads a number of two bytes.
pub(crate) fn word(message: &[u8], at: usize) -> Option<u16> {
    message.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

/// Reads a number of four bytes.
pub(crate) fn long(message: &[u8], at: usize) -> Option<u32> {
    message.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `dig +noedns WWW.example.com A`, and the same with EDNS (4096 bytes, DO).
    const PLAIN: &[u8] =
        b"\x12\x34\x01\x20\x00\x01\x00\x00\x00\x00\x00\x00\x03WWW\x07example\x03com\x00\x00\x01\x00\x01";
    const EDNS: &[u8] = b"\x12\x34\x01\x20\x00\x01\x00\x00\x00\x00\x00\x01\x03WWW\x07example\x03com\x00\x00\x01\x00\x01\x00\x00\x29\x10\x00\x00\x00\x80\x00\x00\x00";

    #[test]
    fn questions_are_read_with_and_without_edns() {
        let plain = Query::decode(PLAIN).unwrap();
        assert_eq!(
            (plain.name().to_string(), plain.kind(), plain.class()),
            ("www.example.com.".into(), Kind::A, Class::IN)
        );
        assert_eq!((plain.udp_limit(), plain.dnssec()), (512, false));
        let edns = Query::decode(EDNS).unwrap();
        assert_eq!((edns.udp_limit(), edns.dnssec()), (4095, true));
        assert_eq!(edns.question, plain.question);
    }

    #[test]
    fn forwarded_queries_ask_the_same() {
        let query = Query::decode(EDNS).unwrap();
        let asked = Query::decode(&query.forwarded(7)).unwrap();
        assert_eq!((asked.id, &asked.question, asked.dnssec()), (7, &query.question, true));
    }

    #[test]
    fn answers_and_fragments_are_ignored() {
        let mut answer = PLAIN.to_vec();
        answer[2] |= 0x80;
        assert_eq!(Query::decode(&answer), Err(QueryError::Ignore));
        assert_eq!(Query::decode(&PLAIN[..11]), Err(QueryError::Ignore));
    }

    #[test]
    fn what_cannot_be_answered_is_said_to_be_so() {
        let code = |message: &[u8]| match Query::decode(message) {
            Err(QueryError::Answer(answer)) => Some(word(&answer, 2).unwrap() & 15),
            Ok(_) | Err(_) => None,
        };
        let with = |at: usize, byte: u8| {
            let mut message = EDNS.to_vec();
            message[at] = byte;
            message
        };
        assert_eq!(code(&with(2, 0x11)), Some(NOTIMP), "another operation");
        assert_eq!(code(&with(5, 2)), Some(FORMERR), "two questions");
        assert_eq!(code(&with(5, 0)), Some(FORMERR), "no question");
        assert_eq!(code(&with(12, 0xc0)), Some(FORMERR), "a pointer");
        assert_eq!(code(&PLAIN[..PLAIN.len() - 1]), Some(FORMERR), "cut short");
        let version = EDNS.len() - 5;
        let Err(QueryError::Answer(answer)) = Query::decode(&with(version, 1)) else { panic!("EDNS version 1") };
        let opt = answer.len() - 11;
        assert_eq!((word(&answer, 2).unwrap() & 15, answer[opt + 5]), (0, 1), "BADVERS");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Err(QueryError::Answer(answer)) = Query::decode(&bytes) {
                prop_assert_eq!(&answer[..2], &bytes[..2]);
            }
        }
    }
}
