//! The little that a store asks of a file system.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

/// Is a folder of files that can be read.
///
/// Names are plain: no separators. All errors are the system's.
pub trait Source {
    /// Returns the names of all files, in any order, with their lengths in bytes.
    ///
    /// # Errors
    /// The folder cannot be read.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;

    /// Reads up to `length` bytes from `offset` on; fewer at the end of the file.
    ///
    /// # Errors
    /// The file cannot be read.
    fn read(&self, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>>;
}

/// Is a folder of files that grow at their end, but for one, and that nobody else writes to meanwhile.
pub trait Files: Source {
    /// Appends bytes, and makes the file if it is not there. After an error any part of the bytes may be there.
    ///
    /// # Errors
    /// There is no room, for instance.
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Writes over bytes that are there. After an error any part of them may be the new ones.
    ///
    /// # Errors
    /// The disk fails, for instance.
    fn overwrite(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Returns when everything that was written, and the file's name, would survive a power cut.
    ///
    /// # Errors
    /// It would not.
    fn sync(&mut self, name: &str) -> io::Result<()>;

    /// Cuts a file to its first `length` bytes, for good.
    ///
    /// # Errors
    /// It is as it was.
    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()>;

    /// Removes a file, for good.
    ///
    /// # Errors
    /// It is there still.
    fn remove(&mut self, name: &str) -> io::Result<()>;
}

/// How many files are kept open.
const OPEN_MAX: usize = 16;

/// Is locked by whoever writes.
const LOCK: &str = "lock";

/// Is a folder on disk that this process writes to, and no other. The folder is made if it is not there; files are for
/// their owner alone.
#[derive(Debug)]
pub struct Folder {
    read: ReadFolder,
    /// Files that have been appended to, and whether the folder may not hold their names for good yet.
    open: BTreeMap<String, (File, bool)>,
    /// Files that have been written over; what appends cannot.
    over: BTreeMap<String, File>,
    /// Held as long as we are.
    _lock: File,
}

/// Is a folder on disk that is only read, also while another process writes to it.
#[derive(Debug, Clone)]
pub struct ReadFolder {
    path: PathBuf,
}

impl ReadFolder {
    /// Looks at a folder.
    ///
    /// # Errors
    /// It is not there.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        if fs::metadata(&path)?.is_dir() { Ok(Self { path }) } else { Err(io::ErrorKind::NotADirectory.into()) }
    }
}

impl Folder {
    /// Opens a folder, for this process alone.
    ///
    /// # Errors
    /// It cannot be made, or somebody has it open ([`io::ErrorKind::ResourceBusy`]).
    pub fn open(path: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&path)?;
        let lock = options().create(true).truncate(false).open(path.join(LOCK))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                let text = format!("{} is in use by another process; end that one first", path.display());
                io::Error::new(io::ErrorKind::ResourceBusy, text)
            }
            TryLockError::Error(error) => error,
        })?;
        // The folder itself must survive, too.
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_folder(parent)?;
        }
        Ok(Self { read: ReadFolder { path }, open: BTreeMap::new(), over: BTreeMap::new(), _lock: lock })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.read.path.join(name)
    }
}

/// Opens files to write, for their owner alone.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

impl Source for ReadFolder {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                // Whoever writes has removed it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
                files.push((name, metadata.len()));
            }
        }
        Ok(files)
    }

    fn read(&self, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut file = File::open(self.path.join(name))?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::with_capacity(length.min(1 << 20));
        file.take(u64::try_from(length).unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

impl Source for Folder {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.read.list()
    }

    fn read(&self, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.read.read(name, offset, length)
    }
}

impl Files for Folder {
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        if !self.open.contains_key(name) {
            if self.open.len() >= OPEN_MAX {
                // Those of earlier days.
                self.open.retain(|_, (_, is_new)| *is_new);
            }
            let mut options = options();
            let file = options.write(false).append(true).create(true).open(self.path(name))?;
            self.open.insert(name.to_owned(), (file, true));
        }
        match self.open.get_mut(name) {
            Some((file, _)) => file.write_all(bytes),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn overwrite(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if !self.over.contains_key(name) {
            let file = OpenOptions::new().write(true).open(self.path(name))?;
            self.over.insert(name.to_owned(), file);
        }
        let Some(file) = self.over.get_mut(name) else { return Err(io::ErrorKind::NotFound.into()) };
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(bytes)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        if let Some(file) = self.over.get(name) {
            return file.sync_data();
        }
        match self.open.get_mut(name) {
            Some((file, is_new)) => {
                file.sync_data()?;
                if *is_new {
                    sync_folder(&self.read.path)?;
                    *is_new = false;
                }
                Ok(())
            }
            None => {
                File::open(self.path(name))?.sync_all()?;
                sync_folder(&self.read.path)
            }
        }
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.path(name))?;
        file.set_len(length)?;
        file.sync_all()
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.open.remove(name);
        self.over.remove(name);
        fs::remove_file(self.path(name))?;
        sync_folder(&self.read.path)
    }
}
