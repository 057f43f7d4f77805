//! What this node knows of its tailnet: built from the server's map responses, sans-IO.
//!
//! [`Netmap::apply`] takes one response and says what changed, so that the engine is told of one peer's change at a cost
//! that does not grow with the tailnet. The order of steps within one response is that of the official client.
//!
//! Source: Tailscale `control/controlclient/map.go`.

mod clock;
mod kept;
mod peer;
mod rules;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use warren_filter::Grants;
use warren_wire::control::{
    CapabilityVersion, DerpMap, DisplayMessage, DnsConfig, FilterRule, MapResponse, Node, NodeId, PeerChange, Time,
    TkaInfo, UserId, UserProfile,
};
use warren_wire::key::NodeKey;

pub use clock::{Moment, ServerClock};
pub use kept::{KEPT_MAX, Kept, KeptError, Snapshot};
pub use peer::{Peer, Refusal};
use rules::Rules;

/// Most peers that are kept; the rest is ignored, lowest node IDs first in.
pub const MAX_PEERS: usize = 131_072;

/// Most health messages of the server that are kept, and the longest.
const MAX_HEALTH: usize = 32;
const MAX_HEALTH_LEN: usize = 400;

/// What users of a tailnet with a lock are told.
const LOCK_NOT_CHECKED: &str = "this tailnet is locked, but this version does not check the peers' signatures: it trusts the server's list of peers";

/// Holds the merged view of all map responses.
#[derive(Debug, Default)]
pub struct Netmap {
    local: Option<Arc<Node>>,
    peers: BTreeMap<NodeId, Arc<Peer>>,
    /// A server may give an address twice; the lowest number has it then.
    by_address: BTreeSet<(IpAddr, NodeId)>,
    /// One peer for each key: the engine knows peers by their keys alone.
    by_key: HashMap<NodeKey, NodeId>,
    /// Peers with a key expiry that has not been acted on, by time.
    expiries: BTreeSet<(Time, NodeId)>,
    /// Peers that the clock has expired.
    expired: BTreeSet<NodeId>,
    relays: Option<Arc<DerpMap>>,
    rules: Rules,
    dns: Option<Arc<DnsConfig>>,
    profiles: BTreeMap<UserId, UserProfile>,
    domain: String,
    /// The server takes flow logs.
    flow_log: bool,
    health: Vec<String>,
    messages: BTreeMap<String, String>,
    /// What the server says of the tailnet lock.
    lock: Option<TkaInfo>,
    clock: ServerClock,
    /// No response of the present poll has been applied yet: what is absent is empty, not unchanged.
    first: bool,
}

/// Says what a response changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Change {
    /// The own record.
    pub local: bool,
    /// The relay map.
    pub relays: bool,
    /// The packet filter.
    pub filter: bool,
    /// The name service.
    pub dns: bool,
    /// Node keys that are no longer to be reached.
    pub removed: Vec<NodeKey>,
    /// Peers that are new or different.
    pub peers: Vec<Arc<Peer>>,
}

/// Says why a response cannot be used; the poll is to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The first response of a poll must describe this node.
    #[error("the first map of the server does not describe this node")]
    NoSelf,
    /// The server describes a node with another key.
    #[error("the map of the server is for another node key")]
    WrongKey,
}

impl Netmap {
    /// Says that a new poll begins: the next response replaces everything. Until then the old view stays in use.
    pub fn begin_poll(&mut self) {
        self.first = true;
    }

    /// Tells whether the next response is the first of a poll, and so a whole map.
    #[must_use]
    pub fn awaits_whole(&self) -> bool {
        self.first
    }

