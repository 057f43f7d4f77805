//! Reading versions of policies.

use rusqlite::{Connection, OptionalExtension, Row};

use super::StoreError;
use crate::model::TailnetId;

/// A version of a policy, as it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredPolicy {
    /// Number, from 1 on.
    pub(crate) version: u64,
    pub(crate) text: String,
    /// When it was set, RFC 3339; empty if nobody knows any more.
    pub(crate) at: String,
    /// Who set it; empty if nobody knows any more.
    pub(crate) author: String,
    /// Why; may be empty.
    pub(crate) reason: String,
}

/// Returns one version; `None` if there never was one of that number.
pub(crate) fn version(
    connection: &Connection,
    tailnet: TailnetId,
    version: u64,
) -> Result<Option<StoredPolicy>, StoreError> {
    let Ok(version) = i64::try_from(version) else { return Ok(None) };
    let mut statement = connection
        .prepare_cached("SELECT version, text, at, author, reason FROM policy WHERE tailnet = ?1 AND version = ?2")?;
    Ok(statement.query_row((tailnet.0, version), stored).optional()?)
}

/// Returns up to `limit` versions, the newest first.
pub(crate) fn newest(connection: &Connection, tailnet: TailnetId, limit: u32) -> Result<Vec<StoredPolicy>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT version, text, at, author, reason FROM policy WHERE tailnet = ?1 ORDER BY version DESC LIMIT ?2",
    )?;
    let rows = statement.query_map((tailnet.0, limit), stored)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn stored(row: &Row<'_>) -> rusqlite::Result<StoredPolicy> {
    Ok(StoredPolicy {
        version: row.get::<_, i64>(0)?.unsigned_abs(),
        text: row.get(1)?,
        at: row.get(2)?,
        author: row.get(3)?,
        reason: row.get(4)?,
    })
}
