//! The section `derpMap`: relays of the tailnet's own.

use super::json::{Fields, Shape, definitions, list, noted, wrong_kind};
use crate::hujson::{Json, Kind, Member};
use crate::model::Sections;
use crate::problem::{Errors, Problem};
use warren_wire::control::{DerpRegion, RegionId, from_json};

const MAP: Shape = Shape::new("\"derpMap\"", &["Regions", "OmitDefaultRegions"]);
const REGION: Shape = Shape::new(
    "a region",
    &["RegionID", "RegionCode", "RegionName", "Latitude", "Longitude", "Avoid", "NoMeasureNoHome", "Nodes"],
);
const RELAY: Shape = Shape::new(
    "a relay",
    &[
        "Name",
        "RegionID",
        "HostName",
        "CertName",
        "IPv4",
        "IPv6",
        "STUNPort",
        "STUNOnly",
        "DERPPort",
        "InsecureForTests",
        "STUNTestIP",
        "CanPort80",
    ],
);

/// Reads the map; a region that is `null` takes one of the server's away.
pub(super) fn read(policy: &Fields<'_>, sections: &mut Sections, errors: &mut Errors<'_>) {
    let Some(map) = policy.get("derpMap").and_then(|map| Fields::read(map, &MAP, errors)) else { return };
    sections.omit_default_regions = map.switch("OmitDefaultRegions", errors);
    let Some(regions) = map.get("Regions") else { return };
    for (text, member) in definitions(regions, "\"Regions\"", errors) {
        let id = text.parse::<u16>().ok().filter(|id| *id > 0).map(RegionId);
        let Some(id) = noted(id.ok_or_else(|| Problem::Region { text: text.to_owned() }), member.at, errors) else {
            continue;
        };
        let taken_away = member.value.kind == Kind::Null;
        let region = if taken_away { None } else { region(text, member, errors) };
        sections.relay_regions.insert(id, region);
    }
}

fn region(id: &str, member: &Member, errors: &mut Errors<'_>) -> Option<DerpRegion> {
    let region = Fields::read(&member.value, &REGION, errors)?;
    let mut out = Vec::new();
    for (field, value) in region.iter().filter(|(field, value)| *field != "Nodes" && value.kind != Kind::Null) {
        let fits = match field {
            "RegionCode" | "RegionName" => Wanted::Text,
            "Avoid" | "NoMeasureNoHome" => Wanted::Bool,
            "RegionID" => Wanted::Region(id),
            _ => Wanted::Number,
        };
        out.extend(fits.write(field, value, errors));
    }
    if region.get("RegionID").is_none() {
        out.push(format!("\"RegionID\":{id}"));
    }
    let nodes = region.get("Nodes").map(|nodes| list(nodes, "\"Nodes\"", errors)).unwrap_or_default();
    if nodes.is_empty() {
        errors.note(member.at, Problem::RegionNodes { text: id.to_owned() });
    }
    let nodes: Vec<String> = nodes.iter().filter_map(|node| relay(id, node, errors)).collect();
    out.push(format!("\"Nodes\":[{}]", nodes.join(",")));
    let text = format!("{{{}}}", out.join(","));
    let read = from_json(text.as_bytes()).map_err(|error| Problem::Value { what: error.to_string() });
    noted(read, member.value.at, errors)
}

/// Reads a relay; returns it as JSON with the names of fields as the wire has them.
fn relay(id: &str, node: &Json, errors: &mut Errors<'_>) -> Option<String> {
    let relay = Fields::read(node, &RELAY, errors)?;
    let mut out = Vec::new();
    for (field, value) in relay.iter().filter(|(_, value)| value.kind != Kind::Null) {
        let wanted = match field {
            "STUNOnly" | "InsecureForTests" | "CanPort80" => Wanted::Bool,
            "RegionID" => Wanted::Region(id),
            "STUNPort" => Wanted::Port(-1),
            "DERPPort" => Wanted::Port(0),
            _ => Wanted::Text,
        };
        out.extend(wanted.write(field, value, errors));
    }
    if relay.get("RegionID").is_none() {
        out.push(format!("\"RegionID\":{id}"));
    }
    if relay.get("HostName").is_none() {
        errors.note(
            relay.at,
            Problem::Choice {
                place: "a relay",
                text: "without HostName".to_owned(),
                allowed: "write its name, like \"HostName\": \"relay.example.com\"",
            },
        );
    }
    Some(format!("{{{}}}", out.join(",")))
}

/// What the value of a field must be.
enum Wanted<'a> {
    Text,
    Bool,
    Number,
    /// The number of the region.
    Region(&'a str),
    /// A port, or a number from this on.
    Port(i32),
}

impl Wanted<'_> {
    fn write(&self, field: &str, value: &Json, errors: &mut Errors<'_>) -> Option<String> {
        let wanted = match (self, &value.kind) {
            (Self::Text, Kind::Text(_)) | (Self::Bool, Kind::Bool(_)) | (Self::Number, Kind::Number(_)) => None,
            (Self::Region(id), Kind::Number(number)) if number == id => None,
            (Self::Port(least), Kind::Number(number))
                if number.parse().is_ok_and(|port: i32| (*least..=65_535).contains(&port)) =>
            {
                None
            }
            (Self::Text, _) => Some("a text in double quotes"),
            (Self::Bool, _) => Some("true or false"),
            (Self::Number, _) => Some("a number"),
            (Self::Region(_), _) => Some("the number of the region"),
            (Self::Port(_), _) => Some("a port"),
        };
        if let Some(wanted) = wanted {
            wrong_kind(value, &format!("{field:?}"), wanted, errors);
            return None;
        }
        let mut text = format!("\"{field}\":");
        value.write(&mut text);
        Some(text)
    }
}
