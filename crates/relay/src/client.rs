//! The relay client: one connection to one relay.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ProtocolVersion};
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use warren_wire::control::DerpNode;
use warren_wire::derp::{self, ClientInfo, Frame, FrameError, GoneReason, MeshKey, Reader, ServerInfo};
use warren_wire::key::{NodeKey, NodeSecret};

use crate::dial;
use crate::pin::{Demand, Renamed, Verifier, meta_key};

/// Time for the whole of connecting: names, TCP, TLS, upgrade, introductions.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Time for all addresses of one relay.
const DIAL_DEADLINE: Duration = Duration::from_millis(1500);
/// Time without any frame after which a connection is dead.
const READ_DEADLINE: Duration = Duration::from_secs(120);
/// Time for one write.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// Most bytes of the server's answer to the upgrade.
const ANSWER_MAX: usize = 4 << 10;
/// Port of a relay whose port the map does not say.
const DEFAULT_PORT: u16 = 443;
/// Longest wait that a relay can ask for before we come back after its restart.
const RECONNECT_IN_MAX: Duration = Duration::from_secs(60);
/// Longest time for which a relay can ask us to try again soon.
const TRY_FOR_MAX: Duration = Duration::from_secs(300);
/// Text before the hash of a pinned certificate.
const PIN_PREFIX: &str = "sha256-raw:";

/// A byte stream to a relay.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Says why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No address of the relay can be used: both families are off, or the name does not resolve.
    #[error("the relay {0} has no usable address")]
    NoAddress(String),
    /// Nothing listens there, or TLS failed, or the stream broke.
    #[error("cannot reach the relay {name}: {cause}")]
    Io {
        /// Host name of the relay.
        name: String,
        /// What happened.
        cause: io::Error,
    },
    /// Took longer than ten seconds.
    #[error("the relay {0} does not answer")]
    Deadline(String),
    /// The settings for TLS cannot be made, for instance because this machine has no certificate store.
    #[error("cannot verify relays: {0}")]
    Tls(#[from] rustls::Error),
    /// It answered something else than a relay does.
    #[error("{0} is not a relay")]
    NotARelay(String),
    /// It closed the connection after our introduction.
    #[error("the relay {0} does not admit this node")]
    Refused(String),
    /// A relay that was to be another one of the region is this one.
    #[error("the relay {0} is this one")]
    Itself(String),
    /// The system gives no randomness.
    #[error("no randomness: {0}")]
    Random(#[from] getrandom::Error),
}

/// Who connects.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Who<'a> {
    pub(crate) secret: &'a NodeSecret,
    /// Another relay shows it, to one of its region.
    pub(crate) mesh: Option<&'a MeshKey>,
}

/// Says why a connection ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The stream broke.
    #[error("the connection to the relay broke: {0}")]
    Io(#[from] io::Error),
    /// Nothing for two minutes, or a write that hangs.
    #[error("the relay has fallen silent")]
    Silent,
    /// A frame that breaks the protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// What a relay says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A packet from a peer.
    Packet {
        /// Who sent it.
        from: NodeKey,
        /// Its bytes.
        packet: Vec<u8>,
    },
    /// A peer is not there.
    PeerGone {
        /// Who.
        key: NodeKey,
        /// Why.
        reason: GoneReason,
    },
    /// Answer with a pong of the same bytes.
    Ping([u8; 8]),
    /// Answers our ping.
    Pong([u8; 8]),
    /// The relay is about to restart.
    Restarting {
        /// Wait at least this long before coming back; at most a minute.
        reconnect_in: Duration,
        /// Then keep trying for so long; at most five minutes.
        try_for: Duration,
    },
    /// A trouble with this connection in at most 200 printable letters; empty: it is over.
    Health(String),
    /// A sign of life, or something that needs no answer.
    Nothing,
}

/// Receives; give it a task of its own, for its methods must not be dropped half way.
pub struct ClientReader(pub(crate) BufReader<ReadHalf<Box<dyn Stream>>>);

/// Sends.
pub struct ClientWriter {
    pub(crate) stream: WriteHalf<Box<dyn Stream>>,
    buffer: Vec<u8>,
}

