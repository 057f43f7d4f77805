//! A byte stream over Noise records, for both ends of the control channel.
//!
//! A server holds ten thousand of these idle at a time, so an idle one holds no buffer: ciphertext is read into the
//! stack, and only what is incomplete or not yet taken is kept.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use warren_wire::noise::{
    HEADER_BYTES, NoiseError, Opener, PLAINTEXT_MAX, RECORD_MAX, Sealer, Transport, record_length,
};

/// How much is read at a time: two records.
const READ_BYTES: usize = 2 * RECORD_MAX;

/// How much is sealed at a time: four records, a frame of HTTP/2 at its usual largest.
const WRITE_BYTES: usize = 4 * PLAINTEXT_MAX;

/// Carries a byte stream over `S` in Noise records.
///
/// Source: Tailscale `control/controlbase/conn.go`.
pub struct NoiseStream<S> {
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
    /// Starts behind a handshake. `greeting` is written as it is before the first record: a server's answer to the
    /// handshake; a client has none.
    pub fn new(inner: S, transport: Transport, greeting: Vec<u8>) -> Self {
        let (sealer, opener) = transport.split();
        Self {
            inner,
            sealer,
            opener,
            partial: Vec::new(),
            plain: Vec::new(),
            plain_at: 0,
            sealed: greeting,
            sealed_at: 0,
        }
    }

    /// Opens all complete records of `bytes`, which follow what is kept as `partial`.
    fn take_in(&mut self, bytes: &[u8]) -> Result<(), NoiseError> {
        let mut pending = std::mem::take(&mut self.partial);
        pending.extend_from_slice(bytes);
        let mut rest = pending.as_mut_slice();
        while let Some(&header) = rest.first_chunk::<HEADER_BYTES>() {
            let frame_bytes = HEADER_BYTES + record_length(header)?;
            if rest.len() < frame_bytes {
                break;
            }
            let (record, further) = std::mem::take(&mut rest).split_at_mut(frame_bytes);
            let ciphertext = record.get_mut(HEADER_BYTES..).unwrap_or_default();
            self.plain.extend_from_slice(self.opener.open(ciphertext)?);
            rest = further;
        }
        self.partial = rest.to_vec();
        Ok(())
    }
}

impl<S: AsyncWrite + Unpin> NoiseStream<S> {
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(bytes) = self.sealed.get(self.sealed_at..).filter(|bytes| !bytes.is_empty()) {
            let written = ready!(Pin::new(&mut self.inner).poll_write(context, bytes))?;
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
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
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
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut buffer))?;
            if buffer.filled().is_empty() {
                let cut_short = !this.partial.is_empty();
                return Poll::Ready(if cut_short { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(()) });
            }
            this.take_in(buffer.filled()).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for NoiseStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_drain(context))?;
        let bytes = bytes.get(..WRITE_BYTES).unwrap_or(bytes);
        for chunk in bytes.chunks(PLAINTEXT_MAX) {
            this.sealer.seal(chunk, &mut this.sealed).map_err(io::Error::other)?;
        }
        // What cannot be written now is kept; the next write or flush goes on with it.
        match this.poll_drain(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use warren_wire::key::MachineSecret;
    use warren_wire::noise::{Accepted, INITIATION_BYTES, Initiator, RESPONSE_BYTES, respond};

    use super::*;

    fn handshake() -> (Transport, Transport, [u8; RESPONSE_BYTES]) {
        let server = MachineSecret::from_bytes([2; 32]);
        let machine = MachineSecret::from_bytes([1; 32]);
        let (initiator, message): (_, [u8; INITIATION_BYTES]) =
            Initiator::new(130, &machine, &server.public(), [3; 32]).unwrap();
        let Accepted { response, transport, .. } = respond(&server, &message, [4; 32]).unwrap();
        (initiator.finish(&response).unwrap(), transport, response)
    }

    #[tokio::test]
    async fn bytes_arrive_in_order_through_a_narrow_pipe() {
        let (client, server, response) = handshake();
        // Narrower than a record: every read and write is partial.
        let (near, mut far) = duplex(1000);
        let sent: Vec<u8> = (0..100_000_u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            let mut stream = NoiseStream::new(near, server, response.to_vec());
            stream.write_all(&sent).await.unwrap();
            stream.shutdown().await.unwrap();
        });
        let mut greeting = [0; RESPONSE_BYTES];
        far.read_exact(&mut greeting).await.unwrap();
        assert_eq!(greeting, response);
        let mut got = Vec::new();
        NoiseStream::new(far, client, Vec::new()).read_to_end(&mut got).await.unwrap();
        writer.await.unwrap();
        assert!(got == expected);
    }

    #[tokio::test]
    async fn what_is_no_record_ends_the_stream() {
        for bytes in [
            &[3, 0, 1, b'x'][..],
            &[4, 0xff, 0xff],
            &[4, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[4, 0],
        ] {
            let (client, _, _) = handshake();
            let (near, mut far) = duplex(1000);
            far.write_all(bytes).await.unwrap();
            drop(far);
            let mut stream = NoiseStream::new(near, client, Vec::new());
            assert!(stream.read_to_end(&mut Vec::new()).await.is_err(), "{bytes:?}");
        }
    }
}
