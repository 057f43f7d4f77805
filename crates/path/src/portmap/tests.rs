#![expect(clippy::disallowed_methods, reason = "any instant will do as the start of the virtual clock")]

use super::*;
use proptest::prelude::*;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
const OWN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 20);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const PORT: u16 = 41_641;
const TARGET: MapTarget = MapTarget { gateway: GATEWAY, own: OWN, port: PORT, upnp: false };

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Which protocols a gateway speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Nothing,
    NatPmp,
    /// And NAT-PMP, as miniupnpd does.
    Pcp,
}

/// A gateway as the RFCs describe it, and a mapper behind it.
struct Bench {
    mapper: PortMapper,
    now: Instant,
    speaks: Speaks,
    booted: Instant,
    /// External port of the one mapping.
    mapped: Option<u16>,
    /// Result to refuse with.
    refuses: Option<u8>,
    lifetime: u32,
    asked: Vec<Vec<u8>>,
}

impl Bench {
    fn new(speaks: Speaks) -> Self {
        let now = Instant::now() + seconds(100_000);
        Self {
            mapper: PortMapper::new([7; 32]),
            now,
            speaks,
            booted: now - seconds(1000),
            mapped: None,
            refuses: None,
            lifetime: 7200,
            asked: Vec::new(),
        }
    }

    fn start(speaks: Speaks) -> Self {
        let mut bench = Self::new(speaks);
        bench.mapper.set_target(Some(TARGET), bench.now);
        bench.settle();
        bench
    }

