//! Homes, carriers, and what reaches whom.

use super::*;
use crate::clock::epoch;
use crate::nat::{Dependence, NatKind, Ports};
use rand::SeedableRng as _;

const PORT: u16 = 41641;

struct Bench {
    network: Network,
    rng: StdRng,
}

fn router(outer: ZoneId, outside: [u8; 4], hairpin: bool) -> Router {
    let kind = NatKind {
        mapping: Dependence::None,
        filtering: Dependence::AddressAndPort,
        ports: Ports::Preserved,
        timeout: Duration::from_secs(30),
        hairpin,
    };
    Router {
        outer,
        inner_v4: Ipv4Addr::new(192, 168, 1, 1),
        v4: V4::Nat(Nat::new(kind, outside.into())),
        v6: Firewall::new(Duration::from_secs(30)),
        blocks_udp: false,
        maps_ports: None,
        speaks_upnp: false,
        has_portal: false,
        is_captive: false,
        position: 0,
    }
}

fn host(zone: ZoneId, v4: [u8; 4]) -> Host {
    Host { zone, v4: Some(v4.into()), v6: None, position: 0, loss: 0, jitter: Duration::ZERO }
}

impl Bench {
    fn new() -> Self {
        Self { network: Network::default(), rng: StdRng::from_seed([3; 32]) }
    }

    /// Sends and returns who gets it, and the source as seen there.
    fn send(&mut self, from: HostId, to: &str) -> Option<(HostId, SocketAddr)> {
        let leg = self.network.send(from, PORT, to.parse().unwrap(), epoch(), &mut self.rng)?;
        let leg = match leg.place {
            Place::Router(id) => self.network.enter(id, leg.from, leg.to, epoch())?,
            Place::Host(_) | Place::Gateway(_) => leg,
        };
        match leg.place {
            Place::Host(id) => Some((id, leg.from)),
            Place::Router(_) | Place::Gateway(_) => None,
        }
    }
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn two_homes_with_the_same_addresses_meet_after_both_have_sent() {
    let mut bench = Bench::new();
    let (_, home) = bench.network.add_router(router(INTERNET, [198, 51, 100, 1], false));
    let (_, other) = bench.network.add_router(router(INTERNET, [198, 51, 100, 2], false));
    let a = bench.network.add_host(host(home, [192, 168, 1, 2]));
    let b = bench.network.add_host(host(other, [192, 168, 1, 2]));
    assert_eq!(bench.send(a, "198.51.100.2:41641"), None);
    assert_eq!(bench.send(b, "198.51.100.1:41641"), Some((a, at("198.51.100.2:41641"))));
    assert_eq!(bench.send(a, "198.51.100.2:41641"), Some((b, at("198.51.100.1:41641"))));
    assert_eq!(bench.send(a, "192.168.1.2:41641"), Some((a, at("192.168.1.2:41641"))), "its own");
    assert_eq!(bench.send(a, "203.0.113.77:1"), None, "nobody's");
}

#[test]
fn carrier_nat_translates_again_and_turns_around_only_if_it_can() {
    for hairpin in [false, true] {
        let mut bench = Bench::new();
        let (_, carrier) = bench.network.add_router(router(INTERNET, [198, 51, 100, 1], hairpin));
        let (_, home) = bench.network.add_router(router(carrier, [100, 64, 0, 2], false));
        let (_, other) = bench.network.add_router(router(carrier, [100, 64, 0, 3], false));
        let a = bench.network.add_host(host(home, [192, 168, 1, 2]));
        let b = bench.network.add_host(host(other, [192, 168, 1, 2]));
        let server = bench.network.add_host(host(INTERNET, [203, 0, 113, 1]));
        assert_eq!(bench.network.uplinks(home).len(), 2);
        let (_, of_a) = bench.send(a, "203.0.113.1:3478").unwrap();
        let (_, of_b) = bench.send(b, "203.0.113.1:3478").unwrap();
        assert_eq!(of_a.ip(), of_b.ip());
        assert_ne!(of_a, of_b);
        assert_eq!(bench.send(a, &of_b.to_string()), None);
        assert_eq!(bench.send(b, &of_a.to_string()), hairpin.then_some((a, of_b)));
        let _ = server;
    }
}

#[test]
fn firewall_keeps_addresses_and_blocked_udp_goes_nowhere() {
    let mut bench = Bench::new();
    let timeout = Duration::from_secs(30);
    let strict = Router { v4: V4::Firewall(Firewall::new(timeout)), ..router(INTERNET, [0, 0, 0, 0], false) };
    let (id, behind) = bench.network.add_router(strict);
    let a = bench.network.add_host(host(behind, [203, 0, 113, 2]));
    let b = bench.network.add_host(host(INTERNET, [203, 0, 113, 3]));
    assert_eq!(bench.send(b, "203.0.113.2:41641"), None);
    assert_eq!(bench.send(a, "203.0.113.3:41641"), Some((b, at("203.0.113.2:41641"))));
    assert_eq!(bench.send(b, "203.0.113.2:41641"), Some((a, at("203.0.113.3:41641"))));
    bench.network.routers[id].blocks_udp = true;
    assert_eq!(bench.send(a, "203.0.113.3:41641"), None);
    assert_eq!(bench.send(b, "203.0.113.2:41641"), None);
}

#[test]
fn ipv6_passes_firewalls_of_both_ends_and_no_nat() {
    let mut bench = Bench::new();
    let (_, home) = bench.network.add_router(router(INTERNET, [198, 51, 100, 1], false));
    let (_, other) = bench.network.add_router(router(INTERNET, [198, 51, 100, 2], false));
    let v6 = |last| Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last));
    let a = bench.network.add_host(Host { v6: v6(1), ..host(home, [192, 168, 1, 2]) });
    let b = bench.network.add_host(Host { v6: v6(2), ..host(other, [192, 168, 1, 2]) });
    assert_eq!(bench.send(a, "[2001:db8::2]:41641"), None);
    assert_eq!(bench.send(b, "[2001:db8::1]:41641"), Some((a, at("[2001:db8::2]:41641"))));
    bench.network.move_host(b, home, Some([192, 168, 1, 3].into()), v6(3));
    assert_eq!(bench.send(b, "[2001:db8::1]:41641"), Some((a, at("[2001:db8::3]:41641"))));
    assert_eq!(bench.send(a, "[2001:db8::2]:41641"), None, "moved away");
    assert_eq!(bench.send(a, "192.168.1.3:41641"), Some((b, at("192.168.1.2:41641"))));
}

