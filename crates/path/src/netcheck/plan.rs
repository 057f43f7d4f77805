//! Which servers are asked, and when.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use warren_wire::control::{DerpMap, DerpNode, RegionId};

use super::report::Report;

/// Most regions that are measured.
const MAX_REGIONS: usize = 256;
/// Most servers of a region that are used.
const MAX_SERVERS: usize = 16;
/// Most relays that are asked over plain HTTP.
///
/// Source: Tailscale `net/captivedetection`.
const MAX_PORTAL_PROBES: usize = 5;
/// Time between the tries of a full measurement.
const FULL_SPACING: Duration = Duration::from_millis(100);
/// Tries per region and family of a full measurement.
const FULL_TRIES: u32 = 3;
/// Time between the tries of an incremental one, for a region whose latency is not known.
const UNKNOWN_SPACING: Duration = Duration::from_millis(200);
/// What each later try waits longer than the one before.
const BACKOFF: Duration = Duration::from_millis(50);
/// Regions of an incremental measurement, beside the home.
const INCREMENTAL_REGIONS: usize = 3;

/// Address families in which this machine has a usable address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

/// Address of a STUN server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RelayAddress {
    /// As it stands.
    Literal(SocketAddr),
    /// By name, to be looked up; a failed look-up is like a lost packet.
    Name {
        /// Host name.
        host: Arc<str>,
        /// Port.
        port: u16,
        /// Whether an IPv6 address is wanted, else an IPv4 address.
        v6: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(super) fn includes(self, address: SocketAddr) -> bool {
        address.is_ipv6() == (self == Self::V6)
    }
}

impl Families {
    fn has(self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

/// What is measured of a relay map.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Regions {
    list: BTreeMap<RegionId, Region>,
    /// Factors of latency in the choice of a home, all positive and finite.
    pub(super) scores: BTreeMap<RegionId, f64>,
}

/// A region that may be measured and be a home.
#[derive(Debug, PartialEq)]
struct Region {
    avoid: bool,
    /// Whether one of its nodes is a relay.
    has_relay: bool,
    /// Those that answer plain HTTP.
    port80: Vec<Ipv4Addr>,
    servers: Vec<Server>,
}

/// A STUN server.
#[derive(Debug, PartialEq)]
struct Server {
    name: Arc<str>,
    v4: Option<RelayAddress>,
    v6: Option<RelayAddress>,
}

/// Probes of one region over one family, of which one answer is enough.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Set {
    pub(super) region: RegionId,
    pub(super) family: Family,
    pub(super) tries: Vec<Try>,
}

/// One probe of a set.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Try {
    /// Time since the start.
    pub(super) after: Duration,
    pub(super) server: Arc<str>,
    pub(super) address: RelayAddress,
}

impl Regions {
    pub(super) fn new(map: &DerpMap) -> Self {
        let regions = map
            .regions
            .iter()
            .flatten()
            .filter(|(id, region)| id.known().is_some() && !region.no_measure_no_home && !region.nodes.is_empty());
        let read = |nodes: &[DerpNode]| nodes.iter().filter_map(Server::new).take(MAX_SERVERS).collect();
        let list = regions.take(MAX_REGIONS).map(|(id, region)| {
            let has_relay = region.nodes.iter().any(|node| !node.stun_only);
            let port80 = region.nodes.iter().filter(|node| node.can_port80).filter_map(|node| node.ipv4.parse().ok());
            let port80 = port80.take(MAX_PORTAL_PROBES).collect();
            (*id, Region { avoid: region.avoid, has_relay, port80, servers: read(&region.nodes) })
        });
        let scores = map.home_params.iter().flat_map(|params| params.region_score.iter().flatten());
        let scores = scores.filter(|(_, score)| score.is_finite() && **score > 0.0).take(MAX_REGIONS);
        Self { list: list.collect(), scores: scores.map(|(id, score)| (*id, *score)).collect() }
    }

    pub(super) fn contains(&self, region: RegionId) -> bool {
        self.list.contains_key(&region)
    }

    /// Returns the regions that have a relay.
    pub(super) fn relays(&self) -> impl Iterator<Item = RegionId> {
        self.list.iter().filter(|(_, region)| region.has_relay).map(|(id, _)| *id)
    }

