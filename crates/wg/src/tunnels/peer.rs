//! What is known of one peer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use warren_wire::key::NodeKey;

use crate::cookie::Cookie;
use crate::crypto::Key;
use crate::handshake::{Pending, Timestamp};
use crate::session::Session;

/// One peer. At rest it holds no session and costs its size alone.
#[derive(Default)]
pub(super) struct Peer {
    /// What our static keys share, computed at the first handshake.
    pub(super) static_shared: Option<Key>,
    /// Time of the latest initiation from the peer; zero before the first.
    pub(super) greatest_timestamp: Timestamp,
    pub(super) last_initiation: Option<Instant>,
    /// Our handshake under way; boxed, since few peers have one.
    pub(super) attempt: Option<Box<Attempt>>,
    /// Our last handshake, for the seconds in which another answer to it may come.
    pub(super) answered: Option<Box<Answered>>,
    pub(super) cookie: Option<Cookie>,
    /// First code of our last response, which a cookie reply to it refers to.
    pub(super) response_code: [u8; 16],
    /// The session to send with.
    pub(super) current: Option<Arc<Session>>,
    /// The one before, for packets that are still on their way.
    pub(super) previous: Option<Arc<Session>>,
    pub(super) next: Option<Next>,
    /// When to look at what the workers noted in the sessions.
    pub(super) check_at: Option<Instant>,
    /// Under which time the peer stands in the schedule.
    pub(super) deadline: Option<Instant>,
}

const _: () = assert!(size_of::<Peer>() <= 200, "a peer at rest must stay small");

/// The peers of a node.
#[derive(Default)]
pub(super) struct Peers {
    /// Whoever was never met has no state: most peers of a big tailnet.
    by_key: BTreeMap<NodeKey, Option<Box<Peer>>>,
}

impl Peers {
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn contains(&self, key: &NodeKey) -> bool {
        self.by_key.contains_key(key)
    }

    /// Adds a peer that was never met; false if it is there already.
    pub(super) fn add(&mut self, key: NodeKey) -> bool {
        let is_new = !self.contains(&key);
        self.by_key.entry(key).or_default();
        is_new
    }

    /// Removes a peer and returns its state if it was met.
    pub(super) fn remove(&mut self, key: &NodeKey) -> Option<Box<Peer>> {
        self.by_key.remove(key)?
    }

    /// Returns the state of a peer that was met.
    pub(super) fn met(&self, key: &NodeKey) -> Option<&Peer> {
        self.by_key.get(key)?.as_deref()
    }

    /// Returns the state of a peer that was met, to be changed.
    pub(super) fn met_mut(&mut self, key: &NodeKey) -> Option<&mut Peer> {
        self.by_key.get_mut(key)?.as_deref_mut()
    }

    /// Returns the state of a peer that is met now.
    pub(super) fn meet(&mut self, key: &NodeKey) -> Option<&mut Peer> {
        Some(self.by_key.get_mut(key)?.get_or_insert_default())
    }
}

/// A handshake that we began.
pub(super) struct Attempt {
    pub(super) pending: Pending,
    /// First code of our initiation, which a cookie reply to it refers to.
    pub(super) first_code: [u8; 16],
    /// When the first initiation of this series was sent.
    pub(super) began: Instant,
    pub(super) retry_at: Instant,
}

/// A handshake that we began and that the peer answered.
///
/// An initiation may arrive twice, by the direct path and by a relay. A peer that looks at both at once can answer both,
/// as wireguard-go does with a thread per processor, and keeps only the session of its last answer.
pub(super) struct Answered {
    pub(super) attempt: Box<Attempt>,
    /// The ephemeral key in the answer. With the same one the same session would come about, and its nonces again.
    pub(super) ephemeral: [u8; 32],
    pub(super) at: Instant,
}

/// A session that the peer began and has not used yet.
pub(super) struct Next {
    pub(super) session: Arc<Session>,
    /// We had a handshake of our own under way when the peer's came.
    pub(super) crossed: bool,
}

impl Peer {
    /// Tells whether the session to send with should give way to one that the peer began and has just confirmed.
    ///
    /// Of two sessions the later one counts. When both sides began a handshake at once, each holds its own for the
    /// later; then the one that counts was begun by the holder of the greater key, so that both choose the same, and
    /// exactly one of them will renew it.
    pub(super) fn gives_way_to(&self, next: &Next, peer_has_greater_key: bool) -> bool {
        self.current.as_ref().is_none_or(|current| {
            current.born() < next.session.born() || next.crossed && current.is_initiator && peer_has_greater_key
        })
    }

    /// Since when data was sent without hearing anything back.
    pub(super) fn unheard_since(&self) -> Option<Instant> {
        self.current.as_ref()?.unheard_since()
    }

    /// Since when data was received, on any session, without sending anything back.
    pub(super) fn unanswered_since(&self) -> Option<Instant> {
        let current = self.current.as_ref()?;
        let late = self.previous.as_ref().and_then(|session| session.unanswered_since());
        let late = late.filter(|late| current.last_sent().is_none_or(|sent| sent < *late));
        [current.unanswered_since(), late].into_iter().flatten().min()
    }
}
