//! Backup and restore: one file that holds everything, keys and certificates included.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, backup};

use crate::identity::{DATABASE, StateDir, private_file};
use crate::store::{OpenError, StoreError, schema};

/// Says why a backup was not restored; the state folder is as before then.
#[derive(Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The file is no backup, or is damaged.
    #[error("{} is no intact backup of a server", path.display())]
    NotABackup {
        /// The file.
        path: PathBuf,
    },
    /// The folder already holds a server's state.
    #[error("{} already holds a server's state; --force moves it aside", path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
    },
    /// The folder or the file cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// What to do with a state that is already there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Leave it and restore nothing.
    Refuse,
    /// Move it into a folder beside the restored database.
    MoveAside,
}

/// Copies the database of a server that is not running into the new file `to`.
///
/// # Errors
/// Fails if the folder is in use, holds no database, or `to` exists.
pub fn backup(state_dir: &Path, to: &Path) -> Result<(), OpenError> {
    let dir = StateDir::open(state_dir)?;
    if !dir.database().exists() {
        return Err(OpenError::DatabaseMissing { path: dir.database() });
    }
    let connection = Connection::open(dir.database()).map_err(StoreError::from)?;
    schema::check_ours(&connection)?;
    Ok(copy(&connection, to)?)
}

/// Copies a database that may be in use into the new file `to`, mode 0600.
pub(crate) fn copy(from: &Connection, to: &Path) -> Result<(), StoreError> {
    let failed = |error: io::Error| StoreError::File { path: to.to_owned(), error: error.kind() };
    private_file(to, OpenOptions::new().create_new(true)).map_err(failed)?;
    let copied = (|| {
        let mut target = Connection::open(to)?;
        {
            let copying = backup::Backup::new(from, &mut target)?;
            copying.run_to_completion(1024, Duration::ZERO, None)?;
        }
        // One file: a write-ahead log beside it would be a second one.
        target.pragma_update(None, "journal_mode", "DELETE")?;
        target.close().map_err(|(_, error)| error)?;
        Ok::<_, StoreError>(())
    })();
    if copied.is_err() {
        // What was written so far is no backup; it was made by us a moment ago.
        let _ = fs::remove_file(to);
    }
    copied?;
    File::open(to).and_then(|file| file.sync_all()).map_err(failed)
}

/// Makes the backup `from` the state of `state_dir`.
///
/// # Errors
/// [`RestoreError`]; nothing is mixed: either the folder is as before, or holds the backup alone.
pub fn restore(from: &Path, state_dir: &Path, existing: Existing) -> Result<(), RestoreError> {
    let not_a_backup = || RestoreError::NotABackup { path: from.to_owned() };
    let source = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|_| not_a_backup())?;
    let intact: String =
        source.pragma_query_value(None, "integrity_check", |row| row.get(0)).map_err(|_| not_a_backup())?;
    if intact != "ok" {
        return Err(not_a_backup());
    }
    schema::check_ours(&source)?;
    let identity = schema::identity(&source).map_err(OpenError::from)?.ok_or(OpenError::IdentityMissing)?;

    let dir = StateDir::open(state_dir)?;
    let failed = |error: io::Error| OpenError::Folder { path: state_dir.to_owned(), error: error.kind() };
    let old = STATE_FILES.iter().filter(|name| state_dir.join(name).exists()).collect::<Vec<_>>();
    if !old.is_empty() && existing == Existing::Refuse {
        return Err(RestoreError::Occupied { path: state_dir.to_owned() });
    }
    let fresh = state_dir.join("restored.db");
    if fresh.exists() {
        fs::remove_file(&fresh).map_err(failed)?;
    }
    copy(&source, &fresh).map_err(OpenError::from)?;
    if !old.is_empty() {
        let aside = free_folder(state_dir);
        DirBuilder::new().mode(0o700).create(&aside).map_err(failed)?;
        for name in old {
            fs::rename(state_dir.join(name), aside.join(name)).map_err(failed)?;
        }
    }
    dir.write_marker(identity.noise.public())?;
    fs::rename(&fresh, dir.database()).map_err(failed)?;
    File::open(state_dir).and_then(|folder| folder.sync_all()).map_err(failed)?;
    Ok(())
}

/// Files that belong together, in the order in which they are moved aside. Cut short at any point, the folder holds
/// no database but a marker of one, so that a server does not start on it.
const STATE_FILES: [&str; 4] = [DATABASE, "warren.db-wal", "warren.db-shm", "identity"];

/// Finds a name for the folder that keeps the former state.
fn free_folder(state_dir: &Path) -> PathBuf {
    let mut number = 1_u32;
    loop {
        let path = state_dir.join(format!("replaced-{number}"));
        if !path.exists() {
            return path;
        }
        number += 1;
    }
}
