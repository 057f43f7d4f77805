//! Full maps.

use std::collections::BTreeSet;

use bytes::Bytes;
use jiff::Timestamp;
use warren_wire::control::{Debug, MapResponse, NodeId, SshPolicy};

use super::frame::{Parts, message, take};
use super::{Client, MESSAGE_BYTES, view};
use crate::tailnet::filter::Outline;
use crate::tailnet::nodes::Node;
use crate::tailnet::snapshot::Snapshot;

/// The beginning of a map.
#[derive(Debug)]
pub(super) struct First {
    /// The first message.
    pub(super) json: Vec<u8>,
    /// After which peer the next one goes on, if not all found room.
    pub(super) cursor: Option<NodeId>,
    /// The rules that it brings.
    pub(super) outline: Outline,
}

/// Writes the first message of a poll.
pub(super) fn first(snapshot: &Snapshot, viewer: &Node, (client, now): (Client, Timestamp), limit: usize) -> First {
    let (peers, more) = take(snapshot, viewer, None, limit);
    let owners: BTreeSet<_> =
        snapshot.peers(viewer).map(|node| &**node).chain([viewer]).map(|node| view::owner(node.record.owner)).collect();
    let head = MapResponse {
        node: Some(Box::new(view::own(snapshot, viewer))),
        derp_map: Some(view::relays(&snapshot.derp, client.cap)),
        dns_config: Some(view::dns(snapshot)),
        domain: snapshot.tailnet.name.clone(),
        flow_log: Some(snapshot.tailnet.flow_log),
        collect_services: Some(false),
        user_profiles: owners.into_iter().map(|id| view::profile(snapshot, id)).collect(),
        ssh_policy: Some(SshPolicy::clone(&snapshot.ssh(viewer.id()))),
        control_time: view::time(now),
        debug: Some(Debug { disable_log_tail: true, ..Debug::default() }),
        ..MapResponse::default()
    };
    let filter = snapshot.access.filter(viewer.id(), client.ends);
    let json = message(snapshot, &head, &Parts { field: "Peers", nodes: &peers, filter: Some((&filter, None)) });
    let cursor = peers.last().map(|shown| shown.node.id()).filter(|_| more);
    First { json, cursor, outline: filter.into_outline() }
}

/// Writes the next message with peers that found no room before.
pub(super) fn rest(
    snapshot: &Snapshot,
    viewer: &Node,
    (cursor, now): (NodeId, Timestamp),
    limit: usize,
) -> (Vec<u8>, Option<NodeId>) {
    let (peers, more) = take(snapshot, viewer, Some(cursor), limit);
    let head = MapResponse { control_time: view::time(now), ..MapResponse::default() };
    let parts = Parts { field: "PeersChanged", nodes: &peers, filter: None };
    let cursor = peers.last().map(|shown| shown.node.id()).filter(|_| more);
    (message(snapshot, &head, &parts), cursor)
}

/// Makes a whole map, in as many frames as it needs, for a client that asks once.
pub(super) fn once(snapshot: &Snapshot, viewer: &Node, (client, now): (Client, Timestamp)) -> Bytes {
    let First { json, mut cursor, .. } = first(snapshot, viewer, (client, now), MESSAGE_BYTES);
    let framing = client.framing;
    let mut frames = framing.frame(&json).to_vec();
    while let Some(after) = cursor {
        let (json, next) = rest(snapshot, viewer, (after, now), MESSAGE_BYTES);
        frames.extend_from_slice(&framing.frame(&json));
        cursor = next;
    }
    Bytes::from(frames)
}
