//! The relay server: connections in, frames between them.

use std::fmt;
use std::future::{Future, ready};
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use warren_wire::derp::{self, ClientInfo, Frame, FrameError, GoneReason, MeshKey, Reader, ServerInfo, present};
use warren_wire::key::{NodeKey, NodeSecret};

use crate::bucket::{Bucket, Rate};
use crate::counters::Counters;
use crate::http::{self, HEAD_MAX, Request, Start};
use crate::hub::{Connection, Delivery, Dialect, Hub, Kind, Presence};
use crate::websocket;

/// Time for a request's head, and between requests of one connection.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// Time for the server's key to leave and for the client's introduction to arrive, each.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Time for each write to a client, before the time that its bytes take at the least rate.
const WRITE_DEADLINE: Duration = Duration::from_secs(2);
/// The same for other relays of the region. Source: Tailscale `derp/derpserver`.
const MESH_WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// Bytes a second that every client must be able to take. Who takes less is as good as gone, and would only be sent
/// packets that are too old.
const LEAST_RATE: usize = 8 << 10;
/// Time between keep-alives, before a constant of 0 to 5 s that each connection adds.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Requests on one connection before it is closed.
const REQUESTS: usize = 16;
/// About how many bytes go out in one write.
pub(crate) const WRITE_BYTES: usize = 32 << 10;
/// Bytes of the reading buffer of a connection.
const READ_BYTES: usize = 4 << 10;
/// Bytes of a packet's frame before the packet.
const PACKET_OFFSET: usize = derp::HEADER_BYTES + 32;
/// Types of frames for relays of one region among themselves: who sends them without the mesh key is wrong here.
const MESH_ONLY: [u8; 3] = [0x0A, 0x10, 0x11];
/// Notices that a peer is not here, for each sender.
const NOTICES: Rate = Rate { rate: 1, burst: 3 };
/// What one frame costs at most of a client's rate, and so the least burst: the largest frame's payload.
const FRAME_COST_MAX: u64 = 32 + derp::PACKET_MAX as u64;
/// Clients that are told of a restart are asked to come back within this time, each at a moment of its own.
const RECONNECT_SPREAD: Duration = Duration::from_millis(510);
/// How long clients are asked to try again soon after a restart.
const TRY_FOR: Duration = Duration::from_secs(30);
/// How often a relay that drains looks whether anybody is left.
const DRAIN_STEP: Duration = Duration::from_millis(20);

/// How much each client may send. Who sends more is read more slowly; nothing is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Bytes a second in the long run, at least 1.
    pub bytes_per_second: u64,
    /// Bytes at once; raised to the size of the largest frame.
    pub burst: u64,
}

/// Decides who may use a relay.
pub trait Admission: Send + Sync + 'static {
    /// Is awaited before [`Self::admit`] is asked about a new connection: the place to ask others, with a deadline.
    fn prepare<'a>(&'a self, _key: &'a NodeKey, _source: IpAddr) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(ready(()))
    }

    /// Tells whether the holder of `key`, which it has proved to be, may connect from `source`.
    fn admit(&self, key: &NodeKey, source: IpAddr) -> bool;
}

/// A relay; clones are the same relay.
#[derive(Clone)]
pub struct Server(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) secret: NodeSecret,
    pub(crate) key: NodeKey,
    admission: Box<dyn Admission>,
    /// What other relays of the region show, and are shown.
    pub(crate) mesh: Option<MeshKey>,
    pub(crate) hub: Hub,
    /// What each client may send: bytes a second, no limit if 0, and burst.
    rate: [AtomicU64; 2],
    /// Set when no new connections are taken.
    draining: CancellationToken,
    pub(crate) stop: CancellationToken,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("key", &self.0.key)
            .field("counters", &self.0.hub.counters)
            .finish_non_exhaustive()
    }
}

/// What became of a connection.
#[derive(Debug)]
pub enum Taken<S> {
    /// It was for the relay and is over.
    Done,
    /// Its request is for somebody else: the stream, and the bytes that were read from it.
    Other {
        /// The stream.
        stream: S,
        /// What was read from it: a request, and perhaps more.
        read_ahead: Vec<u8>,
    },
}

