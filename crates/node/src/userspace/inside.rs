//! A node inside a program: it joins a tailnet, dials and listens there, without TUN device, root or local socket.

use std::io;
use std::path::PathBuf;

use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use warren_wire::key::DiscoSecret;

use super::{Dialer, INTERFACE, Network};
use crate::control_client;
use crate::daemon::{Daemon, Ended};
use crate::engine::{self, Offload, StartError, USUAL_MTU};
use crate::local_api::types::{StartOptions, State, TroubleKind};
use crate::local_api::{Authority, Bus, Refusal, Request};
use crate::state::{StateError, Store};

/// Engine events that may wait for the daemon.
const EVENTS: usize = 64;

/// Says who the node is.
#[derive(Clone)]
pub struct Membership {
    /// Directory that holds its keys and settings; made if it is not there.
    pub state_dir: PathBuf,
    /// Address of the coordination server.
    pub server: String,
    /// Key that the server must have, as `warren admin auth-key create` prints it; may be empty with TLS.
    pub server_key: String,
    /// Key to join with; not needed once the directory holds a login.
    pub auth_key: String,
    /// Name to show to others.
    pub hostname: String,
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key lets anybody in who reads it in a log.
        f.debug_struct("Membership")
            .field("state_dir", &self.state_dir)
            .field("server", &self.server)
            .field("hostname", &self.hostname)
            .finish_non_exhaustive()
    }
}

/// Says why a node inside a program does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InsideError {
    /// The directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The engine does not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The server refuses, or the settings make no sense; the text says which.
    #[error("the node does not join: {0}")]
    Refused(String),
    /// The system gives no randomness.
    #[error("the system gives no randomness")]
    NoRandomness,
    /// The node has ended.
    #[error("the node has ended")]
    Ended,
}

/// Is a node inside a program. Dropping it ends the node soon; [`Self::shutdown`] says when that is done.
#[derive(Debug)]
pub struct Inside {
    dialer: Dialer,
    network: Network,
    requests: mpsc::Sender<Request>,
    bus: watch::Receiver<Bus>,
    running: tokio::task::JoinHandle<Ended>,
}

impl Inside {
    /// Starts a node and joins; ready when others can reach it.
    ///
    /// # Errors
    /// Says why it does not run. While the server is away it is not an error: wait as long as you like.
    ///
    /// # Panics
    /// Panics outside a tokio runtime.
    pub async fn start(membership: Membership) -> Result<Self, InsideError> {
        let (store, state) = Store::open(&membership.state_dir)?;
        let disco = DiscoSecret::generate().map_err(|_| InsideError::NoRandomness)?;
        let (events, engine_events) = mpsc::channel(EVENTS);
        let options = engine::Options {
            interface: INTERFACE.to_owned(),
            port: 0,
            mtu: USUAL_MTU,
            offload: Offload::Probe,
            keeps_port: false,
            probe_mtu: None,
            static_endpoints: Vec::new(),
        };
        let engine = engine::start(options, events, None).await?;
        let dialer = engine.dialer().clone();
        let network = dialer.network().cloned().ok_or(InsideError::Ended)?;
        network.keep_all_ports();
        // Nobody asks over a socket, so it does not matter for whom it runs.
        let (daemon, shared) = Daemon::new(engine, control_client::Network, (store, state), disco, 0);
        let running = tokio::spawn(daemon.run(engine_events, std::future::pending()));
        let mut inside = Self { dialer, network, requests: shared.requests, bus: shared.bus, running };
        inside.join(membership).await?;
        Ok(inside)
    }

    async fn join(&mut self, membership: Membership) -> Result<(), InsideError> {
        let prefs = json!({
            "ControlURL": membership.server, "ControlURLSet": true,
            "ServerKey": membership.server_key, "ServerKeySet": true,
            "Hostname": membership.hostname, "HostnameSet": true,
        });
        let options = StartOptions { auth_key: membership.auth_key, update_prefs: Some(prefs) };
        let (reply, answer) = oneshot::channel();
        let request = Request::Start(Authority::Root, options, reply);
        self.requests.send(request).await.map_err(|_| InsideError::Ended)?;
        match answer.await.map_err(|_| InsideError::Ended)? {
            Ok(()) => {}
            Err(Refusal::Forbidden) => return Err(InsideError::Refused("not allowed".to_owned())),
            Err(Refusal::Bad(text) | Refusal::Failed(text)) => return Err(InsideError::Refused(text)),
        }
        let is_decided = |bus: &Bus| {
            let kind = bus.trouble.as_ref().map(|trouble| trouble.kind);
            bus.state == State::Running || matches!(kind, Some(TroubleKind::ServerKey | TroubleKind::Refused))
        };
        let bus = self.bus.wait_for(is_decided).await.map_err(|_| InsideError::Ended)?;
        match &bus.trouble {
            Some(trouble) if bus.state != State::Running => Err(InsideError::Refused(trouble.text.clone())),
            _ => Ok(()),
        }
    }

    /// Returns what listens on the node's own addresses, and connects to addresses of the tailnet.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Returns what connects to names, of the tailnet and others.
    #[must_use]
    pub fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// Leaves the tailnet until the next start, and ends.
    pub async fn shutdown(self) {
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Request::Shutdown(reply)).await.is_ok() {
            let _ = answer.await;
        }
        let _ = self.running.await;
    }
}

impl From<InsideError> for io::Error {
    fn from(error: InsideError) -> Self {
        Self::other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_membership_does_not_print_its_key() {
        let membership = Membership {
            state_dir: "/var/lib/one".into(),
            server: "https://one.example".to_owned(),
            server_key: String::new(),
            auth_key: "wkey-secret".to_owned(),
            hostname: "inside".to_owned(),
        };
        let shown = format!("{membership:?}");
        assert!(shown.contains("one.example") && !shown.contains("secret"), "{shown}");
    }
}
