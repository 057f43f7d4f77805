//! Nodes that restart, with clocks that went back, and nodes with wrong clocks.

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const WALL: Duration = Duration::from_secs(1_795_000_000);

impl Pair {
    /// Replaces a side by a new process with the same key, whose clock says `wall`.
    fn restart(&mut self, side: usize, wall: Duration) {
        let table = Arc::new(SessionTable::new());
        let number = u8::try_from(side).unwrap();
        let mut tunnels = Tunnels::new(secret(number), Arc::clone(&table), [number + 9; 32], self.now, wall);
        tunnels.add_peer(secret(1 - number).public());
        self.sides[side] = Side { tunnels, table, session: None, received: Vec::new(), sent_messages: 0 };
    }

    fn connects(&mut self, from: usize) -> bool {
        self.send(from, b"anybody?");
        self.settle(|_, _| false);
        self.sides[from].session.is_some()
    }
}

#[test]
fn restarted_peer_is_taken_at_once() {
    let mut pair = Pair::connected();
    pair.advance(Duration::from_secs(1));
    pair.restart(0, WALL + Duration::from_secs(1));
    assert!(pair.connects(0));
    assert!(pair.send(1, b"back") && pair.send(0, b"and forth"));
    assert_eq!(pair.sides[0].received.len(), 1);
    assert_eq!(pair.sides[1].received.len(), 1);
}

#[test]
fn clock_that_went_back_over_a_restart_is_taken_after_a_reset() {
    let mut pair = Pair::connected();
    pair.advance(Duration::from_secs(1));
    pair.restart(0, WALL - HOUR);
    assert!(!pair.connects(0), "the time of its handshake is not later than the last");

    // The server tells everybody about the new disco key of a restarted node, and with that the node calls this.
    pair.sides[1].tunnels.reset_peer(&secret(0).public());
    pair.restart(0, WALL - HOUR);
    assert!(pair.connects(0));
}

#[test]
fn clock_that_went_back_does_not_keep_others_out() {
    let mut pair = Pair::connected();
    pair.restart(0, WALL - HOUR);
    pair.sides[1].session = None;
    assert!(pair.connects(1));
    assert!(pair.send(0, b"hello"));
}

#[test]
fn clocks_an_hour_apart_do_not_matter() {
    let mut pair = Pair::new();
    pair.restart(0, WALL - HOUR);
    pair.restart(1, WALL + HOUR);
    assert!(pair.connects(0));
    pair.advance(Duration::from_secs(400));
    assert!(pair.connects(1));
    pair.advance(Duration::from_secs(400));
    assert!(pair.connects(0));
}

#[test]
fn no_clock_panics_and_times_only_grow() {
    for wall in [Duration::ZERO, WALL, Duration::MAX] {
        let mut pair = Pair::new();
        let mut last = [0; 12];
        let start = pair.now;
        let mut clock = HandshakeClock { start, wall: wall.min(LATEST_WALL), last: Duration::ZERO };
        for step in [0, 0, 1, 0, 5_000_000_000] {
            pair.now += Duration::from_nanos(step);
            let time = clock.timestamp(pair.now);
            assert!(time > last);
            last = time;
        }
        pair.restart(0, wall);
        assert!(pair.connects(0));
    }
}

#[test]
fn time_of_a_handshake_is_tai64n() {
    let start = Instant::now();
    let mut clock = HandshakeClock { start, wall: Duration::new(0x1234, 0x89), last: Duration::ZERO };
    assert_eq!(clock.timestamp(start), [0x40, 0, 0, 0, 0, 0, 0x12, 0x3e, 0, 0, 0, 0x89]);
}

#[test]
fn reset_peer_is_not_sent_to_in_its_old_session_which_expires_in_time() {
    let mut pair = Pair::connected();
    let old = pair.sides[1].session.clone().unwrap();
    pair.sides[1].tunnels.reset_peer(&secret(0).public());
    pair.settle(|_, _| false);
    assert!(pair.sides[1].session.is_none(), "its end was told");
    assert!(pair.connects(1));
    assert!(!Arc::ptr_eq(&old, pair.sides[1].session.as_ref().unwrap()));
    pair.sides[1].tunnels.reset_peer(&secret(0).public());
    pair.advance(Duration::from_secs(200));
    assert!(pair.sides[1].table.lookup(old.local_index).is_none());
    assert!(pair.sides[1].tunnels.poll_timeout().is_none());
}

