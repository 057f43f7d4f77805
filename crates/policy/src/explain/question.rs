//! Reading a question: who, whom, and what traffic.

use crate::reach::{DEFAULT_PROTOCOLS, Named, Party, Traffic, node_name};
use crate::rights::protocol_name;
use crate::selector::Selector;
use crate::service::parse_protocol;
use crate::{NodeNames, Reach};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use warren_wire::control::NodeId;

/// Most devices that one side of a question may have.
pub const PARTIES_MAX: usize = 300;

/// What is wrong with a question.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuestionError {
    /// The name is none.
    #[error("{0:?} is neither a node nor a user, group, tag, host or address of this policy")]
    Unknown(String),
    /// It has no device, so that nothing can be said.
    #[error("{0:?} has no devices")]
    Nobody(String),
    /// It stands for addresses without end.
    #[error("{0:?} stands for many addresses: name one of them")]
    Many(String),
    /// It has more devices than [`PARTIES_MAX`].
    #[error("{name:?} has {count} devices: name a part of them, {PARTIES_MAX} at most")]
    TooMany {
        /// As asked.
        name: String,
        /// How many.
        count: usize,
    },
    /// The port is none.
    #[error("{0:?} is no port from 1 to 65535")]
    Port(String),
    /// The protocol is none.
    #[error("{0:?} is no protocol: write tcp, udp, icmp, sctp or a number")]
    Protocol(String),
}

/// Which traffic is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service(pub(super) Traffic);

impl Service {
    /// Takes port and protocol off a destination.
    pub(super) fn split(text: &str) -> Result<(String, Self), QuestionError> {
        let text = text.trim();
        let (rest, protocol) = match text.rsplit_once('/') {
            // What follows an address is the length of a prefix.
            Some((host, length)) if host.parse::<IpAddr>().is_ok() && length.bytes().all(|b| b.is_ascii_digit()) => {
                (text, None)
            }
            Some((rest, protocol)) => {
                let number = parse_protocol(protocol).ok().flatten();
                (rest, Some(number.ok_or_else(|| QuestionError::Protocol(protocol.to_owned()))?))
            }
            None => (text, None),
        };
        let (host, port) = split_port(rest)?;
        let protocols = match (protocol, port) {
            // Who asks for icmp means that of the address.
            (Some(1), None) => vec![1, 58],
            (Some(protocol), _) => vec![protocol],
            (None, Some(_)) => vec![6],
            (None, None) => Vec::new(),
        };
        Ok((host, Self(Traffic { protocols, port })))
    }
}

fn split_port(text: &str) -> Result<(String, Option<u16>), QuestionError> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return Ok((text.to_owned(), None));
    }
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => match text.rsplit_once(':') {
            Some((host, port)) if !["tag", "group", "autogroup", "ipset", "svc"].contains(&host) => (host, Some(port)),
            _ => (text, None),
        },
    };
    let number = |text: &str| text.parse().ok().filter(|port: &u16| *port > 0 && !text.starts_with('+'));
    match port {
        None | Some("*") => Ok((host.to_owned(), None)),
        Some(port) => Ok((host.to_owned(), Some(number(port).ok_or_else(|| QuestionError::Port(port.to_owned()))?))),
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Traffic { protocols, port } = &self.0;
        if protocols.is_empty() || protocols.as_slice() == DEFAULT_PROTOCOLS {
            f.write_str("any traffic")?;
        }
        let names: Vec<String> = protocols.iter().map(|protocol| protocol_name(*protocol)).collect();
        f.write_str(&names.join(" or "))?;
        port.map_or(Ok(()), |port| write!(f, " {port}"))
    }
}

/// A device, or an address that no device has.
#[derive(Debug, Clone)]
pub(super) struct Device<'a> {
    pub(super) name: String,
    /// One for each address.
    pub(super) parties: Vec<Party<'a>>,
}

/// Whom a name of a question stands for.
#[derive(Debug, Clone)]
pub(super) struct Devices {
    name: String,
    named: Named,
}

impl Devices {
    pub(super) fn of(reach: &Reach<'_>, names: &NodeNames, text: &str) -> Result<Self, QuestionError> {
        let name = text.trim().to_owned();
        let nodes: Vec<NodeId> = names.iter().filter(|(_, known)| **known == name).map(|(node, _)| *node).collect();
        if !nodes.is_empty() {
            return Ok(Self { name, named: Named::Nodes(nodes) });
        }
        let unknown = || QuestionError::Unknown(name.clone());
        let selector = Selector::parse(&name).map_err(|_| unknown())?;
        let sections = &reach.policy.sections;
        let has_users = || reach.users(&selector).is_some_and(|users| !users.is_empty());
        let known = match &selector {
            Selector::Host(host) => sections.hosts.contains_key(host),
            Selector::Tag(tag) => sections.tag_owners.contains_key(tag) || !reach.devices_with(tag).is_empty(),
            Selector::User(_) => has_users(),
            Selector::Group(group) => sections.groups.contains_key(group) || has_users(),
            Selector::Any
            | Selector::Prefix(_)
            | Selector::IpSet(_)
            | Selector::Service(_)
            | Selector::UsersOfDomain(_)
            | Selector::Members
            | Selector::Role(_)
            | Selector::Tagged
            | Selector::Shared
            | Selector::Everywhere
            | Selector::Internet
            | Selector::OwnDevices => true,
        };
        if !known {
            return Err(unknown());
        }
        let named = Named::of(reach, &selector).ok_or_else(|| QuestionError::Many(name.clone()))?;
        Ok(Self { name, named })
    }

    /// Returns the devices, each with its addresses.
    pub(super) fn list<'a>(&'a self, reach: &Reach<'a>, names: &NodeNames) -> Result<Vec<Device<'a>>, QuestionError> {
        let mut by_node: BTreeMap<Option<NodeId>, Vec<Device<'a>>> = BTreeMap::new();
        for party in self.named.parties(reach) {
            let known = by_node.entry(party.node).or_default();
            match (party.node, known.last_mut()) {
                // Addresses of one device are one device, unless one of them was asked for.
                (Some(_), Some(device)) => device.parties.push(party),
                (node, _) => {
                    let name = match (&self.named, node) {
                        (Named::Address(_), _) | (_, None) => self.name.clone(),
                        (Named::Nodes(_) | Named::Owners(_), Some(node)) => node_name(node, names),
                    };
                    known.push(Device { name, parties: vec![party] });
                }
            }
        }
        let devices: Vec<Device<'a>> = by_node.into_values().flatten().collect();
        match devices.len() {
            0 => Err(QuestionError::Nobody(self.name.clone())),
            count if count > PARTIES_MAX => Err(QuestionError::TooMany { name: self.name.clone(), count }),
            _ => Ok(devices),
        }
    }

    /// Tells whether one device or address was named.
    pub(super) fn is_one(&self) -> bool {
        match &self.named {
            Named::Address(_) => true,
            Named::Nodes(nodes) => nodes.len() == 1,
            Named::Owners(_) => false,
        }
    }

    /// Tells whether a node is among those that were named.
    pub(super) fn has(&self, reach: &Reach<'_>, node: NodeId) -> bool {
        self.named.parties(reach).iter().any(|party| party.node == Some(node))
    }
}