/// Says why a connection ended. All of them are normal events on a public port.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The stream broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// Too slow.
    #[error("too slow: {0}")]
    Deadline(&'static str),
    /// Not HTTP, or a head that is too long.
    #[error("no HTTP request")]
    Request,
    /// A frame that breaks the protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Another frame than the one that is due.
    #[error("a frame that is not due")]
    Unexpected,
    /// The client does not hold the key that it claims.
    #[error("the introduction does not open")]
    Introduction,
    /// The key is not admitted.
    #[error("{0} is not admitted")]
    Refused(NodeKey),
    /// The relay is about to stop.
    #[error("the relay restarts")]
    Draining,
    /// The system gives no randomness.
    #[error("no randomness: {0}")]
    Random(#[from] getrandom::Error),
}

impl Server {
    /// Makes a relay with the key `secret`.
    #[must_use]
    pub fn new(secret: NodeSecret, admission: impl Admission) -> Self {
        Self::with_mesh(secret, admission, None)
    }

    /// Makes a relay with the key `secret`, which takes whoever shows the mesh key for another relay of its region.
    #[must_use]
    pub fn with_mesh(secret: NodeSecret, admission: impl Admission, mesh: Option<MeshKey>) -> Self {
        let key = secret.public();
        Self(Arc::new(Inner {
            secret,
            key,
            admission: Box::new(admission),
            mesh,
            hub: Hub::default(),
            rate: Default::default(),
            draining: CancellationToken::new(),
            stop: CancellationToken::new(),
        }))
    }

    /// Limits what each client may send, also those that are connected; `None` lifts the limit.
    pub fn set_rate_limit(&self, limit: Option<RateLimit>) {
        let [rate, burst] = &self.0.rate;
        burst.store(limit.map_or(0, |limit| limit.burst.max(FRAME_COST_MAX)), Ordering::Relaxed);
        rate.store(limit.map_or(0, |limit| limit.bytes_per_second.max(1)), Ordering::Relaxed);
    }

    /// Returns what each client may send now.
    fn rate(&self) -> Option<Rate> {
        let [rate, burst] = &self.0.rate;
        let rate =
            Rate { rate: rate.load(Ordering::Relaxed), burst: burst.load(Ordering::Relaxed).max(FRAME_COST_MAX) };
        (rate.rate > 0).then_some(rate)
    }

    /// Returns the relay's public key.
    #[must_use]
    pub fn key(&self) -> NodeKey {
        self.0.key
    }

    /// Returns the counters.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.0.hub.counters
    }

    /// Ends all connections of a key, for instance because its node was removed.
    pub fn disconnect(&self, key: &NodeKey) {
        self.0.hub.disconnect(key);
    }

    /// Ends the connections of every key that may no longer be here.
    pub fn retain(&self, stays: impl FnMut(&NodeKey) -> bool) {
        self.0.hub.retain(stays);
    }

    /// Returns the keys that are connected, each once for every connection, but for other relays of the region.
    #[must_use]
    pub fn keys(&self) -> Vec<NodeKey> {
        let connections = self.0.hub.connections();
        connections.iter().filter(|connection| !connection.is_mesh()).map(|connection| connection.key).collect()
    }

    /// Prepares the end: takes no new connections, tells the clients that understand it to come back soon, and serves
    /// those that are here for `time` or until the last has left. [`Self::stop`] then ends what is left.
    pub async fn drain(&self, time: Duration) {
        self.0.draining.cancel();
        let connections = self.0.hub.connections();
        let mut random = vec![0; connections.len()];
        if getrandom::fill(&mut random).is_err() {
            tracing::warn!("no randomness: clients will come back all at once");
        }
        for (connection, byte) in connections.iter().zip(random) {
            if connection.dialect == Dialect::Full {
                connection.restarting(RECONNECT_SPREAD * u32::from(byte) / 255, TRY_FOR);
            }
        }
        drop(connections);
        let all_left = async {
            while self.0.hub.counters.connections.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(DRAIN_STEP).await;
            }
        };
        // Running out of time is the normal end.
        let _ = timeout(time, all_left).await;
    }

    /// Ends all connections.
    pub fn stop(&self) {
        self.0.stop.cancel();
    }

    /// Serves a new connection from `source` if its first request is for the relay, else gives it back.
    ///
    /// # Errors
    /// Says why the connection ended; the stream is closed.
    pub async fn take<S>(&self, mut stream: S, source: IpAddr) -> Result<Taken<S>, ServeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut read = Vec::new();
        for _ in 0..REQUESTS {
            let request = match timeout(HEAD_DEADLINE, read_request(&mut stream, &mut read)).await {
                Ok(request) => request?,
                Err(_) => return Err(ServeError::Deadline("request")),
            };
            match request {
                Request::Other => return Ok(Taken::Other { stream, read_ahead: read }),
                Request::Malformed | Request::Partial => return Err(ServeError::Request),
                Request::Answer { answer, head, is_last } => {
                    write(&mut stream, &answer, HANDSHAKE_DEADLINE).await?;
                    if is_last {
                        break;
                    }
                    read.drain(..head.min(read.len()));
                }
                Request::Connect { start, head } => {
                    read.drain(..head.min(read.len()));
                    if let Start::WebSocket { accept } = start {
                        self.websocket(stream, read, source, &accept).await?;
                    } else {
                        self.connection(stream, read, source, start).await?;
                    }
                    return Ok(Taken::Done);
                }
            }
        }
        drop(timeout(WRITE_DEADLINE, stream.shutdown()).await);
        Ok(Taken::Done)
    }

    /// Serves a relay connection within a WebSocket.
    async fn websocket<S>(
        &self,
        mut stream: S,
        read_ahead: Vec<u8>,
        source: IpAddr,
        accept: &[u8; websocket::ACCEPT],
    ) -> Result<(), ServeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        write(&mut stream, &http::switching_to_websocket(accept), HANDSHAKE_DEADLINE).await?;
        let (reader, writer) = tokio::io::split(stream);
        let reader = BufReader::with_capacity(READ_BYTES, io::Cursor::new(read_ahead).chain(reader));
        let (inner, relay) = tokio::io::duplex(READ_BYTES);
        // What a client does not take stays in the pipe, so that the connection's deadlines hold here, too. As in a fast
        // start, frames begin at once.
        let mut connection = pin!(self.connection(relay, Vec::new(), source, Start::Fast));
        let mut bridge = pin!(websocket::bridge(reader, writer, inner));
        tokio::select! {
            served = &mut connection => {
                // What was written is on its way out; a client that does not take it must not hold us.
                drop(timeout(WRITE_DEADLINE, bridge).await);
                served
            }
            // The client has gone, and the connection sees the end of its stream.
            _ = &mut bridge => connection.await,
        }
    }

    /// Serves a relay connection whose request was read; `read_ahead` is what followed it.
    async fn connection<S>(
        &self,
        stream: S,
        read_ahead: Vec<u8>,
        source: IpAddr,
        start: Start,
    ) -> Result<(), ServeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (reader, mut writer) = tokio::io::split(stream);
        let mut reader = BufReader::with_capacity(READ_BYTES, io::Cursor::new(read_ahead).chain(reader));
        let mut greeting = Vec::new();
        if start == Start::Upgrade {
            greeting = http::switching(&self.0.key);
        }
        Frame::ServerKey(self.0.key).encode(&mut greeting);
        write(&mut writer, &greeting, HANDSHAKE_DEADLINE).await?;

        let introduction = timeout(HANDSHAKE_DEADLINE, read_frame(&mut reader, Reader::ServerHandshake)).await;
        let (kind, payload) = introduction.map_err(|_| ServeError::Deadline("introduction"))??;
        let Frame::ClientInfo { key, sealed } = Frame::decode(kind, &payload)? else {
            return Err(ServeError::Unexpected);
        };
        let info: ClientInfo = derp::open_info(sealed, &self.0.secret, &key).ok_or(ServeError::Introduction)?;
        let is_mesh = !key.is_zero() && info.mesh_key.as_ref().is_some_and(|shown| Some(shown) == self.0.mesh.as_ref());
        if !is_mesh {
            if !key.is_zero() {
                self.0.admission.prepare(&key, source).await;
            }
            self.admit(&key, source)?;
        }
        if self.0.draining.is_cancelled() {
            return Err(ServeError::Draining);
        }
        tracing::debug!(key = %key.short(), ?info, "relay client connected");

        let mut random = [0; 32];
        getrandom::fill(&mut random)?;
        let flags = match (is_mesh, info.is_prober) {
            (true, _) => present::MESH_PEER,
            (false, true) => present::PROBER,
            (false, false) => present::REGULAR,
        };
        let presence = Presence { source, flags };
        let connection = self.0.hub.join(key, self.0.stop.child_token(), dialect(&info), presence);
        let _leave = Leave { hub: &self.0.hub, connection: &connection };
        // Once more, now that `disconnect` finds us: the node may have been removed in between.
        if !is_mesh {
            self.admit(&key, source)?;
        }
        let nonce = random.first_chunk().copied().unwrap_or_default();
        let answer = ServerInfo { version: u32::from(derp::VERSION), ..ServerInfo::default() };
        let sealed = derp::seal_info(&answer, &self.0.secret, &key, nonce).ok_or(ServeError::Introduction)?;
        let mut bytes = Vec::new();
        Frame::ServerInfo { sealed: &sealed }.encode(&mut bytes);
        write(&mut writer, &bytes, HANDSHAKE_DEADLINE).await?;

        let jitter = Duration::from_millis(u64::from(random.last().copied().unwrap_or_default()) * 20);
        let ended = tokio::select! {
            ended = self.read_loop(&mut reader, &connection) => ended,
            ended = write_loop(&mut writer, &connection, KEEP_ALIVE + jitter) => ended,
            () = connection.closed.cancelled() => Ok(()),
        };
        // A client that is told goodbye reconnects at once; one that is not may wait for a timeout.
        drop(timeout(WRITE_DEADLINE, writer.shutdown()).await);
        match ended {
            Err(ServeError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            other => other,
        }
    }

    fn admit(&self, key: &NodeKey, source: IpAddr) -> Result<(), ServeError> {
        if !key.is_zero() && self.0.admission.admit(key, source) {
            return Ok(());
        }
        self.0.hub.counters.rejected.fetch_add(1, Ordering::Relaxed);
        Err(ServeError::Refused(*key))
    }

    /// Reads frames until the connection ends.
    #[expect(clippy::wildcard_enum_match_arm, reason = "other frames are skipped, also those not known yet")]
    async fn read_loop<R: AsyncRead + Unpin>(
        &self,
        reader: &mut R,
        connection: &Arc<Connection>,
    ) -> Result<(), ServeError> {
        let hub = &self.0.hub;
        let mut notices = Bucket::new(now());
        let mut sent = Bucket::new(now());
        let limits = if connection.is_mesh() { Reader::Mesh } else { Reader::Server };
        loop {
            let (kind, len) = read_header(reader, limits).await?;
            if MESH_ONLY.contains(&kind) && !connection.is_mesh() {
                return Err(ServeError::Unexpected);
            }
            // Charged before the payload is read: what does not come in time stays with the sender.
            while !connection.is_mesh()
                && let Some(rate) = self.rate()
                && let Err(wait) = sent.take(len as u64, rate, now())
            {
                // The limit may be changed or lifted meanwhile.
                tokio::time::sleep(wait.min(Duration::from_secs(1))).await;
            }
            if kind == derp::SEND_PACKET {
                let len = len.checked_sub(32).ok_or(FrameError::Malformed { kind })?;
                let mut to = [0; 32];
                reader.read_exact(&mut to).await?;
                let to = NodeKey::from_bytes(to);
                // The outgoing frame is built around the packet, so that it is copied once.
                let mut frame = Vec::with_capacity(PACKET_OFFSET + len);
                Frame::RecvPacket { from: connection.key, packet: &[] }.encode(&mut frame);
                let length = u32::try_from(32 + len).unwrap_or(u32::MAX).to_be_bytes();
                frame.iter_mut().skip(1).zip(length).for_each(|(byte, new)| *byte = new);
                let missing = len as u64;
                if reader.take(missing).read_to_end(&mut frame).await? < len {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                let kind = Kind::of(frame.get(PACKET_OFFSET..).unwrap_or_default());
                let delivery = hub.deliver(connection, to, Bytes::from(frame), kind);
                if delivery == Delivery::Absent && kind == Kind::Disco && notices.take(1, NOTICES, now()).is_ok() {
                    connection.notice(to, GoneReason::NotHere);
                }
                continue;
            }
            let mut payload = vec![0; len];
            reader.read_exact(&mut payload).await?;
            hub.wrote(connection);
            match Frame::decode(kind, &payload)? {
                Frame::Ping(data) => connection.pong(data),
                Frame::ServerKey(_) | Frame::ClientInfo { .. } | Frame::ServerInfo { .. } => {
                    return Err(ServeError::Unexpected);
                }
                // A relay whose list names itself needs not to be told of itself.
                Frame::WatchConns if connection.key == self.0.key => {}
                Frame::WatchConns if hub.watch(connection) => {}
                Frame::WatchConns => return Err(ServeError::Unexpected),
                Frame::ClosePeer(key) => hub.disconnect(&key),
                Frame::ForwardPacket { from, to, packet } => {
                    let mut frame = Vec::with_capacity(PACKET_OFFSET + packet.len());
                    Frame::RecvPacket { from, packet }.encode(&mut frame);
                    if hub.deliver_forwarded(from, to, Bytes::from(frame), Kind::of(packet)) == Delivery::Absent {
                        connection.notice(to, GoneReason::NotHere);
                    }
                }
                // Homes are counted nowhere; unknown types are skipped, as every server does.
                _ => {}
            }
        }
    }
}