    /// Applies one response as one step. `own` is the registered node key.
    ///
    /// # Errors
    /// Refuses a first response without a record of this node, and a record of another node; nothing is changed then.
    pub fn apply(&mut self, response: MapResponse, own: &NodeKey, now: Moment) -> Result<Change, MapError> {
        let first = self.first;
        if first && response.node.is_none() {
            return Err(MapError::NoSelf);
        }
        if response.node.as_ref().is_some_and(|node| node.key != *own) {
            return Err(MapError::WrongKey);
        }
        self.first = false;
        let mut change = Change::default();
        let mut touched = BTreeMap::new();
        if let Some(server_time) = response.control_time {
            self.clock.observe(server_time, now);
            self.revive(now, &mut touched);
        }
        if let Some(node) = response.node {
            self.apply_local(*node, &mut touched, &mut change);
        }
        self.apply_peers(
            PeerParts {
                first,
                peers: response.peers,
                changed: response.peers_changed,
                removed: response.peers_removed,
                seen: response.peer_seen_change,
                online: response.online_change,
                patches: response.peers_changed_patch,
            },
            now.wall,
            &mut touched,
        );
        self.apply_profiles(first, response.user_profiles);
        if let Some(map) = response.derp_map {
            change.relays = self.apply_relays(map);
        }
        change.filter = self.rules.apply(first, response.packet_filter, response.packet_filters);
        if first || response.dns_config.is_some() {
            let dns = response.dns_config.map(Arc::new);
            change.dns = self.dns != dns;
            self.dns = dns;
        }
        if first || response.flow_log.is_some() {
            self.flow_log = response.flow_log.unwrap_or(false);
        }
        if !response.domain.is_empty() {
            self.domain = printable(&response.domain, 253);
        }
        self.apply_health(first, response.health, response.display_messages);
        if first || response.tka_info.is_some() {
            self.lock = response.tka_info;
        }
        // Expiry first: what has expired is not reported as a peer.
        self.pass_time(now, &mut change);
        self.report(touched, &mut change);
        Ok(change)
    }

    /// Ends what has come to its end by `now`: rules of the filter, and keys of peers.
    pub fn handle_timeout(&mut self, now: Moment) -> Change {
        let mut change = Change::default();
        self.pass_time(now, &mut change);
        change
    }

