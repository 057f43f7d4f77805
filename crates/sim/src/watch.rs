//! What must be true at every step.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::node::Load;
use crate::world::NodeId;

/// Longest chain of messages, each the answer to the last, counted from 0. Where ports are probed: a request, its answer, a ping
/// from one of many sockets, a ping back, one more that proves the hole (of a socket once a second), one that doubts the path
/// taken meanwhile (once in 3 s), a pong. The steps that follow a call are among these. None comes twice within the time that
/// a chain takes: nobody asks an address back again that is still remembered, which holds while a ping to it is under way.
const MAX_DEPTH: u32 = 6;
/// Length of a pong on the wire; that of pings is another.
const PONG_BYTES: usize = 110;
/// Probes to one address at once, and time for one more: the budget of a peer.
const BURST: u32 = 100;
const INTERVAL: Duration = Duration::from_millis(50);
/// For how long what was heard from an address confirms it.
const CONFIRMED: Duration = Duration::from_secs(45);

/// A data packet.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// By whom.
    pub from: NodeId,
    /// For whom.
    pub to: NodeId,
    /// When.
    pub at: Instant,
    /// It must arrive.
    pub must: bool,
    /// It did.
    pub arrived: bool,
}

#[derive(Debug, Default)]
struct Stranger {
    heard: Option<Instant>,
    heard_bytes: u64,
    /// A datagram to this address came to a node.
    is_reached: bool,
    answer_bytes: u64,
    /// Until when the budget is used.
    used_until: Option<Instant>,
}

/// Sees all that is sent and heard.
#[derive(Debug, Default)]
pub struct Watch {
    /// What was not as it must be.
    pub violations: Vec<String>,
    /// Data packets by number.
    pub data: BTreeMap<u64, Sent>,
    /// No node may send towards peers.
    pub silence: bool,
    /// Addresses that are shared by many, being private: the budget is that of so many peers.
    pub peers: u32,
    strangers: BTreeMap<(NodeId, SocketAddr), Stranger>,
    reported: BTreeSet<(NodeId, SocketAddr)>,
}

impl Watch {
    /// Takes note that a data packet arrived.
    pub fn arrived(&mut self, number: u64) {
        if let Some(sent) = self.data.get_mut(&number) {
            sent.arrived = true;
        }
    }

    /// Tells whether a data packet is for this node.
    #[must_use]
    pub fn is_for(&self, number: u64, node: NodeId) -> bool {
        self.data.get(&number).is_some_and(|sent| sent.to == node)
    }

    /// Takes note of a datagram that came from an address.
    pub(crate) fn hear(&mut self, node: NodeId, from: SocketAddr, bytes: usize, now: Instant) {
        let stranger = self.strangers.entry((node, from)).or_default();
        stranger.heard = Some(now);
        stranger.heard_bytes += bytes as u64;
    }

    /// Takes note that a datagram to an address got to some node.
    pub(crate) fn reach(&mut self, node: NodeId, to: SocketAddr) {
        self.strangers.entry((node, to)).or_default().is_reached = true;
    }

    /// Judges a datagram that a node sends to a peer's address.
    pub(crate) fn send_to_peer(
        &mut self,
        node: NodeId,
        to: SocketAddr,
        load: &Load,
        depth: u32,
        now: Instant,
    ) -> Option<String> {
        let idle = self.silence.then(|| format!("node {node} is idle and sends {} bytes to {to}", load.len()));
        let chain = (depth > MAX_DEPTH).then(|| format!("node {node} sends an answer of depth {depth} to {to}"));
        let stranger = self.strangers.entry((node, to)).or_default();
        let fault = match load {
            Load::Data(number) => (!stranger.is_reached)
                .then(|| format!("node {node} sends data {number} to {to}, which nothing has reached before")),
            Load::Message(bytes) if bytes.len() == PONG_BYTES => {
                stranger.answer_bytes += bytes.len() as u64;
                (stranger.answer_bytes > stranger.heard_bytes).then(|| {
                    format!(
                        "node {node} answers {to} with {} bytes for {}",
                        stranger.answer_bytes, stranger.heard_bytes
                    )
                })
            }
            Load::Message(_) => {
                let is_confirmed = stranger.is_reached
                    && stranger.heard.is_some_and(|at| now.saturating_duration_since(at) <= CONFIRMED);
                if is_confirmed {
                    None
                } else {
                    let until = stranger.used_until.map_or(now, |until| until.max(now)) + INTERVAL / self.peers.max(1);
                    stranger.used_until = Some(until);
                    (until > now + INTERVAL * BURST)
                        .then(|| format!("node {node} sends more to {to} than its budget of probes"))
                }
            }
        };
        let fault = idle.or(chain).or(fault)?;
        self.reported.insert((node, to)).then_some(fault)
    }

    /// Judges a frame that a node sends to a peer over a relay.
    pub(crate) fn send_over_relay(&mut self, node: NodeId, depth: u32) -> Option<String> {
        if self.silence {
            return Some(format!("node {node} is idle and sends over a relay"));
        }
        (depth > MAX_DEPTH).then(|| format!("node {node} sends an answer of depth {depth} over a relay"))
    }
}
