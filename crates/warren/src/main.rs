//! The program `warren`: server, node and command line in one.
//!
//! This crate parses arguments, prints results and maps failures to exit codes; what the roles do is in the crates
//! `control` and `node`. Each family of commands has a file: [`server_commands`] (feature `server`) and
//! [`node_commands`] (feature `node`).

#![forbid(unsafe_code)]

mod about;
mod cli;
mod exit;
mod logging;
#[cfg(feature = "node")]
mod node_commands;
#[cfg(any(feature = "node", feature = "server"))]
mod open_files;
mod output;
mod paths;
#[cfg(feature = "server")]
mod server_commands;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::from_usage(&error),
    };
    logging::start(cli.log_format, cli.command.log_level());
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
