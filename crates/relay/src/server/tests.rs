mod hostile;
mod mesh;

use super::*;
use tokio::io::DuplexStream;
use warren_wire::key::NodeSecret;

/// Admits every key but the one of repeated bytes 9.
struct NotNine;

impl Admission for NotNine {
    fn admit(&self, key: &NodeKey, _: IpAddr) -> bool {
        *key != secret(9).public()
    }
}

fn secret(byte: u8) -> NodeSecret {
    NodeSecret::from_bytes([byte; 32])
}

fn server() -> Server {
    Server::new(secret(100), NotNine)
}

const FAST_START: &[u8] = b"GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: DERP\r\nDerp-Fast-Start: 1\r\n\r\n";
const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// A client on a pipe, past its introduction.
struct Peer {
    stream: DuplexStream,
    task: tokio::task::JoinHandle<Result<Taken<DuplexStream>, ServeError>>,
}

impl Peer {
    fn open(server: &Server) -> Self {
        let (stream, far) = tokio::io::duplex(256 << 10);
        let server = server.clone();
        let task = tokio::spawn(async move { server.take(far, SOURCE).await });
        Self { stream, task }
    }

    /// Connects by fast start: request and introduction in one write, no answer but frames.
    async fn connect(server: &Server, byte: u8) -> Self {
        let mut peer = Self::open(server);
        let mut bytes = FAST_START.to_vec();
        introduction(server, byte, &mut bytes);
        peer.stream.write_all(&bytes).await.unwrap();
        peer.expect(|frame| assert_eq!(frame, Frame::ServerKey(server.key()))).await;
        peer.expect(|frame| assert!(matches!(frame, Frame::ServerInfo { .. }), "{frame:?}")).await;
        peer
    }

