use super::*;
use crate::testing::epoch;
use proptest::prelude::*;

const NET: &str = "10.7.0.0/16";

fn net() -> IpNet {
    NET.parse().unwrap()
}

fn key(number: u8) -> NodeKey {
    NodeKey::from_bytes([number; 32])
}

fn at(millis: u64) -> Instant {
    epoch() + Duration::from_millis(millis)
}

/// A router as it really is.
#[derive(Debug, Clone, Copy)]
struct Real {
    /// Milliseconds from a packet to its answer.
    trip: u64,
    /// From when on it answers nothing itself.
    silent_from: u64,
    /// From when on it passes nothing on.
    closed_from: u64,
}

impl Real {
    const NEVER: u64 = u64::MAX;

    fn answers(&self, answerer: Answerer, at: u64) -> bool {
        at < self.silent_from && (answerer == Answerer::Router || at < self.closed_from)
    }
}

/// An answer to a question, and by whom it comes; packets themselves have none.
type Answer = (u16, Answerer, NodeKey);

/// A network with routers 1, 2 …, of which packets go into it all the time.
struct World {
    routers: Routers,
    real: Vec<Real>,
    /// Whether hosts answer echo requests.
    echoes: bool,
    /// A packet goes every so many milliseconds.
    every: u64,
    packets: Use,
    /// When packets and questions are answered, and what.
    pending: Vec<(u64, Option<Answer>)>,
    changes: Vec<(u64, NodeKey)>,
    questions: usize,
    woken: bool,
}

impl World {
    fn new(real: Vec<Real>, echoes: bool, every: u64) -> Self {
        let mut world = Self {
            routers: Routers::default(),
            real,
            echoes,
            every,
            packets: Use::default(),
            pending: Vec::new(),
            changes: Vec::new(),
            questions: 0,
            woken: false,
        };
        world.say(1, &[], 0);
        world
    }

    /// The server's word: its choice, and who is away.
    fn say(&mut self, first: u8, away: &[u8], now: u64) {
        let router = |number: u8| Router { key: key(number), is_away: away.contains(&number) };
        let count = u8::try_from(self.real.len()).unwrap();
        let all = std::iter::once(first).chain((1..=count).filter(|number| *number != first)).map(router).collect();
        self.routers.set([(net(), all)].into(), at(now));
    }

    fn real(&self, key: NodeKey) -> Real {
        self.real[usize::from(key.as_bytes()[0]) - 1]
    }

    fn step(&mut self, now: u64) {
        let due = |(when, _): &mut (u64, _)| *when <= now;
        for (_, answer) in self.pending.extract_if(.., due).collect::<Vec<_>>() {
            match answer {
                None => {
                    self.packets.answered = Some(at(now));
                    self.packets.waiting = None;
                }
                Some((number, answerer, from)) => self.routers.handle_answer(number, answerer, from, at(now)),
            }
        }
        if now.is_multiple_of(self.every) {
            let real = self.real(self.routers.in_use(&net()).unwrap());
            self.packets.sent = Some(at(now));
            if !self.woken {
                self.packets.waiting = None;
            }
            self.packets.waiting.get_or_insert(at(now));
            if !std::mem::replace(&mut self.woken, true) {
                self.routers.wake(&net(), at(now));
            }
            if real.answers(Answerer::Host, now) {
                self.pending.push((now + real.trip, None));
            }
        }
        if self.routers.poll_timeout().is_some_and(|when| when <= at(now)) {
            for net in self.routers.due(at(now)) {
                self.woken = self.routers.handle_use(&net, self.packets, at(now));
            }
            self.routers.handle_timeout(at(now));
        }
        while let Some(RouterProbe { router, number, .. }) = self.routers.poll_probe() {
            self.questions += 1;
            let real = self.real(router);
            for answerer in [Answerer::Host, Answerer::Router] {
                if real.answers(answerer, now) && (self.echoes || answerer == Answerer::Router) {
                    self.pending.push((now + real.trip, Some((number, answerer, router))));
                }
            }
        }
        while let Some(change) = self.routers.poll_switched() {
            assert_eq!(Some(change.to), self.routers.in_use(&net()));
            self.changes.push((now, change.to));
        }
    }
}

