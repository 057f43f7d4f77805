//! Questions of our own, for the addresses of a name. Source: RFC 1035, section 4.1.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::name::Name;
use crate::query::{Class, FLAG_QR, FLAG_RD, FLAG_TC, HEADER_BYTES, Kind, NXDOMAIN, OPCODE, Record, word};

/// Most addresses that are taken from one answer.
const MAX_ADDRESSES: usize = 32;
/// Most records of an answer that are looked at.
const MAX_RECORDS: u16 = 256;

/// Is a question for the addresses of a name in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    id: u16,
    kind: Kind,
    message: Vec<u8>,
}

impl Question {
    /// Asks for addresses of `kind`, [`Kind::A`] or [`Kind::AAAA`]. `id` must be random: it is what an answer is known by.
    #[must_use]
    pub fn new(name: &Name, kind: Kind, id: u16) -> Self {
        let mut message = Vec::with_capacity(HEADER_BYTES + name.as_bytes().len() + 4);
        message.extend(id.to_be_bytes());
        message.extend(FLAG_RD.to_be_bytes());
        message.extend([0, 1, 0, 0, 0, 0, 0, 0]);
        message.extend(name.as_bytes());
        message.extend(kind.0.to_be_bytes());
        message.extend(Class::IN.0.to_be_bytes());
        Self { id, kind, message }
    }

    /// Returns the message to send.
    #[must_use]
    pub fn message(&self) -> &[u8] {
        &self.message
    }

    /// Reads an answer of a resolver that was asked: the addresses, none if there is no such name; `None` if the message answers
    /// something else, or says that the resolver does not know.
    #[must_use]
    pub fn addresses(&self, message: &[u8]) -> Option<Vec<IpAddr>> {
        let flags = word(message, 2)?;
        let question = self.message.get(HEADER_BYTES..)?;
        let body = HEADER_BYTES + question.len();
        let same = word(message, 0)? == self.id
            && flags & FLAG_QR != 0
            && flags & OPCODE == 0
            && word(message, 4)? == 1
            && message.get(HEADER_BYTES..body)?.eq_ignore_ascii_case(question);
        let code = flags & 15;
        if !same || (code != 0 && code != NXDOMAIN) {
            return None;
        }
        let mut found = Vec::new();
        let mut at = body;
        // The names of the records are not looked at: between the question and its addresses may be aliases.
        for _ in 0..word(message, 6)?.min(MAX_RECORDS) {
            let Some(record) = Record::read(message, at) else {
                // What did not fit into the message was cut off; a bit of it is enough.
                if flags & FLAG_TC != 0 && !found.is_empty() { break } else { return None }
            };
            at = record.end;
            if record.kind == self.kind.0 && record.class == Class::IN.0 && found.len() < MAX_ADDRESSES {
                found.push(address(self.kind, message.get(record.data..record.end)?)?);
            }
        }
        // Cut off before the first: somebody else may know.
        (flags & FLAG_TC == 0 || !found.is_empty()).then_some(found)
    }
}

fn address(kind: Kind, data: &[u8]) -> Option<IpAddr> {
    if kind == Kind::A {
        return <[u8; 4]>::try_from(data).ok().map(|four| Ipv4Addr::from(four).into());
    }
    <[u8; 16]>::try_from(data).ok().map(|six| Ipv6Addr::from(six).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn question() -> Question {
        Question::new(&Name::parse("relay.example").unwrap(), Kind::A, 0x1234)
    }

    /// An answer with an alias and two addresses behind it, written by hand.
    fn answer() -> Vec<u8> {
        let mut message = question().message().to_vec();
        message[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 3]);
        message.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 4, 1, b'a', 0xc0, 18]);
        for last in [7, 8] {
            message.extend([0xc0, 43, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, last]);
        }
        message
    }

    #[test]
    fn addresses_behind_an_alias_are_found() {
        let query = crate::query::Query::decode(question().message()).unwrap();
        assert_eq!((query.name().to_string(), query.kind()), ("relay.example.".to_owned(), Kind::A));
        let found: Vec<IpAddr> = vec![[192, 0, 2, 7].into(), [192, 0, 2, 8].into()];
        assert_eq!(question().addresses(&answer()), Some(found));
    }

    #[test]
    fn answers_to_something_else_are_none() {
        let change = |at: usize, byte: u8| {
            let mut message = answer();
            message[at] = byte;
            question().addresses(&message)
        };
        assert_eq!(change(1, 0x35), None, "another number");
        assert_eq!(change(2, 0x01), None, "a question");
        assert_eq!(change(13, b'x'), None, "another name");
        assert_eq!(change(3, 0x82), None, "a failure of the server");
        assert!(change(13, b'R').is_some(), "letters of another case");
        let mut none = question().message().to_vec();
        none[2..4].copy_from_slice(&[0x81, 0x83]);
        assert_eq!(question().addresses(&none), Some(vec![]), "no such name");
        let mut cut = answer();
        cut[2] |= 2;
        cut.truncate(cut.len() - 3);
        assert_eq!(question().addresses(&cut).unwrap().len(), 1, "cut off in the last record");
    }

    proptest! {
        #[test]
        fn no_message_breaks_it(mut message in proptest::collection::vec(any::<u8>(), 0..128), keep in 0usize..80) {
            let whole = answer();
            let keep = keep.min(whole.len());
            message.splice(..keep.min(message.len()), whole[..keep].iter().copied());
            let found = question().addresses(&message);
            prop_assert!(found.is_none_or(|found| found.len() <= MAX_ADDRESSES && found.iter().all(IpAddr::is_ipv4)));
        }
    }
}
