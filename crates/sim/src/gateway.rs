//! The port mapping service of a router: NAT-PMP (RFC 6886) and PCP (RFC 6887), as far as a node asks.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use rand::rngs::StdRng;

use crate::nat::Nat;

/// Port of the service.
pub const PORT: u16 = 5351;

/// Answers a request of an inside host; `None` if it is none, or nothing to answer.
pub fn answer(
    nat: &mut Nat,
    from: SocketAddr,
    request: &[u8],
    since: Instant,
    now: Instant,
    rng: &mut StdRng,
) -> Option<Vec<u8>> {
    let epoch = u32::try_from((now - since).as_secs()).unwrap_or(u32::MAX).to_be_bytes();
    let number = |at: usize| Some(u16::from_be_bytes(*request.get(at..)?.first_chunk()?));
    match request {
        [0, 0, ..] => Some([&[0, 0x80, 0, 0], &epoch[..], &nat.outer.octets()].concat()),
        [0, 1, ..] => {
            let (inside, lifetime) = (number(4)?, request.get(8..12)?);
            let port = map(nat, from, inside, number(6)?, lifetime, now, rng);
            Some([&[0, 0x81, 0, 0], &epoch[..], &inside.to_be_bytes(), &port.to_be_bytes(), lifetime].concat())
        }
        // Announcement.
        [2, 0, ..] => Some([&[2, 0x80, 0, 0, 0, 0, 0, 0], &epoch[..], &[0; 12]].concat()),
        [2, 1, ..] => {
            let lifetime = request.get(4..8)?;
            let port = map(nat, from, number(40)?, number(42)?, lifetime, now, rng);
            let outer = nat.outer.to_ipv6_mapped().octets();
            let (kept, port) = (request.get(24..42)?, port.to_be_bytes());
            Some([&[2, 0x81, 0, 0], lifetime, &epoch, &[0; 12], kept, &port, &outer].concat())
        }
        _ => None,
    }
}

fn map(
    nat: &mut Nat,
    from: SocketAddr,
    inside: u16,
    suggested: u16,
    lifetime: &[u8],
    now: Instant,
    rng: &mut StdRng,
) -> u16 {
    let inside = SocketAddr::new(from.ip(), inside);
    if lifetime == [0; 4] {
        nat.stop_forwarding(inside);
        return 0;
    }
    nat.forward(inside, suggested, now, rng).unwrap_or_default()
}

/// Tells whether an address can be reached from the whole Internet.
#[must_use]
pub fn is_public(ip: Ipv4Addr) -> bool {
    !ip.is_private() && !matches!(ip.octets(), [100, 64..=127, ..])
}
