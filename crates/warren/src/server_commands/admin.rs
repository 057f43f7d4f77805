//! `warren admin`: networks, users, keys, nodes, logins, the audit log.

mod show;

use clap::Subcommand;
use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::Value;
use warren_control::admin::NewRelay;
use warren_control::admin_socket::{AdminRequest, DnsChange, ExpiryChange, NewApiKey, NewAuthKey, NewOauthClient};

use super::socket::Socket;
use super::times;
use crate::exit::Failure;
use crate::output;

/// Arguments of `warren admin`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    socket: Socket,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    /// The network; lists show all without it, other commands take the only one, or "default".
    #[arg(long, global = true, value_name = "NAME")]
    tailnet: Option<String>,
    #[command(subcommand)]
    family: Family,
}

#[derive(Debug, Subcommand)]
enum Family {
    /// Networks, isolated from each other.
    #[command(subcommand)]
    Tailnet(Tailnet),
    /// What machines are told about names: resolvers, split DNS, search domains.
    #[command(subcommand)]
    Dns(Dns),
    /// People who own nodes.
    #[command(subcommand)]
    User(User),
    /// Keys by which machines join without a login.
    #[command(subcommand)]
    AuthKey(AuthKey),
    /// Keys of people for the API.
    #[command(subcommand)]
    ApiKey(ApiKey),
    /// Programs with rights of their own, for the API.
    #[command(subcommand)]
    OauthClient(OauthClient),
    /// Machines.
    #[command(subcommand)]
    Node(Node),
    /// Machines that are enrolled by their keys; `tailnet only-enrolled` lets them alone take part.
    #[command(subcommand)]
    Machines(Machines),
    /// Relays on other machines (`warren relay`).
    #[command(subcommand)]
    Relay(Relay),
    /// Machines that wait to be let in.
    #[command(subcommand)]
    Login(Login),
    /// What was changed, when, and by whom.
    Audit {
        /// How many entries, the newest first.
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: u32,
        /// Only entries before this number.
        #[arg(long, value_name = "NUMBER")]
        before: Option<i64>,
        /// Check that no entry was changed or removed, and print the result.
        #[arg(long, conflicts_with_all = ["limit", "before"])]
        verify: bool,
    },
    /// URL, key and version of the server.
    Server,
}

#[derive(Debug, Subcommand)]
enum Tailnet {
    /// Make a network with a user called owner@NAME.
    Create {
        /// Its name, which becomes part of its machines' names.
        name: String,
    },
    /// List all networks.
    List,
    /// Say whether new machines of a network wait until they are approved.
    Approval {
        /// The network.
        name: String,
        /// `on` or `off`.
        #[arg(value_parser = on_off, action = clap::ArgAction::Set)]
        needed: bool,
    },
    /// Say whether enrolled machines alone take part, whatever lets others in. Enrol those that shall stay first.
    OnlyEnrolled {
        /// The network.
        name: String,
        /// `on` or `off`.
        #[arg(value_parser = on_off, action = clap::ArgAction::Set)]
        needed: bool,
    },
    /// Say whether machines write down their connections (who, with whom, when, how much; no contents) for this server. Both
    /// ends do, and sign it. Only machines that run this program do.
    FlowLog {
        /// The network.
        name: String,
        /// `on` or `off`.
        #[arg(value_parser = on_off, action = clap::ArgAction::Set)]
        on: bool,
    },
    /// Say how long machines of people stay in before they must log in again: 180 days unless you say so. Machines that
    /// are in now keep their end. Tagged machines stay for ever.
    KeyLifetime {
        /// The network.
        name: String,
        /// 12h, 90d; an hour at least, ten years at most.
        #[arg(value_name = "SPAN", value_parser = times::span, required_unless_present = "never")]
        span: Option<std::time::Duration>,
        /// For ever.
        #[arg(long, conflicts_with = "span")]
        never: bool,
    },
}

#[derive(Debug, Subcommand)]
enum Dns {
    /// Show it.
    Show,
    /// Say who resolves all names for machines that have no resolvers themselves (see `override`). Without any, nobody.
    Nameservers {
        /// Addresses, or https://HOST/PATH; the first that answers is used.
        #[arg(value_name = "RESOLVER")]
        nameservers: Vec<String>,
    },
    /// Say who resolves the names of a domain. Without any it is a domain like others.
    Split {
        /// The domain, such as corp.example.
        domain: String,
        /// Addresses, or https://HOST/PATH.
        #[arg(value_name = "RESOLVER")]
        nameservers: Vec<String>,
    },
    /// Say which domains are tried after names without a dot, beside the network's own. Without any, none.
    Search {
        /// Domains.
        #[arg(value_name = "DOMAIN")]
        domains: Vec<String>,
    },
    /// Say whether machines answer for the names of the network.
    Magic {
        /// `on` or `off`.
        #[arg(value_parser = on_off, action = clap::ArgAction::Set)]
        on: bool,
    },
    /// Say whether `nameservers` replace the resolvers that machines have.
    Override {
        /// `on` or `off`.
        #[arg(value_parser = on_off, action = clap::ArgAction::Set)]
        on: bool,
    },
}

