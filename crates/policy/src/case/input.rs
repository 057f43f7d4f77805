//! Reading a case.

use crate::{AttributeValue, Attributes, Directory, DirectoryNode, DirectoryUser, NodeNames, Owner, Role};
use ipnet::IpNet;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use warren_wire::control::{NodeId, UserId};

/// Largest case that is read, in bytes: a policy and 100,000 nodes fit.
pub const CASE_MAX_BYTES: usize = 64 << 20;

/// Domains in which everybody can have a login; they belong to no tailnet.
const PUBLIC_DOMAINS: [&str; 14] = [
    "gmail.com",
    "googlemail.com",
    "outlook.com",
    "hotmail.com",
    "live.com",
    "icloud.com",
    "me.com",
    "yahoo.com",
    "gmx.net",
    "web.de",
    "proton.me",
    "protonmail.com",
    "github",
    "passkey",
];

/// A case, read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Case {
    /// Text of the policy; empty if the case has none.
    pub policy: String,
    /// Users and nodes.
    pub directory: Directory,
    /// Names of the nodes.
    pub names: NodeNames,
    /// Routes that nodes offer, approved or not.
    pub offered: BTreeMap<NodeId, BTreeSet<IpNet>>,
    /// Name of the tailnet: the login of its owner.
    pub tailnet: String,
    /// Whether clients are told to update themselves.
    pub automatic_updates: bool,
}

/// What is wrong with a case.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CaseError {
    /// It is larger than [`CASE_MAX_BYTES`].
    #[error("the case has more than {CASE_MAX_BYTES} bytes")]
    TooLarge,
    /// It is no JSON.
    #[error("the case is not JSON: {0}")]
    Syntax(String),
    /// A value is of another kind than it must be.
    #[error("the case: {place} must be {wanted}")]
    Kind {
        /// Where.
        place: String,
        /// What it must be.
        wanted: &'static str,
    },
    /// A node names a user that is not among the users.
    #[error("the case: node {node:?} is of user {user:?}, who is not among the users")]
    UnknownUser {
        /// Name of the node.
        node: String,
        /// The user.
        user: String,
    },
    /// A node has neither a user nor tags.
    #[error("the case: node {node:?} has neither a user nor tags")]
    NoOwner {
        /// Name of the node.
        node: String,
    },
    /// Something that must be unique is there twice.
    #[error("the case: {what} {value:?} is there twice")]
    Twice {
        /// What it is.
        what: &'static str,
        /// The value.
        value: String,
    },
}

