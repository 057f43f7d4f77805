//! The relay within the server: its certificate, its place in the map, its connections, STUN.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::net::UdpSocket;
use tokio::sync::broadcast::error::RecvError;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use warren_relay::{self as relay, Admission, Certificate, SelfMade, Server, Taken};
use warren_wire::control::{DerpMap, DerpNode, DerpRegion, RegionId, Time};
use warren_wire::key::{NodeKey, NodeSecret};
use zeroize::Zeroizing;

use super::accept::{Duplex, HttpStream};
use super::address::ServerUrl;
use super::limits::Pass;
use super::replay::Replay;
use super::shared::Arrival;
use super::{CertificateFiles, StartError};
use crate::Control;

/// How long relay connections are still served when the server stops, so that clients hear of it.
const DRAIN: Duration = Duration::from_millis(300);

/// How long relay connections may take to end when the server stops.
const GOODBYE: Duration = Duration::from_secs(3);

/// The region of the embedded relay; 900 to 999 are reserved for those who run their own. Source: paths.md §1.11.
const REGION: RegionId = RegionId(900);

/// Describes the embedded relay to clients. `pin` is the SHA-256 of a self-made certificate in hexadecimal digits.
pub(crate) fn derp_map(
    url: &ServerUrl,
    relay_port: u16,
    stun_port: u16,
    pin: Option<&str>,
    insecure_for_tests: bool,
) -> DerpMap {
    let (ipv4, ipv6) = match url.address() {
        Some(IpAddr::V4(address)) => (address.to_string(), "none".to_owned()),
        Some(IpAddr::V6(address)) => ("none".to_owned(), address.to_string()),
        None => (String::new(), String::new()),
    };
    let node = DerpNode {
        name: "900a".to_owned(),
        region_id: REGION,
        host_name: url.host.clone(),
        cert_name: pin.map(|pin| format!("sha256-raw:{pin}")).unwrap_or_default(),
        ipv4,
        ipv6,
        stun_port: i32::from(stun_port),
        derp_port: relay_port,
        insecure_for_tests,
        ..DerpNode::default()
    };
    let region = DerpRegion {
        region_id: REGION,
        region_code: "warren".to_owned(),
        region_name: "warren".to_owned(),
        nodes: vec![node],
        ..DerpRegion::default()
    };
    DerpMap { regions: Some(BTreeMap::from([(REGION, region)])), omit_default_regions: true, ..DerpMap::default() }
}

/// How often the TLS configuration is made anew: the relay's own certificate in it lives 30 days, and the operator may
/// have renewed the files.
const TLS_REFRESH: Duration = Duration::from_secs(12 * 60 * 60);

/// Beginning of the name of a self-made certificate among the server's secrets; the host that it is for follows.
const CERTIFICATE_SECRET: &str = "relay_certificate ";

/// What stands between the certificate and the key of a stored self-made certificate.
const SEPARATOR: &str = "\n\n";

/// TLS of the relay, and of clients if the operator gave a certificate.
#[derive(Debug)]
pub(crate) struct Tls {
    source: Source,
    relay: NodeKey,
    config: ArcSwap<ServerConfig>,
    /// Digest of a self-made certificate, for the relay map; absent if the operator gave one.
    pub(crate) pin: Option<String>,
}

#[derive(Debug)]
enum Source {
    Files(CertificateFiles),
    SelfMade(Certificate),
}

impl Tls {
    /// Reads the operator's certificate, or the one that the server made itself when it first started as `host`.
    pub(crate) async fn open(
        control: &Control,
        host: &str,
        files: Option<&CertificateFiles>,
    ) -> Result<Self, StartError> {
        let relay = control.relay_secret().public();
        let (source, config, pin) = match files {
            Some(files) => {
                let config = read_files(files)?.server_config(&relay, now()?)?;
                (Source::Files(files.clone()), config, None)
            }
            None => {
                let fresh = SelfMade::generate(host)?;
                let stored = control
                    .stored_secret(format!("{CERTIFICATE_SECRET}{host}"), move || {
                        format!("{}{SEPARATOR}{}", fresh.certificate_pem, *fresh.key_pem).into_bytes()
                    })
                    .await?;
                let stored = Zeroizing::new(stored);
                let text = std::str::from_utf8(&stored).unwrap_or_default();
                let (chain, key) = text.split_once(SEPARATOR).unwrap_or_default();
                let certificate = Certificate::from_pem(chain, key)?;
                let config = certificate.server_config(&relay, now()?)?;
                let pin = certificate.pin();
                (Source::SelfMade(certificate), config, Some(pin))
            }
        };
        Ok(Self { source, relay, config: ArcSwap::from_pointee(config), pin })
    }

