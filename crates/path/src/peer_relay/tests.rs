//! A relay, its two clients and strangers, message by message.

use super::*;
use crate::testing::epoch;
use proptest::prelude::*;
use warren_wire::key::NodeSecret;

const SECOND: Duration = Duration::from_secs(1);

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, last], 41641))
}

fn secret(number: u8) -> DiscoSecret {
    DiscoSecret::from_bytes([number; 32])
}

fn node(number: u8) -> NodeKey {
    NodeSecret::from_bytes([number; 32]).public()
}

/// A relay at work and its clients 1 and 2; 3 is a stranger.
struct Bench {
    server: PeerRelayServer,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self { server: PeerRelayServer::new(secret(9), [7; 32], epoch()), now: epoch() }
    }

    fn allocate(&mut self) -> RelayEndpoint {
        let clients = [secret(1).public(), secret(2).public()];
        self.server.allocate(&node(1), clients, &[address(9)], self.now).unwrap()
    }

    fn shared(&self, client: u8) -> SharedBox {
        SharedBox::new(&secret(client).diffie_hellman(self.server.public.as_bytes()).unwrap())
    }

    /// Sends a control message of a client from an address.
    fn control(&mut self, client: u8, from: SocketAddr, vni: u32, message: &Message) -> Verdict {
        let sealed = disco::seal(&self.shared(client), &secret(client).public(), &[5; 24], message);
        let datagram = Header { control: true, protocol: Protocol::Disco, vni }.wrap(&sealed);
        let verdict = self.server.handle(from, &datagram, self.now);
        if let Verdict::Answer(bytes) = &verdict {
            assert!(bytes.len() <= datagram.len(), "no amplification");
        }
        verdict
    }

    fn bind(client: u8, vni: u32, generation: u32) -> Bind {
        Bind { vni, generation, remote_key: secret(3 - client).public(), challenge: [0; 32] }
    }

    /// Asks for a challenge and returns it.
    fn challenge(&mut self, client: u8, from: SocketAddr, vni: u32, generation: u32) -> Bind {
        let message = Message::BindEndpoint(Self::bind(client, vni, generation));
        let Verdict::Answer(bytes) = self.control(client, from, vni, &message) else { panic!("no challenge") };
        let (header, sealed) = Header::decode(&bytes).unwrap();
        assert_eq!(header, Header { control: true, protocol: Protocol::Disco, vni });
        match disco::open(&self.shared(client), sealed) {
            Ok(Message::BindChallenge(bind)) => bind,
            other => panic!("{other:?}"),
        }
    }

    fn bind_leg(&mut self, client: u8, from: SocketAddr, vni: u32) {
        let bind = self.challenge(client, from, vni, 1);
        assert_eq!(self.control(client, from, vni, &Message::BindAnswer(bind)), Verdict::Drop);
    }

    fn data(&mut self, from: SocketAddr, vni: u32) -> Verdict {
        let datagram = Header { control: false, protocol: Protocol::WireGuard, vni }.wrap(&[4, 0, 0, 0, 9]);
        self.server.handle(from, &datagram, self.now)
    }
}

#[test]
fn two_clients_bind_and_their_datagrams_go_both_ways() {
    let mut bench = Bench::new();
    let endpoint = bench.allocate();
    assert_eq!(endpoint.addresses, [address(9)]);
    assert_eq!(bench.data(address(1), endpoint.vni), Verdict::Drop, "nobody is bound");
    bench.bind_leg(1, address(1), endpoint.vni);
    assert_eq!(bench.data(address(1), endpoint.vni), Verdict::Drop, "the other is not bound");
    bench.bind_leg(2, address(2), endpoint.vni);
    assert_eq!(bench.data(address(1), endpoint.vni), Verdict::Forward(address(2)));
    assert_eq!(bench.data(address(2), endpoint.vni), Verdict::Forward(address(1)));
    assert_eq!(bench.data(address(3), endpoint.vni), Verdict::Drop, "a stranger who guessed the number");
    assert_eq!(bench.data(address(1), endpoint.vni + 1), Verdict::Drop);
    assert_eq!(bench.server.counts(), (1, 1));
    // A client that moved binds anew, and its old address is nobody's any more.
    bench.bind_leg(1, address(4), endpoint.vni);
    assert_eq!(bench.data(address(1), endpoint.vni), Verdict::Drop);
    assert_eq!(bench.data(address(2), endpoint.vni), Verdict::Forward(address(4)));
}

