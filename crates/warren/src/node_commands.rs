//! The node's half of the command line.

use clap::Subcommand;

use crate::exit::Failure;
use crate::logging::Level;

/// Commands of the node.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {}

impl Command {
    /// Returns what is logged by default.
    pub(crate) fn log_level(&self) -> Level {
        match *self {}
    }

    /// Runs the command to its end.
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self {}
    }
}
