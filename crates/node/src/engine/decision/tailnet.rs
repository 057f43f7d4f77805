//! What there is while the node is on a tailnet: who it is, its peers, and the machines that serve them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::sync::{mpsc, oneshot};
use warren_dns::{Config, Member, Name, SERVICE_V4, reverse_zones};
use warren_filter::{Filter, FilterInput, PrefixTable};
use warren_os::NameSettings;
use warren_path::{OwnNat, PathStatus, Paths, PeerConfig, PingId, Routers};
use warren_wg::{Tunnels, sealed_length};
use warren_wire::control::{DerpMap, DnsConfig, FilterRule, NetInfo, Node, RegionId};
use warren_wire::key::{DiscoSecret, NodeKey, NodeSecret};

use super::measure::{Found, Measure};
use super::peer_relays::PeerRelays;
use super::relays::Relays;
use super::routes::{Exit, Wanted, behind, prefixes, routes};
use super::traffic::HeldPing;
use super::{Traits, exit};
use crate::engine::name_service::{NameService, with_system};
use crate::engine::owner::{Owner, Watch};
use crate::engine::relay_link::LinkSetup;
use crate::engine::shared::{PeerSlot, Shared, Snapshot};
use crate::engine::{Event, Local, PeerStatus, PingError, Pong};
use crate::look_up::system_resolvers;
use crate::netmap::Peer;

/// A tailnet that this node is on. Dropping it forgets all sessions and lets no packet through any more.
pub(super) struct Tailnet {
    pub(super) shared: Arc<Shared>,
    pub(super) peers: BTreeMap<NodeKey, Known>,
    pub(super) tunnels: Tunnels,
    pub(super) paths: Paths,
    /// Who leads into networks with several routers, and what their packets tell.
    pub(super) routers: Routers,
    pub(super) watches: BTreeMap<IpNet, Arc<Watch>>,
    pub(super) measure: Measure,
    pub(super) relays: Relays,
    pub(super) pings: BTreeMap<PingId, oneshot::Sender<Result<Pong, PingError>>>,
    /// Pings to peers of which the server has not said yet where they are.
    pub(super) held_pings: Vec<HeldPing>,
    /// What the daemon must learn.
    pub(super) news: Vec<Event>,
    /// Peers with a session.
    pub(super) sessions: usize,
    /// What the last measurement says of the network.
    pub(super) net_info: NetInfo,
    pub(super) local: Local,
    rules: Arc<[FilterRule]>,
    /// What of the rules cannot be used, for people.
    rule_trouble: Option<String>,
    pub(super) dirty: Dirty,
    /// The name service, or why there is none.
    names: Option<Result<NameService, String>>,
    pub(super) peer_relays: PeerRelays,
    traits: Traits,
    /// The peer that takes all packets for the Internet, if one was chosen and can.
    exit_node: Option<NodeKey>,
    /// The networks that this machine is in and its addresses there; `None` until somebody has looked.
    surroundings: Option<Vec<IpNet>>,
    /// Whom this machine asks for names besides us.
    system: Vec<SocketAddr>,
}

/// Returns the age at which end-to-end tests want sessions renewed. Release builds do not look.
#[cfg(debug_assertions)]
fn rekey_for_tests() -> Option<Duration> {
    let milliseconds = std::env::var("WARREN_TEST_REKEY_MS").ok()?.parse().ok()?;
    tracing::warn!(milliseconds, "sessions are renewed as often as a test wants");
    Some(Duration::from_millis(milliseconds))
}

/// A peer.
pub(super) struct Known {
    pub(super) config: Arc<Peer>,
    pub(super) slot: Arc<PeerSlot>,
    /// The last home relay that the server told.
    pub(super) home: Option<RegionId>,
    /// Boxed, since most peers of a big tailnet are never met.
    met: Option<Box<Met>>,
}

/// What is known of the handshakes with a peer.
#[derive(Default)]
pub(super) struct Met {
    /// As the decision side counts; the slot may have had one for a moment before.
    pub(super) has_session: bool,
    pub(super) last_handshake: Option<Instant>,
    /// The last message that began a handshake, until that is decided: it goes out again when a new way appears, which
    /// spares the seconds until the next attempt.
    pub(super) initiation: Option<Vec<u8>>,
    /// Where the last handshake message came from that the peer proved to have sent and that we answered, if straight.
    pub(super) shook_hands_at: Option<SocketAddr>,
    /// When a handshake was last begun because packets of the peer came in a session that is not there.
    pub(super) strayed: Option<Instant>,
}

