//! Questions about a policy as an operator asks them, and their answers in words and as JSON.
//!
//! The same question can be asked of a running server and of files.

use crate::{Directory, NodeNames, Policy, PolicyDiff, PolicyErrors, QuestionError, Reach, TESTS_FAILED};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A question about a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PolicyQuestion {
    /// Do its tests pass?
    Test,
    /// Who gains and who loses what if it is replaced?
    Diff {
        /// Text of the policy that replaces it.
        new: String,
    },
    /// Does one party reach another, and why?
    Explain {
        /// A node, user, group, tag, host, address or autogroup.
        from: String,
        /// The same, with port and protocol: `web:443/tcp`.
        to: String,
    },
    /// Who reaches a party?
    WhoCanReach {
        /// As in [`Self::Explain`].
        to: String,
    },
}

/// The answer to a [`PolicyQuestion`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyAnswer {
    /// Whether the policy is as it should be; of all questions only [`PolicyQuestion::Test`] can say no.
    pub good: bool,
    /// The answer for people.
    pub lines: Vec<String>,
    /// The answer for programs.
    pub details: Value,
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The question itself.
    #[error(transparent)]
    Question(#[from] QuestionError),
    /// The new policy.
    #[error("{0}")]
    Policy(#[from] PolicyErrors),
    /// The answer cannot be written; our fault.
    #[error("internal error: the answer has no JSON form")]
    Internal,
}

impl PolicyQuestion {
    /// Answers the question for these users and nodes; `now` is in Unix seconds.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn answer(
        &self,
        policy: &Policy,
        directory: &Directory,
        names: &NodeNames,
        now: i64,
    ) -> Result<PolicyAnswer, AskError> {
        let reach = || Reach::new(policy, directory, now);
        match self {
            Self::Test => {
                let (failures, count) = (policy.run_tests(directory, now), policy.test_count());
                let mut lines: Vec<String> = failures.iter().map(ToString::to_string).collect();
                lines.push(match (failures.len(), count) {
                    (_, 0) => "the policy has no tests".to_owned(),
                    (0, 1) => "the test passes".to_owned(),
                    (0, count) => format!("all {count} tests pass"),
                    (failed, count) => format!("{TESTS_FAILED}: {failed} of {count}"),
                });
                let details = serde_json::json!({ "tests": count, "failures": failures });
                Ok(PolicyAnswer { good: failures.is_empty(), lines, details })
            }
            Self::Diff { new } => {
                let diff = PolicyDiff::of(policy, &Policy::parse(new)?, directory, names);
                answer(diff.lines(), &diff)
            }
            Self::Explain { from, to } => {
                let explanation = reach().explain(names, from, to)?;
                answer(explanation.lines(), &explanation)
            }
            Self::WhoCanReach { to } => {
                let who = reach().who_can_reach(names, to)?;
                answer(who.lines(), &who)
            }
        }
    }
}

fn answer<T: Serialize>(lines: Vec<String>, details: &T) -> Result<PolicyAnswer, AskError> {
    let details = serde_json::to_value(details).map_err(|_| AskError::Internal)?;
    Ok(PolicyAnswer { good: true, lines, details })
}
