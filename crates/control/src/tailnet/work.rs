//! The state that a tailnet's actor works on, and changes to it that are also stored.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use warren_wire::control::{DerpMap, NodeId, UserId};
use warren_wire::key::MachineKey;

use super::access::{self, Access, PolicyInForce};
use super::compile::Pending;
use super::nodes::{Node, Nodes};
use crate::account::{AccountRecord, InvitationRecord, Secrets};
use crate::auth_key::Shown;
use crate::machine_proof::ProofError;
use crate::model::{
    AuthKeyRecord, CredentialRecord, MachineCaRecord, MachineProof, MachineRecord, NodeRecord, NodeState, Owner,
    ROUTES_MAX, TailnetRecord, Unconfirmed, UserRecord, Who,
};
use crate::store::{Change, Entry, Store};

/// Credentials of the API with the hashes of their secrets, by ID.
pub(crate) type Credentials = BTreeMap<String, (CredentialRecord, [u8; 32])>;

/// Machines that administrators enrolled, or certificates, and those whose enrolment an administrator ended.
pub(crate) type Machines = BTreeMap<MachineKey, Arc<MachineRecord>>;

/// Most machines of a tailnet that are enrolled or were ended. Fewer in tests, since each is a row of the database.
pub(crate) const MACHINES_MAX: usize = if cfg!(test) { 1_200 } else { 100_000 };

/// Authorities whose certificates enrol machines, by ID.
pub(crate) type MachineCas = BTreeMap<String, Arc<MachineCaRecord>>;

/// The tailnet as of the last change; a clone is cheap and independent.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) tailnet: Arc<TailnetRecord>,
    /// Offset in 100.64.0.0/10 where the search for a free address goes on.
    pub(crate) next_address: u32,
    pub(crate) users: Arc<BTreeMap<UserId, Arc<UserRecord>>>,
    pub(crate) nodes: Nodes,
    pub(crate) auth_keys: Arc<BTreeMap<String, (AuthKeyRecord, [u8; 32])>>,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) machines: Arc<Machines>,
    pub(crate) machine_cas: Arc<MachineCas>,
    pub(crate) policy: Arc<PolicyInForce>,
    /// The server's own relays.
    pub(crate) own_derp: Arc<DerpMap>,
    /// The relays that nodes are told of: the server's own with what the policy says of them.
    pub(crate) derp: Arc<DerpMap>,
    pub(crate) access: Arc<Access>,
    /// What [`Self::access`] does not know yet.
    pub(crate) pending: Pending,
    /// Domains of the users' logins that are the tailnet's own.
    pub(crate) domains: Arc<BTreeSet<String>>,
    /// Names and addresses of nodes that could not be read.
    pub(crate) reserved: Arc<Vec<(String, Option<Ipv4Addr>)>>,
}

impl State {
    /// Tells whether a machine takes no part, whatever its nodes may.
    pub(crate) fn bars(&self, machine: &MachineKey, now: Timestamp) -> bool {
        self.tailnet.only_enrolled && !self.machines.get(machine).is_some_and(|record| record.holds_at(now))
    }

    /// Lets the nodes of all machines follow what was enrolled; tells whether one does otherwise than before.
    pub(crate) fn bar(&mut self, now: Timestamp) -> bool {
        let changed = |node: &&Arc<Node>| node.barred != self.bars(&node.record.machine, now);
        let other: Vec<_> = self.nodes.iter().filter(changed).map(|node| node.with_barred(!node.barred)).collect();
        let any = !other.is_empty();
        for node in other {
            self.pending.nodes.insert(node.id());
            self.nodes.put(node);
        }
        any
    }
}

/// One change under way: what it did to the state, and what must be stored for it.
#[derive(Debug)]
pub(crate) struct Work<'a> {
    /// The state with the changes so far.
    pub(crate) state: &'a mut State,
    /// Time of the change.
    pub(crate) now: Timestamp,
    /// Gives numbers to new records.
    pub(crate) store: &'a Store,
    /// What must be stored.
    pub(crate) entries: Vec<Entry>,
    /// Nodes whose state must be stored.
    pub(crate) touched: Vec<NodeId>,
    /// Nodes that registered, and whose next poll therefore counts as a report.
    pub(crate) fresh: Vec<NodeId>,
}

impl<'a> Work<'a> {
    /// Begins a change.
    pub(crate) fn new(state: &'a mut State, store: &'a Store, now: Timestamp) -> Self {
        Self { state, now, store, entries: Vec::new(), touched: Vec::new(), fresh: Vec::new() }
    }