/// Takes a connection out of the hub when its task ends, however it ends.
struct Leave<'a> {
    hub: &'a Hub,
    connection: &'a Arc<Connection>,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.hub.leave(self.connection);
    }
}

/// Tells what a client understands. The Rust client spells its ability to answer pings differently, so that only
/// those that take every frame have it here.
fn dialect(info: &ClientInfo) -> Dialect {
    if info.can_ack_pings { Dialect::Full } else { Dialect::Plain }
}

#[expect(clippy::disallowed_methods, reason = "the shell reads the clock here, for the buckets alone")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Sends what waits until the connection ends, and keep-alives in between.
async fn write_loop<W: AsyncWrite + Unpin>(
    writer: &mut W,
    connection: &Connection,
    keep_alive: Duration,
) -> Result<(), ServeError> {
    let mut ticks = tokio::time::interval(keep_alive);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.reset();
    let least = if connection.is_mesh() { MESH_WRITE_DEADLINE } else { WRITE_DEADLINE };
    let mut out = Vec::new();
    loop {
        if connection.drain(&mut out, WRITE_BYTES) {
            write(writer, &out, write_deadline(out.len(), least)).await?;
            out.clear();
            continue;
        }
        // An idle connection holds no buffer.
        out = Vec::new();
        tokio::select! {
            () = connection.wake.notified() => {}
            _ = ticks.tick() => Frame::KeepAlive.encode(&mut out),
        }
        if !out.is_empty() {
            write(writer, &out, least).await?;
            out.clear();
        }
    }
}

