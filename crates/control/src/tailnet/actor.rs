//! The task that owns a tailnet: check, write to the store, publish.

mod deadlines;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use warren_wire::control::NodeId;
use warren_wire::key::NodeKey;

use super::access;
use super::compile::Pending;
use super::nodes::{Node, Nodes};
use super::report::Report;
use super::snapshot::{Messages, Snapshot};
use super::work::{State, Work, newly_offered};
use super::{Attached, Change, Closed, Command, PollGuard, Shared, Snapshots, Updated};
use crate::map::delta;
use crate::model::NodeState;
use crate::store::{Entry, LoadedTailnet, StoreError};

/// How long an ephemeral node may be away before it is removed.
pub(crate) const EPHEMERAL_LEASE: Duration = Duration::from_secs(10 * 60);
/// How long a node without a poll still counts as connected: reconnecting takes that long.
const OFFLINE_GRACE: Duration = Duration::from_secs(10);
/// Least time between two snapshots that differ only in what nodes report, and between two of any kind for map streams.
const PUBLISH_EVERY: Duration = Duration::from_millis(50);
/// The same for map streams, for each of them: to tell one something costs some 20 µs, and a tailnet whose nodes join by
/// the thousand would do nothing else.
const PACE_PER_STREAM: Duration = Duration::from_micros(50);
/// Longest that streams are made to wait so.
const PACE_MAX: Duration = Duration::from_secs(1);
/// How long reports wait to be stored together.
const FLUSH_AFTER: Duration = Duration::from_millis(500);
/// How long to wait after the store failed to take something.
const FLUSH_RETRY: Duration = Duration::from_secs(5);
/// How often the time of day is looked at while something waits for it, in case somebody sets the clock.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(60);
/// How many commands are taken at once; their changes share one transaction.
const BATCH: usize = 64;

/// The task's state.
pub(super) struct Actor {
    shared: Arc<Shared>,
    suffix: Arc<str>,
    state: State,
    published: Arc<Snapshot>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    /// The same for map streams, see [`super::Snapshots`].
    paced: watch::Sender<Arc<Snapshot>>,
    closed: Arc<Closed>,
    polls: Polls,
    /// Nodes whose reports are not stored yet.
    dirty: BTreeSet<NodeId>,
    /// Routes that nodes have just begun to offer.
    offered: Vec<(NodeId, Vec<IpNet>)>,
    due: Due,
}

/// Who is connected.
#[derive(Default)]
struct Polls {
    generation: u64,
    open: HashMap<NodeId, Poll>,
    /// Nodes whose poll ended a moment ago: until when they still count as connected, and when it ended.
    grace: HashMap<NodeId, (Instant, Timestamp)>,
    /// Nodes that registered and did not report since.
    fresh: HashSet<NodeId>,
}

struct Poll {
    generation: u64,
    replaced: oneshot::Sender<()>,
}

/// When something is to be done without a command.
struct Due {
    publish: Option<Instant>,
    published: Instant,
    /// When map streams get the newest snapshot, if they did not yet.
    pace: Option<Instant>,
    paced: Instant,
    flush: Option<Instant>,
    /// When something ends by the time of day; looked up again when `clock_stale`.
    clock: Option<Instant>,
    clock_stale: bool,
    /// When to try again what is due by the time of day, after the store failed to take it.
    again: Option<Instant>,
}

