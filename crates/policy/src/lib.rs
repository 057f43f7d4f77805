//! The policy file: read, check, and compile to what each node may receive and which peers it sees.
//!
//! [`Policy::parse`] keeps the author's text byte for byte and reports every error with its place and what to write
//! instead. [`Policy::compile`] turns it, with a [`Directory`] of users and nodes, into a [`Compiled`] value that
//! answers per node. What the language does not know is refused by name, never ignored. `docs/policy.md` says what a
//! policy may hold.

#![forbid(unsafe_code)]

mod addresses;
mod approve;
mod ask;
mod attributes;
pub mod case;
mod compile;
mod default;
mod diff;
mod directory;
mod domains;
mod explain;
mod format;
mod hujson;
mod model;
mod ownership;
mod policy;
mod posture;
mod preview;
mod problem;
mod reach;
mod read;
mod rights;
mod schedule;
mod selector;
mod service;
mod sources;
mod ssh;
mod switches;
mod symbolic;
mod trials;

pub use ask::{AskError, PolicyAnswer, PolicyQuestion};
pub use compile::{Compiled, NodeRule, PeerRoutes, RouteView};
pub use default::DEFAULT_POLICY;
pub use diff::{CHANGES_MAX, Change, PolicyDiff};
pub use directory::{Directory, DirectoryNode, DirectoryUser, NodeNames, Owner, Role};
pub use explain::{Explanation, PARTIES_MAX, QuestionError, Verdict, WhoAnswer, WhoEntry};
pub use hujson::{POLICY_MAX_BYTES, POLICY_MAX_DEPTH};
pub use policy::{DESTINATIONS_MAX, Policy};
pub use posture::{AttributeValue, Attributes};
pub use preview::{PreviewOf, PreviewRule};
pub use problem::{ERRORS_MAX, PolicyError, PolicyErrors, Position, Problem};
pub use reach::{Reach, RuleLine};
pub use sources::{SourceChunk, Sources};
pub use ssh::{SSH_CHECK_URL, SshDecision, SshRules};
pub use trials::{TESTS_FAILED, TestFailure};
