//! Double entry: the records of both ends of a conversation, put side by side as they come in.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use warren_wire::key::NodeKey;

use crate::record::{Counts, Direction, Event, Flow, Record, Start};
use crate::time::Time;

/// How long the other end's record is waited for, by the other end's own log: once that has come so far without it, it
/// has been left out.
pub const SILENCE: Duration = Duration::from_secs(15);

/// How long nothing at all may come from a node while peers write down conversations with it.
pub const STREAM_SILENCE: Duration = Duration::from_secs(60);

/// How long an entry whose other end was silent is remembered.
const TOLD: Duration = Duration::from_secs(3600);

/// How long batches may come from a node without its log coming to what its peers wrote down: one that sends what it kept
/// while it was away gets there, one whose log stands still does not.
pub const BEHIND: Duration = Duration::from_secs(15 * 60);

/// How much later than the other end's the clock of who begins may show the beginning of a conversation.
pub const CLOCKS_APART: Duration = Duration::from_secs(5);

/// How much later the other end may see the beginning: as long as whoever begins tries again, until a way is found. Linux
/// gives a TCP connection up after 127 s (`tcp_syn_retries`).
pub const BEGUN_LATE: Duration = Duration::from_secs(130);

/// Packets that may be under way, or counted on one side of a beginning or end alone.
pub const PACKETS_APART: u64 = 64;

/// Bytes of these.
pub const BYTES_APART: u64 = PACKETS_APART * 1500;

/// One packet in this many may be lost on the way, beyond [`PACKETS_APART`], and as many of the bytes.
pub const LOSS: u64 = 10;

/// The most conversations that are waited for at a time. The oldest of the node that has written down most of them is given
/// up for a new one: nobody pushes out what others wrote.
pub const PENDING_MAX: usize = 1 << 20;

/// Answers what the join must know of nodes and policy.
pub trait Tailnet {
    /// Tells whether a node writes signed records; one that does not cannot be silent.
    fn writes(&self, node: &NodeKey) -> bool;

    /// Tells whether any version of the policy that held around that time lets this conversation begin.
    fn allows(&self, conversation: &Ends, at: Time) -> bool;
}

/// Identifies a conversation from both ends: who began it, from where to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ends {
    /// The node from whose side it was begun.
    pub from_node: NodeKey,
    /// The other node.
    pub to_node: NodeKey,
    /// IP protocol number.
    pub protocol: u8,
    /// Where it was begun.
    pub from: SocketAddr,
    /// To where.
    pub to: SocketAddr,
}

impl Ends {
    /// Returns the ends of a conversation that `node` wrote down.
    #[must_use]
    pub const fn of(node: NodeKey, start: &Start) -> Self {
        let Start { protocol, local, remote, peer, .. } = *start;
        match start.direction {
            Direction::Outbound => Self { from_node: node, to_node: peer, protocol, from: local, to: remote },
            Direction::Inbound => Self { from_node: peer, to_node: node, protocol, from: remote, to: local },
        }
    }

    /// Returns the other node.
    fn other(&self, node: &NodeKey) -> NodeKey {
        if self.from_node == *node { self.to_node } else { self.from_node }
    }
}

/// Shows what one end wrote down of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its number there.
    pub flow: Flow,
    /// When it began, by that node's clock.
    pub began: Time,
    /// What was counted last, as that node sees it.
    pub counts: Counts,
    /// When that was, by that node's clock.
    pub counted: Time,
    /// Whether it is over.
    pub is_over: bool,
    /// Whether these are all that it counted: it wrote down the end.
    pub is_final: bool,
}

impl Entry {
    /// Tells whether the counts were surely taken later than the other end's.
    ///
    /// By both clocks, and by how long after the beginning: clocks may be apart, and one end may begin late, when the other
    /// has tried for long.
    fn is_later_than(&self, other: &Self) -> bool {
        let age = |entry: &Self| entry.counted.as_micros().saturating_sub(entry.began.as_micros());
        let apart = u64::try_from(CLOCKS_APART.as_micros()).unwrap_or(u64::MAX);
        self.is_final
            || (!other.is_final
                && age(self) >= age(other).saturating_add(apart)
                && self.counted >= other.counted.after(CLOCKS_APART))
    }
}

