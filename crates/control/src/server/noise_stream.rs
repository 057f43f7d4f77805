//! A byte stream over Noise records.
//!
//! Ten thousand of these are idle at a time, so an idle one holds no buffer: ciphertext is read into the stack, and only
//! what is incomplete or not yet taken is kept.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use warren_wire::noise::{self, HEADER_BYTES, Opener, PLAINTEXT_MAX, RECORD_MAX, Sealer, Transport};

/// How much is read at a time: two records.
const READ_BYTES: usize = 2 * RECORD_MAX;

/// How much is sealed at a time: four records, a frame of HTTP/2 at its usual largest.
const WRITE_BYTES: usize = 4 * PLAINTEXT_MAX;

/// Carries a byte stream over `S` in Noise records. Source: control.md §2.4.
pub(crate) struct NoiseStream<S> {
    inner: S,
    sealer: Sealer,
    opener: Opener,
    /// The beginning of a record, not complete yet.
    partial: Vec<u8>,
    /// Opened and not taken yet, from `plain_at` on.
    plain: Vec<u8>,
    plain_at: usize,
    /// Sealed and not written yet, from `sealed_at` on.
    sealed: Vec<u8>,
    sealed_at: usize,
}

impl<S> std::fmt::Debug for NoiseStream<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NoiseStream").finish_non_exhaustive()
    }
}

impl<S> NoiseStream<S> {
    /// Starts behind a handshake. `greeting` is written as it is before the first record: the answer to the handshake,
    /// so that both leave in one segment.
    pub(crate) fn new(inner: S, transport: Transport, greeting: &[u8]) -> Self {
        let (sealer, opener) = transport.split();
        Self {
            inner,
            sealer,
            opener,
            partial: Vec::new(),
            plain: Vec::new(),
            plain_at: 0,
            sealed: greeting.to_vec(),
            sealed_at: 0,
        }
    }

    /// Opens all complete records of `bytes`, which follow what is kept as `partial`.
    fn take_in(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut pending = std::mem::take(&mut self.partial);
        pending.extend_from_slice(bytes);
        let mut rest = pending.as_mut_slice();
        while let Some(&mut header) = rest.first_chunk_mut::<HEADER_BYTES>() {
            let frame_bytes = HEADER_BYTES + noise::record_length(header).map_err(broken)?;
            if rest.len() < frame_bytes {
                break;
            }
            let (record, further) = std::mem::take(&mut rest).split_at_mut(frame_bytes);
            let ciphertext = record.get_mut(HEADER_BYTES..).unwrap_or_default();
            let plain = self.opener.open(ciphertext).map_err(broken)?;
            self.plain.extend_from_slice(plain);
            rest = further;
        }
        self.partial = rest.to_vec();
        Ok(())
    }
}

fn broken(error: noise::NoiseError) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

