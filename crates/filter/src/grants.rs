//! What the rules let peers do beyond sending packets.

use std::net::IpAddr;

use warren_wire::control::{CapGrant, CapMap, FilterRule};

use crate::prefix::PrefixTable;
use crate::rules::{PREFIXES_MAX, parse_nets};

/// Holds the application rules of a filter: which source has which capabilities towards which destination.
///
/// This is for opening a service, not for each packet: a question goes through all rules that grant anything.
#[derive(Debug, Clone, Default)]
pub struct Grants(Vec<Granting>);

#[derive(Debug, Clone)]
struct Granting {
    sources: PrefixTable<()>,
    grants: Vec<CapGrant>,
}

impl Grants {
    /// Collects the grants of rules; sources that cannot be read are left out, and so are `cap:` sources, which do not
    /// count here. Rules beyond the bound of prefixes that [`crate::Filter`] keeps to grant nothing.
    pub fn of<'a>(rules: impl IntoIterator<Item = &'a FilterRule>) -> Self {
        let mut all = Vec::new();
        let mut room = PREFIXES_MAX;
        for rule in rules.into_iter().filter(|rule| !rule.cap_grant.is_empty()) {
            let mut nets = Vec::new();
            for text in &rule.src_ips {
                // What is no address is `cap:…`, or reported with the filter.
                let _ = parse_nets(text, &mut nets);
                if nets.len() > room {
                    return Self(all);
                }
            }
            room -= nets.len();
            let sources = nets.into_iter().map(|net| (net, ())).collect();
            all.push(Granting { sources, grants: rule.cap_grant.clone() });
        }
        Self(all)
    }

    /// Collects the capabilities that rules grant `source` towards `destination`.
    ///
    /// Values of one capability follow each other in the order of the rules.
    ///
    /// Source: Tailscale `wgengine/filter`, `Filter.CapsWithValues`.
    pub fn capabilities(&self, source: IpAddr, destination: IpAddr) -> CapMap {
        let mut found = CapMap::default();
        let rules = self.0.iter().filter(|rule| rule.sources.contains(source));
        for grant in rules.flat_map(|rule| &rule.grants) {
            if !grant.dsts.iter().any(|net| net.contains(&destination)) {
                continue;
            }
            for name in &grant.caps {
                found.0.entry(name.clone()).or_default();
            }
            for (name, values) in &grant.cap_map.0 {
                found.0.entry(name.clone()).or_default().extend_from_slice(values);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::ip;
    use ipnet::IpNet;
    use warren_wire::control::RawJson;

    const LOCAL: &str = "100.64.0.1";
    const LOCAL6: &str = "fd7a:115c:a1e0::1";

    fn granting(sources: &[&str], destinations: &[&str], flags: &[&str], values: &[(&str, &str)]) -> FilterRule {
        let mut cap_map = CapMap::default();
        for (name, value) in values {
            cap_map.0.entry((*name).to_owned()).or_default().push(RawJson::parse(value).unwrap());
        }
        FilterRule {
            src_ips: sources.iter().map(ToString::to_string).collect(),
            cap_grant: vec![CapGrant {
                dsts: destinations.iter().map(|text| IpNet::from(ip(text))).collect(),
                caps: flags.iter().map(ToString::to_string).collect(),
                cap_map,
            }],
            ..FilterRule::default()
        }
    }

    #[test]
    fn capabilities_are_gathered_in_rule_order() {
        let grants = Grants::of(&[
            granting(&["100.64.0.2"], &[LOCAL], &["flag"], &[("x", "1")]),
            granting(&["100.64.0.0/10", "nonsense"], &[LOCAL, LOCAL6], &[], &[("x", "[2]"), ("y", "null")]),
            granting(&["100.64.0.2"], &["192.168.1.1"], &["elsewhere"], &[]),
            granting(&["cap:example.com/cap/a"], &[LOCAL], &["never"], &[]),
        ]);
        let found = grants.capabilities(ip("100.64.0.2"), ip(LOCAL));
        let texts: Vec<(&str, Vec<&str>)> =
            found.0.iter().map(|(name, values)| (name.as_str(), values.iter().map(RawJson::text).collect())).collect();
        assert_eq!(texts, [("flag", vec![]), ("x", vec!["1", "[2]"]), ("y", vec!["null"])]);
        assert_eq!(grants.capabilities(ip("100.64.0.77"), ip(LOCAL)).0.len(), 2);
        assert_eq!(grants.capabilities(ip("10.0.0.1"), ip(LOCAL)), CapMap::default());
    }
}
