//! Tokens for clients. Source: logs-and-api.md, section 13; RFC 6749, section 4.4.

use std::net::IpAddr;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::body::{Body, Bytes};
use serde_json::json;

use super::{basic, error, later, unread};
use crate::authenticate::GrantError;
use crate::server::answers::{self, Answer};
use crate::server::shared::Arrival;
use crate::tokens::LIFETIME;

/// Most fields of a form that are looked at.
const FIELDS_MAX: usize = 64;

/// Gives a token to a client that shows its secret.
pub(super) async fn token<B>(arrival: &Arrival, headers: &HeaderMap, body: B, from: IpAddr) -> Answer
where
    B: Body<Data = Bytes> + Unpin,
{
    let body = match arrival.shared.bodies.read(body).await {
        Ok(body) => body,
        Err(problem) => return error(&unread(problem)),
    };
    let form: Vec<_> = form_urlencoded::parse(&body).take(FIELDS_MAX).collect();
    let field = |name: &str| form.iter().find(|(key, _)| key == name).map(|(_, value)| &**value);
    if field("grant_type").is_some_and(|kind| kind != "client_credentials") {
        return refused(StatusCode::BAD_REQUEST, "unsupported_grant_type", "use client_credentials");
    }
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let by_header = authorization.and_then(|text| text.split_once(' ')).and_then(|(kind, rest)| basic(kind, rest));
    // The secret alone says who it is: some clients send any word for their ID.
    let secret = field("client_secret").map(str::to_owned).or(by_header.map(|(_, secret)| secret)).unwrap_or_default();
    let control = &arrival.shared.control;
    let client = control.client(&secret);
    // Only whoever knows the secret uses up what the client has.
    if let Ok(client) = &client
        && let Err(wait) = arrival.shared.api.admit_credential(client.id(), control.clock().instant())
    {
        return later(wait);
    }
    let list = |name| field(name).unwrap_or_default();
    let granted = match client.and_then(|client| control.grant_token(&client, list("scope"), list("tags"))) {
        Ok(granted) => granted,
        Err(GrantError::Client) => {
            if let Err(wait) = arrival.shared.api.note_failure(from, control.clock().instant()) {
                return later(wait);
            }
            let answer = refused(StatusCode::UNAUTHORIZED, "invalid_client", &GrantError::Client.to_string());
            return answers::with_header(answer, header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic"));
        }
        Err(GrantError::Randomness) => {
            return refused(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "internal error");
        }
        Err(problem) => return refused(StatusCode::BAD_REQUEST, "invalid_scope", &problem.to_string()),
    };
    let answer = json!({
        "access_token": granted.token.expose(),
        "token_type": "Bearer",
        "expires_in": LIFETIME.as_secs(),
        "scope": granted.scopes.join(" "),
    });
    answers::json(StatusCode::OK, &answer)
}

fn refused(status: StatusCode, error: &str, description: &str) -> Answer {
    answers::json(status, &json!({ "error": error, "error_description": description, "message": description }))
}
