use super::*;
use crate::host::Cut;
use proptest::prelude::*;
use warren_os::{SegmentKind, Segments, VnetHeader};

const MTU: u16 = 1280;
/// How long a packet is under way.
const DELAY: Duration = Duration::from_millis(10);

/// Two stacks with a link between them, and a clock.
struct Pair {
    stacks: [Stack; 2],
    now: Instant,
    /// Packets under way to the stack of that number.
    link: VecDeque<(Instant, usize, Vec<u8>)>,
    /// Every packet of this number is lost.
    lose: Option<usize>,
    sent: usize,
    /// What each stack's shell was told.
    events: [Vec<Event>; 2],
    largest: usize,
}

impl Pair {
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start of the virtual clock")]
    fn new() -> Self {
        let now = Instant::now();
        let mut stacks = [1, 2].map(|seed| Stack::new(MTU, [seed; 32], now));
        for (stack, number) in stacks.iter_mut().zip([1, 2]) {
            stack.set_addresses(&own(number));
        }
        let events = [Vec::new(), Vec::new()];
        Self { stacks, now, link: VecDeque::new(), lose: None, sent: 0, events, largest: 0 }
    }

    /// Sends what is due, as the packet worker would.
    fn send(&mut self) {
        for (number, stack) in self.stacks.iter_mut().enumerate() {
            loop {
                stack.flush(self.now);
                let Some(Outgoing { mut bytes, segment }) = stack.poll_outgoing() else { break };
                let kind = if bytes[0] >> 4 == 6 { SegmentKind::Tcp6 } else { SegmentKind::Tcp4 };
                let segments = segment.map(|bytes| Segments { kind, bytes: bytes.get(), header_bytes: 0, ecn: false });
                let cut = Cut::new(&mut bytes, VnetHeader { checksum: None, segments }).unwrap();
                for part in 0..cut.count() {
                    let mut packet = vec![0; cut.length(part)];
                    cut.write(part, &mut packet).unwrap();
                    self.largest = self.largest.max(packet.len());
                    self.sent += 1;
                    if !self.lose.is_some_and(|every| self.sent.is_multiple_of(every)) {
                        self.link.push_back((self.now + DELAY, 1 - number, packet));
                    }
                }
            }
        }
    }

    /// Lets the next thing happen; false if there is none.
    fn step(&mut self) -> bool {
        self.send();
        let due = self.stacks.iter_mut().filter_map(|stack| stack.poll_timeout(self.now)).min();
        let next = self.link.front().map(|(at, ..)| *at).into_iter().chain(due).min();
        let Some(next) = next else { return false };
        self.now = self.now.max(next);
        // What came together is taken together.
        while let Some((_, number, packet)) = self.link.pop_front_if(|(at, ..)| *at <= self.now) {
            let event = self.stacks[number].handle_packet(packet, false, self.now);
            self.events[number].extend(event);
        }
        true
    }

    fn run(&mut self, until: impl Fn(&mut Self) -> bool) {
        for _ in 0..200_000 {
            if until(self) {
                return;
            }
            if !self.step() {
                assert!(until(self), "nothing happens any more");
                return;
            }
        }
        panic!("no end");
    }

    /// Opens a connection from the first to the second, and returns its names there.
    fn connect(&mut self, to: &str) -> [Flow; 2] {
        let flow = self.stacks[0].connect(to.parse().unwrap()).unwrap();
        let there = Flow { own: flow.peer, peer: flow.own };
        self.run(|pair| !pair.events[1].is_empty());
        assert_eq!(std::mem::take(&mut self.events[1]), [Event::Asked(there)]);
        assert!(self.stacks[1].accept(there, self.now));
        self.run(|pair| pair.state(0, &flow) == State::Established && pair.state(1, &there) == State::Established);
        [flow, there]
    }

    fn state(&mut self, number: usize, flow: &Flow) -> State {
        self.stacks[number].socket(flow).unwrap().state()
    }

