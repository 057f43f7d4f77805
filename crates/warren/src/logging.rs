//! Log lines on standard error.

use std::io::IsTerminal;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

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
        Level::Information => LevelFilter::INFO,
        Level::Warnings => LevelFilter::WARN,
    };
    let default = || Targets::new().with_default(default);
    let (filter, problem) = match std::env::var(VARIABLE) {
        Ok(text) => match text.parse::<Targets>() {
            Ok(filter) => (filter, None),
            Err(error) => (default(), Some(error)),
        },
        Err(_) => (default(), None),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let subscriber = tracing_subscriber::registry().with(filter);
    match format {
        Format::Text => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            subscriber.with(lines.with_ansi(colours)).init();
        }
        Format::Json => subscriber.with(lines.json().flatten_event(true)).init(),
    }
    if let Some(error) = problem {
        tracing::warn!(%error, "{VARIABLE} cannot be read and is ignored");
    }
}