impl fmt::Debug for ClientReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientReader")
    }
}

impl fmt::Debug for ClientWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientWriter")
    }
}

/// Connects to a relay of the map as the holder of `secret`.
///
/// # Errors
/// [`ConnectError`]; try again later, or the region's next relay.
pub async fn connect(node: &DerpNode, secret: &NodeSecret) -> Result<(ClientReader, ClientWriter), ConnectError> {
    connect_as(node, Who { secret, mesh: None }).await
}

/// Connects to a relay of the map.
pub(crate) async fn connect_as(node: &DerpNode, who: Who<'_>) -> Result<(ClientReader, ClientWriter), ConnectError> {
    let name = || node.host_name.clone();
    let connecting = async {
        let (stream, known) = open(node).await?;
        introduce(stream, who, known, name).await
    };
    timeout(CONNECT_DEADLINE, connecting).await.unwrap_or_else(|_| Err(ConnectError::Deadline(name())))
}

/// Opens the byte stream; returns the relay's key, too, if its certificates told it.
async fn open(node: &DerpNode) -> Result<(Box<dyn Stream>, Option<NodeKey>), ConnectError> {
    let io = |cause| ConnectError::Io { name: node.host_name.clone(), cause };
    let port = port(node);
    let literal = [&node.ipv4, &node.ipv6].into_iter().find(|text| text.parse::<IpAddr>().is_ok());
    let stream = match dial::through_proxy(literal.unwrap_or(&node.host_name), port, true).await {
        Some(stream) => stream.map_err(io)?,
        None => {
            let addresses = addresses(node).await;
            if addresses.is_empty() {
                return Err(ConnectError::NoAddress(node.host_name.clone()));
            }
            let dialling = timeout(DIAL_DEADLINE, dial::race(dial::alternate(addresses)));
            dialling.await.map_err(|_| io(io::ErrorKind::TimedOut.into()))?.map_err(io)?
        }
    };
    let name = |name: &str| {
        ServerName::try_from(name.to_owned())
            .map_err(|_| io(io::Error::new(io::ErrorKind::InvalidInput, "the relay's name is none")))
    };
    // A name for the certificate is none to ask for.
    let is_name = !node.cert_name.is_empty() && !node.cert_name.starts_with(PIN_PREFIX);
    let certified = is_name.then(|| name(&node.cert_name)).transpose()?;
    let connector = TlsConnector::from(Arc::new(tls(node, certified)?));
    let stream = connector.connect(name(&node.host_name)?, stream).await.map_err(io)?;
    let (_, tls) = stream.get_ref();
    // Under TLS 1.2 certificates are not covered by the handshake as a whole.
    let is_covered = tls.protocol_version() == Some(ProtocolVersion::TLSv1_3);
    let known = tls.peer_certificates().filter(|_| is_covered).and_then(meta_key);
    Ok((Box::new(stream), known))
}

fn port(node: &DerpNode) -> u16 {
    if node.derp_port == 0 { DEFAULT_PORT } else { node.derp_port }
}

/// Returns the addresses to try, in order.
async fn addresses(node: &DerpNode) -> Vec<SocketAddr> {
    let port = port(node);
    let mut found = Vec::new();
    let mut resolve = Vec::new();
    for (text, is_v4) in [(&node.ipv4, true), (&node.ipv6, false)] {
        match text.parse::<IpAddr>() {
            Ok(ip) if ip.is_ipv4() == is_v4 => found.push(SocketAddr::new(ip, port)),
            Ok(_) | Err(_) if text.is_empty() => resolve.push(is_v4),
            // Any other text switches the family off.
            Ok(_) | Err(_) => {}
        }
    }
    if !resolve.is_empty()
        && let Ok(names) = dial::look_up(&node.host_name, port).await
    {
        found.extend(names.into_iter().filter(|address| resolve.contains(&address.is_ipv4())).take(8));
    }
    found
}

