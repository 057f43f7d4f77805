use super::*;
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;

const NAME: &str = "relay.example";

fn secret(byte: u8) -> NodeSecret {
    NodeSecret::from_bytes([byte; 32])
}

fn frame(frame: Frame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

/// The far end of a client that introduces itself; plays a relay by hand.
struct Relay {
    stream: DuplexStream,
    client: JoinHandle<Result<(ClientReader, ClientWriter), ConnectError>>,
}

impl Relay {
    fn new(known: Option<NodeKey>) -> Self {
        let (near, stream) = tokio::io::duplex(8 << 10);
        let connect = async move {
            let own = secret(1);
            let who = Who { secret: &own, mesh: None };
            let connecting = introduce(Box::new(near), who, known, || NAME.to_owned());
            timeout(CONNECT_DEADLINE, connecting).await.unwrap_or_else(|_| Err(ConnectError::Deadline(NAME.to_owned())))
        };
        Self { stream, client: tokio::spawn(connect) }
    }

    async fn read_head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.stream.read_u8().await.unwrap());
        }
        String::from_utf8(head).unwrap()
    }

    async fn read_introduction(&mut self) {
        let (kind, payload) = read_frame(&mut self.stream).await.unwrap();
        let Ok(Frame::ClientInfo { key, sealed }) = Frame::decode(kind, &payload) else { panic!("type {kind}") };
        assert_eq!(key, secret(1).public());
        let info: ClientInfo = derp::open_info(sealed, &secret(100), &key).unwrap();
        assert_eq!(info.version, 2);
    }

    async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        // A client that has had enough hangs up.
        drop(self.stream.write_all(bytes.as_ref()).await);
    }

    async fn answer_introduction(&mut self) {
        let info = ServerInfo { version: 2, ..ServerInfo::default() };
        let sealed = derp::seal_info(&info, &secret(100), &secret(1).public(), [7; 24]).unwrap();
        self.write(frame(Frame::ServerInfo { sealed: &sealed })).await;
    }

    async fn connected() -> (Self, ClientReader, ClientWriter) {
        let mut relay = Self::new(Some(secret(100).public()));
        relay.read_head().await;
        relay.read_introduction().await;
        relay.write(frame(Frame::ServerKey(secret(100).public()))).await;
        relay.answer_introduction().await;
        let spare = tokio::spawn(async { Err(ConnectError::Deadline(String::new())) });
        let (reader, writer) = std::mem::replace(&mut relay.client, spare).await.unwrap().unwrap();
        (relay, reader, writer)
    }

    async fn failure(self) -> ConnectError {
        self.client.await.unwrap().unwrap_err()
    }
}

