//! What the server answers behind Noise: HTTP/2 for one machine key.
//!
//! Requests are routed on their path alone: clients put all kinds of things into `:authority` and `host`, and some send
//! bodies with GET. Source: control.md §2.7, §6.1.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Request;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use warren_wire::key::{ChallengeKey, MachineKey};

use super::limits::{MAX_HEAD_BYTES, STRANGER_IDLE};
use super::routes;
use super::shared::Arrival;

/// Requests that one connection may have under way. Map streams and logins that wait hold one each. Source: control.md
/// §2.7 asks for 100 at least.
const MAX_STREAMS: u32 = 128;

/// Bytes that a client may send ahead, for each request and for the connection: the least that HTTP/2 knows as usual,
/// since requests are small and the memory is a stranger's to fill.
const WINDOW_BYTES: u32 = 65_535;

/// Bytes of an answer that may wait in HTTP/2 beyond what the client's window takes.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// How long a connection that was asked to end may take.
const GOODBYE: Duration = Duration::from_secs(5);

/// Where an upgrade came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin {
    /// Address of the client.
    pub(crate) from: IpAddr,
}

/// Whom a Noise connection belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    /// Key of the machine, proved by the handshake.
    pub(crate) machine: MachineKey,
    /// Capability version that the handshake stated.
    pub(crate) version: u16,
    /// Address of the client.
    pub(crate) from: IpAddr,
    /// What the connection began with; proofs of machines sign it.
    pub(crate) challenge: ChallengeKey,
}

/// A Noise connection, as its requests see it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) arrival: Arrival,
    pub(crate) caller: Caller,
    under_way: AtomicUsize,
}

impl Session {
    pub(crate) fn new(arrival: Arrival, caller: Caller) -> Self {
        Self { arrival, caller, under_way: AtomicUsize::new(0) }
    }
}

/// Counts a request as under way until its answer has been sent or given up.
#[derive(Debug)]
pub(crate) struct UnderWay(Arc<Session>);

impl UnderWay {
    pub(crate) fn new(session: &Arc<Session>) -> Self {
        session.under_way.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(session))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Spawns what HTTP/2 asks for on the current runtime.
#[derive(Debug, Clone, Copy)]
struct Spawner;

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Spawner {
    fn execute(&self, future: F) {
        tokio::spawn(future);
    }
}

/// Serves HTTP/2 on `stream` until the client, the server's end or a limit ends it.
pub(super) async fn serve<S>(arrival: Arrival, caller: Caller, stream: S)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let session = Arc::new(Session::new(arrival, caller));
    let stop = session.arrival.shared.stop.clone();
    let service = {
        let session = Arc::clone(&session);
        service_fn(move |request: Request<_>| {
            let session = Arc::clone(&session);
            // Boxed, so that a map stream does not keep the room that finding its answer took.
            Box::pin(async move { Ok::<_, Infallible>(routes::answer(&session, request).await) })
        })
    };
    let mut builder = http2::Builder::new(Spawner);
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    loop {
        tokio::select! {
            result = &mut connection => {
                if let Err(error) = result {
                    tracing::debug!(peer = %session.arrival.peer, %error, "a connection broke");
                }
                return;
            }
            () = stop.cancelled() => break,
            () = tokio::time::sleep(STRANGER_IDLE), if !session.arrival.pass.is_identified() => {
                let idle = session.under_way.load(Ordering::Relaxed) == 0;
                if idle && !session.arrival.pass.is_identified() {
                    tracing::debug!(peer = %session.arrival.peer, "a stranger's idle connection is closed");
                    break;
                }
            }
        }
    }
    connection.as_mut().graceful_shutdown();
    drop(tokio::time::timeout(GOODBYE, connection).await);
}
