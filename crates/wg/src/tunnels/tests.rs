#![expect(clippy::disallowed_methods, reason = "any instant will do as the start of the virtual clock")]

mod hostile;
mod link;
mod restart;

use super::timers::REKEY_ATTEMPT;
use super::*;
use crate::session::{HEADROOM, TAILROOM};

const MTU: usize = 1280;

/// Two nodes on a virtual clock with an ideal link.
struct Pair {
    now: Instant,
    sides: [Side; 2],
}

struct Side {
    tunnels: Tunnels,
    table: Arc<SessionTable>,
    session: Option<Arc<Session>>,
    received: Vec<Vec<u8>>,
    sent_messages: usize,
}

fn secret(number: u8) -> NodeSecret {
    NodeSecret::from_bytes([number + 1; 32])
}

impl Pair {
    fn new() -> Self {
        let now = Instant::now();
        let side = |number: u8| {
            let table = Arc::new(SessionTable::new());
            let wall = Duration::from_secs(1_795_000_000);
            let mut tunnels = Tunnels::new(secret(number), Arc::clone(&table), [number; 32], now, wall);
            assert!(tunnels.add_peer(secret(1 - number).public()));
            Side { tunnels, table, session: None, received: Vec::new(), sent_messages: 0 }
        };
        Self { now, sides: [side(0), side(1)] }
    }

    fn origin() -> Origin {
        Origin::Udp(SocketAddr::from(([192, 0, 2, 1], 41_641)))
    }

    /// Delivers everything that waits, dropping messages for which `lose` is true, until all is quiet.
    fn settle(&mut self, mut lose: impl FnMut(usize, &[u8]) -> bool) {
        loop {
            let mut quiet = true;
            for from in [0, 1] {
                while let Some(event) = self.sides[from].tunnels.poll_event() {
                    match event {
                        Event::Ready { session, .. } => self.sides[from].session = Some(session),
                        Event::Closed { .. } => self.sides[from].session = None,
                        Event::Failed { .. } => {}
                    }
                }
                while let Some(transmit) = self.sides[from].tunnels.poll_transmit() {
                    quiet = false;
                    self.sides[from].sent_messages += 1;
                    if !lose(from, &transmit.bytes) {
                        self.deliver(1 - from, transmit.bytes);
                    }
                }
            }
            if quiet {
                return;
            }
        }
    }

    fn deliver(&mut self, to: usize, mut bytes: Vec<u8>) {
        let now = self.now;
        let side = &mut self.sides[to];
        if MessageType::of(&bytes) != Some(MessageType::Transport) {
            side.tunnels.handle_datagram(&bytes, Self::origin(), now);
            return;
        }
        let Some(session) = side.table.for_message(&bytes) else { return };
        if let Ok(opened) = session.open(&mut bytes, now) {
            if opened.confirmed {
                side.tunnels.confirm(&session, now);
            }
            side.tunnels.note_activity(&session.peer(), now);
            if opened.length > 0 {
                side.received.push(bytes[HEADROOM..HEADROOM + opened.length].to_vec());
            }
        }
    }

    /// Sends data from one side as a worker would; true if there was a session.
    fn send(&mut self, from: usize, data: &[u8]) -> bool {
        let now = self.now;
        let peer = secret(1 - u8::try_from(from).unwrap()).public();
        let Some(session) = self.sides[from].session.clone() else {
            self.sides[from].tunnels.start_handshake(&peer, now).unwrap();
            return false;
        };
        let mut buffer = vec![0; HEADROOM + data.len() + TAILROOM];
        buffer[HEADROOM..HEADROOM + data.len()].copy_from_slice(data);
        let Ok(length) = session.seal(&mut buffer, data.len(), MTU, now) else {
            self.sides[from].tunnels.start_handshake(&peer, now).unwrap();
            return false;
        };
        buffer.truncate(length);
        self.sides[from].tunnels.note_activity(&peer, now);
        self.deliver(1 - from, buffer);
        true
    }

    /// Lets time pass, acting on deadlines.
    fn advance(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let next = self.sides.iter().filter_map(|side| side.tunnels.poll_timeout()).min();
            match next.filter(|at| *at <= end) {
                Some(at) => {
                    self.now = self.now.max(at);
                    let now = self.now;
                    self.sides.iter_mut().for_each(|side| side.tunnels.handle_timeout(now));
                    self.settle(|_, _| false);
                }
                None => break,
            }
        }
        self.now = end;
    }

    fn connected() -> Self {
        let mut pair = Self::new();
        assert!(!pair.send(0, b"first"));
        pair.settle(|_, _| false);
        assert!(pair.sides.iter().all(|side| side.session.is_some()), "both sides have a session");
        pair
    }
}

#[test]
fn data_flows_both_ways_after_one_handshake() {
    let mut pair = Pair::connected();
    assert!(pair.send(0, b"hello") && pair.send(1, &[7; 1280]));
    assert_eq!(pair.sides[1].received, [[b"hello".as_slice(), &[0; 11]].concat()]);
    assert_eq!(pair.sides[0].received, [vec![7; 1280]]);
}

