//! The collector of flow logs: whose batches are taken, and what the node is told.
//!
//! A node proves once that it has its log key; the key stands in the node's record then, and in the audit log. Batches are
//! checked and stored by one thread (`keeper`), which puts those of many nodes on disk with one sync. What is wrong with a
//! chain is written down (`events`), and the node goes on behind it.

mod events;
mod keeper;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;
use warren_ledger::checkpoint::Verifier;
use warren_ledger::{Batch, LogKey, LogSecret, Signature};
use warren_wire::control::{LogKeyBinding, LogKeyRequest, LogKeyResponse, NodeId};
use warren_wire::flows::{Answer, Submission, Verdict};
use warren_wire::key::{MachineKey, NodeKey};

use crate::Control;
use crate::clock::Clock;
use crate::model::{NodeRecord, TailnetId, Who};
use crate::store::StoreError;
use crate::tailnet::work::Work;
use keeper::{Job, Keeper, Source};

pub(crate) use events::findings;

/// Submissions that may wait for the thread; whoever comes then is told to come again.
const QUEUE: usize = 1024;

/// Says why a flow log, or its key, is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlowsRefusal {
    /// The node key is not registered to this machine.
    #[error("this node is not registered")]
    UnknownNode,
    /// The tailnet does not want flow logs.
    #[error("flow logs are off in this network")]
    Off,
    /// The node has not made its log key known.
    #[error("make the key of the flow log known first")]
    NoKey,
    /// It is no key.
    #[error("this is no log key")]
    Key,
    /// The node does not prove that it has the key.
    #[error("the signature is not by that log key, for this node and server")]
    Signature,
    /// Another node has this key.
    #[error("another node has this log key; move the folder flow-log of this machine's state away")]
    Taken,
    /// Not now.
    #[error("the collector cannot take it now")]
    Later,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Tells which node has a node key, and whether it writes a flow log.
#[derive(Clone)]
pub(crate) struct Known(pub(crate) Arc<Look>);

/// What [`Known`] calls: the node, and whether it writes.
type Look = dyn Fn(&NodeKey) -> Option<(NodeId, bool)> + Send + Sync;

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Known(…)")
    }
}

/// Handle to the thread that keeps the flow logs, which starts when there is something to do.
#[derive(Debug)]
pub(crate) struct Collector {
    dir: PathBuf,
    seed: zeroize::Zeroizing<[u8; 32]>,
    key: LogKey,
    server: MachineKey,
    clock: Clock,
    known: Known,
    jobs: Mutex<Option<std::sync::mpsc::SyncSender<Job>>>,
}

impl Collector {
    /// Makes a collector of the folder `dir` that signs receipts with the key of this seed.
    pub(crate) fn new(dir: PathBuf, seed: [u8; 32], server: MachineKey, (clock, known): (Clock, Known)) -> Self {
        let key = LogSecret::from_seed(seed).public();
        Self { dir, seed: seed.into(), key, server, clock, known, jobs: Mutex::default() }
    }

    /// Returns the folder of all flow logs, and of what was found wrong with them.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the folder of the flow logs of a tailnet.
    pub(crate) fn folder(&self, tailnet: TailnetId) -> PathBuf {
        folder(&self.dir, tailnet)
    }

    /// Returns the name of the log of a tailnet, with the key that signs receipts.
    pub(crate) fn verifier(&self, tailnet: TailnetId) -> Option<Verifier> {
        verifier(&self.server, tailnet, self.key)
    }

    fn give(&self, job: Job) -> Result<(), FlowsRefusal> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = match &*jobs {
            Some(sender) => sender,
            None => {
                let (sender, receiver) = std::sync::mpsc::sync_channel(QUEUE);
                let secret = LogSecret::from_seed(*self.seed);
                let keeper = Keeper::new(self.dir.clone(), secret, self.server, (self.clock, self.known.clone()));
                let thread = std::thread::Builder::new().name("ledger".to_owned());
                if let Err(error) = thread.spawn(move || keeper.run(&receiver)) {
                    tracing::error!(%error, "there is no thread for the flow logs");
                    return Err(FlowsRefusal::Later);
                }
                jobs.insert(sender)
            }
        };
        match sender.try_send(job) {
            Ok(()) => Ok(()),
            Err(std::sync::mpsc::TrySendError::Full(_)) => Err(FlowsRefusal::Later),
            Err(std::sync::mpsc::TrySendError::Disconnected(_)) => {
                // It has failed in a way that it printed; the next one starts it again.
                *jobs = None;
                Err(FlowsRefusal::Later)
            }
        }
    }
}

