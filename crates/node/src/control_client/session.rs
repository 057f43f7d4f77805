//! One login's life: connect, register, follow the map, report changes, and again from the start when it breaks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use warren_wire::control::{
    self, CapabilityVersion, Hostinfo, MapRequest, MapResponse, NetInfo, ProofBinding, RegisterResponse, Time,
};
use warren_wire::flows::ANSWER_BYTES_MAX;
use warren_wire::key::{DiscoKey, MachineKey, NodeKey, NodeSecret};
use warren_wire::mapframe;
use zeroize::Zeroizing;

use super::backoff::{self, Backoff};
use super::certificate::Proof;
use super::connect::{CallError, ConnectError, Connection, Connector, Later, Target, checked, connect, is_later};
use super::ping;
use super::register::{Ask, Outcome, Purpose, register};
use crate::engine::Endpoint;
use crate::flow_log::{Link, Reply};
use crate::local_api::types::{Trouble, TroubleKind};
use crate::netmap::MapError;
use crate::state::NodeKeys;

/// A map stream without a message for this long is dead.
///
/// Source: Tailscale `control/controlclient/direct.go`, `watchdogTimeout`.
pub const WATCHDOG: Duration = Duration::from_secs(120);

/// A poll that lasted so long proves that server and way are sound: the next failure counts as the first.
const SETTLED: Duration = Duration::from_secs(10);

/// Over how long nodes spread their return when a connection that worked breaks.
const SPREAD: Duration = Duration::from_millis(500);

/// How often a machine with a certificate shows it again, which may have been renewed.
const PROVE_EVERY: Duration = Duration::from_secs(3600);

/// Least time between two reports: a change is reported at once, what follows on its heels is collected for so long.
const REPORT_SPACING: Duration = Duration::from_millis(30);

/// How long a report may take, and how long until it is tried again.
const REPORT_TIMEOUT: Duration = Duration::from_secs(20);
const REPORT_RETRY: Duration = Duration::from_secs(5);

/// How long the collector may take to store a piece of the flow log.
const FLOWS_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a refused auth key is shown before the login goes on without it.
const REFUSED_DELAY: Duration = Duration::from_secs(1);

/// Most pings of the server that are answered at a time.
const MAX_PINGS: usize = 4;

/// Is a secret that admits a machine to a tailnet; wiped when dropped, never printed.
#[derive(Clone)]
pub struct AuthKey(Zeroizing<String>);

impl AuthKey {
    /// Takes the key as the user typed it.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.trim().to_owned()))
    }
}

impl std::fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuthKey(…)")
    }
}

/// Says how to log in.
#[derive(Debug, Clone)]
pub enum Login {
    /// With the keys that are there; a person is asked only if the server insists.
    Resume,
    /// With an auth key.
    AuthKey(AuthKey),
    /// With a new node key and a person.
    Interactive,
}

/// Is what the server is told about this node, apart from its keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// This machine.
    pub hostinfo: Hostinfo,
    /// The network, once measured.
    pub net_info: Option<NetInfo>,
    /// Addresses at which peers may find this node.
    pub endpoints: Vec<Endpoint>,
    /// Disco key of this process.
    pub disco_key: DiscoKey,
}

/// Tells the daemon how the login goes on.
#[derive(Debug)]
pub enum Event {
    /// Keys to store before the server hears of them; the reply says whether they are on disk.
    Keys(NodeKeys, oneshot::Sender<bool>),
    /// The server's clock.
    ServerTime(Time),
    /// A person must visit this page.
    Visit(String),
    /// The node is registered.
    Registered(Box<RegisterResponse>),
    /// A new poll of the server with this key begins; the next map is complete.
    PollStarted(MachineKey),
    /// A map response.
    Map(Box<MapResponse>),
    /// Something failed; it is tried again.
    Trouble(Trouble),
    /// The login was refused for good; the session has ended.
    Refused(Trouble),
}

