//! Answers: one way to say each kind of thing in HTTP.

use std::convert::Infallible;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderName};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::login_page::STYLE;

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

/// Sends a page for people: no script, no frame, nothing loaded from anywhere, forms only back to here.
pub(crate) fn page(status: StatusCode, html: String) -> Answer {
    static POLICY: LazyLock<Option<HeaderValue>> = LazyLock::new(|| {
        let style = STANDARD.encode(Sha256::digest(STYLE));
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        );
        HeaderValue::try_from(policy).ok()
    });
    let mut answer = bytes(status, "text/html; charset=utf-8", html);
    let headers = answer.headers_mut();
    // The text is ASCII, so it is always there; a browser that was told nothing would still get no script from us.
    headers.extend(POLICY.clone().map(|policy| (header::CONTENT_SECURITY_POLICY, policy)));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    // Others learn nothing, but our own forms say where they come from.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
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