    /// Returns the relays to ask over plain HTTP, those of the home first.
    pub(super) fn port80(&self, home: Option<RegionId>) -> Vec<Ipv4Addr> {
        let (near, far): (Vec<_>, Vec<_>) = self.list.iter().partition(|(id, _)| home == Some(**id));
        near.into_iter()
            .chain(far)
            .flat_map(|(_, region)| region.port80.iter().copied())
            .take(MAX_PORTAL_PROBES)
            .collect()
    }

    /// Plans a measurement of every region.
    pub(super) fn plan_full(&self, families: Families) -> Vec<Set> {
        let regions = self.list.iter();
        let sets = regions.flat_map(|(id, region)| {
            let family = Family::ALL.into_iter().filter(|family| families.has(*family));
            family.map(|family| region.set(*id, family, FULL_TRIES, |attempt| FULL_SPACING * attempt))
        });
        sets.filter(|set| !set.tries.is_empty()).collect()
    }

    /// Plans a measurement of the regions that were nearest in the last report, and of the home: so one bad sample
    /// cannot hide it.
    pub(super) fn plan_incremental(&self, families: Families, last: &Report, home: Option<RegionId>) -> Vec<Set> {
        let latencies = last.best_latencies();
        let (had_v4, had_v6) = (last.answered(Family::V4), last.answered(Family::V6));
        let mut ranked: Vec<_> = self.list.iter().filter(|(id, region)| !region.avoid || home == Some(**id)).collect();
        ranked.sort_by_key(|(id, _)| (Reverse(latencies.contains_key(*id)), latencies.get(*id), **id));
        let mut sets = Vec::new();
        for (rank, (id, region)) in ranked.into_iter().enumerate() {
            let is_home = home == Some(*id);
            if rank >= INCREMENTAL_REGIONS && !is_home {
                continue;
            }
            let spacing = latencies.get(id).map_or(UNKNOWN_SPACING, |latency| *latency * 6 / 5);
            let delay = |attempt: u32| {
                let backoff = if attempt > 1 { BACKOFF * attempt } else { Duration::ZERO };
                spacing * attempt + backoff
            };
            for family in Family::ALL.into_iter().filter(|family| families.has(*family)) {
                // A family that did not work the last time is tried once, so that it can come back.
                let worked = family == Family::V4 || had_v6;
                let tries = match (is_home, rank) {
                    (true, _) if worked => 4,
                    (false, 0 | 1) if worked => 2,
                    (true, _) | (false, 0 | 1) => 1,
                    (false, _) if had_v4 && had_v6 => u32::from((rank % 2 == 1) == (family == Family::V6)),
                    (false, _) => u32::from(worked),
                };
                sets.push(region.set(*id, family, tries, delay));
            }
        }
        sets.retain(|set| !set.tries.is_empty());
        sets
    }
}

impl Region {
    /// Plans tries, each with the next server that has the family.
    fn set(&self, region: RegionId, family: Family, tries: u32, delay: impl Fn(u32) -> Duration) -> Set {
        let addresses = self.servers.iter().filter_map(|server| Some((server, server.address(family)?)));
        let tries = (0..tries).zip(addresses.cycle()).map(|(attempt, (server, address))| Try {
            after: delay(attempt),
            server: Arc::clone(&server.name),
            address: address.clone(),
        });
        Set { region, family, tries: tries.collect() }
    }
}

impl Server {
    /// Reads a node; `None` if it has no STUN.
    ///
    /// Source: Tailscale `net/netcheck`, `nodeAddrPort`.
    fn new(node: &DerpNode) -> Option<Self> {
        let port = match node.stun_port {
            0 => 3478,
            port => u16::try_from(port).ok()?,
        };
        let host: Arc<str> = node.host_name.as_str().into();
        let test: Option<IpAddr> = node.stun_test_ip.parse().ok();
        let address = |family: Family, literal: &str| {
            let literal = match (test, literal) {
                (Some(ip), _) => Some(ip),
                (None, "") if host.is_empty() => None,
                (None, "") => {
                    let host = Arc::clone(&host);
                    return Some(RelayAddress::Name { host, port, v6: family == Family::V6 });
                }
                // What is no address, like "none", turns the family off.
                (None, literal) => literal.parse().ok(),
            };
            literal.map(|ip| SocketAddr::new(ip, port)).filter(|it| family.includes(*it)).map(RelayAddress::Literal)
        };
        Some(Self {
            name: node.name.as_str().into(),
            v4: address(Family::V4, &node.ipv4),
            v6: address(Family::V6, &node.ipv6),
        })
    }

    fn address(&self, family: Family) -> Option<&RelayAddress> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }
}

#[cfg(test)]
mod tests;
