//! What somebody can do who records disco messages, sends them again, sends ours back to us, or lies about his address.

use super::*;

const LISTED: &str = "203.0.113.2:41641";

/// Bytes of a message on the wire.
fn size(message: &Message) -> usize {
    let shared = SharedBox::new(&secret(1).diffie_hellman(secret(2).public().as_bytes()).unwrap());
    disco::seal(&shared, &secret(2).public(), &[0; 24], message).len()
}

/// Makes a bench that has a direct path to [`PEER`], and one message recorded for each number.
fn with_recorded(numbers: std::ops::Range<u8>) -> (Bench, Vec<Vec<u8>>) {
    let mut bench = Bench::new();
    bench.paths.handle_activity(&node(PEER), bench.now);
    bench.answer(PEER, LISTED);
    assert_eq!(bench.direct(PEER), Some(address(LISTED)));
    let recorded = numbers.map(|number| bench.sealed(PEER, &ping(number, Some(node(PEER))))).collect();
    (bench, recorded)
}

/// Lets the peer answer all that came to its address, and returns the rest.
fn answer_at_home(bench: &mut Bench) -> Vec<(Destination, Message)> {
    let sent = bench.take_sent();
    let (home, rest): (Vec<_>, Vec<_>) = sent.into_iter().partition(|(to, _)| *to == Destination::Udp(address(LISTED)));
    for (_, message) in home {
        if let Message::Ping(ping) = message {
            bench.udp(PEER, LISTED, &pong(ping.id));
        }
    }
    rest
}

/// Somebody on the way sends all that we send back to us, from where it was going, from elsewhere and over the relay.
#[test]
fn reflected_messages_do_nothing() {
    let mut bench = Bench::new();
    bench.paths.handle_activity(&node(PEER), bench.now);
    // Pings and a call of ours, and a pong.
    bench.udp(PEER, LISTED, &ping(1, Some(node(PEER))));
    let ours: Vec<Vec<u8>> = std::iter::from_fn(|| bench.paths.poll_transmit()).map(|sent| sent.bytes).collect();
    assert!(ours.len() >= 3, "{}", ours.len());
    bench.events();
    let before = bench.paths.status(&node(PEER)).unwrap().candidates.len();
    for bytes in &ours {
        for from in [LISTED, "198.51.100.77:7"] {
            bench.paths.handle_udp(address(from), bytes, bench.now);
        }
        bench.paths.handle_relayed(REGION, &node(PEER), bytes, bench.now);
        bench.paths.handle_relayed(REGION, &node(1), bytes, bench.now);
    }
    assert_eq!((bench.take_sent(), bench.events()), (vec![], vec![]));
    assert_eq!(bench.direct(PEER), None);
    assert_eq!(bench.paths.status(&node(PEER)).unwrap().candidates.len(), before);
}

/// Pings of the peer that somebody recorded come from ever other addresses, while packets flow. The path stays where the
/// peer answers, nothing goes to addresses from which nothing came, and to the others no more bytes than came from there:
/// though each of them makes the path doubtful, so that all are searched again.
#[test]
fn replayed_pings_from_spoofed_addresses_move_no_path() {
    let (mut bench, recorded) = with_recorded(1..4);
    let mut bytes_by_address = BTreeMap::<SocketAddr, (usize, usize)>::new();
    for tick in 0_u16..1000 {
        let from = SocketAddr::from(([198, 51, 100, u8::try_from(tick / 20).unwrap()], 7));
        let bytes = &recorded[usize::from(tick) % recorded.len()];
        bytes_by_address.entry(from).or_default().0 += bytes.len();
        bench.paths.handle_udp(from, bytes, bench.now);
        if tick % 10 == 0 {
            bench.paths.handle_activity(&node(PEER), bench.now);
        }
        for (to, message) in answer_at_home(&mut bench) {
            let Destination::Udp(to) = to else { continue };
            let (came, went) = bytes_by_address.get_mut(&to).expect("nothing goes where nothing came from");
            *went += size(&message);
            assert!(*went <= 3 * *came, "{to} got {went} bytes for {came}");
        }
        assert_eq!(bench.direct(PEER), Some(address(LISTED)));
        assert!(bench.paths.peers[&node(PEER)].trusted(bench.now).is_some(), "proved again at once: {tick}");
        bench.advance(Duration::from_millis(10));
    }
    for (address, (came, went)) in bytes_by_address {
        assert!(went <= came, "{address} got {went} bytes for {came}");
    }
}

/// Somebody who has recorded ever so many pings names one address as the source of all, while he keeps the search young: it
/// gets, at no time, more than four pings above what was sent in its name, nor three times that.
#[test]
fn address_that_proves_nothing_gets_four_pings_more_than_came() {
    let (mut bench, recorded) = with_recorded(1..250);
    let victim = address("198.51.100.77:7");
    let (mut came, mut went, mut pings) = (0, 0, 0);
    for (number, bytes) in (0_u8..).zip(&recorded) {
        bench.paths.handle_udp(SocketAddr::from(([198, 51, 101, number], 7)), bytes, bench.now);
        came += bytes.len();
        bench.paths.handle_udp(victim, bytes, bench.now);
        bench.paths.handle_activity(&node(PEER), bench.now);
        for _ in 0..4 {
            for (_, message) in answer_at_home(&mut bench).iter().filter(|(to, _)| *to == Destination::Udp(victim)) {
                went += size(message);
                pings += usize::from(matches!(message, Message::Ping(_)));
            }
            bench.advance(Duration::from_millis(100));
        }
        assert!(went <= came + 4 * size(&ping(1, Some(node(1)))), "{went} bytes for {came}");
        assert!(went <= 3 * came, "{went} bytes for {came}");
    }
    assert!(pings > 4, "what comes on and on is asked now and then");
}

