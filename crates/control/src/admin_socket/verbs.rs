//! What each call does.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use warren_wire::key::MachineKey;

use super::requests::{DnsChange, ExpiryChange, NewApiKey, NewAuthKey, NewOauthClient, PolicyTerms, Request};
use crate::admin::{self, Admin, AdminError, Belongings, CreatedCredential, NewPolicy, PolicySource};
use crate::model::{CredentialKind, DnsSettings, KeyLifetime, Nameserver};

/// Most entries of the audit log in one answer.
const MAX_AUDIT_ENTRIES: u32 = 10_000;
/// Most versions of a policy in one answer.
const MAX_POLICY_VERSIONS: u32 = 1_000;

/// What a machine needs to know to join, beside an auth key.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// URL by which clients reach the server.
    pub(crate) url: String,
    /// The server's Noise key.
    pub(crate) key: warren_wire::key::MachineKey,
}

/// Says why a call was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The core refused.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The call leaves open which tailnet it means.
    #[error("there are several networks and none is called \"default\": name one with --tailnet")]
    WhichTailnet,
    /// The call contradicts itself.
    #[error("{0}")]
    Contradiction(&'static str),
    /// The answer has no JSON form.
    #[error("internal error")]
    Internal,
}

impl Refusal {
    /// Returns the HTTP status.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Admin(AdminError::NotFound { .. }) => StatusCode::NOT_FOUND,
            Self::Admin(AdminError::Crowded) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Admin(AdminError::PolicyChanged { .. }) => StatusCode::PRECONDITION_FAILED,
            Self::Admin(AdminError::Store(_) | AdminError::Randomness | AdminError::FlowLog { .. })
            | Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Admin(_) => StatusCode::CONFLICT,
            Self::WhichTailnet | Self::Contradiction(_) => StatusCode::BAD_REQUEST,
        }
    }

    /// Returns the stable word for this kind of refusal.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Admin(error) => match error {
                AdminError::NotFound { .. } => "not-found",
                AdminError::Taken { .. } => "taken",
                AdminError::Ambiguous { .. } => "ambiguous",
                AdminError::Invalid { .. } => "invalid",
                AdminError::Busy { .. } => "busy",
                AdminError::Policy { .. } => "policy",
                AdminError::PolicyChanged { .. } => "policy-changed",
                AdminError::NothingToConfirm { .. } => "nothing-to-confirm",
                AdminError::LastOwner { .. } => "last-owner",
                AdminError::Denied { .. } => "denied",
                AdminError::Refused { .. } => "refused",
                AdminError::Crowded => "crowded",
                AdminError::Randomness | AdminError::Store(_) | AdminError::FlowLog { .. } => "internal",
            },
            Self::WhichTailnet => "which-tailnet",
            Self::Contradiction(_) => "contradiction",
            Self::Internal => "internal",
        }
    }
}

/// Makes a change; the resolvers and domains are checked after it. A resolver that stays keeps how it is used.
fn change_dns(dns: &mut DnsSettings, change: &DnsChange) {
    let servers = |addresses: &[String], before: &[Nameserver]| {
        let server = |address: &String| {
            let known = before.iter().find(|server| server.address == *address).cloned();
            known.unwrap_or_else(|| Nameserver { address: address.clone(), use_with_exit_node: false })
        };
        addresses.iter().map(server).collect::<Vec<_>>()
    };
    match change {
        DnsChange::Nameservers(addresses) => dns.nameservers = servers(addresses, &dns.nameservers),
        DnsChange::Split { domain, nameservers } => {
            let domain = domain.trim_end_matches('.').to_ascii_lowercase();
            let before = dns.split.remove(&domain).unwrap_or_default();
            if !nameservers.is_empty() {
                dns.split.insert(domain, servers(nameservers, &before));
            }
        }
        DnsChange::Search(domains) => dns.search_paths.clone_from(domains),
        DnsChange::Magic(on) => dns.magic_dns = *on,
        DnsChange::OverrideLocal(on) => dns.override_local = *on,
    }
}

