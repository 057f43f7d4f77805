//! Relays on other machines.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use warren_wire::control::{DerpNode, DerpRegion, RegionId};

use super::{Admin, AdminError, invalid, not_found};
use crate::store::StoreError;

/// Regions that are given out; operators may choose others. Source: paths.md 1.11.
const OWN_REGIONS: std::ops::RangeInclusive<u16> = 901..=999;
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
    /// Number of its region; the first free one from 901 on if absent.
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
        let added = self.control.add_relay(&self.who, |present| region(new, present)).await?;
        view(&added).ok_or_else(|| not_found("relay", &new.name))
    }

    /// Returns the relays on other machines.
    #[must_use]
    pub fn relays(&self) -> Vec<RelayView> {
        self.control.relays().values().filter_map(view).collect()
    }

    /// Takes a relay out of the maps of all clients.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub async fn remove_relay(&self, name: &str) -> Result<(), AdminError> {
        let relays = self.control.relays();
        let found = relays.values().find(|region| region.region_code == name || region.region_id.0.to_string() == name);
        let region = found.ok_or_else(|| not_found("relay", name))?.region_id;
        match self.control.remove_relay(&self.who, region).await {
            Err(StoreError::Conflict { .. }) => Err(not_found("relay", name)),
            other => Ok(other?),
        }
    }
}

/// Checks what a relay says of itself and describes it to clients.
fn region(new: &NewRelay, present: &BTreeMap<RegionId, DerpRegion>) -> Result<DerpRegion, AdminError> {
    if !crate::name::is_label(&new.name) {
        return Err(invalid("relay name: use lower-case letters, digits and dashes, 63 at most", &new.name));
    }
    if present.values().any(|region| region.region_code == new.name) {
        return Err(AdminError::Taken { what: "relay", name: new.name.clone() });
    }
    let free = |id: &u16| !present.contains_key(&RegionId(*id));
    let id = match new.region {
        Some(0) => return Err(invalid("region: use a number from 1 to 65535", "0")),
        Some(id) if !free(&id) => return Err(AdminError::Taken { what: "region", name: id.to_string() }),
        Some(id) => id,
        None => OWN_REGIONS.clone().find(free).ok_or_else(|| invalid("free region", "901 to 999"))?,
    };
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
    let node = DerpNode {
        name: format!("{id}a"),
        region_id: RegionId(id),
        host_name: new.host.clone(),
        cert_name: new.pin.as_ref().map(|pin| format!("sha256-raw:{}", pin.to_ascii_lowercase())).unwrap_or_default(),
        ipv4,
        ipv6,
        stun_port: new.stun_port.map_or(-1, i32::from),
        derp_port: new.port,
        ..DerpNode::default()
    };
    Ok(DerpRegion {
        region_id: RegionId(id),
        region_code: new.name.clone(),
        region_name: new.name.clone(),
        nodes: vec![node],
        ..DerpRegion::default()
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

fn view(region: &DerpRegion) -> Option<RelayView> {
    let node = region.nodes.first()?;
    Some(RelayView {
        region: region.region_id.0,
        name: region.region_code.clone(),
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

    #[test]
    fn what_cannot_be_a_relay_is_refused() {
        let present = BTreeMap::from([(RegionId(900), DerpRegion::default())]);
        let refused = |change: fn(&mut NewRelay)| {
            let mut new = new();
            change(&mut new);
            region(&new, &present).is_err()
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
        let region = region(&new, &BTreeMap::new()).unwrap();
        let node = &region.nodes[0];
        assert_eq!((region.region_id, node.name.as_str()), (RegionId(901), "901a"));
        assert_eq!(node.cert_name, format!("sha256-raw:{}", "ab".repeat(32)));
        assert_eq!((node.ipv4.as_str(), node.ipv6.as_str(), node.stun_port), ("192.0.2.7", "none", -1));
    }
}
