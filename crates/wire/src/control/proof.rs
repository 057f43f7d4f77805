//! The proof that a machine holds a certificate: fields of a registration that official clients leave empty. Own to warren.
//!
//! `SignatureType` is [`MACHINE_PROOF`], `DeviceCert` the certificate and those between it and the authority, each in DER,
//! one after the other, and `Signature` signs [`ProofBinding::message`] with the certificate's key: ECDSA over P-256 with
//! SHA-256 or P-384 with SHA-384 (ASN.1), Ed25519, or RSA-PSS with SHA-256.

use crate::key::{ChallengeKey, MachineKey, NodeKey};

/// The `SignatureType`.
pub const MACHINE_PROOF: &str = "warren-machine-proof-1";
/// Most bytes of the certificates together.
pub const PROOF_CERTIFICATES_MAX_BYTES: usize = 16 << 10;
/// Most certificates.
pub const PROOF_CERTIFICATES_MAX: usize = 4;

/// Separates what is signed here from whatever else the certificate's key may sign.
const CONTEXT: &[u8] = b"warren machine proof 1\0";

/// What a proof is good for, and nothing else: one node key of one machine, on one connection to one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProofBinding {
    /// What the server sent at the beginning of this connection.
    pub challenge: ChallengeKey,
    /// The server.
    pub server: MachineKey,
    /// The machine.
    pub machine: MachineKey,
    /// The node key that is registered.
    pub node: NodeKey,
}

impl ProofBinding {
    /// Returns what is signed: 23 bytes of context, the four keys with 32 bytes each, the certificates.
    #[must_use]
    pub fn message(&self, certificates: &[u8]) -> Vec<u8> {
        let keys = [self.challenge.as_bytes(), self.server.as_bytes(), self.machine.as_bytes(), self.node.as_bytes()];
        let mut message = CONTEXT.to_vec();
        keys.into_iter().for_each(|key| message.extend_from_slice(key));
        message.extend_from_slice(certificates);
        message
    }
}

/// Takes certificates in DER apart that stand one after the other; `None` for anything else, none, or too many.
#[must_use]
pub fn split_certificates(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    if bytes.len() > PROOF_CERTIFICATES_MAX_BYTES {
        return None;
    }
    let mut certificates = Vec::new();
    while !bytes.is_empty() {
        // A SEQUENCE with its length in the long form of two bytes; one byte would be too few for a certificate.
        let [0x30, form, rest @ ..] = bytes else { return None };
        let (length, head) = match (form, rest) {
            (0x81, [length, ..]) => (usize::from(*length), 3),
            (0x82, [high, low, ..]) => (usize::from(u16::from_be_bytes([*high, *low])), 4),
            _ => return None,
        };
        let (certificate, after) = bytes.split_at_checked(head + length)?;
        certificates.push(certificate);
        bytes = after;
    }
    (1..=PROOF_CERTIFICATES_MAX).contains(&certificates.len()).then_some(certificates)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn certificate(length: u16) -> Vec<u8> {
        let [high, low] = length.to_be_bytes();
        let mut bytes = vec![0x30, 0x82, high, low];
        bytes.resize(usize::from(length) + 4, 7);
        bytes
    }

    #[test]
    fn certificates_are_taken_apart_and_nothing_is_left_over() {
        let (one, two) = (certificate(300), [&[0x30, 0x81, 200][..], &[9; 200]].concat());
        assert_eq!(split_certificates(&[one.clone(), two.clone()].concat()).unwrap(), [&one[..], &two[..]]);
        for wrong in [vec![], one[..303].to_vec(), [one.clone(), vec![0x30]].concat(), vec![0x30, 5, 1, 2, 3, 4, 5]] {
            assert_eq!(split_certificates(&wrong), None, "{wrong:?}");
        }
        assert_eq!(split_certificates(&one.repeat(5)), None, "too many");
        assert_eq!(split_certificates(&certificate(20_000)), None, "too long");
    }

    #[test]
    fn every_key_and_every_certificate_changes_the_message() {
        let binding = ProofBinding {
            challenge: ChallengeKey::from_bytes([1; 32]),
            server: MachineKey::from_bytes([2; 32]),
            machine: MachineKey::from_bytes([3; 32]),
            node: NodeKey::from_bytes([4; 32]),
        };
        let other = [
            ProofBinding { challenge: ChallengeKey::from_bytes([9; 32]), ..binding }.message(b"c"),
            ProofBinding { server: MachineKey::from_bytes([9; 32]), ..binding }.message(b"c"),
            ProofBinding { machine: MachineKey::from_bytes([9; 32]), ..binding }.message(b"c"),
            ProofBinding { node: NodeKey::from_bytes([9; 32]), ..binding }.message(b"c"),
            binding.message(b"d"),
        ];
        assert!(other.iter().all(|message| *message != binding.message(b"c")));
        assert_eq!(binding.message(b"c").len(), 23 + 4 * 32 + 1);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Some(parts) = split_certificates(&bytes) {
                prop_assert_eq!(parts.concat(), bytes);
            }
        }
    }
}
