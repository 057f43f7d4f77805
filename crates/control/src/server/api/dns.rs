//! What nodes are told about names. Source: logs-and-api.md, section 14.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::call::{ApiError, Call, Reply};
use crate::model::{DnsSettings, Nameserver};

fn plain(address: &str) -> Nameserver {
    Nameserver { address: address.to_owned(), use_with_exit_node: false }
}

fn addresses(servers: &[Nameserver]) -> Vec<&str> {
    servers.iter().map(|server| server.address.as_str()).collect()
}

pub(super) async fn nameservers(call: &Call) -> Result<Reply, ApiError> {
    let dns = call.desk.dns(&call.tailnet)?;
    Ok(Reply::Json(json!({ "dns": addresses(&dns.nameservers) })))
}

#[derive(Deserialize)]
struct Nameservers {
    dns: Vec<String>,
}

pub(super) async fn set_nameservers(call: &Call) -> Result<Reply, ApiError> {
    let Nameservers { dns } = call.json()?;
    let edit = move |settings: &mut DnsSettings| {
        // As the original does, which has no names of the tailnet without a resolver for others.
        settings.magic_dns &= settings.nameservers.is_empty() || !dns.is_empty();
        settings.nameservers = dns.iter().map(|address| plain(address)).collect();
    };
    let after = call.desk.set_dns(&call.tailnet, edit).await?;
    Ok(Reply::Json(json!({ "dns": addresses(&after.nameservers), "magicDNS": after.magic_dns })))
}

pub(super) async fn preferences(call: &Call) -> Result<Reply, ApiError> {
    Ok(Reply::Json(json!({ "magicDNS": call.desk.dns(&call.tailnet)?.magic_dns })))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Preferences {
    #[serde(rename = "magicDNS")]
    magic_dns: bool,
}

pub(super) async fn set_preferences(call: &Call) -> Result<Reply, ApiError> {
    let Preferences { magic_dns } = call.json()?;
    let after = call.desk.set_dns(&call.tailnet, move |settings| settings.magic_dns = magic_dns).await?;
    Ok(Reply::Json(json!({ "magicDNS": after.magic_dns })))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SearchPaths {
    search_paths: Vec<String>,
}

pub(super) async fn search_paths(call: &Call) -> Result<Reply, ApiError> {
    Ok(Reply::Json(json!({ "searchPaths": call.desk.dns(&call.tailnet)?.search_paths })))
}

pub(super) async fn set_search_paths(call: &Call) -> Result<Reply, ApiError> {
    let SearchPaths { search_paths } = call.json()?;
    let edit = move |settings: &mut DnsSettings| settings.search_paths.clone_from(&search_paths);
    let after = call.desk.set_dns(&call.tailnet, edit).await?;
    Ok(Reply::Json(json!({ "searchPaths": after.search_paths })))
}

fn split_shown(dns: &DnsSettings) -> Reply {
    let split: BTreeMap<_, _> = dns.split.iter().map(|(domain, servers)| (domain, addresses(servers))).collect();
    Reply::Json(json!(split))
}

pub(super) async fn split(call: &Call) -> Result<Reply, ApiError> {
    Ok(split_shown(&call.desk.dns(&call.tailnet)?))
}

type Split = BTreeMap<String, Option<Vec<String>>>;

/// Puts resolvers of domains in; none takes a domain away.
fn put(settings: &mut DnsSettings, split: &Split) {
    for (domain, servers) in split {
        // The same domain may be there in another form.
        let domain = domain.trim_end_matches('.').to_ascii_lowercase();
        match servers.as_ref().filter(|servers| !servers.is_empty()) {
            Some(servers) => {
                settings.split.insert(domain, servers.iter().map(|address| plain(address)).collect());
            }
            None => drop(settings.split.remove(&domain)),
        }
    }
}

pub(super) async fn patch_split(call: &Call) -> Result<Reply, ApiError> {
    let split: Split = call.json()?;
    let after = call.desk.set_dns(&call.tailnet, move |settings| put(settings, &split)).await?;
    Ok(split_shown(&after))
}

pub(super) async fn put_split(call: &Call) -> Result<Reply, ApiError> {
    let split: Split = call.json()?;
    let edit = move |settings: &mut DnsSettings| {
        settings.split.clear();
        put(settings, &split);
    };
    Ok(split_shown(&call.desk.set_dns(&call.tailnet, edit).await?))
}

fn server_shown(server: &Nameserver) -> Value {
    json!({ "address": server.address, "useWithExitNode": server.use_with_exit_node })
}

fn whole(dns: &DnsSettings) -> Reply {
    let shown = |servers: &[Nameserver]| servers.iter().map(server_shown).collect::<Vec<_>>();
    let split: BTreeMap<_, _> = dns.split.iter().map(|(domain, servers)| (domain, shown(servers))).collect();
    Reply::Json(json!({
        "nameservers": shown(&dns.nameservers),
        "splitDNS": split,
        "searchPaths": dns.search_paths,
        "preferences": { "overrideLocalDNS": dns.override_local, "magicDNS": dns.magic_dns },
    }))
}

pub(super) async fn configuration(call: &Call) -> Result<Reply, ApiError> {
    Ok(whole(&call.desk.dns(&call.tailnet)?))
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Configuration {
    nameservers: Vec<Server>,
    #[serde(rename = "splitDNS")]
    split: BTreeMap<String, Option<Vec<Server>>>,
    search_paths: Vec<String>,
    preferences: Switches,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Server {
    address: String,
    #[serde(default)]
    use_with_exit_node: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Switches {
    #[serde(rename = "overrideLocalDNS")]
    override_local: Option<bool>,
    #[serde(rename = "magicDNS")]
    magic: Option<bool>,
}

impl From<Server> for Nameserver {
    fn from(server: Server) -> Self {
        Self { address: server.address, use_with_exit_node: server.use_with_exit_node.unwrap_or_default() }
    }
}

pub(super) async fn set_configuration(call: &Call) -> Result<Reply, ApiError> {
    let Configuration { nameservers, split, search_paths, preferences } = call.json()?;
    let split = split.into_iter().filter_map(|(domain, servers)| {
        let servers: Vec<_> = servers.unwrap_or_default().into_iter().map(Nameserver::from).collect();
        (!servers.is_empty()).then_some((domain, servers))
    });
    let new = DnsSettings {
        magic_dns: preferences.magic.unwrap_or_default(),
        override_local: preferences.override_local.unwrap_or_default(),
        nameservers: nameservers.into_iter().map(Nameserver::from).collect(),
        split: split.collect(),
        search_paths,
    };
    let after = call.desk.set_dns(&call.tailnet, move |settings| settings.clone_from(&new)).await?;
    Ok(whole(&after))
}
