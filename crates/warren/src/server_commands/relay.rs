//! `warren relay`: a relay on a machine of its own.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::ServerConfig;
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use warren_os::{create_private_dir, write_private};
use warren_relay::{
    Addresses, Admission, AskServer, Certificate, Limits, MeshKey, RateLimit, SelfMade, Server, Station, TlsHandle,
};
use warren_wire::control::{DerpNode, Time};
use warren_wire::key::{NodeKey, NodeSecret};
use zeroize::Zeroizing;

use crate::exit::{Exit, Failure, OrExit};
use crate::output;
use crate::paths::Role;

/// How often the TLS settings are made anew: the relay's own certificate in them lives 30 days, and the operator may have
/// renewed the files.
const TLS_REFRESH: Duration = Duration::from_secs(12 * 60 * 60);
/// Port of STUN unless the command line says otherwise.
const STUN_PORT: u16 = 3478;

/// Arguments of `warren relay`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// URL of the server, which says who may use the relay.
    #[arg(long, value_name = "URL", required_unless_present = "admit_anybody_for_tests")]
    server: Option<String>,
    /// Name or address by which machines reach this relay.
    #[arg(long, value_name = "HOST", value_parser = host)]
    host: String,
    /// What the relay is called: lower-case letters, digits and dashes.
    #[arg(long, value_name = "NAME", default_value = "relay")]
    name: String,
    /// Directory of the state: key and certificate.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where the relay listens (TLS).
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:443")]
    listen: SocketAddr,
    /// Where STUN listens (UDP); port 3478 of --listen unless given.
    #[arg(long, value_name = "ADDRESS:PORT")]
    stun_listen: Option<SocketAddr>,
    /// Where plain HTTP listens, usually port 80, so that machines notice captive portals.
    #[arg(long, value_name = "ADDRESS:PORT")]
    http_listen: Option<SocketAddr>,
    /// Where counts are read in Prometheus' format (/metrics); an address of this machine alone.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = loopback)]
    metrics: Option<SocketAddr>,
    /// Your own certificate chain, PEM. Without one the relay makes its own, and machines are told its hash.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// A JSON file with what each machine may send: {"PerClientRateLimitBytesPerSec": N, "PerClientRateBurstBytes": M}.
    /// SIGHUP reads it again.
    #[arg(long, value_name = "FILE")]
    rate_limit: Option<PathBuf>,
    /// A file, for its owner alone, with what the relays of one region show each other: 64 hex digits, the same on each.
    #[arg(long, value_name = "FILE")]
    mesh_key: Option<PathBuf>,
    /// Another relay of the region, so that machines on either reach each other; once for each. The SHA-256 is that of its
    /// certificate, if it made it itself; it prints it as --pin.
    #[arg(long, value_name = "HOST:PORT[=SHA256]", value_parser = mesh_relay, requires = "mesh_key")]
    mesh_with: Vec<DerpNode>,
    /// New connections a second; more are refused.
    #[arg(long, value_name = "N", default_value_t = Limits::default().accepts)]
    accepts: u32,
    /// Let anybody use the relay.
    #[arg(long, hide = true)]
    admit_anybody_for_tests: bool,
}

/// The file of [`Arguments::rate_limit`], as official relays read it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RateFile {
    per_client_rate_limit_bytes_per_sec: u64,
    #[serde(default)]
    per_client_rate_burst_bytes: u64,
}

/// Admits everybody, for load tests.
struct Anybody;

impl Admission for Anybody {
    fn admit(&self, _: &NodeKey, _: IpAddr) -> bool {
        true
    }
}

fn host(text: &str) -> Result<String, String> {
    let is_fine = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:".contains(&byte));
    let is_bounded = (1..=253).contains(&text.len()) && !text.starts_with('.');
    if is_fine && is_bounded { Ok(text.to_owned()) } else { Err("write a name or an address".to_owned()) }
}

/// Reads another relay of the region: a name or an address (IPv6 in brackets), a port, and perhaps its certificate's hash.
fn mesh_relay(text: &str) -> Result<DerpNode, String> {
    let (address, pin) = text.split_once('=').map_or((text, None), |(address, pin)| (address, Some(pin)));
    let (name, port) = address.rsplit_once(':').ok_or("write HOST:PORT")?;
    let derp_port = port.parse().ok().filter(|port| *port != 0).ok_or("write a port behind the colon")?;
    let name = host(name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name))?;
    if pin.is_some_and(|pin| pin.len() != 64 || !pin.bytes().all(|digit| digit.is_ascii_hexdigit())) {
        return Err("write the SHA-256 as 64 hex digits".to_owned());
    }
    let (ipv4, ipv6) = match name.parse() {
        Ok(IpAddr::V4(ip)) => (ip.to_string(), "none".to_owned()),
        Ok(IpAddr::V6(ip)) => ("none".to_owned(), ip.to_string()),
        Err(_) => (String::new(), String::new()),
    };
    let cert_name = pin.map(|pin| format!("sha256-raw:{}", pin.to_ascii_lowercase())).unwrap_or_default();
    Ok(DerpNode { host_name: name, derp_port, ipv4, ipv6, cert_name, ..DerpNode::default() })
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "write an address such as 127.0.0.1:9090".to_owned())?;
    if address.ip().is_loopback() { Ok(address) } else { Err("counts are for this machine: use 127.0.0.1".to_owned()) }
}