#[test]
fn news_of_a_restart_that_come_after_the_new_handshake_cost_no_packet() {
    let mut pair = Pair::connected();
    pair.advance(Duration::from_secs(1));
    pair.restart(0, WALL + Duration::from_secs(1));
    assert!(pair.connects(0));
    pair.sides[1].tunnels.reset_peer(&secret(0).public());
    pair.settle(|_, _| false);
    let before = pair.sides[1].received.len();
    assert!(pair.send(0, b"in the new session"));
    assert_eq!(pair.sides[1].received.len(), before + 1);
    assert!(pair.connects(1), "the other way a handshake comes first");
}

/// How many initiations a side sends until all is quiet, of which none arrives.
fn initiations(pair: &mut Pair, side: usize) -> usize {
    let mut count = 0;
    pair.settle(|from, bytes| {
        let is_one = MessageType::of(bytes) == Some(MessageType::Initiation);
        count += usize::from(from == side && is_one);
        is_one
    });
    count
}

/// A peer that was away may have forgotten the session. The first packet to it still goes out in it, and begins the handshake
/// for the next, instead of the silence of 15 s.
#[test]
fn doubted_session_is_renewed_with_the_next_packet() {
    let mut pair = Pair::connected();
    pair.advance(Duration::from_secs(20));
    pair.restart(0, WALL + Duration::from_secs(20));
    pair.sides[1].tunnels.doubt_session(&secret(0).public(), pair.now);
    pair.settle(|_, _| false);
    assert!(pair.sides[0].session.is_none(), "nothing is asked of a peer to which nothing is sent");
    assert!(pair.send(1, b"lost"));
    pair.settle(|_, _| false);
    assert!(pair.send(1, b"heard"));
    assert_eq!(pair.sides[0].received, [[b"heard".as_slice(), &[0; 11]].concat()]);
}

/// Whoever has sent before the news came waits for an answer already.
#[test]
fn doubted_session_is_renewed_at_once_if_an_answer_is_waited_for() {
    let mut pair = Pair::connected();
    pair.advance(Duration::from_secs(20));
    pair.restart(0, WALL + Duration::from_secs(20));
    assert!(pair.send(1, b"lost"));
    pair.advance(Duration::from_secs(1));
    assert_eq!(initiations(&mut pair, 1), 0, "nobody knows yet");
    pair.sides[1].tunnels.doubt_session(&secret(0).public(), pair.now);
    pair.settle(|_, _| false);
    assert!(pair.sides[0].session.is_some());

    // The same where the news is certain.
    pair.advance(Duration::from_secs(1));
    pair.restart(0, WALL + Duration::from_secs(30));
    assert!(pair.send(1, b"lost"));
    assert!(pair.sides[1].tunnels.reset_peer(&secret(0).public()));
    assert!(!pair.sides[1].tunnels.reset_peer(&secret(0).public()), "there is no session any more");
}

/// What the peer sends shows that it has the session; and whoever says all the time that it has not causes few handshakes.
#[test]
fn doubt_ends_with_what_the_peer_sends_and_costs_one_handshake() {
    let mut pair = Pair::connected();
    let key = secret(0).public();
    pair.sides[1].tunnels.doubt_session(&key, pair.now);
    assert!(pair.send(1, b"x"));
    assert_eq!(initiations(&mut pair, 1), 0, "the session is new");
    pair.advance(Duration::from_secs(20));
    pair.sides[1].tunnels.doubt_session(&key, pair.now);
    pair.advance(Duration::from_secs(1));
    assert!(pair.send(0, b"I am here") && pair.send(1, b"so I see"));
    assert_eq!(initiations(&mut pair, 1), 0);
    pair.advance(Duration::from_secs(2));
    let mut asked = 0;
    for _ in 0..30 {
        pair.sides[1].tunnels.doubt_session(&key, pair.now);
        assert!(pair.send(1, b"x"));
        asked += initiations(&mut pair, 1);
        pair.now += Duration::from_millis(100);
    }
    assert_eq!(asked, 1, "one is under way");
}
