//! The section `ssh`: from rules to what the SSH server of each node is told, and to single decisions.
//!
//! Source: policy.md, section 10.

use crate::model::{SshAction, SshGrant, SshUser};
use crate::reach::{Named, Party};
use crate::selector::Selector;
use crate::{Owner, Policy, Reach};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use warren_wire::control::{
    NodeId, SshAction as WireAction, SshPolicy, SshPrincipal, SshRecorderFailureAction, SshRule, UserId,
};

/// Where a client asks about a login that needs a check; it puts its own server in the place of the host name.
pub const SSH_CHECK_URL: &str = "https://unused/machine/ssh/action/$SRC_NODE_ID/to/$DST_NODE_ID?local_user=$LOCAL_USER";

/// Port of session recorders. Source: Tailscale `sessionrecording`.
const RECORDER_PORT: u16 = 80;

/// What the policy says of one login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SshDecision {
    /// No rule lets it in.
    Deny,
    /// It is let in.
    Accept,
    /// It is let in if the person proved their identity within this time; zero asks every time.
    Check(Duration),
}

/// The SSH rules over a directory, ready to tell each node what concerns it.
#[derive(Debug)]
pub struct SshRules<'a> {
    reach: &'a Reach<'a>,
    /// Checks, then accepts.
    rules: Vec<Prepared<'a>>,
}

/// A rule with its sources looked up.
#[derive(Debug)]
struct Prepared<'a> {
    rule: &'a SshGrant,
    /// Untagged sources by owner.
    people: BTreeMap<UserId, Vec<NodeId>>,
    tagged: Vec<NodeId>,
    recorders: Vec<SocketAddr>,
}

impl Policy {
    /// Tells whether there are SSH rules at all.
    #[must_use]
    pub fn has_ssh(&self) -> bool {
        !self.sections.ssh.is_empty()
    }
}

impl<'a> SshRules<'a> {
    /// Looks up the sources of all rules. Costs the number of sources.
    #[must_use]
    pub fn new(reach: &'a Reach<'a>) -> Self {
        let (checks, accepts): (Vec<_>, Vec<_>) =
            reach.policy.sections.ssh.iter().partition(|rule| rule.action != SshAction::Accept);
        let rules = checks.into_iter().chain(accepts).map(|rule| Prepared::new(reach, rule)).collect();
        Self { reach, rules }
    }

    /// Tells whether all nodes of one owner have the same rules; not so where login names come from those of sources.
    #[must_use]
    pub fn are_by_owner(&self) -> bool {
        !self.rules.iter().any(Prepared::has_local_parts)
    }

    /// Returns the rules of a node's SSH server; none lets nobody in.
    #[must_use]
    pub fn policy(&self, node: NodeId) -> SshPolicy {
        let mut rules = Vec::new();
        let owner = self.reach.directory.nodes.get(&node).map(|entry| &entry.owner);
        let (Some(owner), Some(here)) = (owner, self.reach.parties_of(node).next()) else {
            return SshPolicy::default();
        };
        for prepared in &self.rules {
            let destinations = &prepared.rule.destinations;
            let mut out = Output { reach: self.reach, prepared, rules: &mut rules };
            if names(self.reach, destinations, here) {
                out.everybody();
            } else if let Owner::User(user) = owner
                && destinations.contains(&Selector::OwnDevices)
            {
                out.person(*user, prepared.people.get(user).map(Vec::as_slice).unwrap_or_default());
            } else if prepared.has_local_parts() {
                // The original service tells sources, too, what concerns themselves; it opens nothing to others.
                match owner {
                    Owner::User(user) if prepared.people.get(user).is_some_and(|nodes| nodes.contains(&node)) => {
                        out.person(*user, &[node]);
                    }
                    Owner::Tags(_) if prepared.tagged.contains(&node) => out.common(&[node]),
                    Owner::User(_) | Owner::Tags(_) => {}
                }
            }
        }
        SshPolicy { rules }
    }
}

