//! The users and nodes that a policy speaks about.

use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use warren_wire::control::{NodeId, UserId};

/// Users and nodes of one tailnet, as of one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Directory {
    /// Users by number; all are direct members.
    pub users: BTreeMap<UserId, DirectoryUser>,
    /// Nodes by number.
    pub nodes: BTreeMap<NodeId, DirectoryNode>,
}

/// What a policy needs to know of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryUser {
    /// Login name, like `ann@example.com`, unique in the tailnet.
    pub login: String,
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
