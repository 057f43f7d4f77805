//! A daemon between a server that the test plays, an engine that only takes notes, and a caller of the local API.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use warren_wire::control::{
    DerpMap, DerpRegion, FilterRule, MapRequest, MapResponse, Node as Record, NodeId, RegionId, RegisterRequest,
    RegisterResponse, Time,
};
use warren_wire::key::{MachineKey, NodeKey};

use super::super::*;
use crate::control_client::fake::{Call, Fake, MapStream, Reply};
use crate::engine::{Netcheck, NullEngine, PingError, Pong, Status};
use crate::local_api::types::{StartOptions, Status as Shown};
use crate::local_api::{Authority, Peers, Refusal, Who};
use crate::prefs::Prefs;

/// What the clock shows when a test begins.
pub(super) const NOON: i64 = 1_800_000_000;

/// How long anything may take, on the paused clock.
const PATIENCE: Duration = Duration::from_secs(30 * 24 * 3600);

thread_local! {
    static BEGIN: Cell<Option<Instant>> = const { Cell::new(None) };
    /// By how many seconds somebody has set the time of day forward.
    pub(super) static SET_FORWARD: Cell<i64> = const { Cell::new(0) };
}

#[expect(clippy::disallowed_methods, reason = "the paused clock of the test")]
fn instant() -> Instant {
    Instant::now()
}

/// Clocks that go with the paused clock of the test.
pub(super) fn clock() -> Moment {
    let steady = instant() - BEGIN.get().unwrap();
    Moment { steady, wall: Time::from_unix(NOON + SET_FORWARD.get(), 0).unwrap().saturating_add(steady) }
}

/// Takes notes, and says when it is shut down.
pub(super) struct Probe {
    notes: NullEngine,
    shut: AtomicBool,
}

impl Engine for Probe {
    fn apply(&self, update: Update) {
        assert!(!self.shut.load(Ordering::Relaxed), "the engine is told something after its end");
        self.notes.apply(update);
    }

    async fn status(&self) -> Status {
        self.notes.status().await
    }

    async fn ping(&self, peer: NodeKey) -> Result<Pong, PingError> {
        self.notes.ping(peer).await
    }

    async fn netcheck(&self) -> Netcheck {
        self.notes.netcheck().await
    }

    async fn shutdown(&self) {
        self.shut.store(true, Ordering::Relaxed);
    }
}

