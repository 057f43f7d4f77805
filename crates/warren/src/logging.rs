//! Log lines on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// The environment variable that says what is logged.
const VARIABLE: &str = "WARREN_LOG";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// What a user notices: for daemons.
    Information,
    /// Only what somebody should look at: for commands.
    Warnings,
}

/// Starts logging. A filter in WARREN_LOG that cannot be read is told and ignored.
pub(crate) fn start(format: Format, level: Level) {
    let default = match level {
        Level::Information => "info",
        Level::Warnings => "warn",
    };
    let (filter, problem) = match std::env::var(VARIABLE) {
        Ok(text) => match EnvFilter::try_new(&text) {
            Ok(filter) => (filter, None),
            Err(error) => (EnvFilter::new(default), Some(error)),
        },
        Err(_) => (EnvFilter::new(default), None),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        Format::Text => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(colours).init();
        }
        Format::Json => builder.json().flatten_event(true).init(),
    }
    if let Some(error) = problem {
        tracing::warn!(%error, "{VARIABLE} cannot be read and is ignored");
    }
}
