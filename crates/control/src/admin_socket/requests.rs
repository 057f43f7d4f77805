//! What an administrator can ask for.

use std::path::PathBuf;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use warren_policy::PolicyQuestion;

use crate::admin::{FlowQuestion, NewRelay};

/// One call. `tailnet` is a name; lists take all tailnets without one, other calls the server's only one, or "default".
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
#[expect(missing_docs, reason = "the variants are the verbs of `warren admin`, their fields its arguments")]
pub enum Request {
    ServerShow,
    Backup {
        to: PathBuf,
    },
    TailnetCreate {
        name: String,
    },
    TailnetList,
    TailnetApproval {
        tailnet: String,
        needed: bool,
    },
    /// Without a span, keys never expire.
    TailnetKeyLifetime {
        tailnet: String,
        seconds: Option<u64>,
    },
    TailnetOnlyEnrolled {
        tailnet: String,
        needed: bool,
    },
    TailnetFlowLog {
        tailnet: String,
        on: bool,
    },
    FlowLogAsk {
        tailnet: Option<String>,
        #[serde(default)]
        question: FlowQuestion,
    },
    /// What is wrong with flow logs, the newest first.
    FlowLogFindings {
        tailnet: Option<String>,
        limit: usize,
    },
    FlowLogVerify {
        tailnet: Option<String>,
    },
    /// Machines are named by key, or as nodes are.
    MachineEnrol {
        tailnet: Option<String>,
        machines: Vec<String>,
        /// All machines that have a node now, too.
        #[serde(default)]
        present: bool,
        #[serde(default)]
        description: String,
    },
    MachineList {
        tailnet: Option<String>,
    },
    MachineCaAdd {
        tailnet: Option<String>,
        /// The certificate, PEM.
        certificate: String,
        #[serde(default)]
        description: String,
    },
    MachineCaList {
        tailnet: Option<String>,
    },
    MachineCaEnd {
        tailnet: Option<String>,
        id: String,
    },
    MachineCaRevoke {
        tailnet: Option<String>,
        id: String,
        serial: String,
    },
    MachineEnd {
        tailnet: Option<String>,
        machine: String,
    },
    DnsShow {
        tailnet: Option<String>,
    },
    DnsSet {
        tailnet: Option<String>,
        change: DnsChange,
    },
    UserCreate {
        tailnet: Option<String>,
        login: String,
        display_name: Option<String>,
    },
    UserInvite {
        tailnet: Option<String>,
        login: String,
    },
    UserList {
        tailnet: Option<String>,
    },
    UserSetRole {
        tailnet: Option<String>,
        login: String,
        role: String,
    },
    UserSuspend {
        tailnet: Option<String>,
        login: String,
    },
    UserRestore {
        tailnet: Option<String>,
        login: String,
    },
    UserRemove {
        tailnet: Option<String>,
        login: String,
        /// Whether nodes and keys go with them; the user stays otherwise while there are any.
        #[serde(default)]
        with_nodes: bool,
    },
    ApiKeyCreate {
        tailnet: Option<String>,
        key: NewApiKey,
    },
    ApiKeyList {
        tailnet: Option<String>,
    },
    ApiKeyRevoke {
        id: String,
    },
    OauthClientCreate {
        tailnet: Option<String>,
        client: NewOauthClient,
    },
    OauthClientList {
        tailnet: Option<String>,
    },
    OauthClientRevoke {
        id: String,
    },
    AuthKeyCreate {
        tailnet: Option<String>,
        key: NewAuthKey,
    },
    AuthKeyList {
        tailnet: Option<String>,
    },
    AuthKeyRevoke {
        id: String,
    },
    NodeList {
        tailnet: Option<String>,
    },
    NodeShow {
        tailnet: Option<String>,
        node: String,
    },
    NodeApprove {
        tailnet: Option<String>,
        node: String,
    },
    NodeRename {
        tailnet: Option<String>,
        node: String,
        name: Option<String>,
    },
    NodeTag {
        tailnet: Option<String>,
        node: String,
        tags: Vec<String>,
    },
    NodeExpire {
        tailnet: Option<String>,
        node: String,
        expiry: ExpiryChange,
    },
    NodeRemove {
        tailnet: Option<String>,
        node: String,
    },
    NodeAttrList {
        tailnet: Option<String>,
        node: String,
    },
    NodeAttrSet {
        tailnet: Option<String>,
        node: String,
        name: String,
        value: Value,
    },
    NodeAttrUnset {
        tailnet: Option<String>,
        node: String,
        name: String,
    },
    NodeApproveRoutes {
        tailnet: Option<String>,
        node: String,
        routes: Vec<IpNet>,
    },
    NodeRevokeRoutes {
        tailnet: Option<String>,
        node: String,
        routes: Vec<IpNet>,
    },
    RelayAdd {
        relay: NewRelay,
    },
    RelayList,
    RelayRemove {
        name: String,
    },
    LoginList,
    LoginApprove {
        id: String,
        tailnet: Option<String>,
        user: Option<String>,
        #[serde(default)]
        link: bool,
    },
    LoginReject {
        id: String,
    },
    PolicyGet {
        tailnet: Option<String>,
        version: Option<u64>,
    },
    PolicyHistory {
        tailnet: Option<String>,
        limit: u32,
    },
    PolicySet {
        tailnet: Option<String>,
        text: String,
        terms: Option<PolicyTerms>,
    },
    PolicyRollback {
        tailnet: Option<String>,
        version: u64,
        terms: Option<PolicyTerms>,
    },
    PolicyConfirm {
        tailnet: Option<String>,
    },
    PolicyAsk {
        tailnet: Option<String>,
        policy: Option<String>,
        question: PolicyQuestion,
    },
    Audit {
        tailnet: Option<String>,
        before: Option<i64>,
        limit: u32,
    },
    AuditVerify,
}

