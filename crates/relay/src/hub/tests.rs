use super::*;
use crate::queue::QUEUE_BYTES;
use proptest::prelude::*;
use std::collections::BTreeMap;
use warren_wire::derp::PACKET_MAX;

const HERE: Presence = Presence { source: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), flags: present::REGULAR };

fn key(byte: u8) -> NodeKey {
    NodeKey::from_bytes([byte; 32])
}

fn join(hub: &Hub, byte: u8) -> Arc<Connection> {
    hub.join(key(byte), CancellationToken::new(), Dialect::Full, HERE)
}

fn drained(connection: &Connection) -> Vec<u8> {
    let mut out = Vec::new();
    connection.drain(&mut out, usize::MAX);
    out
}

fn data(hub: &Hub, from: &Arc<Connection>, to: u8, frame: impl Into<Bytes>) -> Delivery {
    hub.deliver(from, key(to), frame.into(), Kind::Data)
}

fn gone(byte: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    Frame::PeerGone { key: key(byte), reason: GoneReason::Disconnected }.encode(&mut bytes);
    bytes
}

#[test]
fn disco_is_told_by_its_magic_and_size() {
    assert_eq!(Kind::of(&[&disco::MAGIC[..], &[7; 60]].concat()), Kind::Disco);
    assert_eq!(Kind::of(&disco::MAGIC), Kind::Data);
    assert_eq!(Kind::of(&[4; 80]), Kind::Data);
}

#[test]
fn full_queue_drops_its_oldest_and_never_disco_for_data() {
    let hub = Hub::default();
    let (a, b) = (join(&hub, 1), join(&hub, 2));
    hub.deliver(&a, key(2), Bytes::from_static(b"disco"), Kind::Disco);
    for number in 0..40 {
        assert_eq!(data(&hub, &a, 2, vec![number]), Delivery::Queued);
    }
    let expected = [b"disco", &(8..40).collect::<Vec<u8>>()[..]].concat();
    assert_eq!(drained(&b), expected);
    assert_eq!(hub.counters.dropped(DropReason::QueueFull, Kind::Data), 8);
    assert_eq!(hub.counters.dropped(DropReason::QueueFull, Kind::Disco), 0);
}

#[test]
fn waiting_bytes_are_bounded_but_every_packet_has_a_chance() {
    let hub = Hub::default();
    let (a, b) = (join(&hub, 1), join(&hub, 2));
    for _ in 0..10 {
        for kind in [Kind::Disco, Kind::Data] {
            hub.deliver(&a, key(2), Bytes::from(vec![0; PACKET_MAX + 37]), kind);
        }
    }
    let waiting = drained(&b).len();
    assert!((2 * PACKET_MAX..=2 * QUEUE_BYTES).contains(&waiting), "{waiting}");
    data(&hub, &a, 2, vec![0; 2 * QUEUE_BYTES]);
    assert_eq!(drained(&b).len(), 2 * QUEUE_BYTES);
}

#[test]
fn last_writer_of_two_connections_gets_the_packets() {
    let hub = Hub::default();
    let (old, new, sender) = (join(&hub, 1), join(&hub, 1), join(&hub, 9));
    data(&hub, &sender, 1, "x");
    assert_eq!((drained(&old), drained(&new)), (vec![], b"x".to_vec()));
    hub.wrote(&old);
    data(&hub, &sender, 1, "y");
    assert_eq!((drained(&old), drained(&new)), (b"y".to_vec(), vec![]));
    data(&hub, &new, 9, "a packet is a write, too");
    data(&hub, &sender, 1, "z");
    assert_eq!((drained(&old), drained(&new)), (vec![], b"z".to_vec()));
    hub.leave(&new);
    data(&hub, &sender, 1, "rest");
    assert_eq!(drained(&old), b"rest");
}

#[test]
fn ninth_connection_of_a_key_ends_the_one_that_was_silent_longest() {
    let hub = Hub::default();
    let first: Vec<_> = (0..PER_KEY).map(|_| join(&hub, 1)).collect();
    let other = join(&hub, 2);
    hub.wrote(&first[0]);
    let ninth = join(&hub, 1);
    let ended: Vec<_> = first.iter().map(|connection| connection.closed.is_cancelled()).collect();
    assert_eq!(ended, (0..PER_KEY).map(|at| at == 1).collect::<Vec<_>>());
    let tenth = join(&hub, 1);
    assert!(first[2].closed.is_cancelled(), "even before the task of the other has ended");
    assert!(![&ninth, &tenth, &other].iter().any(|connection| connection.closed.is_cancelled()));
}

