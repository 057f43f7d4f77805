//! Nodes.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use jiff::Timestamp;
use warren_wire::control::{Hostinfo, NodeId};

use super::auth_keys::sorted_tags;
use super::desk::Place;
use super::users::rank;
use super::{AdminError, Desk, Expiry, NodeView, invalid, not_found, tag_denied};
use crate::authority::{Right, Scope, Standing};
use crate::model::{NodeRecord, NodeState, Owner};
use crate::tailnet::nodes::Node;
use crate::tailnet::snapshot::Snapshot;
use crate::tailnet::work::Work;

/// A node with all that it says about itself.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    /// What administration shows.
    pub(crate) view: NodeView,
    state: Arc<NodeState>,
}

impl Device {
    /// Returns what it says about itself.
    pub(crate) fn hostinfo(&self) -> Option<&Hostinfo> {
        self.state.hostinfo.as_ref()
    }
}

impl Desk {
    /// Returns the nodes of a tailnet, or of all.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub fn nodes(&self, tailnet: Option<&str>) -> Result<Vec<NodeView>, AdminError> {
        let mut nodes = Vec::new();
        for place in self.places(tailnet, Scope::DevicesCore.read())? {
            let snapshot = place.snapshot();
            nodes.extend(snapshot.nodes.iter().map(|node| view(&snapshot, node)));
        }
        Ok(nodes)
    }

    /// Returns the nodes of a tailnet with all that they say about themselves.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub(crate) fn devices(&self, tailnet: &str) -> Result<Vec<Device>, AdminError> {
        let snapshot = self.place(tailnet, Scope::DevicesCore.read())?.snapshot();
        Ok(snapshot.nodes.iter().map(|node| device(&snapshot, node)).collect())
    }

    /// Returns one node with all that it says about itself.
    ///
    /// # Errors
    /// As [`Self::node`].
    pub(crate) fn device(&self, tailnet: &str, node: &str) -> Result<Device, AdminError> {
        let (place, id) = self.find(Some(tailnet), node, Scope::DevicesCore.read())?;
        let snapshot = place.snapshot();
        let found = snapshot.nodes.get(id).ok_or_else(|| not_found("node", node))?;
        Ok(device(&snapshot, found))
    }

    /// Returns one node: `node` is its number, stable ID, name, full name or an address; `#` and either of the first two
    /// is that and nothing else, whatever other nodes are called.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Ambiguous`].
    pub fn node(&self, tailnet: Option<&str>, node: &str) -> Result<NodeView, AdminError> {
        let (place, id) = self.find(tailnet, node, Scope::DevicesCore.read())?;
        shown(&place.snapshot(), id)
    }

    /// Lets a node take part.
    ///
    /// # Errors
    /// As [`Self::node`].
    pub async fn approve_node(&self, tailnet: Option<&str>, node: &str) -> Result<NodeView, AdminError> {
        self.edit((tailnet, node), Scope::DevicesCore.write(), "node.approve", |record, _, _| {
            record.approved = true;
            Ok(())
        })
        .await
    }

    /// Lets a node take part no more, until it is approved.
    ///
    /// # Errors
    /// As [`Self::node`].
    pub async fn disapprove_node(&self, tailnet: Option<&str>, node: &str) -> Result<NodeView, AdminError> {
        self.edit((tailnet, node), Scope::DevicesCore.write(), "node.disapprove", |record, _, _| {
            record.approved = false;
            Ok(())
        })
        .await
    }

    /// Gives a node another IPv4 address, within 100.64.0.0/10; its IPv6 address follows.
    ///
    /// # Errors
    /// As [`Self::node`]; [`AdminError::Taken`], [`AdminError::Invalid`].
    pub async fn set_node_address(
        &self,
        tailnet: Option<&str>,
        node: &str,
        address: Ipv4Addr,
    ) -> Result<NodeView, AdminError> {
        self.edit((tailnet, node), Scope::DevicesCore.write(), "node.address", move |record, work, _| {
            if record.ipv4 != address && !work.is_free(address) {
                return Err(AdminError::Taken { what: "node with the address", name: address.to_string() });
            }
            if !crate::address::is_usable(address) {
                return Err(invalid(
                    "address of a node: one of 100.64.0.0/10 outside 100.100.100.0/24",
                    &address.to_string(),
                ));
            }
            record.ipv4 = address;
            Ok(())
        })
        .await
    }

    /// Lets the key of a user's node end again as those of others do, from now on.
    ///
    /// # Errors
    /// As [`Self::node`].
    pub async fn enable_key_expiry(&self, tailnet: Option<&str>, node: &str) -> Result<NodeView, AdminError> {
        self.edit((tailnet, node), Scope::DevicesCore.write(), "node.expiry", |record, work, _| {
            if std::mem::take(&mut record.key_expiry_disabled) && record.owner != Owner::Tagged {
                record.key_expiry = work.state.tailnet.key_lifetime.end(work.now);
            }
            Ok(())
        })
        .await
    }

    /// Gives a node a name that stays; `None` lets it follow the host name again.
    ///
    /// # Errors
    /// As [`Self::node`]; [`AdminError::Taken`], [`AdminError::Invalid`].
    pub async fn rename_node(
        &self,
        tailnet: Option<&str>,
        node: &str,
        name: Option<&str>,
    ) -> Result<NodeView, AdminError> {
        if let Some(name) = name.filter(|name| !crate::name::is_label(name)) {
            return Err(invalid("node name: use lower-case letters, digits and dashes, 63 at most", name));
        }
        let name = name.map(str::to_owned);
        self.edit((tailnet, node), Scope::DevicesCore.write(), "node.rename", move |record, work, _| {
            record.name_chosen = name.is_some();
            record.name = match &name {
                Some(name) if work.free_name(name, Some(record.id)) == *name => name.clone(),
                Some(name) => return Err(AdminError::Taken { what: "node", name: name.clone() }),
                None => {
                    let info = work.state.nodes.get(record.id).and_then(|node| node.state.hostinfo.as_ref());
                    let host = info.map(|info| info.hostname.as_str()).unwrap_or_default();
                    work.free_name(&crate::name::label(host), Some(record.id))
                }
            };
            Ok(())
        })
        .await
    }

    /// Makes a node a tagged one, which no user owns; its key does not expire from then on. A node of a suspended user
    /// stays theirs.
    ///
    /// # Errors
    /// As [`Self::node`]; [`AdminError::Invalid`] for a tag or none; [`AdminError::Denied`] for tags that are not theirs to
    /// give or to take, and for nodes of a user who may more than they.
    pub async fn tag_node(&self, tailnet: Option<&str>, node: &str, tags: &[String]) -> Result<NodeView, AdminError> {
        let tags = sorted_tags(tags)?;
        if tags.is_empty() {
            return Err(invalid("list of tags", ""));
        }
        self.edit((tailnet, node), Scope::DevicesCore.write(), "node.tag", move |record, work, standing| {
            let is_new = |tag: &&String| !record.tags.contains(tag);
            if let Some(tag) = tags.iter().filter(is_new).find(|tag| !standing.may_give(&work.state.policy, tag)) {
                return Err(tag_denied(tag));
            }
            // A client acts for nodes of its tags alone.
            if standing.is_client() && !tags.iter().all(|tag| standing.may_give(&work.state.policy, tag)) {
                return Err(tag_denied(&tags.join(", ")));
            }
            let is_taken = |tag: &&String| !tags.contains(tag);
            if let Some(tag) =
                record.tags.iter().filter(is_taken).find(|tag| !standing.may_take(&work.state.policy, tag))
            {
                return Err(AdminError::Denied { reason: format!("the tag {tag} is not yours to take away") });
            }
            may_take_over(work, standing, record)?;
            if record.owner != Owner::Tagged && !record.expired_at(work.now) {
                record.key_expiry = None;
            }
            record.owner = Owner::Tagged;
            record.tags.clone_from(&tags);
            Ok(())
        })
        .await
    }

    /// Ends the time of a node's key now, or sets another end. [`Expiry::Never`] holds for later logins, too.
    ///
    /// # Errors
    /// As [`Self::node`].
    pub async fn expire_node(&self, tailnet: Option<&str>, node: &str, expiry: Expiry) -> Result<NodeView, AdminError> {
        self.edit((tailnet, node), Scope::DevicesCore.write(), "node.expiry", move |record, work, _| {
            record.key_expiry_disabled = expiry == Expiry::Never;
            record.key_expiry = match expiry {
                Expiry::Now => Some(work.now),
                Expiry::At(at) => Some(at),
                Expiry::Never => None,
            };
            Ok(())
        })
        .await
    }

    /// Removes a node.
    ///
    /// # Errors
    /// As [`Self::node`].
    pub async fn remove_node(&self, tailnet: Option<&str>, node: &str) -> Result<NodeView, AdminError> {
        let (place, id) = self.find(tailnet, node, Scope::DevicesCore.write())?;
        let view = shown(&place.snapshot(), id)?;
        let who = place.who();
        place
            .change(move |work, _| {
                present(work, id)?;
                work.remove_node(&who, "node.remove", id, None);
                Ok(())
            })
            .await?;
        Ok(view)
    }

    /// Finds a node by whatever names it.
    pub(super) fn find(&self, tailnet: Option<&str>, text: &str, right: Right) -> Result<(Place, NodeId), AdminError> {
        let wanted = text.trim_end_matches('.').to_ascii_lowercase();
        let mut found = Vec::new();
        for place in self.places(tailnet, right)? {
            let snapshot = place.snapshot();
            let named: Vec<_> = snapshot
                .nodes
                .iter()
                .filter(|node| is_called(&snapshot, node, &wanted))
                .map(|node| node.id())
                .collect();
            match named[..] {
                [] => {}
                [id] => found.push((place, id)),
                _ => return Err(AdminError::Ambiguous { name: text.to_owned() }),
            }
        }
        match (found.pop(), found.is_empty()) {
            (None, _) => Err(not_found("node", text.trim_start_matches('#'))),
            (Some(only), true) => Ok(only),
            (Some(_), false) => Err(AdminError::Ambiguous { name: text.to_owned() }),
        }
    }

    /// Changes what lasts about a node, named by tailnet and name; nothing is written if nothing changes.
    pub(super) async fn edit(
        &self,
        (tailnet, node): (Option<&str>, &str),
        right: Right,
        what: &'static str,
        edit: impl Fn(&mut NodeRecord, &Work<'_>, &Standing) -> Result<(), AdminError> + Send + 'static,
    ) -> Result<NodeView, AdminError> {
        let (place, id) = self.find(tailnet, node, right)?;
        let who = place.who();
        place
            .change(move |work, standing| {
                let node = present(work, id)?;
                let mut record = (*node.record).clone();
                edit(&mut record, work, standing)?;
                if record != *node.record {
                    work.put_node(&who, what, &node, record);
                }
                Ok(())
            })
            .await?;
        shown(&place.snapshot(), id)
    }
}

