//! The connections to relay regions: the home's always, others while they are used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_wire::control::{DerpMap, DerpRegion, RegionId};
use warren_wire::key::{NodeKey, NodeSecret};

use crate::engine::relay_link::{Kind, LinkSetup, RelayLink};
use crate::engine::shared::Drops;

/// Time without a packet from us after which a connection that is not the home's is closed.
///
/// Source: Tailscale `wgengine/magicsock/derp.go`, `derpInactiveCleanupTime`.
const IDLE: Duration = Duration::from_secs(60);
/// How often idle connections are looked for.
const SWEEP: Duration = Duration::from_secs(15);
/// Time that a connection may be down before people are told.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most regions connected to at a time.
const MAX_LINKS: usize = 64;
/// How long a connection is kept that the map names no more: peers still send there until the server has told them, too.
const LINGER: Duration = Duration::from_secs(60);

/// Owns the connections to relays.
#[derive(Debug)]
pub(super) struct Relays {
    setup: LinkSetup,
    secret: Arc<NodeSecret>,
    map: Arc<DerpMap>,
    links: BTreeMap<RegionId, Open>,
    /// Connections to relays that serve their region no more, only listened to until then.
    leaving: Vec<(RegionId, Open, Instant)>,
    home: Option<RegionId>,
    /// Where peers were heard.
    learned: BTreeMap<NodeKey, RegionId>,
    sweep_at: Option<Instant>,
}

#[derive(Debug)]
struct Open {
    link: RelayLink,
    last_write: Instant,
    /// When packets were heard, while it is no home any more: whoever sends there does not know better yet.
    heard_as_former_home: Option<Instant>,
    /// The map names the region no more; the connection ends then.
    until: Option<Instant>,
    state: State,
    /// What the relay itself reports.
    health: String,
    pinged: Option<([u8; 8], Instant)>,
}

#[derive(Debug)]
enum State {
    /// Not connected since then, for this reason.
    Down(Instant, String),
    /// Connected to the relay of this name.
    Up(String),
}

impl Open {
    fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// Tells whether it is connected to a relay that is as it was in another description of the region.
    fn is_served_by(&self, region: &DerpRegion) -> bool {
        let State::Up(name) = &self.state else { return false };
        let of = |region: &DerpRegion| region.nodes.iter().find(|node| node.name == *name).cloned();
        of(region).is_some_and(|node| of(self.link.definition()) == Some(node))
    }

    /// Tells whether there is a use for it besides being the home.
    fn is_wanted(&self, now: Instant) -> bool {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < IDLE;
        match self.until {
            Some(until) => now < until,
            None => is_recent(self.last_write) || self.heard_as_former_home.is_some_and(is_recent),
        }
    }
}

impl Relays {
    /// Makes it without connections; they are made as the holder of `secret`.
    pub(super) fn new(setup: LinkSetup, secret: Arc<NodeSecret>) -> Self {
        Self {
            setup,
            secret,
            map: Arc::new(DerpMap::default()),
            links: BTreeMap::new(),
            leaving: Vec::new(),
            home: None,
            learned: BTreeMap::new(),
            sweep_at: None,
        }
    }

    /// Takes over a relay map. Connections stay where their relay does. Those to regions that are no more, and to relays
    /// that serve their region no more, stay a while, so that nothing is lost that is sent there meanwhile.
    pub(super) fn set_map(&mut self, map: Arc<DerpMap>, now: Instant) {
        self.map = map;
        let map = Arc::clone(&self.map);
        for (id, mut open) in std::mem::take(&mut self.links) {
            match region_of(&map, id) {
                Some(region) if open.link.definition() == region || open.is_served_by(region) => {
                    open.link.redefine(region);
                    open.until = None;
                    self.links.insert(id, open);
                }
                Some(_) => {
                    if open.is_up() && self.leaving.len() < MAX_LINKS {
                        self.leaving.push((id, open, now + LINGER));
                    }
                    if let Some(open) = self.home.filter(|home| *home == id).and_then(|home| self.open(home, now)) {
                        open.link.set_home(true);
                    }
                }
                None if open.is_up() => {
                    open.link.set_home(false);
                    open.until.get_or_insert(now + LINGER);
                    self.links.insert(id, open);
                }
                None => {}
            }
        }
        self.home = self.home.filter(|home| region_of(&map, *home).is_some());
        self.schedule(now);
    }

    /// Returns the relay map.
    pub(super) fn map(&self) -> &Arc<DerpMap> {
        &self.map
    }

    /// Tells whether there is any relay.
    pub(super) fn has_regions(&self) -> bool {
        self.map.regions.iter().flatten().any(|(id, _)| self.region(*id).is_some())
    }

