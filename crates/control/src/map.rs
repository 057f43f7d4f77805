//! Maps: what a node learns of its tailnet.
//!
//! A stream remembers the snapshot that its client knows and compares it with the newest one. What changed is never
//! taken from a hint, so that a full map and a full map with changes on top say the same.

pub(crate) mod delta;
mod frame;
mod full;
mod stream;
pub(crate) mod view;

use bytes::Bytes;
use warren_wire::control::MapRequest;
use warren_wire::key::MachineKey;

use crate::control::Control;
use crate::model::Who;
use crate::store::StoreError;
use crate::tailnet::Tailnet;
use crate::tailnet::filter::Ends;
use crate::tailnet::registry::Registered;
use crate::tailnet::report::Report;
use crate::tailnet::work::Work;
use frame::Framing;
use stream::Viewer;

pub use stream::MapStream;

/// The oldest clients that are served: Tailscale 1.80.
///
/// From here on clients know `HomeDERP`, named packet filters and capability maps. Source: control.md, section 5.3.
pub(crate) const LEAST_CAPABILITY: u16 = 113;

/// Bytes of peers in one message; a longer list is spread over several messages, which some clients need and which
/// bounds what a stream holds.
///
/// Tests have fewer peers, and must spread them, too.
const MESSAGE_BYTES: usize = if cfg!(test) { 1500 } else { 1 << 20 };

/// Says why a map request is not answered; the texts are for the person at the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// No node has that key, or it belongs to another machine.
    #[error("this server knows no such node; log in again")]
    UnknownNode,
    /// The client is too old.
    #[error("{}", too_old(*found))]
    TooOld {
        /// Capability version of the client.
        found: u16,
    },
    /// The client asks for a compression that nobody knows.
    #[error("unknown compression")]
    Compression,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Says in words that a client is too old.
pub(crate) fn too_old(found: u16) -> String {
    format!(
        "this client is too old for this server: it has capability version {found}, and at least {LEAST_CAPABILITY} \
         (Tailscale 1.80) is needed; update it"
    )
}

/// What a client is, as far as it decides what it is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client {
    /// Its capability version.
    pub(crate) cap: u16,
    pub(crate) ends: Ends,
    pub(crate) framing: Framing,
}

/// Begins a poll; an earlier one of the same node ends.
pub(crate) async fn stream(control: &Control, machine: MachineKey, request: MapRequest) -> Result<MapStream, MapError> {
    let (tailnet, known, client) = asker(control, &machine, &request)?;
    let (node, key) = (known.node, request.node_key);
    let attached = tailnet.attach(node, key, Report::of(request)).await?.ok_or(MapError::UnknownNode)?;
    let viewer = Viewer { node, key, client };
    Ok(MapStream::new(viewer, control.clock(), (tailnet.snapshot(), tailnet.snapshots()), attached))
}

/// Makes one whole map; changes nothing.
pub(crate) fn fetch(control: &Control, machine: MachineKey, request: &MapRequest) -> Result<Bytes, MapError> {
    let (tailnet, known, client) = asker(control, &machine, request)?;
    let snapshot = tailnet.snapshot();
    let node = snapshot.nodes.get(known.node).filter(|node| node.record.key == request.node_key);
    let node = node.ok_or(MapError::UnknownNode)?;
    Ok(full::once(&snapshot, node, (client, control.clock().now())))
}

/// Takes a report; a node whose name follows its host is renamed with it.
pub(crate) async fn update(control: &Control, machine: MachineKey, request: MapRequest) -> Result<(), MapError> {
    let (tailnet, known, _) = asker(control, &machine, &request)?;
    let key = request.node_key;
    let updated = tailnet.update(known.node, key, Report::of(request)).await?.ok_or(MapError::UnknownNode)?;
    let Some(wanted) = updated.rename else { return Ok(()) };
    let rename = move |work: &mut Work<'_>| {
        let node = work.state.nodes.get(known.node).filter(|node| node.record.key == key).cloned();
        if let Some(node) = node {
            work.rename_after_host(&Who::machine(&machine), &node, &wanted);
        }
        Ok::<_, StoreError>(())
    };
    Ok(tailnet.change(rename).await?)
}

/// Finds who asks: a node key is only a name, so the machine must be the one that the node is registered to.
fn asker(
    control: &Control,
    machine: &MachineKey,
    request: &MapRequest,
) -> Result<(Tailnet, Registered, Client), MapError> {
    if request.version.0 < LEAST_CAPABILITY {
        return Err(MapError::TooOld { found: request.version.0 });
    }
    let framing = Framing::of(&request.compress).ok_or(MapError::Compression)?;
    let known = control.registered(&request.node_key).filter(|(_, known)| known.machine == *machine);
    let (tailnet, known) = known.ok_or(MapError::UnknownNode)?;
    let ends = if request.ends_rules() { Ends::Told } else { Ends::Untold };
    Ok((tailnet, known, Client { cap: request.version.0, ends, framing }))
}

#[cfg(test)]
mod tests;
