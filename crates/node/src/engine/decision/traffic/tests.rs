#![expect(clippy::disallowed_methods, reason = "any instant will do as the start of the virtual clock")]

use std::net::UdpSocket;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::mpsc;
use warren_os::{Offload, Waker};
use warren_path::{Direct, Path};
use warren_wg::{SessionTable, Tunnels};
use warren_wire::control::{DerpMap, DerpNode, DerpRegion, Node, NodeId};
use warren_wire::disco::Message;
use warren_wire::key::{DiscoSecret, NodeSecret};
use warren_wire::nacl::SharedBox;

use super::super::Traits;
use super::super::tailnet::Setup;
use super::*;
use crate::engine::relay_link::LinkSetup;
use crate::engine::shared::{DecisionEnds, Shared, Sockets};
use crate::engine::{Local, Settings};
use crate::netmap::Peer;

const REGION: RegionId = RegionId(900);
const WALL: Duration = Duration::from_secs(1_795_000_000);

fn secret(number: u8) -> NodeSecret {
    NodeSecret::from_bytes([number; 32])
}

fn peer_key() -> NodeKey {
    secret(2).public()
}

/// A node that knows one peer, but no way to it, and the UDP socket of that peer.
struct Bench {
    tailnet: Tailnet,
    peer: UdpSocket,
    now: Instant,
    _ends: DecisionEnds,
    _found: mpsc::Receiver<Found>,
    _links: mpsc::Receiver<LinkEvent>,
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        let (shared, _, ends) = Shared::new(Waker::new().unwrap(), Sockets::bind(0, Offload::Probe).unwrap(), now);
        let (events, links) = mpsc::channel(64);
        let (found, found_out) = mpsc::channel(64);
        let local = Local {
            secret: Arc::new(secret(1)),
            disco: Arc::new(DiscoSecret::from_bytes([5; 32])),
            node: Arc::new(Node::default()),
            dns: None,
            settings: Settings::default(),
        };
        let setup = Setup {
            links: LinkSetup {
                shared: Arc::clone(&shared),
                relayed: ends.relayed.clone(),
                events,
                next: Arc::default(),
            },
            shared,
            found,
            traits: Traits::default(),
            rng: &mut StdRng::from_seed([6; 32]),
        };
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.set_nonblocking(true).unwrap();
        let tailnet = Tailnet::new(local, setup, now, WALL);
        let mut bench = Self { tailnet, peer, now, _ends: ends, _found: found_out, _links: links };
        bench.tell_of_peer(RegionId::default());
        bench
    }

    /// Takes over the peer's record as the server sends it.
    fn tell_of_peer(&mut self, home: RegionId) {
        let node = Node { id: NodeId(2), key: peer_key(), home_derp: home, ..Node::default() };
        self.tailnet.set_peer(Arc::new(Peer::admit(node, None).unwrap()), self.now);
    }

    /// Takes over a record of the peer with other ways to it.
    fn tell(&mut self, change: impl FnOnce(&mut Node)) {
        let mut node = Node { id: NodeId(2), key: peer_key(), ..Node::default() };
        change(&mut node);
        self.tailnet.set_peer(Arc::new(Peer::admit(node, None).unwrap()), self.now);
    }

    /// Makes a session that the peer begins and uses.
    fn connect(&mut self) {
        let mut tunnels = Tunnels::new(secret(2), Arc::new(SessionTable::new()), [2; 32], self.now, WALL);
        let (own, from) = (secret(1).public(), self.peer.local_addr().unwrap());
        assert!(tunnels.add_peer(own));
        tunnels.start_handshake(&own, self.now).unwrap();
        let bytes = tunnels.poll_transmit().unwrap().bytes;
        self.tailnet.handle_datagram(&Datagram { socket: 0, from, bytes }, self.now);
        tunnels.handle_datagram(&self.received().pop().unwrap(), Origin::Udp(from), self.now);
        let mut confirmation = tunnels.poll_transmit().unwrap().bytes;
        let session = self.tailnet.shared.table.for_message(&confirmation).unwrap();
        assert!(session.open(&mut confirmation, self.now).unwrap().confirmed);
        self.tailnet.handle_signal(Signal::Confirmed(session), self.now);
    }

    /// Sends a packet in the session, as the worker does, and returns what kinds of messages the decision task sends then.
    fn send_data(&mut self) -> Vec<Option<MessageType>> {
        let session = self.tailnet.peers[&peer_key()].slot.session().clone().unwrap();
        session.seal(&mut [0; 128], 16, 1280, self.now).unwrap();
        self.tailnet.handle_signal(Signal::Sent(peer_key()), self.now);
        self.kinds()
    }

    fn kinds(&self) -> Vec<Option<MessageType>> {
        self.received().iter().map(|bytes| MessageType::of(bytes)).filter(Option::is_some).collect()
    }

    /// Takes over a map with one relay, whose server has no address, so that no test leaves the machine.
    fn tell_of_relay(&mut self) {
        let none = || "none".to_owned();
        let node = DerpNode { name: "900a".into(), ipv4: none(), ipv6: none(), ..DerpNode::default() };
        let region = DerpRegion { region_id: REGION, nodes: vec![node], ..DerpRegion::default() };
        let map = DerpMap { regions: Some([(REGION, region)].into()), ..DerpMap::default() };
        self.tailnet.set_map(Arc::new(map), self.now);
    }

    fn set_direct(&mut self, trusted_until: Instant) {
        let address = self.peer.local_addr().unwrap();
        let path =
            Path { direct: Some(Direct { address, socket: 0, trusted_until, largest: u16::MAX }), ..Path::default() };
        self.tailnet.peers[&peer_key()].slot.set_path(path);
    }

    /// Lets the holder of a key begin a handshake from the peer's socket.
    fn shake_hands(&mut self, number: u8) {
        let mut tunnels = Tunnels::new(secret(number), Arc::new(SessionTable::new()), [number; 32], self.now, WALL);
        let own = secret(1).public();
        assert!(tunnels.add_peer(own));
        tunnels.start_handshake(&own, self.now).unwrap();
        let bytes = tunnels.poll_transmit().unwrap().bytes;
        let datagram = Datagram { socket: 0, from: self.peer.local_addr().unwrap(), bytes };
        self.tailnet.handle_datagram(&datagram, self.now);
    }

    /// Has the worker's packet sent, and returns what the peer's socket gets.
    fn relay(&mut self) -> Vec<Vec<u8>> {
        self.received();
        self.tailnet.relay(ToRelay { peer: peer_key(), bytes: b"sealed".to_vec() }, self.now);
        self.received()
    }

    /// Takes what has arrived at the peer's socket: on loopback that is what has been sent.
    fn received(&self) -> Vec<Vec<u8>> {
        let mut buffer = [0; 2048];
        std::iter::from_fn(|| self.peer.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec())).collect()
    }
}

