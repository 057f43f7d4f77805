//! The listeners of the coordination server, and its start and end.
//!
//! Connections pass the limits of `limits`, then TLS where a listener has it, then HTTP/1.1 in `web`; `/ts2021` leads
//! into Noise and HTTP/2, served by `rpc` and `routes`. Decisions are made in [`Control`]; what stands here moves bytes.

pub(crate) mod accept;
mod address;
pub(crate) mod answers;
mod api;
mod fetch;
pub(crate) mod limits;
mod login_page;
mod proxies;
mod relaying;
mod replay;
mod routes;
mod rpc;
mod shared;
mod sign_in;
mod upgrade;
mod web;

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use warren_relay::CertificateError;
use warren_wire::key::MachineKey;

pub use address::UrlError;
pub use limits::ConnectionLimits;
pub use login_page::key_words;
pub use routes::MIN_CAPABILITY_VERSION;

use crate::account;
use crate::admin_socket::{self, Facts};
use crate::store::StoreError;
use crate::{Config, Control, OidcConfig, OpenError};
use accept::Offer;
use address::ServerUrl;
use api::limits::ApiLimits;
use limits::{BodyBudget, Gate};
use proxies::TrustedProxies;
use relaying::{Relaying, Tls};
use shared::Shared;
use sign_in::SignIn;

/// How long connections may take to end when the server stops.
const GOODBYE: Duration = Duration::from_secs(8);

/// Memory that all request bodies under way may use, in KiB.
const BODY_BUDGET_KIB: usize = 64 * 1024;

/// What the operator decides.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the state.
    pub state_dir: PathBuf,
    /// Where clients connect: plain HTTP, or TLS if there is a certificate.
    pub listen: SocketAddr,
    /// URL by which clients reach the server; made of `listen` if absent.
    pub url: Option<String>,
    /// Where the relay listens. Absent means beside `listen` on port 8443 or, with an own certificate, on `listen`
    /// itself.
    pub relay_listen: Option<SocketAddr>,
    /// Where STUN listens; beside `listen` on port 3478 if absent.
    pub stun_listen: Option<SocketAddr>,
    /// The operator's own certificate.
    pub certificate: Option<CertificateFiles>,
    /// Proxies whose forwarded headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Providers with which people log in.
    pub oidc: OidcConfig,
    /// Domain under which every tailnet has a label of its own.
    pub base_domain: String,
    /// Where administrators connect.
    pub socket: PathBuf,
    /// How many connections there may be.
    pub connections: ConnectionLimits,
    /// Marks the relay in the map so that test programs without certificate checks use it.
    pub relay_insecure_for_tests: bool,
}