    /// Returns the description of a region that packets can go over.
    pub(super) fn region(&self, id: RegionId) -> Option<&DerpRegion> {
        region_of(&self.map, id)
    }

    /// Returns the home.
    pub(super) fn home(&self) -> Option<RegionId> {
        self.home
    }

    /// Makes a region the home and connects to it.
    pub(super) fn set_home(&mut self, home: RegionId, now: Instant) {
        if self.home == Some(home) || self.region(home).is_none() {
            return;
        }
        if let Some(open) = self.home.and_then(|old| self.links.get_mut(&old)) {
            open.link.set_home(false);
            // It may go once it is idle and nobody sends there any more.
            open.last_write = now;
            open.heard_as_former_home = Some(now);
        }
        self.home = Some(home);
        if let Some(open) = self.open(home, now) {
            open.link.set_home(true);
            open.heard_as_former_home = None;
        }
        self.schedule(now);
    }

    /// Returns how many connections are up.
    pub(super) fn connected(&self) -> usize {
        self.links.values().filter(|open| open.is_up()).count()
    }

    /// Tells whether packets to a region leave at once.
    pub(super) fn is_up(&self, region: RegionId) -> bool {
        self.links.get(&region).is_some_and(Open::is_up)
    }

    /// Returns the region over which a packet to `peer` goes, whose home is `home` as far as known.
    ///
    /// Source: paths.md 1.10.
    pub(super) fn way_to(&self, peer: &NodeKey, home: Option<RegionId>) -> Option<RegionId> {
        let learned = self.learned.get(peer).copied();
        let ways = [home.filter(|id| self.is_up(*id)), learned.filter(|id| self.is_up(*id)), home, learned];
        // A region that the map names no more serves as long as it is connected.
        ways.into_iter().flatten().find(|id| self.region(*id).is_some() || self.is_up(*id))
    }

    /// Sends a packet to `peer` over a region; it waits if the connection is not up.
    pub(super) fn send(&mut self, region: RegionId, kind: Kind, peer: NodeKey, bytes: Vec<u8>, now: Instant) {
        if let Some(open) = self.open(region, now) {
            open.last_write = now;
            if open.link.send(kind, peer, bytes) {
                Drops::count(&self.setup.shared.drops.to_relay, 1);
            }
        }
        self.schedule(now);
    }

    /// Connects to the home of a peer that is sent data, so that a detour over the region where it was heard is a short
    /// one: its own home serves it best, and each direction then uses the recipient's relay.
    pub(super) fn approach(&mut self, home: Option<RegionId>, now: Instant) {
        if let Some(home) = home
            && !self.links.contains_key(&home)
            && self.open(home, now).is_some()
        {
            self.schedule(now);
        }
    }

    /// Returns the connection to a region, after opening it.
    fn open(&mut self, id: RegionId, now: Instant) -> Option<&mut Open> {
        if !self.links.contains_key(&id) {
            let region = region_of(&self.map, id)?;
            if self.links.len() >= MAX_LINKS {
                return None;
            }
            let link = RelayLink::open(region, Arc::clone(&self.secret), self.setup.clone());
            let state = State::Down(now, "connecting".to_owned());
            let open = Open {
                link,
                last_write: now,
                heard_as_former_home: None,
                until: None,
                state,
                health: String::new(),
                pinged: None,
            };
            self.links.insert(id, open);
        }
        self.links.get_mut(&id)
    }

    /// Returns the link that an event is about; `None` if that is gone.
    fn known(&mut self, region: RegionId, link: u64) -> Option<&mut Open> {
        self.links.get_mut(&region).filter(|open| open.link.id() == link)
    }

    /// Tells whether an event is about a link that there still is.
    pub(super) fn is_known(&self, region: RegionId, link: u64) -> bool {
        let leaving = self.leaving.iter().map(|(_, open, _)| open);
        self.links.get(&region).into_iter().chain(leaving).any(|open| open.link.id() == link)
    }

    /// Takes note that a connection to the relay of this name is up.
    pub(super) fn handle_up(&mut self, region: RegionId, link: u64, relay: String) {
        if let Some(open) = self.known(region, link) {
            open.state = State::Up(relay);
        }
    }

    /// Takes note that packets come over a connection.
    pub(super) fn handle_packets(&mut self, region: RegionId, link: u64, now: Instant) {
        if let Some(open) = self.known(region, link) {
            open.heard_as_former_home = open.heard_as_former_home.map(|_| now);
        }
    }

