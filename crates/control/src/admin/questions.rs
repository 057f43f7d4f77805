//! Questions about a policy: its tests, what a change would mean, who reaches whom.

use std::net::IpAddr;

use warren_policy::{
    AskError, NodeNames, Policy, PolicyAnswer, PolicyErrors, PolicyQuestion, PreviewOf, PreviewRule, QuestionError,
    Reach, TestFailure,
};

use super::{AdminError, Desk, invalid, not_found};
use crate::authority::Scope;
use crate::tailnet::access;
use crate::tailnet::snapshot::Snapshot;

/// What shall be tried.
#[derive(Debug, Clone)]
pub(crate) enum Candidate {
    /// A whole policy with its tests.
    Policy(String),
    /// Tests, as a JSON list, of the policy in force.
    Tests(String),
}

/// Whom or what rules shall concern.
#[derive(Debug, Clone)]
pub(crate) enum Previewed {
    /// The person of that login name.
    User(String),
    /// That address and port.
    Destination(IpAddr, u16),
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
    /// [`AdminError::NotFound`], [`AdminError::Crowded`].
    pub(crate) async fn try_policy(&self, tailnet: &str, candidate: Candidate) -> Result<Trial, AdminError> {
        let place = self.place(tailnet, Scope::PolicyFile.read())?;
        let (snapshot, now) = (place.snapshot(), place.now().as_second());
        place.think(move || tried(&snapshot, &candidate, now)).await
    }

    /// Returns the rules of a policy that concern a person or a destination; or why it is no policy.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], [`AdminError::Policy`], [`AdminError::Crowded`].
    pub(crate) async fn preview_policy(
        &self,
        tailnet: &str,
        text: String,
        of: Previewed,
    ) -> Result<Vec<PreviewRule>, AdminError> {
        let place = self.place(tailnet, Scope::PolicyFile.read())?;
        let (snapshot, now) = (place.snapshot(), place.now().as_second());
        let previewed = place.think(move || {
            let policy = Policy::parse(&text).map_err(|errors| AdminError::Policy { reason: errors.to_string() })?;
            let directory = access::directory(&snapshot.users, &snapshot.nodes);
            Ok(Reach::new(&policy, &directory, now).preview(match &of {
                Previewed::User(login) => PreviewOf::User(login),
                Previewed::Destination(address, port) => PreviewOf::Destination(*address, *port),
            }))
        });
        previewed.await?
    }

    /// Answers a question about a policy, or about the one in force, for the users and nodes of a tailnet as they are.
    ///
    /// # Errors
    /// [`AdminError::NotFound`] also for who or what the question names, [`AdminError::Policy`], [`AdminError::Invalid`],
    /// [`AdminError::Crowded`].
    pub async fn ask_policy(
        &self,
        tailnet: &str,
        policy: Option<String>,
        question: PolicyQuestion,
    ) -> Result<PolicyAnswer, AdminError> {
        let place = self.place(tailnet, Scope::PolicyFile.read())?;
        let (snapshot, now) = (place.snapshot(), place.now().as_second());
        let answered = place.think(move || {
            let refused = |errors: PolicyErrors| AdminError::Policy { reason: errors.to_string() };
            let policy = Policy::parse(policy.as_deref().unwrap_or(snapshot.policy.text())).map_err(refused)?;
            let directory = access::directory(&snapshot.users, &snapshot.nodes);
            let names: NodeNames =
                snapshot.nodes.iter().map(|node| (node.id(), node.record.name.to_string())).collect();
            question.answer(&policy, &directory, &names, now).map_err(|error| {
                if let AskError::Question(QuestionError::Unknown(name)) = &error {
                    not_found("node, user, group, tag or host", name)
                } else if let AskError::Policy(errors) = error {
                    refused(errors)
                } else {
                    invalid("question that has an answer", &error.to_string())
                }
            })
        });
        answered.await?
    }
}

fn tried(snapshot: &Snapshot, candidate: &Candidate, now: i64) -> Trial {
    let directory = access::directory(&snapshot.users, &snapshot.nodes);
    let parsed = match candidate {
        Candidate::Policy(text) => Policy::parse(text).map_err(|errors| errors.to_string()),
        Candidate::Tests(tests) => with_tests(snapshot.policy.text(), tests),
    };
    let checked = parsed.and_then(|policy| {
        policy.check_domains(&directory).map_err(|errors: PolicyErrors| errors.to_string())?;
        Ok(policy)
    });
    match checked.map(|policy| policy.run_tests(&directory, now)) {
        Err(reason) => Trial::Malformed(reason),
        Ok(failures) if failures.is_empty() => Trial::Good,
        Ok(failures) => Trial::Failed(failures),
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