/// Holds what a session needs; [`Self::run`] is the session.
#[derive(Debug)]
pub struct Session<C> {
    /// Way to the network.
    pub connector: C,
    /// Whom to talk to.
    pub target: Target,
    /// Keys of the login.
    pub keys: NodeKeys,
    /// How to log in.
    pub login: Login,
    /// What to tell the server; read again on every change.
    pub report: watch::Receiver<Report>,
    /// What the flow log asks of the server, if there is one.
    pub flows: Option<Link>,
    /// Where to tell the daemon; bounded, the session waits when it is full.
    pub events: mpsc::Sender<Event>,
}

/// Holds what outlives a round.
#[derive(Debug, Default)]
struct Progress {
    /// The server has taken the node key, and has not said since that it does not know it.
    registered: bool,
    /// Key that the server showed; it is asked again only if that key does not work.
    server_key: Option<MachineKey>,
    /// Page where the login is open.
    login_page: Option<String>,
}

/// Says why a round ended.
#[derive(Debug)]
enum Ended {
    /// The daemon no longer listens.
    Daemon,
    Connect(ConnectError),
    Call(CallError),
    /// The server said no.
    Refused(String),
    /// The login page is still open: the server did not hold the question as long as a person takes.
    StillOpen,
    /// The keys could not be stored.
    Disk,
    /// The system gives no randomness.
    Random,
}

/// Says how a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    Over,
    CutShort,
}

impl Ended {
    /// Returns what the server says of when to come again.
    fn later(&self) -> Option<&Later> {
        match self {
            Self::Call(CallError::Status { status, later, .. }) if is_later(*status) => Some(later),
            Self::Connect(ConnectError::Busy { later, .. }) => Some(later),
            Self::Call(_)
            | Self::Connect(_)
            | Self::Daemon
            | Self::Refused(_)
            | Self::StillOpen
            | Self::Disk
            | Self::Random => None,
        }
    }

    /// Tells whether a connection was there and broke.
    fn is_broken(&self) -> bool {
        matches!(self, Self::Call(CallError::Broken(_)))
    }
}

impl From<CallError> for Ended {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl<C: Connector> Session<C> {
    /// Runs until the daemon drops its end of the events, or until the server refuses an auth key and there is no other
    /// way in.
    pub async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut progress = Progress::default();
        loop {
            let ended = self.round(&mut progress, &mut backoff).await;
            if matches!(ended, Ended::Daemon) {
                return;
            }
            if matches!(ended, Ended::Connect(ConnectError::Handshake { .. })) {
                // The server may have a new key: ask again, so that the error says so.
                progress.server_key = None;
            }
            if let Ended::Call(CallError::Status { status: 401 | 403 | 404, .. }) = ended {
                progress.registered = false;
            }
            let random = random();
            let mut wait = backoff.failed(random);
            let later = ended.later();
            if let Some(Later { retry_after, date }) = later {
                wait = backoff::retry_after(retry_after.as_deref(), *date, random);
            } else if ended.is_broken() && backoff.failures() == 1 {
                // The server may have ended, and then all its nodes come at once.
                wait = SPREAD.mul_f64(random);
            }
            let may_hurry = later.is_none();
            if !matches!(ended, Ended::StillOpen) {
                let trouble = trouble(&ended, backoff.failures());
                if trouble.attempts == 1 {
                    tracing::info!(kind = ?trouble.kind, text = trouble.text, "no contact with the server");
                } else {
                    let wait_ms = wait.as_millis();
                    tracing::debug!(attempts = trouble.attempts, wait_ms, text = trouble.text, "again");
                }
                if matches!((&ended, &self.login), (Ended::Refused(_), Login::AuthKey(_))) {
                    if self.keys.current.is_none() {
                        let _ = self.events.send(Event::Refused(trouble)).await;
                        return;
                    }
                    // What is registered may be good without the auth key.
                    self.login = Login::Resume;
                    wait = wait.max(REFUSED_DELAY);
                }
                if self.tell(Event::Trouble(trouble)).await.is_err() {
                    return;
                }
            }
            if self.pause(wait, may_hurry).await == Pause::CutShort {
                backoff.succeeded();
            }
        }
    }

