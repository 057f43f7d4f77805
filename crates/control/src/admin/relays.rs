//! Relays on other machines.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use warren_wire::control::{DerpMap, DerpNode, DerpRegion, RegionId};

use super::{Admin, AdminError, invalid, not_found};
use crate::store::StoreError;

/// Regions that are given out; operators may choose others. Source: paths.md 1.11.
const OWN_REGIONS: std::ops::RangeInclusive<u16> = 901..=999;
/// Most relays of a region.
const REGION_RELAYS: usize = 16;

/// What a relay on another machine says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewRelay {
    /// Its name: lower-case letters, digits and dashes.
    pub name: String,
    /// Name or address by which clients reach it.
    pub host: String,
    /// Port of the relay (TLS).
    pub port: u16,
    /// Port of STUN (UDP); none if absent.
    pub stun_port: Option<u16>,
    /// SHA-256 of its certificate in hexadecimal digits, if it made it itself.
    pub pin: Option<String>,
    /// Number of its region, perhaps one that has relays already; the first free one from 901 on if absent. Relays of one
    /// region must know each other.
    pub region: Option<u16>,
}

/// A relay on another machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayView {
    /// Number of its region.
    pub region: u16,
    /// Its name.
    pub name: String,
    /// Name or address by which clients reach it.
    pub host: String,
    /// Port of the relay.
    pub port: u16,
    /// Port of STUN; none if absent.
    pub stun_port: Option<u16>,
    /// Whether clients know its certificate by its hash.
    pub pinned: bool,
}

impl Admin {
    /// Makes a relay known to the clients of all tailnets. It asks this server which nodes it may serve.
    ///
    /// # Errors
    /// [`AdminError::Invalid`], [`AdminError::Taken`].
    pub async fn add_relay(&self, new: &NewRelay) -> Result<RelayView, AdminError> {
        let make = |own: &DerpMap, others: &BTreeMap<RegionId, DerpRegion>| region(new, own, others);
        let changed = self.control.put_relays(&self.who, "relay.add", make).await?;
        views(&changed).find(|view| view.name == new.name).ok_or_else(|| not_found("relay", &new.name))
    }

    /// Returns the relays on other machines.
    #[must_use]
    pub fn relays(&self) -> Vec<RelayView> {
        self.control.relays().values().flat_map(views).collect()
    }

    /// Takes a relay, or all of a region by its number, out of the maps of all clients.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub async fn remove_relay(&self, name: &str) -> Result<(), AdminError> {
        let relays = self.control.relays();
        let is_it = |view: RelayView| view.name == name || view.region.to_string() == name;
        let region = relays.values().find(|region| views(region).any(is_it)).ok_or_else(|| not_found("relay", name))?;
        let id = region.region_id;
        if without(region, name).is_some() {
            let make = |_: &DerpMap, others: &BTreeMap<RegionId, DerpRegion>| {
                others.get(&id).and_then(|region| without(region, name)).ok_or_else(|| not_found("relay", name))
            };
            return self.control.put_relays(&self.who, "relay.remove", make).await.map(drop);
        }
        match self.control.remove_relay(&self.who, id).await {
            Err(StoreError::Conflict { .. }) => Err(not_found("relay", name)),
            other => Ok(other?),
        }
    }
}

/// Returns the region without one of its relays; `None` if that is the last, or none of them.
fn without(region: &DerpRegion, name: &str) -> Option<DerpRegion> {
    let mut left = region.clone();
    left.nodes.retain(|node| name_of(region, node) != name);
    (!left.nodes.is_empty() && left.nodes.len() < region.nodes.len()).then_some(left)
}

/// Returns a relay's name. Those of servers of before have the name of the region alone.
fn name_of<'a>(region: &'a DerpRegion, node: &'a DerpNode) -> &'a str {
    let is_old = node.name == format!("{}a", region.region_id.0);
    if is_old { &region.region_code } else { &node.name }
}

/// Checks what a relay says of itself and describes its region to clients: a new one, or one that has relays already.
fn region(new: &NewRelay, own: &DerpMap, others: &BTreeMap<RegionId, DerpRegion>) -> Result<DerpRegion, AdminError> {
    if !crate::name::is_label(&new.name) {
        return Err(invalid("relay name: use lower-case letters, digits and dashes, 63 at most", &new.name));
    }
    let own: BTreeMap<RegionId, DerpRegion> = own.regions.clone().unwrap_or_default();
    let is_taken = |region: &DerpRegion| {
        region.region_code == new.name || region.nodes.iter().any(|node| name_of(region, node) == new.name)
    };
    if own.values().chain(others.values()).any(is_taken) {
        return Err(AdminError::Taken { what: "relay", name: new.name.clone() });
    }
    let is_free = |id: &u16| !own.contains_key(&RegionId(*id)) && !others.contains_key(&RegionId(*id));
    let id = match new.region {
        Some(0) => return Err(invalid("region: use a number from 1 to 65535", "0")),
        Some(id) if own.contains_key(&RegionId(id)) => {
            return Err(AdminError::Taken { what: "region", name: id.to_string() });
        }
        Some(id) => id,
        None => OWN_REGIONS.clone().find(is_free).ok_or_else(|| invalid("free region", "901 to 999"))?,
    };
    let node = node(new, RegionId(id))?;
    let mut region = others.get(&RegionId(id)).cloned().unwrap_or_else(|| DerpRegion {
        region_id: RegionId(id),
        region_code: new.name.clone(),
        region_name: new.name.clone(),
        ..DerpRegion::default()
    });
    if region.nodes.len() >= REGION_RELAYS {
        return Err(invalid("region: it has 16 relays already", &id.to_string()));
    }
    region.nodes.push(node);
    Ok(region)
}