impl Arguments {
    pub(crate) fn run(self) -> Result<(), Failure> {
        crate::open_files::raise_limit();
        let runtime = tokio::runtime::Runtime::new().or_exit(Exit::General, "cannot start")?;
        runtime.block_on(self.serve())
    }

    async fn serve(self) -> Result<(), Failure> {
        let mut terminate = signal(SignalKind::terminate()).or_exit(Exit::General, "cannot wait for signals")?;
        let mut interrupt = signal(SignalKind::interrupt()).or_exit(Exit::General, "cannot wait for signals")?;
        let mut reload = signal(SignalKind::hangup()).or_exit(Exit::General, "cannot wait for signals")?;

        let state_dir = self.state_dir.clone().unwrap_or_else(|| Role::Relay.state_dir());
        create_private_dir(&state_dir).or_exit(Exit::General, "cannot use the state directory")?;
        let secret = own_key(&state_dir)?;
        let files = self.tls_cert.clone().zip(self.tls_key.clone());
        let tls = TlsSource { files, state_dir, host: self.host.clone(), key: secret.public() };
        let (config, pin) = tls.read()?;
        let ask = match &self.server {
            Some(url) if !self.admit_anybody_for_tests => {
                Some(AskServer::new(url).or_exit(Exit::Usage, "cannot use --server")?)
            }
            _ => None,
        };
        let mesh = self.mesh_key.as_deref().map(mesh_key).transpose()?;
        let relay = match &ask {
            Some(ask) => Server::with_mesh(secret, ask.clone(), mesh),
            None => Server::with_mesh(secret, Anybody, mesh),
        };
        if let Some(file) = &self.rate_limit {
            relay.set_rate_limit(rate_limit(file)?);
        }
        let addresses = Addresses {
            relay: self.listen,
            stun: Some(self.stun_listen.unwrap_or_else(|| SocketAddr::new(self.listen.ip(), STUN_PORT))),
            http: self.http_listen,
            metrics: self.metrics,
        };
        let limits = Limits { accepts: self.accepts, ..Limits::default() };
        let station = Station::bind(&addresses, limits, config).await.map_err(|error| {
            let in_use = error.error.kind() == std::io::ErrorKind::AddrInUse;
            Failure::new(if in_use { Exit::AlreadyRunning } else { Exit::General }, error)
        })?;
        self.greet(&station, pin.as_deref())?;

        let (stop, handle) = (CancellationToken::new(), station.tls());
        let mut serving = tokio::spawn(station.run(relay.clone(), stop.clone()));
        for node in self.mesh_with.clone() {
            let relay = relay.clone();
            tokio::spawn(async move { relay.mesh_with(&node).await });
        }
        let review = async {
            match &ask {
                Some(ask) => ask.review(&relay, &stop).await,
                None => stop.cancelled().await,
            }
        };
        let upkeep = async {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(TLS_REFRESH) => {}
                    _ = reload.recv() => self.reload_rate(&relay),
                }
                refresh(&tls, &handle);
            }
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = &mut serving => return Err(Failure::new(Exit::General, "the relay stopped by itself")),
            () = upkeep => {}
            () = review => {}
        }
        tracing::info!("stopping");
        stop.cancel();
        serving.await.or_exit(Exit::General, "the relay did not stop well")
    }

    fn reload_rate(&self, relay: &Server) {
        match self.rate_limit.as_deref().map(rate_limit) {
            Some(Ok(limit)) => relay.set_rate_limit(limit),
            Some(Err(failure)) => tracing::error!(%failure, "the old rate limit stays in force"),
            None => {}
        }
    }

    /// Prints where the relay listens, and what to type on the server.
    fn greet(&self, station: &Station, pin: Option<&str>) -> Result<(), Failure> {
        let addresses = station.addresses().or_exit(Exit::General, "cannot listen")?;
        let listen = addresses.relay;
        let stun = addresses.stun.map(|stun| format!(" --stun-port {}", stun.port())).unwrap_or_default();
        let pin = pin.map(|pin| format!(" --pin {pin}")).unwrap_or_default();
        let metrics = addresses.metrics.map(|at| format!("\x20 counts      http://{at}/metrics\n")).unwrap_or_default();
        output::text(&format!(
            "warren relay {version}\n\
             \x20 relay       {listen} (TLS)\n\
             {metrics}\
             To let machines use it, type on the server:\n\
             \x20 warren admin relay add {name} --host {host} --port {port}{stun}{pin}\n",
            version = env!("CARGO_PKG_VERSION"),
            name = self.name,
            host = self.host,
            port = listen.port(),
        ))
    }
}