    /// Takes note that a connection is down; tells whether it was up.
    pub(super) fn handle_down(&mut self, region: RegionId, link: u64, reason: String, now: Instant) -> bool {
        self.leaving.retain(|(_, open, _)| open.link.id() != link);
        let Some(open) = self.known(region, link) else { return false };
        open.health.clear();
        open.pinged = None;
        let was_up = open.is_up();
        match &mut open.state {
            State::Up(_) => open.state = State::Down(now, reason),
            State::Down(_, why) => *why = reason,
        }
        if open.until.is_some() {
            self.links.remove(&region);
        }
        // What was learned on the connection is void.
        self.learned.retain(|_, learned| *learned != region);
        was_up
    }

    /// Takes note of what a relay says of itself.
    pub(super) fn handle_health(&mut self, region: RegionId, link: u64, text: String) {
        if let Some(open) = self.known(region, link) {
            open.health = text;
        }
    }

    /// Takes note that a peer was heard over a region. Only call it for peers.
    pub(super) fn handle_heard(&mut self, region: RegionId, peer: NodeKey) {
        self.learned.insert(peer, region);
    }

    /// Takes note that a peer is not at a region.
    pub(super) fn handle_gone(&mut self, region: RegionId, peer: &NodeKey) {
        if self.learned.get(peer) == Some(&region) {
            self.learned.remove(peer);
        }
    }

    /// Forgets a peer.
    pub(super) fn remove_peer(&mut self, peer: &NodeKey) {
        self.learned.remove(peer);
    }

    /// Asks a region that is connected for a sign of life; false if it is not.
    pub(super) fn ping(&mut self, region: RegionId, data: [u8; 8], now: Instant) -> bool {
        match self.links.get_mut(&region) {
            Some(open) if open.is_up() => {
                open.pinged = Some((data, now));
                open.link.ping(data);
                true
            }
            Some(_) | None => false,
        }
    }

    /// Takes note of the answer and returns the time there and back.
    pub(super) fn handle_pong(&mut self, region: RegionId, link: u64, data: [u8; 8], now: Instant) -> Option<Duration> {
        let open = self.known(region, link)?;
        let (_, at) = open.pinged.take_if(|(sent, _)| *sent == data)?;
        Some(now.saturating_duration_since(at))
    }

    /// Connects anew everywhere, because the addresses of this machine changed.
    pub(super) fn reconnect(&mut self, now: Instant) {
        self.links.clear();
        self.leaving.clear();
        self.learned.clear();
        if let Some(home) = self.home.take() {
            self.set_home(home, now);
        }
    }

    /// Connects at once where there is no connection, because there may be a way out now.
    pub(super) fn retry(&mut self, now: Instant) {
        self.links.retain(|_, open| open.is_up());
        if let Some(home) = self.home.filter(|home| !self.is_up(*home)) {
            self.home = None;
            self.set_home(home, now);
        }
    }

    /// Returns troubles, for people.
    pub(super) fn troubles(&self, now: Instant) -> impl Iterator<Item = String> {
        self.links.iter().filter_map(move |(id, open)| {
            let code = self.region(*id).map_or("", |region| region.region_code.as_str());
            match &open.state {
                State::Down(since, why) if now.saturating_duration_since(*since) >= PATIENCE => {
                    Some(format!("no connection to the relay region {id} {code}: {why}"))
                }
                State::Up(_) if !open.health.is_empty() => {
                    Some(format!("the relay region {id} {code} says: {}", open.health))
                }
                State::Up(_) | State::Down(..) => None,
            }
        })
    }

    /// Closes idle connections if it is time.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.sweep_at.is_none_or(|at| at > now) {
            return;
        }
        let home = self.home;
        self.links.retain(|id, open| Some(*id) == home || open.is_wanted(now));
        self.leaving.retain(|(_, _, until)| now < *until);
        let links = &self.links;
        self.learned.retain(|_, region| links.contains_key(region));
        self.sweep_at = None;
        self.schedule(now);
    }

    /// Returns when to call [`Self::handle_timeout`].
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.sweep_at
    }

    fn schedule(&mut self, now: Instant) {
        let only_home = self.links.keys().all(|id| Some(*id) == self.home);
        // A home that is down is looked at, too, so that its trouble is told in time.
        if only_home && self.leaving.is_empty() && self.connected() == self.links.len() {
            self.sweep_at = None;
        } else if self.sweep_at.is_none() {
            self.sweep_at = Some(now + SWEEP);
        }
    }
}

/// Returns a region of the map that packets can go over.
fn region_of(map: &DerpMap, id: RegionId) -> Option<&DerpRegion> {
    let region = map.regions.as_ref()?.get(&id)?;
    region.nodes.iter().any(|node| !node.stun_only).then_some(region)
}

#[cfg(test)]
mod tests;