#[test]
fn responder_does_not_send_before_it_heard_the_initiator() {
    let mut pair = Pair::new();
    pair.send(0, b"");
    // The confirmation is lost: the responder has no session to send with.
    pair.settle(|_, bytes| bytes.first() == Some(&4));
    assert!(pair.sides[0].session.is_some() && pair.sides[1].session.is_none());
}

#[test]
fn replayed_data_and_replayed_initiations_do_nothing() {
    let mut pair = Pair::new();
    pair.send(0, b"");
    let mut initiation = Vec::new();
    pair.settle(|_, bytes| {
        if bytes.first() == Some(&1) {
            initiation = bytes.to_vec();
        }
        false
    });
    pair.advance(Duration::from_secs(1));
    let before = pair.sides[1].sent_messages;
    pair.deliver(1, initiation);
    pair.settle(|_, _| false);
    assert_eq!(pair.sides[1].sent_messages, before, "no answer to a replayed initiation");

    let session = pair.sides[0].session.clone().unwrap();
    let mut buffer = vec![0; HEADROOM + 16 + TAILROOM];
    let length = session.seal(&mut buffer, 16, MTU, pair.now).unwrap();
    buffer.truncate(length);
    pair.deliver(1, buffer.clone());
    pair.deliver(1, buffer);
    assert_eq!(pair.sides[1].received.len(), 1);
}

#[test]
fn idle_tunnel_is_silent_and_dies() {
    let mut pair = Pair::connected();
    pair.send(0, b"x");
    // The one keep-alive that answers the data.
    pair.advance(Duration::from_secs(60));
    let sent = |pair: &Pair| pair.sides.iter().map(|side| side.sent_messages).sum::<usize>();
    let before = sent(&pair);
    pair.advance(Duration::from_secs(600));
    assert_eq!(sent(&pair), before);
    assert!(pair.sides.iter().all(|side| side.session.is_none() && side.tunnels.poll_timeout().is_none()));
}

#[test]
fn traffic_renews_the_session_without_a_gap() {
    let mut pair = Pair::connected();
    let first = pair.sides[0].session.clone().unwrap();
    let mut lost = 0;
    for _ in 0..400 {
        pair.advance(Duration::from_secs(1));
        lost += usize::from(!pair.send(0, b"ping")) + usize::from(!pair.send(1, b"pong"));
        pair.settle(|_, _| false);
    }
    assert_eq!(lost, 0);
    assert!(!Arc::ptr_eq(&first, pair.sides[0].session.as_ref().unwrap()));
    assert_eq!(pair.sides[0].received.len(), 400);
    assert_eq!(pair.sides[1].received.len(), 400);
}

#[cfg(debug_assertions)]
#[test]
fn a_test_can_have_sessions_renewed_each_second() {
    let mut pair = Pair::connected();
    pair.sides[0].tunnels.set_rekey_after(Duration::from_secs(1));
    let (mut sessions, mut last) = (0, pair.sides[0].session.clone().unwrap());
    for _ in 0..20 {
        pair.advance(Duration::from_millis(500));
        assert!(pair.send(0, b"ping") && pair.send(1, b"pong"));
        pair.settle(|_, _| false);
        let now = pair.sides[0].session.clone().unwrap();
        sessions += usize::from(!Arc::ptr_eq(&now, &last));
        last = now;
    }
    assert_eq!(sessions, 10);
    assert_eq!((pair.sides[0].received.len(), pair.sides[1].received.len()), (20, 20));
}

#[test]
fn unanswered_handshake_is_retried_and_given_up() {
    let mut pair = Pair::new();
    pair.send(0, b"x");
    let mut initiations = 0;
    let start = pair.now;
    while let Some(at) = pair.sides[0].tunnels.poll_timeout() {
        pair.now = at;
        pair.sides[0].tunnels.handle_timeout(at);
        while let Some(transmit) = pair.sides[0].tunnels.poll_transmit() {
            initiations += usize::from(transmit.bytes.first() == Some(&1));
        }
    }
    assert!((16..=18).contains(&initiations), "{initiations}");
    assert_eq!(pair.now - start, REKEY_ATTEMPT);
    assert!(matches!(pair.sides[0].tunnels.poll_event(), Some(Event::Failed { .. })));
}

#[test]
fn silence_after_data_leads_to_a_handshake() {
    let mut pair = Pair::connected();
    let session = pair.sides[0].session.clone().unwrap();
    let mut buffer = vec![0; HEADROOM + 16 + TAILROOM];
    session.seal(&mut buffer, 16, MTU, pair.now).unwrap();
    let now = pair.now;
    pair.sides[0].tunnels.note_activity(&secret(1).public(), now);
    pair.advance(Duration::from_secs(16));
    assert!(!Arc::ptr_eq(&session, pair.sides[0].session.as_ref().unwrap()), "renewed after 15 s of silence");
}

