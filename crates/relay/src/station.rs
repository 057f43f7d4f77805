//! A relay on a machine of its own: its listeners, and their limits before anything is read.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::bucket::{Bucket, Rate};
use crate::http::{self, HEAD_MAX};
use crate::server::{Server, Taken, now};
use crate::stun::serve_stun;

/// Time for a TLS handshake.
const TLS_DEADLINE: Duration = Duration::from_secs(10);
/// Time for a plain request and its answer.
const PLAIN_DEADLINE: Duration = Duration::from_secs(10);
/// How long sent bytes may stay unacknowledged. Source: Tailscale `derp/derpserver`.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);
/// After how much silence the system probes a connection. Source: Tailscale `derp/derpserver`.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new().with_time(Duration::from_secs(600));
/// How long to wait after the system refused to hand out a connection, which happens when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long connections are served when the relay stops, so that clients hear of it.
const DRAIN: Duration = Duration::from_millis(300);
/// How long connections may take to end.
const GOODBYE: Duration = Duration::from_secs(1);
/// Connections to the plain listeners at a time.
const PLAIN_CONNECTIONS: usize = 64;

/// Where a relay listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// The relay, TLS.
    pub relay: SocketAddr,
    /// STUN, UDP.
    pub stun: Option<SocketAddr>,
    /// Plain HTTP, conventionally port 80: tells clients whether a captive portal is in the way.
    pub http: Option<SocketAddr>,
    /// Counts in Prometheus' format, plain HTTP. Keep it to this machine.
    pub metrics: Option<SocketAddr>,
}

/// How many connections a relay takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time, strangers' included.
    pub connections: usize,
    /// New connections a second, and at once; more are closed.
    pub accepts: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 60_000, accepts: 2_000 }
    }
}

/// The listeners of a relay.
#[derive(Debug)]
pub struct Station {
    relay: TcpListener,
    stun: Option<UdpSocket>,
    http: Option<TcpListener>,
    metrics: Option<TcpListener>,
    limits: Limits,
    tls: Arc<Mutex<Arc<ServerConfig>>>,
}

/// Changes the TLS settings of a [`Station`] while it runs.
#[derive(Debug, Clone)]
pub struct TlsHandle(Arc<Mutex<Arc<ServerConfig>>>);

impl TlsHandle {
    /// Uses `config` for connections from now on.
    pub fn set(&self, config: ServerConfig) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {error}")]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// What the system says.
    pub error: io::Error,
}