/// Does what `request` asks for and returns the answer as JSON.
pub(super) async fn run(admin: &Admin, facts: &Facts, request: Request) -> Result<Value, Refusal> {
    let some = |tailnet: Option<String>| one_tailnet(admin, tailnet);
    match request {
        Request::ServerShow => Ok(json!({
            "url": facts.url,
            "server_key": facts.key,
            "version": env!("CARGO_PKG_VERSION"),
            "quarantined_records": admin.quarantined().len(),
        })),
        Request::Backup { to } => {
            admin.backup(&to).await?;
            Ok(json!({ "file": to }))
        }
        Request::TailnetCreate { name } => shown(&admin.create_tailnet(&name).await?),
        Request::TailnetList => shown(&admin.tailnets()),
        Request::TailnetApproval { tailnet, needed } => shown(&admin.set_machine_approval(&tailnet, needed).await?),
        Request::TailnetKeyLifetime { tailnet, seconds } => {
            let lifetime = seconds.map_or(KeyLifetime::Never, KeyLifetime::Seconds);
            shown(&admin.set_key_lifetime(&tailnet, lifetime).await?)
        }
        Request::TailnetOnlyEnrolled { tailnet, needed } => shown(&admin.set_only_enrolled(&tailnet, needed).await?),
        Request::FlowLogAsk { tailnet, question } => shown(&admin.ask_flows(&some(tailnet)?, question).await?),
        Request::FlowLogFindings { tailnet, limit } => shown(&admin.flow_findings(&some(tailnet)?, limit).await?),
        Request::FlowLogVerify { tailnet } => shown(&admin.verify_flows(&some(tailnet)?).await?),
        Request::TailnetFlowLog { tailnet, on } => shown(&admin.set_flow_log(&tailnet, on).await?),
        Request::MachineEnrol { tailnet, machines, present, description } => {
            let tailnet = some(tailnet)?;
            let named = machines.iter().map(|text| machine(admin, &tailnet, text));
            let mut keys = named.collect::<Result<Vec<_>, _>>()?;
            if present {
                keys.extend(admin.nodes(Some(&tailnet))?.iter().map(|node| node.machine_key));
            }
            shown(&admin.enrol_machines(&tailnet, &keys, &description).await?)
        }
        Request::MachineList { tailnet } => shown(&admin.machines(tailnet.as_deref())?),
        Request::MachineCaAdd { tailnet, certificate, description } => {
            shown(&admin.add_machine_ca(&some(tailnet)?, &certificate, &description).await?)
        }
        Request::MachineCaList { tailnet } => shown(&admin.machine_cas(tailnet.as_deref())?),
        Request::MachineCaEnd { tailnet, id } => shown(&admin.end_machine_ca(&some(tailnet)?, &id).await?),
        Request::MachineCaRevoke { tailnet, id, serial } => {
            shown(&admin.revoke_certificate(&some(tailnet)?, &id, &serial).await?)
        }
        Request::MachineEnd { tailnet, machine: named } => {
            let tailnet = some(tailnet)?;
            let key = machine(admin, &tailnet, &named)?;
            shown(&admin.end_enrolment(&tailnet, key).await?)
        }
        Request::DnsShow { tailnet } => shown(&admin.dns(&some(tailnet)?)?),
        Request::DnsSet { tailnet, change } => {
            shown(&admin.set_dns(&some(tailnet)?, move |dns| change_dns(dns, &change)).await?)
        }
        Request::UserCreate { tailnet, login, display_name } => {
            shown(&admin.create_user(&some(tailnet)?, &login, display_name.as_deref()).await?)
        }
        Request::UserList { tailnet } => shown(&admin.users(tailnet.as_deref())?),
        Request::UserSetRole { tailnet, login, role } => {
            shown(&admin.set_user_role(&some(tailnet)?, &login, &role).await?)
        }
        Request::UserInvite { tailnet, login } => shown(&admin.invite_user(&some(tailnet)?, &login).await?),
        Request::UserSuspend { tailnet, login } => shown(&admin.suspend_user(&some(tailnet)?, &login).await?),
        Request::UserRestore { tailnet, login } => shown(&admin.restore_user(&some(tailnet)?, &login).await?),
        Request::UserRemove { tailnet, login, with_nodes } => {
            let belongings = if with_nodes { Belongings::Remove } else { Belongings::Keep };
            let left = admin.remove_user(&some(tailnet)?, &login, belongings).await?;
            Ok(json!({ "removed": login, "oauth_clients": left.oauth_clients }))
        }
        Request::ApiKeyCreate { tailnet, key } => {
            let NewApiKey { user, scopes, description, expires_in_seconds } = key;
            let lifetime = Duration::from_secs(expires_in_seconds);
            let new = admin::NewApiKey { user, scopes, description, lifetime };
            created(facts, &admin.create_api_key(&some(tailnet)?, new).await?)
        }
        Request::ApiKeyList { tailnet } => shown(&admin.credentials(tailnet.as_deref(), CredentialKind::ApiKey)?),
        Request::ApiKeyRevoke { id } => shown(&admin.revoke_credential(&id, CredentialKind::ApiKey).await?),
        Request::OauthClientCreate { tailnet, client } => {
            let NewOauthClient { scopes, tags, description } = client;
            let new = admin::NewOauthClient { scopes, tags, description };
            created(facts, &admin.create_oauth_client(&some(tailnet)?, new).await?)
        }
        Request::OauthClientList { tailnet } => {
            shown(&admin.credentials(tailnet.as_deref(), CredentialKind::OauthClient)?)
        }
        Request::OauthClientRevoke { id } => shown(&admin.revoke_credential(&id, CredentialKind::OauthClient).await?),
        Request::AuthKeyCreate { tailnet, key } => create_auth_key(admin, facts, some(tailnet)?, key).await,
        Request::AuthKeyList { tailnet } => shown(&admin.auth_keys(tailnet.as_deref())?),
        Request::AuthKeyRevoke { id } => shown(&admin.revoke_auth_key(&id).await?),
        Request::NodeList { tailnet } => shown(&admin.nodes(tailnet.as_deref())?),
        Request::NodeShow { tailnet, node } => shown(&admin.node(tailnet.as_deref(), &node)?),
        Request::NodeApprove { tailnet, node } => shown(&admin.approve_node(tailnet.as_deref(), &node).await?),
        Request::NodeRename { tailnet, node, name } => {
            shown(&admin.rename_node(tailnet.as_deref(), &node, name.as_deref()).await?)
        }
        Request::NodeTag { tailnet, node, tags } => shown(&admin.tag_node(tailnet.as_deref(), &node, &tags).await?),
        Request::NodeExpire { tailnet, node, expiry } => {
            let expiry = match expiry {
                ExpiryChange::Now => admin::Expiry::Now,
                ExpiryChange::Never => admin::Expiry::Never,
                ExpiryChange::At(time) => admin::Expiry::At(time),
            };
            shown(&admin.expire_node(tailnet.as_deref(), &node, expiry).await?)
        }
        Request::NodeRemove { tailnet, node } => shown(&admin.remove_node(tailnet.as_deref(), &node).await?),
        Request::NodeAttrList { tailnet, node } => shown(&admin.node_attributes(tailnet.as_deref(), &node)?),
        Request::NodeAttrSet { tailnet, node, name, value } => {
            shown(&admin.set_node_attribute(tailnet.as_deref(), &node, &name, &value).await?)
        }
        Request::NodeAttrUnset { tailnet, node, name } => {
            shown(&admin.unset_node_attribute(tailnet.as_deref(), &node, &name).await?)
        }
        Request::NodeApproveRoutes { tailnet, node, routes } => {
            shown(&admin.approve_routes(tailnet.as_deref(), &node, &routes).await?)
        }
        Request::NodeRevokeRoutes { tailnet, node, routes } => {
            shown(&admin.revoke_routes(tailnet.as_deref(), &node, &routes).await?)
        }
        Request::RelayAdd { relay } => shown(&admin.add_relay(&relay).await?),
        Request::RelayList => shown(&admin.relays()),
        Request::RelayRemove { name } => {
            admin.remove_relay(&name).await?;
            Ok(json!({ "removed": name }))
        }
        Request::LoginList => shown(&admin.logins()),
        Request::LoginApprove { id, tailnet, user, link } => {
            let hint = || admin.login(&id).map(|login| login.tailnet_hint);
            let tailnet = match tailnet {
                None => hint()?.map(|hint| hint.strip_prefix("required:").map(str::to_owned).unwrap_or(hint)),
                named => named,
            };
            let tailnet = some(tailnet)?;
            shown(&match (&user, link) {
                (Some(user), false) => admin.approve_login(&id, &tailnet, user).await?,
                (user, _) => admin.approve_person(&id, &tailnet, user.as_deref()).await?,
            })
        }
        Request::LoginReject { id } => shown(&admin.reject_login(&id)?),
        Request::PolicyGet { tailnet, version } => shown(&admin.policy(&some(tailnet)?, version).await?),
        Request::PolicyHistory { tailnet, limit } => {
            shown(&admin.policy_history(&some(tailnet)?, limit.min(MAX_POLICY_VERSIONS)).await?)
        }
        Request::PolicySet { tailnet, text, terms } => {
            let new = new_policy(PolicySource::Text(text), terms);
            shown(&admin.set_policy(&some(tailnet)?, new).await?)
        }
        Request::PolicyRollback { tailnet, version, terms } => {
            let new = new_policy(PolicySource::Version(version), terms);
            shown(&admin.set_policy(&some(tailnet)?, new).await?)
        }
        Request::PolicyAsk { tailnet, policy, question } => {
            shown(&admin.ask_policy(&some(tailnet)?, policy, question).await?)
        }
        Request::PolicyConfirm { tailnet } => shown(&admin.confirm_policy(&some(tailnet)?).await?),
        Request::Audit { tailnet, before, limit } => {
            shown(&admin.audit(tailnet.as_deref(), before, limit.min(MAX_AUDIT_ENTRIES)).await?)
        }
        Request::AuditVerify => shown(&admin.verify_audit().await?),
    }
}

