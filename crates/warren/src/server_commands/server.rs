//! `warren server`: run it, save it, restore it.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use ipnet::IpNet;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use warren_control::admin_socket::{self, AdminRequest, CallError};
use warren_control::backup::{self, Existing, RestoreError};
use warren_control::server::{CertificateFiles, ConnectionLimits, Options, Server, StartError};
use warren_control::{OidcConfig, OpenError};

use crate::exit::{Exit, Failure, OrExit};
use crate::logging::Level;
use crate::output;
use crate::paths::Role;

/// Arguments of `warren server`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    serve: Serve,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// Arguments of the server itself.
#[derive(Debug, clap::Args)]
struct Serve {
    /// Directory of the state: keys, database, certificate.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where clients connect: plain HTTP, or TLS with --tls-cert.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The URL by which clients reach this server; made of --listen unless given.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Where the relay listens (TLS); port 8443 of --listen unless given, or --listen itself with --tls-cert.
    #[arg(long, value_name = "ADDRESS:PORT")]
    relay_listen: Option<SocketAddr>,
    /// Where STUN listens (UDP); port 3478 of --listen unless given.
    #[arg(long, value_name = "ADDRESS:PORT")]
    stun_listen: Option<SocketAddr>,
    /// Your own certificate chain, PEM. Without one the relay makes its own, and clients are told its hash.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// A proxy in front of this server whose X-Forwarded-For is believed. May be repeated.
    #[arg(long = "trusted-proxy", value_name = "ADDRESS[/BITS]", value_parser = network)]
    trusted_proxies: Vec<IpNet>,
    /// A file of identity providers with which people log in (TOML); see the README.
    #[arg(long, value_name = "FILE")]
    oidc: Option<PathBuf>,
    /// The domain below which every network has its names.
    #[arg(long, value_name = "DOMAIN", default_value = "warren.internal")]
    base_domain: String,
    /// Where `warren admin` connects.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print addresses, URL and key as one JSON object.
    #[arg(long)]
    json: bool,
    /// Let test programs without certificate checks use the relay.
    #[arg(long, hide = true)]
    relay_insecure_for_tests: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Save everything, keys included, into one file. The server may run.
    Backup {
        /// The file, which must not exist.
        file: PathBuf,
        /// Directory of the state, if the server does not run.
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
        /// The server's socket, if it runs.
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make a saved file the state of a server that does not run.
    Restore {
        /// The file.
        file: PathBuf,
        /// Directory of the state.
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
        /// Move a state that is already there aside.
        #[arg(long)]
        force: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

impl Arguments {
    pub(crate) fn log_level(&self) -> Level {
        if self.verb.is_none() { Level::Information } else { Level::Warnings }
    }

    pub(crate) fn run(self) -> Result<(), Failure> {
        match self.verb {
            None => serve(self.serve),
            Some(Verb::Backup { file, state_dir, socket, json }) => save(&file, state_dir, socket, json),
            Some(Verb::Restore { file, state_dir, force, json }) => restore(&file, state_dir, force, json),
        }
    }
}

/// Reads an address or a network.
fn network(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| "write an address such as 127.0.0.1, or a network such as 10.0.0.0/8".to_owned())
}

fn serve(arguments: Serve) -> Result<(), Failure> {
    crate::open_files::raise_limit();
    let json = arguments.json;
    let state_dir = arguments.state_dir.unwrap_or_else(|| Role::Server.state_dir());
    let socket = arguments.socket.unwrap_or_else(|| Role::Server.socket());
    let oidc = match &arguments.oidc {
        Some(file) => OidcConfig::read(file).or_exit(Exit::Usage, "cannot use the identity providers")?,
        None => OidcConfig::default(),
    };
    let options = Options {
        state_dir: state_dir.clone(),
        listen: arguments.listen,
        url: arguments.url,
        relay_listen: arguments.relay_listen,
        stun_listen: arguments.stun_listen,
        certificate: arguments.tls_cert.zip(arguments.tls_key).map(|(chain, key)| CertificateFiles { chain, key }),
        trusted_proxies: arguments.trusted_proxies,
        oidc,
        base_domain: arguments.base_domain,
        socket: socket.clone(),
        connections: ConnectionLimits::default(),
        relay_insecure_for_tests: arguments.relay_insecure_for_tests,
    };
    let runtime = tokio::runtime::Runtime::new().or_exit(Exit::General, "cannot start")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).or_exit(Exit::General, "cannot wait for signals")?;
        let mut interrupt = signal(SignalKind::interrupt()).or_exit(Exit::General, "cannot wait for signals")?;
        let server = tokio::select! {
            started = Server::start(options) => started.map_err(not_started)?,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        greet(&server, &state_dir, &socket, json)?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        server.stop().await;
        Ok(())
    })
}

