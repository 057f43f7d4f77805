//! How records look on the wire.

use jiff::Timestamp;
use warren_wire::control::{
    CapMap, CapabilityVersion, DerpMap, DnsConfig, Hostinfo, Node as WireNode, RawJson, Resolver, Time, UserId,
    UserProfile,
};

use crate::model::{Nameserver, Owner, UserRecord};
use crate::tailnet::nodes::Node;
use crate::tailnet::snapshot::Snapshot;

/// Owner of all tagged nodes on the wire: a number that no user gets. Source: control.md, section 8.4.
pub(crate) const TAGGED_USER: UserId = UserId(2_147_455_555);
/// Login name of [`TAGGED_USER`].
pub(crate) const TAGGED_LOGIN: &str = "tagged-devices";
/// Name to show for [`TAGGED_USER`].
pub(crate) const TAGGED_NAME: &str = "Tagged Devices";

/// From this capability version on clients know `DERPRegion.NoMeasureNoHome`; before, `Avoid` says nearly the same.
const NO_MEASURE_NO_HOME: u16 = 115;

/// Returns a node as its peers see it, but for the routes, of which each may see others.
pub(crate) fn peer(snapshot: &Snapshot, node: &Node) -> WireNode {
    let state = &node.state;
    let hostinfo = state.hostinfo.as_ref().map(|full| Hostinfo {
        os: full.os.clone(),
        hostname: full.hostname.clone(),
        services: full.services.clone(),
        ..Hostinfo::default()
    });
    WireNode {
        disco_key: state.disco,
        endpoints: state.endpoints.clone(),
        home_derp: state.home.unwrap_or_default(),
        // Some clients ask for fields of it without looking whether it is there.
        hostinfo: Some(hostinfo.unwrap_or_default()),
        cap: CapabilityVersion(state.cap),
        online: Some(node.online),
        last_seen: if node.online { None } else { state.last_seen.and_then(time) },
        cap_map: node.facts.peer_capabilities.clone(),
        ..common(snapshot, node)
    }
}

/// Returns a node as it sees itself; leaves out what it reports often, so that a report is not answered by a map.
pub(crate) fn own(snapshot: &Snapshot, node: &Node) -> WireNode {
    let full = node.state.hostinfo.as_ref();
    let hostinfo = Hostinfo {
        os: full.map(|full| full.os.clone()).unwrap_or_default(),
        hostname: full.map(|full| full.hostname.clone()).unwrap_or_default(),
        routable_ips: full.map(|full| full.routable_ips.clone()).unwrap_or_default(),
        request_tags: full.map(|full| full.request_tags.clone()).unwrap_or_default(),
        ..Hostinfo::default()
    };
    let mut cap_map = own_capabilities(&snapshot.tailnet.name);
    cap_map.0.extend(node.facts.own_capabilities.0.clone());
    let routes = &node.facts.routes;
    WireNode {
        machine: Some(node.record.machine),
        hostinfo: Some(hostinfo),
        cap_map,
        allowed_ips: Some(node.facts.addresses.iter().chain(&routes.allowed).copied().collect()),
        primary_routes: routes.primary.clone(),
        ..common(snapshot, node)
    }
}

fn common(snapshot: &Snapshot, node: &Node) -> WireNode {
    let record = &node.record;
    WireNode {
        id: record.id,
        stable_id: record.stable_id(),
        name: snapshot.fqdn(node),
        user: owner(record.owner),
        key: record.key,
        key_expiry: record.key_expiry.and_then(time),
        addresses: node.facts.addresses.clone(),
        created: time(record.created),
        tags: record.tags.clone(),
        machine_authorized: node.is_admitted(),
        expired: node.expired,
        ..WireNode::default()
    }
}

/// Returns the number of an owner.
pub(crate) fn owner(owner: Owner) -> UserId {
    match owner {
        Owner::User(user) => user,
        Owner::Tagged => TAGGED_USER,
    }
}

