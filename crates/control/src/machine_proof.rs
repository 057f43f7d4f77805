//! Certificates of machines: what a registration must show for one to enrol the machine.
//!
//! The format is in `warren_wire::control::ProofBinding`. Whoever shows a certificate has to sign with its key for this
//! machine, this node key and this connection; then an authority that the tailnet enrolled must stand behind it now.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use sha2::{Digest as _, Sha256};
use warren_wire::control::{MACHINE_PROOF, ProofBinding, RegisterRequest, split_certificates};
use warren_wire::key::{ChallengeKey, MachineKey};
use webpki::aws_lc_rs as algorithms;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::model::{MachineCaRecord, MachineProof};
use crate::store::audit::hex;
use crate::tailnet::work::MachineCas;

/// Algorithms of proofs.
const OF_PROOFS: [&dyn SignatureVerificationAlgorithm; 4] = [
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::ED25519,
    algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
];
/// Longest certificate of an authority, in bytes.
const CA_MAX: usize = 8 << 10;

/// Says why a certificate does not enrol a machine; the text is shown to the person at the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ProofError {
    #[error("the machine's certificate cannot be read")]
    Form,
    #[error("the proof of the machine's certificate is not for this connection, machine and node")]
    Signature,
    #[error("no authority that this network enrolled issued the machine's certificate")]
    Issuer,
    #[error("the machine's certificate has expired, or does not hold yet; install a new one")]
    Time,
    #[error("the machine's certificate was revoked")]
    Revoked,
    #[error("the machine's certificate cannot be used: {0}")]
    Other(String),
}

/// A certificate whose key signed for this registration, with those that it names as issuers.
#[derive(Debug, Clone)]
pub(crate) struct ShownCertificate {
    own: CertificateDer<'static>,
    between: Vec<CertificateDer<'static>>,
}

/// Looks for a proof in a registration, and checks that it is for this one; `None` if there is none.
pub(crate) fn shown(
    request: &RegisterRequest,
    challenge: Option<ChallengeKey>,
    server: MachineKey,
    machine: MachineKey,
) -> Result<Option<ShownCertificate>, ProofError> {
    let kind = request.signature_type.as_ref().and_then(|kind| kind.read::<String>().ok());
    if kind.as_deref() != Some(MACHINE_PROOF) {
        return Ok(None);
    }
    let challenge = challenge.ok_or(ProofError::Signature)?;
    let certificates = &request.device_cert.0;
    let mut parts = split_certificates(certificates).ok_or(ProofError::Form)?.into_iter();
    let own = CertificateDer::from(parts.next().ok_or(ProofError::Form)?.to_vec());
    let between = parts.map(|part| CertificateDer::from(part.to_vec())).collect();
    let message = ProofBinding { challenge, server, machine, node: request.node_key }.message(certificates);
    let read = EndEntityCert::try_from(&own).map_err(|_| ProofError::Form)?;
    let signed = OF_PROOFS.iter().any(|with| read.verify_signature(*with, &message, &request.signature.0).is_ok());
    if signed { Ok(Some(ShownCertificate { own, between })) } else { Err(ProofError::Signature) }
}

impl ShownCertificate {
    /// Finds the authority behind it; `None` in a tailnet that has none and looks at no certificates.
    pub(crate) fn admit(&self, cas: &MachineCas, now: Timestamp) -> Result<Option<MachineProof>, ProofError> {
        let own = EndEntityCert::try_from(&self.own).map_err(|_| ProofError::Form)?;
        let serial = serial_number(&hex(own.serial()));
        let between = self.between.iter().filter_map(|certificate| EndEntityCert::try_from(certificate).ok());
        let serials: Vec<_> = between.map(|certificate| serial_number(&hex(certificate.serial()))).collect();
        let is_revoked =
            |ca: &MachineCaRecord| std::iter::once(&serial).chain(&serials).any(|one| ca.revoked.contains(one));
        let mut refused = None;
        for ca in cas.values() {
            let found = STANDARD.decode(&ca.certificate).map(CertificateDer::from).map_err(|_| ProofError::Form);
            match found.and_then(|root| self.verify(&own, &root, now)) {
                Ok(_) if ca.until <= now => refused = Some(ProofError::Time),
                // Whatever another authority says: it may be the same one, enrolled anew.
                Ok(_) if is_revoked(ca) => return Err(ProofError::Revoked),
                Ok(until) => {
                    return Ok(Some(MachineProof { ca: ca.id.clone(), serial, until: until.min(ca.until) }));
                }
                Err(ProofError::Issuer) => {}
                Err(error) => refused = Some(error),
            }
        }
        if cas.is_empty() { Ok(None) } else { Err(refused.unwrap_or(ProofError::Issuer)) }
    }

