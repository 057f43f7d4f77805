//! Reading and writing accounts and the links that make them.

use rusqlite::{Connection, OptionalExtension};

use super::StoreError;
use crate::account::totp::Secret;
use crate::account::{AccountRecord, InvitationRecord, Secrets};

/// What conflicts when a link is gone.
pub(crate) const THE_LINK: &str = "the link";

/// Finds an account by its login name. What it has for when the second factor is lost is left out.
pub(crate) fn by_login(connection: &Connection, login: &str) -> Result<Option<(AccountRecord, Secrets)>, StoreError> {
    let mut statement =
        connection.prepare_cached("SELECT body, salt, password, totp, step FROM account WHERE login = ?1")?;
    let found = statement
        .query_row([login], |row| {
            let secrets = Secrets {
                salt: row.get(1)?,
                password: row.get(2)?,
                totp: Secret::from_bytes(row.get(3)?),
                step: row.get(4)?,
                recovery: Vec::new(),
            };
            Ok((row.get::<_, String>(0)?, secrets))
        })
        .optional()?;
    let Some((body, secrets)) = found else { return Ok(None) };
    Ok(Some((serde_json::from_str(&body).map_err(|_| StoreError::Encode)?, secrets)))
}

/// Finds a link, with the hash of its secret.
pub(crate) fn invitation(
    connection: &Connection,
    id: &str,
) -> Result<Option<(InvitationRecord, [u8; 32])>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT body, hash FROM invitation WHERE id = ?1")?;
    let found = statement.query_row([id], |row| Ok((row.get::<_, String>(0)?, row.get(1)?))).optional()?;
    let Some((body, hash)) = found else { return Ok(None) };
    Ok(Some((serde_json::from_str(&body).map_err(|_| StoreError::Encode)?, hash)))
}

/// Stores a link; another one of the same user works no more.
pub(super) fn put_invitation(
    connection: &Connection,
    record: &InvitationRecord,
    hash: &[u8; 32],
) -> Result<String, StoreError> {
    let body = super::apply::json(record)?;
    connection.prepare_cached("DELETE FROM invitation WHERE user = ?1")?.execute([record.user.0])?;
    connection
        .prepare_cached("INSERT INTO invitation (id, tailnet, user, hash, body) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute((&record.id, record.tailnet.0, record.user.0, hash, &body))?;
    Ok(body)
}

/// Uses a link up; fails if it is gone.
pub(super) fn use_invitation(connection: &Connection, id: &str) -> Result<String, StoreError> {
    let mut statement = connection.prepare_cached("DELETE FROM invitation WHERE id = ?1 RETURNING body")?;
    let body = statement.query_row([id], |row| row.get(0)).optional()?;
    body.ok_or(StoreError::Conflict { what: THE_LINK })
}

/// Stores a new account, in the place of one by that name that is nobody's any more.
pub(super) fn add(connection: &Connection, record: &AccountRecord, secrets: &Secrets) -> Result<String, StoreError> {
    let body = super::apply::json(record)?;
    connection
        .prepare_cached(
            "DELETE FROM account WHERE login = ?1 AND NOT EXISTS (SELECT 1 FROM user
             WHERE user.body ->> '$.identity.issuer' = 'local' AND user.body ->> '$.identity.subject' = account.id)",
        )?
        .execute([&record.login])?;
    connection
        .prepare_cached(
            "INSERT INTO account (id, login, body, salt, password, totp, step) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute((
            &record.id,
            &record.login,
            &body,
            secrets.salt,
            secrets.password,
            secrets.totp.expose(),
            secrets.step,
        ))?;
    let mut statement = connection.prepare_cached("INSERT INTO recovery_code (account, hash) VALUES (?1, ?2)")?;
    for hash in &secrets.recovery {
        statement.execute((&record.id, hash))?;
    }
    Ok(body)
}

/// Uses a code of the second factor up; fails if that one or a later one was used.
pub(super) fn use_step(connection: &Connection, account: &str, step: i64) -> Result<(), StoreError> {
    let changed = connection
        .prepare_cached("UPDATE account SET step = ?2 WHERE id = ?1 AND step < ?2")?
        .execute((account, step))?;
    super::apply::expect_one(changed, "the code")
}

/// Uses a code for when the second factor is lost up; fails if there is none such.
pub(super) fn use_recovery(connection: &Connection, account: &str, hash: &[u8; 32]) -> Result<(), StoreError> {
    let changed = connection
        .prepare_cached("DELETE FROM recovery_code WHERE account = ?1 AND hash = ?2")?
        .execute((account, hash))?;
    super::apply::expect_one(changed, "the code")
}
