//! The nodes of a tailnet as an immutable list in chunks.
//!
//! A change copies one chunk and the list of chunks; comparing two lists skips the chunks that they share. That is what
//! keeps thousands of map streams cheap: each compares pointers, not nodes.

use std::cmp::Ordering;
use std::sync::atomic::{self, AtomicU64};
use std::sync::{Arc, OnceLock};

use warren_wire::control::NodeId;

use super::facts::Facts;
use crate::model::{NodeRecord, NodeState};

/// How many consecutive IDs share a chunk, as a power of two.
const CHUNK_BITS: u32 = 5;

/// A node as a snapshot shows it; never changed, only replaced.
#[derive(Debug)]
pub(crate) struct Node {
    /// What lasts.
    pub(crate) record: Arc<NodeRecord>,
    /// What it reported.
    pub(crate) state: Arc<NodeState>,
    /// Whether it is connected to the server.
    pub(crate) online: bool,
    /// Whether its key's time is over.
    pub(crate) expired: bool,
    /// Whether its tailnet takes enrolled machines alone, and its own is none.
    pub(crate) barred: bool,
    /// What follows for it from the policy and from others.
    pub(crate) facts: Arc<Facts>,
    /// Unlike that of any other version of any node.
    pub(crate) revision: u64,
    /// The beginning of the node as JSON for its peers, without its routes, made when the first of them needs it.
    pub(crate) peer_json: Arc<OnceLock<Box<[u8]>>>,
}

impl Node {
    /// Makes a node that nothing is known of but what it is.
    pub(crate) fn new(record: Arc<NodeRecord>, state: Arc<NodeState>, online: bool, expired: bool) -> Arc<Self> {
        let facts = Arc::new(Facts::alone(&record));
        Arc::new(Self {
            record,
            state,
            online,
            expired,
            barred: false,
            facts,
            revision: revision(),
            peer_json: Arc::default(),
        })
    }

    /// Makes a version with another record.
    pub(crate) fn with_record(&self, record: Arc<NodeRecord>, expired: bool) -> Arc<Self> {
        Arc::new(Self { record, expired, ..self.next() })
    }

    /// Makes a version with another state.
    pub(crate) fn with_state(&self, state: NodeState, online: bool) -> Arc<Self> {
        Arc::new(Self { state: Arc::new(state), online, ..self.next() })
    }

    /// Makes a version that its machine bars from taking part, or does not.
    pub(crate) fn with_barred(&self, barred: bool) -> Arc<Self> {
        Arc::new(Self { barred, ..self.next() })
    }

    /// Makes a version with other facts.
    pub(crate) fn with_facts(&self, facts: Facts) -> Arc<Self> {
        Arc::new(Self { facts: Arc::new(facts), ..self.next() })
    }

    /// Makes a version that says the same, for readers to look at once more: to others it may have changed.
    pub(crate) fn touched(&self) -> Arc<Self> {
        Arc::new(Self { peer_json: Arc::clone(&self.peer_json), ..self.next() })
    }

    fn next(&self) -> Self {
        Self {
            record: Arc::clone(&self.record),
            state: Arc::clone(&self.state),
            online: self.online,
            expired: self.expired,
            barred: self.barred,
            facts: Arc::clone(&self.facts),
            revision: revision(),
            peer_json: Arc::default(),
        }
    }

    /// Returns the number.
    pub(crate) fn id(&self) -> NodeId {
        self.record.id
    }

    /// Tells whether it is let in: approved, its owner not suspended, and its machine enrolled where that is needed.
    pub(crate) fn is_admitted(&self) -> bool {
        self.record.is_admitted() && !self.barred
    }

    /// Tells whether it may see peers and be seen: let in, and its key not past its time.
    pub(crate) fn takes_part(&self) -> bool {
        self.is_admitted() && !self.expired
    }
}

fn revision() -> u64 {
    static REVISIONS: AtomicU64 = AtomicU64::new(1);
    REVISIONS.fetch_add(1, atomic::Ordering::Relaxed)
}

/// A node before and after; `None` where it is not there.
pub(crate) type Pair<'a> = (Option<&'a Arc<Node>>, Option<&'a Arc<Node>>);

/// Which nodes a comparison looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Visit {
    /// All of both lists.
    All,
    /// Those that differ.
    Changed,
}

/// All nodes of a tailnet, in the order of their IDs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Nodes {
    chunks: Vec<(i64, Arc<Vec<Arc<Node>>>)>,
    len: usize,
}

