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

impl AuditEntry {
    /// Returns how long its texts are, in bytes.
    pub(crate) fn len(&self) -> usize {
        let long = [&self.before, &self.after].into_iter().flatten();
        self.who.len() + self.subject.len() + long.map(String::len).sum::<usize>()
    }
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

/// Most bytes of texts that one look at the log brings; one entry more than that may be in it.
pub(crate) const READ_MAX: usize = 4 << 20;

/// The newest entries of a tailnet before a number.
pub(super) const NEWEST_OF: &str = "
    SELECT seq, at, tailnet, who, what, subject, before, after, prev, hash, credential, client FROM audit
    WHERE tailnet = ?1 AND seq < ?2 ORDER BY seq DESC LIMIT ?3";
/// The newest entries before a number.
const NEWEST: &str = "
    SELECT seq, at, tailnet, who, what, subject, before, after, prev, hash, credential, client FROM audit
    WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2";
/// The entries of a tailnet in a span of time. Texts of times compare like times only up to the second, since the fraction
/// may be absent: whole seconds bound what the index is asked for, the rest is looked at one by one.
pub(super) const BETWEEN: &str = "
    SELECT seq, at, tailnet, who, what, subject, before, after, prev, hash, credential, client FROM audit
    WHERE tailnet = ?1 AND at < ?2 AND (at, seq) > (?3, ?4) AND unixepoch(at, 'subsec') BETWEEN ?5 AND ?6
    ORDER BY at, seq LIMIT ?7";

/// Returns up to `limit` entries, the newest first, older than `before_seq` if given; fewer if they are long.
pub(crate) fn list(
    connection: &Connection,
    tailnet: Option<TailnetId>,
    before_seq: Option<i64>,
    limit: u32,
) -> Result<Vec<AuditEntry>, StoreError> {
    let before_seq = before_seq.unwrap_or(i64::MAX);
    // Two statements, for each to have its index.
    if let Some(tailnet) = tailnet {
        return some(connection.prepare_cached(NEWEST_OF)?.query_map((tailnet.0, before_seq, limit), entry)?);
    }
    some(connection.prepare_cached(NEWEST)?.query_map((before_seq, limit), entry)?)
}

/// Returns up to `limit` entries of a tailnet from `start` up to `end`, the oldest first; after the one of the number
/// `after` if that is given, and fewer if they are long.
pub(crate) fn between(
    connection: &Connection,
    tailnet: TailnetId,
    (start, end): (Timestamp, Timestamp),
    (after, limit): (Option<i64>, u32),
) -> Result<Vec<AuditEntry>, StoreError> {
    let last: Option<String> = match after {
        None => None,
        Some(after) => connection
            .prepare_cached("SELECT at FROM audit WHERE seq = ?1 AND tailnet = ?2")?
            .query_row((after, tailnet.0), |row| row.get(0))
            .optional()?,
    };
    let second = |at: Timestamp| at.strftime("%Y-%m-%dT%H:%M:%S").to_string();
    let beyond = end.checked_add(std::time::Duration::from_secs(1)).unwrap_or(Timestamp::MAX);
    let from = last.clone().unwrap_or_else(|| second(start)).max(second(start));
    let after = after.filter(|_| last.is_some()).unwrap_or(0);
    let mut statement = connection.prepare_cached(BETWEEN)?;
    let seconds = |at: Timestamp| at.as_duration().as_secs_f64();
    let wanted = (tailnet.0, second(beyond), from, after, seconds(start), seconds(end), limit);
    some(statement.query_map(wanted, entry)?)
}

/// Takes entries until they are long enough together.
fn some(rows: impl Iterator<Item = rusqlite::Result<Linked>>) -> Result<Vec<AuditEntry>, StoreError> {
    let (mut entries, mut bytes) = (Vec::new(), 0);
    for row in rows {
        let (entry, _, _) = row?;
        bytes += entry.len();
        entries.push(entry);
        if bytes >= READ_MAX {
            break;
        }
    }
    Ok(entries)
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
