//! Questions about a policy: its tests, what a change would mean, who reaches whom.

use warren_policy::{AskError, NodeNames, Policy, PolicyAnswer, PolicyQuestion, QuestionError};

use super::{Admin, AdminError, invalid, not_found};
use crate::tailnet::access;

impl Admin {
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
        let snapshot = self.tailnet(tailnet)?.snapshot();
        let refused = |errors: warren_policy::PolicyErrors| AdminError::Policy { reason: errors.to_string() };
        let policy = Policy::parse(policy.unwrap_or(snapshot.policy.text())).map_err(refused)?;
        let directory = access::directory(&snapshot.users, &snapshot.nodes);
        let names: NodeNames = snapshot.nodes.iter().map(|node| (node.id(), node.record.name.to_string())).collect();
        let now = self.control.clock().now().as_second();
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