impl Known {
    fn new(config: Arc<Peer>, slot: Arc<PeerSlot>) -> Self {
        Self { config, slot, home: None, met: None }
    }

    /// Returns what is known of handshakes with the peer, if there were any.
    pub(super) fn met(&self) -> Option<&Met> {
        self.met.as_deref()
    }

    /// Returns what is known of handshakes with the peer, to be changed.
    pub(super) fn meet(&mut self) -> &mut Met {
        self.met.get_or_insert_default()
    }
}

/// Says what must be published.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    pub(super) prefixes: bool,
    /// Names besides those of peers whose prefixes changed.
    names: bool,
    filter: bool,
    ports: bool,
    routes: bool,
    /// Who may be the exit node.
    exit: bool,
}

/// What a tailnet needs besides who this node is.
pub(super) struct Setup<'a> {
    pub(super) shared: Arc<Shared>,
    pub(super) links: LinkSetup,
    pub(super) found: mpsc::Sender<Found>,
    pub(super) traits: Traits,
    pub(super) rng: &'a mut StdRng,
}

impl Tailnet {
    /// Makes a tailnet without peers. `wall` is the time since 1970.
    pub(super) fn new(local: Local, setup: Setup<'_>, now: Instant, wall: Duration) -> Self {
        let Setup { shared, links, found, traits, rng } = setup;
        // Relays first: they must know the key before a handshake can leave.
        let relays = Relays::new(links, Arc::clone(&local.secret));
        let secret = NodeSecret::from_bytes(*local.secret.expose_bytes());
        let disco = DiscoSecret::from_bytes(*local.disco.expose_bytes());
        let peer_relays = PeerRelays::new(rng.random(), found.clone());
        let mut tailnet = Self {
            peers: BTreeMap::new(),
            tunnels: Tunnels::new(secret, Arc::clone(&shared.table), rng.random(), now, wall),
            paths: Paths::new(disco, local.secret.public(), rng.random()),
            routers: Routers::default(),
            watches: BTreeMap::new(),
            measure: Measure::new(
                [rng.random(), rng.random(), rng.random()],
                found,
                Arc::clone(&traits.static_endpoints),
            ),
            relays,
            pings: BTreeMap::new(),
            held_pings: Vec::new(),
            news: Vec::new(),
            sessions: 0,
            net_info: NetInfo::default(),
            shared,
            local,
            rules: Arc::from([]),
            rule_trouble: None,
            dirty: Dirty { prefixes: true, names: true, filter: true, ports: true, routes: true, exit: true },
            names: None,
            peer_relays,
            traits,
            exit_node: None,
            surroundings: None,
            system: Vec::new(),
        };
        #[cfg(debug_assertions)]
        if let Some(age) = rekey_for_tests() {
            tailnet.tunnels.set_rekey_after(age);
        }
        tailnet.look_at_attributes();
        tailnet.look_at_peer_relays(now);
        tailnet
    }

    /// Starts to answer names; the machine's part of it is done with the interface.
    pub(super) fn start_names(&mut self, seed: [u8; 32]) {
        let config = with_system(derive_names(&self.local, self.peers.values().map(|known| &*known.config)));
        self.names = Some(match self.traits.reach.clone() {
            Some(reach) => Ok(NameService::start_without_sockets(seed, config, reach)),
            None => NameService::start(seed, config),
        });
        self.publish_names();
    }

    /// Says whom to ask for names within this process.
    fn publish_names(&self) {
        let inquirer = self.names.as_ref().and_then(|names| names.as_ref().ok()).map(|service| {
            let dns = self.local.dns.as_ref();
            service.inquirer(dns.map(|dns| dns.domains.iter().take(SEARCH_MAX).cloned().collect()).unwrap_or_default())
        });
        self.shared.names.store(inquirer.map(Arc::new));
    }

    /// Returns who this node is.
    pub(super) fn local(&self) -> &Local {
        &self.local
    }

    /// Returns the home relay.
    pub(super) fn home(&self) -> Option<RegionId> {
        self.relays.home()
    }

    /// Returns what another tailnet needs to carry on: relay map, rules and peers.
    pub(super) fn parts(&self) -> (Arc<DerpMap>, Arc<[FilterRule]>, Vec<Arc<Peer>>) {
        let peers = self.peers.values().map(|known| Arc::clone(&known.config)).collect();
        (Arc::clone(self.relays.map()), Arc::clone(&self.rules), peers)
    }

