//! An engine that carries nothing, for tests of the daemon.

use std::sync::{Mutex, PoisonError};

use warren_wire::key::NodeKey;

use super::{Engine, Netcheck, PingError, Pong, Status, Update};

/// Takes every update, keeps it for the test to look at, and answers that nothing is there.
#[derive(Debug, Default)]
pub struct NullEngine {
    updates: Mutex<Vec<Update>>,
}

impl NullEngine {
    /// Returns an engine that has been told nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the updates that came since the last call.
    #[must_use]
    pub fn take_updates(&self) -> Vec<Update> {
        std::mem::take(&mut *self.updates.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Engine for NullEngine {
    fn apply(&self, update: Update) {
        self.updates.lock().unwrap_or_else(PoisonError::into_inner).push(update);
    }

    async fn status(&self) -> Status {
        Status::default()
    }

    async fn ping(&self, _peer: NodeKey) -> Result<Pong, PingError> {
        Err(PingError::Timeout)
    }

    async fn netcheck(&self) -> Netcheck {
        Netcheck::default()
    }

    async fn shutdown(&self) {}
}
