//! The accept loops: limits first, then TLS, then who answers: the relay or HTTP.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use super::limits::{HEAD_DEADLINE, HTTP_LIFETIME, MAX_HEAD_BYTES, MAX_HEADER_FIELDS, TLS_DEADLINE};
use super::relaying::{Relaying, Tls};
use super::replay::Replay;
use super::shared::{Arrival, Shared};
use super::web;

/// How long to wait after the system refused to hand out a connection, which happens when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long an HTTP connection may take to end when the server stops.
const GOODBYE: Duration = Duration::from_secs(5);

/// After how much silence the system probes a connection, how often, and how many probes may be lost.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)).with_retries(4);

/// How long sent bytes may stay unacknowledged. With the keep-alives of map streams this bounds how long a vanished
/// client counts as online; TCP alone would take a quarter of an hour.
const UNACKNOWLEDGED: Duration = Duration::from_secs(45);

/// A byte stream of whatever kind.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// The stream below HTTP/1.1, and what comes back from it after an upgrade.
pub(crate) type HttpStream = Replay<Box<dyn Duplex>>;

/// What a listener offers.
#[derive(Clone)]
pub(crate) enum Offer {
    /// Plain HTTP.
    Http,
    /// TLS, with the relay and HTTP behind it.
    Tls(Arc<Tls>, Arc<Relaying>),
}

/// Accepts connections until the server stops.
pub(crate) async fn run(listener: TcpListener, offer: Offer, shared: Arc<Shared>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => start(stream, peer, &offer, &shared),
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn start(stream: TcpStream, peer: SocketAddr, offer: &Offer, shared: &Arc<Shared>) {
    let source = (!shared.proxies.lists(peer.ip())).then(|| peer.ip());
    let Some(pass) = shared.gate.admit(source) else {
        tracing::debug!(%peer, "too many connections, one is refused");
        return;
    };
    let set = match offer {
        Offer::Http => prepare_socket(&stream),
        // Most of these are for the relay, and none is known before it has spoken.
        Offer::Tls(..) => warren_relay::prepare_socket(&stream),
    };
    if let Err(error) = set {
        return tracing::debug!(%peer, %error, "a connection broke at once");
    }
    let arrival = Arrival { shared: Arc::clone(shared), peer, pass: Arc::new(pass) };
    match offer {
        Offer::Http => {
            tokio::spawn(serve_http(arrival, Replay::new(Bytes::new(), Box::new(stream))));
        }
        Offer::Tls(tls, relaying) => {
            tokio::spawn(serve_tls(arrival, tls.acceptor(), Arc::clone(relaying), stream));
        }
    }
}

/// Sets what a connection for HTTP needs.
fn prepare_socket(stream: &TcpStream) -> std::io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))
}

async fn serve_tls(arrival: Arrival, acceptor: tokio_rustls::TlsAcceptor, relaying: Arc<Relaying>, stream: TcpStream) {
    // Connections that end here are normal: clients probe latency with them.
    let stream = match tokio::time::timeout(TLS_DEADLINE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(peer = %arrival.peer, %error, "a TLS handshake failed"),
        Err(_) => return tracing::debug!(peer = %arrival.peer, "a TLS handshake took too long"),
    };
    if let Some(stream) = relaying.take(&arrival, Box::new(stream)).await {
        serve_http(arrival, stream).await;
    }
}

/// Serves HTTP/1.1 on `stream` until it ends, its time is over, the server stops or it is upgraded.
pub(crate) async fn serve_http(arrival: Arrival, stream: HttpStream) {
    let stop = arrival.shared.stop.clone();
    let peer = arrival.peer;
    let service = service_fn(move |request| {
        let arrival = arrival.clone();
        async move { Ok::<_, Infallible>(web::answer(&arrival, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_headers(MAX_HEADER_FIELDS)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    tokio::select! {
        result = tokio::time::timeout(HTTP_LIFETIME, &mut connection) => match result {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%peer, %error, "an HTTP connection broke"),
            Err(_) => tracing::debug!(%peer, "an HTTP connection has lived long enough"),
        },
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            drop(tokio::time::timeout(GOODBYE, connection).await);
        }
    }
}
