//! Putting messages together and framing them.

use std::cell::RefCell;

use bytes::Bytes;
use ipnet::IpNet;
use warren_policy::PeerRoutes;
use warren_wire::control::{MapResponse, NodeId, to_json};
use warren_wire::mapframe::{Compression, Encoder};

use crate::tailnet::filter::{Filter, Outline};
use crate::tailnet::nodes::Node;
use crate::tailnet::snapshot::Snapshot;

use super::view;

/// How a client wants its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Framing(pub(crate) Compression);

impl Framing {
    /// Reads `MapRequest.Compress`; `None` if nobody knows it.
    pub(crate) fn of(compress: &str) -> Option<Self> {
        Compression::from_request(compress).map(Self)
    }

    /// Tells whether messages are compressed.
    pub(crate) fn compresses(self) -> bool {
        self.0 == Compression::Zstd
    }

    /// Makes a frame of a message.
    pub(crate) fn frame(self, json: &[u8]) -> Bytes {
        thread_local! {
            // A compressor holds some hundred KiB, so threads keep one instead of making one a message.
            static COMPRESSOR: RefCell<Option<Encoder>> = const { RefCell::new(None) };
        }
        let framed = match self.0 {
            Compression::None => Encoder::new(self.0).and_then(|mut encoder| encoder.encode(json)),
            Compression::Zstd => COMPRESSOR.with_borrow_mut(|kept| {
                if kept.is_none() {
                    *kept = Some(Encoder::new(self.0)?);
                }
                kept.as_mut().map_or(Ok(Vec::new()), |encoder| encoder.encode(json))
            }),
        };
        match framed {
            Ok(framed) => Bytes::from(framed),
            Err(error) => {
                tracing::error!(%error, bytes = json.len(), "a map message cannot be framed");
                Bytes::new()
            }
        }
    }
}

/// The parts of a message that are encoded once and go to many.
#[derive(Debug, Default)]
pub(crate) struct Parts<'a> {
    /// Name of the field with the nodes: `Peers` or `PeersChanged`.
    pub(crate) field: &'static str,
    /// The nodes.
    pub(crate) nodes: &'a [Shown<'a>],
    /// The rules that replace those before, and what the client has of those.
    pub(crate) filter: Option<(&'a Filter, Option<&'a Outline>)>,
}

/// A node as one viewer sees it.
#[derive(Debug, Clone)]
pub(crate) struct Shown<'a> {
    pub(crate) node: &'a Node,
    /// Which of its routes the viewer may use.
    pub(crate) routes: PeerRoutes,
}

/// Writes a message: `head`, which must say something, and `parts`.
pub(crate) fn message(snapshot: &Snapshot, head: &MapResponse, parts: &Parts<'_>) -> Vec<u8> {
    let mut json = encode(head);
    // The closing brace comes back at the end.
    json.pop();
    if let Some((filter, known)) = parts.filter {
        json.extend_from_slice(b",\"PacketFilters\":");
        filter.write(known, &mut json);
    }
    for (at, shown) in parts.nodes.iter().enumerate() {
        if at == 0 {
            json.extend_from_slice(format!(",\"{}\":[", parts.field).as_bytes());
        } else {
            json.push(b',');
        }
        write_peer(snapshot, shown, &mut json);
    }
    if !parts.nodes.is_empty() {
        json.push(b']');
    }
    json.push(b'}');
    json
}

/// Writes a node for a viewer: what all viewers see alike, then its addresses and routes.
fn write_peer(snapshot: &Snapshot, shown: &Shown<'_>, to: &mut Vec<u8>) {
    to.extend_from_slice(peer_json(snapshot, shown.node));
    let list = |name: &str, prefixes: &mut dyn Iterator<Item = &IpNet>, to: &mut Vec<u8>| {
        to.extend_from_slice(format!(",\"{name}\":[").as_bytes());
        for (at, prefix) in prefixes.enumerate() {
            let comma = if at == 0 { "" } else { "," };
            to.extend_from_slice(format!("{comma}\"{prefix}\"").as_bytes());
        }
        to.push(b']');
    };
    let PeerRoutes { allowed, primary, standby } = &shown.routes;
    list("AllowedIPs", &mut shown.node.facts.addresses.iter().chain(allowed), to);
    // Some clients refuse null, and an empty list says no more than none.
    if !primary.is_empty() {
        list("PrimaryRoutes", &mut primary.iter(), to);
    }
    if !standby.is_empty() {
        list("WarrenStandbyRoutes", &mut standby.iter(), to);
    }
    to.push(b'}');
}

/// Returns the part of a node as JSON that all viewers see alike, which is made once; without the closing brace.
fn peer_json<'a>(snapshot: &Snapshot, node: &'a Node) -> &'a [u8] {
    node.peer_json.get_or_init(|| {
        let mut json = encode(&view::peer(snapshot, node));
        json.pop();
        json.into()
    })
}

/// Returns about how many bytes a node takes.
fn size(snapshot: &Snapshot, shown: &Shown<'_>) -> usize {
    /// A prefix in quotes with a comma.
    const PREFIX: usize = 46;
    let PeerRoutes { allowed, primary, standby } = &shown.routes;
    let prefixes = shown.node.facts.addresses.len() + allowed.len() + primary.len() + standby.len();
    peer_json(snapshot, shown.node).len() + prefixes * PREFIX
}

/// Splits a sorted list of nodes so that each part fills one message.
pub(super) fn split<'a>(snapshot: &Snapshot, nodes: &'a [Shown<'a>], limit: usize) -> Vec<&'a [Shown<'a>]> {
    let mut parts = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, shown) in nodes.iter().enumerate() {
        let more = size(snapshot, shown);
        if bytes > 0 && bytes + more > limit {
            parts.extend(nodes.get(start..at));
            (start, bytes) = (at, 0);
        }
        bytes += more;
    }
    parts.extend(nodes.get(start..));
    parts
}

/// Returns how many of the peers after `cursor` fill one message, and whether more are left.
pub(super) fn take<'a>(
    snapshot: &'a Snapshot,
    viewer: &'a Node,
    cursor: Option<NodeId>,
    limit: usize,
) -> (Vec<Shown<'a>>, bool) {
    let mut taken = Vec::new();
    let mut bytes = 0;
    for node in snapshot.peers(viewer).filter(|node| Some(node.id()) > cursor) {
        let shown = Shown { node, routes: snapshot.access.routes(viewer.id(), node) };
        bytes += size(snapshot, &shown);
        if bytes > limit && !taken.is_empty() {
            return (taken, true);
        }
        taken.push(shown);
    }
    (taken, false)
}

fn encode<T: serde::Serialize>(value: &T) -> Vec<u8> {
    to_json(value).unwrap_or_else(|error| {
        // Only maps with strange keys fail, and there are none in our types.
        tracing::error!(%error, "a map message cannot be encoded");
        b"{}".to_vec()
    })
}
