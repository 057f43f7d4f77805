//! What a policy says, after it was read and before names are looked up.
//!
//! Every rule of `acls` and `grants` is a [`Grant`] here. Whoever reads a policy has checked that what a selector names
//! (groups, tags, hosts, ipsets, postures) is defined, so that nothing below can fail.

use crate::addresses::AddressSet;
use crate::posture::Assertion;
use crate::schedule::Validity;
use crate::selector::Selector;
use crate::service::Service;
use ipnet::{IpNet, Ipv4Net};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use warren_wire::control::{DerpRegion, RawJson, RegionId};

/// What the text of a policy says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sections {
    /// Login names by group, `group:…`.
    pub(crate) groups: BTreeMap<String, Vec<String>>,
    /// Addresses by alias.
    pub(crate) hosts: BTreeMap<String, IpNet>,
    /// Addresses by name, `ipset:…`.
    pub(crate) ip_sets: BTreeMap<String, Arc<AddressSet>>,
    /// Owners by tag, `tag:…`.
    pub(crate) tag_owners: BTreeMap<String, Vec<TagOwner>>,
    /// Assertions by posture, `posture:…`; all of one must hold.
    pub(crate) postures: BTreeMap<String, Vec<Assertion>>,
    /// Rules: `grants` in order, then `acls` in order, each destination of those on its own.
    pub(crate) grants: Vec<Grant>,
    /// Where in the text each of [`Self::grants`] stands, as a byte offset; the same length.
    pub(crate) grant_places: Vec<usize>,
    pub(crate) auto_approvers: AutoApprovers,
    /// SSH rules in order.
    pub(crate) ssh: Vec<SshGrant>,
    pub(crate) tests: Vec<ReachTest>,
    pub(crate) ssh_tests: Vec<SshTest>,
    pub(crate) node_attributes: Vec<NodeAttributes>,
    /// Relay regions that the policy adds or replaces; `None` takes one of the server's away.
    pub(crate) relay_regions: BTreeMap<RegionId, Option<DerpRegion>>,
    /// Whether none of the server's own regions is used.
    pub(crate) omit_default_regions: bool,
    /// Whether nodes have no IPv4 address.
    pub(crate) disable_ipv4: bool,
    /// Whether nodes bind a port by chance.
    pub(crate) randomize_client_port: bool,
    /// How macOS routes 100.64.0.0/10: empty, `mac-always` or `mac-never`.
    pub(crate) one_cgnat_route: String,
}

/// The common form of all rules: sources reach destinations with services, or hold capabilities there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    /// Each once; shared by all destinations of a rule, since both lists may be long.
    pub(crate) sources: Arc<[Selector]>,
    pub(crate) destinations: Vec<Selector>,
    /// Traffic that passes; may be empty if there are capabilities.
    pub(crate) services: Vec<Service>,
    /// Capabilities with their arguments; may be empty if there are services.
    pub(crate) app: Arc<BTreeMap<String, Vec<RawJson>>>,
    /// Tags of the nodes through which alone the destinations are reached; empty is any.
    pub(crate) via: Vec<String>,
    /// Postures of which a source must have one, with the default already put in; empty demands nothing.
    pub(crate) postures: Arc<[String]>,
    /// When the rule holds.
    pub(crate) validity: Validity,
}

/// Who may give a tag to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TagOwner {
    Tag(String),
    /// A selector of users: [`Selector::User`], [`Selector::UsersOfDomain`], [`Selector::Group`], [`Selector::Members`]
    /// or [`Selector::Role`]; or [`Selector::Tagged`].
    Nodes(Selector),
}

/// Whose routes need no administrator. Selectors are users, groups, tags, autogroups.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct AutoApprovers {
    /// By prefix, which covers all longer ones; never a default route.
    pub(crate) routes: BTreeMap<IpNet, Vec<Selector>>,
    /// For both default routes.
    pub(crate) exit_node: Vec<Selector>,
    /// By `svc:…` or `tag:…`.
    pub(crate) services: BTreeMap<String, Vec<Selector>>,
}

/// A rule of `ssh`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SshGrant {
    pub(crate) action: SshAction,
    pub(crate) sources: Vec<Selector>,
    pub(crate) destinations: Vec<Selector>,
    pub(crate) users: Vec<SshUser>,
    /// Names of environment variables, with `*` and `?`.
    pub(crate) accept_env: Vec<String>,
    /// Tags of the nodes that record sessions.
    pub(crate) recorders: Vec<String>,
    /// Whether a session without recording is refused.
    pub(crate) enforce_recorder: bool,
    /// As in [`Grant::postures`].
    pub(crate) postures: Arc<[String]>,
}

/// What an SSH rule does with a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SshAction {
    Accept,
    /// Lets in whoever has proved their identity within this time; zero asks every time.
    Check(Duration),
}

/// A login name of an SSH rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SshUser {
    /// Any but root.
    NonRoot,
    /// The part before the `@` of the source's own login, if its domain is this.
    LocalPart { domain: String },
    /// That name.
    Name(String),
}

/// An entry of `tests`. A malformed entry is read as it stands and fails when it is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReachTest {
    /// Byte offset in the text.
    pub(crate) at: usize,
    pub(crate) source: String,
    pub(crate) protocol: String,
    pub(crate) accept: Vec<String>,
    pub(crate) deny: Vec<String>,
    /// Attributes that the source is taken to have.
    pub(crate) attributes: crate::Attributes,
}

/// An entry of `sshTests`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SshTest {
    /// Byte offset in the text.
    pub(crate) at: usize,
    pub(crate) source: String,
    pub(crate) destinations: Vec<String>,
    pub(crate) accept: Vec<String>,
    pub(crate) check: Vec<String>,
    pub(crate) deny: Vec<String>,
    /// Attributes that the source is taken to have.
    pub(crate) attributes: crate::Attributes,
}

/// An entry of `nodeAttrs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeAttributes {
    pub(crate) targets: Vec<Selector>,
    /// Names without a value.
    pub(crate) attributes: Vec<String>,
    /// Capabilities with values.
    pub(crate) app: BTreeMap<String, Vec<RawJson>>,
    /// Where new nodes get their IPv4 address from.
    pub(crate) ip_pool: Vec<Ipv4Net>,
}
