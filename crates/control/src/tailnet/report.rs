//! What a node reports about itself.

use std::net::SocketAddr;

use warren_wire::control::{Hostinfo, MapRequest};
use warren_wire::key::DiscoKey;

use super::bounds::bounded;
use crate::model::NodeState;

/// How many endpoints of a node are kept.
const ENDPOINTS_MAX: usize = 64;

/// What a map request says of its node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Report {
    disco: Option<DiscoKey>,
    endpoints: Vec<SocketAddr>,
    hostinfo: Option<Hostinfo>,
    pub(crate) cap: u16,
}

impl Report {
    /// Takes it from a map request; endpoints that no peer can use are left out.
    pub(crate) fn of(request: MapRequest) -> Self {
        let mut endpoints = Vec::new();
        for (endpoint, _) in request.usable_endpoints() {
            if endpoints.len() < ENDPOINTS_MAX && !endpoints.contains(&endpoint) {
                endpoints.push(endpoint);
            }
        }
        Self { disco: request.disco_key, endpoints, hostinfo: request.hostinfo, cap: request.version.0 }
    }

    /// Puts it into `state`; what it leaves open stays.
    pub(crate) fn apply(self, state: &mut NodeState) {
        state.cap = self.cap;
        if self.disco.is_some() {
            state.disco = self.disco;
        }
        // Clients leave the list out where they know none yet; those known before may still work.
        if !self.endpoints.is_empty() {
            state.endpoints = self.endpoints;
        }
        if let Some(hostinfo) = self.hostinfo {
            apply_hostinfo(hostinfo, state);
        }
    }
}

/// Puts what a client says of its machine into `state`.
pub(crate) fn apply_hostinfo(hostinfo: Hostinfo, state: &mut NodeState) {
    let mut hostinfo = bounded(hostinfo);
    let before = state.hostinfo.take();
    // Left out while it is not measured anew.
    if hostinfo.net_info.is_none() {
        hostinfo.net_info = before.and_then(|before| before.net_info);
    }
    let home = hostinfo.net_info.as_ref().and_then(|net| net.preferred_derp.known());
    if home.is_some() {
        state.home = home;
    }
    state.hostinfo = Some(hostinfo);
}
