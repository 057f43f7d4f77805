//! The node's half of the command line: the daemon, and the commands that speak to it over its socket.

mod cleanup;
mod daemon;
mod debug;
mod exit_node;
mod look;
mod nc;
mod peers;
mod ping;
mod risk;
mod settings;
mod status;
mod up;

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use warren_node::local_api::{Client, ClientError};

use crate::exit::{Exit, Failure, OrExit};
use crate::logging::Level;
use crate::paths::Role;

/// Commands of the node.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the node's daemon, which keeps this machine on its tailnet.
    Node(daemon::Node),
    /// Connect this machine to its tailnet, logging in if needed.
    Up(up::Up),
    /// Disconnect from the tailnet, staying logged in.
    Down(settings::Down),
    /// Log in again, with a new node key.
    Login(up::Login),
    /// Disconnect and forget the login.
    Logout(settings::Logout),
    /// Show this machine and its peers.
    Status(status::Status),
    /// Show tailnet addresses of this machine or of a peer.
    Ip(status::Ip),
    /// Ping a peer and say which way the answer took.
    Ping(ping::Ping),
    /// Connect standard input and output to a TCP port of a peer.
    Nc(nc::Nc),
    /// Show whom a tailnet address belongs to.
    Whois(look::Whois),
    /// Show what this machine's network is like.
    Netcheck(look::Netcheck),
    /// Change settings of the node.
    Set(settings::Set),
    /// Put back what a daemon that was killed has left on this machine: routing rules, and where programs ask for names.
    Cleanup(cleanup::Cleanup),
    /// Show which peers pass packets on to the Internet.
    ExitNode(exit_node::ExitNode),
    /// Look at things closely.
    #[command(subcommand)]
    Debug(debug::Debug),
}

/// The socket of the daemon, for commands that speak to it.
#[derive(Debug, Clone, Args)]
pub(crate) struct Socket {
    /// Socket of the node's daemon.
    #[arg(long, value_name = "PATH", global = true)]
    socket: Option<PathBuf>,
}

impl Socket {
    /// Returns a client of the daemon.
    pub(crate) fn client(&self) -> Client {
        Client::new(self.socket.clone().unwrap_or_else(|| Role::Node.find_socket()))
    }
}

impl Command {
    /// Returns what is logged by default.
    pub(crate) fn log_level(&self) -> Level {
        if matches!(self, Self::Node(_)) { Level::Information } else { Level::Warnings }
    }

    /// Runs the command to its end.
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Node(command) => block_on(command.run()),
            Self::Up(command) => block_on(command.run()),
            Self::Down(command) => block_on(command.run()),
            Self::Login(command) => block_on(command.run()),
            Self::Logout(command) => block_on(command.run()),
            Self::Status(command) => block_on(command.run()),
            Self::Ip(command) => block_on(command.run()),
            Self::Ping(command) => block_on(command.run()),
            Self::Nc(command) => block_on(command.run()),
            Self::Whois(command) => block_on(command.run()),
            Self::Netcheck(command) => block_on(command.run()),
            Self::Set(command) => block_on(command.run()),
            Self::Cleanup(command) => block_on(command.run()),
            Self::ExitNode(command) => block_on(command.run()),
            Self::Debug(command) => command.run(),
        }
    }
}

fn block_on(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::General, "cannot start")?;
    runtime.block_on(command)
}

impl From<ClientError> for Failure {
    #[expect(clippy::wildcard_enum_match_arm, reason = "every other kind has the general code")]
    fn from(error: ClientError) -> Self {
        let exit = match error {
            ClientError::NoDaemon(_) => Exit::Unreachable,
            ClientError::SocketPermission(_) | ClientError::Denied(_) => Exit::Permission,
            ClientError::Refused { status: 400, .. } => Exit::Usage,
            ClientError::Refused { status: 404, .. } => Exit::NotFound,
            _ => Exit::General,
        };
        Self::new(exit, error)
    }
}

/// Reads a time such as `30`, `30s`, `5m` or `2h`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) => (number, text.chars().last().unwrap_or('s')),
        None => (text, 's'),
    };
    let factor = match unit {
        'm' => 60.0,
        'h' => 3600.0,
        _ => 1.0,
    };
    let seconds = number.parse::<f64>().ok().map(|number| number * factor);
    seconds
        .filter(|seconds| *seconds >= 0.0)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "expected seconds, or a number with s, m or h".to_owned())
}

/// Returns `text` without anything that a terminal would obey: it may come from the network.
fn clean(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '?' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_and_without_unit() {
        assert_eq!(parse_duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3600)));
        for text in ["", "s", "-1", "1d", "1e99h", "NaN"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
