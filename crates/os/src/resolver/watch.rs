//! Learning that somebody else wrote the resolver's settings.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::SETTINGS;

/// Least time between two reports: whoever fights over the file with somebody else does so at leisure.
const SPACING: Duration = Duration::from_secs(1);

/// Watches `/etc/resolv.conf` for change, and the directory that it is in, where another file may take its name.
///
/// It says only *that* something happened there; our own changes are reported, too.
#[derive(Debug)]
pub struct SettingsWatch {
    watch: AsyncFd<OwnedFd>,
    path: PathBuf,
}

impl SettingsWatch {
    /// Starts to watch.
    ///
    /// # Errors
    /// Returns the kernel's error, for instance that there are too many watches.
    ///
    /// # Panics
    /// Panics outside a tokio runtime.
    pub fn new() -> io::Result<Self> {
        Self::of(Path::new(SETTINGS))
    }

    fn of(path: &Path) -> io::Result<Self> {
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        let flags = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::DELETE | WatchFlags::CREATE;
        inotify::add_watch(&watch, directory, flags)?;
        // SAFETY: `OwnedFd` owns an open descriptor, answers `as_raw_fd` with it always, and is never taken out of or
        // replaced inside the `AsyncFd`, so that the descriptor stays open and the same until both are dropped.
        let watch = unsafe { AsyncFd::register_with_interest(watch, Interest::READABLE)? };
        let settings = Self { watch, path: path.to_owned() };
        settings.look();
        Ok(settings)
    }

    /// Watches whatever has the name now; a file that is mounted here is written in another directory.
    fn look(&self) {
        // Without a file there is none to watch, and the directory says when there is one.
        let _ = inotify::add_watch(&self.watch, &self.path, WatchFlags::CLOSE_WRITE);
    }

    /// Waits until something happened, and then for a second in which more may.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub async fn changed(&mut self) -> io::Result<()> {
        self.watch.readable().await?.retain_ready();
        tokio::time::sleep(SPACING).await;
        loop {
            let mut ready = self.watch.readable().await?;
            let mut buffer = [0_u8; 4096];
            match ready.try_io(|watch| rustix::io::read(watch, &mut buffer).map_err(io::Error::from)) {
                Ok(Ok(_)) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => break,
            }
        }
        self.look();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_written_or_replaced_is_reported() {
        let dir = std::env::temp_dir().join(format!("warren-settings-watch-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("resolv.conf");
        let mut watch = SettingsWatch::of(&path).unwrap();
        std::fs::write(&path, "one").unwrap();
        watch.changed().await.unwrap();
        let beside = dir.join("other");
        std::fs::write(&beside, "two").unwrap();
        std::fs::rename(&beside, &path).unwrap();
        watch.changed().await.unwrap();
        let quiet = tokio::time::timeout(Duration::from_secs(60), watch.changed()).await;
        assert!(quiet.is_err(), "nothing happened since");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
