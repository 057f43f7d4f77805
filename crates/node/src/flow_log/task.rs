//! The thread that keeps the flow log: it alone waits for the disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use warren_ledger::checkpoint::Verifier;
use warren_ledger::store::Folder;
use warren_ledger::{Record, Time};
use warren_wire::control::{Blob, CapabilityVersion, LOG_KEY_PATH, LogKeyBinding, LogKeyRequest, LogKeyResponse};
use warren_wire::control::{from_json, to_json};
use warren_wire::flows::{Answer, FLOWS_PATH, Submission};
use warren_wire::key::{MachineKey, NodeKey};

use super::scribe::{SPOOL_BYTES, Scribe};
use super::spool::COLLECTOR_BYTES_MAX;
use crate::engine::RecordSink;

/// Records that wait for the thread.
const QUEUE: usize = 8 * 1024;

/// Records that are taken at a time.
const AT_ONCE: usize = 512;

/// How long an answer may take until batches are gathered as if nobody answered.
const SILENCE: Duration = Duration::from_secs(1);

/// How long until the key is offered again to a server that did not take it.
const KEY_RETRY: Duration = Duration::from_secs(30);

/// How many folders of identities are kept; the least recently used goes first.
const FOLDERS: usize = 8;

/// Says for which identity the log is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The server.
    pub server: MachineKey,
    /// This machine.
    pub machine: MachineKey,
    /// This node's key.
    pub node: NodeKey,
    /// This node's ID at the server, which stays when the key changes.
    pub id: String,
}

/// Is the flow log's thread. It ends when nobody can give it records any more.
#[derive(Debug)]
pub struct FlowLog {
    link: Link,
    thread: JoinHandle<()>,
}

/// Says whether and for whom the log is kept, and carries what it asks of the server.
#[derive(Debug, Clone)]
pub struct Link {
    wanted: watch::Sender<Option<Place>>,
    /// What is asked of the server, for whoever has a connection.
    calls: Arc<Mutex<mpsc::Receiver<Call>>>,
}

/// Is a call to a server.
#[derive(Debug)]
pub(crate) struct Call {
    /// To whom; another must not get it.
    pub(crate) server: MachineKey,
    pub(crate) path: &'static str,
    pub(crate) body: Bytes,
    pub(crate) reply: oneshot::Sender<Reply>,
}

/// Is what became of a call.
#[derive(Debug)]
pub(crate) enum Reply {
    /// The body of an answer that says "well".
    Done(Bytes),
    /// The status of one that does not, and its text.
    Status(u16, String),
    /// There was none.
    Broken(String),
}

impl FlowLog {
    /// Starts the thread. Its files are in the folder `dir`, which is made when there is something to keep. The other value
    /// is for the engine.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(dir: PathBuf) -> io::Result<(Self, RecordSink)> {
        let (sender, records) = mpsc::channel(QUEUE);
        let (wanted, told) = watch::channel(None);
        let (asks, asked) = mpsc::channel(1);
        let is_wanted = Arc::new(AtomicBool::new(false));
        let sink = RecordSink { sender, is_wanted: Arc::clone(&is_wanted) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let keeper = Keeper { dir, asks, is_wanted, pen: None };
        let thread = std::thread::Builder::new()
            .name("flow-log".into())
            .spawn(move || runtime.block_on(keeper.run(records, told)))?;
        let link = Link { wanted, calls: Arc::new(Mutex::new(asked)) };
        Ok((Self { link, thread }, sink))
    }

    /// Returns what the daemon needs of it.
    #[must_use]
    pub fn link(&self) -> Link {
        self.link.clone()
    }

    /// Waits until everything is on disk, which is soon after the engine has ended.
    pub async fn finish(self) {
        let Self { link, thread } = self;
        drop(link);
        let joined = tokio::task::spawn_blocking(move || thread.join());
        if tokio::time::timeout(Duration::from_secs(5), joined).await.is_err() {
            tracing::warn!("the flow log does not come to its end");
        }
    }
}

impl Link {
    /// Says for whom the log is to be kept from now on; `None` for nobody.
    pub(crate) fn set(&self, place: Option<Place>) {
        self.wanted.send_if_modified(|present| {
            let changed = *present != place;
            if changed {
                *present = place;
            }
            changed
        });
    }

    /// Returns what is asked of the server.
    pub(crate) const fn calls(&self) -> &Arc<Mutex<mpsc::Receiver<Call>>> {
        &self.calls
    }