#[tokio::test]
async fn a_packet_without_any_way_goes_where_the_peer_shook_hands_from() {
    let mut bench = Bench::new();
    assert!(bench.relay().is_empty(), "nobody knows where the peer is");
    bench.shake_hands(3);
    assert!(bench.relay().is_empty(), "a stranger's handshake says nothing about the peer");
    bench.shake_hands(2);
    let answers: Vec<_> = bench.received().iter().map(|bytes| MessageType::of(bytes)).collect();
    assert_eq!(answers, [Some(MessageType::Response)]);
    assert_eq!(bench.relay(), [b"sealed"]);
}

#[tokio::test]
async fn a_path_that_is_searched_counts_more_than_the_handshake() {
    let mut bench = Bench::new();
    bench.shake_hands(2);
    bench.set_direct(bench.now);
    assert_eq!(bench.relay(), [b"sealed"], "proved while the packet was on its way to us");
    bench.now += Duration::from_millis(1);
    assert!(bench.relay().is_empty(), "the worker has sent it to that address already");
}

#[tokio::test]
async fn a_packet_for_a_relay_that_is_away_goes_where_the_peer_shook_hands_from() {
    let mut bench = Bench::new();
    bench.shake_hands(2);
    bench.tell_of_relay();
    assert_eq!(bench.relay(), [b"sealed"], "there is a relay, but not for this peer");
    bench.tell_of_peer(REGION);
    assert_eq!(bench.relay(), [b"sealed"], "its relay is known, but nobody answers there");
    bench.tailnet.remove_peer(&peer_key(), bench.now);
    assert!(bench.relay().is_empty());
}

#[tokio::test]
async fn a_handshake_that_came_straight_is_answered_straight() {
    let mut bench = Bench::new();
    bench.tell_of_relay();
    bench.tell_of_peer(REGION);
    bench.shake_hands(2);
    // The relay has no address: without the answer to the sender there would be none.
    let answers: Vec<_> = bench.received().iter().map(|bytes| MessageType::of(bytes)).collect();
    assert_eq!(answers, [Some(MessageType::Response)]);
}

