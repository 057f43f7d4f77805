//! The relay map. Source: Tailscale `tailcfg`, `DERPMap`.

use super::RegionId;
use super::json::{is_default, lossy, reread};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Regions of relays. In a map message an absent part keeps what the client had.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DerpMap {
    /// Parameters of the choice of a home region.
    #[serde(skip_serializing_if = "is_default")]
    pub home_params: Option<DerpHomeParams>,
    /// Regions by number; malformed ones, and those of number zero, are left out.
    #[serde(deserialize_with = "sound_regions", skip_serializing_if = "is_default")]
    pub regions: Option<BTreeMap<RegionId, DerpRegion>>,
    /// Leaves out the regions that the client brings along.
    #[serde(rename = "omitDefaultRegions", skip_serializing_if = "is_default")]
    pub omit_default_regions: bool,
}

fn sound_regions<'de, D: Deserializer<'de>>(from: D) -> Result<Option<BTreeMap<RegionId, DerpRegion>>, D::Error> {
    let regions = Option::<BTreeMap<RegionId, &RawValue>>::deserialize(from)?;
    let sound = |(id, region): (RegionId, _)| Some((id.known()?, reread::<Option<DerpRegion>>(region)??));
    Ok(regions.map(|regions| regions.into_iter().filter_map(sound).collect()))
}

/// Parameters of the choice of a home region.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DerpHomeParams {
    /// Factor of a region's latency, below one favours it; ignored unless positive. Empty resets, absent keeps.
    #[serde(skip_serializing_if = "is_default")]
    pub region_score: Option<BTreeMap<RegionId, f64>>,
}

/// Relays that share state, in order of preference.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DerpRegion {
    /// Number, as in the map's key.
    #[serde(rename = "RegionID")]
    pub region_id: RegionId,
    /// Short name.
    pub region_code: String,
    /// Long name.
    pub region_name: String,
    /// Degrees north.
    #[serde(skip_serializing_if = "is_default")]
    pub latitude: f64,
    /// Degrees east.
    #[serde(skip_serializing_if = "is_default")]
    pub longitude: f64,
    /// Old form of [`Self::no_measure_no_home`].
    #[serde(skip_serializing_if = "is_default")]
    pub avoid: bool,
    /// Neither measured nor anybody's home, but usable.
    #[serde(skip_serializing_if = "is_default")]
    pub no_measure_no_home: bool,
    /// Its relays.
    pub nodes: Vec<DerpNode>,
}

/// One relay.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DerpNode {
    /// Name, unique over all regions, like `900a`.
    pub name: String,
    /// Region.
    #[serde(rename = "RegionID")]
    pub region_id: RegionId,
    /// Host name, also for TLS.
    pub host_name: String,
    /// Name that the certificate must have; `sha256-raw:<hex>` pins the certificate itself.
    #[serde(skip_serializing_if = "is_default")]
    pub cert_name: String,
    /// IPv4 address that spares a look-up; `none` turns the family off.
    #[serde(rename = "IPv4", skip_serializing_if = "is_default")]
    pub ipv4: String,
    /// IPv6 address that spares a look-up; `none` turns the family off.
    #[serde(rename = "IPv6", skip_serializing_if = "is_default")]
    pub ipv6: String,
    /// STUN port; 0 is 3478, −1 is no STUN.
    #[serde(rename = "STUNPort", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub stun_port: i32,
    /// Only STUN, no relay.
    #[serde(rename = "STUNOnly", skip_serializing_if = "is_default")]
    pub stun_only: bool,
    /// Relay port; 0 is 443.
    #[serde(rename = "DERPPort", deserialize_with = "lossy", skip_serializing_if = "is_default")]
    pub derp_port: u16,
    /// For tests: certificates are not checked.
    #[serde(skip_serializing_if = "is_default")]
    pub insecure_for_tests: bool,
    /// For tests: where STUN goes.
    #[serde(rename = "STUNTestIP", skip_serializing_if = "is_default")]
    pub stun_test_ip: String,
    /// Answers the captive-portal probe on port 80.
    #[serde(skip_serializing_if = "is_default")]
    pub can_port80: bool,
}
