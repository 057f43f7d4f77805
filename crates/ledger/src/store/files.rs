//! The little that a store asks of a file system.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;

/// Is a folder of files that only grow at their end.
///
/// Names are plain: no separators. All errors are the system's.
pub trait Files {
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

    /// Appends bytes, and makes the file if it is not there. After an error any part of the bytes may be there.
    ///
    /// # Errors
    /// There is no room, for instance.
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Returns when everything that was appended, and the file's name, would survive a power cut.
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

/// Is a folder on disk. The folder is made if it is not there; files are for their owner alone.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Files that have been appended to.
    open: BTreeMap<String, File>,
}

impl Folder {
    /// Opens a folder.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&path)?;
        Ok(Self { path, open: BTreeMap::new() })
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl Files for Folder {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
                files.push((name, metadata.len()));
            }
        }
        Ok(files)
    }

    fn read(&self, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut file = File::open(self.path.join(name))?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        file.take(u64::try_from(length).unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        if !self.open.contains_key(name) {
            let mut options = OpenOptions::new();
            options.append(true).create(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            self.open.insert(name.to_owned(), options.open(self.path.join(name))?);
        }
        match self.open.get_mut(name) {
            Some(file) => file.write_all(bytes),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        match self.open.get(name) {
            Some(file) => file.sync_all()?,
            None => File::open(self.path.join(name))?.sync_all()?,
        }
        self.sync_folder()
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.path.join(name))?;
        file.set_len(length)?;
        file.sync_all()
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.open.remove(name);
        fs::remove_file(self.path.join(name))?;
        self.sync_folder()
    }
}
