//! Calls to the running server.

use std::path::PathBuf;

use serde_json::Value;
use warren_control::admin_socket::{self, AdminRequest, CallError};

use crate::exit::{Exit, Failure, OrExit};
use crate::paths::Role;

/// Where the server listens for administrators.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Socket {
    /// The server's socket.
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Socket {
    /// Makes one call and waits for the answer.
    pub(crate) fn call(&self, request: &AdminRequest) -> Result<Value, Failure> {
        let path = self.socket.clone().unwrap_or_else(|| Role::Server.find_socket());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .or_exit(Exit::General, "cannot start")?;
        runtime.block_on(admin_socket::call(&path, request)).map_err(|error| {
            let exit = match &error {
                CallError::NotRunning(_) => Exit::Unreachable,
                CallError::Permission(_) => Exit::Permission,
                CallError::Timeout(_) => Exit::Timeout,
                CallError::Refused { code, .. } if code == "not-found" => Exit::NotFound,
                CallError::Refused { .. } => Exit::Refused,
                CallError::Broken { .. } => Exit::General,
            };
            // Each fault of a policy has its line.
            if let CallError::Refused { code, message } = &error
                && code == "policy"
            {
                return Failure::of_lines(exit, message);
            }
            Failure::new(exit, error)
        })
    }
}
