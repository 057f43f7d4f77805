//! Two nodes over a link that delays, loses, doubles and reorders, on a virtual clock.

use super::*;
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use std::sync::Weak;

/// What the link does to a datagram.
#[derive(Debug, Clone, Copy)]
struct Weather {
    /// Of 100 datagrams.
    lost: u32,
    doubled: u32,
    /// Milliseconds.
    delay: (u64, u64),
    /// Later ones may overtake.
    reorders: bool,
}

const FINE: Weather = Weather { lost: 0, doubled: 0, delay: (25, 25), reorders: false };

struct Node {
    tunnels: Tunnels,
    table: Arc<SessionTable>,
    session: Option<Arc<Session>>,
    /// Packets that wait for a session.
    waiting: VecDeque<u32>,
    noted: Option<Instant>,
    /// Every session that was ever used.
    used: Vec<Weak<Session>>,
}

struct Link {
    start: Instant,
    now: Instant,
    nodes: [Node; 2],
    weather: Weather,
    /// The node whose initiations all get lost.
    jammed: Option<usize>,
    /// Datagrams on their way, by time of arrival and number.
    flying: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    launched: u64,
    latest: [Instant; 2],
    rng: StdRng,
    sent: [BTreeSet<u32>; 2],
    delivered: [BTreeSet<u32>; 2],
    initiations: usize,
}

fn key_of(node: usize) -> NodeKey {
    secret(u8::try_from(node).unwrap()).public()
}

impl Link {
    fn new(seed: u64, weather: Weather) -> Self {
        let now = Instant::now();
        let mut rng = StdRng::seed_from_u64(seed);
        let nodes = [0, 1].map(|node| Node::new(node, rng.random(), now, Duration::ZERO));
        Self {
            start: now,
            now,
            nodes,
            weather,
            jammed: None,
            flying: BTreeMap::new(),
            launched: 0,
            latest: [now; 2],
            rng,
            sent: Default::default(),
            delivered: Default::default(),
            initiations: 0,
        }
    }

    fn launch(&mut self, to: usize, bytes: Vec<u8>) {
        let Weather { lost, doubled, delay, reorders } = self.weather;
        let copies = if self.rng.random_range(0..100) < lost {
            0
        } else {
            1 + u32::from(self.rng.random_range(0..100) < doubled)
        };
        for _ in 0..copies {
            let mut at = self.now + Duration::from_millis(self.rng.random_range(delay.0..=delay.1));
            if !reorders {
                at = at.max(self.latest[to]);
                self.latest[to] = at;
            }
            self.launched += 1;
            self.flying.insert((at, self.launched), (to, bytes.clone()));
        }
    }

    fn drain(&mut self, node: usize) {
        while let Some(transmit) = self.nodes[node].tunnels.poll_transmit() {
            self.initiations += usize::from(transmit.bytes[0] == 1);
            if transmit.bytes[0] != 1 || self.jammed != Some(node) {
                self.launch(1 - node, transmit.bytes);
            }
        }
        while let Some(event) = self.nodes[node].tunnels.poll_event() {
            match event {
                Event::Ready { session, .. } => {
                    self.nodes[node].used.push(Arc::downgrade(&session));
                    self.nodes[node].session = Some(session);
                    for number in std::mem::take(&mut self.nodes[node].waiting) {
                        self.transmit(node, number);
                    }
                }
                Event::Closed { .. } => self.nodes[node].session = None,
                Event::Failed { .. } => self.nodes[node].waiting.clear(),
            }
        }
    }

    /// The host sends a packet through the tunnel.
    fn send(&mut self, node: usize, number: u32) {
        assert!(self.sent[node].insert(number));
        self.transmit(node, number);
        self.drain(node);
    }

    fn transmit(&mut self, node: usize, number: u32) {
        let mut buffer = vec![0; HEADROOM + 4 + TAILROOM];
        buffer[HEADROOM..HEADROOM + 4].copy_from_slice(&number.to_be_bytes());
        let side = &mut self.nodes[node];
        let sealed = side.session.as_ref().map(|session| session.seal(&mut buffer, 4, MTU, self.now));
        if let Some(Ok(length)) = sealed {
            buffer.truncate(length);
            side.note(node, self.now);
            self.launch(1 - node, buffer);
            return;
        }
        side.waiting.push_back(number);
        if side.waiting.len() > 64 {
            side.waiting.pop_front();
        }
        side.tunnels.start_handshake(&key_of(1 - node), self.now).unwrap();
    }

