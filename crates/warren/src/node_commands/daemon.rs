//! `warren node`: the daemon.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;

use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use warren_node::control_client::{MachineCertificate, Network};
use warren_node::daemon::{Daemon, Ended};
use warren_node::engine::{self, StartError};
use warren_node::flow_log::FlowLog;
use warren_node::local_api::{self, ListenError};
use warren_node::state::{StateError, Store};
use warren_node::userspace::proxy;
use warren_os::FileError;
use warren_wire::key::DiscoSecret;

use crate::exit::{Exit, Failure, OrExit};
use crate::paths::Role;

/// Engine events that may wait for the daemon.
const EVENTS: usize = 64;

/// What `--help` adds.
const ENVIRONMENT: &str = "\
Environment:
  WARREN_LOG     what is logged, for example debug or warren_node=trace
  HTTPS_PROXY    http://[USER:PASSWORD@]HOST[:PORT] of the HTTP proxy through which relays and https servers are
                 reached; HTTP_PROXY likewise for http servers, NO_PROXY the hosts, domains and networks that are not
  SSL_CERT_FILE  certificates of the authorities that may vouch for an https server, instead of the system's
  TS_DEBUG_ENABLE_PMTUD
                 true or false: whether to find out how large packets the paths to peers carry, so that large ones do not
                 take a path that swallows them; without it the server's policy decides (attribute peer-mtu-enable)";

/// Arguments of `warren node`.
#[derive(Debug, Args)]
#[command(after_long_help = ENVIRONMENT)]
pub(crate) struct Node {
    /// Directory that holds the keys and settings of this machine.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Socket on which to listen for commands.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Name of the network interface to make, or userspace-networking for none: then no root is needed, peers reach the ports
    /// of 127.0.0.1 and ::1, and programs reach peers through --socks5-server or --outbound-http-proxy-listen.
    #[arg(long, value_name = "NAME", default_value = "warren0")]
    tun: String,
    /// UDP port for tunnels; 0 takes any free one. Without this option 41641, or any free one if that is taken.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Largest packet of the tunnel in bytes. More than 1280 is faster where every network between the machines carries
    /// packets of 80 bytes more; peers take them whatever they chose themselves.
    #[arg(long, value_name = "BYTES", default_value_t = engine::USUAL_MTU,
        value_parser = clap::value_parser!(u16).range(i64::from(engine::MTU_LIMITS.0)..=i64::from(engine::MTU_LIMITS.1)))]
    mtu: u16,
    /// Address at which peers find this machine besides those that it finds out by itself: for a port that its router
    /// forwards to it, for instance. May be given several times.
    #[arg(long = "static-endpoint", value_name = "ADDRESS:PORT", value_parser = static_endpoint)]
    static_endpoints: Vec<SocketAddr>,
    /// Certificate of this machine, PEM, with those between it and the authority after it. The server is shown it, and may
    /// let in only machines that have one (warren admin machines ca). It is read anew every hour.
    #[arg(long, value_name = "FILE", requires = "machine_key")]
    machine_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "machine_cert")]
    machine_key: Option<PathBuf>,
    /// Serve SOCKS5 on this address, for programs that are to reach the tailnet without a network interface.
    #[arg(long, value_name = "[HOST]:PORT", value_parser = proxy_address)]
    socks5_server: Option<SocketAddr>,
    /// Likewise an HTTP proxy; both may have one address.
    #[arg(long, value_name = "[HOST]:PORT", value_parser = proxy_address)]
    outbound_http_proxy_listen: Option<SocketAddr>,
    /// Move packets one by one, for kernels and network cards that do it wrong in large pieces.
    #[arg(long)]
    no_offload: bool,
}

/// The port that firewalls know.
const USUAL_PORT: u16 = 41641;

