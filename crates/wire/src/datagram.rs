//! What a UDP datagram on a node's one socket per family is.
//!
//! The classes cannot be confused: WireGuard has zeros in bytes 1 to 3, disco has 0x53 and STUN 0x01 in byte 1.
//! Source: Tailscale `wgengine/magicsock/magicsock.go`, `packetLooksLike`.

use crate::geneve::{Header, Protocol};
use crate::{disco, stun};

/// Kind of a datagram, told by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A STUN binding message.
    Stun,
    /// A disco message.
    Disco,
    /// A disco message behind a Geneve header, from or for a peer relay.
    GeneveDisco,
    /// A WireGuard message behind a Geneve header.
    GeneveWireGuard,
    /// Anything else: WireGuard or nothing.
    WireGuard,
}

/// Classifies a datagram.
#[must_use]
pub fn classify(bytes: &[u8]) -> Class {
    if stun::is_stun(bytes) {
        return Class::Stun;
    }
    match Header::decode(bytes) {
        Some((Header { protocol: Protocol::Disco, .. }, rest)) if disco::peek(rest).is_some() => Class::GeneveDisco,
        Some((Header { protocol: Protocol::WireGuard, .. }, _)) => Class::GeneveWireGuard,
        Some(_) => Class::WireGuard,
        None if disco::peek(bytes).is_some() => Class::Disco,
        None => Class::WireGuard,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disco::MAGIC;

    fn disco() -> Vec<u8> {
        [MAGIC.as_slice(), &[7; 60]].concat()
    }

    #[test]
    fn classes_are_told_apart() {
        assert_eq!(classify(&stun::request(&[1; 12])), Class::Stun);
        assert_eq!(classify(&stun::response(&[1; 12], ([1, 2, 3, 4], 5).into())), Class::Stun);
        assert_eq!(classify(&disco()), Class::Disco);
        let geneve = |protocol| [0, 0x80, 0x7A, protocol, 0, 0, 9, 0];
        assert_eq!(classify(&[geneve(0x11).as_slice(), &disco()].concat()), Class::GeneveDisco);
        assert_eq!(classify(&[geneve(0x11).as_slice(), &[1; 60]].concat()), Class::WireGuard);
        assert_eq!(classify(&[geneve(0x12).as_slice(), &[4, 0, 0, 0]].concat()), Class::GeneveWireGuard);
        for first in 1..=4 {
            assert_eq!(classify(&[&[first, 0, 0, 0][..], &[9; 144]].concat()), Class::WireGuard);
        }
        assert_eq!(classify(&[]), Class::WireGuard);
    }
}
