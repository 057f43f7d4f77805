//! Questions about a policy: its tests, what a change would mean, who reaches whom.

use warren_policy::{
    AskError, NodeNames, Policy, PolicyAnswer, PolicyErrors, PolicyQuestion, PreviewOf, PreviewRule, QuestionError,
    Reach, TestFailure,
};

use super::{AdminError, Desk, invalid, not_found};
use crate::authority::Scope;
use crate::tailnet::access;

/// What shall be tried.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Candidate<'a> {
    /// A whole policy with its tests.
    Policy(&'a str),
    /// Tests, as a JSON list, of the policy in force.
    Tests(&'a str),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trial {
    Good,
    /// It cannot be a policy; why, in lines.
    Malformed(String),
    /// These tests fail.
    Failed(Vec<TestFailure>),
}

impl Desk {
    /// Tries a policy, or tests, for the users and nodes of a tailnet as they are.
    ///
    /// # Errors
    /// [`AdminError::NotFound`].
    pub(crate) fn try_policy(&self, tailnet: &str, candidate: Candidate<'_>) -> Result<Trial, AdminError> {
        let place = self.place(tailnet, Scope::PolicyFile.read())?;
        let snapshot = place.snapshot();
        let directory = access::directory(&snapshot.users, &snapshot.nodes);
        let parsed = match candidate {
            Candidate::Policy(text) => Policy::parse(text).map_err(|errors| errors.to_string()),
            Candidate::Tests(tests) => with_tests(snapshot.policy.text(), tests),
        };
        let checked = parsed.and_then(|policy| {
            policy.check_domains(&directory).map_err(|errors: PolicyErrors| errors.to_string())?;
            Ok(policy)
        });
        let policy = match checked {
            Ok(policy) => policy,
            Err(reason) => return Ok(Trial::Malformed(reason)),
        };
        let failures = policy.run_tests(&directory, place.now().as_second());
        Ok(if failures.is_empty() { Trial::Good } else { Trial::Failed(failures) })
    }

    /// Returns the rules of a policy that concern a person or a destination; or why it is no policy.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Policy`].
    pub(crate) fn preview_policy(
        &self,
        tailnet: &str,
        text: &str,
        of: PreviewOf<'_>,
    ) -> Result<Vec<PreviewRule>, AdminError> {
        let place = self.place(tailnet, Scope::PolicyFile.read())?;
        let snapshot = place.snapshot();
        let policy = Policy::parse(text).map_err(|errors| AdminError::Policy { reason: errors.to_string() })?;
        let directory = access::directory(&snapshot.users, &snapshot.nodes);
        Ok(Reach::new(&policy, &directory, place.now().as_second()).preview(of))
    }

    /// Answers a question about a policy, or about the one in force, for the users and nodes of a tailnet as they are.
    ///
    /// # Errors
    /// [`AdminError::NotFound`] also for who or what the question names, [`AdminError::Policy`], [`AdminError::Invalid`].
    pub fn ask_policy(
        &self,
        tailnet: &str,
        policy: Option<&str>,
        question: &PolicyQuestion,
    ) -> Result<PolicyAnswer, AdminError> {
        let place = self.place(tailnet, Scope::PolicyFile.read())?;
        let snapshot = place.snapshot();
        let refused = |errors: warren_policy::PolicyErrors| AdminError::Policy { reason: errors.to_string() };
        let policy = Policy::parse(policy.unwrap_or(snapshot.policy.text())).map_err(refused)?;
        let directory = access::directory(&snapshot.users, &snapshot.nodes);
        let names: NodeNames = snapshot.nodes.iter().map(|node| (node.id(), node.record.name.to_string())).collect();
        let now = place.now().as_second();
        question.answer(&policy, &directory, &names, now).map_err(|error| {
            if let AskError::Question(QuestionError::Unknown(name)) = &error {
                not_found("node, user, group, tag or host", name)
            } else if let AskError::Policy(errors) = error {
                refused(errors)
            } else {
                invalid("question that has an answer", &error.to_string())
            }
        })
    }
}

/// Puts other tests into a policy.
fn with_tests(policy: &str, tests: &str) -> Result<Policy, String> {
    let json = Policy::to_json(policy).map_err(|errors| errors.to_string())?;
    let mut policy: serde_json::Map<_, _> = serde_json::from_str(&json).map_err(|error| error.to_string())?;
    let tests = Policy::to_json(tests).map_err(|errors| errors.to_string())?;
    let tests: Vec<serde_json::Value> = serde_json::from_str(&tests).map_err(|error| error.to_string())?;
    policy.insert("tests".to_owned(), tests.into());
    policy.remove("sshTests");
    let text = serde_json::to_string(&policy).map_err(|error| error.to_string())?;
    Policy::parse(&text).map_err(|errors| errors.to_string())
}
