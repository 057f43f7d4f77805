//! The tests that a policy carries: `tests` and `sshTests`.
//!
//! They are asked of the rules, not of the network: a test may name an address that nobody has yet, and whoever is named
//! by tag or as a user counts even without a device.

mod login;
mod network;

use crate::problem::Position;
use crate::{Directory, Policy, Reach};
use std::fmt;

/// What a policy is told whose tests fail, before the failures themselves.
pub const TESTS_FAILED: &str = "test(s) failed";

/// An entry of `tests` or `sshTests` that did not come out as wanted.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TestFailure {
    /// Where the entry begins.
    pub position: Position,
    /// Its source, as written.
    pub user: String,
    /// What was wanted and what came, or what is wrong with the entry; one sentence each, at least one.
    pub errors: Vec<String>,
}

impl fmt::Display for TestFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: test of {:?}: {}", self.position, self.user, self.errors.join("; "))
    }
}

impl Policy {
    /// Runs the tests of the policy and returns those that fail; `now` is in Unix seconds.
    ///
    /// Source: policy.md, section 15. Malformed entries fail.
    #[must_use]
    pub fn run_tests(&self, directory: &Directory, now: i64) -> Vec<TestFailure> {
        let reach = Reach::new(self, directory, now);
        let network = self.sections.tests.iter().map(|test| (test.at, &test.source, network::run(&reach, test)));
        let logins = self.sections.ssh_tests.iter().map(|test| (test.at, &test.source, login::run(&reach, test)));
        network
            .chain(logins)
            .filter(|(_, _, errors)| !errors.is_empty())
            .map(|(at, source, errors)| TestFailure {
                position: Position::of(self.text(), at),
                user: source.clone(),
                errors,
            })
            .collect()
    }

    /// Returns how many tests the policy has.
    #[must_use]
    pub fn test_count(&self) -> usize {
        self.sections.tests.len().saturating_add(self.sections.ssh_tests.len())
    }
}