const INITIATION: [Option<MessageType>; 1] = [Some(MessageType::Initiation)];

/// A node that was down has forgotten its sessions, and the other side sends first: in one of them.
#[tokio::test]
async fn packets_of_a_lost_session_make_us_begin_another_with_their_peer() {
    let mut bench = Bench::new();
    let at = bench.peer.local_addr().unwrap();
    bench.set_direct(bench.now + STRAY_SPACING * 10);
    for stranger in [Stray::Relayed(secret(3).public()), Stray::Straight(at)] {
        bench.tailnet.handle_signal(Signal::Stray(stranger), bench.now);
        assert_eq!(bench.kinds(), [], "{stranger:?} is nobody's");
    }
    bench.tailnet.handle_signal(Signal::Stray(Stray::Relayed(peer_key())), bench.now);
    assert_eq!(bench.kinds(), INITIATION);
    bench.tailnet.handle_signal(Signal::Stray(Stray::Relayed(peer_key())), bench.now);
    assert_eq!(bench.kinds(), [], "they prove nothing, so that this is enough");

    // By its address, another life of the node.
    let mut bench = Bench::new();
    let at = bench.peer.local_addr().unwrap();
    bench.tell(|node| node.endpoints = vec![at]);
    bench.set_direct(bench.now + STRAY_SPACING * 10);
    bench.tailnet.handle_signal(Signal::Stray(Stray::Straight(at)), bench.now);
    assert_eq!(bench.kinds(), INITIATION);
    bench.connect();
    bench.received();
    bench.now += STRAY_SPACING;
    bench.tailnet.handle_signal(Signal::Stray(Stray::Straight(at)), bench.now);
    assert_eq!(bench.kinds(), [], "a late packet of an older session");
}

/// The server says that the peer was away: the next packet begins a handshake, in case it was down; none at rest.
#[tokio::test]
async fn session_with_a_peer_that_was_away_is_renewed_when_it_is_used() {
    let mut bench = Bench::new();
    bench.set_direct(bench.now + STRAY_SPACING * 10);
    bench.tell(|node| node.online = Some(true));
    bench.connect();
    bench.received();
    bench.now += Duration::from_secs(20);
    bench.tell(|node| node.online = Some(true));
    assert_eq!(bench.send_data(), [], "nothing has happened");
    bench.now += Duration::from_secs(20);
    bench.tell(|node| node.online = Some(false));
    bench.tell(|node| node.online = Some(true));
    assert_eq!(bench.kinds().len(), 1, "to a packet that was not answered yet");
    let mut bench = Bench::new();
    bench.set_direct(bench.now + STRAY_SPACING * 10);
    bench.connect();
    bench.received();
    bench.now += Duration::from_secs(20);
    bench.tell(|node| node.online = Some(false));
    bench.tell(|node| node.online = Some(true));
    assert_eq!(bench.kinds(), [], "nobody sends");
    assert_eq!(bench.send_data(), INITIATION);
    assert_eq!(bench.send_data(), [], "one is under way");
}

/// A peer with another disco key than the server told has restarted: what it says over the relay comes sooner than the map.
#[tokio::test]
async fn session_with_a_peer_that_has_another_disco_key_is_renewed_when_it_is_used() {
    let mut bench = Bench::new();
    let [known, new] = [7, 8].map(|number| DiscoSecret::from_bytes([number; 32]));
    bench.tell(|node| node.disco_key = Some(known.public()));
    bench.set_direct(bench.now + STRAY_SPACING);
    bench.connect();
    bench.received();
    let own = bench.tailnet.paths.disco_key();
    let say = |bench: &mut Bench, secret: &DiscoSecret| {
        let shared = SharedBox::new(&secret.diffie_hellman(own.as_bytes()).unwrap());
        let bytes = disco::seal(&shared, &secret.public(), &[1; 24], &Message::CallMeMaybe(Vec::new()));
        bench.now += Duration::from_secs(20);
        // The paths know of none, and have said so.
        bench.set_direct(bench.now + STRAY_SPACING);
        bench.tailnet.handle_relayed(REGION, peer_key(), &bytes, bench.now);
        bench.send_data()
    };
    assert_eq!(say(&mut bench, &known), []);
    assert_eq!(say(&mut bench, &new), INITIATION);
}
