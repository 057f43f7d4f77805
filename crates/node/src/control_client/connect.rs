//! From the address of a server to an HTTP/2 connection inside Noise.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use warren_relay::noise_stream::NoiseStream;
use warren_wire::control::Time;
use warren_wire::key::{ChallengeKey, MachineKey, MachineSecret};
use warren_wire::noise;

use super::certificate::MachineCertificate;
use super::early::{Challenge, SkipEarly};
use super::server_url::{Scheme, ServerUrl};

/// How long each step (connect, TLS, key, upgrade, handshake) may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the first way to a server is given before the second is tried beside it.
///
/// Source: Tailscale `control/controlhttp/client.go`.
const HEAD_START: Duration = Duration::from_millis(500);

/// Longest answer to `/key`.
const MAX_KEY_ANSWER: usize = 64 * 1024;

/// Longest answer to a call that is not a map.
pub(super) const MAX_ANSWER: usize = 1024 * 1024;

/// Receive windows inside Noise: a large first map flows without stalls, and a hostile server cannot fill the memory.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;

/// Is a byte stream to a server.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// Opens byte streams to a server; tests put a server in the same process behind it.
pub trait Connector: Send + Sync + 'static {
    /// Opens a stream, with TLS if the address says so.
    fn connect(&self, url: &ServerUrl) -> impl Future<Output = Result<Box<dyn Stream>, ConnectError>> + Send;
}

/// Says why there is no connection to the server. Each text says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The name service does not know the host.
    #[error("cannot find {host}: {reason}; check the address for a typing error, and this machine's name service")]
    NoSuchHost {
        /// The name.
        host: String,
        /// What the system said.
        reason: String,
    },
    /// No TCP connection.
    #[error("cannot reach {url}: {source}; check the address and that the server runs")]
    Unreachable {
        /// Where to.
        url: String,
        /// What the system said.
        source: io::Error,
    },
    /// A step took too long.
    #[error("{url} does not answer in time; check the address and firewalls on the way")]
    Slow {
        /// Who.
        url: String,
    },
    /// TLS failed.
    #[error("{url}: TLS failed: {reason}")]
    Tls {
        /// Who.
        url: String,
        /// Why, with advice where there is any.
        reason: String,
        /// The certificate is not valid at this machine's time.
        clock: bool,
    },
    /// Plain HTTP to another machine without a pinned key.
    #[error(
        "{url} is not encrypted by TLS, so the server's key must be named: add --server-key mkey:… (warren admin auth-key create prints it)"
    )]
    PinNeeded {
        /// Who.
        url: String,
    },
    /// The server has another key than the pinned one.
    #[error(
        "{url} is not the server whose key was given (it shows {seen}); do not go on unless its operator says that the key changed, then: warren up --server-key {seen}"
    )]
    WrongKey {
        /// Who.
        url: String,
        /// Key that the server showed.
        seen: MachineKey,
    },
    /// What answers is not a coordination server, or refuses this client.
    #[error("{url} does not answer like a coordination server: {reason}")]
    NotAServer {
        /// Who.
        url: String,
        /// What it said.
        reason: String,
    },
    /// The server has too much to do at the moment, and says when to come again.
    #[error("{url} is busy (status {status}); it is asked again later")]
    Busy {
        /// Who.
        url: String,
        /// HTTP status: 429 or 503.
        status: u16,
        /// How long to wait.
        later: Later,
    },
    /// The Noise handshake failed.
    #[error("{url}: the encrypted handshake failed: {reason}")]
    Handshake {
        /// Who.
        url: String,
        /// Why.
        reason: String,
    },
}

/// Is what an answer says of when to come again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Later {
    /// `Retry-After` header.
    pub(super) retry_after: Option<String>,
    /// `Date` header.
    pub(super) date: Option<Time>,
}

impl Later {
    fn of<B>(response: &Response<B>) -> Self {
        let text = |name| response.headers().get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
        Self { retry_after: text(header::RETRY_AFTER).map(str::to_owned), date: text(header::DATE).and_then(http_date) }
    }
}

/// Tells whether an HTTP status says "later".
pub(super) fn is_later(status: u16) -> bool {
    matches!(status, 429 | 503)
}

/// Says whom to talk to, as whom.
#[derive(Debug, Clone)]
pub struct Target {
    /// Address of the server.
    pub url: ServerUrl,
    /// The only key that the server may have, if pinned.
    pub pin: Option<MachineKey>,
    /// Identity of this machine.
    pub machine: Arc<MachineSecret>,
    /// Certificate that it shows to the server, if it has one.
    pub certificate: Option<Arc<MachineCertificate>>,
}

