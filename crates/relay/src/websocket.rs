//! Relay connections within a WebSocket, for clients in browsers: binary messages carry the byte stream, whose frames
//! have nothing to do with the messages' ends. The server's side alone. Source: RFC 6455, paths.md §1.4.

use std::io;
use std::task::{Context, Waker};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};

/// What the answer hashes behind the client's key. Source: RFC 6455, 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Letters of the answer to a client's key.
pub(crate) const ACCEPT: usize = 28;
/// Bytes that are moved at a time.
const CHUNK: usize = 16 << 10;
/// Most bytes of a control frame's payload.
const CONTROL_MAX: u64 = 125;

const CONTINUATION: u8 = 0;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Returns what proves to a client that we speak WebSocket; `None` if its key is none.
pub(crate) fn accept(key: &str) -> Option<[u8; ACCEPT]> {
    STANDARD.decode(key).ok().filter(|bytes| bytes.len() == 16)?;
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key.as_bytes(), GUID].concat());
    STANDARD.encode(hash).as_bytes().try_into().ok()
}

/// The head of a client's frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    opcode: u8,
    length: u64,
    mask: [u8; 4],
}

impl Head {
    /// Reads the head of a frame that a client may send: masked, without extensions, control frames short and whole.
    async fn read<R: AsyncRead + Unpin>(reader: &mut R) -> io::Result<Self> {
        let wrong = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let (first, second) = (reader.read_u8().await?, reader.read_u8().await?);
        let (is_last, opcode) = (first & 0x80 != 0, first & 0x0f);
        if first & 0x70 != 0 || second & 0x80 == 0 {
            return Err(wrong("a WebSocket frame with extensions or without a mask"));
        }
        let length = match second & 0x7f {
            126 => u64::from(reader.read_u16().await?),
            127 => reader.read_u64().await?,
            short => u64::from(short),
        };
        match opcode {
            CONTINUATION | BINARY => {}
            CLOSE | PING | PONG if is_last && length <= CONTROL_MAX => {}
            _ => return Err(wrong("a WebSocket frame of another kind than a relay takes")),
        }
        let mut mask = [0; 4];
        reader.read_exact(&mut mask).await?;
        Ok(Self { opcode, length, mask })
    }
}

/// Moves bytes between the WebSocket on `outer` and the plain stream `inner` until one of them ends.
pub(crate) async fn bridge<R, W>(mut reader: R, mut writer: W, inner: DuplexStream) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (mut from_relay, mut to_relay) = tokio::io::split(inner);
    // Pongs wait in a place of one: a client that sends many pings gets some answers.
    let (pongs, mut pong) = tokio::sync::mpsc::channel::<Vec<u8>>(1);
    let inward = inward(&mut reader, &mut to_relay, |ping| drop(pongs.try_send(ping)));
    let outward = async {
        let mut buffer = vec![0; CHUNK];
        let mut frame = Vec::new();
        loop {
            frame.clear();
            tokio::select! {
                read = from_relay.read(&mut buffer) => match read? {
                    0 => return Ok(()),
                    read => put(&mut frame, BINARY, buffer.get(..read).unwrap_or_default()),
                },
                Some(data) = pong.recv() => put(&mut frame, PONG, &data),
            }
            writer.write_all(&frame).await?;
            writer.flush().await?;
        }
    };
    let ended = tokio::select! {
        ended = inward => ended,
        ended = outward => ended,
    };
    let mut goodbye = Vec::new();
    put(&mut goodbye, CLOSE, &[]);
    writer.write_all(&goodbye).await?;
    writer.shutdown().await?;
    ended
}

/// Moves what a client says in messages into `to_relay` until it says goodbye, and tells its pings.
async fn inward<R, W>(reader: &mut R, to_relay: &mut W, mut ping: impl FnMut(Vec<u8>)) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; CHUNK];
    loop {
        let Head { opcode, mut length, mask } = Head::read(reader).await?;
        let (mut at, mut control) = (0_usize, Vec::new());
        while length > 0 {
            let most = buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            let part = buffer.get_mut(..most).unwrap_or_default();
            let read = reader.read(part).await?;
            let part = part.get_mut(..read).filter(|part| !part.is_empty()).ok_or(io::ErrorKind::UnexpectedEof)?;
            part.iter_mut().zip(mask.iter().cycle().skip(at % 4)).for_each(|(byte, mask)| *byte ^= mask);
            at = (at + read) % 4;
            length -= read as u64;
            if opcode == CONTINUATION || opcode == BINARY {
                to_relay.write_all(part).await?;
            } else {
                control.extend_from_slice(part);
            }
        }
        match opcode {
            CLOSE => return Ok(()),
            PING => ping(control),
            _ => {}
        }
    }
}

