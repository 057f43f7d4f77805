//! What a node's packet worker calls: counts packets of conversations, and says what is to be written down.

mod drops;
mod wheel;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::record::{Counts, Direction, DropReason, EndReason, Flow, Target};
use drops::DropTable;
use wheel::Wheel;

/// How long after the first packet since the last record of a conversation its counters are written down.
pub const UPDATE_INTERVAL: Duration = Duration::from_secs(5);

/// How long after the last segment that ends a TCP connection its end is written down: what is still under way counts.
pub const CLOSE_LINGER: Duration = Duration::from_secs(1);

/// How long segments of a connection that is over are known as such. Source: RFC 9293, 2 MSL.
const OVER_LINGER: Duration = Duration::from_secs(240);

/// How long the end of a full queue of notes is waited for before a note is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The most notes that wait to be taken.
pub const NOTES_MAX: usize = 4_096;

/// The most conversations that are counted at a time; more than a firewall of ours remembers.
pub const CONVERSATIONS_MAX: usize = 96 << 10;

/// The granularity of timers.
const TICK: Duration = Duration::from_millis(250);

/// Stands for a conversation in a [`Recorder`]; the caller keeps it with what it knows of the conversation.
///
/// The default one stands for none. One that the recorder has forgotten stands for none, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark(u64);

impl Mark {
    /// Makes a mark of the number that [`Self::to_number`] gave; 0 stands for none.
    #[must_use]
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// Returns the number.
    #[must_use]
    pub const fn to_number(self) -> u64 {
        self.0
    }

    const fn new(index: u32, generation: u32) -> Self {
        Self((generation as u64) << 32 | (index as u64 + 1))
    }

    /// Returns the place and the generation; `None` for none.
    fn parts(self) -> Option<(u32, u32)> {
        let index = u32::try_from(self.0 & 0xffff_ffff).ok()?.checked_sub(1)?;
        Some((index, u32::try_from(self.0 >> 32).ok()?))
    }
}

/// Describes a conversation, but for the peer: see [`crate::Start`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conversation {
    /// Who began.
    pub direction: Direction,
    /// IP protocol number.
    pub protocol: u8,
    /// The end on this node's side.
    pub local: SocketAddr,
    /// The end on the peer's side.
    pub remote: SocketAddr,
    /// The number of the rule that let it pass, if one did.
    pub rule: Option<u32>,
    /// How long it may rest before it is over.
    pub rest: Duration,
    /// The same while only one side has spoken.
    pub rest_unanswered: Duration,
}

/// Says what has passed at once in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// Which way.
    pub direction: Direction,
    /// How many packets, as they travel.
    pub packets: u32,
    /// Their bytes, with IP headers.
    pub bytes: u64,
    /// The flags of the TCP header, if it is TCP.
    pub flags: Option<u8>,
}

/// Is something to be written down. `P` stands for a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note<P> {
    /// When.
    pub at: Instant,
    /// What.
    pub what: What<P>,
}

/// Says what is to be written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What<P> {
    /// A conversation began.
    Start {
        /// Its number.
        flow: Flow,
        /// What it is.
        conversation: Conversation,
        /// With whom.
        peer: P,
    },
    /// A conversation goes on.
    Update {
        /// Which one.
        flow: Flow,
        /// What has passed.
        counts: Counts,
        /// With whom.
        peer: P,
    },
    /// A conversation is over.
    End {
        /// Which one.
        flow: Flow,
        /// Why.
        reason: EndReason,
        /// What has passed in all.
        counts: Counts,
    },
    /// Packets were dropped.
    Drops {
        /// Why.
        reason: DropReason,
        /// Which way they went.
        direction: Direction,
        /// The peer that they came from or should go to.
        peer: Option<P>,
        /// What they were about.
        target: Option<Target>,
        /// How many.
        packets: u64,
        /// Their bytes.
        bytes: u64,
        /// Since when.
        since: Instant,
    },
    /// Conversations came and went while there was no room for notes.
    Missed {
        /// How many.
        records: u64,
    },
}

