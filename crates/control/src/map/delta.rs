//! What changed between two snapshots, for one viewer.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use warren_policy::{Compiled, PeerRoutes};
use warren_wire::control::{CapabilityVersion, ExpiryChange, MapResponse, NodeId, PeerChange, SshPolicy, UserId};

use super::frame::{Parts, Shown, message, split};
use super::{Client, MESSAGE_BYTES, view};
use crate::model::NodeState;
use crate::tailnet::filter::{Filter, Outline};
use crate::tailnet::nodes::{Node, Nodes, Pair, Visit};
use crate::tailnet::snapshot::{MessageKey, NodeStep, Snapshot};

/// How long after a snapshot streams still share messages that state its time.
const SHARED_FOR: SignedDuration = SignedDuration::from_secs(2);

/// What a client knows, and what it shall know. The viewer is a node of both.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step<'a> {
    pub(super) old: &'a Snapshot,
    pub(super) new: &'a Snapshot,
    /// The viewer in the old one.
    pub(super) before: &'a Node,
    /// The viewer in the new one.
    pub(super) viewer: &'a Node,
    /// The rules that the client has.
    pub(super) rules: &'a Outline,
}

/// Writes the messages that lead a client from the old snapshot to the new one, none if it sees no difference, and tells
/// which rules it has then, if others.
pub(super) fn messages(step: Step<'_>, client: Client, now: Timestamp) -> (Vec<Bytes>, Option<Outline>) {
    let (delta, new) = (Delta::between(step, client), step.new);
    if delta.is_empty() {
        return (Vec::new(), None);
    }
    let frame = |json: &Vec<u8>| client.framing.frame(json);
    // Clients set their clocks by what they get, so that a message shared with others must not be old.
    let is_fresh = now.duration_since(new.at) <= SHARED_FOR;
    // A long list does not fit one message, and is rare.
    let key =
        delta.key(client, step.rules).filter(|_| is_fresh && split(new, &delta.changed, MESSAGE_BYTES).len() <= 1);
    let messages = match key {
        None => delta.write(step, client, now).iter().map(frame).collect(),
        Some(key) => {
            let make = || frame(&delta.write(step, client, new.at).into_iter().next().unwrap_or_default());
            vec![new.messages.get_or_make(key, make)]
        }
    };
    (messages, delta.filter.map(Filter::into_outline))
}

/// Tells whether peers of a node can see that it changed.
pub(crate) fn differs_for_peers(old: &Node, new: &Node) -> bool {
    old.takes_part() != new.takes_part() || !matches!(compare(old, new), Change::None)
}

/// Tells whether a node gets a new version of itself.
pub(crate) fn differs_for_itself(old: &Node, new: &Node) -> bool {
    let reported = |state: &NodeState| {
        state
            .hostinfo
            .as_ref()
            .map(|info| (info.os.clone(), info.hostname.clone(), info.routable_ips.clone(), info.request_tags.clone()))
    };
    old.expired != new.expired
        || old.barred != new.barred
        || old.record != new.record
        || old.facts != new.facts
        || reported(&old.state) != reported(&new.state)
}

/// What a viewer is told.
#[derive(Debug, Default)]
struct Delta<'a> {
    itself: bool,
    removed: Vec<NodeId>,
    /// Nodes sent whole.
    changed: Vec<Shown<'a>>,
    patches: Vec<PeerChange>,
    key: Vec<NodeStep>,
    /// The new rules.
    filter: Option<Filter>,
    /// What its SSH server is told.
    ssh: Option<Arc<SshPolicy>>,
    relays: bool,
    names: bool,
    /// Whether flow logs are wanted now, and were not, or the other way.
    flow_log: bool,
    profiles: BTreeSet<UserId>,
    /// Whether a user's own record changed, which the key does not tell.
    users: bool,
}