impl Case {
    /// Reads a case from JSON: `policy`, `users`, `nodes`, `settings` as recorded cases have them; what else is there is
    /// passed over.
    ///
    /// Beyond the recorded form a user may have a `role` and `groups`, a node an `id`, `online` and `attributes`. Without
    /// roles the first user is the owner and the others are administrators, as in the recorded tailnets.
    ///
    /// # Errors
    /// [`CaseError`], with the place.
    pub fn read(text: &str) -> Result<Self, CaseError> {
        if text.len() > CASE_MAX_BYTES {
            return Err(CaseError::TooLarge);
        }
        let value: Value = serde_json::from_str(text).map_err(|error| CaseError::Syntax(error.to_string()))?;
        let case = value.as_object().ok_or_else(|| kind("it", "an object"))?;
        let policy = match case.get("policy") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(object @ Value::Object(_)) => object.to_string(),
            Some(_) => return Err(kind("policy", "a text")),
        };
        let mut read = Self { policy, ..Self::default() };
        let user_names = read.read_users(case)?;
        read.read_nodes(case, &user_names)?;
        let settings = case.get("settings").and_then(|settings| settings.get("settings"));
        read.automatic_updates =
            settings.and_then(|settings| settings.get("devices_auto_updates_on")) == Some(&Value::Bool(true));
        Ok(read)
    }

    /// Returns the users' numbers by all names that nodes may call them.
    fn read_users(&mut self, case: &Map<String, Value>) -> Result<BTreeMap<String, UserId>, CaseError> {
        let mut by_name = BTreeMap::new();
        let mut logins = BTreeSet::new();
        for (position, entry) in (0_i64..).zip(list(case, "users", "users")?) {
            let place = format!("users[{position}]");
            let entry = entry.as_object().ok_or_else(|| kind(&place, "an object"))?;
            let id = UserId(number(entry, "id", &place)?.unwrap_or(position));
            let name = text(entry, "name", &place)?.unwrap_or_default();
            let login = text(entry, "email", &place)?.filter(|email| !email.is_empty()).unwrap_or(name);
            if login.is_empty() {
                return Err(kind(&format!("{place}.email"), "the user's login name"));
            }
            if !logins.insert(login) {
                return Err(CaseError::Twice { what: "user", value: login.to_owned() });
            }
            let first = position == 0;
            let role = match text(entry, "role", &place)? {
                None if first => Role::Owner,
                None => Role::Admin,
                Some(role) => role_of(role).ok_or_else(|| kind(&format!("{place}.role"), "a role"))?,
            };
            if first {
                login.clone_into(&mut self.tailnet);
                let domain = login.rsplit_once('@').map(|(_, domain)| domain.to_owned());
                self.directory.domains.extend(domain.filter(|domain| !PUBLIC_DOMAINS.contains(&domain.as_str())));
            }
            let groups = texts(entry, "groups", &place)?.map(str::to_owned).collect();
            let user = DirectoryUser { login: login.to_owned(), role, groups };
            if self.directory.users.insert(id, user).is_some() {
                return Err(CaseError::Twice { what: "user number", value: id.to_string() });
            }
            by_name.insert(id.to_string(), id);
            by_name.insert(login.to_owned(), id);
            if !name.is_empty() {
                by_name.entry(name.to_owned()).or_insert(id);
            }
        }
        Ok(by_name)
    }

    fn read_nodes(&mut self, case: &Map<String, Value>, users: &BTreeMap<String, UserId>) -> Result<(), CaseError> {
        let empty = Map::new();
        let nodes = match case.get("nodes") {
            None | Some(Value::Null) => &empty,
            Some(Value::Object(nodes)) => nodes,
            Some(_) => return Err(kind("nodes", "an object of nodes by name")),
        };
        // Numbers decide who is the way to a subnet that several offer; without them, names do.
        let mut order: Vec<(&String, &Value)> = nodes.iter().collect();
        order.sort_by_key(|(name, _)| *name);
        let mut addresses = BTreeSet::new();
        for (position, (name, entry)) in (1_i64..).zip(order) {
            let place = format!("node {name:?}");
            let entry = entry.as_object().ok_or_else(|| kind(&place, "an object"))?;
            let id = NodeId(number(entry, "id", &place)?.unwrap_or(position));
            let node = read_node(name, entry, users)?;
            if let Some(taken) = node.addresses.iter().find(|address| !addresses.insert(**address)) {
                return Err(CaseError::Twice { what: "address", value: taken.to_string() });
            }
            if self.directory.nodes.insert(id, node).is_some() {
                return Err(CaseError::Twice { what: "node number", value: id.to_string() });
            }
            self.names.insert(id, name.clone());
            self.offered.insert(id, routes(entry, "routable_ips", &place)?);
        }
        Ok(())
    }
}

