//! What the collector found wrong, in a file of JSON lines that is bounded.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::identity::private_file;
use crate::model::TailnetId;

const FILE: &str = "events.jsonl";

/// From how many bytes on the file is put aside, in place of the one that was put aside before.
const FILE_BYTES: u64 = 8 << 20;

/// How many events a minute are written down; those beyond are counted.
const PER_MINUTE: u32 = 600;

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// When it was found.
    pub(crate) at: Timestamp,
    /// Number of the tailnet.
    pub(crate) tailnet: i64,
    /// Number of the node.
    pub(crate) node: i64,
    /// Its log key.
    pub(crate) log_key: String,
    /// The kind, a word that stays the same.
    pub(crate) what: String,
    /// The same for people.
    pub(crate) text: String,
    /// What proves it: the batch's header and signature in hex digits, for instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) evidence: Option<String>,
}

/// The file.
#[derive(Debug)]
pub(super) struct Events {
    path: PathBuf,
    minute: i64,
    count: u32,
    left_out: u64,
}

impl Events {
    pub(super) fn new(dir: &Path) -> Self {
        Self { path: dir.join(FILE), minute: 0, count: 0, left_out: 0 }
    }

    /// Writes an event down, and into the log.
    pub(super) fn note(&mut self, event: &Event) {
        let minute = event.at.as_second().div_euclid(60);
        if std::mem::replace(&mut self.minute, minute) != minute {
            if self.left_out > 0 {
                tracing::warn!(count = self.left_out, "findings about flow logs were too many to be written down");
            }
            (self.count, self.left_out) = (0, 0);
        }
        if self.count >= PER_MINUTE {
            self.left_out += 1;
            return;
        }
        self.count += 1;
        let Event { tailnet, node, what, text, .. } = event;
        tracing::warn!(tailnet, node, what, text, "a finding about a flow log");
        if let Err(error) = self.append(event) {
            tracing::error!(path = %self.path.display(), %error, "a finding about a flow log cannot be written down");
        }
    }

    fn append(&self, event: &Event) -> io::Result<()> {
        if fs::metadata(&self.path).is_ok_and(|file| file.len() >= FILE_BYTES) {
            fs::rename(&self.path, aside(&self.path))?;
        }
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        private_file(&self.path, OpenOptions::new().create(true).append(true))?.write_all(&line)
    }
}

/// Returns the newest findings about a tailnet, the newest first.
///
/// # Errors
/// The file is there and cannot be read.
pub(crate) fn findings(dir: &Path, tailnet: TailnetId, limit: usize) -> io::Result<Vec<Event>> {
    let path = dir.join(FILE);
    let mut found = Vec::new();
    for path in [path.clone(), aside(&path)] {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        // A crash may have left the beginning of a line.
        let events = text.lines().rev().filter_map(|line| serde_json::from_str::<Event>(line).ok());
        found.extend(events.filter(|event| event.tailnet == tailnet.0).take(limit.saturating_sub(found.len())));
    }
    Ok(found)
}

fn aside(path: &Path) -> PathBuf {
    path.with_extension("1.jsonl")
}
