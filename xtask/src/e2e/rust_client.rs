//! The official Rust client, in a small program of its own workspace under `interop/rust-client`.

use super::Context;
use crate::fleet::{Node, PATIENCE, Server};
use crate::lab::Lab;
use crate::run::{Run, root, target};
use anyhow::Result;
use std::time::Duration;

/// It joins and echoes UDP and TCP with our node over our relay.
pub(super) fn echoes(context: &Context) -> Result<()> {
    let dir = root().join("interop/rust-client");
    let target = target().join("interop");
    Run::cargo().args("build --quiet --locked").env("CARGO_TARGET_DIR", &target).dir(&dir).go()?;
    let program = target.join("debug/rust-client");

    let lab = Lab::new("rust-client", &["server", "alpha", "crab"])?;
    let server = Server::start(&context.warren, &lab.host("server"), &["--relay-insecure-for-tests"])?;
    let invitation = server.invite(&["--reusable"])?;
    let alpha = Node::start(&context.warren, &lab.host("alpha"))?;
    alpha.up(&invitation, &[])?;
    let (alpha4, _) = alpha.addresses()?;
    let me = std::env::current_exe()?;
    let listen = format!("{alpha4}:7007");
    let mut echo = alpha.host.spawn("echo", &me, &["traffic", "echo", &listen])?;
    echo.wait_log("listening", PATIENCE)?;
    let mut crab = lab.host("crab").spawn("rust-client", &program, &[&server.url, &invitation.key, &listen])?;
    crab.wait_log("all echoes came back", Duration::from_secs(90))
}
