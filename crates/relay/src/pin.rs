//! Certificates that clients know by their SHA-256.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use warren_wire::key::NodeKey;

use crate::certificate::META_PREFIX;

/// Returns the SHA-256 of `bytes` in lowercase hex digits.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a client demands of a relay's certificate instead of a chain to a known root.
#[derive(Debug)]
pub(crate) enum Demand {
    /// This SHA-256, in lowercase hex digits.
    Pin(String),
    /// Nothing; only for relays that the map marks as meant for tests.
    Nothing,
}

/// Verifies by [`Demand`].
#[derive(Debug)]
pub(crate) struct Verifier {
    pub(crate) demand: Demand,
    pub(crate) provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Demand::Pin(pin) = &self.demand else { return Ok(ServerCertVerified::assertion()) };
        // The relay proves that it holds the key of the first certificate; the others may only be meta certificates.
        if sha256_hex(end_entity) != *pin || !intermediates.iter().all(|certificate| is_meta(certificate)) {
            return Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Verifies a certificate by another name than the one that was asked for.
#[derive(Debug)]
pub(crate) struct Renamed {
    pub(crate) inner: Arc<dyn ServerCertVerifier>,
    pub(crate) name: ServerName<'static>,
}

impl ServerCertVerifier for Renamed {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.inner.verify_server_cert(end_entity, intermediates, &self.name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Tells whether a certificate carries a relay's key: its common name, a printable text, begins with the prefix.
fn is_meta(certificate: &CertificateDer<'_>) -> bool {
    after_prefix(certificate).is_some()
}

fn after_prefix<'a>(certificate: &'a CertificateDer<'_>) -> Option<&'a [u8]> {
    let at = certificate.windows(META_PREFIX.len()).position(|window| window == META_PREFIX.as_bytes())?;
    certificate.get(at + META_PREFIX.len()..)
}

/// What every meta certificate has after two lengths: version 3, and a serial number of one byte.
const SERIAL: [u8; 7] = [0xA0, 3, 2, 1, 2, 2, 1];

/// Returns the relay's key out of its meta certificate, if there is one in the chain.
///
/// Nobody has signed it; that it is the relay's is known from the handshake of TLS 1.3, which covers the whole chain.
pub(crate) fn meta_key(chain: &[CertificateDer<'_>]) -> Option<NodeKey> {
    let certificate = chain.iter().find(|certificate| is_meta(certificate))?;
    let at = certificate.windows(SERIAL.len()).take(16).position(|window| window == SERIAL)?;
    // The serial number is the protocol's version.
    certificate.get(at + SERIAL.len()).filter(|version| **version != 0)?;
    let digits = after_prefix(certificate)?.get(..64)?;
    NodeKey::from_hex(std::str::from_utf8(digits).ok()?).ok().filter(|key| !key.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::{SelfMade, meta_certificate};
    use proptest::prelude::*;
    use rustls::pki_types::pem::PemObject as _;
    use warren_wire::control::Time;

    fn meta(key: NodeKey) -> CertificateDer<'static> {
        meta_certificate(&key, Time::from_unix(1_795_348_800, 0).unwrap()).unwrap()
    }

    fn own() -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(SelfMade::generate("relay.test").unwrap().certificate_pem.as_bytes()).unwrap()
    }

    fn verify(pin: &str, chain: &[CertificateDer<'_>]) -> bool {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = Verifier { demand: Demand::Pin(pin.to_owned()), provider };
        let name = ServerName::try_from("relay.example").unwrap();
        let (own, others) = chain.split_first().unwrap();
        verifier.verify_server_cert(own, others, &name, &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn pinned_relay_shows_that_certificate_and_its_key_alone() {
        let (own, other, meta) = (own(), own(), meta(NodeKey::from_bytes([7; 32])));
        let pin = sha256_hex(&own);
        assert!(verify(&pin, &[own.clone(), meta.clone()]) && verify(&pin, std::slice::from_ref(&own)));
        assert!(!verify(&pin, &[other.clone(), meta.clone()]));
        assert!(!verify(&pin, &[other.clone(), own.clone(), meta.clone()]), "the pinned one must be proved");
        assert!(!verify(&pin, &[own.clone(), other]), "exactly one besides the meta certificate");
        assert!(!verify(&pin, &[meta, own]));
    }

    #[test]
    fn no_pin_and_half_a_pin_match_nothing() {
        let own = own();
        let pin = sha256_hex(&own);
        assert!(!verify("", std::slice::from_ref(&own)) && !verify(&pin[..32], std::slice::from_ref(&own)));
    }

    #[test]
    fn key_is_read_from_the_meta_certificate_wherever_it_stands() {
        let key = NodeKey::from_bytes([0xab; 32]);
        assert_eq!(meta_key(&[own(), meta(key)]), Some(key));
        assert_eq!(meta_key(&[own()]), None);
        assert_eq!(meta_key(&[meta(NodeKey::default())]), None, "no key");
    }

    proptest! {
        #[test]
        fn no_certificate_panics(at in 0_usize..400, byte: u8, length in 0_usize..400) {
            let mut bytes = meta(NodeKey::from_bytes([1; 32])).to_vec();
            if let Some(changed) = bytes.get_mut(at) {
                *changed = byte;
            }
            bytes.truncate(length);
            let _ = meta_key(&[CertificateDer::from(bytes)]);
        }
    }

    /// Official clients compare the name that they dialled, though they know the certificate by its hash.
    #[test]
    fn self_made_certificate_names_its_host() {
        for host in ["relay.example.com", "192.0.2.7", "2001:db8::7"] {
            let pem = SelfMade::generate(host).unwrap().certificate_pem;
            let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
            let parsed = rustls::server::ParsedCertificate::try_from(&der).unwrap();
            let names = |name: &'static str| {
                rustls::client::verify_server_name(&parsed, &ServerName::try_from(name).unwrap()).is_ok()
            };
            assert!(names(host), "{host}");
            assert!(!names("other.example.com"));
        }
    }
}