impl Node {
    /// Runs the daemon until a signal ends it.
    pub(super) async fn run(self) -> Result<(), Failure> {
        crate::open_files::raise_limit();
        let state_dir = self.state_dir.unwrap_or_else(|| Role::Node.state_dir());
        let socket = self.socket.unwrap_or_else(|| Role::Node.socket());
        let (store, state) = Store::open(&state_dir)?;
        if let Some(port) = self.port {
            // The engine makes do with another port; who named one has opened it in a firewall.
            free_port(port)?;
        }
        let proxies = proxies(self.socks5_server, self.outbound_http_proxy_listen).await?;
        let listener = local_api::listen(&socket)?;
        let (events, engine_events) = mpsc::channel(EVENTS);
        let offload = if self.no_offload { engine::Offload::Off } else { engine::Offload::Probe };
        let keeps_port = self.port.is_some_and(|port| port != 0);
        let port = self.port.unwrap_or(USUAL_PORT);
        let static_endpoints = self.static_endpoints;
        let probe_mtu = switch("TS_DEBUG_ENABLE_PMTUD");
        let options = engine::Options {
            interface: self.tun,
            port,
            mtu: self.mtu,
            offload,
            keeps_port,
            probe_mtu,
            static_endpoints,
        };
        let (flow_log, records) =
            FlowLog::start(state_dir.join("flow-log")).or_exit(Exit::General, "cannot start a thread")?;
        let engine = match engine::start(options, events, Some(records)).await {
            Ok(engine) => engine,
            Err(error) => {
                drop(std::fs::remove_file(&socket));
                return Err(error.into());
            }
        };
        if let Some(network) = engine.dialer().network() {
            let ports = proxies.iter().filter_map(|(listener, _)| listener.local_addr().ok());
            ports.for_each(|address| network.keep_port(address.port()));
        }
        let serve = |(listener, kind)| tokio::spawn(proxy::serve(listener, kind, engine.dialer().clone()));
        let proxies: Vec<_> = proxies.into_iter().map(serve).collect();
        let uid = rustix::process::geteuid().as_raw();
        let disco = DiscoSecret::generate().or_exit(Exit::General, "the system gives no randomness")?;
        let certificate = self.machine_cert.zip(self.machine_key);
        let certificate = certificate.map(|(certificate, key)| MachineCertificate { certificate, key });
        let dialer = engine.dialer().clone();
        let (daemon, mut shared) = Daemon::new(engine, Network, (store, state), disco, uid);
        let daemon = daemon.with_certificate(certificate).with_flow_log(flow_log.link());
        shared.dialer = Some(dialer);
        let serving = tokio::spawn(local_api::serve(listener, shared));
        tracing::info!(socket = %socket.display(), state = %state_dir.display(), "node is ready");
        let ended = daemon.run(engine_events, stopped()?).await;
        flow_log.finish().await;
        serving.abort();
        proxies.iter().for_each(tokio::task::JoinHandle::abort);
        drop(std::fs::remove_file(&socket));
        match ended {
            Ended::Asked => Ok(()),
            Ended::Engine(reason) => Err(Failure::new(
                Exit::General,
                format_args!("the tunnel cannot go on: {reason}; start the node again"),
            )),
        }
    }
}

/// Reads an address at which peers may find this machine.
fn static_endpoint(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "expected an address with a port, such as 203.0.113.5:41641 or [2001:db8::5]:41641".to_owned())?;
    if !engine::is_usable(address) {
        return Err("no peer can be found at this address".to_owned());
    }
    Ok(address)
}

/// Reads where a proxy listens; without a host that is this machine alone.
fn proxy_address(text: &str) -> Result<SocketAddr, String> {
    let full =
        if text.starts_with(':') { format!("127.0.0.1{text}") } else { text.replace("localhost:", "127.0.0.1:") };
    full.parse().map_err(|_| "expected an address with a port, such as 127.0.0.1:1055 or :1055".to_owned())
}

