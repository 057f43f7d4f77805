//! Answers: one way to say each kind of thing in HTTP.

use std::convert::Infallible;

use http::header::{self, HeaderName};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use serde::Serialize;

/// The body of every answer.
pub(crate) type AnswerBody = UnsyncBoxBody<Bytes, Infallible>;

/// An answer.
pub(crate) type Answer = Response<AnswerBody>;

/// Says something in a sentence; clients show the first 200 characters of it.
pub(crate) fn text(status: StatusCode, sentence: &str) -> Answer {
    bytes(status, "text/plain; charset=utf-8", format!("{sentence}\n"))
}

/// Sends `value` as JSON.
pub(crate) fn json<T: Serialize + ?Sized>(status: StatusCode, value: &T) -> Answer {
    match serde_json::to_vec(value) {
        Ok(json) => bytes(status, "application/json", json),
        Err(error) => {
            tracing::error!(%error, "an answer has no JSON form");
            text(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
        }
    }
}

/// Sends a document of the control protocol.
pub(crate) fn document<T: Serialize>(document: &T) -> Answer {
    match warren_wire::control::to_json(document) {
        Ok(json) => bytes(StatusCode::OK, "application/json", json),
        Err(error) => {
            tracing::error!(%error, "an answer has no JSON form");
            text(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
        }
    }
}

/// Sends a page for people: no script, no frame, nothing loaded from anywhere.
pub(crate) fn page(status: StatusCode, html: String) -> Answer {
    const POLICY: &str =
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let mut answer = bytes(status, "text/html; charset=utf-8", html);
    let fields = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in fields {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// Sends a status alone.
pub(crate) fn empty(status: StatusCode) -> Answer {
    with_body(status, Full::default().boxed_unsync())
}

/// Says that a path exists for other methods only.
pub(crate) fn wrong_method(allowed: &'static str) -> Answer {
    with_header(
        text(StatusCode::METHOD_NOT_ALLOWED, &format!("this address takes {allowed}")),
        header::ALLOW,
        HeaderValue::from_static(allowed),
    )
}

/// Says that there is nothing at this path.
pub(crate) fn nothing_here() -> Answer {
    text(StatusCode::NOT_FOUND, "there is nothing here")
}

/// Adds a header field.
pub(crate) fn with_header(mut answer: Answer, name: HeaderName, value: HeaderValue) -> Answer {
    answer.headers_mut().insert(name, value);
    answer
}

/// Sends a body that the caller made.
pub(crate) fn with_body(status: StatusCode, body: AnswerBody) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer
}

fn bytes(status: StatusCode, kind: &'static str, bytes: impl Into<Bytes>) -> Answer {
    let mut answer = with_body(status, Full::new(bytes.into()).boxed_unsync());
    let fields = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    for (name, value) in fields {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}
