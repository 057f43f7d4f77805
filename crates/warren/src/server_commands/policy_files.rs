//! The commands of `warren policy` that read policies from files, and the questions about a policy.
//!
//! A policy from a file is judged here, over the users and nodes of another file or over whoever the policy names; with
//! `--live`, or without a file, the running server is asked, over its users and nodes.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use jiff::Timestamp;
use serde_json::json;
use warren_policy::case::{self, CASE_MAX_BYTES, Case};
use warren_policy::{
    AskError, Directory, NodeNames, POLICY_MAX_BYTES, Policy, PolicyAnswer, PolicyErrors, PolicyQuestion, QuestionError,
};

use crate::exit::{Exit, Failure, OrExit};
use crate::output;

/// Commands about files and questions.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Say what is wrong with a policy file, with line and column, and what to write instead.
    Check {
        /// The file, or `-` for standard input.
        file: PathBuf,
        #[command(flatten)]
        people: People,
    },
    /// Run the tests that a policy file carries.
    Test {
        /// The file, or `-` for standard input.
        file: PathBuf,
        #[command(flatten)]
        people: People,
    },
    /// Print a policy file in the usual form, or bring it into that form. Comments stay.
    Fmt {
        /// The file, or `-` for standard input.
        file: PathBuf,
        /// Change the file instead of printing it.
        #[arg(long)]
        write: bool,
    },
    /// Say who gains and who loses what if one policy replaces another.
    Diff {
        /// The old file and the new one; the new one alone is compared with the policy in force.
        #[arg(required = true, num_args = 1..=2, value_names = ["OLD", "NEW"])]
        files: Vec<PathBuf>,
        #[command(flatten)]
        people: People,
    },
    /// Say which rule lets one party reach another, or why none does.
    Explain {
        /// A node, user, group, tag, host, address or autogroup.
        #[arg(long, value_name = "WHO")]
        from: String,
        /// The same, with port and protocol: `web:443/tcp`, `web:443` (TCP), `web/icmp`, or `web` for any traffic.
        #[arg(long, value_name = "WHOM")]
        to: String,
        #[command(flatten)]
        about: About,
    },
    /// List who reaches a node, user, group, tag, host or address.
    WhoCanReach {
        /// Whom, with port and protocol as in `explain`.
        #[arg(value_name = "WHOM")]
        to: String,
        #[command(flatten)]
        about: About,
    },
    /// Compile a policy for the users and nodes of a recorded case, and print what each node gets, as JSON.
    Compile {
        /// The case: JSON with `policy`, `users`, `nodes` and `settings`; or `-` for standard input.
        #[arg(value_name = "CASE")]
        file: PathBuf,
    },
}

/// For whom a policy is judged. Without either, for whoever the policy names.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct People {
    /// Take users and nodes from this file: JSON with `users` and `nodes`, as `compile` reads it.
    #[arg(long, value_name = "FILE", conflicts_with = "live")]
    directory: Option<PathBuf>,
    /// Ask the running server, for its users and nodes.
    #[arg(long)]
    live: bool,
}

/// Which policy is asked about, and for whom.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct About {
    /// The policy in this file instead of the one in force.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    #[command(flatten)]
    people: People,
}

/// Asks the running server a question about a policy, or about the one in force.
pub(super) type AskServer<'a> = &'a dyn Fn(Option<String>, PolicyQuestion) -> Result<PolicyAnswer, Failure>;

