//! Private directories, atomically written files, and the lock that keeps a second daemon out.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Says which file operation failed and how.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {step} {path}: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The directory belongs to somebody else, who could read or replace what is in it.
    #[error(
        "{path} belongs to user {owner}, not to user {us} who runs this: choose another directory with --state-dir"
    )]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Its owner's uid.
        owner: u32,
        /// Our uid.
        us: u32,
    },
}

/// Makes a directory, and its parents, that only this user can enter (mode 0700).
///
/// A directory that exists is closed to others; parents that exist are left alone. `path` may be a link to a directory
/// if this user or root made it: a stranger's link could lead us to close, and to fill, a directory of the system.
///
/// # Errors
/// See [`FileError`].
pub fn create_private_dir(path: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("create the directory", path))?;
    let us = rustix::process::geteuid().as_raw();
    let not_ours = |owner| FileError::NotOurs { path: path.to_owned(), owner, us };
    let named = fs::symlink_metadata(path).map_err(io_error("look at", path))?;
    if named.is_symlink() && named.uid() != us && named.uid() != 0 {
        return Err(not_ours(named.uid()));
    }
    // What is looked at is what is changed, whatever happens to the name meanwhile.
    let directory = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(path)
        .map_err(io_error("open the directory", path))?;
    let metadata = directory.metadata().map_err(io_error("look at", path))?;
    if metadata.uid() != us {
        return Err(not_ours(metadata.uid()));
    }
    if metadata.mode() & 0o077 != 0 {
        directory.set_permissions(Permissions::from_mode(0o700)).map_err(io_error("close to others", path))?;
    }
    Ok(())
}

/// Writes a file that only this user can read (mode 0600) so that it is there whole or not at all.
///
/// The bytes go to a temporary file beside it, to the disk, and only then under the name; when this returns, they
/// survive a power cut. An older file of that name is replaced. Two writers of the same file at the same time are the
/// caller's fault: the later wins, or one of them gets an error.
///
/// # Errors
/// See [`FileError`]; the old file, if any, is untouched then unless only the last step, making the directory durable,
/// failed.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = directory.join(name);
    // A left-over of an earlier crash may have any mode or be a link: make the file anew.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("remove", &temporary)(error));
        }
        _ => {}
    }
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()
    })();
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary);
        return Err(io_error("write", &temporary)(error));
    }
    fs::rename(&temporary, path).map_err(io_error("replace", path))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io_error("flush", directory))
}

/// Holds a lock file; the lock ends with the value or the process, however it ends.
#[derive(Debug)]
pub struct LockFile {
    _file: File,
}

/// Says why a lock was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process holds it.
    #[error("{path} is locked by another process{}: stop it first", .pid.map_or(String::new(), |pid| format!(" (pid {pid})")))]
    Held {
        /// The lock file.
        path: PathBuf,
        /// The holder, as it wrote itself into the file.
        pid: Option<u32>,
    },
    /// The lock file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
}

impl LockFile {
    /// Takes the lock at `path`, making the file if needed, without waiting.
    ///
    /// The file stays when the lock ends: removing it would let two processes hold two files of the same name. A link in
    /// its place is not followed.
    ///
    /// # Errors
    /// Returns [`LockError::Held`] when another process, or another value in this process, has it.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(io_error("open the lock file", path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let _ = file.take(16).read_to_string(&mut text);
                return Err(LockError::Held { path: path.to_owned(), pid: text.trim().parse().ok() });
            }
            Err(errno) => return Err(io_error("lock", path)(errno.into()).into()),
        }
        // The number only serves the message above; the lock holds without it.
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}

fn io_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Io { step, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("warren-os-{}-{name}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn directories_are_private_even_if_they_were_open_before() {
        let scratch = Scratch::new("dir");
        let path = scratch.0.join("a/b");
        create_private_dir(&path).unwrap();
        assert_eq!((mode(&path), mode(&scratch.0.join("a"))), (0o700, 0o700));
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        create_private_dir(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
    }

    #[test]
    fn a_file_in_the_place_of_the_directory_is_named_in_the_error() {
        let scratch = Scratch::new("notdir");
        let path = scratch.0.join("file");
        fs::write(&path, "x").unwrap();
        assert!(create_private_dir(&path).unwrap_err().to_string().contains("file"));
    }

    #[test]
    fn files_are_replaced_whole_and_private_whatever_lay_there() {
        let scratch = Scratch::new("file");
        let path = scratch.0.join("state.json");
        fs::write(&path, "old and longer").unwrap();
        let victim = scratch.0.join("victim");
        fs::write(&victim, "untouched").unwrap();
        std::os::unix::fs::symlink(&victim, scratch.0.join("state.json.new")).unwrap();
        write_private(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read(&victim).unwrap(), b"untouched");
        assert!(!scratch.0.join("state.json.new").exists());
    }

    #[test]
    fn a_strangers_link_is_not_followed_to_a_directory() {
        let scratch = Scratch::new("link");
        let (target, link) = (scratch.0.join("target"), scratch.0.join("link"));
        fs::create_dir(&target).unwrap();
        fs::set_permissions(&target, Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        if std::os::unix::fs::lchown(&link, Some(65_534), None).is_ok() {
            assert!(matches!(create_private_dir(&link), Err(FileError::NotOurs { owner: 65_534, .. })));
            assert_eq!(mode(&target), 0o755);
            fs::remove_file(&link).unwrap();
            std::os::unix::fs::symlink(&target, &link).unwrap();
        } else {
            println!("partly skipped: giving a file away needs root");
        }
        create_private_dir(&link).unwrap();
        assert_eq!(mode(&target), 0o700, "a link of ours is");
    }

    #[test]
    fn a_link_in_the_place_of_the_lock_is_not_followed() {
        let scratch = Scratch::new("locklink");
        let victim = scratch.0.join("victim");
        fs::write(&victim, "untouched").unwrap();
        std::os::unix::fs::symlink(&victim, scratch.0.join("lock")).unwrap();
        assert!(matches!(LockFile::acquire(&scratch.0.join("lock")), Err(LockError::File(_))));
        assert_eq!(fs::read(&victim).unwrap(), b"untouched");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let scratch = Scratch::new("fail");
        let path = scratch.0.join("state.json");
        fs::write(&path, "old").unwrap();
        fs::create_dir(scratch.0.join("state.json.new")).unwrap();
        assert!(write_private(&path, b"new").is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn a_lock_is_held_once_and_names_its_holder() {
        let scratch = Scratch::new("lock");
        let path = scratch.0.join("lock");
        let held = LockFile::acquire(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        let error = LockFile::acquire(&path).unwrap_err();
        assert!(matches!(error, LockError::Held { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
        drop(held);
        drop(LockFile::acquire(&path).unwrap());
    }
}