    // What the daemon says.

    /// Takes over settings and own record; the key must be the same.
    pub(super) fn set_local(&mut self, local: Local, now: Instant) {
        self.local = local;
        self.look_at_attributes();
        self.look_at_peer_relays(now);
        self.dirty = Dirty { prefixes: true, filter: true, routes: true, ..Dirty::default() };
        self.drain(now);
    }

    /// Acts on what the server says of this node besides rules. Source: paths.md, section 9.4.
    fn look_at_attributes(&mut self) {
        let attributes = &self.local.node.cap_map;
        let Traits { mtu, probe_mtu, .. } = self.traits;
        let largest = u16::try_from(sealed_length(mtu.into(), mtu.into())).unwrap_or(u16::MAX);
        let probes_mtu = probe_mtu.unwrap_or_else(|| attributes.has("peer-mtu-enable"));
        self.paths.set_mtu_probing(probes_mtu.then_some(largest));
        self.paths.set_lifetime_probing(attributes.has("probe-udp-lifetime"));
        self.paths.set_silent(attributes.has("silent-disco"));
        self.measure.allow_upnp(!attributes.has("debug-disable-upnp"));
        self.measure.map_port(&self.shared.sockets.load());
    }

    /// Takes over the relay map.
    pub(super) fn set_map(&mut self, map: Arc<DerpMap>, now: Instant) {
        self.measure.netcheck.set_map(&map);
        self.peer_relays.set_map(&map, now);
        self.relays.set_map(map, now);
        self.measure.want(warren_path::Kind::Full, now);
        self.drain(now);
    }

    /// Takes over the packet filter.
    pub(super) fn set_rules(&mut self, rules: Arc<[FilterRule]>, now: Instant) {
        self.peer_relays.set_rules(&rules);
        self.rules = rules;
        self.dirty.filter = true;
        self.look_at_peer_relays(now);
    }

    /// Adds a peer or takes over what changed.
    pub(super) fn set_peer(&mut self, config: Arc<Peer>, now: Instant) {
        let key = config.key();
        let old_disco = self.paths.disco_key_of(&key);
        let old_home = self.peers.get(&key).and_then(|known| known.home);
        let had_no_way = self.relays.way_to(&key, old_home).is_none();
        let was_away = self.peers.get(&key).is_some_and(|known| known.config.node().online == Some(false));
        match self.peers.get_mut(&key) {
            Some(known) => {
                let old = std::mem::replace(&mut known.config, Arc::clone(&config));
                let leads_elsewhere = old.allowed_ips() != config.allowed_ips() || old.standby() != config.standby();
                // Whether a router is away matters where there are others.
                let comes_or_goes = old.node().online != config.node().online && self.routers.has(&key);
                if leads_elsewhere || old.addresses() != config.addresses() || comes_or_goes {
                    self.dirty.prefixes = true;
                }
                self.dirty.names |= old.node().name != config.node().name;
                self.dirty.exit |= old.node().online != config.node().online && exit::offers(&config);
            }
            None => {
                if !self.tunnels.add_peer(key) {
                    return;
                }
                let slot = Arc::new(PeerSlot::new(key));
                self.peers.insert(key, Known::new(Arc::clone(&config), slot));
                self.dirty.prefixes = true;
            }
        }
        let Some(known) = self.peers.get_mut(&key) else { return };
        known.slot.set_jailed(config.is_jailed());
        // A server that has just restarted may not know yet what it told before: absence is not deletion.
        known.home = config.home_relay().or(known.home);
        let disco = config.disco_key().or(old_disco);
        let path = PeerConfig { disco, home: known.home, endpoints: config.endpoints().to_vec() };
        // A disco key lives as long as a process: the peer has restarted and knows our session no more.
        if old_disco.is_some_and(|old| disco != Some(old)) {
            tracing::debug!(peer = %key.short(), "the peer has restarted");
            let was_asked = known.meet().initiation.take().is_some();
            known.slot.handshake_failed();
            let is_unheard = self.tunnels.reset_peer(&key);
            if was_asked || is_unheard {
                // The one under way went with the session, and so did what was sent in that.
                let _ = self.tunnels.start_handshake(&key, now);
            }
        }
        if was_away && config.node().online == Some(true) {
            // It may have been down meanwhile, without a restart.
            self.tunnels.doubt_session(&key, now);
        }
        // Sources of rules may be named by what nodes are capable of.
        self.dirty.filter |= self.rules.iter().any(|rule| rule.src_ips.iter().any(|source| source.starts_with("cap:")));
        self.paths.set_peer(key, &path, now);
        self.set_peer_relay_roles(&config);
        if had_no_way && self.relays.way_to(&key, path.home).is_some() {
            self.send_initiation_again(&key, now);
        }
        self.try_held_pings(&key, now);
        self.drain(now);
    }

