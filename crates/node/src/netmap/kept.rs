//! The map as it is kept on disk, for a node that starts while the server is away. Sans-IO.
//!
//! A kept map belongs to one server and one node key, and says when the server was last heard, by three clocks: so the
//! server's time can be told again after a restart, and whatever ends by it (keys, rules of the filter) still ends.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use warren_wire::control::{self, MapResponse, Time};
use warren_wire::key::{DiscoSecret, MachineKey, NodeKey};
use zeroize::{Zeroize as _, Zeroizing};

use super::{Moment, Netmap};

/// Longest text of a kept map, in bytes. A larger map is not kept.
pub const KEPT_MAX: usize = 64 << 20;

/// Version of the text's layout.
const VERSION: u32 = 1;

/// Is a map with all that must be known to use it without the server.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Address of the server, as in the settings.
    pub server_url: String,
    /// Noise key that the server proved to have.
    pub server: MachineKey,
    /// Node key that the map is for.
    pub node: NodeKey,
    /// Disco key by which the peers of the map know this node.
    pub disco: Arc<DiscoSecret>,
    /// When the server was last heard, by its own clock.
    pub heard: Time,
    /// The same by this machine's clocks.
    pub at: Moment,
    /// Which start of this machine the steady clock counts from; empty if unknown.
    pub boot: String,
    /// The map, as the first message of a poll.
    pub map: MapResponse,
}

/// Says why a text is no map that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeptError {
    /// Longer than [`KEPT_MAX`].
    #[error("it is longer than {} MiB", KEPT_MAX >> 20)]
    TooLong,
    /// Not what this version writes.
    #[error("it is damaged, or from another version")]
    Damaged,
    /// It belongs to something else than this login: names what.
    #[error("it is for another {0}")]
    Foreign(&'static str),
    /// The server was last heard too long ago.
    #[error("the server was last heard too long ago")]
    Old,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    server_url: String,
    server_key: MachineKey,
    node_key: NodeKey,
    disco_key: String,
    heard: Time,
    heard_wall: Time,
    /// Whole seconds.
    heard_steady: u64,
    boot: String,
    map: Box<RawValue>,
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.disco_key.zeroize();
    }
}

impl Kept {
    /// Writes the text.
    ///
    /// # Errors
    /// Refuses a map that is too large.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>, KeptError> {
        let map = control::to_json(&self.map).ok().and_then(|text| String::from_utf8(text).ok());
        let stored = Stored {
            version: VERSION,
            server_url: self.server_url.clone(),
            server_key: self.server,
            node_key: self.node,
            disco_key: self.disco.to_storage_text().to_string(),
            heard: self.heard,
            heard_wall: self.at.wall,
            heard_steady: self.at.steady.as_secs(),
            boot: self.boot.clone(),
            map: map.and_then(|text| RawValue::from_string(text).ok()).ok_or(KeptError::Damaged)?,
        };
        let text = serde_json::to_vec(&stored).map(Zeroizing::new).map_err(|_| KeptError::Damaged)?;
        if text.len() > KEPT_MAX { Err(KeptError::TooLong) } else { Ok(text) }
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// Refuses every other text, and a map that does not describe the node that it is for.
    pub fn decode(text: &[u8]) -> Result<Self, KeptError> {
        if text.len() > KEPT_MAX {
            return Err(KeptError::TooLong);
        }
        let stored: Stored = serde_json::from_slice(text).map_err(|_| KeptError::Damaged)?;
        let map: MapResponse = control::from_json(stored.map.get().as_bytes()).map_err(|_| KeptError::Damaged)?;
        let describes_node = map.node.as_ref().is_some_and(|node| node.key == stored.node_key);
        if stored.version != VERSION || !describes_node || stored.server_key.is_zero() {
            return Err(KeptError::Damaged);
        }
        Ok(Self {
            server_url: stored.server_url.clone(),
            server: stored.server_key,
            node: stored.node_key,
            disco: Arc::new(DiscoSecret::from_storage_text(&stored.disco_key).map_err(|_| KeptError::Damaged)?),
            heard: stored.heard,
            at: Moment { steady: Duration::from_secs(stored.heard_steady), wall: stored.heard_wall },
            boot: stored.boot.clone(),
            map,
        })
    }

    /// Checks that the map belongs to a login: the server's address, its pinned key if there is one, and the node key.
    ///
    /// # Errors
    /// [`KeptError::Foreign`].
    pub fn check(&self, server_url: &str, pin: Option<MachineKey>, node: NodeKey) -> Result<(), KeptError> {
        if self.server_url != server_url {
            return Err(KeptError::Foreign("server"));
        }
        if pin.is_some_and(|pin| pin != self.server) {
            return Err(KeptError::Foreign("server key"));
        }
        if self.node != node {
            return Err(KeptError::Foreign("node key"));
        }
        Ok(())
    }

    /// Returns the server's time at `now`, in the start of this machine that `boot` names: by the steady clock if the
    /// machine has not been started anew, else by the time of day. It is never before [`Self::heard`].
    #[must_use]
    pub fn server_time(&self, boot: &str, now: Moment) -> Time {
        let same_boot = !boot.is_empty() && boot == self.boot;
        let steady = now.steady.checked_sub(self.at.steady).filter(|_| same_boot);
        self.heard.saturating_add(steady.unwrap_or_else(|| now.wall.saturating_since(self.at.wall)))
    }
}

/// Holds a view of the map, cheap to take, from which the text to keep is made elsewhere.
#[derive(Debug)]
pub struct Snapshot {
    response: MapResponse,
    local: Arc<control::Node>,
    peers: Vec<Arc<super::Peer>>,
    relays: Option<Arc<control::DerpMap>>,
    dns: Option<Arc<control::DnsConfig>>,
}

impl Netmap {
    /// Returns a view of the map as it is; `None` without a map. What the server wanted users to know is left out: it
    /// was about that moment.
    #[must_use]
    pub fn snapshot(&self) -> Option<Snapshot> {
        let response = MapResponse {
            packet_filters: self.rules.pieces().map(|(name, rules)| (name.clone(), Some(rules.to_vec()))).collect(),
            user_profiles: self.profiles.values().cloned().collect(),
            domain: self.domain.clone(),
            tka_info: self.lock.clone(),
            flow_log: self.flow_log.then_some(true),
            ..MapResponse::default()
        };
        Some(Snapshot {
            response,
            local: Arc::clone(self.local.as_ref()?),
            peers: self.peers.values().cloned().collect(),
            relays: self.relays.clone(),
            dns: self.dns.clone(),
        })
    }
}

impl Snapshot {
    /// Returns the view as the first message of a poll.
    #[must_use]
    pub fn into_response(self) -> MapResponse {
        MapResponse {
            node: Some(Box::new(Arc::unwrap_or_clone(self.local))),
            peers: self.peers.iter().map(|peer| peer.node().clone()).collect(),
            derp_map: self.relays.map(Arc::unwrap_or_clone),
            dns_config: self.dns.map(Arc::unwrap_or_clone),
            ..self.response
        }
    }
}

#[cfg(test)]
mod tests;
