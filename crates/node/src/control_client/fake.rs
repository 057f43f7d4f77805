//! A coordination server in the same process, driven by the test: every call that arrives is handed to the test with
//! the means to answer it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use base64::Engine as _;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::{mpsc, oneshot};
use warren_relay::noise_stream::NoiseStream;
use warren_wire::control::{MapRequest, MapResponse, RegisterRequest, RegisterResponse, from_json, to_json};
use warren_wire::key::{ChallengeSecret, MachineKey, MachineSecret};
use warren_wire::mapframe::{self, Compression};
use warren_wire::noise;

use super::connect::{ConnectError, Connector, Stream};
use super::server_url::{Scheme, ServerUrl};

/// Returns what connections begin with.
pub(crate) fn challenge() -> ChallengeSecret {
    ChallengeSecret::from_bytes([8; 32])
}

/// Is a call that arrived.
#[derive(Debug)]
pub(crate) enum Call {
    /// A registration; answer it with a response or an HTTP status.
    Register(RegisterRequest, oneshot::Sender<Reply>),
    /// A map poll; send messages into the stream, drop it to end it.
    Poll(MapRequest, MapStream),
    /// A report of this node's state; answered already.
    Report(MapRequest),
    /// Anything else, with its body; answered already.
    Other(http::Method, String, Bytes),
}

/// Is an answer to a registration.
#[derive(Debug)]
pub(crate) enum Reply {
    Json(Box<RegisterResponse>),
    Status(u16, &'static str, Option<&'static str>),
}

impl Reply {
    pub(crate) fn ok() -> Self {
        Self::Json(Box::new(RegisterResponse { machine_authorized: true, ..RegisterResponse::default() }))
    }
}

/// Writes into a map poll.
#[derive(Debug)]
pub(crate) struct MapStream(mpsc::Sender<Bytes>);

impl MapStream {
    pub(crate) async fn send(&self, response: &MapResponse) {
        self.send_raw(mapframe::encode(&to_json(response).unwrap(), Compression::Zstd).unwrap()).await;
    }

    pub(crate) async fn send_raw(&self, bytes: Vec<u8>) {
        // In two pieces, as a network may cut it.
        let (a, b) = bytes.split_at(bytes.len() / 2);
        for piece in [a, b] {
            self.0.send(piece.to_vec().into()).await.unwrap();
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Is ready when the client has let go of the poll.
    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }
}

/// Says how the server behaves before Noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Normal,
    /// Sends an early payload.
    Early,
    /// Refuses connections.
    Down,
    /// Answers the upgrade with a page, like a proxy.
    Proxy,
    /// Answers the upgrade with "later", in 20 s.
    Busy,
    /// Accepts the connection and never answers.
    Silent,
    /// Refuses plain connections.
    OnlyTls,
    /// Accepts plain connections and never answers there.
    PlainSilent,
}

/// Is the server; clones are the same server.
#[derive(Debug, Clone)]
pub(crate) struct Fake(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    secret: Mutex<MachineSecret>,
    mood: Mutex<Mood>,
    calls: mpsc::Sender<Call>,
    connections: AtomicU32,
    key_requests: AtomicU32,
    /// Status that answers map polls.
    map_status: AtomicU16,
    /// Status that answers reports.
    report_status: AtomicU16,
    /// Machine keys of the clients, in the order of their connections.
    machines: Mutex<Vec<MachineKey>>,
}

