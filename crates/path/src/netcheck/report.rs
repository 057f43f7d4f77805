//! What a measurement finds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use warren_wire::control::{NetInfo, RegionId};

use super::plan::Family;
use crate::address::{is_usable, plain};

/// Mean difference up to which ports count: drawn at random, two are as near in one case of 2,000.
const MAX_COUNTING_STEP: u16 = 8;

/// What one measurement found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// Whether any STUN server answered.
    pub udp: bool,
    /// Whether this machine has a usable IPv6 address.
    pub has_v6: bool,
    /// Address as IPv4 servers see it: the first that was seen.
    pub global_v4: Option<SocketAddr>,
    /// Address as IPv6 servers see it: the last that was seen.
    pub global_v6: Option<SocketAddr>,
    /// Global addresses that peers should try, IPv4 first.
    pub advertised: Vec<SocketAddr>,
    /// Whether the IPv4 address differs by destination (a hard NAT); needs answers of two servers.
    pub mapping_varies: Option<bool>,
    /// If the NAT gives destinations one port after the other: the last that was seen, and by how much it counts.
    pub counting: Option<(u16, u16)>,
    /// Whether somebody answers HTTP requests in the place of relays: a network whose users must log in. `None` if that was
    /// not looked at, since there is UDP or nobody to ask.
    pub captive_portal: Option<bool>,
    /// Latencies of the regions that answered.
    pub latencies: BTreeMap<RegionId, Latencies>,
    /// Home relay that this node should have, `None` only if no region may be one.
    pub home: Option<RegionId>,
}

/// Least times there and back of one region, by way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latencies {
    /// Over UDP and IPv4.
    pub v4: Option<Duration>,
    /// Over UDP and IPv6.
    pub v6: Option<Duration>,
    /// Over HTTPS, measured only when there is no UDP.
    pub relay: Option<Duration>,
}

impl Latencies {
    /// Returns the least of the three.
    #[must_use]
    pub fn best(&self) -> Option<Duration> {
        [self.v4, self.v6, self.relay].into_iter().flatten().min()
    }

    pub(super) fn of(&mut self, family: Family) -> &mut Option<Duration> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

impl Report {
    /// Returns what the server is told.
    #[must_use]
    pub fn net_info(&self) -> NetInfo {
        let mut derp_latency = BTreeMap::new();
        for (region, latencies) in &self.latencies {
            for (family, latency) in [("v4", latencies.v4), ("v6", latencies.v6)] {
                if let Some(latency) = latency {
                    derp_latency.insert(format!("{region}-{family}"), latency.as_secs_f64());
                }
            }
        }
        NetInfo {
            mapping_varies_by_dest_ip: self.mapping_varies,
            working_ipv6: Some(self.answered(Family::V6)),
            os_has_ipv6: Some(self.has_v6),
            working_udp: Some(self.udp),
            preferred_derp: self.home.unwrap_or_default(),
            derp_latency,
            ..NetInfo::default()
        }
    }

    /// Tells whether the network keeps its users from the Internet until they log in.
    #[must_use]
    pub fn is_captive(&self) -> bool {
        !self.udp && self.captive_portal == Some(true)
    }

    /// Tells whether a server answered over this family.
    pub(super) fn answered(&self, family: Family) -> bool {
        self.latencies.values().any(|latencies| { *latencies }.of(family).is_some())
    }

    /// Returns the latency of each region that has one.
    pub(super) fn best_latencies(&self) -> BTreeMap<RegionId, Duration> {
        self.latencies.iter().filter_map(|(region, latencies)| latencies.best().map(|best| (*region, best))).collect()
    }
}

/// The addresses that servers saw, in order of arrival. As many as probes, which are bounded.
#[derive(Debug, Default)]
pub(super) struct Sightings(Vec<(Arc<str>, SocketAddr)>);

impl Sightings {
    /// Notes that a server, by its name, saw us at an address; one that is nobody's is not believed.
    pub(super) fn add(&mut self, server: Arc<str>, address: SocketAddr, family: Family) {
        let address = plain(address);
        if is_usable(address) && family.includes(address) {
            self.0.push((server, address));
        }
    }

    /// Tells whether our IPv4 address differs by destination; `None` until two servers answered.
    pub(super) fn mapping_varies(&self) -> Option<bool> {
        let mut v4 = self.0.iter().filter(|(_, address)| address.is_ipv4());
        let (first_server, first) = v4.next()?;
        let others: Vec<_> = v4.filter(|(server, _)| server != first_server).collect();
        (!others.is_empty()).then(|| others.iter().any(|(_, address)| address != first))
    }