    /// Forgets a peer.
    pub(super) fn remove_peer(&mut self, key: &NodeKey, now: Instant) {
        self.tunnels.remove_peer(key);
        self.paths.remove_peer(key);
        self.relays.remove_peer(key);
        if let Some(known) = self.peers.remove(key) {
            known.slot.set_session(None);
            self.sessions -= usize::from(known.met().is_some_and(|met| met.has_session));
            self.dirty.prefixes = true;
        }
        self.drain(now);
    }

    /// Says which networks this machine is in, and with which addresses.
    pub(super) fn set_surroundings(&mut self, surroundings: Vec<IpNet>) {
        if self.surroundings.as_ref() != Some(&surroundings) {
            self.surroundings = Some(surroundings);
            // An exit node passes nothing on into them.
            let is_exit = self.behind().any(|net| net.prefix_len() == 0);
            self.dirty.filter |= is_exit || self.local.settings.exit_node.is_some();
        }
    }

    /// Returns the exit node in use.
    pub(super) fn exit_node(&self) -> Option<NodeKey> {
        self.exit_node
    }

    /// Looks who the exit node is.
    fn choose_exit_node(&mut self) {
        let peers = self.peers.values().map(|known| &*known.config);
        let wish = self.local.settings.exit_node.as_ref();
        let chosen = wish.and_then(|wish| exit::choose(&wish.who, self.exit_node, self.relays.home(), peers));
        if chosen != self.exit_node {
            self.exit_node = chosen;
            self.dirty.prefixes = true;
        }
    }

    /// Says if an exit node was chosen that cannot be used, for people.
    fn exit_trouble(&self) -> Option<String> {
        self.local.settings.exit_node.as_ref()?;
        let way_out = "nothing leaves for the Internet; to do without one say: warren set --exit-node=";
        match self.exit_node.and_then(|key| self.peers.get(&key)) {
            None => Some(format!("there is no exit node: no peer that was chosen is one; {way_out}")),
            Some(known) if known.config.node().online == Some(false) => {
                Some(format!("the exit node {} is away; {way_out}", known.config.short_name()))
            }
            Some(_) => None,
        }
    }

    /// Says if names are asked for past the exit node, for people. With a TUN device this machine's resolvers are reached as
    /// without the tunnel, for most are in its own network, which an exit node does not lead to.
    fn exit_names_trouble(&self) -> Option<String> {
        self.local.settings.exit_node.as_ref().filter(|_| self.local.settings.accept_dns)?;
        let dns =
            self.local.dns.as_ref().filter(|_| self.traits.reach.is_none() && matches!(self.names, Some(Ok(_))))?;
        let is_named = !dns.resolvers.is_empty() || !dns.nameservers.is_empty() || !dns.fallback_resolvers.is_empty();
        let first = self.system.first().filter(|_| !is_named)?;
        Some(format!(
            "names of the Internet are asked for past the exit node, at {}; say on the server: warren admin dns nameservers \
             ADDRESS, and: warren admin dns override on",
            first.ip()
        ))
    }

    /// Says that the own UDP ports changed.
    pub(super) fn ports_changed(&mut self) {
        self.dirty.ports = true;
    }

    // What others must know.

