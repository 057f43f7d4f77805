//! Certificates of machines: what a registration must show for one to enrol the machine.
//!
//! The format is in `warren_wire::control::ProofBinding`. Whoever shows a certificate has to sign with its key for this
//! machine, this node key and this connection; then an authority that the tailnet enrolled must stand behind it now.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
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
    #[error("an administrator ended the enrolment of this machine, and alone can enrol it again")]
    Ended,
    #[error("this network has as many enrolled machines as it can have; an administrator has to remove some")]
    TooMany,
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
        let (mut admitted, mut refused) = (None, None);
        for ca in cas.values() {
            let found = STANDARD.decode(&ca.certificate).map(CertificateDer::from).map_err(|_| ProofError::Form);
            match found.and_then(|root| self.verify(&own, &root, now)) {
                // Whatever another authority says: it may be the same one, enrolled anew.
                Ok(_) if is_revoked(ca) => return Err(ProofError::Revoked),
                Ok(_) if ca.until <= now => refused = Some(ProofError::Time),
                Ok(until) => {
                    admitted.get_or_insert((ca.id.clone(), until.min(ca.until)));
                }
                Err(ProofError::Issuer) => {}
                Err(error) => refused = Some(error),
            }
        }
        match admitted {
            Some((ca, until)) => Ok(Some(MachineProof { ca, serial, between: serials, until })),
            None if cas.is_empty() => Ok(None),
            None => Err(refused.unwrap_or(ProofError::Issuer)),
        }
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

/// Tells whether two certificates, DER in base64, are of one authority: the same name with the same key.
pub(crate) fn is_same_authority(one: &str, other: &str) -> bool {
    let read = |text: &str| STANDARD.decode(text).map(CertificateDer::from).ok();
    let (Some(one), Some(other)) = (read(one), read(other)) else { return false };
    let (Ok(one), Ok(other)) = (anchor_from_trusted_cert(&one), anchor_from_trusted_cert(&other)) else { return false };
    one.subject == other.subject && one.subject_public_key_info == other.subject_public_key_info
}

/// Reads the certificate of an authority, PEM; `None` if it is none that may issue certificates, or not one alone.
pub(crate) fn read_ca(pem: &str) -> Option<CaCertificate> {
    let mut found = CertificateDer::pem_slice_iter(pem.as_bytes());
    let der = found.next()?.ok().filter(|der| der.len() <= CA_MAX)?;
    if found.next().is_some() {
        return None;
    }
    anchor_from_trusted_cert(&der).ok()?;
    if !may_issue(&der)? {
        return None;
    }
    let mut id = hex(&Sha256::digest(&der));
    id.truncate(16);
    Some(CaCertificate { id, text: STANDARD.encode(&der), until: not_after(&der)? })
}

/// Returns when a certificate ends. Source: RFC 5280, section 4.1.
fn not_after(der: &[u8]) -> Option<Timestamp> {
    let (_, validity, _) = element(from_validity(der)?)?;
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
    let at: DateTime = format!("{year}-{month}-{day}T{hour}:{minute}:{second}").parse().ok()?;
    // The last day of the year 9999, which says "never", is later than the latest time that we know.
    Some(at.to_zoned(TimeZone::UTC).map_or(Timestamp::MAX, |at| at.timestamp()))
}

/// Returns what stands in a certificate from its validity on. Source: RFC 5280, section 4.1.
fn from_validity(der: &[u8]) -> Option<&[u8]> {
    let (_, certificate, _) = element(der)?;
    let (_, mut body, _) = element(certificate)?;
    // A version may stand before serial number, algorithm and issuer.
    if let Some((0xa0, _, rest)) = element(body) {
        body = rest;
    }
    for _ in 0..3 {
        (_, _, body) = element(body)?;
    }
    Some(body)
}

/// Tells whether a certificate is one of an authority that may issue certificates to clients; `None` if it cannot be read.
/// Source: RFC 5280, sections 4.2.1.3, 4.2.1.9 and 4.2.1.12.
fn may_issue(der: &[u8]) -> Option<bool> {
    let mut rest = from_validity(der)?;
    // Validity, subject and key; identifiers that nobody uses any more may follow.
    for _ in 0..3 {
        (_, _, rest) = element(rest)?;
    }
    let mut list: &[u8] = &[];
    while !rest.is_empty() {
        let (tag, inside, after) = element(rest)?;
        if tag == 0xa3 {
            (_, list, _) = element(inside)?;
        }
        rest = after;
    }
    let (mut is_authority, mut signs, mut for_clients) = (false, true, true);
    while !list.is_empty() {
        let (_, extension, after) = element(list)?;
        list = after;
        let (_, id, mut value) = element(extension)?;
        if let Some((0x01, _, after)) = element(value) {
            value = after;
        }
        let (_, value, _) = element(value)?;
        match id {
            BASIC_CONSTRAINTS => {
                let (_, constraints, _) = element(value)?;
                is_authority = matches!(element(constraints), Some((0x01, [0xff], _)));
            }
            KEY_USAGE => {
                let (_, bits, _) = element(value)?;
                // After the number of unused bits; keyCertSign is the sixth from the left.
                signs = bits.get(1).is_some_and(|first| first & 0x04 != 0);
            }
            EXTENDED_KEY_USAGE => {
                let (_, mut purposes, _) = element(value)?;
                for_clients = false;
                while !purposes.is_empty() {
                    let (_, purpose, after) = element(purposes)?;
                    for_clients |= matches!(purpose, CLIENT_AUTH | ANY_PURPOSE);
                    purposes = after;
                }
            }
            _ => {}
        }
    }
    Some(is_authority && signs && for_clients)
}

/// 2.5.29.19.
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
/// 2.5.29.15.
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
/// 2.5.29.37.
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
/// 2.5.29.37.0.
const ANY_PURPOSE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];
/// 1.3.6.1.5.5.7.3.2.
const CLIENT_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];

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