/// Is an open connection; calls may run side by side. Closes when dropped.
#[derive(Debug)]
pub(super) struct Connection {
    url: ServerUrl,
    sender: http2::SendRequest<Full<Bytes>>,
    server_key: MachineKey,
    /// What the server's clock showed, if it said so.
    server_date: Option<Time>,
    challenge: watch::Receiver<Challenge>,
    task: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens a connection. Asks the server for its key unless `known` names it; a pinned key is compared first.
///
/// An address may have a second way ([`ServerUrl::tls_fallback`]): it is tried when the first way fails, or beside it
/// when the first is slow; whichever gets through is used.
///
/// # Errors
/// Says which step failed, on the first way.
pub(super) async fn connect<C: Connector>(
    connector: &C,
    target: &Target,
    known: Option<MachineKey>,
) -> Result<Connection, ConnectError> {
    let url = &target.url;
    if target.pin.is_none() && url.scheme() == Scheme::Http && !url.is_loopback() {
        return Err(ConnectError::PinNeeded { url: url.to_string() });
    }
    let first = connect_to(connector, url, target, known);
    match url.tls_fallback() {
        None => first.await,
        Some(tls) => first_through(first, connect_to(connector, &tls, target, known)).await,
    }
}

/// Runs `first`, and `second` if `first` fails or is slow. The error is that of `first`.
async fn first_through<T>(
    first: impl Future<Output = Result<T, ConnectError>>,
    second: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    let (mut first, mut second) = (std::pin::pin!(first), std::pin::pin!(second));
    let failed = match timeout(HEAD_START, &mut first).await {
        Ok(Ok(through)) => return Ok(through),
        Ok(Err(failed)) => failed,
        Err(_) => tokio::select! {
            through = &mut first => match through {
                Ok(through) => return Ok(through),
                Err(failed) => failed,
            },
            through = &mut second => return match through {
                Ok(through) => Ok(through),
                Err(_) => first.await,
            },
        },
    };
    second.await.map_err(|_| failed)
}

async fn connect_to<C: Connector>(
    connector: &C,
    url: &ServerUrl,
    target: &Target,
    known: Option<MachineKey>,
) -> Result<Connection, ConnectError> {
    let mut http = open_http(connector, url).await?;
    let (server_key, server_date) = match known {
        Some(key) => (key, None),
        None => {
            let (key, date) = ask_key(&mut http, url).await?;
            // The answer may have ended the connection.
            if http.ready().await.is_err() {
                http = open_http(connector, url).await?;
            }
            (key, date)
        }
    };
    if target.pin.is_some_and(|pin| pin != server_key) {
        return Err(ConnectError::WrongKey { url: url.to_string(), seen: server_key });
    }
    let noise = in_time(url, upgrade(&mut http, url, &target.machine, &server_key)).await?;
    let stream = SkipEarly::new(noise);
    let challenge = stream.challenge();
    let handshake = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(16 * 1024)
        .handshake(TokioIo::new(stream));
    let (sender, connection) =
        handshake.await.map_err(|error| ConnectError::Handshake { url: url.to_string(), reason: error.to_string() })?;
    let task = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to the server ended");
        }
    });
    Ok(Connection { url: url.clone(), sender, server_key, server_date, challenge, task: task.abort_handle() })
}

impl Connection {
    /// Returns the key that the server proved to have.
    #[must_use]
    pub(super) fn server_key(&self) -> MachineKey {
        self.server_key
    }

    /// Waits for the challenge with which the server begins a connection; `None` if it sends none.
    pub(super) async fn challenge(&self) -> Option<ChallengeKey> {
        let mut challenge = self.challenge.clone();
        let sent = timeout(STEP_TIMEOUT, challenge.wait_for(Option::is_some)).await;
        sent.ok()?.ok().and_then(|challenge| challenge.flatten())
    }

    /// Returns the server's clock, if it was asked for its key.
    #[must_use]
    pub(super) fn server_date(&self) -> Option<Time> {
        self.server_date
    }

    /// Sends a request with a body to `path` and returns the head of the answer.
    ///
    /// # Errors
    /// Fails when the connection broke.
    pub(super) fn send(
        &self,
        method: http::Method,
        path: &str,
        body: Bytes,
    ) -> impl Future<Output = Result<Response<Incoming>, CallError>> + Send + use<> {
        let mut sender = self.sender.clone();
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.url.authority()))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body));
        async move {
            let request = request.map_err(|_| CallError::Broken("path is not valid".into()))?;
            sender.send_request(request).await.map_err(|error| CallError::Broken(error.to_string()))
        }
    }
}

