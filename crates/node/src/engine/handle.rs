//! The engine as the daemon holds it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{Notify, mpsc, oneshot};
use warren_os::{BYPASS_MARK, IfName, LinkWatch, Netlink, NetlinkError, SettingsWatch, Tun, TunError, Waker};
use warren_relay::dial::Outside;
use warren_wire::key::NodeKey;

use crate::host;
use crate::userspace::line::{StackEnd, WorkerEnd, line};
use crate::userspace::{Dialer, INTERFACE, Network};

use super::decision::{Decision, Machine, Parts, Traits};
use super::door::Door;
use super::forwarder::Forwarder;
use super::name_service::Reach;
use super::shared::{Shared, Sockets};
use super::ways::Ways;
use super::{Engine, Event, Netcheck, Options, PingError, Pong, RecordSink, StartError, Status, Update, worker};

/// Questions that may wait for the decision task.
const REQUESTS: usize = 64;

/// Moves packets between this machine and its peers.
///
/// Dropping it ends all work soon; [`Engine::shutdown`] says when that is done.
#[derive(Debug)]
pub struct PacketEngine {
    inbox: Arc<Inbox>,
    requests: mpsc::Sender<Request>,
    dialer: Dialer,
}

/// Holds what the daemon wants and the decision task has not seen yet.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    update: Mutex<Update>,
    pub(super) bell: Notify,
}

impl Inbox {
    fn put(&self, update: Update) {
        self.update.lock().unwrap_or_else(PoisonError::into_inner).merge(update);
        self.bell.notify_one();
    }