    fn record(&mut self, who: &Who, what: &'static str, change: Change) {
        self.entries.push(Entry { who: who.clone(), what, tailnet: Some(self.state.tailnet.id), change });
    }

    /// Changes the tailnet itself.
    pub(crate) fn put_tailnet(&mut self, who: &Who, what: &'static str, record: TailnetRecord) {
        let before = std::mem::replace(&mut self.state.tailnet, Arc::new(record.clone()));
        if before.only_enrolled != record.only_enrolled {
            self.state.bar(self.now);
        }
        self.record(who, what, Change::PutTailnet(record));
    }

    /// Makes or changes a user.
    pub(crate) fn put_user(&mut self, who: &Who, what: &'static str, record: UserRecord) {
        Arc::make_mut(&mut self.state.users).insert(record.id, Arc::new(record.clone()));
        self.state.pending.users = true;
        self.record(who, what, Change::PutUser(record));
    }

    /// Removes a user, who must own nothing any more.
    pub(crate) fn remove_user(&mut self, who: &Who, id: UserId) {
        Arc::make_mut(&mut self.state.users).remove(&id);
        self.state.pending.users = true;
        self.record(who, "user.remove", Change::RemoveUser(id));
    }

    /// Adds a node.
    pub(crate) fn add_node(&mut self, who: &Who, record: NodeRecord, state: NodeState) -> Arc<Node> {
        let record = Arc::new(record);
        let expired = record.expired_at(self.now);
        let node = Node::new(Arc::clone(&record), Arc::new(state), false, expired);
        let node = if self.state.bars(&record.machine, self.now) { node.with_barred(true) } else { node };
        self.state.nodes.put(Arc::clone(&node));
        self.state.pending.nodes.insert(record.id);
        self.touched.push(record.id);
        let next_address = self.state.next_address;
        let id = record.id;
        self.record(who, "node.create", Change::AddNode { record, next_address });
        let offered: Vec<_> = node.state.offered_routes().collect();
        self.approve_by_policy(id, &offered);
        self.state.nodes.get(id).map_or(node, Arc::clone)
    }

    /// Changes what a node reported before it reports itself.
    pub(crate) fn put_state(&mut self, before: &Node, state: NodeState) -> Arc<Node> {
        let node = before.with_state(state, before.online);
        self.note_difference(before, &node);
        let offered = newly_offered(before, &node.state);
        self.state.nodes.put(Arc::clone(&node));
        self.touched.push(node.id());
        self.approve_by_policy(node.id(), &offered);
        self.state.nodes.get(node.id()).map_or(node, Arc::clone)
    }

    /// Changes what lasts about a node.
    pub(crate) fn put_node(&mut self, who: &Who, what: &'static str, before: &Node, record: NodeRecord) -> Arc<Node> {
        let record = Arc::new(record);
        let node = before.with_record(Arc::clone(&record), record.expired_at(self.now));
        self.note_difference(before, &node);
        let other_owner = record.owner != before.record.owner || record.tags != before.record.tags;
        self.state.nodes.put(Arc::clone(&node));
        self.record(who, what, Change::PutNode(Arc::clone(&record)));
        if other_owner {
            let offered: Vec<_> = node.state.offered_routes().filter(|route| !record.approves(route)).collect();
            self.approve_by_policy(node.id(), &offered);
        }
        self.state.nodes.get(node.id()).map_or(node, Arc::clone)
    }

    /// Names a node after its host, unless an administrator chose its name.
    pub(crate) fn rename_after_host(&mut self, who: &Who, node: &Arc<Node>, label: &str) -> Arc<Node> {
        let name = self.free_name(label, Some(node.id()));
        if node.record.name_chosen || node.record.name == name {
            return Arc::clone(node);
        }
        let record = NodeRecord { name, ..(*node.record).clone() };
        self.put_node(who, "node.rename", node, record)
    }

    /// Removes a node; if `lease` is given, the store checks that the lease was over then.
    pub(crate) fn remove_node(&mut self, who: &Who, what: &'static str, id: NodeId, lease: Option<Timestamp>) {
        self.state.nodes.remove(id);
        self.state.pending.nodes.insert(id);
        self.record(who, what, Change::RemoveNode { id, lease });
    }

