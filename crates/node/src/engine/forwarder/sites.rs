//! Which IPv4 address stands for a peer towards the hosts of a site, inside this router.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use warren_filter::via::POOL;

/// Addresses that can stand for peers; the first and the last of the pool do not.
const PLACES: usize = 510;
/// After this time without a packet an address may stand for another peer: about as long as NATs keep what is at rest.
const KEPT: Duration = Duration::from_secs(300);

/// Is a peer that speaks to a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Visitor {
    /// An own address of the peer, or of a host behind it.
    pub(super) peer: Ipv6Addr,
    pub(super) site: u32,
}

/// Holds the addresses that are in use. Bounded.
#[derive(Debug, Default)]
pub(super) struct Sites {
    places: Vec<(Visitor, Instant)>,
    by_visitor: HashMap<Visitor, usize>,
    next_id: u16,
}

impl Sites {
    /// Returns the address that stands for a visitor; `None` while all are in use.
    pub(super) fn stand_in(&mut self, visitor: Visitor, now: Instant) -> Option<Ipv4Addr> {
        let place = match self.by_visitor.get(&visitor) {
            Some(place) => *place,
            None => self.take_place(visitor, now)?,
        };
        self.places.get_mut(place)?.1 = now;
        Some(Ipv4Addr::from_bits(POOL.network().to_bits() + 1 + u32::try_from(place).ok()?))
    }

    fn take_place(&mut self, visitor: Visitor, now: Instant) -> Option<usize> {
        let place = if self.places.len() < PLACES {
            self.places.push((visitor, now));
            self.places.len() - 1
        } else {
            let oldest = self.places.iter().enumerate().min_by_key(|(_, (_, used))| *used);
            let (place, (old, _)) = oldest.filter(|(_, (_, used))| now.saturating_duration_since(*used) >= KEPT)?;
            self.by_visitor.remove(old);
            *self.places.get_mut(place)? = (visitor, now);
            place
        };
        self.by_visitor.insert(visitor, place);
        Some(place)
    }

    /// Returns for whom an address stands.
    pub(super) fn visitor(&mut self, address: Ipv4Addr, now: Instant) -> Option<Visitor> {
        let place = address.to_bits().checked_sub(POOL.network().to_bits() + 1)?;
        let (visitor, used) = self.places.get_mut(usize::try_from(place).ok()?)?;
        *used = now;
        Some(*visitor)
    }

    /// Returns the next identification of an IPv4 packet.
    pub(super) fn next_id(&mut self) -> u16 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start of the virtual clock")]
    fn addresses_stand_for_one_visitor_while_they_are_used() {
        let start = Instant::now();
        let visitor = |number: u32| Visitor { peer: Ipv6Addr::from_bits(number.into()), site: number % 3 };
        let mut sites = Sites::default();
        let first = sites.stand_in(visitor(0), start).unwrap();
        for number in 1..510 {
            let address = sites.stand_in(visitor(number), start).unwrap();
            assert!(POOL.contains(&address) && address != first);
            assert_eq!(sites.visitor(address, start), Some(visitor(number)));
        }
        let other = visitor(900);
        assert_eq!(sites.stand_in(other, start), None, "all are in use");
        assert_eq!(sites.stand_in(visitor(0), start), Some(first));
        // The one at rest for the longest time gives way.
        let later = start + KEPT;
        for number in 1..510 {
            sites.stand_in(visitor(number), later - Duration::from_secs(1)).unwrap();
        }
        assert_eq!(sites.stand_in(other, later), Some(first));
        assert_eq!(sites.visitor(first, later), Some(other));
        assert_eq!(sites.stand_in(visitor(0), later), None);
        assert_eq!(sites.visitor(Ipv4Addr::new(100, 115, 93, 255), later), None);
        assert_eq!(sites.visitor(Ipv4Addr::new(100, 115, 92, 0), later), None);
    }
}
