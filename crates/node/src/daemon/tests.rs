//! Lives of a node: logins, the server's absence, expiry, and what the engine is told at each step.

#![allow(clippy::wildcard_enum_match_arm, reason = "tests name what they expect")]

mod away;
mod fixture;
mod lives;
mod logins;