/// Says why a call on an open connection failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(super) enum CallError {
    /// The connection broke.
    #[error("connection to the server lost: {0}")]
    Broken(String),
    /// The server answered with an error.
    #[error("the server answered {status}: {text}")]
    Status {
        /// HTTP status.
        status: u16,
        /// Beginning of the body.
        text: String,
        /// When to come again.
        later: Later,
    },
    /// The server sent what is no valid answer.
    #[error("the server's answer cannot be understood: {0}")]
    Malformed(String),
    /// No answer, or nothing more, in time.
    #[error("the server went silent")]
    Silent,
}

/// Turns an answer with an error status into [`CallError::Status`].
pub(super) async fn checked(response: Response<Incoming>) -> Result<Response<Incoming>, CallError> {
    let status = response.status();
    if status == StatusCode::OK || status == StatusCode::NO_CONTENT {
        return Ok(response);
    }
    let later = Later::of(&response);
    let body = timeout(STEP_TIMEOUT, Limited::new(response.into_body(), 64 * 1024).collect()).await;
    let text = match body {
        Ok(Ok(body)) => crate::netmap::printable(&String::from_utf8_lossy(&body.to_bytes()), 200),
        Ok(Err(_)) | Err(_) => String::new(),
    };
    Err(CallError::Status { status: status.as_u16(), text, later })
}

type Http1 = http1::SendRequest<Empty<Bytes>>;

async fn open_http<C: Connector>(connector: &C, url: &ServerUrl) -> Result<Http1, ConnectError> {
    let stream = in_time(url, connector.connect(url)).await?;
    let (sender, connection) = http1::Builder::new()
        .max_headers(64)
        .max_buf_size(64 * 1024)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| not_a_server(url, &error))?;
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

#[derive(Deserialize)]
struct KeyAnswer {
    #[serde(rename = "publicKey")]
    public_key: MachineKey,
}

async fn ask_key(http: &mut Http1, url: &ServerUrl) -> Result<(MachineKey, Option<Time>), ConnectError> {
    let request = Request::builder()
        .uri(format!("/key?v={}", crate::CAPABILITY_VERSION))
        .header(header::HOST, url.authority())
        .body(Empty::new())
        .map_err(|error| not_a_server(url, &error))?;
    in_time(url, async {
        let response = http.send_request(request).await.map_err(|error| not_a_server(url, &error))?;
        let status = response.status();
        busy(url, &response)?;
        let date = response.headers().get(header::DATE).and_then(|value| value.to_str().ok()).and_then(http_date);
        let body = Limited::new(response.into_body(), MAX_KEY_ANSWER).collect().await;
        let body = body.map_err(|error| not_a_server(url, &error))?.to_bytes();
        if status != StatusCode::OK {
            let text = crate::netmap::printable(&String::from_utf8_lossy(&body), 200);
            return Err(not_a_server(url, &format_args!("{status} {text}")));
        }
        let answer: KeyAnswer =
            serde_json::from_slice(&body).map_err(|_| not_a_server(url, &"its /key is not the expected JSON"))?;
        if answer.public_key.is_zero() {
            return Err(not_a_server(url, &"it has no key"));
        }
        Ok((answer.public_key, date))
    })
    .await
}

