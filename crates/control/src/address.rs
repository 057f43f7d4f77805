//! Which IPv4 addresses nodes get.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// First address of 100.64.0.0/10 (RFC 6598).
const FIRST: u32 = 0x6440_0000;
/// Number of addresses in it.
const COUNT: u32 = 1 << 22;

/// Ranges that mean something else to clients: first address and last.
///
/// 100.100.0.0/24 and 100.100.100.0/24 hold services of the client itself (its resolver is 100.100.100.100);
/// 100.115.92.0/23 is used inside ChromeOS.
const SKIPPED: [(u32, u32); 3] = [(0x6464_0000, 0x6464_00ff), (0x6464_6400, 0x6464_64ff), (0x6473_5c00, 0x6473_5dff)];

/// Finds the next free address from offset `cursor` on, and the offset to go on from the next time.
///
/// The search only goes forward and starts over after the whole range, so that an address that became free is not
/// given again for a long time. `None` if all are taken.
pub(crate) fn next(cursor: u32, taken: &HashSet<Ipv4Addr>) -> Option<(Ipv4Addr, u32)> {
    let mut offset = cursor % COUNT;
    for _ in 0..COUNT {
        let number = FIRST + offset;
        let following = (offset + 1) % COUNT;
        if let Some((_, last)) = SKIPPED.iter().find(|(first, last)| (*first..=*last).contains(&number)) {
            offset = (last + 1 - FIRST) % COUNT;
            continue;
        }
        let address = Ipv4Addr::from_bits(number);
        // The first address names the range itself.
        if offset != 0 && !taken.contains(&address) {
            return Some((address, following));
        }
        offset = following;
    }
    None
}

/// Finds the first free address within these prefixes. `None` if all are taken, or no prefix lies in the range.
pub(crate) fn within(pools: &[Ipv4Net], taken: &HashSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let usable = |number: &u32| {
        number.wrapping_sub(FIRST) < COUNT
            && !SKIPPED.iter().any(|(first, last)| (*first..=*last).contains(number))
            && !taken.contains(&Ipv4Addr::from_bits(*number))
    };
    let clip = |pool: &Ipv4Net| {
        let (first, last) = (pool.network().to_bits(), pool.broadcast().to_bits());
        // The first address names the range itself.
        first.max(FIRST + 1)..=last.min(FIRST + COUNT - 1)
    };
    pools.iter().flat_map(clip).find(usable).map(Ipv4Addr::from_bits)
}

/// Tells whether a node may have an address.
pub(crate) fn is_usable(address: Ipv4Addr) -> bool {
    let number = address.to_bits();
    (FIRST + 1..FIRST + COUNT).contains(&number)
        && !SKIPPED.iter().any(|(first, last)| (*first..=*last).contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(a: u8, b: u8, c: u8, d: u8) -> u32 {
        Ipv4Addr::new(a, b, c, d).to_bits() - FIRST
    }

    #[test]
    fn first_address_is_the_second_of_the_range() {
        let (address, cursor) = next(0, &HashSet::new()).unwrap();
        assert_eq!((address, cursor), (Ipv4Addr::new(100, 64, 0, 1), 2));
    }

    #[test]
    fn taken_addresses_are_passed_over() {
        let taken = HashSet::from([Ipv4Addr::new(100, 64, 0, 1), Ipv4Addr::new(100, 64, 0, 2)]);
        assert_eq!(next(0, &taken).unwrap().0, Ipv4Addr::new(100, 64, 0, 3));
    }

    #[test]
    fn service_ranges_are_skipped_whole() {
        let free = HashSet::new();
        for (cursor, expected) in [
            (offset(100, 100, 0, 0), Ipv4Addr::new(100, 100, 1, 0)),
            (offset(100, 100, 100, 77), Ipv4Addr::new(100, 100, 101, 0)),
            (offset(100, 115, 92, 0), Ipv4Addr::new(100, 115, 94, 0)),
        ] {
            assert_eq!(next(cursor, &free).unwrap().0, expected);
        }
    }

    #[test]
    fn last_bytes_0_and_255_are_ordinary() {
        let (address, cursor) = next(offset(100, 64, 0, 255), &HashSet::new()).unwrap();
        assert_eq!(address, Ipv4Addr::new(100, 64, 0, 255));
        assert_eq!(next(cursor, &HashSet::new()).unwrap().0, Ipv4Addr::new(100, 64, 1, 0));
    }

    #[test]
    fn pools_are_kept_to() {
        let pools = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let first = |texts: &[&str], taken: &[[u8; 4]]| {
            within(&pools(texts), &taken.iter().copied().map(Ipv4Addr::from).collect())
        };
        assert_eq!(first(&["100.80.0.0/30"], &[]), Some([100, 80, 0, 0].into()));
        assert_eq!(
            first(&["100.80.0.0/31", "100.90.0.0/31"], &[[100, 80, 0, 0], [100, 80, 0, 1]]),
            Some([100, 90, 0, 0].into())
        );
        assert_eq!(first(&["100.64.0.0/10"], &[]), Some([100, 64, 0, 1].into()));
        assert_eq!(first(&["100.100.0.0/23"], &[]), Some([100, 100, 1, 0].into()));
        for none in [&["100.80.0.0/32"][..], &["10.0.0.0/8"], &["100.100.100.0/24"], &[]] {
            assert_eq!(first(none, &[[100, 80, 0, 0]]), None, "{none:?}");
        }
    }

    #[test]
    fn search_starts_over_at_the_end() {
        let (last, cursor) = next(COUNT - 1, &HashSet::new()).unwrap();
        assert_eq!(last, Ipv4Addr::new(100, 127, 255, 255));
        assert_eq!(next(cursor, &HashSet::new()).unwrap().0, Ipv4Addr::new(100, 64, 0, 1));
    }
}