fn tls(node: &DerpNode, certified: Option<ServerName<'static>>) -> Result<ClientConfig, ConnectError> {
    let provider = Arc::new(default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let demand = match node.cert_name.strip_prefix(PIN_PREFIX) {
        Some(pin) => Some(Demand::Pin(pin.to_ascii_lowercase())),
        None => node.insecure_for_tests.then_some(Demand::Nothing),
    };
    if let (None, Some(name)) = (&demand, certified) {
        let inner = rustls_platform_verifier::Verifier::new(Arc::clone(&provider))?;
        let verifier = Arc::new(Renamed { inner: Arc::new(inner), name });
        return Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
    }
    Ok(match demand {
        Some(demand) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier { demand, provider }))
            .with_no_client_auth(),
        None => builder.with_platform_verifier()?.with_no_client_auth(),
    })
}

/// Upgrades and introduces us. With a key that is `known` this is a fast start: one write, no answer but frames.
pub(crate) async fn introduce(
    stream: Box<dyn Stream>,
    who: Who<'_>,
    known: Option<NodeKey>,
    name: impl Fn() -> String,
) -> Result<(ClientReader, ClientWriter), ConnectError> {
    let io = |cause| ConnectError::Io { name: name(), cause };
    let not_a_relay = || ConnectError::NotARelay(name());
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = BufReader::with_capacity(16 << 10, reader);
    let mut bytes = request(&name(), known.is_some());
    let is_itself = |server: NodeKey| who.mesh.is_some() && server == who.secret.public();
    if let Some(server) = known {
        if is_itself(server) {
            return Err(ConnectError::Itself(name()));
        }
        introduction(who, &server, &mut bytes)?.ok_or_else(not_a_relay)?;
    }
    writer.write_all(&bytes).await.map_err(io)?;
    writer.flush().await.map_err(io)?;
    if known.is_none() && !is_switching(&mut reader).await.map_err(io)? {
        return Err(not_a_relay());
    }
    let (kind, payload) = read_frame(&mut reader).await.map_err(|_| not_a_relay())?;
    let Ok(Frame::ServerKey(server)) = Frame::decode(kind, &payload) else {
        return Err(not_a_relay());
    };
    match known {
        Some(known) if known == server => {}
        Some(_) => return Err(not_a_relay()),
        None => {
            bytes.clear();
            if is_itself(server) {
                return Err(ConnectError::Itself(name()));
            }
            introduction(who, &server, &mut bytes)?.ok_or_else(not_a_relay)?;
            writer.write_all(&bytes).await.map_err(io)?;
            writer.flush().await.map_err(io)?;
        }
    }
    let (kind, payload) = read_frame(&mut reader).await.map_err(|_| ConnectError::Refused(name()))?;
    match Frame::decode(kind, &payload) {
        Ok(Frame::ServerInfo { sealed }) if derp::open_info::<ServerInfo>(sealed, who.secret, &server).is_some() => {}
        _ => return Err(not_a_relay()),
    }
    Ok((ClientReader(reader), ClientWriter { stream: writer, buffer: Vec::new() }))
}

fn request(host: &str, is_fast: bool) -> Vec<u8> {
    let fast = if is_fast { "Derp-Fast-Start: 1\r\n" } else { "" };
    format!("GET /derp HTTP/1.1\r\nHost: {host}\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n{fast}\r\n").into_bytes()
}

/// Appends our introduction to the relay of key `server`; `None` if that key is of low order.
fn introduction(who: Who<'_>, server: &NodeKey, out: &mut Vec<u8>) -> Result<Option<()>, getrandom::Error> {
    let mut nonce = [0; 24];
    getrandom::fill(&mut nonce)?;
    let version = u32::from(derp::VERSION);
    let info = ClientInfo { version, can_ack_pings: true, is_prober: false, mesh_key: who.mesh.cloned() };
    let sealed = derp::seal_info(&info, who.secret, server, nonce);
    Ok(sealed.map(|sealed| Frame::ClientInfo { key: who.secret.public(), sealed: &sealed }.encode(out)))
}

