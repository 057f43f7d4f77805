//! Domain names. Source: RFC 1035, sections 3.1 and 4.1.4.

use std::borrow::Borrow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::query::HEADER_BYTES;

/// Longest name in its wire form, in bytes.
pub const MAX_NAME_BYTES: usize = 255;
/// Longest label, in bytes.
const MAX_LABEL_BYTES: usize = 63;

/// Is a domain name in lower case, in its wire form without compression.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

/// Says why a text is no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// A label is empty or too long.
    #[error("each part of a name has 1 to 63 characters")]
    Label,
    /// The whole is too long.
    #[error("a name has at most 253 characters")]
    TooLong,
    /// A character that no host name has.
    #[error("a name is made of letters, digits, hyphens and underscores")]
    Character,
}

impl Name {
    /// Reads a name from text, with or without the dot at its end; `.` is the root.
    ///
    /// # Errors
    /// Says what a name must look like.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let mut bytes = Vec::with_capacity(text.len() + 2);
        for label in text.split('.').filter(|_| !text.is_empty()) {
            let length = u8::try_from(label.len()).map_err(|_| NameError::Label)?;
            if label.is_empty() || label.len() > MAX_LABEL_BYTES {
                return Err(NameError::Label);
            }
            if !label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
                return Err(NameError::Character);
            }
            bytes.push(length);
            bytes.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
        }
        bytes.push(0);
        if bytes.len() > MAX_NAME_BYTES { Err(NameError::TooLong) } else { Ok(Self(bytes.into())) }
    }

    /// Reads the name at `at` of a message; returns it and where the next field begins. Pointers lead backwards only.
    pub(crate) fn read(message: &[u8], at: usize) -> Option<(Self, usize)> {
        let mut bytes = Vec::with_capacity(32);
        let next = Self::walk(message, at, |label| {
            bytes.extend(label.iter().map(|byte| byte.to_ascii_lowercase()));
        })?;
        Some((Self(bytes.into()), next))
    }

    /// Returns where the field after the name at `at` begins; the name is sound then.
    pub(crate) fn skip(message: &[u8], at: usize) -> Option<usize> {
        Self::walk(message, at, |_| {})
    }

    /// Gives each label with its length, the root too.
    fn walk(message: &[u8], mut at: usize, mut label: impl FnMut(&[u8])) -> Option<usize> {
        let mut next = None;
        // Where the present run of labels began: a pointer must lead before it, so that this ends.
        let mut start = at;
        let mut total = 0;
        loop {
            let length = *message.get(at)?;
            match length >> 6 {
                0 => {
                    let bytes = message.get(at..at + 1 + usize::from(length))?;
                    total += bytes.len();
                    if total > MAX_NAME_BYTES {
                        return None;
                    }
                    label(bytes);
                    at += bytes.len();
                    if length == 0 {
                        return Some(next.unwrap_or(at));
                    }
                }
                3 => {
                    let target = usize::from(length & 0x3f) << 8 | usize::from(*message.get(at + 1)?);
                    // A header holds no name.
                    if target >= start || target < HEADER_BYTES {
                        return None;
                    }
                    next = next.or(Some(at + 2));
                    start = target;
                    at = target;
                }
                _ => return None,
            }
        }
    }

    /// Returns the wire form.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns this name and its parents up to the root, in wire form, the longest first.
    pub(crate) fn ancestors(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = Some(&*self.0);
        std::iter::from_fn(move || {
            let present = rest?;
            let length = usize::from(*present.first()?);
            rest = if length == 0 { None } else { present.get(1 + length..) };
            Some(present)
        })
    }

    /// Returns the labels, the root not among them.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        self.ancestors().filter_map(|name| {
            let length = usize::from(*name.first()?);
            name.get(1..1 + length).filter(|label| !label.is_empty())
        })
    }

    /// Returns the name without its first label; `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        self.ancestors().nth(1).map(|bytes| Self(bytes.into()))
    }

    /// Tells whether this is `other` or below it.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.ancestors().any(|name| name == other.as_bytes())
    }

    /// Returns the name under which the name of an address is asked for. Source: RFC 1035, section 3.5; RFC 3596, 2.5.
    #[must_use]
    pub fn of_address(address: IpAddr) -> Self {
        let mut bytes = Vec::with_capacity(75);
        let mut push = |label: &str| {
            bytes.push(u8::try_from(label.len()).unwrap_or(0));
            bytes.extend(label.bytes());
        };
        match address {
            IpAddr::V4(address) => {
                address.octets().iter().rev().for_each(|octet| push(&octet.to_string()));
                push("in-addr");
            }
            IpAddr::V6(address) => {
                for octet in address.octets().iter().rev() {
                    push(&format!("{:x}", octet & 15));
                    push(&format!("{:x}", octet >> 4));
                }
                push("ip6");
            }
        }
        push("arpa");
        bytes.push(0);
        Self(bytes.into())
    }

    /// Returns the address whose name is asked for with this name; `None` if it is another name, or not a whole address.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        let mut labels: Vec<&[u8]> = self.labels().collect();
        if labels.pop()? != b"arpa" {
            return None;
        }
        match (labels.pop()?, labels.len()) {
            (b"in-addr", 4) => {
                let mut octets = [0_u8; 4];
                for (octet, label) in octets.iter_mut().zip(labels.iter().rev()) {
                    let text = std::str::from_utf8(label).ok()?;
                    *octet = text.parse().ok().filter(|number: &u8| number.to_string() == text)?;
                }
                Some(Ipv4Addr::from(octets).into())
            }
            (b"ip6", 32) => {
                let mut bits = 0_u128;
                for label in labels.iter().rev() {
                    let [digit] = label else { return None };
                    bits = bits << 4 | u128::from(char::from(*digit).to_digit(16)?);
                }
                Some(Ipv6Addr::from(bits).into())
            }
            _ => None,
        }
    }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for label in self.labels() {
            for byte in label {
                match byte {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(*byte))?,
                    33..=126 => write!(f, "{}", char::from(*byte))?,
                    other => write!(f, "\\{other:03}")?,
                }
            }
            f.write_str(".")?;
        }
        if self.0.len() == 1 { f.write_str(".") } else { Ok(()) }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_of_rfc_1035_are_read_through_their_pointers() {
        // Section 4.1.4: F.ISI.ARPA at 20, FOO.F.ISI.ARPA at 40, ARPA at 64, the root at 92.
        let mut message = vec![0xff; 93];
        message[20..32].copy_from_slice(b"\x01F\x03ISI\x04ARPA\x00");
        message[40..46].copy_from_slice(b"\x03FOO\xc0\x14");
        message[64..66].copy_from_slice(&[0xc0, 26]);
        message[92] = 0;
        let read = |at| Name::read(&message, at).map(|(name, next)| (name.to_string(), next));
        assert_eq!(read(20), Some(("f.isi.arpa.".into(), 32)));
        assert_eq!(read(40), Some(("foo.f.isi.arpa.".into(), 46)));
        assert_eq!(read(64), Some(("arpa.".into(), 66)));
        assert_eq!(read(92), Some((".".into(), 93)));
    }

    #[test]
    fn pointers_that_do_not_lead_back_are_refused() {
        for message in [&[0xc0, 0][..], &[0xc0, 2, 0], &[1, b'a', 0xc0, 0], &[0x40, 0], &[0x80, 0], &[5, b'a']] {
            assert_eq!(Name::read(message, 0), None, "{message:?}");
        }
    }

    #[test]
    fn what_is_no_host_name_is_not_taken_from_text() {
        assert_eq!(Name::parse("a..b"), Err(NameError::Label));
        assert_eq!(Name::parse(&"a".repeat(64)), Err(NameError::Label));
        assert_eq!(Name::parse(&"abc.".repeat(64)), Err(NameError::TooLong));
        assert_eq!(Name::parse("a b"), Err(NameError::Character));
        assert_eq!(Name::parse("Beta.Example.").unwrap(), Name::parse("beta.example").unwrap());
        assert_eq!(Name::parse(".").unwrap().to_string(), ".");
    }

    proptest! {
        #[test]
        fn names_round_trip(text in "([a-z0-9_-]{1,20}\\.){1,8}") {
            let name = Name::parse(&text).unwrap();
            prop_assert_eq!(name.to_string(), text);
            prop_assert_eq!(Name::read(name.as_bytes(), 0), Some((name.clone(), name.as_bytes().len())));
            prop_assert!(name.is_within(&name.parent().unwrap()) && !name.parent().unwrap().is_within(&name));
        }

        #[test]
        fn reverse_names_round_trip(address: IpAddr) {
            let name = Name::of_address(address);
            prop_assert_eq!(name.address(), Some(address));
            prop_assert_eq!(Name::parse(&name.to_string()), Ok(name.clone()));
            prop_assert_eq!(name.parent().unwrap().address(), None);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0_usize..300) {
            if let Some((name, next)) = Name::read(&bytes, at) {
                prop_assert!(name.as_bytes().len() <= MAX_NAME_BYTES && next <= bytes.len());
                prop_assert_eq!(Name::skip(&bytes, at), Some(next));
            }
        }
    }
}