fn any_real() -> impl Strategy<Value = Real> {
    (1..150_u64).prop_map(|trip| Real { trip, silent_from: Real::NEVER, closed_from: Real::NEVER })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// A router that is cut off or passes nothing on is left in time, once, for one that works.
    #[test]
    fn a_broken_router_is_left_for_one_that_works(
        mut real in prop::collection::vec(any_real(), 2..5),
        fault in 3_000..5_000_u64,
        is_cut: bool,
        echoes: bool,
        every in 10..400_u64,
        dead in any::<prop::sample::Index>(),
    ) {
        // One of the others has been dead all along.
        let dead = dead.index(real.len());
        if dead > 1 {
            real[dead].silent_from = 0;
        }
        // Hosts that answer no echo do not show that nothing is passed on.
        prop_assume!(is_cut || echoes);
        if is_cut { real[0].silent_from = fault } else { real[0].closed_from = fault }
        let mut world = World::new(real, echoes, every);
        (0..20_000).for_each(|now| world.step(now));
        prop_assert_eq!(world.changes.len(), 1, "{:?}", world.changes);
        let (when, to) = world.changes[0];
        prop_assert!(when >= fault && when < fault + 2_200, "{} after {}", when, fault);
        prop_assert!(world.real(to).answers(Answerer::Host, when));
    }

    /// Whatever a server that is away, overloaded or just started says, a router that works stays.
    #[test]
    fn a_router_that_works_stays_whatever_the_server_says(
        real in prop::collection::vec(any_real(), 2..5),
        echoes: bool,
        every in 10..1_500_u64,
        words in prop::collection::vec((0..20_000_u64, any::<prop::sample::Index>(), any::<u8>()), 0..30),
    ) {
        let count = real.len();
        let mut world = World::new(real, echoes, every);
        for now in 0..20_000 {
            for (_, first, away) in words.iter().filter(|(when, ..)| *when == now && now > 0) {
                let away: Vec<u8> = (1..=4).filter(|number| away & (1 << number) != 0).collect();
                world.say(u8::try_from(first.index(count)).unwrap() + 1, &away, now);
            }
            world.step(now);
            prop_assert_eq!(world.routers.in_use(&net()), Some(key(1)), "at {}", now);
        }
        prop_assert!(world.changes.is_empty());
    }

    /// With nobody there the last good one stays, and few questions are asked.
    #[test]
    fn when_all_look_dead_the_last_good_one_stays(
        mut real in prop::collection::vec(any_real(), 2..5),
        fault in 1_000..3_000_u64,
        every in 10..400_u64,
    ) {
        real.iter_mut().for_each(|one| one.silent_from = fault);
        let routers = real.len();
        let mut world = World::new(real, true, every);
        (0..60_000).for_each(|now| world.step(now));
        prop_assert!(world.changes.is_empty(), "{:?}", world.changes);
        // Rounds after 1, 2, 4, 8 and then every 16 seconds.
        prop_assert!(world.questions <= 9 * usize::from(PROBES) * routers, "{} questions", world.questions);
        // Whoever comes back is found.
        for real in world.real.iter_mut().skip(1) {
            real.silent_from = Real::NEVER;
        }
        (60_000..80_000).for_each(|now| world.step(now));
        prop_assert_eq!(world.changes.len(), 1);
    }

    /// A host that is off, or a flow that nobody answers, moves nothing.
    #[test]
    fn a_silent_host_moves_nothing(mut real in prop::collection::vec(any_real(), 2..5), every in 10..400_u64) {
        real.iter_mut().for_each(|one| one.closed_from = 0);
        let mut world = World::new(real, true, every);
        (0..30_000).for_each(|now| world.step(now));
        prop_assert!(world.changes.is_empty());
    }

    /// No input panics, and the one in use is always one of the routers.
    #[test]
    fn the_one_in_use_is_one_of_the_routers(steps in prop::collection::vec((0..6_u8, any::<u8>(), any::<u16>()), 0..200)) {
        let mut routers = Routers::default();
        let mut now = 0;
        let mut members: Vec<u8> = Vec::new();
        for (what, one, other) in steps {
            now += u64::from(other % 400);
            match what {
                0 => {
                    members = (1..=5).filter(|number| one & (1 << number) != 0).collect();
                    let all: Vec<Router> =
                        members.iter().map(|number| Router { key: key(*number), is_away: other & 1 == 0 }).collect();
                    let networks = if all.is_empty() { BTreeMap::new() } else { [(net(), all)].into() };
                    routers.set(networks, at(now));
                }
                1 => routers.wake(&net(), at(now)),
                2 => {
                    let packets = Use { sent: Some(at(now)), waiting: Some(at(now.saturating_sub(other.into()))), answered: None };
                    let _ = routers.handle_use(&net(), packets, at(now));
                }
                3 => routers.handle_answer(other, Answerer::Host, key(one), at(now)),
                4 => routers.handle_answer(other % 8, Answerer::Router, key(one % 6), at(now)),
                _ => routers.handle_timeout(at(now)),
            }
            while routers.poll_probe().is_some() {}
            while routers.poll_switched().is_some() {}
            let in_use = routers.in_use(&net());
            prop_assert_eq!(in_use.is_none(), members.is_empty());
            prop_assert!(in_use.is_none_or(|in_use| members.iter().any(|number| key(*number) == in_use)));
        }
    }
}