    /// Makes or changes an auth key; `hash` is given for a new one.
    pub(crate) fn put_auth_key(
        &mut self,
        who: &Who,
        what: &'static str,
        record: AuthKeyRecord,
        hash: Option<[u8; 32]>,
    ) {
        let keys = Arc::make_mut(&mut self.state.auth_keys);
        let kept = hash.or_else(|| keys.get(&record.id).map(|(_, hash)| *hash));
        if let Some(kept) = kept {
            keys.insert(record.id.clone(), (record.clone(), kept));
        }
        self.record(who, what, Change::PutAuthKey { record, hash });
    }

    /// Makes or changes a credential of the API; `hash` is given for a new one.
    pub(crate) fn put_credential(
        &mut self,
        who: &Who,
        what: &'static str,
        record: CredentialRecord,
        hash: Option<[u8; 32]>,
    ) {
        let credentials = Arc::make_mut(&mut self.state.credentials);
        let kept = hash.or_else(|| credentials.get(&record.id).map(|(_, hash)| *hash));
        if let Some(kept) = kept {
            credentials.insert(record.id.clone(), (record.clone(), kept));
        }
        self.record(who, what, Change::PutCredential { record, hash });
    }

    /// Enrols machines; their nodes take part from then on, as far as they may otherwise.
    pub(crate) fn enrol(&mut self, who: &Who, records: Vec<MachineRecord>) {
        for record in records {
            Arc::make_mut(&mut self.state.machines).insert(record.key, Arc::new(record.clone()));
            self.record(who, "machine.enrol", Change::PutMachine(record));
        }
        self.state.bar(self.now);
    }

    /// Enrols a machine by the certificate that it proved to hold, unless an administrator enrolled it anyway.
    ///
    /// # Errors
    /// [`ProofError::Ended`] for a machine whose enrolment an administrator ended, [`ProofError::TooMany`].
    pub(crate) fn prove(&mut self, machine: MachineKey, proof: MachineProof) -> Result<(), ProofError> {
        let known = self.state.machines.get(&machine);
        if known.is_some_and(|record| record.ended.is_some()) {
            return Err(ProofError::Ended);
        }
        if known.is_some_and(|record| record.proof.is_none() || record.proof.as_ref() == Some(&proof)) {
            return Ok(());
        }
        if known.is_none() && self.state.machines.len() >= MACHINES_MAX {
            return Err(ProofError::TooMany);
        }
        let record = MachineRecord {
            key: machine,
            tailnet: self.state.tailnet.id,
            description: String::new(),
            enrolled: known.map_or(self.now, |record| record.enrolled),
            proof: Some(proof),
            ended: None,
        };
        Arc::make_mut(&mut self.state.machines).insert(machine, Arc::new(record.clone()));
        self.record(&Who::machine(&machine), "machine.prove", Change::PutMachine(record));
        self.state.bar(self.now);
        Ok(())
    }

    /// Enrols an authority, or changes what is known of it.
    pub(crate) fn put_machine_ca(&mut self, who: &Who, what: &'static str, record: MachineCaRecord) {
        Arc::make_mut(&mut self.state.machine_cas).insert(record.id.clone(), Arc::new(record.clone()));
        self.record(who, what, Change::PutMachineCa(record));
    }

    /// Forgets an authority, whose certificates enrol nobody any more.
    pub(crate) fn remove_machine_ca(&mut self, who: &Who, id: &str) {
        Arc::make_mut(&mut self.state.machine_cas).remove(id);
        self.record(who, "machine-ca.end", Change::RemoveMachineCa(id.to_owned()));
    }

    /// Ends the enrolments that rest on such certificates; another certificate enrols the machines again.
    pub(crate) fn end_proofs(&mut self, who: &Who, ended: impl Fn(&MachineProof) -> bool) {
        let rests = |record: &&Arc<MachineRecord>| record.proof.as_ref().is_some_and(&ended);
        let gone: Vec<_> = self.state.machines.values().filter(rests).map(|record| record.key).collect();
        for key in &gone {
            Arc::make_mut(&mut self.state.machines).remove(key);
            self.record(who, "machine.end", Change::RemoveMachine(*key));
        }
        if !gone.is_empty() {
            self.state.bar(self.now);
        }
    }

    /// Ends the enrolment of a machine; its nodes take no part any more where that is needed. It stays known as one that
    /// was ended, since it may hold certificates that nobody knows of.
    pub(crate) fn end_enrolment(&mut self, who: &Who, before: &MachineRecord) {
        let record = MachineRecord { proof: None, ended: Some(self.now), ..before.clone() };
        Arc::make_mut(&mut self.state.machines).insert(record.key, Arc::new(record.clone()));
        self.record(who, "machine.end", Change::PutMachine(record));
        self.state.bar(self.now);
    }

