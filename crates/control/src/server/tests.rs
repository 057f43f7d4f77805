//! The server over pipes: raw HTTP/1.1 outside Noise, a real client of the control protocol inside.

mod accounts;
mod client;
mod hostile;
mod inside;
mod outside;
mod sign_in;
mod whole;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hyper::body::Bytes;
use ipnet::IpNet;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::accept::serve_http;
use super::address::ServerUrl;
use super::limits::{BodyBudget, ConnectionLimits, Gate};
use super::proxies::TrustedProxies;
use super::relaying;
use super::replay::Replay;
use super::shared::{Arrival, Shared};
use crate::{Config, Control};

/// A server without sockets, in a folder of its own that goes with it.
pub(super) struct Rig {
    pub(super) shared: Arc<Shared>,
    folder: PathBuf,
}

impl Rig {
    pub(super) async fn new() -> Self {
        Self::with(ConnectionLimits::default(), &[]).await
    }

    async fn with(connections: ConnectionLimits, proxies: &[&str]) -> Self {
        Self::with_oidc(connections, proxies, crate::OidcConfig::default(), "http://control.test:8080").await
    }

    async fn with_oidc(connections: ConnectionLimits, proxies: &[&str], oidc: crate::OidcConfig, url: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("warren-shell-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        let url = ServerUrl::new(Some(url), "127.0.0.1:8080".parse().unwrap(), false).unwrap();
        let control = Control::open(Config {
            state_dir: folder.clone(),
            server_url: url.text.clone(),
            base_domain: "warren.internal".to_owned(),
            derp_map: relaying::derp_map(&url, 8443, 3478, None, false),
        })
        .await
        .unwrap();
        let proxies: Vec<IpNet> = proxies.iter().map(|network| network.parse().unwrap()).collect();
        let shared = Arc::new(Shared {
            control,
            gate: Gate::new(connections),
            bodies: BodyBudget::new(16 * 1024),
            proxies: TrustedProxies::new(proxies),
            sign_in: super::sign_in::SignIn::new(oidc, &url.text).unwrap(),
            api: super::api::limits::ApiLimits::default(),
            own_host: url.host,
            stop: CancellationToken::new(),
        });
        Self { shared, folder }
    }

    /// Connects from 192.0.2.7; returns the client's end and the task that serves the other.
    fn connect(&self) -> (DuplexStream, JoinHandle<()>) {
        let peer = "192.0.2.7:1234".parse().unwrap();
        let pass = self.shared.gate.admit(Some("192.0.2.7".parse().unwrap())).unwrap();
        let arrival = Arrival { shared: Arc::clone(&self.shared), peer, pass: Arc::new(pass) };
        let (near, far) = tokio::io::duplex(64 * 1024);
        (near, tokio::spawn(serve_http(arrival, Replay::new(Bytes::new(), Box::new(far)))))
    }

    /// Sends a raw request, ends the sending side and returns the whole answer as text.
    pub(super) async fn ask(&self, request: &str) -> String {
        let (mut stream, _task) = self.connect();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // Requests ask for the end of the connection, or get it because they are wrong.
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Gets a path.
    async fn get(&self, path: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

/// Returns the status code of a raw answer.
pub(super) fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default()
}

/// Returns the body of a raw answer.
pub(super) fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}
