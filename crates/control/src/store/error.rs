//! What goes wrong with the store.

use std::io;
use std::path::PathBuf;

/// Says why the server cannot use its state folder.
#[derive(Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The folder or a file in it cannot be used.
    #[error("cannot use {}: {error}", path.display())]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// What the system says.
        error: io::ErrorKind,
    },
    /// Another server runs on this folder.
    #[error("another server uses {}", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The folder belongs to a server whose database is gone.
    #[error("{} is missing, but this folder belongs to a server that had one; restore a backup, or use another folder", path.display())]
    DatabaseMissing {
        /// Where the database should be.
        path: PathBuf,
    },
    /// The database holds no server keys.
    #[error("the database holds no server identity; restore a backup")]
    IdentityMissing,
    /// The database and the `identity` file name different servers.
    #[error("the database belongs to another server than the file `identity` beside it")]
    OtherIdentity,
    /// The `identity` file holds no key.
    #[error("the file `identity` in the state folder is damaged")]
    Marker,
    /// The database was written by something else or by a newer program.
    #[error("the database has schema version {found}; this program knows versions up to {known}")]
    Version {
        /// Version of the database.
        found: i64,
        /// Newest version known here.
        known: i64,
    },
    /// The file is not a database of this program.
    #[error("the database file belongs to another program")]
    Foreign,
    /// The operating system gives no randomness.
    #[error("the operating system gives no randomness")]
    Randomness,
    /// The relay map names no relay.
    #[error("the relay map names no relay")]
    NoRelay,
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Says why something was not stored or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A record is not as the change presumes, or a value is taken.
    #[error("{what} is taken or not as expected")]
    Conflict {
        /// What conflicts.
        what: &'static str,
    },
    /// A record cannot be written as JSON.
    #[error("a record cannot be encoded")]
    Encode,
    /// SQLite failed.
    #[error("the database failed: {message} (code {code})")]
    Database {
        /// SQLite's extended result code.
        code: i32,
        /// SQLite's message.
        message: String,
    },
    /// A file could not be used.
    #[error("cannot use {}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::ErrorKind,
    },
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        if let rusqlite::Error::SqliteFailure(failure, _) = &error
            && failure.code == rusqlite::ErrorCode::ConstraintViolation
        {
            return Self::Conflict { what: "a value that must be unique" };
        }
        let code = error.sqlite_error().map_or(0, |failure| failure.extended_code);
        Self::Database { code, message: error.to_string() }
    }
}