#[test]
fn those_who_heard_a_key_are_told_once_when_its_last_connection_leaves() {
    let hub = Hub::default();
    let (one, two, listener, stranger) = (join(&hub, 1), join(&hub, 1), join(&hub, 2), join(&hub, 3));
    data(&hub, &one, 2, "x");
    drained(&listener);
    hub.leave(&one);
    assert_eq!(drained(&listener), b"");
    hub.leave(&two);
    assert_eq!(drained(&listener), gone(1));
    assert_eq!(drained(&listener), b"");
    assert_eq!(drained(&stranger), b"");
    assert_eq!(data(&hub, &listener, 1, ""), Delivery::Absent);
}

#[test]
fn end_of_a_peer_is_told_after_its_last_packets() {
    let hub = Hub::default();
    let (one, two) = (join(&hub, 1), join(&hub, 2));
    data(&hub, &one, 2, "last words");
    hub.leave(&one);
    assert_eq!(drained(&two), [&b"last words"[..], &gone(1)].concat());
}

#[test]
fn undelivered_packets_make_nobody_watch() {
    let hub = Hub::default();
    let one = join(&hub, 1);
    assert_eq!(data(&hub, &one, 2, "x"), Delivery::Absent);
    let two = join(&hub, 2);
    hub.leave(&one);
    assert_eq!(drained(&two), b"");
}

#[test]
fn watchers_and_notices_are_bounded() {
    let hub = Hub::default();
    let busy = join(&hub, 0);
    let everybody: Vec<_> = (0_u16..2000)
        .map(|number| {
            let mut bytes = [1; 32];
            bytes[..2].copy_from_slice(&number.to_be_bytes());
            hub.join(NodeKey::from_bytes(bytes), CancellationToken::new(), Dialect::Full, HERE)
        })
        .collect();
    for peer in &everybody {
        hub.deliver(&busy, peer.key, Bytes::from_static(b"x"), Kind::Data);
        hub.deliver(peer, busy.key, Bytes::from_static(b"x"), Kind::Data);
    }
    assert_eq!(locked(&hub.state).keys[&busy.key].watchers.len(), WATCHERS);
    drained(&busy);
    everybody.iter().for_each(|peer| hub.leave(peer));
    assert_eq!(drained(&busy).len(), NOTICES * gone(1).len());
    hub.leave(&busy);
    assert!(locked(&hub.state).keys.is_empty());
}

#[test]
fn removed_key_is_disconnected() {
    let hub = Hub::default();
    let (a, b) = (join(&hub, 1), join(&hub, 2));
    hub.disconnect(&key(1));
    assert!(a.closed.is_cancelled() && !b.closed.is_cancelled());
    hub.retain(|known| *known != key(2));
    assert!(b.closed.is_cancelled());
}

#[test]
fn what_waits_for_a_connection_that_ends_is_counted() {
    let hub = Hub::default();
    let (a, b) = (join(&hub, 1), join(&hub, 2));
    data(&hub, &a, 2, "x");
    data(&hub, &a, 2, "y");
    hub.deliver(&a, key(2), Bytes::from_static(b"disco"), Kind::Disco);
    data(&hub, &a, 7, "nobody");
    hub.leave(&b);
    assert_eq!(hub.counters.dropped(DropReason::Gone, Kind::Data), 2);
    assert_eq!(hub.counters.dropped(DropReason::Gone, Kind::Disco), 1);
    assert_eq!(hub.counters.dropped(DropReason::UnknownDestination, Kind::Data), 1);
    assert_eq!(b.push(key(1), Bytes::from_static(b"late"), Kind::Data), None, "nothing waits where nobody reads");
}

#[derive(Debug, Clone)]
enum Step {
    Join(u8),
    Leave(u8),
    Write(u8),
    Send(u8, u8),
}