impl Reach<'_> {
    /// Tells whether `source` may log in at `destination` as `local_user`; checks come before accepts.
    #[must_use]
    pub fn ssh_decision(&self, source: NodeId, destination: NodeId, local_user: &str) -> SshDecision {
        let (Some(source), Some(destination)) = (self.parties_of(source).next(), self.parties_of(destination).next())
        else {
            return SshDecision::Deny;
        };
        let mut decision = SshDecision::Deny;
        for rule in &self.policy.sections.ssh {
            if !applies(self, rule, source, destination) || !lets_in(self, rule, source.owner, local_user) {
                continue;
            }
            match rule.action {
                SshAction::Check(period) => return SshDecision::Check(period),
                SshAction::Accept => decision = SshDecision::Accept,
            }
        }
        decision
    }
}

/// Tells whether a rule speaks about logins from `source` at `destination`.
pub(crate) fn applies(reach: &Reach<'_>, rule: &SshGrant, source: Party<'_>, destination: Party<'_>) -> bool {
    let own = matches!(source.owner, Some(Owner::User(_))) && source.owner == destination.owner;
    rule.sources.iter().any(|selector| reach.source_covers(selector, source))
        && reach.has_posture(&rule.postures, source.attributes)
        && (own && rule.destinations.contains(&Selector::OwnDevices) || names(reach, &rule.destinations, destination))
}

/// Tells whether a rule opens a login name to a source of this owner.
pub(crate) fn lets_in(reach: &Reach<'_>, rule: &SshGrant, source: Option<&Owner>, login: &str) -> bool {
    rule.users.iter().any(|user| match user {
        SshUser::NonRoot => login != "root",
        SshUser::Name(name) => login == name,
        SshUser::LocalPart { domain } => match source {
            Some(Owner::User(user)) => local_part(reach, *user, domain) == Some(login),
            Some(Owner::Tags(_)) | None => false,
        },
    })
}

fn names(reach: &Reach<'_>, destinations: &[Selector], destination: Party<'_>) -> bool {
    destinations.iter().any(|selector| reach.destination_covers(selector, destination))
}

/// Returns the part of a login before the `@`, if the domain is this. It is never root: nobody gets that by their name.
fn local_part<'a>(reach: &Reach<'a>, user: UserId, domain: &str) -> Option<&'a str> {
    let login = &reach.directory.users.get(&user)?.login;
    let (local, own) = login.rsplit_once('@')?;
    (own == domain && local != "root" && !local.is_empty()).then_some(local)
}

impl<'a> Prepared<'a> {
    fn new(reach: &Reach<'a>, rule: &'a SshGrant) -> Self {
        let mut sources = BTreeSet::new();
        for named in rule.sources.iter().filter_map(|selector| Named::of(reach, selector)) {
            sources.extend(named.parties(reach).iter().filter_map(|party| party.node));
        }
        let mut prepared = Self { rule, people: BTreeMap::new(), tagged: Vec::new(), recorders: Vec::new() };
        for (id, node) in sources.into_iter().filter_map(|id| Some((id, reach.directory.nodes.get(&id)?))) {
            if !reach.has_posture(&rule.postures, Some(&node.attributes)) {
                continue;
            }
            match node.owner {
                Owner::User(user) => prepared.people.entry(user).or_default().push(id),
                Owner::Tags(_) => prepared.tagged.push(id),
            }
        }
        let recorders: BTreeSet<NodeId> =
            rule.recorders.iter().flat_map(|tag| reach.devices_with(tag)).copied().collect();
        let addresses = recorders.into_iter().flat_map(|node| addresses(reach, node).first().copied());
        prepared.recorders = addresses.map(|address| SocketAddr::new(address, RECORDER_PORT)).collect();
        prepared
    }

    fn has_local_parts(&self) -> bool {
        self.rule.users.iter().any(|user| matches!(user, SshUser::LocalPart { .. }))
    }