impl Nodes {
    /// Returns how many there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns the node with that ID.
    pub(crate) fn get(&self, id: NodeId) -> Option<&Arc<Node>> {
        let index = self.find_chunk(id).ok()?;
        let (_, chunk) = self.chunks.get(index)?;
        let at = chunk.binary_search_by_key(&id, |node| node.id()).ok()?;
        chunk.get(at)
    }

    /// Adds a node, or replaces the one with the same ID.
    pub(crate) fn put(&mut self, node: Arc<Node>) {
        let id = node.id();
        match self.find_chunk(id) {
            Ok(index) => {
                let Some((_, chunk)) = self.chunks.get_mut(index) else { return };
                let chunk = Arc::make_mut(chunk);
                match chunk.binary_search_by_key(&id, |node| node.id()) {
                    Ok(at) => {
                        if let Some(place) = chunk.get_mut(at) {
                            *place = node;
                        }
                    }
                    Err(at) => {
                        chunk.insert(at, node);
                        self.len += 1;
                    }
                }
            }
            Err(index) => {
                self.chunks.insert(index, (chunk_of(id), Arc::new(vec![node])));
                self.len += 1;
            }
        }
    }

    /// Removes the node with that ID.
    pub(crate) fn remove(&mut self, id: NodeId) {
        let Ok(index) = self.find_chunk(id) else { return };
        let Some((_, chunk)) = self.chunks.get_mut(index) else { return };
        let Ok(at) = chunk.binary_search_by_key(&id, |node| node.id()) else { return };
        let chunk = Arc::make_mut(chunk);
        chunk.remove(at);
        self.len -= 1;
        if chunk.is_empty() {
            self.chunks.remove(index);
        }
    }

    /// Returns the nodes in the order of their IDs.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.chunks.iter().flat_map(|(_, chunk)| chunk.iter())
    }

    /// Calls `visit` with the old and the new version of each node that differs, in the order of their IDs.
    pub(crate) fn changes<'a>(old: &'a Self, new: &'a Self, visit: impl FnMut(Pair<'a>)) {
        Self::compare(old, new, Visit::Changed, visit);
    }

    /// Calls `visit` with the old and the new version of each node, or of each that differs.
    pub(crate) fn compare<'a>(old: &'a Self, new: &'a Self, which: Visit, mut visit: impl FnMut(Pair<'a>)) {
        let mut old_chunks = old.chunks.iter().peekable();
        let mut new_chunks = new.chunks.iter().peekable();
        loop {
            let (one, two) = match (old_chunks.peek().copied(), new_chunks.peek().copied()) {
                (None, None) => return,
                (Some((left, one)), Some((right, two))) => match left.cmp(right) {
                    Ordering::Less => (Some(one), None),
                    Ordering::Greater => (None, Some(two)),
                    Ordering::Equal => (Some(one), Some(two)),
                },
                (one, two) => (one.map(|(_, one)| one), two.map(|(_, two)| two)),
            };
            let shared = matches!((one, two), (Some(one), Some(two)) if Arc::ptr_eq(one, two));
            if which == Visit::All || !shared {
                let nodes = |chunk: Option<&'a Arc<Vec<Arc<Node>>>>| chunk.map_or(&[][..], |chunk| chunk.as_slice());
                compare_chunks(nodes(one), nodes(two), which, &mut visit);
            }
            if one.is_some() {
                old_chunks.next();
            }
            if two.is_some() {
                new_chunks.next();
            }
        }
    }

    fn find_chunk(&self, id: NodeId) -> Result<usize, usize> {
        let chunk = chunk_of(id);
        self.chunks.binary_search_by_key(&chunk, |(number, _)| *number)
    }
}

fn chunk_of(id: NodeId) -> i64 {
    id.0 >> CHUNK_BITS
}

fn compare_chunks<'a>(old: &'a [Arc<Node>], new: &'a [Arc<Node>], which: Visit, visit: &mut impl FnMut(Pair<'a>)) {
    let mut old = old.iter().peekable();
    let mut new = new.iter().peekable();
    loop {
        let pair = match (old.peek().copied(), new.peek().copied()) {
            (None, None) => return,
            (Some(one), Some(two)) => match one.id().cmp(&two.id()) {
                Ordering::Less => (Some(one), None),
                Ordering::Greater => (None, Some(two)),
                Ordering::Equal => (Some(one), Some(two)),
            },
            pair => pair,
        };
        if pair.0.is_some() {
            old.next();
        }
        if pair.1.is_some() {
            new.next();
        }
        let same = matches!(pair, (Some(one), Some(two)) if Arc::ptr_eq(one, two));
        if which == Visit::All || !same {
            visit(pair);
        }
    }
}