    /// Carries datagrams until nobody says anything more.
    fn settle(&mut self) {
        while let Some(MapTransmit { to, bytes }) = self.mapper.poll_transmit() {
            assert_eq!(to, SocketAddrV4::new(GATEWAY, 5351));
            self.asked.push(bytes.clone());
            if let Some(answer) = self.answer(&bytes) {
                self.mapper.handle_datagram(to, &answer, self.now);
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.mapper.poll_timeout().filter(|next| *next <= end) {
            assert!(next > self.now || self.now < end, "a deadline that never moves");
            self.now = next.max(self.now);
            self.mapper.handle_timeout(self.now);
            self.settle();
        }
        self.now = end;
    }

    /// What the gateway says, by RFC 6886 and RFC 6887; written from those, not from the code under test.
    fn answer(&mut self, asked: &[u8]) -> Option<Vec<u8>> {
        let epoch = u32::try_from((self.now - self.booted).as_secs()).unwrap().to_be_bytes();
        match (self.speaks, asked[0], asked.len()) {
            (Speaks::Nothing, ..) => None,
            (Speaks::NatPmp, 2, _) => Some([&[0, 0x80, 0, 1][..], &epoch].concat()),
            (_, 0, 2) => Some([&[0, 0x80, 0, 0][..], &epoch, &OUTSIDE.octets()].concat()),
            (_, 0, 12) => {
                assert_eq!(asked[4..6], PORT.to_be_bytes());
                if let Some(result) = self.refuses {
                    return Some([&[0, 0x81, 0, result][..], &epoch, &[0; 8]].concat());
                }
                let port = self.map(u16::from_be_bytes([asked[6], asked[7]]), asked[8..12] == [0; 4]);
                let lifetime = self.lifetime.to_be_bytes();
                Some([&[0, 0x81, 0, 0][..], &epoch, &asked[4..6], &port.to_be_bytes(), &lifetime].concat())
            }
            (Speaks::Pcp, 2, 24) => Some([&[2, 0x80, 0, 0, 0, 0, 0, 0][..], &epoch, &[0; 12]].concat()),
            (Speaks::Pcp, 2, 60) => {
                assert_eq!(asked[8..24], OWN.to_ipv6_mapped().octets());
                let result = self.refuses.unwrap_or(0);
                let port = self.map(u16::from_be_bytes([asked[42], asked[43]]), asked[4..8] == [0; 4]);
                let mut answer = vec![2, 0x81, 0, result];
                answer.extend(self.lifetime.to_be_bytes());
                answer.extend(epoch);
                answer.extend([0; 12]);
                answer.extend(&asked[24..42]);
                answer.extend(port.to_be_bytes());
                answer.extend(OUTSIDE.to_ipv6_mapped().octets());
                Some(answer)
            }
            _ => panic!("no known message: {asked:?}"),
        }
    }

    fn map(&mut self, suggested: u16, delete: bool) -> u16 {
        if delete {
            self.mapped = None;
            return 0;
        }
        let port = if suggested == 0 { 55_000 } else { suggested };
        self.mapped = Some(port);
        port
    }
}

#[test]
fn a_gateway_with_pcp_maps_with_one_question() {
    let bench = Bench::start(Speaks::Pcp);
    assert_eq!(bench.mapper.mapping(), Some(SocketAddrV4::new(OUTSIDE, 55_000)));
    assert_eq!(bench.asked.len(), 1);
    assert_eq!(bench.mapper.services(), MapServices { pcp: true, ..MapServices::default() });
}

/// Such a gateway says at once that it does not know version 2, in its own words.
#[test]
fn a_gateway_with_nat_pmp_alone_maps_at_once() {
    let bench = Bench::start(Speaks::NatPmp);
    assert_eq!(bench.mapper.mapping(), Some(SocketAddrV4::new(OUTSIDE, 55_000)));
    assert_eq!(bench.mapper.services(), MapServices { nat_pmp: true, ..MapServices::default() });
}

#[test]
fn a_silent_gateway_is_asked_a_few_times_and_left_alone() {
    let mut bench = Bench::start(Speaks::Nothing);
    bench.run(seconds(60));
    let asked = bench.asked.len();
    assert!((5..=15).contains(&asked), "{asked}");
    bench.run(seconds(500));
    assert_eq!(bench.asked.len(), asked);
    // It may speak later.
    bench.speaks = Speaks::Pcp;
    bench.run(seconds(100));
    assert!(bench.mapper.mapping().is_some());
}

#[test]
fn a_mapping_is_renewed_at_half_its_life_and_stays_the_same() {
    for speaks in [Speaks::Pcp, Speaks::NatPmp] {
        let mut bench = Bench::start(speaks);
        let asked = bench.asked.len();
        bench.run(seconds(3599));
        assert_eq!(bench.asked.len(), asked);
        for _ in 0..10 {
            bench.run(seconds(3601));
            assert_eq!(bench.mapper.mapping(), Some(SocketAddrV4::new(OUTSIDE, 55_000)));
        }
        assert!(bench.asked.len() >= asked + 10);
    }
}

#[test]
fn a_mapping_ends_with_its_life_when_the_gateway_is_gone() {
    let mut bench = Bench::start(Speaks::Pcp);
    bench.speaks = Speaks::Nothing;
    bench.run(seconds(7199));
    assert!(bench.mapper.mapping().is_some());
    bench.run(seconds(2));
    assert_eq!(bench.mapper.mapping(), None);
}

/// Lessons, C15: a gateway is a stranger.
#[test]
fn lifetimes_are_clamped() {
    for (lifetime, least, most) in [(1, 29, 60), (u32::MAX, 43_000, 43_300)] {
        let mut bench = Bench::new(Speaks::Pcp);
        bench.lifetime = lifetime;
        bench.mapper.set_target(Some(TARGET), bench.now);
        bench.settle();
        let renewal = bench.mapper.poll_timeout().unwrap() - bench.now;
        assert!((seconds(least)..=seconds(most)).contains(&renewal), "{renewal:?}");
    }
}

#[test]
fn a_restarted_gateway_is_asked_anew() {
    for speaks in [Speaks::Pcp, Speaks::NatPmp] {
        let mut bench = Bench::start(speaks);
        bench.run(seconds(100));
        bench.mapper.check();
        bench.settle();
        bench.mapped = None;
        bench.booted = bench.now;
        bench.run(seconds(20));
        bench.mapper.check();
        bench.settle();
        assert!(bench.mapped.is_some(), "{speaks:?}");
        assert_eq!(bench.mapper.mapping(), Some(SocketAddrV4::new(OUTSIDE, 55_000)));
    }
}

#[test]
fn another_network_gives_the_mapping_back() {
    for speaks in [Speaks::Pcp, Speaks::NatPmp] {
        let mut bench = Bench::start(speaks);
        assert!(bench.mapped.is_some());
        bench.mapper.set_target(None, bench.now);
        bench.settle();
        assert_eq!((bench.mapped, bench.mapper.mapping(), bench.mapper.poll_timeout()), (None, None, None));
    }
}

#[test]
fn a_refusal_rests() {
    for speaks in [Speaks::Pcp, Speaks::NatPmp] {
        let mut bench = Bench::new(speaks);
        bench.refuses = Some(2);
        bench.mapper.set_target(Some(TARGET), bench.now);
        bench.settle();
        bench.run(seconds(300));
        assert_eq!(bench.mapper.mapping(), None);
        assert!(bench.asked.len() <= 12, "{}", bench.asked.len());
        bench.refuses = None;
        bench.mapper.try_again(bench.now);
        bench.settle();
        assert!(bench.mapper.mapping().is_some(), "{speaks:?}");
    }
}

#[test]
fn public_gateways_are_not_asked() {
    let mut mapper = PortMapper::new([7; 32]);
    let target = MapTarget { gateway: OUTSIDE, ..TARGET };
    mapper.set_target(Some(target), Instant::now());
    assert_eq!(mapper.poll_transmit(), None);
}

#[test]
fn answers_of_others_or_about_others_count_for_nothing() {
    let mut bench = Bench::new(Speaks::Pcp);
    bench.mapper.set_target(Some(TARGET), bench.now);
    let asked = bench.mapper.poll_transmit().unwrap().bytes;
    let good = bench.answer(&asked).unwrap();
    let with = |at: usize, byte: u8| {
        let mut answer = good.clone();
        answer[at] ^= byte;
        answer
    };
    let gateway = SocketAddrV4::new(GATEWAY, 5351);
    let mut impossible = good.clone();
    impossible[44..].copy_from_slice(&Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets());
    for (from, answer) in [
        (SocketAddrV4::new(OUTSIDE, 5351), good.clone()),
        (SocketAddrV4::new(GATEWAY, 1), good.clone()),
        // Nonce, internal port, protocol, operation.
        (gateway, with(24, 1)),
        (gateway, with(41, 1)),
        (gateway, with(36, 1)),
        (gateway, with(1, 1)),
        (gateway, impossible),
    ] {
        bench.mapper.handle_datagram(from, &answer, bench.now);
        assert_eq!(bench.mapper.mapping(), None);
    }
}

proptest! {
    /// No answer makes it panic, loop, or say what nobody can use.
    #[test]
    fn strange_answers_do_no_harm(
        answers in prop::collection::vec((0..4_u8, prop::collection::vec(any::<u8>(), 0..80), 0..9000_u64), 0..40)
    ) {
        let mut bench = Bench::new(Speaks::Nothing);
        bench.mapper.set_target(Some(TARGET), bench.now);
        let mut allowed = 20;
        for (kind, mut bytes, wait) in answers {
            // Likely enough to be read.
            match kind {
                0 => bytes.splice(..0, [0, 0x80, 0, 0]).for_each(drop),
                1 => bytes.splice(..0, [0, 0x81, 0, 0, 0, 0, 0, 1, 0xa2, 0xa9]).for_each(drop),
                2 => bytes.splice(..0, [2, 0x81, 0, 0]).for_each(drop),
                _ => {}
            }
            bench.mapper.handle_datagram(SocketAddrV4::new(GATEWAY, 5351), &bytes, bench.now);
            bench.settle();
            bench.run(seconds(wait));
            if let Some(mapping) = bench.mapper.mapping() {
                prop_assert!(mapping.port() != 0 && is_possible(*mapping.ip()));
            }
            // Each answer may begin one round of questions, and so may each rest.
            allowed += 15 * (2 + wait / 600);
            prop_assert!(bench.asked.len() as u64 <= allowed, "{} asked, {allowed} allowed", bench.asked.len());
        }
    }
}