/// Checks and describes the relay itself.
fn node(new: &NewRelay, id: RegionId) -> Result<DerpNode, AdminError> {
    let is_pin = |pin: &String| pin.len() == 64 && pin.bytes().all(|digit| digit.is_ascii_hexdigit());
    if let Some(pin) = new.pin.as_ref().filter(|pin| !is_pin(pin)) {
        return Err(invalid("SHA-256 of a certificate", pin));
    }
    if new.port == 0 || new.stun_port == Some(0) {
        return Err(invalid("port", "0"));
    }
    let (ipv4, ipv6) = match new.host.parse() {
        Ok(IpAddr::V4(address)) => (address.to_string(), "none".to_owned()),
        Ok(IpAddr::V6(address)) => ("none".to_owned(), address.to_string()),
        Err(_) if is_host(&new.host) => (String::new(), String::new()),
        Err(_) => return Err(invalid("host name or address", &new.host)),
    };
    Ok(DerpNode {
        name: new.name.clone(),
        region_id: id,
        host_name: new.host.clone(),
        cert_name: new.pin.as_ref().map(|pin| format!("sha256-raw:{}", pin.to_ascii_lowercase())).unwrap_or_default(),
        ipv4,
        ipv6,
        stun_port: new.stun_port.map_or(-1, i32::from),
        derp_port: new.port,
        ..DerpNode::default()
    })
}

fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

fn views(region: &DerpRegion) -> impl Iterator<Item = RelayView> {
    region.nodes.iter().map(|node| RelayView {
        region: region.region_id.0,
        name: name_of(region, node).to_owned(),
        host: node.host_name.clone(),
        port: node.derp_port,
        stun_port: u16::try_from(node.stun_port).ok(),
        pinned: !node.cert_name.is_empty(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new() -> NewRelay {
        NewRelay { name: "fra".to_owned(), host: "relay.example".to_owned(), port: 443, ..NewRelay::default() }
    }

    fn own() -> DerpMap {
        DerpMap {
            regions: Some(BTreeMap::from([(
                RegionId(900),
                DerpRegion { region_id: RegionId(900), region_code: "warren".to_owned(), ..DerpRegion::default() },
            )])),
            ..DerpMap::default()
        }
    }

    #[test]
    fn what_cannot_be_a_relay_is_refused() {
        let refused = |change: fn(&mut NewRelay)| {
            let mut new = new();
            change(&mut new);
            region(&new, &own(), &BTreeMap::new()).is_err()
        };
        assert!(refused(|new| new.name = "Frankfurt am Main".to_owned()));
        assert!(refused(|new| new.host = "relay.example/derp".to_owned()));
        assert!(refused(|new| new.host = String::new()));
        assert!(refused(|new| new.port = 0));
        assert!(refused(|new| new.pin = Some("abc".to_owned())));
        assert!(refused(|new| new.region = Some(900)), "the server's own");
        assert!(refused(|new| new.region = Some(0)));
        assert!(!refused(|new| new.region = Some(7)));
    }

    #[test]
    fn clients_are_told_of_pin_address_and_stun() {
        let pin = Some("AB".repeat(32));
        let new = NewRelay { host: "192.0.2.7".to_owned(), stun_port: None, pin, ..new() };
        let region = region(&new, &own(), &BTreeMap::new()).unwrap();
        let node = &region.nodes[0];
        assert_eq!((region.region_id, node.name.as_str()), (RegionId(901), "fra"));
        assert_eq!(node.cert_name, format!("sha256-raw:{}", "ab".repeat(32)));
        assert_eq!((node.ipv4.as_str(), node.ipv6.as_str(), node.stun_port), ("192.0.2.7", "none", -1));
    }

    #[test]
    fn a_region_has_several_relays_each_with_a_name() {
        // Written by a server of before: the relay has a name of a pattern, which people do not use.
        let mut first = region(&new(), &own(), &BTreeMap::new()).unwrap();
        first.nodes[0].name = "901a".to_owned();
        let mut others = BTreeMap::from([(RegionId(901), first)]);
        let second = NewRelay { name: "fra-2".to_owned(), region: Some(901), ..new() };
        let both = region(&second, &own(), &others).unwrap();
        assert_eq!(views(&both).map(|view| view.name).collect::<Vec<_>>(), ["fra", "fra-2"]);
        assert_eq!(both.region_code, "fra", "the region keeps its name");
        others.insert(RegionId(901), both.clone());
        assert!(region(&second, &own(), &others).is_err(), "twice");
        assert!(region(&NewRelay { region: Some(901), ..new() }, &own(), &others).is_err(), "by its old name");
        let left = without(&both, "fra").unwrap();
        assert_eq!(views(&left).map(|view| view.name).collect::<Vec<_>>(), ["fra-2"]);
        assert_eq!((without(&left, "fra-2"), without(&both, "ams")), (None, None));
        while let Some(region) = others.get_mut(&RegionId(901)).filter(|region| region.nodes.len() < REGION_RELAYS) {
            let node = DerpNode { name: format!("more-{}", region.nodes.len()), ..region.nodes[0].clone() };
            region.nodes.push(node);
        }
        assert!(region(&NewRelay { name: "last".to_owned(), region: Some(901), ..new() }, &own(), &others).is_err());
    }
}
