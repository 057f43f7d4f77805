//! The owner of the node's decisions: settings, login, netmap, and what the engine and local programs are told.
//!
//! One task; everything reaches it over bounded channels, so no lock is held and no request waits for the server.

mod lifecycle;
mod status;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use warren_wire::control::Time;

use crate::control_client::{AuthKey, Connector, Event, Login, Report, ServerUrl, Session, Target, log_out};
use crate::engine::{self, Engine, Local, LocalUpdate, Settings, Update};
use crate::hostinfo;
use crate::local_api::access::local_user;
use crate::local_api::types::{PingResult, StartOptions, State, Trouble, TroubleKind};
use crate::local_api::{Authority, Bus, Refusal, Request, Shared};
use crate::netmap::{Change, Netmap};
use crate::prefs::{Prefs, PrefsError, Right};
use crate::state::{self, NodeKeys, Store};
use lifecycle::{Facts, Key, MapFacts, Wanted};

/// Requests and events that may wait for the daemon.
const QUEUE: usize = 64;

/// How long a logout waits for the server.
const LOGOUT_TIMEOUT: Duration = Duration::from_secs(10);

/// Clocks that differ by less are called equal when only an HTTP date was seen, which has whole seconds.
const EXPIRY_SLACK: Duration = Duration::from_millis(50);

/// Longest time until the own and the peers' expiry are looked at again.
const MAX_NAP: Duration = Duration::from_secs(60 * 60);

