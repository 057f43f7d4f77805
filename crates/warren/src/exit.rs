//! Exit codes, and the one line that a failed command leaves on standard error.
//!
//! The codes are a contract: scripts depend on them. Add, never renumber.

use std::fmt;
use std::process::ExitCode;

/// Says why the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Something failed that has no code of its own.
    General = 1,
    /// The command line cannot be understood, or contradicts itself.
    Usage = 2,
    /// The daemon does not answer on its socket, or the server on its address.
    Unreachable = 3,
    /// The caller may not do this.
    Permission = 4,
    /// The server refused: key, login or request not accepted.
    Refused = 5,
    /// The time given with `--timeout` is over.
    Timeout = 6,
    /// Another daemon or server runs on the same state, socket or device.
    AlreadyRunning = 7,
    /// This machine lacks something, for example the TUN device.
    Unsupported = 8,
    /// What was named does not exist.
    NotFound = 9,
}

/// The table of codes, as `--help` prints it.
pub(crate) const TABLE: &str = "\
Exit codes:
  0  done
  1  failed
  2  the command line is wrong
  3  the daemon or the server cannot be reached
  4  no permission
  5  refused by the server
  6  timed out
  7  already running
  8  this machine lacks something that is needed
  9  what was named does not exist";

/// A command's failure: a code and one sentence that says what to do.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    text: String,
    /// Whether line breaks of the text are kept.
    lines: bool,
}

impl Failure {
    /// Makes a failure; `text` says what is wrong and what to do next, in one line.
    pub(crate) fn new(exit: Exit, text: impl fmt::Display) -> Self {
        Self { exit, text: text.to_string(), lines: false }
    }

    /// Makes a failure of several lines, each of which says what is wrong at one place.
    #[cfg(feature = "server")]
    pub(crate) fn of_lines(exit: Exit, text: impl fmt::Display) -> Self {
        Self { lines: true, ..Self::new(exit, text) }
    }

    /// Returns the code.
    #[cfg(test)]
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// Prints the line and returns the code for the system.
    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("warren: {}", self);
        ExitCode::from(self.exit as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line if not said otherwise, and nothing that a terminal would obey: parts of the text may come from the network.
        for character in self.text.trim_end().chars() {
            match character {
                '\n' if self.lines => f.write_str("\n")?,
                '\n' | '\t' => f.write_str(" ")?,
                character if character.is_control() => f.write_str("?")?,
                character => write!(f, "{character}")?,
            }
        }
        Ok(())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Exit::General, format_args!("{error:#}"))
    }
}

/// Gives an error a code and a beginning.
pub(crate) trait OrExit<T> {
    /// Turns an error into a [`Failure`] whose text is `doing: error`.
    fn or_exit(self, exit: Exit, doing: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit, doing: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(exit, format_args!("{doing}: {error}")))
    }
}

/// Prints what clap has to say (help and version go to standard output) and returns the code.
pub(crate) fn from_usage(error: &clap::Error) -> ExitCode {
    let wrong = error.use_stderr();
    // A closed pipe is no failure.
    drop(error.print());
    if wrong { ExitCode::from(Exit::Usage as u8) } else { ExitCode::SUCCESS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_harmless_line() {
        let failure = Failure::new(Exit::Refused, "the server says: no\nkey\u{1b}[31m\n");
        assert_eq!(failure.to_string(), "the server says: no key?[31m");
        assert_eq!(failure.exit(), Exit::Refused);
    }

    #[test]
    fn a_chain_of_causes_is_told_from_the_outside_in() {
        let error = anyhow::anyhow!("disk full").context("cannot write the backup");
        assert_eq!(Failure::from(error).to_string(), "cannot write the backup: disk full");
    }
}