impl Station {
    /// Binds all listeners.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn bind(addresses: &Addresses, limits: Limits, tls: ServerConfig) -> Result<Self, BindError> {
        let tcp =
            async |address: SocketAddr| TcpListener::bind(address).await.map_err(|error| BindError { address, error });
        let relay = tcp(addresses.relay).await?;
        let stun = match addresses.stun {
            Some(address) => Some(UdpSocket::bind(address).await.map_err(|error| BindError { address, error })?),
            None => None,
        };
        let (mut http, mut metrics) = (None, None);
        if let Some(address) = addresses.http {
            http = Some(tcp(address).await?);
        }
        if let Some(address) = addresses.metrics {
            metrics = Some(tcp(address).await?);
        }
        Ok(Self { relay, stun, http, metrics, limits, tls: Arc::new(Mutex::new(Arc::new(tls))) })
    }

    /// Returns where it listens, with the ports that the system chose.
    ///
    /// # Errors
    /// What the system says.
    pub fn addresses(&self) -> io::Result<Addresses> {
        let tcp = |listener: &Option<TcpListener>| listener.as_ref().map(TcpListener::local_addr).transpose();
        Ok(Addresses {
            relay: self.relay.local_addr()?,
            stun: self.stun.as_ref().map(UdpSocket::local_addr).transpose()?,
            http: tcp(&self.http)?,
            metrics: tcp(&self.metrics)?,
        })
    }

    /// Returns the handle that changes the TLS settings.
    #[must_use]
    pub fn tls(&self) -> TlsHandle {
        TlsHandle(Arc::clone(&self.tls))
    }

    /// Serves until `stop`; then takes nothing new, tells clients, serves a moment longer, and ends.
    pub async fn run(self, server: Server, stop: CancellationToken) {
        let mut side = JoinSet::new();
        if let Some(socket) = self.stun {
            side.spawn(async move {
                if let Err(error) = serve_stun(&socket).await {
                    tracing::error!(%error, "the STUN socket is broken; clients do not learn their addresses here any more");
                }
            });
        }
        if let Some(listener) = self.http {
            side.spawn(serve_plain(listener, http::plain));
        }
        if let Some(listener) = self.metrics {
            let server = server.clone();
            side.spawn(serve_plain(listener, move |request| http::metrics(request, || server.counters().prometheus())));
        }
        let places = Arc::new(Semaphore::new(self.limits.connections.min(Semaphore::MAX_PERMITS)));
        let rate = Rate { rate: u64::from(self.limits.accepts.max(1)), burst: u64::from(self.limits.accepts.max(1)) };
        let (mut bucket, mut clients) = (Bucket::new(now()), JoinSet::new());
        loop {
            let accepted = tokio::select! {
                accepted = self.relay.accept() => accepted,
                Some(_) = clients.join_next() => continue,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let place = Arc::clone(&places).try_acquire_owned();
                    let (Ok(()), Ok(place)) = (bucket.take(1, rate, now()), place) else {
                        tracing::debug!(%peer, "too many connections, one is refused");
                        continue;
                    };
                    let tls = Arc::clone(&self.tls.lock().unwrap_or_else(PoisonError::into_inner));
                    let server = server.clone();
                    clients.spawn(async move {
                        serve_client(stream, peer, TlsAcceptor::from(tls), server).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // Whoever comes now finds nobody, or the next process if it listens already.
        drop(self.relay);
        server.drain(DRAIN).await;
        server.stop();
        let all_ended = async { while clients.join_next().await.is_some() {} };
        if timeout(GOODBYE, all_ended).await.is_err() {
            tracing::debug!("some connections did not end in time and are cut");
        }
    }
}

/// Sets what a relay needs of a connection: nothing waits for more, and a client that is gone is noticed.
///
/// # Errors
/// What the system says: the connection is broken.
pub fn prepare_socket(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))
}

async fn serve_client(stream: TcpStream, peer: SocketAddr, tls: TlsAcceptor, server: Server) {
    if let Err(error) = prepare_socket(&stream) {
        return tracing::debug!(%peer, %error, "a connection broke at once");
    }
    let stream = match timeout(TLS_DEADLINE, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        // Normal: clients probe latency with such connections.
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "a TLS handshake failed"),
        Err(_) => return tracing::debug!(%peer, "a TLS handshake took too long"),
    };
    match server.take(stream, peer.ip().to_canonical()).await {
        Ok(Taken::Done) => {}
        Ok(Taken::Other { stream, read_ahead }) => answer(stream, &http::leftover(&read_ahead)).await,
        Err(error) => tracing::debug!(%peer, %error, "a relay connection ended"),
    }
}

/// Writes an answer and ends the stream.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, bytes: &[u8]) {
    let write = async {
        stream.write_all(bytes).await?;
        stream.shutdown().await
    };
    // Who does not take it needs it no more.
    drop(timeout(PLAIN_DEADLINE, write).await);
}

/// Answers one request on each connection.
async fn serve_plain(
    listener: TcpListener,
    respond: impl Fn(&[u8]) -> Option<Vec<u8>> + Clone + Send + Sync + 'static,
) {
    let places = Arc::new(Semaphore::new(PLAIN_CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let respond = respond.clone();
        tokio::spawn(async move {
            let exchange = answer_plain(stream, respond);
            drop(timeout(PLAIN_DEADLINE, exchange).await);
            drop(place);
        });
    }
}

/// Reads a request until `respond` has an answer to it.
async fn answer_plain<S>(mut stream: S, respond: impl Fn(&[u8]) -> Option<Vec<u8>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request = Vec::new();
    loop {
        if let Some(bytes) = respond(&request) {
            return answer(stream, &bytes).await;
        }
        let room = HEAD_MAX.saturating_sub(request.len()).max(1) as u64;
        match (&mut stream).take(room).read_buf(&mut request).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}
