//! The map on disk: when it is read, used, written and wiped.
//!
//! A node that starts waits a moment for the server. If that says nothing, the kept map is used as if it had come from
//! the server, with the disco key by which peers know this node from then; the first map of the server replaces it.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use warren_wire::control::{MapResponse, Time};
use warren_wire::key::MachineKey;

use super::Daemon;
use crate::control_client::Connector;
use crate::engine::{Engine, Update};
use crate::local_api::types::{KeptMap, Trouble, TroubleKind};
use crate::netmap::{Change, Kept, KeptError, Moment};
use crate::state::MapFile;

/// How long a node that starts waits for the server before it uses the kept map.
const GRACE: Duration = Duration::from_secs(2);

/// How long changes are collected before the map is written.
const SETTLE: Duration = Duration::from_secs(1);

/// Least time between two writes.
const SPACING: Duration = Duration::from_secs(60);

/// Longest time between two writes while the server is heard: so old, at most, does a map seem after a crash.
const RESTAMP: Duration = Duration::from_secs(60 * 60);

/// Attribute by which a tailnet forbids that its maps are kept.
const FORBIDDEN: &str = "disable-cache-network-maps";

/// Holds what is known of the map on disk. All times are of the steady clock.
#[derive(Debug)]
pub(super) struct Keeping {
    file: MapFile,
    boot: String,
    /// Read from disk, and not used yet; used at that time.
    waiting: Option<(Box<Kept>, Duration)>,
    origin: Origin,
    /// The map is being followed: whatever comes says that it is right.
    following: bool,
    /// When the server said so last, by its clock.
    heard: Option<Time>,
    /// Server that the map is from.
    server: Option<MachineKey>,
    /// When the map is to be written.
    due: Option<Duration>,
    written: Option<Duration>,
    writing: Option<JoinHandle<()>>,
}

/// Says where the map that is in use is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// There is none.
    Nowhere,
    Disk,
    Server,
}

impl Keeping {
    pub(super) fn new(file: MapFile) -> Self {
        Self {
            file,
            boot: warren_os::boot_id(),
            waiting: None,
            origin: Origin::Nowhere,
            following: false,
            heard: None,
            server: None,
            due: None,
            written: None,
            writing: None,
        }
    }

    /// Forgets the map, on disk too. Only call it when the map in memory is forgotten as well, or is another.
    pub(super) fn wipe(&mut self) {
        self.file.wipe();
        let (boot, file) = (std::mem::take(&mut self.boot), self.file.clone());
        *self = Self { boot, server: self.server, ..Self::new(file) };
    }

    /// Gives up the map that was read and not used: a new login is to decide.
    pub(super) fn give_up_waiting(&mut self) {
        self.waiting = None;
    }
}

impl<E: Engine, C: Connector + Clone> Daemon<E, C> {
    fn map_max_age(&self) -> Duration {
        Duration::from_secs(self.disk.state.prefs.map_max_age)
    }

