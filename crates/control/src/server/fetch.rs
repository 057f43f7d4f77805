//! Asking an identity provider over HTTP: small answers, little time, no detours.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::ServerName;
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

use super::accept::Duplex;

/// Longest answer, in bytes.
const BODY_MAX: usize = 1024 * 1024;
/// Longest head of an answer, in bytes.
const HEAD_MAX: usize = 64 * 1024;
/// How long a question may take, from the name to the last byte.
const DEADLINE: Duration = Duration::from_secs(10);
/// How many questions there may be at a time; browsers of strangers cause them.
const AT_ONCE: usize = 32;

/// Says why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("{0:?} is no URL")]
    Url(String),
    #[error("{url} cannot be reached: {error}")]
    Connect { url: String, error: std::io::Error },
    #[error("{url}: {error}")]
    Http { url: String, error: hyper::Error },
    #[error("{url} answers with more than {BODY_MAX} bytes, or breaks off")]
    Body { url: String },
    #[error("{url} did not answer within {} seconds", DEADLINE.as_secs())]
    Slow { url: String },
    #[error("{url} answers with status {status}")]
    Status { url: String, status: u16 },
    #[error("too many people log in at the same moment")]
    Busy,
}

/// A question.
pub(crate) struct Ask<'a> {
    pub(crate) url: &'a str,
    /// Value of the `Authorization` header.
    pub(crate) authorization: Option<&'a str>,
    /// Form to post; without one the question is a GET.
    pub(crate) form: Option<&'a str>,
}

/// A client that trusts the certificates that this machine trusts.
pub(crate) struct Fetcher {
    tls: TlsConnector,
    at_once: Semaphore,
}

impl Fetcher {
    /// Makes a client.
    ///
    /// # Errors
    /// If this machine's trusted certificates cannot be had.
    pub(crate) fn new() -> Result<Self, rustls::Error> {
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_platform_verifier()?
            .with_no_client_auth();
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), at_once: Semaphore::new(AT_ONCE) })
    }

    /// Asks, and returns status and body. A redirect is an answer like any other, and is not followed.
    pub(crate) async fn ask(&self, ask: &Ask<'_>) -> Result<(StatusCode, Bytes), FetchError> {
        let _place = self.at_once.try_acquire().map_err(|_| FetchError::Busy)?;
        let asked = tokio::time::timeout(DEADLINE, Box::pin(self.answer(ask))).await;
        asked.map_err(|_| FetchError::Slow { url: ask.url.to_owned() })?
    }

    /// Gets a document, which must be there.
    pub(crate) async fn get(&self, url: &str, authorization: Option<&str>) -> Result<Bytes, FetchError> {
        match self.ask(&Ask { url, authorization, form: None }).await? {
            (StatusCode::OK, body) => Ok(body),
            (status, _) => Err(FetchError::Status { url: url.to_owned(), status: status.as_u16() }),
        }
    }

    async fn answer(&self, ask: &Ask<'_>) -> Result<(StatusCode, Bytes), FetchError> {
        let url = || ask.url.to_owned();
        let uri: Uri = ask.url.parse().map_err(|_| FetchError::Url(url()))?;
        let request = request(&uri, ask).ok_or_else(|| FetchError::Url(url()))?;
        let stream = self.connect(&uri).await.map_err(|error| FetchError::Connect { url: url(), error })?;
        let http = |error| FetchError::Http { url: url(), error };
        let mut builder = http1::Builder::new();
        builder.max_buf_size(HEAD_MAX);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(http)?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(http)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), BODY_MAX).collect().await;
            Ok((status, body.map_err(|_| FetchError::Body { url: url() })?.to_bytes()))
        };
        // The connection moves only while its answer is waited for, and ends with it.
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            ended = connection => {
                ended.map_err(http)?;
                answer.await
            }
        }
    }

    async fn connect(&self, uri: &Uri) -> std::io::Result<Box<dyn Duplex>> {
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let is_tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        if !is_tls {
            return Ok(Box::new(stream));
        }
        let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
        Ok(Box::new(self.tls.connect(name, stream).await?))
    }
}

fn request(uri: &Uri, ask: &Ask<'_>) -> Option<Request<Full<Bytes>>> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut builder = Request::builder()
        .uri(path)
        .header(header::HOST, uri.authority()?.as_str())
        .header(header::USER_AGENT, concat!("warren/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, "application/json")
        .header(header::CONNECTION, "close");
    if let Some(authorization) = ask.authorization {
        let mut value = HeaderValue::try_from(authorization).ok()?;
        value.set_sensitive(true);
        builder = builder.header(header::AUTHORIZATION, value);
    }
    let body = match ask.form {
        Some(form) => {
            builder = builder.method(Method::POST).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
            Full::new(Bytes::copy_from_slice(form.as_bytes()))
        }
        None => Full::default(),
    };
    builder.body(body).ok()
}
