//! The state folder and the server's own keys.
//!
//! The keys are rows of the database. Beside it lies `identity`, a file with the public Noise key: a database that
//! vanished, or that belongs to another server, is noticed instead of being replaced by a fresh identity, which no
//! client of the old one would ever accept.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use warren_wire::key::{MachineKey, MachineSecret, NodeSecret};

use crate::store::OpenError;

/// Name of the database file.
pub(crate) const DATABASE: &str = "warren.db";
/// Name of the file with the public Noise key.
const MARKER: &str = "identity";
/// Name of the file that a running server holds locked.
const LOCK: &str = "lock";

/// The keys of this server.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// Noise key, by which clients know the server.
    pub(crate) noise: MachineSecret,
    /// Key of the embedded relay.
    pub(crate) relay: NodeSecret,
}

/// The state folder, locked against a second server.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the folder if needed, corrects its mode and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |error: io::Error| OpenError::Folder { path: path.to_owned(), error: error.kind() };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed)?;
        let lock = private_file(&path.join(LOCK), OpenOptions::new().create(true)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => Err(OpenError::InUse { path: path.to_owned() }),
            Err(fs::TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Returns where the database is.
    pub(crate) fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    /// Returns the folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the public key that the marker file holds, or `None` if there is no such file.
    pub(crate) fn marker(&self) -> Result<Option<MachineKey>, OpenError> {
        match fs::read_to_string(self.path.join(MARKER)) {
            Ok(text) => match text.trim().parse() {
                Ok(key) => Ok(Some(key)),
                Err(_) => Err(OpenError::Marker),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(OpenError::Folder { path: self.path.join(MARKER), error: error.kind() }),
        }
    }

    /// Writes the marker file, whole or not at all.
    pub(crate) fn write_marker(&self, key: MachineKey) -> Result<(), OpenError> {
        let path = self.path.join(MARKER);
        let failed = |error: io::Error| OpenError::Folder { path: path.clone(), error: error.kind() };
        let fresh = self.path.join("identity.new");
        let mut file = private_file(&fresh, OpenOptions::new().create(true).truncate(true)).map_err(failed)?;
        writeln!(file, "{key}").map_err(failed)?;
        file.sync_all().map_err(failed)?;
        fs::rename(&fresh, &path).map_err(failed)?;
        File::open(&self.path).and_then(|folder| folder.sync_all()).map_err(failed)
    }

    /// Makes an empty file for the database with mode 0600 before SQLite opens it, whatever the umask says.
    pub(crate) fn prepare_database(&self) -> Result<(), OpenError> {
        let path = self.database();
        let failed = |error: io::Error| OpenError::Folder { path: path.clone(), error: error.kind() };
        private_file(&path, OpenOptions::new().create(true)).map_err(failed)?;
        // SQLite gives its side files the mode of the database; correct those of an older run, too.
        for suffix in ["-wal", "-shm"] {
            let side = self.path.join(format!("{DATABASE}{suffix}"));
            if side.exists() {
                fs::set_permissions(&side, Permissions::from_mode(0o600)).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// Opens a file for writing with mode 0600, whatever the umask says.
pub(crate) fn private_file(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let file = options.write(true).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}