/// Files of a certificate, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, the server's own certificate first.
    pub chain: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Says why the server does not start; each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state cannot be used.
    #[error(transparent)]
    State(#[from] OpenError),
    /// The URL cannot be used.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// An address cannot be listened on.
    #[error("cannot listen on {what} {address}: {error}; choose another with {option}")]
    Listen {
        /// Kind of listener.
        what: &'static str,
        /// Its address.
        address: String,
        /// What the system says.
        error: io::Error,
        /// The option that changes it.
        option: &'static str,
    },
    /// A file of the certificate cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    CertificateFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The certificates that this machine trusts cannot be had, and identity providers are named.
    #[error("the certificates that this machine trusts cannot be read, and without them no identity provider can: {0}")]
    Roots(rustls::Error),
    /// The machine's clock is before 1970.
    #[error("this machine's clock is wrong; set it")]
    Clock,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The link for the first owner cannot be made.
    #[error("the link for the first owner cannot be made: {0}")]
    Owner(#[from] crate::admin::AdminError),
}

/// A server that runs.
pub struct Server {
    control: Control,
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    addresses: Addresses,
    url: String,
    socket: PathBuf,
    owner_link: Option<String>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("url", &self.url).field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// Where a server listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Clients.
    pub clients: SocketAddr,
    /// Relay; absent if it shares the clients' listener.
    pub relay: Option<SocketAddr>,
    /// STUN, over UDP.
    pub stun: SocketAddr,
}

impl Server {
    /// Opens the state, binds all listeners and starts to serve.
    ///
    /// # Errors
    /// If anything of that fails; nothing keeps running then.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        // Limits and addresses first: what is wrong with them should not leave a fresh state behind.
        let listener = bind_tcp("clients on", options.listen, "--listen").await?;
        let clients = local(&listener, options.listen);
        let url = ServerUrl::new(options.url.as_deref(), clients, options.certificate.is_some())?;
        let sign_in = SignIn::new(options.oidc, &url.text).map_err(StartError::Roots)?;
        let relay_listener = match (options.relay_listen, &options.certificate) {
            (Some(address), _) => Some(bind_tcp("the relay on", address, "--relay-listen").await?),
            (None, None) => {
                let address = SocketAddr::new(options.listen.ip(), DEFAULT_RELAY_PORT);
                Some(bind_tcp("the relay on", address, "--relay-listen").await?)
            }
            (None, Some(_)) => None,
        };
        let stun_address =
            options.stun_listen.unwrap_or_else(|| SocketAddr::new(options.listen.ip(), DEFAULT_STUN_PORT));
        let stun = UdpSocket::bind(stun_address).await.map_err(|error| StartError::Listen {
            what: "STUN on",
            address: stun_address.to_string(),
            error,
            option: "--stun-listen",
        })?;
        let addresses = Addresses {
            clients,
            relay: relay_listener.as_ref().map(|listener| local(listener, options.listen)),
            stun: stun.local_addr().unwrap_or(stun_address),
        };

        let relay_port = addresses.relay.map_or(url.port, |relay| relay.port());
        let map = |pin: Option<&str>| {
            relaying::derp_map(&url, relay_port, addresses.stun.port(), pin, options.relay_insecure_for_tests)
        };
        let control = Control::open(Config {
            state_dir: options.state_dir,
            server_url: url.text.clone(),
            base_domain: options.base_domain,
            derp_map: map(None),
        })
        .await?;
        let tls = Arc::new(Tls::open(&control, &url.host, options.certificate.as_ref()).await?);
        control.set_derp_map(map(tls.pin.as_deref())).await?;

        let known: Vec<_> = control.tailnets().into_iter().map(|tailnet| tailnet.name).collect();
        for (provider, tailnet) in sign_in.missing(|name| known.iter().any(|known| **known == *name)) {
            tracing::warn!(
                provider,
                tailnet,
                "there is no such network, so people of this provider wait; make it with: warren admin tailnet create"
            );
        }

        let admin_listener = admin_socket::bind(&options.socket).map_err(|error| StartError::Listen {
            what: "administrators on",
            address: options.socket.display().to_string(),
            error,
            option: "--socket",
        })?;
        // Whoever starts the server reads what it prints; nobody else has a way in yet.
        let owner_link = match control.is_unused() {
            true => {
                let admin = control.admin(crate::Who::server());
                Some(admin.invite_user(account::FIRST_TAILNET, account::FIRST_OWNER).await?.url)
            }
            false => None,
        };
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            control: control.clone(),
            gate: Gate::new(options.connections),
            bodies: BodyBudget::new(BODY_BUDGET_KIB),
            proxies: TrustedProxies::new(options.trusted_proxies),
            sign_in,
            api: ApiLimits::default(),
            own_host: url.host.clone(),
            stop: stop.clone(),
        });
        let relaying = Arc::new(Relaying::new(&control));
        let mut tasks = JoinSet::new();
        let offer = Offer::Tls(Arc::clone(&tls), Arc::clone(&relaying));
        let clients_offer = if options.certificate.is_some() { offer.clone() } else { Offer::Http };
        tasks.spawn(accept::run(listener, clients_offer, Arc::clone(&shared)));
        if let Some(listener) = relay_listener {
            tasks.spawn(accept::run(listener, offer, Arc::clone(&shared)));
        }
        tasks.spawn(tls.keep_fresh(stop.clone()));
        tasks.spawn(relaying::serve_stun(stun, stop.clone()));
        tasks.spawn(relaying.follow(control.clone(), stop.clone()));
        let facts = Facts { url: url.text.clone(), key: control.noise_key() };
        tasks.spawn(admin_socket::serve(admin_listener, control.clone(), facts, stop));
        Ok(Self { control, shared, tasks, addresses, url: url.text, socket: options.socket, owner_link })
    }

    /// Returns where the server listens.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Returns the URL by which clients reach the server.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the link with which the first owner makes themselves an account, once, if nobody has come in yet. It is a
    /// secret.
    #[must_use]
    pub fn owner_link(&self) -> Option<&str> {
        self.owner_link.as_deref()
    }

    /// Returns the key by which clients know the server.
    #[must_use]
    pub fn key(&self) -> MachineKey {
        self.control.noise_key()
    }

    /// Stops: no new connections, streams end, what must last is written.
    pub async fn stop(mut self) {
        self.shared.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        if tokio::time::timeout(GOODBYE, self.shared.gate.drained()).await.is_err() {
            tracing::warn!(connections = self.shared.gate.open(), "connections did not end in time and are cut");
        }
        if let Err(error) = self.control.flush().await {
            tracing::error!(%error, "what nodes reported last is not stored");
        }
        if let Err(error) = std::fs::remove_file(&self.socket) {
            tracing::debug!(%error, "the administrators' socket cannot be removed");
        }
    }
}

/// Port of the relay unless the operator says otherwise.
pub const DEFAULT_RELAY_PORT: u16 = 8443;

/// Port of STUN unless the operator says otherwise.
pub const DEFAULT_STUN_PORT: u16 = 3478;

async fn bind_tcp(what: &'static str, address: SocketAddr, option: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|error| StartError::Listen {
        what,
        address: address.to_string(),
        error,
        option,
    })
}

/// Returns the address that a listener got; `asked` may have left the port to the system.
fn local(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}