/// Prints where the server is reached and what to do next.
fn greet(server: &Server, state_dir: &Path, socket: &Path, json: bool) -> Result<(), Failure> {
    let addresses = server.addresses();
    if json {
        return output::json(&json!({
            "url": server.url(),
            "server_key": server.key(),
            "listen": addresses.clients,
            "relay": addresses.relay.unwrap_or(addresses.clients),
            "stun": addresses.stun,
            "socket": socket,
            "state_dir": state_dir,
            "owner_link": server.owner_link(),
        }));
    }
    let relay = addresses.relay.map_or_else(|| "the same address".to_owned(), |relay| format!("{relay} (TLS)"));
    let owner = server
        .owner_link()
        .map(|link| format!("To be its owner, open this link, which works once, for three days:\n\x20 {link}\n"));
    let at = if socket == Role::Server.socket() { String::new() } else { format!(" --socket {}", socket.display()) };
    output::text(&format!(
        "warren server {version}\n\
         \x20 clients     {clients}, as {url}\n\
         \x20 relay       {relay}\n\
         \x20 STUN        {stun} (UDP)\n\
         \x20 server key  {key}\n\
         \x20 state       {state}\n\
         To add a machine, type on this one:\n\
         \x20 warren admin{at} auth-key create\n\
         {owner}",
        owner = owner.unwrap_or_default(),
        version = env!("CARGO_PKG_VERSION"),
        clients = addresses.clients,
        url = server.url(),
        stun = addresses.stun,
        key = server.key(),
        state = state_dir.display(),
    ))
}

fn not_started(error: StartError) -> Failure {
    let system = match &error {
        StartError::Listen { error, .. } => Some(error.kind()),
        StartError::State(OpenError::Folder { error, .. }) => Some(*error),
        StartError::CertificateFile { error, .. } => Some(error.kind()),
        StartError::State(_)
        | StartError::Url(_)
        | StartError::Certificate(_)
        | StartError::Roots(_)
        | StartError::Clock
        | StartError::Owner(_)
        | StartError::Store(_) => None,
    };
    let exit = if matches!(error, StartError::State(OpenError::InUse { .. })) || system == Some(ErrorKind::AddrInUse) {
        Exit::AlreadyRunning
    } else if system == Some(ErrorKind::PermissionDenied) {
        Exit::Permission
    } else if matches!(error, StartError::Url(_)) {
        Exit::Usage
    } else {
        Exit::General
    };
    Failure::new(exit, error)
}

/// Saves through the running server, or from the directory if none runs.
fn save(file: &Path, state_dir: Option<PathBuf>, socket: Option<PathBuf>, json: bool) -> Result<(), Failure> {
    let file = std::path::absolute(file).or_exit(Exit::Usage, "cannot use that file name")?;
    let asked_for_directory = state_dir.is_some();
    let state_dir = state_dir.unwrap_or_else(|| Role::Server.state_dir());
    let path = socket.unwrap_or_else(|| Role::Server.find_socket());
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::General, "cannot start")?;
    let request = AdminRequest::Backup { to: file.clone() };
    let saved = if asked_for_directory {
        Err(CallError::NotRunning(path))
    } else {
        runtime.block_on(admin_socket::call(&path, &request)).map(drop)
    };
    match saved {
        Ok(()) => {}
        Err(CallError::NotRunning(_)) => backup::backup(&state_dir, &file).map_err(|error| {
            if matches!(error, OpenError::InUse { .. }) {
                let advice = "name its socket with --socket, and it saves itself while it runs";
                return Failure::new(Exit::AlreadyRunning, format_args!("{error}: {advice}"));
            }
            Failure::new(Exit::General, error)
        })?,
        Err(error @ CallError::Permission(_)) => return Err(Failure::new(Exit::Permission, error)),
        Err(error) => return Err(Failure::new(Exit::General, error)),
    }
    if json {
        return output::json(&json!({ "file": file }));
    }
    output::line(format_args!("saved in {}; it holds the server's private keys, so keep it safe", file.display()))
}

fn restore(file: &Path, state_dir: Option<PathBuf>, force: bool, json: bool) -> Result<(), Failure> {
    let state_dir = state_dir.unwrap_or_else(|| Role::Server.state_dir());
    let existing = if force { Existing::MoveAside } else { Existing::Refuse };
    backup::restore(file, &state_dir, existing).map_err(|error| {
        if matches!(error, RestoreError::Open(OpenError::InUse { .. })) {
            return Failure::new(Exit::AlreadyRunning, format_args!("{error}: stop it first"));
        }
        Failure::new(Exit::General, error)
    })?;
    if json {
        return output::json(&json!({ "state_dir": state_dir }));
    }
    output::line(format_args!("restored into {}; start it with `warren server`", state_dir.display()))
}
