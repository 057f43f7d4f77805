//! Which IPv4 address stands for a peer towards the hosts of a site, inside this router.
//!
//! The kernel remembers connections of such an address for up to days (conntrack), whoever has it. So an address stands for
//! nobody until the kernel has been made to forget: [`Sites::poll_vacated`] says of which, and [`Sites::cleared`] that it has.

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use warren_filter::via::POOL;
use warren_wire::key::NodeKey;

/// Addresses that can stand for peers; the first and the last of the pool do not.
const PLACES: usize = 510;
/// The same for one peer, with whatever addresses and sites.
const PLACES_OF_PEER: usize = 170;
/// After this time without a packet an address may stand for another peer: about as long as NATs keep what is at rest.
const KEPT: Duration = Duration::from_secs(300);

/// Returns all addresses that can stand for peers.
pub(in crate::engine) fn stand_ins() -> impl Iterator<Item = Ipv4Addr> {
    (0..PLACES).filter_map(address)
}

fn address(place: usize) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from_bits(POOL.network().to_bits() + 1 + u32::try_from(place).ok()?))
}

fn place(address: Ipv4Addr) -> Option<usize> {
    usize::try_from(address.to_bits().checked_sub(POOL.network().to_bits() + 1)?).ok().filter(|place| *place < PLACES)
}

/// Is a peer that speaks to a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Visitor {
    /// An own address of the peer, or of a host behind it.
    pub(super) peer: Ipv6Addr,
    pub(super) site: u32,
}

/// Is an address that stands for a peer, or has stood for one.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// `None` since its address was vacated.
    visitor: Option<Visitor>,
    /// The peer by whom the visitor came.
    holder: NodeKey,
    /// When the last packet came, or the address was vacated.
    used: Instant,
}

/// Holds the addresses that are in use. Bounded.
#[derive(Debug, Default)]
pub(super) struct Sites {
    /// Those that have stood for a peer and are not free.
    places: HashMap<usize, Place>,
    by_visitor: HashMap<Visitor, usize>,
    /// Those of which the kernel remembers nothing, the one free for the longest first.
    free: VecDeque<usize>,
    vacated: Option<Ipv4Addr>,
    next_id: u16,
}

impl Sites {
    /// Returns the address that stands for a visitor, who came by the peer `holder`; `None` while none is free, or the peer has
    /// its part of them.
    pub(super) fn stand_in(&mut self, visitor: Visitor, holder: NodeKey, now: Instant) -> Option<Ipv4Addr> {
        let number = match self.by_visitor.get(&visitor) {
            Some(number) => *number,
            None => self.take_place(visitor, holder, now)?,
        };
        self.places.get_mut(&number)?.used = now;
        address(number)
    }

    fn take_place(&mut self, visitor: Visitor, holder: NodeKey, now: Instant) -> Option<usize> {
        let is_held = |place: &Place| place.visitor.is_some() && place.holder == holder;
        let is_full = self.places.values().filter(|place| is_held(place)).count() >= PLACES_OF_PEER;
        let number = if is_full { None } else { self.free.pop_front() };
        let Some(number) = number else {
            // Of a peer that has its part one of its own goes.
            self.vacate(now, |place| !is_full || is_held(place));
            return None;
        };
        self.places.insert(number, Place { visitor: Some(visitor), holder, used: now });
        self.by_visitor.insert(visitor, number);
        Some(number)
    }

    /// Takes the address that has been at rest for the longest from its visitor, if that is long enough. One at a time: else
    /// whoever knocks often would take all. One that the kernel did not forget in that time is asked for again.
    fn vacate(&mut self, now: Instant, may_go: impl Fn(&Place) -> bool) {
        let rests = |place: &Place| now.saturating_duration_since(place.used) >= KEPT;
        if self.places.values().any(|place| place.visitor.is_none() && !rests(place)) {
            return;
        }
        let able =
            self.places.iter_mut().filter(|(_, place)| rests(place) && (place.visitor.is_none() || may_go(place)));
        let Some((number, place)) = able.min_by_key(|(_, place)| place.used) else { return };
        if let Some(visitor) = place.visitor.take() {
            self.by_visitor.remove(&visitor);
        }
        place.used = now;
        self.vacated = address(*number);
    }

    /// Returns an address of which the kernel must forget all connections.
    pub(super) fn poll_vacated(&mut self) -> Option<Ipv4Addr> {
        self.vacated.take()
    }