    async fn expect(&mut self, check: impl FnOnce(Frame<'_>)) {
        let (kind, payload) = read_frame(&mut self.stream, Reader::Client).await.unwrap();
        check(Frame::decode(kind, &payload).unwrap());
    }

    async fn send(&mut self, frame: Frame<'_>) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.stream.write_all(&bytes).await.unwrap();
    }
}

fn introduction(server: &Server, byte: u8, out: &mut Vec<u8>) {
    introduction_of(&ClientInfo { version: 2, can_ack_pings: true, ..ClientInfo::default() }, server, byte, out);
}

fn introduction_of(info: &ClientInfo, server: &Server, byte: u8, out: &mut Vec<u8>) {
    let sealed = derp::seal_info(info, &secret(byte), &server.key(), [5; 24]).unwrap();
    Frame::ClientInfo { key: secret(byte).public(), sealed: &sealed }.encode(out);
}

#[tokio::test(start_paused = true)]
async fn packets_go_from_client_to_client() {
    let server = server();
    let mut alice = Peer::connect(&server, 1).await;
    let mut bob = Peer::connect(&server, 2).await;
    alice.send(Frame::SendPacket { to: secret(2).public(), packet: b"hello" }).await;
    let from = secret(1).public();
    bob.expect(|frame| assert_eq!(frame, Frame::RecvPacket { from, packet: b"hello" })).await;
    bob.send(Frame::Ping([7; 8])).await;
    bob.expect(|frame| assert_eq!(frame, Frame::Pong([7; 8]))).await;
    drop(alice);
    bob.expect(|frame| assert_eq!(frame, Frame::PeerGone { key: from, reason: GoneReason::Disconnected })).await;
}

#[tokio::test(start_paused = true)]
async fn upgrade_answers_101_and_then_speaks_frames() {
    let server = server();
    let mut peer = Peer::open(&server);
    peer.stream.write_all(b"POST http://relay/derp HTTP/1.1\r\nHost: relay\r\nUpgrade: derp\r\n\r\n").await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(peer.stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("Derp-Version: 2\r\n") && head.contains(&server.key().to_hex()), "{head}");
    peer.expect(|frame| assert_eq!(frame, Frame::ServerKey(secret(100).public()))).await;
    let mut bytes = Vec::new();
    introduction(&server, 3, &mut bytes);
    peer.stream.write_all(&bytes).await.unwrap();
    peer.expect(|frame| assert!(matches!(frame, Frame::ServerInfo { .. }))).await;
}

#[tokio::test(start_paused = true)]
async fn refused_key_gets_nothing_but_the_end() {
    let server = server();
    let mut peer = Peer::open(&server);
    let mut bytes = b"GET /derp HTTP/1.1\r\nUpgrade: DERP\r\nDerp-Fast-Start: 1\r\n\r\n".to_vec();
    introduction(&server, 9, &mut bytes);
    peer.stream.write_all(&bytes).await.unwrap();
    let mut all = Vec::new();
    peer.stream.read_to_end(&mut all).await.unwrap();
    assert_eq!(all.len(), derp::HEADER_BYTES + 8 + 32, "only the server's key");
    assert!(matches!(peer.task.await.unwrap(), Err(ServeError::Refused(_))));
}

#[tokio::test(start_paused = true)]
async fn claimed_key_without_its_secret_is_refused() {
    let server = server();
    let mut peer = Peer::open(&server);
    let mut bytes = b"GET /derp HTTP/1.1\r\nUpgrade: DERP\r\nDerp-Fast-Start: 1\r\n\r\n".to_vec();
    let info = ClientInfo::default();
    let sealed = derp::seal_info(&info, &secret(8), &server.key(), [5; 24]).unwrap();
    Frame::ClientInfo { key: secret(1).public(), sealed: &sealed }.encode(&mut bytes);
    peer.stream.write_all(&bytes).await.unwrap();
    assert!(matches!(peer.task.await.unwrap(), Err(ServeError::Introduction)));
}

#[tokio::test(start_paused = true)]
async fn only_undeliverable_disco_is_answered_and_that_three_times() {
    let server = server();
    let mut alice = Peer::connect(&server, 1).await;
    let absent = secret(4).public();
    let disco = [&warren_wire::disco::MAGIC[..], &[1; 60]].concat();
    alice.send(Frame::SendPacket { to: absent, packet: b"data" }).await;
    for _ in 0..5 {
        alice.send(Frame::SendPacket { to: absent, packet: &disco }).await;
    }
    alice.send(Frame::Ping([1; 8])).await;
    let mut notices = 0;
    loop {
        let (kind, payload) = read_frame(&mut alice.stream, Reader::Client).await.unwrap();
        let frame = Frame::decode(kind, &payload).unwrap();
        if frame == Frame::Pong([1; 8]) {
            break;
        }
        assert_eq!(frame, Frame::PeerGone { key: absent, reason: GoneReason::NotHere });
        notices += 1;
    }
    // The pong may overtake notices that wait with it, but not those that were sent before.
    assert!(notices <= 3, "{notices}");
}

#[tokio::test(start_paused = true)]
async fn silent_strangers_are_cut_off() {
    let server = server();
    let nothing = Peer::open(&server);
    assert!(matches!(nothing.task.await.unwrap(), Err(ServeError::Deadline("request"))));
    let mut halfway = Peer::open(&server);
    halfway.stream.write_all(b"GET /derp HTTP/1.1\r\nUpgrade: DERP\r\n\r\n").await.unwrap();
    assert!(matches!(halfway.task.await.unwrap(), Err(ServeError::Deadline("introduction"))));
}

#[tokio::test(start_paused = true)]
async fn large_introductions_and_unknown_bytes_are_refused_unread() {
    let server = server();
    let mut peer = Peer::open(&server);
    peer.stream
        .write_all(b"GET /derp HTTP/1.1\r\nUpgrade: DERP\r\nDerp-Fast-Start: 1\r\n\r\n\x02\x00\x10\x00\x00")
        .await
        .unwrap();
    assert!(matches!(peer.task.await.unwrap(), Err(ServeError::Frame(FrameError::TooLong { .. }))));
    let mut peer = Peer::open(&server);
    peer.stream.write_all(b"\x16\x03\x01 not http").await.unwrap();
    assert!(matches!(peer.task.await.unwrap(), Err(ServeError::Request)));
}

#[tokio::test(start_paused = true)]
async fn requests_for_others_are_given_back_whole() {
    let server = server();
    let mut peer = Peer::open(&server);
    peer.stream.write_all(b"HEAD /derp/probe HTTP/1.1\r\n\r\nGET /key?v=130 HTTP/1.1\r\n\r\nrest").await.unwrap();
    let taken = peer.task.await.unwrap().unwrap();
    let Taken::Other { read_ahead, .. } = taken else { panic!("not given back") };
    assert_eq!(read_ahead, b"GET /key?v=130 HTTP/1.1\r\n\r\nrest");
}

#[tokio::test(start_paused = true)]
async fn idle_connection_gets_keep_alives_and_ends_when_its_node_is_removed() {
    let server = server();
    let mut peer = Peer::connect(&server, 1).await;
    let start = now();
    peer.expect(|frame| assert_eq!(frame, Frame::KeepAlive)).await;
    let waited = now() - start;
    assert!((KEEP_ALIVE..KEEP_ALIVE + Duration::from_secs(6)).contains(&waited), "{waited:?}");
    server.disconnect(&secret(1).public());
    assert!(peer.task.await.unwrap().is_ok());
    assert_eq!(server.counters().connections.load(std::sync::atomic::Ordering::Relaxed), 0);
}

/// A receiver that reads nothing must not stop others, and is cut off.
#[tokio::test(start_paused = true)]
async fn slow_reader_is_cut_off_and_harms_nobody() {
    let server = server();
    let mut alice = Peer::connect(&server, 1).await;
    let slow = Peer::connect(&server, 2).await;
    let mut bob = Peer::connect(&server, 3).await;
    let packet = vec![0; 60_000];
    for _ in 0..40 {
        alice.send(Frame::SendPacket { to: secret(2).public(), packet: &packet }).await;
    }
    alice.send(Frame::SendPacket { to: secret(3).public(), packet: b"still here" }).await;
    let from = secret(1).public();
    bob.expect(|frame| assert_eq!(frame, Frame::RecvPacket { from, packet: b"still here" })).await;
    assert!(matches!(slow.task.await.unwrap(), Err(ServeError::Deadline("write"))));
}

#[tokio::test(start_paused = true)]
async fn client_over_its_rate_is_read_more_slowly_and_loses_nothing() {
    let server = server();
    server.set_rate_limit(Some(RateLimit { bytes_per_second: 10_000, burst: 0 }));
    let mut alice = Peer::connect(&server, 1).await;
    let mut bob = Peer::connect(&server, 2).await;
    let (from, to) = (secret(1).public(), secret(2).public());
    let packet = vec![7; 60_000];
    let start = now();
    for _ in 0..3 {
        alice.send(Frame::SendPacket { to, packet: &packet }).await;
        bob.expect(|frame| assert_eq!(frame, Frame::RecvPacket { from, packet: &packet })).await;
    }
    let took = (now() - start).as_secs_f64();
    // All but the burst, the largest frame, at 10,000 bytes a second.
    let expected = (3.0 * 60_032.0 - FRAME_COST_MAX as f64) / 10_000.0;
    assert!((expected..expected + 1.0).contains(&took), "{took} {expected}");
    // A limit that is lifted is lifted for those who are here, too.
    server.set_rate_limit(None);
    let start = now();
    for _ in 0..3 {
        alice.send(Frame::SendPacket { to, packet: &packet }).await;
        bob.expect(|frame| assert_eq!(frame, Frame::RecvPacket { from, packet: &packet })).await;
    }
    assert_eq!(now(), start);
}

/// Drains: clients that understand it are told when to come back, the others nothing; packets flow until the end.
#[tokio::test(start_paused = true)]
async fn restart_is_announced_and_packets_flow_until_the_end() {
    let server = server();
    let mut alice = Peer::connect(&server, 1).await;
    let mut plain = Peer::open(&server);
    let mut bytes = FAST_START.to_vec();
    introduction_of(&ClientInfo { version: 2, ..ClientInfo::default() }, &server, 2, &mut bytes);
    plain.stream.write_all(&bytes).await.unwrap();
    plain.expect(|_| {}).await;
    plain.expect(|frame| assert!(matches!(frame, Frame::ServerInfo { .. }))).await;

    let draining = tokio::spawn({
        let server = server.clone();
        async move { server.drain(Duration::from_secs(1)).await }
    });
    alice
        .expect(|frame| {
            let Frame::Restarting { reconnect_in_millis, try_for_millis: 30_000 } = frame else { panic!("{frame:?}") };
            assert!(reconnect_in_millis <= 510);
        })
        .await;
    let from = secret(1).public();
    alice.send(Frame::SendPacket { to: secret(2).public(), packet: b"still served" }).await;
    plain.expect(|frame| assert_eq!(frame, Frame::RecvPacket { from, packet: b"still served" })).await;

    let mut late = Peer::open(&server);
    let mut bytes = FAST_START.to_vec();
    introduction(&server, 3, &mut bytes);
    late.stream.write_all(&bytes).await.unwrap();
    assert!(matches!(late.task.await.unwrap(), Err(ServeError::Draining)));

    draining.await.unwrap();
    server.stop();
    assert!(alice.task.await.unwrap().is_ok() && plain.task.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn drain_ends_when_the_last_has_left() {
    let server = server();
    let peer = Peer::connect(&server, 1).await;
    drop(peer.stream);
    assert!(peer.task.await.unwrap().is_ok());
    let start = now();
    server.drain(Duration::from_secs(60)).await;
    assert_eq!(now(), start);
}

/// A browser: upgrade, then a masked binary message with the introduction and a ping; the answers come in messages.
#[tokio::test(start_paused = true)]
async fn websocket_carries_the_same_frames() {
    let server = server();
    let mut peer = Peer::open(&server);
    let head = b"GET /derp HTTP/1.1\r\nHost: r\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: derp\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut frames = Vec::new();
    introduction(&server, 1, &mut frames);
    Frame::Ping([7; 8]).encode(&mut frames);
    let length = u16::try_from(frames.len()).unwrap().to_be_bytes();
    // The mask is zero, which changes nothing.
    let message = [&[0x82, 0xfe][..], &length, &[0; 4], &frames].concat();
    peer.stream.write_all(&[&head[..], &message].concat()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(peer.stream.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 ") && answer.contains("Sec-WebSocket-Protocol: derp\r\n"), "{answer}");
    assert!(answer.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{answer}");
    let (mut stream, mut pong) = (Vec::new(), Vec::new());
    Frame::Pong([7; 8]).encode(&mut pong);
    while !stream.ends_with(&pong) {
        let (first, length) = (peer.stream.read_u8().await.unwrap(), peer.stream.read_u8().await.unwrap());
        assert_eq!(first, 0x82);
        let length = if length == 126 { peer.stream.read_u16().await.unwrap() } else { u16::from(length) };
        let mut part = vec![0; usize::from(length)];
        peer.stream.read_exact(&mut part).await.unwrap();
        stream.extend(part);
    }
    let mut key = Vec::new();
    Frame::ServerKey(server.key()).encode(&mut key);
    assert!(stream.starts_with(&key));
    // The end of one side is the end of both.
    server.disconnect(&secret(1).public());
    let mut rest = Vec::new();
    peer.stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"\x88\0");
    assert!(peer.task.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn websocket_that_is_not_read_is_cut_off() {
    let server = server();
    let mut alice = Peer::connect(&server, 1).await;
    let mut slow = Peer::open(&server);
    let head = b"GET /derp HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: derp\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut frame = Vec::new();
    introduction(&server, 2, &mut frame);
    let length = u16::try_from(frame.len()).unwrap().to_be_bytes();
    slow.stream.write_all(&[&head[..], &[0x82, 0xfe], &length, &[0; 4], &frame].concat()).await.unwrap();
    let packet = vec![0; 60_000];
    while !slow.task.is_finished() {
        alice.send(Frame::SendPacket { to: secret(2).public(), packet: &packet }).await;
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    assert!(matches!(slow.task.await.unwrap(), Err(ServeError::Deadline("write"))));
}