impl Actor {
    pub(super) fn new(
        shared: Arc<Shared>,
        loaded: LoadedTailnet,
        derp: Arc<warren_wire::control::DerpMap>,
        closed: Arc<Closed>,
    ) -> (Self, Snapshots) {
        let now = shared.clock.now();
        let mut dirty = BTreeSet::new();
        let mut nodes = Nodes::default();
        for (record, mut state) in loaded.nodes {
            if record.ephemeral {
                // Nobody could connect while the server was away, so the time starts anew.
                let lease = lease_end(now);
                if state.lease_until.is_none_or(|until| until < lease) {
                    Arc::make_mut(&mut state).lease_until = Some(lease);
                    dirty.insert(record.id);
                }
            }
            let expired = record.expired_at(now);
            nodes.put(Node::new(record, state, false, expired));
        }
        let suffix: Arc<str> = format!("{}.{}", loaded.record.name, shared.base_domain).into();
        let users = Arc::new(loaded.users);
        let own_derp = derp;
        let derp = loaded.policy.relays(&own_derp);
        let pending = Pending::everything(nodes.iter().map(|node| node.id()));
        let mut state = State {
            next_address: loaded.next_address,
            tailnet: Arc::new(loaded.record),
            users,
            nodes,
            auth_keys: Arc::new(loaded.auth_keys),
            credentials: Arc::new(loaded.credentials),
            machines: Arc::new(loaded.machines),
            machine_cas: Arc::new(loaded.machine_cas),
            policy: loaded.policy,
            own_derp,
            derp,
            access: Arc::default(),
            pending,
            domains: Arc::default(),
            reserved: Arc::new(loaded.reserved),
        };
        state.bar(now);
        state.compile(now);
        let published = Arc::new(snapshot(&state, &suffix, (0, now)));
        shared.registry.follow(state.tailnet.id, &Nodes::default(), &state.nodes);
        let (snapshots, all) = watch::channel(Arc::clone(&published));
        let (paced, paced_receiver) = watch::channel(Arc::clone(&published));
        let instant = shared.clock.instant();
        let due = Due {
            publish: None,
            published: instant,
            pace: None,
            paced: instant,
            flush: (!dirty.is_empty()).then_some(instant + FLUSH_AFTER),
            clock: None,
            clock_stale: true,
            again: None,
        };
        let actor = Self {
            shared,
            suffix,
            state,
            published,
            snapshots,
            paced,
            closed,
            polls: Polls::default(),
            dirty,
            offered: Vec::new(),
            due,
        };
        (actor, Snapshots { all, paced: paced_receiver })
    }

