//! Relays of one region.

use super::*;
use crate::client::{ConnectError, Who, introduce};
use crate::counters::DropReason;
use std::sync::atomic::Ordering;

fn mesh_key(digits: &str) -> Option<MeshKey> {
    MeshKey::from_hex(&digits.repeat(32))
}

fn relay(byte: u8) -> Server {
    Server::with_mesh(secret(byte), NotNine, mesh_key("ab"))
}

/// Connects one relay to another.
fn link(from: &Server, to: &Server) -> tokio::task::JoinHandle<Result<(), ConnectError>> {
    let (near, far) = tokio::io::duplex(256 << 10);
    let (from, to) = (from.clone(), to.clone());
    tokio::spawn(async move { to.take(far, SOURCE).await });
    tokio::spawn(async move {
        let who = Who { secret: &from.0.secret, mesh: from.0.mesh.as_ref() };
        let (reader, writer) = introduce(Box::new(near), who, None, || "relay".to_owned()).await?;
        from.mesh_over(reader, writer).await;
        Ok(())
    })
}

/// Lets all tasks do what they can.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// Connects as another relay that is played by hand.
async fn by_hand(server: &Server, key: Option<MeshKey>) -> Peer {
    let mut peer = Peer::open(server);
    let mut bytes = FAST_START.to_vec();
    let info = ClientInfo { version: 2, can_ack_pings: true, mesh_key: key, ..ClientInfo::default() };
    introduction_of(&info, server, 50, &mut bytes);
    peer.stream.write_all(&bytes).await.unwrap();
    peer.expect(|_| {}).await;
    peer.expect(|frame| assert!(matches!(frame, Frame::ServerInfo { .. }), "{frame:?}")).await;
    peer
}

#[tokio::test(start_paused = true)]
async fn clients_on_two_relays_reach_each_other() {
    let (one, two) = (relay(100), relay(101));
    // One is there before the relays know each other, one comes later.
    let mut alice = Peer::connect(&one, 1).await;
    let links = [link(&one, &two), link(&two, &one)];
    settle().await;
    let mut bob = Peer::connect(&two, 2).await;
    settle().await;
    let (a, b) = (secret(1).public(), secret(2).public());
    alice.send(Frame::SendPacket { to: b, packet: b"hello" }).await;
    bob.expect(|frame| assert_eq!(frame, Frame::RecvPacket { from: a, packet: b"hello" })).await;
    let largest = vec![7; derp::PACKET_MAX];
    bob.send(Frame::SendPacket { to: a, packet: &largest }).await;
    alice.expect(|frame| assert_eq!(frame, Frame::RecvPacket { from: b, packet: &largest })).await;
    for relay in [&one, &two] {
        let counters = relay.counters();
        let counts = [&counters.mesh_links, &counters.forwarded, &counters.received_forwarded];
        assert_eq!(counts.map(|count| count.load(Ordering::Relaxed)), [1, 1, 1]);
    }
    assert_eq!(one.keys(), [a], "the other relay is no client");

    // Whoever leaves the region is missed on both relays, once.
    drop(alice);
    bob.expect(|frame| assert_eq!(frame, Frame::PeerGone { key: a, reason: GoneReason::Disconnected })).await;
    let alice = Peer::connect(&one, 1).await;
    settle().await;

    // A relay that is cut off takes what is known by it with it.
    links[1].abort();
    settle().await;
    bob.send(Frame::SendPacket { to: a, packet: b"into the void" }).await;
    bob.send(Frame::Ping([1; 8])).await;
    bob.expect(|frame| assert_eq!(frame, Frame::Pong([1; 8]))).await;
    assert_eq!(two.counters().dropped(DropReason::UnknownDestination, Kind::Data), 1);
    assert_eq!(two.counters().mesh_links.load(Ordering::Relaxed), 0);
    drop(alice);
}

#[tokio::test(start_paused = true)]
async fn a_relay_keeps_an_idle_connection_to_another_one() {
    let (one, two) = (relay(100), relay(101));
    let link = link(&one, &two);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(!link.is_finished());
    assert_eq!(one.counters().mesh_links.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn another_relay_is_told_of_what_it_cannot_deliver_and_may_end_connections() {
    let server = relay(100);
    let mut peer = by_hand(&server, mesh_key("ab")).await;
    let (from, absent) = (secret(1).public(), secret(2).public());
    peer.send(Frame::ForwardPacket { from, to: absent, packet: b"late" }).await;
    peer.expect(|frame| assert_eq!(frame, Frame::PeerGone { key: absent, reason: GoneReason::NotHere })).await;
    let client = Peer::connect(&server, 1).await;
    peer.send(Frame::WatchConns).await;
    let (mut keys, expected) = (Vec::new(), [(from, present::REGULAR), (secret(50).public(), present::MESH_PEER)]);
    for _ in 0..2 {
        peer.expect(|frame| {
            let Frame::PeerPresent { key, source: Some(source), flags } = frame else { panic!("{frame:?}") };
            assert_eq!(source.ip(), SOURCE);
            keys.push((key, flags));
        })
        .await;
    }
    keys.sort_by_key(|(_, flags)| *flags);
    assert_eq!(keys, expected);
    peer.send(Frame::ClosePeer(from)).await;
    assert!(client.task.await.unwrap().is_ok());
    peer.expect(|frame| assert_eq!(frame, Frame::PeerGone { key: from, reason: GoneReason::Disconnected })).await;
    // The server that says who may stay has no say about relays.
    server.retain(|_| false);
    peer.send(Frame::Ping([2; 8])).await;
    peer.expect(|frame| assert_eq!(frame, Frame::Pong([2; 8]))).await;
}

#[tokio::test(start_paused = true)]
async fn whoever_shows_another_key_is_an_ordinary_client() {
    let key = secret(3).public();
    for (server, shown) in [(relay(100), mesh_key("ac")), (relay(100), None), (server(), mesh_key("ab"))] {
        for frame in
            [Frame::WatchConns, Frame::ClosePeer(key), Frame::ForwardPacket { from: key, to: key, packet: b"x" }]
        {
            let mut peer = by_hand(&server, shown.clone()).await;
            peer.send(frame).await;
            assert!(matches!(peer.task.await.unwrap(), Err(ServeError::Unexpected)), "{frame:?}");
        }
    }
    // Nor does it spare anybody the question whether he may be here.
    let server = relay(100);
    let mut peer = Peer::open(&server);
    let mut bytes = FAST_START.to_vec();
    let info = ClientInfo { version: 2, mesh_key: mesh_key("ac"), ..ClientInfo::default() };
    introduction_of(&info, &server, 9, &mut bytes);
    peer.stream.write_all(&bytes).await.unwrap();
    assert!(matches!(peer.task.await.unwrap(), Err(ServeError::Refused(_))));
}

#[tokio::test(start_paused = true)]
async fn a_relay_knows_itself() {
    let one = relay(100);
    assert!(matches!(link(&one, &one).await.unwrap(), Err(ConnectError::Itself(_))));
}