#[test]
fn strangers_and_removed_peers_get_no_answer() {
    let mut pair = Pair::connected();
    let stranger_table = Arc::new(SessionTable::new());
    let mut stranger = Tunnels::new(secret(7), stranger_table, [9; 32], pair.now, Duration::from_secs(1));
    stranger.add_peer(secret(1).public());
    let now = pair.now;
    stranger.start_handshake(&secret(1).public(), now).unwrap();
    let message = stranger.poll_transmit().unwrap().bytes;
    pair.sides[1].tunnels.handle_datagram(&message, Pair::origin(), now);
    assert_eq!(pair.sides[1].tunnels.poll_transmit(), None);

    pair.sides[1].tunnels.remove_peer(&secret(0).public());
    pair.send(0, b"late");
    assert!(pair.sides[1].received.is_empty(), "its sessions are gone");
}

/// A relay carries for everybody whom its own server admits, and says who that is: one who is no peer, or who sends as another,
/// gets no byte. Nor does whoever sends our own messages back to us.
#[test]
fn strangers_at_a_relay_and_reflected_messages_get_no_answer() {
    let mut pair = Pair::connected();
    let now = pair.now + Duration::from_secs(1);
    let mut stranger = Tunnels::new(secret(7), Arc::new(SessionTable::new()), [9; 32], now, Duration::from_secs(1));
    stranger.add_peer(secret(1).public());
    stranger.start_handshake(&secret(1).public(), now).unwrap();
    let strange = stranger.poll_transmit().unwrap().bytes;
    let to = &mut pair.sides[1].tunnels;
    for peer in [secret(7).public(), secret(0).public(), secret(1).public()] {
        to.handle_datagram(&strange, Origin::Relay { region: 900, peer }, now);
    }
    assert_eq!(to.poll_transmit(), None);

    to.start_handshake(&secret(0).public(), now).unwrap();
    let ours = to.poll_transmit().unwrap().bytes;
    for peer in [secret(0).public(), secret(1).public()] {
        to.handle_datagram(&ours, Origin::Relay { region: 900, peer }, now);
    }
    to.handle_datagram(&ours, Pair::origin(), now);
    assert_eq!(to.poll_transmit(), None);
    // A true one of the peer that comes in a stranger's name is not answered either.
    let from = &mut pair.sides[0].tunnels;
    from.start_handshake(&secret(1).public(), now).unwrap();
    let borrowed = from.poll_transmit().unwrap().bytes;
    pair.sides[1].tunnels.handle_datagram(&borrowed, Origin::Relay { region: 900, peer: secret(7).public() }, now);
    assert_eq!(pair.sides[1].tunnels.poll_transmit(), None);
}

/// A peer that looks at two copies of an initiation at once, as wireguard-go may with a thread per processor, answers both
/// and keeps the session of its last answer alone. The two answers are made by two responders here, the last of which is
/// the one that goes on.
#[test]
fn the_last_of_two_answers_to_an_initiation_counts() {
    let (mut pair, mut other) = (Pair::new(), Pair::new());
    let (us, peer) = (secret(0).public(), secret(1).public());
    // Other randomness than that of the first.
    other.sides[1].tunnels = {
        let table = Arc::clone(&other.sides[1].table);
        Tunnels::new(secret(1), table, [99; 32], other.now, Duration::from_secs(1_795_000_000))
    };
    other.sides[1].tunnels.add_peer(us);
    other.now = pair.now;
    assert!(!pair.send(0, b"first"));
    let initiation = pair.sides[0].tunnels.poll_transmit().unwrap().bytes;
    let answers = [&mut pair, &mut other].map(|pair| {
        pair.deliver(1, initiation.clone());
        pair.sides[1].tunnels.poll_transmit().unwrap().bytes
    });
    // Each comes twice, as the initiation did.
    for answer in [&answers[0], &answers[0], &answers[1], &answers[1], &answers[0]] {
        pair.deliver(0, answer.clone());
    }
    let mut sessions = Vec::new();
    while let Some(event) = pair.sides[0].tunnels.poll_event() {
        let Event::Ready { session, .. } = event else { panic!("{event:?}") };
        sessions.push(session);
    }
    assert_eq!(sessions.len(), 2, "an answer that came before makes no session, or nonces would come again");
    let confirmations: Vec<_> = std::iter::from_fn(|| pair.sides[0].tunnels.poll_transmit()).collect();
    pair.sides[0].session = sessions.pop();
    // The one that answered last gets the confirmations, and from then on packets go both ways.
    std::mem::swap(&mut pair.sides[1], &mut other.sides[1]);
    confirmations.into_iter().for_each(|confirmation| pair.deliver(1, confirmation.bytes));
    pair.settle(|_, _| false);
    assert!(pair.send(0, b"sixteen bytes...") && pair.send(1, b"sixteen more...."));
    assert_eq!(
        [pair.sides[0].received.last(), pair.sides[1].received.last()].map(|last| last.unwrap().as_slice()),
        [&b"sixteen more...."[..], b"sixteen bytes...",]
    );
    // Nothing is kept of the handshake after a second.
    pair.advance(Duration::from_secs(2));
    assert!(pair.sides[0].tunnels.attempts.is_empty());
    let known = pair.sides[0].tunnels.peers.met(&peer).unwrap();
    assert!(known.answered.is_none());
}
