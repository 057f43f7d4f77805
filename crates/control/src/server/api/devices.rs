//! Devices: list, change, remove; their routes and attributes. Source: logs-and-api.md, section 10.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use warren_wire::control::NetInfo;

use super::call::{ApiError, Call, Reply};
use crate::admin::{Device, Expiry};

/// Fields that are told only with `fields=all`.
const ONLY_ALL: [&str; 8] = [
    "multipleConnections",
    "enabledRoutes",
    "advertisedRoutes",
    "clientConnectivity",
    "sshEnabled",
    "postureIdentity",
    "distro",
    "postureStatus",
];
/// What a time that never comes looks like.
pub(super) const NEVER: &str = "0001-01-01T00:00:00Z";

pub(super) async fn list(call: &Call) -> Result<Reply, ApiError> {
    let whole: Vec<_> = call.desk.devices(&call.tailnet)?.iter().map(fields).collect();
    let filters: Vec<_> = call.queries().filter(|(name, _)| *name != "fields").collect();
    if let Some((name, _)) = filters.iter().find(|(name, _)| !FILTERS.contains(name)) {
        return Err(ApiError::bad(format!("devices cannot be filtered by {name:?}; use {}", FILTERS.join(", "))));
    }
    let all = wants_all(call)?;
    let fits = |device: &&Map<String, Value>| {
        filters.iter().all(|(name, wanted)| device.get(*name).is_some_and(|value| is(value, wanted)))
    };
    let devices: Vec<_> = whole.iter().filter(fits).map(|device| shown(device.clone(), all)).collect();
    Ok(Reply::Json(json!({ "devices": devices })))
}

/// Fields by which lists are filtered.
const FILTERS: [&str; 14] = [
    "addresses",
    "authorized",
    "clientVersion",
    "connectedToControl",
    "hostname",
    "id",
    "isEphemeral",
    "isExternal",
    "keyExpiryDisabled",
    "name",
    "nodeId",
    "os",
    "tags",
    "user",
];

fn is(value: &Value, wanted: &str) -> bool {
    match value {
        Value::String(text) => text == wanted,
        Value::Bool(bool) => bool.to_string() == wanted,
        Value::Array(list) => list.iter().any(|value| is(value, wanted)),
        Value::Null | Value::Number(_) | Value::Object(_) => false,
    }
}

fn wants_all(call: &Call) -> Result<bool, ApiError> {
    match call.query("fields") {
        None | Some("default") => Ok(false),
        Some("all") => Ok(true),
        Some(_) => Err(ApiError::bad("fields: use all or default")),
    }
}

fn shown(mut device: Map<String, Value>, all: bool) -> Value {
    if !all {
        device.retain(|name, _| !ONLY_ALL.contains(&name.as_str()));
    }
    Value::Object(device)
}

fn fields(device: &Device) -> Map<String, Value> {
    let (view, info) = (&device.view, device.hostinfo());
    let expires = view.key_expiry.map_or_else(|| NEVER.to_owned(), |at| at.to_string());
    let mut fields = json!({
        "addresses": view.addresses,
        "id": view.id.to_string(),
        "nodeId": view.stable_id,
        "user": view.user.as_deref().unwrap_or("tagged-devices"),
        "name": view.fqdn,
        "hostname": view.hostname,
        "clientVersion": view.client_version,
        "updateAvailable": false,
        "os": view.os,
        "created": view.created,
        "connectedToControl": view.online,
        "keyExpiryDisabled": view.key_expiry_disabled || view.key_expiry.is_none(),
        "expires": expires,
        "authorized": view.approved && !view.suspended && !view.barred,
        "isExternal": false,
        "machineKey": view.machine_key,
        "nodeKey": view.node_key,
        "blocksIncomingConnections": info.is_some_and(|info| info.shields_up),
        "tags": view.tags,
        "tailnetLockError": "",
        "tailnetLockKey": "",
        "isEphemeral": view.ephemeral,
        "multipleConnections": false,
        "enabledRoutes": view.approved_routes,
        "advertisedRoutes": view.offered_routes,
        "clientConnectivity": connectivity(device),
        "sshEnabled": info.is_some_and(|info| !info.ssh_host_keys.is_empty()),
    });
    let Some(object) = fields.as_object_mut() else { return Map::new() };
    if let Some(seen) = view.last_seen {
        object.insert("lastSeen".to_owned(), json!(seen));
    }
    if let Some(info) = info.filter(|info| !info.distro.is_empty()) {
        let distro = json!({ "name": info.distro, "version": info.distro_version, "codeName": info.distro_codename });
        object.insert("distro".to_owned(), distro);
    }
    std::mem::take(object)
}

