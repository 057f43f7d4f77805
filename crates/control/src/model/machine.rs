//! Machines that administrators enrolled.

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
}
