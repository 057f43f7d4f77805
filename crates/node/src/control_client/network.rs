//! Real streams to a server: TCP, with TLS checked against the machine's trusted roots.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::connect::{ConnectError, Connector, Stream};
use super::server_url::{Scheme, ServerUrl};

/// How long one address of a host is tried before the next is tried beside it.
///
/// Source: RFC 8305 section 5.
const STAGGER: Duration = Duration::from_millis(250);

/// Most addresses of a host that are tried.
const MAX_ADDRESSES: usize = 8;

/// Opens streams over the network, exactly to scheme, host and port of the address.
#[derive(Debug, Clone, Default)]
pub struct Network;

impl Connector for Network {
    async fn connect(&self, url: &ServerUrl) -> Result<Box<dyn Stream>, ConnectError> {
        let unknown = |reason: String| ConnectError::NoSuchHost { host: url.host().to_owned(), reason };
        let found = lookup_host((url.host(), url.port())).await.map_err(|error| unknown(error.to_string()))?;
        let addresses = alternate(found);
        if addresses.is_empty() {
            return Err(unknown("it has no address".to_owned()));
        }
        let stream =
            race(addresses).await.map_err(|source| ConnectError::Unreachable { url: url.to_string(), source })?;
        // Control messages are small and waited for.
        let _ = stream.set_nodelay(true);
        match url.scheme() {
            Scheme::Http => Ok(Box::new(stream)),
            Scheme::Https => Ok(Box::new(with_tls(stream, url).await?)),
        }
    }
}

/// Puts addresses into the order of trying: the system's, with the families taking turns.
fn alternate(found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut found = found.peekable();
    let Some(family) = found.peek().map(SocketAddr::is_ipv6) else {
        return Vec::new();
    };
    let (first, second): (Vec<_>, Vec<_>) = found.partition(|address| address.is_ipv6() == family);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut order = Vec::new();
    while order.len() < MAX_ADDRESSES {
        let before = order.len();
        order.extend(first.next());
        order.extend(second.next());
        if order.len() == before {
            break;
        }
    }
    order
}

/// Connects to whichever address answers first; a later one starts when the one before fails or takes [`STAGGER`].
async fn race(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut attempts = JoinSet::new();
    let mut waiting = addresses.into_iter();
    let mut failed = io::ErrorKind::AddrNotAvailable.into();
    loop {
        let started = waiting.next().map(|address| attempts.spawn(TcpStream::connect(address)));
        let ended = match started {
            Some(_) => timeout(STAGGER, attempts.join_next()).await,
            None => Ok(attempts.join_next().await),
        };
        match ended {
            Ok(Some(Ok(Ok(stream)))) => return Ok(stream),
            Ok(Some(Ok(Err(error)))) => failed = error,
            Ok(Some(Err(error))) => failed = io::Error::other(error),
            Ok(None) => return Err(failed),
            Err(_) => {}
        }
    }
}

async fn with_tls(
    stream: TcpStream,
    url: &ServerUrl,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, ConnectError> {
    let failed = |reason: String| ConnectError::Tls { url: url.to_string(), reason, clock: false };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(BuilderVerifierExt::with_platform_verifier)
        .map_err(|error| failed(error.to_string()))?
        .with_no_client_auth();
    let name = ServerName::try_from(url.host().to_owned()).map_err(|error| failed(error.to_string()))?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| {
        let certificate = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let (advice, clock) = certificate.map_or(("", false), advice);
        ConnectError::Tls { url: url.to_string(), reason: format!("{error}{advice}"), clock }
    })
}

/// Returns what the user can do about a TLS error, and whether this machine's clock is a likely cause.
fn advice(error: &rustls::Error) -> (&'static str, bool) {
    use rustls::CertificateError as Certificate;
    if matches!(error, rustls::Error::InvalidMessage(_)) {
        return ("; what answers there does not speak TLS: is it an http:// address?", false);
    }
    let rustls::Error::InvalidCertificate(reason) = error else {
        return ("", false);
    };
    let clock = matches!(
        reason,
        Certificate::Expired
            | Certificate::ExpiredContext { .. }
            | Certificate::NotValidYet
            | Certificate::NotValidYetContext { .. }
    );
    if clock {
        ("; check this machine's clock (timedatectl), then the server's certificate", true)
    } else if *reason == Certificate::UnknownIssuer {
        (
            "; this machine does not trust who signed the certificate: add its CA to the system's trusted roots, \
             or start warren node with SSL_CERT_FILE=FILE",
            false,
        )
    } else {
        ("", false)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn families_take_turns_and_the_number_is_bounded() {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let found = parse(&["[::1]:1", "[::2]:1", "[::3]:1", "127.0.0.1:1"]);
        assert_eq!(alternate(found.into_iter()), parse(&["[::1]:1", "127.0.0.1:1", "[::2]:1", "[::3]:1"]));
        assert_eq!(alternate(std::iter::empty()), []);
        let many = (1..=100).map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        assert_eq!(alternate(many).len(), MAX_ADDRESSES);
    }

    #[tokio::test]
    async fn a_dead_address_does_not_hide_a_living_one() {
        let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let living = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = living.local_addr().unwrap();
        assert_eq!(race(vec![dead, address]).await.unwrap().peer_addr().unwrap(), address);
        assert_eq!(race(vec![dead]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn a_name_that_cannot_exist_is_named() {
        let url = "http://no-such-host.invalid".parse().unwrap();
        let Err(error) = Network.connect(&url).await else { panic!("it was found") };
        assert!(error.to_string().contains("no-such-host.invalid"), "{error}");
    }
}
