//! Certificates that clients know by their SHA-256.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

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

/// Tells whether a certificate carries a relay's key: its common name, a printable text, begins with the prefix.
fn is_meta(certificate: &CertificateDer<'_>) -> bool {
    certificate.windows(META_PREFIX.len()).any(|window| window == META_PREFIX.as_bytes())
}
