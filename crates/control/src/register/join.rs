//! Letting a machine in: a new node, or a known one with a new key.

use std::sync::Arc;

use warren_policy::Attributes;
use warren_wire::control::{Hostinfo, RegisterRequest, UserId};
use warren_wire::key::{MachineKey, NodeKey};

use super::{Refusal, find};
use crate::auth_key::{self, AuthKeyError, Shown};
use crate::model::TAGS_MAX;
use crate::model::{NodeRecord, NodeState, Owner, UserIdentity, UserRecord, Who};
use crate::oidc::Person;
use crate::sign_in;
use crate::tailnet::lease_end;
use crate::tailnet::nodes::Node;
use crate::tailnet::report::apply_hostinfo;
use crate::tailnet::work::Work;

/// By what right a machine comes in.
#[derive(Debug, Clone)]
pub(crate) enum Grant {
    /// An auth key, to be checked.
    AuthKey(Shown),
    /// Somebody approved it for that user, who is that person from now on.
    Approved { user: UserId, by: Who, is: Option<UserIdentity> },
    /// A person logged in who may be a user of this tailnet; perhaps an administrator said so.
    Person { person: Box<Person>, approved_by: Option<Who> },
}

/// A machine that wants to come in.
#[derive(Debug, Clone)]
pub(crate) struct Join {
    machine: MachineKey,
    key: NodeKey,
    old_key: Option<NodeKey>,
    hostinfo: Option<Hostinfo>,
    cap: u16,
    ephemeral: bool,
    grant: Grant,
}

/// What the right allows.
struct Terms {
    who: Who,
    owner: Owner,
    tags: Vec<String>,
    /// Whether the tags are the client's wish; those of an auth key apply at the first registration only.
    tags_are_asked: bool,
    ephemeral: bool,
    approved: bool,
    auth_key: Option<String>,
}

impl Join {
    pub(crate) fn new(machine: MachineKey, request: &RegisterRequest, grant: Grant) -> Self {
        Self {
            machine,
            key: request.node_key,
            old_key: request.old_node_key,
            hostinfo: request.hostinfo.clone(),
            cap: request.version.0,
            ephemeral: request.ephemeral,
            grant,
        }
    }

    /// Checks the right and carries it out, in one transaction.
    pub(crate) fn carry_out(&self, work: &mut Work<'_>) -> Result<Arc<Node>, Refusal> {
        // A refused change leaves no trace, so a user that is made here is gone again then.
        let terms = self.terms(work)?;
        let known = self.known(work, terms.owner)?;
        // All is checked; from here on the state changes.
        let node = match known {
            Some(node) => self.renew(work, &terms, &node),
            None => self.create(work, &terms)?,
        };
        if let Some(id) = &terms.auth_key {
            work.use_auth_key(&terms.who, id);
        }
        work.fresh.push(node.id());
        Ok(node)
    }

    fn terms(&self, work: &mut Work<'_>) -> Result<Terms, Refusal> {
        let requested = self.requested_tags()?;
        match &self.grant {
            Grant::AuthKey(shown) => {
                let record = work.auth_key(shown).ok_or(AuthKeyError::Unknown)?;
                auth_key::check_of(&record, &work.state.users, work.now)?;
                if let Owner::User(user) = record.owner {
                    self.check_owner(work, user)?;
                    // A key with tags replaces the client's wish; one without does not give the right to any.
                    self.check_tags(work, user, &requested)?;
                }
                let tags_are_asked = record.tags.is_empty();
                let tags = if tags_are_asked { requested } else { record.tags };
                Ok(Terms {
                    who: Who::machine(&self.machine),
                    owner: if tags.is_empty() { record.owner } else { Owner::Tagged },
                    tags,
                    tags_are_asked,
                    ephemeral: record.ephemeral || self.ephemeral,
                    approved: record.pre_approved || !work.state.tailnet.machine_approval,
                    auth_key: Some(record.id),
                })
            }
            Grant::Approved { user, by, is } => {
                if let Some(identity) = is {
                    link(work, by, *user, identity)?;
                }
                // Whoever approves a login on the server's command line approves the machine, too.
                self.terms_of_user(work, by.clone(), *user, requested, true)
            }
            Grant::Person { person, approved_by } => {
                let who = approved_by.clone().unwrap_or_else(|| Who::user(&person.login));
                let may_join =
                    approved_by.is_some() || person.tailnet.as_deref() == Some(work.state.tailnet.name.as_str());
                let user = sign_in::user_of(work, &who, person, may_join)?;
                let approved = approved_by.is_some() || !work.state.tailnet.machine_approval;
                self.terms_of_user(work, who, user, requested, approved)
            }
        }
    }

    fn terms_of_user(
        &self,
        work: &Work<'_>,
        who: Who,
        user: UserId,
        tags: Vec<String>,
        approved: bool,
    ) -> Result<Terms, Refusal> {
        self.check_owner(work, user)?;
        self.check_tags(work, user, &tags)?;
        Ok(Terms {
            who,
            owner: if tags.is_empty() { Owner::User(user) } else { Owner::Tagged },
            tags,
            tags_are_asked: true,
            ephemeral: self.ephemeral,
            approved,
            auth_key: None,
        })
    }

    fn requested_tags(&self) -> Result<Vec<String>, Refusal> {
        let mut tags = self.hostinfo.as_ref().map(|info| info.request_tags.clone()).unwrap_or_default();
        check_tag_form(&tags)?;
        tags.sort();
        tags.dedup();
        Ok(tags)
    }

