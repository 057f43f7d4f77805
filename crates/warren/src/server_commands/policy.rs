//! `warren policy`: who may reach what.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use serde_json::Value;
use warren_control::admin::{PolicyVersionView, PolicyView};
use warren_control::admin_socket::{AdminRequest, PolicyTerms};

use super::policy_files;
use super::socket::Socket;
use super::times;
use crate::exit::{Exit, Failure, OrExit};
use crate::output;

/// Longest policy that is read; the server takes no more, either.
const MAX_BYTES: u64 = 512 * 1024;

/// Arguments of `warren policy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    socket: Socket,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    /// The network; needed if the server has several and none is called "default".
    #[arg(long, global = true, value_name = "NAME")]
    tailnet: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print the policy in force, or an earlier version.
    Get {
        /// Number of the version.
        #[arg(long, value_name = "N")]
        version: Option<u64>,
    },
    /// Check a policy file, run its tests and put it in force. If anything is wrong, the old one stays.
    Set {
        /// The file, or `-` for standard input.
        file: PathBuf,
        #[command(flatten)]
        terms: Terms,
    },
    /// List the versions, with their authors and reasons.
    History {
        /// How many, the newest first.
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: u32,
    },
    /// Put the text of an earlier version in force again, without running its tests.
    Rollback {
        /// Number of the version.
        #[arg(value_name = "N")]
        version: u64,
        #[command(flatten)]
        terms: Terms,
    },
    /// Keep a policy that was set with --commit-confirm.
    Confirm,
    #[command(flatten)]
    Files(policy_files::Command),
}

/// How a policy shall be put in force.
#[derive(Debug, clap::Args)]
struct Terms {
    /// Why, for the history.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Only if the policy in force has this tag, as `get --json` and `history --json` show it.
    #[arg(long, value_name = "ETAG")]
    if_match: Option<String>,
    /// Go back by itself after this time (90s, 5m, 1h) unless `warren policy confirm` comes before.
    #[arg(long, value_name = "SPAN", value_parser = times::span)]
    commit_confirm: Option<Duration>,
}

impl Terms {
    fn into_wire(self) -> Option<PolicyTerms> {
        Some(PolicyTerms {
            reason: self.reason,
            if_match: self.if_match,
            confirm_within_seconds: self.commit_confirm.map(|span| span.as_secs()),
        })
    }
}

impl Arguments {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Self { socket, json, tailnet, verb } = self;
        let (request, shown): (_, Show) = match verb {
            Verb::Get { version } => (AdminRequest::PolicyGet { tailnet, version }, text),
            Verb::Set { file, terms } => {
                (AdminRequest::PolicySet { tailnet, text: read(&file)?, terms: terms.into_wire() }, in_force)
            }
            Verb::History { limit } => (AdminRequest::PolicyHistory { tailnet, limit }, history),
            Verb::Rollback { version, terms } => {
                (AdminRequest::PolicyRollback { tailnet, version, terms: terms.into_wire() }, in_force)
            }
            Verb::Confirm => (AdminRequest::PolicyConfirm { tailnet }, in_force),
            Verb::Files(command) => {
                return command.run(json, &|policy, question| {
                    typed(socket.call(&AdminRequest::PolicyAsk { tailnet: tailnet.clone(), policy, question })?)
                });
            }
        };
        let answer = socket.call(&request)?;
        if json { output::json(&answer) } else { shown(answer) }
    }
}

/// Prints an answer for people.
type Show = fn(Value) -> Result<(), Failure>;

fn text(answer: Value) -> Result<(), Failure> {
    output::text(&typed::<PolicyView>(answer)?.text)
}

fn typed<T: serde::de::DeserializeOwned>(answer: Value) -> Result<T, Failure> {
    serde_json::from_value(answer).or_exit(Exit::General, "the server's answer cannot be read (is it another version?)")
}

fn in_force(answer: Value) -> Result<(), Failure> {
    let policy: PolicyView = typed(answer)?;
    for line in policy.difference.iter().flatten() {
        output::line(line)?;
    }
    output::line(format_args!("policy version {} is in force", policy.version))?;
    let Some(open) = &policy.unconfirmed else { return Ok(()) };
    output::line(format_args!(
        "It is undone at {:.0}, in favour of version {}, unless you type: warren policy confirm",
        open.until, open.back_to
    ))
}

fn history(answer: Value) -> Result<(), Failure> {
    let rows: Vec<_> = typed::<Vec<PolicyVersionView>>(answer)?
        .iter()
        .map(|version| {
            [
                format!("{}{}", version.version, if version.in_force { " (in force)" } else { "" }),
                times::seconds(&version.at),
                version.author.clone(),
                version.bytes.to_string(),
                version.reason.replace('\n', " "),
            ]
        })
        .collect();
    output::table(["VERSION", "TIME", "AUTHOR", "BYTES", "REASON"], &rows)
}

fn read(file: &PathBuf) -> Result<String, Failure> {
    let doing = || format!("cannot read {}", file.display());
    let mut text = String::new();
    let count = if file.as_os_str() == "-" {
        std::io::stdin().lock().take(MAX_BYTES + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text))
    };
    let count = count.or_exit(Exit::General, doing())?;
    if count as u64 > MAX_BYTES {
        return Err(Failure::new(Exit::Usage, format_args!("{}: a policy is {MAX_BYTES} bytes at most", doing())));
    }
    Ok(text)
}
