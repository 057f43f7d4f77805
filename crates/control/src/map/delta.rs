//! What changed between two snapshots, for one viewer.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use warren_wire::control::{CapabilityVersion, ExpiryChange, MapResponse, NodeId, PeerChange, UserId};

use super::frame::{Framing, Parts, message, split};
use super::{MESSAGE_BYTES, view};
use crate::model::NodeState;
use crate::tailnet::filter::{Filter, Outline};
use crate::tailnet::nodes::{Node, Nodes, Pair, Visit};
use crate::tailnet::snapshot::{MessageKey, Snapshot};

/// How long after a snapshot streams still share messages that state its time.
const SHARED_FOR: SignedDuration = SignedDuration::from_secs(2);

/// Writes the messages that lead a client from `old` to `new`; none if it sees no difference.
///
/// The viewer must be a node of both.
pub(super) fn messages(
    old: &Snapshot,
    new: &Snapshot,
    (before, viewer): (&Node, &Node),
    (cap, framing, now): (u16, Framing, Timestamp),
) -> Vec<Bytes> {
    let delta = Delta::between(old, new, (before, viewer));
    if delta.is_empty() {
        return Vec::new();
    }
    // Clients set their clocks by what they get, so that a message shared with others must not be old.
    let is_fresh = now.duration_since(new.at) <= SHARED_FOR;
    let alone = || delta.write(new, viewer, (cap, now)).iter().map(|json| framing.frame(json)).collect();
    let Some(key) = delta.key(framing).filter(|_| is_fresh) else { return alone() };
    // A long list does not fit one message, and is rare.
    let peers: Vec<_> = delta.changed.iter().map(|node| &***node).collect();
    if split(new, &peers, MESSAGE_BYTES).len() > 1 {
        return alone();
    }
    let make = || {
        let json = delta.write(new, viewer, (cap, new.at)).into_iter().next().unwrap_or_default();
        framing.frame(&json)
    };
    vec![new.messages.get_or_make(key, make)]
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
    old.expired != new.expired || old.record != new.record || reported(&old.state) != reported(&new.state)
}

/// What a viewer is told.
#[derive(Debug, Default)]
struct Delta<'a> {
    itself: bool,
    removed: Vec<&'a Arc<Node>>,
    /// Nodes sent whole, with the revision that the viewer knows (0 = none).
    changed: Vec<&'a Arc<Node>>,
    patches: Vec<(PeerChange, (NodeId, u64, u64))>,
    key: Vec<(NodeId, u64, u64)>,
    /// The new rules, and what the viewer has.
    filter: Option<(Filter, Arc<Outline>)>,
    relays: bool,
    profiles: BTreeSet<UserId>,
    /// Whether a user's own record changed, which the key does not tell.
    users: bool,
}

impl<'a> Delta<'a> {
    fn between(old: &'a Snapshot, new: &'a Snapshot, (before, viewer): (&Node, &Node)) -> Self {
        let mut delta = Self {
            itself: differs_for_itself(before, viewer),
            relays: !Arc::ptr_eq(&old.derp, &new.derp) && old.derp != new.derp,
            filter: changed_filter(old, new, viewer),
            ..Self::default()
        };
        // Who sees whom depends on the two nodes and on the policy, so that only nodes that changed need a look if
        // the viewer and the policy stayed the same.
        let same = Arc::ptr_eq(&old.policy, &new.policy)
            && before.takes_part() == viewer.takes_part()
            && before.record.owner == viewer.record.owner
            && before.record.tags == viewer.record.tags;
        let which = if same { Visit::Changed } else { Visit::All };
        Nodes::compare(&old.nodes, &new.nodes, which, |(was, is): Pair<'a>| {
            let was = was.filter(|peer| old.access.sees(before.id(), peer.id()));
            let is = is.filter(|peer| new.access.sees(viewer.id(), peer.id()));
            delta.add(was, is);
        });
        delta.add_users(old, new, viewer);
        delta
    }

    fn add(&mut self, was: Option<&'a Arc<Node>>, is: Option<&'a Arc<Node>>) {
        match (was, is) {
            (None, None) => {}
            (Some(was), None) => {
                self.key.push((was.id(), was.revision, 0));
                self.removed.push(was);
            }
            (None, Some(is)) => {
                self.key.push((is.id(), 0, is.revision));
                self.changed.push(is);
                self.profiles.insert(view::owner(is.record.owner));
            }
            (Some(was), Some(is)) => {
                let key = (is.id(), was.revision, is.revision);
                match compare(was, is) {
                    Change::None => {}
                    Change::Patch(patch) => {
                        self.key.push(key);
                        self.patches.push((*patch, key));
                    }
                    Change::Whole => {
                        self.key.push(key);
                        self.changed.push(is);
                        self.profiles.insert(view::owner(is.record.owner));
                    }
                }
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

    fn is_empty(&self) -> bool {
        !self.itself && self.key.is_empty() && self.filter.is_none() && !self.relays && !self.users
    }

    /// Returns what other streams must have in common with this one to send the same; `None` if it is for one alone.
    fn key(&self, framing: Framing) -> Option<MessageKey> {
        (!self.itself && !self.relays && !self.users).then(|| MessageKey {
            nodes: self.key.clone(),
            filter: self.filter.as_ref().map_or(0, |(filter, old)| old.step_to(filter.outline())),
            compressed: framing.compresses(),
        })
    }

    fn write(&self, new: &Snapshot, viewer: &Node, (cap, now): (u16, Timestamp)) -> Vec<Vec<u8>> {
        let time = view::time(now);
        let head = MapResponse {
            node: self.itself.then(|| Box::new(view::own(new, viewer))),
            derp_map: self.relays.then(|| view::relays(&new.derp, cap)),
            peers_removed: self.removed.iter().map(|node| node.id()).collect(),
            peers_changed_patch: self.patches.iter().map(|(patch, _)| patch.clone()).collect(),
            user_profiles: self.profiles.iter().map(|id| view::profile(new, *id)).collect(),
            control_time: time,
            ..MapResponse::default()
        };
        let peers: Vec<_> = self.changed.iter().map(|node| &***node).collect();
        let mut written = Vec::new();
        for (at, nodes) in split(new, &peers, MESSAGE_BYTES).into_iter().enumerate() {
            let parts = Parts {
                field: "PeersChanged",
                nodes,
                filter: self.filter.as_ref().filter(|_| at == 0).map(|(filter, old)| (filter, Some(&**old))),
            };
            let more = MapResponse { control_time: time, ..MapResponse::default() };
            written.push(message(new, if at == 0 { &head } else { &more }, &parts));
        }
        written
    }
}

/// Returns the viewer's rules if they are not as before.
fn changed_filter(old: &Snapshot, new: &Snapshot, viewer: &Node) -> Option<(Filter, Arc<Outline>)> {
    if Arc::ptr_eq(&old.access, &new.access) {
        return None;
    }
    let is = new.access.filter(viewer.id());
    let was = old.access.outline(viewer.id());
    (*was != *is.outline()).then_some((is, was))
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
        || was.ipv4 != is.ipv4
        || was.created != is.created
        || was.approved != is.approved
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
