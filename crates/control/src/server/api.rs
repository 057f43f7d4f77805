//! The API v2: what `warren admin` does on the server, for programs elsewhere. Source: logs-and-api.md, sections 9 to 21.
//!
//! `table` lists the operations; one file holds those of one subject. They see a [`Call`], whose [`Desk`] lets them do what
//! the credential may, and nothing of the server besides.
//!
//! [`Desk`]: crate::admin::Desk

mod call;
mod devices;
mod dns;
mod keys;
pub(crate) mod limits;
mod logs;
mod machines;
mod oauth;
mod openapi;
mod policy;
mod settings;
mod table;
#[cfg(test)]
mod tests;
mod users;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use hyper::body::{Body, Bytes};
use serde_json::json;

use super::answers::{self, Answer};
use super::limits::BodyError;
use super::shared::Arrival;
use crate::admin::Desk;
use crate::authority::Access;
use call::{ApiError, Call};
use table::{Found, Route};

/// Where all of it is.
pub(crate) const BASE: &str = "/api/v2";

/// Answers a request below [`BASE`].
pub(crate) async fn answer<B>(arrival: &Arrival, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes> + Unpin,
{
    let (head, body) = request.into_parts();
    let (control, limits) = (&arrival.shared.control, &arrival.shared.api);
    let from = arrival.client(&head.headers);
    let now = control.clock().instant();
    if let Err(wait) = limits.admit_source(from, now) {
        return later(wait);
    }
    let path = head.uri.path().strip_prefix(BASE).unwrap_or_default();
    match (path, &head.method) {
        ("/openapi.json", &Method::GET) => return answers::json(StatusCode::OK, &openapi::document()),
        ("/openapi.json", _) => return wrong_method("GET"),
        ("/oauth/token", &Method::POST) => return Box::pin(oauth::token(arrival, &head.headers, body, from)).await,
        ("/oauth/token", _) => return wrong_method("POST"),
        _ => {}
    }
    let Some(desk) = bearer(&head.headers).and_then(|text| control.authenticate(&text, from)) else {
        return match limits.note_failure(from, now) {
            Ok(()) => unauthorized(),
            Err(wait) => later(wait),
        };
    };
    let credential = desk.authority().credential_id().unwrap_or_default().to_owned();
    if let Err(wait) = limits.admit_credential(&credential, now) {
        return later(wait);
    }
    let (route, parameters) = match table::find(&head.method, path) {
        Ok(found) => found,
        Err(Found::Nothing) => return error(&ApiError::nothing_here()),
        Err(Found::OtherMethods(methods)) => return wrong_method(&methods),
    };
    if let Some(refusal) = refusal(arrival, &desk, route, &parameters).await {
        return error(&refusal);
    }
    if let Some((tailnet, _)) = desk.own_tailnet().filter(|_| route.takes_policy())
        && let Err(wait) = limits.admit_policy(tailnet, now)
    {
        return later(wait);
    }
    let body = match arrival.shared.bodies.read(body).await {
        Ok(body) => body,
        Err(problem) => return error(&unread(problem)),
    };
    let call = match Call::new(desk, route, parameters, &head, body) {
        Ok(call) => call,
        Err(problem) => return error(&problem),
    };
    let reply = (route.run)(&call).await;
    reply.map_or_else(|problem| error(&problem), call::Reply::into_answer)
}

/// Says why a call comes to nothing, whatever its body says: another's tailnet is not there, and for some it takes more
/// than they may.
async fn refusal(arrival: &Arrival, desk: &Desk, route: &Route, parameters: &[String]) -> Option<ApiError> {
    let (id, name) = desk.own_tailnet()?;
    if route.is_of_tailnet() {
        let named = parameters.first().map(String::as_str).unwrap_or_default();
        if named != "-" && named != &*name && named != id.to_string() {
            return Some(ApiError::new(StatusCode::NOT_FOUND, "tailnet not found"));
        }
    }
    if desk.has_one(&name, route.rights) {
        return None;
    }
    let needed: Vec<_> = route.rights.iter().map(ToString::to_string).collect();
    let needed = needed.join(" or ");
    let who = &desk.authority().who;
    tracing::info!(who = who.as_str(), credential = who.credential(), from = ?who.from(), call = route.id, needed, "refused");
    let changes = route.rights.iter().any(|right| right.access == Access::Write);
    // Refusals to look are many and say little; both stand in the server's own log.
    if changes && arrival.shared.api.admit_refusal(who.credential().unwrap_or_default(), desk.instant()).is_ok() {
        desk.note_refusal(&name, &format!("{}: {needed}", route.id)).await;
    }
    Some(ApiError::new(StatusCode::FORBIDDEN, format!("calling actor does not have enough permissions: {needed}")))
}

/// Returns the credential: as a bearer, or as the user of basic authentication.
fn bearer(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (kind, rest) = text.split_once(' ')?;
    if kind.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    let (user, password) = basic(kind, rest)?;
    password.is_empty().then_some(user)
}

/// Returns user and password of basic authentication.
fn basic(kind: &str, rest: &str) -> Option<(String, String)> {
    if !kind.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
}

fn unauthorized() -> Answer {
    let answer = error(&ApiError::new(StatusCode::UNAUTHORIZED, "API token invalid"));
    answers::with_header(answer, header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"api\""))
}

fn later(wait: Duration) -> Answer {
    let answer = error(&ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too many requests; come later"));
    answers::with_header(answer, header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)))
}

fn wrong_method(allowed: &str) -> Answer {
    let message = format!("this address takes {allowed}");
    let answer = error(&ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message));
    match HeaderValue::from_str(allowed) {
        Ok(allowed) => answers::with_header(answer, header::ALLOW, allowed),
        Err(_) => answer,
    }
}

fn unread(problem: BodyError) -> ApiError {
    let status = match problem {
        BodyError::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
        BodyError::TooSlow => StatusCode::REQUEST_TIMEOUT,
        BodyError::Broken => StatusCode::BAD_REQUEST,
        BodyError::Busy => StatusCode::SERVICE_UNAVAILABLE,
    };
    ApiError::new(status, problem.to_string())
}

fn error(error: &ApiError) -> Answer {
    let mut body = json!({ "message": error.message });
    if let (Some(data), Some(object)) = (&error.data, body.as_object_mut()) {
        object.insert("data".to_owned(), data.clone());
    }
    answers::json(error.status, &body)
}