/// Returns the time that a write of so many bytes may take.
fn write_deadline(bytes: usize, least: Duration) -> Duration {
    let millis = bytes.saturating_mul(1000) / LEAST_RATE;
    least.saturating_add(Duration::from_millis(millis as u64))
}

/// Reads until the request in `read` is complete.
async fn read_request<S: AsyncRead + Unpin>(stream: &mut S, read: &mut Vec<u8>) -> Result<Request, ServeError> {
    loop {
        let request = http::read_request(read);
        if request != Request::Partial {
            return Ok(request);
        }
        let room = HEAD_MAX.saturating_sub(read.len()).max(1) as u64;
        if (&mut *stream).take(room).read_buf(read).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

async fn read_header<R: AsyncRead + Unpin>(reader: &mut R, limits: Reader) -> Result<(u8, usize), ServeError> {
    let mut header = [0; derp::HEADER_BYTES];
    reader.read_exact(&mut header).await?;
    Ok(derp::parse_header(header, limits)?)
}

async fn read_frame<R: AsyncRead + Unpin>(reader: &mut R, limits: Reader) -> Result<(u8, Vec<u8>), ServeError> {
    let (kind, len) = read_header(reader, limits).await?;
    let mut payload = vec![0; len];
    reader.read_exact(&mut payload).await?;
    Ok((kind, payload))
}

async fn write<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8], deadline: Duration) -> Result<(), ServeError> {
    let write = async {
        writer.write_all(bytes).await?;
        writer.flush().await
    };
    timeout(deadline, write).await.map_err(|_| ServeError::Deadline("write"))?.map_err(ServeError::Io)
}

#[cfg(test)]
mod tests;
