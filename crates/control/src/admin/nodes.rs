//! Nodes, and logins that become nodes.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use warren_wire::control::NodeId;

use super::auth_keys::sorted_tags;
use super::{Admin, AdminError, Expiry, LoginState, LoginView, NodeView, invalid, not_found, user_id};
use crate::login::Claim;
use crate::model::{NodeRecord, Owner};
use crate::register::Grant;
use crate::tailnet::Tailnet;
use crate::tailnet::nodes::Node;
use crate::tailnet::snapshot::Snapshot;
use crate::tailnet::work::Work;

impl Admin {
    /// Returns the nodes of a tailnet, or of all.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub fn nodes(&self, tailnet: Option<&str>) -> Result<Vec<NodeView>, AdminError> {
        let mut nodes = Vec::new();
        for tailnet in self.chosen(tailnet)? {
            let snapshot = tailnet.snapshot();
            nodes.extend(snapshot.nodes.iter().map(|node| view(&snapshot, node)));
        }
        Ok(nodes)
    }

    /// Returns one node: `node` is its number, stable ID, name, full name or an address.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Ambiguous`].
    pub fn node(&self, tailnet: Option<&str>, node: &str) -> Result<NodeView, AdminError> {
        let (tailnet, id) = self.find(tailnet, node)?;
        shown(&tailnet.snapshot(), id)
    }

    /// Lets a node take part.
    ///
    /// # Errors
    /// As [`Self::node`].
    pub async fn approve_node(&self, tailnet: Option<&str>, node: &str) -> Result<NodeView, AdminError> {
        self.edit(tailnet, node, "node.approve", |record, _| {
            record.approved = true;
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
        self.edit(tailnet, node, "node.rename", move |record, work| {
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

    /// Makes a node a tagged one, which no user owns; its key does not expire from then on.
    ///
    /// # Errors
    /// As [`Self::node`]; [`AdminError::Invalid`] for a tag or none.
    pub async fn tag_node(&self, tailnet: Option<&str>, node: &str, tags: &[String]) -> Result<NodeView, AdminError> {
        let tags = sorted_tags(tags)?;
        if tags.is_empty() {
            return Err(invalid("list of tags", ""));
        }
        self.edit(tailnet, node, "node.tag", move |record, work| {
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
        self.edit(tailnet, node, "node.expiry", move |record, work| {
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
        let (tailnet, id) = self.find(tailnet, node)?;
        let view = shown(&tailnet.snapshot(), id)?;
        let who = self.who.clone();
        tailnet
            .change(move |work: &mut Work<'_>| {
                present(work, id)?;
                work.remove_node(&who, "node.remove", id, None);
                Ok::<_, AdminError>(())
            })
            .await?;
        Ok(view)
    }

    /// Returns the logins that wait, and those decided lately.
    #[must_use]
    pub fn logins(&self) -> Vec<LoginView> {
        self.control.logins().list(self.control.clock(), |id| self.control.login_url(id))
    }

    /// Returns one login, for the page that its URL shows.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub fn login(&self, id: &str) -> Result<LoginView, AdminError> {
        let login = self.control.logins().view(self.control.clock(), id, |id| self.control.login_url(id));
        login.ok_or_else(|| not_found("login", id))
    }

    /// Lets the machine of a login in as a node of that user; the register call that waits returns.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Refused`].
    pub async fn approve_login(&self, id: &str, tailnet: &str, user: &str) -> Result<NodeView, AdminError> {
        let tailnet = self.tailnet(tailnet)?;
        let user = user_id(tailnet.snapshot().users.values(), user)?;
        let claim = self.control.logins().claim(self.control.clock(), id).ok_or_else(|| not_found("login", id))?;
        self.let_in(claim, &tailnet, Grant::Approved { user, by: self.who.clone(), is: None }).await
    }

    /// Lets the machine of a login in as a node of the person who logged in and confirmed it. They become a user; or,
    /// with `user`, they are that user from now on, who never logged in before.
    ///
    /// # Errors
    /// As [`Self::approve_login`]; [`AdminError::Invalid`] if nobody logged in, [`AdminError::Taken`] if the user is
    /// somebody else.
    pub async fn approve_person(&self, id: &str, tailnet: &str, user: Option<&str>) -> Result<NodeView, AdminError> {
        let tailnet = self.tailnet(tailnet)?;
        let claim = self.control.logins().claim(self.control.clock(), id).ok_or_else(|| not_found("login", id))?;
        let person = claim.person.clone().ok_or_else(|| {
            invalid("login that somebody confirmed: name a user with --user, or wait until they have logged in", id)
        })?;
        let grant = match user {
            None => Grant::Person { person, approved_by: Some(self.who.clone()) },
            Some(login) => {
                let snapshot = tailnet.snapshot();
                let user = user_id(snapshot.users.values(), login)?;
                let identity = snapshot.users.get(&user).and_then(|user| user.identity.clone());
                if identity.is_some_and(|identity| identity != person.identity) {
                    return Err(AdminError::Taken { what: "person who is", name: login.to_owned() });
                }
                Grant::Approved { user, by: self.who.clone(), is: Some(person.identity.clone()) }
            }
        };
        self.let_in(claim, &tailnet, grant).await
    }

    async fn let_in(&self, claim: Claim<'_>, tailnet: &Tailnet, grant: Grant) -> Result<NodeView, AdminError> {
        let refused = |reason: crate::register::Refusal| AdminError::Refused { reason: reason.to_string() };
        let node = self.control.let_in(claim, tailnet, grant).await.map_err(refused)?;
        shown(&tailnet.snapshot(), node.id())
    }

    /// Refuses a login.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub fn reject_login(&self, id: &str) -> Result<LoginView, AdminError> {
        let claim = self.control.logins().claim(self.control.clock(), id).ok_or_else(|| not_found("login", id))?;
        claim.decide(LoginState::Rejected);
        self.login(id)
    }

    /// Finds a node by whatever names it.
    pub(super) fn find(&self, tailnet: Option<&str>, text: &str) -> Result<(Tailnet, NodeId), AdminError> {
        let wanted = text.trim_end_matches('.').to_ascii_lowercase();
        let mut found = Vec::new();
        for tailnet in self.chosen(tailnet)? {
            let snapshot = tailnet.snapshot();
            let named = snapshot.nodes.iter().filter(|node| is_called(&snapshot, node, &wanted)).map(|node| node.id());
            found.extend(named.map(|id| (tailnet.clone(), id)));
        }
        match (found.pop(), found.is_empty()) {
            (None, _) => Err(not_found("node", text)),
            (Some(only), true) => Ok(only),
            (Some(_), false) => Err(AdminError::Ambiguous { name: text.to_owned() }),
        }
    }

    /// Changes what lasts about a node; nothing is written if nothing changes.
    pub(super) async fn edit(
        &self,
        tailnet: Option<&str>,
        node: &str,
        what: &'static str,
        edit: impl Fn(&mut NodeRecord, &Work<'_>) -> Result<(), AdminError> + Send + 'static,
    ) -> Result<NodeView, AdminError> {
        let (tailnet, id) = self.find(tailnet, node)?;
        let who = self.who.clone();
        tailnet
            .change(move |work: &mut Work<'_>| {
                let node = present(work, id)?;
                let mut record = (*node.record).clone();
                edit(&mut record, work)?;
                if record != *node.record {
                    work.put_node(&who, what, &node, record);
                }
                Ok::<_, AdminError>(())
            })
            .await?;
        shown(&tailnet.snapshot(), id)
    }
}

fn present(work: &Work<'_>, id: NodeId) -> Result<Arc<Node>, AdminError> {
    work.state.nodes.get(id).cloned().ok_or_else(|| not_found("node", &id.to_string()))
}

fn is_called(snapshot: &Snapshot, node: &Node, wanted: &str) -> bool {
    let record = &node.record;
    let address = wanted.parse::<IpAddr>().ok();
    record.name == wanted
        || record.id.to_string() == wanted
        || record.stable_id() == wanted
        || snapshot.fqdn(node).strip_suffix('.') == Some(wanted)
        || address == Some(IpAddr::V4(record.ipv4))
        || address == Some(IpAddr::V6(record.ipv6()))
}

fn shown(snapshot: &Snapshot, id: NodeId) -> Result<NodeView, AdminError> {
    let node = snapshot.nodes.get(id).ok_or_else(|| not_found("node", &id.to_string()))?;
    Ok(view(snapshot, node))
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
        approved: record.approved,
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
