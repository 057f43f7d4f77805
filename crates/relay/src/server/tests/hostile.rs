//! Clients that misbehave, and keys that change hands.

use super::*;
use proptest::prelude::*;
use std::sync::atomic::{AtomicU32, Ordering};

/// Admits as many times as it is told to, and no more.
struct Times(AtomicU32);

impl Admission for Times {
    fn admit(&self, _: &NodeKey, _: IpAddr) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

fn open_connections(server: &Server) -> u64 {
    server.counters().connections.load(Ordering::Relaxed)
}

#[tokio::test(start_paused = true)]
async fn node_that_is_removed_while_it_connects_does_not_stay() {
    let server = Server::new(secret(100), Times(AtomicU32::new(1)));
    let mut peer = Peer::open(&server);
    let mut bytes = FAST_START.to_vec();
    introduction(&server, 1, &mut bytes);
    peer.stream.write_all(&bytes).await.unwrap();
    assert!(matches!(peer.task.await.unwrap(), Err(ServeError::Refused(_))));
    assert_eq!(open_connections(&server), 0);
}

#[tokio::test(start_paused = true)]
async fn zero_key_is_refused_whatever_the_server_says() {
    let server = Server::new(secret(100), Times(AtomicU32::new(99)));
    let mut peer = Peer::open(&server);
    let mut bytes = FAST_START.to_vec();
    Frame::ClientInfo { key: NodeKey::default(), sealed: &[0; 60] }.encode(&mut bytes);
    peer.stream.write_all(&bytes).await.unwrap();
    assert!(peer.task.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn first_frame_must_be_the_introduction() {
    let server = server();
    for frame in [Frame::Ping([1; 8]), Frame::SendPacket { to: secret(2).public(), packet: b"x" }, Frame::KeepAlive] {
        let mut peer = Peer::open(&server);
        let mut bytes = FAST_START.to_vec();
        frame.encode(&mut bytes);
        peer.stream.write_all(&bytes).await.unwrap();
        assert!(matches!(peer.task.await.unwrap(), Err(ServeError::Unexpected)), "{frame:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn duplicate_connections_share_a_key_and_the_last_writer_hears() {
    let server = server();
    let mut sender = Peer::connect(&server, 1).await;
    let mut old = Peer::connect(&server, 2).await;
    let mut new = Peer::connect(&server, 2).await;
    let (from, to) = (secret(1).public(), secret(2).public());
    sender.send(Frame::SendPacket { to, packet: b"to the new one" }).await;
    new.expect(|frame| assert_eq!(frame, Frame::RecvPacket { from, packet: b"to the new one" })).await;

    // A ping is a write; its answer tells that the relay has seen it.
    old.send(Frame::Ping([1; 8])).await;
    old.expect(|frame| assert_eq!(frame, Frame::Pong([1; 8]))).await;
    sender.send(Frame::SendPacket { to, packet: b"to the old one" }).await;
    old.expect(|frame| assert_eq!(frame, Frame::RecvPacket { from, packet: b"to the old one" })).await;

    // The sender heard both; it is told when the last of them has gone.
    old.send(Frame::SendPacket { to: from, packet: b"x" }).await;
    sender.expect(|frame| assert_eq!(frame, Frame::RecvPacket { from: to, packet: b"x" })).await;
    drop(old.stream);
    assert!(old.task.await.unwrap().is_ok());
    sender.send(Frame::SendPacket { to, packet: b"still there" }).await;
    new.expect(|frame| assert_eq!(frame, Frame::RecvPacket { from, packet: b"still there" })).await;
    drop(new.stream);
    sender.expect(|frame| assert_eq!(frame, Frame::PeerGone { key: to, reason: GoneReason::Disconnected })).await;
    assert!(new.task.await.unwrap().is_ok());
    assert_eq!(open_connections(&server), 1);
}

#[tokio::test(start_paused = true)]
async fn key_holds_eight_connections() {
    let server = server();
    let mut peers = Vec::new();
    for _ in 0..9 {
        peers.push(Peer::connect(&server, 1).await);
    }
    assert!(peers.remove(0).task.await.unwrap().is_ok(), "the first was ended");
    assert_eq!(open_connections(&server), 8);
    drop(peers);
}

#[tokio::test(start_paused = true)]
async fn frames_among_relays_end_the_connection_and_unknown_ones_do_not() {
    let server = server();
    for kind in [0x0A, 0x10, 0x11, 0x01] {
        let mut peer = Peer::connect(&server, 1).await;
        peer.stream.write_all(&[&[kind, 0, 0, 0, 72][..], &[7; 72]].concat()).await.unwrap();
        assert!(peer.task.await.unwrap().is_err(), "{kind}");
    }
    let mut peer = Peer::connect(&server, 1).await;
    for kind in [0x13, 0x14, 0x06, 0x77] {
        peer.stream.write_all(&[&[kind, 0, 0, 0, 40][..], &[7; 40]].concat()).await.unwrap();
    }
    peer.send(Frame::Ping([1; 8])).await;
    peer.expect(|frame| assert_eq!(frame, Frame::Pong([1; 8]))).await;
}

#[tokio::test(start_paused = true)]
async fn packets_over_the_limit_end_the_connection_before_they_are_read() {
    let server = server();
    for header in [b"\x04\x00\x01\x00\x21", b"\x12\x00\x00\x03\xe9", b"\x07\x00\x00\x00\x02", b"\x77\xff\xff\xff\xff"] {
        let mut peer = Peer::connect(&server, 1).await;
        peer.stream.write_all(header).await.unwrap();
        assert!(matches!(peer.task.await.unwrap(), Err(ServeError::Frame(FrameError::TooLong { .. }))), "{header:?}");
    }
    let mut peer = Peer::connect(&server, 1).await;
    peer.stream.write_all(b"\x04\x00\x00\x00\x1f").await.unwrap();
    assert!(matches!(peer.task.await.unwrap(), Err(ServeError::Frame(FrameError::Malformed { .. }))));
}

#[tokio::test(start_paused = true)]
async fn largest_packet_passes_whole() {
    let server = server();
    let mut alice = Peer::connect(&server, 1).await;
    let mut bob = Peer::connect(&server, 2).await;
    let packet: Vec<u8> = (0..derp::PACKET_MAX).map(|at| u8::try_from(at % 251).unwrap()).collect();
    alice.send(Frame::SendPacket { to: secret(2).public(), packet: &packet }).await;
    let from = secret(1).public();
    bob.expect(|frame| assert_eq!(frame, Frame::RecvPacket { from, packet: &packet })).await;
    alice.send(Frame::SendPacket { to: secret(2).public(), packet: b"" }).await;
    bob.expect(|frame| assert_eq!(frame, Frame::RecvPacket { from, packet: b"" })).await;
}

/// 10 KB a second are slow, but alive.
#[tokio::test(start_paused = true)]
async fn slow_but_steady_reader_stays() {
    let server = server();
    let mut alice = Peer::connect(&server, 1).await;
    let mut slow = Peer::connect(&server, 2).await;
    let mut buffer = vec![0; 4 << 10];
    for _ in 0..150 {
        for _ in 0..4 {
            alice.send(Frame::SendPacket { to: secret(2).public(), packet: &[0; 1400] }).await;
        }
        let read = slow.stream.read(&mut buffer).await.unwrap();
        assert!(read > 0, "it was cut off");
        tokio::time::advance(Duration::from_millis(400)).await;
    }
    assert!(!slow.task.is_finished());
}

#[tokio::test(start_paused = true)]
async fn request_with_a_body_is_the_last() {
    let server = server();
    let mut peer = Peer::open(&server);
    let smuggled = b"POST /derp/probe HTTP/1.1\r\nContent-Length: 29\r\n\r\nGET /machine/x HTTP/1.1\r\n\r\n";
    peer.stream.write_all(smuggled).await.unwrap();
    let mut all = String::new();
    peer.stream.read_to_string(&mut all).await.unwrap();
    assert!(all.starts_with("HTTP/1.1 405 ") && all.contains("Connection: close\r\n"), "{all}");
    assert!(matches!(peer.task.await.unwrap(), Ok(Taken::Done)));
}

#[tokio::test(start_paused = true)]
async fn requests_of_one_connection_are_counted_and_each_must_come_in_time() {
    let server = server();
    let mut peer = Peer::open(&server);
    peer.stream.write_all(&b"GET /derp/probe HTTP/1.1\r\n\r\n".repeat(REQUESTS + 5)).await.unwrap();
    let mut all = String::new();
    peer.stream.read_to_string(&mut all).await.unwrap();
    assert_eq!(all.matches("200 OK").count(), REQUESTS);

    let mut trickle = Peer::open(&server);
    for byte in b"GET /derp/probe HTTP/1.1\r\n" {
        if trickle.stream.write_all(&[*byte]).await.is_err() {
            break;
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert!(matches!(trickle.task.await.unwrap(), Err(ServeError::Deadline("request"))));
}

#[tokio::test(start_paused = true)]
async fn stopped_relay_ends_everything() {
    let server = server();
    let peers = [Peer::connect(&server, 1).await, Peer::connect(&server, 2).await];
    server.stop();
    for mut peer in peers {
        assert!(peer.task.await.unwrap().is_ok());
        assert_eq!(peer.stream.read(&mut [0; 8]).await.unwrap(), 0, "with a goodbye");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever an admitted client sends, the relay goes on for the others.
    #[test]
    fn no_bytes_of_a_client_harm_others(kinds in proptest::collection::vec((0_u8..0x20, 0_usize..200, any::<u8>()), 1..20)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let server = server();
            let mut rude = Peer::connect(&server, 1).await;
            for (kind, length, byte) in kinds {
                let length_bytes = u32::try_from(length).unwrap().to_be_bytes();
                let bytes = [&[kind][..], &length_bytes, &vec![byte; length]].concat();
                if rude.stream.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            let (mut alice, mut bob) = (Peer::connect(&server, 2).await, Peer::connect(&server, 3).await);
            alice.send(Frame::SendPacket { to: secret(3).public(), packet: b"hello" }).await;
            let from = secret(2).public();
            bob.expect(|frame| assert_eq!(frame, Frame::RecvPacket { from, packet: b"hello" })).await;
        });
    }

    #[test]
    fn no_bytes_of_a_stranger_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), fast: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let server = server();
            let mut peer = Peer::open(&server);
            let start = if fast { FAST_START } else { b"GET /derp HTTP/1.1\r\nUpgrade: DERP\r\n\r\n" };
            peer.stream.write_all(&[start, &bytes].concat()).await.unwrap();
            assert!(peer.task.await.unwrap().is_err());
            assert_eq!(open_connections(&server), 0);
        });
    }
}