/// A daemon that runs.
pub(super) struct Fixture {
    dir: PathBuf,
    pub(super) server: Fake,
    pub(super) calls: mpsc::Receiver<Call>,
    engine: Arc<Probe>,
    pub(super) engine_events: mpsc::Sender<engine::Event>,
    pub(super) shared: Shared,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Ended>,
    /// Messages that carried a mark so far.
    marks: Cell<u32>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn boot(dir: &std::path::Path, server: &Fake) -> (Arc<Probe>, mpsc::Sender<engine::Event>, Shared, Running) {
    let (store, state) = Store::open(dir).unwrap();
    let engine = Probe { notes: NullEngine::new(), shut: AtomicBool::new(false) };
    let (mut daemon, shared) = Daemon::new(engine, server.clone(), (store, state), DiscoSecret::generate().unwrap(), 0);
    daemon.clock = clock;
    let engine = Arc::clone(&daemon.engine);
    let (engine_events, events) = mpsc::channel(16);
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(daemon.run(events, async move { drop(stopped.await) }));
    (engine, engine_events, shared, (stop, task))
}

type Running = (oneshot::Sender<()>, JoinHandle<Ended>);

impl Fixture {
    /// Starts a daemon on a fresh state directory.
    pub(super) fn new(name: &str) -> Self {
        BEGIN.set(Some(instant()));
        let dir = std::env::temp_dir().join(format!("warren-daemon-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let (server, calls) = Fake::new();
        let (engine, engine_events, shared, (stop, task)) = boot(&dir, &server);
        Self { dir, server, calls, engine, engine_events, shared, stop: Some(stop), task, marks: Cell::new(0) }
    }

    /// Starts a daemon, logs it in, and lets it reach its first map.
    pub(super) async fn running(name: &str, map: MapResponse) -> (Self, MapStream) {
        let mut node = Self::new(name);
        node.start("wkey-good").await.unwrap();
        let stream = node.join(map).await;
        (node, stream)
    }

    /// Ends the daemon and waits until it has.
    pub(super) async fn stop(&mut self) -> Ended {
        drop(self.stop.take());
        timeout(PATIENCE, &mut self.task).await.unwrap().unwrap()
    }

    /// Returns how the daemon ended by itself.
    pub(super) async fn ended(&mut self) -> Ended {
        timeout(PATIENCE, &mut self.task).await.unwrap().unwrap()
    }

    /// Ends the daemon and starts another one on the same directory.
    pub(super) async fn restart(&mut self) {
        assert_eq!(self.stop().await, Ended::Asked);
        while self.calls.try_recv().is_ok() {}
        let (engine, engine_events, shared, (stop, task)) = boot(&self.dir, &self.server);
        (self.engine, self.engine_events, self.shared, self.stop, self.task) =
            (engine, engine_events, shared, Some(stop), task);
    }

    /// Tells whether the engine was shut down.
    pub(super) fn engine_is_shut(&self) -> bool {
        self.engine.shut.load(Ordering::Relaxed)
    }

    /// Takes what the engine was told since the last call, but for whether the server listens and an exit node is wanted.
    pub(super) fn updates(&self) -> Vec<Update> {
        self.updates_and_hearing().0
    }

    /// Takes that, too.
    pub(super) fn updates_and_hearing(&self) -> (Vec<Update>, Vec<bool>) {
        let mut updates = self.engine.notes.take_updates();
        let hearing = updates.iter_mut().filter_map(|update| update.server_listens.take()).collect();
        updates.iter_mut().for_each(|update| update.wants_exit = None);
        updates.retain(|update| !update.is_empty());
        (updates, hearing)
    }

    /// Takes what the engine was told of the wish for an exit node, and forgets the rest.
    pub(super) fn exit_wishes(&self) -> Vec<bool> {
        self.engine.notes.take_updates().into_iter().filter_map(|update| update.wants_exit).collect()
    }

    /// Makes every write to the state directory fail.
    pub(super) fn break_disk(&self) {
        std::fs::remove_dir_all(&self.dir).unwrap();
    }

    /// Returns the kept map's text, if there is one.
    pub(super) fn kept_map(&self) -> Option<String> {
        std::fs::read_to_string(self.dir.join("map.json")).ok()
    }

    /// Puts a text in the place of the kept map.
    pub(super) fn put_kept_map(&self, text: &str) {
        std::fs::write(self.dir.join("map.json"), text).unwrap();
    }

    /// Returns the state file's text.
    pub(super) fn state_file(&self) -> String {
        std::fs::read_to_string(self.dir.join(state::STATE_FILE)).unwrap()
    }

    // What local programs do.

    /// Asks the daemon.
    pub(super) async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> T {
        let (reply, answer) = oneshot::channel();
        self.shared.requests.send(request(reply)).await.unwrap();
        timeout(PATIENCE, answer).await.unwrap().unwrap()
    }

    /// Does what `warren up --login-server … --auth-key …` does; without key if it is empty.
    pub(super) async fn start(&self, auth_key: &str) -> Result<(), Refusal> {
        let update_prefs = json!({
            "ControlURL": "http://127.0.0.1:8080", "ControlURLSet": true, "Hostname": "alpha", "HostnameSet": true,
        });
        let options = StartOptions { auth_key: auth_key.into(), update_prefs: Some(update_prefs) };
        self.ask(|reply| Request::Start(Authority::Root, options, reply)).await
    }

    /// Changes settings as root.
    pub(super) async fn edit(&self, change: Value) -> Result<Prefs, Refusal> {
        self.ask(|reply| Request::EditPrefs(Authority::Root, change, reply)).await
    }

    /// Returns the status.
    pub(super) async fn status(&self) -> Box<Shown> {
        self.ask(|reply| Request::Status(Peers::Listed, reply)).await
    }

    /// Tells whether `who` is found.
    pub(super) async fn knows(&self, who: Who) -> bool {
        self.ask(|reply| Request::WhoIs(who, reply)).await.is_some()
    }

    /// Waits until the bus shows what is wanted.
    pub(super) async fn bus(&self, wanted: impl FnMut(&Bus) -> bool) -> Bus {
        let mut bus = self.shared.bus.clone();
        let seen = timeout(PATIENCE, bus.wait_for(wanted)).await;
        match seen {
            Ok(bus) => bus.unwrap().clone(),
            Err(_) => panic!("the bus still shows {:?}", self.shared.bus.borrow()),
        }
    }

    /// Waits for a state.
    pub(super) async fn reach(&self, state: State) -> Bus {
        self.bus(|bus| bus.state == state).await
    }

    // What the server does.

    /// Returns the next call of the node.
    pub(super) async fn call(&mut self) -> Call {
        timeout(PATIENCE, self.calls.recv()).await.unwrap().unwrap()
    }

    /// Returns the next call that is no report, which must be a registration.
    pub(super) async fn register(&mut self) -> (RegisterRequest, oneshot::Sender<Reply>) {
        loop {
            match self.call().await {
                Call::Register(request, reply) => return (request, reply),
                Call::Report(_) => {}
                call => panic!("{call:?}"),
            }
        }
    }

    /// Returns the next map poll, and the first report.
    pub(super) async fn poll(&mut self) -> (MapRequest, MapStream, MapRequest) {
        let (mut poll, mut report) = (None, None);
        loop {
            match self.call().await {
                Call::Poll(request, stream) => poll = Some((request, stream)),
                Call::Report(request) => report = Some(request),
                call => panic!("{call:?}"),
            }
            if let (Some(_), Some(_)) = (&poll, &report) {
                let (request, stream) = poll.unwrap();
                return (request, stream, report.unwrap());
            }
        }
    }

    /// Accepts the registration and sends the first map, with the node's key filled in, until the node runs.
    pub(super) async fn join(&mut self, map: MapResponse) -> MapStream {
        let (_, reply) = self.register().await;
        reply.send(Reply::ok()).unwrap();
        self.follow(map).await
    }

    /// Sends the first map of a poll, with the node's key filled in, until the node runs.
    pub(super) async fn follow(&mut self, mut map: MapResponse) -> MapStream {
        let (request, stream, _) = self.poll().await;
        if let Some(node) = &mut map.node {
            node.key = request.node_key;
        }
        self.send(&stream, map).await;
        self.engine_events.send(engine::Event::Live { relays: 1, peers: 0 }).await.unwrap();
        self.reach(State::Running).await;
        stream
    }

    /// Sends a message and waits until it has been taken in; its domain serves as a mark.
    pub(super) async fn send(&self, stream: &MapStream, response: MapResponse) {
        self.marks.set(self.marks.get() + 1);
        let domain = format!("mark-{}", self.marks.get());
        stream.send(&MapResponse { domain: domain.clone(), ..response }).await;
        self.shows(|status| status.current_tailnet.as_ref().is_some_and(|tailnet| tailnet.name == domain)).await;
    }

    /// Waits until the status shows what is wanted.
    pub(super) async fn shows(&self, wanted: impl Fn(&Shown) -> bool) {
        for _ in 0..10_000 {
            if wanted(&*self.status().await) {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("the status still is {:?}", self.status().await);
    }

    /// Returns the machine keys that the server has seen.
    pub(super) fn machines(&self) -> Vec<MachineKey> {
        self.server.machines()
    }
}

/// Returns an answer that sends a person to `page`.
pub(super) fn visit(page: &str) -> Reply {
    Reply::Json(Box::new(RegisterResponse { auth_url: page.into(), ..RegisterResponse::default() }))
}

/// Returns an answer that refuses.
pub(super) fn refuse(text: &str) -> Reply {
    Reply::Json(Box::new(RegisterResponse { error: text.into(), ..RegisterResponse::default() }))
}

/// Returns this node's own record; the key is still to be filled in.
pub(super) fn own() -> Record {
    Record {
        id: NodeId(1),
        name: "alpha.t.example.".into(),
        addresses: vec!["100.64.0.1/32".parse().unwrap()],
        machine_authorized: true,
        ..Record::default()
    }
}

/// Returns a peer whose ID, key and address come from `number`.
pub(super) fn peer(number: u8) -> Record {
    Record {
        id: NodeId(i64::from(number)),
        name: format!("peer{number}.t.example."),
        key: peer_key(number),
        addresses: vec![format!("100.64.0.{number}/32").parse().unwrap()],
        ..Record::default()
    }
}

/// Returns the key of [`peer`].
pub(super) fn peer_key(number: u8) -> NodeKey {
    NodeKey::from_bytes([number; 32])
}

/// Returns a first map: one relay, one rule, and peers.
pub(super) fn map(peers: &[u8]) -> MapResponse {
    let region = DerpRegion { region_id: RegionId(900), region_code: "home".into(), ..DerpRegion::default() };
    MapResponse {
        node: Some(Box::new(own())),
        peers: peers.iter().copied().map(peer).collect(),
        derp_map: Some(DerpMap { regions: Some([(RegionId(900), region)].into()), ..DerpMap::default() }),
        packet_filter: Some(vec![FilterRule { src_ips: vec!["*".into()], ..FilterRule::default() }]),
        domain: "t.example".into(),
        ..MapResponse::default()
    }
}