    /// Works until nobody holds a handle any more.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let wake = self.next_wake();
            let closed = Arc::clone(&self.closed);
            tokio::select! {
                biased;
                taken = queue.recv_many(&mut batch, BATCH) => {
                    if taken == 0 {
                        break;
                    }
                    self.handle(batch.drain(..)).await;
                }
                () = closed.wake.notified() => {}
                () = sleep_until(wake) => {}
            }
            self.note_ended_polls();
            self.handle_timeout().await;
        }
        self.flush().await;
    }

    async fn handle(&mut self, batch: impl Iterator<Item = Command>) {
        let mut changes = Vec::new();
        let mut flushes = Vec::new();
        for command in batch {
            match command {
                Command::Change(change) => changes.push(change),
                Command::Attach { node, key, report, reply } => {
                    let attached = self.attach(node, key, report);
                    // If the asker went away, the guard in the answer ends the poll again.
                    let _ = reply.send(attached);
                }
                Command::Update { node, key, report, reply } => {
                    let updated = self.update(node, key, report);
                    let _ = reply.send(updated);
                }
                Command::SetDerp { derp, reply } => {
                    let relays = self.state.policy.relays(&derp);
                    self.state.own_derp = derp;
                    if *self.state.derp != *relays {
                        self.state.derp = relays;
                        self.publish();
                    }
                    let _ = reply.send(());
                }
                Command::Flush { reply } => flushes.push(reply),
            }
        }
        if !self.offered.is_empty() {
            changes.push(Box::new(ApproveByPolicy { offered: std::mem::take(&mut self.offered) }));
        }
        if !changes.is_empty() {
            self.commit(changes).await;
        }
        if !flushes.is_empty() {
            self.stamp();
            self.flush().await;
        }
        for reply in flushes {
            let _ = reply.send(());
        }
    }

    /// Carries out changes in one transaction; if the store refuses them together, one by one.
    async fn commit(&mut self, mut changes: Vec<Box<dyn Change>>) {
        let before = self.state.clone();
        let (entries, outcome) = self.run_changes(&mut changes);
        let stored = self.store(entries).await;
        if stored.is_err() {
            self.state = before;
        }
        if stored.is_err() && changes.len() > 1 {
            for mut change in changes {
                let before = self.state.clone();
                let (entries, outcome) = self.run_changes(std::slice::from_mut(&mut change));
                let stored = self.store(entries).await;
                if stored.is_ok() {
                    self.adopt(outcome);
                } else {
                    self.state = before;
                }
                change.finish(stored);
            }
            return;
        }
        if stored.is_ok() {
            self.adopt(outcome);
        }
        for change in changes {
            change.finish(stored.clone());
        }
    }

    /// Tries changes on the state, one after the other; a refused one leaves no trace.
    fn run_changes(&mut self, changes: &mut [Box<dyn Change>]) -> (Vec<Entry>, Outcome) {
        let now = self.shared.clock.now();
        let (mut entries, mut outcome) = (Vec::new(), Outcome::default());
        for change in changes {
            let saved = self.state.clone();
            let mut work = Work::new(&mut self.state, &self.shared.store, now);
            if change.run(&mut work) {
                entries.append(&mut work.entries);
                outcome.touched.append(&mut work.touched);
                outcome.fresh.append(&mut work.fresh);
            } else {
                self.state = saved;
            }
        }
        outcome.visible = !entries.is_empty();
        (entries, outcome)
    }

    async fn store(&self, entries: Vec<Entry>) -> Result<(), StoreError> {
        self.shared.store.apply(entries, self.shared.clock.now()).await
    }

    /// Shows what was stored; what nodes reported with it is shown as any report, and nothing wakes nobody.
    fn adopt(&mut self, outcome: Outcome) {
        let reported = !outcome.touched.is_empty();
        self.dirty.extend(outcome.touched);
        self.polls.fresh.extend(outcome.fresh);
        if outcome.visible {
            self.due.clock_stale = true;
            self.publish();
        } else if reported {
            self.due.clock_stale = true;
            self.plan_publish();
        }
        self.plan_flush();
    }

    fn attach(&mut self, id: NodeId, key: NodeKey, report: Report) -> Option<Attached> {
        let node = self.state.nodes.get(id).filter(|node| node.record.key == key)?;
        let node = Arc::clone(node);
        self.polls.generation += 1;
        let generation = self.polls.generation;
        let (replaced, receiver) = oneshot::channel();
        tracing::debug!(tailnet = %self.state.tailnet.id, node = %id, cap = report.cap, "a map poll begins");
        if let Some(older) = self.polls.open.insert(id, Poll { generation, replaced }) {
            // The older stream may be gone already.
            let _ = older.replaced.send(());
        }
        self.polls.grace.remove(&id);
        let mut state = NodeState::clone(&node.state);
        state.lease_until = None;
        state.cap = report.cap;
        // Stored, so that a server that was killed knows when it saw the node.
        state.last_seen = Some(self.shared.clock.now());
        // A poll does not report, except the first after a registration: some clients report nothing else.
        if self.polls.fresh.remove(&id) {
            report.apply(&mut state);
        }
        self.replace_state(&node, state, true);
        let guard = PollGuard { closed: Arc::clone(&self.closed), node: id, generation };
        Some(Attached { replaced: receiver, guard })
    }

    fn update(&mut self, id: NodeId, key: NodeKey, report: Report) -> Option<Updated> {
        let node = Arc::clone(self.state.nodes.get(id).filter(|node| node.record.key == key)?);
        self.polls.fresh.remove(&id);
        let mut state = NodeState::clone(&node.state);
        report.apply(&mut state);
        let label = |state: &NodeState| state.hostinfo.as_ref().map(|info| crate::name::label(&info.hostname));
        let wanted = label(&state)
            .filter(|wanted| !node.record.name_chosen && label(&node.state).is_some_and(|before| before != *wanted));
        self.replace_state(&node, state, node.online);
        Some(Updated { rename: wanted })
    }

    /// Puts a new state of a node in place, if it is new; wakes others only if they can see the difference.
    fn replace_state(&mut self, node: &Arc<Node>, state: NodeState, online: bool) {
        if *node.state == state && node.online == online {
            return;
        }
        if *node.state != state {
            self.dirty.insert(node.id());
            self.plan_flush();
        }
        self.due.clock_stale |= node.state.lease_until != state.lease_until;
        let offered = newly_offered(node, &state);
        if !offered.is_empty() {
            self.offered.push((node.id(), offered));
        }
        let after = node.with_state(state, online);
        let visible = delta::differs_for_peers(node, &after) || delta::differs_for_itself(node, &after);
        let matters = !access::is_same_entry(node, &after);
        if matters {
            self.state.pending.nodes.insert(after.id());
        }
        self.state.nodes.put(after);
        if visible || matters {
            self.plan_publish();
        }
    }

    fn plan_publish(&mut self) {
        let due = (self.due.published + PUBLISH_EVERY).max(self.shared.clock.instant());
        self.due.publish.get_or_insert(due);
    }

    fn plan_flush(&mut self) {
        if !self.dirty.is_empty() {
            let due = self.shared.clock.instant() + FLUSH_AFTER;
            self.due.flush.get_or_insert(due);
        }
    }

    /// Shows the state to all readers.
    fn publish(&mut self) {
        let now = self.shared.clock.now();
        self.state.compile(now);
        self.due.clock_stale |= !Arc::ptr_eq(&self.state.access, &self.published.access);
        let mut next = snapshot(&self.state, &self.suffix, (self.published.number + 1, now));
        if Arc::ptr_eq(&next.access, &self.published.access) {
            next.ssh = Arc::clone(&self.published.ssh);
        }
        let next = Arc::new(next);
        let tailnet = self.state.tailnet.id;
        self.shared.registry.follow(tailnet, &self.published.nodes, &next.nodes);
        self.snapshots.send_replace(Arc::clone(&next));
        self.published = next;
        let instant = self.shared.clock.instant();
        self.due.publish = None;
        self.due.published = instant;
        let streams = u32::try_from(self.polls.open.len()).unwrap_or(u32::MAX);
        let spacing = PACE_PER_STREAM.saturating_mul(streams).clamp(PUBLISH_EVERY, PACE_MAX);
        self.due.pace.get_or_insert((self.due.paced + spacing).max(instant));
        self.pace(instant);
    }

    /// Shows the newest snapshot to map streams when it is time.
    fn pace(&mut self, now: Instant) {
        if self.due.pace.is_some_and(|due| due <= now) {
            self.due.pace = None;
            self.due.paced = now;
            self.paced.send_replace(Arc::clone(&self.published));
        }
    }

    /// Notes that all who are connected are so now.
    fn stamp(&mut self) {
        let now = self.shared.clock.now();
        for id in self.polls.open.keys() {
            let Some(node) = self.state.nodes.get(*id).map(Arc::clone) else { continue };
            let state = NodeState { last_seen: Some(now), ..NodeState::clone(&node.state) };
            self.state.nodes.put(node.with_state(state, node.online));
            self.dirty.insert(*id);
        }
    }

    /// Stores what nodes reported.
    async fn flush(&mut self) {
        self.due.flush = None;
        let states: Vec<_> = self
            .dirty
            .iter()
            .filter_map(|id| self.state.nodes.get(*id))
            .map(|node| (node.id(), Arc::clone(&node.state)))
            .collect();
        match self.shared.store.save_states(states).await {
            Ok(()) => self.dirty.clear(),
            Err(error) => {
                tracing::error!(%error, "what nodes reported is not stored");
                self.due.flush = Some(self.shared.clock.instant() + FLUSH_RETRY);
            }
        }
    }
}