    /// Returns how long from `now` until [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn next_timeout(&self, now: Moment) -> Option<Duration> {
        let expiry = self.expiries.first().map(|(at, _)| *at);
        expiry.into_iter().chain(self.rules.next_end()).min().map(|at| self.clock.until(at, now))
    }

    /// Tells whether rules of the filter will end.
    #[must_use]
    pub fn has_rules_that_end(&self) -> bool {
        self.rules.next_end().is_some()
    }

    fn pass_time(&mut self, now: Moment, change: &mut Change) {
        let server_now = self.clock.server_time(now);
        change.filter |= self.rules.tell_time(server_now);
        while let Some((_, id)) = self.expiries.first().copied().filter(|(at, _)| *at <= server_now) {
            self.expiries.pop_first();
            self.expired.insert(id);
            change.removed.extend(self.peers.get(&id).map(|peer| peer.key()));
        }
    }

    /// Forgets everything (logout, other server).
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes over what is known of the server's clock.
    pub fn set_clock(&mut self, clock: ServerClock) {
        self.clock = clock;
    }

    /// Returns this node as the server sees it.
    #[must_use]
    pub fn local(&self) -> Option<&Arc<Node>> {
        self.local.as_ref()
    }

    /// Tells whether the own key has expired.
    #[must_use]
    pub fn local_expired(&self, now: Moment) -> bool {
        let server_now = self.clock.server_time(now);
        self.local.as_ref().is_some_and(|node| node.expired || node.key_expiry.is_some_and(|at| at <= server_now))
    }

    /// Returns all peers, lowest ID first, expired ones included.
    pub fn peers(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.peers.values()
    }

    /// Tells whether the key of this peer has expired.
    #[must_use]
    pub fn is_expired(&self, peer: &Peer) -> bool {
        self.expired.contains(&peer.id())
    }

    /// Returns the peer with this node key.
    #[must_use]
    pub fn peer_with(&self, key: NodeKey) -> Option<&Arc<Peer>> {
        self.peers.get(self.by_key.get(&key)?)
    }

    /// Returns the peer that has `address` as its own.
    #[must_use]
    pub fn peer_at(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        let (found, id) = self.by_address.range((address, NodeId(i64::MIN))..).next()?;
        self.peers.get(id).filter(|_| *found == address)
    }

    /// Returns the relay map.
    #[must_use]
    pub fn relays(&self) -> Option<&Arc<DerpMap>> {
        self.relays.as_ref()
    }

    /// Returns the packet filter: the rules that have not ended, all pieces in the order of their names.
    #[must_use]
    pub fn filter(&self) -> Arc<[FilterRule]> {
        self.rules.in_force()
    }

    /// Returns what the filter grants peers beyond packets.
    #[must_use]
    pub fn grants(&self) -> &Grants {
        self.rules.grants()
    }

    /// Returns the name service.
    #[must_use]
    pub fn dns(&self) -> Option<&Arc<DnsConfig>> {
        self.dns.as_ref()
    }

    /// Returns the profile of a user.
    #[must_use]
    pub fn profile(&self, user: UserId) -> Option<&UserProfile> {
        self.profiles.get(&user)
    }

    /// Returns all profiles.
    pub fn profiles(&self) -> impl Iterator<Item = &UserProfile> {
        self.profiles.values()
    }

    /// Returns the name of the tailnet.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Tells whether the server takes flow logs of this tailnet's nodes.
    #[must_use]
    pub fn takes_flow_log(&self) -> bool {
        self.flow_log
    }

    /// Returns what the server wants the user to know.
    pub fn health(&self) -> impl Iterator<Item = &str> {
        let is_on = |lock: &TkaInfo| !lock.disabled && !lock.head.is_empty();
        let locked = self.lock.as_ref().is_some_and(is_on).then_some(LOCK_NOT_CHECKED);
        self.health.iter().chain(self.messages.values()).map(String::as_str).chain(locked)
    }

    /// Tells whether there is anybody to reach.
    #[must_use]
    pub fn has_relays_or_peers(&self) -> bool {
        let relays = self.relays.as_ref().and_then(|map| map.regions.as_ref());
        relays.is_some_and(|regions| !regions.is_empty()) || !self.peers.is_empty()
    }

    /// Takes note of the server's clock. Returns what has ended by it, or has not after all.
    pub fn observe_clock(&mut self, server: Time, now: Moment) -> Change {
        let mut touched = BTreeMap::new();
        self.clock.observe(server, now);
        self.revive(now, &mut touched);
        let mut change = self.handle_timeout(now);
        self.report(touched, &mut change);
        change
    }

    /// Returns the server's clock.
    #[must_use]
    pub fn clock(&self) -> ServerClock {
        self.clock
    }

    /// Returns everything as one change, for an engine that knows nothing.
    #[must_use]
    pub fn whole(&self) -> Change {
        Change {
            local: self.local.is_some(),
            relays: self.relays.is_some(),
            filter: true,
            dns: self.dns.is_some(),
            removed: Vec::new(),
            peers: self.peers.values().filter(|peer| !self.is_expired(peer)).cloned().collect(),
        }
    }

    fn apply_local(&mut self, node: Node, touched: &mut Touched, change: &mut Change) {
        if self.local.as_deref() == Some(&node) {
            return;
        }
        change.local = true;
        let own_addresses_changed = self.local.as_ref().map(|old| &old.addresses) != Some(&node.addresses);
        self.local = Some(Arc::new(node));
        if own_addresses_changed {
            // What a peer may claim depends on what is ours: all peers are judged again.
            for id in self.peers.keys().copied().collect::<Vec<_>>() {
                self.edit(id, touched, |_| {});
            }
        }
    }

    fn apply_peers(&mut self, parts: PeerParts, now: Time, touched: &mut Touched) {
        let complete = !parts.peers.is_empty();
        if parts.first || complete {
            // Removal first, so that addresses may move between peers.
            let listed = if complete { &parts.peers } else { &parts.changed };
            let kept: BTreeSet<NodeId> = listed.iter().map(|node| node.id).collect();
            let gone: Vec<NodeId> = self.peers.keys().copied().filter(|id| !kept.contains(id)).collect();
            for id in gone {
                self.remove(id, touched);
            }
        }
        if complete {
            for node in parts.peers {
                self.upsert(node, touched);
            }
            return;
        }
        for id in parts.removed {
            self.remove(id, touched);
        }
        for node in parts.changed {
            self.upsert(node, touched);
        }
        for (id, seen) in parts.seen {
            self.edit(id, touched, |node| node.last_seen = seen.then_some(now));
        }
        for (id, online) in parts.online {
            self.edit(id, touched, |node| node.online = Some(online));
        }
        for patch in parts.patches {
            self.edit(patch.node_id, touched, |node| apply_patch(node, patch));
        }
    }

    fn upsert(&mut self, node: Node, touched: &mut Touched) {
        let id = node.id;
        let before = self.take(id);
        touched.entry(id).or_insert(before);
        self.insert(node, touched);
    }

    fn remove(&mut self, id: NodeId, touched: &mut Touched) {
        let before = self.take(id);
        if before.is_some() {
            touched.entry(id).or_insert(before);
        }
    }

    fn edit(&mut self, id: NodeId, touched: &mut Touched, edit: impl FnOnce(&mut Node)) {
        let Some(before) = self.take(id) else { return };
        let mut node = (*before).clone().into_node();
        touched.entry(id).or_insert(Some(before));
        edit(&mut node);
        self.insert(node, touched);
    }

    /// Takes a peer out of every table.
    fn take(&mut self, id: NodeId) -> Option<Arc<Peer>> {
        let peer = self.peers.remove(&id)?;
        for address in peer.addresses() {
            self.by_address.remove(&(address.addr(), id));
        }
        self.by_key.remove(&peer.key());
        if let Some(at) = peer.key_expiry() {
            self.expiries.remove(&(at, id));
        }
        self.expired.remove(&id);
        Some(peer)
    }

    /// Admits a peer, or leaves it out with a note in the log. A peer that had the same key under another ID gives way.
    fn insert(&mut self, node: Node, touched: &mut Touched) {
        let id = node.id;
        let peer = match Peer::admit(node, self.local.as_deref()) {
            Ok(peer) => Arc::new(peer),
            Err(refusal) => {
                tracing::warn!(?id, %refusal, "peer left out");
                return;
            }
        };
        if self.peers.len() >= MAX_PEERS {
            tracing::warn!(?id, "too many peers, left out");
            return;
        }
        if let Some(other) = self.by_key.get(&peer.key()).copied() {
            tracing::warn!(?id, ?other, "two peers with one key, the older is left out");
            self.remove(other, touched);
        }
        self.by_key.insert(peer.key(), id);
        for address in peer.addresses() {
            self.by_address.insert((address.addr(), id));
        }
        if peer.marked_expired() {
            self.expired.insert(id);
        } else if let Some(at) = peer.key_expiry() {
            self.expiries.insert((at, id));
        }
        self.peers.insert(id, peer);
    }

    /// Takes back expiries that a wrong clock brought about. The engine does not know these peers any more.
    fn revive(&mut self, now: Moment, touched: &mut Touched) {
        let server_now = self.clock.server_time(now);
        let early = |id: &NodeId| {
            let peer = self.peers.get(id).filter(|peer| !peer.marked_expired())?;
            peer.key_expiry().filter(|at| *at > server_now).map(|at| (at, *id))
        };
        let revived: Vec<(Time, NodeId)> = self.expired.iter().filter_map(early).collect();
        for (at, id) in revived {
            self.expired.remove(&id);
            self.expiries.insert((at, id));
            touched.insert(id, None);
        }
    }

    fn apply_profiles(&mut self, first: bool, profiles: Vec<UserProfile>) {
        if first {
            self.profiles.clear();
        }
        for profile in profiles {
            if self.profiles.len() < MAX_PEERS || self.profiles.contains_key(&profile.id) {
                self.profiles.insert(profile.id, profile);
            }
        }
    }

    /// Merges a relay map. What is absent stays; a map without any region never replaces one that has some, since a
    /// node without a relay cannot be reached to be told better.
    fn apply_relays(&mut self, mut map: DerpMap) -> bool {
        if let Some(old) = self.relays.as_deref() {
            if map.regions.as_ref().is_none_or(BTreeMap::is_empty) {
                map.regions.clone_from(&old.regions);
            }
            if map.home_params.is_none() {
                map.home_params.clone_from(&old.home_params);
            }
        }
        if self.relays.as_deref() == Some(&map) {
            return false;
        }
        self.relays = Some(Arc::new(map));
        true
    }

    fn apply_health(
        &mut self,
        first: bool,
        health: Option<Vec<String>>,
        mut messages: BTreeMap<String, Option<DisplayMessage>>,
    ) {
        if first {
            self.health.clear();
            self.messages.clear();
        }
        if let Some(health) = health {
            self.health = health.iter().take(MAX_HEALTH).map(|text| printable(text, MAX_HEALTH_LEN)).collect();
        }
        if messages.get("*").is_some_and(Option::is_none) {
            messages.remove("*");
            self.messages.clear();
        }
        for (id, message) in messages {
            match message {
                None => {
                    self.messages.remove(&id);
                }
                Some(message) if self.messages.len() < MAX_HEALTH || self.messages.contains_key(&id) => {
                    let text = printable(&format!("{}: {}", message.title, message.text), MAX_HEALTH_LEN);
                    self.messages.insert(id, text);
                }
                Some(_) => {}
            }
        }
    }

    /// Turns the peers that were touched, with what they were before, into removals and changes.
    fn report(&self, touched: Touched, change: &mut Change) {
        for (id, before) in touched {
            let after = self.peers.get(&id).filter(|_| !self.expired.contains(&id));
            if let Some(before) = &before
                && after.is_none_or(|after| after.key() != before.key())
            {
                change.removed.push(before.key());
            }
            if let Some(after) = after
                && before.as_deref() != Some(&**after)
            {
                change.peers.push(Arc::clone(after));
            }
        }
    }
}