/// An address that nobody names is asked twice at once and twice more, for the first question may be lost, and when it has
/// answered as often as any other.
#[test]
fn address_of_an_honest_peer_is_asked_until_it_has_answered() {
    let mut bench = Bench::new();
    let from = "198.51.100.77:7";
    bench.paths.handle_activity(&node(PEER), bench.now);
    bench.take_sent();
    let mut asked = Vec::new();
    let pings = |bench: &mut Bench| {
        let sent = bench.take_sent().into_iter();
        sent.filter(|(to, message)| *to == Destination::Udp(address(from)) && matches!(message, Message::Ping(_)))
            .count()
    };
    for id in 1..3 {
        bench.udp(PEER, from, &ping(id, Some(node(PEER))));
        bench.paths.handle_activity(&node(PEER), bench.now);
        for _ in 0..3 {
            bench.advance(Duration::from_millis(300));
            bench.paths.handle_activity(&node(PEER), bench.now);
        }
        asked.push(pings(&mut bench));
    }
    assert_eq!(asked, [2, 2]);
    bench.udp(PEER, from, &ping(3, Some(node(PEER))));
    assert_eq!(pings(&mut bench), 0, "four are out");
    let under_way = bench.paths.outbox.pings.to(address(from)).next().unwrap();
    bench.udp(PEER, from, &pong(under_way));
    assert_eq!(bench.direct(PEER), Some(address(from)));
    bench.take_sent();
    for _ in 0..10 {
        bench.advance(HEARTBEAT);
        bench.paths.handle_activity(&node(PEER), bench.now);
        assert!(bench.paths.outbox.pings.to(address(from)).next().is_some(), "it is asked as any other");
        bench.answer(PEER, from);
    }
}

/// One victim's address is named as the source of a few recorded pings, again and again: all together it gets no more bytes
/// than were sent in its name, and one ping.
#[test]
fn replayed_pings_amplify_nothing_towards_one_address() {
    for in_use in [false, true] {
        let (mut bench, recorded) = with_recorded(1..8);
        if !in_use {
            bench.advance(peer::IN_USE + HEARTBEAT * 2);
            bench.take_sent();
        }
        let victim = address("198.51.100.77:7");
        let (mut came, mut went) = (0, 0);
        for round in 0..500 {
            let bytes = &recorded[round % recorded.len()];
            came += bytes.len();
            bench.paths.handle_udp(victim, bytes, bench.now);
            let to_victim = |(to, _): &(Destination, Message)| *to == Destination::Udp(victim);
            let rest = answer_at_home(&mut bench);
            went += rest.iter().filter(|sent| to_victim(sent)).map(|(_, message)| size(message)).sum::<usize>();
            bench.advance(Duration::from_millis(1));
        }
        assert!(went <= came + size(&ping(1, Some(node(1)))), "in use {in_use}: {went} bytes for {came}");
        assert_ne!(bench.direct(PEER), Some(victim));
    }
}

/// Pongs that were recorded prove nothing a second time: neither for the address from which they are sent again, nor for the
/// old one after it has gone.
#[test]
fn replayed_pongs_prove_nothing() {
    let mut bench = Bench::new();
    bench.paths.handle_activity(&node(PEER), bench.now);
    let asked = bench
        .take_sent()
        .into_iter()
        .find_map(|(_, message)| if let Message::Ping(ping) = message { Some(ping.id) } else { None });
    let recorded = bench.sealed(PEER, &pong(asked.unwrap()));
    bench.paths.handle_udp(address(LISTED), &recorded, bench.now);
    assert_eq!(bench.direct(PEER), Some(address(LISTED)));
    bench.paths.handle_rebind(bench.now);
    bench.take_sent();
    bench.events();
    for from in [LISTED, "198.51.100.77:7"] {
        bench.paths.handle_udp(address(from), &recorded, bench.now);
    }
    bench.paths.handle_relayed(REGION, &node(PEER), &recorded, bench.now);
    assert_eq!((bench.take_sent(), bench.events()), (vec![], vec![]));
    assert_eq!(bench.direct(PEER), None);
}

/// Another peer of ours, which may ping us as itself, cannot take the place of the first: whatever node key it names.
#[test]
fn a_peer_cannot_speak_for_another() {
    let (mut bench, _) = with_recorded(1..2);
    let from = "198.51.100.77:7";
    bench.udp(OTHER, from, &ping(9, Some(node(PEER))));
    let asked = bench.paths.outbox.pings.to(address(LISTED)).next();
    for id in asked.into_iter().chain([[9; 12]]) {
        bench.udp(OTHER, LISTED, &pong(id));
        bench.udp(OTHER, from, &pong(id));
    }
    let call = Message::CallMeMaybe(vec![address(from)]);
    let bytes = bench.sealed(OTHER, &call);
    bench.paths.handle_relayed(REGION, &node(PEER), &bytes, bench.now);
    assert_eq!(bench.direct(PEER), Some(address(LISTED)));
    assert_eq!(bench.paths.status(&node(PEER)).unwrap().candidates.len(), 1);
}