    /// Publishes prefixes and filter if they changed. Costs O(peers) for prefixes, O(rules) for the filter; however
    /// many changes there were, once.
    pub(super) fn publish(&mut self, now: Instant) {
        if self.dirty.prefixes || self.dirty.exit {
            self.choose_exit_node();
        }
        self.dirty.exit = false;
        let Dirty { prefixes, names, filter, ports, .. } = self.dirty;
        if (prefixes || names)
            && let Some(Ok(service)) = &self.names
        {
            let peers = self.peers.values().map(|known| &*known.config);
            service.set(with_system(derive_names(&self.local, peers)));
            self.publish_names();
        }
        self.dirty.names = false;
        if !(prefixes || filter || ports) {
            return;
        }
        let mut snapshot = Snapshot::clone(&self.shared.snapshot.load());
        if prefixes {
            self.set_routers(now);
            snapshot.peers = Arc::new(self.prefix_table());
            self.dirty.routes = true;
        }
        if filter {
            snapshot.filter = Arc::new(self.compile());
            snapshot.rules_id = serde_json::to_vec(&*self.rules).map_or([0; 8], |json| warren_ledger::rules_id(&json));
        }
        let sockets = self.shared.sockets.load();
        snapshot.ports = [&sockets.v4, &sockets.v6].map(|socket| socket.as_ref().map_or(0, |socket| socket.port()));
        snapshot.own = self.local.node.addresses.iter().map(IpNet::addr).collect();
        snapshot.shields_up = self.local.settings.shields_up;
        let exit = self.local.settings.exit_node.as_ref();
        snapshot.wants_exit = exit.is_some();
        let lan = self.surroundings.iter().flatten().filter(|_| exit.is_some_and(|exit| exit.lan_access));
        snapshot.lan = lan.copied().collect();
        self.shared.snapshot.store(Arc::new(snapshot));
        self.dirty = Dirty { routes: self.dirty.routes, ..Dirty::default() };
    }

    fn prefix_table(&self) -> PrefixTable<Owner> {
        let accept = self.local.settings.accept_routes;
        let owned = |known: &Known| {
            let slot = Arc::clone(&known.slot);
            let is_exit = self.exit_node == Some(known.config.key());
            prefixes(&known.config, accept, is_exit).map(move |net| (net, Arc::clone(&slot))).collect::<Vec<_>>()
        };
        // Own addresses of a peer come last, so that no other peer's route takes one away.
        let (hosts, nets): (Vec<_>, Vec<_>) = self
            .peers
            .values()
            .flat_map(|known| {
                owned(known).into_iter().map(move |(net, slot)| (known.config.addresses().contains(&net), net, slot))
            })
            .partition(|(is_own, ..)| *is_own);
        let nets = nets.into_iter().map(|(_, net, slot)| (net, Owner::from(slot)));
        // After the server's choice for a network that has several routers, the one that is in use.
        let hosts = hosts.into_iter().map(|(_, net, slot)| (net, Owner::from(slot)));
        nets.chain(self.chosen_routers()).chain(hosts).collect()
    }

    fn compile(&mut self) -> Filter {
        let reached = self.behind().flat_map(|net| match (net.prefix_len(), &self.surroundings) {
            (0, Some(surroundings)) => exit::internet(net, surroundings),
            // Until it is known which networks must be left out.
            (0, None) => Vec::new(),
            _ => vec![net],
        });
        let local: Vec<IpNet> = self.local.node.addresses.iter().copied().chain(reached).collect();
        let holders = |capability: &str| -> Vec<IpAddr> {
            let holds = |known: &&Known| known.config.node().cap_map.has(capability);
            self.peers.values().filter(holds).flat_map(|known| known.config.addresses()).map(IpNet::addr).collect()
        };
        let shields = self.local.settings.shields();
        let input = FilterInput { rules: &self.rules, local: &local, shields, holders: &holders };
        match Filter::compile(&input) {
            Ok((filter, problems)) => {
                self.rule_trouble = problems.first().map(|problem| {
                    format!(
                        "{} entries of the packet filter are not understood, for instance {:?}",
                        problems.len(),
                        problem.entry
                    )
                });
                filter
            }
            Err(error) => {
                self.rule_trouble = Some(format!("the packet filter cannot be used, nothing is let in: {error}"));
                Filter::deny_all()
            }
        }
    }

    /// Returns the networks behind this node, with default routes for the Internet.
    fn behind(&self) -> impl Iterator<Item = IpNet> {
        behind(self.local.node.effective_allowed_ips(), &self.local.settings.offered_routes)
    }

    /// Returns how the machine should be, if that may have changed.
    pub(super) fn take_routes(&mut self) -> Option<Wanted> {
        if !std::mem::take(&mut self.dirty.routes) {
            return None;
        }
        let addresses = self.local.node.addresses.clone();
        let peers = self.peers.values().map(|known| &*known.config);
        let routes = routes(&addresses, peers, self.local.settings.accept_routes);
        let behind = self.behind().collect();
        let peers = self.peers.values().flat_map(|known| known.config.addresses()).copied().collect();
        let exit = match &self.local.settings.exit_node {
            None => Exit::None,
            Some(exit) if exit.lan_access => Exit::NotLan,
            Some(_) => Exit::All,
        };
        let masquerade = !self.local.settings.keeps_source;
        let names = self.name_settings();
        Some(Wanted { addresses, routes, peers, exit, behind, masquerade, names })
    }

