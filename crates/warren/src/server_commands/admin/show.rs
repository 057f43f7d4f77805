//! Answers of the server, for people.

use serde::de::DeserializeOwned;
use serde_json::Value;
use warren_control::admin::{
    AuthKeyView, CredentialView, Invitation, LoginState, LoginView, MachineCaView, MachineView, NodeView, RelayView,
    TailnetView, UserDeparture, UserView,
};
use warren_control::admin_socket::AdminRequest;
use warren_control::server::key_words;
use warren_control::{DnsSettings, KeyLifetime, Nameserver};

use crate::exit::{Exit, Failure, OrExit};
use crate::output;
use crate::server_commands::times::seconds;

/// Prints the answer to `request`.
pub(super) fn answer(request: &AdminRequest, answer: Value) -> Result<(), Failure> {
    match request {
        AdminRequest::TailnetList => tailnets(&typed::<Vec<TailnetView>>(answer)?),
        AdminRequest::TailnetCreate { .. } => {
            let tailnet: TailnetView = typed(answer)?;
            output::line(format_args!(
                "made the network {}, whose machines are called NAME.{}",
                tailnet.name, tailnet.domain
            ))
        }
        AdminRequest::TailnetKeyLifetime { tailnet, .. } => {
            let lifetime = typed::<TailnetView>(answer)?.key_lifetime;
            let lasts = match lifetime {
                KeyLifetime::Never => "stay in for ever".to_owned(),
                KeyLifetime::Seconds(_) => format!("must log in again after {}", lasts(lifetime)),
            };
            output::line(format_args!("{tailnet}: machines of people {lasts}, from their next login on"))
        }
        AdminRequest::TailnetApproval { tailnet, needed } => {
            let wait = if *needed { "wait until they are approved" } else { "take part at once" };
            output::line(format_args!("new machines of {tailnet} {wait}"))
        }
        AdminRequest::TailnetOnlyEnrolled { tailnet, needed: true } => {
            let view: TailnetView = typed(answer)?;
            output::line(format_args!(
                "enrolled machines alone take part in {tailnet}: {}; {} nodes wait for an enrolment",
                view.enrolled, view.barred
            ))
        }
        AdminRequest::TailnetOnlyEnrolled { tailnet, needed: false } => {
            output::line(format_args!("machines of {tailnet} need no enrolment"))
        }
        AdminRequest::TailnetFlowLog { tailnet, on } => {
            let write = if *on { "write down" } else { "do not write down" };
            output::line(format_args!("machines of {tailnet} {write} their connections"))
        }
        AdminRequest::MachineEnrol { .. } | AdminRequest::MachineList { .. } => {
            machines(&typed::<Vec<MachineView>>(answer)?)
        }
        AdminRequest::MachineCaList { .. } => machine_cas(&typed::<Vec<MachineCaView>>(answer)?),
        AdminRequest::MachineCaAdd { .. } => {
            let ca: MachineCaView = typed(answer)?;
            output::line(format_args!("certificates of the authority {} enrol machines of {}", ca.id, ca.tailnet))
        }
        AdminRequest::MachineCaRevoke { serial, .. } => {
            let ca: MachineCaView = typed(answer)?;
            output::line(format_args!("the certificate {serial} of the authority {} enrols nobody any more", ca.id))
        }
        AdminRequest::MachineCaEnd { .. } => {
            let ca: MachineCaView = typed(answer)?;
            output::line(format_args!("the authority {} is gone, and {} enrolments with it", ca.id, ca.machines))
        }
        AdminRequest::MachineEnd { .. } => {
            let machine: MachineView = typed(answer)?;
            output::line(format_args!("{} is enrolled no more", machine.key))
        }
        AdminRequest::DnsShow { .. } | AdminRequest::DnsSet { .. } => dns(&typed(answer)?),
        AdminRequest::UserList { .. } => users(&typed::<Vec<UserView>>(answer)?),
        AdminRequest::UserCreate { .. } => {
            let user: UserView = typed(answer)?;
            output::line(format_args!("made the user {} in {}", user.login, user.tailnet))
        }
        AdminRequest::UserSetRole { .. } => {
            let user: UserView = typed(answer)?;
            output::line(format_args!("{} is {} of {} now", user.login, user.role, user.tailnet))
        }
        AdminRequest::UserInvite { .. } => {
            let Invitation { login, url, expires, .. } = typed(answer)?;
            let until = seconds(&expires.to_string());
            output::text(&format!("Give {login} this link, which works once, until {until}:\n{url}\n"))
        }
        AdminRequest::UserSuspend { .. } => {
            let UserDeparture { user, oauth_clients } = typed(answer)?;
            output::line(format_args!("{} is locked out, with {} machines", user.login, user.nodes))?;
            clients_left(&oauth_clients)
        }
        AdminRequest::UserRestore { .. } => {
            let user: UserView = typed(answer)?;
            output::line(format_args!("{} is {} of {} again", user.login, user.role, user.tailnet))
        }
        AdminRequest::ApiKeyCreate { .. } | AdminRequest::OauthClientCreate { .. } => credential(&answer),
        AdminRequest::ApiKeyList { .. } | AdminRequest::OauthClientList { .. } => {
            credentials(&typed::<Vec<CredentialView>>(answer)?)
        }
        AdminRequest::ApiKeyRevoke { id } => output::line(format_args!("took the API key {id} back")),
        AdminRequest::OauthClientRevoke { id } => {
            output::line(format_args!("took the client {id} and its tokens back"))
        }
        AdminRequest::UserRemove { login, .. } => {
            output::line(format_args!("removed the user {login}"))?;
            let clients = answer.get("oauth_clients").and_then(Value::as_array).into_iter().flatten();
            let clients: Vec<_> = clients.filter_map(|id| id.as_str().map(str::to_owned)).collect();
            clients_left(&clients)
        }
        AdminRequest::AuthKeyCreate { .. } => auth_key(&answer),
        AdminRequest::AuthKeyList { .. } => auth_keys(&typed::<Vec<AuthKeyView>>(answer)?),
        AdminRequest::AuthKeyRevoke { id } => output::line(format_args!("took the auth key {id} back")),
        AdminRequest::NodeList { .. } => nodes(&typed::<Vec<NodeView>>(answer)?),
        AdminRequest::NodeShow { .. } => fields(&answer),
        AdminRequest::NodeApprove { .. } => node_line(answer, "takes part now"),
        AdminRequest::NodeRename { .. } => node_line(answer, "is its name now"),
        AdminRequest::NodeTag { .. } => node_line(answer, "is tagged now"),
        AdminRequest::NodeExpire { .. } => {
            let node: NodeView = typed(answer)?;
            match (node.expired, node.key_expiry) {
                (true, _) => output::line(format_args!("{} must log in again", node.fqdn)),
                (false, Some(time)) => output::line(format_args!("{} must log in again after {time}", node.fqdn)),
                (false, None) => output::line(format_args!("{} need never log in again", node.fqdn)),
            }
        }
        AdminRequest::NodeRemove { .. } => node_line(answer, "is removed"),
        AdminRequest::NodeAttrList { .. } => fields(answer.get("attributes").unwrap_or(&Value::Null)),
        AdminRequest::NodeAttrSet { name, .. } => node_line(answer, &format!("has the attribute {name} now")),
        AdminRequest::NodeAttrUnset { name, .. } => node_line(answer, &format!("has no attribute {name} any more")),
        AdminRequest::NodeApproveRoutes { .. } | AdminRequest::NodeRevokeRoutes { .. } => {
            let node: NodeView = typed(answer)?;
            let (carried, waiting): (Vec<_>, Vec<_>) =
                node.approved_routes.iter().partition(|route| node.offered_routes.contains(route));
            output::line(format_args!("{} may carry {}", node.fqdn, list(&carried)))?;
            if waiting.is_empty() {
                return Ok(());
            }
            output::line(format_args!("and, once it offers them, {}", list(&waiting)))
        }
        AdminRequest::RelayAdd { .. } => {
            let relay: RelayView = typed(answer)?;
            output::line(format_args!("machines use the relay {} as region {} from now on", relay.name, relay.region))
        }
        AdminRequest::RelayList => relays(&typed::<Vec<RelayView>>(answer)?),
        AdminRequest::RelayRemove { name } => output::line(format_args!("machines use the relay {name} no more")),
        AdminRequest::LoginList => logins(&typed::<Vec<LoginView>>(answer)?),
        AdminRequest::LoginApprove { .. } => node_line(answer, "was let in"),
        AdminRequest::LoginReject { id } => output::line(format_args!("refused the login {id}")),
        AdminRequest::Audit { .. } => audit(&answer),
        AdminRequest::ServerShow
        | AdminRequest::AuditVerify
        | AdminRequest::Backup { .. }
        | AdminRequest::FlowLogAsk { .. }
        | AdminRequest::FlowLogFindings { .. }
        | AdminRequest::FlowLogVerify { .. }
        | AdminRequest::PolicyAsk { .. }
        | AdminRequest::PolicyGet { .. }
        | AdminRequest::PolicyHistory { .. }
        | AdminRequest::PolicySet { .. }
        | AdminRequest::PolicyRollback { .. }
        | AdminRequest::PolicyConfirm { .. } => fields(&answer),
    }
}