#[test]
fn an_address_is_proved_before_anything_is_sent_there() {
    let mut bench = Bench::new();
    let vni = bench.allocate().vni;
    bench.bind_leg(2, address(2), vni);
    let bind = bench.challenge(1, address(1), vni, 7);
    for (from, answer) in [
        (address(5), bind),
        (address(1), Bind { generation: 8, ..bind }),
        (address(1), Bind { challenge: [0; 32], ..bind }),
        (address(1), Bind { remote_key: secret(1).public(), ..bind }),
        (address(1), Bind { vni: vni + 1, ..bind }),
    ] {
        assert_eq!(bench.control(1, from, vni, &Message::BindAnswer(answer)), Verdict::Drop);
        assert_eq!(bench.data(address(2), vni), Verdict::Drop, "{answer:?} from {from}");
    }
    // The challenge of one client is nothing in the hand of the other.
    let stolen = Bind { remote_key: secret(1).public(), ..bind };
    bench.control(2, address(1), vni, &Message::BindAnswer(stolen));
    assert_eq!(bench.data(address(2), vni), Verdict::Drop);
    bench.control(1, address(1), vni, &Message::BindAnswer(bind));
    assert_eq!(bench.data(address(2), vni), Verdict::Forward(address(1)));
    // Once more, replayed: the handshake is over.
    bench.bind_leg(1, address(6), vni);
    bench.control(1, address(1), vni, &Message::BindAnswer(bind));
    assert_eq!(bench.data(address(2), vni), Verdict::Forward(address(6)));
}

#[test]
fn an_old_challenge_is_not_taken() {
    let mut bench = Bench::new();
    let vni = bench.allocate().vni;
    bench.bind_leg(1, address(1), vni);
    bench.bind_leg(2, address(2), vni);
    let bind = bench.challenge(1, address(5), vni, 3);
    bench.now += SECRET_LIFETIME * 2;
    bench.control(1, address(5), vni, &Message::BindAnswer(bind));
    assert_eq!(bench.data(address(2), vni), Verdict::Forward(address(1)));
}

#[test]
fn strangers_get_no_byte() {
    let mut bench = Bench::new();
    let vni = bench.allocate().vni;
    let bind = Bind { vni, generation: 1, remote_key: secret(2).public(), challenge: [0; 32] };
    assert_eq!(bench.control(3, address(3), vni, &Message::BindEndpoint(bind)), Verdict::Drop);
    let zero = Bind { generation: 0, ..bind };
    assert_eq!(bench.control(1, address(1), vni, &Message::BindEndpoint(zero)), Verdict::Drop);
    // A client's own message that is none of the handshake, and one that the stranger changed.
    assert_eq!(bench.control(1, address(1), vni, &Message::CallMeMaybe(Vec::new())), Verdict::Drop);
    assert_eq!(bench.control(1, address(1), vni, &Message::BindChallenge(bind)), Verdict::Drop);
    let good = disco::seal(&bench.shared(1), &secret(1).public(), &[5; 24], &Message::BindEndpoint(bind));
    let mut bad = Header { control: true, protocol: Protocol::Disco, vni }.wrap(&good);
    *bad.last_mut().unwrap() ^= 1;
    assert_eq!(bench.server.handle(address(1), &bad, bench.now), Verdict::Drop);
}