    fn arrive(&mut self, to: usize, mut bytes: Vec<u8>) {
        let node = &mut self.nodes[to];
        if bytes[0] != 4 {
            node.tunnels.handle_datagram(&bytes, Pair::origin(), self.now);
            return;
        }
        let Some(session) = node.table.for_message(&bytes) else { return };
        let Ok(opened) = session.open(&mut bytes, self.now) else { return };
        if opened.confirmed {
            node.tunnels.confirm(&session, self.now);
        }
        node.note(to, self.now);
        if opened.length > 0 {
            let number = u32::from_be_bytes(*bytes[HEADROOM..].first_chunk().unwrap());
            assert!(self.sent[1 - to].contains(&number), "{number} was never sent");
            assert!(self.delivered[to].insert(number), "{number} came twice");
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let arrival = self.flying.first_key_value().map(|((at, _), _)| *at);
            let timers = self.nodes.iter().map(|node| node.tunnels.poll_timeout());
            let Some(next) = timers.chain([arrival]).flatten().min().filter(|at| *at <= end) else { break };
            self.now = self.now.max(next);
            if let Some(first) = self.flying.first_entry().filter(|first| first.key().0 <= self.now) {
                let (to, bytes) = first.remove();
                self.arrive(to, bytes);
                self.drain(to);
            }
            for node in [0, 1] {
                self.nodes[node].tunnels.handle_timeout(self.now);
                self.drain(node);
            }
        }
        self.now = end;
    }

    fn restart(&mut self, node: usize) {
        let elapsed = self.now - self.start;
        let used = std::mem::take(&mut self.nodes[node].used);
        self.nodes[node] = Node { used, ..Node::new(node, self.rng.random(), self.now, elapsed) };
    }

    /// Sends in both directions every `gap` for `time` and returns how many packets did not arrive.
    fn chat(&mut self, first: u32, gap: Duration, time: Duration) -> usize {
        let rounds = u32::try_from(time.as_millis() / gap.as_millis()).unwrap();
        for number in first..first + rounds {
            self.send(0, number);
            self.send(1, number);
            self.run(gap);
        }
        self.run(Duration::from_secs(2));
        let arrived = |node: usize| self.delivered[node].range(first..first + rounds).count();
        2 * rounds as usize - arrived(0) - arrived(1)
    }
}

impl Node {
    fn new(number: usize, seed: [u8; 32], now: Instant, elapsed: Duration) -> Self {
        let table = Arc::new(SessionTable::new());
        let own = secret(u8::try_from(number).unwrap());
        let wall = Duration::from_secs(1_795_000_000) + elapsed;
        let mut tunnels = Tunnels::new(own, Arc::clone(&table), seed, now, wall);
        tunnels.add_peer(key_of(1 - number));
        Self { tunnels, table, session: None, waiting: VecDeque::new(), noted: None, used: Vec::new() }
    }

    /// Tells of traffic as workers do: at once, then at most once a second.
    fn note(&mut self, own: usize, now: Instant) {
        if self.noted.is_none_or(|noted| now - noted >= Duration::from_secs(1)) {
            self.noted = Some(now);
            self.tunnels.note_activity(&key_of(1 - own), now);
        }
    }
}

#[test]
fn handshakes_that_cross_end_in_one_session_that_is_renewed_by_one_side() {
    let mut link = Link::new(1, FINE);
    assert_eq!(link.chat(0, Duration::from_millis(500), Duration::from_secs(3)), 0, "what waited was sent");
    let [one, two] = [0, 1].map(|node| link.nodes[node].session.clone().unwrap());
    assert_eq!((one.remote_index, two.remote_index), (two.local_index, one.local_index), "both send with the same");
    assert_ne!(one.is_initiator, two.is_initiator);
    assert_eq!(link.initiations, 2);

    assert_eq!(link.chat(10_000, Duration::from_millis(500), Duration::from_secs(1200)), 0);
    // Ten renewals at least 120 s apart, by one side each.
    assert!((11..=12).contains(&link.initiations), "{}", link.initiations);
}

#[test]
fn receiver_of_a_one_way_stream_renews_in_time() {
    let mut link = Link::new(2, FINE);
    link.send(0, 0);
    link.run(Duration::from_secs(1));
    // The one who began only receives from now on.
    for number in 1..4000 {
        link.send(1, number);
        link.run(Duration::from_millis(250));
    }
    assert_eq!(link.delivered[0].len(), 3999);
}

#[test]
fn late_packet_makes_the_initiator_renew() {
    let mut link = Link::new(6, FINE);
    link.send(0, 0);
    link.run(Duration::from_secs(166));
    let before = link.initiations;
    link.send(1, 1);
    link.run(Duration::from_secs(1));
    assert_eq!(link.initiations, before + 1);
    assert!(link.nodes[0].session.as_ref().unwrap().is_initiator);
}

#[test]
fn responder_renews_when_the_initiator_cannot() {
    let mut link = Link::new(7, FINE);
    link.send(0, 0);
    link.jammed = Some(0);
    link.run(Duration::from_secs(1));
    assert_eq!(link.chat(10, Duration::from_millis(500), Duration::from_secs(300)), 0);
    assert!(link.nodes[1].session.as_ref().unwrap().is_initiator);
}

