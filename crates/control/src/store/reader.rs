//! The thread that looks things up that nobody holds in memory, so that commits need not wait for it.

use std::fmt;
use std::path::Path;
use std::thread::JoinHandle;

use rusqlite::{Connection, OpenFlags};
use tokio::sync::{mpsc, oneshot};

use super::{OpenError, StoreError};

/// How many may wait; whoever comes then waits for a place.
const QUEUE: usize = 64;

type Job = Box<dyn FnOnce(&Connection) + Send>;

/// Handle to the thread; dropping it ends it after what was queued.
pub(super) struct Reader {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Opens the database once more, to read only, and starts the thread.
    pub(super) fn spawn(database: &Path) -> Result<Self, OpenError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(database, flags).map_err(StoreError::from)?;
        let settings = "PRAGMA query_only = ON; PRAGMA trusted_schema = OFF; PRAGMA busy_timeout = 5000;";
        connection.execute_batch(settings).map_err(StoreError::from)?;
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        let work = move || {
            while let Some(job) = queue.blocking_recv() {
                job(&connection);
            }
        };
        let thread =
            std::thread::Builder::new().name("store-reader".to_owned()).spawn(work).map_err(|_| StoreError::Closed)?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Runs `look` on the thread.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (send, receive) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // Nobody reads for whom is gone already.
            if !send.is_closed() {
                let _ = send.send(look(connection));
            }
        });
        self.jobs.as_ref().ok_or(StoreError::Closed)?.send(job).await.map_err(|_| StoreError::Closed)?;
        receive.await.map_err(|_| StoreError::Closed)?
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was already printed.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}