/// Maps each peer that a response touched to what it was before.
type Touched = BTreeMap<NodeId, Option<Arc<Peer>>>;

/// Holds the members of a response that are about peers.
struct PeerParts {
    first: bool,
    peers: Vec<Node>,
    changed: Vec<Node>,
    removed: Vec<NodeId>,
    seen: BTreeMap<NodeId, bool>,
    online: BTreeMap<NodeId, bool>,
    patches: Vec<PeerChange>,
}

fn apply_patch(node: &mut Node, patch: PeerChange) {
    if let Some(region) = patch.derp_region.known() {
        node.home_derp = region;
    }
    if patch.cap != CapabilityVersion::default() {
        node.cap = patch.cap;
    }
    if let Some(cap_map) = patch.cap_map {
        node.cap_map = cap_map;
    }
    if let Some(endpoints) = patch.endpoints {
        node.endpoints = endpoints;
    }
    if let Some(key) = patch.key {
        node.key = key;
    }
    if let Some(disco) = patch.disco_key {
        node.disco_key = Some(disco);
    }
    if let Some(online) = patch.online {
        node.online = Some(online);
    }
    if let Some(seen) = patch.last_seen {
        node.last_seen = Some(seen);
    }
    if let Some(expiry) = patch.key_expiry {
        node.key_expiry = expiry.into();
    }
}

/// Returns `text` without control characters and cut to `max` characters, for screens and logs.
#[must_use]
pub fn printable(text: &str, max: usize) -> String {
    text.chars()
        .filter(|c| !c.is_control() && !matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'))
        .take(max)
        .collect()
}

#[cfg(test)]
mod tests;