impl<S: AsyncWrite + Unpin> NoiseStream<S> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(bytes) = self.sealed.get(self.sealed_at..).filter(|bytes| !bytes.is_empty()) {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, bytes))?;
            if written == 0 {
                return Poll::Ready(Err(ErrorKind::WriteZero.into()));
            }
            self.sealed_at += written;
        }
        self.sealed = Vec::new();
        self.sealed_at = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for NoiseStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if let Some(plain) = this.plain.get(this.plain_at..).filter(|plain| !plain.is_empty()) {
                let length = plain.len().min(out.remaining());
                out.put_slice(plain.get(..length).unwrap_or_default());
                this.plain_at += length;
                if this.plain_at == this.plain.len() {
                    this.plain = Vec::new();
                    this.plain_at = 0;
                }
                return Poll::Ready(Ok(()));
            }
            let mut buffer = [0; READ_BYTES];
            let mut buffer = ReadBuf::new(&mut buffer);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                let cut_short = !this.partial.is_empty();
                return Poll::Ready(if cut_short { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(()) });
            }
            this.take_in(buffer.filled())?;
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for NoiseStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        // A little that waits, such as the greeting, goes into the same segment.
        if this.sealed_at > 0 || this.sealed.len() > RECORD_MAX {
            ready!(this.poll_drain(cx))?;
        }
        let bytes = bytes.get(..WRITE_BYTES).unwrap_or(bytes);
        for chunk in bytes.chunks(PLAINTEXT_MAX) {
            this.sealer.seal(chunk, &mut this.sealed).map_err(io::Error::other)?;
        }
        // What cannot be written now is kept; the next write or flush goes on with it.
        match this.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use warren_wire::key::MachineSecret;
    use warren_wire::noise::{Accepted, Initiator};

    use super::*;

    /// Makes both ends of a connection over a pipe of `pipe_bytes`.
    fn pair(pipe_bytes: usize) -> (NoiseStream<DuplexStream>, NoiseStream<DuplexStream>) {
        let (client, server) = tokio::io::duplex(pipe_bytes);
        let (ours, theirs) = transports();
        (NoiseStream::new(client, ours, &[]), NoiseStream::new(server, theirs, &[]))
    }

    fn transports() -> (Transport, Transport) {
        let server = MachineSecret::from_bytes([1; 32]);
        let machine = MachineSecret::from_bytes([2; 32]);
        let (initiator, initiation) = Initiator::new(130, &machine, &server.public(), [3; 32]).unwrap();
        let Accepted { response, transport, .. } = noise::respond(&server, &initiation, [4; 32]).unwrap();
        (initiator.finish(&response).unwrap(), transport)
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_through_a_narrow_pipe() {
        let (mut client, mut server) = pair(100);
        let message: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let sent = message.clone();
        let echo = tokio::spawn(async move {
            let mut bytes = vec![0; sent.len()];
            server.read_exact(&mut bytes).await.unwrap();
            server.write_all(&bytes).await.unwrap();
            server.flush().await.unwrap();
            server
        });
        client.write_all(&message).await.unwrap();
        client.flush().await.unwrap();
        let mut back = vec![0; message.len()];
        client.read_exact(&mut back).await.unwrap();
        assert!(back == message);
        let server = echo.await.unwrap();
        for idle in [&client, &server] {
            let held = idle.partial.capacity() + idle.plain.capacity() + idle.sealed.capacity();
            assert_eq!(held, 0, "an idle stream holds no buffer");
        }
    }

    #[tokio::test]
    async fn the_greeting_stands_before_the_first_record() {
        let (mut client, server) = tokio::io::duplex(1024);
        let (_, transport) = transports();
        let mut server = NoiseStream::new(server, transport, b"hello");
        server.write_all(b"x").await.unwrap();
        server.flush().await.unwrap();
        let mut bytes = [0; 8];
        client.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"hello\x04\x00\x11");
    }

    #[tokio::test]
    async fn the_end_between_records_is_an_end_and_within_one_an_error() {
        let (mut client, server) = tokio::io::duplex(1024);
        let (ours, theirs) = transports();
        let mut server = NoiseStream::new(server, theirs, &[]);
        let mut record = Vec::new();
        ours.split().0.seal(b"bye", &mut record).unwrap();
        client.write_all(&record).await.unwrap();
        client.write_all(&record[..10]).await.unwrap();
        drop(client);
        let mut bytes = [0; 3];
        server.read_exact(&mut bytes).await.unwrap();
        assert_eq!(server.read(&mut bytes).await.unwrap_err().kind(), ErrorKind::UnexpectedEof);

        let (client, mut server) = pair(100);
        drop(client);
        assert_eq!(server.read(&mut bytes).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn what_is_no_record_ends_the_stream() {
        let too_long = [4, 0x0f, 0xfe];
        let other_type = [3, 0, 2, b'n', b'o'];
        let forged = [&[4, 0, 17][..], &[0; 17]].concat();
        for bytes in [&too_long[..], &other_type, &forged] {
            let (mut client, server) = tokio::io::duplex(1024);
            let mut server = NoiseStream::new(server, transports().1, &[]);
            client.write_all(bytes).await.unwrap();
            assert_eq!(server.read(&mut [0; 8]).await.unwrap_err().kind(), ErrorKind::InvalidData);
        }
    }

    #[tokio::test]
    async fn empty_records_are_skipped() {
        let (mut client, server) = tokio::io::duplex(1024);
        let (ours, theirs) = transports();
        let mut server = NoiseStream::new(server, theirs, &[]);
        let (mut sealer, _) = ours.split();
        let mut records = Vec::new();
        for plain in [&b""[..], b"", b"x"] {
            sealer.seal(plain, &mut records).unwrap();
        }
        client.write_all(&records).await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'x');
    }
}
