//! Skips the early payload, which a server may send inside Noise before its first HTTP/2 frame.
//!
//! The challenge in it is handed on, for proofs to sign it. The nine bytes that announce it are as long as the header of an
//! HTTP/2 frame, so they are looked at when they are read, not waited for: the server may want to hear us first.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use warren_wire::key::ChallengeKey;
use warren_wire::noise::{EARLY_HEADER_BYTES, EARLY_MAX_BYTES, EarlyPayload};

/// What the server sent: nothing yet, or that it sent no challenge, or one.
pub(super) type Challenge = Option<Option<ChallengeKey>>;

/// Passes a stream on without the early payload, if there is one.
#[derive(Debug)]
pub(super) struct SkipEarly<S> {
    inner: S,
    stage: Stage,
    /// The payload so far, [`EARLY_MAX_BYTES`] at most.
    payload: Vec<u8>,
    challenge: watch::Sender<Challenge>,
}

#[derive(Debug)]
enum Stage {
    Header { bytes: [u8; EARLY_HEADER_BYTES], filled: usize },
    Payload { left: usize },
    Replay { bytes: [u8; EARLY_HEADER_BYTES], given: usize, filled: usize },
    Through,
}

impl<S> SkipEarly<S> {
    pub(super) fn new(inner: S) -> Self {
        let stage = Stage::Header { bytes: [0; EARLY_HEADER_BYTES], filled: 0 };
        Self { inner, stage, payload: Vec::new(), challenge: watch::Sender::new(None) }
    }

    /// Returns where the server's challenge appears, once the stream is read.
    pub(super) fn challenge(&self) -> watch::Receiver<Challenge> {
        self.challenge.subscribe()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for SkipEarly<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.stage {
                Stage::Through => return Pin::new(&mut this.inner).poll_read(context, out),
                Stage::Header { bytes, filled } => {
                    let mut rest = ReadBuf::new(bytes.get_mut(*filled..).unwrap_or_default());
                    ready!(Pin::new(&mut this.inner).poll_read(context, &mut rest))?;
                    let count = rest.filled().len();
                    *filled += count;
                    if count == 0 || *filled == EARLY_HEADER_BYTES {
                        this.stage = judge(*bytes, *filled)?;
                        if matches!(this.stage, Stage::Replay { .. }) {
                            this.challenge.send_replace(Some(None));
                        }
                    }
                }
                Stage::Payload { left: 0 } => {
                    let early = EarlyPayload::decode(&std::mem::take(&mut this.payload));
                    this.challenge.send_replace(Some(early.and_then(|early| early.node_key_challenge)));
                    this.stage = Stage::Through;
                }
                Stage::Payload { left } => {
                    let mut scratch = [0; 512];
                    let room = (*left).min(scratch.len());
                    let mut buffer = ReadBuf::new(scratch.get_mut(..room).unwrap_or_default());
                    ready!(Pin::new(&mut this.inner).poll_read(context, &mut buffer))?;
                    match buffer.filled().len() {
                        0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                        count => *left -= count,
                    }
                    this.payload.extend_from_slice(buffer.filled());
                }
                Stage::Replay { bytes, given, filled } => {
                    let rest = bytes.get(*given..*filled).unwrap_or_default();
                    if rest.is_empty() {
                        this.stage = Stage::Through;
                        continue;
                    }
                    let count = rest.len().min(out.remaining());
                    out.put_slice(rest.get(..count).unwrap_or_default());
                    *given += count;
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

fn judge(bytes: [u8; EARLY_HEADER_BYTES], filled: usize) -> io::Result<Stage> {
    match EarlyPayload::parse_header(bytes).filter(|_| filled == EARLY_HEADER_BYTES) {
        None => Ok(Stage::Replay { bytes, given: 0, filled }),
        Some(left) if left <= EARLY_MAX_BYTES => Ok(Stage::Payload { left }),
        Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "early payload too long")),
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for SkipEarly<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use warren_wire::noise::EARLY_MAGIC as MAGIC;

    use super::*;

    async fn pass(pieces: &[&[u8]]) -> io::Result<Vec<u8>> {
        let (mut far, near) = duplex(4096);
        for piece in pieces {
            far.write_all(piece).await.unwrap();
        }
        drop(far);
        let mut out = Vec::new();
        SkipEarly::new(near).read_to_end(&mut out).await.map(|_| out)
    }

    #[tokio::test]
    async fn a_payload_is_skipped() {
        let early = [&MAGIC[..], &[0, 0, 0, 4], b"{}  "].concat();
        assert_eq!(pass(&[&early, b"settings"]).await.unwrap(), b"settings");
    }

    #[tokio::test]
    async fn the_challenge_is_handed_on() {
        let key = ChallengeKey::from_bytes([7; 32]);
        let with = EarlyPayload { node_key_challenge: Some(key) }.encode();
        let broken = [&MAGIC[..], &[0, 0, 0, 2], b"{]"].concat();
        for (bytes, expected) in [(&with[..], Some(Some(key))), (b"0123456789", Some(None)), (&broken, Some(None))] {
            let (mut far, near) = duplex(4096);
            far.write_all(bytes).await.unwrap();
            far.write_all(b"settings").await.unwrap();
            drop(far);
            let mut stream = SkipEarly::new(near);
            let challenge = stream.challenge();
            assert_eq!(*challenge.borrow(), None, "nothing is read yet");
            stream.read_to_end(&mut Vec::new()).await.unwrap();
            assert_eq!(*challenge.borrow(), expected);
        }
    }

    #[tokio::test]
    async fn without_payload_nothing_is_lost() {
        assert_eq!(pass(&[b"0123456789abcdef"]).await.unwrap(), b"0123456789abcdef");
        assert_eq!(pass(&[b"short"]).await.unwrap(), b"short");
        assert_eq!(pass(&[]).await.unwrap(), b"");
    }

    #[tokio::test]
    async fn absurd_or_broken_payloads_end_the_stream() {
        assert!(pass(&[&MAGIC, &[0xff, 0, 0, 0]]).await.is_err());
        assert!(pass(&[&MAGIC, &[0, 0, 0, 9], b"cut"]).await.is_err());
    }
}