const WORKS: Real = Real { trip: 5, silent_from: Real::NEVER, closed_from: Real::NEVER };

/// Whoever the server has put in second place may not keep a network because it was there before: not beyond a rest, nor for
/// ever without one.
#[test]
fn a_router_that_the_server_demoted_gives_way() {
    for every in [50, u64::MAX] {
        let mut world = World::new(vec![WORKS; 2], true, every);
        (0..5_000).for_each(|now| world.step(now));
        world.say(2, &[], 5_000);
        (5_000..620_000).for_each(|now| world.step(now));
        let times: Vec<_> = world.changes.iter().map(|(when, to)| (*to, *when)).collect();
        let [(to, when)] = times[..] else { panic!("{times:?}") };
        let latest = if every == 50 { 606_000 } else { 66_000 };
        assert!(to == key(2) && when <= latest && when >= 60_000, "{to:?} after {when} ms");
    }
}

/// One that took over because the server's choice failed gives it back when that works again, and the server still wants it.
#[test]
fn a_router_that_took_over_gives_the_network_back() {
    let mut world = World::new(vec![WORKS; 2], true, 50);
    world.real[0].silent_from = 3_000;
    (0..700_000).for_each(|now| world.step(now));
    assert_eq!(world.changes.len(), 1, "one that still fails is not taken again: {:?}", world.changes);
    world.real[0].silent_from = Real::NEVER;
    (700_000..1_400_000).for_each(|now| world.step(now));
    assert_eq!(world.changes.last().map(|(_, to)| *to), Some(key(1)));
    assert_eq!(world.changes.len(), 2, "{:?}", world.changes);
    // While the server says that it is away, nobody goes there.
    let mut world = World::new(vec![WORKS; 2], true, 50);
    world.real[0].silent_from = 3_000;
    (0..5_000).for_each(|now| world.step(now));
    world.say(1, &[1], 5_000);
    (5_000..700_000).for_each(|now| world.step(now));
    assert_eq!(world.changes.len(), 1, "{:?}", world.changes);
}

/// Its route was taken back, or it was taken out of the network.
#[test]
fn a_router_that_was_removed_is_not_in_use_any_more() {
    let mut world = World::new(vec![WORKS; 3], true, 50);
    world.real[0].silent_from = 3_000;
    (0..5_000).for_each(|now| world.step(now));
    let chosen = world.routers.in_use(&net()).unwrap();
    assert_ne!(chosen, key(1));
    let left = (1..=3).map(key).filter(|key| *key != chosen).map(|key| Router { key, is_away: false });
    world.routers.set([(net(), left.collect())].into(), at(5_000));
    assert_eq!(world.routers.in_use(&net()), Some(key(1)), "the server's choice, until it is found out anew");
}

/// A network at rest follows the server, if its router is away.
#[test]
fn a_network_at_rest_follows_the_server() {
    let real = Real { trip: 1, silent_from: Real::NEVER, closed_from: Real::NEVER };
    let mut world = World::new(vec![real; 2], true, u64::MAX);
    world.say(2, &[], 10);
    assert_eq!(world.routers.in_use(&net()), Some(key(1)), "both are there: why change");
    world.say(1, &[], 20);
    world.say(2, &[1], 30);
    assert_eq!(world.routers.in_use(&net()), Some(key(2)));
    assert_eq!(world.routers.poll_timeout(), None, "rest costs nothing");
}
