//! Real streams to a server: TCP, straight or through the environment's proxy, with TLS checked against the machine's trusted roots.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use warren_relay::dial;

use super::connect::{ConnectError, Connector, Stream};
use super::server_url::{Scheme, ServerUrl};

/// Opens streams over the network, exactly to scheme, host and port of the address.
#[derive(Debug, Clone, Default)]
pub struct Network;

impl Connector for Network {
    async fn connect(&self, url: &ServerUrl) -> Result<Box<dyn Stream>, ConnectError> {
        let unreachable = |source| ConnectError::Unreachable { url: url.to_string(), source };
        let is_tls = url.scheme() == Scheme::Https;
        let stream = match dial::through_proxy(url.host(), url.port(), is_tls).await {
            Some(stream) => stream.map_err(unreachable)?,
            None => {
                let unknown = |reason: String| ConnectError::NoSuchHost { host: url.host().to_owned(), reason };
                let found = dial::look_up(url.host(), url.port()).await.map_err(|error| unknown(error.to_string()))?;
                let addresses = dial::alternate(found);
                if addresses.is_empty() {
                    return Err(unknown("it has no address".to_owned()));
                }
                dial::race(addresses).await.map_err(unreachable)?
            }
        };
        match url.scheme() {
            Scheme::Http => Ok(Box::new(stream)),
            Scheme::Https => Ok(Box::new(with_tls(stream, url).await?)),
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
    use super::*;

    #[tokio::test]
    async fn a_name_that_cannot_exist_is_named() {
        let url = "http://no-such-host.invalid".parse().unwrap();
        let Err(error) = Network.connect(&url).await else { panic!("it was found") };
        assert!(error.to_string().contains("no-such-host.invalid"), "{error}");
    }
}