/// Counts packets by conversation, and makes notes of their starts, progress and ends, and of dropped packets.
///
/// The start of a conversation is noted with its first packet, its counters at most [`UPDATE_INTERVAL`] after a packet,
/// its end [`CLOSE_LINGER`] after TCP has ended it, after its rest, or when the caller forgets it.
///
/// A packet costs a look at one place in memory: no search, no lock, no allocation. Memory and notes are bounded. While
/// notes find no room nothing is lost but conversations that begin and end meanwhile, and those beyond
/// [`CONVERSATIONS_MAX`]; [`What::Missed`] says how many. Every start has its end.
///
/// One value serves one worker, which calls [`Self::begin`] at the start of a turn, and takes the notes at its end.
#[derive(Debug)]
pub struct Recorder<P> {
    start: Instant,
    now: Instant,
    /// `now` in ticks since `start`.
    tick: u32,
    entries: Vec<Entry<P>>,
    free: Vec<u32>,
    wheel: Wheel,
    next_flow: u64,
    notes: VecDeque<Note<P>>,
    missed: u64,
    drops: DropTable<P>,
}

#[derive(Debug)]
struct Entry<P> {
    counts: Counts,
    generation: u32,
    /// In ticks.
    last: u32,
    state: State,
    /// Something has passed since the last note.
    is_dirty: bool,
    /// Which sides have sent FIN; both for a reset.
    ended: u8,
    /// Its number, once its start has been noted.
    flow: Option<Flow>,
    began: Instant,
    conversation: Conversation,
    peer: P,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Open,
    /// Its end is to be noted.
    Ending(EndReason),
    /// Its end is noted, while the caller has the mark still.
    Over(EndReason),
}

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const BOTH: u8 = 3;