fn connectivity(device: &Device) -> Value {
    let net = device.hostinfo().and_then(|info| info.net_info.clone());
    let known = |of: fn(&NetInfo) -> Option<bool>| net.as_ref().and_then(of);
    let latency: BTreeMap<_, _> = net
        .iter()
        .flat_map(|net| &net.derp_latency)
        .filter(|(_, seconds)| seconds.is_finite())
        .map(|(region, seconds)| {
            let preferred = net.as_ref().is_some_and(|net| {
                region.split('-').next().and_then(|id| id.parse().ok()) == Some(net.preferred_derp.0)
            });
            let mut entry = json!({ "latencyMs": seconds * 1000.0 });
            if preferred && let Some(entry) = entry.as_object_mut() {
                entry.insert("preferred".to_owned(), true.into());
            }
            (region.clone(), entry)
        })
        .collect();
    json!({
        "endpoints": device.view.endpoints,
        "mappingVariesByDestIP": known(|net| net.mapping_varies_by_dest_ip),
        "latency": latency,
        "clientSupports": {
            "hairPinning": null,
            "ipv6": known(|net| net.working_ipv6),
            "pcp": known(|net| net.pcp),
            "pmp": known(|net| net.pmp),
            "udp": known(|net| net.working_udp),
            "upnp": known(|net| net.upnp),
        },
    })
}

pub(super) async fn get(call: &Call) -> Result<Reply, ApiError> {
    let all = wants_all(call)?;
    let device = call.desk.device(&call.tailnet, &call.id())?;
    Ok(Reply::Json(shown(fields(&device), all)))
}

pub(super) async fn delete(call: &Call) -> Result<Reply, ApiError> {
    call.desk.remove_node(Some(&call.tailnet), &call.id()).await?;
    Ok(Reply::done())
}

pub(super) async fn expire(call: &Call) -> Result<Reply, ApiError> {
    call.desk.expire_node(Some(&call.tailnet), &call.id(), Expiry::Now).await?;
    Ok(Reply::done())
}

#[derive(Deserialize)]
struct Authorized {
    authorized: bool,
}

