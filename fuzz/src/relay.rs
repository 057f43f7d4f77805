//! The relay's own reading of HTTP heads, before anything is known of who sends them.

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