#[test]
fn lost_confirmation_heals_by_the_keepalive() {
    let mut link = Link::new(3, FINE);
    link.chat(0, Duration::from_millis(500), Duration::from_secs(119));
    // The renewal's confirmation is lost; after it only the responder sends, with the session before.
    let responder = usize::from(link.nodes[0].session.as_ref().unwrap().is_initiator);
    let initiator = 1 - responder;
    link.run(Duration::from_secs(2));
    link.send(initiator, 1000);
    let old = link.nodes[initiator].session.clone().unwrap();
    while Arc::ptr_eq(&old, link.nodes[initiator].session.as_ref().unwrap()) {
        link.run(Duration::from_millis(1));
    }
    link.flying.clear();
    let initiations = link.initiations;
    for number in 1001..1100 {
        link.send(responder, number);
        link.run(Duration::from_millis(250));
    }
    assert_eq!(link.delivered[initiator].range(1001..).count(), 99);
    let [one, two] = [0, 1].map(|node| link.nodes[node].session.clone().unwrap());
    assert_eq!(one.remote_index, two.local_index, "the keep-alive confirmed it");
    assert_eq!(link.initiations, initiations);
}

#[test]
fn broken_path_is_noticed_by_who_sends() {
    let mut link = Link::new(4, FINE);
    link.chat(0, Duration::from_millis(500), Duration::from_secs(5));
    let before = link.initiations;
    link.weather.lost = 100;
    for number in 100..180 {
        link.send(0, number);
        link.run(Duration::from_millis(250));
    }
    assert!((1..=2).contains(&(link.initiations - before)), "after 15 s of silence, and 5 s later once more");
    link.weather.lost = 0;
    link.run(Duration::from_secs(6));
    assert_eq!(link.chat(1000, Duration::from_millis(500), Duration::from_secs(20)), 0);
}

#[test]
fn idle_link_is_silent_and_holds_no_keys() {
    let mut link = Link::new(5, FINE);
    link.chat(0, Duration::from_millis(500), Duration::from_secs(400));
    link.run(Duration::from_secs(20));
    let launched = link.launched;
    link.run(Duration::from_secs(180));
    assert_eq!(link.launched, launched);
    for node in &link.nodes {
        assert_eq!(node.tunnels.poll_timeout(), None);
        assert!(node.used.len() >= 4 && node.used.iter().all(|session| session.upgrade().is_none()));
    }
}

#[derive(Debug, Clone)]
enum Step {
    Send(usize),
    Restart(usize),
    Weather(Weather),
}

fn weather() -> impl Strategy<Value = Weather> {
    (prop_oneof![0_u32..40, Just(100)], 0_u32..40, 0_u64..200, 0_u64..3000, any::<bool>()).prop_map(
        |(lost, doubled, least, more, reorders)| Weather { lost, doubled, delay: (least, least + more), reorders },
    )
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let step = prop_oneof![
        20 => (0_usize..2).prop_map(Step::Send),
        1 => (0_usize..2).prop_map(Step::Restart),
        2 => weather().prop_map(Step::Weather),
    ];
    // Bursts, pauses, and pauses as long as a session's life.
    let gap = prop_oneof![4 => 0_u64..50, 4 => 0_u64..5000, 1 => 0_u64..200_000];
    proptest::collection::vec((gap, step), 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever happens on the way, nothing comes twice or from nowhere (both checked at each arrival), few sessions
    /// live at once, and soon after the weather is fine again everything arrives.
    #[test]
    fn nothing_is_invented_or_doubled_and_the_tunnel_recovers(seed: u64, weather in weather(), steps in steps()) {
        let mut link = Link::new(seed, weather);
        for (number, (gap, step)) in steps.into_iter().enumerate() {
            match step {
                Step::Send(node) => link.send(node, u32::try_from(number).unwrap()),
                Step::Restart(node) => link.restart(node),
                Step::Weather(weather) => link.weather = weather,
            }
            link.run(Duration::from_millis(gap));
            for node in &link.nodes {
                let alive = node.used.iter().filter(|session| session.upgrade().is_some()).count();
                prop_assert!(alive <= 3, "{alive} sessions");
            }
        }
        link.weather = FINE;
        link.run(Duration::from_secs(4));
        // Stale sessions show after 15 s of silence, a retry comes within 5.4 s.
        link.chat(10_000, Duration::from_millis(500), Duration::from_secs(25));
        prop_assert_eq!(link.chat(20_000, Duration::from_millis(500), Duration::from_secs(300)), 0);
    }

    /// However two handshakes cross on an orderly link, both sides agree, and no packet is lost from then on.
    #[test]
    fn crossing_never_costs_a_packet(seed: u64, offset in 0_u64..400, least in 0_u64..150, more in 0_u64..150) {
        let mut link = Link::new(seed, Weather { delay: (least, least + more), ..FINE });
        link.send(0, 0);
        link.run(Duration::from_millis(offset));
        link.send(1, 0);
        prop_assert_eq!(link.chat(10, Duration::from_millis(250), Duration::from_secs(400)), 0);
        let [one, two] = [0, 1].map(|node| link.nodes[node].session.clone().unwrap());
        prop_assert_eq!((one.remote_index, two.remote_index), (two.local_index, one.local_index));
        prop_assert!(link.initiations <= 6, "{} initiations", link.initiations);
    }
}
