//! Names and numbers of network interfaces.

use std::fmt;
use std::str::FromStr;

/// Names a network interface in a form that is safe in `/proc` paths, arguments and ioctls.
///
/// 1 to 15 bytes of printable ASCII without `/`, `:`, `%` and white space; not `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

/// The longest interface name in bytes (the kernel's `IFNAMSIZ` less the final zero byte).
const NAME_MAX: usize = 15;

/// Says why a text is not an interface name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IfNameError {
    /// The text is empty or too long.
    #[error("an interface name has 1 to {NAME_MAX} characters, this one has {len}")]
    Length {
        /// Length in bytes.
        len: usize,
    },
    /// The text holds a character that interface names must not have.
    #[error("an interface name is made of printable ASCII without `/`, `:`, `%` and blanks")]
    Character,
}

impl IfName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = IfNameError;

    fn from_str(text: &str) -> Result<Self, IfNameError> {
        let len = text.len();
        if len == 0 || len > NAME_MAX {
            return Err(IfNameError::Length { len });
        }
        let forbidden = |byte: u8| !byte.is_ascii_graphic() || matches!(byte, b'/' | b':' | b'%');
        if text.bytes().any(forbidden) || text == "." || text == ".." {
            return Err(IfNameError::Character);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Numbers a network interface for the kernel; never reused while the machine runs in practice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfIndex(pub u32);

impl fmt::Display for IfIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_accepted() {
        for name in ["warren0", "a", "eth0.100", "fifteen-bytes-x"] {
            assert_eq!(name.parse::<IfName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn names_that_escape_a_path_or_a_pattern_are_refused() {
        for name in ["a/b", ".", "..", "tun%d", "a b", "a:1", "ä", "a\n"] {
            assert_eq!(name.parse::<IfName>(), Err(IfNameError::Character), "{name:?}");
        }
        assert_eq!("".parse::<IfName>(), Err(IfNameError::Length { len: 0 }));
        assert_eq!("sixteen-bytes-xy".parse::<IfName>(), Err(IfNameError::Length { len: 16 }));
    }
}