/// What changes left behind.
#[derive(Default)]
struct Outcome {
    /// Whether records changed.
    visible: bool,
    touched: Vec<NodeId>,
    fresh: Vec<NodeId>,
}

/// Approves routes that nodes have just begun to offer, as far as the policy does so by itself.
struct ApproveByPolicy {
    offered: Vec<(NodeId, Vec<IpNet>)>,
}

impl Change for ApproveByPolicy {
    fn run(&mut self, work: &mut Work<'_>) -> bool {
        for (id, routes) in &self.offered {
            work.approve_by_policy(*id, routes);
        }
        true
    }

    fn finish(self: Box<Self>, stored: Result<(), StoreError>) {
        if let Err(error) = stored {
            tracing::warn!(%error, "routes are not approved, though the policy says so");
        }
    }
}

fn snapshot(state: &State, suffix: &Arc<str>, (number, now): (u64, Timestamp)) -> Snapshot {
    Snapshot {
        number,
        at: now,
        tailnet: Arc::clone(&state.tailnet),
        suffix: Arc::clone(suffix),
        users: Arc::clone(&state.users),
        auth_keys: Arc::clone(&state.auth_keys),
        credentials: Arc::clone(&state.credentials),
        machines: Arc::clone(&state.machines),
        machine_cas: Arc::clone(&state.machine_cas),
        nodes: state.nodes.clone(),
        access: Arc::clone(&state.access),
        policy: Arc::clone(&state.policy),
        derp: Arc::clone(&state.derp),
        ssh: Arc::default(),
        messages: Messages::default(),
    }
}

/// Returns when a lease that begins at `now` ends.
pub(crate) fn lease_end(now: Timestamp) -> Timestamp {
    now.checked_add(EPHEMERAL_LEASE).unwrap_or(Timestamp::MAX)
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}