    /// Takes all that came.
    pub(super) fn take(&self) -> Update {
        std::mem::take(&mut *self.update.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Is a question of the daemon.
#[derive(Debug)]
pub(super) enum Request {
    Status(oneshot::Sender<Status>),
    Ping(NodeKey, oneshot::Sender<Result<Pong, PingError>>),
    Netcheck(oneshot::Sender<Netcheck>),
    Shutdown(oneshot::Sender<()>),
}

/// Opens interface and sockets and starts the engine's thread and tasks on the present tokio runtime. What the engine
/// finds out goes to `events`, which should hold at least 16.
///
/// The interface is there from now on; it is down and without addresses while the node is off the tailnet.
///
/// With `records` all connections are written down there, once they are wanted. While it is full, notes wait; what finds no room is counted and
/// said, and packets never wait for it.
///
/// # Errors
/// Says what the machine lacks.
pub async fn start(
    options: Options,
    events: mpsc::Sender<Event>,
    records: Option<RecordSink>,
) -> Result<PacketEngine, StartError> {
    let now = now();
    warren_relay::dial::reach(Outside { mark: BYPASS_MARK, look_up: crate::look_up::outside });
    let side = if options.interface == INTERFACE {
        let (worker, stack) = line();
        HostSide::Stack(worker, stack)
    } else {
        let name = parse_name(&options.interface)?;
        let tun = Tun::open_queues(&name, options.mtu, options.offload, host::QUEUES)
            .map_err(|error| no_tun(&options.interface, &error))?;
        HostSide::Tun(tun, name)
    };
    let sockets = Sockets::bind(options.port, options.offload).map_err(|error| {
        if error.kind() == io::ErrorKind::AddrInUse {
            StartError::PortBusy(options.port)
        } else {
            StartError::Other(format!("cannot open a UDP socket: {error}"))
        }
    })?;
    let netlink = Netlink::connect().map_err(|error| {
        if matches!(error, NetlinkError::Denied { .. }) {
            StartError::Permission(options.interface.clone())
        } else {
            StartError::Other(error.to_string())
        }
    })?;
    let waker = Waker::new().map_err(|error| StartError::Other(format!("cannot make an event descriptor: {error}")))?;
    let no_randomness = |error| StartError::Other(format!("the system gives no randomness: {error}"));
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(no_randomness)?;
    let mut rng = StdRng::from_seed(seed);

    let (shared, mut worker_ends, decision_ends) = Shared::new(waker, sockets, now);
    let (door, machine, network) = match side {
        HostSide::Tun(tun, name) => {
            let mut machine = Machine::new(netlink, tun.index(), name);
            // What an earlier process left on an interface that outlives processes.
            machine.set_down().await;
            (Door::Tun(tun), machine, None)
        }
        HostSide::Stack(worker, stack) => {
            let network = Network::new(options.mtu, rng.random());
            let ways = Ways::new(Arc::clone(&shared));
            network.tell_apart(Arc::new(move |address| ways.peer(address)));
            let waking = Arc::clone(&shared);
            network
                .spawn(stack, options.mtu, move || waking.waker.wake())
                .map_err(|error| StartError::Other(format!("cannot start a thread: {error}")))?;
            // The name is shown to nobody: nothing of the machine is changed.
            let machine = Machine::without_interface(netlink, parse_name("userspace")?, network.clone());
            (Door::Stack(worker), machine, Some(network))
        }
    };
    let reach = network.clone().map(|network| Reach { ways: Ways::new(Arc::clone(&shared)), network });
    let dialer = Dialer::new(Ways::new(Arc::clone(&shared)), network);
    let forwarder = Forwarder::new(options.mtu, rng.random(), now);
    worker_ends.records = records;
    let thread = worker::spawn(Arc::clone(&shared), worker_ends, door, forwarder, options.offload)
        .map_err(|error| StartError::Other(format!("cannot start a thread: {error}")))?;

    let (requests, asked) = mpsc::channel(REQUESTS);
    let inbox = Arc::new(Inbox::default());
    let links_changed = Arc::new(Notify::new());
    watch_links(&links_changed);
    watch_settings(&links_changed);
    let decision = Decision::new(Parts {
        shared,
        ends: decision_ends,
        inbox: Arc::clone(&inbox),
        requests: asked,
        events,
        machine,
        interface: options.interface,
        links_changed,
        keeps_port: options.keeps_port,
        traits: Traits {
            mtu: options.mtu,
            probe_mtu: options.probe_mtu,
            static_endpoints: options.static_endpoints.into(),
            reach,
        },
        worker: thread,
        rng,
    });
    tokio::spawn(decision.run());
    Ok(PacketEngine { inbox, requests, dialer })
}

/// What the machine gives the engine.
enum HostSide {
    Tun(Tun, IfName),
    Stack(WorkerEnd, StackEnd),
}

fn parse_name(text: &str) -> Result<IfName, StartError> {
    text.parse().map_err(|error| {
        StartError::Other(format!("{text} is no name for an interface: {error}; choose another with --tun"))
    })
}

/// Rings when interfaces, addresses or routes have changed, until the bell's owner is gone.
fn watch_links(bell: &Arc<Notify>) {
    let mut watch = match LinkWatch::new() {
        Ok(watch) => watch,
        Err(error) => {
            tracing::warn!(%error, "changes of the network will not be noticed");
            return;
        }
    };
    let bell = Arc::downgrade(bell);
    // A task of its own, because waiting must not be cut short: a change that is being waited out would be lost.
    tokio::spawn(async move {
        while watch.changed().await.is_ok() {
            let Some(bell) = bell.upgrade() else { return };
            bell.notify_one();
        }
    });
}

/// Rings likewise when somebody may have changed where programs ask for names.
fn watch_settings(bell: &Arc<Notify>) {
    let mut watch = match SettingsWatch::new() {
        Ok(watch) => watch,
        Err(error) => {
            tracing::warn!(%error, "changes of /etc/resolv.conf will not be noticed before the network changes");
            return;
        }
    };
    let bell = Arc::downgrade(bell);
    tokio::spawn(async move {
        while watch.changed().await.is_ok() {
            let Some(bell) = bell.upgrade() else { return };
            bell.notify_one();
        }
    });
}

impl Engine for PacketEngine {
    fn apply(&self, update: Update) {
        self.inbox.put(update);
    }

    async fn status(&self) -> Status {
        self.ask(Request::Status).await.unwrap_or_default()
    }

    async fn ping(&self, peer: NodeKey) -> Result<Pong, PingError> {
        self.ask(|reply| Request::Ping(peer, reply)).await.unwrap_or(Err(PingError::Stopped))
    }

    async fn netcheck(&self) -> Netcheck {
        self.ask(Request::Netcheck).await.unwrap_or_default()
    }

    async fn shutdown(&self) {
        let _ = self.ask(Request::Shutdown).await;
    }
}

impl PacketEngine {
    /// Returns what finds the way to names and addresses, and connects there if this node has no TUN device.
    #[must_use]
    pub fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// Asks the decision task; `None` if it has ended.
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.ok()?;
        answer.await.ok()
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "every other text says by itself what to do")]
fn no_tun(interface: &str, error: &TunError) -> StartError {
    match error {
        TunError::Missing => StartError::NoTun,
        TunError::OpenDenied | TunError::CreateDenied { .. } => StartError::Permission(interface.to_owned()),
        TunError::Taken { .. } => StartError::InterfaceBusy(interface.to_owned()),
        error => StartError::Other(error.to_string()),
    }
}

#[expect(clippy::disallowed_methods, reason = "the start of the engine's clock")]
fn now() -> Instant {
    Instant::now()
}
