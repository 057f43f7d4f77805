//! The owner of the node's decisions: settings, login, netmap, and what the engine and local programs are told.
//!
//! One task; everything reaches it over bounded channels, so no lock is held and no request waits for the server.

mod keeping;
mod lifecycle;
mod requests;
mod status;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use warren_wire::key::DiscoSecret;

use crate::control_client::{Connector, Event, Login, MachineCertificate, Report, ServerUrl, Session, Target};
use crate::engine::{self, Engine, ExitChoice, ExitNode, Local, LocalUpdate, Settings, Update};
use crate::flow_log::{Link, Place};
use crate::hostinfo;
use crate::local_api::types::{State, Trouble, TroubleKind};
use crate::local_api::{Bus, Request, Shared};
use crate::netmap::{Change, Moment, Netmap};
use crate::state::{self, NodeKeys, Store};
use keeping::Keeping;
use lifecycle::{Facts, Key, MapFacts, Wanted};

/// Requests and events that may wait for the daemon.
const QUEUE: usize = 64;

/// How long after an expiry it is acted on, so that it has certainly passed by then.
const EXPIRY_SLACK: Duration = Duration::from_millis(50);

/// Longest time until the own and the peers' expiry are looked at again.
const MAX_NAP: Duration = Duration::from_secs(60 * 60);

/// The same while a rule is going to end. Timers stand still while the machine sleeps, the clock that counts does not:
/// this is how late a rule ends that should have ended during sleep.
const MAX_NAP_WITH_ENDS: Duration = Duration::from_secs(5);

/// Is the node's daemon; [`Self::run`] runs it.
#[derive(Debug)]
pub struct Daemon<E, C> {
    engine: Arc<E>,
    connector: C,
    disk: Disk,
    netmap: Netmap,
    keeping: Keeping,
    /// Secret of the disco key that peers are told.
    disco: Arc<DiscoSecret>,
    login: LoginState,
    /// The engine has been told to carry packets.
    carrying: bool,
    /// Whether the server hears what we report.
    server_listens: bool,
    /// What the engine was told of the wish for an exit node.
    wants_exit: Option<bool>,
    /// A relay or a peer has been reached since the engine came up.
    alive: bool,
    engine_health: Vec<String>,
    out: Outlets,
    requests: mpsc::Receiver<Request>,
    /// Reads this machine's clocks.
    /// Certificate that this machine shows to its server.
    certificate: Option<Arc<MachineCertificate>>,
    flow_log: Option<Link>,
    clock: fn() -> Moment,
}

/// Holds what survives a restart, in memory and on disk.
#[derive(Debug)]
struct Disk {
    store: Store,
    state: state::State,
}

/// Holds the present login.
#[derive(Debug)]
struct LoginState {
    session: Option<AbortHandle>,
    events: mpsc::Receiver<Event>,
    phase: lifecycle::Login,
    /// A person asked for this login; the node is not without one.
    by_choice: bool,
    /// Page that a person must visit.
    url: String,
    trouble: Option<Trouble>,
}

impl LoginState {
    /// Returns the state in which nobody logs in and nothing is heard.
    fn idle() -> Self {
        Self {
            session: None,
            events: mpsc::channel(1).1,
            phase: lifecycle::Login::Idle,
            by_choice: false,
            url: String::new(),
            trouble: None,
        }
    }
}

/// Holds the channels on which others read what the daemon knows.
#[derive(Debug)]
struct Outlets {
    bus: watch::Sender<Bus>,
    operator: watch::Sender<String>,
    report: watch::Sender<Report>,
}

/// Says why the daemon ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to.
    Asked,
    /// The engine cannot go on.
    Engine(String),
}

impl<E: Engine, C: Connector + Clone> Daemon<E, C> {
    /// Makes a daemon, and what the local API needs to serve it. Nothing runs yet. `disco` must be fresh.
    #[must_use]
    pub fn new(engine: E, connector: C, disk: (Store, state::State), disco: DiscoSecret, uid: u32) -> (Self, Shared) {
        let (store, state) = disk;
        let (requests, asked) = mpsc::channel(QUEUE);
        let report = Report {
            hostinfo: hostinfo::collect(&state.prefs),
            net_info: None,
            endpoints: Vec::new(),
            disco_key: disco.public(),
        };
        let out = Outlets {
            bus: watch::Sender::new(Bus::default()),
            operator: watch::Sender::new(state.prefs.operator_user.clone()),
            report: watch::Sender::new(report),
        };
        let shared = Shared {
            requests,
            bus: out.bus.subscribe(),
            operator: out.operator.subscribe(),
            daemon_uid: uid,
            dialer: None,
        };
        let daemon = Self {
            engine: Arc::new(engine),
            connector,
            keeping: Keeping::new(store.map_file()),
            disk: Disk { store, state },
            netmap: Netmap::default(),
            disco: Arc::new(disco),
            login: LoginState::idle(),
            carrying: false,
            server_listens: true,
            wants_exit: None,
            alive: false,
            engine_health: Vec::new(),
            out,
            requests: asked,
            clock: system_clock,
            certificate: None,
            flow_log: None,
        };
        (daemon, shared)
    }