    /// Reads the kept map, to be used soon if the server says nothing; wipes it if it is not fit to be used.
    pub(super) fn load_map(&mut self) {
        let Some(key) = self.disk.state.keys.current.as_ref().map(|key| key.public()) else { return };
        if self.netmap.local().is_some() || self.keeping.waiting.is_some() {
            return;
        }
        let text = match self.keeping.file.read() {
            Ok(Some(text)) => text,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "the kept map cannot be read");
                return;
            }
        };
        let now = (self.clock)();
        let prefs = &self.disk.state.prefs;
        let kept = Kept::decode(&text).and_then(|kept| {
            kept.check(&prefs.control_url, prefs.server_pin().unwrap_or_default(), key)?;
            let age = kept.server_time(&self.keeping.boot, now).saturating_since(kept.heard);
            if age >= self.map_max_age() { Err(KeptError::Old) } else { Ok(kept) }
        });
        match kept {
            Ok(kept) => self.keeping.waiting = Some((Box::new(kept), now.steady.saturating_add(GRACE))),
            Err(error) => {
                tracing::warn!(%error, "the kept map is not used");
                self.keeping.file.wipe();
            }
        }
    }

    /// Puts the map that was read from disk to use, unless the server has sent one.
    fn use_map(&mut self) {
        let Some((kept, _)) = self.keeping.waiting.take().filter(|_| self.netmap.local().is_none()) else { return };
        let now = (self.clock)();
        if !self.netmap.clock().is_known() {
            let server_time = kept.server_time(&self.keeping.boot, now);
            let _ = self.netmap.observe_clock(server_time, now);
        }
        self.netmap.begin_poll();
        match self.netmap.apply(kept.map, &kept.node, now) {
            Ok(_) => {
                tracing::info!(heard = %kept.heard, "the server is away; the last map is used");
                self.keeping.origin = Origin::Disk;
                // Peers know this node at the relay of then: it stays while they cannot be told of another.
                self.note_server(false);
                self.keeping.heard = Some(kept.heard);
                self.keeping.server = Some(kept.server);
                self.disco = kept.disco;
                let key = self.disco.public();
                self.edit_report(|report| report.disco_key = key);
            }
            Err(error) => {
                tracing::warn!(%error, "the kept map is not used");
                self.keeping.wipe();
            }
        }
    }

    /// Takes note that the server takes this node's login no more, or that there is none.
    pub(super) fn wipe_map(&mut self) {
        self.keeping.wipe();
    }

    /// Takes note of whom the next map is from. A map of another server is void.
    pub(super) fn map_begins(&mut self, server: MachineKey) {
        if self.keeping.server.is_some_and(|old| old != server) {
            tracing::info!("the server has another key; the map from before is void");
            self.forget_map();
        }
        self.keeping.server = Some(server);
    }

    /// Takes note of a map, or a change of it, from the server.
    pub(super) fn map_arrived(&mut self, change: &Change, was_first: bool) {
        let now = (self.clock)();
        self.keeping.waiting = None;
        self.keeping.origin = Origin::Server;
        self.keeping.following = true;
        self.map_confirmed();
        if was_first || *change != Change::default() {
            let earliest = self.keeping.written.map_or(Duration::ZERO, |at| at.saturating_add(SPACING));
            let soon = now.steady.saturating_add(SETTLE);
            // The first map of a poll at once: by it peers know us after a restart.
            let due = if was_first { soon } else { soon.max(earliest) };
            self.keeping.due = Some(self.keeping.due.map_or(due, |old| old.min(due)));
        }
    }

    /// Takes note that the server lives; if it is being followed, the map is right at this moment.
    pub(super) fn map_confirmed(&mut self) {
        if self.keeping.following {
            let now = (self.clock)();
            self.keeping.heard = Some(self.netmap.clock().server_time(now));
            if self.keeping.due.is_none() {
                self.keeping.due = Some(self.keeping.written.unwrap_or(now.steady).saturating_add(RESTAMP));
            }
        }
    }

    /// Takes note that the server cannot be followed.
    pub(super) fn map_lost(&mut self, trouble: &Trouble) {
        self.keeping.following = false;
        match trouble.kind {
            // The server has spoken, or it is not the server.
            TroubleKind::Refused => self.keeping.wipe_unused(),
            TroubleKind::ServerKey => self.keeping.waiting = None,
            TroubleKind::Unreachable | TroubleKind::Server | TroubleKind::Clock | TroubleKind::Local => self.use_map(),
        }
    }

    /// Forgets the map, in memory and on disk.
    fn forget_map(&mut self) {
        self.keeping.wipe();
        let clock = self.netmap.clock();
        self.netmap.clear();
        self.netmap.set_clock(clock);
        if self.carrying {
            self.carrying = false;
            self.engine.apply(Update::down());
        }
    }

    /// Returns when [`Self::handle_map_timeout`] has something to do.
    pub(super) fn map_timeout(&self, now: Moment) -> Option<Duration> {
        let waiting = self.keeping.waiting.as_ref().map(|(_, at)| *at);
        let wait = [waiting, self.keeping.due].into_iter().flatten().min();
        wait.map(|at| at.saturating_sub(now.steady)).into_iter().chain(self.map_expiry(now)).min()
    }

    /// Returns how long until the map from disk is too old.
    fn map_expiry(&self, now: Moment) -> Option<Duration> {
        let heard = self.keeping.heard.filter(|_| self.keeping.origin == Origin::Disk)?;
        Some(self.netmap.clock().until(heard.saturating_add(self.map_max_age()), now))
    }

    /// Uses, writes or forgets the map if it is time.
    pub(super) fn handle_map_timeout(&mut self) {
        let now = (self.clock)();
        if self.keeping.waiting.as_ref().is_some_and(|(_, at)| *at <= now.steady) {
            self.use_map();
        }
        if self.map_expiry(now).is_some_and(|wait| wait.is_zero()) {
            tracing::warn!("the server was last heard too long ago; the map from then is not used any more");
            self.forget_map();
        }
        if self.keeping.due.is_some_and(|at| at <= now.steady) {
            if self.keeping.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
                self.keeping.due = Some(now.steady.saturating_add(SETTLE));
            } else {
                self.keeping.due = None;
                self.keeping.written = Some(now.steady);
                self.keeping.writing = self.write_map();
            }
        }
    }

    /// Writes the map of the server in the background.
    fn write_map(&mut self) -> Option<JoinHandle<()>> {
        if self.keeping.origin != Origin::Server {
            return None;
        }
        let local = self.netmap.local()?;
        if self.disk.state.prefs.map_max_age == 0 || local.cap_map.has(FORBIDDEN) {
            self.keeping.file.wipe();
            return None;
        }
        let kept = Kept {
            server_url: self.disk.state.prefs.control_url.clone(),
            server: self.keeping.server?,
            node: local.key,
            disco: Arc::clone(&self.disco),
            heard: self.keeping.heard?,
            at: (self.clock)(),
            boot: self.keeping.boot.clone(),
            map: MapResponse::default(),
        };
        let (snapshot, file) = (self.netmap.snapshot()?, self.keeping.file.clone());
        let ticket = file.announce();
        Some(tokio::task::spawn_blocking(move || {
            let kept = Kept { map: snapshot.into_response(), ..kept };
            let written = match kept.encode() {
                Ok(text) => file.write(ticket, &text).map_err(|error| error.to_string()),
                Err(error) => {
                    file.wipe();
                    Err(error.to_string())
                }
            };
            if let Err(error) = written {
                tracing::warn!(%error, "the map cannot be kept");
            }
        }))
    }

    /// Writes the map a last time, with the moment at which the server was last heard.
    pub(super) async fn keep_map_at_end(&mut self) {
        if let Some(writing) = self.keeping.writing.take() {
            let _ = writing.await;
        }
        if let Some(writing) = self.write_map() {
            let _ = writing.await;
        }
    }

    /// Returns the server that the map is from.
    pub(super) const fn map_server(&self) -> Option<MachineKey> {
        self.keeping.server
    }

    /// Returns what is told of a map from disk.
    pub(super) fn kept_map(&self, now: Moment) -> Option<KeptMap> {
        let heard = self.keeping.heard.filter(|_| self.keeping.origin == Origin::Disk)?;
        let age = self.netmap.clock().server_time(now).saturating_since(heard);
        Some(KeptMap { heard: heard.to_string(), age_seconds: age.as_secs() })
    }
}

impl Keeping {
    /// Wipes the map on disk; the one in use goes on.
    fn wipe_unused(&mut self) {
        self.waiting = None;
        self.due = None;
        self.file.wipe();
    }
}
