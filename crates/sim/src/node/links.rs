//! The connections of a node to relays: the home's always, others while they are used.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use rand::RngExt as _;
use rand::rngs::StdRng;
use warren_wire::control::RegionId;
use warren_wire::key::NodeKey;

use super::{Act, Load};

/// Time without a packet from us after which a connection that is not the home's is closed.
const IDLE: Duration = Duration::from_secs(60);
/// Longest wait between two attempts to connect.
const MAX_DELAY: Duration = Duration::from_secs(5);
/// Time without a frame after which a connection is given up.
const READ_DEADLINE: Duration = Duration::from_secs(120);
/// Packets that wait for a connection.
const MAX_WAITING: usize = 64;

/// Names one connection of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnId {
    /// To where.
    pub region: RegionId,
    /// Which of the node's.
    pub number: u64,
}

/// The connections of a node.
#[derive(Debug, Default)]
pub struct Links {
    open: BTreeMap<RegionId, Link>,
    home: Option<RegionId>,
    /// Where peers were heard.
    learned: BTreeMap<NodeKey, RegionId>,
    count: u64,
}

#[derive(Debug)]
struct Link {
    conn: ConnId,
    state: State,
    failures: u32,
    last_write: Instant,
    last_read: Instant,
    waiting: VecDeque<(NodeKey, Load)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Connecting,
    Up,
    /// Down until then.
    Waiting(Instant),
}

impl Links {
    /// Returns the home.
    #[must_use]
    pub fn home(&self) -> Option<RegionId> {
        self.home
    }

    /// Tells whether packets to a region leave at once.
    #[must_use]
    pub fn is_up(&self, region: RegionId) -> bool {
        self.open.get(&region).is_some_and(|link| link.state == State::Up)
    }

    /// Returns the links of the same node after a restart: none, and no number is used twice.
    pub(super) fn restarted(&self) -> Self {
        Self { count: self.count, ..Self::default() }
    }

    /// Tells whether a connection is one of the node's.
    #[must_use]
    pub fn wants(&self, conn: ConnId) -> bool {
        self.open.get(&conn.region).is_some_and(|link| link.conn == conn)
    }

    pub(super) fn set_home(&mut self, home: RegionId, now: Instant, acts: &mut Vec<Act>) {
        if self.home != Some(home) {
            if let Some(old) = self.home.and_then(|old| self.open.get_mut(&old)) {
                old.last_write = now;
            }
            self.home = Some(home);
            self.link(home, now, acts);
        }
    }

    pub(super) fn way_to(&self, peer: &NodeKey, home: Option<RegionId>) -> Option<RegionId> {
        let learned = self.learned.get(peer).copied();
        let ways = [home.filter(|id| self.is_up(*id)), learned.filter(|id| self.is_up(*id)), home, learned];
        ways.into_iter().flatten().next()
    }

    pub(super) fn send(&mut self, region: RegionId, peer: NodeKey, load: Load, now: Instant, acts: &mut Vec<Act>) {
        let link = self.link(region, now, acts);
        link.last_write = now;
        if link.state == State::Up {
            acts.push(Act::Relay { conn: link.conn, peer, load });
            return;
        }
        if link.waiting.len() == MAX_WAITING {
            link.waiting.pop_front();
        }
        link.waiting.push_back((peer, load));
    }

    /// Connects to the home of a peer that is sent data.
    pub(super) fn approach(&mut self, home: Option<RegionId>, now: Instant, acts: &mut Vec<Act>) {
        if let Some(home) = home {
            self.link(home, now, acts);
        }
    }

    fn link(&mut self, region: RegionId, now: Instant, acts: &mut Vec<Act>) -> &mut Link {
        let count = &mut self.count;
        self.open.entry(region).or_insert_with(|| {
            *count += 1;
            let conn = ConnId { region, number: *count };
            acts.push(Act::Connect(conn));
            Link {
                conn,
                state: State::Connecting,
                failures: 0,
                last_write: now,
                last_read: now,
                waiting: VecDeque::new(),
            }
        })
    }

    fn known(&mut self, conn: ConnId) -> Option<&mut Link> {
        self.open.get_mut(&conn.region).filter(|link| link.conn == conn)
    }

    pub(super) fn handle_up(&mut self, conn: ConnId, now: Instant, acts: &mut Vec<Act>) -> bool {
        let Some(link) = self.known(conn) else { return false };
        (link.state, link.last_read, link.failures) = (State::Up, now, 0);
        let waiting = std::mem::take(&mut link.waiting);
        acts.extend(waiting.into_iter().map(|(peer, load)| Act::Relay { conn, peer, load }));
        true
    }

    /// Tells whether the connection was up.
    pub(super) fn handle_down(&mut self, conn: ConnId, now: Instant, rng: &mut StdRng) -> bool {
        let Some(link) = self.known(conn) else { return false };
        let was_up = link.state == State::Up;
        link.failures += 1;
        let most = Duration::from_millis(100 << link.failures.min(6)).min(MAX_DELAY);
        link.state = State::Waiting(now + most.mul_f64(rng.random_range(0.5..1.0)));
        self.learned.retain(|_, region| *region != conn.region);
        was_up
    }

    /// Tells whether a frame is of a connection that there still is.
    pub(super) fn handle_frame(&mut self, conn: ConnId, now: Instant) -> bool {
        self.known(conn).map(|link| link.last_read = now).is_some()
    }

    pub(super) fn handle_heard(&mut self, region: RegionId, peer: NodeKey) {
        self.learned.insert(peer, region);
    }

    pub(super) fn handle_gone(&mut self, region: RegionId, peer: &NodeKey) {
        if self.learned.get(peer) == Some(&region) {
            self.learned.remove(peer);
        }
    }

    pub(super) fn reconnect(&mut self, now: Instant, acts: &mut Vec<Act>) {
        acts.extend(self.open.values().map(|link| Act::Close(link.conn)));
        self.open.clear();
        self.learned.clear();
        if let Some(home) = self.home.take() {
            self.set_home(home, now, acts);
        }
    }

    /// Connects again, gives up what is silent, closes what is idle; tells whether one was given up.
    pub(super) fn handle_timeout(&mut self, now: Instant, rng: &mut StdRng, acts: &mut Vec<Act>) -> bool {
        let silent: Vec<ConnId> = self
            .open
            .values()
            .filter(|link| link.state == State::Up && now >= link.last_read + READ_DEADLINE)
            .map(|link| link.conn)
            .collect();
        for conn in &silent {
            acts.push(Act::Close(*conn));
            self.handle_down(*conn, now, rng);
        }
        let home = self.home;
        self.open.retain(|region, link| {
            let stays = Some(*region) == home || now < link.last_write + IDLE;
            if !stays {
                acts.push(Act::Close(link.conn));
            }
            stays
        });
        let open = &self.open;
        self.learned.retain(|_, region| open.contains_key(region));
        for link in self.open.values_mut() {
            if matches!(link.state, State::Waiting(until) if until <= now) {
                self.count += 1;
                link.conn.number = self.count;
                link.state = State::Connecting;
                acts.push(Act::Connect(link.conn));
            }
        }
        !silent.is_empty()
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let of = |(region, link): (&RegionId, &Link)| {
            let idle = (Some(*region) != self.home).then_some(link.last_write + IDLE);
            let state = match link.state {
                State::Connecting => None,
                State::Up => Some(link.last_read + READ_DEADLINE),
                State::Waiting(until) => Some(until),
            };
            idle.into_iter().chain(state).min()
        };
        self.open.iter().filter_map(of).min()
    }
}