    /// Makes one of these calls.
    #[cfg(test)]
    pub(crate) fn of(calls: mpsc::Receiver<Call>) -> Self {
        Self { wanted: watch::Sender::new(None), calls: Arc::new(Mutex::new(calls)) }
    }
}

/// Is the task of the thread.
struct Keeper {
    dir: PathBuf,
    asks: mpsc::Sender<Call>,
    is_wanted: Arc<AtomicBool>,
    pen: Option<Pen>,
}

/// Keeps the log of one identity.
struct Pen {
    place: Place,
    scribe: Scribe<Folder>,
    /// The server has taken the key.
    is_known: bool,
    /// When the key is offered again.
    offer: Option<Instant>,
    asked: Option<Asked>,
}

struct Asked {
    kind: Kind,
    at: Instant,
    reply: oneshot::Receiver<Reply>,
}

#[derive(Clone, Copy)]
enum Kind {
    Key,
    Batches,
}

impl Keeper {
    async fn run(mut self, mut records: mpsc::Receiver<Record>, mut told: watch::Receiver<Option<Place>>) {
        let mut taken = Vec::with_capacity(AT_ONCE);
        let mut is_told = true;
        loop {
            let wake = self.pen.as_ref().and_then(Pen::poll_timeout);
            tokio::select! {
                count = records.recv_many(&mut taken, AT_ONCE) => {
                    if count == 0 {
                        break;
                    }
                    let (now, wall) = clocks();
                    match &mut self.pen {
                        Some(pen) => taken.drain(..).for_each(|record| pen.scribe.handle_record(record, now, wall)),
                        None => taken.clear(),
                    }
                }
                changed = told.changed(), if is_told => {
                    is_told = changed.is_ok();
                    if is_told {
                        let place = told.borrow_and_update().clone();
                        self.turn_to(place);
                    }
                }
                (kind, reply) = answer(self.pen.as_mut()) => {
                    if let Some(pen) = &mut self.pen {
                        pen.handle_reply(kind, reply);
                    }
                }
                () = until(wake) => {}
            }
            if let Some(pen) = &mut self.pen {
                pen.turn(&self.asks);
            }
        }
        self.put_away();
    }

    /// Ends the log that is kept, and begins that of `place`.
    fn turn_to(&mut self, place: Option<Place>) {
        if let (Some(pen), Some(place)) = (&mut self.pen, &place)
            && (pen.place.server, &pen.place.id) == (place.server, &place.id)
        {
            // Another node key: the same log, which the server is told again.
            pen.place = place.clone();
            (pen.is_known, pen.offer, pen.asked) = (false, None, None);
            pen.scribe.handle_failure(clocks().0);
            return;
        }
        self.put_away();
        let Some(place) = place else { return };
        match open(&self.dir, &place) {
            Ok(scribe) => {
                tracing::info!(key = %scribe.key(), "connections are written down for the server");
                self.is_wanted.store(true, Ordering::Relaxed);
                self.pen = Some(Pen { place, scribe, is_known: false, offer: None, asked: None });
            }
            Err(error) => {
                tracing::error!(dir = %self.dir.display(), %error, "the flow log cannot be kept; see to the folder and start again");
            }
        }
    }

    fn put_away(&mut self) {
        if let Some(mut pen) = self.pen.take() {
            let (now, wall) = clocks();
            pen.scribe.finish(now, wall);
        }
    }
}

impl Pen {
    fn poll_timeout(&self) -> Option<Instant> {
        let silence = self.asked.as_ref().filter(|_| !self.scribe.is_away()).map(|asked| asked.at + SILENCE);
        [self.scribe.poll_timeout(), self.offer, silence].into_iter().flatten().min()
    }

    /// Does what is due, and asks what is to be asked.
    fn turn(&mut self, asks: &mpsc::Sender<Call>) {
        let (now, wall) = clocks();
        self.scribe.handle_timeout(now, wall);
        if self.offer.is_some_and(|offer| offer <= now) {
            self.offer = None;
        }
        if self.asked.as_ref().is_some_and(|asked| asked.at + SILENCE <= now) {
            self.scribe.handle_silence();
        }
        if self.asked.is_some() || self.offer.is_some() {
            return;
        }
        let (kind, path, body) = if self.is_known {
            let Some(batches) = self.scribe.poll_submission(now) else { return };
            let batches = batches.iter().map(Vec::as_slice).collect();
            (Kind::Batches, FLOWS_PATH, Submission { node: self.place.node, batches }.encode())
        } else {
            let Ok(body) = to_json(&self.key_request()) else { return };
            (Kind::Key, LOG_KEY_PATH, body)
        };
        let (reply, answer) = oneshot::channel();
        let call = Call { server: self.place.server, path, body: body.into(), reply };
        if asks.try_send(call).is_err() {
            // One of another identity is still under way, or the daemon has ended.
            return self.handle_reply(kind, Reply::Broken("nobody takes it".into()));
        }
        self.asked = Some(Asked { kind, at: now, reply: answer });
    }

