//! The decision task: one owner of handshakes, paths, measurements, relay connections and the interface.
//!
//! It never waits for a packet. After each input to a core it drains the core, and what the worker must know is
//! published: a peer's session and path in the peer's slot, prefixes and filter as one snapshot.

mod exit;
mod measure;
mod names;
mod peer_relays;
mod relay_view;
mod relays;
mod routers;
mod routes;
mod tailnet;
mod traffic;
mod update;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rand::rngs::StdRng;
use tokio::sync::{Notify, mpsc, oneshot};
use warren_path::PingError as PathPingError;

use super::forwarder::stand_ins;
use super::handle::{Inbox, Request};
use super::name_service::Reach;
use super::outlet::Outlet;
use super::relay_link::{LinkEvent, LinkSetup};
use super::shared::{DecisionEnds, Shared, Signal};
use super::{Event, Netcheck, PingError, Status};
use measure::{Found, Rebind};
use routes::Link;
use tailnet::Tailnet;

pub(super) use routes::Machine;

/// Inputs of one kind that are handled before the others get their turn.
const BUDGET: usize = 64;
/// Events of relay connections that may wait.
const LINK_EVENTS: usize = 256;
/// Findings of measurements that may wait.
const FOUND: usize = 64;
/// Least time between two attempts to open failed sockets anew.
///
/// Source: Tailscale `wgengine/magicsock/magicsock.go`, `maybeRebindOnError`.
const REBIND_SPACING: Duration = Duration::from_secs(5);

/// What was chosen when the node was started, for good.
#[derive(Debug, Clone, Default)]
pub(super) struct Traits {
    /// The largest packet of the tunnel.
    pub(super) mtu: u16,
    /// Whether to find out how large packets paths carry, if somebody said it.
    pub(super) probe_mtu: Option<bool>,
    /// Addresses at which peers find this node, as its user says.
    pub(super) static_endpoints: Arc<[SocketAddr]>,
    /// How resolvers are reached, if there is no TUN device.
    pub(super) reach: Option<Reach>,
}

/// What a decision task is made of.
pub(super) struct Parts {
    pub(super) shared: Arc<Shared>,
    pub(super) ends: DecisionEnds,
    pub(super) inbox: Arc<Inbox>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) machine: Machine,
    /// Name of the interface.
    pub(super) interface: String,
    /// Rings when interfaces, addresses or routes have changed.
    pub(super) links_changed: Arc<Notify>,
    /// The UDP port must stay.
    pub(super) keeps_port: bool,
    pub(super) traits: Traits,
    pub(super) worker: JoinHandle<()>,
    /// Freshly seeded.
    pub(super) rng: StdRng,
}

/// Owns all decisions.
pub(super) struct Decision {
    shared: Arc<Shared>,
    ends: DecisionEnds,
    inbox: Arc<Inbox>,
    requests: mpsc::Receiver<Request>,
    outlet: Outlet,
    machine: Machine,
    interface: String,
    links_changed: Arc<Notify>,
    keeps_port: bool,
    traits: Traits,
    worker: JoinHandle<()>,
    links: mpsc::Receiver<LinkEvent>,
    link_setup: LinkSetup,
    found: mpsc::Receiver<Found>,
    found_sender: mpsc::Sender<Found>,
    rng: StdRng,
    /// What there is while the node is on the tailnet.
    tailnet: Option<Tailnet>,
    server_listens: bool,
    rebound_at: Option<Instant>,
    /// The worker has ended by itself.
    dead: bool,
    /// This node leads to sites, or did, so that the worker has addresses for those who speak to them.
    knows_sites: bool,
}

impl Decision {
    /// Puts the parts together; nothing runs yet.
    pub(super) fn new(parts: Parts) -> Self {
        let (link_events, links) = mpsc::channel(LINK_EVENTS);
        let (found_sender, found) = mpsc::channel(FOUND);
        let link_setup = LinkSetup {
            shared: Arc::clone(&parts.shared),
            relayed: parts.ends.relayed.clone(),
            events: link_events,
            next: Arc::default(),
        };
        Self {
            shared: parts.shared,
            ends: parts.ends,
            inbox: parts.inbox,
            requests: parts.requests,
            outlet: Outlet::new(parts.events),
            machine: parts.machine,
            interface: parts.interface,
            links_changed: parts.links_changed,
            keeps_port: parts.keeps_port,
            traits: parts.traits,
            worker: parts.worker,
            links,
            link_setup,
            found,
            found_sender,
            rng: parts.rng,
            tailnet: None,
            server_listens: true,
            rebound_at: None,
            dead: false,
            knows_sites: false,
        }
    }