/// Reads what a client has sent as a server does; returns what its messages carried, up to the first fault, and its pings.
#[must_use]
pub fn read_all(sent: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let (mut reader, mut carried, mut pings) = (sent, Vec::new(), Vec::new());
    {
        let mut reading = std::pin::pin!(inward(&mut reader, &mut carried, |ping| pings.push(ping)));
        // Memory makes nobody wait: one step goes to the end.
        let _ = reading.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    }
    (carried, pings)
}

/// Appends a whole frame of a server, of at most 65,535 bytes.
fn put(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    out.push(0x80 | opcode);
    match u8::try_from(payload.len()) {
        Ok(length) if u64::from(length) <= CONTROL_MAX => out.push(length),
        _ => {
            out.push(126);
            // No chunk is longer.
            out.extend_from_slice(&u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The example of RFC 6455, 1.3.
    #[test]
    fn keys_are_answered_as_the_standard_says() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ==").unwrap(), *b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(accept("short"), None);
    }

    /// What a client sends: the masked frame.
    fn masked(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let mut bytes = vec![first];
        match u8::try_from(payload.len()) {
            Ok(length) if length < 126 => bytes.push(0x80 | length),
            _ => {
                bytes.push(0x80 | 126);
                bytes.extend_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
            }
        }
        bytes.extend_from_slice(&mask);
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    }

    /// Feeds `bytes` to a bridge; returns how it ended and what reached the relay.
    async fn feed(bytes: &[u8]) -> (io::Result<()>, Vec<u8>) {
        let (inner, mut relay) = tokio::io::duplex(1 << 20);
        let ended = bridge(bytes, tokio::io::sink(), inner).await;
        let mut got = Vec::new();
        relay.read_to_end(&mut got).await.unwrap();
        (ended, got)
    }

    #[tokio::test]
    async fn messages_become_one_stream_and_pings_are_answered() {
        let (client, far) = tokio::io::duplex(1 << 16);
        let (inner, mut relay) = tokio::io::duplex(1 << 16);
        let (reader, writer) = tokio::io::split(far);
        let bridge = tokio::spawn(bridge(reader, writer, inner));
        let (mut from, mut to) = tokio::io::split(client);
        let sent = [masked(0x02, b"hel", [1, 2, 3, 4]), masked(0x89, b"?", [9; 4]), masked(0x80, b"lo", [5, 6, 7, 8])];
        to.write_all(&sent.concat()).await.unwrap();
        let mut hello = [0; 5];
        relay.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hello");
        let mut pong = [0; 3];
        from.read_exact(&mut pong).await.unwrap();
        assert_eq!(&pong, b"\x8a\x01?");
        relay.write_all(&[7; 300]).await.unwrap();
        let mut answer = [0; 304];
        from.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer[..4], [0x82, 126, 1, 44]);
        to.write_all(&masked(0x88, b"", [0; 4])).await.unwrap();
        bridge.await.unwrap().unwrap();
        let mut rest = Vec::new();
        from.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"\x88\0");
    }

    #[tokio::test]
    async fn frames_that_clients_must_not_send_end_the_connection() {
        for bad in [
            &b"\x82\x01x"[..],
            &masked(0x81, b"text", [1; 4]),
            &masked(0xc2, b"compressed", [1; 4]),
            &masked(0x09, b"half a ping", [1; 4]),
            &masked(0x89, &[0; 126], [1; 4]),
            &masked(0x83, b"", [1; 4]),
        ] {
            assert!(feed(bad).await.0.is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn streams_come_through_whatever_the_messages(parts in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 0..20_000), any::<[u8; 4]>()), 1..4,
        )) {
            let mut bytes: Vec<u8> = parts.iter().flat_map(|(part, mask)| masked(0x82, part, *mask)).collect();
            bytes.extend(masked(0x88, b"", [0; 4]));
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (ended, got) = runtime.block_on(feed(&bytes));
            prop_assert!(ended.is_ok());
            prop_assert_eq!(got, parts.into_iter().flat_map(|(part, _)| part).collect::<Vec<_>>());
        }

        #[test]
        fn no_bytes_panic_or_grow(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (_, got) = runtime.block_on(feed(&bytes));
            prop_assert!(got.len() <= bytes.len());
        }
    }
}