#[test]
fn those_with_ipv6_alone_reach_ipv4_by_the_prefix_and_get_answers() {
    let mut bench = Bench::new();
    let V4::Nat(nat) = router(INTERNET, [198, 51, 100, 64], false).v4 else { unreachable!("it is made as a NAT") };
    let nat64 = Router { v4: V4::Nat64(nat), ..router(INTERNET, [0; 4], false) };
    let (id, zone) = bench.network.add_router(nat64);
    let v6 = "2001:db8:64::2".parse().unwrap();
    let inside = bench.network.add_host(Host { v4: None, v6: Some(v6), ..host(zone, [0; 4]) });
    let (server, stranger) = ([203, 0, 113, 1], [203, 0, 113, 2]);
    let server = bench.network.add_host(host(INTERNET, server));
    let stranger = bench.network.add_host(host(INTERNET, stranger));

    let (to, seen) = bench.send(inside, "[64:ff9b::203.0.113.1]:41641").unwrap();
    assert_eq!((to, seen), (server, at("198.51.100.64:41641")));
    let back = bench.send(server, &seen.to_string());
    assert_eq!(back, Some((inside, at("[64:ff9b::203.0.113.1]:41641"))));
    assert_eq!(bench.send(stranger, &seen.to_string()), None, "the NAT filters");
    assert_eq!(bench.send(inside, "203.0.113.1:41641"), None, "no address of IPv4 inside");
    bench.network.routers[id].is_captive = true;
    assert_eq!(bench.send(inside, "[64:ff9b::203.0.113.1]:41641"), None, "not signed in");
    assert_eq!(embedded(embed([203, 0, 113, 1].into())), Some([203, 0, 113, 1].into()));
    assert_eq!(embedded("2001:db8::1".parse().unwrap()), None);
}