/// Returns what clients show for an owner; something even if the user's record cannot be read.
pub(crate) fn profile(snapshot: &Snapshot, id: UserId) -> UserProfile {
    if id == TAGGED_USER {
        return UserProfile {
            id,
            login_name: TAGGED_LOGIN.to_owned(),
            display_name: TAGGED_NAME.to_owned(),
            ..UserProfile::default()
        };
    }
    let user = snapshot.users.get(&id);
    let text = |of: fn(&UserRecord) -> &String| user.map_or_else(|| format!("user-{id}"), |user| of(user).clone());
    UserProfile {
        id,
        login_name: text(|user| &user.login),
        display_name: text(|user| &user.display_name),
        ..UserProfile::default()
    }
}

/// Returns the relays as a client of that version understands them.
pub(crate) fn relays(derp: &DerpMap, cap: u16) -> DerpMap {
    let mut derp = derp.clone();
    if cap < NO_MEASURE_NO_HOME {
        for region in derp.regions.iter_mut().flat_map(|regions| regions.values_mut()) {
            region.avoid |= region.no_measure_no_home;
        }
    }
    derp
}

/// Returns the names: the client's own resolver answers for the tailnet's domain, and asks whom the tailnet's settings
/// name for others.
pub(crate) fn dns(snapshot: &Snapshot) -> DnsConfig {
    let (suffix, settings) = (snapshot.suffix.to_string(), &snapshot.tailnet.dns);
    let resolvers = |servers: &[Nameserver]| -> Vec<Resolver> {
        let resolver = |server: &Nameserver| Resolver {
            addr: server.address.clone(),
            use_with_exit_node: server.use_with_exit_node,
            ..Resolver::default()
        };
        servers.iter().map(resolver).collect()
    };
    let all = resolvers(&settings.nameservers);
    let (resolvers_of_all, fallback_resolvers) =
        if settings.override_local { (all, Vec::new()) } else { (Vec::new(), all) };
    let mut config = DnsConfig {
        resolvers: resolvers_of_all,
        fallback_resolvers,
        routes: settings.split.iter().map(|(domain, servers)| (domain.clone(), resolvers(servers))).collect(),
        domains: settings.search_paths.clone(),
        proxied: settings.magic_dns,
        ..DnsConfig::default()
    };
    if settings.magic_dns {
        config.domains.insert(0, suffix.clone());
        config.routes.insert(suffix, Vec::new());
    }
    config
}

/// Makes clients keep the last map on disk, for a start while the server is away. A policy forbids it to nodes by the
/// attribute `disable-cache-network-maps`, which wins.
///
/// Source: Tailscale `tailcfg`, `NodeAttrCacheNetworkMaps` (capability version 135).
const KEEP_MAPS: &str = "cache-network-maps";

/// What a node may do at the client's end. Source: control.md, section 9.2.
fn own_capabilities(tailnet: &str) -> CapMap {
    let mut capabilities = CapMap::flags(["https://tailscale.com/cap/file-sharing", "probe-udp-lifetime", KEEP_MAPS]);
    let mut value = |name: &str, value: Result<RawJson, _>| {
        if let Ok(value) = value {
            capabilities.0.insert(name.to_owned(), vec![value]);
        }
    };
    value("default-auto-update", RawJson::of(&false));
    value("tailnet-display-name", RawJson::of(&tailnet));
    capabilities
}

/// Converts an instant; `None` if it cannot be written.
pub(crate) fn time(at: Timestamp) -> Option<Time> {
    let nanos = at.as_nanosecond();
    let seconds = i64::try_from(nanos.div_euclid(1_000_000_000)).ok()?;
    let part = u32::try_from(nanos.rem_euclid(1_000_000_000)).ok()?;
    Time::from_unix(seconds, part)
}

/// Converts an instant that a client stated; `None` if the server cannot count so far.
pub(crate) fn timestamp(at: Time) -> Option<Timestamp> {
    Timestamp::new(at.unix_seconds(), i32::try_from(at.nanos()).ok()?).ok()
}
