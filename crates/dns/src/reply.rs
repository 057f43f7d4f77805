//! What an upstream resolver says.

use crate::name::Name;
use crate::query::{
    Class, FLAG_AA, FLAG_AD, FLAG_QR, FLAG_TC, HEADER_BYTES, Kind, NXDOMAIN, OPCODE, OPT, Query, Record, long, word,
};
use crate::write::{Writer, finish};

/// Records of one message that are looked at; a message with more is refused.
const MAX_RECORDS: u32 = 4096;

/// Is an upstream's answer, apart from what belongs to the one exchange (id, question, EDNS).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// AA, TC and AD as the upstream set them.
    flags: u16,
    code: u16,
    /// Everything after the question but the OPT record. Pointers in it hold behind every spelling of the question,
    /// which all have the same length.
    body: Vec<u8>,
    counts: [u16; 3],
    /// Where in `body` times to live stand.
    ttls: Vec<u16>,
    /// How long it holds, in seconds; `None`: it says nothing that may be remembered.
    lifetime: Option<u32>,
}

/// Says why a message is no reply to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplyError {
    /// It answers something else, or nothing: whoever sent it may have guessed.
    #[error("not a reply to this question")]
    Foreign,
    /// It answers the question, but cannot be read.
    #[error("a malformed reply")]
    Malformed,
}

impl Reply {
    /// Reads a message as the reply to `query` as it was sent with `id`.
    ///
    /// # Errors
    /// [`ReplyError::Foreign`] must be ignored, since anybody can send such a thing.
    pub fn decode(message: &[u8], query: &Query, id: u16) -> Result<Self, ReplyError> {
        let flags = word(message, 2).ok_or(ReplyError::Foreign)?;
        if word(message, 0) != Some(id) || flags & FLAG_QR == 0 || flags & OPCODE != 0 {
            return Err(ReplyError::Foreign);
        }
        let mut code = flags & 15;
        // Some servers repeat no question in a failure.
        if word(message, 4) == Some(0) && message.len() == HEADER_BYTES && code != 0 && code != NXDOMAIN {
            return Ok(Self { flags: 0, code, body: vec![], counts: [0; 3], ttls: vec![], lifetime: None });
        }
        let body = HEADER_BYTES + query.question.len();
        let question = message.get(HEADER_BYTES..body).ok_or(ReplyError::Foreign)?;
        if word(message, 4) != Some(1) || !question.eq_ignore_ascii_case(&query.question) {
            return Err(ReplyError::Foreign);
        }
        if flags & FLAG_TC != 0 {
            // What is there may be cut anywhere, and is not used.
            return Ok(Self { flags: FLAG_TC, code, body: vec![], counts: [0; 3], ttls: vec![], lifetime: None });
        }
        let mut reader = Reader { message, at: body, end: body, ttls: vec![], lifetime: Lifetime::default() };
        let mut counts = [0; 3];
        let claimed = [6, 8, 10].map(|at| word(message, at).unwrap_or(0));
        if claimed.iter().map(|count| u32::from(*count)).sum::<u32>() > MAX_RECORDS {
            return Err(ReplyError::Malformed);
        }
        for (section, (count, claimed)) in counts.iter_mut().zip(claimed).enumerate() {
            for _ in 0..claimed {
                match reader.read(section).ok_or(ReplyError::Malformed)? {
                    Found::Record => *count += 1,
                    Found::Edns { code: upper } => code |= upper << 4,
                    Found::AfterEdns => {}
                }
            }
        }
        let lifetime = reader.lifetime.of(code, counts[0]);
        let ttls = reader.ttls.iter().filter_map(|at| u16::try_from(at - body).ok()).collect();
        let body = message.get(body..reader.end).unwrap_or_default().to_vec();
        Ok(Self { flags: flags & (FLAG_AA | FLAG_AD), code, body, counts, ttls, lifetime })
    }