impl Command {
    pub(super) fn run(self, as_json: bool, server: AskServer<'_>) -> Result<(), Failure> {
        match self {
            Self::Check { file, people } => check(&file, &people, as_json),
            Self::Test { file, people } => {
                let text = read_policy(&file)?;
                tell(&ask(Some((&file, text)), PolicyQuestion::Test, &people, server)?, as_json)
            }
            Self::Fmt { file, write } => reformat(&file, write),
            Self::Diff { files, people } => {
                let mut files = files.into_iter();
                let (first, second) = (files.next().unwrap_or_default(), files.next());
                let (old, new) = match second {
                    Some(new) => (Some((&first, read_policy(&first)?)), new),
                    None => (None, first.clone()),
                };
                let text = read_policy(&new)?;
                // Here rather than in the answer, so that the file has a name.
                parse(&new, &text)?;
                tell(&ask(old, PolicyQuestion::Diff { new: text }, &people, server)?, as_json)
            }
            Self::Explain { from, to, about } => {
                tell(&about.ask(PolicyQuestion::Explain { from, to }, server)?, as_json)
            }
            Self::WhoCanReach { to, about } => tell(&about.ask(PolicyQuestion::WhoCanReach { to }, server)?, as_json),
            Self::Compile { file } => {
                let answer = match read(&file, CASE_MAX_BYTES)? {
                    Ok(text) => case::run(&text, now()),
                    Err(problem) => json!({ "status": 400, "message": problem, "nodes": {} }),
                };
                output::json(&answer)
            }
        }
    }
}

impl About {
    fn ask(&self, question: PolicyQuestion, server: AskServer<'_>) -> Result<PolicyAnswer, Failure> {
        let policy = match (&self.policy, &self.people.directory) {
            (Some(file), _) => Some((file, read_policy(file)?)),
            (None, Some(directory)) => match read_case(directory)?.policy {
                text if text.is_empty() => {
                    let problem = format_args!("{}: it has no policy: name one with --policy", directory.display());
                    return Err(Failure::new(Exit::Usage, problem));
                }
                text => Some((directory, text)),
            },
            (None, None) => None,
        };
        ask(policy, question, &self.people, server)
    }
}

/// Answers a question here, if the policy comes from a file and no live answer is wanted.
fn ask(
    policy: Option<(&PathBuf, String)>,
    question: PolicyQuestion,
    people: &People,
    server: AskServer<'_>,
) -> Result<PolicyAnswer, Failure> {
    let (file, text) = match policy {
        Some((file, text)) if !people.live => (file, text),
        policy => return server(policy.map(|(_, text)| text), question),
    };
    let policy = parse(file, &text)?;
    let new = match &question {
        PolicyQuestion::Diff { new } => Policy::parse(new).ok(),
        PolicyQuestion::Test | PolicyQuestion::Explain { .. } | PolicyQuestion::WhoCanReach { .. } => None,
    };
    let policies: Vec<&Policy> = new.iter().chain([&policy]).collect();
    let (directory, names) = people.directory(&policies)?;
    let is_unknown = |error: &AskError| matches!(error, AskError::Question(QuestionError::Unknown(_)));
    let exit = |error: &AskError| if is_unknown(error) { Exit::NotFound } else { Exit::Usage };
    let answer = question.answer(&policy, &directory, &names, now());
    answer.map_err(|error| Failure::new(exit(&error), error))
}

impl People {
    fn directory(&self, policies: &[&Policy]) -> Result<(Directory, NodeNames), Failure> {
        match &self.directory {
            Some(file) => read_case(file).map(|case| (case.directory, case.names)),
            None => Ok(Directory::of_words(policies)),
        }
    }
}

/// Prints an answer; one that is not good is a failure.
fn tell(answer: &PolicyAnswer, as_json: bool) -> Result<(), Failure> {
    if as_json {
        output::json(&answer.details)?;
    }
    let (last, lines) = answer.lines.split_last().map_or(("", [].as_slice()), |(last, lines)| (last.as_str(), lines));
    if answer.good {
        return if as_json { Ok(()) } else { output::text(&clean(&answer.lines)) };
    }
    if !as_json {
        eprint!("{}", clean(lines));
    }
    Err(Failure::new(Exit::General, last))
}

/// Takes out of each line what a terminal would obey.
fn clean(lines: &[String]) -> String {
    let clean = |line: &String| -> String { line.chars().map(|c| if c.is_control() { '?' } else { c }).collect() };
    lines.iter().map(|line| clean(line) + "\n").collect()
}