    /// Runs until it is asked to end or nobody is left to ask.
    pub(super) async fn run(mut self) {
        let mut signals = Vec::with_capacity(BUDGET);
        let mut datagrams = Vec::with_capacity(BUDGET);
        let mut to_relay = Vec::with_capacity(BUDGET);
        let mut links = Vec::with_capacity(BUDGET);
        let done = loop {
            self.settle().await;
            let deadline = self.deadline();
            let timer = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(Request::Shutdown(done)) => break Some(done),
                    Some(request) => self.answer(request),
                    None => break None,
                },
                () = self.inbox.bell.notified() => self.apply(self.inbox.take()),
                count = self.ends.signals.recv_many(&mut signals, BUDGET), if !self.dead => {
                    if count == 0 {
                        signals.push(Signal::Fatal("the packet worker has failed".to_owned()));
                    }
                    signals.drain(..).for_each(|signal| self.handle_signal(signal));
                }
                _ = self.ends.datagrams.recv_many(&mut datagrams, BUDGET), if !self.dead => {
                    if let Some(tailnet) = &mut self.tailnet {
                        datagrams.drain(..).for_each(|datagram| tailnet.handle_datagram(&datagram, now()));
                    }
                    datagrams.clear();
                }
                _ = self.ends.to_relay.recv_many(&mut to_relay, BUDGET), if !self.dead => {
                    if let Some(tailnet) = &mut self.tailnet {
                        to_relay.drain(..).for_each(|packet| tailnet.relay(packet, now()));
                    }
                    to_relay.clear();
                }
                _ = self.links.recv_many(&mut links, BUDGET) => {
                    if let Some(tailnet) = &mut self.tailnet {
                        links.drain(..).for_each(|event| tailnet.handle_link(event, now()));
                    }
                    links.clear();
                }
                Some(found) = self.found.recv() => {
                    if let Some(tailnet) = &mut self.tailnet {
                        tailnet.handle_found(found, now());
                    }
                }
                // What there is to say of it is said when the loop begins anew.
                () = self.machine.changed() => {}
                () = self.links_changed.notified() => self.look_at_interfaces().await,
                () = self.outlet.deliver(), if self.outlet.is_waiting() => {}
                () = timer => {
                    if let Some(tailnet) = &mut self.tailnet {
                        tailnet.handle_timeout(now());
                    }
                }
            }
        };
        self.end(done).await;
    }

    /// Takes everything down.
    async fn end(mut self, done: Option<oneshot::Sender<()>>) {
        self.tailnet = None;
        self.machine.set_down().await;
        self.shared.ask(&self.shared.requests.stop);
        // The thread looks at the request at once; joining it is not waiting for packets.
        let worker = self.worker;
        let _ = tokio::task::spawn_blocking(move || worker.join()).await;
        tracing::debug!(drops = ?self.shared.drops, "engine ended");
        if let Some(done) = done {
            let _ = done.send(());
        }
    }

    /// Returns when something is due.
    fn deadline(&self) -> Option<Instant> {
        self.tailnet.as_ref()?.poll_timeout()
    }

    /// Publishes what the last inputs changed.
    async fn settle(&mut self) {
        let now = now();
        let Some(tailnet) = &mut self.tailnet else {
            if self.machine.is_up() {
                self.machine.set_down().await;
            }
            self.outlet.tell(Event::Health(Vec::new()));
            return;
        };
        tailnet.publish(now);
        if let Some(wanted) = tailnet.take_routes() {
            if wanted.leads_to_sites() && !std::mem::replace(&mut self.knows_sites, true) {
                forget_visitors(Arc::clone(&self.shared));
            }
            self.machine.set_up(wanted).await;
        }
        for event in tailnet.take_news(&self.machine.troubles(), now) {
            self.outlet.tell(event);
        }
    }

    fn handle_signal(&mut self, signal: Signal) {
        let now = now();
        match signal {
            Signal::Fatal(reason) => {
                self.dead = true;
                self.tailnet = None;
                self.outlet.tell(Event::Fatal(reason));
            }
            Signal::SocketFailed(errno) => {
                if self.rebound_at.is_none_or(|at| now.saturating_duration_since(at) >= REBIND_SPACING) {
                    tracing::debug!(%errno, "opening the UDP sockets anew");
                    self.rebind(false, now);
                }
            }
            Signal::Vacated(address) => {
                let shared = Arc::clone(&self.shared);
                tokio::task::spawn_blocking(move || match warren_os::forget_connections(address) {
                    Ok(()) => shared.stand_ins_cleared(std::iter::once(address)),
                    Err(error) => {
                        tracing::warn!(%error, "the kernel remembers connections of peers to a site; no others take their place")
                    }
                });
            }
            Signal::HandshakeWanted(_)
            | Signal::Sent(_)
            | Signal::Received(..)
            | Signal::Confirmed(_)
            | Signal::Stray(_)
            | Signal::InUse(_)
            | Signal::Answered(..)
            | Signal::Unreachable(..)
            | Signal::Rebound => {
                if let Some(tailnet) = &mut self.tailnet {
                    tailnet.handle_signal(signal, now);
                }
            }
        }
    }

    /// Opens the UDP sockets anew, with another port if that is `fresh` and nobody has chosen the port.
    fn rebind(&mut self, fresh: bool, now: Instant) {
        self.rebound_at = Some(now);
        if fresh && !self.keeps_port {
            self.shared.requests.other_port.store(true, Ordering::Release);
        }
        self.shared.ask(&self.shared.requests.rebind);
    }

    /// Finds out what a change of the network means.
    async fn look_at_interfaces(&mut self) {
        let Some(tailnet) = &mut self.tailnet else { return };
        let mut link = Link::Unknown;
        match self.machine.netlink().interfaces().await {
            Ok(interfaces) => {
                let own = interfaces.iter().find(|interface| interface.index == self.machine.index());
                if own.is_some_and(|own| own.up) {
                    link = Link::Up;
                }
                tailnet.look_at_resolvers();
                tailnet.set_surroundings(exit::surroundings(&interfaces, self.machine.index()));
                let routes = self.machine.netlink().default_routes().await.unwrap_or_default();
                match tailnet.handle_interfaces(&interfaces, routes.gateway_v4, self.machine.index(), now()) {
                    Rebind::No => {}
                    Rebind::SamePort => self.rebind(false, now()),
                    Rebind::OtherPort => self.rebind(true, now()),
                }
            }
            Err(error) => tracing::debug!(%error, "interfaces cannot be listed"),
        }
        // Whoever changed the network may have changed ours.
        self.machine.sync(link).await;
    }

    // What the daemon asks.

    fn answer(&mut self, request: Request) {
        match request {
            Request::Status(reply) => drop(reply.send(self.status())),
            Request::Ping(peer, reply) => match &mut self.tailnet {
                Some(tailnet) => tailnet.ping(peer, reply, now()),
                None => drop(reply.send(Err(PingError::Stopped))),
            },
            Request::Netcheck(reply) => match &mut self.tailnet {
                Some(tailnet) => tailnet.netcheck(reply, now()),
                None => drop(reply.send(Netcheck::default())),
            },
            // Taken care of by the loop.
            Request::Shutdown(_) => {}
        }
    }

    fn status(&self) -> Status {
        let Some(tailnet) = &self.tailnet else { return Status::default() };
        Status {
            interface: self.machine.is_up().then(|| self.interface.clone()),
            home: tailnet.home(),
            exit_node: tailnet.exit_node(),
            peers: tailnet.status(now(), wall()),
        }
    }
}

