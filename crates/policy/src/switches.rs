//! What a policy says to all nodes alike: switches, and relays that it adds, replaces or takes away.

use crate::Policy;
use warren_wire::control::DerpMap;

impl Policy {
    /// Tells whether nodes may get capabilities of their own, so that [`crate::Reach::own_capabilities`] is worth asking.
    #[must_use]
    pub fn has_capabilities(&self) -> bool {
        self.sections.randomize_client_port || !self.sections.node_attributes.is_empty()
    }

    /// Tells whether macOS shall route 100.64.0.0/10 as a whole (`OneCGNATRoute`); `None` leaves it to the client.
    #[must_use]
    pub fn one_cgnat_route(&self) -> Option<bool> {
        match self.sections.one_cgnat_route.as_str() {
            "mac-always" => Some(true),
            "mac-never" => Some(false),
            _ => None,
        }
    }

    /// Returns the server's relays with what the policy says of them.
    #[must_use]
    pub fn relays(&self, of_server: &DerpMap) -> DerpMap {
        let sections = &self.sections;
        let mut relays = of_server.clone();
        if sections.relay_regions.is_empty() && !sections.omit_default_regions {
            return relays;
        }
        let regions = relays.regions.get_or_insert_default();
        if sections.omit_default_regions {
            regions.clear();
        }
        for (id, region) in &sections.relay_regions {
            match region {
                Some(region) => drop(regions.insert(*id, region.clone())),
                None => drop(regions.remove(id)),
            }
        }
        relays
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_wire::control::{DerpRegion, RegionId};

    #[test]
    fn regions_are_added_replaced_and_taken_away() {
        let region = |code: &str| DerpRegion { region_code: code.to_owned(), ..DerpRegion::default() };
        let of_server = DerpMap {
            regions: Some([(RegionId(1), region("a")), (RegionId(2), region("b"))].into()),
            ..DerpMap::default()
        };
        let mut policy = Policy::parse(r#"{"acls": []}"#).unwrap();
        assert_eq!(policy.relays(&of_server), of_server);
        policy.sections.relay_regions =
            [(RegionId(1), None), (RegionId(2), Some(region("c"))), (RegionId(900), Some(region("d")))].into();
        let codes = |policy: &Policy| {
            let regions = policy.relays(&of_server).regions.unwrap();
            regions.into_iter().map(|(id, region)| format!("{}{}", id.0, region.region_code)).collect::<Vec<_>>()
        };
        assert_eq!(codes(&policy), ["2c", "900d"]);
        policy.sections.relay_regions.remove(&RegionId(2));
        policy.sections.omit_default_regions = true;
        assert_eq!(codes(&policy), ["900d"]);
    }
}