proptest! {
    /// The slow way: a list of connections in the order of their last write, and who heard whom.
    #[test]
    fn equals_a_list(steps in proptest::collection::vec(
        prop_oneof![
            (0_u8..4).prop_map(Step::Join),
            any::<u8>().prop_map(Step::Leave),
            any::<u8>().prop_map(Step::Write),
            (any::<u8>(), 0_u8..4).prop_map(|(from, to)| Step::Send(from, to)),
        ],
        1..80,
    )) {
        let hub = Hub::default();
        let mut list: Vec<(u64, Arc<Connection>)> = Vec::new();
        let mut heard: BTreeMap<NodeKey, HashSet<NodeKey>> = BTreeMap::new();
        let mut expected: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for (number, step) in steps.into_iter().enumerate() {
            let pick = |byte: u8| (!list.is_empty()).then(|| usize::from(byte) % list.len().max(1));
            match step {
                Step::Join(byte) => {
                    if list.iter().filter(|(_, connection)| connection.key == key(byte)).count() < PER_KEY {
                        list.push((number as u64, join(&hub, byte)));
                    }
                }
                Step::Leave(byte) => if let Some(at) = pick(byte) {
                    let (_, connection) = list.remove(at);
                    hub.leave(&connection);
                    if !list.iter().any(|(_, other)| other.key == connection.key) {
                        for listener in heard.remove(&connection.key).unwrap_or_default() {
                            if let Some((id, _)) = list.iter().rev().find(|(_, other)| other.key == listener) {
                                expected.entry(*id).or_default().extend(gone(connection.key.as_bytes()[0]));
                            }
                        }
                    }
                },
                Step::Write(byte) => if let Some(at) = pick(byte) {
                    let writer = list.remove(at);
                    hub.wrote(&writer.1);
                    list.push(writer);
                },
                Step::Send(from, to) => if let Some(at) = pick(from) {
                    let to = key(to);
                    let target = list.iter().rev().find(|(_, other)| other.key == to).map(|(id, _)| *id);
                    let sender = list.remove(at);
                    let frame = vec![u8::try_from(number).unwrap()];
                    let delivery = hub.deliver(&sender.1, to, frame.clone().into(), Kind::Data);
                    prop_assert_eq!(delivery == Delivery::Queued, target.is_some());
                    if let Some(id) = target {
                        expected.entry(id).or_default().extend(frame);
                        heard.entry(sender.1.key).or_default().insert(to);
                    }
                    list.push(sender);
                },
            }
            for (id, connection) in &list {
                let mut all = drained(connection);
                let mut wanted = expected.remove(id).unwrap_or_default();
                // Notices of one moment have no order.
                all.sort_unstable();
                wanted.sort_unstable();
                prop_assert_eq!(all, wanted);
            }
        }
        let open = usize::try_from(hub.counters.connections.load(Ordering::Relaxed)).unwrap();
        prop_assert_eq!(open, list.len());
    }
}

fn update(presence: Option<Presence>, byte: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    match presence {
        Some(Presence { source, flags }) => {
            Frame::PeerPresent { key: key(byte), source: Some(SocketAddr::new(source, 0)), flags }.encode(&mut bytes);
        }
        None => return gone(byte),
    }
    bytes
}

fn link(byte: u8) -> Arc<Connection> {
    Hub::link(key(byte), HERE.source, CancellationToken::new())
}

#[test]
fn relays_that_watch_hear_who_is_here_and_who_comes_and_goes() {
    let hub = Hub::default();
    let relay = join(&hub, 100);
    let (_a, b) = (join(&hub, 1), join(&hub, 2));
    assert!(hub.watch(&relay));
    let everybody: Vec<u8> = [1, 2, 100].into_iter().flat_map(|byte| update(Some(HERE), byte)).collect();
    assert_eq!(drained(&relay), everybody);
    let again = join(&hub, 2);
    hub.leave(&b);
    assert_eq!(drained(&relay), update(Some(HERE), 2), "one connection of the key is left");
    hub.leave(&again);
    assert_eq!(drained(&relay), gone(2));
    // Whoever was missed and has come since is here.
    relay.notice(key(3), GoneReason::Disconnected);
    let _c = join(&hub, 3);
    assert_eq!(drained(&relay), [gone(3), update(Some(HERE), 3)].concat());
    hub.leave(&relay);
    let _d = join(&hub, 4);
    assert!(drained(&relay).is_empty());
}

