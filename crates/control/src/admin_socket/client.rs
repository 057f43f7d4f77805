//! The calling side: what `warren admin` uses.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::requests::Request as AdminRequest;
use super::{HOST, PATH};

/// How long a call may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// Longest answer that is read.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// Says why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Nobody listens.
    #[error("no server listens on {}; start it with `warren server`, or name its socket with --socket", .0.display())]
    NotRunning(PathBuf),
    /// The caller may not open the socket, or the server said so.
    #[error("no permission for {}: run this as root or as the user that runs `warren server`", .0.display())]
    Permission(PathBuf),
    /// The connection broke or said something that is no answer.
    #[error("the server at {} does not answer properly: {problem}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        problem: String,
    },
    /// The server did not answer in time.
    #[error("the server at {} did not answer within {} seconds", .0.display(), DEADLINE.as_secs())]
    Timeout(PathBuf),
    /// The server refused the call.
    #[error("{message}")]
    Refused {
        /// Stable word for the kind of refusal.
        code: String,
        /// Sentence for people.
        message: String,
    },
}

/// Makes one call to the server that listens on the socket `path`.
///
/// # Errors
/// If nobody listens, the caller may not, the call breaks or takes too long, or the server refuses.
pub async fn call(path: &Path, request: &AdminRequest) -> Result<Value, CallError> {
    match tokio::time::timeout(DEADLINE, exchange(path, request)).await {
        Ok(result) => result,
        Err(_) => Err(CallError::Timeout(path.to_owned())),
    }
}

async fn exchange(path: &Path, request: &AdminRequest) -> Result<Value, CallError> {
    let broken =
        |problem: &dyn std::fmt::Display| CallError::Broken { path: path.to_owned(), problem: problem.to_string() };
    let stream = UnixStream::connect(path).await.map_err(|error| {
        let kind = error.kind();
        if kind == ErrorKind::NotFound || kind == ErrorKind::ConnectionRefused {
            CallError::NotRunning(path.to_owned())
        } else if kind == ErrorKind::PermissionDenied {
            CallError::Permission(path.to_owned())
        } else {
            broken(&error)
        }
    })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    let connection = tokio::spawn(connection);
    let body = serde_json::to_vec(request).map_err(|error| broken(&error))?;
    let request = Request::post(PATH)
        .header(header::HOST, HOST)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| broken(&error))?;
    let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES);
    let body = body.collect().await.map_err(|error| broken(&error))?.to_bytes();
    connection.abort();
    let value: Value = serde_json::from_slice(&body).map_err(|error| broken(&error))?;
    if status == StatusCode::OK {
        return Ok(value);
    }
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    match (status, text("code")) {
        (StatusCode::FORBIDDEN, code) if code == "permission" => Err(CallError::Permission(path.to_owned())),
        (_, code) => Err(CallError::Refused { code, message: text("message") }),
    }
}