impl Fake {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Call>) {
        let (calls, arrived) = mpsc::channel(64);
        let inner = Inner {
            secret: Mutex::new(MachineSecret::from_bytes([5; 32])),
            mood: Mutex::new(Mood::Normal),
            calls,
            connections: AtomicU32::new(0),
            key_requests: AtomicU32::new(0),
            map_status: AtomicU16::new(200),
            report_status: AtomicU16::new(200),
            machines: Mutex::default(),
        };
        (Self(Arc::new(inner)), arrived)
    }

    pub(crate) fn key(&self) -> MachineKey {
        self.0.secret.lock().unwrap().public()
    }

    pub(crate) fn change_key(&self) {
        *self.0.secret.lock().unwrap() = MachineSecret::from_bytes([6; 32]);
    }

    pub(crate) fn set_mood(&self, mood: Mood) {
        *self.0.mood.lock().unwrap() = mood;
    }

    pub(crate) fn connections(&self) -> u32 {
        self.0.connections.load(Ordering::Relaxed)
    }

    pub(crate) fn key_requests(&self) -> u32 {
        self.0.key_requests.load(Ordering::Relaxed)
    }

    pub(crate) fn machines(&self) -> Vec<MachineKey> {
        self.0.machines.lock().unwrap().clone()
    }

    pub(crate) fn set_map_status(&self, status: u16) {
        self.0.map_status.store(status, Ordering::Relaxed);
    }

    pub(crate) fn set_report_status(&self, status: u16) {
        self.0.report_status.store(status, Ordering::Relaxed);
    }

    fn mood(&self) -> Mood {
        *self.0.mood.lock().unwrap()
    }

    async fn serve(self, stream: DuplexStream) {
        let service = service_fn(move |request| {
            let server = self.clone();
            async move { Ok::<_, Infallible>(server.outer(request).await) }
        });
        let _ = hyper::server::conn::http1::Builder::new()
            // The test's clock is not this machine's.
            .auto_date_header(false)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
    }

    async fn outer(self, mut request: Request<Incoming>) -> Response<Feed> {
        match request.uri().path() {
            "/key" => {
                self.0.key_requests.fetch_add(1, Ordering::Relaxed);
                let zero = warren_wire::key::MachineKey::default();
                answer(200, format!("{{\"legacyPublicKey\":\"{zero}\",\"publicKey\":\"{}\"}}", self.key()))
            }
            "/ts2021" if self.mood() == Mood::Proxy => answer(502, "bad gateway".into()),
            "/ts2021" if self.mood() == Mood::Busy => {
                let mut response = answer(503, "busy".into());
                response.headers_mut().insert(header::RETRY_AFTER, "20".parse().unwrap());
                response
            }
            "/ts2021" => {
                let message = request.headers()["X-Tailscale-Handshake"].to_str().unwrap();
                let message = base64::engine::general_purpose::STANDARD.decode(message).unwrap();
                let upgrade = hyper::upgrade::on(&mut request);
                tokio::spawn(async move {
                    let mut stream = TokioIo::new(upgrade.await.unwrap());
                    let accepted = noise::respond(&self.0.secret.lock().unwrap(), &message, [7; 32]);
                    let Ok(accepted) = accepted else { return };
                    self.0.machines.lock().unwrap().push(accepted.machine);
                    stream.write_all(&accepted.response).await.unwrap();
                    let mut noise = NoiseStream::new(stream, accepted.transport, Vec::new());
                    if self.mood() == Mood::Early {
                        let early = noise::EarlyPayload { node_key_challenge: Some(challenge().public()) }.encode();
                        noise.write_all(&early).await.unwrap();
                    }
                    let service = service_fn(move |request| {
                        let server = self.clone();
                        async move { Ok::<_, Infallible>(server.inner(request).await) }
                    });
                    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(noise), service)
                        .await;
                });
                let mut response = answer(101, String::new());
                response.headers_mut().insert(header::UPGRADE, "tailscale-control-protocol".parse().unwrap());
                response.headers_mut().insert(header::CONNECTION, "upgrade".parse().unwrap());
                response
            }
            _ => answer(404, String::new()),
        }
    }

    async fn inner(self, request: Request<Incoming>) -> Response<Feed> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let body = request.into_body().collect().await.unwrap().to_bytes();
        match path.as_str() {
            "/machine/register" => {
                let (reply, replied) = oneshot::channel();
                let call = Call::Register(from_json(&body).unwrap(), reply);
                self.0.calls.send(call).await.unwrap();
                match replied.await {
                    Ok(Reply::Json(response)) => answer(200, String::from_utf8(to_json(&*response).unwrap()).unwrap()),
                    Ok(Reply::Status(status, text, retry_after)) => {
                        let mut response = answer(status, text.to_owned());
                        if let Some(seconds) = retry_after {
                            response.headers_mut().insert(header::RETRY_AFTER, seconds.parse().unwrap());
                        }
                        response
                    }
                    Err(_) => answer(500, String::new()),
                }
            }
            "/machine/map" => {
                let request: MapRequest = from_json(&body).unwrap();
                let status = self.0.map_status.load(Ordering::Relaxed);
                if request.stream && status != 200 {
                    answer(status, "no such node".into())
                } else if request.stream {
                    let (stream, feed) = mpsc::channel(16);
                    self.0.calls.send(Call::Poll(request, MapStream(stream))).await.unwrap();
                    Response::new(Feed(feed))
                } else {
                    let status = self.0.report_status.load(Ordering::Relaxed);
                    self.0.calls.send(Call::Report(request)).await.unwrap();
                    answer(status, String::new())
                }
            }
            _ => {
                self.0.calls.send(Call::Other(method, path, body)).await.unwrap();
                answer(200, String::new())
            }
        }
    }
}

impl Connector for Fake {
    async fn connect(&self, url: &ServerUrl) -> Result<Box<dyn Stream>, ConnectError> {
        self.0.connections.fetch_add(1, Ordering::Relaxed);
        let plain = url.scheme() == Scheme::Http;
        if self.mood() == Mood::Down || (self.mood() == Mood::OnlyTls && plain) {
            let source = std::io::ErrorKind::ConnectionRefused.into();
            return Err(ConnectError::Unreachable { url: url.to_string(), source });
        }
        let (near, far) = duplex(64 * 1024);
        if self.mood() == Mood::Silent || (self.mood() == Mood::PlainSilent && plain) {
            tokio::spawn(async move {
                let _held = far;
                std::future::pending::<()>().await;
            });
        } else {
            tokio::spawn(self.clone().serve(far));
        }
        Ok(Box::new(near))
    }
}

fn answer(status: u16, body: String) -> Response<Feed> {
    let (feed, body_feed) = mpsc::channel(1);
    if !body.is_empty() {
        feed.try_send(body.into()).unwrap();
    }
    let mut response = Response::new(Feed(body_feed));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

struct Feed(mpsc::Receiver<Bytes>);

impl Body for Feed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