#[test]
fn the_same_clients_have_the_same_endpoint_while_it_lives() {
    let mut bench = Bench::new();
    let first = bench.allocate();
    let clients = [secret(2).public(), secret(1).public()];
    let again = bench.server.allocate(&node(2), clients, &[address(8)], bench.now).unwrap();
    assert_eq!((again.vni, again.lamport_id), (first.vni, first.lamport_id));
    assert_eq!(again.addresses, [address(8)], "but its addresses are the present ones");
    bench.now += BIND_LIFETIME + SECOND;
    let later = bench.allocate();
    assert!(later.vni != first.vni && later.lamport_id > first.lamport_id);
}

#[test]
fn endpoints_end_unbound_after_half_a_minute_and_silent_after_five() {
    let mut bench = Bench::new();
    let vni = bench.allocate().vni;
    assert!(bench.server.poll_timeout().is_some());
    bench.bind_leg(1, address(1), vni);
    bench.bind_leg(2, address(2), vni);
    for _ in 0..20 {
        bench.now += SWEEP;
        bench.data(address(1), vni);
        bench.server.handle_timeout(bench.now);
        if bench.server.counts() == (0, 0) {
            break;
        }
    }
    let lived = bench.now - epoch();
    assert!(lived > STEADY_LIFETIME && lived <= STEADY_LIFETIME + SWEEP, "one silent client ends it: {lived:?}");
    assert_eq!(bench.server.poll_timeout(), None, "a relay without endpoints sleeps");
    bench.allocate();
    bench.now += BIND_LIFETIME + SWEEP;
    bench.server.handle_timeout(bench.now);
    assert_eq!(bench.server.counts(), (0, 0));
}

#[test]
fn room_is_bounded_for_each_and_for_all() {
    let mut bench = Bench::new();
    let key = |number: u16| {
        let mut bytes = [3; 32];
        bytes[1..3].copy_from_slice(&number.to_be_bytes());
        DiscoSecret::from_bytes(bytes).public()
    };
    let mine = secret(1).public();
    for number in 0..u16::try_from(MAX_PER_NODE).unwrap() {
        bench.server.allocate(&node(1), [mine, key(number)], &[address(9)], bench.now).unwrap();
    }
    let one_more = |bench: &mut Bench, asked_by| {
        bench.server.allocate(&node(asked_by), [mine, key(u16::MAX)], &[address(9)], bench.now)
    };
    assert_eq!(one_more(&mut bench, 1), Err(AllocateError::NodeFull));
    assert!(one_more(&mut bench, 2).is_ok(), "others have room");
    assert_eq!(bench.server.allocate(&node(3), [mine, mine], &[address(9)], bench.now), Err(AllocateError::Clients));
    let weak = DiscoKey::from_bytes([0; 32]);
    assert_eq!(bench.server.allocate(&node(3), [mine, weak], &[address(9)], bench.now), Err(AllocateError::Clients));
    let nowhere = ["0.0.0.0:1".parse().unwrap()];
    assert_eq!(bench.server.allocate(&node(3), [mine, key(7)], &nowhere, bench.now), Err(AllocateError::NoAddress));
}

proptest! {
    /// Whatever comes from wherever: nothing that was not asked for by a client is sent, and never more than came.
    #[test]
    fn noise_gets_nothing(datagrams in proptest::collection::vec(
        (proptest::collection::vec(any::<u8>(), 0..200), any::<bool>(), any::<u8>()), 1..20,
    )) {
        let mut bench = Bench::new();
        let vni = bench.allocate().vni;
        bench.bind_leg(1, address(1), vni);
        bench.bind_leg(2, address(2), vni);
        for (bytes, control, from) in datagrams {
            let from = address(from.max(3));
            prop_assert_eq!(bench.server.handle(from, &bytes, bench.now), Verdict::Drop);
            for protocol in [Protocol::Disco, Protocol::WireGuard] {
                let datagram = Header { control, protocol, vni }.wrap(&bytes);
                prop_assert_eq!(bench.server.handle(from, &datagram, bench.now), Verdict::Drop);
            }
        }
    }
}