    /// Sends bytes from one end to the other and returns how long that took.
    fn transfer(&mut self, from: usize, flows: &[Flow; 2], bytes: usize) -> Duration {
        let data: Vec<u8> = (0..bytes).map(|at| (at.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
        let (mut sent, mut got, begin) = (0, Vec::new(), self.now);
        let mut buffer = vec![0; 1 << 20];
        for _ in 0..2_000_000 {
            if sent < bytes {
                sent += self.stacks[from].socket(&flows[from]).unwrap().send_slice(&data[sent..]).unwrap();
            }
            // The buffer is a ring: what it holds may come in two parts.
            for _ in 0..2 {
                let count = self.stacks[1 - from].socket(&flows[1 - from]).unwrap().recv_slice(&mut buffer).unwrap();
                got.extend_from_slice(&buffer[..count]);
            }
            if got.len() == bytes {
                assert!(got == data, "other bytes came than were sent");
                return self.now - begin;
            }
            assert!(self.step(), "stuck after {} bytes", got.len());
        }
        panic!("only {} bytes came", got.len());
    }
}

/// Addresses of a node.
fn own(number: u8) -> [IpAddr; 2] {
    [IpAddr::from([100, 64, 0, number]), IpAddr::from([0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, u16::from(number)])]
}

#[test]
fn bytes_arrive_whole_both_ways_in_both_families_and_no_packet_is_too_large() {
    for to in ["100.64.0.2:80", "[fd7a:115c:a1e0::2]:80"] {
        let mut pair = Pair::new();
        let flows = pair.connect(to);
        pair.transfer(0, &flows, 3_000_000);
        pair.transfer(1, &flows, 3_000_000);
        assert_eq!(pair.largest, usize::from(MTU), "full packets, and none larger");
    }
}

/// One acknowledgement may be for many packets; the window must open as if each had one.
#[test]
fn the_window_opens_in_a_few_round_trips() {
    for to in ["100.64.0.2:80", "[fd7a:115c:a1e0::2]:80"] {
        let mut pair = Pair::new();
        let flows = pair.connect(to);
        let took = pair.transfer(0, &flows, 1 << 20);
        // 2 KiB, doubled each time, make 1 MiB in 9 round trips of 20 ms; acknowledging little by little, in 400. And
        // nothing is sent twice.
        assert!(took < DELAY * 2 * 25, "{took:?} to {to}");
    }
}

#[test]
fn lost_packets_are_sent_again() {
    let mut pair = Pair::new();
    pair.lose = Some(37);
    let flows = pair.connect("100.64.0.2:80");
    pair.transfer(0, &flows, 1_000_000);
    pair.transfer(1, &flows, 1_000_000);
}

#[test]
fn a_refused_connection_is_told_at_once() {
    let mut pair = Pair::new();
    let flow = pair.stacks[0].connect("100.64.0.2:81".parse().unwrap()).unwrap();
    let there = Flow { own: flow.peer, peer: flow.own };
    pair.run(|pair| !pair.events[1].is_empty());
    let begin = pair.now;
    pair.stacks[1].refuse(there, pair.now);
    pair.run(|pair| pair.state(0, &flow) == State::Closed);
    assert_eq!((pair.now - begin, pair.stacks[1].count()), (DELAY, 0));
    pair.stacks[0].release(&flow, pair.now);
    pair.run(|pair| pair.stacks[0].count() == 0);
}

#[test]
fn connections_that_end_leave_nothing() {
    let mut pair = Pair::new();
    let flows = pair.connect("100.64.0.2:80");
    pair.transfer(0, &flows, 1000);
    pair.stacks[0].release(&flows[0], pair.now);
    pair.run(|pair| pair.state(1, &flows[1]) == State::CloseWait);
    pair.stacks[1].release(&flows[1], pair.now);
    pair.run(|pair| pair.stacks[0].count() + pair.stacks[1].count() == 0);
    // Neither does one whose other end does not end.
    let flows = pair.connect("100.64.0.2:80");
    pair.stacks[0].release(&flows[0], pair.now);
    let begin = pair.now;
    pair.run(|pair| pair.stacks[0].count() == 0);
    assert!(pair.now - begin >= LINGER, "its peer may still have something to say");
}

/// Else the other end would take it for read.
#[test]
fn what_was_not_read_when_the_reader_ends_is_told() {
    let mut pair = Pair::new();
    let flows = pair.connect("100.64.0.2:80");
    pair.stacks[0].socket(&flows[0]).unwrap().send_slice(b"hello").unwrap();
    pair.run(|pair| pair.stacks[1].socket(&flows[1]).unwrap().recv_queue() == 5);
    pair.stacks[1].release(&flows[1], pair.now);
    pair.run(|pair| pair.state(0, &flows[0]) == State::Closed);
    assert_eq!(pair.stacks[1].count(), 0);
}

#[test]
fn a_silent_peer_is_given_up() {
    let mut pair = Pair::new();
    let flows = pair.connect("100.64.0.2:80");
    pair.lose = Some(1);
    let begin = pair.now;
    pair.run(|pair| pair.state(0, &flows[0]) == State::Closed);
    assert!(pair.now - begin < SILENCE + KEEP_ALIVE * 2, "{:?}", pair.now - begin);
}

/// Returns a SYN from a port of peer `peer` to port 80 of the first stack.
fn syn(peer: u8, port: u16) -> Vec<u8> {
    syn_of_family(peer, port, 0)
}

/// Likewise in IPv4 (0) or IPv6 (1).
fn syn_of_family(peer: u8, port: u16, family: usize) -> Vec<u8> {
    let mut stack = Stack::new(MTU, [9; 32], Pair::new().now);
    stack.set_addresses(&own(peer));
    let now = stack.epoch;
    let mut socket = stack.socket_for_one();
    let (to, from): (SocketAddr, SocketAddr) = ((own(1)[family], 80).into(), (own(peer)[family], port).into());
    socket.connect(stack.interface.context(), to, from).unwrap();
    stack.sockets.add(socket);
    stack.flush(now);
    stack.poll_outgoing().unwrap().bytes
}

/// Each connection takes memory before anybody has said a word.
#[test]
fn no_peer_gets_more_than_its_part_and_all_together_no_more_than_there_is() {
    let mut pair = Pair::new();
    let stack = &mut pair.stacks[0];
    let mut asked = |peer: u8, port: u16, accept: bool| {
        let event = stack.handle_packet(syn(peer, port), false, pair.now);
        if let (Some(Event::Asked(flow)), true) = (&event, accept) {
            assert!(stack.accept(*flow, pair.now));
            while stack.poll_outgoing().is_some() {}
        }
        event.is_some()
    };
    let ports = 1000..2000;
    let waiting = ports.clone().filter(|port| asked(2, *port, false)).count();
    assert_eq!(waiting, MAX_ASKING_OF_PEER);
    let others = (3..6).flat_map(|peer| ports.clone().map(move |port| (peer, port)));
    assert_eq!(others.filter(|(peer, port)| asked(*peer, *port, false)).count(), MAX_ASKING - MAX_ASKING_OF_PEER);
    assert!(!asked(2, 1000, false), "one that comes again is the same one");
    stack.asking.clear();
    let of_two = ports.clone().filter(|port| {
        let event = stack.handle_packet(syn(2, *port), false, pair.now);
        matches!(event, Some(Event::Asked(flow)) if stack.accept(flow, pair.now))
    });
    assert_eq!(of_two.count(), MAX_OF_PEER);
    let of_three = ports.filter(|port| {
        let event = stack.handle_packet(syn(3, *port), false, pair.now);
        matches!(event, Some(Event::Asked(flow)) if stack.accept(flow, pair.now))
    });
    assert_eq!(of_three.count(), MAX_CONNECTIONS - MAX_OF_PEER);
    assert_eq!(stack.connect("100.64.0.2:80".parse().unwrap()), Err(ConnectError::Full));
    // Whoever says nothing more is forgotten, whether anybody holds it or not.
    pair.lose = Some(1);
    pair.run(|pair| {
        let flows: Vec<Flow> = pair.stacks[0].connections.keys().copied().collect();
        flows.into_iter().all(|flow| pair.state(0, &flow) == State::Closed)
    });
}

/// A peer has two addresses at least, and as many more as there are hosts behind it.
#[test]
fn all_addresses_of_a_peer_have_one_share() {
    let mut pair = Pair::new();
    let stack = &mut pair.stacks[0];
    stack.tell_apart(Arc::new(|address| own(2).contains(&address).then(|| NodeKey::from_bytes([2; 32]))));
    let mut accepted = |peer: u8, family: usize, count: u16| {
        let accept = |port: &u16| {
            let event = stack.handle_packet(syn_of_family(peer, *port, family), false, pair.now);
            let is_open = matches!(event, Some(Event::Asked(flow)) if stack.accept(flow, pair.now));
            while stack.poll_outgoing().is_some() {}
            is_open
        };
        (1000..1000 + count).filter(accept).count()
    };
    assert_eq!(accepted(2, 0, 200), 200);
    assert_eq!(accepted(2, 1, 200), MAX_OF_PEER - 200, "the twin is the same peer");
    assert_eq!(accepted(3, 1, 100), 100, "others have their own");
}

/// A peer asks from the port to which this node has just connected, and by chance from where.
#[test]
fn a_connection_is_not_taken_twice() {
    let mut pair = Pair::new();
    let flow = pair.stacks[0].connect("100.64.0.2:80".parse().unwrap()).unwrap();
    let stack = &mut pair.stacks[0];
    let holder = stack.holder(flow.peer.ip());
    stack.asking.insert(flow, (holder, syn(2, 80)));
    assert!(!stack.accept(flow, pair.now));
    assert_eq!((stack.sockets.iter().count(), stack.count()), (1, 1), "the first one goes on, and no socket is lost");
    // Nor is one begun that a peer is asking for.
    let peer = SocketAddr::from((own(2)[0], 1000));
    for port in PORTS {
        stack.asking.insert(Flow { own: (own(1)[0], port).into(), peer }, (holder, Vec::new()));
    }
    assert_eq!(stack.connect(peer), Err(ConnectError::Full));
}

#[test]
fn pings_of_own_addresses_are_answered_and_nobody_elses() {
    for (from, to) in own(2).into_iter().zip(own(1)) {
        let mut pair = Pair::new();
        let ping = ping(from, to);
        assert_eq!(pair.stacks[0].handle_packet(ping.clone(), false, pair.now), None);
        let answer = pair.stacks[0].poll_outgoing().unwrap().bytes;
        let answer = Packet::parse(&answer).unwrap();
        assert_eq!((answer.source(), answer.destination()), (to, from));
        assert!(matches!(answer.body(), Body::Icmp(Icmp::EchoReply { .. })));
        assert_eq!(pair.stacks[1].handle_packet(ping, false, pair.now), None);
        assert_eq!(pair.stacks[1].poll_outgoing(), None);
    }
}

fn ping(from: IpAddr, to: IpAddr) -> Vec<u8> {
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpProtocol, IpRepr};
    let checksums = ChecksumCapabilities::default();
    let data = b"hello";
    let protocol = if from.is_ipv4() { IpProtocol::Icmp } else { IpProtocol::Icmpv6 };
    let ip = IpRepr::new(from.into(), to.into(), protocol, 8 + data.len(), 64);
    let mut bytes = vec![0; ip.buffer_len()];
    ip.emit(&mut bytes[..], &checksums);
    let payload = &mut bytes[ip.header_len()..];
    match (from, to) {
        (IpAddr::V4(_), _) => Icmpv4Repr::EchoRequest { ident: 1, seq_no: 2, data }
            .emit(&mut Icmpv4Packet::new_unchecked(payload), &checksums),
        (IpAddr::V6(from), IpAddr::V6(to)) => Icmpv6Repr::EchoRequest { ident: 1, seq_no: 2, data }.emit(
            &from,
            &to,
            &mut Icmpv6Packet::new_unchecked(payload),
            &checksums,
        ),
        _ => unreachable!("both are of one family"),
    }
    bytes
}

#[test]
fn addresses_that_are_gone_end_their_connections() {
    let mut pair = Pair::new();
    let flows = pair.connect("100.64.0.2:80");
    pair.stacks[0].set_addresses(&[]);
    pair.send();
    assert_eq!(pair.state(0, &flows[0]), State::Closed);
    assert_eq!(pair.stacks[0].connect("100.64.0.2:80".parse().unwrap()), Err(ConnectError::NoAddress));
}

/// Answers are made at once, and go out only as fast as the packet worker takes them.
#[test]
fn answers_that_nobody_takes_do_not_pile_up() {
    let mut pair = Pair::new();
    let (from, to) = (IpAddr::from([100, 64, 0, 2]), IpAddr::from([100, 64, 0, 1]));
    for _ in 0..10 * MAX_CONNECTIONS {
        pair.stacks[0].handle_packet(ping(from, to), false, pair.now);
    }
    let waiting = std::iter::from_fn(|| pair.stacks[0].poll_outgoing()).count();
    assert!((1..=MAX_CONNECTIONS).contains(&waiting), "{waiting} answers wait");
}

#[test]
fn a_damaged_packet_opens_nothing() {
    let mut pair = Pair::new();
    let mut bad = syn(2, 1000);
    *bad.last_mut().unwrap() ^= 1;
    assert_eq!(pair.stacks[0].handle_packet(bad, false, pair.now), None);
}

proptest! {
    /// Whatever a peer puts into its packets.
    #[test]
    fn no_packet_breaks_the_stack(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        flags: u8, numbers: [u8; 8], joined: bool, port in 1000_u16..1002,
    ) {
        let mut pair = Pair::new();
        let now = pair.now;
        let stack = &mut pair.stacks[0];
        let event = stack.handle_packet(syn(2, 1000), false, now);
        if let Some(Event::Asked(flow)) = event {
            prop_assert!(stack.accept(flow, now));
        }
        let mut bytes = syn(2, port);
        bytes[24..32].copy_from_slice(&numbers);
        bytes[33] = flags;
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        let event = stack.handle_packet(bytes, joined, now);
        if let Some(Event::Asked(flow)) = event {
            stack.accept(flow, now);
        }
        stack.flush(now);
        while let Some(Outgoing { bytes, .. }) = stack.poll_outgoing() {
            prop_assert!(Packet::parse(&bytes).is_ok());
        }
    }
}