/// Says that the books do not balance, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mismatch {
    /// A node wrote other things down, but not this conversation.
    Silent {
        /// Who did not write it down.
        node: NodeKey,
        /// Which one.
        ends: Ends,
        /// What the other end wrote.
        entry: Entry,
    },
    /// Nothing has come from a node while others wrote down conversations with it.
    StreamSilent {
        /// Who.
        node: NodeKey,
        /// When its last batch was made, by its clock; `None` if there never was one.
        since: Option<Time>,
        /// One of the conversations.
        ends: Ends,
        /// What the other end wrote.
        entry: Entry,
    },
    /// Batches come from a node, but its log does not come to what others wrote down: it stands still, or its clock does.
    Behind {
        /// Who.
        node: NodeKey,
        /// How far its log has come, by its clock.
        reached: Time,
        /// One of the conversations.
        ends: Ends,
        /// What the other end wrote.
        entry: Entry,
    },
    /// One end says that more came than the other says that it sent, or less than loss explains. It is told once, while the
    /// conversation goes on or at its end.
    CountsApart {
        /// Which conversation.
        ends: Ends,
        /// What the end that began it wrote.
        from: Entry,
        /// What the other end wrote.
        to: Entry,
    },
    /// The ends' clocks show different times.
    ClocksApart {
        /// Which conversation.
        ends: Ends,
        /// What the end that began it wrote.
        from: Entry,
        /// What the other end wrote.
        to: Entry,
    },
    /// No policy let this conversation begin.
    NotAllowed {
        /// Who wrote it down.
        node: NodeKey,
        /// Which one.
        ends: Ends,
        /// What that node wrote.
        entry: Entry,
    },
}

/// Joins the records of both ends. Memory is bounded by [`PENDING_MAX`] and by the number of nodes.
///
/// Records of a node come in their order, after its chain was checked; those of different nodes in any. Time is the
/// collector's, and does not run backwards. After each call, take what there is from [`Self::poll_mismatch`].
#[derive(Debug)]
pub struct Join {
    pending: BTreeMap<u64, Pending>,
    /// The newest conversation with these ends.
    by_ends: BTreeMap<Ends, u64>,
    by_flow: BTreeMap<(NodeKey, Flow), u64>,
    due: BTreeSet<(Time, u64)>,
    streams: BTreeMap<NodeKey, Stream>,
    /// Whose silence has been told.
    told: BTreeSet<NodeKey>,
    /// Of whom it has been told that they are behind.
    told_behind: BTreeSet<NodeKey>,
    /// What each node wrote down first.
    held: BTreeMap<NodeKey, BTreeSet<u64>>,
    /// How much that is, so that the one with most is found.
    most_held: BTreeSet<(usize, NodeKey)>,
    /// See [`PENDING_MAX`].
    room: usize,
    next: u64,
    found: VecDeque<Mismatch>,
    /// Conversations of which there can be but one entry.
    one_sided: u64,
    given_up: u64,
}