fn read_node(
    name: &str,
    entry: &Map<String, Value>,
    users: &BTreeMap<String, UserId>,
) -> Result<DirectoryNode, CaseError> {
    let place = format!("node {name:?}");
    let tags: BTreeSet<String> = texts(entry, "tags", &place)?.map(str::to_owned).collect();
    let user = match entry.get("user") {
        None | Some(Value::Null) => None,
        Some(Value::String(user)) => Some(user.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        Some(_) => return Err(kind(&format!("{place}.user"), "a user")),
    };
    let owner = match user.filter(|user| tags.is_empty() && !user.is_empty()) {
        _ if !tags.is_empty() => Owner::Tags(tags),
        None => return Err(CaseError::NoOwner { node: name.to_owned() }),
        Some(user) => match users.get(&user) {
            Some(id) => Owner::User(*id),
            None => return Err(CaseError::UnknownUser { node: name.to_owned(), user }),
        },
    };
    let mut addresses = Vec::new();
    for family in ["ipv4", "ipv6"] {
        if let Some(address) = text(entry, family, &place)?.filter(|address| !address.is_empty()) {
            let address: IpAddr = address.parse().map_err(|_| kind(&format!("{place}.{family}"), "an address"))?;
            addresses.push(address);
        }
    }
    let offered = routes(entry, "routable_ips", &place)?;
    let approved = routes(entry, "approved_routes", &place)?;
    Ok(DirectoryNode {
        owner,
        addresses,
        approved_routes: offered.intersection(&approved).copied().collect(),
        online: entry.get("online") != Some(&Value::Bool(false)),
        attributes: attributes(entry, &place)?,
    })
}

fn attributes(entry: &Map<String, Value>, place: &str) -> Result<Attributes, CaseError> {
    let place = format!("{place}.attributes");
    let members = match entry.get("attributes") {
        None | Some(Value::Null) => return Ok(Attributes::new()),
        Some(Value::Object(members)) => members,
        Some(_) => return Err(kind(&place, "an object")),
    };
    let attribute = |(name, value): (&String, &Value)| {
        let value = match value {
            Value::String(text) => AttributeValue::Text(text.clone()),
            Value::Bool(value) => AttributeValue::Bool(*value),
            Value::Number(number) => AttributeValue::Number(number.as_f64().unwrap_or_default()),
            Value::Null | Value::Array(_) | Value::Object(_) => {
                return Err(kind(&format!("{place}.{name}"), "a text, a number, true or false"));
            }
        };
        Ok((name.clone(), value))
    };
    members.iter().map(attribute).collect()
}

fn routes(entry: &Map<String, Value>, name: &str, place: &str) -> Result<BTreeSet<IpNet>, CaseError> {
    let route = |text: &str| {
        let parsed = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        parsed.map(|route| route.trunc()).map_err(|_| kind(&format!("{place}.{name}"), "a list of prefixes"))
    };
    texts(entry, name, place)?.map(route).collect()
}

fn role_of(text: &str) -> Option<Role> {
    Some(match text {
        "owner" => Role::Owner,
        "admin" => Role::Admin,
        "it-admin" => Role::ItAdmin,
        "network-admin" => Role::NetworkAdmin,
        "billing-admin" => Role::BillingAdmin,
        "auditor" => Role::Auditor,
        "member" => Role::Member,
        _ => return None,
    })
}

fn kind(place: &str, wanted: &'static str) -> CaseError {
    CaseError::Kind { place: place.to_owned(), wanted }
}

fn list<'a>(entry: &'a Map<String, Value>, name: &str, place: &str) -> Result<&'a [Value], CaseError> {
    match entry.get(name) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(entries)) => Ok(entries),
        Some(_) => Err(kind(place, "a list")),
    }
}

fn texts<'a>(
    entry: &'a Map<String, Value>,
    name: &str,
    place: &str,
) -> Result<impl Iterator<Item = &'a str> + use<'a>, CaseError> {
    let place = format!("{place}.{name}");
    let entries = list(entry, name, &place)?;
    if entries.iter().any(|entry| !entry.is_string()) {
        return Err(kind(&place, "a list of texts"));
    }
    Ok(entries.iter().filter_map(Value::as_str))
}

fn text<'a>(entry: &'a Map<String, Value>, name: &str, place: &str) -> Result<Option<&'a str>, CaseError> {
    match entry.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(kind(&format!("{place}.{name}"), "a text")),
    }
}

fn number(entry: &Map<String, Value>, name: &str, place: &str) -> Result<Option<i64>, CaseError> {
    match entry.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) if number.as_i64().is_some() => Ok(number.as_i64()),
        Some(Value::String(text)) if text.parse::<i64>().is_ok() => Ok(text.parse().ok()),
        Some(_) => Err(kind(&format!("{place}.{name}"), "a whole number")),
    }
}