    /// Waits. If the wait is our own idea, a network that changed meanwhile ends it: what failed before may work now.
    async fn pause(&mut self, wait: Duration, may_hurry: bool) -> Pause {
        let addresses = |report: &Report| report.endpoints.iter().map(|at| at.address.ip()).collect::<BTreeSet<_>>();
        let before = addresses(&self.report.borrow());
        let mut report = self.report.clone();
        let changed = report.wait_for(|report| !report.endpoints.is_empty() && addresses(report) != before);
        tokio::select! {
            () = sleep(wait) => Pause::Over,
            Ok(_) = changed, if may_hurry => Pause::CutShort,
        }
    }

    async fn round(&mut self, progress: &mut Progress, backoff: &mut Backoff) -> Ended {
        let connection = match connect(&self.connector, &self.target, progress.server_key).await {
            Ok(connection) => Arc::new(connection),
            Err(error) => return Ended::Connect(error),
        };
        progress.server_key = Some(connection.server_key());
        if let Some(date) = connection.server_date()
            && let Err(ended) = self.tell(Event::ServerTime(date)).await
        {
            return ended;
        }
        let proves = self.target.certificate.is_some();
        loop {
            if !progress.registered || proves {
                match self.register(&connection, &mut progress.login_page).await {
                    Ok(()) => progress.registered = true,
                    Err(ended) => return ended,
                }
            }
            let poll = self.poll(&connection, backoff);
            let ended = if proves { timeout(PROVE_EVERY, poll).await.ok() } else { Some(poll.await) };
            match ended {
                Some(Ok(never)) => match never {},
                Some(Err(ended)) => return ended,
                None => tracing::debug!("the machine's certificate is shown again"),
            }
        }
    }

    /// Proves that this machine holds its certificate, if it has one.
    async fn prove(&self, connection: &Connection, node: NodeKey) -> Result<Option<Proof>, Ended> {
        let Some(certificate) = self.target.certificate.as_ref().map(Arc::clone) else { return Ok(None) };
        let Some(challenge) = connection.challenge().await else {
            // Another kind of server, which would not look at it.
            return Ok(None);
        };
        let (server, machine) = (connection.server_key(), self.target.machine.public());
        let binding = ProofBinding { challenge, server, machine, node };
        let proved = tokio::task::spawn_blocking(move || certificate.prove(&binding)).await;
        proved
            .map_err(|_| Ended::Refused("the machine's certificate cannot be shown".into()))?
            .map(Some)
            .map_err(Ended::Refused)
    }

    async fn tell(&self, event: Event) -> Result<(), Ended> {
        self.events.send(event).await.map_err(|_| Ended::Daemon)
    }

    /// Takes over `keys` once they are on disk.
    async fn store_keys(&mut self, keys: NodeKeys) -> Result<(), Ended> {
        let (saved, answer) = oneshot::channel();
        self.tell(Event::Keys(keys.clone(), saved)).await?;
        match answer.await {
            Ok(true) => {
                self.keys = keys;
                Ok(())
            }
            Ok(false) => Err(Ended::Disk),
            Err(_) => Err(Ended::Daemon),
        }
    }

    async fn fresh_key(&mut self) -> Result<Arc<NodeSecret>, Ended> {
        let key = Arc::new(NodeSecret::generate().map_err(|_| Ended::Random)?);
        self.store_keys(NodeKeys { pending: Some(Arc::clone(&key)), ..self.keys.clone() }).await?;
        Ok(key)
    }

