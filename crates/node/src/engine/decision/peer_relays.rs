//! Which peers may relay for this node, and for which ones this node relays.
//!
//! Source: paths.md, section 6.1; Tailscale `wgengine/magicsock`, `updateRelayServersSet` and `nodeHasCap`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use tokio::sync::mpsc;
use warren_filter::Grants;
use warren_path::{Allocation, Families, PeerRelayRoles};
use warren_wire::control::{CapabilityVersion, DerpMap, FilterRule};

use super::measure::Found;
use super::relay_view::{RelayFound, RelayView};
use super::tailnet::Tailnet;
use crate::engine::peer_relay::PeerRelayThread;
use crate::netmap::Peer;

/// Lets its holder ask us for endpoints.
const MAY_ASK: &str = "tailscale.com/cap/relay";
/// Marks whom we may ask.
const MAY_BE_ASKED: &str = "tailscale.com/cap/relay-target";
/// The first version that knows peer relays as they are now.
///
/// Source: Tailscale `wgengine/magicsock`, `capVerIsRelayCapable`.
const FIRST_VERSION: CapabilityVersion = CapabilityVersion(121);

/// What this node is and may be as a peer relay.
pub(super) struct PeerRelays {
    /// The rules that grant anything about peer relays; mostly none.
    grants: Grants,
    has_grants: bool,
    serving: Option<PeerRelayThread>,
    view: RelayView,
    found: mpsc::Sender<Found>,
    /// The port that was last tried.
    port: Option<u16>,
    trouble: Option<String>,
}

impl PeerRelays {
    /// Makes what serves nobody. `seed` must be fresh randomness; what comes for it goes to `found`.
    pub(super) fn new(seed: [u8; 32], found: mpsc::Sender<Found>) -> Self {
        Self {
            grants: Grants::default(),
            has_grants: false,
            serving: None,
            view: RelayView::new(seed, found.clone()),
            found,
            port: None,
            trouble: None,
        }
    }

    /// Takes over the relay map.
    pub(super) fn set_map(&mut self, map: &DerpMap, now: Instant) {
        self.view.set_map(map, now);
    }

    /// Tells that the network of this machine changed.
    pub(super) fn handle_link_change(&mut self, now: Instant) {
        if self.serving.is_some() {
            self.view.begin(now);
        }
    }

    /// Takes over what came for the view from outside.
    pub(super) fn handle_found(&mut self, found: RelayFound, now: Instant) {
        if let Some(serving) = &self.serving {
            self.view.handle_found(found, serving, now);
        }
    }

    /// Acts on every deadline at or before `now`.
    pub(super) fn handle_timeout(&mut self, families: Families, now: Instant) {
        self.view.handle_timeout(families, now);
    }

    /// Returns when to call [`Self::handle_timeout`] next.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.view.poll_timeout()
    }

    /// Sends what is to be sent from the relay's port.
    pub(super) fn drain(&mut self, now: Instant) {
        if let Some(serving) = &self.serving {
            self.view.drain(serving, now);
        }
    }

    /// Begins to serve on a port, or says why it cannot.
    fn serve(&mut self, port: u16, now: Instant) {
        let found = self.found.clone();
        // Full: the next answer comes in a while.
        let on_answer = move |bytes| drop(found.try_send(Found::ForRelay(RelayFound::Answer(bytes))));
        match PeerRelayThread::start(port, Box::new(on_answer), now) {
            Ok(serving) => {
                (self.serving, self.trouble) = (Some(serving), None);
                self.view.begin(now);
            }
            Err(error) => self.trouble = Some(error),
        }
    }

    /// Takes over the packet filter.
    pub(super) fn set_rules(&mut self, rules: &[FilterRule]) {
        let is_ours = |rule: &&FilterRule| {
            let names = rule.cap_grant.iter().flat_map(|grant| grant.caps.iter().chain(grant.cap_map.0.keys()));
            names.into_iter().any(|name| name == MAY_ASK || name == MAY_BE_ASKED)
        };
        self.has_grants = rules.iter().any(|rule| is_ours(&rule));
        self.grants = Grants::of(rules.iter().filter(is_ours));
    }

    /// Returns what keeps this node from serving, for people.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.clone()
    }

    /// Tells whether the rules grant a capability from one node to another, by the first addresses that both have in a
    /// family.
    fn grants(&self, from: &[IpNet], to: &[IpNet], capability: &str) -> bool {
        let same_family = |source: IpAddr| to.iter().map(IpNet::addr).find(|to| to.is_ipv4() == source.is_ipv4());
        let pair = from.iter().map(IpNet::addr).find_map(|source| Some((source, same_family(source)?)));
        self.has_grants && pair.is_some_and(|(from, to)| self.grants.capabilities(from, to).has(capability))
    }
}

impl Tailnet {
    /// Serves or not, as user and server want, and looks at the roles of all peers.
    pub(super) fn look_at_peer_relays(&mut self, now: Instant) {
        let local = self.local();
        let port = local.settings.relay_port.filter(|_| !local.node.cap_map.has("disable-relay-server"));
        if port != self.peer_relays.port {
            self.peer_relays.serving = None;
            self.peer_relays.view.end();
            self.peer_relays.trouble = None;
            self.peer_relays.port = port;
        }
        if let Some(port) = port.filter(|_| self.peer_relays.serving.is_none()) {
            self.peer_relays.serve(port, now);
        }
        let own = &self.local().node.addresses;
        let serves = self.peer_relays.serving.is_some() && self.peer_relays.grants(own, own, MAY_BE_ASKED);
        self.paths.set_own_peer_relay(serves);
        let peers: Vec<Arc<Peer>> = self.peers.values().map(|known| Arc::clone(&known.config)).collect();
        for peer in peers {
            self.set_peer_relay_roles(&peer);
        }
    }

    /// Looks at the roles of one peer.
    pub(super) fn set_peer_relay_roles(&mut self, peer: &Peer) {
        let own = &self.local().node;
        let may_use = !own.cap_map.has("disable-relay-client") && !own.cap_map.has("only-tcp-443");
        let client = may_use && peer.node().cap >= FIRST_VERSION;
        let server = client && self.peer_relays.grants(peer.addresses(), &own.addresses, MAY_BE_ASKED);
        self.paths.set_peer_relay_roles(&peer.key(), PeerRelayRoles { client, server });
    }

    /// Answers whoever asks for an endpoint of this node, if the rules allow that.
    pub(super) fn allocate(&mut self, wanted: &Allocation, now: Instant) {
        let Some(serving) = &self.peer_relays.serving else { return };
        let own = &self.local().node;
        let asked_by = match wanted.asked_by {
            None => own.key,
            Some((_, key)) => {
                let Some(known) = self.peers.get(&key) else { return };
                if !self.peer_relays.grants(known.config.addresses(), &own.addresses, MAY_ASK) {
                    return;
                }
                key
            }
        };
        let addresses = self.measure.relay_addresses(serving.ports(), self.peer_relays.view.seen());
        if let Some(endpoint) = serving.allocate(&asked_by, wanted, &addresses, now) {
            self.paths.answer_allocation(wanted, endpoint, now);
        }
    }
}
