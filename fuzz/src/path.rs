//! Finding paths: disco messages of peers and strangers, and the answers of STUN servers.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use warren_path::{
    Destination, Event, Families, Kind, Netcheck, Paths, PeerConfig, PeerRelay, PeerRelayRoles, PeerRelayServer,
    RelayAddress, Verdict,
};
use warren_wire::control::{DerpMap, RegionId, from_json};
use warren_wire::disco::{self, Bind, Message, Pong};
use warren_wire::geneve::{Header, Protocol};
use warren_wire::key::{DiscoKey, DiscoSecret, NodeKey};
use warren_wire::nacl::SharedBox;
use warren_wire::stun;

use crate::input::Input;

/// An arbitrary moment, the same for a whole run.
static START: LazyLock<Instant> = LazyLock::new(|| {
    #[expect(clippy::disallowed_methods, reason = "an arbitrary start, moved by hand from here")]
    Instant::now()
});

/// Longest story.
const STEPS_MAX: usize = 64;
/// Messages that may come of one step.
const TRANSMITS_MAX: usize = 512;
/// Pings of the node that wait for an answer of ours.
const PINGS_MAX: usize = 64;

const ADDRESSES: [&str; 6] =
    ["192.0.2.1:1", "192.0.2.2:41641", "[2001:db8::1]:2", "10.0.0.1:3", "100.64.0.9:4", "[::ffff:192.0.2.1]:1"];

static OWN: LazyLock<DiscoSecret> = LazyLock::new(|| DiscoSecret::from_bytes([1; 32]));
/// A peer, and somebody who is none: disco key, and what it seals with for the node.
static OTHERS: LazyLock<[(DiscoKey, SharedBox); 2]> = LazyLock::new(|| {
    [2, 3].map(|number| {
        let secret = DiscoSecret::from_bytes([number; 32]);
        let shared = secret.diffie_hellman(OWN.public().as_bytes()).expect("two honest keys");
        (secret.public(), SharedBox::new(&shared))
    })
});

/// A node with one peer, which the input plays, and a stranger.
struct World {
    paths: Paths,
    now: Instant,
    peer: NodeKey,
    pings: Vec<(disco::Ping, Destination)>,
    /// Addresses at which pings were answered.
    proved: BTreeSet<SocketAddr>,
    /// Endpoints of peer relays at which pings were answered.
    relays_proved: BTreeSet<PeerRelay>,
}

/// Takes steps from `data`. No address becomes a path at which no ping was answered.
pub fn paths(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World {
        paths: Paths::new(OWN.clone(), NodeKey::from_bytes([9; 32]), [5; 32]),
        now: *START,
        peer: NodeKey::from_bytes([8; 32]),
        pings: Vec::new(),
        proved: BTreeSet::new(),
        relays_proved: BTreeSet::new(),
    };
    world.configure(&mut input);
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            return;
        }
        let now = world.now;
        match input.below(11) {
            10 => {
                let from = some_address(&mut input);
                let choice = u32::from(input.byte());
                let header = Header { control: choice & 1 == 0, protocol: Protocol::Disco, vni: choice >> 4 };
                let bytes = header.wrap(&some_message(&mut input));
                world.paths.handle_peer_relayed(from, &bytes, now);
            }
            0 => world.configure(&mut input),
            1 => world.paths.handle_activity(&world.peer, now),
            2 => {
                let from = some_address(&mut input);
                let bytes = some_message(&mut input);
                world.paths.handle_udp(from, &bytes, now);
            }
            3 => {
                let region = RegionId(u16::from(input.byte()));
                let from = if input.byte() == 0 { NodeKey::from_bytes([7; 32]) } else { world.peer };
                let bytes = some_message(&mut input);
                world.paths.handle_relayed(region, &from, &bytes, now);
            }
            4 | 5 => world.answer(&mut input),
            6 => {
                world.now += Duration::from_millis(u64::from(input.byte()) * 100);
                world.paths.handle_timeout(world.now);
                assert!(world.paths.poll_timeout().is_none_or(|next| next > world.now), "a deadline is left over");
            }
            7 => world.paths.handle_unreachable(&world.peer, some_address(&mut input), now),
            8 => drop(world.paths.ping(&world.peer, now)),
            _ => match input.below(3) {
                0 => world.paths.handle_rebind(now),
                1 => world.paths.set_own_endpoints(vec![some_address(&mut input)], now, now),
                _ => world.paths.remove_peer(&world.peer),
            },
        }
        world.settle();
    }
}

impl World {
    fn configure(&mut self, input: &mut Input<'_>) {
        let choice = input.byte();
        let config = PeerConfig {
            disco: (choice & 1 == 0).then(|| OTHERS[0].0),
            home: (choice & 2 == 0).then_some(RegionId(1)),
            endpoints: (0..choice >> 6).map(|_| some_address(input)).collect(),
        };
        self.paths.set_peer(self.peer, &config, self.now);
        let roles = PeerRelayRoles { client: choice & 4 == 0, server: choice & 8 == 0 };
        self.paths.set_peer_relay_roles(&self.peer, roles);
        self.paths.set_own_peer_relay(choice & 16 == 0);
        let is_special = choice & 32 != 0;
        self.paths.set_mtu_probing(is_special.then_some(1312));
        self.paths.set_lifetime_probing(is_special);
        self.paths.set_silent(is_special && choice & 64 != 0);
    }