    /// Registers; `page` is where the login is open, from an earlier round too.
    async fn register(&mut self, connection: &Connection, page: &mut Option<String>) -> Result<(), Ended> {
        let reuse = match self.login {
            // While a login is open it is the new key that the person lets in.
            Login::Resume | Login::AuthKey(_) if page.is_none() => {
                self.keys.current.clone().or_else(|| self.keys.pending.clone())
            }
            Login::Resume | Login::AuthKey(_) => self.keys.pending.clone().or_else(|| self.keys.current.clone()),
            Login::Interactive => self.keys.pending.clone(),
        };
        let mut fresh = reuse.is_none();
        let mut key = match reuse {
            Some(key) => key,
            None => self.fresh_key().await?,
        };
        loop {
            let current = self.keys.current.as_ref().map(|key| key.public());
            let is_current = current == Some(key.public());
            let hostinfo = self.hostinfo();
            let proof = self.prove(connection, key.public()).await?;
            let ask = Ask {
                key: key.public(),
                proof: proof.as_ref(),
                previous: if is_current { self.keys.previous } else { current.or(self.keys.previous) },
                auth_key: match &self.login {
                    Login::AuthKey(AuthKey(text)) => Some(text.as_str()),
                    Login::Resume | Login::Interactive => None,
                },
                followup: page.as_deref(),
                hostinfo: &hostinfo,
                purpose: Purpose::Login,
            };
            match register(connection, &ask).await? {
                Outcome::Done(response) => {
                    if !is_current {
                        self.store_keys(NodeKeys { previous: current, current: Some(key), pending: None }).await?;
                    }
                    *page = None;
                    // From now on the login is an ordinary one: the auth key is spent and forgotten.
                    self.login = Login::Resume;
                    return self.tell(Event::Registered(response)).await;
                }
                Outcome::Visit(url) if page.as_deref() == Some(url.as_str()) => return Err(Ended::StillOpen),
                Outcome::Visit(url) => {
                    self.tell(Event::Visit(url.clone())).await?;
                    *page = Some(url);
                }
                Outcome::NewKey if fresh => {
                    return Err(Ended::Refused("the server calls a node key expired that was made just now".into()));
                }
                Outcome::NewKey => {
                    key = self.fresh_key().await?;
                    fresh = true;
                    *page = None;
                }
                Outcome::Refused(text) => {
                    *page = None;
                    return Err(Ended::Refused(text));
                }
            }
        }
    }

    fn hostinfo(&self) -> Hostinfo {
        let report = self.report.borrow();
        Hostinfo { net_info: report.net_info.clone(), ..report.hostinfo.clone() }
    }