/// Lets addresses stand for peers towards sites once the kernel has forgotten for whom they stood before this process.
fn forget_visitors(shared: Arc<Shared>) {
    tokio::task::spawn_blocking(move || {
        for address in stand_ins() {
            if let Err(error) = warren_os::forget_connections(address) {
                tracing::warn!(
                    %error,
                    "connections of peers to sites from before the start are not forgotten; Linux 5.8 and its module nf_conntrack_netlink can do that"
                );
                // A site that nobody reaches is worse than an answer that comes too late.
                shared.stand_ins_cleared(stand_ins());
                return;
            }
            shared.stand_ins_cleared(std::iter::once(address));
        }
    });
}

/// Says in the seam's words why a ping was not sent.
#[expect(clippy::wildcard_enum_match_arm, reason = "what else there may be is some way of having no path")]
fn ping_error(error: PathPingError) -> PingError {
    match error {
        PathPingError::UnknownPeer => PingError::UnknownPeer,
        PathPingError::Busy => PingError::Timeout,
        _ => PingError::NoPath,
    }
}

#[expect(clippy::disallowed_methods, reason = "the decision task is a shell: this is where it reads the clock")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "the decision task is a shell: this is where it reads the clock")]
fn wall() -> SystemTime {
    SystemTime::now()
}