    /// Forgets the oldest auth keys that let nobody in any more, and returns their IDs.
    pub(crate) fn forget_auth_keys(&mut self, who: &Who) -> Vec<String> {
        // Those of a suspended user may work again one day.
        let is_dead = |record: &AuthKeyRecord| crate::auth_key::check(record, self.now).is_err();
        let dead = self.state.auth_keys.values().filter(|(record, _)| is_dead(record));
        let gone = oldest(dead.map(|(record, _)| (record.created, record.id.clone())).collect());
        for id in &gone {
            Arc::make_mut(&mut self.state.auth_keys).remove(id);
            self.record(who, "auth-key.forget", Change::RemoveAuthKey(id.clone()));
        }
        gone
    }

    /// Forgets the oldest credentials of the API that work no more, and returns their IDs.
    pub(crate) fn forget_credentials(&mut self, who: &Who) -> Vec<String> {
        let dead = self.state.credentials.values().filter(|(record, _)| !record.is_valid(self.now));
        let gone = oldest(dead.map(|(record, _)| (record.created, record.id.clone())).collect());
        for id in &gone {
            Arc::make_mut(&mut self.state.credentials).remove(id);
            self.record(who, "credential.forget", Change::RemoveCredential(id.clone()));
        }
        gone
    }

    /// Makes a link with which a user makes an account.
    pub(crate) fn put_invitation(&mut self, who: &Who, record: InvitationRecord, hash: [u8; 32]) {
        self.record(who, "user.invite", Change::PutInvitation { record, hash });
    }

    /// Uses such a link up.
    pub(crate) fn use_invitation(&mut self, who: &Who, id: &str) {
        self.record(who, "invitation.use", Change::UseInvitation(id.to_owned()));
    }

    /// Makes an account.
    pub(crate) fn add_account(&mut self, who: &Who, record: AccountRecord, secrets: Secrets) {
        self.record(who, "account.create", Change::AddAccount { record, secrets });
    }

    /// Notes that somebody was refused.
    pub(crate) fn note_refusal(&mut self, who: &Who, subject: String) {
        self.record(who, "api.refuse", Change::Refused { subject });
    }

    /// Counts a use of an auth key.
    pub(crate) fn use_auth_key(&mut self, who: &Who, id: &str) {
        if let Some((record, _)) = Arc::make_mut(&mut self.state.auth_keys).get_mut(id) {
            record.used += 1;
        }
        self.record(who, "auth-key.use", Change::UseAuthKey(id.to_owned()));
    }

    /// Puts a new policy in force. Routes that it approves by itself, and the one before did not, are approved.
    pub(crate) fn put_policy(&mut self, who: &Who, new: NewVersion) {
        let NewVersion { what, policy, reason, unconfirmed } = new;
        let mut record = (*self.state.tailnet).clone();
        record.policy_version += 1;
        record.unconfirmed = unconfirmed;
        let version = record.policy_version;
        let text = Arc::clone(policy.text());
        let before = std::mem::replace(&mut self.state.policy, policy);
        self.state.derp = self.state.policy.relays(&self.state.own_derp);
        self.state.pending.policy = true;
        self.put_tailnet(who, "tailnet.policy", record);
        self.record(who, what, Change::PutPolicy { version, text, reason });
        self.approve_what_is_new(&before);
    }

    fn note_difference(&mut self, before: &Node, after: &Node) {
        if !access::is_same_entry(before, after) {
            self.state.pending.nodes.insert(after.id());
        }
    }

    fn approve_what_is_new(&mut self, before: &PolicyInForce) {
        let users = access::people(&self.state.users);
        let mut approved = Vec::new();
        for node in self.state.nodes.iter() {
            let offered: Vec<_> = node.state.offered_routes().filter(|route| !node.record.approves(route)).collect();
            if offered.is_empty() {
                continue;
            }
            let owner = access::owner(node.record.owner, &node.record.tags);
            let was = before.approved_by_itself(&owner, &users, &offered);
            let mut is = self.state.policy.approved_by_itself(&owner, &users, &offered);
            is.retain(|route| !was.contains(route));
            approved.push((node.id(), is));
        }
        for (id, routes) in approved {
            self.add_approved(id, routes);
        }
    }