    /// Follows the map until something breaks.
    async fn poll(
        &mut self,
        connection: &Arc<Connection>,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, Ended> {
        let Some(key) = self.keys.current.as_ref().map(|key| key.public()) else {
            return Err(Ended::Refused("no node key is registered".into()));
        };
        let mut report = self.report.clone();
        report.mark_changed();
        let reports = send_reports(connection, key, report);
        let flows = forward_flows(connection, self.flows.as_ref());
        let settled = AtomicBool::new(false);
        let settle = async {
            sleep(SETTLED).await;
            settled.store(true, Ordering::Relaxed);
            std::future::pending::<std::convert::Infallible>().await
        };
        let ended = tokio::select! {
            ended = self.follow(connection, key) => ended,
            never = reports => match never {},
            never = flows => match never {},
            never = settle => match never {},
        };
        if settled.into_inner() {
            backoff.succeeded();
        }
        ended
    }

    async fn follow(&self, connection: &Arc<Connection>, key: NodeKey) -> Result<std::convert::Infallible, Ended> {
        let request = MapRequest {
            stream: true,
            keep_alive: true,
            compress: "zstd".into(),
            debug_flags: vec![control::RULES_END.to_owned()],
            ..self.map_request(key)
        };
        let body = control::to_json(&request).map_err(|error| CallError::Malformed(error.to_string()))?;
        let call = connection.send(http::Method::POST, "/machine/map", body.into());
        let response = timeout(WATCHDOG, call).await.map_err(|_| CallError::Silent)??;
        let body = checked(response).await?.into_body();
        self.tell(Event::PollStarted(connection.server_key())).await?;
        let mut messages =
            Messages { body, decoder: mapframe::Decoder::new(mapframe::Compression::Zstd), rest: Bytes::new() };
        let pings = Arc::new(Semaphore::new(MAX_PINGS));
        let mut last_ping = String::new();
        let mut first = true;
        loop {
            let mut response = timeout(WATCHDOG, messages.next()).await.map_err(|_| CallError::Silent)??;
            if let Some(ping) = response.ping_request.take()
                && ping.url != last_ping
            {
                last_ping.clone_from(&ping.url);
                if let Ok(permit) = Arc::clone(&pings).try_acquire_owned() {
                    let connection = Arc::clone(connection);
                    tokio::spawn(async move {
                        ping::answer(&connection, &ping).await;
                        drop(permit);
                    });
                }
            }
            if response.keep_alive {
                if let Some(time) = response.control_time {
                    self.tell(Event::ServerTime(time)).await?;
                }
                continue;
            }
            if let Some(error) = unusable(&response, first, key) {
                return Err(CallError::Malformed(error.to_string()).into());
            }
            first = false;
            self.tell(Event::Map(Box::new(response))).await?;
        }
    }

    fn map_request(&self, key: NodeKey) -> MapRequest {
        let report = self.report.borrow();
        MapRequest {
            version: CapabilityVersion(crate::CAPABILITY_VERSION),
            node_key: key,
            disco_key: Some(report.disco_key),
            hostinfo: Some(Hostinfo { net_info: report.net_info.clone(), ..report.hostinfo.clone() }),
            ..MapRequest::default()
        }
    }
}

/// Reads a map stream message by message.
struct Messages {
    body: Incoming,
    decoder: mapframe::Decoder,
    /// Received, but not looked at yet.
    rest: Bytes,
}

impl Messages {
    async fn next(&mut self) -> Result<MapResponse, CallError> {
        let malformed = |error: &dyn std::fmt::Display| CallError::Malformed(error.to_string());
        loop {
            let mut data = &self.rest[..];
            let document = self.decoder.next_document(&mut data).map_err(|error| malformed(&error))?;
            self.rest = self.rest.slice_ref(data);
            if let Some(json) = document {
                return control::from_json(&json).map_err(|error| malformed(&error));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.rest = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Err(CallError::Broken(error.to_string())),
                None => return Err(CallError::Broken("the server ended the map".into())),
            }
        }
    }
}

/// Says why a map response cannot be for this node.
fn unusable(response: &MapResponse, first: bool, key: NodeKey) -> Option<MapError> {
    match &response.node {
        None => first.then_some(MapError::NoSelf),
        Some(node) => (node.key != key).then_some(MapError::WrongKey),
    }
}

/// Reports every change to the server, one report at a time, the newest state only: a change that comes after a silence
/// at once, so that peers learn of it as soon as can be; later ones together.
async fn send_reports(
    connection: &Connection,
    key: NodeKey,
    mut report: watch::Receiver<Report>,
) -> std::convert::Infallible {
    let mut told: Option<Report> = None;
    let mut spacing = Box::pin(sleep(Duration::ZERO));
    loop {
        if report.changed().await.is_err() {
            return std::future::pending().await;
        }
        spacing.as_mut().await;
        spacing.set(sleep(REPORT_SPACING));
        let now = report.borrow_and_update().clone();
        if told.as_ref() == Some(&now) {
            continue;
        }
        match timeout(REPORT_TIMEOUT, send_report(connection, key, &now)).await {
            Ok(Ok(())) => told = Some(now),
            Ok(Err(error)) => {
                tracing::debug!(%error, "report to the server failed");
                sleep(REPORT_RETRY).await;
                report.mark_changed();
            }
            Err(_) => report.mark_changed(),
        }
    }
}

/// Asks the server what the flow log wants to ask, one after the other, as long as the connection lasts.
async fn forward_flows(connection: &Connection, link: Option<&Link>) -> std::convert::Infallible {
    let Some(calls) = link.map(Link::calls) else { return std::future::pending().await };
    // One session at a time has a connection; another that ends gives the queue back.
    let mut queue = calls.lock().await;
    while let Some(call) = queue.recv().await {
        if call.reply.is_closed() || call.server != connection.server_key() {
            continue;
        }
        let asked = timeout(FLOWS_TIMEOUT, ask_flows(connection, call.path, call.body)).await;
        let reply = match asked.unwrap_or(Err(CallError::Silent)) {
            Ok(body) => Reply::Done(body),
            Err(CallError::Status { status, text, .. }) => Reply::Status(status, text),
            Err(error @ (CallError::Broken(_) | CallError::Malformed(_) | CallError::Silent)) => {
                Reply::Broken(error.to_string())
            }
        };
        let _ = call.reply.send(reply);
    }
    std::future::pending().await
}

async fn ask_flows(connection: &Connection, path: &str, body: Bytes) -> Result<Bytes, CallError> {
    let response = checked(connection.send(http::Method::POST, path, body).await?).await?;
    let body = http_body_util::Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    body.map(|body| body.to_bytes()).map_err(|error| CallError::Broken(error.to_string()))
}

async fn send_report(connection: &Connection, key: NodeKey, report: &Report) -> Result<(), CallError> {
    let request = MapRequest {
        version: CapabilityVersion(crate::CAPABILITY_VERSION),
        node_key: key,
        disco_key: Some(report.disco_key),
        hostinfo: Some(Hostinfo { net_info: report.net_info.clone(), ..report.hostinfo.clone() }),
        endpoints: report.endpoints.iter().map(|endpoint| endpoint.address).collect(),
        endpoint_types: report.endpoints.iter().map(|endpoint| endpoint.kind).collect(),
        omit_peers: true,
        ..MapRequest::default()
    };
    let body = control::to_json(&request).map_err(|error| CallError::Malformed(error.to_string()))?;
    let response = connection.send(http::Method::POST, "/machine/map", body.into()).await?;
    checked(response).await.map(drop)
}

/// Tells the server that the node key is no longer used. Tried once.
///
/// # Errors
/// Says why the server did not hear of it; the keys can be forgotten all the same.
pub async fn log_out<C: Connector>(
    connector: &C,
    target: &Target,
    key: NodeKey,
    hostinfo: &Hostinfo,
) -> Result<(), Trouble> {
    let ended = |ended| trouble(&ended, 1);
    let connection = connect(connector, target, None).await.map_err(|error| ended(Ended::Connect(error)))?;
    let ask =
        Ask { key, previous: None, auth_key: None, followup: None, hostinfo, purpose: Purpose::Logout, proof: None };
    register(&connection, &ask).await.map(drop).map_err(|error| ended(Ended::Call(error)))
}

/// Sorts a failure and words it for the user.
fn trouble(ended: &Ended, attempts: u32) -> Trouble {
    let (kind, text) = match ended {
        Ended::Connect(error) => {
            let kind = match error {
                ConnectError::Unreachable { .. } | ConnectError::NoSuchHost { .. } | ConnectError::Slow { .. } => {
                    TroubleKind::Unreachable
                }
                ConnectError::PinNeeded { .. } | ConnectError::WrongKey { .. } => TroubleKind::ServerKey,
                ConnectError::Tls { clock: true, .. } => TroubleKind::Clock,
                ConnectError::Tls { .. }
                | ConnectError::NotAServer { .. }
                | ConnectError::Busy { .. }
                | ConnectError::Handshake { .. } => TroubleKind::Server,
            };
            (kind, error.to_string())
        }
        Ended::Call(error) => (TroubleKind::Server, error.to_string()),
        Ended::Refused(text) => (TroubleKind::Refused, format!("the server refused this machine: {text}")),
        Ended::StillOpen => (TroubleKind::Server, "the login is still open".into()),
        Ended::Disk => (TroubleKind::Local, "the node's keys cannot be stored; see the log of warren node".into()),
        Ended::Random => (TroubleKind::Local, "the system gives no randomness".into()),
        Ended::Daemon => (TroubleKind::Local, "the node is shutting down".into()),
    };
    Trouble { kind, text, attempts }
}

/// Returns a number uniform in 0.0 to 1.0, for jitter.
fn random() -> f64 {
    let bits = getrandom::u32().unwrap_or(u32::MAX / 2);
    f64::from(bits) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests;
