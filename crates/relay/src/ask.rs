//! Admission by asking the coordination server, for relays on machines of their own.
//!
//! `POST <server>/verify` about one client, as official relays ask (`--verify-client-url`), and `POST
//! <server>/verify/all` about those that are here. While the server cannot be reached, clients that it admitted lately
//! may come and stay; strangers may not.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::ServerName;
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use warren_wire::control::{
    RelayAdmitRequest, RelayAdmitResponse, RelayReviewRequest, RelayReviewResponse, from_json, to_json,
};
use warren_wire::key::NodeKey;

use crate::dial;
use crate::server::{Admission, Server, now};

/// Time for one question. Source: Tailscale `derp/derpserver`, its admission URL.
const DEADLINE: Duration = Duration::from_secs(5);
/// Age up to which a yes is not asked for again.
const FRESH: Duration = Duration::from_secs(30);
/// Age up to which a no is not asked for again; short, for a node may be let in at any moment.
const FRESH_NO: Duration = Duration::from_secs(3);
/// Age up to which a yes counts while the server cannot be reached.
const GRACE: Duration = Duration::from_secs(24 * 60 * 60);
/// How often the clients that are here are asked about.
const REVIEW: Duration = Duration::from_secs(30);
/// Questions at a time.
const AT_ONCE: usize = 32;
/// Clients that are remembered.
const REMEMBERED: usize = 100_000;
/// Most bytes of an answer.
const ANSWER_MAX: u64 = 64 << 10;

/// Says why the server gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// Not a URL of a server.
    #[error("{0:?} is no URL of a server: write https://HOST or http://HOST:PORT")]
    Url(String),
    /// TLS cannot be set up, for instance because this machine has no certificate store.
    #[error("cannot verify the server: {0}")]
    Tls(#[from] rustls::Error),
    /// The server cannot be reached.
    #[error("cannot reach the server: {0}")]
    Io(#[from] io::Error),
    /// No answer in five seconds.
    #[error("the server does not answer")]
    Deadline,
    /// An answer that is none.
    #[error("the server's answer cannot be read; is it a warren server?")]
    Answer,
}

/// Asks a coordination server; clones ask the same and remember the same.
#[derive(Clone)]
pub struct AskServer(Arc<Inner>);

struct Inner {
    host: String,
    port: u16,
    /// Path below which the server answers, without the last slash.
    base: String,
    tls: Option<TlsConnector>,
    questions: Semaphore,
    known: Mutex<HashMap<NodeKey, Verdict>>,
}

/// What the server said of a client.
#[derive(Debug, Clone, Copy)]
struct Verdict {
    admitted: bool,
    at: Instant,
}

impl std::fmt::Debug for AskServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AskServer({}:{})", self.0.host, self.0.port)
    }
}

impl AskServer {
    /// Prepares to ask the server of that URL.
    ///
    /// # Errors
    /// [`AskError::Url`] and [`AskError::Tls`].
    pub fn new(url: &str) -> Result<Self, AskError> {
        let (host, port, base, is_tls) = parse(url).ok_or_else(|| AskError::Url(url.to_owned()))?;
        let tls = if is_tls {
            let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
                .with_safe_default_protocol_versions()?
                .with_platform_verifier()?
                .with_no_client_auth();
            Some(TlsConnector::from(Arc::new(config)))
        } else {
            None
        };
        let questions = Semaphore::new(AT_ONCE);
        Ok(Self(Arc::new(Inner { host, port, base, tls, questions, known: Mutex::default() })))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<NodeKey, Verdict>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, key: NodeKey, admitted: bool) {
        let (mut known, now) = (self.known(), now());
        if known.len() >= REMEMBERED && !known.contains_key(&key) {
            known.retain(|_, verdict| now.saturating_duration_since(verdict.at) < FRESH);
            if known.len() >= REMEMBERED {
                known.clear();
            }
        }
        known.insert(key, Verdict { admitted, at: now });
    }

    /// Asks about one client unless the answer is fresh.
    async fn learn(&self, key: &NodeKey, source: IpAddr) {
        let is_fresh = |verdict: &Verdict| {
            let age = now().saturating_duration_since(verdict.at);
            age < if verdict.admitted { FRESH } else { FRESH_NO }
        };
        if self.known().get(key).is_some_and(is_fresh) {
            return;
        }
        let question = RelayAdmitRequest { node_public: *key, source: source.to_string() };
        match self.ask::<_, RelayAdmitResponse>("/verify", &question).await {
            Ok(answer) => self.remember(*key, answer.allow),
            Err(error) => {
                tracing::warn!(%error, "cannot ask the server about a client; only those it knows are admitted")
            }
        }
    }

