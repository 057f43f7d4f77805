//! The certificate by which this machine proves to the server that it may take part. Source: `warren_wire::control`,
//! `ProofBinding`.

use std::path::PathBuf;

use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use warren_wire::control::{Blob, ProofBinding, split_certificates};

/// How proofs are signed, whichever the key can.
const SCHEMES: [SignatureScheme; 4] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
];

/// Where the certificate and its key are. Both are read for every proof, so that renewed ones count by themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineCertificate {
    /// The certificate, and after it those between it and the authority; PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// A proof, as a registration carries it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Proof {
    pub(super) certificates: Blob,
    pub(super) signature: Blob,
}

impl MachineCertificate {
    /// Signs for one registration. Reads files.
    ///
    /// # Errors
    /// A text that says which file cannot be used, and why.
    pub(super) fn prove(&self, binding: &ProofBinding) -> Result<Proof, String> {
        let bad = |path: &PathBuf, reason: &dyn std::fmt::Display| {
            format!("the machine's certificate cannot be shown: {}: {reason}", path.display())
        };
        let found = CertificateDer::pem_file_iter(&self.certificate);
        let found: Result<Vec<_>, _> = found.and_then(Iterator::collect);
        let found = found.map_err(|error| bad(&self.certificate, &error))?;
        let certificates: Vec<u8> = found.iter().flat_map(|certificate| certificate.iter().copied()).collect();
        if split_certificates(&certificates).is_none() {
            return Err(bad(&self.certificate, &"it has to hold one to four certificates, 16 KiB together at most"));
        }
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| bad(&self.key, &error))?;
        let key = any_supported_type(&key).map_err(|error| bad(&self.key, &error))?;
        let signer =
            key.choose_scheme(&SCHEMES).ok_or_else(|| bad(&self.key, &"keys of this kind cannot sign here"))?;
        let signature = signer.sign(&binding.message(&certificates)).map_err(|error| bad(&self.key, &error))?;
        Ok(Proof { certificates: Blob(certificates), signature: Blob(signature) })
    }
}
