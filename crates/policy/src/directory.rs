//! The users and nodes that a policy speaks about.

use crate::Attributes;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use warren_wire::control::{NodeId, UserId};

/// Users and nodes of one tailnet, as of one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Directory {
    /// Domains of logins that are the tailnet's own, without public mail domains, like `example.com`.
    pub domains: BTreeSet<String>,
    /// Users by number; all are direct members.
    pub users: BTreeMap<UserId, DirectoryUser>,
    /// Nodes by number.
    pub nodes: BTreeMap<NodeId, DirectoryNode>,
}

/// Names of nodes, for questions and answers of people.
pub type NodeNames = BTreeMap<NodeId, String>;

/// What a policy needs to know of a user.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DirectoryUser {
    /// Login name, like `ann@example.com`, unique in the tailnet.
    pub login: String,
    /// What they may do to the tailnet.
    pub role: Role,
    /// Groups that the identity provider says they are in, each as the policy writes it: `group:name@domain`.
    pub groups: BTreeSet<String>,
}

/// What a user may do to the tailnet; each is also an autogroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Role {
    /// `autogroup:owner`.
    Owner,
    /// `autogroup:admin`.
    Admin,
    /// `autogroup:it-admin`.
    ItAdmin,
    /// `autogroup:network-admin`.
    NetworkAdmin,
    /// `autogroup:billing-admin`.
    BillingAdmin,
    /// `autogroup:auditor`.
    Auditor,
    /// None of these; an autogroup of its own it is not, since `autogroup:member` covers all users.
    #[default]
    Member,
}

/// What a policy needs to know of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryNode {
    /// Whose it is.
    pub owner: Owner,
    /// Its own addresses, IPv4 before IPv6.
    pub addresses: Vec<IpAddr>,
    /// Routes that it offers and that were approved, exit routes included.
    pub approved_routes: Vec<IpNet>,
    /// Whether it is connected to the server; only such a node is chosen as the way to a subnet.
    pub online: bool,
    /// What postures look at.
    pub attributes: Attributes,
}

/// Whose a node is: a tagged node belongs to nobody.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// An untagged node of a user.
    User(UserId),
    /// A node with tags, each like `tag:web`; never empty.
    Tags(BTreeSet<String>),
}

impl DirectoryNode {
    /// Returns the approved routes that are not exit routes.
    pub fn subnet_routes(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.approved_routes.iter().copied().filter(|route| !is_exit_route(route))
    }

    /// Tells whether an exit route was approved.
    #[must_use]
    pub fn is_exit_node(&self) -> bool {
        self.approved_routes.iter().any(is_exit_route)
    }
}

fn is_exit_route(route: &IpNet) -> bool {
    route.prefix_len() == 0
}