impl Default for Join {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug)]
struct Pending {
    ends: Ends,
    /// Who wrote of it first.
    writer: NodeKey,
    /// Of the end that began it, and of the other.
    entries: [Option<Entry>; 2],
    /// When the first record came, by the collector's clock.
    since: Time,
    due: Time,
    /// The other end's silence has been told.
    is_told: bool,
    /// That the counts are apart has been told.
    is_apart: bool,
    /// When whoever began it had an answer, by that node's clock.
    met: Option<Time>,
    /// For how long the other end had been heard when it was first looked for.
    heard_for: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
struct Stream {
    /// The newest time in it, by the node's clock.
    reached: Time,
    /// When it came, by the collector's.
    heard: Time,
    /// For how long batches have come, without the times of silence.
    heard_for: Duration,
}

impl Join {
    /// Makes a join that knows of nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            pending: BTreeMap::new(),
            by_ends: BTreeMap::new(),
            by_flow: BTreeMap::new(),
            due: BTreeSet::new(),
            streams: BTreeMap::new(),
            told: BTreeSet::new(),
            told_behind: BTreeSet::new(),
            held: BTreeMap::new(),
            most_held: BTreeSet::new(),
            room: PENDING_MAX,
            next: 0,
            found: VecDeque::new(),
            one_sided: 0,
            given_up: 0,
        }
    }

    /// Returns the next mismatch.
    pub fn poll_mismatch(&mut self) -> Option<Mismatch> {
        self.found.pop_front()
    }

    /// Returns how many conversations are waited for.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Returns how many conversations had one entry alone because the other end writes none or never answered, and how many
    /// were given up for want of room.
    #[must_use]
    pub const fn unjoined(&self) -> (u64, u64) {
        (self.one_sided, self.given_up)
    }

    /// Returns when to call [`Self::handle_timeout`] next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Takes note that a batch of `node` was made at `made`, by its clock: it has written down what happened before.
    pub fn handle_batch(&mut self, node: NodeKey, made: Time, now: Time) {
        let fresh = Stream { reached: made, heard: now, heard_for: Duration::ZERO };
        let stream = self.streams.entry(node).or_insert(fresh);
        let gap = now.distance(stream.heard);
        let gap = if gap < STREAM_SILENCE { gap } else { Duration::ZERO };
        *stream = Stream { reached: stream.reached.max(made), heard: now, heard_for: stream.heard_for + gap };
        self.told.remove(&node);
        if stream.reached.after(STREAM_SILENCE) >= now {
            self.told_behind.remove(&node);
        }
    }

    /// Takes note that `node` started anew: what it had open is over.
    pub fn handle_restart(&mut self, node: NodeKey, tailnet: &impl Tailnet) {
        let open: Vec<(NodeKey, Flow)> =
            self.by_flow.range((node, Flow(0))..=(node, Flow(u64::MAX))).map(|(key, _)| *key).collect();
        for (node, flow) in open {
            self.change(node, flow, None, true, tailnet);
        }
    }

    /// Takes a record of `node`.
    pub fn handle_record(&mut self, node: NodeKey, record: &Record, now: Time, tailnet: &impl Tailnet) {
        match &record.event {
            Event::Start(start) => self.start(node, start, record.at, now, tailnet),
            Event::Update(update) => self.change(node, update.flow, Some((update.counts, record.at)), false, tailnet),
            Event::End(end) => self.change(node, end.flow, Some((end.counts, record.at)), true, tailnet),
            Event::Drops(_) | Event::Missed { .. } => {}
        }
    }

    /// Looks at what has been waited for long enough.
    pub fn handle_timeout(&mut self, now: Time, tailnet: &impl Tailnet) {
        while let Some(&(due, id)) = self.due.first()
            && due <= now
        {
            self.due.remove(&(due, id));
            self.look(id, now, tailnet);
        }
    }

    fn start(&mut self, node: NodeKey, start: &Start, at: Time, now: Time, tailnet: &impl Tailnet) {
        // A number that is used again says that what had it is over.
        self.change(node, start.flow, None, true, tailnet);
        let ends = Ends::of(node, start);
        let entry = Entry {
            flow: start.flow,
            began: at,
            counts: Counts::default(),
            counted: at,
            is_over: false,
            is_final: false,
        };
        if !tailnet.allows(&ends, at) {
            self.found.push_back(Mismatch::NotAllowed { node, ends, entry });
        }
        let side = usize::from(start.direction == Direction::Inbound);
        // The newest with these ends, unless this end has an entry there: then its ports are used again.
        let known = self.by_ends.get(&ends).copied().filter(|id| {
            self.pending.get(id).is_some_and(|pending| pending.entries.get(side).is_some_and(Option::is_none))
        });
        let id = known.unwrap_or_else(|| self.insert(ends, node, now));
        self.by_flow.insert((node, start.flow), id);
        let Some(pending) = self.pending.get_mut(&id) else { return };
        if let Some(place) = pending.entries.get_mut(side) {
            *place = Some(entry);
        }
        if let [Some(from), Some(to)] = pending.entries
            && (from.began > to.began.after(CLOCKS_APART) || to.began > from.began.after(BEGUN_LATE))
        {
            self.found.push_back(Mismatch::ClocksApart { ends, from, to });
        }
    }

    fn insert(&mut self, ends: Ends, writer: NodeKey, now: Time) -> u64 {
        if self.pending.len() >= self.room
            && let Some((_, node)) = self.most_held.last()
            && let Some(oldest) = self.held.get(node).and_then(|held| held.first().copied())
        {
            self.given_up += 1;
            self.remove(oldest);
        }
        let id = self.next;
        self.next += 1;
        let due = now.after(SILENCE);
        let pending = Pending {
            ends,
            writer,
            entries: [None; 2],
            since: now,
            due,
            is_told: false,
            is_apart: false,
            met: None,
            heard_for: None,
        };
        self.pending.insert(id, pending);
        self.hold(writer, |held| {
            held.insert(id);
        });
        self.by_ends.insert(ends, id);
        self.due.insert((due, id));
        id
    }

    /// Changes what a node wrote down first.
    fn hold(&mut self, node: NodeKey, change: impl FnOnce(&mut BTreeSet<u64>)) {
        let held = self.held.entry(node).or_default();
        self.most_held.remove(&(held.len(), node));
        change(held);
        if held.is_empty() {
            self.held.remove(&node);
        } else {
            self.most_held.insert((held.len(), node));
        }
    }

    /// Takes over what an entry says now.
    fn change(
        &mut self,
        node: NodeKey,
        flow: Flow,
        counts: Option<(Counts, Time)>,
        is_over: bool,
        tailnet: &impl Tailnet,
    ) {
        let Some(&id) = self.by_flow.get(&(node, flow)) else { return };
        let Some(pending) = self.pending.get_mut(&id) else { return };
        // Both ends may have given it the same number.
        let side = usize::from(pending.ends.from_node != node);
        let Some(Some(entry)) = pending.entries.get_mut(side) else { return };
        if let Some((counts, at)) = counts {
            entry.counts = counts;
            entry.counted = at;
            entry.is_final = is_over;
            if side == 0 && counts.rx_packets > 0 {
                pending.met.get_or_insert(at);
            }
        }
        entry.is_over |= is_over;
        let ends = pending.ends;
        let is_done = match pending.entries {
            [Some(from), Some(to)] => {
                if !pending.is_apart && !agree(&from, &to) {
                    pending.is_apart = true;
                    self.found.push_back(Mismatch::CountsApart { ends, from, to });
                }
                from.is_over && to.is_over
            }
            _ => is_over && !tailnet.writes(&ends.other(&node)),
        };
        if is_done {
            self.one_sided += u64::from(pending.entries.iter().flatten().count() == 1);
            self.remove(id);
        }
    }

    /// Looks whether the other end's entry is there, or should be.
    fn look(&mut self, id: u64, now: Time, tailnet: &impl Tailnet) {
        let Some(pending) = self.pending.get_mut(&id) else { return };
        let ends = pending.ends;
        let (node, entry, met) = match pending.entries {
            // What nobody answered may never have come, or was refused: that is written down as dropped.
            [Some(entry), None] => (ends.to_node, entry, pending.met),
            // What came in was sent by the node whose key it came under.
            [None, Some(entry)] => (ends.from_node, entry, Some(entry.began)),
            // Both are there: their ends come by themselves, or their restarts.
            [Some(_), Some(_)] | [None, None] => return,
        };
        if !tailnet.writes(&node) || (met.is_none() && entry.is_over) {
            self.one_sided += 1;
            return self.remove(id);
        }
        let Some(met) = met else {
            pending.due = now.after(SILENCE);
            self.due.insert((pending.due, id));
            return;
        };
        let stream = self.streams.get(&node);
        let quiet_since = stream.map_or(pending.since, |stream| stream.heard.max(pending.since));
        let has_passed = stream.is_some_and(|stream| stream.reached >= met.after(SILENCE));
        if pending.is_told {
            return self.remove(id);
        }
        if has_passed {
            self.found.push_back(Mismatch::Silent { node, ends, entry });
            // One that comes late still finds the other, instead of accusing it.
            pending.is_told = true;
            pending.due = now.after(TOLD);
            self.due.insert((pending.due, id));
            return;
        }
        if now >= quiet_since.after(STREAM_SILENCE) && self.told.insert(node) {
            let since = stream.map(|stream| stream.reached);
            self.found.push_back(Mismatch::StreamSilent { node, since, ends, entry });
        }
        // It may be behind: its spool is sent when it can be, and that has an end.
        if let Some(stream) = stream {
            let heard_for = *pending.heard_for.get_or_insert(stream.heard_for);
            if stream.heard_for.saturating_sub(heard_for) >= BEHIND && self.told_behind.insert(node) {
                self.found.push_back(Mismatch::Behind { node, reached: stream.reached, ends, entry });
            }
        }
        pending.due = now.after(SILENCE);
        self.due.insert((pending.due, id));
    }

    fn remove(&mut self, id: u64) {
        let Some(pending) = self.pending.remove(&id) else { return };
        self.due.remove(&(pending.due, id));
        self.hold(pending.writer, |held| {
            held.remove(&id);
        });
        if self.by_ends.get(&pending.ends) == Some(&id) {
            self.by_ends.remove(&pending.ends);
        }
        let nodes = [pending.ends.from_node, pending.ends.to_node];
        for (node, entry) in nodes.into_iter().zip(pending.entries) {
            if let Some(entry) = entry
                && self.by_flow.get(&(node, entry.flow)) == Some(&id)
            {
                self.by_flow.remove(&(node, entry.flow));
            }
        }
    }
}

/// Tells whether each end received no more than the other sent, and no less than loss explains, as far as what is counted
/// can be compared: one end's later counts bound the other's earlier ones. What a restart cut short bounds nothing later.
fn agree(from: &Entry, to: &Entry) -> bool {
    let received = |counts: &Counts| (counts.rx_packets, counts.rx_bytes);
    let sent = |counts: &Counts| (counts.tx_packets, counts.tx_bytes);
    [(from, to), (to, from)].into_iter().all(|(sender, receiver)| {
        let ((sent, sent_bytes), (got, got_bytes)) = (sent(&sender.counts), received(&receiver.counts));
        let no_more = got <= sent.saturating_add(PACKETS_APART) && got_bytes <= sent_bytes.saturating_add(BYTES_APART);
        let lost = |sent: u64, apart: u64| apart.saturating_add(sent / LOSS);
        let no_less = got.saturating_add(lost(sent, PACKETS_APART)) >= sent
            && got_bytes.saturating_add(lost(sent_bytes, BYTES_APART)) >= sent_bytes;
        (!sender.is_later_than(receiver) || no_more) && (!receiver.is_later_than(sender) || no_less)
    })
}

#[cfg(test)]
mod tests;