fn folder(dir: &Path, tailnet: TailnetId) -> PathBuf {
    dir.join(format!("tailnet-{tailnet}"))
}

/// Names the log of a tailnet of a server; there is always a name, since it has neither spaces nor pluses.
fn verifier(server: &MachineKey, tailnet: TailnetId, key: LogKey) -> Option<Verifier> {
    let server = server.to_hex();
    Verifier::new(&format!("warren/{}/tailnet-{tailnet}", server.get(..16).unwrap_or_default()), key).ok()
}

/// Takes a node's log key.
pub(crate) async fn register(
    control: &Control,
    machine: MachineKey,
    request: &LogKeyRequest,
) -> Result<LogKeyResponse, FlowsRefusal> {
    let found = control.registered(&request.node_key).filter(|(_, known)| known.machine == machine);
    let (tailnet, known) = found.ok_or(FlowsRefusal::UnknownNode)?;
    if !tailnet.snapshot().tailnet.flow_log {
        return Err(FlowsRefusal::Off);
    }
    let log: [u8; 32] = request.log_key.0.as_slice().try_into().map_err(|_| FlowsRefusal::Key)?;
    let signature: [u8; 64] = request.signature.0.as_slice().try_into().map_err(|_| FlowsRefusal::Signature)?;
    let key = LogKey::from_bytes(log);
    let binding = LogKeyBinding { server: control.noise_key(), machine, node: request.node_key, log };
    if !key.verifies(&binding.message(), &Signature::from_bytes(signature)) {
        return Err(FlowsRefusal::Signature);
    }
    let collector = control.collector().await?;
    let text = key.to_string();
    let own = tailnet.snapshot().nodes.get(known.node).and_then(|node| node.record.log_key.clone());
    if own.as_ref() != Some(&text) {
        if is_taken(control, &text, known.node) {
            return Err(FlowsRefusal::Taken);
        }
        let change = move |work: &mut Work<'_>| {
            let node = work.state.nodes.get(known.node).cloned().ok_or(FlowsRefusal::UnknownNode)?;
            let record = NodeRecord { log_key: Some(text.clone()), ..(*node.record).clone() };
            work.put_node(&Who::machine(&machine), "node.log-key", &node, record);
            Ok::<_, FlowsRefusal>(())
        };
        tailnet.change(change).await?;
        if let Some(before) = own {
            let text = format!("the node has another log key than before: {before} was replaced by {key}");
            let source = Source { tailnet: tailnet.id, node: known.node, node_key: request.node_key, key };
            collector.give(Job::Note(source, "key.changed", text))?;
        }
    }
    Ok(LogKeyResponse { collector: collector.verifier(tailnet.id).ok_or(FlowsRefusal::Later)?.to_string() })
}

/// Tells whether another node of the server has that log key.
fn is_taken(control: &Control, key: &str, own: NodeId) -> bool {
    let has = |node: &NodeRecord| node.id != own && node.log_key.as_deref() == Some(key);
    control.tailnets().iter().any(|tailnet| tailnet.snapshot().nodes.iter().any(|node| has(&node.record)))
}

/// Stores what a node sends; answers when it is there for good.
pub(crate) async fn take(
    control: &Control,
    machine: MachineKey,
    submission: &Submission<'_>,
) -> Result<Answer, FlowsRefusal> {
    let found = control.registered(&submission.node).filter(|(_, known)| known.machine == machine);
    let (tailnet, known) = found.ok_or(FlowsRefusal::UnknownNode)?;
    let snapshot = tailnet.snapshot();
    let node = snapshot.nodes.get(known.node).ok_or(FlowsRefusal::UnknownNode)?;
    if !snapshot.tailnet.flow_log {
        return Err(FlowsRefusal::Off);
    }
    let key = node.record.log_key.as_deref().and_then(|key| key.parse().ok()).ok_or(FlowsRefusal::NoKey)?;
    let source = Source { tailnet: tailnet.id, node: known.node, node_key: submission.node, key };
    let collector = control.collector().await?;
    // What cannot be read is answered, too, in its place.
    let batches: Vec<_> = submission.batches.iter().map(|bytes| Batch::parse(bytes)).collect();
    let (reply, verdicts) = oneshot::channel();
    collector.give(Job::Store(source, batches, reply))?;
    let verdicts: Vec<Verdict> = verdicts.await.map_err(|_| FlowsRefusal::Later)?;
    Ok(Answer(verdicts))
}