/// Is the node's daemon; [`Self::run`] runs it.
#[derive(Debug)]
pub struct Daemon<E, C> {
    engine: Arc<E>,
    connector: C,
    disk: Disk,
    netmap: Netmap,
    login: LoginState,
    /// The engine has been told to carry packets.
    carrying: bool,
    /// A relay or a peer has been reached since the engine came up.
    alive: bool,
    engine_health: Vec<String>,
    out: Outlets,
    requests: mpsc::Receiver<Request>,
    /// Reads this machine's clock.
    clock: fn() -> Time,
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
    /// Makes a daemon, and what the local API needs to serve it. Nothing runs yet.
    #[must_use]
    pub fn new(engine: E, connector: C, store: Store, state: state::State, daemon_uid: u32) -> (Self, Shared) {
        let (requests, asked) = mpsc::channel(QUEUE);
        let report = Report {
            hostinfo: hostinfo::collect(&state.prefs.hostname, state.prefs.shields_up),
            net_info: None,
            endpoints: Vec::new(),
            disco_key: engine.disco_key(),
        };
        let out = Outlets {
            bus: watch::Sender::new(Bus::default()),
            operator: watch::Sender::new(state.prefs.operator_user.clone()),
            report: watch::Sender::new(report),
        };
        let shared = Shared { requests, bus: out.bus.subscribe(), operator: out.operator.subscribe(), daemon_uid };
        let daemon = Self {
            engine: Arc::new(engine),
            connector,
            disk: Disk { store, state },
            netmap: Netmap::default(),
            login: LoginState::idle(),
            carrying: false,
            alive: false,
            engine_health: Vec::new(),
            out,
            requests: asked,
            clock: system_clock,
        };
        (daemon, shared)
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
                    let removed = self.netmap.expire((self.clock)());
                    self.tell_engine(Change { removed, ..Change::default() });
                }
            }
        };
        self.stop_session();
        self.engine.shutdown().await;
        ended
    }

    /// Returns how long until a key expires by the clock.
    fn nap(&self) -> Duration {
        let own = self.netmap.local().and_then(|node| node.key_expiry).filter(|_| self.carrying);
        let own = own.map(|at| self.netmap.clock().local_time(at));
        let next = self.netmap.next_expiry().into_iter().chain(own).min();
        let now = (self.clock)();
        next.map_or(MAX_NAP, |at| at.saturating_since(now).saturating_add(EXPIRY_SLACK).min(MAX_NAP))
    }

    /// Makes engine and bus agree with the facts. Called after every event.
    fn settle(&mut self) {
        let state = self.state();
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

    fn tell_engine(&self, change: Change) {
        if !self.carrying {
            return;
        }
        let local = match (change.local, self.netmap.local(), &self.disk.state.keys.current) {
            // Between a new key and the first map for it the two do not fit together.
            (true, Some(node), Some(secret)) if secret.public() == node.key => Some(LocalUpdate::Up(Local {
                secret: Arc::clone(secret),
                node: Arc::clone(node),
                settings: self.settings(),
            })),
            _ => None,
        };
        let update = Update {
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
        Settings { accept_routes: prefs.route_all, shields_up: prefs.shields_up }
    }

    // What the server says.

    fn handle_session(&mut self, event: Event) {
        match event {
            Event::Keys(keys, saved) => {
                let before = std::mem::replace(&mut self.disk.state.keys, keys);
                let on_disk = self.save();
                if !on_disk {
                    self.disk.state.keys = before;
                }
                let _ = saved.send(on_disk);
            }
            Event::ServerTime(time) => {
                let change = self.netmap.observe_clock(time, (self.clock)());
                self.tell_engine(change);
            }
            Event::Visit(url) => {
                self.login.url = url;
                self.login.phase =
                    if self.login.by_choice { lifecycle::Login::Waiting } else { lifecycle::Login::Lost };
                self.login.trouble = None;
            }
            Event::Registered(_) => {
                self.login.url.clear();
                self.login.phase = lifecycle::Login::Idle;
                self.login.by_choice = false;
                self.login.trouble = None;
                self.out.bus.send_modify(|bus| bus.logins += 1);
            }
            Event::PollStarted => self.netmap.begin_poll(),
            Event::Map(response) => self.handle_map(*response),
            Event::Trouble(trouble) => self.login.trouble = Some(self.with_clock(trouble)),
            Event::Refused(trouble) => {
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
        match self.netmap.apply(response, &own, (self.clock)()) {
            Ok(change) => {
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
        match (self.netmap.clock().warning(), trouble.kind) {
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
        Ok(Target { url, pin, machine: Arc::clone(&self.disk.state.machine) })
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

    // What local programs ask.

    fn handle_request(&mut self, request: Request) {
        // A caller that went away gets no answer; that is no failure.
        match request {
            Request::Status(peers, reply) => self.reply_status(peers, reply),
            Request::WhoIs(who, reply) => drop(reply.send(status::who_is(&self.netmap, who))),
            Request::Prefs(reply) => drop(reply.send(self.disk.state.prefs.clone())),
            Request::EditPrefs(authority, change, reply) => drop(reply.send(self.edit_prefs(authority, &change))),
            Request::Start(authority, options, reply) => drop(reply.send(self.start(authority, &options))),
            Request::LoginInteractive(reply) => drop(reply.send(self.login_interactive())),
            Request::Logout(reply) => self.log_out(reply),
            Request::ResetAuth(reply) => drop(reply.send(self.forget_login())),
            Request::Ping(address, reply) => self.ping(address, reply),
            Request::Netcheck(reply) => {
                let engine = Arc::clone(&self.engine);
                let relays = self.netmap.relays().cloned();
                tokio::spawn(async move {
                    let report = engine.netcheck().await;
                    drop(reply.send(status::netcheck(&report, relays.as_deref())));
                });
            }
            Request::DerpMap(reply) => {
                let map = self.netmap.relays().and_then(|map| warren_wire::control::to_json(&**map).ok());
                let map = map.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
                drop(reply.send(map.unwrap_or_else(|| json!({ "Regions": {} }))));
            }
            Request::Shutdown(reply) => drop(reply.send(())),
        }
    }

    fn reply_status(
        &self,
        peers: crate::local_api::Peers,
        reply: oneshot::Sender<Box<crate::local_api::types::Status>>,
    ) {
        let view = status::View::new(status::Facts {
            state: self.state(),
            prefs: &self.disk.state.prefs,
            netmap: &self.netmap,
            key: self.disk.state.keys.current.as_ref().map(|key| key.public()),
            auth_url: &self.login.url,
            trouble: self.login.trouble.as_ref(),
            engine_health: &self.engine_health,
            hostname: &self.out.report.borrow().hostinfo.hostname,
            peers,
        });
        let (engine, clock) = (Arc::clone(&self.engine), self.clock);
        tokio::spawn(async move {
            let engine = engine.status().await;
            drop(reply.send(Box::new(view.finish(&engine, clock()))));
        });
    }

    fn edit_prefs(&mut self, authority: Authority, change: &Value) -> Result<Prefs, Refusal> {
        let before = self.disk.state.prefs.clone();
        let mut next = before.clone();
        let right = next.patch(change).map_err(|error: PrefsError| Refusal::Bad(error.to_string()))?;
        if right == Right::Root && authority != Authority::Root {
            return Err(Refusal::Forbidden);
        }
        if next.operator_user != before.operator_user && !next.operator_user.is_empty() {
            local_user(&next.operator_user).map_err(Refusal::Bad)?;
        }
        if next != before {
            let other_server = next.control_url != before.control_url && !before.control_url.is_empty();
            self.disk.state.prefs = next;
            if other_server {
                // Keys are known to the old server only.
                self.stop_session();
                self.disk.state.keys = NodeKeys::default();
                self.netmap.clear();
            }
            if !self.save() {
                self.disk.state.prefs = before;
                return Err(Refusal::Failed("the settings cannot be saved".into()));
            }
            self.prefs_changed(&before);
        }
        Ok(self.disk.state.prefs.clone())
    }

    fn prefs_changed(&mut self, before: &Prefs) {
        let prefs = self.disk.state.prefs.clone();
        self.out.operator.send_replace(prefs.operator_user.clone());
        let hostinfo = hostinfo::collect(&prefs.hostname, prefs.shields_up);
        self.edit_report(|report| report.hostinfo = hostinfo);
        if (prefs.route_all, prefs.shields_up) != (before.route_all, before.shields_up) {
            self.tell_engine(Change { local: true, ..Change::default() });
        }
        let wanted = prefs.want_running && !prefs.logged_out;
        if !wanted {
            self.stop_session();
        } else if self.login.session.is_none() || prefs.server_key != before.server_key {
            self.start_session(Login::Resume);
        }
    }

    fn start(&mut self, authority: Authority, options: &StartOptions) -> Result<(), Refusal> {
        if let Some(change) = &options.update_prefs {
            self.edit_prefs(authority, change)?;
        }
        self.want_up()?;
        let state = self.state();
        let logged_in = self.netmap.local().is_some() && state != State::NeedsLogin;
        let login = if !options.auth_key.is_empty() && !logged_in {
            Login::AuthKey(AuthKey::new(&options.auth_key))
        } else if self.netmap.local_expired((self.clock)()) {
            Login::Interactive
        } else {
            Login::Resume
        };
        // A login that is under way, or over, is left alone, unless something keeps it from going on.
        let undisturbed = self.login.session.is_some() && self.login.trouble.is_none() && state != State::NeedsLogin;
        if !(undisturbed && matches!(login, Login::Resume)) {
            self.start_session(login);
        }
        Ok(())
    }

    fn login_interactive(&mut self) -> Result<(), Refusal> {
        self.want_up()?;
        self.start_session(Login::Interactive);
        Ok(())
    }

    fn want_up(&mut self) -> Result<(), Refusal> {
        let prefs = &mut self.disk.state.prefs;
        if prefs.control_url.is_empty() {
            return Err(Refusal::Bad("no login server is set; say: warren up --login-server URL".into()));
        }
        prefs.want_running = true;
        prefs.logged_out = false;
        if self.save() { Ok(()) } else { Err(Refusal::Failed("the settings cannot be saved".into())) }
    }

    fn log_out(&mut self, reply: oneshot::Sender<Result<(), Refusal>>) {
        let key = self.disk.state.keys.current.clone();
        let target = self.target();
        let outcome = self.forget_login();
        let (Some(key), Ok(target), Ok(())) = (key, target, &outcome) else {
            drop(reply.send(outcome));
            return;
        };
        let connector = self.connector.clone();
        let hostinfo = self.out.report.borrow().hostinfo.clone();
        tokio::spawn(async move {
            let told = timeout(LOGOUT_TIMEOUT, log_out(&connector, &target, key.public(), &hostinfo)).await;
            let outcome = match told {
                Ok(Ok(())) => Ok(()),
                Ok(Err(trouble)) => Err(trouble.text),
                Err(_) => Err("the server does not answer".to_owned()),
            };
            let outcome = outcome
                .map_err(|text| Refusal::Failed(format!("logged out here, but the server does not know yet: {text}")));
            drop(reply.send(outcome));
        });
    }

    fn forget_login(&mut self) -> Result<(), Refusal> {
        self.stop_session();
        self.netmap.clear();
        self.disk.state.keys = NodeKeys::default();
        self.disk.state.prefs.logged_out = true;
        self.disk.state.prefs.want_running = false;
        if self.save() { Ok(()) } else { Err(Refusal::Failed("the logout cannot be saved".into())) }
    }

    fn ping(&self, address: std::net::IpAddr, reply: oneshot::Sender<PingResult>) {
        let mut result = PingResult { ip: address.to_string(), ..PingResult::default() };
        let own = self.netmap.local().is_some_and(|node| node.addresses.iter().any(|own| own.addr() == address));
        if own {
            result.is_local_ip = true;
            result.err = format!("{address} is this machine");
            drop(reply.send(result));
            return;
        }
        let Some(peer) = self.netmap.peer_at(address).filter(|_| self.carrying).cloned() else {
            result.err = if self.carrying { "no such peer" } else { "the node is stopped" }.to_owned();
            drop(reply.send(result));
            return;
        };
        let engine = Arc::clone(&self.engine);
        let relays = self.netmap.relays().cloned();
        tokio::spawn(async move {
            let pong = engine.ping(peer.key()).await;
            drop(reply.send(status::ping_result(result, &peer, pong, relays.as_deref())));
        });
    }
}

fn system_clock() -> Time {
    #[expect(clippy::disallowed_methods, reason = "the daemon is a shell: this is where it reads the clock")]
    let now = std::time::SystemTime::now();
    now.into()
}

#[cfg(test)]
mod tests;