    /// Approves those of `routes`, which a node has just begun to offer, that the policy approves by itself.
    pub(crate) fn approve_by_policy(&mut self, id: NodeId, routes: &[IpNet]) {
        let Some(node) = self.state.nodes.get(id).filter(|_| !routes.is_empty()) else { return };
        let users = access::people(&self.state.users);
        let approved =
            self.state.policy.approved_by_itself(&access::owner(node.record.owner, &node.record.tags), &users, routes);
        self.add_approved(id, approved);
    }

    fn add_approved(&mut self, id: NodeId, routes: Vec<IpNet>) {
        let Some(node) = self.state.nodes.get(id).map(Arc::clone) else { return };
        let mut record = (*node.record).clone();
        record.approved_routes.extend(routes);
        record.approved_routes.sort_unstable();
        record.approved_routes.dedup();
        record.approved_routes.truncate(ROUTES_MAX);
        if record != *node.record {
            self.put_node(&Who::server(), "node.approve-routes", &node, record);
        }
    }

    /// Returns the auth key whose secret the client knows.
    pub(crate) fn auth_key(&self, shown: &Shown) -> Option<AuthKeyRecord> {
        let (record, hash) = self.state.auth_keys.get(&shown.id)?;
        crate::auth_key::matches(shown, hash).then(|| record.clone())
    }

    /// Tells whether a user may give a tag to a node.
    pub(crate) fn may_tag(&self, user: UserId, tag: &str) -> bool {
        let user = self.state.users.get(&user);
        user.is_some_and(|user| self.state.policy.may_tag(&access::directory_user(user), tag))
    }

    /// Takes a free address for a new node of this owner: from where the policy says, as long as there is one.
    pub(crate) fn take_address(&mut self, owner: Owner, tags: &[String]) -> Option<Ipv4Addr> {
        let mut taken: HashSet<_> = self.state.nodes.iter().map(|node| node.record.ipv4).collect();
        taken.extend(self.state.reserved.iter().filter_map(|(_, address)| *address));
        let pools = self.state.policy.pools(&access::owner(owner, tags), || access::people(&self.state.users));
        if let Some(address) = crate::address::within(&pools, &taken) {
            return Some(address);
        }
        if !pools.is_empty() {
            tracing::warn!(tailnet = %self.state.tailnet.id, "an ipPool of the policy is used up; any address is given");
        }
        let (address, next) = crate::address::next(self.state.next_address, &taken)?;
        self.state.next_address = next;
        Some(address)
    }

    /// Tells whether no node has an address.
    pub(crate) fn is_free(&self, address: Ipv4Addr) -> bool {
        self.state.nodes.iter().all(|node| node.record.ipv4 != address)
            && self.state.reserved.iter().all(|(_, reserved)| *reserved != Some(address))
    }

    /// Finds a name like `wanted` that no other node than `except` has.
    pub(crate) fn free_name(&self, wanted: &str, except: Option<NodeId>) -> String {
        let taken: HashSet<&str> = self
            .state
            .nodes
            .iter()
            .filter(|node| Some(node.id()) != except)
            .map(|node| node.record.name.as_str())
            .chain(self.state.reserved.iter().map(|(name, _)| name.as_str()))
            .collect();
        crate::name::free(wanted, |name| taken.contains(name))
    }
}

/// How many auth keys, and how many credentials, that are of no use any more a tailnet keeps for people to look at.
pub(crate) const DEAD_KEPT: usize = 500;

/// Returns the IDs of all but the newest [`DEAD_KEPT`].
fn oldest(mut dead: Vec<(Timestamp, String)>) -> Vec<String> {
    dead.sort_unstable();
    dead.truncate(dead.len().saturating_sub(DEAD_KEPT));
    dead.into_iter().map(|(_, id)| id).collect()
}

/// A policy that becomes the next version.
#[derive(Debug)]
pub(crate) struct NewVersion {
    /// What the change is called in the audit log.
    pub(crate) what: &'static str,
    pub(crate) policy: Arc<PolicyInForce>,
    pub(crate) reason: String,
    pub(crate) unconfirmed: Option<Unconfirmed>,
}

/// Returns the routes that a node offers with its new state and did not offer before, without those already approved.
pub(crate) fn newly_offered(before: &Node, state: &NodeState) -> Vec<IpNet> {
    let known: Vec<_> = before.state.offered_routes().collect();
    state.offered_routes().filter(|route| !known.contains(route) && !before.record.approves(route)).collect()
}