    /// Checks the way from the certificate to one authority and returns when the first certificate on it ends.
    fn verify(
        &self,
        own: &EndEntityCert<'_>,
        root: &CertificateDer<'_>,
        now: Timestamp,
    ) -> Result<Timestamp, ProofError> {
        let anchors = [anchor_from_trusted_cert(root).map_err(|_| ProofError::Form)?];
        let seconds = u64::try_from(now.as_second()).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let usage = KeyUsage::client_auth();
        own.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, &self.between, now, usage, None, None)
            .map_err(|error| reason(&error))?;
        let ends = std::iter::once(&self.own).chain(&self.between).map(|certificate| not_after(certificate));
        ends.min().flatten().ok_or(ProofError::Form)
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the library has fifty reasons, most of which nobody meets")]
fn reason(error: &webpki::Error) -> ProofError {
    match error {
        // Another authority may have the name of one that is enrolled, and a key of another kind.
        webpki::Error::UnknownIssuer
        | webpki::Error::InvalidSignatureForPublicKey
        | webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => ProofError::Issuer,
        webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => ProofError::Time,
        other => ProofError::Other(other.to_string()),
    }
}

/// Returns the one form of a serial number in hex digits: without zeros before it.
pub(crate) fn serial_number(digits: &str) -> String {
    digits.trim_start_matches('0').to_owned()
}

/// The certificate of an authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CaCertificate {
    /// The first 16 hex digits of its SHA-256.
    pub(crate) id: String,
    /// DER in base64.
    pub(crate) text: String,
    /// When it ends.
    pub(crate) until: Timestamp,
}

/// Reads the certificate of an authority, PEM; `None` if it is none, or not one alone.
pub(crate) fn read_ca(pem: &str) -> Option<CaCertificate> {
    let mut found = CertificateDer::pem_slice_iter(pem.as_bytes());
    let der = found.next()?.ok().filter(|der| der.len() <= CA_MAX)?;
    if found.next().is_some() {
        return None;
    }
    anchor_from_trusted_cert(&der).ok()?;
    let mut id = hex(&Sha256::digest(&der));
    id.truncate(16);
    Some(CaCertificate { id, text: STANDARD.encode(&der), until: not_after(&der)? })
}

/// Returns when a certificate ends. Source: RFC 5280, section 4.1.
fn not_after(der: &[u8]) -> Option<Timestamp> {
    let (_, certificate, _) = element(der)?;
    let (_, mut body, _) = element(certificate)?;
    // A version may stand before serial number, algorithm and issuer.
    if let Some((0xa0, _, rest)) = element(body) {
        body = rest;
    }
    for _ in 0..3 {
        (_, _, body) = element(body)?;
    }
    let (_, validity, _) = element(body)?;
    let (_, _, rest) = element(validity)?;
    let (kind, text, _) = element(rest)?;
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z').filter(|text| text.is_ascii())?;
    let (year, rest) = match kind {
        // UTCTime: 1950 to 2049.
        0x17 => {
            let (year, rest) = text.split_at_checked(2)?;
            (format!("{}{year}", if year < "50" { "20" } else { "19" }), rest)
        }
        0x18 => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.to_owned(), rest)
        }
        _ => return None,
    };
    let pair = |at: usize| rest.get(at..at + 2);
    let (month, day, hour, minute, second) = (pair(0)?, pair(2)?, pair(4)?, pair(6)?, pair(8)?);
    format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z").parse().ok()
}

/// Takes one element of DER off: its tag, what is in it, and what comes after it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [tag, length, rest @ ..] = der else { return None };
    let (length, rest) = match (length, rest) {
        (0..=0x7f, rest) => (usize::from(*length), rest),
        (0x81, [length, rest @ ..]) => (usize::from(*length), rest),
        (0x82, [high, low, rest @ ..]) => (usize::from(u16::from_be_bytes([*high, *low])), rest),
        _ => return None,
    };
    let (inside, after) = rest.split_at_checked(length)?;
    Some((*tag, inside, after))
}

#[cfg(test)]
mod tests;
