//! What `status`, `whois`, `ping` and `netcheck` show.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Value, json};
use warren_filter::Shields;
use warren_wire::control::{self, DerpMap, Node, RegionId, Time, UserId};
use warren_wire::key::NodeKey;

use crate::engine::{self, Netcheck, PingError, Pong, Via};
use crate::local_api::types::{
    CurrentTailnet, ExitNodeStatus, KeptMap, PeerStatus, PingResult, State, Status, Trouble, UserProfile, WhoIs,
    ZERO_TIME,
};
use crate::local_api::{Peers, Who};
use crate::netmap::{Moment, Netmap, Peer, printable};
use crate::prefs::Prefs;
use crate::userspace::INTERFACE;

/// A peer is *active* if something was sent to it within this time.
///
/// Source: Tailscale `ipn/ipnstate`, `PeerStatus.Active`.
const ACTIVE: Duration = Duration::from_secs(120);

/// Holds what the daemon knows at the moment of asking.
pub(super) struct Facts<'a> {
    pub(super) state: State,
    pub(super) prefs: &'a Prefs,
    pub(super) netmap: &'a Netmap,
    pub(super) key: Option<NodeKey>,
    pub(super) auth_url: &'a str,
    pub(super) trouble: Option<&'a Trouble>,
    pub(super) engine_health: &'a [String],
    pub(super) hostname: &'a str,
    pub(super) peers: Peers,
    pub(super) kept_map: Option<KeptMap>,
    pub(super) now: Moment,
}

/// Is a status that lacks only what the engine knows.
pub(super) struct View {
    status: Status,
    peers: Vec<(Arc<Peer>, Expired)>,
    relays: Option<Arc<DerpMap>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Expired {
    Yes,
    No,
}

impl View {
    pub(super) fn new(facts: Facts<'_>) -> Self {
        let netmap = facts.netmap;
        let local = netmap.local();
        let suffix = local.map(|node| suffix(&node.name)).unwrap_or_default();
        let mut own = local.map_or_else(PeerStatus::default, |node| describe(node));
        own.public_key = facts.key.unwrap_or_default().to_string();
        own.in_network_map = local.is_some();
        own.online = facts.state == State::Running;
        if own.host_name.is_empty() {
            own.host_name = printable(facts.hostname, 63);
        }
        own.os = "linux".to_owned();
        for time in [&mut own.created, &mut own.last_write, &mut own.last_seen, &mut own.last_handshake] {
            if time.is_empty() {
                *time = ZERO_TIME.to_owned();
            }
        }
        let mut health: Vec<String> = netmap.health().map(str::to_owned).collect();
        health.extend(netmap.clock().warning(facts.now));
        health.extend(facts.engine_health.iter().cloned());
        health.extend(facts.trouble.map(|trouble| trouble.text.clone()));
        let peers = match facts.peers {
            Peers::Omitted => Vec::new(),
            Peers::Listed => netmap
                .peers()
                .map(|peer| (Arc::clone(peer), if netmap.is_expired(peer) { Expired::Yes } else { Expired::No }))
                .collect(),
        };
        let status = Status {
            version: crate::VERSION.to_owned(),
            tun: true,
            backend_state: facts.state.name().to_owned(),
            have_node_key: facts.key.is_some(),
            auth_url: facts.auth_url.to_owned(),
            tailscale_ips: own.tailscale_ips.clone(),
            self_: own,
            health,
            magic_dns_suffix: suffix.clone(),
            current_tailnet: local.map(|_| CurrentTailnet {
                name: netmap.domain().to_owned(),
                magic_dns_suffix: suffix,
                magic_dns_enabled: netmap.dns().is_some_and(|dns| dns.proxied),
            }),
            cert_domains: None,
            peer: BTreeMap::new(),
            user: netmap.profiles().map(|user| (user.id.0.to_string(), profile(user))).collect(),
            client_version: None,
            exit_node_status: None,
            trouble: facts.trouble.cloned(),
            control_url: facts.prefs.control_url.clone(),
            kept_map: facts.kept_map,
        };
        Self { status, peers, relays: netmap.relays().cloned() }
    }