#[test]
fn packets_go_to_the_relay_that_claims_their_receiver_longest() {
    let hub = Hub::default();
    let (a, one, two) = (join(&hub, 1), link(101), link(102));
    let frame = || {
        let mut bytes = Vec::new();
        Frame::RecvPacket { from: key(1), packet: b"hello" }.encode(&mut bytes);
        Bytes::from(bytes)
    };
    let mut forwarded = Vec::new();
    Frame::ForwardPacket { from: key(1), to: key(2), packet: b"hello" }.encode(&mut forwarded);
    let send = || hub.deliver(&a, key(2), frame(), Kind::Data);
    assert_eq!(send(), Delivery::Absent);
    for link in [&one, &two] {
        hub.hear_present(link, key(2));
    }
    assert_eq!(send(), Delivery::Queued);
    assert_eq!((drained(&one), drained(&two)), (forwarded.clone(), Vec::new()));
    hub.hear_gone(&one, &key(2));
    assert_eq!(send(), Delivery::Queued);
    assert_eq!((drained(&one), drained(&two)), (Vec::new(), forwarded));
    // Whoever is here is served here.
    let b = join(&hub, 2);
    assert_eq!(send(), Delivery::Queued);
    assert_eq!(drained(&b), frame());
    hub.leave(&b);
    hub.lose_link(&two);
    assert_eq!(send(), Delivery::Absent);
    assert_eq!(hub.counters.forwarded.load(Ordering::Relaxed), 2);
}

#[test]
fn a_forwarded_packet_is_not_forwarded_again_and_its_sender_is_watched() {
    let hub = Hub::default();
    let (b, one, two) = (join(&hub, 2), link(101), link(102));
    hub.hear_present(&one, key(1));
    hub.hear_present(&two, key(3));
    let deliver = |to: u8| hub.deliver_forwarded(key(1), key(to), Bytes::from_static(b"packet"), Kind::Data);
    assert_eq!(deliver(3), Delivery::Absent, "it is on another relay");
    assert!(drained(&two).is_empty());
    assert_eq!(hub.counters.dropped(DropReason::UnknownDestinationOnForward, Kind::Data), 1);
    assert_eq!(deliver(2), Delivery::Queued);
    assert_eq!(drained(&b), b"packet");
    // It moves within the region: nobody needs to know. Then it leaves.
    hub.hear_present(&two, key(1));
    hub.lose_link(&one);
    assert!(drained(&b).is_empty());
    let here = join(&hub, 1);
    hub.hear_gone(&two, &key(1));
    assert!(drained(&b).is_empty());
    hub.leave(&here);
    assert_eq!(drained(&b), gone(1));
}

#[test]
fn a_hostile_relay_is_bounded() {
    let hub = Hub::default();
    let (relay, link) = (join(&hub, 100), link(101));
    assert!(hub.watch(&relay));
    let key = |number: u32| {
        let mut bytes = [7; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        NodeKey::from_bytes(bytes)
    };
    for number in 0..(1 << 18) + 9 {
        hub.hear_present(&link, key(number));
    }
    assert_eq!(locked(&hub.state).remote.len(), 1 << 18);
    for number in 0..=1 << 17 {
        relay.update(key(number), None);
    }
    assert!(relay.closed.is_cancelled(), "it does not take what it is told");
    assert!(locked(&relay.queues).updates.len() < UPDATES);
    let watching = (0..70).filter(|byte| hub.watch(&join(&hub, *byte))).count();
    assert_eq!(watching, 63);
}

#[test]
fn what_was_being_written_and_what_waited_for_a_surplus_connection_is_counted() {
    let hub = Hub::default();
    let a = join(&hub, 1);
    let connections: Vec<_> = (0..2).map(|_| join(&hub, 2)).collect();
    data(&hub, &a, 2, "x");
    data(&hub, &a, 2, "y");
    let mut out = Vec::new();
    connections[1].drain(&mut out, 1);
    assert_eq!(out, b"x");
    hub.leave(&connections[1]);
    assert_eq!(hub.counters.dropped(DropReason::WriteError, Kind::Data), 1);
    assert_eq!(hub.counters.dropped(DropReason::Gone, Kind::Data), 1);
    data(&hub, &a, 2, "z");
    let _more: Vec<_> = (0..PER_KEY).map(|_| join(&hub, 2)).collect();
    hub.leave(&connections[0]);
    assert_eq!(hub.counters.dropped(DropReason::DuplicateClient, Kind::Data), 1);
}
