//! What happens by itself: polls, keys and leases end, a policy that nobody confirmed is undone.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;
use warren_wire::control::NodeId;

use super::{Actor, FLUSH_RETRY, LOOK_AT_CLOCK, OFFLINE_GRACE, lease_end};
use crate::model::{NodeState, TailnetRecord, Who};
use crate::store::{StoreError, policies};
use crate::tailnet::Change;
use crate::tailnet::access::PolicyInForce;
use crate::tailnet::nodes::Node;
use crate::tailnet::work::{NewVersion, Work};

impl Actor {
    pub(super) fn note_ended_polls(&mut self) {
        for (id, generation) in self.closed.take() {
            if self.polls.open.get(&id).is_some_and(|poll| poll.generation == generation) {
                self.polls.open.remove(&id);
                let until = self.shared.clock.instant() + OFFLINE_GRACE;
                self.polls.grace.insert(id, (until, self.shared.clock.now()));
            }
        }
    }

    pub(super) fn next_wake(&mut self) -> Option<Instant> {
        if self.due.clock_stale {
            self.due.clock_stale = false;
            self.due.clock = self.next_by_clock();
        }
        let grace = self.polls.grace.values().map(|(until, _)| *until).min();
        [self.due.publish, self.due.pace, self.due.flush, self.due.clock, grace].into_iter().flatten().min()
    }

    /// Returns when to look at the time of day next.
    fn next_by_clock(&self) -> Option<Instant> {
        let now = self.shared.clock.now();
        let of_keys =
            self.state.nodes.iter().filter(|node| !node.expired).filter_map(|node| node.record.key_expiry).min();
        let of_leases = self.state.nodes.iter().filter(|node| self.is_away(node));
        let of_leases = of_leases.filter_map(|node| node.state.lease_until).min();
        let edge = self.state.access.compiled.next_edge().and_then(|edge| Timestamp::from_second(edge).ok());
        let of_policy = self.state.tailnet.unconfirmed.as_ref().map(|open| open.until);
        let of_machines = self.state.machines.values().filter_map(|record| Some(record.proof.as_ref()?.until));
        // They have no effect any more, whether that is stored or not.
        let (over, of_machines): (Vec<_>, Vec<_>) = of_machines.partition(|until| *until <= now);
        let soon = self.shared.clock.instant() + LOOK_AT_CLOCK;
        let at = |next: Timestamp| self.shared.clock.instant_of(next).min(soon);
        // What must be stored waits for a store that failed.
        let stored = of_leases.into_iter().chain(over).chain(of_policy).map(at);
        let stored = stored.min().map(|at| self.due.again.map_or(at, |again| at.max(again)));
        of_keys.into_iter().chain(of_machines).chain(edge).map(at).chain(stored).min()
    }

    fn is_away(&self, node: &Node) -> bool {
        !self.polls.open.contains_key(&node.id()) && !self.polls.grace.contains_key(&node.id())
    }

    pub(super) async fn handle_timeout(&mut self) {
        let now = self.shared.clock.instant();
        self.end_grace(now);
        if self.due.clock.is_some_and(|due| due <= now) {
            self.due.clock_stale = true;
            self.end_keys();
            self.follow_schedule();
            self.bar_ended();
            if self.due.again.is_none_or(|again| again <= now) {
                self.due.again = None;
                self.end_proofs().await;
                self.end_leases().await;
                self.undo_policy().await;
            }
        }
        if self.due.publish.is_some_and(|due| due <= now) {
            self.publish();
        }
        self.pace(now);
        if self.due.flush.is_some_and(|due| due <= now) {
            self.flush().await;
        }
    }

    /// Nodes that did not come back count as away.
    fn end_grace(&mut self, now: Instant) {
        let over: Vec<_> = self
            .polls
            .grace
            .iter()
            .filter(|(_, (until, _))| *until <= now)
            .map(|(id, (_, ended))| (*id, *ended))
            .collect();
        for (id, ended) in over {
            self.polls.grace.remove(&id);
            tracing::debug!(tailnet = %self.state.tailnet.id, node = %id, "a node is away");
            let Some(node) = self.state.nodes.get(id).map(Arc::clone) else { continue };
            let mut state = NodeState::clone(&node.state);
            state.last_seen = Some(ended);
            if node.record.ephemeral {
                state.lease_until = Some(lease_end(self.shared.clock.now()));
            }
            self.replace_state(&node, state, false);
        }
    }

    /// Keys whose time is over stop being valid.
    fn end_keys(&mut self) {
        let now = self.shared.clock.now();
        let over: Vec<_> = self
            .state
            .nodes
            .iter()
            .filter(|node| !node.expired && node.record.expired_at(now))
            .map(Arc::clone)
            .collect();
        if over.is_empty() {
            return;
        }
        for node in over {
            tracing::info!(node = %node.record.name, "a node key expired");
            self.state.pending.nodes.insert(node.id());
            self.state.nodes.put(node.with_record(Arc::clone(&node.record), true));
        }
        self.publish();
    }

