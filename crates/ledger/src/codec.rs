//! Numbers and addresses in bytes: one form each, and nothing beyond the end.

use std::net::{IpAddr, SocketAddr};

/// Says why bytes are not a record or a batch of this format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes end within a field.
    #[error("cut short within {field}")]
    Truncated {
        /// What should be there.
        field: &'static str,
    },
    /// A field has a value that stands for nothing.
    #[error("{field} cannot be {value}")]
    Value {
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// A number is not in its shortest form, or larger than its field can be.
    #[error("{field} is not a number in its shortest form, or too large")]
    Number {
        /// Which field.
        field: &'static str,
    },
    /// Bytes follow the end.
    #[error("{count} bytes too many")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
}

/// Reads fields from the front of bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(DecodeError::Truncated { field })?;
        self.0 = rest;
        Ok(*bytes)
    }

    pub(crate) fn slice(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(DecodeError::Truncated { field })?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(crate) fn byte(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        let [byte] = self.array(field)?;
        Ok(byte)
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_be_bytes)
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_be_bytes)
    }

    /// Reads a number in groups of 7 bits, lowest first, all but the last with the top bit (LEB128).
    pub(crate) fn varint(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(field)?;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte holds one bit.
            if shift == 63 && bits > 1 {
                return Err(DecodeError::Number { field });
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                let is_shortest = byte != 0 || shift == 0;
                return if is_shortest { Ok(value) } else { Err(DecodeError::Number { field }) };
            }
        }
        Err(DecodeError::Number { field })
    }

    /// Reads a number that must fit the type.
    pub(crate) fn small<T: TryFrom<u64>>(&mut self, field: &'static str) -> Result<T, DecodeError> {
        T::try_from(self.varint(field)?).map_err(|_| DecodeError::Number { field })
    }

    pub(crate) fn ip(&mut self, is_v6: bool, field: &'static str) -> Result<IpAddr, DecodeError> {
        if is_v6 { self.array::<16>(field).map(IpAddr::from) } else { self.array::<4>(field).map(IpAddr::from) }
    }

    /// Reads an address with port, behind a byte that says the family.
    pub(crate) fn socket(&mut self, field: &'static str) -> Result<SocketAddr, DecodeError> {
        let is_v6 = match self.byte(field)? {
            4 => false,
            6 => true,
            other => return Err(DecodeError::Value { field, value: other.into() }),
        };
        Ok(SocketAddr::new(self.ip(is_v6, field)?, self.u16(field)?))
    }

    /// # Errors
    /// [`DecodeError::TrailingBytes`] if there is more.
    pub(crate) const fn end(&self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::TrailingBytes { count: self.0.len() }) }
    }
}

/// Writes what [`Reader::varint`] reads.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        let [low, ..] = value.to_le_bytes();
        out.push(low | 0x80);
        value >>= 7;
    }
    let [low, ..] = value.to_le_bytes();
    out.push(low);
}

pub(crate) fn put_ip(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => out.extend(ip.octets()),
        IpAddr::V6(ip) => out.extend(ip.octets()),
    }
}

/// Writes what [`Reader::socket`] reads.
pub(crate) fn put_socket(out: &mut Vec<u8>, address: SocketAddr) {
    out.push(if address.is_ipv4() { 4 } else { 6 });
    put_ip(out, address.ip());
    out.extend(address.port().to_be_bytes());
}

/// Maps small differences of either sign to small numbers.
pub(crate) const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

/// Undoes [`zigzag`].
pub(crate) const fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_number_has_one_form() {
        let read = |bytes: &[u8]| Reader(bytes).varint("n");
        let wrong = Err(DecodeError::Number { field: "n" });
        assert_eq!(read(&[0x80, 0x00]), wrong, "zero in two bytes");
        assert_eq!(read(&[0xff, 0x00]), wrong, "127 in two bytes");
        assert_eq!(read(&[0xff; 11]), wrong, "no end");
        let most = [[0xff; 9].as_slice(), &[0x01]].concat();
        assert_eq!(read(&most), Ok(u64::MAX));
        let beyond = [[0xff; 9].as_slice(), &[0x02]].concat();
        assert_eq!(read(&beyond), wrong, "2^64");
        assert_eq!(read(&[0x80]), Err(DecodeError::Truncated { field: "n" }));
    }

    proptest! {
        #[test]
        fn numbers_come_back(value in any::<u64>(), shift in 0_u32..64, signed in any::<i64>()) {
            let mut out = Vec::new();
            put_varint(&mut out, value >> shift);
            let mut reader = Reader(&out);
            prop_assert_eq!(reader.varint("n"), Ok(value >> shift));
            prop_assert!(reader.is_empty());
            prop_assert_eq!(unzigzag(zigzag(signed)), signed);
        }
    }
}
