//! What must last: one SQLite database behind one writer thread.
//!
//! Every change of the control plane is an [`Entry`], and [`Store::apply`] is the only way to make one: it writes the
//! record and appends to the audit log in the same transaction. Transactions that wait at the same time share one
//! commit, that is one fsync (`synchronous=FULL`). What nodes report about themselves goes through
//! [`Store::save_states`] and is not audited.

pub(crate) mod accounts;
mod apply;
pub(crate) mod audit;
mod error;
mod load;
pub(crate) mod policies;
mod reader;
pub(crate) mod schema;
#[cfg(test)]
mod tests;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;
use rusqlite::Connection;
use warren_wire::control::{NodeId, UserId};
use warren_wire::key::{MachineSecret, NodeSecret};

pub(crate) use apply::{Change, Entry};
pub use error::{OpenError, StoreError};
pub use load::Quarantined;
pub(crate) use load::{Loaded, LoadedTailnet};

use crate::identity::{Identity, StateDir};
use crate::model::{NodeState, TailnetId};
use reader::Reader;
use writer::{Job, Writer};

/// Handle to the database; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    threads: Arc<Threads>,
    ids: Arc<Ids>,
}

/// Who works for it. The reader ends first, so that the last one to close the database may tidy it up.
#[derive(Debug)]
struct Threads {
    /// Absent in tests that have one thread.
    reader: Option<Reader>,
    writer: Writer,
}

/// The next free numbers.
#[derive(Debug)]
struct Ids {
    node: AtomicI64,
    user: AtomicI64,
    tailnet: AtomicI64,
}

impl Store {
    /// Opens the database of `dir`, making it and the server's keys on the first start.
    ///
    /// # Errors
    /// [`OpenError`] says what is wrong with the folder or the database; nothing is replaced then.
    pub(crate) fn open(dir: &StateDir) -> Result<(Self, Identity, Loaded), OpenError> {
        let (connection, identity) = open_connection(dir)?;
        let loaded = load::everything(&connection)?;
        let ids = Ids::read(&connection)?;
        let reader = Some(Reader::spawn(&dir.database())?);
        let threads = Threads { reader, writer: Writer::spawn(connection)? };
        let store = Self { threads: Arc::new(threads), ids: Arc::new(ids) };
        Ok((store, identity, loaded))
    }

    /// Opens the database like [`Store::open`], but works on the caller's thread: for tests that pause time.
    #[cfg(test)]
    pub(crate) fn open_inline(dir: &StateDir) -> Result<(Self, Identity, Loaded), OpenError> {
        let (connection, identity) = open_connection(dir)?;
        let loaded = load::everything(&connection)?;
        let ids = Ids::read(&connection)?;
        let threads = Threads { reader: None, writer: Writer::inline(connection) };
        let store = Self { threads: Arc::new(threads), ids: Arc::new(ids) };
        Ok((store, identity, loaded))
    }

    /// Takes a number for a new node.
    pub(crate) fn next_node(&self) -> NodeId {
        NodeId(self.ids.node.fetch_add(1, Ordering::Relaxed))
    }

    /// Takes a number for a new user.
    pub(crate) fn next_user(&self) -> UserId {
        UserId(self.ids.user.fetch_add(1, Ordering::Relaxed))
    }

    /// Takes a number for a new tailnet.
    pub(crate) fn next_tailnet(&self) -> TailnetId {
        TailnetId(self.ids.tailnet.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes all changes of `entries`, or none, and appends them to the audit log.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if a record is not as the change presumes; other variants if the disk fails.
    pub(crate) async fn apply(&self, entries: Vec<Entry>, at: Timestamp) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        self.threads.writer.run(|reply| Job::Apply { entries, at, reply }).await
    }

    /// Stores what nodes reported; a node that is gone is passed over.
    pub(crate) async fn save_states(&self, states: Vec<(NodeId, Arc<NodeState>)>) -> Result<(), StoreError> {
        if states.is_empty() {
            return Ok(());
        }
        self.threads.writer.run(|reply| Job::States { states, reply }).await
    }

    /// Runs `read` on the writer thread between two commits.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (send, receive) = tokio::sync::oneshot::channel();
        let read = Box::new(move |connection: &Connection| {
            // The caller may have gone away meanwhile.
            let _ = send.send(read(connection));
        });
        self.threads.writer.run(|reply| Job::Read { read, reply }).await?;
        receive.await.map_err(|_| StoreError::Closed)?
    }

    /// Runs `look`, which may take its time, on a connection of its own that cannot write; commits go on meanwhile.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        match &self.threads.reader {
            Some(reader) => reader.run(look).await,
            None => self.read(look).await,
        }
    }

    /// Returns the secret of that name, storing what `make` returns if there is none.
    pub(crate) async fn secret_or_insert(
        &self,
        name: String,
        make: impl FnOnce() -> Vec<u8> + Send + 'static,
    ) -> Result<Vec<u8>, StoreError> {
        self.read(move |connection| {
            if let Some(value) = schema::secret(connection, &name)? {
                return Ok(value);
            }
            let value = make();
            schema::put_secret(connection, &name, &value)?;
            Ok(value)
        })
        .await
    }

    /// Copies the whole database into the new file `to` while it is in use.
    pub(crate) async fn backup(&self, to: &Path) -> Result<(), StoreError> {
        let to = to.to_owned();
        self.read(move |connection| crate::backup::copy(connection, &to)).await
    }
}

impl Ids {
    fn read(connection: &Connection) -> Result<Self, StoreError> {
        let next = |table: &'static str| -> Result<AtomicI64, StoreError> {
            let last: i64 = connection.query_row(
                "SELECT COALESCE((SELECT seq FROM sqlite_sequence WHERE name = ?1), 0)",
                [table],
                |row| row.get(0),
            )?;
            Ok(AtomicI64::new(last + 1))
        };
        Ok(Self { node: next("node")?, user: next("user")?, tailnet: next("tailnet")? })
    }
}

/// Opens or makes the database and finds the server's keys in it.
fn open_connection(dir: &StateDir) -> Result<(Connection, Identity), OpenError> {
    let marker = dir.marker()?;
    let existed = dir.database().metadata().is_ok_and(|metadata| metadata.len() > 0);
    if !existed && marker.is_some() {
        return Err(OpenError::DatabaseMissing { path: dir.database() });
    }
    dir.prepare_database()?;
    let mut connection = Connection::open(dir.database()).map_err(StoreError::from)?;
    schema::configure(&connection)?;
    let fresh = schema::is_empty(&connection)?;
    if fresh && marker.is_some() {
        return Err(OpenError::DatabaseMissing { path: dir.database() });
    }
    let identity = if fresh {
        let identity = Identity {
            noise: MachineSecret::generate().map_err(|_| OpenError::Randomness)?,
            relay: NodeSecret::generate().map_err(|_| OpenError::Randomness)?,
        };
        schema::create(&mut connection, &identity)?;
        identity
    } else {
        schema::migrate(&mut connection, dir)?;
        schema::identity(&connection)?.ok_or(OpenError::IdentityMissing)?
    };
    match marker {
        Some(key) if key != identity.noise.public() => return Err(OpenError::OtherIdentity),
        Some(_) => {}
        None => dir.write_marker(identity.noise.public())?,
    }
    dir.prepare_database()?;
    Ok((connection, identity))
}