    /// Rules begin and end to hold by the time of day.
    fn follow_schedule(&mut self) {
        let now = self.shared.clock.now().as_second();
        if self.state.access.compiled.next_edge().is_some_and(|edge| edge <= now) {
            self.publish();
        }
    }

    /// Ephemeral nodes that stayed away are removed; the store checks the lease once more.
    async fn end_leases(&mut self) {
        let now = self.shared.clock.now();
        let over: Vec<_> = self
            .state
            .nodes
            .iter()
            .filter(|node| node.state.lease_until.is_some_and(|until| until <= now) && self.is_away(node))
            .map(|node| node.id())
            .collect();
        if over.is_empty() {
            return;
        }
        self.flush().await;
        let changes = over
            .into_iter()
            .map(|id| {
                let change: Box<dyn Change> = Box::new(EndLease { id });
                change
            })
            .collect();
        self.commit(changes).await;
        let is_over = |node: &Arc<Node>| node.state.lease_until.is_some_and(|until| until <= now) && self.is_away(node);
        if self.state.nodes.iter().any(is_over) {
            self.try_again_later();
        }
    }

    /// Machines whose certificates ended take no part any more, whether that can be stored or not.
    fn bar_ended(&mut self) {
        let now = self.shared.clock.now();
        if self.state.machines.values().any(|record| record.has_run_out(now)) && self.state.bar(now) {
            self.publish();
        }
    }

    /// Machines whose certificates ended are enrolled no more.
    async fn end_proofs(&mut self) {
        let now = self.shared.clock.now();
        let over = |actor: &Self| actor.state.machines.values().any(|record| record.has_run_out(now));
        if over(self) {
            self.commit(vec![Box::new(EndProofs)]).await;
            if over(self) {
                self.try_again_later();
            }
        }
    }

    fn try_again_later(&mut self) {
        self.due.again = Some(self.shared.clock.instant() + FLUSH_RETRY);
        self.due.clock_stale = true;
    }

    /// Puts the policy before in force again if nobody confirmed this one in time.
    async fn undo_policy(&mut self) {
        let now = self.shared.clock.now();
        let Some(open) = self.state.tailnet.unconfirmed.clone().filter(|open| open.until <= now) else { return };
        let tailnet = self.state.tailnet.id;
        let read = self.shared.store.read(move |connection| policies::version(connection, tailnet, open.back_to));
        let before = match read.await {
            Ok(stored) => stored.and_then(|stored| match PolicyInForce::parse(&stored.text) {
                Ok(policy) => Some(Arc::new(policy)),
                Err(errors) => {
                    tracing::error!(%tailnet, version = open.back_to, %errors, "a policy cannot be read any more");
                    None
                }
            }),
            Err(error) => {
                tracing::error!(%tailnet, %error, "a policy that nobody confirmed is not undone yet");
                self.try_again_later();
                return;
            }
        };
        self.commit(vec![Box::new(Undo { before, back_to: open.back_to })]).await;
        if self.state.tailnet.unconfirmed.is_some() {
            self.try_again_later();
        }
        self.due.clock_stale = true;
    }
}

/// Removes a node whose lease is over.
struct EndLease {
    id: NodeId,
}

impl Change for EndLease {
    fn run(&mut self, work: &mut Work<'_>) -> bool {
        work.remove_node(&Who::server(), "node.remove-ephemeral", self.id, Some(work.now));
        true
    }

    fn finish(self: Box<Self>, stored: Result<(), StoreError>) {
        if let Err(error) = stored {
            tracing::warn!(node = %self.id, %error, "an ephemeral node is not removed");
        }
    }
}

/// Ends the enrolments whose certificates ended.
struct EndProofs;

impl Change for EndProofs {
    fn run(&mut self, work: &mut Work<'_>) -> bool {
        let now = work.now;
        work.end_proofs(&Who::server(), |proof| proof.until <= now);
        true
    }

    fn finish(self: Box<Self>, stored: Result<(), StoreError>) {
        if let Err(error) = stored {
            tracing::error!(%error, "machines whose certificates ended are not taken out yet");
        }
    }
}

/// Undoes a policy that nobody confirmed; keeps it if the one before cannot be had any more.
struct Undo {
    before: Option<Arc<PolicyInForce>>,
    back_to: u64,
}

impl Change for Undo {
    fn run(&mut self, work: &mut Work<'_>) -> bool {
        let version = work.state.tailnet.policy_version;
        tracing::warn!(tailnet = %work.state.tailnet.id, version, back_to = self.back_to, "a policy was not confirmed");
        match &self.before {
            Some(policy) => {
                let reason = format!("version {version} was not confirmed in time: back to version {}", self.back_to);
                let policy = Arc::clone(policy);
                work.put_policy(&Who::server(), NewVersion { what: "policy.undo", policy, reason, unconfirmed: None });
            }
            None => {
                let record = TailnetRecord { unconfirmed: None, ..(*work.state.tailnet).clone() };
                work.put_tailnet(&Who::server(), "policy.keep", record);
            }
        }
        true
    }

    fn finish(self: Box<Self>, stored: Result<(), StoreError>) {
        if let Err(error) = stored {
            tracing::error!(%error, "a policy that nobody confirmed is not undone yet");
        }
    }
}