#[tokio::test(start_paused = true)]
async fn upgrade_waits_for_each_answer() {
    let mut relay = Relay::new(None);
    let head = relay.read_head().await;
    assert!(head.starts_with("GET /derp HTTP/1.1\r\n") && head.contains("Upgrade: DERP\r\n"), "{head}");
    assert!(!head.contains("Fast"), "{head}");
    relay.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nX: y\r\n\r\n").await;
    // More bytes than we know of follow the key.
    let mut greeting = frame(Frame::ServerKey(secret(100).public()));
    greeting[4] += 3;
    relay.write([&greeting[..], b"new"].concat()).await;
    relay.read_introduction().await;
    relay.answer_introduction().await;
    assert!(relay.client.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn fast_start_sends_everything_before_the_relay_says_a_word() {
    let mut relay = Relay::new(Some(secret(100).public()));
    assert!(relay.read_head().await.contains("Derp-Fast-Start: 1\r\n"));
    relay.read_introduction().await;
    relay.write(frame(Frame::ServerKey(secret(100).public()))).await;
    relay.answer_introduction().await;
    assert!(relay.client.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn relay_with_another_key_than_its_certificate_says_is_left() {
    let mut relay = Relay::new(Some(secret(100).public()));
    relay.read_head().await;
    relay.write(frame(Frame::ServerKey(secret(101).public()))).await;
    assert!(matches!(relay.failure().await, ConnectError::NotARelay(_)));
}

#[tokio::test(start_paused = true)]
async fn whatever_is_no_relay_is_left() {
    let long = format!("HTTP/1.1 101 Switching Protocols\r\nX: {}", "y".repeat(ANSWER_MAX));
    let hello = "HTTP/1.1 101 Switching Protocols\r\n\r\n";
    for answer in [
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec(),
        b"HTTP/1.1 426 Upgrade Required\r\n\r\n".to_vec(),
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec(),
        long.into_bytes(),
        [hello.as_bytes(), b"\x01\xff\xff\xff\xff"].concat(),
        [hello.as_bytes(), &frame(Frame::KeepAlive)].concat(),
        [hello.as_bytes(), &frame(Frame::ServerKey(NodeKey::default()))].concat(),
    ] {
        let mut relay = Relay::new(None);
        relay.read_head().await;
        relay.write(&answer).await;
        let shown = String::from_utf8_lossy(&answer).into_owned();
        assert!(matches!(relay.failure().await, ConnectError::NotARelay(_)), "{shown}");
    }
}

#[tokio::test(start_paused = true)]
async fn silent_relay_and_refusal_have_their_own_errors() {
    let silent = Relay::new(None);
    let (stream, client) = (silent.stream, silent.client);
    assert!(matches!(client.await.unwrap(), Err(ConnectError::Deadline(_))));
    drop(stream);

    let mut relay = Relay::new(Some(secret(100).public()));
    relay.read_introduction_of_fast_start().await;
    relay.write(frame(Frame::ServerKey(secret(100).public()))).await;
    let Relay { stream, client } = relay;
    drop(stream);
    assert!(matches!(client.await.unwrap(), Err(ConnectError::Refused(_))));
}

impl Relay {
    async fn read_introduction_of_fast_start(&mut self) {
        self.read_head().await;
        self.read_introduction().await;
    }
}

#[tokio::test(start_paused = true)]
async fn frames_become_what_they_mean() {
    let (mut relay, mut reader, mut writer) = Relay::connected().await;
    let from = secret(2).public();
    for (frame_, expected) in [
        (Frame::RecvPacket { from, packet: b"hello" }, Received::Packet { from, packet: b"hello".to_vec() }),
        (Frame::RecvPacket { from, packet: b"" }, Received::Packet { from, packet: vec![] }),
        (
            Frame::PeerGone { key: from, reason: GoneReason::NotHere },
            Received::PeerGone { key: from, reason: GoneReason::NotHere },
        ),
        (Frame::Ping([3; 8]), Received::Ping([3; 8])),
        (Frame::Pong([4; 8]), Received::Pong([4; 8])),
        (Frame::KeepAlive, Received::Nothing),
        (Frame::Unknown(0x77), Received::Nothing),
        (
            Frame::Restarting { reconnect_in_millis: 1, try_for_millis: u32::MAX },
            Received::Restarting { reconnect_in: Duration::from_millis(1), try_for: Duration::from_secs(300) },
        ),
    ] {
        relay.write(frame(frame_)).await;
        assert_eq!(reader.next().await.unwrap(), expected);
    }
    writer.send_packet(&from, b"back").await.unwrap();
    writer.pong([5; 8]).await.unwrap();
    writer.note_preferred(true).await.unwrap();
    for expected in [Frame::SendPacket { to: from, packet: b"back" }, Frame::Pong([5; 8]), Frame::NotePreferred(true)] {
        let (kind, payload) = read_frame(&mut relay.stream).await.unwrap();
        assert_eq!(Frame::decode(kind, &payload), Ok(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn texts_of_relays_are_short_and_cannot_steer_a_terminal() {
    let (mut relay, mut reader, _writer) = Relay::connected().await;
    let text = format!("bad\u{1b}[2J\n{}", "x".repeat(1000));
    relay.write(frame(Frame::Health(&text))).await;
    let Received::Health(shown) = reader.next().await.unwrap() else { panic!("no health") };
    assert_eq!(shown.chars().count(), 200);
    assert!(shown.starts_with("bad[2Jxx"), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn frames_too_long_for_any_use_end_the_connection() {
    let (mut relay, mut reader, _writer) = Relay::connected().await;
    relay.write(b"\x05\x00\x10\x00\x01").await;
    assert!(matches!(reader.next().await, Err(ClientError::Frame(FrameError::TooLong { .. }))));
}

#[tokio::test(start_paused = true)]
async fn two_silent_minutes_end_the_connection_and_any_frame_counts_as_life() {
    let (mut relay, mut reader, _writer) = Relay::connected().await;
    tokio::time::advance(READ_DEADLINE - Duration::from_secs(1)).await;
    relay.write(frame(Frame::KeepAlive)).await;
    assert_eq!(reader.next().await.unwrap(), Received::Nothing);
    assert!(matches!(reader.next().await, Err(ClientError::Silent)));
}

#[tokio::test(start_paused = true)]
async fn relay_that_takes_nothing_ends_the_connection() {
    let (_relay, _reader, mut writer) = Relay::connected().await;
    let to = secret(2).public();
    let mut result = Ok(());
    for _ in 0..10 {
        result = writer.send_packet(&to, &[0; 1400]).await;
        if result.is_err() {
            break;
        }
    }
    assert!(matches!(result, Err(ClientError::Silent)));
}

#[tokio::test(start_paused = true)]
async fn oversized_packets_are_not_sent() {
    let (mut relay, _reader, mut writer) = Relay::connected().await;
    writer.send_packet(&secret(2).public(), &vec![0; derp::PACKET_MAX + 1]).await.unwrap();
    writer.pong([1; 8]).await.unwrap();
    let (kind, payload) = read_frame(&mut relay.stream).await.unwrap();
    assert_eq!(Frame::decode(kind, &payload), Ok(Frame::Pong([1; 8])));
}

fn node(ipv4: &str, ipv6: &str) -> DerpNode {
    DerpNode {
        host_name: "127.0.0.1".to_owned(),
        ipv4: ipv4.to_owned(),
        ipv6: ipv6.to_owned(),
        derp_port: 7,
        ..DerpNode::default()
    }
}

#[tokio::test]
async fn addresses_come_from_the_map_before_the_name() {
    let of = async |ipv4, ipv6| addresses(&node(ipv4, ipv6)).await.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(of("192.0.2.1", "2001:db8::1").await, ["192.0.2.1:7", "[2001:db8::1]:7"]);
    assert_eq!(of("none", "2001:db8::1").await, ["[2001:db8::1]:7"]);
    assert_eq!(of("none", "none").await, [""; 0]);
    assert_eq!(of("", "none").await, ["127.0.0.1:7"], "the name is asked for the family without a text");
    assert_eq!(of("2001:db8::1", "192.0.2.1").await, [""; 0], "literals of the wrong family switch it off");
}