#[derive(Debug, Subcommand)]
enum User {
    /// Make a user.
    Create {
        /// Login name, such as ann@example.com.
        login: String,
        /// Name to show.
        #[arg(long, value_name = "NAME")]
        display_name: Option<String>,
    },
    /// Make a link with which somebody makes themselves an account on this server: a password and a second factor. It works
    /// once, for three days; the user is made if there is none of that name. Whoever has an account gets a new one with it.
    Invite {
        /// Login name, such as ann@example.com.
        login: String,
    },
    /// List users.
    List,
    /// Give a user a role: what they may do with the API, and a name for policies, such as autogroup:admin.
    SetRole {
        /// Login name.
        login: String,
        /// `owner`, `admin`, `it-admin`, `network-admin`, `billing-admin`, `auditor` or `member`.
        role: String,
    },
    /// Lock a user out: their machines take no part at once, their keys work no more, and they cannot log in.
    Suspend {
        /// Login name.
        login: String,
    },
    /// Let a suspended user be what they were.
    Restore {
        /// Login name.
        login: String,
    },
    /// Remove a user who owns nothing.
    Remove {
        /// Login name.
        login: String,
        /// Remove their machines, too, and take their keys back.
        #[arg(long)]
        with_nodes: bool,
    },
}

#[derive(Debug, Subcommand)]
enum AuthKey {
    /// Make an auth key and print the line to type on the other machine. The key is shown only now.
    Create {
        /// User who will own the machines; owner@TAILNET unless given.
        #[arg(long, value_name = "LOGIN", conflicts_with = "tags")]
        user: Option<String>,
        /// Let it be used more than once.
        #[arg(long)]
        reusable: bool,
        /// Remove its machines when they have been away for a while.
        #[arg(long)]
        ephemeral: bool,
        /// Give its machines this tag, such as tag:web, instead of an owner. May be repeated.
        #[arg(long = "tag", value_name = "TAG")]
        tags: Vec<String>,
        /// Its machines need no approval.
        #[arg(long)]
        pre_approved: bool,
        /// How long it works: 90s, 30m, 24h, 7d.
        #[arg(long, value_name = "SPAN", value_parser = times::span, default_value = "24h")]
        expires: std::time::Duration,
    },
    /// List auth keys, without their secrets.
    List,
    /// Take an auth key back; machines that it let in stay.
    Revoke {
        /// Its ID, the part between the first two dashes.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
enum ApiKey {
    /// Make an API key, which is shown only now. It may what its user may, whatever that is at the time.
    Create {
        /// User whose rights it has; owner@TAILNET unless given.
        #[arg(long, value_name = "LOGIN")]
        user: Option<String>,
        /// Narrow it to this scope, such as devices:core or all:read. May be repeated.
        #[arg(long = "scope", value_name = "SCOPE")]
        scopes: Vec<String>,
        /// What it is for: letters, digits, spaces and dashes.
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
        /// How long it works: 24h, 7d; 90 days at most.
        #[arg(long, value_name = "SPAN", value_parser = times::span, default_value = "90d")]
        expires: std::time::Duration,
    },
    /// List API keys, without their secrets.
    List,
    /// Take an API key back.
    Revoke {
        /// Its ID, the part between the second and the third dash.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
enum OauthClient {
    /// Make a client and its secret, which is shown only now and gives tokens for an hour.
    Create {
        /// Let it do this, such as devices:core or all:read. May be repeated.
        #[arg(long = "scope", value_name = "SCOPE", required = true)]
        scopes: Vec<String>,
        /// Tag that it may give to machines and keys. May be repeated.
        #[arg(long = "tag", value_name = "TAG")]
        tags: Vec<String>,
        /// What it is for: letters, digits, spaces and dashes.
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
    },
    /// List clients, without their secrets.
    List,
    /// Take a client's secret and all of its tokens back.
    Revoke {
        /// Its ID, the part between the second and the third dash.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
enum Ca {
    /// Enrol an authority.
    Add {
        /// Its certificate, PEM.
        #[arg(value_name = "FILE", value_parser = certificate)]
        certificate: String,
        /// What it is: letters, digits, spaces and dashes.
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
    },
    /// List authorities.
    List,
    /// Take a certificate back; machines that it enrolled are cut off at once.
    Revoke {
        /// ID of the authority.
        id: String,
        /// Serial number of the certificate, in hex digits.
        serial: String,
    },
    /// Forget an authority; machines that its certificates enrolled are cut off at once.
    End {
        /// Its ID.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
enum Machines {
    /// Enrol machines.
    Enrol {
        /// Their keys (mkey:…), or what names one of their nodes.
        #[arg(value_name = "MACHINE", required_unless_present = "present")]
        machines: Vec<String>,
        /// All machines that are in now.
        #[arg(long)]
        present: bool,
        /// What they are: letters, digits, spaces and dashes.
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
    },
    /// List enrolled machines.
    List,
    /// Authorities whose certificates enrol machines by themselves (`warren node --machine-cert`).
    #[command(subcommand)]
    Ca(Ca),
    /// End the enrolment of a machine: where enrolled ones alone take part, it is cut off at once.
    End {
        /// Its key, or what names one of its nodes.
        machine: String,
    },
}

#[derive(Debug, Subcommand)]
enum Node {
    /// List machines.
    List,
    /// Show everything about a machine.
    Show(NodeName),
    /// Let a machine take part that waits for approval.
    Approve(NodeName),
    /// Give a machine a name that stays.
    Rename {
        #[command(flatten)]
        node: NodeName,
        /// The name; without one the machine is called by its host name again.
        name: Option<String>,
    },
    /// Give a machine tags instead of an owner.
    Tag {
        #[command(flatten)]
        node: NodeName,
        /// Tags, such as tag:web.
        #[arg(required = true)]
        tags: Vec<String>,
    },
    /// Make a machine log in again, now or later.
    Expire {
        #[command(flatten)]
        node: NodeName,
        /// After this span: 30m, 24h, 7d.
        #[arg(long = "in", value_name = "SPAN", value_parser = times::span, conflicts_with = "never")]
        after: Option<std::time::Duration>,
        /// Never, also after later logins.
        #[arg(long)]
        never: bool,
    },
    /// Attributes of a machine, which postures of the policy look at.
    #[command(subcommand)]
    Attr(Attr),
    /// Let a machine carry routes, now if it offers them, otherwise once it does.
    ApproveRoutes(Routes),
    /// Forbid a machine to carry routes.
    RevokeRoutes(Routes),
    /// Remove a machine.
    Remove(NodeName),
}

#[derive(Debug, Subcommand)]
enum Attr {
    /// List the attributes of a machine.
    List(NodeName),
    /// Give a machine an attribute.
    Set {
        #[command(flatten)]
        node: NodeName,
        /// Its name, such as custom:tier.
        name: String,
        /// Its value: a number, true, false, or a text. Double quotes make a text of anything: '"5"'.
        #[arg(allow_hyphen_values = true)]
        value: String,
    },
    /// Take an attribute away.
    Unset {
        #[command(flatten)]
        node: NodeName,
        /// Its name.
        name: String,
    },
}

#[derive(Debug, clap::Args)]
struct Routes {
    #[command(flatten)]
    node: NodeName,
    /// Prefixes, such as 10.0.0.0/8; 0.0.0.0/0 makes an exit node.
    #[arg(required = true, value_name = "PREFIX")]
    routes: Vec<IpNet>,
}

#[derive(Debug, clap::Args)]
struct NodeName {
    /// Name, full name, address or ID of the machine.
    node: String,
}

#[derive(Debug, Subcommand)]
enum Relay {
    /// Tell all machines of a relay; `warren relay` prints this line when it starts.
    Add {
        /// Its name: lower-case letters, digits and dashes.
        name: String,
        /// Name or address by which machines reach it.
        #[arg(long, value_name = "HOST")]
        host: String,
        /// Port of the relay.
        #[arg(long, value_name = "PORT", default_value_t = 443)]
        port: u16,
        /// Port of STUN; without it nobody asks there.
        #[arg(long, value_name = "PORT")]
        stun_port: Option<u16>,
        /// SHA-256 of its certificate, if it made it itself.
        #[arg(long, value_name = "HEX")]
        pin: Option<String>,
        /// Number of its region, perhaps one that has relays already; the first free one from 901 on unless given.
        #[arg(long, value_name = "NUMBER")]
        region: Option<u16>,
    },
    /// List relays on other machines.
    List,
    /// Tell machines to use a relay no more.
    Remove {
        /// Its name; the number of a region for all of it.
        name: String,
    },
}

#[derive(Debug, Subcommand)]
enum Login {
    /// List machines that wait, and those decided lately.
    List,
    /// Let a machine in, as one of the person who logged in or of a user that you name.
    Approve {
        /// ID of the login, as the list or its page shows it.
        id: String,
        /// Login name of the user; without it whoever logged in and confirmed becomes a user.
        #[arg(long, value_name = "LOGIN")]
        user: Option<String>,
        /// Whoever logged in is that user from now on, and comes in by themselves next time.
        #[arg(long, requires = "user")]
        link: bool,
    },
    /// Refuse a machine.
    Reject {
        /// ID of the login.
        id: String,
    },
}

impl Arguments {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let request = request(self.family, self.tailnet);
        let answer = self.socket.call(&request)?;
        if self.json {
            return output::json(&answer);
        }
        show::answer(&request, answer)
    }
}

/// Turns what was typed into a call.
fn request(family: Family, tailnet: Option<String>) -> AdminRequest {
    match family {
        Family::Tailnet(Tailnet::Create { name }) => AdminRequest::TailnetCreate { name },
        Family::Tailnet(Tailnet::List) => AdminRequest::TailnetList,
        Family::Tailnet(Tailnet::Approval { name, needed }) => AdminRequest::TailnetApproval { tailnet: name, needed },
        Family::Tailnet(Tailnet::OnlyEnrolled { name, needed }) => {
            AdminRequest::TailnetOnlyEnrolled { tailnet: name, needed }
        }
        Family::Tailnet(Tailnet::FlowLog { name, on }) => AdminRequest::TailnetFlowLog { tailnet: name, on },
        Family::Machines(Machines::Enrol { machines, present, description }) => {
            AdminRequest::MachineEnrol { tailnet, machines, present, description }
        }
        Family::Machines(Machines::Ca(Ca::Add { certificate, description })) => {
            AdminRequest::MachineCaAdd { tailnet, certificate, description }
        }
        Family::Machines(Machines::Ca(Ca::List)) => AdminRequest::MachineCaList { tailnet },
        Family::Machines(Machines::Ca(Ca::Revoke { id, serial })) => {
            AdminRequest::MachineCaRevoke { tailnet, id, serial }
        }
        Family::Machines(Machines::Ca(Ca::End { id })) => AdminRequest::MachineCaEnd { tailnet, id },
        Family::Machines(Machines::List) => AdminRequest::MachineList { tailnet },
        Family::Machines(Machines::End { machine }) => AdminRequest::MachineEnd { tailnet, machine },
        Family::Tailnet(Tailnet::KeyLifetime { name, span, never: _ }) => {
            AdminRequest::TailnetKeyLifetime { tailnet: name, seconds: span.map(|span| span.as_secs()) }
        }
        Family::Dns(Dns::Show) => AdminRequest::DnsShow { tailnet },
        Family::Dns(change) => AdminRequest::DnsSet { tailnet, change: dns_change(change) },
        Family::User(User::Create { login, display_name }) => AdminRequest::UserCreate { tailnet, login, display_name },
        Family::User(User::Invite { login }) => AdminRequest::UserInvite { tailnet, login },
        Family::User(User::List) => AdminRequest::UserList { tailnet },
        Family::User(User::SetRole { login, role }) => AdminRequest::UserSetRole { tailnet, login, role },
        Family::User(User::Suspend { login }) => AdminRequest::UserSuspend { tailnet, login },
        Family::User(User::Restore { login }) => AdminRequest::UserRestore { tailnet, login },
        Family::User(User::Remove { login, with_nodes }) => AdminRequest::UserRemove { tailnet, login, with_nodes },
        Family::ApiKey(ApiKey::Create { user, scopes, description, expires }) => {
            let key = NewApiKey { user, scopes, description, expires_in_seconds: expires.as_secs() };
            AdminRequest::ApiKeyCreate { tailnet, key }
        }
        Family::ApiKey(ApiKey::List) => AdminRequest::ApiKeyList { tailnet },
        Family::ApiKey(ApiKey::Revoke { id }) => AdminRequest::ApiKeyRevoke { id },
        Family::OauthClient(OauthClient::Create { scopes, tags, description }) => {
            AdminRequest::OauthClientCreate { tailnet, client: NewOauthClient { scopes, tags, description } }
        }
        Family::OauthClient(OauthClient::List) => AdminRequest::OauthClientList { tailnet },
        Family::OauthClient(OauthClient::Revoke { id }) => AdminRequest::OauthClientRevoke { id },
        Family::AuthKey(AuthKey::Create { user, reusable, ephemeral, tags, pre_approved, expires }) => {
            let expires_in_seconds = Some(expires.as_secs());
            let key = NewAuthKey { user, tags, reusable, ephemeral, pre_approved, expires_in_seconds };
            AdminRequest::AuthKeyCreate { tailnet, key }
        }
        Family::AuthKey(AuthKey::List) => AdminRequest::AuthKeyList { tailnet },
        Family::AuthKey(AuthKey::Revoke { id }) => AdminRequest::AuthKeyRevoke { id },
        Family::Node(Node::List) => AdminRequest::NodeList { tailnet },
        Family::Node(Node::Show(NodeName { node })) => AdminRequest::NodeShow { tailnet, node },
        Family::Node(Node::Approve(NodeName { node })) => AdminRequest::NodeApprove { tailnet, node },
        Family::Node(Node::Rename { node: NodeName { node }, name }) => {
            AdminRequest::NodeRename { tailnet, node, name }
        }
        Family::Node(Node::Tag { node: NodeName { node }, tags }) => AdminRequest::NodeTag { tailnet, node, tags },
        Family::Node(Node::Expire { node: NodeName { node }, after, never }) => {
            let expiry = match (never, after) {
                (true, _) => ExpiryChange::Never,
                (false, Some(after)) => ExpiryChange::At(Timestamp::now() + after),
                (false, None) => ExpiryChange::Now,
            };
            AdminRequest::NodeExpire { tailnet, node, expiry }
        }
        Family::Node(Node::Attr(Attr::List(NodeName { node }))) => AdminRequest::NodeAttrList { tailnet, node },
        Family::Node(Node::Attr(Attr::Set { node: NodeName { node }, name, value })) => {
            AdminRequest::NodeAttrSet { tailnet, node, name, value: attribute(value) }
        }
        Family::Node(Node::Attr(Attr::Unset { node: NodeName { node }, name })) => {
            AdminRequest::NodeAttrUnset { tailnet, node, name }
        }
        Family::Node(Node::ApproveRoutes(Routes { node: NodeName { node }, routes })) => {
            AdminRequest::NodeApproveRoutes { tailnet, node, routes }
        }
        Family::Node(Node::RevokeRoutes(Routes { node: NodeName { node }, routes })) => {
            AdminRequest::NodeRevokeRoutes { tailnet, node, routes }
        }
        Family::Node(Node::Remove(NodeName { node })) => AdminRequest::NodeRemove { tailnet, node },
        Family::Relay(Relay::Add { name, host, port, stun_port, pin, region }) => {
            AdminRequest::RelayAdd { relay: NewRelay { name, host, port, stun_port, pin, region } }
        }
        Family::Relay(Relay::List) => AdminRequest::RelayList,
        Family::Relay(Relay::Remove { name }) => AdminRequest::RelayRemove { name },
        Family::Login(Login::List) => AdminRequest::LoginList,
        Family::Login(Login::Approve { id, user, link }) => AdminRequest::LoginApprove { id, tailnet, user, link },
        Family::Login(Login::Reject { id }) => AdminRequest::LoginReject { id },
        Family::Audit { verify: true, .. } => AdminRequest::AuditVerify,
        Family::Audit { limit, before, .. } => AdminRequest::Audit { tailnet, before, limit },
        Family::Server => AdminRequest::ServerShow,
    }
}

fn dns_change(change: Dns) -> DnsChange {
    match change {
        Dns::Nameservers { nameservers } => DnsChange::Nameservers(nameservers),
        Dns::Split { domain, nameservers } => DnsChange::Split { domain, nameservers },
        Dns::Search { domains } => DnsChange::Search(domains),
        Dns::Magic { on } => DnsChange::Magic(on),
        Dns::Override { on } => DnsChange::OverrideLocal(on),
        Dns::Show => unreachable!("that is no change"),
    }
}

/// Reads the value of an attribute as typed.
fn attribute(text: String) -> Value {
    match serde_json::from_str(&text) {
        Ok(value @ (Value::String(_) | Value::Number(_) | Value::Bool(_))) => value,
        Ok(Value::Null | Value::Array(_) | Value::Object(_)) | Err(_) => Value::String(text),
    }
}

/// Reads a certificate from a file, which is small.
fn certificate(path: &str) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read it: {error}"))?;
    if text.len() > 64 * 1024 { Err("it is too long for a certificate".to_owned()) } else { Ok(text) }
}

fn on_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("write on or off".to_owned()),
    }
}