    /// Tells whether the whole reply must be fetched over TCP.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.flags & FLAG_TC != 0
    }

    /// Tells whether the upstream answered: that there is such a name, or that there is none. Otherwise another may know more.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        self.code == 0 || self.code == NXDOMAIN
    }

    /// Returns how long it may be remembered, in seconds as the upstream says; `None` if not at all.
    #[must_use]
    pub fn lifetime(&self) -> Option<u32> {
        self.lifetime
    }

    /// Tells whether it holds records of the name.
    pub(crate) fn has_answers(&self) -> bool {
        self.counts[0] > 0 && self.code == 0
    }

    /// Returns about how much memory it takes, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.body.len() + 2 * self.ttls.len() + std::mem::size_of::<Self>()
    }

    /// Writes the reply for an asker of the same question, with times to live changed, in at most `limit` bytes.
    pub(crate) fn write(&self, query: &Query, limit: usize, ttl: impl Fn(u32) -> u32) -> Vec<u8> {
        let mut flags = self.flags;
        if !query.dnssec() && query.flags & FLAG_AD == 0 {
            flags &= !FLAG_AD;
        }
        // The upper bits belong to the exchange with the upstream unless the asker can read them.
        let mut message = Writer::answer(query, self.code, flags).into_message();
        let body = message.len();
        message.extend(&self.body);
        for at in &self.ttls {
            let at = body + usize::from(*at);
            let Some(before) = long(&message, at) else { continue };
            if let Some(place) = message.get_mut(at..at + 4) {
                place.copy_from_slice(&ttl(before).to_be_bytes());
            }
        }
        let message = finish(message, query, self.code, self.counts);
        if message.len() > limit { crate::write::truncated(query, self.code) } else { message }
    }
}

/// Says what a record was.
enum Found {
    Record,
    Edns { code: u16 },
    AfterEdns,
}

struct Reader<'m> {
    message: &'m [u8],
    at: usize,
    /// End of what is kept: the OPT record and what follows it are not. Only additional records can follow it, without which
    /// an answer is whole, and without it they would not stand where pointers say.
    end: usize,
    ttls: Vec<usize>,
    lifetime: Lifetime,
}

impl Reader<'_> {
    fn read(&mut self, section: usize) -> Option<Found> {
        let record = Record::read(self.message, self.at)?;
        let is_first = self.end == self.at;
        self.at = record.end;
        if record.kind == OPT {
            // Elsewhere it would be in the way of what must be kept.
            return (section == 2).then(|| Found::Edns { code: u16::try_from(record.ttl >> 24).unwrap_or(0) });
        }
        if !is_first {
            return Some(Found::AfterEdns);
        }
        self.end = record.end;
        self.ttls.push(record.ttl_at);
        if section == 0 {
            self.lifetime.answers = Some(self.lifetime.answers.map_or(record.ttl, |least| least.min(record.ttl)));
        } else if section == 1 && record.kind == Kind::SOA.0 && record.class == Class::IN.0 {
            let minimum = soa_minimum(self.message, &record)?;
            self.lifetime.start = Some(minimum.min(record.ttl));
        }
        Some(Found::Record)
    }
}

/// Reads the last field of a SOA record.
fn soa_minimum(message: &[u8], record: &Record) -> Option<u32> {
    let at = Name::skip(message, Name::skip(message, record.data)?)?;
    if at + 20 != record.end {
        return None;
    }
    long(message, at + 16)
}

/// What the records say of how long they hold.
#[derive(Debug, Default)]
struct Lifetime {
    answers: Option<u32>,
    /// What the zone's SOA says of "there is none".
    start: Option<u32>,
}