    /// Asks about all clients of `relay` now and then, and ends the connections of those that may stay no longer.
    pub async fn review(&self, relay: &Server, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(REVIEW) => {}
                () = stop.cancelled() => return,
            }
            let mut clients = relay.keys();
            clients.sort_unstable();
            clients.dedup();
            for clients in clients.chunks(RelayReviewRequest::MAX_CLIENTS) {
                let question = RelayReviewRequest { clients: clients.to_vec() };
                let gone = match self.ask::<_, RelayReviewResponse>("/verify/all", &question).await {
                    Ok(answer) => answer.gone,
                    Err(error) => {
                        tracing::warn!(%error, "cannot ask the server about the clients that are here; they stay");
                        break;
                    }
                };
                for client in clients {
                    let stays = !gone.contains(client);
                    self.remember(*client, stays);
                    if !stays {
                        relay.disconnect(client);
                    }
                }
            }
        }
    }

    async fn ask<Q: serde::Serialize, A: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        question: &Q,
    ) -> Result<A, AskError> {
        let body = to_json(question).map_err(|_| AskError::Answer)?;
        let asking = async {
            // The semaphore is never closed.
            let _turn = self.0.questions.acquire().await.map_err(|_| AskError::Answer)?;
            let stream = dial::dial(&self.0.host, self.0.port, self.0.tls.is_some()).await?;
            let Some(tls) = &self.0.tls else { return self.converse(stream, path, &body).await };
            let name = ServerName::try_from(self.0.host.clone()).map_err(|_| AskError::Url(self.0.host.clone()))?;
            self.converse(tls.connect(name, stream).await?, path, &body).await
        };
        let answer = timeout(DEADLINE, asking).await.map_err(|_| AskError::Deadline)??;
        from_json(&answer).map_err(|_| AskError::Answer)
    }

    /// Sends one request and returns the body of the answer. HTTP/1.0, so that the end of the stream ends the answer.
    async fn converse<S>(&self, mut stream: S, path: &str, body: &[u8]) -> Result<Vec<u8>, AskError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Inner { host, port, base, .. } = &*self.0;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let head = format!(
            "POST {base}{path} HTTP/1.0\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).await?;
        stream.flush().await?;
        let mut answer = Vec::new();
        match stream.take(ANSWER_MAX).read_to_end(&mut answer).await {
            // A server may end the stream without TLS's goodbye; half a document does not parse.
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error.into()),
            _ => {}
        }
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut fields);
        match (response.parse(&answer), response.code) {
            (Ok(httparse::Status::Complete(head)), Some(200)) => Ok(answer.split_off(head.min(answer.len()))),
            _ => Err(AskError::Answer),
        }
    }
}

impl Admission for AskServer {
    fn prepare<'a>(&'a self, key: &'a NodeKey, source: IpAddr) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(self.learn(key, source))
    }

    fn admit(&self, key: &NodeKey, _source: IpAddr) -> bool {
        let verdict = self.known().get(key).copied();
        verdict.is_some_and(|verdict| verdict.admitted && now().saturating_duration_since(verdict.at) < GRACE)
    }
}

/// Returns host, port, path and whether the URL is of TLS.
fn parse(url: &str) -> Option<(String, u16, String, bool)> {
    let (rest, is_tls) = match url.split_once("://")? {
        ("https", rest) => (rest, true),
        ("http", rest) => (rest, false),
        _ => return None,
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (host, port) = match authority.strip_prefix('[') {
        Some(v6) => v6.split_once(']').map(|(host, rest)| (host, rest.strip_prefix(':')))?,
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#@\"\\".contains(&byte));
    let port = port.map_or(Some(if is_tls { 443 } else { 80 }), |port| port.parse().ok())?;
    let is_sound = !host.is_empty() && is_plain(host) && is_plain(path);
    is_sound.then(|| (host.to_owned(), port, path.trim_end_matches('/').to_owned(), is_tls))
}

#[cfg(test)]
mod tests;