/// What an auth key shall be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NewAuthKey {
    /// Login of the user that will own the nodes; `owner@<tailnet>` if absent. Not with tags.
    pub user: Option<String>,
    /// Tags of the nodes, with the prefix `tag:`.
    pub tags: Vec<String>,
    /// Whether it may be used more than once.
    pub reusable: bool,
    /// Whether its nodes are removed when they have been away for a while.
    pub ephemeral: bool,
    /// Whether its nodes need no approval.
    pub pre_approved: bool,
    /// After how many seconds it stops working.
    pub expires_in_seconds: Option<u64>,
}

/// What an API key shall be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NewApiKey {
    /// Login of the user whose rights it has; `owner@<tailnet>` if absent.
    pub user: Option<String>,
    /// Scopes that it is narrowed to; not at all if there are none.
    pub scopes: Vec<String>,
    /// What it is for.
    pub description: String,
    /// After how many seconds it stops working.
    pub expires_in_seconds: u64,
}

/// What an OAuth client shall be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NewOauthClient {
    /// What it may.
    pub scopes: Vec<String>,
    /// Tags that it may give.
    pub tags: Vec<String>,
    /// What it is for.
    pub description: String,
}

/// How a policy shall be put in force.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyTerms {
    /// Why; up to 1,000 bytes.
    pub reason: Option<String>,
    /// Tag that the policy in force must have; `*` is any.
    pub if_match: Option<String>,
    /// It is undone by itself unless it is confirmed within so many seconds.
    pub confirm_within_seconds: Option<u64>,
}

/// What shall change of what nodes are told about names. An empty list takes away what was there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DnsChange {
    /// Resolvers of everything: addresses, or `https://…`.
    Nameservers(Vec<String>),
    /// Resolvers of one domain.
    Split {
        /// The domain.
        domain: String,
        /// Its resolvers.
        nameservers: Vec<String>,
    },
    /// Domains that are tried after names without a dot.
    Search(Vec<String>),
    /// Whether nodes answer for the names of the tailnet.
    Magic(bool),
    /// Whether the resolvers of everything replace those of the machine.
    OverrideLocal(bool),
}

/// When a node's key shall stop being valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExpiryChange {
    /// At once: the node must log in again.
    Now,
    /// Never.
    Never,
    /// At this time.
    At(Timestamp),
}