    /// Says that the kernel remembers no connections of an address. It is free now, unless it stands for somebody.
    pub(super) fn cleared(&mut self, address: Ipv4Addr) {
        let Some(number) = place(address) else { return };
        if self.places.get(&number).is_some_and(|place| place.visitor.is_some()) || self.free.contains(&number) {
            return;
        }
        self.places.remove(&number);
        self.free.push_back(number);
    }

    /// Returns for whom an address stands.
    pub(super) fn visitor(&mut self, address: Ipv4Addr, now: Instant) -> Option<Visitor> {
        let found = self.places.get_mut(&place(address)?)?;
        let visitor = found.visitor?;
        found.used = now;
        Some(visitor)
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

    fn visitor(number: u32) -> Visitor {
        Visitor { peer: Ipv6Addr::from_bits(number.into()), site: number % 3 }
    }

    fn key(number: u8) -> NodeKey {
        NodeKey::from_bytes([number; 32])
    }

    /// Returns sites with all addresses free, and a moment.
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start of the virtual clock")]
    fn open() -> (Sites, Instant) {
        let mut sites = Sites::default();
        stand_ins().for_each(|address| sites.cleared(address));
        (sites, Instant::now())
    }

    #[test]
    fn addresses_stand_for_one_visitor_while_they_are_used() {
        let (mut sites, start) = open();
        let holder = |number: u32| key(u8::try_from(number / 100).unwrap());
        let first = sites.stand_in(visitor(0), key(0), start).unwrap();
        for number in 1..510 {
            let address = sites.stand_in(visitor(number), holder(number), start).unwrap();
            assert!(POOL.contains(&address) && address != first);
            assert_eq!(sites.visitor(address, start), Some(visitor(number)));
        }
        let other = visitor(900);
        assert_eq!(sites.stand_in(other, key(9), start), None, "all are in use");
        assert_eq!((sites.stand_in(visitor(0), key(0), start), sites.poll_vacated()), (Some(first), None));
        // The one at rest for the longest time gives way, but not before the kernel has forgotten it.
        let later = start + KEPT;
        for number in 1..510 {
            sites.stand_in(visitor(number), holder(number), later - Duration::from_secs(1)).unwrap();
        }
        assert_eq!(sites.stand_in(other, key(9), later), None);
        assert_eq!((sites.poll_vacated(), sites.poll_vacated()), (Some(first), None));
        assert_eq!(sites.visitor(first, later), None, "what the site still sends to the one before goes to nobody");
        assert_eq!(sites.stand_in(other, key(9), later), None, "it is not forgotten yet");
        assert_eq!(sites.poll_vacated(), None, "and nobody else has to go for that");
        sites.cleared(first);
        assert_eq!(sites.stand_in(other, key(9), later), Some(first));
        assert_eq!(sites.visitor(first, later), Some(other));
        assert_eq!(sites.stand_in(visitor(0), key(0), later), None);
        // One that is in use does not become free by whatever is said.
        sites.cleared(first);
        assert_eq!(sites.stand_in(visitor(901), key(9), later), None);
        for none in [[100, 115, 93, 255], [100, 115, 92, 0], [100, 115, 94, 1]] {
            sites.cleared(none.into());
            assert_eq!(sites.visitor(none.into(), later), None);
        }
    }

    /// A peer chooses its sources among the addresses of a whole network, and its destinations among all sites.
    #[test]
    fn no_peer_takes_more_than_its_part() {
        let (mut sites, start) = open();
        let taken = (0..1000).filter(|number| sites.stand_in(visitor(*number), key(1), start).is_some()).count();
        assert_eq!(taken, PLACES_OF_PEER);
        let other = sites.stand_in(visitor(5000), key(2), start).unwrap();
        // What it wants more it takes from itself, when that is at rest.
        let later = start + KEPT;
        assert_eq!(sites.stand_in(visitor(2000), key(1), later), None);
        let vacated = sites.poll_vacated().unwrap();
        assert_ne!(vacated, other);
        sites.cleared(vacated);
        assert!(sites.stand_in(visitor(2000), key(1), later).is_some());
        assert_eq!(sites.visitor(other, later), Some(visitor(5000)));
    }

    /// Without the kernel's word nobody gets an address after somebody else, however long it takes.
    #[test]
    fn an_address_that_is_not_forgotten_stays_empty_and_is_asked_for_again() {
        let (mut sites, start) = open();
        for number in 0..510 {
            sites.stand_in(visitor(number), key(u8::try_from(number / 100).unwrap()), start).unwrap();
        }
        let mut now = start;
        for _ in 0..3 {
            now += KEPT;
            assert_eq!(sites.stand_in(visitor(900), key(9), now), None);
            assert!(sites.poll_vacated().is_some());
        }
    }
}
