//! What a relay reads of clients besides frames, and what a client reads of a relay.

use warren_relay::Received;
use warren_relay::websocket;
use warren_wire::derp::{self, Frame, Reader};

use crate::input::Input;

use warren_relay::http::{HEAD_MAX, Request, Start, read_request};

/// Reads `data` as the start of a connection, whole and cut off at every place in its head.
pub fn head(data: &[u8]) {
    let request = read_request(data);
    let head = match &request {
        Request::Connect { head, .. } | Request::Answer { head, .. } => *head,
        Request::Partial => {
            assert!(data.len() < HEAD_MAX, "a head without end is waited for");
            return;
        }
        Request::Malformed | Request::Other => return,
    };
    assert!((1..=data.len()).contains(&head));
    assert_eq!(read_request(&data[..head]), request, "what follows the head changes its meaning");
    for cut in (0..head).step_by(1 + head / 64) {
        let early = read_request(&data[..cut]);
        assert!(matches!(early, Request::Partial), "{early:?} after {cut} of {head} bytes");
    }
    match request {
        Request::Answer { answer, .. } => {
            assert!(answer.starts_with(b"HTTP/1.1 ") && answer.windows(4).any(|end| end == b"\r\n\r\n"));
            let lines = answer.split(|byte| *byte == b'\n').count();
            assert!(lines <= 12, "the request added lines to the answer");
        }
        Request::Connect { start: Start::Upgrade | Start::Fast | Start::WebSocket { .. }, .. }
        | Request::Partial
        | Request::Malformed
        | Request::Other => {}
    }
}

/// Reads `data` as a client's WebSocket frames, whole and cut off; then wraps it into frames, which must carry it.
pub fn websocket(data: &[u8]) {
    let (carried, pings) = websocket::read_all(data);
    assert!(carried.len() + pings.iter().map(Vec::len).sum::<usize>() <= data.len());
    assert!(pings.iter().all(|ping| ping.len() <= 125));
    for cut in (0..data.len()).step_by(1 + data.len() / 32) {
        let (early, early_pings) = websocket::read_all(&data[..cut]);
        assert!(carried.starts_with(&early) && pings.starts_with(&early_pings));
    }
    let mut input = Input::new(data);
    let (mask, size) = ([input.byte(), input.byte(), input.byte(), input.byte()], 1 + usize::from(input.byte()));
    let (rest, mut sent) = (input.rest(), Vec::new());
    for (number, part) in rest.chunks(size).enumerate() {
        // Messages have no meaning to a relay: the first frame begins one that never ends.
        sent.push(if number == 0 { 2 } else { 0 });
        sent.push(0xfe);
        sent.extend_from_slice(&u16::try_from(part.len()).expect("a short part").to_be_bytes());
        sent.extend_from_slice(&mask);
        sent.extend(part.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    }
    assert_eq!(websocket::read_all(&sent), (rest.to_vec(), Vec::new()));
}

/// Reads `data` as the frames of a hostile relay, as a client does.
pub fn received(data: &[u8]) {
    let mut rest = data;
    while let Some((header, behind)) = rest.split_first_chunk() {
        let Ok((kind, length)) = derp::parse_header(*header, Reader::Client) else { return };
        assert!(length <= derp::CLIENT_PAYLOAD_MAX);
        let Some((payload, behind)) = behind.split_at_checked(length) else { return };
        rest = behind;
        let frame = Frame::decode(kind, payload);
        let received = Received::of(kind, payload.to_vec());
        assert_eq!(frame.is_ok(), received.is_ok());
        match received {
            Ok(Received::Packet { from, packet }) => {
                assert_eq!(frame, Ok(Frame::RecvPacket { from, packet: &packet }));
            }
            Ok(Received::Health(text)) => {
                assert!(text.chars().count() <= 200 && !text.chars().any(char::is_control));
            }
            Ok(Received::Restarting { reconnect_in, try_for }) => {
                assert!(reconnect_in.as_secs() <= 60 && try_for.as_secs() <= 300);
            }
            Ok(Received::PeerGone { .. } | Received::Ping(_) | Received::Pong(_) | Received::Nothing) | Err(_) => {}
        }
    }
}
