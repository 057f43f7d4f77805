//! The thread that alone writes to the database.

use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;

use jiff::Timestamp;
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};
use warren_wire::control::NodeId;

use super::apply::{self, Entry};
use super::{OpenError, StoreError};
use crate::model::NodeState;

/// How many jobs may wait; whoever has one more waits for a place.
const QUEUE: usize = 1024;
/// How many jobs share one commit at most.
const GROUP: usize = 256;

/// Where a job's result goes.
pub(super) type Reply = oneshot::Sender<Result<(), StoreError>>;

/// Something to do with the database.
pub(super) enum Job {
    /// Audited changes, all or none.
    Apply { entries: Vec<Entry>, at: Timestamp, reply: Reply },
    /// What nodes reported.
    States { states: Vec<(NodeId, Arc<NodeState>)>, reply: Reply },
    /// Anything that reads.
    Read { read: Box<dyn FnOnce(&Connection) + Send>, reply: Reply },
}

/// Handle to the thread; dropping the last one ends it after what was queued.
pub(super) struct Writer {
    kind: Kind,
}

enum Kind {
    Thread {
        jobs: Option<mpsc::Sender<Job>>,
        thread: Option<JoinHandle<()>>,
    },
    #[cfg(test)]
    Inline(std::sync::Mutex<Connection>),
}

impl Writer {
    /// Starts the thread.
    pub(super) fn spawn(connection: Connection) -> Result<Self, OpenError> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || work(connection, queue))
            .map_err(|_| StoreError::Closed)?;
        Ok(Self { kind: Kind::Thread { jobs: Some(jobs), thread: Some(thread) } })
    }

    /// Makes a writer that works on the caller's thread.
    #[cfg(test)]
    pub(super) fn inline(connection: Connection) -> Self {
        Self { kind: Kind::Inline(std::sync::Mutex::new(connection)) }
    }

    /// Hands over a job and waits until it is durable.
    pub(super) async fn run(&self, job: impl FnOnce(Reply) -> Job) -> Result<(), StoreError> {
        let (reply, done) = oneshot::channel();
        match &self.kind {
            Kind::Thread { jobs, .. } => {
                let jobs = jobs.as_ref().ok_or(StoreError::Closed)?;
                jobs.send(job(reply)).await.map_err(|_| StoreError::Closed)?;
            }
            #[cfg(test)]
            Kind::Inline(connection) => {
                let mut connection = connection.lock().expect("no test panics while it holds the lock");
                group(&mut connection, vec![job(reply)]);
            }
        }
        done.await.map_err(|_| StoreError::Closed)?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        match &mut self.kind {
            Kind::Thread { jobs, thread } => {
                drop(jobs.take());
                if let Some(thread) = thread.take() {
                    // A panic of the thread was already printed.
                    let _ = thread.join();
                }
            }
            #[cfg(test)]
            Kind::Inline(_) => {}
        }
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

fn work(mut connection: Connection, mut queue: mpsc::Receiver<Job>) {
    let mut jobs = Vec::with_capacity(GROUP);
    while let Some(first) = queue.blocking_recv() {
        jobs.push(first);
        while jobs.len() < GROUP
            && let Ok(job) = queue.try_recv()
        {
            jobs.push(job);
        }
        group(&mut connection, std::mem::take(&mut jobs));
    }
}

/// Does `jobs` in one transaction, each in a savepoint of its own, and answers after the commit.
fn group(connection: &mut Connection, jobs: Vec<Job>) {
    let mut answers = Vec::with_capacity(jobs.len());
    let mut reads = Vec::new();
    let mut writes = Vec::new();
    for job in jobs {
        match job {
            Job::Read { read, reply } => reads.push((read, reply)),
            Job::Apply { .. } | Job::States { .. } => writes.push(job),
        }
    }
    if !writes.is_empty() {
        let committed = commit(connection, writes, &mut answers);
        if let Err(error) = &committed {
            tracing::error!(%error, "the database does not commit");
        }
        for (reply, result) in answers {
            // The asker may have gone away.
            let _ = reply.send(committed.clone().and(result));
        }
    }
    for (read, reply) in reads {
        read(connection);
        let _ = reply.send(Ok(()));
    }
}

fn commit(
    connection: &mut Connection,
    jobs: Vec<Job>,
    answers: &mut Vec<(Reply, Result<(), StoreError>)>,
) -> Result<(), StoreError> {
    let begun = connection.transaction_with_behavior(TransactionBehavior::Immediate);
    let mut transaction = match begun {
        Ok(transaction) => transaction,
        Err(error) => {
            answers.extend(jobs.into_iter().map(|job| (job.into_reply(), Ok(()))));
            return Err(error.into());
        }
    };
    for job in jobs {
        let result = transaction.savepoint().map_err(StoreError::from).and_then(|savepoint| {
            match &job {
                Job::Apply { entries, at, .. } => {
                    entries.iter().try_for_each(|entry| apply::entry(&savepoint, entry, *at))?;
                }
                Job::States { states, .. } => apply::states(&savepoint, states)?,
                // Reads do not come here.
                Job::Read { .. } => {}
            }
            savepoint.commit().map_err(StoreError::from)
        });
        answers.push((job.into_reply(), result));
    }
    transaction.commit().map_err(StoreError::from)
}

impl Job {
    fn into_reply(self) -> Reply {
        match self {
            Self::Apply { reply, .. } | Self::States { reply, .. } | Self::Read { reply, .. } => reply,
        }
    }
}
