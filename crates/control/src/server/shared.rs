//! What all connections share, and what each one knows about itself.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::api::limits::ApiLimits;
use super::limits::{BodyBudget, Gate, Pass};
use super::proxies::TrustedProxies;
use super::sign_in::SignIn;
use crate::Control;

/// What all connections of a server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) control: Control,
    pub(crate) gate: Arc<Gate>,
    pub(crate) bodies: BodyBudget,
    pub(crate) proxies: TrustedProxies,
    pub(crate) sign_in: SignIn,
    pub(crate) api: ApiLimits,
    /// Host of the server's URL: a name or a literal address without brackets.
    pub(crate) own_host: String,
    /// Cancelled when the server stops.
    pub(crate) stop: CancellationToken,
}

/// One connection, as its requests see it.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    pub(crate) shared: Arc<Shared>,
    /// The TCP peer.
    pub(crate) peer: SocketAddr,
    /// The connection's place among all, given back when the last clone is gone.
    pub(crate) pass: Arc<Pass>,
}

impl Arrival {
    /// Returns the address that a request came from, by the word of a listed proxy or of TCP.
    pub(crate) fn client(&self, headers: &http::HeaderMap) -> IpAddr {
        self.shared.proxies.client(self.peer.ip(), headers)
    }
}