    fn key_request(&self) -> LogKeyRequest {
        let Place { server, machine, node, .. } = self.place;
        let key = self.scribe.key();
        let binding = LogKeyBinding { server, machine, node, log: *key.as_bytes() };
        LogKeyRequest {
            version: CapabilityVersion(crate::CAPABILITY_VERSION),
            node_key: node,
            log_key: Blob(key.as_bytes().to_vec()),
            signature: Blob(self.scribe.sign(&binding.message()).as_bytes().to_vec()),
        }
    }

    fn handle_reply(&mut self, kind: Kind, reply: Reply) {
        self.asked = None;
        let (now, _) = clocks();
        let failed = match (kind, reply) {
            (Kind::Key, Reply::Done(body)) => match collector(&body) {
                Some(collector) => {
                    self.scribe.set_collector(collector, now);
                    self.is_known = true;
                    None
                }
                None => Some("the server's answer cannot be understood".into()),
            },
            (Kind::Batches, Reply::Done(body)) => match Answer::decode(&body) {
                Ok(answer) => {
                    self.scribe.handle_answer(&answer, now);
                    None
                }
                Err(error) => Some(error.to_string()),
            },
            (_, Reply::Status(status, text)) => {
                // The server may not know the key any more.
                self.is_known &= !matches!(status, 401 | 403 | 404 | 409);
                Some(format!("{status} {text}"))
            }
            (_, Reply::Broken(reason)) => Some(reason),
        };
        let Some(reason) = failed else { return };
        tracing::debug!(reason, "the flow log does not get through");
        match kind {
            Kind::Key => self.offer = Some(now + KEY_RETRY.min(Duration::from_secs(1) * self.tries())),
            Kind::Batches => self.scribe.handle_failure(now),
        }
    }

    /// Returns a factor for the next wait.
    const fn tries(&self) -> u32 {
        if self.scribe.is_away() { 5 } else { 1 }
    }
}

fn collector(body: &[u8]) -> Option<Verifier> {
    let response: LogKeyResponse = from_json(body).ok()?;
    let text = Some(response.collector).filter(|text| text.len() <= COLLECTOR_BYTES_MAX)?;
    Verifier::parse(&text).ok()
}

/// Waits for what became of a call.
async fn answer(pen: Option<&mut Pen>) -> (Kind, Reply) {
    match pen.and_then(|pen| pen.asked.as_mut()) {
        Some(asked) => {
            let reply = (&mut asked.reply).await;
            (asked.kind, reply.unwrap_or_else(|_| Reply::Broken("the connection to the server ended".into())))
        }
        None => std::future::pending().await,
    }
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}

/// Opens the log of an identity.
fn open(dir: &Path, place: &Place) -> io::Result<Scribe<Folder>> {
    warren_os::create_private_dir(dir).map_err(io::Error::other)?;
    let name = folder_name(place);
    forget_old(dir, &name);
    let mut seed = zeroize::Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut_slice()).map_err(io::Error::other)?;
    Scribe::open(Folder::open(dir.join(name))?, *seed, clocks().1, SPOOL_BYTES)
}

/// Names the folder of an identity.
fn folder_name(place: &Place) -> String {
    let id = [place.server.as_bytes().as_slice(), place.id.as_bytes()].concat();
    warren_ledger::rules_id(&id).iter().fold(String::new(), |name, byte| format!("{name}{byte:02x}"))
}

/// Removes the folders that were not used for longest, but for the one of that name.
fn forget_old(dir: &Path, name: &str) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut folders: Vec<_> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name() != *name)
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    folders.sort_unstable();
    let surplus = (folders.len() + 1).saturating_sub(FOLDERS);
    for (_, path) in folders.into_iter().take(surplus) {
        if let Err(error) = std::fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "an old flow log cannot be removed");
        }
    }
}

/// Returns what both clocks show.
#[expect(clippy::disallowed_methods, reason = "the thread is a shell: this is where it reads the clocks")]
fn clocks() -> (Instant, Time) {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    (Instant::now(), Time::since_epoch(since))
}
