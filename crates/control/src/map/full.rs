//! Full maps.

use std::collections::BTreeSet;

use bytes::Bytes;
use jiff::Timestamp;
use warren_wire::control::{Debug, MapResponse, NodeId, SshPolicy};

use super::frame::{Framing, Parts, message, take};
use super::{MESSAGE_BYTES, view};
use crate::tailnet::nodes::Node;
use crate::tailnet::snapshot::Snapshot;

/// Writes the first message of a poll and tells after which peer the next one goes on, if not all found room.
pub(super) fn first(
    snapshot: &Snapshot,
    viewer: &Node,
    (cap, now): (u16, Timestamp),
    limit: usize,
) -> (Vec<u8>, Option<NodeId>) {
    let peers = snapshot.peers(viewer).map(|node| &**node);
    let (peers, more) = take(snapshot, peers, None, limit);
    let owners: BTreeSet<_> =
        snapshot.peers(viewer).map(|node| &**node).chain([viewer]).map(|node| view::owner(node.record.owner)).collect();
    let head = MapResponse {
        node: Some(Box::new(view::own(snapshot, viewer))),
        derp_map: Some(view::relays(&snapshot.derp, cap)),
        dns_config: Some(view::dns(snapshot)),
        domain: snapshot.tailnet.name.clone(),
        collect_services: Some(false),
        user_profiles: owners.into_iter().map(|id| view::profile(snapshot, id)).collect(),
        ssh_policy: Some(SshPolicy::default()),
        control_time: view::time(now),
        debug: Some(Debug { disable_log_tail: true, ..Debug::default() }),
        ..MapResponse::default()
    };
    let filter = snapshot.access.filter(viewer.id());
    let json = message(snapshot, &head, &Parts { field: "Peers", nodes: &peers, filter: Some((&filter, None)) });
    let cursor = peers.last().map(|node| node.id()).filter(|_| more);
    (json, cursor)
}

/// Writes the next message with peers that found no room before.
pub(super) fn rest(
    snapshot: &Snapshot,
    viewer: &Node,
    (cursor, now): (NodeId, Timestamp),
    limit: usize,
) -> (Vec<u8>, Option<NodeId>) {
    let peers = snapshot.peers(viewer).map(|node| &**node);
    let (peers, more) = take(snapshot, peers, Some(cursor), limit);
    let head = MapResponse { control_time: view::time(now), ..MapResponse::default() };
    let parts = Parts { field: "PeersChanged", nodes: &peers, filter: None };
    let cursor = peers.last().map(|node| node.id()).filter(|_| more);
    (message(snapshot, &head, &parts), cursor)
}

/// Makes a whole map, in as many frames as it needs, for a client that asks once.
pub(super) fn once(snapshot: &Snapshot, viewer: &Node, (cap, now): (u16, Timestamp), framing: Framing) -> Bytes {
    let (json, mut cursor) = first(snapshot, viewer, (cap, now), MESSAGE_BYTES);
    let mut frames = framing.frame(&json).to_vec();
    while let Some(after) = cursor {
        let (json, next) = rest(snapshot, viewer, (after, now), MESSAGE_BYTES);
        frames.extend_from_slice(&framing.frame(&json));
        cursor = next;
    }
    Bytes::from(frames)
}