/// Reads the head of the answer to the upgrade, byte by byte out of the buffer, and tells whether it is status 101.
async fn is_switching<R: AsyncRead + Unpin>(reader: &mut BufReader<R>) -> io::Result<bool> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= ANSWER_MAX {
            return Ok(false);
        }
        head.push(reader.read_u8().await?);
    }
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut answer = httparse::Response::new(&mut fields);
    Ok(answer.parse(&head).is_ok() && answer.code == Some(101))
}

pub(crate) async fn read_frame<R: AsyncRead + Unpin>(reader: &mut R) -> Result<(u8, Vec<u8>), ClientError> {
    let mut header = [0; derp::HEADER_BYTES];
    reader.read_exact(&mut header).await?;
    let (kind, length) = derp::parse_header(header, Reader::Client)?;
    let mut payload = vec![0; length];
    reader.read_exact(&mut payload).await?;
    Ok((kind, payload))
}

impl ClientReader {
    /// Waits for what the relay says next.
    ///
    /// # Errors
    /// [`ClientError`]: the connection is over.
    pub async fn next(&mut self) -> Result<Received, ClientError> {
        let (kind, payload) =
            timeout(READ_DEADLINE, read_frame(&mut self.0)).await.map_err(|_| ClientError::Silent)??;
        Ok(Received::of(kind, payload)?)
    }
}

impl Received {
    /// Reads a frame.
    ///
    /// # Errors
    /// [`FrameError`].
    #[expect(clippy::wildcard_enum_match_arm, reason = "other frames are signs of life, also those not known yet")]
    pub fn of(kind: u8, mut payload: Vec<u8>) -> Result<Self, FrameError> {
        Ok(match Frame::decode(kind, &payload)? {
            Frame::RecvPacket { from, packet } => {
                // The packet stays where it was read to.
                let before = payload.len() - packet.len();
                payload.drain(..before);
                Self::Packet { from, packet: payload }
            }
            Frame::PeerGone { key, reason } => Self::PeerGone { key, reason },
            Frame::Ping(data) => Self::Ping(data),
            Frame::Pong(data) => Self::Pong(data),
            Frame::Restarting { reconnect_in_millis, try_for_millis } => Self::Restarting {
                reconnect_in: Duration::from_millis(reconnect_in_millis.into()).min(RECONNECT_IN_MAX),
                try_for: Duration::from_millis(try_for_millis.into()).min(TRY_FOR_MAX),
            },
            Frame::Health(text) => Self::Health(text.chars().filter(|letter| !letter.is_control()).take(200).collect()),
            _ => Self::Nothing,
        })
    }
}

impl ClientWriter {
    /// Sends a packet to a peer.
    ///
    /// # Errors
    /// [`ClientError`]: the connection is over.
    pub async fn send_packet(&mut self, to: &NodeKey, packet: &[u8]) -> Result<(), ClientError> {
        if packet.len() > derp::PACKET_MAX {
            return Ok(());
        }
        self.send(Frame::SendPacket { to: *to, packet }).await
    }

    /// Answers a ping.
    ///
    /// # Errors
    /// [`ClientError`]: the connection is over.
    pub async fn pong(&mut self, data: [u8; 8]) -> Result<(), ClientError> {
        self.send(Frame::Pong(data)).await
    }

    /// Tells the relay whether it is our home.
    ///
    /// # Errors
    /// [`ClientError`]: the connection is over.
    pub async fn note_preferred(&mut self, home: bool) -> Result<(), ClientError> {
        self.send(Frame::NotePreferred(home)).await
    }

    /// Asks for a pong.
    ///
    /// # Errors
    /// [`ClientError`]: the connection is over.
    pub async fn ping(&mut self, data: [u8; 8]) -> Result<(), ClientError> {
        self.send(Frame::Ping(data)).await
    }

    async fn send(&mut self, frame: Frame<'_>) -> Result<(), ClientError> {
        self.buffer.clear();
        frame.encode(&mut self.buffer);
        let write = async {
            self.stream.write_all(&self.buffer).await?;
            self.stream.flush().await
        };
        timeout(WRITE_DEADLINE, write).await.map_err(|_| ClientError::Silent)??;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