    /// Answers a ping of the node as the peer would, from the address it went to or from another.
    fn answer(&mut self, input: &mut Input<'_>) {
        let choice = input.byte();
        let Some((ping, to)) = self.pings.get(usize::from(choice >> 1)).cloned() else { return };
        let from = match to {
            Destination::Udp(address) | Destination::PeerRelay(PeerRelay { address, .. }) if choice & 1 == 0 => address,
            Destination::Udp(_) | Destination::PeerRelay(_) | Destination::Relay { .. } => some_address(input),
        };
        let (key, shared) = &OTHERS[0];
        let pong = Message::Pong(Pong { id: ping.id, source: "198.51.100.1:5".parse().unwrap() });
        let bytes = disco::seal(shared, key, &[4; 24], &pong);
        match to {
            Destination::Relay { region, peer } if choice & 1 == 0 => {
                self.paths.handle_relayed(region, &peer, &bytes, self.now);
            }
            Destination::PeerRelay(relay) => {
                self.relays_proved.insert(relay);
                let bytes = relay.header(Protocol::Disco).wrap(&bytes);
                self.paths.handle_peer_relayed(from, &bytes, self.now);
            }
            Destination::Udp(_) | Destination::Relay { .. } => {
                // Whoever knows the ping has it from where it was sent, wherever the answer comes from.
                if let Destination::Udp(address) = to {
                    self.proved.insert(address);
                }
                self.paths.handle_udp(from, &bytes, self.now);
            }
        }
    }

    /// Takes what the node wants to send and say.
    fn settle(&mut self) {
        let mut count = 0;
        while let Some(transmit) = self.paths.poll_transmit() {
            count += 1;
            assert!(count <= TRANSMITS_MAX, "a flood");
            let envelope = match transmit.to {
                Destination::Udp(_) | Destination::Relay { .. } => transmit.bytes.as_slice(),
                Destination::PeerRelay(relay) => {
                    let (header, envelope) = Header::decode(&transmit.bytes).expect("a header of ours");
                    assert_eq!((header.vni, header.protocol), (relay.vni, Protocol::Disco));
                    envelope
                }
            };
            assert_eq!(disco::peek(envelope), Some(OWN.public()));
            let message = disco::open(&OTHERS[0].1, envelope);
            if let Ok(Message::Ping(ping)) = message
                && self.pings.len() < PINGS_MAX
            {
                self.pings.push((ping, transmit.to));
            }
        }
        while let Some(event) = self.paths.poll_event() {
            if let Event::Path { peer, path } = event {
                assert_eq!(peer, self.peer);
                if let Some(direct) = path.direct {
                    assert!(self.proved.contains(&direct.address), "{direct:?} never answered");
                }
                if let Some(relayed) = path.peer_relay {
                    assert!(self.relays_proved.contains(&relayed.to), "{relayed:?} never answered");
                }
            }
        }
        let _ = self.paths.status(&self.peer);
    }
}

fn some_address(input: &mut Input<'_>) -> SocketAddr {
    input.choose(&ADDRESSES).parse().unwrap()
}

/// Returns raw bytes, or bytes sealed as a message of the peer or of the stranger.
fn some_message(input: &mut Input<'_>) -> Vec<u8> {
    let choice = input.below(3);
    let bytes = input.bytes();
    let Some((key, shared)) = OTHERS.get(choice) else { return bytes.to_vec() };
    let nonce = [6; 24];
    [b"TS\xF0\x9F\x92\xAC", key.as_bytes().as_slice(), &nonce, &shared.seal(&nonce, bytes)].concat()
}

