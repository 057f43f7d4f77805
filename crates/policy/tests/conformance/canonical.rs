//! Parts of an outcome in a form in which equal means equal.

use ipnet::IpNet;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Writes a filter as a set of rules.
pub(crate) fn filter(rules: &Value) -> String {
    let rules: BTreeSet<String> = list(rules)
        .map(|rule| {
            let mut destinations: BTreeMap<(u64, u64), Vec<Value>> = BTreeMap::new();
            for entry in list(&rule["DstPorts"]) {
                let port = |name: &str| entry["Ports"][name].as_u64().unwrap_or_default();
                destinations.entry((port("First"), port("Last"))).or_default().push(entry["IP"].clone());
            }
            let destinations: BTreeMap<_, String> =
                destinations.into_iter().map(|(ports, texts)| (ports, addresses(&Value::Array(texts)))).collect();
            let protocols: BTreeSet<u64> = list(&rule["IPProto"]).filter_map(Value::as_u64).collect();
            // Grants to several destinations are as many grants.
            let mut grants: BTreeMap<String, Vec<Value>> = BTreeMap::new();
            for grant in list(&rule["CapGrant"]) {
                grants.entry(capabilities(&grant["CapMap"])).or_default().extend(list(&grant["Dsts"]).cloned());
            }
            let grants: BTreeMap<String, String> =
                grants.into_iter().map(|(what, texts)| (what, addresses(&Value::Array(texts)))).collect();
            format!("{} -> {destinations:?} {protocols:?} {grants:?}", addresses(&rule["SrcIPs"]))
        })
        .collect();
    format!("{rules:#?}")
}

/// Writes addresses, prefixes, ranges and `*` as ranges that do not touch.
pub(crate) fn addresses(texts: &Value) -> String {
    let mut ranges: Vec<(IpAddr, IpAddr)> = Vec::new();
    let mut others = BTreeSet::new();
    for text in list(texts).filter_map(Value::as_str) {
        match range(text) {
            Some(range) => ranges.push(range),
            None => drop(others.insert(text)),
        }
    }
    ranges.sort();
    let mut joined: Vec<(IpAddr, IpAddr)> = Vec::new();
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(before)
                if first.is_ipv4() == before.1.is_ipv4() && number(first) <= number(before.1).saturating_add(1) =>
            {
                before.1 = before.1.max(last);
            }
            _ => joined.push((first, last)),
        }
    }
    let joined =
        joined.iter().map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") });
    others.into_iter().map(str::to_owned).chain(joined).collect::<Vec<_>>().join(" ")
}

fn range(text: &str) -> Option<(IpAddr, IpAddr)> {
    if let Some((first, last)) = text.split_once('-') {
        return Some((first.parse().ok()?, last.parse().ok()?));
    }
    let prefix = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()?;
    Some((prefix.network(), prefix.broadcast()))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// Writes SSH rules as a set, each field of them, too.
pub(crate) fn ssh(rules: &Value) -> String {
    let rules: BTreeSet<String> = list(rules)
        .map(|rule| {
            let principals: BTreeSet<String> = list(&rule["principals"]).map(Value::to_string).collect();
            let environment: BTreeSet<&str> = list(&rule["acceptEnv"]).filter_map(Value::as_str).collect();
            format!("{principals:?} as {} {} {environment:?}", rule["sshUsers"], rule["action"])
        })
        .collect();
    format!("{rules:#?}")
}

/// Writes capabilities; a flag has no values, however that is written.
pub(crate) fn capabilities(map: &Value) -> String {
    let map: BTreeMap<&String, BTreeSet<String>> = map
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, values)| (name, list(values).map(Value::to_string).collect()))
        .collect();
    format!("{map:?}")
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