    fn check_owner(&self, work: &Work<'_>, user: UserId) -> Result<(), Refusal> {
        match work.state.users.get(&user) {
            Some(user) if user.suspended => Err(Refusal::Suspended),
            Some(_) => Ok(()),
            None => Err(Refusal::User),
        }
    }

    /// Refuses the whole registration if one tag is refused.
    fn check_tags(&self, work: &Work<'_>, user: UserId, tags: &[String]) -> Result<(), Refusal> {
        match tags.iter().find(|tag| !work.may_tag(user, tag)) {
            Some(tag) => Err(Refusal::Tag { tag: tag.clone() }),
            None => Ok(()),
        }
    }

    /// Finds the record that goes on: of this key, of the key before, or of this machine and owner.
    fn known(&self, work: &Work<'_>, owner: Owner) -> Result<Option<Arc<Node>>, Refusal> {
        if let Some(node) = find(work, |node| node.record.key == self.key) {
            if node.record.machine != self.machine {
                return Err(Refusal::OtherMachine);
            }
            if node.record.owner != owner {
                return Err(Refusal::OtherOwner);
            }
            return Ok(Some(node));
        }
        let ours = |node: &Node| node.record.machine == self.machine && node.record.owner == owner;
        let before = find(work, |node| Some(node.record.key) == self.old_key && ours(node));
        Ok(before.or_else(|| find(work, ours)))
    }

    /// The same node with a new key, or with new time for its key: number, addresses and name stay.
    fn renew(&self, work: &mut Work<'_>, terms: &Terms, node: &Node) -> Arc<Node> {
        let mut record = (*node.record).clone();
        record.key = self.key;
        record.key_expiry = if record.key_expiry_disabled { None } else { self.key_expiry(work, terms) };
        record.ephemeral = terms.ephemeral;
        record.approved |= terms.approved;
        record.auth_key = terms.auth_key.clone();
        if terms.tags_are_asked {
            record.tags.clone_from(&terms.tags);
        }
        let label = |info: Option<&Hostinfo>| info.map(|info| crate::name::label(&info.hostname));
        let (before, after) = (label(node.state.hostinfo.as_ref()), label(self.hostinfo.as_ref()));
        if let Some(after) = after.filter(|after| !record.name_chosen && before.is_some_and(|before| before != *after))
        {
            record.name = work.free_name(&after, Some(record.id));
        }
        let node = work.put_node(&terms.who, "node.login", node, record);
        let mut state = (*node.state).clone();
        self.report(&mut state, &node.record, work);
        work.put_state(&node, state)
    }

    fn create(&self, work: &mut Work<'_>, terms: &Terms) -> Result<Arc<Node>, Refusal> {
        let ipv4 = work.take_address(terms.owner, &terms.tags).ok_or(Refusal::Addresses)?;
        let host = self.hostinfo.as_ref().map(|info| info.hostname.as_str()).unwrap_or_default();
        let record = NodeRecord {
            id: work.store.next_node(),
            tailnet: work.state.tailnet.id,
            owner: terms.owner,
            tags: terms.tags.clone(),
            machine: self.machine,
            key: self.key,
            key_expiry: self.key_expiry(work, terms),
            key_expiry_disabled: false,
            name: work.free_name(&crate::name::label(host), None),
            name_chosen: false,
            ipv4,
            created: work.now,
            approved: terms.approved,
            suspended: false,
            ephemeral: terms.ephemeral,
            auth_key: terms.auth_key.clone(),
            approved_routes: Vec::new(),
            attributes: Attributes::new(),
            log_key: None,
        };
        let mut state = NodeState::default();
        self.report(&mut state, &record, work);
        Ok(work.add_node(&terms.who, record, state))
    }

    /// Keeps what the request says of the machine; nothing may repeat it before it is needed.
    fn report(&self, state: &mut NodeState, record: &NodeRecord, work: &Work<'_>) {
        state.cap = self.cap;
        if let Some(hostinfo) = self.hostinfo.clone() {
            apply_hostinfo(hostinfo, state);
        }
        state.lease_until = record.ephemeral.then(|| lease_end(work.now));
    }

    fn key_expiry(&self, work: &Work<'_>, terms: &Terms) -> Option<jiff::Timestamp> {
        match terms.owner {
            Owner::User(_) => work.state.tailnet.key_lifetime.end(work.now),
            Owner::Tagged => None,
        }
    }
}

/// Notes who a user is that an administrator made.
fn link(work: &mut Work<'_>, who: &Who, user: UserId, identity: &UserIdentity) -> Result<(), Refusal> {
    let users = &work.state.users;
    let taken = users.values().any(|other| other.id != user && other.identity.as_ref() == Some(identity));
    let record = users.get(&user).ok_or(Refusal::User)?;
    match &record.identity {
        Some(known) if known == identity => Ok(()),
        None if !taken => {
            let record = UserRecord { identity: Some(identity.clone()), ..(**record).clone() };
            work.put_user(who, "user.link", record);
            Ok(())
        }
        Some(_) | None => Err(Refusal::OtherPerson),
    }
}

/// Refuses texts that are no tags, and too many of them.
pub(crate) fn check_tag_form(tags: &[String]) -> Result<(), Refusal> {
    if tags.len() > TAGS_MAX {
        return Err(Refusal::Tags { found: tags.len() });
    }
    match tags.iter().find(|tag| !crate::name::is_tag(tag)) {
        Some(tag) => Err(Refusal::TagForm { tag: tag.chars().take(TAG_SHOWN).collect() }),
        None => Ok(()),
    }
}

/// How much of a text that is no tag is shown to whoever sent it, in characters.
const TAG_SHOWN: usize = 64;
