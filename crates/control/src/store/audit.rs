//! The log of every change of the control plane: a hash chain.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::StoreError;
use crate::model::{TailnetId, Who};

/// One change, as the log shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditEntry {
    /// Number, from 1 on without gaps.
    pub seq: i64,
    /// When, RFC 3339.
    pub at: String,
    /// Tailnet, unless it concerns the whole server.
    pub tailnet: Option<TailnetId>,
    /// Who made the change.
    pub who: String,
    /// What was done, such as `node.create`.
    pub what: String,
    /// To which record, such as `node:12`.
    pub subject: String,
    /// The record before, as JSON text; `None` if it is new.
    pub before: Option<String>,
    /// The record afterwards, as JSON text; `None` if it is gone.
    pub after: Option<String>,
    /// ID of the credential that was shown, if one was.
    pub credential: Option<String>,
    /// Address that the call came from, if it came over the network.
    pub client: Option<String>,
    /// Hash of this entry, 64 hex digits.
    pub hash: String,
}

/// What following the chain found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum AuditVerdict {
    /// Every entry follows from the one before.
    Intact {
        /// Number of entries.
        entries: i64,
        /// Hash of the last one, 64 hex digits.
        head: String,
    },
    /// The first entry that does not follow from the one before.
    Broken {
        /// Its number.
        seq: i64,
    },
}

/// What is about to be appended.
pub(super) struct Fact<'a> {
    pub(super) at: Timestamp,
    pub(super) tailnet: Option<TailnetId>,
    pub(super) who: &'a Who,
    pub(super) what: &'a str,
    pub(super) subject: &'a str,
    pub(super) before: Option<&'a str>,
    pub(super) after: Option<&'a str>,
}

/// Appends one entry; the only statement that writes to the log.
pub(super) fn append(connection: &Connection, fact: &Fact<'_>) -> Result<(), StoreError> {
    let last: Option<(i64, [u8; 32])> = connection
        .prepare_cached("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (seq, prev) = last.map_or((1, [0; 32]), |(seq, hash)| (seq + 1, hash));
    let at = fact.at.to_string();
    let (credential, client) = (fact.who.credential(), fact.who.from().map(|from| from.to_string()));
    let hash = link(
        seq,
        &prev,
        &at,
        fact.tailnet.map(|id| id.0),
        [Some(fact.who.as_str()), Some(fact.what), Some(fact.subject), fact.before, fact.after],
        [credential, client.as_deref()],
    );
    connection
        .prepare_cached(
            "INSERT INTO audit (seq, at, tailnet, who, what, subject, before, after, prev, hash, credential, client)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?
        .execute((
            seq,
            &at,
            fact.tailnet.map(|id| id.0),
            fact.who.as_str(),
            fact.what,
            fact.subject,
            fact.before,
            fact.after,
            prev,
            hash,
            credential,
            client,
        ))?;
    Ok(())
}

/// Returns up to `limit` entries, the newest first, older than `before_seq` if given.
pub(crate) fn list(
    connection: &Connection,
    tailnet: Option<TailnetId>,
    before_seq: Option<i64>,
    limit: u32,
) -> Result<Vec<AuditEntry>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT seq, at, tailnet, who, what, subject, before, after, prev, hash, credential, client FROM audit
         WHERE (?1 IS NULL OR tailnet = ?1) AND (?2 IS NULL OR seq < ?2) ORDER BY seq DESC LIMIT ?3",
    )?;
    let rows = statement.query_map((tailnet.map(|id| id.0), before_seq, limit), entry)?;
    Ok(rows.map(|row| row.map(|(entry, _, _)| entry)).collect::<Result<_, _>>()?)
}

/// Returns up to `limit` entries of a tailnet from `start` up to `end` and after the number `after`, the oldest first.
pub(crate) fn between(
    connection: &Connection,
    tailnet: TailnetId,
    (start, end): (Timestamp, Timestamp),
    (after, limit): (i64, u32),
) -> Result<Vec<AuditEntry>, StoreError> {
    // Texts of times compare like times only up to the second, since the fraction may be absent.
    let mut statement = connection.prepare_cached(
        "SELECT seq, at, tailnet, who, what, subject, before, after, prev, hash, credential, client FROM audit
         WHERE tailnet = ?1 AND unixepoch(at, 'subsec') BETWEEN ?2 AND ?3 AND seq > ?4
         ORDER BY seq LIMIT ?5",
    )?;
    let seconds = |at: Timestamp| at.as_duration().as_secs_f64();
    let rows = statement.query_map((tailnet.0, seconds(start), seconds(end), after, limit), entry)?;
    Ok(rows.map(|row| row.map(|(entry, _, _)| entry)).collect::<Result<_, _>>()?)
}

/// Follows the chain from the first entry to the last.
pub(crate) fn verify(connection: &Connection) -> Result<AuditVerdict, StoreError> {
    let mut statement = connection
        .prepare("SELECT seq, at, tailnet, who, what, subject, before, after, prev, hash, credential, client FROM audit ORDER BY seq")?;
    let mut expected = (1, [0; 32]);
    for row in statement.query_map([], entry)? {
        let (entry, prev, hash) = row?;
        let computed = link(
            entry.seq,
            &prev,
            &entry.at,
            entry.tailnet.map(|id| id.0),
            [
                Some(&entry.who),
                Some(&entry.what),
                Some(&entry.subject),
                entry.before.as_deref(),
                entry.after.as_deref(),
            ],
            [entry.credential.as_deref(), entry.client.as_deref()],
        );
        if (entry.seq, prev) != expected || computed != hash {
            return Ok(AuditVerdict::Broken { seq: entry.seq });
        }
        expected = (entry.seq + 1, hash);
    }
    Ok(AuditVerdict::Intact { entries: expected.0 - 1, head: hex(&expected.1) })
}

/// Computes the hash of an entry: SHA-256 over the number, the hash before, and each text with its length; `by` only where
/// there is any of it, since older entries have none.
fn link(
    seq: i64,
    prev: &[u8; 32],
    at: &str,
    tailnet: Option<i64>,
    texts: [Option<&str>; 5],
    by: [Option<&str>; 2],
) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(seq.to_be_bytes());
    hash.update(prev);
    hash.update(tailnet.unwrap_or(-1).to_be_bytes());
    let by = by.into_iter().filter(|_| by.iter().any(Option::is_some));
    for text in std::iter::once(Some(at)).chain(texts).chain(by) {
        // A text that is absent differs from an empty one.
        hash.update([u8::from(text.is_some())]);
        let text = text.unwrap_or_default();
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    }
    hash.finalize().into()
}

type Linked = (AuditEntry, [u8; 32], [u8; 32]);

fn entry(row: &Row<'_>) -> rusqlite::Result<Linked> {
    let hash: [u8; 32] = row.get(9)?;
    let entry = AuditEntry {
        seq: row.get(0)?,
        at: row.get(1)?,
        tailnet: row.get::<_, Option<i64>>(2)?.map(TailnetId),
        who: row.get(3)?,
        what: row.get(4)?,
        subject: row.get(5)?,
        before: row.get(6)?,
        after: row.get(7)?,
        credential: row.get(10)?,
        client: row.get(11)?,
        hash: hex(&hash),
    };
    Ok((entry, row.get(8)?, hash))
}

/// Writes bytes as lowercase hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