impl<'a> Delta<'a> {
    fn between(step: Step<'a>, client: Client) -> Self {
        let Step { old, new, before, viewer, .. } = step;
        let (was, is) = (&old.access.compiled, &new.access.compiled);
        let mut delta = Self {
            itself: differs_for_itself(before, viewer),
            relays: !Arc::ptr_eq(&old.derp, &new.derp) && old.derp != new.derp,
            names: old.tailnet.dns != new.tailnet.dns,
            flow_log: old.tailnet.flow_log != new.tailnet.flow_log,
            filter: changed_filter(step, client),
            ssh: changed_ssh(step),
            ..Self::default()
        };
        // Nodes that may look different, whatever the reason, have a new version. All others look the same, unless it is
        // the viewer whom other rules concern now.
        let same = Arc::ptr_eq(&old.access, &new.access) || Compiled::same_view(was, is, viewer.id());
        let which = if same { Visit::Changed } else { Visit::All };
        Nodes::compare(&old.nodes, &new.nodes, which, |(was, is): Pair<'a>| {
            let seen = |snapshot: &Snapshot, peer: &Arc<Node>| snapshot.access.sees(viewer.id(), peer.id());
            delta.add(step, was.filter(|peer| seen(old, peer)), is.filter(|peer| seen(new, peer)));
        });
        delta.add_users(old, new, viewer);
        delta
    }

    fn add(&mut self, step: Step<'a>, was: Option<&'a Arc<Node>>, is: Option<&'a Arc<Node>>) {
        let viewer = step.viewer.id();
        match (was, is) {
            (None, None) => {}
            (Some(was), None) => {
                let (node, before) = (was.id(), was.revision);
                self.key.push(NodeStep { node, before, after: 0, routes: PeerRoutes::default() });
                self.removed.push(was.id());
            }
            (None, Some(is)) => {
                let routes = step.new.access.routes(viewer, is);
                self.key.push(NodeStep { node: is.id(), before: 0, after: is.revision, routes: routes.clone() });
                self.profiles.insert(view::owner(is.record.owner));
                self.changed.push(Shown { node: is, routes });
            }
            (Some(was), Some(is)) => {
                let routes = step.new.access.routes(viewer, is);
                let change =
                    if step.old.access.routes(viewer, was) == routes { compare(was, is) } else { Change::Whole };
                let whole = matches!(change, Change::Whole);
                let shown = if whole { routes.clone() } else { PeerRoutes::default() };
                let key = NodeStep { node: is.id(), before: was.revision, after: is.revision, routes: shown };
                match change {
                    Change::None => return,
                    Change::Patch(patch) => self.patches.push(*patch),
                    Change::Whole => {
                        self.profiles.insert(view::owner(is.record.owner));
                        self.changed.push(Shown { node: is, routes });
                    }
                }
                self.key.push(key);
            }
        }
    }

    /// Adds the owners whose own records changed.
    fn add_users(&mut self, old: &Snapshot, new: &Snapshot, viewer: &Node) {
        if self.itself {
            self.profiles.insert(view::owner(viewer.record.owner));
        }
        if Arc::ptr_eq(&old.users, &new.users) {
            return;
        }
        let changed: BTreeSet<_> =
            new.users.iter().filter(|(id, user)| old.users.get(id) != Some(user)).map(|(id, _)| *id).collect();
        if changed.is_empty() {
            return;
        }
        let shown = new
            .peers(viewer)
            .map(|peer| view::owner(peer.record.owner))
            .chain([view::owner(viewer.record.owner)])
            .filter(|id| changed.contains(id));
        for id in shown {
            self.users = true;
            self.profiles.insert(id);
        }
    }

    /// Tells whether there is something in it that the key does not tell.
    fn is_own(&self) -> bool {
        self.itself || self.relays || self.names || self.flow_log || self.users || self.ssh.is_some()
    }

    fn is_empty(&self) -> bool {
        let parts = self.is_own() || self.filter.is_some();
        !parts && self.key.is_empty()
    }

    /// Returns what other streams must have in common with this one to send the same; `None` if it is for one alone.
    fn key(&self, client: Client, rules: &Outline) -> Option<MessageKey> {
        (!self.is_own()).then(|| MessageKey {
            nodes: self.key.clone(),
            filter: self.filter.as_ref().map_or(0, |filter| rules.step_to(filter.outline())),
            compressed: client.framing.compresses(),
        })
    }

    fn write(&self, step: Step<'_>, client: Client, now: Timestamp) -> Vec<Vec<u8>> {
        let Step { new, viewer, rules, .. } = step;
        let time = view::time(now);
        let head = MapResponse {
            node: self.itself.then(|| Box::new(view::own(new, viewer))),
            derp_map: self.relays.then(|| view::relays(&new.derp, client.cap)),
            dns_config: self.names.then(|| view::dns(new)),
            flow_log: self.flow_log.then_some(new.tailnet.flow_log),
            peers_removed: self.removed.clone(),
            peers_changed_patch: self.patches.clone(),
            user_profiles: self.profiles.iter().map(|id| view::profile(new, *id)).collect(),
            ssh_policy: self.ssh.as_ref().map(|policy| SshPolicy::clone(policy)),
            control_time: time,
            ..MapResponse::default()
        };
        let mut written = Vec::new();
        for (at, nodes) in split(new, &self.changed, MESSAGE_BYTES).into_iter().enumerate() {
            let filter = self.filter.as_ref().filter(|_| at == 0).map(|filter| (filter, Some(rules)));
            let parts = Parts { field: "PeersChanged", nodes, filter };
            let more = MapResponse { control_time: time, ..MapResponse::default() };
            written.push(message(new, if at == 0 { &head } else { &more }, &parts));
        }
        written
    }
}

