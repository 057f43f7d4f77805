//! Machines that administrators enrolled, and authorities that do it by certificates.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use warren_wire::key::MachineKey;

use super::TailnetId;

/// What is known of a machine that an administrator enrolled; it need not have joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// Its key.
    pub key: MachineKey,
    /// Tailnet that it may take part in.
    pub tailnet: TailnetId,
    /// What it is, in the words of whoever enrolled it; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// When it was enrolled.
    pub enrolled: Timestamp,
    /// The certificate that enrolled it, if one did, and not an administrator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<MachineProof>,
    /// When an administrator ended its enrolment: no certificate enrols it again from then on, only an administrator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
}

impl MachineRecord {
    /// Tells whether it is enrolled at `now`: a certificate ends by itself.
    #[must_use]
    pub fn holds_at(&self, now: Timestamp) -> bool {
        self.ended.is_none() && !self.has_run_out(now)
    }

    /// Tells whether it rests on a certificate that has ended by `now`.
    #[must_use]
    pub fn has_run_out(&self, now: Timestamp) -> bool {
        self.proof.as_ref().is_some_and(|proof| proof.until <= now)
    }
}

/// A certificate that a machine proved to hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineProof {
    /// ID of the authority.
    pub ca: String,
    /// Serial number of the certificate, in lowercase hex digits.
    pub serial: String,
    /// The same of the certificates between it and the authority.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub between: Vec<String>,
    /// When the first of the certificates that it rests on ends.
    pub until: Timestamp,
}

impl MachineProof {
    /// Tells whether it rests on the certificate of that serial number.
    #[must_use]
    pub fn rests_on(&self, serial: &str) -> bool {
        self.serial == serial || self.between.iter().any(|one| one == serial)
    }
}

/// An authority whose certificates enrol machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineCaRecord {
    /// The first 16 hex digits of the SHA-256 of its certificate.
    pub id: String,
    /// Tailnet whose machines it enrols.
    pub tailnet: TailnetId,
    /// Its certificate, DER in base64.
    pub certificate: String,
    /// What it is, in the words of whoever enrolled it; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// When it was enrolled.
    pub enrolled: Timestamp,
    /// When its certificate ends.
    pub until: Timestamp,
    /// Serial numbers of certificates that were taken back, in lowercase hex digits.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub revoked: BTreeSet<String>,
}