pub(super) async fn authorize(call: &Call) -> Result<Reply, ApiError> {
    let (tailnet, id) = (Some(&*call.tailnet), call.id());
    match call.json::<Authorized>()?.authorized {
        true => call.desk.approve_node(tailnet, &id).await?,
        false => call.desk.disapprove_node(tailnet, &id).await?,
    };
    Ok(Reply::done())
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

pub(super) async fn rename(call: &Call) -> Result<Reply, ApiError> {
    let name = call.json::<Name>()?.name.to_ascii_lowercase();
    let (tailnet, id) = (&*call.tailnet, call.id());
    // The whole name is as good as its first part, if the rest is this tailnet's.
    let device = call.desk.device(tailnet, &id)?;
    let domain = device.view.fqdn.split_once('.').map(|(_, domain)| domain).unwrap_or_default();
    let label = name.trim_end_matches('.').strip_suffix(domain).and_then(|name| name.strip_suffix('.'));
    let label = label.unwrap_or(&name);
    call.desk.rename_node(Some(tailnet), &id, Some(label).filter(|label| !label.is_empty())).await?;
    Ok(Reply::done())
}

#[derive(Deserialize)]
struct Tags {
    tags: Vec<String>,
}

pub(super) async fn tag(call: &Call) -> Result<Reply, ApiError> {
    let Tags { tags } = call.json()?;
    call.desk.tag_node(Some(&call.tailnet), &call.id(), &tags).await?;
    Ok(Reply::done())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Key {
    key_expiry_disabled: bool,
}

pub(super) async fn key(call: &Call) -> Result<Reply, ApiError> {
    let (tailnet, id) = (Some(&*call.tailnet), call.id());
    match call.json::<Key>()?.key_expiry_disabled {
        true => call.desk.expire_node(tailnet, &id, Expiry::Never).await?,
        false => call.desk.enable_key_expiry(tailnet, &id).await?,
    };
    Ok(Reply::done())
}

#[derive(Deserialize)]
struct Address {
    ipv4: Ipv4Addr,
}

pub(super) async fn address(call: &Call) -> Result<Reply, ApiError> {
    let Address { ipv4 } = call.json()?;
    call.desk.set_node_address(Some(&call.tailnet), &call.id(), ipv4).await?;
    Ok(Reply::done())
}

fn route_lists(offered: &[IpNet], approved: &[IpNet]) -> Reply {
    Reply::Json(json!({ "advertisedRoutes": offered, "enabledRoutes": approved }))
}

pub(super) async fn routes(call: &Call) -> Result<Reply, ApiError> {
    let (offered, approved) = call.desk.routes(&call.tailnet, &call.id())?;
    Ok(route_lists(&offered, &approved))
}

#[derive(Deserialize)]
struct Routes {
    routes: Vec<IpNet>,
}

pub(super) async fn set_routes(call: &Call) -> Result<Reply, ApiError> {
    let Routes { routes } = call.json()?;
    let node = call.desk.set_routes(&call.tailnet, &call.id(), &routes).await?;
    Ok(route_lists(&node.offered_routes, &node.approved_routes))
}

pub(super) async fn attributes(call: &Call) -> Result<Reply, ApiError> {
    let view = call.desk.node_attributes(Some(&call.tailnet), &call.id())?;
    Ok(Reply::Json(json!({ "attributes": view.attributes, "expiries": {} })))
}

#[derive(Deserialize)]
struct Attribute {
    value: Value,
    #[serde(default)]
    expiry: Option<String>,
}

impl Attribute {
    fn value(self) -> Result<Value, ApiError> {
        match self.expiry.as_deref() {
            None | Some("") => Ok(self.value),
            Some(_) => Err(ApiError::not_offered("attributes that end by themselves")),
        }
    }
}

pub(super) async fn set_attribute(call: &Call) -> Result<Reply, ApiError> {
    let value = call.json::<Attribute>()?.value()?;
    call.desk.set_node_attribute(Some(&call.tailnet), &call.id(), call.parameter(1), &value).await?;
    attributes(call).await
}

pub(super) async fn delete_attribute(call: &Call) -> Result<Reply, ApiError> {
    call.desk.unset_node_attribute(Some(&call.tailnet), &call.id(), call.parameter(1)).await?;
    Ok(Reply::done())
}

#[derive(Deserialize)]
struct Patch {
    nodes: BTreeMap<String, BTreeMap<String, Option<Attribute>>>,
}

pub(super) async fn patch_attributes(call: &Call) -> Result<Reply, ApiError> {
    let Patch { nodes } = call.json()?;
    let mut patches = Vec::new();
    for (node, attributes) in nodes {
        for (name, attribute) in attributes {
            patches.push((node.clone(), name, attribute.map(Attribute::value).transpose()?));
        }
    }
    call.desk.patch_attributes(&call.tailnet, &patches).await?;
    Ok(Reply::done())
}
