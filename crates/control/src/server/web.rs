//! What the server answers outside Noise: the key, the upgrade, and a few small pages.

use std::net::IpAddr;
use std::time::Duration;

use http::header::HeaderName;
use http::{HeaderValue, Method, Request, StatusCode, header};
use hyper::body::{Body, Bytes};
use serde_json::json;
use warren_wire::control::{
    self, RelayAdmitRequest, RelayAdmitResponse, RelayReviewRequest, RelayReviewResponse, ServerKeys,
};

use super::answers::{self, Answer};
use super::limits::BodyError;
use super::shared::Arrival;
use super::sign_in::local;
use super::{api, sign_in, upgrade};

/// How long the own name may take to resolve.
const NAME_DEADLINE: Duration = Duration::from_secs(3);

/// Longest challenge that is answered. Source: control.md §6.2.
const MAX_CHALLENGE: usize = 64;

/// Answers a request outside Noise. Only the path decides: the target may be absolute and `Host` may say anything.
pub(crate) async fn answer<B>(arrival: &Arrival, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes> + Unpin,
{
    let path = request.uri().path();
    let reading = matches!(*request.method(), Method::GET | Method::HEAD);
    match path {
        "/key" if reading => key(arrival, request.uri().query()),
        "/ts2021" => upgrade::answer(arrival, request),
        "/generate_204" => generate_204(&request),
        "/bootstrap-dns" if reading => bootstrap_dns(arrival, request.uri().query()).await,
        "/verify" if request.method() == Method::POST => verify(arrival, request.into_body()).await,
        "/health" if reading => answers::json(StatusCode::OK, &json!({"status": "ok"})),
        "/" if reading => answers::text(StatusCode::OK, "This is the coordination server of a warren network."),
        "/key" | "/bootstrap-dns" | "/health" | "/" => answers::wrong_method("GET, HEAD"),
        "/verify/all" if request.method() == Method::POST => review(arrival, request.into_body()).await,
        "/verify" | "/verify/all" => answers::wrong_method("POST"),
        path if path.starts_with("/api/") => Box::pin(api::answer(arrival, request)).await,
        path => for_people(arrival, path.to_owned(), request).await,
    }
}

/// Answers browsers on their way through a login.
async fn for_people<B>(arrival: &Arrival, path: String, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes> + Unpin,
{
    let (headers, query) = (request.headers(), request.uri().query());
    if let Some(provider) = path.strip_prefix("/oidc/").and_then(|rest| rest.strip_suffix("/callback")) {
        // Not for HEAD: an attempt is for one use.
        return match *request.method() {
            Method::GET => Box::pin(sign_in::callback(arrival, provider, query, headers)).await,
            _ => answers::wrong_method("GET"),
        };
    }
    if let Some(text) = path.strip_prefix("/invite/") {
        return match *request.method() {
            Method::GET => Box::pin(local::invitation(arrival, text)).await,
            Method::POST => Box::pin(local::accept(arrival, text, request)).await,
            _ => answers::wrong_method("GET, POST"),
        };
    }
    if let Some(id) = path.strip_prefix("/login/").and_then(|rest| rest.strip_suffix("/password")) {
        return match *request.method() {
            Method::GET => local::form(arrival, id),
            Method::POST => Box::pin(local::enter(arrival, id, request)).await,
            _ => answers::wrong_method("GET, POST"),
        };
    }
    let Some(login) = path.strip_prefix("/login/") else { return answers::nothing_here() };
    match (request.method(), login.strip_suffix("/start")) {
        (&Method::GET, Some(id)) => Box::pin(sign_in::start(arrival, id, query)).await,
        (_, Some(_)) => answers::wrong_method("GET"),
        (&Method::GET | &Method::HEAD, None) => sign_in::show(arrival, login, headers),
        (&Method::POST, None) => Box::pin(sign_in::confirm(arrival, login, request)).await,
        (_, None) => answers::wrong_method("GET, HEAD, POST"),
    }
}

/// Returns the value of `name` in a query, as it stands there.
pub(crate) fn parameter<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    query?.split('&').find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name)).map(|(_, value)| value)
}