/// Takes steps from `data` against a relay for peers with one endpoint, of which the input plays a client, the other client
/// and strangers. Nothing is forwarded but from one bound address to the other, and no answer is longer than what it
/// answers.
pub fn peer_relay(data: &[u8]) {
    let mut input = Input::new(data);
    let mut now = *START;
    // The keys of the clients are those of the two others; the relay's is that of the node.
    let mut relay = PeerRelayServer::new(OWN.clone(), [5; 32], now);
    let clients = [OTHERS[0].0, OTHERS[1].0];
    let node = NodeKey::from_bytes([8; 32]);
    let mut challenges: Vec<(usize, SocketAddr, Bind)> = Vec::new();
    let mut bound: [BTreeSet<SocketAddr>; 2] = Default::default();
    let mut vni = 1;
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            return;
        }
        let from = some_address(&mut input);
        let (who, step) = (input.below(2), input.below(6));
        let message = match step {
            0 => {
                if let Ok(endpoint) = relay.allocate(&node, clients, &[some_address(&mut input)], now) {
                    assert!(!endpoint.addresses.is_empty());
                    vni = endpoint.vni;
                }
                continue;
            }
            1 => {
                now += Duration::from_secs(u64::from(input.byte()));
                relay.handle_timeout(now);
                continue;
            }
            2 => {
                let generation = u32::from(input.byte());
                Message::BindEndpoint(Bind { vni, generation, remote_key: clients[1 - who], challenge: [0; 32] })
            }
            3 => match challenges.get(input.below(8)) {
                Some((_, _, bind)) => Message::BindAnswer(*bind),
                None => continue,
            },
            _ => {
                let header = Header { control: step == 4, protocol: input.choose(&PROTOCOLS), vni };
                let datagram = header.wrap(&some_message(&mut input));
                match relay.handle(from, &datagram, now) {
                    Verdict::Drop => {}
                    Verdict::Forward(to) => {
                        let from = plain(from);
                        let is_pair = |one: usize| bound[one].contains(&from) && bound[1 - one].contains(&to);
                        assert!(is_pair(0) || is_pair(1), "{from} to {to}");
                    }
                    Verdict::Answer(answer) => assert!(answer.len() <= datagram.len()),
                }
                continue;
            }
        };
        let (key, shared) = &OTHERS[who];
        let envelope = disco::seal(shared, key, &[4; 24], &message);
        let datagram = Header { control: true, protocol: Protocol::Disco, vni }.wrap(&envelope);
        match relay.handle(from, &datagram, now) {
            Verdict::Answer(answer) => {
                assert!(answer.len() <= datagram.len(), "amplified");
                let (_, sealed) = Header::decode(&answer).expect("a header of the relay");
                let Ok(Message::BindChallenge(bind)) = disco::open(shared, sealed) else { panic!("no challenge") };
                challenges.push((who, plain(from), bind));
            }
            Verdict::Drop => {
                let Message::BindAnswer(bind) = message else { continue };
                // It may have been taken only if it was this client's challenge for this address.
                if challenges.contains(&(who, plain(from), bind)) {
                    bound[who].insert(plain(from));
                }
            }
            Verdict::Forward(_) => panic!("a control message was forwarded"),
        }
    }
}

const PROTOCOLS: [Protocol; 2] = [Protocol::Disco, Protocol::WireGuard];

fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Reads the first line of `data` as a relay map, and takes steps from the rest: probes are answered, and time passes.
pub fn netcheck(data: &[u8]) {
    let at = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (map, rest) = data.split_at(at);
    let Ok(map) = from_json::<DerpMap>(map) else { return };
    let mut input = Input::new(rest);
    let mut netcheck = Netcheck::new([1; 32]);
    netcheck.set_map(&map);
    let mut now = *START;
    let mut probes: Vec<Vec<u8>> = Vec::new();
    for _ in 0..STEPS_MAX {
        match input.below(8) {
            0 => {
                let families = input.byte();
                let kind = input.choose(&[Kind::Auto, Kind::Full, Kind::Incremental]);
                netcheck.start(kind, Families { v4: families & 1 == 0, v6: families & 2 == 0 }, now);
            }
            1 => netcheck.handle_stun(some_address(&mut input), input.bytes(), now),
            2 | 3 => {
                let Some(probe) = probes.get(input.below(64)) else { continue };
                let id = stun::parse_request(probe).expect("a probe is a request");
                netcheck.handle_stun(some_address(&mut input), &stun::response(&id, some_address(&mut input)), now);
            }
            4 => netcheck.handle_relay_frame(RegionId(u16::from(input.byte())), now),
            5 => {
                let latency = Duration::from_millis(u64::from(input.byte()));
                netcheck.handle_relay_latency(RegionId(u16::from(input.byte())), latency, now);
            }
            _ => {
                now += Duration::from_millis(u64::from(input.byte()) * 50);
                netcheck.handle_timeout(now);
                assert!(netcheck.poll_timeout().is_none_or(|next| next > now), "a deadline is left over");
            }
        }
        let mut count = 0;
        while let Some(probe) = netcheck.poll_transmit() {
            count += 1;
            assert!(count <= TRANSMITS_MAX, "a flood");
            if let RelayAddress::Name { host, .. } = &probe.server {
                assert!(!host.is_empty());
            }
            if probes.len() < PINGS_MAX {
                probes.push(probe.bytes);
            }
        }
        while let Some(region) = netcheck.poll_relay_request() {
            assert!(
                map.regions.as_ref().is_some_and(|regions| regions.contains_key(&region)),
                "{region:?} is not on the map"
            );
        }
        while let Some(probe) = netcheck.poll_portal_probe() {
            if let Some(is_portal) = probe.is_portal(input.bytes()) {
                netcheck.handle_portal_answer(is_portal, now);
            }
        }
        if let Some(report) = netcheck.poll_report() {
            assert!(
                report.home.is_none_or(|home| map.regions.as_ref().is_some_and(|regions| regions.contains_key(&home))),
                "the home is not on the map"
            );
            let _ = report.net_info();
        }
        if input.is_empty() {
            return;
        }
    }
}