/// Tells whether a node may be taken from its user, who loses it for good.
fn may_take_over(work: &Work<'_>, standing: &Standing, record: &NodeRecord) -> Result<(), AdminError> {
    if record.suspended {
        let reason = "its owner is suspended; restore them first, or remove the node".to_owned();
        return Err(AdminError::Denied { reason });
    }
    let Owner::User(owner) = record.owner else { return Ok(()) };
    let is_own = standing.user.as_ref().is_some_and(|user| user.id == owner);
    let Some(user) = work.state.users.get(&owner).filter(|_| !is_own) else { return Ok(()) };
    // Clients have no rank; they are made to tag what comes in, and their own tags bound them.
    if standing.is_client() || standing.may_handle(user.role) { Ok(()) } else { Err(rank(user.role)) }
}

pub(super) fn present(work: &Work<'_>, id: NodeId) -> Result<Arc<Node>, AdminError> {
    work.state.nodes.get(id).cloned().ok_or_else(|| not_found("node", &id.to_string()))
}

fn is_called(snapshot: &Snapshot, node: &Node, wanted: &str) -> bool {
    let record = &node.record;
    if let Some(id) = wanted.strip_prefix('#') {
        return record.id.to_string() == id || record.stable_id() == id;
    }
    let address = wanted.parse::<IpAddr>().ok();
    record.name == wanted
        || record.id.to_string() == wanted
        || record.stable_id() == wanted
        || snapshot.fqdn(node).strip_suffix('.') == Some(wanted)
        || address == Some(IpAddr::V4(record.ipv4))
        || address == Some(IpAddr::V6(record.ipv6()))
}