    /// Lets connections be written down for the server, if it wants that.
    #[must_use]
    pub fn with_flow_log(self, link: Link) -> Self {
        Self { flow_log: Some(link), ..self }
    }

    /// Lets the machine show a certificate to its server.
    #[must_use]
    pub fn with_certificate(self, certificate: Option<MachineCertificate>) -> Self {
        Self { certificate: certificate.map(Arc::new), ..self }
    }

    /// Runs until `stop` is ready, a program asks for the end, or the engine fails; then everything is taken down.
    pub async fn run(
        mut self,
        mut engine_events: mpsc::Receiver<engine::Event>,
        stop: impl Future<Output = ()>,
    ) -> Ended {
        let mut stop = std::pin::pin!(stop);
        if self.disk.state.prefs.want_running && !self.disk.state.prefs.logged_out {
            self.start_session(Login::Resume);
        }
        let ended = loop {
            self.settle();
            let nap = self.nap();
            tokio::select! {
                () = &mut stop => break Ended::Asked,
                request = self.requests.recv() => match request {
                    Some(Request::Shutdown(reply)) => {
                        let _ = reply.send(());
                        break Ended::Asked;
                    }
                    Some(request) => self.handle_request(request),
                    None => break Ended::Asked,
                },
                Some(event) = self.login.events.recv() => self.handle_session(event),
                Some(event) = engine_events.recv() => {
                    if let Err(reason) = self.handle_engine(event) {
                        break Ended::Engine(reason);
                    }
                }
                () = tokio::time::sleep(nap) => {
                    let change = self.netmap.handle_timeout((self.clock)());
                    self.tell_engine(change);
                    self.handle_map_timeout();
                }
            }
        };
        self.stop_session();
        self.keep_map_at_end().await;
        self.engine.shutdown().await;
        ended
    }

    /// Returns how long until a key or a rule of the filter has come to its end, or the kept map is due.
    fn nap(&self) -> Duration {
        let now = (self.clock)();
        let own = self.netmap.local().and_then(|node| node.key_expiry).filter(|_| self.carrying);
        let own = own.map(|at| self.netmap.clock().until(at, now));
        let next = self.netmap.next_timeout(now).into_iter().chain(own).min();
        let map = self.map_timeout(now);
        let longest = if self.netmap.has_rules_that_end() { MAX_NAP_WITH_ENDS } else { MAX_NAP };
        next.into_iter().chain(map).min().map_or(longest, |wait| wait.saturating_add(EXPIRY_SLACK).min(longest))
    }

    /// Makes engine and bus agree with the facts. Called after every event.
    fn settle(&mut self) {
        let state = self.state();
        let prefs = &self.disk.state.prefs;
        let wants_exit = Some(prefs.uses_exit_node() && prefs.want_running && !prefs.logged_out);
        if self.wants_exit != wants_exit {
            self.wants_exit = wants_exit;
            self.engine.apply(Update { wants_exit, ..Update::default() });
        }
        let carry = lifecycle::carries_packets(state) && self.netmap.local().is_some();
        if carry && !self.carrying {
            self.carrying = true;
            self.alive = false;
            let whole = self.netmap.whole();
            self.tell_engine(whole);
        } else if !carry && self.carrying {
            self.carrying = false;
            self.engine.apply(Update::down());
        }
        if let Some(link) = &self.flow_log {
            link.set(self.flow_log_place());
        }
        let state = self.state();
        let (browse_to_url, trouble) = (self.login.url.clone(), self.login.trouble.clone());
        let logging_in = self.login.phase != lifecycle::Login::Idle;
        self.out.bus.send_if_modified(|present| {
            let bus = Bus { state, browse_to_url, trouble, logging_in, logins: present.logins };
            let changed = *present != bus;
            if changed {
                tracing::debug!(state = bus.state.name(), "state");
                *present = bus;
            }
            changed
        });
    }

