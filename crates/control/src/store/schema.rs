//! Making, checking and migrating the database.

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use warren_wire::key::{MachineSecret, NodeSecret};
use zeroize::Zeroizing;

use super::{OpenError, StoreError};
use crate::identity::{Identity, StateDir};

/// The schema of a new database.
const SCHEMA: &str = include_str!("../../schema/sqlite.sql");
/// Version of [`SCHEMA`].
const VERSION: i64 = 9;
/// Marks the file as ours: "WRRN".
const APPLICATION_ID: i64 = 0x5752_524e;
/// Steps between versions: the statements that lead from the version before to this one.
const STEPS: &[(i64, &str)] = &[
    (2, include_str!("../../schema/step-2.sql")),
    (3, include_str!("../../schema/step-3.sql")),
    (4, include_str!("../../schema/step-4.sql")),
    (5, include_str!("../../schema/step-5.sql")),
    (6, include_str!("../../schema/step-6.sql")),
    (7, include_str!("../../schema/step-7.sql")),
    (8, include_str!("../../schema/step-8.sql")),
    (9, include_str!("../../schema/step-9.sql")),
];

/// Row of [`Identity::noise`].
const NOISE_KEY: &str = "noise_key";
/// Row of [`Identity::relay`].
const RELAY_KEY: &str = "relay_key";

/// Sets what each connection needs.
pub(crate) fn configure(connection: &Connection) -> Result<(), StoreError> {
    connection.execute_batch(
        "PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA foreign_keys = ON;
         PRAGMA trusted_schema = OFF;
         PRAGMA busy_timeout = 5000;",
    )?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// Tells whether the file is a new database.
pub(super) fn is_empty(connection: &Connection) -> Result<bool, OpenError> {
    let objects: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(StoreError::from)?;
    Ok(objects == 0)
}

/// Writes the schema and the server's keys in one transaction.
pub(super) fn create(connection: &mut Connection, identity: &Identity) -> Result<(), StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(SCHEMA)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    put_secret(&transaction, NOISE_KEY, identity.noise.to_storage_text().as_bytes())?;
    put_secret(&transaction, RELAY_KEY, identity.relay.to_storage_text().as_bytes())?;
    transaction.commit()?;
    Ok(())
}

/// Checks that the file is a database of this program.
pub(crate) fn check_ours(connection: &Connection) -> Result<i64, OpenError> {
    let read =
        |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(StoreError::from);
    if read("application_id")? != APPLICATION_ID {
        return Err(OpenError::Foreign);
    }
    let found = read("user_version")?;
    if !(1..=VERSION).contains(&found) {
        return Err(OpenError::Version { found, known: VERSION });
    }
    Ok(found)
}

/// Brings an older database to the present version, after keeping a copy of it.
pub(super) fn migrate(connection: &mut Connection, dir: &StateDir) -> Result<(), OpenError> {
    migrate_by(connection, dir, STEPS)
}

/// Applies those of `steps` that the database does not have yet.
pub(super) fn migrate_by(connection: &mut Connection, dir: &StateDir, steps: &[(i64, &str)]) -> Result<(), OpenError> {
    let found = check_ours(connection)?;
    let missing: Vec<_> = steps.iter().filter(|(to, _)| *to > found).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let snapshot = dir.path().join(format!("before-migration-from-{found}.db"));
    if !snapshot.exists() {
        crate::backup::copy(connection, &snapshot)?;
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(StoreError::from)?;
    for (to, statements) in missing {
        transaction.execute_batch(statements).map_err(StoreError::from)?;
        transaction.pragma_update(None, "user_version", to).map_err(StoreError::from)?;
    }
    transaction.commit().map_err(StoreError::from)?;
    Ok(())
}

/// Reads the server's keys; `None` if one is missing or damaged.
pub(crate) fn identity(connection: &Connection) -> Result<Option<Identity>, StoreError> {
    let text = |name| -> Result<Option<Zeroizing<String>>, StoreError> {
        let value = secret(connection, name)?;
        Ok(value.and_then(|value| String::from_utf8(value).ok()).map(Zeroizing::new))
    };
    let (Some(noise), Some(relay)) = (text(NOISE_KEY)?, text(RELAY_KEY)?) else {
        return Ok(None);
    };
    let (Ok(noise), Ok(relay)) = (MachineSecret::from_storage_text(&noise), NodeSecret::from_storage_text(&relay))
    else {
        return Ok(None);
    };
    Ok(Some(Identity { noise, relay }))
}

/// Reads a secret of the server.
pub(super) fn secret(connection: &Connection, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(connection.query_row("SELECT value FROM secret WHERE name = ?1", [name], |row| row.get(0)).optional()?)
}

/// Stores a secret of the server that is not there yet.
pub(super) fn put_secret(connection: &Connection, name: &str, value: &[u8]) -> Result<(), StoreError> {
    connection.execute("INSERT INTO secret (name, value) VALUES (?1, ?2)", (name, value))?;
    Ok(())
}