    /// Returns where programs of this machine shall ask for names; `None` if that is not for us to say.
    fn name_settings(&self) -> Option<NameSettings> {
        let answers = matches!(self.names, Some(Ok(_)));
        let dns = self.local.dns.as_ref().filter(|_| self.local.settings.accept_dns && answers)?;
        name_settings(dns)
    }

    /// Looks whether this machine asks others for names than before.
    pub(super) fn look_at_resolvers(&mut self) {
        let present = system_resolvers();
        if self.system != present {
            self.system = present;
            self.dirty.names = true;
        }
    }

    /// Returns what the daemon should know; it may know some of it already.
    pub(super) fn take_news(&mut self, machine_troubles: &[String], now: Instant) -> Vec<Event> {
        let mut news = std::mem::take(&mut self.news);
        news.push(Event::Live { relays: self.relays.connected(), peers: self.sessions });
        let troubles = self.relays.troubles(now).chain(self.rule_trouble.clone());
        let troubles = troubles
            .chain(self.measure.trouble())
            .chain(self.peer_relays.trouble())
            .chain(self.exit_trouble())
            .chain(self.exit_names_trouble())
            .chain(self.router_troubles())
            .chain(self.names.as_ref().and_then(|names| names.as_ref().err().cloned()));
        news.push(Event::Health(machine_troubles.iter().cloned().chain(troubles).collect()));
        news
    }

    /// Describes all peers. `wall` is the time at `now`.
    pub(super) fn status(&self, now: Instant, wall: SystemTime) -> Vec<PeerStatus> {
        let at = |instant: Instant| wall.checked_sub(now.saturating_duration_since(instant));
        let own_nat = self.paths.own_nat();
        let describe = |(key, known): (&NodeKey, &Known)| {
            let path = self.paths.status(key);
            let direct = path.as_ref().and_then(|status| status.path.direct).filter(|one| now <= one.trusted_until);
            let (rx_bytes, tx_bytes) = known.slot.bytes();
            PeerStatus {
                key: *key,
                direct: direct.map(|direct| direct.address),
                path_mtu: path.as_ref().and_then(|status| status.mtu).filter(|_| direct.is_some()),
                peer_relay: path
                    .as_ref()
                    .and_then(|status| status.path.peer_relay)
                    .filter(|one| now <= one.trusted_until)
                    .map(|one| one.to),
                relay: self.relays.way_to(key, known.home),
                reason: path.as_ref().map(|path| reason(path, &own_nat, now)),
                rx_bytes,
                tx_bytes,
                last_handshake: known.met().and_then(|met| met.last_handshake).and_then(at),
                last_write: self.shared.instant(known.slot.last_write()).and_then(at),
                endpoints: path.map_or_else(
                    || known.config.endpoints().to_vec(),
                    |path| path.candidates.iter().map(|candidate| candidate.address).collect(),
                ),
            }
        };
        self.peers.iter().map(describe).collect()
    }
}

/// Returns the names of the tailnet, as the server says they are found.
fn derive_names<'a>(local: &'a Local, peers: impl Iterator<Item = &'a Peer>) -> Config {
    let Some(dns) = &local.dns else { return Config::default() };
    // Source: node.md, section 20.1: programs that try IPv6 first would wait where a peer cannot be reached by it.
    let aaaa = local.node.cap_map.has("magicdns-aaaa") || local.node.addresses.iter().all(|own| own.addr().is_ipv6());
    let nodes = std::iter::once(&*local.node).chain(peers.map(Peer::node));
    let member = |node: &'a Node| {
        // A peer that has no other is found by it.
        let aaaa = aaaa || node.addresses.iter().all(|own| own.addr().is_ipv6());
        Member {
            name: &node.name,
            addresses: &node.addresses,
            aaaa,
            wildcard: node.cap_map.has("dns-subdomain-resolve"),
        }
    };
    Config::derive(dns, nodes.map(member))
}

/// Most domains that are tried for short names.
const SEARCH_MAX: usize = 16;
/// Most domains whose names alone come to us.
const DOMAINS_MAX: usize = 256;