/// Opens the listeners of the wanted proxies.
async fn proxies(
    socks: Option<SocketAddr>,
    http: Option<SocketAddr>,
) -> Result<Vec<(TcpListener, proxy::Kind)>, Failure> {
    let wanted = match (socks, http) {
        (Some(socks), Some(http)) if socks == http => vec![(socks, proxy::Kind::Both)],
        (socks, http) => {
            let socks = socks.map(|address| (address, proxy::Kind::Socks5));
            socks.into_iter().chain(http.map(|address| (address, proxy::Kind::Http))).collect()
        }
    };
    let mut open = Vec::new();
    for (address, kind) in wanted {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            let text = format!("no proxy can listen on {address}: {error}; choose another address");
            Failure::new(
                if error.kind() == io::ErrorKind::AddrInUse { Exit::AlreadyRunning } else { of_io(&error) },
                text,
            )
        })?;
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "everybody who reaches this address gets into the tailnet as this machine");
        }
        open.push((listener, kind));
    }
    Ok(open)
}

/// Reads an environment variable of the official client that is true or false; others than these say nothing.
fn switch(name: &str) -> Option<bool> {
    match std::env::var(name).ok()?.as_str() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Fails if another program has the UDP port in either family.
fn free_port(port: u16) -> Result<(), StartError> {
    let unspecified: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    for address in unspecified {
        if let Err(error) = UdpSocket::bind((address, port))
            && error.kind() == io::ErrorKind::AddrInUse
        {
            return Err(StartError::PortBusy(port));
        }
    }
    Ok(())
}

/// Is ready when the system or a person asks for the end.
fn stopped() -> Result<impl Future<Output = ()>, Failure> {
    let mut interrupt = signal(SignalKind::interrupt()).or_exit(Exit::General, "cannot listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).or_exit(Exit::General, "cannot listen for signals")?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping");
    })
}

impl From<StateError> for Failure {
    #[expect(clippy::wildcard_enum_match_arm, reason = "every other kind has the general code")]
    fn from(error: StateError) -> Self {
        let exit = match &error {
            StateError::InUse(_) => Exit::AlreadyRunning,
            StateError::File(FileError::NotOurs { .. }) => Exit::Permission,
            StateError::File(FileError::Io { source, .. }) | StateError::Read { source, .. } => of_io(source),
            _ => Exit::General,
        };
        Self::new(exit, error)
    }
}

impl From<ListenError> for Failure {
    #[expect(clippy::wildcard_enum_match_arm, reason = "every other kind has the general code")]
    fn from(error: ListenError) -> Self {
        let exit = match &error {
            ListenError::InUse(_) => Exit::AlreadyRunning,
            ListenError::Io { source, .. } => of_io(source),
            _ => Exit::General,
        };
        Self::new(exit, error)
    }
}

fn of_io(error: &io::Error) -> Exit {
    if error.kind() == io::ErrorKind::PermissionDenied { Exit::Permission } else { Exit::General }
}

impl From<StartError> for Failure {
    #[expect(clippy::wildcard_enum_match_arm, reason = "every other kind has the general code")]
    fn from(error: StartError) -> Self {
        let exit = match error {
            StartError::NoTun => Exit::Unsupported,
            StartError::Permission(_) => Exit::Permission,
            StartError::InterfaceBusy(_) | StartError::PortBusy(_) => Exit::AlreadyRunning,
            _ => Exit::General,
        };
        Self::new(exit, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_listen_for_this_machine_unless_told_otherwise() {
        for (text, address) in [
            (":1055", "127.0.0.1:1055"),
            ("localhost:1055", "127.0.0.1:1055"),
            ("0.0.0.0:1055", "0.0.0.0:1055"),
            ("[::1]:1055", "[::1]:1055"),
        ] {
            assert_eq!(proxy_address(text).map(|address| address.to_string()), Ok(address.to_owned()));
        }
        for bad in ["", "1055", "127.0.0.1", ":x", "host:1"] {
            assert!(proxy_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_at_which_nobody_can_be_are_refused() {
        for good in ["203.0.113.5:41641", "[2001:db8::5]:1", "10.0.0.1:7"] {
            assert_eq!(static_endpoint(good).map(|address| address.to_string()), Ok(good.to_owned()));
        }
        for bad in ["203.0.113.5", "203.0.113.5:0", "0.0.0.0:5", "224.0.0.1:5", "100.64.0.1:5", "[::]:5", "host:5"] {
            assert!(static_endpoint(bad).is_err(), "{bad}");
        }
    }
}