    /// Tells whether the ports that servers see count upwards: the highest, and the least difference.
    fn counting(&self) -> Option<(u16, u16)> {
        if self.mapping_varies() != Some(true) {
            return None;
        }
        let v4 = || self.0.iter().map(|(_, address)| *address).filter(SocketAddr::is_ipv4);
        let first = v4().next()?;
        if v4().any(|address| address.ip() != first.ip()) {
            return None;
        }
        let ports: BTreeSet<u16> = v4().map(|address| address.port()).collect();
        let (lowest, highest) = (*ports.first()?, *ports.last()?);
        let steps = || ports.iter().zip(ports.iter().skip(1)).map(|(low, high)| high - low);
        let room = u16::try_from(ports.len()).ok()?.checked_mul(MAX_COUNTING_STEP)?;
        (highest - lowest <= room).then_some((highest, steps().min()?))
    }

    /// Writes the addresses into a report. Besides the main ones those are advertised that were seen twice: some
    /// firewalls change a mapping in its life, while single sightings are the noise of a hard NAT.
    pub(super) fn conclude(&self, report: &mut Report) {
        let addresses = || self.0.iter().map(|(_, address)| *address);
        report.global_v4 = addresses().find(SocketAddr::is_ipv4);
        report.global_v6 = addresses().rev().find(SocketAddr::is_ipv6);
        report.mapping_varies = self.mapping_varies();
        report.counting = self.counting();
        report.advertised = [report.global_v4, report.global_v6].into_iter().flatten().collect();
        for address in addresses() {
            let count = addresses().filter(|other| *other == address).count();
            if count > 1 && !report.advertised.contains(&address) {
                report.advertised.push(address);
            }
        }
        report.advertised.sort_by_key(SocketAddr::is_ipv6);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(list: &[(&str, &str)]) -> Report {
        let mut sightings = Sightings::default();
        for (server, address) in list {
            let address: SocketAddr = address.parse().unwrap();
            let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
            sightings.add((*server).into(), address, family);
        }
        let mut report = Report::default();
        sightings.conclude(&mut report);
        report
    }

    #[test]
    fn mapping_is_judged_by_two_servers() {
        assert_eq!(seen(&[("a", "192.0.2.1:1"), ("a", "192.0.2.1:1")]).mapping_varies, None);
        assert_eq!(seen(&[("a", "192.0.2.1:1"), ("b", "192.0.2.1:1")]).mapping_varies, Some(false));
        assert_eq!(seen(&[("a", "192.0.2.1:1"), ("b", "192.0.2.1:2")]).mapping_varies, Some(true));
        assert_eq!(seen(&[("a", "192.0.2.1:1"), ("b", "[2001:db8::1]:2")]).mapping_varies, None);
    }

    #[test]
    fn counting_is_told_from_drawing() {
        let ports = |ports: &[u16]| {
            let list: Vec<_> = ports.iter().map(|port| (port.to_string(), format!("192.0.2.1:{port}"))).collect();
            seen(&list.iter().map(|(name, at)| (name.as_str(), at.as_str())).collect::<Vec<_>>()).counting
        };
        assert_eq!(ports(&[5000, 5002, 5001]), Some((5002, 1)));
        assert_eq!(ports(&[5000, 5004, 5002, 5010]), Some((5010, 2)));
        assert_eq!(ports(&[5000, 5000]), None);
        assert_eq!(ports(&[5000, 41000]), None);
    }

    #[test]
    fn first_v4_last_v6_and_what_was_seen_twice_is_advertised() {
        let report = seen(&[
            ("a", "192.0.2.1:1"),
            ("b", "192.0.2.1:2"),
            ("c", "192.0.2.1:3"),
            ("d", "192.0.2.1:3"),
            ("a", "[2001:db8::1]:1"),
            ("b", "[2001:db8::1]:2"),
        ]);
        let expected = ["192.0.2.1:1", "192.0.2.1:3", "[2001:db8::1]:2"].map(|text| text.parse().unwrap());
        assert_eq!(report.advertised, expected);
    }

    #[test]
    fn impossible_addresses_are_not_believed() {
        assert_eq!(seen(&[("a", "100.64.0.9:1"), ("b", "0.0.0.0:7"), ("c", "192.0.2.1:0")]), Report::default());
        let mut sightings = Sightings::default();
        sightings.add("a".into(), "192.0.2.1:1".parse().unwrap(), Family::V6);
        assert!(sightings.0.is_empty(), "an IPv4 address over IPv6");
    }

    #[test]
    fn server_is_told_latencies_in_seconds_by_region_and_family() {
        let millis = |millis| Some(Duration::from_millis(millis));
        let latencies = Latencies { v4: millis(20), v6: millis(1500), relay: millis(1) };
        let report = Report {
            udp: true,
            home: Some(RegionId(900)),
            latencies: [
                (RegionId(900), latencies),
                (RegionId(901), Latencies { relay: millis(3), ..Latencies::default() }),
            ]
            .into(),
            ..Report::default()
        };
        let info = report.net_info();
        assert_eq!(info.derp_latency, [("900-v4".into(), 0.02), ("900-v6".into(), 1.5)].into());
        assert_eq!((info.working_udp, info.working_ipv6, info.preferred_derp), (Some(true), Some(true), RegionId(900)));
    }
}
