//! The whole server without sockets.

use std::net::IpAddr;

use bytes::Bytes;
use tokio::sync::broadcast;
use warren_wire::control::{DerpMap, MapRequest, RegisterRequest, RegisterResponse};
use warren_wire::key::{MachineKey, MachineSecret, NodeKey, NodeSecret};

use crate::admin::Admin;
use crate::config::Config;
use crate::map::{MapError, MapStream};
use crate::model::Who;
use crate::store::{OpenError, StoreError};

/// The coordination server; cheap to clone.
#[derive(Debug, Clone)]
pub struct Control {}

#[expect(unused_variables, clippy::unused_async, reason = "signatures first")]
impl Control {
    /// Opens the state folder and starts a task for each tailnet on the present runtime; on the first start makes the
    /// server's keys and the tailnet `default` with the user `owner@default`.
    ///
    /// # Errors
    /// [`OpenError`] says what is wrong with the folder or the database; nothing is replaced then.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        unimplemented!()
    }

    /// Returns the key by which clients know the server.
    #[must_use]
    pub fn noise_key(&self) -> MachineKey {
        unimplemented!()
    }

    /// Returns its private half.
    #[must_use]
    pub fn noise_secret(&self) -> &MachineSecret {
        unimplemented!()
    }

    /// Returns the private key of the embedded relay.
    #[must_use]
    pub fn relay_secret(&self) -> &NodeSecret {
        unimplemented!()
    }

    /// Returns a secret that belongs to the server, such as the relay's certificate with its key, making it the first
    /// time; it is part of backups.
    ///
    /// # Errors
    /// Fails when the store fails.
    pub async fn stored_secret(
        &self,
        name: &'static str,
        make: impl FnOnce() -> Vec<u8> + Send + 'static,
    ) -> Result<Vec<u8>, StoreError> {
        unimplemented!()
    }

    /// Tells clients of other relays from now on; a map without any relay is refused.
    ///
    /// # Errors
    /// [`OpenError::NoRelay`].
    pub async fn set_derp_map(&self, map: DerpMap) -> Result<(), OpenError> {
        unimplemented!()
    }

    /// Answers a register request; waits as long as a login does if the request follows one up. May be dropped.
    pub async fn register(&self, machine: MachineKey, request: RegisterRequest, from: IpAddr) -> RegisterResponse {
        unimplemented!()
    }

    /// Begins a map poll, which ends an earlier one of the same node.
    ///
    /// # Errors
    /// [`MapError`].
    pub async fn map_stream(&self, machine: MachineKey, request: MapRequest) -> Result<MapStream, MapError> {
        unimplemented!()
    }

    /// Answers a request for one full map, framed and compressed as asked.
    ///
    /// # Errors
    /// [`MapError`].
    pub async fn map_once(&self, machine: MachineKey, request: MapRequest) -> Result<Bytes, MapError> {
        unimplemented!()
    }

    /// Takes what a node reports about itself.
    ///
    /// # Errors
    /// [`MapError`].
    pub async fn update(&self, machine: MachineKey, request: MapRequest) -> Result<(), MapError> {
        unimplemented!()
    }

    /// Tells whether the relay may serve that node key: registered, approved, and not past its time.
    #[must_use]
    pub fn relay_admits(&self, node: &NodeKey) -> bool {
        unimplemented!()
    }

    /// Returns the node keys that the relay must stop serving, as it happens; a receiver that lags must ask
    /// [`Self::relay_admits`] for every connection.
    #[must_use]
    pub fn relay_departures(&self) -> broadcast::Receiver<NodeKey> {
        unimplemented!()
    }

    /// Returns administration in somebody's name.
    #[must_use]
    pub fn admin(&self, who: Who) -> Admin {
        Admin::new(self.clone(), who)
    }
}