/// Answers `/key?v=`. Source: control.md §2.2; some clients need both fields.
fn key(arrival: &Arrival, query: Option<&str>) -> Answer {
    if parameter(query, "v").and_then(|version| version.parse::<u16>().ok()).is_none() {
        return answers::text(
            StatusCode::BAD_REQUEST,
            "this server needs to know the client's capability version: ask for /key?v=NUMBER",
        );
    }
    answers::document(&ServerKeys { legacy_public_key: None, public_key: Some(arrival.shared.control.noise_key()) })
}

fn generate_204<B>(request: &Request<B>) -> Answer {
    let mut answer = answers::with_header(
        answers::empty(StatusCode::NO_CONTENT),
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-store, must-revalidate, no-transform, max-age=0"),
    );
    let challenge = request.headers().get("x-tailscale-challenge").and_then(|value| value.to_str().ok());
    let harmless = |text: &&str| {
        !text.is_empty()
            && text.len() <= MAX_CHALLENGE
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".:_-".contains(&byte))
    };
    if let Some(challenge) = challenge.filter(harmless)
        && let Ok(value) = HeaderValue::try_from(format!("response {challenge}"))
    {
        answer = answers::with_header(answer, HeaderName::from_static("x-tailscale-response"), value);
    }
    answer
}

/// Tells the addresses of this server, to clients whose DNS is broken. Of other names it tells nothing.
async fn bootstrap_dns(arrival: &Arrival, query: Option<&str>) -> Answer {
    let own = &arrival.shared.own_host;
    let asked = parameter(query, "q").unwrap_or_default();
    if !asked.eq_ignore_ascii_case(own) || own.parse::<IpAddr>().is_ok() {
        return answers::text(StatusCode::NOT_FOUND, "this server tells only its own name's addresses");
    }
    let found = tokio::time::timeout(NAME_DEADLINE, tokio::net::lookup_host((own.as_str(), 0))).await;
    let Ok(Ok(found)) = found else {
        return answers::text(StatusCode::SERVICE_UNAVAILABLE, "the name does not resolve here either");
    };
    let addresses: Vec<IpAddr> = found.map(|address| address.ip()).take(16).collect();
    let body = json!({ own.as_str(): addresses });
    answers::with_header(answers::json(StatusCode::OK, &body), header::CONNECTION, HeaderValue::from_static("close"))
}

/// Tells a relay on another machine whether a node key may use it.
async fn verify<B>(arrival: &Arrival, body: B) -> Answer
where
    B: Body<Data = Bytes> + Unpin,
{
    let body = match arrival.shared.bodies.read(body).await {
        Ok(body) => body,
        Err(error) => return unread(error),
    };
    match control::from_json::<RelayAdmitRequest>(&body) {
        Ok(question) => {
            answers::document(&RelayAdmitResponse { allow: arrival.shared.control.relay_admits(&question.node_public) })
        }
        Err(_) => answers::text(StatusCode::BAD_REQUEST, "the body must be {\"NodePublic\": \"nodekey:…\"}"),
    }
}

/// Tells a relay of ours on another machine which of its clients it may serve no more.
async fn review<B>(arrival: &Arrival, body: B) -> Answer
where
    B: Body<Data = Bytes> + Unpin,
{
    let body = match arrival.shared.bodies.read(body).await {
        Ok(body) => body,
        Err(error) => return unread(error),
    };
    match control::from_json::<RelayReviewRequest>(&body) {
        Ok(RelayReviewRequest { clients }) if clients.len() <= RelayReviewRequest::MAX_CLIENTS => {
            let gone = clients.into_iter().filter(|client| !arrival.shared.control.relay_admits(client)).collect();
            answers::document(&RelayReviewResponse { gone })
        }
        Ok(_) | Err(_) => answers::text(StatusCode::BAD_REQUEST, "the body must be {\"Clients\": [\"nodekey:…\"]}"),
    }
}

/// Answers a request whose body could not be read.
pub(crate) fn unread(error: BodyError) -> Answer {
    let status = match error {
        BodyError::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
        BodyError::TooSlow => StatusCode::REQUEST_TIMEOUT,
        BodyError::Broken => StatusCode::BAD_REQUEST,
        BodyError::Busy => StatusCode::SERVICE_UNAVAILABLE,
    };
    answers::text(status, &error.to_string())
}
