//! A map poll.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use warren_wire::control::{MapResponse, NodeId, to_json};
use warren_wire::key::NodeKey;

use super::{Client, MESSAGE_BYTES, delta, full, view};
use crate::clock::Clock;
use crate::tailnet::filter::Outline;
use crate::tailnet::nodes::Node;
use crate::tailnet::snapshot::Snapshot;
use crate::tailnet::{Attached, PollGuard};

/// Least time without a message after which the client is told that the server is there.
const KEEPALIVE_LEAST: Duration = Duration::from_secs(50);
/// How much later it is for some streams, so that not all are woken at once.
const KEEPALIVE_SPREAD: Duration = Duration::from_secs(10);

/// The maps of one poll: a full one, then what changes.
#[derive(Debug)]
pub struct MapStream {
    viewer: Viewer,
    clock: Clock,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The snapshot to begin with.
    first: Option<Arc<Snapshot>>,
    replaced: oneshot::Receiver<()>,
    /// The snapshot that the client knows; up to `cursor` if that is given.
    known: Option<Arc<Snapshot>>,
    /// The rules that it has.
    rules: Outline,
    cursor: Option<NodeId>,
    waiting: VecDeque<Bytes>,
    keepalive_every: Duration,
    keepalive_at: Instant,
    ended: bool,
    _guard: PollGuard,
}

/// Whose poll it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Viewer {
    pub(crate) node: NodeId,
    pub(crate) key: NodeKey,
    pub(crate) client: Client,
}

impl MapStream {
    pub(crate) fn new(
        viewer: Viewer,
        clock: Clock,
        (newest, snapshots): (Arc<Snapshot>, watch::Receiver<Arc<Snapshot>>),
        attached: Attached,
    ) -> Self {
        let keepalive_every = KEEPALIVE_LEAST + KEEPALIVE_SPREAD.mul_f64(spread(viewer.node));
        Self {
            viewer,
            clock,
            snapshots,
            first: Some(newest),
            replaced: attached.replaced,
            known: None,
            rules: Outline::default(),
            cursor: None,
            waiting: VecDeque::new(),
            keepalive_every,
            keepalive_at: clock.instant() + keepalive_every,
            ended: false,
            _guard: attached.guard,
        }
    }

    /// Waits for the next message, ready to be sent; `None` ends the poll. May be dropped and called again.
    ///
    /// A client that reads slowly is not sent what happened meanwhile, but what it does not know yet.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(message) = self.waiting.pop_front() {
                self.keepalive_at = self.clock.instant() + self.keepalive_every;
                return Some(message);
            }
            if self.ended {
                return None;
            }
            if let Some(snapshot) = self.first.take() {
                self.begin(snapshot);
                continue;
            }
            if self.cursor.is_some() {
                self.go_on();
                continue;
            }
            tokio::select! {
                biased;
                _ = &mut self.replaced => self.ended = true,
                changed = self.snapshots.changed() => match changed {
                    Ok(()) => {
                        let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
                        self.follow(snapshot);
                    }
                    // The server stops.
                    Err(_) => self.ended = true,
                },
                () = tokio::time::sleep_until(self.keepalive_at) => {
                    let message = self.keepalive();
                    self.waiting.push_back(message);
                }
            }
        }
    }

    fn begin(&mut self, snapshot: Arc<Snapshot>) {
        let viewer = self.viewer;
        match snapshot.nodes.get(viewer.node).filter(|node| node.record.key == viewer.key) {
            Some(node) => {
                let first = full::first(&snapshot, node, (viewer.client, self.clock.now()), MESSAGE_BYTES);
                self.waiting.push_back(viewer.client.framing.frame(&first.json));
                self.cursor = first.cursor;
                self.rules = first.outline;
                self.known = Some(snapshot);
            }
            None => self.ended = true,
        }
    }

    fn go_on(&mut self) {
        let (Some(snapshot), Some(cursor)) = (&self.known, self.cursor) else { return };
        self.cursor = None;
        if let Some(node) = snapshot.nodes.get(self.viewer.node) {
            let (json, cursor) = full::rest(snapshot, node, (cursor, self.clock.now()), MESSAGE_BYTES);
            self.waiting.push_back(self.viewer.client.framing.frame(&json));
            self.cursor = cursor;
        }
    }

    fn follow(&mut self, new: Arc<Snapshot>) {
        // The first snapshot may be newer than what streams are shown.
        let Some(old) = self.known.take_if(|known| known.number < new.number) else { return };
        let viewer = self.viewer;
        let Some(before) = old.nodes.get(viewer.node) else { return };
        match new.nodes.get(viewer.node) {
            None => {
                // So that the client asks its user to log in instead of asking the server for ever.
                self.waiting.push_back(self.farewell(&new, before));
                self.ended = true;
            }
            // The client polls anew with its new key.
            Some(node) if node.record.key != viewer.key => self.ended = true,
            Some(node) => {
                let step = delta::Step { old: &old, new: &new, before, viewer: node, rules: &self.rules };
                let (messages, rules) = delta::messages(step, viewer.client, self.clock.now());
                self.waiting.extend(messages);
                self.rules = rules.unwrap_or(std::mem::take(&mut self.rules));
            }
        }
        self.known = Some(new);
    }

    fn farewell(&self, snapshot: &Snapshot, node: &Node) -> Bytes {
        let mut own = view::own(snapshot, node);
        let now = view::time(self.clock.now());
        own.key_expiry = now;
        own.expired = true;
        self.encode(&MapResponse { node: Some(Box::new(own)), control_time: now, ..MapResponse::default() })
    }

    /// A keepalive carries the time: without it official clients compare later messages with it by a stale buffer.
    /// Source: control.md, section 4.3.
    fn keepalive(&self) -> Bytes {
        self.encode(&MapResponse {
            keep_alive: true,
            control_time: view::time(self.clock.now()),
            ..MapResponse::default()
        })
    }

    fn encode(&self, response: &MapResponse) -> Bytes {
        let json = to_json(response).unwrap_or_default();
        self.viewer.client.framing.frame(&json)
    }
}

/// Spreads nodes evenly over 0 to 1 by their numbers, which need not be random.
fn spread(node: NodeId) -> f64 {
    // The golden ratio's steps never bunch.
    (node.0 as f64 * 0.618_033_988_749_894_9).fract()
}