/// Returns where programs ask for names, as the server says. Source: node.md, section 20.3.
fn name_settings(dns: &DnsConfig) -> Option<NameSettings> {
    let everything = !dns.resolvers.is_empty() || !dns.nameservers.is_empty();
    if !dns.proxied && !everything && dns.routes.is_empty() && dns.extra_records.is_empty() {
        return None;
    }
    // They become words of a file and of a program's arguments.
    let plain = |domain: &str| {
        let domain = domain.trim_end_matches('.').to_ascii_lowercase();
        let is_plain = Name::parse(&domain).is_ok()
            && domain.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
            && domain.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
        is_plain.then_some(domain)
    };
    let search = dns.domains.iter().filter_map(|domain| plain(domain)).take(SEARCH_MAX).collect();
    let own = dns.domains.first().filter(|_| dns.proxied).map(String::as_str);
    let records = dns.extra_records.iter().map(|record| record.name.as_str());
    let routed = own.into_iter().chain(dns.routes.keys().map(String::as_str)).chain(records);
    let mut domains: Vec<String> = routed.filter_map(plain).take(DOMAINS_MAX).collect();
    if dns.proxied {
        domains.extend(reverse_zones());
    }
    domains.sort_unstable();
    domains.dedup();
    Some(NameSettings { servers: vec![SERVICE_V4.into()], search, domains: (!everything).then_some(domains) })
}

/// Says why a path is what it is, and what would help if it is not direct.
fn reason(status: &PathStatus, own: &OwnNat, now: Instant) -> String {
    let over_peer = match (status.path.peer_relay.filter(|one| now <= one.trusted_until), status.peer_relay_latency) {
        (Some(_), Some(latency)) => {
            format!("over a peer relay, {:.1} ms; ", latency.as_secs_f64() * 1000.0)
        }
        _ => String::new(),
    };
    let mut text = match (status.latency, status.advice(own)) {
        (_, Some(advice)) => advice,
        (Some(latency), None) => {
            let carried = status.mtu.map_or(String::new(), |mtu| format!(", carries packets of {mtu} bytes"));
            let open = status.lifetime.map_or(String::new(), |lifetime| format!(", stays open unused for {lifetime}"));
            format!("{}, {:.1} ms{carried}{open}", status.reason, latency.as_secs_f64() * 1000.0)
        }
        (None, None) => status.reason.to_string(),
    };
    text.insert_str(0, &over_peer);
    // What came before the present state.
    if let Some(before) = status.history.iter().rev().nth(1).filter(|_| status.history.len() > 1) {
        let seconds = now.saturating_duration_since(before.at).as_secs();
        let _ = match before.address {
            Some(address) => write!(text, " (before, {seconds} s ago: {address}, {})", before.reason),
            None => write!(text, " (before, {seconds} s ago: {})", before.reason),
        };
    }
    text
}

impl Drop for Tailnet {
    fn drop(&mut self) {
        self.shared.snapshot.store(Arc::default());
        self.shared.names.store(None);
        self.shared.extras.store(Arc::default());
        for (key, known) in &self.peers {
            self.tunnels.remove_peer(key);
            known.slot.set_session(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_wire::control::Resolver;

    #[test]
    fn programs_ask_us_for_all_or_for_what_is_ours() {
        let mut dns = DnsConfig {
            domains: vec![
                "t.example".to_owned(),
                "evil example\nnameserver 9.9.9.9".to_owned(),
                "-x.example".to_owned(),
            ],
            proxied: true,
            routes: [("corp.example.".to_owned(), Vec::new()), ("~bad".to_owned(), Vec::new())].into(),
            ..DnsConfig::default()
        };
        let settings = name_settings(&dns).unwrap();
        assert_eq!(settings.search, ["t.example"]);
        let domains = settings.domains.unwrap();
        let names: Vec<&str> = domains.iter().map(String::as_str).filter(|name| !name.ends_with(".arpa")).collect();
        assert_eq!(names, ["corp.example", "t.example"]);
        assert!(domains.contains(&"64.100.in-addr.arpa".to_owned()), "addresses of nodes have names here");
        dns.resolvers = vec![Resolver { addr: "192.0.2.1".to_owned(), ..Resolver::default() }];
        assert_eq!(name_settings(&dns).unwrap().domains, None);
        assert_eq!(name_settings(&DnsConfig::default()), None, "nothing to ask us for");
    }
}