/// Finds a machine by its key, or by what names one of its nodes.
fn machine(admin: &Admin, tailnet: &str, text: &str) -> Result<MachineKey, Refusal> {
    match text.parse() {
        Ok(key) => Ok(key),
        Err(_) => Ok(admin.node(Some(tailnet), text)?.machine_key),
    }
}

fn new_policy(source: PolicySource, terms: Option<PolicyTerms>) -> NewPolicy {
    let PolicyTerms { reason, if_match, confirm_within_seconds } = terms.unwrap_or_default();
    NewPolicy { source, reason, if_match, confirm_within: confirm_within_seconds.map(Duration::from_secs) }
}

/// Returns the tailnet that was named, the only one there is, or "default".
fn one_tailnet(admin: &Admin, named: Option<String>) -> Result<String, Refusal> {
    const DEFAULT: &str = "default";
    if let Some(name) = named {
        return Ok(name);
    }
    let mut tailnets = admin.tailnets();
    if tailnets.iter().any(|tailnet| tailnet.name == DEFAULT) {
        return Ok(DEFAULT.to_owned());
    }
    match (tailnets.pop(), tailnets.is_empty()) {
        (Some(only), true) => Ok(only.name),
        _ => Err(Refusal::WhichTailnet),
    }
}

async fn create_auth_key(admin: &Admin, facts: &Facts, tailnet: String, key: NewAuthKey) -> Result<Value, Refusal> {
    if key.user.is_some() && !key.tags.is_empty() {
        return Err(Refusal::Contradiction("a node has an owner or tags: give --user or --tag"));
    }
    let created = admin
        .create_auth_key(admin::NewAuthKey {
            tailnet,
            user: key.user,
            tags: key.tags,
            reusable: key.reusable,
            ephemeral: key.ephemeral,
            pre_approved: key.pre_approved,
            lifetime: key.expires_in_seconds.map(Duration::from_secs),
            description: String::new(),
        })
        .await?;
    let text = created.text.expose();
    let mut value = shown(&created.view)?;
    let command = format!("warren up --login-server {} --server-key {} --auth-key {text}", facts.url, facts.key);
    if let Some(object) = value.as_object_mut() {
        object.insert("key".to_owned(), text.into());
        object.insert("command".to_owned(), command.into());
        object.insert("login_server".to_owned(), facts.url.as_str().into());
        object.insert("server_key".to_owned(), facts.key.to_string().into());
    }
    Ok(value)
}

/// Shows a credential with its text, which is shown once.
fn created(facts: &Facts, created: &CreatedCredential) -> Result<Value, Refusal> {
    let mut value = shown(&created.view)?;
    if let Some(object) = value.as_object_mut() {
        object.insert("key".to_owned(), created.text.expose().into());
        object.insert("url".to_owned(), format!("{}/api/v2", facts.url).into());
    }
    Ok(value)
}

fn shown<T: serde::Serialize>(value: &T) -> Result<Value, Refusal> {
    serde_json::to_value(value).map_err(|error| {
        tracing::error!(%error, "an answer has no JSON form");
        Refusal::Internal
    })
}