    /// Returns for whom connections are to be written down. While no packets pass, the log of before goes on: it may have
    /// more to send.
    fn flow_log_place(&self) -> Option<Place> {
        let (server, node) = (self.map_server()?, self.netmap.local()?);
        let key = self.disk.state.keys.current.as_ref().map(|key| key.public())?;
        let machine = self.disk.state.machine.public();
        let is_own = node.key == key && self.netmap.takes_flow_log();
        is_own.then(|| Place { server, machine, node: key, id: node.stable_id.clone() })
    }

    fn state(&self) -> State {
        let prefs = &self.disk.state.prefs;
        let map = self.netmap.local().map(|node| MapFacts {
            expired: self.netmap.local_expired((self.clock)()),
            authorised: node.machine_authorized,
            alive: self.alive || !self.netmap.has_relays_or_peers(),
        });
        lifecycle::state(Facts {
            wanted: if prefs.want_running && !prefs.logged_out { Wanted::Up } else { Wanted::Down },
            key: if self.disk.state.keys.current.is_some() { Key::Registered } else { Key::Missing },
            map,
            login: self.login.phase,
        })
    }

    /// Tells the engine whether the server hears us, if that changed.
    pub(super) fn note_server(&mut self, listens: bool) {
        if std::mem::replace(&mut self.server_listens, listens) != listens {
            self.engine.apply(Update { server_listens: Some(listens), ..Update::default() });
        }
    }

    fn tell_engine(&self, change: Change) {
        if !self.carrying {
            return;
        }
        let local = match (change.local || change.dns, self.netmap.local(), &self.disk.state.keys.current) {
            // Between a new key and the first map for it the two do not fit together.
            (true, Some(node), Some(secret)) if secret.public() == node.key => Some(LocalUpdate::Up(Local {
                secret: Arc::clone(secret),
                disco: Arc::clone(&self.disco),
                node: Arc::clone(node),
                dns: self.netmap.dns().cloned(),
                settings: self.settings(),
            })),
            _ => None,
        };
        let update = Update {
            server_listens: None,
            wants_exit: None,
            local,
            relays: change.relays.then(|| self.netmap.relays().cloned()).flatten(),
            filter: change.filter.then(|| self.netmap.filter()),
            removed: change.removed,
            peers: change.peers,
        };
        if !update.is_empty() {
            self.engine.apply(update);
        }
    }

    fn settings(&self) -> Settings {
        let prefs = &self.disk.state.prefs;
        let exit_node = if prefs.auto_exit_node.is_empty() {
            let id = || (!prefs.exit_node_id.is_empty()).then(|| ExitChoice::Id(prefs.exit_node_id.clone()));
            prefs.exit_node_ip.map(ExitChoice::Address).or_else(id)
        } else {
            Some(ExitChoice::Any)
        };
        Settings {
            accept_routes: prefs.route_all,
            shields_up: prefs.shields_up,
            relay_port: prefs.relay_server_port,
            offered_routes: prefs.advertise_routes.clone().into(),
            keeps_source: prefs.no_snat,
            accept_dns: prefs.corp_dns,
            exit_node: exit_node.map(|who| ExitNode { who, lan_access: prefs.exit_node_allow_lan_access }),
        }
    }

    // What the server says.

    fn handle_session(&mut self, event: Event) {
        match event {
            Event::Keys(keys, saved) => {
                let before = std::mem::replace(&mut self.disk.state.keys, keys);
                let on_disk = self.save();
                let key = |keys: &NodeKeys| keys.current.as_ref().map(|key| key.public());
                if !on_disk {
                    self.disk.state.keys = before;
                } else if key(&before) != key(&self.disk.state.keys) {
                    self.wipe_map();
                }
                let _ = saved.send(on_disk);
            }
            Event::ServerTime(time) => {
                let change = self.netmap.observe_clock(time, (self.clock)());
                self.tell_engine(change);
                self.map_confirmed();
            }
            Event::Visit(url) => {
                if !self.login.by_choice {
                    self.wipe_map();
                }
                self.login.url = url;
                self.login.phase =
                    if self.login.by_choice { lifecycle::Login::Waiting } else { lifecycle::Login::Lost };
                self.login.trouble = None;
            }
            Event::Registered(_) => {
                tracing::debug!("registered");
                self.login.url.clear();
                self.login.phase = lifecycle::Login::Idle;
                self.login.by_choice = false;
                self.login.trouble = None;
                self.out.bus.send_modify(|bus| bus.logins += 1);
            }
            Event::PollStarted(server) => {
                self.map_begins(server);
                self.netmap.begin_poll();
            }
            Event::Map(response) => {
                self.note_server(true);
                self.handle_map(*response);
            }
            Event::Trouble(trouble) => {
                self.map_lost(&trouble);
                self.login.trouble = Some(self.with_clock(trouble));
                self.note_server(false);
            }
            Event::Refused(trouble) => {
                self.map_lost(&trouble);
                self.login.trouble = Some(self.with_clock(trouble));
                self.login.phase = lifecycle::Login::Waiting;
                self.login.session = None;
            }
        }
    }