/// Where the certificate comes from.
struct TlsSource {
    files: Option<(PathBuf, PathBuf)>,
    state_dir: PathBuf,
    host: String,
    key: NodeKey,
}

impl TlsSource {
    /// Reads or makes the certificate; returns its hash, too, if the relay made it itself.
    fn read(&self) -> Result<(ServerConfig, Option<String>), Failure> {
        let (chain, key, is_own) = match &self.files {
            Some((chain, key)) => (chain.clone(), key.clone(), true),
            // One for each name that the relay has had: official clients compare it.
            None => {
                let file = |what: &str| self.state_dir.join(format!("{what}-{}.pem", self.host));
                (file("certificate"), file("key"), false)
            }
        };
        // The key is written first, so that a certificate is never without one.
        if !is_own && !chain.exists() {
            let made = SelfMade::generate(&self.host).or_exit(Exit::General, "cannot make a certificate")?;
            write_private(&key, made.key_pem.as_bytes()).or_exit(Exit::General, "cannot keep the certificate")?;
            write_private(&chain, made.certificate_pem.as_bytes())
                .or_exit(Exit::General, "cannot keep the certificate")?;
        }
        let key = Zeroizing::new(read_text(&key)?);
        let certificate = Certificate::from_pem(&read_text(&chain)?, &key)
            .or_exit(Exit::General, format_args!("cannot use the certificate {}", chain.display()))?;
        let config =
            certificate.server_config(&self.key, now()?).or_exit(Exit::General, "cannot use the certificate")?;
        Ok((config, (!is_own).then(|| certificate.pin())))
    }
}

fn refresh(tls: &TlsSource, handle: &TlsHandle) {
    match tls.read() {
        Ok((config, _)) => handle.set(config),
        Err(failure) => tracing::error!(%failure, "the certificate cannot be renewed; the old one stays in use"),
    }
}

/// Reads the relay's key, or makes it on the first start.
fn own_key(state_dir: &Path) -> Result<NodeSecret, Failure> {
    let path = state_dir.join("relay-key");
    if !path.exists() {
        let secret = NodeSecret::generate().or_exit(Exit::General, "cannot make a key")?;
        write_private(&path, secret.to_storage_text().as_bytes()).or_exit(Exit::General, "cannot keep the key")?;
        return Ok(secret);
    }
    let text = Zeroizing::new(read_text(&path)?);
    NodeSecret::from_storage_text(text.trim_end())
        .or_exit(Exit::General, format_args!("{} holds no key of a relay", path.display()))
}

/// Reads what the relays of the region show each other, from a file that nobody else may read.
fn mesh_key(file: &Path) -> Result<MeshKey, Failure> {
    let mode = std::fs::metadata(file).or_exit(Exit::General, format_args!("cannot read {}", file.display()))?;
    if mode.permissions().mode() & 0o077 != 0 {
        let what = format!("others may read {name}; type: chmod 600 {name}", name = file.display());
        return Err(Failure::new(Exit::Usage, what));
    }
    let text = Zeroizing::new(read_text(file)?);
    MeshKey::from_hex(text.trim()).ok_or_else(|| {
        let what = "is no mesh key: write 64 hex digits, for instance from `openssl rand -hex 32`";
        Failure::new(Exit::Usage, format!("{} {what}", file.display()))
    })
}

fn rate_limit(file: &Path) -> Result<Option<RateLimit>, Failure> {
    let limit: RateFile = serde_json::from_str(&read_text(file)?)
        .or_exit(Exit::Usage, format_args!("cannot understand {}", file.display()))?;
    let (bytes_per_second, burst) = (limit.per_client_rate_limit_bytes_per_sec, limit.per_client_rate_burst_bytes);
    Ok((bytes_per_second > 0).then_some(RateLimit { bytes_per_second, burst }))
}

fn read_text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).or_exit(Exit::General, format_args!("cannot read {}", path.display()))
}

fn now() -> Result<Time, Failure> {
    #[expect(clippy::disallowed_methods, reason = "a shell reads the clock: certificates are made for this time")]
    let now = std::time::SystemTime::now();
    let time = now.duration_since(std::time::UNIX_EPOCH).ok().and_then(|since| i64::try_from(since.as_secs()).ok());
    let time = time.and_then(|seconds| Time::from_unix(seconds, 0));
    time.ok_or_else(|| Failure::new(Exit::General, "this machine's clock is wrong; set it"))
}
