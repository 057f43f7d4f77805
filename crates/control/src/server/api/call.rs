//! One call, its answer, and what can be wrong with it.

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::table::Route;
use crate::admin::{AdminError, Desk};
use crate::server::answers::{self, Answer};

/// A call that was found in the table, by somebody who may make it.
#[derive(Debug)]
pub(super) struct Call {
    /// What the caller may do.
    pub(super) desk: Desk,
    /// Name of the caller's tailnet.
    pub(super) tailnet: Arc<str>,
    parameters: Vec<String>,
    query: Vec<(String, String)>,
    /// Whether the caller wants JSON and nothing else.
    pub(super) wants_json: bool,
    /// Tag that the policy must have.
    pub(super) if_match: Option<String>,
    body: Vec<u8>,
}

impl Call {
    pub(super) fn new(
        desk: Desk,
        route: &Route,
        parameters: Vec<String>,
        head: &Parts,
        body: Vec<u8>,
    ) -> Result<Self, ApiError> {
        let (_, tailnet) = desk.own_tailnet().ok_or_else(ApiError::nothing_here)?;
        let query = head.uri.query().unwrap_or_default().as_bytes();
        let query = form_urlencoded::parse(query).into_owned().collect();
        let text = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let skipped = usize::from(route.is_of_tailnet());
        Ok(Self {
            desk,
            tailnet,
            parameters: parameters.into_iter().skip(skipped).collect(),
            query,
            wants_json: text(header::ACCEPT).is_some_and(|accept| accept.contains("application/json")),
            if_match: text(header::IF_MATCH).map(str::to_owned),
            body,
        })
    }

    /// Returns the value of a part of the path, the tailnet not counted.
    pub(super) fn parameter(&self, at: usize) -> &str {
        self.parameters.get(at).map(String::as_str).unwrap_or_default()
    }

    /// Returns a number or stable ID in the path, as a desk takes it.
    pub(super) fn id(&self) -> String {
        format!("#{}", self.parameter(0))
    }

    /// Returns a value of the query.
    pub(super) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Returns all values of the query.
    pub(super) fn queries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.query.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Reads the body as JSON.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.body)
            .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}")))
    }

    /// Reads the body as text.
    pub(super) fn text(&self) -> Result<&str, ApiError> {
        std::str::from_utf8(&self.body)
            .map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "the body cannot be read: it is not UTF-8"))
    }
}

/// An answer that says that it worked.
#[derive(Debug)]
pub(super) enum Reply {
    Json(Value),
    /// A text of that kind and its tag.
    Tagged {
        kind: &'static str,
        text: String,
        etag: String,
    },
}

impl Reply {
    /// Says that it was done.
    pub(super) fn done() -> Self {
        Self::Json(Value::Object(serde_json::Map::new()))
    }

    pub(super) fn into_answer(self) -> Answer {
        match self {
            Self::Json(value) => answers::json(StatusCode::OK, &value),
            Self::Tagged { kind, text, etag } => {
                let mut answer = answers::with_body(StatusCode::OK, Full::new(Bytes::from(text)).boxed_unsync());
                let headers = answer.headers_mut();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
                headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
                headers.extend(HeaderValue::try_from(format!("\"{etag}\"")).ok().map(|etag| (header::ETAG, etag)));
                answer
            }
        }
    }
}

/// An answer that says what is wrong.
#[derive(Debug)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) message: String,
    pub(super) data: Option<Value>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), data: None }
    }

    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn nothing_here() -> Self {
        Self::new(StatusCode::NOT_FOUND, "there is nothing here; /api/v2/openapi.json lists what there is")
    }

    /// Says that a part of the API is not offered.
    pub(super) fn not_offered(what: &str) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, format!("this server does not offer {what}"))
    }
}

impl From<AdminError> for ApiError {
    fn from(error: AdminError) -> Self {
        let status = match &error {
            AdminError::NotFound { .. } => StatusCode::NOT_FOUND,
            AdminError::Denied { .. } => StatusCode::FORBIDDEN,
            AdminError::PolicyChanged { .. } => {
                return Self::new(StatusCode::PRECONDITION_FAILED, "precondition failed, invalid old hash");
            }
            AdminError::Invalid { .. } | AdminError::Policy { .. } => StatusCode::BAD_REQUEST,
            AdminError::Taken { .. }
            | AdminError::Ambiguous { .. }
            | AdminError::Busy { .. }
            | AdminError::NothingToConfirm { .. }
            | AdminError::LastOwner { .. }
            | AdminError::Refused { .. } => StatusCode::CONFLICT,
            AdminError::Crowded => StatusCode::SERVICE_UNAVAILABLE,
            AdminError::Randomness | AdminError::Store(_) | AdminError::FlowLog { .. } => {
                // What went wrong inside is for the operator.
                tracing::error!(%error, "a call of the API failed");
                return Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error");
            }
        };
        Self::new(status, error.to_string())
    }
}
