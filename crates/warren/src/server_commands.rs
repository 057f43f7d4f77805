//! The server's half of the command line.

mod admin;
mod logs;
mod policy;
mod policy_files;
mod relay;
mod server;
mod socket;
mod times;

use clap::Subcommand;

use crate::exit::Failure;
use crate::logging::Level;

/// Commands of the server.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the coordination server and its relay, or save and restore its state.
    ///
    /// Without any option it serves this machine alone, with its state in one directory. It prints where it listens
    /// and what to type next.
    Server(Box<server::Arguments>),
    /// Administer a running server: networks, users, auth keys, nodes, logins.
    Admin(admin::Arguments),
    /// Ask who talked to whom, as machines wrote it down (`warren admin tailnet flow-log`), and check that nobody changed it.
    Logs(logs::Arguments),
    /// Run a relay on a machine of its own: it carries packets of machines that cannot reach each other.
    ///
    /// It prints the line that makes it known to the server.
    Relay(Box<relay::Arguments>),
    /// Read, check, explain or replace the policy: who may reach what.
    Policy(policy::Arguments),
}

impl Command {
    /// Returns what is logged by default.
    pub(crate) fn log_level(&self) -> Level {
        match self {
            Self::Server(arguments) => arguments.log_level(),
            Self::Relay(_) => Level::Information,
            Self::Admin(_) | Self::Logs(_) | Self::Policy(_) => Level::Warnings,
        }
    }

    /// Runs the command to its end.
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Server(arguments) => arguments.run(),
            Self::Admin(arguments) => arguments.run(),
            Self::Logs(arguments) => arguments.run(),
            Self::Relay(arguments) => arguments.run(),
            Self::Policy(arguments) => arguments.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_well_formed() {
        Command::augment_subcommands(clap::Command::new("warren")).debug_assert();
    }
}