/// Says which OAuth clients go on without whoever made them.
fn clients_left(ids: &[String]) -> Result<(), Failure> {
    for id in ids {
        output::line(format_args!(
            "the OAuth client {id}, which they made, goes on; they may know its secret: warren admin oauth-client revoke {id}"
        ))?;
    }
    Ok(())
}

fn list(routes: &[&ipnet::IpNet]) -> String {
    if routes.is_empty() {
        return "no routes".to_owned();
    }
    routes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn typed<T: DeserializeOwned>(answer: Value) -> Result<T, Failure> {
    serde_json::from_value(answer).or_exit(Exit::General, "the server's answer cannot be read (is it another version?)")
}

fn node_line(answer: Value, what: &str) -> Result<(), Failure> {
    let node: NodeView = typed(answer)?;
    output::line(format_args!("{} {what}", node.fqdn))
}

/// Prints how to use a new auth key; the line begins at the first column, so that scripts can find it.
fn auth_key(answer: &Value) -> Result<(), Failure> {
    let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default();
    let until = match text("expires") {
        "" => "until it is revoked".to_owned(),
        expires => format!("until {}", seconds(expires)),
    };
    let times =
        if answer.get("reusable") == Some(&Value::Bool(true)) { "any number of machines" } else { "one machine" };
    output::text(&format!("Type this on the other machine (for {times}, {until}):\n{}\n", text("command")))
}

fn tailnets(list: &[TailnetView]) -> Result<(), Failure> {
    let rows: Vec<_> = list
        .iter()
        .map(|tailnet| {
            [
                tailnet.name.clone(),
                tailnet.domain.clone(),
                tailnet.users.to_string(),
                format!("{} ({} online)", tailnet.nodes, tailnet.online),
                if tailnet.machine_approval { "needed" } else { "-" }.to_owned(),
                lasts(tailnet.key_lifetime),
            ]
        })
        .collect();
    output::table(["NAME", "DOMAIN", "USERS", "NODES", "APPROVAL", "KEYS LAST"], &rows)
}

/// Shows how long keys last, as it is typed.
fn lasts(lifetime: KeyLifetime) -> String {
    match lifetime {
        KeyLifetime::Seconds(seconds) if seconds % 86_400 == 0 => format!("{}d", seconds / 86_400),
        KeyLifetime::Seconds(seconds) if seconds % 3_600 == 0 => format!("{}h", seconds / 3_600),
        KeyLifetime::Seconds(seconds) => format!("{seconds}s"),
        KeyLifetime::Never => "for ever".to_owned(),
    }
}

/// Shows what machines are told about names.
fn dns(dns: &DnsSettings) -> Result<(), Failure> {
    let servers = |list: &[Nameserver]| list.iter().map(|server| server.address.clone()).collect::<Vec<_>>().join(" ");
    let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let on = |on: bool| if on { "on" } else { "off" }.to_owned();
    let mut rows = vec![
        ["names of the network".to_owned(), on(dns.magic_dns)],
        ["resolvers".to_owned(), or_none(servers(&dns.nameservers))],
        ["instead of a machine's own".to_owned(), on(dns.override_local)],
        ["search domains".to_owned(), or_none(dns.search_paths.join(" "))],
    ];
    rows.extend(dns.split.iter().map(|(domain, list)| [format!("names in {domain}"), servers(list)]));
    output::table(["WHAT", "HOW"], &rows)
}

fn users(list: &[UserView]) -> Result<(), Failure> {
    let rows: Vec<_> = list
        .iter()
        .map(|user| {
            let (login, name) = (user.login.clone(), user.display_name.clone());
            let role = if user.suspended { format!("{} (suspended)", user.role) } else { user.role.clone() };
            [login, name, role, user.tailnet.clone(), user.nodes.to_string()]
        })
        .collect();
    output::table(["LOGIN", "NAME", "ROLE", "TAILNET", "NODES"], &rows)
}

fn auth_keys(list: &[AuthKeyView]) -> Result<(), Failure> {
    let rows: Vec<_> = list
        .iter()
        .map(|key| {
            let mut kinds = Vec::new();
            for (yes, name) in [
                (key.reusable, "reusable"),
                (key.ephemeral, "ephemeral"),
                (key.pre_approved, "pre-approved"),
                (key.revoked, "revoked"),
            ] {
                if yes {
                    kinds.push(name);
                }
            }
            [
                key.id.clone(),
                owner(key.user.as_deref(), &key.tags),
                key.tailnet.clone(),
                if key.valid { "yes" } else { "no" }.to_owned(),
                key.used.to_string(),
                key.expires.map_or_else(|| "never".to_owned(), |time| seconds(&time.to_string())),
                kinds.join(", "),
            ]
        })
        .collect();
    output::table(["ID", "OWNER", "TAILNET", "VALID", "USED", "EXPIRES", "KIND"], &rows)
}

fn nodes(list: &[NodeView]) -> Result<(), Failure> {
    let rows: Vec<_> = list
        .iter()
        .map(|node| {
            let state = match node {
                node if node.barred => "waits for enrolment",
                node if !node.approved => "waits for approval",
                node if node.expired => "expired",
                node if node.online => "online",
                _ => "offline",
            };
            [
                node.id.to_string(),
                node.name.clone(),
                node.addresses.first().map(ToString::to_string).unwrap_or_default(),
                owner(node.user.as_deref(), &node.tags),
                node.tailnet.clone(),
                state.to_owned(),
                node.os.clone(),
            ]
        })
        .collect();
    output::table(["ID", "NAME", "ADDRESS", "OWNER", "TAILNET", "STATE", "SYSTEM"], &rows)
}

fn machine_cas(list: &[MachineCaView]) -> Result<(), Failure> {
    let rows: Vec<_> = list
        .iter()
        .map(|ca| {
            let until = seconds(&ca.until.to_string());
            let (machines, revoked) = (ca.machines.to_string(), ca.revoked.len().to_string());
            [ca.id.clone(), ca.tailnet.clone(), until, machines, revoked, ca.description.clone()]
        })
        .collect();
    output::table(["AUTHORITY", "TAILNET", "UNTIL", "MACHINES", "REVOKED", "FOR"], &rows)
}

fn machines(list: &[MachineView]) -> Result<(), Failure> {
    let rows: Vec<_> = list
        .iter()
        .map(|machine| {
            let nodes = if machine.nodes.is_empty() { "-".to_owned() } else { machine.nodes.join(" ") };
            let enrolled = seconds(&machine.enrolled.to_string());
            let (by, until) = match (&machine.proof, machine.ended) {
                (_, Some(ended)) => ("nobody: ended".to_owned(), seconds(&ended.to_string())),
                (Some(proof), None) => (format!("{}:{}", proof.ca, proof.serial), seconds(&proof.until.to_string())),
                (None, None) => ("hand".to_owned(), "-".to_owned()),
            };
            [machine.key.to_string(), machine.tailnet.clone(), enrolled, by, until, nodes, machine.description.clone()]
        })
        .collect();
    output::table(["MACHINE", "TAILNET", "ENROLLED", "BY", "UNTIL", "NODES", "FOR"], &rows)
}

fn logins(list: &[LoginView]) -> Result<(), Failure> {
    let rows: Vec<_> = list
        .iter()
        .map(|login| {
            let state = match login.state {
                LoginState::Waiting => "waits",
                LoginState::Approved => "approved",
                LoginState::Rejected => "rejected",
            };
            [
                login.id.clone(),
                login.hostname.clone(),
                login.os.clone(),
                key_words(&login.machine_key),
                login.from.to_string(),
                login.person.as_ref().map_or_else(|| "-".to_owned(), |person| person.login.clone()),
                state.to_owned(),
            ]
        })
        .collect();
    output::table(["ID", "MACHINE", "SYSTEM", "KEY", "FROM", "PERSON", "STATE"], &rows)
}

fn relays(list: &[RelayView]) -> Result<(), Failure> {
    let rows: Vec<_> = list
        .iter()
        .map(|relay| {
            let stun = relay.stun_port.map_or_else(|| "-".to_owned(), |port| port.to_string());
            let known = if relay.pinned { "its hash" } else { "its name" };
            [
                relay.region.to_string(),
                relay.name.clone(),
                format!("{}:{}", relay.host, relay.port),
                stun,
                known.to_owned(),
            ]
        })
        .collect();
    output::table(["REGION", "NAME", "ADDRESS", "STUN", "CERTIFICATE BY"], &rows)
}

fn audit(answer: &Value) -> Result<(), Failure> {
    let list = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<_> = list
        .iter()
        .map(|entry| ["seq", "at", "who", "what", "subject"].map(|name| plain(entry.get(name).unwrap_or(&Value::Null))))
        .collect();
    output::table(["NUMBER", "TIME", "WHO", "WHAT", "SUBJECT"], &rows)
}

/// Prints a new credential; its text stands alone on a line, so that scripts can find it.
fn credential(answer: &Value) -> Result<(), Failure> {
    let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default();
    output::line(format_args!("{}", text("key")))?;
    let until = match text("expires") {
        "" => "it is revoked".to_owned(),
        expires => seconds(expires),
    };
    output::line(format_args!("for {}, until {until}; it is not shown again", text("url")))
}

fn credentials(list: &[CredentialView]) -> Result<(), Failure> {
    let rows: Vec<_> = list
        .iter()
        .map(|one| {
            let scopes = if one.scopes.is_empty() { "all of its user".to_owned() } else { one.scopes.join(" ") };
            let works = if one.valid { "yes" } else { "no" };
            let user = one.user.clone().unwrap_or_else(|| "-".to_owned());
            let expires = one.expires.map_or_else(|| "-".to_owned(), |at| seconds(&at.to_string()));
            [one.id.clone(), one.tailnet.clone(), user, scopes, expires, works.to_owned(), one.description.clone()]
        })
        .collect();
    output::table(["ID", "NETWORK", "USER", "SCOPES", "EXPIRES", "WORKS", "FOR"], &rows)
}

/// Prints an object, a field a line.
fn fields(answer: &Value) -> Result<(), Failure> {
    let rows: Vec<_> =
        answer.as_object().into_iter().flatten().map(|(name, value)| [name.clone(), plain(value)]).collect();
    output::table(["FIELD", "VALUE"], &rows)
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(" "),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}

fn owner(user: Option<&str>, tags: &[String]) -> String {
    user.map_or_else(|| tags.join(" "), str::to_owned)
}