impl Lifetime {
    /// Source: RFC 2308, section 5: without SOA, "there is none" is not remembered.
    fn of(self, code: u16, answers: u16) -> Option<u32> {
        let least = match (self.answers, self.start) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        match code {
            0 if answers > 0 => least,
            0 | NXDOMAIN => self.start.and(least),
            _ => None,
        }
        // The top bit set means zero. Source: RFC 2181, section 8.
        .map(|seconds| if seconds > i32::MAX.unsigned_abs() { 0 } else { seconds })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Makes a query for `name`.
    pub(crate) fn query(name: &str, kind: Kind, edns: bool) -> Query {
        let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
        message.extend(Name::parse(name).unwrap().as_bytes());
        message.extend(kind.0.to_be_bytes());
        message.extend([0, 1]);
        if edns {
            message.extend(b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00");
        }
        Query::decode(&message).unwrap()
    }

    /// Makes a reply with one address for each time to live, or with an SOA of this minimum.
    pub(crate) fn reply(query: &Query, id: u16, code: u16, ttls: &[u32], soa: Option<u32>) -> Vec<u8> {
        let count = u8::try_from(ttls.len()).unwrap();
        let mut message = id.to_be_bytes().to_vec();
        message.extend([0x81, 0x80 | u8::try_from(code).unwrap(), 0, 1, 0, count, 0, u8::from(soa.is_some()), 0, 1]);
        message.extend(&query.question);
        for ttl in ttls {
            message.extend(b"\xc0\x0c\x00\x01\x00\x01");
            message.extend(ttl.to_be_bytes());
            message.extend([0, 4, 192, 0, 2, 1]);
        }
        if let Some(minimum) = soa {
            message.extend(b"\x00\x00\x06\x00\x01\x00\x00\x0e\x10\x00\x16\x00\x00");
            message.extend([0; 16]);
            message.extend(minimum.to_be_bytes());
        }
        message.extend(b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00");
        message
    }

    #[test]
    fn replies_reach_askers_with_and_without_edns() {
        let asked = query("www.example.com", Kind::A, true);
        let read = Reply::decode(&reply(&asked, 7, 0, &[300, 60], None), &asked, 7).unwrap();
        assert_eq!((read.lifetime(), read.is_answer(), read.is_truncated()), (Some(60), true, false));
        let plain = query("WWW.Example.com", Kind::A, false);
        let answer = read.write(&plain, 512, |ttl| ttl - 10);
        let mut expected = b"\x12\x34\x81\x80\x00\x01\x00\x02\x00\x00\x00\x00".to_vec();
        expected.extend(&plain.question);
        expected.extend(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x01\x22\x00\x04\xc0\x00\x02\x01");
        expected.extend(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x32\x00\x04\xc0\x00\x02\x01");
        assert_eq!(answer, expected);
        let edns = read.write(&asked, 512, |ttl| ttl);
        assert_eq!((edns.len(), edns[11]), (expected.len() + 11, 1));
        let short = read.write(&plain, 60, |ttl| ttl);
        assert_eq!((short.len(), short[2] & 2, &short[6..12]), (12 + plain.question.len(), 2, &[0; 6][..]));
    }

    #[test]
    fn how_long_there_is_none_is_what_the_start_of_the_zone_says() {
        let asked = query("none.example.com", Kind::A, true);
        let lifetime =
            |code, ttls: &[u32], soa| Reply::decode(&reply(&asked, 7, code, ttls, soa), &asked, 7).unwrap().lifetime();
        assert_eq!(lifetime(3, &[], Some(900)), Some(900));
        assert_eq!(lifetime(3, &[], Some(9000)), Some(3600), "its own time to live");
        assert_eq!(lifetime(0, &[], Some(900)), Some(900));
        assert_eq!(lifetime(3, &[], None), None);
        assert_eq!(lifetime(0, &[], None), None);
        assert_eq!(lifetime(2, &[], Some(900)), None);
        assert_eq!(lifetime(0, &[u32::MAX], None), Some(0));
    }

    #[test]
    fn what_answers_something_else_is_foreign() {
        let asked = query("www.example.com", Kind::A, true);
        let good = reply(&asked, 7, 0, &[300], None);
        let foreign = |message: &[u8]| Reply::decode(message, &asked, 7) == Err(ReplyError::Foreign);
        assert!(foreign(&reply(&asked, 8, 0, &[300], None)));
        assert!(foreign(&reply(&query("www.example.org", Kind::A, true), 7, 0, &[300], None)));
        assert!(foreign(&reply(&query("www.example.com", Kind::AAAA, true), 7, 0, &[300], None)));
        assert!(foreign(&asked.forwarded(7)), "a query");
        assert!(foreign(&good[..20]));
        assert_eq!(Reply::decode(&good[..good.len() - 1], &asked, 7), Err(ReplyError::Malformed));
    }

    proptest! {
        /// Whatever stands behind the question, what is passed on can be read again and says the same.
        #[test]
        fn what_is_read_is_written_soundly(
            tail in proptest::collection::vec(any::<u8>(), 0..120),
            counts in proptest::collection::vec(0_u8..3, 3),
            edns: bool,
        ) {
            let asked = query("a.example", Kind::A, edns);
            let mut message = vec![0, 7, 0x81, 0x80, 0, 1, 0, counts[0], 0, counts[1], 0, counts[2]];
            message.extend(&asked.question);
            message.extend(tail);
            if let Ok(read) = Reply::decode(&message, &asked, 7) {
                let written = read.write(&asked, 65_535, |ttl| ttl);
                let again = Reply::decode(&written, &asked, 0x1234);
                prop_assert_eq!(again, Ok(read));
            }
        }
    }
}