    fn handle_map(&mut self, response: warren_wire::control::MapResponse) {
        let Some(own) = self.disk.state.keys.current.as_ref().map(|key| key.public()) else {
            return;
        };
        self.login.trouble = None;
        let was_first = self.netmap.awaits_whole();
        tracing::debug!(whole = was_first, "map");
        match self.netmap.apply(response, &own, (self.clock)()) {
            Ok(change) => {
                self.map_arrived(&change, was_first);
                // A key that was replaced makes the engine start afresh.
                self.tell_engine(change);
            }
            Err(error) => {
                // The session has looked at this already, and would have ended the poll.
                tracing::warn!(%error, "map response not usable");
                self.login.trouble = Some(Trouble { kind: TroubleKind::Server, text: error.to_string(), attempts: 1 });
            }
        }
    }

    /// Adds a word on the clock to a failure that a wrong clock may have caused.
    fn with_clock(&self, trouble: Trouble) -> Trouble {
        match (self.netmap.clock().warning((self.clock)()), trouble.kind) {
            (Some(warning), TroubleKind::Refused | TroubleKind::Clock) => {
                Trouble { text: format!("{} ({warning})", trouble.text), ..trouble }
            }
            (_, _) => trouble,
        }
    }

    // What the engine says.

    fn handle_engine(&mut self, event: engine::Event) -> Result<(), String> {
        match event {
            engine::Event::Endpoints(endpoints) => self.edit_report(|report| report.endpoints = endpoints),
            engine::Event::NetInfo(info) => self.edit_report(|report| report.net_info = Some(*info)),
            engine::Event::Live { relays, peers } => self.alive |= relays > 0 || peers > 0,
            engine::Event::Health(health) => self.engine_health = health,
            engine::Event::Fatal(reason) => return Err(reason),
        }
        Ok(())
    }

    fn edit_report(&self, edit: impl FnOnce(&mut Report)) {
        self.out.report.send_if_modified(|report| {
            let before = report.clone();
            edit(report);
            *report != before
        });
    }

    // The session.

    fn start_session(&mut self, login: Login) {
        self.stop_session();
        if matches!(login, Login::Resume) {
            self.load_map();
        } else {
            self.keeping.give_up_waiting();
        }
        let target = match self.target() {
            Ok(target) => target,
            Err(text) => {
                self.login.trouble = Some(Trouble { kind: TroubleKind::Local, text, attempts: 1 });
                self.login.phase = lifecycle::Login::Waiting;
                return;
            }
        };
        let (events, heard) = mpsc::channel(QUEUE);
        let by_choice = matches!(login, Login::Interactive);
        let session = Session {
            connector: self.connector.clone(),
            target,
            keys: self.disk.state.keys.clone(),
            login,
            report: self.out.report.subscribe(),
            flows: self.flow_log.clone(),
            events,
        };
        self.login = LoginState {
            session: Some(tokio::spawn(session.run()).abort_handle()),
            events: heard,
            phase: lifecycle::Login::Asking,
            by_choice,
            url: String::new(),
            trouble: None,
        };
    }

    /// Ends the session; what it had to say and nobody has heard yet is gone with it.
    fn stop_session(&mut self) {
        if let Some(session) = std::mem::replace(&mut self.login, LoginState::idle()).session {
            session.abort();
        }
    }

    /// Returns the server that the settings name, or what the user must do first.
    fn target(&self) -> Result<Target, String> {
        let prefs = &self.disk.state.prefs;
        let url = prefs.control_url.parse::<ServerUrl>();
        let url = url.map_err(|_| "no login server is set; say: warren up --login-server URL".to_owned())?;
        let pin = prefs.server_pin().map_err(|error| error.to_string())?;
        Ok(Target { url, pin, machine: Arc::clone(&self.disk.state.machine), certificate: self.certificate.clone() })
    }

    fn save(&mut self) -> bool {
        match self.disk.store.save(&self.disk.state) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "state cannot be saved");
                let text = format!("the node's state cannot be saved: {error}");
                self.login.trouble = Some(Trouble { kind: TroubleKind::Local, text, attempts: 1 });
                false
            }
        }
    }
}

fn system_clock() -> Moment {
    #[expect(clippy::disallowed_methods, reason = "the daemon is a shell: this is where it reads the clock")]
    let wall = std::time::SystemTime::now();
    Moment { steady: warren_os::time_since_boot(), wall: wall.into() }
}

#[cfg(test)]
mod tests;