    /// Returns the login names that all sources share. Root is always spoken about, so that `*` does not cover it.
    fn common_users(&self) -> BTreeMap<String, String> {
        let mut users = BTreeMap::from([("root".to_owned(), String::new())]);
        for user in &self.rule.users {
            match user {
                SshUser::NonRoot => drop(users.insert("*".to_owned(), "=".to_owned())),
                SshUser::Name(name) => drop(users.insert(name.clone(), name.clone())),
                SshUser::LocalPart { .. } => {}
            }
        }
        users
    }

    fn action(&self) -> WireAction {
        if self.rule.action != SshAction::Accept {
            return WireAction { hold_and_delegate: SSH_CHECK_URL.to_owned(), ..WireAction::default() };
        }
        self.accept()
    }

    fn accept(&self) -> WireAction {
        if self.rule.enforce_recorder && !self.rule.recorders.is_empty() && self.recorders.is_empty() {
            let message = "sessions here must be recorded, and there is no recorder\r\n".to_owned();
            return WireAction { reject: true, message, ..WireAction::default() };
        }
        let refusal = || SshRecorderFailureAction {
            reject_session_with_message: "the session cannot be recorded".to_owned(),
            terminate_session_with_message: "the session can no longer be recorded".to_owned(),
            notify_url: String::new(),
        };
        WireAction {
            accept: true,
            allow_agent_forwarding: true,
            allow_local_port_forwarding: true,
            allow_remote_port_forwarding: true,
            recorders: self.recorders.clone(),
            on_recording_failure: self.rule.enforce_recorder.then(refusal),
            ..WireAction::default()
        }
    }
}

/// Writes one rule of the policy for one node.
struct Output<'a> {
    reach: &'a Reach<'a>,
    prepared: &'a Prepared<'a>,
    rules: &'a mut Vec<SshRule>,
}

impl Output<'_> {
    /// Lets all sources in.
    fn everybody(&mut self) {
        if self.prepared.has_local_parts() {
            for (user, nodes) in &self.prepared.people {
                self.person(*user, nodes);
            }
            self.common(&self.prepared.tagged);
        } else {
            let people = self.prepared.people.values().flatten();
            let nodes: BTreeSet<NodeId> = people.chain(&self.prepared.tagged).copied().collect();
            self.common(&nodes.into_iter().collect::<Vec<_>>());
        }
    }

    /// Lets devices of one person in, under the names that all share and under their own.
    fn person(&mut self, user: UserId, nodes: &[NodeId]) {
        self.common(nodes);
        let mut own = BTreeMap::new();
        for entry in &self.prepared.rule.users {
            if let SshUser::LocalPart { domain } = entry
                && let Some(local) = local_part(self.reach, user, domain)
            {
                own.insert(local.to_owned(), local.to_owned());
            }
        }
        if !own.is_empty() {
            self.push(nodes, own);
        }
    }

    fn common(&mut self, nodes: &[NodeId]) {
        self.push(nodes, self.prepared.common_users());
    }

    fn push(&mut self, nodes: &[NodeId], ssh_users: BTreeMap<String, String>) {
        let addresses = nodes.iter().flat_map(|node| addresses(self.reach, *node));
        let principals: Vec<SshPrincipal> =
            addresses.map(|address| SshPrincipal { node_ip: address.to_string(), ..SshPrincipal::default() }).collect();
        if !principals.is_empty() {
            self.rules.push(SshRule {
                principals,
                ssh_users,
                action: Some(self.prepared.action()),
                accept_env: self.prepared.rule.accept_env.clone(),
                ..SshRule::default()
            });
        }
    }
}

fn addresses<'a>(reach: &Reach<'a>, node: NodeId) -> &'a [IpAddr] {
    reach.directory.nodes.get(&node).map(|node| node.addresses.as_slice()).unwrap_or_default()
}
