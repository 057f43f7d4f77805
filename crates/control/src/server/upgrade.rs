//! The way into Noise: `/ts2021`. Source: control.md §2.3.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Request, StatusCode, Version, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use warren_relay::noise_stream::NoiseStream;
use warren_wire::key::ChallengeSecret;
use warren_wire::noise::{self, Accepted, EarlyPayload, NoiseError};

use super::accept::HttpStream;
use super::answers::{self, Answer};
use super::replay::Replay;
use super::rpc;
use super::shared::Arrival;

/// The value of `Upgrade`, which some clients compare letter by letter.
const PROTOCOL: &str = "tailscale-control-protocol";

/// The header field that carries the first Noise message.
const HANDSHAKE: &str = "x-tailscale-handshake";

/// How long an answer to the upgrade and to the handshake may take to be written.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Answers a request for `/ts2021`, by POST or GET, and goes on with Noise behind the answer.
pub(crate) fn answer<B>(arrival: &Arrival, mut request: Request<B>) -> Answer {
    let initiation = match initiation(&request) {
        Ok(initiation) => initiation,
        Err(problem) => return answers::text(StatusCode::BAD_REQUEST, problem),
    };
    if !arrival.pass.attribute(arrival.client(request.headers())) {
        return answers::text(StatusCode::TOO_MANY_REQUESTS, "too many connections from this address");
    }
    let from = arrival.client(request.headers());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(go_on(arrival.clone(), rpc::Origin { from }, upgrade, initiation));
    let mut answer = answers::empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = answer.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    answer
}

/// Returns the first Noise message of an upgrade request, or says what is wrong with the request.
fn initiation<B>(request: &Request<B>) -> Result<Vec<u8>, &'static str> {
    if request.version() != Version::HTTP_11 {
        return Err("an upgrade needs HTTP/1.1");
    }
    let upgrade = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if upgrade.is_empty() {
        return Err(
            "no Upgrade header arrived: if a proxy stands in front, it must pass the header and the raw stream",
        );
    }
    if upgrade.eq_ignore_ascii_case("websocket") {
        return Err("clients inside a browser are not supported by this server yet");
    }
    if !upgrade.eq_ignore_ascii_case(PROTOCOL) {
        return Err("the Upgrade header names an unknown protocol");
    }
    let text = request.headers().get(HANDSHAKE).ok_or("the X-Tailscale-Handshake header is missing")?;
    STANDARD.decode(text.as_bytes()).map_err(|_| "the X-Tailscale-Handshake header is not base64")
}

async fn go_on(arrival: Arrival, origin: rpc::Origin, upgrade: OnUpgrade, initiation: Vec<u8>) {
    let upgraded = match tokio::time::timeout(HANDSHAKE_DEADLINE, upgrade).await {
        Ok(Ok(upgraded)) => upgraded,
        Ok(Err(error)) => return tracing::debug!(peer = %arrival.peer, %error, "the upgrade broke off"),
        Err(_) => return tracing::debug!(peer = %arrival.peer, "the upgrade took too long"),
    };
    let Ok(parts) = upgraded.downcast::<TokioIo<HttpStream>>().map_err(|_: Upgraded| ()) else {
        return tracing::error!("an upgraded connection is of another type than the listener made");
    };
    let stream = Replay::new(parts.read_buf, parts.io.into_inner());
    open(arrival, origin, stream, &initiation).await;
}

/// Answers the Noise handshake on `stream` and serves what is asked behind it.
pub(super) async fn open<S>(arrival: Arrival, origin: rpc::Origin, mut stream: S, initiation: &[u8])
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut ephemeral = [0; 32];
    let challenge = ChallengeSecret::generate();
    let (Ok(()), Ok(challenge)) = (getrandom::fill(&mut ephemeral), challenge) else {
        return tracing::error!("the system gives no random numbers");
    };
    let accepted = match noise::respond(arrival.shared.control.noise_secret(), initiation, ephemeral) {
        Ok(accepted) => accepted,
        Err(error) => return refuse(&arrival, &mut stream, &error).await,
    };
    let Accepted { version, machine, response, transport } = accepted;
    let mut stream = NoiseStream::new(stream, transport, response.to_vec());
    let early = EarlyPayload { node_key_challenge: Some(challenge.public()) };
    let greeting = async {
        stream.write_all(&early.encode()).await?;
        stream.flush().await
    };
    match tokio::time::timeout(HANDSHAKE_DEADLINE, greeting).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) | Err(_) => return tracing::debug!(peer = %arrival.peer, "a client left within the handshake"),
    }
    let caller = rpc::Caller { machine, version, from: origin.from, challenge: challenge.public() };
    rpc::serve(arrival, caller, stream).await;
}

/// Ends a connection whose first message is wrong. A malformed one is told; one that does not decrypt just ends, as
/// upstream does it.
async fn refuse<S: AsyncWrite + Unpin>(arrival: &Arrival, stream: &mut S, error: &NoiseError) {
    tracing::debug!(peer = %arrival.peer, %error, "a Noise handshake failed");
    let malformed = matches!(error, NoiseError::Size { .. } | NoiseError::Type { .. } | NoiseError::Length { .. });
    let goodbye = async {
        if malformed {
            stream.write_all(&noise::error_frame(&error.to_string())).await?;
        }
        stream.shutdown().await
    };
    drop(tokio::time::timeout(HANDSHAKE_DEADLINE, goodbye).await);
}
