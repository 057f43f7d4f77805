//! The command line as typed: families of commands and the options that all of them take.

use clap::{Parser, Subcommand};

use crate::exit::{self, Failure};
use crate::logging::{Format, Level};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "warren",
    version,
    about = "An open, self-hosted mesh VPN",
    after_long_help = exit::TABLE,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    /// How log lines look on standard error. WARREN_LOG sets what is logged (for example `debug` or `warren_relay=trace`).
    #[arg(long, global = true, value_enum, default_value_t, hide_short_help = true)]
    pub(crate) log_format: Format,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// A family of commands; each knows how to run itself.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[cfg(feature = "node")]
    #[command(flatten)]
    Node(Box<crate::node_commands::Command>),

    #[cfg(feature = "server")]
    #[command(flatten)]
    Server(crate::server_commands::Command),

    #[command(flatten)]
    About(crate::about::Command),
}

impl Command {
    /// Returns what is logged unless WARREN_LOG says otherwise: daemons tell what they do, other commands only warn.
    pub(crate) fn log_level(&self) -> Level {
        match self {
            #[cfg(feature = "node")]
            Self::Node(command) => command.log_level(),
            #[cfg(feature = "server")]
            Self::Server(command) => command.log_level(),
            Self::About(_) => Level::Warnings,
        }
    }

    /// Runs the command to its end.
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self {
            #[cfg(feature = "node")]
            Self::Node(command) => command.run(),
            #[cfg(feature = "server")]
            Self::Server(command) => command.run(),
            Self::About(command) => command.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_table_of_arguments_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_a_help_text() {
        let root = Cli::command();
        let mut open = vec![&root];
        while let Some(command) = open.pop() {
            assert!(command.get_about().is_some(), "`{}` has none", command.get_name());
            open.extend(command.get_subcommands());
        }
    }
}