    /// Adds what the engine knows.
    pub(super) fn finish(mut self, engine: &engine::Status, now: Time) -> Status {
        self.status.tun = engine.interface.as_deref() != Some(INTERFACE);
        let relays = self.relays.as_deref();
        let known: HashMap<NodeKey, &engine::PeerStatus> = engine.peers.iter().map(|peer| (peer.key, peer)).collect();
        if let Some(home) = engine.home {
            self.status.self_.relay = region_code(relays, home);
        }
        for (peer, expired) in &self.peers {
            let mut shown = describe(peer.node());
            shown.in_network_map = true;
            shown.expired = *expired == Expired::Yes;
            shown.allowed_ips = peer.allowed_ips().to_vec();
            shown.addrs = peer.endpoints().iter().map(ToString::to_string).collect();
            if let Some(home) = peer.home_relay() {
                shown.relay = region_code(relays, home);
            }
            if let Some(seen) = known.get(&peer.key()) {
                add_engine(&mut shown, seen, now);
            }
            if engine.exit_node == Some(peer.key()) {
                shown.exit_node = true;
                self.status.exit_node_status = Some(ExitNodeStatus {
                    id: shown.id.clone(),
                    online: shown.online,
                    tailscale_ips: peer.addresses().to_vec(),
                });
            }
            self.status.peer.insert(peer.key().to_string(), shown);
        }
        self.status
    }
}

fn add_engine(shown: &mut PeerStatus, seen: &engine::PeerStatus, now: Time) {
    shown.in_engine = true;
    shown.in_magic_sock = true;
    let peer_relay = seen.peer_relay.filter(|_| seen.direct.is_none());
    shown.peer_relay = peer_relay.map(|relay| relay.to_string()).unwrap_or_default();
    shown.cur_addr = seen.direct.map(|address| address.to_string()).unwrap_or_default();
    shown.path_mtu = seen.path_mtu;
    if !seen.endpoints.is_empty() {
        shown.addrs = seen.endpoints.iter().map(ToString::to_string).collect();
    }
    shown.rx_bytes = seen.rx_bytes;
    shown.tx_bytes = seen.tx_bytes;
    shown.path_reason.clone_from(&seen.reason);
    let text = |time: Option<Time>| time.map_or_else(|| ZERO_TIME.to_owned(), |time| time.to_string());
    let last_write = seen.last_write.map(Time::from);
    shown.active = last_write.is_some_and(|at| now.saturating_since(at) < ACTIVE);
    shown.last_write = text(last_write);
    shown.last_handshake = text(seen.last_handshake.map(Time::from));
}

/// Describes a node as far as the map does.
fn describe(node: &Node) -> PeerStatus {
    let hostinfo = node.hostinfo.as_ref();
    let time = |time: Option<Time>| time.map_or_else(|| ZERO_TIME.to_owned(), |time| time.to_string());
    let own: Vec<IpAddr> = node.addresses.iter().map(ipnet::IpNet::addr).collect();
    let exit_routes = node.allowed_ips.iter().flatten().filter(|prefix| prefix.prefix_len() == 0).count();
    PeerStatus {
        id: printable(&node.stable_id, 64),
        node_id: node.id.0,
        public_key: node.key.to_string(),
        host_name: hostinfo.map(|info| printable(&info.hostname, 253)).unwrap_or_default(),
        dns_name: printable(&node.name, 253),
        os: hostinfo.map(|info| printable(&info.os, 32)).unwrap_or_default(),
        user_id: node.user.0,
        tailscale_ips: own,
        tags: node.tags.iter().map(|tag| printable(tag, 128)).collect(),
        primary_routes: node.primary_routes.clone(),
        created: time(node.created),
        last_write: ZERO_TIME.to_owned(),
        last_seen: time(node.last_seen),
        last_handshake: ZERO_TIME.to_owned(),
        online: node.online.unwrap_or_default(),
        exit_node_option: exit_routes == 2,
        expired: node.expired,
        key_expiry: node.key_expiry.map(|at| at.to_string()),
        ..PeerStatus::default()
    }
}

fn profile(user: &control::UserProfile) -> UserProfile {
    UserProfile {
        id: user.id.0,
        login_name: printable(&user.login_name, 253),
        display_name: printable(&user.display_name, 253),
        profile_pic_url: printable(&user.profile_pic_url, 512),
    }
}

fn suffix(name: &str) -> String {
    let suffix = name.split_once('.').map(|(_, rest)| rest).unwrap_or_default();
    printable(suffix.trim_end_matches('.'), 253)
}

/// Returns the short name of a region, its number if the map does not name it.
fn region_code(relays: Option<&DerpMap>, region: RegionId) -> String {
    relays
        .and_then(|map| map.regions.as_ref()?.get(&region))
        .map(|region| printable(&region.region_code, 32))
        .filter(|code| !code.is_empty())
        .unwrap_or_else(|| region.0.to_string())
}

/// Finds a node, this one included, with its owner and what it may do here beyond packets.
pub(super) fn who_is(netmap: &Netmap, shields: Shields, who: Who) -> Option<WhoIs> {
    let is = |node: &Node| match who {
        Who::Address(address) => node.addresses.iter().any(|own| own.addr() == address),
        Who::Key(key) => node.key == key,
    };
    let local = netmap.local().filter(|node| is(node)).map(|node| &**node);
    let node = local.or_else(|| match who {
        Who::Address(address) => netmap.peer_at(address).map(|peer| peer.node()),
        Who::Key(key) => netmap.peer_with(key).map(|peer| peer.node()),
    })?;
    let text = String::from_utf8(control::to_json(node).ok()?).ok()?;
    let unknown = || UserProfile { id: node.user.0, ..UserProfile::default() };
    let owner = netmap.profile(UserId(node.user.0)).map_or_else(unknown, profile);
    let cap_map = match shields {
        Shields::Down => capabilities(netmap, node, who),
        Shields::Up => BTreeMap::new(),
    };
    Some(WhoIs { node: RawValue::from_string(text).ok()?, user_profile: owner, cap_map })
}

/// Returns what rules grant `node` towards this one, by the address that was asked for, or by the first that both have
/// in a family.
///
/// Source: paths.md, section 8.8.
fn capabilities(netmap: &Netmap, node: &Node, who: Who) -> BTreeMap<String, Vec<Value>> {
    let asked = |address: &IpAddr| match who {
        Who::Address(asked) => asked == *address,
        Who::Key(_) => true,
    };
    let own: Vec<IpAddr> = netmap.local().iter().flat_map(|local| &local.addresses).map(ipnet::IpNet::addr).collect();
    let pair = node.addresses.iter().map(ipnet::IpNet::addr).filter(asked).find_map(|source| {
        let same_family = own.iter().find(|own| own.is_ipv4() == source.is_ipv4());
        same_family.map(|own| (source, *own))
    });
    let Some((source, own)) = pair else { return BTreeMap::new() };
    let granted = netmap.grants().capabilities(source, own).0.into_iter();
    granted.map(|(name, values)| (name, values.iter().filter_map(|value| value.read().ok()).collect())).collect()
}

/// Completes the answer to a ping.
pub(super) fn ping_result(
    mut result: PingResult,
    peer: &Peer,
    pong: Result<Pong, PingError>,
    relays: Option<&DerpMap>,
) -> PingResult {
    result.node_ip = result.ip.clone();
    result.node_name = peer.short_name();
    match pong {
        Err(error) => result.err = error.to_string(),
        Ok(pong) => {
            result.latency_seconds = pong.latency.as_secs_f64();
            match pong.via {
                Via::Direct(address) => result.endpoint = address.to_string(),
                Via::PeerRelay(relay) => result.peer_relay = relay.to_string(),
                Via::Relay(region) => {
                    result.derp_region_id = i64::from(region.0);
                    result.derp_region_code = region_code(relays, region);
                }
            }
        }
    }
    result
}

/// Writes a network report in the official shape, with the regions' names added.
///
/// Source: Tailscale `net/netcheck`, `Report`.
pub(super) fn netcheck(report: &Netcheck, relays: Option<&DerpMap>) -> Value {
    let latencies: BTreeMap<String, u64> = report
        .latencies
        .iter()
        .map(|(region, latency)| (region.0.to_string(), u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX)))
        .collect();
    let names: BTreeMap<String, Value> = relays
        .iter()
        .flat_map(|map| map.regions.iter().flatten())
        .map(|(id, region)| {
            let name = json!({ "Code": region_code(relays, *id), "Name": printable(&region.region_name, 64) });
            (id.0.to_string(), name)
        })
        .collect();
    let address =
        |address: Option<std::net::SocketAddr>| address.map(|address| address.to_string()).unwrap_or_default();
    json!({
        "UDP": report.udp,
        "IPv4": report.global_v4.is_some(),
        "IPv6": report.global_v6.is_some(),
        "GlobalV4": address(report.global_v4),
        "GlobalV6": address(report.global_v6),
        "MappingVariesByDestIP": report.mapping_varies.map_or(Value::String(String::new()), Value::Bool),
        "CaptivePortal": report.captive_portal.map_or(Value::String(String::new()), Value::Bool),
        "PreferredDERP": report.home.map_or(0, |home| home.0),
        "RegionLatency": latencies,
        "Regions": names,
    })
}
