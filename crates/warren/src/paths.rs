//! Where state and sockets lie unless the command line says otherwise.
//!
//! Root uses `/var/lib/warren` and `/run/warren`; everybody else the XDG directories of their home.

use std::path::PathBuf;

/// The half of the program that a path belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// `warren server`.
    #[cfg(feature = "server")]
    Server,
    /// `warren relay`.
    #[cfg(feature = "server")]
    Relay,
    /// `warren node`.
    #[cfg(feature = "node")]
    Node,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "server")]
            Self::Server => "server",
            #[cfg(feature = "server")]
            Self::Relay => "relay",
            #[cfg(feature = "node")]
            Self::Node => "node",
        }
    }

    /// Returns the directory that holds the state.
    pub(crate) fn state_dir(self) -> PathBuf {
        let base = if is_root() {
            PathBuf::from("/var/lib/warren")
        } else {
            directory("XDG_STATE_HOME")
                .or_else(|| Some(directory("HOME")?.join(".local/state")))
                .unwrap_or_else(|| PathBuf::from("."))
                .join("warren")
        };
        base.join(self.name())
    }

    /// Returns where the daemon of this role listens for commands.
    pub(crate) fn socket(self) -> PathBuf {
        if is_root() { self.system_socket() } else { self.own_socket() }
    }

    /// Returns where a command finds the daemon: the caller's own, else the system's.
    pub(crate) fn find_socket(self) -> PathBuf {
        let own = self.socket();
        if own.exists() { own } else { self.system_socket() }
    }

    fn system_socket(self) -> PathBuf {
        PathBuf::from("/run/warren").join(format!("{}.sock", self.name()))
    }

    fn own_socket(self) -> PathBuf {
        match directory("XDG_RUNTIME_DIR") {
            Some(runtime) => runtime.join("warren").join(format!("{}.sock", self.name())),
            None => self.state_dir().join("control.sock"),
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Reads a directory from the environment; the XDG rules say that a relative one is ignored.
fn directory(variable: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os(variable)?);
    path.is_absolute().then_some(path)
}