async fn upgrade(
    http: &mut Http1,
    url: &ServerUrl,
    machine: &MachineSecret,
    server_key: &MachineKey,
) -> Result<NoiseStream<TokioIo<hyper::upgrade::Upgraded>>, ConnectError> {
    let failed =
        |reason: &dyn std::fmt::Display| ConnectError::Handshake { url: url.to_string(), reason: reason.to_string() };
    let mut ephemeral = zeroize::Zeroizing::new([0; 32]);
    getrandom::fill(ephemeral.as_mut_slice()).map_err(|error| failed(&error))?;
    let (initiator, message) = noise::Initiator::new(crate::CAPABILITY_VERSION, machine, server_key, *ephemeral)
        .map_err(|error| failed(&error))?;
    let request = Request::builder()
        .method(http::Method::POST)
        .uri("/ts2021")
        .header(header::HOST, url.authority())
        .header(header::UPGRADE, PROTOCOL)
        .header(header::CONNECTION, "upgrade")
        .header("X-Tailscale-Handshake", base64::engine::general_purpose::STANDARD.encode(message))
        .body(Empty::new())
        .map_err(|error| failed(&error))?;
    let response = http.send_request(request).await.map_err(|error| failed(&error))?;
    busy(url, &response)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = response.status();
        let body = Limited::new(response.into_body(), 64 * 1024).collect().await;
        let text = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned()).unwrap_or_default();
        let text = crate::netmap::printable(&text, 200);
        return Err(not_a_server(url, &format_args!("{status} {text} (a proxy in between must let upgrades through)")));
    }
    if response.headers().get(header::UPGRADE).is_none_or(|value| value != PROTOCOL) {
        return Err(not_a_server(url, &"it switched to another protocol; a proxy in between may be at fault"));
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(|error| failed(&error))?;
    let mut stream = TokioIo::new(upgraded);
    let mut head = [0; noise::HEADER_BYTES];
    stream.read_exact(&mut head).await.map_err(|_| {
        failed(&"the server closed the connection; its key may have changed, or it does not admit this version")
    })?;
    let (_, length) = noise::parse_header(head);
    let mut message = head.to_vec();
    message.resize(noise::HEADER_BYTES + length.min(MAX_HANDSHAKE_ANSWER), 0);
    let body = message.get_mut(noise::HEADER_BYTES..).unwrap_or_default();
    stream.read_exact(body).await.map_err(|error| failed(&error))?;
    // The text of a refusal is not authenticated: a hint for a person, nothing more.
    let transport =
        initiator.finish(&message).map_err(|error| failed(&crate::netmap::printable(&error.to_string(), 200)))?;
    Ok(NoiseStream::new(stream, transport, Vec::new()))
}

/// Name of the protocol in the `Upgrade` header.
const PROTOCOL: &str = "tailscale-control-protocol";

/// Longest answer to the handshake that is read: a refusal with its text.
const MAX_HANDSHAKE_ANSWER: usize = 1024;

/// Fails if the server says that it is busy.
fn busy<B>(url: &ServerUrl, response: &Response<B>) -> Result<(), ConnectError> {
    let status = response.status().as_u16();
    if !is_later(status) {
        return Ok(());
    }
    Err(ConnectError::Busy { url: url.to_string(), status, later: Later::of(response) })
}

fn not_a_server(url: &ServerUrl, reason: &dyn std::fmt::Display) -> ConnectError {
    ConnectError::NotAServer { url: url.to_string(), reason: reason.to_string() }
}

async fn in_time<T>(url: &ServerUrl, step: impl Future<Output = Result<T, ConnectError>>) -> Result<T, ConnectError> {
    timeout(STEP_TIMEOUT, step).await.unwrap_or_else(|_| Err(ConnectError::Slow { url: url.to_string() }))
}

/// Reads an HTTP date (RFC 9110 section 5.6.7).
fn http_date(text: &str) -> Option<Time> {
    httpdate::parse_http_date(text).ok().map(Time::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow() -> ConnectError {
        ConnectError::Slow { url: "first".into() }
    }

    async fn after(milliseconds: u64, result: Result<u8, ConnectError>) -> Result<u8, ConnectError> {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        result
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_way_starts_when_the_first_fails_or_is_slow() {
        let second = || ConnectError::Slow { url: "second".into() };
        assert_eq!(first_through(after(400, Ok(1)), async { panic!("not needed") }).await.unwrap(), 1);
        assert_eq!(first_through(after(10, Err(slow())), after(10, Ok(2))).await.unwrap(), 2);
        assert_eq!(first_through(after(2000, Ok(1)), after(100, Ok(2))).await.unwrap(), 2);
        assert_eq!(first_through(after(550, Ok(1)), after(100, Ok(2))).await.unwrap(), 1);
        assert_eq!(first_through(after(2000, Ok(1)), after(100, Err(second()))).await.unwrap(), 1);
        assert_eq!(first_through(after(600, Err(slow())), after(900, Ok(2))).await.unwrap(), 2);
        for (a, b) in [(10, 10), (900, 10), (600, 900)] {
            let error = first_through(after(a, Err(slow())), after(b, Err(second()))).await.unwrap_err();
            assert!(error.to_string().starts_with("first"), "{error}");
        }
    }

    #[test]
    fn the_date_header_is_read() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Time::from_unix(784_111_777, 0));
        assert_eq!(http_date("yesterday"), None);
    }
}