pub(super) fn shown(snapshot: &Snapshot, id: NodeId) -> Result<NodeView, AdminError> {
    let node = snapshot.nodes.get(id).ok_or_else(|| not_found("node", &id.to_string()))?;
    Ok(view(snapshot, node))
}

fn device(snapshot: &Snapshot, node: &Node) -> Device {
    Device { view: view(snapshot, node), state: Arc::clone(&node.state) }
}

fn view(snapshot: &Snapshot, node: &Node) -> NodeView {
    let (record, state) = (&node.record, &node.state);
    let user = match record.owner {
        Owner::User(id) => snapshot.users.get(&id).map(|user| user.login.clone()),
        Owner::Tagged => None,
    };
    let info = |field: fn(&warren_wire::control::Hostinfo) -> &String| {
        state.hostinfo.as_ref().map(|info| field(info).clone()).unwrap_or_default()
    };
    let last_seen: Option<Timestamp> = if node.online { None } else { state.last_seen };
    NodeView {
        id: record.id.0,
        stable_id: record.stable_id(),
        name: record.name.clone(),
        fqdn: snapshot.fqdn(node).trim_end_matches('.').to_owned(),
        tailnet: snapshot.tailnet.name.clone(),
        user,
        tags: record.tags.clone(),
        addresses: vec![IpAddr::V4(record.ipv4), IpAddr::V6(record.ipv6())],
        offered_routes: state.offered_routes().collect(),
        approved_routes: record.approved_routes.clone(),
        machine_key: record.machine,
        node_key: record.key,
        created: record.created,
        key_expiry: record.key_expiry,
        expired: node.expired,
        key_expiry_disabled: record.key_expiry_disabled,
        approved: record.approved,
        suspended: record.suspended,
        barred: node.barred,
        ephemeral: record.ephemeral,
        online: node.online,
        last_seen,
        auth_key: record.auth_key.clone(),
        os: info(|info| &info.os),
        client_version: info(|info| &info.ipn_version),
        capability_version: state.cap,
        hostname: info(|info| &info.hostname),
        endpoints: state.endpoints.clone(),
        home_relay: state.home.map(|region| region.0),
    }
}