/// Returns the viewer's rules if they are not as before.
fn changed_filter(step: Step<'_>, client: Client) -> Option<Filter> {
    let (was, is) = (&step.old.access, &step.new.access);
    if Arc::ptr_eq(was, is) || Compiled::same_filter(&was.compiled, &is.compiled, step.viewer.id()) {
        return None;
    }
    let filter = is.filter(step.viewer.id(), client.ends);
    (filter.outline() != step.rules).then_some(filter)
}

/// Returns what the viewer's SSH server is told if that is not as before.
fn changed_ssh(step: Step<'_>) -> Option<Arc<SshPolicy>> {
    if Arc::ptr_eq(&step.old.ssh, &step.new.ssh) {
        return None;
    }
    let (was, is) = (step.old.ssh(step.viewer.id()), step.new.ssh(step.viewer.id()));
    (!Arc::ptr_eq(&was, &is) && was != is).then_some(is)
}

/// How a node differs from an older version of itself, for its peers.
enum Change {
    None,
    Patch(Box<PeerChange>),
    Whole,
}

/// Compares two versions of a node, as peers see them.
fn compare(old: &Node, new: &Node) -> Change {
    let (was, is) = (&old.record, &new.record);
    let hostinfo = |state: &NodeState| {
        state.hostinfo.as_ref().map(|info| (info.os.clone(), info.hostname.clone(), info.services.clone()))
    };
    let whole = was.name != is.name
        || was.owner != is.owner
        || was.tags != is.tags
        || (!Arc::ptr_eq(&old.facts, &new.facts)
            && (old.facts.addresses != new.facts.addresses
                || old.facts.peer_capabilities != new.facts.peer_capabilities))
        || was.created != is.created
        || old.is_admitted() != new.is_admitted()
        || old.expired != new.expired
        // A patch cannot take these away.
        || (old.state.disco.is_some() && new.state.disco.is_none())
        || (old.state.home.is_some() && new.state.home.is_none())
        || (old.state.cap != 0 && new.state.cap == 0)
        || hostinfo(&old.state) != hostinfo(&new.state);
    if whole {
        return Change::Whole;
    }
    let mut patch = PeerChange { node_id: is.id, ..PeerChange::default() };
    let empty = patch.clone();
    if was.key != is.key {
        patch.key = Some(is.key);
    }
    if was.key_expiry != is.key_expiry {
        patch.key_expiry = Some(ExpiryChange::from(is.key_expiry.and_then(view::time)));
    }
    let (before, after) = (&old.state, &new.state);
    if before.disco != after.disco {
        patch.disco_key = after.disco;
    }
    if before.endpoints != after.endpoints {
        patch.endpoints = Some(after.endpoints.clone());
    }
    if before.home != after.home {
        patch.derp_region = after.home.unwrap_or_default();
    }
    if before.cap != after.cap {
        patch.cap = CapabilityVersion(after.cap);
    }
    if old.online != new.online {
        patch.online = Some(new.online);
    }
    let seen = |node: &Node| if node.online { None } else { node.state.last_seen.and_then(view::time) };
    if seen(old) != seen(new) {
        patch.last_seen = seen(new);
    }
    // Official clients of 1.88 to 1.90 at least hand only the first of a node's light changes to their path layer, so
    // that new endpoints beside a new home would be lost and the pair stay relayed. A field that they do not count as
    // light makes them read everything. Source: Tailscale `ipn/ipnlocal/node_backend.go`, `UpdateNetmapDelta`.
    if patch.endpoints.is_some() && before.home != after.home {
        patch.cap = CapabilityVersion(after.cap);
    }
    if patch == empty { Change::None } else { Change::Patch(Box::new(patch)) }
}