    /// Returns what the next connection is accepted with.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }

    fn refresh(&self) -> Result<(), StartError> {
        let config = match &self.source {
            Source::Files(files) => read_files(files)?.server_config(&self.relay, now()?)?,
            Source::SelfMade(certificate) => certificate.server_config(&self.relay, now()?)?,
        };
        self.config.store(Arc::new(config));
        Ok(())
    }

    /// Keeps the configuration fresh until the server stops; a certificate that cannot be read leaves the old one.
    pub(crate) async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(TLS_REFRESH) => {}
                () = stop.cancelled() => return,
            }
            if let Err(error) = self.refresh() {
                tracing::error!(%error, "the certificate cannot be renewed; the old one stays in use");
            }
        }
    }
}

fn read_files(files: &CertificateFiles) -> Result<Certificate, StartError> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|error| StartError::CertificateFile { path: path.to_owned(), error })
    };
    let key = Zeroizing::new(read(&files.key)?);
    Ok(Certificate::from_pem(&read(&files.chain)?, &key)?)
}

fn now() -> Result<Time, StartError> {
    #[expect(clippy::disallowed_methods, reason = "a shell reads the clock: certificates are made for this time")]
    let now = std::time::SystemTime::now();
    let since_epoch = now.duration_since(std::time::UNIX_EPOCH).map_err(|_| StartError::Clock)?;
    let seconds = i64::try_from(since_epoch.as_secs()).map_err(|_| StartError::Clock)?;
    Time::from_unix(seconds, 0).ok_or(StartError::Clock)
}

/// The relay, and what tells it who may use it.
#[derive(Debug)]
pub(crate) struct Relaying {
    relay: Server,
}

tokio::task_local! {
    /// The place of the connection that is served; the relay names connections by key alone.
    static PASS: Arc<Pass>;
}

/// Admits the node keys that this server registered.
struct Registered(Control);

impl Admission for Registered {
    fn admit(&self, key: &NodeKey, _source: IpAddr) -> bool {
        // Outside a connection's task there is no place to count.
        self.0.relay_admits(key) && PASS.try_with(|pass| pass.identify(*key.as_bytes())).unwrap_or(true)
    }
}

impl Relaying {
    pub(crate) fn new(control: &Control) -> Self {
        let secret = NodeSecret::from_bytes(*control.relay_secret().expose_bytes());
        Self { relay: Server::new(secret, Registered(control.clone())) }
    }

    /// Serves a TLS connection as long as its requests are the relay's. Returns the stream, with what was read of it,
    /// if another request comes; `None` when the connection is over.
    pub(crate) async fn take(&self, arrival: &Arrival, stream: Box<dyn Duplex>) -> Option<HttpStream> {
        let taken = PASS.scope(Arc::clone(&arrival.pass), self.relay.take(stream, arrival.peer.ip()));
        let stopped = async {
            arrival.shared.stop.cancelled().await;
            tokio::time::sleep(GOODBYE).await;
        };
        let taken = tokio::select! {
            taken = taken => taken,
            () = stopped => return None,
        };
        match taken {
            Ok(Taken::Other { stream, read_ahead }) => Some(Replay::new(read_ahead.into(), stream)),
            Ok(Taken::Done) => None,
            Err(error) => {
                tracing::debug!(peer = %arrival.peer, %error, "a relay connection ended");
                None
            }
        }
    }

    /// Ends the connections of nodes that may no longer use the relay, until the server stops; then all.
    pub(crate) async fn follow(self: Arc<Self>, control: Control, stop: CancellationToken) {
        let mut departures = control.relay_departures();
        loop {
            let departed = tokio::select! {
                departed = departures.recv() => departed,
                () = stop.cancelled() => break,
            };
            match departed {
                Ok(key) => self.relay.disconnect(&key),
                Err(RecvError::Lagged(_)) => self.relay.retain(|key| control.relay_admits(key)),
                Err(RecvError::Closed) => {
                    stop.cancelled().await;
                    break;
                }
            }
        }
        self.relay.drain(DRAIN).await;
        self.relay.stop();
    }
}

/// Answers STUN until the server stops.
pub(crate) async fn serve_stun(socket: UdpSocket, stop: CancellationToken) {
    tokio::select! {
        result = relay::serve_stun(&socket) => {
            if let Err(error) = result {
                tracing::error!(%error, "the STUN socket is broken; clients do not learn their addresses here any more");
            }
        }
        () = stop.cancelled() => {}
    }
}
