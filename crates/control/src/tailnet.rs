//! Tailnets: one task each that owns the state, and snapshots for everybody else.

pub(crate) mod access;
mod actor;
pub(crate) mod bounds;
mod compile;
pub(crate) mod facts;
pub(crate) mod filter;
pub(crate) mod nodes;
pub(crate) mod registry;
pub(crate) mod report;
pub(crate) mod snapshot;
mod ssh;
pub(crate) mod work;

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use warren_wire::control::{DerpMap, NodeId};
use warren_wire::key::NodeKey;

use crate::clock::Clock;
use crate::identity::StateDir;
use crate::model::TailnetId;
use crate::store::{LoadedTailnet, Store, StoreError};
use registry::Registry;
use report::Report;
use snapshot::Snapshot;
use work::Work;

pub(crate) use actor::lease_end;

/// How many commands may wait for a tailnet; whoever has one more waits for a place.
const QUEUE: usize = 1024;

/// What all tailnets of a server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) registry: Registry,
    pub(crate) base_domain: String,
    /// Unlocked last, when the store is closed.
    pub(crate) _dir: StateDir,
}

/// Handle to a tailnet; cheap to clone. The task ends when the last one is gone.
#[derive(Debug, Clone)]
pub(crate) struct Tailnet {
    pub(crate) id: TailnetId,
    pub(crate) name: Arc<str>,
    commands: mpsc::Sender<Command>,
    snapshots: Snapshots,
}

/// Where a tailnet's task shows its state.
#[derive(Debug, Clone)]
struct Snapshots {
    /// Each, as soon as it is there.
    all: watch::Receiver<Arc<Snapshot>>,
    /// The newest, but not more often than map streams need: what is told to a thousand nodes at once is told to them
    /// together, and made once where they see the same.
    paced: watch::Receiver<Arc<Snapshot>>,
}

/// Something for the task to do.
enum Command {
    /// A change that is stored before anybody sees it.
    Change(Box<dyn Change>),
    /// A map poll begins.
    Attach { node: NodeId, key: NodeKey, report: Report, reply: oneshot::Sender<Option<Attached>> },
    /// A node reports about itself.
    Update { node: NodeId, key: NodeKey, report: Report, reply: oneshot::Sender<Option<Updated>> },
    /// Other relays.
    SetDerp { derp: Arc<DerpMap>, reply: oneshot::Sender<()> },
    /// Everything that waits to be stored shall be.
    Flush { reply: oneshot::Sender<()> },
}

/// A map poll that was accepted.
#[derive(Debug)]
pub(crate) struct Attached {
    /// Resolves when a newer poll of the same node replaces this one.
    pub(crate) replaced: oneshot::Receiver<()>,
    /// Tells the task, when dropped, that the poll is over.
    pub(crate) guard: PollGuard,
}

/// What a report changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Updated {
    /// Name that the node should have by its new host name.
    pub(crate) rename: Option<String>,
}

impl Tailnet {
    /// Starts the task of a tailnet on the present runtime.
    pub(crate) fn start(shared: &Arc<Shared>, loaded: LoadedTailnet, derp: Arc<DerpMap>) -> Self {
        let (commands, queue) = mpsc::channel(QUEUE);
        let closed = Arc::new(Closed::default());
        let (id, name) = (loaded.record.id, Arc::from(loaded.record.name.as_str()));
        let (actor, snapshots) = actor::Actor::new(Arc::clone(shared), loaded, derp, closed);
        tokio::spawn(actor.run(queue));
        Self { id, name, commands, snapshots }
    }

    /// Returns the newest snapshot.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.all.borrow())
    }

    /// Returns the snapshots as they come, in the pace of map streams.
    pub(crate) fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.paced.clone()
    }

    /// Makes a change: `ask` checks it against the state and carries it out there, or refuses before it touched
    /// anything; the answer comes after it is stored and published.
    pub(crate) async fn change<T, E>(
        &self,
        ask: impl FnMut(&mut Work<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let asked = Asked { ask, result: None, reply };
        self.commands.send(Command::Change(Box::new(asked))).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Begins a map poll; `None` if the node is gone or has another key.
    pub(crate) async fn attach(
        &self,
        node: NodeId,
        key: NodeKey,
        report: Report,
    ) -> Result<Option<Attached>, StoreError> {
        self.ask(|reply| Command::Attach { node, key, report, reply }).await
    }

    /// Takes a report; `None` if the node is gone or has another key.
    pub(crate) async fn update(
        &self,
        node: NodeId,
        key: NodeKey,
        report: Report,
    ) -> Result<Option<Updated>, StoreError> {
        self.ask(|reply| Command::Update { node, key, report, reply }).await
    }

    /// Sets other relays.
    pub(crate) async fn set_derp(&self, derp: Arc<DerpMap>) -> Result<(), StoreError> {
        self.ask(|reply| Command::SetDerp { derp, reply }).await
    }

    /// Waits until everything that was reported is stored.
    pub(crate) async fn flush(&self) -> Result<(), StoreError> {
        self.ask(|reply| Command::Flush { reply }).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)
    }
}

/// A change on its way to the task.
trait Change: Send {
    /// Tries it on the state; tells whether it may be stored. May be called again on another state.
    fn run(&mut self, work: &mut Work<'_>) -> bool;
    /// Answers who asked for it.
    fn finish(self: Box<Self>, stored: Result<(), StoreError>);
}

struct Asked<F, T, E> {
    ask: F,
    result: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
}

impl<F, T, E> Change for Asked<F, T, E>
where
    F: FnMut(&mut Work<'_>) -> Result<T, E> + Send,
    T: Send,
    E: From<StoreError> + Send,
{
    fn run(&mut self, work: &mut Work<'_>) -> bool {
        let result = (self.ask)(work);
        let good = result.is_ok();
        self.result = Some(result);
        good
    }

    fn finish(self: Box<Self>, stored: Result<(), StoreError>) {
        let result = match (self.result, stored) {
            (Some(Err(refused)), _) => Err(refused),
            (_, Err(error)) => Err(error.into()),
            (Some(Ok(done)), Ok(())) => Ok(done),
            (None, Ok(())) => Err(StoreError::Closed.into()),
        };
        // The asker may have gone away.
        let _ = self.reply.send(result);
    }
}

/// Polls that ended and that the task has not seen yet; at most one for each poll that began.
#[derive(Debug, Default)]
struct Closed {
    list: Mutex<Vec<(NodeId, u64)>>,
    wake: Notify,
}

impl Closed {
    fn take(&self) -> Vec<(NodeId, u64)> {
        std::mem::take(&mut *self.list.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Tells the task that a poll is over when it is dropped.
#[derive(Debug)]
pub(crate) struct PollGuard {
    closed: Arc<Closed>,
    node: NodeId,
    generation: u64,
}

impl Drop for PollGuard {
    fn drop(&mut self) {
        let mut list = self.closed.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.push((self.node, self.generation));
        drop(list);
        self.closed.wake.notify_one();
    }
}