impl<P: Clone> Recorder<P> {
    /// Makes a recorder that knows of nothing.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            start: now,
            now,
            tick: 0,
            entries: Vec::new(),
            free: Vec::new(),
            wheel: Wheel::new(),
            next_flow: 0,
            notes: VecDeque::with_capacity(NOTES_MAX),
            missed: 0,
            drops: DropTable::new(),
        }
    }

    /// Says what time it is for what follows.
    pub fn begin(&mut self, now: Instant) {
        self.now = now;
        let ticks = now.saturating_duration_since(self.start).as_millis() / TICK.as_millis();
        self.tick = u32::try_from(ticks).unwrap_or(u32::MAX - 1).max(self.tick);
    }

    /// Counts what has passed of a conversation; tells whether the mark stands for one that goes on. If not, and this is
    /// worth a new one, [`Self::open`] it.
    #[inline]
    pub fn count(&mut self, mark: Mark, passed: Passed) -> bool {
        let Some((index, generation)) = mark.parts() else { return false };
        let Some(entry) = self.entries.get_mut(index as usize) else { return false };
        if entry.generation != generation {
            return false;
        }
        if entry.state != State::Open || passed.flags.is_some_and(|flags| flags & (FIN | SYN | RST) != 0) {
            return self.count_slowly(index, passed);
        }
        entry.add(passed, self.tick);
        if !entry.is_dirty {
            entry.is_dirty = true;
            self.schedule(index, UPDATE_INTERVAL);
        }
        true
    }

    /// Counts what ends a conversation, or comes after its end.
    fn count_slowly(&mut self, index: u32, passed: Passed) -> bool {
        let Some(entry) = self.entries.get_mut(index as usize) else { return false };
        let flags = passed.flags.unwrap_or_default();
        match entry.state {
            State::Free => return false,
            // The last segments of a connection, sent again.
            State::Over(EndReason::Closed) if passed.flags.is_some() && flags & (SYN | ACK) != SYN => return true,
            State::Over(_) => {
                self.release(index);
                return false;
            }
            State::Open | State::Ending(_) => {}
        }
        if flags & (SYN | ACK) == SYN && entry.ended != 0 {
            // The ports are used again.
            self.end(index, EndReason::Replaced);
            return false;
        }
        entry.add(passed, self.tick);
        if flags & FIN != 0 {
            entry.ended |= if passed.direction == Direction::Outbound { 1 } else { 2 };
        }
        if flags & RST != 0 {
            entry.ended = BOTH;
        }
        if entry.ended == BOTH && entry.state == State::Open {
            entry.state = State::Ending(EndReason::Closed);
            self.schedule(index, CLOSE_LINGER);
        } else if !entry.is_dirty {
            entry.is_dirty = true;
            self.schedule(index, UPDATE_INTERVAL);
        }
        true
    }

    /// Counts the first packets of a conversation with `peer`, and returns the mark for the next; none if there is no room
    /// for it.
    pub fn open(&mut self, conversation: Conversation, peer: P, passed: Passed) -> Mark {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.entries.len() < CONVERSATIONS_MAX => u32::try_from(self.entries.len()).unwrap_or(u32::MAX),
            None => {
                self.missed += 1;
                return Mark::default();
            }
        };
        let generation = self.entries.get(index as usize).map_or(0, |entry| entry.generation);
        let mut entry = Entry {
            counts: Counts::default(),
            generation,
            last: self.tick,
            state: State::Open,
            is_dirty: true,
            ended: 0,
            flow: None,
            began: self.now,
            conversation,
            peer,
        };
        entry.add(passed, self.tick);
        match self.entries.get_mut(index as usize) {
            Some(free) => *free = entry,
            None => self.entries.push(entry),
        }
        self.announce(index);
        self.schedule(index, UPDATE_INTERVAL);
        // A connection that begins with its end: a reset, say.
        if passed.flags.is_some_and(|flags| flags & (FIN | RST) != 0) {
            let nothing = Passed { packets: 0, bytes: 0, ..passed };
            self.count_slowly(index, nothing);
        }
        Mark::new(index, generation)
    }

    /// Takes note that the caller has forgotten a conversation, and why.
    pub fn forget(&mut self, mark: Mark, reason: EndReason) {
        let Some((index, generation)) = mark.parts() else { return };
        let Some(entry) = self.entries.get(index as usize) else { return };
        if entry.generation != generation {
            return;
        }
        match entry.state {
            State::Free => {}
            State::Over(_) => self.release(index),
            // It had an end before it was forgotten.
            State::Ending(earlier) => self.end(index, earlier),
            State::Open => self.end(index, reason),
        }
    }

    /// Counts dropped packets. `peer` is asked for who it was when they are the first of their kind.
    pub fn drop(
        &mut self,
        reason: DropReason,
        target: Option<Target>,
        peer: impl FnOnce() -> Option<P>,
        passed: Passed,
    ) {
        self.drops.count(reason, target, peer, passed, self.now);
    }

    /// Makes the notes that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.begin(now);
        while let Some(index) = self.wheel.pop(self.tick) {
            self.fire(index);
        }
        self.drops.flush(now, &mut self.notes);
        self.say_missed();
    }

    /// Ends all conversations: the node stops. Take the notes and call it again until it says that there are no more.
    pub fn shut_down(&mut self, now: Instant) -> bool {
        self.begin(now);
        for index in 0..u32::try_from(self.entries.len()).unwrap_or(u32::MAX) {
            let state = self.entries.get(index as usize).map(|entry| entry.state);
            match state {
                Some(State::Open) => self.end(index, EndReason::Shutdown),
                Some(State::Ending(reason)) => self.end(index, reason),
                Some(State::Free | State::Over(_)) | None => {}
            }
        }
        self.drops.flush_all(&mut self.notes, now);
        self.say_missed();
        self.missed > 0
            || !self.drops.is_empty()
            || self.entries.iter().any(|entry| matches!(entry.state, State::Ending(_)))
    }

    /// Returns when to call [`Self::handle_timeout`] next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timer = self.wheel.next().map(|tick| self.start + TICK * tick);
        let missed = (self.missed > 0).then(|| self.now + RETRY);
        [timer, self.drops.next(), missed].into_iter().flatten().min()
    }

    /// Returns the oldest note that was not taken.
    pub fn poll_note(&mut self) -> Option<Note<P>> {
        self.notes.pop_front()
    }

    /// Returns the number of conversations that go on.
    #[must_use]
    pub fn conversations(&self) -> usize {
        self.entries.iter().filter(|entry| matches!(entry.state, State::Open | State::Ending(_))).count()
    }

    fn schedule(&mut self, index: u32, after: Duration) {
        let ticks = after.as_millis().div_ceil(TICK.as_millis());
        let deadline = self.tick.saturating_add(u32::try_from(ticks).unwrap_or(u32::MAX)).saturating_add(1);
        self.wheel.set(index, deadline);
    }

    /// Does what the timer of a conversation was set for.
    fn fire(&mut self, index: u32) {
        let Some(entry) = self.entries.get(index as usize) else { return };
        match entry.state {
            State::Free => {}
            State::Over(_) => self.release(index),
            State::Ending(reason) => self.end(index, reason),
            State::Open => {
                let rest = entry.rest();
                let rested = TICK * self.tick.saturating_sub(entry.last);
                if entry.is_dirty {
                    let wait = if self.update(index) { rest.saturating_sub(rested) } else { RETRY };
                    self.schedule(index, wait);
                } else if rested >= rest {
                    self.end(index, EndReason::Idle);
                } else {
                    self.schedule(index, rest.saturating_sub(rested));
                }
            }
        }
    }

    /// Notes the start of a conversation, unless that is done; tells whether it is.
    fn announce(&mut self, index: u32) -> bool {
        let Some(entry) = self.entries.get_mut(index as usize) else { return false };
        if entry.flow.is_some() {
            return true;
        }
        let flow = Flow(self.next_flow);
        let what = What::Start { flow, conversation: entry.conversation, peer: entry.peer.clone() };
        let is_noted = push(&mut self.notes, Note { at: entry.began, what });
        if is_noted {
            entry.flow = Some(flow);
            self.next_flow += 1;
        }
        is_noted
    }

    /// Notes the counters; tells whether there was room.
    fn update(&mut self, index: u32) -> bool {
        let is_announced = self.announce(index);
        let Some(entry) = self.entries.get_mut(index as usize) else { return false };
        let Some(flow) = entry.flow.filter(|_| is_announced) else { return false };
        let what = What::Update { flow, counts: entry.counts, peer: entry.peer.clone() };
        let is_noted = push(&mut self.notes, Note { at: self.now, what });
        entry.is_dirty &= !is_noted;
        is_noted
    }

    /// Notes the end, now or when there is room.
    fn end(&mut self, index: u32, reason: EndReason) {
        // Of one whose start found no room all is noted, if there is room now.
        let is_announced = self.notes.len() + 2 <= NOTES_MAX && self.announce(index);
        let Some(entry) = self.entries.get_mut(index as usize) else { return };
        let Some(flow) = entry.flow else {
            debug_assert!(!is_announced);
            self.missed += 1;
            return self.release(index);
        };
        let what = What::End { flow, reason, counts: entry.counts };
        if !push(&mut self.notes, Note { at: self.now, what }) {
            entry.state = State::Ending(reason);
            return self.schedule(index, RETRY);
        }
        match reason {
            // The caller may see more of it.
            EndReason::Closed => {
                entry.state = State::Over(reason);
                self.schedule(index, OVER_LINGER);
            }
            EndReason::Idle | EndReason::Forgotten | EndReason::Refused | EndReason::Replaced | EndReason::Shutdown => {
                self.release(index)
            }
        }
    }

    fn release(&mut self, index: u32) {
        self.wheel.clear(index);
        if let Some(entry) = self.entries.get_mut(index as usize) {
            entry.state = State::Free;
            entry.generation = entry.generation.wrapping_add(1);
            self.free.push(index);
        }
    }

    fn say_missed(&mut self) {
        let note = Note { at: self.now, what: What::Missed { records: self.missed } };
        if self.missed > 0 && push(&mut self.notes, note) {
            self.missed = 0;
        }
    }
}

impl<P> Entry<P> {
    fn rest(&self) -> Duration {
        let is_answered = self.counts.tx_packets > 0 && self.counts.rx_packets > 0;
        if is_answered { self.conversation.rest } else { self.conversation.rest_unanswered }
    }

    #[inline]
    fn add(&mut self, passed: Passed, tick: u32) {
        let counts = &mut self.counts;
        let (packets, bytes) = match passed.direction {
            Direction::Outbound => (&mut counts.tx_packets, &mut counts.tx_bytes),
            Direction::Inbound => (&mut counts.rx_packets, &mut counts.rx_bytes),
        };
        *packets += u64::from(passed.packets);
        *bytes += passed.bytes;
        self.last = tick;
    }
}

/// Adds a note if there is room, and tells whether there was.
fn push<P>(notes: &mut VecDeque<Note<P>>, note: Note<P>) -> bool {
    let has_room = notes.len() < NOTES_MAX;
    if has_room {
        notes.push_back(note);
    }
    has_room
}

#[cfg(test)]
mod tests;
