//! The relay's certificates: its own, made once or given by the operator, and the meta certificate that carries its key.
//!
//! Clients that see the meta certificate (common name `derpkey` and the relay's key) save a round trip; clients with a
//! pin look for the SHA-256 of the one other certificate. Source: Tailscale `derp/derphttp`, `cmd/derper/cert.go`.

use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, PKCS_ED25519, SerialNumber};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use warren_wire::control::Time;
use warren_wire::derp;
use warren_wire::key::NodeKey;
use zeroize::Zeroizing;

/// Common name of a meta certificate, in front of the relay's key.
pub(crate) const META_PREFIX: &str = "derpkey";

/// Days that a meta certificate is valid before and after it is made.
const META_DAYS: i64 = 30;

/// Says why a certificate cannot be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// Making one failed.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The text is not PEM, or holds something else.
    #[error("the {what} is not PEM of the right kind: {cause}")]
    Pem {
        /// Certificate or key.
        what: &'static str,
        /// What is wrong.
        cause: rustls::pki_types::pem::Error,
    },
    /// No certificate in the file.
    #[error("there is no certificate in the certificate file")]
    Empty,
    /// Certificate and key do not belong together, or the key is of an unknown kind.
    #[error("certificate and key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// A certificate chain and its private key, as PEM.
pub struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").field("certificates", &self.chain.len()).finish_non_exhaustive()
    }
}

/// A new certificate as it is stored: both parts PEM.
pub struct SelfMade {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: Zeroizing<String>,
}

impl std::fmt::Debug for SelfMade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SelfMade(…)")
    }
}

impl SelfMade {
    /// Makes a self-signed certificate for a relay that clients know as `host`, a name or an address. They find it by its
    /// hash, but official ones check the name besides.
    ///
    /// Source: Tailscale `net/tlsdial`, `SetConfigExpectedCertHash`.
    ///
    /// # Errors
    /// [`CertificateError::Make`], for instance if `host` cannot stand in a certificate.
    pub fn generate(host: &str) -> Result<Self, CertificateError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "warren-relay");
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2120, 1, 1);
        let certificate = params.self_signed(&key)?;
        Ok(Self { certificate_pem: certificate.pem(), key_pem: Zeroizing::new(key.serialize_pem()) })
    }
}

impl Certificate {
    /// Reads a chain (the relay's own certificate first) and a private key from PEM.
    ///
    /// # Errors
    /// [`CertificateError::Pem`] and [`CertificateError::Empty`].
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, CertificateError> {
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|cause| CertificateError::Pem { what: "certificate", cause })?;
        if chain.is_empty() {
            return Err(CertificateError::Empty);
        }
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|cause| CertificateError::Pem { what: "private key", cause })?;
        Ok(Self { chain, key })
    }

    /// Returns the SHA-256 of the first certificate in hex digits, the pin behind `sha256-raw:` in a relay map.
    #[must_use]
    pub fn pin(&self) -> String {
        self.chain.first().map(|certificate| crate::pin::sha256_hex(certificate)).unwrap_or_default()
    }

    /// Makes the TLS settings of a relay whose key is `relay`: TLS 1.2 and later, HTTP/1.1 alone, the meta certificate
    /// at the end of the chain. `now` dates the meta certificate.
    ///
    /// # Errors
    /// [`CertificateError::Unusable`] if certificate and key do not fit.
    pub fn server_config(&self, relay: &NodeKey, now: Time) -> Result<ServerConfig, CertificateError> {
        let mut chain = self.chain.clone();
        chain.push(meta_certificate(relay, now)?);
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, self.key.clone_key())?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// Returns midnight of the day that is `days` after `now`, as certificates date themselves.
macro_rules! date {
    ($now:expr, $days:expr) => {{
        let day = Time::from_unix($now.unix_seconds().saturating_add($days * 86_400), 0).unwrap_or($now).to_string();
        let number = |range: std::ops::Range<usize>| day.get(range).and_then(|digits| digits.parse().ok());
        let month = day.get(5..7).and_then(|digits| digits.parse().ok()).unwrap_or(1);
        let of_month = day.get(8..10).and_then(|digits| digits.parse().ok()).unwrap_or(1);
        rcgen::date_time_ymd(number(0..4).unwrap_or(2026), month, of_month)
    }};
}

/// Makes the certificate that carries the relay's key and the protocol's version.
pub(crate) fn meta_certificate(relay: &NodeKey, now: Time) -> Result<CertificateDer<'static>, CertificateError> {
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{META_PREFIX}{}", relay.to_hex()));
    params.serial_number = Some(SerialNumber::from(u64::from(derp::VERSION)));
    // macOS wants basic constraints, Windows wants dates.
    params.is_ca = IsCa::ExplicitNoCa;
    params.not_before = date!(now, -META_DAYS);
    params.not_after = date!(now, META_DAYS);
    Ok(params.self_signed(&key)?.der().clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_self_made_certificate_survives_storage_with_its_pin() {
        let made = SelfMade::generate("relay.test").unwrap();
        let one = Certificate::from_pem(&made.certificate_pem, &made.key_pem).unwrap();
        let two = Certificate::from_pem(&made.certificate_pem, &made.key_pem).unwrap();
        assert_eq!(one.pin(), two.pin());
        assert_eq!(one.pin().len(), 64);
        let now = Time::from_unix(1_795_348_800, 0).unwrap();
        let config = one.server_config(&NodeKey::from_bytes([7; 32]), now).unwrap();
        assert_eq!(config.alpn_protocols, [b"http/1.1".to_vec()]);
    }

    #[test]
    fn a_file_without_a_certificate_is_refused() {
        let made = SelfMade::generate("relay.test").unwrap();
        assert!(matches!(Certificate::from_pem("", &made.key_pem), Err(CertificateError::Empty)));
        assert!(Certificate::from_pem(&made.certificate_pem, "").is_err());
    }

    #[test]
    fn key_of_another_certificate_is_refused() {
        let (one, two) = (SelfMade::generate("relay.test").unwrap(), SelfMade::generate("relay.test").unwrap());
        let mixed = Certificate::from_pem(&one.certificate_pem, &two.key_pem).unwrap();
        let now = Time::from_unix(1_795_348_800, 0).unwrap();
        assert!(mixed.server_config(&NodeKey::from_bytes([7; 32]), now).is_err());
    }
}
