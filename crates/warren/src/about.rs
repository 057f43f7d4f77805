//! Commands that need neither server nor node: `version` and `completion`.

use clap::{CommandFactory, Subcommand};
use serde_json::json;

use crate::exit::Failure;
use crate::{cli, output};

/// Commands about the program itself.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print the version.
    Version {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a shell's completion script.
    ///
    /// For bash: `warren completion bash > /etc/bash_completion.d/warren`.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

impl Command {
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Version { json: false } => output::line(env!("CARGO_PKG_VERSION")),
            Self::Version { json: true } => output::json(&json!({
                "version": env!("CARGO_PKG_VERSION"),
                "server": cfg!(feature = "server"),
                "node": cfg!(feature = "node"),
            })),
            Self::Completion { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut cli::Cli::command(), "warren", &mut script);
                output::text(&String::from_utf8_lossy(&script))
            }
        }
    }
}