fn check(file: &Path, people: &People, as_json: bool) -> Result<(), Failure> {
    let text = read_policy(file)?;
    let parsed = Policy::parse(&text).and_then(|policy| match &people.directory {
        None => Ok(Ok(policy)),
        Some(directory) => match read_case(directory) {
            Ok(case) => policy.check_domains(&case.directory).map(|()| Ok(policy)),
            Err(failure) => Ok(Err(failure)),
        },
    });
    let errors = match parsed {
        Ok(policy) => {
            policy?;
            return if as_json {
                output::json(&json!({ "valid": true, "errors": [] }))
            } else {
                output::line(format_args!("{}: the policy is valid", file.display()))
            };
        }
        Err(errors) => errors,
    };
    if as_json {
        let list: Vec<_> = errors
            .errors()
            .iter()
            .map(|error| {
                let (position, problem) = (error.position, &error.problem);
                json!({
                    "line": position.line,
                    "column": position.column,
                    "problem": problem.to_string(),
                    "advice": problem.advice(),
                })
            })
            .collect();
        output::json(&json!({ "valid": false, "errors": list }))?;
    }
    Err(refused(file, &errors, as_json))
}

fn reformat(file: &Path, write: bool) -> Result<(), Failure> {
    let text = read_policy(file)?;
    let formatted = Policy::format(&text).map_err(|errors| refused(file, &errors, false))?;
    if !write {
        return output::text(&formatted);
    }
    if file.as_os_str() == "-" {
        return Err(Failure::new(Exit::Usage, "standard input cannot be written to: leave --write out"));
    }
    if formatted != text {
        std::fs::write(file, formatted).or_exit(Exit::General, format_args!("cannot write {}", file.display()))?;
    }
    Ok(())
}

fn parse(file: &Path, text: &str) -> Result<Policy, Failure> {
    Policy::parse(text).map_err(|errors| refused(file, &errors, false))
}

/// Prints each error on a line of its own, as compilers do, and returns how the command ends.
fn refused(file: &Path, errors: &PolicyErrors, quiet: bool) -> Failure {
    if !quiet {
        let lines: Vec<String> = errors
            .errors()
            .iter()
            .map(|error| {
                let (position, problem) = (error.position, &error.problem);
                let place = format!("{}:{}:{}", file.display(), position.line, position.column);
                format!("{place}: {problem}; {}", problem.advice())
            })
            .collect();
        eprint!("{}", clean(&lines));
    }
    let count = errors.errors().len();
    let plural = if count == 1 { "" } else { "s" };
    Failure::new(Exit::General, format_args!("{}: {count} error{plural} in the policy", file.display()))
}

fn read_case(file: &Path) -> Result<Case, Failure> {
    let text = read(file, CASE_MAX_BYTES)?.map_err(|problem| Failure::new(Exit::Usage, problem))?;
    Case::read(&text).or_exit(Exit::Usage, file.display())
}

fn read_policy(file: &Path) -> Result<String, Failure> {
    read(file, POLICY_MAX_BYTES)?.map_err(|problem| Failure::new(Exit::Usage, problem))
}

/// Reads a file; within it, what is wrong with its contents.
fn read(file: &Path, max: usize) -> Result<Result<String, String>, Failure> {
    let most = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    let result = if file.as_os_str() == "-" {
        std::io::stdin().lock().take(most).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(most).read_to_end(&mut bytes))
    };
    result.map_err(|error| {
        let exit = if error.kind() == std::io::ErrorKind::NotFound { Exit::NotFound } else { Exit::General };
        Failure::new(exit, format_args!("cannot read {}: {error}", file.display()))
    })?;
    Ok(if bytes.len() > max {
        Err(format!("{}: more than {max} bytes", file.display()))
    } else {
        String::from_utf8(bytes).map_err(|error| format!("{}: not UTF-8: {error}", file.display()))
    })
}

fn now() -> i64 {
    Timestamp::now().as_second()
}
