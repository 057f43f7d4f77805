//! The asking side of the local API, for the command line.

use std::io;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::dial::{self, Dialling};
use super::serve::HOST;
use super::types::Notify;

/// Largest answer that is read; a status with 10,000 peers has about 10 MiB.
const MAX_ANSWER: usize = 256 * 1024 * 1024;

/// Longest line of the bus.
const MAX_LINE: usize = 1024 * 1024;

/// Speaks to the daemon behind a socket; one connection for each request.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// Says why the daemon did not answer, or what it refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("no warren node answers at {0}; start it with: sudo warren node")]
    NoDaemon(PathBuf),
    /// The socket cannot be opened by this user.
    #[error("no permission to open {0}; run the command as root or as the user who runs the node")]
    SocketPermission(PathBuf),
    /// The daemon says that this user may not.
    #[error("{0}; use sudo, or once: sudo warren set --operator=$USER")]
    Denied(String),
    /// The daemon refused or failed.
    #[error("{text}")]
    Refused {
        /// HTTP status: 400 for a request that makes no sense, 404 for something that does not exist.
        status: u16,
        /// What to tell the user.
        text: String,
    },
    /// The daemon went away or sent nonsense.
    #[error("the warren node broke off: {0}")]
    Broken(String),
}

impl Client {
    /// Returns a client for the daemon at `socket`. Nothing is opened yet.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Returns the path of the socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks for a JSON document. `path` is what follows `/localapi/v0/`, with its query.
    ///
    /// # Errors
    /// Says why there is no answer.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(Method::GET, path, Bytes::new()).await
    }

    /// Sends a request with a body and reads a JSON document.
    ///
    /// # Errors
    /// Says why there is no answer.
    pub async fn json<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, ClientError> {
        let text = self.request(method, path, body).await?;
        serde_json::from_slice(&text).map_err(|error| ClientError::Broken(error.to_string()))
    }

    /// Sends a request with a body and returns the answer's body.
    ///
    /// # Errors
    /// Says why there is no answer.
    pub async fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let response = self.send(method, path, body).await?;
        if response.status().is_success() { whole(response).await } else { Err(refused(response).await) }
    }

    /// Follows the bus, beginning with the present state.
    ///
    /// # Errors
    /// Says why there is no answer.
    pub async fn watch(&self) -> Result<Watcher, ClientError> {
        let response = self.send(Method::GET, "watch-ipn-bus?mask=2", Bytes::new()).await?;
        if !response.status().is_success() {
            let status = response.status().as_u16();
            return Err(ClientError::Refused { status, text: format!("the node answered with status {status}") });
        }
        Ok(Watcher { body: response.into_body(), buffer: BytesMut::new() })
    }

    /// Connects to a port of a peer, or says to which address to connect.
    ///
    /// # Errors
    /// Says why not.
    pub async fn dial(&self, host: &str, port: u16) -> Result<Dialling, ClientError> {
        let broken = |text: &str| ClientError::Broken(text.to_owned());
        let headers = [
            (header::CONNECTION.as_str(), "upgrade".to_owned()),
            (header::UPGRADE.as_str(), dial::PROTOCOL.to_owned()),
            (dial::HOST, host.to_owned()),
            (dial::PORT, port.to_string()),
        ];
        let mut response = self.send_with(Method::POST, "dial", Bytes::new(), &headers).await?;
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => {
                let upgraded = hyper::upgrade::on(&mut response).await;
                let upgraded = upgraded.map_err(|error| ClientError::Broken(error.to_string()))?;
                Ok(Dialling::Stream(TokioIo::new(upgraded)))
            }
            StatusCode::OK => {
                let address = response.headers().get(dial::ADDRESS).and_then(|address| address.to_str().ok());
                let address = address.and_then(|address| address.parse().ok());
                address.map(Dialling::Address).ok_or_else(|| broken("it names no address"))
            }
            _ => Err(refused(response).await),
        }
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<http::Response<Incoming>, ClientError> {
        self.send_with(method, path, body, &[]).await
    }

    async fn send_with(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        headers: &[(&str, String)],
    ) -> Result<http::Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| {
            if error.kind() == io::ErrorKind::PermissionDenied {
                ClientError::SocketPermission(self.socket.clone())
            } else {
                ClientError::NoDaemon(self.socket.clone())
            }
        })?;
        let broken = |error: hyper::Error| ClientError::Broken(error.to_string());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection.with_upgrades());
        let request = Request::builder().method(method).uri(format!("/localapi/v0/{path}")).header(header::HOST, HOST);
        let request = headers
            .iter()
            .fold(request, |request, (name, value)| request.header(*name, value))
            .body(Full::new(body))
            .map_err(|error| ClientError::Broken(error.to_string()))?;
        sender.send_request(request).await.map_err(broken)
    }
}

/// Reads an answer to its end.
async fn whole(response: http::Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    Ok(body.map_err(|error| ClientError::Broken(error.to_string()))?.to_bytes())
}

/// Reads why the daemon refused.
async fn refused(response: http::Response<Incoming>) -> ClientError {
    let status = response.status();
    let text = match whole(response).await {
        Ok(body) => refusal_text(&body),
        Err(error) => return error,
    };
    if status == StatusCode::FORBIDDEN {
        ClientError::Denied(text)
    } else {
        ClientError::Refused { status: status.as_u16(), text }
    }
}

fn refusal_text(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Refusal {
        error: String,
    }
    serde_json::from_slice::<Refusal>(body)
        .map_or_else(|_| String::from_utf8_lossy(body).trim().to_owned(), |refusal| refusal.error)
}

/// Yields the lines of the bus.
#[derive(Debug)]
pub struct Watcher {
    body: Incoming,
    buffer: BytesMut,
}

impl Watcher {
    /// Returns the next line; an error when the daemon ends.
    ///
    /// # Errors
    /// Says that the daemon went away or sent nonsense.
    pub async fn next(&mut self) -> Result<Notify, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return serde_json::from_slice(&line).map_err(|error| ClientError::Broken(error.to_string()));
            }
            if self.buffer.len() > MAX_LINE {
                return Err(ClientError::Broken("line too long".into()));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => return Err(ClientError::Broken(error.to_string())),
                None => return Err(ClientError::Broken("it ended".into())),
            }
        }
    }
}
